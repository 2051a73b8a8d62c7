//! What was touched is computed anew, in the order in which one thing depends on the other; what comes out the same is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_model::{
    MeshHTTPRoute, MeshIdentity, MeshTCPRoute, Resource, identity,
    labels::{self, Labels},
    policy::{self, BackendRef, ToTarget},
    selection,
};

use super::{Dirty, Mesh, Settled};
use crate::{
    compiler::{self, Needed},
    services::{self, Services, Sources},
    view::{self, MeshSources, Policies},
};

impl Mesh {
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
            let document = compiler::proxy(&self.view, resource, self.registry.features(&name));
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
            let features = self.registry.features(&name);
            let needed = self
                .services
                .needed(&self.view, &resource, &called, features);
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
        for (target, backends) in policies.flat_map(|policy| routed(policy)) {
            let may_differ = backends.iter().any(|b| {
                shown_name(b.name.as_ref(), &b.labels).is_none_or(|name| dirty.shown.contains(name))
            });
            if !may_differ {
                continue;
            }
            let called = shown_name(target.name.as_ref(), &target.labels);
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
}

/// What a policy routes: what is called, and to what that goes, copies included.
fn routed(policy: &Resource) -> Vec<(&ToTarget, Vec<&BackendRef>)> {
    let connections = policy.get::<MeshTCPRoute>().map(|route| &route.to);
    let connections = connections.into_iter().flatten().map(|entry| {
        let rules = entry.rules.iter();
        let backends = rules.flat_map(|rule| &rule.default.backend_refs);
        (&entry.target_ref, backends.collect())
    });
    let requests = policy.get::<MeshHTTPRoute>().map(|route| &route.to);
    let requests = requests.into_iter().flatten().map(|entry| {
        let backends = entry.rules.iter().flat_map(|rule| {
            let filters = rule.default.filters.iter().flatten();
            let mirrors = filters.filter_map(|filter| filter.request_mirror.as_ref());
            let backends = rule.default.backend_refs.iter().flatten();
            backends.chain(mirrors.map(|mirror| &mirror.backend_ref))
        });
        (&entry.target_ref, backends.collect())
    });
    connections.chain(requests).collect()
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
