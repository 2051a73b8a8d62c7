//! One record a request, written once whichever way it ends, drop included. Logs, metrics and taps are made from it.
//!
//! | field | meaning |
//! | --- | --- |
//! | `method`, `authority`, `path`, `route` | what was asked, and by which rule it was routed |
//! | `status`, `grpc_status` | what was answered, and by whom if not by the application: `said_by` |
//! | `reason`, `detail` | why it failed |
//! | `duration_ms` | the whole; of it `connect_ms` until there was a connection, `first_byte_ms` until the answer began |
//! | `attempts` | how often it was sent |
//! | `request_id`, `trace_id` | to find it elsewhere |

use std::{
    fmt,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header::Entry, uri::PathAndQuery,
};

use super::{
    message::{RequestHead, Version},
    metrics,
};
use crate::{
    record::{Connection, Direction, Reason},
    snapshot::Snapshot,
    tls::verify::VerifiedPeer,
    workers::Worker,
};

/// Who decided how a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SaidBy {
    /// The application that was called.
    Upstream,
    /// The caller: it went, or sent what is no request.
    Client,
    /// A policy of the mesh.
    Policy,
    /// The proxy, since the world did not let it do better.
    Proxy,
}

impl SaidBy {
    /// Of what is refused before it is a request: the caller is no good, but where others are too many.
    #[must_use]
    pub fn of_refusal(reason: Reason) -> Self {
        match reason {
            Reason::RequestLimit => Self::Proxy,
            _ => Self::Client,
        }
    }

    /// As text, for logs and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Client => "client",
            Self::Policy => "policy",
            Self::Proxy => "proxy",
        }
    }
}

impl fmt::Display for SaidBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One request, until it has ended.
pub struct RequestRecord {
    worker: Rc<Worker>,
    /// The caller's connection.
    pub connection: Rc<Connection>,
    /// When its head had been read.
    pub started: Instant,
    /// What was asked.
    pub method: Method,
    /// Path and query, as the caller sent them.
    pub path: PathAndQuery,
    /// Whom it was asked.
    pub authority: Option<http::uri::Authority>,
    /// What the caller speaks.
    pub version: Version,
    /// The rule that routed it. Empty: none did.
    pub route: Arc<str>,
    /// The rule that allowed or denied it.
    pub policy: Option<Arc<str>>,
    /// The service that was called.
    pub destination: Arc<str>,
    /// Where it went.
    pub endpoint: Option<Arc<str>>,
    /// Who is at the other end of the mesh hop.
    pub peer: Option<Rc<VerifiedPeer>>,
    /// What was answered. `None`: nothing.
    pub status: Option<StatusCode>,
    /// It is gRPC, whose failures are told in trailers.
    pub is_grpc: bool,
    /// Of gRPC, once known.
    pub grpc_status: Option<u16>,
    /// Until there was a connection to send it on.
    pub connected: Option<Duration>,
    /// Until the answer began.
    pub first_byte: Option<Duration>,
    /// Bytes of its body.
    pub sent: u64,
    /// Bytes of the answer's body.
    pub received: u64,
    /// How often it was sent.
    pub attempts: u32,
    /// Who decided how it ended.
    pub said_by: SaidBy,
    /// Why, where it was not the application.
    pub reason: Reason,
    /// For the person on call.
    pub detail: String,
    /// To find it elsewhere.
    pub request_id: Option<HeaderValue>,
    /// The W3C trace context, as the caller sent it.
    pub trace: Option<HeaderValue>,
    /// A copy that nobody waits for.
    pub mirrored: bool,
    ended: bool,
}

/// Finds a request again, on all hops.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

impl RequestRecord {
    /// Begins with a head that has been read. A request without an id gets one.
    #[must_use]
    pub fn begin(worker: &Rc<Worker>, connection: &Rc<Connection>, head: &mut RequestHead) -> Self {
        let request_id = match head.headers.entry(REQUEST_ID) {
            Entry::Occupied(id) => Some(id.get().clone()),
            Entry::Vacant(none) => request_id(worker).map(|id| none.insert(id).clone()),
        };
        worker.room.enter();
        Self {
            worker: worker.clone(),
            connection: connection.clone(),
            started: Instant::now(),
            method: head.method.clone(),
            path: head.path.clone(),
            authority: head.authority.clone(),
            version: head.version,
            route: Arc::default(),
            policy: None,
            destination: connection.destination.borrow().clone(),
            endpoint: None,
            peer: None,
            status: None,
            is_grpc: head.is_grpc(),
            grpc_status: None,
            connected: None,
            first_byte: None,
            sent: 0,
            received: 0,
            attempts: 0,
            said_by: SaidBy::Upstream,
            reason: Reason::None,
            detail: String::new(),
            request_id,
            trace: head.headers.get(TRACEPARENT).cloned(),
            mirrored: false,
            ended: false,
        }
    }

    /// Says why it was not the application that decided how it ended. What is said first counts.
    pub fn fail(&mut self, said_by: SaidBy, reason: Reason, detail: impl Into<String>) {
        if self.reason == Reason::None {
            // A caller whose connection this proxy has ended has not left.
            let ended = self.connection.close.get();
            (self.said_by, self.reason) = match (reason, ended) {
                (Reason::ClientGone, Some(reason)) => (SaidBy::Proxy, reason),
                _ => (said_by, reason),
            };
            self.detail = detail.into();
        }
    }

    /// Takes note of the status of gRPC, in a head or in trailers.
    pub fn note_grpc(&mut self, headers: &HeaderMap) {
        if !self.is_grpc {
            return;
        }
        let status = headers.get(GRPC_STATUS);
        let status = status.and_then(|status| status.to_str().ok()?.parse().ok());
        self.grpc_status = status.or(self.grpc_status);
    }

    /// All has been said and done.
    pub fn done(&mut self) {
        self.ended = true;
    }

    /// The method, or `OTHER` for what anybody may make up.
    #[must_use]
    pub fn method_label(&self) -> &'static str {
        match self.method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            Method::OPTIONS => "OPTIONS",
            Method::CONNECT => "CONNECT",
            Method::TRACE => "TRACE",
            _ => "OTHER",
        }
    }

    /// The id of the trace it belongs to, where its context is well formed.
    #[must_use]
    pub fn trace_id(&self) -> Option<&str> {
        let id = self.trace.as_ref()?.to_str().ok()?.split('-').nth(1)?;
        (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
    }

    /// The path without its query.
    #[must_use]
    pub fn path_only(&self) -> &str {
        self.path.path()
    }

    /// What was answered; 0: nothing.
    #[must_use]
    pub fn status_or_zero(&self) -> u16 {
        self.status.map_or(0, |status| status.as_u16())
    }

    /// Whether it has failed, as metrics count it.
    #[must_use]
    pub fn failed(&self) -> bool {
        metrics::failed(self.reason, self.status_or_zero(), self.grpc_status)
    }

    /// What is in force now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.worker.shared.snapshot.load_full()
    }
}

/// 128 random bits.
fn request_id(worker: &Worker) -> Option<HeaderValue> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let (high, low) = (worker.random(), worker.random());
    let mut text = [0; 32];
    for (index, digit) in text.iter_mut().enumerate() {
        let word = if index < 16 { high } else { low };
        *digit = DIGITS[(word >> (60 - index % 16 * 4) & 15) as usize];
    }
    let mut id = HeaderValue::from_maybe_shared(Bytes::from_owner(text)).ok()?;
    // Each is seen once: in the tables of HPACK it would only push out what is seen again.
    id.set_sensitive(true);
    Some(id)
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let worker = self.worker.clone();
        worker.room.leave();
        if !self.ended && self.reason == Reason::None {
            // Dropped without a word: whoever asked has gone with its connection, or the worker ends.
            let reason = self.connection.close.get().unwrap_or(Reason::ClientGone);
            let said_by = match reason {
                Reason::ClientGone => SaidBy::Client,
                _ => SaidBy::Proxy,
            };
            self.fail(
                said_by,
                reason,
                "its connection ended before the answer did",
            );
        }
        let duration = self.started.elapsed();
        worker.count_request(self, duration);
        if worker.shared.taps.is_active() {
            worker.shared.taps.show(self, duration);
        }
        self.write(duration);
    }
}

impl RequestRecord {
    /// What an operator looks for (what failed, and what the mesh answered) is `info`; the rest is `debug`.
    fn write(&self, duration: Duration) {
        macro_rules! record {
            ($level:ident) => {{
                let connection = &self.connection;
                tracing::$level!(
                    direction = connection.direction.as_str(),
                    method = self.method.as_str(),
                    authority = self.authority.as_ref().map(|authority| authority.as_str()),
                    path = self.path_only(),
                    route = &*self.route,
                    policy = self.policy.as_deref(),
                    status = self.status.map(|status| status.as_u16()),
                    grpc_status = self.grpc_status,
                    said_by = self.said_by.as_str(),
                    reason = self.reason.as_str(),
                    src.addr = %connection.source_address,
                    src.service = &**connection.source.borrow(),
                    src.identity = self.identity_at(Direction::Inbound).as_deref(),
                    dst.addr = self.endpoint.as_deref(),
                    dst.service = &*self.destination,
                    dst.identity = self.identity_at(Direction::Outbound).as_deref(),
                    duration_ms = milliseconds(duration),
                    connect_ms = self.connected.map(milliseconds),
                    first_byte_ms = self.first_byte.map(milliseconds),
                    bytes_sent = self.sent,
                    bytes_received = self.received,
                    attempts = self.attempts,
                    mirrored = self.mirrored,
                    request_id = self.request_id.as_ref().and_then(|id| id.to_str().ok()),
                    trace_id = self.trace_id(),
                    detail = self.detail.as_str(),
                    "request"
                )
            }};
        }
        if self.failed() {
            record!(info);
        } else {
            record!(debug);
        }
    }

    /// Who is at the side of the mesh hop that `direction` says.
    #[must_use]
    pub fn identity_at(&self, direction: Direction) -> Option<String> {
        if self.connection.direction != direction {
            return None;
        }
        match (&self.peer, direction) {
            (Some(peer), _) => Some(peer.id.to_string()),
            (None, _) => self
                .connection
                .peer
                .borrow()
                .as_ref()
                .map(|peer| peer.id.to_string()),
        }
    }
}

/// With fractions, since most requests take less than one.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}
