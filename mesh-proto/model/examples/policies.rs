//! How long policies take: `cargo run --release -p mesh-model --example policies [SERVICES [POLICIES [PROXIES]]]`.
//!
//! A mesh of 1,000 services and 500 policies, a third each for the whole mesh, for one service, and for one port of one; a
//! half of them for all proxies, the others for those of one team. Every proxy looks up every port of every service.

use std::{
    env,
    time::{Duration, Instant},
};

use mesh_model::{
    Dataplane, Kind, MeshTCPRoute, MeshTimeout, Resource,
    policy::{Destination, Known, PolicySet, Proxy, Services, conditions},
};

fn main() {
    let mut numbers = env::args()
        .skip(1)
        .filter_map(|word| word.parse::<usize>().ok());
    let services = numbers.next().unwrap_or(1_000);
    let policies = numbers.next().unwrap_or(500);
    let proxies = numbers.next().unwrap_or(1_000);

    let resources = mesh(services, policies);
    let destinations: Vec<Destination> = Services::of(&resources)
        .iter()
        .flat_map(|service| {
            service
                .ports
                .iter()
                .map(|port| Destination::new(service).at(port))
        })
        .collect();
    let dataplanes: Vec<Resource> = (0..proxies).map(dataplane).collect();

    println!(
        "{services} services ({} ports), {policies} policies",
        destinations.len()
    );
    let (set, time) = timed(|| PolicySet::new("m", &resources));
    say("index the policies", time);
    let (_, time) = timed(|| everything(&set, &dataplanes[0], &destinations));
    say("the first proxy", time);
    let (_, time) = timed(|| everything(&set, &dataplanes[0], &destinations));
    say("the same again", time);
    let (fields, time) = timed(|| {
        let each = dataplanes.iter();
        each.map(|dataplane| everything(&set, dataplane, &destinations))
            .sum::<usize>()
    });
    say(&format!("{proxies} proxies ({fields} fields)"), time);
    let references: Vec<&Resource> = resources.iter().collect();
    let known_services = Services::of(&resources);
    let known_dataplanes: Vec<&Resource> = dataplanes.iter().collect();
    let known = Known {
        services: Some(&known_services),
        dataplanes: Some(&known_dataplanes),
    };
    let (found, time) = timed(|| conditions(&references, known));
    say(&format!("{} conditions", found.len()), time);
}

/// Looks everything up, and counts the fields that are set.
fn everything(set: &PolicySet, resource: &Resource, destinations: &[Destination]) -> usize {
    let selection = set.select(Proxy::of(resource));
    let mut fields = 0;
    for kind in [&MeshTimeout::DESCRIPTOR, &MeshTCPRoute::DESCRIPTOR] {
        for destination in destinations {
            fields += selection.outgoing(kind, destination).fields().count();
        }
    }
    let dataplane = resource.get::<Dataplane>();
    for inbound in dataplane.iter().flat_map(|d| &d.networking.inbound) {
        fields += selection
            .incoming(&MeshTimeout::DESCRIPTOR, inbound)
            .rules
            .len();
        fields += selection.permissions(inbound).allow.len();
    }
    fields
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}

fn say(what: &str, time: Duration) {
    println!("{:>10.3} ms  {what}", time.as_secs_f64() * 1e3);
}

fn mesh(services: usize, policies: usize) -> Vec<Resource> {
    let mut texts = Vec::new();
    for index in 0..services {
        texts.push(format!(
            "{{type: MeshService, mesh: m, name: s{index}, labels: {{tier: t{}}}, spec: {{ports: [{{name: http, port: 80}}, {{port: 81}}]}}}}",
            index % 10
        ));
    }
    for index in 0..policies {
        let top = match index % 2 {
            0 => "{kind: Mesh}".to_owned(),
            _ => format!("{{kind: Dataplane, labels: {{team: t{}}}}}", index % 20),
        };
        let service = index * 7 % services.max(1);
        let target = match index % 3 {
            0 => "{kind: Mesh}".to_owned(),
            1 => format!("{{kind: MeshService, name: s{service}}}"),
            _ => format!(
                "{{kind: MeshService, labels: {{isthmus.io/display-name: s{service}}}, sectionName: http}}"
            ),
        };
        texts.push(match index % 5 {
            0 => format!(
                "{{type: MeshTCPRoute, mesh: m, name: p{index}, spec: {{targetRef: {top}, to: [{{targetRef: {{kind: MeshService, name: s{service}}}, rules: [{{default: {{backendRefs: [{{kind: MeshService, name: s0, port: 80}}]}}}}]}}]}}}}"
            ),
            1 => format!(
                "{{type: MeshTrafficPermission, mesh: m, name: p{index}, spec: {{targetRef: {top}, rules: [{{default: {{allow: [{{spiffeID: {{type: Prefix, value: 'spiffe://d/{index}/'}}}}]}}}}]}}}}"
            ),
            _ => format!(
                "{{type: MeshTimeout, mesh: m, name: p{index}, spec: {{targetRef: {top}, to: [{{targetRef: {target}, default: {{connectionTimeout: {index}ms, http: {{requestTimeout: 1s}}}}}}], rules: [{{matches: [{{spiffeID: {{type: Exact, value: 'spiffe://d/w/{index}'}}}}], default: {{idleTimeout: 1h}}}}]}}}}"
            )
            .replace(" 0ms", " 1ms"),
        });
    }
    read(&texts.join("\n---\n"))
}

fn dataplane(index: usize) -> Resource {
    read(&format!(
        "{{type: Dataplane, mesh: m, name: d{index}, labels: {{team: t{}, app: a}}, networking: {{address: 10.0.0.1, inbound: [{{name: http, port: 80, servicePort: 8080}}]}}}}",
        index % 20
    ))
    .remove(0)
}

fn read(text: &str) -> Vec<Resource> {
    match mesh_model::parse(text, "bench") {
        Ok(resources) => resources,
        Err(violations) => panic!("{violations}"),
    }
}
