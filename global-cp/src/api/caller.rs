//! What a request brings: who asks, parameters, path and body. Everything that is wrong with them becomes a problem.

use std::{net::SocketAddr, time::Duration};

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use mesh_model::{Resource, Token, api::TokenUse};
use mesh_proto::{
    token::{ApiToken, USE_DATAPLANE, USE_INGRESS, USE_NODE_JOIN, USE_ZONE_JOIN},
    zone::ResourceKey,
};
use serde::de::DeserializeOwned;

use super::{limits::ActorPermit, problem::Problem, query};
use crate::{
    access,
    app::App,
    authorize::{Action, Actor, Grant},
    clock,
    state::image::Image,
    tokens,
};

/// Time within which a body must have come.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Address of the other end of the connection.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub SocketAddr);

/// Who asks. To have one means: the token is good at the newest state (or, with `consistency=stale`, at what this node
/// last applied), and that state can be read here.
#[derive(Debug)]
pub struct Caller {
    /// Who, and what its token grants.
    pub actor: Actor,
    /// The token, to look at it again during a long answer.
    pub token: ApiToken,
    _permit: ActorPermit,
}

impl Caller {
    /// Says whether the caller may do `action`, and keeps a record where it may not.
    ///
    /// # Errors
    /// Where it may not.
    pub fn may(&self, app: &App, action: Action, mesh: &str, kind: &str) -> Result<(), Problem> {
        Ok(app.authorize(&self.actor, action, mesh, kind)?)
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let address = parts
            .extensions
            .get::<PeerAddress>()
            .map(|peer| peer.0.ip().to_string())
            .unwrap_or_default();
        let token = bearer(&parts.headers)?;
        if !wants_stale(parts)? {
            let newest = app.cluster.linearize().await;
            // Without a quorum the status is what a person needs most.
            if parts.uri.path() != "/v1/status" {
                newest?;
            }
        }
        let actor = authenticate(&app.image(), &token, &address, clock::now_seconds())
            .inspect_err(|problem| {
                app.refused_stranger(
                    &format!("token/{}", shortened(&token.id)),
                    &address,
                    &format!("{} {}", parts.method, parts.uri.path()),
                    &problem.body.title,
                );
            })?;
        let actor = Actor {
            request: format!("{} {}", parts.method, shortened(parts.uri.path())),
            request_id: query::request_id(&parts.headers)?,
            ..actor
        };
        let permit = app.limits.actor(&actor.name)?;
        Ok(Self {
            actor,
            token,
            _permit: permit,
        })
    }
}

/// The token of a request.
fn bearer(headers: &HeaderMap) -> Result<ApiToken, Problem> {
    let how = "send the header `Authorization: Bearer <token>`; `meshctl token create` makes tokens, and the first \
               one was printed when the first node started";
    let value = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| Problem::unauthorized("a token is needed").detail(how))?;
    let text = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| {
            Problem::unauthorized("the Authorization header holds no bearer token").detail(how)
        })?;
    ApiToken::parse(text).ok_or_else(|| {
        let Some(claims) = tokens::unverified_claims(text) else {
            return Problem::unauthorized("this is not an API token")
                .detail("API tokens begin with `isthmus.`");
        };
        let usage = shortened(&claims.usage);
        let belongs = match usage.as_str() {
            USE_DATAPLANE | USE_INGRESS => "it is for `dataplane run`, which shows it to its zone",
            USE_ZONE_JOIN => "it is for `meshctl zone join`, on the zone's machine",
            USE_NODE_JOIN => "it is for `global-cp run --join`, on the new node's machine",
            _ => "API tokens begin with `isthmus.`",
        };
        Problem::unauthorized(format!("this is a token for {usage}, not for the API"))
            .detail(belongs)
    })
}

/// Who the holder of `token` is, at `now` (Unix seconds).
///
/// # Errors
/// Where the token is unknown, expired or revoked.
pub fn authenticate(
    image: &Image,
    token: &ApiToken,
    address: &str,
    now: u64,
) -> Result<Actor, Problem> {
    let unknown = || {
        Problem::unauthorized("this token is not known here")
            .detail("it was deleted, is of another installation, or was mistyped")
    };
    let stored = image
        .get(&ResourceKey::global("Token", "", &token.id))
        .ok_or_else(unknown)?;
    let resource = Resource::from_json(&stored.json).map_err(|_| unknown())?;
    let known = resource.get::<Token>().ok_or_else(unknown)?;
    let right_secret = known
        .secret_hash
        .as_ref()
        .is_some_and(|hash| tokens::secret_matches(&token.secret, hash));
    if !right_secret || known.scope.usage != TokenUse::Api {
        return Err(unknown());
    }
    if known.revoked {
        return Err(Problem::unauthorized("this token was revoked"));
    }
    if now >= known.expires_at {
        return Err(Problem::unauthorized(format!(
            "this token expired at {}",
            clock::from_seconds(known.expires_at)
        )));
    }
    let (name, grants) = match (&known.scope.user, known.scope.role) {
        (Some(user), _) if image.get(&ResourceKey::global("User", "", user)).is_none() => {
            return Err(Problem::unauthorized("the user of this token was deleted"));
        }
        (Some(user), _) => (
            format!("user/{user}/{}", token.id),
            access::grants_of(image, user),
        ),
        (None, Some(role)) => (
            format!("token/{}", token.id),
            vec![Grant::built_in(role, &known.scope.meshes)],
        ),
        // Without a role the token grants nothing; that is a record we did not write.
        (None, None) => return Err(unknown()),
    };
    Ok(Actor {
        name,
        address: address.to_owned(),
        user: known.scope.user.clone(),
        grants,
        request: String::new(),
        request_id: String::new(),
    })
}

fn wants_stale(parts: &Parts) -> Result<bool, Problem> {
    let query = parts.uri.query().unwrap_or_default();
    match query
        .split('&')
        .find_map(|pair| pair.strip_prefix("consistency="))
    {
        None | Some("linearizable") => Ok(false),
        Some("stale") if parts.method == axum::http::Method::GET => Ok(true),
        Some("stale") => Err(Problem::bad_request("consistency: only reads can be stale")),
        Some(other) => Err(Problem::bad_request(format!(
            "consistency: {:?} is neither linearizable nor stale",
            shortened(other)
        ))),
    }
}

/// A stranger's text, for messages and records.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// Parameters of the query.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(params) = Query::try_from_uri(&parts.uri).map_err(|rejection| {
            Problem::bad_request(format!("query: {}", rejection.body_text()))
        })?;
        Ok(Self(params))
    }
}

/// A query without parameters: one that is not understood is refused, not ignored.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// That there are no parameters.
pub struct NoParams;

impl<S: Sync> FromRequestParts<S> for NoParams {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Params(Nothing {}) = Params::from_request_parts(parts, state).await?;
        Ok(Self)
    }
}

/// Parts of the path.
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(segments) = Path::from_request_parts(parts, state)
            .await
            .map_err(|rejection| {
                Problem::bad_request(format!("path: {}", rejection.body_text()))
            })?;
        Ok(Self(segments))
    }
}

/// The body as text.
#[derive(Debug)]
pub struct Body {
    /// The text.
    pub text: String,
    /// Its media type, in lower case, without parameters; "" where none is given.
    pub media_type: String,
    /// What the client calls it, for violations.
    pub source: String,
}

impl FromRequest<App> for Body {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let headers = request.headers();
        let media_type = headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .map(|value| value.trim().to_ascii_lowercase())
            .unwrap_or_default();
        let source = headers
            .get("x-source-name")
            .and_then(|value| value.to_str().ok())
            .map_or_else(|| "request body".to_owned(), shortened);
        let bytes_max = app.limits.bounds().body_bytes.get();
        let too_large = || app.limits.too_large();
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > bytes_max as u64) {
            return Err(too_large());
        }
        let reading = axum::body::to_bytes(request.into_body(), bytes_max);
        let bytes = tokio::time::timeout(BODY_TIMEOUT, reading)
            .await
            .map_err(|_| {
                Problem::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "timeout",
                    format!("the body did not come within {} s", BODY_TIMEOUT.as_secs()),
                )
            })?
            .map_err(|error| {
                let mut source: Option<&dyn std::error::Error> = Some(&error);
                while let Some(cause) = source {
                    if cause.to_string().contains("length limit exceeded") {
                        return too_large();
                    }
                    source = cause.source();
                }
                Problem::bad_request("the body broke off")
            })?;
        let text = String::from_utf8(bytes.to_vec())
            .map_err(|_| Problem::bad_request("the body is not UTF-8 text"))?;
        Ok(Self {
            text,
            media_type,
            source,
        })
    }
}

impl Body {
    /// Refuses what is not JSON by its own account.
    ///
    /// # Errors
    /// Where the media type is another.
    pub fn check_json(&self) -> Result<(), Problem> {
        // Without a media type it is read as what it has to be.
        if matches!(self.media_type.as_str(), "" | "application/json") {
            return Ok(());
        }
        Err(self.unsupported("application/json"))
    }

    fn unsupported(&self, wanted: &str) -> Problem {
        Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            format!("{} is not {wanted}", shortened(&self.media_type)),
        )
        .detail("say in the header Content-Type what the body is")
    }

    /// Refuses what is neither YAML nor JSON by its own account.
    ///
    /// # Errors
    /// Where the media type is another.
    pub fn check_media_type(&self) -> Result<(), Problem> {
        const KNOWN: &[&str] = &[
            "",
            "application/json",
            "application/yaml",
            "application/x-yaml",
            "text/yaml",
            "text/plain",
            // What curl says where nobody tells it better.
            "application/x-www-form-urlencoded",
        ];
        if KNOWN.contains(&self.media_type.as_str()) {
            return Ok(());
        }
        Err(self.unsupported("application/json or application/yaml"))
    }
}
