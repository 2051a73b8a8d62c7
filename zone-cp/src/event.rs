//! Everything that can wake the zone's loop.

use mesh_proto::discovery::to_zone;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::{discovery::Newcomer, registry::StreamId, sync::SyncEvent};

/// Events that may wait for the loop. Whoever sends more waits, and with it the peer it reads from.
pub const QUEUE: usize = 4096;

/// One event.
pub enum Event {
    /// Something about the stream to global.
    Sync(SyncEvent),
    /// A dataplane or ingress wants to be registered.
    Arrived(Box<Newcomer>),
    /// It said something.
    Said(StreamId, to_zone::Message),
    /// Its stream has ended.
    Gone {
        /// Which.
        stream: StreamId,
        /// When something was last heard, in Unix milliseconds.
        heard_ms: u64,
        /// Why it ended.
        reason: String,
    },
    /// Somebody looks.
    Asked(Question, oneshot::Sender<Result<Value, Unknown>>),
}

/// What somebody asks at the zone's own API, or through global.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Dataplanes of a mesh, as `mesh_model::api::DataplaneView`s.
    Dataplanes {
        /// The mesh.
        mesh: String,
    },
    /// One dataplane with permissions and endpoints.
    Dataplane {
        /// The mesh.
        mesh: String,
        /// Its name.
        name: String,
    },
    /// Services of a mesh with their endpoints.
    Services {
        /// The mesh.
        mesh: String,
    },
    /// The zone.
    Status,
}

/// What was asked about is not known here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unknown(pub String);
