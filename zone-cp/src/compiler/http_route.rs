//! `MeshHTTPRoute`s: where requests to a service go, and what becomes of them on the way.
//!
//! Rules of all routes of a destination are one list, in the order of Gateway API. What no rule takes goes to the called
//! service, by a rule at the end that is built in, as in Kuma.

use std::collections::BTreeSet;

use mesh_model::{
    Kind as _, MeshHTTPRoute, MeshTimeout,
    mesh_http_route::{self as said, FilterForm, PathMatchForm, QueryParamMatchForm},
    parts::header::{HeaderKeyValue, HeaderMatchForm, HeaderModifier as SaidModifier},
    policy::{
        self, Destination, Entry, Origin, Selection,
        routes::{self, RouteRule},
    },
};
use mesh_proto::proxy::{
    HeaderMatch, HeaderModifier, HttpFilter, HttpHeader, HttpMatch, HttpMirror, HttpRedirect,
    HttpRoutes, HttpRule, HttpTimeouts, PathRewrite, Protocol, QueryMatch, UrlRewrite,
    header_match, http_filter::Filter, http_match, path_rewrite, query_match,
};
use mesh_proto::zone::ResourceKey;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    ServiceRef,
    backends::{self, Traffic},
    timeouts,
};
use crate::view::MeshView;

/// Routes, and what they go to.
pub(super) struct Routes {
    pub(super) http: HttpRoutes,
    /// Each backend has a document of its own.
    pub(super) to: BTreeSet<ServiceRef>,
}

/// What routes are compiled for.
#[derive(Clone, Copy)]
pub(super) struct Called<'a> {
    pub(super) view: &'a MeshView,
    pub(super) policies: &'a Selection<'a>,
    pub(super) reference: &'a ServiceRef,
    pub(super) destination: &'a Destination,
    /// What holds where nothing is said of a route.
    pub(super) timeouts: Option<&'a HttpTimeouts>,
    /// What is spoken at backends where nothing is declared.
    pub(super) undeclared: Protocol,
}

/// The routes of requests to a service, where policies say any.
pub(super) fn compile(called: Called<'_>) -> Option<Routes> {
    let merged = called
        .policies
        .outgoing(&MeshHTTPRoute::DESCRIPTOR, called.destination);
    let policies = &called.view.policies;
    let age = |key: &_| {
        policies
            .get(key)
            .map_or(0, |policy| policy.meta.created_revision)
    };
    let ordered = routes::in_order(&merged, age);
    if ordered.is_empty() {
        return None;
    }
    let mut routes = Routes {
        http: HttpRoutes::default(),
        to: BTreeSet::new(),
    };
    let mut takes_all = false;
    for rule in &ordered {
        let matches: said::HttpMatch = read(&rule.matches);
        takes_all |= is_catch_all(&matches);
        let compiled = called.rule(rule, &matches, &mut routes.to);
        routes.http.rules.push(compiled);
    }
    if !takes_all {
        routes.http.rules.push(HttpRule {
            backends: called.itself(&mut routes.to),
            ..HttpRule::default()
        });
    }
    Some(routes)
}

/// The kind itself has checked what it holds; what is null says nothing.
fn read<T: DeserializeOwned + Default>(value: &Value) -> T {
    T::deserialize(value).unwrap_or_default()
}

/// True where it takes every request.
fn is_catch_all(matches: &said::HttpMatch) -> bool {
    let path = matches.path.as_ref();
    let any_path =
        path.is_none_or(|path| path.form == PathMatchForm::PathPrefix && path.value == "/");
    let any_header = matches.headers.as_ref().is_none_or(Vec::is_empty);
    let any_query = matches.query_params.as_ref().is_none_or(Vec::is_empty);
    any_path && matches.method.is_none() && any_header && any_query
}

impl Called<'_> {
    fn traffic(self) -> Traffic {
        Traffic::Requests {
            undeclared: self.undeclared,
        }
    }

    fn rule(
        self,
        rule: &RouteRule,
        matches: &said::HttpMatch,
        to: &mut BTreeSet<ServiceRef>,
    ) -> HttpRule {
        let route: said::HttpRoute = read(&rule.default);
        let filters = route.filters.as_deref().unwrap_or_default();
        let is_redirected = filters
            .iter()
            .any(|filter| filter.form == FilterForm::RequestRedirect);
        let said = route.backend_refs.as_deref().unwrap_or_default();
        let backends = if is_redirected {
            Vec::new()
        } else if said.is_empty() {
            self.itself(to)
        } else {
            let shares = backends::shares(self.view, said, self.traffic());
            let backends = backends::to_wire(&shares);
            to.extend(shares.into_keys());
            backends
        };
        HttpRule {
            r#match: Some(http_match(matches)),
            filters: filters
                .iter()
                .filter_map(|filter| self.filter(filter, to))
                .collect(),
            backends,
            timeouts: self.timeouts_of(&rule.origin),
            origin: self.origin(rule),
        }
    }

    /// All requests to the service that was called.
    fn itself(self, to: &mut BTreeSet<ServiceRef>) -> Vec<mesh_proto::proxy::RouteBackend> {
        to.insert(self.reference.clone());
        backends::to_wire(&[(self.reference.clone(), 1)].into())
    }

    fn filter(self, filter: &said::Filter, to: &mut BTreeSet<ServiceRef>) -> Option<HttpFilter> {
        let filter = match filter.form {
            FilterForm::RequestHeaderModifier => {
                Filter::RequestHeaders(modifier(filter.request_header_modifier.as_ref()?))
            }
            FilterForm::ResponseHeaderModifier => {
                Filter::ResponseHeaders(modifier(filter.response_header_modifier.as_ref()?))
            }
            FilterForm::RequestRedirect => {
                Filter::Redirect(redirect(filter.request_redirect.as_ref()?))
            }
            FilterForm::UrlRewrite => {
                let rewrite = filter.url_rewrite.as_ref()?;
                Filter::UrlRewrite(UrlRewrite {
                    host: rewrite.hostname.clone().unwrap_or_default(),
                    path: rewrite.path.as_ref().map(path_rewrite),
                })
            }
            FilterForm::RequestMirror => {
                Filter::Mirror(self.mirror(filter.request_mirror.as_ref()?, to)?)
            }
        };
        Some(HttpFilter {
            filter: Some(filter),
        })
    }

    /// Copies for nobody are not made.
    fn mirror(
        self,
        mirror: &said::RequestMirror,
        to: &mut BTreeSet<ServiceRef>,
    ) -> Option<HttpMirror> {
        let reference = backends::reference(self.view, &mirror.backend_ref, self.traffic());
        if backends::is_nowhere(&reference) {
            return None;
        }
        let percent = mirror.percentage.as_ref().map_or(100.0, |p| p.value());
        let mirror = HttpMirror {
            service_document: reference.document_name(),
            // Between 0 and a million: a percentage is between 0 and 100.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            per_million: (percent * 10_000.0).round() as u32,
        };
        to.insert(reference);
        Some(mirror)
    }

    /// What `MeshTimeout`s say of the route, where that is something else than what they say of the service.
    fn timeouts_of(self, origin: &Origin) -> Option<HttpTimeouts> {
        let Origin::Policy { key, .. } = origin else {
            return None;
        };
        let route = self.view.policies.get(key)?;
        let destination = self.destination.clone().by_route(&route.meta);
        let merged = self
            .policies
            .outgoing(&MeshTimeout::DESCRIPTOR, &destination);
        let timeouts = timeouts::http(&merged);
        (Some(&timeouts) != self.timeouts).then_some(timeouts)
    }

    /// `MeshHTTPRoute/<policy name> to[0].rules[0]`
    fn origin(self, rule: &RouteRule) -> String {
        let index = match &rule.origin {
            Origin::Policy {
                key,
                entry: Entry::To(entry),
            } => self.rule_index(key, *entry, &rule.of),
            _ => None,
        };
        match index {
            Some(index) => format!("{}.rules[{index}]", rule.origin),
            None => rule.origin.to_string(),
        }
    }

    fn rule_index(self, key: &ResourceKey, entry: usize, matches: &Value) -> Option<usize> {
        let route = self.view.policies.get(key)?.get::<MeshHTTPRoute>()?;
        let mut rules = route.to.get(entry)?.rules.iter();
        rules.position(|rule| policy::value(&rule.matches) == *matches)
    }
}

fn http_match(said: &said::HttpMatch) -> HttpMatch {
    let headers = said.headers.iter().flatten().map(|header| {
        let value = header.value.clone();
        HeaderMatch {
            name: header.name.0.clone(),
            value: Some(match header.form.unwrap_or_default() {
                HeaderMatchForm::Exact => header_match::Value::Exact(value),
                HeaderMatchForm::Prefix => header_match::Value::Prefix(value),
                HeaderMatchForm::RegularExpression => header_match::Value::Regex(value),
                HeaderMatchForm::Present => header_match::Value::Present(true),
                HeaderMatchForm::Absent => header_match::Value::Present(false),
            }),
        }
    });
    let query = said.query_params.iter().flatten().map(|parameter| {
        let value = parameter.value.clone();
        QueryMatch {
            name: parameter.name.clone(),
            value: Some(match parameter.form {
                QueryParamMatchForm::Exact => query_match::Value::Exact(value),
                QueryParamMatchForm::RegularExpression => query_match::Value::Regex(value),
            }),
        }
    });
    HttpMatch {
        path: said.path.as_ref().map(|path| {
            let value = path.value.clone();
            match path.form {
                PathMatchForm::Exact => http_match::Path::Exact(value),
                PathMatchForm::PathPrefix => http_match::Path::Prefix(value),
                PathMatchForm::RegularExpression => http_match::Path::Regex(value),
            }
        }),
        method: said.method.map_or_else(String::new, method),
        headers: headers.collect(),
        query: query.collect(),
    }
}

fn method(method: said::HttpMethod) -> String {
    format!("{method:?}").to_uppercase()
}

fn modifier(said: &SaidModifier) -> HeaderModifier {
    let headers = |list: &Option<Vec<HeaderKeyValue>>| {
        let list = list.iter().flatten();
        let headers = list.map(|header| HttpHeader {
            name: header.name.0.clone(),
            value: header.value.clone(),
        });
        headers.collect()
    };
    HeaderModifier {
        set: headers(&said.set),
        add: headers(&said.add),
        remove: said
            .remove
            .iter()
            .flatten()
            .map(|name| name.to_lowercase())
            .collect(),
    }
}

fn redirect(said: &said::RequestRedirect) -> HttpRedirect {
    let scheme = match said.scheme {
        None => "",
        Some(said::RedirectScheme::Http) => "http",
        Some(said::RedirectScheme::Https) => "https",
    };
    HttpRedirect {
        scheme: scheme.to_owned(),
        host: said.hostname.clone().unwrap_or_default(),
        port: said.port.map_or(0, u32::from),
        path: said.path.as_ref().map(path_rewrite),
        status: said.status_code.map_or(302, |status| status.0.into()),
    }
}

fn path_rewrite(said: &said::PathRewrite) -> PathRewrite {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    PathRewrite {
        path: Some(match said.form {
            said::PathRewriteForm::ReplaceFullPath => {
                path_rewrite::Path::Full(text(&said.replace_full_path))
            }
            said::PathRewriteForm::ReplacePrefixMatch => {
                path_rewrite::Path::Prefix(text(&said.replace_prefix_match))
            }
        }),
    }
}
