//! The book's reference of every kind is what the types say. `UPDATE_GOLDEN=1` writes it anew.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use mesh_model::{Descriptor, NameRule, Scope, Writers, json_schema, kinds};
use serde_json::Value;

/// Where the pages are.
fn pages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/book/reference")
}

/// Fields that every kind has, told once.
const ENVELOPE: &[&str] = &["type", "mesh", "name", "labels"];

/// Depth of fields within fields that is followed. No kind is deeper; a type that contains itself would be.
const DEPTH_MAX: usize = 16;

#[test]
fn the_reference_of_every_kind_is_what_the_types_say() {
    let mut wanted: BTreeMap<String, String> = kinds()
        .iter()
        .filter(|kind| kind.writers != Writers::System)
        .map(|kind| (format!("kinds/{}.md", kind.plural), page(kind)))
        .collect();
    wanted.insert("kinds.md".to_owned(), overview());
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    if update {
        fs::create_dir_all(pages().join("kinds")).expect("a folder for the pages");
    }
    let mut stale = Vec::new();
    for (name, text) in &wanted {
        let path = pages().join(name);
        if fs::read_to_string(&path).is_ok_and(|found| found == *text) {
            continue;
        }
        if update {
            fs::write(&path, text).expect("a page is written");
        } else {
            stale.push(name.clone());
        }
    }
    let there = fs::read_dir(pages().join("kinds")).expect("the pages are there");
    for file in there.flatten() {
        let name = format!("kinds/{}", file.file_name().to_string_lossy());
        if !wanted.contains_key(&name) {
            stale.push(name);
        }
    }
    assert!(
        stale.is_empty(),
        "pages of the reference that are not what the types say (UPDATE_GOLDEN=1 writes them anew): {stale:?}"
    );
}

fn overview() -> String {
    let mut text = String::from(
        "# Kinds of resources\n\nGenerated from the types; one page a kind. `meshctl` takes the name, the plural and the short name, in any letter case.\n\n\
         | kind | short | lives in | written by | what it says |\n| --- | --- | --- | --- | --- |\n",
    );
    for kind in kinds().iter().filter(|k| k.writers != Writers::System) {
        let schema = json_schema(kind);
        text.push_str(&format!(
            "| [{}](kinds/{}.md) | `{}` | {} | {} | {} |\n",
            kind.name,
            kind.plural,
            kind.short,
            scope(kind),
            writers(kind),
            cell(first_sentence(
                schema["description"].as_str().unwrap_or_default()
            )),
        ));
    }
    text
}

fn page(kind: &Descriptor) -> String {
    let schema = json_schema(kind);
    let mut text = format!(
        "# {}\n\n{}\n\n| plural | short | lives in | written by | its name |\n| --- | --- | --- | --- | --- |\n| `{}` | `{}` | {} | {} | {} |\n",
        kind.name,
        schema["description"].as_str().unwrap_or_default(),
        kind.plural,
        kind.short,
        scope(kind),
        writers(kind),
        match kind.name_rule {
            NameRule::Label => "an RFC 1035 label",
            NameRule::Subdomain => "an RFC 1123 subdomain",
        },
    );
    if let Some(example) = example(kind) {
        text.push_str(&format!("\n```yaml\n{}\n```\n", example.trim_end()));
    }
    let mut fields = Vec::new();
    let content = if kind.spec_field {
        &schema["properties"]["spec"]
    } else {
        &schema
    };
    let at = if kind.spec_field { "spec" } else { "" };
    collect(&schema, content, at, 0, &mut fields);
    if !fields.is_empty() {
        text.push_str("\n## Fields\n\n| field | type | what it says |\n| --- | --- | --- |\n");
    }
    for field in fields {
        text.push_str(&format!(
            "| `{}`{} | {} | {} |\n",
            field.path,
            if field.required { " (required)" } else { "" },
            cell(&field.form),
            cell(&field.description)
        ));
    }
    text.push_str(&format!(
        "\nThe JSON Schema is at `GET /v1/schema/{}` of the API.\n",
        kind.plural
    ));
    text
}

struct Field {
    path: String,
    form: String,
    required: bool,
    description: String,
}

/// Every field below `schema`, in the order of the schema.
fn collect(root: &Value, schema: &Value, at: &str, depth: usize, out: &mut Vec<Field>) {
    let schema = resolved(root, schema);
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    for (name, property) in properties {
        if at.is_empty()
            && (ENVELOPE.contains(&name.as_str()) || property["readOnly"] == Value::Bool(true))
        {
            continue;
        }
        let target = resolved(root, property);
        let mut path = if at.is_empty() {
            name.clone()
        } else {
            format!("{at}.{name}")
        };
        let required = schema["required"]
            .as_array()
            .is_some_and(|list| list.iter().any(|one| one == name.as_str()));
        let description = [property, target]
            .iter()
            .find_map(|schema| schema["description"].as_str())
            .unwrap_or_default()
            .to_owned();
        out.push(Field {
            path: path.clone(),
            form: form(root, target),
            required,
            description,
        });
        let inner = if target["items"].is_object() {
            path.push_str("[]");
            &target["items"]
        } else {
            target
        };
        if depth < DEPTH_MAX {
            collect(root, inner, &path, depth + 1, out);
        }
    }
}

/// Behind references, and without the alternative `null`, which stands for absence.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.trim_start_matches("#/$defs/");
        return resolved(root, &root["$defs"][name]);
    }
    let Some(alternatives) = schema["anyOf"].as_array() else {
        return schema;
    };
    let mut present = alternatives.iter().filter(|one| one["type"] != "null");
    match (present.next(), present.next()) {
        (Some(only), None) => resolved(root, only),
        _ => schema,
    }
}

/// The type, in words.
fn form(root: &Value, schema: &Value) -> String {
    let schema = resolved(root, schema);
    if let Some(words) = schema["enum"].as_array() {
        let words = words.iter().filter(|word| !word.is_null());
        return words.map(word).collect::<Vec<_>>().join(", ");
    }
    if let Some(alternatives) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
        let all: Vec<_> = alternatives
            .iter()
            .filter(|one| one["type"] != "null")
            .map(|one| match one.get("const") {
                Some(constant) => word(constant),
                None => form(root, one),
            })
            .collect();
        return all.join(", ");
    }
    let plain = match &schema["type"] {
        Value::String(one) => one.as_str(),
        Value::Array(several) => several
            .iter()
            .filter_map(Value::as_str)
            .find(|one| *one != "null")
            .unwrap_or("anything"),
        _ => "anything",
    };
    let format = schema["format"].as_str().unwrap_or_default();
    match (plain, format) {
        ("array", _) => format!("list of {}", form(root, &schema["items"])),
        ("object", _) if schema["additionalProperties"].is_object() => "map".to_owned(),
        ("string", "go-duration") => "duration, such as `1m30s`".to_owned(),
        ("string", "ip") => "IP address".to_owned(),
        ("integer", "uint16") if schema["minimum"] == 1 => "port".to_owned(),
        (plain, _) => plain.to_owned(),
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

/// The fullest valid example of this kind, which is tested where it lies.
fn example(kind: &Descriptor) -> Option<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/examples")
        .join(kind.name);
    let mut files: Vec<_> = fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|file| file.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("valid") && name.ends_with(".yaml")
        })
        .collect();
    files.sort();
    files
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .max_by_key(String::len)
}

fn scope(kind: &Descriptor) -> &'static str {
    match kind.scope {
        Scope::Global => "the installation",
        Scope::Mesh => "a mesh",
    }
}

fn writers(kind: &Descriptor) -> &'static str {
    match kind.writers {
        Writers::Admin => "administrators",
        Writers::AdminOrZone => "administrators, and zones for what is theirs",
        Writers::Zone => "the dataplane or zone it describes",
        Writers::System => "the control planes",
    }
}

fn first_sentence(text: &str) -> &str {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    paragraph
        .find(". ")
        .map_or(paragraph, |at| &paragraph[..=at])
}

/// On one line, as a table needs it.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}
