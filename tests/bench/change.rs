//! From `apply` to its effect in a sidecar of another zone, and applied resources per second.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use mesh_tests::{
    api::Api,
    app::Echo,
    client::{wait_for_answer, who_answers},
    global::Global,
    resources,
    sidecar::{Plan, Sidecar},
    wait::{SOON, eventually},
    world::World,
    zone::Zone,
};

use crate::report::Report;

const PEER: &str = "isthmus";

pub(crate) fn measure(world: &World, changes: usize, report: &mut Report) -> anyhow::Result<()> {
    for nodes in [1, 3] {
        eprintln!("changes over {nodes} global node(s)");
        // A world of its own, so that names of processes and folders do not meet.
        let world = World::with_binaries(world.binaries())?;
        measure_on(&world, nodes, changes, report)?;
    }
    Ok(())
}

fn measure_on(
    world: &World,
    nodes: usize,
    changes: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let global = Global::start_cluster(world, nodes)?;
    let api = global.api_of(0)?;
    let near = Zone::start(world, &global, "near")?;
    let mut far = Zone::start(world, &global, "far")?;
    far.start_ingress(&api)?;
    api.apply(&resources::mesh("bench"))?;
    let token = api.dataplane_token("bench")?;
    let echo = Echo::start(world, "store")?;
    let port = world.port()?;
    let _store = Plan::new(world, &far, "bench", "store", &token)?
        .service("store")
        .inbound(port, echo.port())
        .start()?;
    let service = format!("store:{port}");
    let web = Plan::new(world, &near, "bench", "web", &token)?
        .service("web")
        .outbound(&service)?
        .start()?;
    effect(&api, &web, &service, nodes, changes, report)?;
    throughput(&api, nodes, report)
}

/// A client in one zone connects again and again to a service of the other, through its ingress, and sees when the sidecar
/// there lets it in, and when it does not.
fn effect(
    api: &Api,
    web: &Sidecar,
    service: &str,
    nodes: usize,
    changes: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let id = resources::spiffe_id("bench", "near", "web");
    let allow = resources::permission("bench", "web-to-store", Some("store"), &[("Exact", &id)]);
    let path = resources::permission_path("bench", "web-to-store");
    api.apply(&allow)?;
    wait_for_answer(web.to(service), "store")?;
    let (mut effect, mut answer) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
    for change in 0..changes {
        let allowed_after = change % 2 == 1;
        let begun = Instant::now();
        if allowed_after {
            api.apply(&allow)?;
        } else {
            api.delete(&path)?;
        }
        answer.record(micros(begun.elapsed()))?;
        loop {
            if who_answers(web.to(service)).is_ok() == allowed_after {
                break;
            }
            anyhow::ensure!(begun.elapsed() < SOON, "change {change} has no effect");
        }
        effect.record(micros(begun.elapsed()))?;
    }
    let of = format!("{nodes} global node(s)");
    for (name, times) in [("apply → effect", &effect), ("apply → answer", &answer)] {
        for quantile in [0.5, 0.99] {
            let value = times.value_at_quantile(quantile) as f64 / 1000.0;
            report.add(
                PEER,
                &format!("{name} ms, p{}, {of}", quantile * 100.0),
                value,
            );
        }
    }
    Ok(())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Written one by one by one client, by sixteen at once, and in batches of 1,000.
fn throughput(api: &Api, nodes: usize, report: &mut Report) -> anyhow::Result<()> {
    let of = format!("{nodes} global node(s)");
    let one = |name: String| resources::allow_everyone("bench", &name);
    let begun = Instant::now();
    for number in 0..300 {
        api.apply(&one(format!("single-{number}")))?;
    }
    report.add(
        PEER,
        &format!("resources/s, one by one, {of}"),
        300.0 / begun.elapsed().as_secs_f64(),
    );
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..16)
            .map(|writer| {
                scope.spawn(move || {
                    (0..100).try_for_each(|number| {
                        api.apply(&resources::allow_everyone(
                            "bench",
                            &format!("w{writer}-{number}"),
                        ))
                        .map(|_| ())
                    })
                })
            })
            .collect();
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().expect("no panic"))
    })?;
    report.add(
        PEER,
        &format!("resources/s, 16 clients, {of}"),
        1600.0 / begun.elapsed().as_secs_f64(),
    );
    let begun = Instant::now();
    for batch in 0..5 {
        let yaml: String = (0..1000)
            .map(|number| one(format!("b{batch}-{number}")))
            .collect();
        api.apply(&yaml)?;
    }
    report.add(
        PEER,
        &format!("resources/s, batches of 1,000, {of}"),
        5000.0 / begun.elapsed().as_secs_f64(),
    );
    let last = api.status()?.revision;
    let begun = Instant::now();
    eventually(SOON, "the zone has everything", || {
        let rollout = api.rollout(last)?;
        rollout
            .complete
            .then_some(())
            .with_context(|| format!("{rollout:?}"))
    })?;
    report.add(
        PEER,
        &format!("s until the zone has all of them, {of}"),
        begun.elapsed().as_secs_f64(),
    );
    Ok(())
}
