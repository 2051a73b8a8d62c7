//! What was refused, and who read secrets: an append-only file on the node that answered.
//!
//! Accepted changes are audited in the Raft entry that makes them. A refused attempt makes no entry, or anybody could
//! fill the log; so it goes to `<data-dir>/audit.log`, one JSON object a line, with two generations of at most
//! [`FILE_BYTES_MAX`] each. Whoever reads the audit asks every node for its part.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::clock;

/// Size at which a new file is begun; the one before is kept as `audit.log.1`.
pub const FILE_BYTES_MAX: u64 = 16 << 20;
/// Newest records kept in memory, for the API.
const RECENT_MAX: usize = 1000;

/// One thing that happened beside the Raft log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// RFC 3339, UTC.
    pub time: String,
    /// Counts up on each node.
    #[serde(default)]
    pub number: u64,
    /// As in the Raft log, or `anonymous`.
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
    /// Kind of the resource, where it was about one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The client's id of the request, where it gave one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
}

/// Where a record stands in the audit of all nodes. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Unix milliseconds.
    pub time_ms: u64,
    /// The node that keeps it; 0: all do.
    pub node: u64,
    /// Its number there.
    pub number: u64,
}

/// Which records are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// Before this one.
    pub before: Option<Place>,
    /// Not older, Unix milliseconds.
    pub since_ms: Option<u64>,
    /// Not newer, Unix milliseconds.
    pub until_ms: Option<u64>,
    /// By somebody: an actor, or a user or token without what follows its name.
    pub actor: Option<String>,
    /// About this mesh.
    pub mesh: Option<String>,
    /// About a kind, and one of that name where it is given.
    pub resource: Option<(String, Option<String>)>,
    /// Only what is about these meshes alone; `None`: everything.
    pub visible: Option<Vec<String>>,
    /// At most so many.
    pub limit: usize,
}

impl Wanted {
    /// Whether a record at `place` by `actor` may be among them.
    #[must_use]
    pub fn fits(&self, place: Place, actor: &str) -> bool {
        let by = |wanted: &String| {
            let rest = actor.strip_prefix(wanted.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.before.is_none_or(|before| place < before)
            && self.since_ms.is_none_or(|since| place.time_ms >= since)
            && self.until_ms.is_none_or(|until| place.time_ms <= until)
            && self.actor.as_ref().is_none_or(by)
    }

    /// Whether something about `mesh` alone may be seen.
    #[must_use]
    pub fn sees(&self, mesh: &str) -> bool {
        match &self.visible {
            None => true,
            Some(visible) => visible.iter().any(|visible| visible == mesh),
        }
    }

    fn takes(&self, attempt: &Attempt, node: u64) -> bool {
        let about = match &self.visible {
            None => true,
            Some(_) => {
                !attempt.meshes.is_empty() && attempt.meshes.iter().all(|mesh| self.sees(mesh))
            }
        };
        let of_kind = self.resource.as_ref().is_none_or(|(kind, name)| {
            attempt.kind == *kind
                && name.as_ref().is_none_or(|name| {
                    let mut words = attempt.what.split([' ', '/', '(', ')']);
                    words.any(|word| word == name)
                })
        });
        about
            && of_kind
            && self.fits(attempt.place(node), &attempt.actor)
            && self
                .mesh
                .as_ref()
                .is_none_or(|mesh| attempt.meshes.contains(mesh))
    }
}

impl Attempt {
    /// Where it stands among the records of all nodes.
    #[must_use]
    pub fn place(&self, node: u64) -> Place {
        Place {
            time_ms: clock::parse_ms(&self.time).unwrap_or_default(),
            node,
            number: self.number,
        }
    }
}

/// The file. Clones write to the same one.
#[derive(Clone)]
pub struct AttemptLog(Arc<Log>);

struct Log {
    path: PathBuf,
    inner: Mutex<Inner>,
    /// One at a time reads the files.
    reading: Mutex<()>,
}

struct Inner {
    file: File,
    bytes: u64,
    recent: VecDeque<Attempt>,
    next_number: u64,
    /// `recent` holds all there is.
    whole: bool,
}

impl AttemptLog {
    /// Opens the file in `directory`, or makes it.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("audit.log");
        let mut recent = VecDeque::new();
        let mut whole = !older(&path).exists();
        let mut next_number = 1;
        let text = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        for attempt in text.lines().filter_map(read) {
            next_number = next_number.max(attempt.number + 1);
            whole &= remember(&mut recent, attempt);
        }
        if recent.is_empty()
            && let Ok(file) = File::open(older(&path))
        {
            let numbers = lines(file).map(|attempt| attempt.number + 1);
            next_number = numbers.max().unwrap_or(next_number);
        }
        let (mut file, bytes) = append_to(&path)?;
        if !text.is_empty() && !text.ends_with('\n') {
            // A crash cut the last line short: it is skipped, and the next one must not be glued to it.
            file.write_all(b"\n")?;
        }
        Ok(Self(Arc::new(Log {
            path,
            inner: Mutex::new(Inner {
                file,
                bytes,
                recent,
                next_number,
                whole,
            }),
            reading: Mutex::new(()),
        })))
    }

    /// Adds a record, under the next number. A disk that refuses is reported in the process's log; the answer to the
    /// client stays what it is.
    pub fn add(&self, attempt: Attempt) {
        let mut inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = Attempt {
            number: inner.next_number,
            ..attempt
        };
        inner.next_number += 1;
        if let Err(error) = inner.write(&self.0.path, &attempt) {
            tracing::error!(%error, ?attempt, "the audit file could not be written");
        }
        let kept_all = remember(&mut inner.recent, attempt);
        inner.whole &= kept_all;
    }

    /// The newest of the wanted records, newest first. Reads the files where what is in memory does not reach: not to be
    /// called where nothing may block.
    #[must_use]
    pub fn find(&self, wanted: &Wanted, node: u64) -> Vec<Attempt> {
        let takes = |attempt: &&Attempt| wanted.takes(attempt, node);
        let (mut found, reaches) = {
            let inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let recent = inner.recent.iter().rev();
            let found: Vec<Attempt> = recent.filter(takes).take(wanted.limit).cloned().collect();
            let oldest = inner
                .recent
                .front()
                .map(|oldest| oldest.place(node).time_ms);
            let far_enough = wanted
                .since_ms
                .zip(oldest)
                .is_some_and(|(since, oldest)| oldest < since);
            let reaches = inner.whole || far_enough || found.len() == wanted.limit;
            (found, reaches)
        };
        if reaches {
            return found;
        }
        let _turn = self
            .0
            .reading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut newest = VecDeque::new();
        for path in [older(&self.0.path), self.0.path.clone()] {
            let Ok(file) = File::open(path) else { continue };
            for attempt in lines(file).filter(|attempt| wanted.takes(attempt, node)) {
                if newest.len() == wanted.limit {
                    newest.pop_front();
                }
                newest.push_back(attempt);
            }
        }
        found = newest.into_iter().rev().collect();
        found
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn read(line: &str) -> Option<Attempt> {
    serde_json::from_str(line).ok()
}

fn lines(file: File) -> impl Iterator<Item = Attempt> {
    BufReader::new(file)
        .split(b'\n')
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_slice(&line).ok())
}

impl Inner {
    fn write(&mut self, path: &Path, attempt: &Attempt) -> io::Result<()> {
        let mut line = serde_json::to_vec(attempt)?;
        line.push(b'\n');
        let length = line.len() as u64;
        if self.bytes + length > FILE_BYTES_MAX {
            fs::rename(path, older(path))?;
            (self.file, self.bytes) = append_to(path)?;
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

/// Keeps a record in memory. False where an older one had to go for it.
fn remember(recent: &mut VecDeque<Attempt>, attempt: Attempt) -> bool {
    let fits = recent.len() < RECENT_MAX;
    if !fits {
        recent.pop_front();
    }
    recent.push_back(attempt);
    fits
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
            ..Attempt::default()
        }
    }

    fn newest(log: &AttemptLog, limit: usize) -> Vec<String> {
        let wanted = Wanted {
            limit,
            ..Wanted::default()
        };
        let found = log.find(&wanted, 1).into_iter();
        found
            .map(|attempt| format!("{} {}", attempt.number, attempt.what))
            .collect()
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
        assert_eq!(newest(&log, 10), ["2 two", "1 one"]);
        log.add(attempt("three"));
        drop(log);
        let log = AttemptLog::open(dir.path()).unwrap();
        assert_eq!(newest(&log, 1), ["3 three"]);
    }

    #[test]
    fn the_file_is_bounded_and_read_beyond_what_is_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let log = AttemptLog::open(dir.path()).unwrap();
        log.add(attempt("first"));
        for number in 0..RECENT_MAX {
            log.add(attempt(&format!("n{number}")));
        }
        let all = newest(&log, 5000);
        assert_eq!(all.len(), RECENT_MAX + 1);
        assert_eq!(all.last().unwrap(), "1 first");
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

    #[test]
    fn only_what_is_wanted_is_found_and_pages_join_without_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let log = AttemptLog::open(dir.path()).unwrap();
        for (actor, mesh, kind, second) in [
            ("user/alice/1", "pay", "Secret", 1),
            ("user/alice/2", "ana", "Secret", 2),
            ("user/alicia/3", "pay", "Mesh", 3),
            ("token/b", "", "", 3),
        ] {
            log.add(Attempt {
                time: format!("2026-01-01T00:00:0{second}Z"),
                actor: actor.into(),
                what: format!("read {kind} (GET /v1/meshes/{mesh}/secrets/db)"),
                meshes: (!mesh.is_empty())
                    .then(|| mesh.to_owned())
                    .into_iter()
                    .collect(),
                kind: kind.into(),
                ..attempt("")
            });
        }
        let base = clock::parse_ms("2026-01-01T00:00:00Z").unwrap();
        let numbers = |wanted: Wanted| {
            let wanted = Wanted {
                limit: 10,
                ..wanted
            };
            let found = log.find(&wanted, 1).into_iter();
            found.map(|attempt| attempt.number).collect::<Vec<_>>()
        };
        let any = Wanted::default;
        assert_eq!(numbers(any()), [4, 3, 2, 1]);
        assert_eq!(
            numbers(Wanted {
                actor: Some("user/alice".into()),
                ..any()
            }),
            [2, 1]
        );
        assert_eq!(
            numbers(Wanted {
                mesh: Some("pay".into()),
                ..any()
            }),
            [3, 1]
        );
        assert_eq!(
            numbers(Wanted {
                visible: Some(vec!["pay".into()]),
                ..any()
            }),
            [3, 1]
        );
        assert_eq!(
            numbers(Wanted {
                since_ms: Some(base + 2000),
                until_ms: Some(base + 2000),
                ..any()
            }),
            [2]
        );
        assert_eq!(
            numbers(Wanted {
                resource: Some(("Secret".into(), Some("db".into()))),
                ..any()
            }),
            [2, 1]
        );
        assert_eq!(
            numbers(Wanted {
                resource: Some(("Secret".into(), Some("d".into()))),
                ..any()
            }),
            [0; 0]
        );
        let third = Place {
            time_ms: base + 3000,
            node: 1,
            number: 3,
        };
        assert_eq!(
            numbers(Wanted {
                before: Some(third),
                ..any()
            }),
            [2, 1]
        );
    }
}
