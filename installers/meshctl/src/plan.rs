//! `meshctl plan`: what files would change in what proxies do, from the zones' own compilers.

use std::path::PathBuf;

use clap::Args;
use mesh_model::api::{DataplanePlan, Plan as Answer, SettingChange, ZonePlan};
use serde_json::Value;

use crate::{
    apply,
    cli::Connection,
    client::Client,
    conditions, diff,
    failure::Failure,
    inspect, kinds,
    output::{self, Format, FormatParser, Found},
    sources,
};

const EXAMPLES: &str = "\
Examples:
  meshctl plan -f policies/
  meshctl plan -f policies/ -o wide          every dataplane by name, and the lines that differ
  meshctl plan -f old.yaml --delete          what deleting it would change
  meshctl plan -f policies/ -o json";

/// Dataplanes with the same change that are named unless more are asked for.
const SHOWN: usize = 5;

/// Show what `apply` would change: which resources, which effective settings, of which dataplanes in which zones.
/// Nothing is written.
///
/// Exit code 4 where a dataplane would refuse the change.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Plan {
    /// Files, folders (with all .yaml, .yml and .json below them), or - for standard input.
    #[arg(short, long = "filename", value_name = "PATH", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// Show what deleting what the files name would change.
    #[arg(long)]
    delete: bool,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Plan {
    /// Asks and shows.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let resources = sources::read(&self.files, &connection.mesh()?)?;
        let client = Client::new(connection)?;
        let batch = apply::batch_or_deletion(&resources, self.delete)?;
        let answer: Answer = client
            .post(&["plan"], &[], &batch)
            .await
            .map_err(|error| apply::at_sources(error, &resources))?;
        let wide = self.output.is_wide();
        let names = |_: &Value| {
            let changes = answer.zones.iter().flat_map(|zone| &zone.changes);
            let names = changes.map(|change| kinds::short_name(kinds::DATAPLANE, &change.name));
            names.collect::<Vec<_>>().join("\n")
        };
        let shown = || text(&answer, wide, output::colours());
        output::print(&self.output.show(&Found::one(&answer)?, shown, names)?)?;
        apply::warn(&answer.diff.warnings);
        inspect::complete(&answer.unanswered)?;
        refusals(&answer)
    }
}

/// Dataplanes that are too old for what is planned.
fn refusals(answer: &Answer) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for zone in &answer.zones {
        for change in zone
            .changes
            .iter()
            .filter(|c| !c.missing_features.is_empty())
        {
            lines.push(format!(
                "zone {}: dataplane {}/{} would refuse it: it does not know {}",
                zone.zone,
                change.mesh,
                change.name,
                change.missing_features.join(", ")
            ));
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    lines.push("Bring these dataplanes to a newer version first.".to_owned());
    Err(Failure::Finding(lines.join("\n")))
}

fn text(answer: &Answer, wide: bool, colours: bool) -> String {
    let mut text = String::new();
    if wide {
        text.push_str(&diff::text(&answer.diff, colours));
    } else {
        let mut any = false;
        for item in diff::changes(&answer.diff) {
            any = true;
            text.push_str(&format!(
                "{} would be {}",
                kinds::display(&item.key),
                apply::outcome(item.outcome)
            ));
            if item.before.is_some() && item.after.is_some() && !item.fields.is_empty() {
                text.push_str(&format!(" ({})", item.fields.join(", ")));
            }
            text.push('\n');
        }
        if !any {
            text.push_str(&diff::text(&answer.diff, colours));
        }
    }
    for zone in &answer.zones {
        text.push_str(&in_zone(zone, wide));
    }
    if answer.zones.is_empty() && answer.unanswered.is_empty() {
        text.push_str("\nno zone is concerned\n");
    }
    text
}

fn in_zone(zone: &ZonePlan, wide: bool) -> String {
    let mut text = format!(
        "\nzone {}: {} of {} dataplanes would change\n",
        zone.zone, zone.affected, zone.dataplanes
    );
    for (settings, dataplanes) in grouped(&zone.changes) {
        let shown = if wide { dataplanes.len() } else { SHOWN };
        let names: Vec<_> = dataplanes.iter().take(shown).cloned().collect();
        text.push_str(&format!("  {}", names.join(", ")));
        if dataplanes.len() > shown {
            text.push_str(&format!(" and {} more", dataplanes.len() - shown));
        }
        text.push('\n');
        for setting in settings {
            text.push_str(&format!("    {}\n", in_words(setting)));
        }
    }
    let listed = zone.changes.len();
    let more = (zone.affected as usize).saturating_sub(listed);
    if more > 0 {
        text.push_str(&format!("  and {more} more dataplanes\n"));
    }
    for condition in zone
        .conditions
        .iter()
        .filter(|condition| conditions::is_bad(condition))
    {
        let resource = kinds::short_name(&condition.key.kind, &condition.key.name);
        text.push_str(&format!("  {resource}: {}\n", conditions::line(condition)));
    }
    text
}

/// Dataplanes that would change in the same way, together; in the order in which each way comes first.
fn grouped(changes: &[DataplanePlan]) -> Vec<(&[SettingChange], Vec<String>)> {
    let mut groups: Vec<(&[SettingChange], Vec<String>)> = Vec::new();
    for change in changes {
        let name = format!("{}/{}", change.mesh, change.name);
        match groups
            .iter_mut()
            .find(|(settings, _)| *settings == change.settings)
        {
            Some((_, names)) => names.push(name),
            None => groups.push((&change.settings, vec![name])),
        }
    }
    groups
}

fn in_words(change: &SettingChange) -> String {
    let what = format!("{}: {}", change.of, change.setting);
    match (&change.before, &change.after) {
        (Some(before), Some(after)) => format!("{what}: {before} -> {after}"),
        (None, Some(after)) => format!("{what}: new: {after}"),
        (Some(before), None) => format!("{what}: gone: {before}"),
        (None, None) => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dataplanes_that_change_in_the_same_way_stand_together() {
        let plan = |name: &str, after: &str| DataplanePlan {
            mesh: "pay".to_owned(),
            name: name.to_owned(),
            settings: vec![SettingChange {
                of: "service api:80".to_owned(),
                setting: "timeouts.idle".to_owned(),
                before: Some("1h (built in)".to_owned()),
                after: Some(after.to_owned()),
            }],
            missing_features: Vec::new(),
        };
        let mut changes: Vec<_> = (0..7)
            .map(|n| plan(&format!("web-{n}"), "5s (fast#0)"))
            .collect();
        changes.insert(1, plan("db-0", "9s (slow#0)"));
        let zone = ZonePlan {
            zone: "east".to_owned(),
            dataplanes: 20,
            affected: 10,
            changes,
            conditions: Vec::new(),
        };
        assert_eq!(
            in_zone(&zone, false),
            "\nzone east: 10 of 20 dataplanes would change\n  \
             pay/web-0, pay/web-1, pay/web-2, pay/web-3, pay/web-4 and 2 more\n    \
             service api:80: timeouts.idle: 1h (built in) -> 5s (fast#0)\n  \
             pay/db-0\n    \
             service api:80: timeouts.idle: 1h (built in) -> 9s (slow#0)\n  \
             and 2 more dataplanes\n"
        );
    }
}
