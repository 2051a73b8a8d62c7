//! Who is at the other end, and what is said where it is not the right one.

use std::net::TcpListener;

use axum::{Json, Router, http::StatusCode, routing::get};
use serde_json::json;

use crate::server::{Server, meshctl, run};

fn version() -> Router {
    Router::new().route(
        "/v1/version",
        get(|| async { Json(json!({"version": "9.9.9"})) }),
    )
}

#[test]
fn the_pin_in_the_token_is_all_that_is_needed_to_know_the_server() {
    let server = Server::start(version());
    let (code, out, err) = run(server.meshctl("version"));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("server  9.9.9"), "{out}");
}

#[test]
fn a_token_of_another_installation_is_never_sent() {
    let (server, other) = (Server::start(version()), Server::start(version()));
    let mut command = server.meshctl("version");
    command.env("ISTHMUS_TOKEN", other.token());
    let (code, out, err) = run(command);
    assert_eq!(code, 1);
    assert!(
        out.contains("client"),
        "the client's own version is known: {out}"
    );
    assert!(err.contains("not to be trusted"), "{err}");
    assert!(err.contains("not the one this token pins"), "{err}");
    assert!(server.seen().is_empty());
}

#[test]
fn a_zone_is_not_taken_for_global() {
    let server = Server::start_as("spiffe://isthmus.local/zone/east", version());
    let (code, _, err) = run(server.meshctl("global status"));
    assert_eq!(code, 1);
    assert!(err.contains("control plane of zone east"), "{err}");
    assert!(err.contains("meshctl talks to the global one"), "{err}");
}

#[test]
fn a_ca_file_stands_in_for_the_pin() {
    let server = Server::start(version());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    std::fs::write(&path, &server.ca_pem).unwrap();
    let mut command = meshctl("version --ca-file");
    command.arg(&path).env("ISTHMUS_SERVER", &server.url);
    let (code, out, err) = run(command);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("9.9.9"));

    let other = Server::start(version());
    let mut command = meshctl("version --ca-file");
    command.arg(&path).env("ISTHMUS_SERVER", &other.url);
    let (code, _, err) = run(command);
    assert_eq!(code, 1);
    assert!(err.contains("not to be trusted"), "{err}");
}

#[test]
fn a_server_that_is_not_there_is_named_with_what_to_do() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (code, _, err) = run(meshctl(&format!(
        "get meshes --server https://{free} --token isthmus.a.b.c"
    )));
    assert_eq!(code, 1);
    assert!(err.contains(&format!("https://{free}")), "{err}");
    assert!(err.contains("Does global-cp run there?"), "{err}");
    assert!(err.contains("--server"), "{err}");
}

#[test]
fn a_token_that_expired_is_said_to_have() {
    let problem = json!({"type": "unauthorized", "title": "the token is not valid", "status": 401});
    let api = Router::new().route(
        "/v1/meshes",
        get(move || async move { (StatusCode::UNAUTHORIZED, Json(problem)) }),
    );
    let (code, _, err) = run(Server::start(api).meshctl("get meshes"));
    assert_eq!(code, 1);
    assert!(err.contains("expired, revoked"), "{err}");
}

#[test]
fn another_sort_of_token_is_told_where_it_belongs() {
    for (token, words) in [
        // {"use":"dataplane","pin":"p"}
        (
            "e30.eyJ1c2UiOiJkYXRhcGxhbmUiLCJwaW4iOiJwIn0.c2ln",
            "dataplane run --token-file",
        ),
        ("nonsense", "no API token"),
    ] {
        let (code, _, err) = run(meshctl(&format!("get meshes --token {token}")));
        assert_eq!(code, 2);
        assert!(err.contains(words), "{err}");
    }
    let (code, _, err) = run(meshctl("get meshes"));
    assert_eq!(code, 2);
    assert!(err.contains("ISTHMUS_TOKEN"), "{err}");
}

#[test]
fn what_is_no_api_is_not_taken_for_one() {
    let api = Router::new().fallback(|| async { "<html>hello" });
    let (code, _, err) = run(Server::start(api).meshctl("get meshes"));
    assert_eq!(code, 1);
    assert!(err.contains("not as the API of global-cp"), "{err}");
    assert!(err.contains("5682"), "{err}");
}
