//! The demo: three global nodes, two zones, two meshes, and the small application in each. [`Demo::check`] goes through
//! all it claims.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Deserialize;

use crate::{
    api::{self, Api},
    app::App,
    client::{KeptAlive, openssl_client},
    fake_dataplane::FakeDataplane,
    global::Global,
    resources,
    sidecar::{Plan, Sidecar},
    wait::{SOON, eventually},
    world::World,
    zone::Zone,
};

/// Seconds within which a dataplane may be away, as without any setting.
const GRACE: u32 = 30;

/// What is told to whoever watches.
pub type Say<'a> = &'a dyn Fn(&str);

/// The whole installation.
#[derive(Debug)]
pub struct Demo {
    world: World,
    /// Three nodes.
    pub global: Global,
    /// Where web and api run.
    pub east: Zone,
    /// Where the stores run.
    pub west: Zone,
    /// `payments` and `analytics`.
    pub tenants: Vec<Tenant>,
}

/// One mesh with the application in it: web and api in the east, the store in the west.
#[derive(Debug)]
pub struct Tenant {
    /// The mesh.
    pub mesh: String,
    /// The page that people open.
    pub web: App,
    /// Between the two.
    pub api: App,
    /// Keeps the items.
    pub store: App,
    /// Beside web.
    pub web_sidecar: Sidecar,
    /// Beside api.
    pub api_sidecar: Sidecar,
    /// Beside the store.
    pub store_sidecar: Sidecar,
    /// The permissions, as a file to change and apply.
    pub permissions: PathBuf,
    api_service: String,
}

/// What a page of the application answers with.
#[derive(Debug, Clone, Deserialize)]
pub struct PageAnswer {
    /// The processes it came through.
    pub hops: Vec<PageHop>,
    /// Why there is no list.
    pub error: Option<String>,
}

/// One process on the way of an answer.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct PageHop {
    pub role: String,
    pub zone: String,
    pub mesh: String,
}

impl Tenant {
    /// Where people open the page.
    #[must_use]
    pub fn page(&self) -> String {
        format!("http://{}/", self.web.address)
    }

    /// What the page shows now.
    ///
    /// # Errors
    /// Where its own process does not answer.
    pub fn look(&self) -> anyhow::Result<PageAnswer> {
        look(self.web.address)
    }

    /// Waits until the page shows the list, come through all three processes of this mesh and no other.
    ///
    /// # Errors
    /// Where it does not soon.
    pub fn wait_until_works(&self) -> anyhow::Result<()> {
        eventually(
            SOON,
            &format!("the page of {} shows its list", self.mesh),
            || works(&self.look()?, &self.mesh),
        )
    }
}

fn look(web: SocketAddr) -> anyhow::Result<PageAnswer> {
    api::plain_get(&format!("http://{web}/items"))?.json()
}

fn works(answer: &PageAnswer, mesh: &str) -> anyhow::Result<()> {
    anyhow::ensure!(answer.error.is_none(), "{answer:?}");
    let places: Vec<_> = answer
        .hops
        .iter()
        .map(|hop| (hop.role.as_str(), hop.zone.as_str(), hop.mesh.as_str()))
        .collect();
    let wanted = [
        ("web", "east", mesh),
        ("api", "east", mesh),
        ("store", "west", mesh),
    ];
    anyhow::ensure!(places == wanted, "{places:?}");
    Ok(())
}

impl Demo {
    /// Starts everything and waits until both pages work.
    ///
    /// # Errors
    /// Where a part does not start.
    pub fn start(world: &World, say: Say<'_>) -> anyhow::Result<Self> {
        say("starting three global nodes");
        let global = Global::start_cluster(world, 3)?;
        let api = global.api()?;
        say("zones east and west join, each with an ingress");
        let mut east = Zone::start_patient(world, &global, "east", GRACE)?;
        east.start_ingress(&api)?;
        let mut west = Zone::start_patient(world, &global, "west", GRACE)?;
        west.start_ingress(&api)?;
        let mut tenants = Vec::new();
        for mesh in ["payments", "analytics"] {
            say(&format!(
                "mesh {mesh}: web and api in the east, the store in the west"
            ));
            tenants.push(start_tenant(world, &global, &east, &west, mesh)?);
        }
        for tenant in &tenants {
            tenant.wait_until_works()?;
        }
        Ok(Self {
            world: world.clone(),
            global,
            east,
            west,
            tenants,
        })
    }

    /// Does what the demo invites to, and fails where something is not as claimed.
    ///
    /// # Errors
    /// With what is not.
    pub fn check(&mut self, say: Say<'_>) -> anyhow::Result<()> {
        say("allowed: page → api → store answers in both meshes, the store from the other zone");
        for tenant in &self.tenants {
            tenant.wait_until_works()?;
        }
        self.check_permission(say)?;
        self.check_other_mesh(say)?;
        self.check_ingress(say)?;
        self.check_global_away(say)?;
        self.check_zone_away(say)?;
        self.check_sidecar_alone(say)
    }

    fn check_permission(&mut self, say: Say<'_>) -> anyhow::Result<()> {
        let (payments, analytics) = (&self.tenants[0], &self.tenants[1]);
        let mut open = KeptAlive::open(payments.web_sidecar.to(&payments.api_service))?;
        open.get("/healthz")?;
        let removed = Instant::now();
        self.global.meshctl(&[
            "delete",
            "meshtrafficpermission",
            "web-to-api",
            "-m",
            "payments",
        ])?;
        eventually(SOON, "an open connection is refused", || {
            let (status, body) = open.ask("/healthz")?;
            anyhow::ensure!(status == 403, "{status}: {body}");
            Ok(())
        })?;
        say(&format!(
            "denied: without the permission web-to-api, requests of an open connection are refused after {} ms",
            removed.elapsed().as_millis()
        ));
        eventually(SOON, "the page of payments is refused by its api", || {
            let answer = payments.look()?;
            anyhow::ensure!(
                answer.error.is_some() && answer.hops.len() == 1,
                "{answer:?}"
            );
            Ok(())
        })?;
        works(&analytics.look()?, "analytics").context("another mesh was touched")?;
        let file = payments.permissions.display().to_string();
        self.global.meshctl(&["apply", "-f", &file, "--wait"])?;
        payments.wait_until_works()?;
        say("restored: apply --wait returned, and the page works again");
        Ok(())
    }

    /// A workload of `analytics` with a good certificate of its own knocks at an inbound of `payments`.
    fn check_other_mesh(&self, say: Say<'_>) -> anyhow::Result<()> {
        let inbound = self.tenants[0]
            .api_sidecar
            .inbound
            .context("api has an inbound")?;
        for (tenant, admitted) in self.tenants.iter().zip([true, false]) {
            let mesh = &tenant.mesh;
            let token = self.global.api()?.dataplane_token(mesh)?;
            let resource =
                resources::dataplane(mesh, "visitor", "127.0.0.1", self.world.port()?, 9, "web");
            let visitor = FakeDataplane::start(&self.east.discovery, &token, &resource)?;
            let identity = visitor.certificate(
                &self.world,
                &format!("visitor-{mesh}"),
                &resources::spiffe_id(mesh, "east", "web"),
            )?;
            let get = "GET /healthz HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n";
            let printed = openssl_client(
                inbound,
                &identity.openssl_arguments(&self.tenants[0].server_name()),
                get,
            )?;
            let answered = printed.text.contains("200 OK");
            anyhow::ensure!(
                answered == admitted,
                "a certificate of web in {mesh} at api in payments: answered={answered}\n{}",
                printed.text
            );
        }
        say(
            "denied across meshes: api in payments answers web of payments, and not web of analytics",
        );
        Ok(())
    }

    fn check_ingress(&mut self, say: Say<'_>) -> anyhow::Result<()> {
        let ingress = self.west.ingress.as_mut().context("west has an ingress")?;
        ingress.process.kill();
        for tenant in &self.tenants {
            eventually(
                SOON,
                "without the ingress of west no store is reached",
                || {
                    let answer = tenant.look()?;
                    anyhow::ensure!(
                        answer.error.is_some() && answer.hops.len() == 2,
                        "{answer:?}"
                    );
                    Ok(())
                },
            )?;
        }
        ingress.process.launch()?;
        for tenant in &self.tenants {
            tenant.wait_until_works()?;
        }
        say("across zones: the stores are reached through the ingress of west, and only so");
        Ok(())
    }

    fn check_global_away(&mut self, say: Say<'_>) -> anyhow::Result<()> {
        let traffic = Traffic::start(&self.tenants);
        let leader = self.global.leader()?;
        self.global.nodes[leader].process.kill();
        let next = self.global.leader()?;
        anyhow::ensure!(next != leader, "the killed leader still leads");
        self.global.api()?.apply(&resources::allow_everyone(
            "payments",
            "written-without-the-first-leader",
        ))?;
        self.global.api()?.delete(&resources::permission_path(
            "payments",
            "written-without-the-first-leader",
        ))?;
        traffic.progress()?;
        say("leader killed: another one leads and takes writes, no request failed");
        self.global.kill_all();
        traffic.progress()?;
        say("all of global killed: no request failed");
        self.global.start_all()?;
        self.global.leader()?;
        traffic.stop()
    }

    fn check_zone_away(&mut self, say: Say<'_>) -> anyhow::Result<()> {
        let traffic = Traffic::start(&self.tenants);
        self.west.process.kill();
        traffic.progress()?;
        self.west.process.launch()?;
        self.west.wait_ready()?;
        let api = self.global.api()?;
        eventually(SOON, "the store's sidecar is back at its zone", || {
            let state = api.dataplane("payments", "store")?.state;
            anyhow::ensure!(state == "online", "{state}");
            Ok(())
        })?;
        traffic.progress()?;
        traffic.stop()?;
        say("control plane of west killed and restarted: no request failed");
        Ok(())
    }

    fn check_sidecar_alone(&mut self, say: Say<'_>) -> anyhow::Result<()> {
        self.east.process.kill();
        let payments = &mut self.tenants[0];
        payments.api_sidecar.process.kill();
        eventually(SOON, "without api's sidecar the page fails", || {
            anyhow::ensure!(payments.look()?.error.is_some(), "it still works");
            Ok(())
        })?;
        payments.api_sidecar.process.launch()?;
        payments.wait_until_works()?;
        say("a sidecar killed and restarted while its zone is away serves from its disk");
        self.east.process.launch()?;
        self.east.wait_ready()
    }

    /// An API client with the admin's token.
    ///
    /// # Errors
    /// Where the token is none.
    pub fn api(&self) -> anyhow::Result<Api> {
        self.global.api()
    }
}

impl Tenant {
    /// The server name under which another dataplane of the mesh calls api.
    #[must_use]
    pub fn server_name(&self) -> String {
        let port = self.api_service.rsplit(':').next().unwrap_or_default();
        resources::server_name(&self.mesh, "east", "api", port)
    }
}

fn start_tenant(
    world: &World,
    global: &Global,
    east: &Zone,
    west: &Zone,
    mesh: &str,
) -> anyhow::Result<Tenant> {
    let mesh_file = world.file(&format!("{mesh}.yaml"), &resources::mesh(mesh))?;
    let web_id = resources::spiffe_id(mesh, "east", "web");
    let api_id = resources::spiffe_id(mesh, "east", "api");
    let permissions = world.file(
        &format!("{mesh}-permissions.yaml"),
        &[
            resources::permission(mesh, "web-to-api", Some("api"), &[("Exact", &web_id)]),
            resources::permission(mesh, "api-to-store", Some("store"), &[("Exact", &api_id)]),
        ]
        .concat(),
    )?;
    global.meshctl(&[
        "apply",
        "-f",
        &mesh_file.display().to_string(),
        "-f",
        &permissions.display().to_string(),
    ])?;
    let token = global.api()?.dataplane_token(mesh)?;
    let (api_port, store_port) = (world.port()?, world.port()?);
    let (api_service, store_service) = (format!("api:{api_port}"), format!("store:{store_port}"));

    let store = App::start(world, "store", mesh, "west", None)?;
    let store_sidecar = Plan::new(world, west, mesh, "store", &token)?
        .service("store")
        .inbound(store_port, store.address.port())
        .start()?;
    let plan = Plan::new(world, east, mesh, "api", &token)?
        .service("api")
        .outbound(&store_service)?;
    let api = App::start(world, "api", mesh, "east", Some(plan.to(&store_service)))?;
    let api_sidecar = plan.inbound(api_port, api.address.port()).start()?;
    let plan = Plan::new(world, east, mesh, "web", &token)?
        .service("web")
        .outbound(&api_service)?;
    let web = App::start(world, "web", mesh, "east", Some(plan.to(&api_service)))?;
    let web_sidecar = plan.start()?;
    Ok(Tenant {
        mesh: mesh.to_owned(),
        web,
        api,
        store,
        web_sidecar,
        api_sidecar,
        store_sidecar,
        permissions,
        api_service,
    })
}

/// Somebody who reloads both pages without pause, and retries nothing.
struct Traffic {
    stopped: Arc<AtomicBool>,
    answers: Arc<std::sync::Mutex<(u64, Option<String>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    fn start(tenants: &[Tenant]) -> Self {
        let pages: Vec<_> = tenants
            .iter()
            .map(|tenant| (tenant.web.address, tenant.mesh.clone()))
            .collect();
        let stopped = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(std::sync::Mutex::new((0, None)));
        let (stop, write) = (stopped.clone(), answers.clone());
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Acquire) {
                for (web, mesh) in &pages {
                    let outcome = look(*web).and_then(|answer| works(&answer, mesh));
                    let mut answers = write
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    match outcome {
                        Ok(()) => answers.0 += 1,
                        Err(error) => {
                            answers.1.get_or_insert(format!("{error:#}"));
                        }
                    }
                }
            }
        });
        Self {
            stopped,
            answers,
            thread: Some(thread),
        }
    }

    fn answers(&self) -> anyhow::Result<u64> {
        let answers = self
            .answers
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match &answers.1 {
            None => Ok(answers.0),
            Some(error) => {
                anyhow::bail!("after {} good answers a request failed: {error}", answers.0)
            }
        }
    }

    /// Waits until 40 more requests have been answered well, over two seconds at least: by then whoever was killed is
    /// missed by everyone who needs it.
    fn progress(&self) -> anyhow::Result<()> {
        let (before, begun) = (self.answers()?, Instant::now());
        eventually(SOON, "requests are answered", || {
            let now = self.answers()?;
            anyhow::ensure!(
                now >= before + 40 && begun.elapsed() > Duration::from_secs(2),
                "{} answers",
                now - before
            );
            Ok(())
        })
    }

    fn stop(mut self) -> anyhow::Result<()> {
        self.stopped.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.answers().map(|_| ())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
    }
}
