//! Writing: what is sent, and what is said where it is refused.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Json, Router, http::StatusCode, routing::post};
use serde_json::{Value, json};

use crate::server::{Server, run};

const MESH: &str = "type: Mesh\nname: pay\n";
const ZONE: &str = "type: Zone\nname: east\n";

/// Accepts everything, in revision 17.
async fn accept(Json(batch): Json<Value>) -> Json<Value> {
    let results = |field: &str, outcome: &str| {
        let items = batch[field].as_array().cloned().unwrap_or_default();
        items
            .into_iter()
            .map(|item| {
                let mut key = json!({"type": item["type"], "name": item["name"]});
                if item["mesh"].is_string() {
                    key["mesh"] = item["mesh"].clone();
                }
                json!({"key": key, "outcome": outcome})
            })
            .collect::<Vec<_>>()
    };
    let mut all = results("put", "created");
    all.extend(results("delete", "deleted"));
    Json(json!({"revision": 17, "results": all, "warnings": ["mind the gap"]}))
}

fn server() -> Server {
    Server::start(Router::new().route("/v1/batch", post(accept)))
}

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn a_folder_is_one_batch() {
    let (server, dir) = (server(), tempfile::tempdir().unwrap());
    write(dir.path(), "a.yaml", MESH);
    write(dir.path(), "deep/b.yml", ZONE);
    let mut command = server.meshctl("apply -f");
    command.arg(dir.path());
    let (code, out, err) = run(command);
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, "mesh/pay created\nzone/east created\nrevision 17\n");
    assert_eq!(err, "warning: mind the gap\n");
    let [request] = server.seen().try_into().unwrap();
    assert_eq!(request.body["put"].as_array().unwrap().len(), 2);
    assert!(request.request_id.is_some());
}

#[test]
fn what_is_known_at_once_about_what_was_written_is_told() {
    let policy = json!({"type": "MeshTrafficPermission", "mesh": "pay", "name": "p"});
    let written = json!({"revision": 17, "results": [{"key": policy, "outcome": "created"}], "conditions": [
        {"key": policy, "type": "ResolvedRefs", "status": false, "reason": "NoSuchService", "message": "there is no api"},
        {"key": policy, "type": "Effective", "status": true, "reason": "Effective", "message": "all is well"},
    ]});
    let server =
        Server::start(Router::new().route("/v1/batch", post(move || async move { Json(written) })));
    let mut command = server.meshctl("apply -f -");
    command.write_stdin("type: MeshTrafficPermission\nmesh: pay\nname: p\nspec: {rules: []}\n");
    let (code, _, err) = run(command);
    assert_eq!(code, 0, "{err}");
    assert_eq!(server.seen()[0].uri, "/v1/batch?conditions=true");
    assert_eq!(
        err,
        "warning: meshtrafficpermission/p in mesh pay: NoSuchService: there is no api\n"
    );
}

#[test]
fn standard_input_is_taken_and_a_dry_run_says_that_it_was_one() {
    let server = server();
    let mut command = server.meshctl("apply --dry-run -f -");
    command.write_stdin(format!("{MESH}---\n{ZONE}"));
    let (code, _, err) = run(command);
    assert_eq!(code, 0, "{err}");
    assert_eq!(server.seen()[0].uri, "/v1/batch?dry_run=true");
}

#[test]
fn what_names_no_mesh_gets_the_one_that_was_typed() {
    let server = server();
    let mut command = server.meshctl("apply -m pay -f -");
    command.write_stdin("type: Secret\nname: s\ndata: aGVsbG8=\n");
    let (code, out, err) = run(command);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("secret/s in mesh pay created"), "{out}");
}

#[test]
fn bad_input_names_every_violation_of_every_file_and_nothing_is_sent() {
    let (server, dir) = (server(), tempfile::tempdir().unwrap());
    write(dir.path(), "a.yaml", "type: Mesh\nname: Pay\n");
    write(
        dir.path(),
        "b.yaml",
        "type: Zone\nname: east\nenable: true\n",
    );
    write(dir.path(), "c.yaml", ": [\n");
    for line in [
        "apply -f",
        "apply --dry-run -f",
        "apply --wait -f",
        "delete -f",
    ] {
        let mut command = server.meshctl(line);
        command.arg(dir.path());
        let (code, out, err) = run(command);
        assert_eq!(code, 2, "{err}");
        assert!(out.is_empty());
        for place in ["a.yaml:2:", "b.yaml:3:", "c.yaml:"] {
            assert!(err.contains(place), "{place} in {err}");
        }
    }
    assert!(server.seen().is_empty());
}

#[test]
fn what_the_server_refuses_is_said_of_the_file() {
    let problem = json!({"type": "invalid", "title": "one thing is wrong", "status": 422, "violations": [
        {"source": "request body", "path": "put[1].spec.x", "message": "is not to the server's taste"},
    ]});
    let api = Router::new().route(
        "/v1/batch",
        post(move || async move { (StatusCode::UNPROCESSABLE_ENTITY, Json(problem)) }),
    );
    let (server, dir) = (Server::start(api), tempfile::tempdir().unwrap());
    write(dir.path(), "a.yaml", MESH);
    write(dir.path(), "b.yaml", ZONE);
    let mut command = server.meshctl("apply -f");
    command.arg(dir.path());
    let (code, _, err) = run(command);
    assert_eq!(code, 2);
    let line = "b.yaml: zone/east: spec.x: is not to the server's taste";
    assert!(err.contains(line), "{err}");
}

#[test]
fn a_write_that_meets_an_election_is_sent_again_with_the_same_id() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let api = Router::new().route(
        "/v1/batch",
        post(move |body: Json<Value>| async move {
            if attempts.fetch_add(1, Ordering::Relaxed) == 0 {
                let problem = json!({"type": "unavailable", "title": "no leader", "status": 503});
                return Err((StatusCode::SERVICE_UNAVAILABLE, Json(problem)));
            }
            Ok(accept(body).await)
        }),
    );
    let server = Server::start(api);
    let mut command = server.meshctl("apply -f -");
    command.write_stdin(MESH);
    let (code, _, err) = run(command);
    assert_eq!(code, 0, "{err}");
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].request_id, seen[1].request_id);
}

#[test]
fn several_are_deleted_at_once() {
    let server = server();
    let (code, out, err) = run(server.meshctl("delete zones east west"));
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, "zone/east deleted\nzone/west deleted\nrevision 17\n");
    assert_eq!(server.seen()[0].body["delete"][1]["name"], "west");
}

#[test]
fn deleting_what_is_not_there_fails_unless_that_is_fine() {
    let answer = json!({"revision": 3, "results": [
        {"key": {"type": "Zone", "name": "east"}, "outcome": "notFound"},
    ]});
    let api = Router::new().route("/v1/batch", post(move || async move { Json(answer) }));
    let server = Server::start(api);
    let (code, _, err) = run(server.meshctl("delete zone east"));
    assert_eq!(code, 1);
    assert!(err.contains("not found: zone/east"), "{err}");
    let (code, _, _) = run(server.meshctl("delete zone east --ignore-not-found"));
    assert_eq!(code, 0);
}
