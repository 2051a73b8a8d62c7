//! `MeshHTTPRoute`: where HTTP requests to a service go, and what becomes of them on the way.

use std::net::IpAddr;

use mesh_proto::names;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    parts::{
        header::{HeaderMatch, HeaderModifier},
        number::Percentage,
    },
    policy::{self, BackendRef, ListMerge, Policy, PolicyShape, ToKind, ToPart, ToTarget},
    resource::Meta,
    selection::TargetRef,
};

/// Where HTTP requests to a service go, and what becomes of them on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshHTTPRoute {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For outgoing traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<HttpRoutes>,
}

/// Routes of the requests to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRoutes {
    /// Requests to what.
    pub target_ref: ToTarget,
    /// Rules; of those that match a request, the most specific counts.
    pub rules: Vec<HttpRule>,
}

/// What becomes of certain requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRule {
    /// Which requests: any of these.
    #[schemars(length(min = 1))]
    pub matches: Vec<HttpMatch>,
    /// What becomes of them.
    pub default: HttpRoute,
}

/// Which requests: all of these together. Empty: every request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpMatch {
    /// By path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// By method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<HttpMethod>,
    /// By parameters of the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_params: Option<Vec<QueryParamMatch>>,
    /// By headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<HeaderMatch>>,
}

/// Paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// How they are compared.
    #[serde(rename = "type")]
    pub form: PathMatchForm,
    /// With what.
    #[schemars(length(min = 1))]
    pub value: String,
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathMatchForm {
    /// Equal.
    Exact,
    /// Equal, or begins with it and a `/`.
    PathPrefix,
    /// The whole path matches.
    RegularExpression,
}

/// A method of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum HttpMethod {
    Connect,
    Delete,
    Get,
    Head,
    Options,
    Patch,
    Post,
    Put,
    Trace,
}

/// Values of a parameter of the query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueryParamMatch {
    /// How they are compared.
    #[serde(rename = "type")]
    pub form: QueryParamMatchForm,
    /// The parameter's name.
    #[schemars(length(min = 1))]
    pub name: String,
    /// With what.
    pub value: String,
}

/// How a parameter of the query is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum QueryParamMatchForm {
    /// Equal.
    Exact,
    /// The whole value matches.
    RegularExpression,
}

/// What becomes of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRoute {
    /// What is changed, in this order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Vec<Filter>>,
    /// The services that share them; absent: the one that was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_refs: Option<Vec<BackendRef>>,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// Of what.
    #[serde(rename = "type")]
    pub form: FilterForm,
    /// Of `RequestHeaderModifier`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// Of `ResponseHeaderModifier`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// Of `RequestRedirect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    /// Of `URLRewrite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    /// Of `RequestMirror`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
}

/// What a [`Filter`] changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FilterForm {
    /// Headers of the request.
    RequestHeaderModifier,
    /// Headers of the answer.
    ResponseHeaderModifier,
    /// The answer says where to go instead.
    RequestRedirect,
    /// Host and path of the request.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// A copy of the request goes elsewhere, too; its answer is thrown away.
    RequestMirror,
}

/// Where to go instead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestRedirect {
    /// The scheme; absent: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<RedirectScheme>,
    /// The host; absent: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The path; absent: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// The port; absent: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// The status; absent: 302.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<RedirectStatus>,
}

/// The scheme of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RedirectScheme {
    /// Plain.
    Http,
    /// Over TLS.
    Https,
}

/// The status of a redirect: 301, 302, 303, 307 or 308.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct RedirectStatus(#[schemars(range(min = 301, max = 308))] pub u16);

/// What becomes of a path: either of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathRewrite {
    /// Which.
    #[serde(rename = "type")]
    pub form: PathRewriteForm,
    /// Of `ReplaceFullPath`: the new path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_full_path: Option<String>,
    /// Of `ReplacePrefixMatch`: what stands instead of the prefix that the rule matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_prefix_match: Option<String>,
}

/// What a [`PathRewrite`] replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathRewriteForm {
    /// All of it.
    ReplaceFullPath,
    /// The prefix that the rule matched.
    ReplacePrefixMatch,
}

/// Host and path that the called service sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlRewrite {
    /// The host; absent: as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The path; absent: as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
}

/// Where copies go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    /// Of how many percent of the requests; absent: of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentage: Option<Percentage>,
    /// To which service.
    pub backend_ref: BackendRef,
}

impl Kind for MeshHTTPRoute {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshHTTPRoute",
        plural: "meshhttproutes",
        short: "mhttpr",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: ToKind::SERVICES,
        rules: false,
        proxy: false,
        lists: &[("rules", ListMerge::Keyed("matches"))],
    });

    fn policy(&self) -> Option<&dyn Policy> {
        Some(self)
    }

    fn validate(&self, _: &Meta, out: &mut Checker) {
        policy::check(self, out);
        for (index, entry) in self.to.iter().enumerate() {
            for (rule_index, rule) in entry.rules.iter().enumerate() {
                rule.check(&format!("to[{index}].rules[{rule_index}]"), out);
            }
        }
    }
}

impl Policy for MeshHTTPRoute {
    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn to(&self) -> Vec<ToPart<'_>> {
        let entries = self.to.iter();
        entries
            .map(|entry| ToPart {
                target: &entry.target_ref,
                at: "",
                default: json!({"rules": policy::value(&entry.rules)}),
            })
            .collect()
    }
}

impl HttpRule {
    /// Filters and backends that mean nothing, because requests are redirected: their paths inside the rule.
    pub(crate) fn beside_redirect(&self) -> Vec<String> {
        let filters = self.default.filters.as_deref().unwrap_or_default();
        let is = |filter: &Filter, form: FilterForm| filter.form == form;
        if !filters.iter().any(|filter| is(filter, FilterForm::RequestRedirect)) {
            return Vec::new();
        }
        let rewrites = filters.iter().enumerate();
        let rewrites = rewrites.filter(|(_, filter)| is(filter, FilterForm::UrlRewrite));
        let mut paths: Vec<String> = rewrites
            .map(|(index, _)| format!("default.filters[{index}]"))
            .collect();
        let backends = self.default.backend_refs.as_deref().unwrap_or_default();
        if !backends.is_empty() {
            paths.push("default.backendRefs".to_owned());
        }
        paths
    }

    fn check(&self, at: &str, out: &mut Checker) {
        for (index, one) in self.matches.iter().enumerate() {
            one.check(&format!("{at}.matches[{index}]"), out);
        }
        let at = format!("{at}.default");
        let filters = self.default.filters.as_deref().unwrap_or_default();
        for (index, filter) in filters.iter().enumerate() {
            filter.check(&self.matches, &format!("{at}.filters[{index}]"), out);
        }
        // As in the Gateway API: mirrors may be several.
        out.unique(&format!("{at}.filters"), ".type", filters, |filter| {
            (filter.form != FilterForm::RequestMirror).then_some(filter.form.name())
        });
        let backends = self.default.backend_refs.as_deref().unwrap_or_default();
        for (index, backend) in backends.iter().enumerate() {
            backend.check(&format!("{at}.backendRefs[{index}]"), out);
        }
    }
}

impl HttpMatch {
    fn check(&self, at: &str, out: &mut Checker) {
        if let Some(path) = &self.path {
            let at = format!("{at}.path.value");
            match path.form {
                PathMatchForm::RegularExpression => out.regex(at, &path.value),
                PathMatchForm::Exact => out.absolute_path(at, &path.value),
                PathMatchForm::PathPrefix => {
                    out.absolute_path(&at, &path.value);
                    if path.value != "/" && path.value.ends_with('/') {
                        let message = "leave the last '/' out: the prefix ends at a '/' in any case";
                        out.add(at, message);
                    }
                }
            }
        }
        let params = self.query_params.as_deref().unwrap_or_default();
        for (index, param) in params.iter().enumerate() {
            if param.form == QueryParamMatchForm::RegularExpression {
                out.regex(format!("{at}.queryParams[{index}].value"), &param.value);
            }
        }
        let path = format!("{at}.queryParams");
        out.unique(&path, ".name", params, |param| Some(param.name.clone()));
        for (index, header) in self.headers.iter().flatten().enumerate() {
            header.check(&format!("{at}.headers[{index}]"), out);
        }
    }

    fn is_by_prefix(&self) -> bool {
        let path = self.path.as_ref();
        path.is_some_and(|path| path.form == PathMatchForm::PathPrefix)
    }
}

impl FilterForm {
    fn name(self) -> &'static str {
        match self {
            Self::RequestHeaderModifier => "RequestHeaderModifier",
            Self::ResponseHeaderModifier => "ResponseHeaderModifier",
            Self::RequestRedirect => "RequestRedirect",
            Self::UrlRewrite => "URLRewrite",
            Self::RequestMirror => "RequestMirror",
        }
    }
}

impl Filter {
    fn check(&self, matches: &[HttpMatch], at: &str, out: &mut Checker) {
        let wanted = match self.form {
            FilterForm::RequestHeaderModifier => "requestHeaderModifier",
            FilterForm::ResponseHeaderModifier => "responseHeaderModifier",
            FilterForm::RequestRedirect => "requestRedirect",
            FilterForm::UrlRewrite => "urlRewrite",
            FilterForm::RequestMirror => "requestMirror",
        };
        out.only_of_type(
            at,
            wanted,
            &[
                ("requestHeaderModifier", self.request_header_modifier.is_some()),
                ("responseHeaderModifier", self.response_header_modifier.is_some()),
                ("requestRedirect", self.request_redirect.is_some()),
                ("urlRewrite", self.url_rewrite.is_some()),
                ("requestMirror", self.request_mirror.is_some()),
            ],
        );
        if let Some(headers) = &self.request_header_modifier {
            headers.check(&format!("{at}.requestHeaderModifier"), out);
        }
        if let Some(headers) = &self.response_header_modifier {
            headers.check(&format!("{at}.responseHeaderModifier"), out);
        }
        if let Some(redirect) = &self.request_redirect {
            let at = format!("{at}.requestRedirect");
            check_hostname(redirect.hostname.as_deref(), &at, out);
            check_path(redirect.path.as_ref(), matches, &at, out);
            let status = redirect.status_code.map(|status| status.0);
            if status.is_some_and(|status| ![301, 302, 303, 307, 308].contains(&status)) {
                out.add(format!("{at}.statusCode"), "must be one of 301, 302, 303, 307, 308");
            }
        }
        if let Some(rewrite) = &self.url_rewrite {
            let at = format!("{at}.urlRewrite");
            let parts = [
                ("hostname", rewrite.hostname.is_some()),
                ("path", rewrite.path.is_some()),
            ];
            out.at_least_one(&at, &parts);
            check_hostname(rewrite.hostname.as_deref(), &at, out);
            check_path(rewrite.path.as_ref(), matches, &at, out);
        }
        if let Some(mirror) = &self.request_mirror {
            let at = format!("{at}.requestMirror.backendRef");
            mirror.backend_ref.check(&at, out);
            if mirror.backend_ref.weight != 1 {
                out.add(format!("{at}.weight"), "a mirror has no weight; write `percentage` beside `backendRef`");
            }
        }
    }
}

fn check_hostname(hostname: Option<&str>, at: &str, out: &mut Checker) {
    let Some(hostname) = hostname else { return };
    let message = if hostname.parse::<IpAddr>().is_ok() {
        "must be a DNS name, not an address"
    } else if !names::is_subdomain(hostname) {
        "must be a DNS name in lower case"
    } else {
        return;
    };
    out.add(format!("{at}.hostname"), message);
}

fn check_path(path: Option<&PathRewrite>, matches: &[HttpMatch], at: &str, out: &mut Checker) {
    let Some(path) = path else { return };
    let at = format!("{at}.path");
    let wanted = match path.form {
        PathRewriteForm::ReplaceFullPath => "replaceFullPath",
        PathRewriteForm::ReplacePrefixMatch => "replacePrefixMatch",
    };
    let fields = [
        ("replaceFullPath", path.replace_full_path.is_some()),
        ("replacePrefixMatch", path.replace_prefix_match.is_some()),
    ];
    out.only_of_type(&at, wanted, &fields);
    for (field, value) in [
        ("replaceFullPath", &path.replace_full_path),
        ("replacePrefixMatch", &path.replace_prefix_match),
    ] {
        // Nothing instead of a prefix is a good replacement.
        let value = value.as_deref().filter(|value| !value.is_empty());
        if let Some(value) = value {
            out.absolute_path(format!("{at}.{field}"), value);
        }
    }
    if path.replace_prefix_match.is_some() && !matches.iter().all(HttpMatch::is_by_prefix) {
        let message = "there is a prefix to replace only where every match of the rule is by PathPrefix";
        out.add(format!("{at}.replacePrefixMatch"), message);
    }
}
