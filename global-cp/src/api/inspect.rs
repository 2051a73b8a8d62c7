//! A policy as it takes effect, and a service as the zones know it.

use std::collections::BTreeSet;

use axum::{Json, extract::State};
use mesh_model::api::{PolicyInspection, ServiceInspection, ZonePolicy, ZoneService};
use mesh_proto::zone::{InspectPolicy, InspectService, query::What};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    caller::{Caller, Params, Segments},
    observed::Observed,
    problem::Problem,
    resources::{self, ReadQuery, Target},
    zones,
};
use crate::{app::App, authorize::Action};

/// `GET /v1/meshes/{mesh}/{type}/{name}/inspect`
pub async fn policy(
    State(app): State<App>,
    caller: Caller,
    Segments((mesh, word, name)): Segments<(String, String, String)>,
    Params(params): Params<ReadQuery>,
) -> Result<Json<PolicyInspection>, Problem> {
    let target = Target::in_mesh(mesh, &word, name)?;
    let key = target.key(&params.zone);
    caller.may(&app, Action::Read, &key.mesh, &key.kind)?;
    if key.kind == "Dataplane" {
        return Err(
            Problem::not_found("a dataplane is no policy").detail(format!(
                "ask for /v1/meshes/{}/dataplanes/{}",
                key.mesh, key.name
            )),
        );
    }
    let image = app.image();
    let stored = resources::find(&image, &key)?;
    let zones = zones::zones_of(&image, &key.mesh, None)?;
    let what = What::InspectPolicy(InspectPolicy {
        key: Some(key.clone()),
    });
    let answers = zones::ask::<ZonePolicy>(&app, &zones, &what).await;
    let mut observed = Observed::now(&app, &image).await;
    let mut resource = resources::view(&stored);
    observed.add_status(&mut resource, &stored).await;
    Ok(Json(PolicyInspection {
        resource,
        conditions: observed.conditions_of(&key).await,
        unanswered: answers.silent(),
        zones: answers
            .answered
            .into_iter()
            .map(|(zone, policy)| ZonePolicy { zone, ..policy })
            .collect(),
    }))
}

/// Parameters.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceQuery {
    /// Ask this zone only.
    zone: Option<String>,
    #[serde(rename = "consistency")]
    #[schemars(with = "Option<super::query::Consistency>")]
    _consistency: Option<String>,
}

/// `GET /v1/meshes/{mesh}/services/{name}`
pub async fn service(
    State(app): State<App>,
    caller: Caller,
    Segments((mesh, name)): Segments<(String, String)>,
    Params(params): Params<ServiceQuery>,
) -> Result<Json<ServiceInspection>, Problem> {
    caller.may(&app, Action::Read, &mesh, "MeshService")?;
    let zones = zones::zones_of(&app.image(), &mesh, params.zone.as_deref())?;
    let what = What::InspectService(InspectService {
        mesh: mesh.clone(),
        name: name.clone(),
    });
    let answers = zones::ask::<Option<ZoneService>>(&app, &zones, &what).await;
    let unanswered = answers.silent();
    let zones: Vec<ZoneService> = answers
        .answered
        .into_iter()
        .filter_map(|(zone, service)| Some(ZoneService { zone, ..service? }))
        .collect();
    if zones.is_empty() {
        let what = format!("has a service {name:?} in mesh {mesh}");
        if unanswered.is_empty() {
            return Err(Problem::not_found(format!("no zone {what}"))
                .detail(format!("list them with /v1/meshes/{mesh}/meshservices")));
        }
        let words: Vec<String> = unanswered
            .iter()
            .map(|zone| format!("{}: {}", zone.zone, zone.reason))
            .collect();
        return Err(
            Problem::unavailable(format!("no zone that answers {what}")).detail(words.join("; "))
        );
    }
    let policies: BTreeSet<String> = zones
        .iter()
        .flat_map(|zone| zone.policies.iter().cloned())
        .collect();
    Ok(Json(ServiceInspection {
        mesh,
        name,
        policies: policies.into_iter().collect(),
        zones,
        unanswered,
    }))
}
