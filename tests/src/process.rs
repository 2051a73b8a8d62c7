//! One process: start, kill, freeze, restart, its log.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    wait::{SOON, eventually},
    world::World,
};

/// What is started, again at each restart.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables beside those of this process.
    pub environment: Vec<(String, String)>,
}

impl Recipe {
    /// `program` without arguments.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            ..Self::default()
        }
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// With a flag and its value.
    #[must_use]
    pub fn flag(self, name: &str, value: impl Into<OsString>) -> Self {
        self.arg(name).arg(value)
    }

    /// With a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The command, in a process group of its own (so that Ctrl-C reaches only the one who may decide), which the kernel
    /// kills when this process ends, however it ends.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.program)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .process_group(0);
        // Settings of whoever runs the tests must not reach the processes under test, but for the log level.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let ours = self.environment.iter().any(|(k, _)| *k == name);
            if name.starts_with("ISTHMUS_") && name != "ISTHMUS_LOG_LEVEL" && !ours {
                command.env_remove(name);
            }
        }
        command
    }
}

/// The kernel's parent-death signal is bound to the *thread* that started the child, so one thread that lives as long
/// as this process starts them all.
fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::SyncSender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::SyncSender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        // Who starts a process waits for it anyway: a queue that is full only waits longer.
        let (sender, orders) = mpsc::sync_channel::<Order>(16);
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                // Nobody waits for the answer any more: then nobody wants the child either.
                if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                    let _ = child.kill();
                }
            }
        });
        sender
    });
    let (answer, child) = mpsc::sync_channel(1);
    spawner
        .send((command, answer))
        .map_err(|_| io::Error::other("the thread that starts processes has ended"))?;
    child
        .recv()
        .map_err(|_| io::Error::other("the thread that starts processes has ended"))?
}

/// A running or stopped process. Killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    /// What is started, again by [`Self::restart`].
    pub recipe: Recipe,
    child: Option<Child>,
    log: PathBuf,
    output: PathBuf,
}

impl Process {
    /// Starts `recipe`; its standard error goes to `<name>.log`, its standard output to `<name>.out` of the world's
    /// log folder.
    ///
    /// # Errors
    /// Where it can not be started.
    pub fn start(world: &World, name: &str, recipe: Recipe) -> anyhow::Result<Self> {
        let mut process = Self::idle(world, name);
        process.recipe = recipe;
        process.launch()?;
        Ok(process)
    }

    /// A process that does not run, and has nothing to run yet.
    #[must_use]
    pub fn idle(world: &World, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            recipe: Recipe::default(),
            child: None,
            log: world.logs().join(format!("{name}.log")),
            output: world.logs().join(format!("{name}.out")),
        }
    }

    /// Starts the recipe (again). Logs are appended.
    ///
    /// # Errors
    /// Where it can not be started, or runs already.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(self.child.is_none(), "{} runs already", self.name);
        let open = |path: &Path| File::options().create(true).append(true).open(path);
        let mut command = self.recipe.command();
        command.stdout(open(&self.output)?).stderr(open(&self.log)?);
        let child = spawn(command).with_context(|| {
            format!(
                "cannot start {} ({})",
                self.name,
                self.recipe.program.display()
            )
        })?;
        self.child = Some(child);
        Ok(())
    }

    /// Its name in logs.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    ///
    /// # Panics
    /// Where it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the process was started").id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What it wrote to standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        read_lossy(&self.log)
    }

    /// What it wrote to standard output so far.
    #[must_use]
    pub fn output(&self) -> String {
        read_lossy(&self.output)
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// Where it does not end within `deadline`.
    pub fn terminate(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_for_end(deadline)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// Where it does not within `deadline`.
    pub fn wait_for_end(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        let child = self.child.as_mut().context("it was not started")?;
        let status = eventually(deadline, &what, || {
            child.try_wait()?.context("it still runs")
        })?;
        self.child = None;
        Ok(status)
    }

    /// Stops it without ending it (SIGSTOP): its connections live on, in silence.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// Where it does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// `kill -9`, then starts the recipe again.
    ///
    /// # Errors
    /// Where it can not be started.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        self.launch()
    }

    /// Waits until `ready` succeeds, and fails at once where the process has ended meanwhile.
    ///
    /// # Errors
    /// Where it ends, or is not ready in time; with the end of its log.
    pub fn wait_ready(
        &mut self,
        mut ready: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut ended = None;
        let name = self.name.clone();
        let waited = eventually(SOON, &format!("{name} is ready"), || {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                ended = Some(status);
                return Ok(());
            }
            ready()
        });
        match ended {
            None => waited,
            Some(status) => {
                self.child = None;
                anyhow::bail!("{name} ended at start, {status}:\n{}", self.last_words())
            }
        }
    }

    /// The last lines of its log and output.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = format!("{}{}", self.output(), self.log());
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("it was not started")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process id")?, signal)
            .with_context(|| format!("cannot send a signal to {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_lossy(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}
