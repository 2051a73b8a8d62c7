//! What is kept on disk, so that the proxy serves when it is started while its zone is away.
//!
//! Each file is checksummed and readable by its owner only. A damaged file is set aside, said, and what it held is asked
//! for again; only a process that can not write at all says so at each change and goes on from memory.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `identity` | key and certificate chain, together, so that they always belong together |
//! | `documents` | the last good documents, as they came |
//! | `endpoints` | endpoint sets |
//! | `session` | the number of the last session |
//! | `anchors` | anchors of the control plane |

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

use mesh_proto::{
    discovery::{Documents, EndpointsDelta},
    proxy::Document,
};
use mesh_runtime::files::{self, DirLock, LockError, ReadError};
use prost::Message;

/// The proxy's own directory.
pub struct State {
    directory: PathBuf,
    /// `None`: a successor has the directory.
    lock: Option<DirLock>,
    /// What was set aside at start, for the admin socket.
    damaged: Mutex<Vec<String>>,
}

/// Key and certificate chain.
#[derive(Clone, PartialEq, Message)]
pub struct SavedIdentity {
    /// Who it is for.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// The private key (PKCS#8, PEM).
    #[prost(string, tag = "2")]
    pub key_pem: String,
    /// DER, leaf first.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub chain: Vec<Vec<u8>>,
    /// Unix seconds at which the proxy took it: renewal is counted from here, since certificates begin in the past.
    #[prost(int64, tag = "4")]
    pub taken_at: i64,
}

#[derive(Clone, PartialEq, Message)]
struct SavedEndpoints {
    #[prost(message, repeated, tag = "1")]
    sets: Vec<EndpointsDelta>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedSession {
    #[prost(uint64, tag = "1")]
    number: u64,
}

#[derive(Clone, PartialEq, Message)]
struct SavedAnchors {
    #[prost(string, repeated, tag = "1")]
    pem: Vec<String>,
}

/// Why the directory can not be used at all.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It can not be made or made private.
    #[error("state directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl State {
    /// Takes the directory for this process; it is made where it is missing.
    ///
    /// # Errors
    /// Where it can not be used, or another process uses it.
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        files::ensure_private_dir(directory).map_err(|source| StateError::Directory {
            path: directory.to_owned(),
            source,
        })?;
        Ok(Self {
            directory: directory.to_owned(),
            lock: Some(files::lock_dir(directory)?),
            damaged: Mutex::default(),
        })
    }

    /// Lets a successor have the directory: nothing is written to it any more.
    pub fn release(&mut self) {
        self.lock = None;
    }

    /// Files that were set aside at start, with where to.
    #[must_use]
    pub fn damaged(&self) -> Vec<String> {
        self.damaged
            .lock()
            .map(|list| list.clone())
            .unwrap_or_default()
    }

    /// The last good documents; none where there are none or the file is damaged.
    #[must_use]
    pub fn documents(&self) -> Documents {
        self.read("documents").unwrap_or_default()
    }

    /// Keeps the documents.
    pub fn keep_documents<'a>(
        &self,
        revision: u64,
        documents: impl Iterator<Item = &'a Document>,
        trust_generation: u64,
    ) {
        let mut put: Vec<_> = documents.cloned().collect();
        put.sort_by(|a, b| a.name.cmp(&b.name));
        let documents = Documents {
            revision,
            put,
            remove: Vec::new(),
            trust_generation,
        };
        self.write("documents", &documents);
    }

    /// Endpoint sets.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointsDelta> {
        let saved: SavedEndpoints = self.read("endpoints").unwrap_or_default();
        saved.sets
    }

    /// Keeps endpoint sets.
    pub fn keep_endpoints(&self, sets: Vec<EndpointsDelta>) {
        self.write("endpoints", &SavedEndpoints { sets });
    }

    /// Key and certificate.
    #[must_use]
    pub fn identity(&self) -> Option<SavedIdentity> {
        self.read("identity")
    }

    /// Keeps key and certificate.
    pub fn keep_identity(&self, identity: &SavedIdentity) {
        self.write("identity", identity);
    }

    /// Anchors of the control plane (PEM).
    #[must_use]
    pub fn anchors(&self) -> Vec<String> {
        let saved: SavedAnchors = self.read("anchors").unwrap_or_default();
        saved.pem
    }

    /// Keeps anchors of the control plane.
    pub fn keep_anchors(&self, pem: Vec<String>) {
        self.write("anchors", &SavedAnchors { pem });
    }

    /// The number of a new session, higher than any before. Where the last one is lost, the time takes its place: it
    /// is higher than any count.
    #[must_use]
    pub fn next_session(&self, now_unix: u64) -> u64 {
        let next = match self.read::<SavedSession>("session") {
            Some(SavedSession { number }) => number + 1,
            None if self.damaged().is_empty() => 1,
            None => now_unix,
        };
        self.write("session", &SavedSession { number: next });
        next
    }

    fn read<M: Message + Default>(&self, name: &str) -> Option<M> {
        let path = self.directory.join(name);
        let bytes = match files::read_checksummed(&path) {
            Ok(bytes) => bytes,
            Err(ReadError::Missing(_)) => return None,
            Err(error @ ReadError::Io { .. }) => {
                tracing::error!(%error, "a state file is not read; what it holds is asked for again");
                return None;
            }
            Err(error @ ReadError::Damaged(_)) => {
                self.set_aside(&path, &error.to_string());
                return None;
            }
        };
        match M::decode(bytes.as_slice()) {
            Ok(message) => Some(message),
            Err(error) => {
                self.set_aside(&path, &format!("{}: {error}", path.display()));
                None
            }
        }
    }

    fn set_aside(&self, path: &Path, reason: &str) {
        let said = match files::set_aside(path) {
            Ok(aside) => format!("{reason}; it was set aside as {}", aside.display()),
            Err(error) => format!("{reason}; it could not be set aside: {error}"),
        };
        tracing::warn!(path = %path.display(), reason = said, "a state file is damaged; what it held is asked for again");
        if let Ok(mut list) = self.damaged.lock() {
            list.push(said);
        }
    }

    fn write(&self, name: &str, message: &impl Message) {
        if self.lock.is_none() {
            return;
        }
        let path = self.directory.join(name);
        if let Err(error) = files::write_checksummed(&path, &message.encode_to_vec()) {
            tracing::error!(%error, path = %path.display(), "state could not be kept: a restart while the zone is away would not know it");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn document() -> Document {
        mesh_proto::document::seal(
            "trust".into(),
            vec![],
            mesh_proto::proxy::document::Body::Trust(mesh_proto::proxy::Trust::default()),
        )
    }

    #[test]
    fn what_was_kept_is_found_again_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        state.keep_documents(7, [document()].iter(), 2);
        assert_eq!(state.next_session(1), 1);
        drop(state);
        let state = State::open(dir.path()).unwrap();
        assert_eq!(state.documents().put, [document()]);
        assert_eq!(state.documents().revision, 7);
        assert_eq!(state.next_session(1), 2);
        for entry in fs::read_dir(dir.path()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        state.keep_documents(7, [document()].iter(), 2);
        assert_eq!(state.next_session(1), 1);
        for name in ["documents", "session"] {
            let path = dir.path().join(name);
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&path, bytes).unwrap();
        }
        assert!(state.documents().put.is_empty());
        assert!(dir.path().join("documents.damaged").exists());
        assert!(!dir.path().join("documents").exists());
        assert!(
            state.damaged()[0].contains("damaged"),
            "{:?}",
            state.damaged()
        );
        // The count is lost: the session is numbered by the clock, which is above any count.
        assert_eq!(state.next_session(1_700_000_000), 1_700_000_000);
    }

    #[test]
    fn two_processes_do_not_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let _first = State::open(dir.path()).unwrap();
        assert!(matches!(State::open(dir.path()), Err(StateError::Lock(_))));
    }
}
