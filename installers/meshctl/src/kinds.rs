//! Kinds of resources: as people name them, their place in the API, and their columns.

use std::time::SystemTime;

use mesh_model::{Descriptor, Scope, Writers, api::Key, find_kind, kinds};
use serde_json::Value;

use crate::{cli::checked_name, conditions, failure::Failure, output};

/// The kind that lives in its zone's memory and not in global; it is looked at live.
pub(crate) const DATAPLANE: &str = "Dataplane";

/// The kind a person means by its name, plural or short name.
pub(crate) fn resolve(word: &str) -> Result<&'static Descriptor, Failure> {
    if let Some(kind) = find_kind(word) {
        return Ok(kind);
    }
    let known = || {
        kinds()
            .iter()
            .filter(|kind| kind.writers != Writers::System)
    };
    let lower = word.to_lowercase();
    let nearest = known()
        .flat_map(|kind| [kind.plural.to_owned(), kind.name.to_lowercase()])
        .map(|name| (strsim::damerau_levenshtein(&lower, &name), name))
        .min()
        // A short word is near to anything.
        .filter(|(distance, _)| *distance <= 3.min(lower.len() / 2));
    let hint = match nearest {
        Some((_, name)) => format!("Did you mean {name}?"),
        None => {
            let all: Vec<_> = known()
                .map(|kind| format!("{} ({})", kind.plural, kind.short))
                .collect();
            format!("There are {}.", all.join(", "))
        }
    };
    Err(Failure::invalid(format!(
        "{word:?} is no kind of resource. {hint}"
    )))
}

/// True for kinds that say what proxies do, and so select them by a `targetRef`.
pub(crate) fn is_policy(kind: &Descriptor) -> bool {
    kind.scope == Scope::Mesh
        && kind.spec_field
        && mesh_model::json_schema(kind)
            .pointer("/properties/spec/properties/targetRef")
            .is_some()
}

/// Resources of one kind by name, typed as `KIND NAME…` or `KIND/NAME…`.
#[derive(Debug)]
pub(crate) struct Targets {
    /// The kind.
    pub(crate) kind: &'static Descriptor,
    /// The names; empty: all.
    pub(crate) names: Vec<String>,
}

/// Reads `KIND NAME…` or `KIND/NAME…`.
pub(crate) fn targets(words: &[String]) -> Result<Targets, Failure> {
    let Some((first, rest)) = words.split_first() else {
        return Err(Failure::invalid("which kind of resource?"));
    };
    let targets = match first.split_once('/') {
        None => Targets {
            kind: resolve(first)?,
            names: rest.to_vec(),
        },
        Some((kind, name)) => {
            let kind = resolve(kind)?;
            let mut names = vec![name.to_owned()];
            for word in rest {
                match word.split_once('/') {
                    Some((other, name)) if resolve(other)? == kind => names.push(name.to_owned()),
                    Some(_) => return Err(Failure::invalid("one kind at a time")),
                    None => names.push(word.clone()),
                }
            }
            Targets { kind, names }
        }
    };
    for name in &targets.names {
        checked_name(name)?;
    }
    Ok(targets)
}

/// Where resources of `kind` are below `/v1`; `mesh` counts for kinds that live in one.
pub(crate) fn path<'a>(kind: &'static Descriptor, mesh: &'a str) -> Vec<&'a str> {
    match kind.scope {
        Scope::Global => vec![kind.plural],
        Scope::Mesh => vec!["meshes", mesh, kind.plural],
    }
}

/// `meshservice/web`, as `-o name` prints it and commands take it.
pub(crate) fn short_name(kind: &str, name: &str) -> String {
    format!("{}/{name}", kind.to_lowercase())
}

/// `meshservice/web in mesh payments, zone west`.
pub(crate) fn display(key: &Key) -> String {
    let mut text = short_name(&key.kind, &key.name);
    if !key.mesh.is_empty() {
        text.push_str(&format!(" in mesh {}", key.mesh));
    }
    if !key.zone.is_empty() {
        text.push_str(&format!(", zone {}", key.zone));
    }
    text
}

/// A table of resources of one kind: its own columns between name, origin, revision and age. A kind without columns of
/// its own gets only those. STATUS is there for policies, and where the server says something; `meshes` adds the mesh,
/// and `wide` mesh, labels and the time of the last change.
pub(crate) fn table(
    kind: &Descriptor,
    items: &[Value],
    now: SystemTime,
    wide: bool,
    meshes: bool,
) -> String {
    let meshes = (meshes || wide) && kind.scope == Scope::Mesh;
    let own: &[Column] = match kind.name {
        "Mesh" => &[("ZONES", |item| {
            words(&item["zones"]).unwrap_or("all".to_owned())
        })],
        "Zone" => &[
            ("ENABLED", |item| {
                (item["enabled"] != Value::Bool(false)).to_string()
            }),
            ("PLATFORM", |item| text(&item["platform"])),
        ],
        "MeshService" => &[
            ("PORTS", |item| ports(&item["spec"]["ports"])),
            ("STATE", |item| text(&item["spec"]["state"])),
        ],
        "MeshIdentity" => &[
            ("PROVIDER", |item| text(&item["spec"]["provider"]["type"])),
            ("TRUST DOMAIN", |item| {
                text(&item["spec"]["spiffeID"]["trustDomain"])
            }),
        ],
        "MeshTrust" => &[
            ("TRUST DOMAIN", |item| text(&item["spec"]["trustDomain"])),
            ("ANCHORS", |item| count(&item["spec"]["caBundles"])),
        ],
        "ZoneIngress" | "ZoneEgress" => &[("ADDRESS", ingress_address)],
        _ if is_policy(kind) => POLICY,
        _ => &[],
    };
    let states: Vec<_> = items.iter().map(conditions::status).collect();
    let says = is_policy(kind) || states.iter().any(Option::is_some);
    let mut header = Vec::new();
    if meshes {
        header.push("MESH");
    }
    header.extend(["NAME", "ORIGIN"]);
    header.extend(own.iter().map(|(name, _)| *name));
    if says {
        header.push("STATUS");
    }
    header.extend(["REVISION", "AGE"]);
    if wide {
        header.extend(["CHANGED", "LABELS"]);
    }
    let rows = items.iter().zip(states).map(|(item, state)| {
        let mut row = Vec::new();
        if meshes {
            row.push(text(&item["mesh"]));
        }
        row.push(text(&item["name"]));
        row.push(text(&item["labels"]["isthmus.io/origin"]));
        row.extend(own.iter().map(|(_, cell)| cell(item)));
        if says {
            row.push(state.unwrap_or_default());
        }
        row.push(text(&item["revision"]));
        row.push(output::age(&text(&item["creationTime"]), now));
        if wide {
            row.push(output::age(&text(&item["modificationTime"]), now));
            row.push(labels(&item["labels"]));
        }
        row
    });
    output::table(&header, rows.collect())
}

/// What every policy is about.
const POLICY: &[Column] = &[
    ("TARGET", |item| target(&item["spec"]["targetRef"])),
    ("TO", |item| {
        let to = item["spec"]["to"].as_array().map(Vec::as_slice);
        let targets = to.unwrap_or_default().iter();
        targets
            .map(|entry| target(&entry["targetRef"]))
            .collect::<Vec<_>>()
            .join(",")
    }),
    ("RULES", |item| count(&item["spec"]["rules"])),
];

type Column = (&'static str, fn(&Value) -> String);

/// A scalar as people read it; nothing where there is none.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn words(value: &Value) -> Option<String> {
    let items = value.as_array().filter(|items| !items.is_empty())?;
    Some(items.iter().map(text).collect::<Vec<_>>().join(","))
}

fn count(value: &Value) -> String {
    value.as_array().map_or(0, Vec::len).to_string()
}

fn ports(value: &Value) -> String {
    let ports = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let port = |port: &Value| match port["appProtocol"].as_str() {
        Some(protocol) => format!("{}/{protocol}", text(&port["port"])),
        None => text(&port["port"]),
    };
    ports.iter().map(port).collect::<Vec<_>>().join(",")
}

/// What a `targetRef` selects, in words.
pub(crate) fn target(value: &Value) -> String {
    if value.is_null() {
        return "Mesh".to_owned();
    }
    let parts = [
        text(&value["kind"]),
        text(&value["name"]),
        labels(&value["labels"]),
        text(&value["sectionName"]),
    ];
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(" ")
}

/// `team=a,tier=b`; the origin has a column of its own.
pub(crate) fn labels(value: &Value) -> String {
    let pairs = value.as_object().into_iter().flatten();
    pairs
        .filter(|(key, _)| *key != "isthmus.io/origin")
        .map(|(key, value)| format!("{key}={}", text(value)))
        .collect::<Vec<_>>()
        .join(",")
}

fn ingress_address(item: &Value) -> String {
    let networking = &item["networking"];
    let of = |advertised: &str, own: &str| {
        let value = &networking[advertised];
        text(if value.is_null() {
            &networking[own]
        } else {
            value
        })
    };
    let host = of("advertisedAddress", "address");
    let port = of("advertisedPort", "port");
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_kind_is_found_by_name_plural_and_short_name() {
        for word in ["MeshService", "meshservice", "meshservices", "msvc"] {
            assert_eq!(resolve(word).unwrap().name, "MeshService", "{word}");
        }
    }

    #[test]
    fn a_word_that_is_no_kind_gets_the_nearest_or_all() {
        let near = resolve("meshservies").unwrap_err().to_string();
        assert!(near.contains("meshservices"), "{near}");
        for word in ["quux", "mi"] {
            let far = resolve(word).unwrap_err().to_string();
            assert!(far.contains("meshtrafficpermissions"), "{far}");
        }
    }

    #[test]
    fn kind_and_name_may_be_one_word() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for line in ["zone east west", "zones/east zone/west", "zone/east west"] {
            assert_eq!(targets(&words(line)).unwrap().names, ["east", "west"]);
        }
        assert!(targets(&words("zone/east mesh/pay")).is_err());
        assert!(targets(&words("zone ..")).is_err());
    }

    fn item() -> Value {
        json!({
            "type": "MeshService", "mesh": "pay", "name": "web", "revision": 7,
            "labels": {"isthmus.io/origin": "west", "team": "a"}, "creationTime": "1970-01-01T00:00:00Z",
            "modificationTime": "1970-01-01T00:00:30Z",
            "spec": {"ports": [{"port": 80, "appProtocol": "tcp"}, {"port": 90}]},
        })
    }

    fn shown(item: Value, wide: bool) -> String {
        let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(60);
        table(
            resolve(item["type"].as_str().unwrap()).unwrap(),
            &[item],
            now,
            wide,
            false,
        )
    }

    #[test]
    fn a_table_shows_what_a_kind_is_about() {
        assert_eq!(
            shown(item(), false),
            "NAME   ORIGIN   PORTS       STATE   REVISION   AGE\n\
             web    west     80/tcp,90   -       7          60s"
        );
    }

    #[test]
    fn a_wide_table_shows_more() {
        assert_eq!(
            shown(item(), true),
            "MESH   NAME   ORIGIN   PORTS       STATE   REVISION   AGE   CHANGED   LABELS\n\
             pay    web    west     80/tcp,90   -       7          60s   30s       team=a"
        );
    }

    #[test]
    fn what_the_server_says_about_a_policy_is_a_column() {
        let policy = json!({
            "type": "MeshTrafficPermission", "mesh": "pay", "name": "web", "revision": 7,
            "labels": {"isthmus.io/origin": "global"}, "creationTime": "1970-01-01T00:00:00Z",
            "spec": {"targetRef": {"kind": "Dataplane", "labels": {"a": "b"}}, "rules": [{}]},
            "status": {"conditions": [{"type": "Effective", "status": false, "reason": "SelectsNothing"}]},
        });
        assert_eq!(
            shown(policy, false),
            "NAME   ORIGIN   TARGET          TO   RULES   STATUS           REVISION   AGE\n\
             web    global   Dataplane a=b   -    1       SelectsNothing   7          60s"
        );
    }
}
