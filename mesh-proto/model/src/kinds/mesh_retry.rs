//! `MeshRetry`: what is tried again.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    duration::Duration,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    labels::Labels,
    parts::header::{HeaderMatch, HeaderName},
    policy::{self, Policy, PolicyShape, To, ToKind, ToPart},
    resource::Meta,
    selection::TargetRef,
    word,
};

/// What is tried again, how often and after which time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshRetry {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For outgoing traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To<Retries>>,
}

/// What is tried again, by protocol. At least one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retries {
    /// Connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpRetry>,
    /// HTTP requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRetry>,
    /// Calls over gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcRetry>,
}

/// Connections that are tried again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRetry {
    /// How often a connection is tried, the first time included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_connect_attempt: Option<u32>,
}

/// HTTP requests that are tried again. At least one field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRetry {
    /// How often a request is tried again; absent: once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// How long one attempt may take; absent: as long as the request. 0s: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Duration>,
    /// How long to wait between attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_off: Option<BackOff>,
    /// How long to wait where an answer says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    /// What is tried again: `5xx`, `GatewayError`, `Reset`, `Retriable4xx`, `ConnectFailure`, `EnvoyRatelimited`,
    /// `RefusedStream`, `Http3PostConnectFailure`, a status such as `"503"`, and of the requests only those with a
    /// method such as `HttpMethodGet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<Vec<HttpRetryOn>>,
    /// Headers of an answer, any of which is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retriable_response_headers: Option<Vec<HeaderMatch>>,
    /// Headers a request must have to be tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retriable_request_headers: Option<Vec<HeaderMatch>>,
    /// Which endpoints the next attempt leaves out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_selection: Option<Vec<HostPredicate>>,
    /// How often another endpoint is looked for before the last one is taken; absent: once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_selection_max_attempts: Option<u32>,
}

/// Why an HTTP request is tried again: a word, or a status, with or without quotes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HttpRetryOn {
    /// A status.
    Status(u16),
    /// A word, or a status as text.
    Word(String),
}

impl JsonSchema for HttpRetryOn {
    fn schema_name() -> Cow<'static, str> {
        "HttpRetryOn".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Why an HTTP request is tried again: a word, or a status.",
            "anyOf": [
                {"type": "integer", "minimum": 100, "maximum": 599},
                {"type": "string", "examples": HTTP_RETRY_ON},
            ],
        })
    }
}

/// Calls over gRPC that are tried again. At least one field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRetry {
    /// How often a call is tried again; absent: once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// How long one attempt may take; absent: as long as the call. 0s: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Duration>,
    /// How long to wait between attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_off: Option<BackOff>,
    /// How long to wait where an answer says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    /// Which statuses are tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<Vec<GrpcStatus>>,
}

/// A status of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GrpcStatus {
    /// 1.
    Canceled,
    /// 4.
    DeadlineExceeded,
    /// 13.
    Internal,
    /// 8.
    ResourceExhausted,
    /// 14.
    Unavailable,
}

/// How long to wait between attempts, longer each time. At least one field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackOff {
    /// The first time; absent: 25ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_interval: Option<Duration>,
    /// The longest; absent: ten times `baseInterval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_interval: Option<Duration>,
}

/// How long to wait where an answer says so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitedBackOff {
    /// Headers that say how long; the first that can be read counts.
    pub reset_headers: Vec<ResetHeader>,
    /// The longest; absent: 300s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_interval: Option<Duration>,
}

/// A header that says how long to wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResetHeader {
    /// Its name.
    pub name: HeaderName,
    /// What its value is.
    pub format: ResetFormat,
}

/// What the value of a [`ResetHeader`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ResetFormat {
    /// Seconds from now.
    Seconds,
    /// Unix seconds.
    UnixTimestamp,
}

/// Which endpoints the next attempt leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostPredicate {
    /// Which.
    pub predicate: HostPredicateForm,
    /// Of `OmitHostsWithTags`: labels of the endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Labels>,
    /// Of `OmitPreviousPriorities`: after how many attempts priorities are looked at again; absent: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub update_frequency: Option<u32>,
}

/// Which endpoints a [`HostPredicate`] leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HostPredicateForm {
    /// Those that were tried.
    OmitPreviousHosts,
    /// Those with certain labels.
    OmitHostsWithTags,
    /// Those of priorities that were tried.
    OmitPreviousPriorities,
}

impl Kind for MeshRetry {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshRetry",
        plural: "meshretries",
        short: "mretry",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: ToKind::ALL,
        rules: false,
        proxy: false,
        lists: &[],
    });

    fn policy(&self) -> Option<&dyn Policy> {
        Some(self)
    }

    fn validate(&self, _: &Meta, out: &mut Checker) {
        policy::check(self, out);
        for (index, entry) in self.to.iter().enumerate() {
            entry.default.check(&format!("to[{index}].default"), out);
        }
    }
}

impl Policy for MeshRetry {
    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn to(&self) -> Vec<ToPart<'_>> {
        policy::to_parts(&self.to)
    }
}

/// What [`HttpRetry::retry_on`] may hold besides statuses.
const HTTP_RETRY_ON: &[&str] = &[
    "5xx",
    "GatewayError",
    "Reset",
    "Retriable4xx",
    "ConnectFailure",
    "EnvoyRatelimited",
    "RefusedStream",
    "Http3PostConnectFailure",
    "HttpMethodConnect",
    "HttpMethodDelete",
    "HttpMethodGet",
    "HttpMethodHead",
    "HttpMethodOptions",
    "HttpMethodPatch",
    "HttpMethodPost",
    "HttpMethodPut",
    "HttpMethodTrace",
];

impl Retries {
    fn check(&self, at: &str, out: &mut Checker) {
        let protocols = [
            ("tcp", self.tcp.is_some()),
            ("http", self.http.is_some()),
            ("grpc", self.grpc.is_some()),
        ];
        out.at_least_one(at, &protocols);
        if let Some(tcp) = self.tcp
            && tcp.max_connect_attempt.is_none()
        {
            out.add(format!("{at}.tcp.maxConnectAttempt"), "is required");
        }
        if let Some(http) = &self.http {
            http.check(&format!("{at}.http"), out);
        }
        if let Some(grpc) = &self.grpc {
            grpc.check(&format!("{at}.grpc"), out);
        }
    }
}

impl HttpRetry {
    fn check(&self, at: &str, out: &mut Checker) {
        if *self == Self::default() {
            out.add(at, "must not be empty");
        }
        check_waits(self.back_off, self.rate_limited_back_off.as_ref(), at, out);
        for (index, reason) in self.retry_on.iter().flatten().enumerate() {
            let HttpRetryOn::Word(reason) = reason else { continue };
            if !HTTP_RETRY_ON.contains(&reason.as_str()) && !is_status(reason) {
                let message = match word::nearest(reason, HTTP_RETRY_ON) {
                    Some(near) => format!("{reason:?} is not a reason to retry; did you mean {near}?"),
                    None => format!(
                        "{reason:?} is not a reason to retry; there are {}, and statuses such as \"503\"",
                        HTTP_RETRY_ON.join(", ")
                    ),
                };
                out.add(format!("{at}.retryOn[{index}]"), message);
            }
        }
        for (field, headers) in [
            ("retriableResponseHeaders", &self.retriable_response_headers),
            ("retriableRequestHeaders", &self.retriable_request_headers),
        ] {
            for (index, header) in headers.iter().flatten().enumerate() {
                header.check(&format!("{at}.{field}[{index}]"), out);
            }
        }
        let at = format!("{at}.hostSelection");
        for (index, predicate) in self.host_selection.iter().flatten().enumerate() {
            predicate.check(&format!("{at}[{index}]"), out);
        }
        let priorities = self.host_selection.as_deref().unwrap_or_default();
        out.unique(&at, ".predicate", priorities, |predicate| {
            let once = predicate.predicate == HostPredicateForm::OmitPreviousPriorities;
            once.then_some("OmitPreviousPriorities")
        });
    }
}

impl GrpcRetry {
    fn check(&self, at: &str, out: &mut Checker) {
        if *self == Self::default() {
            out.add(at, "must not be empty");
        }
        check_waits(self.back_off, self.rate_limited_back_off.as_ref(), at, out);
    }
}

fn check_waits(
    back_off: Option<BackOff>,
    limited: Option<&RateLimitedBackOff>,
    at: &str,
    out: &mut Checker,
) {
    if let Some(back_off) = back_off {
        let at = format!("{at}.backOff");
        let (base, max) = (back_off.base_interval, back_off.max_interval);
        let intervals = [("baseInterval", base.is_some()), ("maxInterval", max.is_some())];
        out.at_least_one(&at, &intervals);
        out.positive(format!("{at}.baseInterval"), base);
        out.positive(format!("{at}.maxInterval"), max);
        if let (Some(base), Some(max)) = (base, max)
            && max < base
        {
            out.add(format!("{at}.maxInterval"), "must not be shorter than baseInterval");
        }
    }
    if let Some(limited) = limited {
        out.positive(format!("{at}.rateLimitedBackOff.maxInterval"), limited.max_interval);
    }
}

impl HostPredicate {
    fn check(&self, at: &str, out: &mut Checker) {
        let with_tags = self.predicate == HostPredicateForm::OmitHostsWithTags;
        match &self.tags {
            Some(tags) if with_tags => out.selector(&format!("{at}.tags"), tags),
            Some(_) => out.add(format!("{at}.tags"), "belongs to OmitHostsWithTags; leave it out"),
            None if with_tags => out.add(format!("{at}.tags"), "is required for OmitHostsWithTags"),
            None => {}
        }
    }
}

/// True for a status of HTTP, three digits.
fn is_status(text: &str) -> bool {
    text.len() == 3 && text.parse().is_ok_and(|status: u16| (100..600).contains(&status))
}
