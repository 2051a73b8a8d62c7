//! What holds for any policies: one naive reference that is written down from the rules themselves, and laws of merging.

use std::collections::BTreeMap;

use mesh_model::{
    Dataplane, Kind, MeshTimeout, MeshTrafficPermission, Resource, permission,
    policy::{
        Destination, Known, MatchForm, Merged, Origin, PolicySet, Proxy, Services, conditions,
    },
};
use proptest::{prelude::*, sample::select};
use serde_json::Value;

const WORLD: &str = r#"
{type: Dataplane, mesh: m, name: web-1, labels: {app: web, team: shop}, networking: {address: 10.0.0.1,
  inbound: [{name: http, port: 80, servicePort: 8080}, {port: 81, servicePort: 8081}]}}
---
{type: Dataplane, mesh: m, name: api-1, labels: {app: api, team: shop}, networking: {address: 10.0.0.2,
  inbound: [{name: http, port: 90, servicePort: 9090}]}}
---
{type: MeshService, mesh: m, name: store, labels: {tier: gold}, spec: {ports: [{name: http, port: 80}, {port: 81}]}}
---
{type: MeshService, mesh: m, name: cache, labels: {tier: gold}, spec: {ports: [{port: 6379}]}}
"#;

fn resources(text: &str) -> Vec<Resource> {
    mesh_model::parse(text, "test").unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn target() -> impl Strategy<Value = &'static str> {
    select(vec![
        "{kind: Mesh}",
        "{kind: Dataplane}",
        "{kind: Dataplane, labels: {app: web}}",
        "{kind: Dataplane, labels: {team: shop}}",
        "{kind: Dataplane, labels: {app: none}}",
        "{kind: Dataplane, sectionName: http}",
        "{kind: Dataplane, labels: {app: web}, sectionName: '81'}",
    ])
}

fn timeouts() -> impl Strategy<Value = String> {
    let field = |name: &'static str| {
        prop::option::of(1..9u32).prop_map(move |value| value.map(|v| format!("{name}: {v}s")))
    };
    let http = (field("requestTimeout"), field("streamIdleTimeout")).prop_map(|(a, b)| {
        let fields: Vec<String> = [a, b].into_iter().flatten().collect();
        (!fields.is_empty()).then(|| format!("http: {{{}}}", fields.join(", ")))
    });
    (field("connectionTimeout"), field("idleTimeout"), http).prop_map(|(a, b, c)| {
        let fields: Vec<String> = [a, b, c].into_iter().flatten().collect();
        format!("{{{}}}", fields.join(", "))
    })
}

fn to() -> impl Strategy<Value = String> {
    let target = select(vec![
        "{kind: Mesh}",
        "{kind: MeshService, name: store}",
        "{kind: MeshService, labels: {isthmus.io/display-name: store}, sectionName: http}",
        "{kind: MeshService, name: store, sectionName: '80'}",
        "{kind: MeshService, labels: {tier: gold}}",
        "{kind: MeshService, name: cache}",
        "{kind: MeshService, name: nobody}",
    ]);
    (target, timeouts())
        .prop_map(|(target, default)| format!("{{targetRef: {target}, default: {default}}}"))
}

const CALLERS: [&str; 6] = [
    "spiffe://d/a/x",
    "spiffe://d/a/xy",
    "spiffe://d/a",
    "spiffe://d/b",
    "spiffe://e/a/x",
    "spiffe://f/q",
];

fn matches() -> impl Strategy<Value = &'static str> {
    select(vec![
        "{spiffeID: {type: Exact, value: 'spiffe://d/a/x'}}",
        "{spiffeID: {type: Exact, value: 'spiffe://d/b'}}",
        "{spiffeID: {type: Prefix, value: 'spiffe://d/a/x'}}",
        "{spiffeID: {type: Prefix, value: 'spiffe://d/a'}}",
        "{spiffeID: {type: Prefix, value: 'spiffe://d/'}}",
        "{spiffeID: {type: Prefix, value: 'spiffe://'}}",
    ])
}

fn rule() -> impl Strategy<Value = String> {
    (prop::collection::vec(matches(), 0..3), timeouts()).prop_map(|(matches, default)| {
        format!("{{matches: [{}], default: {default}}}", matches.join(", "))
    })
}

/// A `MeshTimeout` of mesh m; NAME is its name.
fn policy() -> impl Strategy<Value = String> {
    let to = prop::collection::vec(to(), 0..3);
    let rules = prop::collection::vec(rule(), 0..3);
    (target(), to, rules).prop_map(|(target, to, rules)| {
        let (to, rules) = (to.join(", "), rules.join(", "));
        format!("{{type: MeshTimeout, mesh: m, name: NAME, spec: {{targetRef: {target}, to: [{to}], rules: [{rules}]}}}}")
    })
}

fn policies() -> impl Strategy<Value = Vec<Resource>> {
    prop::collection::vec(policy(), 0..6).prop_map(|policies| named(&policies))
}

fn named(policies: &[String]) -> Vec<Resource> {
    let named = policies.iter().enumerate();
    let texts: Vec<String> = named
        .map(|(index, text)| text.replace("NAME", &format!("p{index}")))
        .collect();
    resources(&texts.join("\n---\n"))
}

/// Everything that `set` says of the world, by question.
fn everything(set: &PolicySet) -> BTreeMap<String, Merged> {
    let world = resources(WORLD);
    let mut answers = BTreeMap::new();
    let kind = &MeshTimeout::DESCRIPTOR;
    for resource in &world {
        let Some(dataplane) = resource.get::<Dataplane>() else {
            continue;
        };
        let selection = set.select(Proxy::of(resource));
        let name = &resource.meta.name;
        for service in Services::of(&world).iter() {
            let mut ask = |port: &str, destination: &Destination| {
                let merged = selection.outgoing(kind, destination);
                answers.insert(
                    format!("{name} -> {}:{port}", service.name),
                    (*merged).clone(),
                );
            };
            ask("", &Destination::new(service));
            for port in &service.ports {
                ask(
                    &port.number.to_string(),
                    &Destination::new(service).at(port),
                );
            }
        }
        for inbound in &dataplane.networking.inbound {
            let incoming = selection.incoming(kind, inbound);
            for caller in CALLERS {
                answers.insert(
                    format!("{caller} -> {name}:{}", inbound.port),
                    incoming.of_caller(Some(caller)).clone(),
                );
            }
        }
    }
    answers
}

/// An entry as the reference sees it: how strong it is, and what it says.
type Entry = (Vec<i64>, Value);

/// What the entries come to, by RFC 7396, the weakest first.
fn reference_merge(built_in: &str, mut entries: Vec<Entry>) -> Value {
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let mut value: Value = serde_json::from_str(built_in).unwrap();
    for (_, patch) in entries {
        patch_into(&mut value, &patch);
    }
    value
}

fn patch_into(value: &mut Value, patch: &Value) {
    match (value, patch) {
        (Value::Object(fields), Value::Object(patch)) => {
            for (name, inner) in patch {
                patch_into(fields.entry(name.as_str()).or_insert(Value::Null), inner);
            }
        }
        (value, patch) => *value = patch.clone(),
    }
}

/// The same as [`everything`], from what is written, step by step. The policies are named `p0`, `p1`, ….
fn reference(policies: &[Resource]) -> BTreeMap<String, Value> {
    let world = resources(WORLD);
    let mut answers = BTreeMap::new();
    for proxy in &world {
        let Some(dataplane) = proxy.get::<Dataplane>() else {
            continue;
        };
        let inbounds = &dataplane.networking.inbound;
        let app = &proxy.meta.labels["app"];
        // Strength of each policy that concerns the proxy, and the section it is about.
        let mut selected = Vec::new();
        for policy in policies {
            let spec: &MeshTimeout = policy.get().unwrap();
            let target = spec.target_ref.as_ref().unwrap();
            if target.labels.get("app").is_some_and(|wanted| wanted != app) {
                continue;
            }
            let is_mesh = format!("{:?}", target.kind) == "Mesh";
            let section = target.section_name.clone();
            let level = if is_mesh {
                0
            } else {
                1 + i64::from(section.is_some())
            };
            let index: i64 = policy.meta.name[1..].parse().unwrap();
            selected.push((spec, level, section, -index));
        }
        for service in Services::of(&world).iter() {
            let ports = service.ports.iter().map(Some).chain([None]);
            for port in ports {
                let mut entries = Vec::new();
                for (spec, level, section, name) in &selected {
                    let has_section = |section: &String| {
                        inbounds.iter().any(|i| {
                            i.name.as_ref() == Some(section) || i.port.to_string() == *section
                        })
                    };
                    if !section.as_ref().is_none_or(has_section) {
                        continue;
                    }
                    for (at, entry) in spec.to.iter().enumerate() {
                        let target = serde_json::to_value(&entry.target_ref).unwrap();
                        let is_mesh = target["kind"] == "Mesh";
                        let named = target["name"]
                            .as_str()
                            .or(target["labels"]["isthmus.io/display-name"].as_str());
                        let is_named = named.is_none_or(|named| named == service.name);
                        let section = target["sectionName"].as_str();
                        let is_port = section.is_none_or(|section| {
                            port.is_some_and(|p| {
                                p.name.as_deref() == Some(section)
                                    || p.number.to_string() == section
                            })
                        });
                        if is_mesh || (is_named && is_port) {
                            let strength = vec![
                                *level,
                                i64::from(!is_mesh),
                                i64::from(section.is_some()),
                                *name,
                                i64::try_from(at).unwrap(),
                            ];
                            entries.push((strength, serde_json::to_value(&entry.default).unwrap()));
                        }
                    }
                }
                let port = port.map_or(String::new(), |p| p.number.to_string());
                let question = format!("{} -> {}:{port}", proxy.meta.name, service.name);
                answers.insert(question, reference_merge(MeshTimeout::BUILT_IN.to, entries));
            }
        }
        for inbound in inbounds {
            for caller in CALLERS {
                let mut entries = Vec::new();
                for (spec, level, section, name) in &selected {
                    let is_it = |section: &String| {
                        inbound.name.as_ref() == Some(section)
                            || inbound.port.to_string() == *section
                    };
                    if !section.as_ref().is_none_or(is_it) {
                        continue;
                    }
                    for (at, rule) in spec.rules.iter().enumerate() {
                        let specific = if rule.matches.is_empty() {
                            Some(-1)
                        } else {
                            let matching =
                                rule.matches.iter().filter(|m| m.spiffe_id.matches(caller));
                            matching
                                .map(|m| match m.spiffe_id.form {
                                    MatchForm::Exact => i64::MAX,
                                    MatchForm::Prefix => {
                                        i64::try_from(m.spiffe_id.value.len()).unwrap()
                                    }
                                })
                                .max()
                        };
                        if let Some(specific) = specific {
                            let strength =
                                vec![specific, *level, *name, i64::try_from(at).unwrap()];
                            entries.push((strength, serde_json::to_value(&rule.default).unwrap()));
                        }
                    }
                }
                let question = format!("{caller} -> {}:{}", proxy.meta.name, inbound.port);
                answers.insert(
                    question,
                    reference_merge(MeshTimeout::BUILT_IN.rules, entries),
                );
            }
        }
    }
    answers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_merged_is_what_a_naive_reading_of_the_rules_gives(policies in policies()) {
        let found: BTreeMap<String, Value> = everything(&PolicySet::new("m", &policies))
            .into_iter()
            .map(|(question, merged)| (question, merged.value().clone()))
            .collect();
        prop_assert_eq!(found, reference(&policies));
    }

    #[test]
    fn the_order_policies_come_in_does_not_matter((policies, shuffled) in policies().prop_flat_map(|p| (Just(p.clone()), Just(p).prop_shuffle()))) {
        let (one, other) = (PolicySet::new("m", &policies), PolicySet::new("m", &shuffled));
        prop_assert_eq!(everything(&one), everything(&other));
        let world = resources(WORLD);
        let services = Services::of(&world);
        let known = Known { services: Some(&services), dataplanes: None };
        let of = |policies: &[Resource]| conditions(&policies.iter().collect::<Vec<_>>(), known);
        prop_assert_eq!(of(&policies), of(&shuffled));
    }

    #[test]
    fn saying_it_again_changes_nothing_but_where_it_is_from(policies in policies()) {
        // The copies have weaker names.
        let mut twice = policies.clone();
        twice.extend(policies.iter().cloned().map(|mut policy| {
            policy.meta.name = format!("q{}", policy.meta.name);
            policy
        }));
        let once = everything(&PolicySet::new("m", &policies));
        let doubled = everything(&PolicySet::new("m", &twice));
        for (question, merged) in once {
            // A copy is weaker than its original, and no stronger than anything its original is weaker than.
            prop_assert_eq!(merged.value(), doubled[&question].value(), "{}", question);
        }
    }

    #[test]
    fn a_policy_that_selects_nothing_changes_nothing(policies in policies(), more in prop::collection::vec(policy(), 1..4)) {
        let before = everything(&PolicySet::new("m", &policies));
        let mut with = policies;
        for (index, text) in more.iter().enumerate() {
            let text = text.replace("NAME", &format!("a{index}"));
            let start = text.find("targetRef: ").unwrap();
            let end = text.find(", to: [").unwrap();
            for (name, target) in [("0", "{kind: Dataplane, labels: {no: body}}"), ("1", "{kind: Dataplane, sectionName: nowhere}")] {
                let text = format!("{}targetRef: {target}{}", &text[..start], &text[end..]);
                with.extend(resources(&text.replace("name: a", &format!("name: a{name}"))));
            }
            // Another mesh's policy selects nothing of this one.
            let mut foreign = resources(&text).remove(0);
            foreign.meta.mesh = "other".into();
            with.push(foreign);
        }
        prop_assert_eq!(everything(&PolicySet::new("m", &with)), before);
    }

    #[test]
    fn what_is_explained_is_what_is_merged(policies in policies()) {
        let by_name: BTreeMap<String, Value> = policies
            .iter()
            .map(|policy| (policy.meta.name.clone(), serde_json::to_value(policy.get::<MeshTimeout>().unwrap()).unwrap()))
            .collect();
        for merged in everything(&PolicySet::new("m", &policies)).into_values() {
            let mut leaves = 0;
            for (path, value, origin) in merged.fields() {
                let pointer = format!("/{}", path.replace('.', "/"));
                prop_assert_eq!(merged.value().pointer(&pointer), Some(value));
                prop_assert_eq!(merged.origin(path), Some(origin));
                // The entry that is named says just this.
                let says = match origin {
                    Origin::BuiltIn => {
                        let built_in = [MeshTimeout::BUILT_IN.to, MeshTimeout::BUILT_IN.rules];
                        built_in.iter().any(|text| {
                            let built_in: Value = serde_json::from_str(text).unwrap();
                            built_in.pointer(&pointer) == Some(value)
                        })
                    }
                    Origin::Policy { key, entry } => {
                        let entry = entry.to_string().replace('[', "/").replace(']', "");
                        by_name[&key.name].pointer(&format!("/{entry}/default{pointer}")) == Some(value)
                    }
                };
                prop_assert!(says, "{path} {value} ({origin})");
                leaves += 1;
            }
            prop_assert_eq!(leaves, count_leaves(merged.value()));
            prop_assert_eq!(merged.lines().len(), leaves);
            prop_assert!(merged.get::<mesh_model::mesh_timeout::Timeouts>().is_ok());
        }
    }

    #[test]
    fn a_shadowed_field_can_be_removed_without_effect(policies in policies()) {
        let before: Vec<Value> = everything(&PolicySet::new("m", &policies)).into_values().map(|m| m.value().clone()).collect();
        let found = conditions(&policies.iter().collect::<Vec<_>>(), Known::default());
        for condition in found.iter().filter(|condition| condition.reason == "Shadowed") {
            let mut without = policies.clone();
            for policy in &mut without {
                if policy.meta.name == condition.key.name {
                    let mut json: Value = serde_json::from_slice(&policy.to_json()).unwrap();
                    let pointer = format!("/{}", condition.field.replace(['.', '['], "/").replace(']', ""));
                    let (parent, field) = pointer.rsplit_once('/').unwrap();
                    json.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(field).unwrap();
                    *policy = Resource::from_json(json.to_string().as_bytes()).unwrap();
                }
            }
            let after: Vec<Value> = everything(&PolicySet::new("m", &without)).into_values().map(|m| m.value().clone()).collect();
            prop_assert_eq!(&before, &after, "{:?}", condition);
        }
    }

    #[test]
    fn permissions_are_those_of_a_naive_reading(policies in permissions()) {
        let world = resources(WORLD);
        let set = PolicySet::new("m", &policies);
        let references: Vec<&Resource> = policies.iter().collect();
        for resource in &world {
            let Some(dataplane) = resource.get::<Dataplane>() else { continue };
            let selection = set.select(Proxy::of(resource));
            for inbound in &dataplane.networking.inbound {
                let effective = permission::effective(&references, resource, inbound);
                prop_assert_eq!(&selection.permissions(inbound), &effective);
                for caller in CALLERS {
                    let decision = permission::decide(&effective, caller);
                    let (allowed, shadow) = naive(&policies, &resource.meta.labels["app"], &inbound.name_or_port(), &inbound.port.to_string(), caller);
                    prop_assert_eq!((decision.allowed, decision.shadow_denied), (allowed, shadow), "{}", decision);
                    // What decides is among the policies, and matches.
                    if let Some(why) = &decision.why {
                        let (name, rule) = why.origin.split_once('#').unwrap();
                        let policy = policies.iter().find(|p| p.meta.name == name).unwrap();
                        let lists = &policy.get::<MeshTrafficPermission>().unwrap().rules[rule.parse::<usize>().unwrap()].default;
                        let list = lists.lists().into_iter().find(|(list, _)| *list == why.list).unwrap().1;
                        prop_assert!(list.iter().any(|entry| entry.spiffe_id.matches(caller)));
                    }
                }
            }
        }
    }
}

fn count_leaves(value: &Value) -> usize {
    match value {
        Value::Object(fields) if !fields.is_empty() => fields.values().map(count_leaves).sum(),
        Value::Object(_) => 0,
        _ => 1,
    }
}

fn permissions() -> impl Strategy<Value = Vec<Resource>> {
    let list =
        || prop::collection::vec(matches(), 0..2).prop_map(|list| format!("[{}]", list.join(", ")));
    let rule = (list(), list(), list()).prop_map(|(allow, deny, shadow)| {
        format!("{{default: {{allow: {allow}, deny: {deny}, allowWithShadowDeny: {shadow}}}}}")
    });
    let policy = (target(), prop::collection::vec(rule, 0..3)).prop_map(|(target, rules)| {
        let rules = rules.join(", ");
        format!("{{type: MeshTrafficPermission, mesh: m, name: NAME, spec: {{targetRef: {target}, rules: [{rules}]}}}}")
    });
    prop::collection::vec(policy, 0..6).prop_map(|policies| named(&policies))
}

/// Allowed, and recorded as denied.
fn naive(policies: &[Resource], app: &str, name: &str, port: &str, caller: &str) -> (bool, bool) {
    let mut found = [false; 3];
    for policy in policies {
        let permission: &MeshTrafficPermission = policy.get().unwrap();
        let target = permission.target_ref.as_ref().unwrap();
        let other_app = target.labels.get("app").is_some_and(|wanted| wanted != app);
        let other_section = target
            .section_name
            .as_ref()
            .is_some_and(|s| s != name && s != port);
        if other_app || other_section {
            continue;
        }
        for rule in &permission.rules {
            for (found, (_, list)) in found.iter_mut().zip(rule.default.lists()) {
                *found |= list.iter().any(|entry| entry.spiffe_id.matches(caller));
            }
        }
    }
    match found {
        [true, _, _] => (false, false),
        [false, true, _] => (true, true),
        [false, false, allowed] => (allowed, false),
    }
}

/// FIELD d2: at each level, of two policies that differ in nothing but how specific they are, the more specific wins, with
/// names that say the opposite and in whichever order they come.
#[test]
fn the_more_specific_wins_at_each_level() {
    let tops = [
        "{kind: Mesh}",
        "{kind: Dataplane, labels: {app: web}}",
        "{kind: Dataplane, labels: {app: web}, sectionName: http}",
    ];
    let targets = [
        "{kind: Mesh}",
        "{kind: MeshService, name: store}",
        "{kind: MeshService, name: store, sectionName: http}",
    ];
    let callers = [
        "[]",
        "[{spiffeID: {type: Prefix, value: 'spiffe://'}}]",
        "[{spiffeID: {type: Prefix, value: 'spiffe://d/'}}]",
        "[{spiffeID: {type: Prefix, value: 'spiffe://d/a/x'}}]",
        "[{spiffeID: {type: Exact, value: 'spiffe://d/a/x'}}]",
    ];
    let mut pairs = 0;
    let mut check = |weak: String, strong: String, question: &str| {
        let policy = |name: &str, spec: &str| {
            resources(&format!(
                "{{type: MeshTimeout, mesh: m, name: {name}, spec: {spec}}}"
            ))
            .remove(0)
        };
        // The alphabetically first name would win a tie.
        let (weak, strong) = (
            policy("a", &weak.replace("IDLE", "1s")),
            policy("b", &strong.replace("IDLE", "2s")),
        );
        for policies in [
            [weak.clone(), strong.clone()],
            [strong.clone(), weak.clone()],
        ] {
            let merged = &everything(&PolicySet::new("m", &policies))[question];
            assert_eq!(
                merged.value()["idleTimeout"],
                "2s",
                "{question}: {policies:?}"
            );
        }
        pairs += 1;
    };
    let to = |top: &str, target: &str| {
        format!(
            "{{targetRef: {top}, to: [{{targetRef: {target}, default: {{idleTimeout: IDLE}}}}]}}"
        )
    };
    let rules = |top: &str, matches: &str| {
        format!(
            "{{targetRef: {top}, rules: [{{matches: {matches}, default: {{idleTimeout: IDLE}}}}]}}"
        )
    };
    for (top_weak, weak) in tops.iter().enumerate() {
        for (top_strong, strong) in tops.iter().enumerate() {
            for (inner_weak, weak_target) in targets.iter().enumerate() {
                for (inner_strong, strong_target) in targets.iter().enumerate() {
                    if (top_weak, inner_weak) < (top_strong, inner_strong) {
                        check(
                            to(weak, weak_target),
                            to(strong, strong_target),
                            "web-1 -> store:80",
                        );
                    }
                }
            }
            for (inner_weak, weak_callers) in callers.iter().enumerate() {
                for (inner_strong, strong_callers) in callers.iter().enumerate() {
                    if (inner_weak, top_weak) < (inner_strong, top_strong) {
                        check(
                            rules(weak, weak_callers),
                            rules(strong, strong_callers),
                            "spiffe://d/a/x -> web-1:80",
                        );
                    }
                }
            }
        }
    }
    assert_eq!(pairs, 9 * 8 / 2 + 15 * 14 / 2);
}
