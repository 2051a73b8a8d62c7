//! Requests that are shown as they end to whoever looks.
//!
//! A tap is begun by the first question of the zone that names it and taken from by each further one. Workers filter, and keep what fits
//! into its rate and its room; everything else is only counted. Where nobody looks, a request costs one relaxed load.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use mesh_proto::tap::{self as wire, Caught, Filter, Party, Request};
use prost::Message as _;

use super::{
    message::Version,
    metrics,
    record::{RequestRecord, SaidBy},
};
use crate::{
    record::{Connection, Direction, Reason},
    snapshot::Snapshot,
    tls::verify::VerifiedPeer,
};

/// Taps at once. More are refused, with the reason.
const TAPS_MAX: usize = 8;
/// Requests that wait for the zone to ask. The oldest gives way.
const ROOM: usize = 1000;
/// Requests that are shown in a second at most, whatever is asked for.
const RATE_MAX: u32 = 500;
/// Bytes of one answer. The zone takes messages of 1 MiB; what is left waits for its next question.
const ANSWER_BYTES_MAX: usize = 512 << 10;
/// Bytes around each request in it.
const FRAMING: usize = 8;
/// Bytes of what callers make up: paths, ids.
const PATH_BYTES_MAX: usize = 1024;
const TEXT_BYTES_MAX: usize = 256;
/// How long a tap goes on at most where nobody asks.
const LEASE_MAX: Duration = Duration::from_secs(60);

/// All taps, as workers see them.
#[derive(Default)]
pub struct Taps {
    active: AtomicBool,
    open: ArcSwap<Vec<Arc<Tap>>>,
}

/// One tap.
struct Tap {
    id: String,
    /// Names its begin here.
    run: String,
    filter: Filter,
    with_query: bool,
    net: Mutex<Net>,
}

/// What was caught, and how much more may be.
struct Net {
    matched: u64,
    budget: Budget,
    waiting: VecDeque<Request>,
}

/// So many in a second, and as many at once after a pause.
struct Budget {
    rate: f64,
    left: f64,
    at: Instant,
}

impl Budget {
    fn new(rate_max: u32, now: Instant) -> Self {
        let rate = f64::from(rate_max.clamp(1, RATE_MAX));
        Self {
            rate,
            left: rate,
            at: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * self.rate).min(self.rate);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// What a filter looks at.
struct Seen<'a> {
    direction: Direction,
    source: &'a str,
    destination: &'a str,
    route: &'a str,
    method: &'a str,
    path: &'a str,
    /// 0: there was no answer.
    status: u16,
    failed: bool,
}

/// What a caller sent that was refused before it was a request.
#[derive(Clone, Copy)]
pub struct Refused<'a> {
    /// The caller's connection.
    pub connection: &'a Connection,
    /// What is in force now.
    pub snapshot: &'a Snapshot,
    /// What it was answered.
    pub status: http::StatusCode,
    /// Why.
    pub reason: Reason,
    /// In words.
    pub detail: &'a str,
}

/// Whether `filter` takes what is seen.
fn takes(filter: &Filter, seen: &Seen<'_>) -> bool {
    let is = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
    let Filter {
        service,
        source,
        destination,
        route,
        method,
        path,
        statuses,
        failed,
        direction,
    } = filter;
    let direction = wire::Direction::try_from(*direction).unwrap_or_default();
    let status = u32::from(seen.status);
    (is(service, seen.source) || is(service, seen.destination))
        && is(source, seen.source)
        && is(destination, seen.destination)
        && (route.is_empty() || name_of(seen.route) == route)
        && (method.is_empty() || method.eq_ignore_ascii_case(seen.method))
        && seen.path.starts_with(path.as_str())
        && (statuses.is_empty()
            || statuses
                .iter()
                .any(|range| (range.first..=range.last).contains(&status)))
        && (!failed || seen.failed)
        && (direction == wire::Direction::Unspecified || direction == to_wire(seen.direction))
}

/// The route in what a rule says of where it comes from: `MeshHTTPRoute/shop to[0].rules[1]`.
fn name_of(origin: &str) -> &str {
    let name = origin.split_once('/').map_or(origin, |(_, name)| name);
    name.split(' ').next().unwrap_or_default()
}

impl Tap {
    fn net(&self) -> MutexGuard<'_, Net> {
        self.net.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one that the filter took, and keeps it where there is budget for it.
    fn catch(&self, now: Instant, request: impl FnOnce() -> Request) {
        let mut net = self.net();
        net.matched += 1;
        if net.budget.take(now) {
            if net.waiting.len() >= ROOM {
                net.waiting.pop_front();
            }
            net.waiting.push_back(request());
        }
    }

    /// What has been caught since the last time.
    fn caught(&self) -> Caught {
        let mut net = self.net();
        let mut bytes = 0;
        let mut fits = 0;
        for request in &net.waiting {
            bytes += request.encoded_len() + FRAMING;
            if bytes > ANSWER_BYTES_MAX {
                break;
            }
            fits += 1;
        }
        Caught {
            run: self.run.clone(),
            matched: net.matched,
            requests: net.waiting.drain(..fits).collect(),
            refused: String::new(),
        }
    }
}

impl Taps {
    /// Whether anybody looks.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Shows a request that has ended to those who look for such.
    pub fn show(&self, record: &RequestRecord, duration: Duration) {
        let connection = &record.connection;
        let source = connection.source.borrow();
        let seen = Seen {
            direction: connection.direction,
            source: &source,
            destination: &record.destination,
            route: &record.route,
            method: record.method.as_str(),
            path: record.path_only(),
            status: record.status_or_zero(),
            failed: record.failed(),
        };
        for tap in self.open.load().iter() {
            if takes(&tap.filter, &seen) {
                tap.catch(Instant::now(), || request(record, duration, tap.with_query));
            }
        }
    }

    /// Shows what was no request to those who look for such. It has neither a method nor a path, so nobody who looks for one of these
    /// sees it.
    pub fn show_refused(&self, of: Refused<'_>) {
        let (source, destination) = (
            of.connection.source.borrow(),
            of.connection.destination.borrow(),
        );
        let status = of.status.as_u16();
        let seen = Seen {
            direction: of.connection.direction,
            source: &source,
            destination: &destination,
            route: "",
            method: "",
            path: "",
            status,
            failed: metrics::failed(of.reason, status, None),
        };
        for tap in self.open.load().iter() {
            if takes(&tap.filter, &seen) {
                tap.catch(Instant::now(), || refused(of));
            }
        }
    }

    fn set(&self, taps: Vec<Arc<Tap>>) {
        let any = !taps.is_empty();
        self.open.store(Arc::new(taps));
        self.active.store(any, Ordering::Relaxed);
    }
}

/// Begins and ends taps: the control thread's side.
pub struct Leases {
    taps: Arc<Taps>,
    held: Vec<(Arc<Tap>, Instant)>,
}

impl Leases {
    /// None yet.
    #[must_use]
    pub fn new(taps: Arc<Taps>) -> Self {
        Self {
            taps,
            held: Vec::new(),
        }
    }

    /// Takes a question: begins the tap that it names, or goes on with it, or ends it; and says what it has caught.
    pub fn answer(&mut self, asked: wire::Tap, now: Instant) -> Caught {
        self.expire(now);
        let lease = Duration::from_millis(asked.lease_ms.into()).min(LEASE_MAX);
        let known = self.held.iter_mut().find(|(tap, _)| tap.id == asked.id);
        if let Some((tap, until)) = known {
            *until = now + lease;
            let caught = tap.caught();
            self.expire(now);
            return caught;
        }
        if lease.is_zero() {
            return Caught::default();
        }
        if self.held.len() >= TAPS_MAX {
            return Caught {
                refused: format!("it serves {TAPS_MAX} taps already, as many as it can"),
                ..Caught::default()
            };
        }
        let tap = Arc::new(Tap {
            id: asked.id,
            run: uuid::Uuid::new_v4().to_string(),
            filter: asked.filter.unwrap_or_default(),
            with_query: asked.with_query,
            net: Mutex::new(Net {
                matched: 0,
                budget: Budget::new(asked.rate_max, now),
                waiting: VecDeque::new(),
            }),
        });
        tracing::info!(tap = tap.id, filter = ?tap.filter, "a tap begins");
        let caught = tap.caught();
        self.held.push((tap, now + lease));
        self.publish();
        caught
    }

    /// Ends those that nobody has asked about for as long as they were to last.
    pub fn expire(&mut self, now: Instant) {
        let before = self.held.len();
        self.held.retain(|(tap, until)| {
            let lasts = now < *until;
            if !lasts {
                tracing::info!(tap = tap.id, matched = tap.net().matched, "a tap ends");
            }
            lasts
        });
        if self.held.len() < before {
            self.publish();
        }
    }

    fn publish(&self) {
        let taps = self.held.iter().map(|(tap, _)| tap.clone());
        self.taps.set(taps.collect());
    }
}

fn to_wire(direction: Direction) -> wire::Direction {
    match direction {
        Direction::Inbound => wire::Direction::Inbound,
        Direction::Outbound => wire::Direction::Outbound,
        Direction::Ingress => wire::Direction::Unspecified,
    }
}

/// What is shown of a request: no header and no body, and of the path no query unless it was asked for.
fn request(record: &RequestRecord, duration: Duration, with_query: bool) -> Request {
    let connection = &record.connection;
    let snapshot = record.snapshot();
    let began = SystemTime::now() - duration;
    let began = began.duration_since(SystemTime::UNIX_EPOCH);
    let path = if with_query {
        record.path.as_str()
    } else {
        record.path_only()
    };
    let (source, destination) = parties(
        connection,
        &snapshot,
        record.peer.as_deref(),
        &record.destination,
        record.endpoint.as_deref().unwrap_or_default(),
    );
    let request_id = record.request_id.as_ref().and_then(|id| id.to_str().ok());
    Request {
        began_us: began.map_or(0, micros),
        direction: to_wire(connection.direction).into(),
        source: Some(source),
        destination: Some(destination),
        method: cut(record.method.as_str(), TEXT_BYTES_MAX),
        path: cut(path, PATH_BYTES_MAX),
        version: match record.version {
            Version::Http10 => "1.0",
            Version::Http11 => "1.1",
            Version::Http2 => "2",
        }
        .to_owned(),
        route: record.route.to_string(),
        policy: record.policy.as_deref().unwrap_or_default().to_owned(),
        status: record.status_or_zero().into(),
        grpc_status: record.grpc_status.map(u32::from),
        said_by: record.said_by.as_str().to_owned(),
        reason: record.reason.as_str().to_owned(),
        detail: cut(&record.detail, TEXT_BYTES_MAX),
        duration_us: micros(duration),
        connect_us: record.connected.map(micros),
        first_byte_us: record.first_byte.map(micros),
        bytes_sent: record.sent,
        bytes_received: record.received,
        attempts: record.attempts,
        mirrored: record.mirrored,
        request_id: cut(request_id.unwrap_or_default(), TEXT_BYTES_MAX),
        trace_id: record.trace_id().unwrap_or_default().to_owned(),
    }
}

fn refused(of: Refused<'_>) -> Request {
    let connection = of.connection;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let destination = connection.destination.borrow();
    let (source, destination) = parties(connection, of.snapshot, None, &destination, "");
    Request {
        began_us: now.map_or(0, micros),
        direction: to_wire(connection.direction).into(),
        source: Some(source),
        destination: Some(destination),
        status: of.status.as_u16().into(),
        said_by: SaidBy::of_refusal(of.reason).as_str().to_owned(),
        reason: of.reason.as_str().to_owned(),
        detail: cut(of.detail, TEXT_BYTES_MAX),
        ..Request::default()
    }
}

/// Who called, and who was called. Without a `peer` of the request, it is that of the caller's connection.
fn parties(
    connection: &Connection,
    snapshot: &Snapshot,
    peer: Option<&VerifiedPeer>,
    destination: &str,
    endpoint: &str,
) -> (Party, Party) {
    let own = snapshot.identity.as_ref().map(|own| &own.spiffe_id);
    let own_zone = snapshot.proxy.as_ref().map(|proxy| proxy.zone.as_str());
    let of_connection = connection.peer.borrow();
    let peer = peer.or(of_connection.as_ref()).map(|peer| &peer.id);
    let peer_zone = peer.and_then(|id| id.trust_domain().zone_of_mesh());
    let party = |service: &str, own_end: bool, address: String| {
        let (id, zone) = if own_end {
            (own, own_zone)
        } else {
            (peer, peer_zone)
        };
        Party {
            service: service.to_owned(),
            zone: zone.unwrap_or_default().to_owned(),
            spiffe_id: id.map(ToString::to_string).unwrap_or_default(),
            address,
        }
    };
    let at_caller = connection.direction == Direction::Outbound;
    let source = connection.source_address.to_string();
    (
        party(&connection.source.borrow(), at_caller, source),
        party(destination, !at_caller, endpoint.to_owned()),
    )
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// At most so many bytes of what somebody made up.
fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes_max)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen<'static> {
        Seen {
            direction: Direction::Outbound,
            source: "web",
            destination: "store",
            route: "MeshHTTPRoute/shop to[0].rules[1]",
            method: "GET",
            path: "/items/12",
            status: 503,
            failed: true,
        }
    }

    #[test]
    fn a_filter_takes_what_fits_all_that_it_says() {
        type Change = fn(&mut Filter);
        let ranges = |ranges: &[(u32, u32)]| -> Vec<wire::StatusRange> {
            let ranges = ranges.iter();
            ranges
                .map(|(first, last)| wire::StatusRange {
                    first: *first,
                    last: *last,
                })
                .collect()
        };
        let filter = |change: Change| {
            let mut filter = Filter::default();
            change(&mut filter);
            takes(&filter, &seen())
        };
        let fits: [Change; 12] = [
            |_| {},
            |f| f.service = "web".into(),
            |f| f.service = "store".into(),
            |f| f.source = "web".into(),
            |f| f.destination = "store".into(),
            |f| f.route = "shop".into(),
            |f| f.method = "get".into(),
            |f| f.path = "/items".into(),
            |f| f.failed = true,
            |f| f.direction = wire::Direction::Outbound.into(),
            // Of a newer zone.
            |f| f.direction = 77,
            |f| (f.service, f.method) = ("web".into(), "GET".into()),
        ];
        for (at, change) in fits.into_iter().enumerate() {
            assert!(filter(change), "{at}");
        }
        let others: [Change; 9] = [
            |f| f.service = "sto".into(),
            |f| f.source = "store".into(),
            |f| f.destination = "web".into(),
            |f| f.route = "sho".into(),
            |f| f.route = "MeshHTTPRoute".into(),
            |f| f.method = "POST".into(),
            |f| f.path = "/items/123".into(),
            |f| f.direction = wire::Direction::Inbound.into(),
            |f| (f.service, f.method) = ("web".into(), "POST".into()),
        ];
        for (at, change) in others.into_iter().enumerate() {
            assert!(!filter(change), "{at}");
        }
        let of_status = |statuses, status, failed| {
            let filter = Filter {
                statuses,
                ..Filter::default()
            };
            let seen = Seen {
                status,
                failed,
                ..seen()
            };
            takes(&filter, &seen)
        };
        assert!(of_status(ranges(&[(500, 599)]), 503, true));
        assert!(!of_status(ranges(&[(500, 599)]), 404, true));
        assert!(of_status(ranges(&[(500, 599), (404, 404)]), 404, true));
        assert!(of_status(ranges(&[(0, 0)]), 0, true));
        assert!(!of_status(ranges(&[(0, 0)]), 200, true));
        let failed = Filter {
            failed: true,
            ..Filter::default()
        };
        let well = Seen {
            failed: false,
            ..seen()
        };
        assert!(!takes(&failed, &well));
    }

    fn asked(id: &str, rate_max: u32, lease_ms: u32) -> wire::Tap {
        wire::Tap {
            id: id.into(),
            rate_max,
            lease_ms,
            ..wire::Tap::default()
        }
    }

    /// All taps catch so many requests, with numbers for paths.
    fn catch(leases: &Leases, numbers: std::ops::Range<usize>, now: Instant) {
        for tap in leases.taps.open.load().iter() {
            for number in numbers.clone() {
                tap.catch(now, || Request {
                    path: number.to_string(),
                    ..Request::default()
                });
            }
        }
    }

    #[test]
    fn what_is_too_much_is_counted_and_not_shown() {
        let mut leases = Leases::new(Arc::default());
        let now = Instant::now();
        let begun = leases.answer(asked("a", 10, 1000), now);
        assert_eq!((begun.matched, begun.requests.len()), (0, 0));
        catch(&leases, 0..25, now);
        let caught = leases.answer(asked("a", 10, 1000), now);
        assert_eq!((caught.matched, caught.requests.len()), (25, 10));
        assert_eq!(caught.requests[9].path, "9");
        assert_eq!(caught.run, begun.run);
        // Half a second later there is room for half as many.
        let now = now + Duration::from_millis(500);
        catch(&leases, 25..50, now);
        let caught = leases.answer(asked("a", 10, 1000), now);
        assert_eq!((caught.matched, caught.requests.len()), (50, 5));
    }

    #[test]
    fn where_nobody_asks_the_oldest_give_way_and_no_answer_is_longer_than_the_zone_takes() {
        let mut leases = Leases::new(Arc::default());
        let mut now = Instant::now();
        leases.answer(asked("a", RATE_MAX, 60_000), now);
        for begin in [0, 500, 1000] {
            catch(&leases, begin..begin + 500, now);
            now += Duration::from_secs(1);
        }
        let caught = leases.answer(asked("a", RATE_MAX, 60_000), now);
        assert_eq!((caught.matched, caught.requests.len()), (1500, ROOM));
        assert_eq!(caught.requests[0].path, "500");
        let tap = leases.taps.open.load()[0].clone();
        for _ in 0..ROOM {
            tap.net().waiting.push_back(Request {
                path: "p".repeat(PATH_BYTES_MAX),
                ..Request::default()
            });
        }
        let first = leases.answer(asked("a", RATE_MAX, 60_000), now);
        assert!(first.encoded_len() <= ANSWER_BYTES_MAX + 100);
        let second = leases.answer(asked("a", RATE_MAX, 60_000), now);
        assert!(second.requests.len() > 400, "{}", second.requests.len());
    }

    #[test]
    fn a_tap_that_nobody_asks_about_ends_and_one_that_is_ended_does_at_once() {
        let mut leases = Leases::new(Arc::default());
        let now = Instant::now();
        assert!(!leases.taps.is_active());
        let first = leases.answer(asked("a", 10, 1000), now);
        assert!(leases.taps.is_active());
        leases.expire(now + Duration::from_millis(900));
        assert!(leases.taps.is_active());
        leases.expire(now + Duration::from_millis(1000));
        assert!(!leases.taps.is_active());
        // Asked about again, it is another run.
        let now = now + Duration::from_secs(2);
        assert_ne!(leases.answer(asked("a", 10, 1000), now).run, first.run);
        catch(&leases, 0..1, now);
        let last = leases.answer(asked("a", 10, 0), now);
        assert_eq!((last.matched, last.requests.len()), (1, 1));
        assert!(!leases.taps.is_active());
        assert_eq!(leases.answer(asked("a", 10, 0), now), Caught::default());
        assert!(!leases.taps.is_active());
    }

    #[test]
    fn there_are_only_so_many_taps_at_once() {
        let mut leases = Leases::new(Arc::default());
        let now = Instant::now();
        for id in 0..TAPS_MAX {
            assert_eq!(
                leases.answer(asked(&id.to_string(), 1, 1000), now).refused,
                ""
            );
        }
        let refused = leases.answer(asked("one more", 1, 1000), now).refused;
        assert!(refused.contains("8 taps"), "{refused}");
        let later = now + Duration::from_secs(1);
        assert_eq!(leases.answer(asked("one more", 1, 1000), later).refused, "");
    }

    #[test]
    fn what_callers_make_up_is_cut_between_characters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "abc…");
        assert_eq!(cut("aäö", 2), "a…");
        assert_eq!(cut("", 2), "");
        assert_eq!(cut("äö", 4), "äö");
    }
}
