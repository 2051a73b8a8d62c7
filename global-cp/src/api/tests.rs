//! The API through its real router, on a node that has really started.

use axum::{body::Body, http::Method};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::testing::TestNode;

const TWO_MESHES: &str = "
type: Mesh
name: pay
---
type: Mesh
name: ana
---
type: MeshTrafficPermission
mesh: pay
name: everyone
labels: {team: checkout}
spec:
  rules:
  - default:
      allow:
      - spiffeID: {type: Prefix, value: 'spiffe://'}
";

pub(super) fn permission(mesh: &str, name: &str) -> String {
    format!(
        "type: MeshTrafficPermission\nmesh: {mesh}\nname: {name}\nspec: {{rules: [{{default: {{allow: [{{spiffeID: {{type: Exact, value: 'spiffe://{mesh}.east.mesh.local/workload/web'}}}}]}}}}]}}\n"
    )
}

async fn node() -> TestNode {
    let node = TestNode::start().await;
    node.apply(TWO_MESHES).await.ok();
    node
}

// === reading and writing ===

#[tokio::test]
async fn what_was_written_reads_back_and_applies_again_unchanged() {
    let node = node().await;
    let answer = node
        .get("/v1/meshes/pay/meshtrafficpermissions/everyone")
        .await;
    let etag = answer.headers["etag"].to_str().unwrap().to_owned();
    let read = answer.ok();
    assert_eq!(read["labels"]["isthmus.io/origin"], "global");
    assert_eq!(etag, format!("\"{}\"", read["revision"]));
    let before = node.revision();
    let again = node
        .put(
            "/v1/meshes/pay/meshtrafficpermissions/everyone",
            &read.to_string(),
        )
        .await
        .ok();
    assert_eq!(again["results"][0]["outcome"], "unchanged");
    assert_eq!(node.revision(), before);
}

#[tokio::test]
async fn a_mesh_begins_with_an_identity_and_its_own_token_key() {
    let node = node().await;
    let identity = node.get("/v1/meshes/pay/meshidentities/default").await.ok();
    assert_eq!(identity["spec"]["provider"]["type"], "Bundled");
    let pay = node.get("/v1/tokenissuers/pay").await.ok();
    let ana = node.get("/v1/tokenissuers/ana").await.ok();
    assert_ne!(
        pay["spec"]["keys"][0]["publicKey"],
        ana["spec"]["keys"][0]["publicKey"]
    );
    // All of it in one revision.
    let mesh = node.get("/v1/meshes/pay").await.ok();
    assert_eq!(mesh["revision"], identity["revision"]);
    assert_eq!(mesh["revision"], pay["revision"]);
    node.apply("type: Mesh\nname: bare\nskipCreatingInitialPolicies: ['*']\n")
        .await
        .ok();
    node.get("/v1/meshes/bare/meshidentities/default")
        .await
        .problem(404);
}

#[tokio::test]
async fn deleting_a_mesh_takes_everything_in_it_and_nothing_else() {
    let node = node().await;
    let (_, dataplane_token) = node.token(json!({"use": "dataplane", "mesh": "pay"})).await;
    let bound = node.person("viewer", &["pay"]).await;
    let both = node.person("viewer", &["pay", "ana"]).await;
    let issuer_of_other = node.get("/v1/tokenissuers/ana").await.ok();
    let written = node.delete("/v1/meshes/pay").await.ok();
    assert_eq!(written["results"][0]["outcome"], "deleted");
    node.get("/v1/meshes/pay").await.problem(404);
    node.get("/v1/meshes/pay/meshtrafficpermissions")
        .await
        .problem(404);
    node.get("/v1/tokenissuers/pay").await.problem(404);
    assert!(node.app.image().all_in_mesh("pay").is_empty());
    let tokens = node.get("/v1/tokens").await.ok();
    assert!(!tokens.to_string().contains(&dataplane_token));
    // A token of that mesh alone is worth nothing; one of two meshes keeps the other.
    node.get_as(&bound, "/v1/meshes").await.problem(401);
    let seen = node.get_as(&both, "/v1/meshes").await.ok();
    assert_eq!(seen["items"].as_array().unwrap().len(), 1);
    // One entry.
    let history = node.get("/v1/meshes/pay/history").await.ok();
    assert_eq!(history["items"][0]["revision"], written["revision"]);
    let policy = node
        .get("/v1/meshes/pay/meshtrafficpermissions/everyone/history")
        .await
        .ok();
    assert_eq!(policy["items"][0]["revision"], written["revision"]);
    // The other mesh keeps its keys.
    assert_eq!(node.get("/v1/tokenissuers/ana").await.ok(), issuer_of_other);
}

#[tokio::test]
async fn a_batch_is_all_or_nothing() {
    let node = node().await;
    let before = node.revision();
    let bad = format!(
        "{}---\ntype: MeshTrafficPermission\nmesh: pay\nname: b\nspec: {{ruls: []}}\n",
        permission("pay", "a")
    );
    let problem = node.apply(&bad).await.problem(422);
    let violation = &problem["violations"][0];
    assert!(violation["line"].as_u64().unwrap() > 1, "{violation}");
    assert!(
        violation["message"].as_str().unwrap().contains("rules"),
        "{violation}"
    );
    // A mesh that is not there, in the last of three.
    let missing = format!(
        "{}---\n{}---\n{}",
        permission("pay", "a"),
        permission("ana", "b"),
        permission("nowhere", "c")
    );
    let problem = node.apply(&missing).await.problem(422);
    assert!(
        problem["title"].as_str().unwrap().contains("nowhere"),
        "{problem}"
    );
    assert_eq!(node.revision(), before);
    node.get("/v1/meshes/pay/meshtrafficpermissions/a")
        .await
        .problem(404);
    // The same with the mesh in the same batch, however it is ordered.
    let whole = format!("{missing}---\ntype: Mesh\nname: nowhere\n");
    let written = node.apply(&whole).await.ok();
    assert_eq!(written["results"].as_array().unwrap().len(), 4);
    assert_eq!(node.revision(), before + 1);
}

#[tokio::test]
async fn a_json_batch_puts_and_deletes_in_one_revision() {
    let node = node().await;
    let batch = json!({
        "put": [{"type": "MeshTrafficPermission", "mesh": "ana", "name": "none", "spec": {"rules": []}}],
        "delete": [{"type": "MeshTrafficPermission", "mesh": "pay", "name": "everyone"}],
    });
    let send = |body: String| {
        node.send(
            &node.admin,
            Method::POST,
            "/v1/batch",
            &[("content-type", "application/json")],
            body,
        )
    };
    let written = send(batch.to_string()).await.ok();
    let outcomes: Vec<_> = written["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["created", "deleted"]);
    assert!(!written["warnings"].as_array().unwrap().is_empty());
    let problem =
        send(r#"{"put": [{"type": "Mesh", "name": "x", "zone": []}], "delet": []}"#.to_owned())
            .await
            .problem(422);
    assert!(
        problem["title"].as_str().unwrap().contains("delet"),
        "{problem}"
    );
    let problem = send(r#"{"put": [{"type": "Mesh", "name": "x", "zons": []}]}"#.to_owned())
        .await
        .problem(422);
    assert!(
        problem["violations"][0]["path"]
            .as_str()
            .unwrap()
            .starts_with("put[0]"),
        "{problem}"
    );
}

#[tokio::test]
async fn a_dry_run_says_what_would_happen_and_changes_nothing() {
    let node = node().await;
    let before = node.revision();
    let answer = node
        .send(
            &node.admin,
            Method::POST,
            "/v1/batch?dry_run=true",
            &[],
            permission("pay", "new"),
        )
        .await
        .ok();
    assert_eq!(
        (&answer["dryRun"], &answer["results"][0]["outcome"]),
        (&json!(true), &json!("created"))
    );
    let deleted = node.delete("/v1/meshes/pay?dry_run=true").await.ok();
    assert_eq!(deleted["results"][0]["outcome"], "deleted");
    assert_eq!(node.revision(), before);
    node.get("/v1/meshes/pay").await.ok();
}

#[tokio::test]
async fn preconditions_hold_or_the_write_is_refused() {
    let node = node().await;
    let path = "/v1/meshes/pay/meshtrafficpermissions/p";
    let put = |header: (&'static str, String)| {
        let node = &node;
        async move {
            let headers = [(header.0, header.1.as_str())];
            node.send(
                &node.admin,
                Method::PUT,
                path,
                &headers,
                permission("pay", "p"),
            )
            .await
        }
    };
    put(("if-match", "\"3\"".into())).await.problem(412);
    let created = put(("if-none-match", "*".into())).await;
    assert_eq!(created.status, 201);
    put(("if-none-match", "*".into())).await.problem(412);
    let revision = created.headers["etag"].to_str().unwrap().to_owned();
    put(("if-match", revision.clone())).await.ok();
    put(("if-match", "seven".into())).await.problem(400);
    let delete = |revision: String| async move {
        node.send(
            &node.admin,
            Method::DELETE,
            path,
            &[("if-match", revision.as_str())],
            Body::empty(),
        )
        .await
    };
    delete("\"1\"".into()).await.problem(412);
}

#[tokio::test]
async fn each_resource_of_a_batch_may_have_its_precondition() {
    let node = node().await;
    let batch = |revision: u64, name: &str| {
        let batch = json!({
            "put": [{"type": "MeshTrafficPermission", "mesh": "pay", "name": "new", "spec": {"rules": []}}],
            "delete": [{"type": "MeshTrafficPermission", "mesh": "pay", "name": "everyone"}],
            "preconditions": [
                {"key": {"type": "mtp", "mesh": "pay", "name": "new"}, "revision": 0},
                {"key": {"type": "MeshTrafficPermission", "mesh": "pay", "name": name}, "revision": revision},
            ],
        });
        node.post("/v1/batch", batch)
    };
    let before = node.revision();
    batch(before + 7, "everyone").await.problem(412);
    let problem = batch(before, "nobody").await.problem(422);
    assert_eq!(problem["violations"][0]["path"], "preconditions[1].key");
    assert_eq!(node.revision(), before);
    let everyone = node
        .get("/v1/meshes/pay/meshtrafficpermissions/everyone")
        .await
        .ok();
    let revision = everyone["revision"].as_u64().unwrap();
    batch(revision, "everyone").await.ok();
    // Now the first half exists already.
    batch(revision, "everyone").await.problem(412);
    // A header can not say of which resource it speaks.
    let answer = node.send(
        &node.admin,
        Method::POST,
        "/v1/batch",
        &[("if-match", "\"1\"")],
        permission("pay", "x"),
    );
    answer.await.problem(400);
}

// === diff ===

#[tokio::test]
async fn a_diff_shows_fields_and_writes_nothing() {
    let node = node().await;
    let before = node.revision();
    let yaml = format!(
        "{}---\n{}---\n{}",
        TWO_MESHES
            .split("---\n")
            .nth(2)
            .unwrap()
            .replace("checkout", "shop"),
        permission("pay", "new"),
        "type: Mesh\nname: ana\n",
    );
    let diff = node
        .send(
            &node.admin,
            Method::POST,
            "/v1/diff",
            &[("content-type", "application/yaml")],
            yaml,
        )
        .await
        .ok();
    let items = diff["items"].as_array().unwrap();
    assert_eq!(items.len(), 3, "{diff}");
    assert_eq!(items[0]["outcome"], "updated");
    assert_eq!(items[0]["fields"], json!(["labels.team"]));
    assert_eq!(items[0]["before"]["labels"]["team"], "checkout");
    assert_eq!(items[0]["after"]["labels"]["team"], "shop");
    assert!(items[0]["after"]["revision"].is_null());
    assert_eq!(items[1]["outcome"], "created");
    assert!(items[1]["before"].is_null());
    assert_eq!(items[2]["outcome"], "unchanged");
    assert_eq!(
        (node.revision(), diff["revision"].as_u64()),
        (before, Some(before))
    );
}

#[tokio::test]
async fn a_diff_shows_what_a_deletion_takes_along() {
    let node = node().await;
    let diff = node
        .post(
            "/v1/diff",
            json!({"delete": [{"type": "Mesh", "name": "pay"}]}),
        )
        .await
        .ok();
    let names: Vec<&str> = diff["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            assert_eq!(item["outcome"], "deleted", "{item}");
            item["key"]["name"].as_str().unwrap()
        })
        .collect();
    assert_eq!(names, ["pay", "default", "everyone"]);
    assert!(!diff.to_string().contains("TokenIssuer"), "{diff}");
    node.get("/v1/meshes/pay").await.ok();
}

#[tokio::test]
async fn a_diff_never_shows_the_value_of_a_secret() {
    let node = node().await;
    let secret = |value: &str| json!({"put": [{"type": "Secret", "mesh": "pay", "name": "key", "data": value}]});
    node.post("/v1/batch", secret("Zmlyc3Q=")).await.ok();
    let same = node.post("/v1/diff", secret("Zmlyc3Q=")).await.ok();
    assert_eq!(same["items"][0]["outcome"], "unchanged");
    let other = node.post("/v1/diff", secret("c2Vjb25k")).await.ok();
    assert_eq!(other["items"][0]["outcome"], "updated");
    assert_eq!(other["items"][0]["fields"], json!(["data"]));
    for text in [same.to_string(), other.to_string()] {
        assert!(
            !text.contains("Zmlyc3Q=") && !text.contains("c2Vjb25k"),
            "{text}"
        );
        assert!(!text.contains("\"data\":"), "{text}");
    }
}

#[tokio::test]
async fn a_diff_is_for_those_who_may_write() {
    let node = node().await;
    let batch =
        json!({"delete": [{"type": "MeshTrafficPermission", "mesh": "pay", "name": "everyone"}]});
    for (role, meshes, status) in [
        ("mesh-admin", "pay", 200),
        ("mesh-admin", "ana", 403),
        ("viewer", "pay", 403),
    ] {
        let token = node.person(role, &[meshes]).await;
        let headers = [("content-type", "application/json")];
        let answer = node.send(
            &token,
            Method::POST,
            "/v1/diff",
            &headers,
            batch.to_string(),
        );
        assert_eq!(answer.await.status, status, "{role} of {meshes}");
    }
}

// === rollback ===

#[tokio::test]
async fn a_mesh_is_rolled_back_as_one_new_change() {
    let node = node().await;
    let secret = |value: &str| format!("type: Secret\nmesh: pay\nname: key\ndata: {value}\n");
    node.apply(&secret("Zmlyc3Q=")).await.ok();
    let then = node.revision();
    let listed = async || {
        let policies = node.get("/v1/meshes/pay/meshtrafficpermissions").await.ok();
        let items = policies["items"].as_array().unwrap().clone();
        let names = items
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    // Changed, deleted, added; and another mesh, which stays out of it.
    node.apply(&secret("c2Vjb25k")).await.ok();
    node.delete("/v1/meshes/pay/meshtrafficpermissions/everyone")
        .await
        .ok();
    node.apply(&format!(
        "{}---\n{}",
        permission("pay", "new"),
        permission("ana", "other")
    ))
    .await
    .ok();
    let before = node.revision();
    let wanted = json!({"to": then, "mesh": "pay"});

    let diff = node.post("/v1/rollback/diff", wanted.clone()).await.ok();
    let outcomes: Vec<String> = diff["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            let word = |field: &str| item[field].as_str().unwrap().to_owned();
            format!(
                "{} {}",
                item["key"]["name"].as_str().unwrap(),
                word("outcome")
            )
        })
        .collect();
    assert_eq!(outcomes, ["everyone created", "key updated", "new deleted"]);
    assert!(!diff.to_string().contains("Zmlyc3Q="), "{diff}");
    let dry = node
        .post("/v1/rollback?dry_run=true", wanted.clone())
        .await
        .ok();
    assert_eq!(dry["dryRun"], true);
    assert_eq!(node.revision(), before);

    let written = node.post("/v1/rollback", wanted.clone()).await.ok();
    assert_eq!(written["revision"], before + 1);
    assert_eq!(node.revision(), before + 1);
    assert_eq!(listed().await, ["everyone"]);
    let read = node.get("/v1/meshes/pay/secrets/key").await.ok();
    assert_eq!(read["data"], "Zmlyc3Q=");
    node.get("/v1/meshes/ana/meshtrafficpermissions/other")
        .await
        .ok();
    // Again, there is nothing to do; and the rollback itself can be rolled back.
    let again = node.post("/v1/rollback", wanted).await.ok();
    assert_eq!(again["revision"], before + 1);
    node.post("/v1/rollback", json!({"to": before, "mesh": "pay"}))
        .await
        .ok();
    assert_eq!(listed().await, ["new"]);
    let audit = node.get("/v1/audit?limit=1").await.ok().to_string();
    assert!(
        audit.contains(&format!("roll back to revision {before}")),
        "{audit}"
    );
}

#[tokio::test]
async fn a_deleted_mesh_comes_back_with_what_was_in_it() {
    let node = node().await;
    let then = node.revision();
    node.delete("/v1/meshes/pay").await.ok();
    let written = node
        .post("/v1/rollback", json!({"to": then, "mesh": "pay"}))
        .await
        .ok();
    assert_eq!(written["results"][0]["outcome"], "created");
    node.get("/v1/meshes/pay/meshtrafficpermissions/everyone")
        .await
        .ok();
    node.get("/v1/meshes/pay/meshidentities/default").await.ok();
    // It is another mesh of the same name, with keys of its own; what was before it is not its past.
    let problem = node
        .post("/v1/rollback", json!({"to": then, "mesh": "pay"}))
        .await
        .problem(422);
    assert!(
        problem.to_string().contains("was made at revision"),
        "{problem}"
    );
}

#[tokio::test]
async fn a_rollback_is_for_those_who_may_write_each_of_it() {
    let node = node().await;
    let then = node.revision();
    node.delete("/v1/meshes/pay/meshtrafficpermissions/everyone")
        .await
        .ok();
    let key = json!({"type": "MeshTrafficPermission", "mesh": "pay", "name": "everyone"});
    let of_mesh = json!({"to": then, "mesh": "pay"});
    let of_keys = json!({"to": then, "keys": [key]});
    for (role, mesh, status) in [
        ("viewer", "pay", 403),
        ("mesh-admin", "ana", 403),
        ("mesh-admin", "pay", 200),
    ] {
        let token = node.person(role, &[mesh]).await;
        for (path, body) in [
            ("/v1/rollback/diff", &of_keys),
            ("/v1/rollback/diff", &of_mesh),
            ("/v1/rollback?dry_run=true", &of_mesh),
            ("/v1/rollback", &of_mesh),
        ] {
            let headers = [("content-type", "application/json")];
            let answer = node.send(&token, Method::POST, path, &headers, body.to_string());
            let answer = answer.await;
            assert_eq!(
                answer.status, status,
                "{role} of {mesh}, {path}: {}",
                answer.text
            );
        }
    }
}

#[tokio::test]
async fn a_rollback_says_what_it_can_not_do() {
    let node = node().await;
    let now = node.revision();
    let mesh = |name: &str| json!({"to": now, "mesh": name});
    for (body, status, words) in [
        (json!({"to": now}), 422, "`keys`"),
        (json!({"to": now + 1, "mesh": "pay"}), 422, "still to come"),
        (mesh("nowhere"), 404, "no mesh"),
        (
            json!({"to": now, "keys": [{"type": "Token", "name": "x"}]}),
            422,
            "meshctl token",
        ),
        (
            json!({"to": now, "keys": [{"type": "TokenIssuer", "name": "pay"}]}),
            422,
            "control planes",
        ),
        (
            json!({"to": now, "keys": [{"type": "MeshService", "mesh": "pay", "zone": "east", "name": "x"}]}),
            422,
            "its zone",
        ),
        (json!({"to": now, "what": 1}), 422, "what"),
    ] {
        let problem = node
            .post("/v1/rollback", body.clone())
            .await
            .problem(status);
        assert!(problem.to_string().contains(words), "{body}: {problem}");
    }
    // A header can not say of which resource it speaks.
    for path in ["/v1/rollback", "/v1/rollback/diff"] {
        let headers = [("if-match", "\"1\"")];
        let answer = node.send(
            &node.admin,
            Method::POST,
            path,
            &headers,
            mesh("pay").to_string(),
        );
        answer.await.problem(400);
    }
    // What today's rules refuse is listed.
    let key = mesh_proto::zone::ResourceKey::global("MeshService", "pay", "old");
    let old =
        br#"{"type":"MeshService","mesh":"pay","name":"old","spec":{"ports":[{"port":70000}]}}"#;
    let actor = crate::authorize::Actor::system();
    let put = |json: &[u8]| {
        let operation = crate::changes::put_operation(key.clone(), json.to_vec(), None);
        crate::writes::write_operations(&node.app, &actor, vec![operation], String::new())
    };
    put(old).await.unwrap();
    let then = node.revision();
    put(&String::from_utf8_lossy(old)
        .replace("70000", "80")
        .into_bytes())
    .await
    .unwrap();
    let problem = node
        .post("/v1/rollback", json!({"to": then, "mesh": "pay"}))
        .await
        .problem(422);
    let violation = &problem["violations"][0];
    assert_eq!(violation["path"], "spec.ports[0].port", "{problem}");
    // What is no longer known is said, with what is.
    node.limit_history(3).await;
    for number in 0..5 {
        node.apply(&permission("pay", "p").replace("web", &format!("web{number}")))
            .await
            .ok();
    }
    let problem = node
        .post("/v1/rollback", json!({"to": then, "mesh": "pay"}))
        .await
        .problem(410);
    let oldest = node.app.image().oldest_revision();
    assert!(oldest > then);
    assert!(
        problem["title"]
            .as_str()
            .unwrap()
            .ends_with(&format!("revision {oldest}")),
        "{problem}"
    );
    node.post("/v1/rollback/diff", json!({"to": oldest, "mesh": "pay"}))
        .await
        .ok();
}

#[tokio::test]
async fn a_repeated_request_happens_once() {
    let node = TestNode::start().await;
    let put = || {
        node.send(
            &node.admin,
            Method::PUT,
            "/v1/meshes/pay",
            &[("x-request-id", "r1")],
            "type: Mesh\nname: pay\n",
        )
    };
    let first = put().await.ok();
    assert_eq!(first["results"][0]["outcome"], "created");
    let before = node.revision();
    let second = put().await.ok();
    assert_eq!(second["results"][0]["outcome"], "created");
    assert_eq!(second["revision"], first["revision"]);
    assert_eq!(node.revision(), before);
    let delete = || {
        node.send(
            &node.admin,
            Method::DELETE,
            "/v1/meshes/pay",
            &[("x-request-id", "r2")],
            Body::empty(),
        )
    };
    assert_eq!(delete().await.ok(), delete().await.ok());
    node.delete("/v1/meshes/pay").await.problem(404);
}

#[tokio::test]
async fn what_only_zones_and_control_planes_write_is_refused_in_words() {
    let node = node().await;
    for (path, body, words) in [
        (
            "/v1/zoneingresses/in",
            "type: ZoneIngress\nname: in\nnetworking: {address: 10.0.0.1, port: 10001}\n",
            "only zones write",
        ),
        (
            "/v1/meshes/pay/dataplanes/d",
            "type: Dataplane\nmesh: pay\nname: d\nnetworking: {address: 10.0.0.1, inbound: [{port: 80}]}\n",
            "",
        ),
        (
            "/v1/tokenissuers/pay",
            "type: TokenIssuer\nname: pay\nspec: {keys: []}\n",
            "",
        ),
    ] {
        let before = node.revision();
        let answer = node.put(path, body).await;
        assert!(answer.status.is_client_error(), "{path}: {}", answer.text);
        assert!(answer.text.contains(words), "{path}: {}", answer.text);
        assert_eq!(node.revision(), before);
    }
    let dataplane = "type: Dataplane\nmesh: pay\nname: d\nnetworking: {address: 10.0.0.1, inbound: [{port: 80}]}\n";
    let problem = node.apply(dataplane).await.problem(422);
    assert!(
        problem["title"]
            .as_str()
            .unwrap()
            .contains("live in their zones"),
        "{problem}"
    );
}

#[tokio::test]
async fn whoever_is_at_the_wrong_place_is_told_the_right_one() {
    let node = node().await;
    let (dataplane, _) = node.token(json!({"use": "dataplane", "mesh": "pay"})).await;
    let (zone, _) = node
        .token(json!({"use": "zone-join", "zone": "east"}))
        .await;
    let (another, _) = node.token(json!({"use": "node-join"})).await;
    let admin = &node.admin;
    for (token, method, path, words) in [
        (
            admin,
            Method::PUT,
            "/v1/meshes/pay/dataplanes/d",
            "`dataplane run`",
        ),
        (
            admin,
            Method::DELETE,
            "/v1/meshes/pay/dataplanes/d",
            "`dataplane run`",
        ),
        (
            admin,
            Method::GET,
            "/v1/dataplanes",
            "/v1/meshes/<mesh>/dataplanes",
        ),
        (
            admin,
            Method::GET,
            "/v1/meshes/pay/dataplanes/d/history",
            "/v1/meshes/pay/dataplanes/d",
        ),
        (
            admin,
            Method::PUT,
            "/v1/meshes/pay/services/web",
            "/v1/meshes/<mesh>/meshservices",
        ),
        (
            admin,
            Method::GET,
            "/v1/meshes/pay/zones/east",
            "/v1/zones/east",
        ),
        (
            admin,
            Method::GET,
            "/v1/meshservices/web",
            "/v1/meshes/<mesh>/meshservices/web",
        ),
        (admin, Method::GET, "/v1/tokens/abc", "/v1/tokens/<id>"),
        (
            admin,
            Method::PUT,
            "/v1/zones/east/status",
            "/v1/zones/<name>",
        ),
        (admin, Method::GET, "/meshes/pay", "/v1/meshes/<mesh>"),
        (&dataplane, Method::GET, "/v1/meshes", "`dataplane run`"),
        (&zone, Method::GET, "/v1/meshes", "`meshctl zone join`"),
        (
            &another,
            Method::GET,
            "/v1/meshes",
            "`global-cp run --join`",
        ),
    ] {
        let answer = node.send(token, method, path, &[], "").await;
        assert!(answer.status.is_client_error(), "{path}: {}", answer.text);
        let detail = answer.json()["detail"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(detail.contains(words), "{path}: {}", answer.text);
        assert!(!detail.contains('\n'), "one line: {detail}");
    }
}

#[tokio::test]
async fn bad_requests_of_every_sort_are_problems_and_change_nothing() {
    let node = node().await;
    let before = node.revision();
    let path = "/v1/meshes/pay/meshtrafficpermissions/p";
    let long = format!(
        "type: Mesh\nname: x\nlabels: {{a: {}}}\n",
        "b".repeat(9 << 20)
    );
    let cases: Vec<(Method, &str, Vec<u8>, u16)> = vec![
        (Method::PUT, path, b"".to_vec(), 400),
        (Method::PUT, path, b"{".to_vec(), 422),
        (Method::PUT, path, b"[1, 2]".to_vec(), 422),
        (Method::PUT, path, b"\"text\"".to_vec(), 422),
        (Method::PUT, path, b"\xff\xfe".to_vec(), 400),
        (Method::PUT, path, b"a: &a [*a, *a]".to_vec(), 422),
        (Method::PUT, path, permission("pay", "other").into(), 400),
        (Method::PUT, path, permission("ana", "p").into(), 400),
        (
            Method::PUT,
            path,
            format!("{}---\n{}", permission("pay", "p"), permission("pay", "q")).into(),
            400,
        ),
        (Method::PUT, path, b"type: Mesh\nname: p\n".to_vec(), 400),
        (
            Method::PUT,
            "/v1/meshes/Bad_Name",
            b"type: Mesh\nname: Bad_Name\n".to_vec(),
            422,
        ),
        (
            Method::PUT,
            "/v1/meshes/nowhere/meshtrafficpermissions/p",
            permission("nowhere", "p").into(),
            422,
        ),
        (Method::PUT, "/v1/meshes/pay/nokind/p", b"{}".to_vec(), 404),
        (Method::PUT, "/v1/meshes/pay/zones/p", b"{}".to_vec(), 404),
        (Method::PUT, "/v1/meshservices/p", b"{}".to_vec(), 404),
        (Method::PUT, "/v1/meshes/x", long.into_bytes(), 413),
        (Method::POST, "/v1/batch", b"".to_vec(), 400),
        (Method::POST, path, b"{}".to_vec(), 405),
        (Method::GET, "/v2/x", b"".to_vec(), 404),
        (
            Method::GET,
            "/v1/meshes/pay/meshservices?limit=0",
            b"".to_vec(),
            400,
        ),
        (
            Method::GET,
            "/v1/meshes/pay/meshservices?limit=x",
            b"".to_vec(),
            400,
        ),
        (
            Method::GET,
            "/v1/meshes/pay/meshservices?continue=xyz",
            b"".to_vec(),
            400,
        ),
        (
            Method::GET,
            "/v1/meshes/pay/meshservices?selector==",
            b"".to_vec(),
            400,
        ),
        (
            Method::GET,
            "/v1/meshes/pay/meshservices?unknown=1",
            b"".to_vec(),
            400,
        ),
        (
            Method::GET,
            "/v1/meshes?consistency=maybe",
            b"".to_vec(),
            400,
        ),
        (
            Method::GET,
            "/v1/meshes/%ff/meshservices",
            b"".to_vec(),
            400,
        ),
        (Method::GET, "/v1/rollout/x", b"".to_vec(), 400),
        (Method::GET, "/v1/rollout/99999999", b"".to_vec(), 400),
        (Method::GET, "/v1/schema/nokind", b"".to_vec(), 404),
        (Method::GET, "/v1/watch?from=x", b"".to_vec(), 400),
        (Method::GET, "/v1/zones/nowhere/status", b"".to_vec(), 404),
        (Method::DELETE, "/v1/tokens/nope", b"".to_vec(), 404),
        (Method::DELETE, path, b"".to_vec(), 404),
        (Method::POST, "/v1/tokens", b"{}".to_vec(), 422),
        (
            Method::POST,
            "/v1/tokens",
            b"{\"use\": \"magic\"}".to_vec(),
            422,
        ),
        (
            Method::POST,
            "/v1/tokens",
            b"{\"use\": \"dataplane\", \"mesh\": \"nowhere\"}".to_vec(),
            422,
        ),
    ];
    for (method, path, body, status) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let answer = node
            .send(&node.admin, method.clone(), path, &[], body)
            .await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{method} {path} {shown:?}: {}",
            answer.text
        );
        answer.problem(status);
        assert_eq!(node.revision(), before, "{method} {path} {shown:?}");
    }
    let answer = node
        .send(
            &node.admin,
            Method::PUT,
            path,
            &[("content-type", "image/png")],
            "x",
        )
        .await;
    answer.problem(415);
}

#[tokio::test]
async fn ten_thousand_resources_are_listed_in_pages() {
    let node = node().await;
    let documents: Vec<String> = (0..10_000)
        .map(|n| format!("type: MeshService\nmesh: ana\nname: s{n:05}\nlabels: {{half: h{}}}\nspec: {{ports: [{{port: 80}}]}}\n", n % 2))
        .collect();
    for part in documents.chunks(2_000) {
        node.apply(&part.join("---\n")).await.ok();
    }
    let mut names = Vec::new();
    let mut next = String::new();
    let mut pages = 0;
    loop {
        let page = node
            .get(&format!("/v1/meshes/ana/meshservices?limit=1000{next}"))
            .await
            .ok();
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i["name"].as_str().unwrap().to_owned()),
        );
        pages += 1;
        match page["next"].as_str() {
            Some(token) => next = format!("&continue={token}"),
            None => break,
        }
    }
    assert_eq!((pages, names.len()), (10, 10_000));
    assert!(names.is_sorted());
    let half = node
        .get("/v1/meshes/ana/meshservices?limit=10&selector=half=h1")
        .await
        .ok();
    assert_eq!(half["items"][1]["name"], "s00003");
    assert!(half["next"].is_string());
}

#[tokio::test]
async fn history_shows_every_change_and_who_made_it() {
    let node = node().await;
    let path = "/v1/meshes/pay/meshtrafficpermissions/p";
    node.put(path, &permission("pay", "p")).await.ok();
    node.put(path, &permission("pay", "p").replace("/web", "/api"))
        .await
        .ok();
    node.delete(path).await.ok();
    let history = node.get(&format!("{path}/history")).await.ok();
    let items = history["items"].as_array().unwrap();
    assert_eq!(items.len(), 3);
    assert!(items[0]["resource"].is_null());
    assert!(items[1]["resource"].to_string().contains("/api"));
    assert!(items[0]["actor"].as_str().unwrap().starts_with("token/"));
    assert_eq!(history["truncated"], false);
}

// === watching ===

/// The next events of a watch, as (event, data).
async fn watch(node: &TestNode, token: &str, query: &str, count: usize) -> Vec<(String, Value)> {
    use tower::ServiceExt as _;
    let request = axum::http::Request::builder()
        .uri(format!("/v1/watch{query}"))
        .header("authorization", format!("Bearer {token}"))
        .body(Body::empty())
        .unwrap();
    let response = node.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body().into_data_stream();
    let mut text = String::new();
    let mut events = Vec::new();
    while events.len() < count {
        let chunk = body.next().await.expect("the watch goes on").unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((event, rest)) = text.split_once("\n\n") {
            let field = |name: &str| {
                event
                    .lines()
                    .find_map(|l| l.strip_prefix(&format!("{name}: ")))
                    .unwrap_or_default()
                    .to_owned()
            };
            let name = field("event");
            if name != "bookmark" {
                let data = serde_json::from_str(&field("data")).unwrap();
                events.push((name, data));
            }
            text = rest.to_owned();
        }
    }
    events
}

#[tokio::test]
async fn a_watch_resumes_from_a_revision_and_misses_nothing() {
    let node = node().await;
    let from = node.revision();
    let path = "/v1/meshes/pay/meshtrafficpermissions/p";
    node.put(path, &permission("pay", "p")).await.ok();
    node.delete(path).await.ok();
    node.put("/v1/zones/east", "type: Zone\nname: east\n")
        .await
        .ok();
    let events = watch(&node, &node.admin, &format!("?from={from}"), 3).await;
    assert_eq!(events[0].1["key"]["name"], "p");
    assert_eq!(events[0].1["resource"]["name"], "p");
    assert!(events[1].1["resource"].is_null());
    let kinds: Vec<&str> = events
        .iter()
        .map(|e| e.1["key"]["type"].as_str().unwrap())
        .collect();
    assert!(kinds.contains(&"Zone"), "{kinds:?}");
    let resumed = watch(
        &node,
        &node.admin,
        &format!("?from={}", events[0].1["revision"]),
        1,
    )
    .await;
    assert_eq!(resumed[0].1["revision"], events[1].1["revision"]);
    let filtered = watch(&node, &node.admin, &format!("?from={from}&type=zones"), 1).await;
    assert_eq!(filtered[0].1["key"]["type"], "Zone");
    // A future revision belongs to a history that is no longer.
    let gone = watch(&node, &node.admin, "?from=999999", 1).await;
    assert_eq!(gone[0].0, "gone");
}

#[tokio::test]
async fn a_watch_is_told_that_its_revision_is_gone() {
    let node = node().await;
    let begun = node.revision();
    let history = node.app.state().history_id();
    let gone = async |query: String| {
        let (event, problem) = watch(&node, &node.admin, &query, 1).await.remove(0);
        assert_eq!(
            (event.as_str(), &problem["status"]),
            ("gone", &json!(410)),
            "{query}"
        );
        problem["title"].as_str().unwrap().to_owned()
    };
    node.limit_history(2).await;
    for name in ["a", "b", "c"] {
        node.apply(&permission("pay", name)).await.ok();
    }
    let oldest = node.app.image().oldest_revision();
    let list = node.get("/v1/meshes").await.ok();
    assert_eq!(list["historyId"], history);
    let title = gone(format!("?from={begun}")).await;
    assert!(title.contains(&oldest.to_string()), "{title}");
    let title = gone(format!("?from={oldest}&history=another")).await;
    assert!(title.contains("another history"), "{title}");
    let title = gone(format!("?from={}", node.revision() + 1)).await;
    assert!(title.contains("not known here"), "{title}");
    let events = watch(
        &node,
        &node.admin,
        &format!("?from={oldest}&history={history}"),
        2,
    )
    .await;
    assert_eq!(events[1].1["key"]["name"], "c");
}

#[tokio::test]
async fn a_long_past_is_watched_in_pages_without_a_gap() {
    let node = node().await;
    let from = node.revision();
    for part in 0..3 {
        let documents: Vec<String> = (0..400)
            .map(|n| format!("type: MeshService\nmesh: ana\nname: s{part}-{n}\nspec: {{ports: [{{port: 80}}]}}\n"))
            .collect();
        node.apply(&documents.join("---\n")).await.ok();
    }
    let events = watch(&node, &node.admin, &format!("?from={from}"), 1200).await;
    let names: std::collections::BTreeSet<String> = events
        .iter()
        .map(|(_, data)| data["key"]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 1200);
    assert!(events.is_sorted_by_key(|(_, data)| data["revision"].as_u64()));
}

#[tokio::test]
async fn a_watch_sees_changes_as_they_happen() {
    let node = node().await;
    let watching = watch(&node, &node.admin, "?mesh=ana", 1);
    let writing = async {
        // Whichever comes first: the watch begins at the newest revision, so write until it has seen one.
        for n in 0.. {
            node.put(
                "/v1/meshes/ana/meshtrafficpermissions/p",
                &permission("ana", "p").replace("/web", &format!("/w{n}")),
            )
            .await
            .ok();
            tokio::task::yield_now().await;
        }
    };
    let events = tokio::select! {
        events = watching => events,
        () = writing => unreachable!(),
    };
    assert_eq!(events[0].1["key"]["mesh"], "ana");
}

// === who may ===

#[tokio::test]
async fn tokens_are_needed_and_only_good_ones_count() {
    let node = node().await;
    let stranger = TestNode::start().await;
    let (join, _) = node.token(json!({"use": "node-join"})).await;
    for bad in ["", "garbage", "isthmus.a.b.c", &join, &stranger.admin] {
        let problem = node.get_as(bad, "/v1/meshes").await.problem(401);
        assert_eq!(problem["type"], "unauthorized");
    }
    let wrong_secret = {
        let mut parts: Vec<&str> = node.admin.split('.').collect();
        parts[2] = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        parts.join(".")
    };
    node.get_as(&wrong_secret, "/v1/meshes").await.problem(401);
    // Revoked: at once.
    let (text, id) = node.token(json!({"use": "api", "role": "viewer"})).await;
    node.get_as(&text, "/v1/meshes").await.ok();
    let revoked = node.delete(&format!("/v1/tokens/{id}")).await.ok();
    assert_eq!(revoked["state"], "revoked");
    let problem = node.get_as(&text, "/v1/meshes").await.problem(401);
    assert!(problem["title"].as_str().unwrap().contains("revoked"));
    // And written down.
    let audit = node.get("/v1/audit").await.ok().to_string();
    assert!(audit.contains("this token was revoked"), "{audit}");
}

#[tokio::test]
async fn a_tenant_sees_nothing_of_another_mesh() {
    let node = node().await;
    node.put(
        "/v1/meshes/ana/secrets/s",
        "type: Secret\nmesh: ana\nname: s\ndata: aHVudGVyMg==\n",
    )
    .await
    .ok();
    for role in ["mesh-admin", "viewer"] {
        let tenant = node.person(role, &["pay"]).await;
        let from = 0;
        for path in [
            "/v1/meshes/ana",
            "/v1/meshes/ana/history",
            "/v1/meshes/ana/meshtrafficpermissions",
            "/v1/meshes/ana/meshidentities/default",
            "/v1/meshes/ana/meshidentities/default/history",
            "/v1/meshes/ana/secrets/s",
            "/v1/meshes/ana/dataplanes",
            "/v1/meshes/ana/dataplanes/web",
            "/v1/tokenissuers/ana",
            "/v1/rollout/1?mesh=ana",
            "/v1/watch?mesh=ana",
        ] {
            let real = node.get_as(&tenant, path).await;
            let problem = real.problem(403);
            // A mesh that does not exist is refused in the same words.
            let imagined = node.get_as(&tenant, &path.replace("ana", "zzz")).await;
            assert_eq!(imagined.text.replace("zzz", "ana"), real.text, "{path}");
            assert_eq!(problem["type"], "forbidden");
        }
        for (path, body) in [
            (
                "/v1/meshes/ana/meshtrafficpermissions/x",
                permission("ana", "x"),
            ),
            ("/v1/meshes/ana", "type: Mesh\nname: ana\n".to_owned()),
            ("/v1/meshes/new", "type: Mesh\nname: new\n".to_owned()),
            ("/v1/zones/east", "type: Zone\nname: east\n".to_owned()),
        ] {
            node.send(&tenant, Method::PUT, path, &[], body)
                .await
                .problem(403);
            node.send(&tenant, Method::DELETE, path, &[], Body::empty())
                .await
                .problem(403);
        }
        let batch = format!("{}---\n{}", permission("pay", "x"), permission("ana", "x"));
        node.send(&tenant, Method::POST, "/v1/batch", &[], batch)
            .await
            .problem(403);
        for path in [
            "/v1/meshes",
            "/v1/meshservices",
            "/v1/meshidentities",
            "/v1/tokenissuers",
            "/v1/secrets",
            "/v1/status",
        ] {
            let answer = node.get_as(&tenant, path).await;
            assert!(answer.status.is_success(), "{path} {}", answer.text);
            assert!(
                !answer.text.contains("\"ana\""),
                "{role} {path} {}",
                answer.text
            );
        }
        node.get_as(&tenant, "/v1/zoneingresses").await.problem(403);
        // Watch everything there ever was: only its own comes.
        node.put(
            "/v1/meshes/pay/meshtrafficpermissions/last",
            &permission("pay", "last").replace("/web", &format!("/{role}")),
        )
        .await
        .ok();
        let mut events = watch(&node, &tenant, &format!("?from={from}"), 4).await;
        events.retain(|(_, event)| event["key"]["type"] != "Zone");
        for (_, event) in &events {
            let key = &event["key"];
            assert!(
                key["mesh"] == "pay" || key["name"] == "pay",
                "{role} {event}"
            );
        }
    }
}

#[tokio::test]
async fn roles_do_what_they_say() {
    let node = node().await;
    let mesh_admin = node.person("mesh-admin", &["pay"]).await;
    let viewer = node.person("viewer", &[]).await;
    let put = |token: String| {
        let node = &node;
        async move {
            node.send(
                &token,
                Method::PUT,
                "/v1/meshes/pay/meshtrafficpermissions/p",
                &[],
                permission("pay", "p"),
            )
            .await
        }
    };
    put(mesh_admin.clone()).await.ok();
    put(viewer.clone()).await.problem(403);
    node.get_as(&viewer, "/v1/meshes/ana").await.ok();
    node.get_as(&viewer, "/v1/audit").await.problem(403);
    node.get_as(&viewer, "/v1/tokens").await.problem(403);
    // The audit of one's own meshes, and tokens that reach no further.
    let audit = node.get_as(&mesh_admin, "/v1/audit").await.ok();
    assert!(!audit.to_string().contains("ana"), "{audit}");
    assert!(
        audit.to_string().contains("put MeshTrafficPermission p"),
        "{audit}"
    );
    let create = |asked: Value| {
        node.send(
            &mesh_admin,
            Method::POST,
            "/v1/tokens",
            &[],
            asked.to_string(),
        )
    };
    create(json!({"use": "dataplane", "mesh": "pay"}))
        .await
        .ok();
    create(json!({"use": "api", "role": "viewer", "meshes": ["pay"]}))
        .await
        .ok();
    for asked in [
        json!({"use": "dataplane", "mesh": "ana"}),
        json!({"use": "api", "role": "viewer", "meshes": ["ana"]}),
        json!({"use": "api", "role": "viewer"}),
        json!({"use": "api", "role": "admin"}),
        json!({"use": "zone-join", "zone": "east"}),
        json!({"use": "node-join"}),
        json!({"use": "ingress", "zone": "east"}),
    ] {
        create(asked.clone()).await.problem(403);
    }
    let tokens = node.get_as(&mesh_admin, "/v1/tokens").await.ok();
    assert!(
        tokens["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|t| t["mesh"] == "pay" || t["meshes"] == json!(["pay"])),
        "{tokens}"
    );
}

// === secrets and tokens ===

#[tokio::test]
async fn secrets_are_read_by_those_who_may_and_never_lie_in_clear() {
    let node = node().await;
    // The value, and what it looks like in base64.
    let (value, encoded) = (
        "correct-horse-battery-staple",
        "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ==",
    );
    let path = "/v1/meshes/pay/secrets/db";
    let body = format!("type: Secret\nmesh: pay\nname: db\ndata: {encoded}\n");
    node.put(path, &body).await.ok();
    let before = node.revision();
    assert_eq!(
        node.put(path, &body).await.ok()["results"][0]["outcome"],
        "unchanged"
    );
    assert_eq!(node.revision(), before);
    let answer = node.get(path).await;
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert_eq!(answer.ok()["data"], encoded);
    let mesh_admin = node.person("mesh-admin", &["pay"]).await;
    assert_eq!(node.get_as(&mesh_admin, path).await.ok()["data"], encoded);
    let viewer = node.person("viewer", &[]).await;
    node.get_as(&viewer, path).await.problem(403);
    // Lists, history and watches name it without its value.
    let list = node.get("/v1/meshes/pay/secrets").await.ok();
    assert_eq!(list["items"][0]["name"], "db");
    assert!(list["items"][0]["data"].is_null());
    let history = node.get(&format!("{path}/history")).await.ok();
    assert!(history["items"][0]["resource"]["data"].is_null());
    let events = watch(
        &node,
        &viewer,
        &format!("?from={}&type=secret", before - 1),
        1,
    )
    .await;
    assert!(events[0].1["resource"]["data"].is_null());
    // What a list shows does not wipe the value when it is applied.
    node.put(path, &list["items"][0].to_string())
        .await
        .problem(422);
    // Reading it was written down.
    let audit = node.get("/v1/audit").await.ok().to_string();
    assert!(audit.contains("read the value of Secret db"), "{audit}");
    // A secret outside any mesh is an administrator's alone.
    let path = "/v1/globalsecrets/db";
    let body = format!("type: GlobalSecret\nname: db\ndata: {encoded}\n");
    node.put(path, &body).await.ok();
    assert_eq!(
        node.put(path, &body).await.ok()["results"][0]["outcome"],
        "unchanged"
    );
    assert_eq!(node.get(path).await.ok()["data"], encoded);
    node.get_as(&mesh_admin, path).await.problem(403);
    node.get_as(&viewer, path).await.problem(403);
    let list = node.get_as(&viewer, "/v1/globalsecrets").await.ok();
    assert_eq!(list["items"][0]["name"], "db");
    assert!(list["items"][0]["data"].is_null());
    // Nothing on the disk holds it in clear, nor any private key but this node's own.
    node.app.cluster.shutdown().await;
    for (file, bytes) in files(node.dir.path()) {
        for needle in [value, encoded, node.admin.split('.').nth(2).unwrap()] {
            let found = bytes.windows(needle.len()).any(|w| w == needle.as_bytes());
            assert!(!found, "{needle} in {}", file.display());
        }
        if !file.ends_with("identity/key.pem") {
            let needle = b"PRIVATE KEY";
            assert!(
                !bytes.windows(needle.len()).any(|w| w == needle),
                "{}",
                file.display()
            );
        }
    }
}

fn files(dir: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found
}

#[tokio::test]
async fn a_revoked_dataplane_token_reaches_the_issuer_of_its_mesh() {
    let node = node().await;
    let (text, id) = node
        .token(json!({"use": "dataplane", "mesh": "pay", "name": "web-1", "labels": {"isthmus.io/service": "web"}}))
        .await;
    let claims = crate::tokens::unverified_claims(&text).unwrap();
    assert_eq!(
        (claims.mesh.as_deref(), claims.name.as_deref()),
        (Some("pay"), Some("web-1"))
    );
    node.delete(&format!("/v1/tokens/{id}")).await.ok();
    let issuer = node.get("/v1/tokenissuers/pay").await.ok();
    assert_eq!(issuer["spec"]["revoked"][0]["id"], id.as_str());
    assert!(node.get("/v1/tokenissuers/ana").await.ok()["spec"]["revoked"].is_null());
}

#[tokio::test]
async fn the_first_admin_token_can_be_replaced_on_the_machine_itself() {
    let node = node().await;
    let made = crate::issue::reset_admin(&node.app).await.unwrap();
    node.get_as(&node.admin, "/v1/meshes").await.problem(401);
    node.get_as(&made.token, "/v1/meshes").await.ok();
}

// === the rest ===

#[tokio::test]
async fn status_rollout_and_schema_answer() {
    let node = node().await;
    node.put("/v1/zones/east", "type: Zone\nname: east\n")
        .await
        .ok();
    node.put("/v1/zones/west", "type: Zone\nname: west\nenabled: false\n")
        .await
        .ok();
    let status = node.get("/v1/status").await.ok();
    assert_eq!(status["nodes"][0]["role"], "leader");
    assert_eq!(status["zones"][0]["state"], "unjoined");
    assert_eq!(status["zones"][1]["state"], "disabled");
    let rollout = node
        .get(&format!("/v1/rollout/{}?mesh=pay", node.revision()))
        .await
        .ok();
    // A zone that was only declared is waited for by nobody.
    assert_eq!(
        (&rollout["complete"], &rollout["zones"]),
        (&json!(true), &json!([]))
    );
    let schema = node.get("/v1/schema/meshservice").await.ok();
    assert!(schema.is_object());
    assert_eq!(
        node.get("/v1/version").await.ok()["version"],
        mesh_proto::VERSION
    );
    let dataplanes = node.get("/v1/meshes/pay/dataplanes").await.ok();
    assert!(dataplanes.get("unanswered").is_none());
    let asked = node.get("/v1/meshes/pay/dataplanes?zone=east").await.ok();
    assert_eq!(asked["unanswered"][0]["zone"], "east");
    let stale = node.get("/v1/meshes?consistency=stale").await.ok();
    assert_eq!(stale["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn deleting_a_zone_takes_all_it_owns() {
    use crate::{changes::put_operation, writes};
    let node = node().await;
    node.put("/v1/zones/east", "type: Zone\nname: east\n")
        .await
        .ok();
    let (join, _) = node
        .token(json!({"use": "zone-join", "zone": "east"}))
        .await;
    let key = mesh_proto::zone::ResourceKey::in_zone("MeshService", "pay", "east", "web");
    let json = br#"{"mesh":"pay","name":"web","spec":{"ports":[{"appProtocol":"tcp","port":80}]},"type":"MeshService","zone":"east"}"#;
    let operations = vec![put_operation(key.clone(), json.to_vec(), None)];
    writes::write_operations(
        &node.app,
        &crate::authorize::Actor::system(),
        operations,
        String::new(),
    )
    .await
    .unwrap();
    let read = node
        .get("/v1/meshes/pay/meshservices/web?zone=east")
        .await
        .ok();
    assert_eq!(read["labels"]["isthmus.io/origin"], "east");
    let problem = node
        .get("/v1/meshes/pay/meshservices/web")
        .await
        .problem(404);
    assert!(problem["detail"].as_str().unwrap().contains("east"));
    let problem = node
        .delete("/v1/meshes/pay/meshservices/web?zone=east")
        .await
        .problem(422);
    assert!(
        problem["title"]
            .as_str()
            .unwrap()
            .contains("belongs to its zone"),
        "{problem}"
    );
    let written = node.delete("/v1/zones/east").await.ok();
    assert!(node.app.image().get(&key).is_none());
    let (history, _) = node.app.image().history(&key);
    assert_eq!(json!(history[0].revision), written["revision"]);
    assert!(!node.get("/v1/tokens").await.text.contains("zone-join"));
    drop(join);
}
