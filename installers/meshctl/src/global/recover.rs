//! `meshctl global recover`: lets a node of global whose data is damaged or gone join again, as a new node.
//!
//! Run on the node's own machine, with the API of another node. What the old node had acknowledged is no longer there, so
//! it must never speak again: it is taken out of the cluster first, then `global-cp recover` joins as a new one. A
//! cluster that has lost its majority can not take a node out, and so nothing is done where others may depend on what is
//! lost here.

use std::{ffi::OsString, path::PathBuf, process::Command};

use clap::Args;
use mesh_model::api::{CreateToken, CreatedToken, GlobalStatus, NodeStatus, TokenUse};
use mesh_runtime::files::{self, ReadError};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{cli::Connection, client::Client, failure::Failure, output, rollback};

const EXAMPLES: &str = "\
Examples:
  systemctl stop isthmus-global-cp
  meshctl global recover --server https://cp2.example.com:5682
  systemctl start isthmus-global-cp

  meshctl global recover --server https://cp2.example.com:5682 --node 3 --data-dir /srv/cp \\
      -- --advertise-host cp1.example.com

What was in the data directory is moved into a folder `damaged-…` in it; delete that when the node votes again. The only
node of an installation has nobody to ask: see `global-cp recover --help`, --from-snapshot.";

/// Bring back a node whose data is damaged or gone: it joins as a new one, and the old one is taken out.
///
/// Run it on the node's own machine while global-cp does not run there. --server is another node.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Recover {
    /// The id it had, as `meshctl global status` shows it. Needed where neither the data directory nor being the only
    /// node that is away says so.
    #[arg(long, value_name = "ID")]
    node: Option<u64>,
    /// Its data directory.
    #[arg(
        long,
        value_name = "DIRECTORY",
        default_value = "/var/lib/isthmus/global-cp"
    )]
    data_dir: PathBuf,
    /// Its configuration, as for `global-cp run` [default: /etc/isthmus/global-cp.toml, where that exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The program.
    #[arg(long, value_name = "FILE", default_value = "global-cp")]
    program: PathBuf,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Further settings for global-cp, those it runs with.
    #[arg(last = true, value_name = "SETTING")]
    settings: Vec<OsString>,
}

/// What is read of `recovering`, which a recovery has left that was interrupted.
#[derive(Deserialize)]
struct Marker {
    node: Option<NodeFile>,
}

/// What is read of `node.json`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeFile {
    node_id: u64,
    cluster_id: String,
}

impl Recover {
    /// Takes the old node out and joins as a new one.
    pub(super) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let client = Client::new(connection)?;
        let status: GlobalStatus = client.get(&["status"], &[]).await?;
        let old = self.old_node(&status)?;
        let join = status
            .nodes
            .iter()
            .find(|node| node.id == status.node_id)
            .map(|node| node.zone_address.clone())
            .filter(|address| !address.is_empty())
            .ok_or_else(|| {
                Failure::failed("the node that answers does not say where nodes join it")
            })?;
        if !super::has_majority(&status) {
            return Err(Failure::failed(
                "the cluster has no majority: too many nodes are away. Bring another one back first; to take this one out now could \
                 lose what only it had acknowledged. Nothing was changed",
            ));
        }
        if !self.yes {
            let what = match old {
                Some(id) => format!("node {id} is taken out of the cluster for good"),
                None => "no node is taken out".to_owned(),
            };
            rollback::confirm(
                &format!(
                    "{what}, and the data in {} is moved aside",
                    self.data_dir.display()
                ),
                "see `meshctl global status`, and say --yes where that is meant",
            )?;
        }
        if let Some(id) = old {
            let _: serde_json::Value = client.delete(&["nodes", &id.to_string()]).await?;
            output::print(&format!("node/{id} removed"))?;
        }
        let token: CreatedToken = client.post(&["tokens"], &[], &node_token()).await?;
        let ended = self
            .command(&join)
            // Not as an argument, which every user of the machine could see.
            .env("ISTHMUS_JOIN_TOKEN", &token.token)
            .status()
            .map_err(|error| Failure::failed(format!("{}: {error}", self.program.display())))?;
        if !ended.success() {
            return Err(Failure::failed(format!(
                "{} recover: {ended}. Mend what it says, and run this again: it goes on where it was",
                self.program.display()
            )));
        }
        output::print(
            "start global-cp now (`systemctl start isthmus-global-cp`): it catches up, and then votes",
        )
    }

    fn command(&self, join: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("recover").arg("--data-dir").arg(&self.data_dir);
        let default = PathBuf::from("/etc/isthmus/global-cp.toml");
        let config = self
            .config
            .clone()
            .or_else(|| default.exists().then_some(default));
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        command.arg("--join").arg(join).args(&self.settings);
        command
    }

    /// A file of the data directory; `None` where it is damaged or gone, as so much else may be.
    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        match files::read_checksummed(&self.data_dir.join(name)) {
            Ok(bytes) => serde_json::from_slice(&bytes).ok(),
            Err(ReadError::Missing(_)) => None,
            Err(error) => {
                eprintln!("{error}");
                None
            }
        }
    }

    /// The node that is taken out, where one is left that was this machine's.
    fn old_node(&self, status: &GlobalStatus) -> Result<Option<u64>, Failure> {
        // Where one was interrupted, `node.json` may be moved, or a new one in its place.
        let known = match self.read::<Marker>("recovering") {
            // It was taken out then, whichever it was.
            Some(Marker { node: None }) if self.node.is_none() => return Ok(None),
            Some(marker) => marker.node,
            None => self.read::<NodeFile>("node.json"),
        };
        choose(
            self.node,
            known.map(|file| (file.node_id, file.cluster_id)),
            status,
        )
    }
}

/// Which node is taken out: the one that was named, else the one that the disk names, else the only one that is away.
/// `None` where it was taken out before.
fn choose(
    named: Option<u64>,
    on_disk: Option<(u64, String)>,
    status: &GlobalStatus,
) -> Result<Option<u64>, Failure> {
    if let Some((_, cluster)) = &on_disk
        && *cluster != status.cluster_id
    {
        return Err(Failure::invalid(format!(
            "this data directory is of cluster {cluster}, and --server of cluster {}: nothing was changed",
            status.cluster_id
        )));
    }
    let on_disk = on_disk.map(|(id, _)| id);
    if let (Some(named), Some(found)) = (named, on_disk)
        && named != found
    {
        return Err(Failure::invalid(format!(
            "this data directory is node {found}'s, not node {named}'s: nothing was changed"
        )));
    }
    let away: Vec<&NodeStatus> = status.nodes.iter().filter(|node| !node.reachable).collect();
    let id = match (named.or(on_disk), away.as_slice()) {
        (Some(id), _) => id,
        (None, [only]) => only.id,
        (None, []) => return Ok(None),
        (None, several) => {
            let ids: Vec<_> = several.iter().map(|node| node.id.to_string()).collect();
            return Err(Failure::invalid(format!(
                "which node was this machine's? Nodes {} are away: name it with --node",
                ids.join(", ")
            )));
        }
    };
    match status.nodes.iter().find(|node| node.id == id) {
        None => Ok(None),
        Some(node) if node.reachable => Err(Failure::invalid(format!(
            "node {id} runs, at {}: stop it first, or name another one. Nothing was changed",
            node.raft_address
        ))),
        Some(_) => Ok(Some(id)),
    }
}

fn node_token() -> CreateToken {
    CreateToken {
        usage: TokenUse::NodeJoin,
        valid_for_seconds: None,
        description: "meshctl global recover".to_owned(),
        mesh: None,
        name: None,
        labels: std::collections::BTreeMap::new(),
        zone: None,
        user: None,
        role: None,
        meshes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(nodes: &[(u64, bool)]) -> GlobalStatus {
        let node = |(id, reachable): &(u64, bool)| NodeStatus {
            id: *id,
            role: "voter".to_owned(),
            api_address: String::new(),
            zone_address: String::new(),
            raft_address: format!("cp{id}:5686"),
            matched: None,
            reachable: *reachable,
        };
        GlobalStatus {
            cluster_id: "ours".to_owned(),
            history_id: "h".to_owned(),
            revision: 1,
            node_id: 1,
            leader: Some(1),
            term: 1,
            nodes: nodes.iter().map(node).collect(),
            zones: vec![],
        }
    }

    #[test]
    fn the_disk_or_being_the_only_one_away_says_who_is_taken_out() {
        let three = status(&[(1, true), (2, true), (3, false)]);
        let on_disk = |id| Some((id, "ours".to_owned()));
        assert_eq!(choose(None, None, &three).unwrap(), Some(3));
        assert_eq!(choose(None, on_disk(3), &three).unwrap(), Some(3));
        // Taken out before: what is left is to join.
        assert_eq!(choose(None, on_disk(4), &three).unwrap(), None);
        assert_eq!(choose(None, None, &status(&[(1, true)])).unwrap(), None);
    }

    #[test]
    fn a_node_that_runs_or_is_another_one_is_never_taken_out() {
        let three = status(&[(1, true), (2, false), (3, false)]);
        let on_disk = |id| Some((id, "ours".to_owned()));
        let refused = |named, on_disk| choose(named, on_disk, &three).unwrap_err().to_string();
        assert!(refused(None, None).contains("--node"));
        assert!(refused(None, on_disk(1)).contains("runs"));
        assert!(refused(Some(1), None).contains("runs"));
        assert!(refused(Some(2), on_disk(3)).contains("node 3's"));
        let theirs = Some((2, "theirs".to_owned()));
        assert!(refused(None, theirs).contains("cluster theirs"));
    }
}
