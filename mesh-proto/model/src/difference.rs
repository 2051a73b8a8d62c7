//! Which fields of two values differ, for people who look at what a change would do.

use serde_json::Value;

use crate::path;

/// Paths of the fields that differ between `before` and `after`, in order. A field that only one of them has is named
/// itself, not what is in it; so is a list whose length differs.
#[must_use]
pub fn difference(before: &Value, after: &Value) -> Vec<String> {
    let changed = changed_fields(before, after).into_iter();
    changed.map(|(path, _, _)| path).collect()
}

/// A path, and what is there before and after.
type Changed<'a> = (String, Option<&'a Value>, Option<&'a Value>);

/// The fields that differ, as [`difference`] names them, with what each was and is.
#[must_use]
pub fn changed_fields<'a>(before: &'a Value, after: &'a Value) -> Vec<Changed<'a>> {
    let mut changed = Vec::new();
    collect("", before, after, &mut changed);
    changed
}

fn collect<'a>(at: &str, before: &'a Value, after: &'a Value, paths: &mut Vec<Changed<'a>>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                let path = path::field(at, name);
                match (before.get(name), after.get(name)) {
                    (Some(before), Some(after)) => collect(&path, before, after, paths),
                    (before, after) => paths.push((path, before, after)),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                collect(&path::item(at, index), before, after, paths);
            }
        }
        _ if before == after => {}
        _ => paths.push((at.to_owned(), Some(before), Some(after))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_innermost_field_that_differs_is_named() {
        for (before, after, expected) in [
            (json!({"a": 1}), json!({"a": 1}), vec![]),
            (
                json!({"a": 1, "b": {"c": 1, "d": 2}}),
                json!({"a": 1, "b": {"c": 2, "d": 2}}),
                vec!["b.c"],
            ),
            (json!({"b": {"c": 1}}), json!({"d": 1}), vec!["b", "d"]),
            (
                json!({"l": [{"x": 1}, {"x": 2}]}),
                json!({"l": [{"x": 1}, {"x": 3}]}),
                vec!["l[1].x"],
            ),
            (json!({"l": [1]}), json!({"l": [1, 2]}), vec!["l"]),
            (json!({"l": [1]}), json!({"l": "one"}), vec!["l"]),
            (
                json!({"labels": {"a/b": "1"}}),
                json!({"labels": {}}),
                vec!["labels[\"a/b\"]"],
            ),
        ] {
            assert_eq!(difference(&before, &after), expected, "{before} {after}");
        }
    }
}
