//! The audit: who did what, and who was refused what.

use axum::http::Method;
use serde_json::{Value, json};

use super::tests::permission;
use crate::testing::TestNode;

async fn node() -> TestNode {
    let node = TestNode::start().await;
    node.apply("type: Mesh\nname: pay\n---\ntype: Mesh\nname: ana\n")
        .await
        .ok();
    node
}

fn items(audit: &Value) -> &[Value] {
    audit["items"].as_array().unwrap()
}

#[tokio::test]
async fn the_audit_says_what_was_changed_from_what_to_what() {
    let node = node().await;
    let path = "/v1/meshes/pay/meshtrafficpermissions/p";
    node.put(path, &permission("pay", "p")).await.ok();
    let changed = permission("pay", "p").replace("/web", "/api");
    let headers = [("x-request-id", "r-7")];
    node.send(&node.admin, Method::PUT, path, &headers, changed)
        .await
        .ok();
    node.delete(path).await.ok();
    let audit = node.get("/v1/audit?resource=mtp/p").await.ok();
    let [deleted, updated, created] = items(&audit) else {
        panic!("{audit}")
    };
    assert_eq!(created["changes"][0]["outcome"], "created");
    assert!(
        created["changes"][0]["fields"][0]["after"]
            .to_string()
            .contains("/web"),
        "{created}"
    );
    let field = &updated["changes"][0]["fields"][0];
    assert_eq!(
        field["field"], "spec.rules[0].default.allow[0].spiffeID.value",
        "{updated}"
    );
    assert_eq!(field["before"], "spiffe://pay.east.mesh.local/workload/web");
    assert_eq!(field["after"], "spiffe://pay.east.mesh.local/workload/api");
    assert_eq!(
        (&updated["requestId"], &updated["outcome"]),
        (&json!("r-7"), &json!("done"))
    );
    assert!(updated["actor"].as_str().unwrap().starts_with("token/"));
    assert_eq!(deleted["changes"][0]["outcome"], "deleted");
}

#[tokio::test]
async fn the_audit_says_that_a_secret_changed_and_never_what_it_is() {
    let node = node().await;
    let secret = |value: &str| format!("type: Secret\nmesh: pay\nname: s\ndata: {value}\n");
    node.put("/v1/meshes/pay/secrets/s", &secret("Zmlyc3Q="))
        .await
        .ok();
    node.put("/v1/meshes/pay/secrets/s", &secret("c2Vjb25k"))
        .await
        .ok();
    let (token, _) = node.token(json!({"use": "api", "role": "viewer"})).await;
    let audit = node.get("/v1/audit?resource=secret").await.ok();
    let fields = &items(&audit)[0]["changes"][0]["fields"];
    assert_eq!(*fields, json!([{"field": "data"}]), "{audit}");
    // Nor a token's hash, nor anything sealed.
    let all = node.get("/v1/audit").await.text;
    let sealed = node
        .app
        .image()
        .get(&mesh_proto::zone::ResourceKey::global("Secret", "pay", "s"));
    let sealed = String::from_utf8(sealed.unwrap().json).unwrap();
    let sealed: Value = serde_json::from_str(&sealed).unwrap();
    let hash = crate::tokens::secret_hash(token.split('.').nth(2).unwrap());
    for hidden in [
        "Zmlyc3Q=",
        "c2Vjb25k",
        &sealed["data"].as_str().unwrap()[..40],
        &hash,
    ] {
        assert!(!all.contains(hidden), "{hidden} in {all}");
    }
}

#[tokio::test]
async fn refused_attempts_stand_in_the_audit_with_all_that_is_known_of_them() {
    let node = node().await;
    let tenant = node.person("mesh-admin", &["pay"]).await;
    let headers = [("x-request-id", "try-1")];
    let path = "/v1/meshes/ana/secrets/db";
    node.send(&tenant, Method::GET, path, &headers, "")
        .await
        .problem(403);
    let audit = node.get("/v1/audit?resource=secret/db").await.ok();
    let refused = &items(&audit)[0];
    assert_eq!(
        (&refused["outcome"], &refused["requestId"]),
        (&json!("refused"), &json!("try-1"))
    );
    assert_eq!(refused["node"], 1);
    let summary = refused["summary"].as_str().unwrap();
    assert!(
        summary.contains("GET /v1/meshes/ana/secrets/db"),
        "{summary}"
    );
    // It concerns ana, whose tenant sees it, and not pay, whose tenant tried.
    let other = node.person("mesh-admin", &["ana"]).await;
    let seen = node.get_as(&other, "/v1/audit").await.ok();
    assert!(seen.to_string().contains("try-1"), "{seen}");
    let seen = node.get_as(&tenant, "/v1/audit").await.ok();
    assert!(!seen.to_string().contains("ana"), "{seen}");
    node.get_as(&tenant, "/v1/audit?mesh=ana")
        .await
        .problem(403);
    node.get_as(&tenant, "/v1/audit?mesh=pay").await.ok();
}

#[tokio::test]
async fn of_a_change_of_several_meshes_each_tenant_sees_its_part() {
    let node = node().await;
    let both = format!(
        "{}---\n{}",
        permission("pay", "mine"),
        permission("ana", "theirs")
    );
    node.apply(&both).await.ok();
    let tenant = node.person("mesh-admin", &["pay"]).await;
    let audit = node.get_as(&tenant, "/v1/audit").await.ok();
    let newest = items(&audit)
        .iter()
        .find(|item| item["summary"].as_str().unwrap().contains("mine"))
        .unwrap();
    assert_eq!(newest["changes"].as_array().unwrap().len(), 1);
    assert!(!audit.to_string().contains("theirs"), "{audit}");
    // What is about its own tokens it sees too.
    let asked = json!({"use": "dataplane", "mesh": "pay", "description": "of pay"}).to_string();
    node.send(&tenant, Method::POST, "/v1/tokens", &[], asked)
        .await
        .ok();
    let audit = node.get_as(&tenant, "/v1/audit").await.ok();
    assert!(
        items(&audit)[0]["summary"]
            .as_str()
            .unwrap()
            .contains("dataplane token"),
        "{audit}"
    );
}

#[tokio::test]
async fn filters_pages_and_export_tell_the_same_records() {
    let node = node().await;
    let tenant = node.person("mesh-admin", &["pay"]).await;
    for n in 0..12 {
        let path = format!("/v1/meshes/pay/meshtrafficpermissions/p{n}");
        node.send(
            &tenant,
            Method::PUT,
            &path,
            &[],
            permission("pay", &format!("p{n}")),
        )
        .await
        .ok();
        node.get_as(&tenant, &format!("/v1/meshes/ana/secrets/s{n}"))
            .await
            .problem(403);
    }
    let whole = node.get("/v1/audit?limit=1000").await.ok();
    let actor = items(&whole)[0]["actor"].as_str().unwrap().to_owned();
    let query = format!("actor={actor}");
    let whole = node
        .get(&format!("/v1/audit?limit=1000&{query}"))
        .await
        .ok();
    assert_eq!(items(&whole).len(), 24);
    let mut paged = Vec::new();
    let mut next = String::new();
    loop {
        let page = node
            .get(&format!("/v1/audit?limit=5&{query}{next}"))
            .await
            .ok();
        paged.extend(items(&page).to_vec());
        match page["next"].as_str() {
            Some(token) => next = format!("&continue={token}"),
            None => break,
        }
    }
    assert_eq!(paged, items(&whole));
    let export = node
        .send(
            &node.admin,
            Method::GET,
            &format!("/v1/audit?{query}"),
            &[("accept", "application/x-ndjson")],
            "",
        )
        .await;
    assert_eq!(export.headers["content-type"], "application/x-ndjson");
    let lines: Vec<Value> = export
        .text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines, items(&whole));
    // In time.
    let middle = paged[11]["time"].as_str().unwrap();
    let count = |audit: Value| items(&audit).len();
    let since = count(
        node.get(&format!("/v1/audit?limit=1000&{query}&since={middle}"))
            .await
            .ok(),
    );
    let until = count(
        node.get(&format!("/v1/audit?limit=1000&{query}&until={middle}"))
            .await
            .ok(),
    );
    let at = count(
        node.get(&format!(
            "/v1/audit?limit=1000&{query}&since={middle}&until={middle}"
        ))
        .await
        .ok(),
    );
    assert_eq!(since + until - at, 24);
    for bad in [
        "since=yesterday",
        "limit=0",
        "continue=x",
        "resource=nokind",
        "actr=x",
    ] {
        let status = node.get(&format!("/v1/audit?{bad}")).await.status;
        assert!(status.is_client_error(), "{bad}: {status}");
    }
}
