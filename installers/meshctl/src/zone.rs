//! `meshctl zone`: zones join, are listed, shown and removed.

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use mesh_model::api::{Batch, GlobalStatus, WriteOutcome, ZoneConnection};
use mesh_proto::zone::ResourceKey;

use crate::{
    apply,
    cli::{Connection, checked_name},
    client::Client,
    completion,
    failure::Failure,
    kinds,
    output::{self, Format, FormatParser, Found},
};

pub(crate) mod claims;
mod files;
mod join;
mod readiness;
mod systemd;

const EXAMPLES: &str = "\
Examples:
  meshctl token create zone-join --zone east            where you administer: make the token
  meshctl zone join --global https://cp.example.com:5685 --token TOKEN
                                                        on the zone's machine: join and start
  meshctl zone list
  meshctl zone show east
  meshctl zone remove east";

const LIST_EXAMPLES: &str = "\
Examples:
  meshctl zone list
  meshctl zone list -o jsonpath='{range .items[*]}{.name}: {.state}{\"\\n\"}{end}'";
const SHOW_EXAMPLES: &str = "\
Examples:
  meshctl zone show east
  meshctl zone show east -o json";
const REMOVE_EXAMPLES: &str = "\
Examples:
  meshctl zone remove east";

/// Zones: join this machine's, list, show and remove.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Zone {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Join(join::Join),
    List(ListZones),
    Show(Show),
    Remove(Remove),
}

/// List zones and how they are connected.
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
struct ListZones {
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

/// Show how a zone is connected and what it has.
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
struct Show {
    /// The zone.
    #[arg(add = ArgValueCompleter::new(completion::zones))]
    name: String,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

/// Remove a zone with everything of it from global and from all other zones.
///
/// Its control plane is cut off; its dataplanes go on with what they have. Stop them on their machines.
#[derive(Debug, Args)]
#[command(after_help = REMOVE_EXAMPLES)]
struct Remove {
    /// The zone.
    #[arg(add = ArgValueCompleter::new(completion::zones))]
    name: String,
}

impl Zone {
    /// True for the command that is at home on a zone's machine and needs no API.
    pub(crate) fn is_join(&self) -> bool {
        matches!(self.command, Command::Join(_))
    }

    /// Carries out one of them.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        match self.command {
            Command::Join(command) => command.run(connection).await,
            Command::List(command) => list(connection, command.output).await,
            Command::Show(command) => show(connection, &command).await,
            Command::Remove(command) => remove(connection, &command.name).await,
        }
    }
}

async fn list(connection: &Connection, format: Format) -> Result<(), Failure> {
    let client = Client::new(connection)?;
    let status: GlobalStatus = client.get(&["status"], &[]).await?;
    let zones = status.zones;
    if zones.is_empty() && format.is_table() {
        eprintln!(
            "There are no zones; `meshctl token create zone-join --zone NAME` makes the token for one."
        );
        return Ok(());
    }
    output::print(&format.show(&Found::list(&zones)?, || table(&zones), name)?)
}

fn name(zone: &serde_json::Value) -> String {
    kinds::short_name("Zone", &kinds::text(&zone["name"]))
}

/// Zones and how they are connected.
pub(crate) fn table(zones: &[ZoneConnection]) -> String {
    let rows = zones.iter().map(|zone| {
        vec![
            zone.name.clone(),
            zone.state.clone(),
            zone.acknowledged_revision.to_string(),
            format!("{}/{}", zone.current_dataplanes, zone.dataplanes),
            heard(zone),
            zone.version.clone(),
        ]
    });
    let header = [
        "ZONE",
        "STATE",
        "ACKNOWLEDGED",
        "CURRENT DATAPLANES",
        "LAST HEARD",
        "VERSION",
    ];
    output::table(&header, rows.collect())
}

fn heard(zone: &ZoneConnection) -> String {
    zone.silent_ms.map_or_else(String::new, |silent| {
        output::span(std::time::Duration::from_millis(silent)) + " ago"
    })
}

async fn show(connection: &Connection, command: &Show) -> Result<(), Failure> {
    checked_name(&command.name)?;
    let client = Client::new(connection)?;
    let zone: ZoneConnection = client.get(&["zones", &command.name, "status"], &[]).await?;
    let described = if command.output.is_table() {
        let resource: serde_json::Value = client.get(&["zones", &command.name], &[]).await?;
        describe(&zone, &resource)
    } else {
        String::new()
    };
    let found = Found::one(&zone)?;
    output::print(&command.output.show(&found, || described, name)?)
}

fn describe(zone: &ZoneConnection, resource: &serde_json::Value) -> String {
    let mut lines = Vec::new();
    let mut field = |name: &str, value: String| {
        let value = if value.is_empty() {
            "-".to_owned()
        } else {
            value
        };
        lines.push(format!("{name:<14}{value}"));
    };
    field("Zone:", zone.name.clone());
    field("State:", zone.state.clone());
    field(
        "Acknowledged:",
        format!("revision {}", zone.acknowledged_revision),
    );
    field(
        "Dataplanes:",
        format!(
            "{} of {} run what is wanted",
            zone.current_dataplanes, zone.dataplanes
        ),
    );
    field("Last heard:", heard(zone));
    field("Version:", zone.version.clone());
    field("Platform:", kinds::text(&resource["platform"]));
    field("Labels:", kinds::labels(&resource["labels"]));
    lines.join("\n")
}

async fn remove(connection: &Connection, name: &str) -> Result<(), Failure> {
    checked_name(name)?;
    let client = Client::new(connection)?;
    let batch = Batch {
        delete: vec![ResourceKey::global("Zone", "", name).into()],
        ..Batch::default()
    };
    let written = apply::write(&client, &batch, false).await?;
    if written
        .results
        .iter()
        .any(|result| result.outcome == WriteOutcome::NotFound)
    {
        return Err(Failure::failed(format!("there is no zone {name}")));
    }
    output::print(&format!(
        "zone/{name} removed\nrevision {}",
        written.revision
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_how_far_a_zone_is_not_only_that_it_is_connected() {
        let zone = ZoneConnection {
            name: "east".to_owned(),
            state: "behind".to_owned(),
            version: "0.1.0".to_owned(),
            acknowledged_revision: 41,
            silent_ms: Some(1_500),
            dataplanes: 3,
            current_dataplanes: 2,
        };
        let table = table(&[zone]);
        let row = table.lines().nth(1).unwrap();
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(words, ["east", "behind", "41", "2/3", "1s", "ago", "0.1.0"]);
    }
}
