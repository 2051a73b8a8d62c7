//! What compiling costs in a mesh of 1,000 services and 500 policies: for one proxy, for all, for a change, for a plan.
//!
//! `cargo run --release -p zone-cp --example compile_cost [-- SERVICES POLICIES]`; numbers are medians of five.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_model::{Dataplane, Resource};
use mesh_proto::{
    discovery::{Ack, DocumentVersion, to_dataplane},
    features,
    names::{MeshName, ZoneName},
    zone::{Changes, PlanChanges, ResourceRecord},
};
use zone_cp::{
    compiler::{self, Compiler},
    mesh::{Mesh, Settled, Surroundings},
    plan::{self, PlanOf},
    registry::{Arrival, Registry, StreamId},
    scope::Scope,
    token::Accepted,
    view::{MeshSources, MeshView},
};

/// Services that each proxy calls.
const CALLS: usize = 10;

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|a| a.parse().ok());
    let services: usize = arguments.next().unwrap_or(1_000);
    let policies: usize = arguments.next().unwrap_or(500);
    println!(
        "{services} services with one proxy each, {CALLS} outbounds a proxy, {policies} policies"
    );
    let resources = resources(services, policies);
    let dataplanes = dataplanes(services);
    let (mesh, zone): (MeshName, ZoneName) = (name("pay"), name("east"));
    let view = || {
        MeshView::new(MeshSources {
            mesh: &mesh,
            zone: &zone,
            resources: &resources,
            unreadable: &[],
            dataplanes: &dataplanes,
            closed_zones: &BTreeSet::new(),
            own_anchors: &[vec![1; 400]],
        })
    };
    report("view of the mesh", || drop(view()));
    let view = view();
    let one = &dataplanes["dp-7"];
    report("one proxy", || {
        drop(compiler::compile(&view, one, &BTreeSet::new(), &[]))
    });
    report("all proxies", || {
        let mut compiler = Compiler::new(&view);
        for dataplane in dataplanes.values() {
            drop(compiler.compile(dataplane, &BTreeSet::new(), &[]));
        }
    });

    let mut world = World::new(&resources, &dataplanes);
    let permission = |n: u32| {
        format!(
            "{{type: MeshTrafficPermission, mesh: pay, name: changed, spec: {{targetRef: {{kind: Dataplane, labels: {{isthmus.io/service: s-7}}}}, rules: [{{default: {{allow: [{{spiffeID: {{type: Exact, value: \"spiffe://x/{n}\"}}}}]}}}}]}}}}"
        )
    };
    let timeout = |target: &str, n: u32| {
        format!(
            "{{type: MeshTimeout, mesh: pay, name: changed, spec: {{targetRef: {target}, to: [{{targetRef: {{kind: Mesh}}, default: {{connectionTimeout: {n}ms}}}}]}}}}"
        )
    };
    let mut n = 0;
    for (what, text) in [
        (
            "a change of one proxy's permissions",
            &permission as &dyn Fn(u32) -> String,
        ),
        ("a change of one proxy's time-outs", &|n| {
            timeout("{kind: Dataplane, labels: {isthmus.io/service: s-7}}", n)
        }),
        ("a change of everybody's time-outs", &|n| {
            timeout("{kind: Mesh}", n)
        }),
    ] {
        let mut sent = 0;
        report_with(what, || {
            n += 1;
            let changed = parse(&text(n)).remove(0);
            let begun = Instant::now();
            world.put(&[changed]);
            let settled = world.settle();
            let spent = begun.elapsed();
            sent = world.roll_out(settled);
            spent
        });
        println!("    sent to {sent} proxies");
    }
    report("conditions of all policies", || {
        world.mesh.judge();
    });
    report("snapshot for a plan", || drop(world.mesh.snapshot()));
    let plan_of = |text: &str| {
        let mesh = world.mesh.snapshot();
        PlanOf {
            zone: mesh.zone.clone(),
            global: Scope::new(""),
            surroundings: Surroundings::default(),
            meshes: [(mesh.mesh.clone(), mesh)].into(),
            changes: PlanChanges {
                put: parse(text).iter().map(record).collect(),
                delete: vec![],
            },
        }
    };
    let narrow = plan_of(&permission(0));
    let wide = plan_of(&timeout("{kind: Mesh}", 9_999));
    for (what, of) in [
        ("plan that concerns one", narrow),
        ("plan that concerns all", wide),
    ] {
        let mut affected = 0;
        report(what, || affected = plan::plan(&of).affected);
        println!("    affects {affected} proxies");
    }
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a good name")
}

fn parse(text: &str) -> Vec<Resource> {
    mesh_model::parse(text, "cost").unwrap_or_else(|v| panic!("{v}"))
}

fn record(resource: &Resource) -> ResourceRecord {
    ResourceRecord {
        key: Some(resource.key()),
        json: resource.to_json(),
        revision: 1,
        modified_ms: 1,
        created_revision: 1,
    }
}

fn report(what: &str, mut run: impl FnMut()) {
    report_with(what, || {
        let begun = Instant::now();
        run();
        begun.elapsed()
    });
}

fn report_with(what: &str, mut run: impl FnMut() -> Duration) {
    let mut times: Vec<Duration> = (0..5).map(|_| run()).collect();
    times.sort();
    println!("{:>10.3} ms  {what}", times[2].as_secs_f64() * 1e3);
}

/// One in five for all, the others for some: permissions, time-outs of callers and of the called, routes.
fn resources(services: usize, policies: usize) -> Vec<Arc<Resource>> {
    let mut text = "{type: MeshIdentity, mesh: pay, name: all, spec: {selector: {dataplane: {}}, provider: {type: Bundled}}}".to_owned();
    for n in 0..policies {
        let service = n * 7 % services;
        let other = (service + 1) % services;
        let some = format!("{{kind: Dataplane, labels: {{isthmus.io/service: s-{service}}}}}");
        let policy = match n % 10 {
            0 => format!(
                "{{type: MeshTimeout, mesh: pay, name: p-{n}, spec: {{to: [{{targetRef: {{kind: Mesh}}, default: {{idleTimeout: {}s}}}}]}}}}",
                n + 1
            ),
            1 => format!(
                "{{type: MeshTrafficPermission, mesh: pay, name: p-{n}, spec: {{rules: [{{default: {{allow: [{{spiffeID: {{type: Exact, value: \"spiffe://pay.east.mesh.local/workload/s-{other}\"}}}}]}}}}]}}}}"
            ),
            2 | 3 => format!(
                "{{type: MeshTimeout, mesh: pay, name: p-{n}, spec: {{targetRef: {some}, to: [{{targetRef: {{kind: MeshService, name: s-{other}}}, default: {{connectionTimeout: 1s}}}}]}}}}"
            ),
            4 => format!(
                "{{type: MeshTCPRoute, mesh: pay, name: p-{n}, spec: {{to: [{{targetRef: {{kind: MeshService, name: s-{service}}}, rules: [{{default: {{backendRefs: [{{kind: MeshService, name: s-{service}, port: 80, weight: 9}}, {{kind: MeshService, name: s-{other}, port: 80}}]}}}}]}}]}}}}"
            ),
            5 => format!(
                "{{type: MeshTimeout, mesh: pay, name: p-{n}, spec: {{targetRef: {some}, rules: [{{default: {{idleTimeout: 5m}}}}]}}}}"
            ),
            _ => format!(
                "{{type: MeshTrafficPermission, mesh: pay, name: p-{n}, spec: {{targetRef: {some}, rules: [{{default: {{allow: [{{spiffeID: {{type: Exact, value: \"spiffe://pay.east.mesh.local/workload/s-{other}\"}}}}]}}}}]}}}}"
            ),
        };
        text.push_str("\n---\n");
        text.push_str(&policy);
    }
    parse(&text).into_iter().map(Arc::new).collect()
}

fn dataplanes(count: usize) -> BTreeMap<String, Arc<Resource>> {
    let mut all = BTreeMap::new();
    for n in 0..count {
        let outbounds: Vec<String> = (0..CALLS)
            .map(|call| {
                let to = (n + call * 13) % count;
                format!(
                    "{{port: {}, backendRef: {{kind: MeshService, name: s-{to}, port: 80}}}}",
                    10_000 + call
                )
            })
            .collect();
        let text = format!(
            "{{type: Dataplane, mesh: pay, name: dp-{n}, labels: {{isthmus.io/service: s-{n}, team: t-{}}}, networking: {{address: 10.{}.{}.1, inbound: [{{name: main, port: 80, servicePort: 8080}}], outbound: [{}]}}}}",
            n % 20,
            n / 250,
            n % 250,
            outbounds.join(", ")
        );
        let mut resource = parse(&text).remove(0);
        assert!(resource.get::<Dataplane>().is_some());
        resource.meta.zone = "east".into();
        all.insert(resource.meta.name.clone(), Arc::new(resource));
    }
    all
}

/// A mesh all of whose dataplanes run what they should.
struct World {
    mesh: Mesh,
    revision: u64,
}

impl World {
    fn new(resources: &[Arc<Resource>], dataplanes: &BTreeMap<String, Arc<Resource>>) -> Self {
        let mut this = Self {
            mesh: Mesh::new(
                name("pay"),
                name("east"),
                Scope::new("pay"),
                Registry::default(),
            ),
            revision: 0,
        };
        let resources: Vec<Resource> = resources.iter().map(|r| Resource::clone(r)).collect();
        this.take(true, &resources);
        for (at, resource) in dataplanes.values().enumerate() {
            let arrival = Arrival {
                resource: resource.clone(),
                session: "s".into(),
                session_number: 1,
                version: "1".into(),
                features: features::DATAPLANE
                    .iter()
                    .map(|f| (*f).to_owned())
                    .collect(),
                token: Accepted {
                    issuer: "pay".into(),
                    id: "t".into(),
                    kid: "k".into(),
                    expires: u64::MAX,
                },
                stream: StreamId(at as u64),
            };
            this.mesh.arrive(arrival, &[]);
        }
        let begun = Instant::now();
        let settled = this.settle();
        let spent = begun.elapsed();
        println!(
            "{:>10.3} ms  all dataplanes arrive at once (once)",
            spent.as_secs_f64() * 1e3
        );
        this.roll_out(settled);
        this
    }

    fn put(&mut self, resources: &[Resource]) {
        self.take(false, resources);
    }

    fn take(&mut self, snapshot: bool, resources: &[Resource]) {
        self.revision += 1;
        self.mesh.take(Changes {
            mesh: "pay".into(),
            from: self.revision - 1,
            to: self.revision,
            snapshot,
            last: true,
            put: resources.iter().map(record).collect(),
            ..Changes::default()
        });
    }

    fn settle(&mut self) -> Settled {
        self.mesh
            .settle(self.revision, false, Instant::now(), |_| 1)
    }

    /// Everybody takes what it is sent; how many were sent documents.
    fn roll_out(&mut self, mut settled: Settled) -> usize {
        let mut sent = BTreeSet::new();
        loop {
            let mut any = false;
            for (name, message) in settled.sends {
                if let Some(to_dataplane::Message::Documents(documents)) = message.message {
                    let taken = documents.put.into_iter().map(|d| DocumentVersion {
                        name: d.name,
                        version: d.version,
                    });
                    let ack = Ack {
                        revision: 0,
                        documents: taken.collect(),
                    };
                    self.mesh.ack(&name, &ack);
                    sent.insert(name);
                    any = true;
                }
            }
            if !any {
                return sent.len();
            }
            settled = self.settle();
        }
    }
}
