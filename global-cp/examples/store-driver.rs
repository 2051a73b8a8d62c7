//! Drives the store of a node by commands on standard input, for the tests in `tests/torture/` that kill it, take its
//! power away and damage its files. Not part of any installation.
//!
//! `store-driver DATA_DIR [open] [as-if-big] [tell] [log-in-sled] [state-in-sled]`: opens the store (makes it, unless `open` is given),
//! then reads one command a line. With `as-if-big`, files are compacted and synced as if they were big; with `tell`, the
//! program logs. The last two are to see what becomes of the other engine. Each command begins with a number; `ok NUMBER` answers it after the store has
//! acknowledged it. The log's commands are done in order, one at a time; those of the state machine beside them, and
//! snapshots beside both, as openraft does it.
//!
//! | command | what |
//! | --- | --- |
//! | `vote TERM NODE COMMITTED` | saves a vote |
//! | `append TERM FIRST KEY:SIZE …` | appends entries, each puts resource KEY with SIZE bytes |
//! | `truncate TERM INDEX` | removes the log from INDEX on |
//! | `purge TERM INDEX` | removes the log up to INDEX |
//! | `committed TERM INDEX` | notes what is committed |
//! | `apply FROM TO` | applies these entries of the log |
//! | `install TERM FIRST KEY:SIZE …` | installs a snapshot of what this state would be with these entries |
//! | `snapshot` | builds a snapshot |
//! | `overwrite TERM FIRST COUNT KEYS SIZE BATCH` | COUNT entries appended and applied, with snapshots and purges |
//! | `dump` | tells everything that is there |

use std::{
    io::{BufRead as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use global_cp::{
    state::{
        apply::{ENTRY_VERSION, LIMITS, apply},
        keys,
    },
    store::{
        self, ENGINES, Engines, Store,
        database::{Kind, redb::Upkeep},
        directory::Node,
        log::LogStore,
        machine::Machine,
        snapshot::{Snapshots, meta_of},
        types::{Bundle, LogEntry, LogId, Vote},
    },
};
use mesh_proto::{
    raft::{Actor, Entry, Operation, Put, operation},
    zone::ResourceKey,
};
use openraft::{
    CommittedLeaderId, EntryPayload, RaftLogReader as _, RaftSnapshotBuilder as _,
    storage::{RaftLogStorage as _, RaftLogStorageExt as _, RaftStateMachine as _},
};
use tokio::sync::mpsc;

/// Node that leads in every term.
const LEADER: u64 = 1;
/// What the usual does to files of many megabytes, at once.
const AS_IF_BIG: Upkeep = Upkeep {
    compact_above: 64 << 10,
    too_big: 1,
    sync_after: 128 << 10,
};
/// Commands that wait; the tests never have as many under way.
const QUEUE: usize = 1024;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().context("DATA_DIR is missing")?);
    let (mut create, mut engines) = (true, ENGINES);
    for word in arguments {
        match word.as_str() {
            "open" => create = false,
            "as-if-big" => {
                engines = Engines {
                    log: Kind::Redb(AS_IF_BIG),
                    state: Kind::Redb(AS_IF_BIG),
                };
            }
            "tell" => {
                mesh_runtime::logging::init("info")?;
            }
            "log-in-sled" => engines.log = Kind::Sled,
            "state-in-sled" => engines.state = Kind::Sled,
            other => bail!("what is {other:?}?"),
        }
    }
    let owner = Node {
        node_uuid: "disk".to_owned(),
        node_id: 1,
        cluster_id: "torture".to_owned(),
    };
    let store = match store::open_with(engines, &directory, &owner, create) {
        Ok(store) => store,
        Err(error) => {
            say(&format!("refused {error}"));
            return Ok(());
        }
    };
    say("opened");
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(drive(store, &directory))
}

/// One whole line with one call, so that a trace shows each acknowledgement as one write.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever killed the tests also ended this process's purpose.
    let _ = out.write_all(format!("{line}\n").as_bytes());
    let _ = out.flush();
}

type Command = (String, Vec<String>);

async fn drive(store: Store, directory: &Path) -> anyhow::Result<()> {
    let (log_sender, log_commands) = mpsc::channel(QUEUE);
    let (machine_sender, machine_commands) = mpsc::channel(QUEUE);
    let snapshots = store.snapshots.clone();
    let scratch = directory.with_extension("scratch");
    let log = tokio::spawn(run_log(store.log.clone(), log_commands));
    let machine = tokio::spawn(run_machine(
        store.machine,
        store.log,
        snapshots,
        scratch,
        machine_commands,
    ));
    let reading = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let mut words = line.split_whitespace().map(str::to_owned);
            let number = words.next().context("a command without a number")?;
            let words: Vec<_> = words.collect();
            let target = match words.first().map(String::as_str) {
                Some("vote" | "append" | "truncate" | "purge" | "committed") => &log_sender,
                _ => &machine_sender,
            };
            target.blocking_send((number, words))?;
        }
        Ok(())
    });
    reading.await??;
    log.await??;
    machine.await?
}

async fn run_log(mut log: LogStore, mut commands: mpsc::Receiver<Command>) -> anyhow::Result<()> {
    while let Some((number, words)) = commands.recv().await {
        let n = |at: usize| number_at(&words, at);
        match words[0].as_str() {
            "vote" => {
                let vote = if n(3)? == 1 {
                    Vote::new_committed(n(1)?, n(2)?)
                } else {
                    Vote::new(n(1)?, n(2)?)
                };
                log.save_vote(&vote).await?;
            }
            "append" => log.blocking_append(entries(&words)?).await?,
            "truncate" => log.truncate(id(n(1)?, n(2)?)).await?,
            "purge" => log.purge(id(n(1)?, n(2)?)).await?,
            _ => log.save_committed(Some(id(n(1)?, n(2)?))).await?,
        }
        say(&format!("ok {number}"));
    }
    Ok(())
}

async fn run_machine(
    mut machine: Machine,
    mut log: LogStore,
    snapshots: Snapshots,
    scratch: PathBuf,
    mut commands: mpsc::Receiver<Command>,
) -> anyhow::Result<()> {
    while let Some((number, words)) = commands.recv().await {
        let n = |at: usize| number_at(&words, at);
        match words.first().map(String::as_str) {
            Some("apply") => {
                let (from, to) = (n(1)?, n(2)?);
                let entries = log.try_get_log_entries(from..=to).await?;
                machine.apply(entries).await?;
            }
            Some("snapshot") => {
                let mut builder = machine.get_snapshot_builder().await;
                tokio::spawn(async move {
                    match builder.build_snapshot().await {
                        Ok(_) => say(&format!("ok {number}")),
                        Err(error) => say(&format!("failed {number} {error}")),
                    }
                });
                continue;
            }
            Some("install") => install(&mut machine, &scratch, &words).await?,
            Some("overwrite") => overwrite(&mut machine, &mut log, &words).await?,
            Some("dump") => dump(&mut machine, &mut log, &snapshots).await?,
            other => bail!("what is {other:?}?"),
        }
        say(&format!("ok {number}"));
    }
    Ok(())
}

fn number_at(words: &[String], at: usize) -> anyhow::Result<u64> {
    let word = words
        .get(at)
        .with_context(|| format!("too short: {words:?}"))?;
    word.parse().with_context(|| word.clone())
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, LEADER), index)
}

/// `… TERM FIRST KEY:SIZE …`
fn entries(words: &[String]) -> anyhow::Result<Vec<LogEntry>> {
    let (term, first) = (number_at(words, 1)?, number_at(words, 2)?);
    (first..)
        .zip(&words[3..])
        .map(|(index, word)| {
            let (key, size) = word.split_once(':').context("KEY:SIZE")?;
            Ok(entry(term, index, key.parse()?, size.parse()?))
        })
        .collect()
}

fn entry(term: u64, index: u64, key: u64, size: usize) -> LogEntry {
    let json = format!(
        "{{\"tag\":\"{term}.{index}\",\"pad\":\"{}\"}}",
        "x".repeat(size)
    );
    let entry = Entry {
        version: ENTRY_VERSION,
        request_id: format!("{term}.{index}"),
        actor: Some(Actor {
            name: "system".to_owned(),
            address: String::new(),
        }),
        time_ms: 1000 + index,
        operations: vec![Operation {
            operation: Some(operation::Operation::Put(Put {
                key: Some(ResourceKey::global("Mesh", "", &format!("mesh-{key}"))),
                json: json.into_bytes(),
                precondition: None,
            })),
        }],
        summary: String::new(),
    };
    LogEntry {
        log_id: id(term, index),
        payload: EntryPayload::Normal(Bundle(Arc::new(vec![entry]))),
    }
}

/// `TERM.INDEX SIZE` of what [`entry`] wrote; anything else is told as it is.
fn described(json: &[u8]) -> String {
    let text = String::from_utf8_lossy(json);
    let parts = text
        .strip_prefix("{\"tag\":\"")
        .and_then(|rest| rest.strip_suffix("\"}"))
        .and_then(|rest| rest.split_once("\",\"pad\":\""));
    match parts {
        Some((tag, pad)) if pad.bytes().all(|byte| byte == b'x') => format!("{tag} {}", pad.len()),
        _ => format!("spoilt {}", json.len()),
    }
}

/// What a leader would send that has these entries more.
async fn install(machine: &mut Machine, scratch: &Path, words: &[String]) -> anyhow::Result<()> {
    let mut image = (*machine.state().image()).clone();
    let entries = entries(words)?;
    let last = entries.last().context("no entries")?.log_id;
    for entry in entries {
        let EntryPayload::Normal(bundle) = entry.payload else {
            bail!("only normal entries are made here")
        };
        for entry in bundle.0.iter() {
            for write in apply(&image, entry, &LIMITS)?.writes {
                image.write(write)?;
            }
        }
    }
    image.write((
        keys::APPLIED.to_vec(),
        Some(serde_json::to_vec(&last)?.into()),
    ))?;
    let meta = meta_of(&image);
    let made = Snapshots::open(scratch, "torture")?.write(&image, &meta)?;
    let received = machine.begin_receiving_snapshot().await?;
    let mut file = std::fs::File::options().write(true).open(&received.path)?;
    // As chunks from a peer are written; a copy by the kernel would not be seen in a trace.
    file.write_all(&std::fs::read(&made.path)?)?;
    file.sync_all()?;
    machine.install_snapshot(&meta, received).await?;
    Ok(())
}

/// A long life in short: entries appended and applied in batches, a snapshot and a purge every so often.
async fn overwrite(
    machine: &mut Machine,
    log: &mut LogStore,
    words: &[String],
) -> anyhow::Result<()> {
    const SNAPSHOT_EVERY: u64 = 5000;
    const LOG_KEPT: u64 = 1000;
    let n = |at: usize| number_at(words, at);
    let (term, first, count, keys) = (n(1)?, n(2)?, n(3)?, n(4)?);
    let (size, batch) = (usize::try_from(n(5)?)?, n(6)?);
    let (mut next, mut snapshot) = (first, first);
    while next < first + count {
        let end = (next + batch).min(first + count);
        let entries: Vec<_> = (next..end)
            .map(|index| entry(term, index, index % keys, size))
            .collect();
        log.blocking_append(entries.clone()).await?;
        machine.apply(entries).await?;
        next = end;
        if next - snapshot >= SNAPSHOT_EVERY {
            machine
                .get_snapshot_builder()
                .await
                .build_snapshot()
                .await?;
            snapshot = next;
            if let Some(to) = (next - 1).checked_sub(LOG_KEPT) {
                log.purge(id(term, to)).await?;
            }
        }
    }
    Ok(())
}

async fn dump(
    machine: &mut Machine,
    log: &mut LogStore,
    snapshots: &Snapshots,
) -> anyhow::Result<()> {
    let shown = |id: Option<LogId>| {
        id.map_or_else(
            || "none".to_owned(),
            |id| format!("{} {}", id.leader_id.term, id.index),
        )
    };
    if let Some(vote) = log.read_vote().await? {
        say(&format!(
            "vote {} {} {}",
            vote.leader_id.term,
            vote.leader_id.node_id,
            u8::from(vote.committed)
        ));
    }
    let state = log.get_log_state().await?;
    say(&format!("purged {}", shown(state.last_purged_log_id)));
    say(&format!("last {}", shown(state.last_log_id)));
    say(&format!("committed {}", shown(log.read_committed().await?)));
    for entry in log.try_get_log_entries(..).await? {
        let EntryPayload::Normal(bundle) = entry.payload else {
            bail!("an entry that nobody wrote")
        };
        let put = bundle.0.first().and_then(|entry| entry.operations.first());
        let Some(operation::Operation::Put(put)) =
            put.and_then(|operation| operation.operation.as_ref())
        else {
            bail!("an operation that nobody wrote")
        };
        let name = put.key.as_ref().map_or("", |key| key.name.as_str());
        say(&format!(
            "entry {} {} {name} {}",
            entry.log_id.leader_id.term,
            entry.log_id.index,
            described(&put.json)
        ));
    }
    let image = machine.state().image();
    say(&format!("applied {}", shown(machine.applied())));
    say(&format!("revision {}", image.revision()));
    for stored in image.list("Mesh", None, None, usize::MAX) {
        say(&format!(
            "resource {} {} {}",
            stored.key.name,
            stored.modified_revision,
            described(&stored.json)
        ));
    }
    for change in image.changes_since(image.counters().history_floor)? {
        let json = change.stored.map(|stored| stored.json).unwrap_or_default();
        say(&format!(
            "change {} {} {}",
            change.revision,
            change.key.name,
            described(&json)
        ));
    }
    let newest = snapshots.newest();
    say(&format!(
        "snapshot {}",
        shown(newest.and_then(|(meta, _)| meta.last_log_id))
    ));
    Ok(())
}
