//! `meshctl delete`: deletes resources, as one change.

use std::{collections::BTreeSet, path::PathBuf};

use clap::Args;
use clap_complete::ArgValueCompleter;
use mesh_model::{
    Scope, Writers,
    api::{Batch, Key, WriteOutcome},
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
    sources,
};

const EXAMPLES: &str = "\
Examples:
  meshctl delete meshtrafficpermission web-to-api -m payments
  meshctl delete zones east west
  meshctl delete -f policies/ --wait";

/// Delete resources. All of them are deleted in one revision, or none.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Delete {
    /// The kind, and the names.
    #[arg(
        value_name = "KIND NAME",
        required_unless_present = "files",
        conflicts_with = "files",
        add = ArgValueCompleter::new(completion::kind_and_names)
    )]
    what: Vec<String>,
    /// Delete what these files, folders or - (standard input) name. A mesh takes along what is in it.
    #[arg(short, long = "filename", value_name = "PATH", num_args = 1..)]
    files: Vec<PathBuf>,
    /// A resource that does not exist is no failure.
    #[arg(long)]
    ignore_not_found: bool,
    /// Check everything, also at the server, and change nothing.
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    effect: Effect,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Delete {
    /// Asks for the deletion and shows what became of it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let delete = if self.files.is_empty() {
            keys(&self.what, &connection.mesh()?)?
        } else {
            let resources = sources::read(&self.files, &connection.mesh()?)?;
            without_what_goes_along(resources.iter().map(sources::Sourced::key).collect())
        };
        let client = Client::new(connection)?;
        let batch = Batch {
            delete,
            ..Batch::default()
        };
        let written = apply::write(&client, &batch, self.dry_run).await?;
        output::print(&apply::show(&written, &self.output)?)?;
        apply::warn(&written.warnings);
        self.effect.wait(&client, &written).await?;
        let missing: Vec<_> = written
            .results
            .iter()
            .filter(|result| result.outcome == WriteOutcome::NotFound)
            .map(|result| kinds::display(&result.key))
            .collect();
        if missing.is_empty() || self.ignore_not_found {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "not found: {}",
            missing.join("; ")
        )))
    }
}

/// A mesh takes along what is in it, which then needs no deletion of its own.
fn without_what_goes_along(keys: Vec<Key>) -> Vec<Key> {
    let meshes: BTreeSet<String> = keys
        .iter()
        .filter(|key| key.kind == "Mesh")
        .map(|key| key.name.clone())
        .collect();
    keys.into_iter()
        .filter(|key| !meshes.contains(&key.mesh))
        .collect()
}

fn keys(what: &[String], mesh: &str) -> Result<Vec<Key>, Failure> {
    let Targets { kind, names } = targets(what)?;
    if names.is_empty() {
        return Err(Failure::invalid(format!(
            "which {}? Name them; `meshctl get {}` lists them",
            kind.plural, kind.plural
        )));
    }
    if kind.name == kinds::DATAPLANE || kind.writers == Writers::Zone {
        return Err(Failure::invalid(format!(
            "a {} is not deleted here: stop its process beside the workload, and its zone forgets it",
            kind.name
        )));
    }
    let mesh = match kind.scope {
        Scope::Mesh => mesh,
        Scope::Global => "",
    };
    let key = |name: &String| ResourceKey::global(kind.name, mesh, name).into();
    Ok(names.iter().map(key).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_mesh_counts_only_for_kinds_that_live_in_one() {
        let of = |line| keys(&words(line), "pay").unwrap()[0].mesh.clone();
        assert_eq!(of("meshtrafficpermission web"), "pay");
        assert_eq!(of("zone east"), "");
    }

    #[test]
    fn what_is_in_a_mesh_that_goes_is_not_deleted_by_itself() {
        let key =
            |kind: &str, mesh: &str, name: &str| Key::from(ResourceKey::global(kind, mesh, name));
        let all = vec![
            key("Mesh", "", "pay"),
            key("Secret", "pay", "a"),
            key("Secret", "ana", "a"),
        ];
        let left = without_what_goes_along(all);
        assert_eq!(left, [key("Mesh", "", "pay"), key("Secret", "ana", "a")]);
    }

    #[test]
    fn deleting_everything_of_a_kind_takes_its_names() {
        assert!(matches!(
            keys(&words("zones"), "pay"),
            Err(Failure::Invalid(_))
        ));
    }

    #[test]
    fn a_dataplane_is_deleted_where_it_runs() {
        let refused = keys(&words("dataplane web-1"), "pay")
            .unwrap_err()
            .to_string();
        assert!(refused.contains("stop its process"), "{refused}");
    }
}
