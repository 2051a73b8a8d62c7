//! One mesh under random events: what its dataplanes hold is always what compiling everything from nothing gives, and
//! nobody is sent what he has.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use mesh_model::{Resource, api::ZonePlan};
use mesh_proto::{
    discovery::{Ack, DocumentVersion, InboundReadiness, to_dataplane},
    names::{MeshName, ZoneName},
    proxy::Document,
    zone::{Changes, PlanChanges, ResourceRecord},
};
use proptest::prelude::*;
use zone_cp::{
    compiler::{self, ServiceDocuments},
    endpoints::Address,
    mesh::{Mesh, Settled, Surroundings},
    plan::{self, PlanOf},
    registry::{Arrival, Registry, StreamId},
    scope::Scope,
    token::Accepted,
    tracker::Documents,
    view::{MeshSources, MeshView},
};

/// What may happen.
#[derive(Debug, Clone)]
enum Step {
    Put(usize),
    Delete(usize),
    Arrive { name: usize, variant: usize },
    Gone(usize),
    Leave(usize),
    Ready(usize, bool),
    Expire,
    Surroundings { closed: bool, ingress: bool },
    Anchors(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..POOL).prop_map(Step::Put),
        (0..POOL).prop_map(Step::Delete),
        (0..3usize, 0..4usize).prop_map(|(name, variant)| Step::Arrive { name, variant }),
        (0..3usize).prop_map(Step::Gone),
        (0..3usize).prop_map(Step::Leave),
        (0..3usize, any::<bool>()).prop_map(|(name, ready)| Step::Ready(name, ready)),
        Just(Step::Expire),
        (any::<bool>(), any::<bool>())
            .prop_map(|(closed, ingress)| Step::Surroundings { closed, ingress }),
        (0..3u8).prop_map(Step::Anchors),
    ];
    prop::collection::vec(step, 1..40)
}

const POOL: usize = 16;

/// Resources that come and go.
fn pool() -> Vec<Resource> {
    let text = r#"
{type: MeshIdentity, mesh: pay, name: all, spec: {selector: {dataplane: {matchLabels: {}}}, provider: {type: Bundled}}}
---
{type: MeshIdentity, mesh: pay, name: a, spec: {selector: {dataplane: {matchLabels: {isthmus.io/service: a}}}, spiffeID: {path: "/x/{{ .Workload }}"}, provider: {type: Bundled}}}
---
{type: MeshTrafficPermission, mesh: pay, name: everyone, spec: {rules: [{default: {allow: [{spiffeID: {type: Prefix, value: "spiffe://"}}]}}]}}
---
{type: MeshTrafficPermission, mesh: pay, name: not-a, spec: {targetRef: {kind: Dataplane, labels: {isthmus.io/service: a}}, rules: [{default: {deny: [{spiffeID: {type: Prefix, value: "spiffe://"}}]}}]}}
---
{type: MeshService, mesh: pay, name: a, spec: {selector: {dataplaneLabels: {matchLabels: {isthmus.io/service: a}}}, ports: [{port: 8080, name: web, targetPort: 80}]}}
---
{type: MeshService, mesh: pay, name: b, spec: {selector: {dataplaneRef: {name: dp-1}}, ports: [{port: 80}]}}
---
{type: MeshService, mesh: pay, name: d, labels: {team: x}, spec: {selector: {dataplaneRef: {name: dp-2}}, ports: [{port: 80, name: http}]}}
---
{type: MeshTimeout, mesh: pay, name: all, spec: {to: [{targetRef: {kind: Mesh}, default: {idleTimeout: 1m}}], rules: [{default: {idleTimeout: 2m}}]}}
---
{type: MeshTimeout, mesh: pay, name: a-to-b, spec: {targetRef: {kind: Dataplane, labels: {isthmus.io/service: a}}, to: [{targetRef: {kind: MeshService, name: b}, default: {connectionTimeout: 1s}}]}}
---
{type: MeshTimeout, mesh: pay, name: to-west, spec: {to: [{targetRef: {kind: MeshService, labels: {isthmus.io/zone: west}}, default: {idleTimeout: 5m}}]}}
---
{type: MeshTCPRoute, mesh: pay, name: split, spec: {to: [{targetRef: {kind: MeshService, name: a, sectionName: "80"}, rules: [{default: {backendRefs: [{kind: MeshService, name: a, port: 80}, {kind: MeshService, name: b, port: 80, weight: 2}, {kind: MeshService, name: c, port: 80}, {kind: MeshService, labels: {team: x}, sectionName: http}, {kind: MeshService, labels: {isthmus.io/display-name: a, isthmus.io/zone: west}, port: 80}]}}]}]}}
---
{type: MeshTCPRoute, mesh: pay, name: c-only, spec: {targetRef: {kind: Dataplane, labels: {isthmus.io/service: c}}, to: [{targetRef: {kind: MeshService, name: b}, rules: [{default: {backendRefs: [{kind: MeshService, name: d, sectionName: http}]}}]}]}}
---
{type: MeshTimeout, mesh: pay, name: section, spec: {targetRef: {kind: Dataplane, labels: {isthmus.io/service: b}, sectionName: "80"}, to: [{targetRef: {kind: MeshService, name: a}, default: {connectionTimeout: 3s}}], rules: [{default: {idleTimeout: 3m}}]}}
"#;
    let mut pool = mesh_model::parse(text, "pool").unwrap_or_else(|v| panic!("{v}"));
    for (name, state) in [("a", "Available"), ("b", "Unavailable"), ("b", "Available")] {
        let text = format!(
            "{{type: MeshService, mesh: pay, name: {name}, spec: {{ports: [{{port: 80}}], identities: [{{type: SpiffeID, value: \"spiffe://pay.west.mesh.local/{name}\"}}], state: {state}}}}}"
        );
        let mut resource = mesh_model::parse(&text, "pool").unwrap().remove(0);
        resource.meta.zone = "west".into();
        pool.push(resource);
    }
    assert_eq!(pool.len(), POOL);
    pool
}

fn dataplane(name: usize, variant: usize) -> Arc<Resource> {
    let service = ["a", "b", "a", "c"][variant];
    let outbound = ["a:80", "b:80", "b:80@west", "a:8080"][(name + variant) % 4];
    let (outbound, zone) = outbound.split_once('@').unwrap_or((outbound, ""));
    let (to, port) = outbound.split_once(':').unwrap();
    let labels = if zone.is_empty() {
        String::new()
    } else {
        format!(", labels: {{isthmus.io/zone: {zone}}}")
    };
    let probe = if variant == 2 {
        ", serviceProbe: {tcp: {}}"
    } else {
        ""
    };
    let text = format!(
        "{{type: Dataplane, mesh: pay, name: dp-{name}, labels: {{isthmus.io/service: {service}}}, networking: {{address: 10.0.1.{name}, inbound: [{{port: 80, servicePort: 8000{probe}}}], outbound: [{{port: 1, backendRef: {{kind: MeshService, name: {to}, port: {port}{labels}}}}}, {{port: 2, backendRef: {{kind: MeshService, name: a, port: 80}}}}]}}}}"
    );
    let mut resource = mesh_model::parse(&text, "test")
        .unwrap_or_else(|v| panic!("{v}"))
        .remove(0);
    resource.meta.zone = "east".into();
    Arc::new(resource)
}

/// A proxy that takes everything.
#[derive(Debug, Default)]
struct Proxy {
    connected: bool,
    documents: BTreeMap<String, Document>,
    endpoints: BTreeMap<String, BTreeSet<String>>,
}

struct World {
    mesh: Mesh,
    resources: BTreeMap<usize, Resource>,
    proxies: BTreeMap<String, Proxy>,
    surroundings: Surroundings,
    anchors: Vec<Vec<u8>>,
    revision: u64,
    streams: BTreeMap<String, StreamId>,
    next_stream: u64,
}

impl World {
    fn new() -> Self {
        let (mesh, zone): (MeshName, ZoneName) = ("pay".parse().unwrap(), "east".parse().unwrap());
        let mut this = Self {
            mesh: Mesh::new(mesh, zone, Scope::new("pay"), Registry::default()),
            resources: BTreeMap::new(),
            proxies: BTreeMap::new(),
            surroundings: Surroundings::default(),
            anchors: vec![],
            revision: 1,
            streams: BTreeMap::new(),
            next_stream: 1,
        };
        this.changes(Changes {
            snapshot: true,
            ..Changes::default()
        });
        this
    }

    fn changes(&mut self, changes: Changes) {
        self.revision += 1;
        let changes = Changes {
            mesh: "pay".into(),
            from: self.revision - 1,
            to: self.revision,
            last: true,
            ..changes
        };
        self.mesh.take(changes);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Put(at) => {
                let resource = pool().swap_remove(at);
                let key = resource.key();
                self.resources.retain(|_, known| known.key() != key);
                self.changes(Changes {
                    put: vec![record(&resource)],
                    ..Changes::default()
                });
                self.resources.insert(at, resource);
            }
            Step::Delete(at) => {
                if let Some(resource) = self.resources.remove(&at) {
                    self.changes(Changes {
                        delete: vec![resource.key()],
                        ..Changes::default()
                    });
                }
            }
            Step::Arrive { name, variant } => self.arrive(name, variant),
            Step::Gone(name) => {
                let name = format!("dp-{name}");
                if let Some(stream) = self.streams.remove(&name) {
                    self.mesh.disconnected(&name, stream, 1000);
                    self.proxies.get_mut(&name).unwrap().connected = false;
                }
            }
            Step::Leave(name) => self.mesh.leaving(&format!("dp-{name}")),
            Step::Ready(name, ready) => {
                let inbound = InboundReadiness {
                    name: "80".into(),
                    ready,
                };
                self.mesh.readiness(&format!("dp-{name}"), &[inbound]);
            }
            Step::Expire => drop(self.mesh.expire(1000, 0)),
            Step::Surroundings { closed, ingress } => {
                self.surroundings = Surroundings::default();
                if closed {
                    self.surroundings.closed_zones.insert("west".into());
                }
                if ingress {
                    let address = Address {
                        host: "west.example".into(),
                        port: 1,
                    };
                    self.surroundings
                        .ingresses
                        .insert("west".into(), [address].into());
                }
                self.mesh.set_surroundings(&self.surroundings);
            }
            Step::Anchors(anchor) => {
                self.anchors = vec![vec![anchor]];
                self.mesh.set_own_anchors(self.anchors.clone());
            }
        }
    }

    fn arrive(&mut self, name: usize, variant: usize) {
        let resource = dataplane(name, variant);
        let name = resource.meta.name.clone();
        let proxy = self.proxies.entry(name.clone()).or_default();
        proxy.connected = true;
        let running: Vec<_> = proxy.documents.values().map(version).collect();
        let stream = StreamId(self.next_stream);
        self.next_stream += 1;
        self.streams.insert(name.clone(), stream);
        let arrival = Arrival {
            resource,
            session: "s".into(),
            session_number: self.next_stream,
            version: "0".into(),
            features: vec![],
            token: Accepted {
                issuer: "pay".into(),
                id: "t".into(),
                kid: "k".into(),
                expires: u64::MAX,
            },
            stream,
        };
        self.mesh.arrive(arrival, &running);
    }

    /// What each dataplane is to run.
    fn wanted(&self) -> BTreeMap<String, Documents> {
        self.mesh.snapshot().wanted
    }

    /// What a step would change, where it is one that can be planned.
    fn plan(&self, step: &Step) -> Option<ZonePlan> {
        let changes = match *step {
            Step::Put(at) => PlanChanges {
                put: vec![record(&pool().swap_remove(at))],
                delete: vec![],
            },
            Step::Delete(at) => PlanChanges {
                put: vec![],
                delete: vec![self.resources.get(&at)?.key()],
            },
            _ => return None,
        };
        let mesh = self.mesh.snapshot();
        assert!(plan::concerns(&changes, &mesh.mesh));
        Some(plan::plan(&PlanOf {
            zone: mesh.zone.clone(),
            global: Scope::new(""),
            surroundings: self.surroundings.clone(),
            meshes: [(mesh.mesh.clone(), mesh)].into(),
            changes,
        }))
    }

    /// What was planned is what happened.
    fn check_plan(&self, plan: &ZonePlan, before: &BTreeMap<String, Documents>) {
        let after = self.wanted();
        let changed: Vec<_> = after
            .iter()
            .filter(|(name, documents)| before[*name] != **documents)
            .map(|(name, _)| name.as_str())
            .collect();
        let planned: Vec<_> = plan.changes.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(planned, changed);
        assert_eq!(plan.affected as usize, changed.len());
        assert_eq!(plan.dataplanes as usize, after.len());
        assert!(plan.changes.iter().all(|c| !c.settings.is_empty()));
    }

    /// Settles, delivers, acknowledges, until nothing is left to say.
    fn settle(&mut self) {
        for _ in 0..8 {
            let settled = self
                .mesh
                .settle(self.revision, false, Instant::now(), |_| 1);
            let quiet = settled.sends.is_empty();
            self.deliver(settled);
            if quiet {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn deliver(&mut self, settled: Settled) {
        for (name, message) in settled.sends {
            let proxy = self.proxies.get_mut(&name).unwrap();
            assert!(
                proxy.connected,
                "{name} is not connected and is sent something"
            );
            match message.message.unwrap() {
                to_dataplane::Message::Documents(documents) => {
                    for document in &documents.put {
                        let old = proxy
                            .documents
                            .insert(document.name.clone(), document.clone());
                        assert_ne!(
                            old.as_ref(),
                            Some(document),
                            "{name} has {} already",
                            document.name
                        );
                    }
                    for document in &documents.remove {
                        proxy.documents.remove(document).unwrap();
                        proxy.endpoints.remove(document);
                    }
                    let documents = documents.put.iter().map(version).collect();
                    self.mesh.ack(
                        &name,
                        &Ack {
                            revision: 0,
                            documents,
                        },
                    );
                }
                to_dataplane::Message::Endpoints(delta) => {
                    let set = proxy.endpoints.entry(delta.key.clone()).or_default();
                    if delta.full {
                        set.clear();
                    }
                    for address in &delta.remove {
                        assert!(set.remove(&format!("{}:{}", address.host, address.port)));
                    }
                    for endpoint in &delta.put {
                        let address = endpoint.address.as_ref().unwrap();
                        set.insert(format!("{}:{}", address.host, address.port));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Everything that is connected holds what compiling from nothing gives.
    fn check(&self) {
        let (mesh, zone): (MeshName, ZoneName) = ("pay".parse().unwrap(), "east".parse().unwrap());
        let resources: Vec<_> = self.resources.values().cloned().map(Arc::new).collect();
        let dataplanes: BTreeMap<_, _> = self
            .mesh
            .registry()
            .iter()
            .map(|(name, registration)| (name.to_owned(), registration.resource.clone()))
            .collect();
        let view = MeshView::new(MeshSources {
            mesh: &mesh,
            zone: &zone,
            resources: &resources,
            unreadable: &[],
            dataplanes: &dataplanes,
            closed_zones: &self.surroundings.closed_zones,
            own_anchors: &self.anchors,
        });
        for (name, resource) in &dataplanes {
            let proxy = &self.proxies[name];
            if !proxy.connected {
                continue;
            }
            let compiled = compiler::compile(&view, resource, &BTreeSet::new(), &[]);
            let wanted: BTreeMap<_, _> = compiled
                .documents
                .iter()
                .map(|(name, d)| (name.clone(), Document::clone(d)))
                .collect();
            assert_eq!(proxy.documents, wanted, "{name}");
            let called = compiler::declared(resource);
            let needed = ServiceDocuments::default().needed(&view, resource, &called, &[]);
            assert_eq!(needed.len() + 2, proxy.documents.len());
            assert_eq!(proxy.endpoints.len(), needed.len());
            for reference in needed.into_keys() {
                let key = reference.document_name();
                let set: BTreeSet<_> = self
                    .mesh
                    .endpoints(&reference)
                    .keys()
                    .map(ToString::to_string)
                    .collect();
                assert_eq!(proxy.endpoints.get(&key), Some(&set), "{name} {key}");
                assert_eq!(set, self.expected_endpoints(&view, &reference), "{key}");
            }
        }
        let status = self.mesh.status(1);
        let connected = self.streams.len();
        assert_eq!(status.current as usize, connected, "{status:?}");
        assert_eq!(status.dataplanes as usize, dataplanes.len());
        assert_eq!(status.silent_count as usize, dataplanes.len() - connected);
    }

    /// The rules in their plainest form.
    fn expected_endpoints(
        &self,
        view: &MeshView,
        reference: &compiler::ServiceRef,
    ) -> BTreeSet<String> {
        let mut expected = BTreeSet::new();
        let wanted = |zone: &str| reference.zone.as_deref().is_none_or(|only| only == zone);
        if let Some(own) = view
            .services
            .own
            .get(&reference.of.service)
            .filter(|_| wanted("east"))
        {
            for member in own.members.get(&reference.of.port).into_iter().flatten() {
                let registration = self.mesh.registration(&member.dataplane).unwrap();
                let probed = String::from_utf8(registration.resource.to_json())
                    .unwrap()
                    .contains("serviceProbe");
                let ready = registration.readiness.get("80").copied().unwrap_or(!probed);
                if ready && registration.listening && !registration.leaving {
                    expected.insert(member.address.to_string());
                }
            }
        }
        let west = view
            .services
            .destinations
            .get(&reference.of.service)
            .and_then(|d| d.get("west"));
        if let Some(west) = west.filter(|_| wanted("west"))
            && west.available
            && west.ports.iter().any(|p| p.port == reference.of.port)
            && let Some(ingresses) = self.surroundings.ingresses.get("west")
        {
            expected.extend(ingresses.iter().map(ToString::to_string));
        }
        expected
    }
}

fn record(resource: &Resource) -> ResourceRecord {
    ResourceRecord {
        key: Some(resource.key()),
        json: resource.to_json(),
        revision: 0,
        modified_ms: 0,
        created_revision: 0,
    }
}

fn version(document: &Document) -> DocumentVersion {
    DocumentVersion {
        name: document.name.clone(),
        version: document.version.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_dataplanes_hold_is_what_compiling_from_nothing_gives(steps in steps(), every in 1..4usize) {
        let mut world = World::new();
        for (at, step) in steps.iter().enumerate() {
            // A plan is made from what is settled.
            let planned = (every == 1).then(|| (world.plan(step), world.wanted()));
            world.step(step);
            if at % every == 0 {
                world.settle();
                world.check();
            }
            if let Some((Some(plan), before)) = planned {
                world.check_plan(&plan, &before);
            }
        }
        world.settle();
        world.check();
    }
}

#[test]
fn in_a_big_mesh_a_change_reaches_those_it_concerns_and_nobody_else() {
    let mut world = World::new();
    world.step(&Step::Put(0));
    for at in 0..2_000u64 {
        let name = format!("big-{at}");
        let text = format!(
            "{{type: Dataplane, mesh: pay, name: {name}, labels: {{isthmus.io/service: s{}}}, networking: {{address: 10.1.{}.{}, inbound: [{{port: 80, servicePort: 8000}}], outbound: [{{port: 1, backendRef: {{kind: MeshService, name: s{}, port: 80}}}}]}}}}",
            at % 100,
            at / 250,
            at % 250,
            (at + 1) % 100
        );
        let resource = Arc::new(mesh_model::parse(&text, "test").unwrap().remove(0));
        world.proxies.entry(name.clone()).or_default().connected = true;
        world.streams.insert(name, StreamId(at));
        let arrival = Arrival {
            resource,
            session: "s".into(),
            session_number: 1,
            version: "0".into(),
            features: vec![],
            token: Accepted {
                issuer: "pay".into(),
                id: "t".into(),
                kid: "k".into(),
                expires: u64::MAX,
            },
            stream: StreamId(at),
        };
        world.mesh.arrive(arrival, &[]);
        if at % 256 == 255 {
            world.settle();
        }
    }
    world.settle();
    assert_eq!(world.mesh.status(1).current, 2_000);

    world.mesh.readiness(
        "big-7",
        &[InboundReadiness {
            name: "80".into(),
            ready: false,
        }],
    );
    let settled = world.mesh.settle(2, false, Instant::now(), |_| 1);
    // Those who call s7, and nobody else; and no document.
    assert_eq!(settled.sends.len(), 20);
    assert!(
        settled
            .sends
            .iter()
            .all(|(_, m)| matches!(m.message, Some(to_dataplane::Message::Endpoints(_))))
    );

    let one = mesh_model::parse(
        "{type: MeshTrafficPermission, mesh: pay, name: one, spec: {targetRef: {kind: Dataplane, labels: {isthmus.io/service: s7}}, rules: [{default: {allow: [{spiffeID: {type: Prefix, value: \"spiffe://\"}}]}}]}}",
        "test",
    ).unwrap().remove(0);
    world.changes(Changes {
        put: vec![record(&one)],
        ..Changes::default()
    });
    // One of them tries it, and the others follow.
    for concerned in [1, 19, 0] {
        let settled = world.mesh.settle(3, false, Instant::now(), |_| 1);
        assert_eq!(settled.sends.len(), concerned);
        world.deliver(settled);
    }
}
