//! What only somebody on the node's own machine may ask, over a Unix socket in the data directory. The directory's
//! permissions are the authentication.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use axum::{Json, Router, extract::State, routing::post};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use mesh_model::api::CreatedToken;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::{api::problem::Problem, app::App, issue};

/// Where the socket is.
#[must_use]
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

/// Serves until `stop`.
///
/// # Errors
/// Where the socket can not be made.
pub async fn serve(app: App, data_dir: &Path, stop: CancellationToken) -> std::io::Result<()> {
    let path = socket(data_dir);
    // The lock on the directory says that no other process listens there.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let router = Router::new()
        .route("/reset-admin-token", post(reset_admin_token))
        .with_state(app);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn reset_admin_token(State(app): State<App>) -> Result<Json<CreatedToken>, Problem> {
    issue::reset_admin(&app).await.map(Json)
}

/// Why a running node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is none.
    #[error(
        "cannot reach the node at {path} ({source}): is it running, and is --data-dir its data directory?"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It broke off.
    #[error("the node did not answer: {0}")]
    Http(#[from] hyper::Error),
    /// It refuses, in its own words.
    #[error("{0}")]
    Refused(String),
}

/// Asks the node that runs on `data_dir` for a new admin token in place of the first ones.
///
/// # Errors
/// Where it does not run, or can not.
pub async fn ask_reset_admin_token(data_dir: &Path) -> Result<CreatedToken, ControlError> {
    let path = socket(data_dir);
    let stream = UnixStream::connect(&path)
        .await
        .map_err(|source| ControlError::Connect { path, source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::post("/reset-admin-token")
        .header(http::header::HOST, "localhost")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| ControlError::Refused(error.to_string()))?;
    let response = sender.send_request(request).await?;
    let body = response.into_body().collect().await?.to_bytes();
    serde_json::from_slice(&body).map_err(|_| {
        let problem = serde_json::from_slice::<mesh_model::api::Problem>(&body);
        ControlError::Refused(match problem {
            Ok(problem) => problem.title,
            Err(error) => format!("the answer is not understood: {error}"),
        })
    })
}
