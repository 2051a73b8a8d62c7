//! Which rule a request falls under, and what its filters make of it.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::Entry,
    uri::{Authority, PathAndQuery},
};

use mesh_proto::http_match::{RequestHeaders, path::after_prefix};

use super::{message::RequestHead, reply::Answer};
use crate::{
    config::{HeaderModifier, HttpFilter, HttpRedirect, HttpRule, PathRewrite},
    record::Reason,
    snapshot::{ServiceRoute, Snapshot},
    workers::Worker,
};

/// Where a request goes.
pub struct Routed {
    /// The service that it reaches.
    pub reached: Arc<ServiceRoute>,
    /// The rule that says so; `None`: the service has no rules.
    pub rule: Option<Arc<HttpRule>>,
    /// Services that get a copy.
    pub mirrors: Vec<Arc<ServiceRoute>>,
}

/// Finds the rule for a request to `called`, and applies its filters to the head.
///
/// # Errors
/// With the answer, where no backend is to be asked: no rule matches, the rule redirects, or the backend whose turn it is does
/// not exist. A backend that is not there keeps its share (FIELD d11).
pub fn route(
    worker: &Worker,
    snapshot: &Snapshot,
    called: &Arc<ServiceRoute>,
    head: &mut RequestHead,
) -> Result<Routed, (Box<Answer>, Arc<str>)> {
    let Some(routes) = &called.service.http_routes else {
        return without_rules(snapshot, called);
    };
    let found = routes.matches.find(
        head.method.as_str(),
        head.path.path(),
        head.path.query(),
        &Fields(head),
    );
    let Some(rule) = found.and_then(|index| routes.rules.get(index)) else {
        let text = format!("no route of {} matches this request", called.service.name);
        let answer = Answer::new(StatusCode::NOT_FOUND, Reason::NoRoute, text);
        return Err((Box::new(answer), Arc::default()));
    };
    let failed = |status, reason, text: String| {
        Err((
            Box::new(Answer::new(status, reason, text)),
            rule.origin.clone(),
        ))
    };
    let mut mirrors = Vec::new();
    for filter in &rule.filters {
        match filter {
            HttpFilter::RequestHeaders(modifier) => modify(&mut head.headers, modifier),
            // When the answer comes.
            HttpFilter::ResponseHeaders(_) => {}
            HttpFilter::Redirect(redirect) => {
                let answer = redirected(redirect, rule, head);
                return Err((Box::new(answer), rule.origin.clone()));
            }
            HttpFilter::Rewrite(rewrite) => {
                if let Some(path) = &rewrite.path
                    && let Some(path) = rewritten(path, rule, &head.path)
                {
                    head.path = path;
                }
                let host = rewrite.host.as_ref();
                if let Some(host) = host.and_then(|host| Authority::try_from(&**host).ok()) {
                    head.authority = Some(host);
                }
            }
            HttpFilter::Mirror(mirror) => {
                let is_chosen = worker.random() % 1_000_000 < u64::from(mirror.per_million);
                // Nobody waits for a copy, so nobody is told that it can not be sent.
                if is_chosen && let Some(to) = snapshot.services.get(&*mirror.service_document) {
                    mirrors.push(to.clone());
                }
            }
        }
    }
    let Some(backend) = rule.backends.next() else {
        let text = "the route names no backend with a weight".to_owned();
        return failed(StatusCode::INTERNAL_SERVER_ERROR, Reason::NoBackend, text);
    };
    // A document without zones says that the service does not exist.
    let reached = snapshot.services.get(&**backend);
    let Some(reached) = reached.filter(|reached| !reached.service.zones.is_empty()) else {
        let text = format!("the route sends this request to {backend}, which does not exist");
        return failed(StatusCode::INTERNAL_SERVER_ERROR, Reason::NoBackend, text);
    };
    Ok(Routed {
        reached: reached.clone(),
        rule: Some(rule.clone()),
        mirrors,
    })
}

/// A head's fields as matches see them: `host` is one of them.
struct Fields<'a>(&'a RequestHead);

impl RequestHeaders for Fields<'_> {
    fn values<'h>(&'h self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        let host = self.0.authority.as_ref().filter(|_| name == "host");
        let host = host.map(|host| host.as_str().as_bytes());
        let fields = self.0.headers.get_all(name).into_iter();
        fields.map(HeaderValue::as_bytes).chain(host)
    }
}

/// Requests to a service that has no rules for them go where connections go.
fn without_rules(
    snapshot: &Snapshot,
    called: &Arc<ServiceRoute>,
) -> Result<Routed, (Box<Answer>, Arc<str>)> {
    let reached = match &called.service.route {
        None => called.clone(),
        Some(route) => {
            let backend = route.next().and_then(|next| snapshot.services.get(&**next));
            match backend.filter(|backend| !backend.service.zones.is_empty()) {
                Some(backend) => backend.clone(),
                None => {
                    let text = "the route sends this request to a service that does not exist";
                    let answer =
                        Answer::new(StatusCode::INTERNAL_SERVER_ERROR, Reason::NoBackend, text);
                    return Err((Box::new(answer), route.origin.clone()));
                }
            }
        }
    };
    Ok(Routed {
        reached,
        rule: None,
        mirrors: Vec::new(),
    })
}

/// Applies the rule's filters to the head of the answer.
pub fn filter_answer(rule: &HttpRule, headers: &mut HeaderMap) {
    for filter in &rule.filters {
        if let HttpFilter::ResponseHeaders(modifier) = filter {
            modify(headers, modifier);
        }
    }
}

fn modify(headers: &mut HeaderMap, modifier: &HeaderModifier) {
    for name in &modifier.remove {
        if let Entry::Occupied(entry) = headers.entry(name) {
            entry.remove_entry_mult();
        }
    }
    for (name, value) in &modifier.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &modifier.add {
        headers.append(name, value.clone());
    }
}

fn rewritten(path: &PathRewrite, rule: &HttpRule, old: &PathAndQuery) -> Option<PathAndQuery> {
    let new = match path {
        PathRewrite::Full(full) => full.to_string(),
        PathRewrite::Prefix(new) => {
            let rest = after_prefix(old.path(), rule.prefix.as_deref()?)?;
            let new = new.trim_end_matches('/');
            // `/a` instead of `/b`, of `/b`, is `/a`, and of `/b/c` `/a/c`; nothing instead of all is `/`.
            match (new, rest) {
                ("", "") => "/".to_owned(),
                (new, rest) if rest.is_empty() || rest.starts_with('/') => format!("{new}{rest}"),
                (new, rest) => format!("{new}/{rest}"),
            }
        }
    };
    let new = match old.query() {
        Some(query) => format!("{new}?{query}"),
        None => new,
    };
    PathAndQuery::try_from(new).ok()
}

fn redirected(redirect: &HttpRedirect, rule: &HttpRule, head: &RequestHead) -> Answer {
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let old_host = head.authority.as_ref();
    let host = match &redirect.host {
        Some(host) => host,
        None => old_host.map_or("", |authority| authority.host()),
    };
    // As Gateway API has it: what the redirect says, else the scheme's own where it says a scheme, else that of the request.
    let port = match (redirect.port, &redirect.scheme) {
        (Some(port), _) => Some(port),
        (None, Some(_)) => None,
        (None, None) => old_host.and_then(Authority::port_u16),
    };
    let port = match (scheme, port) {
        (_, None) | ("http", Some(80)) | ("https", Some(443)) => String::new(),
        (_, Some(port)) => format!(":{port}"),
    };
    let new_path = redirect.path.as_ref();
    let path = new_path.and_then(|path| rewritten(path, rule, &head.path));
    let path = path.as_ref().unwrap_or(&head.path);
    let location = HeaderValue::from_str(&format!("{scheme}://{host}{port}{path}"));
    let mut answer = Answer::new(redirect.status, Reason::None, "see Location");
    answer.location = location.ok();
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    use crate::{config::HttpRoutes, http::message::Version};
    use mesh_proto::proxy as wire;

    fn rule(prefix: &str) -> HttpRule {
        let wire = wire::HttpRoutes {
            rules: vec![wire::HttpRule {
                r#match: Some(wire::HttpMatch {
                    path: Some(wire::http_match::Path::Prefix(prefix.to_owned())),
                    ..wire::HttpMatch::default()
                }),
                ..wire::HttpRule::default()
            }],
        };
        let routes = HttpRoutes::try_from(&wire).unwrap();
        (*routes.rules[0]).clone()
    }

    #[test]
    fn a_path_is_rewritten_as_gateway_api_says() {
        let prefix = |new: &str| PathRewrite::Prefix(new.into());
        for (matched, new, old, wanted) in [
            ("/foo", prefix("/xyz"), "/foo/bar", "/xyz/bar"),
            ("/foo", prefix("/xyz/"), "/foo/bar", "/xyz/bar"),
            ("/foo", prefix("/xyz"), "/foo", "/xyz"),
            ("/foo", prefix("/xyz"), "/foo/", "/xyz/"),
            ("/foo", prefix(""), "/foo/bar", "/bar"),
            ("/foo", prefix(""), "/foo", "/"),
            ("/foo", prefix("/"), "/foo/bar?a=b", "/bar?a=b"),
            ("/", prefix("/v2"), "/bar", "/v2/bar"),
            (
                "/foo",
                PathRewrite::Full("/all".into()),
                "/foo/bar?q",
                "/all?q",
            ),
        ] {
            let old: PathAndQuery = old.parse().unwrap();
            let found = rewritten(&new, &rule(matched), &old).unwrap();
            assert_eq!(found.as_str(), wanted, "{matched} {new:?} {old}");
        }
    }

    #[test]
    fn a_redirect_keeps_what_it_does_not_say() {
        let head = RequestHead {
            method: Method::GET,
            path: PathAndQuery::from_static("/foo/bar?a=b"),
            authority: Some(Authority::from_static("shop:8080")),
            headers: HeaderMap::new(),
            version: Version::Http11,
            upgrade: None,
        };
        let plain = HttpRedirect {
            scheme: None,
            host: None,
            port: None,
            path: None,
            status: StatusCode::FOUND,
        };
        let location = |redirect: &HttpRedirect| {
            let answer = redirected(redirect, &rule("/foo"), &head);
            answer.location.unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(location(&plain), "http://shop:8080/foo/bar?a=b");
        let https = HttpRedirect {
            scheme: Some("https".into()),
            ..plain.clone()
        };
        assert_eq!(location(&https), "https://shop/foo/bar?a=b");
        let all = HttpRedirect {
            scheme: Some("https".into()),
            host: Some("new".into()),
            port: Some(444),
            path: Some(PathRewrite::Prefix("/v2".into())),
            status: StatusCode::MOVED_PERMANENTLY,
        };
        assert_eq!(location(&all), "https://new:444/v2/bar?a=b");
    }

    #[test]
    fn headers_are_removed_set_and_added_in_this_order() {
        let name = |name: &'static str| http::HeaderName::from_static(name);
        let value = HeaderValue::from_static;
        let mut headers = HeaderMap::new();
        headers.append(name("a"), value("1"));
        headers.append(name("a"), value("2"));
        headers.append(name("b"), value("1"));
        let modifier = HeaderModifier {
            set: vec![(name("b"), value("2"))],
            add: vec![(name("a"), value("3")), (name("b"), value("3"))],
            remove: vec![name("a")],
        };
        modify(&mut headers, &modifier);
        let all = |name: &str| -> Vec<_> { headers.get_all(name).iter().collect() };
        assert_eq!(all("a"), ["3"]);
        assert_eq!(all("b"), ["2", "3"]);
    }
}
