//! The map that is the state, at one moment, and the typed questions to it.
//!
//! The map is persistent in the functional sense: a copy costs nothing and shares what did not change, so that each
//! reader, and the builder of a snapshot, keeps the image it began with while writes go on.

use std::ops::Bound;

use bytes::Bytes;
use mesh_proto::zone::ResourceKey;
use prost::Message as _;
use rpds::RedBlackTreeMapSync;

use super::{
    AuditRecord, Change, HistoryRecord, Stored, TooOld, keys,
    records::{self, Counters},
};

/// Name of the cluster fact that says which history revisions belong to.
pub const HISTORY_ID: &str = "history-id";
/// Name of the cluster fact that holds the cluster's id.
pub const CLUSTER_ID: &str = "cluster-id";

/// Name of the cluster fact that says how much of the past is kept.
pub const HISTORY_LIMITS: &str = "history-limits";

/// One write to the map: a record's name and its new value, `None` to remove it.
pub type Write = (Vec<u8>, Option<Bytes>);

/// Bytes of resources on one page of changes, about.
const PAGE_BYTES: usize = 4 << 20;

/// Part of the changes after a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangesPage {
    /// Oldest first.
    pub changes: Vec<Change>,
    /// Every change up to this revision has been told.
    pub through: u64,
}

/// The whole state at one moment.
#[derive(Debug, Clone, Default)]
pub struct Image {
    records: RedBlackTreeMapSync<Box<[u8]>, Bytes>,
    counters: Counters,
}

/// A record that this version wrote, or an older one, does not read back.
#[derive(Debug, thiserror::Error)]
#[error("a record of the state machine is not readable: {0}")]
pub struct BadRecord(pub String);

impl Image {
    /// The image of these records.
    ///
    /// # Errors
    /// Where the counters among them are not readable.
    pub fn from_records(
        records: impl IntoIterator<Item = (Vec<u8>, Bytes)>,
    ) -> Result<Self, BadRecord> {
        let mut image = Self::default();
        for (name, value) in records {
            image.write((name, Some(value)))?;
        }
        Ok(image)
    }

    /// Makes one write.
    ///
    /// # Errors
    /// Where it would replace the counters by something else.
    pub fn write(&mut self, (name, value): Write) -> Result<(), BadRecord> {
        if name == keys::COUNTERS {
            self.counters = Counters::decode(value.as_deref().unwrap_or_default())
                .map_err(|error| BadRecord(format!("counters: {error}")))?;
        }
        match value {
            Some(value) => self.records.insert_mut(name.into_boxed_slice(), value),
            None => {
                self.records.remove_mut(name.as_slice());
            }
        }
        Ok(())
    }

    /// One record.
    #[must_use]
    pub fn record(&self, name: &[u8]) -> Option<&Bytes> {
        self.records.get(name)
    }

    /// All records, in order of their names.
    pub fn records(&self) -> impl Iterator<Item = (&[u8], &Bytes)> {
        self.records.iter().map(|(name, value)| (&**name, value))
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.size()
    }

    /// Whether nothing was ever written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Records whose names begin with `prefix`, from `from` on where it is given.
    pub(super) fn range<'a>(
        &'a self,
        prefix: &'a [u8],
        from: Bound<&'a [u8]>,
    ) -> impl DoubleEndedIterator<Item = (&'a [u8], &'a Bytes)> {
        let start = match from {
            Bound::Unbounded => Bound::Included(prefix),
            given => given,
        };
        let end = keys::after_prefix(prefix);
        let end = match &end {
            Some(end) => Bound::Excluded(end.clone().into_boxed_slice()),
            None => Bound::Unbounded,
        };
        let start = start.map(|name| name.to_vec().into_boxed_slice());
        self.records
            .range::<Box<[u8]>, _>((start, end))
            .map(|(name, value)| (&**name, value))
    }

    /// What the state machine counts.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Newest revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.counters.revision
    }

    /// Which history revisions belong to; "" before it is known.
    #[must_use]
    pub fn history_id(&self) -> String {
        self.text(HISTORY_ID)
    }

    /// The cluster's id; "" before it is known.
    #[must_use]
    pub fn cluster_id(&self) -> String {
        self.text(CLUSTER_ID)
    }

    fn text(&self, fact: &str) -> String {
        self.system(fact)
            .and_then(|value| String::from_utf8(value).ok())
            .unwrap_or_default()
    }

    /// One resource.
    #[must_use]
    pub fn get(&self, key: &ResourceKey) -> Option<Stored> {
        Stored::read(key.clone(), self.record(&keys::resource(key))?)
    }

    /// See [`super::State::list`].
    #[must_use]
    pub fn list(
        &self,
        kind: &str,
        mesh: Option<&str>,
        after: Option<&ResourceKey>,
        limit: usize,
    ) -> Vec<Stored> {
        let prefix = keys::resources(kind, mesh);
        // A key of another kind or mesh would lead out of the range: then it is before all of it, or behind.
        let after = after.map(keys::resource);
        let from = match &after {
            Some(after) if after.as_slice() >= prefix.as_slice() => {
                Bound::Excluded(after.as_slice())
            }
            _ => Bound::Unbounded,
        };
        if let Some(after) = &after
            && keys::after_prefix(&prefix).is_some_and(|end| *after >= end)
        {
            return Vec::new();
        }
        self.range(&prefix, from)
            .filter_map(|(name, value)| Stored::read(keys::parse_resource(name)?, value))
            .take(limit)
            .collect()
    }

    /// The kinds of which there are resources.
    #[must_use]
    pub fn kinds(&self) -> Vec<String> {
        let mut kinds = Vec::new();
        let mut from = b"r".to_vec();
        loop {
            let first = self.range(b"r", Bound::Included(&from)).next();
            let Some(key) = first.and_then(|(name, _)| keys::parse_resource(name)) else {
                return kinds;
            };
            // Skip to the first record of the next kind.
            from = keys::after_prefix(&keys::resources(&key.kind, None)).unwrap_or_default();
            kinds.push(key.kind);
        }
    }

    /// Every resource of one mesh ("" : outside any mesh), ordered by kind, zone and name.
    #[must_use]
    pub fn all_in_mesh(&self, mesh: &str) -> Vec<Stored> {
        self.kinds()
            .iter()
            .flat_map(|kind| self.list(kind, Some(mesh), None, usize::MAX))
            .collect()
    }

    /// How much of the past is kept, where somebody said so.
    #[must_use]
    pub fn history_limits(&self) -> records::HistoryLimits {
        self.record(&keys::system(HISTORY_LIMITS))
            .and_then(|value| records::HistoryLimits::decode(value.clone()).ok())
            .unwrap_or_default()
    }

    /// The oldest revision whose successors are all kept.
    #[must_use]
    pub fn oldest_revision(&self) -> u64 {
        self.counters.history_floor
    }

    /// All changes after `revision`, oldest first, read one by one: the past may be long.
    ///
    /// # Errors
    /// Where some of them are no longer kept.
    pub fn changes_since(
        &self,
        revision: u64,
    ) -> Result<impl Iterator<Item = Change> + '_, TooOld> {
        if revision < self.counters.history_floor {
            return Err(TooOld {
                asked: revision,
                oldest: self.counters.history_floor,
            });
        }
        // There is nothing behind the last of all revisions, and no record is named so.
        let first = keys::change(revision.saturating_add(1), 0);
        Ok(self
            .records
            .range::<Box<[u8]>, _>((
                Bound::Included(first.into_boxed_slice()),
                Bound::Excluded(Box::from(b"d".as_slice())),
            ))
            .filter_map(|(name, value)| change(name, value)))
    }

    /// The next changes after `revision`: whole revisions, as many as it takes to reach `limit` changes or
    /// [`PAGE_BYTES`].
    ///
    /// # Errors
    /// Where some of them are no longer kept.
    pub fn changes_page(&self, revision: u64, limit: usize) -> Result<ChangesPage, TooOld> {
        let mut page = ChangesPage {
            changes: Vec::new(),
            through: revision,
        };
        let mut bytes = 0;
        for change in self.changes_since(revision)? {
            let full = page.changes.len() >= limit || bytes >= PAGE_BYTES;
            if full && change.revision != page.through {
                return Ok(page);
            }
            page.through = change.revision;
            bytes += change.stored.as_ref().map_or(0, |stored| stored.json.len());
            page.changes.push(change);
        }
        // Revisions that changed no resource are told with the last page.
        page.through = page.through.max(self.revision());
        Ok(page)
    }

    /// What `key` was when `revision` was the newest one.
    ///
    /// # Errors
    /// Where that is no longer known.
    pub fn at(&self, key: &ResourceKey, revision: u64) -> Result<Option<Stored>, TooOld> {
        let now = self.get(key);
        // What has not changed since needs no history.
        if let Some(now) = &now
            && now.modified_revision <= revision
        {
            return Ok(Some(now.clone()));
        }
        let too_old = |oldest| TooOld {
            asked: revision,
            oldest,
        };
        if revision < self.counters.history_floor {
            return Err(too_old(self.counters.history_floor));
        }
        let prefix = keys::histories(key);
        let behind = keys::history(key, revision.saturating_add(1), 0);
        let Some((name, _)) = self.range(&prefix, Bound::Included(&behind)).next() else {
            return Ok(now);
        };
        let name = [b"c", &name[prefix.len()..]].concat();
        let first = self
            .record(&name)
            .and_then(|value| records::Change::decode(value.clone()).ok())
            .unwrap_or_default();
        if !first.existed {
            return Ok(None);
        }
        let stored = |record| Stored::from_record(key.clone(), record);
        if let Some(before) = first.before {
            return Ok(Some(stored(before)));
        }
        let first_revision = keys::parse_change(&name).map_or(0, |(revision, _)| revision);
        let before = self
            .range(&prefix, Bound::Unbounded)
            .rev()
            .find(|(name, _)| **name < *behind)
            .and_then(|(name, _)| self.record(&[b"c", &name[prefix.len()..]].concat()))
            .and_then(|value| records::Change::decode(value.clone()).ok());
        match before {
            Some(before) => Ok(before.after.map(stored)),
            None => Err(too_old(first_revision)),
        }
    }

    /// Changes of one resource, newest first, and whether older ones are no longer kept.
    #[must_use]
    pub fn history(&self, key: &ResourceKey) -> (Vec<HistoryRecord>, bool) {
        let prefix = keys::histories(key);
        let mut truncated = self.record(&keys::resource(key)).is_some();
        let mut records = Vec::new();
        for (name, _) in self.range(&prefix, Bound::Unbounded).rev() {
            let change_name = [b"c", &name[prefix.len()..]].concat();
            let Some((revision, value)) = keys::parse_change(&change_name)
                .map(|(revision, _)| revision)
                .zip(self.record(&change_name))
            else {
                continue;
            };
            let Ok(record) = records::Change::decode(value.clone()) else {
                continue;
            };
            truncated = record.existed;
            records.push(HistoryRecord {
                revision,
                time_ms: record.time_ms,
                actor: record.actor,
                stored: record
                    .after
                    .map(|after| Stored::from_record(key.clone(), after)),
            });
        }
        (records, truncated)
    }

    /// A fact of the cluster.
    #[must_use]
    pub fn system(&self, name: &str) -> Option<Vec<u8>> {
        self.record(&keys::system(name)).map(|value| value.to_vec())
    }

    /// The newest audit records, newest first.
    #[must_use]
    pub fn audit(&self, limit: usize) -> Vec<AuditRecord> {
        self.range(b"a", Bound::Unbounded)
            .rev()
            .filter_map(|(name, value)| {
                let number = u64::from_be_bytes(name.get(1..)?.try_into().ok()?);
                let record = records::Audit::decode(value.clone()).ok()?;
                let actor = record.actor.unwrap_or_default();
                Some(AuditRecord {
                    number,
                    revision: record.revision,
                    time_ms: record.time_ms,
                    actor: actor.name,
                    address: actor.address,
                    summary: record.summary,
                    changed: record.changed,
                    request_id: record.request_id,
                })
            })
            .take(limit)
            .collect()
    }
}

fn change(name: &[u8], value: &Bytes) -> Option<Change> {
    let (revision, _) = keys::parse_change(name)?;
    let record = records::Change::decode(value.clone()).ok()?;
    let key = record.key?;
    Some(Change {
        revision,
        stored: record
            .after
            .map(|after| Stored::from_record(key.clone(), after)),
        key,
    })
}
