//! `MeshTCPRoute`s: where connections to a service really go.

use std::collections::BTreeSet;

use mesh_model::{
    Kind as _, MeshTCPRoute,
    mesh_tcp_route::TcpBackends,
    policy::{Destination, Selection},
};
use mesh_proto::proxy::TcpRoute;

use super::{
    ServiceRef,
    backends::{self, Traffic},
};
use crate::view::MeshView;

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
    let shares = backends::shares(view, &said.backend_refs, Traffic::Connections);
    let tcp = TcpRoute {
        backends: backends::to_wire(&shares),
        origin: format!("{origin}.rules[0]"),
    };
    Some(Route {
        tcp,
        to: shares.into_keys().collect(),
    })
}
