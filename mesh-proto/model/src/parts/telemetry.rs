//! References to collectors of telemetry.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{check::Checker, labels::Labels};

/// A `MeshOpenTelemetryBackend` of the same mesh, by its labels. Of several, the oldest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CollectorRef {
    /// What it refers to.
    pub kind: CollectorKind,
    /// Pairs it must have.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// What a [`CollectorRef`] refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CollectorKind {
    /// A `MeshOpenTelemetryBackend`.
    MeshOpenTelemetryBackend,
}

impl CollectorRef {
    pub(crate) fn check(&self, at: &str, out: &mut Checker) {
        let at = format!("{at}.labels");
        if self.labels.is_empty() {
            out.add(
                &at,
                "is required: labels of the MeshOpenTelemetryBackend that is meant",
            );
        }
        out.selector(&at, &self.labels);
    }
}
