//! The gRPC service that zones call, and one stream's life.
//!
//! A stream has three sides that run at once and end together: *reading* what the zone says, *telling* it what changed,
//! and *taking over* its reports. It ends, with a reason that the zone is told, when the zone says nothing for two
//! heartbeats, does not read, breaks the protocol, is deleted or disabled, or calls again.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::Stream as FuturesStream;
use mesh_model::{Resource, Zone};
use mesh_proto::{
    features,
    names::ZoneName,
    raft,
    zone::{
        Changes, GlobalHello, GoAway, Heartbeat, RenewCertificateRequest, RenewCertificateResponse,
        ReportAck, ResourceKey, ResourceRecord, ToGlobal, ToZone, ZoneHello, ZoneReport, to_global,
        to_zone::Message, zone_sync_server,
    },
};
use mesh_runtime::{pki, transport};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

use super::{
    report::{self, Pending},
    scope::{self, Placement, Step},
    streams::Stream,
};
use crate::{
    api::status::known_zones,
    app::App,
    ca::{self, InstallationCa, Signer as _},
    certificates,
    cluster::WriteError,
    state::{Stored, image::Image},
};

/// How long a zone may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that wait for a zone. One that takes none for two heartbeats is cut off.
const QUEUE: usize = 64;
/// How long reports are gathered before they are written, so that a burst costs one entry.
const GATHER: Duration = Duration::from_millis(20);
/// Pause after a write that was not possible.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct ZoneSync {
    app: App,
}

impl ZoneSync {
    /// Serves what `app` holds.
    #[must_use]
    pub fn new(app: App) -> Self {
        Self { app }
    }
}

type Outgoing = Pin<Box<dyn FuturesStream<Item = Result<ToZone, Status>> + Send>>;

#[tonic::async_trait]
impl zone_sync_server::ZoneSync for ZoneSync {
    type SyncStream = Outgoing;

    async fn sync(
        &self,
        request: Request<Streaming<ToGlobal>>,
    ) -> Result<Response<Outgoing>, Status> {
        let zone = self.caller(&request).await?;
        let address = transport::peer_address(&request)
            .map(|address| address.to_string())
            .unwrap_or_default();
        if let Some(leaf) = leaf(&request) {
            self.app
                .streams
                .certificate(zone.as_str(), certificates::end_of(&leaf));
        }
        let (outgoing, receiver) = mpsc::channel(QUEUE);
        let app = self.app.clone();
        tokio::spawn(async move {
            let incoming = request.into_inner();
            let ended = run(&app, &zone, incoming, &outgoing).await;
            match &ended {
                Ended::ByZone => tracing::info!(%zone, %address, "the zone ended its stream"),
                Ended::ByUs(reason) => {
                    tracing::info!(%zone, %address, %reason, "the stream of a zone was ended");
                    go_away(&outgoing, reason);
                }
                Ended::Refused(status) => {
                    tracing::warn!(%zone, %address, reason = status.message(), "the stream of a zone was refused");
                    let _ = outgoing.try_send(Err(status.clone()));
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let zone = self.caller(&request).await?;
        let csr = request.into_inner().csr;
        let internal = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
        let ca = InstallationCa::open(&self.app.image(), &self.app.sealing)
            .map_err(|error| internal(&error))?;
        let leaf = ca
            .sign(
                &csr,
                &ca::zone_subject(&zone),
                OffsetDateTime::now_utc(),
                ca::ZONE_LIFETIME,
            )
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.app
            .streams
            .certificate(zone.as_str(), certificates::end_of(&leaf));
        tracing::info!(%zone, "the certificate of a zone was renewed");
        Ok(Response::new(RenewCertificateResponse {
            certificate: pki::to_pem(&leaf),
            anchors: ca.bundle().iter().map(pki::to_pem).collect(),
        }))
    }
}

impl ZoneSync {
    /// The zone that calls, by its certificate: it must exist and be enabled.
    async fn caller<T>(&self, request: &Request<T>) -> Result<ZoneName, Status> {
        let zone = transport::peer_spiffe(request)
            .and_then(|id| id.as_zone())
            .ok_or_else(|| {
                Status::unauthenticated(
                    "only a zone with its certificate may call this: join first",
                )
            })?;
        if admitted(&self.app.image(), zone.as_str()).is_err() {
            // It may have been made at another node a moment ago.
            let _ = self.app.cluster.linearize().await;
        }
        let image = self.app.image();
        let admitted = admitted(&image, zone.as_str())
            .and_then(|()| check_age(&image, zone.as_str(), issued_ms(request)));
        admitted.map_err(|reason| {
            let address = transport::peer_address(request)
                .map(|address| address.ip().to_string())
                .unwrap_or_default();
            self.app
                .refused_stranger(&format!("zone/{zone}"), &address, "connect", &reason);
            Status::permission_denied(reason)
        })?;
        Ok(zone)
    }
}

/// Whether a zone may be connected.
fn admitted(image: &Image, zone: &str) -> Result<(), String> {
    let stored = image
        .get(&ResourceKey::global("Zone", "", zone))
        .ok_or_else(|| format!("there is no zone {zone}: it was deleted"))?;
    let enabled = Resource::from_json(&stored.json)
        .ok()
        .and_then(|resource| resource.get::<Zone>().map(|zone| zone.enabled));
    match enabled {
        Some(true) => Ok(()),
        Some(false) => Err(format!("zone {zone} is disabled")),
        None => Err(format!(
            "zone {zone} is not readable here: upgrade this node"
        )),
    }
}

/// How far the clocks of two nodes may differ.
const CLOCK_SKEW_MS: u64 = 150_000;

/// A certificate that is older than the zone was made out to another zone of the same name, which was deleted.
fn check_age(image: &Image, zone: &str, issued_ms: Option<u64>) -> Result<(), String> {
    let created_ms = image
        .get(&ResourceKey::global("Zone", "", zone))
        .map_or(0, |stored| stored.created_ms);
    match issued_ms {
        Some(issued_ms) if issued_ms + CLOCK_SKEW_MS >= created_ms => Ok(()),
        _ => Err(format!(
            "the certificate is of an earlier zone {zone}, which was deleted: join again"
        )),
    }
}

/// When the caller's certificate was made, in Unix milliseconds.
fn issued_ms<T>(request: &Request<T>) -> Option<u64> {
    let (begin, _) = pki::validity(&leaf(request)?).ok()?;
    let issued = (begin + pki::NOT_BEFORE_SKEW).unix_timestamp();
    u64::try_from(issued).ok()?.checked_mul(1000)
}

/// The caller's certificate.
fn leaf<T>(request: &Request<T>) -> Option<CertificateDer<'static>> {
    let info = request
        .extensions()
        .get::<TlsConnectInfo<TcpConnectInfo>>()?;
    Some(info.peer_certs()?.first()?.clone())
}

/// Where a zone is placed now.
fn placement(image: &Image, zone: &str) -> Placement {
    let known = known_zones(image)
        .into_iter()
        .find(|known| known.name == zone);
    Placement {
        zone: zone.to_owned(),
        meshes: known.map(|known| known.meshes).unwrap_or_default(),
    }
}

/// How a stream ended.
enum Ended {
    ByZone,
    ByUs(String),
    Refused(Status),
}

type Sender = mpsc::Sender<Result<ToZone, Status>>;

async fn run(
    app: &App,
    zone: &ZoneName,
    mut incoming: Streaming<ToGlobal>,
    outgoing: &Sender,
) -> Ended {
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, incoming.message()).await {
        Ok(Ok(Some(ToGlobal {
            message: Some(to_global::Message::Hello(hello)),
        }))) => hello,
        Ok(Ok(None)) => return Ended::ByZone,
        Ok(Ok(Some(_))) => {
            return Ended::Refused(Status::failed_precondition(
                "the first message must be hello",
            ));
        }
        Ok(Err(status)) => return Ended::ByUs(status.message().to_owned()),
        Err(_) => return Ended::Refused(Status::deadline_exceeded("no hello came")),
    };
    let required: Vec<String> = features::SYNC.iter().map(|f| (*f).to_owned()).collect();
    let known: Vec<&str> = hello.features.iter().map(String::as_str).collect();
    let missing = features::missing(&required, &known);
    if !missing.is_empty() {
        return Ended::Refused(Status::failed_precondition(format!(
            "the zone's control plane ({}) has not {}: upgrade it",
            hello.version,
            missing.join(", ")
        )));
    }
    let stream = Arc::new(Stream::new(
        zone.to_string(),
        hello.instance.clone(),
        hello.session.clone(),
        hello.version.clone(),
        outgoing.clone(),
    ));
    app.streams.add(&stream);
    app.metrics.zone_streams(1);
    tracing::info!(%zone, session = %hello.session, version = %hello.version, "a zone is connected");
    let reports = Reports::default();
    let ended = tokio::select! {
        ended = read(app, &stream, &mut incoming, &reports) => ended,
        ended = tell(app, &stream, hello) => ended,
        ended = take_over(app, &stream, &reports) => ended,
        reason = stream.cut.cancelled() => Ended::ByUs(reason),
        () = app.stop.cancelled() => Ended::ByUs("this node stops: call another one".to_owned()),
        () = outgoing.closed() => Ended::ByZone,
    };
    app.streams.remove(&stream);
    app.metrics.zone_streams(-1);
    ended
}

fn go_away(outgoing: &Sender, reason: &str) {
    // Where the queue is full the zone hears of it by the end of the stream.
    let _ = outgoing.try_send(Ok(message(Message::GoAway(GoAway {
        addresses: vec![],
        reason: reason.to_owned(),
    }))));
}

fn message(message: Message) -> ToZone {
    ToZone {
        message: Some(message),
    }
}

// === reading ===

async fn read(
    app: &App,
    stream: &Stream,
    incoming: &mut Streaming<ToGlobal>,
    reports: &Reports,
) -> Ended {
    loop {
        let message = tokio::select! {
            message = incoming.message() => message,
            () = tokio::time::sleep(patience(app)) => {
                return Ended::ByUs(format!(
                    "nothing came from the zone for {} s",
                    patience(app).as_secs_f32()
                ));
            }
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return Ended::ByZone,
            Err(status) => return Ended::ByUs(format!("the stream broke: {}", status.message())),
        };
        stream.heard();
        match message.message {
            Some(to_global::Message::Heartbeat(heartbeat)) => {
                stream.acknowledged(heartbeat.revision)
            }
            Some(to_global::Message::Status(status)) => stream.status(status),
            Some(to_global::Message::Answer(answer)) => stream.answer(answer),
            Some(to_global::Message::Report(report)) => reports.add(report),
            Some(to_global::Message::Hello(_)) => {
                return Ended::Refused(Status::failed_precondition("hello came twice"));
            }
            // A newer zone's message that is not known here: it may not rely on it, since we did not name its feature.
            None => {}
        }
    }
}

/// Two missed heartbeats, and some slack for the third to be under way.
fn patience(app: &App) -> Duration {
    app.heartbeat * 2 + app.heartbeat / 2
}

// === telling ===

async fn tell(app: &App, stream: &Stream, hello: ZoneHello) -> Ended {
    let mut revisions = app.cluster.revisions();
    let mut heartbeat = tokio::time::interval(app.heartbeat);
    let mut number = 0;
    let image = app.image();
    let history_id = image.history_id();
    // What the zone has of another history, or of one that ends before, is worth nothing.
    let mut cursors: BTreeMap<String, u64> = hello
        .cursors
        .into_iter()
        .filter(|cursor| hello.history_id == history_id && cursor.revision <= image.revision())
        .map(|cursor| (cursor.mesh, cursor.revision))
        .collect();
    let greeting = Message::Hello(GlobalHello {
        version: mesh_proto::VERSION.to_owned(),
        features: features::SYNC.iter().map(|f| (*f).to_owned()).collect(),
        history_id: history_id.clone(),
        cluster_id: app.cluster.cluster_id().to_owned(),
        revision: image.revision(),
        heartbeat_interval_ms: u32::try_from(app.heartbeat.as_millis()).unwrap_or(u32::MAX),
        global_addresses: zone_addresses(app),
        meshes: placement(&image, &stream.zone).meshes.into_iter().collect(),
    });
    if let Err(ended) = send(app, stream, greeting).await {
        return ended;
    }
    drop(image);
    loop {
        revisions.mark_unchanged();
        let image = app.image();
        if let Err(reason) = admitted(&image, &stream.zone) {
            return Ended::ByUs(reason);
        }
        if image.history_id() != history_id {
            return Ended::ByUs("the history was restored from a backup: call again".to_owned());
        }
        for changes in step(&image, &placement(&image, &stream.zone), &mut cursors) {
            if let Err(ended) = send(app, stream, Message::Changes(changes)).await {
                return ended;
            }
        }
        drop(image);
        tokio::select! {
            changed = revisions.changed() => {
                if changed.is_err() {
                    return Ended::ByUs("this node stops: call another one".to_owned());
                }
            }
            _ = heartbeat.tick() => {
                number += 1;
                let beat = Heartbeat { number, revision: app.state().revision() };
                if let Err(ended) = send(app, stream, Message::Heartbeat(beat)).await {
                    return ended;
                }
            }
        }
    }
}

async fn send(app: &App, stream: &Stream, what: Message) -> Result<(), Ended> {
    let sending = stream.outgoing.send(Ok(message(what)));
    match tokio::time::timeout(patience(app), sending).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ended::ByZone),
        Err(_) => Err(Ended::ByUs("the zone does not read its stream".to_owned())),
    }
}

/// Addresses of every node's zone port.
#[must_use]
pub fn zone_addresses(app: &App) -> Vec<String> {
    let members = app.cluster.status().members;
    members
        .into_iter()
        .map(|member| member.addresses.zone)
        .filter(|address| !address.is_empty())
        .collect()
}

/// Everything that a zone with `cursors` has still to hear of `image`, and moves the cursors.
fn step(image: &Image, placement: &Placement, cursors: &mut BTreeMap<String, u64>) -> Vec<Changes> {
    let history_id = image.history_id();
    let to = image.revision();
    let mut messages = Vec::new();
    // A mesh that was deleted and made anew is another one of the same name: the zone must forget the first wholly, its
    // keys too.
    let reborn = |mesh: &str, cursor: u64| {
        image
            .get(&ResourceKey::global("Mesh", "", mesh))
            .is_some_and(|stored| stored.created_revision > cursor)
    };
    let gone: Vec<String> = cursors
        .iter()
        .filter(|(scope, _)| !scope.is_empty())
        .filter(|(mesh, cursor)| !placement.meshes.contains(*mesh) || reborn(mesh, **cursor))
        .map(|(mesh, _)| mesh.clone())
        .collect();
    for mesh in &gone {
        cursors.remove(mesh);
        messages.push(scope::mesh_gone(mesh, to, &history_id));
    }
    let new: BTreeSet<String> = placement
        .scopes()
        .filter(|scope| !cursors.contains_key(*scope))
        .map(str::to_owned)
        .collect();
    let mut snapshots = new;
    if !gone.is_empty() || !snapshots.is_empty() {
        // What a zone is told outside meshes depends on the meshes placed in it.
        snapshots.insert(String::new());
    }
    let mut deltas: BTreeMap<String, u64> = cursors
        .iter()
        .filter(|(scope, _)| !snapshots.contains(*scope))
        .map(|(scope, cursor)| (scope.clone(), *cursor))
        .collect();
    let mut steps: Vec<Step> = Vec::new();
    while let Some(oldest) = deltas.values().min().copied().filter(|oldest| *oldest < to) {
        match image.changes_since(oldest) {
            Ok(changes) => {
                let changes =
                    changes.map(|change| (change.revision, change.key, change.stored.map(record)));
                steps = scope::deltas(placement, &deltas, to, changes);
                break;
            }
            Err(too_old) => {
                // Those that are too far behind get everything.
                let behind = |cursor: &u64| *cursor <= oldest || *cursor < too_old.oldest;
                snapshots.extend(
                    deltas
                        .iter()
                        .filter(|(_, cursor)| behind(cursor))
                        .map(|(scope, _)| scope.clone()),
                );
                deltas.retain(|_, cursor| !behind(cursor));
            }
        }
    }
    steps.extend(snapshots.iter().map(|scope| {
        let records = image.all_in_mesh(scope).into_iter().map(record);
        scope::snapshot(placement, scope, to, records)
    }));
    // What is outside any mesh first: a mesh is known before what is in it.
    steps.sort_by(|a, b| a.scope.cmp(&b.scope));
    for step in steps {
        cursors.insert(step.scope.clone(), step.to);
        messages.extend(scope::messages(step, &history_id));
    }
    messages
}

fn record(stored: Stored) -> ResourceRecord {
    ResourceRecord {
        key: Some(stored.key),
        json: stored.json,
        revision: stored.modified_revision,
        modified_ms: stored.modified_ms,
        created_revision: stored.created_revision,
    }
}

// === taking over reports ===

/// Reports that wait, merged; see [`Pending`] for how much that can be.
#[derive(Default)]
struct Reports {
    pending: Mutex<Pending>,
    came: Notify,
}

impl Reports {
    fn add(&self, report: ZoneReport) {
        if self.lock().add(report) {
            self.came.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn take_over(app: &App, stream: &Stream, reports: &Reports) -> Ended {
    loop {
        reports.came.notified().await;
        tokio::time::sleep(GATHER).await;
        let pending = std::mem::take(&mut *reports.lock());
        if pending.is_empty() {
            continue;
        }
        match write_report(app, stream, &pending).await {
            Ok(None) => {
                tracing::info!(zone = %stream.zone, "an old report was ignored");
            }
            Ok(Some(refused)) => {
                app.metrics.reports_refused(refused.len());
                for refusal in &refused {
                    let key = refusal.key.as_ref().map(ToString::to_string);
                    tracing::warn!(zone = %stream.zone, key, reason = %refusal.reason, "a zone reported something that it may not");
                }
                let ack = ReportAck {
                    epoch: pending.position.epoch,
                    sequence: pending.position.sequence,
                    refused,
                };
                if let Err(ended) = send(app, stream, Message::ReportAck(ack)).await {
                    return ended;
                }
            }
            Err(error) => {
                tracing::warn!(%error, zone = %stream.zone, "a report waits");
                reports.lock().put_back(pending);
                reports.came.notify_one();
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Writes what of a report is new. `None`: a newer one was taken over before.
async fn write_report(
    app: &App,
    stream: &Stream,
    pending: &Pending,
) -> Result<Option<Vec<mesh_proto::zone::ReportRefusal>>, WriteError> {
    if !app.streams.in_order(&stream.zone, pending.position) {
        return Ok(None);
    }
    loop {
        let image = app.image();
        if admitted(&image, &stream.zone).is_err() {
            return Ok(None);
        }
        let placement = placement(&image, &stream.zone);
        let outcome = report::plan(&image, &placement, pending);
        if outcome.stale {
            return Ok(None);
        }
        if outcome.operations.is_empty() {
            return Ok(Some(outcome.refused));
        }
        let entry = raft::Entry {
            actor: Some(raft::Actor {
                name: format!("zone/{}", stream.zone),
                address: String::new(),
            }),
            summary: crate::writes::summary(&outcome.operations),
            operations: outcome.operations,
            ..raft::Entry::default()
        };
        let result = app.cluster.write(entry).await?;
        app.metrics.write(result.refusal.is_none());
        let Some(refusal) = result.refusal else {
            return Ok(Some(outcome.refused));
        };
        tracing::debug!(reason = %refusal.reason, "planning a report again");
        if let Err(error) = app.cluster.linearize().await {
            return Err(WriteError::NoQuorum(error.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::raft::Entry;

    use super::*;
    use crate::{
        changes::put_operation,
        facts,
        state::apply::{ENTRY_VERSION, LIMITS, apply},
    };

    fn write(image: &mut Image, operations: Vec<raft::Operation>) {
        let entry = Entry {
            version: ENTRY_VERSION,
            operations,
            ..Entry::default()
        };
        let applied = apply(image, &entry, &LIMITS).unwrap();
        assert_eq!(applied.result.refusal, None);
        for write in applied.writes {
            image.write(write).unwrap();
        }
    }

    fn put(key: ResourceKey, json: &str) -> raft::Operation {
        put_operation(key, json.as_bytes().to_vec(), None)
    }

    fn image() -> Image {
        let mut image = Image::default();
        write(
            &mut image,
            vec![
                facts::set("history-id", b"h".to_vec(), None),
                put(
                    ResourceKey::global("Zone", "", "east"),
                    r#"{"type":"Zone","name":"east","enabled":true}"#,
                ),
                put(
                    ResourceKey::global("Zone", "", "west"),
                    r#"{"type":"Zone","name":"west","enabled":true}"#,
                ),
                put(
                    ResourceKey::global("Mesh", "", "pay"),
                    r#"{"type":"Mesh","name":"pay"}"#,
                ),
                put(
                    ResourceKey::global("Mesh", "", "ana"),
                    r#"{"type":"Mesh","name":"ana","zones":["west"]}"#,
                ),
                put(
                    ResourceKey::global("MeshTrafficPermission", "pay", "p"),
                    "{}",
                ),
                put(
                    ResourceKey::global("MeshTrafficPermission", "ana", "p"),
                    "{}",
                ),
            ],
        );
        image
    }

    fn told(messages: &[Changes]) -> Vec<String> {
        messages
            .iter()
            .map(|m| {
                let puts: Vec<_> = m
                    .put
                    .iter()
                    .map(|r| r.key.as_ref().unwrap().name.clone())
                    .collect();
                let deletes: Vec<_> = m.delete.iter().map(|k| format!("-{}", k.name)).collect();
                let flags = match (m.snapshot, m.mesh_gone) {
                    (_, true) => " gone",
                    (true, _) => " snapshot",
                    _ => "",
                };
                format!("{:?}{flags} {}", m.mesh, [puts, deletes].concat().join(","))
            })
            .collect()
    }

    #[test]
    fn a_zone_follows_from_nothing_to_the_newest() {
        let mut image = image();
        let mut cursors = BTreeMap::new();
        let mut next = |image: &Image| {
            let placement = placement(image, "east");
            told(&step(image, &placement, &mut cursors))
        };
        // Nothing known: snapshots. Mesh `ana` is placed elsewhere and never mentioned.
        assert_eq!(
            next(&image),
            [r#""" snapshot pay,east,west"#, r#""pay" snapshot p"#]
        );
        assert!(next(&image).is_empty());
        // A change of one mesh; every cursor moves.
        write(
            &mut image,
            vec![put(
                ResourceKey::global("MeshTrafficPermission", "pay", "q"),
                "{}",
            )],
        );
        assert_eq!(next(&image), [r#""" "#, r#""pay" q"#]);
        // A change of a mesh placed elsewhere moves the cursors only.
        write(
            &mut image,
            vec![put(
                ResourceKey::global("MeshTrafficPermission", "ana", "q"),
                "{}",
            )],
        );
        assert_eq!(next(&image), [r#""" "#, r#""pay" "#]);
        // Placed here too: its old resources come.
        write(
            &mut image,
            vec![put(
                ResourceKey::global("Mesh", "", "ana"),
                r#"{"type":"Mesh","name":"ana"}"#,
            )],
        );
        assert_eq!(
            next(&image),
            [
                r#""" snapshot ana,pay,east,west"#,
                r#""ana" snapshot p,q"#,
                r#""pay" "#
            ]
        );
        // And gone again.
        write(
            &mut image,
            vec![crate::changes::delete_operation(
                ResourceKey::global("Mesh", "", "ana"),
                None,
            )],
        );
        assert_eq!(
            next(&image),
            [
                r#""ana" gone "#,
                r#""" snapshot pay,east,west"#,
                r#""pay" "#
            ]
        );
    }

    #[test]
    fn a_mesh_made_anew_is_another_one() {
        let mut image = image();
        let mut cursors = BTreeMap::new();
        let _ = step(&image, &placement(&image, "east"), &mut cursors);
        let key = ResourceKey::global("Mesh", "", "pay");
        write(
            &mut image,
            vec![crate::changes::delete_operation(key.clone(), None)],
        );
        write(
            &mut image,
            vec![put(key, r#"{"type":"Mesh","name":"pay"}"#)],
        );
        let told = told(&step(&image, &placement(&image, "east"), &mut cursors));
        assert_eq!(
            told,
            [
                r#""pay" gone "#,
                r#""" snapshot pay,east,west"#,
                r#""pay" snapshot p"#
            ]
        );
    }

    #[test]
    fn a_certificate_of_an_earlier_zone_does_not_count() {
        let mut image = image();
        let entry = Entry {
            version: ENTRY_VERSION,
            time_ms: 10_000_000,
            operations: vec![put(
                ResourceKey::global("Zone", "", "north"),
                r#"{"type":"Zone","name":"north","enabled":true}"#,
            )],
            ..Entry::default()
        };
        for write in apply(&image, &entry, &LIMITS).unwrap().writes {
            image.write(write).unwrap();
        }
        assert!(check_age(&image, "north", Some(10_000_000)).is_ok());
        assert!(check_age(&image, "north", Some(10_000_000 - 120_000)).is_ok());
        assert!(check_age(&image, "north", Some(10_000_000 - 3_600_000)).is_err());
        assert!(check_age(&image, "north", None).is_err());
    }

    #[test]
    fn a_deleted_or_disabled_zone_is_not_admitted() {
        let mut image = image();
        assert!(admitted(&image, "east").is_ok());
        assert!(admitted(&image, "north").unwrap_err().contains("deleted"));
        write(
            &mut image,
            vec![put(
                ResourceKey::global("Zone", "", "east"),
                r#"{"type":"Zone","name":"east","enabled":false}"#,
            )],
        );
        assert!(admitted(&image, "east").unwrap_err().contains("disabled"));
    }
}
