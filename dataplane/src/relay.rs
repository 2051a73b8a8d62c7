//! Moves bytes between two sockets, either of which may carry TLS, until both sides have ended.
//!
//! - **No buffer while idle.** Bytes are read into, decrypted into and encrypted into the worker's scratch buffers, and
//!   written from there. A connection owns memory only for what the kernel would not take (back-pressure: nothing more
//!   is read for that direction until it has) and for a TLS record that has arrived in part.
//! - **Half-close.** The end of one direction (FIN, or close_notify on TLS) is passed on once all bytes before it are
//!   delivered; the other direction goes on, bounded by the half-close time-out while it is silent.
//! - **A clean end is never a reset.** Where one side has ended cleanly and closed while the other still sends, that
//!   other side is read and thrown away for a moment, since closing a socket with unread bytes resets it and may
//!   destroy what it has not read yet. A reset, or TLS cut without close_notify, is passed on as a reset, so that
//!   nobody takes half of an answer for the whole.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustls::AlertDescription;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
};

use crate::{
    net,
    record::{ClosedBy, Connection, End, Limit, Outcome, Reason, Waiting},
    tls::{
        handshake::Established,
        session::{RECORD_BYTES_MAX, Session, SessionError, Standing},
    },
    workers::Worker,
};

/// One read at first.
const READ_BYTES: usize = 16 * 1024;
/// One read once bulk is seen.
const READ_BYTES_BULK: usize = 64 * 1024;
/// Rounds of reading and writing before other connections get their turn.
const ROUNDS: usize = 8;
/// How long a side that still sends to one that has gone is read and thrown away.
const LINGER: Duration = Duration::from_secs(5);
/// A peer that was sent more than this and has not answered may have filled its receive window and be reading slowly:
/// it is no longer judged by how long it takes to acknowledge, but by the worker, which looks whether it does at all.
const IMPATIENT_BYTES_MAX: usize = 48 * 1024;

/// Buffers of one worker, used within one poll and never across polls.
pub struct Scratch {
    input: Vec<u8>,
    plain: Vec<u8>,
    cipher: Vec<u8>,
}

impl Scratch {
    /// Allocates lazily: pages count only once they are touched.
    #[must_use]
    pub fn new() -> Self {
        Self {
            input: vec![0; READ_BYTES_BULK + RECORD_BYTES_MAX],
            plain: Vec::new(),
            cipher: Vec::new(),
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// One end of a relayed connection.
pub struct Socket {
    stream: TcpStream,
    tls: Option<Session>,
    /// Part of a TLS record, or (without TLS) nothing.
    incoming: Vec<u8>,
    /// Payload that has arrived before the relay began.
    early: Vec<u8>,
    /// What the kernel would not take yet, from `written` on.
    outgoing: Vec<u8>,
    written: usize,
    /// The peer has said that it sends no more.
    ended: bool,
    /// The peer has reset the connection, which a write has found out, so the end of what it sends is no clean one.
    broken: bool,
    /// What has been written since the peer was last heard.
    unanswered: usize,
    /// Something has been written since [`Socket::waiting`] was last asked.
    progressed: bool,
    waiting: Option<Waiting>,
}

impl Socket {
    /// Without TLS. `early` is what has been read from it already.
    #[must_use]
    pub fn plain(stream: TcpStream, early: Vec<u8>) -> Self {
        Self {
            stream,
            tls: None,
            incoming: Vec::new(),
            early,
            outgoing: Vec::new(),
            written: 0,
            ended: false,
            broken: false,
            unanswered: 0,
            progressed: false,
            waiting: None,
        }
    }

    /// With TLS, after the handshake.
    #[must_use]
    pub fn tls(stream: TcpStream, established: Established) -> Self {
        let mut socket = Self::plain(stream, established.plain);
        socket.tls = Some(established.session);
        socket.incoming = established.incoming;
        socket.incoming.shrink_to_fit();
        socket.ended = established.peer_closed;
        socket
    }

    /// Writes what is waiting.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.outgoing.len() {
            let bytes = &self.outgoing[self.written..];
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
            self.written += count;
            self.wrote(count);
        }
        if self.written > 0 {
            self.outgoing = Vec::new();
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends payload; what the kernel does not take waits in `outgoing`.
    fn send(
        &mut self,
        cx: &mut Context<'_>,
        payload: &[u8],
        cipher: &mut Vec<u8>,
    ) -> io::Result<()> {
        let bytes = match &mut self.tls {
            None => payload,
            Some(session) => {
                let count = session
                    .send(payload, &mut self.incoming, cipher)
                    .map_err(io::Error::other)?;
                &cipher[..count]
            }
        };
        let mut taken = 0;
        if self.outgoing.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, bytes) {
                Poll::Ready(count) => taken = count?,
                Poll::Pending => {}
            }
        }
        self.outgoing.extend_from_slice(&bytes[taken..]);
        self.wrote(taken);
        Ok(())
    }

    /// Tells the peer that nothing more comes, once everything before is written.
    fn poll_finish(&mut self, cx: &mut Context<'_>, notified: &mut bool) -> Poll<io::Result<()>> {
        if !*notified {
            *notified = true;
            if let Some(session) = &mut self.tls {
                session
                    .finish(&mut self.incoming, &mut self.outgoing)
                    .map_err(io::Error::other)?;
            }
        }
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn wrote(&mut self, count: usize) {
        let before = self.unanswered;
        self.unanswered = before.saturating_add(count);
        self.progressed |= count > 0;
        if before <= IMPATIENT_BYTES_MAX && self.unanswered > IMPATIENT_BYTES_MAX {
            net::be_patient(&self.stream, true);
        }
    }

    fn heard(&mut self) {
        if self.unanswered > IMPATIENT_BYTES_MAX {
            if !self.outgoing.is_empty() {
                return;
            }
            net::be_patient(&self.stream, false);
        }
        self.unanswered = 0;
    }

    /// What the worker has to watch, now that no time-out of the kernel's judges the peer.
    fn waiting(&mut self, now_ms: u64) -> Option<Waiting> {
        if self.unanswered <= IMPATIENT_BYTES_MAX {
            self.waiting = None;
            return None;
        }
        let stream = &self.stream;
        let waiting = self.waiting.get_or_insert_with(|| Waiting {
            since_ms: now_ms,
            inode: net::inode(stream),
            full: false,
        });
        if std::mem::take(&mut self.progressed) {
            waiting.since_ms = now_ms;
        }
        waiting.full = !self.outgoing.is_empty();
        Some(*waiting)
    }

    /// Closing resets the connection.
    fn reset_on_close(&self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

/// Why a direction breaks.
struct Broken {
    at: At,
    reason: Reason,
    detail: String,
    /// The peer had ended what it sends before it reset the connection: what it has sent is whole.
    after_its_end: bool,
}

/// Which end of a direction broke.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    From,
    To,
}

impl Broken {
    fn from(error: &dyn std::fmt::Display) -> Self {
        Self {
            at: At::From,
            reason: Reason::Reset,
            detail: error.to_string(),
            after_its_end: false,
        }
    }

    fn to(error: &io::Error) -> Self {
        Self {
            at: At::To,
            // Linux says so: a reset is ECONNRESET, but EPIPE where the peer's FIN had come before.
            after_its_end: error.kind() == io::ErrorKind::BrokenPipe,
            ..Self::from(error)
        }
    }
}

/// What it means that the peer's TLS is over. The alert access_denied after a handshake that this side took for done is
/// how the peer's permissions answer.
fn broken_session(error: SessionError) -> Broken {
    match error {
        SessionError::Tls(rustls::Error::AlertReceived(AlertDescription::AccessDenied)) => Broken {
            at: At::From,
            reason: Reason::RefusedByPeer,
            detail: "the permissions at the destination do not let this caller in; its proxy's record names the policy"
                .to_owned(),
            after_its_end: false,
        },
        error => Broken::from(&error),
    }
}

/// One direction.
struct Flow {
    state: FlowState,
    read_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FlowState {
    Copying,
    /// All is read; it is being delivered, then the end is passed on.
    Finishing {
        notified: bool,
    },
    /// The other end has gone: read and throw away until this time (the worker's clock).
    Discarding {
        until_ms: u64,
    },
    Done,
}

/// What a direction counts by.
struct Meter<'a> {
    bytes: &'a Cell<u64>,
    connection: &'a Connection,
    now_ms: u64,
}

impl Flow {
    fn new() -> Self {
        Self {
            state: FlowState::Copying,
            read_bytes: READ_BYTES,
        }
    }

    fn done(&self) -> bool {
        self.state == FlowState::Done
    }

    /// Goes on until nothing can be read or written. `Ready(Ok)`: the direction has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Socket,
        to: &mut Socket,
        scratch: &mut Scratch,
        meter: &Meter<'_>,
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..ROUNDS {
            match &mut self.state {
                FlowState::Done => return Poll::Ready(Ok(())),
                FlowState::Finishing { notified } => {
                    let finished = ready!(to.poll_finish(cx, notified));
                    self.state = FlowState::Done;
                    match finished {
                        // The peer has closed both ways already.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        finished => finished.map_err(|error| Broken::to(&error))?,
                    }
                }
                FlowState::Discarding { until_ms } => {
                    let over = meter.now_ms >= *until_ms;
                    if over || ready!(poll_discard(cx, from, scratch)) {
                        self.state = FlowState::Done;
                    }
                }
                FlowState::Copying => {
                    ready!(to.poll_flush(cx)).map_err(|error| Broken::to(&error))?;
                    let early = std::mem::take(&mut from.early);
                    let payload = if !early.is_empty() || from.ended {
                        &early[..]
                    } else if from.tls.is_some() {
                        ready!(self.poll_read_tls(cx, from, scratch))?;
                        &scratch.plain
                    } else {
                        let count = ready!(self.poll_read_plain(cx, from, scratch))?;
                        &scratch.input[..count]
                    };
                    if !payload.is_empty() {
                        meter.bytes.set(meter.bytes.get() + payload.len() as u64);
                        meter.connection.active_at.set(meter.now_ms);
                        to.send(cx, payload, &mut scratch.cipher)
                            .map_err(|error| Broken::to(&error))?;
                    }
                    if from.ended {
                        self.state = FlowState::Finishing { notified: false };
                    }
                }
            }
        }
        // Others get their turn; this direction goes on at once after them.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_read_plain(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Socket,
        scratch: &mut Scratch,
    ) -> Poll<Result<usize, Broken>> {
        let room = &mut scratch.input[..self.read_bytes];
        let count =
            ready!(poll_read(cx, &mut from.stream, room)).map_err(|error| Broken::from(&error))?;
        if count == 0 {
            if from.broken {
                return Poll::Ready(Err(Broken::from(&"the peer has gone")));
            }
            from.ended = true;
        }
        self.saw(count);
        from.heard();
        Poll::Ready(Ok(count))
    }

    /// Reads once and decrypts what is whole into `scratch.plain`, which may stay empty.
    fn poll_read_tls(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Socket,
        scratch: &mut Scratch,
    ) -> Poll<Result<(), Broken>> {
        let kept = from.incoming.len();
        let end = (kept + self.read_bytes).min(scratch.input.len());
        if kept >= end {
            return Poll::Ready(Err(Broken::from(&"a TLS record of impossible length")));
        }
        let count = ready!(poll_read(
            cx,
            &mut from.stream,
            &mut scratch.input[kept..end]
        ))
        .map_err(|error| Broken::from(&error))?;
        if count == 0 {
            // FIN without close_notify: nobody can tell whether this was all.
            return Poll::Ready(Err(Broken {
                at: At::From,
                reason: Reason::Truncated,
                detail: "the peer ended the connection without saying so in TLS".to_owned(),
                after_its_end: true,
            }));
        }
        self.saw(count);
        from.heard();
        scratch.input[..kept].copy_from_slice(&from.incoming);
        scratch.plain.clear();
        let input = &mut scratch.input[..kept + count];
        let session = from.tls.as_mut().expect("asked only of TLS");
        let received = session
            .receive(input, &mut scratch.plain, &mut from.outgoing)
            .map_err(broken_session)?;
        let rest = &input[received.consumed..];
        if rest.is_empty() {
            if kept > 0 {
                from.incoming = Vec::new();
            }
        } else {
            from.incoming.clear();
            from.incoming.extend_from_slice(rest);
        }
        from.ended = received.standing == Standing::PeerClosed;
        Poll::Ready(Ok(()))
    }

    fn saw(&mut self, count: usize) {
        if count >= self.read_bytes {
            self.read_bytes = READ_BYTES_BULK;
        } else if count < READ_BYTES / 4 {
            self.read_bytes = READ_BYTES;
        }
    }
}

fn poll_read(
    cx: &mut Context<'_>,
    stream: &mut TcpStream,
    room: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut room = ReadBuf::new(room);
    ready!(Pin::new(stream).poll_read(cx, &mut room))?;
    Poll::Ready(Ok(room.filled().len()))
}

/// Ready with true at the end of what `from` sends.
fn poll_discard(cx: &mut Context<'_>, from: &mut Socket, scratch: &mut Scratch) -> Poll<bool> {
    match ready!(poll_read(cx, &mut from.stream, &mut scratch.input)) {
        Ok(0) | Err(_) => Poll::Ready(true),
        Ok(_) => Poll::Ready(false),
    }
}

/// Both directions of one connection.
struct Relay<'a> {
    source: Socket,
    destination: Socket,
    up: Flow,
    down: Flow,
    first_to_end: Option<ClosedBy>,
    connection: &'a Connection,
    worker: &'a Worker,
}

/// Moves bytes between `source` and `destination` until both have ended, the world or the worker ends it.
pub async fn relay(
    source: Socket,
    destination: Socket,
    connection: &Rc<Connection>,
    worker: &Worker,
) -> End {
    let mut relay = Relay {
        source,
        destination,
        up: Flow::new(),
        down: Flow::new(),
        first_to_end: None,
        connection,
        worker,
    };
    connection.active_at.set(worker.now_ms());
    poll_fn(|cx| relay.poll(cx)).await
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Some(reason) = self.connection.close.get() {
            return Poll::Ready(self.closed_by_proxy(reason));
        }
        remember_waker(self.connection, cx);
        let mut scratch = self.worker.scratch.borrow_mut();
        let meter = |bytes| Meter {
            bytes,
            connection: self.connection,
            now_ms: self.worker.now_ms(),
        };
        // What one direction does may give the other something to do: both are looked at until neither changes.
        loop {
            let up = self.up.poll(
                cx,
                &mut self.source,
                &mut self.destination,
                &mut scratch,
                &meter(&self.connection.sent),
            );
            let mut again = false;
            if let Poll::Ready(ended) = up {
                again |= ended.is_err();
                if let Some(end) = self.up_ended(ended) {
                    return Poll::Ready(end);
                }
            }
            let down = self.down.poll(
                cx,
                &mut self.destination,
                &mut self.source,
                &mut scratch,
                &meter(&self.connection.received),
            );
            if let Poll::Ready(ended) = down {
                again |= ended.is_err();
                if let Some(end) = self.down_ended(ended) {
                    return Poll::Ready(end);
                }
            }
            if self.up.done() && self.down.done() {
                return Poll::Ready(End {
                    outcome: Outcome::Completed,
                    reason: Reason::None,
                    closed_by: self.first_to_end.unwrap_or(ClosedBy::Source),
                    detail: String::new(),
                });
            }
            // Reading the destination may have left something to be sent to it: the answer to a key update.
            if !self.up.done() {
                // An error comes again where the direction writes.
                let _ = self.destination.poll_flush(cx);
            }
            if !again {
                let now_ms = self.worker.now_ms();
                let waiting = [&mut self.source, &mut self.destination]
                    .into_iter()
                    .filter_map(|socket| socket.waiting(now_ms));
                let longest = waiting.min_by_key(|waiting| waiting.since_ms);
                self.connection.waiting.set(longest);
                return Poll::Pending;
            }
        }
    }

    fn up_ended(&mut self, ended: Result<(), Broken>) -> Option<End> {
        let until_ms = self.linger_until_ms();
        match ended {
            Ok(()) => {
                self.half_ended(ClosedBy::Source);
                None
            }
            Err(broken) => match broken.at {
                At::From => {
                    abort(&self.destination, &self.up);
                    Some(End::failed(broken.reason, ClosedBy::Source, broken.detail))
                }
                At::To => {
                    self.destination.broken = !self.down.done() && !broken.after_its_end;
                    self.up.state = FlowState::Discarding { until_ms };
                    None
                }
            },
        }
    }

    fn down_ended(&mut self, ended: Result<(), Broken>) -> Option<End> {
        let until_ms = self.linger_until_ms();
        match ended {
            Ok(()) => {
                self.half_ended(ClosedBy::Destination);
                None
            }
            Err(broken) => match broken.at {
                At::From => {
                    abort(&self.source, &self.down);
                    let by = ClosedBy::Destination;
                    let mut end = End::failed(broken.reason, by, broken.detail);
                    if end.reason == Reason::RefusedByPeer {
                        end.outcome = Outcome::Refused;
                    }
                    Some(end)
                }
                At::To => {
                    self.source.broken = !self.up.done() && !broken.after_its_end;
                    self.down.state = FlowState::Discarding { until_ms };
                    None
                }
            },
        }
    }

    fn half_ended(&mut self, by: ClosedBy) {
        if self.first_to_end.is_none() {
            self.first_to_end = Some(by);
            self.connection.half_closed.set(true);
        }
    }

    fn linger_until_ms(&self) -> u64 {
        self.worker.now_ms() + u64::try_from(LINGER.as_millis()).unwrap_or(u64::MAX)
    }

    /// The proxy ends it: by FIN where it was silent, by a reset where it was cut.
    fn closed_by_proxy(&mut self, reason: Reason) -> End {
        if !matches!(reason, Reason::IdleTimeout | Reason::HalfCloseTimeout) {
            self.source.reset_on_close();
            self.destination.reset_on_close();
        }
        End::closed(reason, self.why(reason))
    }

    /// What a reason does not say by itself.
    fn why(&self, reason: Reason) -> String {
        match reason {
            Reason::IdleTimeout => {
                let limit = self.connection.idle.get().unwrap_or_default();
                let origin = self.connection.idle_origin.borrow();
                format!("idle timeout {}", Limit(limit, &origin))
            }
            Reason::HalfCloseTimeout => {
                let limit = self.worker.shared.limits.half_close_timeout;
                let first = self.first_to_end.unwrap_or(ClosedBy::Source);
                format!(
                    "silent after the {first} had ended, for {}",
                    Limit(limit, "")
                )
            }
            Reason::PeerVanished => {
                "what was sent has not been acknowledged, however often it was repeated".to_owned()
            }
            _ => String::new(),
        }
    }
}

/// One end broke: the other learns it by a reset, unless all that was sent to it has ended cleanly before.
fn abort(to: &Socket, flow: &Flow) {
    if !flow.done() {
        to.reset_on_close();
    }
}

/// Lets the worker wake the task when it wants the connection to end.
fn remember_waker(connection: &Connection, cx: &Context<'_>) {
    let mut waker = connection.waker.borrow_mut();
    if waker
        .as_ref()
        .is_none_or(|waker| !waker.will_wake(cx.waker()))
    {
        *waker = Some(cx.waker().clone());
    }
}

#[cfg(test)]
mod tests;
