//! How rules report what is wrong: by field, all of it, without knowing the text the fields came from.

use std::{collections::BTreeMap, fmt::Display, net::IpAddr};

use mesh_proto::names;

use crate::{
    labels::{self, Labels},
    path,
};

/// Collects what is wrong with one resource.
///
/// Paths are as people write them, `networking.inbound[0].port`, and relative to the kind's fields: the checker puts
/// `spec.` in front where the kind has it.
#[derive(Debug)]
pub struct Checker {
    prefix: &'static str,
    stored: bool,
    found: Vec<(String, String)>,
}

impl Checker {
    /// A checker for fields that stand under `prefix` (`spec.`, or nothing).
    #[must_use]
    pub fn new(prefix: &'static str) -> Self {
        Self {
            prefix,
            stored: false,
            found: Vec::new(),
        }
    }

    /// The same for a resource that is read from a store, not from its author.
    #[must_use]
    pub fn of_stored(mut self) -> Self {
        self.stored = true;
        self
    }

    /// True for a resource that is read from a store, not from its author.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.stored
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

/// Rules that several kinds share.
impl Checker {
    /// `text` must be an RFC 1035 label.
    pub fn label(&mut self, path: impl AsRef<str>, text: &str) {
        if !names::is_label(text) {
            self.add(path, names::InvalidName(text.to_owned()).to_string());
        }
    }

    /// `text` must name a port: it becomes a part of server names.
    pub fn port_name(&mut self, path: impl AsRef<str>, text: &str) {
        if text.contains('.') || !names::is_subdomain(text) {
            let message = format!(
                "{text:?} is not a port's name: use 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit"
            );
            self.add(path, message);
        }
    }

    /// `text` must be an address or a DNS name that others can connect to.
    pub fn reachable_host(&mut self, path: impl AsRef<str>, text: &str) {
        match text.parse::<IpAddr>() {
            Ok(address) => self.reachable_address(path, address),
            Err(_) if names::is_subdomain(&text.to_ascii_lowercase()) => {}
            Err(_) => self.add(
                path,
                format!("{text:?} is neither an address nor a DNS name"),
            ),
        }
    }

    /// `address` must be one that others can connect to.
    pub fn reachable_address(&mut self, path: impl AsRef<str>, address: IpAddr) {
        if address.is_unspecified() {
            let message =
                format!("{address} means every address of a host; others need one to connect to");
            self.add(path, message);
        }
    }

    /// `wanted` must be keys and values that labels can have.
    pub fn selector(&mut self, path: &str, wanted: &Labels) {
        for (key, value) in wanted {
            let at = path::field(path, key);
            if let Some(error) = labels::key_error(key) {
                self.add(&at, error);
            }
            if let Some(error) = labels::value_error(value) {
                self.add(&at, error);
            }
        }
    }

    /// No two of `items` may have the same `key`; `field` is the part of an item it is about.
    pub fn unique<T, K: Ord + Display>(
        &mut self,
        path: &str,
        field: &str,
        items: &[T],
        key: impl Fn(&T) -> Option<K>,
    ) {
        let mut seen = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            let Some(key) = key(item) else { continue };
            match seen.get(&key) {
                None => {
                    seen.insert(key, index);
                }
                Some(first) => self.add(
                    format!("{path}[{index}]{field}"),
                    format!("{key} is already taken by {}{path}[{first}]", self.prefix),
                ),
            }
        }
    }
}
