//! Who did what, when, from where, and what it changed; who was refused what, and who read secrets. Of all nodes.

use std::convert::Infallible;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::{StreamExt as _, stream};
use mesh_model::{
    Resource, Token,
    api::{Audit, AuditChange, AuditItem, FieldChange, WriteOutcome},
    changed_fields, find_kind,
};
use mesh_proto::zone::ResourceKey;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{
    caller::{Caller, Params},
    problem::Problem,
};
use crate::{
    app::App,
    audit::{Attempt, Place, Wanted},
    authorize::{Action, mesh_of},
    clock, issue,
    state::{AuditRecord, Stored, image::Image},
};

/// Records on a page.
const PAGE_MAX: usize = 1000;
const PAGE_DEFAULT: usize = 100;
/// Resources of one record that are shown.
const CHANGES_MAX: usize = 100;
/// Resources of one page of which it is shown what changed in them.
const COMPARED_MAX: usize = 2000;
/// Fields of one resource that are shown.
const FIELDS_MAX: usize = 20;
/// Bytes of a value that are shown.
const VALUE_MAX: usize = 256;

/// Parameters of the audit.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    limit: Option<usize>,
    #[serde(rename = "continue")]
    continue_at: Option<String>,
    /// About this mesh only.
    mesh: Option<String>,
    /// By this actor only: `user/<name>`, `token/<id>`, `zone/<name>`.
    actor: Option<String>,
    /// RFC 3339.
    since: Option<String>,
    /// RFC 3339.
    until: Option<String>,
    /// `<type>` or `<type>/<name>`.
    resource: Option<String>,
    #[serde(rename = "consistency")]
    #[schemars(with = "Option<super::query::Consistency>")]
    _consistency: Option<String>,
}

/// `GET /v1/audit`: newest first, in pages; with `Accept: application/x-ndjson` all of it, one record a line. Someone
/// bound to meshes sees what concerns these alone.
pub async fn audit(
    State(app): State<App>,
    caller: Caller,
    Params(params): Params<AuditQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let visible = caller.actor.meshes_for(Action::ReadAudit, "");
    match &params.mesh {
        Some(mesh) => caller.may(&app, Action::ReadAudit, mesh, "")?,
        None if visible.as_ref().is_some_and(Vec::is_empty) => {
            caller.may(&app, Action::ReadAudit, "", "")?;
        }
        None => {}
    }
    let wanted = wanted(params, visible)?;
    let lines = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/x-ndjson"));
    if !lines {
        return Ok(Json(page(&app, wanted).await).into_response());
    }
    let wanted = Wanted {
        limit: PAGE_MAX,
        ..wanted
    };
    let body = Body::from_stream(export(app, wanted, caller));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn wanted(params: AuditQuery, visible: Option<Vec<String>>) -> Result<Wanted, Problem> {
    let limit = params.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Problem::bad_request(format!(
            "limit: must be between 1 and {PAGE_MAX}"
        )));
    }
    let time = |name: &str, text: Option<String>| {
        let read = |text: String| {
            clock::parse_ms(&text).ok_or_else(|| {
                Problem::bad_request(format!(
                    "{name}: must be a time such as 2026-01-31T08:00:00Z"
                ))
            })
        };
        text.map(read).transpose()
    };
    let resource = params.resource.map(|text| {
        let (word, name) = match text.split_once('/') {
            Some((word, name)) => (word, Some(name.to_owned())),
            None => (text.as_str(), None),
        };
        let kind = super::resources::kind(word)?;
        Ok::<_, Problem>((kind.name.to_owned(), name))
    });
    let before = params.continue_at.map(|text| {
        read_place(&text).ok_or_else(|| {
            Problem::bad_request("continue: not what the page before gave as `next`")
        })
    });
    Ok(Wanted {
        before: before.transpose()?,
        since_ms: time("since", params.since)?,
        until_ms: time("until", params.until)?,
        actor: params.actor,
        mesh: params.mesh,
        resource: resource.transpose()?,
        visible,
        limit,
    })
}

fn write_place(place: Place) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}.{}.{}", place.time_ms, place.node, place.number))
}

fn read_place(text: &str) -> Option<Place> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let mut numbers = text.split('.').map(|part| part.parse().ok());
    let place = Place {
        time_ms: numbers.next()??,
        node: numbers.next()??,
        number: numbers.next()??,
    };
    numbers.next().is_none().then_some(place)
}

/// All pages, one record a line; at the end, which nodes did not answer. The caller's place is kept until then.
fn export(
    app: App,
    wanted: Wanted,
    caller: Caller,
) -> impl futures::Stream<Item = Result<String, Infallible>> {
    let begin = Some((wanted, Vec::new()));
    stream::unfold((app, caller, begin), |(app, caller, rest)| async move {
        let (mut wanted, mut silent): (Wanted, Vec<u64>) = rest?;
        let page = page(&app, wanted.clone()).await;
        silent.extend(page.unanswered);
        silent.sort_unstable();
        silent.dedup();
        let mut text: String = page
            .items
            .iter()
            .filter_map(|item| serde_json::to_string(item).ok())
            .map(|line| line + "\n")
            .collect();
        let rest = match page.next.as_deref().and_then(read_place) {
            Some(next) => {
                wanted.before = Some(next);
                Some((wanted, silent))
            }
            None => {
                if !silent.is_empty() {
                    text.push_str(&serde_json::json!({ "unanswered": silent }).to_string());
                    text.push('\n');
                }
                None
            }
        };
        Some((Ok(text), (app, caller, rest)))
    })
    .boxed()
}

/// A page: this node's knowledge of what was done, and every node's of what was tried.
async fn page(app: &App, wanted: Wanted) -> Audit {
    let attempts = app.cluster.attempts(&wanted).await;
    let (image, done_wanted) = (app.image(), wanted.clone());
    let done = tokio::task::spawn_blocking(move || done(&image, &done_wanted));
    let mut items = done.await.unwrap_or_default();
    items.extend(
        attempts
            .found
            .into_iter()
            .map(|(node, attempt)| (attempt.place(node), attempt_item(node, attempt))),
    );
    items.sort_by(|(a, _), (b, _)| b.cmp(a));
    let more = items.len() > wanted.limit || items.len() == wanted.limit;
    items.truncate(wanted.limit);
    Audit {
        next: items
            .last()
            .filter(|_| more)
            .map(|(place, _)| write_place(*place)),
        items: items.into_iter().map(|(_, item)| item).collect(),
        unanswered: attempts.unreachable,
    }
}

fn attempt_item(node: u64, attempt: Attempt) -> AuditItem {
    AuditItem {
        time: attempt.time,
        actor: attempt.actor,
        address: attempt.address,
        summary: attempt.what,
        outcome: attempt.outcome,
        reason: attempt.reason,
        revision: None,
        node: Some(node),
        changes: vec![],
        request_id: attempt.request_id,
    }
}

/// What was done, newest first.
fn done(image: &Image, wanted: &Wanted) -> Vec<(Place, AuditItem)> {
    let mut compared = 0;
    image
        .audit(usize::MAX)
        .into_iter()
        .filter_map(|record| {
            let place = Place {
                time_ms: record.time_ms,
                node: 0,
                number: record.number,
            };
            let shown = shown(image, wanted, place, &record)?;
            Some((place, shown, record))
        })
        .take(wanted.limit)
        .map(|(place, shown, record)| {
            let whole = shown.len() == record.changed.len();
            let changes: Vec<AuditChange> = shown
                .iter()
                .take(CHANGES_MAX)
                .map(|key| {
                    compared += 1;
                    change(image, key, record.revision, compared <= COMPARED_MAX)
                })
                .collect();
            (place, done_item(record, changes, whole))
        })
        .collect()
}

/// The resources of a record that may be seen; `None` where the record is not wanted.
fn shown(
    image: &Image,
    wanted: &Wanted,
    place: Place,
    record: &AuditRecord,
) -> Option<Vec<ResourceKey>> {
    if !wanted.fits(place, &record.actor) {
        return None;
    }
    let mut of_mesh = wanted.mesh.is_none();
    let mut of_resource = wanted.resource.is_none();
    let mut shown = Vec::new();
    for key in &record.changed {
        let meshes = meshes_of(image, key, record.revision);
        let visible = wanted.visible.is_none()
            || (!meshes.is_empty() && meshes.iter().all(|mesh| wanted.sees(mesh)));
        if !visible {
            continue;
        }
        of_mesh |= wanted
            .mesh
            .as_ref()
            .is_some_and(|mesh| meshes.contains(mesh));
        of_resource |= wanted.resource.as_ref().is_some_and(|(kind, name)| {
            key.kind == *kind && name.as_ref().is_none_or(|name| key.name == *name)
        });
        shown.push(key.clone());
    }
    let visible = wanted.visible.is_none() || !shown.is_empty();
    (visible && of_mesh && of_resource).then_some(shown)
}

/// The meshes that decide who may know of a change of `key`; a token is about those it is bound to.
fn meshes_of(image: &Image, key: &ResourceKey, revision: u64) -> Vec<String> {
    if key.kind != "Token" {
        let mesh = mesh_of(key);
        return (!mesh.is_empty())
            .then(|| mesh.to_owned())
            .into_iter()
            .collect();
    }
    let before = revision.saturating_sub(1);
    let stored = match image.at(key, revision) {
        Ok(Some(stored)) => Some(stored),
        _ => image.at(key, before).ok().flatten(),
    };
    let resource = stored.and_then(|stored| Resource::from_json(&stored.json).ok());
    let token = resource
        .as_ref()
        .and_then(|resource| resource.get::<Token>());
    token.map_or(Vec::new(), |token| {
        let meshes = issue::meshes_of(token).into_iter();
        meshes.map(str::to_owned).collect()
    })
}

fn done_item(record: AuditRecord, changes: Vec<AuditChange>, whole: bool) -> AuditItem {
    AuditItem {
        time: clock::from_ms(record.time_ms),
        actor: record.actor,
        address: record.address,
        // In the whole summary stands what is not shown.
        summary: if whole {
            record.summary
        } else {
            let words = changes.iter().map(|change| {
                let verb = match change.outcome {
                    WriteOutcome::Deleted => "delete",
                    _ => "put",
                };
                format!("{verb} {}", ResourceKey::from(change.key.clone()))
            });
            words.take(5).collect::<Vec<_>>().join(", ")
        },
        outcome: "done".to_owned(),
        reason: String::new(),
        revision: Some(record.revision),
        node: None,
        changes,
        // Beside the client's own id it holds a fingerprint, which is nobody's business.
        request_id: record
            .request_id
            .rsplit_once('/')
            .map_or(String::new(), |(id, _)| id.to_owned()),
    }
}

/// What a revision changed in a resource.
fn change(image: &Image, key: &ResourceKey, revision: u64, compare: bool) -> AuditChange {
    let unknown = AuditChange {
        key: key.clone().into(),
        outcome: WriteOutcome::Updated,
        fields: vec![],
        more_fields: 0,
        forgotten: true,
    };
    if !compare {
        return unknown;
    }
    let (Ok(before), Ok(after)) = (
        image.at(key, revision.saturating_sub(1)),
        image.at(key, revision),
    ) else {
        return unknown;
    };
    let outcome = match (&before, &after) {
        (None, Some(_)) => WriteOutcome::Created,
        (Some(_), Some(_)) => WriteOutcome::Updated,
        (Some(_), None) => WriteOutcome::Deleted,
        (None, None) => return unknown,
    };
    let (old, new) = (before.as_ref().map(content), after.as_ref().map(content));
    let mut fields = match (&old, &new) {
        (Some(old), Some(new)) => changed_fields(old, new)
            .into_iter()
            .map(|(field, before, after)| FieldChange {
                field,
                before: before.map(shortened),
                after: after.map(shortened),
            })
            .collect(),
        (before, after) => vec![FieldChange {
            field: String::new(),
            before: before.as_ref().map(shortened),
            after: after.as_ref().map(shortened),
        }],
    };
    // Of what is secret it is said that it changed, and not what it was or is.
    if let (Some(before), Some(after)) = (&before, &after)
        && fields.is_empty()
        && before.json != after.json
    {
        fields.push(FieldChange {
            field: secret_field(&key.kind).to_owned(),
            before: None,
            after: None,
        });
    }
    let more_fields = fields.len().saturating_sub(FIELDS_MAX);
    fields.truncate(FIELDS_MAX);
    AuditChange {
        key: key.clone().into(),
        outcome,
        fields,
        more_fields,
        forgotten: false,
    }
}

/// The field of a kind whose value is never shown.
fn secret_field(kind: &str) -> &'static str {
    match kind {
        "Token" => "secretHash",
        _ => "data",
    }
}

/// A resource without what its key says, and without what is secret.
fn content(stored: &Stored) -> Value {
    let mut value: Value = serde_json::from_slice(&stored.json).unwrap_or_default();
    let kind = stored.key.kind.as_str();
    if let Value::Object(fields) = &mut value {
        for name in ["type", "mesh", "zone", "name"] {
            fields.remove(name);
        }
        if find_kind(kind).is_none_or(|kind| kind.name.ends_with("Secret")) {
            fields.remove("data");
        }
        if kind == "Token"
            && let Some(Value::Object(spec)) = fields.get_mut("spec")
        {
            spec.remove(secret_field(kind));
        }
    }
    value
}

fn shortened(value: &Value) -> Value {
    let text = value.to_string();
    if text.len() <= VALUE_MAX {
        return value.clone();
    }
    let text = match value {
        Value::String(text) => text.clone(),
        _ => text,
    };
    let cut = text.chars().take(VALUE_MAX).collect::<String>();
    Value::String(format!("{cut}…"))
}
