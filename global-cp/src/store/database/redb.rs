//! redb: a B-tree that is copied on write, in one file. A commit is one `fdatasync`, and its pages are checksummed, so
//! that a torn commit is told from a whole one and the one before it counts.

use std::{
    fs::{self, OpenOptions},
    io,
    ops::Bound,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock, RwLockReadGuard},
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
/// A file that is so many times bigger than what is in it, and bigger than [`WORTH_IT`], is compacted: when it is opened,
/// and when a range was removed from it.
const TOO_BIG: u64 = 4;
const WORTH_IT: u64 = 16 << 20;

/// One redb file.
pub(super) struct Redb {
    /// Locked for writing only while it is compacted, which redb lets nobody else read meanwhile.
    database: RwLock<Database>,
    path: PathBuf,
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
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
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
            give_back(&mut database, path).map_err(engine)?;
            Ok(database)
        })?;
        if new && let Some(parent) = path.parent() {
            sync_directory(parent).map_err(io_error)?;
        }
        Ok(Self {
            database: RwLock::new(database),
            path: path.to_owned(),
        })
    }

    fn database(&self) -> RwLockReadGuard<'_, Database> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
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
}

/// Makes the file smaller, where most of it is room that nothing is in.
fn give_back(database: &mut Database, path: &Path) -> Result<(), redb::Error> {
    let size = fs::metadata(path)?.len();
    if size <= WORTH_IT {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    let used = transaction.stats()?.stored_bytes();
    transaction.abort()?;
    if size > used.saturating_mul(TOO_BIG) {
        database.compact()?;
    }
    Ok(())
}

impl Engine for Redb {
    fn piece_bytes(&self) -> usize {
        PIECE
    }

    fn write(&self, batches: Vec<Vec<Raw>>, durable: bool) -> io::Result<()> {
        let transaction = self.begin(durable)?;
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
        let removed = batches
            .iter()
            .flatten()
            .any(|change| matches!(change, Raw::RemoveRange(..)));
        if removed && self.size_on_disk() > WORTH_IT {
            let mut database = self
                .database
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            give_back(&mut database, &self.path).map_err(failed)?;
        }
        Ok(())
    }

    fn scan(&self, from: &[u8], to: Option<&[u8]>, each: &mut Each<'_>) -> Result<(), ReadError> {
        let transaction = self.database().begin_read().map_err(engine)?;
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
        let transaction = self.begin(true)?;
        transaction.delete_table(RECORDS).map_err(failed)?;
        {
            let mut table = transaction.open_table(RECORDS).map_err(failed)?;
            for (name, piece) in pieces {
                table
                    .insert(name.as_slice(), piece.as_slice())
                    .map_err(failed)?;
            }
        }
        transaction.commit().map_err(failed)
    }

    fn size_on_disk(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }
}
