//! The same chain by two sidecars of ours, with the control planes and policies that belong to them.

use mesh_tests::{api::Api, global::Global, resources, sidecar::Plan, world::World, zone::Zone};

use super::{Service, Site, chain::Chain};

const MESH: &str = "bench";
const ZONE: &str = "bench";

/// One global node and one zone, for `web` that calls `page` (the application).
#[derive(Debug)]
pub(crate) struct Installation {
    global: Global,
    zone: Zone,
    api: Api,
}

/// A policy that can be switched on. Without any of them there is one permission, for the one caller.
#[derive(Debug)]
pub(crate) struct Policy {
    pub name: &'static str,
    plural: &'static str,
    resource: &'static str,
    spec: &'static str,
}

/// As many rules as somebody might have; what is asked for meets the last of each.
pub(crate) const POLICIES: &[Policy] = &[
    Policy {
        name: "permissions",
        plural: "meshtrafficpermissions",
        resource: "MeshTrafficPermission",
        spec: "
  targetRef: {kind: Dataplane, labels: {isthmus.io/service: page}}
  rules:
    - default:
        deny:
          - {spiffeID: {type: Prefix, value: spiffe://bench.bench.mesh.local/workload/untrusted-}}
          - {spiffeID: {type: Exact, value: spiffe://bench.bench.mesh.local/workload/old-web}}
          - {spiffeID: {type: Exact, value: spiffe://bench.bench.mesh.local/workload/older-web}}
        allowWithShadowDeny:
          - {spiffeID: {type: Prefix, value: spiffe://bench.bench.mesh.local/workload/batch-}}
        allow:
          - {spiffeID: {type: Exact, value: spiffe://bench.bench.mesh.local/workload/api}}
          - {spiffeID: {type: Exact, value: spiffe://bench.bench.mesh.local/workload/admin}}
          - {spiffeID: {type: Exact, value: spiffe://bench.bench.mesh.local/workload/report}}
          - {spiffeID: {type: Prefix, value: spiffe://bench.bench.mesh.local/workload/team-a-}}
          - {spiffeID: {type: Prefix, value: spiffe://bench.bench.mesh.local/workload/team-b-}}
          - {spiffeID: {type: Exact, value: spiffe://bench.bench.mesh.local/workload/web}}
",
    },
    Policy {
        name: "route rules",
        plural: "meshhttproutes",
        resource: "MeshHTTPRoute",
        spec: "
  targetRef: {kind: Dataplane, labels: {isthmus.io/service: web}}
  to:
    - targetRef: {kind: MeshService, name: page}
      rules:
        - matches: [{path: {type: Exact, value: /login}, method: POST}]
          default: {}
        - matches: [{path: {type: PathPrefix, value: /admin}, headers: [{name: x-team, value: payments}]}]
          default: {filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-version, value: '2'}]}}]}
        - matches: [{path: {type: PathPrefix, value: /}, queryParams: [{type: Exact, name: user, value: jane}]}]
          default: {}
        - matches: [{path: {type: RegularExpression, value: '/items/[0-9]+'}}]
          default: {}
        - matches: [{path: {type: PathPrefix, value: /}}]
          default: {}
",
    },
    Policy {
        name: "timeouts",
        plural: "meshtimeouts",
        resource: "MeshTimeout",
        spec: "
  targetRef: {kind: Mesh}
  to:
    - targetRef: {kind: Mesh}
      default:
        connectionTimeout: 2s
        idleTimeout: 1h
        http: {requestTimeout: 10m, streamIdleTimeout: 10m, maxStreamDuration: 10m, maxConnectionDuration: 1h, requestHeadersTimeout: 5s}
  rules:
    - default:
        idleTimeout: 1h
        http: {requestTimeout: 10m, streamIdleTimeout: 10m, requestHeadersTimeout: 5s}
",
    },
    Policy {
        name: "metrics",
        plural: "meshmetrics",
        resource: "MeshMetric",
        spec: "
  targetRef: {kind: Mesh}
  default:
    sidecar: {includeUnused: true, profiles: {appendProfiles: [{name: All}]}}
",
    },
];

/// The name of each policy's resource.
const RESOURCE: &str = "measured";

impl Installation {
    /// Makes `on` all that is switched on, in both sidecars.
    pub(crate) fn switch_on(&self, on: &[&Policy]) -> anyhow::Result<()> {
        let mut revision = 0;
        for policy in POLICIES {
            let path = format!("/v1/meshes/{MESH}/{}/{RESOURCE}", policy.plural);
            let is_there = self.api.request("GET", &path, &[], None)?.status == 200;
            let written = if on.iter().any(|wanted| wanted.name == policy.name) {
                self.api.apply(&format!(
                    "type: {}\nmesh: {MESH}\nname: {RESOURCE}\nspec:{}",
                    policy.resource, policy.spec
                ))?
            } else if is_there {
                self.api.delete(&path)?
            } else {
                continue;
            };
            revision = revision.max(written.revision);
        }
        if revision > 0 {
            self.api.wait_for_rollout(revision)?;
        }
        Ok(())
    }

    /// The processes beside the sidecars.
    pub(crate) fn control_planes(&self) -> [(&'static str, u32); 2] {
        [
            ("global-cp", self.global.nodes[0].process.pid()),
            ("zone-cp", self.zone.process.pid()),
        ]
    }
}

/// Everything, with all policies on.
pub(super) fn start(name: &'static str, site: &Site<'_>) -> anyhow::Result<Chain> {
    // A world of its own, so that names of processes and folders do not meet.
    let world = World::with_binaries(site.world.binaries())?;
    let global = Global::start(&world)?;
    let api = global.api()?;
    let zone = Zone::start(&world, &global, ZONE)?;
    api.apply(&resources::mesh(MESH))?;
    let caller = resources::spiffe_id(MESH, ZONE, "web");
    let allow = resources::permission(MESH, "web-to-page", Some("page"), &[("Exact", &caller)]);
    api.apply(&allow)?;
    let token = api.dataplane_token(MESH)?;
    let mut page = Plan::new(&world, &zone, MESH, "page", &token)?
        .service("page")
        .flag("--workers", "1");
    let mut web = Plan::new(&world, &zone, MESH, "web", &token)?
        .service("web")
        .flag("--workers", "1");
    let mut entries = Vec::new();
    for service in Service::ALL {
        let port = world.port()?;
        let protocol = match service {
            Service::Http1 => "http",
            Service::Http2 => "http2",
            Service::Grpc => "grpc",
            Service::Tcp | Service::TcpUnresumed => "tcp",
        };
        page = page.flag(
            "--inbound",
            &format!("{port}:{}/{protocol}", site.application.port(service)),
        );
        let called = format!("page:{port}");
        web = web.outbound(&called)?;
        entries.push((service, web.to(&called)));
    }
    let (page, web) = (page.start()?, web.start()?);
    let installation = Installation { global, zone, api };
    installation.switch_on(&POLICIES.iter().collect::<Vec<_>>())?;
    let mut chain = Chain::new(name, entries, web.process, page.process);
    chain.installation = Some(installation);
    Ok(chain)
}
