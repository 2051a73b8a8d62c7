//! How rules report what is wrong: by field, all of it, without knowing the text the fields came from.

use std::{collections::BTreeMap, fmt::Display, net::IpAddr};

use http::Uri;
use mesh_proto::{
    http_match::{self, InvalidMatch},
    names,
};

use crate::{
    duration::Duration,
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

    /// `text` must be a regular expression (RE2's syntax) that proxies can use.
    pub fn regex(&mut self, path: impl AsRef<str>, text: &str) {
        if let Err(InvalidMatch::Regex(reason)) = http_match::whole(text) {
            self.add(path, format!("is not a regular expression: {reason}"));
        }
    }

    /// `duration` must not be zero.
    pub fn positive(&mut self, path: impl AsRef<str>, duration: Option<Duration>) {
        if duration.is_some_and(|duration| duration.0.is_zero()) {
            self.add(path, "must be longer than 0s");
        }
    }

    /// `text` must be the path of an HTTP request.
    pub fn absolute_path(&mut self, path: impl AsRef<str>, text: &str) {
        let is_visible = |b: u8| b.is_ascii_graphic() && b != b'?' && b != b'#';
        if !text.starts_with('/') {
            self.add(path, "must begin with '/'");
        } else if !text.bytes().all(is_visible) {
            self.add(path, "must be a path, without query, fragment and spaces");
        }
    }

    /// `text` must be the path of a file.
    pub fn file_path(&mut self, path: impl AsRef<str>, text: &str) {
        let names_a_file = text.starts_with('/') && !text.ends_with('/');
        if !names_a_file || text.contains('\0') {
            let message = format!("{text:?} is not the absolute path of a file");
            self.add(path, message);
        }
    }

    /// `text` must be a URL of HTTP.
    pub fn http_url(&mut self, path: impl AsRef<str>, text: &str) {
        let url = text.parse::<Uri>().ok();
        let is_http = |url: &Uri| matches!(url.scheme_str(), Some("http" | "https"));
        if url.is_none_or(|url| !is_http(&url) || url.host().is_none_or(str::is_empty)) {
            let message = format!("{text:?} is not a URL, such as http://example.com:9411/path");
            self.add(path, message);
        }
    }

    /// `text` must be a host with a port.
    pub fn host_and_port(&mut self, path: impl AsRef<str>, text: &str) {
        let parts = text.rsplit_once(':');
        let good = parts.is_some_and(|(host, port)| {
            let bare = host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'));
            let is_host = match bare {
                Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
                None => names::is_subdomain(&host.to_ascii_lowercase()),
            };
            is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !good {
            let message =
                format!("{text:?} is not a host with a port, such as logs.example.com:5000");
            self.add(path, message);
        }
    }

    /// One of these fields must be given. `path` may be empty: the content as a whole.
    pub fn at_least_one(&mut self, path: &str, fields: &[(&str, bool)]) {
        if !fields.iter().any(|(_, is_given)| *is_given) {
            let fields: Vec<&str> = fields.iter().map(|(field, _)| *field).collect();
            self.add(
                path,
                format!("must have at least one of {}", fields.join(", ")),
            );
        }
    }

    /// One of these fields must be given, and no more.
    pub fn exactly_one(&mut self, path: &str, fields: &[(&str, bool)]) {
        if fields.iter().filter(|(_, is_given)| *is_given).count() != 1 {
            let fields: Vec<&str> = fields.iter().map(|(field, _)| *field).collect();
            self.add(
                path,
                format!("must have exactly one of {}", fields.join(", ")),
            );
        }
    }

    /// Of `fields`, which belong to different types of the object at `path`, only `wanted` must be given.
    pub fn only_of_type(&mut self, path: &str, wanted: &str, fields: &[(&str, bool)]) {
        for (field, is_given) in fields {
            let message = match (*field == wanted, is_given) {
                (true, false) => "is required for this type",
                (false, true) => "belongs to another type; leave it out",
                _ => continue,
            };
            self.add(format!("{path}.{field}"), message);
        }
    }

    /// No two of these paths may have the same name.
    pub fn each_once(&mut self, names: impl Iterator<Item = (String, String)>, why: &str) {
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for (path, name) in names {
            match seen.get(&name) {
                Some(first) => {
                    let message = format!("{name} is already at {}{first}; {why}", self.prefix);
                    self.add(path, message);
                }
                None => {
                    seen.insert(name, path);
                }
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
