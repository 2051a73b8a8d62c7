//! Examples of every kind: texts that are read, and texts that are refused, each refusal at its line.
//!
//! In `invalid/`, a line ends in `#! path: message` for each violation that is reported there; nothing else is reported.

use std::{fs, path::Path};

use mesh_model::{Resource, Stamp, kinds, parse, to_yaml};

fn examples(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(folder);
    let mut examples: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    examples.sort();
    examples
}

fn valid() -> Vec<Resource> {
    examples("valid")
        .into_iter()
        .flat_map(|(name, text)| parse(&text, &name).unwrap_or_else(|e| panic!("{e}")))
        .collect()
}

/// `line: path: message` of every `#!`.
fn expected(text: &str) -> Vec<String> {
    let lines = text.lines().enumerate();
    lines
        .flat_map(|(index, line)| {
            let marks = line.split("#!").skip(1);
            marks.map(move |mark| format!("{}: {}", index + 1, mark.trim()))
        })
        .collect()
}

#[test]
fn every_violation_is_reported_at_its_line_and_nothing_else() {
    let mut wrong = String::new();
    for (name, text) in examples("invalid") {
        let found = match parse(&text, &name) {
            Ok(_) => vec![],
            Err(violations) => violations.0,
        };
        let mut found: Vec<String> = found
            .into_iter()
            .map(|v| {
                assert_eq!(v.source, name);
                assert!(v.column > 0, "{v}");
                let path = if v.path.is_empty() {
                    String::new()
                } else {
                    format!("{}: ", v.path)
                };
                format!("{}: {path}{}", v.line, v.message)
            })
            .collect();
        let mut expected = expected(&text);
        found.sort();
        expected.sort();
        if found != expected {
            wrong += &format!(
                "{name}\nmissing:\n{}not expected:\n{}",
                list(&expected, &found),
                list(&found, &expected)
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn list(these: &[String], without: &[String]) -> String {
    let lines = these.iter().filter(|line| !without.contains(line));
    lines.map(|line| format!("  {line}\n")).collect()
}

#[test]
fn every_kind_that_is_written_has_valid_and_invalid_examples() {
    let valid = valid();
    let invalid = examples("invalid");
    for kind in kinds() {
        if kind.writers == mesh_model::Writers::System {
            continue;
        }
        assert!(valid.iter().any(|r| r.kind() == kind), "{}", kind.name);
        let heading = format!("type: {}", kind.name);
        let mut texts = invalid.iter().map(|(_, text)| text);
        assert!(texts.any(|text| text.contains(&heading)), "{}", kind.name);
    }
}

#[test]
fn what_is_read_back_applies_again_unchanged() {
    let stamp = Stamp {
        revision: 7,
        creation_time: "2026-01-01T00:00:00Z".into(),
        modification_time: "2026-01-01T00:00:00Z".into(),
    };
    for resource in valid() {
        let view = resource.to_view(&stamp);
        let yaml = to_yaml(&view);
        assert_eq!(parse(&yaml, "yaml"), Ok(vec![resource.clone()]), "{yaml}");
        let json = view.to_string();
        assert_eq!(parse(&json, "json"), Ok(vec![resource.clone()]), "{json}");
        assert_eq!(mesh_model::parse_value(&view, "value"), Ok(resource));
    }
}

#[test]
fn the_canonical_form_reads_back_and_is_its_own() {
    for resource in valid() {
        let json = resource.to_json();
        let again = Resource::from_json(&json).unwrap();
        assert_eq!(again, resource);
        assert_eq!(again.to_json(), json);
    }
}
