//! What documents say of HTTP requests, in words.

use mesh_proto::proxy::{
    HeaderMatch, HeaderModifier, HttpFilter, HttpHeader, HttpMatch, HttpRedirect, HttpRule,
    HttpTimeouts, LoadBalancing, PathRewrite, QueryMatch, RouteBackend, UrlRewrite, header_match,
    http_filter::Filter, http_match, load_balancing::Policy, path_rewrite, query_match,
};

use super::{milliseconds_or_never, service_name, with_origin};

/// The time-outs of requests: the field of `MeshTimeout`, and value and origin.
#[must_use]
pub fn timeouts(http: &HttpTimeouts) -> [(&'static str, String); 5] {
    let value = |ms: u32, origin: &str| with_origin(&milliseconds_or_never(ms), origin);
    [
        (
            "requestTimeout",
            value(http.request_ms, &http.request_origin),
        ),
        (
            "streamIdleTimeout",
            value(http.stream_idle_ms, &http.stream_idle_origin),
        ),
        (
            "maxStreamDuration",
            value(http.max_stream_ms, &http.max_stream_origin),
        ),
        (
            "maxConnectionDuration",
            value(http.max_connection_ms, &http.max_connection_origin),
        ),
        (
            "requestHeadersTimeout",
            value(http.request_headers_ms, &http.request_headers_origin),
        ),
    ]
}

/// `leastRequest of 2, slow start 10s (built in)`.
#[must_use]
pub fn load_balancing(balancing: &LoadBalancing) -> String {
    let policy = match &balancing.policy {
        Some(Policy::RoundRobin(_)) => "roundRobin".to_owned(),
        Some(Policy::LeastRequest(least)) => format!("leastRequest of {}", least.choices.max(2)),
        None => "leastRequest of 2".to_owned(),
    };
    let slow_start = match balancing.slow_start_ms {
        0 => String::new(),
        ms => format!(", slow start {}", milliseconds_or_never(ms)),
    };
    with_origin(&format!("{policy}{slow_start}"), &balancing.origin)
}

/// `GET, path begins with /a, header x-env is "dev"`; `every request`.
#[must_use]
pub fn matches(of: Option<&HttpMatch>) -> String {
    let mut words = Vec::new();
    if let Some(of) = of {
        if !of.method.is_empty() {
            words.push(of.method.clone());
        }
        words.extend(of.path.as_ref().map(|path| match path {
            http_match::Path::Exact(path) => format!("path is {path}"),
            http_match::Path::Prefix(prefix) => format!("path begins with {prefix}"),
            http_match::Path::Regex(pattern) => format!("path matches {pattern}"),
        }));
        words.extend(of.headers.iter().map(header));
        words.extend(of.query.iter().map(parameter));
    }
    match words.is_empty() {
        true => "every request".to_owned(),
        false => words.join(", "),
    }
}

fn header(of: &HeaderMatch) -> String {
    let what = match &of.value {
        Some(header_match::Value::Exact(value)) => format!("is {value:?}"),
        Some(header_match::Value::Prefix(prefix)) => format!("begins with {prefix:?}"),
        Some(header_match::Value::Regex(pattern)) => format!("matches {pattern}"),
        Some(header_match::Value::Present(true)) => "is there".to_owned(),
        Some(header_match::Value::Present(false)) => "is not there".to_owned(),
        None => "is anything".to_owned(),
    };
    format!("header {} {what}", of.name)
}

fn parameter(of: &QueryMatch) -> String {
    let what = match &of.value {
        Some(query_match::Value::Exact(value)) => format!("is {value:?}"),
        Some(query_match::Value::Regex(pattern)) => format!("matches {pattern}"),
        None => "is anything".to_owned(),
    };
    format!("parameter {} {what}", of.name)
}

/// What is changed, in order: `request: removes x-c, sets x-a: a`, `answers 302: host shop.example`, …
#[must_use]
pub fn filters(of: &[HttpFilter]) -> Vec<String> {
    let filters = of.iter().filter_map(|filter| filter.filter.as_ref());
    let words = filters.map(|filter| match filter {
        Filter::RequestHeaders(modifier) => format!("request: {}", headers(modifier)),
        Filter::ResponseHeaders(modifier) => format!("answer: {}", headers(modifier)),
        Filter::Redirect(redirect) => redirected(redirect),
        Filter::UrlRewrite(rewrite) => rewritten(rewrite),
        Filter::Mirror(mirror) => {
            let percent = f64::from(mirror.per_million) / 10_000.0;
            format!(
                "copies {percent}% to {}",
                service_name(&mirror.service_document)
            )
        }
    });
    words.collect()
}

fn headers(modifier: &HeaderModifier) -> String {
    let list = |word: &str, headers: &[HttpHeader]| {
        let headers = headers.iter();
        headers
            .map(|header| format!("{word} {}: {}", header.name, header.value))
            .collect::<Vec<_>>()
    };
    let removed = modifier.remove.iter().map(|name| format!("removes {name}"));
    let changes = removed
        .chain(list("sets", &modifier.set))
        .chain(list("adds", &modifier.add));
    changes.collect::<Vec<_>>().join(", ")
}

/// `answers 308: scheme https, host shop.example, port 8443, prefix to /new`. What is not named is as in the request.
#[must_use]
pub fn redirected(redirect: &HttpRedirect) -> String {
    let mut parts = Vec::new();
    let mut part = |name: &str, value: &str| {
        if !value.is_empty() {
            parts.push(format!("{name} {value}"));
        }
    };
    part("scheme", &redirect.scheme);
    part("host", &redirect.host);
    if redirect.port != 0 {
        part("port", &redirect.port.to_string());
    }
    parts.extend(path(redirect.path.as_ref()));
    format!("answers {}: {}", redirect.status, parts.join(", "))
}

fn rewritten(rewrite: &UrlRewrite) -> String {
    let host = (!rewrite.host.is_empty()).then(|| format!("host to {}", rewrite.host));
    let parts: Vec<String> = host
        .into_iter()
        .chain(path(rewrite.path.as_ref()))
        .collect();
    format!("rewrites {}", parts.join(", "))
}

fn path(rewrite: Option<&PathRewrite>) -> Option<String> {
    Some(match rewrite?.path.as_ref()? {
        path_rewrite::Path::Full(path) => format!("path to {path}"),
        path_rewrite::Path::Prefix(prefix) => format!("prefix to {prefix:?}"),
    })
}

/// `90 store:80, 10 store-v2:80`.
#[must_use]
pub fn backends(of: &[RouteBackend]) -> String {
    let words = of.iter().map(|backend| {
        format!(
            "{} {}",
            backend.weight,
            service_name(&backend.service_document)
        )
    });
    words.collect::<Vec<_>>().join(", ")
}

/// The redirect of a rule, where it has one: then no backend is asked.
#[must_use]
pub fn redirect(rule: &HttpRule) -> Option<&HttpRedirect> {
    rule.filters.iter().find_map(|filter| match &filter.filter {
        Some(Filter::Redirect(redirect)) => Some(redirect),
        _ => None,
    })
}

/// One rule in one line: `path begins with /a: rewrites path to /b; to 1 store:80 (MeshHTTPRoute/…)`.
#[must_use]
pub fn rule(rule: &HttpRule) -> String {
    let mut parts = filters(&rule.filters);
    if redirect(rule).is_none() {
        parts.push(format!("to {}", backends(&rule.backends)));
    }
    if let Some(http) = &rule.timeouts {
        let said = timeouts(http).into_iter();
        let said = said.filter(|(_, value)| !value.ends_with(BUILT_IN));
        parts.extend(said.map(|(name, value)| format!("{name} {value}")));
    }
    let text = format!("{}: {}", matches(rule.r#match.as_ref()), parts.join("; "));
    with_origin(&text, &rule.origin)
}

const BUILT_IN: &str = "(built in)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_said_in_one_line() {
        let text = rule(&HttpRule {
            r#match: Some(HttpMatch {
                path: Some(http_match::Path::Prefix("/a".into())),
                method: "GET".into(),
                headers: vec![HeaderMatch {
                    name: "x-env".into(),
                    value: Some(header_match::Value::Exact("dev".into())),
                }],
                query: vec![QueryMatch {
                    name: "v".into(),
                    value: Some(query_match::Value::Regex("[0-9]+".into())),
                }],
            }),
            filters: vec![
                HttpFilter {
                    filter: Some(Filter::RequestHeaders(HeaderModifier {
                        set: vec![HttpHeader {
                            name: "x-a".into(),
                            value: "a".into(),
                        }],
                        add: vec![],
                        remove: vec!["x-c".into()],
                    })),
                },
                HttpFilter {
                    filter: Some(Filter::UrlRewrite(UrlRewrite {
                        host: "inner.example".into(),
                        path: Some(PathRewrite {
                            path: Some(path_rewrite::Path::Prefix(String::new())),
                        }),
                    })),
                },
                HttpFilter {
                    filter: Some(Filter::Mirror(mesh_proto::proxy::HttpMirror {
                        service_document: "service/b:80".into(),
                        per_million: 125_000,
                    })),
                },
            ],
            backends: vec![RouteBackend {
                service_document: "service/a:80".into(),
                weight: 9,
            }],
            timeouts: Some(HttpTimeouts {
                request_origin: "MeshTimeout/x to[0]".into(),
                ..HttpTimeouts::default()
            }),
            origin: "MeshHTTPRoute/r to[0].rules[0]".into(),
        });
        assert_eq!(
            text,
            "GET, path begins with /a, header x-env is \"dev\", parameter v matches [0-9]+: request: removes x-c, sets x-a: a; \
             rewrites host to inner.example, prefix to \"\"; copies 12.5% to b:80; to 9 a:80; \
             requestTimeout never (MeshTimeout/x to[0]) (MeshHTTPRoute/r to[0].rules[0])"
        );
    }

    #[test]
    fn a_redirect_names_what_differs_and_no_backend() {
        let text = rule(&HttpRule {
            filters: vec![HttpFilter {
                filter: Some(Filter::Redirect(HttpRedirect {
                    scheme: "https".into(),
                    port: 8443,
                    status: 308,
                    path: Some(PathRewrite {
                        path: Some(path_rewrite::Path::Full("/new".into())),
                    }),
                    ..HttpRedirect::default()
                })),
            }],
            ..HttpRule::default()
        });
        assert_eq!(
            text,
            "every request: answers 308: scheme https, port 8443, path to /new (built in)"
        );
    }
}
