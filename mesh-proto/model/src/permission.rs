//! From `MeshTrafficPermission`s to the one effective permission of an inbound.

use mesh_proto::proxy::{IdentityMatch, Permissions, identity_match::SpiffeId};

use crate::{
    kinds::{
        MeshTrafficPermission,
        dataplane::Inbound,
        mesh_traffic_permission::{Match, MatchForm},
    },
    resource::Resource,
    selection,
};

/// Who may call `inbound` of `dataplane`.
///
/// The rules of all `policies` that select the inbound count together. Other kinds and other meshes are ignored. The
/// result is the same in whichever order the policies come: they are ordered by name, then owning zone, and a policy's
/// rules keep their order.
#[must_use]
pub fn effective(policies: &[&Resource], dataplane: &Resource, inbound: &Inbound) -> Permissions {
    let mut selected: Vec<(&Resource, &MeshTrafficPermission)> = policies
        .iter()
        .filter(|policy| selection::same_mesh(policy, dataplane))
        .filter_map(|policy| Some((*policy, policy.get::<MeshTrafficPermission>()?)))
        .filter(|(_, permission)| {
            selection::selects_inbound(permission.target_ref.as_ref(), &dataplane.meta, inbound)
        })
        .collect();
    selected.sort_by_key(|(policy, _)| (&policy.meta.name, &policy.meta.zone));

    let mut permissions = Permissions::default();
    for (policy, permission) in selected {
        for (index, rule) in permission.rules.iter().enumerate() {
            let origin = format!("{}#{index}", policy.meta.name);
            let lists = &rule.default;
            extend(&mut permissions.deny, &lists.deny, &origin);
            extend(
                &mut permissions.allow_with_shadow_deny,
                &lists.allow_with_shadow_deny,
                &origin,
            );
            extend(&mut permissions.allow, &lists.allow, &origin);
        }
    }
    permissions
}

fn extend(list: &mut Vec<IdentityMatch>, matches: &[Match], origin: &str) {
    list.extend(matches.iter().map(|entry| {
        let spiffe_id = &entry.spiffe_id;
        let value = spiffe_id.value.clone();
        IdentityMatch {
            spiffe_id: Some(match spiffe_id.form {
                _ if spiffe_id.is_everyone() => SpiffeId::Any(true),
                MatchForm::Exact => SpiffeId::Exact(value),
                MatchForm::Prefix => SpiffeId::Prefix(value),
            }),
            origin: origin.to_owned(),
        }
    }));
}
