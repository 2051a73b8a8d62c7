//! A node that is killed at any moment has everything it acknowledged when it comes back.
//!
//! This shows that the log is recovered and applied whole. It can not show that the disk has it, since the page cache
//! outlives the process; `durability.rs` does.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/write_load.rs"]
mod write_load;

/// Set for the process that is killed: its data directory.
const KILLED: &str = "ISTHMUS_TEST_KILLED_DIRECTORY";
/// Set for it too: how many writes other rounds have begun.
const FIRST: &str = "ISTHMUS_TEST_FIRST_WRITE";

#[test]
fn a_killed_node_comes_back_with_everything_it_acknowledged() {
    const ROUNDS: u64 = 8;
    const ROUND: u64 = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed", "--nocapture"])
            .env(KILLED, dir.path())
            .env(FIRST, (round * ROUND).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed after another number of writes each time, while sixteen more are under way.
        let enough = acknowledged.len() + 30 + usize::try_from(round * 17).unwrap();
        let mut listed = BTreeSet::new();
        let mut told = false;
        for line in &mut lines {
            let line = line.unwrap();
            if let Some(name) = line.strip_prefix("holds ") {
                listed.insert(name.to_owned());
            } else if let Some((_, name)) = line.split_once("acknowledged ") {
                if !told {
                    let missing: Vec<_> = acknowledged.difference(&listed).collect();
                    assert!(missing.is_empty(), "round {round}: lost {missing:?}");
                    told = true;
                }
                acknowledged.insert(name.to_owned());
                if acknowledged.len() >= enough {
                    break;
                }
            }
        }
        child.kill().unwrap();
        // What it told before it died counts.
        for line in lines.map_while(Result::ok) {
            if let Some((_, name)) = line.split_once("acknowledged ") {
                acknowledged.insert(name.to_owned());
            }
        }
        child.wait().unwrap();
        assert!(told, "round {round}: the node did not come back");
    }
}

/// What is killed. By itself it does nothing.
#[test]
fn killed() {
    let Some(directory) = std::env::var_os(KILLED) else {
        return;
    };
    let first = std::env::var(FIRST).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime
        .block_on(write_load::run(
            Path::new(&directory),
            write_load::Load {
                nodes: 1,
                writers: 16,
                first,
                writes: u64::MAX - first,
                list: true,
            },
        ))
        .unwrap();
}
