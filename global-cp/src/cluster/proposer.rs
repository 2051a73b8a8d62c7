//! Writes at the leader.
//!
//! openraft writes and syncs one log record after the other. Entries that come in meanwhile are put together in the
//! next record, so that many writers share a sync; a lone writer never waits for company.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use mesh_proto::raft::{Entry, EntryResult};
use openraft::{Raft, error::ClientWriteError};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::store::types::{Bundle, TypeConfig};

/// Entries that wait, at most; who brings one more waits for a place, within its own deadline.
const QUEUE: usize = 1024;
/// Entries in one log record, at most.
const ENTRIES_AT_ONCE: usize = 256;
/// Bytes of a log record beyond which no further entry is added.
const BYTES_AT_ONCE: usize = 1 << 20;
/// Records under way at once: while one is being replicated, the next is being written.
const UNDER_WAY: usize = 2;

/// Why an entry is not known to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotWritten {
    /// This node does not lead; who does, where known. The entry was not written here.
    NotLeader(Option<u64>),
    /// It may have been written or not.
    Unknown(String),
}

struct Waiting {
    entry: Entry,
    answer: oneshot::Sender<Result<EntryResult, NotWritten>>,
}

/// Takes entries to write.
#[derive(Clone)]
pub struct Proposer(mpsc::Sender<Waiting>);

impl Proposer {
    /// Starts to take entries for `raft`. Ends with the last clone.
    #[must_use]
    pub fn start(raft: Raft<TypeConfig>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(run(raft, receiver));
        Self(sender)
    }

    /// Writes an entry if this node leads, and returns when it is applied here. The time is stamped.
    ///
    /// # Errors
    /// Where it is not known to be written.
    pub async fn propose(&self, entry: Entry) -> Result<EntryResult, NotWritten> {
        let (answer, answered) = oneshot::channel();
        let stopped = || NotWritten::Unknown("the node is stopping".to_owned());
        self.0
            .send(Waiting { entry, answer })
            .await
            .map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

async fn run(raft: Raft<TypeConfig>, mut queue: mpsc::Receiver<Waiting>) {
    let under_way = Arc::new(Semaphore::new(UNDER_WAY));
    let mut newest_ms = 0;
    let mut held_back = None;
    loop {
        let Ok(permit) = under_way.clone().acquire_owned().await else {
            return;
        };
        let first = match held_back.take() {
            Some(waiting) => waiting,
            None => match queue.recv().await {
                Some(waiting) => waiting,
                None => return,
            },
        };
        let mut bytes = first.entry.encoded_len();
        let mut group = vec![first];
        while group.len() < ENTRIES_AT_ONCE && bytes < BYTES_AT_ONCE {
            let Ok(waiting) = queue.try_recv() else { break };
            bytes += waiting.entry.encoded_len();
            if bytes > BYTES_AT_ONCE {
                held_back = Some(waiting);
                break;
            }
            group.push(waiting);
        }
        // Whoever has given up waiting will ask again.
        group.retain(|waiting| !waiting.answer.is_closed());
        if group.is_empty() {
            continue;
        }
        newest_ms = now_ms().max(newest_ms);
        propose(&raft, group, newest_ms, permit).await;
    }
}

/// Hands a record to Raft, in order, and leaves the waiting to a task of its own.
async fn propose(
    raft: &Raft<TypeConfig>,
    group: Vec<Waiting>,
    time_ms: u64,
    permit: OwnedSemaphorePermit,
) {
    let (entries, answers): (Vec<_>, Vec<_>) = group
        .into_iter()
        .map(|Waiting { mut entry, answer }| {
            entry.time_ms = time_ms;
            (entry, answer)
        })
        .unzip();
    let pending = raft.client_write_ff(Bundle(Arc::new(entries))).await;
    tokio::spawn(async move {
        let _permit = permit;
        let written = match pending {
            Ok(pending) => pending.await.map_err(|_| {
                NotWritten::Unknown("the node stopped before the write was decided".to_owned())
            }),
            Err(fatal) => Err(NotWritten::Unknown(fatal.to_string())),
        };
        let written = written.and_then(|result| {
            result.map_err(|error| match error {
                ClientWriteError::ForwardToLeader(to) => NotWritten::NotLeader(to.leader_id),
                ClientWriteError::ChangeMembershipError(error) => {
                    NotWritten::Unknown(error.to_string())
                }
            })
        });
        match written {
            Ok(response) => {
                for (answer, result) in answers.into_iter().zip(response.data.0) {
                    let _ = answer.send(Ok(result));
                }
            }
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    });
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}
