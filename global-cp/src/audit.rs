//! What was refused, and who read secrets: an append-only file on the node that answered.
//!
//! Accepted changes are audited in the Raft entry that makes them. A refused attempt makes no entry, or anybody could
//! fill the log; so it goes to `<data-dir>/audit.log`, one JSON object a line, with two generations of at most
//! [`FILE_BYTES_MAX`] each.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

/// Size at which a new file is begun; the one before is kept as `audit.log.1`.
pub const FILE_BYTES_MAX: u64 = 16 << 20;
/// Newest records kept in memory, for the API.
const RECENT_MAX: usize = 1000;

/// One thing that happened beside the Raft log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// RFC 3339, UTC.
    pub time: String,
    /// `token/<id>`, `zone/<name>`, or `anonymous`.
    pub actor: String,
    /// Where it came from.
    pub address: String,
    /// What was tried.
    pub what: String,
    /// `refused` or `read`.
    pub outcome: String,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Meshes concerned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub meshes: Vec<String>,
}

/// The file. Clones write to the same one.
#[derive(Clone)]
pub struct AttemptLog(Arc<Mutex<Inner>>);

struct Inner {
    path: PathBuf,
    file: File,
    bytes: u64,
    recent: VecDeque<Attempt>,
}

impl AttemptLog {
    /// Opens the file in `directory`, or makes it.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("audit.log");
        let mut recent = VecDeque::new();
        let text = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        for attempt in text.lines().filter_map(|l| serde_json::from_str(l).ok()) {
            remember(&mut recent, attempt);
        }
        let (mut file, bytes) = append_to(&path)?;
        if !text.is_empty() && !text.ends_with('\n') {
            // A crash cut the last line short: it is skipped, and the next one must not be glued to it.
            file.write_all(b"\n")?;
        }
        Ok(Self(Arc::new(Mutex::new(Inner {
            path,
            file,
            bytes,
            recent,
        }))))
    }

    /// Adds a record. A disk that refuses is reported in the process's log; the answer to the client stays what it
    /// is.
    pub fn add(&self, attempt: Attempt) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = inner.write(&attempt) {
            tracing::error!(%error, ?attempt, "the audit file could not be written");
        }
        remember(&mut inner.recent, attempt);
    }

    /// The newest records of this node, newest first.
    #[must_use]
    pub fn recent(&self, limit: usize) -> Vec<Attempt> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.recent.iter().rev().take(limit).cloned().collect()
    }
}

impl Inner {
    fn write(&mut self, attempt: &Attempt) -> io::Result<()> {
        let mut line = serde_json::to_vec(attempt)?;
        line.push(b'\n');
        let length = line.len() as u64;
        if self.bytes + length > FILE_BYTES_MAX {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            (self.file, self.bytes) = append_to(&self.path)?;
        }
        self.file.write_all(&line)?;
        self.bytes += length;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

fn remember(recent: &mut VecDeque<Attempt>, attempt: Attempt) {
    if recent.len() == RECENT_MAX {
        recent.pop_front();
    }
    recent.push_back(attempt);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(what: &str) -> Attempt {
        Attempt {
            time: "2026-01-01T00:00:00Z".into(),
            actor: "token/a".into(),
            address: "127.0.0.1".into(),
            what: what.into(),
            outcome: "refused".into(),
            reason: "because".into(),
            meshes: vec!["pay".into()],
        }
    }

    #[test]
    fn records_survive_a_restart_and_a_line_cut_short() {
        let dir = tempfile::tempdir().unwrap();
        let log = AttemptLog::open(dir.path()).unwrap();
        log.add(attempt("one"));
        log.add(attempt("two"));
        drop(log);
        let path = dir.path().join("audit.log");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"time\":\"2026").unwrap();
        let log = AttemptLog::open(dir.path()).unwrap();
        assert_eq!(log.recent(10), [attempt("two"), attempt("one")]);
        log.add(attempt("three"));
        drop(log);
        let log = AttemptLog::open(dir.path()).unwrap();
        assert_eq!(log.recent(1), [attempt("three")]);
    }

    #[test]
    fn the_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let log = AttemptLog::open(dir.path()).unwrap();
        let long = "x".repeat(1 << 20);
        for _ in 0..40 {
            log.add(attempt(&long));
        }
        let size: u64 = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .sum();
        assert!(size <= 2 * FILE_BYTES_MAX, "{size}");
        assert!(dir.path().join("audit.log.1").exists());
    }
}
