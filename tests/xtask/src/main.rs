//! `cargo xtask`: the tasks of this workspace, so that nothing but Rust is needed to run them.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`demo`] | shows the mesh at work, or checks it unattended |
//! | [`lint`] | format, clippy, and which crates may be in the tree |
//! | [`cargo`] | builds and tests |
//! | [`dist`] | builds what is installed |

mod cargo;
mod demo;
mod dist;
mod lint;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The tasks of this workspace"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Start three global nodes, two zones and two meshes with an application in each, until Ctrl-C
    Demo {
        /// Go through all that the demo claims, unattended; fails where something is not as claimed
        #[arg(long)]
        check: bool,
        /// Use optimised binaries
        #[arg(long)]
        release: bool,
    },
    /// Build every binary, then run every test
    Test {
        /// Passed on to `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check format, lints and dependencies; changes nothing
    Lint,
    /// Build the binaries as they are installed, into `target/dist`: the dataplane by a profile of itself at work
    Dist,
    /// Measure on optimised binaries: `dataplane` (beside haproxy, Envoy and nginx), `change`, or both
    Bench {
        /// Passed on to the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Demo { check, release } => demo::run(check, release),
        Task::Test { arguments } => {
            cargo::build_binaries(false)?;
            let mut all = vec!["test", "--workspace"];
            all.extend(arguments.iter().map(String::as_str));
            cargo::cargo(&all)
        }
        Task::Lint => lint::run(),
        Task::Dist => dist::run(),
        Task::Bench { arguments } => {
            let binaries = cargo::build_binaries(true)?;
            let mut bench = std::process::Command::new(binaries.join("bench"));
            cargo::run(bench.args(arguments))
        }
    }
}
