//! `meshctl completion`, and what a shell is offered: words of the command line, and live names from the server.
//!
//! A shell calls the program itself, with the line so far, and gets candidates back. Names are asked of the server with
//! a short time limit; where that fails, nothing is offered and nothing is said, for the person is in the middle of a
//! line.

use std::{ffi::OsStr, time::Duration};

use clap::{Args, CommandFactory as _, FromArgMatches as _, ValueEnum};
use clap_complete::{
    CompleteEnv, CompletionCandidate,
    env::{Bash, EnvCompleter, Fish, Zsh},
};
use mesh_model::{Descriptor, Writers};
use serde_json::Value;

use crate::{
    cli::{Cli, Connection, checked_name},
    client::Client,
    context,
    failure::Failure,
    kinds, output,
};

const EXAMPLES: &str = "\
Examples:
  source <(meshctl completion bash)                                   this shell
  meshctl completion bash > ~/.local/share/bash-completion/completions/meshctl
  meshctl completion zsh > ~/.zfunc/_meshctl                          a folder of $fpath
  meshctl completion fish > ~/.config/fish/completions/meshctl.fish

Kinds, and the names of resources, meshes, zones and contexts are completed. Names come from the server that the line,
the environment or the current context names.";

/// The variable by which a shell asks for candidates.
const ASKED: &str = "_MESHCTL_COMPLETE";
/// A person waits for this no longer than for a key.
const TIME_LIMIT: Duration = Duration::from_millis(800);
/// Names offered at once.
const NAMES_MAX: usize = 500;

/// Print a script that completes commands, kinds and live names in a shell.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Completion {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completion {
    /// Prints the script.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let shell: &dyn EnvCompleter = match self.shell {
            Shell::Bash => &Bash,
            Shell::Zsh => &Zsh,
            Shell::Fish => &Fish,
        };
        // The program as it was called: by name where it is on the path, so that the script outlives an upgrade.
        let called = std::env::args_os().next().unwrap_or_default();
        let called = std::path::PathBuf::from(called);
        let program = if called.components().count() > 1 {
            std::path::absolute(&called).unwrap_or(called)
        } else {
            called
        };
        let mut script = Vec::new();
        shell
            .write_registration(
                ASKED,
                "meshctl",
                "meshctl",
                &program.to_string_lossy(),
                &mut script,
            )
            .map_err(|error| Failure::failed(format!("the script can not be written: {error}")))?;
        output::print(&String::from_utf8_lossy(&script))
    }
}

/// Answers a shell that asks for candidates, and ends the process; returns where none asks.
pub(crate) fn answer_shell() {
    CompleteEnv::with_factory(Cli::command)
        .var(ASKED)
        .complete();
}

/// The meshes there are.
pub(crate) fn meshes(current: &OsStr) -> Vec<CompletionCandidate> {
    starting(current, listed("Mesh"))
}

/// The users there are.
pub(crate) fn users(current: &OsStr) -> Vec<CompletionCandidate> {
    starting(current, listed("User"))
}

/// The zones there are.
pub(crate) fn zones(current: &OsStr) -> Vec<CompletionCandidate> {
    starting(current, listed("Zone"))
}

/// The services of the mesh.
pub(crate) fn services(current: &OsStr) -> Vec<CompletionCandidate> {
    starting(current, listed("MeshService"))
}

/// The dataplanes of the mesh.
pub(crate) fn dataplanes(current: &OsStr) -> Vec<CompletionCandidate> {
    starting(current, listed(kinds::DATAPLANE))
}

/// What may call: services and dataplanes.
pub(crate) fn callers(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut names = listed("MeshService");
    names.extend(listed(kinds::DATAPLANE));
    starting(current, names)
}

/// The saved contexts.
pub(crate) fn contexts(current: &OsStr) -> Vec<CompletionCandidate> {
    starting(current, context::names())
}

/// A kind, then names of that kind; `kind/name` as well.
pub(crate) fn kind_and_names(current: &OsStr) -> Vec<CompletionCandidate> {
    kind_and_names_of(current, |_| true)
}

/// As [`kind_and_names`], for policies.
pub(crate) fn policy_and_name(current: &OsStr) -> Vec<CompletionCandidate> {
    kind_and_names_of(current, kinds::is_policy)
}

/// A kind.
pub(crate) fn kind(current: &OsStr) -> Vec<CompletionCandidate> {
    kind_words(current, |_| true)
}

fn kind_and_names_of(
    current: &OsStr,
    wanted: impl Fn(&Descriptor) -> bool,
) -> Vec<CompletionCandidate> {
    let text = current.to_str().unwrap_or_default();
    if let Some((kind, _)) = text.split_once('/') {
        let Ok(descriptor) = kinds::resolve(kind) else {
            return Vec::new();
        };
        let names = names_of(descriptor).into_iter();
        return starting(
            current,
            names.map(|name| format!("{kind}/{name}")).collect(),
        );
    }
    let line = Line::of_shell();
    match line.positionals.first() {
        None => kind_words(current, wanted),
        Some(kind) => {
            let kind = kind.split('/').next().unwrap_or_default();
            let Ok(kind) = kinds::resolve(kind) else {
                return Vec::new();
            };
            let typed = &line.positionals[1..];
            let names = names_of(kind).into_iter();
            starting(
                current,
                names.filter(|name| !typed.contains(name)).collect(),
            )
        }
    }
}

fn kind_words(current: &OsStr, wanted: impl Fn(&Descriptor) -> bool) -> Vec<CompletionCandidate> {
    let kinds = mesh_model::kinds()
        .iter()
        .filter(|kind| kind.writers != Writers::System && wanted(kind));
    starting(current, kinds.map(|kind| kind.plural.to_owned()).collect())
}

fn starting(current: &OsStr, mut names: Vec<String>) -> Vec<CompletionCandidate> {
    let text = current.to_str().unwrap_or_default();
    names.sort();
    names
        .into_iter()
        .filter(|name| name.starts_with(text))
        .map(CompletionCandidate::new)
        .collect()
}

fn listed(kind: &str) -> Vec<String> {
    kinds::resolve(kind).map_or_else(|_| Vec::new(), names_of)
}

/// The line that a shell wants to complete, as far as it can be understood.
struct Line {
    connection: Connection,
    /// What stands behind the command, without flags and without the word that is completed.
    positionals: Vec<String>,
}

impl Line {
    fn of_shell() -> Self {
        let mut words: Vec<_> = std::env::args_os()
            .skip_while(|word| word != "--")
            .skip(1)
            .collect();
        let index = std::env::var("_CLAP_COMPLETE_INDEX").ok();
        let index = index.and_then(|index| index.parse().ok());
        // Without an index, the last word is the one.
        words.truncate(index.unwrap_or(words.len().saturating_sub(1)));
        Self::of(words)
    }

    fn of(words: Vec<std::ffi::OsString>) -> Self {
        let command = Cli::command().ignore_errors(true);
        let Ok(matches) = command.try_get_matches_from(words) else {
            return Self {
                connection: Connection::default(),
                positionals: Vec::new(),
            };
        };
        let connection = Connection::from_arg_matches(&matches).unwrap_or_default();
        let mut inner = &matches;
        while let Some((_, next)) = inner.subcommand() {
            inner = next;
        }
        let positionals = inner
            .try_get_many::<String>("what")
            .ok()
            .flatten()
            .map(|words| words.cloned().collect())
            .unwrap_or_default();
        Self {
            connection,
            positionals,
        }
    }
}

/// Names of a kind from the server; none where they can not be had in time.
fn names_of(kind: &'static Descriptor) -> Vec<String> {
    let ask = async {
        let connection = Line::of_shell().connection.in_context().ok()?;
        let mesh = connection.mesh().ok()?;
        let client = Client::new(&connection).ok()?;
        let query = match kind.name {
            kinds::DATAPLANE => Vec::new(),
            _ => vec![("limit", NAMES_MAX.to_string())],
        };
        let answer: Value = client.get(&kinds::path(kind, &mesh), &query).await.ok()?;
        Some(names_in(&answer))
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return Vec::new();
    };
    let answer = runtime.block_on(async { tokio::time::timeout(TIME_LIMIT, ask).await });
    // A name look-up that hangs must not hold the shell.
    runtime.shutdown_background();
    answer.ok().flatten().unwrap_or_default()
}

fn names_in(answer: &Value) -> Vec<String> {
    let items = answer["items"].as_array().map(Vec::as_slice);
    let mut names: Vec<_> = items
        .unwrap_or_default()
        .iter()
        .filter_map(|item| item["name"].as_str())
        .filter(|name| checked_name(name).is_ok())
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names.truncate(NAMES_MAX);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line::of(text.split(' ').map(Into::into).collect())
    }

    #[test]
    fn a_line_that_is_not_finished_is_understood_as_far_as_it_goes() {
        let typed = line("meshctl -m pay get msvc --server https://a:1");
        assert_eq!(typed.positionals, ["msvc"]);
        assert_eq!(typed.connection.named_mesh(), Some("pay"));
        assert_eq!(typed.connection.server(), "https://a:1");
        assert!(line("meshctl get").positionals.is_empty());
        assert_eq!(
            line("meshctl get --no-such zones").connection.named_mesh(),
            None
        );
    }

    #[test]
    fn a_name_that_is_none_is_not_offered() {
        let answer = serde_json::json!({"items": [{"name": "b"}, {"name": "a; rm"}, {"name": "a"}, {"name": "a"}]});
        assert_eq!(names_in(&answer), ["a", "b"]);
    }
}
