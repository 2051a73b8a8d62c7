//! What global has given the zone in one scope: a mesh, or what is outside any mesh.
//!
//! Feed [`Scope::take`] every `Changes` message of the scope. Parts of one step are gathered and take effect together
//! with the last; the cursor moves only then. A resource that cannot be read is kept aside with its reason and stops
//! nobody else's (FIELD a3, d13); its text is kept too, so that a newer version of this program can read it.

use std::{collections::BTreeMap, sync::Arc};

use mesh_model::{Resource, api::Key};
use mesh_proto::zone::{Changes, ResourceRecord};

/// The resources of one scope.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// The mesh, or "".
    mesh: String,
    history_id: String,
    /// Revision up to which `records` is complete. `None`: nothing complete has come yet.
    cursor: Option<u64>,
    records: BTreeMap<Key, Record>,
    step: Option<GatheredStep>,
}

/// One resource as it came.
#[derive(Debug, Clone)]
pub struct Record {
    /// Revision of its last change.
    pub revision: u64,
    /// Unix milliseconds of its last change, by global's clock. 0: not known.
    pub modified_ms: u64,
    /// Revision at which it was created. 0: not known.
    pub created_revision: u64,
    /// Its text, as global encoded it.
    pub json: Arc<[u8]>,
    /// The resource, or why it cannot be read.
    pub resource: Result<Arc<Resource>, Arc<str>>,
}

/// One resource as it was stored.
#[derive(Debug, Clone)]
pub struct StoredRecord {
    /// Its key.
    pub key: Key,
    /// See [`Record::revision`].
    pub revision: u64,
    /// See [`Record::modified_ms`].
    pub modified_ms: u64,
    /// See [`Record::created_revision`].
    pub created_revision: u64,
    /// See [`Record::json`].
    pub json: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
struct GatheredStep {
    snapshot: bool,
    put: BTreeMap<Key, ResourceRecord>,
    delete: Vec<Key>,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// More parts of the step are to come.
    Gathered,
    /// The step took effect; these resources are different now.
    Applied(Vec<Key>),
    /// The mesh is no longer here: forget it.
    Gone,
    /// The message does not follow on what is known. A snapshot must be asked for.
    Unconnected(String),
}

impl Scope {
    /// An empty scope. `mesh` is "" for what is outside any mesh.
    #[must_use]
    pub fn new(mesh: &str) -> Self {
        Self {
            mesh: mesh.to_owned(),
            ..Self::default()
        }
    }

    /// A scope as it was stored.
    #[must_use]
    pub fn restored(
        mesh: &str,
        history_id: String,
        cursor: u64,
        records: impl IntoIterator<Item = StoredRecord>,
    ) -> Self {
        let records = records
            .into_iter()
            .map(|stored| {
                let record = read(
                    mesh,
                    &stored.key,
                    stored.revision,
                    stored.modified_ms,
                    stored.created_revision,
                    stored.json,
                );
                (stored.key, record)
            })
            .collect();
        Self {
            mesh: mesh.to_owned(),
            history_id,
            cursor: Some(cursor),
            records,
            step: None,
        }
    }

    /// Which history [`Self::cursor`] belongs to.
    #[must_use]
    pub fn history_id(&self) -> &str {
        &self.history_id
    }

    /// Revision up to which the scope is complete. `None`: it never was.
    #[must_use]
    pub fn cursor(&self) -> Option<u64> {
        self.cursor
    }

    /// All records.
    #[must_use]
    pub fn records(&self) -> &BTreeMap<Key, Record> {
        &self.records
    }

    /// Every resource that can be read, in the order of keys.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.records
            .values()
            .filter_map(|r| r.resource.as_ref().ok())
    }

    /// Every resource that cannot be read, with the reason.
    pub fn unreadable(&self) -> impl Iterator<Item = (&Key, &Record, &str)> {
        self.records
            .iter()
            .filter_map(|(key, record)| Some((key, record, &**record.resource.as_ref().err()?)))
    }

    /// Keys and texts of those that cannot be read.
    #[must_use]
    pub fn unreadable_texts(&self) -> Vec<(Key, Arc<[u8]>)> {
        self.unreadable()
            .map(|(key, record, _)| (key.clone(), record.json.clone()))
            .collect()
    }

    /// A new stream begins: a step that the last one did not finish is dropped.
    pub fn begin_stream(&mut self) {
        self.step = None;
    }

    /// The next stream asks for a snapshot. What is known stays in force until it has come.
    pub fn forget_cursor(&mut self) {
        self.cursor = None;
        self.step = None;
    }

    /// Takes one message of this scope.
    pub fn take(&mut self, changes: Changes) -> Taken {
        if changes.mesh_gone {
            return Taken::Gone;
        }
        if let Some(reason) = self.unconnected(&changes) {
            self.step = None;
            return Taken::Unconnected(reason);
        }
        let step = self.step.get_or_insert_with(|| GatheredStep {
            snapshot: changes.snapshot,
            ..GatheredStep::default()
        });
        for record in changes.put {
            if let Some(key) = record.key.clone() {
                step.put.insert(key.into(), record);
            }
        }
        for key in changes.delete {
            let key = Key::from(key);
            step.put.remove(&key);
            step.delete.push(key);
        }
        if !changes.last {
            return Taken::Gathered;
        }
        let step = self.step.take().unwrap_or_default();
        let changed = self.apply(step);
        self.history_id = changes.history_id;
        self.cursor = Some(changes.to);
        Taken::Applied(changed)
    }

    fn unconnected(&self, changes: &Changes) -> Option<String> {
        if self
            .step
            .as_ref()
            .is_some_and(|step| step.snapshot != changes.snapshot)
        {
            return Some("a delta and a snapshot are mixed in one step".to_owned());
        }
        if changes.snapshot {
            return None;
        }
        let Some(cursor) = self.cursor else {
            return Some("a delta came before any snapshot".to_owned());
        };
        if changes.history_id != self.history_id {
            return Some(format!(
                "the delta is of history {:?}, what is known is of {:?}",
                changes.history_id, self.history_id
            ));
        }
        (changes.from > cursor).then(|| {
            format!(
                "the delta begins at revision {}, what is known ends at {cursor}",
                changes.from
            )
        })
    }

    fn apply(&mut self, step: GatheredStep) -> Vec<Key> {
        let mut changed = Vec::new();
        let mut delete = step.delete;
        if step.snapshot {
            delete.extend(
                self.records
                    .keys()
                    .filter(|k| !step.put.contains_key(k))
                    .cloned(),
            );
        }
        for key in delete {
            if !step.put.contains_key(&key) && self.records.remove(&key).is_some() {
                changed.push(key);
            }
        }
        for (key, record) in step.put {
            match self.records.get_mut(&key) {
                Some(known)
                    if *known.json == *record.json
                        && known.created_revision == record.created_revision =>
                {
                    known.revision = record.revision;
                    known.modified_ms = record.modified_ms;
                }
                _ => {
                    let read = read(
                        &self.mesh,
                        &key,
                        record.revision,
                        record.modified_ms,
                        record.created_revision,
                        record.json,
                    );
                    self.records.insert(key.clone(), read);
                    changed.push(key);
                }
            }
        }
        changed
    }
}

fn read(
    mesh: &str,
    key: &Key,
    revision: u64,
    modified_ms: u64,
    created_revision: u64,
    json: Vec<u8>,
) -> Record {
    let resource = match Resource::from_json(&json) {
        Err(violations) => Err(violations.to_string().into()),
        // Whatever a message says, a scope never holds another mesh's resource (invariant 8).
        Ok(_) if key.mesh != mesh => {
            Err(format!("it is of mesh {:?}, sent in {mesh:?}", key.mesh).into())
        }
        Ok(resource) if Key::from(resource.key()) != *key => {
            Err(format!("its text is that of {}", resource.key()).into())
        }
        Ok(mut resource) => {
            resource.meta.created_revision = created_revision;
            Ok(Arc::new(resource))
        }
    };
    Record {
        revision,
        modified_ms,
        created_revision,
        json: json.into(),
        resource,
    }
}
