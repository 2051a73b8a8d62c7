//! What was typed: the commands, and the flags that all of them share.

use std::{fs, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::{
    apply::Apply, delete::Delete, failure::Failure, get::Get, global::Global, history::History,
    inspect::Inspect, token::Token, version::Version, zone::Zone,
};

const AFTER_HELP: &str = "\
Examples:
  meshctl apply -f mesh.yaml                 write what a file says
  meshctl apply -f policies/ --wait          write a folder and wait until every dataplane runs it
  meshctl get meshservices -m payments       list the services of a mesh
  meshctl token create zone-join --zone east make the token with which zone east joins
  meshctl global status                      nodes, leader and zones

Exit codes:
  0  done
  1  failed: not reached, refused, not found
  2  wrong usage or invalid input; nothing was changed
  3  written, but refused by a dataplane or a zone, or not in effect everywhere in time";

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
    Get(Get),
    Delete(Delete),
    History(History),
    Inspect(Inspect),
    Zone(Zone),
    Token(Token),
    Global(Global),
    Version(Version),
}

impl Cli {
    /// Carries out what was typed.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let connection = &self.connection;
        match self.command {
            Command::Apply(command) => command.run(connection).await,
            Command::Get(command) => command.run(connection).await,
            Command::Delete(command) => command.run(connection).await,
            Command::History(command) => command.run(connection).await,
            Command::Inspect(command) => command.run(connection).await,
            Command::Zone(command) => command.run(connection).await,
            Command::Token(command) => command.run(connection).await,
            Command::Global(command) => command.run(connection).await,
            Command::Version(command) => command.run(connection).await,
        }
    }
}

/// Where the global control plane is, who asks, and in which mesh.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Connection {
    /// The API of a global control plane node.
    #[arg(
        long,
        global = true,
        env = "ISTHMUS_SERVER",
        value_name = "URL",
        default_value = "https://localhost:5682"
    )]
    pub(crate) server: String,
    /// The token; it also says which CA the server must have.
    #[arg(
        long,
        global = true,
        env = "ISTHMUS_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// A file with the token; goes before --token and ISTHMUS_TOKEN.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Trust servers whose certificate one of these CAs (PEM) signed for their host name, instead of the CA that the
    /// token names.
    #[arg(long, global = true, env = "ISTHMUS_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The mesh.
    #[arg(short, long, global = true, env = "ISTHMUS_MESH", value_name = "MESH")]
    mesh: Option<String>,
}

/// The mesh that is meant where nobody names one.
const DEFAULT_MESH: &str = "default";

impl Connection {
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
    fn flags_may_stand_before_and_after_the_command() {
        for line in [
            "meshctl --server https://a:1 -m pay get zones",
            "meshctl get zones --server https://a:1 -m pay",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.connection.server, "https://a:1");
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
