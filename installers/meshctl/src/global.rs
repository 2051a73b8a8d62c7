//! `meshctl global`: the global control plane itself.

use clap::{Args, Subcommand};
use mesh_model::api::GlobalStatus;

use crate::{
    cli::Connection,
    client::Client,
    failure::Failure,
    output::{self, Format, FormatParser, Found},
    zone,
};

mod recover;

use recover::Recover;

const EXAMPLES: &str = "\
Examples:
  meshctl global status
  meshctl global status --server https://cp2.example.com:5682   as that node sees it
  meshctl global remove-node 3                                  for good, where its disk or machine is lost
  meshctl global recover --server https://cp2.example.com:5682  on the machine of a node whose data is damaged";

/// The global control plane.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Global {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(Status),
    RemoveNode(RemoveNode),
    Recover(Recover),
}

/// Show the nodes, who leads, the newest revision, and the zones.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct Status {
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

/// Take a node out for good, so that the quorum does not count on it. A machine that comes back joins as a new node.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct RemoveNode {
    /// The node's id, as `meshctl global status` shows it.
    id: u64,
}

impl Global {
    /// Asks and shows.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let command = match self.command {
            Command::Status(command) => command,
            Command::Recover(command) => return command.run(connection).await,
            Command::RemoveNode(RemoveNode { id }) => {
                let client = Client::new(connection)?;
                let _: serde_json::Value = client.delete(&["nodes", &id.to_string()]).await?;
                return output::print(&format!("node/{id} removed"));
            }
        };
        let client = Client::new(connection)?;
        let status: GlobalStatus = client.get(&["status"], &[]).await?;
        let name = |status: &serde_json::Value| {
            let nodes = status["nodes"].as_array().into_iter().flatten();
            let names = nodes.map(|node| format!("node/{}", node["id"]));
            names.collect::<Vec<_>>().join("\n")
        };
        let found = Found::one(&status)?;
        output::print(&command.output.show(&found, || text(&status), name)?)
    }
}

/// Whether enough nodes answer to accept a write. A leader that has lost them does not know at once.
fn has_majority(status: &GlobalStatus) -> bool {
    let voters = status.nodes.iter().filter(|node| node.role != "learner");
    let (all, up) = voters.fold((0, 0), |(all, up), node| {
        (all + 1, up + usize::from(node.reachable))
    });
    status.leader.is_some() && up * 2 > all
}

fn text(status: &GlobalStatus) -> String {
    let leader = match status.leader {
        Some(id) if has_majority(status) => format!("node {id}"),
        Some(id) => format!("node {id}, without a majority: writes wait until most nodes are up"),
        None => "none: writes wait until most nodes are up".to_owned(),
    };
    let rows = status.nodes.iter().map(|node| {
        vec![
            node.id.to_string(),
            node.role.clone(),
            if node.reachable {
                "online"
            } else {
                "unreachable"
            }
            .to_owned(),
            node.api_address.clone(),
            node.raft_address.clone(),
            node.matched
                .map(|index| index.to_string())
                .unwrap_or_default(),
        ]
    });
    let nodes = output::table(
        &["NODE", "ROLE", "STATE", "API", "RAFT", "LOG"],
        rows.collect(),
    );
    let zones = if status.zones.is_empty() {
        "No zone has joined; `meshctl token create zone-join --zone NAME` makes the token for one."
            .to_owned()
    } else {
        zone::table(&status.zones)
    };
    format!(
        "Cluster:   {}\nRevision:  {} (history {})\nLeader:    {leader}, term {}\nAnswered:  node {}\n\n{nodes}\n\n{zones}",
        status.cluster_id, status.revision, status.history_id, status.term, status.node_id,
    )
}

#[cfg(test)]
mod tests {
    use mesh_model::api::NodeStatus;

    use super::*;

    #[test]
    fn a_cluster_without_a_leader_says_what_that_means() {
        let status = GlobalStatus {
            cluster_id: "c".to_owned(),
            history_id: "h".to_owned(),
            revision: 5,
            node_id: 1,
            leader: None,
            term: 3,
            nodes: vec![NodeStatus {
                id: 2,
                role: "voter".to_owned(),
                api_address: "cp2:5682".to_owned(),
                zone_address: "cp2:5685".to_owned(),
                raft_address: "cp2:5686".to_owned(),
                matched: None,
                reachable: false,
            }],
            zones: vec![],
        };
        let text = text(&status);
        for words in ["none: writes wait", "unreachable", "zone-join"] {
            assert!(text.contains(words), "{words} in {text}");
        }
    }
}
