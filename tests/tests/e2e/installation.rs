//! Installations that several tests begin with.

use mesh_tests::{
    api::Api,
    app::Echo,
    client::wait_for_answer,
    global::Global,
    resources,
    sidecar::{Plan, Sidecar},
    world::World,
    zone::Zone,
};

/// One global node, one zone and the mesh `payments`.
#[derive(Debug)]
pub(crate) struct OneZone {
    pub world: World,
    pub global: Global,
    pub api: Api,
    pub west: Zone,
    /// Registers any dataplane of `payments`.
    pub token: String,
}

impl OneZone {
    pub(crate) fn start(world: &World) -> anyhow::Result<Self> {
        let global = Global::start(world)?;
        let api = global.api()?;
        let west = Zone::start(world, &global, "west")?;
        api.apply(&resources::mesh("payments"))?;
        let token = api.dataplane_token("payments")?;
        Ok(Self {
            world: world.clone(),
            global,
            api,
            west,
            token,
        })
    }

    /// A sidecar of `payments` in the zone.
    pub(crate) fn plan(&self, name: &str) -> anyhow::Result<Plan> {
        Plan::new(&self.world, &self.west, "payments", name, &self.token)
    }
}

/// `web` calls `store`, in one mesh and zone, with an echo behind the latter. The permission `web-to-store` lets it.
#[derive(Debug)]
pub(crate) struct Pair {
    pub store: Sidecar,
    pub web: Sidecar,
    _echo: Echo,
    /// The service as `web` names it.
    pub service: String,
}

/// The permission that lets `web` call.
pub(crate) const PERMISSION: &str = "web-to-store";

impl Pair {
    pub(crate) fn start(one: &OneZone) -> anyhow::Result<Self> {
        let echo = Echo::start(&one.world, "store")?;
        Self::start_before(one, echo)
    }

    /// With a given application behind `store`.
    pub(crate) fn start_before(one: &OneZone, echo: Echo) -> anyhow::Result<Self> {
        let port = one.world.port()?;
        let store = one
            .plan("store")?
            .service("store")
            .inbound(port, echo.port())
            .start()?;
        let service = format!("store:{port}");
        let web = one
            .plan("web")?
            .service("web")
            .outbound(&service)?
            .start()?;
        let written = one.api.apply(&permission())?;
        one.api.wait_for_rollout(written.revision)?;
        wait_for_answer(web.to(&service), "store")?;
        Ok(Self {
            store,
            web,
            _echo: echo,
            service,
        })
    }

    /// Where `web` reaches `store`.
    pub(crate) fn outbound(&self) -> std::net::SocketAddr {
        self.web.to(&self.service)
    }

    /// The server name that `store`'s inbound answers to.
    pub(crate) fn server_name(&self) -> String {
        let port = self.service.rsplit(':').next().unwrap_or_default();
        resources::server_name("payments", "west", "store", port)
    }

    /// Where `store`'s sidecar takes connections from other dataplanes.
    pub(crate) fn inbound(&self) -> std::net::SocketAddr {
        self.store.inbound.expect("store has an inbound")
    }
}

pub(crate) fn permission() -> String {
    let web = resources::spiffe_id("payments", "west", "web");
    resources::permission("payments", PERMISSION, Some("store"), &[("Exact", &web)])
}
