//! Watching: every change once, whatever becomes of the connection.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::Query,
    http::{StatusCode, header},
    response::IntoResponse as _,
    routing::get,
};
use serde_json::json;

use crate::server::{Server, run};

fn event(revision: u64, name: &str, last: bool) -> String {
    let id = if last {
        format!("id: {revision}\n")
    } else {
        String::new()
    };
    let data = json!({"revision": revision, "key": {"type": "Mesh", "name": name},
                      "resource": {"type": "Mesh", "name": name, "labels": {"team": "a"}, "modificationTime": "now"}});
    format!("{id}data: {data}\n\n")
}

/// Ends each connection after what `answers` says of it; the last one again and again.
fn server(answers: Vec<String>) -> Server {
    let asked = Arc::new(AtomicUsize::new(0));
    let watch = move || {
        let at = asked.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1);
        let body = answers[at].clone();
        async move { ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response() }
    };
    Server::start(Router::new().route("/v1/watch", get(watch)).route(
        "/v1/meshes",
        get(|| async { Json(json!({"items": [], "revision": 4})) }),
    ))
}

#[test]
fn a_connection_that_ends_is_gone_on_with_where_it_ended() {
    let server = server(vec![
        event(5, "a", false),
        format!(
            "{}{}event: bookmark\nid: 6\ndata: {{\"revision\": 6, \"historyId\": \"h\"}}\n\n",
            event(5, "a", false),
            event(5, "b", true)
        ),
        event(7, "c", true),
    ]);
    let (code, out, err) = run(server.meshctl("watch --count 3"));
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        out,
        "5  mesh/a written\n5  mesh/b written\n7  mesh/c written\n"
    );
    let froms: Vec<_> = server.seen().iter().map(|seen| seen.uri.clone()).collect();
    assert_eq!(
        froms,
        [
            "/v1/meshes?limit=1",
            "/v1/watch?from=4",
            "/v1/watch?from=4",
            "/v1/watch?from=6&history=h"
        ]
    );
}

#[test]
fn what_is_watched_is_asked_of_the_server() {
    let server = server(vec![event(9, "a", true)]);
    for (line, uri) in [
        (
            "watch secrets -m pay --from 3",
            "/v1/watch?type=secrets&mesh=pay&from=3",
        ),
        (
            "watch secrets -A -m pay --from 3",
            "/v1/watch?type=secrets&from=3",
        ),
        ("watch zones -m pay --from 3", "/v1/watch?type=zones&from=3"),
        ("watch -m pay --from 3", "/v1/watch?mesh=pay&from=3"),
        ("watch --from 3", "/v1/watch?from=3"),
    ] {
        let before = server.seen().len();
        let (code, _, err) = run(server.meshctl(&format!("{line} --count 1")));
        assert_eq!(code, 0, "{err}");
        assert_eq!(server.seen()[before].uri, uri, "{line}");
    }
}

#[test]
fn a_change_is_shown_in_each_format() {
    let server = server(vec![event(9, "a", true)]);
    for (format, shown) in [
        ("wide", "9  now  mesh/a written  team=a\n"),
        ("name", "mesh/a\n"),
        ("jsonpath={.resource.labels.team}", "a\n"),
    ] {
        let line = format!("watch --from 3 --count 1 -o {format}");
        assert_eq!(run(server.meshctl(&line)).1, shown);
    }
    let (_, out, _) = run(server.meshctl("watch --from 3 --count 1 -o json"));
    assert_eq!(out.lines().count(), 1, "{out}");
    let (_, out, _) = run(server.meshctl("watch --from 3 --count 1 -o yaml"));
    assert!(
        out.starts_with("---\n") && out.contains("revision: 9"),
        "{out}"
    );
}

#[test]
fn a_revision_that_is_forgotten_is_told_with_what_to_do() {
    let gone = "event: gone\ndata: {\"type\": \"gone\", \"title\": \"revision 1 is forgotten\", \"status\": 410}\n\n";
    let (code, _, err) = run(server(vec![gone.to_owned()]).meshctl("watch --from 1"));
    assert_eq!(code, 1);
    assert!(err.contains("revision 1 is forgotten"), "{err}");
    assert!(err.contains("leave --from out"), "{err}");
}

#[test]
fn a_watch_that_is_refused_ends_and_one_that_must_wait_does() {
    let answer = |query: Query<HashMap<String, String>>| async move {
        let status = if query.contains_key("mesh") { 403 } else { 400 };
        let problem = json!({"type": "refused", "title": "not for you", "status": status});
        (StatusCode::from_u16(status).unwrap(), Json(problem))
    };
    let server = Server::start(Router::new().route("/v1/watch", get(answer)));
    let (code, _, err) = run(server.meshctl("watch -m pay --from 1"));
    assert_eq!(code, 1);
    assert!(err.contains("not for you"), "{err}");
    assert_eq!(server.seen().len(), 1);

    for (line, words) in [
        ("watch dataplanes", "get dataplanes"),
        ("watch secrt", "Did you mean secret?"),
        ("watch --count 0", "0"),
        ("watch --from x", "--from"),
    ] {
        let (code, _, err) = run(server.meshctl(line));
        assert_eq!(code, 2, "{line}: {err}");
        assert!(err.contains(words), "{line}: {err}");
    }
}
