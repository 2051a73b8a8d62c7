//! What was answered is on disk.

use std::fs;

use anyhow::Context as _;
use mesh_model::api::Written;
use mesh_tests::{
    global::{Global, Node, run_with_input},
    process::{Process, Recipe},
    resources,
    wait::{SOON, eventually, until},
    world::scene,
};

/// How often global is killed; `ISTHMUS_TEST_KILLS` says otherwise.
const KILLS: usize = 200;

#[test]
fn what_was_answered_survives_kill_9() {
    let kills = std::env::var("ISTHMUS_TEST_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(KILLS);
    scene(|world| {
        let mut global = Global::start(world)?;
        let api = global.api()?;
        api.apply(&resources::mesh("payments"))?;
        let mut last = 0;
        for round in 0..kills {
            let name = format!("written-{round}");
            let written = api.apply(&resources::allow_everyone("payments", &name))?;
            anyhow::ensure!(
                written.revision > last,
                "round {round}: the revision did not grow"
            );
            last = written.revision;
            global.nodes[0].restart()?;
            let read: serde_json::Value =
                api.get(&resources::permission_path("payments", &name))
                    .with_context(|| format!("round {round}: an answered write is lost"))?;
            anyhow::ensure!(
                read["revision"] == written.revision,
                "round {round}: {read}"
            );
        }
        let all = api.list("/v1/meshes/payments/meshtrafficpermissions")?;
        anyhow::ensure!(all.len() == kills, "{} of {kills} are there", all.len());
        Ok(())
    });
}

/// `kill -9` leaves the page cache as it is, so it can not show that the disk was asked. strace can.
#[test]
fn a_write_is_on_disk_before_it_is_answered() {
    scene(|world| {
        let global = Global::start(world)?;
        let api = global.api()?;
        let trace = world.directory().join("strace.txt");
        let recipe = Recipe::new("strace".as_ref())
            .arg("-f")
            .arg("-y")
            .arg("-ttt")
            .flag("-e", "trace=fdatasync")
            .flag("-o", &trace)
            .flag("-p", global.nodes[0].process.pid().to_string());
        let mut strace = Process::start(world, "strace", recipe)?;
        until(SOON, "strace watches", || strace.log().contains("attached"))?;
        let data = global.nodes[0].data.display().to_string();
        let now = || {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map(|time| time.as_secs_f64())
        };
        let mut calls = Vec::new();
        for round in 0..10 {
            let asked = now()?;
            let written: Written = api.apply(&resources::mesh(&format!("mesh-{round}")))?;
            calls.push((asked, now()?, written.revision));
        }
        // Detaches in order, so that nothing of the trace is missing.
        strace.terminate(SOON).ok();
        let text = fs::read_to_string(&trace)?;
        for (asked, answered, revision) in calls {
            let synced = text
                .lines()
                .any(|line| synced_between(line, &data, asked, answered));
            anyhow::ensure!(
                synced,
                "revision {revision} was answered without fdatasync between {asked} and {answered}:\n{text}"
            );
        }
        Ok(())
    });
}

/// A line such as `4711 1700000000.123456 fdatasync(12</data/db>) = 0`. A call that another thread interrupted in the
/// trace is told by its second half, `<... fdatasync resumed>) = 0`, which names no file.
fn synced_between(line: &str, directory: &str, from: f64, to: f64) -> bool {
    let mut words = line.split_whitespace();
    let time = words.nth(1).and_then(|word| word.parse::<f64>().ok());
    let done = line.ends_with("= 0")
        && (line.contains("fdatasync resumed")
            || (line.contains("fdatasync(") && line.contains(directory)));
    done && time.is_some_and(|time| from <= time && time <= to)
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    scene(|world| {
        let mut global = Global::start(world)?;
        let (_, mut second) = Node::recipe(world, "second")?;
        let mut recipe = global.nodes[0].process.recipe.clone();
        // Its own ports, the other's data.
        for (mine, theirs) in [
            (&second.api, &global.nodes[0].api),
            (&second.zone, &global.nodes[0].zone),
            (&second.raft, &global.nodes[0].raft),
            (&second.admin, &global.nodes[0].admin),
        ] {
            for argument in &mut recipe.arguments {
                if *argument == **theirs {
                    *argument = mine.into();
                }
            }
        }
        second.process.recipe = recipe;
        second.process.launch()?;
        let status = second.process.wait_for_end(SOON)?;
        anyhow::ensure!(!status.success(), "it ended as if all were well");
        let words = second.process.last_words();
        anyhow::ensure!(
            words.contains("in use") && words.contains(&*global.nodes[0].data.to_string_lossy()),
            "{words}"
        );
        anyhow::ensure!(global.nodes[0].process.is_running());
        global.api()?.apply(&resources::mesh("payments"))?;
        Ok(())
    });
}

/// Bytes change in the store's files: either it recovers to what was answered, or it says which file and what to do.
#[test]
fn a_damaged_store_is_recovered_or_named_but_never_served() {
    scene(|world| {
        let mut global = Global::start(world)?;
        let api = global.api()?;
        let names: Vec<_> = (0..20).map(|number| format!("mesh-{number}")).collect();
        for name in &names {
            api.apply(&resources::mesh(name))?;
        }
        global.kill_all();
        let data = global.nodes[0].data.clone();
        let backup = world.directory().join("backup");
        copy(&data, &backup)?;
        let files = files_below(&backup)?;
        anyhow::ensure!(!files.is_empty());
        for (number, file) in files.iter().enumerate() {
            for damage in ["cut", "flip"] {
                let relative = file.strip_prefix(&backup)?.to_owned();
                fs::remove_dir_all(&data)?;
                copy(&backup, &data)?;
                let path = data.join(&relative);
                let mut bytes = fs::read(&path)?;
                if bytes.is_empty() {
                    continue;
                }
                let middle = bytes.len() / 2;
                if damage == "cut" {
                    bytes.truncate(middle);
                } else {
                    bytes[middle] ^= 0xff;
                }
                fs::write(&path, bytes)?;
                let node = &mut global.nodes[0];
                node.process.launch()?;
                let outcome = node.wait_ready();
                let log = node.process.log();
                anyhow::ensure!(
                    !log.contains("panicked"),
                    "{damage} {}:\n{log}",
                    relative.display()
                );
                if outcome.is_ok() {
                    for name in &names {
                        api.get::<serde_json::Value>(&format!("/v1/meshes/{name}"))
                            .with_context(|| {
                                format!("{damage} {}: silently lost", relative.display())
                            })?;
                    }
                } else {
                    anyhow::ensure!(
                        !node.process.is_running(),
                        "{damage} {}: neither ready nor ended\n{log}",
                        relative.display()
                    );
                }
                println!(
                    "{number} {damage} {}: served={}",
                    relative.display(),
                    outcome.is_ok()
                );
                node.process.kill();
            }
        }
        Ok(())
    });
}

/// The only node of an installation, with a damaged log: it goes back to what is left of its store, and does so however
/// often it is killed meanwhile. Every third file that the recovery renames is the moment of a `kill -9`.
#[test]
fn a_lone_node_goes_back_to_what_is_left_even_if_that_is_interrupted() {
    scene(|world| {
        let mut global = Global::start(world)?;
        let api = global.api()?;
        let names: Vec<_> = (0..20).map(|number| format!("mesh-{number}")).collect();
        for name in &names {
            api.apply(&resources::mesh(name))?;
        }
        let history = api.status()?.history_id;
        global.nodes[0].process.terminate(SOON)?;
        let data = global.nodes[0].data.clone();
        let log = fs::File::options()
            .write(true)
            .open(data.join("store/log.redb"))?;
        log.set_len(log.metadata()?.len() / 2)?;
        refuses(&mut global.nodes[0], "--from-snapshot")?;
        let backup = world.directory().join("backup");
        copy(&data, &backup)?;

        let mut arguments = global.nodes[0].process.recipe.arguments.clone();
        arguments[0] = "recover".into();
        arguments.push("--from-snapshot".into());
        let recover = Recipe::new(&world.binary("global-cp"));
        let mut killed = 0;
        for rename in (1..).step_by(3) {
            fs::remove_dir_all(&data)?;
            copy(&backup, &data)?;
            let trap = format!("inject=rename,renameat,renameat2:signal=KILL:when={rename}");
            let strace = Recipe::new("strace".as_ref())
                .flag("-o", "/dev/null")
                .flag("-e", "trace=rename,renameat,renameat2")
                .flag("-e", trap)
                .arg(world.binary("global-cp"));
            let mut done = run_with_input(&strace, &arguments, "")?;
            let whole = done.status.success();
            if !whole {
                killed += 1;
                refuses(&mut global.nodes[0], "recover")?;
                done = run_with_input(&recover, &arguments, "")?;
            }
            let words = String::from_utf8_lossy(&done.stdout).into_owned();
            anyhow::ensure!(
                done.status.success() && words.contains("back at revision"),
                "rename {rename}: {words}{}",
                String::from_utf8_lossy(&done.stderr)
            );
            global.nodes[0].process.launch()?;
            global.nodes[0].wait_ready()?;
            let api = global.api()?;
            for name in &names {
                api.get::<serde_json::Value>(&format!("/v1/meshes/{name}"))
                    .with_context(|| format!("rename {rename}: {name} is lost"))?;
            }
            anyhow::ensure!(api.status()?.history_id != history, "the same history");
            api.apply(&resources::mesh("after"))?;
            global.nodes[0].process.kill();
            let aside = fs::read_dir(&data)?
                .flatten()
                .filter(|file| file.file_name().to_string_lossy().starts_with("damaged-"))
                .count();
            anyhow::ensure!(aside == 1, "rename {rename}: {aside} folders");
            if whole {
                break;
            }
        }
        anyhow::ensure!(killed >= 3, "it was killed {killed} times only");
        Ok(())
    });
}

/// Starts a node that must not run, and says `word`.
fn refuses(node: &mut Node, word: &str) -> anyhow::Result<()> {
    node.process.launch()?;
    let status = node.process.wait_for_end(SOON)?;
    let words = node.process.last_words();
    anyhow::ensure!(!status.success() && words.contains(word), "{words}");
    Ok(())
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> anyhow::Result<()> {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()?;
    anyhow::ensure!(status.success(), "cp: {status}");
    Ok(())
}

fn files_below(directory: &std::path::Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        // Neither its socket nor the lock is data.
        if kind.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else if kind.is_file() && entry.file_name() != "lock" {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

#[test]
fn a_secret_is_never_on_disk_in_plain() {
    scene(|world| {
        let mut global = Global::start(world)?;
        let api = global.api()?;
        api.apply(&resources::mesh("payments"))?;
        // base64 of "the-plain-secret-value"
        api.apply(
            "type: Secret\nmesh: payments\nname: s\ndata: dGhlLXBsYWluLXNlY3JldC12YWx1ZQ==\n",
        )?;
        let token = global
            .admin_token
            .split('.')
            .nth(2)
            .context("a secret part")?
            .to_owned();
        eventually(SOON, "the node ends", || {
            global.nodes[0].process.terminate(SOON).map(|_| ())
        })?;
        for file in files_below(&global.nodes[0].data)? {
            let bytes = fs::read(&file)?;
            for plain in [
                "the-plain-secret-value",
                "dGhlLXBsYWluLXNlY3JldC12YWx1ZQ",
                token.as_str(),
            ] {
                let found = bytes
                    .windows(plain.len())
                    .any(|window| window == plain.as_bytes());
                anyhow::ensure!(!found, "{} holds {plain}", file.display());
            }
        }
        let log = global.nodes[0].process.log();
        anyhow::ensure!(!log.contains(&token), "the log holds the admin's token");
        Ok(())
    });
}
