//! How records are written in the map. Protobuf, so that a later version can add fields; none is a `map`, so that the
//! same record has the same bytes on every node.

use mesh_proto::{
    raft::{Actor, EntryResult},
    zone::ResourceKey,
};
use prost::Message;

/// A resource.
#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    /// Canonical JSON.
    #[prost(bytes = "bytes", tag = "1")]
    pub json: bytes::Bytes,
    /// Revision that created it.
    #[prost(uint64, tag = "2")]
    pub created_revision: u64,
    /// Revision that last changed it.
    #[prost(uint64, tag = "3")]
    pub modified_revision: u64,
    /// When it was created.
    #[prost(uint64, tag = "4")]
    pub created_ms: u64,
    /// When it was last changed.
    #[prost(uint64, tag = "5")]
    pub modified_ms: u64,
}

/// One change of one resource.
#[derive(Clone, PartialEq, Message)]
pub struct Change {
    /// The resource.
    #[prost(message, optional, tag = "1")]
    pub key: Option<ResourceKey>,
    /// The resource after the change; absent where it was deleted.
    #[prost(message, optional, tag = "2")]
    pub after: Option<Resource>,
    /// Who.
    #[prost(string, tag = "3")]
    pub actor: String,
    /// When.
    #[prost(uint64, tag = "4")]
    pub time_ms: u64,
    /// The resource existed before, so that an older change of it was made once.
    #[prost(bool, tag = "5")]
    pub existed: bool,
    /// The resource before the change. Kept in the oldest change of a resource that is kept, where it existed before: the
    /// others have it in the change before them.
    #[prost(message, optional, tag = "6")]
    pub before: Option<Resource>,
}

/// How much of the past is kept, where somebody said so; 0: as much as by default.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HistoryLimits {
    /// Changes.
    #[prost(uint64, tag = "1")]
    pub changes: u64,
    /// Bytes of them.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

/// A request that was done.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// Counts up by one for each request.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// When.
    #[prost(uint64, tag = "2")]
    pub time_ms: u64,
    /// What was answered.
    #[prost(message, optional, tag = "3")]
    pub result: Option<EntryResult>,
    /// Hash of what was asked for.
    #[prost(bytes = "vec", tag = "4")]
    pub asked: Vec<u8>,
}

/// Who did what.
#[derive(Clone, PartialEq, Message)]
pub struct Audit {
    /// Revision of the change.
    #[prost(uint64, tag = "1")]
    pub revision: u64,
    /// When.
    #[prost(uint64, tag = "2")]
    pub time_ms: u64,
    /// Who.
    #[prost(message, optional, tag = "3")]
    pub actor: Option<Actor>,
    /// What was asked, in words.
    #[prost(string, tag = "4")]
    pub summary: String,
    /// What changed.
    #[prost(message, repeated, tag = "5")]
    pub changed: Vec<ResourceKey>,
    /// The request id.
    #[prost(string, tag = "6")]
    pub request_id: String,
}

/// What the state machine counts.
#[derive(Clone, PartialEq, Message)]
pub struct Counters {
    /// Newest revision.
    #[prost(uint64, tag = "1")]
    pub revision: u64,
    /// Every change after this revision is kept.
    #[prost(uint64, tag = "2")]
    pub history_floor: u64,
    /// Changes kept.
    #[prost(uint64, tag = "3")]
    pub history_count: u64,
    /// Bytes of the changes kept.
    #[prost(uint64, tag = "4")]
    pub history_bytes: u64,
    /// Number of the next request.
    #[prost(uint64, tag = "5")]
    pub next_request: u64,
    /// Number of the oldest request kept.
    #[prost(uint64, tag = "6")]
    pub first_request: u64,
    /// Number of the next audit record.
    #[prost(uint64, tag = "7")]
    pub next_audit: u64,
    /// Number of the oldest audit record kept.
    #[prost(uint64, tag = "8")]
    pub first_audit: u64,
    /// Bytes of the audit records kept.
    #[prost(uint64, tag = "9")]
    pub audit_bytes: u64,
}
