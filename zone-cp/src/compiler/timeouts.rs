//! `MeshTimeout`s: how long connecting may take, how long connections may be idle, and how long requests may take.

use mesh_model::{
    Kind as _, MeshTimeout,
    dataplane::Inbound,
    duration::Duration,
    mesh_timeout,
    policy::{Destination, MatchForm, Merged, Origin, Selection, SpiffeIdMatch},
};
use mesh_proto::proxy::{
    CallerTimeouts, HttpTimeouts, IdentityMatch, Timeouts, identity_match::SpiffeId,
};

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

/// Of connections to a service and, where it takes them (`http`), of requests.
pub(super) fn outgoing(
    policies: &Selection<'_>,
    destination: &Destination,
    http: bool,
) -> Timeouts {
    of(
        &policies.outgoing(&MeshTimeout::DESCRIPTOR, destination),
        http,
    )
}

/// Of connections and requests to an inbound's application: for everyone, and for certain callers, the most specific first.
/// A connection's bytes are the same for whoever calls: rules for certain callers only are about HTTP (`http`: it may be spoken).
pub(super) fn incoming(
    policies: &Selection<'_>,
    inbound: &Inbound,
    http: bool,
) -> (Timeouts, Vec<CallerTimeouts>) {
    let incoming = policies.incoming(&MeshTimeout::DESCRIPTOR, inbound);
    let rules = incoming.rules.iter().filter(|_| http);
    let rules = rules.map(|rule| CallerTimeouts {
        matches: vec![identity_match(&rule.callers)],
        timeouts: Some(of(&rule.merged, http)),
    });
    (of(incoming.of_caller(None), http), rules.collect())
}

fn identity_match(callers: &SpiffeIdMatch) -> IdentityMatch {
    let value = callers.value.clone();
    IdentityMatch {
        spiffe_id: Some(match callers.form {
            _ if callers.is_everyone() => SpiffeId::Any(true),
            MatchForm::Exact => SpiffeId::Exact(value),
            MatchForm::Prefix => SpiffeId::Prefix(value),
        }),
        // Each value has its own.
        origin: String::new(),
    }
}

fn of(merged: &Merged, with_http: bool) -> Timeouts {
    let mut timeouts = built_in();
    timeouts.http = with_http.then(|| http(merged));
    let said = read(merged);
    if let Some(connect) = said.connection_timeout {
        // Less than a millisecond is not never.
        timeouts.connect_ms = connect.as_millis_u32().max(1);
        timeouts.connect_origin = origin(merged, "connectionTimeout");
    }
    if let Some(idle) = said.idle_timeout {
        timeouts.idle_ms = milliseconds(idle);
        timeouts.idle_origin = origin(merged, "idleTimeout");
    }
    timeouts
}

/// Of requests. What nothing says anything of is for ever: what is built in is among what is merged.
pub(super) fn http(merged: &Merged) -> HttpTimeouts {
    let said = read(merged).http.unwrap_or_default();
    let ms = |value: Option<Duration>| value.map_or(0, milliseconds);
    let origin = |field: &str| origin(merged, &format!("http.{field}"));
    HttpTimeouts {
        request_ms: ms(said.request_timeout),
        stream_idle_ms: ms(said.stream_idle_timeout),
        max_stream_ms: ms(said.max_stream_duration),
        max_connection_ms: ms(said.max_connection_duration),
        request_headers_ms: ms(said.request_headers_timeout),
        request_origin: origin("requestTimeout"),
        stream_idle_origin: origin("streamIdleTimeout"),
        max_stream_origin: origin("maxStreamDuration"),
        max_connection_origin: origin("maxConnectionDuration"),
        request_headers_origin: origin("requestHeadersTimeout"),
    }
}

/// True where a policy says something of requests: what is built in may be missing, what somebody wrote may not.
pub(super) fn is_said(timeouts: &HttpTimeouts) -> bool {
    let origins = [
        &timeouts.request_origin,
        &timeouts.stream_idle_origin,
        &timeouts.max_stream_origin,
        &timeouts.max_connection_origin,
        &timeouts.request_headers_origin,
    ];
    origins.iter().any(|origin| !origin.is_empty())
}

/// The kind itself has checked what it holds.
fn read(merged: &Merged) -> mesh_timeout::Timeouts {
    merged.get().unwrap_or_default()
}

/// 0 is never; less than a millisecond is not.
fn milliseconds(duration: Duration) -> u32 {
    match duration.0.is_zero() {
        true => 0,
        false => duration.as_millis_u32().max(1),
    }
}

fn origin(merged: &Merged, field: &str) -> String {
    match merged.origin(field) {
        None | Some(Origin::BuiltIn) => String::new(),
        Some(origin) => origin.to_string(),
    }
}
