//! The state machine on disk and in memory.
//!
//! Memory holds the image that is read, the database holds the same records. Applying a group of entries is one sled
//! batch: data, the id of the last applied entry and the membership are written together or not at all. The batch is not
//! synced: what a crash takes is made again from the log, which is; and before the log is purged, everything is synced.

use std::io;

use bytes::Bytes;
use openraft::{
    AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError,
    storage::RaftStateMachine,
};
use sled::{Batch, Tree};
use tokio::sync::watch;

use super::{
    OpenError,
    database::{self, Database},
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
    tree: Tree,
    state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshots: Snapshots,
    log: LogStore,
    revisions: watch::Sender<u64>,
    pub(super) limits: Limits,
}

impl Machine {
    /// Reads and verifies the state in `database`. Blocks.
    ///
    /// # Errors
    /// Where a record is damaged.
    pub fn open(
        database: Database,
        snapshots: Snapshots,
        log: LogStore,
    ) -> Result<Self, OpenError> {
        let (tree, records) = database.guarded(|| {
            let tree = database.state()?;
            let records = database.read_all(&tree)?;
            Ok((tree, records))
        })?;
        let image =
            Image::from_records(records).map_err(|error| database.damaged(error.to_string()))?;
        let meta = meta_of(&image);
        Ok(Self {
            tree,
            revisions: watch::Sender::new(image.revision()),
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

struct Group {
    image: Image,
    writes: Vec<Write>,
    answers: Vec<Answers>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

/// Boxed, since it is big and rare.
type Failure = Box<StoreError>;

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

    /// The writes as one sled batch. `before` is what the database holds.
    fn batch(&self, before: &Image) -> Batch {
        // Of several writes to one record the last counts, and what the database holds is what came before the first.
        let last: std::collections::BTreeMap<&[u8], Option<&Bytes>> = self
            .writes
            .iter()
            .map(|(name, value)| (name.as_slice(), value.as_ref()))
            .collect();
        let mut batch = Batch::default();
        for (name, value) in last {
            let previous = before.record(name).map(Bytes::len);
            match (value, previous) {
                (Some(value), previous) => database::put(&mut batch, name, value, previous),
                (None, Some(previous)) => database::remove(&mut batch, name, previous),
                (None, None) => {}
            }
        }
        batch
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
        let (tree, limits) = (self.tree.clone(), self.limits);
        let group = tokio::task::spawn_blocking(move || {
            let group = group.work_out(entries, &limits)?;
            tree.apply_batch(group.batch(&before)).map_err(|error| {
                Box::new(StorageIOError::write_state_machine(AnyError::new(&error)).into())
            })?;
            Ok::<_, Failure>(group)
        })
        .await
        .map_err(|error| StorageIOError::write_state_machine(AnyError::new(&error)))?
        .map_err(|failure| *failure)?;
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
        let (tree, image) = blocking(move || {
            let (found, image) = snapshots.read(&snapshot).map_err(io::Error::other)?;
            if found.last_log_id != announced.last_log_id {
                return Err(io::Error::other(format!(
                    "the snapshot holds {found}, {announced} was announced"
                )));
            }
            let tree = database.replace_state(image.records())?;
            snapshots
                .adopt(&snapshot, &announced)
                .map_err(io::Error::other)?;
            Ok((tree, image))
        })
        .await
        .map_err(failed)?;
        self.tree = tree;
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
