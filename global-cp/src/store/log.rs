//! Log, vote and what was committed, as Raft asks for them.
//!
//! Entries under `e` and their index, and the single values `identity`, `vote`, `purged` and `committed`. The newest
//! entries are kept in memory too, since each is read twice soon after it is written: to send it and to apply it.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use openraft::{
    AnyError, EntryPayload, LogState, Membership, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;

use super::{
    OpenError,
    database::{Batch, Database, Hold, Kind as DatabaseKind, ReadError},
    directory::Node,
    types::{Bundle, LogEntry, LogId, Peer, StoreError, TypeConfig, Vote},
    watermark::{Mark, Watermark},
    writer::{self, Job, Kind},
};

const IDENTITY: &[u8] = b"identity";
const VOTE: &[u8] = b"vote";
const PURGED: &[u8] = b"purged";
const COMMITTED: &[u8] = b"committed";

/// Format of a log record.
const RECORD_VERSION: u32 = 1;
/// Bytes of entries kept in memory.
const RECENT_BYTES: usize = 16 << 20;
/// Bytes of entries read at once, for one message to a follower.
const READ_AT_ONCE: usize = 4 << 20;

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    leader: u64,
    #[prost(uint64, tag = "4")]
    index: u64,
    /// JSON of a membership.
    #[prost(bytes = "vec", optional, tag = "5")]
    membership: Option<Vec<u8>>,
    /// A [`Bundle`]. With neither of the two, the entry is blank.
    #[prost(bytes = "vec", optional, tag = "6")]
    bundle: Option<Vec<u8>>,
}

/// Log and vote. Clones are the same log.
#[derive(Clone)]
pub struct LogStore(Arc<Shared>);

struct Shared {
    database: Database,
    jobs: writer::Handle,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    recent: BTreeMap<u64, (LogEntry, usize)>,
    recent_bytes: usize,
}

impl Memory {
    fn mark(&self) -> Mark {
        Mark {
            last: self.last,
            vote: self.vote,
        }
    }

    fn remember(&mut self, entry: LogEntry, bytes: usize) {
        self.recent_bytes += bytes;
        self.recent.insert(entry.log_id.index, (entry, bytes));
        while self.recent_bytes > RECENT_BYTES && self.recent.len() > 1 {
            if let Some((_, (_, bytes))) = self.recent.pop_first() {
                self.recent_bytes -= bytes;
            }
        }
    }

    fn forget(&mut self, range: impl RangeBounds<u64>) {
        let gone: Vec<_> = self.recent.range(range).map(|(index, _)| *index).collect();
        for index in gone {
            if let Some((_, bytes)) = self.recent.remove(&index) {
                self.recent_bytes -= bytes;
            }
        }
    }
}

impl LogStore {
    /// Opens the log of `owner` in `database`, reads and verifies all of it, and compares it with the watermark at
    /// `mark_path`, which is made where `create` is set. Blocks.
    ///
    /// # Errors
    /// Where it is somebody else's, an entry is damaged or missing, or less is there than was acknowledged.
    pub fn open(
        database: Database,
        owner: &Node,
        mark_path: &Path,
        create: bool,
    ) -> Result<Self, OpenError> {
        let watermark =
            Watermark::open(mark_path, create).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::InvalidData => OpenError::Damaged {
                    path: mark_path.to_owned(),
                    reason: source.to_string(),
                },
                _ => OpenError::Io {
                    path: mark_path.to_owned(),
                    source,
                },
            })?;
        check_owner(&database, owner, create)?;
        let memory = database.guarded(|| read_memory(&database))?;
        check_mark(&database, watermark.mark(), memory.mark())?;
        let jobs = writer::start(database.clone(), watermark).map_err(|source| OpenError::Io {
            path: database.path().to_owned(),
            source,
        })?;
        Ok(Self(Arc::new(Shared {
            database,
            jobs,
            memory: Mutex::new(memory),
        })))
    }

    /// Makes a log in an empty `database` that begins behind `purged`, as a node has it that was made from a snapshot.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn begin_behind(
        database: &Database,
        owner: &Node,
        purged: LogId,
        vote: Vote,
    ) -> io::Result<()> {
        let mut batch = Batch::default();
        put_value(&mut batch, IDENTITY, owner)?;
        put_value(&mut batch, PURGED, &purged)?;
        put_value(&mut batch, COMMITTED, &Some(purged))?;
        put_value(&mut batch, VOTE, &vote)?;
        database.write(&[batch], true)
    }

    /// The newest entry that was purged.
    #[must_use]
    pub fn purged(&self) -> Option<LogId> {
        self.memory().purged
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nothing in a critical section can leave it half changed.
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(
        &self,
        batch: Batch,
        kind: Kind,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) -> io::Result<()> {
        let mark = self.memory().mark();
        self.0.jobs.send(Job {
            batch,
            mark,
            kind,
            done: Box::new(done),
        })
    }

    /// Writes, and returns when it is on disk.
    async fn write(&self, batch: Batch, kind: Kind) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.send(batch, kind, move |result| {
            let _ = sender.send(result);
        })?;
        receiver
            .await
            .map_err(|_| io::Error::other("the thread that writes the Raft log has failed"))?
    }

    async fn read(
        &self,
        range: impl RangeBounds<u64>,
        at_most: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let (start, end) = bounds(&range);
        if start >= end {
            return Ok(Vec::new());
        }
        if let Some(entries) = self.recent(start, end, at_most) {
            return Ok(entries);
        }
        let database = self.0.database.clone();
        tokio::task::spawn_blocking(move || read_entries(&database, start, end, at_most))
            .await
            .map_err(|error| StorageIOError::read_logs(AnyError::new(&error)))?
            .map_err(|error| StorageIOError::read_log_at_index(start, AnyError::new(&error)).into())
    }

    /// Entries of the range out of memory, where memory holds its beginning.
    fn recent(&self, start: u64, end: u64, at_most: usize) -> Option<Vec<LogEntry>> {
        let memory = self.memory();
        let (first, _) = memory.recent.first_key_value()?;
        if *first > start {
            return None;
        }
        let mut bytes = 0;
        Some(
            memory
                .recent
                .range(start..end)
                .take_while(|(index, (_, size))| {
                    bytes += size;
                    **index == start || bytes <= at_most
                })
                .map(|(_, (entry, _))| entry.clone())
                .collect(),
        )
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

fn shown(id: Option<LogId>) -> String {
    id.map_or_else(|| "nothing".to_owned(), |id| format!("entry {id}"))
}

/// What a log holds that nobody uses.
pub(super) struct Salvaged {
    /// The newest vote.
    pub vote: Option<Vote>,
    /// The newest entry that was purged.
    pub purged: Option<LogId>,
    /// All that are left.
    pub entries: Vec<LogEntry>,
}

/// Reads the whole log of `owner` at `path`, without comparing it with what was acknowledged.
///
/// # Errors
/// Where it is somebody else's, or not whole.
pub(super) fn salvage(
    kind: DatabaseKind,
    path: &Path,
    hold: &Hold,
    owner: &Node,
) -> Result<Salvaged, OpenError> {
    let database = Database::open(kind, path, hold)?;
    check_owner(&database, owner, false)?;
    database.guarded(|| {
        let memory = read_memory(&database)?;
        Ok(Salvaged {
            vote: memory.vote,
            purged: memory.purged,
            entries: read_entries(&database, 0, u64::MAX, usize::MAX)?,
        })
    })
}

/// A log without a name is new, or what is left of a start that was interrupted.
fn check_owner(database: &Database, owner: &Node, create: bool) -> Result<(), OpenError> {
    let found: Option<Node> = database.guarded(|| read_value(database, IDENTITY))?;
    match found {
        Some(found) if found == *owner => Ok(()),
        Some(found) => Err(OpenError::Foreign {
            path: database.path().to_owned(),
            found: found.to_string(),
            wanted: owner.to_string(),
        }),
        None if create => {
            let mut batch = Batch::default();
            put_value(&mut batch, IDENTITY, owner)
                .and_then(|()| database.write(&[batch], true))
                .map_err(|source| OpenError::Io {
                    path: database.path().to_owned(),
                    source,
                })
        }
        None => Err(database.damaged("it does not say whose it is".to_owned())),
    }
}

fn check_mark(database: &Database, mark: Mark, found: Mark) -> Result<(), OpenError> {
    let lost = |what: &str, acknowledged: String, there: String| OpenError::LostWrites {
        path: database.path().to_owned(),
        reason: format!("it acknowledged {what} {acknowledged}, the store has {there}"),
    };
    if found.last < mark.last {
        return Err(lost("the log up to", shown(mark.last), shown(found.last)));
    }
    let (vote, acknowledged) = (
        found.vote.unwrap_or_default(),
        mark.vote.unwrap_or_default(),
    );
    // Votes are ordered; one that is not comparable would be a contradiction as well.
    if vote >= acknowledged {
        Ok(())
    } else {
        Err(lost("the vote", acknowledged.to_string(), vote.to_string()))
    }
}

fn entry_key(index: u64) -> Vec<u8> {
    let mut key = vec![b'e'];
    key.extend_from_slice(&index.to_be_bytes());
    key
}

fn encode(entry: &LogEntry) -> Result<Vec<u8>, serde_json::Error> {
    let (membership, bundle) = match &entry.payload {
        EntryPayload::Blank => (None, None),
        EntryPayload::Normal(bundle) => (None, Some(bundle.encode())),
        EntryPayload::Membership(membership) => (Some(serde_json::to_vec(membership)?), None),
    };
    Ok(Record {
        version: RECORD_VERSION,
        term: entry.log_id.leader_id.term,
        leader: entry.log_id.leader_id.node_id,
        index: entry.log_id.index,
        membership,
        bundle,
    }
    .encode_to_vec())
}

fn decode(index: u64, bytes: &[u8]) -> Result<LogEntry, ReadError> {
    let bad = |reason: String| ReadError::Damaged(format!("of log entry {index} ({reason})"));
    let record = Record::decode(bytes).map_err(|error| bad(error.to_string()))?;
    if record.version != RECORD_VERSION {
        return Err(bad(format!(
            "version {}, this program knows {RECORD_VERSION}",
            record.version
        )));
    }
    if record.index != index {
        return Err(bad(format!("it says it is entry {}", record.index)));
    }
    let payload = match (record.membership, record.bundle) {
        (Some(json), _) => {
            let membership: Membership<u64, Peer> =
                serde_json::from_slice(&json).map_err(|error| bad(error.to_string()))?;
            EntryPayload::Membership(membership)
        }
        (None, Some(bundle)) => {
            EntryPayload::Normal(Bundle::decode(&bundle).map_err(|error| bad(error.to_string()))?)
        }
        (None, None) => EntryPayload::Blank,
    };
    Ok(LogEntry {
        log_id: LogId::new(
            openraft::CommittedLeaderId::new(record.term, record.leader),
            index,
        ),
        payload,
    })
}

fn index_of(key: &[u8]) -> Result<u64, ReadError> {
    key.strip_prefix(b"e")
        .and_then(|index| index.try_into().ok())
        .map(u64::from_be_bytes)
        .ok_or_else(|| ReadError::Damaged(key.escape_ascii().to_string()))
}

fn read_entries(
    database: &Database,
    start: u64,
    end: u64,
    at_most: usize,
) -> Result<Vec<LogEntry>, ReadError> {
    let mut entries = Vec::new();
    let mut bytes = 0;
    database.scan((&entry_key(start), &entry_key(end)), |key, value| {
        entries.push(decode(index_of(key)?, &value)?);
        bytes += value.len();
        Ok(bytes < at_most)
    })?;
    Ok(entries)
}

fn read_value<T: DeserializeOwned>(
    database: &Database,
    key: &[u8],
) -> Result<Option<T>, ReadError> {
    database
        .read(key)?
        .map(|json| serde_json::from_slice(&json))
        .transpose()
        .map_err(|error| ReadError::Damaged(format!("{} ({error})", key.escape_ascii())))
}

fn put_value(batch: &mut Batch, key: &[u8], value: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(value)?;
    batch.put(key, json.into(), None);
    Ok(())
}

/// Reads the whole log once: every entry must be readable, and none missing between the first and the last.
fn read_memory(database: &Database) -> Result<Memory, ReadError> {
    let mut memory = Memory {
        vote: read_value(database, VOTE)?,
        purged: read_value(database, PURGED)?,
        committed: read_value(database, COMMITTED)?.flatten(),
        ..Memory::default()
    };
    memory.last = memory.purged;
    let first = memory.purged.map_or(0, |purged| purged.index + 1);
    let mut expected = first;
    let range = (entry_key(0), entry_key(u64::MAX));
    database.scan((&range.0, &range.1), |key, value| {
        let index = index_of(key)?;
        if index != expected {
            return Err(ReadError::Missing(format!("log entry {expected}")));
        }
        let entry = decode(index, &value)?;
        if memory.last > Some(entry.log_id) {
            return Err(ReadError::Damaged(format!(
                "of log entry {index} (its term is older than that of the entry before it)"
            )));
        }
        memory.last = Some(entry.log_id);
        memory.remember(entry, value.len());
        expected += 1;
        Ok(true)
    })?;
    Ok(memory)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, StoreError> {
        self.read(range, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<LogEntry>, StoreError> {
        self.read(start..end, READ_AT_ONCE).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StoreError> {
        let memory = self.memory();
        Ok(LogState {
            last_purged_log_id: memory.purged,
            last_log_id: memory.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        let failed = |error: io::Error| StorageIOError::write_vote(AnyError::new(&error));
        put_value(&mut batch, VOTE, vote).map_err(failed)?;
        self.memory().vote = Some(*vote);
        self.write(batch, Kind::Durable).await.map_err(failed)?;
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StoreError> {
        Ok(self.memory().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        let failed = |error: io::Error| StorageIOError::write_logs(AnyError::new(&error));
        put_value(&mut batch, COMMITTED, &committed).map_err(failed)?;
        self.memory().committed = committed;
        self.send(batch, Kind::Hint, |_| {}).map_err(failed)?;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StoreError> {
        let memory = self.memory();
        // Written without a sync, it may outlive entries that a loss of power took.
        Ok(memory.committed.min(memory.last))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StoreError>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = Batch::default();
        {
            let mut memory = self.memory();
            for entry in entries {
                let id = entry.log_id;
                if memory.purged.is_some_and(|purged| purged.index >= id.index) {
                    // A snapshot covers it already.
                    continue;
                }
                if memory
                    .last
                    .is_some_and(|last| last.index + 1 != id.index || last > id)
                {
                    let reason = format!(
                        "{id} was to be appended behind {}: the log would have a hole",
                        shown(memory.last)
                    );
                    return Err(StorageIOError::write_log_entry(id, AnyError::error(reason)).into());
                }
                let value = encode(&entry)
                    .map_err(|error| StorageIOError::write_log_entry(id, AnyError::new(&error)))?;
                let length = value.len();
                batch.put(&entry_key(id.index), value.into(), None);
                memory.last = Some(id);
                memory.remember(entry, length);
            }
        }
        self.send(batch, Kind::Durable, move |result| {
            callback.log_io_completed(result);
        })
        .map_err(|error| StorageIOError::write_logs(AnyError::new(&error)).into())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StoreError> {
        let failed = |error: io::Error| StorageIOError::write_logs(AnyError::new(&error));
        let last = match log_id.index.checked_sub(1) {
            None => None,
            Some(before) => {
                let purged = self.memory().purged;
                match self.read(before..=before, usize::MAX).await?.pop() {
                    Some(entry) => Some(entry.log_id),
                    None => purged,
                }
            }
        };
        let mut batch = Batch::default();
        batch.remove_range(entry_key(log_id.index), entry_key(u64::MAX));
        {
            let mut memory = self.memory();
            memory.last = last;
            memory.forget(log_id.index..);
        }
        self.write(batch, Kind::Lowering).await.map_err(failed)?;
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StoreError> {
        let failed = |error: io::Error| StorageIOError::write_logs(AnyError::new(&error));
        {
            let mut memory = self.memory();
            if memory.purged >= Some(log_id) {
                return Ok(());
            }
            memory.purged = Some(log_id);
            if memory.last < Some(log_id) {
                memory.last = Some(log_id);
            }
            memory.forget(..=log_id.index);
        }
        // Only what a whole snapshot holds is purged, so that a state machine that is lost is made again from it.
        let mut batch = Batch::default();
        put_value(&mut batch, PURGED, &log_id).map_err(failed)?;
        batch.remove_range(entry_key(0), entry_key(log_id.index + 1));
        self.write(batch, Kind::Durable)
            .await
            .map_err(failed)
            .map_err(StoreError::from)
    }
}
