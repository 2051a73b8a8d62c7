//! What is accepted but may not do what its author expects, in words.

use crate::{
    kinds::{MeshTrafficPermission, mesh_traffic_permission::PermissionLists},
    resource::Resource,
};

/// Warnings about `resource`, each with its field.
#[must_use]
pub fn warnings(resource: &Resource) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(permission) = resource.get::<MeshTrafficPermission>() {
        permission_warnings(permission, &mut warnings);
    }
    let key = resource.key();
    warnings
        .iter()
        .map(|text| format!("{key}: {text}"))
        .collect()
}

fn permission_warnings(permission: &MeshTrafficPermission, warnings: &mut Vec<String>) {
    if permission.rules.is_empty() {
        warnings.push("spec.rules: there are no rules, so this permission has no effect".into());
    }
    for (index, rule) in permission.rules.iter().enumerate() {
        let PermissionLists {
            allow,
            deny,
            allow_with_shadow_deny,
        } = &rule.default;
        let path = format!("spec.rules[{index}].default");
        if allow.is_empty() && deny.is_empty() && allow_with_shadow_deny.is_empty() {
            warnings.push(format!(
                "{path}: this rule has no effect: all lists are empty"
            ));
        }
        for (list, field, effect) in [
            (
                deny,
                "deny",
                "this denies everyone, whatever else is allowed",
            ),
            (
                allow_with_shadow_deny,
                "allowWithShadowDeny",
                "this allows everyone, and records everyone as denied",
            ),
            (
                allow,
                "allow",
                "this allows everyone of every trust domain the mesh knows",
            ),
        ] {
            for (at, entry) in list.iter().enumerate() {
                if entry.spiffe_id.is_everyone() {
                    warnings.push(format!("{path}.{field}[{at}]: {effect}"));
                }
            }
        }
    }
}
