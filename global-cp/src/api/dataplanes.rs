//! Dataplanes, as their zones see them now. Nothing of them is kept here; the zones are asked.

use axum::{Json, extract::State};
use mesh_model::api::{DataplaneView, Unanswered};
use mesh_proto::zone::{InspectDataplane, ListDataplanes, query::What};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    caller::{Caller, Params, Segments},
    problem::Problem,
    zones::{self, NoAnswer},
};
use crate::{app::App, authorize::Action};

/// Parameters.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataplaneQuery {
    /// Ask this zone only.
    zone: Option<String>,
    #[serde(rename = "consistency")]
    #[schemars(with = "Option<super::query::Consistency>")]
    _consistency: Option<String>,
}

/// The dataplanes of a mesh.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Dataplanes {
    /// Ordered by zone and name.
    items: Vec<DataplaneView>,
    /// Zones that did not answer, with the reason: what they hold is missing above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unanswered: Vec<Unanswered>,
    /// Revision at which the zones to ask were chosen.
    revision: u64,
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
        unanswered: unanswered.into_iter().map(Into::into).collect(),
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

/// Asks the zones of `mesh`. What one answers of another mesh is dropped, whatever it says.
async fn ask(
    app: &App,
    mesh: &str,
    only: Option<&str>,
    what: What,
) -> Result<(Vec<DataplaneView>, Vec<NoAnswer>), Problem> {
    let mut zones = zones::zones_of(&app.image(), mesh, only)?;
    if only.is_some() {
        // Whoever asks for one zone is told that it has never been heard of.
        zones.iter_mut().for_each(|zone| zone.joined = true);
    }
    let answers = zones::ask::<Views>(app, &zones, &what).await;
    let found = answers
        .answered
        .into_iter()
        .flat_map(|(zone, views)| {
            let named = move |view| DataplaneView {
                zone: zone.clone(),
                ..view
            };
            views.into_vec().into_iter().map(named)
        })
        .filter(|view| view.mesh == mesh)
        .collect();
    Ok((found, answers.unanswered))
}

/// What a zone answers: a list, or one dataplane or null to an inspection.
#[derive(Deserialize)]
#[serde(untagged)]
enum Views {
    Many(Vec<DataplaneView>),
    One(Option<Box<DataplaneView>>),
}

impl Views {
    fn into_vec(self) -> Vec<DataplaneView> {
        match self {
            Self::Many(views) => views,
            Self::One(view) => view.into_iter().map(|view| *view).collect(),
        }
    }
}
