//! Peers of HTTP/2 that make work for nothing: frames that ask for an answer, or bring nothing, beyond what requests are a reason for.
//!
//! Resets, headers without an end and empty DATA are counted by h2. It answers PING and SETTINGS however many there are, and whoever
//! sends them without end would keep a worker busy for no request. What heads take that have not come to their end, and how many small
//! DATA frames come, is h2's own for each connection; what all connections may take together is seen here.

use std::io;

use super::room::{FRAMES_OF_CONNECTION, HeadRoom, NO_ROOM};
use crate::workers::Worker;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
/// The flag of HEADERS and CONTINUATION by which a head ends.
const END_HEADERS: u8 = 4;
/// Bytes before the payload of a frame.
const HEAD_BYTES: usize = 9;

/// Such frames that a peer may send without any reason, at once.
const CREDIT_MAX: u64 = 1000;
/// One more in so many milliseconds.
const MS_FOR_ONE: u64 = 10;
/// One more for so many bytes that it was sent: more than the answer to one, and about the smallest message, after each of which gRPC
/// may measure the way with a PING.
const SENT_FOR_ONE: u64 = 32;

/// DATA of fewer bytes costs more than its payload until it is taken.
pub const SMALL: u32 = 4096;

/// Why the connection is not served any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Offence {
    #[error("a flood of frames that nothing is done with, such as PING and SETTINGS")]
    Flood,
    #[error("{}", NO_ROOM)]
    NoRoom,
}

impl From<Offence> for io::Error {
    /// Of a kind that no socket has, by which [`Offence::of`] knows it again: h2 passes on no more of an error.
    fn from(offence: Offence) -> Self {
        let kind = match offence {
            Offence::Flood => io::ErrorKind::QuotaExceeded,
            Offence::NoRoom => io::ErrorKind::StorageFull,
        };
        Self::new(kind, offence)
    }
}

impl Offence {
    /// The one for which a connection was ended.
    #[must_use]
    pub fn of(error: &h2::Error) -> Option<Self> {
        match error.get_io()?.kind() {
            io::ErrorKind::QuotaExceeded => Some(Self::Flood),
            io::ErrorKind::StorageFull => Some(Self::NoRoom),
            _ => None,
        }
    }
}

/// What one peer has sent, frame by frame.
#[derive(Debug)]
pub struct Manners {
    /// Bytes up to the next frame's head.
    skip: usize,
    /// What has come of it.
    head: [u8; HEAD_BYTES],
    known: usize,
    /// What has come of a head that goes on in the next frame, and the room that it takes.
    unfinished: usize,
    head_room: HeadRoom,
    /// Small DATA frames that have come.
    small: usize,
    credit: u64,
    credited_ms: u64,
    /// Bytes sent to it that have not been credited.
    sent: u64,
}

impl Manners {
    /// Of a peer whose first frame comes after `preface` bytes.
    #[must_use]
    pub fn new(worker: &Worker, preface: usize) -> Self {
        Self::at(worker.now_ms(), preface, worker.room.head())
    }

    fn at(now_ms: u64, preface: usize, head_room: HeadRoom) -> Self {
        Self {
            skip: preface,
            head: [0; HEAD_BYTES],
            known: 0,
            unfinished: 0,
            head_room,
            small: 0,
            credit: CREDIT_MAX,
            credited_ms: now_ms,
            sent: 0,
        }
    }

    /// So many bytes are sent to it.
    pub fn sent(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes as u64);
    }

    /// Small DATA frames that have come since the last turn.
    #[must_use]
    pub fn small_frames(&self) -> usize {
        self.small
    }

    /// Those whom frames are for have had their turn.
    pub fn had_turn(&mut self) {
        self.small = 0;
    }

    /// Looks at what has come, and says how much of it may be handed on before others have had their turn.
    ///
    /// # Errors
    /// Where it is too much.
    pub fn received(&mut self, all: &[u8], now_ms: u64) -> Result<usize, Offence> {
        let mut bytes = all;
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = (HEAD_BYTES - self.known).min(bytes.len());
            if wanted == 0 || self.known == 0 && self.small >= FRAMES_OF_CONNECTION {
                return Ok(all.len() - bytes.len());
            }
            self.head[self.known..self.known + wanted].copy_from_slice(&bytes[..wanted]);
            self.known += wanted;
            bytes = &bytes[wanted..];
            if self.known < HEAD_BYTES {
                return Ok(all.len());
            }
            self.known = 0;
            let length = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]);
            self.skip = length as usize;
            self.frame(self.head[3], self.head[4], length, now_ms)?;
        }
    }

    fn frame(&mut self, kind: u8, flags: u8, length: u32, now_ms: u64) -> Result<(), Offence> {
        match kind {
            HEADERS => {
                self.give(1);
                self.head(flags, length)?;
            }
            CONTINUATION => self.head(flags, length)?,
            DATA if length > 0 => {
                self.small += usize::from(length < SMALL);
                self.give(1);
            }
            // Those of h2, which cost nothing, and those of others.
            PING | SETTINGS | PRIORITY => self.take(now_ms)?,
            kind if kind > CONTINUATION => self.take(now_ms)?,
            _ => {}
        }
        Ok(())
    }

    /// A head begins or goes on.
    fn head(&mut self, flags: u8, length: u32) -> Result<(), Offence> {
        if flags & END_HEADERS != 0 {
            self.unfinished = 0;
            self.head_room.leave();
            return Ok(());
        }
        self.unfinished = self.unfinished.saturating_add(length as usize);
        match self.head_room.take(self.unfinished) {
            true => Ok(()),
            false => Err(Offence::NoRoom),
        }
    }

    fn give(&mut self, frames: u64) {
        self.credit = self.credit.saturating_add(frames).min(CREDIT_MAX);
    }

    fn take(&mut self, now_ms: u64) -> Result<(), Offence> {
        if self.credit == 0 {
            let sent = std::mem::take(&mut self.sent);
            self.give(sent / SENT_FOR_ONE);
            self.give(now_ms.saturating_sub(self.credited_ms) / MS_FOR_ONE);
            self.credited_ms = now_ms;
        }
        self.credit = self.credit.checked_sub(1).ok_or(Offence::Flood)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::room::Room;

    fn peer(preface: usize) -> Manners {
        Manners::at(0, preface, Room::default().head())
    }

    fn frame(kind: u8, length: u32) -> Vec<u8> {
        frame_with(kind, if kind == HEADERS { END_HEADERS } else { 0 }, length)
    }

    fn frame_with(kind: u8, flags: u8, length: u32) -> Vec<u8> {
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.resize(HEAD_BYTES + length as usize, kind);
        frame
    }

    /// How many of so many frames are taken.
    fn taken(manners: &mut Manners, frames: usize, bytes: &[u8], now_ms: u64) -> usize {
        let mut taken = 0;
        while taken < frames && manners.received(bytes, now_ms).is_ok() {
            taken += 1;
        }
        taken
    }

    #[test]
    fn frames_without_a_reason_are_too_many_at_some_point() {
        for (kind, length) in [
            (PING, 8),
            (SETTINGS, 6),
            (SETTINGS, 0),
            (PRIORITY, 5),
            (99, 0),
        ] {
            let mut manners = peer(0);
            assert_eq!(taken(&mut manners, 5000, &frame(kind, length), 0), 1000);
            // Its answers are no reason for more.
            let mut manners = peer(0);
            let mut count = 0;
            while manners.received(&frame(kind, length), 0).is_ok() {
                manners.sent(17);
                count += 1;
            }
            assert!(count < 3000, "{count}");
        }
    }

    #[test]
    fn requests_what_is_sent_and_time_are_reasons() {
        for reason in [frame(HEADERS, 30), frame(DATA, 1)] {
            let both = [reason, frame(PING, 8)].concat();
            assert_eq!(taken(&mut peer(0), 100_000, &both, 0), 100_000);
        }
        let mut manners = peer(0);
        for _ in 0..100_000 {
            manners.sent(24 + 17);
            manners.received(&frame(PING, 8), 0).unwrap();
        }
        let mut manners = peer(0);
        for n in 0..100_000 {
            manners.received(&frame(PING, 8), n / 50 * 500).unwrap();
        }
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let all = [
            vec![PING; 24],
            frame(DATA, 300),
            frame(PING, 8),
            frame(DATA, 0),
        ]
        .concat();
        for cut in 1..40 {
            let mut manners = peer(24);
            for part in all.chunks(cut) {
                manners.received(part, 0).unwrap();
            }
            let left = (manners.credit, manners.skip, manners.known);
            assert_eq!(left, (CREDIT_MAX - 1, 0, 0), "{cut}");
        }
    }

    #[test]
    fn a_head_that_goes_on_takes_room_until_it_has_come() {
        let room = Room::default();
        let mut peers: Vec<_> = (0..200).map(|_| Manners::at(0, 0, room.head())).collect();
        let mut refused = 0;
        for peer in &mut peers {
            let mut begun = frame_with(HEADERS, 0, 16_384);
            begun.extend(frame(CONTINUATION, 16_384).repeat(7));
            refused += usize::from(peer.received(&begun, 0) == Err(Offence::NoRoom));
        }
        assert_eq!(refused, 200 - 128);
        let more = frame(CONTINUATION, 1);
        assert_eq!(peers[0].received(&more, 0), Err(Offence::NoRoom));
        let last = frame_with(CONTINUATION, END_HEADERS, 5);
        assert_eq!(peers[1].received(&last, 0), Ok(last.len()));
        assert_eq!(peers[0].received(&more, 0), Ok(more.len()));
    }

    #[test]
    fn small_frames_are_handed_on_in_turns() {
        let mut manners = peer(0);
        let many = frame(DATA, 1).repeat(1000);
        let mut left = &many[..];
        let mut turns = Vec::new();
        while !left.is_empty() {
            // However they are cut.
            let cut = left.len().min(777);
            let count = manners.received(&left[..cut], 0).unwrap();
            left = &left[count..];
            if manners.small_frames() == FRAMES_OF_CONNECTION {
                manners.had_turn();
                turns.push((many.len() - left.len()) / (HEAD_BYTES + 1));
            }
        }
        assert_eq!(turns, [256, 512, 768]);
    }
}
