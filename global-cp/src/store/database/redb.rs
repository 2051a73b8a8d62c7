//! redb: a B-tree that is copied on write, in one file. A commit is one `fdatasync`, and its pages are checksummed, so
//! that a torn commit is told from a whole one and the one before it counts.

use std::{
    fs::{self, OpenOptions},
    io,
    ops::Bound,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use redb::{
    Builder, Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition,
    WriteTransaction,
};

use super::{
    Batch, Change, Each, Engine, OpenError, ReadError, Records, guarded, sealed, sync_directory,
    verified,
};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
/// Bytes of pages kept in memory.
const CACHE: usize = 16 << 20;
/// A file that is so many times bigger than what is in it, and bigger than [`WORTH_IT`], is compacted when it is opened.
const TOO_BIG: u64 = 4;
const WORTH_IT: u64 = 16 << 20;

/// One redb file.
pub(super) struct Redb {
    database: Database,
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
            let used = transaction.stats().map_err(engine)?.stored_bytes();
            transaction.commit().map_err(engine)?;
            let size = fs::metadata(path)?.len();
            if size > WORTH_IT && size > used.saturating_mul(TOO_BIG) {
                database.compact().map_err(engine)?;
            }
            Ok(database)
        })?;
        if new && let Some(parent) = path.parent() {
            sync_directory(parent).map_err(io_error)?;
        }
        Ok(Self {
            database,
            path: path.to_owned(),
        })
    }

    fn begin(&self, durable: bool) -> io::Result<WriteTransaction> {
        let mut transaction = self.database.begin_write().map_err(failed)?;
        if !durable {
            transaction
                .set_durability(Durability::None)
                .map_err(io::Error::other)?;
        }
        Ok(transaction)
    }
}

impl Engine for Redb {
    fn write(&self, batches: &[Batch], durable: bool) -> io::Result<()> {
        let transaction = self.begin(durable)?;
        {
            let mut table = transaction.open_table(RECORDS).map_err(failed)?;
            for change in batches.iter().flat_map(|batch| &batch.0) {
                match change {
                    Change::Put { key, value, .. } => {
                        table
                            .insert(key.as_slice(), sealed(key, value).as_slice())
                            .map_err(failed)?;
                    }
                    Change::Remove { key, .. } => {
                        table.remove(key.as_slice()).map_err(failed)?;
                    }
                    Change::RemoveRange { from, to } => table
                        .retain_in::<&[u8], _>(from.as_slice()..to.as_slice(), |_, _| false)
                        .map_err(failed)?,
                }
            }
        }
        transaction.commit().map_err(failed)
    }

    fn read(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let transaction = self.database.begin_read().map_err(engine)?;
        let table = transaction.open_table(RECORDS).map_err(engine)?;
        let Some(value) = table.get(key).map_err(engine)? else {
            return Ok(None);
        };
        Ok(Some(Bytes::copy_from_slice(verified(key, value.value())?)))
    }

    fn scan(&self, from: &[u8], to: &[u8], each: &mut Each<'_>) -> Result<(), ReadError> {
        let transaction = self.database.begin_read().map_err(engine)?;
        let table = transaction.open_table(RECORDS).map_err(engine)?;
        let range = (Bound::Included(from), Bound::Excluded(to));
        for record in table.range::<&[u8]>(range).map_err(engine)? {
            let (key, value) = record.map_err(engine)?;
            let value = Bytes::copy_from_slice(verified(key.value(), value.value())?);
            if !each(key.value(), value)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn read_all(&self, each: &mut Each<'_>) -> Result<(), ReadError> {
        let transaction = self.database.begin_read().map_err(engine)?;
        let table = transaction.open_table(RECORDS).map_err(engine)?;
        for record in table.iter().map_err(engine)? {
            let (key, value) = record.map_err(engine)?;
            let value = Bytes::copy_from_slice(verified(key.value(), value.value())?);
            if !each(key.value(), value)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn replace(&self, records: &mut Records<'_>) -> io::Result<()> {
        let transaction = self.begin(true)?;
        transaction.delete_table(RECORDS).map_err(failed)?;
        {
            let mut table = transaction.open_table(RECORDS).map_err(failed)?;
            for (key, value) in records {
                table
                    .insert(key, sealed(key, value).as_slice())
                    .map_err(failed)?;
            }
        }
        transaction.commit().map_err(failed)
    }

    fn size_on_disk(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }
}
