//! The benchmark works: its quick form runs through, and notes down everything. What the numbers are is nobody's concern here.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use mesh_tests::world::World;
use serde_json::Value;

/// Beginnings of rows that there must be for a pair of proxies: something of each part.
const ROWS: &[&str] = &[
    "idle, client's side: MiB",
    "idle, server's side: MiB",
    "idle, 100 connections, HTTP/1.1: KiB a connection, client's side",
    "idle, 100 connections, TCP: KiB a connection, server's side",
    "HTTP/1.1, 1 connection: CPU µs a request",
    "HTTP/1.1, 16 connections: p99.9 ms",
    "HTTP/2, 16 connections: CPU µs a request",
    "HTTP/2, 2 × 8 streams: CPU µs a request",
    "gRPC unary, 16 connections: calls/s",
    "gRPC streaming, 16 connections: messages/s",
    "TCP, 16 connections: CPU µs a request",
    "HTTP/1.1 anew, 16 connections: connections/s",
    "TCP anew, 16 connections: connections/s",
    "TCP anew, no resumption, 16 connections: connections/s",
    "HTTP/1.1, 16 connections, at half of its own saturation: p99 ms",
    "HTTP/2, 16 connections, at half of its own saturation: p99 ms",
    "bulk, HTTP/1.1: GB/s",
    "bulk, TCP: GB/s",
];

/// What our own pair has a column for, beside none and all of them.
const POLICIES: &[&str] = &[
    "bare",
    "permissions",
    "route rules",
    "timeouts",
    "metrics",
    "all",
];

#[test]
fn the_benchmark_has_every_row_for_us_and_for_haproxy() {
    let told = run_quick().unwrap_or_else(|error| panic!("{error:#}"));
    let missing = told["missing"].as_array().cloned().unwrap_or_default();
    for note in &missing {
        // Past the test's capture: who reads a green run shall see what it did not look at.
        let _ = writeln!(std::io::stderr(), "\n!!! benchmark: {note}\n");
    }
    let rows: BTreeSet<(&str, &str)> = told["measured"]
        .as_array()
        .expect("it notes down what it measured")
        .iter()
        .filter_map(|row| Some((row["peer"].as_str()?, row["quantity"].as_str()?)))
        .collect();
    let has = |peer: &str, beginning: &str| {
        let mut rows = rows.iter();
        rows.any(|(of, quantity)| *of == peer && quantity.starts_with(beginning))
    };
    let haproxy_is_there = !missing.iter().any(|note| {
        note.as_str()
            .is_some_and(|note| note.contains("haproxy is not installed"))
    });
    let peers = ["isthmus", "haproxy"];
    for peer in &peers[..1 + usize::from(haproxy_is_there)] {
        for row in ROWS {
            assert!(has(peer, row), "{peer} has no row {row:?} in {rows:#?}");
        }
    }
    for policy in POLICIES {
        assert!(
            has(policy, "HTTP/1.1, 16 connections: CPU µs a request"),
            "no cost of {policy:?} in {rows:#?}"
        );
    }
}

/// What it noted down. It fails where a turn failed.
fn run_quick() -> anyhow::Result<Value> {
    let world = World::new()?;
    let json = world.directory().join("bench.json");
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args([
            "dataplane",
            "--quick",
            "--peers",
            "isthmus,haproxy",
            "--json",
        ])
        .arg(&json)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "{}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let text = std::fs::read_to_string(&json).context("it wrote no JSON")?;
    Ok(serde_json::from_str(&text)?)
}
