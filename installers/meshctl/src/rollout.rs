//! Waiting until a revision is in effect. Only what has acknowledged counts: a dataplane that refused, was sent the
//! change and has not answered, or is not connected does not.

use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use mesh_model::api::{Key, Rollout, Written, ZoneRollout};

use crate::{
    client::{Client, ClientError},
    conditions,
    failure::Failure,
    kinds,
};

const ASK_EVERY: Duration = Duration::from_millis(200);

/// Flags of a command that writes.
#[derive(Debug, Args)]
pub(crate) struct Effect {
    /// Wait until every dataplane concerned, in every zone, has acknowledged the change. Exit code 3 where one refuses
    /// it or is silent.
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, requires = "wait")]
    pub(crate) timeout: Duration,
}

impl Effect {
    /// Where waiting is wanted: until `written` is in effect. Then says what the zones say about it.
    pub(crate) async fn wait(&self, client: &Client, written: &Written) -> Result<(), Failure> {
        if !self.wait {
            return Ok(());
        }
        let keys: Vec<_> = written.results.iter().map(|result| &result.key).collect();
        let waited = wait(client, written.revision, &meshes(&keys), self.timeout).await;
        // The zones have spoken by now.
        say_conditions(client, &keys).await;
        waited
    }
}

/// Waits until `revision` is in effect at every dataplane of `meshes` (none named: of every mesh), and shows on
/// standard error how far it is.
async fn wait(
    client: &Client,
    revision: u64,
    meshes: &[String],
    timeout: Duration,
) -> Result<(), Failure> {
    let number = revision.to_string();
    let query: Vec<_> = meshes.iter().map(|mesh| ("mesh", mesh.clone())).collect();
    let mut progress = Progress::new(revision);
    let deadline = Instant::now() + timeout;
    loop {
        let so_far = match client.get::<Rollout>(&["rollout", &number], &query).await {
            Ok(rollout) => {
                progress.show(&rollout);
                match stage(&rollout) {
                    Stage::Complete => {
                        progress.finish();
                        return Ok(());
                    }
                    Stage::Refused => {
                        progress.finish();
                        return Err(Failure::Incomplete(report(&rollout, None)));
                    }
                    Stage::UnderWay => report(&rollout, Some(timeout)),
                }
            }
            Err(error) => {
                let message = format!(
                    "revision {revision} is written, but how far it is can not be asked: {error}"
                );
                if !may_pass(&error) {
                    progress.finish();
                    return Err(Failure::Incomplete(message));
                }
                message
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            progress.finish();
            return Err(Failure::Incomplete(so_far));
        }
        tokio::time::sleep(ASK_EVERY.min(left)).await;
    }
}

/// The meshes a change concerns; none: all of them.
fn meshes(keys: &[&Key]) -> Vec<String> {
    let mut meshes = Vec::new();
    for key in keys {
        let mesh = if key.kind == "Mesh" {
            &key.name
        } else {
            &key.mesh
        };
        if mesh.is_empty() {
            return Vec::new();
        }
        meshes.push(mesh.clone());
    }
    meshes.sort();
    meshes.dedup();
    meshes
}

/// Resources that are asked about after a write.
const ASKED_MAX: usize = 50;

/// Says on standard error what the zones say about what was written: policies that select nothing, references that lead
/// nowhere, conflicts.
async fn say_conditions(client: &Client, keys: &[&Key]) {
    for key in keys.iter().take(ASKED_MAX) {
        let Ok(kind) = kinds::resolve(&key.kind) else {
            continue;
        };
        let mut path = kinds::path(kind, &key.mesh);
        path.push(&key.name);
        // What was deleted says nothing, and the write itself has succeeded.
        let Ok(read) = client.get::<serde_json::Value>(&path, &[]).await else {
            continue;
        };
        for line in conditions::lines(&read) {
            eprintln!("warning: {}: {line}", kinds::display(key));
        }
    }
}

/// A node that is away for a moment, or does not have the revision yet, is no reason to give up: the change is written.
fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::Lost { .. } => true,
        error => matches!(error.status(), Some(400 | 503)),
    }
}

/// Where a revision stands.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// In effect everywhere.
    Complete,
    /// Everybody who can answer has, and not all of them agreed.
    Refused,
    /// Answers are missing.
    UnderWay,
}

fn stage(rollout: &Rollout) -> Stage {
    let refused =
        |zone: &ZoneRollout| !zone.refused.is_empty() || !zone.refused_resources.is_empty();
    let answered = |zone: &ZoneRollout| zone.applied && zone.pending.is_empty();
    if rollout.complete {
        Stage::Complete
    } else if rollout.zones.iter().any(refused) && rollout.zones.iter().all(answered) {
        Stage::Refused
    } else {
        Stage::UnderWay
    }
}

/// Dataplanes that acknowledged, and all. What a zone that has not compiled the revision counts is about an older one.
fn counts(rollout: &Rollout) -> (u64, u64) {
    let current = rollout.zones.iter().filter(|zone| zone.applied);
    (
        current.map(|zone| u64::from(zone.current)).sum(),
        rollout
            .zones
            .iter()
            .map(|zone| u64::from(zone.dataplanes))
            .sum(),
    )
}

/// Who has not acknowledged, and why. `after` is set where time ran out.
fn report(rollout: &Rollout, after: Option<Duration>) -> String {
    let (current, all) = counts(rollout);
    let mut lines = vec![format!(
        "revision {} is written, but {}: {current} of {all} dataplanes have acknowledged it",
        rollout.revision,
        match after {
            None => "was refused".to_owned(),
            Some(time) => format!(
                "not in effect everywhere after {}",
                humantime::format_duration(time)
            ),
        }
    )];
    for zone in &rollout.zones {
        let mut say = |text: String| lines.push(format!("zone {}: {text}", zone.zone));
        if !zone.applied {
            say(match zone.state.as_str() {
                "offline" => "offline: its control plane is not connected".to_owned(),
                "stale" => "stale: nothing was heard from its control plane for 30 s".to_owned(),
                state => format!("its control plane ({state}) has not compiled the revision"),
            });
        }
        for resource in &zone.refused_resources {
            say(format!("could not apply {resource}"));
        }
        for refused in &zone.refused {
            say(format!(
                "dataplane {} refused document {}: {}",
                refused.dataplane, refused.document, refused.reason
            ));
        }
        for dataplane in &zone.pending {
            say(format!(
                "dataplane {dataplane} is silent: it was sent the change and has not answered"
            ));
        }
        for dataplane in &zone.silent {
            say(format!(
                "dataplane {dataplane} is silent: it is not connected"
            ));
        }
    }
    lines.join("\n")
}

/// A bar on a terminal, a line for each change elsewhere. Both on standard error.
struct Progress {
    bar: ProgressBar,
    revision: u64,
    shown: String,
}

impl Progress {
    fn new(revision: u64) -> Self {
        // Draws on standard error, and not at all where that is no terminal.
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template(
            "{spinner} {prefix} [{bar:30}] {pos}/{len} dataplanes  {msg}",
        ) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(format!("revision {revision}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self {
            bar,
            revision,
            shown: String::new(),
        }
    }

    fn show(&mut self, rollout: &Rollout) {
        let (current, all) = counts(rollout);
        let waiting: Vec<_> = rollout
            .zones
            .iter()
            .filter(|zone| !zone.applied || zone.current < zone.dataplanes)
            .map(|zone| zone.zone.as_str())
            .collect();
        let message = if waiting.is_empty() {
            String::new()
        } else {
            format!("waiting for {}", waiting.join(", "))
        };
        self.bar.set_length(all);
        self.bar.set_position(current);
        self.bar.set_message(message.clone());
        let mut line = format!(
            "revision {}: {current} of {all} dataplanes have acknowledged",
            self.revision
        );
        if !message.is_empty() {
            line = format!("{line}, {message}");
        }
        if self.bar.is_hidden() && line != self.shown {
            eprintln!("{line}");
        }
        self.shown = line;
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
        if !self.bar.is_hidden() && !self.shown.is_empty() {
            eprintln!("{}", self.shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_model::api::Refused;

    use super::*;

    fn key(kind: &str, mesh: &str, name: &str) -> Key {
        mesh_proto::zone::ResourceKey::global(kind, mesh, name).into()
    }

    #[test]
    fn a_change_concerns_its_meshes_and_one_outside_any_mesh_all() {
        let (mesh, policy) = (key("Mesh", "", "pay"), key("Secret", "ana", "x"));
        assert_eq!(meshes(&[&mesh, &policy]), ["ana", "pay"]);
        assert!(meshes(&[&mesh, &key("Zone", "", "east")]).is_empty());
    }

    fn zone(name: &str, applied: bool, dataplanes: u32, current: u32) -> ZoneRollout {
        ZoneRollout {
            zone: name.to_owned(),
            state: "online".to_owned(),
            applied,
            dataplanes,
            current,
            pending: vec![],
            silent: vec![],
            refused: vec![],
            refused_resources: vec![],
        }
    }

    fn rollout(zones: Vec<ZoneRollout>) -> Rollout {
        Rollout {
            revision: 7,
            complete: false,
            zones,
        }
    }

    fn refusing(name: &str) -> ZoneRollout {
        let mut zone = zone(name, true, 2, 1);
        zone.refused.push(Refused {
            dataplane: "pay/web".to_owned(),
            document: "proxy".to_owned(),
            reason: "unknown feature \"x\"".to_owned(),
        });
        zone
    }

    #[test]
    fn a_refusal_ends_the_wait_once_everybody_who_can_has_answered() {
        assert_eq!(stage(&rollout(vec![refusing("east")])), Stage::Refused);
        let behind = rollout(vec![refusing("east"), zone("west", false, 1, 1)]);
        assert_eq!(stage(&behind), Stage::UnderWay);
        let mut pending = refusing("east");
        pending.pending.push("pay/api".to_owned());
        assert_eq!(stage(&rollout(vec![pending])), Stage::UnderWay);
    }

    #[test]
    fn what_a_zone_says_of_an_older_revision_does_not_count() {
        let both = rollout(vec![zone("east", true, 2, 2), zone("west", false, 3, 3)]);
        assert_eq!(counts(&both), (2, 5));
    }

    #[test]
    fn the_report_names_everybody_who_has_not_acknowledged_with_the_reason() {
        let mut silent = zone("west", false, 1, 0);
        silent.state = "offline".to_owned();
        silent.silent.push("pay/db".to_owned());
        let report = report(
            &rollout(vec![refusing("east"), silent]),
            Some(Duration::from_secs(60)),
        );
        assert_eq!(
            report,
            "revision 7 is written, but not in effect everywhere after 1m: 1 of 3 dataplanes have acknowledged it\n\
             zone east: dataplane pay/web refused document proxy: unknown feature \"x\"\n\
             zone west: offline: its control plane is not connected\n\
             zone west: dataplane pay/db is silent: it is not connected"
        );
    }
}
