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
    rc::Rc,
    sync::atomic::Ordering,
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::{
    record::{ClosedBy, Connection, End, Limit, Outcome, Reason},
    socket::{ReadError, Scratch, Socket},
    workers::Worker,
};

/// Rounds of reading and writing before other connections get their turn.
const ROUNDS: usize = 8;
/// How long a side that still sends to one that has gone is read and thrown away.
const LINGER: Duration = Duration::from_secs(5);

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
    fn from(error: ReadError) -> Self {
        Self {
            at: At::From,
            reason: error.reason,
            detail: error.detail,
            after_its_end: error.after_its_end,
        }
    }

    fn to(error: &io::Error) -> Self {
        Self {
            at: At::To,
            reason: Reason::Reset,
            detail: error.to_string(),
            // Linux says so: a reset is ECONNRESET, but EPIPE where the peer's FIN had come before.
            after_its_end: error.kind() == io::ErrorKind::BrokenPipe,
        }
    }
}

/// One direction.
struct Flow {
    state: FlowState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FlowState {
    Copying,
    /// All is read; it is being delivered, then the end is passed on.
    Finishing,
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
                FlowState::Finishing => {
                    let finished = ready!(to.poll_finish(cx, &mut scratch.cipher));
                    self.state = FlowState::Done;
                    match finished {
                        // The peer has closed both ways already.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        finished => finished.map_err(|error| Broken::to(&error))?,
                    }
                }
                FlowState::Discarding { until_ms } => {
                    let over = meter.now_ms >= *until_ms;
                    if over || ready!(from.poll_discard(cx, &mut scratch.read)) {
                        self.state = FlowState::Done;
                    }
                }
                FlowState::Copying => {
                    ready!(to.poll_flush(cx)).map_err(|error| Broken::to(&error))?;
                    let payload =
                        ready!(from.poll_receive(cx, &mut scratch.read)).map_err(Broken::from)?;
                    if !payload.is_empty() {
                        meter.bytes.set(meter.bytes.get() + payload.len() as u64);
                        meter.connection.active_at.set(meter.now_ms);
                        to.send(cx, payload, &mut scratch.cipher)
                            .map_err(|error| Broken::to(&error))?;
                    }
                    if from.ended() {
                        self.state = FlowState::Finishing;
                    }
                }
            }
        }
        // Others get their turn; this direction goes on at once after them.
        cx.waker().wake_by_ref();
        Poll::Pending
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
pub fn relay<'a>(
    source: Socket,
    destination: Socket,
    connection: &'a Rc<Connection>,
    worker: &'a Worker,
) -> impl Future<Output = End> + 'a {
    // No async function, which would keep room for its arguments beside what it makes of them.
    let mut relay = Relay {
        source: among_many(source, worker),
        destination: among_many(destination, worker),
        up: Flow::new(),
        down: Flow::new(),
        first_to_end: None,
        connection,
        worker,
    };
    connection.active_at.set(worker.now_ms());
    poll_fn(move |cx| relay.poll(cx))
}

/// Open connections of the process from which on the kernel keeps less for each to send.
const MANY: usize = 1024;
/// So much.
const UNSENT_AMONG_MANY: u32 = 64 * 1024;

fn among_many(mut socket: Socket, worker: &Worker) -> Socket {
    if worker.shared.open.load(Ordering::Relaxed) > MANY {
        socket.send_at_most(UNSENT_AMONG_MANY);
    }
    socket
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Some(reason) = self.connection.close.get() {
            return Poll::Ready(self.closed_by_proxy(reason));
        }
        self.connection.remember_waker(cx);
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
                    if !self.down.done() && !broken.after_its_end {
                        self.destination.mark_broken();
                    }
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
                    if !self.up.done() && !broken.after_its_end {
                        self.source.mark_broken();
                    }
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
            reason => self.connection.why(reason),
        }
    }
}

/// One end broke: the other learns it by a reset, unless all that was sent to it has ended cleanly before.
fn abort(to: &Socket, flow: &Flow) {
    if !flow.done() {
        to.reset_on_close();
    }
}

#[cfg(test)]
mod tests;
