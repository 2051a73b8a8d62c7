//! `MeshTrafficPermission`: who may call.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    policy::{self, ListMerge, Policy, PolicyShape, RulePart},
    resource::Meta,
    selection::TargetRef,
};

pub use crate::policy::{Match, MatchForm, SpiffeIdMatch};

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

    // Lists of all permissions count together.
    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: &[],
        rules: true,
        proxy: false,
        lists: &[
            ("allow", ListMerge::Append),
            ("deny", ListMerge::Append),
            ("allowWithShadowDeny", ListMerge::Append),
        ],
    });

    fn policy(&self) -> Option<&dyn Policy> {
        Some(self)
    }

    fn validate(&self, _: &Meta, out: &mut Checker) {
        policy::check(self, out);
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

impl Policy for MeshTrafficPermission {
    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn rules(&self) -> Vec<RulePart<'_>> {
        let rules = self.rules.iter();
        rules
            .map(|rule| RulePart {
                matches: &[],
                default: policy::value(&rule.default),
            })
            .collect()
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
