//! Files, folders and standard input to resources. Everything is read before anything is done, and all that is wrong in
//! all of it is said at once.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use mesh_model::{Resource, Violation, Writers, api::Key};

use crate::{failure::Failure, kinds};

/// Folders within folders are followed this far, so that a link to a folder above ends.
const DEPTH_MAX: usize = 16;
/// What stands for standard input in messages.
const STANDARD_INPUT: &str = "standard input";

/// A resource and where it was read.
#[derive(Debug)]
pub(crate) struct Sourced {
    /// The file.
    pub(crate) source: String,
    /// What it says.
    pub(crate) resource: Resource,
}

impl Sourced {
    /// Names the resource.
    pub(crate) fn key(&self) -> Key {
        self.resource.key().into()
    }
}

/// Reads every resource in `paths`: files, folders with all below them (`.yaml`, `.yml`, `.json`), and `-` for
/// standard input. `mesh` is the mesh of what names none.
pub(crate) fn read(paths: &[PathBuf], mesh: &str) -> Result<Vec<Sourced>, Failure> {
    let mut wrong = Vec::new();
    let mut read = Vec::new();
    for (source, text) in texts(paths, &mut wrong) {
        match mesh_model::parse_in(&text, &source, mesh) {
            Ok(resources) => read.extend(resources.into_iter().map(|resource| Sourced {
                source: source.clone(),
                resource,
            })),
            Err(violations) => wrong.extend(violations.0),
        }
    }
    check(&read, &mut wrong);
    if !wrong.is_empty() {
        let lines: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        return Err(Failure::invalid(format!(
            "nothing was changed, because {}:\n{}",
            match lines.len() {
                1 => "one thing is wrong".to_owned(),
                several => format!("{several} things are wrong"),
            },
            lines.join("\n")
        )));
    }
    if read.is_empty() {
        return Err(Failure::invalid("there is no resource in what was given"));
    }
    Ok(read)
}

/// What can be known only of all files together, and what belongs elsewhere.
fn check(read: &[Sourced], wrong: &mut Vec<Violation>) {
    let mut seen: BTreeMap<Key, &str> = BTreeMap::new();
    for sourced in read {
        let key = sourced.key();
        let kind = sourced.resource.kind();
        let elsewhere = if kind.name == kinds::DATAPLANE {
            Some(
                "a Dataplane lives in its zone, not in global: start `dataplane run --dataplane-file FILE` beside the \
                 workload, it registers itself",
            )
        } else {
            match kind.writers {
                Writers::Zone => Some(
                    "only zones write this kind: its zone reports it by itself when the process that it describes runs",
                ),
                Writers::System => Some("only the control planes write this kind"),
                Writers::Admin | Writers::AdminOrZone => None,
            }
        };
        if let Some(message) = elsewhere {
            wrong.push(violation(
                &sourced.source,
                &format!("{}: {message}", kinds::display(&key)),
            ));
        }
        if let Some(first) = seen.insert(key.clone(), &sourced.source) {
            wrong.push(violation(
                &sourced.source,
                &format!(
                    "{} is there twice, the first time in {first}",
                    kinds::display(&key)
                ),
            ));
        }
    }
}

fn violation(source: &str, message: &str) -> Violation {
    Violation {
        source: source.to_owned(),
        line: 0,
        column: 0,
        path: String::new(),
        message: message.to_owned(),
    }
}

/// Every text with its name, in order; what can not be read becomes a violation.
pub(crate) fn texts(paths: &[PathBuf], wrong: &mut Vec<Violation>) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for path in paths {
        let before = files.len();
        if path.as_os_str() == "-" {
            files.push(path.clone());
        } else if let Err((at, error)) = collect(path, 0, &mut files) {
            wrong.push(violation(&at.display().to_string(), &error.to_string()));
        } else if files.len() == before {
            wrong.push(violation(
                &path.display().to_string(),
                "the folder holds no .yaml, .yml or .json file",
            ));
        }
    }
    let mut texts = Vec::new();
    for file in files {
        let (name, text) = if file.as_os_str() == "-" {
            let mut text = String::new();
            let read = std::io::stdin().read_to_string(&mut text);
            (STANDARD_INPUT.to_owned(), read.map(|_| text))
        } else {
            (file.display().to_string(), fs::read_to_string(&file))
        };
        match text {
            Ok(text) => texts.push((name, text)),
            Err(error) => wrong.push(violation(&name, &error.to_string())),
        }
    }
    texts
}

/// A file itself, or the files in a folder in alphabetical order, hidden ones left out.
fn collect(
    path: &Path,
    depth: usize,
    files: &mut Vec<PathBuf>,
) -> Result<(), (PathBuf, std::io::Error)> {
    let at = |error| (path.to_owned(), error);
    if !fs::metadata(path).map_err(at)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    if depth == DEPTH_MAX {
        return Err(at(std::io::Error::other(format!(
            "more than {DEPTH_MAX} folders within each other: a link that leads back?"
        ))));
    }
    let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut entries: Vec<_> = entries
        .map_err(at)?
        .iter()
        .map(fs::DirEntry::path)
        .collect();
    entries.sort();
    for entry in entries {
        let hidden = entry
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let wanted = entry.extension().is_some_and(|extension| {
            ["yaml", "yml", "json"]
                .iter()
                .any(|known| extension.eq_ignore_ascii_case(known))
        });
        if !hidden && (wanted || entry.is_dir()) {
            collect(&entry, depth + 1, files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_folder_is_read_with_all_below_it_in_order_without_hidden_and_other_files() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "b.yaml",
            "type: Mesh\nname: b\n---\ntype: Mesh\nname: c\n",
        );
        write(dir.path(), "a/x.json", r#"{"type": "Mesh", "name": "a"}"#);
        write(dir.path(), "notes.txt", "not a resource");
        write(dir.path(), ".hidden/z.yaml", "type: Nonsense");
        let read = read(&[dir.path().to_owned()], "default").unwrap();
        let names: Vec<_> = read.iter().map(|r| r.resource.meta.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn everything_wrong_in_every_file_is_said_at_once() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.yaml", "type: Mesh\nname: A\n");
        write(
            dir.path(),
            "b.yaml",
            "type: Zone\nname: east\nenable: true\n",
        );
        write(dir.path(), "c.yaml", "type: Mesh\nname: [\n");
        let missing = dir.path().join("missing.yaml");
        let refused = read(&[dir.path().to_owned(), missing], "default")
            .unwrap_err()
            .to_string();
        for word in [
            "a.yaml:2:",
            "b.yaml:3:",
            "c.yaml:",
            "missing.yaml",
            "enabled",
        ] {
            assert!(refused.contains(word), "{word} in {refused}");
        }
    }

    #[test]
    fn one_resource_in_two_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let a = write(dir.path(), "a.yaml", "type: Mesh\nname: pay\n");
        let b = write(dir.path(), "b.yaml", "type: Mesh\nname: pay\n");
        let refused = read(&[a, b], "default").unwrap_err().to_string();
        assert!(refused.contains("twice"), "{refused}");
    }

    #[test]
    fn a_dataplane_is_sent_to_where_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let file = write(
            dir.path(),
            "dp.yaml",
            "type: Dataplane\nmesh: pay\nname: web-1\nnetworking:\n  address: 127.0.0.1\n  inbound:\n  - port: 80\n    servicePort: 8080\n",
        );
        let refused = read(&[file], "default").unwrap_err().to_string();
        assert!(refused.contains("dataplane run"), "{refused}");
    }

    #[test]
    fn nothing_to_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            read(&[dir.path().to_owned()], "default"),
            Err(Failure::Invalid(_))
        ));
        let empty = write(dir.path(), "empty.yaml", "# nothing\n");
        assert!(matches!(
            read(&[empty], "default"),
            Err(Failure::Invalid(_))
        ));
    }
}
