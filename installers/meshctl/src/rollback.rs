//! `meshctl rollback`: brings resources back to what they were at a revision, as one new change.

use std::io::{IsTerminal as _, Write as _};

use clap::Args;
use clap_complete::ArgValueCompleter;
use mesh_model::{
    Scope,
    api::{Key, Rollback as Request, Written},
};
use mesh_proto::zone::ResourceKey;

use crate::{
    apply,
    cli::Connection,
    client::Client,
    completion,
    failure::Failure,
    kinds::{self, Targets, targets},
    output::{self, Format, FormatParser},
    rollout::Effect,
};

const EXAMPLES: &str = "\
Examples:
  meshctl history meshtrafficpermission web-to-api -m payments
  meshctl rollback meshtrafficpermission web-to-api -m payments --to 41
  meshctl rollback -m payments --to 41 --dry-run     what that would undo in the whole mesh
  meshctl rollback -m payments --to 41 --yes --wait

The result is a new revision; nothing of the history is lost, and a rollback can be rolled back.";

/// Bring resources, or all that administrators wrote in a mesh, back to what they were at a revision.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Rollback {
    /// The kind, and the names; none: everything that administrators wrote in the mesh.
    #[arg(value_name = "KIND NAME", add = ArgValueCompleter::new(completion::kind_and_names))]
    what: Vec<String>,
    /// The revision; what was written after it is undone.
    #[arg(long, value_name = "REVISION", required = true, value_parser = clap::value_parser!(u64).range(1..))]
    to: u64,
    /// Say what would happen, and change nothing.
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Do not ask before a whole mesh is brought back.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    effect: Effect,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Rollback {
    /// Asks for it, and waits where that is wanted.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let mesh = connection.mesh()?;
        let keys = if self.what.is_empty() {
            Vec::new()
        } else {
            keys(&self.what, &mesh)?
        };
        let whole = keys.is_empty();
        if whole && !self.yes && !self.dry_run {
            confirm(
                &format!(
                    "this undoes everything in mesh {mesh} since revision {}",
                    self.to
                ),
                "look at what it would undo with --dry-run, and say --yes where that is meant",
            )?;
        }
        let client = Client::new(connection)?;
        let request = Request {
            to: self.to,
            mesh: whole.then_some(mesh),
            keys,
        };
        let query: Vec<_> = self
            .dry_run
            .then(|| ("dry_run", "true".to_owned()))
            .into_iter()
            .collect();
        let written: Written = client.post(&["rollback"], &query, &request).await?;
        if written.results.is_empty() && self.output.is_table() {
            return output::print(&format!(
                "nothing to bring back: all is as it was at revision {}",
                self.to
            ));
        }
        output::print(&apply::show(&written, &self.output)?)?;
        apply::warn(&written.warnings);
        self.effect.wait(&client, &written).await
    }
}

fn keys(what: &[String], mesh: &str) -> Result<Vec<Key>, Failure> {
    let Targets { kind, names } = targets(what)?;
    if names.is_empty() {
        return Err(Failure::invalid(format!(
            "which {}? Name them, or name no kind to bring back the whole mesh",
            kind.plural
        )));
    }
    if kind.name == kinds::DATAPLANE {
        return Err(Failure::invalid(
            "a Dataplane lives in its zone's memory and has no history: start it with what it had before",
        ));
    }
    let mesh = match kind.scope {
        Scope::Mesh => mesh,
        Scope::Global => "",
    };
    let key = |name: &String| ResourceKey::global(kind.name, mesh, name).into();
    Ok(names.iter().map(key).collect())
}

/// Asks whether what can not easily be undone is meant.
pub(crate) fn confirm(what: &str, otherwise: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::invalid(format!("{what}: {otherwise}")));
    }
    eprint!("{what}. Go on? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stderr()
        .flush()
        .and_then(|()| std::io::stdin().read_line(&mut answer));
    match (read, answer.trim().to_lowercase().as_str()) {
        (Ok(_), "y" | "yes") => Ok(()),
        _ => Err(Failure::invalid(format!(
            "nothing was changed: {otherwise}"
        ))),
    }
}
