//! A [`Socket`] as h2 wants it, with writes that leave together.
//!
//! h2 flushes after every larger frame. Here a flush only marks the end of a frame: bytes leave when the task that polls the
//! connection has nothing more to do ([`poll_uncork`]), so that many requests share one TLS record and one write. Measured before
//! it was built: a tenth of the whole cost of a request.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    flood::{Manners, Offence},
    room::{FRAMES_OF_CONNECTION, ROOM_MAX},
};
use crate::{record::Connection, socket::Socket, workers::Worker};

/// Bytes that may be corked before they leave although there is more to do.
const CORKED_MAX: u32 = ROOM_MAX / 2;
/// The same where there is little room.
const CORKED_MIN: u32 = 16 * 1024;

/// A socket that h2 and the task of its connection share.
pub type SharedSocket = Rc<RefCell<Socket>>;

/// The side of it that h2 has.
pub struct H2Io {
    socket: SharedSocket,
    worker: Rc<Worker>,
    /// What has been read and had no room.
    left: BytesMut,
    meter: Option<Rc<Connection>>,
    manners: Manners,
    offence: Option<Offence>,
    /// The turn after which it reads on.
    turn: u64,
    of_one_caller: bool,
}

impl H2Io {
    /// h2's side of `socket`, of which `buffer` has been read already. The peer is expected to have `manners`.
    #[must_use]
    pub fn new(
        socket: SharedSocket,
        buffer: BytesMut,
        worker: Rc<Worker>,
        meter: Option<Rc<Connection>>,
        manners: Manners,
    ) -> Self {
        Self {
            offence: None,
            turn: 0,
            of_one_caller: false,
            manners,
            socket,
            worker,
            left: buffer,
            meter,
        }
    }
}

/// Sends what is corked. Ready once all of it is the kernel's.
///
/// # Errors
/// Where the connection broke.
pub fn poll_uncork(
    socket: &SharedSocket,
    worker: &Worker,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut scratch = worker.scratch.borrow_mut();
    socket.borrow_mut().poll_uncork(cx, &mut scratch)
}

impl H2Io {
    /// On a connection of one caller, who may read none of it, less waits where there is little room.
    #[must_use]
    pub fn of_one_caller(mut self) -> Self {
        self.of_one_caller = true;
        self
    }

    /// True until those whom small frames are for, which have been woken, have had their turn: what h2 keeps of frames it reads at once.
    fn waits_for_turn(&mut self, cx: &Context<'_>) -> bool {
        let room = &self.worker.room;
        if self.turn <= room.turns() && room.is_crowded() {
            self.turn = room.turns() + 1;
        }
        if self.turn > room.turns() {
            if room.wait(cx) {
                let worker = self.worker.clone();
                // The last in the queue.
                tokio::task::spawn_local(async move { worker.room.turn() });
            }
            return true;
        }
        if self.manners.small_frames() >= FRAMES_OF_CONNECTION {
            self.manners.had_turn();
        }
        false
    }

    /// How much of what comes next may be handed on.
    fn look_at(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.manners.small_frames();
        let count = match self.manners.received(bytes, self.worker.now_ms()) {
            Ok(count) => count,
            Err(offence) => {
                self.offence = Some(offence);
                return Err(offence.into());
            }
        };
        let frames = self.manners.small_frames();
        self.worker.room.note_frames(frames - before);
        if frames >= FRAMES_OF_CONNECTION {
            self.turn = self.worker.room.turns() + 1;
        }
        Ok(count)
    }
}

impl AsyncRead for H2Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(offence) = this.offence {
            return Poll::Ready(Err(offence.into()));
        }
        if this.waits_for_turn(cx) {
            return Poll::Pending;
        }
        if this.left.is_empty() {
            let (worker, socket) = (this.worker.clone(), this.socket.clone());
            let mut scratch = worker.scratch.borrow_mut();
            let mut socket = socket.borrow_mut();
            if this.of_one_caller {
                socket.send_at_most(worker.room.each());
            }
            loop {
                let payload = ready!(socket.poll_receive(cx, &mut scratch.read))
                    .map_err(|error| io::Error::other(error.detail))?;
                if payload.is_empty() {
                    if socket.ended() {
                        return Poll::Ready(Ok(()));
                    }
                    continue;
                }
                if let Some(meter) = &this.meter {
                    meter.sent.set(meter.sent.get() + payload.len() as u64);
                    meter.active_at.set(worker.now_ms());
                }
                let count = payload.len().min(room.remaining());
                let count = this.look_at(&payload[..count])?;
                room.put_slice(&payload[..count]);
                this.left.extend_from_slice(&payload[count..]);
                return Poll::Ready(Ok(()));
            }
        }
        let mut left = std::mem::take(&mut this.left);
        let count = this.look_at(&left[..left.len().min(room.remaining())])?;
        room.put_slice(&left[..count]);
        left.advance(count);
        if !left.is_empty() {
            this.left = left;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut socket = this.socket.borrow_mut();
        let mut scratch = this.worker.scratch.borrow_mut();
        let corked = match this.of_one_caller {
            true => (this.worker.room.each() / 2).max(CORKED_MIN),
            false => CORKED_MAX,
        };
        if socket.unsent() >= corked as usize {
            ready!(socket.poll_uncork(cx, &mut scratch))?;
        }
        socket.cork_much(bytes, &mut scratch);
        this.manners.sent(bytes.len());
        if let Some(meter) = &this.meter {
            meter
                .received
                .set(meter.received.get() + bytes.len() as u64);
            meter.active_at.set(this.worker.now_ms());
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut scratch = this.worker.scratch.borrow_mut();
        this.socket
            .borrow_mut()
            .poll_finish(cx, &mut scratch.cipher)
    }
}
