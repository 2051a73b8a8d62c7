//! Snapshots: the whole state machine in one checksummed file beside the database.
//!
//! A snapshot is written under a temporary name, synced, read again by a second reader that verifies everything, and
//! only then gets its name. The two newest are kept; one that is damaged is set aside and the older one counts. The
//! cluster's id stands inside, and a snapshot of another cluster is refused.
//!
//! ```text
//! "isthmus-snapshot/1\n"  length and JSON of the header  { length and key, length and value } …  sha256 of all before
//! ```

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::digest;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    OpenError,
    types::{LogId, SnapshotMeta},
};
use crate::state::{image::Image, keys};

const MAGIC: &[u8] = b"isthmus-snapshot/1\n";
const SUM: u64 = 32;
/// Snapshots kept.
const KEPT: usize = 2;
const SUFFIX: &str = "snapshot";
/// Longest header and longest record, so that a damaged length does not take all memory.
const LONGEST: u32 = 300 << 20;

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The system refuses.
    #[error("snapshot {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("snapshot {path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another cluster's.
    #[error("snapshot {path} is of cluster {found}, this node belongs to {wanted}: it is not used")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
}

/// A snapshot's file, whole and verified, or one that is being received.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    /// Where it is.
    pub path: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    cluster_id: String,
    meta: SnapshotMeta,
    records: u64,
}

/// The directory of snapshots. Clones are the same directory.
#[derive(Debug, Clone)]
pub struct Snapshots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    cluster_id: String,
    // Newest first; all verified.
    known: Mutex<Vec<(SnapshotMeta, PathBuf)>>,
}

impl Snapshots {
    /// Opens the directory, or makes it; removes what was not finished, and sets aside what is damaged. Blocks.
    ///
    /// # Errors
    /// Where the system refuses, or a snapshot is another cluster's.
    pub fn open(directory: &Path, cluster_id: &str) -> Result<Self, OpenError> {
        let io_error = |source| OpenError::Io {
            path: directory.to_owned(),
            source,
        };
        super::database::make_directory(directory)?;
        let mut known = Vec::new();
        for file in fs::read_dir(directory).map_err(io_error)? {
            let path = file.map_err(io_error)?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("part") => fs::remove_file(&path).map_err(io_error)?,
                Some(SUFFIX) => match verify(&path, cluster_id) {
                    Ok(meta) => known.push((meta, path)),
                    Err(SnapshotError::Foreign {
                        path,
                        found,
                        wanted,
                    }) => {
                        return Err(OpenError::Foreign {
                            path,
                            found: format!("cluster {found}"),
                            wanted: format!("cluster {wanted}"),
                        });
                    }
                    Err(error @ SnapshotError::Damaged { .. }) => {
                        tracing::error!(%error, "a snapshot is set aside; an older one or the log takes its place");
                        mesh_runtime::files::set_aside(&path).map_err(io_error)?;
                    }
                    Err(SnapshotError::Io { path, source }) => {
                        return Err(OpenError::Io { path, source });
                    }
                },
                _ => {}
            }
        }
        known.sort_by_key(|(meta, _)| std::cmp::Reverse(meta.last_log_id));
        Ok(Self(Arc::new(Inner {
            directory: directory.to_owned(),
            cluster_id: cluster_id.to_owned(),
            known: Mutex::new(known),
        })))
    }

    /// The newest snapshot that is still whole. One that has been damaged since is set aside.
    #[must_use]
    pub fn newest(&self) -> Option<(SnapshotMeta, SnapshotFile)> {
        let mut known = self.known();
        while let Some((meta, path)) = known.first().cloned() {
            match verify(&path, &self.0.cluster_id) {
                Ok(_) => return Some((meta, SnapshotFile { path })),
                Err(error) => {
                    tracing::error!(%error, "a snapshot is set aside; an older one takes its place");
                    let _ = mesh_runtime::files::set_aside(&path);
                    known.remove(0);
                }
            }
        }
        None
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Vec<(SnapshotMeta, PathBuf)>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file to receive a snapshot in. It does not count until [`Self::adopt`].
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn begin_receiving(&self) -> io::Result<(SnapshotFile, File)> {
        let path = self.temporary();
        let file = create(&path)?;
        Ok((SnapshotFile { path }, file))
    }

    /// Verifies a received file: that it is whole and this cluster's. Blocks.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check(&self, file: &SnapshotFile) -> Result<(), SnapshotError> {
        verify(&file.path, &self.0.cluster_id).map(|_| ())
    }

    fn temporary(&self) -> PathBuf {
        self.0
            .directory
            .join(format!("{}.part", uuid::Uuid::new_v4()))
    }

    /// Writes `image` as a snapshot and makes it the newest. Blocks.
    ///
    /// # Errors
    /// Where the disk refuses, or does not give back what was written.
    pub fn write(&self, image: &Image, meta: &SnapshotMeta) -> Result<SnapshotFile, SnapshotError> {
        let path = self.temporary();
        let io_error = |source| SnapshotError::Io {
            path: path.clone(),
            source,
        };
        let header = Header {
            cluster_id: self.0.cluster_id.clone(),
            meta: meta.clone(),
            records: image.len() as u64,
        };
        write_file(&path, &header, image).map_err(io_error)?;
        self.adopt(&SnapshotFile { path }, meta)
    }

    /// Verifies a written or received file, and makes it the newest snapshot. Blocks.
    ///
    /// # Errors
    /// Where it is damaged, another cluster's, or not the snapshot that `meta` describes.
    pub fn adopt(
        &self,
        file: &SnapshotFile,
        meta: &SnapshotMeta,
    ) -> Result<SnapshotFile, SnapshotError> {
        let path = &file.path;
        let io_error = |source| SnapshotError::Io {
            path: path.clone(),
            source,
        };
        let found = verify(path, &self.0.cluster_id)?;
        if found.last_log_id != meta.last_log_id || found.last_membership != meta.last_membership {
            return Err(SnapshotError::Damaged {
                path: path.clone(),
                reason: format!("it holds {found}, {meta} was announced"),
            });
        }
        let index = meta.last_log_id.map_or(0, |id| id.index);
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("{index:020}-{}.{SUFFIX}", &unique[..8]);
        let named = self.0.directory.join(name);
        fs::rename(path, &named).map_err(io_error)?;
        File::open(&self.0.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(io_error)?;
        let mut known = self.known();
        known.insert(0, (meta.clone(), named.clone()));
        known.sort_by_key(|(meta, _)| std::cmp::Reverse(meta.last_log_id));
        while known.len() > KEPT {
            if let Some((_, old)) = known.pop()
                && let Err(error) = fs::remove_file(&old)
            {
                tracing::warn!(%error, path = %old.display(), "an old snapshot could not be removed");
            }
        }
        Ok(SnapshotFile { path: named })
    }

    /// Reads a verified snapshot. Blocks.
    ///
    /// # Errors
    /// Where it is damaged or another cluster's.
    pub fn read(&self, file: &SnapshotFile) -> Result<(SnapshotMeta, Image), SnapshotError> {
        let path = &file.path;
        verify(path, &self.0.cluster_id)?;
        let mut reader = Reader::open(path)?;
        let header = reader.header()?;
        let mut image = Image::default();
        for _ in 0..header.records {
            let (key, value) = reader.record()?;
            image
                .write((key, Some(value)))
                .map_err(|error| reader.damaged(&error.to_string()))?;
        }
        Ok((header.meta, image))
    }
}

/// Id, membership and name of what an image holds.
#[must_use]
pub fn meta_of(image: &Image) -> SnapshotMeta {
    let read = |name| image.record(name).map(|json| json.as_ref());
    let last_log_id: Option<LogId> =
        read(keys::APPLIED).and_then(|json| serde_json::from_slice(json).ok());
    SnapshotMeta {
        last_log_id,
        last_membership: read(keys::MEMBERSHIP)
            .and_then(|json| serde_json::from_slice(json).ok())
            .unwrap_or_default(),
        snapshot_id: format!(
            "{}-{}",
            last_log_id.map_or_else(|| "none".to_owned(), |id| id.to_string()),
            uuid::Uuid::new_v4().simple()
        ),
    }
}

fn create(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn write_file(path: &Path, header: &Header, image: &Image) -> io::Result<()> {
    let mut out = Summing {
        inner: BufWriter::with_capacity(1 << 18, create(path)?),
        sum: digest::Context::new(&digest::SHA256),
    };
    out.write_all(MAGIC)?;
    write_sized(&mut out, &serde_json::to_vec(header)?)?;
    for (key, value) in image.records() {
        write_sized(&mut out, key)?;
        write_sized(&mut out, value)?;
    }
    let Summing { mut inner, sum } = out;
    inner.write_all(sum.finish().as_ref())?;
    inner.flush()?;
    inner.get_ref().sync_all()
}

fn write_sized(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len())
        .map_err(|_| io::Error::other("a record of more than 4 GiB can not be written"))?;
    out.write_all(&length.to_be_bytes())?;
    out.write_all(bytes)
}

struct Summing<W> {
    inner: W,
    sum: digest::Context,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Reads the whole file: its checksum, that it is one cluster's, and that all its records are there.
fn verify(path: &Path, cluster_id: &str) -> Result<SnapshotMeta, SnapshotError> {
    let mut reader = Reader::open(path)?;
    reader.check_sum()?;
    let mut reader = Reader::open(path)?;
    let header = reader.header()?;
    if header.cluster_id != cluster_id {
        return Err(SnapshotError::Foreign {
            path: path.to_owned(),
            found: header.cluster_id,
            wanted: cluster_id.to_owned(),
        });
    }
    for _ in 0..header.records {
        reader.record()?;
    }
    if reader.left != 0 {
        return Err(reader.damaged("there is more in it than it says"));
    }
    Ok(header.meta)
}

struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    // Bytes before the checksum that have not been read.
    left: u64,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, SnapshotError> {
        let io_error = |source| SnapshotError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io_error)?;
        let length = file.metadata().map_err(io_error)?.len();
        let mut reader = Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(1 << 18, file),
            left: length.saturating_sub(SUM),
        };
        if reader.left < MAGIC.len() as u64 {
            return Err(reader.damaged("it is too short"));
        }
        // The checksum is counted separately, over the magic as well.
        reader.left -= MAGIC.len() as u64;
        Ok(reader)
    }

    fn damaged(&self, reason: &str) -> SnapshotError {
        SnapshotError::Damaged {
            path: self.path.clone(),
            reason: reason.to_owned(),
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        self.file
            .read_exact(bytes)
            .map_err(|source| SnapshotError::Io {
                path: self.path.clone(),
                source,
            })
    }

    fn check_sum(&mut self) -> Result<(), SnapshotError> {
        let mut sum = digest::Context::new(&digest::SHA256);
        let mut left = self.left + MAGIC.len() as u64;
        let mut buffer = vec![0; 1 << 18];
        while left > 0 {
            let part = usize::try_from(left.min(buffer.len() as u64)).unwrap_or(buffer.len());
            self.fill(&mut buffer[..part])?;
            sum.update(&buffer[..part]);
            left -= part as u64;
        }
        let mut expected = [0; 32];
        self.fill(&mut expected)?;
        if sum.finish().as_ref() != expected {
            return Err(self.damaged("its content does not match its checksum"));
        }
        Ok(())
    }

    fn sized(&mut self) -> Result<Vec<u8>, SnapshotError> {
        let mut length = [0; 4];
        self.take(4)?;
        self.fill(&mut length)?;
        let length = u32::from_be_bytes(length);
        if length > LONGEST {
            return Err(self.damaged("a record is longer than any can be"));
        }
        self.take(u64::from(length))?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn take(&mut self, length: u64) -> Result<(), SnapshotError> {
        self.left = self
            .left
            .checked_sub(length)
            .ok_or_else(|| self.damaged("it ends in the middle of a record"))?;
        Ok(())
    }

    fn header(&mut self) -> Result<Header, SnapshotError> {
        let mut magic = [0; MAGIC.len()];
        self.fill(&mut magic)?;
        if magic != *MAGIC {
            return Err(self.damaged("it is no snapshot of a format this program knows"));
        }
        let json = self.sized()?;
        serde_json::from_slice(&json).map_err(|error| self.damaged(&error.to_string()))
    }

    fn record(&mut self) -> Result<(Vec<u8>, Bytes), SnapshotError> {
        Ok((self.sized()?, self.sized()?.into()))
    }
}
