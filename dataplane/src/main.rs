//! `dataplane run`: the proxy as a process.

use std::{
    io,
    path::PathBuf,
    process::{self, ExitCode},
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use dataplane::settings::{Settings, Typed};
use mesh_runtime::{config, logging, shutdown};
use tokio::{
    runtime::LocalOptions,
    signal::unix::{SignalKind, signal},
};

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

/// Starts the program anew, from the file it was started from, which may be a newer version by now. It takes over.
fn start_successor() -> io::Result<u32> {
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_else(|| "dataplane".into());
    let mut successor = process::Command::new(program)
        .args(words)
        .env("ISTHMUS_TAKE_OVER", "true")
        .spawn()?;
    let pid = successor.id();
    // One that ends at once (of a wrong version, say) must not stay as a zombie.
    std::thread::spawn(move || successor.wait());
    Ok(pid)
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
        let mut upgrade = signal(SignalKind::hangup()).context("signals can not be handled")?;
        tokio::spawn(async move {
            while upgrade.recv().await.is_some() {
                match start_successor() {
                    Ok(pid) => tracing::info!(pid, "asked to upgrade: a successor is started"),
                    Err(error) => tracing::error!(%error, "the successor could not be started"),
                }
            }
        });
        dataplane::process::run(settings, Some(level), stop).await
    })
}
