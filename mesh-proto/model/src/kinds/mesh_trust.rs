//! `MeshTrust`: anchors of a trust domain.

use mesh_proto::spiffe::TrustDomain;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    resource::Meta,
};

/// Anchors of a trust domain: written by zones for their own, by administrators for another installation's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshTrust {
    /// The trust domain.
    pub trust_domain: String,
    /// Certificates that vouch for it; several overlap while a CA is renewed.
    #[schemars(length(min = 1))]
    pub ca_bundles: Vec<CaBundle>,
}

/// Certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaBundle {
    /// Their form.
    #[serde(rename = "type")]
    pub form: CaBundleForm,
    /// The certificates.
    pub pem: Pem,
}

/// The form of a [`CaBundle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CaBundleForm {
    /// PEM (RFC 7468).
    Pem,
}

/// A PEM text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pem {
    /// One or more certificates.
    pub value: String,
}

impl MeshTrust {
    /// Anchors from DER certificates.
    #[must_use]
    pub fn from_der<'a>(trust_domain: &str, anchors: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let bundle = |der: &[u8]| CaBundle {
            form: CaBundleForm::Pem,
            pem: Pem {
                value: pem_of_certificate(der),
            },
        };
        Self {
            trust_domain: trust_domain.to_owned(),
            ca_bundles: anchors.into_iter().map(bundle).collect(),
        }
    }

    /// All certificates in DER. What is not a certificate was refused by validation and is left out here.
    #[must_use]
    pub fn anchors(&self) -> Vec<Vec<u8>> {
        self.ca_bundles
            .iter()
            .flat_map(|bundle| certificates(&bundle.pem.value).unwrap_or_default())
            .collect()
    }
}

/// The certificates of a PEM text, in DER.
pub(crate) fn certificates(pem: &str) -> Result<Vec<Vec<u8>>, String> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|item| item.map(|der| der.to_vec()).map_err(|e| e.to_string()))
        .collect()
}

/// One certificate as PEM, 64 characters a line.
fn pem_of_certificate(der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

impl Kind for MeshTrust {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshTrust",
        plural: "meshtrusts",
        short: "mtrust",
        scope: Scope::Mesh,
        writers: Writers::AdminOrZone,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, _: &Meta, out: &mut Checker) {
        if let Err(error) = self.trust_domain.parse::<TrustDomain>() {
            out.add("trustDomain", error.to_string());
        }
        for (index, bundle) in self.ca_bundles.iter().enumerate() {
            if let Some(message) = bundle.pem.error() {
                out.add(format!("caBundles[{index}].pem.value"), message);
            }
        }
    }
}

impl Pem {
    /// What is wrong with it: a certificate that is accepted here and refused by every proxy would stop them all.
    fn error(&self) -> Option<String> {
        if self.value.contains("PRIVATE KEY") {
            return Some("holds a private key; only certificates belong here".into());
        }
        let certificates = match certificates(&self.value) {
            Ok(certificates) => certificates,
            Err(error) => return Some(format!("is not PEM: {error}")),
        };
        if certificates.is_empty() {
            return Some("holds no certificate (-----BEGIN CERTIFICATE-----)".into());
        }
        certificates.iter().enumerate().find_map(|(index, der)| {
            let der = CertificateDer::from_slice(der);
            let error = webpki::anchor_from_trusted_cert(&der).err()?;
            Some(format!("certificate {} can not be an anchor: {error}", index + 1))
        })
    }
}
