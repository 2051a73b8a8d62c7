//! The binaries as they are installed. The dataplane among them is built by a profile of itself at work.
//!
//! What is hot and what is cold differs more in a proxy than the compiler can guess: with a profile, what no request passes is built for
//! size and lies apart from what every request passes, so that an idle sidecar has fewer pages of its program in memory and a busy one
//! fewer misses. The profile is made anew each time, by the load of `cargo xtask bench` on two sidecars, since it belongs to one state of
//! the code and one compiler. (<https://doc.rust-lang.org/rustc/profile-guided-optimization.html>)

use std::{
    collections::HashMap,
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

/// Builds everything.
pub(crate) fn run() -> anyhow::Result<()> {
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

    let watched = dataplane(&work, &format!("-Cprofile-generate={}", raw.display()))?;
    gather(&binaries, &watched, &training)?;
    cargo::run(Command::new(training.join("bench")).args(LOAD))?;
    cargo::run(
        Command::new(&profdata)
            .arg("merge")
            .arg("-o")
            .arg(&merged)
            .arg(&raw),
    )?;

    let order = work.join("order");
    let shown = output(
        Command::new(&profdata)
            .args(["show", "--all-functions", "--counts"])
            .arg(&merged),
    )?;
    fs::write(&order, by_count(&shown))?;
    let built = dataplane(
        &work,
        &format!(
            "-Cprofile-use={} -Clink-arg=-Wl,--symbol-ordering-file={},--no-warn-symbol-ordering",
            merged.display(),
            order.display()
        ),
    )?;
    let dist = target.join("dist");
    gather(&binaries, &built, &dist)?;
    println!("built: {}", dist.display());
    Ok(())
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

/// The symbols of all functions that were called, most often first, for the linker. The kernel maps 64 KiB around what is touched: what
/// is used has to lie together for that to be little.
fn by_count(shown: &str) -> String {
    let mut called: HashMap<&str, u64> = HashMap::new();
    let mut symbol = "";
    for line in shown.lines() {
        let (name, value) = line.trim().split_once(": ").unwrap_or((line.trim(), ""));
        match name {
            "Function count" | "Block counts" => {
                let numbers = value.split(|digit: char| !digit.is_ascii_digit());
                let most = numbers.filter_map(|number| number.parse().ok()).max();
                let count = called.entry(symbol).or_default();
                *count = most.unwrap_or(0).max(*count);
            }
            // A function that is local to a unit: `unit;symbol`.
            _ if line.starts_with("  ") && line.ends_with(':') => {
                let name = name.trim_end_matches(':');
                symbol = name.rsplit_once(';').map_or(name, |(_, symbol)| symbol);
            }
            _ => {}
        }
    }
    let mut called: Vec<_> = called.into_iter().filter(|(_, count)| *count > 0).collect();
    called.sort_unstable_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
    let symbols: Vec<_> = called.into_iter().map(|(symbol, _)| symbol).collect();
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
    output(
        Command::new(compiler)
            .args(arguments)
            .current_dir(cargo::top()),
    )
}

/// What a command prints, which must come to a good end.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let what = format!("{command:?}");
    let output = command.output().with_context(|| what.clone())?;
    anyhow::ensure!(
        output.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Makes `folder` anew, with all `binaries`, but this `dataplane`.
fn gather(binaries: &Path, dataplane: &Path, folder: &Path) -> anyhow::Result<()> {
    anew(folder)?;
    for name in BINARIES {
        copy(&binaries.join(name), &folder.join(name))?;
    }
    copy(dataplane, &folder.join("dataplane"))
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
