//! What a mesh takes in: each event changes state and marks what it touches.

use mesh_model::{Dataplane, MeshIdentity, MeshService, MeshTrust, api::Key};
use mesh_proto::{
    discovery::{Ack, DocumentVersion, Heartbeat, InboundReadiness, Nack},
    document,
    zone::Changes,
};

use super::{Mesh, Surroundings};
use crate::{
    compiler::Needed,
    registry::{Admission, Arrival, StreamId},
    scope::Taken,
};

/// Ports that a dataplane may name as those where it could not be told what is spoken.
const DETECTION_TIMEOUTS_MAX: usize = 32;

impl Mesh {
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

    pub(super) fn touch(&mut self, key: &Key) {
        use mesh_model::Kind as _;
        self.dirty.resources.insert(key.clone());
        match key.kind.as_str() {
            kind if kind == MeshIdentity::DESCRIPTOR.name => self.dirty.identities = true,
            kind if kind == MeshService::DESCRIPTOR.name => self.dirty.services = true,
            kind if kind == MeshTrust::DESCRIPTOR.name => self.dirty.trust = true,
            kind => {
                let kind = mesh_model::find_kind(kind);
                self.dirty.policies |= kind.is_some_and(|kind| kind.policy().is_some());
            }
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
            session.causes.tidy(&session.tracker);
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

    /// The dataplane says what it says with each heartbeat. True where something of it is to be kept on disk.
    pub fn beat(&mut self, name: &str, beat: Heartbeat) -> bool {
        let Some(registration) = self.registry.get_mut(name) else {
            return false;
        };
        let mut timeouts = beat.detection_timeouts;
        timeouts.truncate(DETECTION_TIMEOUTS_MAX);
        registration.detection_timeouts = timeouts;
        let ended = registration.certificate_not_after;
        registration.certificate_not_after = beat.certificate_not_after;
        ended != beat.certificate_not_after
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

    pub(super) fn forget(&mut self, name: &str) {
        self.rollouts.forget(name);
        self.touch_endpoints_of(name);
        self.dataplanes.remove(name);
        self.proxies.remove(name);
        self.view.spiffe_ids.remove(name);
        if let Some(session) = self.sessions.remove(name) {
            self.set_users(name, &session.services, &Needed::new());
            if let Some(currency) = session.currency {
                *self.counts.of(currency) -= 1;
            }
        }
        self.dirty.dataplanes.insert(name.to_owned());
    }

    /// Its endpoints may be used once it has acknowledged its listeners.
    pub(super) fn note_listening(&mut self, name: &str) {
        let runs = self
            .sessions
            .get(name)
            .is_some_and(|s| s.tracker.runs_any(document::PROXY));
        if let Some(registration) = self.registry.get_mut(name).filter(|r| runs && !r.listening) {
            registration.listening = true;
            self.touch_endpoints_of(name);
        }
    }

    pub(super) fn touch_endpoints_of(&mut self, name: &str) {
        if let Some(services) = self.view.services.behind.get(name) {
            self.dirty.endpoints.extend(services.iter().cloned());
        }
    }
}
