//! One connection of HTTP/1.x, as server or as client: messages one after the other, each read and written as it comes.
//!
//! The task that owns the connection polls it; nothing here spawns, waits or sleeps. What is written is corked until somebody
//! flushes, so that a head and a small body leave in one write.

pub mod chunks;
pub mod head;

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method};

use self::{
    chunks::{Chunks, Piece},
    head::{BadHead, Framing, ParsedRequest, ParsedResponse},
};
use super::{
    body::{BodyError, Part},
    limits::HttpLimits,
    message::{RequestHead, ResponseHead, Version},
    room::HeadRoom,
};
use crate::{
    record::Connection,
    socket::{ReadError, Socket},
    workers::Worker,
};

/// A connection that its task, the body it reads and the one it writes share.
pub type SharedH1 = Rc<RefCell<H1>>;

/// One connection.
pub struct H1 {
    socket: Socket,
    /// What has been read and not been used.
    buffer: BytesMut,
    /// What a head (or trailers) takes in it that has not come to its end.
    head_room: HeadRoom,
    reading: Reading,
    writing: Writing,
    /// What the kernel had ever taken when the request that goes began.
    taken_before: u64,
    worker: Rc<Worker>,
    /// What bytes are counted on: of the application's or the caller's connection, not of one in a pool.
    meter: Option<Rc<Connection>>,
    /// What is written ends with the connection's own end.
    finishing: bool,
    /// The peer has been told that no further message comes.
    closing: bool,
}

/// Where the message that comes stands.
#[derive(Debug)]
enum Reading {
    /// Between messages.
    Head,
    /// So many bytes of a body are left.
    Length(u64),
    Chunks(Chunks),
    UntilClose,
    /// Of no use any more.
    Broken,
}

/// Where the message that goes stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    /// Between messages.
    Head,
    Length(u64),
    Chunks,
    UntilClose,
}

/// Why no message can be read.
#[derive(Debug)]
pub enum ReadMessageError {
    /// The peer does not speak HTTP as it should.
    Bad(BadHead),
    /// The connection broke.
    Socket(ReadError),
    /// It ended in the midst of a head.
    Truncated,
    /// It has a large head that does not come to its end, as too many others have.
    NoRoom,
}

impl H1 {
    /// A connection of which `buffer` has been read already.
    #[must_use]
    pub fn new(
        socket: Socket,
        buffer: BytesMut,
        worker: Rc<Worker>,
        meter: Option<Rc<Connection>>,
    ) -> Self {
        Self {
            head_room: worker.room.head(),
            socket,
            buffer,
            reading: Reading::Head,
            writing: Writing::Head,
            taken_before: 0,
            worker,
            meter,
            finishing: false,
            closing: false,
        }
    }

    /// Shared by its task and the bodies on it.
    #[must_use]
    pub fn shared(self) -> SharedH1 {
        Rc::new(RefCell::new(self))
    }

    fn limits(&self) -> HttpLimits {
        self.worker.shared.limits.http
    }

    /// Reads once more into the buffer. Ready with 0: the peer has ended cleanly.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, ReadError>> {
        self.socket.read_at_most(self.worker.room.unsent());
        self.socket.keep_at_most(self.worker.room.each());
        let mut scratch = self.worker.scratch.borrow_mut();
        loop {
            let payload = ready!(self.socket.poll_receive(cx, &mut scratch.read))?;
            let count = payload.len();
            if count > 0 {
                self.buffer.extend_from_slice(payload);
                if let Some(meter) = &self.meter {
                    meter.sent.set(meter.sent.get() + count as u64);
                    meter.active_at.set(self.worker.now_ms());
                }
                return Poll::Ready(Ok(count));
            }
            if self.socket.ended() {
                return Poll::Ready(Ok(0));
            }
        }
    }

    /// The next request. `None`: the peer has ended cleanly between two.
    ///
    /// # Errors
    /// Where nothing can be read any more.
    pub fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<ParsedRequest>, ReadMessageError>> {
        loop {
            if !self.buffer.is_empty() {
                let limits = self.limits();
                match head::take_request(&mut self.buffer, &limits) {
                    Ok(Some(request)) => {
                        self.head_room.leave();
                        self.reading = reading(request.framing);
                        return Poll::Ready(Ok(Some(request)));
                    }
                    Ok(None) => self.keep_head()?,
                    Err(bad) => {
                        self.give_up_head();
                        return Poll::Ready(Err(ReadMessageError::Bad(bad)));
                    }
                }
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) if self.buffer.is_empty() => return Poll::Ready(Ok(None)),
                Ok(0) => return Poll::Ready(Err(ReadMessageError::Truncated)),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(ReadMessageError::Socket(error))),
            }
        }
    }

    /// The next answer to a request with `method`; interim answers (1xx) come one by one.
    ///
    /// # Errors
    /// Where nothing can be read any more.
    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        method: &Method,
    ) -> Poll<Result<ParsedResponse, ReadMessageError>> {
        loop {
            if !self.buffer.is_empty() {
                let limits = self.limits();
                match head::take_response(&mut self.buffer, &limits, method) {
                    Ok(Some(response)) => {
                        self.head_room.leave();
                        if !response.head.status.is_informational()
                            || response.head.upgrade.is_some()
                        {
                            self.reading = reading(response.framing);
                        }
                        return Poll::Ready(Ok(response));
                    }
                    Ok(None) => self.keep_head()?,
                    Err(bad) => {
                        self.give_up_head();
                        return Poll::Ready(Err(ReadMessageError::Bad(bad)));
                    }
                }
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(Err(ReadMessageError::Truncated)),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(ReadMessageError::Socket(error))),
            }
        }
    }

    /// Keeps what has come of a head or of trailers, where there is room for it.
    fn keep_head(&mut self) -> Result<(), ReadMessageError> {
        if self.head_room.take(self.buffer.capacity()) {
            return Ok(());
        }
        self.give_up_head();
        Err(ReadMessageError::NoRoom)
    }

    fn give_up_head(&mut self) {
        self.reading = Reading::Broken;
        self.buffer = BytesMut::new();
        self.head_room.leave();
    }

    /// The next part of the body that comes. `None`: it has ended.
    ///
    /// # Errors
    /// Where the rest can not be read.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Part, BodyError>>> {
        loop {
            match &mut self.reading {
                Reading::Head => return Poll::Ready(None),
                Reading::Broken => {
                    return Poll::Ready(Some(Err(BodyError::Malformed("the body is malformed"))));
                }
                Reading::Length(left) if !self.buffer.is_empty() => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX);
                    let data = self.buffer.split_to(count.min(self.buffer.len())).freeze();
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.reading = Reading::Head;
                    }
                    return Poll::Ready(Some(Ok(Part::Data(data))));
                }
                Reading::UntilClose if !self.buffer.is_empty() => {
                    let data = self.buffer.split().freeze();
                    return Poll::Ready(Some(Ok(Part::Data(data))));
                }
                Reading::Chunks(chunks) if !self.buffer.is_empty() => {
                    let limits = self.worker.shared.limits.http;
                    match chunks.take(&mut self.buffer, &limits) {
                        Ok(Some(Piece::Data(data))) => {
                            return Poll::Ready(Some(Ok(Part::Data(data))));
                        }
                        Ok(Some(Piece::End(trailers))) => {
                            self.head_room.leave();
                            self.reading = Reading::Head;
                            if trailers.is_empty() {
                                return Poll::Ready(None);
                            }
                            return Poll::Ready(Some(Ok(Part::Trailers(Box::new(trailers)))));
                        }
                        Ok(None) => {
                            if self.keep_head().is_err() {
                                let what = "too many trailers are being waited for here";
                                return Poll::Ready(Some(Err(BodyError::Malformed(what))));
                            }
                        }
                        Err(what) => {
                            self.reading = Reading::Broken;
                            return Poll::Ready(Some(Err(BodyError::Malformed(what))));
                        }
                    }
                }
                _ => {}
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) if matches!(self.reading, Reading::UntilClose) => {
                    self.reading = Reading::Head;
                    return Poll::Ready(None);
                }
                Ok(0) => {
                    self.reading = Reading::Broken;
                    let what = "the connection ended in the midst of the body";
                    return Poll::Ready(Some(Err(BodyError::Closed(what.to_owned()))));
                }
                Ok(_) => {}
                Err(error) => {
                    self.reading = Reading::Broken;
                    return Poll::Ready(Some(Err(BodyError::Closed(error.detail))));
                }
            }
        }
    }

    /// The whole body that comes, where it has `length` bytes and all of them are here already.
    pub fn take_whole_body(&mut self) -> Option<Bytes> {
        let Reading::Length(left) = self.reading else {
            return None;
        };
        let length = usize::try_from(left).ok()?;
        if self.buffer.len() < length {
            return None;
        }
        self.reading = Reading::Head;
        Some(self.buffer.split_to(length).freeze())
    }

    /// Ready once the peer has gone while it should be waiting: it broke the connection (true), or sent the end or something
    /// else (false), after which nothing more is to be seen until that is read.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.buffer.is_empty() || self.socket.ended() {
            return Poll::Ready(false);
        }
        match ready!(self.poll_fill(cx)) {
            Ok(_) => Poll::Ready(false),
            Err(_) => Poll::Ready(true),
        }
    }

    /// Ready once a caller that waits for an answer, and has nothing more to send, has broken the connection.
    pub fn poll_caller_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_caller = self.meter.is_some();
        if !is_caller || !self.has_read_all() {
            return Poll::Pending;
        }
        match ready!(self.poll_gone(cx)) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// True where the peer has neither ended nor said anything, as an idle connection should be.
    pub fn is_silent(&mut self, cx: &mut Context<'_>) -> bool {
        self.buffer.is_empty() && self.poll_gone(cx).is_pending()
    }

    /// Begins an upgrade: from here on both sides send whatever they like, until they end.
    pub fn upgrade(&mut self) {
        self.reading = Reading::UntilClose;
        self.writing = Writing::UntilClose;
    }

    /// Both messages have ended, so that the next may begin.
    #[must_use]
    pub fn is_between_messages(&self) -> bool {
        matches!(self.reading, Reading::Head) && self.writing == Writing::Head
    }

    /// Another request may come: the one before, and its answer, have ended, and nobody has been told otherwise.
    #[must_use]
    pub fn may_go_on(&self) -> bool {
        self.is_between_messages() && !self.closing && !self.finishing
    }

    /// The message that comes has ended.
    #[must_use]
    pub fn has_read_all(&self) -> bool {
        matches!(self.reading, Reading::Head)
    }

    /// Nothing has been read that is not used yet.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Begins a request.
    pub fn put_request(&mut self, head: &RequestHead, framing: Framing) {
        self.taken_before = self.socket.taken();
        head::write_request(self.socket.corked(), head, framing);
        self.writing = writing(framing);
    }

    /// Begins an answer, for a caller that speaks `version`.
    pub fn put_response(
        &mut self,
        head: &ResponseHead,
        framing: Framing,
        version: Version,
        keep_alive: bool,
    ) {
        head::write_response(self.socket.corked(), head, framing, version, keep_alive);
        self.writing = writing(framing);
        self.closing |= !keep_alive;
    }

    /// An interim answer (1xx).
    pub fn put_interim(&mut self, head: &ResponseHead) {
        head::write_response(
            self.socket.corked(),
            head,
            Framing::None,
            Version::Http11,
            true,
        );
    }

    /// Goes on with the body that goes.
    pub fn put_data(&mut self, data: &Bytes) {
        if data.is_empty() {
            return; // An empty chunk would end the body.
        }
        let out = self.socket.corked();
        match &mut self.writing {
            Writing::Length(left) => {
                // More than announced would be read as the next message.
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(data.len());
                out.extend_from_slice(&data[..count]);
                *left -= count as u64;
            }
            Writing::Chunks => {
                out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                out.extend_from_slice(data);
                out.extend_from_slice(b"\r\n");
            }
            Writing::UntilClose => out.extend_from_slice(data),
            // The answer to HEAD has none, whatever comes.
            Writing::Head => return,
        }
        if let Some(meter) = &self.meter {
            meter.received.set(meter.received.get() + data.len() as u64);
            meter.active_at.set(self.worker.now_ms());
        }
    }

    /// Ends the body that goes. False: fewer bytes have come than were announced, so the connection has to break.
    #[must_use]
    pub fn put_end(&mut self, trailers: Option<&HeaderMap>) -> bool {
        let out = self.socket.corked();
        let complete = match self.writing {
            Writing::Length(left) => left == 0,
            Writing::Chunks => {
                out.extend_from_slice(b"0\r\n");
                if let Some(trailers) = trailers {
                    head::write_fields(out, trailers);
                }
                out.extend_from_slice(b"\r\n");
                true
            }
            Writing::UntilClose => {
                self.finishing = true;
                true
            }
            Writing::Head => true,
        };
        if complete && !self.finishing {
            self.writing = Writing::Head;
        }
        complete
    }

    /// Ready where more may be put, without more waiting for a slow peer than it may.
    ///
    /// # Errors
    /// Where the connection broke.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.socket.unsent() < self.worker.room.unsent() {
            return Poll::Ready(Ok(()));
        }
        self.poll_flush(cx)
    }

    /// Sends what has been put. Ready once all of it is the kernel's.
    ///
    /// # Errors
    /// Where the connection broke.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finishing {
            return self.poll_finish(cx);
        }
        let mut scratch = self.worker.scratch.borrow_mut();
        self.socket.poll_uncork(cx, &mut scratch)
    }

    /// Tells the peer that nothing more comes.
    ///
    /// # Errors
    /// Where the connection broke.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = self.worker.scratch.borrow_mut();
        self.socket.poll_finish(cx, &mut scratch.cipher)
    }

    /// Reads and throws away. Ready with true at the end of what the peer sends.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut scratch = self.worker.scratch.borrow_mut();
        self.socket.poll_discard(cx, &mut scratch.read)
    }

    /// Frees what is worth keeping only while there is something to do.
    pub fn rest(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        self.socket.rest();
    }

    /// True where no byte of the request that goes has left.
    #[must_use]
    pub fn nothing_has_left(&self) -> bool {
        self.socket.taken() == self.taken_before
    }

    /// True where the peer had closed the connection before what was sent reached it.
    #[must_use]
    pub fn was_refused_after_end(&self) -> bool {
        self.socket.was_refused_after_end()
    }

    /// Closing resets the connection, so that nobody takes half of a message for the whole.
    pub fn break_off(&mut self) {
        self.reading = Reading::Broken;
        self.socket.reset_on_close();
    }
}

fn reading(framing: Framing) -> Reading {
    match framing {
        Framing::None => Reading::Head,
        Framing::Length(length) => Reading::Length(length),
        Framing::Chunked => Reading::Chunks(Chunks::default()),
        Framing::UntilClose => Reading::UntilClose,
    }
}

fn writing(framing: Framing) -> Writing {
    match framing {
        Framing::None | Framing::Length(0) => Writing::Head,
        Framing::Length(length) => Writing::Length(length),
        Framing::Chunked => Writing::Chunks,
        Framing::UntilClose => Writing::UntilClose,
    }
}
