//! Bodies on their way through: from whichever connection they come to whichever they go, as they come, with back-pressure.
//!
//! A [`Pump`] takes a part from a [`Body`] only where its [`Sink`] has room, and the peer that sends is given room (HTTP/2) or read
//! (HTTP/1) only then, so that a slow reader slows its writer and nothing is kept here but what one of them may have under way.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::{Reason as H2Reason, RecvStream, SendStream};
use http::HeaderMap;

use super::{
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
    H2(RecvStream, Length),
    /// One that somebody gets a copy of.
    Copied(Box<Body>, Copier),
    /// The copy.
    Copy(Rc<RefCell<Copied>>, Length),
}

/// What has come of a body and not been taken by the reader of its copy.
#[derive(Default)]
pub struct Copied {
    parts: VecDeque<Part>,
    bytes: usize,
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
            Some(part) => {
                if let Part::Data(data) = &part {
                    self.bytes += data.len();
                }
                self.parts.push_back(part);
                if self.bytes > COPIED_MAX {
                    self.lose();
                }
            }
            None => self.ended = true,
        }
        self.wake();
    }

    fn lose(&mut self) {
        self.lost = true;
        self.parts.clear();
        self.bytes = 0;
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Body {
    /// How long it is.
    #[must_use]
    pub fn length(&self) -> Length {
        match self {
            Self::Empty => Length::Known(0),
            Self::Whole(bytes) => Length::Known(bytes.len() as u64),
            Self::H1(_, length) | Self::H2(_, length) | Self::Copy(_, length) => *length,
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
                if let Some(part) = copied.parts.pop_front() {
                    if let Part::Data(data) = &part {
                        copied.bytes -= data.len();
                    }
                    return Poll::Ready(Some(Ok(part)));
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
            Self::H2(stream, _) => {
                match ready!(stream.poll_data(cx)) {
                    Some(Ok(data)) => {
                        // The sender may send as much again: a pump asks only where there is room.
                        let _ = stream.flow_control().release_capacity(data.len());
                        return Poll::Ready(Some(Ok(Part::Data(data))));
                    }
                    Some(Err(error)) => return Poll::Ready(Some(Err(stream_error(&error)))),
                    None => {}
                }
                let trailers = ready!(stream.poll_trailers(cx));
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
                    ready!(self.to.poll_room(cx)).map_err(PumpError::To)?;
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
