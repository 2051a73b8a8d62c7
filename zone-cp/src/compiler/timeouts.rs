//! `MeshTimeout`s: how long connecting may take, and how long connections may be idle.
//!
//! What concerns HTTP is not enforced yet.

use mesh_model::{
    Kind as _, MeshTimeout,
    dataplane::Inbound,
    mesh_timeout,
    policy::{Destination, Merged, Origin, Selection},
};
use mesh_proto::proxy::Timeouts;

/// How long one attempt to reach an endpoint may take, where no policy says.
const CONNECT_MS: u32 = 5_000;
/// How long a connection may be idle, where no policy says.
const IDLE_MS: u32 = 3_600_000;

/// Where no policy says anything.
pub(super) fn built_in() -> Timeouts {
    Timeouts {
        connect_ms: CONNECT_MS,
        idle_ms: IDLE_MS,
        ..Timeouts::default()
    }
}

/// Of connections to a service.
pub(super) fn outgoing(policies: &Selection<'_>, destination: &Destination) -> Timeouts {
    of(&policies.outgoing(&MeshTimeout::DESCRIPTOR, destination))
}

/// Of connections to an inbound's application. A connection's bytes are the same for whoever calls: rules for certain
/// callers only are about HTTP, and come with it.
pub(super) fn incoming(policies: &Selection<'_>, inbound: &Inbound) -> Timeouts {
    let incoming = policies.incoming(&MeshTimeout::DESCRIPTOR, inbound);
    of(incoming.of_caller(None))
}

fn of(merged: &Merged) -> Timeouts {
    let mut timeouts = built_in();
    let Ok(said) = merged.get::<mesh_timeout::Timeouts>() else {
        return timeouts; // The kind itself has checked what it holds.
    };
    let origin = |field: &str| match merged.origin(field) {
        None | Some(Origin::BuiltIn) => String::new(),
        Some(origin) => origin.to_string(),
    };
    if let Some(connect) = said.connection_timeout {
        // Less than a millisecond is not never.
        timeouts.connect_ms = connect.as_millis_u32().max(1);
        timeouts.connect_origin = origin("connectionTimeout");
    }
    if let Some(idle) = said.idle_timeout {
        timeouts.idle_ms = match idle.0.is_zero() {
            true => 0,
            false => idle.as_millis_u32().max(1),
        };
        timeouts.idle_origin = origin("idleTimeout");
    }
    timeouts
}
