//! How much of bodies may wait in one worker: the more requests are under way, the less of each.
//!
//! A few requests get enough to be fast over long distances. Thousands, of which perhaps nobody reads what is sent, get just enough
//! to go on, so that all of them together stay within what a proxy may take.

use std::cell::Cell;

/// The most that may wait of one body, in bytes: what a peer may have under way that is far and fast.
pub const ROOM_MAX: u32 = 256 * 1024;
/// The least.
const ROOM_MIN: u32 = 16 * 1024;
/// What may wait in one worker while there are no more requests than get [`ROOM_MIN`] each.
const ROOM_OF_WORKER: u64 = 32 * 1024 * 1024;

/// One worker's room for bodies.
#[derive(Debug)]
pub struct Room {
    under_way: Cell<usize>,
    each: Cell<u32>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            under_way: Cell::new(0),
            each: Cell::new(ROOM_MAX),
        }
    }
}

impl Room {
    /// One more request is under way.
    pub fn enter(&self) {
        self.under_way.set(self.under_way.get() + 1);
        while self.each.get() > ROOM_MIN && self.would_take(self.each.get()) > ROOM_OF_WORKER {
            self.each.set(self.each.get() / 2);
        }
    }

    /// One less. Room grows later than it shrinks, so that it does not change with each request.
    pub fn leave(&self) {
        self.under_way.set(self.under_way.get() - 1);
        while self.each.get() < ROOM_MAX && self.would_take(self.each.get() * 4) <= ROOM_OF_WORKER {
            self.each.set(self.each.get() * 2);
        }
    }

    fn would_take(&self, each: u32) -> u64 {
        self.under_way.get() as u64 * u64::from(each)
    }

    /// Requests under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.get()
    }

    /// What may wait of one body.
    #[must_use]
    pub fn each(&self) -> u32 {
        self.each.get()
    }

    /// What may wait of one body to be written to a slow peer, before no more is taken for it.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.each.get() as usize / 4
    }
}

/// What the peer of a connection of HTTP/2 has been told that it may have under way on each stream.
#[derive(Debug)]
pub struct Window(u32);

impl Window {
    /// What a connection begins with.
    #[must_use]
    pub fn new(room: &Room) -> Self {
        Self(room.each())
    }

    /// What the peer knows.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.0
    }

    /// Tells the peer where the room is another now. `tell` says whether it could be told: one change has to be acknowledged before
    /// the next.
    pub fn follow(&mut self, room: &Room, tell: impl FnOnce(u32) -> bool) {
        let each = room.each();
        if each != self.0 && tell(each) {
            self.0 = each;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_requests_get_less_room_each_and_more_again_when_they_have_gone() {
        let room = Room::default();
        let mut seen = vec![(0, room.each())];
        let mut note = |room: &Room| {
            if seen.last().is_none_or(|(_, each)| *each != room.each()) {
                seen.push((room.under_way(), room.each()));
            }
        };
        for _ in 0..10_000 {
            room.enter();
            note(&room);
            assert!(room.each() == ROOM_MIN || room.would_take(room.each()) <= ROOM_OF_WORKER);
        }
        for _ in 0..10_000 {
            room.leave();
            note(&room);
        }
        const K: u32 = 1024;
        assert_eq!(
            seen,
            [
                (0, 256 * K),
                (129, 128 * K),
                (257, 64 * K),
                (513, 32 * K),
                (1025, 16 * K),
                (512, 32 * K),
                (256, 64 * K),
                (128, 128 * K),
                (64, 256 * K)
            ]
        );
    }

    #[test]
    fn a_peer_is_told_each_room_once_and_again_where_it_could_not_be() {
        let room = Room::default();
        let mut window = Window::new(&room);
        window.follow(&room, |_| panic!("it knows that"));
        for _ in 0..300 {
            room.enter();
        }
        window.follow(&room, |_| false);
        let mut told = None;
        window.follow(&room, |each| told.replace(each).is_none());
        assert_eq!(told, Some(64 * 1024));
        window.follow(&room, |_| panic!("it knows that"));
    }
}
