//! How a proxy reaches the services it calls.
//!
//! A service's document differs between callers by what the policies that select them say of it. It is made once for each
//! such difference, and all callers for whom the same holds share it ([`ServiceDocuments`]), so that time and memory follow
//! what differs.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use mesh_model::{
    Resource,
    policy::{Destination, Port, Proxy, Selection},
};
use mesh_proto::{
    features,
    names::ZoneName,
    proxy::{Document, Protocol, Service, ServiceZone, document::Body},
    sni,
};
use prost::Message as _;

use super::{
    ServiceRef,
    http_route::{self, Called, Routes},
    load_balancing, seal, takes_requests,
    tcp_route::{self, Route},
    timeouts, undeclared,
};
use crate::{endpoints::ServicePort, view::MeshView};

/// Documents of services, each made once for all callers that it is the same for.
#[derive(Debug, Default)]
pub struct ServiceDocuments {
    /// By service, then by what policies say of it, encoded.
    of: BTreeMap<ServiceRef, BTreeMap<Vec<u8>, Arc<Document>>>,
}

/// What a dataplane needs to call services: by service, its document.
pub type Needed = BTreeMap<ServiceRef, Arc<Document>>;

impl ServiceDocuments {
    /// Documents of the services that a dataplane with these features calls, and of the backends that routes send their
    /// connections to.
    pub fn needed(
        &mut self,
        view: &MeshView,
        dataplane: &Resource,
        called: &BTreeSet<ServiceRef>,
        capabilities: &[String],
    ) -> Needed {
        let undeclared = undeclared(capabilities);
        let policies = view.policies.set.select(Proxy::of(dataplane));
        let mut needed = Needed::new();
        let mut backends = BTreeSet::new();
        for reference in called {
            let destination = destination(view, reference);
            let mut said = said(view, &policies, reference, &destination, undeclared);
            route(
                view,
                &policies,
                reference,
                &destination,
                &mut said,
                undeclared,
                &mut backends,
            );
            needed.insert(reference.clone(), self.get(view, reference, said));
        }
        for reference in backends {
            // One that is called as well has its document already.
            if let Entry::Vacant(free) = needed.entry(reference) {
                let destination = destination(view, free.key());
                let said = said(view, &policies, free.key(), &destination, undeclared);
                let document = self.get(view, free.key(), said);
                free.insert(document);
            }
        }
        needed
    }

    fn get(&mut self, view: &MeshView, reference: &ServiceRef, said: Service) -> Arc<Document> {
        let variants = match self.of.get_mut(reference) {
            Some(variants) => variants,
            None => self.of.entry(reference.clone()).or_default(),
        };
        let known = variants.entry(said.encode_to_vec());
        let new = || Arc::new(document(view, reference, said));
        known.or_insert_with(new).clone()
    }

    /// These services are others: what was made of them is made anew when it is needed.
    pub fn forget(&mut self, services: &BTreeSet<String>) {
        self.of
            .retain(|reference, _| !services.contains(&reference.of.service));
    }

    /// Drops what nobody has any more.
    pub fn tidy(&mut self) {
        self.of.retain(|_, variants| {
            variants.retain(|_, document| Arc::strong_count(document) > 1);
            !variants.is_empty()
        });
    }
}

/// The service as policies refer to it.
fn destination(view: &MeshView, reference: &ServiceRef) -> Destination {
    let ServicePort { service, port } = &reference.of;
    let target = view.services.target(service);
    let known = target.ports.iter().find(|p| p.number == *port).cloned();
    let destination = Destination::new(&target).at(&known.unwrap_or_else(|| Port::new(*port)));
    match &reference.zone {
        None => destination,
        Some(zone) => destination.in_zone(zone),
    }
}

/// What policies say of a service, and what is spoken there; routes apart.
fn said(
    view: &MeshView,
    policies: &Selection<'_>,
    reference: &ServiceRef,
    destination: &Destination,
    undeclared: Protocol,
) -> Service {
    let protocol = protocol(view, reference, undeclared);
    let http = takes_requests(protocol);
    Service {
        protocol: protocol.into(),
        timeouts: Some(timeouts::outgoing(policies, destination, http)),
        load_balancing: load_balancing::compile(policies, destination, http),
        ..Service::default()
    }
}

/// Adds the routes to what is said of a called service, and what they go to to `backends`. Where requests have routes of their
/// own, those of connections do not count; so it is in Kuma. They do where a connection may turn out to be no HTTP.
fn route(
    view: &MeshView,
    policies: &Selection<'_>,
    reference: &ServiceRef,
    destination: &Destination,
    said: &mut Service,
    undeclared: Protocol,
    backends: &mut BTreeSet<ServiceRef>,
) {
    if takes_requests(said.protocol()) {
        let timeouts = said.timeouts.as_ref();
        let routes = http_route::compile(Called {
            view,
            policies,
            reference,
            destination,
            timeouts: timeouts.and_then(|timeouts| timeouts.http.as_ref()),
            undeclared,
        });
        if let Some(Routes { http, to }) = routes {
            backends.extend(to);
            said.http_routes = Some(http);
            if said.protocol() != Protocol::Detect {
                return;
            }
        }
    }
    if let Some(Route { tcp, to }) = tcp_route::compile(view, policies, destination) {
        backends.extend(to);
        said.tcp_route = Some(tcp);
    }
}

/// What is spoken at a port of a service, or `undeclared`. Where zones disagree, this one's word counts.
fn protocol(view: &MeshView, reference: &ServiceRef, undeclared: Protocol) -> Protocol {
    let ServicePort { service, port } = &reference.of;
    let zones = view
        .services
        .destinations
        .get(service)
        .into_iter()
        .flatten();
    let wanted = |zone: &String| reference.zone.as_ref().is_none_or(|only| only == zone);
    let spoken = zones
        .filter(|(zone, _)| wanted(zone))
        .filter_map(|(zone, there)| {
            let found = there.ports.iter().find(|p| p.port == *port)?;
            Some((zone != view.zone.as_str(), found.app_protocol))
        });
    let strongest = spoken.min_by_key(|(is_other, _)| *is_other);
    match strongest {
        Some((_, declared)) => declared.map_or(undeclared, Into::into),
        // There is nobody to speak.
        None => Protocol::Tcp,
    }
}

/// How to reach a port of a service. One that does not exist gives a document without zones: connections to it fail and
/// say why, and nothing is ever reached in its place (FIELD d11). `said` is what policies say of it.
fn document(view: &MeshView, reference: &ServiceRef, said: Service) -> Document {
    let ServicePort { service, port } = &reference.of;
    let mut zones = Vec::new();
    let destination = view.services.destinations.get(service);
    for (zone, there) in destination.into_iter().flatten() {
        let wanted = reference.zone.as_ref().is_none_or(|only| only == zone);
        let found = there.ports.iter().find(|p| p.port == *port);
        let (true, Some(found), Ok(name)) = (wanted, found, zone.parse::<ZoneName>()) else {
            continue;
        };
        zones.push(ServiceZone {
            zone: zone.clone(),
            server_name: sni::mesh_service(&view.mesh, &name, service, &found.name_or_port()),
            identities: there.identities.iter().cloned().collect(),
        });
    }
    let mut required = BTreeSet::from([features::SERVICE_TCP]);
    if said.protocol() == Protocol::Detect {
        required.insert(features::PROTOCOL_DETECT);
    }
    if said.tcp_route.is_some() {
        required.insert(features::ROUTE_TCP);
    }
    if said.http_routes.is_some() {
        required.extend([features::HTTP, features::ROUTE_HTTP]);
    }
    // What is built in, a proxy that knows nothing of it does without. What somebody has said must be obeyed.
    let http = said
        .timeouts
        .as_ref()
        .and_then(|timeouts| timeouts.http.as_ref());
    if http.is_some_and(timeouts::is_said) {
        required.insert(features::HTTP);
    }
    let balancing = said.load_balancing.as_ref();
    if balancing.is_some_and(|balancing| !balancing.origin.is_empty()) {
        required.insert(features::LOAD_BALANCING);
    }
    let body = Body::Service(Service {
        mesh: view.mesh.to_string(),
        name: service.clone(),
        port: (*port).into(),
        zones,
        ..said
    });
    seal(reference.document_name(), required, body)
}
