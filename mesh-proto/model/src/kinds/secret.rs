//! `Secret`: a sealed value.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
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

/// The most bytes of a value.
const MAX_BYTES: usize = 64 * 1024;

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

    fn validate(&self, _: &Meta, out: &mut Checker) {
        check_data(&self.data, out);
    }
}

/// What is wrong with the value of a secret.
pub(super) fn check_data(data: &str, out: &mut Checker) {
    // A store keeps the value apart, sealed; and a viewer reads a secret without it. Written back as it was read, such a
    // secret must not become an empty one.
    if data.is_empty() && !out.is_stored() {
        out.add("data", "is required: the value in base64");
    }
    match STANDARD.decode(data) {
        Err(error) => out.add("data", format!("is not base64: {error}")),
        Ok(value) if value.len() > MAX_BYTES => {
            out.add("data", format!("has {} bytes; the most is {MAX_BYTES}", value.len()));
        }
        Ok(_) => {}
    }
}
