//! What was typed: the commands, and the flags that all of them share.

use std::{fs, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::ArgValueCompleter;

use crate::{
    apply::Apply,
    audit::Audit,
    check::Check,
    completion,
    completion::Completion,
    context::{self, Context},
    delete::Delete,
    diff::Diff,
    edit::Edit,
    explain::Explain,
    failure::Failure,
    get::Get,
    global::Global,
    history::History,
    import::Import,
    inspect::Inspect,
    plan::Plan,
    rollback::Rollback,
    tap::Tap,
    token::Token,
    top::Top,
    version::Version,
    watch::Watch,
    zone::Zone,
};

const AFTER_HELP: &str = "\
Examples:
  meshctl apply -f mesh.yaml                  write what a file says
  meshctl plan -f policies/                   what that would change, and for which dataplanes
  meshctl apply -f policies/ --wait           write a folder and wait until every dataplane runs it
  meshctl get meshservices -m payments        list the services of a mesh
  meshctl explain --from web --to api         may web call api, and which policies say so
  meshctl token create zone-join --zone east  make the token with which zone east joins
  meshctl global status                       nodes, leader and zones

Exit codes:
  0  done
  1  failed: not reached, refused, not found
  2  wrong usage or invalid input; nothing was changed
  3  written, but refused by a dataplane or a zone, or not in effect everywhere in time
  4  done, and the answer is not the good one: `diff --exit-code` differs, `explain --expect` disagrees, `check`
     found something, `import` could not keep everything

Colours are used on terminals only, and not where NO_COLOR is set.";

/// The command line of the service mesh Isthmus.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Apply(Apply),
    Diff(Diff),
    Plan(Plan),
    Edit(Edit),
    Get(Get),
    Watch(Watch),
    Delete(Delete),
    History(History),
    Rollback(Rollback),
    Inspect(Inspect),
    Explain(Explain),
    Top(Top),
    Tap(Tap),
    Check(Check),
    Audit(Audit),
    Zone(Zone),
    Token(Token),
    Global(Global),
    Import(Import),
    Context(Context),
    Completion(Completion),
    Version(Version),
}

impl Cli {
    /// Carries out what was typed.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let typed = self.connection;
        match self.command {
            // These need no server, or not the one of a context.
            Command::Import(command) => return command.run(&typed),
            Command::Context(command) => return command.run(&typed),
            Command::Completion(command) => return command.run(),
            Command::Zone(command) if command.is_join() => return command.run(&typed).await,
            _ => {}
        }
        let connection = &typed.in_context()?;
        match self.command {
            Command::Apply(command) => command.run(connection).await,
            Command::Diff(command) => command.run(connection).await,
            Command::Plan(command) => command.run(connection).await,
            Command::Edit(command) => command.run(connection).await,
            Command::Get(command) => command.run(connection).await,
            Command::Watch(command) => command.run(connection).await,
            Command::Delete(command) => command.run(connection).await,
            Command::History(command) => command.run(connection).await,
            Command::Rollback(command) => command.run(connection).await,
            Command::Inspect(command) => command.run(connection).await,
            Command::Explain(command) => command.run(connection).await,
            Command::Top(command) => command.run(connection).await,
            Command::Tap(command) => command.run(connection).await,
            Command::Check(command) => command.run(connection).await,
            Command::Audit(command) => command.run(connection).await,
            Command::Zone(command) => command.run(connection).await,
            Command::Token(command) => command.run(connection).await,
            Command::Global(command) => command.run(connection).await,
            Command::Version(command) => command.run(connection).await,
            Command::Import(_) | Command::Context(_) | Command::Completion(_) => Ok(()),
        }
    }
}

/// Where the global control plane is, who asks, and in which mesh.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Connection {
    /// The API of a global control plane node [default: https://localhost:5682]
    #[arg(long, global = true, env = "ISTHMUS_SERVER", value_name = "URL")]
    pub(crate) server: Option<String>,
    /// The token; it also says which CA the server must have.
    #[arg(
        long,
        global = true,
        env = "ISTHMUS_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,
    /// A file with the token; goes before --token and ISTHMUS_TOKEN.
    #[arg(long, global = true, env = "ISTHMUS_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Trust servers whose certificate one of these CAs (PEM) signed for their host name, instead of the CA that the
    /// token names.
    #[arg(long, global = true, env = "ISTHMUS_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The mesh [default: default]
    #[arg(short, long, global = true, env = "ISTHMUS_MESH", value_name = "MESH",
          add = ArgValueCompleter::new(completion::meshes))]
    pub(crate) mesh: Option<String>,
    /// A saved context for what is not given here, instead of the current one (`meshctl context list`).
    #[arg(long, global = true, env = "ISTHMUS_CONTEXT", value_name = "NAME",
          add = ArgValueCompleter::new(completion::contexts))]
    pub(crate) context: Option<String>,
}

/// Where a global control plane is looked for where nobody says.
const DEFAULT_SERVER: &str = "https://localhost:5682";
/// The mesh that is meant where nobody names one.
const DEFAULT_MESH: &str = "default";

impl Connection {
    /// What was typed, completed by the context that is in use.
    pub(crate) fn in_context(self) -> Result<Self, Failure> {
        let Some(saved) = context::in_use(self.context.as_deref())? else {
            return Ok(self);
        };
        let mut all = self;
        // One token only: a saved one never stands beside one that was typed.
        if all.token.is_none() && all.token_file.is_none() {
            (all.token, all.token_file) = (saved.token, saved.token_file);
        }
        all.server = all.server.or(saved.server);
        all.ca_file = all.ca_file.or(saved.ca_file);
        all.mesh = all.mesh.or(saved.mesh);
        Ok(all)
    }

    /// The server.
    pub(crate) fn server(&self) -> &str {
        self.server.as_deref().unwrap_or(DEFAULT_SERVER)
    }

    /// The token, where one was given.
    pub(crate) fn token(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.token_file else {
            return Ok(self.token.as_deref().map(|text| text.trim().to_owned()));
        };
        let text = fs::read_to_string(path)
            .map_err(|error| Failure::invalid(format!("{}: {error}", path.display())))?;
        Ok(Some(text.trim().to_owned()))
    }

    /// The mesh that was named, or `default`.
    pub(crate) fn mesh(&self) -> Result<String, Failure> {
        let mesh = self.mesh.as_deref().unwrap_or(DEFAULT_MESH);
        checked_name(mesh)?;
        Ok(mesh.to_owned())
    }

    /// The mesh that was named.
    pub(crate) fn named_mesh(&self) -> Option<&str> {
        self.mesh.as_deref()
    }
}

/// Refuses what can name no resource, before it becomes a part of a URL.
pub(crate) fn checked_name(name: &str) -> Result<(), Failure> {
    if mesh_proto::names::is_subdomain(name) {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "{name:?} is not a name: names hold lower-case letters, digits, '-' and '.', beginning and ending with a \
         letter or digit"
    )))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_that_it_understands() {
        let mut missing = Vec::new();
        let mut wrong = Vec::new();
        let mut left = vec![(Cli::command(), String::from("meshctl"))];
        while let Some((command, path)) = left.pop() {
            for inner in command.get_subcommands() {
                left.push((inner.clone(), format!("{path} {}", inner.get_name())));
            }
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let mut examples = 0;
            // A line that ends in a backslash goes on in the next one.
            let help = help.replace("\\\n", " ");
            for line in help.lines().filter(|line| line.starts_with("  ")) {
                for call in line
                    .split('|')
                    .filter_map(|part| part.trim().split_once("meshctl "))
                {
                    let call = format!("meshctl {}", call.1);
                    // What is meant with an example stands behind it, after two blanks.
                    let call = call.split("  ").next().unwrap_or_default();
                    let call = call.split([')', '>']).next().unwrap_or_default();
                    let words = shell_words(call);
                    examples += usize::from(call.starts_with(path.as_str()));
                    if let Err(error) = Cli::try_parse_from(&words)
                        && !matches!(error.kind(), clap::error::ErrorKind::DisplayHelp)
                    {
                        wrong.push(format!("{path}: {call}: {error}"));
                    }
                }
            }
            if examples == 0 {
                missing.push(path);
            }
        }
        assert!(missing.is_empty(), "no examples: {missing:#?}");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// Splits at blanks, single quotes minded.
    fn shell_words(text: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for c in text.chars() {
            match c {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                c => words.last_mut().unwrap().push(c),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn flags_may_stand_before_and_after_the_command() {
        for line in [
            "meshctl --server https://a:1 -m pay get zones",
            "meshctl get zones --server https://a:1 -m pay",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.connection.server(), "https://a:1");
            assert_eq!(cli.connection.named_mesh(), Some("pay"));
        }
    }

    #[test]
    fn a_token_file_goes_before_a_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "from-file\n").unwrap();
        let path = path.to_str().unwrap();
        let cli = Cli::try_parse_from([
            "meshctl",
            "--token",
            "typed",
            "--token-file",
            path,
            "version",
        ])
        .unwrap();
        assert_eq!(
            cli.connection.token().unwrap().as_deref(),
            Some("from-file")
        );
    }

    #[test]
    fn what_is_no_name_never_becomes_a_part_of_a_url() {
        for bad in ["", "..", "a/b", "A", "a?b", "a b"] {
            assert!(checked_name(bad).is_err(), "{bad}");
        }
        checked_name("web-1.v2").unwrap();
    }
}
