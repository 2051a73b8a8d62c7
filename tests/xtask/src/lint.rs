//! Format, clippy, and which crates may be in the tree.

use std::process::{Command, Stdio};

use crate::cargo::{self, cargo, command, top};

/// Crates that must not be in the tree, with the reason. Cryptography comes from aws-lc-rs alone: one implementation to
/// build, to trust and to update.
const BANNED: &[(&str, &str)] = &[
    ("openssl", "aws-lc-rs does cryptography here"),
    (
        "openssl-sys",
        "aws-lc-rs does cryptography here, and nothing of the system is linked",
    ),
    ("native-tls", "rustls does TLS here"),
    ("ring", "aws-lc-rs does cryptography here"),
    ("serde_yaml", "it is archived; serde-saphyr reads YAML here"),
];

pub(crate) fn run() -> anyhow::Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])?;
    banned_crates()?;
    cargo_deny()
}

fn banned_crates() -> anyhow::Result<()> {
    println!("$ cargo tree: banned crates");
    let output = command()
        .args([
            "tree",
            "--workspace",
            "--edges",
            "normal,build,dev",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .stderr(Stdio::inherit())
        .output()?;
    anyhow::ensure!(output.status.success(), "cargo tree: {}", output.status);
    let tree = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Vec<_> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| BANNED.iter().find(|(banned, _)| *banned == name))
        .map(|(name, reason)| {
            format!("{name} ({reason}); `cargo tree -i {name}` tells who wants it")
        })
        .collect();
    anyhow::ensure!(
        found.is_empty(),
        "banned crates in the tree: {}",
        found.join("; ")
    );
    Ok(())
}

fn cargo_deny() -> anyhow::Result<()> {
    let installed = command()
        .args(["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !installed {
        eprintln!(
            "\n!!! cargo-deny is not installed: licences, advisories and sources of the dependencies were NOT checked.\n\
             !!! `cargo install --locked cargo-deny` brings it.\n"
        );
        return Ok(());
    }
    let mut deny: Command = command();
    deny.args(["deny", "--config"])
        .arg(top().join(".cargo/deny.toml"))
        .arg("check");
    cargo::run(&mut deny)
}
