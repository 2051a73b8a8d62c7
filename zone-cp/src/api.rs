//! The zone's own API: look, don't touch. Loopback only, where it is open.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use mesh_model::api::Problem;
use tokio::sync::{mpsc, oneshot};

use crate::event::{Event, Question};

/// Routes, answered by the zone's loop behind `events`.
pub fn router(events: mpsc::Sender<Event>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/meshes/{mesh}/dataplanes", get(dataplanes))
        .route("/v1/meshes/{mesh}/dataplanes/{name}", get(dataplane))
        .route("/v1/meshes/{mesh}/services", get(services))
        .fallback(|| async {
            problem(
                StatusCode::NOT_FOUND,
                "not-found",
                "there is nothing at this path",
            )
        })
        .with_state(events)
}

type Events = State<mpsc::Sender<Event>>;

async fn status(State(events): Events) -> Response {
    ask(&events, Question::Status).await
}

async fn dataplanes(State(events): Events, Path(mesh): Path<String>) -> Response {
    ask(&events, Question::Dataplanes { mesh }).await
}

async fn dataplane(State(events): Events, Path((mesh, name)): Path<(String, String)>) -> Response {
    ask(&events, Question::Dataplane { mesh, name }).await
}

async fn services(State(events): Events, Path(mesh): Path<String>) -> Response {
    ask(&events, Question::Services { mesh }).await
}

async fn ask(events: &mpsc::Sender<Event>, question: Question) -> Response {
    let (ask, answer) = oneshot::channel();
    let stopping = || {
        problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "this zone control plane is stopping",
        )
    };
    if events.send(Event::Asked(question, ask)).await.is_err() {
        return stopping();
    }
    match answer.await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(unknown)) => problem(StatusCode::NOT_FOUND, "not-found", &unknown.to_string()),
        Err(_) => stopping(),
    }
}

fn problem(status: StatusCode, kind: &str, title: &str) -> Response {
    let body = Problem {
        kind: kind.to_owned(),
        title: title.to_owned(),
        status: status.as_u16(),
        detail: None,
        violations: Vec::new(),
    };
    (
        status,
        [("content-type", "application/problem+json")],
        Json(body),
    )
        .into_response()
}
