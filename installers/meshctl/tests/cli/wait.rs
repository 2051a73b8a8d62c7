//! `apply --wait`: only what has acknowledged counts.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Json, Router,
    routing::{get, post},
};
use serde_json::{Value, json};

use crate::server::{Server, run};

fn zone(name: &str, applied: bool, dataplanes: u32, current: u32) -> Value {
    json!({
        "zone": name, "state": "online", "applied": applied, "dataplanes": dataplanes, "current": current,
        "pending": [], "silent": [], "refused": [], "refusedResources": [],
    })
}

/// A server that accepts a write as revision 17 and answers one roll-out after the other, the last one for ever.
fn server(rollouts: Vec<Value>) -> Server {
    let written = json!({"revision": 17, "results": [
        {"key": {"type": "Secret", "mesh": "pay", "name": "s"}, "outcome": "updated"},
    ]});
    let asked = Arc::new(AtomicUsize::new(0));
    let rollout = move || {
        let at = asked
            .fetch_add(1, Ordering::Relaxed)
            .min(rollouts.len() - 1);
        let answer = rollouts[at].clone();
        async move { Json(answer) }
    };
    Server::start(
        Router::new()
            .route("/v1/batch", post(move || async move { Json(written) }))
            .route("/v1/rollout/17", get(rollout)),
    )
}

fn apply(server: &Server, timeout: &str) -> (i32, String, String) {
    let mut command = server.meshctl(&format!("apply -f - --wait --timeout {timeout}"));
    command.write_stdin("type: Secret\nmesh: pay\nname: s\ndata: aGVsbG8=\n");
    run(command)
}

fn rollout(complete: bool, zones: Vec<Value>) -> Value {
    json!({"revision": 17, "complete": complete, "zones": zones})
}

#[test]
fn it_ends_when_every_dataplane_has_acknowledged() {
    let server = server(vec![
        rollout(
            false,
            vec![zone("east", true, 2, 1), zone("west", false, 3, 3)],
        ),
        rollout(
            false,
            vec![zone("east", true, 2, 2), zone("west", true, 3, 2)],
        ),
        rollout(
            true,
            vec![zone("east", true, 2, 2), zone("west", true, 3, 3)],
        ),
    ]);
    let (code, out, err) = apply(&server, "1m");
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("revision 17"), "{out}");
    assert_eq!(
        err,
        "revision 17: 1 of 5 dataplanes have acknowledged, waiting for east, west\n\
         revision 17: 4 of 5 dataplanes have acknowledged, waiting for west\n\
         revision 17: 5 of 5 dataplanes have acknowledged\n"
    );
    assert_eq!(server.seen()[1].uri, "/v1/rollout/17?mesh=pay");
}

#[test]
fn what_the_zones_say_of_what_was_written_is_told_at_the_end() {
    let policy = json!({"type": "MeshTrafficPermission", "mesh": "pay", "name": "p"});
    let written = json!({"revision": 17, "results": [{"key": policy, "outcome": "created"}]});
    let condition = json!({"key": policy, "type": "Effective", "status": false, "reason": "SelectsNothing",
                           "message": "it selects no dataplane here", "zone": "east"});
    let read = json!({"status": {"conditions": [condition]}});
    let complete = rollout(true, vec![zone("east", true, 2, 2)]);
    let server = Server::start(
        Router::new()
            .route("/v1/batch", post(move || async move { Json(written) }))
            .route("/v1/rollout/17", get(move || async move { Json(complete) }))
            .route(
                "/v1/meshes/pay/meshtrafficpermissions/p",
                get(move || async move { Json(read) }),
            ),
    );
    let mut command = server.meshctl("apply -f - --wait");
    command.write_stdin("type: MeshTrafficPermission\nmesh: pay\nname: p\nspec: {rules: []}\n");
    let (code, _, err) = run(command);
    assert_eq!(code, 0, "{err}");
    let line = "warning: meshtrafficpermission/p in mesh pay: SelectsNothing: it selects no dataplane here (zone east)";
    assert!(err.contains(line), "{err}");
}

#[test]
fn a_refusal_is_named_with_its_reason_and_exits_3() {
    let mut refusing = zone("east", true, 2, 1);
    refusing["refused"] =
        json!([{"dataplane": "pay/web", "document": "proxy", "reason": "requires http3"}]);
    let server = server(vec![rollout(false, vec![refusing])]);
    let (code, out, err) = apply(&server, "1m");
    assert_eq!(code, 3);
    assert!(
        out.contains("revision 17"),
        "the change is written all the same: {out}"
    );
    let line = "zone east: dataplane pay/web refused document proxy: requires http3";
    assert!(err.contains(line), "{err}");
    assert!(err.contains("1 of 2"), "{err}");
}

#[test]
fn silence_until_the_time_is_over_is_named_and_exits_3() {
    let mut silent = zone("west", true, 2, 0);
    silent["silent"] = json!(["pay/db"]);
    silent["pending"] = json!(["pay/web"]);
    let server = server(vec![rollout(false, vec![silent])]);
    let (code, _, err) = apply(&server, "100ms");
    assert_eq!(code, 3);
    assert!(
        err.contains("not in effect everywhere after 100ms"),
        "{err}"
    );
    assert!(
        err.contains("dataplane pay/db is silent: it is not connected"),
        "{err}"
    );
    assert!(
        err.contains("dataplane pay/web is silent: it was sent the change"),
        "{err}"
    );
}
