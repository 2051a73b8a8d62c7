//! Builds and tests.

use std::{path::PathBuf, process::Command};

use anyhow::Context as _;

/// The top of the workspace.
pub(crate) fn top() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Runs cargo at the top of the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    run(command().args(arguments))
}

/// The cargo that runs this task, at the top of the workspace.
pub(crate) fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(top());
    command
}

/// Runs a command to its end, which must be a good one.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let words: Vec<_> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let line = words.join(" ");
    println!("$ {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot run {line}"))?;
    anyhow::ensure!(status.success(), "{line}: {status}");
    Ok(())
}

/// Builds every binary and returns the folder they are in.
pub(crate) fn build_binaries(release: bool) -> anyhow::Result<PathBuf> {
    let mut arguments = vec!["build", "--workspace", "--bins"];
    if release {
        arguments.push("--release");
    }
    cargo(&arguments)?;
    Ok(target_directory()?.join(if release { "release" } else { "debug" }))
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> anyhow::Result<PathBuf> {
    // This very binary lies in `<target directory>/<its own profile>`.
    let mut target = std::env::current_exe()?;
    target.pop();
    target.pop();
    Ok(target)
}
