//! What deserves attention, and who did what: check and audit.

use std::collections::HashMap;

use axum::{Json, Router, extract::Query, http::StatusCode, routing::get};
use serde_json::{Value, json};

use crate::server::{Server, run};

fn checking(answer: Value) -> Server {
    Server::start(Router::new().route("/v1/check", get(move || async move { Json(answer) })))
}

fn expiry(subject: &str, seconds_left: i64) -> Value {
    json!({"subject": subject, "notAfter": "2026-12-24T00:00:00Z", "secondsLeft": seconds_left})
}

#[test]
fn an_installation_in_which_all_is_well_passes() {
    let server =
        checking(json!({"findings": [], "certificates": [expiry("installation CA", 9_000_000)]}));
    let (code, out, err) = run(server.meshctl("check --fail-if-expiring 30d"));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("nothing deserves attention"), "{out}");
    assert!(out.contains("installation CA   104d"), "{out}");
}

#[test]
fn a_finding_fails_the_check_with_what_to_do() {
    let finding = |severity: &str| {
        json!({"findings": [{"severity": severity, "subject": "zone west", "message": "is offline",
                             "remedy": "start zone-cp there"}], "certificates": []})
    };
    let server = checking(finding("error"));
    let (code, out, err) = run(server.meshctl("check"));
    assert_eq!(code, 4);
    assert!(out.contains("start zone-cp there"), "{out}");
    assert!(err.contains("one thing deserves attention"), "{err}");
    let (code, _, _) = run(server.meshctl("check --allow-warnings"));
    assert_eq!(code, 4);
    let server = checking(finding("warning"));
    assert_eq!(run(server.meshctl("check")).0, 4);
    assert_eq!(run(server.meshctl("check --allow-warnings")).0, 0);
    assert_eq!(
        run(server.meshctl("check --allow-warnings -o name")).1,
        "zone west\n"
    );
}

#[test]
fn an_authority_that_ends_soon_fails_the_check_where_that_is_asked_for() {
    let certificates = [
        expiry("dataplane pay/web-1", 3_600),
        expiry("CA of pay in west", 20 * 86_400),
        expiry("installation CA", 9_000_000),
    ];
    let server = checking(json!({"findings": [], "certificates": certificates}));
    assert_eq!(run(server.meshctl("check")).0, 0);
    let (code, _, err) = run(server.meshctl("check --fail-if-expiring 30d"));
    assert_eq!(code, 4);
    assert!(err.contains("CA of pay in west: ends in 20d"), "{err}");
    assert!(
        !err.contains("web-1") && !err.contains("installation"),
        "{err}"
    );
    let (code, _, err) = run(server.meshctl("check --fail-if-expiring soon"));
    assert_eq!(code, 2);
    assert!(err.contains("--fail-if-expiring"), "{err}");
}

#[test]
fn the_audit_says_who_did_what_and_who_was_refused() {
    let answer = json!({"items": [
        {"time": "2026-01-02T00:00:00Z", "actor": "token/b", "address": "10.0.0.2", "summary": "delete mesh pay",
         "outcome": "refused", "reason": "needs role admin"},
        {"time": "2026-01-01T00:00:00Z", "actor": "token/a", "address": "10.0.0.1", "summary": "put Mesh pay",
         "outcome": "done", "revision": 7, "requestId": "r-1"},
    ]});
    let api = Router::new().route("/v1/audit", get(move || async move { Json(answer) }));
    let server = Server::start(api);
    let (code, out, err) = run(server.meshctl("audit --limit 9"));
    assert_eq!(code, 0, "{err}");
    assert_eq!(server.seen()[0].uri, "/v1/audit?limit=9");
    assert!(out.contains("delete mesh pay: needs role admin"), "{out}");
    assert!(!out.contains("r-1"), "{out}");
    assert!(run(server.meshctl("audit -o wide")).1.contains("r-1"));
    let (_, out, _) = run(server.meshctl("audit -o json"));
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["items"][1]["revision"], 7);
    for (line, words) in [
        ("audit --limit 0", "--limit"),
        ("audit --limit many", "--limit"),
        ("audit --since yesterday", "--since \"yesterday\""),
        (
            "audit --resource meshtrafficpermision/x",
            "Did you mean meshtrafficpermission?",
        ),
    ] {
        let (code, _, err) = run(server.meshctl(line));
        assert_eq!(code, 2, "{line}: {err}");
        assert!(err.contains(words), "{line}: {err}");
    }
}

#[test]
fn the_audit_says_what_a_change_changed_where_more_is_asked_for() {
    let change = json!({"key": {"type": "Mesh", "name": "pay"}, "outcome": "updated", "moreFields": 2, "fields": [
        {"field": "zones", "before": ["west"], "after": ["east"]}, {"field": "data"},
    ]});
    let answer = json!({"items": [{"time": "t", "actor": "token/a", "address": "", "summary": "put Mesh pay",
                                   "outcome": "done", "changes": [change]}]});
    let api = Router::new().route("/v1/audit", get(move || async move { Json(answer) }));
    let (code, out, err) = run(Server::start(api).meshctl("audit -o wide"));
    assert_eq!(code, 0, "{err}");
    for words in [
        "mesh/pay updated",
        "zones: [\"west\"] -> [\"east\"]",
        "data (not shown)",
        "and 2 fields more",
    ] {
        assert!(out.contains(words), "{words} in\n{out}");
    }
}

/// As many records as are asked for, for ever; node 3 is away.
async fn endless_audit(Query(query): Query<HashMap<String, String>>) -> Json<Value> {
    let from: u64 = query.get("continue").map_or(0, |at| at.parse().unwrap());
    let to = from + query["limit"].parse::<u64>().unwrap();
    let items: Vec<_> = (from..to)
        .map(|n| json!({"time": "t", "actor": "token/a", "address": "", "summary": format!("s{n}"), "outcome": "done"}))
        .collect();
    Json(json!({"items": items, "next": to.to_string(), "unanswered": [3]}))
}

#[test]
fn what_narrows_the_audit_is_asked_of_the_server_and_pages_are_followed() {
    let server = Server::start(Router::new().route("/v1/audit", get(endless_audit)));
    let line = "audit -m pay --limit 1500 --actor user/alice --resource mtp/x --since 2026-01-01T00:00:00Z -o name";
    let (code, out, err) = run(server.meshctl(line));
    assert_eq!(code, 1);
    assert!(err.contains("did not answer: 3"), "{err}");
    assert_eq!(out.lines().count(), 1_500);
    assert_eq!(out.lines().last(), Some("s1499"));
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    for part in [
        "mesh=pay",
        "actor=user%2Falice",
        "resource=MeshTrafficPermission%2Fx",
        "since=2026-01-01T00%3A00%3A00Z",
        "limit=1000",
    ] {
        assert!(seen[0].uri.contains(part), "{part} in {}", seen[0].uri);
    }
    assert!(
        seen[1].uri.contains("limit=500&continue=1000"),
        "{}",
        seen[1].uri
    );
    run(server.meshctl("audit -A -m pay --limit 1"));
    assert_eq!(server.seen()[2].uri, "/v1/audit?limit=1");
}

#[test]
fn too_much_at_once_is_told_with_when_to_come_back() {
    let problem =
        json!({"type": "too-many-requests", "title": "the token's rate is used up", "status": 429});
    let api = Router::new().route(
        "/v1/check",
        get(move || async move {
            (
                StatusCode::TOO_MANY_REQUESTS,
                [("retry-after", "7")],
                Json(problem),
            )
        }),
    );
    let (code, _, err) = run(Server::start(api).meshctl("check"));
    assert_eq!(code, 1);
    assert!(err.contains("Come back in 7 s"), "{err}");
}
