//! Where a certificate or key comes from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::Checker;

/// Where a certificate or key comes from. Files and variables of a control plane are none of its users' business, so
/// there are two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataSource {
    /// Which.
    #[serde(rename = "type")]
    pub form: DataSourceForm,
    /// Of `Secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Of `InsecureInline`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_inline: Option<InlineData>,
}

/// Which source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DataSourceForm {
    /// A `Secret` of the same mesh.
    Secret,
    /// As it stands here, for everybody to read.
    InsecureInline,
}

/// A `Secret` of the same mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretRef {
    /// What it refers to.
    pub kind: SecretRefKind,
    /// The secret's name.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// What a [`SecretRef`] refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SecretRefKind {
    /// A `Secret`.
    Secret,
}

/// A value as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InlineData {
    /// The value.
    #[schemars(length(min = 1))]
    pub value: String,
}

impl DataSource {
    pub(crate) fn check(&self, at: &str, out: &mut Checker) {
        out.only_of_type(
            at,
            match self.form {
                DataSourceForm::Secret => "secretRef",
                DataSourceForm::InsecureInline => "insecureInline",
            },
            &[
                ("secretRef", self.secret_ref.is_some()),
                ("insecureInline", self.insecure_inline.is_some()),
            ],
        );
    }
}
