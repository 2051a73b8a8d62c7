//! What is accepted and not enforced by the proxies of this version: said when it is applied, never silently ignored.
//!
//! One table, which shrinks as proxies learn. Kinds that are not in it are enforced.

use serde_json::Value;

use crate::{path, resource::Resource};

/// Kind, field, and what happens instead. In a field, `[]` is every item of a list, a `*` at the end every field of the
/// object, and `=Word` at the end that the field has this value.
const NOT_ENFORCED: &[(&str, &str, &str)] = &[
    (
        "MeshTimeout",
        "spec.to[].targetRef.kind=MeshExternalService",
        OUTSIDE,
    ),
    (
        "MeshTimeout",
        "spec.to[].targetRef.kind=MeshMultiZoneService",
        MULTI_ZONE,
    ),
    (
        "MeshTimeout",
        "spec.rules[].matches",
        "at inbounds of protocol tcp or tls only rules for everyone count; at those of http, http2 and grpc each does",
    ),
    (
        "MeshTCPRoute",
        "spec.to[].targetRef.kind=MeshExternalService",
        OUTSIDE,
    ),
    (
        "MeshTCPRoute",
        "spec.to[].targetRef.kind=MeshMultiZoneService",
        MULTI_ZONE,
    ),
    (
        "MeshTCPRoute",
        "spec.to[].rules[].default.backendRefs[].kind=MeshExternalService",
        "its share of the connections fails, since external services can not be called",
    ),
    (
        "MeshTCPRoute",
        "spec.to[].rules[].default.backendRefs[].kind=MeshMultiZoneService",
        "its share of the connections fails; a MeshService means the service in all its zones",
    ),
    (
        "MeshHTTPRoute",
        "spec.to[].targetRef.kind=MeshExternalService",
        OUTSIDE,
    ),
    (
        "MeshHTTPRoute",
        "spec.to[].targetRef.kind=MeshMultiZoneService",
        MULTI_ZONE,
    ),
    (
        "MeshHTTPRoute",
        "spec.to[].rules[].default.backendRefs[].kind=MeshExternalService",
        "its share of the requests fails, since external services can not be called",
    ),
    (
        "MeshHTTPRoute",
        "spec.to[].rules[].default.backendRefs[].kind=MeshMultiZoneService",
        "its share of the requests fails; a MeshService means the service in all its zones",
    ),
    (
        "MeshHTTPRoute",
        "spec.to[].rules[].default.filters[].requestMirror.backendRef.kind=MeshExternalService",
        "no copy is sent, since external services can not be called",
    ),
    (
        "MeshHTTPRoute",
        "spec.to[].rules[].default.filters[].requestMirror.backendRef.kind=MeshMultiZoneService",
        "no copy is sent; a MeshService means the service in all its zones",
    ),
    ("MeshRetry", "spec.to[].default.http", RETRIES),
    ("MeshRetry", "spec.to[].default.grpc", RETRIES),
    (
        "MeshRetry",
        "spec.to[].default.tcp",
        "a connection that fails moves on to other endpoints until the connection timeout",
    ),
    (
        "MeshCircuitBreaker",
        "spec.to[].default.*",
        "nothing is limited, and no endpoint left out",
    ),
    (
        "MeshCircuitBreaker",
        "spec.rules[].default.*",
        "nothing is limited",
    ),
    (
        "MeshHealthCheck",
        "spec.to[].default",
        "endpoints are not asked; what counts is what their own proxies say of them",
    ),
    (
        "MeshLoadBalancingStrategy",
        "spec.to[].targetRef.kind=MeshExternalService",
        OUTSIDE,
    ),
    (
        "MeshLoadBalancingStrategy",
        "spec.to[].targetRef.kind=MeshMultiZoneService",
        MULTI_ZONE,
    ),
    (
        "MeshLoadBalancingStrategy",
        "spec.to[].default.loadBalancer.type=RingHash",
        LEAST_REQUEST,
    ),
    (
        "MeshLoadBalancingStrategy",
        "spec.to[].default.loadBalancer.type=Maglev",
        LEAST_REQUEST,
    ),
    (
        "MeshLoadBalancingStrategy",
        "spec.to[].default.loadBalancer.type=Random",
        LEAST_REQUEST,
    ),
    (
        "MeshLoadBalancingStrategy",
        "spec.to[].default.loadBalancer.type=PeakEwma",
        LEAST_REQUEST,
    ),
    (
        "MeshLoadBalancingStrategy",
        "spec.to[].default.loadBalancer.leastRequest.activeRequestBias",
        "all endpoints have the same weight",
    ),
    (
        "MeshLoadBalancingStrategy",
        "spec.to[].default.localityAwareness",
        "the own zone's endpoints come first, and others where it has none",
    ),
    (
        "MeshLoadBalancingStrategy",
        "spec.to[].default.hashPolicies",
        "no endpoint is chosen by a hash",
    ),
    (
        "MeshFaultInjection",
        "spec.rules[].default.*",
        "no request is disturbed",
    ),
    ("MeshFaultInjection", "spec.to", GATEWAYS),
    (
        "MeshRateLimit",
        "spec.rules[].default.*",
        "nothing is limited",
    ),
    ("MeshRateLimit", "spec.to", GATEWAYS),
    (
        "MeshTLS",
        "spec.rules[].default.tlsVersion.max=TLS10",
        MESH_TLS,
    ),
    (
        "MeshTLS",
        "spec.rules[].default.tlsVersion.max=TLS11",
        MESH_TLS,
    ),
    (
        "MeshTLS",
        "spec.rules[].default.tlsVersion.max=TLS12",
        MESH_TLS,
    ),
    ("MeshTLS", "spec.rules[].default.tlsCiphers", MESH_TLS),
    ("MeshAccessLog", "spec.to[].default.backends", RECORDS),
    ("MeshAccessLog", "spec.rules[].default.backends", RECORDS),
    ("MeshTrace", "spec.default.*", "no spans are sent"),
    (
        "MeshMetric",
        "spec.default.*",
        "each proxy offers its own measurements to Prometheus, where it is started with a metrics address",
    ),
    (
        "MeshPassthrough",
        "spec.default.*",
        "traffic is not intercepted, so what a workload calls outside the mesh is neither seen nor refused",
    ),
    (
        "MeshMultiZoneService",
        "spec.ports",
        "it can not be called; a MeshService means the service in all its zones, the own one first",
    ),
    ("MeshExternalService", "spec.match", "it can not be called"),
    ("MeshOpenTelemetryBackend", "spec", "nothing is sent to it"),
    (
        "HostnameGenerator",
        "spec.template",
        "names of services are not resolved; workloads call the ports of their outbounds",
    ),
    ("ZoneEgress", "networking", "no traffic leaves through it"),
];

const OUTSIDE: &str = "external services can not be called";
const MULTI_ZONE: &str =
    "services of several zones can not be called; a MeshService means the service in all its zones";
const RETRIES: &str = "a request that has failed is not sent again";
const LEAST_REQUEST: &str = "the less busy of two random endpoints is taken instead";
const MESH_TLS: &str = "TLS between proxies is 1.3, with that version's ciphers, and never older";
const GATEWAYS: &str =
    "it is about traffic that enters through gateways, which this version does not have";
const RECORDS: &str = "each proxy writes its records to its own log";

/// What of `resource` is not enforced, one text a field: the first place, and how many more there are.
pub(crate) fn warnings(resource: &Resource) -> Vec<String> {
    let kind = resource.kind();
    let mut fields = NOT_ENFORCED
        .iter()
        .filter(|(name, ..)| *name == kind.name)
        .peekable();
    if fields.peek().is_none() {
        return Vec::new();
    }
    let mut object = serde_json::Map::new();
    resource.insert_content(&mut object);
    let content = Value::Object(object);
    let mut warnings = Vec::new();
    for (_, field, instead) in fields {
        let mut found = Vec::new();
        find(&content, "", field, &mut found);
        // Of a `*`, each field by itself.
        while let Some(first) = found.first().cloned() {
            let is_same =
                |path: &String| path::without_indexes(path) == path::without_indexes(&first);
            let same = found.iter().filter(|path| is_same(path)).count();
            found.retain(|path| !is_same(path));
            let more = match same - 1 {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            warnings.push(format!(
                "{first}{more}: is not enforced by the proxies of this version: {instead}"
            ));
        }
    }
    warnings
}

/// The paths in `value`, which stands at `at`, that `pattern` means.
fn find(value: &Value, at: &str, pattern: &str, found: &mut Vec<String>) {
    let (step, rest) = pattern.split_once('.').unwrap_or((pattern, ""));
    if step.is_empty() {
        found.push(at.to_owned());
        return;
    }
    if step == "*" {
        let fields = value.as_object().into_iter().flatten();
        found.extend(fields.map(|(name, _)| path::field(at, name)));
        return;
    }
    if let Some((name, word)) = step.split_once('=') {
        if value.get(name).and_then(Value::as_str) == Some(word) {
            found.push(path::field(at, name));
        }
        return;
    }
    let (name, is_list) = match step.strip_suffix("[]") {
        Some(name) => (name, true),
        None => (step, false),
    };
    let Some(value) = value.get(name) else { return };
    let at = path::field(at, name);
    if is_list {
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            find(item, &path::item(&at, index), rest, found);
        }
    } else {
        find(value, &at, rest, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::find_kind;

    #[test]
    fn the_table_names_kinds_and_fields_that_exist() {
        for (kind, field, _) in NOT_ENFORCED {
            let kind = find_kind(kind).unwrap_or_else(|| panic!("{kind}"));
            let first = field.split(['.', '[']).next().unwrap();
            let second = field.split(['.', '[']).nth(1);
            let name = if kind.spec_field { second } else { Some(first) };
            let known = |name: &str| kind.content_schema().fields().any(|known| known == name);
            assert!(name.is_none_or(known), "{} {field}", kind.name);
        }
    }

    #[test]
    fn each_field_is_said_once_with_how_often_it_is_there() {
        let text = "
type: MeshRateLimit
mesh: payments
name: slow
spec:
  rules:
    - default: {local: {tcp: {connectionRate: {num: 1, interval: 1s}}, http: {requestRate: {num: 1, interval: 1s}}}}
    - default: {local: {http: {requestRate: {num: 1, interval: 1s}}}}
";
        let resources = crate::parse(text, "").unwrap();
        assert_eq!(
            warnings(&resources[0]),
            [
                "spec.rules[0].default.local (and 1 more): is not enforced by the proxies of this version: nothing is limited",
            ]
        );
    }

    #[test]
    fn what_is_said_by_value_is_not_said_of_another_value() {
        let text = "
type: MeshLoadBalancingStrategy
mesh: payments
name: spread
spec:
  to:
    - targetRef: {kind: MeshService, name: a}
      default: {loadBalancer: {type: RoundRobin}}
    - targetRef: {kind: MeshService, name: b}
      default: {loadBalancer: {type: Maglev}, hashPolicies: [{type: Connection, connection: {sourceIP: true}}]}
";
        let resources = crate::parse(text, "").unwrap();
        assert_eq!(
            warnings(&resources[0]),
            [
                "spec.to[1].default.loadBalancer.type: is not enforced by the proxies of this version: the less busy of two random endpoints is taken instead",
                "spec.to[1].default.hashPolicies: is not enforced by the proxies of this version: no endpoint is chosen by a hash",
            ]
        );
    }
}
