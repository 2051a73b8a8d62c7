//! The next hop of a request: a connection to it, the request on it, and the head of its answer.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::Future as _;
use h2::{Reason as H2Reason, RecvStream, client::ResponseFuture};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri};
use mesh_proto::names::ZoneName;

use super::{
    body::{Body, BodyError, H2Sink, Pump, Sink, stream_error},
    h1::{ReadMessageError, head::Framing},
    message::{Length, RequestHead, ResponseHead},
    pool::{H1Lease, H2Lease, HopKey, Made, Pool, Shared, begin_h1},
    record::RequestRecord,
    reply::is_bodiless,
    room::NO_ROOM,
};
use crate::{
    config::{Endpoint, Outstanding, Protocol, Timeouts},
    inbound, listener,
    record::{End, Reason},
    snapshot::{ServiceRoute, Snapshot},
    socket::Socket,
    tls::verify::VerifiedPeer,
    upstream::{self, Failed, Picked},
    workers::Worker,
};

/// From so many requests under way to one endpoint on, it is cheaper to send them over one connection of HTTP/2.
const SHARE_FROM: usize = 8;
/// A connection that has been idle for longer may be being closed at this moment.
const FRESH_MS: u64 = 1000;

/// How often it is looked whether a request was refused by a socket that had been closed, and how long between two looks.
const REFUSAL_LOOKS: usize = 20;
const REFUSAL_PAUSE: Duration = Duration::from_millis(5);

/// Where a request is sent.
pub enum Next {
    /// To the application behind an inbound.
    Application {
        /// Where it listens.
        address: SocketAddr,
        /// What it speaks.
        protocol: Protocol,
        /// For the connection.
        timeouts: Timeouts,
    },
    /// To an endpoint of a service, by mesh TLS.
    Service {
        /// The service.
        route: Arc<ServiceRoute>,
        /// The zone this proxy runs in.
        own_zone: ZoneName,
    },
}

/// A connection for one request.
pub enum Lease {
    /// For it alone.
    H1(HopKey, H1Lease),
    /// Shared with others.
    H2(H2Lease),
}

/// A connection for one request, and what counts it.
pub struct Leased {
    /// The connection.
    pub lease: Lease,
    /// Counts the request at its endpoint.
    pub outstanding: Option<Outstanding>,
}

/// What a request needs of its connection.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// It was asked over HTTP/2, or is gRPC.
    pub prefers_h2: bool,
    /// It wants the connection for itself: an upgrade.
    pub own: bool,
    /// It can not be sent again: a connection that may be closing is not for it.
    pub fresh: bool,
    /// The connection before was closed by its peer at the wrong moment: now a new one.
    pub new: bool,
}

impl Needs {
    /// Whether a request to `endpoint` of a service of `protocol`, where it is counted already, goes over a connection that is
    /// shared.
    fn shares(&self, protocol: Protocol, endpoint: &Endpoint) -> bool {
        let many = endpoint.health.under_way() >= SHARE_FROM;
        // The proxy there finds out by itself what is spoken, and can not know that it was translated.
        let may_translate = protocol != Protocol::Detect;
        !self.own && (self.prefers_h2 || many && may_translate)
    }

    /// Whether a request to an application of `protocol` does.
    fn shares_application(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Http2 | Protocol::Grpc => true,
            // What the application understands, its caller knows.
            Protocol::Detect => self.prefers_h2 && !self.own,
            Protocol::Tcp | Protocol::Tls | Protocol::Http => false,
        }
    }
}

impl Next {
    /// A connection that is there already: one that waits for a request, or one that requests share.
    ///
    /// # Errors
    /// Where there is none, with what [`Self::lease`] goes on from: the endpoint that was picked.
    pub fn lease_waiting(
        &self,
        worker: &Rc<Worker>,
        snapshot: &Arc<Snapshot>,
        needs: Needs,
        record: &mut RequestRecord,
    ) -> Result<Leased, Option<Picked>> {
        match self {
            Self::Application {
                address, protocol, ..
            } => {
                let key = HopKey::Application(*address);
                let shared = needs.shares_application(*protocol);
                let lease = waiting(worker, snapshot, key, shared, needs);
                Ok(Leased {
                    lease: lease.ok_or(None)?,
                    outstanding: None,
                })
            }
            Self::Service { route, own_zone } => {
                let picked = upstream::pick(worker, route, own_zone);
                let Some(endpoint) = picked.endpoint() else {
                    return Err(Some(picked));
                };
                let outstanding = endpoint.health.occupy();
                let key = HopKey::endpoint(route, endpoint);
                let lease = waiting(
                    worker,
                    snapshot,
                    key,
                    needs.shares(route.service.protocol, endpoint),
                    needs,
                );
                let Some(lease) = lease else {
                    return Err(Some(picked));
                };
                endpoint.health.succeeded();
                record.endpoint = Some(endpoint.text.clone());
                Ok(Leased {
                    lease,
                    outstanding: Some(outstanding),
                })
            }
        }
    }

    /// Finds a connection: one that waits, a shared one, or a new one. `picked`: where to try first.
    ///
    /// # Errors
    /// Where nobody can be reached.
    pub async fn lease(
        &self,
        worker: &Rc<Worker>,
        snapshot: &Arc<Snapshot>,
        needs: Needs,
        picked: Option<Picked>,
        record: &mut RequestRecord,
    ) -> Result<Leased, End> {
        match self {
            Self::Application {
                address,
                protocol,
                timeouts,
            } => {
                let key = HopKey::Application(*address);
                let shared = needs.shares_application(*protocol);
                let connect = async || {
                    let stream = inbound::reach_application(*address, timeouts).await?;
                    let made = Made::new(snapshot, None, timeouts);
                    let mut socket = Socket::plain(stream, Vec::new());
                    socket.watched_by(worker);
                    Ok((socket, made))
                };
                let lease = lease(worker, snapshot, key, shared, needs, connect).await?;
                Ok(Leased {
                    lease,
                    outstanding: None,
                })
            }
            Self::Service { route, own_zone } => {
                let last = std::cell::RefCell::new(None);
                let trying = |endpoint: &Endpoint| {
                    last.replace(Some(endpoint.text.clone()));
                };
                let attempt = async |endpoint: &Endpoint| {
                    let key = HopKey::endpoint(route, endpoint);
                    let connect = async || {
                        may_call(snapshot)?;
                        let (stream, established) = upstream::call(route, endpoint).await?;
                        let peer = Some(&established.peer);
                        let made = Made::new(snapshot, peer, &route.service.timeouts);
                        let mut socket = Socket::tls(stream, established);
                        socket.watched_by(worker);
                        Ok((socket, made))
                    };
                    lease(
                        worker,
                        snapshot,
                        key,
                        needs.shares(route.service.protocol, endpoint),
                        needs,
                        connect,
                    )
                    .await
                };
                let picked = picked.unwrap_or_else(|| upstream::pick(worker, route, own_zone));
                let reached =
                    upstream::reach(worker, route, own_zone, picked, trying, attempt).await;
                record.endpoint = last.into_inner();
                let (lease, outstanding) = reached?;
                Ok(Leased {
                    lease,
                    outstanding: Some(outstanding),
                })
            }
        }
    }
}

/// A handshake never uses a certificate that has ended (FIELD b1).
fn may_call(snapshot: &Snapshot) -> Result<(), Failed> {
    listener::own_certificate(snapshot).map_err(|end| Failed {
        reason: end.reason,
        detail: end.detail,
    })
}

/// A connection to `key` that is there already.
fn waiting(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    key: HopKey,
    shared: bool,
    needs: Needs,
) -> Option<Lease> {
    if shared {
        return Pool::shared(worker, &key, snapshot).map(Lease::H2);
    }
    if needs.new {
        return None;
    }
    let oldest = if needs.fresh { FRESH_MS } else { u64::MAX };
    let idle = worker
        .pool
        .take_idle(&key, snapshot, worker.now_ms(), oldest);
    idle.map(|lease| Lease::H1(key, lease))
}

/// A connection to `key`, by `connect` where none waits.
async fn lease(
    worker: &Rc<Worker>,
    snapshot: &Arc<Snapshot>,
    key: HopKey,
    shared: bool,
    needs: Needs,
    connect: impl AsyncFn() -> Result<(Socket, Made), Failed>,
) -> Result<Lease, Failed> {
    if let Some(lease) = waiting(worker, snapshot, key.clone(), shared, needs) {
        return Ok(lease);
    }
    if !shared {
        let (socket, made) = Box::pin(connect()).await?;
        return Ok(Lease::H1(key, begin_h1(worker, socket, made)));
    }
    loop {
        match Pool::share(worker, &key, snapshot) {
            Shared::Lease(lease) => return Ok(Lease::H2(lease)),
            Shared::Wait(made) => made.notified().await,
            Shared::Make(making) => {
                let (socket, made) = Box::pin(connect()).await?;
                return match making.begin(socket, made).await {
                    Ok(lease) => Ok(Lease::H2(lease)),
                    Err(error) => Err(Failed {
                        reason: Reason::ConnectFailed,
                        detail: format!("HTTP/2 could not begin: {error}"),
                    }),
                };
            }
        }
    }
}

/// Interim answers (1xx) to one request, each of which a slow caller may have to be kept for.
const INTERIMS_MAX: usize = 64;

/// A request on its way, and the answer that is waited for.
pub struct Sent {
    /// The request's body.
    pub upload: Pump,
    awaiting: Awaiting,
    /// Parts of the answer's head have come, so that the request was read.
    pub answered: bool,
    /// Interim answers that have come.
    interims: usize,
}

enum Awaiting {
    /// The answer has come.
    Nothing,
    H1(HopKey, H1Lease),
    H2 {
        answer: ResponseFuture,
        lease: H2Lease,
        /// What an upgraded stream sends on.
        tunnel: Option<H2Sink>,
    },
}

/// What comes of a request.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are answers, and a box would be one more allocation for each"
)]
pub enum Arrived {
    /// An interim answer (1xx); more comes.
    Interim(ResponseHead),
    /// The answer.
    Answer(Answered),
}

/// The head of an answer, and its body to come.
pub struct Answered {
    /// The head.
    pub head: ResponseHead,
    /// Its body.
    pub body: Body,
    /// It has one.
    pub has_body: bool,
    /// What becomes of the connection.
    pub hop: UsedHop,
    /// Where what the caller sends after an upgrade goes.
    pub tunnel: Option<Sink>,
}

/// The connection that an answer comes on.
pub enum UsedHop {
    /// Goes back to the pool where both messages have ended.
    H1 {
        /// The pool's key.
        key: HopKey,
        /// The connection.
        lease: H1Lease,
        /// It may carry more.
        keep_alive: bool,
        /// What its server says of how long it waits.
        idle_seconds: Option<u64>,
    },
    /// Counts the stream while it lasts.
    H2(H2Lease),
}

/// Why there is no answer.
#[derive(Debug)]
pub struct NoAnswer {
    /// For metrics.
    pub reason: Reason,
    /// For the person on call.
    pub detail: String,
    /// The request was not processed for certain: it may be sent again whatever it is.
    pub unprocessed: bool,
    /// The connection was closed before a byte of the answer, as happens to one that waited: the request may be sent again where
    /// that means the same.
    pub stale: bool,
}

/// Sends the head of a request; its body follows as [`Sent::upload`] is polled.
///
/// # Errors
/// Where the connection takes no request.
pub async fn send(
    worker: &Rc<Worker>,
    lease: Lease,
    head: &RequestHead,
    mut body: Body,
) -> Result<Sent, Box<(NoAnswer, Option<Body>)>> {
    match lease {
        Lease::H1(key, lease) => {
            let mut head_on_wire;
            let mut head = head;
            if needs_websocket_key(head) {
                head_on_wire = head.clone();
                add_websocket_key(worker, &mut head_on_wire);
                head = &head_on_wire;
            }
            let framing = match body.length() {
                _ if head.upgrade.is_some() => Framing::None,
                Length::Known(0) => Framing::None,
                Length::Known(length) => Framing::Length(length),
                Length::Unknown => Framing::Chunked,
            };
            lease.connection.borrow_mut().put_request(head, framing);
            Ok(Sent {
                upload: Pump::new(body, Sink::H1(lease.connection.clone())),
                awaiting: Awaiting::H1(key, lease),
                answered: false,
                interims: 0,
            })
        }
        Lease::H2(lease) => {
            let mut sender = lease.sender();
            let ends = head.upgrade.is_none() && matches!(body, Body::Empty);
            let ready = poll_fn(|cx| {
                let ready = sender.poll_ready(cx);
                if ready.is_pending() {
                    body.collect(cx);
                }
                ready
            });
            let sent = match ready.await {
                Ok(()) => sender.send_request(on_h2(head), ends),
                Err(error) => Err(error),
            };
            let (answer, stream) = match sent {
                Ok(sent) => sent,
                Err(error) => {
                    // Nothing of it has left.
                    let failed = NoAnswer {
                        unprocessed: true,
                        ..no_answer(&error, &lease)
                    };
                    lease.hop.retire();
                    return Err(Box::new((failed, Some(body))));
                }
            };
            let sink = H2Sink::new(stream);
            let (upload, tunnel) = match (&head.upgrade, ends) {
                (Some(_), _) => (Pump::new(Body::Empty, Sink::None), Some(sink)),
                (None, true) => (Pump::new(Body::Empty, Sink::None), None),
                (None, false) => (Pump::new(body, Sink::H2(sink)), None),
            };
            Ok(Sent {
                upload,
                awaiting: Awaiting::H2 {
                    answer,
                    lease,
                    tunnel,
                },
                answered: false,
                interims: 0,
            })
        }
    }
}

impl Sent {
    /// Who is at the other end, where mesh TLS says so.
    #[must_use]
    pub fn peer(&self) -> Option<Rc<VerifiedPeer>> {
        match &self.awaiting {
            Awaiting::Nothing => None,
            Awaiting::H1(_, lease) => lease.made.peer.clone(),
            Awaiting::H2 { lease, .. } => lease.hop.made.peer.clone(),
        }
    }

    /// Takes note of an interim answer.
    ///
    /// # Errors
    /// Where there have been more than come before an answer.
    pub fn note_interim(&mut self) -> Result<(), NoAnswer> {
        self.interims += 1;
        if self.interims <= INTERIMS_MAX {
            return Ok(());
        }
        let what = "it sends interim answers without end";
        Err(NoAnswer::of(Reason::BadAnswer, what))
    }

    /// True where it is certain that nobody has read the request: no byte of it has left, or the connection had been closed before it
    /// arrived, as can happen to one that waited. The peer's refusal takes a moment to come.
    pub async fn was_never_read(&self) -> bool {
        let Awaiting::H1(_, lease) = &self.awaiting else {
            return false;
        };
        if lease.connection.borrow().nothing_has_left() {
            return true;
        }
        for _ in 0..REFUSAL_LOOKS {
            if lease.connection.borrow().was_refused_after_end() {
                return true;
            }
            tokio::time::sleep(REFUSAL_PAUSE).await;
        }
        false
    }

    /// What comes next of the head of the answer to `asked`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn poll_arrived(
        &mut self,
        cx: &mut Context<'_>,
        asked: &RequestHead,
    ) -> Poll<Result<Arrived, NoAnswer>> {
        match &mut self.awaiting {
            Awaiting::Nothing => Poll::Pending,
            Awaiting::H1(_, lease) => {
                let polled = lease
                    .connection
                    .borrow_mut()
                    .poll_response(cx, &asked.method);
                let parsed = match ready!(polled) {
                    Ok(parsed) => parsed,
                    Err(error) => {
                        return Poll::Ready(Err(broken(error, lease, self.answered)));
                    }
                };
                self.answered = true;
                if parsed.head.status.is_informational() && parsed.head.upgrade.is_none() {
                    return Poll::Ready(Ok(Arrived::Interim(parsed.head)));
                }
                let connection = lease.connection.clone();
                let length = match parsed.framing {
                    Framing::None => Length::Known(0),
                    Framing::Length(length) => Length::Known(length),
                    Framing::Chunked | Framing::UntilClose => Length::Unknown,
                };
                let is_upgrade = parsed.head.upgrade.is_some();
                if is_upgrade && asked.upgrade.is_none() {
                    return Poll::Ready(Err(NoAnswer::of(
                        Reason::BadAnswer,
                        "it answered with an upgrade that nobody asked for",
                    )));
                }
                if is_upgrade {
                    connection.borrow_mut().upgrade();
                }
                let has_body = is_upgrade || parsed.framing != Framing::None;
                let body = match has_body {
                    true => Body::H1(connection.clone(), length),
                    false => Body::Empty,
                };
                let Awaiting::H1(key, lease) =
                    std::mem::replace(&mut self.awaiting, Awaiting::Nothing)
                else {
                    unreachable!("it was so above");
                };
                Poll::Ready(Ok(Arrived::Answer(Answered {
                    head: parsed.head,
                    body,
                    has_body,
                    tunnel: is_upgrade.then(|| Sink::H1(connection)),
                    hop: UsedHop::H1 {
                        key,
                        lease,
                        keep_alive: parsed.keep_alive && !is_upgrade,
                        idle_seconds: parsed.idle_seconds,
                    },
                })))
            }
            Awaiting::H2 {
                answer,
                lease,
                tunnel,
            } => {
                if let Poll::Ready(Some(interim)) = answer.poll_informational(cx) {
                    self.answered = true;
                    return Poll::Ready(match interim {
                        Ok(interim) => {
                            let (parts, ()) = interim.into_parts();
                            Ok(Arrived::Interim(ResponseHead {
                                status: parts.status,
                                headers: parts.headers,
                                upgrade: None,
                            }))
                        }
                        Err(error) => Err(no_answer(&error, lease)),
                    });
                }
                let response = match ready!(Pin::new(answer).poll(cx)) {
                    Ok(response) => response,
                    Err(error) => return Poll::Ready(Err(no_answer(&error, lease))),
                };
                self.answered = true;
                let lease = H2Lease::again(lease);
                let answered = from_h2(
                    response,
                    &asked.method,
                    asked.upgrade.as_ref(),
                    tunnel.take(),
                    lease,
                );
                Poll::Ready(Ok(Arrived::Answer(answered)))
            }
        }
    }
}

/// The head of a request as HTTP/2 has it.
fn on_h2(head: &RequestHead) -> Request<()> {
    let mut request = Request::new(());
    let mut parts = uri::Parts::default();
    parts.path_and_query = Some(head.path.clone());
    *request.version_mut() = http::Version::HTTP_2;
    match &head.authority {
        Some(authority) => {
            parts.scheme = Some(uri::Scheme::HTTP);
            parts.authority = Some(authority.clone());
        }
        // An upgrade has to have one.
        None if head.upgrade.is_some() => {
            parts.scheme = Some(uri::Scheme::HTTP);
            parts.authority = Some(uri::Authority::from_static("localhost"));
        }
        // HTTP/1.0 without Host: h2 leaves it out for what comes from there only.
        None => *request.version_mut() = http::Version::HTTP_11,
    }
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    request.headers_mut().clone_from(&head.headers);
    match &head.upgrade {
        Some(protocol) => {
            *request.method_mut() = Method::CONNECT;
            let protocol = protocol.to_str().unwrap_or_default();
            request
                .extensions_mut()
                .insert(h2::ext::Protocol::from(protocol));
            request.headers_mut().remove(header::SEC_WEBSOCKET_KEY);
        }
        None => request.method_mut().clone_from(&head.method),
    }
    request
}

fn from_h2(
    response: Response<RecvStream>,
    method: &Method,
    upgrade: Option<&HeaderValue>,
    tunnel: Option<H2Sink>,
    lease: H2Lease,
) -> Answered {
    // h2 has refused fields of one hop.
    let (parts, stream) = response.into_parts();
    let headers = parts.headers;
    let upgraded = upgrade.filter(|_| parts.status.is_success());
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| super::h1::head::content_length(length.as_bytes()));
    let has_body =
        upgraded.is_some() || !(is_bodiless(method, parts.status) || stream.is_end_stream());
    let body = if has_body {
        Body::h2(stream, length.map_or(Length::Unknown, Length::Known))
    } else {
        Body::Empty
    };
    Answered {
        head: ResponseHead {
            status: match upgraded {
                Some(_) => StatusCode::SWITCHING_PROTOCOLS,
                None => parts.status,
            },
            headers,
            upgrade: upgraded.cloned(),
        },
        body,
        has_body,
        hop: UsedHop::H2(lease),
        tunnel: tunnel.filter(|_| upgraded.is_some()).map(Sink::H2),
    }
}

/// HTTP/2 has no keys of WebSocket; an application that speaks HTTP/1 wants one.
fn needs_websocket_key(head: &RequestHead) -> bool {
    let websocket = head.upgrade.as_ref();
    websocket.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && !head.headers.contains_key(header::SEC_WEBSOCKET_KEY)
}

fn add_websocket_key(worker: &Worker, head: &mut RequestHead) {
    use base64::Engine as _;
    let bytes = [worker.random().to_be_bytes(), worker.random().to_be_bytes()].concat();
    let key = base64::engine::general_purpose::STANDARD.encode(bytes);
    if let Ok(key) = HeaderValue::from_str(&key) {
        head.headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
}

impl NoAnswer {
    fn of(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            unprocessed: false,
            stale: false,
        }
    }
}

fn broken(error: ReadMessageError, lease: &H1Lease, answered: bool) -> NoAnswer {
    match error {
        ReadMessageError::Bad(bad) => NoAnswer::of(
            Reason::BadAnswer,
            format!("what it answered is no HTTP: {bad}"),
        ),
        ReadMessageError::NoRoom => NoAnswer::of(Reason::RequestLimit, NO_ROOM),
        ReadMessageError::Socket(error) => NoAnswer {
            stale: lease.reused && !answered && lease.connection.borrow().is_drained(),
            ..NoAnswer::of(
                match error.reason {
                    Reason::RefusedByPeer => Reason::RefusedByPeer,
                    _ => Reason::Reset,
                },
                error.detail,
            )
        },
        ReadMessageError::Truncated => NoAnswer {
            stale: lease.reused && !answered && lease.connection.borrow().is_drained(),
            ..NoAnswer::of(
                Reason::Truncated,
                "it closed the connection without an answer",
            )
        },
    }
}

/// What an error of HTTP/2 means: whether the request was processed is what the protocol itself says.
fn no_answer(error: &h2::Error, lease: &H2Lease) -> NoAnswer {
    let refused = error.reason() == Some(H2Reason::REFUSED_STREAM);
    let going_away = error.is_go_away() && error.is_remote();
    if !error.is_reset() {
        lease.hop.retire();
    }
    let body_error = stream_error(error);
    NoAnswer {
        reason: match body_error {
            BodyError::Reset(_) => Reason::UpstreamReset,
            _ => Reason::Reset,
        },
        detail: body_error.to_string(),
        unprocessed: refused || (going_away && error.reason() == Some(H2Reason::NO_ERROR)),
        stale: error.is_io() || going_away,
    }
}
