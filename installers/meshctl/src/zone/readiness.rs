//! Whether the zone that was started on this machine is in: asked of its own control plane, which alone knows.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mesh_runtime::transport::innermost;
use serde_json::Value;

use super::systemd::Unit;
use crate::failure::Failure;

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Looks until `is_there` has nothing to complain about; else says what it complained about last. A `unit` that has
/// failed is not waited for.
pub(crate) async fn wait<F: Future<Output = Result<(), String>>>(
    unit: &Unit,
    deadline: Instant,
    has_failed: impl Fn() -> bool,
    is_there: impl Fn() -> F,
) -> Result<(), Failure> {
    let log = format!("Its log: journalctl -u {}", unit.name);
    loop {
        let Err(missing) = is_there().await else {
            return Ok(());
        };
        if has_failed() {
            return Err(Failure::failed(format!(
                "the zone has joined, but {} has failed\n{log}",
                unit.name
            )));
        }
        if Instant::now() >= deadline {
            return Err(Failure::Incomplete(format!(
                "the zone has joined and {} is started, but not in yet: {missing}\n{log}",
                unit.name
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The zone control plane of this machine.
pub(crate) struct ControlPlane {
    addresses: PathBuf,
    http: reqwest::Client,
}

impl ControlPlane {
    /// The one with this data directory.
    pub(crate) fn new(data_dir: &Path) -> Result<Self, Failure> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(2))
            .build()
            .map_err(|error| Failure::failed(format!("no HTTP client: {}", innermost(&error))))?;
        Ok(Self {
            addresses: data_dir.join("addresses.json"),
            http,
        })
    }

    /// Whether it is ready, connected to global and has what global has; else what is missing.
    pub(crate) async fn is_in(&self) -> Result<(), String> {
        let (ok, text) = self.ask("admin", "/readyz").await?;
        if !ok {
            return Err(text.trim().to_owned());
        }
        let status = self.status().await?;
        if status["connectedToGlobal"] != true {
            return Err("its control plane is not connected to global".to_owned());
        }
        if status["revision"].as_u64().unwrap_or(0) == 0 {
            return Err("its control plane has received nothing from global yet".to_owned());
        }
        Ok(())
    }

    /// Whether the ingress called `name` serves; else what is missing.
    pub(crate) async fn has_ingress(&self, name: &str) -> Result<(), String> {
        let status = self.status().await?;
        let ingresses = status["ingresses"].as_array();
        let found = ingresses.and_then(|all| all.iter().find(|one| one["name"] == name));
        match found {
            None => Err(format!("{name} has not called the zone's control plane")),
            Some(ingress) if ingress["listening"] != true => {
                Err(format!("{name} does not listen yet"))
            }
            Some(_) => Ok(()),
        }
    }

    async fn status(&self) -> Result<Value, String> {
        let (ok, text) = self.ask("api", "/v1/status").await?;
        serde_json::from_str(&text)
            .ok()
            .filter(|_| ok)
            .ok_or_else(|| {
                format!(
                    "its control plane does not tell its status: {}",
                    text.trim()
                )
            })
    }

    /// Whether the answer is a good one, and its text.
    async fn ask(&self, part: &str, path: &str) -> Result<(bool, String), String> {
        let file = self.addresses.display();
        let text = std::fs::read(&self.addresses)
            .map_err(|_| "its control plane does not listen yet".to_owned())?;
        let addresses: Value =
            serde_json::from_slice(&text).map_err(|error| format!("{file}: {error}"))?;
        let address = addresses[part]
            .as_str()
            .ok_or_else(|| format!("{file}: no {part} address"))?;
        let failed = |error: reqwest::Error| format!("{address}: {}", innermost(&error));
        let answer = self
            .http
            .get(format!("http://{address}{path}"))
            .send()
            .await
            .map_err(failed)?;
        let ok = answer.status().is_success();
        Ok((ok, answer.text().await.map_err(failed)?))
    }
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, http::StatusCode, routing::get};
    use serde_json::json;

    use super::*;
    use crate::zone::systemd::ZONE_CP;

    /// A control plane that says this of itself, and its data directory.
    async fn control_plane(ready: StatusCode, status: Value) -> (tempfile::TempDir, ControlPlane) {
        mesh_runtime::init();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let app = Router::new()
            .route(
                "/readyz",
                get(move || async move { (ready, "store: loading\n") }),
            )
            .route("/v1/status", get(move || async move { Json(status) }));
        tokio::spawn(async { axum::serve(listener, app).await });
        let dir = tempfile::tempdir().unwrap();
        let addresses = json!({"admin": address, "api": address});
        std::fs::write(dir.path().join("addresses.json"), addresses.to_string()).unwrap();
        let control_plane = ControlPlane::new(dir.path()).unwrap();
        (dir, control_plane)
    }

    #[tokio::test]
    async fn a_zone_is_in_when_it_is_connected_and_has_received() {
        for (ready, status, expected) in [
            (
                StatusCode::SERVICE_UNAVAILABLE,
                json!({}),
                Err("store: loading"),
            ),
            (
                StatusCode::OK,
                json!({"connectedToGlobal": false, "revision": 3}),
                Err("not connected to global"),
            ),
            (
                StatusCode::OK,
                json!({"connectedToGlobal": true, "revision": 0}),
                Err("received nothing"),
            ),
            (
                StatusCode::OK,
                json!({"connectedToGlobal": true, "revision": 3}),
                Ok(()),
            ),
        ] {
            let (_dir, control_plane) = control_plane(ready, status).await;
            match (control_plane.is_in().await, expected) {
                (Ok(()), Ok(())) => {}
                (Err(missing), Err(words)) => assert!(missing.contains(words), "{missing}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        }
    }

    #[tokio::test]
    async fn an_ingress_is_in_when_it_listens() {
        let status = json!({"ingresses": [
            {"name": "a", "state": "online", "listening": true},
            {"name": "b", "state": "online", "listening": false},
        ]});
        let (_dir, control_plane) = control_plane(StatusCode::OK, status).await;
        control_plane.has_ingress("a").await.unwrap();
        control_plane.has_ingress("b").await.unwrap_err();
        control_plane.has_ingress("c").await.unwrap_err();
    }

    #[tokio::test]
    async fn what_has_failed_is_not_waited_for_and_time_ends() {
        let missing = || async { Err("no answer".to_owned()) };
        let later = Instant::now() + Duration::from_secs(3600);
        let failed = wait(&ZONE_CP, later, || true, missing).await.unwrap_err();
        assert!(matches!(failed, Failure::Failed(_)));
        let over = wait(&ZONE_CP, Instant::now(), || false, missing)
            .await
            .unwrap_err();
        assert!(over.to_string().contains("no answer"), "{over}");
        assert!(matches!(over, Failure::Incomplete(_)));
    }
}
