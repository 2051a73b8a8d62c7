//! The same chain by two sidecars of ours, with the control planes that belong to them.

use mesh_tests::{
    global::Global,
    resources,
    sidecar::{Plan, Sidecar},
    world::World,
    zone::Zone,
};

use crate::chain::Chain;

/// One global node, one zone, and `web` that calls `page` (nginx).
#[derive(Debug)]
pub(crate) struct Installation {
    global: Global,
    zone: Zone,
    web: Sidecar,
    page: Sidecar,
    service: String,
}

impl Installation {
    pub(crate) fn start(world: &World, application: u16) -> anyhow::Result<Self> {
        let global = Global::start(world)?;
        let api = global.api()?;
        let zone = Zone::start(world, &global, "bench")?;
        api.apply(&resources::mesh("bench"))?;
        let id = resources::spiffe_id("bench", "bench", "web");
        api.apply(&resources::permission(
            "bench",
            "web-to-page",
            Some("page"),
            &[("Exact", &id)],
        ))?;
        let token = api.dataplane_token("bench")?;
        let port = world.port()?;
        let page = Plan::new(world, &zone, "bench", "page", &token)?
            .service("page")
            .inbound(port, application)
            .flag("--workers", "1")
            .start()?;
        let service = format!("page:{port}");
        let web = Plan::new(world, &zone, "bench", "web", &token)?
            .service("web")
            .outbound(&service)?
            .flag("--workers", "1")
            .start()?;
        Ok(Self {
            global,
            zone,
            web,
            page,
            service,
        })
    }

    pub(crate) fn chain(&self) -> anyhow::Result<Chain> {
        let entry = self.web.to(&self.service);
        Ok(Chain::new(
            "isthmus",
            entry,
            self.web.process.pid(),
            self.page.process.pid(),
            Vec::new(),
        ))
    }

    /// The processes beside the sidecars.
    pub(crate) fn control_planes(&self) -> [(&'static str, u32); 2] {
        [
            ("global-cp", self.global.nodes[0].process.pid()),
            ("zone-cp", self.zone.process.pid()),
        ]
    }
}
