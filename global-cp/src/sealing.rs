//! Sealed values: what reaches the Raft log, a disk or a backup only encrypted (invariant 7).
//!
//! Each value has its own data key (DEK), which is wrapped by the sealing key (KEK). The sealing key lies in one file
//! on every node's data disk and travels to a new node only over the pinned TLS of its join. What a value belongs to
//! is authenticated with it, so that a sealed value moved to another resource does not open.

use std::path::Path;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac, rand,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_proto::raft::Sealed;
use prost::Message as _;
use zeroize::Zeroizing;

/// The only version of the format so far.
const VERSION: u32 = 1;
const KEY_LEN: usize = 32;
const FILE_HEAD: &str = "isthmus-sealing-key-v1";

/// The key that wraps the keys of sealed values (KEK).
#[derive(Clone)]
pub struct SealingKey {
    id: String,
    bytes: Zeroizing<[u8; KEY_LEN]>,
}

/// Why a value could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    /// Not the envelope that [`SealingKey::seal`] makes.
    #[error("the sealed value of {0} is damaged: it is not in the form of a sealed value")]
    Form(String),
    /// A newer version sealed it.
    #[error(
        "the sealed value of {what} has format version {version}, which this version does not know; upgrade this node"
    )]
    Version {
        /// What the value belongs to.
        what: String,
        /// The format version found.
        version: u32,
    },
    /// Another key sealed it.
    #[error(
        "{what} was sealed with key {wanted}, but this node's sealing.key is {have}; copy the file sealing.key from another node of this installation"
    )]
    OtherKey {
        /// What the value belongs to.
        what: String,
        /// Id of the key that is needed.
        wanted: String,
        /// Id of the key at hand.
        have: String,
    },
    /// The authentication failed.
    #[error(
        "the sealed value of {0} does not open: it was changed, or belongs to another resource"
    )]
    Authentication(String),
    /// The operating system gave no randomness, or the cipher failed.
    #[error("could not seal {0}: no randomness")]
    Random(String),
}

/// Why the sealing key could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What happened.
        source: std::io::Error,
    },
    /// The content does not fit its own id.
    #[error(
        "{0} is damaged; copy it from another node of this installation, or from a backup of it"
    )]
    Damaged(String),
}

/// What a sealed value belongs to: the associated data of its encryption.
#[must_use]
pub fn associated_data(mesh: &str, kind: &str, name: &str) -> String {
    format!("{mesh}/{kind}/{name}")
}

impl SealingKey {
    /// A new random key.
    ///
    /// # Errors
    /// Where the operating system gives no randomness.
    pub fn generate() -> Result<Self, SealingError> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        rand::fill(bytes.as_mut()).map_err(|_| SealingError::Random("the sealing key".into()))?;
        Ok(Self::from_array(bytes))
    }

    /// The key with these bytes. `None`: not 32 of them.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_array(Zeroizing::new(bytes.try_into().ok()?)))
    }

    fn from_array(bytes: Zeroizing<[u8; KEY_LEN]>) -> Self {
        let mut labelled = Zeroizing::new(b"isthmus sealing key id\0".to_vec());
        labelled.extend_from_slice(bytes.as_ref());
        let id = mesh_proto::document::hex_sha256(&labelled)[..16].to_owned();
        Self { id, bytes }
    }

    /// Tells keys apart; derived from the key, and nothing can be learned from it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The raw key, for the join of a new node.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// Writes the key to a file that only its owner can read.
    ///
    /// # Errors
    /// Where the file can not be written.
    pub fn save(&self, path: &Path) -> Result<(), KeyFileError> {
        let text = Zeroizing::new(format!(
            "{FILE_HEAD} {} {}\n",
            self.id,
            STANDARD.encode(self.bytes.as_ref())
        ));
        mesh_runtime::files::write_atomic(path, text.as_bytes(), 0o600).map_err(|source| {
            KeyFileError::Io {
                path: path.display().to_string(),
                source,
            }
        })
    }

    /// Reads what [`SealingKey::save`] wrote. `Ok(None)`: there is no such file.
    ///
    /// # Errors
    /// Where the file can not be read or is damaged.
    pub fn load(path: &Path) -> Result<Option<Self>, KeyFileError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(KeyFileError::Io {
                    path: path.display().to_string(),
                    source,
                });
            }
        };
        let damaged = || KeyFileError::Damaged(path.display().to_string());
        let words: Vec<&str> = text.split_whitespace().collect();
        let [FILE_HEAD, id, key] = words.as_slice() else {
            return Err(damaged());
        };
        let bytes = Zeroizing::new(STANDARD.decode(key).map_err(|_| damaged())?);
        let key = Self::from_bytes(&bytes).ok_or_else(damaged)?;
        if key.id != *id {
            return Err(damaged());
        }
        Ok(Some(key))
    }

    /// Tells contents apart without telling anything about them to who has not the key.
    #[must_use]
    pub fn fingerprint(&self, content: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.bytes.as_ref());
        let mut context = hmac::Context::with_key(&key);
        context.update(b"isthmus request fingerprint\0");
        context.update(content);
        let tag = context.sign();
        tag.as_ref()[..16]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    }

    /// Seals `value`, which belongs to `what` (see [`associated_data`]).
    ///
    /// # Errors
    /// Where the operating system gives no randomness.
    pub fn seal(&self, what: &str, value: &[u8]) -> Result<Vec<u8>, SealingError> {
        let failed = || SealingError::Random(what.to_owned());
        let mut dek = Zeroizing::new([0; KEY_LEN]);
        rand::fill(dek.as_mut()).map_err(|_| failed())?;
        let (wrap_nonce, wrapped) =
            encrypt(&self.bytes, &wrap_aad(what), dek.as_ref()).ok_or_else(failed)?;
        let (nonce, ciphertext) = encrypt(&dek, what, value).ok_or_else(failed)?;
        Ok(Sealed {
            version: VERSION,
            kek_id: self.id.clone(),
            wrapped_dek: [wrap_nonce.as_slice(), &wrapped].concat(),
            nonce,
            ciphertext,
        }
        .encode_to_vec())
    }

    /// Opens what [`SealingKey::seal`] made for the same `what`.
    ///
    /// # Errors
    /// Where it does not open; the error says why and what to do.
    pub fn open(&self, what: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        let form = || SealingError::Form(what.to_owned());
        let refused = || SealingError::Authentication(what.to_owned());
        let sealed = Sealed::decode(sealed).map_err(|_| form())?;
        if sealed.version != VERSION {
            return Err(SealingError::Version {
                what: what.to_owned(),
                version: sealed.version,
            });
        }
        if sealed.kek_id != self.id {
            return Err(SealingError::OtherKey {
                what: what.to_owned(),
                wanted: sealed.kek_id,
                have: self.id.clone(),
            });
        }
        let (wrap_nonce, wrapped) = sealed
            .wrapped_dek
            .split_at_checked(NONCE_LEN)
            .ok_or_else(form)?;
        let dek = decrypt(&self.bytes, &wrap_aad(what), wrap_nonce, wrapped).ok_or_else(refused)?;
        let dek: Zeroizing<[u8; KEY_LEN]> =
            Zeroizing::new(dek.as_slice().try_into().map_err(|_| form())?);
        decrypt(&dek, what, &sealed.nonce, &sealed.ciphertext).ok_or_else(refused)
    }
}

/// Shows the id only.
impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealingKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A wrapped key is not to be mistaken for a value.
fn wrap_aad(what: &str) -> String {
    format!("key of {what}")
}

fn cipher(key: &[u8; KEY_LEN]) -> Option<LessSafeKey> {
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?))
}

fn encrypt(key: &[u8; KEY_LEN], aad: &str, value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).ok()?;
    let mut buffer = value.to_vec();
    cipher(key)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad.as_bytes()),
            &mut buffer,
        )
        .ok()?;
    Some((nonce.to_vec(), buffer))
}

fn decrypt(
    key: &[u8; KEY_LEN],
    aad: &str,
    nonce: &[u8],
    ciphertext: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    let length = cipher(key)?
        .open_in_place(
            Nonce::try_assume_unique_for_key(nonce).ok()?,
            Aad::from(aad.as_bytes()),
            buffer.as_mut_slice(),
        )
        .ok()?
        .len();
    buffer.truncate(length);
    Some(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_only_where_it_belongs_and_with_its_key() {
        let key = SealingKey::generate().unwrap();
        let what = associated_data("pay", "Secret", "db");
        let sealed = key.seal(&what, b"hunter2").unwrap();
        assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
        assert_eq!(key.open(&what, &sealed).unwrap().as_slice(), b"hunter2");
        assert!(matches!(
            key.open(&associated_data("ana", "Secret", "db"), &sealed),
            Err(SealingError::Authentication(_))
        ));
        assert!(matches!(
            SealingKey::generate().unwrap().open(&what, &sealed),
            Err(SealingError::OtherKey { .. })
        ));
    }

    #[test]
    fn no_changed_byte_goes_unnoticed() {
        let key = SealingKey::generate().unwrap();
        let sealed = key.seal("x", b"value").unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open("x", &changed).is_err(), "byte {at}");
            assert!(key.open("x", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_key_file_is_private_and_notices_damage() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sealing.key");
        assert!(SealingKey::load(&path).unwrap().is_none());
        let key = SealingKey::generate().unwrap();
        key.save(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let back = SealingKey::load(&path).unwrap().unwrap();
        assert_eq!(back.bytes(), key.bytes());
        let text = std::fs::read_to_string(&path).unwrap();
        let at = text.len() - 10;
        let mut damaged = text.into_bytes();
        damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
        std::fs::write(&path, damaged).unwrap();
        assert!(matches!(
            SealingKey::load(&path),
            Err(KeyFileError::Damaged(_))
        ));
        assert!(!format!("{key:?}").contains(&STANDARD.encode(key.bytes())));
    }
}
