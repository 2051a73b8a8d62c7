//! From policy to behaviour: a pure function, and the only place where it happens (invariant 3).
//!
//! No I/O, no clock, no randomness. Equal input gives equal bytes, whatever order it came in; a document holds neither
//! revision nor time, so that a change which does not affect a proxy does not change what it is sent. Endpoints are
//! not part of it (see [`crate::endpoints`]).
//!
//! | module | what it compiles |
//! | --- | --- |
//! | here | listeners and inbound policy, trust, what an ingress forwards |
//! | `service` | how to reach a service, which differs with the policies that select the caller |
//! | `timeouts` | `MeshTimeout`s |
//! | `load_balancing` | `MeshLoadBalancingStrategy`s |
//! | `tcp_route` | `MeshTCPRoute`s |
//! | `http_route` | `MeshHTTPRoute`s |
//! | `backends` | what routes of both go to |

mod backends;
mod http_route;
mod load_balancing;
mod service;
mod tcp_route;
mod timeouts;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_model::{
    Dataplane, Kind as _, MeshTLS, Resource, ZoneIngress,
    dataplane::{Inbound as InboundSpec, InboundState, ServiceProbe},
    identity,
    mesh_service::ServicePort as PortSpec,
    mesh_tls,
    policy::{Proxy as Selectable, Selection},
    services as model,
};
use mesh_proto::{
    document, features,
    names::{MeshName, ZoneName},
    proxy::{
        Document, Inbound, Ingress, IngressRoute, Outbound, Probe, Protocol, Proxy, SocketAddress,
        TlsMode, Trust, TrustDomain, document::Body,
    },
    sni,
};

pub use service::{Needed, ServiceDocuments};

use crate::{
    endpoints::{self, ServicePort},
    services::Services,
    tracker::Documents,
    view::MeshView,
};

/// A port of a service that a proxy calls, in every zone or in one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceRef {
    /// The service and its port.
    pub of: ServicePort,
    /// Only the service in this zone.
    pub zone: Option<String>,
}

impl ServiceRef {
    /// Name of the document that says how to reach it, and key of its endpoint set.
    #[must_use]
    pub fn document_name(&self) -> String {
        document::service_document_name(&self.of.service, self.of.port, self.zone.as_deref())
    }
}

/// What a proxy is sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    /// All its documents.
    pub documents: Documents,
    /// Features the documents need and the proxy does not have. It will refuse them; this says so beforehand.
    pub missing_features: BTreeSet<String>,
}

/// Compiles everything for one sidecar. `subscriptions` are services it uses beside those it declares; `capabilities`
/// the features it has.
#[must_use]
pub fn compile(
    view: &MeshView,
    dataplane: &Resource,
    subscriptions: &BTreeSet<ServiceRef>,
    capabilities: &[String],
) -> Compiled {
    Compiler::new(view).compile(dataplane, subscriptions, capabilities)
}

/// Compiles several sidecars of one mesh: what they share is made once.
#[derive(Debug)]
pub struct Compiler<'a> {
    view: &'a MeshView,
    trust: Arc<Document>,
    services: ServiceDocuments,
}

impl<'a> Compiler<'a> {
    /// A compiler of one mesh.
    #[must_use]
    pub fn new(view: &'a MeshView) -> Self {
        Self {
            view,
            trust: Arc::new(trust(view)),
            services: ServiceDocuments::default(),
        }
    }

    /// See [`compile`].
    pub fn compile(
        &mut self,
        dataplane: &Resource,
        subscriptions: &BTreeSet<ServiceRef>,
        capabilities: &[String],
    ) -> Compiled {
        let mut documents = Documents::new();
        let mut add = |document: Arc<Document>| documents.insert(document.name.clone(), document);
        add(Arc::new(proxy(self.view, dataplane, capabilities)));
        add(self.trust.clone());
        let called = &declared(dataplane) | subscriptions;
        let services = self
            .services
            .needed(self.view, dataplane, &called, capabilities);
        for document in services.into_values() {
            add(document);
        }
        Compiled {
            missing_features: missing_features(&documents, capabilities),
            documents,
        }
    }
}

/// Features that documents require and that are not among `capabilities`.
#[must_use]
pub fn missing_features(documents: &Documents, capabilities: &[String]) -> BTreeSet<String> {
    let known: Vec<&str> = capabilities.iter().map(String::as_str).collect();
    documents
        .values()
        .flat_map(|document| features::missing(&document.required_features, &known))
        .map(str::to_owned)
        .collect()
}

/// The services that a dataplane declares as outbounds.
#[must_use]
pub fn declared(dataplane: &Resource) -> BTreeSet<ServiceRef> {
    let outbounds = dataplane
        .get::<Dataplane>()
        .map(|d| d.networking.outbound.as_slice());
    let reference = |outbound: &mesh_model::dataplane::Outbound| ServiceRef {
        of: ServicePort {
            service: outbound.backend_ref.name.clone(),
            port: outbound.backend_ref.port,
        },
        zone: outbound.backend_ref.zone().map(str::to_owned),
    };
    outbounds
        .unwrap_or_default()
        .iter()
        .map(reference)
        .collect()
}

/// What is spoken where nothing is declared, for a dataplane with these features.
fn undeclared(capabilities: &[String]) -> Protocol {
    let detects = capabilities
        .iter()
        .any(|feature| feature == features::PROTOCOL_DETECT);
    if detects {
        Protocol::Detect
    } else {
        Protocol::Tcp
    }
}

/// Listeners and inbound policy of a sidecar with these features.
#[must_use]
pub fn proxy(view: &MeshView, dataplane: &Resource, capabilities: &[String]) -> Document {
    let workload = identity::workload(dataplane);
    let served = served_ports(&view.services, dataplane);
    let policies = view.policies.set.select(Selectable::of(dataplane));
    let networking = dataplane.get::<Dataplane>().map(|d| &d.networking);
    let inbounds: Vec<_> = networking
        .iter()
        .flat_map(|n| &n.inbound)
        .filter(|inbound| inbound.stated() != InboundState::Ignored)
        .map(|spec| {
            inbound(
                view,
                dataplane,
                spec,
                &served,
                &policies,
                undeclared(capabilities),
            )
        })
        .collect();
    let outbounds: Vec<_> = networking
        .iter()
        .flat_map(|n| &n.outbound)
        .map(outbound)
        .collect();
    let source_service = dataplane
        .meta
        .labels
        .get(mesh_model::labels::SERVICE)
        .or_else(|| served.values().flatten().map(|(service, _)| service).min())
        .map_or(workload, String::as_str)
        .to_owned();
    let mut required = BTreeSet::new();
    if !inbounds.is_empty() {
        required.extend([features::INBOUND_MTLS, features::PERMISSION_SPIFFE]);
    }
    for inbound in &inbounds {
        required.extend(required_of(inbound));
    }
    let body = Body::Proxy(Proxy {
        mesh: view.mesh.to_string(),
        zone: view.zone.to_string(),
        name: dataplane.meta.name.clone(),
        workload: workload.to_owned(),
        spiffe_id: view
            .spiffe_ids
            .get(&dataplane.meta.name)
            .cloned()
            .unwrap_or_default(),
        inbounds,
        outbounds,
        source_service,
    });
    seal(document::PROXY.to_owned(), required, body)
}

/// Features beyond those of every inbound. What is built in of time-outs, a proxy that knows nothing of HTTP does without;
/// what somebody has said must be obeyed.
fn required_of(inbound: &Inbound) -> Vec<&'static str> {
    let mut required = Vec::new();
    if inbound.probe.is_some() {
        required.push(features::PROBE_TCP);
    }
    if inbound.protocol() == Protocol::Detect {
        required.push(features::PROTOCOL_DETECT);
    }
    if inbound.tls() == TlsMode::Permissive {
        required.push(features::INBOUND_PERMISSIVE);
    }
    let http = inbound.timeouts.as_ref().and_then(|t| t.http.as_ref());
    if http.is_some_and(timeouts::is_said) || !inbound.caller_timeouts.is_empty() {
        required.push(features::HTTP);
    }
    required
}

/// Service ports that each inbound (by name) of a dataplane serves.
pub(crate) type ServedPorts = BTreeMap<String, Vec<(String, PortSpec)>>;

pub(crate) fn served_ports(services: &Services, dataplane: &Resource) -> ServedPorts {
    let mut served = ServedPorts::new();
    let behind = services.behind.get(&dataplane.meta.name);
    for name in behind.into_iter().flatten() {
        let Some(service) = services.own.get(name) else {
            continue;
        };
        for member in model::members(&service.resource, dataplane) {
            served
                .entry(member.inbound.name_or_port())
                .or_default()
                .push((name.clone(), member.port.clone()));
        }
    }
    served
}

fn inbound(
    view: &MeshView,
    dataplane: &Resource,
    spec: &InboundSpec,
    served: &ServedPorts,
    policies: &Selection<'_>,
    undeclared: Protocol,
) -> Inbound {
    let networking = dataplane.get::<Dataplane>().map(|d| &d.networking);
    let name = spec.name_or_port();
    let served = served.get(&name).map(Vec::as_slice).unwrap_or_default();
    let server_names: BTreeSet<String> = served
        .iter()
        .flat_map(|(service, port)| server_names(&view.mesh, &view.zone, service, port))
        .collect();
    let workload = identity::workload(dataplane);
    // Callers go by what a service says of its port, so that counts where the inbound itself says nothing.
    let declared = spec
        .protocol
        .or_else(|| served.iter().find_map(|(_, port)| port.app_protocol));
    let protocol = declared.map_or(undeclared, Protocol::from);
    let (timeouts, caller_timeouts) = timeouts::incoming(policies, spec, takes_requests(protocol));
    Inbound {
        listen: networking.map(|n| address(spec.listen_address(n), spec.port)),
        application: networking
            .map(|n| address(spec.application_address(n), spec.application_port())),
        protocol: protocol.into(),
        tls: tls_mode(policies, spec).into(),
        server_names: server_names.into_iter().collect(),
        service: served
            .first()
            .map_or(workload, |(service, _)| service)
            .to_owned(),
        permissions: Some(policies.permissions(spec)),
        timeouts: Some(timeouts),
        probe: spec.service_probe.as_ref().map(probe),
        caller_timeouts,
        name,
    }
}

/// Strict, unless a `MeshTLS` says otherwise.
fn tls_mode(policies: &Selection<'_>, inbound: &InboundSpec) -> TlsMode {
    let merged = policies.incoming(&MeshTLS::DESCRIPTOR, inbound).everyone;
    let said: mesh_tls::Tls = merged.get().unwrap_or_default();
    match said.mode {
        Some(mesh_tls::TlsMode::Permissive) => TlsMode::Permissive,
        Some(mesh_tls::TlsMode::Strict) | None => TlsMode::Strict,
    }
}

/// True where requests of HTTP are spoken, of whichever version, or may be.
pub(crate) fn takes_requests(protocol: Protocol) -> bool {
    matches!(
        protocol,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Detect
    )
}

fn outbound(spec: &mesh_model::dataplane::Outbound) -> Outbound {
    let reference = &spec.backend_ref;
    Outbound {
        listen: Some(address(spec.listen_address(), spec.port)),
        service_document: document::service_document_name(
            &reference.name,
            reference.port,
            reference.zone(),
        ),
    }
}

/// Server names of a service port, the one that callers use first. A port that has a name answers to its number too, so
/// that giving it a name, or another, breaks nobody.
fn server_names(
    mesh: &MeshName,
    zone: &ZoneName,
    service: &str,
    port: &PortSpec,
) -> BTreeSet<String> {
    [port.name_or_port(), port.port.to_string()]
        .iter()
        .map(|port| sni::mesh_service(mesh, zone, service, port))
        .collect()
}

/// Anchors of every trust domain of the mesh. The same for all its proxies.
#[must_use]
pub fn trust(view: &MeshView) -> Document {
    let domain = |(name, anchors): (&String, &BTreeSet<Vec<u8>>)| TrustDomain {
        name: name.clone(),
        anchors: anchors.iter().cloned().collect(),
    };
    let body = Body::Trust(Trust {
        domains: view.trust.iter().map(domain).collect(),
    });
    let required = BTreeSet::from([features::TRUST_DOMAINS]);
    seal(document::TRUST.to_owned(), required, body)
}

/// What the zone's ingress forwards: every port of every service of this zone, in every mesh.
#[must_use]
pub fn ingress<'a>(
    zone: &ZoneName,
    resource: &Resource,
    meshes: impl IntoIterator<Item = (&'a MeshName, &'a Services)>,
) -> Document {
    let mut routes = BTreeMap::new();
    for (mesh, services) in meshes {
        for (name, service) in &services.own {
            for port in &service.ports {
                let of = ServicePort {
                    service: name.clone(),
                    port: port.port,
                };
                for server_name in server_names(mesh, zone, name, port) {
                    let route = IngressRoute {
                        server_name: server_name.clone(),
                        endpoints: endpoints::ingress_key(mesh, &of),
                        mesh: mesh.to_string(),
                        service: name.clone(),
                    };
                    routes.insert(server_name, route);
                }
            }
        }
    }
    let networking = resource.get::<ZoneIngress>().map(|i| &i.networking);
    let body = Body::Ingress(Ingress {
        zone: zone.to_string(),
        name: resource.meta.name.clone(),
        listen: networking.map(|n| address(n.address, n.port)),
        routes: routes.into_values().collect(),
        timeouts: Some(timeouts::built_in()),
    });
    let required = BTreeSet::from([features::INGRESS_SNI]);
    seal(document::INGRESS.to_owned(), required, body)
}

fn seal(name: String, required: BTreeSet<&str>, body: Body) -> Document {
    document::seal(
        name,
        required.into_iter().map(str::to_owned).collect(),
        body,
    )
}

fn probe(spec: &ServiceProbe) -> Probe {
    Probe {
        interval_ms: spec.interval_ms(),
        timeout_ms: spec.timeout_ms(),
        unhealthy_threshold: spec.unhealthy_threshold.unwrap_or(2),
        healthy_threshold: spec.healthy_threshold.unwrap_or(1),
    }
}

fn address(host: std::net::IpAddr, port: u16) -> SocketAddress {
    SocketAddress {
        host: host.to_string(),
        port: port.into(),
    }
}
