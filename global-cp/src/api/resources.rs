//! Getting, listing, putting and deleting one resource, and its history.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_model::{
    Descriptor, Resource, Scope, Stamp,
    api::{History, HistoryItem, List, WriteOutcome, Written},
    find_kind,
};
use mesh_proto::zone::ResourceKey;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{
    caller::{Body, Caller, Params, Segments},
    observed::Observed,
    problem::Problem,
    query::{self, ListQuery, Selector},
};
use crate::{
    app::App,
    authorize::{Action, Actor, mesh_of, sees},
    changes::{Asked, AskedDelete, AskedPut, secret_associated_data},
    clock,
    state::{Stored, image::Image},
    writes,
};

/// Resources looked at for one page. A selector that matches little gives short pages rather than long waits.
const SCANNED_MAX: usize = 20_000;
/// Resources read from the state at once.
const SCAN_STEP: usize = 500;

/// Parameters of a read of one resource.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadQuery {
    /// The zone that owns it.
    #[serde(default)]
    pub zone: String,
    // Read where the caller is established.
    #[serde(rename = "consistency")]
    #[schemars(with = "Option<super::query::Consistency>")]
    _consistency: Option<String>,
}

/// Parameters of a write of one resource.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteQuery {
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
    /// The zone that owns it.
    #[serde(default)]
    zone: String,
    #[serde(rename = "consistency")]
    #[schemars(with = "Option<super::query::ConsistencyOfWrites>")]
    _consistency: Option<String>,
}

/// Parameters of a write of several resources.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DryRun {
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// A resource, as a path names it.
pub struct Target {
    kind: &'static Descriptor,
    mesh: String,
    name: String,
}

impl Target {
    /// One in a mesh.
    ///
    /// # Errors
    /// Where `word` is no kind, or one outside any mesh.
    pub fn in_mesh(mesh: String, word: &str, name: String) -> Result<Self, Problem> {
        let kind = kind(word)?;
        if kind.scope == Scope::Global {
            return Err(
                Problem::not_found(format!("{} resources are in no mesh", kind.name))
                    .detail(format!("ask for /v1/{}/{name}", kind.plural)),
            );
        }
        Ok(Self { kind, mesh, name })
    }

    fn global(word: &str, name: String) -> Result<Self, Problem> {
        let kind = kind(word)?;
        if kind.scope == Scope::Mesh {
            return Err(
                Problem::not_found(format!("{} resources live in a mesh", kind.name))
                    .detail(format!("ask for /v1/meshes/<mesh>/{}/{name}", kind.plural)),
            );
        }
        Ok(Self {
            kind,
            mesh: String::new(),
            name,
        })
    }

    /// Its key, where `zone` owns it ("" : administrators wrote it).
    #[must_use]
    pub fn key(&self, zone: &str) -> ResourceKey {
        ResourceKey::in_zone(self.kind.name, &self.mesh, zone, &self.name)
    }
}

/// The kind that a path or parameter names.
///
/// # Errors
/// Where there is none.
pub fn kind(word: &str) -> Result<&'static Descriptor, Problem> {
    find_kind(word).ok_or_else(|| {
        let known: Vec<&str> = mesh_model::kinds().iter().map(|kind| kind.plural).collect();
        let word: String = word.chars().take(64).collect();
        Problem::not_found(format!("there is no kind of resource {word:?}"))
            .detail(format!("there are: {}", known.join(", ")))
    })
}

// === get ===

/// `GET /v1/meshes/{mesh}/{type}/{name}`
pub async fn get_in_mesh(
    State(app): State<App>,
    caller: Caller,
    Segments((mesh, word, name)): Segments<(String, String, String)>,
    Params(params): Params<ReadQuery>,
) -> Result<Response, Problem> {
    get(&app, &caller, &Target::in_mesh(mesh, &word, name)?, &params).await
}

/// `GET /v1/{type}/{name}`
pub async fn get_global(
    State(app): State<App>,
    caller: Caller,
    Segments((word, name)): Segments<(String, String)>,
    Params(params): Params<ReadQuery>,
) -> Result<Response, Problem> {
    get(&app, &caller, &Target::global(&word, name)?, &params).await
}

/// `GET /v1/meshes/{mesh}`
pub async fn get_mesh(
    State(app): State<App>,
    caller: Caller,
    Segments(name): Segments<String>,
    Params(params): Params<ReadQuery>,
) -> Result<Response, Problem> {
    get(&app, &caller, &Target::global("meshes", name)?, &params).await
}

async fn get(
    app: &App,
    caller: &Caller,
    target: &Target,
    params: &ReadQuery,
) -> Result<Response, Problem> {
    let key = target.key(&params.zone);
    let is_secret = target.kind.is_secret();
    let action = if is_secret {
        Action::ReadSecret
    } else {
        Action::Read
    };
    caller.may(app, action, mesh_of(&key), &key.kind)?;
    let image = app.image();
    let stored = find(&image, &key)?;
    let mut resource = view(&stored);
    Observed::now(app, &image)
        .await
        .add_status(&mut resource, &stored)
        .await;
    if is_secret {
        let value = open_secret(app, &stored)?;
        if let Value::Object(fields) = &mut resource {
            fields.insert("data".to_owned(), value.into());
        }
        app.secret_read(&caller.actor, &key);
    }
    let mut response = Json(resource).into_response();
    etag(&mut response, stored.modified_revision);
    if is_secret {
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    Ok(response)
}

/// The resource.
///
/// # Errors
/// Where there is none, saying where one of that name is.
pub fn find(image: &Image, key: &ResourceKey) -> Result<Stored, Problem> {
    if key.kind == "Token" {
        return Err(Problem::not_found("tokens are listed at /v1/tokens"));
    }
    image.get(key).ok_or_else(|| missing(image, key))
}

fn missing(image: &Image, key: &ResourceKey) -> Problem {
    let mesh = ResourceKey::global("Mesh", "", &key.mesh);
    if !key.mesh.is_empty() && image.get(&mesh).is_none() {
        return Problem::not_found(format!("there is no mesh {:?}", key.mesh));
    }
    if key.kind == "Dataplane" {
        return Problem::not_found("dataplanes are kept by their zones, not here").detail(format!(
            "ask for /v1/meshes/{}/dataplanes/{}, which asks the zones",
            key.mesh, key.name
        ));
    }
    let problem = Problem::not_found(format!("there is no {key}"));
    let zones: Vec<String> = image
        .list(&key.kind, Some(&key.mesh), None, SCANNED_MAX)
        .into_iter()
        .filter(|stored| stored.key.name == key.name && stored.key.zone != key.zone)
        .map(|stored| stored.key.zone)
        .collect();
    match zones.as_slice() {
        [] => problem,
        [only] if only.is_empty() => {
            problem.detail("there is one that administrators wrote: leave `zone` out")
        }
        zones => problem.detail(format!(
            "zones own one of that name ({}): name it with ?zone=",
            zones.join(", ")
        )),
    }
}

/// A resource as it reads back. The value of a secret is left out.
#[must_use]
pub fn view(stored: &Stored) -> Value {
    let stamp = Stamp {
        revision: stored.modified_revision,
        creation_time: clock::from_ms(stored.created_ms),
        modification_time: clock::from_ms(stored.modified_ms),
    };
    let mut value = match Resource::from_json(&stored.json) {
        Ok(resource) => resource.to_view(&stamp),
        // Written by a newer version: shown as it is.
        Err(_) => {
            let mut value: Value = serde_json::from_slice(&stored.json).unwrap_or_default();
            if let Value::Object(fields) = &mut value {
                fields.insert("revision".to_owned(), stamp.revision.into());
                fields.insert("creationTime".to_owned(), stamp.creation_time.into());
                fields.insert(
                    "modificationTime".to_owned(),
                    stamp.modification_time.into(),
                );
            }
            value
        }
    };
    if mesh_model::is_secret(&stored.key.kind)
        && let Value::Object(fields) = &mut value
    {
        fields.remove("data");
    }
    value
}

/// The value of a secret, in base64.
fn open_secret(app: &App, stored: &Stored) -> Result<String, Problem> {
    let resource = Resource::from_json(&stored.json).map_err(|error| Problem::internal(&error))?;
    let sealed = resource
        .secret_data()
        .and_then(|data| STANDARD.decode(data).ok())
        .ok_or_else(|| Problem::internal(&format!("{} is damaged", stored.key)))?;
    let opened = app
        .sealing
        .open(&secret_associated_data(&stored.key), &sealed)
        .map_err(|error| Problem::internal(&error))?;
    Ok(STANDARD.encode(opened.as_slice()))
}

fn etag(response: &mut Response, revision: u64) {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{revision}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
}

// === list ===

/// `GET /v1/meshes/{mesh}/{type}`
pub async fn list_in_mesh(
    State(app): State<App>,
    caller: Caller,
    Segments((mesh, word)): Segments<(String, String)>,
    Params(params): Params<ListQuery>,
) -> Result<Json<List>, Problem> {
    let Target { kind, mesh, .. } = Target::in_mesh(mesh, &word, String::new())?;
    caller.may(&app, Action::Read, &mesh, kind.name)?;
    let image = app.image();
    if image.get(&ResourceKey::global("Mesh", "", &mesh)).is_none() {
        return Err(Problem::not_found(format!("there is no mesh {mesh:?}")));
    }
    page(&app, &image, &caller, (kind, Some(&mesh)), &params).await
}

/// `GET /v1/{type}`: for kinds in a mesh, those of all meshes that the caller sees.
pub async fn list_global(
    State(app): State<App>,
    caller: Caller,
    Segments(word): Segments<String>,
    Params(params): Params<ListQuery>,
) -> Result<Json<List>, Problem> {
    let kind = kind(&word)?;
    if kind.name == "Dataplane" {
        return Err(
            Problem::not_found("dataplanes are kept by their zones, not here")
                .detail("ask for /v1/meshes/<mesh>/dataplanes, which asks the zones"),
        );
    }
    // What belongs to meshes is filtered, below; what does not is seen as a whole or not at all.
    let of_meshes = kind.scope == Scope::Mesh || matches!(kind.name, "Mesh" | "TokenIssuer");
    if !of_meshes {
        caller.may(&app, Action::Read, "", kind.name)?;
    }
    page(&app, &app.image(), &caller, (kind, None), &params).await
}

/// `GET /v1/meshes`
pub async fn list_meshes(
    State(app): State<App>,
    caller: Caller,
    Params(params): Params<ListQuery>,
) -> Result<Json<List>, Problem> {
    list_global(
        State(app),
        caller,
        Segments("meshes".to_owned()),
        Params(params),
    )
    .await
}

async fn page(
    app: &App,
    image: &Arc<Image>,
    caller: &Caller,
    (kind, mesh): (&'static Descriptor, Option<&str>),
    params: &ListQuery,
) -> Result<Json<List>, Problem> {
    let limit = query::page_size(params.limit)?;
    let selector = Selector::parse(params.selector.as_deref().unwrap_or_default())?;
    let mut after = params
        .continue_at
        .as_deref()
        .map(|text| query::read_continue(text, kind.name, mesh))
        .transpose()?;
    let mut observed = Observed::now(app, image).await;
    let mut items = Vec::new();
    let mut scanned = 0;
    let range = Range::of(&caller.actor, kind, mesh);
    let next = loop {
        let found = range.list(image, after.as_ref(), SCAN_STEP);
        let at_the_end = found.len() < SCAN_STEP;
        let mut found = found.into_iter();
        for stored in found.by_ref() {
            after = Some(stored.key.clone());
            let zone_fits = params
                .zone
                .as_ref()
                .is_none_or(|zone| stored.key.zone == *zone);
            if zone_fits && sees(&caller.actor, &stored.key) && selected(&stored, &selector) {
                let mut item = view(&stored);
                observed.add_status(&mut item, &stored).await;
                items.push(item);
            }
            if items.len() == limit {
                break;
            }
        }
        scanned += SCAN_STEP;
        let rest = found.next().is_some()
            || (!at_the_end && !range.list(image, after.as_ref(), 1).is_empty());
        if !rest {
            break None;
        }
        if items.len() == limit || scanned >= SCANNED_MAX {
            break after.as_ref().map(query::continue_after);
        }
    };
    Ok(Json(List {
        items,
        revision: image.revision(),
        history_id: image.history_id(),
        next,
    }))
}

/// What a list goes through. Where the caller sees certain meshes only, just these: neither the time it takes, nor how
/// full a page is, nor where the next one begins may tell of others.
struct Range<'a> {
    kind: &'static Descriptor,
    /// In this mesh only.
    mesh: Option<&'a str>,
    /// In order; `None`: all.
    seen: Option<Vec<String>>,
}

impl<'a> Range<'a> {
    fn of(actor: &Actor, kind: &'static Descriptor, mesh: Option<&'a str>) -> Self {
        let of_meshes = kind.scope == Scope::Mesh || matches!(kind.name, "Mesh" | "TokenIssuer");
        let seen = match mesh {
            None if of_meshes => actor.meshes_for(Action::Read, kind.name),
            _ => None,
        };
        Self { kind, mesh, seen }
    }

    /// What follows `after`, at most `limit`.
    fn list(&self, image: &Image, after: Option<&ResourceKey>, limit: usize) -> Vec<Stored> {
        let Some(seen) = &self.seen else {
            return image.list(self.kind.name, self.mesh, after, limit);
        };
        if self.kind.scope == Scope::Global {
            return seen
                .iter()
                .filter(|mesh| after.is_none_or(|after| **mesh > after.name))
                .filter_map(|mesh| image.get(&ResourceKey::global(self.kind.name, "", mesh)))
                .take(limit)
                .collect();
        }
        let mut found = Vec::new();
        for mesh in seen {
            if found.len() < limit && after.is_none_or(|after| *mesh >= after.mesh) {
                let after = after.filter(|after| after.mesh == *mesh);
                found.extend(image.list(self.kind.name, Some(mesh), after, limit - found.len()));
            }
        }
        found
    }
}

fn selected(stored: &Stored, selector: &Selector) -> bool {
    #[derive(Deserialize)]
    struct Labelled {
        #[serde(default)]
        labels: std::collections::BTreeMap<String, String>,
    }
    if *selector == Selector::default() {
        return true;
    }
    let Ok(Labelled { mut labels }) = serde_json::from_slice(&stored.json) else {
        return false;
    };
    let origin = match stored.key.zone.as_str() {
        "" => "global",
        zone => zone,
    };
    labels.insert("isthmus.io/origin".to_owned(), origin.to_owned());
    selector.matches(&labels)
}

// === put and delete ===

/// `PUT /v1/meshes/{mesh}/{type}/{name}`
pub async fn put_in_mesh(
    State(app): State<App>,
    caller: Caller,
    Segments((mesh, word, name)): Segments<(String, String, String)>,
    Params(params): Params<WriteQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let target = Target::in_mesh(mesh, &word, name)?;
    put(&app, &caller, &target, &params, &headers, &body).await
}

/// `PUT /v1/{type}/{name}`
pub async fn put_global(
    State(app): State<App>,
    caller: Caller,
    Segments((word, name)): Segments<(String, String)>,
    Params(params): Params<WriteQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let target = Target::global(&word, name)?;
    put(&app, &caller, &target, &params, &headers, &body).await
}

/// `PUT /v1/meshes/{mesh}`
pub async fn put_mesh(
    State(app): State<App>,
    caller: Caller,
    Segments(name): Segments<String>,
    Params(params): Params<WriteQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let target = Target::global("meshes", name)?;
    put(&app, &caller, &target, &params, &headers, &body).await
}

async fn put(
    app: &App,
    caller: &Caller,
    target: &Target,
    params: &WriteQuery,
    headers: &HeaderMap,
    body: &Body,
) -> Result<Response, Problem> {
    let key = target.key(&params.zone);
    caller.may(app, Action::Write, mesh_of(&key), &key.kind)?;
    body.check_media_type()?;
    let resources = mesh_model::parse_in(&body.text, &body.source, &target.mesh)?;
    let [resource] = <[Resource; 1]>::try_from(resources).map_err(|found| {
        Problem::bad_request(format!(
            "one resource is needed, the body holds {}",
            found.len()
        ))
        .detail("send several at once to /v1/batch")
    })?;
    if resource.key() != target.key("") {
        return Err(Problem::bad_request(format!(
            "the path names {}, the body {}",
            target.key(""),
            resource.key()
        )));
    }
    if !params.zone.is_empty() {
        return Err(Problem::bad_request(format!(
            "{key} belongs to its zone, which reports it: change it in the zone"
        )));
    }
    let asked = Asked {
        put: vec![AskedPut {
            resource,
            revision: query::precondition(headers)?,
        }],
        delete: vec![],
    };
    let written = write(
        app,
        caller,
        asked,
        params.dry_run,
        headers,
        format!("put {key}"),
    )
    .await?;
    let created =
        matches!(written.results.as_slice(), [only] if only.outcome == WriteOutcome::Created);
    let status = if created && !written.dry_run {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let revision = app
        .image()
        .get(&key)
        .map_or(written.revision, |stored| stored.modified_revision);
    let dry_run = written.dry_run;
    let mut response = (status, Json(written)).into_response();
    if !dry_run {
        etag(&mut response, revision);
    }
    Ok(response)
}

/// `DELETE /v1/meshes/{mesh}/{type}/{name}`
pub async fn delete_in_mesh(
    State(app): State<App>,
    caller: Caller,
    Segments((mesh, word, name)): Segments<(String, String, String)>,
    Params(params): Params<WriteQuery>,
    headers: HeaderMap,
) -> Result<Json<Written>, Problem> {
    let target = Target::in_mesh(mesh, &word, name)?;
    delete(&app, &caller, &target, &params, &headers).await
}

/// `DELETE /v1/{type}/{name}`
pub async fn delete_global(
    State(app): State<App>,
    caller: Caller,
    Segments((word, name)): Segments<(String, String)>,
    Params(params): Params<WriteQuery>,
    headers: HeaderMap,
) -> Result<Json<Written>, Problem> {
    let target = Target::global(&word, name)?;
    delete(&app, &caller, &target, &params, &headers).await
}

/// `DELETE /v1/meshes/{mesh}`
pub async fn delete_mesh(
    State(app): State<App>,
    caller: Caller,
    Segments(name): Segments<String>,
    Params(params): Params<WriteQuery>,
    headers: HeaderMap,
) -> Result<Json<Written>, Problem> {
    let target = Target::global("meshes", name)?;
    delete(&app, &caller, &target, &params, &headers).await
}

async fn delete(
    app: &App,
    caller: &Caller,
    target: &Target,
    params: &WriteQuery,
    headers: &HeaderMap,
) -> Result<Json<Written>, Problem> {
    let key = target.key(&params.zone);
    caller.may(app, Action::Delete, mesh_of(&key), &key.kind)?;
    let asked = Asked {
        put: vec![],
        delete: vec![AskedDelete {
            key: key.clone(),
            revision: query::precondition(headers)?,
        }],
    };
    let summary = format!("delete {key}");
    let written = write(app, caller, asked, params.dry_run, headers, summary).await?;
    if matches!(written.results.as_slice(), [only] if only.outcome == WriteOutcome::NotFound) {
        return Err(missing(&app.image(), &key));
    }
    Ok(Json(written))
}

async fn write(
    app: &App,
    caller: &Caller,
    asked: Asked,
    dry_run: bool,
    headers: &HeaderMap,
    summary: String,
) -> Result<Written, Problem> {
    let request = writes::Request {
        asked,
        dry_run,
        request_id: query::request_id(headers)?,
        summary,
    };
    writes::write(app, &caller.actor, request).await
}

// === history ===

/// `GET /v1/meshes/{mesh}/{type}/{name}/history`
pub async fn history_in_mesh(
    State(app): State<App>,
    caller: Caller,
    Segments((mesh, word, name)): Segments<(String, String, String)>,
    Params(params): Params<ReadQuery>,
) -> Result<Json<History>, Problem> {
    history(&app, &caller, &Target::in_mesh(mesh, &word, name)?, &params)
}

/// `GET /v1/{type}/{name}/history`
pub async fn history_global(
    State(app): State<App>,
    caller: Caller,
    Segments((word, name)): Segments<(String, String)>,
    Params(params): Params<ReadQuery>,
) -> Result<Json<History>, Problem> {
    history(&app, &caller, &Target::global(&word, name)?, &params)
}

/// `GET /v1/meshes/{mesh}/history`
pub async fn history_mesh(
    State(app): State<App>,
    caller: Caller,
    Segments(name): Segments<String>,
    Params(params): Params<ReadQuery>,
) -> Result<Json<History>, Problem> {
    history(&app, &caller, &Target::global("meshes", name)?, &params)
}

fn history(
    app: &App,
    caller: &Caller,
    target: &Target,
    params: &ReadQuery,
) -> Result<Json<History>, Problem> {
    let key = target.key(&params.zone);
    caller.may(app, Action::Read, mesh_of(&key), &key.kind)?;
    let image = app.image();
    let (records, truncated) = image.history(&key);
    if key.kind == "Token" || (records.is_empty() && !truncated) {
        return Err(missing(&image, &key));
    }
    Ok(Json(History {
        items: records
            .into_iter()
            .map(|record| HistoryItem {
                revision: record.revision,
                time: clock::from_ms(record.time_ms),
                actor: record.actor,
                resource: record.stored.as_ref().map(view),
            })
            .collect(),
        truncated,
    }))
}
