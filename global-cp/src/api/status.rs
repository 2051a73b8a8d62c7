//! How things are: the cluster, the zones, how far a revision has come, the audit, schemas.

use std::{collections::BTreeSet, time::Duration};

use axum::{Json, extract::State, http::Uri};
use mesh_model::{
    Mesh,
    api::{GlobalStatus, Key, NodeStatus, Rollout, ZoneConnection},
};
use mesh_proto::{raft::ConnectedZone, zone::ResourceKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    caller::{Caller, Params, Segments},
    problem::Problem,
    resources::kind,
};
use crate::{
    app::App,
    authorize::{Action, Actor, authorize, mesh_of},
    clock, facts,
    state::{AuditRecord, image::Image},
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

/// Parameters of the audit.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Most records.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
    #[serde(rename = "consistency")]
    #[schemars(with = "Option<super::query::Consistency>")]
    _consistency: Option<String>,
}

/// Who did what, and who was refused what.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Audit {
    /// Newest first.
    items: Vec<AuditItem>,
}

/// One record of the audit.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditItem {
    /// RFC 3339.
    time: String,
    /// Who.
    actor: String,
    /// From where, as far as known.
    address: String,
    /// What was done or tried, in words.
    summary: String,
    /// `done`, `refused` or `read`.
    outcome: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    /// Revision of the change, for `done`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    changed: Vec<Key>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    request_id: String,
}

/// `GET /v1/audit`: changes made anywhere; refusals and reads of secrets of the answering node. Someone bound to meshes
/// sees what concerns these alone.
pub async fn audit(
    State(app): State<App>,
    caller: Caller,
    Params(params): Params<AuditQuery>,
) -> Result<Json<Audit>, Problem> {
    let limit = params.limit.unwrap_or(100);
    if !(1..=1000).contains(&limit) {
        return Err(Problem::bad_request("limit: must be between 1 and 1000"));
    }
    let may = |mesh: &str| authorize(&caller.actor, Action::ReadAudit, mesh, "").is_ok();
    let sees = |meshes: &[&str]| match meshes {
        [] => may(""),
        meshes => meshes.iter().all(|mesh| may(mesh)),
    };
    if caller
        .actor
        .meshes_for(Action::ReadAudit, "")
        .is_some_and(|meshes| meshes.is_empty())
    {
        caller.may(&app, Action::ReadAudit, "", "")?;
    }
    let done = app.image().audit(usize::MAX);
    let done = done
        .into_iter()
        .filter(|record| sees(&record.changed.iter().map(mesh_of).collect::<Vec<_>>()))
        .take(limit)
        .map(done_item);
    let attempts = app
        .attempts
        .recent(usize::MAX)
        .into_iter()
        .filter(|attempt| {
            sees(
                &attempt
                    .meshes
                    .iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>(),
            )
        })
        .take(limit)
        .map(|attempt| AuditItem {
            time: attempt.time,
            actor: attempt.actor,
            address: attempt.address,
            summary: attempt.what,
            outcome: attempt.outcome,
            reason: attempt.reason,
            revision: None,
            changed: vec![],
            request_id: String::new(),
        });
    let mut items: Vec<AuditItem> = done.chain(attempts).collect();
    items.sort_by(|a, b| b.time.cmp(&a.time).then(b.revision.cmp(&a.revision)));
    items.truncate(limit);
    Ok(Json(Audit { items }))
}

fn done_item(record: AuditRecord) -> AuditItem {
    AuditItem {
        time: clock::from_ms(record.time_ms),
        actor: record.actor,
        address: record.address,
        summary: record.summary,
        outcome: "done".to_owned(),
        reason: String::new(),
        revision: Some(record.revision),
        changed: record.changed.into_iter().map(Key::from).collect(),
        // Beside the client's own id it holds a fingerprint, which is nobody's business.
        request_id: record
            .request_id
            .rsplit_once('/')
            .map_or(String::new(), |(id, _)| id.to_owned()),
    }
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
