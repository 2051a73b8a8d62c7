//! Watching changes, as server-sent events.
//!
//! | event | data | when |
//! | --- | --- | --- |
//! | (none) | [`WatchEvent`] | a change; `id` is set on the last one of a revision, so that a client that comes back with `Last-Event-ID` misses nothing of a revision it has seen in part |
//! | `bookmark` | `{"revision": N}` | every ten seconds: everything up to N has been told |
//! | `gone` | a problem | the revision asked for is too old: list again, then watch from the list's revision |
//! | `end` | a problem | the server ends the watch; its data says why |

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::sse::{Event, KeepAlive, Sse},
};
use futures::Stream;
use mesh_model::api::WatchEvent;
use mesh_proto::token::ApiToken;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    caller::{Caller, Params, authenticate},
    problem::Problem,
    resources::{kind, view},
};
use crate::{
    app::App,
    authorize::{Action, Actor, mesh_of, sees},
    clock,
    state::{Change, image::Image},
};

/// Time between two bookmarks, and between two looks at the caller's token.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(10);
/// Events that wait for a client; one that does not take any for [`SEND_TIMEOUT`] is cut off.
const QUEUE: usize = 256;
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Changes above which a watch waits for its turn to read them.
const LONG_HISTORY: u64 = 1000;

/// Parameters of a watch.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchQuery {
    /// Changes after this revision; absent: from now on.
    from: Option<u64>,
    /// Only of this mesh.
    mesh: Option<String>,
    /// Only of this kind.
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "consistency")]
    _consistency: Option<String>,
}

/// What a watch tells.
struct Filter {
    mesh: Option<String>,
    kind: Option<&'static str>,
}

impl Filter {
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
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
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
    let seen = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let from = seen
        .or(params.from)
        .unwrap_or_else(|| app.state().revision());
    let place = app.limits.watch(&caller.actor.name)?;
    // The request has been answered when the watch begins: only its place as a watch is kept.
    let Caller { actor, token, .. } = caller;
    let (events, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        app.metrics.watches(1);
        let ended = produce(&app, actor, &token, &filter, (from, &events)).await;
        if let Err(End::Told(name, problem)) = ended {
            let data = serde_json::to_string(&problem.body).unwrap_or_default();
            let _ = send(&events, Event::default().event(name).data(data)).await;
        }
        app.metrics.watches(-1);
        drop(place);
    });
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new()))
}

/// Why a watch ends.
enum End {
    /// The client went, or does not read.
    Lost,
    /// With a last event.
    Told(&'static str, Box<Problem>),
}

type Events = mpsc::Sender<Result<Event, Infallible>>;

async fn produce(
    app: &App,
    mut actor: Actor,
    token: &ApiToken,
    filter: &Filter,
    (from, events): (u64, &Events),
) -> Result<(), End> {
    let mut revisions = app.cluster.revisions();
    let mut bookmark = tokio::time::interval(BOOKMARK_INTERVAL);
    let mut cursor = from;
    loop {
        revisions.mark_unchanged();
        let image = app.image();
        if cursor > image.revision() {
            return Err(gone(format!(
                "revision {cursor} is not known here (the newest is {}): the history was restored from a backup",
                image.revision()
            )));
        }
        if image.revision() > cursor {
            tell(app, &image, cursor, &actor, filter, events).await?;
            cursor = image.revision();
        }
        tokio::select! {
            changed = revisions.changed() => {
                if changed.is_err() {
                    return Err(end("this node stops"));
                }
            }
            _ = bookmark.tick() => {
                // A token that was revoked or has expired ends its watches too.
                actor = authenticate(
                    &app.image(),
                    token,
                    &actor.address,
                    clock::now_seconds(),
                )
                .map_err(|problem| End::Told("end", Box::new(problem)))?;
                let data = format!("{{\"revision\":{cursor}}}");
                send(events, Event::default().event("bookmark").id(cursor.to_string()).data(data)).await?;
            }
            () = app.stop.cancelled() => return Err(end("this node stops: watch at another one")),
            () = events.closed() => return Err(End::Lost),
        }
    }
}

async fn tell(
    app: &App,
    image: &Arc<Image>,
    cursor: u64,
    actor: &Actor,
    filter: &Filter,
    events: &Events,
) -> Result<(), End> {
    let _turn = if image.revision() - cursor > LONG_HISTORY {
        app.limits.catch_up().await
    } else {
        None
    };
    let changes: Vec<Change> = image
        .changes_since(cursor)
        .map_err(|too_old| gone(too_old.to_string()))?
        .into_iter()
        .filter(|change| filter.tells(actor, change))
        .collect();
    let revisions: Vec<u64> = changes.iter().map(|change| change.revision).collect();
    for (index, change) in changes.into_iter().enumerate() {
        let last = revisions.get(index + 1) != Some(&change.revision);
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
    Ok(())
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
