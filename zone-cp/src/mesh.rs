//! One mesh in this zone: what is known of it, what its proxies should run, and what they do run.
//!
//! Plain state. Events go in ([`Mesh::take`], [`Mesh::arrive`], [`Mesh::ack`] and so on) and only mark what they
//! touch; [`Mesh::settle`] recomputes what was touched, keeps what came out the same, and returns the messages for
//! those whom a difference concerns. Work follows the change (invariant 9): an endpoint that comes or goes compiles no
//! document, and a dataplane that nothing concerns is sent nothing. What concerns several is tried by one of them
//! first ([`canary`]).
//!
//! | module | what it does |
//! | --- | --- |
//! | `intake` | takes events in and marks what they touch |
//! | `recompute` | computes anew what was touched: services, policies, trust, documents |
//! | `sets` | the same for endpoints, and their differences |
//! | `settle` | in which order all that happens, and what is sent to whom |
//! | [`canary`] | who tries new documents first |
//! | `known` | what can be asked of a mesh |

pub mod canary;
mod intake;
mod known;
mod recompute;
mod sets;
mod settle;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_model::{
    Resource, Zone as ZoneKind, ZoneIngress,
    api::{Condition, Key},
};
use mesh_proto::{
    discovery::{EndpointsDelta, ToDataplane, to_dataplane},
    names::{MeshName, ZoneName},
    proxy::Document,
};

use crate::{
    compiler::{self, Needed, ServiceDocuments, ServiceRef},
    conditions::Causes,
    endpoints::{Address, ServicePort, Set},
    registry::Registry,
    scope::Scope,
    services::Services,
    tracker::{Currency, Tracker},
    view::{MeshView, Policies},
};
use canary::Rollouts;

pub use known::Snapshot;

/// Names that a status lists at most.
const NAMES_MAX: usize = 100;

/// What a mesh sees of the world around it: facts from outside any mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Zones that administrators have closed.
    pub closed_zones: BTreeSet<String>,
    /// Ingresses of other zones.
    pub ingresses: BTreeMap<String, BTreeSet<Address>>,
}

impl Surroundings {
    /// What global has given outside any mesh.
    #[must_use]
    pub fn of(global: &Scope) -> Self {
        let mut surroundings = Self::default();
        for resource in global.resources() {
            if let Some(zone) = resource.get::<ZoneKind>() {
                if !zone.enabled {
                    surroundings.closed_zones.insert(resource.meta.name.clone());
                }
            } else if let Some(ingress) = resource.get::<ZoneIngress>() {
                let (host, port) = ingress.networking.reachable();
                surroundings
                    .ingresses
                    .entry(resource.meta.zone.clone())
                    .or_default()
                    .insert(Address { host, port });
            }
        }
        surroundings
    }
}

/// One mesh.
#[derive(Debug)]
pub struct Mesh {
    name: MeshName,
    zone: ZoneName,
    scope: Scope,
    registry: Registry,
    surroundings: Surroundings,
    own_anchors: Vec<Vec<u8>>,
    dataplanes: BTreeMap<String, Arc<Resource>>,
    view: MeshView,
    proxies: BTreeMap<String, Arc<Document>>,
    services: ServiceDocuments,
    trust_document: Arc<Document>,
    trust_generation: u64,
    sets: BTreeMap<ServicePort, Set>,
    sessions: BTreeMap<String, Session>,
    /// Who uses which service, by its name.
    users: BTreeMap<String, BTreeMap<ServiceRef, BTreeSet<String>>>,
    counts: Counts,
    rollouts: Rollouts,
    /// Of its policies, as they were judged last.
    conditions: Vec<Condition>,
    /// Something they depend on is other since.
    conditions_dirty: bool,
    dirty: Dirty,
}

/// The compiled side of one registered dataplane.
#[derive(Debug, Default)]
struct Session {
    tracker: Tracker,
    /// Documents of the services it calls, and of the backends of routes.
    services: Needed,
    /// Endpoint sets that were sent on this stream, and go on as deltas.
    fed: BTreeSet<ServiceRef>,
    /// What brought about the documents it has not taken yet.
    causes: Causes,
    /// Of the trust document that was sent.
    trust_generation: u64,
    currency: Option<Currency>,
}

#[derive(Debug, Default)]
struct Counts {
    current: u32,
    pending: u32,
    refused: u32,
    silent: u32,
}

/// What was touched since [`Mesh::settle`].
#[derive(Debug, Default)]
struct Dirty {
    identities: bool,
    policies: bool,
    services: bool,
    trust: bool,
    every_proxy: bool,
    every_caller: bool,
    /// Dataplanes that registered, changed or went.
    dataplanes: BTreeSet<String>,
    /// Dataplanes whose listeners and permissions may be others.
    proxies: BTreeSet<String>,
    /// Dataplanes for whom the services they call may be others.
    callers: BTreeSet<String>,
    /// Dataplanes with a new stream.
    greet: BTreeSet<String>,
    /// Services that callers need to know differently.
    destinations: BTreeSet<String>,
    /// By what names policies refer to them, and referred to them before.
    shown: BTreeSet<String>,
    /// Services whose endpoints may be others.
    endpoints: BTreeSet<String>,
    every_endpoint: bool,
    /// Resources that changed.
    resources: BTreeSet<Key>,
}

/// What came out of [`Mesh::settle`].
#[derive(Debug, Default)]
pub struct Settled {
    /// Messages to dataplanes, in order.
    pub sends: Vec<(String, ToDataplane)>,
    /// Changes of the sets that ingresses use.
    pub ingress_sets: Vec<EndpointsDelta>,
    /// What an ingress forwards is different.
    pub routes_changed: bool,
    /// What the zone reports of this mesh may be different.
    pub report_changed: bool,
    /// For the log.
    pub warnings: Vec<String>,
}

impl Mesh {
    /// A mesh as it was stored, or empty.
    #[must_use]
    pub fn new(name: MeshName, zone: ZoneName, scope: Scope, registry: Registry) -> Self {
        let dataplanes: BTreeMap<String, Arc<Resource>> = registry
            .iter()
            .map(|(name, registration)| (name.to_owned(), registration.resource.clone()))
            .collect();
        let view = MeshView {
            mesh: name.clone(),
            zone: zone.clone(),
            identities: Vec::new(),
            policies: Policies::new(&name, Vec::new()),
            spiffe_ids: BTreeMap::new(),
            services: Services::default(),
            trust: BTreeMap::new(),
        };
        let sessions = dataplanes
            .keys()
            .map(|name| (name.clone(), Session::default()))
            .collect();
        let mut mesh = Self {
            trust_document: Arc::new(compiler::trust(&view)),
            trust_generation: 0,
            dirty: Dirty {
                identities: true,
                policies: true,
                services: true,
                trust: true,
                every_proxy: true,
                every_caller: true,
                dataplanes: dataplanes.keys().cloned().collect(),
                every_endpoint: true,
                ..Dirty::default()
            },
            name,
            zone,
            scope,
            registry,
            surroundings: Surroundings::default(),
            own_anchors: Vec::new(),
            dataplanes,
            view,
            proxies: BTreeMap::new(),
            services: ServiceDocuments::default(),
            sets: BTreeMap::new(),
            sessions,
            users: BTreeMap::new(),
            counts: Counts::default(),
            rollouts: Rollouts::default(),
            conditions: Vec::new(),
            conditions_dirty: true,
        };
        mesh.recount();
        mesh
    }
}

impl Counts {
    fn of(&mut self, currency: Currency) -> &mut u32 {
        match currency {
            Currency::Current => &mut self.current,
            Currency::Pending => &mut self.pending,
            Currency::Refused => &mut self.refused,
            Currency::Silent => &mut self.silent,
        }
    }
}

impl Dirty {
    fn is_empty(&self) -> bool {
        !(self.identities
            || self.policies
            || self.services
            || self.trust
            || self.every_proxy
            || self.every_caller
            || self.every_endpoint)
            && self.dataplanes.is_empty()
            && self.proxies.is_empty()
            && self.callers.is_empty()
            && self.greet.is_empty()
            && self.destinations.is_empty()
            && self.endpoints.is_empty()
    }
}

pub(crate) fn endpoints_message(delta: EndpointsDelta) -> ToDataplane {
    ToDataplane {
        message: Some(to_dataplane::Message::Endpoints(delta)),
    }
}
