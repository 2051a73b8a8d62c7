//! Watching changes, as server-sent events.
//!
//! | event | data | when |
//! | --- | --- | --- |
//! | (none) | [`WatchEvent`] | a change; `id` is set on the last one of a revision, so that a client that comes back with `Last-Event-ID` misses nothing of a revision it has seen in part |
//! | `bookmark` | `{"revision": N, "historyId": "…"}` | at the beginning and every ten seconds: everything up to N has been told |
//! | `gone` | a problem | the revision asked for is too old, or of another history: list again, then watch from the list's revision |
//! | `end` | a problem | the server ends the watch; its data says why |
//!
//! A revision counts within one history. Whoever comes back says with `history` which one it has seen: after a backup
//! was restored, the same number means something else.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use mesh_model::api::WatchEvent;
use mesh_proto::token::ApiToken;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    caller::{Caller, Params, authenticate},
    problem::Problem,
    resources::{kind, view},
};
use crate::{
    app::App,
    authorize::{Action, Actor, Denied, authorize, mesh_of, sees},
    clock,
    state::{Change, image::Image},
};

/// Time between two bookmarks, and between two looks at the caller's token.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(10);
/// Events that wait for a client; one that does not take any for [`SEND_TIMEOUT`] is cut off.
const QUEUE: usize = 256;
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Changes read from the state at once.
const PAGE: usize = 500;

/// Parameters of a watch.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WatchQuery {
    /// Changes after this revision; absent: from now on.
    from: Option<u64>,
    /// Only of this mesh.
    mesh: Option<String>,
    /// Only of this kind.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// The history that `from` is a revision of, as lists and bookmarks say it; absent: not checked.
    history: Option<String>,
    #[serde(rename = "consistency")]
    #[schemars(with = "Option<super::query::Consistency>")]
    _consistency: Option<String>,
}

/// What a watch tells.
struct Filter {
    mesh: Option<String>,
    kind: Option<&'static str>,
}

impl Filter {
    /// Whether the actor may watch with it at all.
    fn may_begin(&self, actor: &Actor) -> Result<(), Denied> {
        let Some(mesh) = &self.mesh else {
            return Ok(());
        };
        authorize(actor, Action::Read, mesh, self.kind.unwrap_or("Mesh"))
    }

    fn tells(&self, actor: &Actor, change: &Change) -> bool {
        let key = &change.key;
        self.kind.is_none_or(|kind| key.kind == kind)
            && self.mesh.as_ref().is_none_or(|mesh| mesh_of(key) == mesh)
            && sees(actor, key)
    }
}

/// `GET /v1/watch`
pub async fn watch(
    State(app): State<App>,
    caller: Caller,
    Params(params): Params<WatchQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let filter = Filter {
        kind: params
            .kind
            .as_deref()
            .map(|word| kind(word).map(|kind| kind.name))
            .transpose()?,
        mesh: params.mesh,
    };
    if let Some(mesh) = &filter.mesh {
        caller.may(&app, Action::Read, mesh, filter.kind.unwrap_or("Mesh"))?;
    }
    let seen = match headers.get("last-event-id") {
        None => None,
        Some(value) => {
            let seen = value
                .to_str()
                .ok()
                .and_then(|text| text.trim().parse().ok());
            Some(seen.ok_or_else(|| {
                Problem::bad_request("Last-Event-ID: must be the id of an event of a watch")
            })?)
        }
    };
    let start = Start {
        from: seen.or(params.from),
        history: params.history,
    };
    let place = app.limits.watch(&caller.actor.name)?;
    // The request has been answered when the watch begins: only its place as a watch is kept.
    let Caller { actor, token, .. } = caller;
    let (events, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        app.metrics.watches(1);
        let ended = produce(&app, actor, &token, &filter, start, &events).await;
        if let Err(End::Told(name, problem)) = ended {
            let data = serde_json::to_string(&problem.body).unwrap_or_default();
            let _ = send(&events, Event::default().event(name).data(data)).await;
        }
        app.metrics.watches(-1);
        drop(place);
    });
    let events = Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new());
    Ok(events.into_response())
}

/// Why a watch ends.
enum End {
    /// The client went, or does not read.
    Lost,
    /// With a last event.
    Told(&'static str, Box<Problem>),
}

type Events = mpsc::Sender<Result<Event, Infallible>>;

/// Where a watch begins.
struct Start {
    from: Option<u64>,
    history: Option<String>,
}

/// Tells changes until the watch ends.
async fn produce(
    app: &App,
    mut actor: Actor,
    token: &ApiToken,
    filter: &Filter,
    start: Start,
    events: &Events,
) -> Result<(), End> {
    let mut revisions = app.cluster.revisions();
    let mut bookmark = tokio::time::interval(BOOKMARK_INTERVAL);
    revisions.mark_unchanged();
    let mut image = app.image();
    let history_id = start.history.unwrap_or_else(|| image.history_id());
    let mut cursor = start.from.unwrap_or_else(|| image.revision());
    if cursor > image.revision() {
        // Another node may have told of what this one has not applied yet.
        app.cluster
            .linearize()
            .await
            .map_err(|unavailable| end(&unavailable.to_string()))?;
        image = app.image();
    }
    loop {
        if image.history_id() != history_id {
            return Err(gone(format!(
                "revision {cursor} is of another history ({history_id}; this is {}): a backup was restored, or a \
                 quorum was forced",
                image.history_id()
            )));
        }
        if cursor > image.revision() {
            return Err(gone(format!(
                "revision {cursor} is not known here (the newest is {})",
                image.revision()
            )));
        }
        while cursor < image.revision() {
            // Looked at again with each page: a slow client must not be told what it may not see any more.
            actor = still(&app.image(), token, actor, filter)?;
            cursor = tell(&image, cursor, &actor, filter, events).await?;
        }
        tokio::select! {
            changed = revisions.changed() => {
                if changed.is_err() {
                    return Err(end("this node stops"));
                }
            }
            _ = bookmark.tick() => {
                // A token that has expired ends its watches too.
                actor = still(&app.image(), token, actor, filter)?;
                let data = Bookmark { revision: cursor, history_id: &history_id };
                let data = serde_json::to_string(&data).unwrap_or_default();
                send(events, Event::default().event("bookmark").id(cursor.to_string()).data(data)).await?;
            }
            () = app.stop.cancelled() => return Err(end("this node stops: watch at another one")),
            () = events.closed() => return Err(End::Lost),
        }
        revisions.mark_unchanged();
        image = app.image();
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bookmark<'a> {
    revision: u64,
    history_id: &'a str,
}

/// Who watches, as it is now: its token may have been revoked, its roles may have changed. What it may not see any more
/// is not told; a watch of one mesh that it may not see any more ends.
fn still(image: &Image, token: &ApiToken, actor: Actor, filter: &Filter) -> Result<Actor, End> {
    let ended = |problem| End::Told("end", Box::new(problem));
    let actor = authenticate(image, token, &actor.address, clock::now_seconds()).map_err(ended)?;
    filter
        .may_begin(&actor)
        .map_err(|denied| ended(denied.into()))?;
    Ok(actor)
}

/// Tells the next changes after `cursor`, and returns how far it came.
async fn tell(
    image: &Image,
    cursor: u64,
    actor: &Actor,
    filter: &Filter,
    events: &Events,
) -> Result<u64, End> {
    let page = image
        .changes_page(cursor, PAGE)
        .map_err(|too_old| gone(too_old.to_string()))?;
    let mut changes = page
        .changes
        .into_iter()
        .filter(|change| filter.tells(actor, change))
        .peekable();
    while let Some(change) = changes.next() {
        let last = changes
            .peek()
            .is_none_or(|next| next.revision != change.revision);
        let told = WatchEvent {
            revision: change.revision,
            key: change.key.into(),
            resource: change.stored.as_ref().map(view),
        };
        let mut event = Event::default().data(serde_json::to_string(&told).unwrap_or_default());
        if last {
            event = event.id(change.revision.to_string());
        }
        send(events, event).await?;
    }
    // A long past of which nothing is to be told keeps nobody else from running.
    tokio::task::yield_now().await;
    Ok(page.through)
}

async fn send(events: &Events, event: Event) -> Result<(), End> {
    match tokio::time::timeout(SEND_TIMEOUT, events.send(Ok(event))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(End::Lost),
    }
}

fn gone(reason: String) -> End {
    let problem = Problem::new(axum::http::StatusCode::GONE, "gone", reason)
        .detail("list again, then watch from the list's revision");
    End::Told("gone", Box::new(problem))
}

fn end(reason: &str) -> End {
    End::Told("end", Box::new(Problem::unavailable(reason)))
}
