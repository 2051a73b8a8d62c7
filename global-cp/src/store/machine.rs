//! The state machine on disk and in memory.
//!
//! Memory holds the image that is read, the database holds the same records. Applying a group of entries is one batch:
//! data, the id of the last applied entry and the membership are written together or not at all. None of it waits for a
//! sync, and none of it is trusted: what the database holds is derived from snapshot and log, and counts only where it is
//! whole, which the [`Sum`] of all records says that is written with each batch. Where it is not, or where it is older
//! than the newest snapshot, it is made anew from that, and the log is applied again from there on. The log is never
//! purged beyond a snapshot that is on the disk.

use std::{io, path::Path};

use aws_lc_rs::digest;
use bytes::Bytes;
use openraft::{
    AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError,
    storage::RaftStateMachine,
};
use tokio::sync::watch;

use super::{
    OpenError,
    database::{self, Batch, Database, Hold, Kind},
    log::LogStore,
    snapshot::{SnapshotFile, Snapshots, meta_of},
    types::{Answers, LogEntry, LogId, SnapshotMeta, StoreError, StoredMembership, TypeConfig},
};
use crate::state::{
    State,
    apply::{Limits, apply},
    image::{Image, Write},
    keys,
};

/// The state machine, as Raft drives it.
pub struct Machine {
    database: Database,
    sum: Sum,
    state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshots: Snapshots,
    log: LogStore,
    revisions: watch::Sender<u64>,
    pub(super) limits: Limits,
}

impl Machine {
    /// Reads and verifies the state in the database at `path`. Where it is not whole, it is made anew. Blocks.
    ///
    /// # Errors
    /// Where it can not be made from what is there.
    pub fn open(
        kind: Kind,
        path: &Path,
        hold: &Hold,
        snapshots: Snapshots,
        log: LogStore,
    ) -> Result<Self, OpenError> {
        let kept = match read(kind, path, hold) {
            Ok(kept) => Some(kept),
            Err(OpenError::Damaged { path, reason }) => {
                tracing::error!(
                    path = %path.display(),
                    reason,
                    "the state machine's database is damaged; it is made anew from the newest snapshot and the log"
                );
                None
            }
            Err(error) => return Err(error),
        };
        let applied = |image: &Image| meta_of(image).last_log_id;
        let newest = snapshots.newest();
        let newer = newest.as_ref().map(|(meta, _)| meta.last_log_id);
        let (database, image) = match kept {
            Some((database, image)) if newer.is_none_or(|newer| newer <= applied(&image)) => {
                (database, image)
            }
            kept => {
                let image = match newest {
                    Some((_, file)) => {
                        let read = snapshots.read(&file);
                        read.map_err(|error| OpenError::Damaged {
                            path: file.path,
                            reason: error.to_string(),
                        })?
                        .1
                    }
                    None => Image::default(),
                };
                let database = match kept {
                    Some((database, _)) => database,
                    None => {
                        database::set_aside(path)?;
                        Database::open(kind, path, hold)?
                    }
                };
                fill(&database, &image).map_err(|source| OpenError::Io {
                    path: path.to_owned(),
                    source,
                })?;
                (database, image)
            }
        };
        if applied(&image) < log.purged() {
            return Err(OpenError::Damaged {
                path: path.to_owned(),
                reason: "the log begins behind what it and the snapshots hold".to_owned(),
            });
        }
        let meta = meta_of(&image);
        Ok(Self {
            revisions: watch::Sender::new(image.revision()),
            sum: Sum::of(&image),
            state: State::from_image(image),
            applied: meta.last_log_id,
            membership: meta.last_membership,
            database,
            snapshots,
            log,
            limits: crate::state::apply::LIMITS,
        })
    }

    /// What it holds.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The last applied entry.
    #[must_use]
    pub fn applied(&self) -> Option<LogId> {
        self.applied
    }

    /// Told of every new revision after it can be read.
    #[must_use]
    pub fn revisions(&self) -> watch::Sender<u64> {
        self.revisions.clone()
    }

    fn publish(&mut self, image: Image) {
        let revision = image.revision();
        self.state.publish(image);
        self.revisions
            .send_if_modified(|newest| std::mem::replace(newest, revision) != revision);
    }
}

/// The sum over all records of what their names and values hash to: changes with each of them, in any order, without
/// reading the others. A database that has lost a change, or has one too many, does not match its sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum([u64; 4]);

/// Where the database keeps its sum; the state's own records begin with a letter.
const SUM: &[u8] = b"\0sum";

impl Sum {
    fn of(image: &Image) -> Self {
        let mut sum = Self::default();
        for (name, value) in image.records() {
            sum.add(name, value);
        }
        sum
    }

    fn add(&mut self, name: &[u8], value: &[u8]) {
        for (lane, part) in self.0.iter_mut().zip(Self::record(name, value)) {
            *lane = lane.wrapping_add(part);
        }
    }

    fn subtract(&mut self, name: &[u8], value: &[u8]) {
        for (lane, part) in self.0.iter_mut().zip(Self::record(name, value)) {
            *lane = lane.wrapping_sub(part);
        }
    }

    fn record(name: &[u8], value: &[u8]) -> [u64; 4] {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&(name.len() as u64).to_be_bytes());
        context.update(name);
        context.update(value);
        let digest = context.finish();
        let mut lanes = [0; 4];
        for (lane, bytes) in lanes.iter_mut().zip(digest.as_ref().chunks_exact(8)) {
            *lane = u64::from_be_bytes(bytes.try_into().unwrap_or_default());
        }
        lanes
    }

    fn to_bytes(self) -> Bytes {
        self.0
            .iter()
            .flat_map(|lane| lane.to_be_bytes())
            .collect::<Vec<_>>()
            .into()
    }
}

/// What the database at `path` holds, where it is whole.
pub(super) fn read(kind: Kind, path: &Path, hold: &Hold) -> Result<(Database, Image), OpenError> {
    let database = Database::open(kind, path, hold)?;
    let mut records = database.guarded(|| database.read_all())?;
    let sum = records.remove(SUM);
    let image =
        Image::from_records(records).map_err(|error| database.damaged(error.to_string()))?;
    let matches = match sum {
        Some(sum) => sum == Sum::of(&image).to_bytes(),
        None => image.is_empty(),
    };
    if !matches {
        return Err(database.damaged("its records do not match their sum".to_owned()));
    }
    Ok((database, image))
}

/// What `image` becomes by these entries.
pub(super) fn applied(
    image: Image,
    entries: Vec<LogEntry>,
    limits: &Limits,
) -> Result<Image, Failure> {
    let meta = meta_of(&image);
    let group = Group {
        image,
        writes: Vec::new(),
        answers: Vec::new(),
        applied: meta.last_log_id,
        membership: meta.last_membership,
    };
    group.work_out(entries, limits).map(|group| group.image)
}

/// Replaces what the database holds by `image`.
fn fill(database: &Database, image: &Image) -> io::Result<()> {
    let sum = Sum::of(image).to_bytes();
    database.replace(image.records().chain(std::iter::once((SUM, &sum))))
}

struct Group {
    image: Image,
    writes: Vec<Write>,
    answers: Vec<Answers>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

/// Boxed, since it is big and rare.
pub(super) type Failure = Box<StoreError>;

fn failure(id: LogId, error: &(impl std::error::Error + 'static)) -> Failure {
    Box::new(StorageIOError::apply(id, AnyError::new(error)).into())
}

impl Group {
    /// Does a group of entries: the image after it, everything to write, and the answers.
    fn work_out(mut self, entries: Vec<LogEntry>, limits: &Limits) -> Result<Self, Failure> {
        for entry in entries {
            let id = entry.log_id;
            if self.applied.is_some_and(|applied| applied >= id) {
                let reason = io::Error::other(format!("{id} was applied before"));
                return Err(failure(id, &reason));
            }
            self.applied = Some(id);
            let answers = self.apply(id, entry.payload, limits)?;
            self.answers.push(answers);
        }
        if let Some(id) = self.applied {
            let json = serde_json::to_vec(&id).map_err(|error| failure(id, &error))?;
            self.write(id, (keys::APPLIED.to_vec(), Some(json.into())))?;
        }
        Ok(self)
    }

    fn apply(
        &mut self,
        id: LogId,
        payload: EntryPayload<TypeConfig>,
        limits: &Limits,
    ) -> Result<Answers, Failure> {
        let mut answers = Answers::default();
        match payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(id), membership);
                let json =
                    serde_json::to_vec(&self.membership).map_err(|error| failure(id, &error))?;
                self.write(id, (keys::MEMBERSHIP.to_vec(), Some(json.into())))?;
            }
            EntryPayload::Normal(bundle) => {
                for entry in bundle.0.iter() {
                    let applied =
                        apply(&self.image, entry, limits).map_err(|error| failure(id, &error))?;
                    for write in applied.writes {
                        self.write(id, write)?;
                    }
                    answers.0.push(applied.result);
                }
            }
        }
        Ok(answers)
    }

    fn write(&mut self, id: LogId, write: Write) -> Result<(), Failure> {
        self.writes.push(write.clone());
        self.image.write(write).map_err(|error| failure(id, &error))
    }

    /// The writes as one batch, and the sum after them. `before` is what the database holds, `sum` its sum.
    fn batch(&self, before: &Image, mut sum: Sum) -> (Batch, Sum) {
        // Of several writes to one record the last counts, and what the database holds is what came before the first.
        let last: std::collections::BTreeMap<&[u8], Option<&Bytes>> = self
            .writes
            .iter()
            .map(|(name, value)| (name.as_slice(), value.as_ref()))
            .collect();
        let mut batch = Batch::default();
        for (name, value) in last {
            let previous = before.record(name);
            if let Some(previous) = previous {
                sum.subtract(name, previous);
            }
            match (value, previous.map(Bytes::len)) {
                (Some(value), length) => {
                    sum.add(name, value);
                    batch.put(name, value.clone(), length);
                }
                (None, Some(length)) => batch.remove(name, length),
                (None, None) => {}
            }
        }
        let bytes = sum.to_bytes();
        let length = bytes.len();
        batch.put(SUM, bytes, Some(length));
        (batch, sum)
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StoreError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answers>, StoreError>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let before = self.state.image();
        let group = Group {
            image: (*before).clone(),
            writes: Vec::new(),
            answers: Vec::with_capacity(entries.len()),
            applied: self.applied,
            membership: self.membership.clone(),
        };
        let (database, sum, limits) = (self.database.clone(), self.sum, self.limits);
        let (group, sum) = tokio::task::spawn_blocking(move || {
            let group = group.work_out(entries, &limits)?;
            let (batch, sum) = group.batch(&before, sum);
            database.write(&[batch], false).map_err(|error| {
                Box::new(StorageIOError::write_state_machine(AnyError::new(&error)).into())
            })?;
            Ok::<_, Failure>((group, sum))
        })
        .await
        .map_err(|error| StorageIOError::write_state_machine(AnyError::new(&error)))?
        .map_err(|failure| *failure)?;
        self.sum = sum;
        self.applied = group.applied;
        self.membership = group.membership;
        self.publish(group.image);
        Ok(group.answers)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            image: (*self.state.image()).clone(),
            snapshots: self.snapshots.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StoreError> {
        let (file, _) = self
            .snapshots
            .begin_receiving()
            .map_err(|error| StorageIOError::write_snapshot(None, AnyError::new(&error)))?;
        Ok(Box::new(file))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotFile>,
    ) -> Result<(), StoreError> {
        let failed = |error: io::Error| {
            StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(&error))
        };
        let (database, snapshots, announced) =
            (self.database.clone(), self.snapshots.clone(), meta.clone());
        let image = blocking(move || {
            let (found, image) = snapshots.read(&snapshot).map_err(io::Error::other)?;
            if found.last_log_id != announced.last_log_id {
                return Err(io::Error::other(format!(
                    "the snapshot holds {found}, {announced} was announced"
                )));
            }
            // First the snapshot: from then on the state can be made from it, whatever becomes of the database.
            snapshots
                .adopt(&snapshot, &announced)
                .map_err(io::Error::other)?;
            fill(&database, &image)?;
            Ok(image)
        })
        .await
        .map_err(failed)?;
        self.sum = Sum::of(&image);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publish(image);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StoreError> {
        let snapshots = self.snapshots.clone();
        let newest = blocking(move || Ok(snapshots.newest()))
            .await
            .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?;
        let purged = self.log.purged();
        match newest {
            Some((meta, file)) if meta.last_log_id >= purged => Ok(Some(Snapshot {
                meta,
                snapshot: Box::new(file),
            })),
            _ if purged.is_none() => Ok(None),
            // The one that reached the log that is left is damaged or was never finished: make it anew.
            _ => self
                .get_snapshot_builder()
                .await
                .build_snapshot()
                .await
                .map(Some),
        }
    }
}

/// Writes a snapshot of the image it was given, while newer entries are being applied.
pub struct SnapshotBuilder {
    image: Image,
    snapshots: Snapshots,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StoreError> {
        let meta = meta_of(&self.image);
        let signature = meta.signature();
        let (image, snapshots) = (self.image.clone(), self.snapshots.clone());
        let (meta, file) = blocking(move || {
            let file = snapshots.write(&image, &meta).map_err(io::Error::other)?;
            Ok((meta, file))
        })
        .await
        .map_err(|error| StorageIOError::write_snapshot(Some(signature), AnyError::new(&error)))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(file),
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}
