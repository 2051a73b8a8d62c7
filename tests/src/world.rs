//! A folder, ports and the binaries of one test; logs are shown where it fails.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::ports::Ports;

/// What one test has for itself. Clones share it; it ends with the last.
#[derive(Debug, Clone)]
pub struct World(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: TempDir,
    binaries: PathBuf,
    ports: Ports,
    addresses: AtomicU32,
    loopback: IpAddr,
}

impl World {
    /// An empty world whose binaries lie beside this executable.
    ///
    /// # Errors
    /// Where they do not, or there is no room for a folder.
    pub fn new() -> anyhow::Result<Self> {
        Self::with_binaries(&beside_this_executable()?)
    }

    /// An empty world in which everything listens on `::1`.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn on_ipv6() -> anyhow::Result<Self> {
        Self::build(&beside_this_executable()?, Ipv6Addr::LOCALHOST.into())
    }

    /// An empty world whose binaries lie in `binaries`.
    ///
    /// # Errors
    /// Where they do not, or there is no room for a folder.
    pub fn with_binaries(binaries: &Path) -> anyhow::Result<Self> {
        Self::build(binaries, Ipv4Addr::LOCALHOST.into())
    }

    fn build(binaries: &Path, loopback: IpAddr) -> anyhow::Result<Self> {
        mesh_runtime::init();
        for name in ["global-cp", "zone-cp", "dataplane", "meshctl", "demo-app"] {
            anyhow::ensure!(
                binaries.join(name).is_file(),
                "{} is missing: `cargo xtask test` builds it (or `cargo build --workspace --bins`)",
                binaries.join(name).display()
            );
        }
        let directory = tempfile::Builder::new().prefix("isthmus-").tempdir()?;
        fs::create_dir(directory.path().join("logs"))?;
        Ok(Self(Arc::new(Inner {
            directory,
            binaries: binaries.to_owned(),
            ports: Ports::new()?,
            addresses: AtomicU32::new(1),
            loopback,
        })))
    }

    /// The world's folder, removed with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.0.directory.path()
    }

    /// Where processes log to.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.directory().join("logs")
    }

    /// The folder with the binaries.
    #[must_use]
    pub fn binaries(&self) -> &Path {
        &self.0.binaries
    }

    /// One of our programs.
    #[must_use]
    pub fn binary(&self, name: &str) -> PathBuf {
        self.0.binaries.join(name)
    }

    /// A port nobody else has, on every loopback address.
    ///
    /// # Errors
    /// Where none is left.
    pub fn port(&self) -> anyhow::Result<u16> {
        self.0.ports.take()
    }

    /// Where everything listens that needs no machine of its own.
    #[must_use]
    pub fn loopback(&self) -> IpAddr {
        self.0.loopback
    }

    /// [`Self::loopback`] with a port of this world.
    ///
    /// # Errors
    /// Where none is left.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok((self.0.loopback, self.port()?).into())
    }

    /// An address out of 127.0.0.0/8 that no other workload of this world has: a machine of its own, in effect.
    #[must_use]
    pub fn machine(&self) -> Ipv4Addr {
        let number = self.0.addresses.fetch_add(1, Ordering::Relaxed);
        Ipv4Addr::from_bits(Ipv4Addr::new(127, 77, 0, 0).to_bits() + number)
    }

    /// Writes a file into the world's folder.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn file(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The last `lines` lines of every log, for a person.
    #[must_use]
    pub fn story(&self, lines: usize) -> String {
        let mut files: Vec<_> = fs::read_dir(self.logs())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        files.sort();
        let mut story = String::new();
        for path in files {
            let text = fs::read(&path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default();
            if text.trim().is_empty() {
                continue;
            }
            let all: Vec<_> = text.lines().collect();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            story.push_str(&format!("--- {name} (last of {} lines)\n", all.len()));
            for line in &all[all.len().saturating_sub(lines)..] {
                story.push_str(&line.chars().take(600).collect::<String>());
                story.push('\n');
            }
        }
        story
    }
}

/// Runs one test in a world of its own. Where it fails, the ends of all logs are shown; `ISTHMUS_TEST_KEEP=1` keeps a
/// copy of the folder as well.
///
/// # Panics
/// Where the test fails.
pub fn scene(test: impl FnOnce(&World) -> anyhow::Result<()>) {
    scene_in(World::new(), test);
}

/// Like [`scene`], in a given world.
///
/// # Panics
/// Where the test fails.
pub fn scene_in(world: anyhow::Result<World>, test: impl FnOnce(&World) -> anyhow::Result<()>) {
    let world = world.unwrap_or_else(|error| panic!("{error:#}"));
    let teller = Teller(world.clone());
    if let Err(error) = test(&world) {
        panic!("{error:?}");
    }
    drop(teller);
}

/// Tells what happened when a test panics.
struct Teller(World);

impl Drop for Teller {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("{}", self.0.story(40));
        if std::env::var_os("ISTHMUS_TEST_KEEP").is_some() {
            let kept = std::env::temp_dir().join(format!("isthmus-failed-{}", std::process::id()));
            let copied = std::process::Command::new("cp")
                .arg("-a")
                .arg(self.0.directory())
                .arg(&kept)
                .status();
            eprintln!(
                "the test's folder is kept in {} ({copied:?})",
                kept.display()
            );
        }
    }
}

/// What speaks gRPC or HTTP for the harness runs here.
///
/// # Panics
/// Where the system gives no threads.
pub fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        mesh_runtime::init();
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("the system gives threads")
    })
}

/// The folder of this executable, or the one above for a test binary (`target/<profile>/deps`).
fn beside_this_executable() -> anyhow::Result<PathBuf> {
    let mut directory = std::env::current_exe()?;
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    Ok(directory)
}
