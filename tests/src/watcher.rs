//! A client of the watch, as one that must miss nothing: it keeps what it was told once a revision is whole, and comes
//! back with that revision to the next server when a connection ends.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use futures::StreamExt as _;
use mesh_model::api::WatchEvent;
use tokio::task::JoinHandle;

use crate::{api, api::Api, world::runtime};

/// Longest silence on a watch: there is a bookmark every ten seconds.
const SILENCE: Duration = Duration::from_secs(25);
/// Wait before the next server is asked.
const BETWEEN: Duration = Duration::from_millis(50);

/// One change that was told.
pub type Told = (u64, String);

/// What a watch has told so far.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// Revision and name of what changed, in the order in which it was told.
    changes: Vec<Told>,
    /// Where it goes on.
    cursor: u64,
    /// Servers that it was connected to, in order.
    servers: Vec<String>,
    /// Why it can not go on.
    gone: Option<String>,
}

/// A running client.
#[derive(Debug)]
pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watcher {
    /// Watches the servers of `api`, one at a time, after revision `from` of history `history`.
    ///
    /// # Errors
    /// Where the token is none.
    pub fn start(api: &Api, from: u64, history: &str) -> anyhow::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen {
            cursor: from,
            ..Seen::default()
        }));
        let http = api::client(&api.token)?.read_timeout(SILENCE).build()?;
        let (api, history, shared) = (api.clone(), history.to_owned(), seen.clone());
        let task = runtime().spawn(async move {
            for server in api.servers.iter().cycle() {
                // Whatever ended it: the next server is asked.
                let _ = watch(&http, server, &api.token, &history, &shared).await;
                if lock(&shared).gone.is_some() {
                    return;
                }
                tokio::time::sleep(BETWEEN).await;
            }
        });
        Ok(Self { seen, task })
    }

    /// Everything that was told, in order.
    ///
    /// # Errors
    /// Where the watch can not go on.
    pub fn changes(&self) -> anyhow::Result<Vec<Told>> {
        let seen = lock(&self.seen);
        match &seen.gone {
            Some(reason) => Err(anyhow::anyhow!("gone: {reason}")),
            None => Ok(seen.changes.clone()),
        }
    }

    /// How far everything was told.
    #[must_use]
    pub fn cursor(&self) -> u64 {
        lock(&self.seen).cursor
    }

    /// The servers it was connected to, in order.
    #[must_use]
    pub fn servers(&self) -> Vec<String> {
        lock(&self.seen).servers.clone()
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn watch(
    http: &reqwest::Client,
    server: &str,
    token: &str,
    history: &str,
    seen: &Mutex<Seen>,
) -> anyhow::Result<()> {
    let from = lock(seen).cursor;
    let url = format!("https://{server}/v1/watch?from={from}&history={history}");
    let response = http.get(url).bearer_auth(token).send().await?;
    let response = response.error_for_status()?;
    lock(seen).servers.push(server.to_owned());
    let mut body = response.bytes_stream();
    let mut text = Vec::new();
    // Changes of a revision of which more may come.
    let mut part = Vec::new();
    while let Some(bytes) = body.next().await {
        text.extend_from_slice(&bytes?);
        while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = text.drain(..end + 2).collect();
            take(std::str::from_utf8(&event)?, &mut part, seen)?;
        }
    }
    Ok(())
}

/// Takes one event.
fn take(event: &str, part: &mut Vec<Told>, seen: &Mutex<Seen>) -> anyhow::Result<()> {
    let field = |name: &str| {
        event
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    match field("event") {
        Some("gone") => lock(seen).gone = Some(field("data").unwrap_or_default().to_owned()),
        Some("end") => anyhow::bail!("the server ends the watch"),
        None if field("data").is_some() => {
            let told: WatchEvent =
                serde_json::from_str(field("data").unwrap_or_default()).context("an event")?;
            part.push((told.revision, told.key.name));
        }
        _ => {}
    }
    if let Some(id) = field("id") {
        let mut seen = lock(seen);
        seen.changes.append(part);
        seen.cursor = id.parse().context("the id of an event")?;
    }
    Ok(())
}
