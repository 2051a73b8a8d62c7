//! Workloads: the demo's application, and an echo.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::{
    api,
    process::{Process, Recipe},
    world::World,
};

/// One process of the demo's application.
#[derive(Debug)]
pub struct App {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

impl App {
    /// Starts `role` (`web`, `api` or `store`), which calls the next one at `upstream`.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(
        world: &World,
        role: &str,
        mesh: &str,
        zone: &str,
        upstream: Option<SocketAddr>,
    ) -> anyhow::Result<Self> {
        let address = world.address()?;
        let mut recipe = Recipe::new(&world.binary("demo-app"))
            .arg(role)
            .flag("--listen", address.to_string())
            .flag("--mesh", mesh)
            .flag("--zone", zone);
        if let Some(upstream) = upstream {
            recipe = recipe.flag("--upstream", format!("http://{upstream}"));
        }
        let mut process = Process::start(world, &format!("{mesh}-{role}-app"), recipe)?;
        process.wait_ready(|| {
            let answer = api::plain_get(&format!("http://{address}/healthz"))?;
            anyhow::ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })?;
        Ok(Self { process, address })
    }
}

/// A workload inside the test: it answers each line with its own name and the line, and ends after `bye`.
#[derive(Debug)]
pub struct Echo {
    /// Where it listens.
    pub address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl Echo {
    /// Starts an echo that calls itself `name`.
    ///
    /// # Errors
    /// Where it can not listen.
    pub fn start(world: &World, name: &str) -> anyhow::Result<Self> {
        Self::start_at(world, name, world.loopback())
    }

    /// Starts an echo on another machine (see [`World::machine`]).
    ///
    /// # Errors
    /// Where it can not listen.
    pub fn start_at(world: &World, name: &str, machine: impl Into<IpAddr>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((machine.into(), world.port()?))?;
        let address = listener.local_addr()?;
        let stopped = Arc::new(AtomicBool::new(false));
        let (name, stop) = (name.to_owned(), stopped.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(stream), name) = (stream, name.clone()) else {
                    continue;
                };
                thread::spawn(move || answer(stream, &name));
            }
        });
        Ok(Self { address, stopped })
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // Wakes the thread that accepts, so that it sees the flag and closes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

/// A workload inside the test that speaks HTTP/1.1: it answers each request with its own name and the head of the request.
#[derive(Debug)]
pub struct Mirror {
    /// Where it listens.
    pub address: SocketAddr,
}

impl Mirror {
    /// Starts one that calls itself `name`. It ends with the test's process.
    ///
    /// # Errors
    /// Where it can not listen.
    pub fn start(world: &World, name: &str) -> anyhow::Result<Self> {
        Self::start_at(world, name, world.loopback())
    }

    /// Starts one on another machine (see [`World::machine`]).
    ///
    /// # Errors
    /// Where it can not listen.
    pub fn start_at(world: &World, name: &str, machine: impl Into<IpAddr>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((machine.into(), world.port()?))?;
        let address = listener.local_addr()?;
        let name = name.to_owned();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let name = name.clone();
                thread::spawn(move || show(&stream, &name));
            }
        });
        Ok(Self { address })
    }
}

/// Answers requests without bodies until the caller ends.
fn show(stream: &TcpStream, name: &str) -> Option<()> {
    let mut writer = stream;
    let mut lines = BufReader::new(stream).lines();
    loop {
        let mut body = format!("{name}\n");
        loop {
            let line = lines.next()?.ok()?;
            if line.is_empty() {
                break;
            }
            body.push_str(&line);
            body.push('\n');
        }
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        writer.write_all(answer.as_bytes()).ok()?;
    }
}

/// Ends when the caller does, whichever way.
fn answer(stream: TcpStream, name: &str) {
    let Ok(mut writer) = stream.try_clone() else {
        return;
    };
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        if line == "bye" {
            return;
        }
        if writer
            .write_all(format!("{name}: {line}\n").as_bytes())
            .is_err()
        {
            return;
        }
    }
}
