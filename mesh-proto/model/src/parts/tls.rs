//! Versions of TLS.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::Checker;

/// Which versions of TLS are accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsVersions {
    /// The lowest; absent: `TLSAuto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<TlsVersion>,
    /// The highest; absent: `TLSAuto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<TlsVersion>,
}

/// A version of TLS.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum TlsVersion {
    /// The proxy's own choice.
    #[serde(rename = "TLSAuto")]
    Auto,
    /// 1.0.
    #[serde(rename = "TLS10")]
    V10,
    /// 1.1.
    #[serde(rename = "TLS11")]
    V11,
    /// 1.2.
    #[serde(rename = "TLS12")]
    V12,
    /// 1.3.
    #[serde(rename = "TLS13")]
    V13,
}

impl TlsVersions {
    pub(crate) fn check(self, at: &str, out: &mut Checker) {
        let given = |version: Option<TlsVersion>| version.filter(|v| *v != TlsVersion::Auto);
        if let (Some(min), Some(max)) = (given(self.min), given(self.max))
            && min > max
        {
            out.add(format!("{at}.min"), "must not be higher than max");
        }
    }
}
