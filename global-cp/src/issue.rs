//! Making and taking back tokens: their records in the state, and what else changes with them.

use mesh_model::{
    Meta, Resource, Token, TokenIssuer, Violation,
    api::{CreateToken, CreatedToken, Role, TokenInfo, TokenScope, TokenUse},
    token_issuer::RevokedToken,
};
use mesh_proto::{raft::Operation, zone::ResourceKey};

use crate::{
    api::problem::Problem,
    app::App,
    authorize::{Action, Actor, Grant, Reach, authorize, authorize_grant},
    ca, changes,
    changes::{Asked, AskedPut, delete_operation, put_operation},
    clock, facts,
    state::{Stored, image::Image},
    tokens::{self, Claims, TokenKey},
    writes,
    zone_sync::scope::ingress_issuer,
};

/// Shortest and longest lives that can be asked for.
const LIFETIME_MIN_SECONDS: u64 = 1;
const LIFETIME_MAX_SECONDS: u64 = 10 * 366 * 24 * 3600;
const JOIN_LIFETIME_MAX_SECONDS: u64 = 30 * 24 * 3600;
/// How long an expired token is still shown.
const KEPT_AFTER_EXPIRY_SECONDS: u64 = 7 * 24 * 3600;
/// Expired tokens that one new token clears away, so that there are never many.
const CLEARED_AT_ONCE: usize = 16;
/// Label of tokens that the installation made for itself.
pub const MADE_BY: &str = "isthmus.io/managed-by";
const ATTEMPTS_MAX: usize = 8;

/// Makes the token that `actor` asks for.
///
/// # Errors
/// Where it may not have it, what is asked for makes no sense, or it can not be written now.
pub async fn create(app: &App, actor: &Actor, asked: CreateToken) -> Result<CreatedToken, Problem> {
    may_create(app, actor, &asked)?;
    check(&asked)?;
    for _ in 0..ATTEMPTS_MAX {
        let image = app.image();
        check_references(&image, &asked)?;
        let now = clock::now_seconds();
        let made = make(app, &image, &asked, now, None)?;
        let mut operations = made.operations;
        if asked.usage == TokenUse::ZoneJoin {
            // Whoever lets a zone join means that there is one.
            operations.extend(zone_if_missing(app, &image, asked.zone.as_deref())?);
        }
        operations.extend(expired(&image, now));
        let summary = format!(
            "create {} token {}",
            tokens::use_word(asked.usage),
            made.info.id
        );
        match writes::write_operations(app, actor, operations, summary).await {
            Ok(_) => {
                return Ok(CreatedToken {
                    token: made.text,
                    info: made.info,
                });
            }
            Err(problem) if problem.body.status == 409 => app.cluster.linearize().await?,
            Err(problem) => return Err(problem),
        }
    }
    Err(Problem::conflict("what the token depends on keeps changing; try again").retry_after(1))
}

/// A token that has been made and not yet written.
pub struct Made {
    /// The text to hand over.
    pub text: String,
    /// What lists will show.
    pub info: TokenInfo,
    /// What to write for it to count.
    pub operations: Vec<Operation>,
}

/// Makes a token without looking at who asks. `made_by` marks those that the installation makes for itself.
///
/// # Errors
/// Where a signing key is missing or does not open.
pub fn make(
    app: &App,
    image: &Image,
    asked: &CreateToken,
    now: u64,
    made_by: Option<&str>,
) -> Result<Made, Problem> {
    let pin = ca::InstallationCa::open(image, &app.sealing)
        .and_then(|ca| ca.pin())
        .map_err(|error| Problem::internal(&error))?;
    let lifetime = asked
        .valid_for_seconds
        .unwrap_or_else(|| tokens::default_lifetime_seconds(asked.usage));
    let expires_at = now.saturating_add(lifetime);
    let scope = TokenScope {
        usage: asked.usage,
        description: asked.description.clone(),
        mesh: asked.mesh.clone(),
        name: asked.name.clone(),
        labels: asked.labels.clone(),
        zone: asked.zone.clone(),
        user: asked.user.clone(),
        role: asked.role,
        meshes: asked.meshes.clone(),
    };
    let (id, text, secret_hash) = if asked.usage == TokenUse::Api {
        let (token, hash) =
            tokens::new_api_token(&pin).map_err(|error| Problem::internal(&error))?;
        let text = token.to_text();
        (token.id, text, Some(hash))
    } else {
        let id = tokens::new_id().map_err(|error| Problem::internal(&error))?;
        let claims = Claims {
            iss: app.cluster.cluster_id().to_owned(),
            jti: id.clone(),
            iat: now,
            exp: expires_at,
            usage: tokens::use_word(asked.usage).to_owned(),
            pin,
            mesh: asked.mesh.clone(),
            name: asked.name.clone(),
            labels: asked.labels.clone(),
            zone: asked.zone.clone(),
        };
        let text = signing_key(app, image, asked)?
            .sign(&claims)
            .map_err(|error| Problem::internal(&error))?;
        (id, text, None)
    };
    let mut meta = Meta::new("", &id);
    if let Some(made_by) = made_by {
        meta = meta.with_label(MADE_BY, made_by);
    }
    let token = Token {
        scope: scope.clone(),
        secret_hash,
        expires_at,
        revoked: false,
        used: false,
    };
    let resource = Resource::new(meta, token);
    let mut operations = vec![put_operation(resource.key(), resource.to_json(), Some(0))];
    operations.extend(
        asked
            .mesh
            .iter()
            .map(|mesh| facts::guard(image, "Mesh", mesh)),
    );
    operations.extend(
        asked
            .meshes
            .iter()
            .map(|mesh| facts::guard(image, "Mesh", mesh)),
    );
    operations.extend(
        asked
            .user
            .iter()
            .map(|user| facts::guard(image, "User", user)),
    );
    Ok(Made {
        text,
        info: TokenInfo {
            id,
            asked: scope,
            created: clock::from_seconds(now),
            expires: clock::from_seconds(expires_at),
            state: "active".to_owned(),
        },
        operations,
    })
}

fn signing_key(app: &App, image: &Image, asked: &CreateToken) -> Result<TokenKey, Problem> {
    let name = match asked.usage {
        TokenUse::Dataplane => facts::token_key_name(asked.mesh.as_deref().unwrap_or_default()),
        TokenUse::Ingress => {
            let zone = asked.zone.as_deref().unwrap_or_default();
            facts::token_key_name(&ingress_issuer(zone))
        }
        TokenUse::ZoneJoin | TokenUse::NodeJoin | TokenUse::Api => facts::JOIN_KEY.to_owned(),
    };
    facts::open_token_key(image, &app.sealing, &name).map_err(|error| Problem::internal(&error))
}

fn may_create(app: &App, actor: &Actor, asked: &CreateToken) -> Result<(), Problem> {
    if asked.usage == TokenUse::Api {
        // Who holds a token of a user is that user, whatever it may do one day.
        let grant = match &asked.user {
            Some(_) => Grant::admin(),
            None => Grant::built_in(asked.role.unwrap_or(Role::Viewer), &asked.meshes),
        };
        let meshes: Vec<&str> = match &grant.reach {
            Reach::Everywhere => vec![""],
            Reach::Meshes(meshes) => meshes.iter().map(String::as_str).collect(),
        };
        authorize_grant(actor, &grant)
            .and_then(|()| {
                let mut each = meshes.iter();
                each.try_for_each(|mesh| authorize(actor, Action::Tokens, mesh, "Token"))
            })
            .inspect_err(|denied| app.refused(actor, denied, meshes.first().unwrap_or(&"")))?;
        return Ok(());
    }
    let mesh = match asked.usage {
        TokenUse::Dataplane => asked.mesh.as_deref().unwrap_or_default(),
        _ => "",
    };
    Ok(app.authorize(actor, Action::Tokens, mesh, "Token")?)
}

/// What can be known from the request alone.
fn check(asked: &CreateToken) -> Result<(), Problem> {
    let mut found = Vec::new();
    let mut add = |path: &str, message: String| found.push(violation(path, message));
    let word = tokens::use_word(asked.usage);
    let joins = matches!(asked.usage, TokenUse::ZoneJoin | TokenUse::NodeJoin);
    // Field, whether it is given, and the uses that take it.
    let fields: [(&str, bool, &[TokenUse]); 7] = [
        ("mesh", asked.mesh.is_some(), &[TokenUse::Dataplane]),
        ("name", asked.name.is_some(), &[TokenUse::Dataplane]),
        ("labels", !asked.labels.is_empty(), &[TokenUse::Dataplane]),
        (
            "zone",
            asked.zone.is_some(),
            &[TokenUse::ZoneJoin, TokenUse::Ingress],
        ),
        ("user", asked.user.is_some(), &[TokenUse::Api]),
        ("role", asked.role.is_some(), &[TokenUse::Api]),
        ("meshes", !asked.meshes.is_empty(), &[TokenUse::Api]),
    ];
    for (field, given, uses) in fields {
        if given && !uses.contains(&asked.usage) {
            add(field, format!("a token for {word} has no {field}"));
        }
    }
    match asked.usage {
        TokenUse::Dataplane if asked.mesh.is_none() => {
            add(
                "mesh",
                "a dataplane token is for one mesh: name it".to_owned(),
            );
        }
        TokenUse::ZoneJoin | TokenUse::Ingress => match &asked.zone {
            None => add(
                "zone",
                format!("a token for {word} is for one zone: name it"),
            ),
            Some(zone) if !mesh_proto::names::is_label(zone) || zone == "global" => {
                add("zone", format!("{zone:?} can not name a zone"));
            }
            Some(_) => {}
        },
        TokenUse::Api if asked.user.is_some() => {
            for (field, given) in [
                ("role", asked.role.is_some()),
                ("meshes", !asked.meshes.is_empty()),
            ] {
                if given {
                    let message = "a token of a user has none: its RoleBindings say what it may do";
                    add(field, message.to_owned());
                }
            }
        }
        TokenUse::Api => match asked.role {
            None => add(
                "role",
                "say admin, mesh-admin or viewer, or name a user".to_owned(),
            ),
            Some(Role::MeshAdmin) if asked.meshes.is_empty() => {
                add(
                    "meshes",
                    "a mesh-admin is bound to meshes: name them".to_owned(),
                );
            }
            Some(Role::Admin) if !asked.meshes.is_empty() => {
                add(
                    "meshes",
                    "an admin is not bound to meshes: use the role mesh-admin".to_owned(),
                );
            }
            Some(_) => {}
        },
        TokenUse::Dataplane | TokenUse::NodeJoin => {}
    }
    let longest = if joins {
        JOIN_LIFETIME_MAX_SECONDS
    } else {
        LIFETIME_MAX_SECONDS
    };
    if asked
        .valid_for_seconds
        .is_some_and(|seconds| !(LIFETIME_MIN_SECONDS..=longest).contains(&seconds))
    {
        add(
            "validForSeconds",
            format!("must be between {LIFETIME_MIN_SECONDS} and {longest}"),
        );
    }
    if asked.description.len() > 256 {
        add("description", "has more than 256 bytes".to_owned());
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid(found))
    }
}

/// What the state must hold. Looked at only after the actor was authorised for it.
fn check_references(image: &Image, asked: &CreateToken) -> Result<(), Problem> {
    let mut found = Vec::new();
    let meshes = asked.mesh.iter().map(|mesh| ("mesh", mesh));
    for (path, mesh) in meshes.chain(asked.meshes.iter().map(|mesh| ("meshes", mesh))) {
        if image.get(&ResourceKey::global("Mesh", "", mesh)).is_none() {
            found.push(violation(path, format!("there is no mesh {mesh:?}")));
        }
    }
    if let Some(user) = &asked.user
        && image.get(&ResourceKey::global("User", "", user)).is_none()
    {
        found.push(violation("user", format!("there is no user {user:?}")));
    }
    if asked.usage == TokenUse::Ingress
        && let Some(zone) = &asked.zone
        && image.get(&ResourceKey::global("Zone", "", zone)).is_none()
    {
        found.push(violation("zone", format!("there is no zone {zone:?}")));
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid(found))
    }
}

fn violation(path: &str, message: String) -> Violation {
    Violation {
        source: String::new(),
        line: 0,
        column: 0,
        path: path.to_owned(),
        message,
    }
}

fn zone_if_missing(
    app: &App,
    image: &Image,
    zone: Option<&str>,
) -> Result<Vec<Operation>, Problem> {
    let Some(zone) = zone else { return Ok(vec![]) };
    let key = ResourceKey::global("Zone", "", zone);
    if image.get(&key).is_some() {
        return Ok(vec![facts::guard(image, "Zone", zone)]);
    }
    let asked = Asked {
        put: vec![AskedPut {
            resource: Resource::new(Meta::new("", zone), mesh_model::Zone::default()),
            revision: Some(0),
        }],
        delete: vec![],
    };
    Ok(changes::plan(image, &app.sealing, &asked)?.operations)
}

/// Clears away some tokens that expired long ago.
fn expired(image: &Image, now: u64) -> Vec<Operation> {
    all(image)
        .filter(|(_, token)| token.expires_at.saturating_add(KEPT_AFTER_EXPIRY_SECONDS) < now)
        .take(CLEARED_AT_ONCE)
        .map(|(stored, _)| delete_operation(stored.key, Some(stored.modified_revision)))
        .collect()
}

fn all(image: &Image) -> impl Iterator<Item = (Stored, Token)> {
    image
        .list("Token", Some(""), None, usize::MAX)
        .into_iter()
        .filter_map(|stored| {
            let resource = Resource::from_json(&stored.json).ok()?;
            let token = resource.get::<Token>()?.clone();
            Some((stored, token))
        })
}

/// The meshes that a token is about: those that decide who may know of it. Empty: it is about none.
#[must_use]
pub fn meshes_of(token: &Token) -> Vec<&str> {
    let scope = &token.scope;
    scope
        .mesh
        .iter()
        .chain(&scope.meshes)
        .map(String::as_str)
        .collect()
}

/// Whether `actor` manages `token`: an admin all, a mesh-admin those that reach no further than its meshes, a user its
/// own.
fn manages(actor: &Actor, token: &Token) -> bool {
    let may = |mesh: &str| authorize(actor, Action::Tokens, mesh, "Token").is_ok();
    if token.scope.user.is_some() {
        return token.scope.user == actor.user || may("");
    }
    match (&token.scope.mesh, token.scope.meshes.as_slice()) {
        (Some(mesh), _) => may(mesh),
        (None, []) => may(""),
        (None, meshes) => meshes.iter().all(|mesh| may(mesh)),
    }
}

fn info(stored: &Stored, token: Token, now: u64) -> TokenInfo {
    let state = if token.revoked {
        "revoked"
    } else if token.used {
        "used"
    } else if now >= token.expires_at {
        "expired"
    } else {
        "active"
    };
    TokenInfo {
        id: stored.key.name.clone(),
        asked: token.scope,
        created: clock::from_ms(stored.created_ms),
        expires: clock::from_seconds(token.expires_at),
        state: state.to_owned(),
    }
}

/// The tokens that `actor` manages.
#[must_use]
pub fn list(image: &Image, actor: &Actor, now: u64) -> Vec<TokenInfo> {
    all(image)
        .filter(|(_, token)| manages(actor, token))
        .map(|(stored, token)| info(&stored, token, now))
        .collect()
}

/// Takes a token back. API and join tokens count no more at once; zones learn of dataplane and ingress tokens by sync.
///
/// # Errors
/// Where there is no such token that `actor` manages, or it can not be written now.
pub async fn revoke(app: &App, actor: &Actor, id: &str) -> Result<TokenInfo, Problem> {
    for _ in 0..ATTEMPTS_MAX {
        let image = app.image();
        // A token of somebody else reads as one that is not there.
        let (stored, token) = all(&image)
            .find(|(stored, token)| stored.key.name == id && manages(actor, token))
            .ok_or_else(|| Problem::not_found("there is no token of that id"))?;
        let operations = revocation(&image, &stored, &token, clock::now_seconds());
        let revoked = Token {
            revoked: true,
            ..token
        };
        let summary = format!("revoke token {id}");
        match writes::write_operations(app, actor, operations, summary).await {
            Ok(_) => return Ok(info(&stored, revoked, clock::now_seconds())),
            Err(problem) if problem.body.status == 409 => app.cluster.linearize().await?,
            Err(problem) => return Err(problem),
        }
    }
    Err(Problem::conflict("the token keeps changing; try again").retry_after(1))
}

/// What takes a token back.
fn revocation(image: &Image, stored: &Stored, token: &Token, now: u64) -> Vec<Operation> {
    let mut operations = Vec::new();
    if let Ok(resource) = Resource::from_json(&stored.json) {
        let revoked = Token {
            revoked: true,
            ..token.clone()
        };
        let json = Resource::new(resource.meta.clone(), revoked).to_json();
        operations.push(put_operation(
            stored.key.clone(),
            json,
            Some(stored.modified_revision),
        ));
    }
    let issuer = match token.scope.usage {
        TokenUse::Dataplane => token.scope.mesh.clone(),
        TokenUse::Ingress => token.scope.zone.as_deref().map(ingress_issuer),
        _ => None,
    };
    let issuer = issuer.and_then(|name| {
        let stored = image.get(&ResourceKey::global("TokenIssuer", "", &name))?;
        let resource = Resource::from_json(&stored.json).ok()?;
        Some((stored, resource))
    });
    if let Some((issuer_stored, resource)) = issuer
        && let Some(before) = resource.get::<TokenIssuer>()
    {
        let mut after = before.clone();
        after.revoked.retain(|revoked| revoked.expires_at >= now);
        if !after
            .revoked
            .iter()
            .any(|revoked| revoked.id == stored.key.name)
        {
            after.revoked.push(RevokedToken {
                id: stored.key.name.clone(),
                expires_at: token.expires_at,
            });
        }
        operations.push(put_operation(
            issuer_stored.key,
            Resource::new(resource.meta.clone(), after).to_json(),
            Some(issuer_stored.modified_revision),
        ));
    }
    operations
}

/// A new admin token in place of those that the installation made for its first admin: for `reset-admin-token`, and
/// for the first start.
///
/// # Errors
/// Where it can not be written now.
pub async fn reset_admin(app: &App) -> Result<CreatedToken, Problem> {
    app.cluster.linearize().await?;
    let image = app.image();
    let now = clock::now_seconds();
    let asked = CreateToken {
        usage: TokenUse::Api,
        valid_for_seconds: Some(LIFETIME_MAX_SECONDS),
        description: "first admin".to_owned(),
        mesh: None,
        name: None,
        labels: std::collections::BTreeMap::new(),
        zone: None,
        user: None,
        role: Some(Role::Admin),
        meshes: Vec::new(),
    };
    let made = make(app, &image, &asked, now, Some("bootstrap"))?;
    let mut operations = made.operations;
    for (stored, token) in all(&image) {
        let ours = Resource::from_json(&stored.json).is_ok_and(|r| {
            r.meta
                .labels
                .get(MADE_BY)
                .is_some_and(|by| by == "bootstrap")
        });
        if ours && !token.revoked {
            operations.extend(revocation(&image, &stored, &token, now));
        }
    }
    let summary = format!("make admin token {}", made.info.id);
    writes::write_operations(app, &Actor::system(), operations, summary).await?;
    Ok(CreatedToken {
        token: made.text,
        info: made.info,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(usage: TokenUse) -> CreateToken {
        CreateToken {
            usage,
            valid_for_seconds: None,
            description: String::new(),
            mesh: None,
            name: None,
            labels: std::collections::BTreeMap::new(),
            zone: None,
            user: None,
            role: None,
            meshes: vec![],
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_all_at_once() {
        let mut asked = ask(TokenUse::Dataplane);
        asked.zone = Some("east".into());
        asked.role = Some(Role::Admin);
        asked.valid_for_seconds = Some(0);
        let problem = check(&asked).unwrap_err();
        let paths: Vec<_> = problem
            .body
            .violations
            .iter()
            .map(|v| v.path.as_str())
            .collect();
        assert_eq!(paths, ["zone", "role", "mesh", "validForSeconds"]);
    }

    #[test]
    fn each_use_needs_what_it_is_for() {
        for (asked, path) in [
            (ask(TokenUse::Dataplane), "mesh"),
            (ask(TokenUse::ZoneJoin), "zone"),
            (ask(TokenUse::Ingress), "zone"),
            (ask(TokenUse::Api), "role"),
        ] {
            let problem = check(&asked).unwrap_err();
            assert_eq!(problem.body.violations[0].path, path);
        }
        check(&ask(TokenUse::NodeJoin)).unwrap();
    }
}
