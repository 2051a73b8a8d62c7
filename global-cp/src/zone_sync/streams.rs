//! The zones' streams that end at this node: who they are, when they were last heard, what they said of themselves.
//!
//! Liveness belongs to a stream, never to a zone: a new stream of a zone says nothing about an old one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use mesh_proto::{
    raft::ConnectedZone,
    zone::{Query, QueryAnswer, ToZone, ZoneStatus, to_zone::Message},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::report::Position;
use crate::cluster::{ZoneStreams, zone_patience};

/// Questions under way on one stream. More are refused.
const QUERIES_MAX: usize = 256;

/// All streams that end here. Clones share them.
#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// By zone and instance of its control plane.
    streams: BTreeMap<(String, String), Arc<Stream>>,
    /// When the newest certificate seen here of each zone ends, in Unix seconds.
    certificates: HashMap<String, u64>,
    /// Newest report seen here of each zone.
    positions: HashMap<String, Position>,
}

/// One stream.
pub struct Stream {
    /// The zone.
    pub zone: String,
    /// The instance of its control plane.
    pub instance: String,
    /// Random, made by the zone for this very stream.
    pub session: String,
    /// Version of the zone's control plane.
    pub version: String,
    /// Ends the stream, with the reason.
    pub cut: Cut,
    /// To the zone. Bounded where it is made.
    pub outgoing: mpsc::Sender<Result<ToZone, Status>>,
    heard: Mutex<Heard>,
    questions: Mutex<HashMap<u64, oneshot::Sender<QueryAnswer>>>,
    next_question: AtomicU64,
}

struct Heard {
    at: Instant,
    status: Option<ZoneStatus>,
    acknowledged: u64,
}

/// Ends a stream and remembers why.
#[derive(Debug, Clone, Default)]
pub struct Cut {
    token: CancellationToken,
    reason: Arc<Mutex<Option<String>>>,
}

impl Cut {
    /// Ends it. The first reason counts.
    pub fn cut(&self, reason: impl Into<String>) {
        lock(&self.reason).get_or_insert_with(|| reason.into());
        self.token.cancel();
    }

    /// Resolves with the reason when it was cut.
    pub async fn cancelled(&self) -> String {
        self.token.cancelled().await;
        lock(&self.reason).clone().unwrap_or_default()
    }
}

impl Stream {
    /// A stream that has just said hello.
    #[must_use]
    pub fn new(
        zone: String,
        instance: String,
        session: String,
        version: String,
        outgoing: mpsc::Sender<Result<ToZone, Status>>,
    ) -> Self {
        Self {
            zone,
            instance,
            session,
            version,
            cut: Cut::default(),
            outgoing,
            heard: Mutex::new(Heard {
                at: Instant::now(),
                status: None,
                acknowledged: 0,
            }),
            questions: Mutex::default(),
            next_question: AtomicU64::new(1),
        }
    }

    /// Something came on this very stream.
    pub fn heard(&self) {
        lock(&self.heard).at = Instant::now();
    }

    /// How long nothing came.
    #[must_use]
    pub fn silence(&self) -> Duration {
        lock(&self.heard).at.elapsed()
    }

    /// The zone has applied `revision`.
    pub fn acknowledged(&self, revision: u64) {
        let mut heard = lock(&self.heard);
        heard.acknowledged = heard.acknowledged.max(revision);
    }

    /// What the zone says of itself.
    pub fn status(&self, status: ZoneStatus) {
        let mut heard = lock(&self.heard);
        heard.acknowledged = heard.acknowledged.max(status.revision);
        heard.status = Some(status);
    }

    /// An answer came.
    pub fn answer(&self, answer: QueryAnswer) {
        // Nobody waits any more for an answer that comes late.
        if let Some(waiting) = lock(&self.questions).remove(&answer.id) {
            let _ = waiting.send(answer);
        }
    }

    fn connected(&self) -> ConnectedZone {
        let heard = lock(&self.heard);
        ConnectedZone {
            zone: self.zone.clone(),
            version: self.version.clone(),
            session: self.session.clone(),
            status: heard.status.clone(),
            silent_ms: u64::try_from(heard.at.elapsed().as_millis()).unwrap_or(u64::MAX),
            acknowledged_revision: heard.acknowledged,
            certificate_not_after: 0,
        }
    }

    async fn ask(&self, query: Query) -> QueryAnswer {
        let id = self.next_question.fetch_add(1, Ordering::Relaxed);
        let failed = |reason: &str| QueryAnswer {
            id: query.id,
            json: vec![],
            error: format!("zone {}: {reason}", self.zone),
        };
        let (answer, waiting) = oneshot::channel();
        {
            let mut questions = lock(&self.questions);
            if questions.len() >= QUERIES_MAX {
                return failed("too many questions are under way");
            }
            questions.insert(id, answer);
        }
        let message = ToZone {
            message: Some(Message::Query(Query {
                id,
                ..query.clone()
            })),
        };
        let sent = self.outgoing.try_send(Ok(message));
        let answered = match sent {
            Ok(()) => tokio::time::timeout(zone_patience(&query), waiting).await,
            Err(_) => {
                lock(&self.questions).remove(&id);
                return failed("its stream is congested");
            }
        };
        lock(&self.questions).remove(&id);
        match answered {
            Ok(Ok(answer)) => QueryAnswer {
                id: query.id,
                ..answer
            },
            Ok(Err(_)) => failed("its stream ended"),
            Err(_) => failed("it did not answer in time"),
        }
    }
}

impl Streams {
    /// Takes a stream up. An older one of the same zone and instance is cut: it is the same process, which has called
    /// again.
    pub fn add(&self, stream: &Arc<Stream>) {
        let key = (stream.zone.clone(), stream.instance.clone());
        let older = lock(&self.0).streams.insert(key, stream.clone());
        if let Some(older) = older {
            older
                .cut
                .cut("a newer stream of the same control plane has taken its place");
        }
    }

    /// Forgets a stream, unless another has taken its place.
    pub fn remove(&self, stream: &Arc<Stream>) {
        let key = (stream.zone.clone(), stream.instance.clone());
        let mut inner = lock(&self.0);
        if inner
            .streams
            .get(&key)
            .is_some_and(|current| Arc::ptr_eq(current, stream))
        {
            inner.streams.remove(&key);
        }
    }

    /// Takes note of a zone's certificate, which ends at `ends` (Unix seconds).
    pub fn certificate(&self, zone: &str, ends: u64) {
        let mut inner = lock(&self.0);
        let known = inner.certificates.entry(zone.to_owned()).or_default();
        *known = ends.max(*known);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.0).streams.len()
    }

    /// Takes note of a report's position. False where a newer report of the zone was seen here before.
    #[must_use]
    pub fn in_order(&self, zone: &str, position: Position) -> bool {
        let mut inner = lock(&self.0);
        let newest = inner.positions.entry(zone.to_owned()).or_default();
        if position < *newest {
            return false;
        }
        *newest = position;
        true
    }

    /// Forgets the position of a zone's reports, and its certificate: it was deleted, or joins anew and counts from the beginning.
    pub fn forget_position(&self, zone: &str) {
        let mut inner = lock(&self.0);
        inner.positions.remove(zone);
        inner.certificates.remove(zone);
    }

    fn of_zone(&self, zone: &str) -> Option<Arc<Stream>> {
        let inner = lock(&self.0);
        inner
            .streams
            .values()
            .filter(|stream| stream.zone == zone)
            .min_by_key(|stream| stream.silence())
            .cloned()
    }
}

impl ZoneStreams for Streams {
    fn query(&self, zone: String, query: Query) -> BoxFuture<'static, Option<QueryAnswer>> {
        let stream = self.of_zone(&zone);
        Box::pin(async move { Some(stream?.ask(query).await) })
    }

    fn statuses(&self) -> Vec<ConnectedZone> {
        let inner = lock(&self.0);
        inner
            .streams
            .values()
            .map(|stream| ConnectedZone {
                certificate_not_after: inner
                    .certificates
                    .get(&stream.zone)
                    .copied()
                    .unwrap_or_default(),
                ..stream.connected()
            })
            .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(
        instance: &str,
        session: &str,
    ) -> (Arc<Stream>, mpsc::Receiver<Result<ToZone, Status>>) {
        let (outgoing, receiver) = mpsc::channel(4);
        let stream = Stream::new(
            "east".into(),
            instance.into(),
            session.into(),
            "0.1.0".into(),
            outgoing,
        );
        (Arc::new(stream), receiver)
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_stream_replaces_the_older_and_liveness_is_per_stream() {
        let streams = Streams::default();
        let (old, _old_receiver) = stream("i", "old");
        streams.add(&old);
        tokio::time::advance(Duration::from_secs(60)).await;
        let (new, _new_receiver) = stream("i", "new");
        streams.add(&new);
        assert!(old.cut.cancelled().await.contains("newer stream"));
        assert_eq!(old.silence(), Duration::from_secs(60));
        assert_eq!(new.silence(), Duration::ZERO);
        // The old one's end does not take the new one along.
        streams.remove(&old);
        let sessions: Vec<_> = streams.statuses().into_iter().map(|s| s.session).collect();
        assert_eq!(sessions, ["new"]);
        // Another instance of the zone stands beside it.
        let (other, _other_receiver) = stream("j", "other");
        streams.add(&other);
        assert_eq!(streams.count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_is_answered_or_given_up() {
        let streams = Streams::default();
        assert!(
            streams
                .query("east".into(), Query::default())
                .await
                .is_none()
        );
        let (stream, mut receiver) = stream("i", "s");
        streams.add(&stream);
        let asked = tokio::spawn(streams.query("east".into(), Query { id: 7, what: None }));
        let Some(Ok(ToZone {
            message: Some(Message::Query(query)),
        })) = receiver.recv().await
        else {
            panic!("no question")
        };
        stream.answer(QueryAnswer {
            id: query.id,
            json: b"[]".to_vec(),
            error: String::new(),
        });
        let answer = asked.await.unwrap().unwrap();
        assert_eq!((answer.id, answer.json.as_slice()), (7, b"[]".as_slice()));
        // Silence: given up after a while (paused time runs by itself).
        let answer = streams
            .query("east".into(), Query::default())
            .await
            .unwrap();
        assert!(answer.error.contains("did not answer"), "{}", answer.error);
    }

    #[test]
    fn reports_count_only_in_order() {
        let streams = Streams::default();
        let at = |epoch, sequence| Position { epoch, sequence };
        assert!(streams.in_order("east", at(2, 1)));
        assert!(!streams.in_order("east", at(1, 9)));
        assert!(streams.in_order("east", at(2, 1)));
        assert!(streams.in_order("west", at(1, 1)));
        streams.forget_position("east");
        assert!(streams.in_order("east", at(1, 1)));
    }
}
