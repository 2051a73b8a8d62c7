//! Several changes as one.

use std::collections::BTreeSet;

use axum::{Json, extract::State, http::HeaderMap};
use mesh_model::{
    Resource, Violation,
    api::{Batch, Condition, Precondition, Written},
    find_kind,
};
use mesh_proto::zone::ResourceKey;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    caller::{Body, Caller, Params},
    observed::Observed,
    problem::Problem,
    query,
};
use crate::{
    access,
    app::App,
    authorize::{Action, mesh_of},
    changes::{Asked, AskedDelete, AskedPut},
    writes,
};

/// Bytes of a body above which it is read beside the threads that serve everybody.
const BIG_BYTES: usize = 64 << 10;

/// Parameters of a batch.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchQuery {
    /// Only say what would happen.
    #[serde(default)]
    dry_run: bool,
    /// Say too what is to be said about what was written, as far as it is known at once.
    #[serde(default)]
    conditions: bool,
}

/// `POST /v1/batch`: `application/json` is a [`Batch`], anything else YAML documents to put.
pub async fn batch(
    State(app): State<App>,
    caller: Caller,
    Params(params): Params<BatchQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Written>, Problem> {
    query::no_precondition(&headers)?;
    let asked = read(&app, &caller, body).await?;
    authorize_all(&app, &caller, &asked)?;
    let words = summary(&asked);
    let request = writes::Request {
        asked,
        dry_run: params.dry_run,
        request_id: query::request_id(&headers)?,
        summary: words,
    };
    let mut written = writes::write(&app, &caller.actor, request).await?;
    if params.conditions && !written.dry_run {
        written.conditions = conditions_of(&app, &written).await;
    }
    Ok(Json(written))
}

/// Conditions in one answer.
const CONDITIONS_MAX: usize = 1000;

/// What is to be said about what was written.
async fn conditions_of(app: &App, written: &Written) -> Vec<Condition> {
    let image = app.image();
    let mut observed = Observed::now(app, &image).await;
    let mut found = Vec::new();
    for result in &written.results {
        let conditions = observed.conditions_of(&result.key.clone().into()).await;
        let room = CONDITIONS_MAX.saturating_sub(found.len());
        found.extend(conditions.into_iter().take(room));
    }
    found
}

/// What the body asks for: `application/json` is a [`Batch`], anything else YAML documents to put.
///
/// # Errors
/// Where it can not be understood, with every violation.
pub async fn read(app: &App, caller: &Caller, body: Body) -> Result<Asked, Problem> {
    body.check_media_type()?;
    let is_big = body.text.len() > BIG_BYTES;
    let reading = move || {
        if body.media_type == "application/json" {
            from_json(&body)
        } else {
            from_documents(&body)
        }
    };
    app.limits.work(&caller.actor.name, is_big, reading).await?
}

/// Says whether the caller may do all that is asked for.
///
/// # Errors
/// Where it may not do some of it.
pub fn authorize_all(app: &App, caller: &Caller, asked: &Asked) -> Result<(), Problem> {
    let mut looked_at = BTreeSet::new();
    for (action, key) in actions(asked) {
        // The same question once, however many resources it concerns.
        let mesh = mesh_of(&key).to_owned();
        if looked_at.insert((action_word(action), key.kind.clone(), mesh)) {
            caller.may(app, action, mesh_of(&key), &key.kind)?;
        }
    }
    access::check_grants(&app.image(), &caller.actor, asked)
        .inspect_err(|denied| app.refused(&caller.actor, denied, ""))?;
    Ok(())
}

fn action_word(action: Action) -> &'static str {
    if action == Action::Write {
        "put"
    } else {
        "delete"
    }
}

fn actions(asked: &Asked) -> Vec<(Action, ResourceKey)> {
    let put = asked
        .put
        .iter()
        .map(|put| (Action::Write, put.resource.key()));
    let delete = asked
        .delete
        .iter()
        .map(|delete| (Action::Delete, delete.key.clone()));
    put.chain(delete).collect()
}

/// What is asked for, in words, shortened.
pub(super) fn summary(asked: &Asked) -> String {
    const SHOWN: usize = 5;
    let actions = actions(asked);
    let mut words: Vec<String> = actions
        .iter()
        .take(SHOWN)
        .map(|(action, key)| format!("{} {key}", action_word(*action)))
        .collect();
    if actions.len() > SHOWN {
        words.push(format!("and {} more", actions.len() - SHOWN));
    }
    words.join(", ")
}

fn from_documents(body: &Body) -> Result<Asked, Problem> {
    let resources = mesh_model::parse(&body.text, &body.source)?;
    if resources.is_empty() {
        return Err(Problem::bad_request("the body holds no resource"));
    }
    Ok(Asked {
        put: resources.into_iter().map(put).collect(),
        delete: vec![],
    })
}

fn from_json(body: &Body) -> Result<Asked, Problem> {
    let batch: Batch = serde_json::from_str(&body.text).map_err(|error| {
        Problem::invalid(vec![Violation {
            source: body.source.clone(),
            line: u32::try_from(error.line()).unwrap_or_default(),
            column: u32::try_from(error.column()).unwrap_or_default(),
            path: String::new(),
            message: format!("not a batch ({error}): write {{\"put\": […], \"delete\": […]}}"),
        }])
    })?;
    let mut violations = Vec::new();
    let mut asked = Asked::default();
    for (index, value) in batch.put.iter().enumerate() {
        match mesh_model::parse_value(value, &body.source) {
            Ok(resource) => asked.put.push(put(resource)),
            Err(found) => violations.extend(found.0.into_iter().map(|violation| Violation {
                path: joined(&format!("put[{index}]"), &violation.path),
                ..violation
            })),
        }
    }
    for (index, key) in batch.delete.into_iter().enumerate() {
        let mut key = ResourceKey::from(key);
        match find_kind(&key.kind) {
            Some(kind) => kind.name.clone_into(&mut key.kind),
            None => violations.push(Violation {
                source: body.source.clone(),
                line: 0,
                column: 0,
                path: format!("delete[{index}].type"),
                message: format!("there is no kind {:?}", key.kind),
            }),
        }
        asked.delete.push(AskedDelete {
            key,
            revision: None,
        });
    }
    for (index, precondition) in batch.preconditions.into_iter().enumerate() {
        if !require(&mut asked, precondition) {
            violations.push(Violation {
                source: body.source.clone(),
                line: 0,
                column: 0,
                path: format!("preconditions[{index}].key"),
                message: "names no resource that the batch puts or deletes".to_owned(),
            });
        }
    }
    if !violations.is_empty() {
        return Err(Problem::invalid(violations));
    }
    if asked == Asked::default() {
        return Err(Problem::bad_request("the batch puts and deletes nothing"));
    }
    Ok(asked)
}

/// Sets the revision that a resource of the batch must have; false where it holds no such resource.
fn require(asked: &mut Asked, precondition: Precondition) -> bool {
    let mut key = ResourceKey::from(precondition.key);
    if let Some(kind) = find_kind(&key.kind) {
        kind.name.clone_into(&mut key.kind);
    }
    let put = asked.put.iter_mut().filter(|put| put.resource.key() == key);
    let put = put.map(|put| &mut put.revision);
    let delete = asked.delete.iter_mut().filter(|delete| delete.key == key);
    let delete = delete.map(|delete| &mut delete.revision);
    let mut found = false;
    for revision in put.chain(delete) {
        *revision = Some(precondition.revision);
        found = true;
    }
    found
}

fn put(resource: Resource) -> AskedPut {
    AskedPut {
        resource,
        revision: None,
    }
}

fn joined(prefix: &str, path: &str) -> String {
    if path.is_empty() {
        prefix.to_owned()
    } else {
        format!("{prefix}.{path}")
    }
}
