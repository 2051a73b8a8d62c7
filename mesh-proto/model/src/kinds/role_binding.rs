//! `RoleBinding`: who has a role, and in which meshes.

use mesh_proto::names;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    resource::Meta,
};

/// Gives a role to users, in certain meshes or in all and in what is outside any mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoleBinding {
    /// The name of a `Role`, or `admin`, `mesh-admin`, `viewer`.
    pub role: String,
    /// Names of `User`s.
    #[schemars(length(min = 1))]
    pub users: Vec<String>,
    /// Meshes the role is bound to. Absent: all, and what is outside any mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub meshes: Option<Vec<String>>,
}

impl Kind for RoleBinding {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "RoleBinding",
        plural: "rolebindings",
        short: "rb",
        scope: Scope::Global,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, _: &Meta, out: &mut Checker) {
        let name = |at: String, text: &str, out: &mut Checker| {
            if !names::is_subdomain(text) {
                out.add(at, format!("{text:?} can not be a name"));
            }
        };
        name("role".to_owned(), &self.role, out);
        for (index, user) in self.users.iter().enumerate() {
            name(format!("users[{index}]"), user, out);
        }
        out.unique("users", "", &self.users, |user| Some(user.clone()));
        let meshes = self.meshes.as_deref().unwrap_or_default();
        for (index, mesh) in meshes.iter().enumerate() {
            out.label(format!("meshes[{index}]"), mesh);
        }
        out.unique("meshes", "", meshes, |mesh| Some(mesh.clone()));
        if self.role == "mesh-admin" && self.meshes.is_none() {
            out.add(
                "meshes",
                "is required: the role mesh-admin is always bound to meshes; the role for all is admin",
            );
        }
    }
}
