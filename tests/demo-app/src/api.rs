//! Between the page and the store.

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{
    answer::{NewItem, Place},
    upstream::Upstream,
};

type Api = (Place, Upstream);

pub(crate) fn router(place: Place, store: Upstream) -> Router {
    Router::new()
        .route("/items", get(list).post(add))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state((place, store))
}

async fn list(State((place, store)): State<Api>) -> Response {
    let (status, answer) = store.list(&place).await;
    (status, Json(answer)).into_response()
}

async fn add(State((place, store)): State<Api>, Json(item): Json<NewItem>) -> Response {
    let (status, answer) = store.add(&place, &item).await;
    (status, Json(answer)).into_response()
}
