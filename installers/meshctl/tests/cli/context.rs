//! Contexts: kept, used, and weaker than what is typed.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use assert_cmd::Command;
use axum::{Json, Router, routing::get};
use serde_json::{Value, json};

use crate::server::{Server, meshctl, run};

fn server() -> Server {
    let page = || async { Json(json!({"items": [], "revision": 1})) };
    Server::start(
        Router::new()
            .route("/v1/meshes", get(page))
            .route("/v1/meshes/{mesh}/secrets", get(page)),
    )
}

/// `meshctl` with a file for contexts.
fn with(file: &Path, line: &str) -> Command {
    let mut command = meshctl(line);
    command.env("ISTHMUS_CONFIG", file);
    command
}

fn ok(command: Command) -> String {
    let (code, out, err) = run(command);
    assert_eq!(code, 0, "{err}");
    out
}

#[test]
fn a_context_stands_in_for_what_is_not_typed() {
    let (server, dir) = (server(), tempfile::tempdir().unwrap());
    let file = dir.path().join("deep/config.yaml");
    let token = server.token();
    let set = format!(
        "context set prod --server {} --token {token} -m pay",
        server.url
    );
    assert_eq!(
        ok(with(&file, &set)),
        "context/prod saved, the current one\n"
    );
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    ok(with(&file, "get secrets -o name"));
    ok(with(&file, "get secrets -o name -m ana"));
    let uris: Vec<_> = server.seen().iter().map(|seen| seen.uri.clone()).collect();
    assert!(uris[0].starts_with("/v1/meshes/pay/secrets"), "{uris:?}");
    assert!(uris[1].starts_with("/v1/meshes/ana/secrets"), "{uris:?}");

    let mut command = with(&file, "get secrets -o name");
    command.env("ISTHMUS_MESH", "env");
    ok(command);
    assert!(server.seen()[2].uri.starts_with("/v1/meshes/env/"));
}

#[test]
fn the_token_of_a_context_never_stands_beside_one_that_was_typed() {
    let (server, other, dir) = (server(), server(), tempfile::tempdir().unwrap());
    let file = dir.path().join("config.yaml");
    let token_file = dir.path().join("token");
    fs::write(&token_file, other.token()).unwrap();
    let set = format!(
        "context set prod --server {} --token-file {}",
        server.url,
        token_file.display()
    );
    ok(with(&file, &set));
    // A file goes before a token, but not one from a context.
    ok(with(
        &file,
        &format!("get meshes -o name --token {}", server.token()),
    ));
}

#[test]
fn contexts_are_listed_shown_used_and_deleted_without_their_secrets() {
    let (server, dir) = (server(), tempfile::tempdir().unwrap());
    let file = dir.path().join("config.yaml");
    ok(with(
        &file,
        &format!(
            "context set a --server {} --token {}",
            server.url,
            server.token()
        ),
    ));
    ok(with(&file, "context set b --server https://b:1 -m pay"));
    let list = ok(with(&file, "context list"));
    assert!(!list.contains("secret"), "{list}");
    assert!(list.contains("isthmus.id.…"), "{list}");
    assert!(list.lines().nth(1).unwrap().starts_with('*'), "{list}");
    assert_eq!(
        ok(with(&file, "context list -o name")),
        "context/a\ncontext/b\n"
    );

    assert_eq!(
        ok(with(&file, "context use b")),
        "context/b is the current one\n"
    );
    let shown: Value = serde_json::from_str(&ok(with(&file, "context show -o json"))).unwrap();
    assert_eq!(shown["name"], "b");
    assert_eq!(shown["mesh"], "pay");
    let text = ok(with(&file, "context show a"));
    assert!(
        text.contains(&server.url) && !text.contains("secret"),
        "{text}"
    );
    ok(with(&file, "get meshes -o name --context a"));

    // What is not given stays.
    ok(with(&file, "context set b --server https://c:1 --use"));
    let shown: Value = serde_json::from_str(&ok(with(&file, "context show b -o json"))).unwrap();
    assert_eq!(
        (&shown["mesh"], &shown["server"]),
        (&json!("pay"), &json!("https://c:1"))
    );

    assert_eq!(
        ok(with(&file, "context delete a b")),
        "context/a deleted\ncontext/b deleted\n"
    );
    let (code, out, err) = run(with(&file, "context list"));
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(err.contains("meshctl context set"), "{err}");
}

#[test]
fn what_could_never_work_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    for (line, words) in [
        ("context set a --server http://a", "https"),
        ("context set a --token nonsense", "no API token"),
        ("context set a --token-file /no/such/file", "/no/such/file"),
        ("context set a --ca-file /no/such/file", "/no/such/file"),
        ("context set a -m Pay", "is not a name"),
        ("context set A", "is not a name"),
        ("context use a", "context set a"),
        ("context delete a", "no context"),
        ("context show", "no context is the current one"),
        ("get meshes --context a", "no context"),
    ] {
        let (code, _, err) = run(with(&file, line));
        assert_eq!(code, 2, "{line}: {err}");
        assert!(err.contains(words), "{line}: {err}");
    }
    assert!(!file.exists());
    fs::write(&file, "contexts: [\n").unwrap();
    let (code, _, err) = run(with(&file, "get meshes"));
    assert_eq!(code, 2);
    assert!(err.contains("config.yaml") && err.contains("line"), "{err}");
}

#[test]
fn a_file_that_others_may_read_is_pointed_out() {
    let (server, dir) = (server(), tempfile::tempdir().unwrap());
    let file = dir.path().join("config.yaml");
    ok(with(
        &file,
        &format!(
            "context set a --server {} --token {}",
            server.url,
            server.token()
        ),
    ));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, _, err) = run(with(&file, "get meshes -o name"));
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("chmod 600"), "{err}");
}
