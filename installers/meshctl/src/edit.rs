//! `meshctl edit`: a resource in an editor, sent back where it was changed.
//!
//! What is sent is bound to the revision that was read, so that nobody's change in the meantime is lost. Where something
//! is wrong, the editor opens again with it as comments; nothing that was typed is thrown away.

use std::{fs, path::PathBuf, process::Command};

use clap::Args;
use clap_complete::ArgValueCompleter;
use mesh_model::{
    Resource, Writers,
    api::{Key, Written},
};
use serde_json::Value;

use crate::{
    apply,
    cli::Connection,
    client::{Client, ClientError},
    completion, diff,
    failure::Failure,
    kinds::{self, Targets, targets},
    output::{self, Format, FormatParser},
};

const EXAMPLES: &str = "\
Examples:
  meshctl edit meshtrafficpermission web-to-api -m payments
  meshctl edit zone east

The editor is the one that VISUAL or EDITOR names, else vi. Leave it without a change, and nothing is sent.";

/// What is ours in the text, and taken out again.
const COMMENT: &str = "#: ";
/// Shown by the server, not written by people.
const READ_ONLY: [&str; 4] = ["revision", "creationTime", "modificationTime", "status"];

/// Change a resource in an editor.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Edit {
    /// The kind, and the name.
    #[arg(value_name = "KIND NAME", required = true, add = ArgValueCompleter::new(completion::kind_and_names))]
    what: Vec<String>,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Edit {
    /// Reads, opens the editor, sends.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let Targets { kind, names } = targets(&self.what)?;
        let [name] = names.as_slice() else {
            return Err(Failure::invalid("one resource at a time: KIND NAME"));
        };
        if matches!(kind.writers, Writers::Zone | Writers::System) || kind.name == kinds::DATAPLANE
        {
            return Err(Failure::invalid(format!(
                "a {} is not edited here: its zone reports it. Change it where its process is started.",
                kind.name
            )));
        }
        let mesh = connection.mesh()?;
        let client = Client::new(connection)?;
        let mut path = kinds::path(kind, &mesh);
        path.push(name);
        let read: Value = client.get(&path, &[]).await?;
        let mut session = Session {
            key: Key {
                kind: kind.name.to_owned(),
                mesh: kinds::text(&read["mesh"]),
                zone: String::new(),
                name: name.clone(),
            },
            revision: revision(&read)?,
            original: editable(&read),
            file: Draft::new(name)?,
        };
        let mut text = session.original.clone();
        let mut notes = vec![format!(
            "{}, revision {}. Lines that begin with {:?} are taken out again.",
            kinds::display(&session.key),
            session.revision,
            COMMENT.trim_end()
        )];
        loop {
            let edited = session.file.edit(&text, &notes)?;
            if edited.trim() == session.original.trim() || edited.trim().is_empty() {
                session.file.remove();
                return output::print("nothing was changed");
            }
            if notes.len() > 1 && edited.trim() == text.trim() {
                return Err(Failure::invalid(format!(
                    "nothing was changed: what is wrong was left as it is\n{}\nYour text is kept in {}",
                    notes[1..].join("\n"),
                    session.file.path.display()
                )));
            }
            text = edited;
            let wrong = match session.check(&text) {
                Ok(resource) => match session.send(&client, &path, &resource).await {
                    Ok(written) => {
                        session.file.remove();
                        output::print(&apply::show(&written, &self.output)?)?;
                        apply::warn(&written.warnings);
                        return Ok(());
                    }
                    Err(error) if error.status() == Some(412) => {
                        session.changed_meanwhile(&client, &path).await?
                    }
                    Err(error) if matches!(error.status(), Some(400 | 422)) => {
                        Failure::from(error).to_string()
                    }
                    Err(error) => return Err(session.kept(&error)),
                },
                Err(wrong) => wrong,
            };
            notes.truncate(1);
            notes.extend(wrong.lines().map(str::to_owned));
        }
    }
}

/// One resource while it is edited.
struct Session {
    key: Key,
    revision: u64,
    original: String,
    file: Draft,
}

impl Session {
    /// Everything that can be known without the server.
    ///
    /// What is wrong is said with the lines at which it stands when the editor opens again, below the notes.
    fn check(&self, text: &str) -> Result<Resource, String> {
        let mesh = match self.key.mesh.as_str() {
            "" => "default",
            mesh => mesh,
        };
        let read = mesh_model::parse_in(text, "", mesh).map_err(|violations| {
            let shift = u32::try_from(violations.0.len() + 1).unwrap_or(u32::MAX);
            let lines = violations.0.into_iter().map(|mut violation| {
                violation.line = violation.line.saturating_add(shift);
                violation.to_string()
            });
            lines.collect::<Vec<_>>().join("\n")
        })?;
        let [resource] = <[Resource; 1]>::try_from(read)
            .map_err(|read| format!("one resource is needed, there are {}", read.len()))?;
        let key = Key::from(resource.key());
        if key != self.key {
            return Err(format!(
                "this is {} now; type, mesh and name stay as they are. `meshctl apply` makes new resources.",
                kinds::display(&key)
            ));
        }
        Ok(resource)
    }

    async fn send(
        &self,
        client: &Client,
        path: &[&str],
        resource: &Resource,
    ) -> Result<Written, ClientError> {
        let body: Value = serde_json::from_slice(&resource.to_json()).unwrap_or_default();
        client.put_at(path, &[], self.revision, &body).await
    }

    /// Takes over the newer revision, and says what is different there.
    async fn changed_meanwhile(
        &mut self,
        client: &Client,
        path: &[&str],
    ) -> Result<String, Failure> {
        let read: Value = match client.get(path, &[]).await {
            Ok(read) => read,
            Err(error) => return Err(self.kept(&error)),
        };
        let newer = editable(&read);
        let changes = diff::lines(&self.original, &newer, false);
        self.revision = revision(&read)?;
        self.original = newer;
        Ok(format!(
            "Somebody changed it meanwhile: revision {} differs from what you had:\n{changes}Take over what is meant, and \
             save: yours then replaces it.",
            self.revision
        ))
    }

    /// A failure that leaves what was typed on disk.
    fn kept(&self, error: &ClientError) -> Failure {
        Failure::failed(format!(
            "{error}\nYour text is kept in {}: `meshctl apply -f` sends it.",
            self.file.path.display()
        ))
    }
}

fn revision(read: &Value) -> Result<u64, Failure> {
    read["revision"]
        .as_u64()
        .ok_or_else(|| Failure::failed("the server's answer has no revision"))
}

/// What a person may change, as YAML.
fn editable(read: &Value) -> String {
    let mut value = read.clone();
    if let Some(object) = value.as_object_mut() {
        for field in READ_ONLY {
            object.remove(field);
        }
        if let Some(labels) = object.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove("isthmus.io/origin");
            if labels.is_empty() {
                object.remove("labels");
            }
        }
    }
    mesh_model::to_yaml(&value)
}

/// The text on disk, where the editor finds it. It stays until it is removed.
struct Draft {
    path: PathBuf,
}

impl Draft {
    fn new(name: &str) -> Result<Self, Failure> {
        let file = tempfile::Builder::new()
            .prefix(&format!("meshctl-{name}-"))
            .suffix(".yaml")
            .tempfile();
        let failed = |error: std::io::Error| Failure::failed(format!("no temporary file: {error}"));
        let (_, path) = file
            .map_err(failed)?
            .keep()
            .map_err(|error| failed(error.error))?;
        Ok(Self { path })
    }

    /// What is left of `text` after the editor, without `notes`.
    fn edit(&self, text: &str, notes: &[String]) -> Result<String, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::failed(format!("{}: {error}", self.path.display()))
        };
        let notes: String = notes
            .iter()
            .map(|note| format!("{COMMENT}{note}\n"))
            .collect();
        fs::write(&self.path, notes + text).map_err(|error| failed(&error))?;
        let editor = editor();
        // An editor may be named with flags.
        let status = Command::new("sh")
            .args(["-c", &format!("{editor} \"$1\""), "sh"])
            .arg(&self.path)
            .status()
            .map_err(|error| {
                Failure::failed(format!("the editor {editor:?} does not start: {error}"))
            })?;
        if !status.success() {
            return Err(Failure::failed(format!(
                "the editor {editor:?} ended with {status}; nothing was sent. Name another one by VISUAL or EDITOR. \
                 Your text is kept in {}",
                self.path.display()
            )));
        }
        let edited = fs::read_to_string(&self.path).map_err(|error| failed(&error))?;
        Ok(without_notes(&edited))
    }

    fn remove(&self) {
        // A file that stays is no reason to fail.
        let _ = fs::remove_file(&self.path);
    }
}

fn without_notes(text: &str) -> String {
    let lines = text
        .lines()
        .filter(|line| !line.starts_with(COMMENT.trim_end()));
    lines.map(|line| format!("{line}\n")).collect()
}

fn editor() -> String {
    let set = |name| {
        std::env::var(name)
            .ok()
            .filter(|value| !value.trim().is_empty())
    };
    set("VISUAL")
        .or_else(|| set("EDITOR"))
        .unwrap_or_else(|| "vi".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_server_adds_is_not_edited() {
        let read = json!({
            "type": "Zone", "name": "east", "enabled": true, "revision": 3, "creationTime": "a", "modificationTime": "b",
            "labels": {"isthmus.io/origin": "global"}, "status": {},
        });
        assert_eq!(editable(&read), "type: Zone\nname: east\nenabled: true\n");
    }

    #[test]
    fn only_our_notes_are_taken_out() {
        assert_eq!(
            without_notes("#: a\n# mine\nx: 1\n#: b\n"),
            "# mine\nx: 1\n"
        );
    }
}
