//! Questions that only dataplanes can answer: each is put to all of them, and what came in time is the zone's answer.
//!
//! A dataplane answers on the stream it was asked on. One whose stream ends meanwhile (it looks for endpoints afresh, say) is asked again
//! on its next.

use std::{collections::BTreeMap, time::Duration};

use mesh_model::api::{DataplaneRequests, PairRequests, SilentDataplane, ZoneRequests};
use mesh_proto::{
    discovery::{
        Answer as Answered, CountRequests, Question, RequestCounts, ToDataplane, answer, question,
        to_dataplane,
    },
    features,
    names::MeshName,
};
use serde_json::json;
use tokio::time::Instant;

use super::{Zone, questions::Reply};

use crate::{
    discovery::unix_ms,
    event::Unknown,
    registry::{Registration, StreamId},
    stream::Outgoing,
};

/// How long dataplanes may take. Global waits a little longer for the zone.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// Gatherings under way of one mesh. More are refused: whoever asked asks again.
const OF_MESH_MAX: usize = 16;
/// Dataplanes that are named as silent at most.
const SILENT_MAX: usize = 100;
/// Who has not been heard of for longer is not waited for: longer than the time between two heartbeats.
const AWAY_MS_MAX: u64 = 15_000;
/// Pairs and buckets that are taken of one dataplane: what it should not send more of.
const PAIRS_MAX: usize = 200;
const BUCKETS_MAX: usize = 32;

/// Why a dataplane is not heard.
const TOO_OLD: &str = "it is too old to be asked";
const SILENT: &str = "it did not answer in time";
const AWAY: &str = "it is not connected at the moment";

/// All that are under way.
#[derive(Default)]
pub(super) struct Gatherings {
    /// Number of the last question.
    last: u64,
    open: BTreeMap<u64, Gathering>,
}

struct Gathering {
    mesh: MeshName,
    ends_at: Instant,
    question: ToDataplane,
    /// Whose answer is awaited, by name.
    waiting: BTreeMap<String, Awaited>,
    found: ZoneRequests,
    reply: Reply,
}

/// Where an answer will come from.
struct Awaited {
    /// `None`: it is between two streams.
    stream: Option<StreamId>,
    session: String,
}

impl Gathering {
    fn ask(
        &mut self,
        name: &str,
        of: &Registration,
        on: Option<(StreamId, &Outgoing<ToDataplane>)>,
    ) {
        if !of
            .features
            .iter()
            .any(|feature| feature == features::QUESTIONS)
        {
            return self.silent(name, TOO_OLD);
        }
        let asked = on.filter(|(_, outgoing)| outgoing.send(self.question.clone()));
        let awaited = Awaited {
            stream: asked.map(|(stream, _)| stream),
            session: of.session.clone(),
        };
        self.waiting.insert(name.to_owned(), awaited);
    }

    fn silent(&mut self, name: &str, reason: &str) {
        self.found.silent.push(SilentDataplane {
            name: name.to_owned(),
            reason: reason.to_owned(),
        });
    }

    fn end(mut self) {
        for (name, awaited) in std::mem::take(&mut self.waiting) {
            self.silent(
                &name,
                if awaited.stream.is_some() {
                    SILENT
                } else {
                    AWAY
                },
            );
        }
        self.found.silent.sort_by(|a, b| a.name.cmp(&b.name));
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

    /// Takes what the dataplane `name` answers. What nobody waits for is dropped: each stream is heard once on each question put to it.
    pub(super) fn take(
        &mut self,
        mesh: &MeshName,
        name: &str,
        stream: StreamId,
        answered: Answered,
    ) {
        let Some(one) = self.open.get_mut(&answered.id) else {
            return;
        };
        let asked = one.waiting.get(name);
        if one.mesh != *mesh || asked.is_none_or(|asked| asked.stream != Some(stream)) {
            return;
        }
        let Some(Awaited { session, .. }) = one.waiting.remove(name) else {
            return;
        };
        match answered.what {
            Some(answer::What::RequestCounts(counts)) => {
                one.found
                    .dataplanes
                    .push(view(name.to_owned(), session, counts));
            }
            None => one.silent(name, TOO_OLD),
        }
        self.end_where(|one| one.waiting.is_empty());
    }

    /// Nothing will come on this stream any more.
    pub(super) fn gone(&mut self, stream: StreamId) {
        for one in self.open.values_mut() {
            for awaited in one.waiting.values_mut() {
                awaited.stream.take_if(|asked| *asked == stream);
            }
        }
    }

    /// A dataplane begins a stream: what it was asked on an older one it is asked again.
    pub(super) fn arrived(
        &mut self,
        mesh: &MeshName,
        name: &str,
        of: &Registration,
        stream: StreamId,
        outgoing: &Outgoing<ToDataplane>,
    ) {
        for one in self.open.values_mut() {
            if one.mesh == *mesh && one.waiting.remove(name).is_some() {
                one.ask(name, of, Some((stream, outgoing)));
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
        let Some((mesh, slot)) = self.meshes.get_key_value(mesh) else {
            return;
        };
        let under_way = self.gatherings.open.values();
        if under_way.filter(|one| one.mesh == *mesh).count() >= OF_MESH_MAX {
            let busy = "this zone asks the dataplanes of the mesh already, for others: ask again";
            return reply(Err(Unknown(busy.to_owned())));
        }
        self.gatherings.last += 1;
        let id = self.gatherings.last;
        let question = Question {
            id,
            what: Some(question::What::CountRequests(CountRequests { service })),
        };
        let mut one = Gathering {
            mesh: mesh.clone(),
            ends_at: Instant::now() + PATIENCE,
            question: ToDataplane {
                message: Some(to_dataplane::Message::Question(question)),
            },
            waiting: BTreeMap::new(),
            found: ZoneRequests {
                zone: self.name.to_string(),
                ..ZoneRequests::default()
            },
            reply,
        };
        let now = unix_ms();
        for (name, registration) in slot.mesh.registry().iter() {
            let stream = slot.streams.get(name).map(|(id, outgoing)| (*id, outgoing));
            let lately = now.saturating_sub(registration.silent_since_ms) < AWAY_MS_MAX;
            if stream.is_some() || lately && !registration.leaving {
                one.ask(name, registration, stream);
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
