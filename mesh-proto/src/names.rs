//! RFC 1035 labels, which name meshes, zones and services.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// Why a text is not a label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name: use 1 to 63 lower-case letters, digits and '-', beginning with a letter and not ending with '-'"
)]
pub struct InvalidName(pub String);

/// True where `text` is a lower-case RFC 1035 label: 1 to 63 of `a-z`, `0-9`, `-`, a letter first, no `-` last.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// True where `text` may name any other resource: 1 to 253 of `a-z`, `0-9`, `-`, `.`, beginning and ending with a
/// letter or digit (an RFC 1123 subdomain, as Kubernetes has it).
#[must_use]
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|part| {
            let b = part.as_bytes();
            (1..=63).contains(&b.len())
                && b[0] != b'-'
                && b[b.len() - 1] != b'-'
                && b.iter()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
        })
}

macro_rules! label_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if is_label(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidName(text.to_owned()))
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

label_type!(
    /// The name of a mesh: a tenant.
    MeshName
);
label_type!(
    /// The name of a zone: one Kubernetes cluster, or one set of machines.
    ZoneName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_rfc_1035() {
        for good in ["a", "web-1", &"a".repeat(63)] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "1a", "-a", "a-", "A", "a.b", "a_b", &"a".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
    }

    #[test]
    fn subdomains_may_hold_dots_and_begin_with_digits() {
        assert!(is_subdomain("1.web-01"));
        assert!(!is_subdomain("a..b"));
        assert!(!is_subdomain(""));
    }
}
