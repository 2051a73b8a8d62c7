//! `meshctl inspect`: what a proxy does and why, whom a policy concerns, what stands behind a service.

use clap::{Args, Subcommand};
use mesh_model::api::Unanswered;

use crate::{cli::Connection, failure::Failure};

mod dataplane;
mod policy;
mod service;

const EXAMPLES: &str = "\
Examples:
  meshctl inspect dataplane web-1 -m payments                       what it does now, and which policy says so
  meshctl inspect policy meshtrafficpermission web-to-api -m payments
                                                                    whom it concerns, in each zone
  meshctl inspect service api -m payments                           who serves it, and what concerns calls to it";

/// Look into what runs.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Inspect {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Dataplane(dataplane::Dataplane),
    Policy(policy::Policy),
    Service(service::Service),
}

impl Inspect {
    /// Carries out one of them.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        match self.what {
            What::Dataplane(command) => command.run(connection).await,
            What::Policy(command) => command.run(connection).await,
            What::Service(command) => command.run(connection).await,
        }
    }
}

/// An answer that lacks what some zones know is no success.
pub(crate) fn complete(unanswered: &[Unanswered]) -> Result<(), Failure> {
    if unanswered.is_empty() {
        return Ok(());
    }
    let zones: Vec<_> = unanswered
        .iter()
        .map(|zone| format!("zone {} did not answer: {}", zone.zone, zone.reason))
        .collect();
    Err(Failure::failed(format!(
        "what holds in some zones is not known\n{}\n`meshctl zone list` shows how they are connected.",
        zones.join("\n")
    )))
}

/// Lines under a heading, or one that says that there are none.
pub(crate) fn list(heading: &str, none: &str, lines: impl IntoIterator<Item = String>) -> String {
    let mut text = format!("{heading}:");
    let mut any = false;
    for line in lines {
        text.push_str("\n  ");
        text.push_str(&line.replace('\n', "\n  "));
        any = true;
    }
    if !any {
        text.push(' ');
        text.push_str(none);
    }
    text
}
