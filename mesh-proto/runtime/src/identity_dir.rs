//! A process's key, certificate and anchors on disk: `key.pem`, `cert.pem`, `ca.pem`, for its owner only.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustls_pki_types::CertificateDer;

use crate::{
    files,
    pki::{self, KeyPair, PkiError},
    tls::LocalIdentity,
};

/// Why an identity is not read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {source}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: PkiError,
    },
    /// Key and certificate do not belong together.
    #[error("{0}: key and certificate do not belong together; join again to get new ones")]
    Mismatch(PathBuf),
}

/// Key, certificate chain (leaf first) and anchors of one process.
pub struct StoredIdentity {
    /// The private key.
    pub key: KeyPair,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The bundle of CAs that the process trusts.
    pub anchors: Vec<CertificateDer<'static>>,
}

impl StoredIdentity {
    /// Reads the identity in `directory`. `None`: there is none yet.
    ///
    /// # Errors
    /// Where the files can not be read or do not hold what they should.
    pub fn load(directory: &Path) -> Result<Option<Self>, IdentityError> {
        let key_path = directory.join("key.pem");
        let Some(key) = read(&key_path)? else {
            return Ok(None);
        };
        let (cert_path, ca_path) = (directory.join("cert.pem"), directory.join("ca.pem"));
        let (Some(chain), Some(anchors)) = (read(&cert_path)?, read(&ca_path)?) else {
            return Ok(None);
        };
        let content = |path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Content { path, source }
        };
        Ok(Some(Self {
            key: KeyPair::from_pem(&key)
                .map_err(PkiError::from)
                .map_err(content(&key_path))?,
            chain: pki::certificates_from_pem(&chain).map_err(content(&cert_path))?,
            anchors: pki::certificates_from_pem(&anchors).map_err(content(&ca_path))?,
        }))
    }

    /// Writes the identity into `directory`, which is made where it is missing.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn save(&self, directory: &Path) -> Result<(), IdentityError> {
        let pem = |certificates: &[CertificateDer<'_>]| {
            certificates.iter().map(pki::to_pem).collect::<String>()
        };
        files::ensure_private_dir(directory).map_err(|source| IdentityError::Io {
            path: directory.to_owned(),
            source,
        })?;
        // The key last: without it there is no identity, so a crash leaves none rather than half of one.
        for (name, text) in [
            ("ca.pem", pem(&self.anchors)),
            ("cert.pem", pem(&self.chain)),
            ("key.pem", self.key.serialize_pem()),
        ] {
            let path = directory.join(name);
            files::write_atomic(&path, text.as_bytes(), 0o600)
                .map_err(|source| IdentityError::Io { path, source })?;
        }
        Ok(())
    }

    /// Presents this identity from the next handshake on. The CA goes with the chain, so that a peer that knows only
    /// its pin can find it.
    ///
    /// # Errors
    /// Where key and certificate do not belong together.
    pub fn present(&self, identity: &LocalIdentity, directory: &Path) -> Result<(), IdentityError> {
        let mut chain = self.chain.clone();
        for anchor in &self.anchors {
            if !chain.contains(anchor) {
                chain.push(anchor.clone());
            }
        }
        identity
            .set(chain, &pki::private_key(&self.key))
            .map_err(|_| IdentityError::Mismatch(directory.to_owned()))
    }
}

fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::pki::{Ca, Subject};

    #[test]
    fn an_identity_is_kept_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        assert!(StoredIdentity::load(&path).unwrap().is_none());
        let now = OffsetDateTime::now_utc();
        let ca = Ca::self_signed("test", None, now, Duration::days(1)).unwrap();
        let key = pki::new_key().unwrap();
        let csr = pki::request(&key).unwrap();
        let leaf = ca
            .sign(&csr, &Subject::default(), now, Duration::hours(1))
            .unwrap();
        let identity = StoredIdentity {
            key,
            chain: vec![leaf],
            anchors: vec![ca.certificate().clone()],
        };
        identity.save(&path).unwrap();
        let read = StoredIdentity::load(&path).unwrap().unwrap();
        assert_eq!(read.chain, identity.chain);
        read.present(&LocalIdentity::none(), &path).unwrap();

        let stranger = StoredIdentity {
            key: pki::new_key().unwrap(),
            ..read
        };
        assert!(matches!(
            stranger.present(&LocalIdentity::none(), &path),
            Err(IdentityError::Mismatch(_))
        ));
    }
}
