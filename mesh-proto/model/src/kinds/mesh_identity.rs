//! `MeshIdentity`: which dataplanes get which SPIFFE ID, and who issues it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    duration::Duration,
    identity,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    labels::Labels,
    resource::Meta,
};

/// Which dataplanes get which SPIFFE ID, and who issues the certificates. The most specific selector wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshIdentity {
    /// Which dataplanes. Absent, or without `dataplane`: none. With empty `matchLabels`: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<IdentitySelector>,
    /// Which ID.
    #[serde(default, rename = "spiffeID", skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeIdTemplate>,
    /// Who issues.
    pub provider: Provider,
}

/// Which dataplanes an identity is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentitySelector {
    /// By labels. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataplane: Option<IdentityDataplanes>,
}

/// Dataplanes by their labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityDataplanes {
    /// Pairs a dataplane must have. None: every dataplane of the mesh.
    #[serde(default)]
    pub match_labels: Labels,
}

/// Templates of the parts of a SPIFFE ID. They may hold `{{ .Mesh }}`, `{{ .Zone }}`, `{{ .Workload }}` and
/// `{{ label "key" }}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpiffeIdTemplate {
    /// Absent: `{{ .Mesh }}.{{ .Zone }}.mesh.local`. It must begin with the mesh and the zone, since each zone has its own
    /// CA in each mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// Absent: `/workload/{{ .Workload }}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Who issues certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provider {
    /// Which.
    #[serde(rename = "type")]
    pub form: ProviderForm,
    /// Settings of `Bundled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundled: Option<Bundled>,
}

/// Which issuer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProviderForm {
    /// Each zone's own CA of the mesh.
    Bundled,
}

/// Settings of the zones' own CAs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bundled {
    /// Accepted for files written for Kuma: a zone's own CA is always self-signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_allow_self_signed: Option<bool>,
    /// Whether each zone makes its CA itself; absent: yes, and so far nothing else is supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autogenerate: Option<Autogenerate>,
    /// Settings of workload certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_parameters: Option<CertificateParameters>,
    /// Whether zones report their CAs' certificates as `MeshTrust`s; absent: `Enabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_trust_creation: Option<MeshTrustCreation>,
}

/// Whether each zone makes its CA itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Autogenerate {
    /// Yes or no.
    pub enabled: bool,
}

/// Settings of workload certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateParameters {
    /// How long one lives; absent: 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry: Option<Duration>,
}

/// Whether zones report their CAs' certificates as `MeshTrust`s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum MeshTrustCreation {
    Enabled,
    Disabled,
}

impl MeshIdentity {
    /// The identity that is created with each mesh: every dataplane, default templates, the zones' own CAs.
    #[must_use]
    pub fn initial() -> Self {
        Self {
            selector: Some(IdentitySelector {
                dataplane: Some(IdentityDataplanes::default()),
            }),
            spiffe_id: None,
            provider: Provider {
                form: ProviderForm::Bundled,
                bundled: None,
            },
        }
    }

    /// How long a workload certificate lives.
    #[must_use]
    pub fn certificate_lifetime(&self) -> std::time::Duration {
        let bundled = self.provider.bundled.as_ref();
        let parameters = bundled.and_then(|bundled| bundled.certificate_parameters);
        parameters
            .and_then(|parameters| parameters.expiry)
            .map_or(DEFAULT_EXPIRY, |expiry| expiry.0)
    }

    /// Whether zones report their CAs' certificates as `MeshTrust`s.
    #[must_use]
    pub fn creates_trust(&self) -> bool {
        let bundled = self.provider.bundled.as_ref();
        bundled.and_then(|bundled| bundled.mesh_trust_creation) != Some(MeshTrustCreation::Disabled)
    }
}

/// What a workload certificate's lifetime may be.
const EXPIRY: std::ops::RangeInclusive<std::time::Duration> =
    std::time::Duration::from_secs(10)..=std::time::Duration::from_secs(720 * 3600);

const DEFAULT_EXPIRY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

impl Kind for MeshIdentity {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshIdentity",
        plural: "meshidentities",
        short: "mid",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, meta: &Meta, out: &mut Checker) {
        let dataplanes = self.selector.as_ref().and_then(|s| s.dataplane.as_ref());
        if let Some(dataplanes) = dataplanes {
            out.selector("selector.dataplane.matchLabels", &dataplanes.match_labels);
        }
        if let Some(template) = &self.spiffe_id {
            if let Some(trust_domain) = &template.trust_domain
                && let Err(message) = identity::check_trust_domain(trust_domain, &meta.mesh)
            {
                out.add("spiffeID.trustDomain", message);
            }
            if let Some(path) = &template.path
                && let Err(message) = identity::check_path(path)
            {
                out.add("spiffeID.path", message);
            }
        }
        if let Some(bundled) = &self.provider.bundled {
            bundled.check(out);
        }
    }
}

impl Bundled {
    fn check(&self, out: &mut Checker) {
        if self.autogenerate == Some(Autogenerate { enabled: false }) {
            out.add(
                "provider.bundled.autogenerate.enabled",
                "a CA from outside is not supported by this version; each zone makes its own",
            );
        }
        let expiry = self.certificate_parameters.and_then(|parameters| parameters.expiry);
        if expiry.is_some_and(|expiry| !EXPIRY.contains(&expiry.0)) {
            out.add(
                "provider.bundled.certificateParameters.expiry",
                "must be between 10s and 720h: a zone renews its CA after 30 days",
            );
        }
    }
}
