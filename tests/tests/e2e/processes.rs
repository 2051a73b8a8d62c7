//! What every process does the same way; IPv6.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::Context as _;
use mesh_tests::{
    api::plain_get,
    app::Echo,
    client::{curl, wait_for_answer, who_answers},
    global::Global,
    process::{Process, Recipe},
    resources,
    sidecar::Plan,
    wait::{SOON, eventually},
    world::{World, scene, scene_in},
    zone::Zone,
};
use serde_json::Value;

use crate::installation::{OneZone, Pair};

/// Files and folders below `directory` that others than their owner can read.
fn readable_for_others(directory: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // A process that runs puts new files in the place of old ones meanwhile.
        let mode = match entry.metadata() {
            Ok(metadata) => metadata.permissions().mode(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        if mode & 0o077 != 0 {
            found.push(format!("{} ({:o})", entry.path().display(), mode & 0o7777));
        }
        if entry.file_type()?.is_dir() {
            found.extend(readable_for_others(&entry.path())?);
        }
    }
    Ok(found)
}

#[test]
fn state_is_for_its_owner_only_and_keys_are_in_no_log() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        for directory in [&one.global.nodes[0].data, &one.west.data, &pair.store.state] {
            let mode = fs::metadata(directory)?.permissions().mode();
            anyhow::ensure!(mode & 0o077 == 0, "{} is {mode:o}", directory.display());
            // Below a folder that nobody else enters, the modes of files are a second line of defence: keys need it.
            for path in readable_for_others(directory)? {
                anyhow::ensure!(!path.contains("key") && !path.contains("ca."), "{path}");
            }
        }
        let mode = fs::metadata(&pair.store.admin_socket)?.permissions().mode();
        anyhow::ensure!(mode & 0o077 == 0, "the admin socket is {mode:o}");
        for log in fs::read_dir(world.logs())? {
            let log = log?.path();
            let text = fs::read_to_string(&log)?;
            for secret in ["PRIVATE KEY", one.token.as_str()] {
                anyhow::ensure!(
                    !text.contains(secret),
                    "{} holds {secret:.20}…",
                    log.display()
                );
            }
            let printed_once = log.ends_with("global-1.out");
            anyhow::ensure!(
                printed_once || !text.contains(&one.global.admin_token),
                "{}",
                log.display()
            );
        }
        Ok(())
    });
}

#[test]
fn every_process_says_how_it_is_and_ends_with_zero_when_asked() {
    scene(|world| {
        let mut one = OneZone::start(world)?;
        let mut pair = Pair::start(&one)?;
        for admin in [
            &one.global.nodes[0].admin,
            &one.west.admin,
            &pair.store.metrics,
        ] {
            for path in ["healthz", "readyz", "metrics"] {
                let answer = eventually(SOON, "it is well", || {
                    let answer = plain_get(&format!("http://{admin}/{path}"))?;
                    anyhow::ensure!(answer.status == 200, "{admin}/{path}: {answer:?}");
                    Ok(answer)
                })?;
                if path == "metrics" {
                    anyhow::ensure!(
                        answer.body.trim_end().ends_with("# EOF"),
                        "no OpenMetrics: {}",
                        answer.body
                    );
                }
            }
        }
        for process in [
            &mut pair.web.process,
            &mut pair.store.process,
            &mut one.west.process,
            &mut one.global.nodes[0].process,
        ] {
            let status = process.terminate(SOON)?;
            anyhow::ensure!(status.success(), "{} ended with {status}", process.name());
        }
        Ok(())
    });
}

#[test]
fn the_admin_socket_shows_what_runs_and_changes_the_log_level() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        let socket = pair.store.admin_socket.display().to_string();
        let ask = |arguments: &[&str]| {
            let mut all = vec!["--fail", "--unix-socket", &socket];
            all.extend(arguments);
            curl(&all)
        };
        let printed = ask(&["http://localhost/config"])?;
        anyhow::ensure!(
            printed.success && printed.text.contains("web-to-store"),
            "{printed:?}"
        );
        let config: Value = serde_json::from_str(&printed.text)?;
        anyhow::ensure!(!config.to_string().contains("PRIVATE KEY"));
        let printed = ask(&["-X", "PUT", "--data", "debug", "http://localhost/log-level"])?;
        anyhow::ensure!(printed.success, "{printed:?}");
        let printed = ask(&[
            "-X",
            "PUT",
            "--data",
            "lou,=d",
            "http://localhost/log-level",
        ])?;
        anyhow::ensure!(!printed.success, "a level that is none: {printed:?}");
        who_answers(pair.outbound())?;
        eventually(SOON, "it logs at level debug", || {
            anyhow::ensure!(pair.store.process.log().contains("\"DEBUG\""), "not yet");
            Ok(())
        })
    });
}

#[test]
fn everything_works_over_ipv6() {
    scene_in(World::on_ipv6(), |world| {
        let global = Global::start_cluster(world, 3)?;
        let api = global.api()?;
        let east = Zone::start(world, &global, "east")?;
        let mut west = Zone::start(world, &global, "west")?;
        west.start_ingress(&api)?;
        api.apply(&resources::mesh("payments"))?;
        api.apply(&resources::allow_everyone("payments", "everyone"))?;
        let token = api.dataplane_token("payments")?;
        let echo = Echo::start(world, "store")?;
        let port = world.port()?;
        let _store = Plan::new(world, &west, "payments", "store", &token)?
            .service("store")
            .inbound(port, echo.port())
            .start()?;
        let service = format!("store:{port}");
        let near = Plan::new(world, &west, "payments", "near", &token)?
            .service("near")
            .outbound(&service)?
            .start()?;
        let far = Plan::new(world, &east, "payments", "far", &token)?
            .service("far")
            .outbound(&service)?
            .start()?;
        wait_for_answer(near.to(&service), "store")?;
        wait_for_answer(far.to(&service), "store")
    });
}

/// A file as Kuma's users have it, with its label prefix.
#[test]
fn a_sidecar_is_described_by_a_file() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        let port: u16 = pair.service.rsplit(':').next().context("a port")?.parse()?;
        let outbound = world.address()?;
        let file = world.file(
            "dataplane.yaml",
            &format!(
                "type: Dataplane
mesh: payments
name: from-file
labels:
  kuma.io/service: web
networking:
  address: 127.0.0.1
  outbound:
    - address: {}
      port: {}
      backendRef: {{kind: MeshService, name: store, port: {port}}}
",
                outbound.ip(),
                outbound.port()
            ),
        )?;
        let recipe = Recipe::new(&world.binary("dataplane"))
            .arg("run")
            .flag("--mode", "sidecar")
            .flag("--zone-cp", &one.west.discovery)
            .flag("--token-file", world.file("from-file.token", &one.token)?)
            .flag("--dataplane-file", file)
            .flag("--state-dir", world.directory().join("from-file"))
            .flag("--admin-socket", world.directory().join("from-file.sock"));
        let _sidecar = Process::start(world, "from-file", recipe)?;
        wait_for_answer(outbound, "store")
    });
}
