//! What an operator can look at and do: HTTP on a Unix socket that only its owner can open.
//!
//! | path | what |
//! | --- | --- |
//! | `GET /config` | documents, endpoints, listeners, what was refused and why |
//! | `GET /connections` | open connections, at most [`CONNECTIONS_SHOWN`] of each worker |
//! | `GET /certificate` | the certificate in use |
//! | `POST /drain` | leave, let open connections end, exit |
//! | `PUT /log-level` | body: a level or directives |
//! | `GET /healthz`, `/readyz`, `/metrics` | as in every process; these also at the metrics address, if there is one |

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use mesh_runtime::{
    admin::{Health, Metrics},
    logging::LevelHandle,
};
use serde_json::Value;
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use crate::{
    control::Event,
    workers::{Command, WorkerHandle},
};

/// Open connections that are shown of each worker.
pub const CONNECTIONS_SHOWN: usize = 1000;

/// What the handlers work with.
#[derive(Clone)]
pub struct Admin {
    /// To the control thread.
    pub events: mpsc::Sender<Event>,
    /// For the list of connections.
    pub workers: Arc<Vec<WorkerHandle>>,
    /// Changes the log level.
    pub level: Option<LevelHandle>,
    /// Cancelled to drain and stop.
    pub stop: CancellationToken,
}

/// Opens the socket at `path`. What an earlier process left there goes.
///
/// # Errors
/// Where the system refuses, or a process listens there.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty() && !p.exists())
    {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process listens there",
            ));
        }
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves `listener` until the process ends.
pub async fn serve(listener: UnixListener, admin: Admin, health: Health, metrics: Metrics) {
    let router = Router::new()
        .route("/config", get(config))
        .route("/certificate", get(certificate))
        .route("/connections", get(connections))
        .route("/drain", post(drain))
        .route("/log-level", put(log_level))
        .with_state(admin)
        .merge(mesh_runtime::admin::router(health, metrics));
    mesh_runtime::admin::serve_router(listener, router, CancellationToken::new()).await;
}

async fn describe(admin: &Admin) -> Option<Value> {
    let (answer, description) = oneshot::channel();
    admin.events.send(Event::Describe(answer)).await.ok()?;
    description.await.ok()
}

async fn config(State(admin): State<Admin>) -> Response {
    match describe(&admin).await {
        Some(description) => Json(description).into_response(),
        None => stopping(),
    }
}

async fn certificate(State(admin): State<Admin>) -> Response {
    match describe(&admin).await {
        Some(description) => Json(description["certificate"].clone()).into_response(),
        None => stopping(),
    }
}

async fn connections(State(admin): State<Admin>) -> Response {
    let mut all = Vec::new();
    for worker in admin.workers.iter() {
        let (answer, list) = oneshot::channel();
        worker.tell(Command::List(CONNECTIONS_SHOWN, answer));
        match list.await {
            Ok(list) => all.extend(list),
            Err(_) => return stopping(),
        }
    }
    Json(all).into_response()
}

async fn drain(State(admin): State<Admin>) -> Response {
    tracing::info!("asked to drain by the admin socket");
    admin.stop.cancel();
    (StatusCode::ACCEPTED, "draining\n").into_response()
}

async fn log_level(State(admin): State<Admin>, level: String) -> Response {
    let Some(handle) = &admin.level else {
        return (StatusCode::CONFLICT, "this process does not log\n").into_response();
    };
    match handle.set(level.trim()) {
        Ok(()) => format!("{}\n", level.trim()).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

fn stopping() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the proxy is stopping\n").into_response()
}
