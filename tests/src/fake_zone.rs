//! A zone that says to one real dataplane what it is told to say, and remembers what the dataplane answers.
//!
//! It has an installation CA and a mesh CA of its own, and a token that pins the former.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::{Stream, StreamExt as _};
use mesh_proto::{
    discovery::{
        Ack, Certificate, Documents, EndpointsDelta, Hello, Nack, ToDataplane, ToZone, Welcome,
        discovery_server::{Discovery, DiscoveryServer},
        to_dataplane, to_zone,
    },
    names::ZoneName,
    proxy::{Document, Trust, TrustDomain, document::Body},
    spiffe::SpiffeId,
};
use mesh_runtime::{
    pki::{self, Ca, Subject},
    tls::{self, LocalIdentity},
    transport,
};
use time::{Duration, OffsetDateTime};
use tokio::{sync::broadcast, task::JoinHandle};
use tonic::{Request, Response, Status, Streaming};

use crate::world::{World, runtime};

/// A zone under the test's hand. It stops listening when this is dropped.
#[derive(Debug)]
pub struct FakeZone {
    /// Where it listens.
    pub address: String,
    /// A token that makes a dataplane recognise it.
    pub token: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    mesh_ca: Ca,
    heard: Mutex<Heard>,
    /// What a dataplane that comes anew is told.
    script: Mutex<Vec<to_dataplane::Message>>,
    say: broadcast::Sender<to_dataplane::Message>,
}

/// What the dataplane said.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// Its greetings, one for each stream.
    pub hellos: Vec<Hello>,
    /// What it acknowledged.
    pub acks: Vec<Ack>,
    /// What it refused.
    pub nacks: Vec<Nack>,
}

impl FakeZone {
    /// Starts to listen.
    ///
    /// # Errors
    /// Where it can not.
    pub fn start(world: &World, trust_domain: &str) -> anyhow::Result<Self> {
        let now = OffsetDateTime::now_utc();
        let ca = Ca::self_signed("installation", None, now, Duration::days(1))?;
        let key = pki::new_key()?;
        let zone: ZoneName = "west".parse()?;
        let subject = Subject {
            spiffe_id: Some(SpiffeId::zone(&zone)),
            ..Subject::default()
        };
        let leaf = ca.sign(&pki::request(&key)?, &subject, now, Duration::days(1))?;
        let identity = LocalIdentity::none();
        identity.set(
            vec![leaf, ca.certificate().clone()],
            &pki::private_key(&key),
        )?;
        let tls = tls::server_config(identity, None, transport::GRPC_ALPN);

        let claims = serde_json::json!({
            "iss": "fake", "jti": "fake", "iat": 0, "exp": now.unix_timestamp() + 3600,
            "use": "dataplane", "mesh": "payments", "pin": pki::pin(ca.certificate())?,
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = serde_json::json!({"alg": "ES256", "kid": "fake"});
        let token = format!("{}.{}.c2ln", part(&header), part(&claims));

        let domain = format!("spiffe://{trust_domain}").parse()?;
        let shared = Arc::new(Shared {
            mesh_ca: Ca::self_signed("mesh", Some(&domain), now, Duration::days(1))?,
            heard: Mutex::default(),
            script: Mutex::default(),
            // A dataplane that lags by 64 messages has failed the test anyway.
            say: broadcast::channel(64).0,
        });
        let address = format!("127.0.0.1:{}", world.port()?);
        let listener = runtime().block_on(tokio::net::TcpListener::bind(&address))?;
        let service = DiscoveryServer::new(Service(shared.clone()));
        let task = runtime().spawn(async move {
            let incoming = transport::incoming(listener, Arc::new(tls));
            // It ends with the test.
            let _ = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await;
        });
        Ok(Self {
            address,
            token,
            shared,
            task,
        })
    }

    /// Says `message` to the dataplane that is connected, and to each that comes.
    pub fn say(&self, message: to_dataplane::Message) {
        lock(&self.shared.script).push(message.clone());
        // An error means that nobody is connected yet; then the script tells it.
        let _ = self.shared.say.send(message);
    }

    /// Says documents.
    pub fn put(&self, revision: u64, put: Vec<Document>) {
        self.say(to_dataplane::Message::Documents(Documents {
            revision,
            put,
            remove: Vec::new(),
            trust_generation: 1,
        }));
    }

    /// Says all endpoints of a set.
    pub fn endpoints(&self, endpoints: EndpointsDelta) {
        self.say(to_dataplane::Message::Endpoints(endpoints));
    }

    /// What the dataplane said so far.
    #[must_use]
    pub fn heard(&self) -> Heard {
        lock(&self.shared.heard).clone()
    }

    /// The document that makes the zone's own mesh CA trusted for `domain`.
    #[must_use]
    pub fn trust(&self, domain: &str) -> Document {
        let anchors = vec![self.shared.mesh_ca.certificate().to_vec()];
        let domains = vec![TrustDomain {
            name: domain.to_owned(),
            anchors,
        }];
        mesh_proto::document::seal(
            mesh_proto::document::TRUST.to_owned(),
            vec![mesh_proto::features::TRUST_DOMAINS.to_owned()],
            Body::Trust(Trust { domains }),
        )
    }

    /// A certificate of the zone's own mesh CA for any identity, as PEM files: what a stolen CA could make.
    ///
    /// # Errors
    /// Where the identity is none.
    pub fn forge(
        &self,
        world: &World,
        name: &str,
        spiffe_id: &str,
    ) -> anyhow::Result<crate::fake_dataplane::IssuedIdentity> {
        forge(world, &self.shared.mesh_ca, name, spiffe_id)
    }
}

/// A certificate of `ca` for any identity, as PEM files.
///
/// # Errors
/// Where the identity is none.
pub fn forge(
    world: &World,
    ca: &Ca,
    name: &str,
    spiffe_id: &str,
) -> anyhow::Result<crate::fake_dataplane::IssuedIdentity> {
    let key = pki::new_key()?;
    let subject = Subject {
        spiffe_id: Some(spiffe_id.parse().context("not a SPIFFE ID")?),
        ..Subject::default()
    };
    let now = OffsetDateTime::now_utc();
    let leaf = ca.sign(&pki::request(&key)?, &subject, now, Duration::hours(1))?;
    Ok(crate::fake_dataplane::IssuedIdentity {
        chain: world.file(&format!("{name}.cert.pem"), &pki::to_pem(&leaf))?,
        key: world.file(&format!("{name}.key.pem"), &key.serialize_pem())?,
    })
}

impl Drop for FakeZone {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Clone)]
struct Service(Arc<Shared>);

#[tonic::async_trait]
impl Discovery for Service {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<ToDataplane, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<ToZone>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let shared = self.0.clone();
        let mut from_dataplane = request.into_inner();
        let mut orders = shared.say.subscribe();
        // 64 messages: the dataplane reads, or has failed the test.
        let (to_dataplane, answers) = tokio::sync::mpsc::channel(64);
        tokio::spawn(async move {
            let say = |message| {
                let to_dataplane = to_dataplane.clone();
                async move {
                    let message = ToDataplane {
                        message: Some(message),
                    };
                    // The other end is gone: the stream is over.
                    let _ = to_dataplane.send(Ok(message)).await;
                }
            };
            loop {
                tokio::select! {
                    received = from_dataplane.next() => {
                        let Some(Ok(ToZone { message: Some(received) })) = received else { return };
                        for answer in hear(&shared, received) {
                            say(answer).await;
                        }
                    }
                    order = orders.recv() => {
                        let Ok(order) = order else { return };
                        say(order).await;
                    }
                }
            }
        });
        let answers = tokio_stream::wrappers::ReceiverStream::new(answers);
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Remembers a message, and returns the answers.
fn hear(shared: &Shared, received: to_zone::Message) -> Vec<to_dataplane::Message> {
    let mut heard = lock(&shared.heard);
    match received {
        to_zone::Message::Hello(hello) => {
            heard.hellos.push(hello);
            let mut answers = vec![to_dataplane::Message::Welcome(Welcome {
                version: mesh_proto::VERSION.to_owned(),
                features: Vec::new(),
                zone: "west".to_owned(),
                control_plane_anchors: Vec::new(),
                heartbeat_interval_ms: 60_000,
            })];
            answers.extend(lock(&shared.script).iter().cloned());
            answers
        }
        to_zone::Message::Ack(ack) => {
            heard.acks.push(ack);
            Vec::new()
        }
        to_zone::Message::Nack(nack) => {
            heard.nacks.push(nack);
            Vec::new()
        }
        to_zone::Message::CertificateRequest(request) => {
            let (chain, error) = match sign(shared, &request.csr, &request.spiffe_id) {
                Ok(leaf) => (vec![leaf], String::new()),
                Err(error) => (Vec::new(), error.to_string()),
            };
            vec![to_dataplane::Message::Certificate(Certificate {
                spiffe_id: request.spiffe_id,
                chain,
                error,
            })]
        }
        to_zone::Message::Readiness(_)
        | to_zone::Message::Heartbeat(_)
        | to_zone::Message::Leaving(_)
        | to_zone::Message::Answer(_) => Vec::new(),
    }
}

fn sign(shared: &Shared, csr: &[u8], spiffe_id: &str) -> anyhow::Result<Vec<u8>> {
    let subject = Subject {
        spiffe_id: Some(spiffe_id.parse()?),
        ..Subject::default()
    };
    let now = OffsetDateTime::now_utc();
    let leaf = shared
        .mesh_ca
        .sign(csr, &subject, now, Duration::hours(24))?;
    Ok(leaf.to_vec())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
