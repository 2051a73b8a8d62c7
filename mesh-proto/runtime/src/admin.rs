//! `/healthz`, `/readyz` and `/metrics`, read only.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::ready,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The longest body of a request: what operators send is short.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// How long to wait after the system refused to accept (out of descriptors, most likely).
const PAUSE: Duration = Duration::from_millis(50);

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

/// A request, its body read.
pub type Asked = Request<Bytes>;
/// What is answered.
pub type Answer = Response<String>;

/// An answer in plain text.
pub fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    answer(status, "text/plain; charset=utf-8", text.into())
}

/// An answer in JSON.
pub fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(text) => answer(StatusCode::OK, "application/json", text),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// The answer to a request for what is not there, or not to be had by this method.
#[must_use]
pub fn nothing_there(asked: &Asked) -> Answer {
    let (method, path) = (asked.method(), asked.uri().path());
    text(
        StatusCode::NOT_FOUND,
        format!("nothing answers {method} {path}\n"),
    )
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// What the three endpoints answer. `None`: something else is asked for.
pub fn endpoints(asked: &Asked, health: &Health, metrics: &Metrics) -> Option<Answer> {
    if !matches!(*asked.method(), Method::GET | Method::HEAD) {
        return None;
    }
    match asked.uri().path() {
        "/healthz" => Some(text(StatusCode::OK, "ok\n")),
        "/readyz" => Some(ready_or_not(health)),
        "/metrics" => Some(encode_metrics(metrics)),
        _ => None,
    }
}

/// Serves the three endpoints until `stop`, then lets requests end.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let handle = move |asked: Asked| {
        let answer = endpoints(&asked, &health, &metrics);
        ready(answer.unwrap_or_else(|| nothing_there(&asked)))
    };
    serve_with(listener, handle, stop).await;
}

/// What connections come from.
pub trait Listener: Send {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for a connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        Ok(Self::accept(self).await?.0)
    }
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        Ok(Self::accept(self).await?.0)
    }
}

/// Answers requests by `handle` until `stop`, then lets them end. HTTP/1 and no framework: probes, Prometheus and
/// operators need no more, and what stands here is in the memory of every sidecar.
pub async fn serve_with<F, A>(listener: impl Listener, handle: F, stop: CancellationToken)
where
    F: Fn(Asked) -> A + Clone + Send + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let handle = handle.clone();
        let service = service_fn(move |request| {
            let handle = handle.clone();
            async move {
                let answer = match read(request).await {
                    Ok(asked) => handle(asked).await,
                    Err(answer) => answer,
                };
                Ok::<_, Infallible>(answer)
            }
        });
        let stop = stop.clone();
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
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

async fn read(request: Request<Incoming>) -> Result<Asked, Answer> {
    let (head, body) = request.into_parts();
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => Ok(Request::from_parts(head, body.to_bytes())),
        Err(error) => Err(text(StatusCode::BAD_REQUEST, format!("{error}\n"))),
    }
}

fn ready_or_not(health: &Health) -> Answer {
    let reasons = health.not_ready();
    if reasons.is_empty() {
        return text(StatusCode::OK, "ready\n");
    }
    text(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("{}\n", reasons.join("\n")),
    )
}

fn encode_metrics(metrics: &Metrics) -> Answer {
    let mut encoded = String::new();
    let registry = metrics.lock().unwrap_or_else(PoisonError::into_inner);
    match prometheus_client::encoding::text::encode(&mut encoded, &registry) {
        Ok(()) => answer(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            encoded,
        ),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoints_answer_and_leave_the_rest_to_others() {
        let (health, metrics) = (Health::new(), Metrics::default());
        let ask = |method: Method, path: &str| {
            let asked = Request::builder().method(method).uri(path);
            let asked = asked.body(Bytes::new()).unwrap();
            endpoints(&asked, &health, &metrics).map(|answer| answer.status().as_u16())
        };
        assert_eq!(ask(Method::GET, "/healthz"), Some(200));
        assert_eq!(ask(Method::GET, "/readyz"), Some(503));
        assert_eq!(ask(Method::HEAD, "/metrics?x=y"), Some(200));
        assert_eq!(ask(Method::POST, "/metrics"), None);
        assert_eq!(ask(Method::GET, "/config"), None);
        health.set("store", Ok(()));
        assert_eq!(ask(Method::GET, "/readyz"), Some(200));
    }

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
