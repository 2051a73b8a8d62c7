//! Taking an object apart. What nobody took is told, so that nothing is dropped silently.

use serde_json::{Map, Value};

use super::report::Notes;

/// An object that is taken apart, and where it stands.
pub(super) struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The object `value` at `path`; nothing where it is none.
    pub(super) fn of(value: Value, path: &str) -> Self {
        Self {
            path: path.to_owned(),
            map: match value {
                Value::Object(map) => map,
                _ => Map::new(),
            },
        }
    }

    /// The path of one of its fields.
    pub(super) fn at(&self, field: &str) -> String {
        field_path(&self.path, field)
    }

    /// Takes a field out; null is absent.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    /// Takes a text out.
    pub(super) fn take_text(&mut self, field: &str) -> Option<String> {
        match self.take(field)? {
            Value::String(text) => Some(text),
            other => Some(other.to_string()),
        }
    }

    /// Takes an object out.
    pub(super) fn take_fields(&mut self, field: &str) -> Option<Self> {
        let path = self.at(field);
        self.take(field).map(|value| Self::of(value, &path))
    }

    /// Takes a list of objects out.
    pub(super) fn take_list(&mut self, field: &str) -> Vec<Self> {
        let path = self.at(field);
        match self.take(field) {
            Some(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| Self::of(item, &format!("{path}[{index}]")))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Takes fields over under other names.
    pub(super) fn rename(&mut self, into: &mut Map<String, Value>, names: &[(&str, &str)]) {
        for (from, to) in names {
            if let Some(value) = self.take(from) {
                into.insert((*to).to_owned(), value);
            }
        }
    }

    /// Its own path.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// What is left, as it is.
    pub(super) fn rest(self) -> Map<String, Value> {
        self.map
    }

    /// Everything that is left is not kept.
    pub(super) fn finish(self, notes: &mut Notes<'_>) {
        for (field, value) in &self.map {
            // A default that was written out says nothing.
            if !value.is_null() {
                notes.lost(
                    &field_path(&self.path, field),
                    "there is nothing like it here",
                );
            }
        }
    }
}

/// `a` and `b` to `a.b`, as violations write it.
pub(super) fn field_path(path: &str, field: &str) -> String {
    let plain = field
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_');
    match (path.is_empty(), plain) {
        (true, true) => field.to_owned(),
        (false, true) => format!("{path}.{field}"),
        (_, false) => format!("{path}[{field:?}]"),
    }
}

/// The texts of an object.
pub(super) fn texts(value: Option<Value>) -> std::collections::BTreeMap<String, String> {
    let Some(Value::Object(map)) = value else {
        return std::collections::BTreeMap::new();
    };
    map.into_iter()
        .map(|(key, value)| match value {
            Value::String(text) => (key, text),
            other => (key, other.to_string()),
        })
        .collect()
}
