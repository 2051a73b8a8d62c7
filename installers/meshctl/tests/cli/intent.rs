//! What would change, and going back: diff, plan, rollback, history.

use axum::{
    Json, Router,
    http::StatusCode,
    routing::{get, post},
};
use serde_json::{Value, json};

use crate::server::{Server, run};

const MESH: &str = "type: Mesh\nname: pay\nzones: [east]\n";

fn diff() -> Value {
    let mesh = |zones: Value| json!({"type": "Mesh", "name": "pay", "zones": zones});
    json!({"revision": 9, "warnings": ["mind the gap"], "items": [
        {"key": {"type": "Mesh", "name": "pay"}, "outcome": "updated", "fields": ["zones"],
         "before": mesh(json!(["west"])), "after": mesh(json!(["east"]))},
        {"key": {"type": "Zone", "name": "east"}, "outcome": "unchanged"},
    ]})
}

fn plan() -> Value {
    json!({"diff": diff(), "zones": [{
        "zone": "east", "dataplanes": 3, "affected": 1,
        "changes": [{"mesh": "pay", "name": "web-1", "settings": [
            {"of": "inbound http", "setting": "permissions", "before": "allow web (a#0)"},
        ]}],
        "conditions": [{"key": {"type": "MeshTimeout", "mesh": "pay", "name": "t"}, "type": "Effective", "status": false,
                        "reason": "SelectsNothing", "message": "no dataplane has these labels"}],
    }]})
}

fn answering(path: &str, answer: Value) -> Server {
    Server::start(Router::new().route(path, post(move || async move { Json(answer) })))
}

fn with_input(server: &Server, line: &str, input: &str) -> (i32, String, String) {
    let mut command = server.meshctl(line);
    command.write_stdin(input);
    run(command)
}

#[test]
fn a_diff_shows_the_lines_that_would_change_and_nothing_else() {
    let server = answering("/v1/diff", diff());
    let (code, out, err) = with_input(&server, "diff -f -", MESH);
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        out,
        "mesh/pay would be updated\n  type: Mesh\n  name: pay\n  zones:\n- - west\n+ - east\n1 more stay as they are\n"
    );
    assert_eq!(err, "warning: mind the gap\n");
    assert_eq!(server.seen()[0].body["put"][0]["name"], "pay");

    let (_, out, _) = with_input(&server, "diff -f - -o name", MESH);
    assert_eq!(out, "mesh/pay\n");
    let (_, out, _) = with_input(&server, "diff -f - -o jsonpath={.items[*].outcome}", MESH);
    assert_eq!(out, "updated unchanged\n");
}

#[test]
fn a_diff_tells_scripts_whether_something_would_change() {
    let server = answering("/v1/diff", diff());
    let (code, _, err) = with_input(&server, "diff -f - --exit-code", MESH);
    assert_eq!(code, 4);
    assert!(err.contains("1 of 2 resources would change"), "{err}");

    let same = json!({"revision": 9, "items": [{"key": {"type": "Mesh", "name": "pay"}, "outcome": "unchanged"}]});
    let server = answering("/v1/diff", same);
    let (code, out, _) = with_input(&server, "diff -f - --exit-code", MESH);
    assert_eq!(code, 0);
    assert_eq!(out, "nothing would change: all is as it is at revision 9\n");
    let (code, out, _) = with_input(&server, "diff -f - -o name", MESH);
    assert_eq!((code, out.as_str()), (0, ""));
}

#[test]
fn deleting_can_be_looked_at_first() {
    for (line, path, answer) in [
        ("diff --delete -f -", "/v1/diff", diff()),
        ("plan --delete -f -", "/v1/plan", plan()),
    ] {
        let server = answering(path, answer);
        let (code, _, err) = with_input(&server, line, MESH);
        assert_eq!(code, 0, "{err}");
        let body = &server.seen()[0].body;
        assert_eq!(body["delete"][0]["name"], "pay");
        assert_eq!(body["put"], json!([]));
    }
}

#[test]
fn what_the_server_refuses_to_compare_is_said_of_the_file() {
    let problem = json!({"type": "invalid", "title": "wrong", "status": 422, "violations": [
        {"source": "request body", "path": "put[0].zones[0]", "message": "no such zone"},
    ]});
    for command in ["diff", "plan"] {
        let problem = problem.clone();
        let refuse = post(move || async move { (StatusCode::UNPROCESSABLE_ENTITY, Json(problem)) });
        let server = Server::start(Router::new().route(&format!("/v1/{command}"), refuse));
        let (code, _, err) = with_input(&server, &format!("{command} -f -"), MESH);
        assert_eq!(code, 2);
        assert!(
            err.contains("standard input: mesh/pay: zones[0]: no such zone"),
            "{err}"
        );
        let (code, _, err) =
            with_input(&server, &format!("{command} -f -"), "type: Mesh\nname: P\n");
        assert_eq!(code, 2);
        assert!(err.contains("standard input:2:"), "{err}");
    }
}

#[test]
fn a_plan_names_zones_dataplanes_and_settings() {
    let server = answering("/v1/plan", plan());
    let (code, out, err) = with_input(&server, "plan -f -", MESH);
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        out,
        "mesh/pay would be updated (zones)\n\nzone east: 1 of 3 dataplanes would change\n  pay/web-1\n    \
         inbound http: permissions: gone: allow web (a#0)\n  \
         meshtimeout/t: SelectsNothing: no dataplane has these labels\n"
    );
    let (_, out, _) = with_input(&server, "plan -f - -o wide", MESH);
    assert!(out.contains("- - west"), "{out}");
    let (_, out, _) = with_input(&server, "plan -f - -o name", MESH);
    assert_eq!(out, "dataplane/web-1\n");
}

#[test]
fn a_plan_that_some_zone_did_not_answer_for_is_no_success() {
    let mut plan = plan();
    plan["unanswered"] = json!([{"zone": "west", "reason": "offline"}]);
    let server = answering("/v1/plan", plan);
    let (code, out, err) = with_input(&server, "plan -f -", MESH);
    assert_eq!(code, 1);
    assert!(out.contains("zone east"), "{out}");
    assert!(err.contains("zone west did not answer: offline"), "{err}");
}

#[test]
fn a_plan_that_dataplanes_would_refuse_exits_4() {
    let mut plan = plan();
    plan["zones"][0]["changes"][0]["missingFeatures"] = json!(["tcp-routes"]);
    let server = answering("/v1/plan", plan);
    let (code, _, err) = with_input(&server, "plan -f -", MESH);
    assert_eq!(code, 4);
    assert!(
        err.contains("zone east: dataplane pay/web-1 would refuse it: it does not know tcp-routes"),
        "{err}"
    );
}

fn rollback_server() -> Server {
    let written = json!({"revision": 18, "results": [
        {"key": {"type": "Secret", "mesh": "pay", "name": "s"}, "outcome": "updated"},
    ]});
    let rollout = json!({"revision": 18, "complete": true, "zones": []});
    Server::start(
        Router::new()
            .route("/v1/rollback", post(move || async move { Json(written) }))
            .route("/v1/rollout/18", get(move || async move { Json(rollout) })),
    )
}

#[test]
fn named_resources_are_brought_back_as_one_change() {
    let server = rollback_server();
    let (code, out, err) = run(server.meshctl("rollback secret s t -m pay --to 5 --wait"));
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, "secret/s in mesh pay updated\nrevision 18\n");
    let seen = server.seen();
    let key = |name: &str| json!({"type": "Secret", "mesh": "pay", "name": name});
    assert_eq!(seen[0].body, json!({"to": 5, "keys": [key("s"), key("t")]}));
    assert_eq!(seen[1].uri, "/v1/rollout/18?mesh=pay");
}

#[test]
fn a_whole_mesh_is_brought_back_only_where_that_is_said_to_be_meant() {
    let server = rollback_server();
    let (code, _, err) = run(server.meshctl("rollback -m pay --to 5"));
    assert_eq!(code, 2);
    assert!(
        err.contains("everything in mesh pay since revision 5"),
        "{err}"
    );
    assert!(err.contains("--dry-run") && err.contains("--yes"), "{err}");
    assert!(server.seen().is_empty());
    let (code, _, err) = run(server.meshctl("rollback -m pay --to 5 --yes"));
    assert_eq!(code, 0, "{err}");
    assert_eq!(server.seen()[0].body, json!({"to": 5, "mesh": "pay"}));
    let (code, _, err) = run(server.meshctl("rollback -m pay --to 5 --dry-run -o json"));
    assert_eq!(code, 0, "{err}");
    assert_eq!(server.seen()[1].uri, "/v1/rollback?dry_run=true");
}

#[test]
fn what_can_not_be_brought_back_is_told() {
    let server = rollback_server();
    for (line, words) in [
        ("rollback secret s", "--to"),
        ("rollback secret s --to 0", "0"),
        ("rollback secret --to 5", "which secrets?"),
        ("rollback dataplane web-1 --to 5", "no history"),
        ("rollback secrt s --to 5", "Did you mean secret?"),
        ("rollback secret s --to 5 --dry-run --wait", "--wait"),
        ("history dataplane web-1", "no history"),
        ("history secret", "KIND NAME"),
    ] {
        let (code, _, err) = run(server.meshctl(line));
        assert_eq!(code, 2, "{line}: {err}");
        assert!(err.contains(words), "{line}: {err}");
    }
    let nothing = answering("/v1/rollback", json!({"revision": 5, "results": []}));
    let (code, out, _) = run(nothing.meshctl("rollback secret s --to 5"));
    assert_eq!(code, 0);
    assert!(out.contains("nothing to bring back"), "{out}");
}

#[test]
fn a_history_is_shown_in_each_format() {
    let item = |revision: u64, there: bool| {
        let mut item =
            json!({"revision": revision, "time": "2026-01-01T00:00:00Z", "actor": "token/a"});
        if there {
            item["resource"] = json!({"type": "Zone", "name": "east"});
        }
        item
    };
    let answer = json!({"items": [item(7, false), item(5, true)], "truncated": true});
    let api = Router::new().route(
        "/v1/zones/east/history",
        get(move || async move { Json(answer) }),
    );
    let server = Server::start(api);
    let shown = |format: &str| {
        let (code, out, err) = run(server.meshctl(&format!("history zone east -o {format}")));
        assert_eq!(code, 0, "{err}");
        assert!(err.contains("bounded"), "{err}");
        out
    };
    assert!(shown("table").contains("deleted"));
    assert_eq!(shown("name"), "7\n5\n");
    assert_eq!(shown("jsonpath={.items[*].revision}"), "7 5\n");
    assert!(shown("yaml").contains("---\n"));
}
