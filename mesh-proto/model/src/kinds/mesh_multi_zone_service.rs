//! `MeshMultiZoneService`: one name for a service in several zones.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    kinds::dataplane::Protocol,
    labels::Labels,
    resource::Meta,
};

/// One name for the same service in several zones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshMultiZoneService {
    /// Which services belong to it.
    pub selector: MultiZoneSelector,
    /// What can be called.
    #[schemars(length(min = 1))]
    pub ports: Vec<MultiZonePort>,
}

/// Which services belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MultiZoneSelector {
    /// By their labels.
    pub mesh_service: ServicesByLabel,
}

/// Services by their labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicesByLabel {
    /// Pairs a `MeshService` must have; at least one.
    pub match_labels: Labels,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MultiZonePort {
    /// Another way to refer to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The port callers name, and of the services.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// What is spoken. Absent: whoever speaks first on a connection shows whether it is HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<Protocol>,
}

impl Kind for MeshMultiZoneService {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshMultiZoneService",
        plural: "meshmultizoneservices",
        short: "mzsvc",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Label,
    };

    fn validate(&self, _: &Meta, out: &mut Checker) {
        let selector = &self.selector.mesh_service.match_labels;
        if selector.is_empty() {
            out.add("selector.meshService.matchLabels", "must have at least one pair");
        }
        out.selector("selector.meshService.matchLabels", selector);
        for (index, port) in self.ports.iter().enumerate() {
            if let Some(name) = &port.name {
                out.port_name(format!("ports[{index}].name"), name);
            }
            let other = self
                .ports
                .iter()
                .position(|other| other.port != port.port && port.name == Some(other.port.to_string()));
            if let Some(other) = other {
                let message = format!("is the number of spec.ports[{other}]; choose another name");
                out.add(format!("ports[{index}].name"), message);
            }
        }
        out.unique("ports", ".port", &self.ports, |port| Some(port.port));
        out.unique("ports", ".name", &self.ports, |port| port.name.clone());
    }
}
