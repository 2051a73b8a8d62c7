//! Reads that see everything acknowledged before them, on any node.
//!
//! A round asks the leader how far its log is committed, which it confirms with a quorum, and waits until this node has
//! applied that much. Readers that come while a round is under way share the next one.

use std::{sync::Arc, time::Duration};

use mesh_proto::raft::ReadIndexRequest;
use openraft::Raft;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    Unavailable,
    network::{Speaker, describe},
};
use crate::store::types::TypeConfig;

/// Readers that wait for a round, at most; who brings one more waits for a place.
const QUEUE: usize = 4096;
/// How long readers wait for a leader with a quorum. Longer than an election takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one question to the leader may take.
const ONE_QUESTION: Duration = Duration::from_secs(1);
/// Wait between two questions.
const BETWEEN: Duration = Duration::from_millis(25);

type Reader = oneshot::Sender<Result<(), Unavailable>>;

/// Takes readers.
#[derive(Clone)]
pub struct Reads(mpsc::Sender<Reader>);

impl Reads {
    /// Starts to take readers. Ends with the last clone.
    #[must_use]
    pub fn start(raft: Raft<TypeConfig>, speaker: Arc<Speaker>) -> Self {
        let (sender, mut readers) = mpsc::channel::<Reader>(QUEUE);
        tokio::spawn(async move {
            while let Some(first) = readers.recv().await {
                let mut group = vec![first];
                while let Ok(reader) = readers.try_recv() {
                    group.push(reader);
                }
                let result = round(&raft, &speaker).await;
                for reader in group {
                    let _ = reader.send(result.clone());
                }
            }
        });
        Self(sender)
    }

    /// Returns when everything acknowledged before the call can be read here.
    ///
    /// # Errors
    /// Where no leader with a quorum is found in time.
    pub async fn linearize(&self) -> Result<(), Unavailable> {
        let stopped = || Unavailable("this node is stopping".to_owned());
        let (sender, result) = oneshot::channel();
        self.0.send(sender).await.map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())?
    }
}

async fn round(raft: &Raft<TypeConfig>, speaker: &Speaker) -> Result<(), Unavailable> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let question = (Instant::now() + ONE_QUESTION).min(deadline);
        let reason = match timeout_at(question, read_index(raft, speaker)).await {
            Ok(Ok(index)) => return wait_for(raft, index, deadline).await,
            Ok(Err(reason)) => reason,
            Err(_) => "the leader does not answer".to_owned(),
        };
        if let Err(fatal) = &raft.metrics().borrow().running_state {
            return Err(Unavailable(format!("this node has failed: {fatal}")));
        }
        if Instant::now() + BETWEEN >= deadline {
            return Err(Unavailable(reason));
        }
        tokio::time::sleep(BETWEEN).await;
    }
}

/// Index of the newest entry that may have been acknowledged.
async fn read_index(raft: &Raft<TypeConfig>, speaker: &Speaker) -> Result<u64, String> {
    let leader = raft.metrics().borrow().current_leader;
    let Some(leader) = leader else {
        return Err(
            "there is no leader: a majority of the nodes is not reachable from here".to_owned(),
        );
    };
    if leader == speaker.node.node_id {
        return leaders_index(raft, speaker).await;
    }
    let mut client = speaker.client(leader).await?;
    let request = ReadIndexRequest {
        cluster_id: speaker.node.cluster_id.clone(),
        raft_address: speaker.raft_address.clone(),
    };
    let answer = client
        .read_index(request)
        .await
        .map_err(|status| {
            speaker.note_failure(leader, &status);
            format!("node {leader}: {}", describe(&status))
        })?
        .into_inner();
    speaker.peers.heard(leader, None);
    if answer.not_leader {
        return Err(format!("node {leader} does not lead any more"));
    }
    if answer.error.is_empty() {
        Ok(answer.index)
    } else {
        Err(format!("node {leader}: {}", answer.error))
    }
}

/// Index of the newest entry that may have been acknowledged, at the leader.
///
/// A leader that comes back in its own term leads on without an election and without a new entry, so Raft's answer may
/// lie before what it acknowledged in its last run: all that its log held when it started counts too, as far as it is
/// still there.
///
/// # Errors
/// Where this node does not lead, or a quorum does not confirm that it does.
pub async fn leaders_index(raft: &Raft<TypeConfig>, speaker: &Speaker) -> Result<u64, String> {
    let (read, _) = raft
        .get_read_log_id()
        .await
        .map_err(|error| error.to_string())?;
    let last = raft.metrics().borrow().last_log_index.unwrap_or_default();
    let read = read.map_or(0, |id| id.index);
    Ok(read.max(last.min(speaker.begun)))
}

async fn wait_for(
    raft: &Raft<TypeConfig>,
    index: u64,
    deadline: Instant,
) -> Result<(), Unavailable> {
    let left = deadline.saturating_duration_since(Instant::now());
    raft.wait(Some(left))
        .applied_index_at_least(Some(index), "a linearizable read")
        .await
        .map(|_| ())
        .map_err(|_| Unavailable(format!("this node has not yet applied log entry {index}")))
}
