//! Trust anchors of every trust domain that the proxy may meet.

use std::collections::BTreeMap;

use mesh_proto::{
    proxy as wire,
    spiffe::{InvalidSpiffeId, TrustDomain},
};
use rustls_pki_types::{CertificateDer, TrustAnchor};

/// Trust anchors by trust domain.
#[derive(Debug, Clone, Default)]
pub struct Trust(BTreeMap<TrustDomain, Vec<Anchor>>);

/// A CA that vouches for one trust domain.
#[derive(Debug, Clone)]
pub struct Anchor {
    /// In the form webpki takes.
    pub anchor: TrustAnchor<'static>,
    /// To find it again.
    pub key: AnchorKey,
}

/// What an anchor is known by: a hash of its subject and public key, so that a renewed certificate of the same CA key
/// is the same anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnchorKey([u8; 32]);

impl AnchorKey {
    /// The key of `anchor`.
    #[must_use]
    pub fn of(anchor: &TrustAnchor<'_>) -> Self {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        context.update(&(anchor.subject.len() as u64).to_be_bytes());
        context.update(&anchor.subject);
        context.update(&anchor.subject_public_key_info);
        let mut key = [0; 32];
        key.copy_from_slice(context.finish().as_ref());
        Self(key)
    }
}

impl Trust {
    /// The anchors of `domain`; none where it is not known.
    #[must_use]
    pub fn anchors(&self, domain: &TrustDomain) -> &[Anchor] {
        self.0.get(domain).map_or(&[], Vec::as_slice)
    }

    /// True where the anchor still vouches for `domain`.
    #[must_use]
    pub fn holds(&self, domain: &TrustDomain, key: AnchorKey) -> bool {
        self.anchors(domain).iter().any(|anchor| anchor.key == key)
    }

    /// Names of the domains.
    pub fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.0.keys()
    }
}

/// Why a trust document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidTrust {
    #[error("trust domain {0:?}: {1}")]
    Domain(String, InvalidSpiffeId),
    #[error("trust domain {0} is there twice")]
    Twice(TrustDomain),
    #[error("trust domain {0} has no anchors")]
    NoAnchors(TrustDomain),
    #[error("trust domain {0}: anchor {1} is not a CA certificate: {2}")]
    Anchor(TrustDomain, usize, String),
}

impl TryFrom<&wire::Trust> for Trust {
    type Error = InvalidTrust;

    fn try_from(wire: &wire::Trust) -> Result<Self, InvalidTrust> {
        let mut domains = BTreeMap::new();
        for entry in &wire.domains {
            let domain: TrustDomain = entry
                .name
                .parse()
                .map_err(|error| InvalidTrust::Domain(entry.name.clone(), error))?;
            if entry.anchors.is_empty() {
                return Err(InvalidTrust::NoAnchors(domain));
            }
            let anchors = entry
                .anchors
                .iter()
                .enumerate()
                .map(|(index, der)| {
                    let der = CertificateDer::from(der.as_slice());
                    let anchor = webpki::anchor_from_trusted_cert(&der)
                        .map_err(|e| InvalidTrust::Anchor(domain.clone(), index, e.to_string()))?
                        .to_owned();
                    let key = AnchorKey::of(&anchor);
                    Ok(Anchor { anchor, key })
                })
                .collect::<Result<_, _>>()?;
            if domains.insert(domain.clone(), anchors).is_some() {
                return Err(InvalidTrust::Twice(domain));
            }
        }
        Ok(Self(domains))
    }
}
