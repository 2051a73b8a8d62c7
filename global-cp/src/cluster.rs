//! The replicated global control plane as the rest of the program sees it: write an entry, read the state, know the
//! members.
//!
//! Every node serves everything: a write is passed on to the leader, a read waits until this node has applied what the
//! leader had when it was asked.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`peers`] | the other nodes: addresses, connections, when each was heard |
//! | [`network`] | what Raft says to them |
//! | [`service`] | what they ask of this node |
//! | [`proposer`] | writes at the leader, many in one log record |
//! | [`fair`] | whose write is next |
//! | [`reads`] | linearizable reads on any node |
//! | [`membership`] | adding and removing nodes, and asking to be added |
//!
//! Tasks of a running node: Raft's own, one for the Raft port, one each for writes and reads that wait, and
//! `keep_house`, which tells the leader when this node's addresses have changed and asks silent nodes whether they are
//! there. All end with [`Cluster::shutdown`].

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use mesh_proto::{
    raft::{
        Actor, AttemptsRequest, ConnectedZone, Entry, EntryResult, Operation, QueryZoneRequest,
        ReadIndexRequest, SetSystem, WriteRequest, ZoneStatusesRequest, operation,
        raft_server::RaftServer,
    },
    spiffe::SpiffeId,
    zone::{NodeAddresses, Query, QueryAnswer, query::What},
};
use mesh_runtime::{
    backoff::{Backoff, random},
    tls::{self, LocalIdentity, SpiffeVerifier, TrustDomains},
    transport,
};
use openraft::{Raft, RaftMetrics, SnapshotPolicy, storage::RaftLogStorage as _};
use prost::Message as _;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub mod fair;
pub mod membership;
pub mod network;
pub mod peers;
pub mod proposer;
pub mod reads;
pub mod service;

#[cfg(test)]
mod tests;

pub use crate::store::directory::Node;
use crate::{
    audit::{Attempt, AttemptLog, Wanted},
    state::{
        State,
        apply::ENTRY_VERSION,
        image::{CLUSTER_ID, HISTORY_ID},
    },
    store::{
        self,
        directory::{self, DirectoryError, NodeFile},
        types::{Peer, TypeConfig},
    },
};
use membership::{Again, NotAdded};
use network::{Network, Speaker, describe};
use peers::Peers;
use proposer::{NotWritten, Proposer};
use reads::Reads;
use service::Service;

/// Biggest entry, in bytes.
pub const BIGGEST_ENTRY: usize = 16 << 20;
/// How long a write looks for a leader with a quorum. Longer than an election takes.
const PATIENCE: Duration = Duration::from_secs(8);
/// Wait between two attempts to write.
const BETWEEN: Duration = Duration::from_millis(25);
/// How long a node waits for another's answer about zones.
const ZONE_ANSWER: Duration = Duration::from_secs(5);
/// How long a node waits for what a zone has to compile first.
const ZONE_PLAN: Duration = Duration::from_secs(30);
/// How long calls of peers may go on after this node was asked to stop.
const LEAVING: Duration = Duration::from_secs(1);
/// A leader that no quorum has answered for longer refuses writes at once.
const QUORUM_SILENT_MS: u64 = 3000;

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
    /// What was refused here.
    pub attempts: AttemptLog,
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

/// How long a zone may take to answer.
#[must_use]
pub fn zone_patience(query: &Query) -> Duration {
    match query.what {
        Some(What::PlanChanges(_)) => ZONE_PLAN,
        _ => ZONE_ANSWER,
    }
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
#[error(
    "the newest state can not be known now: {0}; ask with consistency=stale for what this node last applied"
)]
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
    /// When the certificates of the nodes that answered end, in Unix seconds; 0: not known.
    pub nodes: Vec<(u64, u64)>,
    /// Nodes that did not answer.
    pub unreachable: Vec<u64>,
}

/// What was refused, and where.
#[derive(Debug, Clone, Default)]
pub struct Attempts {
    /// The node that refused, and what.
    pub found: Vec<(u64, Attempt)>,
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
    /// Its store is not usable.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// Its data directory is not.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Raft does not start.
    #[error("Raft does not start: {0}")]
    Raft(String),
    /// The cluster does not take it.
    #[error("the cluster does not take this node: {0}")]
    NotTaken(String),
}

/// Who the node of this data directory is. `None`: the directory is new.
///
/// # Errors
/// Where the directory is damaged, or part of it is gone.
pub fn node_of(data_dir: &std::path::Path) -> Result<Option<Node>, DirectoryError> {
    Ok(directory::load(data_dir)?.map(|file| file.node))
}

/// The members as Raft knows them. Knows none until Raft runs.
#[derive(Clone, Default)]
pub struct Members(Arc<OnceLock<watch::Receiver<RaftMetrics<u64, Peer>>>>);

impl Members {
    fn peer(&self, id: u64) -> Option<Peer> {
        let metrics = self.0.get()?.borrow();
        metrics
            .membership_config
            .membership()
            .get_node(&id)
            .cloned()
    }

    /// The disk that a member joined with.
    #[must_use]
    pub fn uuid(&self, id: u64) -> Option<String> {
        self.peer(id).map(|peer| peer.node_uuid)
    }

    /// Where a member is reached.
    #[must_use]
    pub fn addresses(&self, id: u64) -> Option<NodeAddresses> {
        self.peer(id).map(|peer| peer.addresses())
    }

    fn ids(&self) -> Vec<u64> {
        self.0.get().map_or_else(Vec::new, |metrics| {
            let metrics = metrics.borrow();
            let nodes = metrics.membership_config.membership().nodes();
            nodes.map(|(id, _)| *id).collect()
        })
    }
}

/// The running cluster node. Cheap to clone.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    raft: Raft<TypeConfig>,
    state: State,
    revisions: watch::Sender<u64>,
    speaker: Arc<Speaker>,
    proposer: Proposer,
    reads: Reads,
    changes: membership::Changes,
    zones: Arc<dyn ZoneStreams>,
    attempts: AttemptLog,
    own: Peer,
    listens: Option<SocketAddr>,
    stop: CancellationToken,
    tasks: TaskTracker,
    closed: store::database::Closed,
}

fn raft_config() -> openraft::Config {
    openraft::Config {
        cluster_name: "isthmus".to_owned(),
        // A follower begins an election when the leader's lease (the longest timeout) and then its own timeout have
        // passed, looking every one and a half heartbeats: at most 700 + 700 + 300 ms after the last heartbeat.
        heartbeat_interval: 200,
        election_timeout_min: 500,
        election_timeout_max: 700,
        max_payload_entries: 300,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(5000),
        max_in_snapshot_log_to_keep: 1000,
        purge_batch_size: 256,
        // Beyond this a follower gets a snapshot.
        replication_lag_threshold: 10_000,
        ..openraft::Config::default()
    }
}

impl Cluster {
    /// Opens the store, starts Raft and serves the peers; returns when the node can be used: a bootstrapped one leads, a
    /// joining one is a voter and has caught up, one that ran before listens (it may not know a leader yet).
    ///
    /// # Errors
    /// Where the store is not this node's, is damaged, or the cluster refuses the node.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let Settings {
            data_dir,
            node,
            addresses,
            listener,
            identity,
            trust,
            start,
            zones,
            attempts,
        } = settings;
        let (mut store, file) = open_store(data_dir, node.clone(), &start).await?;
        let log = store
            .log
            .get_log_state()
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;
        let peers = Peers::new(identity.clone(), trust.clone());
        let members = Members::default();
        let own = Peer::new(addresses, &node.node_uuid);
        let speaker = Arc::new(Speaker {
            node,
            raft_address: own.raft.clone(),
            peers,
            members: members.clone(),
            begun: log.last_log_id.map_or(0, |id| id.index),
        });
        let config = raft_config()
            .validate()
            .map_err(|error| StartError::Raft(error.to_string()))?;
        let revisions = store.machine.revisions();
        let raft = Raft::new(
            speaker.node.node_id,
            Arc::new(config),
            Network(speaker.clone()),
            store.log,
            store.machine,
        )
        .await
        .map_err(|error| StartError::Raft(error.to_string()))?;
        let _ = members.0.set(raft.metrics());
        let cluster = Self(Arc::new(Inner {
            proposer: Proposer::start(raft.clone()),
            reads: Reads::start(raft.clone(), speaker.clone()),
            changes: membership::Changes::new(raft.clone()),
            raft,
            state: store.state,
            revisions,
            speaker,
            zones,
            attempts,
            own,
            listens: listener.local_addr().ok(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            closed: store.closed,
        }));
        cluster.serve(listener, identity, trust, store.snapshots);
        let started = cluster.take_part(&file).await;
        if let Err(error) = started {
            cluster.shutdown().await;
            return Err(error);
        }
        let inner = Arc::downgrade(&cluster.0);
        let stop = cluster.0.stop.clone();
        cluster.0.tasks.spawn(async move {
            stop.run_until_cancelled(keep_house(inner)).await;
        });
        Ok(cluster)
    }

    fn serve(
        &self,
        listener: TcpListener,
        identity: LocalIdentity,
        trust: Arc<TrustDomains>,
        snapshots: store::snapshot::Snapshots,
    ) {
        let inner = &self.0;
        let verifier = SpiffeVerifier::new(
            trust,
            Arc::new(|peer: &SpiffeId| match peer.as_global_node() {
                Some(_) => Ok(()),
                None => Err("only global nodes may call this port".to_owned()),
            }),
        );
        let tls = tls::server_config(identity, Some(Arc::new(verifier)), transport::GRPC_ALPN);
        let service = RaftServer::new(Service {
            raft: inner.raft.clone(),
            speaker: inner.speaker.clone(),
            proposer: inner.proposer.clone(),
            snapshots,
            zones: inner.zones.clone(),
            attempts: inner.attempts.clone(),
            membership: inner.changes.clone(),
        })
        .max_decoding_message_size(peers::BIGGEST_MESSAGE)
        .max_encoding_message_size(peers::BIGGEST_MESSAGE);
        let stop = inner.stop.clone();
        inner.tasks.spawn(async move {
            let serving = tonic::transport::Server::builder()
                .tcp_nodelay(true)
                .http2_keepalive_interval(Some(Duration::from_secs(10)))
                .add_service(service)
                .serve_with_incoming_shutdown(
                    transport::incoming(listener, Arc::new(tls)),
                    stop.clone().cancelled_owned(),
                );
            let serving = async {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "the Raft port is not served any more");
                }
            };
            // Calls under way may end; a peer that does not let go is not waited for.
            let leaving = async {
                stop.cancelled().await;
                tokio::time::sleep(LEAVING).await;
            };
            tokio::select! {
                () = serving => {}
                () = leaving => {}
            }
        });
    }

    /// Makes this node a part of the cluster, where it is not yet.
    async fn take_part(&self, file: &NodeFile) -> Result<(), StartError> {
        let inner = &self.0;
        let initialized = inner
            .raft
            .is_initialized()
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;
        if file.via.is_empty() {
            if !initialized {
                let nodes = std::collections::BTreeMap::from([(
                    inner.speaker.node.node_id,
                    inner.own.clone(),
                )]);
                inner
                    .raft
                    .initialize(nodes)
                    .await
                    .map_err(|error| StartError::Raft(error.to_string()))?;
            }
            if inner.state.history_id().is_empty() {
                self.write_first_facts().await?;
            }
            return Ok(());
        }
        let id = inner.speaker.node.node_id;
        if initialized && inner.speaker.members.peer(id).is_some() {
            return Ok(());
        }
        self.join(&file.via).await
    }

    /// The facts that make a new cluster one.
    async fn write_first_facts(&self) -> Result<(), StartError> {
        let node = &self.0.speaker.node;
        let set = |name: &str, value: String| Operation {
            operation: Some(operation::Operation::SetSystem(SetSystem {
                name: name.to_owned(),
                value: value.into_bytes(),
                // Only once, whoever comes second.
                expect: Some(Vec::new()),
            })),
        };
        let entry = Entry {
            actor: Some(Actor {
                name: format!("node/{}", node.node_id),
                address: String::new(),
            }),
            operations: vec![
                set(CLUSTER_ID, node.cluster_id.clone()),
                set(HISTORY_ID, uuid::Uuid::new_v4().to_string()),
            ],
            summary: "begin a cluster".to_owned(),
            ..Entry::default()
        };
        self.write(entry)
            .await
            .map(|_| ())
            .map_err(|error| StartError::Raft(error.to_string()))
    }

    /// Asks to be added until it is, or until the cluster says that it will never be; then waits until it knows what the
    /// cluster knows.
    async fn join(&self, via: &[String]) -> Result<(), StartError> {
        const PATIENCE: Duration = Duration::from_secs(600);
        let deadline = Instant::now() + PATIENCE;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
        let mut added = false;
        loop {
            let reason = if added {
                // It votes from now on: a leader that is busy, or changes right now, is no reason to end.
                match self.linearize().await {
                    Ok(()) => return Ok(()),
                    Err(error) => error.to_string(),
                }
            } else {
                match self.be_added(via).await? {
                    None => {
                        added = true;
                        continue;
                    }
                    Some(reason) => reason,
                }
            };
            if Instant::now() > deadline {
                return Err(StartError::NotTaken(reason));
            }
            tracing::warn!(
                reason,
                "this node is not yet part of the cluster; asking again"
            );
            tokio::time::sleep(backoff.next_wait(random())).await;
        }
    }

    /// Asks each address once to be added; why none did.
    async fn be_added(&self, via: &[String]) -> Result<Option<String>, StartError> {
        let inner = &self.0;
        let mut reason = "no address of a member is known".to_owned();
        for address in via {
            match membership::ask_to_be_added(&inner.speaker, &inner.own, address).await {
                Ok(()) => return Ok(None),
                Err((refused, Again::No)) => return Err(StartError::NotTaken(refused)),
                Err((refused, Again::Yes)) => reason = refused,
            }
        }
        Ok(Some(reason))
    }

    /// Writes one entry, whole or not at all, and returns when it is applied at the leader and here. Version, time and,
    /// where it is empty, the request id are stamped.
    ///
    /// While there is no leader, the entry is offered again, which its request id makes safe.
    ///
    /// # Errors
    /// Where it is not known to have happened. A refused precondition is no error but in the result.
    pub async fn write(&self, mut entry: Entry) -> Result<EntryResult, WriteError> {
        entry.version = ENTRY_VERSION;
        if entry.request_id.is_empty() {
            entry.request_id = uuid::Uuid::new_v4().to_string();
        }
        let size = entry.encoded_len();
        if size > BIGGEST_ENTRY {
            return Err(WriteError::TooLarge {
                size,
                limit: BIGGEST_ENTRY,
            });
        }
        let deadline = Instant::now() + PATIENCE;
        let mut reason;
        loop {
            match timeout_at(deadline, self.write_once(&entry)).await {
                Ok(Ok(result)) => {
                    self.wait_until_here(result.revision, deadline).await;
                    return Ok(result);
                }
                Ok(Err(why)) => reason = why,
                Err(_) => {
                    return Err(WriteError::NoQuorum(
                        "the write was not decided in time; it may still be".to_owned(),
                    ));
                }
            }
            if let Err(fatal) = &self.0.raft.metrics().borrow().running_state {
                return Err(WriteError::Stopped(fatal.to_string()));
            }
            if Instant::now() + BETWEEN >= deadline {
                return Err(WriteError::NoQuorum(reason));
            }
            tokio::time::sleep(BETWEEN).await;
        }
    }

    /// Offers an entry to the leader once.
    async fn write_once(&self, entry: &Entry) -> Result<EntryResult, String> {
        let inner = &self.0;
        let (leader, quorum_silent_ms) = {
            let metrics = inner.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.current_leader, metrics.millis_since_quorum_ack)
        };
        let Some(leader) = leader else {
            return Err(
                "there is no leader: a majority of the nodes is not reachable from here".to_owned(),
            );
        };
        if leader == self.node_id() {
            if quorum_silent_ms.is_some_and(|silent| silent > QUORUM_SILENT_MS) {
                return Err(
                    "this node leads, but a majority of the nodes does not answer".to_owned(),
                );
            }
            return match inner.proposer.propose(entry.clone()).await {
                Ok(result) => Ok(result),
                Err(NotWritten::NotLeader(_)) => Err("the leader has changed".to_owned()),
                Err(NotWritten::Unknown(reason)) => Err(reason),
            };
        }
        let mut client = inner.speaker.client(leader).await?;
        let answer = client
            .write(WriteRequest {
                cluster_id: inner.speaker.node.cluster_id.clone(),
                entry: Some(entry.clone()),
            })
            .await
            .map_err(|status| {
                inner.speaker.note_failure(leader, &status);
                format!("node {leader}: {}", describe(&status))
            })?
            .into_inner();
        inner.speaker.peers.heard(leader, None);
        match answer.result {
            Some(result) => Ok(result),
            None if answer.not_leader => Err(format!("node {leader} does not lead any more")),
            None => Err(format!("node {leader}: {}", answer.error)),
        }
    }

    /// Waits until this node has applied a revision, so that whoever wrote here reads its own write here.
    async fn wait_until_here(&self, revision: u64, deadline: Instant) {
        let mut revisions = self.revisions();
        let here = revisions.wait_for(|applied| *applied >= revision);
        // The write has happened in any case.
        let _ = timeout_at(deadline, here).await;
    }

    /// Returns when everything that was acknowledged anywhere before the call can be read here.
    ///
    /// # Errors
    /// Where no quorum answers in time.
    pub async fn linearize(&self) -> Result<(), Unavailable> {
        self.0.reads.linearize().await
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
        self.0.speaker.node.node_id
    }

    /// The cluster's id.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        &self.0.speaker.node.cluster_id
    }

    /// Where the Raft port really listens.
    #[must_use]
    pub fn raft_address(&self) -> Option<SocketAddr> {
        self.0.listens
    }

    /// Whether this node leads, as far as it knows.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.node_id())
    }

    /// The leader, where one is known.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        self.0.raft.metrics().borrow().current_leader
    }

    /// Told whenever the leader, the membership or what is applied changes; ask [`Cluster::status`] then.
    pub async fn changed(&self, wanted: impl Fn(&Status) -> bool) {
        let mut metrics = self.0.raft.metrics();
        while !wanted(&self.status()) {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// The cluster as this node sees it.
    #[must_use]
    pub fn status(&self) -> Status {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let mut members: Vec<_> = membership
            .nodes()
            .map(|(id, peer)| Member {
                id: *id,
                addresses: peer.addresses(),
                voter: membership.voter_ids().any(|voter| voter == *id),
                matched: if *id == metrics.id {
                    metrics.last_log_index
                } else {
                    metrics
                        .replication
                        .as_ref()
                        .and_then(|replication| *replication.get(id)?)
                        .map(|matched| matched.index)
                },
                reachable: *id == metrics.id || self.0.speaker.peers.is_reachable(*id),
            })
            .collect();
        members.sort_by_key(|member| member.id);
        Status {
            leader: metrics.current_leader,
            term: metrics.current_term,
            applied: metrics.last_applied.map(|id| id.index),
            members,
        }
    }

    /// Removes a member. Its id is never used again.
    ///
    /// # Errors
    /// Where this node does not lead, or there is no quorum.
    pub async fn remove_node(&self, id: u64) -> Result<(), NotAdded> {
        self.0.changes.remove(id).await
    }

    /// Asks a zone, at whichever node its stream ends.
    ///
    /// # Errors
    /// Where no node that answers holds its stream.
    pub async fn query_zone(&self, zone: &str, query: Query) -> Result<QueryAnswer, QueryError> {
        let here = self.0.zones.query(zone.to_owned(), query.clone()).await;
        if let Some(answer) = here {
            return Ok(answer);
        }
        let patience = zone_patience(&query);
        let mut questions: FuturesUnordered<_> = self
            .others()
            .into_iter()
            .map(|id| {
                let request = QueryZoneRequest {
                    cluster_id: self.cluster_id().to_owned(),
                    zone: zone.to_owned(),
                    query: Some(query.clone()),
                };
                async move {
                    let question = async {
                        let mut client = self.0.speaker.client(id).await.ok()?;
                        client.query_zone(request).await.ok()
                    };
                    (id, timeout(patience, question).await.ok().flatten())
                }
            })
            .collect();
        let mut unreachable = Vec::new();
        while let Some((id, answer)) = questions.next().await {
            match answer.map(tonic::Response::into_inner) {
                None => unreachable.push(id),
                Some(response) => {
                    if let Some(answer) = response.answer {
                        return Ok(answer);
                    }
                }
            }
        }
        unreachable.sort_unstable();
        Err(QueryError::NotConnected {
            zone: zone.to_owned(),
            unreachable,
        })
    }

    /// The zones connected to all nodes.
    pub async fn zone_statuses(&self) -> ZoneStatuses {
        self.zone_statuses_within(ZONE_ANSWER).await
    }

    /// The zones connected to the nodes that answer in time.
    pub async fn zone_statuses_within(&self, patience: Duration) -> ZoneStatuses {
        let id = self.node_id();
        let here = self.0.zones.statuses();
        let mut statuses = ZoneStatuses {
            zones: here.into_iter().map(|zone| (id, zone)).collect(),
            nodes: vec![(id, self.own_certificate_end())],
            unreachable: Vec::new(),
        };
        let mut questions: FuturesUnordered<_> = self
            .others()
            .into_iter()
            .map(|id| async move {
                let request = ZoneStatusesRequest {
                    cluster_id: self.cluster_id().to_owned(),
                };
                let question = async {
                    let mut client = self.0.speaker.client(id).await.ok()?;
                    client.zone_statuses(request).await.ok()
                };
                (id, timeout(patience, question).await.ok().flatten())
            })
            .collect();
        while let Some((id, answer)) = questions.next().await {
            match answer {
                None => statuses.unreachable.push(id),
                Some(response) => {
                    let response = response.into_inner();
                    let zones = response.zones.into_iter().map(|zone| (id, zone));
                    statuses.zones.extend(zones);
                    statuses
                        .nodes
                        .push((id, response.node_certificate_not_after));
                }
            }
        }
        statuses.unreachable.sort_unstable();
        statuses
    }

    /// When this node's own certificate ends, in Unix seconds; 0: not known.
    #[must_use]
    pub fn own_certificate_end(&self) -> u64 {
        self.0.speaker.peers.own_certificate_end()
    }

    /// What was refused at every node, and which secrets were read there.
    pub async fn attempts(&self, wanted: &Wanted) -> Attempts {
        let id = self.node_id();
        let (log, here) = (self.0.attempts.clone(), wanted.clone());
        let here = tokio::task::spawn_blocking(move || log.find(&here, id));
        let json = serde_json::to_vec(wanted).unwrap_or_default();
        let mut questions: FuturesUnordered<_> = self
            .others()
            .into_iter()
            .map(|id| {
                let request = AttemptsRequest {
                    cluster_id: self.cluster_id().to_owned(),
                    wanted: json.clone(),
                };
                async move {
                    let question = async {
                        let mut client = self.0.speaker.client(id).await.ok()?;
                        let found = client.attempts(request).await.ok()?.into_inner().found;
                        serde_json::from_slice::<Vec<Attempt>>(&found).ok()
                    };
                    (id, timeout(ZONE_ANSWER, question).await.ok().flatten())
                }
            })
            .collect();
        let mut attempts = Attempts::default();
        while let Some((id, found)) = questions.next().await {
            match found {
                None => attempts.unreachable.push(id),
                Some(found) => {
                    attempts
                        .found
                        .extend(found.into_iter().map(|attempt| (id, attempt)));
                }
            }
        }
        match here.await {
            Ok(found) => {
                attempts
                    .found
                    .extend(found.into_iter().map(|attempt| (id, attempt)));
            }
            Err(_) => attempts.unreachable.push(id),
        }
        attempts.unreachable.sort_unstable();
        attempts
    }

    fn others(&self) -> Vec<u64> {
        let mut ids = self.0.speaker.members.ids();
        ids.retain(|id| *id != self.node_id());
        ids
    }

    /// Resolves with the reason when this node can not go on (its disk failed, its store is broken). The process must
    /// then exit with an error: it is no member any more and would serve old state.
    pub async fn failed(&self) -> String {
        let mut metrics = self.0.raft.metrics();
        let failed = metrics.wait_for(|metrics| metrics.running_state.is_err());
        match failed.await {
            Ok(metrics) => match &metrics.running_state {
                Err(fatal) => fatal.to_string(),
                Ok(()) => "Raft has stopped".to_owned(),
            },
            Err(_) => "Raft has stopped".to_owned(),
        }
    }

    /// Stops serving peers, and waits until Raft has stopped and the store is closed.
    pub async fn shutdown(&self) {
        const CLOSING: Duration = Duration::from_secs(10);
        self.0.stop.cancel();
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not stop as it should");
        }
        self.0.tasks.close();
        self.0.tasks.wait().await;
        if timeout(CLOSING, self.0.closed.clone().wait())
            .await
            .is_err()
        {
            tracing::warn!(
                "the store is still in use; what is acknowledged is on disk all the same"
            );
        }
    }
}

async fn open_store(
    data_dir: PathBuf,
    node: Node,
    start: &Start,
) -> Result<(store::Store, NodeFile), StartError> {
    let found = directory::load(&data_dir)?;
    let file = match (start, found) {
        (_, Some(file)) => file,
        (Start::Bootstrap, None) => NodeFile {
            node: node.clone(),
            via: Vec::new(),
        },
        (Start::Join(via), None) => NodeFile {
            node: node.clone(),
            via: via.clone(),
        },
        (Start::Again, None) => {
            return Err(DirectoryError::Incomplete {
                data_dir,
                found: "an identity".to_owned(),
            }
            .into());
        }
    };
    let opened = tokio::task::spawn_blocking(move || {
        let new = !directory::node_file(&data_dir).exists();
        let store = store::open(&data_dir, &node, new)?;
        if new {
            directory::save(&data_dir, &file)?;
        }
        Ok::<_, store::OpenError>((store, file))
    });
    Ok(opened
        .await
        .map_err(|error| StartError::Raft(error.to_string()))??)
}

/// Tells the leader when this node is somewhere else than the membership says, and asks silent nodes whether they are
/// there. Ends with the cluster.
async fn keep_house(cluster: std::sync::Weak<Inner>) {
    const EVERY: Duration = Duration::from_secs(1);
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    let mut try_again = Instant::now();
    loop {
        tokio::time::sleep(EVERY).await;
        let Some(inner) = cluster.upgrade() else {
            return;
        };
        let cluster = Cluster(inner);
        cluster.ping_silent(EVERY);
        if Instant::now() >= try_again {
            match cluster.register_addresses().await {
                Ok(()) => backoff.reset(),
                Err(reason) => {
                    tracing::warn!(
                        reason,
                        "the cluster does not know this node's new addresses yet"
                    );
                    try_again = Instant::now() + backoff.next_wait(random());
                }
            }
        }
    }
}

/// Asks a node whether it is there, and where it finds the others.
async fn ping(speaker: &Speaker, id: u64) {
    let Ok(mut client) = speaker.client(id).await else {
        return;
    };
    let request = ReadIndexRequest {
        cluster_id: speaker.node.cluster_id.clone(),
        raft_address: speaker.raft_address.clone(),
    };
    match client.read_index(request).await {
        Ok(answer) => {
            speaker.peers.heard(id, None);
            for known in answer.into_inner().known {
                speaker.peers.may_be_at(known.id, &known.raft_address);
            }
        }
        Err(status) => speaker.note_failure(id, &status),
    }
}

impl Cluster {
    fn ping_silent(&self, silence: Duration) {
        for id in self.others() {
            let speaker = self.0.speaker.clone();
            let heard = speaker.peers.silent_for(id);
            if heard.is_some_and(|silent| silent < silence) {
                continue;
            }
            speaker.peers.report_silence(id);
            self.0.tasks.spawn(async move {
                // Whoever does not answer in time is asked again.
                let _ = timeout(silence, ping(&speaker, id)).await;
            });
        }
    }

    async fn register_addresses(&self) -> Result<(), String> {
        let inner = &self.0;
        let id = self.node_id();
        match inner.speaker.members.peer(id) {
            Some(known) if known != inner.own => {}
            _ => return Ok(()),
        }
        match self.leader() {
            None => Ok(()),
            Some(leader) if leader == id => inner
                .changes
                .add(id, inner.own.clone())
                .await
                .map_err(|error| error.to_string()),
            Some(leader) => {
                let address = inner.speaker.members.addresses(leader).unwrap_or_default();
                membership::ask_to_be_added(&inner.speaker, &inner.own, &address.raft)
                    .await
                    .map_err(|(reason, _)| reason)
            }
        }
    }
}
