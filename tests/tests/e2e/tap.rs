//! What `meshctl tap` shows is what was asked, while somebody looks.

use anyhow::Context as _;
use mesh_tests::{
    api::{self, Api},
    app::Mirror,
    fake_dataplane::FakeDataplane,
    global::Global,
    load::{Client, Load},
    process::{Process, Recipe},
    resources,
    sidecar::{Plan, Sidecar},
    wait::{SOON, eventually, until},
    world::{World, scene},
    zone::Zone,
};
use serde_json::{Value, json};

use crate::requests::send;

const MESH: &str = "payments";

/// `web` in the east calls `store` in the west, by HTTP.
struct Shop {
    world: World,
    global: Global,
    api: Api,
    zones: [Zone; 2],
    /// Registers any dataplane of the mesh.
    token: String,
    web: Sidecar,
    store: Sidecar,
    _app: Mirror,
    service: String,
}

impl Shop {
    fn start(world: &World) -> anyhow::Result<Self> {
        let global = Global::start(world)?;
        let api = global.api()?;
        let east = Zone::start(world, &global, "east")?;
        let mut west = Zone::start(world, &global, "west")?;
        west.start_ingress(&api)?;
        api.apply(&resources::mesh(MESH))?;
        api.apply(&resources::allow_everyone(MESH, "everyone"))?;
        let token = api.dataplane_token(MESH)?;
        let app = Mirror::start(world, "store")?;
        let port = world.port()?;
        let store = Plan::new(world, &west, MESH, "store-1", &token)?
            .service("store")
            .inbound_of(port, app.address.port(), "http")
            .start()?;
        let service = format!("store:{port}");
        let web = Plan::new(world, &east, MESH, "web-1", &token)?
            .service("web")
            .outbound(&service)?
            .start()?;
        let shop = Self {
            world: world.clone(),
            global,
            api,
            zones: [east, west],
            token,
            web,
            store,
            _app: app,
            service,
        };
        eventually(SOON, "web reaches store", || shop.ask("GET /", "200"))?;
        Ok(shop)
    }

    /// `web` asks `store`, which answers so.
    fn ask(&self, request: &str, status: &str) -> anyhow::Result<()> {
        let answer = send(self.web.to(&self.service), request, &[])?;
        anyhow::ensure!(answer.status() == status, "{answer:?}");
        Ok(())
    }

    /// Begins to tap, and waits until the dataplanes that are meant do.
    fn tap(&self, name: &str, arguments: &[&str], tapped: &str) -> anyhow::Result<Process> {
        let node = &self.global.nodes[0];
        let mut recipe = Recipe::new(&self.world.binary("meshctl"))
            .env("ISTHMUS_SERVER", &format!("https://{}", node.api))
            .env("ISTHMUS_TOKEN", &self.global.admin_token)
            .arg("tap")
            .flag("-m", MESH);
        for argument in arguments {
            recipe = recipe.arg(argument);
        }
        let mut process = Process::start(&self.world, name, recipe)?;
        eventually(SOON, &format!("{name}: tapping {tapped}"), || {
            let log = process.log();
            let runs = process.is_running();
            anyhow::ensure!(runs && log.contains(&format!("tapping {tapped}")), "{log}");
            Ok(())
        })?;
        Ok(process)
    }
}

/// What a tap showed, whose end has come.
fn shown(mut tap: Process) -> anyhow::Result<Vec<Value>> {
    let status = tap.wait_for_end(SOON)?;
    anyhow::ensure!(status.success(), "{status}: {}", tap.last_words());
    let output = tap.output();
    let lines = output.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().with_context(|| output)
}

const BOTH: &str = "2 dataplanes: east/web-1, west/store-1";

#[test]
fn a_tap_shows_what_is_looked_for_as_each_dataplane_saw_it() {
    scene(|world| {
        let shop = Shop::start(world)?;
        let route = json!({"type": "MeshHTTPRoute", "mesh": MESH, "name": "second", "spec": {"to": [{
            "targetRef": {"kind": "MeshService", "name": "store"},
            "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": "/v2"}}], "default": {}}]}]}});
        let api = &shop.api;
        api.wait_for_rollout(api.apply(&route.to_string())?.revision)?;
        let json = |arguments: &[&'static str]| [arguments, &["-o", "json"]].concat();
        let both = json(&["--service", "store", "--count", "2"]);
        let both = shop.tap("both", &both, BOTH)?;
        let posts = ["--to", "store", "--method", "post", "--path", "/orders"];
        let posts = [&posts[..], &["--direction", "outbound", "--query"]].concat();
        let posts = json(&[&posts[..], &["--count", "1"]].concat());
        let posts = shop.tap("posts", &posts, BOTH)?;
        let route = json(&["--route", "second", "--count", "1"]);
        let route = shop.tap("route", &route, BOTH)?;
        let one = json(&["--dataplane", "store-1", "--status", "2xx", "--count", "2"]);
        let one = shop.tap("one", &one, "west/store-1")?;
        let failed = json(&[
            "--from", "web", "--failed", "--status", "403", "--count", "2",
        ]);
        let failed = shop.tap("failed", &failed, BOTH)?;

        shop.ask("GET /items/7?token=secret", "200")?;
        let mut seen = shown(both)?;
        seen.sort_by_key(|one| one["direction"].to_string());
        let [into, out] = &*seen else {
            anyhow::bail!("{seen:?}")
        };
        for (one, zone, dataplane) in [(into, "west", "store-1"), (out, "east", "web-1")] {
            anyhow::ensure!(
                (&one["zone"], &one["dataplane"]) == (&json!(zone), &json!(dataplane)),
                "{one}"
            );
            anyhow::ensure!(
                one["method"] == "GET" && one["path"] == "/items/7" && one["status"] == 200,
                "{one}"
            );
            for (end, service, zone) in
                [("source", "web", "east"), ("destination", "store", "west")]
            {
                let party = &one[end];
                anyhow::ensure!(
                    party["service"] == service && party["zone"] == zone,
                    "{one}"
                );
                let id = party["spiffeId"].as_str().unwrap_or_default();
                let trusted = format!("spiffe://{MESH}.{zone}.mesh.local/");
                anyhow::ensure!(id.starts_with(&trusted), "{one}");
            }
            anyhow::ensure!(one["durationMs"].as_f64() > Some(0.0), "{one}");
            anyhow::ensure!(one["requestId"] == out["requestId"], "{one} {out}");
            anyhow::ensure!(!one.to_string().contains("secret"), "{one}");
        }

        shop.ask("POST /other", "200")?;
        shop.ask("GET /orders", "200")?;
        shop.ask("POST /orders/1?coupon=x", "200")?;
        let posts = shown(posts)?;
        anyhow::ensure!(posts[0]["path"] == "/orders/1?coupon=x", "{posts:?}");

        shop.ask("GET /v2/x", "200")?;
        let route = shown(route)?;
        anyhow::ensure!(route[0]["path"] == "/v2/x", "{route:?}");
        let rule = route[0]["route"].as_str().unwrap_or_default();
        anyhow::ensure!(rule.starts_with("MeshHTTPRoute/second "), "{route:?}");

        let one = shown(one)?;
        anyhow::ensure!(
            one.iter().all(|seen| seen["direction"] == "inbound"),
            "{one:?}"
        );

        // What is refused before it is a request is shown as well.
        let refused = ["--from", "web", "--status", "400", "--count", "1"];
        let mut refused = shop.tap("refused", &refused, BOTH)?;
        let address = shop.web.to(&shop.service);
        let answer = send(address, "GET /two-hosts", &["host: other"])?;
        anyhow::ensure!(answer.status() == "400", "{answer:?}");
        let status = refused.wait_for_end(SOON)?;
        anyhow::ensure!(status.success(), "{status}: {}", refused.last_words());
        let line = refused.output();
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        let is_shown = matches!(
            &*words,
            [
                "east/web-1",
                "out",
                "web",
                "->",
                "store",
                "-",
                "400",
                _,
                "client:",
                "bad_request"
            ]
        );
        anyhow::ensure!(is_shown, "{line}");

        let permission = format!("/v1/meshes/{MESH}/meshtrafficpermissions/everyone");
        api.wait_for_rollout(api.delete(&permission)?.revision)?;
        shop.ask("GET /denied", "403")?;
        for seen in shown(failed)? {
            let why = (&seen["path"], &seen["saidBy"], &seen["reason"]);
            let wanted = (
                &json!("/denied"),
                &json!("policy"),
                &json!("permission_denied"),
            );
            anyhow::ensure!(why == wanted, "{seen}");
        }
        Ok(())
    });
}

#[test]
fn a_tap_counts_what_it_does_not_show_ends_by_itself_and_is_not_for_everybody() {
    scene(|world| {
        let shop = Shop::start(world)?;
        let old = resources::dataplane(MESH, "old-1", "127.0.0.1", world.port()?, 9, "old");
        let _old = FakeDataplane::start(&shop.zones[1].discovery, &shop.token, &old)?;
        let out = ["--service", "store", "--direction", "outbound"];
        let few = [&out[..], &["--max-rate", "1", "--for", "5s"]].concat();
        let mut few = shop.tap("few", &few, BOTH)?;
        for _ in 0..20 {
            shop.ask("GET /", "200")?;
        }
        let status = few.wait_for_end(SOON)?;
        let said = few.log();
        anyhow::ensure!(status.success(), "{status}: {said}");
        // What can not be asked is named, and not waited for.
        let too_old = "not tapped: west/old-1: it is too old to be asked";
        anyhow::ensure!(said.contains(too_old), "{said}");
        let last = said.lines().last().unwrap_or_default();
        let numbers = last
            .split(' ')
            .filter_map(|word| word.parse::<usize>().ok());
        let numbers: Vec<_> = numbers.collect();
        let lines = few.output().lines().count();
        let [shown, dropped] = *numbers else {
            anyhow::bail!("{said}")
        };
        anyhow::ensure!(shown == lines && shown > 0, "{said}\n{}", few.output());
        anyhow::ensure!(dropped > 0 && shown + dropped == 20, "{said}");

        let ended = |times: usize| {
            let tapped = [&shop.web, &shop.store];
            until(SOON, "the dataplanes have ended their taps", || {
                let ends = |sidecar: &&Sidecar| sidecar.process.log().matches("a tap ends").count();
                tapped.iter().all(|sidecar| ends(sidecar) == times)
            })
        };
        ended(1)?;
        // Whoever goes without a word is noticed.
        let mut forgotten = shop.tap("forgotten", &out, BOTH)?;
        forgotten.kill();
        ended(2)?;

        let others = api::token(mesh_model::api::TokenUse::Api);
        let others = mesh_model::api::CreateToken {
            role: Some(mesh_model::api::Role::MeshAdmin),
            meshes: vec!["others".to_owned()],
            ..others
        };
        shop.api.apply(&resources::mesh("others"))?;
        let others = shop.api.create_token(&others)?;
        let stranger = shop.api.with_token(&others.token)?;
        let path = format!("/v1/meshes/{MESH}/tap?service=store");
        let answer = stranger.request("GET", &path, &[], None)?;
        anyhow::ensure!(answer.status == 403, "{answer:?}");
        let audit: Value = shop.api.get(&format!("/v1/audit?mesh={MESH}"))?;
        let audit = audit.to_string();
        for words in ["tap requests of mesh payments: service store", "refused"] {
            anyhow::ensure!(audit.contains(words), "{words}: {audit}");
        }
        Ok(())
    });
}

/// How often taps come and go.
const ROUNDS: usize = 3;

#[test]
fn taps_that_come_and_go_under_load_lose_no_request() {
    scene(|world| {
        let shop = Shop::start(world)?;
        let address = shop.web.to(&shop.service);
        let load = Load::start(&[
            Client::Http1(address),
            Client::Http1(address),
            Client::Http2(address),
        ]);
        load.goes_on(20)?;
        let mut failed = Vec::new();
        for round in 0..ROUNDS {
            let service = ["--service", "store", "-o", "json"];
            let some = [&service[..], &["--count", "50"]].concat();
            let some = shop.tap(&format!("some-{round}"), &some, BOTH)?;
            let none = [&service[..], &["--failed"]].concat();
            let none = shop.tap(&format!("failed-{round}"), &none, BOTH)?;
            load.goes_on(20)?;
            let seen = shown(some)?;
            anyhow::ensure!(seen.len() == 50, "{}", seen.len());
            for one in seen {
                anyhow::ensure!(one["status"] == 200 && one.get("reason").is_none(), "{one}");
            }
            failed.push(none);
        }
        // These go without a word.
        for tap in &mut failed {
            tap.kill();
        }
        let tapped = [&shop.web, &shop.store];
        until(SOON, "the dataplanes have ended their taps", || {
            let ends = |sidecar: &&Sidecar| sidecar.process.log().matches("a tap ends").count();
            tapped.iter().all(|sidecar| ends(sidecar) == 2 * ROUNDS)
        })?;
        load.goes_on(20)?;
        let answers = load.end()?;
        for tap in &failed {
            anyhow::ensure!(tap.output().is_empty(), "{}", tap.output());
        }
        println!("{answers} answers while {} taps came and went", 2 * ROUNDS);
        Ok(())
    });
}
