//! The forms of tokens.
//!
//! Every token carries the pin of the installation CA, so that its holder needs nothing else to know the server it
//! talks to:
//!
//! - **API tokens** (people, automation) are `isthmus.<id>.<secret>.<pin>`. Global stores only a hash of the secret.
//! - **Dataplane, ingress, zone-join and node-join tokens** are JWTs (RFC 7519) with the claims of [`Claims`]
//!   fields; `pin` is one of them.

/// First part of an API token.
pub const API_TOKEN_PREFIX: &str = "isthmus";

/// JWT claim `use` of a dataplane token.
pub const USE_DATAPLANE: &str = "dataplane";
/// JWT claim `use` of the token of a zone's ingress.
pub const USE_INGRESS: &str = "ingress";
/// JWT claim `use` of a single-use token that lets a zone join.
pub const USE_ZONE_JOIN: &str = "zone-join";
/// JWT claim `use` of a single-use token that lets a global node join.
pub const USE_NODE_JOIN: &str = "node-join";

/// An API token taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiToken {
    /// Public: appears in lists and in the audit.
    pub id: String,
    /// 43 characters of base64url: 32 random bytes.
    pub secret: String,
    /// Base64url SHA-256 of the installation CA's public key (SubjectPublicKeyInfo, DER).
    pub pin: String,
}

impl ApiToken {
    /// Reads `isthmus.<id>.<secret>.<pin>`. `None`: the text is no API token.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('.');
        let token = (parts.next()? == API_TOKEN_PREFIX).then_some(Self {
            id: parts.next()?.to_owned(),
            secret: parts.next()?.to_owned(),
            pin: parts.next()?.to_owned(),
        })?;
        let complete = !token.id.is_empty() && !token.secret.is_empty() && !token.pin.is_empty();
        (complete && parts.next().is_none()).then_some(token)
    }

    /// The text that is handed to a person, once.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!(
            "{API_TOKEN_PREFIX}.{}.{}.{}",
            self.id, self.secret, self.pin
        )
    }
}

/// Shows the id only, so that a token never reaches a log.
impl std::fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_read_back_and_never_shown() {
        let token = ApiToken {
            id: "a1".into(),
            secret: "s3cret".into(),
            pin: "p".into(),
        };
        assert_eq!(ApiToken::parse(&token.to_text()), Some(token.clone()));
        assert!(!format!("{token:?}").contains("s3cret"));
        for bad in [
            "",
            "isthmus.a.b",
            "isthmus.a.b.c.d",
            "x.a.b.c",
            "isthmus..b.c",
        ] {
            assert_eq!(ApiToken::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_the_parser(text in ".*") {
            let _ = ApiToken::parse(&text);
        }
    }
}
