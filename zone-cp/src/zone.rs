//! The zone's loop: the one place where its state changes.
//!
//! An [`Event`] comes in, marks what it touches in the state of one mesh, and after a batch of events everything that
//! was touched is settled and sent. Nothing here waits for a peer or for the disk: messages go to bounded queues, files
//! to the store's thread.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use mesh_model::{
    MeshIdentity, Resource, TokenIssuer, Zone as ZoneKind, ZoneIngress, api::Key, identity,
};
use mesh_proto::{
    VERSION,
    discovery::{
        Certificate, CertificateRequest, GoAway, Role, ToDataplane, to_dataplane, to_zone,
    },
    features,
    names::{MeshName, ZoneName},
    spiffe::TrustDomain,
    zone::{
        Changes, Cursor, GlobalHello, Query, QueryAnswer, ReportRefusal, ZoneHello, ZoneStatus,
        query::What, to_global, to_zone as from_global,
    },
};
use mesh_runtime::admin::Health;
use time::OffsetDateTime;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    discovery::{Newcomer, unix_ms, unix_seconds},
    endpoints::Address,
    event::{Event, Question, Unknown},
    ingresses::Ingresses,
    inspect,
    mesh::{Mesh, Settled, Surroundings},
    metrics::{OfMesh, ZoneMetrics},
    registry::{Admission, Registry, StreamId},
    report::Reporter,
    rotation::{self, Acknowledged},
    scope::{Scope, Taken},
    store::{Loaded, Store},
    stream::Outgoing,
    sync::{Link, SyncEvent},
    token::{self, Issuer, Issuers},
    trust::{self, Authorities},
};

/// Events that are handled before what they touched is settled.
const BATCH: usize = 256;
/// How long status and reports wait for more of the same.
const PUSH_DELAY: Duration = Duration::from_millis(15);
/// How long files wait for more of the same.
const SAVE_DELAY: Duration = Duration::from_millis(200);
/// How much longer at most, where there is much to write.
const SAVE_DELAY_MAX: Duration = Duration::from_secs(5);
/// How often leases and tokens are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Every how many ticks CAs are looked at, and cursors kept that moved without a change.
const SLOW_TICKS: u64 = 30;
/// Refusals that a status lists at most.
const REFUSALS_MAX: usize = 200;

/// What the loop is made of.
pub struct ZoneParts {
    /// The zone.
    pub zone: ZoneName,
    /// The installation it belongs to.
    pub cluster_id: String,
    /// Names this control plane among those of its zone.
    pub instance: String,
    /// How long a dataplane may be away before it is forgotten.
    pub grace: Duration,
    /// Where everything is kept.
    pub store: Store,
    /// What was kept.
    pub loaded: Loaded,
    /// Token keys and revocations, for the discovery server.
    pub issuers: Arc<ArcSwap<Issuers>>,
    /// Hears the newest revision compiled.
    pub revision: watch::Sender<u64>,
    /// Readiness.
    pub health: Health,
    /// Counts.
    pub metrics: ZoneMetrics,
}

/// The zone's state.
pub struct Zone {
    name: ZoneName,
    cluster_id: String,
    instance: String,
    grace_ms: u64,
    store: Store,
    health: Health,
    metrics: ZoneMetrics,
    issuers: Arc<ArcSwap<Issuers>>,
    revision: watch::Sender<u64>,

    global: Scope,
    surroundings: Surroundings,
    meshes: BTreeMap<MeshName, Slot>,
    ingresses: Ingresses,
    ingress_streams: BTreeMap<String, (StreamId, Outgoing<ToDataplane>)>,
    streams: BTreeMap<StreamId, Peer>,
    link: Option<Link>,
    reporter: Reporter,
    trust_problems: BTreeMap<MeshName, String>,

    started_ms: u64,
    /// Registrations were lost: what is missing may come back until the grace period is over.
    additive: bool,
    ticks: u64,
    routes_dirty: bool,
    report_dirty: bool,
    status_dirty: bool,
    push_at: Option<Instant>,
    save_at: Option<Instant>,
    scopes_to_save: BTreeSet<Option<MeshName>>,
    cursors_to_save: BTreeSet<Option<MeshName>>,
    registrations_to_save: BTreeSet<Option<MeshName>>,
}

/// One mesh with what it needs of the world: its keys, and its streams.
struct Slot {
    mesh: Mesh,
    authorities: Authorities,
    streams: BTreeMap<String, (StreamId, Outgoing<ToDataplane>)>,
}

/// Who is at the other end of a stream.
#[derive(Debug, Clone)]
struct Peer {
    /// `None`: an ingress.
    mesh: Option<MeshName>,
    name: String,
}

impl Zone {
    /// The zone as it was stored. What is known is compiled at once, before anybody is heard.
    ///
    /// # Errors
    /// Where the CA keys cannot be read.
    pub fn new(parts: ZoneParts) -> Result<Self, crate::store::StoreError> {
        let ZoneParts {
            zone,
            loaded,
            store,
            ..
        } = parts;
        let now = unix_ms();
        let restore = |stored, what: &dyn std::fmt::Display| {
            let (registry, unreadable) = Registry::restored(stored, now);
            for reason in unreadable {
                tracing::warn!(%reason, scope = %what, "a stored registration cannot be read: it must come again");
            }
            registry
        };
        let mut dataplanes = loaded.dataplanes;
        let mut meshes = BTreeMap::new();
        for (name, scope) in loaded.meshes {
            let registry = restore(dataplanes.remove(&name).unwrap_or_default(), &name);
            let authorities = Authorities::open(&store.ca_path(&name))?;
            let mut mesh = Mesh::new(name.clone(), zone.clone(), scope, registry);
            mesh.set_own_anchors(anchors(&authorities));
            let slot = Slot {
                mesh,
                authorities,
                streams: BTreeMap::new(),
            };
            meshes.insert(name, slot);
        }
        let mut this = Self {
            ingresses: Ingresses::new(zone.clone(), restore(loaded.ingresses, &"ingresses")),
            name: zone,
            cluster_id: parts.cluster_id,
            instance: parts.instance,
            grace_ms: u64::try_from(parts.grace.as_millis()).unwrap_or(u64::MAX),
            store,
            health: parts.health,
            metrics: parts.metrics,
            issuers: parts.issuers,
            revision: parts.revision,
            global: loaded.global.unwrap_or_default(),
            surroundings: Surroundings::default(),
            meshes,
            ingress_streams: BTreeMap::new(),
            streams: BTreeMap::new(),
            link: None,
            reporter: Reporter::new(loaded.epoch),
            trust_problems: BTreeMap::new(),
            started_ms: now,
            additive: loaded.registrations_damaged,
            ticks: 0,
            routes_dirty: true,
            report_dirty: true,
            status_dirty: true,
            push_at: None,
            save_at: None,
            scopes_to_save: BTreeSet::new(),
            cursors_to_save: BTreeSet::new(),
            registrations_to_save: BTreeSet::new(),
        };
        this.take_global_scope();
        this.settle();
        Ok(this)
    }

    /// Handles events until `stop`, then says good-bye and keeps what is not kept yet.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            let (push_at, save_at) = (self.push_at, self.save_at);
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle_batch(event, &mut events),
                    None => break,
                },
                () = at(push_at) => self.push(),
                () = at(save_at) => self.save(),
                _ = tick.tick() => self.handle_tick(),
                () = stop.cancelled() => break,
            }
            self.settle();
        }
        self.say_goodbye();
        self.cursors_to_save.insert(None);
        self.cursors_to_save
            .extend(self.meshes.keys().cloned().map(Some));
        self.scopes_to_save.append(&mut self.cursors_to_save);
        self.save();
        self.store.close();
    }

    fn handle_batch(&mut self, first: Event, events: &mut mpsc::Receiver<Event>) {
        self.handle(first);
        for _ in 1..BATCH {
            match events.try_recv() {
                Ok(event) => self.handle(event),
                Err(_) => break,
            }
        }
    }

    /// Handles one event; [`Self::settle`] must follow.
    fn handle(&mut self, event: Event) {
        match event {
            Event::Sync(event) => self.handle_sync(event),
            Event::Arrived(newcomer) => self.handle_arrival(*newcomer),
            Event::Said(stream, message) => self.handle_message(stream, message),
            Event::Gone {
                stream,
                heard_ms,
                reason,
            } => self.handle_gone(stream, heard_ms, &reason),
            Event::Asked(question, answer) => {
                let _ = answer.send(self.answer(&question));
            }
        }
    }

    // === global ===

    fn handle_sync(&mut self, event: SyncEvent) {
        match event {
            SyncEvent::Connecting(ask) => {
                let _ = ask.send(self.hello());
            }
            SyncEvent::Connected(hello, link) => self.handle_connected(&hello, link),
            SyncEvent::Message(message) => {
                // After a stream was given up, what is left of it is not listened to.
                if self.link.is_some() {
                    self.handle_global(*message);
                }
            }
            SyncEvent::Ended { address, reason } => {
                if self.link.take().is_some() {
                    tracing::warn!(%address, %reason, "the stream to global has ended; the zone goes on with what it knows");
                } else {
                    tracing::debug!(%address, %reason, "global is not reached");
                }
                self.metrics.sync_connected.set(0);
            }
        }
    }

    fn hello(&mut self) -> ZoneHello {
        self.global.begin_stream();
        for slot in self.meshes.values_mut() {
            slot.mesh.begin_stream();
        }
        // One history for all cursors: scopes of another begin with a snapshot.
        let history_id = self.global.history_id().to_owned();
        let scopes = std::iter::once(("", &self.global)).chain(
            self.meshes
                .iter()
                .map(|(name, slot)| (name.as_str(), slot.mesh.scope())),
        );
        let cursors = scopes
            .filter(|(_, scope)| scope.history_id() == history_id)
            .filter_map(|(mesh, scope)| {
                Some(Cursor {
                    mesh: mesh.to_owned(),
                    revision: scope.cursor()?,
                })
            })
            .collect();
        ZoneHello {
            version: VERSION.to_owned(),
            features: features::SYNC.iter().map(|f| (*f).to_owned()).collect(),
            session: uuid::Uuid::new_v4().to_string(),
            history_id,
            cursors,
            instance: self.instance.clone(),
        }
    }

    fn handle_connected(&mut self, hello: &GlobalHello, link: Link) {
        if hello.cluster_id != self.cluster_id {
            tracing::error!(
                theirs = %hello.cluster_id,
                ours = %self.cluster_id,
                "global is another installation than the one this zone joined: nothing is taken from it"
            );
            link.reconnect();
            return;
        }
        let gone: Vec<_> = self
            .meshes
            .keys()
            .filter(|name| !hello.meshes.iter().any(|mesh| mesh == name.as_str()))
            .cloned()
            .collect();
        for mesh in gone {
            self.forget_mesh(&mesh);
        }
        tracing::info!(revision = hello.revision, version = %hello.version, "connected to global");
        self.link = Some(link);
        self.reporter.begin_stream();
        self.metrics.sync_connected.set(1);
        self.metrics.sync_streams.inc();
        self.metrics.global_revision.set(hello.revision);
        self.report_dirty = true;
        self.status_dirty = true;
    }

    fn handle_global(&mut self, message: from_global::Message) {
        match message {
            from_global::Message::Changes(changes) => self.handle_changes(changes),
            from_global::Message::Query(query) => self.handle_query(query),
            from_global::Message::ReportAck(ack) => {
                for (key, reason) in self.reporter.ack(ack) {
                    let key = mesh_proto::zone::ResourceKey::from(key);
                    tracing::warn!(resource = %key, %reason, "global refuses what this zone reports");
                }
                self.status_dirty = true;
            }
            from_global::Message::Heartbeat(beat) => {
                self.metrics.global_revision.set(beat.revision);
                self.note_revision();
            }
            from_global::Message::Hello(_) | from_global::Message::GoAway(_) => {}
        }
    }

    fn handle_changes(&mut self, changes: Changes) {
        self.metrics.global_revision.set(changes.to);
        if changes.mesh.is_empty() {
            let taken = self.global.take(changes);
            match &taken {
                Taken::Applied(changed) if !changed.is_empty() => self.take_global_scope(),
                Taken::Unconnected(_) => self.global.forget_cursor(),
                _ => {}
            }
            self.after_changes(None, taken);
            return;
        }
        let Ok(name) = changes.mesh.parse::<MeshName>() else {
            tracing::warn!(mesh = %changes.mesh, "global speaks of a mesh whose name is none: ignored");
            return;
        };
        if !self.meshes.contains_key(&name) && !changes.mesh_gone && !self.add_mesh(&name) {
            return;
        }
        let Some(slot) = self.meshes.get_mut(&name) else {
            return;
        };
        let taken = slot.mesh.take(changes);
        if matches!(taken, Taken::Unconnected(_)) {
            slot.mesh.forget_cursor();
        }
        self.after_changes(Some(name), taken);
    }

    fn after_changes(&mut self, scope: Option<MeshName>, taken: Taken) {
        match taken {
            Taken::Gathered => {}
            Taken::Applied(changed) => {
                self.status_dirty = true;
                if changed.is_empty() {
                    self.cursors_to_save.insert(scope);
                } else {
                    tracing::debug!(mesh = ?scope, changes = changed.len(), "resources changed");
                    self.scopes_to_save.insert(scope);
                    self.save_soon();
                }
            }
            Taken::Gone => {
                if let Some(mesh) = scope {
                    self.forget_mesh(&mesh);
                }
            }
            Taken::Unconnected(reason) => {
                tracing::warn!(mesh = ?scope, %reason, "what global sends does not follow on what is known: a snapshot is asked for");
                if let Some(link) = self.link.take() {
                    link.reconnect();
                }
            }
        }
    }

    fn add_mesh(&mut self, name: &MeshName) -> bool {
        match Authorities::open(&self.store.ca_path(name)) {
            Ok(authorities) => {
                tracing::info!(mesh = %name, "a mesh is placed in this zone");
                let scope = Scope::new(name.as_str());
                let mut mesh =
                    Mesh::new(name.clone(), self.name.clone(), scope, Registry::default());
                mesh.set_surroundings(&self.surroundings);
                mesh.set_own_anchors(anchors(&authorities));
                let slot = Slot {
                    mesh,
                    authorities,
                    streams: BTreeMap::new(),
                };
                self.meshes.insert(name.clone(), slot);
                true
            }
            Err(error) => {
                tracing::error!(%error, mesh = %name, "the keys of a mesh cannot be kept: the mesh is not served");
                self.trust_problems.insert(name.clone(), error.to_string());
                self.judge_trust();
                false
            }
        }
    }

    fn forget_mesh(&mut self, name: &MeshName) {
        let Some(slot) = self.meshes.remove(name) else {
            return;
        };
        tracing::info!(mesh = %name, "a mesh is no longer placed in this zone: it is forgotten");
        for (id, outgoing) in slot.streams.into_values() {
            self.streams.remove(&id);
            outgoing.end(Status::failed_precondition(format!(
                "mesh {name} is not placed in zone {} any more, or does not exist",
                self.name
            )));
        }
        self.store.forget_mesh(name);
        self.trust_problems.remove(name);
        self.judge_trust();
        for queued in [
            &mut self.scopes_to_save,
            &mut self.cursors_to_save,
            &mut self.registrations_to_save,
        ] {
            queued.remove(&Some(name.clone()));
        }
        self.routes_dirty = true;
        self.report_dirty = true;
        self.status_dirty = true;
    }

    /// Zones, ingresses of other zones, token keys.
    fn take_global_scope(&mut self) {
        let mut surroundings = Surroundings::default();
        let mut issuers = Issuers::default();
        for resource in self.global.resources() {
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
            } else if let Some(issuer) = resource.get::<TokenIssuer>() {
                issuers
                    .0
                    .insert(resource.meta.name.clone(), to_issuer(issuer));
            }
        }
        for slot in self.meshes.values_mut() {
            slot.mesh.set_surroundings(&surroundings);
        }
        self.surroundings = surroundings;
        if **self.issuers.load() != issuers {
            self.issuers.store(Arc::new(issuers));
            self.end_invalid_tokens();
        }
    }

    fn handle_query(&mut self, query: Query) {
        let question = match query.what {
            Some(What::ListDataplanes(list)) => Question::Dataplanes { mesh: list.mesh },
            Some(What::InspectDataplane(inspect)) => Question::Dataplane {
                mesh: inspect.mesh,
                name: inspect.name,
            },
            None => return self.answer_query(
                query.id,
                Err(Unknown(
                    "this zone control plane does not know the question: it is older than global"
                        .to_owned(),
                )),
            ),
        };
        self.settle();
        let answer = self.answer(&question);
        self.answer_query(query.id, answer);
    }

    fn answer_query(&self, id: u64, answer: Result<serde_json::Value, Unknown>) {
        let answer = match answer {
            Ok(value) => QueryAnswer {
                id,
                json: value.to_string().into_bytes(),
                error: String::new(),
            },
            Err(unknown) => QueryAnswer {
                id,
                json: Vec::new(),
                error: unknown.to_string(),
            },
        };
        if let Some(link) = &self.link {
            link.send(to_global::Message::Answer(answer));
        }
    }

    // === dataplanes ===

    fn handle_arrival(&mut self, newcomer: Newcomer) {
        let Newcomer {
            role,
            arrival,
            running,
            outgoing,
            answer,
        } = newcomer;
        let (id, name) = (arrival.stream, arrival.resource.meta.name.clone());
        let registered = match role {
            Role::Ingress => self.register_ingress(arrival, &running, &outgoing),
            _ => self.register_dataplane(arrival, &running, &outgoing),
        };
        match registered {
            Ok(mesh) => {
                self.streams.insert(id, Peer { mesh, name });
                let _ = answer.send(Ok(()));
            }
            Err(status) => {
                self.metrics.arrivals_refused.inc();
                tracing::warn!(dataplane = %name, reason = status.message(), "a dataplane is not registered");
                let _ = answer.send(Err(status));
            }
        }
    }

    fn register_dataplane(
        &mut self,
        arrival: crate::registry::Arrival,
        running: &[mesh_proto::discovery::DocumentVersion],
        outgoing: &Outgoing<ToDataplane>,
    ) -> Result<Option<MeshName>, Status> {
        let asked = &arrival.resource.meta.mesh;
        let mesh: MeshName = asked
            .parse()
            .map_err(|error: mesh_proto::names::InvalidName| {
                Status::invalid_argument(error.to_string())
            })?;
        let zone = &self.name;
        let slot = self.meshes.get_mut(&mesh).ok_or_else(|| {
            Status::unavailable(format!("mesh {mesh} is not known in zone {zone}: it does not exist, is not placed here, or has not arrived yet"))
        })?;
        // A zone that does not know a mesh wholly serves nobody in it, rather than half of it (FIELD e6).
        if slot.mesh.scope().cursor().is_none() && slot.mesh.scope().records().is_empty() {
            return Err(Status::unavailable(format!(
                "mesh {mesh} has not arrived in zone {zone} yet: call again"
            )));
        }
        let (stream, name) = (arrival.stream, arrival.resource.meta.name.clone());
        warn_of_same_address(&slot.mesh, &arrival.resource);
        match slot.mesh.arrive(arrival, running) {
            Admission::Outdated { connected } => Err(outdated(&name, connected)),
            Admission::Admitted { changed, .. } => {
                let old = slot.streams.insert(name, (stream, outgoing.clone()));
                end_replaced(&mut self.streams, old);
                self.registrations_to_save.insert(Some(mesh.clone()));
                self.report_dirty |= changed;
                self.status_dirty = true;
                self.save_soon();
                Ok(Some(mesh))
            }
        }
    }

    fn register_ingress(
        &mut self,
        arrival: crate::registry::Arrival,
        running: &[mesh_proto::discovery::DocumentVersion],
        outgoing: &Outgoing<ToDataplane>,
    ) -> Result<Option<MeshName>, Status> {
        let (stream, name) = (arrival.stream, arrival.resource.meta.name.clone());
        match self.ingresses.arrive(arrival, running) {
            Admission::Outdated { connected } => Err(outdated(&name, connected)),
            Admission::Admitted { .. } => {
                let old = self
                    .ingress_streams
                    .insert(name.clone(), (stream, outgoing.clone()));
                end_replaced(&mut self.streams, old);
                self.settle();
                let revision = self.newest_revision();
                self.publish_routes(revision, Some(&name));
                let additive = self.additive;
                for slot in self.meshes.values() {
                    for message in Ingresses::greet(&slot.mesh.ingress_sets(), additive) {
                        outgoing.send(message);
                    }
                }
                self.registrations_to_save.insert(None);
                self.report_dirty = true;
                self.save_soon();
                Ok(None)
            }
        }
    }

    fn handle_message(&mut self, stream: StreamId, message: to_zone::Message) {
        let Some(peer) = self.streams.get(&stream).cloned() else {
            return; // Its stream was ended here.
        };
        match &peer.mesh {
            Some(mesh) => self.handle_dataplane(mesh, &peer.name, message),
            None => self.handle_ingress(&peer.name, message),
        }
    }

    fn handle_dataplane(&mut self, mesh_name: &MeshName, name: &str, message: to_zone::Message) {
        let Some(slot) = self.meshes.get_mut(mesh_name) else {
            return;
        };
        let of = OfMesh {
            mesh: mesh_name.to_string(),
        };
        let count = |documents: usize| u64::try_from(documents).unwrap_or(0);
        match message {
            to_zone::Message::Ack(ack) => {
                self.metrics
                    .acks
                    .get_or_create(&of)
                    .inc_by(count(ack.documents.len()));
                slot.mesh.ack(name, &ack);
                self.status_dirty = true;
            }
            to_zone::Message::Nack(nack) => {
                self.metrics
                    .nacks
                    .get_or_create(&of)
                    .inc_by(count(nack.documents.len()));
                for refused in &nack.documents {
                    tracing::warn!(mesh = %mesh_name, dataplane = %name, document = %refused.name,
                        reason = %refused.reason, "a dataplane refuses a document and goes on with what it has");
                }
                slot.mesh.nack(name, &nack);
                self.status_dirty = true;
            }
            to_zone::Message::CertificateRequest(request) => self.issue(mesh_name, name, &request),
            to_zone::Message::Readiness(readiness) => {
                slot.mesh.readiness(name, &readiness.inbounds);
                self.registrations_to_save.insert(Some(mesh_name.clone()));
                self.save_soon();
            }
            to_zone::Message::Heartbeat(beat) => {
                slot.mesh.certificate_ends(name, beat.certificate_not_after);
                self.registrations_to_save.insert(Some(mesh_name.clone()));
                self.save_soon();
            }
            to_zone::Message::Leaving(_) => {
                tracing::info!(mesh = %mesh_name, dataplane = %name, "a dataplane drains");
                slot.mesh.leaving(name);
                self.registrations_to_save.insert(Some(mesh_name.clone()));
                self.save_soon();
            }
            to_zone::Message::Hello(_) => {
                if let Some((_, outgoing)) = slot.streams.get(name) {
                    outgoing.end(Status::invalid_argument("hello came twice"));
                }
            }
        }
    }

    fn handle_ingress(&mut self, name: &str, message: to_zone::Message) {
        match message {
            to_zone::Message::Ack(ack) => self.report_dirty |= self.ingresses.ack(name, &ack),
            to_zone::Message::Nack(nack) => {
                for refused in &nack.documents {
                    tracing::warn!(ingress = %name, document = %refused.name, reason = %refused.reason,
                        "an ingress refuses a document and goes on with what it has");
                }
                self.ingresses.nack(name, &nack);
            }
            to_zone::Message::Leaving(_) => {
                tracing::info!(ingress = %name, "an ingress drains");
                self.ingresses.leaving(name);
                self.report_dirty = true;
            }
            // An ingress has no identity of its own and no application behind it.
            to_zone::Message::CertificateRequest(request) => {
                let message = certificate(
                    &request.spiffe_id,
                    Err("an ingress has no identity".to_owned()),
                );
                if let Some((_, outgoing)) = self.ingress_streams.get(name) {
                    outgoing.send(message);
                }
            }
            to_zone::Message::Readiness(_) | to_zone::Message::Heartbeat(_) => return,
            to_zone::Message::Hello(_) => {
                if let Some((_, outgoing)) = self.ingress_streams.get(name) {
                    outgoing.end(Status::invalid_argument("hello came twice"));
                }
            }
        }
        self.registrations_to_save.insert(None);
        self.save_soon();
    }

    fn handle_gone(&mut self, stream: StreamId, heard_ms: u64, reason: &str) {
        let Some(peer) = self.streams.remove(&stream) else {
            return;
        };
        tracing::info!(mesh = ?peer.mesh.as_ref().map(MeshName::as_str), dataplane = %peer.name, %reason, "a stream has ended");
        match &peer.mesh {
            Some(mesh) => {
                let Some(slot) = self.meshes.get_mut(mesh) else {
                    return;
                };
                if slot
                    .streams
                    .get(&peer.name)
                    .is_some_and(|(id, _)| *id == stream)
                {
                    slot.streams.remove(&peer.name);
                }
                slot.mesh.disconnected(&peer.name, stream, heard_ms);
            }
            None => {
                if self
                    .ingress_streams
                    .get(&peer.name)
                    .is_some_and(|(id, _)| *id == stream)
                {
                    self.ingress_streams.remove(&peer.name);
                }
                self.report_dirty |= self.ingresses.disconnected(&peer.name, stream, heard_ms);
            }
        }
        self.registrations_to_save.insert(peer.mesh);
        self.status_dirty = true;
        self.save_soon();
    }

    fn issue(&mut self, mesh_name: &MeshName, name: &str, request: &CertificateRequest) {
        // The newest entitlement counts.
        self.settle_mesh(mesh_name);
        let Some(slot) = self.meshes.get(mesh_name) else {
            return;
        };
        let of = OfMesh {
            mesh: mesh_name.to_string(),
        };
        let issued = issue(slot, name, request);
        match &issued {
            Ok(_) => self.metrics.certificates_issued.get_or_create(&of).inc(),
            Err(reason) => {
                tracing::warn!(mesh = %mesh_name, dataplane = %name, asked = %request.spiffe_id, %reason,
                    "no certificate is issued");
                self.metrics.certificates_refused.get_or_create(&of).inc()
            }
        };
        if let Some((_, outgoing)) = slot.streams.get(name) {
            outgoing.send(certificate(&request.spiffe_id, issued));
        }
    }

    /// Ends the streams of those whose tokens no longer hold (FIELD b15).
    fn end_invalid_tokens(&mut self) {
        let issuers = self.issuers.load();
        let now = unix_seconds();
        let dataplanes = self.meshes.values().flat_map(|slot| {
            slot.streams
                .iter()
                .map(|(name, s)| (s, slot.mesh.registry().get(name)))
        });
        let ingresses = self
            .ingress_streams
            .iter()
            .map(|(name, s)| (s, self.ingresses.registry().get(name)));
        for ((_, outgoing), registration) in dataplanes.chain(ingresses) {
            let Some(registration) = registration else {
                continue;
            };
            if let Err(refused) = token::still_valid(&registration.token, &issuers, now) {
                tracing::warn!(dataplane = %registration.resource.meta.name, %refused, "the stream of a dataplane is ended");
                outgoing.end(Status::unauthenticated(refused.to_string()));
            }
        }
    }

    // === settling ===

    fn settle(&mut self) {
        let names: Vec<_> = self.meshes.keys().cloned().collect();
        for name in &names {
            self.settle_mesh(name);
        }
        if self.routes_dirty {
            self.routes_dirty = false;
            let revision = self.newest_revision();
            self.publish_routes(revision, None);
        }
        self.note_revision();
        if (self.report_dirty || self.status_dirty) && self.push_at.is_none() {
            self.push_at = Some(Instant::now() + PUSH_DELAY);
        }
    }

    fn settle_mesh(&mut self, name: &MeshName) {
        let settled = self.settle_once(name);
        self.dispatch(name, settled);
        // The first identity of a mesh makes its CA, whose anchor is settled in turn.
        if self.rotate(name, false) {
            let settled = self.settle_once(name);
            self.dispatch(name, settled);
        }
    }

    fn settle_once(&mut self, name: &MeshName) -> Settled {
        let Some(revision) = self.mesh_revision(name) else {
            return Settled::default();
        };
        let Some(slot) = self.meshes.get_mut(name) else {
            return Settled::default();
        };
        let authorities = &mut slot.authorities;
        slot.mesh.settle(revision, self.additive, |version| {
            let (generation, kept) = authorities.generation_of(version);
            if let Err(error) = kept {
                tracing::error!(%error, "the trust generation cannot be kept");
            }
            generation
        })
    }

    fn dispatch(&mut self, name: &MeshName, settled: Settled) {
        let Some(slot) = self.meshes.get(name) else {
            return;
        };
        let of = OfMesh {
            mesh: name.to_string(),
        };
        for (dataplane, message) in settled.sends {
            if let Some(to_dataplane::Message::Documents(documents)) = &message.message {
                let pushed = u64::try_from(documents.put.len()).unwrap_or(0);
                self.metrics
                    .documents_pushed
                    .get_or_create(&of)
                    .inc_by(pushed);
                self.status_dirty = true;
            }
            if let Some((_, outgoing)) = slot.streams.get(&dataplane) {
                outgoing.send(message);
            }
        }
        for (ingress, message) in self.ingresses.deltas(&settled.ingress_sets) {
            if let Some((_, outgoing)) = self.ingress_streams.get(&ingress) {
                outgoing.send(message);
            }
        }
        for warning in settled.warnings {
            tracing::warn!(mesh = %name, "{warning}");
        }
        self.routes_dirty |= settled.routes_changed;
        self.report_dirty |= settled.report_changed;
    }

    fn publish_routes(&mut self, revision: u64, greeted: Option<&str>) {
        let meshes: Vec<_> = self
            .meshes
            .iter()
            .map(|(name, slot)| (name, slot.mesh.services()))
            .collect();
        for (name, message) in self.ingresses.publish(meshes, revision, greeted) {
            if let Some((_, outgoing)) = self.ingress_streams.get(&name) {
                outgoing.send(message);
            }
        }
    }

    /// Looks at the CAs of a mesh. True where its anchors are others now. `always`: not only where there is none yet.
    fn rotate(&mut self, name: &MeshName, always: bool) -> bool {
        let global = self.link.is_some() && self.reporter.is_acknowledged() && !self.report_dirty;
        let Some(slot) = self.meshes.get_mut(name) else {
            return false;
        };
        if !always && slot.mesh.has_own_anchors() {
            return false;
        }
        let domains = slot.mesh.view().own_domains();
        let Some((_, domain)) = domains.first() else {
            return false; // Nobody has an identity here: nothing to vouch for.
        };
        let acknowledged = Acknowledged {
            dataplanes: slot.mesh.trust_is_acknowledged(),
            global,
        };
        let problem = rotate_now(&mut slot.authorities, domain, acknowledged, name);
        let changed = slot.mesh.set_own_anchors(anchors(&slot.authorities));
        let of = OfMesh {
            mesh: name.to_string(),
        };
        if let Some(issuing) = slot.authorities.cas().issuing {
            self.metrics
                .mesh_ca_end
                .get_or_create(&of)
                .set(issuing.not_after);
        }
        match problem {
            Some(problem) => drop(self.trust_problems.insert(name.clone(), problem)),
            None => drop(self.trust_problems.remove(name)),
        }
        self.judge_trust();
        changed
    }

    /// Not ready while a CA cannot sign.
    fn judge_trust(&self) {
        let problems: Vec<_> = self
            .trust_problems
            .iter()
            .map(|(mesh, problem)| format!("mesh {mesh}: {problem}"))
            .collect();
        let state = if problems.is_empty() {
            Ok(())
        } else {
            Err(problems.join("; "))
        };
        self.health.set("trust", state);
    }

    // === what others hear of the zone ===

    fn push(&mut self) {
        self.push_at = None;
        if self.report_dirty && !self.additive {
            self.report_dirty = false;
            let mut owned = BTreeMap::new();
            let of_meshes = self.meshes.values().flat_map(|slot| slot.mesh.reports());
            let of_zone = self
                .ingresses
                .entries()
                .map(|resource| Resource::clone(resource));
            for resource in of_meshes.chain(of_zone) {
                owned.insert(Key::from(resource.key()), resource.to_json());
            }
            self.reporter.want(owned);
        }
        if let Some(link) = &self.link {
            if !self.additive
                && let Some(report) = self.reporter.unsent()
            {
                link.send(to_global::Message::Report(report));
            }
            if self.status_dirty {
                link.send(to_global::Message::Status(self.status()));
            }
        }
        self.status_dirty = false;
    }

    fn status(&self) -> ZoneStatus {
        let unreadable = std::iter::once(&self.global)
            .chain(self.meshes.values().map(|slot| slot.mesh.scope()))
            .flat_map(Scope::unreadable)
            .map(|(key, _, reason)| (key, reason));
        let refused_by_global = self.reporter.refused().iter().map(|(k, r)| (k, r.as_str()));
        ZoneStatus {
            revision: self.lowest_revision(),
            meshes: self
                .meshes
                .iter()
                .map(|(name, slot)| slot.mesh.status(self.mesh_revision(name).unwrap_or(0)))
                .collect(),
            refused: unreadable
                .chain(refused_by_global)
                .take(REFUSALS_MAX)
                .map(|(key, reason)| ReportRefusal {
                    key: Some(key.clone().into()),
                    reason: reason.to_owned(),
                })
                .collect(),
        }
    }

    fn answer(&self, question: &Question) -> Result<serde_json::Value, Unknown> {
        let find = |mesh: &str| {
            self.meshes
                .get(mesh)
                .map(|slot| &slot.mesh)
                .ok_or_else(|| Unknown(format!("mesh {mesh} is not known in zone {}", self.name)))
        };
        match question {
            Question::Dataplanes { mesh } => Ok(inspect::dataplanes(find(mesh)?, &self.name)),
            Question::Dataplane { mesh, name } => inspect::dataplane(find(mesh)?, &self.name, name),
            Question::Services { mesh } => Ok(inspect::services(find(mesh)?)),
            Question::Status => Ok(inspect::zone(
                &self.name,
                &self.status(),
                self.link.is_some(),
                &self.ingresses,
            )),
        }
    }

    /// Everything of a mesh, and of what is outside any mesh, up to this revision is compiled.
    fn mesh_revision(&self, name: &MeshName) -> Option<u64> {
        let mesh = self.meshes.get(name)?.mesh.scope().cursor().unwrap_or(0);
        Some(mesh.min(self.global.cursor().unwrap_or(0)))
    }

    fn lowest_revision(&self) -> u64 {
        let scopes =
            std::iter::once(&self.global).chain(self.meshes.values().map(|s| s.mesh.scope()));
        scopes
            .map(|scope| scope.cursor().unwrap_or(0))
            .min()
            .unwrap_or(0)
    }

    fn newest_revision(&self) -> u64 {
        let scopes =
            std::iter::once(&self.global).chain(self.meshes.values().map(|s| s.mesh.scope()));
        scopes
            .map(|scope| scope.cursor().unwrap_or(0))
            .max()
            .unwrap_or(0)
    }

    fn note_revision(&mut self) {
        let revision = self.lowest_revision();
        self.revision
            .send_if_modified(|known| std::mem::replace(known, revision) != revision);
        let known = i64::try_from(revision).unwrap_or(i64::MAX);
        let global = i64::try_from(self.metrics.global_revision.get()).unwrap_or(i64::MAX);
        self.metrics.sync_revision.set(known);
        self.metrics.sync_lag.set((global - known).max(0));
    }

    // === time ===

    fn handle_tick(&mut self) {
        let now = unix_ms();
        self.ticks += 1;
        if self.additive && now >= self.started_ms.saturating_add(self.grace_ms) {
            self.end_additive();
        }
        self.expire(now);
        self.end_invalid_tokens();
        if self.ticks % SLOW_TICKS == 1 {
            self.handle_slow_tick();
        }
    }

    fn expire(&mut self, now: u64) {
        let mut gone = Vec::new();
        for (name, slot) in &mut self.meshes {
            let names = slot.mesh.expire(now, self.grace_ms);
            gone.extend(
                names
                    .into_iter()
                    .map(|dataplane| (Some(name.clone()), dataplane)),
            );
        }
        let names = self.ingresses.expire(now, self.grace_ms);
        gone.extend(names.into_iter().map(|ingress| (None, ingress)));
        for (mesh, name) in gone {
            tracing::info!(mesh = ?mesh.as_ref().map(MeshName::as_str), dataplane = %name,
                "a dataplane stayed away through its grace period and is forgotten");
            self.registrations_to_save.insert(mesh);
            self.report_dirty = true;
            self.status_dirty = true;
            self.save_soon();
        }
    }

    /// Whoever was registered has had its time to come back: what is known now is everything.
    fn end_additive(&mut self) {
        self.additive = false;
        self.report_dirty = true;
        for slot in self.meshes.values_mut() {
            for (name, message) in slot.mesh.feed_again() {
                if let Some((_, outgoing)) = slot.streams.get(&name) {
                    outgoing.send(message);
                }
            }
            for message in Ingresses::greet(&slot.mesh.ingress_sets(), false) {
                for (_, outgoing) in self.ingress_streams.values() {
                    outgoing.send(message.clone());
                }
            }
        }
    }

    fn handle_slow_tick(&mut self) {
        let names: Vec<_> = self.meshes.keys().cloned().collect();
        for name in &names {
            self.rotate(name, true);
        }
        if !self.cursors_to_save.is_empty() {
            self.scopes_to_save.append(&mut self.cursors_to_save);
            self.save_soon();
        }
        self.measure();
    }

    fn measure(&self) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (name, slot) in &self.meshes {
            let of = OfMesh {
                mesh: name.to_string(),
            };
            let registry = slot.mesh.registry();
            self.metrics
                .dataplanes_connected
                .get_or_create(&of)
                .set(gauge(slot.streams.len()));
            self.metrics
                .dataplanes_registered
                .get_or_create(&of)
                .set(gauge(registry.len()));
            let ends = registry
                .iter()
                .filter(|(_, r)| r.stream.is_some())
                .map(|(_, r)| r.certificate_not_after)
                .filter(|end| *end > 0);
            let earliest = ends
                .min()
                .map_or(0, |end| i64::try_from(end).unwrap_or(i64::MAX));
            self.metrics
                .earliest_certificate_end
                .get_or_create(&of)
                .set(earliest);
        }
        self.metrics
            .ingresses_connected
            .set(gauge(self.ingress_streams.len()));
    }

    /// The more there is to write, the longer it waits for more of the same.
    fn save_soon(&mut self) {
        if self.save_at.is_none() {
            let registered: usize = self.meshes.values().map(|s| s.mesh.registry().len()).sum();
            let longer = Duration::from_millis(u64::try_from(registered / 10).unwrap_or(0));
            self.save_at = Some(Instant::now() + SAVE_DELAY + longer.min(SAVE_DELAY_MAX));
        }
    }

    fn save(&mut self) {
        self.save_at = None;
        for mesh in std::mem::take(&mut self.scopes_to_save) {
            match &mesh {
                None => self.store.save_scope(None, &self.global),
                Some(name) => {
                    if let Some(slot) = self.meshes.get(name) {
                        self.store.save_scope(Some(name), slot.mesh.scope());
                    }
                }
            }
        }
        for mesh in std::mem::take(&mut self.registrations_to_save) {
            match &mesh {
                None => self
                    .store
                    .save_registrations(None, self.ingresses.registry()),
                Some(name) => {
                    if let Some(slot) = self.meshes.get(name) {
                        self.store
                            .save_registrations(Some(name), slot.mesh.registry());
                    }
                }
            }
        }
    }

    /// Dataplanes go on with what they have, and call again at their leisure.
    fn say_goodbye(&mut self) {
        let of_meshes = self
            .meshes
            .values_mut()
            .flat_map(|slot| std::mem::take(&mut slot.streams).into_values());
        let ingresses = std::mem::take(&mut self.ingress_streams).into_values();
        for (_, outgoing) in of_meshes.chain(ingresses) {
            outgoing.send(ToDataplane {
                message: Some(to_dataplane::Message::GoAway(GoAway {
                    addresses: Vec::new(),
                    reason: "this zone control plane is stopping".to_owned(),
                })),
            });
        }
    }
}

/// Anchors of a mesh's CAs, in DER.
fn anchors(authorities: &Authorities) -> Vec<Vec<u8>> {
    let anchors = authorities.anchors();
    anchors.iter().map(|der| der.to_vec()).collect()
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn to_issuer(issuer: &TokenIssuer) -> Issuer {
    Issuer {
        keys: issuer
            .keys
            .iter()
            .map(|key| (key.kid.clone(), key.public_key.clone()))
            .collect(),
        revoked: issuer
            .revoked
            .iter()
            .map(|token| token.id.clone())
            .collect(),
    }
}

fn outdated(name: &str, connected: u64) -> Status {
    Status::already_exists(format!(
        "a newer session (number {connected}) of {name} is connected: give each dataplane a name and a state directory of its own"
    ))
}

fn end_replaced(
    streams: &mut BTreeMap<StreamId, Peer>,
    old: Option<(StreamId, Outgoing<ToDataplane>)>,
) {
    if let Some((id, outgoing)) = old {
        streams.remove(&id);
        outgoing.end(Status::aborted(
            "another stream of this name has taken over",
        ));
    }
}

/// Two dataplanes at one address both keep their entries; somebody should know (FIELD f9).
fn warn_of_same_address(mesh: &Mesh, resource: &Resource) {
    let listens = |resource: &Resource| -> BTreeSet<Address> {
        let networking = resource
            .get::<mesh_model::Dataplane>()
            .map(|d| &d.networking);
        networking
            .iter()
            .flat_map(|n| {
                n.inbound.iter().map(|inbound| Address {
                    host: inbound.listen_address(n).to_string(),
                    port: inbound.port,
                })
            })
            .collect()
    };
    let wanted = listens(resource);
    for (name, other) in mesh.registry().iter() {
        if name == resource.meta.name {
            continue;
        }
        if let Some(address) = listens(&other.resource).intersection(&wanted).next() {
            tracing::warn!(mesh = %resource.meta.mesh, dataplane = %resource.meta.name, other = %name, %address,
                "two dataplanes say they listen at the same address");
        }
    }
}

fn issue(slot: &Slot, name: &str, request: &CertificateRequest) -> Result<Vec<Vec<u8>>, String> {
    let registration = slot.mesh.registration(name).ok_or("not registered")?;
    let identities: Vec<&Resource> = slot
        .mesh
        .view()
        .identities
        .iter()
        .map(Arc::as_ref)
        .collect();
    let dataplane = &registration.resource;
    let zone = &slot.mesh.view().zone;
    let entitled =
        identity::spiffe_id(&identities, dataplane, zone).map_err(|error| error.to_string())?;
    if request.spiffe_id != entitled.to_string() {
        return Err(format!("this dataplane's identity is {entitled}"));
    }
    let lifetime = identity::select(&identities, dataplane)
        .and_then(|resource| resource.get::<MeshIdentity>())
        .map_or(time::Duration::DAY, |identity| {
            time::Duration::try_from(identity.certificate_lifetime()).unwrap_or(time::Duration::DAY)
        });
    slot.authorities
        .issue(&request.csr, &entitled, lifetime, OffsetDateTime::now_utc())
        .map(|leaf| vec![leaf.to_vec()])
        .map_err(|error| error.to_string())
}

fn certificate(spiffe_id: &str, issued: Result<Vec<Vec<u8>>, String>) -> ToDataplane {
    let (chain, error) = match issued {
        Ok(chain) => (chain, String::new()),
        Err(error) => (Vec::new(), error),
    };
    ToDataplane {
        message: Some(to_dataplane::Message::Certificate(Certificate {
            spiffe_id: spiffe_id.to_owned(),
            chain,
            error,
        })),
    }
}

/// Carries out what is due, and says what is wrong afterwards.
fn rotate_now(
    authorities: &mut Authorities,
    domain: &TrustDomain,
    acknowledged: Acknowledged,
    name: &MeshName,
) -> Option<String> {
    let now = OffsetDateTime::now_utc();
    let problem = match trust::rotate(authorities, domain, acknowledged, now) {
        Ok(steps) => {
            for step in steps {
                tracing::info!(mesh = %name, ?step, "the mesh's CA moves on");
            }
            None
        }
        Err(error) => {
            tracing::error!(%error, mesh = %name, "the mesh's CA cannot be made or renewed");
            Some(error.to_string())
        }
    };
    let cas = authorities.cas();
    if let Some(reason) = rotation::blocked_by(&cas, acknowledged, now.unix_timestamp()) {
        tracing::warn!(mesh = %name, %reason, "the mesh's new CA does not issue yet");
    }
    let ends = cas.issuing.map(|issuing| issuing.not_after);
    problem.or_else(|| match ends {
        Some(end) if end <= now.unix_timestamp() => {
            Some("its CA has ended: no certificate is issued".to_owned())
        }
        _ => None,
    })
}
