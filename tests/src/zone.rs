//! A zone: joining, its control plane, its ingress.

use std::path::PathBuf;

use anyhow::Context as _;
use mesh_model::api::TokenUse;

use crate::{
    api::{self, Api},
    global::{Global, run_with_input},
    process::{Process, Recipe},
    resources,
    wait::{SOON, eventually},
    world::World,
};

/// A zone with one control plane and, where asked for, an ingress.
#[derive(Debug)]
pub struct Zone {
    world: World,
    /// Its name.
    pub name: String,
    /// The control plane.
    pub process: Process,
    /// Its data directory.
    pub data: PathBuf,
    /// Where dataplanes call it.
    pub discovery: String,
    /// Its own API.
    pub api: String,
    /// Health and metrics.
    pub admin: String,
    /// The ingress, where one was started.
    pub ingress: Option<Ingress>,
}

/// A zone's ingress.
#[derive(Debug)]
pub struct Ingress {
    /// The process.
    pub process: Process,
    /// Where other zones enter.
    pub address: String,
}

impl Zone {
    /// Lets a zone join and starts its control plane.
    ///
    /// # Errors
    /// Where it does not.
    pub fn start(world: &World, global: &Global, name: &str) -> anyhow::Result<Self> {
        Self::start_patient(world, global, name, 3)
    }

    /// The same, where whoever does not come back within `grace` seconds is forgotten. Dataplanes call a zone that was away
    /// every ten seconds or so: one that is restarted while all must go on needs more than that.
    ///
    /// # Errors
    /// Where it does not.
    pub fn start_patient(
        world: &World,
        global: &Global,
        name: &str,
        grace: u32,
    ) -> anyhow::Result<Self> {
        let api = global.api()?;
        api.apply(&resources::zone(name))?;
        let mut zone = Self::unjoined(world, name)?;
        let seconds = zone.process.recipe.arguments.last_mut();
        *seconds.context("--grace-period-seconds")? = grace.to_string().into();
        let token = api.zone_join_token(name)?;
        zone.join(global, &token)?;
        zone.process.launch()?;
        zone.wait_ready()?;
        Ok(zone)
    }

    /// A zone that has its ports and recipe, and neither identity nor process.
    ///
    /// # Errors
    /// Where no ports are left.
    pub fn unjoined(world: &World, name: &str) -> anyhow::Result<Self> {
        let address = || anyhow::Ok(world.address()?.to_string());
        let mut zone = Self {
            world: world.clone(),
            name: name.to_owned(),
            process: Process::idle(world, &format!("zone-{name}")),
            data: world.directory().join(format!("zone-{name}")),
            discovery: address()?,
            api: address()?,
            admin: address()?,
            ingress: None,
        };
        zone.process.recipe = Recipe::new(&world.binary("zone-cp"))
            .arg("run")
            .flag("--data-dir", &zone.data)
            .flag("--discovery-address", &zone.discovery)
            .flag("--api-address", &zone.api)
            .flag("--admin-address", &zone.admin)
            .flag("--advertise-host", world.loopback().to_string())
            .flag("--grace-period-seconds", "3");
        Ok(zone)
    }

    /// Runs `meshctl zone join` with `token`.
    ///
    /// # Errors
    /// Where it fails, with what it says.
    pub fn join(&self, global: &Global, token: &str) -> anyhow::Result<()> {
        let recipe = Recipe::new(&self.world.binary("meshctl"))
            .arg("zone")
            .arg("join")
            .flag("--global", format!("https://{}", global.nodes[0].zone))
            .flag("--token", token)
            .flag("--data-dir", &self.data)
            .arg("--no-start");
        let output = run_with_input::<&str>(&recipe, &[], "")?;
        anyhow::ensure!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Waits until the control plane says that it is ready.
    ///
    /// # Errors
    /// Where it ends or is not in time.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let admin = self.admin.clone();
        self.process.wait_ready(|| api::ready(&admin))
    }

    /// `kill -9` and start, until it is ready again.
    ///
    /// # Errors
    /// Where it does not come back.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process.restart()?;
        self.wait_ready()
    }

    /// Starts the zone's ingress, and waits until `api` shows it.
    ///
    /// # Errors
    /// Where it does not come.
    pub fn start_ingress(&mut self, api: &Api) -> anyhow::Result<&mut Ingress> {
        let mut asked = api::token(TokenUse::Ingress);
        asked.zone = Some(self.name.clone());
        let token = api.create_token(&asked)?.token;
        let name = format!("ingress-{}", self.name);
        let token_file = self.world.file(&format!("{name}.token"), &token)?;
        let address = self.world.address()?;
        let metrics = self.world.address()?.to_string();
        let recipe = Recipe::new(&self.world.binary("dataplane"))
            .arg("run")
            .flag("--mode", "ingress")
            .flag("--zone-cp", &self.discovery)
            .flag("--token-file", token_file)
            .flag("--name", &name)
            .flag("--address", address.ip().to_string())
            .flag("--port", address.port().to_string())
            .flag("--state-dir", self.world.directory().join(&name))
            .flag(
                "--admin-socket",
                self.world.directory().join(format!("{name}.sock")),
            )
            .flag("--metrics-address", &metrics);
        let mut process = Process::start(&self.world, &name, recipe)?;
        process.wait_ready(|| api::ready(&metrics))?;
        eventually(SOON, &format!("global knows {name}"), || {
            let known = api.list("/v1/zoneingresses")?;
            known
                .iter()
                .any(|ingress| ingress["name"] == name.as_str())
                .then_some(())
                .with_context(|| format!("{known:?}"))
        })?;
        Ok(self.ingress.insert(Ingress {
            process,
            address: address.to_string(),
        }))
    }
}
