//! A zone control plane for tests: it serves what it is told to, signs what it is asked to, and remembers what it hears.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod sidecar;

use std::{
    collections::{BTreeMap, HashMap},
    net::{SocketAddr, TcpListener as StdTcpListener},
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_proto::{
    discovery::{
        Certificate, Documents, Endpoint, EndpointsDelta, Hello, Question, ToDataplane, ToZone,
        Welcome, answer,
        discovery_server::{Discovery, DiscoveryServer},
        question,
        to_dataplane::Message as Down,
        to_zone::Message as Up,
    },
    document::{self, seal},
    proxy::{self as wire, Document, document::Body},
    spiffe::SpiffeId,
};
use mesh_runtime::{
    pki::{self, Ca, Subject},
    tls::{self, LocalIdentity},
    transport,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// What the zone holds.
pub struct World {
    pub installation: Ca,
    /// CA of each trust domain.
    pub cas: HashMap<String, Ca>,
    /// Documents by dataplane.
    pub documents: BTreeMap<String, Vec<Document>>,
    pub endpoints: BTreeMap<String, EndpointsDelta>,
    pub revision: u64,
    pub life: time::Duration,
    pub refuse: Option<Status>,
    /// Questions that are put to dataplanes, with their names.
    pub questions: Vec<(String, Question)>,
    /// What dataplanes have said, with their names.
    pub heard: Vec<(String, Up)>,
    pub heartbeat_ms: u32,
    pub silent: bool,
}

/// A zone control plane, and the world it serves.
#[derive(Clone)]
pub struct Zone {
    pub address: SocketAddr,
    pub world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
    heard: watch::Sender<u64>,
    stop: CancellationToken,
}

pub fn new_ca(name: &str) -> Ca {
    let now = OffsetDateTime::now_utc();
    Ca::self_signed(name, None, now, time::Duration::days(2)).unwrap()
}

/// A certificate for `id` from `ca`, with its key.
pub fn leaf(ca: &Ca, id: &str, life: time::Duration) -> (CertificateDer<'static>, pki::KeyPair) {
    let key = pki::new_key().unwrap();
    let csr = pki::request(&key).unwrap();
    let subject = Subject {
        spiffe_id: Some(id.parse().unwrap()),
        ..Subject::default()
    };
    let now = OffsetDateTime::now_utc();
    (ca.sign(&csr, &subject, now, life).unwrap(), key)
}

impl Zone {
    /// Serves at a port of its own; `domains` get a CA each.
    pub async fn start(domains: &[&str]) -> Self {
        mesh_runtime::init();
        let cas = domains
            .iter()
            .map(|d| ((*d).to_owned(), new_ca(d)))
            .collect();
        let world = World {
            installation: new_ca("installation"),
            cas,
            documents: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            revision: 1,
            life: time::Duration::hours(24),
            refuse: None,
            questions: Vec::new(),
            heard: Vec::new(),
            heartbeat_ms: 500,
            silent: false,
        };
        Self::serve(Arc::new(Mutex::new(world)), "127.0.0.1:0".parse().unwrap()).await
    }

    /// Serves `world` at `address`.
    pub async fn serve(world: Arc<Mutex<World>>, address: SocketAddr) -> Self {
        // An earlier zone may still be letting go of the address.
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) if address.port() == 0 => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let address = listener.local_addr().unwrap();
        let zone = Self {
            address,
            world,
            changed: watch::channel(0).0,
            heard: watch::channel(0).0,
            stop: CancellationToken::new(),
        };
        let identity = LocalIdentity::none();
        {
            let world = zone.world.lock().unwrap();
            let ca = &world.installation;
            let (leaf, key) = leaf(
                ca,
                "spiffe://isthmus.local/zone/east",
                time::Duration::hours(24),
            );
            let chain = vec![leaf, ca.certificate().clone()];
            identity.set(chain, &pki::private_key(&key)).unwrap();
        }
        let config = tls::server_config(identity, None, transport::GRPC_ALPN);
        let incoming = transport::incoming(listener, Arc::new(config));
        let server = tonic::transport::Server::builder()
            .add_service(DiscoveryServer::new(zone.clone()))
            .serve_with_incoming_shutdown(incoming, zone.stop.clone().cancelled_owned());
        tokio::spawn(server);
        zone
    }

    /// Ends all streams and listens no more.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// A dataplane token: only its pin is looked at by the dataplane.
    pub fn token(&self) -> String {
        let world = self.world.lock().unwrap();
        let pin = pki::pin(world.installation.certificate()).unwrap();
        let payload = URL_SAFE_NO_PAD.encode(format!("{{\"pin\":\"{pin}\"}}"));
        format!("e30.{payload}.sig")
    }

    /// Changes the world, and tells connected dataplanes.
    pub fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let result = {
            let mut world = self.world.lock().unwrap();
            world.revision += 1;
            change(&mut world)
        };
        self.changed.send_modify(|n| *n += 1);
        result
    }

    /// Asks a connected dataplane.
    pub async fn ask(&self, name: &str, what: question::What) -> Option<answer::What> {
        let id = self.change(|world| {
            let id = world.revision;
            let what = Some(what);
            world
                .questions
                .push((name.to_owned(), Question { id, what }));
            id
        });
        self.hear("an answer", |by, up| match up {
            Up::Answer(answer) if by == name && answer.id == id => Some(answer.what.clone()),
            _ => None,
        })
        .await
    }

    /// Waits until `wanted` finds what it looks for in what has been heard.
    pub async fn hear<T>(&self, what: &str, wanted: impl Fn(&str, &Up) -> Option<T>) -> T {
        let mut heard = self.heard.subscribe();
        let waiting = async {
            loop {
                heard.borrow_and_update();
                {
                    let world = self.world.lock().unwrap();
                    if let Some(found) = world.heard.iter().find_map(|(name, up)| wanted(name, up))
                    {
                        return found;
                    }
                }
                heard.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(Duration::from_secs(20), waiting).await {
            Ok(found) => found,
            Err(_) => panic!(
                "not heard: {what}; heard: {:#?}",
                self.world.lock().unwrap().heard
            ),
        }
    }

    /// The trust document for all domains.
    pub fn trust(&self) -> Document {
        let world = self.world.lock().unwrap();
        let mut domains: Vec<_> = world
            .cas
            .iter()
            .map(|(name, ca)| wire::TrustDomain {
                name: name.clone(),
                anchors: vec![ca.certificate().to_vec()],
            })
            .collect();
        domains.sort_by(|a, b| a.name.cmp(&b.name));
        seal(
            document::TRUST.into(),
            vec![],
            Body::Trust(wire::Trust { domains }),
        )
    }
}

#[tonic::async_trait]
impl Discovery for Zone {
    type StreamStream = ReceiverStream<Result<ToDataplane, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<ToZone>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        if let Some(status) = self.world.lock().unwrap().refuse.clone() {
            return Err(status);
        }
        let mut up = request.into_inner();
        let Some(Up::Hello(hello)) = up.message().await?.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("hello first"));
        };
        let name = name_of(&hello);
        self.remember(&name, Up::Hello(hello));
        let (down, stream) = mpsc::channel(64);
        tokio::spawn(self.clone().session(name, up, down));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

type Downstream = mpsc::Sender<Result<ToDataplane, Status>>;

impl Zone {
    fn remember(&self, name: &str, up: Up) {
        self.world.lock().unwrap().heard.push((name.to_owned(), up));
        self.heard.send_modify(|n| *n += 1);
    }

    async fn session(self, name: String, mut up: Streaming<ToZone>, down: Downstream) {
        let welcome = {
            let world = self.world.lock().unwrap();
            Welcome {
                version: "0.0.0".into(),
                features: vec![],
                zone: "east".into(),
                control_plane_anchors: vec![world.installation.certificate_pem()],
                heartbeat_interval_ms: world.heartbeat_ms,
            }
        };
        say(&down, Down::Welcome(welcome)).await;
        let mut changed = self.changed.subscribe();
        let mut sent: BTreeMap<String, Document> = BTreeMap::new();
        let heartbeat = Duration::from_millis(self.world.lock().unwrap().heartbeat_ms.into());
        let mut beats = tokio::time::interval(heartbeat);
        self.send_all(&name, &mut sent, &down).await;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                message = up.message() => {
                    let Ok(Some(ToZone { message: Some(message) })) = message else { return };
                    if let Up::CertificateRequest(request) = &message {
                        let answer = self.sign(&request.spiffe_id, &request.csr);
                        say(&down, Down::Certificate(answer)).await;
                    }
                    self.remember(&name, message);
                }
                _ = changed.changed() => {
                    self.send_all(&name, &mut sent, &down).await;
                    for question in self.questions_to(&name) {
                        say(&down, Down::Question(question)).await;
                    }
                }
                _ = beats.tick() => {
                    if !self.world.lock().unwrap().silent {
                        say(&down, Down::Heartbeat(Default::default())).await;
                    }
                }
            }
        }
    }

    async fn send_all(&self, name: &str, sent: &mut BTreeMap<String, Document>, down: &Downstream) {
        let (documents, endpoints, revision) = {
            let world = self.world.lock().unwrap();
            let documents = world.documents.get(name).cloned().unwrap_or_default();
            let endpoints: Vec<_> = world.endpoints.values().cloned().collect();
            (documents, endpoints, world.revision)
        };
        let put: Vec<_> = documents
            .iter()
            .filter(|d| sent.get(&d.name) != Some(d))
            .cloned()
            .collect();
        let gone = |name: &&String| !documents.iter().any(|d| d.name == **name);
        let remove = sent.keys().filter(gone).cloned().collect();
        *sent = documents.into_iter().map(|d| (d.name.clone(), d)).collect();
        say(
            down,
            Down::Documents(Documents {
                revision,
                put,
                remove,
                trust_generation: 1,
            }),
        )
        .await;
        for delta in endpoints {
            say(down, Down::Endpoints(delta)).await;
        }
    }

    fn questions_to(&self, name: &str) -> Vec<Question> {
        let mut world = self.world.lock().unwrap();
        let taken = world.questions.extract_if(.., |(to, _)| to == name);
        taken.map(|(_, question)| question).collect()
    }

    fn sign(&self, spiffe_id: &str, csr: &[u8]) -> Certificate {
        let id: SpiffeId = spiffe_id.parse().unwrap();
        let world = self.world.lock().unwrap();
        let subject = Subject {
            spiffe_id: Some(id.clone()),
            ..Subject::default()
        };
        let (chain, error) = match world.cas.get(id.trust_domain().as_str()) {
            Some(ca) => {
                let leaf = ca
                    .sign(csr, &subject, OffsetDateTime::now_utc(), world.life)
                    .unwrap();
                (vec![leaf.to_vec()], String::new())
            }
            None => (vec![], "no such trust domain".to_owned()),
        };
        Certificate {
            spiffe_id: spiffe_id.to_owned(),
            chain,
            error,
        }
    }
}

async fn say(down: &Downstream, message: Down) {
    let message = ToDataplane {
        message: Some(message),
    };
    let _ = down.send(Ok(message)).await;
}

fn name_of(hello: &Hello) -> String {
    let resource: serde_json::Value = serde_json::from_str(&hello.resource).unwrap();
    resource["name"].as_str().unwrap().to_owned()
}

// === documents ===

pub fn address(port: u16) -> wire::SocketAddress {
    wire::SocketAddress {
        host: "127.0.0.1".into(),
        port: port.into(),
    }
}

pub fn timeouts() -> wire::Timeouts {
    wire::Timeouts {
        connect_ms: 2000,
        idle_ms: 300_000,
        ..wire::Timeouts::default()
    }
}

pub fn allow(pattern: wire::identity_match::SpiffeId) -> wire::Permissions {
    wire::Permissions {
        allow: vec![wire::IdentityMatch {
            spiffe_id: Some(pattern),
            origin: "allow#0".into(),
        }],
        ..wire::Permissions::default()
    }
}

pub fn allow_any() -> wire::Permissions {
    allow(wire::identity_match::SpiffeId::Any(true))
}

pub fn inbound(
    service: &str,
    listen: u16,
    application: u16,
    permissions: wire::Permissions,
) -> wire::Inbound {
    wire::Inbound {
        name: "main".into(),
        listen: Some(address(listen)),
        application: Some(address(application)),
        protocol: wire::Protocol::Tcp.into(),
        tls: wire::TlsMode::Strict.into(),
        server_names: vec![server_name(service)],
        service: service.into(),
        permissions: Some(permissions),
        timeouts: Some(timeouts()),
        ..wire::Inbound::default()
    }
}

pub fn server_name(service: &str) -> String {
    format!("sni.msvc.pay.east.{service}.80")
}

pub fn outbound(service: &str, listen: u16) -> wire::Outbound {
    wire::Outbound {
        listen: Some(address(listen)),
        service_document: format!("service/{service}:80"),
    }
}

pub fn proxy(
    workload: &str,
    inbounds: Vec<wire::Inbound>,
    outbounds: Vec<wire::Outbound>,
) -> Document {
    let proxy = wire::Proxy {
        mesh: "pay".into(),
        zone: "east".into(),
        name: format!("{workload}-1"),
        workload: workload.into(),
        spiffe_id: identity(workload),
        inbounds,
        outbounds,
        source_service: workload.into(),
    };
    seal(document::PROXY.into(), vec![], Body::Proxy(proxy))
}

pub fn identity(workload: &str) -> String {
    format!("spiffe://pay.east.mesh.local/workload/{workload}")
}

pub fn service(name: &str) -> Document {
    seal_service(service_body(name))
}

/// A service whose connections are split over others, as `(name, weight)`.
pub fn split_service(name: &str, backends: &[(&str, u32)]) -> Document {
    let mut service = service_body(name);
    let backends = backends.iter().map(|(backend, weight)| wire::RouteBackend {
        service_document: format!("service/{backend}:80"),
        weight: *weight,
    });
    service.tcp_route = Some(wire::TcpRoute {
        backends: backends.collect(),
        origin: "MeshTCPRoute/split to[0].rules[0]".into(),
    });
    seal_service(service)
}

pub fn seal_service(service: wire::Service) -> Document {
    let features = match service.tcp_route {
        Some(_) => vec![mesh_proto::features::ROUTE_TCP.to_owned()],
        None => vec![],
    };
    let name = format!("service/{}:{}", service.name, service.port);
    seal(name, features, Body::Service(service))
}

pub fn service_body(name: &str) -> wire::Service {
    wire::Service {
        mesh: "pay".into(),
        name: name.into(),
        port: 80,
        protocol: wire::Protocol::Tcp.into(),
        zones: vec![wire::ServiceZone {
            zone: "east".into(),
            server_name: server_name(name),
            identities: vec![identity(name)],
        }],
        timeouts: Some(timeouts()),
        ..wire::Service::default()
    }
}

pub fn endpoints(name: &str, ports: &[u16]) -> EndpointsDelta {
    EndpointsDelta {
        key: format!("service/{name}:80"),
        full: true,
        put: ports
            .iter()
            .map(|port| Endpoint {
                address: Some(address(*port)),
                zone: "east".into(),
                through_ingress: false,
            })
            .collect(),
        remove: vec![],
    }
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
