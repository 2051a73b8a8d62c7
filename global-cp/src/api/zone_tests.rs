//! Handlers that ask zones, with zones that the tests play.

use futures::StreamExt as _;
use mesh_proto::{
    tap::Tap,
    zone::{
        Condition, DataplaneRefusal, MeshStatus, ReportRefusal, ResourceKey, ZoneStatus,
        query::What,
    },
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::testing::TestNode;

const INSTALLATION: &str = "
type: Mesh
name: pay
---
type: Mesh
name: ana
zones: [west]
---
type: Zone
name: east
---
type: Zone
name: west
---
type: Zone
name: north
---
type: MeshTrafficPermission
mesh: pay
name: web-to-store
spec: {rules: [{default: {allow: [{spiffeID: {type: Exact, value: 'spiffe://pay.east.mesh.local/workload/web'}}]}}]}
";

const SERVICES: &str = "
type: MeshService
mesh: pay
name: store
spec: {ports: [{port: 80}]}
---
type: MeshService
mesh: pay
name: store-next
spec: {ports: [{port: 80}]}
---
type: MeshExternalService
mesh: pay
name: bank
spec: {match: {port: 443, protocol: tcp}, endpoints: [{address: bank.example.org, port: 443}]}
";

const WEB: &str = "spiffe://pay.east.mesh.local/workload/web";

/// `web` runs in east and calls `store`, which runs in west. North is declared and has never been heard of.
async fn node() -> TestNode {
    let node = TestNode::start().await;
    node.apply(INSTALLATION).await.ok();
    node.play_zone("east", |question| Ok(east(&question))).await;
    node
}

fn east(question: &What) -> Value {
    match question {
        What::ExplainCall(call) if call.from == "web" => json!([{
            "zone": "somewhere else", "dataplane": "web-1", "spiffeId": WEB, "service": call.to, "port": 80,
            "outbound": "127.0.0.1:8080", "settings": [],
            "backends": [{"service": "store", "port": 80, "weight": 1, "endpoints": ["10.0.0.2:80 (west)"],
                "zones": ["west"], "identities": []}],
        }]),
        What::ExplainCall(_) | What::ListDataplanes(_) | What::ExplainInbound(_) => json!([]),
        What::InspectPolicy(_) => json!({"zone": "", "selected": 0, "dataplanes": []}),
        _ => Value::Null,
    }
}

fn west(question: What) -> Result<Value, String> {
    Ok(match question {
        What::ExplainInbound(asked) => {
            assert_eq!(
                (asked.mesh.as_str(), asked.service.as_str(), asked.port),
                ("pay", "store", 80)
            );
            let allowed = asked.caller_spiffe_id == WEB;
            json!([{
                "zone": "", "dataplane": "store-1", "inbound": "http", "service": "store", "port": 80, "ready": true,
                "allowed": allowed, "origin": "web-to-store#0", "reason": "web-to-store#0 allows it", "settings": [],
            }])
        }
        What::InspectPolicy(asked) => {
            assert_eq!(asked.key.unwrap().name, "web-to-store");
            json!({"zone": "", "selected": 1, "dataplanes": ["store-1"]})
        }
        What::InspectService(asked) if asked.name == "store" => json!({
            "zone": "", "identities": ["spiffe://pay.west.mesh.local/workload/store"],
            "ports": [{"port": 80, "name": "http", "appProtocol": "tcp", "endpoints": ["store-1 (10.0.0.2:80, ready)"]}],
            "policies": ["MeshTimeout/slow to[0]"],
        }),
        What::InspectService(_) => Value::Null,
        What::ExplainCall(_) => json!([]),
        // A liar: dataplanes of a mesh that was not asked about.
        What::ListDataplanes(_) => json!([{
            "mesh": "ana", "zone": "", "name": "spy", "state": "online", "spiffeId": "", "version": "", "services": [],
            "certificateNotAfter": 0, "documents": [], "resource": {},
        }]),
        other => return Err(format!("not understood: {other:?}")),
    })
}

#[tokio::test]
async fn a_call_is_explained_by_the_zones_of_both_sides() {
    let node = node().await;
    let path = "/v1/meshes/pay/explain?from=web&to=store&port=80";
    // The zone of the called is away: what it would say is not guessed.
    let explained = node.get(path).await.ok();
    assert_eq!(explained["calls"][0]["verdict"], "unknown", "{explained}");
    assert_eq!(explained["unanswered"][0]["zone"], "west");
    node.play_zone("west", west).await;
    let explained = node.get(path).await.ok();
    let call = &explained["calls"][0];
    assert_eq!(call["verdict"], "allowed", "{explained}");
    assert_eq!(call["reason"], "web-to-store#0 allows it");
    // Whatever it calls itself, a zone speaks for itself only.
    assert_eq!(call["caller"]["zone"], "east");
    assert_eq!(call["inbounds"][0]["zone"], "west");
    assert!(explained["unanswered"].is_null(), "{explained}");
    node.apply(SERVICES).await.ok();
    let problem = node
        .get("/v1/meshes/pay/explain?from=nobody&to=store")
        .await
        .problem(404);
    assert!(problem["title"].as_str().unwrap().contains("\"nobody\""));
    assert_eq!(problem["detail"], "its services are store, store-next");
    node.get("/v1/meshes/pay/explain?from=web")
        .await
        .problem(400);
}

#[tokio::test]
async fn a_destination_that_is_unknown_is_named_with_what_was_probably_meant() {
    let node = node().await;
    node.apply(SERVICES).await.ok();
    node.play_zone("west", west).await;
    for (to, title, detail) in [
        ("stroe", "\"stroe\"", "did you mean store or store-next?"),
        (
            "nothing",
            "\"nothing\"",
            "its services are store, store-next",
        ),
        (
            "bank",
            "bank is a MeshExternalService",
            "only calls to a MeshService are explained so far",
        ),
    ] {
        // East knows such a caller, and nothing that it could call.
        let path = format!("/v1/meshes/pay/explain?from=lonely&to={to}");
        let problem = node.get(&path).await.problem(404);
        let said = problem["title"].as_str().unwrap();
        assert!(said.contains(title) && !said.contains("lonely"), "{said}");
        assert_eq!(problem["detail"], detail);
    }
}

#[tokio::test]
async fn a_policy_and_a_service_are_inspected_in_every_zone() {
    let node = node().await;
    node.play_zone("west", west).await;
    let policy = node
        .get("/v1/meshes/pay/meshtrafficpermissions/web-to-store/inspect")
        .await
        .ok();
    assert_eq!(policy["resource"]["name"], "web-to-store");
    assert_eq!(
        policy["zones"],
        json!([
            {"zone": "east", "selected": 0, "dataplanes": []},
            {"zone": "west", "selected": 1, "dataplanes": ["store-1"]},
        ])
    );
    node.get("/v1/meshes/pay/meshtrafficpermissions/none/inspect")
        .await
        .problem(404);
    let service = node.get("/v1/meshes/pay/services/store").await.ok();
    assert_eq!(service["zones"][0]["zone"], "west");
    assert_eq!(service["policies"], json!(["MeshTimeout/slow to[0]"]));
    node.get("/v1/meshes/pay/services/none").await.problem(404);
}

#[tokio::test]
async fn a_plan_asks_the_zones_concerned_what_would_change_and_writes_nothing() {
    let node = node().await;
    let before = node.revision();
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let asked = told.clone();
    node.play_zone("west", move |question| {
        let What::PlanChanges(changes) = question else {
            return Err("only plans".into());
        };
        asked.lock().unwrap().push(changes);
        let change = |mesh: &str| json!({"mesh": mesh, "name": "store-1", "settings": [
            {"of": "inbound http", "setting": "permissions", "before": "web-to-store#0"}]});
        Ok(json!({"zone": "", "dataplanes": 3, "affected": 1, "changes": [change("pay"), change("ana")]}))
    })
    .await;
    let batch = json!({
        "put": [{"type": "Secret", "mesh": "pay", "name": "s", "data": "AAAA"}],
        "delete": [{"type": "MeshTrafficPermission", "mesh": "pay", "name": "web-to-store"}],
    });
    let plan = node.post("/v1/plan", batch.clone()).await.ok();
    assert_eq!(node.revision(), before + 1, "only the zone was made known");
    assert_eq!(plan["diff"]["items"][1]["outcome"], "deleted");
    // East answers null, which is no plan.
    assert_eq!(plan["unanswered"][0]["zone"], "east", "{plan}");
    let west = &plan["zones"][0];
    assert_eq!(
        (&west["zone"], &west["affected"]),
        (&json!("west"), &json!(1))
    );
    // Of another mesh nobody asked, so nothing is believed.
    assert_eq!(west["changes"].as_array().unwrap().len(), 1, "{west}");
    let told = std::mem::take(&mut *told.lock().unwrap());
    assert!(told[0].put.is_empty(), "a secret was told: {told:?}");
    assert_eq!(told[0].delete[0].name, "web-to-store");
    // A change of a mesh that is placed in west only concerns west only.
    let mesh = json!({"delete": [{"type": "Mesh", "name": "ana"}]});
    let plan = node.post("/v1/plan", mesh).await.ok();
    assert!(plan["unanswered"].is_null(), "{plan}");
    assert_eq!(plan["zones"][0]["changes"][0]["mesh"], "ana");
    let tenant = node.person("mesh-admin", &["ana"]).await;
    let headers = [("content-type", "application/json")];
    let refused = node
        .send(
            &tenant,
            axum::http::Method::POST,
            "/v1/plan",
            &headers,
            batch.to_string(),
        )
        .await;
    refused.problem(403);
}

#[tokio::test]
async fn requests_are_counted_by_the_zones_of_the_mesh() {
    let node = node().await;
    let counted = |question: What| match question {
        What::CountRequests(asked) => {
            assert_eq!((&*asked.mesh, &*asked.service), ("pay", "store"));
            Ok(
                json!({"zone": "a lie", "silent": [{"name": "old-1", "reason": "too old"}], "dataplanes": [{
                "name": "store-1", "session": "a", "bounds": [0.1], "omitted": 0, "pairs": [{
                    "source": "web", "destination": "store", "direction": "inbound", "requests": 3, "failed": 1,
                    "durations": [2, 1]}]}]}),
            )
        }
        other => Err(format!("not understood: {other:?}")),
    };
    node.play_zone("west", counted).await;
    let answer = node.get("/v1/meshes/pay/requests?service=store").await.ok();
    let west = &answer["zones"][0];
    assert_eq!(west["zone"], "west", "{answer}");
    assert_eq!(west["silent"][0]["name"], "old-1");
    assert_eq!(west["dataplanes"][0]["pairs"][0]["requests"], 3);
    // East answers what is no answer to this question.
    assert_eq!(answer["unanswered"][0]["zone"], "east", "{answer}");
}

#[tokio::test]
async fn what_a_zone_says_of_another_mesh_is_dropped() {
    let node = node().await;
    node.play_zone("west", west).await;
    let listed = node.get("/v1/meshes/pay/dataplanes").await.ok();
    assert_eq!(listed["items"], json!([]), "{listed}");
}

#[tokio::test]
async fn a_tenant_asks_no_zone_about_another_mesh() {
    let node = node().await;
    let tenant = node.person("viewer", &["ana"]).await;
    for path in [
        "/v1/meshes/pay/explain?from=web&to=store",
        "/v1/meshes/pay/services/store",
        "/v1/meshes/pay/requests",
        "/v1/meshes/pay/meshtrafficpermissions/web-to-store/inspect",
    ] {
        let real = node.get_as(&tenant, path).await;
        real.problem(403);
        let imagined = node.get_as(&tenant, &path.replace("pay", "zzz")).await;
        assert_eq!(imagined.text.replace("zzz", "pay"), real.text, "{path}");
    }
}

// === what is observed ===

/// What is shown of a resource once something is: what zones said last may be a moment old.
async fn status_of(node: &TestNode, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..500 {
        let read = node.get(path).await.ok();
        if wanted(&read["status"]) {
            return read;
        }
        tokio::time::sleep(super::observed::FRESH / 10).await;
    }
    panic!("{path} never showed what was wanted");
}

fn key(mesh: &str, name: &str) -> ResourceKey {
    ResourceKey::global("MeshTrafficPermission", mesh, name)
}

fn condition(key: ResourceKey) -> Condition {
    Condition {
        key: Some(key),
        r#type: "Effective".into(),
        status: false,
        reason: "SelectsNothing".into(),
        message: "it selects no dataplane here".into(),
        field: "spec.targetRef".into(),
    }
}

#[tokio::test]
async fn conditions_that_zones_report_are_shown_and_come_back_unchanged() {
    let node = node().await;
    node.apply("type: MeshTrafficPermission\nmesh: ana\nname: other\nspec: {rules: [{default: {allow: [{spiffeID: {type: Prefix, value: 'spiffe://'}}]}}]}\n")
        .await
        .ok();
    let east = node.play_zone("east", |question| Ok(east(&question))).await;
    let path = "/v1/meshes/pay/meshtrafficpermissions/web-to-store";
    assert!(node.get(path).await.ok()["status"].is_null());
    east.status(ZoneStatus {
        revision: node.revision(),
        meshes: ["pay", "ana"]
            .map(|mesh| MeshStatus {
                mesh: mesh.into(),
                // Of ana, which is not placed in east, it has nothing to say.
                conditions: vec![
                    condition(key("pay", "web-to-store")),
                    condition(key("ana", "other")),
                ],
                ..MeshStatus::default()
            })
            .into(),
        refused: vec![],
    });
    let read = status_of(&node, path, |status| !status.is_null()).await;
    assert_eq!(
        read["status"]["conditions"],
        json!([{
            "key": {"type": "MeshTrafficPermission", "mesh": "pay", "name": "web-to-store"}, "type": "Effective",
            "status": false, "reason": "SelectsNothing", "message": "it selects no dataplane here",
            "field": "spec.targetRef",
        }])
    );
    let list = node.get("/v1/meshes/pay/meshtrafficpermissions").await.ok();
    assert_eq!(list["items"][0]["status"], read["status"]);
    let other = "/v1/meshes/ana/meshtrafficpermissions/other";
    assert!(node.get(other).await.ok()["status"].is_null());
    let again = node.put(path, &read.to_string()).await.ok();
    assert_eq!(again["results"][0]["outcome"], "unchanged");
}

#[tokio::test]
async fn a_policy_selects_nothing_only_where_every_zone_says_so() {
    let node = node().await;
    let east = node.play_zone("east", |question| Ok(east(&question))).await;
    let west = node.play_zone("west", west).await;
    let say = |stream: &crate::zone_sync::streams::Stream, conditions| {
        stream.status(ZoneStatus {
            revision: node.revision(),
            meshes: vec![MeshStatus {
                mesh: "pay".into(),
                conditions,
                ..MeshStatus::default()
            }],
            refused: vec![],
        });
    };
    let path = "/v1/meshes/pay/meshtrafficpermissions/web-to-store";
    say(&east, vec![condition(key("pay", "web-to-store"))]);
    say(&west, vec![condition(key("pay", "web-to-store"))]);
    status_of(&node, path, |status| !status.is_null()).await;
    say(&west, vec![]);
    status_of(&node, path, Value::is_null).await;
}

#[tokio::test]
async fn what_can_be_said_here_is_said_where_it_is_read_and_where_it_is_written() {
    let node = node().await;
    let policy = "type: MeshTimeout\nmesh: pay\nname: slow\nspec: {to: [{targetRef: {kind: MeshService, name: nowhere}, default: {idleTimeout: 9s}}]}\n";
    let headers = [("content-type", "application/yaml")];
    let post = axum::http::Method::POST;
    let written = node
        .send(
            &node.admin,
            post,
            "/v1/batch?conditions=true",
            &headers,
            policy,
        )
        .await
        .ok();
    let said = &written["conditions"][0];
    assert_eq!(
        (&said["type"], &said["reason"]),
        (&json!("ResolvedRefs"), &json!("NoSuchService")),
        "{written}"
    );
    assert_eq!(said["field"], "spec.to[0].targetRef");
    let path = "/v1/meshes/pay/meshtimeouts/slow";
    let read = status_of(&node, path, |status| !status.is_null()).await;
    assert_eq!(read["status"]["conditions"][0], *said);
    let list = node.get("/v1/meshes/pay/meshtimeouts").await.ok();
    assert_eq!(list["items"][0]["status"], read["status"]);
    let inspected = node.get(&format!("{path}/inspect")).await.ok();
    assert_eq!(inspected["conditions"][0], *said);
    // Once there is what it refers to, nothing is to be said.
    node.apply("type: MeshService\nmesh: pay\nname: nowhere\nspec: {ports: [{port: 80}]}\n")
        .await
        .ok();
    status_of(&node, path, Value::is_null).await;
}

#[tokio::test]
async fn what_a_zone_owns_shows_its_age_and_whether_the_zone_is_there() {
    let node = node().await;
    let owned = ResourceKey::in_zone("MeshService", "pay", "east", "web");
    let json = br#"{"mesh":"pay","name":"web","spec":{"ports":[{"appProtocol":"tcp","port":80}]},"type":"MeshService","zone":"east"}"#;
    let operations = vec![crate::changes::put_operation(owned, json.to_vec(), None)];
    let system = crate::authorize::Actor::system();
    crate::writes::write_operations(&node.app, &system, operations, String::new())
        .await
        .unwrap();
    let path = "/v1/meshes/pay/meshservices/web?zone=east";
    let east = node.play_zone("east", |question| Ok(east(&question))).await;
    east.acknowledged(node.revision());
    let state = |wanted: &'static str| move |status: &Value| status["zone"]["state"] == wanted;
    let read = status_of(&node, path, state("online")).await;
    assert!(read["status"]["zone"]["silentMs"].as_u64().unwrap() < 30_000);
    assert!(read["status"]["zone"]["ageSeconds"].as_u64().unwrap() < 3_600);
    node.apply("type: Mesh\nname: new\n").await.ok();
    status_of(&node, path, state("behind")).await;
    node.app.streams.remove(&east);
    let read = status_of(&node, path, state("offline")).await;
    assert!(read["status"]["zone"]["silentMs"].is_null());
    let list = node.get("/v1/meshes/pay/meshservices").await.ok();
    assert_eq!(list["items"][0]["status"]["zone"]["state"], "offline");
}

// === check ===

#[tokio::test]
async fn a_check_finds_what_ends_soon_who_is_away_and_what_is_refused() {
    let node = node().await;
    let now = crate::clock::now_seconds();
    node.token(
        json!({"use": "api", "role": "viewer", "description": "CI", "validForSeconds": 3600}),
    )
    .await;
    let expired = now - 3600;
    let west = node
        .play_zone("west", move |question| {
            let What::ListDataplanes(asked) = question else {
                return Err("only lists".into());
            };
            let dataplane = |name: &str, ends: u64| {
                json!({
                    "mesh": asked.mesh, "zone": "", "name": name, "state": "online", "spiffeId": "", "version": "",
                    "services": [], "certificateNotAfter": ends, "documents": [], "resource": {},
                })
            };
            let mut fresh = dataplane("fresh", now + 80_000);
            let timeouts = |port: u16, direction: &str, connections: u64, ago: u64| {
                json!({"service": "db", "port": port, "direction": direction, "connections": connections, "lastAt": now - ago})
            };
            fresh["detectionTimeouts"] = json!([
                timeouts(5432, "outbound", 7, 600),
                timeouts(5432, "inbound", 5, 300),
                timeouts(9000, "inbound", 1, 25 * 3600),
            ]);
            Ok(json!([fresh, dataplane("stuck", expired), dataplane("new", 0)]))
        })
        .await;
    let mesh = |mesh: &str| MeshStatus {
        mesh: mesh.into(),
        dataplanes: 3,
        refused_count: 1,
        refused: vec![DataplaneRefusal {
            dataplane: "stuck".into(),
            document: "proxy".into(),
            reason: "unknown feature".into(),
        }],
        silent_count: 1,
        silent: vec!["gone".into()],
        ..MeshStatus::default()
    };
    west.status(ZoneStatus {
        revision: node.revision(),
        meshes: vec![mesh("pay"), mesh("ana")],
        refused: vec![ReportRefusal {
            key: Some(key("pay", "web-to-store")),
            reason: "too new".into(),
        }],
    });
    node.app.streams.certificate("west", now + 24 * 3600 + 1800);
    node.app
        .streams
        .remove(&node.play_zone("east", |_| Ok(Value::Null)).await);
    let check = node.get("/v1/check").await.ok();
    let told: Vec<String> = check["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| {
            format!(
                "{} {}: {}",
                found["severity"], found["subject"], found["message"]
            )
            .replace('"', "")
        })
        .collect();
    for expected in [
        "error dataplane ana/stuck: its certificate ended 60 min ago",
        "error dataplane pay/stuck: its certificate ended 60 min ago",
        "error dataplane pay/stuck: it refuses proxy: unknown feature",
        "error MeshTrafficPermission web-to-store in mesh pay: zone west can not apply it: too new",
        "error zone east: it is not connected",
        "warning mesh pay in west: 1 dataplanes are known and not connected: gone",
        "warning zone north: it was declared and has never been heard of",
        "warning zone west: its certificate ends in 24 h, and should have been renewed by now",
        "warning token",
        // Told by both sides, and counted once. What was more than a day ago is not told.
        "warning service pay/db:5432: nothing declares what it speaks, and of 7 connections that could not be told in time, the last 5 min ago",
    ] {
        assert!(
            told.iter().any(|told| told.starts_with(expected)),
            "{expected} in {told:#?}"
        );
    }
    assert!(!check.to_string().contains(":9000"), "{check}");
    let first_warning = told
        .iter()
        .position(|told| told.starts_with("warning"))
        .unwrap();
    assert!(
        told[first_warning..]
            .iter()
            .all(|told| told.starts_with("warning"))
    );
    let certificates = check["certificates"].as_array().unwrap();
    let left: Vec<i64> = certificates
        .iter()
        .map(|end| end["secondsLeft"].as_i64().unwrap())
        .collect();
    assert!(left.is_sorted() && left[0] < 0, "{left:?}");
    for subject in [
        "installation CA",
        "global node 1",
        "zone west",
        "dataplane pay/fresh",
    ] {
        assert!(
            certificates.iter().any(|end| end["subject"] == subject),
            "{subject} in {check}"
        );
    }
    // A tenant is told of its own mesh, and of the installation.
    let tenant = node.person("viewer", &["ana"]).await;
    let check = node.get_as(&tenant, "/v1/check").await.ok();
    assert!(!check.to_string().contains("pay"), "{check}");
    assert!(check.to_string().contains("dataplane ana/stuck"), "{check}");
}

/// What does not hang.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    let limit = std::time::Duration::from_secs(20);
    tokio::time::timeout(limit, future)
        .await
        .expect("it comes soon")
}

/// The events of a tap from now on, as (event, data), until `enough` says so.
async fn tap_events(
    node: &TestNode,
    token: &str,
    query: &str,
    enough: impl Fn(&[(String, Value)]) -> bool,
) -> Vec<(String, Value)> {
    let request = axum::http::Request::builder()
        .uri(format!("/v1/meshes/pay/tap?{query}"))
        .header("authorization", format!("Bearer {token}"))
        .body(axum::body::Body::empty())
        .unwrap();
    let response = node.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body().into_data_stream();
    let mut text = String::new();
    let mut events = Vec::new();
    while !enough(&events) {
        let chunk = soon(body.next()).await.expect("the tap goes on").unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((event, rest)) = text.split_once("\n\n") {
            let field = |name: &str| {
                let mut lines = event.lines();
                lines.find_map(|line| line.strip_prefix(&format!("{name}: ")))
            };
            if let Some(data) = field("data") {
                let name = field("event").unwrap_or_default().to_owned();
                events.push((name, serde_json::from_str(data).unwrap()));
            }
            text = rest.to_owned();
        }
    }
    events
}

/// A zone whose `store-1` catches a request between two questions, and another one that is lost. It says what it was asked.
async fn tapped_zone(node: &TestNode, name: &str) -> tokio::sync::mpsc::Receiver<Tap> {
    // More than any test asks.
    let (questions, asked) = tokio::sync::mpsc::channel(256);
    let count = std::sync::atomic::AtomicU64::new(0);
    let answer = move |question: What| match question {
        What::TapRequests(tapped) => {
            let before = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let requests: Vec<Value> = (0..before.min(1))
                .map(|_| {
                    json!({"time": "", "zone": "a lie", "direction": "inbound", "source": {}, "destination": {},
                    "method": "GET", "path": "/", "saidBy": "upstream", "durationMs": 1.0, "bytesSent": 0,
                    "bytesReceived": 0, "attempts": 1})
                })
                .collect();
            let _ = questions.try_send(tapped.tap.unwrap());
            Ok(json!({"zone": "a lie", "dataplanes": [
                {"name": "store-1", "run": "r", "matched": 2 * before, "requests": requests}]}))
        }
        other => Err(format!("not understood: {other:?}")),
    };
    node.play_zone(name, answer).await;
    asked
}

#[tokio::test]
async fn a_tap_tells_requests_as_they_come_and_what_was_dropped_and_ends_with_its_time() {
    let node = node().await;
    let mut asked = tapped_zone(&node, "west").await;
    let done = |events: &[(String, Value)]| events.last().is_some_and(|(name, _)| name == "done");
    let query = "service=store&method=GET&status=5xx&rate=7&for=2";
    let events = tap_events(&node, &node.admin, query, done).await;
    // Who is tapped is known before anything is shown. East is an older zone, North was never heard of.
    let (name, state) = &events[0];
    assert_eq!(name, "state");
    assert_eq!(state["dataplanes"], json!(["west/store-1"]), "{state}");
    assert_eq!(state["unanswered"][0]["zone"], "east");
    assert!(state["unanswered"][1].is_null(), "{state}");
    let shown: Vec<_> = events.iter().filter(|(name, _)| name.is_empty()).collect();
    assert!(!shown.is_empty());
    assert_eq!(shown[0].1["zone"], "west");
    assert_eq!(shown[0].1["dataplane"], "store-1");
    let (_, state) = events.last().unwrap();
    assert_eq!(state["shown"], shown.len());
    assert_eq!(state["dropped"], shown.len(), "{state}");
    // All questions are about one tap, and the last one ends it.
    let first = asked.recv().await.unwrap();
    let filter = first.filter.clone().unwrap();
    assert_eq!((&*filter.service, &*filter.method), ("store", "GET"));
    assert_eq!((first.rate_max, first.lease_ms), (7, 10_000));
    let mut last = first.clone();
    while let Ok(next) = asked.try_recv() {
        assert_eq!(next.id, first.id);
        last = next;
    }
    assert_eq!(last.lease_ms, 0);
}

#[tokio::test]
async fn a_tap_ends_when_its_client_goes() {
    let node = node().await;
    let mut asked = tapped_zone(&node, "west").await;
    let begun = |events: &[(String, Value)]| !events.is_empty();
    tap_events(&node, &node.admin, "service=store", begun).await;
    let ended = async { while asked.recv().await.unwrap().lease_ms > 0 {} };
    soon(ended).await;
}

#[tokio::test]
async fn only_who_may_taps_and_each_tap_is_audited() {
    let node = node().await;
    let _asked = tapped_zone(&node, "west").await;
    let path = "/v1/meshes/pay/tap?service=store";
    for token in [
        node.person("mesh-admin", &["ana"]).await,
        node.person("viewer", &[]).await,
    ] {
        node.get_as(&token, path).await.problem(403);
    }
    let tenant = node.person("mesh-admin", &["pay"]).await;
    let begun = |events: &[(String, Value)]| !events.is_empty();
    tap_events(&node, &tenant, "service=store&query=true", begun).await;
    let audit = node.get("/v1/audit?mesh=pay").await.ok();
    let text = audit.to_string();
    assert!(
        text.contains("tap requests of mesh pay: service store, with queries"),
        "{text}"
    );
    for query in [
        "status=6xx",
        "rate=0",
        "rate=501",
        "for=3601",
        "path=x",
        "service=",
        "direction=up",
        "method=%20",
        "header=x",
    ] {
        let path = format!("/v1/meshes/pay/tap?{query}");
        node.get(&path).await.problem(400);
    }
    node.get("/v1/meshes/nobodys/tap?service=store")
        .await
        .problem(404);
}

#[tokio::test]
async fn whoever_may_tap_no_more_is_told_no_more() {
    let node = node().await;
    let mut asked = tapped_zone(&node, "west").await;
    let (token, id) = node
        .token(json!({"use": "api", "role": "mesh-admin", "meshes": ["pay"]}))
        .await;
    let path = format!("/v1/tokens/{id}");
    let ended = |events: &[(String, Value)]| events.last().is_some_and(|(name, _)| name == "end");
    let telling = tap_events(&node, &token, "service=store&for=15", ended);
    let revoking = async {
        asked.recv().await.unwrap();
        node.delete(&path).await.ok();
    };
    let (events, ()) = tokio::join!(soon(telling), revoking);
    let (_, problem) = events.last().unwrap();
    assert_eq!(problem["status"], 401, "{problem}");
}
