//! `/healthz`, `/readyz` and `/metrics`, read only.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
    serve::Listener,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Which parts of the process are ready, and why the others are not. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>);

impl Health {
    /// Nothing is ready until every part that `set` names is.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says whether `part` is ready, or why not.
    pub fn set(&self, part: &'static str, state: Result<(), String>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, state);
    }

    /// Reasons why the process is not ready, as `part: reason`; empty where it is. A process in which no part has
    /// spoken yet is starting, and not ready.
    #[must_use]
    pub fn not_ready(&self) -> Vec<String> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.is_empty() {
            return vec!["starting".to_owned()];
        }
        parts
            .iter()
            .filter_map(|(part, state)| Some(format!("{part}: {}", state.as_ref().err()?)))
            .collect()
    }
}

/// The process's metrics.
pub type Metrics = Arc<Mutex<Registry>>;

/// The three endpoints, for a process that adds others of its own.
pub fn router(health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(health)
        .merge(
            Router::new()
                .route("/metrics", get(encode_metrics))
                .with_state(metrics),
        )
}

/// Serves [`router`] until `stop`, then lets requests end.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    stop: CancellationToken,
) {
    serve_router(listener, router(health, metrics), stop).await;
}

/// Serves `router` until `stop`, then lets requests end. HTTP/1 only, unlike [`axum::serve`]: probes, Prometheus and
/// operators need no more, and an HTTP/2 server would be in the memory of every sidecar.
pub async fn serve_router(mut listener: impl Listener, router: Router, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service);
        let stop = stop.clone();
        connections.spawn(async move {
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "an admin connection broke");
            }
        });
    }
    connections.close();
    connections.wait().await;
}

async fn ready(State(health): State<Health>) -> Response {
    let reasons = health.not_ready();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("{}\n", reasons.join("\n")),
    )
        .into_response()
}

async fn encode_metrics(State(metrics): State<Metrics>) -> Response {
    let mut text = String::new();
    let registry = metrics.lock().unwrap_or_else(PoisonError::into_inner);
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => (
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_every_part_is() {
        let health = Health::new();
        assert_eq!(health.not_ready(), ["starting"]);
        health.set("store", Err("loading".into()));
        health.set("api", Ok(()));
        assert_eq!(health.not_ready(), ["store: loading"]);
        health.set("store", Ok(()));
        assert!(health.not_ready().is_empty());
    }
}
