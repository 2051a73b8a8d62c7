//! Everything that can wake the zone's loop.

use mesh_model::api::Key;
use mesh_proto::{discovery::to_zone, tap::Tap, zone::PlanChanges};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::{discovery::Newcomer, explain::Call, registry::StreamId, sync::SyncEvent};

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
    Asked(Question, oneshot::Sender<Answer>),
}

/// What is answered, as JSON.
pub type Answer = Result<Value, Unknown>;

/// What somebody asks at the zone's own API, or through global.
#[derive(Debug, Clone, PartialEq)]
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
    /// One service of this zone, as `mesh_model::api::ZoneService`; null where it has none of this name.
    Service {
        /// The mesh.
        mesh: String,
        /// Its name.
        name: String,
    },
    /// Whom a policy concerns here, as `mesh_model::api::ZonePolicy`.
    Policy(Key),
    /// Where calls go, as `mesh_model::api::ExplainedCaller`s.
    Call {
        /// The mesh.
        mesh: String,
        /// The call.
        call: Call,
    },
    /// Who is let in, as `mesh_model::api::ExplainedInbound`s.
    Inbound {
        /// The mesh.
        mesh: String,
        /// A service of this zone.
        service: String,
        /// Its port. 0: each.
        port: u16,
        /// SPIFFE ID of the caller.
        caller: String,
    },
    /// What changes would change, as `mesh_model::api::ZonePlan`.
    Plan(PlanChanges),
    /// What dataplanes have counted of requests, as `mesh_model::api::ZoneRequests`. They are asked.
    Requests {
        /// The mesh.
        mesh: String,
        /// Only what this service asked or was asked; empty: all.
        service: String,
    },
    /// What dataplanes have caught of requests since they were asked last, as `mesh_model::api::ZoneTap`. They are asked.
    Tap {
        /// The mesh.
        mesh: String,
        /// Only this one; empty: all.
        dataplane: String,
        /// What is looked for.
        tap: Tap,
    },
    /// What global has given of a mesh, or ("") of what is outside any mesh: where each resource comes from, and how old
    /// it is.
    Resources {
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
