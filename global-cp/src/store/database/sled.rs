//! sled, made fit for what is asked of it, as far as that goes.
//!
//! - **Syncs reach the disk.** sled's `flush` ends in `sync_file_range` on Linux, which waits for the pages but flushes
//!   neither the disk's cache nor the file's size. A durable write therefore follows it by `fdatasync` of sled's file.
//!   What no `fdatasync` covered may be torn after a loss of power, and then sled does not open.
//! - **No value is big.** sled moves big pages to files of their own ("blobs"), whose syncs would have to be followed
//!   too. Pieces are so small that a page never gets that big; should a blob appear all the same, it is
//!   synced as well.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use sled::Tree;

use super::{
    Each, Engine, OpenError, Pieces, Raw, ReadError, guarded, make_directory, sealed,
    sync_directory, verified,
};

/// Bytes of a value in one piece. sled keeps up to 17 of them in a page, and a page of more than 128 KiB is a blob.
const PIECE: usize = 4096;
/// Pieces written with one batch while everything is replaced.
const PIECES_AT_ONCE: usize = 1000;

const GENERATION: &[u8] = b"generation";

/// One sled directory.
pub(super) struct Sled {
    sled: sled::Db,
    path: PathBuf,
    about: Tree,
    // The tree that counts, and its number.
    current: Mutex<(u64, Tree)>,
    // The file that sled appends to, opened once more to sync it.
    file: File,
}

impl From<sled::Error> for ReadError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => Self::Io(error),
            error => Self::Engine(error.to_string()),
        }
    }
}

impl Sled {
    /// Opens the directory at `path`, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        let new = !path.join("db").exists();
        make_directory(path)?;
        remove_unfinished(path).map_err(io_error(path))?;
        let (sled, about, generation, tree) = guarded(path, || {
            let sled = open_sled(path)?;
            let about = sled.open_tree("about")?;
            let generation = match about.get(GENERATION)? {
                None => 0,
                Some(value) => verified(GENERATION, &value)?
                    .try_into()
                    .map(u64::from_be_bytes)
                    .map_err(|_| ReadError::Damaged("generation".to_owned()))?,
            };
            let tree = sled.open_tree(records_tree(generation))?;
            Ok((sled, about, generation, tree))
        })?;
        let opened = Self {
            file: File::open(path.join("db")).map_err(io_error(path))?,
            sled,
            path: path.to_owned(),
            about,
            current: Mutex::new((generation, tree)),
        };
        guarded(path, || opened.drop_others(generation))?;
        if new {
            // The new files' names must survive a loss of power as well.
            opened.sync().map_err(io_error(path))?;
            sync_directory(path).map_err(io_error(path))?;
        }
        Ok(opened)
    }

    fn tree(&self) -> Tree {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.1.clone()
    }

    /// Trees that were replaced, or did not get to take a place.
    fn drop_others(&self, generation: u64) -> Result<(), ReadError> {
        let current = records_tree(generation);
        for name in self.sled.tree_names() {
            if name.starts_with(b"records.") && name.as_ref() != current.as_bytes() {
                self.sled.drop_tree(name)?;
            }
        }
        Ok(())
    }

    /// Returns when everything written before is on the disk.
    fn sync(&self) -> io::Result<()> {
        self.sled.flush()?;
        rustix::fs::fdatasync(&self.file)?;
        self.sync_blobs()
    }

    fn sync_blobs(&self) -> io::Result<()> {
        let directory = self.path.join("blobs");
        let blobs = match fs::read_dir(&directory) {
            Ok(blobs) => blobs,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut any = false;
        for blob in blobs {
            match File::open(blob?.path()) {
                Ok(file) => rustix::fs::fdatasync(&file)?,
                // sled removes those it needs no longer.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            any = true;
        }
        if any {
            sync_directory(&directory)?;
        }
        Ok(())
    }
}

impl Engine for Sled {
    fn piece_bytes(&self) -> usize {
        PIECE
    }

    fn write(&self, batches: Vec<Vec<Raw>>, durable: bool) -> io::Result<()> {
        let tree = self.tree();
        for batch in batches {
            let mut together = sled::Batch::default();
            for change in batch {
                match change {
                    Raw::Put(name, piece) => together.insert(name, piece),
                    Raw::Remove(name) => together.remove(name),
                    Raw::RemoveRange(from, to) => {
                        for name in tree.range(from..to).keys() {
                            together.remove(name?);
                        }
                    }
                }
            }
            tree.apply_batch(together)?;
        }
        if durable { self.sync() } else { Ok(()) }
    }

    fn scan(&self, from: &[u8], to: Option<&[u8]>, each: &mut Each<'_>) -> Result<(), ReadError> {
        let tree = self.tree();
        let pieces = match to {
            Some(to) => tree.range(from..to),
            None => tree.range(from..),
        };
        for piece in pieces {
            let (name, piece) = piece?;
            if !each(&name, &piece)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn replace(&self, pieces: &mut Pieces<'_>) -> io::Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let next = current.0 + 1;
        let tree = self.sled.open_tree(records_tree(next))?;
        // Left over from an attempt that did not get to its end.
        tree.clear()?;
        let mut batch = sled::Batch::default();
        for (number, (name, piece)) in pieces.enumerate() {
            batch.insert(name, piece);
            if number % PIECES_AT_ONCE == PIECES_AT_ONCE - 1 {
                tree.apply_batch(std::mem::take(&mut batch))?;
            }
        }
        tree.apply_batch(batch)?;
        self.sync()?;
        let number = next.to_be_bytes();
        self.about.insert(GENERATION, sealed(GENERATION, &number))?;
        self.sync()?;
        *current = (next, tree);
        self.drop_others(next).map_err(io::Error::other)
    }

    fn size_on_disk(&self) -> u64 {
        self.sled.size_on_disk().unwrap_or_default()
    }
}

fn records_tree(generation: u64) -> String {
    format!("records.{generation}")
}

/// Opens the database. The caller holds the store's lock, so whoever still has sled's own lock is a background task of
/// an instance that this process has closed a moment ago, and is waited for.
fn open_sled(path: &Path) -> Result<sled::Db, ReadError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let opened = sled::Config::new()
            .path(path)
            .mode(sled::Mode::HighThroughput)
            .cache_capacity(32 << 20)
            .open();
        match opened {
            // sled tells this error by its text only.
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock")
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other.map_err(ReadError::from),
        }
    }
}

/// sled writes its index to `snap.N.generating` and renames it; a crash between leaves a part that it would read.
fn remove_unfinished(path: &Path) -> io::Result<()> {
    for file in fs::read_dir(path)? {
        let file = file?;
        if file
            .file_name()
            .as_encoded_bytes()
            .ends_with(b".generating")
        {
            fs::remove_file(file.path())?;
        }
    }
    Ok(())
}
