//! What changes would change: the same compiler on the same resources with the changes laid over them, compared with what
//! the dataplanes are to run now.
//!
//! Pure, on a snapshot, so that it can take its time on a thread of its own.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::{
    Kind as _, Mesh as MeshKind,
    api::{Condition, DataplanePlan, SettingChange, ZonePlan},
};
use mesh_proto::{
    names::{MeshName, ZoneName},
    zone::{Changes, PlanChanges, ResourceKey, ResourceRecord},
};

use crate::{
    compiler::{self, Compiler},
    conditions, describe,
    mesh::{Snapshot, Surroundings},
    scope::{Scope, Taken},
    tracker::Documents,
    view::{MeshSources, MeshView},
};

/// Dataplanes that a plan names at most.
const DATAPLANES_MAX: usize = 1_000;
/// Settings that it names of one dataplane at most.
const SETTINGS_OF_ONE_MAX: usize = 100;
/// Settings that it names of all together at most, so that an answer stays some megabytes.
const SETTINGS_MAX: usize = 20_000;

/// What a plan is made from.
#[derive(Debug)]
pub struct PlanOf {
    /// This zone.
    pub zone: ZoneName,
    /// What is outside any mesh.
    pub global: Scope,
    /// What that means to meshes.
    pub surroundings: Surroundings,
    /// The meshes that the changes concern.
    pub meshes: BTreeMap<MeshName, Snapshot>,
    /// The changes.
    pub changes: PlanChanges,
}

/// Whether changes can concern a mesh: they are of its own resources, or of what is outside any mesh.
#[must_use]
pub fn concerns(changes: &PlanChanges, mesh: &MeshName) -> bool {
    keys(changes).any(|key| match key.mesh.as_str() {
        "" if key.kind == MeshKind::DESCRIPTOR.name => key.name == mesh.as_str(),
        "" => true,
        of => of == mesh.as_str(),
    })
}

fn keys(changes: &PlanChanges) -> impl Iterator<Item = &ResourceKey> {
    let put = changes.put.iter().filter_map(|record| record.key.as_ref());
    put.chain(&changes.delete)
}

/// What the changes would change in this zone.
#[must_use]
pub fn plan(of: &PlanOf) -> ZonePlan {
    let mut plan = ZonePlan {
        zone: of.zone.to_string(),
        ..ZonePlan::default()
    };
    let mut global = of.global.clone();
    let surroundings = match overlay(&mut global, "", &of.changes) {
        true => Surroundings::of(&global),
        false => of.surroundings.clone(),
    };
    let mut left = SETTINGS_MAX;
    for (name, mesh) in &of.meshes {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        plan.dataplanes += count(mesh.dataplanes.len());
        let changed = if is_gone(name, of) {
            all_gone(mesh)
        } else {
            changed(mesh, &surroundings, of, &mut plan.conditions)
        };
        plan.affected += count(changed.len());
        for (dataplane, documents) in changed {
            if plan.changes.len() == DATAPLANES_MAX {
                break;
            }
            let found = describe_change(name, &dataplane, mesh, &documents, left);
            left -= found.settings.len();
            plan.changes.push(found);
        }
    }
    plan
}

/// Lays changes over a scope; false where none is of it.
fn overlay(scope: &mut Scope, mesh: &str, changes: &PlanChanges) -> bool {
    let is_of = |key: &ResourceKey| key.mesh == mesh;
    let put: Vec<ResourceRecord> = changes
        .put
        .iter()
        .filter(|record| record.key.as_ref().is_some_and(is_of))
        .cloned()
        .collect();
    let delete: Vec<_> = changes
        .delete
        .iter()
        .filter(|k| is_of(k))
        .cloned()
        .collect();
    if put.is_empty() && delete.is_empty() {
        return false;
    }
    scope.begin_stream();
    let cursor = scope.cursor().unwrap_or(0);
    let taken = scope.take(Changes {
        mesh: mesh.to_owned(),
        from: cursor,
        to: cursor,
        history_id: scope.history_id().to_owned(),
        last: true,
        put,
        delete,
        ..Changes::default()
    });
    matches!(taken, Taken::Applied(_))
}

/// The mesh would no longer exist, or no longer be placed here.
fn is_gone(mesh: &MeshName, of: &PlanOf) -> bool {
    let is_it = |key: &ResourceKey| {
        key.mesh.is_empty() && key.kind == MeshKind::DESCRIPTOR.name && key.name == mesh.as_str()
    };
    let put = of
        .changes
        .put
        .iter()
        .find(|record| record.key.as_ref().is_some_and(is_it));
    match put {
        Some(record) => mesh_model::Resource::from_json(&record.json).is_ok_and(|resource| {
            resource
                .get::<MeshKind>()
                .is_some_and(|placed| !placed.runs_in(of.zone.as_str()))
        }),
        None => of.changes.delete.iter().any(is_it),
    }
}

/// Dataplanes whose documents would be others, and what these would be.
type Changed = BTreeMap<String, Documents>;

fn all_gone(mesh: &Snapshot) -> Changed {
    let names = mesh.dataplanes.keys();
    names.map(|name| (name.clone(), Documents::new())).collect()
}

fn changed(
    mesh: &Snapshot,
    surroundings: &Surroundings,
    of: &PlanOf,
    found: &mut Vec<Condition>,
) -> Changed {
    let mut scope = mesh.scope.clone();
    overlay(&mut scope, mesh.mesh.as_str(), &of.changes);
    let before = view(mesh, &mesh.scope, &of.surroundings);
    let after = view(mesh, &scope, surroundings);
    let conditions = |scope, view: &MeshView| -> BTreeSet<Condition> {
        conditions::of_mesh(scope, view, &mesh.dataplanes)
            .into_iter()
            .collect()
    };
    let known = conditions(&mesh.scope, &before);
    let come = conditions(&scope, &after)
        .into_iter()
        .filter(|c| !known.contains(c));
    let left = conditions::MAX.saturating_sub(found.len());
    found.extend(come.take(left));

    let mut compiler = Compiler::new(&after);
    let mut changed = Changed::new();
    for (name, dataplane) in &mesh.dataplanes {
        let features = mesh.features.get(name).map_or(&[][..], Vec::as_slice);
        let compiled = compiler.compile(dataplane, &BTreeSet::new(), features);
        let wanted = mesh.wanted.get(name);
        if wanted.is_none_or(|wanted| differ(wanted, &compiled.documents)) {
            changed.insert(name.clone(), compiled.documents);
        }
    }
    changed
}

fn differ(a: &Documents, b: &Documents) -> bool {
    a.len() != b.len()
        || a.iter()
            .zip(b)
            .any(|((a_name, a), (b_name, b))| a_name != b_name || a.version != b.version)
}

fn view(mesh: &Snapshot, scope: &Scope, surroundings: &Surroundings) -> MeshView {
    let resources: Vec<_> = scope.resources().cloned().collect();
    let unreadable = scope.unreadable_texts();
    MeshView::new(MeshSources {
        mesh: &mesh.mesh,
        zone: &mesh.zone,
        resources: &resources,
        unreadable: &unreadable,
        dataplanes: &mesh.dataplanes,
        closed_zones: &surroundings.closed_zones,
        own_anchors: &mesh.own_anchors,
    })
}

fn describe_change(
    mesh: &MeshName,
    name: &str,
    snapshot: &Snapshot,
    after: &Documents,
    left: usize,
) -> DataplanePlan {
    let none = Documents::new();
    let before = snapshot.wanted.get(name).unwrap_or(&none);
    let settings = if after.is_empty() {
        vec![SettingChange {
            of: format!("mesh {mesh}"),
            setting: "placement".to_owned(),
            before: Some(format!("zone {}", snapshot.zone)),
            after: None,
        }]
    } else {
        describe::changes(before, after, left.min(SETTINGS_OF_ONE_MAX))
    };
    let new: Documents = after
        .iter()
        .filter(|(name, d)| before.get(*name).is_none_or(|b| b.version != d.version))
        .map(|(name, document)| (name.clone(), document.clone()))
        .collect();
    let features = snapshot.features.get(name);
    let missing = compiler::missing_features(&new, features.map_or(&[], Vec::as_slice));
    DataplanePlan {
        mesh: mesh.to_string(),
        name: name.to_owned(),
        settings,
        missing_features: missing.into_iter().collect(),
    }
}
