//! Callers of HTTP/2 that send what makes work or memory for nothing are ended, and what is kept for them is bounded.

use futures::{StreamExt as _, future::join_all, stream};
use tokio::task::JoinHandle;

use super::{
    load::get,
    slow::{Pair, Written, application, connections, in_kernel, pair, resident},
    *,
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
/// GET / of store.
const GET: &[u8] = b"\x82\x86\x84\x41\x05store";
/// POST /swallow of store, whose body the application does not read.
const POST: &[u8] = b"\x83\x86\x44\x08/swallow\x41\x05store";

/// Connections of each kind.
const CONNECTIONS: usize = 8;
/// What all of one kind may add to the memory of the caller's sidecar.
const MEMORY_MAX: u64 = 128 * 1024 * 1024;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// What a caller does.
struct Flood {
    what: &'static str,
    first: Vec<u8>,
    next: Box<dyn Fn(u32) -> Vec<u8>>,
    /// It need not be ended: so many bytes of it are enough.
    enough: Option<usize>,
}

fn flood(what: &'static str, first: Vec<u8>, next: impl Fn(u32) -> Vec<u8> + 'static) -> Flood {
    Flood {
        what,
        first,
        next: Box::new(next),
        enough: None,
    }
}

impl Flood {
    /// One connection, until it is ended or enough has been sent. What is given back holds it open.
    async fn caller(&self, port: u16, reads: bool) -> impl Sized {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let reading = tokio::spawn(async move {
            if reads {
                let _ = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
            }
            drop(read);
        });
        let mut begun = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        begun.extend(frame(SETTINGS, 0, 0, &[]));
        begun.extend(&self.first);
        let mut left = self.enough.unwrap_or(usize::MAX);
        let mut sent = write.write_all(&begun).await;
        for n in 0.. {
            if sent.is_err() || left == 0 {
                break;
            }
            let bytes = (self.next)(n);
            left = left.saturating_sub(bytes.len());
            sent = write.write_all(&bytes).await;
        }
        (write, reading)
    }

    async fn run(&self, pair: &Pair, reads: bool) {
        let Self { what, .. } = self;
        let before = resident(&pair.web);
        let callers = (0..CONNECTIONS).map(|_| self.caller(pair.port, reads));
        let held = timeout(SOON, join_all(callers)).await;
        assert!(held.is_ok(), "{what}: not all are ended (reads: {reads})");
        let kept = resident(&pair.web).saturating_sub(before);
        println!("{what} (reads: {reads}): {kept} bytes");
        assert!(kept < MEMORY_MAX, "{what}: {kept} bytes are kept");
        let served = timeout(SOON, pair.serves()).await;
        assert!(served.unwrap_or(false), "{what}: others are not served");
    }
}

#[tokio::test]
async fn floods_are_ended_and_take_bounded_memory() {
    let pings = frame(PING, 0, 0, &[7; 8]).repeat(100);
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(100);
    let priorities = frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1]).repeat(100);
    // A literal without indexing, and a large one.
    let mut field = b"\x00\x01x\x7f\x81\x7e".to_vec();
    field.resize(16_384, b'y');
    let more = frame(CONTINUATION, 0, 1, &field);
    let empty = frame(DATA, 0, 1, &[]).repeat(100);
    let reset = |n| {
        let stream = 2 * n + 1;
        let mut both = frame(HEADERS, 5, stream, GET);
        both.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        both
    };
    let posts = (0..100).flat_map(|stream| frame(HEADERS, 4, 2 * stream + 1, POST));
    // One byte a frame: what of it is passed on is no flood, what is kept is bounded.
    let small = |n: u32| frame(DATA, 0, 2 * (n % 100) + 1, b"x").repeat(100);
    let floods = [
        flood("PING", vec![], move |_| pings.clone()),
        flood("SETTINGS", vec![], move |_| settings.clone()),
        flood("PRIORITY", vec![], move |_| priorities.clone()),
        flood("CONTINUATION", frame(HEADERS, 1, 1, GET), move |_| {
            more.clone()
        }),
        flood("empty DATA", frame(HEADERS, 4, 1, POST), move |_| {
            empty.clone()
        }),
        flood("HEADERS and RST_STREAM", vec![], reset),
        Flood {
            enough: Some(1024 * 1024),
            ..flood("small DATA", posts.collect(), small)
        },
    ];
    let pair = pair(application(Written::default()).await).await;
    for flood in floods {
        for reads in [true, false] {
            flood.run(&pair, reads).await;
        }
    }
}

/// A head of so many bytes that does not come to its end.
const HEAD_BYTES: usize = 100 * 1024;
/// What all of them may add to the memory of the caller's sidecar, and each caller besides.
const HEADS_MAX: u64 = 64 * 1024 * 1024;
const CALLER_MAX: u64 = 32 * 1024;

fn unfinished_http1() -> Vec<u8> {
    let mut head = b"GET / HTTP/1.1\r\nhost: store\r\nx: ".to_vec();
    head.resize(HEAD_BYTES, b'y');
    head
}

fn unfinished_http2() -> Vec<u8> {
    // A literal without indexing, of a million bytes.
    let mut block = [GET, b"\x00\x01x\x7f\xc1\x83\x3d"].concat();
    block.resize(HEAD_BYTES, b'y');
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(SETTINGS, 0, 0, &[]));
    for (n, part) in block.chunks(16_384).enumerate() {
        let kind = if n == 0 { HEADERS } else { CONTINUATION };
        sent.extend(frame(kind, 0, 1, part));
    }
    sent
}

/// What comes of a caller that sends `head`, once there is something; and until then its connection is open.
async fn begin(port: u16, head: &[u8]) -> JoinHandle<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    // One that is refused need not be read.
    let _ = stream.write_all(head).await;
    tokio::spawn(async move {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    })
}

async fn heads_without_an_end(head: Vec<u8>, is_refusal: impl Fn(&str) -> bool) {
    let pair = pair(application(Written::default()).await).await;
    let mut established = TcpStream::connect(("127.0.0.1", pair.port)).await.unwrap();
    assert_eq!(get(&mut established).await, Some(true));
    let (count, before) = (connections(), resident(&pair.web));
    let begun: Vec<_> = stream::iter(0..count)
        .map(|_| begin(pair.port, &head))
        .buffer_unordered(32)
        .collect()
        .await;
    let is_held = |caller: &&JoinHandle<String>| !caller.is_finished();
    let refused = ["status=\"503\"", "reason=\"request_limit\""];
    // Each of two workers holds 16 MiB of them.
    eventually("all but a few are refused, and counted", async || {
        let held = begun.iter().filter(is_held).count();
        held <= 512 && held + pair.counted(&refused).await == count
    })
    .await;
    let kept = resident(&pair.web).saturating_sub(before);
    let held = begun.iter().filter(is_held).count();
    println!("{count} heads without an end: {held} are held, {kept} bytes");
    assert!(held >= 64, "{held} are held");
    let most = HEADS_MAX + CALLER_MAX * count as u64;
    assert!(kept < most, "{kept} bytes are kept");
    for _ in 0..16 {
        assert_eq!(get(&mut established).await, Some(true));
        let served = timeout(SOON, pair.serves()).await;
        assert!(served.unwrap_or(false), "others are not served");
    }
    for caller in begun {
        match caller.is_finished() {
            true => {
                let answer = caller.await.unwrap();
                assert!(is_refusal(&answer), "{answer}");
            }
            false => caller.abort(),
        }
    }
}

#[tokio::test]
async fn large_heads_of_http1_without_an_end_are_refused_where_there_are_too_many() {
    heads_without_an_end(unfinished_http1(), |answer| {
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("x-isthmus-reason: request_limit")
    })
    .await;
}

#[tokio::test]
async fn large_heads_of_http2_without_an_end_are_refused_where_there_are_too_many() {
    // Such a connection just ends: it has no request that could be answered.
    heads_without_an_end(unfinished_http2(), |answer| !answer.contains("HTTP/1.1")).await;
}

#[tokio::test]
async fn small_frames_of_bodies_that_have_to_wait_take_little_more_than_their_payload() {
    let callers = connections() / 40;
    let pair = pair(application(Written::default()).await).await;
    let small = frame(DATA, 0, 1, b"x").repeat(100);
    let flood = Flood {
        enough: Some(300 * 1024),
        ..flood("small DATA", frame(HEADERS, 4, 1, POST), move |_| {
            small.clone()
        })
    };
    let before = resident(&pair.web);
    let held = join_all((0..callers).map(|_| flood.caller(pair.deaf, true))).await;
    eventually("all is read", async || in_kernel(&pair.web) == 0).await;
    let kept = resident(&pair.web).saturating_sub(before);
    println!("{callers} callers with 30000 small frames each: {kept} bytes");
    let most = (8 * 1024 + 512 * callers as u64) * 1024;
    assert!(kept < most, "{kept} bytes are kept");
    for _ in 0..16 {
        let served = timeout(SOON, pair.serves()).await;
        assert!(served.unwrap_or(false), "others are not served");
    }
    drop(held);
}
