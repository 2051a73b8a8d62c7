//! Client → proxy → mutual TLS → proxy → application.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use mesh_tests::{
    process::Process,
    usage,
    wait::{SOON, eventually},
};

use super::{Service, isthmus::Installation};
use crate::load::{Load, Shape, Talk};

/// Two proxies in a row, one worker each.
#[derive(Debug)]
pub(crate) struct Chain {
    pub name: &'static str,
    entries: Vec<(Service, SocketAddr)>,
    client: Process,
    server: Process,
    /// What belongs to sidecars of ours.
    pub installation: Option<Installation>,
}

impl Chain {
    pub(super) fn new(
        name: &'static str,
        entries: Vec<(Service, SocketAddr)>,
        client: Process,
        server: Process,
    ) -> Self {
        Self {
            name,
            entries,
            client,
            server,
            installation: None,
        }
    }

    /// Where the client connects, in plain.
    pub(crate) fn entry(&self, service: Service) -> anyhow::Result<SocketAddr> {
        self.entries
            .iter()
            .find(|(known, _)| *known == service)
            .map(|(_, entry)| *entry)
            .with_context(|| format!("{} has no entry for {service:?}", self.name))
    }

    /// CPU time of both proxies so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let mut time = Duration::ZERO;
        for process in [&self.client, &self.server] {
            for pid in usage::family(process.pid()) {
                time += usage::cpu_time(pid)?;
            }
        }
        Ok(time)
    }

    /// Memory of the proxy at the client's side, and of the one at the server's, in KiB.
    pub(crate) fn resident_kib(&self) -> anyhow::Result<[f64; 2]> {
        Ok([
            resident_kib(self.client.pid())?,
            resident_kib(self.server.pid())?,
        ])
    }

    /// Both anew, with nothing in their memory.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.server.restart()?;
        self.client.restart()?;
        self.wait_until_it_answers()
    }

    /// Ends both in order: a proxy that is built to profile itself writes down what it counted.
    pub(crate) fn end(&mut self) {
        for proxy in [&mut self.client, &mut self.server] {
            // Who does not end when asked is killed.
            let _ = proxy.terminate(SOON);
        }
    }

    /// Waits until every service is answered for.
    pub(crate) fn wait_until_it_answers(&mut self) -> anyhow::Result<()> {
        for &(service, entry) in &self.entries {
            let talk = match service {
                Service::Http1 | Service::Tcp | Service::TcpUnresumed => Talk::Http1,
                Service::Http2 => Talk::Http2,
                Service::Grpc => Talk::GrpcUnary,
            };
            let what = format!("{} answers for {service:?} at {entry}", self.name);
            let answered = eventually(SOON, &what, || {
                Load::open(talk, entry, Shape::ONE).map(|_| ())
            });
            answered.with_context(|| {
                format!("{}\n{}", self.client.last_words(), self.server.last_words())
            })?;
        }
        Ok(())
    }
}

/// Memory of a process and its children.
pub(crate) fn resident_kib(pid: u32) -> anyhow::Result<f64> {
    let mut kib = 0;
    for pid in usage::family(pid) {
        kib += usage::resident_kib(pid)?;
    }
    Ok(kib as f64)
}
