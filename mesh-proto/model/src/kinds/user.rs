//! `User`: somebody who may be given roles.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    resource::Meta,
};

/// Somebody, or some program, that may be given roles by `RoleBinding`s. API tokens are made for a user by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    /// For people: who this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Other names the user is known by outside, such as `jane@example.com`. Names, not credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<String>,
}

impl Kind for User {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "User",
        plural: "users",
        short: "usr",
        scope: Scope::Global,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, _: &Meta, out: &mut Checker) {
        for (index, subject) in self.subjects.iter().enumerate() {
            if subject.trim().is_empty() {
                out.add(format!("subjects[{index}]"), "must not be empty");
            }
        }
        out.unique("subjects", "", &self.subjects, |subject| Some(subject.clone()));
    }
}
