//! What came out different is sent, to those whom it concerns: the order in which that happens, and who waits for whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use mesh_model::api::Key;
use mesh_proto::{
    discovery::{Documents as DocumentsMessage, ToDataplane, to_dataplane},
    document,
    proxy::Document,
};

use super::{
    Mesh, Settled,
    canary::{Candidate, Standing, Stop},
    endpoints_message,
};
use crate::{compiler, endpoints, registry::Registration, tracker::Documents};

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
