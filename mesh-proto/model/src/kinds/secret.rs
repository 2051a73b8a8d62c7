//! `Secret`: a sealed value.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    resource::Meta,
};

/// A value that is sealed before it is stored, and shown to administrators only.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Secret {
    /// The value in base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub data: String,
}

/// Never shows the value, so that it reaches no log.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

impl Kind for Secret {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "Secret",
        plural: "secrets",
        short: "sec",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: false,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, _: &Meta, _out: &mut Checker) {}
}
