//! The texts of tokens: made, signed and verified. Pure: time and keys are arguments.
//!
//! - API tokens are random; only a hash of their secret is stored.
//! - Dataplane, ingress and join tokens are JWTs signed with ES256. Dataplane and ingress tokens are verified by the
//!   zones, offline; join tokens here.

use std::collections::BTreeMap;

use aws_lc_rs::{constant_time, rand};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use mesh_model::api::TokenUse;
use mesh_proto::{
    document::hex_sha256,
    token::{ApiToken, USE_DATAPLANE, USE_INGRESS, USE_NODE_JOIN, USE_ZONE_JOIN},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// What a signed token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Cluster id of the installation.
    pub iss: String,
    /// The token's public id.
    pub jti: String,
    /// Unix seconds at which it was made.
    pub iat: u64,
    /// Unix seconds at which it ends.
    pub exp: u64,
    /// What it is for (see [`mesh_proto::token`]).
    #[serde(rename = "use")]
    pub usage: String,
    /// Pin of the installation CA.
    pub pin: String,
    /// Dataplane tokens: the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    /// Dataplane tokens: the only name the dataplane may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Dataplane tokens: labels the dataplane must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Zone-join and ingress tokens: the zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// Why a token could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The operating system gave no randomness.
    #[error("the system gives no randomness")]
    Random,
    /// The signing key is not what it should be.
    #[error("the token signing key is unusable: {0}")]
    Key(String),
}

/// Why a join token is refused. Each has its own words, since each has its own remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefused {
    /// Not a token at all.
    #[error("this is not a join token: make a {0} token with `meshctl token create`")]
    Malformed(&'static str),
    /// Another installation made it.
    #[error(
        "this token belongs to another installation ({0}): make one at this one, or join the other"
    )]
    Foreign(String),
    /// It is signed by something else, or was changed.
    #[error(
        "the token's signature is not this installation's: it was changed, or made by someone else"
    )]
    Signature,
    /// It is for something else.
    #[error(
        "this is a token for {found}, one for {wanted} is needed: make it with `meshctl token create`"
    )]
    WrongUse {
        /// What it is for.
        found: String,
        /// What is needed.
        wanted: &'static str,
    },
    /// Its time is over.
    #[error("this token expired {seconds} seconds ago: make a new one")]
    Expired {
        /// How long ago.
        seconds: u64,
    },
    /// It has done its work.
    #[error("this token was used already; a join token works once: make a new one")]
    Used,
    /// Somebody took it back, or what it was for is gone.
    #[error("this token was revoked: make a new one")]
    Revoked,
}

/// How far clocks may differ before an expiry counts.
const EXPIRY_LEEWAY_SECONDS: u64 = 30;

/// The word for a use, in JWTs and on the command line.
#[must_use]
pub fn use_word(usage: TokenUse) -> &'static str {
    match usage {
        TokenUse::Api => "api",
        TokenUse::Dataplane => USE_DATAPLANE,
        TokenUse::Ingress => USE_INGRESS,
        TokenUse::ZoneJoin => USE_ZONE_JOIN,
        TokenUse::NodeJoin => USE_NODE_JOIN,
    }
}

/// How long a token lives where nobody says otherwise.
#[must_use]
pub fn default_lifetime_seconds(usage: TokenUse) -> u64 {
    const HOUR: u64 = 3600;
    match usage {
        TokenUse::ZoneJoin | TokenUse::NodeJoin => HOUR,
        TokenUse::Dataplane | TokenUse::Ingress => 30 * 24 * HOUR,
        TokenUse::Api => 90 * 24 * HOUR,
    }
}

/// A new public id: short enough to read aloud, long enough never to meet another.
///
/// # Errors
/// Where the system gives no randomness.
pub fn new_id() -> Result<String, MakeError> {
    let mut bytes = [0; 8];
    rand::fill(&mut bytes).map_err(|_| MakeError::Random)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// A new API token and the hash to store of it.
///
/// # Errors
/// Where the system gives no randomness.
pub fn new_api_token(pin: &str) -> Result<(ApiToken, String), MakeError> {
    let mut secret = Zeroizing::new([0; 32]);
    rand::fill(secret.as_mut()).map_err(|_| MakeError::Random)?;
    let token = ApiToken {
        id: new_id()?,
        secret: URL_SAFE_NO_PAD.encode(secret.as_ref()),
        pin: pin.to_owned(),
    };
    let hash = secret_hash(&token.secret);
    Ok((token, hash))
}

/// What is stored of an API token's secret. A plain hash is enough: the secret has 256 random bits.
#[must_use]
pub fn secret_hash(secret: &str) -> String {
    hex_sha256(secret.as_bytes())
}

/// Whether `secret` is the one whose hash is stored, in constant time.
#[must_use]
pub fn secret_matches(secret: &str, stored_hash: &str) -> bool {
    constant_time::verify_slices_are_equal(secret_hash(secret).as_bytes(), stored_hash.as_bytes())
        .is_ok()
}

/// A key that signs tokens: ES256, with its public half as the zones get it.
pub struct TokenKey {
    /// Names the key in token headers.
    pub kid: String,
    /// PEM, PKCS#8. Sealed wherever it is stored.
    pub private_pem: Zeroizing<String>,
    /// PEM, SubjectPublicKeyInfo.
    pub public_pem: String,
}

impl TokenKey {
    /// A new key.
    ///
    /// # Errors
    /// Where the system gives no randomness.
    pub fn generate() -> Result<Self, MakeError> {
        let key = mesh_runtime::pki::new_key().map_err(|e| MakeError::Key(e.to_string()))?;
        Ok(Self {
            kid: new_id()?,
            private_pem: Zeroizing::new(key.serialize_pem()),
            public_pem: key.public_key_pem(),
        })
    }

    /// Signs `claims`.
    ///
    /// # Errors
    /// Where the key is unusable.
    pub fn sign(&self, claims: &Claims) -> Result<String, MakeError> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.kid.clone());
        EncodingKey::from_ec_pem(self.private_pem.as_bytes())
            .and_then(|key| jsonwebtoken::encode(&header, claims, &key))
            .map_err(|e| MakeError::Key(e.to_string()))
    }
}

/// The installation that a join token must be of.
#[derive(Debug, Clone, Copy)]
pub struct Issuer<'a> {
    /// Its cluster id.
    pub cluster_id: &'a str,
    /// Pins of the CAs in its bundle.
    pub pins: &'a [String],
    /// Public half of its join key, PEM.
    pub public_pem: &'a str,
}

/// Verifies a join token up to, but not including, whether it was used or revoked, which the store knows.
///
/// # Errors
/// Why it is refused.
pub fn verify_join(
    token: &str,
    wanted: TokenUse,
    issuer: Issuer<'_>,
    now: u64,
) -> Result<Claims, JoinRefused> {
    let wanted = use_word(wanted);
    let malformed = || JoinRefused::Malformed(wanted);
    let token = token.trim();
    if ApiToken::parse(token).is_some() {
        return Err(JoinRefused::WrongUse {
            found: use_word(TokenUse::Api).to_owned(),
            wanted,
        });
    }
    // What the token claims is looked at before its signature only to find the right words for a refusal.
    let claimed = unverified_claims(token).ok_or_else(malformed)?;
    if claimed.iss != issuer.cluster_id || !issuer.pins.contains(&claimed.pin) {
        return Err(JoinRefused::Foreign(shortened(&claimed.iss)));
    }
    if claimed.usage != wanted {
        return Err(JoinRefused::WrongUse {
            found: shortened(&claimed.usage),
            wanted,
        });
    }
    let key = DecodingKey::from_ec_pem(issuer.public_pem.as_bytes())
        .map_err(|_| JoinRefused::Signature)?;
    let mut validation = Validation::new(Algorithm::ES256);
    // Expiry is judged below, with our own clock argument.
    validation.validate_exp = false;
    validation.validate_aud = false;
    let claims = jsonwebtoken::decode::<Claims>(token, &key, &validation)
        .map_err(|_| JoinRefused::Signature)?
        .claims;
    if now > claims.exp.saturating_add(EXPIRY_LEEWAY_SECONDS) {
        return Err(JoinRefused::Expired {
            seconds: now - claims.exp,
        });
    }
    Ok(claims)
}

/// The claims of a token whose signature has not been looked at. `None`: not a JWT with our claims.
#[must_use]
pub fn unverified_claims(token: &str) -> Option<Claims> {
    let mut parts = token.trim().split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// Text of a stranger, for a message.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn claims(usage: TokenUse) -> Claims {
        Claims {
            iss: "cluster".into(),
            jti: "id".into(),
            iat: NOW,
            exp: NOW + 3600,
            usage: use_word(usage).into(),
            pin: "pin".into(),
            mesh: None,
            name: None,
            labels: BTreeMap::new(),
            zone: Some("east".into()),
        }
    }

    fn verify(token: &str, key: &TokenKey, now: u64) -> Result<Claims, JoinRefused> {
        let issuer = Issuer {
            cluster_id: "cluster",
            pins: &["pin".to_owned()],
            public_pem: &key.public_pem,
        };
        verify_join(token, TokenUse::ZoneJoin, issuer, now)
    }

    #[test]
    fn a_good_join_token_is_accepted_and_each_bad_one_has_its_own_words() {
        let key = TokenKey::generate().unwrap();
        let good = claims(TokenUse::ZoneJoin);
        let token = key.sign(&good).unwrap();
        assert_eq!(verify(&token, &key, NOW), Ok(good.clone()));

        let sign = |claims: Claims| key.sign(&claims).unwrap();
        let stranger = TokenKey::generate().unwrap();
        let none = {
            let mut parts: Vec<&str> = token.split('.').collect();
            let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"none"}"#);
            parts[0] = &header;
            parts[2] = "";
            parts.join(".")
        };
        let cases = [
            ("", NOW, "this is not a join token"),
            ("a.b.c", NOW, "this is not a join token"),
            ("isthmus.a.b.c", NOW, "this is a token for api"),
            (
                &sign(Claims {
                    iss: "other".into(),
                    ..good.clone()
                }),
                NOW,
                "belongs to another installation",
            ),
            (
                &sign(Claims {
                    pin: "other".into(),
                    ..good.clone()
                }),
                NOW,
                "belongs to another installation",
            ),
            (
                &stranger.sign(&good).unwrap(),
                NOW,
                "signature is not this installation's",
            ),
            (&none, NOW, "signature is not this installation's"),
            (
                &sign(claims(TokenUse::NodeJoin)),
                NOW,
                "this is a token for node-join",
            ),
            (
                &sign(claims(TokenUse::Dataplane)),
                NOW,
                "this is a token for dataplane",
            ),
            (&token, NOW + 3700, "expired 100 seconds ago"),
        ];
        for (token, now, words) in cases {
            let refused = verify(token, &key, now).unwrap_err();
            assert!(refused.to_string().contains(words), "{words}: {refused}");
        }
        // Within the tolerance for clocks.
        assert!(verify(&token, &key, NOW + 3620).is_ok());
    }

    #[test]
    fn a_changed_token_is_refused() {
        let key = TokenKey::generate().unwrap();
        let token = key.sign(&claims(TokenUse::ZoneJoin)).unwrap();
        let signature_at = token.rfind('.').unwrap();
        for at in [0, 10, token.find('.').unwrap() + 5, signature_at + 3] {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(verify(&changed, &key, NOW).is_err(), "byte {at}");
        }
    }

    #[test]
    fn an_api_token_matches_only_its_own_hash() {
        let (token, hash) = new_api_token("pin").unwrap();
        assert!(secret_matches(&token.secret, &hash));
        assert!(!secret_matches("guess", &hash));
        assert!(!hash.contains(&token.secret));
        assert_eq!(ApiToken::parse(&token.to_text()).unwrap(), token);
    }

    proptest! {
        #[test]
        fn no_text_panics_the_verifier(text in ".*") {
            let key = TokenKey::generate().unwrap();
            prop_assert!(verify(&text, &key, NOW).is_err());
        }
    }
}
