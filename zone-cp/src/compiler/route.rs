//! `MeshTCPRoute`s: where connections to a service really go.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::{
    Kind as _, MeshTCPRoute, labels,
    mesh_tcp_route::TcpBackends,
    policy::{BackendKind, BackendRef, Destination, Selection},
};
use mesh_proto::proxy::{RouteBackend, TcpRoute};

use super::ServiceRef;
use crate::{endpoints::ServicePort, view::MeshView};

/// A zone that no service is in. A backend there is one that a reference meant and that does not exist: its share fails.
const NOWHERE: &str = "-";

/// A route, and what it goes to.
pub(super) struct Route {
    pub(super) tcp: TcpRoute,
    /// Each of its backends has a document of its own.
    pub(super) to: BTreeSet<ServiceRef>,
}

/// The route of connections to a service, where there is one. Of several the strongest counts, wholly: shares of two
/// authors can not be added up.
pub(super) fn compile(
    view: &MeshView,
    policies: &Selection<'_>,
    destination: &Destination,
) -> Option<Route> {
    let merged = policies.outgoing(&MeshTCPRoute::DESCRIPTOR, destination);
    let origin = merged.origin("backendRefs")?;
    let said: TcpBackends = merged.get().ok()?;
    // One service that is named twice has the sum of both shares.
    let mut shares: BTreeMap<ServiceRef, u32> = BTreeMap::new();
    for backend in &said.backend_refs {
        let share = shares.entry(reference(view, backend)).or_default();
        *share = share.saturating_add(backend.weight);
    }
    let backends = shares.iter().map(|(reference, weight)| RouteBackend {
        service_document: reference.document_name(),
        weight: *weight,
    });
    let tcp = TcpRoute {
        backends: backends.collect(),
        origin: format!("{origin}.rules[0]"),
    };
    Some(Route {
        tcp,
        to: shares.into_keys().collect(),
    })
}

/// The service that a backend is. One that does not exist (yet) has a reference too, to which nothing can be connected.
fn reference(view: &MeshView, backend: &BackendRef) -> ServiceRef {
    let zone = backend.labels.get(labels::ZONE).cloned();
    match resolve(view, backend) {
        Some(of) => ServiceRef { of, zone },
        None => {
            // Where the name says all, its document is that of the service, and is right as soon as there is one.
            let named = name(backend);
            let by_name_alone = backend.kind == BackendKind::MeshService
                && backend
                    .labels
                    .keys()
                    .all(|key| key == labels::ZONE || key == labels::DISPLAY_NAME);
            let nowhere = !by_name_alone || named.is_none() || backend.port.is_none();
            ServiceRef {
                of: ServicePort {
                    service: named.unwrap_or("unknown").to_owned(),
                    port: backend.port.unwrap_or(0),
                },
                zone: if nowhere {
                    Some(NOWHERE.to_owned())
                } else {
                    zone
                },
            }
        }
    }
}

fn resolve(view: &MeshView, backend: &BackendRef) -> Option<ServicePort> {
    let found = backend.resolve(&view.services.targets).ok()?;
    Some(ServicePort {
        service: found.service.name.clone(),
        port: found.port?.number,
    })
}

fn name(backend: &BackendRef) -> Option<&str> {
    let by_label = backend.labels.get(labels::DISPLAY_NAME);
    backend.name.as_deref().or(by_label.map(String::as_str))
}
