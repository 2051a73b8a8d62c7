//! sled, made fit for what Raft asks of it.
//!
//! - **Syncs reach the disk.** sled's `flush` ends in `sync_file_range` on Linux, which waits for the pages but flushes
//!   neither the disk's cache nor the file's size. [`Database::sync`] therefore follows it by `fdatasync` of sled's
//!   file.
//! - **No value is big.** sled moves big pages to files of their own ("blobs"), whose syncs would have to be followed
//!   too. Values are cut in pieces so small that a page never gets that big; should a blob appear all the same, it is
//!   synced as well.
//! - **Every piece has a checksum**, so that a flipped bit is an error that names the file, not a strange value.
//! - **sled panics on some damage.** Opening and reading at start is guarded, and a panic is reported as damage.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use mesh_runtime::files::DirLock;
use sled::{Batch, Tree};
use tokio::sync::watch;

use super::{OpenError, directory::Node};

/// Bytes of a value in one piece. sled keeps up to 17 of them in a page, and a page of more than 128 KiB is a blob.
const PIECE: usize = 4096;
/// Bytes of the checksum before each piece.
const CHECKSUM: usize = 8;
/// Bytes of the piece's number behind each key.
const NUMBER: usize = 2;
/// Biggest value: as many pieces as two bytes can number.
const BIGGEST_VALUE: usize = PIECE * (u16::MAX as usize);

const IDENTITY: &[u8] = b"identity";
const GENERATION: &[u8] = b"generation";

/// A value that is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database refuses.
    #[error("{0}")]
    Sled(#[from] sled::Error),
    /// The bytes are not those that were written.
    #[error("the record {0} does not match its checksum")]
    Damaged(String),
    /// A record is missing where there must be one.
    #[error("{0} is missing")]
    Missing(String),
}

/// One sled database with two trees of ours: the log, and the state machine.
#[derive(Clone)]
pub struct Database(Arc<Inner>);

struct Inner {
    sled: sled::Db,
    path: PathBuf,
    log: Tree,
    about: Tree,
    // The file that sled appends to, opened once more to sync it.
    file: File,
    generation: AtomicU64,
    _lock: DirLock,
    // Last, so that it is dropped when all above is closed.
    open: watch::Sender<()>,
}

/// Says when a database is closed.
#[derive(Debug, Clone)]
pub struct Closed(watch::Receiver<()>);

impl Closed {
    /// Returns when the last user of the database is gone and its files are closed.
    pub async fn wait(mut self) {
        // Nothing is ever sent: the channel ends.
        while self.0.changed().await.is_ok() {}
    }
}

impl Database {
    /// Opens the database at `path`, which must belong to `owner`; makes it where `create` is set and it does not exist.
    ///
    /// # Errors
    /// Where it is damaged or somebody else's.
    pub fn open(path: &Path, owner: &Node, create: bool) -> Result<Self, OpenError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        let exists = path.join("db").exists();
        if !exists && !create {
            return Err(OpenError::LostWrites {
                path: path.to_owned(),
                reason: "there is no store".to_owned(),
            });
        }
        mesh_runtime::files::ensure_private_dir(path).map_err(io_error(path))?;
        let lock = mesh_runtime::files::lock_dir(path)?;
        remove_unfinished(path).map_err(io_error(path))?;
        let sled = guarded(path, || match open_sled(path) {
            // The disk, not what is on it.
            Err(sled::Error::Io(error)) if !is_of_content(&error) => Ok(Err(error)),
            other => other.map(Ok),
        })?
        .map_err(io_error(path))?;
        let log = guarded(path, || sled.open_tree("log"))?;
        let about = guarded(path, || sled.open_tree("about"))?;
        let file = File::open(path.join("db")).map_err(io_error(path))?;
        let database = Self(Arc::new(Inner {
            sled,
            path: path.to_owned(),
            log,
            about,
            file,
            generation: AtomicU64::new(0),
            _lock: lock,
            open: watch::Sender::new(()),
        }));
        database.check_owner(owner, create && !exists)?;
        database.read_generation()?;
        if !exists {
            // The new file's name must survive a loss of power as well.
            database.sync().map_err(io_error(path))?;
            sync_directory(path).map_err(io_error(path))?;
            if let Some(parent) = path.parent() {
                sync_directory(parent).map_err(io_error(parent))?;
            }
        }
        Ok(database)
    }

    fn check_owner(&self, owner: &Node, new: bool) -> Result<(), OpenError> {
        let found = self.guarded(|| self.read(&self.0.about, IDENTITY))?;
        match found {
            Some(found) => {
                let found: Node = serde_json::from_slice(&found)
                    .map_err(|error| self.damaged(format!("its owner's name: {error}")))?;
                if found == *owner {
                    return Ok(());
                }
                Err(OpenError::Foreign {
                    path: self.0.path.clone(),
                    found: found.to_string(),
                    wanted: owner.to_string(),
                })
            }
            None if new || self.0.log.is_empty() => {
                let json =
                    serde_json::to_vec(owner).map_err(|error| self.damaged(error.to_string()))?;
                let mut batch = Batch::default();
                put(&mut batch, IDENTITY, &json, None);
                self.guarded(|| self.0.about.apply_batch(batch).map_err(ReadError::from))
            }
            None => Err(self.damaged("it does not say whose it is".to_owned())),
        }
    }

    fn read_generation(&self) -> Result<(), OpenError> {
        let generation = self
            .guarded(|| self.read(&self.0.about, GENERATION))?
            .map(|value| {
                <[u8; 8]>::try_from(value.as_ref())
                    .map(u64::from_be_bytes)
                    .map_err(|_| self.damaged("the generation of its state".to_owned()))
            })
            .transpose()?
            .unwrap_or_default();
        self.0.generation.store(generation, Ordering::SeqCst);
        self.guarded(|| self.drop_other_states())
    }

    /// Trees of a state that a snapshot has replaced, or did not get to replace.
    fn drop_other_states(&self) -> Result<(), ReadError> {
        let current = state_tree(self.generation());
        for name in self.0.sled.tree_names() {
            if name.starts_with(b"state.") && name.as_ref() != current.as_bytes() {
                self.0.sled.drop_tree(name)?;
            }
        }
        Ok(())
    }

    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::SeqCst)
    }

    /// To wait until it is closed.
    #[must_use]
    pub fn closed(&self) -> Closed {
        Closed(self.0.open.subscribe())
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &Tree {
        &self.0.log
    }

    /// The state machine.
    ///
    /// # Errors
    /// Where sled refuses.
    pub fn state(&self) -> Result<Tree, sled::Error> {
        self.0.sled.open_tree(state_tree(self.generation()))
    }

    /// Replaces the whole state by `records`, as one atom: after a crash there is the old one or the new one.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn replace_state<'a>(
        &self,
        records: impl Iterator<Item = (&'a [u8], &'a Bytes)>,
    ) -> io::Result<Tree> {
        const RECORDS_AT_ONCE: usize = 1000;
        let next = self.generation() + 1;
        let tree = self.0.sled.open_tree(state_tree(next))?;
        // Left over from an attempt that did not get to its end.
        tree.clear()?;
        let mut batch = Batch::default();
        for (count, (key, value)) in records.enumerate() {
            put(&mut batch, key, value, None);
            if count % RECORDS_AT_ONCE == RECORDS_AT_ONCE - 1 {
                tree.apply_batch(std::mem::take(&mut batch))?;
            }
        }
        tree.apply_batch(batch)?;
        self.sync()?;
        let mut batch = Batch::default();
        put(&mut batch, GENERATION, &next.to_be_bytes(), None);
        self.0.about.apply_batch(batch)?;
        self.sync()?;
        self.0.generation.store(next, Ordering::SeqCst);
        self.drop_other_states().map_err(io::Error::other)?;
        Ok(tree)
    }

    /// Returns when everything written before is on the disk.
    ///
    /// # Errors
    /// Where the disk refuses. What was written since the last successful sync may be lost.
    pub fn sync(&self) -> io::Result<()> {
        self.0.sled.flush()?;
        rustix::fs::fdatasync(&self.0.file)?;
        self.sync_blobs()
    }

    fn sync_blobs(&self) -> io::Result<()> {
        let directory = self.0.path.join("blobs");
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

    /// One value.
    ///
    /// # Errors
    /// Where it is not what was written.
    pub fn read(&self, tree: &Tree, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let mut value = None;
        for piece in tree.range(piece_key(key, 0)..=piece_key(key, u16::MAX)) {
            let (name, piece) = piece?;
            // A longer key may lie between the pieces of a shorter one.
            if name.len() == key.len() + NUMBER {
                value
                    .get_or_insert_with(BytesMut::new)
                    .extend_from_slice(verified(&name, &piece)?);
            }
        }
        Ok(value.map(BytesMut::freeze))
    }

    /// Gives the values of a range of `tree` to `each`, in order, until it returns `false`. All keys there must be of one
    /// length, so that the pieces of one value do not lie between those of another.
    ///
    /// # Errors
    /// Where one is not what was written.
    pub fn scan(
        &self,
        tree: &Tree,
        range: (Vec<u8>, Vec<u8>),
        mut each: impl FnMut(&[u8], Bytes) -> Result<bool, ReadError>,
    ) -> Result<(), ReadError> {
        let mut current: Option<(Vec<u8>, BytesMut)> = None;
        for piece in tree.range(range.0..range.1) {
            let (name, piece) = piece?;
            let key = name
                .len()
                .checked_sub(NUMBER)
                .map(|length| &name[..length])
                .ok_or_else(|| ReadError::Damaged(printable(&name)))?;
            let bytes = verified(&name, &piece)?;
            match &mut current {
                Some((current, value)) if current == key => value.extend_from_slice(bytes),
                _ => {
                    if let Some((key, value)) = current.take()
                        && !each(&key, value.freeze())?
                    {
                        return Ok(());
                    }
                    current = Some((key.to_vec(), BytesMut::from(bytes)));
                }
            }
        }
        if let Some((key, value)) = current {
            each(&key, value.freeze())?;
        }
        Ok(())
    }

    /// Every value of `tree`, whatever its key.
    ///
    /// # Errors
    /// Where one is not what was written.
    pub fn read_all(
        &self,
        tree: &Tree,
    ) -> Result<std::collections::BTreeMap<Vec<u8>, Bytes>, ReadError> {
        let mut all = std::collections::BTreeMap::<Vec<u8>, BytesMut>::new();
        for piece in tree.iter() {
            let (name, piece) = piece?;
            let bytes = verified(&name, &piece)?;
            let key = &name[..name.len() - NUMBER];
            match all.get_mut(key) {
                Some(value) => value.extend_from_slice(bytes),
                None => {
                    all.insert(key.to_vec(), BytesMut::from(bytes));
                }
            }
        }
        Ok(all
            .into_iter()
            .map(|(key, value)| (key, value.freeze()))
            .collect())
    }

    /// Runs `read`, and reports an error or panic in it as damage of this store.
    ///
    /// # Errors
    /// Where there was one.
    pub fn guarded<T>(&self, read: impl FnOnce() -> Result<T, ReadError>) -> Result<T, OpenError> {
        guarded(&self.0.path, read)
    }

    /// Damage of this store.
    #[must_use]
    pub fn damaged(&self, reason: String) -> OpenError {
        OpenError::Damaged {
            path: self.0.path.clone(),
            reason,
        }
    }

    /// Bytes that sled's files take.
    #[must_use]
    pub fn size_on_disk(&self) -> u64 {
        self.0.sled.size_on_disk().unwrap_or_default()
    }
}

/// Adds the pieces of `value` to `batch`, and removes those that a longer `previous` value had more.
pub fn put(batch: &mut Batch, key: &[u8], value: &[u8], previous_length: Option<usize>) {
    let count = pieces(value.len());
    // Entries are refused long before they get this big.
    assert!(value.len() <= BIGGEST_VALUE, "a value of more than 256 MiB");
    for (number, piece) in (0..).zip(value.chunks(PIECE)) {
        put_piece(batch, &piece_key(key, number), piece);
    }
    if value.is_empty() {
        put_piece(batch, &piece_key(key, 0), &[]);
    }
    let before = previous_length.map_or(0, pieces);
    for number in count..before {
        batch.remove(piece_key(key, u16::try_from(number).unwrap_or(u16::MAX)));
    }
}

/// Adds to `batch` the removal of a value of `length` bytes.
pub fn remove(batch: &mut Batch, key: &[u8], length: usize) {
    for number in 0..pieces(length) {
        batch.remove(piece_key(key, u16::try_from(number).unwrap_or(u16::MAX)));
    }
}

fn put_piece(batch: &mut Batch, name: &[u8], piece: &[u8]) {
    let mut sealed = Vec::with_capacity(CHECKSUM + piece.len());
    sealed.extend_from_slice(&checksum(name, piece));
    sealed.extend_from_slice(piece);
    batch.insert(name, sealed);
}

fn pieces(length: usize) -> usize {
    length.div_ceil(PIECE).max(1)
}

fn piece_key(key: &[u8], number: u16) -> Vec<u8> {
    let mut name = Vec::with_capacity(key.len() + NUMBER);
    name.extend_from_slice(key);
    name.extend_from_slice(&number.to_be_bytes());
    name
}

/// Covers the name as well, so that a value under another's name is noticed.
fn checksum(name: &[u8], piece: &[u8]) -> [u8; CHECKSUM] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(name);
    context.update(piece);
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&context.finish().as_ref()[..CHECKSUM]);
    sum
}

fn verified<'a>(name: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], ReadError> {
    match sealed.split_at_checked(CHECKSUM) {
        Some((sum, piece)) if name.len() >= NUMBER && sum == checksum(name, piece) => Ok(piece),
        _ => Err(ReadError::Damaged(printable(name))),
    }
}

fn printable(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

fn state_tree(generation: u64) -> String {
    format!("state.{generation}")
}

fn guarded<T, E: std::fmt::Display>(
    path: &Path,
    read: impl FnOnce() -> Result<T, E>,
) -> Result<T, OpenError> {
    let damaged = |reason: String| OpenError::Damaged {
        path: path.to_owned(),
        reason,
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|error| damaged(error.to_string())),
        Err(panic) => Err(damaged(
            panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "the database can not make sense of its files".to_owned()),
        )),
    }
}

/// Opens the database. The caller holds the directory's lock, so whoever still has sled's own lock is a background task
/// of an instance that this process has closed a moment ago, and is waited for.
fn open_sled(path: &Path) -> sled::Result<sled::Db> {
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
            other => return other,
        }
    }
}

/// Whether an error says that a file is shorter than its own content claims, or makes no sense.
fn is_of_content(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
    )
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

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
