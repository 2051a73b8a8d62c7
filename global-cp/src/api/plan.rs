//! What a batch would change in what proxies do: the zones' own compilers say so. Nothing is written.

use std::collections::{BTreeMap, BTreeSet};

use axum::{Json, extract::State, http::HeaderMap};
use mesh_model::{
    Mesh, Resource, Zone,
    api::{Condition, Key, Plan, Unanswered, ZonePlan},
};
use mesh_proto::zone::{PlanChanges, ResourceKey, ResourceRecord, query::What};

use super::{
    batch,
    caller::{Body, Caller, NoParams},
    diff,
    observed::SELECTS_NOTHING,
    problem::Problem,
    query,
    status::known_zones,
    zones::{self, Question},
};
use crate::{
    app::App,
    foretell::FutureChange,
    state::Stored,
    writes,
    zone_sync::{rollout::KnownZone, scope::Placement},
};

/// `POST /v1/plan`: the body is that of `/v1/batch`.
pub async fn plan(
    State(app): State<App>,
    caller: Caller,
    _: NoParams,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Plan>, Problem> {
    query::no_precondition(&headers)?;
    let asked = batch::read(&app, &caller, body).await?;
    batch::authorize_all(&app, &caller, &asked)?;
    let image = app.image();
    let foretold = writes::foretell(&app, &caller.actor, &image, asked).await?;
    let zones = known_zones(&image);
    let concerned: Vec<(&KnownZone, PlanChanges)> = zones
        .iter()
        .filter(|zone| zone.enabled && zone.joined)
        .filter_map(|zone| Some((zone, changes_of(zone, &foretold.changes)?)))
        .collect();
    // What a zone says is believed only of meshes that the changes can concern.
    let meshes: Vec<BTreeSet<&str>> = concerned
        .iter()
        .map(|(zone, changes)| meshes_of(zone, changes))
        .collect();
    let questions = concerned
        .iter()
        .map(|(zone, changes)| Question {
            zone: zone.name.clone(),
            what: What::PlanChanges(changes.clone()),
        })
        .collect();
    let mut plans = Vec::new();
    let mut unanswered: Vec<Unanswered> = Vec::new();
    let answers = zones::ask_each::<ZonePlan>(&app, questions).await;
    for ((question, answer), meshes) in answers.into_iter().zip(meshes) {
        match answer {
            Ok(plan) => plans.push(trimmed(plan, question.zone, &meshes)),
            Err(silent) => unanswered.push(silent.into()),
        }
    }
    drop_what_is_selected_elsewhere(&mut plans);
    Ok(Json(Plan {
        diff: diff::shown(&image, foretold),
        zones: plans,
        unanswered,
    }))
}

/// A policy that selects nothing in one zone and something in another has an effect: that is not worth a condition.
fn drop_what_is_selected_elsewhere(plans: &mut [ZonePlan]) {
    let is_about = |condition: &Condition| condition.reason == SELECTS_NOTHING;
    let mut zones_without = BTreeMap::<Key, usize>::new();
    for condition in plans.iter().flat_map(|plan| &plan.conditions) {
        if is_about(condition) {
            *zones_without.entry(condition.key.clone()).or_default() += 1;
        }
    }
    let zones = plans.len();
    for plan in plans {
        plan.conditions
            .retain(|condition| !is_about(condition) || zones_without[&condition.key] == zones);
    }
}

/// What of `changes` the zone would be told. `None`: nothing.
fn changes_of(zone: &KnownZone, changes: &[FutureChange]) -> Option<PlanChanges> {
    let mut placed = zone.meshes.clone();
    for change in changes {
        match (change.key.kind.as_str(), &change.after) {
            ("Mesh", Some(after)) => {
                if read::<Mesh>(after).is_some_and(|mesh| mesh.runs_in(&zone.name)) {
                    placed.insert(change.key.name.clone());
                } else {
                    placed.remove(&change.key.name);
                }
            }
            ("Mesh", None) => {
                placed.remove(&change.key.name);
            }
            // A zone that is deleted or disabled is cut off; its dataplanes run on with what they have.
            ("Zone", after) if change.key.name == zone.name => {
                let enabled = after.as_ref().and_then(read::<Zone>);
                if !enabled.is_some_and(|zone| zone.enabled) {
                    return None;
                }
            }
            _ => {}
        }
    }
    let after = Placement {
        zone: zone.name.clone(),
        meshes: placed,
    };
    let before = Placement {
        zone: zone.name.clone(),
        meshes: zone.meshes.clone(),
    };
    let mut told = PlanChanges::default();
    for change in changes
        .iter()
        .filter(|change| change.key.kind != "TokenIssuer")
    {
        let (was, is) = (before.scope_of(&change.key), after.scope_of(&change.key));
        match &change.after {
            Some(stored) if is.is_some() => told.put.push(ResourceRecord {
                key: Some(change.key.clone()),
                json: stored.json.clone(),
                revision: stored.modified_revision,
                modified_ms: stored.modified_ms,
                created_revision: stored.created_revision,
            }),
            _ if was.is_some() => told.delete.push(change.key.clone()),
            _ => {}
        }
    }
    (told != PlanChanges::default()).then_some(told)
}

fn read<K: mesh_model::Kind>(stored: &Stored) -> Option<K> {
    Resource::from_json(&stored.json).ok()?.get::<K>().cloned()
}

/// The meshes that the changes a zone is told can concern there: all, where one is outside any mesh.
fn meshes_of<'a>(zone: &'a KnownZone, changes: &'a PlanChanges) -> BTreeSet<&'a str> {
    let put = changes.put.iter().filter_map(|record| record.key.as_ref());
    let keys: Vec<&ResourceKey> = put.chain(&changes.delete).collect();
    if keys
        .iter()
        .any(|key| key.mesh.is_empty() && key.kind != "Mesh")
    {
        return zone.meshes.iter().map(String::as_str).collect();
    }
    keys.into_iter()
        .map(|key| {
            if key.kind == "Mesh" {
                &key.name
            } else {
                &key.mesh
            }
        })
        .map(String::as_str)
        .collect()
}

fn trimmed(plan: ZonePlan, zone: String, meshes: &BTreeSet<&str>) -> ZonePlan {
    let condition = |condition: Condition| Condition {
        zone: zone.clone(),
        ..condition
    };
    ZonePlan {
        changes: plan
            .changes
            .into_iter()
            .filter(|change| meshes.contains(change.mesh.as_str()))
            .collect(),
        conditions: plan
            .conditions
            .into_iter()
            .filter(|condition| {
                condition.key.mesh.is_empty() || meshes.contains(condition.key.mesh.as_str())
            })
            .map(condition)
            .collect(),
        dataplanes: plan.dataplanes,
        affected: plan.affected,
        zone,
    }
}
