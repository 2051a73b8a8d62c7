//! What comes out is what this project takes: every resource is read once more, by the reader of `meshctl apply`. Fields
//! that it refuses are taken out and told, where they can not let anybody in; else the resource is left out and told.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Made,
    document::Document,
    report::{Line, Notes},
};

/// Fields of one resource that may be taken out.
const PRUNED_MAX: usize = 50;

/// Everything that can be taken. `poisoned` holds the meshes in which a denial was left out already: nobody is let in
/// there, since it could be somebody who was denied.
pub(super) fn all(
    documents: &[Document],
    made: Vec<Made>,
    mut poisoned: BTreeSet<String>,
    lines: &mut Vec<(usize, Line)>,
) -> Vec<Made> {
    let mut taken: Vec<Made> = Vec::new();
    let mut keys = BTreeSet::new();
    for (value, index) in made {
        let mut notes = Notes::of(&documents[index]);
        notes.lines.clear();
        let denies = denies(&value);
        let mesh = value["mesh"].as_str().unwrap_or_default().to_owned();
        let mut left_out = true;
        if let Some(value) = one(value, &mut notes) {
            let key = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
            if keys.insert((key("type"), key("mesh"), key("name"))) {
                taken.push((value, index));
                left_out = false;
            } else if taken.iter().any(|(other, _)| *other == value) {
                left_out = false;
            } else {
                notes.lost(
                    "",
                    format!(
                        "{} {} is there already: give one of them another name",
                        key("type"),
                        key("name")
                    ),
                );
            }
        }
        if left_out && denies {
            poisoned.insert(mesh);
        }
        lines.extend(notes.lines.into_iter().map(|line| (index, line)));
    }
    taken.retain(|(value, index)| {
        let mesh = value["mesh"].as_str().unwrap_or_default();
        let goes = value["type"] == PERMISSION && poisoned.contains(mesh);
        if goes {
            let message = "is left out: a denial in this mesh could not be taken over, and so nobody is let in";
            lines.push((*index, Line::lost(&documents[*index], "", message.to_owned())));
        }
        !goes
    });
    taken
}

const PERMISSION: &str = "MeshTrafficPermission";

/// True for a permission that denies somebody.
pub(super) fn denies(value: &Value) -> bool {
    fn holds_deny(value: &Value) -> bool {
        match value {
            Value::Object(object) => object
                .iter()
                .any(|(key, value)| key == "deny" || holds_deny(value)),
            Value::Array(items) => items.iter().any(holds_deny),
            _ => false,
        }
    }
    value["type"] == PERMISSION && holds_deny(&value["spec"])
}

/// Percentages that are no whole numbers stand in quotes here.
fn quote_decimals(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => *value = number.to_string().into(),
        Value::Object(object) => object.values_mut().for_each(quote_decimals),
        Value::Array(items) => items.iter_mut().for_each(quote_decimals),
        _ => {}
    }
}

fn one(mut value: Value, notes: &mut Notes<'_>) -> Option<Value> {
    quote_decimals(&mut value);
    let what = format!(
        "{} {}",
        value["type"].as_str().unwrap_or_default(),
        value["name"].as_str().unwrap_or_default()
    );
    for _ in 0..PRUNED_MAX {
        let violations = match mesh_model::parse_value(&value, "") {
            Ok(_) => return Some(value),
            Err(violations) => violations.0,
        };
        // One at a time: what goes moves the others.
        let pruned = !about_access(&value)
            && violations.iter().any(|violation| {
                let pruned = !chooses(&violation.path) && prune(&mut value, &violation.path);
                if pruned {
                    let field = violation
                        .path
                        .strip_prefix("spec.")
                        .unwrap_or(&violation.path);
                    notes.lost(
                        field,
                        format!("is left out of {what}: {}", violation.message),
                    );
                }
                pruned
            });
        if !pruned {
            for violation in &violations {
                let field = match violation.path.as_str() {
                    "" => String::new(),
                    path => format!("{path}: "),
                };
                notes.lost(
                    "",
                    format!("{what} is left out: {field}{}", violation.message),
                );
            }
            return None;
        }
    }
    notes.lost(
        "",
        format!("{what} is left out: too much of it is not known here"),
    );
    None
}

/// True for what lets callers in.
fn about_access(value: &Value) -> bool {
    matches!(
        value["type"].as_str(),
        Some(
            "MeshTrafficPermission" | "MeshTLS" | "MeshTrust" | "MeshIdentity" | "MeshPassthrough"
        )
    )
}

/// True for what chooses proxies, callers or destinations: without it, a policy would be about others.
fn chooses(path: &str) -> bool {
    [
        "targetRef",
        "matches",
        "selector",
        "backendRef",
        "labels",
        "name",
        "mesh",
        "type",
    ]
    .iter()
    .any(|word| path.split(['.', '[']).any(|part| part.starts_with(word)))
}

/// Takes out the field at `path`; false where there is none.
fn prune(value: &mut Value, path: &str) -> bool {
    let steps = steps(path);
    let Some((last, way)) = steps.split_last() else {
        return false;
    };
    let mut at = value;
    for step in way {
        let next = match step {
            Step::Field(name) => at.get_mut(name),
            Step::Item(index) => at.get_mut(index),
        };
        match next {
            Some(next) => at = next,
            None => return false,
        }
    }
    match (last, at) {
        (Step::Field(name), Value::Object(object)) => object.remove(name).is_some(),
        (Step::Item(index), Value::Array(items)) if *index < items.len() => {
            items.remove(*index);
            true
        }
        _ => false,
    }
}

enum Step {
    Field(String),
    Item(usize),
}

/// `a.b[0]["c/d"]` in its steps.
fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let end = quoted.find("\"]").unwrap_or(quoted.len());
            steps.push(Step::Field(quoted[..end].to_owned()));
            rest = quoted.get(end + 2..).unwrap_or_default();
        } else if let Some(index) = rest.strip_prefix('[') {
            let end = index.find(']').unwrap_or(index.len());
            steps.extend(index[..end].parse().ok().map(Step::Item));
            rest = index.get(end + 1..).unwrap_or_default();
        } else {
            let name = rest.strip_prefix('.').unwrap_or(rest);
            let end = name.find(['.', '[']).unwrap_or(name.len());
            steps.push(Step::Field(name[..end].to_owned()));
            rest = &name[end..];
        }
    }
    steps
}
