//! The zone's loop: the one place where its state changes.
//!
//! An [`Event`] comes in, marks what it touches in the state of one mesh, and after a batch of events everything that
//! was touched is settled and sent. Nothing here waits for a peer or for the disk: messages go to bounded queues, files
//! to the store's thread.

mod clock;
mod dataplanes;
mod gather;
mod global;
mod push;
mod questions;
mod settle;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use mesh_proto::{
    discovery::ToDataplane,
    names::{MeshName, ZoneName},
};
use mesh_runtime::admin::Health;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    discovery::unix_ms,
    event::Event,
    ingresses::Ingresses,
    mesh::{Mesh, Surroundings},
    metrics::ZoneMetrics,
    registry::{Registry, StreamId},
    report::Reporter,
    scope::Scope,
    store::{Loaded, Store},
    stream::Outgoing,
    sync::Link,
    token::Issuers,
    trust::Authorities,
};

/// Events that are handled before what they touched is settled.
const BATCH: usize = 256;
/// How long status and reports wait for more of the same.
const PUSH_DELAY: Duration = Duration::from_millis(15);
/// How long what global has said may take to reach the disk before it takes effect all the same.
const KEEP_LIMIT: Duration = Duration::from_secs(2);
/// How long registrations wait for more of the same before they are written.
const SAVE_DELAY: Duration = Duration::from_millis(200);
/// How much longer at most, where there is much to write.
const SAVE_DELAY_MAX: Duration = Duration::from_secs(5);
/// How often leases and tokens are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often a mesh's conditions are found anew at most. A little less than a tick, so that none is missed.
const JUDGE_INTERVAL: Duration = Duration::from_millis(900);
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
    plans: questions::Plans,
    gatherings: gather::Gatherings,

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
    /// When its conditions were found last.
    judged_at: Option<Instant>,
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
                judged_at: None,
            };
            meshes.insert(name, slot);
        }
        let mut this = Self {
            ingresses: Ingresses::new(zone.clone(), restore(loaded.ingresses, &"ingresses")),
            gatherings: gather::Gatherings::new(&zone),
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
            plans: questions::Plans::default(),
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
            let gathered_at = self.gatherings.ends_at();
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle_batch(event, &mut events),
                    None => break,
                },
                () = at(push_at) => self.push(),
                () = at(save_at) => self.save(),
                () = at(gathered_at) => self.gatherings.end_overdue(),
                _ = tick.tick() => self.handle_tick(),
                () = stop.cancelled() => break,
            }
            self.keep_scopes().await;
            self.settle();
        }
        self.say_goodbye();
        self.cursors_to_save.insert(None);
        self.cursors_to_save
            .extend(self.meshes.keys().cloned().map(Some));
        self.scopes_to_save.append(&mut self.cursors_to_save);
        self.keep_scopes().await;
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
                self.handle_question(question, Box::new(|found| drop(answer.send(found))))
            }
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
