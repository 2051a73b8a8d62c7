use std::{cell::Cell, fs, io, path::Path};

use super::*;
use crate::store::{
    self,
    directory::{Node, NodeFile},
    tests as common,
};

thread_local! {
    // How many moments are still survived.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

pub(super) fn point(path: &Path) -> Result<(), RecoverError> {
    match LEFT.get().checked_sub(1) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => Err(io_error(path)(io::Error::other("crashed"))),
    }
}

/// Does `work`, which is as if it was killed after so many moments. Whether it got to its end before.
fn until_crash(
    moments: usize,
    work: impl FnOnce() -> Result<Recovered, RecoverError>,
) -> Option<Recovered> {
    LEFT.set(moments);
    let done = work();
    LEFT.set(usize::MAX);
    match done {
        Ok(recovered) => Some(recovered),
        Err(error) => {
            assert!(error.to_string().contains("crashed"), "{error}");
            None
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The data directory of a node that is alone, with 20 changes in a log that is damaged.
async fn damaged(directory: &Path) -> Node {
    let node = common::node(1, "ours");
    let mut store = store::open(directory, &node, true).unwrap();
    common::fill(&mut store, 0..20).await;
    drop(store);
    let file = NodeFile {
        node: node.clone(),
        via: Vec::new(),
    };
    directory::save(directory, &file).unwrap();
    fs::write(directory.join("sealing.key"), "stays").unwrap();
    drop(lock(directory).unwrap());
    fs::write(directory.join("store/log.redb"), "nonsense").unwrap();
    node
}

/// Runs a recovery again and again: killed after more and more moments, killed once more, and then to its end. `check`
/// looks at what is there then, and is told who the node was before.
async fn crash_at_every_moment(
    recover: impl Fn(&Path) -> Result<Recovered, RecoverError>,
    check: impl Fn(&Path, &Recovered, &Node),
) {
    for moments in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        let node = damaged(data).await;
        let first = until_crash(moments, || recover(data));
        let ended = first.is_some();
        let recovered = first.unwrap_or_else(|| {
            // Either all that was there counts, or the node does not start.
            let before = directory::load(data).ok().flatten();
            let untouched = before.is_some_and(|file| file.node == node);
            assert!(marker(data).exists() || untouched, "{moments}");
            let second = until_crash(moments / 2, || recover(data));
            second.unwrap_or_else(|| recover(data).unwrap())
        });
        check(data, &recovered, &node);
        let log = fs::read(recovered.aside.join("store/log.redb")).unwrap();
        assert_eq!(log, b"nonsense", "{moments}");
        if ended {
            // Making it, deciding, what is moved, and the two to clean up.
            assert!(moments > 8, "{moments}");
            break;
        }
    }
}

#[tokio::test]
async fn going_back_to_a_snapshot_survives_a_crash_at_every_moment() {
    let recover = |data: &Path| from_snapshot(data, false);
    crash_at_every_moment(recover, |data, recovered, node| {
        let Outcome::Rescued(rescued) = &recovered.outcome else {
            panic!("{recovered:?}")
        };
        assert_eq!((rescued.revision, rescued.last.index), (20, 19));
        let aside = recovered.aside.file_name().unwrap().to_str().unwrap();
        let mut expected: Vec<_> = rescue::NAMES.to_vec();
        assert_eq!(names(&recovered.aside), sorted(&expected));
        expected.extend([aside, "lock", "sealing.key"]);
        assert_eq!(names(data), sorted(&expected));
        let again = directory::load(data).unwrap().unwrap().node;
        assert_ne!(again.node_uuid, node.node_uuid);
        let store = store::open(data, &again, false).unwrap();
        assert_eq!(store.state.revision(), 20);
    })
    .await;
}

#[tokio::test]
async fn joining_again_survives_a_crash_at_every_moment() {
    let recover = |data: &Path| match Exchange::interrupted(data)? {
        Some(exchange) => finish(exchange, data),
        None => {
            let before = directory::load(data).unwrap();
            become_another(data, before, Newcomer::made_up(common::node(4, "ours")))
        }
    };
    crash_at_every_moment(recover, |data, recovered, _| {
        assert!(matches!(recovered.outcome, Outcome::Rejoined(4)));
        let aside = recovered.aside.file_name().unwrap().to_str().unwrap();
        let new = ["first-start", "identity", "sealing.key"];
        let expected = [&new[..], &[aside, "lock"]].concat();
        assert_eq!(names(data), sorted(&expected));
        let mut old = rescue::NAMES.to_vec();
        old.push("sealing.key");
        assert_eq!(names(&recovered.aside), sorted(&old));
        let key = fs::read_to_string(data.join("sealing.key")).unwrap();
        assert_ne!(key, "stays");
    })
    .await;
}

fn sorted(names: &[&str]) -> Vec<String> {
    let mut names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn another_clusters_node_stays_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    damaged(dir.path()).await;
    let before = names(dir.path());
    let file = directory::load(dir.path()).unwrap();
    let newcomer = Newcomer::made_up(common::node(4, "theirs"));
    let error = become_another(dir.path(), file, newcomer).unwrap_err();
    assert!(
        matches!(error, RecoverError::OtherCluster { .. }),
        "{error}"
    );
    assert_eq!(names(dir.path()), before);
}
