//! What a signed token says of itself. Not verified: whoever has a token may read it, and only the server decides what
//! it is worth.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_proto::token::{self, ApiToken};
use serde::Deserialize;

use crate::failure::Failure;

/// What a signed token says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Claims {
    /// What it is for.
    #[serde(rename = "use")]
    pub(crate) usage: String,
    /// Pin of the installation CA.
    pub(crate) pin: String,
    /// Zone-join tokens: the zone.
    #[serde(default)]
    pub(crate) zone: Option<String>,
}

impl Claims {
    /// Where a token of this sort belongs.
    pub(crate) fn place(&self) -> &'static str {
        match self.usage.as_str() {
            token::USE_DATAPLANE => "it goes to `dataplane run --token-file`",
            token::USE_INGRESS => "it goes to `dataplane run --mode ingress --token-file`",
            token::USE_ZONE_JOIN => {
                "it goes to `meshctl zone join --token`, on the machine of the zone's control plane"
            }
            token::USE_NODE_JOIN => {
                "it goes to `global-cp run --join HOST:5685 --token`, on the new node"
            }
            _ => "this version of meshctl does not know where it goes",
        }
    }
}

/// The claims of a JWT. `None`: it is none, or not one of ours.
pub(crate) fn read(token: &str) -> Option<Claims> {
    let mut parts = token.trim().split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// The claims of a token with which a zone can join; any other is told where it belongs.
pub(crate) fn zone_join(token: &str) -> Result<Claims, Failure> {
    const MAKE: &str =
        "A zone joins with a token from `meshctl token create zone-join --zone NAME`.";
    if ApiToken::parse(token).is_some() {
        return Err(Failure::invalid(format!(
            "this is an API token, which lets nobody join. {MAKE}"
        )));
    }
    let claims = read(token).ok_or_else(|| {
        Failure::invalid(format!("this is not a token, or not all of one. {MAKE}"))
    })?;
    if claims.usage != token::USE_ZONE_JOIN {
        return Err(Failure::invalid(format!(
            "this is a {} token: {}. {MAKE}",
            claims.usage,
            claims.place()
        )));
    }
    Ok(claims)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A token with these claims and no valid signature.
    pub(crate) fn unsigned(claims: &serde_json::Value) -> String {
        let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
        format!("e30.{payload}.c2ln")
    }

    #[test]
    fn only_a_zone_join_token_lets_a_zone_join_and_others_are_told_where_they_belong() {
        let of =
            |usage: &str| unsigned(&serde_json::json!({"use": usage, "pin": "p", "zone": "east"}));
        assert_eq!(
            zone_join(&of("zone-join")).unwrap().zone.as_deref(),
            Some("east")
        );
        for (token, words) in [
            (of("dataplane"), "dataplane run --token-file"),
            (of("node-join"), "global-cp run --join"),
            ("isthmus.id.secret.pin".to_owned(), "API token"),
            ("nonsense".to_owned(), "not a token"),
            ("a.b.c".to_owned(), "not a token"),
        ] {
            let refused = zone_join(&token).unwrap_err().to_string();
            assert!(refused.contains(words), "{words}: {refused}");
        }
    }
}
