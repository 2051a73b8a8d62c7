//! `global-cp recover`: a node whose data is damaged or gone.
//!
//! - [`rejoin`], where there are other nodes: it joins them as a new node, with a new id, disk and certificate, and never
//!   speaks as the old one again, whose acknowledgements it no longer has. `meshctl global recover` does this and removes
//!   the old node.
//! - [`from_snapshot`], where there are none: its store is made anew from what can still be read.
//!
//! What was there is moved into a folder of its own in the data directory, and the file `recovering` stands there
//! meanwhile: the node does not start, since an empty directory would found an installation. A recovery that was
//! interrupted is brought to its end, or begun anew, by running it again: [`exchange`].

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use mesh_proto::zone::NodeAddresses;
use mesh_runtime::files::{self, LockError, ReadError};
use serde::{Deserialize, Serialize};

use crate::{
    settings::{Config, host_port},
    start::{self, Newcomer, PrepareError},
    store::{
        directory::{self, DirectoryError, NodeFile},
        rescue::{self, RescueError, Rescued},
    },
};
use exchange::Exchange;

mod exchange;

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
    #[error("what an interrupted recovery has left to do can not be read: {0}")]
    Marker(#[from] ReadError),
    #[error("{0} is of another version of this program: finish the recovery with that one")]
    Format(PathBuf),
    #[error(transparent)]
    Rescue(#[from] RescueError),
}

/// A node that is brought back.
#[derive(Debug)]
pub struct Recovered {
    /// How.
    pub outcome: Outcome,
    /// Where everything is that was there before.
    pub aside: PathBuf,
}

/// How a node is brought back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It has joined as a new one, with this id.
    Rejoined(u64),
    /// Its store was made anew.
    Rescued(Rescued),
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Rejoined(id) => {
                write!(f, "joined as node {id}; the next start finishes it")?;
            }
            Outcome::Rescued(rescued) => write!(f, "{rescued}")?,
        }
        write!(f, ". What was there is in {}", self.aside.display())
    }
}

/// The file that stands in a data directory while it is being recovered.
#[must_use]
pub fn marker(data_dir: &Path) -> PathBuf {
    exchange::marker(data_dir)
}

/// Joins again as a new node at `config.join`. The next start finishes it.
///
/// # Errors
/// Where the installation refuses, or the system; before the installation has agreed nothing is changed here.
pub async fn rejoin(config: &Config) -> Result<Recovered, RecoverError> {
    let data_dir = &config.data_dir;
    let _lock = lock(data_dir)?;
    if let Some(exchange) = Exchange::interrupted(data_dir)? {
        return finish(exchange, data_dir);
    }
    let target = config.join.as_ref().ok_or(RecoverError::NoTarget)?;
    let before = directory::load(data_dir).ok().flatten();
    let told = |address: std::net::SocketAddr| host_port(&config.advertise_host, address.port());
    let addresses = NodeAddresses {
        api: told(config.api_address),
        zone: told(config.zone_address),
        raft: told(config.raft_address),
    };
    let newcomer = Newcomer::ask(target, &addresses).await?;
    become_another(data_dir, before, newcomer)
}

/// Puts a node that the installation has taken in the place of the one before.
fn become_another(
    data_dir: &Path,
    before: Option<NodeFile>,
    newcomer: Newcomer,
) -> Result<Recovered, RecoverError> {
    if let Some(before) = &before
        && before.node.cluster_id != newcomer.node.cluster_id
    {
        return Err(RecoverError::OtherCluster {
            data_dir: data_dir.to_owned(),
            found: before.node.cluster_id.clone(),
            wanted: newcomer.node.cluster_id,
        });
    }
    let now = Outcome::Rejoined(newcomer.node.node_id);
    let new = Exchange::room(data_dir)?;
    let first = newcomer.keep(&new)?;
    point(&new)?;
    start::save_first_start(&new, &first)?;
    let exchange = Exchange::decide(data_dir, before.map(|file| file.node), now, |_| true)?;
    finish(exchange, data_dir)
}

/// Makes the store anew from what is left of it. With `alone`, other nodes are forgotten. Blocks.
///
/// # Errors
/// Where nothing is left, or there are other nodes.
pub fn from_snapshot(data_dir: &Path, alone: bool) -> Result<Recovered, RecoverError> {
    let _lock = lock(data_dir)?;
    if let Some(exchange) = Exchange::interrupted(data_dir)? {
        return finish(exchange, data_dir);
    }
    let file =
        directory::load(data_dir)?.ok_or_else(|| RecoverError::Unknown(data_dir.to_owned()))?;
    let left = rescue::left(data_dir, &file.node, alone)?;
    let new = Exchange::room(data_dir)?;
    point(&new)?;
    let rescued = left.write(&new)?;
    let told = Outcome::Rescued(rescued);
    let exchange = Exchange::decide(data_dir, Some(file.node), told, |name| {
        rescue::NAMES.contains(&name)
    })?;
    finish(exchange, data_dir)
}

fn finish(exchange: Exchange, data_dir: &Path) -> Result<Recovered, RecoverError> {
    let aside = exchange.finish(data_dir)?;
    Ok(Recovered {
        outcome: exchange.outcome,
        aside,
    })
}

fn lock(data_dir: &Path) -> Result<files::DirLock, RecoverError> {
    files::ensure_private_dir(data_dir).map_err(io_error(data_dir))?;
    Ok(files::lock_dir(data_dir)?)
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RecoverError {
    let path = path.to_owned();
    move |source| RecoverError::Io { path, source }
}

/// A moment at which a crash must do no harm: a test lets it happen here.
#[cfg(not(test))]
#[allow(clippy::unnecessary_wraps)]
fn point(_: &Path) -> Result<(), RecoverError> {
    Ok(())
}

#[cfg(test)]
use tests::point;

#[cfg(test)]
mod tests;
