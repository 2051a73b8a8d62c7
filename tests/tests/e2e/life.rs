//! Instances restart and CAs change while requests go on, and none of them fails.

use std::net::SocketAddr;

use anyhow::Context as _;
use mesh_runtime::files;
use mesh_tests::{
    app::Mirror,
    global::Global,
    load::{Chat, Client, Load},
    resources,
    sidecar::{Plan, Sidecar},
    wait::{SOON, eventually},
    world::scene,
    zone::Zone,
};
use serde_json::Value;

use crate::installation::OneZone;

/// Instances that restart. `ISTHMUS_ROLLING_INSTANCES` says how many instead.
const INSTANCES: usize = 3;

/// FIELD c2: a client that retries nothing, while the instances of what it calls are restarted one after the other.
#[test]
fn instances_restart_one_after_the_other_and_no_request_fails() {
    let count = std::env::var("ISTHMUS_ROLLING_INSTANCES");
    let count = count.map_or(INSTANCES, |count| count.parse().expect("a number"));
    scene(|world| {
        let one = OneZone::start(world)?;
        one.api
            .apply(&resources::allow_everyone("payments", "everyone"))?;
        let (pages, calls, steady) = (world.port()?, world.port()?, world.port()?);
        let mut instances = Vec::new();
        let mut applications = Vec::new();
        for n in 0..count {
            let machine = world.machine();
            let mirror = Mirror::start_at(world, "store", machine)?;
            let chat = Chat::start_at(world, machine)?;
            let store = one
                .plan(&format!("store-{n}"))?
                .at(machine)
                .service("store")
                .inbound_of(pages, mirror.address.port(), "http")
                .inbound_of(calls, chat.address.port(), "grpc")
                .start()?;
            instances.push(store);
            applications.push((mirror, chat));
        }
        // What a stream is on that lasts longer than any restart.
        let machine = world.machine();
        let chat = Chat::start_at(world, machine)?;
        let _steady = one
            .plan("steady")?
            .at(machine)
            .service("steady")
            .inbound_of(steady, chat.address.port(), "grpc")
            .start()?;
        let (pages, calls) = (format!("store:{pages}"), format!("store:{calls}"));
        let steady = format!("steady:{steady}");
        let web = one.plan("web")?.service("web");
        let web = web.outbound(&pages)?.outbound(&calls)?.outbound(&steady)?;
        let web = web.start()?;
        answers(&web, &pages, Client::Http1)?;
        answers(&web, &calls, Client::Grpc)?;
        answers(&web, &steady, Client::Grpc)?;
        let (http, grpc) = (web.to(&pages), web.to(&calls));
        let load = Load::start(&[
            Client::Http1(http),
            Client::Http1(http),
            Client::Http2(http),
            Client::Grpc(grpc),
            Client::Grpc(grpc),
            Client::Stream(web.to(&steady)),
        ]);
        load.goes_on(50)?;
        for store in &mut instances {
            let status = store.process.terminate(2 * SOON)?;
            anyhow::ensure!(status.success(), "{} ended with {status}", store.name);
            load.has_not_failed()?;
            store.process.launch()?;
            store.wait_ready()?;
            load.goes_on(20)?;
        }
        let answers = load.end()?;
        println!("{answers} answers while {count} instances were restarted");
        Ok(())
    });
}

/// Waits until `web` reaches what it calls.
fn answers(web: &Sidecar, to: &str, client: fn(SocketAddr) -> Client) -> anyhow::Result<()> {
    let client = client(web.to(to));
    eventually(SOON, &format!("{} reaches {to}", web.name), || {
        let load = Load::start(&[client]);
        load.goes_on(1)?;
        load.end()?;
        Ok(())
    })
}

/// What a zone keeps of a mesh's CAs, as its control plane finds it when it starts.
fn authorities(zone: &Zone) -> anyhow::Result<Value> {
    let file = zone.data.join("ca/payments/authorities");
    Ok(serde_json::from_slice(&files::read_checksummed(&file)?)?)
}

/// Roles of the CAs, oldest first.
fn roles(zone: &Zone) -> anyhow::Result<Vec<String>> {
    let kept = authorities(zone)?;
    let all = kept["authorities"].as_array().context("authorities")?;
    let role = |ca: &Value| match &ca["role"] {
        Value::String(role) => role.clone(),
        _ => "retiring".to_owned(),
    };
    Ok(all.iter().map(role).collect())
}

/// Lets so many seconds pass for the CAs: the control plane ends, and finds them that much older when it comes back.
fn age(zone: &mut Zone, seconds: i64) -> anyhow::Result<()> {
    zone.process.terminate(SOON)?;
    let mut kept = authorities(zone)?;
    let all = kept["authorities"].as_array_mut().context("authorities")?;
    for ca in all {
        ca["made"] = (ca["made"].as_i64().context("made")? - seconds).into();
        if let Some(until) = ca["role"]["retiring"].as_i64() {
            ca["role"]["retiring"] = (until - seconds).into();
        }
    }
    let file = zone.data.join("ca/payments/authorities");
    files::write_checksummed(&file, &serde_json::to_vec(&kept)?)?;
    zone.process.launch()?;
    zone.wait_ready()
}

fn certificates(sidecar: &Sidecar) -> anyhow::Result<u64> {
    let metrics = sidecar.metrics()?;
    let line = metrics
        .lines()
        .find(|line| line.starts_with("isthmus_dataplane_certificates_issued_total"));
    let count = line.and_then(|line| line.rsplit(' ').next());
    Ok(count.context("no certificates")?.parse()?)
}

/// Row D3: a zone's CA is renewed while dataplanes of two zones call what it vouches for.
#[test]
fn a_zones_ca_is_renewed_and_no_request_fails() {
    const DAY: i64 = 24 * 3600;
    scene(|world| {
        let global = Global::start(world)?;
        let api = global.api()?;
        let east = Zone::start(world, &global, "east")?;
        // Its control plane is away now and then, which costs nobody anything.
        let mut west = Zone::start_patient(world, &global, "west", 120)?;
        west.start_ingress(&api)?;
        api.apply(&resources::mesh("payments"))?;
        api.apply(&resources::allow_everyone("payments", "everyone"))?;
        api.apply("type: MeshIdentity\nmesh: payments\nname: default\nspec:\n  selector: {dataplane: {matchLabels: {}}}\n  provider: {type: Bundled, bundled: {certificateParameters: {expiry: 40s}}}\n")?;
        let token = api.dataplane_token("payments")?;
        let (pages, calls) = (world.port()?, world.port()?);
        let mirror = Mirror::start(world, "store")?;
        let chat = Chat::start_at(world, world.loopback())?;
        let store = Plan::new(world, &west, "payments", "store", &token)?
            .service("store")
            .inbound_of(pages, mirror.address.port(), "http")
            .inbound_of(calls, chat.address.port(), "grpc")
            .start()?;
        let (pages, calls) = (format!("store:{pages}"), format!("store:{calls}"));
        let mut callers = Vec::new();
        for zone in [&east, &west] {
            let name = format!("web-{}", zone.name);
            let web = Plan::new(world, zone, "payments", &name, &token)?.service("web");
            let web = web.outbound(&pages)?.outbound(&calls)?.start()?;
            answers(&web, &pages, Client::Http1)?;
            answers(&web, &calls, Client::Grpc)?;
            callers.push(web);
        }
        let clients: Vec<_> = callers
            .iter()
            .flat_map(|web| {
                let (http, grpc) = (web.to(&pages), web.to(&calls));
                [
                    Client::Http1(http),
                    Client::Http2(http),
                    Client::Grpc(grpc),
                    Client::Stream(grpc),
                ]
            })
            .collect();
        let load = Load::start(&clients);
        load.goes_on(20)?;
        // The time to renew it has come: the new one is announced, and signs nothing.
        age(&mut west, 200 * DAY)?;
        let announced = eventually(2 * SOON, "the new anchor is announced", || {
            anyhow::ensure!(roles(&west)? == ["issuing", "next"], "{:?}", roles(&west)?);
            let trusts = api.list("/v1/meshes/payments/meshtrusts")?;
            let of_west = trusts
                .iter()
                .find(|trust| trust["spec"]["trustDomain"] == "payments.west.mesh.local");
            let of_west = of_west.context("no trust of west")?;
            let anchors = of_west.to_string().matches("BEGIN CERTIFICATE").count();
            anyhow::ensure!(anchors == 2, "{of_west}");
            of_west["revision"].as_u64().context("a revision")
        })?;
        // Dataplanes of both zones have it before it is used.
        api.wait_for_rollout(announced)?;
        load.goes_on(20)?;
        anyhow::ensure!(roles(&west)? == ["issuing", "next"], "{:?}", roles(&west)?);
        // The least time between both has passed.
        age(&mut west, 3600)?;
        eventually(3 * SOON, "the new CA signs", || {
            anyhow::ensure!(
                roles(&west)? == ["retiring", "issuing"],
                "{:?}",
                roles(&west)?
            );
            Ok(())
        })?;
        // Everybody of the zone gets a certificate of it.
        let of_west = [&store, &callers[1]];
        let before = of_west.map(certificates);
        for (sidecar, before) in of_west.into_iter().zip(before) {
            let before = before?;
            eventually(3 * SOON, "a certificate of the new CA", || {
                let now = certificates(sidecar)?;
                anyhow::ensure!(now > before, "{now} of {}", sidecar.name);
                Ok(())
            })?;
        }
        load.goes_on(20)?;
        let answers = load.end()?;
        println!("{answers} answers up to here");
        // A day and two hours later nothing of the old one is in force. A stream that has lasted for so long is ended then, others are not.
        let load = Load::start(&clients);
        load.goes_on(20)?;
        age(&mut west, 2 * DAY)?;
        eventually(2 * SOON, "the old anchor is dropped", || {
            anyhow::ensure!(roles(&west)? == ["issuing"], "{:?}", roles(&west)?);
            let trusts = api.list("/v1/meshes/payments/meshtrusts")?;
            let all = serde_json::to_string(&trusts)?;
            // East's, and the new one of west.
            let anchors = all.matches("BEGIN CERTIFICATE").count();
            anyhow::ensure!(anchors == 2, "{anchors}: {all}");
            Ok(())
        })?;
        let revision = api.status()?.revision;
        api.wait_for_rollout(revision)?;
        load.goes_on(20)?;
        let answers = load.end()?;
        println!("{answers} answers after it");
        Ok(())
    });
}
