//! One mesh in this zone: what is known of it, what its proxies should run, and what they do run.
//!
//! Plain state. Events go in ([`Mesh::take`], [`Mesh::arrive`], [`Mesh::ack`] and so on) and only mark what they
//! touch; [`Mesh::settle`] recomputes what was touched, keeps what came out the same, and returns the messages for
//! those whom a difference concerns. Work follows the change (invariant 9): an endpoint that comes or goes compiles no
//! document, and a dataplane that nothing concerns is sent nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_model::{
    Dataplane, MeshIdentity, MeshService, MeshTrafficPermission, MeshTrust, Resource, api::Key,
    dataplane::InboundState, identity,
};
use mesh_proto::{
    discovery::{
        Ack, DocumentVersion, Documents as DocumentsMessage, EndpointsDelta, InboundReadiness,
        Nack, ToDataplane, to_dataplane,
    },
    document,
    names::{MeshName, ZoneName},
    proxy::Document,
    zone::{Changes, DataplaneRefusal, MeshStatus},
};

use crate::{
    compiler::{self, ServiceRef},
    endpoints::{self, Address, Member, ServicePort, Set},
    registry::{Admission, Arrival, Registration, Registry, StreamId},
    scope::{Scope, Taken},
    services::{self, Services, Sources},
    tracker::{Currency, Documents, Tracker},
    view::{self, MeshSources, MeshView},
};

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
    service_documents: BTreeMap<ServiceRef, Arc<Document>>,
    trust_document: Arc<Document>,
    trust_generation: u64,
    sets: BTreeMap<ServicePort, Set>,
    sessions: BTreeMap<String, Session>,
    /// Who uses which service, by its name.
    users: BTreeMap<String, BTreeMap<ServiceRef, BTreeSet<String>>>,
    counts: Counts,
    dirty: Dirty,
}

/// The compiled side of one registered dataplane.
#[derive(Debug, Default)]
struct Session {
    tracker: Tracker,
    refs: BTreeSet<ServiceRef>,
    /// Endpoint sets that were sent on this stream, and go on as deltas.
    fed: BTreeSet<ServiceRef>,
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
    permissions: bool,
    services: bool,
    trust: bool,
    every_proxy: bool,
    /// Dataplanes that registered, changed or went.
    dataplanes: BTreeSet<String>,
    /// Dataplanes with a new stream.
    greet: BTreeSet<String>,
    /// Services that callers need to know differently.
    destinations: BTreeSet<String>,
    /// Services whose endpoints may be others.
    endpoints: BTreeSet<String>,
    every_endpoint: bool,
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
            permissions: Vec::new(),
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
                permissions: true,
                services: true,
                trust: true,
                every_proxy: true,
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
            service_documents: BTreeMap::new(),
            sets: BTreeMap::new(),
            sessions,
            users: BTreeMap::new(),
            counts: Counts::default(),
        };
        mesh.recount();
        mesh
    }

    // === what goes in ===

    /// Takes a message of this mesh's scope.
    pub fn take(&mut self, changes: Changes) -> Taken {
        let taken = self.scope.take(changes);
        if let Taken::Applied(changed) = &taken {
            for key in changed {
                self.touch(key);
            }
        }
        taken
    }

    fn touch(&mut self, key: &Key) {
        use mesh_model::Kind as _;
        match key.kind.as_str() {
            kind if kind == MeshIdentity::DESCRIPTOR.name => self.dirty.identities = true,
            kind if kind == MeshTrafficPermission::DESCRIPTOR.name => self.dirty.permissions = true,
            kind if kind == MeshService::DESCRIPTOR.name => self.dirty.services = true,
            kind if kind == MeshTrust::DESCRIPTOR.name => self.dirty.trust = true,
            _ => {}
        }
    }

    /// The world around the mesh is another.
    pub fn set_surroundings(&mut self, surroundings: &Surroundings) {
        if self.surroundings == *surroundings {
            return;
        }
        if self.surroundings.closed_zones != surroundings.closed_zones {
            self.dirty.services = true;
            self.dirty.trust = true;
        }
        self.dirty.every_endpoint = true;
        self.surroundings = surroundings.clone();
    }

    /// This zone's own CA certificates (DER). True where they are others than before.
    pub fn set_own_anchors(&mut self, anchors: Vec<Vec<u8>>) -> bool {
        let changed = self.own_anchors != anchors;
        if changed {
            self.own_anchors = anchors;
            self.dirty.trust = true;
        }
        changed
    }

    /// Whether this zone has a CA of the mesh, as far as the mesh was told.
    #[must_use]
    pub fn has_own_anchors(&self) -> bool {
        !self.own_anchors.is_empty()
    }

    /// A dataplane registers; `running` are the documents it runs already.
    pub fn arrive(&mut self, arrival: Arrival, running: &[DocumentVersion]) -> Admission {
        let name = arrival.resource.meta.name.clone();
        let resource = arrival.resource.clone();
        let admission = self.registry.admit(arrival);
        let Admission::Admitted { changed, .. } = &admission else {
            return admission;
        };
        let session = self.sessions.entry(name.clone()).or_default();
        session.tracker.attach(running);
        session.fed.clear();
        if *changed {
            self.dataplanes.insert(name.clone(), resource);
            self.dirty.dataplanes.insert(name.clone());
        }
        self.note_listening(&name);
        self.dirty.greet.insert(name);
        admission
    }

    /// The dataplane took documents.
    pub fn ack(&mut self, name: &str, ack: &Ack) {
        if let Some(session) = self.sessions.get_mut(name) {
            session.tracker.ack(&ack.documents);
        }
        self.note_listening(name);
        self.refresh_currency(name);
    }

    /// The dataplane refused documents.
    pub fn nack(&mut self, name: &str, nack: &Nack) {
        if let Some(session) = self.sessions.get_mut(name) {
            session.tracker.nack(&nack.documents);
        }
        self.refresh_currency(name);
    }

    /// The dataplane says which inbounds are ready.
    pub fn readiness(&mut self, name: &str, reported: &[InboundReadiness]) {
        let Some(networking) = self.dataplanes.get(name).and_then(|r| r.get::<Dataplane>()) else {
            return;
        };
        // Only names that exist are kept, so that a dataplane cannot fill memory.
        let known: Vec<_> = reported
            .iter()
            .filter(|r| {
                networking
                    .networking
                    .inbound
                    .iter()
                    .any(|i| i.name_or_port() == r.name)
            })
            .cloned()
            .collect();
        if self.registry.readiness(name, &known) {
            self.touch_endpoints_of(name);
        }
    }

    /// The dataplane drains: none of its endpoints may be used any more.
    pub fn leaving(&mut self, name: &str) {
        if let Some(registration) = self.registry.get_mut(name) {
            registration.leaving = true;
            self.touch_endpoints_of(name);
        }
    }

    /// The dataplane says when its certificate ends.
    pub fn certificate_ends(&mut self, name: &str, not_after: u64) {
        if let Some(registration) = self.registry.get_mut(name) {
            registration.certificate_not_after = not_after;
        }
    }

    /// The stream has ended; something was last heard at `heard_ms`. True where the registration is gone with it.
    pub fn disconnected(&mut self, name: &str, stream: StreamId, heard_ms: u64) -> bool {
        let gone = self.registry.disconnected(name, stream, heard_ms);
        if self.registry.get(name).is_none_or(|r| r.stream.is_none())
            && let Some(session) = self.sessions.get_mut(name)
        {
            session.tracker.detach();
            session.fed.clear();
        }
        if gone {
            self.forget(name);
        } else {
            self.refresh_currency(name);
        }
        gone
    }

    /// Forgets those whose grace period is over; their names are returned.
    pub fn expire(&mut self, now_ms: u64, grace_ms: u64) -> Vec<String> {
        let expired = self.registry.expire(now_ms, grace_ms);
        for name in &expired {
            self.forget(name);
        }
        expired
    }

    /// A new stream to global begins.
    pub fn begin_stream(&mut self) {
        self.scope.begin_stream();
    }

    /// The next stream to global asks for a snapshot of this mesh.
    pub fn forget_cursor(&mut self) {
        self.scope.forget_cursor();
    }

    fn forget(&mut self, name: &str) {
        self.touch_endpoints_of(name);
        self.dataplanes.remove(name);
        self.proxies.remove(name);
        self.view.spiffe_ids.remove(name);
        if let Some(session) = self.sessions.remove(name) {
            self.set_users(name, &session.refs, &BTreeSet::new());
            if let Some(currency) = session.currency {
                *self.counts.of(currency) -= 1;
            }
        }
        self.dirty.dataplanes.insert(name.to_owned());
    }

    /// Its endpoints may be used once it has acknowledged its listeners.
    fn note_listening(&mut self, name: &str) {
        let runs = self
            .sessions
            .get(name)
            .is_some_and(|s| s.tracker.runs_any(document::PROXY));
        if let Some(registration) = self.registry.get_mut(name).filter(|r| runs && !r.listening) {
            registration.listening = true;
            self.touch_endpoints_of(name);
        }
    }

    fn touch_endpoints_of(&mut self, name: &str) {
        if let Some(services) = self.view.services.behind.get(name) {
            self.dirty.endpoints.extend(services.iter().cloned());
        }
    }

    // === recomputing ===

    /// Recomputes what was touched. `generation_of` numbers versions of the trust document. `additive`: see
    /// [`endpoints::whole`].
    pub fn settle(
        &mut self,
        revision: u64,
        additive: bool,
        generation_of: impl FnOnce(&str) -> u64,
    ) -> Settled {
        let mut dirty = std::mem::take(&mut self.dirty);
        let mut settled = Settled::default();
        if dirty.is_empty() {
            return settled;
        }
        let mut affected = dirty.greet.clone();
        self.settle_view(&mut dirty, &mut settled);
        if dirty.trust {
            self.settle_trust(&mut affected, &mut settled, generation_of);
        }
        self.settle_proxies(&dirty, &mut affected);
        self.settle_service_documents(&dirty, &mut affected);
        let changed = self.settle_sets(&dirty, &mut settled);
        // Make before break: endpoints go before the documents that named their zone, and come after.
        self.send_deltas(&changed, false, &mut settled);
        for name in &affected {
            self.send_documents(name, revision, dirty.greet.contains(name), &mut settled);
        }
        self.send_deltas(&changed, true, &mut settled);
        for name in &affected {
            self.feed(name, additive, &mut settled);
            self.refresh_currency(name);
        }
        settled
    }

    /// Identities, permissions, services.
    fn settle_view(&mut self, dirty: &mut Dirty, settled: &mut Settled) {
        let registrations_changed = !dirty.dataplanes.is_empty();
        if !(dirty.identities || dirty.permissions || dirty.services || registrations_changed) {
            return;
        }
        let resources: Vec<_> = self.scope.resources().cloned().collect();
        let unreadable = self.unreadable();
        let sources = MeshSources {
            mesh: &self.name,
            zone: &self.zone,
            resources: &resources,
            unreadable: &unreadable,
            dataplanes: &self.dataplanes,
            closed_zones: &self.surroundings.closed_zones,
            own_anchors: &self.own_anchors,
        };
        if dirty.identities {
            let identities = view::of_kind::<MeshIdentity>(sources);
            self.view.spiffe_ids = view::spiffe_ids(&identities, sources);
            self.view.identities = identities;
            dirty.every_proxy = true;
            dirty.trust = true;
        } else {
            let identities: Vec<&Resource> = self.view.identities.iter().map(Arc::as_ref).collect();
            for name in &dirty.dataplanes {
                let dataplane = self.dataplanes.get(name);
                match dataplane.and_then(|d| identity::spiffe_id(&identities, d, &self.zone).ok()) {
                    Some(id) => drop(self.view.spiffe_ids.insert(name.clone(), id.to_string())),
                    None => drop(self.view.spiffe_ids.remove(name)),
                }
            }
        }
        if dirty.permissions {
            let permissions = view::permissions(sources);
            dirty.every_proxy |= permissions != self.view.permissions;
            self.view.permissions = permissions;
        }
        if dirty.identities || dirty.services || registrations_changed {
            let services = services::services(Sources {
                mesh: &self.name,
                zone: &self.zone,
                resources: &resources,
                dataplanes: &self.dataplanes,
                spiffe_ids: &self.view.spiffe_ids,
                closed_zones: &self.surroundings.closed_zones,
            });
            // A resource also says whether an inbound is ready, and whether a probe has to.
            let registered = dirty.dataplanes.clone();
            self.replace_services(services, dirty, settled);
            let behind = registered
                .iter()
                .filter_map(|name| self.view.services.behind.get(name));
            dirty.endpoints.extend(behind.flatten().cloned());
        }
    }

    fn unreadable(&self) -> Vec<(Key, Arc<[u8]>)> {
        self.scope
            .unreadable()
            .map(|(key, record, _)| (key.clone(), record.json.clone()))
            .collect()
    }

    fn replace_services(&mut self, new: Services, dirty: &mut Dirty, settled: &mut Settled) {
        let old = std::mem::replace(&mut self.view.services, new);
        let new = &self.view.services;
        let names: BTreeSet<&String> = old.own.keys().chain(new.own.keys()).collect();
        for name in names {
            let (before, after) = (old.own.get(name), new.own.get(name));
            if before == after {
                continue;
            }
            settled.report_changed = true;
            dirty.endpoints.insert(name.clone());
            let same_shape = matches!((before, after), (Some(b), Some(a)) if b.same_shape(a));
            if !same_shape {
                settled.routes_changed = true;
                // The server names of those behind it are others.
                let members = |s: &services::OwnService| {
                    s.members
                        .values()
                        .flatten()
                        .map(|m| m.dataplane.clone())
                        .collect::<Vec<_>>()
                };
                let behind = [before, after].into_iter().flatten().flat_map(members);
                dirty.dataplanes.extend(behind);
            }
        }
        let names: BTreeSet<&String> = old
            .destinations
            .keys()
            .chain(new.destinations.keys())
            .collect();
        for name in names {
            if old.destinations.get(name) != new.destinations.get(name) {
                dirty.endpoints.insert(name.clone());
                dirty.destinations.insert(name.clone());
            }
        }
    }

    fn settle_trust(
        &mut self,
        affected: &mut BTreeSet<String>,
        settled: &mut Settled,
        generation_of: impl FnOnce(&str) -> u64,
    ) {
        let resources: Vec<_> = self.scope.resources().cloned().collect();
        self.view.trust = view::trust(
            &self.view.identities,
            MeshSources {
                mesh: &self.name,
                zone: &self.zone,
                resources: &resources,
                unreadable: &[],
                dataplanes: &self.dataplanes,
                closed_zones: &self.surroundings.closed_zones,
                own_anchors: &self.own_anchors,
            },
        );
        settled.report_changed = true;
        let document = compiler::trust(&self.view);
        if document.version != self.trust_document.version || self.trust_generation == 0 {
            self.trust_generation = generation_of(&document.version);
            self.trust_document = Arc::new(document);
            affected.extend(self.sessions.keys().cloned());
        }
    }

    fn settle_proxies(&mut self, dirty: &Dirty, affected: &mut BTreeSet<String>) {
        let names: Vec<String> = if dirty.every_proxy {
            self.dataplanes.keys().cloned().collect()
        } else {
            dirty.dataplanes.iter().cloned().collect()
        };
        for name in names {
            let Some(resource) = self.dataplanes.get(&name).cloned() else {
                continue;
            };
            let document = compiler::proxy(&self.view, &resource);
            if self.proxies.get(&name).map(|known| &known.version) != Some(&document.version) {
                self.proxies.insert(name.clone(), Arc::new(document));
                affected.insert(name.clone());
            }
            let refs = compiler::declared(&resource);
            let old = self.sessions.entry(name.clone()).or_default().refs.clone();
            if old != refs {
                self.set_users(&name, &old, &refs);
                if let Some(session) = self.sessions.get_mut(&name) {
                    session.refs = refs;
                }
                affected.insert(name);
            }
        }
    }

    fn set_users(&mut self, name: &str, old: &BTreeSet<ServiceRef>, new: &BTreeSet<ServiceRef>) {
        for reference in old.difference(new) {
            let Some(of_service) = self.users.get_mut(&reference.of.service) else {
                continue;
            };
            if let Some(names) = of_service.get_mut(reference) {
                names.remove(name);
                if names.is_empty() {
                    of_service.remove(reference);
                    self.service_documents.remove(reference);
                }
            }
            if of_service.is_empty() {
                self.users.remove(&reference.of.service);
            }
        }
        for reference in new.difference(old) {
            self.dirty_set(&reference.of);
            self.users
                .entry(reference.of.service.clone())
                .or_default()
                .entry(reference.clone())
                .or_default()
                .insert(name.to_owned());
        }
    }

    /// A set that nobody used before is computed now.
    fn dirty_set(&mut self, of: &ServicePort) {
        if !self.sets.contains_key(of) {
            let set = self.compute_set(of);
            self.sets.insert(of.clone(), set);
        }
    }

    fn settle_service_documents(&mut self, dirty: &Dirty, affected: &mut BTreeSet<String>) {
        for (service, references) in &self.users {
            let touched = dirty.destinations.contains(service);
            for (reference, names) in references {
                if self.service_documents.contains_key(reference) && !touched {
                    continue;
                }
                let document = compiler::service(&self.view, reference);
                let known = self.service_documents.get(reference).map(|d| &d.version);
                if known != Some(&document.version) {
                    self.service_documents
                        .insert(reference.clone(), Arc::new(document));
                    affected.extend(names.iter().cloned());
                }
            }
        }
    }

    fn compute_set(&self, of: &ServicePort) -> Set {
        let mut set = Set::new();
        if let Some(members) = self
            .view
            .services
            .own
            .get(&of.service)
            .and_then(|service| service.members.get(&of.port))
        {
            set.extend(endpoints::own(&self.zone, members, |member| {
                self.is_ready(member)
            }));
        }
        for (zone, there) in self
            .view
            .services
            .destinations
            .get(&of.service)
            .into_iter()
            .flatten()
        {
            let offers = there.available && there.ports.iter().any(|port| port.port == of.port);
            if *zone == *self.zone.as_str() || !offers {
                continue;
            }
            if let Some(ingresses) = self.surroundings.ingresses.get(zone) {
                set.extend(endpoints::remote(zone, ingresses));
            }
        }
        set
    }

    fn is_ready(&self, member: &Member) -> bool {
        let Some(registration) = self.registry.get(&member.dataplane) else {
            return false;
        };
        let inbound = registration.resource.get::<Dataplane>().and_then(|d| {
            d.networking
                .inbound
                .iter()
                .find(|i| i.name_or_port() == member.inbound)
        });
        let Some(inbound) = inbound else { return false };
        let reported = registration.readiness.get(&member.inbound).copied();
        // Without a probe an application is ready until its proxy says otherwise; with one it is when the probe says so.
        let ready = reported.unwrap_or(inbound.service_probe.is_none());
        ready
            && registration.listening
            && !registration.leaving
            && inbound.stated() == InboundState::Ready
    }

    /// The sets that are other than before: old and new.
    fn settle_sets(
        &mut self,
        dirty: &Dirty,
        settled: &mut Settled,
    ) -> Vec<(ServicePort, Set, Set)> {
        let touched = |service: &String| dirty.every_endpoint || dirty.endpoints.contains(service);
        let mut ports: BTreeSet<ServicePort> = self
            .sets
            .keys()
            .filter(|of| touched(&of.service))
            .cloned()
            .collect();
        let own = self
            .view
            .services
            .own
            .iter()
            .filter(|(name, _)| touched(name));
        for (name, service) in own {
            ports.extend(service.members.keys().map(|port| ServicePort {
                service: name.clone(),
                port: *port,
            }));
        }
        let used = self.users.iter().filter(|(name, _)| touched(name));
        ports.extend(used.flat_map(|(_, refs)| refs.keys().map(|reference| reference.of.clone())));
        let mut changed = Vec::new();
        for of in ports {
            let new = self.compute_set(&of);
            let old = self.sets.get(&of).cloned().unwrap_or_default();
            let exists = self
                .view
                .services
                .own
                .get(&of.service)
                .is_some_and(|s| s.members.contains_key(&of.port));
            let used = self
                .users
                .get(&of.service)
                .is_some_and(|refs| refs.keys().any(|r| r.of == of));
            if exists || used {
                self.sets.insert(of.clone(), new.clone());
            } else {
                self.sets.remove(&of);
            }
            if new != old {
                let here = self.zone.as_str();
                let key = endpoints::ingress_key(&self.name, &of);
                let (before, after) = (
                    endpoints::in_zone(&old, here),
                    endpoints::in_zone(&new, here),
                );
                settled
                    .ingress_sets
                    .extend(endpoints::delta(&key, &before, &after));
                settled.report_changed |= before.is_empty() != after.is_empty();
                changed.push((of, old, new));
            }
        }
        changed
    }

    /// Sends differences to those who have the sets: what goes, or (`coming`) what comes.
    fn send_deltas(
        &self,
        changed: &[(ServicePort, Set, Set)],
        coming: bool,
        settled: &mut Settled,
    ) {
        for (of, old, new) in changed {
            let users = self.users.get(&of.service).into_iter().flatten();
            for (reference, names) in users.filter(|(reference, _)| reference.of == *of) {
                let (old, new) = match &reference.zone {
                    None => (old.clone(), new.clone()),
                    Some(zone) => (endpoints::in_zone(old, zone), endpoints::in_zone(new, zone)),
                };
                let Some(mut delta) = endpoints::delta(&reference.document_name(), &old, &new)
                else {
                    continue;
                };
                if coming {
                    delta.remove.clear();
                } else {
                    delta.put.clear();
                }
                if delta.put.is_empty() && delta.remove.is_empty() {
                    continue;
                }
                for name in names {
                    if self
                        .sessions
                        .get(name)
                        .is_some_and(|s| s.fed.contains(reference))
                    {
                        settled
                            .sends
                            .push((name.clone(), endpoints_message(delta.clone())));
                    }
                }
            }
        }
    }

    fn send_documents(&mut self, name: &str, revision: u64, greet: bool, settled: &mut Settled) {
        let Some(session) = self.sessions.get_mut(name) else {
            return;
        };
        let mut documents = Documents::new();
        documents.insert(document::TRUST.to_owned(), self.trust_document.clone());
        if let Some(proxy) = self.proxies.get(name) {
            documents.insert(document::PROXY.to_owned(), proxy.clone());
        }
        for reference in &session.refs {
            if let Some(document) = self.service_documents.get(reference) {
                documents.insert(document.name.clone(), document.clone());
            }
        }
        if greet && let Some(registration) = self.registry.get(name) {
            let missing = compiler::missing_features(&documents, &registration.features);
            if !missing.is_empty() {
                settled.warnings.push(format!(
                    "dataplane {name} (version {}) lacks {missing:?} and will refuse what needs it: update it",
                    registration.version
                ));
            }
        }
        session.tracker.want(documents);
        let unsent = session.tracker.unsent();
        let connected = self.registry.get(name).is_some_and(|r| r.stream.is_some());
        if !connected || (unsent.is_empty() && !greet) {
            return;
        }
        let message = DocumentsMessage {
            revision,
            put: unsent
                .put
                .iter()
                .map(|document| Document::clone(document))
                .collect(),
            remove: unsent.remove,
            trust_generation: self.trust_generation,
        };
        let message = ToDataplane {
            message: Some(to_dataplane::Message::Documents(message)),
        };
        settled.sends.push((name.to_owned(), message));
    }

    /// Sends whole sets that a dataplane uses and has not got on this stream.
    fn feed(&mut self, name: &str, additive: bool, settled: &mut Settled) {
        let connected = self.registry.get(name).is_some_and(|r| r.stream.is_some());
        let Some(session) = self.sessions.get_mut(name).filter(|_| connected) else {
            return;
        };
        let lacking: Vec<_> = session.refs.difference(&session.fed).cloned().collect();
        for reference in lacking {
            let set = self.sets.get(&reference.of).cloned().unwrap_or_default();
            let set = match &reference.zone {
                None => set,
                Some(zone) => endpoints::in_zone(&set, zone),
            };
            let whole = endpoints::whole(&reference.document_name(), &set, additive);
            if !(additive && set.is_empty()) {
                settled
                    .sends
                    .push((name.to_owned(), endpoints_message(whole)));
            }
            session.fed.insert(reference);
        }
        session
            .fed
            .retain(|reference| session.refs.contains(reference));
    }

    /// Everything that connected dataplanes have of endpoints is sent whole again: what they had beside it goes.
    pub fn feed_again(&mut self) -> Vec<(String, ToDataplane)> {
        let mut settled = Settled::default();
        let names: Vec<_> = self.sessions.keys().cloned().collect();
        for name in names {
            if let Some(session) = self.sessions.get_mut(&name) {
                session.fed.clear();
            }
            self.feed(&name, false, &mut settled);
        }
        settled.sends
    }

    // === what is known ===

    /// The mesh's name.
    #[must_use]
    pub fn name(&self) -> &MeshName {
        &self.name
    }

    /// What was synchronised.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Who is registered.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Everything the compiler knows.
    #[must_use]
    pub fn view(&self) -> &MeshView {
        &self.view
    }

    /// The services of the mesh.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.view.services
    }

    /// The registration of a dataplane.
    #[must_use]
    pub fn registration(&self, name: &str) -> Option<&Registration> {
        self.registry.get(name)
    }

    /// Documents of a registered dataplane.
    #[must_use]
    pub fn tracker(&self, name: &str) -> Option<&Tracker> {
        self.sessions.get(name).map(|session| &session.tracker)
    }

    /// Endpoints of a service port, in one zone or all.
    #[must_use]
    pub fn endpoints(&self, reference: &ServiceRef) -> Set {
        let set = self.sets.get(&reference.of).cloned().unwrap_or_default();
        match &reference.zone {
            None => set,
            Some(zone) => endpoints::in_zone(&set, zone),
        }
    }

    /// Every set that ingresses use, by its key.
    #[must_use]
    pub fn ingress_sets(&self) -> BTreeMap<String, Set> {
        let of_own = |of: &ServicePort| {
            self.view
                .services
                .own
                .get(&of.service)
                .is_some_and(|s| s.members.contains_key(&of.port))
        };
        self.sets
            .iter()
            .filter(|(of, _)| of_own(of))
            .map(|(of, set)| {
                let here = endpoints::in_zone(set, self.zone.as_str());
                (endpoints::ingress_key(&self.name, of), here)
            })
            .collect()
    }

    /// Whether a service of this zone has an endpoint here.
    #[must_use]
    pub fn is_available(&self, service: &str) -> bool {
        let Some(own) = self.view.services.own.get(service) else {
            return false;
        };
        own.members.keys().any(|port| {
            let of = ServicePort {
                service: service.to_owned(),
                port: *port,
            };
            let set = self.sets.get(&of);
            set.is_some_and(|set| set.values().any(|place| place.zone == self.zone.as_str()))
        })
    }

    /// What this zone owns of the mesh, as it reports it.
    #[must_use]
    pub fn reports(&self) -> Vec<Resource> {
        let services = self.view.services.own.iter();
        let mut reports: Vec<_> = services
            .map(|(name, service)| service.report(&self.zone, self.is_available(name)))
            .collect();
        for (source, domain) in self.view.own_domains() {
            let creates = source
                .get::<MeshIdentity>()
                .is_some_and(MeshIdentity::creates_trust);
            if !creates || self.own_anchors.is_empty() {
                continue;
            }
            let meta = mesh_model::Meta::new(self.name.as_str(), &source.meta.name)
                .in_zone(self.zone.as_str());
            let anchors = self.own_anchors.iter().map(Vec::as_slice);
            reports.push(Resource::new(
                meta,
                MeshTrust::from_der(domain.as_str(), anchors),
            ));
        }
        reports
    }

    /// Whether every connected dataplane has the newest trust document.
    #[must_use]
    pub fn trust_is_acknowledged(&self) -> bool {
        self.sessions
            .values()
            .filter(|s| s.currency != Some(Currency::Silent))
            .all(|s| s.tracker.has(document::TRUST))
    }

    /// How far the mesh's dataplanes are, at `revision`.
    #[must_use]
    pub fn status(&self, revision: u64) -> MeshStatus {
        let named = |wanted: Currency, count: u32| -> Vec<String> {
            if count == 0 {
                return Vec::new();
            }
            self.sessions
                .iter()
                .filter(|(_, s)| s.currency == Some(wanted))
                .take(NAMES_MAX)
                .map(|(name, _)| name.clone())
                .collect()
        };
        let refused = named(Currency::Refused, self.counts.refused)
            .into_iter()
            .flat_map(|dataplane| {
                let refused = self
                    .tracker(&dataplane)
                    .map(Tracker::refused)
                    .cloned()
                    .unwrap_or_default();
                refused
                    .into_iter()
                    .map(move |(document, refusal)| DataplaneRefusal {
                        dataplane: dataplane.clone(),
                        document,
                        reason: refusal.reason,
                    })
            })
            .take(NAMES_MAX)
            .collect();
        MeshStatus {
            mesh: self.name.to_string(),
            revision,
            dataplanes: u32::try_from(self.sessions.len()).unwrap_or(u32::MAX),
            current: self.counts.current,
            pending: named(Currency::Pending, self.counts.pending),
            refused,
            silent: named(Currency::Silent, self.counts.silent),
            pending_count: self.counts.pending,
            refused_count: self.counts.refused,
            silent_count: self.counts.silent,
        }
    }

    fn refresh_currency(&mut self, name: &str) {
        let Some(session) = self.sessions.get_mut(name) else {
            return;
        };
        let now = session.tracker.currency();
        if let Some(before) = session.currency.replace(now) {
            *self.counts.of(before) -= 1;
        }
        *self.counts.of(now) += 1;
    }

    fn recount(&mut self) {
        self.counts = Counts::default();
        for session in self.sessions.values_mut() {
            let currency = session.tracker.currency();
            session.currency = Some(currency);
            *self.counts.of(currency) += 1;
        }
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
            || self.permissions
            || self.services
            || self.trust
            || self.every_proxy
            || self.every_endpoint)
            && self.dataplanes.is_empty()
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
