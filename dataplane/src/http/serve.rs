//! Connections of callers: which version of HTTP they speak, and their requests, one by one or many at once.

use std::{
    cell::RefCell,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header, uri::PathAndQuery};
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    body::{Body, Pump},
    flood::{Manners, Offence},
    h1::{H1, ReadMessageError, SharedH1, head},
    h2io::{H2Io, poll_uncork},
    message::{Length, RequestHead, Version},
    pool::{CONNECTION_WINDOW, SEND_BUFFER},
    reply::{Answer, H1Reply, Reply},
    request::{self, Call},
    room::{NO_ROOM, Window},
    side::Side,
};
use crate::{
    config::{HttpTimeouts, Timeout},
    record::{ClosedBy, Connection, End, Limit, Outcome, Reason},
    socket::Socket,
    workers::Worker,
};

/// What a connection of HTTP/2 begins with (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a peer that has been told the end is read and thrown away, so that it can read what it was sent.
const LINGER: Duration = Duration::from_secs(5);
/// How long an idle connection that drains waits for one more request, whose answer says that it is the last: closing at once would
/// meet requests that are on their way.
const LAST_WORD: Duration = Duration::from_secs(2);
/// Requests under way at once on a connection from another sidecar, which carries those of many callers.
const STREAMS_OF_PEERS: u32 = 4096;
/// Streams that a caller may reset before they are looked at. One that does more is making work for nothing (rapid reset).
const RESETS_OF_CALLERS: usize = 64;
/// When many callers leave at once, their sidecar resets as many streams on the one connection they share.
const RESETS_OF_PEERS: usize = 4096;

/// What small DATA frames of a caller that nobody has read yet may take beside their payload, in bytes: enough for several streams of
/// small messages that have come to a stop. One that sends more of them is filling memory.
const OVERHEAD_OF_CALLERS: usize = 8 * 1024 * 1024;
/// The same for many callers' streams on one connection.
const OVERHEAD_OF_PEERS: usize = 32 * 1024 * 1024;

/// What all requests of one connection have in common.
#[derive(Clone)]
pub struct Caller {
    /// Its worker.
    pub worker: Rc<Worker>,
    /// Which way requests go.
    pub side: Rc<Side>,
    /// The connection.
    pub connection: Rc<Connection>,
    /// It comes from another sidecar.
    pub is_peer: bool,
}

/// Serves a connection, and says how it ended.
pub async fn serve(caller: &Caller, mut socket: Socket) -> End {
    socket.watched_by(&caller.worker);
    let opened = Instant::now();
    let first = first_bytes(caller, &mut socket).await;
    let (is_h2, buffer) = match first {
        Ok(first) => first,
        Err(end) => return end,
    };
    let timeouts = caller.side.timeouts(&caller.worker.shared.snapshot.load());
    let ends_at = timeouts.max_connection.limit.map(|limit| opened + limit);
    if is_h2 {
        Box::pin(serve_h2(caller, socket, buffer, ends_at)).await
    } else {
        let meter = Some(caller.connection.clone());
        let connection = H1::new(socket, buffer, caller.worker.clone(), meter).shared();
        serve_h1(caller, &connection, ends_at).await
    }
}

fn completed(by: ClosedBy) -> End {
    End {
        outcome: Outcome::Completed,
        reason: Reason::None,
        closed_by: by,
        detail: String::new(),
    }
}

/// Reads until it is clear whether HTTP/2 is spoken.
async fn first_bytes(caller: &Caller, socket: &mut Socket) -> Result<(bool, BytesMut), End> {
    let mut buffer = BytesMut::new();
    let worker = &caller.worker;
    let reading = poll_fn(|cx| {
        loop {
            let known = buffer.len().min(PREFACE.len());
            if buffer[..known] != PREFACE[..known] {
                return Poll::Ready(Ok(false));
            }
            if known == PREFACE.len() {
                return Poll::Ready(Ok(true));
            }
            let mut scratch = worker.scratch.borrow_mut();
            match socket.poll_receive(cx, &mut scratch.read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok([])) if socket.ended() => {
                    return Poll::Ready(Err(completed(ClosedBy::Source)));
                }
                Poll::Ready(Ok(payload)) => {
                    let meter = &caller.connection;
                    meter.sent.set(meter.sent.get() + payload.len() as u64);
                    meter.active_at.set(worker.now_ms());
                    buffer.extend_from_slice(payload);
                }
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(End::failed(
                        error.reason,
                        ClosedBy::Source,
                        error.detail,
                    )));
                }
            }
        }
    });
    match caller.connection.unless_closed(reading).await {
        Ok(Ok(is_h2)) => Ok((is_h2, buffer)),
        Ok(Err(end)) => Err(end),
        Err(reason) => Err(caller.connection.closed(reason)),
    }
}

/// What comes next on a connection of HTTP/1.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are requests, and a box would be one more allocation for each"
)]
enum NextRequest {
    Request(head::ParsedRequest),
    /// The caller has ended.
    Ended,
    /// The proxy takes no more on this connection.
    Enough(Reason),
    /// The head did not come in time.
    Slow(Timeout),
    Failed(ReadMessageError),
}

async fn serve_h1(caller: &Caller, connection: &SharedH1, ends_at: Option<Instant>) -> End {
    loop {
        let next = next_request(caller, connection, ends_at).await;
        let parsed = match next {
            NextRequest::Request(parsed) => parsed,
            NextRequest::Ended => return completed(ClosedBy::Source),
            NextRequest::Enough(reason) => {
                finish(connection).await;
                return caller.connection.closed(reason);
            }
            NextRequest::Slow(limit) => {
                let detail = format!(
                    "no whole request within {}",
                    Limit(limit.limit.unwrap_or_default(), &limit.origin)
                );
                refuse(
                    caller,
                    connection,
                    StatusCode::REQUEST_TIMEOUT,
                    Reason::HeadersTimeout,
                    &detail,
                )
                .await;
                return End::closed(Reason::HeadersTimeout, detail);
            }
            NextRequest::Failed(ReadMessageError::Bad(bad)) => {
                let detail = bad.to_string();
                refuse(
                    caller,
                    connection,
                    bad.status(),
                    Reason::BadRequest,
                    &detail,
                )
                .await;
                return End::refused(Reason::BadRequest, detail);
            }
            NextRequest::Failed(ReadMessageError::NoRoom) => {
                let detail = NO_ROOM;
                let status = StatusCode::SERVICE_UNAVAILABLE;
                refuse(caller, connection, status, Reason::RequestLimit, detail).await;
                return End::refused(Reason::RequestLimit, detail);
            }
            NextRequest::Failed(ReadMessageError::Truncated) => {
                let detail = "the caller ended in the midst of a request";
                return End::failed(Reason::Truncated, ClosedBy::Source, detail);
            }
            NextRequest::Failed(ReadMessageError::Socket(error)) => {
                return End::failed(error.reason, ClosedBy::Source, error.detail);
            }
        };
        let call = call_of_h1(caller, connection, parsed, ends_at);
        let serving = pin!(request::serve(
            &caller.worker,
            &caller.side,
            &caller.connection,
            call
        ));
        if let Err(reason) = caller.connection.unless_closed(serving).await {
            // Whoever waits for the rest of an answer must not take what has come for the whole.
            connection.borrow_mut().break_off();
            return caller.connection.closed(reason);
        }
        let may_go_on = connection.borrow().may_go_on();
        if !may_go_on {
            finish(connection).await;
            return completed(ClosedBy::Proxy);
        }
    }
}

fn call_of_h1(
    caller: &Caller,
    connection: &SharedH1,
    parsed: head::ParsedRequest,
    ends_at: Option<Instant>,
) -> Call {
    let head = parsed.head;
    let leaves = caller.connection.draining.get()
        || ends_at.is_some_and(|ends_at| Instant::now() >= ends_at);
    let tunnel = head
        .upgrade
        .as_ref()
        .map(|_| Body::H1(connection.clone(), Length::Unknown));
    let body = match parsed.framing {
        head::Framing::None | head::Framing::UntilClose => Body::Empty,
        head::Framing::Chunked => Body::H1(connection.clone(), Length::Unknown),
        // A body that has come with the head can be sent a second time.
        head::Framing::Length(length) => match connection.borrow_mut().take_whole_body() {
            Some(whole) => Body::Whole(whole),
            None => Body::H1(connection.clone(), Length::Known(length)),
        },
    };
    let reply = H1Reply {
        connection: connection.clone(),
        version: head.version,
        is_head: head.method == Method::HEAD,
        // Whoever is answered before the body has come, as one that waits for a 100 may be, is told that no more is taken then.
        keep_alive: parsed.keep_alive && !leaves,
        key: match &tunnel {
            Some(_) => head.headers.get(header::SEC_WEBSOCKET_KEY).cloned(),
            None => None,
        },
    };
    Call {
        head,
        body,
        tunnel,
        reply: Reply::H1(reply),
    }
}

/// Waits for the next request, as long as the connection may be idle; once it has begun, as long as a head may take.
async fn next_request(
    caller: &Caller,
    connection: &SharedH1,
    ends_at: Option<Instant>,
) -> NextRequest {
    let mut head_timer = None;
    let mut drain_timer = None;
    let mut end_timer = ends_at.map(|ends_at| Box::pin(sleep_until(ends_at)));
    let waiting = poll_fn(|cx| {
        let mut h1 = connection.borrow_mut();
        match h1.poll_request(cx) {
            Poll::Ready(Ok(Some(parsed))) => {
                return Poll::Ready(NextRequest::Request(parsed));
            }
            Poll::Ready(Ok(None)) => return Poll::Ready(NextRequest::Ended),
            Poll::Ready(Err(error)) => return Poll::Ready(NextRequest::Failed(error)),
            Poll::Pending => {}
        }
        if h1.is_drained() {
            if caller.connection.draining.get() {
                let timer = drain_timer
                    .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LAST_WORD)));
                if timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(NextRequest::Enough(Reason::Drained));
                }
            }
            if let Some(timer) = &mut end_timer
                && timer.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(NextRequest::Enough(Reason::ConnectionTooOld));
            }
            h1.rest();
            return Poll::Pending;
        }
        let (timer, limit) = head_timer.get_or_insert_with(|| {
            let limit = headers_limit(caller);
            let timer = sleep_until(Instant::now() + limit.limit.unwrap_or_default());
            (Box::pin(timer), limit)
        });
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(NextRequest::Slow(limit.clone())),
            Poll::Pending => Poll::Pending,
        }
    });
    match caller.connection.unless_closed(waiting).await {
        Ok(next) => next,
        Err(reason) => NextRequest::Enough(reason),
    }
}

/// How long a head may take: what the policies say, else what this process does.
fn headers_limit(caller: &Caller) -> Timeout {
    let timeouts: Arc<HttpTimeouts> = caller.side.timeouts(&caller.worker.shared.snapshot.load());
    match timeouts.request_headers.limit {
        Some(_) => timeouts.request_headers.clone(),
        None => Timeout {
            limit: Some(caller.worker.shared.limits.http.headers_timeout),
            origin: Arc::default(),
        },
    }
}

/// Answers what is no request, and ends.
async fn refuse(
    caller: &Caller,
    connection: &SharedH1,
    status: StatusCode,
    reason: Reason,
    detail: &str,
) {
    caller
        .worker
        .count_refused_request(&caller.connection, status, reason, detail);
    let reply = Reply::H1(H1Reply {
        connection: connection.clone(),
        version: Version::Http11,
        is_head: false,
        keep_alive: false,
        key: None,
    });
    let (head, bytes) = Answer::new(status, reason, detail).into_message(false);
    let length = Length::Known(bytes.len() as u64);
    if let Ok(sink) = reply.begin(head, length, true) {
        let mut pump = Pump::new(Body::Whole(bytes), sink);
        let _ = timeout(LINGER, poll_fn(|cx| pump.poll(cx))).await;
    }
    finish(connection).await;
}

/// Says the end, and reads for a moment what the caller still sends: closing with unread bytes would reset the connection, and
/// destroy what it has not read yet.
async fn finish(connection: &SharedH1) {
    let finishing = poll_fn(|cx| {
        let mut connection = connection.borrow_mut();
        if let Poll::Ready(Err(_)) = connection.poll_finish(cx) {
            return Poll::Ready(());
        }
        while let Poll::Ready(ended) = connection.poll_discard(cx) {
            if ended {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    });
    let _ = timeout(LINGER, finishing).await;
}

async fn serve_h2(
    caller: &Caller,
    socket: Socket,
    buffer: BytesMut,
    ends_at: Option<Instant>,
) -> End {
    let worker = &caller.worker;
    let socket = Rc::new(RefCell::new(socket));
    let meter = Some(caller.connection.clone());
    let manners = Manners::new(worker, PREFACE.len());
    let io = H2Io::new(socket.clone(), buffer, worker.clone(), meter, manners);
    let io = match caller.is_peer {
        true => io,
        false => io.of_one_caller(),
    };
    let limits = &worker.shared.limits.http;
    let (streams, resets, overhead) = if caller.is_peer {
        (STREAMS_OF_PEERS, RESETS_OF_PEERS, OVERHEAD_OF_PEERS)
    } else {
        (limits.streams, RESETS_OF_CALLERS, OVERHEAD_OF_CALLERS)
    };
    let mut window = Window::new(&worker.room);
    // A sidecar reads all that comes. A caller may say that it does.
    let send_buffer = match caller.is_peer {
        true => SEND_BUFFER,
        false => SEND_BUFFER.min(window.bytes() as usize),
    };
    let mut handshake = pin!(
        h2::server::Builder::new()
            .initial_window_size(window.bytes())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(send_buffer)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(streams)
            .max_pending_accept_reset_streams(resets)
            .max_concurrent_reset_streams(resets)
            .data_frame_budget(overhead)
            .enable_connect_protocol()
            .handshake::<_, Bytes>(io)
    );
    let shaking = poll_fn(|cx| {
        let polled = handshake.as_mut().poll(cx);
        uncork(&socket, worker, cx);
        polled
    });
    let limit = worker.shared.limits.handshake_timeout;
    let mut h2 = match caller
        .connection
        .unless_closed(pin!(timeout(limit, shaking)))
        .await
    {
        Ok(Ok(Ok(h2))) => h2,
        Ok(Ok(Err(error))) => {
            return End::failed(
                Reason::BadRequest,
                ClosedBy::Source,
                format!("HTTP/2: {error}"),
            );
        }
        Ok(Err(_)) => {
            let detail = "HTTP/2 did not begin in time";
            return End::failed(Reason::HandshakeTimeout, ClosedBy::Source, detail);
        }
        Err(reason) => return caller.connection.closed(reason),
    };
    let mut leaving = None;
    let mut end_timer = ends_at.map(|ends_at| Box::pin(sleep_until(ends_at)));
    let serving = poll_fn(|cx| {
        loop {
            window.follow(&worker.room, |each| {
                h2.set_initial_window_size(each).is_ok()
            });
            if leaving.is_none() {
                if caller.connection.draining.get() {
                    leaving = Some(Reason::Drained);
                } else if let Some(timer) = &mut end_timer
                    && timer.as_mut().poll(cx).is_ready()
                {
                    leaving = Some(Reason::ConnectionTooOld);
                }
                if leaving.is_some() {
                    h2.graceful_shutdown();
                }
            }
            match h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => accept(caller, request, respond),
                Poll::Ready(Some(Err(error))) => {
                    uncork(&socket, worker, cx);
                    return Poll::Ready(Some(error));
                }
                Poll::Ready(None) => {
                    uncork(&socket, worker, cx);
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    uncork(&socket, worker, cx);
                    return Poll::Pending;
                }
            }
        }
    });
    let ended = caller.connection.unless_closed(serving).await;
    match (ended, leaving) {
        (Err(reason), _) => caller.connection.closed(reason),
        (Ok(Some(error)), _) => {
            let (status, reason) = match Offence::of(&error) {
                None if error.is_io() => {
                    return End::failed(Reason::Reset, ClosedBy::Source, error);
                }
                None | Some(Offence::Flood) => (StatusCode::BAD_REQUEST, Reason::BadRequest),
                Some(Offence::NoRoom) => (StatusCode::SERVICE_UNAVAILABLE, Reason::RequestLimit),
            };
            let detail = format!("HTTP/2: {error}");
            worker.count_refused_request(&caller.connection, status, reason, &detail);
            End::refused(reason, detail)
        }
        (Ok(None), Some(reason)) => caller.connection.closed(reason),
        (Ok(None), None) => completed(ClosedBy::Source),
    }
}

/// What the connection has to say leaves now. An error comes again where h2 reads.
fn uncork(socket: &super::h2io::SharedSocket, worker: &Worker, cx: &mut Context<'_>) {
    let _ = poll_uncork(socket, worker, cx);
}

/// Begins a request of HTTP/2, in a task of its own.
fn accept(caller: &Caller, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let mut reply = Reply::H2 {
        is_head: *request.method() == Method::HEAD,
        respond,
    };
    match read_h2(request) {
        Ok((head, body, tunnel)) => {
            let call = Call {
                head,
                body,
                tunnel,
                reply,
            };
            let serving = request::serve(&caller.worker, &caller.side, &caller.connection, call);
            // In a box: the runtime moves what it is given several times.
            tokio::task::spawn_local(Box::pin(serving));
        }
        Err((status, what)) => {
            caller.worker.count_refused_request(
                &caller.connection,
                status,
                Reason::BadRequest,
                what,
            );
            let is_head = reply.is_head();
            let (head, bytes) = Answer::new(status, Reason::BadRequest, what).into_message(false);
            reply.close_after();
            let length = Length::Known(bytes.len() as u64);
            if let Ok(sink) = reply.begin(head, length, !is_head) {
                let mut pump = Pump::new(Body::Whole(bytes), sink);
                tokio::task::spawn_local(async move {
                    let _ = timeout(LINGER, poll_fn(|cx| pump.poll(cx))).await;
                });
            }
        }
    }
}

type ReadRequest = (RequestHead, Body, Option<Body>);

/// A request of HTTP/2 as the proxy handles it. h2 has refused what RFC 9113 calls malformed, fields of one hop among it.
fn read_h2(request: Request<RecvStream>) -> Result<ReadRequest, (StatusCode, &'static str)> {
    let (parts, stream) = request.into_parts();
    let mut headers = parts.headers;
    let protocol = parts.extensions.get::<h2::ext::Protocol>();
    let mut method = parts.method;
    let mut upgrade = None;
    if method == Method::CONNECT {
        let Some(protocol) = protocol else {
            return Err((
                StatusCode::METHOD_NOT_ALLOWED,
                "CONNECT is not allowed here",
            ));
        };
        method = Method::GET;
        upgrade = HeaderValue::from_str(protocol.as_str()).ok();
    }
    let host = take_host(&mut headers)?;
    let authority = parts.uri.authority().cloned().or(host);
    if authority
        .as_ref()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err((StatusCode::BAD_REQUEST, "the authority names a user"));
    }
    let path = parts.uri.path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    join_cookies(&mut headers);
    let length = match headers.get(header::CONTENT_LENGTH) {
        None => Length::Unknown,
        Some(length) => match head::content_length(length.as_bytes()) {
            Some(length) => Length::Known(length),
            None => return Err((StatusCode::BAD_REQUEST, "Content-Length is malformed")),
        },
    };
    let (body, tunnel) = match &upgrade {
        Some(_) => (Body::Empty, Some(Body::h2(stream, Length::Unknown))),
        None if stream.is_end_stream() => (Body::Empty, None),
        None => (Body::h2(stream, length), None),
    };
    let head = RequestHead {
        method,
        path,
        authority,
        headers,
        version: Version::Http2,
        upgrade,
    };
    Ok((head, body, tunnel))
}

fn take_host(
    headers: &mut HeaderMap,
) -> Result<Option<http::uri::Authority>, (StatusCode, &'static str)> {
    const MALFORMED: (StatusCode, &str) =
        (StatusCode::BAD_REQUEST, "Host is malformed, or there twice");
    let mut hosts = headers.get_all(header::HOST).iter();
    if hosts.next().is_none() {
        return Ok(None);
    }
    if hosts.next().is_some() {
        return Err(MALFORMED);
    }
    match headers.remove(header::HOST) {
        None => Ok(None),
        Some(host) => host.as_bytes().try_into().map(Some).map_err(|_| MALFORMED),
    }
}

/// HTTP/2 may send a cookie in pieces; elsewhere it is one field (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let (first, second) = (cookies.next(), cookies.next());
    if let (Some(first), Some(second)) = (first, second) {
        let mut joined = first.as_bytes().to_vec();
        for cookie in std::iter::once(second).chain(cookies) {
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(cookie.as_bytes());
        }
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            headers.insert(header::COOKIE, joined);
        }
    }
}
