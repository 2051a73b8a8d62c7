//! What is in a data directory makes room for something new, and a crash at any point loses neither of the two.
//!
//! 1. The new is made, whole and synced, in `recovered/`. What was there before is not touched.
//! 2. `recovering` is written: what is to be moved, and where to. From now on the new counts, and the node does not start.
//! 3. The old is moved into a folder `damaged-…`, then the new into its place.
//! 4. `recovering` goes.
//!
//! Whoever begins where `recovered/` was left without `recovering` makes it anew; where `recovering` was left, the third
//! step is done to its end.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use mesh_runtime::files::{self, ReadError};
use serde::{Deserialize, Serialize};

use super::{Outcome, RecoverError, io_error, point};
use crate::{clock, store::directory::Node};

/// Where the new is made.
const NEW: &str = "recovered";
/// Where the old goes, with a number.
const ASIDE: &str = "damaged-";

/// The file that stands in a data directory while it is being recovered.
pub(super) fn marker(data_dir: &Path) -> PathBuf {
    data_dir.join("recovering")
}

/// What `recovering` holds. `meshctl global recover` reads `node`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Exchange {
    /// Whose data it was, where that could be read.
    pub(super) node: Option<Node>,
    /// What is told at the end.
    pub(super) outcome: Outcome,
    /// The folder that the old goes to.
    aside: String,
    /// Names in the data directory that go there.
    old: Vec<String>,
}

impl Exchange {
    /// One that was interrupted.
    ///
    /// # Errors
    /// Where its file can not be read.
    pub(super) fn interrupted(data_dir: &Path) -> Result<Option<Self>, RecoverError> {
        let path = marker(data_dir);
        match files::read_checksummed(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .map(Some)
                .map_err(|_| RecoverError::Format(path)),
            Err(ReadError::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// An empty folder to make the new in.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(super) fn room(data_dir: &Path) -> Result<PathBuf, RecoverError> {
        let new = data_dir.join(NEW);
        match fs::remove_dir_all(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&new)(error)),
            _ => {
                files::ensure_private_dir(&new).map_err(io_error(&new))?;
                Ok(new)
            }
        }
    }

    /// Decides that what was made takes the place of those names in the data directory for which `goes` is true.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(super) fn decide(
        data_dir: &Path,
        node: Option<Node>,
        outcome: Outcome,
        goes: impl Fn(&str) -> bool,
    ) -> Result<Self, RecoverError> {
        let aside = (clock::now_seconds()..)
            .map(|number| format!("{ASIDE}{number}"))
            .find(|name| !data_dir.join(name).exists())
            .unwrap_or_else(|| format!("{ASIDE}data"));
        let mut old = names(data_dir)?;
        old.retain(|name| {
            let ours = name == "lock" || name == NEW || name.starts_with(ASIDE);
            !ours && goes(name)
        });
        let exchange = Self {
            node,
            outcome,
            aside,
            old,
        };
        sync(&data_dir.join(NEW))?;
        point(data_dir)?;
        let path = marker(data_dir);
        let json =
            serde_json::to_vec_pretty(&exchange).map_err(|error| io_error(&path)(error.into()))?;
        files::write_checksummed(&path, &json).map_err(io_error(&path))?;
        Ok(exchange)
    }

    /// Moves what is not moved yet. Returns where the old is.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(super) fn finish(&self, data_dir: &Path) -> Result<PathBuf, RecoverError> {
        let (new, aside) = (data_dir.join(NEW), data_dir.join(&self.aside));
        point(data_dir)?;
        files::ensure_private_dir(&aside).map_err(io_error(&aside))?;
        for name in &self.old {
            // Where it is there already, its place may be taken by the new.
            if !aside.join(name).exists() {
                move_over(&data_dir.join(name), &aside.join(name))?;
            }
        }
        sync(&aside)?;
        sync(data_dir)?;
        if new.exists() {
            for name in names(&new)? {
                move_over(&new.join(&name), &data_dir.join(&name))?;
            }
            sync(data_dir)?;
            point(&new)?;
            fs::remove_dir(&new).map_err(io_error(&new))?;
        }
        point(data_dir)?;
        let marker = marker(data_dir);
        fs::remove_file(&marker).map_err(io_error(&marker))?;
        sync(data_dir)?;
        Ok(aside)
    }
}

fn move_over(from: &Path, to: &Path) -> Result<(), RecoverError> {
    point(from)?;
    match fs::rename(from, to) {
        // Somebody has taken it away meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(io_error(from)),
    }
}

/// What is in a directory, in order.
fn names(directory: &Path) -> Result<Vec<String>, RecoverError> {
    let mut names = Vec::new();
    for file in fs::read_dir(directory).map_err(io_error(directory))? {
        let name = file.map_err(io_error(directory))?.file_name();
        match name.into_string() {
            Ok(name) => names.push(name),
            // Nothing of ours has such a name.
            Err(name) => tracing::warn!(?name, "a file with a strange name stays where it is"),
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn sync(directory: &Path) -> Result<(), RecoverError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error(directory))
}
