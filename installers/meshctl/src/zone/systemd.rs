//! The systemd units: kept in this program, filled in, installed and started.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use mesh_runtime::files;

use crate::failure::Failure;

/// The unit of a zone's control plane.
pub(crate) const ZONE_CP: Unit = Unit {
    name: "isthmus-zone-cp.service",
    program: "zone-cp",
    text: include_str!("../../../systemd/isthmus-zone-cp.service"),
};

/// The unit of a zone's ingress.
pub(crate) const INGRESS: Unit = Unit {
    name: "isthmus-ingress.service",
    program: "dataplane",
    text: include_str!("../../../systemd/isthmus-ingress.service"),
};

/// Where the units in this program expect the binaries.
const BINARIES: &str = "/usr/bin";

/// A unit file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit {
    /// Its file name.
    pub(crate) name: &'static str,
    /// The program it runs.
    pub(crate) program: &'static str,
    /// Its text, as packages ship it.
    text: &'static str,
}

impl Unit {
    /// The text for binaries in `directory`.
    fn filled_in(&self, directory: &Path) -> String {
        let usual = format!("{BINARIES}/{}", self.program);
        let program = directory.join(self.program);
        self.text.replace(&usual, &program.display().to_string())
    }
}

/// The systemd of a machine.
#[derive(Debug, Clone)]
pub(crate) struct Systemd {
    /// Exists where systemd runs the machine (sd_booted(3)).
    booted: PathBuf,
    /// Where the administrator's units go.
    units: PathBuf,
    /// Where packages put theirs.
    packaged: Vec<PathBuf>,
    systemctl: PathBuf,
}

impl Systemd {
    /// Of this machine.
    pub(crate) fn here() -> Self {
        Self {
            booted: "/run/systemd/system".into(),
            units: "/etc/systemd/system".into(),
            packaged: vec![
                "/usr/lib/systemd/system".into(),
                "/lib/systemd/system".into(),
            ],
            systemctl: "systemctl".into(),
        }
    }

    /// Whether it runs this machine.
    pub(crate) fn runs(&self) -> bool {
        self.booted.is_dir()
    }

    /// Installs `unit` for the binaries in `directory`, unless a package brought it or the administrator wrote one, and
    /// starts it now and at every boot. Does not wait until it is ready.
    pub(crate) fn start(&self, unit: &Unit, directory: &Path) -> Result<(), Failure> {
        let path = self.units.join(unit.name);
        let packaged = self
            .packaged
            .iter()
            .any(|place| place.join(unit.name).exists());
        if !path.exists() && !packaged {
            files::write_atomic(&path, unit.filled_in(directory).as_bytes(), 0o644).map_err(
                |error| Failure::failed(format!("cannot write {}: {error}", path.display())),
            )?;
        }
        self.call(&["daemon-reload"])?;
        self.call(&["enable", unit.name])?;
        // The unit is ready when it serves, which is waited for by other means that can tell why not.
        self.call(&["restart", "--no-block", unit.name])
    }

    /// Whether `unit` has failed, rather than starting or running.
    pub(crate) fn has_failed(&self, unit: &Unit) -> bool {
        Command::new(&self.systemctl)
            .args(["is-failed", "--quiet", unit.name])
            .status()
            .is_ok_and(|status| status.success())
    }

    fn call(&self, arguments: &[&str]) -> Result<(), Failure> {
        let failed =
            |why: String| Failure::failed(format!("systemctl {}: {why}", arguments.join(" ")));
        let output = Command::new(&self.systemctl)
            .args(arguments)
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }
}

/// The directory that holds `program`: that of meshctl itself, else the first of `PATH`.
pub(crate) fn directory_of(program: &str) -> io::Result<PathBuf> {
    let beside = std::env::current_exe()
        .and_then(fs::canonicalize)
        .ok()
        .and_then(|own| own.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path))
        .find(|directory| directory.join(program).is_file())
        .ok_or_else(|| {
            io::Error::other(format!(
                "{program} is neither beside meshctl nor in PATH: install it"
            ))
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A machine whose systemctl notes what it is told and answers as `body` says.
    fn machine(dir: &Path, body: &str) -> Systemd {
        let systemctl = dir.join("systemctl");
        let log = dir.join("log");
        let script = format!("#!/bin/sh\necho \"$@\" >> {}\n{body}\n", log.display());
        fs::write(&systemctl, script).unwrap();
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(dir.join("units")).unwrap();
        Systemd {
            booted: dir.to_owned(),
            units: dir.join("units"),
            packaged: vec![dir.join("packaged")],
            systemctl,
        }
    }

    #[test]
    fn a_unit_is_filled_in_enabled_and_started() {
        let dir = tempfile::tempdir().unwrap();
        let systemd = machine(dir.path(), "");
        systemd
            .start(&ZONE_CP, Path::new("/opt/isthmus/bin"))
            .unwrap();
        let unit = fs::read_to_string(dir.path().join("units").join(ZONE_CP.name)).unwrap();
        assert!(
            unit.contains("ExecStart=/opt/isthmus/bin/zone-cp run --config"),
            "{unit}"
        );
        assert!(!unit.contains("/usr/bin"), "{unit}");
        assert_eq!(
            fs::read_to_string(dir.path().join("log")).unwrap(),
            "daemon-reload\nenable isthmus-zone-cp.service\nrestart --no-block isthmus-zone-cp.service\n"
        );
    }

    #[test]
    fn a_unit_that_is_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let systemd = machine(dir.path(), "");
        let mine = dir.path().join("units").join(ZONE_CP.name);
        fs::write(&mine, "[Service]\n").unwrap();
        fs::create_dir_all(dir.path().join("packaged")).unwrap();
        fs::write(dir.path().join("packaged").join(INGRESS.name), "").unwrap();
        systemd.start(&ZONE_CP, Path::new("/opt")).unwrap();
        systemd.start(&INGRESS, Path::new("/opt")).unwrap();
        assert_eq!(fs::read_to_string(&mine).unwrap(), "[Service]\n");
        assert!(!dir.path().join("units").join(INGRESS.name).exists());
    }

    #[test]
    fn what_systemctl_complains_about_is_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let systemd = machine(dir.path(), "echo 'no such thing' >&2; exit 1");
        let failure = systemd
            .start(&ZONE_CP, Path::new("/opt"))
            .unwrap_err()
            .to_string();
        assert!(failure.contains("no such thing"), "{failure}");
    }
}
