//! The page, and the data it refreshes itself from.

use axum::{
    Json, Router,
    extract::State,
    response::{Html, IntoResponse, Response},
    routing::get,
};

use crate::{
    answer::{NewItem, Place},
    upstream::Upstream,
};

type Web = (Place, Upstream);

/// One file with everything in it: it works without the network that a mesh may have just taken away.
const PAGE: &str = include_str!("page.html");

pub(crate) fn router(place: Place, api: Upstream) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/items", get(list).post(add))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state((place, api))
}

async fn page(State((place, _)): State<Web>) -> Html<String> {
    // Both come from the command line of whoever started the process, and are shown to nobody else.
    Html(
        PAGE.replace("{{mesh}}", &escape(&place.mesh))
            .replace("{{zone}}", &escape(&place.zone)),
    )
}

async fn list(State((place, api)): State<Web>) -> Response {
    let (status, answer) = api.list(&place).await;
    (status, Json(answer)).into_response()
}

async fn add(State((place, api)): State<Web>, Json(item): Json<NewItem>) -> Response {
    let (status, answer) = api.add(&place, &item).await;
    (status, Json(answer)).into_response()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}
