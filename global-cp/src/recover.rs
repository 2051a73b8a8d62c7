//! `global-cp recover`: a node whose data is damaged or gone.
//!
//! - [`rejoin`], where there are other nodes: it joins them as a new node, with a new id, disk and certificate, and never
//!   speaks as the old one again, whose acknowledgements it no longer has. `meshctl global recover` does this and removes
//!   the old node.
//! - [`from_snapshot`], where there are none: its store is made anew from what can still be read.
//!
//! What was there is moved into a folder of its own in the data directory. While that goes on, the file `recovering`
//! stands there, and the node does not start: an empty directory would found an installation.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use mesh_proto::zone::NodeAddresses;
use mesh_runtime::files::{self, LockError};

use crate::{
    clock,
    settings::{Config, host_port},
    start::{self, Newcomer, PrepareError},
    store::{
        directory::{self, DirectoryError},
        rescue::{self, RescueError, Rescued},
    },
};

/// Why a node is not recovered.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each says it itself
pub enum RecoverError {
    #[error(
        "where to join is missing: `meshctl global recover` finds it out; or give --join HOST:5685 of another node and \
         --token (`meshctl token create node-join`). Where there is no other node: --from-snapshot"
    )]
    NoTarget,
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{data_dir} is of cluster {found}, the installation to join is cluster {wanted}: nothing was changed here"
    )]
    OtherCluster {
        data_dir: PathBuf,
        found: String,
        wanted: String,
    },
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("{0} has no node.json: nothing says whose data it is")]
    Unknown(PathBuf),
    #[error(transparent)]
    Rescue(#[from] RescueError),
}

/// A node that has joined as a new one.
#[derive(Debug)]
pub struct Rejoined {
    /// Its id before, where that could be read.
    pub before: Option<u64>,
    /// Its id now.
    pub now: u64,
    /// Where everything is that was there before.
    pub aside: PathBuf,
}

/// The file that stands in a data directory while it is being recovered.
#[must_use]
pub fn marker(data_dir: &Path) -> PathBuf {
    data_dir.join("recovering")
}

/// Joins again as a new node at `config.join`. The next start finishes it.
///
/// # Errors
/// Where the installation refuses, or the system; before the installation has agreed nothing is changed here.
pub async fn rejoin(config: &Config) -> Result<Rejoined, RecoverError> {
    let target = config.join.as_ref().ok_or(RecoverError::NoTarget)?;
    let data_dir = &config.data_dir;
    let _lock = lock(data_dir)?;
    let before = directory::load(data_dir).ok().flatten();
    let told = |address: std::net::SocketAddr| host_port(&config.advertise_host, address.port());
    let addresses = NodeAddresses {
        api: told(config.api_address),
        zone: told(config.zone_address),
        raft: told(config.raft_address),
    };
    let newcomer = Newcomer::ask(target, &addresses).await?;
    let now = newcomer.node.node_id;
    if let Some(before) = &before
        && before.node.cluster_id != newcomer.node.cluster_id
    {
        return Err(RecoverError::OtherCluster {
            data_dir: data_dir.clone(),
            found: before.node.cluster_id.clone(),
            wanted: newcomer.node.cluster_id,
        });
    }
    let aside = begin(data_dir)?;
    for file in fs::read_dir(data_dir).map_err(io_error(data_dir))? {
        let path = file.map_err(io_error(data_dir))?.path();
        let name = path.file_name().unwrap_or_default();
        let text = name.to_string_lossy();
        if text == "lock" || text == "recovering" || text.starts_with("damaged-") {
            continue;
        }
        fs::rename(&path, aside.join(name)).map_err(io_error(&path))?;
    }
    let first = newcomer.keep(data_dir)?;
    start::save_first_start(data_dir, &first)?;
    end(data_dir)?;
    Ok(Rejoined {
        before: before.map(|file| file.node.node_id),
        now,
        aside,
    })
}

/// Makes the store anew from what is left of it. With `alone`, other nodes are forgotten. Blocks.
///
/// # Errors
/// Where nothing is left, or there are other nodes.
pub fn from_snapshot(config: &Config, alone: bool) -> Result<Rescued, RecoverError> {
    let data_dir = &config.data_dir;
    let _lock = lock(data_dir)?;
    let file = directory::load(data_dir)?.ok_or_else(|| RecoverError::Unknown(data_dir.clone()))?;
    let aside = begin(data_dir)?;
    let rescued = rescue::rescue(data_dir, &file.node, alone, &aside);
    let refused = matches!(
        &rescued,
        Err(RescueError::Nothing(_) | RescueError::Others { .. })
    );
    if refused {
        // Nothing was moved.
        fs::remove_dir(&aside).map_err(io_error(&aside))?;
    }
    if refused || rescued.is_ok() {
        end(data_dir)?;
    }
    Ok(rescued?)
}

fn lock(data_dir: &Path) -> Result<files::DirLock, RecoverError> {
    files::ensure_private_dir(data_dir).map_err(io_error(data_dir))?;
    Ok(files::lock_dir(data_dir)?)
}

/// From now on the node does not start. Returns the folder for what is moved.
fn begin(data_dir: &Path) -> Result<PathBuf, RecoverError> {
    let marker = marker(data_dir);
    files::write_atomic(&marker, b"", 0o600).map_err(io_error(&marker))?;
    let begun = clock::now_seconds();
    let aside = (begun..)
        .map(|number| data_dir.join(format!("damaged-{number}")))
        .find(|path| !path.exists())
        .unwrap_or_else(|| data_dir.join("damaged"));
    files::ensure_private_dir(&aside).map_err(io_error(&aside))?;
    Ok(aside)
}

fn end(data_dir: &Path) -> Result<(), RecoverError> {
    let marker = marker(data_dir);
    fs::remove_file(&marker).map_err(io_error(&marker))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RecoverError {
    let path = path.to_owned();
    move |source| RecoverError::Io { path, source }
}
