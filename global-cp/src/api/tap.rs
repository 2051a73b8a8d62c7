//! Requests as they end, as server-sent events.
//!
//! | event | data | when |
//! | --- | --- | --- |
//! | (none) | [`TappedRequest`] | a request has ended that was looked for |
//! | `state` | [`TapState`] | at the beginning, when it changes, and every ten seconds |
//! | `done` | [`TapState`] | the time is over |
//! | `end` | a problem | the server ends the tap; its data says why |
//!
//! Zones are asked again and again, and ask their dataplanes, which filter. Neither keeps anything of a tap that is not asked about any
//! more, so it ends with its client, or with this node.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    convert::Infallible,
    num::NonZeroU32,
    slice,
    time::Duration,
};

use axum::{
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use mesh_model::api::{SilentDataplane, TapState, TappedRequest, Unanswered, ZoneTap};
use mesh_proto::{
    tap::{Direction, Filter, StatusRange, Tap},
    token::ApiToken,
    zone::{TapRequests, query::What},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    caller::{Caller, Params, Segments, authenticate},
    explain::TOKEN_PATTERN,
    problem::Problem,
    zones::{self, Answers},
};
use crate::{
    app::App,
    authorize::{Action, Actor, authorize},
    clock,
    zone_sync::rollout::KnownZone,
};

/// Time between two questions to a zone.
const POLL: Duration = Duration::from_millis(500);
/// How long dataplanes go on where nobody asks: longer than a zone may take to answer, or to call again.
const LEASE: Duration = Duration::from_secs(10);
/// Time between two looks at which zones there are, and between two states at most.
const LOOK: Duration = Duration::from_secs(10);
/// Events that wait for a client; one that does not take any for [`SEND_TIMEOUT`] is cut off.
const QUEUE: usize = 256;
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Dataplanes of one zone whose numbers are kept.
const DATAPLANES_MAX: usize = 10_000;

/// Requests shown in a second, and seconds that a tap lasts.
const RATE_DEFAULT: u32 = 100;
const RATE_MAX: u32 = 500;
const SECONDS_DEFAULT: u32 = 600;
const SECONDS_MAX: u32 = 3600;
/// Characters of names and paths.
const NAME_MAX: usize = 253;
const PATH_MAX: usize = 1024;

const STATUS_PATTERN: &str = "^(none|[1-5](xx|[0-9][0-9]))(,(none|[1-5](xx|[0-9][0-9])))*$";
const PATH_PATTERN: &str = r"^/[^\x00-\x20\x7f?#]*$";

/// What is looked for. All that is said must hold.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TapQuery {
    /// Who calls, or is called.
    #[schemars(length(min = 1, max = NAME_MAX))]
    service: Option<String>,
    /// Only what this dataplane sees.
    #[schemars(length(min = 1, max = NAME_MAX))]
    dataplane: Option<String>,
    /// Only what this MeshHTTPRoute takes: the caller's dataplane sees it.
    #[schemars(length(min = 1, max = NAME_MAX))]
    route: Option<String>,
    /// Who calls.
    #[schemars(length(min = 1, max = NAME_MAX))]
    from: Option<String>,
    /// Who is called.
    #[schemars(length(min = 1, max = NAME_MAX))]
    to: Option<String>,
    #[schemars(regex(pattern = TOKEN_PATTERN), length(max = NAME_MAX))]
    method: Option<String>,
    /// How the path begins.
    #[schemars(regex(pattern = PATH_PATTERN), length(max = PATH_MAX))]
    path: Option<String>,
    /// One of these: `503`, `5xx`, `none` for no answer; several with commas between.
    #[schemars(regex(pattern = STATUS_PATTERN), length(max = NAME_MAX))]
    status: Option<String>,
    /// Only what has failed: not answered, or with 5xx, or by the mesh, or with a status of gRPC that is the server's fault.
    failed: Option<bool>,
    /// Only what is seen there. Absent: a request between two dataplanes is seen by both.
    direction: Option<Side>,
    /// Show paths with their queries, which may hold secrets.
    query: Option<bool>,
    /// Requests shown in a second at most. Absent: 100.
    #[schemars(range(min = 1, max = RATE_MAX))]
    rate: Option<u32>,
    /// Seconds after which it ends. Absent: 600.
    #[serde(rename = "for")]
    #[schemars(range(min = 1, max = SECONDS_MAX))]
    seconds: Option<u32>,
    /// Ask this zone only.
    #[schemars(length(min = 1, max = NAME_MAX))]
    zone: Option<String>,
    #[serde(rename = "consistency")]
    #[schemars(with = "Option<super::query::Consistency>")]
    _consistency: Option<String>,
}

/// Where a request is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Side {
    /// Beside the called application.
    Inbound,
    /// Beside the caller's.
    Outbound,
}

/// What was asked for, and is understood.
struct Wanted {
    mesh: String,
    zone: Option<String>,
    dataplane: String,
    filter: Filter,
    with_query: bool,
    rate: NonZeroU32,
    time: Duration,
}

impl Wanted {
    fn read(mesh: String, params: TapQuery) -> Result<Self, Problem> {
        let name = |name: &str, text: Option<String>| match text {
            None => Ok(String::new()),
            Some(text) if (1..=NAME_MAX).contains(&text.chars().count()) => Ok(text),
            Some(_) => Err(Problem::bad_request(format!(
                "{name}: must have 1 to {NAME_MAX} characters"
            ))),
        };
        let between = |name: &str, number: Option<u32>, default: u32, most: u32| {
            let number = number.unwrap_or(default);
            NonZeroU32::new(number)
                .filter(|number| number.get() <= most)
                .ok_or_else(|| {
                    Problem::bad_request(format!("{name}: must be between 1 and {most}"))
                })
        };
        let direction = match params.direction {
            None => Direction::Unspecified,
            Some(Side::Inbound) => Direction::Inbound,
            Some(Side::Outbound) => Direction::Outbound,
        };
        let seconds = between("for", params.seconds, SECONDS_DEFAULT, SECONDS_MAX)?;
        Ok(Self {
            mesh,
            zone: match params.zone {
                None => None,
                some => Some(name("zone", some)?),
            },
            dataplane: name("dataplane", params.dataplane)?,
            filter: Filter {
                service: name("service", params.service)?,
                source: name("from", params.from)?,
                destination: name("to", params.to)?,
                route: name("route", params.route)?,
                method: method(params.method)?,
                path: path(params.path)?,
                statuses: statuses(params.status.as_deref())?,
                failed: params.failed.unwrap_or_default(),
                direction: direction.into(),
            },
            with_query: params.query.unwrap_or_default(),
            rate: between("rate", params.rate, RATE_DEFAULT, RATE_MAX)?,
            time: Duration::from_secs(seconds.get().into()),
        })
    }

    fn question(&self, id: &str, lease: Duration) -> What {
        What::TapRequests(TapRequests {
            mesh: self.mesh.clone(),
            dataplane: self.dataplane.clone(),
            tap: Some(Tap {
                id: id.to_owned(),
                filter: Some(self.filter.clone()),
                rate_max: self.rate.get(),
                lease_ms: u32::try_from(lease.as_millis()).unwrap_or(u32::MAX),
                with_query: self.with_query,
            }),
        })
    }

    /// For the audit.
    fn in_words(&self) -> String {
        let filter = &self.filter;
        let said = [
            ("dataplane", &self.dataplane),
            ("service", &filter.service),
            ("route", &filter.route),
            ("from", &filter.source),
            ("to", &filter.destination),
            ("method", &filter.method),
            ("path", &filter.path),
        ];
        let said = said.iter().filter(|(_, what)| !what.is_empty());
        let mut words: Vec<_> = said.map(|(name, what)| format!("{name} {what}")).collect();
        if self.with_query {
            words.push("with queries".to_owned());
        }
        match &*words {
            [] => "all".to_owned(),
            words => words.join(", "),
        }
    }
}

fn method(text: Option<String>) -> Result<String, Problem> {
    let Some(text) = text else {
        return Ok(String::new());
    };
    match http::Method::from_bytes(text.as_bytes()) {
        Ok(_) if text.len() <= NAME_MAX => Ok(text),
        _ => Err(Problem::bad_request("method: must be a method of HTTP")),
    }
}

fn path(text: Option<String>) -> Result<String, Problem> {
    let Some(text) = text else {
        return Ok(String::new());
    };
    let fits = |c: char| !matches!(c, '\0'..=' ' | '\x7f' | '?' | '#');
    if text.starts_with('/') && text.chars().all(fits) && text.chars().count() <= PATH_MAX {
        return Ok(text);
    }
    Err(Problem::bad_request(
        "path: must begin with / and hold neither spaces nor a query",
    ))
}

fn statuses(text: Option<&str>) -> Result<Vec<StatusRange>, Problem> {
    let Some(text) = text.filter(|text| text.len() <= NAME_MAX) else {
        return match text {
            None => Ok(Vec::new()),
            Some(_) => Err(Problem::bad_request("status: too many")),
        };
    };
    text.split(',')
        .map(|word| {
            let range = |first: u32, last: u32| Some(StatusRange { first, last });
            let found = match (word, word.strip_suffix("xx")) {
                ("none", _) => range(0, 0),
                (_, Some(class)) if class.len() == 1 => {
                    let class = class.parse().ok().filter(|class| (1..=5).contains(class));
                    class.and_then(|class: u32| range(class * 100, class * 100 + 99))
                }
                (word, _) if word.len() == 3 && word.bytes().all(|b| b.is_ascii_digit()) => {
                    let status = word.parse().ok();
                    let status = status.filter(|status| (100..600).contains(status));
                    status.and_then(|status: u32| range(status, status))
                }
                _ => None,
            };
            found.ok_or_else(|| {
                Problem::bad_request(format!(
                    "status: {word:?} is neither a status (503) nor a class of them (5xx), nor none"
                ))
            })
        })
        .collect()
}

/// `GET /v1/meshes/{mesh}/tap?service=store&status=5xx`
pub async fn tap(
    State(app): State<App>,
    caller: Caller,
    Segments(mesh): Segments<String>,
    Params(params): Params<TapQuery>,
) -> Result<Response, Problem> {
    caller.may(&app, Action::Tap, &mesh, "")?;
    let wanted = Wanted::read(mesh, params)?;
    let zones = zones::zones_of(&app.image(), &wanted.mesh, wanted.zone.as_deref())?;
    let place = app.limits.watch(&caller.actor.name)?;
    app.tapped(&caller.actor, &wanted.mesh, &wanted.in_words());
    let mut live = Live {
        id: uuid::Uuid::new_v4().to_string(),
        limiter: RateLimiter::direct(Quota::per_second(wanted.rate)),
        tally: Tally::default(),
        said: TapState::default(),
        ends_at: Instant::now() + wanted.time,
        wanted,
        app: app.clone(),
    };
    // Whoever gets an answer knows that the tap has begun.
    let first = live.ask_all(zones, LEASE).await;
    let mut caught = Vec::new();
    let mut asked = Vec::new();
    for (zone, answers) in first {
        caught.extend(live.tally.take(&zone.name, answers));
        asked.push(zone);
    }
    if !live.wanted.dataplane.is_empty() && live.tally.knows_nobody() {
        return Err(Problem::not_found(format!(
            "no dataplane {:?} is connected in mesh {}",
            live.wanted.dataplane, live.wanted.mesh
        )));
    }
    // The request has been answered when the tap begins: only its place as a watch is kept.
    let Caller { actor, token, .. } = caller;
    let (events, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        app.metrics.watches(1);
        let Err(ended) = live
            .produce(asked.clone(), caught, actor, &token, &events)
            .await;
        // Dataplanes need not wait until nobody has asked for long enough.
        let left = live.ask_all(asked, Duration::ZERO).await;
        match ended {
            End::Lost => {}
            End::Over => {
                let _ = live.finish(left, &events).await;
            }
            End::Told(problem) => {
                let _ = send(&events, "end", &problem.body).await;
            }
        }
        app.metrics.watches(-1);
        drop(place);
    });
    let events = Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new());
    Ok(events.into_response())
}

/// Why a tap ends.
enum End {
    /// The client went, or does not read.
    Lost,
    /// Its time is over.
    Over,
    /// With a last event.
    Told(Box<Problem>),
}

type Events = mpsc::Sender<Result<Event, Infallible>>;
type ZoneAnswer = (KnownZone, Answers<ZoneTap>);

/// A tap under way.
struct Live {
    id: String,
    wanted: Wanted,
    limiter: DefaultDirectRateLimiter,
    tally: Tally,
    /// The state that the client knows.
    said: TapState,
    ends_at: Instant,
    app: App,
}

impl Live {
    /// Asks until the tap ends.
    async fn produce(
        &mut self,
        zones: Vec<KnownZone>,
        caught: Vec<TappedRequest>,
        mut actor: Actor,
        token: &ApiToken,
        events: &Events,
    ) -> Result<Infallible, End> {
        let (app, what) = (self.app.clone(), self.wanted.question(&self.id, LEASE));
        let mut known: HashSet<String> = zones.iter().map(|zone| zone.name.clone()).collect();
        let polls = zones.into_iter().map(|zone| ask(&app, zone, &what, POLL));
        let mut polls: FuturesUnordered<_> = polls.collect();
        let mut look = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        self.show(caught, events).await?;
        self.say_state(events).await?;
        loop {
            tokio::select! {
                Some((zone, answers)) = polls.next() => {
                    // Looked at again with each answer: nobody is told what they may not see any more.
                    actor = self.still(token, &actor)?;
                    let caught = self.tally.take(&zone.name, answers);
                    polls.push(ask(&app, zone, &what, POLL));
                    self.show(caught, events).await?;
                    if self.has_changed() {
                        self.say_state(events).await?;
                    }
                }
                _ = look.tick() => {
                    actor = self.still(token, &actor)?;
                    for zone in self.zones() {
                        if known.insert(zone.name.clone()) {
                            polls.push(ask(&app, zone, &what, Duration::ZERO));
                        }
                    }
                    self.say_state(events).await?;
                }
                () = tokio::time::sleep_until(self.ends_at) => return Err(End::Over),
                () = app.stop.cancelled() => {
                    let stops = Problem::unavailable("this node stops: tap at another one");
                    return Err(End::Told(Box::new(stops)));
                }
                () = events.closed() => return Err(End::Lost),
            }
        }
    }

    /// The zones of the mesh, as they are now.
    fn zones(&self) -> Vec<KnownZone> {
        let Wanted { mesh, zone, .. } = &self.wanted;
        zones::zones_of(&self.app.image(), mesh, zone.as_deref()).unwrap_or_default()
    }

    /// Who taps, as it is now: its token may have been revoked, its roles may have changed.
    fn still(&self, token: &ApiToken, actor: &Actor) -> Result<Actor, End> {
        let image = self.app.image();
        let ended = |problem| End::Told(Box::new(problem));
        let actor = authenticate(&image, token, &actor.address, clock::now_seconds());
        let actor = actor.map_err(ended)?;
        authorize(&actor, Action::Tap, &self.wanted.mesh, "").map_err(|d| ended(d.into()))?;
        Ok(actor)
    }

    async fn ask_all(&self, zones: Vec<KnownZone>, lease: Duration) -> Vec<ZoneAnswer> {
        let what = self.wanted.question(&self.id, lease);
        let asked = zones
            .into_iter()
            .map(|zone| ask(&self.app, zone, &what, Duration::ZERO));
        join_all(asked).await
    }

    /// Shows what is not too much.
    async fn show(&mut self, caught: Vec<TappedRequest>, events: &Events) -> Result<(), End> {
        for request in caught {
            if self.limiter.check().is_ok() {
                send(events, "", &request).await?;
                self.tally.shown += 1;
            }
        }
        Ok(())
    }

    /// Whether the client should know more than how many requests it was shown.
    fn has_changed(&self) -> bool {
        let said = TapState {
            shown: self.tally.shown,
            ..self.said.clone()
        };
        self.tally.state() != said
    }

    async fn say_state(&mut self, events: &Events) -> Result<(), End> {
        self.said = self.tally.state();
        send(events, "state", &self.said).await
    }

    async fn finish(&mut self, left: Vec<ZoneAnswer>, events: &Events) -> Result<(), End> {
        for (zone, answers) in left {
            let caught = self.tally.take(&zone.name, answers);
            self.show(caught, events).await?;
        }
        send(events, "done", &self.tally.state()).await
    }
}

async fn ask(app: &App, zone: KnownZone, what: &What, after: Duration) -> ZoneAnswer {
    tokio::time::sleep(after).await;
    let answers = zones::ask(app, slice::from_ref(&zone), what).await;
    (zone, answers)
}

async fn send(events: &Events, name: &str, data: &impl Serialize) -> Result<(), End> {
    let data = serde_json::to_string(data).unwrap_or_default();
    let event = Event::default().data(data);
    let event = match name {
        "" => event,
        name => event.event(name),
    };
    match tokio::time::timeout(SEND_TIMEOUT, events.send(Ok(event))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(End::Lost),
    }
}

/// Who is tapped, and how many requests there were.
#[derive(Default)]
struct Tally {
    zones: BTreeMap<String, OfZone>,
    shown: u64,
}

#[derive(Default)]
struct OfZone {
    /// Names of those that are tapped.
    dataplanes: Vec<String>,
    silent: Vec<SilentDataplane>,
    unanswered: Option<Unanswered>,
    /// Requests that the filters took, by dataplane: in its present run, and in those before.
    matched: HashMap<String, Matched>,
}

#[derive(Default)]
struct Matched {
    run: String,
    now: u64,
    before: u64,
}

impl Tally {
    /// Takes what `zone` said, and gives the requests in it.
    fn take(&mut self, zone: &str, answers: Answers<ZoneTap>) -> Vec<TappedRequest> {
        let of = self.zones.entry(zone.to_owned()).or_default();
        // A zone that was only declared, and never heard of, is not missed.
        of.unanswered = answers.silent().into_iter().next();
        of.dataplanes.clear();
        of.silent.clear();
        let mut caught = Vec::new();
        // A zone is believed about itself alone.
        for (_, answer) in answers.answered {
            let here = |name: &str| format!("{zone}/{name}");
            of.silent
                .extend(answer.silent.into_iter().map(|silent| SilentDataplane {
                    name: here(&silent.name),
                    ..silent
                }));
            for dataplane in answer.dataplanes {
                of.dataplanes.push(here(&dataplane.name));
                let known = of.matched.contains_key(&dataplane.name);
                if known || of.matched.len() < DATAPLANES_MAX {
                    let matched = of.matched.entry(dataplane.name.clone()).or_default();
                    if matched.run != dataplane.run {
                        matched.before += matched.now;
                        matched.run = dataplane.run;
                    }
                    matched.now = dataplane.matched;
                }
                let seen = dataplane.requests.into_iter().map(|request| TappedRequest {
                    zone: zone.to_owned(),
                    dataplane: dataplane.name.clone(),
                    ..request
                });
                caught.extend(seen);
            }
        }
        caught
    }

    /// Whether all zones have answered, and none of them knows a dataplane that is meant.
    fn knows_nobody(&self) -> bool {
        self.zones
            .values()
            .all(|of| of.dataplanes.is_empty() && of.silent.is_empty() && of.unanswered.is_none())
    }

    fn state(&self) -> TapState {
        let zones = self.zones.values();
        let matched: u64 = zones
            .clone()
            .flat_map(|of| of.matched.values())
            .map(|matched| matched.before.saturating_add(matched.now))
            .fold(0, u64::saturating_add);
        TapState {
            dataplanes: zones.clone().flat_map(|of| of.dataplanes.clone()).collect(),
            silent: zones.clone().flat_map(|of| of.silent.clone()).collect(),
            unanswered: zones.filter_map(|of| of.unanswered.clone()).collect(),
            shown: self.shown,
            dropped: matched.saturating_sub(self.shown),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn statuses_are_numbers_or_classes_of_them_or_none() {
        let read = |text| {
            statuses(Some(text)).map(|found| {
                let found = found.into_iter();
                found
                    .map(|range| (range.first, range.last))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(read("503").unwrap(), [(503, 503)]);
        assert_eq!(
            read("5xx,404,none").unwrap(),
            [(500, 599), (404, 404), (0, 0)]
        );
        for bad in [
            "", "xx", "6xx", "0xx", "55x", "099", "600", "+12", "5xx,", "5XX",
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert_eq!(statuses(None).unwrap(), []);
    }

    fn answer(run: &str, matched: u64, paths: &[&str]) -> Answers<ZoneTap> {
        let requests: Vec<_> = paths.iter().map(|path| json!({
            "time": "", "direction": "inbound", "source": {}, "destination": {}, "method": "GET", "path": path,
            "saidBy": "upstream", "durationMs": 1.0, "bytesSent": 0, "bytesReceived": 0, "attempts": 1,
        })).collect();
        let zone = json!({"zone": "a lie", "silent": [{"name": "old-1", "reason": "too old"}], "dataplanes": [
            {"name": "store-1", "run": run, "matched": matched, "requests": requests}]});
        Answers {
            answered: vec![("east".to_owned(), serde_json::from_value(zone).unwrap())],
            unanswered: Vec::new(),
        }
    }

    #[test]
    fn what_dataplanes_matched_and_nobody_was_shown_is_dropped_whatever_the_reason() {
        let mut tally = Tally::default();
        let caught = tally.take("east", answer("a", 5, &["/1", "/2"]));
        let at: Vec<_> = caught
            .iter()
            .map(|r| (&*r.zone, &*r.dataplane, &*r.path))
            .collect();
        assert_eq!(at, [("east", "store-1", "/1"), ("east", "store-1", "/2")]);
        tally.shown = 2;
        let state = tally.state();
        assert_eq!(state.dataplanes, ["east/store-1"]);
        assert_eq!(state.silent[0].name, "east/old-1");
        assert_eq!(state.dropped, 3);
        // The answer between was lost: its requests are missed by the next.
        tally.take("east", answer("a", 9, &["/9"]));
        tally.shown = 3;
        assert_eq!(tally.state().dropped, 6);
        // A restarted dataplane counts anew; what was before stays.
        tally.take("east", answer("b", 1, &["/10"]));
        tally.shown = 4;
        assert_eq!(tally.state().dropped, 6);
    }
}
