//! Files of Kuma 2 and what becomes of them, side by side below `tests/kuma/`; and that no permission lets in anybody new,
//! tried on many random sets of them. `UPDATE_GOLDEN=1 cargo test -p meshctl import` writes the expected files anew.

use std::{fs, path::PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Document, convert, report};
use crate::{failure::Failure, output};

fn documents(text: &str) -> Vec<Document> {
    let read = mesh_model::parse::documents(text, "kuma.yaml").unwrap();
    let read = read.into_iter();
    read.flat_map(|raw| Document::of(raw, "kuma.yaml", "default").unwrap())
        .collect()
}

fn zones(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What comes out of the file `name`, and the report, as one text.
fn golden(name: &str) {
    let path = |end: &str| {
        PathBuf::from(format!(
            "{}/tests/kuma/{name}.{end}",
            env!("CARGO_MANIFEST_DIR")
        ))
    };
    let input = fs::read_to_string(path("input.yaml")).unwrap();
    let imported = convert(&documents(&input), &zones(&["east", "west"])).unwrap();
    let beside: Vec<_> = imported
        .beside
        .iter()
        .map(|(value, _)| value.clone())
        .collect();
    let all = imported.apply.iter().chain(&beside);
    let yaml = output::yaml(all.clone());
    // Everything is read by `meshctl apply`, or by `dataplane run`.
    let read = mesh_model::parse(&yaml, name).unwrap();
    assert_eq!(read.len(), all.count());
    for (end, text) in [
        ("output.yaml", yaml),
        ("report.txt", report::text(&imported.lines, true)),
    ] {
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(path(end), &text).unwrap();
        }
        let wanted = fs::read_to_string(path(end)).unwrap_or_default();
        assert!(
            wanted == text,
            "{name}.{end} differs:\n{}",
            crate::diff::lines(&wanted, &text, false)
        );
    }
}

#[test]
fn what_a_mesh_said_is_said_by_resources() {
    golden("mesh");
}

#[test]
fn permissions_with_from_are_rules() {
    golden("permissions");
}

#[test]
fn traffic_permissions_are_mesh_traffic_permissions() {
    golden("traffic-permissions");
}

#[test]
fn policies_select_by_labels_and_have_rules() {
    golden("policies");
}

#[test]
fn policies_with_sources_and_destinations_have_successors() {
    golden("legacy");
}

#[test]
fn tags_of_dataplanes_are_labels() {
    golden("dataplanes");
}

#[test]
fn resources_of_kubernetes_are_read_too() {
    golden("kubernetes");
}

#[test]
fn callers_can_not_be_said_without_the_zones() {
    let text = "type: TrafficPermission\nname: a\nsources:\n- match: {kuma.io/service: web}\ndestinations:\n- match: {kuma.io/service: api}\n";
    let Err(Failure::Invalid(refused)) = convert(&documents(text), &[]) else {
        panic!("the zones are not known");
    };
    assert!(
        refused.starts_with("kuma.yaml:4: TrafficPermission a"),
        "{refused}"
    );
    assert!(refused.contains("--zone"), "{refused}");
    // A dataplane that names its zone is enough.
    let dataplane = "---\ntype: Dataplane\nname: web-1\nnetworking:\n  address: 10.0.0.1\n  inbound:\n  - port: 80\n    tags: {kuma.io/service: web, kuma.io/zone: east}\n";
    assert!(convert(&documents(&format!("{text}{dataplane}")), &[]).is_ok());
}

// === nobody new is let in ===

const SERVICES: [&str; 3] = ["web", "api", "db"];
const ZONES: [&str; 2] = ["east", "west"];
const TEAMS: [&str; 2] = ["a", "b"];

/// A dataplane, as called and as caller.
#[derive(Debug, Clone)]
struct Workload {
    service: &'static str,
    zone: &'static str,
    team: &'static str,
}

fn workloads() -> Vec<Workload> {
    let mut all = Vec::new();
    for service in SERVICES {
        for zone in ZONES {
            all.extend(TEAMS.map(|team| Workload {
                service,
                zone,
                team,
            }));
        }
    }
    all
}

fn has(workload: &Workload, tags: &Value) -> bool {
    tags.as_object().unwrap().iter().all(|(key, value)| {
        let own = match key.as_str() {
            "kuma.io/service" => workload.service,
            "kuma.io/zone" => workload.zone,
            "team" => workload.team,
            other => panic!("{other}"),
        };
        value == "*" || value == own
    })
}

fn tags() -> impl Strategy<Value = Value> {
    let maybe = |name: &'static str, of: &'static [&'static str]| {
        prop_oneof![
            Just(None),
            proptest::sample::select(of).prop_map(move |value| Some((name, value)))
        ]
    };
    (
        maybe("kuma.io/service", &SERVICES),
        maybe("kuma.io/zone", &ZONES),
        maybe("team", &TEAMS),
    )
        .prop_map(|(service, zone, team)| {
            let pairs = [service, zone, team].into_iter().flatten();
            Value::Object(
                pairs
                    .map(|(key, value)| (key.to_owned(), value.into()))
                    .collect(),
            )
        })
}

fn target_ref() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"kind": "Mesh"})),
        tags().prop_map(|tags| json!({"kind": "MeshSubset", "tags": tags})),
        proptest::sample::select(&SERVICES[..])
            .prop_map(|name| json!({"kind": "MeshService", "name": name})),
    ]
}

fn selects(target: &Value, workload: &Workload) -> bool {
    match target["kind"].as_str().unwrap() {
        "Mesh" => true,
        "MeshSubset" => has(workload, &target["tags"]),
        _ => target["name"] == workload.service,
    }
}

fn policy() -> impl Strategy<Value = Value> {
    let action = proptest::sample::select(&["Allow", "Deny", "AllowWithShadowDeny"][..]);
    let entry = (target_ref(), action)
        .prop_map(|(target, action)| json!({"targetRef": target, "default": {"action": action}}));
    (target_ref(), proptest::collection::vec(entry, 1..4))
        .prop_map(|(target, from)| json!({"targetRef": target, "from": from}))
}

/// What Kuma 2 decides: the strongest entry that matches.
fn kuma_allows(policies: &[Value], called: &Workload, caller: &Workload) -> bool {
    let rank = |target: &Value| match target["kind"].as_str().unwrap() {
        "Mesh" => 0,
        "MeshSubset" => 1,
        _ => 2,
    };
    let mut entries = Vec::new();
    for (index, policy) in policies.iter().enumerate() {
        let target = &policy["spec"]["targetRef"];
        if selects(target, called) {
            // The alphabetically first name is the strongest.
            let strength = (rank(target), std::cmp::Reverse(index));
            let from = policy["spec"]["from"]
                .as_array()
                .unwrap()
                .iter()
                .enumerate();
            let matching = from.filter(|(_, entry)| selects(&entry["targetRef"], caller));
            entries.extend(
                matching.map(|(at, entry)| ((strength, at), entry["default"]["action"] != "Deny")),
            );
        }
    }
    entries
        .iter()
        .max_by_key(|(strength, _)| *strength)
        .is_some_and(|(_, allows)| *allows)
}

/// What we decide, of what came out.
fn we_allow(policies: &[Value], called: &Workload, caller: &Workload) -> bool {
    let id = format!(
        "spiffe://default.{}.mesh.local/workload/{}",
        caller.zone, caller.service
    );
    let labels = json!({"isthmus.io/service": called.service, "isthmus.io/zone": called.zone, "team": called.team});
    let mut verdicts = [false, false];
    for policy in policies {
        let wanted = policy["spec"]["targetRef"]["labels"]
            .as_object()
            .into_iter()
            .flatten();
        if !wanted
            .clone()
            .all(|(key, value)| labels[key.as_str()] == *value)
        {
            continue;
        }
        for rule in policy["spec"]["rules"].as_array().unwrap() {
            for (list, index) in [("allow", 0), ("allowWithShadowDeny", 0), ("deny", 1)] {
                let matches = rule["default"][list].as_array().into_iter().flatten();
                verdicts[index] |= matches.map(|one| &one["spiffeID"]).any(|one| {
                    let value = one["value"].as_str().unwrap();
                    if one["type"] == "Exact" {
                        id == value
                    } else {
                        id.starts_with(value)
                    }
                });
            }
        }
    }
    verdicts[0] && !verdicts[1]
}

fn imported(policies: &[Value]) -> Vec<Value> {
    let text = output::yaml(policies);
    convert(&documents(&text), &zones(&ZONES)).unwrap().apply
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_permission_lets_in_anybody_new(specs in proptest::collection::vec(policy(), 1..5)) {
        let policies: Vec<_> = specs
            .into_iter()
            .enumerate()
            .map(|(index, spec)| json!({"type": "MeshTrafficPermission", "mesh": "default", "name": format!("p{index}"), "spec": spec}))
            .collect();
        let ours = imported(&policies);
        for called in workloads() {
            for caller in workloads() {
                prop_assert!(
                    kuma_allows(&policies, &called, &caller) || !we_allow(&ours, &called, &caller),
                    "{caller:?} may call {called:?} now\n{}\nis\n{}",
                    output::yaml(&policies),
                    output::yaml(&ours)
                );
            }
        }
    }

    #[test]
    fn no_old_permission_lets_in_anybody_new(
        specs in proptest::collection::vec(
            (proptest::collection::vec(tags(), 1..3), proptest::collection::vec(tags(), 1..3)), 1..5)
    ) {
        let selectors = |tags: &[Value]| tags.iter().map(|tags| json!({"match": tags})).collect::<Vec<_>>();
        let policies: Vec<_> = specs
            .iter()
            .enumerate()
            .map(|(index, (sources, destinations))| json!({
                "type": "TrafficPermission", "mesh": "default", "name": format!("p{index}"),
                "sources": selectors(sources), "destinations": selectors(destinations),
            }))
            .collect();
        let ours = imported(&policies);
        for called in workloads() {
            // The most specific counted alone; of equals, it could be each.
            let rank = |destinations: &[Value]| {
                let matching = destinations.iter().filter(|tags| has(&called, tags));
                matching.map(|tags| tags.as_object().unwrap().len()).max()
            };
            let best = specs.iter().filter_map(|(_, destinations)| rank(destinations)).max();
            let candidates: Vec<_> = specs
                .iter()
                .filter(|(_, destinations)| best.is_some() && rank(destinations) == best)
                .collect();
            for caller in workloads() {
                let allowed = !candidates.is_empty()
                    && candidates.iter().all(|(sources, _)| sources.iter().any(|tags| has(&caller, tags)));
                prop_assert!(
                    allowed || !we_allow(&ours, &called, &caller),
                    "{caller:?} may call {called:?} now\n{}\nis\n{}",
                    output::yaml(&policies),
                    output::yaml(&ours)
                );
            }
        }
    }
}
