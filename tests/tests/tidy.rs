//! What must be true of the repository itself.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn top() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn manifest(path: &str) -> toml::Table {
    read(path)
        .parse()
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Folders of the workspace's crates.
fn members() -> Vec<String> {
    manifest("Cargo.toml")["workspace"]["members"]
        .as_array()
        .expect("members is a list")
        .iter()
        .map(|member| member.as_str().expect("a folder").to_owned())
        .collect()
}

/// Files that git knows, or would.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(top())
        .output()
        .expect("git runs");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(PathBuf::from)
        .filter(|path| top().join(path).is_file())
        .collect()
}

fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|section| manifest.get(*section)?.as_table())
        .flat_map(|table| table.keys().cloned())
        .collect()
}

/// Paths in backquotes and in Markdown links.
fn named_paths(text: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for word in text.split('`').skip(1).step_by(2) {
        let path = word
            .split(':')
            .next()
            .unwrap_or_default()
            .trim_end_matches('/');
        let first = path.split('/').next().unwrap_or_default();
        let is_path = path.contains('/')
            && path
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        if is_path && top().join(first).is_dir() && !first.is_empty() {
            named.insert(path.to_owned());
        }
    }
    named
}

#[test]
fn the_map_names_what_is_there() {
    let map = read("docs/ARCHITECTURE.md");
    for path in named_paths(&map) {
        assert!(
            top().join(&path).exists(),
            "docs/ARCHITECTURE.md names {path}, which does not exist"
        );
    }
    for member in members() {
        let name = manifest(&format!("{member}/Cargo.toml"))["package"]["name"].to_string();
        let name = name.trim_matches('"');
        assert!(
            map.contains(&format!("`{name}`")) || map.contains(&format!("`{member}/`")),
            "docs/ARCHITECTURE.md does not name the crate {name} ({member}/)"
        );
    }
}

#[test]
fn links_in_documents_lead_somewhere() {
    for file in files()
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "md"))
    {
        let text = read(&file.to_string_lossy());
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.contains(' ') {
                continue;
            }
            let path = top().join(file).parent().expect("a folder").join(target);
            assert!(
                path.exists(),
                "{} links to {target}, which does not exist",
                file.display()
            );
        }
    }
}

#[test]
fn every_page_of_the_book_is_in_its_summary() {
    let summary = read("docs/book/SUMMARY.md");
    for file in files() {
        let Ok(page) = file.strip_prefix("docs/book") else {
            continue;
        };
        let page = page.to_string_lossy();
        assert!(
            page == "SUMMARY.md" || summary.contains(&format!("]({page})")),
            "docs/book/SUMMARY.md does not list {page}"
        );
    }
}

/// What a page shows as YAML can be applied as it stands.
#[test]
fn yaml_in_documents_is_valid() {
    let mut seen = 0;
    for file in files()
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "md"))
    {
        let name = file.to_string_lossy();
        let text = read(&name);
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            if line.trim_end() != "```yaml" {
                continue;
            }
            let block: Vec<_> = lines
                .by_ref()
                .map(|(_, line)| line)
                .take_while(|line| !line.starts_with("```"))
                .collect();
            seen += 1;
            if let Err(error) = mesh_model::parse(&block.join("\n"), "the block") {
                panic!("{name}:{}: {error}", number + 1);
            }
        }
    }
    assert!(seen > 5, "only {seen} blocks of YAML were found");
}

#[test]
fn nothing_is_left_to_do_in_code() {
    // Written in two parts, so that this file does not find itself.
    let banned = [
        concat!("tod", "o!("),
        concat!("unimplement", "ed!("),
        concat!("dbg", "!("),
    ];
    for file in files()
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "rs"))
    {
        let text = read(&file.to_string_lossy());
        for word in banned {
            assert!(!text.contains(word), "{} holds {word}", file.display());
        }
        // What a file of tests is for, its name says.
        let tests = file.ends_with("tests.rs");
        assert!(
            tests || text.trim_start().starts_with("//!"),
            "{} does not begin by saying what it is for (//!)",
            file.display()
        );
    }
}

#[test]
fn the_top_level_holds_only_what_belongs_there() {
    let allowed = [
        ".cargo",
        ".ci",
        ".clippy.toml",
        ".gitattributes",
        ".gitignore",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "NOTICE",
        "README.md",
        "dataplane",
        "docs",
        "global-cp",
        "installers",
        "mesh-proto",
        "rust-toolchain.toml",
        "rustfmt.toml",
        "tests",
        "zone-cp",
    ];
    for file in files() {
        let first = file
            .components()
            .next()
            .expect("a path")
            .as_os_str()
            .to_string_lossy()
            .into_owned();
        assert!(
            allowed.contains(&first.as_str()),
            "{first} does not belong at the top level"
        );
    }
}

/// Parts meet only in mesh-proto (and in what every process does the same way).
#[test]
fn crates_depend_on_no_more_of_ours_than_the_map_says() {
    let ours: BTreeSet<String> = members()
        .iter()
        .map(|member| {
            manifest(&format!("{member}/Cargo.toml"))["package"]["name"]
                .as_str()
                .expect("a name")
                .to_owned()
        })
        .collect();
    let allowed: &[(&str, &[&str])] = &[
        ("mesh-proto", &[]),
        ("mesh-proto/model", &["mesh-proto"]),
        ("mesh-proto/runtime", &["mesh-proto"]),
        ("global-cp", &["mesh-proto", "mesh-model", "mesh-runtime"]),
        ("zone-cp", &["mesh-proto", "mesh-model", "mesh-runtime"]),
        ("dataplane", &["mesh-proto", "mesh-runtime"]),
        (
            "installers/meshctl",
            &["mesh-proto", "mesh-model", "mesh-runtime"],
        ),
        ("tests", &["mesh-proto", "mesh-model", "mesh-runtime"]),
        ("tests/demo-app", &[]),
        ("tests/torture", &[]),
        ("tests/xtask", &["mesh-tests"]),
    ];
    for member in members() {
        let (_, allowed) = allowed
            .iter()
            .find(|(folder, _)| *folder == member)
            .unwrap_or_else(|| {
                panic!("{member} is new: say in this test what of ours it may depend on")
            });
        let of_ours = dependencies(&manifest(&format!("{member}/Cargo.toml")));
        for dependency in of_ours.intersection(&ours) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{member} depends on {dependency}"
            );
        }
    }
}

#[test]
fn only_global_knows_consensus_and_the_store() {
    for member in members().iter().filter(|member| *member != "global-cp") {
        let dependencies = dependencies(&manifest(&format!("{member}/Cargo.toml")));
        for banned in ["openraft", "redb", "sled"] {
            assert!(
                !dependencies.contains(banned),
                "{member} depends on {banned}"
            );
        }
    }
}

/// All versions stand once, in the workspace's own manifest.
#[test]
fn versions_stand_in_one_place() {
    for member in members() {
        let manifest = manifest(&format!("{member}/Cargo.toml"));
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(|s| s.as_table()) else {
                continue;
            };
            for (name, value) in table {
                let inherited = value
                    .get("workspace")
                    .is_some_and(|w| w.as_bool() == Some(true));
                assert!(
                    inherited,
                    "{member}: {name} in [{section}] does not come from the workspace"
                );
            }
        }
        let lints = manifest.get("lints").and_then(|l| l.get("workspace"));
        assert!(
            lints.is_some(),
            "{member} does not take the workspace's lints"
        );
    }
}

#[test]
fn scripts_can_be_run() {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(top().join(".ci/run"))
        .expect(".ci/run is there")
        .permissions()
        .mode();
    assert!(mode & 0o111 != 0, ".ci/run is not executable");
    assert!(Path::new(&top()).join("LICENSE").is_file());
}
