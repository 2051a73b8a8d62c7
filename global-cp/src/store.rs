//! Where a node keeps what Raft needs: log, vote, state machine and snapshots.
//!
//! Raft sees two objects, [`log::LogStore`] and [`machine::Machine`]; everything below them is private to this module,
//! so that another database can take redb's place.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`types`] | the types that Raft is used with |
//! | [`database`] | an ordered map on disk, changed by batches |
//! | [`writer`] | the one thread that writes the log, one sync for all that waits |
//! | [`log`] | log, vote and what was committed |
//! | [`machine`] | the state machine on disk and in memory |
//! | [`snapshot`] | snapshots as checksummed files beside the database |
//! | [`watermark`] | how far this node has ever acknowledged, kept outside the database to notice a loss |
//! | [`directory`] | whose data directory it is |
//! | [`rescue`] | a store made anew from what a damaged one still gives |
//!
//! Files below the data directory:
//!
//! | path | what | why there |
//! | --- | --- | --- |
//! | `node.json` | who the node is, checksummed | written last: with it, the directory is in use |
//! | `store/log.redb` | log and vote | synced before anything is acknowledged |
//! | `store/state.redb` | the state machine | synced now and then: it is made anew from snapshot and log where it is not whole |
//! | `acknowledged` | the watermark | notices a log that has lost what it held, or was put back to an older one |
//! | `snapshots/` | the two newest snapshots | what the state machine is made from; a new node, or one that is far behind, gets one |

pub mod database;
pub mod directory;
pub mod log;
pub mod machine;
pub mod rescue;
pub mod snapshot;
pub mod types;
pub mod watermark;
pub mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};

use crate::state::State;
use database::{Database, Hold, Kind, redb::Upkeep};
use directory::Node;

/// What helps a node whose data is damaged or gone.
pub const REMEDY: &str = "The other nodes have what it had: `meshctl global recover`, run on this machine, lets it join \
                          them as a new node. Where there is no other node, `global-cp recover --from-snapshot` goes \
                          back to its newest snapshot";

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
    #[error("{path} is damaged: {reason}. {REMEDY}")]
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The store has less than this node once acknowledged.
    #[error(
        "{path} has lost what this node has acknowledged ({reason}): it was emptied or put back to an older state. Going \
         on could make the cluster forget accepted writes. {REMEDY}"
    )]
    LostWrites {
        /// The file or directory.
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

/// Which engine holds what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Engines {
    /// Log and vote.
    pub log: Kind,
    /// The state machine.
    pub state: Kind,
}

/// The engines in use. The others are for tests.
pub const ENGINES: Engines = Engines {
    log: Kind::Redb(Upkeep::USUAL),
    state: Kind::Redb(Upkeep::USUAL),
};

/// Opens the store of `node` below `data_dir`, or makes it where `create` is set and there is none. Reads and verifies
/// everything in it. Blocks.
///
/// # Errors
/// Where it is damaged, not this node's, or has lost acknowledged writes.
pub fn open(data_dir: &Path, node: &Node, create: bool) -> Result<Store, OpenError> {
    open_with(ENGINES, data_dir, node, create)
}

/// Like [`open`], with given engines.
///
/// # Errors
/// As for [`open`].
pub fn open_with(
    engines: Engines,
    data_dir: &Path,
    node: &Node,
    create: bool,
) -> Result<Store, OpenError> {
    let path = data_dir.join("store");
    let mark_path = data_dir.join("acknowledged");
    let log_path = log_path(&path, engines.log);
    let state_path = state_path(&path, engines.state);
    if !log_path.exists() && !create {
        return Err(OpenError::LostWrites {
            path: log_path,
            reason: "there is no log".to_owned(),
        });
    }
    database::make_directory(&path)?;
    let hold = Hold::take(&path)?;
    if create && !watermark::is_used(&mark_path) {
        // What an interrupted first start has left: nothing in it was acknowledged.
        for left in [&mark_path, &log_path, &state_path] {
            remove(left)?;
        }
    }
    let log = Database::open(engines.log, &log_path, &hold)?;
    let log = log::LogStore::open(log, node, &mark_path, create)?;
    let snapshots = snapshot::Snapshots::open(&data_dir.join("snapshots"), &node.cluster_id)?;
    let machine = machine::Machine::open(
        engines.state,
        &state_path,
        &hold,
        snapshots.clone(),
        log.clone(),
    )?;
    let state = machine.state().clone();
    Ok(Store {
        log,
        machine,
        state,
        snapshots,
        closed: hold.closed(),
    })
}

fn log_path(store: &Path, kind: Kind) -> PathBuf {
    store.join(match kind {
        Kind::Redb(_) => "log.redb",
        Kind::Sled => "log",
    })
}

fn state_path(store: &Path, kind: Kind) -> PathBuf {
    store.join(match kind {
        Kind::Redb(_) => "state.redb",
        Kind::Sled => "state",
    })
}

fn remove(path: &Path) -> Result<(), OpenError> {
    let removed = if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match removed {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(OpenError::Io {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
