//! Makes a store anew from what can still be read of a damaged one, for a node that is alone and so has nobody to ask.
//!
//! The newest whole one counts of snapshot and state machine, and on top of it whatever the log still gives. The result
//! is told as another history and another disk: what was acknowledged and is not in it is lost, and whoever has heard of
//! the old one (zones, or nodes that this one was not alone with after all) must not take the two for one.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use openraft::Membership;
use serde::{Deserialize, Serialize};

use super::{
    ENGINES, OpenError,
    database::{Database, Hold, make_directory},
    directory::{self, Node, NodeFile},
    log::{self, LogStore},
    machine,
    snapshot::{SnapshotError, Snapshots, meta_of},
    types::{LogId, Peer, StoredMembership, Vote},
    watermark::{self, Mark},
};
use crate::state::{
    apply::LIMITS,
    image::{BadRecord, HISTORY_ID, Image},
    keys,
};

/// What takes the place of those in a data directory.
pub const NAMES: [&str; 4] = ["store", "snapshots", "acknowledged", "node.json"];

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rescued {
    /// The last log entry that is there again.
    pub last: LogId,
    /// The last one that was acknowledged, where that is known.
    pub acknowledged: Option<LogId>,
    /// The newest revision that is there again.
    pub revision: u64,
}

impl fmt::Display for Rescued {
    /// What is there again, and what may be lost.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "back at revision {} (log entry {}), as a new history: ",
            self.revision, self.last.index
        )?;
        match self.acknowledged {
            Some(acknowledged) if acknowledged > self.last => write!(
                f,
                "log entries {} to {} had been acknowledged and are LOST",
                self.last.index + 1,
                acknowledged.index
            ),
            Some(_) => f.write_str("nothing that is known to have been acknowledged is lost"),
            None => f.write_str(
                "what was acknowledged after it is not known, and lost if there was anything",
            ),
        }
    }
}

/// Why a store is not made anew.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// The system refuses, or it is another node's.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Nothing whole is left.
    #[error(
        "neither a snapshot nor the state machine nor the log below {0} can be read: nothing is left to go back to on this \
         machine"
    )]
    Nothing(PathBuf),
    /// There were other nodes.
    #[error(
        "this node is not alone: nodes {others:?} belong to the cluster too and have what it had. Use `meshctl global \
         recover`. Only if all of them are lost for good, and none of them will ever run again: add --alone"
    )]
    Others {
        /// Their ids.
        others: Vec<u64>,
    },
    /// What is left can not be applied.
    #[error("what is left of the log can not be applied: {0}")]
    Apply(String),
    /// The new snapshot can not be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// What is left is of another version.
    #[error(transparent)]
    Record(#[from] BadRecord),
    /// A value can not be encoded.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

/// What is left of a store: enough to make it anew.
#[derive(Debug)]
pub struct Left {
    node: Node,
    image: Image,
    last: LogId,
    vote: Vote,
    acknowledged: Option<LogId>,
}

/// Finds what is left of the store below `data_dir`. With `alone`, other nodes are forgotten. Blocks.
///
/// # Errors
/// Where nothing is left, or there are other nodes.
pub fn left(data_dir: &Path, node: &Node, alone: bool) -> Result<Left, RescueError> {
    let store = data_dir.join("store");
    make_directory(&store)?;
    let hold = Hold::take(&store)?;
    let mark = watermark::read(&data_dir.join("acknowledged")).unwrap_or_default();
    let (mut image, log_vote) = what_is_left(data_dir, node, &hold)?;
    let Some(last) = meta_of(&image).last_log_id else {
        return Err(RescueError::Nothing(data_dir.to_owned()));
    };
    let others: Vec<u64> = meta_of(&image)
        .last_membership
        .nodes()
        .map(|(id, _)| *id)
        .filter(|id| *id != node.node_id)
        .collect();
    if !others.is_empty() && !alone {
        return Err(RescueError::Others { others });
    }
    let node = Node {
        node_uuid: uuid::Uuid::new_v4().to_string(),
        ..node.clone()
    };
    begin_another_history(&mut image, &node)?;
    // Higher than any vote that was given before.
    let term = [Some(last.leader_id.term)]
        .into_iter()
        .chain([mark.vote, log_vote].map(|vote| vote.map(|vote| vote.leader_id.term)))
        .flatten()
        .max()
        .unwrap_or_default();
    let vote = Vote::new(term + 1, node.node_id);
    Ok(Left {
        node,
        image,
        last,
        vote,
        acknowledged: mark.last,
    })
}

impl Left {
    /// Makes a store of it below `data_dir`, an empty directory, and what else belongs to it: [`NAMES`]. Blocks.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn write(self, data_dir: &Path) -> Result<Rescued, RescueError> {
        let store = data_dir.join("store");
        make_directory(&store)?;
        let hold = Hold::take(&store)?;
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        let database = Database::open(ENGINES.log, &super::log_path(&store, ENGINES.log), &hold)?;
        LogStore::begin_behind(&database, &self.node, self.last, self.vote)
            .map_err(io_error(database.path()))?;
        let snapshots = Snapshots::open(&data_dir.join("snapshots"), &self.node.cluster_id)?;
        snapshots.write(&self.image, &meta_of(&self.image))?;
        let mark = Mark {
            last: Some(self.last),
            vote: Some(self.vote),
        };
        let mark_path = data_dir.join("acknowledged");
        watermark::make(&mark_path, mark).map_err(io_error(&mark_path))?;
        directory::save(
            data_dir,
            &NodeFile {
                node: self.node,
                via: Vec::new(),
            },
        )?;
        Ok(Rescued {
            last: self.last,
            acknowledged: self.acknowledged,
            revision: self.image.revision(),
        })
    }
}

/// The newest state that can be read, and the newest vote.
fn what_is_left(
    data_dir: &Path,
    node: &Node,
    hold: &Hold,
) -> Result<(Image, Option<Vote>), RescueError> {
    let snapshots = Snapshots::open(&data_dir.join("snapshots"), &node.cluster_id)?;
    let snapshot = snapshots
        .newest()
        .and_then(|(_, file)| snapshots.read(&file).ok())
        .map(|(_, image)| image);
    let path = super::state_path(&data_dir.join("store"), ENGINES.state);
    let kept = path
        .exists()
        .then(|| machine::read(ENGINES.state, &path, hold).ok())
        .flatten()
        .map(|(_, image)| image);
    let newest = [snapshot, kept]
        .into_iter()
        .flatten()
        .max_by_key(|image| meta_of(image).last_log_id);
    let path = super::log_path(&data_dir.join("store"), ENGINES.log);
    let log = path
        .exists()
        .then(|| log::salvage(ENGINES.log, &path, hold, node).ok())
        .flatten();
    let Some(log) = log else {
        return Ok((newest.unwrap_or_default(), None));
    };
    let image = newest.unwrap_or_default();
    let applied = meta_of(&image).last_log_id;
    if log.purged > applied {
        return Ok((image, log.vote));
    }
    let open = log
        .entries
        .into_iter()
        .filter(|entry| Some(entry.log_id) > applied)
        .collect();
    let image = machine::applied(image, open, &LIMITS)
        .map_err(|failure| RescueError::Apply(failure.to_string()))?;
    Ok((image, log.vote))
}

/// Marks the image as another history, whose only member is `node`.
fn begin_another_history(image: &mut Image, node: &Node) -> Result<(), RescueError> {
    let before = meta_of(image).last_membership;
    let peer = Peer {
        node_uuid: node.node_uuid.clone(),
        ..before
            .membership()
            .get_node(&node.node_id)
            .cloned()
            .unwrap_or_default()
    };
    let voters = std::collections::BTreeSet::from([node.node_id]);
    let nodes = std::collections::BTreeMap::from([(node.node_id, peer)]);
    let membership = StoredMembership::new(*before.log_id(), Membership::new(vec![voters], nodes));
    let json = Bytes::from(serde_json::to_vec(&membership)?);
    image.write((keys::MEMBERSHIP.to_vec(), Some(json)))?;
    let history = uuid::Uuid::new_v4().to_string();
    image.write((keys::system(HISTORY_ID), Some(Bytes::from(history))))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::store::{self, tests as common};

    /// A second directory that takes the place of the first.
    fn rescue(dir: &Path, node: &Node, alone: bool) -> Result<(TempDir, Rescued), RescueError> {
        let new = tempfile::tempdir().unwrap();
        let rescued = left(dir, node, alone)?.write(new.path())?;
        Ok((new, rescued))
    }

    #[tokio::test]
    async fn what_a_damaged_log_had_applied_is_there_again_as_another_history() {
        let dir = tempfile::tempdir().unwrap();
        let node = common::node(1, "ours");
        let mut store = store::open(dir.path(), &node, true).unwrap();
        common::fill(&mut store, 0..20).await;
        drop(store);
        let log = dir.path().join("store/log.redb");
        fs::write(&log, b"nonsense").unwrap();
        assert!(store::open(dir.path(), &node, false).is_err());

        let (new, rescued) = rescue(dir.path(), &node, false).unwrap();
        assert_eq!(rescued.last.index, 19);
        assert_eq!(rescued.acknowledged, Some(rescued.last));
        assert_eq!(fs::read(&log).unwrap(), b"nonsense");
        let again = directory::load(new.path()).unwrap().unwrap().node;
        assert_ne!(again.node_uuid, node.node_uuid);
        let store = store::open(new.path(), &again, false).unwrap();
        let image = store.state.image();
        assert_eq!(image.revision(), 20);
        assert!(!image.history_id().is_empty());
        assert_eq!(store.log.purged(), Some(rescued.last));
    }

    #[tokio::test]
    async fn where_the_state_is_lost_too_snapshot_and_log_give_what_they_have() {
        use openraft::{RaftSnapshotBuilder as _, storage::RaftStateMachine as _};
        let dir = tempfile::tempdir().unwrap();
        let node = common::node(1, "ours");
        let mut store = store::open(dir.path(), &node, true).unwrap();
        common::fill(&mut store, 0..10).await;
        let mut builder = store.machine.get_snapshot_builder().await;
        builder.build_snapshot().await.unwrap();
        common::fill(&mut store, 10..20).await;
        drop(store);
        fs::remove_file(dir.path().join("store/state.redb")).unwrap();
        fs::remove_file(dir.path().join("acknowledged")).unwrap();
        let (_, rescued) = rescue(dir.path(), &node, false).unwrap();
        assert_eq!(rescued.last.index, 19);
        assert_eq!(rescued.revision, 20);
        assert_eq!(rescued.acknowledged, None);
    }

    #[test]
    fn nothing_is_made_of_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let error = rescue(dir.path(), &common::node(1, "ours"), true).unwrap_err();
        assert!(matches!(error, RescueError::Nothing(_)), "{error}");
    }
}
