//! Users, roles and bindings; and what a tenant can find out about, or do to, another mesh: nothing, whichever way it
//! tries.

use axum::{
    body::{Body, BodyDataStream},
    http::Method,
};
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::tests::permission;
use crate::testing::{Answer, TestNode};

const ACCESS: &str = "
type: Mesh
name: pay
---
type: Mesh
name: ana
---
type: User
name: alice
spec: {description: Alice of payments}
---
type: Role
name: permissions
spec: {rules: [{actions: [read, write], kinds: [MeshTrafficPermission]}]}
---
type: RoleBinding
name: alice-permissions
spec: {role: permissions, users: [alice], meshes: [pay]}
";

/// Two meshes, and a token of alice, who writes permissions in pay.
async fn node() -> (TestNode, String) {
    let node = TestNode::start().await;
    node.apply(ACCESS).await.ok();
    let (alice, _) = node.token(json!({"use": "api", "user": "alice"})).await;
    (node, alice)
}

async fn send(
    node: &TestNode,
    token: &str,
    method: Method,
    path: &str,
    body: impl Into<Body>,
) -> Answer {
    let headers = [("content-type", "application/json")];
    node.send(token, method, path, &headers, body).await
}

async fn put_as(node: &TestNode, token: &str, mesh: &str, name: &str) -> Answer {
    let path = format!("/v1/meshes/{mesh}/meshtrafficpermissions/{name}");
    node.send(token, Method::PUT, &path, &[], permission(mesh, name))
        .await
}

#[tokio::test]
async fn a_user_may_what_its_bindings_say_at_that_moment() {
    let (node, alice) = node().await;
    put_as(&node, &alice, "pay", "p").await.ok();
    put_as(&node, &alice, "ana", "p").await.problem(403);
    node.get_as(&alice, "/v1/meshes/pay/meshtrafficpermissions/p")
        .await
        .ok();
    node.get_as(&alice, "/v1/meshes/pay").await.problem(403);
    let refused = send(
        &node,
        &alice,
        Method::DELETE,
        "/v1/meshes/pay/meshtrafficpermissions/p",
        "",
    )
    .await;
    let problem = refused.problem(403);
    let title = problem["title"].as_str().unwrap();
    assert!(
        title.starts_with("user/alice/") && title.ends_with("its roles do not allow that"),
        "{title}"
    );
    // Another binding adds to it, a role that grows does at once.
    node.apply("type: RoleBinding\nname: alice-views\nspec: {role: viewer, users: [alice], meshes: [ana]}\n")
        .await
        .ok();
    node.get_as(&alice, "/v1/meshes/ana").await.ok();
    node.apply("type: Role\nname: permissions\nspec: {rules: [{actions: [read, write, delete], kinds: [MeshTrafficPermission]}]}\n")
        .await
        .ok();
    send(
        &node,
        &alice,
        Method::DELETE,
        "/v1/meshes/pay/meshtrafficpermissions/p",
        "",
    )
    .await
    .ok();
    // Withdrawn, it counts no more, and with none left nothing is allowed.
    node.delete("/v1/rolebindings/alice-views").await.ok();
    node.get_as(&alice, "/v1/meshes/ana").await.problem(403);
    node.delete("/v1/rolebindings/alice-permissions").await.ok();
    let problem = put_as(&node, &alice, "pay", "p").await.problem(403);
    assert!(
        problem["title"]
            .as_str()
            .unwrap()
            .contains("no RoleBinding")
    );
    // Who it was stands in the history and in the audit.
    let history = node
        .get("/v1/meshes/pay/meshtrafficpermissions/p/history")
        .await
        .ok();
    assert!(
        history["items"][0]["actor"]
            .as_str()
            .unwrap()
            .starts_with("user/alice/")
    );
}

#[tokio::test]
async fn with_a_user_go_its_tokens_and_bindings() {
    let (node, alice) = node().await;
    node.apply("type: User\nname: bob\nspec: {}\n---\ntype: RoleBinding\nname: both\nspec: {role: viewer, users: [alice, bob]}\n")
        .await
        .ok();
    node.delete("/v1/users/alice").await.ok();
    node.get_as(&alice, "/v1/version").await.problem(401);
    node.get("/v1/rolebindings/alice-permissions")
        .await
        .problem(404);
    let both = node.get("/v1/rolebindings/both").await.ok();
    assert_eq!(both["spec"]["users"], json!(["bob"]));
    // Another alice begins with nothing.
    node.apply("type: User\nname: alice\nspec: {}\n").await.ok();
    let (other, _) = node.token(json!({"use": "api", "user": "alice"})).await;
    node.get_as(&alice, "/v1/version").await.problem(401);
    node.get_as(&other, "/v1/meshes/pay/meshtrafficpermissions")
        .await
        .problem(403);
}

#[tokio::test]
async fn with_a_mesh_go_the_bindings_to_it() {
    let (node, alice) = node().await;
    node.apply(
        "type: RoleBinding\nname: two\nspec: {role: viewer, users: [alice], meshes: [pay, ana]}\n",
    )
    .await
    .ok();
    node.delete("/v1/meshes/pay").await.ok();
    node.get("/v1/rolebindings/alice-permissions")
        .await
        .problem(404);
    let two = node.get("/v1/rolebindings/two").await.ok();
    assert_eq!(two["spec"]["meshes"], json!(["ana"]));
    // Another mesh of that name is somebody else's.
    node.apply("type: Mesh\nname: pay\n").await.ok();
    node.get_as(&alice, "/v1/meshes/pay").await.problem(403);
    node.get_as(&alice, "/v1/meshes/ana").await.ok();
}

#[tokio::test]
async fn nobody_gives_themselves_more() {
    let (node, alice) = node().await;
    let tenant = node.person("mesh-admin", &["pay"]).await;
    let (_, alices) = node.token(json!({"use": "api", "user": "alice"})).await;
    // Somebody who keeps the roles and bindings of all, and no more.
    node.apply(
        "type: User\nname: keeper\nspec: {}\n---\ntype: Role\nname: keeper\nspec: {rules: [{actions: [read, write, delete], kinds: [User, Role, RoleBinding]}, {actions: [tokens]}]}\n---\ntype: RoleBinding\nname: keeper\nspec: {role: keeper, users: [keeper]}\n",
    )
    .await
    .ok();
    let (keeper, _) = node.token(json!({"use": "api", "user": "keeper"})).await;
    let binding = |name: &str, role: &str| {
        format!("type: RoleBinding\nname: {name}\nspec: {{role: {role}, users: [keeper, alice]}}\n")
    };
    let own =
        "type: Role\nname: keeper\nspec: {rules: [{actions: [read, write, delete, readSecret]}]}\n";
    let before = node.revision();
    for (who, token) in [
        ("alice", &alice),
        ("mesh-admin", &tenant),
        ("keeper", &keeper),
    ] {
        for yaml in [
            binding("mine", "admin"),
            binding("mine", "viewer"),
            binding("keeper", "admin"),
            own.to_owned(),
        ] {
            for path in [
                "/v1/batch",
                "/v1/batch?dry_run=true",
                "/v1/diff",
                "/v1/plan",
            ] {
                let answer = node
                    .send(token, Method::POST, path, &[], yaml.clone())
                    .await;
                assert_eq!(answer.status, 403, "{who} {path} {yaml}: {}", answer.text);
            }
        }
        let put = node
            .send(
                token,
                Method::PUT,
                "/v1/rolebindings/mine",
                &[],
                binding("mine", "admin"),
            )
            .await;
        put.problem(403);
        for asked in [
            json!({"use": "api", "role": "admin"}),
            json!({"use": "api", "role": "viewer"}),
            json!({"use": "api", "role": "mesh-admin", "meshes": ["ana"]}),
            // Who holds a token of a user is that user.
            json!({"use": "api", "user": "alice"}),
            json!({"use": "api", "user": "nobody"}),
        ] {
            let answer = send(&node, token, Method::POST, "/v1/tokens", asked.to_string()).await;
            assert_eq!(answer.status, 403, "{who} {asked}: {}", answer.text);
        }
    }
    assert_eq!(node.revision(), before);
    // What it has, the keeper may give.
    let answer = node
        .send(
            &keeper,
            Method::POST,
            "/v1/batch",
            &[],
            binding("mine", "keeper"),
        )
        .await;
    answer.ok();
    // A user sees and revokes its own tokens and no others.
    node.delete("/v1/rolebindings/mine").await.ok();
    let own = node.get_as(&alice, "/v1/tokens").await.ok();
    let own: Vec<&Value> = own["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["user"])
        .collect();
    assert_eq!(own, [&json!("alice"), &json!("alice")]);
    let revoked = send(
        &node,
        &alice,
        Method::DELETE,
        &format!("/v1/tokens/{alices}"),
        "",
    )
    .await;
    revoked.ok();
    send(
        &node,
        &tenant,
        Method::DELETE,
        &format!("/v1/tokens/{alices}"),
        "",
    )
    .await
    .problem(404);
}

#[tokio::test]
async fn a_user_without_roles_learns_nothing() {
    let (node, _) = node().await;
    node.apply("type: User\nname: bob\nspec: {}\n").await.ok();
    let (bob, _) = node.token(json!({"use": "api", "user": "bob"})).await;
    for path in [
        "/v1/status",
        "/v1/zones",
        "/v1/users",
        "/v1/roles",
        "/v1/rolebindings",
        "/v1/audit",
        "/v1/meshes/pay",
        "/v1/zones/east/status",
        "/v1/meshes/pay/explain?from=a&to=b",
        "/v1/rollout/1?mesh=pay",
    ] {
        node.get_as(&bob, path).await.problem(403);
    }
    for path in [
        "/v1/meshes",
        "/v1/meshservices",
        "/v1/secrets",
        "/v1/tokenissuers",
    ] {
        assert_eq!(
            node.get_as(&bob, path).await.ok()["items"],
            json!([]),
            "{path}"
        );
    }
    node.get_as(&bob, "/v1/version").await.ok();
}

// === tenants ===

/// A watch that goes on.
struct Watching {
    body: BodyDataStream,
    text: String,
}

async fn watch_on(node: &TestNode, token: &str, query: &str) -> Watching {
    use tower::ServiceExt as _;
    let request = axum::http::Request::builder()
        .uri(format!("/v1/watch{query}"))
        .header("authorization", format!("Bearer {token}"))
        .body(Body::empty())
        .unwrap();
    let response = node.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    Watching {
        body: response.into_body().into_data_stream(),
        text: String::new(),
    }
}

impl Watching {
    /// The next event that is no bookmark: its name and data.
    async fn next(&mut self) -> (String, Value) {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let mut lines = event.lines();
                    let found = lines.find_map(|line| line.strip_prefix(&format!("{name}: ")));
                    found.unwrap_or_default().to_owned()
                };
                let (name, data) = (field("event"), field("data"));
                self.text = rest.to_owned();
                if name != "bookmark" && !data.is_empty() {
                    return (name, serde_json::from_str(&data).unwrap());
                }
            }
            let chunk = self.body.next().await.expect("the watch goes on").unwrap();
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

#[tokio::test]
async fn a_watch_narrows_when_a_binding_is_withdrawn() {
    let (node, alice) = node().await;
    node.apply("type: RoleBinding\nname: alice-ana\nspec: {role: permissions, users: [alice], meshes: [ana]}\n")
        .await
        .ok();
    let from = node.revision();
    put_as(&node, &node.admin, "ana", "seen").await.ok();
    let mut narrowing = watch_on(&node, &alice, &format!("?from={from}")).await;
    assert_eq!(narrowing.next().await.1["key"]["name"], "seen");
    node.delete("/v1/rolebindings/alice-ana").await.ok();
    put_as(&node, &node.admin, "ana", "hidden").await.ok();
    put_as(&node, &node.admin, "pay", "own").await.ok();
    let (_, event) = narrowing.next().await;
    assert_eq!(event["key"]["name"], "own", "{event}");
    // One that was for that mesh only ends and says why.
    let mut of_pay = watch_on(&node, &alice, "?mesh=pay&type=mtp").await;
    node.delete("/v1/rolebindings/alice-permissions").await.ok();
    let (name, problem) = of_pay.next().await;
    assert_eq!(
        (name.as_str(), &problem["type"]),
        ("end", &json!("forbidden")),
        "{problem}"
    );
    // Revoked, a token's watches end at once.
    let (token, id) = node.token(json!({"use": "api", "role": "viewer"})).await;
    let mut revoked = watch_on(&node, &token, "?type=zones").await;
    node.delete(&format!("/v1/tokens/{id}")).await.ok();
    let (name, problem) = revoked.next().await;
    assert_eq!(
        (name.as_str(), &problem["type"]),
        ("end", &json!("unauthorized")),
        "{problem}"
    );
}

/// What is answered to a tenant of pay about ana is, to the letter, what is answered about a mesh that is not there.
#[tokio::test]
async fn a_refusal_about_another_mesh_does_not_tell_whether_it_is_there() {
    let (node, _) = node().await;
    put_as(&node, &node.admin, "ana", "real").await.ok();
    let tenant = node.person("mesh-admin", &["pay"]).await;
    let policy = |mesh: &str, name: &str| json!({"type": "MeshTrafficPermission", "mesh": mesh, "name": name, "spec": {"rules": []}});
    let attempts = |mesh: &str, name: &str| {
        let path = format!("/v1/meshes/{mesh}/meshtrafficpermissions/{name}");
        let put = json!({"put": [policy(mesh, name)]}).to_string();
        let delete =
            json!({"delete": [{"type": "MeshTrafficPermission", "mesh": mesh, "name": name}]})
                .to_string();
        let mut all = vec![
            (Method::GET, path.clone(), String::new()),
            (Method::GET, format!("{path}/history"), String::new()),
            (Method::GET, format!("{path}/inspect"), String::new()),
            (Method::PUT, path.clone(), policy(mesh, name).to_string()),
            (
                Method::PUT,
                format!("{path}?dry_run=true"),
                policy(mesh, name).to_string(),
            ),
            (Method::DELETE, path.clone(), String::new()),
            (
                Method::DELETE,
                format!("{path}?dry_run=true"),
                String::new(),
            ),
            (Method::DELETE, format!("/v1/meshes/{mesh}"), String::new()),
            (
                Method::GET,
                format!("/v1/meshes/{mesh}/dataplanes/{name}"),
                String::new(),
            ),
            (
                Method::GET,
                format!("/v1/meshes/{mesh}/services/{name}"),
                String::new(),
            ),
            (
                Method::GET,
                format!("/v1/meshes/{mesh}/explain?from={name}&to={name}"),
                String::new(),
            ),
            (
                Method::GET,
                format!("/v1/rollout/1?mesh={mesh}"),
                String::new(),
            ),
            (Method::GET, format!("/v1/watch?mesh={mesh}"), String::new()),
            (Method::GET, format!("/v1/audit?mesh={mesh}"), String::new()),
            (
                Method::POST,
                "/v1/tokens".into(),
                json!({"use": "dataplane", "mesh": mesh}).to_string(),
            ),
            (
                Method::POST,
                "/v1/tokens".into(),
                json!({"use": "api", "role": "viewer", "meshes": [mesh]}).to_string(),
            ),
        ];
        let of_mesh = json!({"to": 1, "mesh": mesh}).to_string();
        let key = json!({"type": "MeshTrafficPermission", "mesh": mesh, "name": name});
        let of_one = json!({"to": 1, "keys": [key]}).to_string();
        for path in [
            "/v1/rollback",
            "/v1/rollback?dry_run=true",
            "/v1/rollback/diff",
        ] {
            all.push((Method::POST, path.into(), of_mesh.clone()));
            all.push((Method::POST, path.into(), of_one.clone()));
        }
        for path in [
            "/v1/batch",
            "/v1/batch?dry_run=true",
            "/v1/diff",
            "/v1/plan",
        ] {
            all.push((Method::POST, path.into(), put.clone()));
            all.push((Method::POST, path.into(), delete.clone()));
        }
        all
    };
    let before = node.revision();
    for (mesh, name) in [("ana", "real"), ("ana", "none")] {
        for ((method, path, body), (_, other_path, other_body)) in attempts(mesh, name)
            .into_iter()
            .zip(attempts("zzz", "gone"))
        {
            let real = send(&node, &tenant, method.clone(), &path, body).await;
            let imagined = send(&node, &tenant, method.clone(), &other_path, other_body).await;
            assert_eq!(real.status, 403, "{method} {path}: {}", real.text);
            let imagined = imagined.text.replace("zzz", mesh).replace("gone", name);
            assert_eq!(imagined, real.text, "{method} {path}");
        }
    }
    assert_eq!(node.revision(), before);
}

/// Lists over all meshes are cut into pages by what the tenant sees, not by what is there.
#[tokio::test]
async fn no_page_of_a_list_tells_of_what_others_have() {
    let (node, _) = node().await;
    let services = |mesh: &str, count: usize| {
        let one = |n| {
            format!(
                "type: MeshService\nmesh: {mesh}\nname: s{n:05}\nspec: {{ports: [{{port: 80}}]}}\n"
            )
        };
        (0..count).map(one).collect::<Vec<_>>()
    };
    // Before and behind its own, and more than is looked at for one page.
    node.apply("type: Mesh\nname: zoo\n").await.ok();
    for part in services("ana", 21_000).chunks(3_000) {
        node.apply(&part.join("---\n")).await.ok();
    }
    node.apply(&services("zoo", 3).join("---\n")).await.ok();
    node.apply(&services("pay", 5).join("---\n")).await.ok();
    let tenant = node.person("viewer", &["pay"]).await;
    let first = node.get_as(&tenant, "/v1/meshservices?limit=3").await.ok();
    assert_eq!(first["items"].as_array().unwrap().len(), 3, "{first}");
    let next = first["next"].as_str().unwrap();
    let second = node
        .get_as(
            &tenant,
            &format!("/v1/meshservices?limit=3&continue={next}"),
        )
        .await
        .ok();
    assert_eq!(second["items"].as_array().unwrap().len(), 2, "{second}");
    assert!(second["next"].is_null(), "{second}");
    let meshes = node.get_as(&tenant, "/v1/meshes?limit=1").await.ok();
    assert_eq!(meshes["items"][0]["name"], "pay");
    assert!(meshes["next"].is_null(), "{meshes}");
}
