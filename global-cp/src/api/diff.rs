//! What a batch would change, field by field.

use axum::{Json, extract::State, http::HeaderMap};
use mesh_model::{
    Resource, Stamp, Writers,
    api::{Diff, DiffItem, WriteOutcome, WriteResult},
    difference, find_kind, is_secret,
};
use mesh_proto::zone::ResourceKey;
use serde_json::Value;

use super::{
    batch,
    caller::{Body, Caller, NoParams},
    problem::Problem,
    query,
};
use crate::{
    app::App,
    foretell::{Foretold, FutureChange},
    state::{Stored, image::Image},
    writes,
};

/// What follows from a change is shown up to this many resources.
const FOLLOWING_MAX: usize = 1000;

/// `POST /v1/diff`: the body is that of `/v1/batch`.
pub async fn diff(
    State(app): State<App>,
    caller: Caller,
    _: NoParams,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Diff>, Problem> {
    query::no_precondition(&headers)?;
    let asked = batch::read(&app, &caller, body).await?;
    batch::authorize_all(&app, &caller, &asked)?;
    let image = app.image();
    let foretold = writes::foretell(&app, &caller.actor, &image, asked).await?;
    Ok(Json(shown(&image, foretold)))
}

/// `foretold`, made for `image`, as people see it.
#[must_use]
pub fn shown(image: &Image, foretold: Foretold) -> Diff {
    let Foretold {
        revision,
        results,
        changes,
        mut warnings,
    } = foretold;
    let mut changes = changes.into_iter().peekable();
    let mut items: Vec<DiffItem> = Vec::with_capacity(results.len());
    for WriteResult { key, outcome } in results {
        let key = ResourceKey::from(key);
        // Changes of what was asked for are in the same order.
        let item = match changes.next_if(|change| change.key == key) {
            Some(change) => item(change, outcome),
            None => {
                let now = image.get(&key).as_ref().and_then(bare);
                DiffItem {
                    key: key.into(),
                    outcome,
                    before: now.clone(),
                    after: now,
                    fields: Vec::new(),
                }
            }
        };
        items.push(item);
    }
    let mut following = changes.filter(|change| {
        find_kind(&change.key.kind).is_some_and(|kind| kind.writers != Writers::System)
    });
    items.extend(following.by_ref().take(FOLLOWING_MAX).map(|change| {
        let outcome = match (&change.before, &change.after) {
            (None, _) => WriteOutcome::Created,
            (_, None) => WriteOutcome::Deleted,
            _ => WriteOutcome::Updated,
        };
        item(change, outcome)
    }));
    let more = following.count();
    if more > 0 {
        warnings.push(format!("{more} further resources would change with these"));
    }
    Diff {
        revision,
        items,
        warnings,
    }
}

fn item(change: FutureChange, outcome: WriteOutcome) -> DiffItem {
    let before = change.before.as_ref().and_then(bare);
    let after = change.after.as_ref().and_then(bare);
    let mut fields = match (&before, &after) {
        (Some(before), Some(after)) => difference(before, after),
        _ => Vec::new(),
    };
    // A secret's value is sealed anew only where it changes.
    if let (Some(before), Some(after)) = (&change.before, &change.after)
        && is_secret(&change.key.kind)
        && sealed(before) != sealed(after)
    {
        fields.insert(0, "data".to_owned());
    }
    DiffItem {
        key: change.key.into(),
        outcome,
        before,
        after,
        fields,
    }
}

/// A resource as it reads back, without revision and times, and without the value of a secret.
fn bare(stored: &Stored) -> Option<Value> {
    let mut value = match Resource::from_json(&stored.json) {
        Ok(resource) => resource.to_view(&Stamp::default()),
        Err(_) => serde_json::from_slice(&stored.json).ok()?,
    };
    if let Value::Object(fields) = &mut value {
        for name in ["revision", "creationTime", "modificationTime"] {
            fields.remove(name);
        }
        if is_secret(&stored.key.kind) {
            fields.remove("data");
        }
    }
    Some(value)
}

fn sealed(stored: &Stored) -> Option<String> {
    let resource = Resource::from_json(&stored.json).ok()?;
    resource.secret_data().map(str::to_owned)
}
