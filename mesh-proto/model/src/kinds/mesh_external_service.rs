//! `MeshExternalService`: something outside the mesh.

use mesh_proto::names;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    parts::{data_source::DataSource, tls::TlsVersions},
    resource::Meta,
};

/// Something outside the mesh that is called like a service of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshExternalService {
    /// How it is called.
    pub r#match: ExternalMatch,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<ExternalEndpoint>>,
    /// How the proxy speaks TLS with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<OriginatedTls>,
}

/// How a service is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalMatch {
    /// By a host name that a `HostnameGenerator` gives it; absent: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "type")]
    pub form: Option<ExternalMatchForm>,
    /// The port callers name.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// What is spoken; absent: `tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ExternalProtocol>,
}

/// How a service is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExternalMatchForm {
    /// By a host name that a `HostnameGenerator` gives it.
    HostnameGenerator,
}

/// What is spoken with a service outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ExternalProtocol {
    Tcp,
    Grpc,
    Http,
    Http2,
}

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalEndpoint {
    /// An address or a DNS name.
    pub address: String,
    /// The port.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Those with a higher number are used where those with a lower one are out of order; absent: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 128))]
    pub priority: Option<u32>,
}

/// How the proxy speaks TLS with a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OriginatedTls {
    /// Whether it does; absent: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Which versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<TlsVersions>,
    /// Whether the other side may negotiate anew (TLS 1.2); absent: no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_renegotiation: Option<bool>,
    /// How it is made sure who the other side is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
}

/// How it is made sure who the other side is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Verification {
    /// How much of it; absent: `Secured`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<VerificationMode>,
    /// The name that is asked for; absent: the endpoint's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Names one of which the certificate must have; absent: the one that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject_alt_names: Option<Vec<SubjectAltName>>,
    /// The CA; absent: those the system trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<DataSource>,
    /// The proxy's own certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<DataSource>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key: Option<DataSource>,
}

/// How much is made sure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VerificationMode {
    /// Not the name.
    #[serde(rename = "SkipSAN")]
    SkipSan,
    /// Not the CA.
    #[serde(rename = "SkipCA")]
    SkipCa,
    /// Everything.
    Secured,
    /// Nothing.
    SkipAll,
}

/// Names of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SubjectAltName {
    /// How they are compared; absent: `Exact`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "type")]
    pub form: Option<SubjectAltNameForm>,
    /// With what.
    pub value: String,
}

/// How the name of a certificate is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SubjectAltNameForm {
    /// Equal.
    Exact,
    /// Begins with.
    Prefix,
}

impl Kind for MeshExternalService {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshExternalService",
        plural: "meshexternalservices",
        short: "extsvc",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Label,
    };

    fn validate(&self, _: &Meta, out: &mut Checker) {
        for (index, endpoint) in self.endpoints.iter().flatten().enumerate() {
            out.reachable_host(format!("endpoints[{index}].address"), &endpoint.address);
        }
        let Some(tls) = &self.tls else { return };
        if let Some(versions) = tls.version {
            versions.check("tls.version", out);
        }
        if let Some(verification) = &tls.verification {
            verification.check("tls.verification", out);
        }
    }
}

impl Verification {
    fn check(&self, at: &str, out: &mut Checker) {
        if let Some(name) = &self.server_name
            && !names::is_subdomain(&name.to_ascii_lowercase())
        {
            out.add(format!("{at}.serverName"), format!("{name:?} is not a DNS name"));
        }
        for (field, source) in [
            ("caCert", &self.ca_cert),
            ("clientCert", &self.client_cert),
            ("clientKey", &self.client_key),
        ] {
            if let Some(source) = source {
                source.check(&format!("{at}.{field}"), out);
            }
        }
        match (&self.client_cert, &self.client_key) {
            (Some(_), None) => out.add(format!("{at}.clientKey"), "is required beside clientCert"),
            (None, Some(_)) => out.add(format!("{at}.clientCert"), "is required beside clientKey"),
            _ => {}
        }
    }
}
