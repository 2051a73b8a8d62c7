//! Writes at the leader.
//!
//! openraft writes and syncs one log record after the other. Entries that come in meanwhile are put together in the
//! next record, so that many writers share a sync; a lone writer never waits for company. Meshes take turns: however much
//! one tenant writes, another's change waits for one record of it at most, beside the one that is under way.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use mesh_proto::raft::{Entry, EntryResult, operation};
use openraft::{Raft, error::ClientWriteError};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::fair::FairQueue;
use crate::{
    authorize::mesh_of,
    store::types::{Bundle, TypeConfig},
};

/// Entries on their way to the queue; who brings one more waits for a place, within its own deadline. How many wait in
/// all, the API of each node bounds ([`crate::api::limits`]).
const QUEUE: usize = 1024;
/// Entries in one log record, at most.
const ENTRIES_AT_ONCE: usize = 256;
/// Bytes of a log record beyond which no further entry is added.
const BYTES_AT_ONCE: usize = 1 << 20;
/// Records under way at once: while one is being replicated, the next is being written. A record above
/// [`BYTES_AT_ONCE`] goes alone, since what comes after it has to wait for all of it.
const UNDER_WAY: u32 = 2;

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

async fn run(raft: Raft<TypeConfig>, mut incoming: mpsc::Receiver<Waiting>) {
    let under_way = Arc::new(Semaphore::new(UNDER_WAY as usize));
    let mut newest_ms = 0;
    let mut queue: FairQueue<Waiting> = FairQueue::default();
    loop {
        let Ok(permit) = under_way.clone().acquire_owned().await else {
            return;
        };
        if queue.is_empty() {
            let Some(first) = incoming.recv().await else {
                return;
            };
            queue.push(tenant(&first.entry), first);
        }
        while let Ok(waiting) = incoming.try_recv() {
            queue.push(tenant(&waiting.entry), waiting);
        }
        let (mut group, bytes) = next_group(&mut queue);
        // Whoever has given up waiting will ask again.
        group.retain(|waiting| !waiting.answer.is_closed());
        if group.is_empty() {
            continue;
        }
        let permit = if bytes > BYTES_AT_ONCE {
            drop(permit);
            match under_way.clone().acquire_many_owned(UNDER_WAY).await {
                Ok(all) => all,
                Err(_) => return,
            }
        } else {
            permit
        };
        newest_ms = now_ms().max(newest_ms);
        propose(&raft, group, newest_ms, permit).await;
    }
}

/// What goes into the next record, and how many bytes that is.
fn next_group(queue: &mut FairQueue<Waiting>) -> (Vec<Waiting>, usize) {
    let mut bytes = 0;
    let mut group = Vec::new();
    while let Some(next) = queue.peek() {
        let size = next.entry.encoded_len();
        let fits = group.len() < ENTRIES_AT_ONCE && bytes + size <= BYTES_AT_ONCE;
        if !fits && !group.is_empty() {
            break;
        }
        bytes += size;
        group.extend(queue.pop());
    }
    (group, bytes)
}

/// Whose turn an entry takes: that of the mesh it is about; what is outside any mesh, that of the one who asks.
fn tenant(entry: &Entry) -> String {
    let first = entry.operations.iter().find_map(|operation| {
        let key = match operation.operation.as_ref()? {
            operation::Operation::Put(put) => put.key.as_ref()?,
            operation::Operation::Delete(delete) => delete.key.as_ref()?,
            operation::Operation::SetSystem(_) => return None,
        };
        Some(mesh_of(key)).filter(|mesh| !mesh.is_empty())
    });
    match (first, &entry.actor) {
        (Some(mesh), _) => format!("mesh/{mesh}"),
        (None, Some(actor)) => actor.name.clone(),
        (None, None) => String::new(),
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

#[cfg(test)]
mod tests {
    use mesh_proto::{
        raft::{Operation, Put},
        zone::ResourceKey,
    };

    use super::*;

    fn waiting(mesh: &str, bytes: usize) -> Waiting {
        let put = Put {
            key: Some(ResourceKey::global("MeshService", mesh, "x")),
            json: vec![b'x'; bytes],
            precondition: None,
        };
        let entry = Entry {
            operations: vec![Operation {
                operation: Some(operation::Operation::Put(put)),
            }],
            ..Entry::default()
        };
        Waiting {
            entry,
            answer: oneshot::channel().0,
        }
    }

    fn meshes(group: &[Waiting]) -> Vec<String> {
        group.iter().map(|waiting| tenant(&waiting.entry)).collect()
    }

    #[test]
    fn one_record_of_a_loud_tenant_is_all_that_a_quiet_one_waits_for() {
        let mut queue = FairQueue::default();
        for _ in 0..20 {
            queue.push("mesh/loud".to_owned(), waiting("loud", 8 << 20));
        }
        queue.push("mesh/quiet".to_owned(), waiting("quiet", 100));
        let (first, bytes) = next_group(&mut queue);
        assert_eq!(meshes(&first), ["mesh/loud"]);
        assert!(bytes > BYTES_AT_ONCE);
        let (second, bytes) = next_group(&mut queue);
        assert_eq!(meshes(&second), ["mesh/quiet"]);
        assert!(bytes <= BYTES_AT_ONCE);
    }

    #[test]
    fn small_entries_share_a_record() {
        let mut queue = FairQueue::default();
        for number in 0..300 {
            let mesh = if number < 290 { "loud" } else { "quiet" };
            queue.push(format!("mesh/{mesh}"), waiting(mesh, 100));
        }
        let (group, _) = next_group(&mut queue);
        assert_eq!(group.len(), ENTRIES_AT_ONCE);
        let quiet = meshes(&group);
        let quiet = quiet.iter().filter(|tenant| *tenant == "mesh/quiet");
        assert_eq!(quiet.count(), 10);
    }
}
