//! `MeshService`s: those generated from dataplanes' service labels, and which inbounds belong to a service.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::names::{ZoneName, is_label};

use crate::{
    identity,
    kinds::{
        Dataplane, MeshService,
        dataplane::{Inbound, InboundState},
        mesh_service::{
            DataplaneLabels, ServiceIdentity, ServiceIdentityForm, ServicePort, ServiceSelector,
            TargetPort,
        },
    },
    labels,
    resource::{Meta, Resource},
};

/// Value of the label [`labels::MANAGED_BY`] of generated services.
pub const GENERATOR: &str = "service-generator";

/// An inbound that serves a port of a service.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Member<'a> {
    /// The service's port.
    pub port: &'a ServicePort,
    /// The dataplane's inbound.
    pub inbound: &'a Inbound,
}

/// The services of `mesh` in `zone`: those that administrators or the zone declared (`declared` may hold anything; only
/// `MeshService`s of this mesh count) with what was written, and one generated for each value of the label
/// `isthmus.io/service` that no declared service has as its name.
#[must_use]
pub fn in_zone(
    mesh: &str,
    zone: &str,
    declared: &[&Resource],
    dataplanes: &[&Resource],
) -> Vec<Resource> {
    let mut services: BTreeMap<String, Resource> = generate(mesh, zone, dataplanes)
        .into_iter()
        .map(|service| (service.meta.name.clone(), service))
        .collect();
    let mut declared: Vec<&Resource> = declared
        .iter()
        .copied()
        .filter(|r| r.meta.mesh == mesh && r.get::<MeshService>().is_some())
        .filter(|r| r.meta.zone.is_empty() || r.meta.zone == zone)
        .collect();
    // The zone's own declaration replaces the administrators' of the same name.
    declared.sort_by_key(|r| (&r.meta.name, &r.meta.zone));
    for service in declared {
        services.insert(service.meta.name.clone(), service.clone());
    }
    services.into_values().collect()
}

/// One service for each value of the label `isthmus.io/service` of the dataplanes of `mesh`, owned by `zone`.
///
/// Its ports are the dataplanes' inbounds. Where they disagree about a port's name or protocol, the alphabetically first
/// dataplane is followed.
#[must_use]
pub fn generate(mesh: &str, zone: &str, dataplanes: &[&Resource]) -> Vec<Resource> {
    let mut labelled: Vec<(&str, &Resource, &Dataplane)> = dataplanes
        .iter()
        .filter(|resource| resource.meta.mesh == mesh)
        .filter_map(|resource| {
            let service = resource.meta.labels.get(labels::SERVICE)?;
            Some((service.as_str(), *resource, resource.get::<Dataplane>()?))
        })
        .filter(|(service, _, _)| is_label(service))
        .collect();
    labelled.sort_by_key(|(service, resource, _)| (*service, &resource.meta.name));

    let mut services: BTreeMap<&str, BTreeMap<u16, ServicePort>> = BTreeMap::new();
    for (service, _, dataplane) in labelled {
        let ports = services.entry(service).or_default();
        let inbounds = dataplane.networking.inbound.iter();
        for inbound in inbounds.filter(|inbound| inbound.stated() != InboundState::Ignored) {
            ports.entry(inbound.port).or_insert_with(|| ServicePort {
                name: inbound.name.clone(),
                port: inbound.port,
                target_port: Some(TargetPort::Number(inbound.port)),
                app_protocol: inbound.protocol,
            });
        }
    }
    services
        .into_iter()
        .map(|(name, ports)| {
            let meta = Meta::new(mesh, name)
                .in_zone(zone)
                .with_label(labels::MANAGED_BY, GENERATOR);
            Resource::new(meta, generated(name, ports.into_values().collect()))
        })
        .collect()
}

fn generated(name: &str, ports: Vec<ServicePort>) -> MeshService {
    let label = (labels::SERVICE.to_owned(), name.to_owned());
    MeshService {
        selector: Some(ServiceSelector {
            dataplane_labels: Some(DataplaneLabels {
                match_labels: [label].into(),
            }),
            dataplane_ref: None,
        }),
        ports,
        identities: Vec::new(),
        state: None,
    }
}

/// True where `dataplane` belongs to `service`: same mesh, and the selector matches.
#[must_use]
pub fn selects(service: &Resource, dataplane: &Resource) -> bool {
    let selector = service
        .get::<MeshService>()
        .filter(|_| {
            service.meta.mesh == dataplane.meta.mesh && dataplane.get::<Dataplane>().is_some()
        })
        .and_then(|service| service.selector.as_ref());
    let Some(selector) = selector else {
        return false;
    };
    match (&selector.dataplane_ref, &selector.dataplane_labels) {
        (Some(by_name), _) => by_name.name == dataplane.meta.name,
        (None, Some(by_labels)) => labels::matches(&by_labels.match_labels, &dataplane.meta.labels),
        (None, None) => false,
    }
}

/// The inbounds of `dataplane` that serve a port of `service`, in the order of the service's ports. Ignored inbounds serve
/// none.
#[must_use]
pub fn members<'a>(service: &'a Resource, dataplane: &'a Resource) -> Vec<Member<'a>> {
    let (Some(content), Some(proxy)) = (service.get::<MeshService>(), dataplane.get::<Dataplane>())
    else {
        return Vec::new();
    };
    if !selects(service, dataplane) {
        return Vec::new();
    }
    let serves = |port: &ServicePort, inbound: &Inbound| {
        inbound.stated() != InboundState::Ignored
            && match port.target() {
                TargetPort::Number(number) => inbound.port == number,
                TargetPort::Name(name) => inbound.name.as_deref() == Some(&name),
            }
    };
    let mut members = Vec::new();
    for port in &content.ports {
        let inbounds = proxy.networking.inbound.iter();
        members.extend(
            inbounds
                .filter(|inbound| serves(port, inbound))
                .map(|inbound| Member { port, inbound }),
        );
    }
    members
}

/// Identities of the dataplanes behind `service` in `zone`, sorted, each once. Dataplanes without an identity add none.
#[must_use]
pub fn identities(
    service: &Resource,
    dataplanes: &[&Resource],
    mesh_identities: &[&Resource],
    zone: &ZoneName,
) -> Vec<ServiceIdentity> {
    let ids: BTreeSet<String> = dataplanes
        .iter()
        .filter(|dataplane| selects(service, dataplane))
        .filter_map(|dataplane| identity::spiffe_id(mesh_identities, dataplane, zone).ok())
        .map(|id| id.to_string())
        .collect();
    ids.into_iter()
        .map(|value| ServiceIdentity {
            form: ServiceIdentityForm::SpiffeId,
            value,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resources(text: &str) -> Vec<Resource> {
        crate::parse(text, "test").unwrap_or_else(|error| panic!("{error}"))
    }

    const DATAPLANES: &str = "
type: Dataplane
mesh: payments
name: web-2
labels: {isthmus.io/service: web}
networking:
  address: 10.0.0.2
  inbound:
    - {name: other-name, port: 80, servicePort: 1, protocol: tcp}
    - {port: 82, servicePort: 3}
---
type: Dataplane
mesh: payments
name: web-1
labels: {isthmus.io/service: web}
networking:
  address: 10.0.0.1
  inbound:
    - {name: main, port: 80, servicePort: 1, protocol: http}
    - {port: 81, servicePort: 2, state: Ignored}
---
type: Dataplane
mesh: payments
name: unlabelled
networking: {address: 10.0.0.3, inbound: [{port: 80, servicePort: 1}]}
---
type: Dataplane
mesh: analytics
name: foreign
labels: {isthmus.io/service: web}
networking: {address: 10.0.0.4, inbound: [{port: 90, servicePort: 1}]}
";

    fn refs(resources: &[Resource]) -> Vec<&Resource> {
        resources.iter().collect()
    }

    /// `name: port/name/protocol, …` of each service, without the protocol where it is not declared.
    fn shown(services: &[Resource]) -> Vec<String> {
        let line = |service: &Resource| {
            let ports = &service.get::<MeshService>().unwrap().ports;
            let ports: Vec<String> = ports
                .iter()
                .map(|p| match p.app_protocol {
                    Some(protocol) => format!("{}/{}/{protocol:?}", p.port, p.name_or_port()),
                    None => format!("{}/{}", p.port, p.name_or_port()),
                })
                .collect();
            format!("{}: {}", service.meta.name, ports.join(", "))
        };
        services.iter().map(line).collect()
    }

    #[test]
    fn one_service_is_generated_for_each_label_with_the_ports_of_all_its_dataplanes() {
        let services = generate("payments", "east", &refs(&resources(DATAPLANES)));
        assert_eq!(shown(&services), ["web: 80/main/Http, 82/82"]);
        assert_eq!(services[0].meta.zone, "east");
        assert_eq!(
            Resource::from_json(&services[0].to_json()),
            Ok(services[0].clone())
        );
    }

    #[test]
    fn a_declared_service_takes_the_place_of_a_generated_one() {
        let declared = resources(
            "
{type: MeshService, mesh: payments, name: web, spec: {ports: [{port: 1}]}}
---
{type: MeshService, mesh: payments, name: api, spec: {ports: [{port: 2}]}}
---
{type: MeshService, mesh: analytics, name: foreign, spec: {ports: [{port: 3}]}}
",
        );
        let dataplanes = resources(DATAPLANES);
        let services = in_zone("payments", "east", &refs(&declared), &refs(&dataplanes));
        assert_eq!(shown(&services), ["api: 2/2", "web: 1/1"]);
    }

    #[test]
    fn members_are_the_inbounds_that_a_port_means() {
        let dataplanes = resources(DATAPLANES);
        let service = |spec: &str| {
            let text = format!("{{type: MeshService, mesh: payments, name: s, spec: {spec}}}");
            resources(&text).remove(0)
        };
        // spec, then `dataplane:port of the service→port of the inbound`
        for (spec, expected) in [
            (
                "{selector: {dataplaneLabels: {matchLabels: {kuma.io/service: web}}}, ports: [{port: 8, targetPort: 80}, {port: 82}]}",
                vec!["web-2:8→80", "web-2:82→82", "web-1:8→80"],
            ),
            (
                "{selector: {dataplaneLabels: {matchLabels: {kuma.io/service: web}}}, ports: [{port: 8, targetPort: main}]}",
                vec!["web-1:8→80"],
            ),
            // An ignored inbound is no member.
            (
                "{selector: {dataplaneRef: {name: web-1}}, ports: [{port: 80}, {port: 81}]}",
                vec!["web-1:80→80"],
            ),
            // Every dataplane of the mesh, and none of another.
            (
                "{selector: {dataplaneLabels: {}}, ports: [{port: 80}, {port: 90}]}",
                vec!["web-2:80→80", "web-1:80→80", "unlabelled:80→80"],
            ),
            (
                "{selector: {dataplaneRef: {name: foreign}}, ports: [{port: 90}]}",
                vec![],
            ),
            ("{ports: [{port: 80}]}", vec![]),
            ("{selector: {}, ports: [{port: 80}]}", vec![]),
        ] {
            let service = service(spec);
            let mut found = Vec::new();
            for dataplane in &dataplanes {
                for Member { port, inbound } in members(&service, dataplane) {
                    found.push(format!(
                        "{}:{}→{}",
                        dataplane.meta.name, port.port, inbound.port
                    ));
                }
            }
            assert_eq!(found, expected, "{spec}");
        }
    }

    #[test]
    fn a_services_identities_are_those_of_its_dataplanes() {
        let dataplanes = resources(DATAPLANES);
        let services = generate("payments", "east", &refs(&dataplanes));
        let identity = resources(
            "{type: MeshIdentity, mesh: payments, name: i, spec: {selector: {dataplane: {}}, provider: {type: Bundled}}}",
        );
        let zone = "east".parse().unwrap();
        let ids = |identity: &[&Resource]| -> Vec<String> {
            identities(&services[0], &refs(&dataplanes), identity, &zone)
                .into_iter()
                .map(|id| id.value)
                .collect()
        };
        assert_eq!(
            ids(&refs(&identity)),
            ["spiffe://payments.east.mesh.local/workload/web"]
        );
        assert_eq!(ids(&[]), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn the_order_dataplanes_come_in_does_not_matter(dataplanes in Just(resources(DATAPLANES)).prop_shuffle()) {
            let services = generate("payments", "east", &refs(&dataplanes));
            prop_assert_eq!(services, generate("payments", "east", &refs(&resources(DATAPLANES))));
        }
    }
}
