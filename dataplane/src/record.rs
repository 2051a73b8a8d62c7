//! One record a connection, written once whichever way it ends, drop included. Logs and metrics are made from it.
//!
//! | field | meaning |
//! | --- | --- |
//! | `direction` | `inbound`, `outbound` or `ingress` |
//! | `src.addr`, `src.identity`, `src.service` | who called |
//! | `dst.addr`, `dst.identity`, `dst.service` | who was called |
//! | `duration_ms`, `bytes_sent`, `bytes_received` | sent: from source to destination |
//! | `outcome`, `reason`, `closed_by` | how it ended, why, and by whom |
//! | `policy` | the rule that decided, where one did |
//! | `detail` | for the person on call |

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

use crate::{config::Timeouts, tls::verify::VerifiedPeer, workers::Worker};

/// Which way a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Direction {
    Inbound,
    Outbound,
    Ingress,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Both sides ended it cleanly.
    Completed,
    /// A rule did not let it begin.
    Refused,
    /// The world did not let it begin, or cut it.
    Failed,
    /// The proxy ended it.
    Closed,
}

/// Why a connection ended so. The set is closed: it is a label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Reason {
    None,
    // Refused.
    NotConfigured,
    NoCertificate,
    CertificateExpired,
    Plaintext,
    ServerName,
    NotMeshTls,
    PeerCertificate,
    PeerTrustDomain,
    PeerClock,
    PermissionDenied,
    ConnectionLimit,
    RequestLimit,
    // Failed.
    HandshakeTimeout,
    Handshake,
    NoService,
    NoBackend,
    NoEndpoints,
    ConnectRefused,
    ConnectTimeout,
    ConnectFailed,
    ServerIdentity,
    RefusedByPeer,
    Reset,
    Truncated,
    // Closed.
    IdleTimeout,
    HalfCloseTimeout,
    PeerVanished,
    PermissionWithdrawn,
    TrustWithdrawn,
    Drained,
    Stopped,
    // Of requests.
    BadRequest,
    NoRoute,
    BadAnswer,
    UpstreamReset,
    ClientGone,
    RequestTimeout,
    HeadersTimeout,
    StreamIdle,
    StreamTooLong,
    ConnectionTooOld,
}

/// Who ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ClosedBy {
    Source,
    Destination,
    Proxy,
}

macro_rules! label {
    ($type:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        impl $type {
            /// As text, for logs and labels.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The one that `text` is.
            #[must_use]
            pub fn of(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl EncodeLabelValue for $type {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                self.as_str().encode(encoder)
            }
        }
    };
}

label!(Direction { Inbound = "inbound", Outbound = "outbound", Ingress = "ingress" });
label!(Outcome { Completed = "completed", Refused = "refused", Failed = "failed", Closed = "closed" });
label!(ClosedBy { Source = "source", Destination = "destination", Proxy = "proxy" });
label!(Reason {
    None = "",
    NotConfigured = "not_configured",
    NoCertificate = "no_certificate",
    CertificateExpired = "certificate_expired",
    Plaintext = "plaintext",
    ServerName = "server_name",
    NotMeshTls = "not_mesh_tls",
    PeerCertificate = "peer_certificate",
    PeerTrustDomain = "peer_trust_domain",
    PeerClock = "peer_clock",
    PermissionDenied = "permission_denied",
    ConnectionLimit = "connection_limit",
    RequestLimit = "request_limit",
    HandshakeTimeout = "handshake_timeout",
    Handshake = "handshake",
    NoService = "no_service",
    NoBackend = "no_backend",
    NoEndpoints = "no_endpoints",
    ConnectRefused = "connect_refused",
    ConnectTimeout = "connect_timeout",
    ConnectFailed = "connect_failed",
    ServerIdentity = "server_identity",
    RefusedByPeer = "refused_by_peer",
    Reset = "reset",
    Truncated = "truncated",
    IdleTimeout = "idle_timeout",
    HalfCloseTimeout = "half_close_timeout",
    PeerVanished = "peer_vanished",
    PermissionWithdrawn = "permission_withdrawn",
    TrustWithdrawn = "trust_withdrawn",
    Drained = "drained",
    Stopped = "stopped",
    BadRequest = "bad_request",
    NoRoute = "no_route",
    BadAnswer = "bad_answer",
    UpstreamReset = "upstream_reset",
    ClientGone = "client_gone",
    RequestTimeout = "request_timeout",
    HeadersTimeout = "headers_timeout",
    StreamIdle = "stream_idle",
    StreamTooLong = "stream_too_long",
    ConnectionTooOld = "connection_too_old",
});

/// How a connection ended, for the record.
#[derive(Debug, Clone)]
pub struct End {
    /// How.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// Who.
    pub closed_by: ClosedBy,
    /// For the person on call.
    pub detail: String,
}

impl End {
    /// A rule did not let it begin.
    #[must_use]
    pub fn refused(reason: Reason, detail: impl fmt::Display) -> Self {
        Self {
            outcome: Outcome::Refused,
            reason,
            closed_by: ClosedBy::Proxy,
            detail: detail.to_string(),
        }
    }

    /// The world did not let it begin.
    #[must_use]
    pub fn failed(reason: Reason, closed_by: ClosedBy, detail: impl fmt::Display) -> Self {
        Self {
            outcome: Outcome::Failed,
            reason,
            closed_by,
            detail: detail.to_string(),
        }
    }

    /// The proxy ended it.
    #[must_use]
    pub fn closed(reason: Reason, detail: impl fmt::Display) -> Self {
        Self {
            outcome: Outcome::Closed,
            reason,
            closed_by: ClosedBy::Proxy,
            detail: detail.to_string(),
        }
    }
}

/// A time-out and the policy entry it comes from, in words: `5m0s of MeshTimeout/fast to[0]`.
pub struct Limit<'a>(pub Duration, pub &'a str);

impl fmt::Display for Limit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(duration, origin) = self;
        // As policies write it: Go style.
        let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
        let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if seconds >= 60 {
            write!(f, "{minutes}m")?;
        }
        match (seconds, millis) {
            (0, millis) => write!(f, "{millis}ms")?,
            (_, 0) => write!(f, "{rest}s")?,
            (_, millis) => {
                let fraction = format!("{millis:03}");
                write!(f, "{rest}.{}s", fraction.trim_end_matches('0'))?;
            }
        }
        match *origin {
            "" => f.write_str(" (built in)"),
            origin => write!(f, " of {origin}"),
        }
    }
}

/// A peer that has been sent so much, without an answer, that it may be reading slowly, or be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The worker's clock (milliseconds) when it last took something.
    pub since_ms: u64,
    /// The socket.
    pub inode: u64,
    /// It takes no more.
    pub full: bool,
}

/// An open connection, in its worker's table. All of it is the worker thread's own.
#[derive(Debug)]
pub struct Connection {
    /// Which way.
    pub direction: Direction,
    /// Who called.
    pub source_address: SocketAddr,
    /// The verified identity at the other end of the mesh hop, once known.
    pub peer: RefCell<Option<VerifiedPeer>>,
    /// The inbound it came by. Its permissions are looked at again when they change.
    pub inbound: Option<Arc<str>>,
    /// Service or workload that called.
    pub source: RefCell<Arc<str>>,
    /// Service that is called.
    pub destination: RefCell<Arc<str>>,
    /// Mesh, for metrics.
    pub mesh: RefCell<Arc<str>>,
    /// Where it went.
    pub destination_address: RefCell<Option<Arc<str>>>,
    /// The rule that decided.
    pub policy: RefCell<Option<Arc<str>>>,
    /// Since when.
    pub started: Instant,
    /// From source to destination.
    pub sent: Cell<u64>,
    /// From destination to source.
    pub received: Cell<u64>,
    /// Bytes that metrics already know of.
    pub counted: Cell<(u64, u64)>,
    /// The worker's clock (milliseconds) when the last byte passed.
    pub active_at: Cell<u64>,
    /// Without a byte for so long it is closed.
    pub idle: Cell<Option<Duration>>,
    /// The policy entry that says so. Empty: none.
    pub idle_origin: RefCell<Arc<str>>,
    /// One side has ended what it sends.
    pub half_closed: Cell<bool>,
    /// A peer that has been sent much and has answered nothing since.
    pub waiting: Cell<Option<Waiting>>,
    /// Asked to end.
    pub close: Cell<Option<Reason>>,
    /// Takes no further requests, and ends with those it has.
    pub draining: Cell<bool>,
    /// Its requests are judged one by one.
    pub is_http: Cell<bool>,
    /// The task that relays it.
    pub waker: RefCell<Option<Waker>>,
}

impl Connection {
    /// A connection of which nothing is known yet but where it comes from and which way it goes.
    #[must_use]
    pub fn new(direction: Direction, source_address: SocketAddr) -> Self {
        let unknown = || RefCell::new("".into());
        Self {
            direction,
            source_address,
            peer: RefCell::default(),
            inbound: None,
            source: unknown(),
            destination: unknown(),
            mesh: unknown(),
            destination_address: RefCell::default(),
            policy: RefCell::default(),
            started: Instant::now(),
            sent: Cell::default(),
            received: Cell::default(),
            counted: Cell::default(),
            active_at: Cell::default(),
            idle: Cell::default(),
            idle_origin: unknown(),
            half_closed: Cell::default(),
            waiting: Cell::default(),
            close: Cell::default(),
            draining: Cell::default(),
            is_http: Cell::default(),
            waker: RefCell::default(),
        }
    }

    /// Says for how long it may be silent.
    pub fn limit_idle(&self, timeouts: &Timeouts) {
        self.idle.set(timeouts.idle);
        self.idle_origin.replace(timeouts.idle_origin.clone());
    }

    /// Asks its task to end.
    pub fn close(&self, reason: Reason) {
        if self.close.get().is_none() {
            self.close.set(Some(reason));
            self.wake();
        }
    }

    /// Asks its task to take no further requests.
    pub fn drain(&self) {
        if !self.draining.replace(true) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Lets the worker wake its task.
    pub fn remember_waker(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if waker
            .as_ref()
            .is_none_or(|waker| !waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }

    /// How it ends where the proxy ends it for `reason`.
    #[must_use]
    pub fn closed(&self, reason: Reason) -> End {
        End::closed(reason, self.why(reason))
    }

    /// What a reason does not say by itself.
    #[must_use]
    pub fn why(&self, reason: Reason) -> String {
        match reason {
            Reason::IdleTimeout => {
                let limit = self.idle.get().unwrap_or_default();
                let origin = self.idle_origin.borrow();
                format!("idle timeout {}", Limit(limit, &origin))
            }
            _ => String::new(),
        }
    }

    /// Goes on with `future` until it is done, or the connection is asked to end.
    ///
    /// # Errors
    /// Why it is to end.
    pub async fn unless_closed<T>(
        &self,
        mut future: impl Future<Output = T> + Unpin,
    ) -> Result<T, Reason> {
        poll_fn(|cx| {
            if let Some(reason) = self.close.get() {
                return Poll::Ready(Err(reason));
            }
            self.remember_waker(cx);
            Pin::new(&mut future).poll(cx).map(Ok)
        })
        .await
    }
}

/// Holds a connection's place in its worker's table, and writes its record when dropped.
pub struct Record {
    worker: Rc<Worker>,
    key: usize,
    /// The connection.
    pub connection: Rc<Connection>,
    end: Option<End>,
}

impl Record {
    /// Takes a place in the table.
    #[must_use]
    pub fn begin(worker: &Rc<Worker>, connection: Connection) -> Self {
        let connection = Rc::new(connection);
        Self {
            key: worker.table.borrow_mut().insert(connection.clone()),
            worker: worker.clone(),
            connection,
            end: None,
        }
    }

    /// Says how it ended. The record itself is written at drop.
    pub fn end(mut self, end: End) {
        self.end = Some(end);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let connection = self.worker.table.borrow_mut().remove(self.key);
        // Dropped without a word: the worker ended with the connection open.
        let end = self
            .end
            .take()
            .unwrap_or_else(|| End::closed(Reason::Stopped, ""));
        self.worker.count(&connection, Some(&end));
        write(&connection, &end);
    }
}

/// What an operator looks for (refusals, failures, what the proxy ended) is `info`; the rest is `debug`.
fn write(connection: &Connection, end: &End) {
    macro_rules! record {
        ($level:ident) => {
            tracing::$level!(
                direction = connection.direction.as_str(),
                src.addr = %connection.source_address,
                src.service = &**connection.source.borrow(),
                src.identity = connection.peer_at(Direction::Inbound).as_deref(),
                dst.addr = connection.destination_address.borrow().as_deref(),
                dst.service = &**connection.destination.borrow(),
                dst.identity = connection.peer_at(Direction::Outbound).as_deref(),
                duration_ms = u64::try_from(connection.started.elapsed().as_millis()).unwrap_or(u64::MAX),
                bytes_sent = connection.sent.get(),
                bytes_received = connection.received.get(),
                outcome = end.outcome.as_str(),
                reason = end.reason.as_str(),
                closed_by = end.closed_by.as_str(),
                policy = connection.policy.borrow().as_deref(),
                detail = end.detail.as_str(),
                "connection"
            )
        };
    }
    match end.outcome {
        Outcome::Completed => record!(debug),
        Outcome::Refused | Outcome::Failed | Outcome::Closed => record!(info),
    }
}

impl Connection {
    /// The peer's identity, where the mesh hop is on the side that `direction` says.
    fn peer_at(&self, direction: Direction) -> Option<String> {
        let peer = self.peer.borrow();
        let peer = peer.as_ref()?;
        (self.direction == direction).then(|| peer.id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_reads_as_policies_write_it() {
        for (ms, text) in [
            (300_000, "5m0s"),
            (3_600_000, "1h0m0s"),
            (90_500, "1m30.5s"),
            (5000, "5s"),
            (1050, "1.05s"),
            (250, "250ms"),
        ] {
            let limit = Limit(Duration::from_millis(ms), "MeshTimeout/fast to[0]");
            assert_eq!(
                limit.to_string(),
                format!("{text} of MeshTimeout/fast to[0]")
            );
        }
        let built_in = Limit(Duration::from_secs(5), "");
        assert_eq!(built_in.to_string(), "5s (built in)");
    }
}
