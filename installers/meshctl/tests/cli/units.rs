//! The systemd units say what systemd understands.

use std::{fs, path::Path, process::Command};

/// What a unit's exposure may be at most, of 10 (`systemd-analyze security`).
const EXPOSURE_MAX: f64 = 2.0;

fn units() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
    let mut units = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // A template is looked at as one of its instances.
        units.push((
            name.replace("@.", "@web-1."),
            fs::read_to_string(path).unwrap(),
        ));
    }
    assert_eq!(units.len(), 4);
    units
}

#[test]
fn every_unit_notifies_restarts_and_reads_a_configuration() {
    for (name, text) in units() {
        for line in [
            "Type=notify",
            "Restart=on-failure",
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "SystemCallFilter=@system-service",
            "MemoryDenyWriteExecute=yes",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {name}");
        }
        assert!(text.contains("LimitNOFILE="), "{name}");
        assert!(text.contains(" run "), "{name}");
        assert!(text.contains("--config /etc/isthmus/"), "{name}");
    }
}

#[test]
fn systemd_understands_every_line_and_finds_little_exposed() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!(
            "NOT TESTED: systemd-analyze is not on this machine, so the units were not verified"
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in units() {
        // The binaries are not installed where the tests run.
        let mut with_programs = text;
        for program in ["global-cp", "zone-cp", "dataplane"] {
            with_programs = with_programs.replace(&format!("/usr/bin/{program}"), "/bin/true");
        }
        fs::write(dir.path().join(&name), with_programs).unwrap();
    }
    for (name, _) in units() {
        let path = dir.path().join(&name);
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&verified.stderr);
        let ours: Vec<_> = said
            .lines()
            .filter(|line| line.contains("isthmus-"))
            .collect();
        assert!(
            verified.status.success() && ours.is_empty(),
            "{name}: {said}"
        );
        let judged = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&judged.stdout);
        let Some(exposure) = text
            .rsplit_once("Overall exposure level for ")
            .and_then(|(_, rest)| rest.split(": ").nth(1))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse::<f64>().ok())
        else {
            eprintln!("NOT TESTED: this systemd-analyze does not judge unit files offline");
            continue;
        };
        assert!(exposure <= EXPOSURE_MAX, "{name}: {exposure}");
    }
}
