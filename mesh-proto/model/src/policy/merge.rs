//! Entries in their order to one configuration, as JSON merge patches (RFC 7396), that remembers where each field is from.

use std::{collections::BTreeMap, fmt};

use mesh_proto::zone::ResourceKey;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{ListMerge, PolicyShape};
use crate::path;

/// What a field is from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// No policy.
    BuiltIn,
    /// An entry of a policy.
    Policy {
        /// The policy.
        key: ResourceKey,
        /// The entry.
        entry: Entry,
    },
}

/// An entry of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// Of `to`, by its index.
    To(usize),
    /// Of `rules`, by its index.
    Rules(usize),
    /// The `default` for the proxy as a whole.
    Proxy,
}

/// `MeshTimeout/slow to[0]`
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::Policy { key, entry } => {
                write!(f, "{}/{}", key.kind, key.name)?;
                if !key.zone.is_empty() {
                    write!(f, " of zone {}", key.zone)?;
                }
                match entry {
                    Entry::To(_) | Entry::Rules(_) => write!(f, " {entry}"),
                    Entry::Proxy => Ok(()),
                }
            }
        }
    }
}

/// `to[0]`
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::To(index) => write!(f, "to[{index}]"),
            Self::Rules(index) => write!(f, "rules[{index}]"),
            Self::Proxy => f.write_str("default"),
        }
    }
}

/// A configuration merged of several.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Merged {
    value: Value,
    /// Everything that was merged, the weakest first.
    origins: Vec<Origin>,
    leaves: Leaves,
}

/// Fields that hold something, by their paths.
type Leaves = BTreeMap<String, Leaf>;

#[derive(Debug, Clone, PartialEq)]
struct Leaf {
    /// Index of [`Merged::origins`].
    origin: usize,
    /// The same field as a JSON pointer.
    pointer: String,
}

impl Merged {
    /// The configuration: an object.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The configuration as its type.
    ///
    /// # Errors
    /// It is of another kind's type.
    pub fn get<C: DeserializeOwned>(&self) -> Result<C, serde_json::Error> {
        C::deserialize(&self.value)
    }

    /// Everything that was merged, the weakest first, whether or not something stronger replaced all it says.
    #[must_use]
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Where the field at `path`, such as `http.requestTimeout`, is from. `None`: it is not set.
    ///
    /// A list is one field, unless its items are merged: then `rules[0].default.filters` is.
    #[must_use]
    pub fn origin(&self, path: &str) -> Option<&Origin> {
        let leaf = self.leaves.get(path)?;
        Some(&self.origins[leaf.origin])
    }

    /// Every field that is set, by path: its value and where it is from.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Value, &Origin)> {
        self.leaves.iter().filter_map(|(path, leaf)| {
            let value = self.value.pointer(&leaf.pointer)?;
            Some((path.as_str(), value, &self.origins[leaf.origin]))
        })
    }

    /// The effective value for people: `http.requestTimeout 15s (MeshTimeout/slow to[0])`, one line a field.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.fields()
            .map(|(path, value, origin)| match value {
                Value::String(text) => format!("{path} {text} ({origin})"),
                other => format!("{path} {other} ({origin})"),
            })
            .collect()
    }
}

/// Merges `entries`, the weakest first.
pub(crate) fn merge<'a>(
    shape: &PolicyShape,
    entries: impl IntoIterator<Item = (Origin, &'a Value)>,
) -> Merged {
    let mut merged = Merged {
        value: Value::Object(Map::new()),
        ..Merged::default()
    };
    for (origin, default) in entries {
        let index = merged.origins.len();
        merged.origins.push(origin);
        let patch = Patch {
            lists: shape.lists,
            origin: index,
            leaves: &mut merged.leaves,
        };
        patch.apply(&mut merged.value, default);
    }
    merged
}

/// One entry that is merged.
struct Patch<'a> {
    lists: &'static [(&'static str, ListMerge)],
    origin: usize,
    leaves: &'a mut Leaves,
}

/// A place in a configuration, in the three forms in which it is named.
#[derive(Clone, Default)]
struct Place {
    path: String,
    pointer: String,
    /// The path without indexes, as lists are declared.
    declared: String,
}

impl Place {
    fn field(&self, name: &str) -> Self {
        let escaped = name.replace('~', "~0").replace('/', "~1");
        Self {
            path: path::field(&self.path, name),
            pointer: format!("{}/{escaped}", self.pointer),
            declared: path::field(&self.declared, name),
        }
    }

    fn item(&self, index: usize) -> Self {
        Self {
            path: path::item(&self.path, index),
            pointer: format!("{}/{index}", self.pointer),
            declared: self.declared.clone(),
        }
    }
}

impl Patch<'_> {
    fn apply(mut self, value: &mut Value, default: &Value) {
        let mut patch = default.clone();
        self.note(value, &mut patch, &Place::default());
        json_patch::merge(value, &patch);
    }

    /// Notes the origin of every leaf that `patch` sets at `place`, and replaces lists that are keyed or appending by what
    /// they become with the items of `before`.
    fn note(&mut self, before: &Value, patch: &mut Value, place: &Place) {
        match patch {
            Value::Object(fields) if !fields.is_empty() => {
                if before.is_object() {
                    self.leaves.remove(&place.path);
                } else {
                    self.forget(&place.path);
                }
                for (name, value) in fields {
                    let before = before.get(name).unwrap_or(&Value::Null);
                    self.note(before, value, &place.field(name));
                }
            }
            // Nothing is said of what is there.
            Value::Object(_) if before.is_object() => {}
            Value::Array(items) => {
                let mut lists = self.lists.iter();
                let declaration = lists.find(|(list, _)| *list == place.declared);
                let kept = before.as_array().map(Vec::as_slice).unwrap_or_default();
                match declaration {
                    Some((_, how)) if !items.is_empty() => {
                        *items = self.merged_list(*how, kept, std::mem::take(items), place);
                    }
                    // An empty list adds nothing to these.
                    Some(_) if before.is_array() => *items = kept.to_vec(),
                    _ => self.leaf(place),
                }
            }
            _ => self.leaf(place),
        }
    }

    fn merged_list(
        &mut self,
        how: ListMerge,
        kept: &[Value],
        items: Vec<Value>,
        place: &Place,
    ) -> Vec<Value> {
        self.leaves.remove(&place.path);
        let mut all = kept.to_vec();
        for mut item in items {
            let at = place.item(all.len());
            match how {
                ListMerge::Append => self.leaf(&at),
                ListMerge::Keyed(key) => {
                    let same = all.iter().position(|known| known.get(key) == item.get(key));
                    if let Some(index) = same {
                        if let Value::Object(fields) = &mut item {
                            fields.remove(key);
                        }
                        let before = all[index].clone();
                        self.note(&before, &mut item, &place.item(index));
                        // The item is as much the stronger policy's, which says it again.
                        self.leaf(&place.item(index).field(key));
                        json_patch::merge(&mut all[index], &item);
                        continue;
                    }
                    self.note(&Value::Null, &mut item, &at);
                }
            }
            all.push(item);
        }
        all
    }

    fn leaf(&mut self, place: &Place) {
        self.forget(&place.path);
        let leaf = Leaf {
            origin: self.origin,
            pointer: place.pointer.clone(),
        };
        self.leaves.insert(place.path.clone(), leaf);
    }

    /// Forgets the leaf at `path` and those inside, which are replaced.
    fn forget(&mut self, path: &str) {
        self.leaves.remove(path);
        if path.is_empty() {
            return;
        }
        for separator in ['.', '['] {
            let inside = format!("{path}{separator}");
            let from = self.leaves.range(inside.clone()..);
            let gone: Vec<String> = from
                .map(|(leaf, _)| leaf)
                .take_while(|leaf| leaf.starts_with(&inside))
                .cloned()
                .collect();
            for leaf in gone {
                self.leaves.remove(&leaf);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SHAPE: PolicyShape = PolicyShape {
        to: &[],
        rules: false,
        proxy: true,
        lists: &[
            ("rules", ListMerge::Keyed("matches")),
            ("rules.default.filters", ListMerge::Append),
            ("append", ListMerge::Append),
            ("a.append", ListMerge::Append),
        ],
    };

    /// Merges policies `0`, `1`, …; the value, and each field with the policy it is from.
    fn check(defaults: &[Value], value: &Value, fields: &[(&str, &str)]) {
        let entries = defaults.iter().enumerate().map(|(index, default)| {
            let key = ResourceKey::in_zone("Policy", "m", "", &index.to_string());
            let entry = Entry::Proxy;
            (Origin::Policy { key, entry }, default)
        });
        let merged = merge(&SHAPE, entries);
        assert_eq!(merged.value(), value);
        let found: Vec<(String, String)> = merged
            .fields()
            .map(|(path, _, origin)| (path.to_owned(), origin.to_string().replace("Policy/", "")))
            .collect();
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|(p, o)| (p.as_str(), o.as_str()))
            .collect();
        assert_eq!(found, fields);
        assert_eq!(merged.origins().len(), defaults.len());
    }

    #[test]
    fn nothing_comes_to_an_empty_object() {
        check(&[], &json!({}), &[]);
        check(&[json!({}), json!({})], &json!({}), &[]);
    }

    #[test]
    fn later_fields_replace_earlier_ones_and_objects_merge() {
        check(
            &[
                json!({"a": {"x": 1, "y": {"z": 2}}, "b": "1"}),
                json!({"a": {"y": {"w": 3}}}),
                json!({"a": {"x": 4}, "c": true}),
            ],
            &json!({"a": {"x": 4, "y": {"z": 2, "w": 3}}, "b": "1", "c": true}),
            &[
                ("a.x", "2"),
                ("a.y.w", "1"),
                ("a.y.z", "0"),
                ("b", "0"),
                ("c", "2"),
            ],
        );
    }

    #[test]
    fn an_empty_object_says_nothing_of_what_is_there() {
        check(
            &[
                json!({"a": {}}),
                json!({"a": {"x": 1}}),
                json!({"a": {}, "b": {}}),
            ],
            &json!({"a": {"x": 1}, "b": {}}),
            &[("a.x", "1"), ("b", "2")],
        );
    }

    #[test]
    fn what_changes_its_form_replaces_what_was_there() {
        check(
            &[
                json!({"a": {"x": {"y": 1}}}),
                json!({"a": {"x": 2}}),
                json!({"b": [1]}),
            ],
            &json!({"a": {"x": 2}, "b": [1]}),
            &[("a.x", "1"), ("b", "2")],
        );
        check(
            &[json!({"a": [1], "ab": 1}), json!({"a": {"x": 2}})],
            &json!({"a": {"x": 2}, "ab": 1}),
            &[("a.x", "1"), ("ab", "0")],
        );
    }

    #[test]
    fn lists_replace_unless_they_are_declared() {
        check(
            &[
                json!({"list": [1, 2], "append": [1], "a": {"append": [1], "rules": [1]}}),
                json!({"list": [], "append": [1, 2], "a": {"append": [], "rules": [2]}}),
            ],
            &json!({"list": [], "append": [1, 1, 2], "a": {"append": [1], "rules": [2]}}),
            &[
                ("a.append[0]", "0"),
                ("a.rules", "1"),
                ("append[0]", "0"),
                ("append[1]", "1"),
                ("append[2]", "1"),
                ("list", "1"),
            ],
        );
    }

    #[test]
    fn items_of_a_keyed_list_with_an_equal_key_are_one() {
        check(
            &[
                json!({"rules": [
                    {"matches": [{"path": "/a"}], "default": {"to": "x", "filters": [1], "weight": 1}},
                    {"matches": [{"path": "/b"}], "default": {"to": "x"}},
                ]}),
                json!({"rules": [
                    {"matches": [{"path": "/c"}], "default": {"to": "y"}},
                    {"matches": [{"path": "/a"}], "default": {"to": "y", "filters": [2]}},
                ]}),
            ],
            &json!({"rules": [
                {"matches": [{"path": "/a"}], "default": {"to": "y", "filters": [1, 2], "weight": 1}},
                {"matches": [{"path": "/b"}], "default": {"to": "x"}},
                {"matches": [{"path": "/c"}], "default": {"to": "y"}},
            ]}),
            &[
                ("rules[0].default.filters[0]", "0"),
                ("rules[0].default.filters[1]", "1"),
                ("rules[0].default.to", "1"),
                ("rules[0].default.weight", "0"),
                ("rules[0].matches", "1"),
                ("rules[1].default.to", "0"),
                ("rules[1].matches", "0"),
                ("rules[2].default.to", "1"),
                ("rules[2].matches", "1"),
            ],
        );
    }

    #[test]
    fn any_name_of_a_field_has_its_origin() {
        check(
            &[json!({"a/b": {"~c": 1, "d.e[0]": 2}, "": 3})],
            &json!({"a/b": {"~c": 1, "d.e[0]": 2}, "": 3}),
            &[
                ("[\"\"]", "0"),
                ("[\"a/b\"][\"d.e[0]\"]", "0"),
                ("[\"a/b\"][\"~c\"]", "0"),
            ],
        );
    }
}
