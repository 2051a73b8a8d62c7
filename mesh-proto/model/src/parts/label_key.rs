//! The key of a label, where it stands as a value.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::labels;

/// The key of a label. Kuma's prefixes are read as ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct LabelKey(#[schemars(length(min = 1))] String);

impl LabelKey {
    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for LabelKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = String::deserialize(deserializer)?;
        Ok(Self(labels::canonical_key(&key).into_owned()))
    }
}
