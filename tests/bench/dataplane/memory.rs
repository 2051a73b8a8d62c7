//! Memory of processes that have nothing to do, and what idle connections add to it.
//!
//! Memory that a process once had is not always given back, so each kind of connection meets processes that were just started.

use mesh_tests::client::KeptAlive;
use rustix::process::{Resource, getrlimit};

use super::Run;
use crate::{
    peers::{
        Service,
        chain::{Chain, resident_kib},
    },
    report::{Report, Results},
};

/// Descriptors of a process that are not those of measured connections.
const OTHER_DESCRIPTORS: u64 = 200;

pub(super) fn measure(run: &mut Run<'_>, results: &mut Results) {
    // A proxy has two for each connection.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = usize::try_from(limit.saturating_sub(OTHER_DESCRIPTORS) / 2).unwrap_or(usize::MAX);
    let mut counts = run.effort.idle_connections.clone();
    for count in counts.iter_mut().filter(|count| **count > most) {
        results.missing(format!(
            "{most} idle connections instead of {count}: a process may have no more than {limit} descriptors"
        ));
        *count = most;
    }
    for (peer, chain) in &mut run.chains {
        eprintln!("memory of {}", peer.name);
        let is_first = |service| peer.services.first() == Some(&service);
        for (service, name) in [(Service::Http1, "HTTP/1.1"), (Service::Tcp, "TCP")] {
            if !peer.serves(service) {
                continue;
            }
            let report = &mut results.dataplane;
            let turn = chain.restart().and_then(|()| {
                if is_first(service) {
                    idle_processes(chain, report)?;
                }
                idle_connections(chain, service, name, &counts, report)
            });
            if let Err(error) = turn {
                results.failed(chain.name, &format!("memory, {name}"), &error);
            }
        }
        // What comes next begins as it would have without this.
        if let Err(error) = chain.restart() {
            results.failed(chain.name, "restart", &error);
        }
    }
}

fn idle_processes(chain: &Chain, report: &mut Report) -> anyhow::Result<()> {
    let [client, server] = chain.resident_kib()?;
    report.add(chain.name, "idle, client's side: MiB", client / 1024.0);
    report.add(chain.name, "idle, server's side: MiB", server / 1024.0);
    let installation = chain.installation.iter();
    for (name, pid) in installation.flat_map(|installation| installation.control_planes()) {
        let mib = resident_kib(pid)? / 1024.0;
        report.add(chain.name, &format!("idle, {name}: MiB"), mib);
    }
    Ok(())
}

/// More and more of them, each with one request behind it.
fn idle_connections(
    chain: &Chain,
    service: Service,
    name: &str,
    counts: &[usize],
    report: &mut Report,
) -> anyhow::Result<()> {
    let entry = chain.entry(service)?;
    let before = chain.resident_kib()?;
    let mut open = Vec::new();
    for &count in counts {
        while open.len() < count {
            let mut connection = KeptAlive::open(entry)?;
            connection.get("/")?;
            open.push(connection);
        }
        let now = chain.resident_kib()?;
        let what = format!("idle, {count} connections, {name}");
        // Where clients' requests share connections, the server's side has few.
        for (side, name) in ["client's side", "server's side"].into_iter().enumerate() {
            let each = (now[side] - before[side]) / count as f64;
            let quantity = format!("{what}: KiB a connection, {name}");
            report.add(chain.name, &quantity, each);
            let quantity = format!("{what}: MiB, {name}");
            report.add(chain.name, &quantity, now[side] / 1024.0);
        }
    }
    // All of them are alive.
    for connection in &mut open {
        connection.get("/")?;
    }
    Ok(())
}
