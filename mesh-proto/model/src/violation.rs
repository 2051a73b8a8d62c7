//! What is wrong with something a person wrote: where, and what to do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// File name, or what stands for it (`standard input`, `request body`).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Line, from 1; 0 where it is not known.
    #[serde(default)]
    pub line: u32,
    /// Column, from 1; 0 where it is not known.
    #[serde(default)]
    pub column: u32,
    /// The field, as `spec.rules[0].default.allow`; "" for the whole document.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// `web.yaml:12:7: spec.ports[0].port: must be between 1 and 65535`
impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.source.is_empty() {
            write!(f, "{}:", self.source)?;
        }
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if !self.source.is_empty() || self.line > 0 {
            f.write_str(" ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong, in the order of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            violation.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}
