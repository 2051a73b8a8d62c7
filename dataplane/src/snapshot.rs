//! What connections are handled by: one immutable value, read once per connection, replaced as a whole.
//!
//! Endpoint sets are the exception: they change often and one by one, so the snapshot holds them by reference and a
//! delta replaces one set only (invariant 9).

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use mesh_proto::names::ZoneName;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;

use crate::{
    config::{Endpoint, Inbound, Ingress, Outbound, Proxy, Service, Trust},
    permission::{Pattern, Permissions, Rule},
    tls::{self, identity::Identity},
};

/// Endpoints of one service or ingress route, replaced as a whole at each delta.
pub type EndpointSet = Arc<ArcSwap<Vec<Endpoint>>>;

/// What connections are handled by.
#[derive(Default)]
pub struct Snapshot {
    /// The sidecar's own document.
    pub proxy: Option<Arc<Proxy>>,
    /// By the address in the document, whatever the listener is bound to in fact.
    pub targets: HashMap<SocketAddr, Target>,
    /// By document name.
    pub services: HashMap<String, Arc<ServiceRoute>>,
    /// Whom to believe. `None`: nobody.
    pub trust: Option<Arc<Trust>>,
    /// The proxy's own certificate.
    pub identity: Option<Arc<Identity>>,
    /// Counts snapshots, so that what was looked at in one need not be looked at again.
    pub generation: u64,
}

/// What a listener is for.
#[derive(Clone)]
#[allow(missing_docs)]
pub enum Target {
    Inbound(Arc<InboundRoute>),
    Outbound(Outbound),
    Ingress(Arc<IngressTable>),
}

/// An inbound, ready for handshakes.
pub struct InboundRoute {
    /// The document's part.
    pub inbound: Arc<Inbound>,
    /// `None` while there is no certificate or no trust.
    pub tls: Option<Arc<ServerConfig>>,
}

/// A service, ready for connections.
pub struct ServiceRoute {
    /// The document's name, which is also the key of its endpoints.
    pub document: Arc<str>,
    /// The document.
    pub service: Arc<Service>,
    /// How to reach it in each zone.
    pub zones: HashMap<ZoneName, ZoneRoute>,
    /// Where it is.
    pub endpoints: EndpointSet,
}

/// A service in one zone.
pub struct ZoneRoute {
    /// SNI.
    pub server_name: ServerName<'static>,
    /// `None` while there is no certificate or no trust.
    pub tls: Option<Arc<ClientConfig>>,
}

/// What an ingress forwards.
pub struct IngressTable {
    /// The document.
    pub ingress: Arc<Ingress>,
    /// Endpoint sets by key.
    pub endpoints: HashMap<String, EndpointSet>,
}

/// What a snapshot is made of.
#[derive(Default)]
pub struct Parts {
    /// Of a sidecar.
    pub proxy: Option<Arc<Proxy>>,
    /// Of an ingress.
    pub ingress: Option<Arc<Ingress>>,
    /// By document name.
    pub services: HashMap<String, Arc<Service>>,
    /// Anchors.
    pub trust: Option<Arc<Trust>>,
    /// Own certificate.
    pub identity: Option<Arc<Identity>>,
    /// By key.
    pub endpoints: HashMap<String, EndpointSet>,
    /// Of the last snapshot.
    pub generation: u64,
}

impl Parts {
    /// The set with `key`; made empty where nothing is known of it yet.
    pub fn endpoint_set(&mut self, key: &str) -> EndpointSet {
        if let Some(set) = self.endpoints.get(key) {
            return set.clone();
        }
        let set = EndpointSet::default();
        self.endpoints.insert(key.to_owned(), set.clone());
        set
    }

    /// Joins the parts.
    #[must_use]
    pub fn snapshot(&mut self) -> Snapshot {
        let mut targets = HashMap::new();
        if let Some(proxy) = self.proxy.clone() {
            for inbound in &proxy.inbounds {
                let route = InboundRoute {
                    inbound: inbound.clone(),
                    tls: self.tls().map(|(identity, trust)| {
                        tls::server_config(
                            identity,
                            trust.clone(),
                            inbound.server_names.clone(),
                            handshake_permissions(inbound),
                        )
                    }),
                };
                targets.insert(inbound.listen, Target::Inbound(Arc::new(route)));
            }
            for outbound in &proxy.outbounds {
                targets.insert(outbound.listen, Target::Outbound(outbound.clone()));
            }
        }
        if let Some(ingress) = self.ingress.clone() {
            let keys = ingress.routes.values().map(|route| &route.endpoints);
            let endpoints = keys
                .map(|key| (key.clone(), self.endpoint_set(key)))
                .collect();
            let listen = ingress.listen;
            let table = IngressTable { ingress, endpoints };
            targets.insert(listen, Target::Ingress(Arc::new(table)));
        }
        let services = self.services.clone();
        let services = services
            .into_iter()
            .map(|(name, service)| {
                let route = self.service_route(&name, service);
                (name, Arc::new(route))
            })
            .collect();
        Snapshot {
            proxy: self.proxy.clone(),
            targets,
            services,
            trust: self.trust.clone(),
            identity: self.identity.clone(),
            generation: {
                self.generation += 1;
                self.generation
            },
        }
    }

    fn tls(&self) -> Option<(&Identity, &Arc<Trust>)> {
        Some((self.identity.as_deref()?, self.trust.as_ref()?))
    }

    fn service_route(&mut self, name: &str, service: Arc<Service>) -> ServiceRoute {
        let endpoints = self.endpoint_set(name);
        let zones = service
            .zones
            .iter()
            .map(|(zone, in_zone)| {
                let route = ZoneRoute {
                    server_name: in_zone.server_name.clone(),
                    tls: self.tls().map(|(identity, trust)| {
                        tls::client_config(identity, trust.clone(), in_zone.identities.clone())
                    }),
                };
                (zone.clone(), route)
            })
            .collect();
        ServiceRoute {
            document: name.into(),
            service,
            zones,
            endpoints,
        }
    }
}

/// Whom the handshake lets in. Where requests are judged one by one, each gets an answer that says why it is refused, so everybody
/// whose identity is verified may ask.
fn handshake_permissions(inbound: &Inbound) -> Arc<Permissions> {
    if !inbound.protocol.is_http() {
        return inbound.permissions.clone();
    }
    Arc::new(Permissions {
        allow: vec![Rule {
            pattern: Pattern::Any,
            origin: Arc::default(),
        }],
        ..Permissions::default()
    })
}
