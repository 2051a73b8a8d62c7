//! A sidecar beside a workload.
//!
//! Proxy and workload stand on loopback together unless a plan says otherwise.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use crate::{
    api,
    process::{Process, Recipe},
    world::World,
    zone::Zone,
};

/// What a sidecar is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    world: World,
    mesh: String,
    name: String,
    machine: IpAddr,
    recipe: Recipe,
    inbound: Option<SocketAddr>,
    outbounds: Vec<(String, SocketAddr)>,
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// The process.
    pub process: Process,
    /// The mesh.
    pub mesh: String,
    /// Its name.
    pub name: String,
    /// Where it takes connections for its workload, if it does.
    pub inbound: Option<SocketAddr>,
    /// Where its workload reaches others, by `service:port`.
    pub outbounds: Vec<(String, SocketAddr)>,
    /// Its state directory.
    pub state: PathBuf,
    /// Its admin socket.
    pub admin_socket: PathBuf,
    /// Readiness and metrics.
    pub metrics: String,
}

impl Plan {
    /// A sidecar named `name` in `mesh`, with `token`, at the control plane of `zone`.
    ///
    /// # Errors
    /// Where the token can not be written.
    pub fn new(
        world: &World,
        zone: &Zone,
        mesh: &str,
        name: &str,
        token: &str,
    ) -> anyhow::Result<Self> {
        let token_file = world.file(&format!("{mesh}-{name}.token"), token)?;
        let recipe = Recipe::new(&world.binary("dataplane"))
            .arg("run")
            .flag("--mode", "sidecar")
            .flag("--zone-cp", &zone.discovery)
            .flag("--token-file", token_file)
            .flag("--mesh", mesh)
            .flag("--name", name);
        Ok(Self {
            world: world.clone(),
            mesh: mesh.to_owned(),
            name: name.to_owned(),
            machine: world.loopback(),
            recipe,
            inbound: None,
            outbounds: Vec::new(),
        })
    }

    /// Stands on a machine of its own (see [`World::machine`]), and so does its application. To be said before
    /// [`Self::inbound`].
    #[must_use]
    pub fn at(mut self, machine: Ipv4Addr) -> Self {
        self.machine = machine.into();
        self
    }

    /// Belongs to `service`.
    #[must_use]
    pub fn service(mut self, service: &str) -> Self {
        self.recipe = self.recipe.flag("--service", service);
        self
    }

    /// Has one more label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.recipe = self.recipe.flag("--label", format!("{name}={value}"));
        self
    }

    /// Takes connections at `port` for the application at the port `application` of the same machine.
    #[must_use]
    pub fn inbound(mut self, port: u16, application: u16) -> Self {
        self.recipe = self
            .recipe
            .flag("--inbound", format!("{port}:{application}"));
        self.inbound = Some((self.machine, port).into());
        self
    }

    /// The same for an application that speaks `protocol`.
    #[must_use]
    pub fn inbound_of(mut self, port: u16, application: u16, protocol: &str) -> Self {
        let inbound = format!("{port}:{application}/{protocol}");
        self.recipe = self.recipe.flag("--inbound", inbound);
        self.inbound = Some((self.machine, port).into());
        self
    }

    /// Lets its workload reach `service` (`name:port`, or `name.zone:port`).
    ///
    /// # Errors
    /// Where no ports are left.
    pub fn outbound(mut self, service: &str) -> anyhow::Result<Self> {
        let port = self.world.port()?;
        self.recipe = self.recipe.flag("--outbound", format!("{port}={service}"));
        // An outbound is for the workload alone: on loopback, which is IPv4's unless the resource says otherwise.
        let listen = (Ipv4Addr::LOCALHOST, port).into();
        self.outbounds.push((service.to_owned(), listen));
        Ok(self)
    }

    /// Where its workload will reach `service`.
    ///
    /// # Panics
    /// Where no such outbound was planned.
    #[must_use]
    pub fn to(&self, service: &str) -> SocketAddr {
        outbound_to(&self.outbounds, &self.name, service)
    }

    /// With one more flag.
    #[must_use]
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.recipe = self.recipe.flag(name, value);
        self
    }

    /// Starts it, without waiting for anything.
    ///
    /// # Errors
    /// Where it can not be started.
    pub fn launch(self) -> anyhow::Result<Sidecar> {
        let unique = format!("{}-{}", self.mesh, self.name);
        let directory = self.world.directory();
        let (state, admin_socket) = (
            directory.join(format!("{unique}.state")),
            directory.join(format!("{unique}.sock")),
        );
        let metrics = self.world.address()?.to_string();
        let recipe = self
            .recipe
            .flag("--address", self.machine.to_string())
            .flag("--state-dir", &state)
            .flag("--admin-socket", &admin_socket)
            .flag("--metrics-address", &metrics);
        Ok(Sidecar {
            process: Process::start(&self.world, &unique, recipe)?,
            mesh: self.mesh,
            name: self.name,
            inbound: self.inbound,
            outbounds: self.outbounds,
            state,
            admin_socket,
            metrics,
        })
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// Where it does not.
    pub fn start(self) -> anyhow::Result<Sidecar> {
        let mut sidecar = self.launch()?;
        sidecar.wait_ready()?;
        Ok(sidecar)
    }
}

impl Sidecar {
    /// Waits until it serves.
    ///
    /// # Errors
    /// Where it ends or does not in time.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let metrics = self.metrics.clone();
        self.process.wait_ready(|| api::ready(&metrics))
    }

    /// Where its workload reaches `service`.
    ///
    /// # Panics
    /// Where no such outbound was planned.
    #[must_use]
    pub fn to(&self, service: &str) -> SocketAddr {
        outbound_to(&self.outbounds, &self.name, service)
    }

    /// Its metrics, in Prometheus' format.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn metrics(&self) -> anyhow::Result<String> {
        Ok(api::plain_get(&format!("http://{}/metrics", self.metrics))?.body)
    }
}

fn outbound_to(outbounds: &[(String, SocketAddr)], name: &str, service: &str) -> SocketAddr {
    outbounds
        .iter()
        .find(|(known, _)| known == service)
        .unwrap_or_else(|| panic!("{name} has no outbound to {service}"))
        .1
}
