//! Shapes of the REST API's requests and answers, shared by the server and `meshctl`.
//!
//! Field names are camelCase on the wire. Times are RFC 3339, in UTC.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use mesh_proto::http_match;

use crate::violation::Violation;

/// Stands in the schema where a whole resource stands in the value: the document of the API says once what resources
/// look like.
pub struct AnyResource;

impl JsonSchema for AnyResource {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Resource".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        Schema::new_ref("#/components/schemas/Resource".to_owned())
    }
}

/// The same for a resource as it reads back.
pub struct AnyView;

impl JsonSchema for AnyView {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ResourceView".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        Schema::new_ref("#/components/schemas/ResourceView".to_owned())
    }
}

/// An error as `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Stable machine-readable word, such as `invalid`, `unauthorized`, `not-found`, `conflict`, `unavailable`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What was wrong, in one line.
    pub title: String,
    /// HTTP status code.
    pub status: u16,
    /// What to do about it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Every violation in what was sent, for `invalid`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<Violation>,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct List {
    /// Resources as they read back (see [`crate::Resource::to_view`]), ordered by mesh, zone and name.
    #[schemars(with = "Vec<AnyView>")]
    pub items: Vec<Value>,
    /// Revision the page was read at.
    pub revision: u64,
    /// Which history the revision belongs to: a watch that goes on from it says so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub history_id: String,
    /// Give it as `continue` to get the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Several changes as one: all are made, in one revision, or none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Batch {
    /// Resources to put.
    #[serde(default)]
    #[schemars(with = "Vec<AnyResource>")]
    pub put: Vec<Value>,
    /// Resources to delete.
    #[serde(default)]
    pub delete: Vec<Key>,
    /// What must hold for anything of it to happen. Names only resources that the batch puts or deletes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preconditions: Vec<Precondition>,
}

/// The revision that a resource must have now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Precondition {
    /// The resource.
    pub key: Key,
    /// The revision of its last change; 0: it must not exist.
    pub revision: u64,
}

/// Names a resource.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Key {
    /// The kind's name, such as `MeshService`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The mesh; "" for kinds outside any mesh.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mesh: String,
    /// The zone that owns the resource; "" for what administrators wrote.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// The name.
    pub name: String,
}

impl From<mesh_proto::zone::ResourceKey> for Key {
    fn from(key: mesh_proto::zone::ResourceKey) -> Self {
        let mesh_proto::zone::ResourceKey {
            kind,
            mesh,
            zone,
            name,
        } = key;
        Self {
            kind,
            mesh,
            zone,
            name,
        }
    }
}

impl From<Key> for mesh_proto::zone::ResourceKey {
    fn from(key: Key) -> Self {
        Self::in_zone(&key.kind, &key.mesh, &key.zone, &key.name)
    }
}

/// The answer to every write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    /// Revision of the change; the current one where nothing changed or `dry_run` was asked for.
    pub revision: u64,
    /// Nothing was written.
    #[serde(default)]
    pub dry_run: bool,
    /// One for each change, in order.
    pub results: Vec<WriteResult>,
    /// What is accepted but will not do what its author may expect, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What is to be said about what was written, where `conditions=true` was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// What became of one change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WriteResult {
    /// The resource.
    pub key: Key,
    /// What happened.
    pub outcome: WriteOutcome,
}

/// What became of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum WriteOutcome {
    Created,
    Updated,
    Unchanged,
    Deleted,
    NotFound,
}

/// One event of a watch, the `data` of a server-sent event whose `id` is the revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WatchEvent {
    /// Revision of the change.
    pub revision: u64,
    /// The resource.
    pub key: Key,
    /// The resource as it reads back; absent where it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<AnyView>")]
    pub resource: Option<Value>,
}

/// One change in a resource's history, newest first in lists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryItem {
    /// Revision of the change.
    pub revision: u64,
    /// When.
    pub time: String,
    /// Who, as `user/<name>/<token id>`, `token/<id>`, `zone/<name>` or `system`.
    pub actor: String,
    /// The resource after the change; absent where it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<AnyView>")]
    pub resource: Option<Value>,
}

/// A resource's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// Newest first.
    pub items: Vec<HistoryItem>,
    /// Older changes existed and are forgotten (the history is bounded).
    pub truncated: bool,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum TokenUse {
    /// People and automation, at the REST API.
    Api,
    /// A sidecar, at its zone.
    Dataplane,
    /// A zone's ingress, at its zone.
    Ingress,
    /// A zone that joins; single use.
    ZoneJoin,
    /// A global node that joins; single use.
    NodeJoin,
}

/// Asks for a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateToken {
    /// What it is for.
    #[serde(rename = "use")]
    pub usage: TokenUse,
    /// Seconds until it expires; absent: 1 h for joins, 30 days for dataplanes and ingresses, 90 days for the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_for_seconds: Option<u64>,
    /// Human words, shown in lists.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Dataplane tokens: the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    /// Dataplane tokens: the only name the dataplane may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Dataplane tokens: labels the dataplane must have, with these values.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Zone-join and ingress tokens: the zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// API tokens: the user it belongs to, whose `RoleBinding`s say what it may do. Instead of `role`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// API tokens: the role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// API tokens: the meshes the role is bound to; empty with role `admin` or `viewer`: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub meshes: Vec<String>,
}

/// What the holder of an API token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Everything.
    Admin,
    /// Everything inside the meshes it is bound to.
    MeshAdmin,
    /// Read (not secrets) what it is bound to.
    Viewer,
}

/// A token as lists show it: never its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenInfo {
    /// Public id.
    pub id: String,
    /// What was asked for.
    #[serde(flatten)]
    pub asked: TokenScope,
    /// When it was made.
    pub created: String,
    /// When it ends.
    pub expires: String,
    /// `active`, `expired`, `used` or `revoked`.
    pub state: String,
}

/// The lasting part of [`CreateToken`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct TokenScope {
    #[serde(rename = "use")]
    pub usage: TokenUse,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub labels: std::collections::BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub meshes: Vec<String>,
}

/// A new token: the only time its text is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatedToken {
    /// The text to hand over.
    pub token: String,
    /// What lists will show.
    pub info: TokenInfo,
}

/// State of the global control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GlobalStatus {
    /// Chosen at the first start of the first node.
    pub cluster_id: String,
    /// Which history revisions belong to.
    pub history_id: String,
    /// Newest revision the answering node has applied.
    pub revision: u64,
    /// Id of the answering node.
    pub node_id: u64,
    /// Id of the leader, where there is one.
    pub leader: Option<u64>,
    /// Raft term.
    pub term: u64,
    /// All members.
    pub nodes: Vec<NodeStatus>,
    /// All zones.
    pub zones: Vec<ZoneConnection>,
}

/// One member of the global control plane, as the answering node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Raft node id.
    pub id: u64,
    /// `leader`, `voter` or `learner`.
    pub role: String,
    /// Address of its API.
    pub api_address: String,
    /// Where zones and further nodes join it.
    #[serde(default)]
    pub zone_address: String,
    /// Address of its Raft port.
    pub raft_address: String,
    /// Last log index it has, as far as the leader knows (only the leader does).
    pub matched: Option<u64>,
    /// Whether it answers.
    pub reachable: bool,
}

/// How a zone is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZoneConnection {
    /// The zone.
    pub name: String,
    /// `online`: has acknowledged the newest revision. `behind`: connected and lagging. `stale`: nothing heard for
    /// 30 s. `offline`: not connected. `unjoined`: declared, and never heard of since. `disabled`.
    pub state: String,
    /// Version of its control plane.
    pub version: String,
    /// Newest revision it has acknowledged.
    pub acknowledged_revision: u64,
    /// Milliseconds since its stream was last heard.
    pub silent_ms: Option<u64>,
    /// Dataplanes it knows.
    pub dataplanes: u32,
    /// Those that run exactly what is wanted of them.
    pub current_dataplanes: u32,
}

/// How far a revision has come, for `apply --wait`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// The revision asked about.
    pub revision: u64,
    /// Every dataplane of every zone concerned runs it.
    pub complete: bool,
    /// One for each zone concerned.
    pub zones: Vec<ZoneRollout>,
}

/// How far a revision has come in one zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZoneRollout {
    /// The zone.
    pub zone: String,
    /// As in [`ZoneConnection::state`].
    pub state: String,
    /// The zone has compiled the revision.
    pub applied: bool,
    /// Dataplanes concerned.
    pub dataplanes: u32,
    /// Those that run it.
    pub current: u32,
    /// Dataplanes (`<mesh>/<name>`) that were sent it and have not answered.
    pub pending: Vec<String>,
    /// Dataplanes that are not connected.
    pub silent: Vec<String>,
    /// Dataplanes that refused it.
    pub refused: Vec<Refused>,
    /// Resources the zone could not apply.
    pub refused_resources: Vec<String>,
}

/// A document that a dataplane refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// `<mesh>/<name>`.
    pub dataplane: String,
    /// The document's name.
    pub document: String,
    /// Why, in the dataplane's words.
    pub reason: String,
}

/// A dataplane as its zone sees it now, for lists and `inspect dataplane`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataplaneView {
    /// The mesh.
    pub mesh: String,
    /// The zone.
    pub zone: String,
    /// Its name.
    pub name: String,
    /// `online` or `offline`.
    pub state: String,
    /// Its identity.
    pub spiffe_id: String,
    /// Version of the proxy.
    pub version: String,
    /// Services it belongs to.
    pub services: Vec<String>,
    /// Unix seconds when its certificate ends, as the dataplane said last; 0: it has none.
    pub certificate_not_after: u64,
    /// Its documents.
    pub documents: Vec<DocumentView>,
    /// The Dataplane resource.
    #[schemars(with = "AnyView")]
    pub resource: Value,
    /// Ports at which it could not tell in time what is spoken, though nothing is declared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detection_timeouts: Vec<DetectionTimeouts>,
    /// Inbounds with readiness and the permissions in force, each with its origin. Filled by `inspect` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inbounds: Vec<InboundView>,
    /// Outbounds with their endpoints. Filled by `inspect` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outbounds: Vec<OutboundView>,
}

/// Connections to one port of which a dataplane could not tell in time whether they speak HTTP, so that each was delayed. Counted since
/// it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DetectionTimeouts {
    /// The service that was called.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// `inbound`: counted beside the called application; `outbound`: beside the caller's.
    pub direction: String,
    /// How many.
    pub connections: u64,
    /// Unix seconds of the last one.
    pub last_at: u64,
}

/// One document of a dataplane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DocumentView {
    /// Its name.
    pub name: String,
    /// What the zone wants.
    pub wanted: String,
    /// What the dataplane has acknowledged, where it has.
    pub running: Option<String>,
    /// Why the dataplane refused `wanted`, where it did.
    pub refused: Option<String>,
}

/// One inbound of a dataplane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InboundView {
    /// Its name.
    pub name: String,
    /// Where the proxy listens.
    pub listen: String,
    /// Where the application listens.
    pub application: String,
    /// `ready` or `not ready`.
    pub state: String,
    /// The service it serves.
    pub service: String,
    /// `deny|allowWithShadowDeny|allow <match> (<policy>#<rule>)`, in the order they are looked at.
    pub permissions: Vec<String>,
    /// Effective settings with their origins, one a line; for certain callers with who they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<String>,
}

/// One outbound of a dataplane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutboundView {
    /// Where the proxy listens.
    pub listen: String,
    /// The service document.
    pub service: String,
    /// `host:port (zone[, through ingress])`.
    pub endpoints: Vec<String>,
    /// SPIFFE IDs it accepts there.
    pub identities: Vec<String>,
    /// Where connections or requests really go, in the order in which rules are tried; none: to the endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// Effective settings with their origins, one a line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<String>,
}

/// What became of a resource, where that is worth saying.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The resource.
    pub key: Key,
    /// `ResolvedRefs`, `Effective`, `Conflicted`, `Accepted`, `Enforced`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds. For `Conflicted` true is the bad case, for the others false.
    pub status: bool,
    /// One word, such as `NoSuchService`, `SelectsNothing`, `Shadowed`, `RefusedByDataplane`.
    pub reason: String,
    /// In words.
    pub message: String,
    /// Path of the field it is about; "" for the whole resource.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// The zone that says so; "" for global.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
}

/// What a batch would change in what is stored. Nothing is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    /// Revision it was compared with.
    pub revision: u64,
    /// One for each resource of the batch, in order; then what follows from them, such as what a deleted mesh takes
    /// along, at most 1,000.
    pub items: Vec<DiffItem>,
    /// As in [`Written`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What a batch would change in one resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiffItem {
    /// The resource.
    pub key: Key,
    /// What would happen.
    pub outcome: WriteOutcome,
    /// As it reads back now, without revision and times; absent where it does not exist. Secret values are not shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<AnyView>")]
    pub before: Option<Value>,
    /// As it would read back; absent where it would be deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<AnyView>")]
    pub after: Option<Value>,
    /// Paths of the fields that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
}

/// Asks to bring resources back to what they were at a revision, as one new change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollback {
    /// The revision; what was written after it is undone.
    pub to: u64,
    /// Only these resources. Empty: all of `mesh`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Key>,
    /// All resources that administrators wrote in this mesh. Ignored where `keys` are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
}

/// What a batch would change in what proxies do, from the zones' own compilers. Nothing is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// What would change in what is stored.
    pub diff: Diff,
    /// One for each zone concerned that answered.
    pub zones: Vec<ZonePlan>,
    /// Zones that did not answer: what would happen there is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

/// What the dataplanes of a mesh have counted of requests of HTTP, for `meshctl top`. Numbers only grow while a dataplane runs: two
/// answers say what happened between them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestCounts {
    /// The mesh.
    pub mesh: String,
    /// One for each zone that answered.
    pub zones: Vec<ZoneRequests>,
    /// Zones that did not answer, with the reason: what they have counted is missing above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

/// What the dataplanes of one zone have counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZoneRequests {
    /// The zone.
    pub zone: String,
    /// Those that answered.
    pub dataplanes: Vec<DataplaneRequests>,
    /// Those that did not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<SilentDataplane>,
}

/// What the dataplanes of one zone have caught for a tap since they were asked last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZoneTap {
    /// The zone.
    pub zone: String,
    /// Those that are tapped.
    pub dataplanes: Vec<DataplaneTap>,
    /// Those that are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<SilentDataplane>,
}

/// What one dataplane has caught.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataplaneTap {
    /// Its name.
    pub name: String,
    /// Another one each time the tap begins there, from which `matched` counts.
    pub run: String,
    /// Requests that the filter took since the tap began there.
    pub matched: u64,
    /// Those that are shown, in the order in which they ended.
    pub requests: Vec<TappedRequest>,
}

/// A request of HTTP that has ended, as one dataplane saw it. What is not known is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TappedRequest {
    /// When it began, RFC 3339.
    pub time: String,
    /// The zone of the dataplane that saw it.
    #[serde(default)]
    pub zone: String,
    /// That dataplane.
    #[serde(default)]
    pub dataplane: String,
    /// `inbound`: beside the called application; `outbound`: beside the caller's.
    pub direction: String,
    /// Who called.
    pub source: Party,
    /// Who was called.
    pub destination: Party,
    /// The method.
    pub method: String,
    /// The path; with its query only where that was asked for.
    pub path: String,
    /// Of HTTP.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The rule that routed it, where it is seen beside the caller.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub route: String,
    /// The rule that allowed or denied it, where it is seen beside the called application.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Absent: there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Of gRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u32>,
    /// Who decided how it ended: `upstream`, `client`, `policy` or `proxy`.
    pub said_by: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// In words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The whole, in milliseconds.
    pub duration_ms: f64,
    /// Of it, until there was a connection to send it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<f64>,
    /// Of it, until the answer began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<f64>,
    /// Bytes of its body.
    pub bytes_sent: u64,
    /// Bytes of the answer's body.
    pub bytes_received: u64,
    /// How often it was sent.
    pub attempts: u32,
    /// A copy that nobody waits for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mirrored: bool,
    /// The same on all hops.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// Of the W3C trace context.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trace_id: String,
}

/// One end of a request. What is not known is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Party {
    /// Service or workload.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Zone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Identity.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub spiffe_id: String,
    /// Address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
}

/// Who is tapped, and what of it is not shown: an event of a tap, at its begin, when it changes, and at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TapState {
    /// Tapped dataplanes, as `<zone>/<name>`.
    pub dataplanes: Vec<String>,
    /// Dataplanes that are not tapped, as `<zone>/<name>`, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<SilentDataplane>,
    /// Zones that did not answer, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
    /// Requests that are shown.
    pub shown: u64,
    /// Requests that the filter took beside these: too many at once, or lost with a connection.
    pub dropped: u64,
}

/// A dataplane that did not answer a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SilentDataplane {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// What one dataplane has counted since it started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataplaneRequests {
    /// Its name.
    pub name: String,
    /// Another one after each start, from which all counts begin at nothing.
    pub session: String,
    /// Upper bounds of the durations that are told apart, in seconds.
    pub bounds: Vec<f64>,
    /// Who called whom.
    pub pairs: Vec<PairRequests>,
    /// Pairs with few requests that are not told, since they are too many.
    #[serde(default)]
    pub omitted: u32,
}

/// Requests of one caller to one service, as one dataplane counted them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PairRequests {
    /// Who called.
    pub source: String,
    /// The service that was called.
    pub destination: String,
    /// `inbound`: counted beside the called application; `outbound`: beside the caller's.
    pub direction: String,
    /// All that have ended.
    pub requests: u64,
    /// Those that were not answered, or with 5xx, or by the mesh, or with a status of gRPC that is the server's fault.
    pub failed: u64,
    /// How many took no longer than each bound and longer than the one before; as last how many took longer than all.
    pub durations: Vec<u64>,
}

/// A zone that did not answer a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unanswered {
    /// The zone.
    pub zone: String,
    /// Why.
    pub reason: String,
}

/// What would change in one zone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZonePlan {
    /// The zone.
    pub zone: String,
    /// Dataplanes of the meshes concerned.
    pub dataplanes: u32,
    /// Those whose documents would change.
    pub affected: u32,
    /// At most 1,000 of them, by name.
    pub changes: Vec<DataplanePlan>,
    /// Conditions that the changes would bring about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// What would change for one dataplane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataplanePlan {
    /// The mesh.
    pub mesh: String,
    /// The dataplane.
    pub name: String,
    /// Effective settings that would change.
    pub settings: Vec<SettingChange>,
    /// Features it would need and does not have: it would refuse the change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_features: Vec<String>,
}

/// One effective setting, before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SettingChange {
    /// What it is a setting of: `inbound http`, `service store:80`, `identity`.
    pub of: String,
    /// Its name, such as `timeouts.idle` or `permissions`.
    pub setting: String,
    /// In words, with its origin; absent where it is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// In words, with its origin; absent where it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Whether a call is allowed, where it goes, and which policies say so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The mesh.
    pub mesh: String,
    /// Who calls, as asked.
    pub from: String,
    /// What is called, as asked.
    pub to: String,
    /// One for each calling dataplane and port.
    pub calls: Vec<ExplainedCall>,
    /// Zones that did not answer: what holds there is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

/// One caller's way to one port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedCall {
    /// The caller's side.
    pub caller: ExplainedCaller,
    /// The called side, one for each inbound that the call may meet.
    pub inbounds: Vec<ExplainedInbound>,
    /// `allowed`: every inbound it can meet lets it in; `denied`: none does, or nothing is there to meet; `mixed`;
    /// `answered`: the caller's own proxy answers, and nobody is called; `unknown`: a zone that has a say in it did not answer.
    pub verdict: String,
    /// Why, in one line.
    pub reason: String,
}

/// The caller's side of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedCaller {
    /// Its zone.
    pub zone: String,
    /// The dataplane.
    pub dataplane: String,
    /// Its identity.
    pub spiffe_id: String,
    /// The called service and port.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// The local address that leads there; absent where the dataplane declares no such outbound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<String>,
    /// The request, `GET /a?b=c`, where one was asked about and the port takes requests of HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The route that splits its calls or takes the request, where there is one: `MeshTCPRoute/split to[0].rules[0]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Rules for requests of HTTP: the one that takes the request, or all in the order in which they are tried, where no request
    /// was asked about. Where nothing declares what the port speaks, the last of all is about what is not HTTP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<ExplainedRule>,
    /// What the caller's own proxy answers to the request without calling anybody; absent where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Where its calls go. Of several rules, everywhere that any of them leads to.
    pub backends: Vec<ExplainedBackend>,
    /// Effective settings with their origins, one a line: `connectionTimeout 5s (built in)`.
    pub settings: Vec<String>,
}

/// A rule for requests of HTTP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRule {
    /// The requests that it takes, in words.
    pub matches: String,
    /// The policy entry it comes from, `MeshHTTPRoute/shop to[0].rules[1]`; absent for the one that is built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// What is changed, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<String>,
    /// Where they go, by shares: `9 store:80, 1 store-v2:80`. Empty where a filter answers.
    pub backends: String,
    /// Time-outs with their origins, one a line, where they are others than the service's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<String>,
}

/// A request of HTTP that is asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallRequest {
    /// Its method.
    pub method: String,
    /// Its path, with the query.
    pub path: String,
    /// Names, in lower case, and values.
    pub headers: Vec<(String, String)>,
}

/// Why a request can not be asked about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCallRequest {
    /// Not a method.
    #[error("method: {0:?} is not a method of HTTP")]
    Method(String),
    /// Not a path.
    #[error("path: must begin with '/' and hold no spaces and no '#'")]
    Path,
    /// Not a header.
    #[error("headers: {0:?} is not \"name: value\"")]
    Header(String),
}

impl CallRequest {
    /// The request that parameters give: `headers` are lines of `name: value`. None of them: no request. A method that is not given
    /// is `GET`, a path `/`.
    ///
    /// # Errors
    /// Where no such request can be made.
    pub fn of_parameters(
        method: Option<&str>,
        path: Option<&str>,
        headers: Option<&str>,
    ) -> Result<Option<Self>, InvalidCallRequest> {
        if method.is_none() && path.is_none() && headers.is_none() {
            return Ok(None);
        }
        let method = method.unwrap_or("GET");
        if !http_match::is_token(method) {
            return Err(InvalidCallRequest::Method(method.to_owned()));
        }
        let path = path.unwrap_or("/");
        let visible = |b: u8| b > b' ' && b != 0x7f && b != b'#';
        if !path.starts_with('/') || !path.bytes().all(visible) {
            return Err(InvalidCallRequest::Path);
        }
        let lines = headers.unwrap_or_default().lines();
        let headers = lines.filter(|line| !line.trim().is_empty()).map(|line| {
            let header = line.split_once(':').map(|(name, value)| {
                let value = value.trim_matches([' ', '\t']);
                (name.to_lowercase(), value.to_owned())
            });
            let is_good = |(name, value): &(String, String)| {
                http_match::is_header_name(name) && !value.chars().any(char::is_control)
            };
            let refused = || InvalidCallRequest::Header(line.to_owned());
            header.filter(is_good).ok_or_else(refused)
        });
        Ok(Some(Self {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: headers.collect::<Result<_, _>>()?,
        }))
    }
}

/// Where a share of calls goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedBackend {
    /// The service.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// Share of the calls.
    pub weight: u32,
    /// Endpoints used now: those of the zone that is preferred. `host:port (zone[, through ingress])`.
    pub endpoints: Vec<String>,
    /// Zones those endpoints are in.
    pub zones: Vec<String>,
    /// Identities the caller accepts there.
    pub identities: Vec<String>,
    /// Why calls that go here fail before they reach anybody; absent where they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The called side of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedInbound {
    /// Its zone.
    pub zone: String,
    /// The dataplane.
    pub dataplane: String,
    /// The inbound.
    pub inbound: String,
    /// The service it serves.
    pub service: String,
    /// The service's port.
    pub port: u16,
    /// Takes connections.
    pub ready: bool,
    /// Lets the caller in.
    pub allowed: bool,
    /// Lets the caller in, and records it as denied.
    #[serde(default)]
    pub shadow_denied: bool,
    /// The policy responsible, `<policy>#<rule>`; absent where nothing matched, which denies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Why, in one line.
    pub reason: String,
    /// Effective settings with their origins, one a line.
    pub settings: Vec<String>,
}

/// A policy as it takes effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyInspection {
    /// The resource as it reads back.
    #[schemars(with = "AnyView")]
    pub resource: Value,
    /// What is to be said about it, from global and the zones.
    pub conditions: Vec<Condition>,
    /// One for each zone that answered.
    pub zones: Vec<ZonePolicy>,
    /// Zones that did not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

/// Whom a policy concerns in one zone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZonePolicy {
    /// The zone.
    pub zone: String,
    /// How many dataplanes it selects.
    pub selected: u32,
    /// At most 1,000 of them; with the inbound where it selects only some: `name` or `name/inbound`.
    pub dataplanes: Vec<String>,
    /// Services its `to` entries resolve to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<String>,
}

/// A service as the zones know it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceInspection {
    /// The mesh.
    pub mesh: String,
    /// The service.
    pub name: String,
    /// One for each zone that runs it.
    pub zones: Vec<ZoneService>,
    /// Policies that concern calls to it, as `<kind>/<name> to[0]`.
    pub policies: Vec<String>,
    /// Zones that did not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<Unanswered>,
}

/// A service in the zone that runs it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZoneService {
    /// The zone.
    pub zone: String,
    /// Its identities.
    pub identities: Vec<String>,
    /// Its ports.
    pub ports: Vec<ZoneServicePort>,
    /// Policies that concern calls to it here, as `<kind>/<name> to[0]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
}

/// A port of a service in the zone that runs it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZoneServicePort {
    /// The port.
    pub port: u16,
    /// Its name, or its number.
    pub name: String,
    /// `tcp`, `tls`, `http`, `http2`, `grpc`.
    pub app_protocol: String,
    /// Dataplanes behind it, `name (host:port, ready|not ready)`.
    pub endpoints: Vec<String>,
}

/// A page of the audit: who did what, and who was refused what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// Newest first.
    pub items: Vec<AuditItem>,
    /// Give it as `continue` to get the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Nodes that did not answer: what they refused is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<u64>,
}

/// One record of the audit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditItem {
    /// When.
    pub time: String,
    /// Who, as `user/<name>/<token id>`, `token/<id>`, `zone/<name>`, `node/<id>`, `system` or `anonymous`.
    pub actor: String,
    /// From where, as far as it is known.
    pub address: String,
    /// What was done or tried, in words.
    pub summary: String,
    /// `done`, `refused`, or `read` for the value of a secret.
    pub outcome: String,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Revision of the change, for `done`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The node that refused, or showed the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u64>,
    /// What changed, for `done`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<AuditChange>,
    /// The client's id of the request, where it gave one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
}

/// What a change did to one resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditChange {
    /// The resource.
    pub key: Key,
    /// What became of it.
    pub outcome: WriteOutcome,
    /// Fields that changed; for a resource that was created or deleted, all of it as one field without a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
    /// How many fields more changed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_fields: usize,
    /// What it was before is not kept any more, or was not looked up, since the page holds so much.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgotten: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde wants it
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// One field, before and after. Long values are shortened, secret ones left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FieldChange {
    /// Its path.
    pub field: String,
    /// Absent where it is new, or secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// Absent where it goes, or is secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// What deserves attention in the installation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Worst first.
    pub findings: Vec<Finding>,
    /// Every certificate and anchor, the earliest end first; at most 1,000.
    pub certificates: Vec<Expiry>,
}

/// One thing that deserves attention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// `error` or `warning`.
    pub severity: String,
    /// What it is about, such as `zone west` or `dataplane payments/web-1`.
    pub subject: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// When a certificate ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Expiry {
    /// Whose: `installation CA`, `global node 1`, `zone west`, `CA of payments in west`, `dataplane payments/web-1`.
    pub subject: String,
    /// RFC 3339.
    pub not_after: String,
    /// Seconds left by global's clock; negative where it is over.
    pub seconds_left: i64,
}
