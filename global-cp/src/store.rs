//! Where a node keeps what Raft needs: log, vote, state machine and snapshots.
//!
//! Raft sees two objects, [`log::LogStore`] and [`machine::Machine`]; everything below them is private to this module,
//! so that another database can take sled's place.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`types`] | the types that Raft is used with |
//! | [`database`] | sled: checksummed values in pieces, batches, and syncs that reach the disk |
//! | [`writer`] | the one thread that writes the log, one sync for all that waits |
//! | [`log`] | log, vote and what was committed |
//! | [`machine`] | the state machine on disk and in memory |
//! | [`snapshot`] | snapshots as checksummed files beside the database |
//! | [`watermark`] | how far this node has ever acknowledged, kept outside the database to notice a loss |
//! | [`directory`] | whose data directory it is |
//!
//! Files below the data directory:
//!
//! | path | what | why there |
//! | --- | --- | --- |
//! | `node.json` | who the node is, checksummed | written last: with it, the directory is in use |
//! | `store/` | sled's files | |
//! | `acknowledged` | the watermark | notices a store that has lost what it held, or was put back to an older one |
//! | `snapshots/` | the two newest snapshots | a new node, or one that is far behind, gets one of them |

pub mod database;
pub mod directory;
pub mod log;
pub mod machine;
pub mod snapshot;
pub mod types;
pub mod watermark;
pub mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::state::State;
use directory::Node;

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error(transparent)]
    InUse(#[from] mesh_runtime::files::LockError),
    /// The store is damaged.
    #[error(
        "the store in {path} is damaged: {reason}. The other nodes have everything this one had: move its data directory \
         away, join again with a new token, and then remove the old node"
    )]
    Damaged {
        /// The store's directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The store has less than this node once acknowledged.
    #[error(
        "the store in {path} has lost what this node has acknowledged ({reason}): it was emptied or put back to an older \
         state. Going on could make the cluster forget accepted writes. Move its data directory away, join again with \
         a new token, and then remove the old node"
    )]
    LostWrites {
        /// The store's directory.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The directory belongs to another node or cluster.
    #[error(
        "{path} belongs to {found}, not to {wanted}: give this node its own data directory back"
    )]
    Foreign {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who was to use it.
        wanted: String,
    },
}

/// The opened store: its two faces to Raft, and the state to read.
pub struct Store {
    /// Log and vote.
    pub log: log::LogStore,
    /// The state machine.
    pub machine: machine::Machine,
    /// What the state machine holds.
    pub state: State,
    /// Where received snapshots go.
    pub snapshots: snapshot::Snapshots,
    /// Says when the database is closed.
    pub closed: database::Closed,
}

/// Opens the store of `node` below `data_dir`, or makes it where `create` is set and there is none. Reads and verifies
/// everything in it. Blocks.
///
/// # Errors
/// Where it is damaged, not this node's, or has lost acknowledged writes.
pub fn open(data_dir: &Path, node: &Node, create: bool) -> Result<Store, OpenError> {
    let path = data_dir.join("store");
    let database = database::Database::open(&path, node, create)?;
    let closed = database.closed();
    let mark_path = data_dir.join("acknowledged");
    let log = log::LogStore::open(database.clone(), &mark_path, create)?;
    let snapshots = snapshot::Snapshots::open(&data_dir.join("snapshots"), &node.cluster_id)?;
    let machine = machine::Machine::open(database, snapshots.clone(), log.clone())?;
    let state = machine.state().clone();
    log.check_against(machine.applied())?;
    Ok(Store {
        log,
        machine,
        state,
        snapshots,
        closed,
    })
}
