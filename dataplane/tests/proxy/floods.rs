//! Callers of HTTP/2 that send what makes work or memory for nothing are ended, and what is kept for them is bounded.

use futures::future::join_all;

use super::{
    slow::{Pair, Written, application, pair, resident},
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
