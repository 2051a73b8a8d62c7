//! The real program, as a process of its own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::support::Zone;

/// A dataplane that runs until it is dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

/// How one is started.
pub(crate) struct Plan<'a> {
    /// Whom it calls.
    pub(crate) zone: &'a Zone,
    /// Below it, state and log.
    pub(crate) dir: &'a Path,
    /// The workload's service.
    pub(crate) service: &'a str,
    /// Its own name.
    pub(crate) name: &'a str,
    /// What its command line begins with, such as `ip netns exec x`: something that replaces itself by what follows.
    pub(crate) within: &'a [&'a str],
    /// What its command line ends with.
    pub(crate) flags: &'a [&'a str],
}

impl Process {
    /// Starts a sidecar. `ISTHMUS_DATAPLANE` names another build of the program.
    pub(crate) fn sidecar(plan: &Plan<'_>) -> Self {
        let state = plan.dir.join(plan.name);
        fs::create_dir_all(&state).unwrap();
        // A successor of the same name has a log of its own.
        let log = (0..)
            .map(|n| plan.dir.join(format!("{}.{n}.log", plan.name)))
            .find(|log| !log.exists())
            .unwrap();
        let built = env!("CARGO_BIN_EXE_dataplane").to_owned();
        let program = std::env::var("ISTHMUS_DATAPLANE").unwrap_or(built);
        let mut words = plan.within.to_vec();
        words.extend([&*program, "run", "--mode", "sidecar", "--mesh", "pay"]);
        words.extend(["--address", "127.0.0.1", "--workers", "2"]);
        let child = Command::new(words[0])
            .args(&words[1..])
            .args(["--name", plan.name, "--service", plan.service])
            .args(["--zone-cp", &plan.zone.address.to_string()])
            .args(["--token", &plan.zone.token()])
            .arg("--state-dir")
            .arg(&state)
            .arg("--admin-socket")
            .arg(state.join("admin.sock"))
            .args(plan.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end, and says whether it ended well.
    pub(crate) fn wait(&mut self) -> bool {
        self.child.wait().unwrap().success()
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        open.unwrap().count()
    }

    /// Its records of connections.
    pub(crate) fn records(&self) -> Vec<serde_json::Value> {
        self.said("connection")
    }

    /// Its records of requests that failed.
    pub(crate) fn requests(&self) -> Vec<serde_json::Value> {
        self.said("request")
    }

    /// Asks it to end (SIGTERM).
    pub(crate) fn terminate(&self) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.unwrap(), Signal::TERM).unwrap();
    }

    fn said(&self, message: &str) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(&self.log).unwrap();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        lines
            .filter(|line: &serde_json::Value| line["message"] == message)
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
