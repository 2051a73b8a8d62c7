//! The shape of a kind's content, as its JSON Schema has it, in a form that values are checked against.
//!
//! What is published as schema and what is enforced can not differ: both come from the same generated schema. Only the
//! part of JSON Schema that `schemars` makes of our types is understood; a test holds that no kind goes beyond it.

use std::collections::BTreeMap;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value};

use crate::schema::{
    ANY_JSON, FORMAT_DECIMAL, FORMAT_DURATION, FORMAT_HEADER_NAME, FORMAT_IP, FORMAT_PERCENTAGE,
};

/// What a value must look like.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    /// Named fields, and no others.
    Object(BTreeMap<String, Field>),
    /// Any text as key.
    Map(Box<Shape>),
    /// A list with so many items, the lowest number and the highest.
    List(Box<Shape>, u64, u64),
    /// Text.
    Text(Form),
    /// One of these words.
    Word(Vec<String>),
    /// A whole number in this range.
    Integer(i128, i128),
    /// True or false.
    Bool,
    /// The first that is of the value's type.
    Either(Vec<Shape>),
    /// A definition.
    Ref(String),
    /// Any JSON, on purpose.
    Json,
    /// Not understood: left to serde. No kind has it.
    Any,
}

/// A field of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Field {
    pub(crate) shape: Shape,
    pub(crate) required: bool,
}

/// What a text must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Free,
    NotEmpty,
    Decimal,
    Percentage,
    HeaderName,
    Ip,
    Duration,
}

/// The schema of a kind's content with its definitions, and the shape made of it.
#[derive(Debug)]
pub(crate) struct ContentSchema {
    pub(crate) schema: Value,
    pub(crate) definitions: Map<String, Value>,
    root: Shape,
    shapes: BTreeMap<String, Shape>,
}

impl ContentSchema {
    pub(crate) fn of<T: JsonSchema>() -> Self {
        let mut schema = SchemaSettings::draft2020_12()
            .into_generator()
            .into_root_schema_for::<T>()
            .to_value();
        let mut definitions = Map::new();
        if let Value::Object(root) = &mut schema {
            root.remove("$schema");
            if let Some(Value::Object(found)) = root.remove("$defs") {
                definitions = found;
            }
        }
        let shapes = definitions
            .iter()
            .map(|(name, schema)| (name.clone(), shape(schema)))
            .collect();
        Self {
            root: shape(&schema),
            shapes,
            schema,
            definitions,
        }
    }

    /// Whether there are fields that must be given.
    pub(crate) fn requires_content(&self) -> bool {
        let required = self.schema["required"].as_array();
        required.is_some_and(|fields| !fields.is_empty())
    }

    /// The shape of the whole content.
    pub(crate) fn root(&self) -> &Shape {
        &self.root
    }

    /// Follows references.
    pub(crate) fn resolve<'a>(&'a self, mut shape: &'a Shape) -> &'a Shape {
        while let Shape::Ref(name) = shape {
            shape = self.shapes.get(name).unwrap_or(&Shape::Any);
        }
        shape
    }

    /// The names of the fields of the content.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &str> {
        let fields = match &self.root {
            Shape::Object(fields) => Some(fields),
            _ => None,
        };
        fields.into_iter().flatten().map(|(name, _)| name.as_str())
    }
}

fn shape(schema: &Value) -> Shape {
    let text = |key: &str| schema.get(key).and_then(Value::as_str);
    if let Some(reference) = text("$ref") {
        let name = reference.strip_prefix("#/$defs/").unwrap_or(reference);
        return Shape::Ref(name.to_owned());
    }
    if schema.get(ANY_JSON).is_some() {
        return Shape::Json;
    }
    if let Some(words) = words(schema) {
        return Shape::Word(words);
    }
    if let Some(branches) = schema.get("anyOf").and_then(Value::as_array) {
        let mut shapes: Vec<Shape> = branches.iter().filter(not_null).map(shape).collect();
        return match shapes.len() {
            1 => shapes.remove(0),
            _ => Shape::Either(shapes),
        };
    }
    let kind = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds
            .iter()
            .filter_map(Value::as_str)
            .find(|k| *k != "null"),
        Some(kind) => kind.as_str(),
        None => None,
    };
    match kind {
        Some("object") => object(schema),
        Some("array") => {
            let items = schema.get("items").map_or(Shape::Any, shape);
            let at_least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
            let at_most = schema.get("maxItems").and_then(Value::as_u64);
            Shape::List(Box::new(items), at_least, at_most.unwrap_or(u64::MAX))
        }
        Some("string") => Shape::Text(match text("format") {
            Some(FORMAT_IP) => Form::Ip,
            Some(FORMAT_DURATION) => Form::Duration,
            Some(FORMAT_DECIMAL) => Form::Decimal,
            Some(FORMAT_PERCENTAGE) => Form::Percentage,
            Some(FORMAT_HEADER_NAME) => Form::HeaderName,
            _ if schema.get("minLength").is_some() => Form::NotEmpty,
            _ => Form::Free,
        }),
        Some("integer") => {
            let bound = |key: &str, otherwise: i128| {
                let number = schema.get(key);
                let whole = number.and_then(|n| {
                    let unsigned = n.as_u64().map(i128::from);
                    unsigned.or_else(|| n.as_i64().map(i128::from))
                });
                whole.unwrap_or(otherwise)
            };
            let highest = match text("format") {
                Some("uint16") => u16::MAX.into(),
                Some("uint32") => u32::MAX.into(),
                _ => u64::MAX.into(),
            };
            Shape::Integer(bound("minimum", 0), bound("maximum", highest))
        }
        Some("boolean") => Shape::Bool,
        _ => Shape::Any,
    }
}

fn object(schema: &Value) -> Shape {
    let properties = schema.get("properties").and_then(Value::as_object);
    match (properties, schema.get("additionalProperties")) {
        (None, Some(values @ Value::Object(_))) => Shape::Map(Box::new(shape(values))),
        (properties, _) => {
            let required = schema.get("required").and_then(Value::as_array);
            let is_required =
                |name: &str| required.is_some_and(|names| names.iter().any(|n| n == name));
            let fields = properties.into_iter().flatten().map(|(name, schema)| {
                let field = Field {
                    shape: shape(schema),
                    required: is_required(name),
                };
                (name.clone(), field)
            });
            Shape::Object(fields.collect())
        }
    }
}

/// The words of an enumeration, which `schemars` writes as `enum`, as `const`, or as `oneOf` of both.
fn words(schema: &Value) -> Option<Vec<String>> {
    let word = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(value) = schema.get("const") {
        return Some(vec![word(value)?]);
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return values.iter().map(word).collect();
    }
    let branches = schema.get("oneOf")?.as_array()?;
    let lists: Option<Vec<_>> = branches.iter().map(words).collect();
    Some(lists?.concat())
}

fn not_null(schema: &&Value) -> bool {
    schema.get("type").is_none_or(|kind| kind != "null")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::kinds;

    #[test]
    fn every_kind_has_a_shape_that_is_understood_in_full() {
        for kind in kinds() {
            let content = kind.content_schema();
            let mut seen = vec![content.root()];
            seen.extend(content.shapes.values());
            while let Some(shape) = seen.pop() {
                match shape {
                    Shape::Any => panic!("{}: a part is not understood", kind.name),
                    Shape::Object(fields) => seen.extend(fields.values().map(|field| &field.shape)),
                    Shape::Map(inner) | Shape::List(inner, ..) => seen.push(inner),
                    Shape::Either(shapes) => seen.extend(shapes),
                    Shape::Ref(name) => assert!(content.shapes.contains_key(name), "{name}"),
                    Shape::Text(_)
                    | Shape::Word(_)
                    | Shape::Integer(..)
                    | Shape::Bool
                    | Shape::Json => {}
                }
            }
        }
    }

    #[test]
    fn every_object_refuses_unknown_fields() {
        fn check(kind: &str, schema: &Value) {
            if schema.get("type").is_some_and(|t| t == "object") {
                assert!(
                    schema.get("additionalProperties").is_some(),
                    "{kind}: deny_unknown_fields is missing at {schema}"
                );
            }
            let children: Vec<&Value> = match schema {
                Value::Object(map) => map.values().collect(),
                Value::Array(items) => items.iter().collect(),
                _ => vec![],
            };
            children.into_iter().for_each(|child| check(kind, child));
        }
        for kind in kinds() {
            check(kind.name, &crate::json_schema(kind));
        }
    }
}
