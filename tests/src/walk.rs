//! Walks through a page of the documentation as its reader would: every block of shell commands, one after the other, in
//! one shell, on a machine (a network namespace) of its own, where every port is free.
//!
//! A block marked `sh` is typed in. A block marked `text` right after it is what the page says is printed: each of its
//! lines must appear in the output, in that order, where `…` stands for anything. What a page shows and nobody is to type
//! has another mark, such as `console`.

use std::{fmt::Write as _, fs, path::Path, process::Stdio};

use anyhow::Context as _;

use crate::{process::Recipe, world::World};

/// One block of commands, and what it prints according to the page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Step {
    line: usize,
    commands: String,
    expected: Vec<String>,
}

/// Types in every command of the section of `page` below the heading `section` (the whole page without one).
///
/// # Errors
/// Where something is not printed as the page says; with everything that was printed.
pub fn walk(world: &World, page: &Path, section: Option<&str>) -> anyhow::Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let steps = steps(&text, section);
    anyhow::ensure!(!steps.is_empty(), "{}: nothing to type", page.display());
    let printed = run(world, &steps)?;
    for (at, step) in steps.iter().enumerate() {
        let output = printed.get(at).map_or("", String::as_str);
        if let Some(missing) = first_missing(&step.expected, output) {
            anyhow::bail!(
                "{}:{}: the page says that this is printed: {missing}\n--- and this was:\n{output}\n--- after:\n{}",
                page.display(),
                step.line,
                printed[..at.min(printed.len())].join("\n")
            );
        }
    }
    Ok(())
}

fn steps(text: &str, section: Option<&str>) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = section.is_none();
    let mut level = 0;
    let mut lines = text.lines().enumerate();
    // Only blocks that follow each other with nothing but prose between belong together.
    while let Some((number, line)) = lines.next() {
        if let Some(heading) = line.strip_prefix('#') {
            let depth = 1 + heading.chars().take_while(|c| *c == '#').count();
            let title = line.trim_start_matches('#').trim();
            if Some(title) == section {
                (inside, level) = (true, depth);
            } else if section.is_some() && depth <= level {
                inside = false;
            }
        }
        let Some(mark) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        let body: Vec<_> = lines
            .by_ref()
            .map(|(_, line)| line)
            .take_while(|line| !line.trim_start().starts_with("```"))
            .collect();
        if !inside {
            continue;
        }
        match (mark, steps.last_mut()) {
            ("sh", _) => steps.push(Step {
                line: number + 1,
                commands: body.join("\n"),
                expected: Vec::new(),
            }),
            ("text", Some(step)) => step.expected.extend(
                body.iter()
                    .map(|line| line.trim().to_owned())
                    .filter(|line| !line.is_empty()),
            ),
            _ => {}
        }
    }
    steps
}

/// What each block printed, on both streams.
fn run(world: &World, steps: &[Step]) -> anyhow::Result<Vec<String>> {
    const MARK: &str = "@@ next block";
    // `cargo build` is what a reader does first; here everything is built already.
    let mut script = format!(
        "cargo() {{ :; }}\nip link set lo up\nexport PATH=\"{}:$PATH\"\n",
        world.binaries().display()
    );
    for step in steps {
        let _ = write!(script, "echo '{MARK}'\n{}\n", step.commands);
    }
    // What was started in the background ends with the shell. The shell itself is the first process of its own
    // namespace, so that nothing can stay.
    let script = world.file("walk.sh", &script)?;
    let home = world.directory().join("walk");
    fs::create_dir_all(&home)?;
    let log = world.logs().join("walk.log");
    let output = fs::File::create(&log)?;
    let root = rustix::process::geteuid().is_root();
    let mut recipe = Recipe::new(Path::new("unshare"));
    if !root {
        recipe = recipe.arg("--map-root-user");
    }
    let recipe = recipe
        .arg("--net")
        .arg("--pid")
        .arg("--fork")
        .arg("--mount-proc")
        .arg("--kill-child")
        .arg("bash")
        .arg(script)
        .env("HOME", &home.to_string_lossy())
        .env("NO_PROXY", "*");
    let status = recipe
        .command()
        .current_dir(&home)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .context("unshare and bash are needed to walk through a page")?;
    let printed = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    anyhow::ensure!(
        !printed.contains("unshare:"),
        "no network namespace could be made (root can): {printed}"
    );
    let blocks: Vec<_> = printed.split(MARK).skip(1).map(str::to_owned).collect();
    anyhow::ensure!(
        blocks.len() == steps.len(),
        "the shell ended early ({status}):\n{printed}"
    );
    Ok(blocks)
}

/// The first line of `expected` that `output` does not have, after those before it.
fn first_missing(expected: &[String], output: &str) -> Option<String> {
    let mut lines = output.lines();
    expected
        .iter()
        .find(|wanted| !lines.any(|line| is_like(line.trim(), wanted)))
        .cloned()
}

/// True where `line` is `pattern`, in which `…` stands for anything and several spaces for one.
fn is_like(line: &str, pattern: &str) -> bool {
    let spaces = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, pattern) = (spaces(line), spaces(pattern));
    let parts: Vec<_> = pattern.split('…').map(str::trim).collect();
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
        return false;
    };
    if parts.len() == 1 {
        return line == *first;
    }
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    for part in &parts[1..parts.len() - 1] {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_text_is_what_the_commands_before_it_print() {
        let page = "# A\n```sh\nnot here\n```\n## B\n```sh\none\n```\nwords\n```text\nprinted …\n```\n```yaml\na: b\n```\n```sh\ntwo\n```\n## C\n```sh\nnor here\n```\n";
        let found = steps(page, Some("B"));
        let commands: Vec<_> = found.iter().map(|step| step.commands.as_str()).collect();
        assert_eq!(commands, ["one", "two"]);
        assert_eq!(found[0].expected, ["printed …"]);
        assert_eq!(steps(page, None).len(), 4);
    }

    #[test]
    fn an_ellipsis_stands_for_anything() {
        for (line, pattern, alike) in [
            ("a  b", "a b", true),
            ("a b", "a", false),
            ("zone east online 12", "zone east …", true),
            ("zone east online 12", "… online …", true),
            ("zone east offline", "… online …", false),
            ("x y", "… y", true),
        ] {
            assert_eq!(is_like(line, pattern), alike, "{line:?} {pattern:?}");
        }
    }

    #[test]
    fn lines_must_come_in_order() {
        let expected = ["a".to_owned(), "b".to_owned()];
        assert_eq!(first_missing(&expected, "x\na\ny\nb\n"), None);
        assert_eq!(first_missing(&expected, "b\na\n"), Some("b".to_owned()));
    }
}
