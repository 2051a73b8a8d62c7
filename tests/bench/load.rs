//! Requests, bulk, idle connections.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use mesh_tests::{
    client::KeptAlive,
    global::run_with_input,
    process::{Process, Recipe},
    usage,
    wait::{SOON, eventually},
    world::World,
};

use crate::{chain::Chain, report::Report};

/// The application: a page of 1 KiB at `/`, and `/bulk`.
#[derive(Debug)]
pub(crate) struct Nginx {
    _process: Process,
    pub port: u16,
}

impl Nginx {
    pub(crate) fn start(world: &World, bulk_mib: u64) -> anyhow::Result<Self> {
        let port = world.port()?;
        let root = world.directory().join("www");
        world.file("www/index.html", &"x".repeat(1024))?;
        // Sparse: reading it costs no disk.
        std::fs::File::create(root.join("bulk"))?.set_len(bulk_mib << 20)?;
        let config = world.file(
            "nginx.conf",
            &format!(
                "daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/logs/nginx.log warn;
user root;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {dir}/nginx-body;
  proxy_temp_path {dir}/nginx-proxy;
  fastcgi_temp_path {dir}/nginx-fastcgi;
  uwsgi_temp_path {dir}/nginx-uwsgi;
  scgi_temp_path {dir}/nginx-scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
",
                dir = world.directory().display(),
                root = root.display(),
            ),
        )?;
        let recipe = Recipe::new("nginx".as_ref()).flag("-c", config);
        let mut process = Process::start(world, "nginx", recipe)?;
        process.wait_ready(|| {
            KeptAlive::open(SocketAddr::from(([127, 0, 0, 1], port)))?
                .get("/")
                .map(|_| ())
        })?;
        Ok(Self {
            _process: process,
            port,
        })
    }
}

/// Waits until the chain answers, and lets it do some work.
pub(crate) fn warm_up(chain: &Chain) -> anyhow::Result<()> {
    eventually(SOON, &format!("{} answers", chain.name), || {
        let body = KeptAlive::open(chain.entry)?.get("/")?;
        anyhow::ensure!(body.len() == 1024, "{} bytes", body.len());
        Ok(())
    })?;
    for _ in 0..20 {
        KeptAlive::open(chain.entry)?.get("/")?;
    }
    Ok(())
}

/// Memory of a side of the chain, all its processes together.
pub(crate) fn resident_mib(pids: &[u32]) -> anyhow::Result<f64> {
    let mut kib = 0;
    for pid in pids.iter().flat_map(|pid| usage::family(*pid)) {
        kib += usage::resident_kib(pid)?;
    }
    Ok(kib as f64 / 1024.0)
}

fn cpu_of(chain: &Chain) -> anyhow::Result<Duration> {
    let mut time = Duration::ZERO;
    for pid in chain.pids().flat_map(usage::family) {
        time += usage::cpu_time(pid)?;
    }
    Ok(time)
}

/// wrk over kept connections.
pub(crate) fn requests(
    chain: &Chain,
    connections: usize,
    time: Duration,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (connections, time, url) = (
        format!("-c{connections}"),
        format!("-d{}s", time.as_secs()),
        format!("http://{}/", chain.entry),
    );
    let before = cpu_of(chain)?;
    let output = run_with_input(
        &Recipe::new("wrk".as_ref()),
        &["-t1", &connections, &time, "--latency", &url],
        "",
    )?;
    let cpu = cpu_of(chain)? - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let seen = wrk(&text).with_context(|| format!("{}: wrk says:\n{text}", chain.name))?;
    anyhow::ensure!(
        !text.contains("Socket errors") && !text.contains("Non-2xx"),
        "{}:\n{text}",
        chain.name
    );
    report.add(&chain.name, "requests/s", seen.per_second);
    report.add(
        &chain.name,
        "CPU µs a request, both proxies",
        cpu.as_secs_f64() * 1e6 / seen.requests,
    );
    report.add(&chain.name, "p50 ms", seen.p50_ms);
    report.add(&chain.name, "p99 ms", seen.p99_ms);
    Ok(())
}

struct Wrk {
    requests: f64,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

fn wrk(text: &str) -> Option<Wrk> {
    let after = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(name))?;
        line.trim_start()
            .strip_prefix(name)?
            .split_whitespace()
            .next()
    };
    let requests = text
        .lines()
        .find(|line| line.contains(" requests in "))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(Wrk {
        requests,
        per_second: after("Requests/sec:")?.parse().ok()?,
        p50_ms: milliseconds(after("50%")?)?,
        p99_ms: milliseconds(after("99%")?)?,
    })
}

fn milliseconds(text: &str) -> Option<f64> {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1000.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            return number.parse::<f64>().ok().map(|number| number * factor);
        }
    }
    None
}

/// One connection that carries as much as it can.
pub(crate) fn bulk(chain: &Chain, mib: u64, report: &mut Report) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(chain.entry)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let before = cpu_of(chain)?;
    let begun = Instant::now();
    stream.write_all(b"GET /bulk HTTP/1.1\r\nHost: bulk\r\nConnection: close\r\n\r\n")?;
    let (mut buffer, mut bytes) = (vec![0; 256 << 10], 0_u64);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            count => bytes += count as u64,
        }
    }
    let time = begun.elapsed();
    let cpu = cpu_of(chain)? - before;
    anyhow::ensure!(
        bytes > mib << 20,
        "{}: bulk ended after {bytes} bytes",
        chain.name
    );
    let gigabytes = bytes as f64 / 1e9;
    report.add(&chain.name, "bulk GB/s", gigabytes / time.as_secs_f64());
    report.add(
        &chain.name,
        "CPU s a GB, both proxies",
        cpu.as_secs_f64() / gigabytes,
    );
    Ok(())
}

/// What each further connection costs once it has nothing to do.
pub(crate) fn idle(chain: &Chain, connections: usize, report: &mut Report) -> anyhow::Result<()> {
    let memory = || -> anyhow::Result<f64> {
        Ok((resident_mib(&chain.client_side)? + resident_mib(&chain.server_side)?) * 1024.0)
    };
    let before = memory()?;
    let mut open = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut connection = KeptAlive::open(chain.entry)?;
        connection.get("/")?;
        open.push(connection);
    }
    let grown = memory()? - before;
    // Two proxies carry each.
    report.add(
        &chain.name,
        "KiB an idle connection, each proxy",
        grown / connections as f64 / 2.0,
    );
    // All of them are alive.
    for connection in &mut open {
        connection.get("/")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_read() {
        let text = "  Latency Distribution\n     50%    1.50ms\n     75%    2.00ms\n     90%    3.00ms\n     99%  900.00us\n  12345 requests in 5.00s, 15.00MB read\nRequests/sec:   2469.00\nTransfer/sec:      3.00MB\n";
        let seen = wrk(text).unwrap();
        assert_eq!((seen.requests, seen.per_second), (12_345.0, 2469.0));
        assert!((seen.p50_ms - 1.5).abs() < 1e-9 && (seen.p99_ms - 0.9).abs() < 1e-9);
    }
}
