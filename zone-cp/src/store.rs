//! What the zone keeps on disk, so that it comes back from a restart alone.
//!
//! | file below the data directory | what it holds |
//! | --- | --- |
//! | `meshes/global`, `meshes/mesh-<mesh>` | resources of one scope with cursor and history id |
//! | `dataplanes/ingresses`, `dataplanes/mesh-<mesh>` | registrations |
//! | `ca/<mesh>/authorities` | the mesh's CA certificates and keys (see [`crate::trust`]) |
//! | `epoch` | how often this control plane has started |
//!
//! Each is checksummed, for its owner only, and replaced whole. A damaged one is set aside and said; its content comes
//! again from global, or from the dataplanes.
//!
//! Files are written by a thread of their own: of several versions of one file that come while it is busy only the last
//! is written, which bounds the queue by the number of files.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use mesh_model::api::Key;
use mesh_proto::names::MeshName;
use mesh_runtime::{
    admin::Health,
    files::{self, ReadError},
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{
    registry::{Registry, StoredRegistration},
    scope::{Record, Scope, StoredRecord},
};

/// Format of the scope files. A file of a newer one is set aside like a damaged one.
const FORMAT: u32 = 1;

/// Why the store cannot be used at all.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct StoreError {
    /// The file or directory.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Everything that was stored.
#[derive(Debug, Default)]
pub struct Loaded {
    /// What is outside any mesh.
    pub global: Option<Scope>,
    /// The meshes.
    pub meshes: BTreeMap<MeshName, Scope>,
    /// Registered dataplanes by mesh.
    pub dataplanes: BTreeMap<MeshName, Vec<StoredRegistration>>,
    /// Registered ingresses.
    pub ingresses: Vec<StoredRegistration>,
    /// Registrations may be missing: a file was damaged.
    pub registrations_damaged: bool,
    /// How often this control plane has started, this time included.
    pub epoch: u64,
}

/// The data directory, and the thread that writes to it.
pub struct Store {
    directory: PathBuf,
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Reads everything and begins to write. `health` hears when the disk refuses.
    ///
    /// # Errors
    /// Where the directory cannot be used.
    pub fn open(directory: &Path, health: Health) -> Result<(Self, Loaded), StoreError> {
        for name in ["meshes", "dataplanes", "ca"] {
            let path = directory.join(name);
            files::ensure_private_dir(&path).map_err(|source| StoreError { path, source })?;
        }
        let loaded = load(directory)?;
        let queue = Arc::new(Queue::default());
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn({
                let queue = queue.clone();
                move || write_queue(&queue, &health)
            })
            .map_err(|source| StoreError {
                path: directory.to_owned(),
                source,
            })?;
        let store = Self {
            directory: directory.to_owned(),
            queue,
            thread: Some(thread),
        };
        Ok((store, loaded))
    }

    /// Keeps a scope; what is returned resolves when it is on the disk, or the disk has refused it (which is said and
    /// tried again). One that was never complete is not kept.
    pub fn save_scope(&self, mesh: Option<&MeshName>, scope: &Scope) -> Written {
        let (tell, written) = oneshot::channel();
        let Some(cursor) = scope.cursor() else {
            return written;
        };
        let header = ScopeHeader {
            format: FORMAT,
            mesh: mesh.map(ToString::to_string).unwrap_or_default(),
            history_id: scope.history_id().to_owned(),
            cursor,
            modified_ms: scope.records().values().map(|r| r.modified_ms).collect(),
            created: scope
                .records()
                .values()
                .map(|r| r.created_revision)
                .collect(),
        };
        // Cheap: the texts are shared.
        let records = scope.records().clone();
        let write = move || encode_scope(&header, &records);
        self.queue.put(
            self.scope_path(mesh),
            Job::Write(Box::new(write), Some(tell)),
        );
        written
    }

    /// Keeps the registrations of a mesh, or (`None`) of the ingresses.
    pub fn save_registrations(&self, mesh: Option<&MeshName>, registry: &Registry) {
        let registry = registry.clone();
        let write = move || serde_json::to_vec_pretty(&registry.to_stored()).unwrap_or_default();
        self.queue.put(
            self.registrations_path(mesh),
            Job::Write(Box::new(write), None),
        );
    }

    /// Forgets a mesh wholly, its CA keys included.
    pub fn forget_mesh(&self, mesh: &MeshName) {
        for path in [
            self.scope_path(Some(mesh)),
            self.registrations_path(Some(mesh)),
            self.ca_path(mesh),
        ] {
            self.queue.put(path, Job::Remove);
        }
    }

    /// Directory of the CAs of a mesh.
    #[must_use]
    pub fn ca_path(&self, mesh: &MeshName) -> PathBuf {
        self.directory.join("ca").join(mesh.as_str())
    }

    /// Writes what is still queued and ends the thread.
    pub fn close(mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn scope_path(&self, mesh: Option<&MeshName>) -> PathBuf {
        self.directory
            .join("meshes")
            .join(scope_name(mesh, "global"))
    }

    fn registrations_path(&self, mesh: Option<&MeshName>) -> PathBuf {
        self.directory
            .join("dataplanes")
            .join(scope_name(mesh, "ingresses"))
    }
}

/// The prefix keeps a mesh that is called `global` apart.
fn scope_name(mesh: Option<&MeshName>, outside: &str) -> String {
    mesh.map_or_else(|| outside.to_owned(), |mesh| format!("mesh-{mesh}"))
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScopeHeader {
    format: u32,
    mesh: String,
    history_id: String,
    cursor: u64,
    /// When each resource of the file was changed last, in their order. Versions of this program that do not know it go
    /// by, and a file of theirs does not say.
    #[serde(default)]
    modified_ms: Vec<u64>,
    /// At which revision each was created, in the same way.
    #[serde(default)]
    created: Vec<u64>,
}

/// One line of JSON that says what the file is, then one line a resource: key, revision, text.
fn encode_scope(header: &ScopeHeader, records: &BTreeMap<Key, Record>) -> Vec<u8> {
    let mut content = serde_json::to_vec(header).unwrap_or_default();
    content.push(b'\n');
    for (key, record) in records {
        content.extend(serde_json::to_vec(key).unwrap_or_default());
        content.extend(format!("\t{}\t", record.revision).bytes());
        content.extend_from_slice(&record.json);
        content.push(b'\n');
    }
    content
}

fn decode_scope(content: &[u8], wanted_mesh: &str) -> Option<Scope> {
    let mut lines = content
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty());
    let header: ScopeHeader = serde_json::from_slice(lines.next()?).ok()?;
    if header.format != FORMAT || header.mesh != wanted_mesh {
        return None;
    }
    let mut records = Vec::new();
    for line in lines {
        let mut fields = line.splitn(3, |b| *b == b'\t');
        let key: Key = serde_json::from_slice(fields.next()?).ok()?;
        let revision = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        records.push(StoredRecord {
            key,
            revision,
            modified_ms: header.modified_ms.get(records.len()).copied().unwrap_or(0),
            created_revision: header.created.get(records.len()).copied().unwrap_or(0),
            json: fields.next()?.to_vec(),
        });
    }
    Some(Scope::restored(
        wanted_mesh,
        header.history_id,
        header.cursor,
        records,
    ))
}

fn load(directory: &Path) -> Result<Loaded, StoreError> {
    let mut loaded = Loaded {
        epoch: next_epoch(directory)?,
        ..Loaded::default()
    };
    for (path, mesh) in stored_files(&directory.join("meshes"), "global")? {
        let name = mesh.as_ref().map(MeshName::as_str).unwrap_or_default();
        match (
            read_or_set_aside(&path, |content| decode_scope(content, name))?,
            mesh,
        ) {
            (Some(scope), Some(mesh)) => drop(loaded.meshes.insert(mesh, scope)),
            (Some(scope), None) => loaded.global = Some(scope),
            (None, _) => {}
        }
    }
    for (path, mesh) in stored_files(&directory.join("dataplanes"), "ingresses")? {
        let decode = |content: &[u8]| serde_json::from_slice(content).ok();
        let stored: Option<Vec<StoredRegistration>> = read_or_set_aside(&path, decode)?;
        loaded.registrations_damaged |= stored.is_none();
        match mesh {
            Some(mesh) => drop(loaded.dataplanes.insert(mesh, stored.unwrap_or_default())),
            None => loaded.ingresses = stored.unwrap_or_default(),
        }
    }
    Ok(loaded)
}

/// The scope files in a directory, with the mesh each is of. Others (set aside, half written) are not looked at.
fn stored_files(
    directory: &Path,
    outside: &str,
) -> Result<Vec<(PathBuf, Option<MeshName>)>, StoreError> {
    let failed = |source| StoreError {
        path: directory.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == outside {
            found.push((entry.path(), None));
        } else if let Some(Ok(mesh)) = name.strip_prefix("mesh-").map(str::parse) {
            found.push((entry.path(), Some(mesh)));
        }
    }
    found.sort();
    Ok(found)
}

/// Reads a checksummed file. One that is damaged, or that `decode` does not know, is set aside.
pub(crate) fn read_or_set_aside<T>(
    path: &Path,
    decode: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<Option<T>, StoreError> {
    let reason = match files::read_checksummed(path) {
        Ok(content) => match decode(&content) {
            Some(value) => return Ok(Some(value)),
            None => "its content is of another format".to_owned(),
        },
        Err(ReadError::Missing(_)) => return Ok(None),
        Err(ReadError::Damaged(_)) => "it is damaged".to_owned(),
        Err(ReadError::Io { path, source }) => return Err(StoreError { path, source }),
    };
    let aside = files::set_aside(path).map_err(|source| StoreError {
        path: path.to_owned(),
        source,
    })?;
    tracing::error!(
        file = %path.display(),
        aside = %aside.display(),
        %reason,
        "a file of the store cannot be used: it is set aside, and its content asked for again"
    );
    Ok(None)
}

/// Counts a start. A counter that is lost goes on from the clock, which is ahead of any count.
fn next_epoch(directory: &Path) -> Result<u64, StoreError> {
    let path = directory.join("epoch");
    let decode = |content: &[u8]| {
        std::str::from_utf8(content)
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let epoch = match read_or_set_aside(&path, decode)? {
        Some(last) => last + 1,
        None => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |since| since.as_secs()),
    };
    files::write_checksummed(&path, epoch.to_string().as_bytes())
        .map_err(|source| StoreError { path, source })?;
    Ok(epoch)
}

/// Resolves when a write has been done, has failed, or was replaced by a later one of the same file.
pub type Written = oneshot::Receiver<()>;

enum Job {
    Write(
        Box<dyn FnOnce() -> Vec<u8> + Send>,
        Option<oneshot::Sender<()>>,
    ),
    Remove,
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    jobs: BTreeMap<PathBuf, Job>,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, path: PathBuf, job: Job) {
        self.lock().jobs.insert(path, job);
        self.changed.notify_one();
    }

    /// A job that failed, unless a newer one has come.
    fn put_back(&self, path: PathBuf, content: Vec<u8>) {
        self.lock()
            .jobs
            .entry(path)
            .or_insert_with(|| Job::Write(Box::new(move || content), None));
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// The next job; `None`: closed and done.
    fn next(&self) -> Option<(PathBuf, Job)> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_first() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

fn write_queue(queue: &Queue, health: &Health) {
    while let Some((path, job)) = queue.next() {
        let failed = match job {
            Job::Remove => match remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Some((error, None)),
                _ => None,
            },
            Job::Write(content, tell) => {
                let content = content();
                let failed = files::write_checksummed(&path, &content).err();
                if let Some(tell) = tell {
                    let _ = tell.send(());
                }
                failed.map(|error| (error, Some(content)))
            }
        };
        let Some((error, content)) = failed else {
            health.set("store", Ok(()));
            continue;
        };
        tracing::error!(%error, file = %path.display(), "the store cannot be written: a restart would lose what changed");
        health.set(
            "store",
            Err(format!("{} cannot be written: {error}", path.display())),
        );
        if queue.is_closed() {
            continue;
        }
        if let Some(content) = content {
            queue.put_back(path, content);
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_model::Meta;
    use mesh_proto::zone::{Changes, ResourceRecord};

    use super::*;

    fn scope() -> Scope {
        let mut scope = Scope::new("pay");
        let records = ["a", "b"].iter().enumerate().map(|(at, name)| {
            let meta = Meta::new("pay", name);
            let service = mesh_model::MeshService {
                selector: None,
                ports: Vec::new(),
                identities: Vec::new(),
                state: None,
            };
            let resource = mesh_model::Resource::new(meta, service);
            ResourceRecord {
                key: Some(resource.key()),
                json: resource.to_json(),
                revision: 3,
                modified_ms: 100 + at as u64,
                created_revision: 7 + at as u64,
            }
        });
        scope.take(Changes {
            mesh: "pay".into(),
            to: 5,
            history_id: "h".into(),
            snapshot: true,
            last: true,
            put: records.collect(),
            ..Changes::default()
        });
        scope
    }

    fn header(scope: &Scope, modified_ms: Vec<u64>) -> ScopeHeader {
        ScopeHeader {
            format: FORMAT,
            mesh: "pay".into(),
            history_id: scope.history_id().into(),
            cursor: scope.cursor().unwrap(),
            modified_ms,
            created: Vec::new(),
        }
    }

    fn ages(scope: &Scope) -> Vec<u64> {
        scope.records().values().map(|r| r.modified_ms).collect()
    }

    #[test]
    fn ages_are_kept_and_a_file_of_a_time_before_them_is_read() {
        let scope = scope();
        let content = encode_scope(&header(&scope, vec![100, 101]), scope.records());
        let read = decode_scope(&content, "pay").unwrap();
        assert_eq!(ages(&read), [100, 101]);
        assert_eq!(read.cursor(), Some(5));
        let created = scope.records().values().map(|r| r.created_revision);
        let kept = ScopeHeader {
            created: created.collect(),
            ..header(&scope, vec![])
        };
        let read = decode_scope(&encode_scope(&kept, scope.records()), "pay").unwrap();
        let created: Vec<u64> = read
            .records()
            .values()
            .map(|r| r.created_revision)
            .collect();
        assert_eq!(created, [7, 8]);

        let content = encode_scope(&header(&scope, vec![]), scope.records());
        let text = String::from_utf8(content).unwrap();
        let old = text.replacen(",\"modifiedMs\":[]", "", 1);
        assert_ne!(old, text);
        let read = decode_scope(old.as_bytes(), "pay").unwrap();
        assert_eq!(ages(&read), [0, 0]);
        assert!(decode_scope(old.as_bytes(), "other").is_none());
    }
}
