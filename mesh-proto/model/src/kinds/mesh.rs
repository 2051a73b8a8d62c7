//! `Mesh`: a tenant.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    resource::Meta,
};

/// A tenant: workloads of different meshes can not see or reach each other.
///
/// Identity is `MeshIdentity`'s to say and trust `MeshTrust`'s.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mesh {
    /// The zones the mesh may run in. Absent or empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// Default resources not to create with the mesh: `MeshIdentity`, or `*` for all. Other names are accepted and mean
    /// nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip_creating_initial_policies: Vec<String>,
}

impl Mesh {
    /// True where the mesh may run in `zone`.
    #[must_use]
    pub fn runs_in(&self, zone: &str) -> bool {
        self.zones.is_empty() || self.zones.iter().any(|z| z == zone)
    }

    /// True where a default resource of kind `kind` is created with the mesh.
    #[must_use]
    pub fn creates_initial(&self, kind: &str) -> bool {
        let skipped = &self.skip_creating_initial_policies;
        !skipped.iter().any(|name| name == "*" || name == kind)
    }
}

impl Kind for Mesh {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "Mesh",
        plural: "meshes",
        short: "m",
        scope: Scope::Global,
        writers: Writers::Admin,
        spec_field: false,
        name_rule: NameRule::Label,
    };

    fn validate(&self, _: &Meta, out: &mut Checker) {
        for (index, zone) in self.zones.iter().enumerate() {
            out.label(format!("zones[{index}]"), zone);
        }
        out.unique("zones", "", &self.zones, |zone| Some(zone.clone()));
    }
}
