//! Examples of every kind: texts that are read, and texts that are refused, each refusal at its place.
//!
//! - `examples/<Kind>/valid-*.yaml` are accepted. What warnings say of one stands in `valid-*.warnings`, where they say
//!   anything.
//! - `examples/<Kind>/invalid-*.yaml` are refused. Beside each, `invalid-*.expected` holds everything that is reported, as
//!   `line:column: path: message`. `ISTHMUS_UPDATE_EXPECTED=1 cargo test -p mesh-model --test examples` writes these files.
//!
//! Nothing else is reported.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mesh_model::{Resource, Stamp, Violations, Writers, kinds, parse, to_yaml};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Path and text of every YAML file in or below `folder`.
fn texts(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(texts(&path));
        } else if path.extension().is_some_and(|ext| ext == "yaml") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found.sort();
    found
}

fn begins_with(path: &Path, word: &str) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(word))
}

/// The part of the path below `tests/`.
fn name(path: &Path) -> String {
    path.strip_prefix(tests()).unwrap().display().to_string()
}

fn valid_texts() -> Vec<(PathBuf, String)> {
    let mut texts_of_kinds = texts(&tests().join("examples"));
    texts_of_kinds.retain(|(path, _)| begins_with(path, "valid-"));
    texts_of_kinds
}

fn valid() -> Vec<Resource> {
    valid_texts()
        .into_iter()
        .flat_map(|(path, text)| parse(&text, &name(&path)).unwrap_or_else(|e| panic!("{e}")))
        .collect()
}

fn violations(path: &Path, text: &str) -> Violations {
    let name = name(path);
    let found = parse(text, &name).err().unwrap_or(Violations(vec![]));
    for violation in &found.0 {
        assert_eq!(violation.source, name);
        assert!(violation.line > 0 && violation.column > 0, "{violation}");
    }
    found
}

fn path_and_message(violation: &mesh_model::Violation) -> String {
    match violation.path.as_str() {
        "" => violation.message.clone(),
        path => format!("{path}: {}", violation.message),
    }
}

/// Compares `found` with the golden file, or writes it; gives what is wrong.
fn golden(path: &Path, found: &str) -> Option<String> {
    if std::env::var_os("ISTHMUS_UPDATE_EXPECTED").is_some() {
        if found.is_empty() {
            let _ = fs::remove_file(path);
        } else {
            fs::write(path, found).unwrap();
        }
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    (found != expected).then(|| format!("{}\nexpected:\n{expected}found:\n{found}", name(path)))
}

#[test]
fn every_violation_is_reported_at_its_place_and_nothing_else() {
    let mut wrong = String::new();
    for (path, text) in texts(&tests().join("examples")) {
        if !begins_with(&path, "invalid-") {
            continue;
        }
        let found: String = violations(&path, &text)
            .0
            .iter()
            .map(|v| format!("{}:{}: {}\n", v.line, v.column, path_and_message(v)))
            .collect();
        assert!(!found.is_empty(), "{} is accepted", name(&path));
        wrong.extend(golden(&path.with_extension("expected"), &found));
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_kind_that_is_written_has_valid_and_invalid_examples() {
    let valid = valid();
    let mut invalid = texts(&tests().join("examples"));
    invalid.retain(|(path, _)| !begins_with(path, "valid-"));
    for kind in kinds() {
        if kind.writers == Writers::System {
            continue;
        }
        assert!(valid.iter().any(|r| r.kind() == kind), "{}", kind.name);
        let heading = format!("type: {}\n", kind.name);
        let mut texts = invalid.iter().map(|(_, text)| text);
        assert!(texts.any(|text| text.contains(&heading)), "{}", kind.name);
    }
}

#[test]
fn what_may_not_do_what_its_author_expects_is_said() {
    let mut wrong = String::new();
    for (path, text) in valid_texts() {
        let resources = parse(&text, "").unwrap_or_else(|e| panic!("{e}"));
        let warnings = resources.iter().flat_map(mesh_model::warnings);
        let found: String = warnings.map(|warning| warning + "\n").collect();
        wrong.extend(golden(&path.with_extension("warnings"), &found));
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Kinds of which proxies and control planes of this version do everything that can be written, or most of it.
const ENFORCED: &[&str] = &[
    "Mesh",
    "Zone",
    "Dataplane",
    "MeshService",
    "MeshIdentity",
    "MeshTrust",
    "MeshTrafficPermission",
    "MeshTimeout",
    "MeshTCPRoute",
    "ZoneIngress",
    "Secret",
    "GlobalSecret",
    "User",
    "Role",
    "RoleBinding",
];

#[test]
fn every_kind_that_is_not_enforced_says_so() {
    let valid = valid();
    for kind in kinds() {
        if kind.writers == Writers::System || ENFORCED.contains(&kind.name) {
            continue;
        }
        let said = valid.iter().filter(|r| r.kind() == kind).any(|resource| {
            let warnings = mesh_model::warnings(resource);
            warnings
                .iter()
                .any(|text| text.contains("is not enforced by the proxies"))
        });
        assert!(said, "{}", kind.name);
    }
}

#[test]
fn examples_lie_in_the_folder_of_their_kind() {
    for (path, text) in texts(&tests().join("examples")) {
        let folder = path.parent().and_then(Path::file_name).unwrap();
        let heading = format!("type: {}\n", folder.to_string_lossy());
        assert!(text.contains(&heading), "{}", name(&path));
        assert!(
            begins_with(&path, "valid-") || begins_with(&path, "invalid-"),
            "{}",
            name(&path)
        );
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

#[test]
fn a_policy_gives_every_entry_without_its_kind_being_known() {
    for resource in valid() {
        let shape = resource.kind().policy();
        let policy = resource.policy();
        assert_eq!(policy.is_some(), shape.is_some(), "{}", resource.key());
        let (Some(policy), Some(shape)) = (policy, shape) else {
            continue;
        };
        let view = resource.to_view(&Stamp::default());
        let entries = |field: &str| view["spec"][field].as_array().map_or(0, Vec::len);
        assert_eq!(policy.to().len(), entries("to"), "{}", resource.key());
        assert_eq!(policy.rules().len(), entries("rules"), "{}", resource.key());
        assert_eq!(
            policy.target_ref().is_some(),
            view["spec"].get("targetRef").is_some()
        );
        assert!(
            policy.proxy().is_none() || shape.proxy,
            "{}",
            resource.key()
        );
        for entry in policy.to() {
            assert!(entry.default.is_object(), "{}", resource.key());
        }
        for (entry, written) in policy
            .to()
            .iter()
            .zip(view["spec"]["to"].as_array().into_iter().flatten())
        {
            let target = serde_json::to_value(entry.target).unwrap();
            assert_eq!(target, written["targetRef"], "{}", resource.key());
        }
        for rule in policy.rules() {
            assert!(rule.default.is_object(), "{}", resource.key());
        }
    }
}
