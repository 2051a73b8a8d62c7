//! What a connection speaks, where nobody has declared it: HTTP, or anything else, which is TCP.
//!
//! Both sides are listened to while the next hop is being reached, and whoever speaks first decides. A server that does is
//! answered by nobody's request: TCP, but where it begins as servers of HTTP/2 do, which may not wait for their clients either
//! (RFC 9113 §3.4). What a client says is HTTP where it can be nothing else: the preface of HTTP/2, or the
//! beginning of a request line of HTTP/1 up to its version. In doubt it is TCP, since bytes that are passed on as they are break no
//! protocol. So a server that speaks first waits for nothing, and a client only while what it has said may still become a request
//! line, which is bounded. A connection on which nobody has said anything is neither: there is nothing to hold back, and it
//! is told what it is when somebody speaks. `docs/decisions/013` says what this means for permissions and routes.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

use crate::{
    config::Outstanding,
    http::{
        pool::{HopKey, Made, Pool, Shared, begin_h1},
        serve::PREFACE,
    },
    record::{ClosedBy, Connection, End, Outcome, Reason},
    socket::{ReadError, Socket},
    tls::verify::VerifiedPeer,
    workers::Worker,
};

/// How long a client's bytes are held back at most while they may become a request line. Clients send one in one piece; this is
/// time for a part of it to be lost and sent again twice (RFC 6298: after 1 s, then 2 s). A protocol whose first message looks like
/// half of a request line, and waits there for an answer, is delayed by it; so is one whose server begins as one of HTTP/2 does.
pub const WAIT: Duration = Duration::from_secs(3);
/// Whoever speaks first does so at once: how long a client may still do so once the next hop can not be reached. One that speaks HTTP
/// is answered, any other sees its connection closed.
const GRACE: Duration = Duration::from_millis(300);
/// Where the last connection spoke HTTP, the next one will, and needs no connection of its own to the next hop: that begins when
/// the client has spoken, or after this.
const HEAD_START: Duration = Duration::from_millis(20);
/// How long a connection on which nothing has been said is left when its proxy drains.
const LAST_WORD: Duration = Duration::from_secs(2);

/// The longest method that is looked for: that of the longest one registered (UPDATEREDIRECTREF), and some.
const METHOD_BYTES_MAX: usize = 20;

/// What follows the length of a first frame of HTTP/2 that a server sends: the type SETTINGS, no flags, stream 0.
const SETTINGS_OF_STREAM_0: [u8; 6] = [4, 0, 0, 0, 0, 0];

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Spoken {
    Http1,
    Http2,
    /// Anything else.
    Tcp,
}

/// What a client speaks that begins with `bytes`. `None`: it may become a request line yet, whose target has at most
/// `target_bytes_max`.
#[must_use]
pub fn look(bytes: &[u8], target_bytes_max: usize) -> Option<Spoken> {
    let known = bytes.len().min(PREFACE.len());
    if bytes[..known] == PREFACE[..known] {
        return (known == PREFACE.len()).then_some(Spoken::Http2);
    }
    match request_line(bytes, target_bytes_max) {
        Ok(()) => Some(Spoken::Http1),
        Err(Not::Yet) => None,
        Err(Not::Ever) => Some(Spoken::Tcp),
    }
}

/// Why bytes are no request line.
enum Not {
    /// They may become one.
    Yet,
    /// Whatever comes after them.
    Ever,
}

/// `GET /path HTTP/1.`, after an empty line, if any, that our parser skips as well (RFC 9112 §2.2). Methods are upper-case letters, as
/// all registered ones are; targets are those that RFC 9112 §3.2 knows.
fn request_line(bytes: &[u8], target_bytes_max: usize) -> Result<(), Not> {
    let bytes = match bytes {
        [] | [b'\r'] => return Err(Not::Yet),
        [b'\r', b'\n', rest @ ..] => rest,
        bytes => bytes,
    };
    let is_method = |b: &u8| b.is_ascii_uppercase() || matches!(b, b'-' | b'_');
    let method_bytes = bytes.iter().take_while(|b| is_method(b)).count();
    if method_bytes > METHOD_BYTES_MAX || bytes.first().is_some_and(|b| !b.is_ascii_uppercase()) {
        return Err(Not::Ever);
    }
    let (method, rest) = bytes.split_at(method_bytes);
    let rest = match rest {
        [] => return Err(Not::Yet),
        [b' ', rest @ ..] => rest,
        _ => return Err(Not::Ever),
    };
    let target_bytes = rest
        .iter()
        .take_while(|b| !matches!(b, 0..=b' ' | 0x7f))
        .count();
    let (target, rest) = rest.split_at(target_bytes);
    begins_target(method, target)?;
    if target_bytes > target_bytes_max {
        return Err(Not::Ever);
    }
    match rest {
        [] => Err(Not::Yet),
        [b' ', version @ ..] if !target.is_empty() => is_followed_by(version, b"HTTP/1."),
        _ => Err(Not::Ever),
    }
}

/// Whether `target`, or what begins with it, is one that a request with `method` may have.
fn begins_target(method: &[u8], target: &[u8]) -> Result<(), Not> {
    let begins = |form: &[u8]| {
        let known = form.len().min(target.len());
        target[..known].eq_ignore_ascii_case(&form[..known])
    };
    let is_one = match target {
        [] | [b'/', ..] => true,
        _ if method == b"CONNECT" => target[0].is_ascii_alphanumeric() || target[0] == b'[',
        [b'*'] => method == b"OPTIONS",
        _ => begins(b"http://") || begins(b"https://"),
    };
    if is_one { Ok(()) } else { Err(Not::Ever) }
}

/// Whether a server that begins with `bytes` speaks HTTP/2: its first frame is SETTINGS (RFC 9113 §6.5). `None`: it may become one.
#[must_use]
pub fn is_server_of_http2(bytes: &[u8]) -> Option<bool> {
    match begins_with_settings(bytes) {
        Ok(()) => Some(true),
        Err(Not::Yet) => None,
        Err(Not::Ever) => Some(false),
    }
}

fn begins_with_settings(bytes: &[u8]) -> Result<(), Not> {
    const FRAME_BYTES_MAX: u32 = 1 << 14;
    let (length, rest) = bytes.split_at(bytes.len().min(3));
    let rest = &rest[..rest.len().min(SETTINGS_OF_STREAM_0.len())];
    let length = length
        .iter()
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte));
    if length > FRAME_BYTES_MAX || *rest != SETTINGS_OF_STREAM_0[..rest.len()] {
        return Err(Not::Ever);
    }
    if rest.len() < SETTINGS_OF_STREAM_0.len() {
        return Err(Not::Yet);
    }
    // Each setting has six bytes.
    if length % 6 == 0 {
        Ok(())
    } else {
        Err(Not::Ever)
    }
}

fn is_followed_by(bytes: &[u8], wanted: &[u8]) -> Result<(), Not> {
    let known = bytes.len().min(wanted.len());
    match bytes[..known] == wanted[..known] {
        false => Err(Not::Ever),
        true if known < wanted.len() => Err(Not::Yet),
        true => Ok(()),
    }
}

/// A connection to the next hop, made before it is known what it is for.
pub struct Upstream {
    /// The connection.
    pub socket: Socket,
    /// Who is at the other end, where mesh TLS says so.
    pub peer: Option<VerifiedPeer>,
    /// Counts it at its endpoint while it lives.
    pub outstanding: Option<Outstanding>,
    /// Under which requests find it.
    pub key: HopKey,
    /// What it was made with.
    pub made: Made,
}

/// The next hop, as far as it is known.
pub enum NextHop {
    /// It is being reached, once this is polled.
    Reaching(Pin<Box<dyn Future<Output = Result<Upstream, End>>>>),
    /// It is reached.
    Reached(Box<Upstream>),
    /// It can not be reached, or has gone.
    Failed(End),
}

impl NextHop {
    /// Waits for it.
    ///
    /// # Errors
    /// Where it can not be reached.
    pub async fn reached(self) -> Result<Upstream, End> {
        match self {
            Self::Reaching(reaching) => reaching.await,
            Self::Reached(upstream) => Ok(*upstream),
            Self::Failed(end) => Err(end),
        }
    }
}

/// Listens to both sides of one connection until it is clear what is spoken.
pub struct Detection {
    /// The client. What it has said can be read again afterwards.
    pub source: Socket,
    /// The server.
    pub next_hop: NextHop,
    /// Its port is called so in metrics and logs.
    pub port: Rc<str>,
    /// The last connection to the same port spoke HTTP.
    pub expects_http: bool,
    /// What the client has said.
    heard: Vec<u8>,
    /// What the server has said.
    answered: Vec<u8>,
    reaches: bool,
    timers: Timers,
}

/// Each is set where there is something to wait for.
#[derive(Default)]
struct Timers {
    head_start: Option<Pin<Box<Sleep>>>,
    wait: Option<Pin<Box<Sleep>>>,
    grace: Option<Pin<Box<Sleep>>>,
    last_word: Option<Pin<Box<Sleep>>>,
}

impl Detection {
    /// Of a connection from `source`; the next hop is reached by `reaching`.
    #[must_use]
    pub fn new(
        source: Socket,
        port: Rc<str>,
        expects_http: bool,
        reaching: impl Future<Output = Result<Upstream, End>> + 'static,
    ) -> Self {
        Self {
            source,
            next_hop: NextHop::Reaching(Box::pin(reaching)),
            port,
            expects_http,
            heard: Vec::new(),
            answered: Vec::new(),
            reaches: false,
            timers: Timers::default(),
        }
    }

    /// Waits until it is clear what is spoken.
    ///
    /// # Errors
    /// Where the connection ends before.
    pub async fn run(&mut self, worker: &Worker, connection: &Connection) -> Result<Spoken, End> {
        connection.active_at.set(worker.now_ms());
        let listening = poll_fn(|cx| self.poll(cx, worker, connection));
        let spoken = connection.unless_closed(listening).await;
        let heard = std::mem::take(&mut self.heard);
        self.source.unread(heard);
        if let NextHop::Reached(upstream) = &mut self.next_hop {
            upstream.socket.unread(std::mem::take(&mut self.answered));
        }
        match spoken {
            Ok(Ok(spoken)) => Ok(spoken),
            Ok(Err(end)) => {
                if let (NextHop::Reached(upstream), ClosedBy::Source) =
                    (&self.next_hop, end.closed_by)
                {
                    upstream.socket.reset_on_close();
                }
                Err(end)
            }
            Err(reason) => Err(connection.closed(reason)),
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        connection: &Connection,
    ) -> Poll<Result<Spoken, End>> {
        if let Poll::Ready(spoken) = self.poll_source(cx, worker, connection) {
            return Poll::Ready(spoken);
        }
        if let Poll::Ready(spoken) = self.poll_next_hop(cx, worker) {
            return Poll::Ready(Ok(spoken));
        }
        self.poll_timers(cx, worker, connection)
    }

    /// What the client says.
    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        connection: &Connection,
    ) -> Poll<Result<Spoken, End>> {
        loop {
            let mut scratch = worker.scratch.borrow_mut();
            match ready!(self.source.poll_receive(cx, &mut scratch.read)) {
                // Whoever ends what it sends without a request may still want to read.
                Ok([]) if self.source.ended() => return Poll::Ready(Ok(Spoken::Tcp)),
                Ok(payload) => {
                    self.heard.extend_from_slice(payload);
                    connection.active_at.set(worker.now_ms());
                }
                Err(error) => {
                    let end = End::failed(error.reason, ClosedBy::Source, error.detail);
                    return Poll::Ready(Err(end));
                }
            }
            if let Some(spoken) = look(&self.heard, worker.shared.limits.http.target_bytes) {
                return Poll::Ready(Ok(spoken));
            }
        }
    }

    /// Reaches the next hop, and listens whether the server says something.
    fn poll_next_hop(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<Spoken> {
        if let NextHop::Reaching(reaching) = &mut self.next_hop {
            if self.expects_http && !self.reaches {
                let timer = &mut self.timers.head_start;
                ready!(poll_timer(cx, timer, HEAD_START));
            }
            self.reaches = true;
            self.next_hop = match ready!(reaching.as_mut().poll(cx)) {
                Ok(upstream) => NextHop::Reached(Box::new(upstream)),
                Err(end) => NextHop::Failed(end),
            };
        }
        let NextHop::Reached(upstream) = &mut self.next_hop else {
            return Poll::Pending;
        };
        let socket = &mut upstream.socket;
        let mut scratch = worker.scratch.borrow_mut();
        let broken = loop {
            if is_server_of_http2(&self.answered) == Some(true) {
                // Now it is the client's turn to say that it speaks HTTP/2.
                return Poll::Pending;
            }
            // An error comes again where it is read.
            let _ = socket.poll_flush(cx);
            match ready!(socket.poll_receive(cx, &mut scratch.read)) {
                Ok([]) if !socket.ended() => {}
                // The end of what the server sends is its word, too.
                Ok([]) => return Poll::Ready(Spoken::Tcp),
                Ok(payload) => {
                    self.answered.extend_from_slice(payload);
                    if is_server_of_http2(&self.answered) == Some(false) {
                        return Poll::Ready(Spoken::Tcp);
                    }
                }
                Err(error) => break error,
            }
        };
        self.next_hop = NextHop::Failed(gone(broken));
        Poll::Pending
    }

    /// What is over, and what that means.
    fn poll_timers(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        connection: &Connection,
    ) -> Poll<Result<Spoken, End>> {
        let timers = &mut self.timers;
        if !(self.heard.is_empty() && self.answered.is_empty()) {
            ready!(poll_timer(
                cx,
                &mut timers.wait,
                worker.shared.limits.detection_wait
            ));
            worker.count_detection_timeout(connection, &self.port);
            return Poll::Ready(Ok(Spoken::Tcp));
        }
        if let NextHop::Failed(end) = &self.next_hop {
            ready!(poll_timer(cx, &mut timers.grace, GRACE));
            return Poll::Ready(Err(end.clone()));
        }
        if connection.draining.get() {
            ready!(poll_timer(cx, &mut timers.last_word, LAST_WORD));
            return Poll::Ready(Err(End::closed(Reason::Drained, "")));
        }
        Poll::Pending
    }

    /// HTTP is spoken: the connection to the next hop, if there is one, is for whichever request takes it. Gives back the client.
    #[must_use]
    pub fn into_requests(self, worker: &Rc<Worker>, spoken: Spoken) -> Socket {
        let begun = match self.next_hop {
            NextHop::Reaching(_) if !self.reaches => None,
            NextHop::Failed(_) => None,
            begun => Some(begun),
        };
        if let Some(begun) = begun {
            let worker = worker.clone();
            tokio::task::spawn_local(async move {
                if let Ok(upstream) = begun.reached().await {
                    keep(&worker, upstream, spoken).await;
                }
            });
        }
        self.source
    }
}

/// Keeps a connection for requests.
async fn keep(worker: &Rc<Worker>, upstream: Upstream, spoken: Spoken) {
    let Upstream {
        mut socket,
        key,
        made,
        ..
    } = upstream;
    socket.watched_by(worker);
    if spoken == Spoken::Http1 {
        let lease = begin_h1(worker, socket, made);
        worker.pool.give_back(worker, key, lease, None);
        return;
    }
    let snapshot = worker.shared.snapshot.load_full();
    if let Shared::Make(making) = Pool::share(worker, &key, &snapshot) {
        // Where it broke, a request makes another.
        drop(making.begin(socket, made).await);
        return;
    }
    // There is a shared one already.
    let finished = poll_fn(|cx| {
        let mut scratch = worker.scratch.borrow_mut();
        socket.poll_finish(cx, &mut scratch.cipher)
    });
    let _ = finished.await;
}

fn poll_timer(
    cx: &mut Context<'_>,
    timer: &mut Option<Pin<Box<Sleep>>>,
    after: Duration,
) -> Poll<()> {
    let timer = timer.get_or_insert_with(|| Box::pin(sleep(after)));
    timer.as_mut().poll(cx)
}

/// The server has gone without a word.
fn gone(error: ReadError) -> End {
    let mut end = End::failed(error.reason, ClosedBy::Destination, error.detail);
    if end.reason == Reason::RefusedByPeer {
        end.outcome = Outcome::Refused;
    }
    end
}

#[cfg(test)]
mod tests;
