//! JSON Schema of every kind, generated from the Rust types.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

use crate::kind::{Descriptor, Scope};

/// `format` of durations in Go's style.
pub(crate) const FORMAT_DURATION: &str = "go-duration";

/// The shape of a kind's content: its schema, and the definitions it refers to.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) root: Value,
    pub(crate) definitions: Value,
}

impl Shape {
    pub(crate) fn of<T: JsonSchema>() -> Self {
        let mut root = SchemaSettings::draft2020_12()
            .into_generator()
            .into_root_schema_for::<T>()
            .to_value();
        let definitions = root
            .as_object_mut()
            .and_then(|root| {
                root.remove("$schema");
                root.remove("$defs")
            })
            .unwrap_or_else(|| json!({}));
        Self { root, definitions }
    }
}

/// JSON Schema (draft 2020-12) of resources of this kind, with their envelope.
#[must_use]
pub fn json_schema(kind: &Descriptor) -> Value {
    let shape = kind.shape();
    let mut properties = json!({
        "type": {"const": kind.name},
        "name": {"type": "string", "maxLength": 253},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}},
        "revision": {"type": "integer", "readOnly": true},
        "creationTime": {"type": "string", "format": "date-time", "readOnly": true},
        "modificationTime": {"type": "string", "format": "date-time", "readOnly": true},
    });
    let mut required = vec![json!("type"), json!("name")];
    if kind.scope == Scope::Mesh {
        properties["mesh"] = json!({"type": "string", "maxLength": 63, "default": "default"});
    }
    if kind.spec_field {
        properties["spec"] = shape.root.clone();
        required.push(json!("spec"));
    } else {
        for (name, schema) in shape.root["properties"].as_object().into_iter().flatten() {
            properties[name] = schema.clone();
        }
        required.extend(
            shape.root["required"]
                .as_array()
                .into_iter()
                .flatten()
                .cloned(),
        );
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.name,
        "description": shape.root["description"],
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
        "$defs": shape.definitions,
    })
}
