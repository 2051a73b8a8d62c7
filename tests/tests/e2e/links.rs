//! The stream between global and a zone, broken in every way: it is resumed, what was written meanwhile arrives, and
//! what is broken is shown as broken.

use std::{net::SocketAddr, time::Instant};

use anyhow::Context as _;
use mesh_tests::{
    api::{self, Api},
    client::{wait_for_answer, wait_for_refusal},
    global::{Global, Node},
    link::{Direction, Link},
    resources,
    wait::{SOON, eventually},
    world::{World, scene},
    zone::Zone,
};

use crate::installation::{OneZone, PERMISSION, Pair, permission};

/// A way to break a link.
type Break = fn(&Link);

/// One global node whose zone port is reached through a link only, and a zone.
fn behind_a_link(world: &World) -> anyhow::Result<(OneZone, Link)> {
    let (mut recipe, mut node) = Node::recipe(world, "global-1")?;
    let target: SocketAddr = node.zone.parse()?;
    // Global names its port under the link's address, so that the zone never finds a way around it.
    let link = Link::start((world.machine(), target.port()).into(), target)?;
    let host = recipe.arguments.last_mut().context("--advertise-host")?;
    *host = link.address.ip().to_string().into();
    node.zone = link.address.to_string();
    let global = Global::start_with(world, node, recipe)?;
    let api = global.api()?;
    let west = Zone::start(world, &global, "west")?;
    api.apply(&resources::mesh("payments"))?;
    let token = api.dataplane_token("payments")?;
    let one = OneZone {
        world: world.clone(),
        global,
        api,
        west,
        token,
    };
    Ok((one, link))
}

/// Waits until the zone has acknowledged the newest revision on a stream that lives.
fn wait_until_online(api: &Api) -> anyhow::Result<()> {
    eventually(SOON, "west is online", || {
        let status = api.status()?;
        let west = status.zones.iter().find(|zone| zone.name == "west");
        anyhow::ensure!(west.is_some_and(|zone| zone.state == "online"), "{west:?}");
        Ok(())
    })
}

fn streams(one: &OneZone) -> anyhow::Result<String> {
    let url = format!("http://{}/metrics", one.global.nodes[0].admin);
    let metrics = api::plain_get(&url)?.body;
    let value = metrics
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| name.ends_with("global_cp_zone_streams"))
        .map(|(_, value)| value.to_owned());
    value.context(metrics)
}

fn one_stream(one: &OneZone) -> anyhow::Result<()> {
    eventually(SOON, "global holds one stream", || {
        let streams = streams(one)?;
        anyhow::ensure!(streams == "1", "{streams}");
        Ok(())
    })
}

#[test]
fn however_the_stream_ends_it_is_resumed_and_what_was_written_meanwhile_arrives() {
    scene(|world| {
        let (one, link) = behind_a_link(world)?;
        let pair = Pair::start(&one)?;
        let breaks: [(&str, Break); 7] = [
            ("an end towards global", |link| link.end(Direction::There)),
            ("an end towards the zone", |link| link.end(Direction::Back)),
            ("an end both ways", |link| {
                link.end(Direction::There);
                link.end(Direction::Back);
            }),
            ("a reset", Link::reset),
            ("silence towards global", |link| {
                link.silence(Direction::There);
            }),
            ("silence towards the zone", |link| {
                link.silence(Direction::Back);
            }),
            ("silence both ways", |link| {
                link.silence(Direction::There);
                link.silence(Direction::Back);
            }),
        ];
        for (at, (what, breaking)) in breaks.into_iter().enumerate() {
            wait_until_online(&one.api)?;
            breaking(&link);
            let begun = Instant::now();
            if at % 2 == 0 {
                one.api
                    .delete(&resources::permission_path("payments", PERMISSION))?;
                wait_for_refusal(pair.outbound()).context(what)?;
            } else {
                one.api.apply(&permission())?;
                wait_for_answer(pair.outbound(), "store").context(what)?;
            }
            eprintln!(
                "{what}: in effect after {:.1} s",
                begun.elapsed().as_secs_f32()
            );
        }
        wait_until_online(&one.api)
    });
}

/// A middlebox holds the connection of a zone that has long called again: the new stream says nothing about the old one.
#[test]
fn a_frozen_stream_is_dropped_beside_a_living_one() {
    scene(|world| {
        let (mut one, link) = behind_a_link(world)?;
        wait_until_online(&one.api)?;
        one_stream(&one)?;
        link.silence(Direction::There);
        link.silence(Direction::Back);
        one.west.restart()?;
        wait_until_online(&one.api)?;
        one_stream(&one)?;
        wait_until_online(&one.api)?;
        let written = one
            .api
            .apply(&resources::allow_everyone("payments", "later"))?;
        one.api.wait_for_rollout(written.revision)
    });
}
