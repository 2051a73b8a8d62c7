//! What is observed of a resource, beside what is stored of it: conditions, and whether the zone that owns it still says
//! so. Shown as `status` when a resource is read.
//!
//! None of it is replicated: zones say it on their streams, and each node asks the others for what their zones say. It
//! may be a moment old, [`FRESH`] at most where every node answers.

use std::{
    collections::HashMap,
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

use super::status::known_zones;
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
/// Dataplanes named in a condition.
const NAMED_MAX: usize = 3;

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
    connected: Connected,
    zones: Vec<KnownZone>,
    newest: u64,
    now_ms: u64,
    /// By mesh, and within it by resource; filled as meshes are asked for.
    conditions: HashMap<String, HashMap<Key, Vec<Condition>>>,
}

impl Observed {
    /// What is observed now, of what `image` holds.
    pub async fn now(app: &App, image: &Image) -> Self {
        Self {
            connected: app.lookout.look(app).await,
            zones: known_zones(image),
            newest: image.revision(),
            now_ms: clock::now_seconds().saturating_mul(1000),
            conditions: HashMap::new(),
        }
    }

    /// Puts the status into the view of a resource, where there is something to say.
    pub fn add_status(&mut self, view: &mut Value, stored: &Stored) {
        let mut status = serde_json::Map::new();
        let conditions = self.conditions_of(stored);
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

    /// What is to be said about a resource, by the zones and from what they report.
    pub fn conditions_of(&mut self, stored: &Stored) -> Vec<Condition> {
        let mesh = stored.key.mesh.clone();
        if !self.conditions.contains_key(&mesh) {
            let said = self.said_of(&mesh);
            self.conditions.insert(mesh.clone(), said);
        }
        let key = Key::from(stored.key.clone());
        let conditions = self.conditions[&mesh]
            .get(&key)
            .cloned()
            .unwrap_or_default();
        let mut conditions = selects_nothing_anywhere(conditions, self.speakers(&mesh).count());
        conditions.extend(self.refused_by_dataplanes(stored));
        conditions.sort();
        conditions.dedup();
        conditions.truncate(CONDITIONS_MAX);
        conditions
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

    /// What zones say about resources of `mesh`. About another one, none is believed.
    fn said_of(&self, mesh: &str) -> HashMap<Key, Vec<Condition>> {
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
                    if of_one.len() < CONDITIONS_MAX {
                        of_one.push(condition);
                    }
                }
            }
        }
        said
    }

    /// Says of a resource that it was among those that changed just before dataplanes began to refuse.
    fn refused_by_dataplanes(&self, stored: &Stored) -> Vec<Condition> {
        let key = &stored.key;
        if key.mesh.is_empty() || !key.zone.is_empty() || mesh_model::is_secret(&key.kind) {
            return Vec::new();
        }
        let suspected = |stream: &ConnectedZone| {
            stream.refused_changes.iter().any(|range| {
                range.mesh == key.mesh
                    && (range.after + 1..=range.upto).contains(&stored.modified_revision)
            })
        };
        self.speakers(&key.mesh)
            .filter(|(stream, _)| suspected(stream))
            .filter_map(|(stream, status)| {
                let refused = &status?.refused;
                let first = refused.first()?;
                let mut names: Vec<&str> = refused
                    .iter()
                    .map(|refusal| refusal.dataplane.as_str())
                    .collect();
                names.dedup();
                let more = names.len().saturating_sub(NAMED_MAX);
                names.truncate(NAMED_MAX);
                let more = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                Some(Condition {
                    key: key.clone().into(),
                    kind: "Accepted".to_owned(),
                    status: false,
                    reason: "RefusedByDataplane".to_owned(),
                    message: format!(
                        "{}{more} refused what was made of it and what changed with it ({}): {}",
                        names.join(", "),
                        first.document,
                        first.reason
                    ),
                    field: String::new(),
                    zone: stream.zone.clone(),
                })
            })
            .collect()
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
