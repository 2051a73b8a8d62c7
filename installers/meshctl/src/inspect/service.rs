//! `meshctl inspect service`: who serves it in which zone, and which policies concern calls to it.

use clap::Args;
use clap_complete::ArgValueCompleter;
use mesh_model::api::{ServiceInspection, ZoneService};
use serde_json::Value;

use super::{complete, list};
use crate::{
    cli::{Connection, checked_name},
    client::Client,
    completion,
    failure::Failure,
    kinds,
    output::{self, Format, FormatParser, Found},
};

const EXAMPLES: &str = "\
Examples:
  meshctl inspect service api -m payments
  meshctl inspect service api -m payments -o json";

/// Show a service as the zones know it: identities, ports, endpoints, and the policies that concern calls to it.
#[derive(Debug, Args)]
#[command(visible_alias = "svc", after_help = EXAMPLES)]
pub(super) struct Service {
    /// Its name.
    #[arg(add = ArgValueCompleter::new(completion::services))]
    name: String,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Service {
    /// Asks and shows.
    pub(super) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        checked_name(&self.name)?;
        let mesh = connection.mesh()?;
        let client = Client::new(connection)?;
        let path = ["meshes", &mesh, "services", &self.name];
        let answer: ServiceInspection = client.get(&path, &[]).await?;
        let name = |_: &Value| kinds::short_name("MeshService", &self.name);
        let found = Found::one(&answer)?;
        output::print(&self.output.show(&found, || text(&answer), name)?)?;
        complete(&answer.unanswered)
    }
}

fn text(answer: &ServiceInspection) -> String {
    let mut text = format!("Service:  {}\nMesh:     {}\n\n", answer.name, answer.mesh);
    text.push_str(&list(
        "Zones",
        "no zone runs it",
        answer.zones.iter().map(in_zone),
    ));
    text.push_str("\n\n");
    text.push_str(&list("Policies", "none", answer.policies.iter().cloned()));
    text
}

fn in_zone(zone: &ZoneService) -> String {
    let mut lines = vec![zone.zone.clone()];
    for identity in &zone.identities {
        lines.push(format!("  identity {identity}"));
    }
    for port in &zone.ports {
        let name = match port.name == port.port.to_string() {
            true => String::new(),
            false => format!(" {}", port.name),
        };
        lines.push(format!(
            "  port {}{name} ({})",
            port.port, port.app_protocol
        ));
        if port.endpoints.is_empty() {
            lines.push("    no endpoint: no dataplane serves this port".to_owned());
        }
        lines.extend(
            port.endpoints
                .iter()
                .map(|endpoint| format!("    {endpoint}")),
        );
    }
    lines.extend(
        zone.policies
            .iter()
            .map(|policy| format!("  policy {policy}")),
    );
    lines.join("\n")
}
