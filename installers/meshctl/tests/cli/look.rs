//! Looking: pages, formats, selectors.

use std::collections::HashMap;

use axum::{Json, Router, extract::Query, http::StatusCode, routing::get};
use serde_json::{Value, json};

use crate::server::{Server, run};

fn mesh_service(index: usize) -> Value {
    json!({
        "type": "MeshService", "mesh": "pay", "name": format!("s{index:04}"), "revision": 7,
        "labels": {"isthmus.io/origin": "global"}, "creationTime": "2026-01-01T00:00:00Z",
        "modificationTime": "2026-01-01T00:00:00Z",
        "spec": {"ports": [{"port": 80, "appProtocol": "tcp"}], "selector": {"dataplaneLabels": {"matchLabels": {"a": "b"}}}},
    })
}

/// 1,234 services, in pages of at most 500.
async fn services(Query(query): Query<HashMap<String, String>>) -> Json<Value> {
    let from: usize = query.get("continue").map_or(0, |at| at.parse().unwrap());
    let limit: usize = query["limit"].parse().unwrap();
    let to = (from + limit.min(500)).min(1_234);
    let items: Vec<_> = (from..to).map(mesh_service).collect();
    let mut page = json!({"items": items, "revision": 9});
    if to < 1_234 {
        page["next"] = to.to_string().into();
    }
    Json(page)
}

fn server() -> Server {
    Server::start(
        Router::new()
            .route("/v1/meshes/pay/meshservices", get(services))
            .route(
                "/v1/meshes/pay/meshservices/{name}",
                get(|| async { Json(mesh_service(1)) }),
            )
            .route(
                "/v1/meshes/pay/meshtrafficpermissions/{name}",
                get(|| async {
                    let problem = json!({"type": "not-found", "title": "there is no MeshTrafficPermission x", "status": 404});
                    (StatusCode::NOT_FOUND, Json(problem))
                }),
            ),
    )
}

#[test]
fn pages_are_followed_to_the_end() {
    let server = server();
    let (code, out, err) = run(server.meshctl("get msvc -m pay -o name"));
    assert_eq!(code, 0, "{err}");
    assert_eq!(out.lines().count(), 1_234);
    assert_eq!(out.lines().last(), Some("meshservice/s1233"));
    assert_eq!(server.seen().len(), 3);
}

#[test]
fn what_selects_is_asked_of_the_server() {
    let server = server();
    let (code, _, err) =
        run(server.meshctl("get meshservices -m pay -l team=a,tier!=b --zone west -o name"));
    assert_eq!(code, 0, "{err}");
    let uri = &server.seen()[0].uri;
    assert!(uri.contains("selector=team%3Da%2Ctier%21%3Db"), "{uri}");
    assert!(uri.contains("zone=west"), "{uri}");
}

#[test]
fn each_format_is_what_it_says() {
    let server = server();
    let shown = |format: &str| {
        let (code, out, err) =
            run(server.meshctl(&format!("get meshservice s0001 -m pay -o {format}")));
        assert_eq!(code, 0, "{err}");
        out
    };
    assert_eq!(shown("name"), "meshservice/s0001\n");
    let json: Value = serde_json::from_str(&shown("json")).unwrap();
    assert_eq!(json["name"], "s0001");
    let yaml = shown("yaml");
    assert!(yaml.starts_with("type: MeshService\n"), "{yaml}");
    // What is shown can be applied again.
    mesh_model::parse(&yaml, "yaml").unwrap();
    let table = shown("table");
    assert!(table.starts_with("NAME    ORIGIN   PORTS"), "{table}");
    let wide = shown("wide");
    assert!(wide.starts_with("MESH   NAME    ORIGIN   PORTS"), "{wide}");
    assert!(wide.contains("LABELS"), "{wide}");
    assert_eq!(shown("jsonpath={.spec.ports[0].port}"), "80\n");
    assert!(
        !table.contains('\u{1b}'),
        "no colour where there is no terminal"
    );
}

#[test]
fn a_list_is_its_items_in_json_and_for_templates() {
    let server = server();
    let (code, out, err) = run(server.meshctl("get msvc -m pay -o json"));
    assert_eq!(code, 0, "{err}");
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["items"].as_array().unwrap().len(), 1_234);
    let mut command = server.meshctl("get msvc -m pay -o");
    command.arg(r#"jsonpath={range .items[1:3]}{.name}{"\n"}{end}"#);
    let (code, out, err) = run(command);
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, "s0001\ns0002\n");
}

#[test]
fn a_format_that_is_none_is_refused_with_what_there_is() {
    let server = server();
    for (format, words) in [
        ("tabel", "table, wide, yaml, json, name"),
        ("jsonpath={.items[}", "items["),
        ("jsonpath={end}", "{range"),
        ("jsonpath=", "jsonpath='{.items[*].name}'"),
    ] {
        let (code, _, err) = run(server.meshctl(&format!("get msvc -m pay -o {format}")));
        assert_eq!(code, 2, "{format}");
        assert!(err.contains(words), "{format}: {err}");
    }
    assert!(server.seen().is_empty());
}

#[test]
fn what_is_not_there_and_what_is_no_kind_are_told_apart() {
    let server = server();
    let (code, _, err) = run(server.meshctl("get mtp x -m pay"));
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("there is no MeshTrafficPermission x"), "{err}");
    let (code, _, err) = run(server.meshctl("get meshservises"));
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("Did you mean meshservices?"), "{err}");
    let (code, _, _) = run(server.meshctl("get mesh ../secrets"));
    assert_eq!(code, 2);
}

#[test]
fn what_only_zones_have_is_found_by_its_name_alone() {
    let ingress = json!({
        "type": "ZoneIngress", "name": "ingress-east", "revision": 3, "labels": {"isthmus.io/origin": "east"},
        "creationTime": "2026-01-01T00:00:00Z", "networking": {"address": "10.0.0.1", "port": 10001},
    });
    let mut other = ingress.clone();
    other["name"] = "ingress-west".into();
    let page = json!({"items": [ingress, other], "revision": 9});
    let missing =
        json!({"type": "not-found", "title": "there is no such ZoneIngress", "status": 404});
    let api = Router::new()
        .route("/v1/zoneingresses", get(move || async move { Json(page) }))
        .route(
            "/v1/zoneingresses/{name}",
            get(move || async move { (StatusCode::NOT_FOUND, Json(missing)) }),
        );
    let server = Server::start(api);
    let (code, out, err) = run(server.meshctl("get zoneingress ingress-east"));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("east     10.0.0.1:10001"), "{out}");
    assert!(!out.contains("ingress-west"), "{out}");
    let (code, _, err) = run(server.meshctl("get zoneingress ingress-north"));
    assert_eq!(code, 1);
    assert!(err.contains("there is no such ZoneIngress"), "{err}");
}

#[test]
fn dataplanes_of_a_zone_that_does_not_answer_are_said_to_be_missing() {
    let answer = json!({"items": [{
        "mesh": "pay", "zone": "east", "name": "web-1", "state": "online", "spiffeId": "", "version": "0.1.0",
        "services": ["web"], "certificateNotAfter": 0, "resource": {}, "documents": [],
    }], "unanswered": [{"zone": "west", "reason": "offline"}], "revision": 9});
    let api = Router::new().route(
        "/v1/meshes/pay/dataplanes",
        get(move || async move { Json(answer) }),
    );
    let (code, out, err) = run(Server::start(api).meshctl("get dataplanes -m pay"));
    assert_eq!(code, 1);
    assert!(out.contains("web-1"), "{out}");
    assert!(err.contains("zone west did not answer: offline"), "{err}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let server = server();
    let line = format!(
        "{} get msvc -m pay --server {} --token {} | head -1",
        assert_cmd::cargo::cargo_bin("meshctl").display(),
        server.url,
        server.token()
    );
    let output = std::process::Command::new("bash")
        .args(["-o", "pipefail", "-c", &line])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

/// Two meshes that the caller sees, each with a service and a dataplane.
fn two_meshes() -> Server {
    let service = |mesh: &str| {
        let mut service = mesh_service(1);
        service["mesh"] = mesh.into();
        service
    };
    let dataplanes = |axum::extract::Path(mesh): axum::extract::Path<String>| async move {
        let view = json!({
            "mesh": mesh, "zone": "east", "name": "web-1", "state": "online", "spiffeId": "", "version": "0.1.0",
            "services": ["web"], "certificateNotAfter": 0, "resource": {"type": "Dataplane", "mesh": mesh, "name": "web-1"},
            "documents": [],
        });
        let silent = json!([{"zone": "west", "reason": "it is away"}]);
        Json(json!({"items": [view], "unanswered": silent}))
    };
    let services = json!({"items": [service("ana"), service("pay")], "revision": 9});
    let meshes = json!({"items": [{"type": "Mesh", "name": "pay"}, {"type": "Mesh", "name": "ana"}], "revision": 9});
    Server::start(
        Router::new()
            .route(
                "/v1/meshservices",
                get(move || async move { Json(services) }),
            )
            .route("/v1/meshes", get(move || async move { Json(meshes) }))
            .route("/v1/meshes/{mesh}/dataplanes", get(dataplanes)),
    )
}

#[test]
fn all_meshes_are_one_list_with_a_column() {
    let server = two_meshes();
    // Whatever mesh the environment names.
    for line in ["get msvc -A -m pay", "get msvc s0001 -A"] {
        let (code, out, err) = run(server.meshctl(line));
        assert_eq!(code, 0, "{err}");
        let lines: Vec<_> = out.lines().collect();
        assert!(lines[0].starts_with("MESH   NAME    ORIGIN "), "{out}");
        assert!(lines[1].starts_with("ana    s0001 "), "{out}");
        assert!(lines[2].starts_with("pay    s0001 "), "{out}");
        assert_eq!(lines.len(), 3, "{out}");
    }
    let (code, _, err) = run(server.meshctl("get msvc nowhere -A"));
    assert_eq!(code, 1);
    assert!(
        err.contains("no meshservice/nowhere in any mesh that you may see"),
        "{err}"
    );
    // What is outside any mesh is listed as ever.
    let (code, out, err) = run(server.meshctl("get meshes -A"));
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("NAME "), "{out}");
}

#[test]
fn the_dataplanes_of_all_meshes_are_one_list_and_a_silent_zone_is_named_once() {
    let server = two_meshes();
    let (code, out, err) = run(server.meshctl("get dataplanes -A"));
    assert_eq!(code, 1, "{out}");
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("MESH   NAME    ZONE "), "{out}");
    assert!(lines[1].starts_with("ana    web-1   east "), "{out}");
    assert!(lines[2].starts_with("pay    web-1   east "), "{out}");
    assert_eq!(err.matches("zone west did not answer").count(), 1, "{err}");
}
