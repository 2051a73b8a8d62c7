//! What is observed of a resource, beside what is stored of it: conditions, and whether the zone that owns it still says
//! so. Shown as `status` when a resource is read.
//!
//! None of it is replicated: zones say it on their streams, and each node asks the others for what their zones say. It
//! may be a moment old, [`FRESH`] at most where every node answers.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_model::api::{Condition, Key};
use mesh_proto::{
    raft::ConnectedZone,
    zone::{self, MeshStatus, ResourceKey},
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{
    conditions::{Conditions, OfMesh},
    status::known_zones,
};
use crate::{
    app::App,
    clock,
    state::{Stored, image::Image},
    zone_sync::rollout::{self, KnownZone},
};

/// For how long what the zones said is not asked for again.
pub const FRESH: Duration = Duration::from_millis(200);
/// How long a read waits for other nodes.
const PATIENCE: Duration = Duration::from_millis(500);
/// Conditions shown of one resource.
const CONDITIONS_MAX: usize = 100;

/// Reason of the condition of a policy that selects no dataplane.
pub(super) const SELECTS_NOTHING: &str = "SelectsNothing";

/// What zones said last, kept for a moment. Clones share it.
#[derive(Clone, Default)]
pub struct Lookout(Arc<Mutex<Option<(Instant, Connected)>>>);

type Connected = Arc<Vec<ConnectedZone>>;

impl Lookout {
    async fn look(&self, app: &App) -> Connected {
        // Whoever comes while the nodes are asked waits for the same answer.
        let mut last = self.0.lock().await;
        if let Some((at, connected)) = &*last
            && at.elapsed() < FRESH
        {
            return connected.clone();
        }
        let statuses = app.cluster.zone_statuses_within(PATIENCE).await;
        let connected: Vec<ConnectedZone> =
            statuses.zones.into_iter().map(|(_, zone)| zone).collect();
        let connected = Arc::new(connected);
        *last = Some((Instant::now(), connected.clone()));
        connected
    }
}

/// What is observed at one moment.
pub struct Observed {
    image: Arc<Image>,
    own: Conditions,
    connected: Connected,
    zones: Vec<KnownZone>,
    newest: u64,
    now_ms: u64,
    /// By mesh, and within it by resource; filled as meshes are asked for.
    conditions: HashMap<String, HashMap<Key, Vec<Condition>>>,
}

impl Observed {
    /// What is observed now, of what `image` holds.
    pub async fn now(app: &App, image: &Arc<Image>) -> Self {
        Self {
            image: image.clone(),
            own: app.conditions.clone(),
            connected: app.lookout.look(app).await,
            zones: known_zones(image),
            newest: image.revision(),
            now_ms: clock::now_seconds().saturating_mul(1000),
            conditions: HashMap::new(),
        }
    }

    /// Puts the status into the view of a resource, where there is something to say.
    pub async fn add_status(&mut self, view: &mut Value, stored: &Stored) {
        let mut status = serde_json::Map::new();
        let conditions = self.conditions_of(&stored.key).await;
        if !conditions.is_empty() {
            status.insert("conditions".to_owned(), json!(conditions));
        }
        if !stored.key.zone.is_empty() {
            status.insert("zone".to_owned(), self.owner(stored));
        }
        if let (Value::Object(fields), false) = (view, status.is_empty()) {
            fields.insert("status".to_owned(), Value::Object(status));
        }
    }

    /// What is to be said about a resource, here and by the zones.
    pub async fn conditions_of(&mut self, key: &ResourceKey) -> Vec<Condition> {
        let mesh = key.mesh.clone();
        if !self.conditions.contains_key(&mesh) {
            let own = if mesh.is_empty() {
                Arc::default()
            } else {
                self.own.of_mesh(&self.image, &mesh).await
            };
            let said = self.said_of(&mesh, &own);
            self.conditions.insert(mesh.clone(), said);
        }
        let found = self.conditions[&mesh].get(&Key::from(key.clone()));
        found.cloned().unwrap_or_default()
    }

    /// How old what a zone says of its own is, and whether the zone still says so.
    fn owner(&self, stored: &Stored) -> Value {
        let name = &stored.key.zone;
        let stream = rollout::stream_of(name, &self.connected);
        let known = self.zones.iter().find(|zone| zone.name == *name);
        let state = known.map_or("unknown", |zone| {
            rollout::zone_state(zone, stream, self.newest)
        });
        json!({
            "name": name,
            "state": state,
            "silentMs": stream.map(|stream| stream.silent_ms),
            "ageSeconds": self.now_ms.saturating_sub(stored.modified_ms) / 1000,
        })
    }

    /// The zones that may speak about a mesh, with what each says of it.
    fn speakers<'a>(
        &'a self,
        mesh: &'a str,
    ) -> impl Iterator<Item = (&'a ConnectedZone, Option<&'a MeshStatus>)> {
        self.zones
            .iter()
            .filter(move |zone| mesh.is_empty() || zone.meshes.contains(mesh))
            .filter_map(|zone| rollout::stream_of(&zone.name, &self.connected))
            .map(move |stream| {
                let meshes = stream.status.iter().flat_map(|status| &status.meshes);
                (
                    stream,
                    meshes.into_iter().find(|status| status.mesh == mesh),
                )
            })
    }

    /// What is said about resources of `mesh`, by this node's `own` judgement and by zones. About another mesh, none is
    /// believed.
    fn said_of(&self, mesh: &str, own: &OfMesh) -> HashMap<Key, Vec<Condition>> {
        let mut said: HashMap<Key, Vec<Condition>> = HashMap::new();
        for (stream, status) in self.speakers(mesh) {
            let reported = status.iter().flat_map(|status| &status.conditions);
            let reported = reported.filter_map(|condition| condition_of(condition, &stream.zone));
            let refused = stream.status.iter().flat_map(|status| &status.refused);
            let refused = refused.filter_map(|refusal| {
                let key = refusal.key.clone()?;
                Some(refused_by_zone(key, &refusal.reason, &stream.zone))
            });
            for condition in reported.chain(refused) {
                if condition.key.mesh == mesh {
                    let of_one = said.entry(condition.key.clone()).or_default();
                    of_one.push(condition);
                }
            }
        }
        for (key, own) in own {
            let of_one = said.entry(key.clone()).or_default();
            of_one.extend(own.iter().cloned());
        }
        let zones = self.speakers(mesh).count();
        for conditions in said.values_mut() {
            *conditions = joined(std::mem::take(conditions), zones);
        }
        said.retain(|_, conditions| !conditions.is_empty());
        said
    }
}

/// A policy that selects nothing in one zone and something in another has an effect: it is said only where all `zones` that
/// may speak say so, and once.
fn selects_nothing_anywhere(conditions: Vec<Condition>, zones: usize) -> Vec<Condition> {
    let (mut nothing, mut conditions): (Vec<_>, Vec<_>) = conditions
        .into_iter()
        .partition(|condition| condition.reason == SELECTS_NOTHING);
    let all = nothing.len() >= zones;
    if let (true, Some(mut condition)) = (all, nothing.pop()) {
        condition.zone.clear();
        conditions.push(condition);
    }
    conditions
}

/// Joins what `zones` zones and this node say about one resource. What this node says is not repeated for each zone that
/// says it too.
fn joined(said: Vec<Condition>, zones: usize) -> Vec<Condition> {
    let mut conditions = selects_nothing_anywhere(said, zones);
    conditions.sort();
    conditions.dedup();
    let said_here = |condition: &Condition| {
        let Condition {
            kind,
            status,
            reason,
            field,
            ..
        } = condition;
        (kind.clone(), *status, reason.clone(), field.clone())
    };
    let own: BTreeSet<_> = conditions
        .iter()
        .filter(|condition| condition.zone.is_empty())
        .map(said_here)
        .collect();
    conditions
        .retain(|condition| condition.zone.is_empty() || !own.contains(&said_here(condition)));
    conditions.truncate(CONDITIONS_MAX);
    conditions
}

fn condition_of(said: &zone::Condition, zone: &str) -> Option<Condition> {
    Some(Condition {
        key: said.key.clone()?.into(),
        kind: said.r#type.clone(),
        status: said.status,
        reason: said.reason.clone(),
        message: said.message.clone(),
        field: said.field.clone(),
        zone: zone.to_owned(),
    })
}

fn refused_by_zone(key: ResourceKey, reason: &str, zone: &str) -> Condition {
    Condition {
        key: key.into(),
        kind: "Accepted".to_owned(),
        status: false,
        reason: "RefusedByZone".to_owned(),
        message: reason.to_owned(),
        field: String::new(),
        zone: zone.to_owned(),
    }
}
