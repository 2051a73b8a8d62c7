//! `meshctl inspect dataplane`: what a proxy does and why.

use std::time::SystemTime;

use clap::Args;
use clap_complete::ArgValueCompleter;
use mesh_model::api::DataplaneView;
use serde_json::Value;

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
  meshctl inspect dataplane web-1 -m payments
  meshctl inspect dataplane web-1 -m payments -o json";

/// Show what a dataplane does now, as its zone sees it: documents, endpoints, and permissions, routes and time-outs with the
/// policy each comes from.
#[derive(Debug, Args)]
#[command(visible_alias = "dp", after_help = EXAMPLES)]
pub(super) struct Dataplane {
    /// Its name.
    #[arg(add = ArgValueCompleter::new(completion::dataplanes))]
    name: String,
    /// Its zone, where several zones have one of that name.
    #[arg(long, value_name = "ZONE", add = ArgValueCompleter::new(completion::zones))]
    zone: Option<String>,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Dataplane {
    /// Asks and shows.
    pub(super) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        checked_name(&self.name)?;
        let mesh = connection.mesh()?;
        let client = Client::new(connection)?;
        let path = ["meshes", &mesh, "dataplanes", &self.name];
        let query: Vec<_> = self.zone.map(|zone| ("zone", zone)).into_iter().collect();
        let view: DataplaneView = client.get(&path, &query).await?;
        let name = |view: &Value| kinds::short_name(kinds::DATAPLANE, &kinds::text(&view["name"]));
        let text = || text(&view, SystemTime::now());
        output::print(&self.output.show(&Found::one(&view)?, text, name)?)
    }
}

fn text(view: &DataplaneView, now: SystemTime) -> String {
    let mut lines = Vec::new();
    let mut field = |name: &str, value: &str| {
        let value = if value.is_empty() { "-" } else { value };
        lines.push(format!("{name:<13}{value}"));
    };
    field("Name:", &view.name);
    field("Mesh:", &view.mesh);
    field("Zone:", &view.zone);
    field("State:", &view.state);
    field("Identity:", &view.spiffe_id);
    field("Services:", &view.services.join(", "));
    field("Version:", &view.version);
    let certificate = match view.certificate_not_after {
        0 => "none yet".to_owned(),
        end => match output::until(end, now).as_str() {
            "ended" => "ended".to_owned(),
            left => format!("ends in {left}"),
        },
    };
    field("Certificate:", &certificate);

    lines.push("\nDocuments:".to_owned());
    for document in &view.documents {
        let state = match (&document.refused, &document.running) {
            (Some(reason), _) => format!("refused: {reason}"),
            (None, Some(running)) if *running == document.wanted => "current".to_owned(),
            (None, Some(running)) => format!("runs {}, has not answered yet", short(running)),
            (None, None) => "has not answered yet".to_owned(),
        };
        lines.push(format!(
            "  {} {}: {state}",
            document.name,
            short(&document.wanted)
        ));
    }
    if !view.detection_timeouts.is_empty() {
        lines.push("\nHeld back, since nothing declares what is spoken:".to_owned());
    }
    for told in &view.detection_timeouts {
        lines.push(format!(
            "  {} {} connections to {}:{}, the last {} ago",
            told.connections,
            told.direction,
            told.service,
            told.port,
            output::since(told.last_at, now)
        ));
    }
    lines.push("\nInbounds:".to_owned());
    for inbound in &view.inbounds {
        lines.push(format!(
            "  {} {} -> {} ({}){}",
            inbound.name,
            inbound.listen,
            inbound.application,
            inbound.state,
            match inbound.service.as_str() {
                "" => String::new(),
                service => format!(", service {service}"),
            }
        ));
        if inbound.permissions.is_empty() {
            lines.push("    nobody may call: no permission allows it".to_owned());
        }
        let said = inbound.permissions.iter().chain(&inbound.settings);
        lines.extend(said.map(|line| format!("    {line}")));
    }
    lines.push("\nOutbounds:".to_owned());
    for outbound in &view.outbounds {
        lines.push(format!("  {} -> {}", outbound.listen, outbound.service));
        if outbound.endpoints.is_empty() {
            lines.push("    no endpoint".to_owned());
        }
        lines.extend(outbound.endpoints.iter().map(|to| format!("    {to}")));
        lines.extend(
            outbound
                .identities
                .iter()
                .map(|id| format!("    accepts {id}")),
        );
        let routes = outbound
            .routes
            .iter()
            .map(|route| format!("    route {route}"));
        let settings = outbound.settings.iter().map(|line| format!("    {line}"));
        lines.extend(routes.chain(settings));
    }
    lines.join("\n")
}

/// Enough of a hash to compare by eye.
fn short(version: &str) -> &str {
    version.get(..12).unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn the_text_says_what_is_refused_who_may_call_and_where_calls_go() {
        let view: DataplaneView = serde_json::from_value(json!({
            "mesh": "pay", "zone": "east", "name": "web-1", "state": "online",
            "spiffeId": "spiffe://pay.east.mesh.local/workload/web", "version": "0.1.0", "services": ["web"],
            "certificateNotAfter": 0, "resource": {},
            "detectionTimeouts": [{"service": "db", "port": 5432, "direction": "outbound", "connections": 7, "lastAt": 1_000}],
            "documents": [{"name": "proxy", "wanted": "bbbbbbbbbbbbbbbb", "running": "a", "refused": "no such feature"}],
            "inbounds": [{"name": "http", "listen": "10.0.0.1:80", "application": "127.0.0.1:8080", "state": "ready",
                          "service": "web", "permissions": ["allow spiffe://x (web-to-api#0)"],
                          "settings": ["idleTimeout 1h (built in)"]}],
            "outbounds": [{"listen": "127.0.0.1:9000", "service": "api", "endpoints": [], "identities": [],
                           "routes": ["every request: to 1 api:80 (built in)"]}],
        }))
        .unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_060);
        let text = text(&view, now);
        for words in [
            "  7 outbound connections to db:5432, the last 60s ago",
            "proxy bbbbbbbbbbbb: refused: no such feature",
            "allow spiffe://x (web-to-api#0)",
            "127.0.0.1:9000 -> api",
            "    idleTimeout 1h (built in)",
            "no endpoint",
            "    route every request: to 1 api:80 (built in)",
        ] {
            assert!(text.contains(words), "{words} in {text}");
        }
    }
}
