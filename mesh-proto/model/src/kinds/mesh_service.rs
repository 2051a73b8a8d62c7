//! `MeshService`: a service of a mesh.

use std::{borrow::Cow, fmt};

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
    /// What is spoken.
    #[serde(default)]
    pub app_protocol: Protocol,
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

    fn validate(&self, _: &Meta, _out: &mut Checker) {}
}
