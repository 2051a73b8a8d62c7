//! Who somebody is, and what that allows: from users, roles and role bindings to grants. Pure.
//!
//! A token either says itself what its holder may do, or belongs to a user; then the role bindings that name the user
//! count, as they are at each request. What is written about access is looked at here too: whoever writes a role or a
//! binding must have all that it gives, or one could give oneself more.

use std::{collections::BTreeMap, sync::Arc};

use mesh_model::{Resource, Role, RoleBinding, api};
use mesh_proto::zone::ResourceKey;

use crate::{
    authorize::{Actor, Denied, Grant, Reach, Rights, authorize_grant},
    changes::Asked,
    state::{Stored, image::Image},
};

/// Kinds that say who may do what.
pub const KINDS: [&str; 3] = ["User", "Role", "RoleBinding"];

/// What the role bindings give to `user`.
#[must_use]
pub fn grants_of(image: &Image, user: &str) -> Vec<Grant> {
    // Most bindings are about others: those are told apart without reading them.
    let named = format!("\"{user}\"");
    image
        .list("RoleBinding", Some(""), None, usize::MAX)
        .iter()
        .filter(|stored| contains(&stored.json, &named))
        .filter_map(read::<RoleBinding>)
        .filter(|binding| binding.users.iter().any(|bound| bound == user))
        .filter_map(|binding| grant_of(&binding, |role| own_role(image, role)))
        .collect()
}

fn contains(json: &[u8], text: &str) -> bool {
    std::str::from_utf8(json).is_ok_and(|json| json.contains(text))
}

/// What `binding` gives; `None` where its role does not exist.
fn grant_of(binding: &RoleBinding, own: impl Fn(&str) -> Option<Role>) -> Option<Grant> {
    let built_in = match binding.role.as_str() {
        "admin" => Some(api::Role::Admin),
        "mesh-admin" => Some(api::Role::MeshAdmin),
        "viewer" => Some(api::Role::Viewer),
        _ => None,
    };
    let rights = match built_in {
        Some(role) => Rights::BuiltIn(role),
        None => Rights::Own(Arc::new(own(&binding.role)?)),
    };
    let reach = match &binding.meshes {
        // A mesh-admin is always bound to meshes.
        None if built_in == Some(api::Role::MeshAdmin) => Reach::Meshes(Vec::new()),
        None => Reach::Everywhere,
        Some(meshes) => Reach::Meshes(meshes.clone()),
    };
    Some(Grant { rights, reach })
}

fn own_role(image: &Image, name: &str) -> Option<Role> {
    read(&image.get(&ResourceKey::global("Role", "", name))?)
}

fn read<K: mesh_model::Kind>(stored: &Stored) -> Option<K> {
    Resource::from_json(&stored.json).ok()?.get::<K>().cloned()
}

/// Says whether `actor` has all that the roles and bindings in `asked` would give to anybody.
///
/// # Errors
/// Where it has not.
pub fn check_grants(image: &Image, actor: &Actor, asked: &Asked) -> Result<(), Denied> {
    let puts = || asked.put.iter().map(|put| &put.resource);
    let about_access =
        puts().any(|put| put.get::<Role>().is_some() || put.get::<RoleBinding>().is_some());
    if !about_access || actor.is_admin() {
        return Ok(());
    }
    let put_roles: BTreeMap<&str, &Role> = puts()
        .filter_map(|put| Some((put.meta.name.as_str(), put.get::<Role>()?)))
        .collect();
    let put_bindings: BTreeMap<&str, &RoleBinding> = puts()
        .filter_map(|put| Some((put.meta.name.as_str(), put.get::<RoleBinding>()?)))
        .collect();
    let is_deleted = |kind: &str, name: &str| {
        let mut deleted = asked.delete.iter().map(|delete| &delete.key);
        deleted.any(|key| key.kind == kind && key.name == name)
    };
    let role_after = |name: &str| match put_roles.get(name) {
        Some(role) => Some((*role).clone()),
        None if is_deleted("Role", name) => None,
        None => own_role(image, name),
    };
    // Those that are there already give more only where their role does.
    let kept: Vec<RoleBinding> = image
        .list("RoleBinding", Some(""), None, usize::MAX)
        .iter()
        .filter(|stored| {
            let name = stored.key.name.as_str();
            !put_bindings.contains_key(name) && !is_deleted("RoleBinding", name)
        })
        .filter_map(read::<RoleBinding>)
        .filter(|binding| put_roles.contains_key(binding.role.as_str()))
        .collect();
    for binding in put_bindings.into_values().chain(&kept) {
        if let Some(grant) = grant_of(binding, role_after) {
            authorize_grant(actor, &grant)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mesh_proto::raft::Entry;

    use super::*;
    use crate::{
        changes::{AskedDelete, AskedPut, put_operation},
        state::apply::{ENTRY_VERSION, LIMITS, apply},
    };

    const ACCESS: &str = "
type: User
name: alice
spec: {}
---
type: Role
name: timeouts
spec: {rules: [{actions: [read, write], kinds: [MeshTimeout]}]}
---
type: RoleBinding
name: alice-timeouts
spec: {role: timeouts, users: [alice], meshes: [pay]}
---
type: RoleBinding
name: alice-views
spec: {role: viewer, users: [bob, alice], meshes: [ana]}
---
type: RoleBinding
name: alice-later
spec: {role: not-there, users: [alice]}
---
type: RoleBinding
name: malice
spec: {role: admin, users: [malice]}
";

    fn image(text: &str) -> Image {
        let mut image = Image::default();
        let operations = mesh_model::parse(text, "test")
            .unwrap()
            .into_iter()
            .map(|resource| put_operation(resource.key(), resource.to_json(), None))
            .collect();
        let entry = Entry {
            version: ENTRY_VERSION,
            operations,
            ..Entry::default()
        };
        for write in apply(&image, &entry, &LIMITS).unwrap().writes {
            image.write(write).unwrap();
        }
        image
    }

    fn asked(text: &str) -> Asked {
        let put = |resource| AskedPut {
            resource,
            revision: None,
        };
        Asked {
            put: mesh_model::parse(text, "test")
                .unwrap()
                .into_iter()
                .map(put)
                .collect(),
            delete: vec![],
        }
    }

    /// Somebody who keeps roles and bindings and may do what the role `timeouts` allows, everywhere.
    fn keeper() -> Actor {
        let role: Role = serde_json::from_value(serde_json::json!({"rules": [
            {"actions": ["read", "write", "delete"], "kinds": ["User", "Role", "RoleBinding", "MeshTimeout"]},
        ]}))
        .unwrap();
        Actor {
            name: "token/keeper".into(),
            grants: vec![Grant {
                rights: Rights::Own(Arc::new(role)),
                reach: Reach::Everywhere,
            }],
            ..Actor::system()
        }
    }

    #[test]
    fn rights_are_the_union_of_the_bindings_that_name_the_user() {
        let grants = grants_of(&image(ACCESS), "alice");
        let reach: Vec<&Reach> = grants.iter().map(|grant| &grant.reach).collect();
        assert_eq!(
            reach,
            [
                &Reach::Meshes(vec!["pay".into()]),
                &Reach::Meshes(vec!["ana".into()])
            ]
        );
        assert_eq!(grants[1].rights, Rights::BuiltIn(api::Role::Viewer));
        // A name within another name is another name.
        assert_eq!(grants_of(&image(ACCESS), "lice"), []);
    }

    #[test]
    fn nobody_gives_more_than_they_have_by_a_role_or_a_binding() {
        let image = image(ACCESS);
        let may = |text: &str| check_grants(&image, &keeper(), &asked(text)).is_ok();
        let binding = |role: &str, meshes: &str| {
            format!("type: RoleBinding\nname: new\nspec: {{role: {role}, users: [bob]{meshes}}}\n")
        };
        assert!(may(&binding("timeouts", ", meshes: [pay]")));
        assert!(may(&binding("timeouts", "")));
        assert!(!may(&binding("viewer", ", meshes: [pay]")));
        assert!(!may(&binding("admin", "")));
        // A role that somebody has already becomes no more than one's own.
        let role = |actions: &str| {
            format!(
                "type: Role\nname: timeouts\nspec: {{rules: [{{actions: [{actions}], kinds: [MeshTimeout]}}]}}\n"
            )
        };
        assert!(may(&role("read, write, delete")));
        assert!(!may(&role("read, readSecret")));
        assert!(
            may(&role("read, readSecret").replace("timeouts", "free")),
            "nobody has it"
        );
        // Nor in two steps of one batch, or by making the role that a binding waits for.
        assert!(!may(&format!(
            "{}---\n{}",
            role("readSecret").replace("timeouts", "free"),
            binding("free", "")
        )));
        assert!(!may(&role("readSecret").replace("timeouts", "not-there")));
        // What is deleted in the same batch gives nothing.
        let mut both = asked(&role("read, readSecret"));
        both.delete = vec![AskedDelete {
            key: ResourceKey::global("RoleBinding", "", "alice-timeouts"),
            revision: None,
        }];
        assert!(check_grants(&image, &keeper(), &both).is_ok());
        assert!(check_grants(&image, &Actor::system(), &asked(&binding("admin", ""))).is_ok());
    }
}
