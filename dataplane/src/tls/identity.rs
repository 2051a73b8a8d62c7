//! The proxy's own certificate and key, ready for handshakes.

use std::sync::Arc;

use mesh_proto::spiffe::SpiffeId;
use mesh_runtime::pki::{self, KeyPair, PkiError};
use rustls::{crypto::aws_lc_rs, sign::CertifiedKey};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

/// The proxy's own certificate and key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Who it says the proxy is.
    pub spiffe_id: SpiffeId,
    /// In the form rustls takes.
    pub key: Arc<CertifiedKey>,
    /// From when it counts.
    pub not_before: OffsetDateTime,
    /// Until when it counts.
    pub not_after: OffsetDateTime,
}

/// Why a certificate can not be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidIdentity {
    /// No chain.
    #[error("the certificate chain is empty")]
    Empty,
    /// The leaf is malformed.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The key is not the leaf's, or of no kind that TLS takes.
    #[error("certificate and key do not belong together: {0}")]
    Key(rustls::Error),
    /// The leaf says somebody else.
    #[error("the certificate is for {found}, {wanted} was asked for")]
    Other {
        /// Who was asked for.
        wanted: SpiffeId,
        /// What the certificate says.
        found: String,
    },
}

impl Identity {
    /// Joins a chain (leaf first) and its key.
    ///
    /// # Errors
    /// Where they do not belong together, or the chain is not for `spiffe_id`.
    pub fn new(
        spiffe_id: &SpiffeId,
        chain: Vec<CertificateDer<'static>>,
        key: &KeyPair,
    ) -> Result<Self, InvalidIdentity> {
        let leaf = chain.first().ok_or(InvalidIdentity::Empty)?;
        let (not_before, not_after) = pki::validity(leaf)?;
        let found = mesh_runtime::tls::spiffe_id(leaf).map_err(InvalidIdentity::Key)?;
        if found != *spiffe_id {
            return Err(InvalidIdentity::Other {
                wanted: spiffe_id.clone(),
                found: found.to_string(),
            });
        }
        let key = aws_lc_rs::sign::any_supported_type(&pki::private_key(key))
            .map_err(InvalidIdentity::Key)?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(InvalidIdentity::Key)?;
        Ok(Self {
            spiffe_id: found,
            key: Arc::new(key),
            not_before,
            not_after,
        })
    }

    /// True where no peer would accept it at `now`: it is never used then.
    #[must_use]
    pub fn expired(&self, now: OffsetDateTime) -> bool {
        now >= self.not_after
    }
}
