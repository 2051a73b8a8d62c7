//! Whose data directory it is.
//!
//! A node's identity lives on its data disk, twice: in `node.json`, and inside the store. They must agree, so that a
//! store can not be put under another node's name, and a node whose store is gone does not begin a new one under its old
//! id: its peers still count on what the old one had acknowledged.

use std::path::{Path, PathBuf};

use mesh_runtime::files::{self, ReadError};
use serde::{Deserialize, Serialize};

use super::{OpenError, REMEDY};

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Made on the data disk at the first start.
    pub node_uuid: String,
    /// Given by the cluster; 1 for its first node. Never given twice.
    pub node_id: u64,
    /// The cluster it belongs to.
    pub cluster_id: String,
}

/// What `node.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFile {
    /// Who the node is.
    #[serde(flatten)]
    pub node: Node,
    /// Raft addresses of nodes that were members when it joined. Empty for the first node of a cluster.
    #[serde(default)]
    pub via: Vec<String>,
}

/// Why a data directory is not used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// `node.json` can not be read.
    #[error("{0}. {REMEDY}")]
    Read(#[from] ReadError),
    /// `node.json` is whole, but of another format.
    #[error("{path}: {reason}; it was written by another version of this program")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is no `node.json`, but something that only a node that has run leaves behind.
    #[error(
        "{data_dir} has {found} but no node.json: this node has run before and part of its data is gone. {REMEDY}"
    )]
    Incomplete {
        /// The data directory.
        data_dir: PathBuf,
        /// What is there.
        found: String,
    },
}

/// The file that says who the node is.
#[must_use]
pub fn node_file(data_dir: &Path) -> PathBuf {
    data_dir.join("node.json")
}

/// Who the node of this data directory is. `None`: the directory has never been used, or not got as far as being part
/// of a cluster.
///
/// # Errors
/// Where the file is damaged, or missing although the directory was in use.
pub fn load(data_dir: &Path) -> Result<Option<NodeFile>, DirectoryError> {
    let path = node_file(data_dir);
    match files::read_checksummed(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| DirectoryError::Format {
                    path,
                    reason: error.to_string(),
                })
        }
        Err(ReadError::Missing(_)) => {
            // The watermark is written when the store is whole, just before node.json.
            let mark = super::watermark::is_used(&data_dir.join("acknowledged"));
            if mark {
                return Err(DirectoryError::Incomplete {
                    data_dir: data_dir.to_owned(),
                    found: "a store in use".to_owned(),
                });
            }
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes who the node is. From now on the directory is in use.
///
/// # Errors
/// Where the system refuses.
pub fn save(data_dir: &Path, node: &NodeFile) -> Result<(), OpenError> {
    let path = node_file(data_dir);
    let json = serde_json::to_vec_pretty(node).map_err(|error| OpenError::Io {
        path: path.clone(),
        source: error.into(),
    })?;
    files::write_checksummed(&path, &json).map_err(|source| OpenError::Io { path, source })
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "node {} ({}) of cluster {}",
            self.node_id, self.node_uuid, self.cluster_id
        )
    }
}
