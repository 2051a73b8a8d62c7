//! Tokens over the API.

use axum::{Json, extract::State, http::StatusCode};
use mesh_model::{
    Violation,
    api::{CreateToken, CreatedToken, TokenInfo},
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    caller::{Body, Caller, Segments},
    problem::Problem,
};
use crate::{app::App, authorize::Action, clock, issue};

/// The tokens that the caller manages.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Tokens {
    /// Ordered by id.
    items: Vec<TokenInfo>,
}

/// `GET /v1/tokens`
pub async fn list(State(app): State<App>, caller: Caller) -> Result<Json<Tokens>, Problem> {
    may_have_tokens(&app, &caller)?;
    let items = issue::list(&app.image(), &caller.actor, clock::now_seconds());
    Ok(Json(Tokens { items }))
}

/// Whoever manages no mesh's tokens, and is no user with tokens of its own, is told so.
fn may_have_tokens(app: &App, caller: &Caller) -> Result<(), Problem> {
    let managed = caller.actor.meshes_for(Action::Tokens, "Token");
    if managed.is_some_and(|meshes| meshes.is_empty()) && caller.actor.user.is_none() {
        caller.may(app, Action::Tokens, "", "Token")?;
    }
    Ok(())
}

/// `POST /v1/tokens`
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    body: Body,
) -> Result<(StatusCode, Json<CreatedToken>), Problem> {
    let asked: CreateToken = serde_json::from_str(&body.text).map_err(|error| {
        Problem::invalid(vec![Violation {
            source: body.source.clone(),
            line: u32::try_from(error.line()).unwrap_or_default(),
            column: u32::try_from(error.column()).unwrap_or_default(),
            path: String::new(),
            message: error.to_string(),
        }])
        .detail("write JSON such as {\"use\": \"dataplane\", \"mesh\": \"payments\"}")
    })?;
    let created = issue::create(&app, &caller.actor, asked).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

/// `DELETE /v1/tokens/{id}`
pub async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Segments(id): Segments<String>,
) -> Result<Json<TokenInfo>, Problem> {
    may_have_tokens(&app, &caller)?;
    Ok(Json(issue::revoke(&app, &caller.actor, &id).await?))
}
