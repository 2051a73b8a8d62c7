//! One request's way through the proxy: one function a step, in the order of the steps.
//!
//! | step | function |
//! | --- | --- |
//! | may it be here at all? | [`serve`] asks [`Side::admit`]: permission at an inbound, route and filters at an outbound |
//! | copies for others | [`mirror`] |
//! | a connection | [`Next::lease_waiting`](super::upstream::Next::lease_waiting): balance, pool; else [`Next::lease`](super::upstream::Next::lease): connect |
//! | the request goes, the answer's head comes | [`Exchange::ask`], again where that loses nothing |
//! | the answer goes back, both bodies flow | [`Exchange::answer`] |
//! | the connection goes back to the pool | [`give_back`] |
//!
//! Whatever happens, the record says who decided it.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use h2::Reason as H2Reason;
use http::StatusCode;
use tokio::time::{Instant, Sleep};

use super::{
    body::{Body, BodyError, Pump, PumpError},
    message::{RequestHead, ResponseHead, Version},
    record::{RequestRecord, SaidBy},
    reply::{Answer, REASON_HEADER, Reply},
    route::filter_answer,
    side::{Admitted, Side},
    upstream::{Answered, Arrived, Needs, Next, NoAnswer, Sent, UsedHop, send},
};
use crate::{
    config::{HttpTimeouts, Outstanding, Timeout},
    record::{Connection, End, Limit, Reason},
    snapshot::Snapshot,
    workers::Worker,
};

/// How often a request is sent at most, where the connections it was sent on were being closed.
const ATTEMPTS_MAX: u32 = 3;

/// A request as it came.
pub struct Call {
    /// Its head.
    pub head: RequestHead,
    /// Its body.
    pub body: Body,
    /// What the caller sends after an upgrade.
    pub tunnel: Option<Body>,
    /// The way back.
    pub reply: Reply,
}

/// A request under way: what the steps of its way need, in one place.
struct Exchange {
    worker: Rc<Worker>,
    snapshot: Arc<Snapshot>,
    side: Option<Rc<Side>>,
    admitted: Admitted,
    head: RequestHead,
    reply: Reply,
    record: RequestRecord,
    clock: Clock,
}

/// Serves one request, whatever becomes of it. Whether it may be here is decided at once, the rest as the future is polled.
pub fn serve(
    worker: &Rc<Worker>,
    side: &Rc<Side>,
    connection: &Rc<Connection>,
    mut call: Call,
) -> impl Future<Output = ()> + use<> {
    let mut record = RequestRecord::begin(worker, connection, &mut call.head);
    let snapshot = worker.shared.snapshot.load_full();
    let limits = &worker.shared.limits.http;
    let admitted = if worker.room.is_full_for(&call.head, limits) {
        let text = "too many requests are under way here";
        record.fail(SaidBy::Proxy, Reason::RequestLimit, text);
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Err(Box::new(Answer::new(status, Reason::RequestLimit, text)))
    } else {
        side.admit(worker, &snapshot, &mut call.head, &mut record)
    };
    let mut begun = match admitted {
        // Rare, and a request's future should be small.
        Err(refused) => Err(Box::new((record, call.reply, *refused))),
        Ok(admitted) => {
            let mut body = call.body;
            for to in &admitted.mirrors {
                body = mirror(
                    worker, &snapshot, connection, to, &call.head, body, &admitted,
                );
            }
            let exchange = Exchange {
                worker: worker.clone(),
                snapshot,
                side: Some(side.clone()),
                clock: Clock::new(&admitted.timeouts, record.started, &body),
                admitted,
                head: call.head,
                reply: call.reply,
                record,
            };
            Ok((exchange, Some(body), call.tunnel))
        }
    };
    // What follows keeps all of it where it is: each move of it would be a copy of a kilobyte.
    async move {
        match begun {
            Ok((ref mut exchange, ref mut body, ref mut tunnel)) => {
                let asked = exchange.ask(body.take().unwrap_or(Body::Empty)).await;
                match asked {
                    Ok(asked) => exchange.answer(asked, tunnel.take()).await,
                    Err(Failure::Answer(failed)) => {
                        let reply = std::mem::replace(&mut exchange.reply, Reply::Nobody);
                        Box::pin(say(&mut exchange.record, reply, *failed)).await;
                    }
                    Err(Failure::CallerGone) => {
                        let reply = std::mem::replace(&mut exchange.reply, Reply::Nobody);
                        reply.abort(H2Reason::CANCEL);
                    }
                }
            }
            Err(refused) => {
                let (mut record, reply, refused) = *refused;
                Box::pin(say(&mut record, reply, refused)).await;
            }
        }
    }
}

/// Answers in the name of the mesh.
async fn say(record: &mut RequestRecord, mut reply: Reply, answer: Answer) {
    record.status = Some(answer.status);
    reply.close_after_unread();
    let (head, bytes) = answer.into_message(record.is_grpc);
    record.note_grpc(&head.headers);
    let body = if bytes.is_empty() {
        Body::Empty
    } else {
        Body::Whole(bytes)
    };
    let has_body = !matches!(body, Body::Empty) && !reply.is_head();
    match reply.begin(head, body.length(), has_body) {
        Ok(sink) => {
            let mut pump = Pump::new(if has_body { body } else { Body::Empty }, sink);
            match poll_fn(|cx| pump.poll(cx)).await {
                Ok(()) => record.received = pump.moved,
                Err(PumpError::From(error) | PumpError::To(error)) => {
                    record.fail(SaidBy::Client, Reason::ClientGone, error.to_string());
                }
            }
        }
        Err(error) => record.fail(SaidBy::Client, Reason::ClientGone, error.to_string()),
    }
    record.done();
}

/// Why a request came to nothing.
enum Failure {
    /// The caller is told.
    Answer(Box<Answer>),
    /// There is nobody to tell.
    CallerGone,
}

/// A request whose answer has begun.
struct Asked {
    answered: Answered,
    upload: Pump,
    outstanding: Option<Outstanding>,
}

impl Exchange {
    /// Sends the request and waits for the head of its answer. Sends it again, on another connection, where the first was closed
    /// before a byte of the answer came and sending it twice means the same as once, or where it was not processed for certain.
    async fn ask(&mut self, body: Body) -> Result<Asked, Failure> {
        let head = &self.head;
        let (reply, record, clock) = (&mut self.reply, &mut self.record, &mut self.clock);
        let spare = body.copy_whole();
        let mut body = Some(body);
        let mut needs = Needs {
            prefers_h2: head.version == Version::Http2,
            own: head.upgrade.is_some(),
            fresh: spare.is_none() || !head.is_idempotent(),
            new: false,
        };
        let mut sleep = pin!(clock.sleep());
        loop {
            let next = &self.admitted.next;
            let leased = match next.lease_waiting(&self.worker, &self.snapshot, needs, record) {
                Ok(leased) => leased,
                Err(picked) => {
                    // In a box: rare, and large.
                    let leased = {
                        let leasing =
                            next.lease(&self.worker, &self.snapshot, needs, picked, record);
                        let mut leasing = Box::pin(leasing);
                        until(leasing.as_mut(), clock, sleep.as_mut(), reply, &mut body).await
                    };
                    match leased {
                        Ok(Ok(leased)) => leased,
                        Ok(Err(end)) => return Err(unreached(record, end)),
                        Err(cut) => return Err(cut_short(record, cut)),
                    }
                }
            };
            record
                .connected
                .get_or_insert_with(|| record.started.elapsed());
            record.attempts += 1;
            let outstanding = leased.outstanding;
            let going = body.take().unwrap_or(Body::Empty);
            let sending = pin!(send(&self.worker, leased.lease, head, going));
            let sent = until(sending, clock, sleep.as_mut(), reply, &mut body);
            let (failed, left) = match sent.await {
                Err(cut) => return Err(cut_short(record, cut)),
                Ok(Err(not_sent)) => *not_sent,
                Ok(Ok(mut sent)) => {
                    record.peer = sent.peer();
                    let arrived = poll_fn(|cx| {
                        poll_answer(cx, head, &mut sent, reply, clock, sleep.as_mut())
                    });
                    match arrived.await {
                        Ok(answered) => {
                            record.first_byte = Some(record.started.elapsed());
                            return Ok(Asked {
                                answered,
                                upload: sent.upload,
                                outstanding,
                            });
                        }
                        Err(Cut::NoAnswer(mut failed)) => {
                            if failed.stale && !head.is_idempotent() && spare.is_some() {
                                failed.unprocessed = Box::pin(sent.was_never_read()).await;
                            }
                            (failed, sent.upload.take_unmoved())
                        }
                        Err(cut) => {
                            sent.upload.abort(H2Reason::CANCEL);
                            return Err(cut_short(record, cut));
                        }
                    }
                }
            };
            body = spare.as_ref().and_then(Body::copy_whole).or(left);
            let again = failed.unprocessed || failed.stale && head.is_idempotent();
            if !again || body.is_none() || record.attempts >= ATTEMPTS_MAX {
                return Err(failed_upstream(record, failed));
            }
            tracing::debug!(
                detail = failed.detail,
                "a request is sent again: its connection was being closed"
            );
            needs.new = true;
        }
    }
}

/// What cuts a wait short.
enum Cut {
    NoAnswer(NoAnswer),
    /// A time-out: what it is about, and which.
    Time(Reason, Timeout),
    CallerGone(String),
    /// The caller's body is not what it should be.
    BadBody(String),
}

/// Waits for `future`, but not longer than the clock lets it, nor for a caller that has gone. The body waits meanwhile.
async fn until<T>(
    mut future: Pin<&mut impl Future<Output = T>>,
    clock: &mut Clock,
    mut sleep: Pin<&mut Sleep>,
    reply: &mut Reply,
    body: &mut Option<Body>,
) -> Result<T, Cut> {
    poll_fn(|cx| {
        if let Poll::Ready(done) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        if let Some(body) = body {
            body.collect(cx);
        }
        poll_cut(cx, clock, sleep.as_mut(), Passed::default(), reply).map(Err)
    })
    .await
}

/// The request's body goes, and the head of the answer comes.
fn poll_answer(
    cx: &mut Context<'_>,
    head: &RequestHead,
    sent: &mut Sent,
    reply: &mut Reply,
    clock: &mut Clock,
    sleep: Pin<&mut Sleep>,
) -> Poll<Result<Answered, Cut>> {
    if let Poll::Ready(Err(PumpError::From(error))) = sent.upload.poll(cx) {
        return Poll::Ready(Err(Cut::BadBody(error.to_string())));
        // Where the next hop takes no more of it, its answer says why.
    }
    loop {
        match sent.poll_arrived(cx, head) {
            Poll::Ready(Ok(Arrived::Interim(head))) => {
                if let Err(failed) = sent.note_interim() {
                    return Poll::Ready(Err(Cut::NoAnswer(failed)));
                }
                reply.inform(&head);
                reply.poll_flush(cx);
            }
            Poll::Ready(Ok(Arrived::Answer(answered))) => return Poll::Ready(Ok(answered)),
            Poll::Ready(Err(failed)) => return Poll::Ready(Err(Cut::NoAnswer(failed))),
            Poll::Pending => break,
        }
    }
    let passed = Passed::of(&sent.upload, 0);
    poll_cut(cx, clock, sleep, passed, reply).map(Err)
}

/// Ready once a limit is over, or nobody waits for the answer any more.
fn poll_cut(
    cx: &mut Context<'_>,
    clock: &mut Clock,
    sleep: Pin<&mut Sleep>,
    passed: Passed,
    reply: &mut Reply,
) -> Poll<Cut> {
    if let Poll::Ready((reason, timeout)) = clock.poll(cx, sleep, passed) {
        return Poll::Ready(Cut::Time(reason, timeout));
    }
    reply
        .poll_gone(cx)
        .map(|error| Cut::CallerGone(error.to_string()))
}

/// Which limit was over, and whose it is, for the record.
fn over(reason: Reason, timeout: &Timeout) -> String {
    let limit = timeout.limit.unwrap_or_default();
    format!("{reason} {}", Limit(limit, &timeout.origin))
}

fn unreached(record: &mut RequestRecord, end: End) -> Failure {
    let text = format!("{} can not be reached: {}", record.destination, end.reason);
    record.fail(SaidBy::Proxy, end.reason, end.detail);
    let status = match end.reason {
        Reason::ConnectTimeout => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    Failure::Answer(Box::new(Answer::new(status, end.reason, text)))
}

fn failed_upstream(record: &mut RequestRecord, failed: NoAnswer) -> Failure {
    let text = format!("{} gave no answer: {}", record.destination, failed.reason);
    let said_by = match failed.reason {
        Reason::RequestLimit => SaidBy::Proxy,
        _ => SaidBy::Upstream,
    };
    record.fail(said_by, failed.reason, failed.detail);
    let status = match failed.reason {
        Reason::RefusedByPeer => StatusCode::FORBIDDEN,
        Reason::RequestLimit => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    };
    Failure::Answer(Box::new(Answer::new(status, failed.reason, text)))
}

fn cut_short(record: &mut RequestRecord, cut: Cut) -> Failure {
    match cut {
        Cut::NoAnswer(failed) => failed_upstream(record, failed),
        Cut::Time(reason, timeout) => {
            let limit = timeout.limit.unwrap_or_default();
            let text = format!(
                "{} took longer than {}",
                record.destination,
                Limit(limit, "")
            );
            record.fail(SaidBy::Policy, reason, over(reason, &timeout));
            Failure::Answer(Box::new(Answer::new(
                StatusCode::GATEWAY_TIMEOUT,
                reason,
                text,
            )))
        }
        Cut::CallerGone(detail) => {
            record.fail(SaidBy::Client, Reason::ClientGone, detail);
            Failure::CallerGone
        }
        Cut::BadBody(detail) => {
            record.fail(SaidBy::Client, Reason::BadRequest, detail);
            let text = "the body of the request is malformed, or did not come whole";
            let answer = Answer::new(StatusCode::BAD_REQUEST, Reason::BadRequest, text);
            Failure::Answer(Box::new(answer))
        }
    }
}

impl Exchange {
    /// The answer goes back, and what is left of both bodies flows.
    async fn answer(&mut self, asked: Asked, tunnel: Option<Body>) {
        let Asked {
            answered,
            mut upload,
            outstanding: _under_way,
        } = asked;
        let (mut download, hop, is_tunnel) = match self.begin_answer(answered, &mut upload, tunnel)
        {
            Ok(begun) => begun,
            Err(error) => {
                let detail = error.to_string();
                self.record.fail(SaidBy::Client, Reason::ClientGone, detail);
                upload.abort(H2Reason::CANCEL);
                return;
            }
        };
        let flowed = {
            let clock = &mut self.clock;
            let mut sleep = pin!(clock.sleep());
            poll_fn(|cx| {
                let up = upload.poll(cx);
                let down = download.poll(cx);
                match (up, down) {
                    (_, Poll::Ready(Err(error))) => return Poll::Ready(Err(Broken::Down(error))),
                    (Poll::Ready(Err(error)), _) if is_tunnel => {
                        return Poll::Ready(Err(Broken::Up(error)));
                    }
                    // An answer may end before the request has: nobody wants the rest.
                    (up, Poll::Ready(Ok(()))) if !is_tunnel || up.is_ready() => {
                        return Poll::Ready(Ok(()));
                    }
                    (Poll::Ready(Err(PumpError::From(error))), _) => {
                        return Poll::Ready(Err(Broken::Up(PumpError::From(error))));
                    }
                    _ => {}
                }
                let passed = Passed::of(&upload, download.moved);
                match clock.poll(cx, sleep.as_mut(), passed) {
                    Poll::Ready((reason, timeout)) => {
                        Poll::Ready(Err(Broken::Time(reason, timeout)))
                    }
                    Poll::Pending => Poll::Pending,
                }
            })
            .await
        };
        let record = &mut self.record;
        record.sent = upload.moved;
        record.received = download.moved;
        if let Some(trailers) = &download.trailers {
            record.note_grpc(trailers);
        }
        match flowed {
            Ok(()) => {
                if upload.is_done() {
                    give_back(&self.worker, hop);
                } else {
                    upload.abort(H2Reason::NO_ERROR);
                }
            }
            Err(broken) => {
                let (said_by, reason, detail) = broken.explain();
                record.fail(said_by, reason, detail);
                upload.abort(H2Reason::CANCEL);
                download.abort(match said_by {
                    SaidBy::Client => H2Reason::CANCEL,
                    _ => H2Reason::INTERNAL_ERROR,
                });
                if let UsedHop::H1 { lease, .. } = hop {
                    lease.connection.borrow_mut().break_off();
                }
            }
        }
        record.done();
    }

    /// The head of the answer goes back. Gives what moves its body, what becomes of the connection it came on, and whether both
    /// sides go on with another protocol.
    fn begin_answer(
        &mut self,
        answered: Answered,
        upload: &mut Pump,
        tunnel: Option<Body>,
    ) -> Result<(Pump, UsedHop, bool), BodyError> {
        let Answered {
            mut head,
            body,
            has_body,
            hop,
            tunnel: tunnel_to,
        } = answered;
        if let Some(side) = &self.side {
            side.look_at_answer(&mut head, &mut self.record);
        }
        if let Some(rule) = &self.admitted.rule {
            filter_answer(rule, &mut head.headers);
        }
        self.record.status = Some(head.status);
        self.record.note_grpc(&head.headers);
        let is_tunnel = head.upgrade.is_some();
        let mut reply = std::mem::replace(&mut self.reply, Reply::Nobody);
        if let (Some(_), Some(from), Some(to)) = (&head.upgrade, tunnel, tunnel_to) {
            reply.upgrade(&mut head);
            *upload = Pump::new(from, to);
            // How long a conversation may take is not for the time-out of a request to say.
            self.clock.request = Timeout::default();
        }
        if !upload.is_done() {
            // The caller's next request would be searched for in the rest of this one's body.
            reply.close_after();
        }
        let sink = reply.begin(head, body.length(), has_body)?;
        Ok((Pump::new(body, sink), hop, is_tunnel))
    }
}

/// Why bodies stopped flowing.
enum Broken {
    Up(PumpError),
    Down(PumpError),
    Time(Reason, Timeout),
}

impl Broken {
    fn explain(self) -> (SaidBy, Reason, String) {
        match self {
            Self::Up(PumpError::From(error)) | Self::Down(PumpError::To(error)) => {
                (SaidBy::Client, Reason::ClientGone, error.to_string())
            }
            Self::Up(PumpError::To(error)) | Self::Down(PumpError::From(error)) => {
                (SaidBy::Upstream, Reason::Truncated, error.to_string())
            }
            Self::Time(reason, timeout) => (SaidBy::Policy, reason, over(reason, &timeout)),
        }
    }
}

/// The connection may carry the next request, where both of its messages have ended.
fn give_back(worker: &Rc<Worker>, hop: UsedHop) {
    if let UsedHop::H1 {
        key,
        lease,
        keep_alive: true,
        idle_seconds,
    } = hop
        && lease.connection.borrow().is_between_messages()
    {
        worker.pool.give_back(worker, key, lease, idle_seconds);
    }
}

/// Sends a copy of the request to `to`, and gives back the body, of which the copy gets what flows.
fn mirror(
    worker: &Rc<Worker>,
    snapshot: &Arc<Snapshot>,
    connection: &Rc<Connection>,
    to: &Arc<crate::snapshot::ServiceRoute>,
    head: &RequestHead,
    body: Body,
    admitted: &Admitted,
) -> Body {
    let Next::Service { own_zone, .. } = &admitted.next else {
        return body; // Only what goes to services is copied.
    };
    let (body, copy) = body.tee();
    let mut head = head.clone();
    let mut record = RequestRecord::begin(worker, connection, &mut head);
    record.mirrored = true;
    record.destination = to.service.name.clone();
    record.route.clone_from(&admitted.origin);
    let admitted = Admitted {
        next: Next::Service {
            route: to.clone(),
            own_zone: own_zone.clone(),
        },
        rule: None,
        mirrors: Vec::new(),
        timeouts: admitted.timeouts.clone(),
        origin: admitted.origin.clone(),
    };
    let mut exchange = Exchange {
        worker: worker.clone(),
        snapshot: snapshot.clone(),
        side: None,
        clock: Clock::new(&admitted.timeouts, record.started, &copy),
        admitted,
        head,
        reply: Reply::Nobody,
        record,
    };
    tokio::task::spawn_local(async move {
        if let Ok(asked) = exchange.ask(copy).await {
            exchange.record.status = Some(asked.answered.head.status);
            // The answer is read to its end, so that the connection can be used again, and thrown away.
            let (mut upload, mut body) = (asked.upload, asked.answered.body);
            let clock = &mut exchange.clock;
            let mut sleep = pin!(clock.sleep());
            let read = poll_fn(|cx| {
                let _ = upload.poll(cx);
                loop {
                    match body.poll_next(cx) {
                        Poll::Ready(Some(Ok(_))) => {}
                        Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                        Poll::Ready(None) => return Poll::Ready(true),
                        Poll::Pending => break,
                    }
                }
                let passed = Passed::of(&upload, 0);
                clock.poll(cx, sleep.as_mut(), passed).map(|_| false)
            })
            .await;
            if read && upload.is_done() {
                give_back(&exchange.worker, asked.answered.hop);
            }
        }
        exchange.record.done();
    });
    body
}

/// Watches over how long a request takes. One timer for all limits, set to the nearest.
pub struct Clock {
    started: Instant,
    /// When all of the request had come. An upload may take its time: how long an answer may take is counted from here.
    asked: Option<Instant>,
    request: Timeout,
    max_stream: Timeout,
    idle: Timeout,
    moved: u64,
    moved_at: Instant,
}

/// What has passed of a request and its answer.
#[derive(Debug, Clone, Copy, Default)]
struct Passed {
    bytes: u64,
    /// All of the request has.
    asked: bool,
}

impl Passed {
    fn of(upload: &Pump, answered: u64) -> Self {
        Self {
            bytes: upload.moved + answered,
            asked: upload.is_done(),
        }
    }
}

impl Clock {
    /// For a request whose head had been read at `started`, with a body to come.
    #[must_use]
    pub fn new(timeouts: &HttpTimeouts, started: std::time::Instant, body: &Body) -> Self {
        let now = Instant::from_std(started);
        let has_come = matches!(body, Body::Empty | Body::Whole(_));
        Self {
            started: now,
            asked: has_come.then_some(now),
            request: timeouts.request.clone(),
            max_stream: timeouts.max_stream.clone(),
            idle: timeouts.stream_idle.clone(),
            moved: 0,
            moved_at: now,
        }
    }

    /// The timer that [`Self::poll`] is given.
    pub fn sleep(&self) -> Sleep {
        tokio::time::sleep_until(self.nearest())
    }

    fn nearest(&self) -> Instant {
        let from = |start: Instant, timeout: &Timeout| timeout.limit.map(|limit| start + limit);
        [
            self.asked.and_then(|asked| from(asked, &self.request)),
            from(self.started, &self.max_stream),
            from(self.moved_at, &self.idle),
        ]
        .into_iter()
        .flatten()
        .min()
        // For ever, as far as tokio goes.
        .unwrap_or_else(|| self.started + Duration::from_secs(86_400 * 365))
    }

    /// Ready once a limit is over: why, and which.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut sleep: Pin<&mut Sleep>,
        passed: Passed,
    ) -> Poll<(Reason, Timeout)> {
        if passed.bytes != self.moved {
            self.moved = passed.bytes;
            self.moved_at = Instant::now();
        }
        if passed.asked && self.asked.is_none() {
            self.asked = Some(Instant::now());
            sleep.as_mut().reset(self.nearest());
        }
        while sleep.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let over = |start: Instant, timeout: &Timeout| {
                timeout.limit.is_some_and(|limit| now >= start + limit)
            };
            if self.asked.is_some_and(|asked| over(asked, &self.request)) {
                return Poll::Ready((Reason::RequestTimeout, self.request.clone()));
            }
            if over(self.started, &self.max_stream) {
                return Poll::Ready((Reason::StreamTooLong, self.max_stream.clone()));
            }
            if over(self.moved_at, &self.idle) {
                return Poll::Ready((Reason::StreamIdle, self.idle.clone()));
            }
            sleep.as_mut().reset(self.nearest());
        }
        Poll::Pending
    }
}

/// What the other side of a mesh hop says of why it answered itself.
#[must_use]
pub fn reason_of(head: &ResponseHead) -> Option<Reason> {
    Reason::of(head.headers.get(REASON_HEADER)?.to_str().ok()?)
}
