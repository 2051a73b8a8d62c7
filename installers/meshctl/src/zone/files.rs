//! The files of a zone that joins: decided first, checked before the token is spent, and written whole or not at all.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
};

use mesh_proto::zone::JoinZoneResponse;
use mesh_runtime::{files, identity_dir::StoredIdentity};
use serde_json::json;

use crate::failure::Failure;

/// Where a packaged control plane keeps its state, and systemd's unit expects it.
pub(crate) const DATA_DIR: &str = "/var/lib/isthmus/zone-cp";
/// Where packaged processes find their configuration.
pub(crate) const CONFIG_DIR: &str = "/etc/isthmus";

/// The files of one zone on this machine.
#[derive(Debug, Clone)]
pub(crate) struct ZoneFiles {
    /// The control plane's data directory.
    pub(crate) data_dir: PathBuf,
    /// Where configuration goes.
    pub(crate) config_dir: PathBuf,
}

/// What goes into a configuration file that does not exist yet.
#[derive(Debug, Clone)]
pub(crate) struct Settings(pub(crate) toml::Table);

impl ZoneFiles {
    /// The usual places; a data directory elsewhere keeps the configuration to itself, so that several zones can be
    /// tried on one machine.
    pub(crate) fn new(data_dir: Option<PathBuf>, config_dir: Option<PathBuf>) -> Self {
        // What is written into files must be right wherever a process is started.
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let (data_dir, config_dir) = (data_dir.map(absolute), config_dir.map(absolute));
        let config_dir = config_dir.unwrap_or_else(|| match &data_dir {
            Some(elsewhere) if elsewhere.as_path() != Path::new(DATA_DIR) => elsewhere.clone(),
            _ => PathBuf::from(CONFIG_DIR),
        });
        Self {
            data_dir: data_dir.unwrap_or_else(|| PathBuf::from(DATA_DIR)),
            config_dir,
        }
    }

    /// Whether these are the places that the systemd units know.
    pub(crate) fn are_usual(&self) -> bool {
        self.data_dir == Path::new(DATA_DIR) && self.config_dir == Path::new(CONFIG_DIR)
    }

    /// The identity of the zone's control plane.
    pub(crate) fn identity(&self) -> PathBuf {
        self.data_dir.join("identity")
    }

    /// The control plane's configuration.
    pub(crate) fn zone_config(&self) -> PathBuf {
        self.config_dir.join("zone-cp.toml")
    }

    /// The ingress's configuration.
    pub(crate) fn ingress_config(&self) -> PathBuf {
        self.config_dir.join("ingress.toml")
    }

    /// The ingress's token.
    pub(crate) fn ingress_token(&self) -> PathBuf {
        self.config_dir.join("ingress.token")
    }

    /// The zone whose identity is there already.
    pub(crate) fn joined_zone(&self) -> Option<String> {
        let identity = self.identity();
        if !identity.exists() {
            return None;
        }
        let text = fs::read(identity.join("zone.json")).unwrap_or_default();
        let facts: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        Some(facts["zone"].as_str().unwrap_or("unknown").to_owned())
    }

    /// Makes the directories and proves that they can be written, and that a configuration that is there already does
    /// not speak of another data directory. What it makes is noted in `undo`.
    pub(crate) fn prepare(&self, undo: &mut Undo) -> Result<(), Failure> {
        self.check_existing_config()?;
        for (directory, private) in [(&self.data_dir, true), (&self.config_dir, false)] {
            make_directory(directory, private, undo)
                .and_then(|()| prove_writable(directory))
                .map_err(|error| cannot_write(directory, &error))?;
        }
        let staging = self.staging();
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(|error| cannot_write(&staging, &error))?;
        }
        Ok(())
    }

    fn check_existing_config(&self) -> Result<(), Failure> {
        let path = self.zone_config();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Failure::failed(format!("{}: {error}", path.display()))),
        };
        let there: toml::Table = toml::from_str(&text)
            .map_err(|error| Failure::invalid(format!("{}: {error}", path.display())))?;
        match there.get("data-dir").and_then(toml::Value::as_str) {
            Some(other) if Path::new(other) != self.data_dir => Err(Failure::invalid(format!(
                "{} says data-dir = {other:?}, but this join is for {}: give --data-dir {other}, or another \
                 --config-dir",
                path.display(),
                self.data_dir.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Writes everything; the identity last, since it is what makes the zone joined.
    pub(crate) fn write(
        &self,
        identity: &StoredIdentity,
        answer: &JoinZoneResponse,
        configs: &[(PathBuf, Settings)],
        undo: &mut Undo,
    ) -> Result<(), Failure> {
        for (path, settings) in configs {
            if path.exists() {
                continue;
            }
            let text = format!(
                "# Written by `meshctl zone join`. Every flag of the process may stand here, without its leading --.\n{}",
                settings.0
            );
            write_new(path, text.as_bytes(), 0o644, undo)?;
        }
        write_new(
            &self.ingress_token(),
            answer.ingress_token.as_bytes(),
            0o600,
            undo,
        )?;
        let staging = self.staging();
        undo.note(&staging);
        let facts = json!({
            "zone": answer.zone,
            "clusterId": answer.cluster_id,
            "globalAddresses": answer.global_addresses,
        });
        identity
            .save(&staging)
            .map_err(|error| Failure::failed(error.to_string()))?;
        files::write_atomic(
            &staging.join("zone.json"),
            format!("{facts:#}\n").as_bytes(),
            0o600,
        )
        .and_then(|()| give_to_owner_of(&self.data_dir, &staging))
        .and_then(|()| self.take_up(&staging))
        .map_err(|error| cannot_write(&self.identity(), &error))
    }

    fn staging(&self) -> PathBuf {
        self.data_dir.join("identity.joining")
    }

    /// Puts the staged identity in place of the old one, if any.
    fn take_up(&self, staging: &Path) -> io::Result<()> {
        let (identity, before) = (self.identity(), self.data_dir.join("identity.before"));
        if before.exists() {
            fs::remove_dir_all(&before)?;
        }
        if identity.exists() {
            fs::rename(&identity, &before)?;
        }
        if let Err(error) = fs::rename(staging, &identity) {
            if before.exists() {
                fs::rename(&before, &identity)?;
            }
            return Err(error);
        }
        fs::File::open(&self.data_dir)?.sync_all()?;
        if before.exists() {
            fs::remove_dir_all(&before)?;
        }
        Ok(())
    }
}

/// What this run has made, taken away again unless it succeeds.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    made: Vec<PathBuf>,
    replaced: Vec<(PathBuf, Vec<u8>, u32)>,
}

impl Undo {
    fn note(&mut self, path: &Path) {
        self.made.push(path.to_owned());
    }

    /// All is well: nothing is taken away.
    pub(crate) fn forget(mut self) {
        self.made.clear();
        self.replaced.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for (path, content, mode) in self.replaced.drain(..) {
            let _ = files::write_atomic(&path, &content, mode);
        }
        for path in self.made.drain(..).rev() {
            let gone = match fs::symlink_metadata(&path) {
                Ok(it) if !it.is_dir() => fs::remove_file(&path),
                // A staged identity is full; any other directory goes only where nothing else has come into it.
                Ok(_) if path.ends_with("identity.joining") => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_dir(&path),
                Err(_) => Ok(()),
            };
            // Something else is in it by now, or it can not be helped; the failure itself is told already.
            let _ = gone;
        }
    }
}

/// Makes what is missing of `path`, top down.
fn make_directory(path: &Path, private: bool, undo: &mut Undo) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_directory(above, false, undo)?;
    }
    if private {
        files::ensure_private_dir(path)?;
    } else {
        fs::create_dir(path)?;
    }
    undo.note(path);
    Ok(())
}

fn prove_writable(directory: &Path) -> io::Result<()> {
    let probe = directory.join(format!(".meshctl-{}", std::process::id()));
    fs::write(&probe, b"")?;
    fs::remove_file(&probe)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32, undo: &mut Undo) -> Result<(), Failure> {
    match (fs::read(path), fs::metadata(path)) {
        (Ok(content), Ok(old)) => {
            undo.replaced
                .push((path.to_owned(), content, old.mode() & 0o777))
        }
        _ => undo.note(path),
    }
    files::write_atomic(path, bytes, mode).map_err(|error| {
        // What was begun beside it.
        let mut begun: OsString = path.as_os_str().to_owned();
        begun.push(".tmp");
        let _ = fs::remove_file(begun);
        cannot_write(path, &error)
    })
}

/// Where a service with a user of its own has this directory already, new files in it must be that user's.
fn give_to_owner_of(directory: &Path, made: &Path) -> io::Result<()> {
    let (wanted, have) = (fs::metadata(directory)?, fs::metadata(made)?);
    if (wanted.uid(), wanted.gid()) == (have.uid(), have.gid()) {
        return Ok(());
    }
    for entry in fs::read_dir(made)? {
        chown(entry?.path(), Some(wanted.uid()), Some(wanted.gid()))?;
    }
    chown(made, Some(wanted.uid()), Some(wanted.gid()))
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "\nRun this as root, or name places of your own with --data-dir and --config-dir."
        }
        _ => "",
    };
    Failure::failed(format!("cannot write {}: {error}{advice}", path.display()))
}

#[cfg(test)]
mod tests {
    use mesh_runtime::pki;

    use super::*;

    fn joined(files: &ZoneFiles, zone: &str) -> Result<(), Failure> {
        let mut undo = Undo::default();
        files.prepare(&mut undo)?;
        let identity = StoredIdentity {
            key: pki::new_key().unwrap(),
            chain: vec![],
            anchors: vec![],
        };
        let answer = JoinZoneResponse {
            zone: zone.to_owned(),
            ingress_token: "token".to_owned(),
            ..JoinZoneResponse::default()
        };
        let mut table = toml::Table::new();
        table.insert(
            "data-dir".to_owned(),
            files.data_dir.display().to_string().into(),
        );
        files.write(
            &identity,
            &answer,
            &[(files.zone_config(), Settings(table))],
            &mut undo,
        )?;
        undo.forget();
        Ok(())
    }

    fn files_in(directory: &Path) -> ZoneFiles {
        ZoneFiles {
            data_dir: directory.join("var/zone-cp"),
            config_dir: directory.join("etc"),
        }
    }

    fn everything(directory: &Path) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                all.extend(everything(&path));
            }
            all.push(path);
        }
        all
    }

    #[test]
    fn secrets_are_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let files = files_in(dir.path());
        joined(&files, "east").unwrap();
        assert_eq!(files.joined_zone().as_deref(), Some("east"));
        for (path, mode) in [
            (files.identity().join("key.pem"), 0o600),
            (files.identity(), 0o700),
            (files.ingress_token(), 0o600),
            (files.data_dir.clone(), 0o700),
            (files.zone_config(), 0o644),
        ] {
            let found = fs::metadata(&path).unwrap().mode() & 0o777;
            assert_eq!(found, mode, "{}", path.display());
        }
    }

    #[test]
    fn joining_again_replaces_the_identity_and_keeps_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let files = files_in(dir.path());
        joined(&files, "east").unwrap();
        let mine = format!("data-dir = {:?}\nlog-level = \"debug\"\n", files.data_dir);
        fs::write(files.zone_config(), &mine).unwrap();
        joined(&files, "west").unwrap();
        assert_eq!(files.joined_zone().as_deref(), Some("west"));
        assert_eq!(fs::read_to_string(files.zone_config()).unwrap(), mine);
        let left = everything(dir.path());
        assert!(
            !left.iter().any(|path| path.ends_with("identity.before")),
            "{left:?}"
        );
    }

    #[test]
    fn a_configuration_for_another_data_directory_is_refused_before_anything_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let files = files_in(dir.path());
        fs::create_dir_all(&files.config_dir).unwrap();
        fs::write(files.zone_config(), "data-dir = \"/elsewhere\"\n").unwrap();
        let refused = joined(&files, "east").unwrap_err().to_string();
        assert!(refused.contains("/elsewhere"), "{refused}");
        assert!(!files.data_dir.exists());
    }

    #[test]
    fn a_join_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = files_in(dir.path());
        {
            let mut undo = Undo::default();
            files.prepare(&mut undo).unwrap();
            assert!(files.data_dir.exists());
            // The configuration's place is taken by a directory: writing fails half way.
            let mut table = toml::Table::new();
            table.insert("a".to_owned(), "b".into());
            let first = (files.config_dir.join("first.toml"), Settings(table.clone()));
            let second = (
                files.config_dir.join("missing/second.toml"),
                Settings(table),
            );
            let identity = StoredIdentity {
                key: pki::new_key().unwrap(),
                chain: vec![],
                anchors: vec![],
            };
            let answer = JoinZoneResponse::default();
            files
                .write(&identity, &answer, &[first, second], &mut undo)
                .unwrap_err();
        }
        assert_eq!(everything(dir.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_data_directory_elsewhere_keeps_the_configuration_to_itself() {
        let elsewhere = ZoneFiles::new(Some("/srv/east".into()), None);
        assert_eq!(elsewhere.config_dir, Path::new("/srv/east"));
        assert!(!elsewhere.are_usual());
        let relative = ZoneFiles::new(Some("east".into()), None);
        assert!(relative.data_dir.is_absolute());
        assert!(ZoneFiles::new(None, None).are_usual());
    }
}
