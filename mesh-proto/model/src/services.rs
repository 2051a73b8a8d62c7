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
