//! How things are: the cluster, the zones, how far a revision has come, schemas.

use std::{collections::BTreeSet, time::Duration};

use axum::{Json, extract::State, http::Uri};
use mesh_model::{
    Mesh,
    api::{GlobalStatus, NodeStatus, Rollout, ZoneConnection},
};
use mesh_proto::{raft::ConnectedZone, zone::ResourceKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    caller::{Caller, Segments},
    problem::Problem,
    resources::kind,
};
use crate::{
    app::App,
    authorize::{Action, Actor, authorize},
    facts,
    state::image::Image,
    zone_sync::rollout::{self, KnownZone},
};

/// Longest wait of a roll-out's long poll.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Time between two looks during a long poll.
const WAIT_STEP: Duration = Duration::from_millis(50);

/// What runs here.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// Of the answering node.
    version: &'static str,
    /// Chosen at the first start of the first node.
    cluster_id: String,
}

/// `GET /v1/version`
pub async fn version(State(app): State<App>, caller: Caller) -> Result<Json<Version>, Problem> {
    caller.may(&app, Action::Describe, "", "")?;
    Ok(Json(Version {
        version: mesh_proto::VERSION,
        cluster_id: app.cluster.cluster_id().to_owned(),
    }))
}

/// `GET /v1/status`
pub async fn status(State(app): State<App>, caller: Caller) -> Result<Json<GlobalStatus>, Problem> {
    caller.may(&app, Action::ReadInstallation, "", "")?;
    let streams = streams(&app).await;
    let status = app.cluster.status();
    let image = app.image();
    let nodes = status.members.into_iter().map(|member| NodeStatus {
        role: match (status.leader == Some(member.id), member.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        }
        .to_owned(),
        id: member.id,
        api_address: member.addresses.api,
        zone_address: member.addresses.zone,
        raft_address: member.addresses.raft,
        matched: member.matched,
        reachable: member.reachable,
    });
    Ok(Json(GlobalStatus {
        cluster_id: app.cluster.cluster_id().to_owned(),
        history_id: image.history_id(),
        revision: image.revision(),
        node_id: app.cluster.node_id(),
        leader: status.leader,
        term: status.term,
        nodes: nodes.collect(),
        zones: known_zones(&image)
            .iter()
            .map(|zone| connection(&caller.actor, zone, &streams, &image))
            .collect(),
    }))
}

/// `GET /v1/zones/{zone}/status`
pub async fn zone_status(
    State(app): State<App>,
    caller: Caller,
    Segments(name): Segments<String>,
) -> Result<Json<ZoneConnection>, Problem> {
    caller.may(&app, Action::Read, "", "Zone")?;
    let streams = streams(&app).await;
    let image = app.image();
    let zone = known_zones(&image)
        .into_iter()
        .find(|zone| zone.name == name)
        .ok_or_else(|| Problem::not_found(format!("there is no zone {name:?}")))?;
    Ok(Json(connection(&caller.actor, &zone, &streams, &image)))
}

fn connection(
    actor: &Actor,
    zone: &KnownZone,
    streams: &[ConnectedZone],
    image: &Image,
) -> ZoneConnection {
    rollout::connection(zone, streams, image.revision(), |mesh| {
        authorize(actor, Action::Read, mesh, "Dataplane").is_ok()
    })
}

async fn streams(app: &App) -> Vec<ConnectedZone> {
    let statuses = app.cluster.zone_statuses().await;
    statuses.zones.into_iter().map(|(_, zone)| zone).collect()
}

/// Every zone, with the meshes placed in it. Asked for at every change by every stream, so only what is needed is read.
#[must_use]
pub fn known_zones(image: &Image) -> Vec<KnownZone> {
    let meshes: Vec<(String, Mesh)> = image
        .list("Mesh", Some(""), None, usize::MAX)
        .into_iter()
        .filter_map(|stored| Some((stored.key.name, read::<PlacedMesh>(&stored.json)?.into())))
        .collect();
    image
        .list("Zone", Some(""), None, usize::MAX)
        .into_iter()
        .filter_map(|stored| {
            let zone: EnabledZone = read(&stored.json)?;
            let name = stored.key.name;
            Some(KnownZone {
                enabled: zone.enabled,
                joined: image
                    .system(&facts::zone_report_name(&name))
                    .is_some_and(|position| !position.is_empty()),
                meshes: meshes
                    .iter()
                    .filter(|(_, mesh)| mesh.runs_in(&name))
                    .map(|(mesh, _)| mesh.clone())
                    .collect(),
                name,
            })
        })
        .collect()
}

#[derive(Deserialize)]
struct PlacedMesh {
    #[serde(default)]
    zones: Vec<String>,
}

impl From<PlacedMesh> for Mesh {
    fn from(placed: PlacedMesh) -> Self {
        Self {
            zones: placed.zones,
            ..Self::default()
        }
    }
}

#[derive(Deserialize)]
struct EnabledZone {
    enabled: bool,
}

fn read<T: serde::de::DeserializeOwned>(json: &[u8]) -> Option<T> {
    serde_json::from_slice(json).ok()
}

/// `GET /v1/rollout/{revision}?mesh=a&mesh=b&wait=SECONDS`
pub async fn rollout(
    State(app): State<App>,
    caller: Caller,
    Segments(revision): Segments<u64>,
    uri: Uri,
) -> Result<Json<Rollout>, Problem> {
    let (meshes, wait) = rollout_query(uri.query().unwrap_or_default())?;
    for mesh in &meshes {
        caller.may(&app, Action::Read, mesh, "Dataplane")?;
    }
    let newest = app.state().revision();
    if revision > newest {
        return Err(Problem::bad_request(format!(
            "there is no revision {revision} yet; the newest is {newest}"
        )));
    }
    let may_see = |mesh: &str| authorize(&caller.actor, Action::Read, mesh, "Dataplane").is_ok();
    let concerned = |mesh: &str| may_see(mesh) && (meshes.is_empty() || meshes.contains(mesh));
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        let streams = streams(&app).await;
        let image = app.image();
        let zones = known_zones(&image);
        let rollout = rollout::rollout(revision, image.revision(), &zones, &streams, concerned);
        if rollout.complete || tokio::time::Instant::now() >= deadline {
            return Ok(Json(rollout));
        }
        tokio::select! {
            () = tokio::time::sleep(WAIT_STEP) => {}
            () = app.stop.cancelled() => return Ok(Json(rollout)),
        }
    }
}

/// Parameters of a roll-out, as they are described.
#[derive(JsonSchema)]
#[allow(dead_code)] // a description
pub struct RolloutQuery {
    /// Only of these meshes; may be given several times.
    mesh: Option<Vec<String>>,
    /// Seconds to wait for it to be complete.
    #[schemars(range(min = 0, max = 30))]
    wait: Option<f64>,
    /// How new what is read must be.
    consistency: Option<super::query::Consistency>,
}

/// `mesh` may be given several times, which is why this is read by hand. Names of meshes need no decoding.
fn rollout_query(query: &str) -> Result<(BTreeSet<String>, Duration), Problem> {
    let mut meshes = BTreeSet::new();
    let mut wait = Duration::ZERO;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("mesh", mesh) if mesh_proto::names::is_label(mesh) => {
                meshes.insert(mesh.to_owned());
            }
            ("mesh", mesh) => {
                return Err(Problem::bad_request(format!(
                    "mesh: {mesh:?} can not name a mesh"
                )));
            }
            ("wait", text) => {
                let seconds: f64 = text
                    .trim_end_matches('s')
                    .parse()
                    .ok()
                    .filter(|seconds| *seconds >= 0.0 && *seconds <= WAIT_MAX.as_secs_f64())
                    .ok_or_else(|| {
                        Problem::bad_request(format!(
                            "wait: must be seconds, at most {}",
                            WAIT_MAX.as_secs()
                        ))
                    })?;
                wait = Duration::from_secs_f64(seconds);
            }
            ("consistency", _) => {}
            (other, _) => {
                return Err(Problem::bad_request(format!(
                    "query: unknown parameter {other:?}"
                )));
            }
        }
    }
    Ok((meshes, wait))
}

/// `GET /v1/schema/{type}`
pub async fn schema(
    State(app): State<App>,
    caller: Caller,
    Segments(word): Segments<String>,
) -> Result<Json<Value>, Problem> {
    caller.may(&app, Action::Describe, "", "")?;
    Ok(Json(mesh_model::json_schema(kind(&word)?)))
}

/// Whether a mesh exists, for handlers that look into one.
#[must_use]
pub fn mesh_exists(image: &Image, mesh: &str) -> bool {
    image.get(&ResourceKey::global("Mesh", "", mesh)).is_some()
}
