//! The control thread: takes what the zone says, publishes snapshots, acknowledges or refuses.
//!
//! Everything that can wake it is an [`Event`]. A message with documents is one step: each document is converted; new
//! listeners are bound; what is good is published as one snapshot, the rest is refused with its reason and its last good
//! version stays; listeners that are no longer wanted close last (make before break); then the zone hears of it.

mod listeners;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::SocketAddr,
    os::unix::net::UnixStream,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use mesh_proto::{
    VERSION,
    discovery::{
        Ack, Answer, Certificate, DocumentNack, DocumentVersion, Documents, EndpointsDelta, Hello,
        Leaving, Nack, NackKind, Question, Role, ToZone, answer, question,
        to_dataplane::Message as FromZoneMessage, to_zone::Message as ToZoneMessage,
    },
    document, features, proxy as wire,
    spiffe::SpiffeId,
};
use mesh_runtime::admin::Health;
use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    certificates::{Age, Certificates},
    config::{self, Body, Endpoint},
    discovery::FromZone,
    handover::{self, Handed},
    http::tap::Leases,
    metrics::Metrics,
    readiness::{self, Probes},
    record::Reason,
    snapshot::Parts,
    state::State,
    workers::{Command, Draining, Shared, WorkerHandle},
};
use listeners::Listeners;

/// Everything that wakes the control thread.
pub enum Event {
    /// The discovery client.
    Zone(FromZone),
    /// A probe's verdict has changed.
    Readiness(readiness::Result),
    /// A worker could reach no endpoint of this set.
    LookUp(String),
    /// Time to look at the certificate and at what has not been kept yet.
    Tick,
    /// The admin socket asks.
    Describe(oneshot::Sender<serde_json::Value>),
}

/// Who this proxy is.
#[derive(Debug, Clone)]
pub struct Own {
    /// Sidecar or ingress.
    pub role: Role,
    /// The Dataplane or ZoneIngress resource, as YAML or JSON.
    pub resource: String,
    /// Random at each start.
    pub session: String,
    /// Counts the sessions.
    pub session_number: u64,
}

/// What the control thread works with.
pub struct Control {
    own: Own,
    shared: Arc<Shared>,
    workers: Arc<Vec<WorkerHandle>>,
    state: State,
    metrics: Arc<Metrics>,
    health: Health,
    look_up: Arc<Notify>,
    parts: Parts,
    documents: BTreeMap<String, wire::Document>,
    refused: BTreeMap<String, DocumentNack>,
    /// A document that is refused only because a listener can not be bound: tried again, since ports become free.
    unbound: Option<wire::Document>,
    listeners: Listeners,
    certificates: Certificates,
    probes: Probes,
    taps: Leases,
    outbox: Option<mpsc::Sender<ToZone>>,
    disconnected: Option<String>,
    revision: u64,
    trust_generation: u64,
    endpoints_changed: bool,
    draining: bool,
}

/// Why a document is not taken.
#[derive(Debug)]
struct Refused {
    /// Whether other proxies would refuse it as well.
    kind: NackKind,
    reason: String,
}

/// What a [`Control`] is given at start.
#[allow(missing_docs)]
pub struct Given {
    pub own: Own,
    pub shared: Arc<Shared>,
    pub workers: Arc<Vec<WorkerHandle>>,
    pub state: State,
    pub metrics: Arc<Metrics>,
    pub health: Health,
    pub look_up: Arc<Notify>,
    pub probe_results: mpsc::Sender<readiness::Result>,
    /// Listeners of a predecessor.
    pub handed: Vec<Handed>,
}

impl Control {
    /// Starts from what is on disk, and serves it.
    #[must_use]
    pub fn start(given: Given) -> Self {
        let mut control = Self {
            taps: Leases::new(given.shared.taps.clone()),
            listeners: Listeners::new(given.workers.clone(), given.handed),
            own: given.own,
            shared: given.shared,
            workers: given.workers,
            state: given.state,
            metrics: given.metrics,
            health: given.health,
            look_up: given.look_up,
            probes: Probes::new(given.probe_results),
            parts: Parts::default(),
            documents: BTreeMap::new(),
            refused: BTreeMap::new(),
            unbound: None,
            certificates: Certificates::default(),
            outbox: None,
            disconnected: Some("not called yet".to_owned()),
            revision: 0,
            trust_generation: 0,
            endpoints_changed: false,
            draining: false,
        };
        control.restore();
        control
    }

    fn restore(&mut self) {
        for set in self.state.endpoints() {
            self.apply_endpoints(&set);
        }
        self.endpoints_changed = false;
        if let Some(saved) = self.state.identity() {
            match self.certificates.restore(&saved) {
                Ok(identity) => self.parts.identity = Some(Arc::new(identity)),
                Err(reason) => tracing::warn!(
                    reason,
                    "the certificate on disk is of no use; a new one is asked for"
                ),
            }
        }
        let documents = self.state.documents();
        let count = documents.put.len();
        let refused = self.apply(documents);
        if count > 0 {
            tracing::info!(
                documents = count,
                revision = self.revision,
                "serving from disk"
            );
        }
        for nack in refused {
            tracing::error!(
                document = nack.name,
                reason = nack.reason,
                "a document on disk is of no use; it is asked for again"
            );
        }
        self.publish();
        self.judge_health();
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Zone(FromZone::Hello(answer)) => {
                // The client may have gone meanwhile.
                let _ = answer.send(self.hello());
            }
            Event::Zone(FromZone::Connected { outbox, welcome }) => {
                self.outbox = Some(outbox);
                self.disconnected = None;
                self.metrics
                    .control
                    .discovery_connected
                    .store(true, Ordering::Relaxed);
                self.metrics
                    .control
                    .discovery_streams
                    .fetch_add(1, Ordering::Relaxed);
                if !welcome.control_plane_anchors.is_empty() {
                    self.state.keep_anchors(welcome.control_plane_anchors);
                }
                self.report_readiness();
                self.look_after_certificate();
            }
            Event::Zone(FromZone::Message(message)) => self.hear(message),
            Event::Zone(FromZone::Disconnected(reason)) => {
                self.outbox = None;
                self.disconnected = Some(reason);
                self.metrics
                    .control
                    .discovery_connected
                    .store(false, Ordering::Relaxed);
                self.certificates.disconnected();
            }
            Event::Readiness(result) => {
                if self.probes.take(&result) {
                    self.report_readiness();
                }
            }
            Event::LookUp(key) => {
                tracing::info!(key, "no endpoint could be reached");
                self.look_up.notify_one();
            }
            Event::Tick => {
                self.taps.expire(Instant::now());
                self.look_after_certificate();
                self.keep_endpoints();
                self.try_to_bind_again();
            }
            Event::Describe(answer) => {
                let _ = answer.send(self.describe());
            }
        }
        self.judge_health();
    }

    fn hear(&mut self, message: FromZoneMessage) {
        match message {
            FromZoneMessage::Documents(documents) => self.take_documents(documents),
            FromZoneMessage::Endpoints(delta) => self.apply_endpoints(&delta),
            FromZoneMessage::Certificate(answer) => self.take_certificate(&answer),
            FromZoneMessage::Question(question) => self.answer(question),
            // A second welcome says nothing new; the others end in the client.
            FromZoneMessage::Welcome(_)
            | FromZoneMessage::Heartbeat(_)
            | FromZoneMessage::GoAway(_) => {}
        }
    }

    fn answer(&mut self, question: Question) {
        let what = question.what.map(|what| match what {
            question::What::CountRequests(asked) => {
                answer::What::RequestCounts(self.metrics.request_counts(&asked.service))
            }
            question::What::Tap(asked) => {
                answer::What::Caught(self.taps.answer(asked, Instant::now()))
            }
        });
        let id = question.id;
        self.say(ToZoneMessage::Answer(Answer { id, what }));
    }

    fn hello(&self) -> Hello {
        Hello {
            version: VERSION.to_owned(),
            features: features::DATAPLANE.iter().map(|&f| f.to_owned()).collect(),
            role: self.own.role.into(),
            resource: self.own.resource.clone(),
            session: self.own.session.clone(),
            session_number: self.own.session_number,
            documents: self.documents.values().map(version).collect(),
        }
    }

    /// Says something to the zone, where one is connected.
    fn say(&mut self, message: ToZoneMessage) -> bool {
        let Some(outbox) = &self.outbox else {
            return false;
        };
        let message = ToZone {
            message: Some(message),
        };
        if outbox.try_send(message).is_ok() {
            return true;
        }
        // The zone takes nothing: without the outbox its stream goes silent and is dropped.
        self.outbox = None;
        false
    }

    // === documents ===

    fn take_documents(&mut self, message: Documents) {
        let revision = message.revision;
        let put: Vec<_> = message.put.iter().map(version).collect();
        let readiness = self.probes.report();
        let refused = self.apply(message);
        self.publish();
        self.state.keep_documents(
            self.revision,
            self.documents.values(),
            self.trust_generation,
        );
        for nack in &refused {
            tracing::error!(
                document = nack.name,
                version = nack.version,
                reason = nack.reason,
                "a document is refused; the last good one stays in force"
            );
            self.metrics
                .control
                .documents_refused
                .fetch_add(1, Ordering::Relaxed);
        }
        let bad: HashSet<_> = refused.iter().map(|nack| nack.name.clone()).collect();
        let good: Vec<_> = put.into_iter().filter(|d| !bad.contains(&d.name)).collect();
        // An empty acknowledgement still says that the removals are done; where all was refused, it would say too much.
        if !good.is_empty() || refused.is_empty() {
            self.say(ToZoneMessage::Ack(Ack {
                revision,
                documents: good,
            }));
        }
        if !refused.is_empty() {
            self.say(ToZoneMessage::Nack(Nack {
                revision,
                documents: refused,
            }));
        }
        if self.probes.report() != readiness {
            self.report_readiness();
        }
        self.look_after_certificate();
    }

    /// Takes what is good into `parts`, and returns what is not.
    fn apply(&mut self, message: Documents) -> Vec<DocumentNack> {
        let mut refused = Vec::new();
        for document in message.put {
            match self.apply_one(&document) {
                Ok(()) => {
                    self.refused.remove(&document.name);
                    self.forget_unbound(&document.name);
                    self.documents.insert(document.name.clone(), document);
                }
                Err(Refused { kind, reason }) => {
                    let nack = DocumentNack {
                        name: document.name,
                        version: document.version,
                        reason,
                        kind: kind.into(),
                    };
                    self.refused.insert(nack.name.clone(), nack.clone());
                    refused.push(nack);
                }
            }
        }
        for name in message.remove {
            self.remove(&name);
        }
        self.revision = message.revision;
        self.trust_generation = message.trust_generation;
        self.metrics
            .control
            .revision
            .store(self.revision, Ordering::Relaxed);
        refused
    }

    fn apply_one(&mut self, document: &wire::Document) -> Result<(), Refused> {
        let body = config::read(document, self.own.role).map_err(|error| Refused {
            kind: NackKind::Content,
            reason: error.to_string(),
        })?;
        match body {
            Body::Trust(trust) => self.parts.trust = Some(Arc::new(trust)),
            Body::Service(service) => {
                let name = document.name.clone();
                self.parts.services.insert(name, Arc::new(service));
            }
            Body::Proxy(proxy) => {
                let inbounds = proxy.inbounds.iter().map(|inbound| inbound.listen);
                let outbounds = proxy.outbounds.iter().map(|outbound| outbound.listen);
                let wanted: Vec<_> = inbounds.chain(outbounds).collect();
                self.bind(document, &wanted)?;
                self.probes.set(&proxy.inbounds);
                self.metrics.zone.store(Arc::new(proxy.zone.to_string()));
                self.parts.proxy = Some(Arc::new(proxy));
            }
            Body::Ingress(ingress) => {
                self.bind(document, &[ingress.listen])?;
                let kept: HashSet<_> = ingress.routes.values().map(|r| &r.endpoints).collect();
                if let Some(old) = &self.parts.ingress {
                    for route in old.routes.values() {
                        if !kept.contains(&route.endpoints) {
                            self.parts.endpoints.remove(&route.endpoints);
                            self.endpoints_changed = true;
                        }
                    }
                }
                self.metrics.zone.store(Arc::new(ingress.zone.to_string()));
                self.parts.ingress = Some(Arc::new(ingress));
            }
        }
        Ok(())
    }

    fn forget_unbound(&mut self, name: &str) {
        self.unbound.take_if(|document| document.name == name);
    }

    fn try_to_bind_again(&mut self) {
        let Some(document) = self.unbound.take() else {
            return;
        };
        let refused = self.apply(Documents {
            revision: self.revision,
            put: vec![document.clone()],
            remove: Vec::new(),
            trust_generation: self.trust_generation,
        });
        if refused.is_empty() {
            tracing::info!(
                document = document.name,
                "the document that could not be bound is in force now"
            );
            self.publish();
            self.state.keep_documents(
                self.revision,
                self.documents.values(),
                self.trust_generation,
            );
            self.say(ToZoneMessage::Ack(Ack {
                revision: self.revision,
                documents: vec![version(&document)],
            }));
        }
    }

    /// All of `wanted` or none; where it fails, the document waits for its ports.
    fn bind(&mut self, document: &wire::Document, wanted: &[SocketAddr]) -> Result<(), Refused> {
        if self.draining {
            return Ok(());
        }
        self.listeners.bind(wanted).map_err(|error| {
            self.unbound = Some(document.clone());
            Refused {
                kind: NackKind::Local,
                reason: error.to_string(),
            }
        })
    }

    fn remove(&mut self, name: &str) {
        self.refused.remove(name);
        self.forget_unbound(name);
        if self.documents.remove(name).is_none() {
            return;
        }
        match name {
            document::PROXY => {
                self.parts.proxy = None;
                self.probes.set(&[]);
            }
            document::TRUST => self.parts.trust = None,
            document::INGRESS => self.parts.ingress = None,
            name => {
                self.parts.services.remove(name);
                self.endpoints_changed |= self.parts.endpoints.remove(name).is_some();
            }
        }
    }

    /// Makes `parts` what connections are handled by. New listeners begin before old ones end.
    fn publish(&mut self) {
        let snapshot = self.parts.snapshot();
        let wanted: HashSet<_> = snapshot.targets.keys().copied().collect();
        self.shared.snapshot.store(Arc::new(snapshot));
        if !self.draining {
            self.listeners.settle(&wanted);
        }
        for worker in self.workers.iter() {
            worker.recheck();
        }
    }

    // === endpoints ===

    fn apply_endpoints(&mut self, delta: &EndpointsDelta) {
        let set = self.parts.endpoint_set(&delta.key);
        let before = set.load_full();
        let mut after: Vec<Endpoint> = if delta.full {
            Vec::new()
        } else {
            before.to_vec()
        };
        for wire in &delta.remove {
            match config::place(Some(wire)) {
                Ok((host, port)) => after.retain(|e| !e.same_place(&host, port)),
                Err(error) => {
                    tracing::warn!(%error, key = delta.key, "an endpoint that is to go is not understood")
                }
            }
        }
        for wire in &delta.put {
            match Endpoint::try_from(wire) {
                Ok(mut endpoint) => {
                    // What has been seen of a place stays known while it is there.
                    let same = |e: &&Endpoint| e.same_place(&endpoint.host, endpoint.port);
                    if let Some(known) = before.iter().find(same) {
                        endpoint.health = known.health.clone();
                    }
                    after.retain(|e| !e.same_place(&endpoint.host, endpoint.port));
                    after.push(endpoint);
                }
                Err(error) => {
                    tracing::warn!(%error, key = delta.key, "an endpoint is not understood and not used")
                }
            }
        }
        set.store(Arc::new(after));
        self.endpoints_changed = true;
    }

    /// Endpoints change often, and the zone sends them whole on a new stream: they are kept once a tick at most.
    fn keep_endpoints(&mut self) {
        if !std::mem::take(&mut self.endpoints_changed) {
            return;
        }
        let mut sets: Vec<_> = self
            .parts
            .endpoints
            .iter()
            .map(|(key, set)| EndpointsDelta {
                key: key.clone(),
                full: true,
                put: set.load().iter().map(Endpoint::to_wire).collect(),
                remove: Vec::new(),
            })
            .collect();
        sets.sort_by(|a, b| a.key.cmp(&b.key));
        self.state.keep_endpoints(sets);
    }

    // === certificate ===

    fn wanted_identity(&self) -> Option<SpiffeId> {
        self.parts
            .proxy
            .as_ref()
            .map(|proxy| proxy.spiffe_id.clone())
    }

    fn look_after_certificate(&mut self) {
        let Some(wanted) = self.wanted_identity() else {
            return;
        };
        let now = OffsetDateTime::now_utc();
        if self.outbox.is_some() {
            match self.certificates.request(&wanted, now) {
                Ok(Some(request)) => {
                    tracing::debug!(spiffe_id = %wanted, "asking for a certificate");
                    self.say(ToZoneMessage::CertificateRequest(request));
                }
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "no certificate can be asked for"),
            }
        }
        let not_after = self
            .certificates
            .current()
            .map_or(0, |i| i.not_after.unix_timestamp());
        let control = &self.metrics.control;
        let before = control
            .certificate_not_after
            .swap(not_after, Ordering::Relaxed);
        if before != not_after {
            // People who ask the zone are told at once, not only after the next beat.
            self.say(ToZoneMessage::Heartbeat(self.metrics.heartbeat()));
        }
    }

    fn take_certificate(&mut self, answer: &Certificate) {
        let now = OffsetDateTime::now_utc();
        match self.certificates.take(answer, now) {
            Ok((identity, saved)) => {
                tracing::info!(spiffe_id = %identity.spiffe_id, not_after = %identity.not_after, "new certificate");
                self.state.keep_identity(&saved);
                self.parts.identity = Some(Arc::new(identity));
                self.metrics
                    .control
                    .certificates_issued
                    .fetch_add(1, Ordering::Relaxed);
                self.publish();
            }
            Err(error) => {
                let not_after = self.certificates.current().map(|i| i.not_after.to_string());
                tracing::error!(%error, not_after, "no new certificate; the one in use stays");
            }
        }
        self.look_after_certificate();
    }

    fn report_readiness(&mut self) {
        let report = self.probes.report();
        self.say(ToZoneMessage::Readiness(report));
    }

    // === what people see ===

    fn judge_health(&self) {
        let documents = match self.own.role {
            Role::Ingress => self.parts.ingress.is_some(),
            _ => self.parts.proxy.is_some() && self.parts.trust.is_some(),
        };
        let away = || match &self.disconnected {
            Some(reason) => format!("nothing has come from the zone control plane yet ({reason})"),
            None => "the zone control plane is connected and has not sent it yet".to_owned(),
        };
        self.health.set(
            "configuration",
            if documents { Ok(()) } else { Err(away()) },
        );
        if self.own.role != Role::Ingress {
            self.health.set("certificate", self.judge_certificate(away));
        }
        if self.draining {
            self.health.set("drain", Err("the proxy drains".to_owned()));
        }
    }

    fn judge_certificate(&self, away: impl Fn() -> String) -> Result<(), String> {
        let Some(wanted) = self.wanted_identity() else {
            return Err(away());
        };
        match self.certificates.age(&wanted, OffsetDateTime::now_utc()) {
            Age::None => Err(match self.certificates.refused() {
                Some(reason) => reason.to_owned(),
                None => away(),
            }),
            Age::Ended => Err("the certificate has ended".to_owned()),
            Age::Young | Age::Half | Age::Old => Ok(()),
        }
    }

    fn describe(&self) -> serde_json::Value {
        let endpoints: BTreeMap<_, Vec<_>> = self
            .parts
            .endpoints
            .iter()
            .map(|(key, set)| {
                let now = std::time::Instant::now();
                let describe = |e: &Endpoint| {
                    serde_json::json!({
                        "address": e.to_string(),
                        "zone": e.zone.as_str(),
                        "throughIngress": e.through_ingress,
                        "failedLately": e.health.comes_last(now),
                    })
                };
                (key, set.load().iter().map(describe).collect())
            })
            .collect();
        let refused = |nack: &DocumentNack| serde_json::json!({"name": nack.name, "version": nack.version, "reason": nack.reason});
        let document = |document: &wire::Document| {
            serde_json::json!({
                "name": document.name,
                "version": document.version,
                "requiredFeatures": document.required_features,
                "content": format!("{:?}", self.shown(document)),
            })
        };
        serde_json::json!({
            "version": VERSION,
            "role": if self.own.role == Role::Ingress { "ingress" } else { "sidecar" },
            "session": self.own.session,
            "sessionNumber": self.own.session_number,
            "revision": self.revision,
            "trustGeneration": self.trust_generation,
            "zoneControlPlane": match &self.disconnected {
                None => serde_json::json!({"connected": true}),
                Some(reason) => serde_json::json!({"connected": false, "reason": reason}),
            },
            "listeners": self.listeners.describe(),
            "documents": self.documents.values().map(document).collect::<Vec<_>>(),
            "refused": self.refused.values().map(refused).collect::<Vec<_>>(),
            "endpoints": endpoints,
            "trustDomains": self.parts.trust.as_ref().map(|trust| {
                trust.domains().map(ToString::to_string).collect::<Vec<_>>()
            }),
            "readiness": self.probes.report().inbounds.iter().map(|inbound| {
                serde_json::json!({"inbound": inbound.name, "ready": inbound.ready})
            }).collect::<Vec<_>>(),
            "certificate": self.certificates.current().map(|identity| serde_json::json!({
                "spiffeId": identity.spiffe_id.to_string(),
                "notBefore": identity.not_before.to_string(),
                "notAfter": identity.not_after.to_string(),
            })),
            "certificateRefused": self.certificates.refused(),
            "damagedState": self.state.damaged(),
        })
    }

    /// The domain form, without anchors' bytes.
    fn shown(&self, document: &wire::Document) -> Option<Body> {
        match config::read(document, self.own.role) {
            Ok(Body::Trust(_)) | Err(_) => None,
            Ok(body) => Some(body),
        }
    }

    // === drain ===

    /// Says to the zone that this proxy leaves. `true`: it was connected.
    pub fn announce_leaving(&mut self) -> bool {
        self.draining = true;
        self.say(ToZoneMessage::Leaving(Leaving {}))
    }

    /// Accepts no more connections for the application, or for the zone; the application's own go on.
    pub fn stop_inbound(&mut self) {
        let snapshot = self.shared.snapshot.load();
        let outbound = |target: &crate::snapshot::Target| {
            matches!(target, crate::snapshot::Target::Outbound(_))
        };
        let kept = snapshot
            .targets
            .iter()
            .filter(|(_, target)| outbound(target))
            .map(|(key, _)| *key)
            .collect();
        self.listeners.settle(&kept);
        for worker in self.workers.iter() {
            worker.tell(Command::Drain(Draining::Inbound));
        }
    }

    /// Lets a successor have everything: state is kept and let go of, listeners are handed over, nothing more is accepted, and what
    /// is open ends with the requests it has.
    ///
    /// # Errors
    /// Where the successor has gone meanwhile; this process drains all the same.
    pub fn hand_over(&mut self, to: UnixStream) -> io::Result<()> {
        self.keep();
        self.outbox = None;
        self.state.release();
        let listeners = self.listeners.held();
        let handed = handover::hand_over(to, &listeners);
        self.listeners.settle(&HashSet::new());
        for worker in self.workers.iter() {
            worker.tell(Command::Drain(Draining::All));
        }
        handed
    }

    /// Closes what a predecessor had and this process has no use for, now that it serves.
    pub fn disinherit(&mut self) {
        self.listeners.disinherit();
    }

    /// Accepts nothing any more and ends what is open.
    pub fn stop_all(&mut self) {
        self.listeners.settle(&HashSet::new());
        for worker in self.workers.iter() {
            worker.tell(Command::CloseAll(Reason::Drained));
        }
    }

    /// Keeps on disk what has not been kept yet.
    pub fn keep(&mut self) {
        self.keep_endpoints();
    }

    /// Connections that are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }
}

fn version(document: &wire::Document) -> DocumentVersion {
    DocumentVersion {
        name: document.name.clone(),
        version: document.version.clone(),
    }
}

/// How often [`Event::Tick`] should come.
pub const TICK: Duration = Duration::from_secs(1);
