//! SPIFFE IDs (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>).

use std::{fmt, str::FromStr};

use crate::names::{MeshName, ZoneName};

/// Why a text is not a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpiffeId {
    /// Does not begin with `spiffe://`.
    #[error("a SPIFFE ID begins with \"spiffe://\"")]
    Scheme,
    /// The trust domain is empty or holds other characters than `a-z`, `0-9`, `.`, `-`, `_`.
    #[error("the trust domain of a SPIFFE ID holds only a-z, 0-9, '.', '-' and '_'")]
    TrustDomain,
    /// The path holds an empty, `.` or `..` segment or a character that is not allowed.
    #[error(
        "the path of a SPIFFE ID holds segments of letters, digits, '.', '-' and '_', none of them empty, \".\" or \"..\""
    )]
    Path,
    /// Longer than 2048 bytes.
    #[error("a SPIFFE ID has at most 2048 bytes")]
    TooLong,
}

/// A trust domain: the part of a SPIFFE ID that says whose CA vouches for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The trust domain of one mesh in one zone: `<mesh>.<zone>.mesh.local`.
    #[must_use]
    pub fn of_mesh_in_zone(mesh: &MeshName, zone: &ZoneName) -> Self {
        Self(format!("{mesh}.{zone}.mesh.local"))
    }

    /// The zone, where this is the trust domain of a mesh.
    #[must_use]
    pub fn zone_of_mesh(&self) -> Option<&str> {
        // Names of meshes and zones hold no dots.
        let (_, zone) = self.0.strip_suffix(".mesh.local")?.split_once('.')?;
        (!zone.is_empty() && !zone.contains('.')).then_some(zone)
    }

    /// The trust domain of what the control planes use among themselves.
    #[must_use]
    pub fn installation() -> Self {
        Self("isthmus.local".to_owned())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(allowed) {
            return Err(InvalidSpiffeId::TrustDomain);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SPIFFE ID: `spiffe://<trust domain>/<path>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    // Begins with '/', or is empty (the ID of the trust domain itself).
    path: String,
}

impl SpiffeId {
    /// Joins a trust domain and a path, which begins with `/`.
    ///
    /// # Errors
    /// Where the path is not one of a SPIFFE ID.
    pub fn new(trust_domain: TrustDomain, path: &str) -> Result<Self, InvalidSpiffeId> {
        format!("spiffe://{trust_domain}{path}").parse()
    }

    /// The identity of a global control plane node.
    #[must_use]
    pub fn global_node(node_id: u64) -> Self {
        Self {
            trust_domain: TrustDomain::installation(),
            path: format!("/global/{node_id}"),
        }
    }

    /// The identity of a zone control plane.
    #[must_use]
    pub fn zone(zone: &ZoneName) -> Self {
        Self {
            trust_domain: TrustDomain::installation(),
            path: format!("/zone/{zone}"),
        }
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading `/`, or the empty text.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The zone, where this is the identity of a zone control plane.
    #[must_use]
    pub fn as_zone(&self) -> Option<ZoneName> {
        self.installation_path("/zone/")?.parse().ok()
    }

    /// The node id, where this is the identity of a global control plane node.
    #[must_use]
    pub fn as_global_node(&self) -> Option<u64> {
        self.installation_path("/global/")?.parse().ok()
    }

    fn installation_path(&self, prefix: &str) -> Option<&str> {
        if self.trust_domain != TrustDomain::installation() {
            return None;
        }
        self.path.strip_prefix(prefix)
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        if text.len() > 2048 {
            return Err(InvalidSpiffeId::TooLong);
        }
        let rest = text
            .strip_prefix("spiffe://")
            .ok_or(InvalidSpiffeId::Scheme)?;
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let trust_domain = domain.parse()?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let segment_ok = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(allowed);
        if !path.is_empty() && !path[1..].split('/').all(segment_ok) {
            return Err(InvalidSpiffeId::Path);
        }
        Ok(Self {
            trust_domain,
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}{}", self.trust_domain, self.path)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_read_and_written() {
        let id: SpiffeId = "spiffe://pay.east.mesh.local/workload/web".parse().unwrap();
        assert_eq!(id.trust_domain().as_str(), "pay.east.mesh.local");
        assert_eq!(id.path(), "/workload/web");
        assert_eq!(id.to_string(), "spiffe://pay.east.mesh.local/workload/web");
    }

    #[test]
    fn only_the_trust_domain_of_a_mesh_says_a_zone() {
        let zone = |text: &str| {
            let domain: TrustDomain = text.parse().unwrap();
            domain.zone_of_mesh().map(str::to_owned)
        };
        assert_eq!(zone("pay.east.mesh.local").as_deref(), Some("east"));
        for other in [
            "isthmus.local",
            "pay.mesh.local",
            "a.b.c.mesh.local",
            "pay..mesh.local",
        ] {
            assert_eq!(zone(other), None, "{other}");
        }
    }

    #[test]
    fn what_the_standard_forbids_is_refused() {
        for bad in [
            "http://a/b",
            "spiffe://",
            "spiffe:///x",
            "spiffe://A/b",
            "spiffe://a/",
            "spiffe://a//b",
            "spiffe://a/../b",
            "spiffe://a/b?c",
            "spiffe://a:80/b",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_installation_names_zones_and_nodes() {
        let zone: ZoneName = "east".parse().unwrap();
        assert_eq!(SpiffeId::zone(&zone).as_zone(), Some(zone));
        let foreign: SpiffeId = "spiffe://evil.local/zone/east".parse().unwrap();
        assert_eq!(foreign.as_zone(), None);
        assert_eq!(SpiffeId::global_node(3).as_global_node(), Some(3));
    }

    proptest! {
        #[test]
        fn no_text_panics_the_parser(text in ".*") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
