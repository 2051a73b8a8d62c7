//! Several global nodes.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::Context as _;
use mesh_tests::{
    api,
    global::{Global, Node},
    resources,
    wait::{SOON, eventually},
    world::scene,
};

fn has_mesh(global: &Global, node: usize, name: &str) -> anyhow::Result<()> {
    let api = global.api_of(node)?;
    eventually(SOON, &format!("node {node} has mesh {name}"), || {
        api.get::<serde_json::Value>(&format!("/v1/meshes/{name}"))
            .map(|_| ())
    })
}

#[test]
fn three_nodes_serve_the_whole_api_and_survive_their_leader() {
    scene(|world| {
        let mut global = Global::start_cluster(world, 3)?;
        for node in 0..3 {
            // Written at any node, read at once at any other: reads are linearizable.
            let name = format!("written-at-{node}");
            global.api_of(node)?.apply(&resources::mesh(&name))?;
            for reader in 0..3 {
                global
                    .api_of(reader)?
                    .get::<serde_json::Value>(&format!("/v1/meshes/{name}"))
                    .with_context(|| format!("written at {node}, read at {reader}"))?;
            }
        }
        let leader = global.leader()?;
        global.nodes[leader].process.kill();
        let next = global.leader()?;
        let follower = (0..3)
            .find(|node| *node != leader && *node != next)
            .context("a follower")?;
        global
            .api_of(follower)?
            .apply(&resources::mesh("after-the-leader"))?;
        let status = global.meshctl(&["global", "status"])?;
        anyhow::ensure!(status.contains("leader"), "{status}");
        global.nodes[leader].process.launch()?;
        global.nodes[leader].wait_ready()?;
        has_mesh(&global, leader, "after-the-leader")?;
        // Power fails.
        global.kill_all();
        global.start_all()?;
        global.leader()?;
        for node in 0..3 {
            has_mesh(&global, node, "after-the-leader")?;
        }
        let written = global.api()?.apply(&resources::mesh("after-all"))?;
        anyhow::ensure!(written.revision > 0);
        Ok(())
    });
}

#[test]
fn without_a_quorum_nothing_is_written_and_it_is_said() {
    scene(|world| {
        let mut global = Global::start_cluster(world, 3)?;
        global.leader()?;
        let revision = global.api()?.status()?.revision;
        global.nodes[1].process.kill();
        global.nodes[2].process.kill();
        let api = global.api_of(0)?;
        let answer = api.try_apply(&resources::mesh("minority"))?;
        anyhow::ensure!(answer.status == 503, "{answer:?}");
        anyhow::ensure!(
            answer.body.contains("title"),
            "no problem is told: {answer:?}"
        );
        let read = api.request("GET", "/v1/meshes", &[], None)?;
        anyhow::ensure!(
            read.status == 503,
            "a linearizable read without a quorum: {read:?}"
        );
        global.nodes[1].process.launch()?;
        global.nodes[1].wait_ready()?;
        eventually(SOON, "two of three write again", || {
            global
                .api_of(0)?
                .apply(&resources::mesh("majority"))
                .map(|_| ())
        })?;
        let after = global.api_of(0)?.status()?.revision;
        anyhow::ensure!(after > revision);
        Ok(())
    });
}

/// Its disk is new: it is not who it was, and must not vote as if it had seen what it has forgotten.
#[test]
fn a_wiped_node_is_refused_and_a_new_one_takes_its_place() {
    scene(|world| {
        let mut global = Global::start_cluster(world, 3)?;
        let wiped = 2;
        let token = global.nodes[wiped].join_token.clone();
        global.nodes[wiped].process.kill();
        fs::remove_dir_all(&global.nodes[wiped].data)?;
        let zone_address = global.nodes[0].zone.clone();
        let node = &mut global.nodes[wiped];
        // As systemd would start it again: with the token it once joined by, which is used up.
        node.process.recipe = node
            .process
            .recipe
            .clone()
            .flag("--join", &zone_address)
            .flag("--token", &token);
        node.process.launch()?;
        let refused = node.wait_ready();
        let words = format!(
            "{:#}",
            refused
                .err()
                .context("a wiped node came up as if nothing were")?
        );
        anyhow::ensure!(words.contains("used"), "{words}");
        global.api()?.apply(&resources::mesh("goes-on"))?;
        let leader = global.leader()?;
        let api = global.api_of(leader)?;
        let gone = eventually(SOON, "one node is seen to be away", || {
            let nodes = api.status()?.nodes;
            let away = nodes.iter().find(|node| !node.reachable);
            away.map(|node| node.id).context("all answer")
        })?;
        let removed = api.request("DELETE", &format!("/v1/nodes/{gone}"), &[], None)?;
        anyhow::ensure!(removed.status == 200, "{removed:?}");
        global.nodes.remove(wiped);
        global.add_node()?;
        eventually(SOON, "a new node votes in its place", || {
            let nodes = api.status()?.nodes;
            let voters = nodes
                .iter()
                .filter(|node| node.role != "learner" && node.reachable);
            anyhow::ensure!(
                voters.count() == 3 && nodes.iter().all(|node| node.id != gone),
                "{nodes:?}"
            );
            Ok(())
        })?;
        Ok(())
    });
}

/// Its log is damaged: it says so and does not start, and one command brings it back as a new node. That command does
/// nothing while the others are too few to go on without what may be lost.
#[test]
fn a_node_with_a_damaged_log_is_brought_back_by_one_command() {
    scene(|world| {
        let mut global = Global::start_cluster(world, 3)?;
        let api = global.api()?;
        api.apply(&resources::mesh("kept"))?;
        let (damaged, other) = (2, 1);
        global.nodes[damaged].process.kill();
        let log = global.nodes[damaged].data.join("store/log.redb");
        let length = fs::metadata(&log)?.len();
        fs::File::options()
            .write(true)
            .open(&log)?
            .set_len(length / 2)?;
        global.nodes[damaged].process.launch()?;
        let status = global.nodes[damaged].process.wait_for_end(SOON)?;
        anyhow::ensure!(!status.success(), "it started with half a log");
        let words = global.nodes[damaged].process.last_words();
        for word in ["log.redb", "meshctl global recover"] {
            anyhow::ensure!(words.contains(word), "{word} is not in: {words}");
        }

        let node = &global.nodes[damaged];
        let data = node.data.to_string_lossy().into_owned();
        let program = world.binary("global-cp").to_string_lossy().into_owned();
        let mut arguments: Vec<std::ffi::OsString> = [
            "global",
            "recover",
            "--yes",
            "--data-dir",
            &data,
            "--program",
            &program,
            "--",
        ]
        .map(Into::into)
        .into();
        // Its own settings, without `run` and the data directory.
        arguments.extend(node.process.recipe.arguments.iter().skip(3).cloned());

        // With a second node away the cluster can not spare what this one may have acknowledged.
        global.nodes[other].process.kill();
        eventually(SOON, "two are seen to be away", || {
            let nodes = global.api_of(0)?.status()?.nodes;
            let away = nodes.iter().filter(|node| !node.reachable).count();
            anyhow::ensure!(away == 2, "{nodes:?}");
            Ok(())
        })?;
        let refused = global.try_meshctl(&arguments, "")?;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        anyhow::ensure!(
            !refused.status.success() && words.contains("no majority"),
            "{words}"
        );
        anyhow::ensure!(log.exists(), "something was moved all the same");

        global.nodes[other].process.launch()?;
        global.nodes[other].wait_ready()?;
        global.leader_among(&[0, other])?;
        eventually(SOON, "only one is seen to be away", || {
            for at in [0, other] {
                let nodes = global.api_of(at)?.status()?.nodes;
                let away = nodes.iter().filter(|node| !node.reachable).count();
                anyhow::ensure!(away == 1, "{nodes:?}");
            }
            Ok(())
        })?;
        // Killed while it moves what was there, and run again.
        let killed = world.directory().join("killed");
        fs::write(
            &killed,
            format!(
                "#!/bin/sh\nexec strace -f -o /dev/null -e trace=rename,renameat,renameat2 \
                 -e inject=rename,renameat,renameat2:signal=KILL:when=8 {program} \"$@\"\n"
            ),
        )?;
        fs::set_permissions(&killed, fs::Permissions::from_mode(0o700))?;
        let mut interrupted = arguments.clone();
        interrupted[6] = killed.into();
        let ended = global.try_meshctl(&interrupted, "")?;
        let words = String::from_utf8_lossy(&ended.stderr).into_owned();
        let data = &global.nodes[damaged].data;
        anyhow::ensure!(
            !ended.status.success() && words.contains("run this again"),
            "{words}"
        );
        anyhow::ensure!(
            data.join("recovering").exists(),
            "it was not killed in the middle"
        );
        // On a busy machine another may lead before it is asked; the command says whom to ask then.
        eventually(SOON, "the node is recovered", || {
            let leader = global.leader_among(&[0, other])?;
            let mut arguments = arguments.clone();
            let server = format!("https://{}", global.nodes[leader].api);
            arguments.splice(2..2, ["--server".into(), server.into()]);
            let done = global.try_meshctl(&arguments, "")?;
            let words = String::from_utf8_lossy(&done.stderr).into_owned();
            anyhow::ensure!(done.status.success(), "{words}");
            Ok(())
        })?;
        anyhow::ensure!(!global.nodes[damaged].data.join("recovering").exists());
        global.nodes[damaged].process.launch()?;
        global.nodes[damaged].wait_ready()?;
        let api = global.api_of(damaged)?;
        eventually(SOON, "three nodes vote, none of them the old one", || {
            let nodes = api.status()?.nodes;
            let ids: Vec<_> = nodes
                .iter()
                .filter(|node| node.role != "learner" && node.reachable)
                .map(|node| node.id)
                .collect();
            anyhow::ensure!(ids == [1, 2, 4] && nodes.len() == 3, "{nodes:?}");
            Ok(())
        })?;
        // Nothing is lost, and it counts as any other.
        api.get::<serde_json::Value>("/v1/meshes/kept")?;
        global.nodes[other].process.kill();
        eventually(SOON, "a write is accepted by the other two", || {
            api.apply(&resources::mesh("after")).map(|_| ())
        })
    });
}

#[test]
fn a_node_of_another_installation_is_not_let_in() {
    scene(|world| {
        let ours = Global::start(world)?;
        let (recipe, mut node) = Node::recipe(world, "theirs")?;
        node.process.recipe = recipe.clone();
        let theirs = Global::start_with(world, node, recipe)?;
        let token = theirs
            .api()?
            .create_token(&api::token(mesh_model::api::TokenUse::NodeJoin))?
            .token;
        let (recipe, mut node) = Node::recipe(world, "lost")?;
        node.process.recipe = recipe
            .flag("--join", &ours.nodes[0].zone)
            .flag("--token", &token);
        node.process.launch()?;
        let status = node.process.wait_for_end(SOON)?;
        anyhow::ensure!(!status.success());
        let words = node.process.last_words();
        anyhow::ensure!(words.contains("installation"), "{words}");
        Ok(())
    });
}
