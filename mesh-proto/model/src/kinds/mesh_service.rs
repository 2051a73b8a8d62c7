//! `MeshService`: a service of a mesh.

use std::{borrow::Cow, fmt};

use mesh_proto::{sni, spiffe::SpiffeId};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    kinds::dataplane::Protocol,
    labels::Labels,
    resource::Meta,
};

/// A service: which dataplanes it consists of, and its ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshService {
    /// Which dataplanes belong to it. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<ServiceSelector>,
    /// What can be called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
    /// Identities a caller accepts from it; filled in by its zone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<ServiceIdentity>,
    /// Whether it has endpoints; filled in by its zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ServiceState>,
}

/// Which dataplanes belong to a service: by labels, or one by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSelector {
    /// All that have these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataplane_labels: Option<DataplaneLabels>,
    /// The one of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataplane_ref: Option<DataplaneRef>,
}

/// Dataplanes by their labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataplaneLabels {
    /// Pairs a dataplane must have. None: every dataplane of the mesh.
    #[serde(default)]
    pub match_labels: Labels,
}

/// A dataplane by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataplaneRef {
    /// The name.
    pub name: String,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Another way to refer to the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The port callers name.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// The dataplanes' inbound that serves it, by port or name; absent: the inbound of port `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    /// What is spoken. Absent: whoever speaks first on a connection shows whether it is HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<Protocol>,
}

/// An inbound, by its port or by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// The inbound's port.
    Number(u16),
    /// The inbound's name.
    Name(String),
}

/// An identity a caller accepts from a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceIdentity {
    /// Its form.
    #[serde(rename = "type")]
    pub form: ServiceIdentityForm,
    /// Its text.
    pub value: String,
}

/// The form of a [`ServiceIdentity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceIdentityForm {
    /// A SPIFFE ID.
    #[serde(rename = "SpiffeID")]
    SpiffeId,
}

/// Whether a service has endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceState {
    /// At least one.
    Available,
    /// None.
    Unavailable,
}

impl ServicePort {
    /// The name, or the port in decimal: the last part of server names.
    #[must_use]
    pub fn name_or_port(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.port.to_string())
    }

    /// The inbound that serves it.
    #[must_use]
    pub fn target(&self) -> TargetPort {
        match &self.target_port {
            Some(target) => target.clone(),
            None => TargetPort::Number(self.port),
        }
    }
}

impl fmt::Display for TargetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(port) => port.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl JsonSchema for TargetPort {
    fn schema_name() -> Cow<'static, str> {
        "TargetPort".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An inbound, by its port or by its name.",
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": u16::MAX},
                {"type": "string"},
            ],
        })
    }
}

impl Kind for MeshService {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshService",
        plural: "meshservices",
        short: "msvc",
        scope: Scope::Mesh,
        writers: Writers::AdminOrZone,
        spec_field: true,
        name_rule: NameRule::Label,
    };

    fn validate(&self, meta: &Meta, out: &mut Checker) {
        if let Some(selector) = &self.selector {
            selector.check(out);
        }
        for (index, port) in self.ports.iter().enumerate() {
            if let Some(name) = &port.name {
                out.port_name(format!("ports[{index}].name"), name);
            }
            if let Some(TargetPort::Name(name)) = &port.target_port {
                out.port_name(format!("ports[{index}].targetPort"), name);
            }
            check_server_name(meta, port, &format!("ports[{index}]"), out);
        }
        out.unique("ports", ".port", &self.ports, |port| Some(port.port));
        out.unique("ports", ".name", &self.ports, |port| port.name.clone());
        // The last part of a server name is either.
        for (index, port) in self.ports.iter().enumerate() {
            let other = self
                .ports
                .iter()
                .position(|other| other.port != port.port && port.name == Some(other.port.to_string()));
            if let Some(other) = other {
                let message = format!("is the number of spec.ports[{other}]; choose another name");
                out.add(format!("ports[{index}].name"), message);
            }
        }
        for (index, identity) in self.identities.iter().enumerate() {
            if let Err(error) = identity.value.parse::<SpiffeId>() {
                out.add(format!("identities[{index}].value"), error.to_string());
            }
        }
    }
}

impl ServiceSelector {
    fn check(&self, out: &mut Checker) {
        if let Some(by_labels) = &self.dataplane_labels {
            out.selector("selector.dataplaneLabels.matchLabels", &by_labels.match_labels);
        }
        if let Some(by_name) = &self.dataplane_ref {
            if self.dataplane_labels.is_some() {
                let message = "give either dataplaneLabels or dataplaneRef, not both";
                out.add("selector.dataplaneRef", message);
            }
            if by_name.name.is_empty() {
                out.add("selector.dataplaneRef.name", "must not be empty");
            }
        }
    }
}

/// Dataplanes find the service by a server name; it must fit whichever zone the service is in.
fn check_server_name(meta: &Meta, port: &ServicePort, at: &str, out: &mut Checker) {
    let zone = match meta.zone.as_str() {
        "" => "z".repeat(63),
        zone => zone.to_owned(),
    };
    let (Ok(mesh), Ok(zone)) = (meta.mesh.parse(), zone.parse()) else {
        return;
    };
    let name = sni::mesh_service(&mesh, &zone, &meta.name, &port.name_or_port());
    if let Some(over) = name.len().checked_sub(sni::MAX_BYTES + 1) {
        let message = format!(
            "the names of mesh, service and port are together {} characters too long: server names have at most {} with any zone's name",
            over + 1,
            sni::MAX_BYTES
        );
        out.add(format!("{at}.name"), message);
    }
}
