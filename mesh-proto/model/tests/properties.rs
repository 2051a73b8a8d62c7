//! What holds for any text: nothing panics, and what is accepted reads back as itself.

use std::{fs, path::Path};

use mesh_model::{Meta, Resource, Secret, Stamp, parse, parse_value, to_yaml};
use proptest::{collection::vec, prelude::*, sample::Index};

fn examples() -> Vec<String> {
    let mut texts = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "yaml") {
                texts.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    texts.sort();
    texts
}

/// One change of a text.
#[derive(Debug, Clone)]
enum Change {
    /// A byte becomes another.
    Byte(Index, u8),
    /// A line goes away.
    Drop(Index),
    /// A line stands at another place, too.
    Copy(Index, Index),
    /// The text ends early.
    Cut(Index),
    /// Something that means something in YAML is put in.
    Insert(Index, &'static str),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<Index>;
    let words = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ": ",
        "- ",
        "&a ",
        "*a ",
        "!!str ",
        "<<: ",
        "---\n",
        "...\n",
        "\t",
        "\"",
        "'",
        "| ",
        "> ",
        "# ",
        "? ",
        "%TAG ",
        "null",
        "1e999",
        "-0",
        "0x",
        "99999999999999999999",
        "\u{feff}",
        "\0",
        "é",
    ]);
    prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        index().prop_map(Change::Drop),
        (index(), index()).prop_map(|(from, to)| Change::Copy(from, to)),
        index().prop_map(Change::Cut),
        (index(), words).prop_map(|(at, word)| Change::Insert(at, word)),
    ]
}

fn changed(text: &str, changes: &[Change]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for change in changes {
        let mut lines: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
        match change {
            Change::Byte(at, byte) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Change::Drop(at) => {
                lines.remove(at.index(lines.len()));
                bytes = lines.join(&b'\n');
            }
            Change::Copy(from, to) => {
                let line = lines[from.index(lines.len())].clone();
                lines.insert(to.index(lines.len()), line);
                bytes = lines.join(&b'\n');
            }
            Change::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
            Change::Insert(at, word) => {
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..at, word.bytes());
            }
            Change::Byte(..) => {}
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads `text`; what is accepted must read back as itself in every form, what is refused must say something.
fn holds(text: &str) {
    match parse(text, "text") {
        Ok(resources) => {
            for resource in resources {
                let view = resource.to_view(&Stamp::default());
                let yaml = to_yaml(&view);
                assert_eq!(parse(&yaml, "yaml"), Ok(vec![resource.clone()]), "{yaml}");
                assert_eq!(
                    Resource::from_json(&resource.to_json()),
                    Ok(resource.clone())
                );
                let _ = mesh_model::warnings(&resource);
            }
        }
        Err(violations) => {
            assert!(!violations.0.is_empty());
            assert!(violations.0.len() <= 101);
            for violation in violations.0 {
                assert!(!violation.message.is_empty());
                assert!(violation.line > 0 && violation.column > 0, "{violation}");
            }
        }
    }
    let _ = Resource::from_json(text.as_bytes());
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let words = prop::sample::select(vec![
        "type",
        "name",
        "mesh",
        "labels",
        "spec",
        "networking",
        "inbound",
        "port",
        "rules",
        "default",
        "allow",
        "spiffeID",
        "value",
        "kuma.io/service",
        "isthmus.io/service",
        "Dataplane",
        "MeshService",
        "MeshTrafficPermission",
        "Mesh",
        "",
        "a\"]b",
    ]);
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        words.clone().prop_map(Into::into),
        ".*".prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        let words = words.clone().prop_map(str::to_owned);
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Into::into),
            vec((words, inner), 0..8)
                .prop_map(|entries| serde_json::Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bytes_panic_a_parser(bytes in vec(any::<u8>(), 0..300)) {
        holds(&String::from_utf8_lossy(&bytes));
        let _ = Resource::from_json(&bytes);
    }

    #[test]
    fn no_text_panics_a_parser(text in r"([\[\]{}:,&*!|>?%@`'#\n \t-]|[a-z0-9]){0,80}") {
        holds(&text);
    }

    #[test]
    fn no_mangled_example_panics_a_parser(
        text in prop::sample::select(examples()),
        changes in vec(change(), 1..12),
    ) {
        holds(&changed(&text, &changes));
    }

    #[test]
    fn no_value_panics_a_parser(value in any_json()) {
        if let Ok(resource) = parse_value(&value, "value") {
            prop_assert_eq!(Resource::from_json(&resource.to_json()), Ok(resource));
        }
        let _ = Resource::from_json(value.to_string().as_bytes());
    }

    #[test]
    fn any_label_value_survives_yaml(value in "[A-Za-z0-9]([A-Za-z0-9_.-]{0,8}[A-Za-z0-9])?|yes|no|null|true|0x1f|1e3|1_000|010|~|12:30") {
        if value == "~" || value == "12:30" {
            return Ok(());
        }
        let resource = Resource::new(
            Meta::new("payments", "a").with_label("key", &value),
            Secret { data: "YQ==".into() },
        );
        let yaml = to_yaml(&resource.to_view(&Stamp::default()));
        prop_assert_eq!(parse(&yaml, "yaml"), Ok(vec![resource]), "{}", yaml);
    }
}

#[test]
fn deep_nesting_is_refused() {
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")] {
        let text = format!("{}x{}", open.repeat(100_000), close.repeat(100_000));
        assert!(parse(&text, "deep").is_err());
    }
}

#[test]
fn what_aliases_stand_for_is_bounded() {
    let mut text =
        String::from("type: Mesh\nname: a\nlabels:\n  l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let below = format!("*l{}", level - 1);
        text += &format!(
            "  l{level}: &l{level} [{}]\n",
            [below.as_str(); 10].join(", ")
        );
    }
    let violations = parse(&text, "laughs").unwrap_err();
    assert_eq!(
        violations.to_string(),
        "laughs:7:47: the aliases of this document stand for more than 10000 values"
    );
}

#[test]
fn many_violations_are_counted() {
    let text = format!("type: Mesh\nname: a\nzones: [{}]", "1, ".repeat(1000));
    let violations = parse(&text, "many").unwrap_err();
    assert_eq!(violations.0.len(), 101);
    assert_eq!(violations.0[100].message, "and 900 more violations");
}
