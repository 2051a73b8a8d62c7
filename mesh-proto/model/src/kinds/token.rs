//! `Token`: a token that global has made. Written by global alone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    api::TokenScope,
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    resource::Meta,
};

/// A token that global has made; its name is the token's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
// No `deny_unknown_fields`: serde can not have it beside `flatten`; the schema check refuses unknown fields.
#[schemars(deny_unknown_fields)]
pub struct Token {
    /// What it is for.
    #[serde(flatten)]
    pub scope: TokenScope,
    /// API tokens: lower-case hex SHA-256 of the secret. Other tokens are signed, and nothing of them is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_hash: Option<String>,
    /// Unix seconds.
    pub expires_at: u64,
    /// Ended before its time.
    #[serde(default)]
    pub revoked: bool,
    /// A single-use token that was used.
    #[serde(default)]
    pub used: bool,
}

impl Kind for Token {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "Token",
        plural: "tokens",
        short: "tok",
        scope: Scope::Global,
        writers: Writers::System,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, _: &Meta, _: &mut Checker) {}
}
