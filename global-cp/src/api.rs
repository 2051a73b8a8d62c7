//! The REST API: HTTPS, JSON, bearer tokens.
//!
//! Every handler takes a [`caller::Caller`], which says who asks, and calls [`crate::authorize`] before it looks at
//! anything. Every error becomes a [`problem::Problem`].
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`problem`] | errors as clients see them |
//! | [`caller`] | who asks, parameters, body |
//! | [`query`] | selectors, pages, preconditions |
//! | [`limits`] | how much is done at once |
//! | [`resources`] | get, list, put, delete, history |
//! | [`batch`] | several changes as one |
//! | [`diff`] | what a batch would change |
//! | [`rollback`] | bringing back what was |
//! | [`watch`] | changes as they happen |
//! | [`token`] | making, listing and revoking tokens |
//! | [`status`] | cluster, zones, roll-outs, audit, schemas |
//! | [`nodes`] | removing a node |
//! | [`observed`] | what is observed of a resource beside what is stored: conditions, age |
//! | [`zones`] | asking zones what only they know |
//! | [`dataplanes`] | dataplanes, asked of their zones |
//! | [`explain`] | whether a call is allowed, and where it goes |
//! | [`inspect`] | a policy as it takes effect, a service as zones know it |
//! | [`plan`] | what a batch would change in what proxies do |
//! | [`serve`] | the server: TLS, connections, draining |

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};

use crate::{app::App, metrics::RequestLabels};

pub mod batch;
pub mod caller;
pub mod dataplanes;
pub mod diff;
pub mod explain;
pub mod inspect;
pub mod limits;
pub mod nodes;
pub mod observed;
pub mod plan;
pub mod problem;
pub mod query;
pub mod resources;
pub mod rollback;
pub mod serve;
pub mod status;
pub mod token;
pub mod watch;
pub mod zones;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod zone_tests;

use problem::Problem;

/// The whole API.
pub fn router(app: App) -> Router {
    let mesh = get(resources::get_mesh)
        .put(resources::put_mesh)
        .delete(resources::delete_mesh);
    let in_mesh = get(resources::get_in_mesh)
        .put(resources::put_in_mesh)
        .delete(resources::delete_in_mesh);
    let global = get(resources::get_global)
        .put(resources::put_global)
        .delete(resources::delete_global);
    Router::new()
        .route("/v1/version", get(status::version))
        .route("/v1/status", get(status::status))
        .route("/v1/audit", get(status::audit))
        .route("/v1/schema/{type}", get(status::schema))
        .route("/v1/rollout/{revision}", get(status::rollout))
        .route("/v1/watch", get(watch::watch))
        .route("/v1/batch", post(batch::batch))
        .route("/v1/diff", post(diff::diff))
        .route("/v1/rollback", post(rollback::rollback))
        .route("/v1/rollback/diff", post(rollback::diff))
        .route("/v1/plan", post(plan::plan))
        .route("/v1/tokens", get(token::list).post(token::create))
        .route("/v1/tokens/{id}", axum::routing::delete(token::revoke))
        .route("/v1/nodes/{id}", axum::routing::delete(nodes::remove))
        .route("/v1/zones/{zone}/status", get(status::zone_status))
        .route("/v1/meshes", get(resources::list_meshes))
        .route("/v1/meshes/{mesh}", mesh)
        .route("/v1/meshes/{mesh}/history", get(resources::history_mesh))
        .route("/v1/meshes/{mesh}/dataplanes", get(dataplanes::list))
        .route(
            "/v1/meshes/{mesh}/dataplanes/{name}",
            get(dataplanes::inspect),
        )
        .route("/v1/meshes/{mesh}/explain", get(explain::explain))
        .route("/v1/meshes/{mesh}/services/{name}", get(inspect::service))
        .route(
            "/v1/meshes/{mesh}/{type}/{name}/inspect",
            get(inspect::policy),
        )
        .route("/v1/meshes/{mesh}/{type}", get(resources::list_in_mesh))
        .route("/v1/meshes/{mesh}/{type}/{name}", in_mesh)
        .route(
            "/v1/meshes/{mesh}/{type}/{name}/history",
            get(resources::history_in_mesh),
        )
        .route("/v1/{type}", get(resources::list_global))
        .route("/v1/{type}/{name}", global)
        .route("/v1/{type}/{name}/history", get(resources::history_global))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(app.clone(), around))
        .with_state(app)
}

/// What is done around every request: a place for it, and a count.
async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    let method = match request.method().as_str() {
        known @ ("GET" | "PUT" | "POST" | "DELETE" | "HEAD" | "OPTIONS" | "PATCH") => {
            known.to_owned()
        }
        _ => "other".to_owned(),
    };
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", MatchedPath::as_str)
        .to_owned();
    let mut response = match app.limits.request() {
        Ok(_place) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    app.metrics.request(RequestLabels {
        route,
        method,
        status: response.status().as_u16(),
    });
    response
        .headers_mut()
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-cache"));
    response
}

async fn no_such_path() -> Problem {
    Problem::not_found("there is nothing at this path")
        .detail("resources are at /v1/meshes/<mesh>/<type>/<name> and /v1/<type>/<name>")
}

async fn no_such_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "this path does not take this method",
    )
}
