//! Dataplanes, as their zones see them now. Nothing of them is kept here; the zones are asked.

use axum::{Json, extract::State};
use futures::{StreamExt as _, stream};
use mesh_model::api::DataplaneView;
use mesh_proto::zone::{InspectDataplane, ListDataplanes, Query, query::What};
use serde::{Deserialize, Serialize};

use super::{
    caller::{Caller, Params, Segments},
    problem::Problem,
    status::{known_zones, mesh_exists},
};
use crate::{app::App, authorize::Action, zone_sync::rollout::KnownZone};

/// Zones asked at once.
const ASKED_AT_ONCE: usize = 32;

/// Parameters.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataplaneQuery {
    /// Ask this zone only.
    zone: Option<String>,
    #[serde(rename = "consistency")]
    _consistency: Option<String>,
}

/// The dataplanes of a mesh.
#[derive(Debug, Serialize)]
pub struct Dataplanes {
    /// Ordered by zone and name.
    items: Vec<DataplaneView>,
    /// Zones that did not answer, with the reason: what they hold is missing above.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unanswered: Vec<Unanswered>,
    /// Revision at which the zones to ask were chosen.
    revision: u64,
}

/// A zone that did not answer.
#[derive(Debug, Clone, Serialize)]
pub struct Unanswered {
    zone: String,
    reason: String,
    /// Nobody was there to ask; otherwise the zone has said that it does not know.
    #[serde(skip)]
    absent: bool,
}

/// `GET /v1/meshes/{mesh}/dataplanes`
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Segments(mesh): Segments<String>,
    Params(params): Params<DataplaneQuery>,
) -> Result<Json<Dataplanes>, Problem> {
    caller.may(&app, Action::Read, &mesh, "Dataplane")?;
    let what = What::ListDataplanes(ListDataplanes { mesh: mesh.clone() });
    let (mut items, unanswered) = ask(&app, &mesh, params.zone.as_deref(), what).await?;
    items.sort_by(|a, b| (&a.zone, &a.name).cmp(&(&b.zone, &b.name)));
    Ok(Json(Dataplanes {
        items,
        unanswered,
        revision: app.state().revision(),
    }))
}

/// `GET /v1/meshes/{mesh}/dataplanes/{name}`
pub async fn inspect(
    State(app): State<App>,
    caller: Caller,
    Segments((mesh, name)): Segments<(String, String)>,
    Params(params): Params<DataplaneQuery>,
) -> Result<Json<DataplaneView>, Problem> {
    caller.may(&app, Action::Read, &mesh, "Dataplane")?;
    let what = What::InspectDataplane(InspectDataplane {
        mesh: mesh.clone(),
        name: name.clone(),
    });
    let (found, unanswered) = ask(&app, &mesh, params.zone.as_deref(), what).await?;
    let mut found: Vec<DataplaneView> =
        found.into_iter().filter(|view| view.name == name).collect();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(Json(only)),
        (Some(last), false) => {
            let mut zones: Vec<String> = found.into_iter().map(|view| view.zone).collect();
            zones.push(last.zone);
            Err(
                Problem::conflict(format!("several zones have a dataplane {name:?}"))
                    .detail(format!("name one with ?zone= ({})", zones.join(", "))),
            )
        }
        (None, _) => {
            let words: Vec<String> = unanswered
                .iter()
                .map(|zone| format!("{}: {}", zone.zone, zone.reason))
                .collect();
            let problem = if unanswered.iter().any(|zone| zone.absent) {
                Problem::unavailable(format!(
                    "no zone that answers knows a dataplane {name:?} of mesh {mesh}"
                ))
            } else {
                Problem::not_found(format!("no zone knows a dataplane {name:?} of mesh {mesh}"))
            };
            Err(problem.detail(words.join("; ")))
        }
    }
}

async fn ask(
    app: &App,
    mesh: &str,
    only: Option<&str>,
    what: What,
) -> Result<(Vec<DataplaneView>, Vec<Unanswered>), Problem> {
    let image = app.image();
    if !mesh_exists(&image, mesh) {
        return Err(Problem::not_found(format!("there is no mesh {mesh:?}")));
    }
    let zones: Vec<KnownZone> = known_zones(&image)
        .into_iter()
        .filter(|zone| zone.enabled && zone.meshes.contains(mesh))
        .filter(|zone| only.is_none_or(|only| zone.name == only))
        .collect();
    if let Some(only) = only
        && zones.is_empty()
    {
        return Err(Problem::not_found(format!(
            "mesh {mesh} is not placed in an enabled zone {only:?}"
        )));
    }
    let answers: Vec<_> = stream::iter(zones)
        .map(|zone| {
            let asking = ask_zone(app, mesh, zone.name, what.clone());
            async move { (zone.joined, asking.await) }
        })
        .buffer_unordered(ASKED_AT_ONCE)
        .collect()
        .await;
    let mut found = Vec::new();
    let mut unanswered = Vec::new();
    for (joined, answer) in answers {
        match answer {
            Ok(views) => found.extend(views),
            // Only declared, and never heard of: it has no dataplanes that could be missing.
            Err(zone) if zone.absent && !joined && only.is_none() => {}
            Err(zone) => unanswered.push(zone),
        }
    }
    unanswered.sort_by(|a, b| a.zone.cmp(&b.zone));
    Ok((found, unanswered))
}

/// Asks one zone. What it answers of another mesh is dropped, whatever it says.
async fn ask_zone(
    app: &App,
    mesh: &str,
    zone: String,
    what: What,
) -> Result<Vec<DataplaneView>, Unanswered> {
    let is_inspection = matches!(what, What::InspectDataplane(_));
    let unanswered = |reason: String, absent| Unanswered {
        zone: zone.clone(),
        reason,
        absent,
    };
    let query = Query {
        id: 0,
        what: Some(what),
    };
    let answer = app
        .cluster
        .query_zone(&zone, query)
        .await
        .map_err(|error| unanswered(error.to_string(), true))?;
    if !answer.error.is_empty() {
        return Err(unanswered(answer.error, false));
    }
    let views = if is_inspection {
        serde_json::from_slice(&answer.json)
            .map(|view: Option<DataplaneView>| view.into_iter().collect())
    } else {
        serde_json::from_slice::<Vec<DataplaneView>>(&answer.json)
    };
    let views = views
        .map_err(|error| unanswered(format!("its answer is not understood: {error}"), false))?;
    Ok(views
        .into_iter()
        .filter(|view| view.mesh == mesh)
        .map(|view| DataplaneView {
            zone: zone.clone(),
            ..view
        })
        .collect())
}
