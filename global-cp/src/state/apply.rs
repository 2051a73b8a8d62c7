//! The rules: what one committed entry makes of the state.
//!
//! One plain function, [`apply`]. It reads the image before the entry and returns the writes and the result; it has no
//! clock, no randomness and no I/O, so that every node makes the same of the same entry. An entry is done whole or not
//! at all: where a precondition fails, there are no writes.

use std::{collections::BTreeMap, ops::Bound};

use aws_lc_rs::digest;
use bytes::Bytes;
use mesh_proto::{
    raft::{
        Entry, EntryResult, OperationResult, Outcome, Precondition, Refusal, operation::Operation,
    },
    zone::ResourceKey,
};
use prost::Message as _;

use super::{
    image::{Image, Write},
    keys,
    records::{self, Counters},
};

/// The version of [`Entry`] that this program writes, and the only one it knows.
pub const ENTRY_VERSION: u32 = 1;

/// How much of the past is kept. Part of the rules: every node must use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Changes kept, at most.
    pub history_count: u64,
    /// Bytes of changes kept, at most.
    pub history_bytes: u64,
    /// Requests that are remembered however old they are.
    pub requests_always: u64,
    /// Requests that are remembered at most.
    pub requests_at_most: u64,
    /// How long requests between the two are remembered.
    pub request_age_ms: u64,
    /// Audit records kept, at most.
    pub audit_count: u64,
    /// Bytes of audit records kept, at most.
    pub audit_bytes: u64,
}

impl Limits {
    /// These, but for what the state itself says of the history: a fact of the cluster, so that every node keeps the same.
    fn as_said_in(self, image: &Image) -> Self {
        let said = image.history_limits();
        let or = |said: u64, otherwise: u64| if said == 0 { otherwise } else { said };
        Self {
            history_count: or(said.changes, self.history_count),
            history_bytes: or(said.bytes, self.history_bytes),
            ..self
        }
    }
}

/// The limits in force, where the cluster says nothing else.
pub const LIMITS: Limits = Limits {
    history_count: 100_000,
    history_bytes: 64 << 20,
    requests_always: 10_000,
    requests_at_most: 20_000,
    request_age_ms: 10 * 60 * 1000,
    audit_count: 20_000,
    audit_bytes: 16 << 20,
};

/// What an entry does.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// What to write, as one atom. Empty where the entry was refused or had been done before.
    pub writes: Vec<Write>,
    /// What to answer.
    pub result: EntryResult,
}

/// Why an entry can not be applied. The node must stop: going on would make it differ from the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A newer program wrote it.
    #[error(
        "the log holds an entry of version {0}, this program knows version {ENTRY_VERSION}: \
         start the program that wrote it, or a newer one"
    )]
    UnknownVersion(u32),
    /// A newer program wrote it.
    #[error(
        "operation {0} of an entry is of a kind this program does not know: start the program that wrote it, or a \
         newer one"
    )]
    UnknownOperation(usize),
    /// The state does not fit together.
    #[error(
        "the state machine contradicts itself ({0}): this is a defect, or the store was changed from outside"
    )]
    Broken(String),
}

/// Applies `entry` to `image`.
///
/// # Errors
/// Where the entry is not understood or the state contradicts itself. Nothing may be applied after that.
pub fn apply(image: &Image, entry: &Entry, limits: &Limits) -> Result<Applied, ApplyError> {
    check_counters(image.counters())?;
    if entry.version != ENTRY_VERSION {
        return Err(ApplyError::UnknownVersion(entry.version));
    }
    let asked = fingerprint(entry);
    if let Some(answer) = already_done(image, entry, &asked)? {
        return Ok(answer);
    }
    let limits = &limits.as_said_in(image);
    let mut draft = Draft::new(image, entry);
    let mut operations = Vec::with_capacity(entry.operations.len());
    for (index, operation) in entry.operations.iter().enumerate() {
        let operation = operation
            .operation
            .as_ref()
            .ok_or(ApplyError::UnknownOperation(index))?;
        match draft.operate(operation)? {
            Ok(outcome) => operations.push(OperationResult {
                outcome: outcome.into(),
            }),
            Err(refusal) => {
                return Ok(Applied {
                    writes: Vec::new(),
                    result: EntryResult {
                        revision: image.revision(),
                        operations: Vec::new(),
                        refusal: Some(Refusal {
                            operation: u32::try_from(index).unwrap_or(u32::MAX),
                            ..refusal
                        }),
                    },
                });
            }
        }
    }
    Ok(draft.finish(operations, asked, limits))
}

/// What must hold before every transition.
fn check_counters(counters: &Counters) -> Result<(), ApplyError> {
    let holds = [
        (
            counters.history_floor <= counters.revision,
            "history begins behind the newest revision",
        ),
        (
            counters.first_request <= counters.next_request,
            "the oldest request is newer than the newest",
        ),
        (
            counters.first_audit <= counters.next_audit,
            "the oldest audit record is newer than the newest",
        ),
        (
            counters.history_count > 0 || counters.history_bytes == 0,
            "an empty history has a size",
        ),
    ];
    match holds.iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(ApplyError::Broken(format!("{what}: {counters:?}"))),
        None => Ok(()),
    }
}

/// Tells two requests with the same id apart.
fn fingerprint(entry: &Entry) -> Vec<u8> {
    let mut context = digest::Context::new(&digest::SHA256);
    for operation in &entry.operations {
        context.update(&operation.encode_length_delimited_to_vec());
    }
    context.finish().as_ref()[..16].to_vec()
}

/// The answer of an earlier entry with the same request id, where there was one.
fn already_done(image: &Image, entry: &Entry, asked: &[u8]) -> Result<Option<Applied>, ApplyError> {
    if entry.request_id.is_empty() {
        return Ok(None);
    }
    let Some(record) = image.record(&keys::request(actor(entry), &entry.request_id)) else {
        return Ok(None);
    };
    let record = records::Request::decode(record.clone())
        .map_err(|error| ApplyError::Broken(format!("request {}: {error}", entry.request_id)))?;
    let result = if record.asked == asked {
        record.result.unwrap_or_default()
    } else {
        EntryResult {
            revision: image.revision(),
            operations: Vec::new(),
            refusal: Some(Refusal {
                operation: 0,
                reason: format!(
                    "request id {:?} was used for another write: give each write an id of its own",
                    entry.request_id
                ),
                actual_revision: 0,
            }),
        }
    };
    Ok(Some(Applied {
        writes: Vec::new(),
        result,
    }))
}

fn actor(entry: &Entry) -> &str {
    entry.actor.as_ref().map_or("", |actor| &actor.name)
}

/// The state as the entry leaves it: the image before it, and what it has written so far.
struct Draft<'a> {
    image: &'a Image,
    entry: &'a Entry,
    writes: BTreeMap<Vec<u8>, Option<Bytes>>,
    counters: Counters,
    /// The revision that this entry makes, if it makes one.
    revision: u64,
    changed: Vec<ResourceKey>,
    facts_changed: bool,
}

impl<'a> Draft<'a> {
    fn new(image: &'a Image, entry: &'a Entry) -> Self {
        let counters = image.counters().clone();
        Self {
            image,
            entry,
            writes: BTreeMap::new(),
            revision: counters.revision + 1,
            counters,
            changed: Vec::new(),
            facts_changed: false,
        }
    }

    fn record(&self, name: &[u8]) -> Option<Bytes> {
        match self.writes.get(name) {
            Some(written) => written.clone(),
            None => self.image.record(name).cloned(),
        }
    }

    fn resource(&self, key: &ResourceKey) -> Result<Option<records::Resource>, ApplyError> {
        self.record(&keys::resource(key))
            .map(records::Resource::decode)
            .transpose()
            .map_err(|error| ApplyError::Broken(format!("{key}: {error}")))
    }

    /// Does one operation. The outer error stops the node, the inner one refuses the entry.
    fn operate(&mut self, operation: &Operation) -> Result<Result<Outcome, Refusal>, ApplyError> {
        match operation {
            Operation::Put(put) => {
                let key = put.key.clone().unwrap_or_default();
                self.change(key, Some(&put.json), put.precondition.as_ref())
            }
            Operation::Delete(delete) => {
                let key = delete.key.clone().unwrap_or_default();
                self.change(key, None, delete.precondition.as_ref())
            }
            Operation::SetSystem(set) => {
                let name = keys::system(&set.name);
                let before = self.record(&name);
                // An absent fact reads as an empty one, so that "must not exist yet" can be said.
                let current = before.clone().unwrap_or_default();
                if set.expect.as_ref().is_some_and(|expect| *expect != current) {
                    return Ok(Err(refusal(
                        format!("{} has changed in the meantime", set.name),
                        self.counters.revision,
                    )));
                }
                if before.as_ref().is_some_and(|before| *before == set.value) {
                    return Ok(Ok(Outcome::Unchanged));
                }
                self.facts_changed = true;
                self.writes
                    .insert(name, Some(Bytes::from(set.value.clone())));
                Ok(Ok(match before {
                    Some(_) => Outcome::Updated,
                    None => Outcome::Created,
                }))
            }
        }
    }

    fn change(
        &mut self,
        key: ResourceKey,
        json: Option<&Vec<u8>>,
        precondition: Option<&Precondition>,
    ) -> Result<Result<Outcome, Refusal>, ApplyError> {
        if !keys::is_nameable(&key) {
            return Ok(Err(refusal(
                format!("{key:?} can not name a resource"),
                self.counters.revision,
            )));
        }
        let before = self.resource(&key)?;
        if let Err(refusal) = check_precondition(&key, before.as_ref(), precondition) {
            return Ok(Err(refusal));
        }
        let outcome = match (&before, json) {
            (None, None) => return Ok(Ok(Outcome::NotFound)),
            (Some(before), Some(json)) if before.json == *json => {
                return Ok(Ok(Outcome::Unchanged));
            }
            (None, Some(_)) => Outcome::Created,
            (Some(_), Some(_)) => Outcome::Updated,
            (Some(_), None) => Outcome::Deleted,
        };
        let after = json.map(|json| records::Resource {
            json: Bytes::from(json.clone()),
            created_revision: before
                .as_ref()
                .map_or(self.revision, |before| before.created_revision),
            modified_revision: self.revision,
            created_ms: before
                .as_ref()
                .map_or(self.entry.time_ms, |before| before.created_ms),
            modified_ms: self.entry.time_ms,
        });
        self.writes.insert(
            keys::resource(&key),
            after.as_ref().map(|after| after.encode_to_vec().into()),
        );
        self.remember(key, after, before);
        Ok(Ok(outcome))
    }

    /// Adds a change to the history.
    fn remember(
        &mut self,
        key: ResourceKey,
        after: Option<records::Resource>,
        before: Option<records::Resource>,
    ) {
        let ordinal = u32::try_from(self.changed.len()).unwrap_or(u32::MAX);
        let name = keys::change(self.revision, ordinal);
        let existed = before.is_some();
        let is_oldest = self.next_change(&key, &keys::histories(&key)).is_none();
        let record = records::Change {
            key: Some(key.clone()),
            after,
            actor: actor(self.entry).to_owned(),
            time_ms: self.entry.time_ms,
            existed,
            before: before.filter(|_| is_oldest),
        }
        .encode_to_vec();
        self.counters.history_count += 1;
        self.counters.history_bytes += size(&name, &record);
        self.writes.insert(
            keys::history(&key, self.revision, ordinal),
            Some(Bytes::new()),
        );
        self.writes.insert(name, Some(record.into()));
        self.changed.push(key);
    }

    /// The name of the record of the first change of a resource behind `history`, a record of the resource's history or
    /// what all of them begin with.
    fn next_change(&self, key: &ResourceKey, history: &[u8]) -> Option<Vec<u8>> {
        let all = keys::histories(key);
        let end = keys::after_prefix(&all)?;
        let in_image = self
            .image
            .range(&all, Bound::Excluded(history))
            .map(|(name, _)| name)
            .find(|name| !matches!(self.writes.get(*name), Some(None)));
        let written = self
            .writes
            .range::<[u8], _>((Bound::Excluded(history), Bound::Excluded(end.as_slice())))
            .find_map(|(name, value)| value.as_ref().map(|_| name.as_slice()));
        let next = match (in_image, written) {
            (Some(one), Some(other)) => one.min(other),
            (one, other) => one.or(other)?,
        };
        Some([b"c", &next[all.len()..]].concat())
    }

    fn finish(
        mut self,
        operations: Vec<OperationResult>,
        asked: Vec<u8>,
        limits: &Limits,
    ) -> Applied {
        let changed = self.facts_changed || !self.changed.is_empty();
        if changed {
            self.counters.revision = self.revision;
            self.write_audit(limits);
            self.trim_history(limits);
        }
        let result = EntryResult {
            revision: self.counters.revision,
            operations,
            refusal: None,
        };
        if !self.entry.request_id.is_empty() {
            self.remember_request(&result, asked, limits);
        }
        if self.counters != *self.image.counters() {
            let counters = self.counters.encode_to_vec();
            self.writes
                .insert(keys::COUNTERS.to_vec(), Some(counters.into()));
        }
        Applied {
            writes: self.writes.into_iter().collect(),
            result,
        }
    }

    fn write_audit(&mut self, limits: &Limits) {
        let name = keys::audit(self.counters.next_audit);
        let mut changed = self.changed.clone();
        // One put may follow another of the same resource in one entry.
        changed.dedup();
        let record = records::Audit {
            revision: self.revision,
            time_ms: self.entry.time_ms,
            actor: self.entry.actor.clone(),
            summary: self.entry.summary.clone(),
            changed,
            request_id: self.entry.request_id.clone(),
        }
        .encode_to_vec();
        self.counters.next_audit += 1;
        self.counters.audit_bytes += size(&name, &record);
        self.writes.insert(name, Some(record.into()));
        // The newest one stays, however big it is.
        while self.counters.next_audit - self.counters.first_audit > 1
            && (self.counters.next_audit - self.counters.first_audit > limits.audit_count
                || self.counters.audit_bytes > limits.audit_bytes)
        {
            let name = keys::audit(self.counters.first_audit);
            if let Some(record) = self.record(&name) {
                self.counters.audit_bytes -= size(&name, &record).min(self.counters.audit_bytes);
            }
            self.writes.insert(name, None);
            self.counters.first_audit += 1;
        }
    }

    /// Forgets the oldest revisions, each one whole, until the history fits. The newest one stays.
    fn trim_history(&mut self, limits: &Limits) {
        let image = self.image;
        let mut forgetting = None;
        for (name, _) in image.range(b"c", Bound::Unbounded) {
            let Some((revision, ordinal)) = keys::parse_change(name) else {
                continue;
            };
            let fits = self.counters.history_count <= limits.history_count
                && self.counters.history_bytes <= limits.history_bytes;
            if fits && forgetting != Some(revision) {
                break;
            }
            forgetting = Some(revision);
            self.counters.history_floor = revision;
            self.forget(name, revision, ordinal);
        }
    }

    /// Forgets one change, the oldest one of its resource. What it led to goes to the one after it, so that what the
    /// resource was at any revision that is kept stays known.
    fn forget(&mut self, name: &[u8], revision: u64, ordinal: u32) {
        let record = self.record(name).unwrap_or_default();
        self.counters.history_count = self.counters.history_count.saturating_sub(1);
        self.counters.history_bytes = self
            .counters
            .history_bytes
            .saturating_sub(size(name, &record));
        self.writes.insert(name.to_vec(), None);
        let Ok(records::Change {
            key: Some(key),
            after,
            ..
        }) = records::Change::decode(record)
        else {
            return;
        };
        let history = keys::history(&key, revision, ordinal);
        if let Some(next) = self.next_change(&key, &history)
            && let Some(record) = self.record(&next)
            && let Ok(mut change) = records::Change::decode(record.clone())
        {
            change.before = after;
            let changed = change.encode_to_vec();
            self.counters.history_bytes += size(&next, &changed);
            self.counters.history_bytes = self
                .counters
                .history_bytes
                .saturating_sub(size(&next, &record));
            self.writes.insert(next, Some(changed.into()));
        }
        self.writes.insert(history, None);
    }

    fn remember_request(&mut self, result: &EntryResult, asked: Vec<u8>, limits: &Limits) {
        let number = self.counters.next_request;
        let name = keys::request(actor(self.entry), &self.entry.request_id);
        let record = records::Request {
            number,
            time_ms: self.entry.time_ms,
            result: Some(result.clone()),
            asked,
        };
        self.counters.next_request += 1;
        self.writes
            .insert(keys::request_number(number), Some(name.clone().into()));
        self.writes
            .insert(name, Some(record.encode_to_vec().into()));
        while self.oldest_request_may_go(limits) {
            let numbered = keys::request_number(self.counters.first_request);
            if let Some(name) = self.record(&numbered) {
                self.writes.insert(name.to_vec(), None);
            }
            self.writes.insert(numbered, None);
            self.counters.first_request += 1;
        }
    }

    fn oldest_request_may_go(&self, limits: &Limits) -> bool {
        let kept = self.counters.next_request - self.counters.first_request;
        if kept <= limits.requests_always {
            return false;
        }
        if kept > limits.requests_at_most {
            return true;
        }
        let time_ms = self
            .record(&keys::request_number(self.counters.first_request))
            .and_then(|name| self.record(&name))
            .and_then(|record| records::Request::decode(record).ok())
            .map_or(0, |request| request.time_ms);
        self.entry.time_ms.saturating_sub(time_ms) > limits.request_age_ms
    }
}

fn check_precondition(
    key: &ResourceKey,
    before: Option<&records::Resource>,
    precondition: Option<&Precondition>,
) -> Result<(), Refusal> {
    let Some(Precondition { revision: wanted }) = precondition else {
        return Ok(());
    };
    let actual = before.map_or(0, |before| before.modified_revision);
    if actual == *wanted {
        return Ok(());
    }
    Err(refusal(
        match (wanted, actual) {
            (0, _) => format!("{key} exists already, at revision {actual}"),
            (_, 0) => format!("{key} does not exist; revision {wanted} of it was expected"),
            _ => format!("{key} is at revision {actual}, not {wanted}: read it again"),
        },
        actual,
    ))
}

fn refusal(reason: String, actual_revision: u64) -> Refusal {
    Refusal {
        operation: 0,
        reason,
        actual_revision,
    }
}

fn size(name: &[u8], value: &[u8]) -> u64 {
    (name.len() + value.len()) as u64
}

#[cfg(test)]
mod tests;
