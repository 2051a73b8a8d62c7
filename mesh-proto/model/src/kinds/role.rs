//! `Role`: what somebody may do, where a `RoleBinding` says so.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers, find_kind},
    kinds::kinds,
    resource::Meta,
    word,
};

/// A set of things one may do. `RoleBinding`s say who has it, and in which meshes. The roles `admin`, `mesh-admin` and
/// `viewer` are built in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Role {
    /// What may be done. The rules add up: what no rule allows is refused.
    #[schemars(length(min = 1))]
    pub rules: Vec<RoleRule>,
}

/// Things one may do with certain kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoleRule {
    /// What.
    #[schemars(length(min = 1))]
    pub actions: Vec<RoleAction>,
    /// With resources of these kinds, as in `type:`. Absent: with all. Means nothing for `tokens`, `readAudit`,
    /// `readInstallation` and `tap`, which are about no kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub kinds: Option<Vec<String>>,
}

/// Something one may do.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum RoleAction {
    /// Look at resources, list and watch them; never the value of a secret.
    Read,
    /// Create and replace resources.
    Write,
    /// Delete resources.
    Delete,
    /// See the values of secrets.
    ReadSecret,
    /// Make, list and revoke tokens.
    Tokens,
    /// Read who did what.
    ReadAudit,
    /// Look at nodes and the zones' connections.
    ReadInstallation,
    /// Look at requests as they end.
    Tap,
}

impl RoleAction {
    /// True where [`RoleRule::kinds`] restricts it.
    #[must_use]
    pub fn is_about_kinds(self) -> bool {
        match self {
            Self::Read | Self::Write | Self::Delete | Self::ReadSecret => true,
            Self::Tokens | Self::ReadAudit | Self::ReadInstallation | Self::Tap => false,
        }
    }
}

impl Role {
    /// Names of the roles that need no resource.
    pub const BUILT_IN: [&'static str; 3] = ["admin", "mesh-admin", "viewer"];

    /// True where a rule allows `action` on resources of `kind`.
    #[must_use]
    pub fn allows(&self, action: RoleAction, kind: &str) -> bool {
        self.rules.iter().any(|rule| {
            let kinds = rule.kinds.as_ref().filter(|_| action.is_about_kinds());
            rule.actions.contains(&action)
                && kinds.is_none_or(|kinds| kinds.iter().any(|k| k == kind))
        })
    }
}

impl Kind for Role {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "Role",
        plural: "roles",
        short: "ro",
        scope: Scope::Global,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, meta: &Meta, out: &mut Checker) {
        if Self::BUILT_IN.contains(&meta.name.as_str()) {
            let message = format!("{:?} is built in; choose another name", meta.name);
            out.add_envelope("name", message);
        }
        for (index, rule) in self.rules.iter().enumerate() {
            let at = format!("rules[{index}].kinds");
            let Some(named) = &rule.kinds else { continue };
            for (index, name) in named.iter().enumerate() {
                if find_kind(name).is_none_or(|kind| kind.name != name) {
                    let names: Vec<&str> = kinds().iter().map(|kind| kind.name).collect();
                    let message = match word::nearest(name, &names) {
                        Some(near) => format!("{name:?} is not a kind; did you mean {near}?"),
                        None => format!("{name:?} is not a kind"),
                    };
                    out.add(format!("{at}[{index}]"), message);
                }
            }
            if !rule.actions.is_empty() && !rule.actions.iter().any(|a| a.is_about_kinds()) {
                out.add(at, "these actions are about no kind; leave it out");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_add_up_and_kinds_restrict_only_what_is_about_kinds() {
        let role: Role = serde_saphyr::from_str(
            "rules: [{actions: [read]}, {actions: [write, readAudit], kinds: [MeshTimeout]}]",
        )
        .unwrap();
        for (action, kind, allowed) in [
            (RoleAction::Read, "Mesh", true),
            (RoleAction::Write, "MeshTimeout", true),
            (RoleAction::Write, "Mesh", false),
            (RoleAction::Delete, "MeshTimeout", false),
            (RoleAction::ReadAudit, "", true),
            (RoleAction::Tokens, "", false),
        ] {
            assert_eq!(role.allows(action, kind), allowed, "{action:?} {kind}");
        }
    }
}
