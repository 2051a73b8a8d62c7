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

use http::{Method, StatusCode};
use mesh_runtime::{
    admin::{Answer, Asked, Health, Metrics, endpoints, json, nothing_there, serve_with, text},
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

/// Serves `listener` until `ended`.
pub async fn serve(
    listener: UnixListener,
    admin: Admin,
    health: Health,
    metrics: Metrics,
    ended: CancellationToken,
) {
    let handle = move |asked: Asked| {
        let (admin, health, metrics) = (admin.clone(), health.clone(), metrics.clone());
        async move {
            match endpoints(&asked, &health, &metrics) {
                Some(answer) => answer,
                None => answer(&admin, &asked).await,
            }
        }
    };
    serve_with(listener, handle, ended).await;
}

async fn answer(admin: &Admin, asked: &Asked) -> Answer {
    match (asked.method(), asked.uri().path()) {
        (&Method::GET, "/config") => config(admin).await,
        (&Method::GET, "/certificate") => certificate(admin).await,
        (&Method::GET, "/connections") => connections(admin).await,
        (&Method::POST, "/drain") => drain(admin),
        (&Method::PUT, "/log-level") => log_level(admin, asked.body()),
        _ => nothing_there(asked),
    }
}

async fn describe(admin: &Admin) -> Option<Value> {
    let (answer, description) = oneshot::channel();
    admin.events.send(Event::Describe(answer)).await.ok()?;
    description.await.ok()
}

async fn config(admin: &Admin) -> Answer {
    match describe(admin).await {
        Some(description) => json(&description),
        None => stopping(),
    }
}

async fn certificate(admin: &Admin) -> Answer {
    match describe(admin).await {
        Some(description) => json(&description["certificate"]),
        None => stopping(),
    }
}

async fn connections(admin: &Admin) -> Answer {
    let mut all = Vec::new();
    for worker in admin.workers.iter() {
        let (answer, list) = oneshot::channel();
        worker.tell(Command::List(CONNECTIONS_SHOWN, answer));
        match list.await {
            Ok(list) => all.extend(list),
            Err(_) => return stopping(),
        }
    }
    json(&all)
}

fn drain(admin: &Admin) -> Answer {
    tracing::info!("asked to drain by the admin socket");
    admin.stop.cancel();
    text(StatusCode::ACCEPTED, "draining\n")
}

fn log_level(admin: &Admin, level: &[u8]) -> Answer {
    let Some(handle) = &admin.level else {
        return text(StatusCode::CONFLICT, "this process does not log\n");
    };
    let level = String::from_utf8_lossy(level);
    match handle.set(level.trim()) {
        Ok(()) => text(StatusCode::OK, format!("{}\n", level.trim())),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn stopping() -> Answer {
    text(StatusCode::SERVICE_UNAVAILABLE, "the proxy is stopping\n")
}
