//! JSON whose shape is somebody else's.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::schema::ANY_JSON;

/// Any JSON; nothing in it is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FreeJson(pub Value);

impl JsonSchema for FreeJson {
    fn schema_name() -> Cow<'static, str> {
        "FreeJson".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"description": "Any JSON.", ANY_JSON: true})
    }
}
