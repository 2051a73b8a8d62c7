//! `meshctl watch`: changes as they happen. A connection that ends is opened again where it left off, so that no change
//! is lost or told twice.

use std::{collections::BTreeSet, time::Duration};

use clap::Args;
use clap_complete::ArgValueCompleter;
use mesh_model::{
    Scope,
    api::{Key, List, Problem, WatchEvent},
};
use serde_json::Value;

use crate::{
    cli::Connection,
    client::{Client, ClientError, EventStream},
    completion,
    events::Event,
    failure::Failure,
    kinds,
    output::{self, Format, FormatParser},
};

const EXAMPLES: &str = "\
Examples:
  meshctl watch -m payments                            every change in a mesh
  meshctl watch meshtrafficpermissions -m payments
  meshctl watch --from 41                              what has happened since a revision, and what will
  meshctl watch --count 1 -o json                      the next change only, for scripts
  meshctl watch meshservices -A -o jsonpath='{.key.name}'";

/// The server says something every ten seconds.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Waits between two attempts to connect again.
const AGAIN_AFTER: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// Show changes as they happen, until it is interrupted.
///
/// -o json prints one line for each change.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Watch {
    /// Only this kind.
    #[arg(value_name = "KIND", add = ArgValueCompleter::new(completion::kind))]
    kind: Option<String>,
    /// Of all meshes, whatever -m, ISTHMUS_MESH or the context say.
    #[arg(short = 'A', long)]
    all_meshes: bool,
    /// Begin after this revision instead of now.
    #[arg(long, value_name = "REVISION")]
    from: Option<u64>,
    /// End after so many changes.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How a change is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Watch {
    /// Shows changes as they come.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let kind = self.kind.as_deref().map(kinds::resolve).transpose()?;
        if kind.is_some_and(|kind| kind.name == kinds::DATAPLANE) {
            return Err(Failure::invalid(
                "dataplanes live in their zones, and are not watched; `meshctl get dataplanes` shows them as they are",
            ));
        }
        let mut query = Vec::new();
        query.extend(kind.map(|kind| ("type", kind.plural.to_owned())));
        let in_one_mesh = match kind {
            Some(kind) => kind.scope == Scope::Mesh,
            None => connection.named_mesh().is_some(),
        };
        if in_one_mesh && !self.all_meshes {
            query.push(("mesh", connection.mesh()?));
        }
        let client = Client::new(connection)?;
        let mut told = match self.from {
            Some(from) => Told::after(from),
            // A known place to begin at, so that nothing is lost where the first connection ends at once.
            None => {
                let page: List = client
                    .get(&["meshes"], &[("limit", "1".to_owned())])
                    .await?;
                Told {
                    history: Some(page.history_id).filter(|id| !id.is_empty()),
                    ..Told::after(page.revision)
                }
            }
        };
        let mut shown = 0;
        let mut failures = 0;
        loop {
            let ended = match open(&client, &query, &told).await {
                Ok(mut stream) => {
                    self.follow(&mut stream, &mut told, &mut shown, &mut failures)
                        .await
                }
                Err(error) => Err(error.into()),
            };
            match ended {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(Ended::Failed(failure)) => return Err(failure),
                Err(Ended::Lost(error)) if failures >= AGAIN_AFTER.len() => {
                    return Err(Failure::failed(format!(
                        "{error}\nGo on later where this ended: --from {}",
                        told.revision
                    )));
                }
                Err(Ended::Lost(_)) => {}
            }
            let wait = AGAIN_AFTER[failures.min(AGAIN_AFTER.len() - 1)];
            failures += 1;
            tokio::time::sleep(wait).await;
        }
    }

    /// Shows what one connection tells; true where that is enough.
    async fn follow(
        &self,
        stream: &mut EventStream,
        told: &mut Told,
        shown: &mut u64,
        failures: &mut usize,
    ) -> Result<bool, Ended> {
        while let Some(event) = stream.next().await? {
            *failures = 0;
            let Some(change) = told.take(&event)? else {
                continue;
            };
            let text = self.show(&change)?;
            if !output::print_unless_left(&text)? {
                return Ok(true);
            }
            *shown += 1;
            if self.count.is_some_and(|count| *shown >= count) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn show(&self, change: &WatchEvent) -> Result<String, Failure> {
        let value = serde_json::to_value(change).map_err(anyhow::Error::from)?;
        let what = if change.resource.is_some() {
            "written"
        } else {
            "deleted"
        };
        Ok(match &self.output {
            Format::Table => format!(
                "{}  {} {what}",
                change.revision,
                kinds::display(&change.key)
            ),
            Format::Wide => {
                let resource = change.resource.as_ref().unwrap_or(&Value::Null);
                let time = kinds::text(&resource["modificationTime"]);
                let time = if time.is_empty() {
                    "-".to_owned()
                } else {
                    time
                };
                format!(
                    "{}  {time}  {} {what}  {}",
                    change.revision,
                    kinds::display(&change.key),
                    kinds::labels(&resource["labels"])
                )
            }
            Format::Json => value.to_string(),
            Format::Yaml => format!("---\n{}", mesh_model::to_yaml(&value)),
            Format::Name => kinds::short_name(&change.key.kind, &change.key.name),
            Format::JsonPath(template) => template.of(&value),
        })
    }
}

async fn open(
    client: &Client,
    query: &[(&str, String)],
    told: &Told,
) -> Result<EventStream, ClientError> {
    let mut query = query.to_vec();
    query.push(("from", told.revision.to_string()));
    query.extend(told.history.clone().map(|id| ("history", id)));
    client.stream(&["watch"], &query, None, SILENCE_MAX).await
}

/// Why a connection ended.
enum Ended {
    /// Another attempt may succeed.
    Lost(ClientError),
    /// None will.
    Failed(Failure),
}

impl From<ClientError> for Ended {
    fn from(error: ClientError) -> Self {
        let passes = matches!(
            error,
            ClientError::Unreachable { .. } | ClientError::Lost { .. }
        ) || matches!(error.status(), Some(429 | 503));
        if passes {
            Self::Lost(error)
        } else {
            Self::Failed(error.into())
        }
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// How far the changes have been told: everything up to a revision, and some of the next one.
struct Told {
    revision: u64,
    /// Which history the revision belongs to: after a backup was restored, it means something else.
    history: Option<String>,
    next: u64,
    some: BTreeSet<Key>,
}

impl Told {
    fn after(revision: u64) -> Self {
        Self {
            revision,
            history: None,
            next: 0,
            some: BTreeSet::new(),
        }
    }

    /// The change that an event tells; `None` where it tells none, or one that was told before.
    fn take(&mut self, event: &Event) -> Result<Option<WatchEvent>, Ended> {
        match event.name.as_str() {
            "" | "message" => {}
            "bookmark" => {
                let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
                let history = data["historyId"].as_str().map(str::to_owned);
                self.history = self.history.take().or(history);
                self.passed(event);
                return Ok(None);
            }
            "gone" => {
                let problem: Option<Problem> = serde_json::from_str(&event.data).ok();
                let title = problem.map_or_else(|| event.data.clone(), |problem| problem.title);
                return Err(Ended::Failed(Failure::failed(format!(
                    "{title}\nThe history is bounded. See how things are now with `meshctl get`, and watch from now: \
                     leave --from out."
                ))));
            }
            // `end`, after which the stream does: another node may go on. Or something of a newer server.
            _ => return Ok(None),
        }
        let change: WatchEvent = serde_json::from_str(&event.data).map_err(|error| {
            Ended::Failed(Failure::failed(format!(
                "an event that can not be read ({error}): is meshctl older than the server? `meshctl version` shows both"
            )))
        })?;
        if change.revision <= self.revision {
            return Ok(None);
        }
        if change.revision != self.next {
            self.next = change.revision;
            self.some.clear();
        }
        let new = self.some.insert(change.key.clone());
        self.passed(event);
        Ok(new.then_some(change))
    }

    /// An id says that all of its revision has been told.
    fn passed(&mut self, event: &Event) {
        let id = event.id.as_deref().and_then(|id| id.parse().ok());
        self.revision = self.revision.max(id.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(revision: u64, name: &str, last: bool) -> Event {
        let data = json!({"revision": revision, "key": {"type": "Mesh", "name": name}});
        Event {
            name: String::new(),
            id: last.then(|| revision.to_string()),
            data: data.to_string(),
        }
    }

    #[test]
    fn a_revision_that_was_told_in_part_is_gone_on_with_where_it_ended() {
        let mut told = Told::after(4);
        let mut names = Vec::new();
        // The connection ended after the first of revision 5, and the next one begins there again.
        let events = [
            event(5, "a", false),
            event(5, "a", false),
            event(5, "b", true),
            event(6, "a", true),
            event(6, "a", true),
        ];
        for event in events {
            if let Ok(Some(change)) = told.take(&event) {
                names.push((change.revision, change.key.name));
            }
        }
        let wanted = [(5, "a"), (5, "b"), (6, "a")].map(|(n, name)| (n, name.to_owned()));
        assert_eq!(names, wanted);
        assert_eq!(told.revision, 6);
    }
}
