//! `zone-cp`: the zone control plane as a process.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use mesh_runtime::{config, logging, shutdown};
use zone_cp::{process, settings::Given};

/// The zone control plane of Isthmus.
#[derive(Debug, Parser)]
#[command(name = "zone-cp", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the zone until it is asked to stop (SIGTERM).
    Run {
        /// A TOML file with any of the settings below; flags and environment win over it.
        #[arg(long, env = "ISTHMUS_CONFIG")]
        config: Option<PathBuf>,
        #[command(flatten)]
        given: Box<Given>,
    },
}

fn main() -> ExitCode {
    let Command::Run { config, given } = Cli::parse().command;
    match run(config, *given) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The log may not have begun yet.
            eprintln!("zone-cp: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(file: Option<PathBuf>, given: Given) -> anyhow::Result<()> {
    let settings = config::load(given, file.as_deref())?.complete()?;
    mesh_runtime::init();
    let _level = logging::init(&settings.log_level)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot start")?
        .block_on(async {
            let stop = shutdown::on_signal().context("signals cannot be handled")?;
            process::run(settings, stop, |_| {}).await
        })
}
