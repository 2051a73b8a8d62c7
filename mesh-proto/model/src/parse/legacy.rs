//! Forms that users of Kuma know and that are not accepted, each with what to write instead.
//!
//! Refused, not ignored: a policy that says less than its author thinks is worse than none.

use crate::{kind::find_kind, path};

/// Instead of a field. Indexes in paths are left out: `spec.rules[].default`.
const FIELDS: &[(&str, &str, &str)] = &[
    (
        "Mesh",
        "mtls",
        "a mesh always has mutual TLS; write who issues identities as a MeshIdentity, and foreign anchors as a MeshTrust",
    ),
    (
        "Mesh",
        "networking",
        "write what may leave the mesh as a MeshPassthrough",
    ),
    ("Mesh", "tracing", "write it as a MeshTrace"),
    ("Mesh", "logging", "write it as a MeshAccessLog"),
    (
        "Mesh",
        "metrics",
        "write it as a MeshMetric; every dataplane has Prometheus metrics in any case",
    ),
    (
        "Mesh",
        "routing",
        "leave it out; a zone's own endpoints come first, and traffic to other zones needs no switch",
    ),
    (
        "Mesh",
        "constraints",
        "what may join a mesh is said by the tokens issued for it (`meshctl token create`)",
    ),
    (
        "Mesh",
        "meshServices",
        "leave it out; every service is a MeshService",
    ),
    (
        "Dataplane",
        "networking.inbound[].tags",
        "tags are not used; write them as `labels` beside `name`, the service as label isthmus.io/service, and the protocol as `protocol`",
    ),
    (
        "Dataplane",
        "networking.outbound[].tags",
        "tags are not used; write `backendRef: {kind: MeshService, name: …, port: …}`",
    ),
    (
        "Dataplane",
        "networking.outbound[].service",
        "write `backendRef: {kind: MeshService, name: …, port: …}`",
    ),
    (
        "Dataplane",
        "networking.gateway",
        "gateways are not supported by this version",
    ),
    (
        "Dataplane",
        "networking.listeners",
        "run the zone's ingress as a process of its own, with a ZoneIngress resource",
    ),
    (
        "Dataplane",
        "networking.transparentProxying",
        "transparent interception is not supported by this version; name what is called under `networking.outbound`",
    ),
    (
        "Dataplane",
        "networking.ingress",
        "write a ZoneIngress resource",
    ),
    (
        "Dataplane",
        "metrics",
        "leave it out; every dataplane has Prometheus metrics",
    ),
    ("Dataplane", "probes", "write `serviceProbe` at the inbound"),
    (
        "ZoneIngress",
        "zone",
        "leave it out; an ingress belongs to the zone it registers at",
    ),
    (
        "ZoneIngress",
        "availableServices",
        "leave it out; zones report their services themselves",
    ),
    (
        "ZoneIngress",
        "networking.admin",
        "leave it out; the admin port is a Unix socket",
    ),
    (
        "MeshService",
        "spec.selector.dataplaneTags",
        "tags are not used; write `dataplaneLabels: {matchLabels: {…}}`",
    ),
    (
        "MeshService",
        "spec.selector.dataplaneLabels.matchExpressions",
        "write `matchLabels`",
    ),
    (
        "MeshIdentity",
        "spec.provider.bundled.ca",
        "a CA from outside is not supported by this version; leave it out, and each zone makes its own",
    ),
    (
        "MeshIdentity",
        "spec.provider.spire",
        "SPIRE is not supported by this version; write `type: Bundled`",
    ),
    (
        "MeshIdentity",
        "spec.provider.extension",
        "extensions are not supported; write `type: Bundled`",
    ),
    (
        "MeshTrafficPermission",
        "spec.from",
        "write `rules: [{default: {allow: [{spiffeID: {type: Exact, value: \"spiffe://…\"}}]}}]`, with deny or allowWithShadowDeny instead of allow as meant",
    ),
    (
        "MeshTrafficPermission",
        "spec.to",
        "a permission is about incoming traffic; select the called proxies with `targetRef` and write the callers under `rules`",
    ),
    (
        "MeshTrafficPermission",
        "spec.rules[].matches",
        "write the callers in the lists allow, deny and allowWithShadowDeny of `default`",
    ),
    (
        "MeshTrafficPermission",
        "spec.rules[].default.action",
        "write the callers in the lists allow, deny and allowWithShadowDeny",
    ),
    (
        "MeshTrafficPermission",
        "spec.rules[].default.allow[].sni",
        SNI,
    ),
    (
        "MeshTrafficPermission",
        "spec.rules[].default.deny[].sni",
        SNI,
    ),
    (
        "MeshTrafficPermission",
        "spec.rules[].default.allowWithShadowDeny[].sni",
        SNI,
    ),
    (
        "ZoneEgress",
        "zone",
        "leave it out; an egress belongs to the zone it registers at",
    ),
    (
        "ZoneEgress",
        "networking.admin",
        "leave it out; the admin port is a Unix socket",
    ),
    (
        "MeshHTTPRoute",
        "spec.to[].hostnames",
        "leave it out; requests are told apart by `matches`, hosts by the service that is called",
    ),
    (
        "MeshHTTPRoute",
        "spec.to[].rules[].default.filters[].urlRewrite.hostToBackendHostname",
        "write the name as `hostname`",
    ),
    (
        "MeshAccessLog",
        "spec.to[].default.backends[].openTelemetry.endpoint",
        COLLECTOR,
    ),
    (
        "MeshAccessLog",
        "spec.rules[].default.backends[].openTelemetry.endpoint",
        COLLECTOR,
    ),
    (
        "MeshTrace",
        "spec.default.backends[].openTelemetry.endpoint",
        COLLECTOR,
    ),
    ("MeshTrace", "spec.default.backends[].datadog", DATADOG),
    (
        "MeshMetric",
        "spec.default.backends[].openTelemetry.endpoint",
        COLLECTOR,
    ),
    (
        "MeshMetric",
        "spec.default.sidecar.regex",
        "write `profiles: {appendProfiles: [{name: None}], include: [{type: Regex, match: …}]}`",
    ),
    (
        "MeshMetric",
        "spec.default.sidecar.usedOnly",
        "write `includeUnused`, which means the opposite",
    ),
    ("MeshExternalService", "spec.extension", EXTENSION),
    ("HostnameGenerator", "spec.extension", EXTENSION),
    (
        "MeshExternalService",
        "spec.tls.verification.caCert.inline",
        INLINE,
    ),
    (
        "MeshExternalService",
        "spec.tls.verification.caCert.secret",
        SECRET,
    ),
    (
        "MeshExternalService",
        "spec.tls.verification.clientCert.inline",
        INLINE,
    ),
    (
        "MeshExternalService",
        "spec.tls.verification.clientCert.secret",
        SECRET,
    ),
    (
        "MeshExternalService",
        "spec.tls.verification.clientKey.inline",
        INLINE,
    ),
    (
        "MeshExternalService",
        "spec.tls.verification.clientKey.secret",
        SECRET,
    ),
    (
        POLICIES,
        "spec.targetRef.tags",
        "tags are not used; write `kind: Dataplane` with `labels`",
    ),
    (
        POLICIES,
        "spec.targetRef.name",
        "write `kind: Dataplane` with `labels`, such as `labels: {isthmus.io/service: …}`",
    ),
    (
        POLICIES,
        "spec.targetRef.namespace",
        "write `kind: Dataplane` with `labels`",
    ),
    (
        POLICIES,
        "spec.targetRef.mesh",
        "leave it out; a policy is about its own mesh",
    ),
    (
        POLICIES,
        "spec.from",
        "write `rules`: who is meant stands in its `matches` by spiffeID, and the configuration in `default` as before",
    ),
    (POLICIES, "spec.rules[].matches[].sni", SNI),
    (
        POLICIES,
        "spec.to[].targetRef.tags",
        "tags are not used; write `labels`, such as `labels: {isthmus.io/display-name: …}`",
    ),
    (
        POLICIES,
        "spec.to[].targetRef.namespace",
        "write `labels: {k8s.isthmus.io/namespace: …}`",
    ),
    (
        POLICIES,
        "spec.to[].targetRef.mesh",
        "leave it out; a policy is about its own mesh",
    ),
    (POLICIES, "spec.to[].targetRef.proxyTypes", "leave it out"),
    (
        POLICIES,
        "spec.to[].rules[].default.backendRefs[].tags",
        "tags are not used; write a MeshService for the subset and its `labels` here",
    ),
    (
        POLICIES,
        "spec.targetRef.proxyTypes",
        "leave it out; write `kind: Dataplane` with `labels` to select some proxies only",
    ),
];

/// Stands for every kind of policy.
const POLICIES: &str = "policies";

const COLLECTOR: &str = "write it as the `endpoint` of a MeshOpenTelemetryBackend, and here `backendRef: {kind: MeshOpenTelemetryBackend, labels: {…}}`";

const DATADOG: &str = "write an OpenTelemetry backend; Datadog's agent understands OpenTelemetry";

const EXTENSION: &str = "extensions are not supported; leave it out";

const INLINE: &str = "write `type: InsecureInline` and `insecureInline: {value: …}`";

const SECRET: &str = "write `type: Secret` and `secretRef: {kind: Secret, name: …}`";

const SNI: &str = "matching by server name is not supported by this version; match by spiffeID";

/// Instead of a word.
const WORDS: &[(&str, &str, &str, &str)] = &[
    (
        POLICIES,
        "spec.targetRef.kind",
        "MeshSubset",
        "write `kind: Dataplane` with `labels` instead of MeshSubset with tags",
    ),
    (
        POLICIES,
        "spec.targetRef.kind",
        "MeshService",
        "write `kind: Dataplane` with `labels: {isthmus.io/service: …}` instead of MeshService",
    ),
    (
        POLICIES,
        "spec.targetRef.kind",
        "MeshServiceSubset",
        "write `kind: Dataplane` with `labels` instead of MeshServiceSubset with tags",
    ),
    (
        POLICIES,
        "spec.targetRef.kind",
        "MeshGateway",
        "gateways are not supported by this version",
    ),
    (
        POLICIES,
        "spec.to[].targetRef.kind",
        "MeshSubset",
        "write `kind: MeshService` with `labels` instead of MeshSubset with tags",
    ),
    (
        POLICIES,
        "spec.to[].targetRef.kind",
        "MeshServiceSubset",
        "write `kind: MeshService` with `labels` instead of MeshServiceSubset with tags",
    ),
    (
        POLICIES,
        "spec.to[].rules[].default.backendRefs[].kind",
        "MeshServiceSubset",
        "write a MeshService for the subset, and its `labels` here",
    ),
    (
        "MeshTrace",
        "spec.default.backends[].type",
        "Datadog",
        DATADOG,
    ),
    (
        "MeshIdentity",
        "spec.provider.type",
        "Spire",
        "SPIRE is not supported by this version; write `type: Bundled`",
    ),
    (
        "MeshIdentity",
        "spec.provider.type",
        "Extension",
        "extensions are not supported; write `type: Bundled`",
    ),
    (
        "Dataplane",
        "networking.outbound[].backendRef.kind",
        "MeshExternalService",
        "external services are not supported by this version",
    ),
    (
        "Dataplane",
        "networking.outbound[].backendRef.kind",
        "MeshMultiZoneService",
        "write `kind: MeshService`: it means the service in all zones, its own first",
    ),
];

/// About a field whose absence has a story.
const MISSING: &[(&str, &str, &str)] = &[
    (
        "Dataplane",
        "networking.outbound[].backendRef.name",
        "a service is referred to by its name, not by the label display-name",
    ),
    (POLICIES, "spec.rules[].matches[].spiffeID", EVERYONE),
    (
        "MeshTrafficPermission",
        "spec.rules[].default.allow[].spiffeID",
        EVERYONE,
    ),
    (
        "MeshTrafficPermission",
        "spec.rules[].default.deny[].spiffeID",
        EVERYONE,
    ),
    (
        "MeshTrafficPermission",
        "spec.rules[].default.allowWithShadowDeny[].spiffeID",
        EVERYONE,
    ),
];

const EVERYONE: &str =
    "an empty match is not everyone; everyone is `spiffeID: {type: Prefix, value: \"spiffe://\"}`";

/// Kinds of Kuma 2 and their successors.
const KINDS: &[(&str, &str)] = &[
    ("TrafficPermission", "MeshTrafficPermission"),
    ("TrafficRoute", "MeshHTTPRoute or MeshTCPRoute"),
    ("TrafficLog", "MeshAccessLog"),
    ("TrafficTrace", "MeshTrace"),
    ("HealthCheck", "MeshHealthCheck"),
    ("CircuitBreaker", "MeshCircuitBreaker"),
    ("Retry", "MeshRetry"),
    ("Timeout", "MeshTimeout"),
    ("FaultInjection", "MeshFaultInjection"),
    ("RateLimit", "MeshRateLimit"),
    ("ExternalService", "MeshExternalService"),
];

/// Kinds of Kuma that are not here.
const ABSENT: &[(&str, &str)] = &[
    ("MeshGateway", "gateways are not supported by this version"),
    (
        "MeshGatewayRoute",
        "gateways are not supported by this version",
    ),
    (
        "MeshGatewayInstance",
        "gateways are not supported by this version",
    ),
    (
        "MeshProxyPatch",
        "it changes the configuration of Envoy, and proxies here are not Envoy",
    ),
    (
        "ProxyTemplate",
        "it changes the configuration of Envoy, and proxies here are not Envoy",
    ),
    (
        "VirtualOutbound",
        "it is of Kuma 2; write a HostnameGenerator",
    ),
    (
        "MeshZoneAddress",
        "where a zone is entered is said by its ZoneIngress",
    ),
    (
        "Workload",
        "workloads are known by the label isthmus.io/workload of dataplanes",
    ),
];

/// Instead of `from` in a policy that has no `rules`, because it is about outgoing traffic.
const FROM_OF_OUTGOING: &str = "leave it out: this policy is about outgoing traffic; write what is called under `to`, and who calls as `targetRef`";

/// Instead of `from` in a policy that has no `rules`, because it is about the proxy as a whole.
const FROM_OF_PROXY: &str = "leave it out: this policy is about the proxy as a whole; select proxies by `targetRef`, and write the configuration as `default`";

/// What to write instead of the field at `path`.
pub(super) fn field(kind: &str, path: &str) -> Option<&'static str> {
    let shape = || find_kind(kind)?.policy();
    match (path, shape()) {
        ("spec.from", Some(shape)) if !shape.rules && shape.proxy => Some(FROM_OF_PROXY),
        ("spec.from", Some(shape)) if !shape.rules => Some(FROM_OF_OUTGOING),
        _ => look_up(FIELDS, kind, path),
    }
}

/// What to write instead of `word` at `path`.
pub(super) fn word(kind: &str, path: &str, word: &str) -> Option<&'static str> {
    let path = path::without_indexes(path);
    WORDS
        .iter()
        .find(|(k, p, w, _)| is(k, kind) && *p == path && *w == word)
        .map(|(_, _, _, message)| *message)
}

/// What to say about the field at `path`, where it is required and missing.
pub(super) fn missing(kind: &str, path: &str) -> Option<&'static str> {
    look_up(MISSING, kind, path)
}

/// What to say to a resource of type `name`, which is none of our kinds.
pub(super) fn kind(name: &str) -> Option<String> {
    let of = |table: &'static [(&str, &str)]| table.iter().find(|(kind, _)| *kind == name);
    if let Some((_, successor)) = of(KINDS) {
        return Some(format!("{name} is of Kuma 2; write a {successor}"));
    }
    of(ABSENT).map(|(_, why)| format!("there is no {name}: {why}"))
}

fn look_up(table: &[(&str, &str, &'static str)], kind: &str, path: &str) -> Option<&'static str> {
    let path = path::without_indexes(path);
    table
        .iter()
        .find(|(k, p, _)| is(k, kind) && *p == path)
        .map(|(_, _, message)| *message)
}

/// True where an entry about `about` is about `kind`. What is said of a kind stands before what is said of all policies.
fn is(about: &str, kind: &str) -> bool {
    let is_policy = || find_kind(kind).is_some_and(|kind| kind.policy().is_some());
    about == kind || (about == POLICIES && is_policy())
}
