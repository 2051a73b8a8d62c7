//! Who may register, join and call the API.

use std::time::Duration;

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_model::api::{Role, TokenUse};
use mesh_tests::{
    api,
    fake_dataplane::{FakeDataplane, pin_of},
    global::Global,
    resources,
    wait::{SOON, eventually},
    world::{World, scene},
    zone::Zone,
};

use crate::installation::OneZone;

/// Longer than the two minutes of tolerance for clocks.
const AFTER_TOLERANCE: Duration = Duration::from_secs(200);

fn dataplane(world: &World, mesh: &str, name: &str) -> anyhow::Result<String> {
    Ok(resources::dataplane(
        mesh,
        name,
        "127.0.0.1",
        world.port()?,
        9,
        name,
    ))
}

/// What the zone says to a dataplane that it does not want.
fn refusal(one: &OneZone, token: &str, resource: &str) -> anyhow::Result<String> {
    let pin = pin_of(&one.token)?;
    let fake = FakeDataplane::connect(&one.west.discovery, &pin, token, resource)?;
    let words = fake.wait_for_end(SOON)?;
    anyhow::ensure!(
        fake.seen().documents.is_empty(),
        "it was given documents before: {words}"
    );
    Ok(words)
}

#[test]
fn a_token_of_one_mesh_opens_no_other() {
    scene(|world| {
        let one = OneZone::start(world)?;
        one.api.apply(&resources::mesh("analytics"))?;
        let words = refusal(&one, &one.token, &dataplane(world, "analytics", "web")?)?;
        anyhow::ensure!(
            words.contains("mesh") && words.contains("payments"),
            "{words}"
        );

        let mut named = api::token(TokenUse::Dataplane);
        named.mesh = Some("payments".to_owned());
        named.name = Some("web".to_owned());
        named
            .labels
            .insert("isthmus.io/service".to_owned(), "web".to_owned());
        let named = one.api.create_token(&named)?.token;
        FakeDataplane::start(
            &one.west.discovery,
            &named,
            &dataplane(world, "payments", "web")?,
        )?;
        let words = refusal(&one, &named, &dataplane(world, "payments", "store")?)?;
        anyhow::ensure!(words.contains("web"), "{words}");
        let disguised =
            dataplane(world, "payments", "web")?.replace("service: web", "service: store");
        let words = refusal(&one, &named, &disguised)?;
        anyhow::ensure!(words.contains("isthmus.io/service"), "{words}");
        Ok(())
    });
}

#[test]
fn forged_tokens_are_refused() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let resource = dataplane(world, "payments", "web")?;
        let mut parts = one.token.split('.');
        let (header, payload) = (
            parts.next().context("a header")?,
            parts.next().context("a payload")?,
        );
        let signature = parts.next().context("a signature")?;
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut header_json: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header)?)?;

        header_json["alg"] = "none".into();
        let none = part(header_json.clone());
        // The key that checks ES256 signatures is public: used as an HMAC secret it must prove nothing.
        header_json["alg"] = "HS256".into();
        let public: serde_json::Value = one.api.get("/v1/tokenissuers/payments")?;
        let keys = public.pointer("/spec/keys").or_else(|| public.get("keys"));
        let pem = keys
            .and_then(|keys| keys[0]["publicKey"].as_str())
            .with_context(|| format!("no public key in {public}"))?;
        let message = format!("{}.{payload}", part(header_json));
        let hmac = jsonwebtoken::crypto::sign(
            message.as_bytes(),
            &jsonwebtoken::EncodingKey::from_secret(pem.as_bytes()),
            jsonwebtoken::Algorithm::HS256,
        )?;
        let mut claims: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?;
        claims["mesh"] = "payments".into();
        claims["exp"] = 4_000_000_000_u64.into();

        FakeDataplane::start(&one.west.discovery, &one.token, &resource)
            .context("the real token")?;
        for (what, token) in [
            ("alg none, no signature", format!("{none}.{payload}.")),
            (
                "alg none, old signature",
                format!("{none}.{payload}.{signature}"),
            ),
            ("HS256 by the public key", format!("{message}.{hmac}")),
            (
                "changed claims",
                format!("{header}.{}.{signature}", part(claims)),
            ),
            ("no signature", format!("{header}.{payload}.")),
            ("no token", String::new()),
            ("an API token", one.global.admin_token.clone()),
            ("garbage", "a.b.c".to_owned()),
        ] {
            let words = refusal(&one, &token, &resource).with_context(|| what.to_owned())?;
            anyhow::ensure!(words.contains("Unauthenticated"), "{what}: {words}");
        }
        Ok(())
    });
}

#[test]
fn a_revoked_token_ends_the_stream_and_opens_no_other() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let mut asked = api::token(TokenUse::Dataplane);
        asked.mesh = Some("payments".to_owned());
        let created = one.api.create_token(&asked)?;
        let resource = dataplane(world, "payments", "web")?;
        let web = FakeDataplane::start(&one.west.discovery, &created.token, &resource)?;
        let store = FakeDataplane::start(
            &one.west.discovery,
            &one.token,
            &dataplane(world, "payments", "store")?,
        )?;
        one.global.meshctl(&["token", "revoke", &created.info.id])?;
        let words = web.wait_for_end(SOON)?;
        anyhow::ensure!(words.contains("revoked"), "{words}");
        let words = refusal(&one, &created.token, &resource)?;
        anyhow::ensure!(words.contains("revoked"), "{words}");
        anyhow::ensure!(
            store.seen().ended.is_none(),
            "another token's stream has ended"
        );
        Ok(())
    });
}

/// Takes two minutes: that long clocks may differ.
#[test]
fn an_expired_token_is_refused() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let mut asked = api::token(TokenUse::Dataplane);
        asked.mesh = Some("payments".to_owned());
        asked.valid_for_seconds = Some(1);
        let token = one.api.create_token(&asked)?.token;
        let mut viewer = api::token(TokenUse::Api);
        viewer.role = Some(Role::Viewer);
        viewer.valid_for_seconds = Some(1);
        let viewer = one.api.with_token(&one.api.create_token(&viewer)?.token)?;
        let resource = dataplane(world, "payments", "web")?;
        let web = FakeDataplane::start(&one.west.discovery, &token, &resource)
            .context("within the tolerance it is good")?;
        eventually(AFTER_TOLERANCE, "the expired API token is refused", || {
            let answer = viewer.request("GET", "/v1/meshes", &[], None)?;
            anyhow::ensure!(answer.status == 401, "{answer:?}");
            anyhow::ensure!(
                answer.body.contains("expired"),
                "it is not said why: {answer:?}"
            );
            Ok(())
        })?;
        let words = web.wait_for_end(AFTER_TOLERANCE)?;
        anyhow::ensure!(words.contains("expired"), "{words}");
        let words = refusal(&one, &token, &resource)?;
        anyhow::ensure!(words.contains("expired"), "{words}");
        Ok(())
    });
}

#[test]
fn a_zone_joins_once_and_each_wrong_token_has_its_own_message() {
    scene(|world| {
        let global = Global::start(world)?;
        let api = global.api()?;
        api.apply(&resources::zone("east"))?;
        let good = api.zone_join_token("east")?;
        let mut short = api::token(TokenUse::ZoneJoin);
        short.zone = Some("east".to_owned());
        short.valid_for_seconds = Some(1);
        let short = api.create_token(&short)?.token;

        let (recipe, mut node) = mesh_tests::global::Node::recipe(world, "other-global")?;
        node.process.recipe = recipe.clone();
        let other = Global::start_with(world, node, recipe)?;
        other.api()?.apply(&resources::zone("east"))?;
        let foreign = other.api()?.zone_join_token("east")?;

        let join = |token: &str, name: &str| -> anyhow::Result<Result<(), String>> {
            let zone = Zone::unjoined(world, name)?;
            Ok(zone
                .join(&global, token)
                .map_err(|error| format!("{error:#}")))
        };
        join(&good, "joined")?.map_err(anyhow::Error::msg)?;
        let used = join(&good, "used")?
            .err()
            .context("a used token was accepted")?;
        let foreign = join(&foreign, "foreign")?
            .err()
            .context("a foreign token was accepted")?;
        let expired = eventually(AFTER_TOLERANCE, "the short token expires", || {
            // While it is good, it is good once; afterwards it is both used and expired, and a new zone must be told
            // the truth. So look at the time it states, not at the join.
            let remaining =
                expires_at(&short)? + 31 - time::OffsetDateTime::now_utc().unix_timestamp();
            anyhow::ensure!(remaining < 0, "{remaining} s to go");
            join(&short, "expired")
        })?
        .err()
        .context("an expired token was accepted")?;
        for (message, word) in [
            (&used, "used"),
            (&foreign, "installation"),
            (&expired, "expired"),
        ] {
            anyhow::ensure!(message.contains(word), "{word:?} is missing: {message}");
        }
        anyhow::ensure!(used != foreign && foreign != expired && used != expired);
        let garbage = join("not-a-token", "garbage")?;
        anyhow::ensure!(garbage.is_err());
        let dataplane = {
            api.apply(&resources::mesh("payments"))?;
            api.dataplane_token("payments")?
        };
        anyhow::ensure!(
            join(&dataplane, "wrong-use")?.is_err(),
            "a dataplane token joined a zone"
        );
        Ok(())
    });
}

fn expires_at(token: &str) -> anyhow::Result<i64> {
    let payload = token.split('.').nth(1).context("a payload")?;
    let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload)?)?;
    claims["exp"].as_i64().context("exp")
}

#[test]
fn a_role_is_bound_to_its_meshes() {
    scene(|world| {
        let global = Global::start(world)?;
        let admin = global.api()?;
        admin.apply(&(resources::mesh("payments") + &resources::mesh("analytics")))?;
        let mut asked = api::token(TokenUse::Api);
        asked.role = Some(Role::MeshAdmin);
        asked.meshes = vec!["payments".to_owned()];
        let tenant = admin.with_token(&admin.create_token(&asked)?.token)?;
        tenant.apply(&resources::allow_everyone("payments", "mine"))?;
        let before = admin.status()?.revision;
        for (what, answer) in [
            (
                "write elsewhere",
                tenant.try_apply(&resources::allow_everyone("analytics", "theirs"))?,
            ),
            (
                "half of a batch elsewhere",
                tenant.try_apply(
                    &(resources::allow_everyone("payments", "half")
                        + &resources::allow_everyone("analytics", "half")),
                )?,
            ),
            ("make a mesh", tenant.try_apply(&resources::mesh("third"))?),
            ("make a zone", tenant.try_apply(&resources::zone("third"))?),
            (
                "look elsewhere",
                tenant.request(
                    "GET",
                    "/v1/meshes/analytics/meshtrafficpermissions",
                    &[],
                    None,
                )?,
            ),
        ] {
            anyhow::ensure!(answer.status == 403, "{what}: {answer:?}");
        }
        anyhow::ensure!(
            admin.status()?.revision == before,
            "a refused write changed something"
        );
        let audit: serde_json::Value = tenant.get("/v1/audit?limit=100")?;
        let audit = audit.to_string();
        anyhow::ensure!(
            audit.contains("payments") && !audit.contains("analytics"),
            "the audit of others is shown: {audit}"
        );
        asked.role = Some(Role::Viewer);
        let viewer = admin.with_token(&admin.create_token(&asked)?.token)?;
        viewer.get::<serde_json::Value>("/v1/meshes/payments/meshtrafficpermissions")?;
        let answer = viewer.try_apply(&resources::allow_everyone("payments", "viewed"))?;
        anyhow::ensure!(answer.status == 403, "a viewer wrote: {answer:?}");
        let stranger = admin.with_token(&format!("isthmus.nobody.nothing.{}", global.pin))?;
        let answer = stranger.request("GET", "/v1/meshes", &[], None)?;
        anyhow::ensure!(answer.status == 401, "{answer:?}");
        Ok(())
    });
}
