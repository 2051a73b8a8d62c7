//! Holds a value against the shape of its kind, reports everything that does not fit, and makes it fit.
//!
//! What does not fit is replaced by something that does and its path remembered, so that the rest of the document can be
//! read as its type and checked by the kind's own rules, and all that is wrong is reported at once.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::{Map, Value};

use super::{legacy, report::Report};
use crate::{
    duration::Duration,
    parts::{header, number},
    path,
    shape::{ContentSchema, Field, Form, Shape},
    word,
};

/// Checks one content.
pub(super) struct Fit<'a> {
    pub(super) kind: &'static str,
    pub(super) schema: &'a ContentSchema,
    pub(super) report: &'a mut Report,
}

impl Fit<'_> {
    /// Makes `value` fit `shape`.
    pub(super) fn check(&mut self, shape: &Shape, value: &mut Value, path: &str) {
        let schema = self.schema;
        let shape = schema.resolve(shape);
        let problem = match (shape, &mut *value) {
            (Shape::Any | Shape::Json, _) => None,
            (Shape::Either(shapes), found) => {
                match shapes.iter().find(|s| same_type(schema.resolve(s), found)) {
                    // A fraction is no integer; the other shapes say what it may be.
                    Some(_) if found.is_f64() => Some(expected(shape, found)),
                    Some(shape) => return self.check(shape, found, path),
                    None => Some(expected(shape, found)),
                }
            }
            (Shape::Object(fields), Value::Object(object)) => {
                self.object(fields, object, path);
                None
            }
            (Shape::Map(inner), Value::Object(object)) => {
                // Null is absent, as for the fields of objects.
                object.retain(|_, value| !value.is_null());
                for (name, value) in object {
                    self.check(inner, value, &path::field(path, name));
                }
                None
            }
            (Shape::List(inner, at_least, at_most), Value::Array(items)) => {
                for (index, value) in items.iter_mut().enumerate() {
                    self.check(inner, value, &path::item(path, index));
                }
                if (items.len() as u64) < *at_least {
                    self.report
                        .add(path, format!("must have at least {at_least} item"));
                }
                if (items.len() as u64) > *at_most {
                    let items = if *at_most == 1 { "item" } else { "items" };
                    self.report
                        .add(path, format!("must have at most {at_most} {items}"));
                }
                None
            }
            (Shape::Text(form), Value::String(text)) => match form {
                Form::Free => None,
                Form::NotEmpty => text.is_empty().then(|| "must not be empty".to_owned()),
                Form::Decimal => number::parse(text).err().map(|e| e.to_string()),
                Form::Percentage => number::parse_percentage(text).err().map(|e| e.to_string()),
                Form::HeaderName => header::name_error(text).map(str::to_owned),
                Form::Ip => text
                    .parse::<IpAddr>()
                    .is_err()
                    .then(|| format!("{text:?} is not an IPv4 or IPv6 address")),
                Form::Duration => text.parse::<Duration>().err().map(|e| e.to_string()),
            },
            (Shape::Word(words), Value::String(text)) => (!words.contains(text)).then(|| {
                legacy::word(self.kind, path, text)
                    .map_or_else(|| not_a_word(text, words), str::to_owned)
            }),
            (Shape::Integer(lowest, highest), found @ Value::Number(_)) => {
                let whole = found.as_u64().map(i128::from);
                match whole.or_else(|| found.as_i64().map(i128::from)) {
                    None => Some(expected(shape, found)),
                    Some(number) if (lowest..=highest).contains(&&number) => None,
                    Some(_) => Some(range(*lowest, *highest)),
                }
            }
            (Shape::Bool, Value::Bool(_)) => None,
            (_, found) => Some(expected(shape, found)),
        };
        if let Some(problem) = problem {
            self.report.replace(path, problem);
            *value = self.placeholder(shape);
        }
    }

    fn object(
        &mut self,
        fields: &BTreeMap<String, Field>,
        object: &mut Map<String, Value>,
        path: &str,
    ) {
        // Null is absent, as in Go, whose readers these files were written for.
        object.retain(|_, value| !value.is_null());
        object.retain(|name, _| {
            let known = fields.contains_key(name);
            if !known {
                let at = path::field(path, name);
                // Where the fields stand beside the envelope, its words may be meant too.
                let beside = ["type", "mesh", "name", "labels"].map(str::to_owned);
                let beside = beside.iter().filter(|_| path.is_empty());
                let message = legacy::field(self.kind, &at).map_or_else(
                    || unknown_field(name, fields.keys().chain(beside)),
                    str::to_owned,
                );
                self.report.add(&at, message);
            }
            known
        });
        for (name, field) in fields {
            let at = path::field(path, name);
            if let Some(value) = object.get_mut(name) {
                self.check(&field.shape, value, &at);
            } else if field.required {
                let message = match legacy::missing(self.kind, &at) {
                    Some(message) => format!("is required: {message}"),
                    None => "is required".to_owned(),
                };
                self.report.replace(&at, message);
                object.insert(name.clone(), self.placeholder(&field.shape));
            }
        }
    }

    /// A value that fits, to stand for one that does not.
    fn placeholder(&self, shape: &Shape) -> Value {
        match self.schema.resolve(shape) {
            Shape::Any | Shape::Json => Value::Null,
            Shape::Object(fields) => fields
                .iter()
                .filter(|(_, field)| field.required)
                .map(|(name, field)| (name.clone(), self.placeholder(&field.shape)))
                .collect::<Map<_, _>>()
                .into(),
            Shape::Map(_) => Map::new().into(),
            Shape::List(..) => Value::Array(Vec::new()),
            Shape::Text(Form::Free | Form::NotEmpty | Form::HeaderName) => "".into(),
            Shape::Text(Form::Decimal | Form::Percentage) => "1".into(),
            Shape::Text(Form::Ip) => "127.0.0.1".into(),
            Shape::Text(Form::Duration) => "1s".into(),
            Shape::Word(words) => words.first().map_or("", String::as_str).into(),
            Shape::Integer(lowest, _) => u64::try_from(*lowest).unwrap_or(0).into(),
            Shape::Bool => false.into(),
            Shape::Either(shapes) => shapes
                .first()
                .map_or(Value::Null, |shape| self.placeholder(shape)),
            Shape::Ref(_) => Value::Null,
        }
    }
}

/// `unknown field; did you mean "port"?`, or the fields there are.
pub(super) fn unknown_field<'n>(name: &str, known: impl Iterator<Item = &'n String>) -> String {
    let known: Vec<&str> = known.map(String::as_str).collect();
    match word::nearest(name, &known) {
        Some(near) => format!("unknown field; did you mean {near:?}?"),
        None if known.is_empty() => "unknown field; nothing can be written here".to_owned(),
        None => format!("unknown field; there are: {}", known.join(", ")),
    }
}

fn not_a_word(text: &str, words: &[String]) -> String {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    word::not_one_of(text, &words)
}

fn range(lowest: i128, highest: i128) -> String {
    match highest {
        highest if highest >= i128::from(u32::MAX) => format!("must be ≥ {lowest}"),
        highest => format!("must be between {lowest} and {highest}"),
    }
}

fn same_type(shape: &Shape, value: &Value) -> bool {
    matches!(
        (shape, value),
        (Shape::Object(_) | Shape::Map(_), Value::Object(_))
            | (Shape::List(..), Value::Array(_))
            | (Shape::Text(_) | Shape::Word(_), Value::String(_))
            | (Shape::Integer(..), Value::Number(_))
            | (Shape::Bool, Value::Bool(_))
    )
}

/// `must be a whole number, not text`, with what to do where quotes are the trouble.
fn expected(shape: &Shape, found: &Value) -> String {
    let wanted = wanted(shape);
    match (shape, found) {
        (Shape::Text(_) | Shape::Word(_), Value::Bool(_) | Value::Number(_)) => {
            format!("must be {wanted}; put it in quotes")
        }
        // Either whole, or a decimal as text.
        (Shape::Either(_), Value::Number(number)) if number.is_f64() => {
            format!("must be {wanted}; put it in quotes: \"{number}\"")
        }
        (Shape::Integer(..), Value::String(text)) if text.parse::<i128>().is_ok() => {
            format!("must be {wanted}; write it without quotes: {text}")
        }
        (Shape::Bool, Value::String(text)) => format!("must be true or false, not {text:?}"),
        (Shape::Integer(..), Value::Number(number)) => format!("must be {wanted}, not {number}"),
        _ => format!("must be {wanted}, not {}", described(found)),
    }
}

fn wanted(shape: &Shape) -> String {
    match shape {
        Shape::Object(_) | Shape::Map(_) => "an object (fields with values)".into(),
        Shape::List(..) => "a list".into(),
        Shape::Text(_) | Shape::Word(_) => "text".into(),
        Shape::Integer(..) => "a whole number".into(),
        Shape::Bool => "true or false".into(),
        Shape::Either(shapes) => {
            let all: Vec<String> = shapes.iter().map(wanted).collect();
            all.join(" or ")
        }
        Shape::Ref(_) | Shape::Any | Shape::Json => "something else".into(),
    }
}

fn described(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
