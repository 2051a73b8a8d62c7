//! redb: a B-tree that is copied on write, in one file. A commit is one `fdatasync`, and its pages are checksummed, so
//! that a torn commit is told from a whole one and the one before it counts.
//!
//! A write that need not be durable is committed in memory, and a crash goes back to the last one that was synced. Where
//! no sync comes by itself, one is made: when much has come together, since redb keeps the pages of the last synced commit
//! beside the new ones; and when nothing more has come for a moment.
//!
//! A file never gets smaller by itself, so one that is mostly room is compacted, while it is open too.

use std::{
    fs::{self, OpenOptions},
    io,
    ops::Bound,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, mpsc},
    thread,
    time::Duration,
};

use redb::{
    Builder, Database, Durability, ReadableDatabase as _, TableDefinition, WriteTransaction,
};

use super::{Each, Engine, OpenError, Pieces, Raw, ReadError, guarded, sync_directory};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
/// Bytes of a piece of a value: what is in one page with it is written again with it.
const PIECE: usize = 16 << 10;
/// Bytes of pages kept in memory.
const CACHE: usize = 16 << 20;
/// Bytes that one change of a small piece writes: its page.
const PAGE: u64 = 4096;
/// Syncs after which it is looked whether a file is mostly room; looking reads all of it.
const SYNCS_EACH_LOOK: u64 = 16;
/// How long the last of several writes waits for its sync.
const MOMENT: Duration = Duration::from_millis(500);

/// When a file is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upkeep {
    /// A file that takes more bytes than this, and more than `too_big` times what is in it, is compacted: when it is opened,
    /// when a range was removed from it, and now and then.
    pub compact_above: u64,
    /// How many times.
    pub too_big: u64,
    /// What was written without a sync is synced when it has come to so many bytes.
    pub sync_after: u64,
}

impl Upkeep {
    /// What every node does.
    pub const USUAL: Self = Self {
        compact_above: 16 << 20,
        too_big: 3,
        sync_after: 32 << 20,
    };
}

/// One redb file.
pub(super) struct Redb {
    file: Arc<RedbFile>,
    // Both go before the file, which is closed when the last user of it is gone.
    unsynced: Option<mpsc::SyncSender<()>>,
    syncing: Option<thread::JoinHandle<()>>,
}

struct RedbFile {
    /// Locked for writing only while it is compacted, which redb lets nobody else read meanwhile.
    database: RwLock<Database>,
    path: PathBuf,
    upkeep: Upkeep,
    /// Locked while something is written.
    written: Mutex<Written>,
}

/// Bytes written.
#[derive(Default)]
struct Written {
    /// Since the last sync.
    unsynced: u64,
    /// Since it was last looked for room.
    unlooked: u64,
}

impl Drop for Redb {
    fn drop(&mut self) {
        self.unsynced = None;
        if let Some(thread) = self.syncing.take() {
            // A panic in it was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn engine(error: impl Into<redb::Error>) -> ReadError {
    match error.into() {
        redb::Error::Io(error) => ReadError::Io(error),
        error => ReadError::Engine(error.to_string()),
    }
}

fn failed(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

impl Redb {
    /// Opens the file at `path`, or makes it, and verifies all of it.
    pub(super) fn open(path: &Path, upkeep: Upkeep) -> Result<Self, OpenError> {
        let io_error = |source| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        let new = !path.exists();
        // Made here and not by redb, for its owner only.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io_error)?;
        let database = guarded(path, || {
            let mut database = Builder::new()
                .set_cache_size(CACHE)
                .set_check_integrity_on_open(true)
                .create(path)
                .map_err(engine)?;
            let transaction = database.begin_write().map_err(engine)?;
            transaction.open_table(RECORDS).map_err(engine)?;
            transaction.commit().map_err(engine)?;
            give_back(&mut database, path, upkeep).map_err(engine)?;
            Ok(database)
        })?;
        if new && let Some(parent) = path.parent() {
            sync_directory(parent).map_err(io_error)?;
        }
        let file = Arc::new(RedbFile {
            database: RwLock::new(database),
            path: path.to_owned(),
            upkeep,
            written: Mutex::default(),
        });
        let (unsynced, told) = mpsc::sync_channel(1);
        let of_thread = file.clone();
        let syncing = thread::Builder::new()
            .name("store-sync".to_owned())
            .spawn(move || of_thread.sync_what_is_left(&told))
            .map_err(io_error)?;
        Ok(Self {
            file,
            unsynced: Some(unsynced),
            syncing: Some(syncing),
        })
    }
}

impl RedbFile {
    fn database(&self) -> RwLockReadGuard<'_, Database> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, durable: bool) -> io::Result<WriteTransaction> {
        let mut transaction = self.database().begin_write().map_err(failed)?;
        if !durable {
            transaction
                .set_durability(Durability::None)
                .map_err(io::Error::other)?;
        }
        Ok(transaction)
    }

    fn give_back(&self, written: &mut Written) -> io::Result<()> {
        written.unlooked = 0;
        if taken(&self.path)? <= self.upkeep.compact_above {
            return Ok(());
        }
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        give_back(&mut database, &self.path, self.upkeep).map_err(failed)
    }

    /// Syncs when nothing was told for a moment, until nobody is left who could tell.
    fn sync_what_is_left(&self, told: &mpsc::Receiver<()>) {
        while told.recv().is_ok() {
            loop {
                match told.recv_timeout(MOMENT) {
                    Ok(()) => {}
                    Err(mpsc::RecvTimeoutError::Timeout) => break,
                    // Closing it syncs as well.
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
            }
            let mut written = self.written();
            if written.unsynced > 0 {
                let synced = self
                    .begin(true)
                    .and_then(|transaction| transaction.commit().map_err(failed));
                if let Err(error) = synced {
                    // redb refuses the next write too.
                    tracing::error!(%error, path = %self.path.display(), "what was written can not be synced");
                }
                written.unsynced = 0;
            }
        }
    }
}

/// Makes the file smaller, where most of it is room that nothing is in.
fn give_back(database: &mut Database, path: &Path, upkeep: Upkeep) -> Result<(), redb::Error> {
    let size = taken(path)?;
    if size <= upkeep.compact_above {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    let used = transaction.stats()?.stored_bytes();
    transaction.abort()?;
    if size > used.saturating_mul(upkeep.too_big) {
        database.compact()?;
        tracing::info!(
            path = %path.display(),
            before = size,
            after = taken(path)?,
            "a database was mostly room and is compacted"
        );
    }
    Ok(())
}

/// Bytes that the file takes on the disk: it is longer, since redb doubles it before it fills it.
fn taken(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|file| file.blocks() * 512)
}

/// About as much as a change makes redb write.
fn cost(change: &Raw) -> u64 {
    match change {
        Raw::Put(_, piece) => PAGE.max(piece.len() as u64),
        Raw::Remove(_) | Raw::RemoveRange(..) => PAGE,
    }
}

impl Engine for Redb {
    fn piece_bytes(&self) -> usize {
        PIECE
    }

    fn write(&self, batches: Vec<Vec<Raw>>, durable: bool) -> io::Result<()> {
        let costs: u64 = batches.iter().flatten().map(cost).sum();
        let mut written = self.file.written();
        let durable = durable || written.unsynced + costs >= self.file.upkeep.sync_after;
        let transaction = self.file.begin(durable)?;
        {
            let mut table = transaction.open_table(RECORDS).map_err(failed)?;
            for change in batches.iter().flatten() {
                match change {
                    Raw::Put(name, piece) => {
                        table
                            .insert(name.as_slice(), piece.as_slice())
                            .map_err(failed)?;
                    }
                    Raw::Remove(name) => {
                        table.remove(name.as_slice()).map_err(failed)?;
                    }
                    Raw::RemoveRange(from, to) => table
                        .retain_in::<&[u8], _>(from.as_slice()..to.as_slice(), |_, _| false)
                        .map_err(failed)?,
                }
            }
        }
        transaction.commit().map_err(failed)?;
        written.unlooked += costs;
        if durable {
            written.unsynced = 0;
        } else {
            written.unsynced += costs;
            if let Some(unsynced) = &self.unsynced {
                // Where it is full, it is told already.
                let _ = unsynced.try_send(());
            }
        }
        let removed = batches
            .iter()
            .flatten()
            .any(|change| matches!(change, Raw::RemoveRange(..)));
        if removed || written.unlooked >= SYNCS_EACH_LOOK * self.file.upkeep.sync_after {
            self.file.give_back(&mut written)?;
        }
        Ok(())
    }

    fn scan(&self, from: &[u8], to: Option<&[u8]>, each: &mut Each<'_>) -> Result<(), ReadError> {
        // Kept to the end: nothing is compacted while somebody reads.
        let database = self.file.database();
        let transaction = database.begin_read().map_err(engine)?;
        let table = transaction.open_table(RECORDS).map_err(engine)?;
        let end = to.map_or(Bound::Unbounded, Bound::Excluded);
        for piece in table
            .range::<&[u8]>((Bound::Included(from), end))
            .map_err(engine)?
        {
            let (name, piece) = piece.map_err(engine)?;
            if !each(name.value(), piece.value())? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn replace(&self, pieces: &mut Pieces<'_>) -> io::Result<()> {
        let mut written = self.file.written();
        let transaction = self.file.begin(true)?;
        transaction.delete_table(RECORDS).map_err(failed)?;
        {
            let mut table = transaction.open_table(RECORDS).map_err(failed)?;
            for (name, piece) in pieces {
                table
                    .insert(name.as_slice(), piece.as_slice())
                    .map_err(failed)?;
            }
        }
        transaction.commit().map_err(failed)?;
        written.unsynced = 0;
        // What was there before.
        self.file.give_back(&mut written)
    }

    fn size_on_disk(&self) -> u64 {
        taken(&self.file.path).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Upkeep = Upkeep {
        compact_above: 256 << 10,
        too_big: 3,
        sync_after: 64 << 10,
    };

    fn put(number: u32) -> Vec<Raw> {
        vec![Raw::Put(number.to_be_bytes().to_vec(), vec![1; 1000])]
    }

    fn count(engine: &Redb) -> usize {
        let mut count = 0;
        engine
            .scan(&[], None, &mut |_, _| {
                count += 1;
                Ok(true)
            })
            .unwrap();
        count
    }

    /// What a crash would leave at this moment.
    fn left(path: &Path) -> usize {
        let copy = path.with_extension("copy");
        fs::copy(path, &copy).unwrap();
        count(&Redb::open(&copy, SMALL).unwrap())
    }

    #[test]
    fn what_was_written_without_a_sync_is_synced_when_it_is_much() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let engine = Redb::open(&path, SMALL).unwrap();
        let all: Vec<_> = (0..15).map(put).collect();
        engine.write(all, false).unwrap();
        assert_eq!(count(&engine), 15);
        engine.write(vec![put(15)], false).unwrap();
        assert_eq!(left(&path), 16);
        engine.write(vec![put(16)], true).unwrap();
        assert_eq!(left(&path), 17);
    }

    #[test]
    fn what_was_written_without_a_sync_is_synced_when_nothing_more_comes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let engine = Redb::open(&path, SMALL).unwrap();
        for number in 0..3 {
            engine.write(vec![put(number)], false).unwrap();
        }
        // However long it takes.
        while left(&path) < 3 {
            thread::yield_now();
        }
    }

    /// redb lets nobody read while it compacts, and does not compact while somebody reads.
    #[test]
    fn a_write_that_compacts_waits_for_whoever_reads() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Arc::new(Redb::open(&dir.path().join("db"), SMALL).unwrap());
        engine.write((0..4000).map(put).collect(), true).unwrap();
        let (sender, written) = mpsc::sync_channel(1);
        let mut writing = None;
        engine
            .scan(&[], None, &mut |_, _| {
                if writing.is_none() {
                    let (engine, sender) = (engine.clone(), sender.clone());
                    writing = Some(thread::spawn(move || {
                        let change = Raw::RemoveRange(vec![0], vec![0, 0, 15]);
                        sender.send(engine.write(vec![vec![change]], true)).unwrap();
                    }));
                    // Had it not to wait, it would be done now, or refused.
                    let early = written.recv_timeout(Duration::from_millis(300));
                    assert!(early.is_err(), "{early:?}");
                }
                Ok(true)
            })
            .unwrap();
        written.recv().unwrap().unwrap();
        writing.unwrap().join().unwrap();
        assert_eq!(count(&engine), 160);
    }

    #[test]
    fn room_is_given_back_while_the_file_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Redb::open(&dir.path().join("db"), SMALL).unwrap();
        for number in 0..4000 {
            engine.write(vec![put(number)], false).unwrap();
        }
        let full = engine.size_on_disk();
        for number in 100..4000_u32 {
            let change = Raw::Remove(number.to_be_bytes().to_vec());
            engine.write(vec![vec![change]], false).unwrap();
        }
        let left = engine.size_on_disk();
        assert_eq!(count(&engine), 100);
        assert!(full > 4000 * 1000, "{full}");
        assert!(left < full / 4, "{full}, {left}");
    }
}
