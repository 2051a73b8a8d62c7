//! `MeshMetric`: what proxies measure, and who is told.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    check::Checker,
    duration::Duration,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    parts::telemetry::CollectorRef,
    policy::{self, ListMerge, Policy, PolicyShape},
    resource::Meta,
    selection::TargetRef,
};

/// What proxies measure, which applications' measurements they pass on, and who is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshMetric {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For the proxy as a whole.
    #[serde(default)]
    pub default: Metrics,
}

/// What is measured, and who is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metrics {
    /// What the proxy measures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<SidecarMetrics>,
    /// Applications whose measurements it passes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applications: Option<Vec<ApplicationMetrics>>,
    /// Who is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<MetricBackend>>,
}

/// What a proxy measures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SidecarMetrics {
    /// Which of it is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profiles: Option<Profiles>,
    /// True: what never changed, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_unused: Option<bool>,
}

/// Which measurements are told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profiles {
    /// Whole sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append_profiles: Option<Vec<Profile>>,
    /// Not these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Vec<MetricSelector>>,
    /// But these, whatever is excluded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<MetricSelector>>,
}

/// A set of measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// Its name.
    pub name: ProfileName,
}

/// The name of a [`Profile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProfileName {
    /// All there are.
    All,
    /// What dashboards show.
    Basic,
    /// None.
    None,
}

/// Measurements by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MetricSelector {
    /// How the name is compared.
    #[serde(rename = "type")]
    pub form: MetricSelectorForm,
    /// With what.
    pub r#match: String,
}

/// How the name of a measurement is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MetricSelectorForm {
    /// Begins with.
    Prefix,
    /// Matches.
    Regex,
    /// Equal.
    Exact,
    /// Contains.
    Contains,
}

/// An application whose measurements are passed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApplicationMetrics {
    /// What its measurements are marked with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where, with or without its first `/`; absent: `/metrics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// At which address; absent: the workload's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// At which port.
    #[schemars(range(min = 1))]
    pub port: u16,
}

/// Who is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MetricBackend {
    /// Which.
    #[serde(rename = "type")]
    pub form: MetricBackendForm,
    /// Of `Prometheus`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusBackend>,
    /// Of `OpenTelemetry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_telemetry: Option<OpenTelemetryMetrics>,
}

/// Who is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MetricBackendForm {
    /// Prometheus, which asks.
    Prometheus,
    /// An OpenTelemetry collector.
    OpenTelemetry,
}

/// How Prometheus asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrometheusBackend {
    /// Which Prometheus this is for, where several discover proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// At which port; absent: 5670.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Where; absent: `/metrics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether it is encrypted; absent: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<PrometheusTls>,
}

/// Whether it is encrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrometheusTls {
    /// How; absent: `Disabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<PrometheusTlsMode>,
}

/// How what Prometheus asks is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PrometheusTlsMode {
    /// Not.
    Disabled,
    /// With a certificate that the operator gives the proxy.
    #[serde(rename = "ProvidedTLS")]
    ProvidedTls,
    /// With the workload's own certificate, for a Prometheus in the mesh.
    #[serde(rename = "ActiveMTLSBackend")]
    ActiveMtlsBackend,
}

/// A collector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OpenTelemetryMetrics {
    /// The collector.
    pub backend_ref: CollectorRef,
    /// From one time to the next; absent: 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_interval: Option<Duration>,
}

impl Kind for MeshMetric {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshMetric",
        plural: "meshmetrics",
        short: "mm",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: &[],
        rules: false,
        proxy: true,
        lists: &[("sidecar.profiles.appendProfiles", ListMerge::Append)],
    });

    fn policy(&self) -> Option<&dyn Policy> {
        Some(self)
    }

    fn validate(&self, _: &Meta, out: &mut Checker) {
        policy::check(self, out);
        self.default.check(out);
    }
}

impl Policy for MeshMetric {
    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn proxy(&self) -> Option<Value> {
        Some(policy::value(&self.default))
    }
}

impl Metrics {
    fn check(&self, out: &mut Checker) {
        if let Some(profiles) = self.sidecar.as_ref().and_then(|sidecar| sidecar.profiles.as_ref()) {
            for (field, list) in [("exclude", &profiles.exclude), ("include", &profiles.include)] {
                for (index, selector) in list.iter().flatten().enumerate() {
                    if selector.form == MetricSelectorForm::Regex {
                        let at = format!("default.sidecar.profiles.{field}[{index}].match");
                        out.regex(at, &selector.r#match);
                    }
                }
            }
        }
        for (index, application) in self.applications.iter().flatten().enumerate() {
            let at = format!("default.applications[{index}]");
            if let Some(path) = &application.path {
                // Kuma takes it with and without its '/'.
                let path = path.strip_prefix('/').unwrap_or(path);
                out.absolute_path(format!("{at}.path"), &format!("/{path}"));
            }
            if let Some(address) = &application.address {
                out.reachable_host(format!("{at}.address"), address);
            }
        }
        for (index, backend) in self.backends.iter().flatten().enumerate() {
            backend.check(&format!("default.backends[{index}]"), out);
        }
    }
}

impl MetricBackend {
    fn check(&self, at: &str, out: &mut Checker) {
        let wanted = match self.form {
            MetricBackendForm::Prometheus => "prometheus",
            MetricBackendForm::OpenTelemetry => "openTelemetry",
        };
        let fields = [
            ("prometheus", self.prometheus.is_some()),
            ("openTelemetry", self.open_telemetry.is_some()),
        ];
        out.only_of_type(at, wanted, &fields);
        if let Some(path) = self.prometheus.as_ref().and_then(|prometheus| prometheus.path.as_deref()) {
            out.absolute_path(format!("{at}.prometheus.path"), path);
        }
        if let Some(collector) = &self.open_telemetry {
            let at = format!("{at}.openTelemetry");
            collector.backend_ref.check(&format!("{at}.backendRef"), out);
            out.positive(format!("{at}.refreshInterval"), collector.refresh_interval);
        }
    }
}
