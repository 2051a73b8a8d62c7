//! Questions that only dataplanes can answer: each is put to all of them, and what came in time is the zone's answer.
//!
//! A dataplane answers on the stream it was asked on. One whose stream ends meanwhile (it looks for endpoints afresh, say) is asked again
//! on its next.

use std::{collections::BTreeMap, time::Duration};

use mesh_model::api::{
    DataplaneRequests, DataplaneTap, PairRequests, Party, SilentDataplane, TappedRequest,
    ZoneRequests, ZoneTap,
};
use mesh_proto::{
    discovery::{
        Answer as Answered, CountRequests, Question, RequestCounts, ToDataplane, answer, question,
        to_dataplane,
    },
    features,
    names::{MeshName, ZoneName},
    tap::{self, Tap},
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
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
/// Requests that are passed on at once. What is more has been dropped, and counts as such.
const TAPPED_MAX: usize = 4_000;

/// Why a dataplane is not heard.
const TOO_OLD: &str = "it is too old to be asked";
const SILENT: &str = "it did not answer in time";
const AWAY: &str = "it is not connected at the moment";

/// All that are under way.
pub(super) struct Gatherings {
    zone: String,
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
    found: Found,
    silent: Vec<SilentDataplane>,
    reply: Reply,
}

/// What was answered so far.
enum Found {
    Counts(Vec<DataplaneRequests>),
    Caught(Vec<DataplaneTap>),
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
        self.silent.push(SilentDataplane {
            name: name.to_owned(),
            reason: reason.to_owned(),
        });
    }

    fn end(mut self, zone: &str) {
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
        self.silent.sort_by(|a, b| a.name.cmp(&b.name));
        self.silent.truncate(SILENT_MAX);
        (self.reply)(Ok(self.found.view(zone.to_owned(), self.silent)));
    }
}

impl Found {
    /// Takes one dataplane's answer. `false`: it is none to the question.
    fn take(&mut self, name: &str, session: String, what: Option<answer::What>) -> bool {
        match (self, what) {
            (Self::Counts(found), Some(answer::What::RequestCounts(counts))) => {
                found.push(counted(name.to_owned(), session, counts));
            }
            (Self::Caught(found), Some(answer::What::Caught(caught))) => {
                let taken: usize = found.iter().map(|one| one.requests.len()).sum();
                let requests = caught.requests.into_iter();
                let requests = requests.take(TAPPED_MAX.saturating_sub(taken));
                found.push(DataplaneTap {
                    name: name.to_owned(),
                    run: caught.run,
                    matched: caught.matched,
                    requests: requests.map(tapped).collect(),
                });
            }
            _ => return false,
        }
        true
    }

    fn view(self, zone: String, silent: Vec<SilentDataplane>) -> Value {
        match self {
            Self::Counts(mut dataplanes) => {
                dataplanes.sort_by(|a, b| a.name.cmp(&b.name));
                json!(ZoneRequests {
                    zone,
                    dataplanes,
                    silent
                })
            }
            Self::Caught(mut dataplanes) => {
                dataplanes.sort_by(|a, b| a.name.cmp(&b.name));
                json!(ZoneTap {
                    zone,
                    dataplanes,
                    silent
                })
            }
        }
    }
}

impl Gatherings {
    /// None yet, in `zone`.
    pub(super) fn new(zone: &ZoneName) -> Self {
        Self {
            zone: zone.to_string(),
            last: 0,
            open: BTreeMap::new(),
        }
    }

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
            Some(answer::What::Caught(caught)) if !caught.refused.is_empty() => {
                one.silent(name, &caught.refused);
            }
            what => {
                if !one.found.take(name, session, what) {
                    one.silent(name, TOO_OLD);
                }
            }
        }
        self.end_complete();
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
        self.end_complete();
    }

    fn end_complete(&mut self) {
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
                one.end(&self.zone);
            }
        }
    }
}

impl Zone {
    /// Asks the dataplanes of `mesh` what they have counted.
    pub(super) fn gather_requests(&mut self, mesh: &str, service: String, reply: Reply) {
        let what = question::What::CountRequests(CountRequests { service });
        self.gather(mesh, "", what, Found::Counts(Vec::new()), reply);
    }

    /// Asks the dataplanes of `mesh`, or of these only the one that `dataplane` names, what they have caught.
    pub(super) fn gather_tapped(&mut self, mesh: &str, dataplane: &str, tap: Tap, reply: Reply) {
        let what = question::What::Tap(tap);
        self.gather(mesh, dataplane, what, Found::Caught(Vec::new()), reply);
    }

    fn gather(&mut self, mesh: &str, only: &str, what: question::What, found: Found, reply: Reply) {
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
        // Whoever is away is tapped by the next question, which comes soon.
        let waits = matches!(what, question::What::CountRequests(_));
        let question = Question {
            id,
            what: Some(what),
        };
        let mut one = Gathering {
            mesh: mesh.clone(),
            ends_at: Instant::now() + PATIENCE,
            question: ToDataplane {
                message: Some(to_dataplane::Message::Question(question)),
            },
            waiting: BTreeMap::new(),
            found,
            silent: Vec::new(),
            reply,
        };
        let now = unix_ms();
        for (name, registration) in slot.mesh.registry().iter() {
            if !only.is_empty() && only != name {
                continue;
            }
            let stream = slot.streams.get(name).map(|(id, outgoing)| (*id, outgoing));
            let lately = now.saturating_sub(registration.silent_since_ms) < AWAY_MS_MAX;
            if stream.is_some() || waits && lately && !registration.leaving {
                one.ask(name, registration, stream);
            }
        }
        self.gatherings.open.insert(id, one);
        self.gatherings.end_complete();
    }
}

fn tapped(request: tap::Request) -> TappedRequest {
    let ms = |us: u64| us as f64 / 1000.0;
    let party = |party: Option<tap::Party>| {
        let party = party.unwrap_or_default();
        Party {
            service: party.service,
            zone: party.zone,
            spiffe_id: party.spiffe_id,
            address: party.address,
        }
    };
    let direction = match request.direction() {
        tap::Direction::Inbound => "inbound",
        tap::Direction::Outbound => "outbound",
        tap::Direction::Unspecified => "",
    };
    let began = i128::from(request.began_us) * 1000;
    let began = OffsetDateTime::from_unix_timestamp_nanos(began).ok();
    let time = began.and_then(|began| began.format(&Rfc3339).ok());
    TappedRequest {
        time: time.unwrap_or_default(),
        // Global says of whom it heard it.
        zone: String::new(),
        dataplane: String::new(),
        direction: direction.to_owned(),
        source: party(request.source),
        destination: party(request.destination),
        method: request.method,
        path: request.path,
        version: request.version,
        route: request.route,
        policy: request.policy,
        status: u16::try_from(request.status).ok().filter(|s| *s > 0),
        grpc_status: request.grpc_status,
        said_by: request.said_by,
        reason: request.reason,
        detail: request.detail,
        duration_ms: ms(request.duration_us),
        connect_ms: request.connect_us.map(ms),
        first_byte_ms: request.first_byte_us.map(ms),
        bytes_sent: request.bytes_sent,
        bytes_received: request.bytes_received,
        attempts: request.attempts,
        mirrored: request.mirrored,
        request_id: request.request_id,
        trace_id: request.trace_id,
    }
}

fn counted(name: String, session: String, counts: RequestCounts) -> DataplaneRequests {
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
