//! `MeshOpenTelemetryBackend`: an OpenTelemetry collector, for policies to refer to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    resource::Meta,
};

/// An OpenTelemetry collector that `MeshAccessLog`, `MeshTrace` and `MeshMetric` refer to by its labels. Empty: one
/// beside each proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshOpenTelemetryBackend {
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<CollectorEndpoint>,
    /// How it is spoken with; absent: `grpc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<CollectorProtocol>,
    /// What the environment of the proxy says of it (`OTEL_EXPORTER_OTLP_…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<CollectorEnvironment>,
}

/// Where a collector is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CollectorEndpoint {
    /// An address or a DNS name; absent: the host of the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The port; absent: 4317.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Of `http`: what stands before `/v1/traces`, `/v1/metrics` and `/v1/logs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// How a collector is spoken with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CollectorProtocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP.
    Http,
}

/// What the environment of the proxy says of a collector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CollectorEnvironment {
    /// Whether it counts; absent: `Optional`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<EnvironmentMode>,
    /// Which of both counts; absent: `EnvFirst`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precedence: Option<EnvironmentPrecedence>,
    /// Whether variables of one signal count; absent: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_signal_overrides: Option<bool>,
}

/// Whether the environment counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EnvironmentMode {
    /// It does not.
    Disabled,
    /// Where there is something.
    Optional,
    /// Without it, nothing is sent.
    Required,
}

/// Which counts where both say something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EnvironmentPrecedence {
    /// What is written here.
    ExplicitFirst,
    /// The environment.
    EnvFirst,
}

impl Kind for MeshOpenTelemetryBackend {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshOpenTelemetryBackend",
        plural: "meshopentelemetrybackends",
        short: "motb",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, _: &Meta, out: &mut Checker) {
        let Some(endpoint) = &self.endpoint else { return };
        if let Some(address) = &endpoint.address {
            out.reachable_host("endpoint.address", address);
        }
        let path = endpoint.path.as_deref().filter(|path| !path.is_empty());
        if let Some(path) = path {
            if self.protocol != Some(CollectorProtocol::Http) {
                out.add("endpoint.path", "grpc has no paths; leave it out");
            }
            out.absolute_path("endpoint.path", path);
        }
    }
}
