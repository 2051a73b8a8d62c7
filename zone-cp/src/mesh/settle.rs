//! Recomputing what was touched, in the order in which one thing depends on the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use mesh_model::{
    Dataplane, MeshIdentity, MeshTCPRoute, Resource,
    api::Key,
    dataplane::InboundState,
    identity,
    labels::{self, Labels},
    policy, selection,
};
use mesh_proto::{
    discovery::{Documents as DocumentsMessage, ToDataplane, to_dataplane},
    document,
    proxy::Document,
};

use super::{
    Dirty, Mesh, Settled,
    canary::{Candidate, Standing, Stop},
    endpoints_message,
};
use crate::{
    compiler::{self, Needed},
    endpoints::{self, Member, ServicePort, Set},
    registry::Registration,
    services::{self, Services, Sources},
    tracker::Documents,
    view::{self, MeshSources, Policies},
};

impl Mesh {
    /// Recomputes what was touched, and goes on with what waited for a canary. `generation_of` numbers versions of the
    /// trust document. `additive`: see [`endpoints::whole`].
    pub fn settle(
        &mut self,
        revision: u64,
        additive: bool,
        now: Instant,
        generation_of: impl FnOnce(&str) -> u64,
    ) -> Settled {
        let mut dirty = std::mem::take(&mut self.dirty);
        let mut settled = Settled::default();
        let mut released = self.judge_canaries(now, &mut settled);
        if dirty.is_empty() && released.is_empty() {
            return settled;
        }
        let mut affected = dirty.greet.clone();
        self.settle_view(&mut dirty, &mut settled);
        if dirty.trust {
            self.settle_trust(&mut affected, &mut settled, generation_of);
        }
        self.settle_proxies(&dirty, &mut affected);
        self.settle_callers(&mut dirty, &mut affected);
        let changed = self.settle_sets(&dirty, &mut settled);
        // Make before break: endpoints go before the documents that named their zone, and come after.
        self.send_deltas(&changed, false, &mut settled);
        for name in affected.union(&released) {
            self.want_documents(name, &dirty.resources);
        }
        let go = self.plan(&affected, &dirty.greet, &mut released, now);
        for name in &go {
            self.send_documents(name, revision, dirty.greet.contains(name), &mut settled);
        }
        self.send_deltas(&changed, true, &mut settled);
        for name in affected.union(&go) {
            self.feed(name, additive, &mut settled);
            self.refresh_currency(name);
        }
        settled
    }

    /// Identities, policies, services.
    pub(super) fn settle_view(&mut self, dirty: &mut Dirty, settled: &mut Settled) {
        let registrations_changed = !dirty.dataplanes.is_empty();
        self.conditions_dirty |= dirty.policies || registrations_changed;
        if !(dirty.identities || dirty.policies || dirty.services || registrations_changed) {
            return;
        }
        let resources: Vec<_> = self.scope.resources().cloned().collect();
        let unreadable = self.scope.unreadable_texts();
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
        if dirty.policies {
            let policies = view::policies(sources);
            touch_selected(
                &self.view.policies.changes(&policies),
                &self.dataplanes,
                dirty,
            );
            self.view.policies = Policies::new(&self.name, policies);
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

    pub(super) fn replace_services(
        &mut self,
        new: Services,
        dirty: &mut Dirty,
        settled: &mut Settled,
    ) {
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
                dirty.proxies.extend(behind);
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
        // Policies refer to declared services that nobody serves as well.
        if old.targets != new.targets {
            self.conditions_dirty = true;
            let (before, after) = (by_name(&old.targets), by_name(&new.targets));
            let names = before.keys().chain(after.keys());
            for name in names.filter(|name| before.get(*name) != after.get(*name)) {
                dirty.destinations.insert((*name).to_owned());
                let both = [before.get(name), after.get(name)];
                let shown = both
                    .into_iter()
                    .flatten()
                    .flat_map(|target| shown_names(target));
                dirty.shown.extend(shown.cloned());
            }
        }
    }

    pub(super) fn settle_trust(
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

    pub(super) fn settle_proxies(&mut self, dirty: &Dirty, affected: &mut BTreeSet<String>) {
        let names: Vec<String> = if dirty.every_proxy {
            self.dataplanes.keys().cloned().collect()
        } else {
            dirty.dataplanes.union(&dirty.proxies).cloned().collect()
        };
        for name in names {
            let Some(resource) = self.dataplanes.get(&name) else {
                continue;
            };
            let document = compiler::proxy(&self.view, resource);
            if self.proxies.get(&name).map(|known| &known.version) != Some(&document.version) {
                self.proxies.insert(name.clone(), Arc::new(document));
                affected.insert(name);
            }
        }
    }

    /// Documents of services, for those who call them.
    pub(super) fn settle_callers(&mut self, dirty: &mut Dirty, affected: &mut BTreeSet<String>) {
        self.services.forget(&dirty.destinations);
        for service in &dirty.destinations {
            let users = self.users.get(service).into_iter();
            let names = users.flat_map(|of| of.values()).flatten();
            dirty.callers.extend(names.cloned());
        }
        self.touch_routed(dirty);
        let names: Vec<String> = if dirty.every_caller {
            self.dataplanes.keys().cloned().collect()
        } else {
            dirty.dataplanes.union(&dirty.callers).cloned().collect()
        };
        let some = !names.is_empty();
        for name in names {
            let Some(resource) = self.dataplanes.get(&name).cloned() else {
                continue;
            };
            let called = compiler::declared(&resource);
            let needed = self.services.needed(&self.view, &resource, &called);
            let session = self.sessions.entry(name.clone()).or_default();
            if session.services == needed {
                continue;
            }
            let old = std::mem::replace(&mut session.services, needed.clone());
            self.set_users(&name, &old, &needed);
            affected.insert(name);
        }
        if some {
            self.services.tidy();
        }
    }

    /// Marks those who call a service with a route whose references may mean something else than before: what they mean
    /// depends on which services there are.
    fn touch_routed(&self, dirty: &mut Dirty) {
        if dirty.shown.is_empty() {
            return;
        }
        let policies = self.view.policies.resources.iter();
        let entries = policies
            .filter_map(|policy| policy.get::<MeshTCPRoute>())
            .flat_map(|route| &route.to);
        for entry in entries {
            let mut backends = entry.rules.iter().flat_map(|r| &r.default.backend_refs);
            let may_differ = backends.any(|b| {
                shown_name(b.name.as_ref(), &b.labels).is_none_or(|name| dirty.shown.contains(name))
            });
            if !may_differ {
                continue;
            }
            let called = shown_name(entry.target_ref.name.as_ref(), &entry.target_ref.labels);
            for (service, references) in &self.users {
                let target = self.view.services.target(service);
                if called.is_none_or(|called| shown_names(&target).any(|name| name == called)) {
                    let names = references.values().flatten();
                    dirty.callers.extend(names.cloned());
                }
            }
        }
    }

    /// Who uses which service.
    pub(super) fn set_users(&mut self, name: &str, old: &Needed, new: &Needed) {
        for reference in old.keys().filter(|r| !new.contains_key(*r)) {
            let Some(of_service) = self.users.get_mut(&reference.of.service) else {
                continue;
            };
            if let Some(names) = of_service.get_mut(reference) {
                names.remove(name);
                if names.is_empty() {
                    of_service.remove(reference);
                }
            }
            if of_service.is_empty() {
                self.users.remove(&reference.of.service);
            }
        }
        for reference in new.keys().filter(|r| !old.contains_key(*r)) {
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
    pub(super) fn dirty_set(&mut self, of: &ServicePort) {
        if !self.sets.contains_key(of) {
            let set = self.compute_set(of);
            self.sets.insert(of.clone(), set);
        }
    }

    pub(super) fn compute_set(&self, of: &ServicePort) -> Set {
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

    /// Whether a workload of a service takes connections.
    #[must_use]
    pub fn is_ready(&self, member: &Member) -> bool {
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
    pub(super) fn settle_sets(
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
    pub(super) fn send_deltas(
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

    /// Looks at the canaries' answers: stops what they refuse, and returns those who are held no longer.
    fn judge_canaries(&mut self, now: Instant, settled: &mut Settled) -> BTreeSet<String> {
        let (sessions, registry) = (&self.sessions, &self.registry);
        let verdicts = self.rollouts.judge(now, |canary| {
            let Some(session) = sessions.get(canary) else {
                return Standing::default();
            };
            let refused = session.tracker.refused().iter();
            Standing {
                stream: registry.get(canary).and_then(|r| r.stream),
                answered: session.tracker.has_answered(),
                declined: session.tracker.has_declined(),
                refused: refused
                    .filter(|(_, refusal)| !refusal.local)
                    .map(|(document, refusal)| (document.clone(), refusal.version.clone()))
                    .collect(),
            }
        });
        // A canary may run after all what it had refused: its host was mended, or it was started anew.
        let runs = |stop: &Stop| {
            let same = |r: &Registration| r.version == stop.version;
            stop.canaries.iter().any(|(canary, refused)| {
                let tracker = sessions.get(canary).map(|s| &s.tracker);
                let running = tracker.and_then(|t| t.running(&stop.document));
                running == Some(refused) && registry.get(canary).is_some_and(same)
            })
        };
        let mut released = self.rollouts.resume(&BTreeSet::new(), |_, _| None, runs);
        for verdict in verdicts {
            for (document, canaries) in verdict.refused {
                let held: BTreeMap<_, _> = verdict
                    .released
                    .iter()
                    .filter_map(|name| {
                        let tracker = &self.sessions.get(name)?.tracker;
                        let wanted = tracker.wanted().get(&document)?;
                        let lacks = tracker.lacks(&document);
                        lacks.then(|| (name.clone(), wanted.version.clone()))
                    })
                    .collect();
                if !held.is_empty() {
                    let names: Vec<_> = canaries.keys().map(String::as_str).collect();
                    settled.warnings.push(format!(
                        "the roll-out of document {document} stops: it is refused by those who tried it, {} (version {}); {} others of their version go on with what they have",
                        names.join(" and "),
                        verdict.version,
                        held.len()
                    ));
                }
                self.rollouts.stop(Stop {
                    document,
                    version: verdict.version.clone(),
                    canaries,
                    held,
                });
            }
            released.extend(verdict.released);
        }
        released
    }

    /// Who is sent documents now: those who have just come, those who are held no longer, and who else need not wait
    /// for a canary.
    fn plan(
        &mut self,
        affected: &BTreeSet<String>,
        greet: &BTreeSet<String>,
        released: &mut BTreeSet<String>,
        now: Instant,
    ) -> BTreeSet<String> {
        for name in greet {
            self.rollouts.forget(name);
        }
        let sessions = &self.sessions;
        let wanted = |name: &str, document: &str| {
            let document = sessions.get(name)?.tracker.wanted().get(document)?;
            Some(document.version.clone())
        };
        let rejoining = self.rollouts.resume(affected, wanted, |_| false);
        // What was stopped a moment ago and is overtaken already is tried anew.
        released.retain(|name| !rejoining.contains(name));
        let lacking = affected
            .union(&rejoining)
            .filter(|name| !greet.contains(*name) && !released.contains(*name))
            .filter_map(|name| {
                let tracker = &self.sessions.get(name)?.tracker;
                let registration = self.registry.get(name)?;
                let stream = registration.stream?;
                tracker
                    .lacks_any_without(&self.rollouts.stopped(name))
                    .then(|| Candidate {
                        name: name.clone(),
                        version: registration.version.clone(),
                        stream,
                        declined: tracker.has_declined(),
                        owes: !tracker.has_answered(),
                        rejoins: !affected.contains(name),
                    })
            })
            .collect();
        let mut go = self.rollouts.plan(lacking, now);
        go.extend(greet.iter().cloned());
        go.append(released);
        go
    }

    fn want_documents(&mut self, name: &str, changed: &BTreeSet<Key>) {
        let Some(session) = self.sessions.get_mut(name) else {
            return;
        };
        let mut documents = Documents::new();
        documents.insert(document::TRUST.to_owned(), self.trust_document.clone());
        if let Some(proxy) = self.proxies.get(name) {
            documents.insert(document::PROXY.to_owned(), proxy.clone());
        }
        for document in session.services.values() {
            documents.insert(document.name.clone(), document.clone());
        }
        session.causes.note(&session.tracker, &documents, changed);
        session.tracker.want(documents);
    }

    pub(super) fn send_documents(
        &mut self,
        name: &str,
        revision: u64,
        greet: bool,
        settled: &mut Settled,
    ) {
        let Some(session) = self.sessions.get_mut(name) else {
            return;
        };
        if greet && let Some(registration) = self.registry.get(name) {
            let missing =
                compiler::missing_features(session.tracker.wanted(), &registration.features);
            if !missing.is_empty() {
                settled.warnings.push(format!(
                    "dataplane {name} (version {}) lacks {missing:?} and will refuse what needs it: update it",
                    registration.version
                ));
            }
        }
        let stopped = self.rollouts.stopped(name);
        let unsent = session.tracker.unsent_without(&stopped);
        // Where the trust document is stopped, the generation of the older one stays in force.
        if !stopped.contains(document::TRUST) {
            session.trust_generation = self.trust_generation;
        }
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
            trust_generation: session.trust_generation,
        };
        let message = ToDataplane {
            message: Some(to_dataplane::Message::Documents(message)),
        };
        settled.sends.push((name.to_owned(), message));
    }

    /// Sends whole sets that a dataplane uses and has not got on this stream.
    pub(super) fn feed(&mut self, name: &str, additive: bool, settled: &mut Settled) {
        let connected = self.registry.get(name).is_some_and(|r| r.stream.is_some());
        let Some(session) = self.sessions.get_mut(name).filter(|_| connected) else {
            return;
        };
        // Never before the document that says whom to expect there.
        let lacking: Vec<_> = session
            .services
            .keys()
            .filter(|reference| !session.fed.contains(*reference))
            .filter(|reference| session.tracker.sent(&reference.document_name()).is_some())
            .cloned()
            .collect();
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
            .retain(|reference| session.services.contains_key(reference));
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
}

/// The name that a reference says, where it says one.
fn shown_name<'a>(name: Option<&'a String>, labels: &'a Labels) -> Option<&'a String> {
    name.or_else(|| labels.get(labels::DISPLAY_NAME))
}

/// The names by which references mean a service.
fn shown_names(target: &policy::Service) -> impl Iterator<Item = &String> {
    let resources = target.resources.iter();
    resources.filter_map(|labels| labels.get(labels::DISPLAY_NAME))
}

fn by_name(targets: &policy::Services) -> BTreeMap<&str, &policy::Service> {
    targets.iter().map(|t| (t.name.as_str(), t)).collect()
}

/// Marks those whom policies may concern, by what they say.
fn touch_selected(
    policies: &[&Arc<Resource>],
    dataplanes: &BTreeMap<String, Arc<Resource>>,
    dirty: &mut Dirty,
) {
    for resource in policies {
        let Some(policy) = resource.policy() else {
            continue;
        };
        let target = policy.target_ref();
        let (incoming, outgoing) = (!policy.rules().is_empty(), !policy.to().is_empty());
        if !(incoming || outgoing) {
            continue;
        }
        for (name, dataplane) in dataplanes {
            if selection::selects_dataplane(target, &dataplane.meta) {
                if incoming {
                    dirty.proxies.insert(name.clone());
                }
                if outgoing {
                    dirty.callers.insert(name.clone());
                }
            }
        }
    }
}
