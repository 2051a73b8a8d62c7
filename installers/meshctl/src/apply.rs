//! `meshctl apply`: writes what files say, as one change.

use std::path::PathBuf;

use clap::Args;
use mesh_model::api::{Batch, WriteOutcome, Written};

use crate::{
    cli::Connection,
    client::{Client, ClientError},
    conditions,
    failure::Failure,
    kinds,
    output::{self, Format, FormatParser, Found},
    rollout::Effect,
    sources::{self, Sourced},
};

const EXAMPLES: &str = "\
Examples:
  meshctl apply -f mesh.yaml
  meshctl apply -f mesh.yaml -f policies/ --dry-run
  meshctl apply -f policies/ --wait --timeout 2m
  meshctl get meshtrafficpermissions -o yaml | meshctl apply -f -";

/// Write resources. All of them are written in one revision, or none.
///
/// Every file is read and checked before anything is sent; everything wrong in all of them is listed at once with
/// file, line, column and field.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Apply {
    /// Files, folders (with all .yaml, .yml and .json below them), or - for standard input.
    #[arg(short, long = "filename", value_name = "PATH", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// Check everything, also at the server, and change nothing.
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    effect: Effect,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Apply {
    /// Reads, sends, and waits where that is wanted.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let resources = sources::read(&self.files, &connection.mesh()?)?;
        let client = Client::new(connection)?;
        let asked = match (self.dry_run, self.effect.wait) {
            (true, _) => Asked::DryRun,
            (false, true) => Asked::Write,
            (false, false) => Asked::WriteAndConditions,
        };
        let written = send(&client, &batch(&resources)?, asked)
            .await
            .map_err(|error| at_sources(error, &resources))?;
        output::print(&show(&written, &self.output)?)?;
        warn(&written.warnings);
        let bad = written
            .conditions
            .iter()
            .filter(|one| conditions::is_bad(one));
        for condition in bad {
            let resource = kinds::display(&condition.key);
            eprintln!("warning: {resource}: {}", conditions::line(condition));
        }
        self.effect.wait(&client, &written).await
    }
}

/// Says on standard error what is accepted and may not do what its author expects.
pub(crate) fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

/// Sends a batch.
pub(crate) async fn write(
    client: &Client,
    batch: &Batch,
    dry_run: bool,
) -> Result<Written, ClientError> {
    let asked = if dry_run { Asked::DryRun } else { Asked::Write };
    send(client, batch, asked).await
}

/// What is asked of the server.
#[derive(Clone, Copy)]
enum Asked {
    /// What would happen.
    DryRun,
    /// That it happens.
    Write,
    /// That it happens, and what can be said about it at once. After a wait more is known.
    WriteAndConditions,
}

async fn send(client: &Client, batch: &Batch, asked: Asked) -> Result<Written, ClientError> {
    let query = match asked {
        Asked::DryRun => vec![("dry_run", "true".to_owned())],
        Asked::Write => Vec::new(),
        Asked::WriteAndConditions => vec![("conditions", "true".to_owned())],
    };
    client.post(&["batch"], &query, batch).await
}

/// What puts all of them.
pub(crate) fn batch(resources: &[Sourced]) -> Result<Batch, Failure> {
    let put = resources
        .iter()
        .map(|sourced| serde_json::from_slice(&sourced.resource.to_json()))
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::failed(format!("a resource does not become JSON: {error}")))?;
    Ok(Batch {
        put,
        ..Batch::default()
    })
}

/// What puts all of them, or deletes them.
pub(crate) fn batch_or_deletion(resources: &[Sourced], delete: bool) -> Result<Batch, Failure> {
    if delete {
        return Ok(Batch {
            delete: resources.iter().map(Sourced::key).collect(),
            ..Batch::default()
        });
    }
    batch(resources)
}

/// The server speaks of `put[3].spec.ports`; the person knows the file and the resource.
pub(crate) fn at_sources(error: ClientError, resources: &[Sourced]) -> Failure {
    let ClientError::Refused(mut problem, after) = error else {
        return error.into();
    };
    for violation in &mut problem.violations {
        // What stood here is about the request, which the person has not seen.
        violation.source.clear();
        (violation.line, violation.column) = (0, 0);
        let Some((index, field)) = place_in_batch(&violation.path) else {
            continue;
        };
        let Some(sourced) = resources.get(index) else {
            continue;
        };
        violation.source.clone_from(&sourced.source);
        let resource = kinds::display(&sourced.key());
        violation.path = match field {
            "" => resource,
            field => format!("{resource}: {field}"),
        };
    }
    ClientError::Refused(problem, after).into()
}

/// Takes `put[3].spec.ports` apart.
fn place_in_batch(path: &str) -> Option<(usize, &str)> {
    let (index, field) = path.strip_prefix("put[")?.split_once(']')?;
    Some((index.parse().ok()?, field.trim_start_matches('.')))
}

/// The result as the person wants it.
pub(crate) fn show(written: &Written, format: &Format) -> Result<String, Failure> {
    let name = |written: &serde_json::Value| {
        let results = written["results"].as_array().into_iter().flatten();
        let names = results.map(|result| {
            let word = |field: &str| kinds::text(&result["key"][field]);
            kinds::short_name(&word("type"), &word("name"))
        });
        names.collect::<Vec<_>>().join("\n")
    };
    let table = || {
        let tail = if written.dry_run { " (dry run)" } else { "" };
        let lines = written.results.iter().map(|result| {
            format!(
                "{} {}{tail}\n",
                kinds::display(&result.key),
                outcome(result.outcome)
            )
        });
        let mut text: String = lines.collect();
        if !written.dry_run {
            text.push_str(&format!("revision {}\n", written.revision));
        }
        text
    };
    format.show(&Found::one(written)?, table, name)
}

/// What happened, in a word.
pub(crate) fn outcome(outcome: WriteOutcome) -> &'static str {
    match outcome {
        WriteOutcome::Created => "created",
        WriteOutcome::Updated => "updated",
        WriteOutcome::Unchanged => "unchanged",
        WriteOutcome::Deleted => "deleted",
        WriteOutcome::NotFound => "not found",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        apply: Apply,
    }

    fn parse(line: &str) -> Result<Apply, clap::Error> {
        Line::try_parse_from(line.split(' ')).map(|line| line.apply)
    }

    #[test]
    fn several_paths_may_follow_one_flag_or_several() {
        for line in ["apply -f a.yaml b -", "apply -f a.yaml -f b -f -"] {
            assert_eq!(parse(line).unwrap().files.len(), 3);
        }
        assert!(parse("apply").is_err());
    }

    #[test]
    fn a_dry_run_has_nothing_to_wait_for() {
        assert!(parse("apply -f a --dry-run --wait").is_err());
        assert!(parse("apply -f a --timeout 2m").is_err());
        assert_eq!(
            parse("apply -f a --wait --timeout 2m")
                .unwrap()
                .effect
                .timeout,
            std::time::Duration::from_secs(120)
        );
    }

    #[test]
    fn what_the_server_says_of_a_place_in_the_batch_is_said_of_the_file() {
        assert_eq!(place_in_batch("put[12].spec.a"), Some((12, "spec.a")));
        assert_eq!(place_in_batch("put[1]"), Some((1, "")));
        assert_eq!(place_in_batch("spec.a"), None);
    }
}
