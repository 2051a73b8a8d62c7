//! JSON Schema of every kind, generated from the Rust types.

use serde_json::{Value, json};

use crate::{
    kind::{Descriptor, Scope},
    parse::DEFAULT_MESH,
    view::{READ_ONLY, sorted},
};

/// `format` of durations in Go's style.
pub(crate) const FORMAT_DURATION: &str = "go-duration";

/// `format` of numbers ≥ 0 as text.
pub(crate) const FORMAT_DECIMAL: &str = "decimal";

/// `format` of percentages as text.
pub(crate) const FORMAT_PERCENTAGE: &str = "percentage";

/// `format` of the names of HTTP headers.
pub(crate) const FORMAT_HEADER_NAME: &str = "http-header-name";

/// Marks what may be any JSON, in Kubernetes' word for it.
pub(crate) const ANY_JSON: &str = "x-kubernetes-preserve-unknown-fields";

/// `format` of addresses, as `schemars` writes it.
pub(crate) const FORMAT_IP: &str = "ip";

/// JSON Schema (draft 2020-12) of resources of this kind, with their envelope.
#[must_use]
pub fn json_schema(kind: &Descriptor) -> Value {
    let content = kind.content_schema();
    let mut properties = json!({
        "type": {"const": kind.name},
        "name": {"type": "string", "maxLength": 253},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}},
    });
    for field in READ_ONLY {
        properties[field] = json!({"readOnly": true});
    }
    let mut required = vec![json!("type"), json!("name")];
    if kind.scope == Scope::Mesh {
        properties["mesh"] = json!({"type": "string", "maxLength": 63, "default": DEFAULT_MESH});
    }
    if kind.spec_field {
        properties["spec"] = content.schema.clone();
        if content.requires_content() {
            required.push(json!("spec"));
        }
    } else {
        for (name, schema) in content.schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
        {
            properties[name] = schema.clone();
        }
        required.extend(
            content.schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .cloned(),
        );
    }
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.name,
        "description": content.schema["description"],
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
        "$defs": content.definitions,
    });
    unlink(&mut schema);
    sorted(schema)
}

/// Removes the brackets that make links of names in Rust's documentation.
fn unlink(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`");
            }
            fields.values_mut().for_each(unlink);
        }
        Value::Array(items) => items.iter_mut().for_each(unlink),
        _ => {}
    }
}
