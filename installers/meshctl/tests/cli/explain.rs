//! Why things are as they are: inspect and explain.

use axum::{Json, Router, routing::get};
use serde_json::{Value, json};

use crate::server::{Server, run};

fn inbound(dataplane: &str, allowed: bool) -> Value {
    json!({
        "zone": "west", "dataplane": dataplane, "inbound": "http", "service": "api", "port": 80, "ready": true,
        "allowed": allowed, "origin": if allowed { json!("web-to-api#0") } else { Value::Null },
        "reason": if allowed { "allowed" } else { "no permission allows it" },
        "settings": ["idleTimeout 1h (built in)"],
    })
}

fn explanation(verdict: &str) -> Value {
    json!({"mesh": "pay", "from": "web", "to": "api", "calls": [{
        "caller": {
            "zone": "east", "dataplane": "web-1", "spiffeId": "spiffe://pay.east.mesh.local/workload/web",
            "service": "api", "port": 80, "outbound": "127.0.0.1:9000", "route": "meshtcproute/split",
            "backends": [
                {"service": "api", "port": 80, "weight": 90, "endpoints": ["10.0.0.9:80 (west, through ingress)"],
                 "zones": ["west"], "identities": ["spiffe://pay.west.mesh.local/workload/api"]},
                {"service": "api-v2", "port": 80, "weight": 10, "endpoints": [], "zones": [], "identities": [],
                 "error": "no such service"},
            ],
            "settings": ["connectionTimeout 5s (built in)"],
        },
        "inbounds": [inbound("api-1", verdict == "allowed")], "verdict": verdict, "reason": "web-to-api#0 says so",
    }]})
}

fn explaining(answer: Value) -> Server {
    let api = Router::new().route(
        "/v1/meshes/pay/explain",
        get(move || async move { Json(answer) }),
    );
    Server::start(api)
}

#[test]
fn an_explanation_says_whether_where_and_by_which_policy() {
    let server = explaining(explanation("allowed"));
    let (code, out, err) = run(server.meshctl("explain -m pay --from web --to api --port 80"));
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        server.seen()[0].uri,
        "/v1/meshes/pay/explain?from=web&to=api&port=80"
    );
    for line in [
        "web-1 (zone east) -> api:80: allowed",
        "  web-to-api#0 says so",
        "  calls as   spiffe://pay.east.mesh.local/workload/web",
        "  calls at   127.0.0.1:9000",
        "  route      meshtcproute/split",
        "  goes to    api:80, 90 of 100 calls",
        "    10.0.0.9:80 (west, through ingress)",
        "    fails: no such service",
        "  meets      api-1 (zone west), inbound http: allowed by web-to-api#0",
    ] {
        assert!(out.lines().any(|found| found == line), "{line:?} in\n{out}");
    }
    assert!(!out.contains("connectionTimeout"), "{out}");
    let (_, out, _) = run(server.meshctl("explain -m pay --from web --to api -o wide"));
    assert!(out.contains("connectionTimeout 5s (built in)"), "{out}");
    assert!(out.contains("accepts spiffe://pay.west"), "{out}");
    let (_, out, _) = run(server.meshctl("explain -m pay --from web --to api -o name"));
    assert_eq!(out, "allowed\n");
}

#[test]
fn a_request_is_asked_about_with_its_parts_and_shown_with_its_rule() {
    let mut answer = explanation("answered");
    answer["calls"][0]["caller"]["request"] = json!("GET /v2");
    answer["calls"][0]["caller"]["route"] = json!("MeshHTTPRoute/shop to[0].rules[0]");
    answer["calls"][0]["caller"]["rules"] = json!([{
        "matches": "path begins with /v2", "origin": "MeshHTTPRoute/shop to[0].rules[0]",
        "filters": ["rewrites path to /"], "backends": "90 api:80, 10 api-v2:80",
    }]);
    let server = explaining(answer);
    let line = "explain -m pay --from web --to api --path /v2 --header X-Env=dev --header b=1=2";
    let (code, out, err) = run(server.meshctl(line));
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        server.seen()[0].uri,
        "/v1/meshes/pay/explain?from=web&to=api&path=%2Fv2&headers=X-Env%3A+dev%0Ab%3A+1%3D2"
    );
    for line in [
        "  asks       GET /v2",
        "  route      MeshHTTPRoute/shop to[0].rules[0]",
        "  rule       path begins with /v2",
        "    rewrites path to /",
        "  goes to    api:80, 90 of 100 calls",
    ] {
        assert!(out.lines().any(|found| found == line), "{line:?} in\n{out}");
    }
}

#[test]
fn a_script_can_say_what_it_expects() {
    let code = |verdict: &str, expected: &str| {
        let server = explaining(explanation(verdict));
        run(server.meshctl(&format!(
            "explain -m pay --from web --to api --expect {expected}"
        )))
        .0
    };
    assert_eq!(code("allowed", "allowed"), 0);
    assert_eq!(code("allowed", "denied"), 4);
    assert_eq!(code("denied", "denied"), 0);
    assert_eq!(code("mixed", "allowed"), 4);
    let nobody = explaining(json!({"mesh": "pay", "from": "web", "to": "api", "calls": []}));
    let (code, out, _) = run(nobody.meshctl("explain -m pay --from web --to api --expect denied"));
    assert_eq!(code, 4);
    assert!(out.contains("meshctl get dataplanes -m pay"), "{out}");
}

#[test]
fn a_zone_that_does_not_answer_makes_an_explanation_incomplete() {
    let mut answer = explanation("allowed");
    answer["unanswered"] = json!([{"zone": "west", "reason": "offline"}]);
    let server = explaining(answer);
    let (code, out, err) =
        run(server.meshctl("explain -m pay --from web --to api --expect allowed"));
    assert_eq!(code, 1);
    assert!(out.contains("web-1"), "{out}");
    assert!(err.contains("zone west did not answer"), "{err}");
}

#[test]
fn what_can_not_be_asked_is_told() {
    let server = explaining(explanation("allowed"));
    for (line, words) in [
        ("explain --from web", "--to"),
        ("explain --from web --to ../x", "is not a name"),
        ("explain --from web --to api --port 0", "0"),
        ("explain --from web --to api --header x", "NAME=VALUE"),
        (
            "explain --from web --to api --path x",
            "must begin with '/'",
        ),
        (
            "explain --from web --to api --expect maybe",
            "allowed, denied",
        ),
        ("inspect policy meshservice web", "is no policy"),
        ("inspect policy mtp", "KIND NAME"),
        ("inspect policy mtp a b", "one policy at a time"),
        ("inspect service ..", "is not a name"),
        ("inspect dataplane ..", "is not a name"),
    ] {
        let (code, _, err) = run(server.meshctl(line));
        assert_eq!(code, 2, "{line}: {err}");
        assert!(err.contains(words), "{line}: {err}");
    }
    assert!(server.seen().is_empty());
}

#[test]
fn a_policy_is_inspected_with_whom_it_concerns_and_what_is_wrong() {
    let answer = json!({
        "resource": {"type": "MeshTrafficPermission", "mesh": "pay", "name": "web-to-api", "revision": 7, "spec": {}},
        "conditions": [
            {"key": {"type": "MeshTrafficPermission", "mesh": "pay", "name": "web-to-api"}, "type": "Effective",
             "status": false, "reason": "SelectsNothing", "message": "no dataplane has these labels", "zone": "west"},
            {"key": {"type": "MeshTrafficPermission", "mesh": "pay", "name": "web-to-api"}, "type": "Accepted",
             "status": true, "reason": "Accepted", "message": "all is well"},
        ],
        "zones": [{"zone": "east", "selected": 2, "dataplanes": ["api-1/http", "api-2/http"], "destinations": ["api:80"]},
                  {"zone": "west", "selected": 0, "dataplanes": []}],
    });
    let api = Router::new().route(
        "/v1/meshes/pay/meshtrafficpermissions/web-to-api/inspect",
        get(move || async move { Json(answer) }),
    );
    let server = Server::start(api);
    let (code, out, err) = run(server.meshctl("inspect policy mtp/web-to-api -m pay"));
    assert_eq!(code, 0, "{err}");
    for words in [
        "Target:    Mesh",
        "east: selects 2 dataplanes",
        "api-2/http",
        "to api:80",
        "west: selects no dataplane",
        "SelectsNothing: no dataplane has these labels (zone west)",
    ] {
        assert!(out.contains(words), "{words} in\n{out}");
    }
    assert!(!out.contains("all is well"), "{out}");
    let (_, out, _) = run(
        server.meshctl("inspect policy mtp web-to-api -m pay -o jsonpath={.zones[*].selected}")
    );
    assert_eq!(out, "2 0\n");
}

#[test]
fn a_service_is_inspected_with_who_serves_it() {
    let answer = json!({
        "mesh": "pay", "name": "api", "policies": ["MeshTimeout/fast to[0]"],
        "zones": [{"zone": "east", "identities": ["spiffe://pay.east.mesh.local/workload/api"], "ports": [
            {"port": 80, "name": "http", "appProtocol": "tcp", "endpoints": ["api-1 (10.0.0.1:80, ready)"]},
            {"port": 81, "name": "81", "appProtocol": "tcp", "endpoints": []},
        ]}],
    });
    let api = Router::new().route(
        "/v1/meshes/pay/services/api",
        get(move || async move { Json(answer) }),
    );
    let server = Server::start(api);
    let (code, out, err) = run(server.meshctl("inspect service api -m pay"));
    assert_eq!(code, 0, "{err}");
    for words in [
        "identity spiffe://pay.east.mesh.local/workload/api",
        "port 80 http (tcp)",
        "api-1 (10.0.0.1:80, ready)",
        "port 81 (tcp)",
        "no dataplane serves this port",
        "MeshTimeout/fast to[0]",
    ] {
        assert!(out.contains(words), "{words} in\n{out}");
    }
}
