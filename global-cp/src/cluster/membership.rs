//! Changes of the membership, at the leader; and how a node asks for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use mesh_proto::raft::AddNodeRequest;
use mesh_runtime::backoff::{Backoff, random};
use openraft::{
    ChangeMembers, Raft,
    error::{ChangeMembershipError, ClientWriteError, RaftError},
};
use tokio::{sync::Mutex, time::Instant};

use super::network::{Speaker, describe};
use crate::store::types::{Peer, TypeConfig};

/// How long a new node may take to catch up before it is made a voter.
const CATCH_UP: Duration = Duration::from_secs(300);
/// How long another change of the membership may be under way.
const OTHER_CHANGE: Duration = Duration::from_secs(30);

/// Why a node was not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdded {
    /// This node does not lead; who does, where known.
    #[error("this node does not lead")]
    NotLeader(Option<u64>),
    /// The id is taken by a node with another disk.
    #[error(
        "node {id} is a member with another disk: a node whose disk is new gets a new id, by joining with a new token"
    )]
    Taken {
        /// The id.
        id: u64,
    },
    /// There is no quorum, or the node does not catch up.
    #[error("{0}")]
    Failed(String),
}

/// Changes the membership, one change at a time.
#[derive(Clone)]
pub struct Changes {
    raft: Raft<TypeConfig>,
    one_at_a_time: Arc<Mutex<()>>,
}

impl Changes {
    /// Changes that of `raft`.
    #[must_use]
    pub fn new(raft: Raft<TypeConfig>) -> Self {
        Self {
            raft,
            one_at_a_time: Arc::new(Mutex::new(())),
        }
    }

    /// Makes a node a voter that is reached at `peer`'s addresses: a new one first learns until it has caught up, one
    /// that is a member gets its new addresses. Does nothing where all is as asked.
    ///
    /// # Errors
    /// Where this node does not lead, the id is another's, or there is no quorum.
    pub async fn add(&self, id: u64, peer: Peer) -> Result<(), NotAdded> {
        let _one = self.one_at_a_time.lock().await;
        self.leads()?;
        let (known, voter) = self.member(id);
        match known {
            Some(known) if known.node_uuid != peer.node_uuid => return Err(NotAdded::Taken { id }),
            Some(known) if known == peer => {}
            Some(_) => {
                let nodes = BTreeMap::from([(id, peer.clone())]);
                self.change(ChangeMembers::SetNodes(nodes)).await?;
                tracing::info!(node = id, address = %peer, "a member has new addresses");
            }
            None => {
                let nodes = BTreeMap::from([(id, peer.clone())]);
                self.change(ChangeMembers::AddNodes(nodes)).await?;
                tracing::info!(node = id, address = %peer, "a new node learns");
            }
        }
        if voter {
            return Ok(());
        }
        self.caught_up(id).await?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id])))
            .await?;
        tracing::info!(node = id, "a new node is a voter");
        Ok(())
    }

    /// Removes a member, which must not be used again under its id.
    ///
    /// # Errors
    /// Where this node does not lead or there is no quorum.
    pub async fn remove(&self, id: u64) -> Result<(), NotAdded> {
        let _one = self.one_at_a_time.lock().await;
        self.leads()?;
        let (known, voter) = self.member(id);
        if voter {
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id])))
                .await?;
        }
        if known.is_some() {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id])))
                .await?;
            tracing::info!(node = id, "a node is no member any more");
        }
        Ok(())
    }

    fn leads(&self) -> Result<(), NotAdded> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if metrics.current_leader == Some(metrics.id) {
            Ok(())
        } else {
            Err(NotAdded::NotLeader(metrics.current_leader))
        }
    }

    fn member(&self, id: u64) -> (Option<Peer>, bool) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        (
            membership.get_node(&id).cloned(),
            membership.voter_ids().any(|voter| voter == id),
        )
    }

    /// Waits until the leader knows that a learner has nearly everything.
    async fn caught_up(&self, id: u64) -> Result<(), NotAdded> {
        const NEARLY: u64 = 100;
        self.raft
            .wait(Some(CATCH_UP))
            .metrics(
                |metrics| match &metrics.replication {
                    // Not the leader any more: there is nothing to wait for.
                    None => true,
                    Some(replication) => replication
                        .get(&id)
                        .and_then(|matched| *matched)
                        .is_some_and(|matched| {
                            matched.index + NEARLY >= metrics.last_log_index.unwrap_or_default()
                        }),
                },
                "the new node has caught up",
            )
            .await
            .map_err(|error| {
                NotAdded::Failed(format!(
                    "node {id} has not caught up and stays a learner: {error}"
                ))
            })?;
        self.leads()
    }

    async fn change(&self, change: ChangeMembers<u64, Peer>) -> Result<(), NotAdded> {
        let deadline = Instant::now() + OTHER_CHANGE;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            // A voter that is removed does not stay as a learner.
            let changing = self.raft.change_membership(change.clone(), false);
            let changed = tokio::time::timeout_at(deadline, changing).await;
            match changed {
                Err(_) => return Err(NotAdded::Failed("there is no quorum".to_owned())),
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                    return Err(NotAdded::NotLeader(to.leader_id));
                }
                Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_),
                )))) if Instant::now() < deadline => {
                    tokio::time::sleep(backoff.next_wait(random())).await;
                }
                Ok(Err(error)) => return Err(NotAdded::Failed(error.to_string())),
            }
        }
    }
}

/// Asks the node at `address`, and from there the leader, to add this node. Returns when it is a voter.
///
/// # Errors
/// Why not, in words, and whether it is worth asking again.
pub async fn ask_to_be_added(
    speaker: &Speaker,
    peer: &Peer,
    address: &str,
) -> Result<(), (String, Again)> {
    const ASK: Duration = Duration::from_secs(CATCH_UP.as_secs() + 60);
    let mut address = address.to_owned();
    // The leader may change between two questions, but not for ever.
    for _ in 0..5 {
        let mut client = speaker
            .peers
            .client_at(&address)
            .await
            .map_err(|reason| (reason, Again::Yes))?;
        let mut request = tonic::Request::new(AddNodeRequest {
            cluster_id: speaker.node.cluster_id.clone(),
            node_id: speaker.node.node_id,
            addresses: Some(peer.addresses()),
            node_uuid: peer.node_uuid.clone(),
        });
        request.set_timeout(ASK);
        let answer = client
            .add_node(request)
            .await
            .map_err(|status| {
                let again = match status.code() {
                    tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Again::No,
                    _ => Again::Yes,
                };
                (format!("{address}: {}", describe(&status)), again)
            })?
            .into_inner();
        if !answer.not_leader {
            return if answer.error.is_empty() {
                Ok(())
            } else {
                Err((format!("{address}: {}", answer.error), Again::Yes))
            };
        }
        if answer.leader_address.is_empty() {
            return Err((format!("{address} knows no leader"), Again::Yes));
        }
        address = answer.leader_address;
    }
    Err(("the leader keeps changing".to_owned(), Again::Yes))
}

/// Whether a refusal may be another tomorrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Again {
    Yes,
    No,
}
