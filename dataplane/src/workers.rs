//! Workers: one OS thread each, with one single-threaded runtime, own listeners, own counters, own scratch buffers.
//!
//! A worker reads the snapshot once per connection and shares nothing else with the others on the way of a connection
//! but a few atomics. What is stated as a total (open connections) holds for the process.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use slab::Slab;
use tokio::{
    runtime::LocalOptions,
    sync::{Notify, Semaphore, mpsc, oneshot},
};

use crate::{
    detect,
    http::{
        limits::HttpLimits,
        metrics::{RequestCounters, RequestLabels},
        pool::Pool,
        record::{RequestRecord, SaidBy},
        room::Room,
        tap::{Refused, Taps},
    },
    inbound, listener,
    metrics::{Counters, DetectionLabels, Labels, WorkerSeries},
    net,
    permission::Decision,
    process::unix_now,
    record::{Connection, Direction, End, Outcome, Reason, Waiting},
    snapshot::Snapshot,
    socket::{Scratch, Watched},
};

/// Between two looks at a worker's open connections (idle time-outs; time stamps are as coarse).
const SWEEP: Duration = Duration::from_millis(500);
/// How long ago a peer that may be reading slowly took the last bytes, when it is looked at whether it is there at all:
/// about as late as the kernel gives up others, and long enough for several repetitions.
const WATCHED_SECONDS: std::ops::Range<u64> = 7..14;
/// How long a half-closed connection may be silent.
pub const HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(60);

/// What is bounded.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections of the process.
    pub connections: usize,
    /// Handshakes under way at once in one worker; further connections wait.
    pub handshakes: usize,
    /// How long a handshake (and waiting for it) may take.
    pub handshake_timeout: Duration,
    /// How long a half-closed connection may be silent.
    pub half_close_timeout: Duration,
    /// How long what a client says is held back while it may become a request of HTTP, where nothing is declared.
    pub detection_wait: Duration,
    /// Of HTTP.
    pub http: HttpLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            handshakes: 256,
            handshake_timeout: Duration::from_secs(10),
            half_close_timeout: HALF_CLOSE_TIMEOUT,
            detection_wait: detect::WAIT,
            http: HttpLimits::default(),
        }
    }
}

/// What all workers and the control thread share.
pub struct Shared {
    /// Replaced as a whole by the control thread.
    pub snapshot: ArcSwap<Snapshot>,
    /// Open connections of the process.
    pub open: Arc<AtomicUsize>,
    /// What is bounded.
    pub limits: Limits,
    /// Endpoint sets of which no endpoint could be reached: the control thread asks for them anew. Where it is full,
    /// a look-up is under way already and the request is dropped.
    pub lookups: mpsc::Sender<String>,
    /// Who looks at requests as they end.
    pub taps: Arc<Taps>,
}

/// What the control thread tells a worker.
pub enum Command {
    /// Accept connections for the targets at these addresses of the snapshot; the listeners are bound.
    Listen(Vec<(SocketAddr, std::net::TcpListener)>),
    /// Accept no more there.
    Unlisten(Vec<SocketAddr>),
    /// Let connections take no further requests, and end with those they have: those from outside, or all.
    Drain(Draining),
    /// End all connections.
    CloseAll(Reason),
    /// Describe open connections, at most so many.
    List(usize, oneshot::Sender<Vec<ConnectionView>>),
}

/// Which connections take no further requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draining {
    /// Those from outside: the application's own calls go on while it ends (FIELD c3).
    Inbound,
    /// All: a successor has taken over.
    All,
}

/// An open connection, for the admin socket.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ConnectionView {
    pub direction: &'static str,
    pub source_address: String,
    pub source: String,
    pub destination: String,
    pub destination_address: Option<String>,
    pub peer_identity: Option<String>,
    pub inbound: Option<String>,
    pub seconds: u64,
    pub idle_seconds: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub half_closed: bool,
}

/// Commands that may wait for a worker: a few for each change of listeners, and questions of an operator. Where it is
/// full, the worker is stuck for good, which is said; the command is dropped.
const COMMANDS: usize = 256;

/// The control thread's way to one worker.
pub struct WorkerHandle {
    commands: mpsc::Sender<Command>,
    recheck: Arc<Notify>,
    /// For the scrape.
    pub series: WorkerSeries,
    thread: Option<thread::JoinHandle<()>>,
}

impl WorkerHandle {
    /// Tells the worker. A worker that has ended takes no more commands, which matters only during the end of the
    /// process.
    pub fn tell(&self, command: Command) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.commands.try_send(command) {
            tracing::error!("a worker takes no commands any more: restart the proxy");
        }
    }

    /// Permissions or trust may have changed: the worker looks at all its open connections.
    pub fn recheck(&self) {
        self.recheck.notify_one();
    }

    /// Ends the worker with all its connections, and waits for it.
    pub fn stop(mut self) {
        drop(self.commands);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts worker `index`.
///
/// # Errors
/// Where the system gives no thread, or no runtime for it.
pub fn spawn(index: usize, shared: Arc<Shared>) -> std::io::Result<WorkerHandle> {
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let recheck = Arc::new(Notify::new());
    let rechecked = recheck.clone();
    let counters = Counters::default();
    let series = counters.shared();
    let (started, starting) = std::sync::mpsc::sync_channel(1);
    let thread = thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            let built = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build_local(LocalOptions::default());
            let runtime = match built {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(error)),
            };
            drop(started);
            let worker = Worker::new(shared, counters);
            runtime.block_on(run(worker, receiver, rechecked));
            // Tasks are dropped here, and each writes its record.
            drop(runtime);
        })?;
    if let Ok(error) = starting.recv() {
        return Err(error);
    }
    Ok(WorkerHandle {
        commands,
        recheck,
        series,
        thread: Some(thread),
    })
}

/// What belongs to one worker thread.
pub struct Worker {
    /// With the others.
    pub shared: Arc<Shared>,
    /// Buffers, used within one poll.
    pub scratch: RefCell<Scratch>,
    /// Open connections.
    pub table: RefCell<Slab<Rc<Connection>>>,
    /// Handshakes under way.
    pub handshakes: Rc<Semaphore>,
    /// Connections to the next hop that requests share.
    pub pool: Pool,
    /// How much of bodies may wait.
    pub room: Room,
    /// Sockets whose peers may be reading slowly, or be gone.
    watched: RefCell<Vec<Weak<Watched>>>,
    /// What comes from outside takes no further requests.
    pub draining: Cell<bool>,
    counters: RefCell<Counters>,
    requests: RefCell<RequestCounters>,
    turns: RefCell<HashMap<Arc<str>, u64>>,
    /// Services of which the last connection spoke HTTP, where nothing is declared.
    spoke_http: RefCell<HashSet<Arc<str>>>,
    random: Cell<u64>,
    started: Instant,
    now_ms: Cell<u64>,
    not_empty: Notify,
}

impl Worker {
    /// A worker that has nothing to do yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, counters: Counters) -> Rc<Self> {
        Rc::new(Self {
            handshakes: Rc::new(Semaphore::new(shared.limits.handshakes)),
            shared,
            scratch: RefCell::default(),
            table: RefCell::default(),
            requests: RefCell::new(counters.requests()),
            counters: RefCell::new(counters),
            turns: RefCell::default(),
            spoke_http: RefCell::default(),
            pool: Pool::default(),
            room: Room::default(),
            watched: RefCell::default(),
            draining: Cell::default(),
            random: Cell::new(mesh_runtime::backoff::random() | 1),
            started: Instant::now(),
            now_ms: Cell::new(0),
            not_empty: Notify::new(),
        })
    }

    /// The worker's clock in milliseconds, as coarse as the sweep.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    fn tick(&self) {
        let ms = self.started.elapsed().as_millis();
        self.now_ms.set(u64::try_from(ms).unwrap_or(u64::MAX));
    }

    /// Takes a place among the open connections of the process. `false`: the limit is reached.
    #[must_use]
    pub fn admit(&self) -> bool {
        let before = self.shared.open.fetch_add(1, Ordering::Relaxed);
        if before == 0 || self.table.borrow().is_empty() {
            // The sweep rests while there is nothing to look at, and so does the clock.
            self.tick();
            self.not_empty.notify_one();
        }
        before < self.shared.limits.connections
    }

    /// Evenly distributed enough to balance by (xorshift64*).
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number that counts up with each call for `document`, for taking turns.
    pub fn turn(&self, document: &Arc<str>) -> u64 {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry(document.clone()).or_default();
        *turn = turn.wrapping_add(1);
        *turn
    }

    /// True where the last connection to the service in `document` turned out to speak HTTP.
    pub fn expects_http(&self, document: &str) -> bool {
        self.spoke_http.borrow().contains(document)
    }

    /// Remembers what a connection to the service in `document` turned out to speak.
    pub fn remember_spoken(&self, document: &Arc<str>, is_http: bool) {
        let mut spoke_http = self.spoke_http.borrow_mut();
        if !is_http {
            spoke_http.remove(document);
        } else if !spoke_http.contains(document) {
            spoke_http.insert(document.clone());
        }
    }

    /// Counts a connection to `port` of which it could not be told in time what it speaks, and says so now and then.
    pub fn count_detection_timeout(&self, connection: &Connection, port: &str) {
        let labels = DetectionLabels {
            mesh: connection.mesh.borrow().clone(),
            destination: connection.destination.borrow().clone(),
            direction: connection.direction,
            port: port.into(),
        };
        let destination = labels.destination.clone();
        if self
            .counters
            .borrow()
            .count_detection_timeout(labels, self.now_ms(), unix_now())
        {
            tracing::warn!(
                direction = connection.direction.as_str(),
                dst.service = &*destination,
                port,
                wait_ms = u64::try_from(self.shared.limits.detection_wait.as_millis())
                    .unwrap_or(u64::MAX),
                "what a client says looks like half of an HTTP request, which delays it: declare what the port speaks (appProtocol)"
            );
        }
    }

    /// Adds to the counters what has happened since the last time; with `end`, counts the connection itself.
    pub fn count(&self, connection: &Connection, end: Option<&End>) {
        let (sent, received) = (connection.sent.get(), connection.received.get());
        let counted = connection.counted.replace((sent, received));
        if end.is_none() && counted == (sent, received) {
            return;
        }
        let labels = Labels {
            mesh: connection.mesh.borrow().clone(),
            source: connection.source.borrow().clone(),
            destination: connection.destination.borrow().clone(),
            direction: connection.direction,
            outcome: end.map_or(Outcome::Completed, |end| end.outcome),
            reason: end.map_or(Reason::None, |end| end.reason),
        };
        let mut counters = self.counters.borrow_mut();
        let series = counters.series(labels);
        // Only this thread writes; the scrape reads.
        series
            .sent_bytes
            .fetch_add(sent - counted.0, Ordering::Relaxed);
        series
            .received_bytes
            .fetch_add(received - counted.1, Ordering::Relaxed);
        if end.is_some() {
            series.connections.fetch_add(1, Ordering::Relaxed);
            self.shared.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Looks from now on whether the peer of a socket still is there.
    pub fn watch(&self, socket: &Rc<Watched>) {
        self.watched.borrow_mut().push(Rc::downgrade(socket));
    }

    /// Counts a request that has ended.
    pub fn count_request(&self, record: &RequestRecord, duration: Duration) {
        let connection = &record.connection;
        let labels = RequestLabels {
            mesh: connection.mesh.borrow().clone(),
            source: connection.source.borrow().clone(),
            destination: record.destination.clone(),
            direction: connection.direction,
            method: record.method_label(),
            status: record.status_or_zero(),
            grpc_status: record.grpc_status,
            said_by: record.said_by,
            reason: record.reason,
            route: record.route.clone(),
        };
        self.requests
            .borrow_mut()
            .count(labels, duration, record.trace_id());
    }

    /// Counts what was refused before it was a request, and shows it to whoever looks.
    pub fn count_refused_request(
        &self,
        connection: &Connection,
        status: http::StatusCode,
        reason: Reason,
        detail: &str,
    ) {
        let labels = RequestLabels {
            mesh: connection.mesh.borrow().clone(),
            source: connection.source.borrow().clone(),
            destination: connection.destination.borrow().clone(),
            direction: connection.direction,
            method: "",
            status: status.as_u16(),
            grpc_status: None,
            said_by: SaidBy::of_refusal(reason),
            reason,
            route: Arc::default(),
        };
        self.requests
            .borrow_mut()
            .count(labels, Duration::ZERO, None);
        if self.shared.taps.is_active() {
            self.shared.taps.show_refused(Refused {
                connection,
                snapshot: &self.shared.snapshot.load(),
                status,
                reason,
                detail,
            });
        }
    }

    /// Counts a connection that is allowed only because its deny is a shadow deny.
    pub fn count_shadow_denied(&self, connection: &Connection) {
        let labels = Labels {
            mesh: connection.mesh.borrow().clone(),
            source: connection.source.borrow().clone(),
            destination: connection.destination.borrow().clone(),
            direction: connection.direction,
            outcome: Outcome::Completed,
            reason: Reason::None,
        };
        let mut counters = self.counters.borrow_mut();
        let series = counters.series(labels);
        series.shadow_denied.fetch_add(1, Ordering::Relaxed);
    }

    fn open(&self) -> Vec<Rc<Connection>> {
        let table = self.table.borrow();
        table
            .iter()
            .map(|(_, connection)| connection.clone())
            .collect()
    }

    /// Ends what is idle, and lets metrics know of bytes that have passed.
    fn sweep(&self) {
        let now = self.now_ms();
        for connection in self.open() {
            self.count(&connection, None);
            let mut limit = connection.idle.get();
            let mut reason = Reason::IdleTimeout;
            if connection.half_closed.get() {
                let half = self.shared.limits.half_close_timeout;
                if limit.is_none_or(|limit| half < limit) {
                    limit = Some(half);
                    reason = Reason::HalfCloseTimeout;
                }
            }
            let silent = Duration::from_millis(now.saturating_sub(connection.active_at.get()));
            if limit.is_some_and(|limit| silent >= limit) {
                connection.close(reason);
            }
        }
        self.give_up_the_vanished(now);
    }

    /// Ends connections to peers that have gone without a word while much was being sent to them.
    fn give_up_the_vanished(&self, now: u64) {
        let table = self.table.borrow();
        let due = |waiting: Waiting| {
            let seconds = now.saturating_sub(waiting.since_ms) / 1000;
            // A peer may go while its window is shut, too, but reading the kernel's table is not for nothing.
            WATCHED_SECONDS.contains(&seconds)
                || waiting.full && seconds.is_multiple_of(32) && seconds > 0
        };
        let watched = || {
            let connections = table.iter().map(|(_, connection)| connection);
            connections.filter_map(|c| c.waiting.get().filter(|w| due(*w)).map(|w| (c, w.inode)))
        };
        // Those that are heard again are watched again when there is a reason.
        self.watched.borrow_mut().retain(|socket| {
            socket
                .upgrade()
                .is_some_and(|socket| socket.waiting.get().is_some())
        });
        let open = self.watched.borrow();
        let sockets = || {
            let sockets = open.iter().filter_map(Weak::upgrade);
            sockets.filter_map(|s| s.waiting.get().filter(|w| due(*w)).map(|w| (s, w.inode)))
        };
        if watched().next().is_none() && sockets().next().is_none() {
            return;
        }
        match net::unanswered() {
            Ok(unanswered) => {
                for (socket, inode) in sockets() {
                    if unanswered.contains(&inode) {
                        socket.give_up();
                    }
                }
                for (connection, inode) in watched() {
                    if unanswered.contains(&inode) {
                        connection.close(Reason::PeerVanished);
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "the kernel's connections can not be seen"),
        }
    }

    /// Ends what the snapshot no longer allows.
    fn recheck(&self) {
        let snapshot = self.shared.snapshot.load();
        for connection in self.open() {
            if let Some(reason) = withdrawn(&connection, &snapshot) {
                connection.close(reason);
            }
        }
    }

    fn list(&self, limit: usize) -> Vec<ConnectionView> {
        let now = self.now_ms();
        let table = self.table.borrow();
        table
            .iter()
            .take(limit)
            .map(|(_, connection)| ConnectionView {
                direction: connection.direction.as_str(),
                source_address: connection.source_address.to_string(),
                source: connection.source.borrow().to_string(),
                destination: connection.destination.borrow().to_string(),
                destination_address: text(&connection.destination_address),
                peer_identity: connection.peer.borrow().as_ref().map(|p| p.id.to_string()),
                inbound: connection.inbound.as_deref().map(str::to_owned),
                seconds: connection.started.elapsed().as_secs(),
                idle_seconds: now.saturating_sub(connection.active_at.get()) / 1000,
                bytes_sent: connection.sent.get(),
                bytes_received: connection.received.get(),
                half_closed: connection.half_closed.get(),
            })
            .collect()
    }
}

fn text(cell: &RefCell<Option<Arc<str>>>) -> Option<String> {
    cell.borrow().as_deref().map(str::to_owned)
}

/// Why an open connection may no longer be, by the snapshot that is in force now.
fn withdrawn(connection: &Connection, snapshot: &Snapshot) -> Option<Reason> {
    let peer = connection.peer.borrow();
    // Not verified yet: whoever verifies it reads the snapshot that is in force then.
    let peer = peer.as_ref()?;
    if !inbound::still_trusted(snapshot, peer) {
        return Some(Reason::TrustWithdrawn);
    }
    let name = connection.inbound.as_ref()?;
    match inbound::still_allowed(snapshot, name, peer) {
        // The next request is refused with its reason.
        Ok(Decision::Denied { .. }) if connection.is_http.get() => None,
        Ok(Decision::Denied { by }) => {
            connection.policy.replace(by.map(Into::into));
            Some(Reason::PermissionWithdrawn)
        }
        Ok(_) => None,
        Err(reason) => Some(reason),
    }
}

/// Takes commands until the control thread has gone.
async fn run(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>, rechecked: Arc<Notify>) {
    // More than one where a predecessor with more workers handed over its own.
    let mut listeners: HashMap<SocketAddr, Vec<listener::Accepting>> = HashMap::new();
    tokio::task::spawn_local(sweep_for_ever(worker.clone()));
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            () = rechecked.notified() => {
                worker.recheck();
                continue;
            }
        };
        let Some(command) = command else { return };
        match command {
            Command::Listen(new) => {
                for (key, listener) in new {
                    match listener::accept_on(&worker, key, listener) {
                        Ok(accepting) => {
                            listeners.entry(key).or_default().push(accepting);
                        }
                        Err(error) => {
                            tracing::error!(%error, %key, "a listener could not be taken up");
                        }
                    }
                }
            }
            Command::Unlisten(old) => listeners.retain(|key, _| !old.contains(key)),
            Command::Drain(which) => {
                worker.draining.set(true);
                for connection in worker.open() {
                    if which == Draining::All || connection.direction == Direction::Inbound {
                        connection.drain();
                    }
                }
            }
            Command::CloseAll(reason) => {
                for connection in worker.open() {
                    connection.close(reason);
                }
            }
            Command::List(limit, answer) => {
                let _ = answer.send(worker.list(limit));
            }
        }
    }
}

async fn sweep_for_ever(worker: Rc<Worker>) {
    loop {
        if worker.table.borrow().is_empty() && worker.pool.is_empty() {
            worker.not_empty.notified().await;
        }
        tokio::time::sleep(SWEEP).await;
        worker.tick();
        worker.sweep();
        worker.pool.sweep(&worker);
    }
}
