//! `meshctl audit`: who did what, when and from where, what it changed, and who was refused what.

use clap::Args;
use clap_complete::ArgValueCompleter;
use mesh_model::api::{Audit as Answer, AuditChange, AuditItem};
use serde_json::Value;

use crate::{
    apply,
    cli::Connection,
    client::Client,
    completion,
    failure::Failure,
    kinds,
    output::{self, Format, FormatParser, Found},
};

const EXAMPLES: &str = "\
Examples:
  meshctl audit
  meshctl audit -m payments --since 2026-01-31T00:00:00Z -o wide    with the fields that changed
  meshctl audit --resource meshtrafficpermission/web-to-api
  meshctl audit --actor user/alice
  meshctl audit --limit 100000 -o json > audit.json
  meshctl audit -o jsonpath='{range .items[?@.outcome==\"refused\"]}{.time} {.actor} {.summary}{\"\\n\"}{end}'";

/// Records asked for at once.
const PAGE: u64 = 1000;
/// Characters of a value that are shown.
const VALUE_MAX: usize = 60;

/// Show who did what, newest first; refused attempts too.
///
/// Of all that one may see, or of one mesh where one is named.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Audit {
    /// How many records at most.
    #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Only by this one: user/NAME, token/ID, zone/NAME.
    #[arg(long, value_name = "ACTOR")]
    actor: Option<String>,
    /// Only what concerns this kind, or this resource.
    #[arg(long, value_name = "KIND[/NAME]", add = ArgValueCompleter::new(completion::kind_and_names))]
    resource: Option<String>,
    /// Only from this time on, such as 2026-01-31T08:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Of all meshes, whatever -m, ISTHMUS_MESH or the context say.
    #[arg(short = 'A', long)]
    all_meshes: bool,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Audit {
    /// Asks and shows.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let mut query = Vec::new();
        if connection.named_mesh().is_some() && !self.all_meshes {
            query.push(("mesh", connection.mesh()?));
        }
        if let Some(resource) = &self.resource {
            let (word, name) = match resource.split_once('/') {
                Some((word, name)) => (word, format!("/{name}")),
                None => (resource.as_str(), String::new()),
            };
            query.push(("resource", format!("{}{name}", kinds::resolve(word)?.name)));
        }
        for (name, time) in [("since", &self.since), ("until", &self.until)] {
            let Some(time) = time else {
                continue;
            };
            humantime::parse_rfc3339_weak(time).map_err(|error| {
                Failure::invalid(format!(
                    "--{name} {time:?}: {error}; write 2026-01-31T08:00:00Z"
                ))
            })?;
            query.push((name, time.clone()));
        }
        query.extend(self.actor.clone().map(|actor| ("actor", actor)));
        let client = Client::new(connection)?;
        let (items, unanswered) = self.pages(&client, &query).await?;
        if items.is_empty() && self.output.is_table() {
            eprintln!("There are no records.");
        } else {
            let table = || table(&items, self.output.is_wide());
            let name = |item: &Value| kinds::text(&item["summary"]);
            output::print(&self.output.show(&Found::list(&items)?, table, name)?)?;
        }
        if unanswered.is_empty() {
            return Ok(());
        }
        let nodes: Vec<_> = unanswered.iter().map(u64::to_string).collect();
        Err(Failure::failed(format!(
            "what these nodes refused is missing, since they did not answer: {}; `meshctl global status` shows them",
            nodes.join(", ")
        )))
    }

    /// As many records as are wanted, and the nodes that did not answer.
    async fn pages(
        &self,
        client: &Client,
        query: &[(&str, String)],
    ) -> Result<(Vec<AuditItem>, Vec<u64>), Failure> {
        let mut items = Vec::new();
        let mut unanswered = Vec::new();
        let mut next = None;
        loop {
            let left = self.limit - items.len() as u64;
            let mut query = query.to_vec();
            query.push(("limit", left.min(PAGE).to_string()));
            query.extend(next.clone().map(|at| ("continue", at)));
            let page: Answer = client.get(&["audit"], &query).await?;
            let empty = page.items.is_empty();
            items.extend(page.items);
            items.truncate(usize::try_from(self.limit).unwrap_or(usize::MAX));
            unanswered.extend(page.unanswered);
            if empty || page.next.is_none() || items.len() as u64 == self.limit {
                unanswered.sort_unstable();
                unanswered.dedup();
                return Ok((items, unanswered));
            }
            next = page.next;
        }
    }
}

fn table(items: &[AuditItem], wide: bool) -> String {
    let mut header = vec!["TIME", "ACTOR", "FROM", "OUTCOME", "WHAT"];
    if wide {
        header.extend(["REVISION", "REQUEST"]);
    }
    let rows = items.iter().map(|item| {
        let mut what = item.summary.clone();
        if !item.reason.is_empty() {
            what.push_str(&format!(": {}", item.reason));
        }
        if wide {
            what.extend(item.changes.iter().map(in_words));
        }
        let mut row = vec![
            item.time.clone(),
            item.actor.clone(),
            item.address.clone(),
            item.outcome.clone(),
            what,
        ];
        if wide {
            let revision = item.revision.map(|number| number.to_string());
            row.extend([revision.unwrap_or_default(), item.request_id.clone()]);
        }
        row
    });
    output::table(&header, rows.collect())
}

/// What became of one resource, on lines of its own below the summary.
fn in_words(change: &AuditChange) -> String {
    let mut text = format!(
        "\n  {} {}",
        kinds::display(&change.key),
        apply::outcome(change.outcome)
    );
    let value = |value: &Option<Value>| {
        let text = value.as_ref().map(|value| shortened(&kinds::text(value)));
        text.unwrap_or_else(|| "-".to_owned())
    };
    // All of a resource that was created or deleted is one field without a name.
    for field in change.fields.iter().filter(|field| !field.field.is_empty()) {
        text.push_str(&match (&field.before, &field.after) {
            (None, None) => format!("\n    {} (not shown)", field.field),
            (before, after) => {
                format!(
                    "\n    {}: {} -> {}",
                    field.field,
                    value(before),
                    value(after)
                )
            }
        });
    }
    if change.more_fields > 0 {
        text.push_str(&format!("\n    and {} fields more", change.more_fields));
    }
    if change.forgotten {
        text.push_str("\n    what it was before is not kept any more");
    }
    text
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(VALUE_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
