//! What is acknowledged is on the disk, not only in the page cache: shown by the system calls, since killing a process
//! can not show it.
//!
//! Between the write of an entry and its acknowledgement there must be an `fdatasync` of the log's file that began after
//! the write and ended before the acknowledgement. `tests/torture/` goes further: it takes the power away.

use std::{collections::HashMap, path::Path, process::Command};

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/write_load.rs"]
mod write_load;

/// Set for the process that is traced: its data directory.
const TRACED: &str = "ISTHMUS_TEST_TRACED_DIRECTORY";
const WRITES: usize = 20;

/// What a trace tells, in order.
#[derive(Debug)]
enum Event {
    /// Bytes written to the store's file, as strace shows them.
    Written(String),
    SyncBegun(u32),
    SyncEnded(u32),
    Acknowledged(String),
}

#[test]
fn every_acknowledged_write_was_synced_before() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let status = Command::new("strace")
        .args(["-f", "-y", "-s", "1048576", "-e"])
        .arg("trace=write,pwrite64,pwritev,fdatasync")
        .arg("-o")
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "traced", "--nocapture"])
        .env(TRACED, dir.path())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap_or_else(|error| {
            panic!(
                "strace does not run ({error}): nothing is known of whether acknowledged writes are on the disk. \
                 Install it: apt install strace"
            )
        });
    assert!(status.success(), "{status}");
    let events = read(&trace);
    let mut acknowledged = 0;
    for (at, event) in events.iter().enumerate() {
        let Event::Acknowledged(name) = event else {
            continue;
        };
        acknowledged += 1;
        let written = events[..at]
            .iter()
            .position(|event| matches!(event, Event::Written(bytes) if bytes.contains(name)))
            .unwrap_or_else(|| panic!("{name} was acknowledged and never written"));
        let synced = events[written..at]
            .iter()
            .enumerate()
            .any(|(begun, event)| {
                let Event::SyncBegun(thread) = event else {
                    return false;
                };
                events[written + begun..at]
                    .iter()
                    .any(|event| matches!(event, Event::SyncEnded(ended) if ended == thread))
            });
        assert!(
            synced,
            "{name} was acknowledged without an fdatasync after its write: {:#?}",
            &events[written..=at]
        );
    }
    assert_eq!(acknowledged, WRITES);
}

/// What is traced. By itself it does nothing.
#[test]
fn traced() {
    let Some(directory) = std::env::var_os(TRACED) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let load = write_load::Load {
        nodes: 1,
        writers: 1,
        first: 0,
        writes: WRITES as u64,
        list: false,
    };
    runtime
        .block_on(write_load::run(Path::new(&directory), load))
        .unwrap();
}

/// Reads `strace -f -y -o`: `PID call(fd<path>, …) = result`, where a call that another thread interrupts is split into
/// `call(… <unfinished ...>` and `<... call resumed>…) = result`.
fn read(trace: &Path) -> Vec<Event> {
    let text = String::from_utf8_lossy(&std::fs::read(trace).unwrap()).into_owned();
    let mut syncing = HashMap::new();
    let mut events = Vec::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let thread: u32 = thread.parse().unwrap();
        let call = call.trim_start();
        let of_store = call.contains("/store/log.redb>");
        if call.starts_with("fdatasync(") && of_store {
            events.push(Event::SyncBegun(thread));
            if call.contains("<unfinished") {
                syncing.insert(thread, ());
            } else {
                assert!(call.ends_with("= 0"), "{call}");
                events.push(Event::SyncEnded(thread));
            }
        } else if call.starts_with("<... fdatasync resumed>") && syncing.remove(&thread).is_some() {
            assert!(call.ends_with("= 0"), "{call}");
            events.push(Event::SyncEnded(thread));
        } else if call.starts_with("pwrite") && of_store {
            events.push(Event::Written(call.to_owned()));
        } else if call.starts_with("write(1") {
            let name = call.split_once("acknowledged ").map(|(_, rest)| rest);
            if let Some(name) = name.and_then(|rest| rest.split('\\').next()) {
                events.push(Event::Acknowledged(name.to_owned()));
            }
        }
    }
    events
}
