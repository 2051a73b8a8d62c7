//! A document's version: the hash of its content.

use prost::Message;

use crate::proxy::{Document, document::Body};

/// Builds a document and stamps its version.
///
/// Equal arguments give equal bytes on every machine: prost encodes fields in order of their numbers and no message
/// of `proxy.proto` holds a map.
#[must_use]
pub fn seal(name: String, required_features: Vec<String>, body: Body) -> Document {
    let mut document = Document {
        name,
        version: String::new(),
        required_features,
        body: Some(body),
    };
    document.version = version_of(&document);
    document
}

/// The version that `document` should carry: lower-case hex SHA-256 of its encoding without the version.
#[must_use]
pub fn version_of(document: &Document) -> String {
    let unversioned = Document {
        version: String::new(),
        ..document.clone()
    };
    hex_sha256(&unversioned.encode_to_vec())
}

/// Lower-case hex SHA-256 of `bytes`.
#[must_use]
pub fn hex_sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Name of the document that carries listeners and inbound policy.
pub const PROXY: &str = "proxy";
/// Name of the document that carries trust anchors.
pub const TRUST: &str = "trust";
/// Name of the document that tells an ingress what to forward.
pub const INGRESS: &str = "ingress";

/// Name of the document for one port of a service. `zone` restricts it to the service in that zone.
#[must_use]
pub fn service_document_name(service: &str, port: u16, zone: Option<&str>) -> String {
    match zone {
        None => format!("service/{service}:{port}"),
        Some(zone) => format!("service/{service}.{zone}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::Trust;

    #[test]
    fn a_version_is_the_hash_of_the_content_and_ignores_itself() {
        let body = Body::Trust(Trust::default());
        let a = seal(TRUST.into(), vec![], body.clone());
        let b = seal(TRUST.into(), vec![], body.clone());
        assert_eq!(a, b);
        assert_eq!(a.version, version_of(&a));
        let c = seal(TRUST.into(), vec!["x".into()], body);
        assert_ne!(a.version, c.version);
    }
}
