//! Files that are whole or not there, readable by their owner only.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use mesh_proto::document::hex_sha256;

/// Why a checksummed file is not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is none.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// It is not what was written: cut short, or bytes have changed.
    #[error("{0} is damaged: its content does not match its checksum")]
    Damaged(PathBuf),
    /// The system refuses.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Replaces the file at `path` by one that holds `bytes` with `mode`. After a crash the old one or the new one is
/// there, never a part.
///
/// # Errors
/// Where the system refuses; the old file is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    // The mode above counts only where the file is made anew.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Like [`write_atomic`] with mode 0600, with a checksum that [`read_checksummed`] verifies.
///
/// # Errors
/// As for [`write_atomic`].
pub fn write_checksummed(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut content = format!("sha256 {}\n", hex_sha256(bytes)).into_bytes();
    content.extend_from_slice(bytes);
    write_atomic(path, &content, 0o600)
}

/// Reads what [`write_checksummed`] wrote.
///
/// # Errors
/// Where there is no file, it is damaged, or the system refuses.
pub fn read_checksummed(path: &Path) -> Result<Vec<u8>, ReadError> {
    let content = fs::read(path).map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            ReadError::Missing(path.to_owned())
        } else {
            ReadError::Io {
                path: path.to_owned(),
                source,
            }
        }
    })?;
    let damaged = || ReadError::Damaged(path.to_owned());
    let end = content
        .iter()
        .position(|b| *b == b'\n')
        .ok_or_else(damaged)?;
    let sum = content[..end]
        .strip_prefix(b"sha256 ")
        .ok_or_else(damaged)?;
    let bytes = &content[end + 1..];
    if sum != hex_sha256(bytes).as_bytes() {
        return Err(damaged());
    }
    Ok(bytes.to_vec())
}

/// Moves a damaged file out of the way, for a person to look at, and returns where to.
///
/// # Errors
/// Where the system refuses.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    let aside = PathBuf::from(name);
    fs::rename(path, &aside)?;
    Ok(aside)
}

/// Makes `path` and what is missing above it, for its owner only (0700).
///
/// # Errors
/// Where the system refuses.
pub fn ensure_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Why a directory can not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "{0} is in use by another process: stop that one first, or give this one a data directory of its own"
    )]
    InUse(PathBuf),
    /// The system refuses.
    #[error("cannot lock {path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Keeps other processes out of a directory for as long as it lives.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Takes the directory for this process.
///
/// # Errors
/// Where another process has it, or the system refuses.
pub fn lock_dir(path: &Path) -> Result<DirLock, LockError> {
    let io_error = |source| LockError::Io {
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path.join("lock"))
        .map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => Ok(DirLock { _file: file }),
        Err(fs::TryLockError::WouldBlock) => Err(LockError::InUse(path.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(io_error(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_private_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write_checksummed(&path, b"one").unwrap();
        write_checksummed(&path, b"two").unwrap();
        assert_eq!(read_checksummed(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_flipped_or_missing_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write_checksummed(&path, b"content").unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, &flipped).unwrap();
            assert!(
                matches!(read_checksummed(&path), Err(ReadError::Damaged(_))),
                "{at}"
            );
            fs::write(&path, &whole[..at]).unwrap();
            assert!(
                matches!(read_checksummed(&path), Err(ReadError::Damaged(_))),
                "{at}"
            );
        }
    }

    #[test]
    fn a_directory_has_one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let lock = lock_dir(dir.path()).unwrap();
        assert!(matches!(lock_dir(dir.path()), Err(LockError::InUse(_))));
        drop(lock);
        lock_dir(dir.path()).unwrap();
    }
}
