//! `meshctl history`: who changed a resource, when and into what.

use clap::Args;
use clap_complete::ArgValueCompleter;
use mesh_model::api::{History as Answer, HistoryItem};
use serde_json::Value;

use crate::{
    cli::Connection,
    client::Client,
    completion,
    failure::Failure,
    kinds::{self, Targets, targets},
    output::{self, Format, FormatParser, Found},
};

const EXAMPLES: &str = "\
Examples:
  meshctl history meshtrafficpermission web-to-api -m payments
  meshctl history zone east -o yaml          with the resource after each change
  meshctl rollback mesh payments --to 41     back to what it was at a revision";

/// Show a resource's changes, newest first: revision, time, who and what.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct History {
    /// The kind, and the name.
    #[arg(value_name = "KIND NAME", required = true, add = ArgValueCompleter::new(completion::kind_and_names))]
    what: Vec<String>,
    /// The zone that owns the resource, where one does.
    #[arg(long, value_name = "ZONE", add = ArgValueCompleter::new(completion::zones))]
    zone: Option<String>,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl History {
    /// Asks and shows.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let Targets { kind, names } = targets(&self.what)?;
        let [name] = names.as_slice() else {
            return Err(Failure::invalid("the history of one resource: KIND NAME"));
        };
        if kind.name == kinds::DATAPLANE {
            return Err(Failure::invalid(
                "a Dataplane lives in its zone's memory and has no history; `meshctl inspect dataplane` shows what it is now",
            ));
        }
        let mesh = connection.mesh()?;
        let client = Client::new(connection)?;
        let mut path = kinds::path(kind, &mesh);
        path.extend([name.as_str(), "history"]);
        let query: Vec<_> = self.zone.map(|zone| ("zone", zone)).into_iter().collect();
        let answer: Answer = client.get(&path, &query).await?;
        let found = Found::list(&answer.items)?;
        let revision = |item: &Value| kinds::text(&item["revision"]);
        let text = self.output.show(&found, || table(&answer), revision)?;
        output::print(&text)?;
        if answer.truncated {
            eprintln!("Older changes existed; the history is bounded and they are forgotten.");
        }
        Ok(())
    }
}

fn table(answer: &Answer) -> String {
    let rows = answer.items.iter().enumerate().map(|(index, item)| {
        vec![
            item.revision.to_string(),
            item.time.clone(),
            item.actor.clone(),
            change(item, answer.items.get(index + 1), answer.truncated).to_owned(),
        ]
    });
    output::table(&["REVISION", "TIME", "ACTOR", "CHANGE"], rows.collect())
}

/// What a change was, seen from the one before it.
fn change(item: &HistoryItem, before: Option<&HistoryItem>, truncated: bool) -> &'static str {
    match (&item.resource, before) {
        (None, _) => "deleted",
        (Some(_), Some(before)) if before.resource.is_some() => "updated",
        // What came before the oldest is forgotten.
        (Some(_), None) if truncated => "written",
        (Some(_), _) => "created",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_is_named_by_what_was_there_before() {
        let item = |revision, there: bool| HistoryItem {
            revision,
            time: "2026-01-01T00:00:00Z".to_owned(),
            actor: "token/a".to_owned(),
            resource: there.then(|| json!({})),
        };
        let answer = Answer {
            items: vec![item(9, true), item(7, false), item(5, true), item(3, true)],
            truncated: false,
        };
        let table = table(&answer);
        let changes: Vec<_> = table
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().last())
            .collect();
        assert_eq!(changes, ["created", "deleted", "updated", "created"]);
    }
}
