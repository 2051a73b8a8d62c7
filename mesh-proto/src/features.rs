//! Names of what a part may require of another.
//!
//! A document names the features its receiver must have; hello messages name the features a part has. A required
//! feature that the receiver does not know is refused (NACK), never ignored.

/// Inbounds with strict mutual TLS.
pub const INBOUND_MTLS: &str = "inbound.mtls";
/// Permissions by exact or prefix match of the SPIFFE ID, with deny, shadow deny and allow.
pub const PERMISSION_SPIFFE: &str = "permission.spiffe";
/// Readiness of the application by TCP probe.
pub const PROBE_TCP: &str = "probe.tcp";
/// Services reached over TCP, endpoints as deltas, own zone first.
pub const SERVICE_TCP: &str = "service.tcp";
/// Connections split over backends by weight.
pub const ROUTE_TCP: &str = "route.tcp";
/// Inbounds that take plaintext and an application's own TLS beside mesh TLS.
pub const INBOUND_PERMISSIVE: &str = "inbound.permissive";
/// Requests of HTTP: permissions for each, time-outs, limits.
pub const HTTP: &str = "http";
/// Requests routed by path, method, headers and query, with filters and weighted backends.
pub const ROUTE_HTTP: &str = "route.http";
/// How requests are spread over endpoints is said by a policy.
pub const LOAD_BALANCING: &str = "load_balancing";
/// Ports of which nothing is declared: HTTP is told from other protocols by what is said first.
pub const PROTOCOL_DETECT: &str = "protocol.detect";
/// Forwarding by server name.
pub const INGRESS_SNI: &str = "ingress.sni";
/// Trust anchors of several trust domains.
pub const TRUST_DOMAINS: &str = "trust.domains";

/// Answers what the zone asks on its stream.
pub const QUESTIONS: &str = "questions";

/// Every feature this version of the dataplane has.
pub const DATAPLANE: &[&str] = &[
    INBOUND_MTLS,
    PERMISSION_SPIFFE,
    PROBE_TCP,
    SERVICE_TCP,
    ROUTE_TCP,
    INBOUND_PERMISSIVE,
    HTTP,
    ROUTE_HTTP,
    LOAD_BALANCING,
    PROTOCOL_DETECT,
    INGRESS_SNI,
    TRUST_DOMAINS,
    QUESTIONS,
];

/// Per-mesh cursors with tombstones.
pub const SYNC_CURSORS: &str = "sync.cursors";
/// Reports ordered by epoch and sequence.
pub const SYNC_REPORTS: &str = "sync.reports";

/// Every feature of the stream between global and zones that this version has.
pub const SYNC: &[&str] = &[SYNC_CURSORS, SYNC_REPORTS];

/// Those of `required` that are not in `known`, in order.
#[must_use]
pub fn missing<'a>(required: &'a [String], known: &[&str]) -> Vec<&'a str> {
    required
        .iter()
        .map(String::as_str)
        .filter(|feature| !known.contains(feature))
        .collect()
}
