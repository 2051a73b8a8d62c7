//! The binaries as they are installed. The dataplane among them is built by a profile of itself at work.
//!
//! What is hot and what is cold differs more in a proxy than the compiler can guess: with a profile, what no request passes is built for
//! size and lies apart from what every request passes, so that an idle sidecar has fewer pages of its program in memory and a busy one
//! fewer misses. The profile is made anew each time, by the load of `cargo xtask bench` on two sidecars, since it belongs to one state of
//! the code and one compiler. (<https://doc.rust-lang.org/rustc/profile-guided-optimization.html>)

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::cargo;

/// What is installed, and the benchmark with what it needs, to measure just that.
const BINARIES: &[&str] = &[
    "global-cp",
    "zone-cp",
    "dataplane",
    "meshctl",
    "bench",
    "demo-app",
];
/// The load of which the profile is made: all that a dataplane does for a living.
const LOAD: &[&str] = &[
    "dataplane",
    "--peers",
    "isthmus",
    "--only",
    "http1,http2,grpc,streaming,tcp,connect,bulk,policies",
    "--rounds",
    "1",
    "--seconds",
    "1",
    "--bulk-mib",
    "256",
];

/// Builds everything and returns the folder it is in.
pub(crate) fn run() -> anyhow::Result<PathBuf> {
    let profdata = profdata()?;
    let mut build = cargo::command();
    build.args(["build", "--release"]);
    for name in BINARIES {
        build.args(["--bin", name]);
    }
    cargo::run(&mut build)?;
    let target = cargo::target_directory()?;
    let binaries = target.join("release");
    let work = target.join("profile");
    let (raw, merged) = (work.join("raw"), work.join("dataplane.profdata"));
    let training = work.join("bin");
    anew(&raw)?;
    anew(&training)?;

    let watched = dataplane(&work, &format!("-Cprofile-generate={}", raw.display()))?;
    for name in BINARIES {
        copy(&binaries.join(name), &training.join(name))?;
    }
    copy(&watched, &training.join("dataplane"))?;
    cargo::run(Command::new(training.join("bench")).args(LOAD))?;
    cargo::run(
        Command::new(&profdata)
            .arg("merge")
            .arg("-o")
            .arg(&merged)
            .arg(&raw),
    )?;

    let order = work.join("order");
    fs::write(&order, by_count(&counts(&profdata, &merged)?))?;
    let built = dataplane(
        &work,
        &format!(
            "-Cprofile-use={} -Clink-arg=-Wl,--symbol-ordering-file={},--no-warn-symbol-ordering",
            merged.display(),
            order.display()
        ),
    )?;
    let dist = target.join("dist");
    anew(&dist)?;
    for name in BINARIES {
        copy(&binaries.join(name), &dist.join(name))?;
    }
    copy(&built, &dist.join("dataplane"))?;
    println!("built: {}", dist.display());
    Ok(dist)
}

/// Builds the dataplane with `flags` for everything that ends up in it, and nothing else.
fn dataplane(work: &Path, flags: &str) -> anyhow::Result<PathBuf> {
    let host = rustc(&["--print", "host-tuple"])?;
    let flags = match std::env::var("RUSTFLAGS") {
        Ok(given) => format!("{given} {flags}"),
        Err(_) => flags.to_owned(),
    };
    // With a target, the flags are not for build scripts and macros.
    cargo::run(
        cargo::command()
            .args(["build", "--release", "--target", &host])
            .args(["--package", "dataplane", "--bin", "dataplane"])
            .env("CARGO_TARGET_DIR", work)
            .env("RUSTFLAGS", flags),
    )?;
    Ok(work.join(host).join("release/dataplane"))
}

/// How often every function was called, as `llvm-profdata show` prints it.
fn counts(profdata: &Path, merged: &Path) -> anyhow::Result<String> {
    let output = Command::new(profdata)
        .args(["show", "--all-functions", "--counts"])
        .arg(merged)
        .output()
        .context("llvm-profdata show")?;
    anyhow::ensure!(
        output.status.success(),
        "llvm-profdata show: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The symbols of all functions that were called, most often first, for the linker. The kernel maps 64 KiB around what is touched: what
/// is used has to lie together for that to be little.
fn by_count(shown: &str) -> String {
    let mut called: Vec<(u64, &str)> = Vec::new();
    let mut symbol = "";
    for line in shown.lines() {
        let (name, value) = line.trim().split_once(": ").unwrap_or((line.trim(), ""));
        match name {
            "Function count" | "Block counts" => {
                let numbers = value.split(|digit: char| !digit.is_ascii_digit());
                let most = numbers.filter_map(|number| number.parse().ok()).max();
                called.extend(most.filter(|most| *most > 0).map(|most| (most, symbol)));
            }
            // A function that is local to a unit: `unit;symbol`.
            _ if line.starts_with("  ") && line.ends_with(':') => {
                let name = name.trim_end_matches(':');
                symbol = name.rsplit_once(';').map_or(name, |(_, symbol)| symbol);
            }
            _ => {}
        }
    }
    called.sort_unstable_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.cmp(y)));
    let mut symbols = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (_, symbol) in called {
        if seen.insert(symbol) {
            symbols.push(symbol);
        }
    }
    symbols.join("\n")
}

/// The tool of this compiler that merges profiles.
fn profdata() -> anyhow::Result<PathBuf> {
    let libraries = PathBuf::from(rustc(&["--print", "target-libdir"])?);
    let tool = libraries.with_file_name("bin").join("llvm-profdata");
    anyhow::ensure!(
        tool.exists(),
        "{} is missing: `rustup component add llvm-tools` brings it",
        tool.display()
    );
    Ok(tool)
}

fn rustc(arguments: &[&str]) -> anyhow::Result<String> {
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(compiler)
        .args(arguments)
        .current_dir(cargo::top())
        .output()
        .context("rustc")?;
    anyhow::ensure!(
        output.status.success(),
        "rustc {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// An empty folder.
fn anew(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| folder.display().to_string());
        }
        _ => {}
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to)
        .with_context(|| format!("{} to {}", from.display(), to.display()))
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_called_most_often_comes_first_and_what_was_not_is_left_to_the_linker() {
        let shown = "Counters:
  _ZN1a1fE:
    Hash: 0x0a
    Counters: 2
    Function count: 3
    Block counts: [1]
  unit.0;_ZN1b1gE:
    Hash: 0x0b
    Counters: 2
    Function count: 1
    Block counts: [0, 70]
  _ZN1c1hE:
    Hash: 0x0c
    Counters: 1
    Block counts: [0]
Instrumentation level: IR  entry_first = 0
";
        assert_eq!(by_count(shown), "_ZN1b1gE\n_ZN1a1fE");
    }
}
