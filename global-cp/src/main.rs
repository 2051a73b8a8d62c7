//! The global control plane's program.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use global_cp::{control, process, recover, settings::Settings};

/// The global control plane of Isthmus: what administrators want, kept by one, three or five nodes.
#[derive(Parser)]
#[command(name = "global-cp", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one value
enum Command {
    /// Run a node. The first one founds the installation and prints its admin token once; the others join it.
    Run {
        /// TOML file with any of the settings below; flags and environment win over it.
        #[arg(long, env = "ISTHMUS_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Bring back a node whose data is damaged or gone, while it does not run.
    ///
    /// Where there are other nodes it joins them as a new one, at the next start: `meshctl global recover` on the same
    /// machine does that, and removes the old one. Give it the same settings as `run`, with --join and --token. One that
    /// was interrupted is finished by running it again.
    Recover {
        /// TOML file with any of the settings below; flags and environment win over it.
        #[arg(long, env = "ISTHMUS_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        settings: Settings,
        /// For the only node of an installation: go back to what can still be read of its store. Says what may be lost
        #[arg(long)]
        from_snapshot: bool,
        /// With --from-snapshot: there were other nodes, and none of them will ever run again
        #[arg(long, requires = "from_snapshot")]
        alone: bool,
    },
    /// Make a new admin token in place of the first one, at the node that runs on this data directory.
    ResetAdminToken {
        /// The running node's data directory.
        #[arg(
            long,
            env = "ISTHMUS_DATA_DIR",
            value_name = "DIR",
            default_value = "/var/lib/isthmus/global-cp"
        )]
        data_dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("global-cp: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run { config, settings } => {
            let config = settings.resolve(config.as_deref())?;
            // openraft says for each heartbeat that a peer is away; the cluster says it once. A level that names openraft
            // comes later and wins.
            mesh_runtime::logging::init(&format!("openraft=off,{}", config.log_level))?;
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?
                .block_on(process::run(config))
        }
        Command::Recover {
            config,
            settings,
            from_snapshot,
            alone,
        } => {
            let config = settings.resolve(config.as_deref())?;
            mesh_runtime::logging::init(&config.log_level)?;
            mesh_runtime::init();
            let recovered = if from_snapshot {
                recover::from_snapshot(&config.data_dir, alone)?
            } else {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?
                    .block_on(recover::rejoin(&config))?
            };
            println!("{recovered}");
            Ok(())
        }
        Command::ResetAdminToken { data_dir } => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let created = runtime.block_on(control::ask_reset_admin_token(&data_dir))?;
            println!("admin token: {}", created.token);
            Ok(())
        }
    }
}
