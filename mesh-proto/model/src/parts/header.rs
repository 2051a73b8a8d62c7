//! HTTP headers: names, matches, changes.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{check::Checker, schema::FORMAT_HEADER_NAME};

/// The name of a header, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HeaderName(pub String);

impl JsonSchema for HeaderName {
    fn schema_name() -> Cow<'static, str> {
        "HeaderName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The name of a header, in lower case.",
            "type": "string",
            "format": FORMAT_HEADER_NAME,
            "minLength": 1,
            "maxLength": 256,
            "pattern": "^[a-z0-9!#$%&'*+\\-.^_`|~]+$",
        })
    }
}

/// Why `text` can not name a header (RFC 9110, 5.6.2), where it can not.
pub(crate) fn name_error(text: &str) -> Option<&'static str> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.is_empty() || text.len() > 256 || !text.bytes().all(is_token) {
        return Some(
            "is not the name of a header: use 1 to 256 letters, digits and !#$%&'*+-.^_`|~",
        );
    }
    text.bytes()
        .any(|b| b.is_ascii_uppercase())
        .then_some("write the name of the header in lower case; case does not matter in requests")
}

/// A header and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderKeyValue {
    /// The name.
    pub name: HeaderName,
    /// The value; several are separated by commas.
    pub value: String,
}

/// Which headers something must have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// How the value is compared; absent: `Exact`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub form: Option<HeaderMatchForm>,
    /// The header.
    pub name: HeaderName,
    /// What the value is compared with; none for `Present` and `Absent`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
}

/// How the value of a header is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HeaderMatchForm {
    /// Equal.
    #[default]
    Exact,
    /// There is such a header, whatever its value.
    Present,
    /// The whole value matches.
    RegularExpression,
    /// There is no such header.
    Absent,
    /// Begins with.
    Prefix,
}

impl HeaderMatch {
    pub(crate) fn check(&self, at: &str, out: &mut Checker) {
        let form = self.form.unwrap_or_default();
        match form {
            HeaderMatchForm::Exact | HeaderMatchForm::Prefix => {}
            HeaderMatchForm::RegularExpression => out.regex(format!("{at}.value"), &self.value),
            HeaderMatchForm::Present | HeaderMatchForm::Absent if !self.value.is_empty() => {
                out.add(
                    format!("{at}.value"),
                    format!("{form:?} takes no value; leave it out"),
                );
            }
            HeaderMatchForm::Present | HeaderMatchForm::Absent => {}
        }
    }
}

/// What becomes of headers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderModifier {
    /// Replace all of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub set: Option<Vec<HeaderKeyValue>>,
    /// Stand beside what is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub add: Option<Vec<HeaderKeyValue>>,
    /// Go away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub remove: Option<Vec<String>>,
}

impl HeaderModifier {
    pub(crate) fn check(&self, at: &str, out: &mut Checker) {
        if self.set.is_none() && self.add.is_none() && self.remove.is_none() {
            out.add(at, "must have at least one of set, add, remove");
        }
        let pairs = [("set", &self.set), ("add", &self.add)].into_iter();
        let pairs = pairs.flat_map(|(field, list)| {
            let list = list.iter().flatten().enumerate();
            list.map(move |(index, pair)| {
                (format!("{at}.{field}[{index}].name"), pair.name.0.clone())
            })
        });
        let removed = self.remove.iter().flatten().enumerate();
        let removed =
            removed.map(|(index, name)| (format!("{at}.remove[{index}]"), name.to_lowercase()));
        out.each_once(pairs.chain(removed), "one header takes one action");
        for (index, name) in self.remove.iter().flatten().enumerate() {
            if let Some(message) = name_error(&name.to_lowercase()) {
                out.add(format!("{at}.remove[{index}]"), message);
            }
        }
    }
}

/// Headers that come on top.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderAdditions {
    /// Replace all of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub set: Option<Vec<HeaderKeyValue>>,
    /// Stand beside what is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub add: Option<Vec<HeaderKeyValue>>,
}
