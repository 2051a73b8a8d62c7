//! A whole proxy, as it runs in its process.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use dataplane::{discovery::TokenSource, process, settings::Settings, workers::Limits};
use mesh_proto::discovery::Role;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::Zone;

pub const DOMAIN: &str = "pay.east.mesh.local";
/// Long enough for anything that must happen soon, on a loaded machine.
pub const SOON: Duration = Duration::from_secs(60);

/// A proxy that runs on a thread of its own.
pub struct Proxy {
    pub stop: CancellationToken,
    pub thread: Option<thread::JoinHandle<anyhow::Result<()>>>,
    pub socket: PathBuf,
    pub dir: PathBuf,
}

impl Proxy {
    pub fn start(zone: &Zone, dir: &TempDir, role: Role, name: &str) -> Self {
        Self::start_with(zone, dir, role, name, |_| {})
    }

    pub fn start_with(
        zone: &Zone,
        dir: &TempDir,
        role: Role,
        name: &str,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let dir = dir.path().join(name);
        let socket = dir.join("admin.sock");
        let mut settings = Settings {
            role,
            zone_cp: vec![zone.address.to_string()],
            token: TokenSource::Text(zone.token()),
            resource: serde_json::json!({ "name": name }).to_string(),
            state_dir: dir.clone(),
            admin_socket: socket.clone(),
            take_over: false,
            metrics_address: None,
            workers: 2,
            log_level: "off".into(),
            drain_timeout: Duration::from_secs(5),
            limits: Limits::default(),
        };
        change(&mut settings);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(process::run(settings, None, stopped))
        });
        Self {
            stop,
            thread: Some(thread),
            socket,
            dir,
        }
    }

    /// Asks the admin socket.
    pub async fn ask(&self, method: &str, path: &str) -> Option<(u16, String)> {
        ask(&self.socket, method, path).await
    }

    pub async fn ready(&self) {
        eventually("ready", async || {
            matches!(self.ask("GET", "/readyz").await, Some((200, _)))
        })
        .await;
    }

    pub async fn metrics(&self) -> String {
        self.ask("GET", "/metrics")
            .await
            .map(|(_, body)| body)
            .unwrap_or_default()
    }

    pub async fn config(&self) -> serde_json::Value {
        let (_, body) = self
            .ask("GET", "/config")
            .await
            .expect("the admin socket answers");
        serde_json::from_str(&body).unwrap()
    }

    /// Waits until a metric line holds all of `words`.
    pub async fn counted(&self, words: &[&str]) {
        eventually(&format!("counted {words:?}"), async || {
            let metrics = self.metrics().await;
            metrics
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
        })
        .await;
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(move || thread.join().unwrap().unwrap())
            .await
            .unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Asks an admin socket.
pub async fn ask(socket: &Path, method: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = UnixStream::connect(socket).await.ok()?;
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n")?.1.to_owned();
    Some((status, body))
}
