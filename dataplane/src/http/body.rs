//! Bodies on their way through: from whichever connection they come to whichever they go, as they come, with back-pressure.
//!
//! A [`Pump`] takes a part from a [`Body`] only where its [`Sink`] has room, and the peer that sends is given room (HTTP/2) or read
//! (HTTP/1) only then, so that a slow reader slows its writer and nothing is kept here but what one of them may have under way.
//!
//! h2 keeps frames as they come, and a frame of one byte takes some hundred: while a body can not be passed on, it is taken from there
//! ([`Body::collect`]) and small pieces are put together, so that what waits takes little more than what its sender was told it may send.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use h2::{Reason as H2Reason, RecvStream, SendStream};
use http::HeaderMap;

use super::{
    flood::SMALL,
    h1::SharedH1,
    message::{Length, strip_trailers},
};

/// A part of a body.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Part {
    Data(Bytes),
    /// The last part, where there are any. In a box: most bodies have none, and a part should be small.
    Trailers(Box<HeaderMap>),
}

/// Why a body does not come to its end.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BodyError {
    /// The sender does not speak HTTP as it should.
    #[error("{0}")]
    Malformed(&'static str),
    /// The connection (or stream) broke.
    #[error("{0}")]
    Closed(String),
    /// The sender has reset the stream.
    #[error("the stream was reset: {0}")]
    Reset(H2Reason),
}

/// A body that comes.
pub enum Body {
    /// There is none.
    Empty,
    /// All of it is here.
    Whole(Bytes),
    /// Over HTTP/1.
    H1(SharedH1, Length),
    /// Over HTTP/2.
    H2(H2Body),
    /// One that somebody gets a copy of.
    Copied(Box<Body>, Copier),
    /// The copy.
    Copy(Rc<RefCell<Copied>>, Length),
}

/// A body that comes over HTTP/2.
pub struct H2Body {
    stream: RecvStream,
    length: Length,
    /// What has been taken from h2, whose sender has not been told that it may send as much again.
    collected: Option<Box<Collected>>,
}

/// What has come of a body and waits, in few pieces.
#[derive(Debug, Default)]
struct Collected {
    pieces: VecDeque<Bytes>,
    /// Small pieces, put together.
    small: BytesMut,
    bytes: usize,
    broken: Option<BodyError>,
}

/// A piece of so many bytes is kept as it is. A smaller one is copied, since it would keep the buffer that it was read into.
const PIECE_MIN: usize = SMALL as usize;

impl Collected {
    fn put(&mut self, data: Bytes) {
        self.bytes += data.len();
        if data.len() < PIECE_MIN {
            self.small.extend_from_slice(&data);
            if self.small.len() < PIECE_MIN {
                return;
            }
        }
        if !self.small.is_empty() {
            self.pieces.push_back(self.small.split().freeze());
        }
        if data.len() >= PIECE_MIN {
            self.pieces.push_back(data);
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let data = match self.pieces.pop_front() {
            Some(piece) => piece,
            None if self.small.is_empty() => return None,
            None => self.small.split().freeze(),
        };
        self.bytes -= data.len();
        Some(data)
    }
}

impl H2Body {
    fn collect(&mut self, cx: &mut Context<'_>) {
        while self.collected.as_ref().is_none_or(|c| c.broken.is_none()) {
            match self.stream.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => self.collected.get_or_insert_default().put(data),
                Poll::Ready(Some(Err(error))) => {
                    self.collected.get_or_insert_default().broken = Some(stream_error(&error));
                }
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let data = match &mut self.collected {
            None => None,
            Some(collected) => match collected.take() {
                Some(data) => Some(data),
                None => match self.collected.take().and_then(|c| c.broken) {
                    Some(error) => return Poll::Ready(Some(Err(error))),
                    None => None,
                },
            },
        };
        let data = match data {
            Some(data) => data,
            None => match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => data,
                Some(Err(error)) => return Poll::Ready(Some(Err(stream_error(&error)))),
                None => return Poll::Ready(None),
            },
        };
        // The sender may send as much again: a pump asks only where there is room.
        let _ = self.stream.flow_control().release_capacity(data.len());
        Poll::Ready(Some(Ok(data)))
    }
}

/// What has come of a body and not been taken by the reader of its copy.
#[derive(Default)]
pub struct Copied {
    data: Collected,
    trailers: Option<Box<HeaderMap>>,
    ended: bool,
    /// The reader was too slow, or the body broke: there is no whole copy.
    lost: bool,
    reader: Option<Waker>,
}

/// Bytes of a body that may wait for the reader of its copy. Nobody waits for a copy, so one that can not keep up is given up.
const COPIED_MAX: usize = 1024 * 1024;

impl Copied {
    fn put(&mut self, part: Option<Part>) {
        match part {
            Some(Part::Data(data)) => {
                self.data.put(data);
                if self.data.bytes > COPIED_MAX {
                    self.lose();
                }
            }
            Some(Part::Trailers(trailers)) => self.trailers = Some(trailers),
            None => self.ended = true,
        }
        self.wake();
    }

    fn lose(&mut self) {
        self.lost = true;
        self.data = Collected::default();
        self.trailers = None;
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Body {
    /// What comes on `stream`, and has `length`.
    #[must_use]
    pub fn h2(stream: RecvStream, length: Length) -> Self {
        Self::H2(H2Body {
            stream,
            length,
            collected: None,
        })
    }

    /// It can not be passed on at the moment. What has come is put together, as is what comes later, where this is called when the
    /// task is woken.
    pub fn collect(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::H2(body) => body.collect(cx),
            Self::Copied(body, _) => body.collect(cx),
            // Of HTTP/1 no more is read, and the rest is whole.
            Self::Empty | Self::Whole(_) | Self::H1(..) | Self::Copy(..) => {}
        }
    }

    /// How long it is.
    #[must_use]
    pub fn length(&self) -> Length {
        match self {
            Self::Empty => Length::Known(0),
            Self::Whole(bytes) => Length::Known(bytes.len() as u64),
            Self::H1(_, length) | Self::Copy(_, length) => *length,
            Self::H2(body) => body.length,
            Self::Copied(body, _) => body.length(),
        }
    }

    /// True where there is none, or all of it is here, so that it can be sent a second time.
    #[must_use]
    pub fn copy_whole(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Whole(bytes) => Some(Self::Whole(bytes.clone())),
            Self::H1(..) | Self::H2(..) | Self::Copied(..) | Self::Copy(..) => None,
        }
    }

    /// The body, and a copy that gets what comes as it is taken from the first.
    #[must_use]
    pub fn tee(self) -> (Self, Self) {
        if let Some(copy) = self.copy_whole() {
            return (self, copy);
        }
        let copied = Rc::new(RefCell::new(Copied::default()));
        let length = self.length();
        let body = Self::Copied(Box::new(self), Copier(copied.clone()));
        (body, Self::Copy(copied, length))
    }

    /// The next part. `None`: it has ended.
    ///
    /// # Errors
    /// Where the rest does not come.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Part, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then_some(Ok(Part::Data(bytes))))
            }
            Self::H1(connection, _) => connection.borrow_mut().poll_body(cx),
            Self::Copied(body, copied) => {
                let polled = ready!(body.poll_next(cx));
                let mut copied = copied.0.borrow_mut();
                match &polled {
                    _ if copied.lost => {}
                    Some(Ok(Part::Data(data))) => copied.put(Some(Part::Data(data.clone()))),
                    Some(Ok(Part::Trailers(trailers))) => {
                        copied.put(Some(Part::Trailers(trailers.clone())));
                        copied.put(None);
                    }
                    None => copied.put(None),
                    Some(Err(_)) => {
                        copied.lose();
                        copied.wake();
                    }
                }
                Poll::Ready(polled)
            }
            Self::Copy(copied, _) => {
                let mut copied = copied.borrow_mut();
                if let Some(data) = copied.data.take() {
                    return Poll::Ready(Some(Ok(Part::Data(data))));
                }
                if let Some(trailers) = copied.trailers.take() {
                    return Poll::Ready(Some(Ok(Part::Trailers(trailers))));
                }
                if copied.lost {
                    let error = BodyError::Closed("the copy could not keep up".to_owned());
                    return Poll::Ready(Some(Err(error)));
                }
                if copied.ended {
                    return Poll::Ready(None);
                }
                copied.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            Self::H2(body) => {
                match ready!(body.poll_data(cx)) {
                    Some(Ok(data)) => return Poll::Ready(Some(Ok(Part::Data(data)))),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => {}
                }
                let trailers = ready!(body.stream.poll_trailers(cx));
                Poll::Ready(match trailers {
                    Ok(None) => None,
                    Ok(Some(mut trailers)) => {
                        strip_trailers(&mut trailers);
                        *self = Self::Empty;
                        Some(Ok(Part::Trailers(Box::new(trailers))))
                    }
                    Err(error) => Some(Err(stream_error(&error))),
                })
            }
        }
    }
}

/// What an error of h2 means for a body.
#[must_use]
pub fn stream_error(error: &h2::Error) -> BodyError {
    match error.reason() {
        Some(reason) if error.is_reset() => BodyError::Reset(reason),
        _ => BodyError::Closed(error.to_string()),
    }
}

/// Who writes a copy.
pub struct Copier(Rc<RefCell<Copied>>);

impl Drop for Copier {
    /// A body that nobody reads any more has no whole copy, unless it has ended.
    fn drop(&mut self) {
        let mut copied = self.0.borrow_mut();
        if !copied.ended {
            copied.lose();
            copied.wake();
        }
    }
}

/// Where a body goes.
pub enum Sink {
    /// Nowhere: there is none, or nobody wants it.
    None,
    /// Over HTTP/1.
    H1(SharedH1),
    /// Over HTTP/2.
    H2(H2Sink),
}

/// A stream of HTTP/2, and what it has no room for yet.
pub struct H2Sink {
    stream: SendStream<Bytes>,
    left: Bytes,
    /// `left` is the last of it.
    ends: bool,
}

impl H2Sink {
    /// Sends on `stream`.
    #[must_use]
    pub fn new(stream: SendStream<Bytes>) -> Self {
        Self {
            stream,
            left: Bytes::new(),
            ends: false,
        }
    }

    /// Sends what there is room for. Ready once nothing is left.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        while !self.left.is_empty() {
            self.stream.reserve_capacity(self.left.len());
            let room = match self.stream.capacity() {
                0 => match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(room)) => room,
                    Some(Err(error)) => return Poll::Ready(Err(stream_error(&error))),
                    None => return Poll::Ready(Err(gone())),
                },
                room => room,
            };
            let part = self.left.split_to(room.min(self.left.len()));
            let sent = self
                .stream
                .send_data(part, self.ends && self.left.is_empty());
            sent.map_err(|error| stream_error(&error))?;
        }
        Poll::Ready(Ok(()))
    }
}

fn gone() -> BodyError {
    BodyError::Closed("the stream has ended".to_owned())
}

impl Sink {
    /// Ready where more may be put.
    ///
    /// # Errors
    /// Where the receiver has gone.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match self {
            Self::None => Poll::Ready(Ok(())),
            Self::H1(connection) => connection
                .borrow_mut()
                .poll_room(cx)
                .map_err(|error| BodyError::Closed(error.to_string())),
            Self::H2(sink) => sink.poll_send(cx),
        }
    }

    fn put(&mut self, data: Bytes) {
        match self {
            Self::None => {}
            Self::H1(connection) => connection.borrow_mut().put_data(&data),
            Self::H2(sink) => sink.left = data,
        }
    }

    /// What was put last is the end, where the protocol can say so in one: an end of its own would be an empty frame, which peers
    /// count as abuse when there are many.
    fn ends_with_what_is_left(&mut self) -> bool {
        match self {
            Self::H2(sink) if !sink.left.is_empty() => {
                sink.ends = true;
                true
            }
            _ => false,
        }
    }

    fn put_end(&mut self, trailers: Option<HeaderMap>) -> Result<(), BodyError> {
        match self {
            Self::None => Ok(()),
            Self::H1(connection) => match connection.borrow_mut().put_end(trailers.as_ref()) {
                true => Ok(()),
                false => Err(BodyError::Malformed("the body is shorter than announced")),
            },
            Self::H2(sink) => {
                let sent = match trailers {
                    Some(trailers) => sink.stream.send_trailers(trailers),
                    None => sink.stream.send_data(Bytes::new(), true),
                };
                sent.map_err(|error| stream_error(&error))
            }
        }
    }

    /// Ready once all that was put is on its way.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match self {
            Self::None => Poll::Ready(Ok(())),
            Self::H1(connection) => connection
                .borrow_mut()
                .poll_flush(cx)
                .map_err(|error| BodyError::Closed(error.to_string())),
            // The task of the connection sends what streams have put.
            Self::H2(sink) => sink.poll_send(cx),
        }
    }

    /// Ready once the receiver wants no more: it says so, where its protocol can, or has gone.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let sink = match self {
            Self::None => return Poll::Pending,
            Self::H1(connection) => {
                ready!(connection.borrow_mut().poll_caller_gone(cx));
                return Poll::Ready(BodyError::Closed("the connection broke".to_owned()));
            }
            Self::H2(sink) => sink,
        };
        match ready!(sink.stream.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(BodyError::Reset(reason)),
            Err(error) => Poll::Ready(stream_error(&error)),
        }
    }

    /// The receiver learns that the rest does not come.
    pub fn abort(&mut self, reason: H2Reason) {
        match self {
            Self::None => {}
            Self::H1(connection) => connection.borrow_mut().break_off(),
            Self::H2(sink) => sink.stream.send_reset(reason),
        }
    }
}

/// Which end of a pump broke.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum PumpError {
    From(BodyError),
    To(BodyError),
}

/// Moves a body.
pub struct Pump {
    from: Body,
    to: Sink,
    state: State,
    /// What comes next of the body, where that is known already.
    #[expect(clippy::option_option, reason = "nothing is known, the end is known")]
    ahead: Option<Option<Result<Part, BodyError>>>,
    /// Bytes that have been moved.
    pub moved: u64,
    /// The last trailers that were moved.
    pub trailers: Option<Box<HeaderMap>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Moving,
    Flushing,
    Done,
}

impl Pump {
    /// Moves `from` to `to`.
    #[must_use]
    pub fn new(from: Body, to: Sink) -> Self {
        Self {
            state: match to {
                Sink::None => State::Done,
                _ => State::Moving,
            },
            from,
            to,
            ahead: None,
            moved: 0,
            trailers: None,
        }
    }

    /// True once all has been moved.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The body, where nothing has been taken from it.
    #[must_use]
    pub fn take_unmoved(&mut self) -> Option<Body> {
        let is_whole = self.moved == 0 && self.state == State::Moving;
        is_whole.then(|| std::mem::replace(&mut self.from, Body::Empty))
    }

    /// The receiver learns that the rest does not come.
    pub fn abort(&mut self, reason: H2Reason) {
        if !self.is_done() {
            self.to.abort(reason);
        }
    }

    /// Ready once all has been moved. What can be moved without waiting leaves together.
    ///
    /// # Errors
    /// Which end broke, and how.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        loop {
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Flushing => {
                    ready!(self.to.poll_flush(cx)).map_err(PumpError::To)?;
                    self.state = State::Done;
                }
                State::Moving => {
                    let room = self.to.poll_room(cx);
                    if !matches!(room, Poll::Ready(Ok(()))) {
                        self.from.collect(cx);
                    }
                    ready!(room).map_err(PumpError::To)?;
                    let next = match self.ahead.take() {
                        Some(ahead) => Poll::Ready(ahead),
                        None => self.from.poll_next(cx),
                    };
                    match next {
                        Poll::Ready(Some(Ok(Part::Data(data)))) => {
                            self.moved += data.len() as u64;
                            self.to.put(data);
                            // Only where it helps: what has been looked at is taken from the body.
                            if matches!(self.to, Sink::H2(_))
                                && let Poll::Ready(ahead) = self.from.poll_next(cx)
                            {
                                if ahead.is_none() && self.to.ends_with_what_is_left() {
                                    self.state = State::Flushing;
                                } else {
                                    self.ahead = Some(ahead);
                                }
                            }
                        }
                        Poll::Ready(Some(Ok(Part::Trailers(trailers)))) => {
                            self.trailers = Some(trailers.clone());
                            self.to.put_end(Some(*trailers)).map_err(PumpError::To)?;
                            self.state = State::Flushing;
                        }
                        Poll::Ready(None) => {
                            self.to.put_end(None).map_err(PumpError::From)?;
                            self.state = State::Flushing;
                        }
                        Poll::Ready(Some(Err(error))) => {
                            return Poll::Ready(Err(PumpError::From(error)));
                        }
                        Poll::Pending => {
                            // Nothing more comes now: what has come goes.
                            if let Poll::Ready(flushed) = self.to.poll_flush(cx) {
                                flushed.map_err(PumpError::To)?;
                            }
                            if let Poll::Ready(error) = self.to.poll_reset(cx) {
                                return Poll::Ready(Err(PumpError::To(error)));
                            }
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_put_together_and_large_ones_stay_as_they_are() {
        let mut collected = Collected::default();
        let large = Bytes::from(vec![9; PIECE_MIN]);
        let mut sent = Vec::new();
        let mut put = |collected: &mut Collected, data: Bytes| {
            sent.extend_from_slice(&data);
            collected.put(data);
        };
        for n in 0..10_000 {
            put(&mut collected, Bytes::from(vec![n as u8]));
        }
        put(&mut collected, large.clone());
        put(&mut collected, Bytes::from_static(b"end"));
        assert_eq!(collected.bytes, sent.len());
        let taken: Vec<Bytes> = std::iter::from_fn(|| collected.take()).collect();
        assert_eq!(taken.concat(), sent);
        assert_eq!(taken.len(), 5, "{:?}", taken.iter().map(Bytes::len));
        assert_eq!(taken[3].as_ptr(), large.as_ptr());
        assert_eq!(collected.bytes, 0);
    }

    /// A request of HTTP/2 whose body goes on one end and comes on the other.
    async fn request() -> (SendStream<Bytes>, RecvStream) {
        let (near, far) = tokio::io::duplex(1024 * 1024);
        let (client, server) = tokio::join!(
            h2::client::handshake(near),
            h2::server::Builder::new()
                .data_frame_budget(1024 * 1024)
                .handshake::<_, Bytes>(far)
        );
        let ((sender, connection), mut server) = (client.unwrap(), server.unwrap());
        tokio::spawn(connection);
        let request = http::Request::post("http://store/").body(()).unwrap();
        let (answer, body) = sender
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap();
        let (request, respond) = server.accept().await.unwrap().unwrap();
        tokio::spawn(async move {
            std::future::poll_fn(|cx| server.poll_closed(cx)).await.ok();
            drop((answer, respond));
        });
        (body, request.into_body())
    }

    #[tokio::test]
    async fn what_waits_for_a_slow_reader_is_put_together_and_its_sender_sends_no_more() {
        let (mut sender, from) = request().await;
        let (mut to, mut reader) = request().await;
        const WINDOW: usize = 65_535;
        // As much as may be sent before anybody reads.
        to.send_data(vec![0; WINDOW].into(), false).unwrap();
        for _ in 0..1000 {
            sender.send_data(Bytes::from_static(b"x"), false).unwrap();
        }
        let mut pump = Pump::new(Body::h2(from, Length::Unknown), Sink::H2(H2Sink::new(to)));
        let collected = std::future::poll_fn(|cx| {
            assert!(pump.poll(cx).is_pending());
            let Body::H2(H2Body {
                collected: Some(collected),
                ..
            }) = &pump.from
            else {
                return Poll::Pending;
            };
            // One is on its way, and one is what comes next.
            match collected.bytes {
                998 => Poll::Ready(collected.pieces.len()),
                _ => Poll::Pending,
            }
        });
        assert_eq!(collected.await, 0, "small pieces are not put together");
        assert!(sender.capacity() <= WINDOW - 900, "{}", sender.capacity());
        sender.send_data(Bytes::new(), true).unwrap();
        let mut read = 0;
        let reading = async {
            while let Some(data) = reader.data().await {
                let data = data.unwrap();
                read += data.len();
                let _ = reader.flow_control().release_capacity(data.len());
            }
        };
        let moving = std::future::poll_fn(|cx| pump.poll(cx));
        let (moved, ()) = tokio::join!(moving, reading);
        moved.unwrap();
        assert_eq!((pump.moved, read), (1000, WINDOW + 1000));
    }
}
