//! A resource as people read it back.

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value};

use crate::{labels, resource::Resource};

/// When a resource was made and last changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Revision of its last change.
    pub revision: u64,
    /// RFC 3339.
    pub creation_time: String,
    /// RFC 3339.
    pub modification_time: String,
}

/// Fields that exist only in views; accepted and dropped when a view is applied.
pub(crate) const READ_ONLY: &[&str] = &[
    "revision",
    "creationTime",
    "modificationTime",
    "status",
    "kri",
    "snis",
];

impl Resource {
    /// What the API and `-o yaml` show. Applied again, it changes nothing.
    #[must_use]
    pub fn to_view(&self, stamp: &Stamp) -> Value {
        let mut object = self.envelope();
        let origin = match self.meta.zone.as_str() {
            "" => "global",
            zone => zone,
        };
        if let Value::Object(labels) = object
            .entry("labels")
            .or_insert_with(|| Value::Object(Map::new()))
        {
            labels.insert(labels::ORIGIN.to_owned(), origin.into());
        }
        self.insert_content(&mut object);
        object.insert("revision".to_owned(), stamp.revision.into());
        object.insert(
            "creationTime".to_owned(),
            stamp.creation_time.as_str().into(),
        );
        object.insert(
            "modificationTime".to_owned(),
            stamp.modification_time.as_str().into(),
        );
        sorted(Value::Object(object))
    }
}

/// `view` as YAML, envelope first.
#[must_use]
pub fn to_yaml(view: &Value) -> String {
    // JSON is YAML, too.
    serde_saphyr::to_string(&InReadingOrder(view)).unwrap_or_else(|_| view.to_string())
}

/// `value` with the keys of every object in order, whether or not `serde_json` keeps insertion order in this build.
pub(crate) fn sorted(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<_> = object.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().map(|(k, v)| (k, sorted(v))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        scalar => scalar,
    }
}

/// An object with what names it first and what is read-only last.
struct InReadingOrder<'a>(&'a Value);

impl Serialize for InReadingOrder<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Value::Object(object) = self.0 else {
            return self.0.serialize(serializer);
        };
        let rank = |key: &str| match key {
            "type" => 0,
            "mesh" => 1,
            "name" => 2,
            "labels" => 3,
            key if READ_ONLY.contains(&key) => 5,
            _ => 4,
        };
        let mut entries: Vec<_> = object.iter().collect();
        entries.sort_by_key(|(key, _)| (rank(key), key.as_str()));
        let mut map = serializer.serialize_map(Some(entries.len()))?;
        for (key, value) in entries {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}
