//! YAML and JSON to resources.

use serde_json::Value;

use crate::{
    check::Checker,
    kind::{Scope, find_kind},
    labels,
    resource::{Meta, Resource},
    view::READ_ONLY,
    violation::{Violation, Violations},
};

/// Where a value comes from, which decides what it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A person or a program at the API: no owner, no system kinds; read-only fields are dropped.
    Written,
    /// [`Resource::to_json`].
    Stored,
}

/// The mesh of resources that name none.
pub const DEFAULT_MESH: &str = "default";

/// Reads all documents of a YAML or JSON text. `source` names it in violations.
///
/// # Errors
/// Everything that is wrong, in the order of the text.
pub fn parse(text: &str, source: &str) -> Result<Vec<Resource>, Violations> {
    parse_in(text, source, DEFAULT_MESH)
}

/// As [`parse`], with the mesh of resources that name none.
///
/// # Errors
/// Everything that is wrong, in the order of the text.
pub fn parse_in(text: &str, source: &str, mesh: &str) -> Result<Vec<Resource>, Violations> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| one(source, "", error.to_string()))?;
    let mut resources = Vec::new();
    let mut violations = Vec::new();
    for document in documents {
        match read(document, source, mesh, Origin::Written) {
            Ok(resource) => resources.push(resource),
            Err(Violations(more)) => violations.extend(more),
        }
    }
    if violations.is_empty() {
        Ok(resources)
    } else {
        Err(Violations(violations))
    }
}

/// As [`parse`] for one resource that is already a JSON value; violations have no line.
///
/// # Errors
/// Everything that is wrong.
pub fn parse_value(value: &Value, source: &str) -> Result<Resource, Violations> {
    read(value.clone(), source, DEFAULT_MESH, Origin::Written)
}

pub(crate) fn stored(json: &[u8], origin: Origin) -> Result<Resource, Violations> {
    let value = serde_json::from_slice(json).map_err(|error| one("", "", error.to_string()))?;
    read(value, "", DEFAULT_MESH, origin)
}

fn one(source: &str, path: &str, message: impl Into<String>) -> Violations {
    Violations(vec![Violation {
        source: source.to_owned(),
        line: 0,
        column: 0,
        path: path.to_owned(),
        message: message.into(),
    }])
}

fn read(value: Value, source: &str, mesh: &str, origin: Origin) -> Result<Resource, Violations> {
    let Value::Object(mut object) = value else {
        return Err(one(
            source,
            "",
            "a resource is an object with `type` and `name`",
        ));
    };
    let mut text = |field: &str| match object.remove(field) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (kind, name, zone) = (text("type"), text("name"), text("zone"));
    let given_mesh = text("mesh");
    let kind =
        find_kind(&kind).ok_or_else(|| one(source, "type", format!("{kind:?} is not a kind")))?;
    let mut meta = Meta::new("", &name).in_zone(&zone);
    if kind.scope == Scope::Mesh {
        meta.mesh = if given_mesh.is_empty() {
            mesh.to_owned()
        } else {
            given_mesh
        };
    }
    if let Some(Value::Object(labels)) = object.remove("labels") {
        for (key, value) in labels {
            let key = labels::canonical_key(&key).into_owned();
            if let (Value::String(value), false) = (value, key == labels::ORIGIN) {
                meta.labels.insert(key, value);
            }
        }
    }
    if origin == Origin::Written {
        object.retain(|field, _| !READ_ONLY.contains(&field.as_str()));
    }
    let content = if kind.spec_field {
        object.remove("spec").unwrap_or_default()
    } else {
        Value::Object(object)
    };
    let spec = kind.read(content).map_err(|error| {
        one(
            source,
            &error.path().to_string(),
            error.into_inner().to_string(),
        )
    })?;
    let mut out = Checker::new(if kind.spec_field { "spec." } else { "" });
    spec.validate(&meta, &mut out);
    let violations: Vec<_> = out
        .into_found()
        .into_iter()
        .flat_map(|(path, message)| one(source, &path, message).0)
        .collect();
    if violations.is_empty() {
        Ok(Resource { meta, spec })
    } else {
        Err(Violations(violations))
    }
}
