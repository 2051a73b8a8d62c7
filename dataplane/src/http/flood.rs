//! Peers of HTTP/2 that make work for nothing: frames that ask for an answer, or bring nothing, beyond what requests are a reason for.
//!
//! Resets, headers without an end and empty DATA are counted by h2. It answers PING and SETTINGS however many there are, and whoever
//! sends them without end would keep a worker busy for no request.

use std::io;

use crate::workers::Worker;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
/// Bytes before the payload of a frame.
const HEAD_BYTES: usize = 9;

/// Such frames that a peer may send without any reason, at once.
const CREDIT_MAX: u64 = 1000;
/// One more in so many milliseconds.
const MS_FOR_ONE: u64 = 10;
/// One more for so many bytes that it was sent: more than the answer to one, and about the smallest message, after each of which gRPC
/// may measure the way with a PING.
const SENT_FOR_ONE: u64 = 32;

/// The connection is not served any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a flood of frames that nothing is done with, such as PING and SETTINGS")]
pub struct Flood;

impl From<Flood> for io::Error {
    /// Of a kind that no socket has, by which [`is_flood`] knows it again: h2 passes on no more of an error.
    fn from(flood: Flood) -> Self {
        Self::new(io::ErrorKind::QuotaExceeded, flood)
    }
}

/// The connection was ended for what its peer sent.
#[must_use]
pub fn is_flood(error: &h2::Error) -> bool {
    let error = error.get_io();
    error.is_some_and(|error| error.kind() == io::ErrorKind::QuotaExceeded)
}

/// What one peer has sent, frame by frame.
#[derive(Debug)]
pub struct Manners {
    /// Bytes up to the next frame's head.
    skip: usize,
    /// What has come of it.
    head: [u8; HEAD_BYTES],
    known: usize,
    credit: u64,
    credited_ms: u64,
    /// Bytes sent to it that have not been credited.
    sent: u64,
}

impl Manners {
    /// Of a peer whose first frame comes after `preface` bytes.
    #[must_use]
    pub fn new(worker: &Worker, preface: usize) -> Self {
        Self::at(worker.now_ms(), preface)
    }

    fn at(now_ms: u64, preface: usize) -> Self {
        Self {
            skip: preface,
            head: [0; HEAD_BYTES],
            known: 0,
            credit: CREDIT_MAX,
            credited_ms: now_ms,
            sent: 0,
        }
    }

    /// So many bytes are sent to it.
    pub fn sent(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes as u64);
    }

    /// Looks at what has come.
    ///
    /// # Errors
    /// Where it is too much.
    pub fn received(&mut self, mut bytes: &[u8], now_ms: u64) -> Result<(), Flood> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = (HEAD_BYTES - self.known).min(bytes.len());
            if wanted == 0 {
                return Ok(());
            }
            self.head[self.known..self.known + wanted].copy_from_slice(&bytes[..wanted]);
            self.known += wanted;
            bytes = &bytes[wanted..];
            if self.known < HEAD_BYTES {
                return Ok(());
            }
            self.known = 0;
            let length = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]);
            self.skip = length as usize;
            self.frame(self.head[3], length, now_ms)?;
        }
    }

    fn frame(&mut self, kind: u8, length: u32, now_ms: u64) -> Result<(), Flood> {
        match kind {
            HEADERS => self.give(1),
            DATA if length > 0 => self.give(1),
            // Those of h2, which cost nothing, and those of others.
            PING | SETTINGS | PRIORITY => self.take(now_ms)?,
            kind if kind > WINDOW_UPDATE + 1 => self.take(now_ms)?,
            _ => {}
        }
        Ok(())
    }

    fn give(&mut self, frames: u64) {
        self.credit = self.credit.saturating_add(frames).min(CREDIT_MAX);
    }

    fn take(&mut self, now_ms: u64) -> Result<(), Flood> {
        if self.credit == 0 {
            let sent = std::mem::take(&mut self.sent);
            self.give(sent / SENT_FOR_ONE);
            self.give(now_ms.saturating_sub(self.credited_ms) / MS_FOR_ONE);
            self.credited_ms = now_ms;
        }
        self.credit = self.credit.checked_sub(1).ok_or(Flood)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: u32) -> Vec<u8> {
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 1]);
        frame.resize(HEAD_BYTES + length as usize, kind);
        frame
    }

    /// How many of so many frames are taken.
    fn taken(manners: &mut Manners, frames: usize, bytes: &[u8], now_ms: u64) -> usize {
        let mut taken = 0;
        while taken < frames && manners.received(bytes, now_ms) == Ok(()) {
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
            let mut manners = Manners::at(0, 0);
            assert_eq!(taken(&mut manners, 5000, &frame(kind, length), 0), 1000);
            // Its answers are no reason for more.
            let mut manners = Manners::at(0, 0);
            let mut count = 0;
            while manners.received(&frame(kind, length), 0) == Ok(()) {
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
            assert_eq!(taken(&mut Manners::at(0, 0), 100_000, &both, 0), 100_000);
        }
        let mut manners = Manners::at(0, 0);
        for _ in 0..100_000 {
            manners.sent(24 + 17);
            manners.received(&frame(PING, 8), 0).unwrap();
        }
        let mut manners = Manners::at(0, 0);
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
            let mut manners = Manners::at(0, 24);
            for part in all.chunks(cut) {
                manners.received(part, 0).unwrap();
            }
            let left = (manners.credit, manners.skip, manners.known);
            assert_eq!(left, (CREDIT_MAX - 1, 0, 0), "{cut}");
        }
    }
}
