//! Who has registered: the dataplanes of one mesh, or the zone's ingresses.
//!
//! A registration is a lease by name (FIELD f9). It outlives its stream by the grace period, and the process by being
//! persisted, so that neither a reconnect nor a restart of the zone control plane withdraws an endpoint. All times are
//! Unix milliseconds.

use std::{collections::BTreeMap, sync::Arc};

use mesh_model::Resource;
use mesh_proto::discovery::{DetectionTimeouts, InboundReadiness};
use serde::{Deserialize, Serialize};

use crate::token::Accepted;

/// Names one stream of one process run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// One registration.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The Dataplane or ZoneIngress.
    pub resource: Arc<Resource>,
    /// Random at each start of the dataplane.
    pub session: String,
    /// Counts the dataplane's starts.
    pub session_number: u64,
    /// Version of the dataplane.
    pub version: String,
    /// What it can do.
    pub features: Vec<String>,
    /// The token it came with.
    pub token: Accepted,
    /// Its stream, while it is connected.
    pub stream: Option<StreamId>,
    /// Since when nothing is heard of it, while it is not connected.
    pub silent_since_ms: u64,
    /// Readiness of inbounds, as the dataplane reported it last.
    pub readiness: BTreeMap<String, bool>,
    /// It has acknowledged its listeners at least once, so that callers will find them.
    pub listening: bool,
    /// It drains: no endpoint of it may be used.
    pub leaving: bool,
    /// Unix seconds at which its certificate ends, as it said last. 0: it has none.
    pub certificate_not_after: u64,
    /// Ports on which it could not be told what is spoken, as it said last. Not kept on disk: it says so again.
    pub detection_timeouts: Vec<DetectionTimeouts>,
}

/// Who knocks.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// What it registers.
    pub resource: Arc<Resource>,
    /// See [`Registration::session`].
    pub session: String,
    /// See [`Registration::session_number`].
    pub session_number: u64,
    /// Version of the dataplane.
    pub version: String,
    /// What it can do.
    pub features: Vec<String>,
    /// The token it came with.
    pub token: Accepted,
    /// Its stream.
    pub stream: StreamId,
}

/// What becomes of an arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is registered.
    Admitted {
        /// An older stream of the same name, to be ended.
        replaced: Option<StreamId>,
        /// The resource, or what the dataplane can do, is new or other than before.
        changed: bool,
    },
    /// A newer session of the same name is connected.
    Outdated {
        /// That session's number.
        connected: u64,
    },
}

/// Registrations by name.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    entries: BTreeMap<String, Registration>,
}

impl Registry {
    /// What was stored, as it is at `now_ms`: nobody is connected, and the grace period begins.
    #[must_use]
    pub fn restored(stored: Vec<StoredRegistration>, now_ms: u64) -> (Self, Vec<String>) {
        let mut registry = Self::default();
        let mut unreadable = Vec::new();
        for entry in stored {
            match Resource::from_json(entry.resource.as_bytes()) {
                Ok(resource) => {
                    let registration = Registration {
                        resource: Arc::new(resource),
                        session: entry.session,
                        session_number: entry.session_number,
                        version: entry.version,
                        features: entry.features,
                        token: entry.token,
                        stream: None,
                        silent_since_ms: now_ms,
                        readiness: entry.readiness,
                        listening: entry.listening,
                        leaving: false,
                        certificate_not_after: entry.certificate_not_after,
                        detection_timeouts: Vec::new(),
                    };
                    registry.entries.insert(entry.name, registration);
                }
                Err(violations) => unreadable.push(format!("{}: {violations}", entry.name)),
            }
        }
        (registry, unreadable)
    }

    /// What to store. Those that leave are not.
    #[must_use]
    pub fn to_stored(&self) -> Vec<StoredRegistration> {
        let staying = self.entries.iter().filter(|(_, r)| !r.leaving);
        staying
            .map(|(name, r)| StoredRegistration {
                name: name.clone(),
                resource: String::from_utf8_lossy(&r.resource.to_json()).into_owned(),
                session: r.session.clone(),
                session_number: r.session_number,
                version: r.version.clone(),
                features: r.features.clone(),
                token: r.token.clone(),
                readiness: r.readiness.clone(),
                listening: r.listening,
                certificate_not_after: r.certificate_not_after,
            })
            .collect()
    }

    /// Registers an arrival, unless a newer session of the same name is connected. One that is not connected gives way
    /// to anybody with a good token: a machine whose disk was wiped counts its sessions anew.
    pub fn admit(&mut self, arrival: Arrival) -> Admission {
        let name = arrival.resource.meta.name.clone();
        let old = self.entries.get(&name);
        let connected = old.and_then(|old| Some((old.stream?, old.session_number)));
        if let Some((_, number)) = connected
            && number > arrival.session_number
        {
            return Admission::Outdated { connected: number };
        }
        let changed = old.is_none_or(|old| {
            old.resource != arrival.resource || old.features != arrival.features || old.leaving
        });
        let registration = Registration {
            session: arrival.session,
            session_number: arrival.session_number,
            version: arrival.version,
            features: arrival.features,
            token: arrival.token,
            stream: Some(arrival.stream),
            silent_since_ms: 0,
            // What was known of the same workload holds until it says otherwise.
            readiness: old.map(|old| old.readiness.clone()).unwrap_or_default(),
            listening: old.is_some_and(|old| old.listening && !old.leaving),
            leaving: false,
            certificate_not_after: old.map_or(0, |old| old.certificate_not_after),
            detection_timeouts: Vec::new(),
            resource: arrival.resource,
        };
        self.entries.insert(name, registration);
        Admission::Admitted {
            replaced: connected.map(|(stream, _)| stream),
            changed,
        }
    }

    /// What a dataplane can do, as far as is known.
    #[must_use]
    pub fn features(&self, name: &str) -> &[String] {
        let entry = self.entries.get(name);
        entry.map_or(&[], |entry| &entry.features)
    }

    /// The stream has ended; the last thing was heard at `heard_ms`. One that had said it leaves is forgotten, and true
    /// returned; any other stays through its grace period.
    pub fn disconnected(&mut self, name: &str, stream: StreamId, heard_ms: u64) -> bool {
        let Some(entry) = self.entries.get_mut(name) else {
            return false;
        };
        if entry.stream != Some(stream) {
            return false; // Another stream has taken over.
        }
        entry.stream = None;
        entry.silent_since_ms = heard_ms;
        if entry.leaving {
            self.entries.remove(name);
            return true;
        }
        false
    }

    /// Forgets those whose grace period is over and returns their names.
    pub fn expire(&mut self, now_ms: u64, grace_ms: u64) -> Vec<String> {
        let expired = |r: &Registration| {
            r.stream.is_none() && now_ms >= r.silent_since_ms.saturating_add(grace_ms)
        };
        let names: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, r)| expired(r))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &names {
            self.entries.remove(name);
        }
        names
    }

    /// Takes a report of readiness; true where it changes anything.
    pub fn readiness(&mut self, name: &str, reported: &[InboundReadiness]) -> bool {
        let Some(entry) = self.entries.get_mut(name) else {
            return false;
        };
        let mut changed = false;
        for inbound in reported {
            // Names are bounded by the resource's inbounds: others are not kept.
            let known = entry.readiness.insert(inbound.name.clone(), inbound.ready);
            changed |= known != Some(inbound.ready);
        }
        changed
    }

    /// The registration of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Registration> {
        self.entries.get(name)
    }

    /// The registration of `name`, to note what was heard of it.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Registration> {
        self.entries.get_mut(name)
    }

    /// All registrations, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Registration)> {
        self.entries.iter().map(|(name, r)| (name.as_str(), r))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A registration on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredRegistration {
    name: String,
    resource: String,
    session: String,
    session_number: u64,
    version: String,
    features: Vec<String>,
    token: Accepted,
    readiness: BTreeMap<String, bool>,
    listening: bool,
    certificate_not_after: u64,
}
