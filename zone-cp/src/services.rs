//! The services of one mesh: those of this zone with who is behind them, and what can be called anywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_model::{
    Dataplane, MeshService, Meta, Resource,
    dataplane::Protocol,
    labels::{self, Labels},
    mesh_service::{ServiceIdentity, ServiceIdentityForm, ServicePort, ServiceState},
    policy::{self, ToKind},
    services as model,
};
use mesh_proto::names::{MeshName, ZoneName};

use crate::endpoints::{Address, Member, Members};

/// The services of one mesh.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Services {
    /// Those with workloads in this zone, by name.
    pub own: BTreeMap<String, OwnService>,
    /// What can be called, by service name: one entry for each zone it runs in.
    pub destinations: BTreeMap<String, Destination>,
    /// Own services that each dataplane is behind, by its name.
    pub behind: BTreeMap<String, BTreeSet<String>>,
    /// What can be called, as policies refer to it.
    pub targets: policy::Services,
}

impl Services {
    /// A service as policies refer to it. One that does not exist has its name alone.
    #[must_use]
    pub fn target(&self, name: &str) -> policy::Service {
        let known = self.targets.get(ToKind::MeshService, name).cloned();
        known.unwrap_or_else(|| policy::Service::named(ToKind::MeshService, name))
    }
}

/// A service by zone.
pub type Destination = BTreeMap<String, InZone>;

/// A service in this zone.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnService {
    /// What can be called.
    pub ports: Vec<ServicePort>,
    /// Its selector, as declared or generated.
    pub resource: Arc<Resource>,
    /// Workloads behind each port.
    pub members: BTreeMap<u16, Members>,
    /// SPIFFE IDs of those workloads.
    pub identities: BTreeSet<String>,
}

/// A service in one zone, as a caller needs to know it.
#[derive(Debug, Clone, PartialEq)]
pub struct InZone {
    /// Labels of its resource.
    pub labels: Labels,
    /// What can be called.
    pub ports: Vec<ServicePort>,
    /// SPIFFE IDs of the workloads behind it.
    pub identities: BTreeSet<String>,
    /// For other zones: their zone says that there are endpoints. Always true for this one, which looks itself.
    pub available: bool,
}

/// What the services of a mesh are made from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The mesh.
    pub mesh: &'a MeshName,
    /// This zone.
    pub zone: &'a ZoneName,
    /// Synchronised resources; only `MeshService`s count.
    pub resources: &'a [Arc<Resource>],
    /// Dataplanes of this zone, by name.
    pub dataplanes: &'a BTreeMap<String, Arc<Resource>>,
    /// SPIFFE IDs of those dataplanes, by name. One without has none.
    pub spiffe_ids: &'a BTreeMap<String, String>,
    /// Zones that administrators have closed.
    pub closed_zones: &'a BTreeSet<String>,
}

/// The services that `sources` give.
#[must_use]
pub fn services(sources: Sources<'_>) -> Services {
    let own = own_services(sources);
    let mut destinations: BTreeMap<String, Destination> = BTreeMap::new();
    for (name, service) in &own {
        let here = InZone {
            labels: service.resource.meta.labels.clone(),
            ports: service.ports.clone(),
            identities: service.identities.clone(),
            available: true,
        };
        destinations
            .entry(name.clone())
            .or_default()
            .insert(sources.zone.to_string(), here);
    }
    for resource in sources.resources {
        let zone = &resource.meta.zone;
        let elsewhere = !zone.is_empty()
            && zone != sources.zone.as_str()
            && !sources.closed_zones.contains(zone)
            && resource.meta.mesh == sources.mesh.as_str();
        let Some(service) = resource.get::<MeshService>().filter(|_| elsewhere) else {
            continue;
        };
        let there = InZone {
            labels: resource.meta.labels.clone(),
            ports: service.ports.clone(),
            identities: service
                .identities
                .iter()
                .map(|id| id.value.clone())
                .collect(),
            available: service.state == Some(ServiceState::Available),
        };
        destinations
            .entry(resource.meta.name.clone())
            .or_default()
            .insert(zone.clone(), there);
    }
    let mut behind: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, service) in &own {
        for member in service.members.values().flatten() {
            behind
                .entry(member.dataplane.clone())
                .or_default()
                .insert(name.clone());
        }
    }
    // Declared ones that nobody serves are referred to all the same.
    let mut targets: BTreeMap<&String, policy::Service> = sources
        .resources
        .iter()
        .filter(|r| r.meta.mesh == sources.mesh.as_str() && r.meta.zone.is_empty())
        .filter_map(|r| {
            let ports = [(&r.meta, &*r.get::<MeshService>()?.ports)];
            let declared = target(&r.meta.name, sources.zone, ports);
            Some((&r.meta.name, declared))
        })
        .collect();
    for (name, zones) in &destinations {
        let metas = zones.iter().map(|(zone, there)| {
            let mut meta = Meta::new("", name).in_zone(zone);
            meta.labels = there.labels.clone();
            (meta, &*there.ports)
        });
        let metas: Vec<_> = metas.collect();
        let of = metas.iter().map(|(meta, ports)| (meta, *ports));
        targets.insert(name, target(name, sources.zone, of));
    }
    Services {
        targets: policy::Services::new(targets.into_values()),
        own,
        destinations,
        behind,
    }
}

/// One service, whichever zones it runs in, as policies refer to it. Where zones disagree about what is spoken at a port, this
/// one's word counts.
fn target<'a>(
    name: &str,
    own_zone: &ZoneName,
    of: impl IntoIterator<Item = (&'a Meta, &'a [ServicePort])>,
) -> policy::Service {
    let mut target = policy::Service {
        kind: ToKind::MeshService,
        name: name.to_owned(),
        resources: Vec::new(),
        ports: Vec::new(),
    };
    let mut known: BTreeMap<u16, (BTreeSet<&Option<String>>, Option<Protocol>)> = BTreeMap::new();
    for (meta, ports) in of {
        target = target.with_resource(meta);
        for port in ports {
            let (names, protocol) = known
                .entry(port.port)
                .or_insert_with(|| (BTreeSet::new(), port.app_protocol));
            names.insert(&port.name);
            if meta.zone == own_zone.as_str() {
                *protocol = port.app_protocol;
            }
        }
    }
    let ports = known.into_iter().flat_map(|(number, (names, protocol))| {
        names.into_iter().map(move |name| policy::Port {
            number,
            name: name.clone(),
            protocol,
        })
    });
    target.ports = ports.collect();
    target
}

/// The services with workloads in this zone. A declared one without any is not this zone's to report.
fn own_services(sources: Sources<'_>) -> BTreeMap<String, OwnService> {
    // What global gives back of this zone's own reports is old news.
    let declared: Vec<&Resource> = sources
        .resources
        .iter()
        .filter(|r| r.meta.zone.is_empty())
        .map(Arc::as_ref)
        .collect();
    let dataplanes: Vec<&Resource> = sources.dataplanes.values().map(Arc::as_ref).collect();
    let by_service_label = by_service_label(&dataplanes);
    let mut own = BTreeMap::new();
    for resource in model::in_zone(
        sources.mesh.as_str(),
        sources.zone.as_str(),
        &declared,
        &dataplanes,
    ) {
        let candidates = candidates(&resource, &by_service_label, &dataplanes);
        if let Some(service) = own_service(resource, candidates, sources.spiffe_ids) {
            own.insert(service.resource.meta.name.clone(), service);
        }
    }
    own
}

fn by_service_label<'a>(dataplanes: &[&'a Resource]) -> BTreeMap<&'a str, Vec<&'a Resource>> {
    let mut buckets: BTreeMap<&str, Vec<&Resource>> = BTreeMap::new();
    for dataplane in dataplanes {
        if let Some(service) = dataplane.meta.labels.get(labels::SERVICE) {
            buckets.entry(service).or_default().push(dataplane);
        }
    }
    buckets
}

/// The dataplanes that a service may select: where it asks for a service label, only those that have it, so that a
/// thousand generated services do not each look at every dataplane.
fn candidates<'a>(
    service: &Resource,
    by_service_label: &'a BTreeMap<&str, Vec<&'a Resource>>,
    all: &'a [&'a Resource],
) -> &'a [&'a Resource] {
    let selector = service
        .get::<MeshService>()
        .and_then(|s| s.selector.as_ref());
    let wanted = selector
        .filter(|s| s.dataplane_ref.is_none())
        .and_then(|s| {
            s.dataplane_labels
                .as_ref()?
                .match_labels
                .get(labels::SERVICE)
        });
    match wanted {
        None => all,
        Some(label) => by_service_label
            .get(label.as_str())
            .map_or(&[], Vec::as_slice),
    }
}

fn own_service(
    resource: Resource,
    candidates: &[&Resource],
    spiffe_ids: &BTreeMap<String, String>,
) -> Option<OwnService> {
    let ports = resource.get::<MeshService>()?.ports.clone();
    let mut members: BTreeMap<u16, Members> = ports
        .iter()
        .map(|port| (port.port, Members::new()))
        .collect();
    let mut identities = BTreeSet::new();
    let mut found = false;
    for dataplane in candidates {
        let Some(proxy) = dataplane.get::<Dataplane>() else {
            continue;
        };
        for member in model::members(&resource, dataplane) {
            found = true;
            let host = match member.inbound.address {
                Some(address) => address.to_string(),
                None => proxy.networking.reachable_address(),
            };
            members.entry(member.port.port).or_default().insert(Member {
                dataplane: dataplane.meta.name.clone(),
                inbound: member.inbound.name_or_port(),
                address: Address {
                    host,
                    port: member.inbound.port,
                },
            });
            identities.extend(spiffe_ids.get(&dataplane.meta.name).cloned());
        }
    }
    found.then(|| OwnService {
        ports,
        resource: Arc::new(resource),
        members,
        identities,
    })
}

impl OwnService {
    /// The service as this zone reports it.
    #[must_use]
    pub fn report(&self, zone: &ZoneName, available: bool) -> Resource {
        let mut meta = self.resource.meta.clone();
        meta.zone = zone.to_string();
        let identities = self.identities.iter().map(|id| ServiceIdentity {
            form: ServiceIdentityForm::SpiffeId,
            value: id.clone(),
        });
        let selector = self
            .resource
            .get::<MeshService>()
            .and_then(|s| s.selector.clone());
        Resource::new(
            meta,
            MeshService {
                selector,
                ports: self.ports.clone(),
                identities: identities.collect(),
                state: Some(if available {
                    ServiceState::Available
                } else {
                    ServiceState::Unavailable
                }),
            },
        )
    }

    /// The same apart from who is behind it: what the proxies of its workloads are compiled from.
    #[must_use]
    pub fn same_shape(&self, other: &Self) -> bool {
        self.ports == other.ports && self.resource == other.resource
    }
}
