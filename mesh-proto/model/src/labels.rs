//! Labels: their syntax, subset match, well-known keys, and the aliases of key prefixes.

use std::{borrow::Cow, collections::BTreeMap};

/// The service a dataplane belongs to; a `MeshService` of this name is generated.
pub const SERVICE: &str = "isthmus.io/service";
/// The workload a dataplane is an instance of; its identity is made from it.
pub const WORKLOAD: &str = "isthmus.io/workload";
/// A zone, in selectors and references.
pub const ZONE: &str = "isthmus.io/zone";
/// Who owns a resource: `global`, or the zone's name. Shown, never written.
pub const ORIGIN: &str = "isthmus.io/origin";
/// The name of a resource as its author gave it, in references to it; where it is not given, the name.
pub const DISPLAY_NAME: &str = "isthmus.io/display-name";
/// The Kubernetes namespace a resource lives in.
pub const NAMESPACE: &str = "k8s.isthmus.io/namespace";
/// Whose a policy is: `system`, `producer`, `consumer` or `workload-owner`.
pub const POLICY_ROLE: &str = "isthmus.io/policy-role";
/// Who made a resource, where no person did.
pub const MANAGED_BY: &str = "isthmus.io/managed-by";

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// True where `labels` has every pair of `wanted`. Nothing wanted: true.
#[must_use]
pub fn matches(wanted: &Labels, labels: &Labels) -> bool {
    wanted.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// The key as we write it: Kuma's prefixes are accepted as aliases of ours.
#[must_use]
pub fn canonical_key(key: &str) -> Cow<'_, str> {
    for (alias, ours) in [
        ("kuma.io/", "isthmus.io/"),
        ("k8s.kuma.io/", "k8s.isthmus.io/"),
    ] {
        if let Some(rest) = key.strip_prefix(alias) {
            return Cow::Owned(format!("{ours}{rest}"));
        }
    }
    Cow::Borrowed(key)
}

/// Why `key` can not be a label's key, where it can not (Kubernetes' rules).
#[must_use]
pub fn key_error(key: &str) -> Option<&'static str> {
    let (prefix, name) = match key.rsplit_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|p| !mesh_proto::names::is_subdomain(p)) {
        return Some("the part of a label's key before '/' is a lower-case DNS name");
    }
    if name.is_empty() || !is_label_text(name) {
        return Some(
            "a label's key has 1 to 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
        );
    }
    None
}

/// Why `value` can not be a label's value, where it can not (Kubernetes' rules).
#[must_use]
pub fn value_error(value: &str) -> Option<&'static str> {
    (!is_label_text(value)).then_some(
        "a label's value has at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
    )
}

/// Empty, or as the messages above say.
fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends_well = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && ends_well(bytes.first())
        && ends_well(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kumas_prefixes_are_aliases_of_ours() {
        for (key, canonical) in [
            ("kuma.io/service", "isthmus.io/service"),
            ("k8s.kuma.io/namespace", "k8s.isthmus.io/namespace"),
            ("other.kuma.io/x", "other.kuma.io/x"),
            ("kuma.io", "kuma.io"),
            ("app", "app"),
        ] {
            assert_eq!(canonical_key(key), canonical);
        }
    }

    #[test]
    fn labels_are_kubernetes_labels() {
        for good in ["app", "a.b/c_D-1", "9"] {
            assert_eq!(key_error(good), None, "{good}");
        }
        for bad in ["", "/a", "a/", "A/a", "a/b/c", "-a", "a b", &"a".repeat(64)] {
            assert!(key_error(bad).is_some(), "{bad}");
        }
        for good in ["", "a", "A.b_c-1"] {
            assert_eq!(value_error(good), None, "{good}");
        }
        for bad in ["-a", "a-", "a,b", "é"] {
            assert!(value_error(bad).is_some(), "{bad}");
        }
    }
}
