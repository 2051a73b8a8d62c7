//! What every resource has, whatever its kind: type, mesh, name and labels.

use std::collections::BTreeMap;

use mesh_proto::names;
use serde_json::{Map, Value};

use super::{Origin, fit, legacy, report::Report};
use crate::{
    kind::{Descriptor, NameRule, Scope, Writers, find_kind},
    kinds::kinds,
    labels::{self, Labels},
    path,
    resource::Meta,
    view::READ_ONLY,
    word,
};

pub(super) struct Envelope {
    pub(super) kind: &'static Descriptor,
    pub(super) meta: Meta,
}

/// Takes the envelope out of `object`; what is left is the content. `None`: without a kind, nothing can be said about the
/// content.
pub(super) fn take(
    object: &mut Map<String, Value>,
    mesh: &str,
    origin: Origin,
    report: &mut Report,
) -> Option<Envelope> {
    let kind = take_kind(object, origin, report)?;
    if origin == Origin::Written {
        object.retain(|field, _| !READ_ONLY.contains(&field.as_str()));
    }
    let name = match text(object, "name", report) {
        Some(name) => {
            check_name(kind.name_rule, &name, report);
            name
        }
        None => String::new(),
    };
    let meta = Meta {
        mesh: take_mesh(object, kind, mesh, origin, report),
        zone: match origin {
            Origin::Written => String::new(),
            Origin::Stored => optional_text(object, "zone", report).unwrap_or_default(),
        },
        name,
        labels: take_labels(object, origin, report),
        created_revision: 0,
    };
    if !kind.spec_field && object.remove("spec").is_some() {
        let message = format!("{} has its fields beside `name`, without `spec`", kind.name);
        report.add("spec", message);
    }
    Some(Envelope { kind, meta })
}

/// Reports what stands beside `spec` and is unknown.
pub(super) fn only_spec_is_left(
    object: &Map<String, Value>,
    kind: &Descriptor,
    report: &mut Report,
) {
    for field in object.keys().filter(|field| *field != "spec") {
        let message = if kind.content_schema().fields().any(|known| known == field) {
            "write it under `spec`".to_owned()
        } else {
            let known = ["type", "mesh", "name", "labels", "spec"].map(str::to_owned);
            fit::unknown_field(field, known.iter())
        };
        report.add(&path::field("", field), message);
    }
}

fn take_kind(
    object: &mut Map<String, Value>,
    origin: Origin,
    report: &mut Report,
) -> Option<&'static Descriptor> {
    if object.contains_key("apiVersion") && object.contains_key("kind") {
        let message = "this is the form for Kubernetes; here write `type`, `mesh`, `name` and `labels` at the top";
        report.add("apiVersion", message);
        return None;
    }
    let name = text(object, "type", report)?;
    let kind = find_kind(&name).filter(|kind| kind.name == name);
    let writable = |kind: &&Descriptor| kind.writers != Writers::System;
    match kind {
        Some(kind) if origin == Origin::Stored || writable(&kind) => Some(kind),
        Some(kind) => {
            let message = format!("a {} is written by the control planes alone", kind.name);
            report.add("type", message);
            None
        }
        None => {
            let known: Vec<&str> = kinds().iter().filter(writable).map(|k| k.name).collect();
            let message = match (legacy::kind(&name), word::nearest(&name, &known)) {
                (Some(message), _) => message,
                (None, Some(near)) => format!("{name:?} is not a type; did you mean {near}?"),
                (None, None) => format!("{name:?} is not a type; there are: {}", known.join(", ")),
            };
            report.add("type", message);
            None
        }
    }
}

fn take_mesh(
    object: &mut Map<String, Value>,
    kind: &Descriptor,
    default: &str,
    origin: Origin,
    report: &mut Report,
) -> String {
    let given = optional_text(object, "mesh", report);
    match (kind.scope, given) {
        (Scope::Global, None) => String::new(),
        (Scope::Global, Some(_)) => {
            let message = format!("a {} is outside any mesh; leave it out", kind.name);
            report.add("mesh", message);
            String::new()
        }
        (Scope::Mesh, Some(mesh)) => {
            if !names::is_label(&mesh) {
                report.add("mesh", names::InvalidName(mesh.clone()).to_string());
            }
            mesh
        }
        (Scope::Mesh, None) => {
            if origin == Origin::Stored && !report.is_replaced("mesh") {
                report.add("mesh", "is required");
            }
            default.to_owned()
        }
    }
}

fn check_name(rule: NameRule, name: &str, report: &mut Report) {
    match rule {
        NameRule::Label if !names::is_label(name) => {
            report.add("name", names::InvalidName(name.to_owned()).to_string());
        }
        NameRule::Subdomain if !names::is_subdomain(name) => {
            let message = format!(
                "{name:?} is not a name: use lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit, at most 253 and between dots at most 63"
            );
            report.add("name", message);
        }
        NameRule::Label | NameRule::Subdomain => {}
    }
}

fn take_labels(object: &mut Map<String, Value>, origin: Origin, report: &mut Report) -> Labels {
    let mut labels = BTreeMap::new();
    let given = match object.remove("labels") {
        None | Some(Value::Null) => return labels,
        Some(Value::Object(given)) => given,
        Some(_) => {
            report.add("labels", "must be an object: keys with text as values");
            return labels;
        }
    };
    for (key, value) in given {
        let path = path::field("labels", &key);
        if origin == Origin::Written && key == labels::ORIGIN {
            continue;
        }
        if let Some(error) = labels::key_error(&key) {
            report.add(&path, error);
        }
        match value {
            Value::String(value) => {
                if let Some(error) = labels::value_error(&value) {
                    report.add(&path, error);
                }
                labels.insert(key, value);
            }
            Value::Bool(_) | Value::Number(_) => {
                report.add(&path, QUOTES);
            }
            Value::Null | Value::Array(_) | Value::Object(_) => {
                report.add(&path, "must be text");
            }
        }
    }
    labels
}

fn text(object: &mut Map<String, Value>, field: &str, report: &mut Report) -> Option<String> {
    let absent = object.get(field).is_none_or(Value::is_null);
    if absent {
        report.add(field, "is required");
        object.remove(field);
        return None;
    }
    optional_text(object, field, report)
}

fn optional_text(
    object: &mut Map<String, Value>,
    field: &str,
    report: &mut Report,
) -> Option<String> {
    match object.remove(field)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        Value::Bool(_) | Value::Number(_) => {
            report.replace(field, QUOTES);
            None
        }
        Value::Array(_) | Value::Object(_) => {
            report.replace(field, "must be text");
            None
        }
    }
}

const QUOTES: &str = "must be text; put it in quotes";
