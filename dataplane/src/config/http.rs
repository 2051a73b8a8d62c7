//! What becomes of HTTP requests: routes, filters, time-outs.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode};
use mesh_proto::{
    http_match::{Compiled, InvalidHttpRoutes},
    proxy as wire,
};

use super::{InvalidRoute, TcpRoute, text};

/// How long things of HTTP may take. `None`: for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpTimeouts {
    /// From the end of a request's head to the end of its answer.
    pub request: Timeout,
    /// How long nothing may pass on a request and its answer.
    pub stream_idle: Timeout,
    /// How long a request and its answer may take altogether.
    pub max_stream: Timeout,
    /// After this a connection takes no further requests.
    pub max_connection: Timeout,
    /// From a request's first byte to the end of its head.
    pub request_headers: Timeout,
}

/// One time-out, and the policy entry it comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeout {
    /// `None`: never.
    pub limit: Option<Duration>,
    /// For records. Empty: built in.
    pub origin: Arc<str>,
}

impl Timeout {
    fn read(ms: u32, origin: &str) -> Self {
        Self {
            limit: (ms > 0).then(|| Duration::from_millis(ms.into())),
            origin: text(origin).unwrap_or_default(),
        }
    }
}

impl HttpTimeouts {
    /// Of a document that says nothing: a stream may be silent for half an hour.
    #[must_use]
    pub fn built_in() -> Self {
        Self {
            request: Timeout::default(),
            stream_idle: Timeout::read(1_800_000, ""),
            max_stream: Timeout::default(),
            max_connection: Timeout::default(),
            request_headers: Timeout::default(),
        }
    }

    pub(super) fn read(wire: Option<&wire::HttpTimeouts>) -> Self {
        let Some(wire) = wire else {
            return Self::built_in();
        };
        Self {
            request: Timeout::read(wire.request_ms, &wire.request_origin),
            stream_idle: Timeout::read(wire.stream_idle_ms, &wire.stream_idle_origin),
            max_stream: Timeout::read(wire.max_stream_ms, &wire.max_stream_origin),
            max_connection: Timeout::read(wire.max_connection_ms, &wire.max_connection_origin),
            request_headers: Timeout::read(wire.request_headers_ms, &wire.request_headers_origin),
        }
    }
}

/// Where requests to a service port go.
#[derive(Debug, Clone)]
pub struct HttpRoutes {
    /// Which rule a request matches.
    pub matches: Arc<Compiled>,
    /// What becomes of those of each rule.
    pub rules: Vec<Arc<HttpRule>>,
}

/// What becomes of the requests of one rule.
#[derive(Debug, Clone)]
pub struct HttpRule {
    /// The prefix of the path that the rule matched, where it did so by prefix.
    pub prefix: Option<Arc<str>>,
    /// In this order.
    pub filters: Vec<HttpFilter>,
    /// Shares its requests among services.
    pub backends: TcpRoute,
    /// Instead of the service's.
    pub timeouts: Option<Arc<HttpTimeouts>>,
    /// The policy entry it comes from. Empty: the built-in rule.
    pub origin: Arc<str>,
}

/// A change of a request or its answer.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum HttpFilter {
    RequestHeaders(HeaderModifier),
    ResponseHeaders(HeaderModifier),
    Redirect(HttpRedirect),
    Rewrite(UrlRewrite),
    Mirror(HttpMirror),
}

/// Removals first, then `set`, then `add`.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct HeaderModifier {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

/// Where to go instead. `None`: as in the request.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct HttpRedirect {
    pub scheme: Option<Arc<str>>,
    pub host: Option<Arc<str>>,
    pub port: Option<u16>,
    pub path: Option<PathRewrite>,
    pub status: StatusCode,
}

/// Host and path that the called service sees.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct UrlRewrite {
    pub host: Option<Arc<str>>,
    pub path: Option<PathRewrite>,
}

/// A new path.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// All of it, but the query.
    Full(Arc<str>),
    /// Instead of the prefix that the rule matched.
    Prefix(Arc<str>),
}

/// Where a copy of the request goes.
#[derive(Debug, Clone)]
pub struct HttpMirror {
    /// The service document.
    pub service_document: Arc<str>,
    /// Of how many requests in a million.
    pub per_million: u32,
}

/// Why routes are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidHttpRoute {
    #[error("{0}")]
    Match(#[from] InvalidHttpRoutes),
    #[error("rules[{0}].{1}")]
    Backend(usize, InvalidRoute),
    #[error("rules[{rule}].filters[{filter}]: {what}")]
    Filter {
        rule: usize,
        filter: usize,
        what: &'static str,
    },
}

impl TryFrom<&wire::HttpRoutes> for HttpRoutes {
    type Error = InvalidHttpRoute;

    fn try_from(wire: &wire::HttpRoutes) -> Result<Self, InvalidHttpRoute> {
        let rules = wire.rules.iter().enumerate();
        let rules = rules.map(|(index, rule)| Ok(Arc::new(read_rule(index, rule)?)));
        Ok(Self {
            matches: Arc::new(Compiled::new(wire)?),
            rules: rules.collect::<Result<_, InvalidHttpRoute>>()?,
        })
    }
}

fn read_rule(index: usize, wire: &wire::HttpRule) -> Result<HttpRule, InvalidHttpRoute> {
    let backends = wire::TcpRoute {
        backends: wire.backends.clone(),
        origin: wire.origin.clone(),
    };
    let filters = wire.filters.iter().enumerate();
    let filters = filters.map(|(filter, wire)| {
        read_filter(wire).map_err(|what| InvalidHttpRoute::Filter {
            rule: index,
            filter,
            what,
        })
    });
    use wire::http_match::Path;
    let prefix = match wire.r#match.as_ref().and_then(|m| m.path.as_ref()) {
        Some(Path::Prefix(prefix)) => Some(prefix.as_str().into()),
        _ => None,
    };
    Ok(HttpRule {
        prefix,
        filters: filters.collect::<Result<_, _>>()?,
        backends: TcpRoute::try_from(&backends)
            .map_err(|error| InvalidHttpRoute::Backend(index, error))?,
        timeouts: wire
            .timeouts
            .as_ref()
            .map(|timeouts| Arc::new(HttpTimeouts::read(Some(timeouts)))),
        origin: text(&wire.origin).unwrap_or_default(),
    })
}

fn read_filter(wire: &wire::HttpFilter) -> Result<HttpFilter, &'static str> {
    use wire::http_filter::Filter;
    Ok(
        match wire
            .filter
            .as_ref()
            .ok_or("is of a kind that is not known")?
        {
            Filter::RequestHeaders(modifier) => {
                HttpFilter::RequestHeaders(read_modifier(modifier)?)
            }
            Filter::ResponseHeaders(modifier) => {
                HttpFilter::ResponseHeaders(read_modifier(modifier)?)
            }
            Filter::Redirect(redirect) => HttpFilter::Redirect(HttpRedirect {
                scheme: text(&redirect.scheme),
                host: text(&redirect.host),
                port: match redirect.port {
                    0 => None,
                    port => Some(u16::try_from(port).map_err(|_| "the port is not below 65536")?),
                },
                path: redirect.path.as_ref().map(read_path).transpose()?,
                status: match redirect.status {
                    0 => StatusCode::FOUND,
                    status => u16::try_from(status)
                        .ok()
                        .and_then(|status| StatusCode::from_u16(status).ok())
                        .filter(StatusCode::is_redirection)
                        .ok_or("the status is not one of a redirect")?,
                },
            }),
            Filter::UrlRewrite(rewrite) => HttpFilter::Rewrite(UrlRewrite {
                host: text(&rewrite.host),
                path: rewrite.path.as_ref().map(read_path).transpose()?,
            }),
            Filter::Mirror(mirror) => {
                if !mirror.service_document.starts_with("service/") {
                    return Err("the mirror's service_document does not name a service document");
                }
                HttpFilter::Mirror(HttpMirror {
                    service_document: mirror.service_document.as_str().into(),
                    per_million: mirror.per_million,
                })
            }
        },
    )
}

fn read_path(wire: &wire::PathRewrite) -> Result<PathRewrite, &'static str> {
    use wire::path_rewrite::Path;
    match wire.path.as_ref().ok_or("the new path is missing")? {
        Path::Full(path) if path.starts_with('/') => Ok(PathRewrite::Full(path.as_str().into())),
        Path::Full(_) => Err("the new path does not begin with /"),
        Path::Prefix(prefix) => Ok(PathRewrite::Prefix(prefix.as_str().into())),
    }
}

fn read_modifier(wire: &wire::HeaderModifier) -> Result<HeaderModifier, &'static str> {
    const OF_THE_HOP: [HeaderName; 4] = [
        http::header::CONNECTION,
        http::header::TRANSFER_ENCODING,
        http::header::CONTENT_LENGTH,
        http::header::UPGRADE,
    ];
    let name = |name: &str| {
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| "a header's name is malformed")?;
        match OF_THE_HOP.contains(&name) {
            true => Err("a header says how the message is framed, which filters can not change"),
            false => Ok(name),
        }
    };
    let list = |list: &[wire::HttpHeader]| {
        let headers = list.iter().map(|header| {
            let value = HeaderValue::from_str(&header.value)
                .map_err(|_| "a header's value is malformed")?;
            Ok((name(&header.name)?, value))
        });
        headers.collect::<Result<Vec<_>, &'static str>>()
    };
    Ok(HeaderModifier {
        set: list(&wire.set)?,
        add: list(&wire.add)?,
        remove: wire
            .remove
            .iter()
            .map(|n| name(n))
            .collect::<Result<_, _>>()?,
    })
}
