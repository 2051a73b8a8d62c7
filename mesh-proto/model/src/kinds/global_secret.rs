//! `GlobalSecret`: a sealed value outside any mesh.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    kinds::secret::check_data,
    resource::Meta,
};

/// A value outside any mesh that is sealed before it is stored, and shown to administrators only.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GlobalSecret {
    /// The value in base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub data: String,
}

/// Never shows the value, so that it reaches no log.
impl fmt::Debug for GlobalSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GlobalSecret").finish_non_exhaustive()
    }
}

impl Kind for GlobalSecret {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "GlobalSecret",
        plural: "globalsecrets",
        short: "gsec",
        scope: Scope::Global,
        writers: Writers::Admin,
        spec_field: false,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, _: &Meta, out: &mut Checker) {
        check_data(&self.data, out);
    }
}
