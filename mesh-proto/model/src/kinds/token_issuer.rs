//! `TokenIssuer`: with which keys zones verify tokens, and which tokens are revoked. Written by global alone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    resource::Meta,
};

/// Public keys that dataplane tokens of one mesh (the name is the mesh's) or ingress tokens of one zone (the name is
/// `zone.<zone>`) are signed with. Each mesh has its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenIssuer {
    /// Keys that are accepted.
    #[serde(default)]
    pub keys: Vec<TokenKey>,
    /// Tokens that are not, whoever signed them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<RevokedToken>,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenKey {
    /// Its id, as in the tokens' `kid`.
    pub kid: String,
    /// SubjectPublicKeyInfo in PEM, for ES256.
    pub public_key: String,
}

/// A token that is no longer accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevokedToken {
    /// Its id, as in its `jti`.
    pub id: String,
    /// Unix seconds; afterwards nothing needs to be remembered.
    pub expires_at: u64,
}

impl Kind for TokenIssuer {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "TokenIssuer",
        plural: "tokenissuers",
        short: "ti",
        scope: Scope::Global,
        writers: Writers::System,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, _: &Meta, _: &mut Checker) {}
}
