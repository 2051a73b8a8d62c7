//! Calls are explained from what dataplanes run, plans from what they would run.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use mesh_model::{
    Dataplane, MeshService, Resource,
    api::{CallRequest, Key},
};
use mesh_proto::{
    discovery::{Ack, DocumentNack, DocumentVersion, Nack, to_dataplane},
    features,
    names::{MeshName, ZoneName},
    zone::{Changes, PlanChanges, ResourceKey, ResourceRecord},
};
use zone_cp::{
    endpoints::Address,
    explain::{self, Call},
    inspect,
    mesh::{Mesh, Surroundings},
    plan::{self, PlanOf},
    registry::{Arrival, Registry, StreamId},
    scope::Scope,
    token::Accepted,
};

const WORLD: &str = r#"
{type: MeshIdentity, mesh: pay, name: all, spec: {selector: {dataplane: {}}, provider: {type: Bundled}}}
---
{type: MeshTrafficPermission, mesh: pay, name: web-to-store, spec: {targetRef: {kind: Dataplane, labels: {isthmus.io/service: store}}, rules: [{default: {allow: [{spiffeID: {type: Exact, value: "spiffe://pay.east.mesh.local/workload/web"}}]}}]}}
---
{type: Dataplane, mesh: pay, name: web-1, labels: {isthmus.io/service: web}, networking: {address: 10.0.0.1, inbound: [{port: 80, servicePort: 8080}], outbound: [{port: 1, backendRef: {kind: MeshService, name: store, port: 80}}]}}
---
{type: Dataplane, mesh: pay, name: store-1, labels: {isthmus.io/service: store}, networking: {address: 10.0.0.2, inbound: [{name: main, port: 80, servicePort: 8080, protocol: tcp}]}}
---
{type: Dataplane, mesh: pay, name: batch-1, labels: {isthmus.io/workload: batch}, networking: {address: 10.0.0.3}}
"#;

const SPLIT: &str = "
{type: MeshTCPRoute, mesh: pay, name: split, spec: {to: [{targetRef: {kind: MeshService, name: store}, rules: [{default: {backendRefs: [{kind: MeshService, name: store, port: 80, weight: 9}, {kind: MeshService, name: none, port: 80}]}}]}]}}
";

const IMPATIENT: &str = "
{type: MeshTimeout, mesh: pay, name: impatient, spec: {targetRef: {kind: Dataplane, labels: {isthmus.io/service: web}}, to: [{targetRef: {kind: MeshService, name: store}, default: {connectionTimeout: 1s}}]}}
";

struct World {
    mesh: Mesh,
    revision: u64,
    /// What was sent and not answered yet, by dataplane.
    sent: BTreeMap<String, Vec<DocumentVersion>>,
}

fn resources(text: &str) -> Vec<Resource> {
    mesh_model::parse(text, "test").unwrap_or_else(|v| panic!("{v}"))
}

fn record(resource: &Resource) -> ResourceRecord {
    ResourceRecord {
        key: Some(resource.key()),
        json: resource.to_json(),
        revision: 7,
        modified_ms: 5_000,
        created_revision: 0,
    }
}

impl World {
    /// Everything has come, and every dataplane runs what it should.
    fn new(text: &str) -> Self {
        let (mesh, zone): (MeshName, ZoneName) = ("pay".parse().unwrap(), "east".parse().unwrap());
        let mut this = Self {
            mesh: Mesh::new(mesh, zone, Scope::new("pay"), Registry::default()),
            revision: 0,
            sent: BTreeMap::new(),
        };
        let (dataplanes, others): (Vec<_>, Vec<_>) = resources(text)
            .into_iter()
            .partition(|r| r.get::<Dataplane>().is_some());
        this.take(true, &others, vec![]);
        for (at, resource) in dataplanes.into_iter().enumerate() {
            this.arrive(resource, StreamId(at as u64));
        }
        this.settle();
        this.ack_all();
        this
    }

    fn arrive(&mut self, mut resource: Resource, stream: StreamId) {
        resource.meta.zone = "east".into();
        let arrival = Arrival {
            resource: Arc::new(resource),
            session: "s".into(),
            session_number: 1,
            version: "1".into(),
            features: features::DATAPLANE
                .iter()
                .map(|f| (*f).to_owned())
                .filter(|f| f != features::ROUTE_TCP)
                .collect(),
            token: Accepted {
                issuer: "pay".into(),
                id: "t".into(),
                kid: "k".into(),
                expires: u64::MAX,
            },
            stream,
        };
        self.mesh.arrive(arrival, &[]);
    }

    fn take(&mut self, snapshot: bool, put: &[Resource], delete: Vec<ResourceKey>) {
        self.revision += 1;
        self.mesh.take(Changes {
            mesh: "pay".into(),
            from: self.revision - 1,
            to: self.revision,
            snapshot,
            last: true,
            put: put.iter().map(record).collect(),
            delete,
            ..Changes::default()
        });
    }

    fn put(&mut self, text: &str) {
        self.take(false, &resources(text), vec![]);
        self.settle();
    }

    fn settle(&mut self) {
        let settled = self
            .mesh
            .settle(self.revision, false, Instant::now(), |_| 1);
        for (name, message) in settled.sends {
            if let Some(to_dataplane::Message::Documents(documents)) = message.message {
                let versions = documents.put.into_iter().map(|d| DocumentVersion {
                    name: d.name,
                    version: d.version,
                });
                self.sent.entry(name).or_default().extend(versions);
            }
        }
    }

    fn ack_all(&mut self) {
        while !self.sent.is_empty() {
            for (name, documents) in std::mem::take(&mut self.sent) {
                let ack = Ack {
                    revision: 0,
                    documents,
                };
                self.mesh.ack(&name, &ack);
            }
            self.settle();
        }
    }

    fn refuse_all(&mut self, reason: &str) {
        for (name, documents) in std::mem::take(&mut self.sent) {
            let documents = documents.into_iter().map(|d| DocumentNack {
                name: d.name,
                version: d.version,
                reason: reason.into(),
                kind: 0,
            });
            let nack = Nack {
                revision: 0,
                documents: documents.collect(),
            };
            self.mesh.nack(&name, &nack);
        }
        self.settle();
    }

    /// Each caller and port in a few lines.
    fn call(&self, from: &str, to: &str, port: u16) -> Vec<String> {
        self.ask(Call {
            from: from.to_owned(),
            to: to.to_owned(),
            port,
            request: None,
        })
    }

    /// The same for `GET /path`, from web to the store.
    fn request(&self, request: &str, headers: Option<&str>) -> Vec<String> {
        let (method, path) = request.split_once(' ').unwrap();
        let request = CallRequest::of_parameters(Some(method), Some(path), headers);
        self.ask(Call {
            from: "web".to_owned(),
            to: "store".to_owned(),
            port: 80,
            request: request.unwrap(),
        })
    }

    fn ask(&self, call: Call) -> Vec<String> {
        let mut lines = Vec::new();
        for caller in explain::call(&self.mesh, &call) {
            let outbound = caller.outbound.as_deref().unwrap_or("no outbound");
            lines.push(format!(
                "{} by {outbound} to {}:{} as {}",
                caller.dataplane, caller.service, caller.port, caller.spiffe_id
            ));
            lines.extend(caller.route.map(|route| format!("  by {route}")));
            for rule in caller.rules {
                let origin = rule.origin.as_deref().unwrap_or("built in");
                lines.push(format!("  {}: {} ({origin})", rule.matches, rule.backends));
                lines.extend(
                    rule.filters
                        .into_iter()
                        .map(|filter| format!("    {filter}")),
                );
                lines.extend(rule.settings.into_iter().map(|line| format!("    {line}")));
            }
            lines.extend(caller.answer.map(|answer| format!("  {answer}")));
            for backend in caller.backends {
                let what = backend
                    .error
                    .unwrap_or_else(|| backend.endpoints.join(", "));
                lines.push(format!(
                    "  {} {}:{}: {what}",
                    backend.weight, backend.service, backend.port
                ));
            }
            lines.extend(caller.settings.into_iter().map(|line| format!("  {line}")));
        }
        lines
    }

    fn inbound(&self, service: &str, port: u16, caller: &str) -> Vec<String> {
        explain::inbound(&self.mesh, service, port, caller)
            .into_iter()
            .map(|i| format!("{} {} {}: {}", i.dataplane, i.inbound, i.port, i.reason))
            .collect()
    }

    fn plan(&self, put: &str, delete: Vec<ResourceKey>) -> mesh_model::api::ZonePlan {
        let mesh = self.mesh.snapshot();
        let changes = PlanChanges {
            put: resources(put).iter().map(record).collect(),
            delete,
        };
        assert!(plan::concerns(&changes, &mesh.mesh));
        plan::plan(&PlanOf {
            zone: mesh.zone.clone(),
            global: Scope::new(""),
            surroundings: Surroundings::default(),
            meshes: [(mesh.mesh.clone(), mesh)].into(),
            changes,
        })
    }
}

const WEB: &str = "spiffe://pay.east.mesh.local/workload/web";

#[test]
fn a_call_goes_where_the_callers_documents_say() {
    let world = World::new(WORLD);
    let expected = [
        "web-1 by 127.0.0.1:1 to store:80 as spiffe://pay.east.mesh.local/workload/web",
        "  1 store:80: 10.0.0.2:80 (east)",
        "  connectionTimeout 5s (built in)",
        "  idleTimeout 1h (built in)",
    ];
    // By dataplane, service and workload; by each port and by one.
    assert_eq!(world.call("web-1", "store", 0), expected);
    assert_eq!(world.call("web", "store", 80), expected);
    assert_eq!(
        world.call("batch", "store", 80),
        [
            "batch-1 by no outbound to store:80 as spiffe://pay.east.mesh.local/workload/batch",
            "  1 store:80: 10.0.0.2:80 (east)",
            "  connectionTimeout 5s (built in)",
            "  idleTimeout 1h (built in)",
            "  dataplane batch-1 declares no outbound to store:80: this is what one would do",
        ]
    );
    let missing = world.call("web", "store", 99);
    assert_eq!(missing[1], "  1 store:99: there is no store:99 in any zone");
    assert!(world.call("nobody", "store", 80).is_empty());
}

#[test]
fn of_a_service_that_nobody_knows_there_is_nothing_to_explain() {
    let world = World::new(WORLD);
    let nothing: Vec<String> = Vec::new();
    assert_eq!(world.call("web", "shop", 0), nothing);
    assert_eq!(world.call("web", "shop", 80), nothing);
    // One that is there has ports that lead nowhere.
    assert_ne!(world.call("web", "store", 81), nothing);
}

#[test]
fn a_routes_shares_are_shown_with_those_that_fail() {
    let mut world = World::new(WORLD);
    world.put(&format!("{SPLIT}---{IMPATIENT}"));
    world.ack_all();
    assert_eq!(
        world.call("web", "store", 80),
        [
            "web-1 by 127.0.0.1:1 to store:80 as spiffe://pay.east.mesh.local/workload/web",
            "  by MeshTCPRoute/split to[0].rules[0]",
            "  1 none:80: there is no none:80 in any zone",
            "  9 store:80: 10.0.0.2:80 (east)",
            "  connectionTimeout 1s (MeshTimeout/impatient to[0])",
            "  idleTimeout 1h (built in)",
        ]
    );
}

#[test]
fn at_a_port_that_declares_nothing_requests_and_bytes_go_each_by_a_route_of_their_own() {
    let mut world = World::new(&WORLD.replace(", protocol: tcp", ""));
    world.put(&format!(
        "{SPLIT}---\n{{type: MeshHTTPRoute, mesh: pay, name: shop, spec: {{to: [{{targetRef: {{kind: MeshService, name: store}}, rules: [{{matches: [{{path: {{type: PathPrefix, value: /v2}}}}], default: {{backendRefs: [{{kind: MeshService, name: web, port: 80}}]}}}}]}}]}}}}\n"
    ));
    world.ack_all();
    let of = |lines: Vec<String>, words: &[&str]| -> Vec<String> {
        let is_of = |line: &String| words.iter().any(|word| line.contains(word));
        lines.into_iter().filter(is_of).collect()
    };
    let words = ["  by ", ":80: ", "HTTPRoute/", "not HTTP"];
    assert_eq!(
        of(world.call("web", "store", 80), &words),
        [
            "  path begins with /v2: 1 web:80 (MeshHTTPRoute/shop to[0].rules[0])",
            "  what is not HTTP: 1 none:80, 9 store:80 (MeshTCPRoute/split to[0].rules[0])",
            "  1 none:80: there is no none:80 in any zone",
            "  9 store:80: 10.0.0.2:80 (east)",
            "  1 web:80: 10.0.0.1:80 (east)",
        ]
    );
    assert_eq!(
        of(world.request("GET /v2", None), &words),
        [
            "  by MeshHTTPRoute/shop to[0].rules[0]",
            "  path begins with /v2: 1 web:80 (MeshHTTPRoute/shop to[0].rules[0])",
            "  1 web:80: 10.0.0.1:80 (east)"
        ]
    );
    // What no rule of requests takes goes to the service, whatever is said of bytes.
    assert_eq!(
        of(world.request("GET /", None), &words),
        ["  1 store:80: 10.0.0.2:80 (east)"]
    );
}

#[test]
fn the_own_zones_endpoints_are_used_while_there_are_any() {
    let mut world = World::new(WORLD);
    let mut west = resources(
        "{type: MeshService, mesh: pay, name: store, spec: {ports: [{port: 80}], identities: [{type: SpiffeID, value: \"spiffe://pay.west.mesh.local/s\"}], state: Available}}",
    );
    west[0].meta.zone = "west".into();
    world.take(false, &west, vec![]);
    let address = Address {
        host: "west.example".into(),
        port: 10001,
    };
    world.mesh.set_surroundings(&Surroundings {
        closed_zones: Default::default(),
        ingresses: [("west".to_owned(), [address].into())].into(),
    });
    world.settle();
    world.ack_all();
    assert_eq!(
        world.call("web", "store", 80)[1],
        "  1 store:80: 10.0.0.2:80 (east)"
    );
    world.mesh.leaving("store-1");
    world.settle();
    assert_eq!(
        world.call("web", "store", 80)[1],
        "  1 store:80: west.example:10001 (west, through ingress)"
    );
    world.take(false, &[], vec![west[0].key()]);
    world.settle();
    world.ack_all();
    assert_eq!(
        world.call("web", "store", 80)[1],
        "  1 store:80: no endpoint of store:80 is ready"
    );
}

#[test]
fn what_a_dataplane_does_not_run_yet_is_not_what_it_does() {
    let mut world = World::new(WORLD);
    world.put(IMPATIENT);
    let lines = world.call("web", "store", 80);
    assert_eq!(lines[2], "  connectionTimeout 5s (built in)");
    assert_eq!(
        lines[4],
        "  document service/store:80: this is an older one; the dataplane has not acknowledged the newest yet"
    );
    world.refuse_all("not today");
    let lines = world.call("web", "store", 80);
    assert_eq!(lines[2], "  connectionTimeout 5s (built in)");
    assert_eq!(
        lines[4],
        "  document service/store:80: this is an older one; the dataplane has refused the newest: not today"
    );
}

#[test]
fn who_is_let_in_is_said_with_the_policy_responsible() {
    let mut world = World::new(WORLD);
    assert_eq!(
        world.inbound("store", 80, WEB),
        [
            "store-1 main 80: allowed by web-to-store#0: allow spiffe://pay.east.mesh.local/workload/web"
        ]
    );
    assert_eq!(
        world.inbound("store", 0, "spiffe://pay.east.mesh.local/workload/batch"),
        ["store-1 main 80: denied: no permission allows it"]
    );
    assert_eq!(
        world.inbound("web", 80, WEB),
        ["web-1 80 80: denied: no permission says who may call this inbound"]
    );
    assert!(world.inbound("none", 80, WEB).is_empty());
    // As long as the dataplane runs the old permission, that one counts.
    let key = ResourceKey::in_zone("MeshTrafficPermission", "pay", "", "web-to-store");
    world.take(false, &[], vec![key]);
    world.settle();
    assert!(explain::inbound(&world.mesh, "store", 80, WEB)[0].allowed);
    world.ack_all();
    assert!(!explain::inbound(&world.mesh, "store", 80, WEB)[0].allowed);
}

#[test]
fn a_service_and_a_policy_are_shown_as_they_concern_this_zone() {
    let mut world = World::new(WORLD);
    world.put(&format!("{SPLIT}---{IMPATIENT}"));
    world.ack_all();
    let store = inspect::service(&world.mesh, "store").unwrap();
    assert_eq!(
        store.policies,
        ["MeshTCPRoute/split to[0]", "MeshTimeout/impatient to[0]"]
    );
    assert_eq!(store.ports[0].endpoints, ["store-1 (10.0.0.2:80, ready)"]);
    assert_eq!(
        store.identities,
        ["spiffe://pay.east.mesh.local/workload/store"]
    );
    assert!(inspect::service(&world.mesh, "none").is_none());

    let key = |kind: &str, name: &str| Key::from(ResourceKey::in_zone(kind, "pay", "", name));
    let policy = inspect::policy(&world.mesh, &key("MeshTimeout", "impatient")).unwrap();
    assert_eq!(policy["dataplanes"], serde_json::json!(["web-1"]));
    assert_eq!(policy["destinations"], serde_json::json!(["store"]));
    let policy = inspect::policy(&world.mesh, &key("MeshTCPRoute", "split")).unwrap();
    assert_eq!(policy["selected"], 3);
    assert!(inspect::policy(&world.mesh, &key("MeshTimeout", "none")).is_err());
    assert!(inspect::policy(&world.mesh, &key("MeshIdentity", "all")).is_err());
}

#[test]
fn a_plan_names_settings_features_and_conditions_and_changes_nothing() {
    let world = World::new(WORLD);
    let plan = world.plan(&format!("{SPLIT}---{IMPATIENT}"), vec![]);
    assert_eq!((plan.dataplanes, plan.affected), (3, 1));
    let change = &plan.changes[0];
    assert_eq!(change.name, "web-1");
    assert_eq!(change.missing_features, [features::ROUTE_TCP]);
    let settings: Vec<_> = change
        .settings
        .iter()
        .map(|s| format!("{} {}", s.of, s.setting))
        .collect();
    assert_eq!(
        settings,
        [
            "service none:80 protocol",
            "service none:80 timeouts.connect",
            "service none:80 timeouts.idle",
            "service store:80 route",
            "service store:80 timeouts.connect",
        ]
    );
    let conditions: Vec<_> = plan
        .conditions
        .iter()
        .map(|c| format!("{} {} {}", c.key.name, c.reason, c.field))
        .collect();
    assert_eq!(
        conditions,
        ["split NoSuchService spec.to[0].rules[0].default.backendRefs[1]"]
    );
    assert_eq!(world.call("web", "store", 80).len(), 4);

    // The mesh itself goes.
    let mesh = ResourceKey::in_zone("Mesh", "", "", "pay");
    let plan = world.plan("", vec![mesh]);
    assert_eq!(plan.affected, 3);
    assert_eq!(plan.changes[0].settings[0].setting, "placement");
    let elsewhere = world.plan("{type: Mesh, name: pay, zones: [west]}", vec![]);
    assert_eq!(elsewhere.affected, 3);
    let here = world.plan("{type: Mesh, name: pay, zones: [east]}", vec![]);
    assert_eq!(here.affected, 0);
}

#[test]
fn a_refusal_is_a_condition_of_what_changed_and_policies_have_theirs() {
    let mut world = World::new(WORLD);
    world.put(IMPATIENT);
    world.refuse_all("not today");
    assert!(world.mesh.is_unjudged() && !world.mesh.judge());
    let outside = "{type: MeshExternalService, mesh: pay, name: bank, spec: {match: {type: HostnameGenerator, port: 443, protocol: tcp}, endpoints: [{address: bank.example, port: 443}]}}
---
{type: MeshTimeout, mesh: pay, name: to-bank, spec: {to: [{targetRef: {kind: MeshExternalService, name: bank}, default: {idleTimeout: 1s}}]}}";
    world.put(outside);
    let nothing = "{type: MeshTimeout, mesh: pay, name: lonely, spec: {targetRef: {kind: Dataplane, labels: {app: none}}, rules: [{default: {idleTimeout: 1s}}]}}";
    world.put(nothing);
    assert!(world.mesh.is_unjudged() && world.mesh.judge() && !world.mesh.is_unjudged());
    let status = world.mesh.status(1);
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|c| {
            let key = c.key.as_ref().unwrap();
            format!("{} {} {} {}", key.name, c.r#type, c.reason, c.message)
        })
        .collect();
    assert_eq!(
        conditions,
        [
            "impatient Accepted RefusedByDataplane dataplane web-1 can not take this change (service/store:80): not today",
            "lonely Effective SelectsNothing no dataplane has the labels app=none",
        ]
    );
    assert_eq!(status.condition_count, 2);
}

#[test]
fn what_was_imported_shows_its_age_and_where_it_is_from() {
    let mut world = World::new(WORLD);
    let mut west = resources(
        "{type: MeshService, mesh: pay, name: far, spec: {ports: [{port: 80}], state: Available}}",
    );
    assert!(west[0].get::<MeshService>().is_some());
    west[0].meta.zone = "west".into();
    world.take(false, &west, vec![]);
    world.settle();
    let services = inspect::services(&world.mesh, 65_000);
    let far = &services[0]["zones"][0];
    assert_eq!(services[0]["name"], "far");
    assert_eq!(
        (&far["zone"], &far["ageSeconds"]),
        (&"west".into(), &60.into())
    );
    assert_eq!(far["modificationTime"], "1970-01-01T00:00:05Z");
    let own = &services[1]["zones"][0];
    assert_eq!(own.get("ageSeconds"), None);
    let all = inspect::resources(world.mesh.scope(), 65_000);
    let origins: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|r| format!("{} {} {}", r["type"], r["name"], r["origin"]))
        .collect();
    assert_eq!(
        origins,
        [
            r#""MeshIdentity" "all" "global""#,
            r#""MeshService" "far" "west""#,
            r#""MeshTrafficPermission" "web-to-store" "global""#,
        ]
    );
}

/// The world with requests of HTTP between web and the store, and routes of them.
fn with_requests() -> World {
    let world = WORLD.replace(
        "port: 80, servicePort: 8080, protocol: tcp}]",
        "port: 80, servicePort: 8080, protocol: http}]",
    );
    let mut world = World::new(&world);
    world.put(
        r#"
type: MeshHTTPRoute
mesh: pay
name: shop
spec:
  to:
    - targetRef: {kind: MeshService, name: store}
      rules:
        - matches: [{path: {type: PathPrefix, value: /v2}, headers: [{name: x-env, value: dev}]}]
          default:
            filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
            backendRefs: [{kind: MeshService, name: store, port: 80, weight: 9}, {kind: MeshService, name: none, port: 80}]
        - matches: [{path: {type: Exact, value: /old}}]
          default: {filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /new}}}]}
        - matches: [{method: DELETE}]
          default: {backendRefs: [{kind: MeshService, name: store, port: 80, weight: 0}]}
---
type: MeshTimeout
mesh: pay
name: patient
spec: {to: [{targetRef: {kind: MeshHTTPRoute, name: shop}, default: {http: {requestTimeout: 1m}}}]}
---
type: MeshTimeout
mesh: pay
name: by-caller
spec:
  rules:
    - matches: [{spiffeID: {type: Exact, value: "spiffe://pay.east.mesh.local/workload/web"}}]
      default: {http: {requestTimeout: 2s}}
---
{type: MeshTLS, mesh: pay, name: open, spec: {rules: [{default: {mode: Permissive}}]}}
"#,
    );
    world.ack_all();
    world
}

#[test]
fn a_request_is_followed_by_the_rule_that_takes_it() {
    let world = with_requests();
    let lines = world.request("GET /v2/x?y=1", Some("x-env: dev"));
    assert_eq!(
        lines[1..8],
        [
            "  by MeshHTTPRoute/shop to[0].rules[0]",
            "  path begins with /v2, header x-env is \"dev\": 1 none:80, 9 store:80 (MeshHTTPRoute/shop to[0].rules[0])",
            "    rewrites prefix to \"/\"",
            "    http.requestTimeout 1m (MeshTimeout/patient to[0])",
            "    http.streamIdleTimeout 30m (built in)",
            "    http.maxStreamDuration never (built in)",
            "    http.maxConnectionDuration never (built in)",
        ]
    );
    let rest: Vec<_> = lines[9..].iter().map(String::as_str).collect();
    assert_eq!(
        rest[..5],
        [
            "  1 none:80: there is no none:80 in any zone",
            "  9 store:80: 10.0.0.2:80 (east)",
            "  connectionTimeout 5s (built in)",
            "  idleTimeout 1h (built in)",
            "  http.requestTimeout 1m (MeshTimeout/patient to[0])",
        ]
    );
    assert!(rest.contains(&"  loadBalancer leastRequest of 2, slow start 10s (built in)"));
    // Without the header no rule of the policy takes it, and the called service's time-outs hold.
    let lines = world.request("GET /v2/x", None);
    assert_eq!(lines[1], "  every request: 1 store:80 (built in)");
    assert_eq!(lines[2], "  1 store:80: 10.0.0.2:80 (east)");
    assert_eq!(lines[5], "  http.requestTimeout 15s (built in)");
    let redirected = world.request("GET /old", None);
    assert!(
        redirected.contains(&"  answers 302: path to /new".to_owned()),
        "{redirected:?}"
    );
    let nowhere = world.request("DELETE /x", None);
    let answer = "  answers 500: the rule names no backend with a weight".to_owned();
    assert!(nowhere.contains(&answer), "{nowhere:?}");
    // Without a request: every rule, in order, and every place that one leads to.
    let all = world.call("web", "store", 80);
    let rules: Vec<_> = all
        .iter()
        .filter(|line| line.ends_with("(built in)") || line.contains("rules["))
        .collect();
    assert!(rules[0].starts_with("  path is /old: "), "{all:?}");
    assert!(
        all.contains(&"  every request: 1 store:80 (built in)".to_owned()),
        "{all:?}"
    );
    assert!(
        all.contains(&"  9 store:80: 10.0.0.2:80 (east)".to_owned()),
        "{all:?}"
    );
}

#[test]
fn requests_are_not_looked_into_where_a_port_takes_none() {
    let world = World::new(WORLD);
    let lines = world.request("GET /x", None);
    assert_eq!(
        lines.last().unwrap(),
        "  the port takes tcp: requests are not looked into"
    );
}

#[test]
fn how_a_refused_request_is_answered_is_said_and_whose_time_outs_hold() {
    let world = with_requests();
    let batch = "spiffe://pay.east.mesh.local/workload/batch";
    assert_eq!(
        world.inbound("store", 80, batch),
        [
            "store-1 main 80: denied: no permission allows it; answered with 403, or status 7 of gRPC"
        ]
    );
    let settings = |caller: &str| {
        explain::inbound(&world.mesh, "store", 80, caller)[0]
            .settings
            .clone()
    };
    assert_eq!(
        settings(WEB)[2],
        "http.requestTimeout 2s (MeshTimeout/by-caller rules[0])"
    );
    assert_eq!(settings(batch)[2], "http.requestTimeout never (built in)");
    assert!(
        settings(batch)
            .last()
            .unwrap()
            .starts_with("tls permissive: ")
    );
}

#[test]
fn routes_and_time_outs_of_requests_are_seen_in_dataplanes_policies_and_plans() {
    let world = with_requests();
    let zone = "east".parse().unwrap();
    let web = inspect::dataplane(&world.mesh, &zone, "web-1").unwrap();
    let routes: Vec<_> = web["outbounds"][0]["routes"]
        .as_array()
        .unwrap()
        .iter()
        .collect();
    assert_eq!(routes.len(), 4);
    assert_eq!(
        routes[0],
        "path is /old: answers 302: path to /new; requestTimeout 1m (MeshTimeout/patient to[0]) (MeshHTTPRoute/shop to[0].rules[1])"
    );
    let settings = web["outbounds"][0]["settings"].as_array().unwrap();
    assert!(
        settings.contains(&"http.requestTimeout 15s (built in)".into()),
        "{settings:?}"
    );
    let settings = web["inbounds"][0]["settings"].as_array().unwrap();
    let of_web = format!("for {WEB}: http.requestTimeout 2s (MeshTimeout/by-caller rules[0])");
    assert!(settings.contains(&of_web.as_str().into()), "{settings:?}");

    let key = |kind: &str, name: &str| Key::from(ResourceKey::in_zone(kind, "pay", "", name));
    let patient = inspect::policy(&world.mesh, &key("MeshTimeout", "patient")).unwrap();
    assert_eq!(
        patient["destinations"],
        serde_json::json!(["MeshHTTPRoute shop"])
    );

    let plan = world.plan(
        "",
        vec![ResourceKey::in_zone("MeshHTTPRoute", "pay", "", "shop")],
    );
    let of_store = |change: &mesh_model::api::SettingChange| change.of == "service store:80";
    let changed: Vec<_> = plan.changes[0]
        .settings
        .iter()
        .filter(|c| of_store(c))
        .collect();
    assert_eq!(changed.len(), 4, "{changed:?}");
    assert!(
        changed
            .iter()
            .all(|c| c.setting == "requests" && c.after.is_none())
    );
}
