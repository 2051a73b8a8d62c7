//! `meshctl diff`: what files would change in what is stored, line by line. And how a change is shown, for others.

use std::path::PathBuf;

use clap::Args;
use mesh_model::api::{Diff as Answer, DiffItem, WriteOutcome};
use serde_json::Value;
use similar::{ChangeTag, TextDiff};

use crate::{
    apply,
    cli::Connection,
    client::Client,
    failure::Failure,
    kinds,
    output::{self, Format, FormatParser, Found},
    sources,
};

const EXAMPLES: &str = "\
Examples:
  meshctl diff -f policies/
  meshctl diff -f mesh.yaml --exit-code      for scripts: 4 where something would change
  meshctl diff -f policies/ --delete         what deleting them would take away
  meshctl diff -f mesh.yaml -o name          only which resources would change";

/// Show what `apply` would change, against what is stored now. Nothing is written.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Diff {
    /// Files, folders (with all .yaml, .yml and .json below them), or - for standard input.
    #[arg(short, long = "filename", value_name = "PATH", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// Show what deleting what the files name would change.
    #[arg(long)]
    delete: bool,
    /// Exit with 4 where something would change.
    #[arg(long)]
    exit_code: bool,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Diff {
    /// Asks and shows.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let resources = sources::read(&self.files, &connection.mesh()?)?;
        let client = Client::new(connection)?;
        let batch = apply::batch_or_deletion(&resources, self.delete)?;
        let answer: Answer = client
            .post(&["diff"], &[], &batch)
            .await
            .map_err(|error| apply::at_sources(error, &resources))?;
        let changed: Vec<_> = changes(&answer).collect();
        let names = |_: &Value| {
            let names = changed
                .iter()
                .map(|item| kinds::short_name(&item.key.kind, &item.key.name));
            names.collect::<Vec<_>>().join("\n")
        };
        let shown = || text(&answer, output::colours());
        if !(changed.is_empty() && self.output == Format::Name) {
            output::print(&self.output.show(&Found::one(&answer)?, shown, names)?)?;
        }
        apply::warn(&answer.warnings);
        if self.exit_code && !changed.is_empty() {
            return Err(Failure::Finding(format!(
                "{} of {} resources would change",
                changed.len(),
                answer.items.len()
            )));
        }
        Ok(())
    }
}

/// What would not stay as it is.
pub(crate) fn changes(answer: &Answer) -> impl Iterator<Item = &DiffItem> {
    answer.items.iter().filter(|item| {
        !matches!(
            item.outcome,
            WriteOutcome::Unchanged | WriteOutcome::NotFound
        )
    })
}

/// The whole answer for people.
pub(crate) fn text(answer: &Answer, colours: bool) -> String {
    let changed: Vec<_> = changes(answer).collect();
    let same = answer.items.len() - changed.len();
    let mut text: String = changed.iter().map(|item| of_item(item, colours)).collect();
    if changed.is_empty() {
        text.push_str(&format!(
            "nothing would change: all is as it is at revision {}\n",
            answer.revision
        ));
    } else if same > 0 {
        text.push_str(&format!("{same} more stay as they are\n"));
    }
    text
}

fn of_item(item: &DiffItem, colours: bool) -> String {
    let yaml = |value: &Option<Value>| {
        let text = |value: &Value| mesh_model::to_yaml(&as_written(value));
        value.as_ref().map_or_else(String::new, text)
    };
    let heading = format!(
        "{} {}",
        kinds::display(&item.key),
        match item.outcome {
            WriteOutcome::Created => "would be created",
            WriteOutcome::Deleted => "would be deleted",
            _ => "would be updated",
        }
    );
    let (before, after) = (yaml(&item.before), yaml(&item.after));
    if before == after {
        // A secret's value is not shown, so that only the names of fields tell.
        return format!("{heading}\n  {} (not shown)\n", item.fields.join(", "));
    }
    format!("{heading}\n{}", lines(&before, &after, colours))
}

/// Without what the server adds when it shows a resource.
fn as_written(resource: &Value) -> Value {
    let mut resource = resource.clone();
    if let Some(object) = resource.as_object_mut()
        && let Some(labels) = object.get_mut("labels").and_then(Value::as_object_mut)
    {
        labels.remove("isthmus.io/origin");
        if labels.is_empty() {
            object.remove("labels");
        }
    }
    resource
}

/// The lines that differ, with some around them.
pub(crate) fn lines(before: &str, after: &str, colours: bool) -> String {
    const CONTEXT: usize = 3;
    let diff = TextDiff::from_lines(before, after);
    let mut text = String::new();
    for (index, group) in diff.grouped_ops(CONTEXT).iter().enumerate() {
        if index > 0 {
            text.push_str("  …\n");
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let (sign, colour) = match change.tag() {
                ChangeTag::Delete => ('-', "\u{1b}[31m"),
                ChangeTag::Insert => ('+', "\u{1b}[32m"),
                ChangeTag::Equal => (' ', ""),
            };
            let line = change.value().trim_end_matches('\n');
            if colours && !colour.is_empty() {
                text.push_str(&format!("{colour}{sign} {line}\u{1b}[0m\n"));
            } else {
                text.push_str(&format!("{sign} {line}\n"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_differ_are_shown_with_some_around_them() {
        let before = "a\nb\nc\nd\ne\nf\n";
        let after = "a\nb\nc\nd\nE\nf\n";
        assert_eq!(
            lines(before, after, false),
            "  b\n  c\n  d\n- e\n+ E\n  f\n"
        );
        assert!(lines(before, after, true).contains("\u{1b}[31m- e\u{1b}[0m\n"));
        assert_eq!(lines(before, before, false), "");
    }

    #[test]
    fn what_the_server_adds_is_no_difference() {
        let item: DiffItem = serde_json::from_value(serde_json::json!({
            "key": {"type": "Mesh", "name": "pay"}, "outcome": "created",
            "after": {"type": "Mesh", "name": "pay", "labels": {"isthmus.io/origin": "global"}},
        }))
        .unwrap();
        assert_eq!(
            of_item(&item, false),
            "mesh/pay would be created\n+ type: Mesh\n+ name: pay\n"
        );
    }

    #[test]
    fn a_secret_that_differs_is_told_by_the_names_of_its_fields() {
        let item: DiffItem = serde_json::from_value(serde_json::json!({
            "key": {"type": "Secret", "mesh": "pay", "name": "s"}, "outcome": "updated",
            "before": {"type": "Secret"}, "after": {"type": "Secret"}, "fields": ["data"],
        }))
        .unwrap();
        assert_eq!(
            of_item(&item, false),
            "secret/s in mesh pay would be updated\n  data (not shown)\n"
        );
    }
}
