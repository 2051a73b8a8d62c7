//! Joining, silence, removal, life without global.

use std::time::Duration;

use anyhow::Context as _;
use mesh_tests::{
    api::Api,
    app::Echo,
    client::{wait_for_answer, wait_for_refusal},
    fake_dataplane::{FakeDataplane, pin_of},
    global::Global,
    resources,
    sidecar::{Plan, Sidecar},
    wait::{SOON, eventually},
    world::{World, scene},
    zone::Zone,
};

use crate::installation::{OneZone, PERMISSION, Pair};

/// `web` in the east calls `store`, which runs in the west alone.
struct TwoZones {
    global: Global,
    api: Api,
    east: Zone,
    west: Zone,
    web: Sidecar,
    _store: Sidecar,
    _echo: Echo,
    service: String,
}

impl TwoZones {
    fn start(world: &World) -> anyhow::Result<Self> {
        let global = Global::start(world)?;
        let api = global.api()?;
        let east = Zone::start(world, &global, "east")?;
        let mut west = Zone::start(world, &global, "west")?;
        west.start_ingress(&api)?;
        api.apply(&resources::mesh("payments"))?;
        api.apply(&resources::allow_everyone("payments", "everyone"))?;
        let token = api.dataplane_token("payments")?;
        let echo = Echo::start(world, "store")?;
        let port = world.port()?;
        let store = Plan::new(world, &west, "payments", "store", &token)?
            .service("store")
            .inbound(port, echo.port())
            .start()?;
        let service = format!("store:{port}");
        let web = Plan::new(world, &east, "payments", "web", &token)?
            .service("web")
            .outbound(&service)?
            .start()?;
        wait_for_answer(web.to(&service), "store")?;
        Ok(Self {
            global,
            api,
            east,
            west,
            web,
            _store: store,
            _echo: echo,
            service,
        })
    }
}

fn state_of(api: &Api, zone: &str) -> anyhow::Result<String> {
    let status = api.status()?;
    let found = status.zones.iter().find(|z| z.name == zone);
    Ok(found.with_context(|| format!("{status:?}"))?.state.clone())
}

fn wait_for_state(api: &Api, zone: &str, states: &[&str]) -> anyhow::Result<()> {
    eventually(
        Duration::from_secs(90),
        &format!("{zone} is {states:?}"),
        || {
            let state = state_of(api, zone)?;
            anyhow::ensure!(states.contains(&state.as_str()), "it is {state}");
            Ok(())
        },
    )
}

/// Everything global knows that `zone` owns.
fn owned(api: &Api, zone: &str) -> anyhow::Result<Vec<String>> {
    let mut owned = Vec::new();
    for path in [
        "/v1/zoneingresses",
        "/v1/meshes/payments/meshservices",
        "/v1/meshes/payments/meshtrusts",
    ] {
        for item in api.list(path)? {
            if item["labels"]["isthmus.io/origin"] == zone {
                owned.push(format!("{} {}", item["type"], item["name"]));
            }
        }
    }
    Ok(owned)
}

#[test]
fn a_removed_zone_leaves_nothing_behind() {
    scene(|world| {
        let mut two = TwoZones::start(world)?;
        eventually(SOON, "west's ingress, service and trust are there", || {
            let before = owned(&two.api, "west")?;
            anyhow::ensure!(before.len() >= 3, "{before:?}");
            Ok(())
        })?;
        two.global.meshctl(&["delete", "zone", "west"])?;
        let gone = |api: &Api| {
            eventually(SOON, "nothing of west is left in global", || {
                let left = owned(api, "west")?;
                anyhow::ensure!(left.is_empty(), "{left:?}");
                Ok(())
            })
        };
        gone(&two.api)?;
        wait_for_refusal(two.web.to(&two.service))?;
        // Its control plane still runs, and its certificate has not ended; it stays out, also after everything restarts.
        two.global.kill_all();
        two.global.start_all()?;
        two.east.restart()?;
        two.west.restart().ok();
        eventually(SOON, "east is back", || {
            let state = state_of(&two.api, "east")?;
            anyhow::ensure!(state == "online", "{state}");
            Ok(())
        })?;
        gone(&two.api)?;
        // What east kept on its disk may be older than the deletion: it is right once east has heard from global.
        eventually(SOON, "east has no endpoint of west", || {
            let view = two
                .api
                .get::<serde_json::Value>("/v1/meshes/payments/dataplanes/web")?;
            anyhow::ensure!(!view.to_string().contains("(west"), "{view}");
            Ok(())
        })?;
        wait_for_refusal(two.web.to(&two.service))
    });
}

/// The control plane of a zone is frozen: every connection lives, and nothing comes.
#[test]
fn a_silent_zone_is_shown_as_such_and_recovers_by_itself() {
    scene(|world| {
        let two = TwoZones::start(world)?;
        wait_for_state(&two.api, "west", &["online"])?;
        two.west.process.freeze()?;
        let written = two
            .api
            .apply(&resources::allow_everyone("payments", "written-meanwhile"))?;
        wait_for_state(&two.api, "west", &["stale", "offline"])?;
        // East has what was written, and does not suffer from west.
        wait_for_state(&two.api, "east", &["online"])?;
        let west = state_of(&two.api, "west")?;
        anyhow::ensure!(west != "online", "west is frozen, and {west}");
        wait_for_answer(two.web.to(&two.service), "store")?;
        two.west.process.thaw()?;
        wait_for_state(&two.api, "west", &["online"])?;
        two.api.wait_for_rollout(written.revision)
    });
}

#[test]
fn a_zone_goes_on_while_global_is_away() {
    scene(|world| {
        let mut one = OneZone::start(world)?;
        let mut pair = Pair::start(&one)?;
        one.global.kill_all();
        // Its own restart, a sidecar's restart, and a sidecar it has never seen: none needs global.
        one.west.restart()?;
        wait_for_answer(pair.outbound(), "store")?;
        pair.store.process.restart()?;
        pair.store.wait_ready()?;
        wait_for_answer(pair.outbound(), "store")?;
        let echo = Echo::start(world, "late")?;
        let port = world.port()?;
        let _late = one
            .plan("late")?
            .service("late")
            .inbound(port, echo.port())
            .start()?;
        let caller = one
            .plan("web-2")?
            .service("web")
            .outbound(&pair.service)?
            .start()?;
        wait_for_answer(caller.to(&pair.service), "store")?;
        // And when it is back, everything it missed arrives.
        one.global.start_all()?;
        let api = one.global.api()?;
        eventually(SOON, "global learns of the late service", || {
            let services = api.list("/v1/meshes/payments/meshservices")?;
            let found = services.iter().any(|service| service["name"] == "late");
            anyhow::ensure!(found, "{services:?}");
            Ok(())
        })?;
        api.delete(&resources::permission_path("payments", PERMISSION))?;
        wait_for_refusal(pair.outbound())
    });
}

#[test]
fn a_restarted_global_is_found_again_and_changes_arrive() {
    scene(|world| {
        let mut one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        for round in 0..3 {
            one.global.nodes[0].restart()?;
            let api = one.global.api()?;
            api.delete(&resources::permission_path("payments", PERMISSION))
                .with_context(|| format!("round {round}"))?;
            wait_for_refusal(pair.outbound())?;
            let written = api.apply(&crate::installation::permission())?;
            api.wait_for_rollout(written.revision)?;
            wait_for_answer(pair.outbound(), "store")?;
        }
        Ok(())
    });
}

#[test]
fn a_workload_that_goes_away_leaves_after_the_grace_period() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let mut pair = Pair::start(&one)?;
        pair.store.process.kill();
        wait_for_refusal(pair.outbound())?;
        eventually(SOON, "its service leaves as well", || {
            let services = one.api.list("/v1/meshes/payments/meshservices")?;
            let found = services.iter().any(|service| service["name"] == "store");
            anyhow::ensure!(!found, "{services:?}");
            Ok(())
        })?;
        pair.store.process.launch()?;
        wait_for_answer(pair.outbound(), "store")
    });
}

#[test]
fn a_mesh_may_be_limited_to_some_zones() {
    scene(|world| {
        let one = OneZone::start(world)?;
        one.api
            .apply("type: Mesh\nname: elsewhere\nzones: [north]\n")?;
        let token = one.api.dataplane_token("elsewhere")?;
        // From here on the zone knows all there is to know of that mesh, and refuses for no other reason.
        let written = one
            .api
            .apply(&resources::allow_everyone("payments", "later"))?;
        one.api.wait_for_rollout(written.revision)?;
        let resource =
            resources::dataplane("elsewhere", "web", "127.0.0.1", world.port()?, 9, "web");
        let pin = pin_of(&token)?;
        let refused = FakeDataplane::connect(&one.west.discovery, &pin, &token, &resource)?;
        let words = refused.wait_for_end(SOON)?;
        anyhow::ensure!(
            words.contains("elsewhere") && refused.seen().documents.is_empty(),
            "{words}"
        );
        Ok(())
    });
}
