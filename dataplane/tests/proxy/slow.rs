//! Callers that do not read, and applications that do not: what is kept for them is bounded, whatever they are sent, and others are
//! served (row D5 of what must survive).
//!
//! `ISTHMUS_SLOW_CONNECTIONS` says how many of each kind.

use std::{
    collections::HashSet,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
};

use bytes::Bytes;
use futures::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpSocket, task::JoinHandle};

use super::{
    load::{get, head},
    program::{Plan, Process},
    *,
};

/// How many are slow at once.
const CONNECTIONS: usize = 1000;
/// Requests on each connection of HTTP/2.
const STREAMS: usize = 10;
/// What a sidecar may keep of bodies, however many are slow and whatever they are sent, which has no end.
const BODIES_MAX: u64 = 192 * 1024 * 1024;
/// What it may keep for each slow request besides.
const EACH_MAX: u64 = 72 * 1024;
/// What the kernel may keep for a sidecar.
const KERNEL_MAX: u64 = 448 * 1024 * 1024;
/// And for each slow request besides.
const KERNEL_EACH_MAX: u64 = 24 * 1024;
/// What the kernel keeps for callers and for the application: little, since it is not what is looked at here.
const BUFFER: u32 = 4096;

/// A kind of slowness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Callers that read the head of an answer and no more.
    Readers,
    /// Callers that may be sent much, as they say, and once they have the head do not even look at their socket.
    Absent,
    /// Callers whose body nobody reads.
    Writers,
}

/// What has been written, by the application and by callers.
#[derive(Clone, Default)]
pub(crate) struct Written {
    bytes: Arc<AtomicU64>,
    /// Requests that the application has been asked and is slow at.
    asked: Arc<AtomicUsize>,
}

impl Written {
    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn so_far(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Answers `/`, with its name; `/endless`, without an end; and nothing to `/swallow`, whose body it does not read.
pub(crate) async fn application(written: Written) -> u16 {
    let socket = narrow();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1024).unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let written = written.clone();
            tokio::spawn(serve(stream, written));
        }
    });
    port
}

async fn serve(mut stream: TcpStream, written: Written) -> std::io::Result<()> {
    while let Some(head) = head(&mut stream).await {
        if head.contains(" /endless ") || head.contains(" /swallow ") {
            written.asked.fetch_add(1, Ordering::Relaxed);
        }
        if head.contains(" /endless ") {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                stream.write_all(&[7; 16 * 1024]).await?;
                written.count(16 * 1024);
            }
        }
        if head.contains(" /swallow ") {
            return std::future::pending().await;
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstore")
            .await?;
    }
    Ok(())
}

/// What is not to be dropped while it is slow.
type Held = JoinHandle<()>;

/// A socket for which the kernel keeps little.
fn narrow() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(BUFFER).unwrap();
    socket.set_send_buffer_size(BUFFER).unwrap();
    socket
}

async fn connect(port: u16) -> TcpStream {
    let address = ([127, 0, 0, 1], port).into();
    narrow().connect(address).await.unwrap()
}

/// A slow request of HTTP/1.
async fn slow_http1(port: u16, kind: Kind, written: Written) -> Held {
    let mut stream = connect(port).await;
    match kind {
        Kind::Readers | Kind::Absent => {
            let request = b"GET /endless HTTP/1.1\r\nhost: store\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let head = head(&mut stream).await.unwrap();
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            tokio::spawn(async move {
                std::future::pending::<()>().await;
                drop(stream);
            })
        }
        Kind::Writers => {
            let request =
                b"POST /swallow HTTP/1.1\r\nhost: store\r\ncontent-length: 999999999999\r\n\r\n";
            stream.write_all(request).await.unwrap();
            tokio::spawn(async move {
                while stream.write_all(&[7; 4096]).await.is_ok() {
                    written.count(4096);
                }
            })
        }
    }
}

/// Slow requests on one connection of HTTP/2.
async fn slow_http2(port: u16, kind: Kind, written: Written) -> Vec<Held> {
    let mut begins = h2::client::Builder::new();
    if kind == Kind::Absent {
        begins.initial_window_size(1 << 24);
        begins.initial_connection_window_size(1 << 28);
    }
    let (sender, mut connection) = begins
        .handshake::<_, Bytes>(connect(port).await)
        .await
        .unwrap();
    let looks_away = Arc::new(AtomicBool::new(false));
    let looks = looks_away.clone();
    let driving = tokio::spawn(async move {
        let driving = poll_fn(|cx| match looks.load(Ordering::Relaxed) {
            true => Poll::Pending,
            false => Pin::new(&mut connection).poll(cx),
        });
        drop(driving.await);
    });
    #[expect(
        clippy::async_yields_async,
        reason = "what is held of a call is a task, which nobody waits for"
    )]
    let calls = (0..STREAMS).map(|_| {
        let (mut sender, written) = (sender.clone(), written.clone());
        async move {
            sender = sender.ready().await.unwrap();
            match kind {
                Kind::Readers | Kind::Absent => {
                    let request = http::Request::get("http://store/endless").body(()).unwrap();
                    let answer = sender.send_request(request, true).unwrap().0.await.unwrap();
                    assert_eq!(answer.status(), 200);
                    tokio::spawn(async move {
                        std::future::pending::<()>().await;
                        drop((answer, sender));
                    })
                }
                Kind::Writers => {
                    let request = http::Request::post("http://store/swallow")
                        .body(())
                        .unwrap();
                    let (answer, mut body) = sender.send_request(request, false).unwrap();
                    tokio::spawn(async move {
                        loop {
                            body.reserve_capacity(4096);
                            let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await else {
                                break;
                            };
                            if body.send_data(vec![7; room].into(), false).is_err() {
                                break;
                            }
                            written.count(room);
                        }
                        drop((answer, sender));
                    })
                }
            }
        }
    });
    let mut held = join_all(calls).await;
    looks_away.store(kind == Kind::Absent, Ordering::Relaxed);
    held.push(driving);
    held
}

/// Memory of a process that is in RAM, in bytes.
pub(crate) fn resident(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.unwrap() * 1024
}

/// What the kernel keeps for the connections of a process, as their payload, in bytes: what has not been sent or not been acknowledged, and
/// what has not been read (proc_pid_net(5)).
pub(crate) fn in_kernel(process: &Process) -> u64 {
    let pid = process.pid();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let sockets: HashSet<String> = open
        .filter_map(|entry| {
            let link = std::fs::read_link(entry.ok()?.path()).ok()?;
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let queued = |line: &str| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        // What a listener has there are connections.
        let is_open = fields.get(3).is_some_and(|state| *state != "0A");
        if !is_open || !sockets.contains(*fields.get(9)?) {
            return None;
        }
        let (sending, received) = fields[4].split_once(':')?;
        let bytes = |hex| u64::from_str_radix(hex, 16).ok();
        Some(bytes(sending)? + bytes(received)?)
    };
    table.lines().filter_map(queued).sum()
}

/// As many descriptors as slow requests take here: a caller's and an application's end of each. Says so where there are fewer, and
/// how many there can be.
pub(crate) fn connections() -> usize {
    let wanted = std::env::var("ISTHMUS_SLOW_CONNECTIONS");
    let wanted: usize = wanted.map_or(CONNECTIONS, |count| count.parse().unwrap());
    let needed = wanted as u64 * 2 + 500;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        let maximum = limit.maximum.map(|maximum| maximum.max(needed));
        for maximum in [limit.maximum, maximum] {
            let current = Some(maximum.map_or(needed, |maximum| maximum.min(needed)));
            let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
        }
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(needed);
    if current >= needed {
        return wanted;
    }
    let possible = usize::try_from(current.saturating_sub(500) / 2).unwrap();
    eprintln!(
        "ONLY {possible} OF {wanted} SLOW CONNECTIONS: this process may have {current} descriptors and needs {needed} (ulimit -Hn)"
    );
    possible
}

pub(crate) struct Pair {
    pub(crate) web: Process,
    store: Process,
    pub(crate) port: u16,
    /// Where `deaf` is called, whose only endpoint takes connections and never says anything.
    pub(crate) deaf: u16,
    _deaf: std::net::TcpListener,
    _zone: Zone,
    dir: TempDir,
}

pub(crate) async fn pair(application: u16) -> Pair {
    let zone = Zone::start(&[DOMAIN]).await;
    let dir = tempfile::tempdir().unwrap();
    let (port, deaf, inbound_port) = (free_port(), free_port(), free_port());
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let trust = zone.trust();
    zone.change(|world| {
        let outbounds = vec![outbound("store", port), outbound("deaf", deaf)];
        let web = proxy("web", vec![], outbounds);
        let mut into = inbound("store", inbound_port, application, allow_any());
        into.protocol = wire::Protocol::Http.into();
        let mut called = service_body("store");
        called.protocol = wire::Protocol::Http.into();
        // So many at once take their time on a busy machine, which is not what is looked at here.
        let patient = wire::Timeouts {
            connect_ms: 60_000,
            ..timeouts()
        };
        called.timeouts = Some(patient.clone());
        into.timeouts = Some(patient);
        let mut unheard = service_body("deaf");
        unheard.protocol = wire::Protocol::Http.into();
        let documents = vec![
            trust.clone(),
            seal_service(called),
            seal_service(unheard),
            web,
        ];
        world.documents.insert("web-1".into(), documents);
        let store = proxy("store", vec![into], vec![]);
        world.documents.insert("store-1".into(), vec![trust, store]);
        let there = endpoints("store", &[inbound_port]);
        world.endpoints.insert(there.key.clone(), there);
        let there = endpoints("deaf", &[silent.local_addr().unwrap().port()]);
        world.endpoints.insert(there.key.clone(), there);
    });
    let [web, store] = [("web", "web-1"), ("store", "store-1")].map(|(service, name)| {
        Process::sidecar(&Plan {
            zone: &zone,
            dir: dir.path(),
            service,
            name,
            within: &[],
            flags: &["--log-level", "info"],
        })
    });
    let pair = Pair {
        web,
        store,
        port,
        deaf,
        _deaf: silent,
        _zone: zone,
        dir,
    };
    eventually("web reaches store", async || pair.serves().await).await;
    pair
}

impl Pair {
    /// What the caller's sidecar has counted of requests with all of `words` in their labels.
    pub(crate) async fn counted(&self, words: &[&str]) -> usize {
        let socket = self.dir.path().join("web-1/admin.sock");
        let (_, metrics) = ask(&socket, "GET", "/metrics").await.unwrap();
        let lines = metrics.lines().filter(|line| {
            line.starts_with("isthmus_dataplane_requests_total{")
                && words.iter().all(|word| line.contains(word))
        });
        let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
        counts.sum()
    }

    pub(crate) async fn serves(&self) -> bool {
        match TcpStream::connect(("127.0.0.1", self.port)).await {
            Ok(mut stream) => get(&mut stream).await.is_some(),
            Err(_) => false,
        }
    }
}

/// Waits until nobody has been able to write for a while.
async fn stuck(written: &Written) {
    let deadline = Instant::now() + 3 * SOON;
    let (mut before, mut quiet) = (written.so_far(), 0);
    while quiet < 3 {
        assert!(
            Instant::now() < deadline,
            "{before} bytes, and more are taken"
        );
        sleep(Duration::from_millis(500)).await;
        let now = written.so_far();
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }
}

async fn slow(kind: Kind, is_http2: bool) {
    let count = connections();
    let written = Written::default();
    let pair = pair(application(written.clone()).await).await;
    for _ in 0..32 {
        assert!(pair.serves().await);
    }
    let before = [&pair.web, &pair.store].map(resident);
    let mut held = Vec::new();
    // So many at once as listeners and handshakes take.
    for left in (0..count).rev().step_by(100) {
        let wave = 100.min(left + 1);
        let calling = async {
            if is_http2 {
                let calls = (0..wave.div_ceil(STREAMS))
                    .map(|_| slow_http2(pair.port, kind, written.clone()));
                join_all(calls).await.into_iter().flatten().collect()
            } else {
                let calls = (0..wave).map(|_| slow_http1(pair.port, kind, written.clone()));
                join_all(calls).await
            }
        };
        let called = timeout(SOON, calling).await;
        held.append(&mut called.unwrap_or_else(|_| panic!("{left} could not call in time")));
        let arrived = async || written.asked() >= count - (left + 1 - wave);
        eventually("the application is asked", arrived).await;
    }
    stuck(&written).await;
    let after = [&pair.web, &pair.store].map(resident);
    let kept = [0, 1].map(|n| after[n].saturating_sub(before[n]));
    let taken = written.so_far() / count as u64;
    let each = kept.map(|kept| kept / count as u64);
    let in_kernel = [&pair.web, &pair.store].map(in_kernel);
    let each_in_kernel = in_kernel.map(|kept| kept / count as u64);
    println!(
        "{count} {kind:?}, HTTP/2: {is_http2}: for each {each:?} bytes in the sidecars, {each_in_kernel:?} in the kernel, {taken} taken"
    );
    for _ in 0..32 {
        let served = timeout(SOON, pair.serves()).await;
        assert!(served.unwrap_or(false), "others are not served");
    }
    let most = BODIES_MAX + EACH_MAX * count as u64;
    assert!(
        kept.iter().all(|kept| *kept < most),
        "{kept:?} bytes are kept for {count} slow requests, {each:?} for each"
    );
    let most = KERNEL_MAX + KERNEL_EACH_MAX * count as u64;
    assert!(
        in_kernel.iter().all(|kept| *kept < most),
        "the kernel keeps {in_kernel:?} bytes for {count} slow requests, {each_in_kernel:?} for each"
    );
    for sidecar in [&pair.store, &pair.web] {
        let failed: Vec<_> = sidecar
            .requests()
            .into_iter()
            .filter(|request| request["path"] != "/")
            .map(|request| request.to_string())
            .collect();
        // One that was sent little before its window was shut, and nothing in the next eight seconds, can not be told from one that
        // has vanished. Only here windows are so small.
        let few = count / 500;
        assert!(
            failed.len() <= few,
            "{} have failed: {:?}",
            failed.len(),
            failed.first()
        );
    }
    for held in held {
        held.abort();
    }
}

#[tokio::test]
async fn callers_of_http1_that_do_not_read_take_bounded_memory_and_keep_nobody_from_being_served() {
    slow(Kind::Readers, false).await;
}

#[tokio::test]
async fn callers_of_http2_that_do_not_read_take_bounded_memory_and_keep_nobody_from_being_served() {
    slow(Kind::Readers, true).await;
}

#[tokio::test]
async fn callers_of_http2_that_look_away_take_bounded_memory_and_keep_nobody_from_being_served() {
    slow(Kind::Absent, true).await;
}

#[tokio::test]
async fn applications_that_do_not_read_http1_take_bounded_memory_and_keep_nobody_from_being_served()
{
    slow(Kind::Writers, false).await;
}

#[tokio::test]
async fn applications_that_do_not_read_http2_take_bounded_memory_and_keep_nobody_from_being_served()
{
    slow(Kind::Writers, true).await;
}
