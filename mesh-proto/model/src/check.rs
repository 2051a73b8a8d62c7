//! How rules report what is wrong: by field, all of it, without knowing the text the fields came from.

/// Collects what is wrong with one resource.
///
/// Paths are as people write them, `networking.inbound[0].port`, and relative to the kind's fields: the checker puts
/// `spec.` in front where the kind has it.
#[derive(Debug)]
pub struct Checker {
    prefix: &'static str,
    found: Vec<(String, String)>,
}

impl Checker {
    /// A checker for fields that stand under `prefix` (`spec.`, or nothing).
    #[must_use]
    pub fn new(prefix: &'static str) -> Self {
        Self {
            prefix,
            found: Vec::new(),
        }
    }

    /// Reports that the field at `path` is wrong. `path` may be empty: the content as a whole.
    pub fn add(&mut self, path: impl AsRef<str>, message: impl Into<String>) {
        let path = format!("{}{}", self.prefix, path.as_ref());
        let path = path.trim_end_matches('.').to_owned();
        self.found.push((path, message.into()));
    }

    /// Reports that the envelope's field at `path` is wrong.
    pub fn add_envelope(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.found.push((path.into(), message.into()));
    }

    /// What was found: path and message, in order.
    #[must_use]
    pub fn into_found(self) -> Vec<(String, String)> {
        self.found
    }
}

/// Rules that several kinds need.
impl Checker {
    /// `text` must be an RFC 1035 label.
    pub fn label(&mut self, path: impl AsRef<str>, text: &str) {
        if !mesh_proto::names::is_label(text) {
            self.add(
                path,
                mesh_proto::names::InvalidName(text.to_owned()).to_string(),
            );
        }
    }

    /// No two of `items` may have the same `key`.
    pub fn unique<T, K: Ord + std::fmt::Display>(
        &mut self,
        path: &str,
        items: &[T],
        key: impl Fn(&T) -> Option<K>,
    ) {
        let mut seen = std::collections::BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            let Some(key) = key(item) else { continue };
            if let Some(first) = seen.get(&key) {
                self.add(
                    format!("{path}[{index}]"),
                    format!("{key} is already at {path}[{first}]"),
                );
            } else {
                seen.insert(key, index);
            }
        }
    }
}
