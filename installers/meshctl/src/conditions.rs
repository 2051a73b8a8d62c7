//! What is to be said about a resource: references that lead nowhere, policies that select nothing, conflicts. As a word
//! in tables and as lines elsewhere.

use mesh_model::api::Condition;
use serde_json::Value;

/// True where a condition says that something is not as its author may expect.
pub(crate) fn is_bad(condition: &Condition) -> bool {
    bad(&condition.kind, condition.status)
}

fn bad(kind: &str, status: bool) -> bool {
    // Of `Conflicted` true is the bad case, of all others false.
    (kind == "Conflicted") == status
}

/// One condition as a line: `SelectsNothing: no dataplane … (spec.targetRef, zone east)`.
pub(crate) fn line(condition: &Condition) -> String {
    let mut line = format!("{}: {}", condition.reason, condition.message);
    let place: Vec<_> = [
        condition.field.clone(),
        match condition.zone.as_str() {
            "" => String::new(),
            zone => format!("zone {zone}"),
        },
    ]
    .into_iter()
    .filter(|part| !part.is_empty())
    .collect();
    if !place.is_empty() {
        line.push_str(&format!(" ({})", place.join(", ")));
    }
    line
}

/// The bad ones as lines, in a block of their own; "" where all is well.
pub(crate) fn block(conditions: &[Condition]) -> String {
    let bad: Vec<_> = conditions
        .iter()
        .filter(|condition| is_bad(condition))
        .collect();
    if bad.is_empty() {
        return String::new();
    }
    let lines = bad
        .iter()
        .map(|condition| format!("\n  {}", line(condition)));
    format!("\n\nConditions:{}", lines.collect::<String>())
}

/// The bad ones that a resource carries, as lines.
pub(crate) fn lines(resource: &Value) -> Vec<String> {
    let carried = resource["status"]["conditions"].clone();
    let carried: Vec<Condition> = serde_json::from_value(carried).unwrap_or_default();
    carried.iter().filter(|one| is_bad(one)).map(line).collect()
}

/// The word for a table: `ok`, or the reasons of what is not. `None` where the resource says nothing about itself.
pub(crate) fn status(resource: &Value) -> Option<String> {
    let conditions = resource["status"]["conditions"].as_array()?;
    let mut reasons: Vec<_> = conditions
        .iter()
        .filter(|condition| {
            let kind = condition["type"].as_str().unwrap_or_default();
            bad(kind, condition["status"] == Value::Bool(true))
        })
        .filter_map(|condition| condition["reason"].as_str())
        .collect();
    reasons.sort_unstable();
    reasons.dedup();
    Some(if reasons.is_empty() {
        "ok".to_owned()
    } else {
        reasons.join(",")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_conflict_is_bad_where_it_is_true_and_all_else_where_it_is_false() {
        let of = |kind: &str, status: bool| {
            let resource = json!({"status": {"conditions": [{"type": kind, "status": status, "reason": "R"}]}});
            super::status(&resource).unwrap()
        };
        assert_eq!(of("Conflicted", true), "R");
        assert_eq!(of("Conflicted", false), "ok");
        assert_eq!(of("Effective", false), "R");
        assert_eq!(of("Effective", true), "ok");
        assert_eq!(status(&json!({})), None);
    }

    #[test]
    fn a_line_names_field_and_zone() {
        let condition: Condition = serde_json::from_value(json!({
            "key": {"type": "MeshTimeout", "mesh": "pay", "name": "a"}, "type": "Effective", "status": false,
            "reason": "SelectsNothing", "message": "no dataplane has these labels", "field": "spec.targetRef", "zone": "east",
        }))
        .unwrap();
        assert_eq!(
            block(&[condition]),
            "\n\nConditions:\n  SelectsNothing: no dataplane has these labels (spec.targetRef, zone east)"
        );
    }
}
