//! What other nodes ask of this one. Every call names the cluster, and the caller is who its certificate says.

use std::{sync::Arc, time::Duration};

use mesh_proto::{
    raft::{
        AddNodeRequest, AddNodeResponse, AttemptsRequest, AttemptsResponse, QueryZoneRequest,
        QueryZoneResponse, RaftMessage, ReadIndexRequest, ReadIndexResponse, SnapshotChunk,
        WriteRequest, WriteResponse, ZoneStatusesRequest, ZoneStatusesResponse, raft_server,
    },
    zone::NodeAddresses,
};
use mesh_runtime::transport::peer_spiffe;
use openraft::{Raft, Snapshot};
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt as _;
use tonic::{Request, Response, Status, Streaming};

use super::{
    ZoneStreams,
    membership::{self, NotAdded},
    network::{SnapshotHeader, Speaker},
    proposer::{NotWritten, Proposer},
    reads::leaders_index,
};
use crate::{
    audit::{AttemptLog, Wanted},
    store::{
        snapshot::Snapshots,
        types::{Peer, TypeConfig},
    },
};

/// How long the next part of a snapshot may take to come.
const CHUNK_TIME: Duration = Duration::from_secs(30);

/// Answers other nodes.
pub struct Service {
    pub(super) raft: Raft<TypeConfig>,
    pub(super) speaker: Arc<Speaker>,
    pub(super) proposer: Proposer,
    pub(super) snapshots: Snapshots,
    pub(super) zones: Arc<dyn ZoneStreams>,
    pub(super) attempts: AttemptLog,
    pub(super) membership: membership::Changes,
}

impl Service {
    /// The node that calls, which must be of this cluster.
    fn caller<T>(&self, request: &Request<T>, cluster_id: &str) -> Result<u64, Status> {
        let id = certified(request)?;
        if cluster_id == self.speaker.node.cluster_id {
            return Ok(id);
        }
        Err(Status::permission_denied(format!(
            "this node is of cluster {:?}, the caller speaks for cluster {cluster_id:?}",
            self.speaker.node.cluster_id
        )))
    }

    fn read<T: DeserializeOwned>(&self, request: &Request<RaftMessage>) -> Result<T, Status> {
        let id = certified(request)?;
        let message = request.get_ref();
        self.speaker
            .check(id, &message.cluster_id, message.from, &message.node_uuid)
            .map_err(refused)?;
        self.speaker.peers.heard(id, Some(&message.raft_address));
        serde_json::from_slice(&message.payload)
            .map_err(|error| Status::invalid_argument(format!("not understood: {error}")))
    }

    async fn receive_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<RaftMessage, Status> {
        let id = certified(&request)?;
        let mut chunks = request.into_inner();
        let first = next(&mut chunks)
            .await?
            .ok_or_else(|| Status::invalid_argument("a snapshot without a header"))?;
        self.speaker
            .check(id, &first.cluster_id, first.from, &first.node_uuid)
            .map_err(refused)?;
        let header: SnapshotHeader = serde_json::from_slice(&first.header)
            .map_err(|error| Status::invalid_argument(format!("not understood: {error}")))?;
        tracing::info!(from = id, meta = %header.meta, "receiving a snapshot");
        let (file, handle) = self.snapshots.begin_receiving().map_err(own_disk)?;
        let mut out = tokio::fs::File::from_std(handle);
        let received = async {
            while let Some(chunk) = next(&mut chunks).await? {
                out.write_all(&chunk.data).await.map_err(own_disk)?;
                self.speaker.peers.heard(id, None);
            }
            out.sync_all().await.map_err(own_disk)
        };
        let received = received.await;
        // What is damaged or foreign must not get as far as Raft, which could only stop.
        let checked = match received {
            Ok(()) => {
                let (snapshots, file) = (self.snapshots.clone(), file.clone());
                tokio::task::spawn_blocking(move || snapshots.check(&file))
                    .await
                    .map_err(|error| Status::internal(error.to_string()))?
                    .map_err(|error| Status::data_loss(error.to_string()))
            }
            Err(status) => Err(status),
        };
        if let Err(status) = checked {
            tracing::warn!(%status, from = id, "a snapshot was not received");
            let _ = tokio::fs::remove_file(&file.path).await;
            return Err(status);
        }
        let snapshot = Snapshot {
            meta: header.meta,
            snapshot: Box::new(file.clone()),
        };
        let answer = self
            .raft
            .install_full_snapshot(header.vote, snapshot)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        // Taken over, it has another name now; refused as too old, it is still here.
        let _ = tokio::fs::remove_file(&file.path).await;
        self.speaker.answer(&answer)
    }
}

fn certified<T>(request: &Request<T>) -> Result<u64, Status> {
    peer_spiffe(request)
        .and_then(|id| id.as_global_node())
        .ok_or_else(|| Status::unauthenticated("only global nodes may call this port"))
}

fn refused(reason: String) -> Status {
    tracing::error!(reason, "another node's message is refused");
    Status::permission_denied(reason)
}

fn own_disk(error: std::io::Error) -> Status {
    Status::resource_exhausted(format!("the receiver's disk: {error}"))
}

async fn next(chunks: &mut Streaming<SnapshotChunk>) -> Result<Option<SnapshotChunk>, Status> {
    tokio::time::timeout(CHUNK_TIME, chunks.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the snapshot has stopped coming"))?
}

#[tonic::async_trait]
impl raft_server::Raft for Service {
    async fn append_entries(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let answer = self
            .raft
            .append_entries(self.read(&request)?)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(self.speaker.answer(&answer)?))
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let answer = self
            .raft
            .vote(self.read(&request)?)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(self.speaker.answer(&answer)?))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<RaftMessage>, Status> {
        self.receive_snapshot(request).await.map(Response::new)
    }

    async fn write(
        &self,
        request: Request<WriteRequest>,
    ) -> Result<Response<WriteResponse>, Status> {
        self.caller(&request, &request.get_ref().cluster_id)?;
        let entry = request
            .into_inner()
            .entry
            .ok_or_else(|| Status::invalid_argument("a write without an entry"))?;
        let response = match self.proposer.propose(entry).await {
            Ok(result) => WriteResponse {
                result: Some(result),
                ..WriteResponse::default()
            },
            Err(NotWritten::NotLeader(leader)) => WriteResponse {
                not_leader: true,
                leader: leader.unwrap_or_default(),
                ..WriteResponse::default()
            },
            Err(NotWritten::Unknown(reason)) => WriteResponse {
                error: reason,
                ..WriteResponse::default()
            },
        };
        Ok(Response::new(response))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        let id = self.caller(&request, &request.get_ref().cluster_id)?;
        let address = &request.get_ref().raft_address;
        self.speaker.peers.heard(id, Some(address));
        let mut response = ReadIndexResponse {
            known: self.speaker.known_places(),
            ..ReadIndexResponse::default()
        };
        if self.raft.metrics().borrow().current_leader == Some(self.speaker.node.node_id) {
            match leaders_index(&self.raft, &self.speaker).await {
                Ok(index) => response.index = index,
                Err(error) => response.error = error,
            }
        } else {
            response.not_leader = true;
        }
        Ok(Response::new(response))
    }

    async fn add_node(
        &self,
        request: Request<AddNodeRequest>,
    ) -> Result<Response<AddNodeResponse>, Status> {
        let id = self.caller(&request, &request.get_ref().cluster_id)?;
        let AddNodeRequest {
            node_id,
            addresses,
            node_uuid,
            ..
        } = request.into_inner();
        if node_id != id {
            return Err(Status::permission_denied(format!(
                "node {id} can not add node {node_id}, only itself"
            )));
        }
        let peer = Peer::new(addresses.unwrap_or_default(), &node_uuid);
        let response = match self.membership.add(id, peer).await {
            Ok(()) => AddNodeResponse::default(),
            Err(NotAdded::NotLeader(leader)) => AddNodeResponse {
                not_leader: true,
                leader_address: leader
                    .and_then(|leader| self.speaker.members.addresses(leader))
                    .map(|NodeAddresses { raft, .. }| raft)
                    .unwrap_or_default(),
                ..AddNodeResponse::default()
            },
            Err(error) => AddNodeResponse {
                error: error.to_string(),
                ..AddNodeResponse::default()
            },
        };
        Ok(Response::new(response))
    }

    async fn query_zone(
        &self,
        request: Request<QueryZoneRequest>,
    ) -> Result<Response<QueryZoneResponse>, Status> {
        self.caller(&request, &request.get_ref().cluster_id)?;
        let QueryZoneRequest { zone, query, .. } = request.into_inner();
        let answer = self.zones.query(zone, query.unwrap_or_default()).await;
        Ok(Response::new(QueryZoneResponse {
            not_connected: answer.is_none(),
            answer,
        }))
    }

    async fn attempts(
        &self,
        request: Request<AttemptsRequest>,
    ) -> Result<Response<AttemptsResponse>, Status> {
        self.caller(&request, &request.get_ref().cluster_id)?;
        let wanted: Wanted = serde_json::from_slice(&request.into_inner().wanted)
            .map_err(|error| Status::invalid_argument(format!("not understood: {error}")))?;
        let (log, id) = (self.attempts.clone(), self.speaker.node.node_id);
        let found = tokio::task::spawn_blocking(move || log.find(&wanted, id))
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(AttemptsResponse {
            found: serde_json::to_vec(&found).unwrap_or_default(),
        }))
    }

    async fn zone_statuses(
        &self,
        request: Request<ZoneStatusesRequest>,
    ) -> Result<Response<ZoneStatusesResponse>, Status> {
        self.caller(&request, &request.get_ref().cluster_id)?;
        Ok(Response::new(ZoneStatusesResponse {
            zones: self.zones.statuses(),
            node_certificate_not_after: self.speaker.peers.own_certificate_end(),
        }))
    }
}
