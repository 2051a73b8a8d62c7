//! A watch goes on over restarts and changes of leader, without a gap and without telling anything twice.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use mesh_model::api::Written;
use mesh_tests::{
    api::Api,
    global::Global,
    resources,
    wait::{SOON, eventually},
    watcher::Watcher,
    world::scene,
};

/// Writes pairs of services, one pair a revision, until told to stop; each until it is acknowledged. How many were.
fn write(api: &Api, prefix: &str, stop: &AtomicBool, written: &AtomicUsize) -> anyhow::Result<()> {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let service = |side: &str| {
            format!(
                "type: MeshService\nmesh: payments\nname: {prefix}-{number}-{side}\nspec: {{ports: [{{port: 80}}]}}\n---\n"
            )
        };
        let body = service("a") + &service("b");
        let id = format!("{prefix}-{number}");
        let headers = [("content-type", "application/yaml"), ("x-request-id", &id)];
        eventually(SOON, "a write is acknowledged", || {
            api.request("POST", "/v1/batch", &headers, Some(&body))?
                .ok::<Written>()
        })?;
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Runs `faults` while somebody writes, and returns the names that were acknowledged.
fn while_writing(
    api: &Api,
    prefix: &str,
    faults: impl FnOnce(&AtomicUsize) -> anyhow::Result<()>,
) -> anyhow::Result<BTreeSet<String>> {
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(api, prefix, &stop, &written));
        let outcome = faults(&written);
        stop.store(true, Ordering::Relaxed);
        writer
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the writer panicked")))?;
        outcome
    })?;
    let names = (0..written.into_inner())
        .flat_map(|number| ["a", "b"].map(|side| format!("{prefix}-{number}-{side}")));
    Ok(names.collect())
}

fn more(written: &AtomicUsize, count: usize) -> anyhow::Result<()> {
    let wanted = written.load(Ordering::Relaxed) + count;
    eventually(SOON, "the writer comes on", || {
        let now = written.load(Ordering::Relaxed);
        anyhow::ensure!(now >= wanted, "{now} of {wanted}");
        Ok(())
    })
}

#[test]
fn a_watch_goes_on_at_another_node_without_a_gap_or_a_double() {
    scene(|world| {
        let mut global = Global::start_cluster(world, 3)?;
        global.api()?.apply(&resources::mesh("payments"))?;
        let begun = global.api()?.status()?;
        let leader = global.leader()?;
        // At the leader first, so that its end is felt.
        let mut servers = vec![global.nodes[leader].api.clone()];
        servers.extend(
            (0..3)
                .filter(|at| *at != leader)
                .map(|at| global.nodes[at].api.clone()),
        );
        let api = Api::new(servers, &global.admin_token)?;
        let watcher = Watcher::start(&api, begun.revision, &begun.history_id)?;
        let caught_up = |revision: u64| {
            eventually(SOON, "the watch has told everything", || {
                let (cursor, changes) = (watcher.cursor(), watcher.changes()?);
                anyhow::ensure!(cursor >= revision, "{cursor} of {revision}");
                Ok(changes)
            })
        };

        let mut names = while_writing(&api, "one", |written| {
            more(written, 10)?;
            eventually(SOON, "the watch has begun", || {
                anyhow::ensure!(!watcher.changes()?.is_empty());
                Ok(())
            })?;
            global.nodes[leader].process.kill();
            more(written, 10)?;
            global.nodes[leader].process.launch()?;
            global.nodes[leader].wait_ready()?;
            more(written, 5)
        })?;
        caught_up(api.status()?.revision)?;
        let servers = watcher.servers();
        anyhow::ensure!(
            servers.iter().collect::<BTreeSet<_>>().len() > 1,
            "it never moved: {servers:?}"
        );

        // Power fails.
        global.kill_all();
        global.start_all()?;
        names.extend(while_writing(&api, "two", |written| more(written, 5))?);
        let end = api.status()?.revision;
        let told = caught_up(end)?;
        let told_names: Vec<&String> = told.iter().map(|(_, name)| name).collect();
        let once: BTreeSet<&String> = told_names.iter().copied().collect();
        anyhow::ensure!(once.len() == told_names.len(), "told twice: {told:?}");
        anyhow::ensure!(once == names.iter().collect(), "{told:?}");
        anyhow::ensure!(told.is_sorted_by_key(|(revision, _)| *revision), "{told:?}");
        // Whoever watches it all at once is told the same.
        let fresh = Watcher::start(&api, begun.revision, &begun.history_id)?;
        eventually(SOON, "another watch tells the same", || {
            anyhow::ensure!(fresh.changes()? == told, "{:?}", fresh.changes()?);
            Ok(())
        })?;
        // And of another history nothing.
        let other = Watcher::start(&api, begun.revision, "another")?;
        eventually(SOON, "a watch of another history ends", || {
            anyhow::ensure!(other.changes().is_err());
            Ok(())
        })
    });
}
