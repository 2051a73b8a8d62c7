//! `MeshTrace`: where traces of requests go.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    parts::{number::Percentage, telemetry::CollectorRef},
    policy::{self, Policy, PolicyShape},
    resource::Meta,
    selection::TargetRef,
};

/// Where traces of requests go, and of how many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshTrace {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For the proxy as a whole.
    pub default: Tracing,
}

/// Where traces go, and of how many requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tracing {
    /// One, or none to trace nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1))]
    pub backends: Option<Vec<TraceBackend>>,
    /// Of how many requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    /// What each trace is marked with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<TraceTag>>,
}

/// Where traces go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TraceBackend {
    /// Which.
    #[serde(rename = "type")]
    pub form: TraceBackendForm,
    /// Of `Zipkin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zipkin: Option<ZipkinBackend>,
    /// Of `OpenTelemetry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_telemetry: Option<OpenTelemetryTrace>,
}

/// Where traces go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TraceBackendForm {
    /// To what understands Zipkin.
    Zipkin,
    /// To an OpenTelemetry collector.
    OpenTelemetry,
}

/// What understands Zipkin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ZipkinBackend {
    /// Its address, such as `http://jaeger-collector:9411/api/v2/spans`.
    pub url: String,
    /// True: IDs of traces have 128 bits, else 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "traceId128bit")]
    pub trace_id_128_bit: Option<bool>,
    /// What is sent; absent: `httpJson`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<ZipkinApi>,
    /// Whether both ends of a call share a span; absent: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_span_context: Option<bool>,
}

/// What is sent to Zipkin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ZipkinApi {
    /// JSON.
    HttpJson,
    /// Protocol buffers.
    HttpProto,
}

/// A collector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OpenTelemetryTrace {
    /// The collector.
    pub backend_ref: CollectorRef,
}

/// Of how many percent of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sampling {
    /// At most, whatever the others say; absent: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overall: Option<Percentage>,
    /// Of those whose caller asks for it; absent: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Percentage>,
    /// Of the others; absent: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<Percentage>,
}

/// What a trace is marked with: either a literal or a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TraceTag {
    /// The mark's name.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub literal: Option<String>,
    /// The header that its value is taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderTag>,
}

/// A header that a value is taken from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderTag {
    /// Its name.
    pub name: String,
    /// The value where there is no such header; absent: no mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
}

impl Kind for MeshTrace {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshTrace",
        plural: "meshtraces",
        short: "mtr",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: &[],
        rules: false,
        proxy: true,
        lists: &[],
    });

    fn policy(&self) -> Option<&dyn Policy> {
        Some(self)
    }

    fn validate(&self, _: &Meta, out: &mut Checker) {
        policy::check(self, out);
        self.default.check(out);
    }
}

impl Policy for MeshTrace {
    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn proxy(&self) -> Option<Value> {
        Some(policy::value(&self.default))
    }
}

impl Tracing {
    fn check(&self, out: &mut Checker) {
        if self.backends.is_none() {
            let message = "is required; to trace nothing, write `backends: []`";
            out.add("default.backends", message);
        }
        for (index, backend) in self.backends.iter().flatten().enumerate() {
            backend.check(&format!("default.backends[{index}]"), out);
        }
        for (index, tag) in self.tags.iter().flatten().enumerate() {
            let sources = [("header", tag.header.is_some()), ("literal", tag.literal.is_some())];
            out.exactly_one(&format!("default.tags[{index}]"), &sources);
        }
    }
}

impl TraceBackend {
    fn check(&self, at: &str, out: &mut Checker) {
        let wanted = match self.form {
            TraceBackendForm::Zipkin => "zipkin",
            TraceBackendForm::OpenTelemetry => "openTelemetry",
        };
        let fields = [
            ("zipkin", self.zipkin.is_some()),
            ("openTelemetry", self.open_telemetry.is_some()),
        ];
        out.only_of_type(at, wanted, &fields);
        if let Some(zipkin) = &self.zipkin {
            out.http_url(format!("{at}.zipkin.url"), &zipkin.url);
        }
        if let Some(collector) = &self.open_telemetry {
            let at = format!("{at}.openTelemetry.backendRef");
            collector.backend_ref.check(&at, out);
        }
    }
}
