//! Tokens of dataplanes and ingresses, verified offline. Pure: keys and time are arguments.
//!
//! Only ES256 counts, whatever a token's header says, and only a key of exactly the mesh (or zone) that the token
//! claims. Each refusal has its own words, because each has its own remedy.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use mesh_proto::{
    names::ZoneName,
    token::{USE_DATAPLANE, USE_INGRESS},
};
use serde::Deserialize;

/// How far clocks may differ before a time counts.
pub const LEEWAY_SECONDS: u64 = 120;

/// Who issues tokens, by what the issuer is named after: a mesh, or `zone.<zone>` for ingresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Issuers(pub BTreeMap<String, Issuer>);

/// The keys that sign the tokens of one mesh, or of one zone's ingresses, and what was taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Issuer {
    /// Public keys (PEM, SubjectPublicKeyInfo) by key id.
    pub keys: BTreeMap<String, String>,
    /// Ids of revoked tokens.
    pub revoked: BTreeSet<String>,
}

/// Name of the issuer of a zone's ingress tokens.
#[must_use]
pub fn ingress_issuer(zone: &ZoneName) -> String {
    format!("zone.{zone}")
}

/// What the holder of a token wants to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bearer<'a> {
    /// A sidecar with the Dataplane resource of this mesh, name and labels.
    Dataplane {
        /// Its mesh.
        mesh: &'a str,
        /// Its name.
        name: &'a str,
        /// Its labels.
        labels: &'a BTreeMap<String, String>,
    },
    /// An ingress of the zone, with this name.
    Ingress {
        /// Its name.
        name: &'a str,
    },
}

/// A token that was accepted; kept to end the stream when it is revoked or ends.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct Accepted {
    /// Whose keys signed it (see [`Issuers`]).
    pub issuer: String,
    /// Its public id.
    pub id: String,
    /// The key that signed it.
    pub kid: String,
    /// Unix seconds at which it ends.
    pub expires: u64,
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is none.
    #[error(
        "no token was presented: give the dataplane one with --token-file (make one with `meshctl token create dataplane -m MESH`)"
    )]
    Missing,
    /// Not a token of ours at all.
    #[error("what was presented is not a dataplane or ingress token")]
    Malformed,
    /// Signed by another algorithm, or not signed.
    #[error("the token says it is signed by {0:?}; only ES256 is accepted")]
    Algorithm(String),
    /// It is for something else.
    #[error(
        "this is a token for use {found:?}; {wanted:?} is needed here: make one with `meshctl token create {wanted}`"
    )]
    WrongUse {
        /// What it is for.
        found: String,
        /// What is needed.
        wanted: &'static str,
    },
    /// It is for another mesh.
    #[error(
        "the token is for mesh {token:?}, the dataplane asks for mesh {asked:?}: a dataplane enters only the mesh its token names"
    )]
    WrongMesh {
        /// The token's mesh.
        token: String,
        /// The resource's mesh.
        asked: String,
    },
    /// It is for another zone.
    #[error("the token is for zone {token:?}, this is zone {here:?}")]
    WrongZone {
        /// The token's zone.
        token: String,
        /// This zone.
        here: String,
    },
    /// No keys are known for the mesh or zone it names.
    #[error(
        "no keys for tokens of {0:?} are known in this zone: does the mesh exist, and is it placed in this zone?"
    )]
    UnknownIssuer(String),
    /// Signed by a key that is not one of the mesh's.
    #[error(
        "the token is signed by key {kid:?}, which is not one of {issuer:?}'s keys (was it withdrawn?): make a new token"
    )]
    UnknownKey {
        /// The key's id.
        kid: String,
        /// Whose keys were looked at.
        issuer: String,
    },
    /// The signature does not fit.
    #[error("the token's signature is wrong: it was changed, or made by someone else")]
    Signature,
    /// Made in the future.
    #[error(
        "the token was made {seconds} s in the future by this zone's clock: compare the clocks of this machine and of global"
    )]
    NotYet {
        /// How far.
        seconds: u64,
    },
    /// Its time is over.
    #[error("the token expired {seconds} s ago: make a new one with `meshctl token create`")]
    Expired {
        /// How long ago.
        seconds: u64,
    },
    /// Somebody took it back.
    #[error("the token was revoked")]
    Revoked,
    /// It is for another name.
    #[error("the token is for the name {token:?} only, the dataplane's is {asked:?}")]
    Name {
        /// The token's.
        token: String,
        /// The resource's.
        asked: String,
    },
    /// It wants other labels.
    #[error("the token is for dataplanes with label {label}={wanted:?}, this one has {found}")]
    Label {
        /// The label.
        label: String,
        /// The value that the token wants.
        wanted: String,
        /// What the resource has, in words.
        found: String,
    },
}

/// Never logged whole: no `Debug`.
#[derive(Deserialize)]
struct Claims {
    jti: String,
    #[serde(default)]
    iat: u64,
    exp: u64,
    #[serde(rename = "use")]
    usage: String,
    mesh: Option<String>,
    name: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    zone: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

/// Verifies `token` for `bearer` in `zone` at `now` (Unix seconds).
///
/// # Errors
/// Why it is refused.
pub fn verify(
    token: &str,
    bearer: Bearer<'_>,
    issuers: &Issuers,
    zone: &ZoneName,
    now: u64,
) -> Result<Accepted, Refused> {
    let token = token.trim();
    if token.is_empty() {
        return Err(Refused::Missing);
    }
    // Looked at before the signature is checked, only to find the key and the right words for a refusal.
    let (header, claims) = unverified(token).ok_or(Refused::Malformed)?;
    if header.alg != "ES256" {
        return Err(Refused::Algorithm(shortened(&header.alg)));
    }
    let issuer_name = issuer_of(&claims, bearer, zone)?;
    let issuer = issuers
        .0
        .get(&issuer_name)
        .ok_or_else(|| Refused::UnknownIssuer(shortened(&issuer_name)))?;
    let claims = signed_claims(token, &header, issuer, &issuer_name)?;
    check_time(&claims, now)?;
    if issuer.revoked.contains(&claims.jti) {
        return Err(Refused::Revoked);
    }
    check_bearer(&claims, bearer)?;
    Ok(Accepted {
        issuer: issuer_name,
        id: claims.jti,
        kid: header.kid,
        expires: claims.exp,
    })
}

/// Whether a token that was accepted earlier still holds: a key that was withdrawn, a revocation and the end of its
/// life end the streams of those who came with it. An issuer that is gone says nothing here: the mesh is gone too, which
/// ends its streams by itself.
///
/// # Errors
/// Why it no longer holds.
pub fn still_valid(accepted: &Accepted, issuers: &Issuers, now: u64) -> Result<(), Refused> {
    if now > accepted.expires.saturating_add(LEEWAY_SECONDS) {
        return Err(Refused::Expired {
            seconds: now - accepted.expires,
        });
    }
    let Some(issuer) = issuers.0.get(&accepted.issuer) else {
        return Ok(());
    };
    if issuer.revoked.contains(&accepted.id) {
        return Err(Refused::Revoked);
    }
    if !issuer.keys.contains_key(&accepted.kid) {
        return Err(Refused::UnknownKey {
            kid: accepted.kid.clone(),
            issuer: accepted.issuer.clone(),
        });
    }
    Ok(())
}

/// Whose keys must have signed the token: the mesh's that the bearer asks for, which must be the token's, or the zone's.
fn issuer_of(claims: &Claims, bearer: Bearer<'_>, zone: &ZoneName) -> Result<String, Refused> {
    let wanted = match bearer {
        Bearer::Dataplane { .. } => USE_DATAPLANE,
        Bearer::Ingress { .. } => USE_INGRESS,
    };
    if claims.usage != wanted {
        return Err(Refused::WrongUse {
            found: shortened(&claims.usage),
            wanted,
        });
    }
    let token_zone = claims.zone.as_deref();
    let zone_is_needed = matches!(bearer, Bearer::Ingress { .. });
    if token_zone.map_or(zone_is_needed, |token| token != zone.as_str()) {
        return Err(Refused::WrongZone {
            token: shortened(token_zone.unwrap_or_default()),
            here: zone.to_string(),
        });
    }
    match bearer {
        Bearer::Ingress { .. } => Ok(ingress_issuer(zone)),
        Bearer::Dataplane { mesh, .. } => {
            let token = claims.mesh.as_deref().unwrap_or_default();
            if token == mesh && !mesh.is_empty() {
                return Ok(mesh.to_owned());
            }
            Err(Refused::WrongMesh {
                token: shortened(token),
                asked: mesh.to_owned(),
            })
        }
    }
}

fn signed_claims(
    token: &str,
    header: &Header,
    issuer: &Issuer,
    issuer_name: &str,
) -> Result<Claims, Refused> {
    let pem = issuer
        .keys
        .get(&header.kid)
        .ok_or_else(|| Refused::UnknownKey {
            kid: shortened(&header.kid),
            issuer: issuer_name.to_owned(),
        })?;
    let key = DecodingKey::from_ec_pem(pem.as_bytes()).map_err(|_| Refused::UnknownKey {
        kid: shortened(&header.kid),
        issuer: issuer_name.to_owned(),
    })?;
    let mut validation = Validation::new(Algorithm::ES256);
    // Times are judged by `check_time`, with our own clock argument and words.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    jsonwebtoken::decode::<Claims>(token, &key, &validation)
        .map(|data| data.claims)
        .map_err(|_| Refused::Signature)
}

fn check_time(claims: &Claims, now: u64) -> Result<(), Refused> {
    if claims.iat > now.saturating_add(LEEWAY_SECONDS) {
        return Err(Refused::NotYet {
            seconds: claims.iat - now,
        });
    }
    if now > claims.exp.saturating_add(LEEWAY_SECONDS) {
        return Err(Refused::Expired {
            seconds: now - claims.exp,
        });
    }
    Ok(())
}

fn check_bearer(claims: &Claims, bearer: Bearer<'_>) -> Result<(), Refused> {
    let none = BTreeMap::new();
    let (asked, labels) = match bearer {
        Bearer::Dataplane { name, labels, .. } => (name, labels),
        Bearer::Ingress { name } => (name, &none),
    };
    if let Some(token) = claims.name.as_deref().filter(|token| *token != asked) {
        return Err(Refused::Name {
            token: token.to_owned(),
            asked: asked.to_owned(),
        });
    }
    for (label, wanted) in &claims.labels {
        let found = labels.get(label);
        if found != Some(wanted) {
            return Err(Refused::Label {
                label: label.clone(),
                wanted: wanted.clone(),
                found: found.map_or_else(|| "no such label".to_owned(), |f| format!("{f:?}")),
            });
        }
    }
    Ok(())
}

fn unverified(token: &str) -> Option<(Header, Claims)> {
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    Some((
        serde_json::from_slice(&decode(header)?).ok()?,
        serde_json::from_slice(&decode(claims)?).ok()?,
    ))
}

/// Text of a stranger, for a message.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::EncodingKey;
    use mesh_runtime::pki;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    struct Key {
        kid: &'static str,
        key: pki::KeyPair,
    }

    impl Key {
        fn new(kid: &'static str) -> Self {
            let key = pki::new_key().unwrap();
            Self { kid, key }
        }

        fn issuer(&self) -> Issuer {
            Issuer {
                keys: [(self.kid.to_owned(), self.key.public_key_pem())].into(),
                revoked: ["taken-back".to_owned()].into(),
            }
        }

        fn sign(&self, claims: &Value) -> String {
            let mut header = jsonwebtoken::Header::new(Algorithm::ES256);
            header.kid = Some(self.kid.into());
            let pem = self.key.serialize_pem();
            let key = EncodingKey::from_ec_pem(pem.as_bytes()).unwrap();
            jsonwebtoken::encode(&header, claims, &key).unwrap()
        }
    }

    fn with(change: &Value) -> Value {
        let mut claims = json!({
            "iss": "c", "jti": "t1", "iat": NOW, "exp": NOW + 3600, "use": "dataplane", "mesh": "pay", "pin": "p",
        });
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    }

    #[test]
    fn each_bad_token_is_refused_with_its_own_reason() {
        let (pay, shop, east) = (Key::new("k1"), Key::new("k2"), Key::new("k3"));
        let issuers = Issuers(
            [
                ("pay".to_owned(), pay.issuer()),
                ("shop".to_owned(), shop.issuer()),
                ("zone.east".to_owned(), east.issuer()),
            ]
            .into(),
        );
        let zone: ZoneName = "east".parse().unwrap();
        let labels = [("team".to_owned(), "a".to_owned())].into();
        let dataplane = Bearer::Dataplane {
            mesh: "pay",
            name: "web-1",
            labels: &labels,
        };
        let ingress = Bearer::Ingress { name: "in" };
        let unsigned = |alg: &str| {
            let header = URL_SAFE_NO_PAD.encode(json!({"alg": alg, "kid": "k1"}).to_string());
            let good = pay.sign(&with(&json!({})));
            let claims = good.split('.').nth(1).unwrap();
            format!("{header}.{claims}.")
        };
        let mut forged = pay.sign(&with(&json!({})));
        forged.replace_range(forged.len() - 8.., "AAAAAAAA");
        let table: &[(&str, String, Bearer<'_>, &str)] = &[
            ("good", pay.sign(&with(&json!({}))), dataplane, ""),
            (
                "good name",
                pay.sign(&with(&json!({"name": "web-1"}))),
                dataplane,
                "",
            ),
            (
                "good labels",
                pay.sign(&with(&json!({"labels": {"team": "a"}}))),
                dataplane,
                "",
            ),
            (
                "clock behind",
                pay.sign(&with(&json!({"iat": NOW + 119}))),
                dataplane,
                "",
            ),
            (
                "just expired",
                pay.sign(&with(&json!({"exp": NOW - 119}))),
                dataplane,
                "",
            ),
            (
                "good ingress",
                east.sign(&with(
                    &json!({"use": "ingress", "mesh": null, "zone": "east"}),
                )),
                ingress,
                "",
            ),
            ("none", String::new(), dataplane, "no token"),
            ("garbage", "a.b".into(), dataplane, "not a dataplane"),
            (
                "alg none",
                unsigned("none"),
                dataplane,
                "\"none\"; only ES256",
            ),
            (
                "alg HS256",
                unsigned("HS256"),
                dataplane,
                "\"HS256\"; only ES256",
            ),
            (
                "stripped signature",
                unsigned("ES256"),
                dataplane,
                "signature is wrong",
            ),
            ("forged", forged, dataplane, "signature is wrong"),
            (
                "use",
                pay.sign(&with(&json!({"use": "zone-join"}))),
                dataplane,
                "for use \"zone-join\"",
            ),
            (
                "use",
                pay.sign(&with(&json!({"use": "dataplane"}))),
                ingress,
                "\"ingress\" is needed",
            ),
            (
                "mesh",
                shop.sign(&with(&json!({"mesh": "shop"}))),
                dataplane,
                "for mesh \"shop\", the dataplane asks for mesh \"pay\"",
            ),
            (
                "no mesh",
                pay.sign(&with(&json!({"mesh": null}))),
                dataplane,
                "for mesh \"\"",
            ),
            (
                "other mesh's key",
                shop.sign(&with(&json!({}))),
                dataplane,
                "not one of \"pay\"'s keys",
            ),
            (
                "zone",
                pay.sign(&with(&json!({"zone": "west"}))),
                dataplane,
                "for zone \"west\"",
            ),
            (
                "ingress zone",
                east.sign(&with(&json!({"use": "ingress", "zone": "west"}))),
                ingress,
                "for zone \"west\"",
            ),
            (
                "ingress without zone",
                east.sign(&with(&json!({"use": "ingress"}))),
                ingress,
                "for zone \"\"",
            ),
            (
                "expired",
                pay.sign(&with(&json!({"exp": NOW - 121}))),
                dataplane,
                "expired 121 s ago",
            ),
            (
                "future",
                pay.sign(&with(&json!({"iat": NOW + 121}))),
                dataplane,
                "in the future",
            ),
            (
                "revoked",
                pay.sign(&with(&json!({"jti": "taken-back"}))),
                dataplane,
                "was revoked",
            ),
            (
                "name",
                pay.sign(&with(&json!({"name": "web-2"}))),
                dataplane,
                "the name \"web-2\" only",
            ),
            (
                "label",
                pay.sign(&with(&json!({"labels": {"team": "b"}}))),
                dataplane,
                "team=\"b\", this one has \"a\"",
            ),
            (
                "no label",
                pay.sign(&with(&json!({"labels": {"tier": "b"}}))),
                dataplane,
                "no such label",
            ),
        ];
        for (case, token, bearer, words) in table {
            match verify(token, *bearer, &issuers, &zone, NOW) {
                Ok(_) => assert_eq!(*words, "", "{case}"),
                Err(refused) => {
                    let text = refused.to_string();
                    assert!(!words.is_empty() && text.contains(words), "{case}: {text}");
                }
            }
        }
        let unknown = Bearer::Dataplane {
            mesh: "new",
            name: "x",
            labels: &labels,
        };
        let refused = verify(
            &pay.sign(&with(&json!({"mesh": "new"}))),
            unknown,
            &issuers,
            &zone,
            NOW,
        );
        assert!(matches!(refused, Err(Refused::UnknownIssuer(_))));
    }

    #[test]
    fn an_accepted_token_stops_holding_when_revoked_ended_or_its_key_is_withdrawn() {
        let key = Key::new("k1");
        let mut issuers = Issuers([("pay".to_owned(), key.issuer())].into());
        let accepted = Accepted {
            issuer: "pay".into(),
            id: "t1".into(),
            kid: "k1".into(),
            expires: NOW,
        };
        assert_eq!(still_valid(&accepted, &issuers, NOW), Ok(()));
        assert!(matches!(
            still_valid(&accepted, &issuers, NOW + 121),
            Err(Refused::Expired { .. })
        ));
        issuers
            .0
            .get_mut("pay")
            .unwrap()
            .revoked
            .insert("t1".into());
        assert_eq!(still_valid(&accepted, &issuers, NOW), Err(Refused::Revoked));
        issuers.0.insert("pay".into(), Issuer::default());
        assert!(matches!(
            still_valid(&accepted, &issuers, NOW),
            Err(Refused::UnknownKey { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_text_panics(token in ".*") {
            let zone: ZoneName = "east".parse().unwrap();
            let _ = verify(&token, Bearer::Ingress { name: "x" }, &Issuers::default(), &zone, NOW);
        }
    }
}
