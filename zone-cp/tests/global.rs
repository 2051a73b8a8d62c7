//! The zone and global: how the stream comes back, what is taken from it, and life without it.

mod support;

use std::time::Duration;

use mesh_model::api::{ExplainedCaller, ExplainedInbound, ZonePlan, ZonePolicy, ZoneService};
use mesh_proto::{
    discovery::{self, DocumentVersion, to_dataplane},
    features,
    tap::{self, Tap},
    zone::{
        Changes, CountRequests, ExplainCall, ExplainInbound, GoAway, InspectDataplane,
        InspectPolicy, InspectService, ListDataplanes, PlanChanges, Query, QueryAnswer,
        ResourceKey, ResourceRecord, TapRequests, query::What, to_global, to_zone,
    },
};
use serde_json::json;
use support::*;
use tonic::Status;

const GRACE: Duration = Duration::from_secs(30);
const WEB: &str = "spiffe://pay.east.mesh.local/workload/web";

#[tokio::test]
async fn however_the_stream_ends_the_zone_calls_again_where_it_was() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let zone = RunningZone::start(&installation, GRACE).await;
    let mut stream = global.stream().await;
    assert_eq!(stream.hello.cursors, []);
    assert_eq!(stream.hello.history_id, "");
    stream.introduce(&installation, 5, &[]).await;
    let mut revision = 5;
    stream
        .status("the mesh is known", |s| s.revision == 5)
        .await;
    for ending in ["a clean end", "an error", "silence", "go away"] {
        match ending {
            "a clean end" => stream.outbound = None,
            "an error" => {
                let outbound = stream.outbound.as_ref().unwrap();
                outbound
                    .send(Err(Status::internal("broken")))
                    .await
                    .unwrap();
            }
            "go away" => {
                let away = GoAway {
                    addresses: vec![global.address.clone()],
                    reason: "moving".into(),
                };
                stream.send(to_zone::Message::GoAway(away)).await;
            }
            // The TCP connection lives, and nothing is said.
            _ => {}
        }
        let next = global.stream().await;
        let cursors: Vec<_> = next
            .hello
            .cursors
            .iter()
            .map(|c| (c.mesh.as_str(), c.revision))
            .collect();
        assert_eq!(
            cursors,
            [("", revision), ("pay", revision)],
            "after {ending}"
        );
        assert_eq!(next.hello.history_id, "h1");
        assert_ne!(next.hello.session, stream.hello.session);
        stream = next;
        // The next one ends by silence after two of these.
        let heartbeat = if ending == "an error" { 100 } else { 60_000 };
        stream.greet_with(revision, &["pay"], heartbeat).await;
        stream
            .delta(
                "pay",
                revision,
                revision + 1,
                &[allow("p", "{kind: Mesh}", &format!("{WEB}-{revision}"))],
                &[],
            )
            .await;
        stream.advance(&[""], revision, revision + 1).await;
        revision += 1;
        stream
            .status("what was written meanwhile arrives", |s| {
                s.revision == revision
            })
            .await;
    }
    zone.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_a_status_of_its_own_and_stops_nothing() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let zone = RunningZone::start(&installation, GRACE).await;
    let mut stream = global.stream().await;
    stream.introduce(&installation, 5, &[]).await;
    let raw = |kind: &str, mesh: &str, json: &str| ResourceRecord {
        key: Some(ResourceKey::global(kind, mesh, "x")),
        json: json.as_bytes().to_vec(),
        revision: 6,
        modified_ms: 0,
        created_revision: 0,
    };
    let good = allow("p", "{kind: Mesh}", WEB);
    let changes = Changes {
        mesh: "pay".into(),
        from: 5,
        to: 6,
        history_id: "h1".into(),
        last: true,
        put: vec![
            raw(
                "MeshFuture",
                "pay",
                r#"{"type":"MeshFuture","mesh":"pay","name":"x","spec":{}}"#,
            ),
            raw("MeshService", "pay", "{ not even JSON"),
            raw(
                "MeshService",
                "ana",
                r#"{"type":"MeshService","mesh":"ana","name":"x","spec":{}}"#,
            ),
            record(&good, 6),
        ],
        ..Changes::default()
    };
    stream.send(to_zone::Message::Changes(changes)).await;
    stream.advance(&[""], 5, 6).await;
    let status = stream
        .status("all else is applied", |s| s.revision == 6)
        .await;
    assert_eq!(status.refused.len(), 3, "{:#?}", status.refused);
    assert!(status.refused.iter().all(|r| !r.reason.is_empty()));

    // The stream is the same, and what was good counts.
    let token = installation.token("pay", json!({}));
    let mut web = Newcomer::new(token, &dataplane("web-1", "web", "10.0.0.1", &[]))
        .connect(&zone, &installation)
        .await
        .unwrap();
    web.until("documents", |d| d.documents.len() == 2).await;
    let (_, view) = zone.get("/v1/meshes/pay/dataplanes/web-1").await;
    assert_eq!(
        view["inbounds"][0]["permissions"][0],
        format!("allow {WEB} (p#0)")
    );
    // It is gone from the status when it is gone.
    stream
        .delta(
            "pay",
            6,
            7,
            &[],
            &[
                ResourceKey::global("MeshFuture", "pay", "x"),
                ResourceKey::global("MeshService", "pay", "x"),
                ResourceKey::global("MeshService", "ana", "x"),
            ],
        )
        .await;
    stream
        .status("nothing is refused", |s| s.refused.is_empty())
        .await;
    zone.stop().await;
}

#[tokio::test]
async fn a_snapshot_deletes_what_it_does_not_name_with_its_last_part_only() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let zone = RunningZone::start(&installation, GRACE).await;
    let mut stream = global.stream().await;
    stream
        .introduce(
            &installation,
            5,
            &[
                allow("old", "{kind: Mesh}", WEB),
                allow("kept", "{kind: Mesh}", WEB),
            ],
        )
        .await;
    let token = installation.token("pay", json!({}));
    stream
        .status("the mesh is known", |s| s.revision == 5)
        .await;
    let mut web = Newcomer::new(token, &dataplane("web-1", "web", "10.0.0.1", &[]))
        .connect(&zone, &installation)
        .await
        .unwrap();
    web.until("documents", |d| d.documents.len() == 2).await;
    let permissions = async || {
        let (_, view) = zone.get("/v1/meshes/pay/dataplanes/web-1").await;
        view["inbounds"][0]["permissions"].as_array().unwrap().len()
    };
    assert_eq!(permissions().await, 2);

    // A history nobody knows: the zone asks for a snapshot instead of guessing.
    let foreign = Changes {
        mesh: "pay".into(),
        from: 5,
        to: 6,
        history_id: "h2".into(),
        last: true,
        ..Changes::default()
    };
    stream.send(to_zone::Message::Changes(foreign)).await;
    let mut stream = global.stream().await;
    assert!(stream.hello.cursors.iter().all(|c| c.mesh != "pay"));
    stream.greet(7, &["pay"]).await;
    let part = |put: &[mesh_model::Resource], last| {
        to_zone::Message::Changes(Changes {
            mesh: "pay".into(),
            to: 7,
            history_id: "h2".into(),
            snapshot: true,
            last,
            put: put.iter().map(|r| record(r, 7)).collect(),
            ..Changes::default()
        })
    };
    stream.send(part(&[identity("pay")], false)).await;
    stream.advance(&[""], 5, 7).await;
    stream
        .status("the first part has been read", |s| {
            s.meshes[0].revision == 0
        })
        .await;
    assert_eq!(permissions().await, 2);
    stream
        .send(part(&[allow("kept", "{kind: Mesh}", WEB)], true))
        .await;
    stream
        .status("the snapshot is whole", |s| s.meshes[0].revision == 7)
        .await;
    assert_eq!(permissions().await, 1);

    // The mesh goes, and with it everything.
    stream
        .send(to_zone::Message::Changes(Changes {
            mesh: "pay".into(),
            to: 8,
            history_id: "h2".into(),
            mesh_gone: true,
            last: true,
            ..Changes::default()
        }))
        .await;
    stream.status("no mesh", |s| s.meshes.is_empty()).await;
    assert!(web.end().await.message().contains("not placed"));
    zone.stop().await;
    assert!(!installation.data_dir().join("meshes/mesh-pay").exists());
    assert!(!installation.data_dir().join("ca/pay").exists());
}

#[tokio::test]
async fn without_global_a_restarted_zone_serves_who_comes_back_and_who_is_new_without_a_flap() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let zone = RunningZone::start(&installation, GRACE).await;
    let mut stream = global.stream().await;
    stream
        .introduce(&installation, 5, &[allow("p", "{kind: Mesh}", WEB)])
        .await;
    stream
        .status("the mesh is known", |s| s.revision == 5)
        .await;
    let token = installation.token("pay", json!({}));
    let store = Newcomer::new(
        token.clone(),
        &dataplane("store-1", "store", "10.0.0.2", &[]),
    );
    let mut client = Newcomer::new(
        token.clone(),
        &dataplane("web-1", "web", "10.0.0.1", &[(5000, "store", 8080)]),
    );
    let mut web = client.connect(&zone, &installation).await.unwrap();
    let mut first = store.connect(&zone, &installation).await.unwrap();
    first.until("documents", |d| d.documents.len() == 2).await;
    let has_store = |d: &FakeDataplane| {
        d.endpoints
            .get("service/store:8080")
            .is_some_and(|s| *s == ["10.0.0.2:8080"])
    };
    web.until("the endpoint", has_store).await;
    stream
        .status("both are current", |s| s.meshes[0].current == 2)
        .await;
    let generation = web.last_generation;
    let documents: Vec<_> = web.documents.values().cloned().collect();
    drop(global);
    drop(stream);
    zone.stop().await;

    // Only the client comes back. It runs everything already: it is sent no document, and its endpoint is still there.
    let zone = RunningZone::start(&installation, GRACE).await;
    client.running = versions(&documents);
    let mut web = client.connect(&zone, &installation).await.unwrap();
    web.until("the endpoint", has_store).await;
    assert_eq!(web.documents_sent, 0);
    assert_eq!(web.last_generation, generation);
    web.certificate(WEB).await.unwrap();
    let new = Newcomer::new(token, &dataplane("web-2", "web", "10.0.0.3", &[]));
    let mut new = new.connect(&zone, &installation).await.unwrap();
    new.until("documents", |d| d.documents.len() == 2).await;
    new.certificate(WEB).await.unwrap();
    // What a proxy runs that is not wanted is taken away.
    client.running.push(DocumentVersion {
        name: "service/old:1".into(),
        version: "x".into(),
    });
    client.session_number = 2;
    let mut web = client.connect(&zone, &installation).await.unwrap();
    web.until("the answer", |d| d.revision == 5).await;
    assert_eq!(web.documents_sent, 0);
    zone.stop().await;
}

#[tokio::test]
async fn after_its_grace_period_a_silent_dataplane_is_forgotten() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let zone = RunningZone::start(&installation, Duration::from_secs(1)).await;
    let mut stream = global.stream().await;
    stream.introduce(&installation, 5, &[]).await;
    stream
        .status("the mesh is known", |s| s.revision == 5)
        .await;
    let token = installation.token("pay", json!({}));
    let mut web = Newcomer::new(token, &dataplane("web-1", "web", "10.0.0.1", &[]))
        .connect(&zone, &installation)
        .await
        .unwrap();
    web.until("documents", |d| d.documents.len() == 2).await;
    stream
        .status("it is current", |s| s.meshes[0].current == 1)
        .await;
    drop(web);
    let status = stream
        .status("it is silent", |s| s.meshes[0].silent_count == 1)
        .await;
    assert_eq!(status.meshes[0].silent, ["web-1"]);
    stream
        .status("it is forgotten", |s| s.meshes[0].dataplanes == 0)
        .await;
    stream
        .reported("its service is gone", |owned| {
            owned.keys().all(|key| !key.starts_with("MeshService"))
        })
        .await;
    zone.stop().await;
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_its_mesh_asked_for_again() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let zone = RunningZone::start(&installation, GRACE).await;
    let mut stream = global.stream().await;
    stream.introduce(&installation, 5, &[]).await;
    stream
        .status("the mesh is known", |s| s.revision == 5)
        .await;
    zone.stop().await;
    let file = installation.data_dir().join("meshes/mesh-pay");
    let mut content = std::fs::read(&file).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&file, content).unwrap();

    let zone = RunningZone::start(&installation, GRACE).await;
    assert!(
        installation
            .data_dir()
            .join("meshes/mesh-pay.damaged")
            .exists()
    );
    let mut stream = global.stream().await;
    let cursors: Vec<_> = stream
        .hello
        .cursors
        .iter()
        .map(|c| c.mesh.as_str())
        .collect();
    assert_eq!(cursors, [""]);
    // Until the mesh has come, nobody is served half of it.
    let web = Newcomer::new(
        installation.token("pay", json!({})),
        &dataplane("web-1", "web", "10.0.0.1", &[]),
    );
    let refused = web.connect(&zone, &installation).await.err().unwrap();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    stream.greet(5, &["pay"]).await;
    stream.snapshot("pay", 5, &[identity("pay")]).await;
    stream
        .status("the mesh is known", |s| s.revision == 5)
        .await;
    web.connect(&zone, &installation).await.unwrap();
    zone.stop().await;
}

#[tokio::test]
async fn global_may_ask_about_dataplanes() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let zone = RunningZone::start(&installation, GRACE).await;
    let mut stream = global.stream().await;
    stream
        .introduce(&installation, 5, &[allow("p", "{kind: Mesh}", WEB)])
        .await;
    stream
        .status("the mesh is known", |s| s.revision == 5)
        .await;
    let token = installation.token("pay", json!({}));
    let mut web = Newcomer::new(token, &dataplane("web-1", "web", "10.0.0.1", &[]))
        .connect(&zone, &installation)
        .await
        .unwrap();
    web.until("documents", |d| d.documents.len() == 2).await;
    // The port declares nothing; another one that is named does not exist, or not any more.
    let timeouts = |port: &str| discovery::DetectionTimeouts {
        service: "web".into(),
        port: port.into(),
        inbound: true,
        connections: 2,
        last_at: 1_000,
    };
    let beat = discovery::Heartbeat {
        detection_timeouts: vec![timeouts("8080"), timeouts("81")],
        ..discovery::Heartbeat::default()
    };
    web.say(discovery::to_zone::Message::Heartbeat(beat)).await;
    let list = What::ListDataplanes(ListDataplanes { mesh: "pay".into() });
    let inspect = |name: &str| {
        What::InspectDataplane(InspectDataplane {
            mesh: "pay".into(),
            name: name.into(),
        })
    };
    let mut answers = Vec::new();
    for what in [
        Some(list.clone()),
        Some(inspect("web-1")),
        Some(inspect("nobody")),
        None,
    ] {
        answers.push(asked(&mut stream, what).await);
    }
    let views = |answer: &QueryAnswer| -> Vec<mesh_model::api::DataplaneView> {
        serde_json::from_slice(&answer.json).unwrap()
    };
    assert_eq!(views(&answers[0]).len(), 1);
    // What a dataplane says comes on a stream of its own.
    let told = soon("the heartbeat is heard", async {
        loop {
            let mut views = views(&asked(&mut stream, Some(list.clone())).await);
            let told = views.remove(0).detection_timeouts;
            if !told.is_empty() {
                return told;
            }
        }
    })
    .await;
    let of_web = mesh_model::api::DetectionTimeouts {
        service: "web".into(),
        port: 8080,
        direction: "inbound".into(),
        connections: 2,
        last_at: 1_000,
    };
    assert_eq!(told, [of_web]);
    let view: mesh_model::api::DataplaneView = serde_json::from_slice(&answers[1].json).unwrap();
    assert_eq!(view.inbounds[0].permissions, [format!("allow {WEB} (p#0)")]);
    assert!(answers[2].error.contains("nobody"));
    assert!(!answers[3].error.is_empty());
    zone.stop().await;
}

async fn asked(stream: &mut ZoneStream, what: Option<What>) -> QueryAnswer {
    let query = Query { id: 42, what };
    stream.send(to_zone::Message::Query(query)).await;
    loop {
        if let to_global::Message::Answer(answer) = stream.next().await {
            assert_eq!(answer.id, 42);
            return answer;
        }
    }
}

#[tokio::test]
async fn dataplanes_are_asked_again_on_a_new_stream_and_those_that_are_not_heard_are_named() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let zone = RunningZone::start(&installation, GRACE).await;
    let mut stream = global.stream().await;
    stream
        .introduce(&installation, 5, &[allow("p", "{kind: Mesh}", WEB)])
        .await;
    stream
        .status("the mesh is known", |s| s.revision == 5)
        .await;
    let token = installation.token("pay", json!({}));
    let newcomer = |name| Newcomer::new(token.clone(), &dataplane(name, "web", "10.0.0.1", &[]));
    let connect = async |newcomer: Newcomer| {
        let mut web = newcomer.connect(&zone, &installation).await.unwrap();
        web.until("documents", |d| d.documents.len() == 2).await;
        web
    };
    let mut web = connect(newcomer("web-1")).await;
    let mut moving = connect(newcomer("web-2")).await;
    let mut leaving = connect(newcomer("web-3")).await;
    let mut old = newcomer("web-0");
    old.features
        .retain(|feature| feature != features::QUESTIONS);
    let old = connect(old).await;
    let count = |mesh: &str| {
        What::CountRequests(CountRequests {
            mesh: mesh.into(),
            service: "store".into(),
        })
    };
    let counts = |requests| {
        let counts = discovery::RequestCounts {
            bounds: vec![0.1, f64::NAN],
            pairs: vec![discovery::PairCounts {
                source: "web".into(),
                destination: "store".into(),
                requests,
                ..discovery::PairCounts::default()
            }],
            omitted: 0,
        };
        Some(discovery::answer::What::RequestCounts(counts))
    };
    let answering = async {
        asked_to_count(&mut leaving).await;
        drop(leaving);
        asked_to_count(&mut moving).await;
        drop(moving);
        let mut moved = newcomer("web-2")
            .connect(&zone, &installation)
            .await
            .unwrap();
        let id = asked_to_count(&mut moved).await;
        moved.answer(id, counts(7)).await;
        assert_eq!(id, asked_to_count(&mut web).await);
        // The first is to another question.
        web.answer(id + 7, counts(1)).await;
        web.answer(id, counts(3)).await;
        web.answer(id, counts(5)).await;
        moved
    };
    let (answer, moved) = tokio::join!(asked(&mut stream, Some(count("pay"))), answering);
    let counted: mesh_model::api::ZoneRequests = serde_json::from_slice(&answer.json).unwrap();
    let silent = |of: &mesh_model::api::ZoneRequests| -> Vec<(String, String)> {
        let silent = of.silent.iter();
        silent.map(|s| (s.name.clone(), s.reason.clone())).collect()
    };
    let why = |name: &str, reason: &str| (name.to_owned(), reason.to_owned());
    let too_old = why("web-0", "it is too old to be asked");
    let away = why("web-3", "it is not connected at the moment");
    assert_eq!(silent(&counted), [too_old.clone(), away.clone()]);
    let [web_1, web_2] = &*counted.dataplanes else {
        panic!("{counted:?}")
    };
    assert_eq!((&*web_1.name, &*web_1.session), ("web-1", "session 1"));
    assert_eq!(web_1.bounds, [0.1]);
    let pair = &web_1.pairs[0];
    assert_eq!((pair.requests, pair.durations.len()), (3, 2));
    assert_eq!((&*web_2.name, web_2.pairs[0].requests), ("web-2", 7));
    drop(moved);
    // Who does not answer is waited for no longer than is good for whoever asked.
    let answer = asked(&mut stream, Some(count("pay"))).await;
    let counted: mesh_model::api::ZoneRequests = serde_json::from_slice(&answer.json).unwrap();
    let late = why("web-1", "it did not answer in time");
    let names: Vec<_> = silent(&counted).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["web-0", "web-1", "web-2", "web-3"]);
    assert_eq!(silent(&counted)[1], late);
    let unknown = asked(&mut stream, Some(count("nobodys"))).await;
    assert!(unknown.error.contains("nobodys"));
    drop(old);
    zone.stop().await;
}

#[tokio::test]
async fn a_tap_is_passed_to_the_dataplanes_it_is_about_and_what_they_caught_comes_back() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let zone = RunningZone::start(&installation, GRACE).await;
    let mut stream = global.stream().await;
    stream
        .introduce(&installation, 5, &[allow("p", "{kind: Mesh}", WEB)])
        .await;
    stream
        .status("the mesh is known", |s| s.revision == 5)
        .await;
    let token = installation.token("pay", json!({}));
    let newcomer = |name| Newcomer::new(token.clone(), &dataplane(name, "web", "10.0.0.1", &[]));
    let connect = async |newcomer: Newcomer| {
        let mut web = newcomer.connect(&zone, &installation).await.unwrap();
        web.until("documents", |d| d.documents.len() == 2).await;
        web
    };
    let mut web = connect(newcomer("web-1")).await;
    let mut busy = connect(newcomer("web-2")).await;
    let mut old = connect(newcomer("web-3")).await;
    let wanted = Tap {
        id: "t".into(),
        filter: Some(tap::Filter {
            service: "store".into(),
            ..tap::Filter::default()
        }),
        rate_max: 10,
        lease_ms: 5000,
        with_query: false,
    };
    let question = |dataplane: &str| {
        What::TapRequests(TapRequests {
            mesh: "pay".into(),
            dataplane: dataplane.into(),
            tap: Some(wanted.clone()),
        })
    };
    let caught = |refused: &str| {
        Some(discovery::answer::What::Caught(tap::Caught {
            run: "r".into(),
            matched: 9,
            requests: vec![tap::Request {
                began_us: 1_764_067_269_123_456,
                direction: tap::Direction::Outbound.into(),
                method: "GET".into(),
                path: "/items".into(),
                status: 0,
                duration_us: 1500,
                grpc_status: Some(14),
                ..tap::Request::default()
            }],
            refused: refused.into(),
        }))
    };
    let answering = async {
        let (id, asked) = question_to(&mut web).await;
        assert_eq!(asked, discovery::question::What::Tap(wanted.clone()));
        web.answer(id, caught("")).await;
        let (id, _) = question_to(&mut busy).await;
        busy.answer(id, caught("it is busy")).await;
        // One that knows questions, but not this one.
        let (id, _) = question_to(&mut old).await;
        old.answer(id, None).await;
    };
    let (answer, ()) = tokio::join!(asked(&mut stream, Some(question(""))), answering);
    let tapped: mesh_model::api::ZoneTap = serde_json::from_slice(&answer.json).unwrap();
    let silent: Vec<_> = tapped
        .silent
        .iter()
        .map(|s| (&*s.name, &*s.reason))
        .collect();
    assert_eq!(
        silent,
        [
            ("web-2", "it is busy"),
            ("web-3", "it is too old to be asked")
        ]
    );
    let [of_web] = &*tapped.dataplanes else {
        panic!("{tapped:?}")
    };
    assert_eq!(
        (&*of_web.name, &*of_web.run, of_web.matched),
        ("web-1", "r", 9)
    );
    let request = &of_web.requests[0];
    assert_eq!(request.time, "2025-11-25T10:41:09.123456Z");
    assert_eq!(
        (&*request.direction, &*request.path),
        ("outbound", "/items")
    );
    assert_eq!((request.status, request.grpc_status), (None, Some(14)));
    assert!((request.duration_ms - 1.5).abs() < 1e-9);
    // Nobody else is asked.
    let answering = async {
        let (id, _) = question_to(&mut web).await;
        web.answer(id, caught("")).await;
    };
    let (answer, ()) = tokio::join!(asked(&mut stream, Some(question("web-1"))), answering);
    let tapped: mesh_model::api::ZoneTap = serde_json::from_slice(&answer.json).unwrap();
    assert_eq!((tapped.dataplanes.len(), tapped.silent.len()), (1, 0));
    let answer = asked(&mut stream, Some(question("nobody"))).await;
    let tapped: mesh_model::api::ZoneTap = serde_json::from_slice(&answer.json).unwrap();
    assert_eq!((tapped.dataplanes.len(), tapped.silent.len()), (0, 0));
    zone.stop().await;
}

/// The question that came, and its id.
async fn question_to(dataplane: &mut FakeDataplane) -> (u64, discovery::question::What) {
    loop {
        if let to_dataplane::Message::Question(question) = dataplane.next().await.unwrap() {
            return (question.id, question.what.unwrap());
        }
    }
}

/// The id of the question that came.
async fn asked_to_count(dataplane: &mut FakeDataplane) -> u64 {
    let (id, what) = question_to(dataplane).await;
    let asked = discovery::CountRequests {
        service: "store".into(),
    };
    assert_eq!(what, discovery::question::What::CountRequests(asked));
    id
}

#[tokio::test]
async fn global_may_ask_for_explanations_and_plans() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let zone = RunningZone::start(&installation, GRACE).await;
    let mut stream = global.stream().await;
    let permission = allow("p", "{kind: Mesh}", WEB);
    stream
        .introduce(&installation, 5, std::slice::from_ref(&permission))
        .await;
    let status = stream
        .status("the policies are judged", |s| {
            s.revision == 5 && s.meshes[0].condition_count == 1
        })
        .await;
    assert_eq!(status.meshes[0].conditions[0].reason, "SelectsNothing");
    let token = installation.token("pay", json!({}));
    let calls = dataplane("web-1", "web", "10.0.0.1", &[(9000, "web", 8080)]);
    let mut web = Newcomer::new(token, &calls)
        .connect(&zone, &installation)
        .await
        .unwrap();
    web.until("documents", |d| d.documents.len() == 3).await;
    stream
        .status("the policy selects somebody", |s| {
            s.meshes[0].current == 1 && s.meshes[0].condition_count == 0
        })
        .await;

    let mesh = || "pay".to_owned();
    let call = What::ExplainCall(ExplainCall {
        request: None,
        mesh: mesh(),
        from: "web-1".into(),
        to: "web".into(),
        port: 8080,
    });
    let answer = asked(&mut stream, Some(call)).await;
    let callers: Vec<ExplainedCaller> = serde_json::from_slice(&answer.json).unwrap();
    assert_eq!(callers.len(), 1);
    assert_eq!(callers[0].backends[0].endpoints, ["10.0.0.1:8080 (east)"]);

    let inbound = What::ExplainInbound(ExplainInbound {
        mesh: mesh(),
        service: "web".into(),
        port: 0,
        caller_spiffe_id: WEB.into(),
    });
    let answer = asked(&mut stream, Some(inbound)).await;
    let inbounds: Vec<ExplainedInbound> = serde_json::from_slice(&answer.json).unwrap();
    assert_eq!(inbounds[0].origin.as_deref(), Some("p#0"));

    for (name, known) in [("web", true), ("none", false)] {
        let service = What::InspectService(InspectService {
            mesh: mesh(),
            name: name.into(),
        });
        let answer = asked(&mut stream, Some(service)).await;
        let found: Option<ZoneService> = serde_json::from_slice(&answer.json).unwrap();
        assert_eq!(found.is_some(), known);
    }
    let policy = What::InspectPolicy(InspectPolicy {
        key: Some(permission.key()),
    });
    let answer = asked(&mut stream, Some(policy)).await;
    let found: ZonePolicy = serde_json::from_slice(&answer.json).unwrap();
    assert_eq!(found.dataplanes, ["web-1"]);

    let plan = What::PlanChanges(PlanChanges {
        put: vec![],
        delete: vec![permission.key()],
    });
    let answer = asked(&mut stream, Some(plan)).await;
    let found: ZonePlan = serde_json::from_slice(&answer.json).unwrap();
    assert_eq!((found.dataplanes, found.affected), (1, 1));
    let change = &found.changes[0].settings[0];
    assert_eq!(change.before, Some(format!("allow {WEB} (p#0)")));
    assert_eq!(
        (change.setting.as_str(), &change.after),
        ("permissions", &None)
    );

    // The zone's own API shows the same, and how old things are.
    let (code, callers) = zone.get("/v1/meshes/pay/calls/web/web?port=8080").await;
    assert_eq!((code, &callers[0]["dataplane"]), (200, &"web-1".into()));
    let (_, resources) = zone.get("/v1/meshes/pay/resources").await;
    let permission = resources.as_array().unwrap().iter();
    let mut permission = permission.filter(|r| r["type"] == "MeshTrafficPermission");
    assert_eq!(permission.next().unwrap()["origin"], "global");
    zone.stop().await;
}

#[tokio::test]
async fn another_installation_is_not_listened_to() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let facts = json!({"zone": "east", "clusterId": "mine", "globalAddresses": [global.address]});
    std::fs::write(
        installation.data_dir().join("identity/zone.json"),
        facts.to_string(),
    )
    .unwrap();
    let zone = RunningZone::start(&installation, GRACE).await;
    for _ in 0..2 {
        let stream = global.stream().await;
        assert_eq!(stream.hello.cursors, []);
        stream.introduce(&installation, 5, &[]).await;
    }
    assert_eq!(zone.get("/v1/status").await.1["meshes"], json!([]));
    zone.stop().await;
}

#[tokio::test]
async fn the_zones_certificate_is_renewed_without_a_restart() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    // It begins two hours back: half an hour of two and a half is less than a third.
    let directory = installation.data_dir().join("identity");
    let id = "spiffe://isthmus.local/zone/east".parse().unwrap();
    installation
        .identity(&id, time::Duration::minutes(30))
        .save(&directory)
        .unwrap();
    let before = std::fs::read(directory.join("key.pem")).unwrap();
    let zone = RunningZone::start(&installation, GRACE).await;
    let stream = global.stream().await;
    stream.introduce(&installation, 5, &[]).await;
    let renewed = async {
        loop {
            let (_, metrics) = http_get(zone.listening.admin, "/metrics").await;
            let metrics = metrics.as_str().unwrap().to_owned();
            let line = metrics
                .lines()
                .find(|l| l.starts_with("zone_cp_certificate_end_seconds "));
            let end: u64 = line.unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            if end > unix_seconds() + 4 * 24 * 3600 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the certificate is renewed", renewed).await;
    assert_eq!(
        std::fs::read(directory.join("key.pem")).unwrap(),
        before,
        "the key stays"
    );
    zone.stop().await;
}

#[tokio::test]
async fn where_registrations_were_lost_no_endpoint_is_taken_away_before_the_grace_period_is_over() {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let zone = RunningZone::start(&installation, GRACE).await;
    let mut stream = global.stream().await;
    stream.introduce(&installation, 5, &[]).await;
    stream
        .status("the mesh is known", |s| s.revision == 5)
        .await;
    let token = installation.token("pay", json!({}));
    let store = Newcomer::new(
        token.clone(),
        &dataplane("store-1", "store", "10.0.0.2", &[]),
    );
    let client = Newcomer::new(
        token,
        &dataplane("web-1", "web", "10.0.0.1", &[(5000, "store", 8080)]),
    );
    let mut first = store.connect(&zone, &installation).await.unwrap();
    first.until("documents", |d| d.documents.len() == 2).await;
    stream
        .reported("both are reported", |owned| owned.len() == 2)
        .await;
    zone.stop().await;
    let file = installation.data_dir().join("dataplanes/mesh-pay");
    std::fs::write(&file, "nonsense").unwrap();

    let zone = RunningZone::start(&installation, Duration::from_secs(3)).await;
    assert!(file.with_extension("damaged").exists());
    let mut stream = global.stream().await;
    stream.greet(5, &["pay"]).await;
    let mut web = client.connect(&zone, &installation).await.unwrap();
    // What it has of store from before.
    web.endpoints
        .insert("service/store:8080".into(), vec!["10.0.0.2:8080".into()]);
    web.until("documents", |d| d.documents.len() == 3).await;
    web.certificate(WEB).await.unwrap();
    assert_eq!(web.endpoints["service/store:8080"], ["10.0.0.2:8080"]);
    // Nor does the zone tell others that the service is gone, until it knows.
    stream
        .status("it speaks to global", |s| s.revision == 5)
        .await;
    assert!(stream.reported.is_empty());
    web.until("the truth", |d| {
        d.endpoints["service/store:8080"].is_empty()
    })
    .await;
    stream
        .reported("the truth", |owned| {
            owned.keys().any(|k| k.contains("web")) && owned.keys().all(|k| !k.contains("store"))
        })
        .await;
    zone.stop().await;
}
