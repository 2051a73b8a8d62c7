//! `dataplane run`: the proxy as a process.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use dataplane::{
    process,
    settings::{Settings, Typed},
};
use mesh_runtime::{config, logging, shutdown};
use tokio::runtime::LocalOptions;

/// The proxy of Isthmus: sidecar and zone ingress
#[derive(Parser)]
#[command(name = "dataplane", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy
    Run {
        /// Settings file (TOML); flags and environment win over it
        #[arg(long, env = "ISTHMUS_CONFIG")]
        config: Option<PathBuf>,
        #[command(flatten)]
        typed: Box<Typed>,
    },
}

fn main() -> ExitCode {
    let Command::Run { config, typed } = Arguments::parse().command;
    match run(config, *typed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if tracing::dispatcher::has_been_set() {
                tracing::error!(error = format!("{error:#}"), "stopped");
            } else {
                eprintln!("dataplane: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(config: Option<PathBuf>, typed: Typed) -> anyhow::Result<()> {
    mesh_runtime::init();
    let settings: Settings = config::load(typed, config.as_deref())?.settings()?;
    let level = logging::init(&settings.log_level)?;
    // Not `build`, which would bring the runtime of several threads, and the C library's mathematics, into memory.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("the control runtime could not be started")?;
    runtime.block_on(async {
        let stop = shutdown::on_signal().context("signals can not be handled")?;
        process::run(settings, Some(level), stop).await
    })
}
