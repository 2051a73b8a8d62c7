//! `MeshTrafficPermission`: who may call.

use mesh_proto::spiffe::SpiffeId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    resource::Meta,
    selection::TargetRef,
};

/// Who may call the inbounds of the proxies it selects.
///
/// All permissions that select an inbound count together: what one denies is denied, else what one allows is allowed,
/// else it is denied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshTrafficPermission {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// What it says. Absent or empty: nothing, as if the permission did not exist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<PermissionRule>,
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PermissionRule {
    /// Its three lists.
    pub default: PermissionLists,
}

/// Lists of matches. An absent list and an empty one match nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PermissionLists {
    /// May call, unless denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Match>,
    /// May not call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Match>,
    /// May call, unless denied, and is recorded as if denied: to try out what a deny would do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_with_shadow_deny: Vec<Match>,
}

/// Callers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    /// By SPIFFE ID. Everyone is `{type: Prefix, value: "spiffe://"}`.
    #[serde(rename = "spiffeID")]
    pub spiffe_id: SpiffeIdMatch,
}

/// SPIFFE IDs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpiffeIdMatch {
    /// How `value` is compared.
    #[serde(rename = "type")]
    pub form: MatchForm,
    /// The ID, or what it begins with.
    pub value: String,
}

/// How a SPIFFE ID is compared.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum MatchForm {
    /// Equal.
    Exact,
    /// Begins with.
    Prefix,
}

impl SpiffeIdMatch {
    /// True where it matches every identity.
    #[must_use]
    pub fn is_everyone(&self) -> bool {
        self.form == MatchForm::Prefix && EVERYONE.starts_with(&self.value)
    }

    /// True where it matches `id`.
    #[must_use]
    pub fn matches(&self, id: &str) -> bool {
        match self.form {
            MatchForm::Exact => id == self.value,
            MatchForm::Prefix => id.starts_with(&self.value),
        }
    }
}

/// What every SPIFFE ID begins with.
pub(crate) const EVERYONE: &str = "spiffe://";

impl Kind for MeshTrafficPermission {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshTrafficPermission",
        plural: "meshtrafficpermissions",
        short: "mtp",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, _: &Meta, out: &mut Checker) {
        if let Some(target) = &self.target_ref {
            target.check("targetRef", out);
        }
        for (index, rule) in self.rules.iter().enumerate() {
            for (field, list) in rule.default.lists() {
                for (at, entry) in list.iter().enumerate() {
                    let path = format!("rules[{index}].default.{field}[{at}].spiffeID.value");
                    if let Some(message) = entry.spiffe_id.error() {
                        out.add(path, message);
                    }
                }
            }
        }
    }
}

impl PermissionLists {
    /// The lists with their fields' names, in the order they are looked at.
    #[must_use]
    pub fn lists(&self) -> [(&'static str, &[Match]); 3] {
        [
            ("deny", &self.deny),
            ("allowWithShadowDeny", &self.allow_with_shadow_deny),
            ("allow", &self.allow),
        ]
    }
}

impl SpiffeIdMatch {
    /// Why it could never match anybody.
    fn error(&self) -> Option<String> {
        match self.form {
            MatchForm::Exact => self.value.parse::<SpiffeId>().err().map(|e| e.to_string()),
            // A prefix is good where an ID can begin with it.
            MatchForm::Prefix => format!("{}x", self.value)
                .parse::<SpiffeId>()
                .err()
                .map(|e| format!("no SPIFFE ID begins so: {e}")),
        }
    }
}
