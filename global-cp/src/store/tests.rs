//! The store as a whole: openraft's own suite, and what a crash, a flipped bit or a wrong disk does.

use std::{fs, path::Path, sync::Arc};

use mesh_proto::{
    raft::{Actor, Entry, Operation, Put, operation},
    zone::ResourceKey,
};
use openraft::{
    EntryPayload, RaftLogReader as _, RaftSnapshotBuilder as _,
    storage::{RaftLogStorage, RaftLogStorageExt as _, RaftStateMachine},
    testing::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use super::{
    Engines, OpenError, Store,
    database::{Batch, Database, Hold, Kind, redb::Upkeep},
    directory::Node,
    log::LogStore,
    machine::Machine,
    types::{Bundle, LogEntry, LogId, StoreError, TypeConfig, Vote},
};
use crate::state::apply::ENTRY_VERSION;

pub(crate) fn node(id: u64, cluster: &str) -> Node {
    Node {
        node_uuid: format!("disk-{id}"),
        node_id: id,
        cluster_id: cluster.to_owned(),
    }
}

fn open(dir: &Path, create: bool) -> Result<Store, OpenError> {
    super::open(dir, &node(1, "ours"), create)
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(term, 1), index)
}

fn put(term: u64, index: u64, name: &str, json: &[u8]) -> LogEntry {
    let entry = Entry {
        version: ENTRY_VERSION,
        request_id: format!("request-{index}"),
        actor: Some(Actor {
            name: "system".to_owned(),
            address: String::new(),
        }),
        time_ms: 1000 + index,
        operations: vec![Operation {
            operation: Some(operation::Operation::Put(Put {
                key: Some(ResourceKey::global("Mesh", "", name)),
                json: json.to_vec(),
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

fn name(index: u64) -> String {
    format!("mesh-{index}")
}

/// Appends and applies entries `range`, one resource each.
pub(crate) async fn fill(store: &mut Store, range: std::ops::Range<u64>) {
    for index in range {
        let entry = put(
            1,
            index,
            &name(index),
            format!("{{\"n\":{index}}}").as_bytes(),
        );
        store.log.blocking_append([entry.clone()]).await.unwrap();
        store.machine.apply([entry]).await.unwrap();
    }
}

/// Every way to keep a store; the first is the one in use.
const ALL: [Engines; 3] = [
    super::ENGINES,
    Engines {
        log: Kind::Sled,
        state: Kind::Sled,
    },
    Engines {
        log: Kind::Redb(Upkeep::USUAL),
        state: Kind::Sled,
    },
];

struct Builder(Engines);

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StoreError> {
        let dir = tempfile::tempdir().unwrap();
        let store = super::open_with(self.0, dir.path(), &node(1, "ours"), true).unwrap();
        Ok((dir, store.log, store.machine))
    }
}

#[test]
fn openrafts_own_suite_passes_with_every_engine() {
    // Most of the time is spent waiting for the disk.
    std::thread::scope(|scope| {
        for engines in ALL {
            scope.spawn(move || Suite::test_all(Builder(engines)).unwrap());
        }
    });
}

/// What log and state machine rely on, whichever engine they stand on.
#[test]
fn every_engine_is_an_ordered_map_changed_by_batches() {
    for kind in [Kind::Redb(Upkeep::USUAL), Kind::Sled] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let hold = Hold::take(dir.path()).unwrap();
        let read = |database: &Database| -> Vec<(String, usize)> {
            let all = database.read_all().unwrap();
            all.into_iter()
                .map(|(key, value)| (String::from_utf8(key).unwrap(), value.len()))
                .collect()
        };
        let value = |length: usize| bytes::Bytes::from(vec![b'x'; length]);
        {
            let database = Database::open(kind, &path, &hold).unwrap();
            let mut first = Batch::default();
            for (key, length) in [("e1", 10), ("e2", 9000), ("e3", 0), ("long", 70_000)] {
                first.put(key.as_bytes(), value(length), None);
            }
            let mut second = Batch::default();
            second.put(b"e2", value(5), Some(9000));
            second.remove(b"e3", 0);
            database.write(&[first, second], true).unwrap();
            assert_eq!(database.read(b"e2").unwrap(), Some(value(5)), "{kind:?}");
            assert_eq!(database.read(b"e3").unwrap(), None);
            let mut scanned = Vec::new();
            let range: (&[u8], &[u8]) = (b"e1", b"e9");
            database
                .scan(range, |key, value| {
                    scanned.push((key.to_vec(), value.len()));
                    Ok(true)
                })
                .unwrap();
            assert_eq!(scanned, [(b"e1".to_vec(), 10), (b"e2".to_vec(), 5)]);
            let mut third = Batch::default();
            third.remove_range(b"e1".to_vec(), b"e2".to_vec());
            database.write(&[third], false).unwrap();
        }
        let database = Database::open(kind, &path, &hold).unwrap();
        assert_eq!(
            read(&database),
            [("e2".to_owned(), 5), ("long".to_owned(), 70_000)],
            "{kind:?}"
        );
        let records = [(b"only".to_vec(), value(3))];
        database
            .replace(records.iter().map(|(key, value)| (key.as_slice(), value)))
            .unwrap();
        drop(database);
        let database = Database::open(kind, &path, &hold).unwrap();
        assert_eq!(read(&database), [("only".to_owned(), 3)], "{kind:?}");
    }
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    for engines in ALL {
        let dir = tempfile::tempdir().unwrap();
        let owner = node(1, "ours");
        let mut store = super::open_with(engines, dir.path(), &owner, true).unwrap();
        let vote = Vote::new_committed(1, 1);
        store.log.save_vote(&vote).await.unwrap();
        fill(&mut store, 0..50).await;
        // As big as a page of sled's never gets, so that it is cut in pieces.
        let big = vec![b'x'; 300_000];
        let entry = put(1, 50, "big", &big);
        store.log.blocking_append([entry.clone()]).await.unwrap();
        store.machine.apply([entry.clone()]).await.unwrap();
        if engines.state == Kind::Sled {
            let blobs = fs::read_dir(dir.path().join("store/state/blobs"));
            assert_eq!(blobs.unwrap().count(), 0);
        }
        drop(store);

        let mut store = super::open_with(engines, dir.path(), &owner, false).unwrap();
        assert_eq!(store.log.read_vote().await.unwrap(), Some(vote));
        assert_eq!(store.state.revision(), 51, "{engines:?}");
        assert_eq!(
            store.machine.applied_state().await.unwrap().0,
            Some(id(1, 50))
        );
        let stored = store
            .state
            .get(&ResourceKey::global("Mesh", "", "big"))
            .unwrap();
        assert_eq!(stored.json, big);
        assert_eq!(
            store.log.try_get_log_entries(50..51).await.unwrap(),
            [entry]
        );
    }
}

#[tokio::test]
async fn a_shorter_value_leaves_nothing_of_the_longer_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    for (index, length) in [20_000, 10, 5_000, 0].into_iter().enumerate() {
        let entry = put(1, index as u64, "a", &vec![b'x'; length]);
        store.log.blocking_append([entry.clone()]).await.unwrap();
        store.machine.apply([entry]).await.unwrap();
        drop(store);
        store = open(dir.path(), false).unwrap();
        let stored = store.state.get(&ResourceKey::global("Mesh", "", "a"));
        assert_eq!(stored.unwrap().json.len(), length);
    }
}

#[tokio::test]
async fn a_state_machine_that_lags_behind_the_log_catches_up_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    fill(&mut store, 0..10).await;
    for index in 10..20 {
        let entry = put(1, index, &name(index), b"{}");
        store.log.blocking_append([entry]).await.unwrap();
    }
    store.log.save_committed(Some(id(1, 19))).await.unwrap();
    drop(store);
    let store = open(dir.path(), false).unwrap();
    assert_eq!(store.state.revision(), 10);
    let (mut log, mut machine, state) = (store.log, store.machine, store.state);
    openraft::StorageHelper::new(&mut log, &mut machine)
        .get_initial_state()
        .await
        .unwrap();
    assert_eq!(state.revision(), 20);
}

#[tokio::test]
async fn truncated_and_purged_entries_stay_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    fill(&mut store, 0..30).await;
    store.log.truncate(id(1, 25)).await.unwrap();
    store.log.purge(id(1, 9)).await.unwrap();
    for _ in 0..2 {
        let log = store.log.get_log_state().await.unwrap();
        assert_eq!(log.last_log_id, Some(id(1, 24)));
        assert_eq!(log.last_purged_log_id, Some(id(1, 9)));
        let left = store.log.try_get_log_entries(..).await.unwrap();
        assert_eq!(left.first().unwrap().log_id, id(1, 10));
        assert_eq!(left.last().unwrap().log_id, id(1, 24));
        drop(store);
        store = open(dir.path(), false).unwrap();
    }
}

#[tokio::test]
async fn a_snapshot_holds_what_was_there_when_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    fill(&mut store, 0..100).await;
    let mut builder = store.machine.get_snapshot_builder().await;
    fill(&mut store, 100..200).await;
    let snapshot = builder.build_snapshot().await.unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(id(1, 99)));

    let other = tempfile::tempdir().unwrap();
    let mut follower = super::open(other.path(), &node(2, "ours"), true).unwrap();
    fill(&mut follower, 0..3).await;
    let copy = other.path().join("snapshots/received.part");
    fs::copy(&snapshot.snapshot.path, &copy).unwrap();
    follower
        .machine
        .install_snapshot(
            &snapshot.meta,
            Box::new(super::snapshot::SnapshotFile { path: copy }),
        )
        .await
        .unwrap();
    assert_eq!(follower.state.revision(), 100);
    follower.log.purge(id(1, 99)).await.unwrap();
    drop(follower);
    let mut follower = super::open(other.path(), &node(2, "ours"), false).unwrap();
    assert_eq!(follower.state.revision(), 100);
    assert_eq!(follower.state.list("Mesh", None, None, 1000).len(), 100);
    let current = follower.machine.get_current_snapshot().await.unwrap();
    assert_eq!(current.unwrap().meta.last_log_id, Some(id(1, 99)));
}

#[tokio::test]
async fn a_damaged_snapshot_gives_way_to_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    fill(&mut store, 0..10).await;
    let mut builder = store.machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap();
    fill(&mut store, 10..20).await;
    let mut builder = store.machine.get_snapshot_builder().await;
    let newest = builder.build_snapshot().await.unwrap();
    let path = newest.snapshot.path;
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    drop(store);

    let mut store = open(dir.path(), false).unwrap();
    let current = store.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta.last_log_id, Some(id(1, 9)));
    assert!(path.with_extension("snapshot.damaged").exists());
    // Where the log no longer reaches back to it, it is made anew.
    store.log.purge(id(1, 15)).await.unwrap();
    let current = store.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta.last_log_id, Some(id(1, 19)));
}

#[tokio::test]
async fn a_snapshot_of_another_cluster_is_refused() {
    let theirs = tempfile::tempdir().unwrap();
    let mut foreign = super::open(theirs.path(), &node(1, "theirs"), true).unwrap();
    fill(&mut foreign, 0..5).await;
    let snapshot = foreign
        .machine
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();

    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    let error = store
        .machine
        .install_snapshot(&snapshot.meta, snapshot.snapshot.clone())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("cluster theirs"), "{error}");
    assert_eq!(store.state.revision(), 0);
    drop(store);
    let name = snapshot.snapshot.path.file_name().unwrap();
    fs::copy(
        &snapshot.snapshot.path,
        dir.path().join("snapshots").join(name),
    )
    .unwrap();
    assert!(matches!(
        open(dir.path(), false),
        Err(OpenError::Foreign { .. })
    ));
}

#[tokio::test]
async fn a_store_under_another_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), true).unwrap());
    for other in [node(2, "ours"), node(1, "theirs")] {
        let error = super::open(dir.path(), &other, false).err().unwrap();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    }
    open(dir.path(), false).unwrap();
}

#[tokio::test]
async fn a_store_that_lost_its_files_is_not_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    fill(&mut store, 0..5).await;
    drop(store);
    fs::remove_dir_all(dir.path().join("store")).unwrap();
    for create in [false, true] {
        let error = open(dir.path(), create).err().unwrap();
        assert!(matches!(error, OpenError::LostWrites { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_store_put_back_to_an_older_copy_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    fill(&mut store, 0..5).await;
    drop(store);
    let copy = tempfile::tempdir().unwrap();
    copy_files(&dir.path().join("store"), copy.path());
    let mut store = open(dir.path(), false).unwrap();
    fill(&mut store, 5..10).await;
    drop(store);
    fs::remove_dir_all(dir.path().join("store")).unwrap();
    copy_files(copy.path(), &dir.path().join("store"));
    let error = open(dir.path(), false).err().unwrap();
    assert!(matches!(error, OpenError::LostWrites { .. }), "{error}");
    assert!(
        error.to_string().contains("meshctl global recover"),
        "{error}"
    );
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.path().is_dir() {
            copy_files(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path(), true).unwrap();
    let error = open(dir.path(), false).err().unwrap();
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    assert!(error.to_string().contains("another process"), "{error}");
}

/// Flips bits and cuts the end of every file of the store, one at a time: the store either opens with all that was
/// acknowledged, or says which store is damaged. It never panics and never opens with less.
#[tokio::test]
async fn damage_anywhere_is_noticed_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    fill(&mut store, 0..40).await;
    drop(store);
    let good = tempfile::tempdir().unwrap();
    copy_files(dir.path(), good.path());
    let mut files = Vec::new();
    list_files(good.path(), &mut files);
    for file in files {
        let relative = file.strip_prefix(good.path()).unwrap();
        let whole = fs::read(&file).unwrap();
        if whole.is_empty() {
            continue;
        }
        // Everywhere in a small file, at some places of a big one, of which most is not written yet.
        let used = whole.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let step = (used / 48).max(1);
        let mut cases: Vec<Vec<u8>> = (0..used)
            .step_by(step)
            .map(|at| {
                let mut flipped = whole.clone();
                flipped[at] ^= 0x10;
                flipped
            })
            .collect();
        cases.push(whole[..used / 2].to_vec());
        cases.push(Vec::new());
        for (case, bytes) in cases.into_iter().enumerate() {
            let trial = tempfile::tempdir().unwrap();
            copy_files(good.path(), trial.path());
            fs::write(trial.path().join(relative), bytes).unwrap();
            match open(trial.path(), false) {
                Ok(store) => {
                    let last = store.log.clone().get_log_state().await.unwrap().last_log_id;
                    assert_eq!(last, Some(id(1, 39)), "{} case {case}", relative.display());
                }
                Err(error) => assert!(
                    error.to_string().contains(trial.path().to_str().unwrap()),
                    "{error}"
                ),
            }
        }
    }
}

fn list_files(directory: &Path, files: &mut Vec<std::path::PathBuf>) {
    for file in fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            list_files(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// The state machine is derived: whatever becomes of its database, it is the same again.
#[tokio::test]
async fn a_state_machine_that_is_lost_or_damaged_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    fill(&mut store, 0..20).await;
    let mut builder = store.machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap();
    store.log.purge(id(1, 15)).await.unwrap();
    fill(&mut store, 20..30).await;
    store.log.save_committed(Some(id(1, 29))).await.unwrap();
    store.log.save_vote(&Vote::new(2, 1)).await.unwrap();
    drop(store);
    let state = dir.path().join("store/state.redb");
    for damage in ["removed", "cut", "emptied"] {
        match damage {
            "removed" => fs::remove_file(&state).unwrap(),
            "cut" => {
                let file = fs::File::options().write(true).open(&state);
                file.unwrap().set_len(100).unwrap();
            }
            _ => fs::write(&state, b"").unwrap(),
        }
        let store = open(dir.path(), false).unwrap();
        let (mut log, mut machine, state) = (store.log, store.machine, store.state);
        openraft::StorageHelper::new(&mut log, &mut machine)
            .get_initial_state()
            .await
            .unwrap();
        assert_eq!(state.revision(), 30, "{damage}");
        assert_eq!(state.list("Mesh", None, None, 1000).len(), 30);
    }
}

/// Without the snapshot there is nothing to make it from.
#[tokio::test]
async fn a_state_machine_that_can_not_be_made_anew_is_not_begun_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    fill(&mut store, 0..20).await;
    let mut builder = store.machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap();
    store.log.purge(id(1, 15)).await.unwrap();
    drop(store);
    fs::remove_file(dir.path().join("store/state.redb")).unwrap();
    fs::remove_dir_all(dir.path().join("snapshots")).unwrap();
    let error = open(dir.path(), false).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

/// A record that is old but whole: only the sum over all of them can tell.
#[tokio::test]
async fn a_lost_change_of_one_record_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    fill(&mut store, 0..10).await;
    store.log.save_committed(Some(id(1, 9))).await.unwrap();
    store.log.save_vote(&Vote::new(2, 1)).await.unwrap();
    drop(store);
    {
        let path = dir.path().join("store");
        let hold = Hold::take(&path).unwrap();
        let path = path.join("state.redb");
        let database = Database::open(super::ENGINES.state, &path, &hold).unwrap();
        let key = crate::state::keys::resource(&ResourceKey::global("Mesh", "", &name(3)));
        let length = database.read(&key).unwrap().unwrap().len();
        let mut batch = Batch::default();
        batch.remove(&key, length);
        database.write(&[batch], true).unwrap();
    }
    let store = open(dir.path(), false).unwrap();
    assert!(dir.path().join("store/state.redb.damaged").exists());
    let (mut log, mut machine, state) = (store.log, store.machine, store.state);
    openraft::StorageHelper::new(&mut log, &mut machine)
        .get_initial_state()
        .await
        .unwrap();
    assert_eq!(state.list("Mesh", None, None, 1000).len(), 10);
}

/// What the store takes must level off when what lives does.
#[tokio::test]
async fn disk_use_levels_off_under_overwrites() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), true).unwrap();
    store.machine.limits = crate::state::apply::Limits {
        history_count: 3000,
        requests_always: 1000,
        requests_at_most: 1000,
        audit_count: 2000,
        ..crate::state::apply::LIMITS
    };
    let mut sizes = Vec::new();
    let mut next = 0;
    for _ in 0..14 {
        for _ in 0..25 {
            let entries: Vec<_> = (next..next + 50)
                .map(|index| {
                    let json = format!("{index}{}", "x".repeat(500));
                    put(1, index, &name(index % 1000), json.as_bytes())
                })
                .collect();
            next += 50;
            store.log.blocking_append(entries.clone()).await.unwrap();
            store.machine.apply(entries).await.unwrap();
        }
        let mut builder = store.machine.get_snapshot_builder().await;
        builder.build_snapshot().await.unwrap();
        store.log.purge(id(1, next - 1000)).await.unwrap();
        let mut files = Vec::new();
        list_files(dir.path(), &mut files);
        let size: u64 = files
            .iter()
            .map(|file| fs::metadata(file).unwrap().len())
            .sum();
        sizes.push(size >> 20);
    }
    let (early, late) = (sizes[6], sizes[13]);
    assert!(late <= 2 * early, "MiB after every 1250 writes: {sizes:?}");
}
