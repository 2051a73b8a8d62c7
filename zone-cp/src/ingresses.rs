//! The zone's ingresses: proxies that forward by server name into every mesh, and see none of what they forward.

use std::{collections::BTreeMap, sync::Arc};

use mesh_proto::{
    discovery::{
        Ack, DocumentVersion, Documents as DocumentsMessage, EndpointsDelta, Nack, ToDataplane,
        to_dataplane,
    },
    document,
    names::{MeshName, ZoneName},
    proxy::Document,
};

use crate::{
    compiler,
    endpoints::{self, Set},
    mesh::endpoints_message,
    registry::{Admission, Arrival, Registry, StreamId},
    services::Services,
    tracker::{Documents, Tracker},
};

/// The zone's ingresses. Events go in; what is to be sent is returned by [`Ingresses::publish`] and
/// [`Ingresses::greet`].
#[derive(Debug)]
pub struct Ingresses {
    zone: ZoneName,
    registry: Registry,
    trackers: BTreeMap<String, Tracker>,
}

impl Ingresses {
    /// Those that were stored.
    #[must_use]
    pub fn new(zone: ZoneName, registry: Registry) -> Self {
        let trackers = registry
            .iter()
            .map(|(name, _)| (name.to_owned(), Tracker::default()))
            .collect();
        Self {
            zone,
            registry,
            trackers,
        }
    }

    /// Who is registered.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Documents of an ingress.
    #[must_use]
    pub fn tracker(&self, name: &str) -> Option<&Tracker> {
        self.trackers.get(name)
    }

    /// An ingress registers.
    pub fn arrive(&mut self, arrival: Arrival, running: &[DocumentVersion]) -> Admission {
        let name = arrival.resource.meta.name.clone();
        let admission = self.registry.admit(arrival);
        if matches!(admission, Admission::Admitted { .. }) {
            self.trackers.entry(name).or_default().attach(running);
        }
        admission
    }

    /// It took documents. True where that makes it an entry for other zones.
    pub fn ack(&mut self, name: &str, ack: &Ack) -> bool {
        let Some(tracker) = self.trackers.get_mut(name) else {
            return false;
        };
        tracker.ack(&ack.documents);
        let runs = tracker.runs_any(document::INGRESS);
        match self.registry.get_mut(name) {
            Some(registration) if runs && !registration.listening => {
                registration.listening = true;
                true
            }
            _ => false,
        }
    }

    /// It refused documents.
    pub fn nack(&mut self, name: &str, nack: &Nack) {
        if let Some(tracker) = self.trackers.get_mut(name) {
            tracker.nack(&nack.documents);
        }
    }

    /// It drains: other zones are to use others.
    pub fn leaving(&mut self, name: &str) {
        if let Some(registration) = self.registry.get_mut(name) {
            registration.leaving = true;
        }
    }

    /// Its stream has ended. True where the registration is gone with it.
    pub fn disconnected(&mut self, name: &str, stream: StreamId, heard_ms: u64) -> bool {
        let gone = self.registry.disconnected(name, stream, heard_ms);
        if self.registry.get(name).is_none_or(|r| r.stream.is_none())
            && let Some(tracker) = self.trackers.get_mut(name)
        {
            tracker.detach();
        }
        if gone {
            self.trackers.remove(name);
        }
        gone
    }

    /// Forgets those whose grace period is over; their names are returned.
    pub fn expire(&mut self, now_ms: u64, grace_ms: u64) -> Vec<String> {
        let expired = self.registry.expire(now_ms, grace_ms);
        for name in &expired {
            self.trackers.remove(name);
        }
        expired
    }

    /// Compiles what every ingress forwards, and returns documents for those that lack them. `greeted` gets a message
    /// even where it lacks nothing, so that it knows.
    pub fn publish<'a>(
        &mut self,
        meshes: impl IntoIterator<Item = (&'a MeshName, &'a Services)> + Clone,
        revision: u64,
        greeted: Option<&str>,
    ) -> Vec<(String, ToDataplane)> {
        let mut sends = Vec::new();
        for (name, registration) in self.registry.iter() {
            let Some(tracker) = self.trackers.get_mut(name) else {
                continue;
            };
            let document = compiler::ingress(&self.zone, &registration.resource, meshes.clone());
            tracker.want(Documents::from([(
                document.name.clone(),
                Arc::new(document),
            )]));
            let unsent = tracker.unsent();
            if registration.stream.is_none() || (unsent.is_empty() && greeted != Some(name)) {
                continue;
            }
            let message = DocumentsMessage {
                revision,
                put: unsent
                    .put
                    .iter()
                    .map(|document| Document::clone(document))
                    .collect(),
                remove: unsent.remove,
                trust_generation: 0,
            };
            let message = ToDataplane {
                message: Some(to_dataplane::Message::Documents(message)),
            };
            sends.push((name.to_owned(), message));
        }
        sends
    }

    /// Every set, whole, for one that is new.
    #[must_use]
    pub fn greet(sets: &BTreeMap<String, Set>, additive: bool) -> Vec<ToDataplane> {
        sets.iter()
            .filter(|(_, set)| !(additive && set.is_empty()))
            .map(|(key, set)| endpoints_message(endpoints::whole(key, set, additive)))
            .collect()
    }

    /// Differences of sets, for every one that is connected.
    #[must_use]
    pub fn deltas(&self, deltas: &[EndpointsDelta]) -> Vec<(String, ToDataplane)> {
        let connected = self.registry.iter().filter(|(_, r)| r.stream.is_some());
        connected
            .flat_map(|(name, _)| {
                deltas
                    .iter()
                    .map(|delta| (name.to_owned(), endpoints_message(delta.clone())))
            })
            .collect()
    }

    /// Those that other zones may enter by.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<mesh_model::Resource>> {
        self.registry
            .iter()
            .filter(|(_, r)| r.listening && !r.leaving)
            .map(|(_, r)| &r.resource)
    }
}
