//! `MeshHealthCheck`: which endpoints are found out of order by asking them.

use base64::{Engine, engine::general_purpose::STANDARD};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    duration::Duration,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    parts::header::HeaderAdditions,
    policy::{self, Policy, PolicyShape, To, ToKind, ToPart},
    resource::Meta,
    selection::TargetRef,
};

/// Endpoints are asked whether they are in order, and left out where they are not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshHealthCheck {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For outgoing traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To<HealthCheck>>,
}

/// How endpoints are asked. At least one of `tcp`, `http` and `grpc`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// From one question to the next; absent: 1m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// How long an answer may take; absent: 15s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Failures in a row until an endpoint is left out; absent: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row until it is back; absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub healthy_threshold: Option<u32>,
    /// The first question comes after a random time up to this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_jitter: Option<Duration>,
    /// Each further question comes later by a random time up to this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_jitter: Option<Duration>,
    /// Each further question comes later by up to this percentage of `intervalJitter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub interval_jitter_percent: Option<u32>,
    /// True: where too many endpoints are left out, requests fail instead of going to all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_traffic_on_panic: Option<bool>,
    /// A file that changes are written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_log_path: Option<String>,
    /// True: every failure is written to it, not only the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub always_log_health_check_failures: Option<bool>,
    /// From one question to the next where there is no traffic; absent: 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_traffic_interval: Option<Duration>,
    /// Connect, and perhaps exchange bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// Send an HTTP request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// Ask the gRPC health service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheck>,
    /// Whether questions share a connection; absent: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse_connection: Option<bool>,
}

/// A check by connecting.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpCheck {
    /// True: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// What is sent, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
    /// What must come back, in this order and perhaps with other bytes between, each in base64. Absent or empty:
    /// nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive: Option<Vec<String>>,
}

/// A check by an HTTP request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCheck {
    /// True: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// The path; absent: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub path: Option<String>,
    /// Headers of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_headers_to_add: Option<HeaderAdditions>,
    /// Statuses that mean in order; absent: 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_statuses: Option<Vec<HttpStatus>>,
}

/// A check by the gRPC health service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcCheck {
    /// True: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// The service that is asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// The `:authority` of the call; absent: the name of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
}

/// A status of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct HttpStatus(#[schemars(range(min = 100, max = 599))] pub u16);

impl Kind for MeshHealthCheck {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshHealthCheck",
        plural: "meshhealthchecks",
        short: "mhc",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: ToKind::WITHOUT_ROUTES,
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

impl Policy for MeshHealthCheck {
    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn to(&self) -> Vec<ToPart<'_>> {
        policy::to_parts(&self.to)
    }
}

impl HealthCheck {
    fn check(&self, at: &str, out: &mut Checker) {
        for (field, time) in [
            ("interval", self.interval),
            ("timeout", self.timeout),
            ("initialJitter", self.initial_jitter),
            ("intervalJitter", self.interval_jitter),
            ("noTrafficInterval", self.no_traffic_interval),
        ] {
            out.positive(format!("{at}.{field}"), time);
        }
        if let Some(path) = &self.event_log_path {
            out.file_path(format!("{at}.eventLogPath"), path);
        }
        let protocols = [
            ("tcp", self.tcp.is_some()),
            ("http", self.http.is_some()),
            ("grpc", self.grpc.is_some()),
        ];
        out.at_least_one(at, &protocols);
        if let Some(tcp) = &self.tcp {
            let base64 = |at: String, text: &str, out: &mut Checker| {
                if let Err(error) = STANDARD.decode(text) {
                    out.add(at, format!("is not base64: {error}"));
                }
            };
            base64(format!("{at}.tcp.send"), tcp.send.as_deref().unwrap_or_default(), out);
            for (index, block) in tcp.receive.iter().flatten().enumerate() {
                base64(format!("{at}.tcp.receive[{index}]"), block, out);
            }
        }
    }
}
