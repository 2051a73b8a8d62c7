//! What a request to change resources amounts to: the operations of one Raft entry.
//!
//! Pure, but for the randomness of new keys: an image of the state and what was asked for give a [`Plan`], or every
//! reason why not. What follows from a change is planned here too, so that it happens in the same entry: a new mesh
//! gets its identity and its token key, a deleted mesh or zone takes with it all that is in it.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_model::{
    Mesh, MeshIdentity, Meta, Resource, RoleBinding, Scope, Token, TokenIssuer, User, Violation,
    Writers, Zone, find_kind, token_issuer::TokenKey as PublicTokenKey,
};
use mesh_proto::{
    raft::{Delete, Operation, Precondition, Put, operation},
    zone::ResourceKey,
};

use crate::{
    access, facts,
    sealing::{SealingKey, associated_data},
    state::{Stored, image::Image},
    tokens,
    zone_sync::scope::ingress_issuer,
};

/// What somebody asks for, as one atom.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Asked {
    /// Resources to put.
    pub put: Vec<AskedPut>,
    /// Resources to delete.
    pub delete: Vec<AskedDelete>,
}

/// A resource to put.
#[derive(Debug, Clone, PartialEq)]
pub struct AskedPut {
    /// The resource.
    pub resource: Resource,
    /// The revision it must have now; 0: it must not exist.
    pub revision: Option<u64>,
}

/// A resource to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedDelete {
    /// Which.
    pub key: ResourceKey,
    /// The revision it must have now.
    pub revision: Option<u64>,
}

/// What to write.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// First one operation for each put and each delete asked for, in order; then what follows from them.
    pub operations: Vec<Operation>,
    /// The resources asked for, as many as there are operations for them.
    pub asked: Vec<ResourceKey>,
    /// What is accepted but may surprise.
    pub warnings: Vec<String>,
}

/// Why a plan can not be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// What was asked for is not acceptable.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Violation>),
    /// A fault of ours, or of the machine.
    #[error("{0}")]
    Failed(String),
}

/// Plans what was `asked` for, on top of `image`.
///
/// # Errors
/// Where something of it is not acceptable: then every reason, at once.
pub fn plan(image: &Image, sealing: &SealingKey, asked: &Asked) -> Result<Plan, PlanError> {
    let violations = check(image, asked);
    if !violations.is_empty() {
        return Err(PlanError::Invalid(violations));
    }
    let mut draft = Draft {
        image,
        sealing,
        touched: asked_keys(asked).into_iter().map(sort_key).collect(),
        guards: BTreeSet::new(),
        follow_up: Vec::new(),
        warnings: asked
            .put
            .iter()
            .flat_map(|put| mesh_model::warnings(&put.resource))
            .collect(),
    };
    let mut operations = Vec::new();
    for put in &asked.put {
        operations.push(draft.put(put, asked)?);
    }
    for delete in &asked.delete {
        operations.push(draft.delete(delete));
    }
    if changes_access(image, asked) {
        draft.renew_guard("Access", "")?;
    }
    let guards = draft
        .guards
        .iter()
        .map(|(kind, name)| facts::guard(image, kind, name));
    operations.extend(guards);
    operations.extend(draft.follow_up);
    Ok(Plan {
        operations,
        asked: asked_keys(asked),
        warnings: draft.warnings,
    })
}

/// Whether something about who may do what would change. Whether its author may was judged by what else was there then:
/// of two such changes at once, one is planned and judged again.
fn changes_access(image: &Image, asked: &Asked) -> bool {
    let is_access = |key: &ResourceKey| access::KINDS.contains(&key.kind.as_str());
    let mut put = asked.put.iter().map(|put| &put.resource);
    let mut deleted = asked.delete.iter().map(|delete| &delete.key);
    let changes = |put: &Resource| {
        let stored = image.get(&put.key());
        stored.is_none_or(|stored| stored.json != put.to_json())
    };
    put.any(|put| is_access(&put.key()) && changes(put))
        || deleted.any(|key| is_access(key) && image.get(key).is_some())
}

fn asked_keys(asked: &Asked) -> Vec<ResourceKey> {
    let put = asked.put.iter().map(|put| put.resource.key());
    put.chain(asked.delete.iter().map(|delete| delete.key.clone()))
        .collect()
}

/// Every rule that can be broken by what was asked for.
fn check(image: &Image, asked: &Asked) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut seen = BTreeSet::new();
    let put_meshes: BTreeSet<&str> = asked
        .put
        .iter()
        .filter(|put| put.resource.kind().name == "Mesh")
        .map(|put| put.resource.meta.name.as_str())
        .collect();
    let deleted_meshes: BTreeSet<&str> = asked
        .delete
        .iter()
        .filter(|delete| delete.key.kind == "Mesh")
        .map(|delete| delete.key.name.as_str())
        .collect();
    for key in asked_keys(asked) {
        if !seen.insert(sort_key(key.clone())) {
            violations.push(violation(
                "name",
                format!("{key} is named twice in one batch"),
            ));
        }
        if let Err(message) = check_writer(&key) {
            violations.push(violation("type", message));
        }
        let mesh = key.mesh.as_str();
        if !mesh.is_empty() && deleted_meshes.contains(mesh) {
            violations.push(violation(
                "mesh",
                format!("{key}: the same batch deletes mesh {mesh}, with everything in it"),
            ));
        }
    }
    for put in &asked.put {
        let key = put.resource.key();
        if put.resource.secret_data().is_some_and(str::is_empty) {
            violations.push(violation(
                "data",
                format!("{key}: must hold the value in base64 (lists and watches do not show values; get the one secret)"),
            ));
        }
        let known = put_meshes.contains(key.mesh.as_str())
            || image
                .get(&ResourceKey::global("Mesh", "", &key.mesh))
                .is_some();
        if !key.mesh.is_empty() && !known {
            violations.push(violation(
                "mesh",
                format!(
                    "{} {}: there is no mesh {:?}: create it first, or in the same batch",
                    key.kind, key.name, key.mesh
                ),
            ));
        }
    }
    violations
}

/// Whether administrators write resources like `key`, or whose they are.
///
/// # Errors
/// Where they do not, in words for them.
pub fn check_writer(key: &ResourceKey) -> Result<(), String> {
    let Some(kind) = find_kind(&key.kind) else {
        return Err(format!("there is no kind {:?}", key.kind));
    };
    if !key.zone.is_empty() {
        return Err(format!(
            "{key} belongs to its zone, which reports it: change it in the zone"
        ));
    }
    if kind.name == "Dataplane" {
        return Err(format!(
            "{key}: dataplanes live in their zones and register there: start it with `dataplane run`"
        ));
    }
    match kind.writers {
        Writers::Admin | Writers::AdminOrZone => {}
        Writers::Zone => {
            return Err(format!("{key}: only zones write {} resources", kind.name));
        }
        Writers::System if kind.name == "Token" => {
            return Err(format!(
                "{key}: tokens are made and revoked with `meshctl token` (/v1/tokens)"
            ));
        }
        Writers::System => {
            return Err(format!(
                "{key}: only the control planes write {} resources",
                kind.name
            ));
        }
    }
    match (kind.scope, key.mesh.is_empty()) {
        (Scope::Mesh, true) => Err(format!("{key}: {} resources live in a mesh", kind.name)),
        (Scope::Global, false) => Err(format!("{key}: {} resources are in no mesh", kind.name)),
        _ => Ok(()),
    }
}

fn violation(path: &str, message: String) -> Violation {
    Violation {
        source: String::new(),
        line: 0,
        column: 0,
        path: path.to_owned(),
        message,
    }
}

struct Draft<'a> {
    image: &'a Image,
    sealing: &'a SealingKey,
    /// Keys that were asked for, or are planned already.
    touched: BTreeSet<SortKey>,
    /// Meshes and zones that must stay what they are until the entry is applied.
    guards: BTreeSet<(&'static str, String)>,
    follow_up: Vec<Operation>,
    warnings: Vec<String>,
}

impl Draft<'_> {
    fn put(&mut self, put: &AskedPut, asked: &Asked) -> Result<Operation, PlanError> {
        let resource = &put.resource;
        let key = resource.key();
        let mut revision = put.revision;
        let mut json = resource.to_json();
        if let Some(mesh) = resource.get::<Mesh>() {
            match self.image.get(&key) {
                None => {
                    // Two that create the same mesh at once must not both give it keys.
                    revision = revision.or(Some(0));
                    self.new_mesh(&key.name, mesh, asked)?;
                }
                Some(_) => {
                    self.guards.insert(("Mesh", key.name.clone()));
                    self.narrowed_placement(&key.name, mesh);
                }
            }
            self.unknown_zones(&key.name, mesh, asked);
        } else if resource.get::<Zone>().is_some() {
            if self.image.get(&key).is_none() {
                revision = revision.or(Some(0));
                self.new_zone(&key.name)?;
            } else {
                self.guards.insert(("Zone", key.name.clone()));
            }
        } else if resource.get::<User>().is_some() {
            if self.image.get(&key).is_none() {
                revision = revision.or(Some(0));
                self.renew_guard("User", &key.name)?;
            }
        } else if let Some(data) = resource.secret_data() {
            json = self.sealed(resource, data)?;
        }
        let creates_mesh = || {
            let mesh = ResourceKey::global("Mesh", "", &key.mesh);
            self.image.get(&mesh).is_none()
        };
        if !key.mesh.is_empty() && !creates_mesh() {
            self.guards.insert(("Mesh", key.mesh.clone()));
        }
        Ok(put_operation(key, json, revision))
    }

    fn delete(&mut self, delete: &AskedDelete) -> Operation {
        let key = &delete.key;
        match key.kind.as_str() {
            "Mesh" if self.image.get(key).is_some() => self.gone_mesh(&key.name),
            "Zone" if self.image.get(key).is_some() => self.gone_zone(&key.name),
            "User" if self.image.get(key).is_some() => self.gone_user(&key.name),
            _ => {}
        }
        delete_operation(key.clone(), delete.revision)
    }

    fn new_mesh(&mut self, name: &str, mesh: &Mesh, asked: &Asked) -> Result<(), PlanError> {
        self.new_issuer(name)?;
        self.renew_guard("Mesh", name)?;
        let identity = ResourceKey::global("MeshIdentity", name, "default");
        let own = asked.put.iter().any(|put| put.resource.key() == identity);
        if own || !mesh.creates_initial("MeshIdentity") {
            return Ok(());
        }
        let resource = Resource::new(Meta::new(name, "default"), MeshIdentity::initial());
        self.follow_up
            .push(put_operation(identity, resource.to_json(), None));
        Ok(())
    }

    fn new_zone(&mut self, name: &str) -> Result<(), PlanError> {
        self.new_issuer(&ingress_issuer(name))?;
        self.renew_guard("Zone", name)
    }

    /// A token issuer and its key: one for each mesh and each zone, so that the end of one is the end of no other.
    fn new_issuer(&mut self, name: &str) -> Result<(), PlanError> {
        let key = tokens::TokenKey::generate().map_err(failed)?;
        let record = facts::token_key_name(name);
        let stored = facts::seal_token_key(self.sealing, &record, &key).map_err(failed)?;
        self.follow_up
            .push(facts::set(&record, facts::encode(&stored), None));
        let issuer = Resource::new(
            Meta::new("", name),
            TokenIssuer {
                keys: vec![PublicTokenKey {
                    kid: key.kid,
                    public_key: key.public_pem,
                }],
                revoked: Vec::new(),
            },
        );
        self.follow_up
            .push(put_operation(issuer.key(), issuer.to_json(), None));
        Ok(())
    }

    fn renew_guard(&mut self, kind: &str, name: &str) -> Result<(), PlanError> {
        let record = facts::guard_name(kind, name);
        let before = self.image.system(&record).unwrap_or_default();
        let value = tokens::new_id().map_err(failed)?.into_bytes();
        self.follow_up
            .push(facts::set(&record, value, Some(before)));
        Ok(())
    }

    /// Takes everything in the mesh along, and what lets anybody into it.
    fn gone_mesh(&mut self, name: &str) {
        for stored in self.image.all_in_mesh(name) {
            self.follow_delete(&stored.key);
        }
        self.gone_issuer(name);
        self.withdraw_tokens(
            |token| token.scope.mesh.as_deref() == Some(name),
            |token| {
                let bound = token.scope.meshes.len();
                token.scope.meshes.retain(|mesh| mesh != name);
                // Bound to this mesh only: without it, the token would be bound to none, which can mean all.
                bound > 0 && token.scope.meshes.is_empty()
            },
        );
        // Another mesh of this name, one day, is not theirs.
        self.withdraw_bindings(|binding| {
            let Some(meshes) = &mut binding.meshes else {
                return false;
            };
            meshes.retain(|mesh| mesh != name);
            meshes.is_empty()
        });
        self.follow_up.push(facts::set(
            &facts::guard_name("Mesh", name),
            Vec::new(),
            None,
        ));
    }

    /// Takes along what lets anybody in as the user, so that another of this name does not inherit it.
    fn gone_user(&mut self, name: &str) {
        self.withdraw_tokens(|token| token.scope.user.as_deref() == Some(name), |_| false);
        self.withdraw_bindings(|binding| {
            binding.users.retain(|user| user != name);
            binding.users.is_empty()
        });
        self.follow_up.push(facts::set(
            &facts::guard_name("User", name),
            Vec::new(),
            None,
        ));
    }

    /// Deletes role bindings that `reduce`, which may change them, says give nothing to anybody any more.
    fn withdraw_bindings(&mut self, reduce: impl Fn(&mut RoleBinding) -> bool) {
        for stored in self.image.list("RoleBinding", Some(""), None, usize::MAX) {
            // One that is asked for in the same batch is what its author says.
            if self.touched.contains(&sort_key(stored.key.clone())) {
                continue;
            }
            let Ok(resource) = Resource::from_json(&stored.json) else {
                continue;
            };
            let Some(before) = resource.get::<RoleBinding>() else {
                continue;
            };
            let mut binding = before.clone();
            if reduce(&mut binding) {
                self.follow_delete(&stored.key);
            } else if binding != *before {
                let changed = Resource::new(resource.meta.clone(), binding);
                self.follow_up
                    .push(put_operation(stored.key, changed.to_json(), None));
            }
        }
    }

    /// Takes along what the zone owns, and what lets anybody in as it.
    fn gone_zone(&mut self, name: &str) {
        for stored in owned_by_zone(self.image, name) {
            self.follow_delete(&stored.key);
        }
        self.gone_issuer(&ingress_issuer(name));
        self.withdraw_tokens(|token| token.scope.zone.as_deref() == Some(name), |_| false);
        for record in [
            facts::guard_name("Zone", name),
            facts::zone_report_name(name),
        ] {
            self.follow_up.push(facts::set(&record, Vec::new(), None));
        }
    }

    fn gone_issuer(&mut self, name: &str) {
        self.follow_delete(&ResourceKey::global("TokenIssuer", "", name));
        self.follow_up
            .push(facts::set(&facts::token_key_name(name), Vec::new(), None));
    }

    /// Deletes tokens that `gone` names or that `reduce`, which may change them, says are good for nothing any more.
    fn withdraw_tokens(
        &mut self,
        gone: impl Fn(&Token) -> bool,
        reduce: impl Fn(&mut Token) -> bool,
    ) {
        for stored in self.image.list("Token", Some(""), None, usize::MAX) {
            let Ok(resource) = Resource::from_json(&stored.json) else {
                continue;
            };
            let Some(before) = resource.get::<Token>() else {
                continue;
            };
            let mut token = before.clone();
            if gone(&token) || reduce(&mut token) {
                self.follow_delete(&stored.key);
            } else if token != *before {
                let changed = Resource::new(resource.meta.clone(), token);
                self.follow_up
                    .push(put_operation(stored.key, changed.to_json(), None));
            }
        }
    }

    fn follow_delete(&mut self, key: &ResourceKey) {
        if self.touched.insert(sort_key(key.clone())) {
            self.follow_up.push(delete_operation(key.clone(), None));
        }
    }

    /// What zones own in a mesh goes when the mesh is no longer placed in them.
    fn narrowed_placement(&mut self, name: &str, mesh: &Mesh) {
        for stored in self.image.all_in_mesh(name) {
            if !stored.key.zone.is_empty() && !mesh.runs_in(&stored.key.zone) {
                self.follow_delete(&stored.key);
            }
        }
    }

    fn unknown_zones(&mut self, name: &str, mesh: &Mesh, asked: &Asked) {
        for zone in mesh.zones.iter() {
            let key = ResourceKey::global("Zone", "", zone);
            let known = self.image.get(&key).is_some()
                || asked.put.iter().any(|put| put.resource.key() == key);
            if !known {
                self.warnings.push(format!(
                    "mesh {name} is placed in zone {zone}, which does not exist yet"
                ));
            }
        }
    }

    /// The resource with its value sealed. What holds the same value already stays as it is, so that applying it again
    /// changes nothing.
    fn sealed(&self, resource: &Resource, data: &str) -> Result<Vec<u8>, PlanError> {
        let key = resource.key();
        let what = secret_associated_data(&key);
        let value = STANDARD.decode(data).map_err(failed)?;
        let unchanged = self.image.get(&key).and_then(|stored| {
            let before = Resource::from_json(&stored.json).ok()?;
            let data = before.secret_data()?;
            let opened = self
                .sealing
                .open(&what, &STANDARD.decode(data).ok()?)
                .ok()?;
            (opened.as_slice() == value.as_slice()).then(|| data.to_owned())
        });
        let data = match unchanged {
            Some(data) => data,
            None => STANDARD.encode(self.sealing.seal(&what, &value).map_err(failed)?),
        };
        Ok(resource.clone().with_secret_data(data).to_json())
    }
}

/// What the value of a secret belongs to.
#[must_use]
pub fn secret_associated_data(key: &ResourceKey) -> String {
    associated_data(&key.mesh, &key.kind, &key.name)
}

/// Everything that `zone` owns.
#[must_use]
pub fn owned_by_zone(image: &Image, zone: &str) -> Vec<Stored> {
    ["MeshService", "MeshTrust", "ZoneIngress", "ZoneEgress"]
        .iter()
        .flat_map(|kind| image.list(kind, None, None, usize::MAX))
        .filter(|stored| stored.key.zone == zone)
        .collect()
}

/// Puts a resource.
#[must_use]
pub fn put_operation(key: ResourceKey, json: Vec<u8>, revision: Option<u64>) -> Operation {
    Operation {
        operation: Some(operation::Operation::Put(Put {
            key: Some(key),
            json,
            precondition: revision.map(|revision| Precondition { revision }),
        })),
    }
}

/// Deletes a resource.
#[must_use]
pub fn delete_operation(key: ResourceKey, revision: Option<u64>) -> Operation {
    Operation {
        operation: Some(operation::Operation::Delete(Delete {
            key: Some(key),
            precondition: revision.map(|revision| Precondition { revision }),
        })),
    }
}

fn failed(error: impl std::fmt::Display) -> PlanError {
    PlanError::Failed(error.to_string())
}

type SortKey = (String, String, String, String);

fn sort_key(key: ResourceKey) -> SortKey {
    (key.kind, key.mesh, key.zone, key.name)
}

#[cfg(test)]
mod tests {
    use mesh_proto::raft::{Entry, EntryResult};

    use super::*;
    use crate::state::apply::{ENTRY_VERSION, LIMITS, apply};

    struct World {
        image: Image,
        sealing: SealingKey,
    }

    impl World {
        fn new() -> Self {
            Self {
                image: Image::default(),
                sealing: SealingKey::generate().unwrap(),
            }
        }

        fn plan(&self, asked: &Asked) -> Result<Plan, PlanError> {
            plan(&self.image, &self.sealing, asked)
        }

        fn write(&mut self, plan: Plan) -> EntryResult {
            let entry = Entry {
                version: ENTRY_VERSION,
                operations: plan.operations,
                ..Entry::default()
            };
            let applied = apply(&self.image, &entry, &LIMITS).unwrap();
            for write in applied.writes {
                self.image.write(write).unwrap();
            }
            applied.result
        }

        fn put(&mut self, text: &str) -> EntryResult {
            let plan = self.plan(&puts(text)).unwrap();
            self.write(plan)
        }

        fn names(&self, kind: &str) -> Vec<String> {
            let found = self.image.list(kind, None, None, usize::MAX);
            found.into_iter().map(|stored| stored.key.name).collect()
        }
    }

    fn puts(text: &str) -> Asked {
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

    fn deletes(kind: &str, name: &str) -> Asked {
        Asked {
            put: vec![],
            delete: vec![AskedDelete {
                key: ResourceKey::global(kind, "", name),
                revision: None,
            }],
        }
    }

    const SERVICE: &str = "type: MeshService\nmesh: pay\nname: web\nspec: {ports: [{port: 80}]}\n";

    #[test]
    fn nothing_is_put_into_a_mesh_that_was_deleted_meanwhile() {
        let mut world = World::new();
        world.put("type: Mesh\nname: pay\n");
        let late = world.plan(&puts(SERVICE)).unwrap();
        let deletion = world.plan(&deletes("Mesh", "pay")).unwrap();
        assert_eq!(world.write(deletion).refusal, None);
        assert!(world.write(late).refusal.is_some());
        assert!(world.names("MeshService").is_empty());
        // Nor into one of the same name that was made since.
        world.put("type: Mesh\nname: pay\n");
        let late = world.plan(&puts(SERVICE)).unwrap();
        let deletion = world.plan(&deletes("Mesh", "pay")).unwrap();
        world.write(deletion);
        world.put("type: Mesh\nname: pay\n");
        assert!(world.write(late).refusal.is_some());
    }

    #[test]
    fn of_two_who_create_a_mesh_at_once_one_gives_it_its_keys() {
        let mut world = World::new();
        let mesh = puts("type: Mesh\nname: pay\n");
        let (one, other) = (world.plan(&mesh).unwrap(), world.plan(&mesh).unwrap());
        assert_eq!(world.write(one).refusal, None);
        assert!(world.write(other).refusal.is_some());
        // Planned anew, it changes nothing.
        let again = world.plan(&mesh).unwrap();
        let revision = world.image.revision();
        assert_eq!(world.write(again).revision, revision);
    }

    #[test]
    fn a_mesh_that_leaves_a_zone_leaves_nothing_of_the_zone_behind() {
        let mut world = World::new();
        world.put(
            "type: Mesh\nname: pay\n---\ntype: Zone\nname: east\n---\ntype: Zone\nname: west\n",
        );
        let mut operations = Vec::new();
        for zone in ["east", "west"] {
            let key = ResourceKey::in_zone("MeshService", "pay", zone, zone);
            operations.push(put_operation(key, b"{}".to_vec(), None));
        }
        world.write(Plan {
            operations,
            ..Plan::default()
        });
        world.put("type: Mesh\nname: pay\nzones: [west]\n");
        assert_eq!(world.names("MeshService"), ["west"]);
    }

    #[test]
    fn every_reason_is_given_at_once() {
        let mut world = World::new();
        world.put("type: Mesh\nname: pay\n");
        let mut asked = puts(&format!(
            "{SERVICE}---\n{SERVICE}---\n{}---\ntype: Secret\nmesh: pay\nname: s\ndata: AAAA\n",
            SERVICE.replace("pay", "nowhere")
        ));
        asked.delete = deletes("Token", "t").delete;
        let Err(PlanError::Invalid(violations)) = world.plan(&asked) else {
            panic!("accepted")
        };
        let words = ["twice", "meshctl token", "\"nowhere\""];
        assert_eq!(violations.len(), words.len(), "{violations:?}");
        for (violation, words) in violations.iter().zip(words) {
            assert!(violation.message.contains(words), "{violation}");
        }
    }

    #[test]
    fn deleting_and_filling_a_mesh_at_once_is_refused() {
        let mut world = World::new();
        world.put("type: Mesh\nname: pay\n");
        let mut asked = puts(SERVICE);
        asked.delete = deletes("Mesh", "pay").delete;
        assert!(matches!(world.plan(&asked), Err(PlanError::Invalid(_))));
    }

    #[test]
    fn placing_a_mesh_in_a_zone_that_does_not_exist_is_said() {
        let world = World::new();
        let plan = world
            .plan(&puts("type: Mesh\nname: pay\nzones: [est]\n"))
            .unwrap();
        assert!(plan.warnings[0].contains("est"), "{:?}", plan.warnings);
    }
}
