//! Editing: nothing is sent without need, nothing is lost, and nobody's change is overwritten unseen.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Json, Router,
    http::{HeaderMap, StatusCode},
    routing::get,
};
use serde_json::{Value, json};

use crate::server::{Server, run};

fn mesh(zones: Value, revision: u64) -> Value {
    json!({
        "type": "Mesh", "name": "pay", "zones": zones, "revision": revision, "creationTime": "2026-01-01T00:00:00Z",
        "modificationTime": "2026-01-01T00:00:00Z", "labels": {"isthmus.io/origin": "global"},
    })
}

/// Has the mesh at revision 7 until something was put against 7 `conflicts` times, then at 8.
fn server(conflicts: usize, refusal: Option<Value>) -> Server {
    let puts = Arc::new(AtomicUsize::new(0));
    let seen = puts.clone();
    let read = move || {
        let (revision, zones) = match seen.load(Ordering::Relaxed) {
            0 => (7, json!(["west"])),
            _ if conflicts > 0 => (8, json!(["west", "north"])),
            _ => (7, json!(["west"])),
        };
        async move { Json(mesh(zones, revision)) }
    };
    let put = move |headers: HeaderMap, Json(body): Json<Value>| {
        let attempt = puts.fetch_add(1, Ordering::Relaxed);
        let refusal = refusal.clone();
        async move {
            if attempt < conflicts {
                let problem = json!({"type": "precondition", "title": "the revision is another one", "status": 412});
                return (StatusCode::PRECONDITION_FAILED, Json(problem));
            }
            if let Some(problem) = refusal.filter(|_| body["zones"][0] == "bad") {
                return (StatusCode::UNPROCESSABLE_ENTITY, Json(problem));
            }
            let wanted = if conflicts > 0 { "\"8\"" } else { "\"7\"" };
            assert_eq!(headers["if-match"], wanted);
            let key = json!({"type": "Mesh", "name": "pay"});
            let results = json!([{"key": key, "outcome": "updated"}]);
            (
                StatusCode::OK,
                Json(json!({"revision": 9, "results": results})),
            )
        }
    };
    Server::start(Router::new().route("/v1/meshes/pay", get(read).put(put)))
}

/// Edits with a script that gets the file as its argument, and in `$N` how often it was called.
fn edit(server: &Server, dir: &Path, script: &str) -> (i32, String, String) {
    let editor = dir.join("editor");
    let count = dir.join("count");
    let text = format!(
        "#!/bin/sh\necho x >> {count}\nN=$(wc -l < {count})\ncp \"$1\" {copy}.$N\n{script}\n",
        count = count.display(),
        copy = dir.join("shown").display(),
    );
    fs::write(&editor, text).unwrap();
    fs::set_permissions(&editor, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = server.meshctl("edit mesh pay");
    command
        .env("VISUAL", &editor)
        .env("EDITOR", "false")
        .env("TMPDIR", dir);
    run(command)
}

/// What the editor was given the `n`th time.
fn shown(dir: &Path, n: usize) -> String {
    fs::read_to_string(dir.join(format!("shown.{n}"))).unwrap()
}

fn drafts(dir: &Path) -> usize {
    let names = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("meshctl-"))
        .count()
}

#[test]
fn what_was_changed_is_sent_against_the_revision_that_was_read() {
    let (server, dir) = (server(0, None), tempfile::tempdir().unwrap());
    let (code, out, err) = edit(&server, dir.path(), "sed -i s/west/east/ \"$1\"");
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, "mesh/pay updated\nrevision 9\n");
    let text = shown(dir.path(), 1);
    assert!(text.contains("\ntype: Mesh\nname: pay\n"), "{text}");
    assert!(
        !text.contains("creationTime") && !text.contains("origin"),
        "{text}"
    );
    assert_eq!(server.seen()[1].body["zones"], json!(["east"]));
    assert_eq!(drafts(dir.path()), 0);
}

#[test]
fn where_nothing_was_changed_nothing_is_sent() {
    for script in ["true", ": > \"$1\""] {
        let (server, dir) = (server(0, None), tempfile::tempdir().unwrap());
        let (code, out, err) = edit(&server, dir.path(), script);
        assert_eq!(code, 0, "{err}");
        assert_eq!(out, "nothing was changed\n");
        assert_eq!(server.seen().len(), 1);
        assert_eq!(drafts(dir.path()), 0);
    }
}

#[test]
fn what_is_wrong_stands_in_the_editor_that_opens_again() {
    let (server, dir) = (server(0, None), tempfile::tempdir().unwrap());
    let script = "if [ $N = 1 ]; then sed -i 's/^zones:/zoness:/' \"$1\"; else sed -i 's/^zoness:/zones:/; s/west/east/' \"$1\"; fi";
    let (code, _, err) = edit(&server, dir.path(), script);
    assert_eq!(code, 0, "{err}");
    let text = shown(dir.path(), 2);
    assert!(text.contains("#: ") && text.contains("zoness"), "{text}");
    assert!(text.contains("did you mean"), "{text}");
    // The line it names is the line it stands at.
    let at = text
        .lines()
        .position(|line| line.starts_with("zoness"))
        .unwrap()
        + 1;
    assert!(text.contains(&format!("{at}:1: zoness")), "{text}");
    assert_eq!(server.seen()[1].body["zones"], json!(["east"]));
}

#[test]
fn what_the_server_refuses_stands_there_too() {
    let problem = json!({"type": "invalid", "title": "wrong", "status": 422, "violations": [
        {"source": "", "path": "zones[0]", "message": "is not to the server's taste"},
    ]});
    let (server, dir) = (server(0, Some(problem)), tempfile::tempdir().unwrap());
    let script =
        "if [ $N = 1 ]; then sed -i 's/west/bad/' \"$1\"; else sed -i 's/bad/good/' \"$1\"; fi";
    let (code, _, err) = edit(&server, dir.path(), script);
    assert_eq!(code, 0, "{err}");
    let text = shown(dir.path(), 2);
    assert!(
        text.contains("zones[0]: is not to the server's taste"),
        "{text}"
    );
    assert!(text.contains("- bad"), "what was typed is kept: {text}");
}

#[test]
fn leaving_what_is_wrong_as_it_is_ends_and_keeps_the_text() {
    let (server, dir) = (server(0, None), tempfile::tempdir().unwrap());
    let script = "if [ $N = 1 ]; then sed -i 's/^name: pay/name: other/' \"$1\"; fi";
    let (code, _, err) = edit(&server, dir.path(), script);
    assert_eq!(code, 2);
    assert!(err.contains("mesh/other now"), "{err}");
    assert!(err.contains("Your text is kept in"), "{err}");
    assert_eq!(server.seen().len(), 1);
    assert_eq!(drafts(dir.path()), 1);
}

#[test]
fn a_change_by_somebody_else_is_shown_before_it_is_replaced() {
    let (server, dir) = (server(1, None), tempfile::tempdir().unwrap());
    let script =
        "if [ $N = 1 ]; then sed -i 's/west/east/' \"$1\"; else echo '- north' >> \"$1\"; fi";
    let (code, _, err) = edit(&server, dir.path(), script);
    assert_eq!(code, 0, "{err}");
    let text = shown(dir.path(), 2);
    assert!(
        text.contains("Somebody changed it meanwhile: revision 8"),
        "{text}"
    );
    assert!(text.contains("#: + - north"), "{text}");
    let seen = server.seen();
    assert_eq!(seen.last().unwrap().body["zones"], json!(["east", "north"]));
}

#[test]
fn an_editor_that_fails_sends_nothing() {
    let (server, dir) = (server(0, None), tempfile::tempdir().unwrap());
    let (code, _, err) = edit(&server, dir.path(), "exit 3");
    assert_eq!(code, 1);
    assert!(
        err.contains("nothing was sent") && err.contains("VISUAL"),
        "{err}"
    );
    for (line, words) in [
        ("edit mesh", "KIND NAME"),
        ("edit mesh a b", "one resource at a time"),
        ("edit dataplane web-1", "is not edited here"),
        ("edit zoneingress in", "is not edited here"),
    ] {
        let (code, _, err) = run(server.meshctl(line));
        assert_eq!(code, 2, "{line}: {err}");
        assert!(err.contains(words), "{line}: {err}");
    }
}
