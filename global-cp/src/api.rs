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
//! | [`status`] | cluster, zones, roll-outs, schemas |
//! | [`audit`] | who did what, and who was refused what |
//! | [`check`] | what deserves attention |
//! | [`nodes`] | removing a node |
//! | [`conditions`] | what this node itself has to say about the resources of a mesh |
//! | [`observed`] | what is observed of a resource beside what is stored: conditions, age |
//! | [`zones`] | asking zones what only they know |
//! | [`dataplanes`] | dataplanes, asked of their zones |
//! | [`explain`] | whether a call is allowed, and where it goes |
//! | [`requests`] | what dataplanes have counted of requests, asked of their zones |
//! | [`tap`] | requests as they end, asked of the dataplanes |
//! | [`inspect`] | a policy as it takes effect, a service as zones know it |
//! | [`plan`] | what a batch would change in what proxies do |
//! | [`openapi`] | the API's own description |
//! | [`serve`] | the server: TLS, connections, draining |

use aide::{
    axum::{
        ApiRouter,
        routing::{delete_with, get_with, post_with},
    },
    openapi::OpenApi,
    transform::TransformOperation,
};
use axum::{
    Json, Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use mesh_model::api::{
    AnyView, Audit, CreateToken, CreatedToken, Rollback, TappedRequest, WatchEvent, Written,
};

use crate::{app::App, metrics::RequestLabels};

pub mod audit;
pub mod batch;
pub mod caller;
pub mod check;
pub mod conditions;
pub mod dataplanes;
pub mod diff;
pub mod explain;
pub mod inspect;
pub mod limits;
pub mod nodes;
pub mod observed;
pub mod openapi;
pub mod plan;
pub mod problem;
pub mod query;
pub mod requests;
pub mod resources;
pub mod rollback;
pub mod serve;
pub mod status;
pub mod tap;
pub mod token;
pub mod watch;
pub mod zones;

#[cfg(test)]
mod access_tests;
#[cfg(test)]
mod audit_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod zone_tests;

use caller::Params;
use openapi::{Document, about, gives_events, takes, takes_batch, takes_resource};
use problem::Problem;

/// The whole API, with the document that describes it.
pub fn router(app: App) -> Router {
    let mut described = OpenApi::default();
    let router = routes().finish_api(&mut described);
    let document = Document::new(&described);
    router
        .route(
            "/v1/openapi.json",
            axum::routing::get(async move || document.answer()),
        )
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(app.clone(), around))
        .with_state(app)
}

fn routes() -> ApiRouter<App> {
    // A resource is reached by three forms of paths: in a mesh, outside any, and meshes themselves.
    let mesh = get_with(resources::get_mesh, |op| {
        gives_view(about("getMesh", "A mesh")(op))
    })
    .put_with(resources::put_mesh, |op| {
        puts(about("putMesh", "Creates or replaces a mesh")(op))
    })
    .delete_with(
        resources::delete_mesh,
        about("deleteMesh", "Deletes a mesh with all that is in it"),
    );
    let in_mesh = get_with(resources::get_in_mesh, |op| {
        gives_view(about("getInMesh", "A resource of a mesh")(op))
    })
    .put_with(resources::put_in_mesh, |op| {
        puts(about(
            "putInMesh",
            "Creates or replaces a resource of a mesh",
        )(op))
    })
    .delete_with(
        resources::delete_in_mesh,
        about("deleteInMesh", "Deletes a resource of a mesh"),
    );
    let global = get_with(resources::get_global, |op| {
        gives_view(about("get", "A resource outside any mesh")(op))
    })
    .put_with(resources::put_global, |op| {
        puts(about(
            "put",
            "Creates or replaces a resource outside any mesh",
        )(op))
    })
    .delete_with(
        resources::delete_global,
        about("delete", "Deletes a resource outside any mesh"),
    );
    let tokens = get_with(
        token::list,
        about("listTokens", "The tokens that the caller manages"),
    )
    .post_with(token::create, |op| {
        takes::<CreateToken>(about(
            "createToken",
            "Makes a token; its text is shown this once",
        )(op))
        .response::<201, Json<CreatedToken>>()
    });
    ApiRouter::new()
        .api_route(
            "/v1/version",
            get_with(status::version, about("version", "What runs here")),
        )
        .api_route(
            "/v1/status",
            get_with(status::status, about("status", "The nodes and the zones")),
        )
        .api_route(
            "/v1/audit",
            get_with(audit::audit, |op| {
                about("audit", "Who did what, and who was refused what")(op)
                    .response::<200, Json<Audit>>()
            }),
        )
        .api_route(
            "/v1/check",
            get_with(check::check, about("check", "What deserves attention")),
        )
        .api_route(
            "/v1/schema/{type}",
            get_with(status::schema, about("schema", "The JSON Schema of a kind")),
        )
        .api_route(
            "/v1/rollout/{revision}",
            get_with(status::rollout, |op| {
                about("rollout", "How far a revision has come")(op)
                    .input::<Params<status::RolloutQuery>>()
            }),
        )
        .api_route(
            "/v1/watch",
            get_with(watch::watch, |op| {
                let said =
                    "Server-sent events: changes, and the events `bookmark`, `gone` and `end`";
                gives_events::<WatchEvent>(about("watch", "Changes as they happen")(op), said)
            }),
        )
        .api_route(
            "/v1/batch",
            post_with(batch::batch, |op| {
                takes_batch(about("batch", "Several changes as one")(op))
            }),
        )
        .api_route(
            "/v1/diff",
            post_with(diff::diff, |op| {
                takes_batch(about("diff", "What a batch would change")(op))
            }),
        )
        .api_route(
            "/v1/plan",
            post_with(plan::plan, |op| {
                takes_batch(about(
                    "plan",
                    "What a batch would change in what proxies do",
                )(op))
            }),
        )
        .api_route(
            "/v1/rollback",
            post_with(rollback::rollback, |op| {
                takes::<Rollback>(about(
                    "rollback",
                    "Brings back what was at a revision, as one new change",
                )(op))
            }),
        )
        .api_route(
            "/v1/rollback/diff",
            post_with(rollback::diff, |op| {
                takes::<Rollback>(about("rollbackDiff", "What a rollback would change")(op))
            }),
        )
        .api_route("/v1/tokens", tokens)
        .api_route(
            "/v1/tokens/{id}",
            delete_with(token::revoke, about("revokeToken", "Revokes a token")),
        )
        .api_route(
            "/v1/nodes/{id}",
            delete_with(
                nodes::remove,
                about("removeNode", "Removes a node that is lost"),
            ),
        )
        .api_route(
            "/v1/zones/{zone}/status",
            get_with(
                status::zone_status,
                about("zoneStatus", "How a zone is connected"),
            ),
        )
        .api_route(
            "/v1/meshes",
            get_with(resources::list_meshes, about("listMeshes", "The meshes")),
        )
        .api_route("/v1/meshes/{mesh}", mesh)
        .api_route(
            "/v1/meshes/{mesh}/history",
            get_with(
                resources::history_mesh,
                about("historyOfMesh", "The changes of a mesh itself"),
            ),
        )
        .api_route(
            "/v1/meshes/{mesh}/dataplanes",
            get_with(
                dataplanes::list,
                about(
                    "listDataplanes",
                    "The dataplanes of a mesh, as their zones see them",
                ),
            ),
        )
        .api_route(
            "/v1/meshes/{mesh}/dataplanes/{name}",
            get_with(
                dataplanes::inspect,
                about(
                    "inspectDataplane",
                    "A dataplane with its effective configuration",
                ),
            ),
        )
        .api_route(
            "/v1/meshes/{mesh}/requests",
            get_with(
                requests::count,
                about(
                    "countRequests",
                    "What the dataplanes of a mesh have counted of requests of HTTP",
                ),
            ),
        )
        .api_route(
            "/v1/meshes/{mesh}/tap",
            get_with(tap::tap, |op| {
                let said = "Server-sent events: requests, and the events `state`, `done` and `end`";
                gives_events::<TappedRequest>(
                    about("tap", "Requests of HTTP as they end")(op),
                    said,
                )
            }),
        )
        .api_route(
            "/v1/meshes/{mesh}/explain",
            get_with(
                explain::explain,
                about("explain", "Whether a call is allowed, and where it goes"),
            ),
        )
        .api_route(
            "/v1/meshes/{mesh}/services/{name}",
            get_with(
                inspect::service,
                about("inspectService", "A service as the zones know it"),
            ),
        )
        .api_route(
            "/v1/meshes/{mesh}/{type}/{name}/inspect",
            get_with(
                inspect::policy,
                about("inspectPolicy", "A policy as it takes effect"),
            ),
        )
        .api_route(
            "/v1/meshes/{mesh}/{type}",
            get_with(
                resources::list_in_mesh,
                about("listInMesh", "The resources of one kind in a mesh"),
            ),
        )
        .api_route("/v1/meshes/{mesh}/{type}/{name}", in_mesh)
        .api_route(
            "/v1/meshes/{mesh}/{type}/{name}/history",
            get_with(
                resources::history_in_mesh,
                about("historyInMesh", "The changes of a resource of a mesh"),
            ),
        )
        .api_route(
            "/v1/{type}",
            get_with(
                resources::list_global,
                about(
                    "list",
                    "The resources of one kind, of all meshes that the caller sees",
                ),
            ),
        )
        .api_route("/v1/{type}/{name}", global)
        .api_route(
            "/v1/{type}/{name}/history",
            get_with(
                resources::history_global,
                about("history", "The changes of a resource outside any mesh"),
            ),
        )
}

fn gives_view(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    operation.response::<200, Json<AnyView>>()
}

fn puts(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    takes_resource(operation)
        .response::<200, Json<Written>>()
        .response::<201, Json<Written>>()
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
    Problem::not_found("there is nothing at this path").detail(
        "resources are at /v1/meshes/<mesh>/<type>/<name> and /v1/<type>/<name>; /v1/openapi.json says what else \
         there is",
    )
}

async fn no_such_method(uri: Uri) -> Problem {
    let problem = Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "this path does not take this method",
    );
    // Whoever is at the wrong place is told the right one.
    let segments: Vec<&str> = uri.path().split('/').skip(1).collect();
    problem.detail(match segments.as_slice() {
        ["v1", "meshes", _, "dataplanes", ..] => {
            "dataplanes live in their zones and register there: start or stop `dataplane run` on its machine"
        }
        ["v1", "meshes", _, "services", ..] => {
            "services are written at /v1/meshes/<mesh>/meshservices/<name>"
        }
        ["v1", "tokens", ..] => "POST /v1/tokens makes one, DELETE /v1/tokens/<id> revokes it",
        ["v1", "zones", _, "status"] => "zones are written at /v1/zones/<name>",
        _ => "/v1/openapi.json says what each path takes",
    })
}
