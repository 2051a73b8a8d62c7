//! What `explain` says is what a connection does, on random sets of policies.

use std::collections::BTreeSet;

use anyhow::Context as _;
use mesh_model::api::{ExplainedCall, Explanation, Written};
use mesh_tests::{
    api::Api,
    app::Echo,
    client::who_answers,
    resources,
    sidecar::{Plan, Sidecar},
    wait::{SOON, eventually},
    world::{World, scene},
    zone::Zone,
};
use serde_json::{Value, json};

use crate::installation::OneZone;

/// Sets of policies that are tried. `ISTHMUS_TEST_POLICY_SETS` says another number.
const SETS: u64 = 200;
/// Connections of each caller to each service under one set. Where several endpoints may answer, not all will.
const CONNECTIONS: usize = 4;
const MESH: &str = "payments";
const PORT: u16 = 80;

/// A small deterministic source of choices, so that a failing set can be tried again by its number.
struct Choices(u64);

impl Choices {
    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_of<T: Clone>(&mut self, list: &[T]) -> T {
        let at = self.below(list.len() as u64);
        list[usize::try_from(at).expect("below the length")].clone()
    }
}

/// Two callers in the west, `store` there twice, `archive` in the east.
struct Town {
    one: OneZone,
    callers: Vec<Sidecar>,
    _called: Vec<(Sidecar, Echo)>,
    _east: Zone,
}

impl Town {
    fn start(world: &World) -> anyhow::Result<Self> {
        let one = OneZone::start(world)?;
        let mut east = Zone::start(world, &one.global, "east")?;
        east.start_ingress(&one.api)?;
        let mut called = Vec::new();
        for (name, service, zone) in [
            ("store-1", "store", &one.west),
            ("store-2", "store", &one.west),
            ("archive-1", "archive", &east),
        ] {
            // Every instance listens at the service's port, each on a machine of its own.
            let machine = world.machine();
            let echo = Echo::start_at(world, name, machine)?;
            let sidecar = Plan::new(world, zone, MESH, name, &one.token)?
                .at(machine)
                .service(service)
                .label("instance", name)
                .inbound(PORT, echo.port())
                .start()?;
            called.push((sidecar, echo));
        }
        let callers = ["web", "batch"]
            .into_iter()
            .map(|name| {
                one.plan(name)?
                    .service(name)
                    .outbound(&format!("store:{PORT}"))?
                    .outbound(&format!("archive:{PORT}"))?
                    .start()
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            one,
            callers,
            _called: called,
            _east: east,
        })
    }
}

// === random policies ===

fn matches(choices: &mut Choices) -> Vec<Value> {
    let of = |form: &str, value: &str| json!({"spiffeID": {"type": form, "value": value}});
    let id = |workload: &str| resources::spiffe_id(MESH, "west", workload);
    let all = [
        of("Exact", &id("web")),
        of("Exact", &id("batch")),
        of("Prefix", &format!("spiffe://{MESH}.west.mesh.local/")),
        of("Prefix", &format!("spiffe://{MESH}.east.mesh.local/")),
        of("Prefix", "spiffe://"),
        of("Exact", &id("nobody")),
    ];
    (0..choices.below(3))
        .map(|_| choices.one_of(&all))
        .collect()
}

fn target(choices: &mut Choices, labels: &[(&str, &str)]) -> Option<Value> {
    let target = match choices.below(4) {
        0 => return None,
        1 => json!({"kind": "Mesh"}),
        _ => {
            let (name, value) = choices.one_of(labels);
            json!({"kind": "Dataplane", "labels": {name: value}})
        }
    };
    Some(target)
}

fn permission(choices: &mut Choices, name: &str) -> Value {
    let called = [
        ("isthmus.io/service", "store"),
        ("isthmus.io/service", "archive"),
        ("instance", "store-1"),
        ("instance", "store-2"),
        ("instance", "nobody"),
    ];
    let mut target = target(choices, &called);
    if let Some(target) = target.as_mut().filter(|t| t["kind"] == "Dataplane")
        && choices.below(4) == 0
    {
        target["sectionName"] = json!(choices.one_of(&["80", "81"]));
    }
    let rules: Vec<_> = (0..=choices.below(2))
        .map(|_| {
            let mut default = json!({"allow": matches(choices)});
            if choices.below(3) == 0 {
                default["deny"] = json!(matches(choices));
            }
            if choices.below(4) == 0 {
                default["allowWithShadowDeny"] = json!(matches(choices));
            }
            json!({"default": default})
        })
        .collect();
    policy("MeshTrafficPermission", name, target, "rules", rules)
}

fn route(choices: &mut Choices, name: &str) -> Value {
    let callers = [
        ("isthmus.io/service", "web"),
        ("isthmus.io/service", "batch"),
        ("isthmus.io/service", "nobody"),
    ];
    let target = target(choices, &callers);
    let to = choices.one_of(&["store", "archive"]);
    let backends: Vec<_> = (0..=choices.below(2))
        .map(|_| {
            let name = choices.one_of(&["store", "store", "archive", "archive", "missing"]);
            json!({"kind": "MeshService", "name": name, "port": PORT, "weight": choices.below(3)})
        })
        .collect();
    let entry = json!({
        "targetRef": {"kind": "MeshService", "name": to},
        "rules": [{"default": {"backendRefs": backends}}],
    });
    policy("MeshTCPRoute", name, target, "to", vec![entry])
}

fn policy(kind: &str, name: &str, target: Option<Value>, field: &str, list: Vec<Value>) -> Value {
    let mut spec = json!({field: list});
    if let Some(target) = target {
        spec["targetRef"] = target;
    }
    json!({"type": kind, "mesh": MESH, "name": name, "spec": spec})
}

fn policies(set: u64) -> Vec<Value> {
    let mut choices = Choices(set);
    let permissions = 1 + choices.below(4);
    let routes = choices.below(3);
    let mut policies: Vec<_> = (0..permissions)
        .map(|number| permission(&mut choices, &format!("permission-{number}")))
        .collect();
    policies.extend((0..routes).map(|number| route(&mut choices, &format!("route-{number}"))));
    policies
}

/// Puts `policies` in the place of those before them, as one change, and waits until it is in effect.
fn replace(api: &Api, before: &[Value], policies: &[Value]) -> anyhow::Result<()> {
    let is = |a: &Value, b: &Value| a["type"] == b["type"] && a["name"] == b["name"];
    let delete: Vec<_> = before
        .iter()
        .filter(|old| !policies.iter().any(|new| is(old, new)))
        .map(|old| json!({"type": old["type"], "mesh": MESH, "name": old["name"]}))
        .collect();
    let body = json!({"put": policies, "delete": delete}).to_string();
    let headers = [("content-type", "application/json")];
    let written: Written = api
        .request("POST", "/v1/batch", &headers, Some(&body))?
        .ok()?;
    api.wait_for_rollout(written.revision)
}

// === what is said, and what is done ===

/// Who may answer a call, by what was explained; `None`: nobody, it fails.
fn expected(call: &ExplainedCall) -> BTreeSet<Option<String>> {
    let mut outcomes = BTreeSet::new();
    for backend in call.caller.backends.iter().filter(|b| b.weight > 0) {
        if backend.error.is_some() {
            outcomes.insert(None);
            continue;
        }
        for inbound in &call.inbounds {
            if inbound.service == backend.service && backend.zones.contains(&inbound.zone) {
                outcomes.insert(inbound.allowed.then(|| inbound.dataplane.clone()));
            }
        }
    }
    if outcomes.is_empty() {
        outcomes.insert(None);
    }
    outcomes
}

fn explain(api: &Api, from: &str, to: &str) -> anyhow::Result<ExplainedCall> {
    let path = format!("/v1/meshes/{MESH}/explain?from={from}&to={to}&port={PORT}");
    let mut explanation: Explanation = api.get(&path)?;
    anyhow::ensure!(explanation.unanswered.is_empty(), "{explanation:?}");
    anyhow::ensure!(explanation.calls.len() == 1, "{explanation:?}");
    explanation.calls.pop().context("just counted")
}

/// What is wrong with what was explained, on its own and beside what connections did.
fn contradiction(
    call: &ExplainedCall,
    seen: &BTreeSet<Option<String>>,
    policies: &[Value],
) -> Option<String> {
    let expected = expected(call);
    if !seen.is_subset(&expected) {
        return Some(format!("explained: {expected:?}, seen: {seen:?}"));
    }
    let verdict = match (expected.contains(&None), expected.len()) {
        (true, 1) => "denied",
        (true, _) => "mixed",
        (false, _) => "allowed",
    };
    if call.verdict != verdict {
        return Some(format!(
            "the verdict is {}, and not {verdict}",
            call.verdict
        ));
    }
    for inbound in &call.inbounds {
        let named = inbound.origin.as_deref().and_then(|o| o.split('#').next());
        let known = |name: &str| policies.iter().any(|policy| policy["name"] == name);
        match named {
            Some(name) if known(name) => {}
            // Nothing matched, which denies.
            None if !inbound.allowed => {}
            _ => return Some(format!("{:?} is no policy of this set", inbound.origin)),
        }
    }
    None
}

#[test]
fn what_is_explained_is_what_connections_do() {
    scene(|world| {
        let town = Town::start(world)?;
        let api = &town.one.api;
        api.apply(&resources::allow_everyone(MESH, "permission-0"))?;
        for caller in &town.callers {
            for (service, instance) in [("store", "store-"), ("archive", "archive-1")] {
                eventually(SOON, &format!("{} reaches {service}", caller.name), || {
                    let who = who_answers(caller.to(&format!("{service}:{PORT}")))?;
                    anyhow::ensure!(who.starts_with(instance), "{who}");
                    Ok(())
                })?;
            }
        }
        let sets = std::env::var("ISTHMUS_TEST_POLICY_SETS")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(SETS);
        let mut before = Vec::new();
        let mut tally = std::collections::BTreeMap::<String, usize>::new();
        for set in 0..sets {
            let policies = policies(set);
            replace(api, &before, &policies).with_context(|| format!("set {set}"))?;
            for caller in &town.callers {
                for service in ["store", "archive"] {
                    let call = explain(api, &caller.name, service)?;
                    let address = caller.to(&format!("{service}:{PORT}"));
                    let seen: BTreeSet<_> = (0..CONNECTIONS)
                        .map(|_| who_answers(address).ok())
                        .collect();
                    *tally.entry(call.verdict.clone()).or_default() += 1;
                    if let Some(wrong) = contradiction(&call, &seen, &policies) {
                        anyhow::bail!(
                            "set {set}, {} to {service}: {wrong}\n{}\n{}",
                            caller.name,
                            serde_json::to_string_pretty(&call)?,
                            serde_json::to_string_pretty(&policies)?
                        );
                    }
                }
            }
            before = policies;
        }
        eprintln!("{sets} sets: {tally:?}");
        anyhow::ensure!(
            sets < SETS || tally.len() == 3,
            "the sets are too much alike: {tally:?}"
        );
        Ok(())
    });
}
