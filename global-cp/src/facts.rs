//! Facts of the installation that are no resources: names of system values and how they are written.
//!
//! | name | what |
//! | --- | --- |
//! | `installation-ca` | [`StoredCa`]: the bundle of CA certificates, and the sealed key of the one that issues |
//! | `join-key` | [`StoredTokenKey`]: signs join tokens |
//! | `token-key/<issuer>` | [`StoredTokenKey`]: signs the tokens of the `TokenIssuer` with that name |
//! | `guard/<kind>/<name>` | changes whenever that mesh, zone or user is created or deleted, see [`guard`] |
//! | `guard/Access/` | changes with every user, role and role binding |
//! | `history-limits` | how much of the past is kept, where somebody said so, see [`crate::state::image::HISTORY_LIMITS`] |
//! | `removed-node/<id>` | nothing: written when a node is removed, for the audit |
//! | `zone-report/<zone>` | position of the last report of a zone that was taken over |

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_proto::raft::{Operation, SetSystem, operation};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    sealing::{SealingError, SealingKey, associated_data},
    state::image::Image,
    tokens::TokenKey,
};

/// Name of the installation CA's record.
pub const INSTALLATION_CA: &str = "installation-ca";
/// Name of the join key's record.
pub const JOIN_KEY: &str = "join-key";

/// The installation CA as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoredCa {
    /// Every CA certificate that is trusted, PEM. They may overlap while the CA is rotated.
    pub bundle: String,
    /// The certificate that issues, PEM.
    pub issuer: String,
    /// Its key (PEM), sealed, in base64.
    pub sealed_key: String,
}

/// A key that signs tokens, as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoredTokenKey {
    /// Names the key.
    pub kid: String,
    /// PEM, SubjectPublicKeyInfo.
    pub public_key: String,
    /// The private key (PEM), sealed, in base64.
    pub sealed_key: String,
}

/// Why a fact could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FactError {
    /// It is not there.
    #[error("the installation has no {0:?}: its first node has not finished its first start")]
    Missing(String),
    /// It is there and makes no sense.
    #[error("the installation's {name:?} is damaged: {reason}")]
    Damaged {
        /// Which.
        name: String,
        /// How.
        reason: String,
    },
    /// Its secret part does not open.
    #[error(transparent)]
    Sealed(#[from] SealingError),
}

/// Name of the record of an issuer's private key.
#[must_use]
pub fn token_key_name(issuer: &str) -> String {
    format!("token-key/{issuer}")
}

/// Name of the record that a node was removed.
#[must_use]
pub fn removed_node_name(id: u64) -> String {
    format!("removed-node/{id}")
}

/// Name of the record of a zone's last report.
#[must_use]
pub fn zone_report_name(zone: &str) -> String {
    format!("zone-report/{zone}")
}

/// Name of a guard: a value that is replaced whenever the mesh or zone `name` is created or deleted. An entry that
/// depends on one being there compares it, so that nothing is ever put into a mesh that was deleted meanwhile.
#[must_use]
pub fn guard_name(kind: &str, name: &str) -> String {
    format!("guard/{kind}/{name}")
}

/// The operation that refuses the entry unless the guard is what `image` says.
#[must_use]
pub fn guard(image: &Image, kind: &str, name: &str) -> Operation {
    let name = guard_name(kind, name);
    let value = image.system(&name).unwrap_or_default();
    set(&name, value.clone(), Some(value))
}

/// Writes a fact, if it is `expect` before (where given; the empty value stands for a fact that is not there).
#[must_use]
pub fn set(name: &str, value: Vec<u8>, expect: Option<Vec<u8>>) -> Operation {
    Operation {
        operation: Some(operation::Operation::SetSystem(SetSystem {
            name: name.to_owned(),
            value,
            expect,
        })),
    }
}

/// Reads the record of a token key.
///
/// # Errors
/// Where it is missing or damaged.
pub fn stored_token_key(image: &Image, name: &str) -> Result<StoredTokenKey, FactError> {
    read(image, name)
}

/// Reads the record of the installation CA.
///
/// # Errors
/// Where it is missing or damaged.
pub fn stored_ca(image: &Image) -> Result<StoredCa, FactError> {
    read(image, INSTALLATION_CA)
}

fn read<T: serde::de::DeserializeOwned>(image: &Image, name: &str) -> Result<T, FactError> {
    let bytes = image
        .system(name)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| FactError::Missing(name.to_owned()))?;
    serde_json::from_slice(&bytes).map_err(|error| FactError::Damaged {
        name: name.to_owned(),
        reason: error.to_string(),
    })
}

/// The text of a record.
#[must_use]
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records hold only texts")
}

/// Seals the secret part of the record `name`.
///
/// # Errors
/// Where the system gives no randomness.
pub fn seal_secret(sealing: &SealingKey, name: &str, secret: &str) -> Result<String, SealingError> {
    let sealed = sealing.seal(&associated_data("", "System", name), secret.as_bytes())?;
    Ok(STANDARD.encode(sealed))
}

/// Opens the secret part of the record `name`.
///
/// # Errors
/// Where it does not open.
pub fn open_secret(
    sealing: &SealingKey,
    name: &str,
    sealed: &str,
) -> Result<Zeroizing<String>, FactError> {
    let damaged = |reason: &str| FactError::Damaged {
        name: name.to_owned(),
        reason: reason.to_owned(),
    };
    let sealed = STANDARD
        .decode(sealed)
        .map_err(|_| damaged("its sealed part is not base64"))?;
    let opened = sealing.open(&associated_data("", "System", name), &sealed)?;
    let text = std::str::from_utf8(&opened).map_err(|_| damaged("its sealed part is no text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// The record of a token key, under `name`.
///
/// # Errors
/// Where the system gives no randomness.
pub fn seal_token_key(
    sealing: &SealingKey,
    name: &str,
    key: &TokenKey,
) -> Result<StoredTokenKey, SealingError> {
    Ok(StoredTokenKey {
        kid: key.kid.clone(),
        public_key: key.public_pem.clone(),
        sealed_key: seal_secret(sealing, name, &key.private_pem)?,
    })
}

/// The token key that is stored under `name`, ready to sign.
///
/// # Errors
/// Where it is missing, damaged, or does not open.
pub fn open_token_key(
    image: &Image,
    sealing: &SealingKey,
    name: &str,
) -> Result<TokenKey, FactError> {
    let stored: StoredTokenKey = read(image, name)?;
    Ok(TokenKey {
        private_pem: open_secret(sealing, name, &stored.sealed_key)?,
        kid: stored.kid,
        public_pem: stored.public_key,
    })
}
