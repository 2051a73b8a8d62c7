//! `meshctl audit`: who did what, when and from where, and who was refused what.

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    cli::Connection,
    client::Client,
    failure::Failure,
    kinds,
    output::{self, Format, FormatParser, Found},
};

const EXAMPLES: &str = "\
Examples:
  meshctl audit
  meshctl audit --limit 1000 -o json > audit.json
  meshctl audit -o jsonpath='{range .items[?@.outcome==\"refused\"]}{.time} {.actor} {.summary}{\"\\n\"}{end}'";

/// Show who did what, newest first; refused attempts too.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Audit {
    /// How many records at most.
    #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

#[derive(Deserialize)]
struct Answer {
    items: Vec<Value>,
}

impl Audit {
    /// Asks and shows.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let client = Client::new(connection)?;
        let query = [("limit", self.limit.to_string())];
        let answer: Answer = client.get(&["audit"], &query).await?;
        if answer.items.is_empty() && self.output.is_table() {
            eprintln!("There are no records.");
            return Ok(());
        }
        let wide = self.output.is_wide();
        let rows = answer.items.iter().map(|item| row(item, wide)).collect();
        let mut header = vec!["TIME", "ACTOR", "FROM", "OUTCOME", "WHAT"];
        if wide {
            header.extend(["REVISION", "REQUEST"]);
        }
        let table = || output::table(&header, rows);
        let name = |item: &Value| kinds::text(&item["summary"]);
        let found = Found::List(answer.items.clone());
        output::print(&self.output.show(&found, table, name)?)
    }
}

fn row(item: &Value, wide: bool) -> Vec<String> {
    let mut fields = vec!["time", "actor", "address", "outcome", "summary"];
    if wide {
        fields.extend(["revision", "requestId"]);
    }
    let mut row: Vec<_> = fields
        .iter()
        .map(|field| kinds::text(&item[*field]))
        .collect();
    let reason = kinds::text(&item["reason"]);
    if !reason.is_empty() {
        row[4].push_str(&format!(": {reason}"));
    }
    row
}
