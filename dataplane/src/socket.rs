//! One end of a connection: a TCP socket that may carry TLS, without a buffer while it is idle.
//!
//! Bytes are read into, decrypted into and encrypted into the worker's scratch buffers, and written from there. A socket owns
//! memory only for what the kernel would not take, for payload that is to be sent together with more, and for a TLS record
//! that has arrived in part.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use rustls::AlertDescription;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
};

use crate::{
    http::room::ROOM_MAX,
    net,
    record::{Reason, Waiting},
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
/// The largest buffer for what is corked that a worker keeps.
const CORK_KEPT_MAX: usize = 256 * 1024;
/// What an idle socket may keep of its buffer for the next head.
const RESTING_BYTES_MAX: usize = 2048;
/// A peer that was sent more than this and has not answered may have filled its receive window and be reading slowly:
/// it is no longer judged by how long it takes to acknowledge, but by the worker, which looks whether it does at all. So is one for
/// which the kernel takes no more.
const IMPATIENT_BYTES_MAX: usize = 48 * 1024;

/// Buffers of one worker, used within one poll and never across polls.
#[derive(Default)]
pub struct Scratch {
    /// What is read.
    pub read: ReadScratch,
    /// What is encrypted.
    pub cipher: Vec<u8>,
    /// For payload that waits to be sent together with more, of whichever socket is next to have some.
    cork: Vec<u8>,
}

/// What one read brings.
pub struct ReadScratch {
    input: Vec<u8>,
    plain: Vec<u8>,
}

impl Default for ReadScratch {
    /// Allocates lazily: pages count only once they are touched.
    fn default() -> Self {
        Self {
            input: vec![0; READ_BYTES_BULK + RECORD_BYTES_MAX],
            plain: Vec::new(),
        }
    }
}

/// One end of a connection.
pub struct Socket {
    stream: TcpStream,
    tls: Option<Session>,
    /// Part of a TLS record, or (without TLS) nothing.
    incoming: Vec<u8>,
    /// Payload that has arrived before anybody asked for it.
    early: Vec<u8>,
    /// Payload that waits to be sent together with more.
    corked: Vec<u8>,
    /// What the kernel would not take yet, from `written` on.
    outgoing: Vec<u8>,
    written: usize,
    /// The next read takes at most so much.
    read_bytes: usize,
    /// The room for a body that the kernel has been told of.
    room: u32,
    /// The peer has said that it sends no more.
    ended: bool,
    /// The peer has reset the connection, which a write has found out, so the end of what it sends is no clean one.
    broken: bool,
    /// What has been written since the peer was last heard.
    unanswered: usize,
    /// What has ever been written.
    taken: u64,
    /// Something has been written since [`Socket::waiting`] was last asked.
    progressed: bool,
    waiting: Option<Waiting>,
    finished: bool,
    /// Who tells that the peer has gone, where the owner of the socket does not look itself.
    watch: Option<Watch>,
}

/// A socket that its worker watches: whoever is sent much and answers nothing may be reading slowly, or be gone.
struct Watch {
    worker: Rc<Worker>,
    watched: Rc<Watched>,
}

/// The part of a watched socket that the worker sees.
#[derive(Default)]
pub struct Watched {
    /// Since when it has taken nothing.
    pub waiting: Cell<Option<Waiting>>,
    gone: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Watched {
    /// The peer has gone: whoever reads or writes learns it.
    pub fn give_up(&self) {
        self.gone.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Why no more can be read from a peer.
#[derive(Debug)]
pub struct ReadError {
    /// For metrics.
    pub reason: Reason,
    /// For the person on call.
    pub detail: String,
    /// The peer had ended what it sends before: what it has sent is whole.
    pub after_its_end: bool,
}

impl ReadError {
    fn reset(error: &dyn std::fmt::Display) -> Self {
        Self {
            reason: Reason::Reset,
            detail: error.to_string(),
            after_its_end: false,
        }
    }
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)
    }
}

/// What it means that the peer's TLS is over. The alert access_denied after a handshake that this side took for done is
/// how the peer's permissions answer.
fn broken_session(error: SessionError) -> ReadError {
    match error {
        SessionError::Tls(rustls::Error::AlertReceived(AlertDescription::AccessDenied)) => ReadError {
            reason: Reason::RefusedByPeer,
            detail: "the permissions at the destination do not let this caller in; its proxy's record names the policy"
                .to_owned(),
            after_its_end: false,
        },
        error => ReadError::reset(&error),
    }
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
            corked: Vec::new(),
            outgoing: Vec::new(),
            written: 0,
            read_bytes: READ_BYTES,
            room: ROOM_MAX,
            ended: false,
            broken: false,
            unanswered: 0,
            taken: 0,
            progressed: false,
            waiting: None,
            finished: false,
            watch: None,
        }
    }

    /// From now on the worker looks whether the peer still is there; the owner does not have to ask [`Socket::waiting`].
    pub fn watched_by(&mut self, worker: &Rc<Worker>) {
        self.watch = Some(Watch {
            worker: worker.clone(),
            watched: Rc::default(),
        });
    }

    /// The peer has gone, as the worker has found out.
    fn is_gone(&mut self, cx: &Context<'_>) -> bool {
        let Some(watch) = self
            .watch
            .as_ref()
            .filter(|_| self.unanswered > IMPATIENT_BYTES_MAX)
        else {
            return false;
        };
        if watch.watched.gone.get() {
            return true;
        }
        let mut waker = watch.watched.waker.borrow_mut();
        if waker
            .as_ref()
            .is_none_or(|waker| !waker.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
        false
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

    /// What has been received, but was not for whoever received it, is received again.
    pub fn unread(&mut self, mut bytes: Vec<u8>) {
        bytes.append(&mut self.early);
        self.early = bytes;
    }

    /// The peer has said that it sends no more.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The end of what the peer sends is not clean any more.
    pub fn mark_broken(&mut self) {
        self.broken = true;
    }

    /// Bytes that the kernel has ever taken.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes that wait for the kernel.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.corked.len() + self.outgoing.len() - self.written
    }

    /// Takes what has arrived, with one read. Empty and [`Socket::ended`]: the peer has ended cleanly. Empty otherwise: ask
    /// again, a TLS record has come in part.
    ///
    /// # Errors
    /// Where the connection broke, or ended uncleanly.
    pub fn poll_receive<'s>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &'s mut ReadScratch,
    ) -> Poll<Result<&'s [u8], ReadError>> {
        if !self.early.is_empty() {
            scratch.plain.clear();
            scratch.plain.append(&mut self.early);
            self.early = Vec::new();
            return Poll::Ready(Ok(&scratch.plain));
        }
        if self.ended {
            return Poll::Ready(Ok(&[]));
        }
        if self.is_gone(cx) {
            return Poll::Ready(Err(ReadError {
                reason: Reason::PeerVanished,
                detail: "what was sent has not been acknowledged, however often it was repeated"
                    .to_owned(),
                after_its_end: false,
            }));
        }
        if self.tls.is_some() {
            ready!(self.poll_read_tls(cx, scratch))?;
            return Poll::Ready(Ok(&scratch.plain));
        }
        let count = ready!(self.poll_read_plain(cx, scratch))?;
        Poll::Ready(Ok(&scratch.input[..count]))
    }

    fn poll_read_plain(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut ReadScratch,
    ) -> Poll<Result<usize, ReadError>> {
        let room = &mut scratch.input[..self.read_bytes];
        let count = ready!(poll_read(cx, &mut self.stream, room))
            .map_err(|error| ReadError::reset(&error))?;
        if count == 0 {
            if self.broken {
                return Poll::Ready(Err(ReadError::reset(&"the peer has gone")));
            }
            self.ended = true;
        }
        self.saw(count);
        self.heard();
        Poll::Ready(Ok(count))
    }

    /// Reads once and decrypts what is whole into `scratch.plain`, which may stay empty.
    fn poll_read_tls(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut ReadScratch,
    ) -> Poll<Result<(), ReadError>> {
        let kept = self.incoming.len();
        let end = (kept + self.read_bytes).min(scratch.input.len());
        if kept >= end {
            return Poll::Ready(Err(ReadError::reset(&"a TLS record of impossible length")));
        }
        let count = ready!(poll_read(
            cx,
            &mut self.stream,
            &mut scratch.input[kept..end]
        ))
        .map_err(|error| ReadError::reset(&error))?;
        if count == 0 {
            // FIN without close_notify: nobody can tell whether this was all.
            return Poll::Ready(Err(ReadError {
                reason: Reason::Truncated,
                detail: "the peer ended the connection without saying so in TLS".to_owned(),
                after_its_end: true,
            }));
        }
        self.saw(count);
        self.heard();
        scratch.input[..kept].copy_from_slice(&self.incoming);
        scratch.plain.clear();
        let input = &mut scratch.input[..kept + count];
        let session = self.tls.as_mut().expect("asked only of TLS");
        let received = session
            .receive(input, &mut scratch.plain, &mut self.outgoing)
            .map_err(broken_session)?;
        let rest = &input[received.consumed..];
        if rest.is_empty() {
            if kept > 0 {
                self.incoming = Vec::new();
            }
        } else {
            self.incoming.clear();
            self.incoming.extend_from_slice(rest);
        }
        self.ended = received.standing == Standing::PeerClosed;
        Poll::Ready(Ok(()))
    }

    /// The next read takes no more than `bytes`, but as much as a small one.
    pub fn read_at_most(&mut self, bytes: usize) {
        self.read_bytes = self.read_bytes.min(bytes.max(READ_BYTES));
    }

    /// For a socket that carries one body at a time: the kernel keeps no more of it either than there is room for, where that is less
    /// than usual.
    pub fn keep_at_most(&mut self, room: u32) {
        if self.room != room {
            self.room = room;
            net::keep_at_most(&self.stream, room);
        }
    }

    /// For a socket that is read whatever waits: it keeps no more of what it is to send.
    pub fn send_at_most(&mut self, room: u32) {
        if self.room != room {
            self.room = room;
            net::send_at_most(&self.stream, room);
        }
    }

    fn saw(&mut self, count: usize) {
        if count >= self.read_bytes {
            self.read_bytes = READ_BYTES_BULK;
        } else if count < READ_BYTES / 4 {
            self.read_bytes = READ_BYTES;
        }
    }

    /// Reads and throws away. Ready with true at the end of what the peer sends.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>, scratch: &mut ReadScratch) -> Poll<bool> {
        match ready!(poll_read(cx, &mut self.stream, &mut scratch.input)) {
            Ok(0) | Err(_) => Poll::Ready(true),
            Ok(_) => Poll::Ready(false),
        }
    }

    /// Payload to be sent at the next [`Socket::poll_flush`], in one write with what comes before and after it.
    pub fn cork(&mut self, payload: &[u8]) {
        self.corked.extend_from_slice(payload);
    }

    /// The same, into a buffer of the worker where nothing is corked yet: for sockets that have much to say at once.
    pub fn cork_much(&mut self, payload: &[u8], scratch: &mut Scratch) {
        if self.corked.is_empty() && self.corked.capacity() < scratch.cork.capacity() {
            std::mem::swap(&mut self.corked, &mut scratch.cork);
        }
        self.cork(payload);
    }

    /// The same, for who writes into the buffer himself.
    pub fn corked(&mut self) -> &mut Vec<u8> {
        &mut self.corked
    }

    /// Sends what is corked, and what the kernel would not take before. Ready once it has taken all.
    ///
    /// # Errors
    /// Where the connection broke.
    pub fn poll_uncork(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<io::Result<()>> {
        if !self.corked.is_empty() {
            let mut payload = std::mem::take(&mut self.corked);
            self.send(cx, &payload, &mut scratch.cipher)?;
            payload.clear();
            // A small buffer is worth keeping while requests come one after the other; the owner frees it when idle. A larger one is
            // for whoever is next to have much to say.
            if payload.capacity() <= READ_BYTES {
                self.corked = payload;
            } else if (scratch.cork.capacity()..=CORK_KEPT_MAX).contains(&payload.capacity()) {
                scratch.cork = payload;
            }
        }
        self.poll_flush(cx)
    }

    /// Frees buffers that are worth keeping only while there is something to do.
    pub fn rest(&mut self) {
        // What holds a head is worth less than making it anew for each request.
        if self.corked.is_empty() && self.corked.capacity() > RESTING_BYTES_MAX {
            self.corked = Vec::new();
        }
    }

    /// Writes what is waiting.
    ///
    /// # Errors
    /// Where the connection broke.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.written < self.outgoing.len() && self.is_gone(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
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

    /// Sends payload; what the kernel does not take waits.
    ///
    /// # Errors
    /// Where the connection broke.
    pub fn send(
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
    ///
    /// # Errors
    /// Where the connection broke.
    pub fn poll_finish(
        &mut self,
        cx: &mut Context<'_>,
        cipher: &mut Vec<u8>,
    ) -> Poll<io::Result<()>> {
        if !self.finished {
            self.finished = true;
            if !self.corked.is_empty() {
                let payload = std::mem::take(&mut self.corked);
                self.send(cx, &payload, cipher)?;
            }
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
        self.taken += count as u64;
        self.progressed |= count > 0;
        if self.written < self.outgoing.len() {
            // There may be little room for it, and its peer has not read that little.
            self.unanswered = self.unanswered.max(IMPATIENT_BYTES_MAX + 1);
        }
        if before <= IMPATIENT_BYTES_MAX && self.unanswered > IMPATIENT_BYTES_MAX {
            net::be_patient(&self.stream, true);
            if let Some(watch) = &self.watch {
                watch.worker.watch(&watch.watched);
            }
        }
        self.tell_watch();
    }

    fn tell_watch(&mut self) {
        let Some(watch) = &self.watch else { return };
        let is_judged_by_kernel = self.unanswered <= IMPATIENT_BYTES_MAX;
        if is_judged_by_kernel && watch.watched.waiting.get().is_none() {
            return;
        }
        let (now_ms, watched) = (watch.worker.now_ms(), watch.watched.clone());
        watched.waiting.set(self.waiting(now_ms));
    }

    fn heard(&mut self) {
        if self.unanswered > IMPATIENT_BYTES_MAX {
            if !self.outgoing.is_empty() {
                return;
            }
            net::be_patient(&self.stream, false);
        }
        self.unanswered = 0;
        self.tell_watch();
    }

    /// What the worker has to watch, now that no time-out of the kernel's judges the peer.
    pub fn waiting(&mut self, now_ms: u64) -> Option<Waiting> {
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

    /// True where what was sent has met a socket that was closed already: after the peer's end (FIN) comes its refusal (RST), which
    /// Linux shows as EPIPE. A peer that has read what was sent, and then ends, refuses nothing.
    #[must_use]
    pub fn was_refused_after_end(&self) -> bool {
        let error = self.stream.take_error().ok().flatten();
        error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Closing resets the connection.
    pub fn reset_on_close(&self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn little_is_kept_for_a_peer_that_does_not_read_and_it_is_not_given_up_for_that() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = tokio::net::TcpSocket::new_v4().unwrap();
        peer.set_recv_buffer_size(4096).unwrap();
        let (peer, accepted) = tokio::join!(
            peer.connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        let _peer = peer.unwrap();
        let mut socket = Socket::plain(accepted.unwrap().0, Vec::new());
        socket.keep_at_most(16 * 1024);
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..16 {
            socket.send(&mut cx, &[7; 4096], &mut Vec::new()).unwrap();
        }
        let taken = usize::try_from(socket.taken()).unwrap();
        assert!((4096..48 * 1024).contains(&taken), "{taken}");
        assert_eq!(socket.unsent(), 16 * 4096 - taken);
        let kernel = SockRef::from(&socket.stream);
        assert_eq!(kernel.tcp_user_timeout().unwrap(), None);
        assert!(kernel.recv_buffer_size().unwrap() <= 32 * 1024);
    }

    /// A connection that its peer has reset, and one whose peer reads.
    #[tokio::test]
    async fn what_a_peer_has_reset_before_takes_nothing() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for resets in [true, false] {
            let stream = TcpStream::connect(address).await.unwrap();
            let (peer, _) = listener.accept().await.unwrap();
            let mut socket = Socket::plain(stream, Vec::new());
            if resets {
                SockRef::from(&peer)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
            }
            let peer = (!resets).then_some(peer);
            let mut cx = Context::from_waker(Waker::noop());
            let sent = socket.send(&mut cx, b"POST / HTTP/1.1\r\n\r\n", &mut Vec::new());
            assert_eq!((sent.is_err(), socket.taken() == 0), (resets, resets));
            drop(peer);
        }
    }
}
