//! `meshctl inspect policy`: whom a policy concerns, and what is to be said about it.

use clap::Args;
use clap_complete::ArgValueCompleter;
use mesh_model::api::{PolicyInspection, ZonePolicy};
use serde_json::Value;

use super::{complete, list};
use crate::{
    cli::Connection,
    client::Client,
    completion, conditions,
    failure::Failure,
    kinds::{self, Targets, targets},
    output::{self, Format, FormatParser, Found},
};

const EXAMPLES: &str = "\
Examples:
  meshctl inspect policy meshtrafficpermission web-to-api -m payments
  meshctl inspect policy meshtimeout/fast -m payments -o wide   with every dataplane by name
  meshctl inspect policy meshtimeout/fast -m payments -o json";

/// Dataplanes of a zone that are named unless more are asked for.
const SHOWN: usize = 10;

/// Show whom a policy concerns in each zone, which services it resolves to, and what is wrong with it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Policy {
    /// The kind, and the name.
    #[arg(value_name = "KIND NAME", required = true, add = ArgValueCompleter::new(completion::policy_and_name))]
    what: Vec<String>,
    /// The zone that owns the policy, where one does.
    #[arg(long, value_name = "ZONE", add = ArgValueCompleter::new(completion::zones))]
    zone: Option<String>,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Policy {
    /// Asks and shows.
    pub(super) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let Targets { kind, names } = targets(&self.what)?;
        if !kinds::is_policy(kind) {
            return Err(Failure::invalid(format!(
                "a {} is no policy; `meshctl get {} {}` shows it",
                kind.name,
                kind.plural,
                names.first().map_or("NAME", String::as_str)
            )));
        }
        let [name] = names.as_slice() else {
            return Err(Failure::invalid("one policy at a time: KIND NAME"));
        };
        let mesh = connection.mesh()?;
        let client = Client::new(connection)?;
        let mut path = kinds::path(kind, &mesh);
        path.extend([name.as_str(), "inspect"]);
        let query: Vec<_> = self.zone.map(|zone| ("zone", zone)).into_iter().collect();
        let answer: PolicyInspection = client.get(&path, &query).await?;
        let short = |_: &Value| kinds::short_name(kind.name, name);
        let wide = self.output.is_wide();
        let text = || text(kind.name, &answer, wide);
        output::print(&self.output.show(&Found::one(&answer)?, text, short)?)?;
        complete(&answer.unanswered)
    }
}

fn text(kind: &str, answer: &PolicyInspection, wide: bool) -> String {
    let resource = &answer.resource;
    let mut text = format!(
        "Policy:    {}\nMesh:      {}\nRevision:  {}\nTarget:    {}\n\n",
        kinds::short_name(kind, &kinds::text(&resource["name"])),
        kinds::text(&resource["mesh"]),
        kinds::text(&resource["revision"]),
        kinds::target(&resource["spec"]["targetRef"]),
    );
    let zones = answer.zones.iter().map(|zone| in_zone(zone, wide));
    text.push_str(&list("Zones", "none answered", zones));
    text.push_str(&conditions::block(&answer.conditions));
    text
}

fn in_zone(zone: &ZonePolicy, wide: bool) -> String {
    let mut text = match zone.selected {
        0 => format!("{}: selects no dataplane", zone.zone),
        1 => format!("{}: selects 1 dataplane", zone.zone),
        many => format!("{}: selects {many} dataplanes", zone.zone),
    };
    let shown = if wide { zone.dataplanes.len() } else { SHOWN };
    for dataplane in zone.dataplanes.iter().take(shown) {
        text.push_str(&format!("\n  {dataplane}"));
    }
    let named = zone.dataplanes.len().min(shown);
    let more = (zone.selected as usize).saturating_sub(named);
    // With an inbound each, more may be named than are selected.
    if more > 0 && named > 0 {
        let how = if wide { "" } else { " (-o wide names them)" };
        text.push_str(&format!("\n  and {more} more{how}"));
    }
    if !zone.destinations.is_empty() {
        text.push_str(&format!("\n  to {}", zone.destinations.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_where_nothing_is_selected_says_so_and_many_are_cut_short() {
        let zone = |selected: u32| ZonePolicy {
            zone: "east".to_owned(),
            selected,
            dataplanes: (0..selected).map(|n| format!("web-{n}")).collect(),
            destinations: Vec::new(),
        };
        assert_eq!(in_zone(&zone(0), false), "east: selects no dataplane");
        assert!(in_zone(&zone(12), false).ends_with("web-9\n  and 2 more (-o wide names them)"));
        assert!(in_zone(&zone(12), true).ends_with("web-11"));
    }
}
