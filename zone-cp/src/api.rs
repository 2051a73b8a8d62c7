//! The zone's own API: look, don't touch. Loopback only, where it is open.

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use mesh_model::api::{CallRequest, Key, Problem};
use tokio::sync::{mpsc, oneshot};

use crate::{
    event::{Event, Question},
    explain::Call,
};

/// Routes, answered by the zone's loop behind `events`.
pub fn router(events: mpsc::Sender<Event>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/meshes/{mesh}/dataplanes", get(dataplanes))
        .route("/v1/meshes/{mesh}/dataplanes/{name}", get(dataplane))
        .route("/v1/meshes/{mesh}/services", get(services))
        .route("/v1/meshes/{mesh}/services/{name}", get(service))
        .route("/v1/meshes/{mesh}/policies/{kind}/{name}", get(policy))
        .route("/v1/meshes/{mesh}/calls/{from}/{to}", get(call))
        .route("/v1/meshes/{mesh}/resources", get(resources))
        .route("/v1/resources", get(global_resources))
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

async fn service(State(events): Events, Path((mesh, name)): Path<(String, String)>) -> Response {
    ask(&events, Question::Service { mesh, name }).await
}

async fn policy(
    State(events): Events,
    Path((mesh, kind, name)): Path<(String, String, String)>,
) -> Response {
    let Some(kind) = mesh_model::find_kind(&kind) else {
        let title = format!("there is no kind {kind}");
        return problem(StatusCode::NOT_FOUND, "not-found", &title);
    };
    let key = Key {
        kind: kind.name.to_owned(),
        mesh,
        zone: String::new(),
        name,
    };
    ask(&events, Question::Policy(key)).await
}

#[derive(serde::Deserialize)]
struct CallQuery {
    /// Absent: each port.
    #[serde(default)]
    port: u16,
    /// Of a request; absent: of whichever. See [`CallRequest::of_parameters`].
    method: Option<String>,
    path: Option<String>,
    headers: Option<String>,
}

async fn call(
    State(events): Events,
    Path((mesh, from, to)): Path<(String, String, String)>,
    Query(query): Query<CallQuery>,
) -> Response {
    let CallQuery {
        port,
        method,
        path,
        headers,
    } = query;
    let request =
        CallRequest::of_parameters(method.as_deref(), path.as_deref(), headers.as_deref());
    let request = match request {
        Ok(request) => request,
        Err(error) => return problem(StatusCode::BAD_REQUEST, "bad-request", &error.to_string()),
    };
    let call = Call {
        from,
        to,
        port,
        request,
    };
    ask(&events, Question::Call { mesh, call }).await
}

async fn resources(State(events): Events, Path(mesh): Path<String>) -> Response {
    ask(&events, Question::Resources { mesh }).await
}

async fn global_resources(State(events): Events) -> Response {
    let mesh = String::new();
    ask(&events, Question::Resources { mesh }).await
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
