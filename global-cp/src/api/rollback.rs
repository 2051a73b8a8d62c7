//! Bringing resources back to what they were, as one new change.
//!
//! Nothing of the past is changed: what was then is put again, by today's rules and with today's rights. What zones own
//! and what the control planes write themselves is not touched.

use std::collections::BTreeSet;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_model::{
    Resource, Violation, Writers,
    api::{Diff, Key, Rollback, Written},
    find_kind,
};
use mesh_proto::zone::ResourceKey;

use super::{
    batch,
    caller::{Body, Caller, NoParams, Params},
    diff,
    problem::Problem,
    query,
    resources::DryRun,
};
use crate::{
    app::App,
    authorize::{Action, mesh_of},
    changes::{Asked, AskedDelete, AskedPut, check_writer, secret_associated_data},
    sealing::SealingKey,
    state::{Stored, TooOld, image::Image},
    writes,
};

/// How often it is worked out anew because something changed before it was written.
const ATTEMPTS_MAX: usize = 8;

/// `POST /v1/rollback`
pub async fn rollback(
    State(app): State<App>,
    caller: Caller,
    Params(params): Params<DryRun>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Written>, Problem> {
    query::no_precondition(&headers)?;
    let request_id = query::request_id(&headers)?;
    let wanted = read(&body)?;
    let mut attempt = 0;
    loop {
        let image = app.image();
        let asked = work_out(&app, &caller, &image, &wanted)?;
        if asked == Asked::default() {
            // Nothing has changed since.
            return Ok(Json(Written {
                revision: image.revision(),
                dry_run: params.dry_run,
                results: Vec::new(),
                warnings: Vec::new(),
                conditions: Vec::new(),
            }));
        }
        let request = writes::Request {
            summary: format!(
                "roll back to revision {}: {}",
                wanted.to,
                batch::summary(&asked)
            ),
            asked,
            dry_run: params.dry_run,
            request_id: request_id.clone(),
        };
        let written = writes::write(&app, &caller.actor, request).await;
        attempt += 1;
        match written {
            // Somebody changed one of the resources since it was looked at.
            Err(problem)
                if problem.body.status == StatusCode::PRECONDITION_FAILED.as_u16()
                    && attempt < ATTEMPTS_MAX =>
            {
                app.cluster.linearize().await?;
            }
            written => return written.map(Json),
        }
    }
}

/// `POST /v1/rollback/diff`: what it would change.
pub async fn diff(
    State(app): State<App>,
    caller: Caller,
    _: NoParams,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Diff>, Problem> {
    query::no_precondition(&headers)?;
    let image = app.image();
    let asked = work_out(&app, &caller, &image, &read(&body)?)?;
    let foretold = writes::foretell(&app, &caller.actor, &image, asked).await?;
    Ok(Json(diff::shown(&image, foretold)))
}

fn read(body: &Body) -> Result<Rollback, Problem> {
    body.check_json()?;
    serde_json::from_str(&body.text).map_err(|error| {
        Problem::invalid(vec![Violation {
            source: body.source.clone(),
            line: u32::try_from(error.line()).unwrap_or_default(),
            column: u32::try_from(error.column()).unwrap_or_default(),
            path: String::new(),
            message: error.to_string(),
        }])
        .detail("write JSON such as {\"to\": 41, \"mesh\": \"payments\"}")
    })
}

/// What must be put and deleted so that everything `wanted` is again what it was. Each has its present revision as its
/// precondition, so that nothing newer is undone unseen.
fn work_out(
    app: &App,
    caller: &Caller,
    image: &Image,
    wanted: &Rollback,
) -> Result<Asked, Problem> {
    if wanted.to > image.revision() {
        return Err(Problem::invalid(vec![violation(
            "to",
            format!(
                "revision {} is still to come: the newest is {}",
                wanted.to,
                image.revision()
            ),
        )]));
    }
    let keys = if wanted.keys.is_empty() {
        keys_of_mesh(app, caller, image, wanted)?
    } else {
        keys_named(app, caller, wanted)?
    };
    let mut asked = Asked::default();
    let mut violations = Vec::new();
    let mut oldest = None;
    for key in keys {
        let now = image.get(&key);
        let revision = Some(now.as_ref().map_or(0, |now| now.modified_revision));
        match image.at(&key, wanted.to) {
            Err(TooOld { oldest: from, .. }) => oldest = oldest.max(Some(from)),
            Ok(None) if now.is_none() => {}
            Ok(None) => asked.delete.push(AskedDelete { key, revision }),
            Ok(Some(then)) => match resource_of(&app.sealing, &then) {
                Ok(resource) => asked.put.push(AskedPut { resource, revision }),
                Err(problem) if problem.body.violations.is_empty() => return Err(problem),
                Err(problem) => {
                    let source = format!("{key} at revision {}", wanted.to);
                    let found = problem.body.violations.into_iter();
                    violations.extend(found.map(|violation| Violation {
                        source: source.clone(),
                        line: 0,
                        column: 0,
                        ..violation
                    }));
                }
            },
        }
    }
    batch::authorize_all(app, caller, &asked)?;
    if let Some(oldest) = oldest {
        return Err(gone(TooOld {
            asked: wanted.to,
            oldest,
        }));
    }
    if violations.is_empty() {
        Ok(asked)
    } else {
        Err(Problem::invalid(violations)
            .detail("what was good then is not acceptable today: put these resources by hand"))
    }
}

fn keys_named(app: &App, caller: &Caller, wanted: &Rollback) -> Result<Vec<ResourceKey>, Problem> {
    let mut violations = Vec::new();
    let mut seen = BTreeSet::new();
    let mut keys = Vec::new();
    for (index, key) in wanted.keys.iter().enumerate() {
        let mut key = ResourceKey::from(key.clone());
        if let Some(kind) = find_kind(&key.kind) {
            kind.name.clone_into(&mut key.kind);
        }
        // Before anything is looked at: what somebody may not write, they learn nothing of.
        caller.may(app, Action::Write, mesh_of(&key), &key.kind)?;
        if let Err(message) = check_writer(&key) {
            violations.push(violation(&format!("keys[{index}]"), message));
        } else if !seen.insert(Key::from(key.clone())) {
            violations.push(violation(
                &format!("keys[{index}]"),
                format!("{key} is named twice"),
            ));
        }
        keys.push(key);
    }
    if violations.is_empty() {
        Ok(keys)
    } else {
        Err(Problem::invalid(violations))
    }
}

/// What administrators wrote in the mesh and changed since, or in the mesh as it was, where it is no more.
fn keys_of_mesh(
    app: &App,
    caller: &Caller,
    image: &Image,
    wanted: &Rollback,
) -> Result<Vec<ResourceKey>, Problem> {
    let Some(mesh) = wanted.mesh.as_deref().filter(|mesh| !mesh.is_empty()) else {
        return Err(Problem::invalid(vec![violation(
            "",
            "name resources in `keys`, or a `mesh`".to_owned(),
        )]));
    };
    caller.may(app, Action::Read, mesh, "Mesh")?;
    let of_mesh = ResourceKey::global("Mesh", "", mesh);
    let mut keys = Vec::new();
    match image.get(&of_mesh) {
        Some(now) if now.created_revision > wanted.to => {
            return Err(Problem::invalid(vec![violation(
                "to",
                format!(
                    "mesh {mesh} was made at revision {}: roll back to that one or a later one",
                    now.created_revision
                ),
            )]));
        }
        Some(_) => {}
        None => match image.at(&of_mesh, wanted.to) {
            Ok(None) => {
                return Err(Problem::not_found(format!(
                    "there is no mesh {mesh:?}, and there was none at revision {}",
                    wanted.to
                )));
            }
            // It is made again; or how far back is known is said with the rest.
            Ok(Some(_)) | Err(_) => keys.push(of_mesh),
        },
    }
    let changes = image.changes_since(wanted.to).map_err(gone)?;
    let changed: BTreeSet<Key> = changes
        .map(|change| change.key)
        .filter(|key| key.mesh == mesh && key.zone.is_empty())
        .filter(|key| {
            find_kind(&key.kind)
                .is_some_and(|kind| matches!(kind.writers, Writers::Admin | Writers::AdminOrZone))
        })
        .map(Key::from)
        .collect();
    keys.extend(changed.into_iter().map(ResourceKey::from));
    Ok(keys)
}

fn gone(too_old: TooOld) -> Problem {
    Problem::new(
        StatusCode::GONE,
        "gone",
        format!(
            "what was at revision {} is no longer known: the history reaches back to revision {}",
            too_old.asked, too_old.oldest
        ),
    )
    .detail(format!(
        "roll back to revision {} or a later one",
        too_old.oldest
    ))
}

/// What was stored, as somebody would put it today: checked anew, and with the value of a secret opened.
fn resource_of(sealing: &SealingKey, stored: &Stored) -> Result<Resource, Problem> {
    let resource = Resource::from_json(&stored.json)?;
    let Some(data) = resource.secret_data() else {
        return Ok(resource);
    };
    let sealed = STANDARD
        .decode(data)
        .map_err(|error| Problem::internal(&error))?;
    let opened = sealing
        .open(&secret_associated_data(&stored.key), &sealed)
        .map_err(|error| Problem::internal(&error))?;
    let data = STANDARD.encode(opened.as_slice());
    Ok(resource.with_secret_data(data))
}

fn violation(path: &str, message: String) -> Violation {
    Violation {
        source: String::new(),
        line: 0,
        column: 0,
        path: path.to_owned(),
        message,
    }
}
