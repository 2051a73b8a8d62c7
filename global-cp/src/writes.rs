//! Writing what somebody asks for: plan, write, and plan again where something changed in between.

use std::sync::Arc;

use mesh_model::api::{WriteOutcome, WriteResult, Written};
use mesh_proto::{
    raft::{self, Entry, EntryResult, Operation, Outcome, operation},
    zone::ResourceKey,
};
use prost::Message as _;

use crate::{
    access,
    api::problem::Problem,
    app::App,
    authorize::Actor,
    changes::{self, Asked, Plan, PlanError},
    cluster::WriteError,
    facts,
    foretell::{self, Foretold},
    state::{image::Image, keys, records},
};
use axum::http::StatusCode;

/// How often a plan is made anew because something it depends on changed before it was written.
const ATTEMPTS_MAX: usize = 8;

/// Resources above which a change is planned beside the threads that serve everybody.
const BIG: usize = 100;

/// What somebody asks for, with all that belongs to the asking.
#[derive(Debug)]
pub struct Request {
    /// What is asked for.
    pub asked: Asked,
    /// Only say what would happen.
    pub dry_run: bool,
    /// The client's id of the write; "" : none.
    pub request_id: String,
    /// What is asked for, in words.
    pub summary: String,
}

/// Writes what `request` asks for, for `actor`, who may.
///
/// # Errors
/// Where it is not acceptable, or not possible now.
pub async fn write(app: &App, actor: &Actor, request: Request) -> Result<Written, Problem> {
    let Request {
        asked,
        dry_run,
        request_id,
        summary,
    } = request;
    let request_id = entry_request_id(app, &request_id, &asked);
    let asked = Arc::new(asked);
    for _ in 0..ATTEMPTS_MAX {
        let image = app.image();
        if let Some(done) = already_done(&image, actor, &request_id) {
            return Ok(written(&keys_of(&asked), &done, Vec::new()));
        }
        access::check_grants(&image, actor, &asked)
            .inspect_err(|denied| app.refused(actor, denied, ""))?;
        let plan = plan(app, actor, &image, &asked).await?;
        if dry_run {
            return Ok(foretell::of_plan(&image, plan)?.written());
        }
        let keys = plan.asked.clone();
        let warnings = plan.warnings.clone();
        let entry = Entry {
            request_id: request_id.clone(),
            actor: Some(entry_actor(actor)),
            operations: plan.operations,
            summary: summary.clone(),
            ..Entry::default()
        };
        let result = app.cluster.write(entry).await?;
        app.metrics.write(result.refusal.is_none());
        let Some(refusal) = &result.refusal else {
            for delete in &asked.delete {
                sweep(app, &delete.key).await;
            }
            return Ok(written(&keys, &result, warnings));
        };
        let index = refusal.operation as usize;
        if has_precondition(&asked, index) {
            return Err(Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "conflict",
                refusal.reason.clone(),
            )
            .detail("read the resource again and repeat the change on top of it"));
        }
        tracing::debug!(reason = %refusal.reason, "planning a write again");
        app.cluster.linearize().await?;
    }
    Err(Problem::conflict("what the change depends on keeps changing; try again").retry_after(1))
}

/// What `asked` would change in `image`. Whether `actor` may is not looked at here.
///
/// # Errors
/// Where it would be refused, for the same reasons.
pub async fn foretell(
    app: &App,
    actor: &Actor,
    image: &Arc<Image>,
    asked: Asked,
) -> Result<Foretold, Problem> {
    let plan = plan(app, actor, image, &Arc::new(asked)).await?;
    foretell::of_plan(image, plan)
}

async fn plan(
    app: &App,
    actor: &Actor,
    image: &Arc<Image>,
    asked: &Arc<Asked>,
) -> Result<Plan, Problem> {
    let is_big = asked.put.len() + asked.delete.len() > BIG;
    let planning = {
        let (app, image, asked) = (app.clone(), image.clone(), asked.clone());
        move || changes::plan(&image, &app.sealing, &asked)
    };
    Ok(app.limits.work(&actor.name, is_big, planning).await??)
}

/// Writes operations of our own making, which need no plan.
///
/// # Errors
/// Where they are not possible now, or something changed before: then with the reason.
pub async fn write_operations(
    app: &App,
    actor: &Actor,
    operations: Vec<Operation>,
    summary: String,
) -> Result<EntryResult, Problem> {
    let entry = Entry {
        actor: Some(entry_actor(actor)),
        operations,
        summary,
        ..Entry::default()
    };
    let result = app.cluster.write(entry).await?;
    app.metrics.write(result.refusal.is_none());
    match &result.refusal {
        None => Ok(result),
        Some(refusal) => Err(Problem::conflict(refusal.reason.clone())),
    }
}

/// Takes away what was put into a mesh, or by a zone, between the look at it and its deletion. Nothing comes after:
/// the guard refuses it.
async fn sweep(app: &App, gone: &ResourceKey) {
    if !matches!(gone.kind.as_str(), "Mesh" | "Zone") || app.cluster.linearize().await.is_err() {
        return;
    }
    let image = app.image();
    if image.get(gone).is_some() {
        return;
    }
    let left = match gone.kind.as_str() {
        "Mesh" => image.all_in_mesh(&gone.name),
        _ => changes::owned_by_zone(&image, &gone.name),
    };
    if left.is_empty() {
        return;
    }
    let mut operations: Vec<Operation> = left
        .into_iter()
        .map(|stored| changes::delete_operation(stored.key, Some(stored.modified_revision)))
        .collect();
    operations.push(facts::guard(&image, &gone.kind, &gone.name));
    let words = format!("delete what was left of {gone}");
    if let Err(problem) = write_operations(app, &Actor::system(), operations, words).await {
        tracing::warn!(reason = %problem.body.title, %gone, "something is left of what was deleted");
    }
}

fn entry_actor(actor: &Actor) -> raft::Actor {
    raft::Actor {
        name: actor.name.clone(),
        address: actor.address.clone(),
    }
}

/// A repeated request is recognised by what was asked for, not by the operations it came to: the second time the same
/// request would come to others.
fn entry_request_id(app: &App, request_id: &str, asked: &Asked) -> String {
    if request_id.is_empty() {
        return String::new();
    }
    let mut content = Vec::new();
    for put in &asked.put {
        content.extend(put.resource.to_json());
        content.extend(format!("{:?}\0", put.revision).into_bytes());
    }
    for delete in &asked.delete {
        content.extend(format!("{:?}{:?}\0", delete.key, delete.revision).into_bytes());
    }
    format!("{request_id}/{}", app.sealing.fingerprint(&content))
}

fn already_done(image: &Image, actor: &Actor, request_id: &str) -> Option<EntryResult> {
    if request_id.is_empty() {
        return None;
    }
    let record = image.record(&keys::request(&actor.name, request_id))?;
    records::Request::decode(record.clone()).ok()?.result
}

fn keys_of(asked: &Asked) -> Vec<ResourceKey> {
    let put = asked.put.iter().map(|put| put.resource.key());
    put.chain(asked.delete.iter().map(|delete| delete.key.clone()))
        .collect()
}

fn has_precondition(asked: &Asked, index: usize) -> bool {
    let put = asked.put.iter().map(|put| put.revision);
    put.chain(asked.delete.iter().map(|delete| delete.revision))
        .nth(index)
        .flatten()
        .is_some()
}

fn written(keys: &[ResourceKey], result: &EntryResult, warnings: Vec<String>) -> Written {
    Written {
        revision: result.revision,
        dry_run: false,
        results: results(keys, result),
        warnings,
        conditions: Vec::new(),
    }
}

/// What became of the first operations of an entry, which are for `keys`.
pub(crate) fn results(keys: &[ResourceKey], result: &EntryResult) -> Vec<WriteResult> {
    keys.iter()
        .zip(&result.operations)
        .map(|(key, operation)| WriteResult {
            key: key.clone().into(),
            outcome: match operation.outcome() {
                Outcome::Created => WriteOutcome::Created,
                Outcome::Updated => WriteOutcome::Updated,
                Outcome::Deleted => WriteOutcome::Deleted,
                Outcome::NotFound => WriteOutcome::NotFound,
                Outcome::Unchanged | Outcome::Unspecified => WriteOutcome::Unchanged,
            },
        })
        .collect()
}

/// Words for the audit: what was put and deleted, shortened.
#[must_use]
pub fn summary(operations: &[Operation]) -> String {
    let mut parts: Vec<String> = operations
        .iter()
        .filter_map(|operation| match operation.operation.as_ref()? {
            operation::Operation::Put(put) => Some(format!("put {}", put.key.as_ref()?)),
            operation::Operation::Delete(delete) => {
                Some(format!("delete {}", delete.key.as_ref()?))
            }
            operation::Operation::SetSystem(_) => None,
        })
        .take(6)
        .collect();
    if parts.len() == 6 {
        parts.truncate(5);
        parts.push("…".to_owned());
    }
    parts.join(", ")
}

impl From<PlanError> for Problem {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Invalid(violations) => Self::invalid(violations),
            PlanError::Failed(reason) => Self::internal(&reason),
        }
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Self {
        match &error {
            WriteError::NoQuorum(_) => Self::unavailable(error.to_string()).detail(
                "the write may still happen; repeating it with the same X-Request-Id is safe",
            ),
            WriteError::TooLarge { .. } => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                error.to_string(),
            ),
            WriteError::Stopped(_) => Self::unavailable(error.to_string()),
        }
    }
}

impl From<crate::cluster::Unavailable> for Problem {
    fn from(error: crate::cluster::Unavailable) -> Self {
        Self::unavailable(error.to_string())
    }
}
