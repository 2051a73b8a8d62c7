//! Pairs of proxies side by side: the parts of a run.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`workloads`] | what is said over how many connections: HTTP/1.1, HTTP/2, gRPC, TCP, new connections |
//! | [`latency`] | percentiles at half of what saturates |
//! | [`bulk`] | one connection that carries as much as it can |
//! | [`memory`] | idle processes, and what idle connections add |
//! | [`policies`] | what each policy costs our own pair |
//!
//! In each round all peers take their turns at one thing before the next thing begins, so that what else happens on the machine meets all
//! of them. A turn that fails is named, and the run goes on.

mod bulk;
mod latency;
mod memory;
mod policies;
mod workloads;

use clap::ValueEnum;
use mesh_tests::world::World;

use crate::{
    Effort, Options,
    application::Application,
    peers::{BASE, PEERS, Peer, Service, Site, chain::Chain, is_installed},
    report::Results,
};

/// What a run consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Idle processes and idle connections
    Memory,
    /// HTTP/1.1 over kept connections
    Http1,
    /// HTTP/2 from end to end
    Http2,
    /// Unary calls of gRPC
    Grpc,
    /// Messages to and fro in calls of gRPC that go on
    Streaming,
    /// The page by proxies that know of no protocol
    Tcp,
    /// A new connection for each request
    Connect,
    /// Percentiles at half of what saturates
    Latency,
    /// A large body on one connection
    Bulk,
    /// What each policy costs two sidecars
    Policies,
}

/// Everybody who is measured, started.
#[derive(Debug)]
struct Run<'a> {
    effort: &'a Effort,
    chains: Vec<(&'static Peer, Chain)>,
}

pub(crate) fn measure(
    world: &World,
    options: &Options,
    effort: &Effort,
    results: &mut Results,
) -> anyhow::Result<()> {
    let wanted = |part: Part| options.only.is_empty() || options.only.contains(&part);
    if !is_installed("nginx") {
        let instead = "nginx is NOT installed: a server of this program's own is the application";
        results.missing(instead.to_owned());
    }
    let application = Application::start(world, effort.bulk_mib)?;
    let site = Site {
        world,
        application: &application,
        envoy: options.envoy.as_deref(),
    };
    let mut run = Run {
        effort,
        chains: Vec::new(),
    };
    let chosen = |peer: &&Peer| {
        options.peers.is_empty() || options.peers.iter().any(|name| name == peer.name)
    };
    for peer in PEERS.iter().filter(chosen) {
        run.start(peer, &site, results);
    }
    if !run.chains.iter().any(|(peer, _)| peer.name == BASE) {
        results.missing(format!("{BASE} is NOT measured: there are no ratios"));
    }
    anyhow::ensure!(!run.chains.is_empty(), "there is nobody to measure");
    if wanted(Part::Memory) {
        memory::measure(&mut run, results);
    }
    for round in 1..=effort.rounds {
        for part in Part::value_variants()
            .iter()
            .copied()
            .filter(|part| wanted(*part))
        {
            eprintln!("round {round} of {}: {part:?}", effort.rounds);
            match part {
                Part::Memory => {}
                Part::Http1
                | Part::Http2
                | Part::Grpc
                | Part::Streaming
                | Part::Tcp
                | Part::Connect => {
                    workloads::measure(&run, part, results);
                }
                Part::Latency => latency::measure(&run, results),
                Part::Bulk => bulk::measure(&run, results),
                Part::Policies => policies::measure(&run, results),
            }
        }
        // Nobody is always the first.
        run.chains.rotate_left(1);
    }
    for (_, chain) in &mut run.chains {
        chain.end();
    }
    Ok(())
}

impl Run<'_> {
    /// Starts a peer, or says why it is left out.
    fn start(&mut self, peer: &'static Peer, site: &Site<'_>, results: &mut Results) {
        eprintln!("{} starts", peer.name);
        if let Some(program) = peer.program().filter(|program| !is_installed(program)) {
            let text = format!("{} is NOT measured: {program} is not installed", peer.name);
            return results.missing(text);
        }
        let started = peer.start(site).and_then(|mut chain| {
            chain.wait_until_it_answers()?;
            Ok(chain)
        });
        match started {
            Ok(chain) => {
                results.dataplane.column(peer.name);
                self.chains.push((peer, chain));
            }
            Err(error) if peer.is_brought() => {
                results.missing(format!("{} is NOT measured: {error:#}", peer.name));
            }
            Err(error) => results.failed(peer.name, "start", &error),
        }
    }

    /// Those that can do it.
    fn serving(&self, service: Service) -> impl Iterator<Item = &Chain> {
        let serving = self
            .chains
            .iter()
            .filter(move |(peer, _)| peer.serves(service));
        serving.map(|(_, chain)| chain)
    }
}
