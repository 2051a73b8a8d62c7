//! The stream to a zone control plane.
//!
//! One task calls one address after another, and calls again for ever, with jittered waits. It judges nothing: what the
//! zone says goes to the control thread as it came. A stream on which nothing is heard for two heartbeats is dropped,
//! however alive its TCP connection looks.

mod recognise;

use std::{path::PathBuf, sync::Arc, time::Duration};

use mesh_proto::discovery::{
    GoAway, Hello, ToDataplane, ToZone, Welcome, discovery_client::DiscoveryClient,
    to_dataplane::Message as FromZoneMessage, to_zone::Message as ToZoneMessage,
};
use mesh_runtime::{
    backoff::{self, Backoff},
    tls,
    transport::{self, ConnectError},
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, metadata::MetadataValue};

use crate::metrics::Metrics;
use recognise::Recognise;

/// How long the zone may take to answer hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Heartbeats where the zone does not say.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Messages to the zone that may wait. Where it is full, the control thread drops the stream: a zone that takes nothing
/// for so long is as good as gone.
pub const OUTBOX: usize = 256;
/// The longest message that is taken, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How old a stream must be to be replaced by one that looks endpoints up afresh; doubled while that does not help, up
/// to [`LOOKUP_INTERVAL_MAX`], so that a service that is down everywhere does not cost the zone a stream a second.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(2);
const LOOKUP_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Where the bearer token comes from.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// Read at each call, so that a replaced token is used without a restart.
    File(PathBuf),
    /// Given at start.
    Text(String),
}

impl TokenSource {
    fn read(&self) -> Result<String, StreamEnd> {
        let text = match self {
            Self::Text(text) => text.clone(),
            Self::File(path) => std::fs::read_to_string(path).map_err(|error| {
                StreamEnd::Token(format!("token file {}: {error}", path.display()))
            })?,
        };
        let text = text.trim().to_owned();
        if text.is_empty() {
            return Err(StreamEnd::Token("the dataplane token is empty".to_owned()));
        }
        Ok(text)
    }
}

/// What the client tells the control thread.
pub enum FromZone {
    /// A stream is about to begin: what to say in hello?
    Hello(oneshot::Sender<Hello>),
    /// The zone has answered hello. What is sent to `outbox` goes to it until `Disconnected`.
    Connected {
        /// To the zone.
        outbox: mpsc::Sender<ToZone>,
        /// The zone's answer.
        welcome: Welcome,
    },
    /// Anything else the zone says.
    Message(FromZoneMessage),
    /// The stream has ended, for this reason.
    Disconnected(String),
}

/// Calls the zone.
pub struct Client {
    /// `host:port`, all of them.
    pub addresses: Vec<String>,
    /// Who the proxy says it is.
    pub token: TokenSource,
    /// Anchors of the control plane that were kept, as PEM.
    pub anchors: Vec<String>,
    /// What the zone is told of with each heartbeat.
    pub metrics: Arc<Metrics>,
    /// Wakes the client to begin a new stream, which brings all endpoints afresh.
    pub look_up: Arc<Notify>,
    /// To the control thread. Where it is full, the stream is not read, and the zone waits.
    pub events: mpsc::Sender<FromZone>,
}

/// A stream on which the zone has answered hello.
struct Begun {
    stream: Streaming<ToDataplane>,
    outbox: mpsc::Sender<ToZone>,
    heartbeat: Duration,
}

/// Why a stream has ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("{0}")]
    Token(String),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(
        "{address} refuses this proxy's token: {reason}; configuration that is there stays in force"
    )]
    Refused { address: String, reason: String },
    #[error("{address}: {reason}")]
    Status { address: String, reason: String },
    #[error("{0} did not answer hello within {n} s", n = WELCOME_TIMEOUT.as_secs())]
    NoWelcome(String),
    #[error("{0} was silent for two heartbeats")]
    Silent(String),
    #[error("{0} closed the stream")]
    Closed(String),
    #[error("no endpoint of {0} could be reached: asking for fresh ones")]
    LookUp(String),
    #[error("{address} asks to be left: {reason}")]
    GoAway {
        address: String,
        reason: String,
        addresses: Vec<String>,
    },
    /// The control thread has gone.
    #[error("stopped")]
    Stopped,
}

impl Client {
    /// Calls for ever; returns when the control thread has gone.
    pub async fn run(mut self) {
        let mut look_up_after = LOOKUP_INTERVAL;
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(15));
        let mut addresses = self.addresses.clone();
        // Proxies that start together spread over the zone's instances.
        let mut next = usize::try_from(backoff::random() >> 33).unwrap_or_default();
        let mut failed = 0;
        loop {
            let address = addresses[next % addresses.len()].clone();
            let begun = Instant::now();
            let end = self.stream(&address, look_up_after).await;
            let lived = begun.elapsed() > WELCOME_TIMEOUT;
            look_up_after = match &end {
                StreamEnd::LookUp(_) if begun.elapsed() < LOOKUP_INTERVAL_MAX * 2 => {
                    (look_up_after * 2).min(LOOKUP_INTERVAL_MAX)
                }
                _ => LOOKUP_INTERVAL,
            };
            match &end {
                StreamEnd::Stopped => return,
                StreamEnd::Refused { .. } | StreamEnd::Token(_) => {
                    tracing::error!(reason = %end, "the zone control plane refuses this proxy");
                }
                StreamEnd::GoAway {
                    addresses: told, ..
                } => {
                    tracing::info!(reason = %end, "leaving a zone control plane");
                    if !told.is_empty() {
                        addresses.clone_from(told);
                    }
                }
                StreamEnd::LookUp(_) => tracing::info!(reason = %end, "a new stream is begun"),
                _ => tracing::warn!(reason = %end, "no stream to a zone control plane"),
            }
            if self
                .events
                .send(FromZone::Disconnected(end.to_string()))
                .await
                .is_err()
            {
                return;
            }
            if lived || matches!(end, StreamEnd::GoAway { .. } | StreamEnd::LookUp(_)) {
                backoff.reset();
                failed = 0;
            }
            if matches!(end, StreamEnd::LookUp(_)) {
                continue;
            }
            next = next.wrapping_add(1);
            failed += 1;
            // The others are called at once; where all have failed, addresses that a zone told count no more.
            if failed % addresses.len() == 0 {
                addresses.clone_from(&self.addresses);
                tokio::time::sleep(backoff.next_wait(backoff::random())).await;
            }
        }
    }

    async fn stream(&mut self, address: &str, look_up_after: Duration) -> StreamEnd {
        match self.begin(address).await {
            Ok(begun) => self.read(address, begun, look_up_after).await,
            Err(end) => end,
        }
    }

    /// Calls, says hello, and hears welcome.
    async fn begin(&mut self, address: &str) -> Result<Begun, StreamEnd> {
        let token = self.token.read()?;
        let verifier = Recognise::new(&token, &self.anchors).map_err(StreamEnd::Token)?;
        let tls = tls::client_config(None, Arc::new(verifier), transport::GRPC_ALPN);
        let connection = transport::connection(address, Arc::new(tls)).await?;
        let origin = connection.origin();
        let mut client = DiscoveryClient::with_origin(connection, origin)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);

        let (outbox, messages) = mpsc::channel(OUTBOX);
        let hello = self.hello().await?;
        let hello = ToZone {
            message: Some(ToZoneMessage::Hello(hello)),
        };
        outbox.try_send(hello).map_err(|_| StreamEnd::Stopped)?;
        let mut request = Request::new(ReceiverStream::new(messages));
        let bearer = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| StreamEnd::Token("the token holds characters no token has".to_owned()))?;
        request.metadata_mut().insert("authorization", bearer);

        let calling = async {
            let mut stream = client.stream(request).await?.into_inner();
            let first = stream.message().await?;
            Ok((stream, first))
        };
        let (stream, first) = timeout(WELCOME_TIMEOUT, calling)
            .await
            .map_err(|_| StreamEnd::NoWelcome(address.to_owned()))?
            .map_err(|status: Status| ended(address, &status))?;
        let Some(FromZoneMessage::Welcome(welcome)) = first.and_then(|first| first.message) else {
            return Err(StreamEnd::NoWelcome(address.to_owned()));
        };
        let heartbeat = match welcome.heartbeat_interval_ms {
            0 => HEARTBEAT,
            ms => Duration::from_millis(ms.clamp(100, 60_000).into()),
        };
        if !welcome.control_plane_anchors.is_empty() {
            self.anchors.clone_from(&welcome.control_plane_anchors);
        }
        tracing::info!(
            address,
            zone = welcome.zone,
            version = welcome.version,
            "connected to a zone control plane"
        );
        self.tell(FromZone::Connected {
            outbox: outbox.clone(),
            welcome,
        })
        .await?;
        Ok(Begun {
            stream,
            outbox,
            heartbeat,
        })
    }

    async fn hello(&self) -> Result<Hello, StreamEnd> {
        let (answer, hello) = oneshot::channel();
        self.tell(FromZone::Hello(answer)).await?;
        hello.await.map_err(|_| StreamEnd::Stopped)
    }

    async fn tell(&self, event: FromZone) -> Result<(), StreamEnd> {
        self.events
            .send(event)
            .await
            .map_err(|_| StreamEnd::Stopped)
    }

    /// Passes on what the zone says until the stream ends.
    async fn read(&self, address: &str, begun: Begun, look_up_after: Duration) -> StreamEnd {
        let Begun {
            mut stream,
            outbox,
            heartbeat,
        } = begun;
        let begun = Instant::now();
        let mut beats = interval(heartbeat);
        let mut heard = Instant::now();
        loop {
            let silent = tokio::time::sleep_until(heard + heartbeat * 2);
            let message = tokio::select! {
                message = stream.message() => message,
                () = silent => return StreamEnd::Silent(address.to_owned()),
                _ = beats.tick() => {
                    // The zone takes nothing: two heartbeats of silence will end this.
                    let _ = outbox.try_send(self.heartbeat());
                    continue;
                }
                () = self.look_up.notified(), if begun.elapsed() > look_up_after => {
                    return StreamEnd::LookUp("a service".to_owned());
                }
            };
            heard = Instant::now();
            let message = match message {
                Ok(Some(message)) => message.message,
                Ok(None) => return StreamEnd::Closed(address.to_owned()),
                Err(status) => return ended(address, &status),
            };
            match message {
                // A message of a newer zone: nothing that must be known (documents name what they require).
                None => {}
                Some(FromZoneMessage::Heartbeat(_)) => {}
                Some(FromZoneMessage::GoAway(GoAway { addresses, reason })) => {
                    return StreamEnd::GoAway {
                        address: address.to_owned(),
                        reason,
                        addresses,
                    };
                }
                Some(message) => match self.tell(FromZone::Message(message)).await {
                    Ok(()) => {}
                    Err(stopped) => return stopped,
                },
            }
        }
    }

    fn heartbeat(&self) -> ToZone {
        ToZone {
            message: Some(ToZoneMessage::Heartbeat(self.metrics.heartbeat())),
        }
    }
}

/// What a status means.
fn ended(address: &str, status: &Status) -> StreamEnd {
    let address = address.to_owned();
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => StreamEnd::Refused {
            address,
            reason: status.message().to_owned(),
        },
        code => StreamEnd::Status {
            address,
            reason: match status.message() {
                "" => code.description().to_owned(),
                message => message.to_owned(),
            },
        },
    }
}
