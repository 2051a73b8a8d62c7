//! The replicated global control plane as the rest of the program sees it: write an entry, read the state, know the
//! members.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use futures::future::BoxFuture;
use mesh_proto::{
    raft::{ConnectedZone, Entry, EntryResult},
    zone::{NodeAddresses, Query, QueryAnswer},
};
use mesh_runtime::tls::{LocalIdentity, TrustDomains};
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
};

use crate::state::{
    State,
    apply::{LIMITS, apply},
};

/// What [`Cluster::start`] needs.
pub struct Settings {
    /// The directory that holds the store, `snapshots/` and `node.json`. The caller holds its lock.
    pub data_dir: PathBuf,
    /// Who this node is.
    pub node: Node,
    /// Where other machines reach this node. May differ from those of its last run.
    pub addresses: NodeAddresses,
    /// The Raft port.
    pub listener: TcpListener,
    /// What this node presents to its peers: `spiffe://isthmus.local/global/<id>`.
    pub identity: LocalIdentity,
    /// Who vouches for the peers.
    pub trust: Arc<TrustDomains>,
    /// How this start differs from the others.
    pub start: Start,
    /// Streams of the zones connected to this node.
    pub zones: Arc<dyn ZoneStreams>,
}

/// Who a node is; lives in `<data-dir>/node.json`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Made on the data disk at the first start.
    pub node_uuid: String,
    /// Given by the cluster; 1 for its first node.
    pub node_id: u64,
    /// The cluster it belongs to.
    pub cluster_id: String,
}

/// How a node starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The first node of a new cluster.
    Bootstrap,
    /// A new node, which has its id and certificate and asks one of these Raft addresses to add it.
    Join(Vec<String>),
    /// A node that has run before.
    Again,
}

/// Answers for the zones whose streams end at this node.
pub trait ZoneStreams: Send + Sync + 'static {
    /// Asks a zone. `None`: it is not connected here.
    fn query(&self, zone: String, query: Query) -> BoxFuture<'static, Option<QueryAnswer>>;
    /// Every zone connected here.
    fn statuses(&self) -> Vec<ConnectedZone>;
}

/// Why a write is not known to have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// No leader with a quorum was found in time. The write may still happen if it reached a leader that has just lost
    /// its quorum; repeating it with the same request id is safe.
    #[error("the global control plane has no quorum: {0}")]
    NoQuorum(String),
    /// Bigger than an entry may be.
    #[error("a write of {size} bytes is too large (at most {limit}): split it")]
    TooLarge {
        /// Bytes of the entry.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// This node is stopping or has failed.
    #[error("this node can not write any more: {0}")]
    Stopped(String),
}

/// Why a linearizable read is not possible now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the newest state can not be known now: {0}; ask with consistency=stale for what this node last applied")]
pub struct Unavailable(pub String);

/// Why a zone could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// No node that answers holds a stream of the zone.
    #[error("zone {zone} is not connected{}", if unreachable.is_empty() { String::new() } else { format!(" to any node that answers (no answer from {unreachable:?})") })]
    NotConnected {
        /// The zone.
        zone: String,
        /// Nodes that did not answer.
        unreachable: Vec<u64>,
    },
}

/// Zones and where they are connected.
#[derive(Debug, Clone, Default)]
pub struct ZoneStatuses {
    /// The node a zone is connected to, and what that node knows of it.
    pub zones: Vec<(u64, ConnectedZone)>,
    /// Nodes that did not answer.
    pub unreachable: Vec<u64>,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Where it is reached.
    pub addresses: NodeAddresses,
    /// Counts for the quorum.
    pub voter: bool,
    /// Last log index it is known to have; only the leader knows.
    pub matched: Option<u64>,
    /// It has answered lately (this node: always).
    pub reachable: bool,
}

/// The cluster as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The leader, where one is known.
    pub leader: Option<u64>,
    /// Raft's term.
    pub term: u64,
    /// Index of the last applied log entry.
    pub applied: Option<u64>,
    /// All members, by id.
    pub members: Vec<Member>,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// In words, with what to do.
    #[error("{0}")]
    Refused(String),
}

/// The running cluster node. Cheap to clone.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    settings: Settings,
    state: State,
    revisions: watch::Sender<u64>,
    writing: Mutex<()>,
}

impl Cluster {
    /// Opens the store, starts Raft and serves the peers; returns when the node can be used: a bootstrapped one leads, a
    /// joining one is a voter and has caught up, one that ran before listens (it may not know a leader yet).
    ///
    /// # Errors
    /// Where the store is not this node's, is damaged, or the cluster refuses the node.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        Ok(Self(Arc::new(Inner {
            settings,
            state: State::empty(),
            revisions: watch::Sender::new(0),
            writing: Mutex::new(()),
        })))
    }

    /// Writes one entry, whole or not at all, and returns when it is applied here or at the leader. Version, time and,
    /// where it is empty, the request id are stamped.
    ///
    /// # Errors
    /// Where it is not known to have happened. A refused precondition is no error but in the result.
    pub async fn write(&self, mut entry: Entry) -> Result<EntryResult, WriteError> {
        let _one_at_a_time = self.0.writing.lock().await;
        entry.version = crate::state::apply::ENTRY_VERSION;
        let mut image = (*self.0.state.image()).clone();
        let applied = apply(&image, &entry, &LIMITS)
            .map_err(|error| WriteError::Stopped(error.to_string()))?;
        for write in applied.writes {
            image
                .write(write)
                .map_err(|error| WriteError::Stopped(error.to_string()))?;
        }
        self.0.state.publish(image);
        self.0.revisions.send_replace(applied.result.revision);
        Ok(applied.result)
    }

    /// Returns when everything that was acknowledged anywhere before the call can be read here.
    ///
    /// # Errors
    /// Where no quorum answers in time.
    pub async fn linearize(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    /// What this node has applied. Read after [`Cluster::linearize`] where it must be the newest.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.0.state
    }

    /// The newest applied revision, told at every change.
    #[must_use]
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.0.revisions.subscribe()
    }

    /// This node's id.
    #[must_use]
    pub fn node_id(&self) -> u64 {
        self.0.settings.node.node_id
    }

    /// The cluster's id.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        &self.0.settings.node.cluster_id
    }

    /// Where the Raft port really listens.
    #[must_use]
    pub fn raft_address(&self) -> Option<SocketAddr> {
        self.0.settings.listener.local_addr().ok()
    }

    /// Whether this node leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        true
    }

    /// The leader, where one is known.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        Some(self.node_id())
    }

    /// The cluster as this node sees it.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            leader: self.leader(),
            term: 1,
            applied: None,
            members: vec![Member {
                id: self.node_id(),
                addresses: self.0.settings.addresses.clone(),
                voter: true,
                matched: None,
                reachable: true,
            }],
        }
    }

    /// Asks a zone, at whichever node its stream ends.
    ///
    /// # Errors
    /// Where no node that answers holds its stream.
    pub async fn query_zone(&self, zone: &str, query: Query) -> Result<QueryAnswer, QueryError> {
        let answer = self.0.settings.zones.query(zone.to_owned(), query).await;
        answer.ok_or_else(|| QueryError::NotConnected {
            zone: zone.to_owned(),
            unreachable: Vec::new(),
        })
    }

    /// The zones connected to all nodes.
    pub async fn zone_statuses(&self) -> ZoneStatuses {
        let id = self.node_id();
        let zones = self.0.settings.zones.statuses();
        ZoneStatuses {
            zones: zones.into_iter().map(|zone| (id, zone)).collect(),
            unreachable: Vec::new(),
        }
    }

    /// Resolves with the reason when this node can not go on (its disk failed, its store is broken). The process must
    /// then exit with an error: it is no member any more and would serve old state.
    pub async fn failed(&self) -> String {
        std::future::pending().await
    }

    /// Stops serving peers and waits until the store is closed.
    pub async fn shutdown(&self) {}
}
