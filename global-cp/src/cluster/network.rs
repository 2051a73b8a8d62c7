//! What Raft says to the other nodes.

use std::{future::Future, io, sync::Arc, time::Duration};

use futures::StreamExt as _;
use mesh_proto::raft::{KnownNode, RaftMessage, SnapshotChunk};
use openraft::{
    AnyError, OptionalSend, RaftNetwork, RaftNetworkFactory, Snapshot,
    error::{
        Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
    },
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{io::AsyncReadExt as _, task::JoinHandle};
use tonic::{Code, Request, Status};

use super::peers::{Client, Peers};
use crate::store::{
    directory::Node,
    snapshot::SnapshotFile,
    types::{LogId, Peer, SnapshotMeta, TypeConfig, Vote},
};

/// Bytes of a snapshot in one message.
const CHUNK: usize = 256 << 10;
/// How long a snapshot may take, from the first byte to its being installed.
const SNAPSHOT_TIME: Duration = Duration::from_secs(600);
/// How long entries may take, however long Raft waits for them at a time.
const ENTRIES_TIME: Duration = Duration::from_secs(30);
/// How long Raft lets a node alone that is not reached.
const UNREACHABLE_WAIT: Duration = Duration::from_millis(150);

type Failed = RPCError<u64, Peer, RaftError<u64>>;

/// Who speaks.
#[derive(Clone)]
pub struct Speaker {
    /// This node.
    pub node: Node,
    /// Where it is reached.
    pub raft_address: String,
    /// The others.
    pub peers: Peers,
    /// Whether each member is still on the disk it joined with.
    pub members: super::Members,
    /// Index of the last entry of this node's log when it started.
    pub begun: u64,
}

/// Makes connections to nodes for Raft.
pub struct Network(pub Arc<Speaker>);

/// Raft's end of one connection.
pub struct Link {
    speaker: Arc<Speaker>,
    target: u64,
    under_way: Option<UnderWay>,
}

/// Entries that were sent and not yet answered.
///
/// Raft waits for an answer only as long as a heartbeat takes, and then sends the same again. Where entries are many or
/// the way is long, that would never end; so the call goes on by itself, and Raft's next attempt waits for its answer.
struct UnderWay {
    vote: Vote,
    previous: Option<LogId>,
    last: LogId,
    answer: JoinHandle<Result<AppendEntriesResponse<u64>, Failed>>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Link {
        self.0.peers.may_be_at(target, &node.raft);
        Link {
            speaker: self.0.clone(),
            target,
            under_way: None,
        }
    }
}

#[derive(Clone, Copy)]
enum Method {
    AppendEntries,
    Vote,
}

async fn call<Q: Serialize, A: DeserializeOwned>(
    speaker: &Speaker,
    target: u64,
    method: Method,
    request: &Q,
    patience: Duration,
) -> Result<A, Failed> {
    let mut client = speaker
        .client(target)
        .await
        .map_err(|reason| unreachable(&reason))?;
    let mut message = Request::new(speaker.message(request).map_err(|error| network(&error))?);
    message.set_timeout(patience);
    let answer = match method {
        Method::AppendEntries => client.append_entries(message).await,
        Method::Vote => client.vote(message).await,
    };
    let answer = answer
        .map_err(|status| {
            speaker.note_failure(target, &status);
            failed(&status)
        })?
        .into_inner();
    speaker
        .check(target, &answer.cluster_id, answer.from, &answer.node_uuid)
        .map_err(|reason| unreachable(&reason))?;
    speaker.peers.heard(target, None);
    serde_json::from_slice(&answer.payload).map_err(|error| network(&error))
}

/// Sends entries or a heartbeat, and compares the answer with what the node said before.
async fn append(
    speaker: &Speaker,
    target: u64,
    request: AppendEntriesRequest<TypeConfig>,
    patience: Duration,
) -> Result<AppendEntriesResponse<u64>, Failed> {
    let answer = call(speaker, target, Method::AppendEntries, &request, patience).await?;
    let peers = &speaker.peers;
    let previous = request.prev_log_id;
    let sent = request
        .entries
        .last()
        .map(|entry| entry.log_id)
        .or(previous);
    match &answer {
        AppendEntriesResponse::Success => {
            if let Some(matched) = sent {
                peers.acknowledged(target, request.vote, matched);
            }
        }
        AppendEntriesResponse::PartialSuccess(Some(matched)) => {
            peers.acknowledged(target, request.vote, *matched);
        }
        AppendEntriesResponse::Conflict => {
            // openraft takes it for granted that this does not happen: a debug build panics, a release build goes on
            // with a follower that has forgotten what counted for commits.
            if let Some(missing) = previous
                && peers.has_lost(target, request.vote, missing)
            {
                let reason = format!(
                    "node {target} has lost log entries it had acknowledged (it lacks {missing}): its data was wiped or \
                     put back to an older state. It is not counted on any more. Stop it and run `meshctl global \
                     recover` on its machine"
                );
                tracing::error!(node = target, %missing, "{reason}");
                return Err(unreachable(&reason));
            }
        }
        AppendEntriesResponse::PartialSuccess(None) | AppendEntriesResponse::HigherVote(_) => {}
    }
    Ok(answer)
}

impl Link {
    /// Sends entries, or waits for the answer to the same ones where they are under way.
    async fn append_entries_or_wait(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        last: LogId,
    ) -> Result<AppendEntriesResponse<u64>, Failed> {
        let same = self.under_way.as_ref().is_some_and(|sent| {
            sent.vote == request.vote && sent.previous == request.prev_log_id && sent.last <= last
        });
        let (speaker, target) = (self.speaker.clone(), self.target);
        let sent = match self.under_way.take() {
            Some(sent) if same => {
                // Meanwhile the follower must hear that there is a leader.
                let heartbeat = AppendEntriesRequest {
                    entries: Vec::new(),
                    ..request
                };
                tokio::spawn(async move {
                    let _ = append(&speaker, target, heartbeat, ENTRIES_TIME).await;
                });
                self.under_way.insert(sent)
            }
            _ => self.under_way.insert(UnderWay {
                vote: request.vote,
                previous: request.prev_log_id,
                last,
                answer: tokio::spawn(async move {
                    append(&speaker, target, request, ENTRIES_TIME).await
                }),
            }),
        };
        let answer = (&mut sent.answer).await;
        let sent_last = sent.last;
        self.under_way = None;
        match answer.map_err(|error| network(&error))?? {
            // Raft has more to send by now than it had then.
            AppendEntriesResponse::Success if sent_last < last => {
                Ok(AppendEntriesResponse::PartialSuccess(Some(sent_last)))
            }
            answer => Ok(answer),
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        file: SnapshotFile,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let speaker = &self.speaker;
        let away = |reason: String| Unreachable::new(&AnyError::error(reason));
        let mut client = speaker.client(self.target).await.map_err(away)?;
        let header = serde_json::to_vec(&SnapshotHeader { vote, meta })
            .map_err(|error| NetworkError::new(&error))?;
        let first = SnapshotChunk {
            cluster_id: speaker.node.cluster_id.clone(),
            from: speaker.node.node_id,
            header,
            data: Vec::new(),
            node_uuid: speaker.node.node_uuid.clone(),
        };
        let file = tokio::fs::File::open(&file.path)
            .await
            .map_err(|error| NetworkError::new(&error))?;
        // A file that can not be read any more ends the stream early, and the receiver finds the checksum wrong.
        let chunks = futures::stream::once(std::future::ready(first)).chain(chunks(file));
        let mut request = Request::new(chunks);
        request.set_timeout(SNAPSHOT_TIME);
        let answer = client
            .install_snapshot(request)
            .await
            .map_err(|status| away(describe(&status)))?
            .into_inner();
        speaker
            .check(
                self.target,
                &answer.cluster_id,
                answer.from,
                &answer.node_uuid,
            )
            .map_err(away)?;
        speaker.peers.heard(self.target, None);
        Ok(serde_json::from_slice(&answer.payload).map_err(|error| NetworkError::new(&error))?)
    }
}

/// What goes before a snapshot.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct SnapshotHeader {
    /// The sender's vote.
    pub vote: Vote,
    /// What the snapshot holds.
    pub meta: SnapshotMeta,
}

fn chunks(file: tokio::fs::File) -> impl futures::Stream<Item = SnapshotChunk> {
    futures::stream::unfold(file, |mut file| async move {
        let mut data = vec![0; CHUNK];
        let read = file.read(&mut data).await;
        match read {
            Ok(0) => None,
            Ok(length) => {
                data.truncate(length);
                let chunk = SnapshotChunk {
                    data,
                    ..SnapshotChunk::default()
                };
                Some((chunk, file))
            }
            Err(error) => {
                tracing::error!(%error, "a snapshot can not be read to be sent");
                None
            }
        }
    })
}

impl Speaker {
    /// Calls to a node, at the address that is known best.
    ///
    /// # Errors
    /// Where the node is no member or not reached, in words.
    pub async fn client(&self, id: u64) -> Result<Client, String> {
        if let Some(addresses) = self.members.addresses(id) {
            self.peers.may_be_at(id, &addresses.raft);
        }
        self.peers.client(id).await
    }

    /// Where this node finds the others.
    #[must_use]
    pub fn known_places(&self) -> Vec<KnownNode> {
        let mut ids = self.members.ids();
        ids.retain(|id| *id != self.node.node_id);
        ids.into_iter()
            .filter_map(|id| {
                let raft_address = self.peers.place(id)?;
                Some(KnownNode { id, raft_address })
            })
            .collect()
    }

    /// Notes what a failed call says of the way to a node.
    pub fn note_failure(&self, id: u64, status: &Status) {
        // The node itself answers without a source; a broken connection has one.
        if status.code() == Code::Unavailable && std::error::Error::source(status).is_some() {
            self.peers.lost(id);
        }
    }

    /// Wraps what Raft says.
    fn message(&self, payload: &impl Serialize) -> Result<RaftMessage, serde_json::Error> {
        Ok(RaftMessage {
            cluster_id: self.node.cluster_id.clone(),
            from: self.node.node_id,
            payload: serde_json::to_vec(payload)?,
            node_uuid: self.node.node_uuid.clone(),
            raft_address: self.raft_address.clone(),
        })
    }

    /// Wraps an answer.
    ///
    /// # Errors
    /// Where it can not be written as JSON.
    pub fn answer(&self, payload: &impl Serialize) -> Result<RaftMessage, Status> {
        self.message(payload)
            .map_err(|error| Status::internal(error.to_string()))
    }

    /// Whether a message said to be from `from` is from the node that `certified` is, of this cluster, and still on the
    /// disk it joined with.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn check(
        &self,
        certified: u64,
        cluster_id: &str,
        from: u64,
        node_uuid: &str,
    ) -> Result<(), String> {
        if cluster_id != self.node.cluster_id {
            return Err(format!(
                "node {certified} speaks for cluster {cluster_id:?}, this node is of cluster {:?}",
                self.node.cluster_id
            ));
        }
        if from != certified {
            return Err(format!(
                "a message of node {from} came with the certificate of node {certified}"
            ));
        }
        match self.members.uuid(from) {
            Some(known) if known != node_uuid => Err(format!(
                "node {from} joined with the disk {known} and now has {node_uuid:?}: it must join again under a new id"
            )),
            _ => Ok(()),
        }
    }
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed> {
        match request.entries.last().map(|entry| entry.log_id) {
            Some(last) => self.append_entries_or_wait(request, last).await,
            None => append(&self.speaker, self.target, request, option.hard_ttl()).await,
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failed> {
        let patience = option.hard_ttl();
        call(&self.speaker, self.target, Method::Vote, &request, patience).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let Snapshot { meta, snapshot } = snapshot;
        tracing::info!(node = self.target, %meta, "sending a snapshot");
        tokio::select! {
            sent = self.send_snapshot(vote, meta, *snapshot) => sent,
            closed = cancel => Err(closed.into()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_WAIT))
    }
}

fn unreachable(reason: &str) -> Failed {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(reason)))
}

fn network(error: &(impl std::error::Error + 'static)) -> Failed {
    RPCError::Network(NetworkError::new(error))
}

/// A refused or unanswered call: Raft waits a little before the next.
fn failed(status: &Status) -> Failed {
    RPCError::Unreachable(Unreachable::new(&io::Error::other(describe(status))))
}

/// The message of a failed call.
#[must_use]
pub fn describe(status: &Status) -> String {
    match (status.code(), std::error::Error::source(status)) {
        (Code::Unavailable | Code::Unknown, Some(source)) => {
            mesh_runtime::transport::innermost(source)
        }
        _ => status.message().to_owned(),
    }
}
