//! The nodes of a global control plane.

use std::{
    ffi::OsStr,
    io::Write as _,
    path::PathBuf,
    process::{Output, Stdio},
};

use anyhow::Context as _;
use mesh_model::api::TokenUse;

use crate::{
    api::{self, Api},
    process::{Process, Recipe},
    wait::{SOON, eventually},
    world::World,
};

/// A global control plane of one or more nodes.
#[derive(Debug)]
pub struct Global {
    world: World,
    /// Its nodes: the first made the installation, the others joined it.
    pub nodes: Vec<Node>,
    /// The token that the first start printed.
    pub admin_token: String,
    /// The pin that the first start printed.
    pub pin: String,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// The process.
    pub process: Process,
    /// Its data directory.
    pub data: PathBuf,
    /// Address of its API.
    pub api: String,
    /// Where zones call it.
    pub zone: String,
    /// Where its peers call it.
    pub raft: String,
    /// Health and metrics.
    pub admin: String,
    /// The token it joined by; empty for the first.
    pub join_token: String,
}

impl Node {
    /// The recipe of a node that has its own ports and data directory, without a cluster to join.
    ///
    /// # Errors
    /// Where no ports are left.
    pub fn recipe(world: &World, name: &str) -> anyhow::Result<(Recipe, Self)> {
        let address = || anyhow::Ok(world.address()?.to_string());
        let data = world.directory().join(name);
        let node = Self {
            process: Process::idle(world, name),
            data,
            api: address()?,
            zone: address()?,
            raft: address()?,
            admin: address()?,
            join_token: String::new(),
        };
        let recipe = Recipe::new(&world.binary("global-cp"))
            .arg("run")
            .flag("--data-dir", &node.data)
            .flag("--api-address", &node.api)
            .flag("--zone-address", &node.zone)
            .flag("--raft-address", &node.raft)
            .flag("--admin-address", &node.admin)
            .flag("--advertise-host", world.loopback().to_string());
        Ok((recipe, node))
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// Where it ends or is not in time.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let admin = self.admin.clone();
        self.process.wait_ready(|| api::ready(&admin))
    }

    /// `kill -9` and start, until it is ready again.
    ///
    /// # Errors
    /// Where it does not come back.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process.restart()?;
        self.wait_ready()
    }
}

impl Global {
    /// A control plane of one node.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(world: &World) -> anyhow::Result<Self> {
        let (recipe, node) = Node::recipe(world, "global-1")?;
        Self::start_with(world, node, recipe)
    }

    /// A control plane whose first node is started by `recipe`.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start_with(world: &World, mut node: Node, recipe: Recipe) -> anyhow::Result<Self> {
        node.process.recipe = recipe;
        node.process.launch()?;
        node.wait_ready()?;
        let printed = |name: &str| {
            let output = node.process.output();
            output
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|value| value.trim().to_owned())
                .with_context(|| format!("the first start printed no {name:?}:\n{output}"))
        };
        let (admin_token, pin) = (printed("admin token:")?, printed("ca pin:")?);
        Ok(Self {
            world: world.clone(),
            nodes: vec![node],
            admin_token,
            pin,
        })
    }

    /// A control plane of `count` nodes, each a voter.
    ///
    /// # Errors
    /// Where one does not start or join.
    pub fn start_cluster(world: &World, count: usize) -> anyhow::Result<Self> {
        let mut global = Self::start(world)?;
        for _ in 1..count {
            global.add_node()?;
        }
        Ok(global)
    }

    /// Starts one more node, which joins, and waits until it votes.
    ///
    /// # Errors
    /// Where it does not.
    pub fn add_node(&mut self) -> anyhow::Result<&mut Node> {
        let token = self.api()?.create_token(&api::token(TokenUse::NodeJoin))?;
        let name = format!("global-{}", self.nodes.len() + 1);
        let (recipe, mut node) = Node::recipe(&self.world, &name)?;
        node.process.recipe = recipe
            .clone()
            .flag("--join", &self.nodes[0].zone)
            .flag("--token", &token.token);
        node.process.launch()?;
        node.wait_ready()?;
        // From now on it knows its cluster by what is on its disk; the token is used up.
        node.process.recipe = recipe;
        node.join_token = token.token;
        self.nodes.push(node);
        let wanted = self.nodes.len();
        let api = self.api()?;
        eventually(SOON, &format!("{wanted} nodes vote"), || {
            let status = api.status()?;
            let voting = status.nodes.iter().filter(|n| n.role != "learner").count();
            anyhow::ensure!(voting == wanted, "{status:?}");
            Ok(())
        })?;
        let last = self.nodes.len() - 1;
        Ok(&mut self.nodes[last])
    }

    /// The API with the admin's token, at whichever node answers.
    ///
    /// # Errors
    /// Where the token is none.
    pub fn api(&self) -> anyhow::Result<Api> {
        let servers = self.nodes.iter().map(|node| node.api.clone()).collect();
        Api::new(servers, &self.admin_token)
    }

    /// The API of one node, with the admin's token.
    ///
    /// # Errors
    /// Where the token is none.
    pub fn api_of(&self, node: usize) -> anyhow::Result<Api> {
        Api::new(vec![self.nodes[node].api.clone()], &self.admin_token)
    }

    /// The place in [`Self::nodes`] of the node that leads, as a running node sees it.
    ///
    /// # Errors
    /// Where nobody leads soon.
    pub fn leader(&mut self) -> anyhow::Result<usize> {
        let running: Vec<_> = (0..self.nodes.len())
            .filter(|at| self.nodes[*at].process.is_running())
            .collect();
        self.leader_among(&running)
    }

    /// The place in [`Self::nodes`] of the node that leads, as those at `running` see it.
    ///
    /// # Errors
    /// Where nobody leads soon.
    pub fn leader_among(&self, running: &[usize]) -> anyhow::Result<usize> {
        eventually(SOON, "the nodes agree on a leader that runs", || {
            let mut leaders = Vec::new();
            for at in running {
                let status = self.api_of(*at)?.status()?;
                let leader = status.leader.context("no leader is known")?;
                let node = status.nodes.iter().find(|node| node.id == leader);
                leaders.push(node.context("an unknown leader")?.api_address.clone());
            }
            leaders.dedup();
            anyhow::ensure!(leaders.len() == 1, "{leaders:?}");
            running
                .iter()
                .copied()
                .find(|at| self.nodes[*at].api == leaders[0])
                .with_context(|| format!("{} does not run", leaders[0]))
        })
    }

    /// `kill -9` of every node.
    pub fn kill_all(&mut self) {
        for node in &mut self.nodes {
            node.process.kill();
        }
    }

    /// Starts every node that does not run, and waits until all are ready.
    ///
    /// # Errors
    /// Where one is not.
    pub fn start_all(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if !node.process.is_running() {
                node.process.launch()?;
            }
        }
        self.nodes.iter_mut().try_for_each(Node::wait_ready)
    }

    /// Runs meshctl as the admin, and returns what it says where it succeeds.
    ///
    /// # Errors
    /// Where it does not.
    pub fn meshctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.try_meshctl(arguments, "")?;
        anyhow::ensure!(
            output.status.success(),
            "meshctl {}: {}\n{}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs meshctl as the admin with `input`, and returns how it ended.
    ///
    /// # Errors
    /// Where it can not be started.
    pub fn try_meshctl<S: AsRef<OsStr>>(
        &self,
        arguments: &[S],
        input: &str,
    ) -> anyhow::Result<Output> {
        // The first node that runs; meshctl is told one address.
        let node = self
            .nodes
            .iter()
            .find(|node| api::ready(&node.admin).is_ok())
            .unwrap_or(&self.nodes[0]);
        let recipe = Recipe::new(&self.world.binary("meshctl"))
            .env("ISTHMUS_SERVER", &format!("https://{}", node.api))
            .env("ISTHMUS_TOKEN", &self.admin_token);
        run_with_input(&recipe, arguments, input)
    }
}

/// Runs a command to its end with `input` as its standard input.
///
/// # Errors
/// Where it can not be started.
pub fn run_with_input<S: AsRef<OsStr>>(
    recipe: &Recipe,
    arguments: &[S],
    input: &str,
) -> anyhow::Result<Output> {
    let mut child = recipe
        .command()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // A command that reads nothing closes the pipe, which is its right.
    let _ = child
        .stdin
        .take()
        .context("the pipe was asked for")?
        .write_all(input.as_bytes());
    Ok(child.wait_with_output()?)
}
