//! Backends of routes: which services share connections or requests.

use std::collections::BTreeMap;

use mesh_model::{
    labels,
    policy::{BackendKind, BackendRef},
};
use mesh_proto::proxy::{Protocol, RouteBackend};

use super::{ServiceRef, takes_requests};
use crate::{endpoints::ServicePort, view::MeshView};

/// A zone that no service is in. A backend there is one that a reference meant and that does not exist: its share fails.
const NOWHERE: &str = "-";

/// What backends must take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    Connections,
    /// Requests of HTTP: what is declared to take none does not exist for them, nor what nothing is declared of where the caller
    /// can not find out (`undeclared` is TCP).
    Requests {
        undeclared: Protocol,
    },
}

/// Who shares the traffic, and each one's share.
pub(super) type Shares = BTreeMap<ServiceRef, u32>;

/// The shares of `backends`. One service that is named twice has the sum of both.
pub(super) fn shares<'a>(
    view: &MeshView,
    backends: impl IntoIterator<Item = &'a BackendRef>,
    traffic: Traffic,
) -> Shares {
    let mut shares = Shares::new();
    for backend in backends {
        let share = shares.entry(reference(view, backend, traffic)).or_default();
        *share = share.saturating_add(backend.weight);
    }
    shares
}

/// As documents have them.
pub(super) fn to_wire(shares: &Shares) -> Vec<RouteBackend> {
    let backends = shares.iter().map(|(reference, weight)| RouteBackend {
        service_document: reference.document_name(),
        weight: *weight,
    });
    backends.collect()
}

/// The service that a backend is. One that does not exist (yet) has a reference too, to which nothing can be connected.
pub(super) fn reference(view: &MeshView, backend: &BackendRef, traffic: Traffic) -> ServiceRef {
    let zone = backend.labels.get(labels::ZONE).cloned();
    let nowhere = |of| ServiceRef {
        of,
        zone: Some(NOWHERE.to_owned()),
    };
    let found = backend.resolve(&view.services.targets).ok();
    match found.and_then(|found| Some((found.service, found.port?))) {
        Some((service, port)) => {
            let of = ServicePort {
                service: service.name.clone(),
                port: port.number,
            };
            let takes_traffic = match traffic {
                Traffic::Connections => true,
                Traffic::Requests { undeclared } => {
                    takes_requests(port.protocol.map_or(undeclared, Into::into))
                }
            };
            if !takes_traffic {
                nowhere(of)
            } else {
                ServiceRef { of, zone }
            }
        }
        None => {
            // Where the name says all, its document is that of the service, and is right as soon as there is one.
            let named = name(backend);
            let by_name_alone = backend.kind == BackendKind::MeshService
                && backend
                    .labels
                    .keys()
                    .all(|key| key == labels::ZONE || key == labels::DISPLAY_NAME);
            let of = ServicePort {
                service: named.unwrap_or("unknown").to_owned(),
                port: backend.port.unwrap_or(0),
            };
            if by_name_alone && named.is_some() && backend.port.is_some() {
                ServiceRef { of, zone }
            } else {
                nowhere(of)
            }
        }
    }
}

/// Whether a reference is one of something that does not exist, and whose document will not change when it does.
pub(super) fn is_nowhere(reference: &ServiceRef) -> bool {
    reference.zone.as_deref() == Some(NOWHERE)
}

fn name(backend: &BackendRef) -> Option<&str> {
    let by_label = backend.labels.get(labels::DISPLAY_NAME);
    backend.name.as_deref().or(by_label.map(String::as_str))
}
