//! The process that holds the store.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

use crate::model::Told;

/// An answer that takes longer is a failure of the test.
const PATIENCE: Duration = Duration::from_secs(120);
/// Answers that wait to be read; the reading thread waits where there are more.
const ANSWERS: usize = 1024;

/// How the store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Made where there is none.
    Create,
    /// There must be one.
    Again,
}

/// How its files are looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// As every node does it: most of it only where there are many megabytes.
    Usual,
    /// As if every file were big, so that it is compacted in the middle of a short run.
    AsIfBig,
}

/// A running driver. Killed when it is dropped.
#[derive(Debug)]
pub struct Driver {
    child: Child,
    input: Option<ChildStdin>,
    answers: mpsc::Receiver<String>,
}

/// Where the driver's program is: built with the examples of global-cp, beside this test's own folder.
///
/// # Errors
/// Where it is not there.
pub fn program() -> anyhow::Result<PathBuf> {
    let mut folder = std::env::current_exe()?;
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let program = folder.join("examples/store-driver");
    ensure!(
        program.is_file(),
        "{} is missing: `cargo build -p global-cp --example store-driver` makes it",
        program.display()
    );
    Ok(program)
}

fn arguments(directory: &Path, open: Open, files: Files) -> Vec<&OsStr> {
    let mut arguments = vec![directory.as_os_str()];
    if open == Open::Again {
        arguments.push("open".as_ref());
    }
    if files == Files::AsIfBig {
        arguments.push("as-if-big".as_ref());
    }
    arguments
}

impl Driver {
    /// Starts the program on `directory`.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(directory: &Path, open: Open, files: Files) -> anyhow::Result<Self> {
        let mut command = Command::new(program()?);
        command.args(arguments(directory, open, files));
        Self::spawn(command)
    }

    /// Starts the program on `directory` under strace, which writes what it does, and what it logs, to `trace`.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start_traced(directory: &Path, files: Files, trace: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new("strace");
        command
            .args(["-f", "-y", "-xx", "-s", "67108864", "-o"])
            .arg(trace)
            .args(["-e", crate::trace::CALLS])
            .arg(program()?)
            .args(arguments(directory, Open::Create, files))
            .arg("tell")
            .stderr(Stdio::null());
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("the pipe was asked for")?;
        let (sender, answers) = mpsc::sync_channel(ANSWERS);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            input,
            answers,
        })
    }

    /// Sends one command.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn send(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("the driver was closed")?;
        input
            .write_all(format!("{line}\n").as_bytes())
            .context("the driver has ended")
    }

    /// The next answer; `None` where it has ended.
    ///
    /// # Errors
    /// Where it says nothing for long.
    pub fn answer(&mut self) -> anyhow::Result<Option<String>> {
        match self.answers.recv_timeout(PATIENCE) {
            Ok(line) => Ok(Some(line)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("the driver hangs"),
        }
    }

    /// The next answer, however long it takes.
    ///
    /// # Errors
    /// Where the driver has ended.
    pub fn answer_patiently(&mut self) -> anyhow::Result<String> {
        self.answers.recv().context("the driver has ended")
    }

    /// An answer that is already there.
    pub fn answer_now(&mut self) -> Option<String> {
        self.answers.try_recv().ok()
    }

    /// Waits until the store is open; why not, where it refuses.
    ///
    /// # Errors
    /// Where it ends without a word, as it does when it panics.
    pub fn opened(&mut self) -> anyhow::Result<Result<(), String>> {
        match self.answer()? {
            Some(line) if line == "opened" => Ok(Ok(())),
            Some(line) => match line.strip_prefix("refused ") {
                Some(reason) => Ok(Err(reason.to_owned())),
                None => bail!("instead of being opened: {line}"),
            },
            None => bail!(
                "the driver ended while it opened the store: {:?}",
                self.child.wait()
            ),
        }
    }

    /// What the store holds. Nothing else may be under way.
    ///
    /// # Errors
    /// Where it does not tell, or tells of what was never written.
    pub fn dump(&mut self) -> anyhow::Result<Told> {
        self.send("0 dump")?;
        let mut lines = Vec::new();
        loop {
            match self.answer()? {
                None => bail!("the driver ended while it told what is there"),
                Some(line) if line == "ok 0" => return Told::parse(&lines),
                Some(line) => lines.push(line),
            }
        }
    }

    /// `kill -9`; returns what it had still answered.
    pub fn kill(mut self) -> Vec<String> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.answers.iter().collect()
    }

    /// Lets it end by itself, its store closed.
    ///
    /// # Errors
    /// Where it fails.
    pub fn close(mut self) -> anyhow::Result<()> {
        self.input = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "the driver ended with {status}");
        Ok(())
    }

    /// Bytes of memory it has.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.split_whitespace().next());
        Ok(kib.context("no VmRSS")?.parse::<u64>()? << 10)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
