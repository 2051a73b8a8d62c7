//! Connections to the next hop that requests share: one after the other over HTTP/1, at once over HTTP/2.
//!
//! Each worker has its own. A connection is used for a request only while what it was made with still holds: the proxy's
//! certificate is the newest, the trust anchors still vouch for the peer, and the peer still is one of the service. What no longer
//! holds takes no further requests and ends with the ones it has.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use mesh_proto::names::ZoneName;
use tokio::sync::Notify;

use super::{
    flood::Manners,
    h1::{H1, SharedH1},
    h2io::{H2Io, poll_uncork},
    room::{ROOM_MAX, Window},
};
use crate::{
    config::{Endpoint, Host, Timeouts},
    snapshot::{ServiceRoute, Snapshot},
    socket::Socket,
    tls::{identity::Identity, verify::VerifiedPeer},
    workers::Worker,
};

/// Requests under way at once on one connection; more get another one.
const STREAMS_MAX: u32 = 256;
/// Receive window of a connection, in bytes: streams that wait for slow readers must not stop the others.
pub const CONNECTION_WINDOW: u32 = STREAMS_MAX * ROOM_MAX;
/// What one stream may have waiting to be sent.
pub const SEND_BUFFER: usize = 64 * 1024;

/// Where connections go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HopKey {
    /// To the application of an inbound.
    Application(SocketAddr),
    /// To an endpoint of a service, by mesh TLS.
    Endpoint {
        /// The service document.
        document: Arc<str>,
        /// The zone of the endpoint, whose server name is asked for.
        zone: ZoneName,
        /// Where.
        host: Host,
        /// At which port.
        port: u16,
    },
}

impl HopKey {
    /// The hop to an endpoint.
    #[must_use]
    pub fn endpoint(route: &ServiceRoute, endpoint: &Endpoint) -> Self {
        Self::Endpoint {
            document: route.document.clone(),
            zone: endpoint.zone.clone(),
            host: endpoint.host.clone(),
            port: endpoint.port,
        }
    }
}

/// What a connection was made with.
#[derive(Clone)]
pub struct Made {
    /// Who is at the other end, where mesh TLS says so.
    pub peer: Option<Rc<VerifiedPeer>>,
    /// The certificate that was shown.
    pub identity: Option<Arc<Identity>>,
    /// When it takes no further requests, as a policy says.
    pub ends_at: Option<Instant>,
    /// The last snapshot by which it was good.
    pub good_by: Cell<u64>,
}

impl Made {
    /// With what is in force in `snapshot`, for a connection to `peer`.
    #[must_use]
    pub fn new(snapshot: &Snapshot, peer: Option<&VerifiedPeer>, timeouts: &Timeouts) -> Self {
        let limit = timeouts.http.max_connection.limit;
        Self {
            identity: peer.and(snapshot.identity.clone()),
            peer: peer.cloned().map(Rc::new),
            ends_at: limit.map(|limit| Instant::now() + limit),
            good_by: Cell::new(snapshot.generation),
        }
    }

    /// True while it may be used for a request to `document`, by the snapshot in force now.
    #[must_use]
    pub fn holds(&self, snapshot: &Snapshot, key: &HopKey) -> bool {
        if self
            .ends_at
            .is_some_and(|ends_at| Instant::now() >= ends_at)
        {
            return false;
        }
        if self.good_by.get() == snapshot.generation {
            return true;
        }
        let is_good = self.is_good(snapshot, key);
        if is_good {
            self.good_by.set(snapshot.generation);
        }
        is_good
    }

    fn is_good(&self, snapshot: &Snapshot, key: &HopKey) -> bool {
        let (Some(peer), HopKey::Endpoint { document, zone, .. }) = (&self.peer, key) else {
            return true;
        };
        let same_certificate = match (&self.identity, &snapshot.identity) {
            (Some(own), Some(newest)) => Arc::ptr_eq(own, newest),
            _ => false,
        };
        same_certificate
            && crate::inbound::still_trusted(snapshot, peer)
            && snapshot
                .services
                .get(&**document)
                .and_then(|route| route.service.zones.get(zone))
                .is_some_and(|zone| zone.identities.contains(&peer.id))
    }
}

/// All connections of one worker.
#[derive(Default)]
pub struct Pool {
    hops: RefCell<HashMap<HopKey, Hop, foldhash::fast::RandomState>>,
}

/// Connections to one place.
#[derive(Default)]
struct Hop {
    idle: Vec<Idle>,
    /// One, and more where there are many requests.
    shared: Vec<Rc<H2Hop>>,
    /// Somebody is making a shared one.
    connecting: Option<Rc<Notify>>,
}

struct Idle {
    connection: SharedH1,
    made: Made,
    since_ms: u64,
    until_ms: u64,
}

/// A connection of HTTP/1 for one request.
pub struct H1Lease {
    /// The connection.
    pub connection: SharedH1,
    /// What it was made with.
    pub made: Made,
    /// It has carried requests before, so that its peer may be closing it at this moment.
    pub reused: bool,
}

/// A connection of HTTP/2.
pub struct H2Hop {
    sender: SendRequest<Bytes>,
    /// What it was made with.
    pub made: Made,
    closed: Rc<Cell<bool>>,
    /// Takes no further requests.
    retired: Cell<bool>,
    streams: Cell<usize>,
    used_at_ms: Cell<u64>,
}

/// A place on a connection of HTTP/2, for one request.
pub struct H2Lease {
    /// The connection.
    pub hop: Rc<H2Hop>,
    worker: Rc<Worker>,
}

impl H2Lease {
    /// Another place on the same connection, which counts by itself.
    #[must_use]
    pub fn again(lease: &Self) -> Self {
        lease.hop.streams.set(lease.hop.streams.get() + 1);
        Self {
            hop: lease.hop.clone(),
            worker: lease.worker.clone(),
        }
    }

    /// A handle to send one request with.
    #[must_use]
    pub fn sender(&self) -> SendRequest<Bytes> {
        self.hop.sender.clone()
    }
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        self.hop.streams.set(self.hop.streams.get() - 1);
        self.hop.used_at_ms.set(self.worker.now_ms());
    }
}

/// What there is for a request over HTTP/2.
pub enum Shared {
    /// A place on a connection.
    Lease(H2Lease),
    /// Somebody is making one.
    Wait(Rc<Notify>),
    /// Whoever asked makes it, and says so with [`Making`].
    Make(Making),
}

/// The right to make the shared connection to one place; others wait until it is dropped.
pub struct Making {
    worker: Rc<Worker>,
    key: HopKey,
    notify: Rc<Notify>,
}

impl Drop for Making {
    fn drop(&mut self) {
        if let Some(hop) = self.worker.pool.hops.borrow_mut().get_mut(&self.key) {
            hop.connecting = None;
        }
        self.notify.notify_waiters();
    }
}

impl Pool {
    /// A connection of HTTP/1 that waits for a request to `key`, for no longer than `oldest_ms`.
    #[must_use]
    pub fn take_idle(
        &self,
        key: &HopKey,
        snapshot: &Snapshot,
        now_ms: u64,
        oldest_ms: u64,
    ) -> Option<H1Lease> {
        let mut hops = self.hops.borrow_mut();
        let hop = hops.get_mut(key)?;
        let mut cx = Context::from_waker(Waker::noop());
        // The last one first: the others grow old and go.
        while let Some(idle) = hop.idle.pop() {
            if now_ms.saturating_sub(idle.since_ms) > oldest_ms {
                // The others are older still.
                hop.idle.push(idle);
                return None;
            }
            let fresh = now_ms < idle.until_ms
                && idle.made.holds(snapshot, key)
                && idle.connection.borrow_mut().is_silent(&mut cx);
            if fresh {
                return Some(H1Lease {
                    connection: idle.connection,
                    made: idle.made,
                    reused: true,
                });
            }
        }
        None
    }

    /// Keeps a connection for a later request. `idle_seconds`: what its server says of how long it waits.
    pub fn give_back(
        &self,
        worker: &Worker,
        key: HopKey,
        lease: H1Lease,
        idle_seconds: Option<u64>,
    ) {
        let limits = &worker.shared.limits.http;
        // A second below what the server announced: it must not close while the next request is on its way.
        let announced = idle_seconds.map(|seconds| Duration::from_secs(seconds.saturating_sub(1)));
        let keep = announced.map_or(limits.idle_timeout, |a| a.min(limits.idle_timeout));
        let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        lease.connection.borrow_mut().rest();
        let mut hops = self.hops.borrow_mut();
        let hop = hops.entry(key).or_default();
        if hop.idle.len() >= limits.idle_connections || keep.is_zero() {
            return;
        }
        let now = worker.now_ms();
        hop.idle.push(Idle {
            connection: lease.connection,
            made: lease.made,
            since_ms: now,
            until_ms: now.saturating_add(keep_ms),
        });
    }

    /// A place on a shared connection to `key`, where there is one.
    #[must_use]
    pub fn shared(worker: &Rc<Worker>, key: &HopKey, snapshot: &Snapshot) -> Option<H2Lease> {
        let mut hops = worker.pool.hops.borrow_mut();
        let hop = hops.get_mut(key)?;
        hop.shared.retain(|shared| {
            !shared.closed.get() && !shared.retired.get() && shared.made.holds(snapshot, key)
        });
        let has_room = |shared: &&Rc<H2Hop>| shared.streams.get() < shared.streams_max();
        let shared = hop.shared.iter().find(has_room)?;
        shared.streams.set(shared.streams.get() + 1);
        Some(H2Lease {
            hop: shared.clone(),
            worker: worker.clone(),
        })
    }

    /// A place on the shared connection to `key`, or how to come by one.
    #[must_use]
    pub fn share(worker: &Rc<Worker>, key: &HopKey, snapshot: &Snapshot) -> Shared {
        if let Some(lease) = Self::shared(worker, key, snapshot) {
            return Shared::Lease(lease);
        }
        let mut hops = worker.pool.hops.borrow_mut();
        let hop = hops.entry(key.clone()).or_default();
        if let Some(connecting) = &hop.connecting {
            return Shared::Wait(connecting.clone());
        }
        let notify = Rc::new(Notify::new());
        hop.connecting = Some(notify.clone());
        Shared::Make(Making {
            worker: worker.clone(),
            key: key.clone(),
            notify,
        })
    }

    /// Lets go of what has been idle for too long, or has been closed by its peer. Called by the worker's sweep.
    pub fn sweep(&self, worker: &Worker) {
        let now = worker.now_ms();
        let idle_ms =
            u64::try_from(worker.shared.limits.http.idle_timeout.as_millis()).unwrap_or(u64::MAX);
        let mut cx = Context::from_waker(Waker::noop());
        self.hops.borrow_mut().retain(|_, hop| {
            hop.idle.retain(|idle| {
                now < idle.until_ms && idle.connection.borrow_mut().is_silent(&mut cx)
            });
            hop.shared.retain(|shared| {
                let unused = shared.streams.get() == 0
                    && now.saturating_sub(shared.used_at_ms.get()) > idle_ms;
                !shared.closed.get() && !unused
            });
            !hop.idle.is_empty() || !hop.shared.is_empty() || hop.connecting.is_some()
        });
    }

    /// True where nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hops.borrow().is_empty()
    }
}

impl Making {
    /// Begins HTTP/2 on a socket, keeps it for others, and gives the first place on it.
    ///
    /// # Errors
    /// Where the connection broke.
    pub async fn begin(self, socket: Socket, made: Made) -> Result<H2Lease, h2::Error> {
        let worker = self.worker.clone();
        let socket = Rc::new(RefCell::new(socket));
        let manners = Manners::new(&worker, 0);
        let io = H2Io::new(
            socket.clone(),
            BytesMut::new(),
            worker.clone(),
            None,
            manners,
        );
        let limits = &worker.shared.limits.http;
        let mut window = Window::new(&worker.room);
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(window.bytes())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .max_concurrent_reset_streams(1024)
            .enable_push(false)
            .handshake::<_, Bytes>(io)
            .await?;
        let closed = Rc::new(Cell::new(false));
        let ended = closed.clone();
        let driver = worker.clone();
        tokio::task::spawn_local(async move {
            let end = poll_fn(|cx| {
                window.follow(&driver.room, |each| {
                    connection.set_initial_window_size(each).is_ok()
                });
                let polled = std::pin::Pin::new(&mut connection).poll(cx);
                // Whatever the connection has to say leaves now, in one write.
                match (polled, poll_uncork(&socket, &driver, cx)) {
                    (Poll::Ready(end), _) => Poll::Ready(end.map_err(|error| error.to_string())),
                    (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error.to_string())),
                    (Poll::Pending, _) => Poll::Pending,
                }
            })
            .await;
            ended.set(true);
            if let Err(error) = end {
                tracing::debug!(error, "a shared connection has ended");
            }
        });
        let hop = Rc::new(H2Hop {
            sender,
            made,
            closed,
            retired: Cell::new(false),
            streams: Cell::new(1),
            used_at_ms: Cell::new(worker.now_ms()),
        });
        if let Some(entry) = worker.pool.hops.borrow_mut().get_mut(&self.key) {
            entry.shared.push(hop.clone());
        }
        Ok(H2Lease { hop, worker })
    }
}

impl H2Hop {
    /// Requests it takes at once: no more than its peer, with whom others would wait.
    fn streams_max(&self) -> usize {
        let of_peer = self.sender.current_max_send_streams();
        of_peer.clamp(1, STREAMS_MAX as usize)
    }

    /// It takes no further requests: the peer says so, or it does not answer as it should.
    pub fn retire(&self) {
        self.retired.set(true);
    }
}

/// Makes a connection of HTTP/1 of a socket.
#[must_use]
pub fn begin_h1(worker: &Rc<Worker>, socket: Socket, made: Made) -> H1Lease {
    H1Lease {
        connection: H1::new(socket, BytesMut::new(), worker.clone(), None).shared(),
        made,
        reused: false,
    }
}
