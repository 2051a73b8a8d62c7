//! What can be asked of a mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_model::{MeshIdentity, MeshTrust, Resource, api::Condition};
use mesh_proto::{
    document,
    names::{MeshName, ZoneName},
    zone::{DataplaneRefusal, MeshStatus},
};

use super::{Counts, Mesh, NAMES_MAX};
use crate::{
    compiler::{Needed, ServiceDocuments, ServiceRef},
    conditions,
    endpoints::{self, ServicePort, Set},
    registry::{Registration, Registry},
    scope::Scope,
    services::Services,
    tracker::{Currency, Documents, Tracker},
    view::MeshView,
};

/// A mesh at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The mesh.
    pub mesh: MeshName,
    /// This zone.
    pub zone: ZoneName,
    /// What was synchronised.
    pub scope: Scope,
    /// This zone's own CA certificates (DER).
    pub own_anchors: Vec<Vec<u8>>,
    /// Dataplanes of this zone, by name.
    pub dataplanes: BTreeMap<String, Arc<Resource>>,
    /// What each of them can do.
    pub features: BTreeMap<String, Vec<String>>,
    /// What each of them should run.
    pub wanted: BTreeMap<String, Documents>,
}

impl Mesh {
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

    /// Documents that a dataplane has or would have to call a service.
    #[must_use]
    pub fn needed(&self, dataplane: &str, reference: &ServiceRef) -> Needed {
        let Some(session) = self.sessions.get(dataplane) else {
            return Needed::new();
        };
        let mut needed = session.services.clone();
        if let Some(resource) = self.dataplanes.get(dataplane)
            && !needed.contains_key(reference)
        {
            let called = BTreeSet::from([reference.clone()]);
            let features = self.registry.features(dataplane);
            let more = ServiceDocuments::default().needed(&self.view, resource, &called, features);
            for (reference, document) in more {
                needed.entry(reference).or_insert(document);
            }
        }
        needed
    }

    /// Whether a document is kept from a dataplane because those who tried it have refused it.
    #[must_use]
    pub fn is_stopped(&self, dataplane: &str, document: &str) -> bool {
        self.rollouts.stopped(dataplane).contains(document)
    }

    /// The mesh as it is now, for work that takes its time elsewhere. Resources and documents are shared, not copied.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let registered = self.registry.iter();
        Snapshot {
            mesh: self.name.clone(),
            zone: self.zone.clone(),
            scope: self.scope.clone(),
            own_anchors: self.own_anchors.clone(),
            dataplanes: self.dataplanes.clone(),
            features: registered
                .map(|(name, r)| (name.to_owned(), r.features.clone()))
                .collect(),
            wanted: self
                .sessions
                .iter()
                .map(|(name, s)| (name.clone(), s.tracker.wanted().clone()))
                .collect(),
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
        let refusals = self.refusals();
        // What is refused comes first: it is the worst.
        let conditions: Vec<_> = refusals.iter().chain(&self.conditions).collect();
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
            condition_count: u32::try_from(conditions.len()).unwrap_or(u32::MAX),
            conditions: conditions
                .into_iter()
                .take(conditions::MAX)
                .map(conditions::to_wire)
                .collect(),
        }
    }

    /// Whether something that the policies' conditions depend on is other since [`Self::judge`].
    #[must_use]
    pub fn is_unjudged(&self) -> bool {
        self.conditions_dirty
    }

    /// Finds the conditions of the policies anew; true where they are others. It looks at all of them: not for every
    /// change.
    pub fn judge(&mut self) -> bool {
        self.conditions_dirty = false;
        let found = conditions::of_mesh(&self.scope, &self.view, &self.dataplanes);
        let changed = self.conditions != found;
        self.conditions = found;
        changed
    }

    fn refusals(&self) -> Vec<Condition> {
        if self.counts.refused == 0 {
            return Vec::new();
        }
        let refusing = self
            .sessions
            .iter()
            .filter(|(_, s)| s.currency == Some(Currency::Refused));
        conditions::refusals(refusing.map(|(name, s)| (name.as_str(), &s.tracker, &s.causes)))
    }

    pub(super) fn refresh_currency(&mut self, name: &str) {
        let Some(session) = self.sessions.get_mut(name) else {
            return;
        };
        let now = session.tracker.currency();
        if let Some(before) = session.currency.replace(now) {
            *self.counts.of(before) -= 1;
        }
        *self.counts.of(now) += 1;
    }

    pub(super) fn recount(&mut self) {
        self.counts = Counts::default();
        for session in self.sessions.values_mut() {
            let currency = session.tracker.currency();
            session.currency = Some(currency);
            *self.counts.of(currency) += 1;
        }
    }
}
