//! What dataplanes have counted of requests, for whoever looks. Nothing of it is kept here; the zones ask their dataplanes.

use axum::{Json, extract::State};
use mesh_model::api::{RequestCounts, ZoneRequests};
use mesh_proto::zone::{CountRequests, query::What};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    caller::{Caller, Params, Segments},
    problem::Problem,
    zones,
};
use crate::{app::App, authorize::Action};

/// Parameters.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestsQuery {
    /// Only what this service asked or was asked.
    service: Option<String>,
    /// Ask this zone only.
    zone: Option<String>,
    #[serde(rename = "consistency")]
    #[schemars(with = "Option<super::query::Consistency>")]
    _consistency: Option<String>,
}

/// `GET /v1/meshes/{mesh}/requests?service=store`
pub async fn count(
    State(app): State<App>,
    caller: Caller,
    Segments(mesh): Segments<String>,
    Params(params): Params<RequestsQuery>,
) -> Result<Json<RequestCounts>, Problem> {
    caller.may(&app, Action::Read, &mesh, "Dataplane")?;
    let zones = zones::zones_of(&app.image(), &mesh, params.zone.as_deref())?;
    let what = What::CountRequests(CountRequests {
        mesh: mesh.clone(),
        service: params.service.unwrap_or_default(),
    });
    let answers = zones::ask::<ZoneRequests>(&app, &zones, &what).await;
    let unanswered = answers.silent();
    let zones = answers.answered.into_iter();
    Ok(Json(RequestCounts {
        mesh,
        zones: zones
            .map(|(zone, counted)| ZoneRequests { zone, ..counted })
            .collect(),
        unanswered,
    }))
}
