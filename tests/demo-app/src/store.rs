//! Keeps the items, in memory.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};

use crate::answer::{Answer, Hop, Item, NewItem, Place};

/// More would not fit on the page; the oldest make room.
const ITEMS_MAX: usize = 50;

#[derive(Debug, Clone)]
struct Store {
    place: Place,
    items: Arc<Mutex<Vec<Item>>>,
}

pub(crate) fn router(place: Place) -> Router {
    let items = ["Bread", "Olives", "Lemons"]
        .iter()
        .zip(1..)
        .map(|(text, id)| Item {
            id,
            text: (*text).to_owned(),
        })
        .collect();
    let store = Store {
        place,
        items: Arc::new(Mutex::new(items)),
    };
    Router::new()
        .route("/items", get(list).post(add))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(store)
}

async fn list(State(store): State<Store>) -> Response {
    let items = store
        .items
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let hops = vec![Hop {
        place: store.place,
        next_ms: None,
    }];
    Json(Answer {
        hops,
        items,
        error: None,
    })
    .into_response()
}

async fn add(State(store): State<Store>, Json(item): Json<NewItem>) -> Response {
    let text: String = item.text.trim().chars().take(80).collect();
    if text.is_empty() {
        return (StatusCode::BAD_REQUEST, "an item needs a text\n").into_response();
    }
    {
        let mut items = store.items.lock().unwrap_or_else(PoisonError::into_inner);
        let id = items.last().map_or(1, |last| last.id + 1);
        items.push(Item { id, text });
        if items.len() > ITEMS_MAX {
            items.remove(0);
        }
    }
    list(State(store)).await
}
