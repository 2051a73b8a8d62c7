//! The server that dataplanes and ingresses call: one stream each.
//!
//! A stream's task authenticates and reads; what it hears becomes events for the zone's loop, which alone decides. Each
//! end says something once an interval and drops the stream after two that stay silent: a living TCP connection proves
//! nothing (FIELD a1, c7).

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use futures::Stream;
use mesh_model::Resource;
use mesh_proto::{
    VERSION,
    discovery::{
        DocumentVersion, Heartbeat, Hello, Role, ToDataplane, ToZone, Welcome,
        discovery_server::Discovery, to_dataplane, to_zone,
    },
    features,
    names::ZoneName,
};
use mesh_runtime::transport;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior},
};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    event::Event,
    identity::ZoneIdentity,
    platform::universal,
    registry::{Arrival, StreamId},
    stream::{self, End, Outgoing},
    token::{self, Bearer, Issuers},
};

/// Newcomers that are authenticated at once. More wait: being queued is no error for a dataplane, which goes on with
/// what it has (FIELD e1, e2).
const NEWCOMERS_AT_ONCE: usize = 64;
/// How long a newcomer may take to say hello, and to be let in.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A dataplane or ingress whose token and resource are good, and who is to be registered.
pub struct Newcomer {
    /// Which it is.
    pub role: Role,
    /// Who it is.
    pub arrival: Arrival,
    /// Documents it runs already.
    pub running: Vec<DocumentVersion>,
    /// How to send to it.
    pub outgoing: Outgoing<ToDataplane>,
    /// Hears whether it is registered.
    pub answer: oneshot::Sender<Result<(), Status>>,
}

/// The service.
#[derive(Clone)]
pub struct DiscoveryServer {
    /// The zone's identity.
    pub identity: ZoneIdentity,
    /// Keys and revocations, as they are now.
    pub issuers: Arc<ArcSwap<Issuers>>,
    /// The zone's loop.
    pub events: mpsc::Sender<Event>,
    /// The newest revision compiled.
    pub revision: watch::Receiver<u64>,
    /// How often each end says something.
    pub heartbeat: Duration,
    /// Number of the last stream.
    pub streams: Arc<AtomicU64>,
    /// Bounds those who are authenticated at once.
    pub admission: Arc<Semaphore>,
}

impl DiscoveryServer {
    /// A server for the loop behind `events`.
    #[must_use]
    pub fn new(
        identity: ZoneIdentity,
        issuers: Arc<ArcSwap<Issuers>>,
        events: mpsc::Sender<Event>,
        revision: watch::Receiver<u64>,
        heartbeat: Duration,
    ) -> Self {
        Self {
            identity,
            issuers,
            events,
            revision,
            heartbeat,
            streams: Arc::default(),
            admission: Arc::new(Semaphore::new(NEWCOMERS_AT_ONCE)),
        }
    }

    /// Authenticates a newcomer and has it registered.
    async fn let_in(
        &self,
        token: &str,
        inbound: &mut Streaming<ToZone>,
    ) -> Result<Admitted, Status> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came within 10 s"))??;
        let Some(ToZone {
            message: Some(to_zone::Message::Hello(hello)),
        }) = first
        else {
            return Err(Status::invalid_argument("the first message must be hello"));
        };
        let permit = self.admission.acquire().await;
        let role = hello.role();
        let resource = universal::resource_of(role, &hello.resource, &self.identity.zone)
            .map_err(Status::invalid_argument)?;
        let accepted = self.authenticate(token, role, &resource)?;
        drop(permit);
        let id = StreamId(self.streams.fetch_add(1, Ordering::Relaxed) + 1);
        let (outgoing, end, body) = stream::outgoing();
        let (answer, answered) = oneshot::channel();
        let Hello {
            version,
            features,
            session,
            session_number,
            documents,
            ..
        } = hello;
        let name = resource.meta.name.clone();
        let newcomer = Newcomer {
            role,
            running: documents,
            outgoing: outgoing.clone(),
            answer,
            arrival: Arrival {
                resource: Arc::new(resource),
                session,
                session_number,
                version,
                features,
                token: accepted,
                stream: id,
            },
        };
        outgoing.send(welcome(&self.identity, self.heartbeat));
        let stopping = || Status::unavailable("this zone control plane is stopping: call again");
        self.events
            .send(Event::Arrived(Box::new(newcomer)))
            .await
            .map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())??;
        Ok(Admitted {
            id,
            name,
            outgoing,
            end,
            body: Box::pin(body),
        })
    }

    fn authenticate(
        &self,
        token: &str,
        role: Role,
        resource: &Resource,
    ) -> Result<token::Accepted, Status> {
        let name = resource.meta.name.as_str();
        let bearer = match role {
            Role::Ingress => Bearer::Ingress { name },
            _ => Bearer::Dataplane {
                mesh: &resource.meta.mesh,
                name,
                labels: &resource.meta.labels,
            },
        };
        let zone: &ZoneName = &self.identity.zone;
        token::verify(token, bearer, &self.issuers.load(), zone, unix_seconds()).map_err(|refused| {
            tracing::warn!(mesh = %resource.meta.mesh, dataplane = %name, %refused, "a dataplane is refused");
            match refused {
                // Perhaps only this zone has not heard of the mesh yet: worth calling again.
                token::Refused::UnknownIssuer(_) => Status::unavailable(refused.to_string()),
                token::Refused::WrongMesh { .. } | token::Refused::Name { .. } | token::Refused::Label { .. } => {
                    Status::permission_denied(refused.to_string())
                }
                _ => Status::unauthenticated(refused.to_string()),
            }
        })
    }
}

struct Admitted {
    id: StreamId,
    name: String,
    outgoing: Outgoing<ToDataplane>,
    end: Arc<End>,
    body: Body,
}

type Body = Pin<Box<dyn Stream<Item = Result<ToDataplane, Status>> + Send>>;

#[tonic::async_trait]
impl Discovery for DiscoveryServer {
    type StreamStream = Body;

    async fn stream(
        &self,
        request: Request<Streaming<ToZone>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let peer = transport::peer_address(&request);
        let token = bearer_token(&request);
        let mut inbound = request.into_inner();
        let admitted = self
            .let_in(&token, &mut inbound)
            .await
            .inspect_err(|status| {
                tracing::info!(?peer, reason = status.message(), "a stream is refused");
            })?;
        let Admitted {
            id,
            name,
            outgoing,
            end,
            body,
        } = admitted;
        tracing::info!(?peer, dataplane = %name, stream = id.0, "a dataplane is connected");
        let reader = Reader {
            id,
            outgoing: Some(outgoing),
            end,
            events: self.events.clone(),
            revision: self.revision.clone(),
            heartbeat: self.heartbeat,
            last_beat: None,
        };
        tokio::spawn(reader.run(inbound));
        Ok(Response::new(body))
    }
}

/// Reads one stream to its end.
struct Reader {
    id: StreamId,
    /// Only for heartbeats; the loop has its own.
    outgoing: Option<Outgoing<ToDataplane>>,
    end: Arc<End>,
    events: mpsc::Sender<Event>,
    revision: watch::Receiver<u64>,
    heartbeat: Duration,
    last_beat: Option<Heartbeat>,
}

impl Reader {
    async fn run(mut self, mut inbound: Streaming<ToZone>) {
        let mut heard = Instant::now();
        let mut beat = tokio::time::interval(self.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reason = loop {
            let silent_at = heard + self.heartbeat * 2;
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => {
                        if let Some(message) = self.worth_telling(message)
                            && self.events.send(Event::Said(self.id, message)).await.is_err()
                        {
                            break "this zone control plane is stopping".to_owned();
                        }
                        // What waited while the loop was busy is not silence.
                        heard = Instant::now();
                    }
                    Ok(None) => break "the dataplane ended the stream".to_owned(),
                    Err(status) => break format!("the stream broke: {}", status.message()),
                },
                _ = beat.tick() => self.send_heartbeat(),
                () = tokio::time::sleep_until(silent_at) => {
                    let reason = "nothing was heard for two heartbeats";
                    self.end.end(Status::deadline_exceeded(reason));
                    break reason.to_owned();
                }
                () = self.end.ended() => {
                    break self.end.reason().map_or_else(String::new, |s| s.message().to_owned());
                }
            }
        };
        // Lets the answering half end as well, after what is queued.
        self.outgoing = None;
        let silent_ms = u64::try_from(heard.elapsed().as_millis()).unwrap_or(0);
        let heard_ms = unix_ms().saturating_sub(silent_ms);
        let _ = self
            .events
            .send(Event::Gone {
                stream: self.id,
                heard_ms,
                reason,
            })
            .await;
    }

    /// Heartbeats are the reader's own business, unless they say something new.
    fn worth_telling(&mut self, message: ToZone) -> Option<to_zone::Message> {
        match message.message? {
            to_zone::Message::Heartbeat(beat) => {
                let last = self.last_beat.replace(beat.clone());
                (last.as_ref() != Some(&beat)).then_some(to_zone::Message::Heartbeat(beat))
            }
            other => Some(other),
        }
    }

    fn send_heartbeat(&self) {
        let beat = Heartbeat {
            revision: *self.revision.borrow(),
            ..Heartbeat::default()
        };
        if let Some(outgoing) = &self.outgoing {
            outgoing.send(ToDataplane {
                message: Some(to_dataplane::Message::Heartbeat(beat)),
            });
        }
    }
}

fn welcome(identity: &ZoneIdentity, heartbeat: Duration) -> ToDataplane {
    let welcome = Welcome {
        version: VERSION.to_owned(),
        features: features::DATAPLANE
            .iter()
            .map(|f| (*f).to_owned())
            .collect(),
        zone: identity.zone.to_string(),
        control_plane_anchors: identity.anchors_pem(),
        heartbeat_interval_ms: u32::try_from(heartbeat.as_millis()).unwrap_or(u32::MAX),
    };
    ToDataplane {
        message: Some(to_dataplane::Message::Welcome(welcome)),
    }
}

fn bearer_token(request: &Request<Streaming<ToZone>>) -> String {
    request
        .metadata()
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            value
                .strip_prefix("Bearer ")
                .or_else(|| value.strip_prefix("bearer "))
        })
        .unwrap_or_default()
        .to_owned()
}

/// The system's clock in Unix seconds.
#[must_use]
pub fn unix_seconds() -> u64 {
    unix_ms() / 1000
}

/// The system's clock in Unix milliseconds.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
