//! `Zone`: one Kubernetes cluster, or one set of machines.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    resource::Meta,
};

/// A zone that may join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Zone {
    /// False: its control plane is refused, and other zones no longer send traffic there.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// What it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// What a zone runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Machines, virtual or not.
    Universal,
    /// A Kubernetes cluster.
    Kubernetes,
}

fn yes() -> bool {
    true
}

impl Default for Zone {
    fn default() -> Self {
        Self {
            enabled: true,
            platform: None,
        }
    }
}

impl Kind for Zone {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "Zone",
        plural: "zones",
        short: "z",
        scope: Scope::Global,
        writers: Writers::Admin,
        spec_field: false,
        name_rule: NameRule::Label,
    };

    fn validate(&self, meta: &Meta, out: &mut Checker) {
        // The label `isthmus.io/origin` says `global` of what administrators wrote.
        if meta.name == "global" {
            out.add_envelope("name", "\"global\" can not name a zone; choose another name");
        }
    }
}
