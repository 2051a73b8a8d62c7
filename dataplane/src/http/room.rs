//! How much of requests may wait in one worker: the more are under way, the less of each.
//!
//! A few requests get enough to be fast over long distances. Thousands, of which perhaps nobody reads what is sent, get just enough
//! to go on, so that all of them together stay within what a proxy may take. So it is with heads: an ordinary one always has room, a
//! large one while there are few.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Waker},
};

use super::{limits::HttpLimits, message::RequestHead};

/// The most that may wait of one body, in bytes: what a peer may have under way that is far and fast.
pub const ROOM_MAX: u32 = 256 * 1024;
/// The least.
const ROOM_MIN: u32 = 16 * 1024;
/// What may wait in one worker while there are no more requests than get [`ROOM_MIN`] each.
const ROOM_OF_WORKER: u64 = 32 * 1024 * 1024;

/// What always may wait of a head or of trailers, in bytes.
const HEAD_MIN: usize = 16 * 1024;
/// Why one that is too many is refused.
pub const NO_ROOM: &str = "too many large heads are being waited for here";
/// What may wait of all the larger ones that have not come to their end.
const HEADS_OF_WORKER: usize = 16 * 1024 * 1024;
/// Small DATA frames of HTTP/2 that may come before those whom they are for have had their turn.
const FRAMES_OF_WORKER: usize = 16 * 1024;
/// Those of one connection: what h2 keeps them in does not grow smaller again.
pub const FRAMES_OF_CONNECTION: usize = 256;

/// One worker's room.
#[derive(Debug)]
pub struct Room {
    under_way: Cell<usize>,
    each: Cell<u32>,
    heads: Rc<Cell<usize>>,
    frames: Cell<usize>,
    /// Turns that there have been.
    turns: Cell<u64>,
    /// Who waits for the next one.
    waiting: RefCell<Vec<Waker>>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            under_way: Cell::new(0),
            each: Cell::new(ROOM_MAX),
            heads: Rc::default(),
            frames: Cell::default(),
            turns: Cell::default(),
            waiting: RefCell::default(),
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

    /// True where a request that has just begun is one too many: there are as many as may be, or so many that large heads have no room.
    #[must_use]
    pub fn is_full_for(&self, head: &RequestHead, limits: &HttpLimits) -> bool {
        self.under_way.get() > limits.requests
            || self.each.get() == ROOM_MIN && head.bytes() > HEAD_MIN
    }

    /// Room for a head that comes. None is taken yet.
    #[must_use]
    pub fn head(&self) -> HeadRoom {
        HeadRoom {
            of_worker: self.heads.clone(),
            taken: 0,
        }
    }

    /// So many small DATA frames have come, which wait for those whom they are for.
    pub fn note_frames(&self, count: usize) {
        self.frames.set(self.frames.get() + count);
    }

    /// True where no more should be read before those whom frames are for have had their turn.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.frames.get() >= FRAMES_OF_WORKER
    }

    /// How many turns there have been.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.get()
    }

    /// Waits for the next turn. True for the first one: it has to see to it that [`Self::turn`] comes after all who can go on now.
    #[must_use]
    pub fn wait(&self, cx: &Context<'_>) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push(cx.waker().clone());
        waiting.len() == 1
    }

    /// All for whom frames had come have had their turn.
    pub fn turn(&self) {
        self.frames.set(0);
        self.turns.set(self.turns.get() + 1);
        for waker in self.waiting.take() {
            waker.wake();
        }
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

/// What a head takes that has not come to its end, of what all of them may take in one worker.
#[derive(Debug)]
pub struct HeadRoom {
    of_worker: Rc<Cell<usize>>,
    taken: usize,
}

impl HeadRoom {
    /// It takes so many bytes by now. False: there is no room for so many.
    #[must_use]
    pub fn take(&mut self, bytes: usize) -> bool {
        let bytes = if bytes > HEAD_MIN { bytes } else { 0 };
        let all = self.of_worker.get() - self.taken + bytes;
        if bytes > self.taken && all > HEADS_OF_WORKER {
            return false;
        }
        self.of_worker.set(all);
        self.taken = bytes;
        true
    }

    /// It has come to its end, one way or the other.
    pub fn leave(&mut self) {
        if self.taken > 0 {
            self.of_worker.set(self.of_worker.get() - self.taken);
            self.taken = 0;
        }
    }
}

impl Drop for HeadRoom {
    fn drop(&mut self) {
        self.leave();
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
    fn large_heads_have_room_while_they_are_few_and_ordinary_ones_always() {
        let room = Room::default();
        let mut heads: Vec<_> = (0..1000).map(|_| room.head()).collect();
        let large = heads.iter_mut().filter_map(|head| {
            assert!(head.take(HEAD_MIN));
            head.take(128 * 1024).then_some(())
        });
        assert_eq!(large.count(), 128);
        assert!(heads[500].take(HEAD_MIN) && !heads[500].take(HEAD_MIN + 1));
        // What one leaves is for another, and one that has its room keeps it.
        assert!(!heads[0].take(129 * 1024) && heads[0].take(128 * 1024));
        heads[0].leave();
        assert!(heads[500].take(HEAD_MIN + 1));
        heads.clear();
        assert_eq!(room.heads.get(), 0);
    }

    #[test]
    fn requests_with_large_heads_are_refused_where_there_are_many() {
        let (room, limits) = (Room::default(), HttpLimits::default());
        let head = |bytes| RequestHead {
            method: http::Method::GET,
            path: http::uri::PathAndQuery::from_static("/"),
            authority: None,
            headers: http::HeaderMap::from_iter([(
                http::header::COOKIE,
                http::HeaderValue::from_bytes(&vec![b'x'; bytes]).unwrap(),
            )]),
            version: crate::http::message::Version::Http11,
            upgrade: None,
        };
        for _ in 0..1024 {
            room.enter();
            assert!(!room.is_full_for(&head(100_000), &limits));
        }
        room.enter();
        assert!(room.is_full_for(&head(20_000), &limits));
        while room.under_way() < limits.requests {
            room.enter();
        }
        assert!(!room.is_full_for(&head(10_000), &limits));
        room.enter();
        assert!(room.is_full_for(&head(10), &limits));
    }

    #[test]
    fn whoever_reads_too_many_small_frames_waits_for_a_turn() {
        let room = Room::default();
        let cx = Context::from_waker(Waker::noop());
        room.note_frames(FRAMES_OF_WORKER - 1);
        assert!(!room.is_crowded());
        room.note_frames(1);
        assert!(room.is_crowded());
        assert_eq!([room.wait(&cx), room.wait(&cx)], [true, false]);
        room.turn();
        assert!(!room.is_crowded() && room.wait(&cx));
        assert_eq!(room.turns(), 1);
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
