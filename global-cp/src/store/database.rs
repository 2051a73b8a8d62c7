//! What log and state machine ask of a database: an ordered map from bytes to bytes, changed by batches.
//!
//! There are two engines, and the same suite holds both to it:
//!
//! | engine | used for | what it promises |
//! | --- | --- | --- |
//! | [`redb`] | log, vote and state machine | what was synced survives a loss of power, whatever becomes of the rest; room is given back |
//! | [`sled`] | nothing; it is what the first is compared with | after a loss of power it may not open, and it gives no room back |
//!
//! Why so: `docs/decisions/008-the-store-is-in-redb.md`. Values are kept in pieces, and every piece has a checksum that covers its name, so
//! that a flipped bit is an error that names the file, not a strange value. Both engines panic on some damage: opening and
//! reading at start is guarded, and a panic is reported as damage.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::{self, File},
    io,
    panic::{self, AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Once},
};

use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use mesh_runtime::files::DirLock;
use tokio::sync::watch;

use super::OpenError;

pub mod redb;
pub mod sled;

/// Bytes of the checksum before each piece of a value.
const CHECKSUM: usize = 8;
/// Bytes of the piece's number behind each key.
const NUMBER: usize = 2;

/// Why something is not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database refuses.
    #[error("{0}")]
    Engine(String),
    /// The system refuses, which says nothing of what is on the disk.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The bytes are not those that were written.
    #[error("the record {0} does not match its checksum")]
    Damaged(String),
    /// A record is missing where there must be one.
    #[error("{0} is missing")]
    Missing(String),
}

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`redb`], and when its file is looked after.
    Redb(redb::Upkeep),
    /// [`sled`]
    Sled,
}

/// What a database may be told to change, as one atom and in this order.
#[derive(Debug, Clone, Default)]
pub struct Batch(Vec<Change>);

/// One change.
#[derive(Debug, Clone)]
enum Change {
    /// A value, and how long the one before it was.
    Put {
        key: Vec<u8>,
        value: Bytes,
        before: Option<usize>,
    },
    /// A value goes away that was this long.
    Remove { key: Vec<u8>, length: usize },
    /// All values from the first key to before the second go away.
    RemoveRange { from: Vec<u8>, to: Vec<u8> },
}

impl Batch {
    /// Puts `value` in place of one that was `before` bytes long, or of none.
    pub fn put(&mut self, key: &[u8], value: Bytes, before: Option<usize>) {
        self.0.push(Change::Put {
            key: key.to_vec(),
            value,
            before,
        });
    }

    /// Removes a value of `length` bytes.
    pub fn remove(&mut self, key: &[u8], length: usize) {
        self.0.push(Change::Remove {
            key: key.to_vec(),
            length,
        });
    }

    /// Removes all values from the key `from` to before the key `to`, of those that were there before this batch.
    pub fn remove_range(&mut self, from: Vec<u8>, to: Vec<u8>) {
        self.0.push(Change::RemoveRange { from, to });
    }

    fn raw(&self, piece: usize) -> Vec<Raw> {
        let mut raw = Vec::with_capacity(self.0.len());
        for change in &self.0 {
            match change {
                Change::Put { key, value, before } => {
                    raw.extend(
                        pieces(key, value, piece).map(|(name, piece)| Raw::Put(name, piece)),
                    );
                    // What a longer value before had more.
                    let surplus =
                        count(value.len(), piece)..before.map_or(0, |before| count(before, piece));
                    raw.extend(surplus.map(|number| Raw::Remove(piece_name(key, number))));
                }
                Change::Remove { key, length } => raw.extend(
                    (0..count(*length, piece)).map(|number| Raw::Remove(piece_name(key, number))),
                ),
                Change::RemoveRange { from, to } => {
                    raw.push(Raw::RemoveRange(from.clone(), to.clone()));
                }
            }
        }
        raw
    }
}

/// What an engine is told to change: pieces of values, which it knows nothing of.
enum Raw {
    Put(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
    /// From the first to before the second.
    RemoveRange(Vec<u8>, Vec<u8>),
}

/// Told of each piece: its name, and what was put; says whether it wants more.
type Each<'a> = dyn FnMut(&[u8], &[u8]) -> Result<bool, ReadError> + 'a;
/// Pieces to fill a database with.
type Pieces<'a> = dyn Iterator<Item = (Vec<u8>, Vec<u8>)> + 'a;

/// What an engine does. Writes come from one thread at a time.
trait Engine: Send + Sync + 'static {
    /// Bytes of the biggest piece that it takes without moving much else.
    fn piece_bytes(&self) -> usize;
    /// Makes the batches, each whole or not at all; a later one is never there without an earlier one. With `durable`,
    /// returns when they and all before are on the disk.
    fn write(&self, batches: Vec<Vec<Raw>>, durable: bool) -> io::Result<()>;
    /// The pieces from a name to before another, in order; to the end where there is none.
    fn scan(&self, from: &[u8], to: Option<&[u8]>, each: &mut Each<'_>) -> Result<(), ReadError>;
    /// Replaces everything, whole or not at all, and returns when it is on the disk.
    fn replace(&self, pieces: &mut Pieces<'_>) -> io::Result<()>;
    /// Bytes on the disk.
    fn size_on_disk(&self) -> u64;
}

/// An open database. Clones are the same one.
#[derive(Clone)]
pub struct Database {
    engine: Arc<dyn Engine>,
    path: Arc<Path>,
    // After the engine, so that it is dropped when that is closed.
    _hold: Hold,
}

/// Holds the store's directory for this process until the last database in it is closed.
#[derive(Clone)]
pub struct Hold(Arc<Held>);

struct Held {
    _lock: DirLock,
    // Last, so that it is dropped when all above is closed.
    open: watch::Sender<()>,
}

impl Hold {
    /// Locks `directory`.
    ///
    /// # Errors
    /// Where another process has it.
    pub fn take(directory: &Path) -> Result<Self, OpenError> {
        Ok(Self(Arc::new(Held {
            _lock: mesh_runtime::files::lock_dir(directory)?,
            open: watch::Sender::new(()),
        })))
    }

    /// To wait until everything is closed.
    #[must_use]
    pub fn closed(&self) -> Closed {
        Closed(self.0.open.subscribe())
    }
}

/// Says when a store is closed.
#[derive(Debug, Clone)]
pub struct Closed(watch::Receiver<()>);

impl Closed {
    /// Returns when the last user of the store is gone and its files are closed.
    pub async fn wait(mut self) {
        // Nothing is ever sent: the channel ends.
        while self.0.changed().await.is_ok() {}
    }
}

impl Database {
    /// Opens the database at `path`, or makes it where there is none.
    ///
    /// # Errors
    /// Where it is damaged, or the system refuses.
    pub fn open(kind: Kind, path: &Path, hold: &Hold) -> Result<Self, OpenError> {
        let engine: Arc<dyn Engine> = match kind {
            Kind::Redb(upkeep) => Arc::new(redb::Redb::open(path, upkeep)?),
            Kind::Sled => Arc::new(sled::Sled::open(path)?),
        };
        Ok(Self {
            engine,
            path: path.into(),
            _hold: hold.clone(),
        })
    }

    /// The file or directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the batches, each whole or not at all; a later one is never there without an earlier one. With `durable`,
    /// returns when they and all before are on the disk.
    ///
    /// # Errors
    /// Where the disk refuses. What was written since the last successful sync may be lost.
    pub fn write(&self, batches: &[Batch], durable: bool) -> io::Result<()> {
        let piece = self.engine.piece_bytes();
        let raw = batches.iter().map(|batch| batch.raw(piece)).collect();
        self.engine.write(raw, durable)
    }

    /// One value.
    ///
    /// # Errors
    /// Where it is not what was written.
    pub fn read(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let mut value = None;
        let mut behind = piece_name(key, u16::MAX);
        behind.push(0);
        self.engine
            .scan(&piece_name(key, 0), Some(&behind), &mut |name, piece| {
                // A longer key may lie between the pieces of a shorter one.
                if name.len() == key.len() + NUMBER {
                    value
                        .get_or_insert_with(BytesMut::new)
                        .extend_from_slice(verified(name, piece)?);
                }
                Ok(true)
            })?;
        Ok(value.map(BytesMut::freeze))
    }

    /// Gives the values from one key to before another to `each`, in order, until it returns `false`. All keys there must
    /// be of one length, so that the pieces of one value do not lie between those of another.
    ///
    /// # Errors
    /// Where one is not what was written.
    pub fn scan(
        &self,
        (from, to): (&[u8], &[u8]),
        mut each: impl FnMut(&[u8], Bytes) -> Result<bool, ReadError>,
    ) -> Result<(), ReadError> {
        let mut current: Option<(Vec<u8>, BytesMut)> = None;
        let mut more = true;
        self.engine.scan(from, Some(to), &mut |name, piece| {
            let bytes = verified(name, piece)?;
            let key = key_of(name)?;
            match &mut current {
                Some((current, value)) if current == key => value.extend_from_slice(bytes),
                _ => {
                    if let Some((key, value)) = current.take() {
                        more = each(&key, value.freeze())?;
                    }
                    current = Some((key.to_vec(), BytesMut::from(bytes)));
                }
            }
            Ok(more)
        })?;
        match current {
            Some((key, value)) if more => each(&key, value.freeze()).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// Every value, by key.
    ///
    /// # Errors
    /// Where one is not what was written.
    pub fn read_all(&self) -> Result<BTreeMap<Vec<u8>, Bytes>, ReadError> {
        let mut all = BTreeMap::<Vec<u8>, BytesMut>::new();
        self.engine.scan(&[], None, &mut |name, piece| {
            let bytes = verified(name, piece)?;
            let key = key_of(name)?;
            match all.get_mut(key) {
                Some(value) => value.extend_from_slice(bytes),
                None => {
                    all.insert(key.to_vec(), BytesMut::from(bytes));
                }
            }
            Ok(true)
        })?;
        Ok(all
            .into_iter()
            .map(|(key, value)| (key, value.freeze()))
            .collect())
    }

    /// Replaces everything by `records`, as one atom: after a crash there is the old or the new.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn replace<'a>(
        &self,
        records: impl Iterator<Item = (&'a [u8], &'a Bytes)>,
    ) -> io::Result<()> {
        let piece = self.engine.piece_bytes();
        let mut pieces = records.flat_map(|(key, value)| pieces(key, value, piece));
        self.engine.replace(&mut pieces)
    }

    /// Runs `read`, and reports an error or panic in it as damage of this database.
    ///
    /// # Errors
    /// Where there was one.
    pub fn guarded<T>(&self, read: impl FnOnce() -> Result<T, ReadError>) -> Result<T, OpenError> {
        guarded(&self.path, read)
    }

    /// Damage of this database.
    #[must_use]
    pub fn damaged(&self, reason: String) -> OpenError {
        OpenError::Damaged {
            path: self.path.to_path_buf(),
            reason,
        }
    }

    /// Bytes that its files take.
    #[must_use]
    pub fn size_on_disk(&self) -> u64 {
        self.engine.size_on_disk()
    }
}

thread_local! {
    // A panic of this thread is caught, and told as damage.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// A panic that is caught is no news for whoever reads the log: what it means is said where it is caught.
fn silence_guarded_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if GUARDED.get() {
                tracing::debug!(%info, "a database panics");
            } else {
                others(info);
            }
        }));
    });
}

/// Runs `read`, and reports a panic in it, and an error that is not the system's, as damage of `path`.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, ReadError>) -> Result<T, OpenError> {
    silence_guarded_panics();
    let read = || {
        GUARDED.set(true);
        let result = catch_unwind(AssertUnwindSafe(read));
        GUARDED.set(false);
        result
    };
    let damaged = |reason: String| OpenError::Damaged {
        path: path.to_owned(),
        reason,
    };
    match read() {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ReadError::Io(source))) if !is_of_content(&source) => Err(OpenError::Io {
            path: path.to_owned(),
            source,
        }),
        Ok(Err(error)) => Err(damaged(error.to_string())),
        Err(panic) => Err(damaged(
            panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "the database can not make sense of its files".to_owned()),
        )),
    }
}

/// Whether an error says that a file is shorter than its own content claims, or makes no sense.
fn is_of_content(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
    )
}

/// A value in pieces, each under a name of its own: a database moves whole pages, and a small value beside a big one
/// would cost as much as the big one.
fn pieces<'a>(
    key: &'a [u8],
    value: &'a [u8],
    piece: usize,
) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> + 'a {
    // Entries are refused long before they get this big.
    assert!(
        value.len() <= piece * usize::from(u16::MAX),
        "a value of {} bytes",
        value.len()
    );
    (0..count(value.len(), piece)).map(move |number| {
        let start = usize::from(number) * piece;
        let end = (start + piece).min(value.len());
        let name = piece_name(key, number);
        let bytes = sealed(&name, &value[start..end]);
        (name, bytes)
    })
}

fn count(length: usize, piece: usize) -> u16 {
    u16::try_from(length.div_ceil(piece).max(1)).unwrap_or(u16::MAX)
}

fn piece_name(key: &[u8], number: u16) -> Vec<u8> {
    let mut name = Vec::with_capacity(key.len() + NUMBER);
    name.extend_from_slice(key);
    name.extend_from_slice(&number.to_be_bytes());
    name
}

fn key_of(name: &[u8]) -> Result<&[u8], ReadError> {
    name.len()
        .checked_sub(NUMBER)
        .map(|length| &name[..length])
        .ok_or_else(|| ReadError::Damaged(printable(name)))
}

/// The value as it is stored: behind a checksum that covers the name as well, so that a value under another's name is
/// noticed.
fn sealed(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(CHECKSUM + value.len());
    sealed.extend_from_slice(&checksum(name, value));
    sealed.extend_from_slice(value);
    sealed
}

fn verified<'a>(name: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], ReadError> {
    match sealed.split_at_checked(CHECKSUM) {
        Some((sum, value)) if sum == checksum(name, value) => Ok(value),
        _ => Err(ReadError::Damaged(printable(name))),
    }
}

fn checksum(name: &[u8], value: &[u8]) -> [u8; CHECKSUM] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(name);
    context.update(value);
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&context.finish().as_ref()[..CHECKSUM]);
    sum
}

fn printable(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a directory for its owner only, and its name durable where it is new.
pub(super) fn make_directory(path: &Path) -> Result<(), OpenError> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    let new = !path.exists();
    mesh_runtime::files::ensure_private_dir(path).map_err(io_error(path))?;
    if new && let Some(parent) = path.parent() {
        sync_directory(parent).map_err(io_error(parent))?;
    }
    Ok(())
}

/// Moves a damaged database out of the way, for a person to look at; only the newest is kept.
///
/// # Errors
/// Where the system refuses.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf, OpenError> {
    let io_error = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    for removed in [fs::remove_dir_all(&aside), fs::remove_file(&aside)] {
        match removed {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::IsADirectory
                ) => {}
            Err(error) => return Err(io_error(error)),
        }
    }
    match fs::rename(path, &aside) {
        Ok(()) => Ok(aside),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(aside),
        Err(error) => Err(io_error(error)),
    }
}
