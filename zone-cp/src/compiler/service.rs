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
    proxy::{Document, Protocol, Service, ServiceZone, TcpRoute, document::Body},
    sni,
};
use prost::Message as _;

use super::{
    ServiceRef,
    route::{self, Route},
    seal, timeouts,
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
    /// Documents of the services that a dataplane calls, and of the backends that routes send their connections to.
    pub fn needed(
        &mut self,
        view: &MeshView,
        dataplane: &Resource,
        called: &BTreeSet<ServiceRef>,
    ) -> Needed {
        let policies = view.policies.set.select(Proxy::of(dataplane));
        let mut needed = Needed::new();
        let mut backends = BTreeSet::new();
        for reference in called {
            let destination = destination(view, reference);
            let route = route::compile(view, &policies, &destination);
            let tcp_route = route.map(|Route { tcp, to }| {
                backends.extend(to);
                tcp
            });
            let document = self.get(view, &policies, reference, &destination, tcp_route);
            needed.insert(reference.clone(), document);
        }
        for reference in backends {
            // One that is called as well has its document already.
            if let Entry::Vacant(free) = needed.entry(reference) {
                let destination = destination(view, free.key());
                let document = self.get(view, &policies, free.key(), &destination, None);
                free.insert(document);
            }
        }
        needed
    }

    fn get(
        &mut self,
        view: &MeshView,
        policies: &Selection<'_>,
        reference: &ServiceRef,
        destination: &Destination,
        tcp_route: Option<TcpRoute>,
    ) -> Arc<Document> {
        let said = Service {
            timeouts: Some(timeouts::outgoing(policies, destination)),
            tcp_route,
            ..Service::default()
        };
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

/// How to reach a port of a service. One that does not exist gives a document without zones: connections to it fail and
/// say why, and nothing is ever reached in its place (FIELD d11). `said` is what policies say of it.
fn document(view: &MeshView, reference: &ServiceRef, said: Service) -> Document {
    let ServicePort { service, port } = &reference.of;
    let mut zones = Vec::new();
    let mut protocol = None;
    let destination = view.services.destinations.get(service);
    for (zone, there) in destination.into_iter().flatten() {
        let wanted = reference.zone.as_ref().is_none_or(|only| only == zone);
        let found = there.ports.iter().find(|p| p.port == *port);
        let (true, Some(found), Ok(name)) = (wanted, found, zone.parse::<ZoneName>()) else {
            continue;
        };
        // Where zones disagree, this one's word counts.
        if protocol.is_none() || *zone == *view.zone.as_str() {
            protocol = Some(Protocol::from(found.app_protocol));
        }
        zones.push(ServiceZone {
            zone: zone.clone(),
            server_name: sni::mesh_service(&view.mesh, &name, service, &found.name_or_port()),
            identities: there.identities.iter().cloned().collect(),
        });
    }
    let mut required = BTreeSet::from([features::SERVICE_TCP]);
    if said.tcp_route.is_some() {
        required.insert(features::ROUTE_TCP);
    }
    let body = Body::Service(Service {
        mesh: view.mesh.to_string(),
        name: service.clone(),
        port: (*port).into(),
        protocol: protocol.unwrap_or(Protocol::Tcp).into(),
        zones,
        ..said
    });
    seal(reference.document_name(), required, body)
}
