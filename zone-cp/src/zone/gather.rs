//! Questions that only dataplanes can answer: each is put to all of them, and what came in time is the zone's answer.

use std::{collections::BTreeMap, time::Duration};

use mesh_model::api::{DataplaneRequests, PairRequests, ZoneRequests};
use mesh_proto::{
    discovery::{
        Answer as Answered, CountRequests, Question, RequestCounts, ToDataplane, answer, question,
        to_dataplane,
    },
    features,
};
use serde_json::json;
use tokio::time::Instant;

use super::{Zone, questions::Reply};

use crate::{event::Unknown, registry::StreamId};

/// How long dataplanes may take. Global waits a little longer for the zone.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// Gatherings under way of one mesh. More are refused: whoever asked asks again.
const OF_MESH_MAX: usize = 4;
/// Dataplanes that are named as silent at most.
const SILENT_MAX: usize = 100;
/// Pairs and buckets that are taken of one dataplane: what it should not send more of.
const PAIRS_MAX: usize = 200;
const BUCKETS_MAX: usize = 32;

/// All that are under way.
#[derive(Default)]
pub(super) struct Gatherings {
    /// Number of the last question.
    last: u64,
    open: BTreeMap<u64, Gathering>,
}

struct Gathering {
    mesh: String,
    ends_at: Instant,
    /// Whose answer is awaited: name and session.
    waiting: BTreeMap<StreamId, (String, String)>,
    found: ZoneRequests,
    reply: Reply,
}

impl Gathering {
    fn end(mut self) {
        let late = self.waiting.into_values().map(|(name, _)| name);
        self.found.silent.extend(late);
        self.found.silent.sort();
        self.found.silent.truncate(SILENT_MAX);
        let name = |d: &DataplaneRequests| d.name.clone();
        self.found.dataplanes.sort_by_key(name);
        (self.reply)(Ok(json!(self.found)));
    }
}

impl Gatherings {
    /// When the next one ends, whoever has not answered.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        self.open.values().map(|one| one.ends_at).min()
    }

    /// Ends those whose time has come.
    pub(super) fn end_overdue(&mut self) {
        let now = Instant::now();
        self.end_where(|one| one.ends_at <= now);
    }

    /// Takes an answer. One that nobody waits for is dropped: each stream is heard once on each question put to it.
    pub(super) fn take(&mut self, stream: StreamId, answered: Answered) {
        let Some(one) = self.open.get_mut(&answered.id) else {
            return;
        };
        let Some((name, session)) = one.waiting.remove(&stream) else {
            return;
        };
        match answered.what {
            Some(answer::What::RequestCounts(counts)) => {
                one.found.dataplanes.push(view(name, session, counts));
            }
            None => one.found.silent.push(name),
        }
        self.end_where(|one| one.waiting.is_empty());
    }

    /// Nothing will come on this stream any more.
    pub(super) fn gone(&mut self, stream: StreamId) {
        for one in self.open.values_mut() {
            if let Some((name, _)) = one.waiting.remove(&stream) {
                one.found.silent.push(name);
            }
        }
        self.end_where(|one| one.waiting.is_empty());
    }

    fn end_where(&mut self, over: impl Fn(&Gathering) -> bool) {
        let ended: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, one)| over(one))
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            if let Some(one) = self.open.remove(&id) {
                one.end();
            }
        }
    }
}

impl Zone {
    /// Asks the dataplanes of `mesh` what they have counted.
    pub(super) fn gather_requests(&mut self, mesh: &str, service: String, reply: Reply) {
        if let Err(unknown) = self.find(mesh) {
            return reply(Err(unknown));
        }
        let Some(slot) = self.meshes.get(mesh) else {
            return;
        };
        let under_way = self.gatherings.open.values();
        if under_way.filter(|one| one.mesh == mesh).count() >= OF_MESH_MAX {
            let busy = "this zone asks the dataplanes of the mesh already, for others: ask again";
            return reply(Err(Unknown(busy.to_owned())));
        }
        self.gatherings.last += 1;
        let id = self.gatherings.last;
        let question = ToDataplane {
            message: Some(to_dataplane::Message::Question(Question {
                id,
                what: Some(question::What::CountRequests(CountRequests { service })),
            })),
        };
        let mut one = Gathering {
            mesh: mesh.to_owned(),
            ends_at: Instant::now() + PATIENCE,
            waiting: BTreeMap::new(),
            found: ZoneRequests {
                zone: self.name.to_string(),
                ..ZoneRequests::default()
            },
            reply,
        };
        for (name, (stream, outgoing)) in &slot.streams {
            let registration = slot.mesh.registration(name);
            let able = registration.filter(|r| r.features.iter().any(|f| f == features::QUESTIONS));
            match able {
                Some(registration) if outgoing.send(question.clone()) => {
                    let session = registration.session.clone();
                    one.waiting.insert(*stream, (name.clone(), session));
                }
                _ => one.found.silent.push(name.clone()),
            }
        }
        if one.waiting.is_empty() {
            return one.end();
        }
        self.gatherings.open.insert(id, one);
    }
}

fn view(name: String, session: String, counts: RequestCounts) -> DataplaneRequests {
    let RequestCounts {
        mut bounds,
        pairs,
        omitted,
    } = counts;
    // What is no number does not become JSON.
    bounds.retain(|bound| bound.is_finite());
    bounds.truncate(BUCKETS_MAX);
    let buckets = bounds.len() + 1;
    let pairs = pairs.into_iter().take(PAIRS_MAX).map(|pair| {
        let direction = if pair.inbound { "inbound" } else { "outbound" };
        let mut durations = pair.durations;
        durations.resize(buckets, 0);
        PairRequests {
            source: pair.source,
            destination: pair.destination,
            direction: direction.to_owned(),
            requests: pair.requests,
            failed: pair.failed,
            durations,
        }
    });
    DataplaneRequests {
        name,
        session,
        pairs: pairs.collect(),
        bounds,
        omitted,
    }
}
