//! `MeshTLS`: how incoming traffic is encrypted.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    parts::tls::TlsVersions,
    policy::{self, Policy, PolicyShape, Rule, RulePart},
    resource::Meta,
    selection::{TargetKind, TargetRef},
};

/// How incoming traffic is encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshTLS {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For incoming traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule<Tls>>,
}

/// How traffic is encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// Which versions of TLS. Only for the whole mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_version: Option<TlsVersions>,
    /// Which ciphers of TLS 1.2. Only for the whole mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ciphers: Option<Vec<TlsCipher>>,
    /// Whether plaintext is accepted; absent: `Strict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsMode>,
}

/// Whether plaintext is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsMode {
    /// It is.
    Permissive,
    /// It is not.
    Strict,
}

/// A cipher of TLS 1.2, by its OpenSSL name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsCipher {
    /// `ECDHE-ECDSA-AES128-GCM-SHA256`.
    #[serde(rename = "ECDHE-ECDSA-AES128-GCM-SHA256")]
    EcdheEcdsaAes128GcmSha256,
    /// `ECDHE-ECDSA-AES256-GCM-SHA384`.
    #[serde(rename = "ECDHE-ECDSA-AES256-GCM-SHA384")]
    EcdheEcdsaAes256GcmSha384,
    /// `ECDHE-ECDSA-CHACHA20-POLY1305`.
    #[serde(rename = "ECDHE-ECDSA-CHACHA20-POLY1305")]
    EcdheEcdsaChacha20Poly1305,
    /// `ECDHE-RSA-AES128-GCM-SHA256`.
    #[serde(rename = "ECDHE-RSA-AES128-GCM-SHA256")]
    EcdheRsaAes128GcmSha256,
    /// `ECDHE-RSA-AES256-GCM-SHA384`.
    #[serde(rename = "ECDHE-RSA-AES256-GCM-SHA384")]
    EcdheRsaAes256GcmSha384,
    /// `ECDHE-RSA-CHACHA20-POLY1305`.
    #[serde(rename = "ECDHE-RSA-CHACHA20-POLY1305")]
    EcdheRsaChacha20Poly1305,
}

impl Kind for MeshTLS {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshTLS",
        plural: "meshtlses",
        short: "mtls",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: &[],
        rules: true,
        proxy: false,
        lists: &[],
    });

    fn policy(&self) -> Option<&dyn Policy> {
        Some(self)
    }

    fn validate(&self, _: &Meta, out: &mut Checker) {
        policy::check(self, out);
        let target = self.target_ref.as_ref();
        let whole_mesh = target.is_none_or(|target| target.kind == TargetKind::Mesh);
        for (index, rule) in self.rules.iter().enumerate() {
            let at = format!("rules[{index}]");
            if !rule.matches.is_empty() {
                let message = "TLS begins before it is known who calls; leave it out";
                out.add(format!("{at}.matches"), message);
            }
            let (versions, ciphers) = (rule.default.tls_version, &rule.default.tls_ciphers);
            for (field, is_given) in [
                ("tlsVersion", versions.is_some()),
                ("tlsCiphers", ciphers.as_ref().is_some_and(|list| !list.is_empty())),
            ] {
                if is_given && !whole_mesh {
                    let message = "can only be said for the whole mesh: write `targetRef: {kind: Mesh}`";
                    out.add(format!("{at}.default.{field}"), message);
                }
            }
            if let Some(versions) = versions {
                versions.check(&format!("{at}.default.tlsVersion"), out);
            }
        }
    }
}

impl Policy for MeshTLS {
    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn rules(&self) -> Vec<RulePart<'_>> {
        policy::rule_parts(&self.rules)
    }
}
