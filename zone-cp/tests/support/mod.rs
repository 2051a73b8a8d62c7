//! A zone control plane in this process, a global that does as it is told, and dataplanes without a proxy.

#![allow(dead_code, unreachable_pub, missing_docs)] // Each test file uses its part.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::Stream;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use mesh_model::{
    Kind, Meta, Resource, TokenIssuer,
    token_issuer::{RevokedToken, TokenKey},
};
use mesh_proto::{
    discovery::{
        self, Ack, CertificateRequest, DocumentVersion, EndpointsDelta, Hello, Role, ToDataplane,
        discovery_client::DiscoveryClient, to_dataplane,
    },
    names::ZoneName,
    proxy::Document,
    spiffe::SpiffeId,
    zone::{
        Changes, GlobalHello, RenewCertificateRequest, RenewCertificateResponse, ReportAck,
        ResourceKey, ResourceRecord, ToGlobal, ToZone, ZoneHello, ZoneReport, ZoneStatus,
        to_global, to_zone,
        zone_sync_server::{ZoneSync, ZoneSyncServer},
    },
};
use mesh_runtime::{
    identity_dir::StoredIdentity,
    pki::{self, Ca, Subject},
    tls::{self, LocalIdentity, SpiffeVerifier, TrustDomains},
    transport,
};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use zone_cp::{
    process::{self, Listening},
    settings::Settings,
};

/// Nothing in these tests takes this long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: nothing within {PATIENCE:?}"))
}

/// An installation: its CA, its token keys, and the directory of zone `east`.
pub struct Installation {
    pub ca: Ca,
    pub keys: BTreeMap<String, pki::KeyPair>,
    pub directory: TempDir,
}

impl Installation {
    pub fn new() -> Self {
        mesh_runtime::init();
        let ca = Ca::self_signed(
            "installation",
            None,
            OffsetDateTime::now_utc(),
            time::Duration::days(9),
        )
        .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let keys = ["pay", "ana", "zone.east"]
            .map(|issuer| (issuer.to_owned(), pki::new_key().unwrap()))
            .into();
        let this = Self {
            ca,
            keys,
            directory,
        };
        let zone: ZoneName = "east".parse().unwrap();
        this.identity(&SpiffeId::zone(&zone), time::Duration::days(1))
            .save(&this.data_dir().join("identity"))
            .unwrap();
        this
    }

    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("zone-cp")
    }

    pub fn identity(&self, id: &SpiffeId, lifetime: time::Duration) -> StoredIdentity {
        let key = pki::new_key().unwrap();
        let csr = pki::request(&key).unwrap();
        let subject = Subject {
            spiffe_id: Some(id.clone()),
            ..Subject::default()
        };
        let leaf = self
            .ca
            .sign(&csr, &subject, OffsetDateTime::now_utc(), lifetime)
            .unwrap();
        StoredIdentity {
            key,
            chain: vec![leaf],
            anchors: vec![self.ca.certificate().clone()],
        }
    }

    pub fn write_facts(&self, global: &[String]) {
        let facts = json!({"zone": "east", "clusterId": "cluster", "globalAddresses": global});
        std::fs::write(
            self.data_dir().join("identity/zone.json"),
            facts.to_string(),
        )
        .unwrap();
    }

    /// A token with the usual claims and these.
    pub fn token(&self, issuer: &str, change: Value) -> String {
        let now = unix_seconds();
        let mut claims =
            json!({"iss": "cluster", "jti": "t1", "iat": now, "exp": now + 3600, "pin": "p"});
        match issuer.strip_prefix("zone.") {
            Some(zone) => {
                claims["use"] = "ingress".into();
                claims["zone"] = zone.into();
            }
            None => {
                claims["use"] = "dataplane".into();
                claims["mesh"] = issuer.into();
            }
        }
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(format!("key-{issuer}"));
        let pem = self.keys[issuer].serialize_pem();
        jsonwebtoken::encode(
            &header,
            &claims,
            &EncodingKey::from_ec_pem(pem.as_bytes()).unwrap(),
        )
        .unwrap()
    }

    pub fn issuer(&self, name: &str, revoked: &[&str]) -> Resource {
        Resource::new(
            Meta::new("", name),
            TokenIssuer {
                keys: vec![TokenKey {
                    kid: format!("key-{name}"),
                    public_key: self.keys[name].public_key_pem(),
                }],
                revoked: revoked
                    .iter()
                    .map(|id| RevokedToken {
                        id: (*id).to_owned(),
                        expires_at: unix_seconds() + 3600,
                    })
                    .collect(),
            },
        )
    }
}

pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// A zone control plane in this process.
pub struct RunningZone {
    pub listening: Listening,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl RunningZone {
    pub async fn start(installation: &Installation, grace: Duration) -> Self {
        let stop = CancellationToken::new();
        let local = "127.0.0.1:0".parse().unwrap();
        let settings = Settings {
            data_dir: installation.data_dir(),
            discovery_address: local,
            api_address: local,
            admin_address: local,
            advertise_host: "localhost".into(),
            grace,
            global: Vec::new(),
            log_level: "info".into(),
        };
        let (said, hears) = oneshot::channel();
        let task = tokio::spawn(process::run(settings, stop.clone(), move |listening| {
            let _ = said.send(listening);
        }));
        let Ok(listening) = soon("the zone serves", hears).await else {
            panic!("{:?}", task.await);
        };
        Self {
            listening,
            stop,
            task,
        }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        soon("the zone stops", self.task).await.unwrap().unwrap();
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        http_get(self.listening.api, path).await
    }
}

pub async fn http_get(address: SocketAddr, path: &str) -> (u16, Value) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (
        status,
        serde_json::from_str(body).unwrap_or(Value::String(body.to_owned())),
    )
}

// === global ===

/// A global that does nothing by itself: each stream of the zone is handed to the test.
pub struct FakeGlobal {
    pub address: String,
    streams: mpsc::Receiver<ZoneStream>,
    task: JoinHandle<()>,
}

pub struct ZoneStream {
    pub hello: ZoneHello,
    pub inbound: Streaming<ToGlobal>,
    pub outbound: Option<mpsc::Sender<Result<ToZone, Status>>>,
    pub last_status: Option<ZoneStatus>,
    pub reported: BTreeMap<String, Value>,
}

struct Service {
    streams: mpsc::Sender<ZoneStream>,
    /// Signs renewals, as the installation's CA.
    ca: Ca,
}

#[tonic::async_trait]
impl ZoneSync for Service {
    type SyncStream = std::pin::Pin<Box<dyn Stream<Item = Result<ToZone, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<ToGlobal>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        assert_eq!(
            transport::peer_spiffe(&request).unwrap().to_string(),
            "spiffe://isthmus.local/zone/east"
        );
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.unwrap().message;
        let Some(to_global::Message::Hello(hello)) = first else {
            panic!("{first:?}")
        };
        let (outbound, receiver) = mpsc::channel(256);
        let stream = ZoneStream {
            hello,
            inbound,
            outbound: Some(outbound),
            last_status: None,
            reported: BTreeMap::new(),
        };
        self.streams
            .send(stream)
            .await
            .map_err(|_| Status::unavailable("test over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let subject = Subject {
            spiffe_id: transport::peer_spiffe(&request),
            ..Subject::default()
        };
        let csr = request.into_inner().csr;
        let leaf = self
            .ca
            .sign(
                &csr,
                &subject,
                OffsetDateTime::now_utc(),
                time::Duration::days(5),
            )
            .unwrap();
        Ok(Response::new(RenewCertificateResponse {
            certificate: pki::to_pem(&leaf),
            anchors: self.ca.certificate_pem(),
        }))
    }
}

impl FakeGlobal {
    pub async fn start(installation: &Installation) -> Self {
        let local = LocalIdentity::none();
        installation
            .identity(&SpiffeId::global_node(1), time::Duration::days(1))
            .present(&local, Path::new("test"))
            .unwrap();
        let trust = TrustDomains::installation(&[installation.ca.certificate().clone()]).unwrap();
        let verifier = SpiffeVerifier::new(Arc::new(trust), Arc::new(|_| Ok(())));
        let tls = tls::server_config(local, Some(Arc::new(verifier)), transport::GRPC_ALPN);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, streams) = mpsc::channel(16);
        let service = ZoneSyncServer::new(Service {
            streams: sender,
            ca: Ca::from_pem(
                &installation.ca.certificate_pem(),
                installation.ca.key_pem(),
            )
            .unwrap(),
        });
        let task = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(transport::incoming(listener, Arc::new(tls)))
                .await
                .unwrap();
        });
        installation.write_facts(std::slice::from_ref(&address));
        Self {
            address,
            streams,
            task,
        }
    }

    pub async fn stream(&mut self) -> ZoneStream {
        soon("the zone calls", self.streams.recv()).await.unwrap()
    }
}

impl Drop for FakeGlobal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ZoneStream {
    pub async fn send(&self, message: to_zone::Message) {
        let message = ToZone {
            message: Some(message),
        };
        self.outbound
            .as_ref()
            .unwrap()
            .send(Ok(message))
            .await
            .unwrap();
    }

    pub async fn greet(&self, revision: u64, meshes: &[&str]) {
        self.greet_with(revision, meshes, 60_000).await;
    }

    pub async fn greet_with(&self, revision: u64, meshes: &[&str], heartbeat_interval_ms: u32) {
        let hello = GlobalHello {
            version: "0.1.0".into(),
            features: vec![],
            history_id: "h1".into(),
            cluster_id: "cluster".into(),
            revision,
            heartbeat_interval_ms,
            global_addresses: vec![],
            meshes: meshes.iter().map(|m| (*m).to_owned()).collect(),
        };
        self.send(to_zone::Message::Hello(hello)).await;
    }

    /// The whole of one scope, at `revision`.
    pub async fn snapshot(&self, mesh: &str, revision: u64, resources: &[Resource]) {
        let changes = Changes {
            snapshot: true,
            put: resources.iter().map(|r| record(r, revision)).collect(),
            ..step(mesh, 0, revision)
        };
        self.send(to_zone::Message::Changes(changes)).await;
    }

    pub async fn delta(
        &self,
        mesh: &str,
        from: u64,
        to: u64,
        put: &[Resource],
        delete: &[ResourceKey],
    ) {
        let changes = Changes {
            put: put.iter().map(|r| record(r, to)).collect(),
            delete: delete.to_vec(),
            ..step(mesh, from, to)
        };
        self.send(to_zone::Message::Changes(changes)).await;
    }

    /// Moves the cursors of all scopes, as global does for a change that concerns none of them.
    pub async fn advance(&self, scopes: &[&str], from: u64, to: u64) {
        for scope in scopes {
            self.delta(scope, from, to, &[], &[]).await;
        }
    }

    pub async fn next(&mut self) -> to_global::Message {
        loop {
            let message = soon("the zone says something", self.inbound.message()).await;
            let message = message
                .unwrap()
                .expect("the stream goes on")
                .message
                .unwrap();
            match &message {
                to_global::Message::Heartbeat(_) => continue,
                to_global::Message::Status(status) => self.last_status = Some(status.clone()),
                to_global::Message::Report(report) => self.take_report(report).await,
                _ => {}
            }
            return message;
        }
    }

    async fn take_report(&mut self, report: &ZoneReport) {
        if report.full {
            self.reported.clear();
        }
        for record in &report.put {
            let key = record.key.clone().unwrap().to_string();
            self.reported
                .insert(key, serde_json::from_slice(&record.json).unwrap());
        }
        for key in &report.delete {
            self.reported.remove(&key.to_string());
        }
        self.send(to_zone::Message::ReportAck(ReportAck {
            epoch: report.epoch,
            sequence: report.sequence,
            refused: vec![],
        }))
        .await;
    }

    /// Waits for a status that `wanted` likes.
    pub async fn status(&mut self, what: &str, wanted: impl Fn(&ZoneStatus) -> bool) -> ZoneStatus {
        let waiting = async {
            loop {
                if let Some(status) = self.last_status.clone().filter(|s| wanted(s)) {
                    return status;
                }
                self.next().await;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(status) => status,
            Err(_) => panic!("{what}: the last status is {:#?}", self.last_status),
        }
    }

    /// Waits for reports after which `wanted` likes what the zone owns.
    pub async fn reported(
        &mut self,
        what: &str,
        wanted: impl Fn(&BTreeMap<String, Value>) -> bool,
    ) {
        let waiting = async {
            while !wanted(&self.reported) {
                self.next().await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{what}: reported is {:#?}", self.reported);
        }
    }

    /// Greets, and gives a mesh with an identity and what else is given.
    pub async fn introduce(
        &self,
        installation: &Installation,
        revision: u64,
        resources: &[Resource],
    ) {
        self.greet(revision, &["pay"]).await;
        let global = [
            yaml("{type: Mesh, name: pay}"),
            installation.issuer("pay", &[]),
            installation.issuer("zone.east", &[]),
        ];
        self.snapshot("", revision, &global).await;
        let mut all = vec![identity("pay")];
        all.extend_from_slice(resources);
        self.snapshot("pay", revision, &all).await;
    }
}

fn step(mesh: &str, from: u64, to: u64) -> Changes {
    Changes {
        mesh: mesh.into(),
        from,
        to,
        history_id: "h1".into(),
        last: true,
        ..Changes::default()
    }
}

pub fn record(resource: &Resource, revision: u64) -> ResourceRecord {
    ResourceRecord {
        key: Some(resource.key()),
        json: resource.to_json(),
        revision,
        modified_ms: 0,
        created_revision: 0,
    }
}

pub fn yaml(text: &str) -> Resource {
    let mut resources = mesh_model::parse(text, "test").unwrap_or_else(|v| panic!("{v}"));
    assert_eq!(resources.len(), 1);
    resources.remove(0)
}

pub fn owned(mut resource: Resource, zone: &str) -> Resource {
    resource.meta.zone = zone.into();
    resource
}

pub fn identity(mesh: &str) -> Resource {
    yaml(&format!(
        "{{type: MeshIdentity, mesh: {mesh}, name: identity, spec: {{selector: {{dataplane: {{matchLabels: {{}}}}}}, provider: {{type: Bundled}}}}}}"
    ))
}

pub fn allow(name: &str, target: &str, id: &str) -> Resource {
    yaml(&format!(
        "{{type: MeshTrafficPermission, mesh: pay, name: {name}, spec: {{targetRef: {target}, rules: [{{default: {{allow: [{{spiffeID: {{type: Exact, value: \"{id}\"}}}}]}}}}]}}}}"
    ))
}

pub fn key_of<K: Kind>(mesh: &str, name: &str) -> ResourceKey {
    ResourceKey::global(K::DESCRIPTOR.name, mesh, name)
}

// === dataplanes ===

/// A client of the zone that takes what it is sent and answers as the test says.
pub struct FakeDataplane {
    pub to_zone: mpsc::Sender<discovery::ToZone>,
    inbound: Streaming<ToDataplane>,
    /// Documents as they were put and removed.
    pub documents: BTreeMap<String, Document>,
    /// Endpoint sets as `host:port`, sorted.
    pub endpoints: BTreeMap<String, Vec<String>>,
    pub documents_sent: usize,
    pub last_generation: u64,
    pub revision: u64,
    beating: JoinHandle<()>,
}

impl Drop for FakeDataplane {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

#[derive(Debug, Clone)]
pub struct Newcomer {
    pub token: String,
    pub resource: String,
    pub role: Role,
    pub session_number: u64,
    pub running: Vec<DocumentVersion>,
    pub features: Vec<String>,
}

impl Newcomer {
    pub fn new(token: String, resource: &str) -> Self {
        Self {
            token,
            resource: resource.to_owned(),
            role: Role::Sidecar,
            session_number: 1,
            running: vec![],
            features: mesh_proto::features::DATAPLANE
                .iter()
                .map(|f| (*f).to_owned())
                .collect(),
        }
    }

    pub async fn connect(
        &self,
        zone: &RunningZone,
        installation: &Installation,
    ) -> Result<FakeDataplane, Status> {
        let trust = TrustDomains::installation(&[installation.ca.certificate().clone()]).unwrap();
        let accept = |id: &SpiffeId| {
            id.as_zone()
                .map(|_| ())
                .ok_or_else(|| "not a zone".to_owned())
        };
        let verifier = SpiffeVerifier::new(Arc::new(trust), Arc::new(accept));
        let tls = tls::client_config(None, Arc::new(verifier), transport::GRPC_ALPN);
        let address = zone.listening.discovery.to_string();
        let channel = transport::channel(&address, Arc::new(tls)).await.unwrap();
        let (to_zone, messages) = mpsc::channel(64);
        let hello = Hello {
            version: "0.1.0".into(),
            features: self.features.clone(),
            role: self.role.into(),
            resource: self.resource.clone(),
            session: format!("session {}", self.session_number),
            session_number: self.session_number,
            documents: self.running.clone(),
        };
        to_zone
            .send(message(discovery::to_zone::Message::Hello(hello)))
            .await
            .unwrap();
        let mut request = Request::new(ReceiverStream::new(messages));
        if !self.token.is_empty() {
            let bearer = format!("Bearer {}", self.token).parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
        }
        let inbound = soon(
            "the zone answers",
            DiscoveryClient::new(channel).stream(request),
        )
        .await?
        .into_inner();
        // The zone's patience is two heartbeats.
        let beats = to_zone.clone();
        let beating = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let beat = message(discovery::to_zone::Message::Heartbeat(
                    discovery::Heartbeat::default(),
                ));
                if beats.send(beat).await.is_err() {
                    break;
                }
            }
        });
        Ok(FakeDataplane {
            to_zone,
            inbound,
            documents: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            documents_sent: 0,
            last_generation: 0,
            revision: 0,
            beating,
        })
    }
}

fn message(message: discovery::to_zone::Message) -> discovery::ToZone {
    discovery::ToZone {
        message: Some(message),
    }
}

impl FakeDataplane {
    pub async fn say(&self, what: discovery::to_zone::Message) {
        self.to_zone.send(message(what)).await.unwrap();
    }

    /// Answers question `id`.
    pub async fn answer(&self, id: u64, what: Option<discovery::answer::What>) {
        let answer = discovery::Answer { id, what };
        self.say(discovery::to_zone::Message::Answer(answer)).await;
    }

    /// The next message that is no heartbeat, taken. An error: how the stream ended.
    pub async fn next(&mut self) -> Result<to_dataplane::Message, Status> {
        loop {
            let next = soon("the zone says something", self.inbound.message()).await?;
            let Some(next) = next else {
                return Err(Status::ok("clean end"));
            };
            let message = next.message.unwrap();
            match &message {
                to_dataplane::Message::Heartbeat(_) => continue,
                to_dataplane::Message::Documents(documents) => {
                    self.documents_sent += documents.put.len();
                    self.last_generation = documents.trust_generation;
                    self.revision = documents.revision;
                    for document in &documents.put {
                        assert_eq!(document.version, mesh_proto::document::version_of(document));
                        self.documents
                            .insert(document.name.clone(), document.clone());
                    }
                    for name in &documents.remove {
                        self.documents.remove(name);
                    }
                }
                to_dataplane::Message::Endpoints(delta) => self.take_endpoints(delta),
                _ => {}
            }
            return Ok(message);
        }
    }

    fn take_endpoints(&mut self, delta: &EndpointsDelta) {
        let text = |a: &mesh_proto::proxy::SocketAddress| format!("{}:{}", a.host, a.port);
        let set = self.endpoints.entry(delta.key.clone()).or_default();
        if delta.full {
            set.clear();
        }
        let gone: Vec<_> = delta.remove.iter().map(text).collect();
        set.retain(|address| !gone.contains(address));
        set.extend(delta.put.iter().map(|e| text(e.address.as_ref().unwrap())));
        set.sort();
        set.dedup();
    }

    /// Reads and acknowledges until `wanted` likes what it has.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !wanted(self) {
                if let to_dataplane::Message::Documents(documents) = self.next().await.unwrap() {
                    let documents_taken = versions(&documents.put);
                    self.ack(documents.revision, documents_taken).await;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!(
                "{what}: documents {:?}, endpoints {:?}",
                self.documents.keys(),
                self.endpoints
            );
        }
    }

    pub async fn ack(&self, revision: u64, documents: Vec<DocumentVersion>) {
        self.say(discovery::to_zone::Message::Ack(Ack {
            revision,
            documents,
        }))
        .await;
    }

    pub async fn certificate(
        &mut self,
        spiffe_id: &str,
    ) -> Result<CertificateDer<'static>, String> {
        let csr = pki::request(&pki::new_key().unwrap()).unwrap();
        let request = CertificateRequest {
            csr,
            spiffe_id: spiffe_id.to_owned(),
        };
        self.say(discovery::to_zone::Message::CertificateRequest(request))
            .await;
        loop {
            if let to_dataplane::Message::Certificate(answer) = self.next().await.unwrap() {
                if !answer.error.is_empty() {
                    return Err(answer.error);
                }
                return Ok(answer.chain[0].clone().into());
            }
        }
    }

    /// The TCP connection lives on, and nothing more is said.
    pub fn fall_silent(&self) {
        self.beating.abort();
    }

    /// How the stream ends, whatever comes before.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

pub fn versions(documents: &[Document]) -> Vec<DocumentVersion> {
    documents
        .iter()
        .map(|d| DocumentVersion {
            name: d.name.clone(),
            version: d.version.clone(),
        })
        .collect()
}

pub fn dataplane(
    name: &str,
    service: &str,
    address: &str,
    outbounds: &[(u16, &str, u16)],
) -> String {
    let outbounds: Vec<_> = outbounds
        .iter()
        .map(|(port, service, to)| json!({"port": port, "backendRef": {"kind": "MeshService", "name": service, "port": to}}))
        .collect();
    json!({
        "type": "Dataplane", "mesh": "pay", "name": name, "labels": {"isthmus.io/service": service},
        "networking": {"address": address, "inbound": [{"port": 8080, "servicePort": 80}], "outbound": outbounds},
    })
    .to_string()
}
