//! Bodies that stop, bodies that are slow, and who ends what when one side leaves.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::{
    application::{Seen, application},
    wire_client::Wire,
    *,
};

/// `web` calls `store` under these time-outs of requests.
async fn timed(http: wire::HttpTimeouts) -> (Scene, Seen) {
    let (port, seen) = application().await;
    let scene = scene_with(Protocol::Http, port, |settings| {
        settings.limits.http.idle_timeout = Duration::from_millis(500);
    })
    .await;
    let mut service = http_service("store", Protocol::Http);
    service.timeouts = Some(wire::Timeouts {
        http: Some(http),
        ..timeouts()
    });
    let documents = vec![seal_service(service)];
    scene.put(&scene.web, "web-1", 1, documents).await;
    (scene, seen)
}

fn limited(stream_idle_ms: u32, request_ms: u32) -> wire::HttpTimeouts {
    wire::HttpTimeouts {
        stream_idle_ms,
        stream_idle_origin: "MeshTimeout/slow to[0]".into(),
        request_ms,
        ..wire::HttpTimeouts::default()
    }
}

#[tokio::test]
async fn an_upload_that_stops_is_ended_by_the_idle_time_out_of_streams() {
    let (scene, seen) = timed(limited(300, 0)).await;
    let mut wire = Wire::new(scene.connect().await);
    wire.send("POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 100\r\n\r\nnot all")
        .await
        .unwrap();
    let answer = soon("an answer", wire.answer("POST")).await.unwrap();
    assert_eq!(answer.status(), 504);
    assert_eq!(answer.field("x-isthmus-reason"), Some("stream_idle"));
    // What is left of the body is no request.
    assert!(answer.closes());
    soon("the end", wire.ended()).await.unwrap();

    let (mut sender, connection) = h2::client::handshake(scene.connect().await).await.unwrap();
    let driving = tokio::spawn(connection);
    let request = http::Request::post("http://shop/upload").body(()).unwrap();
    let (answer, mut body) = sender.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"not all"), false)
        .unwrap();
    let answer = soon("an answer", answer).await.unwrap();
    assert_eq!(answer.status(), 504);
    assert_eq!(answer.headers()["x-isthmus-reason"], "stream_idle");
    // Others on the connection go on.
    let mut sender = sender.ready().await.unwrap();
    let request = http::Request::get("http://shop/x").body(()).unwrap();
    let answer = sender.send_request(request, true).unwrap().0;
    assert_eq!(soon("an answer", answer).await.unwrap().status(), 200);
    driving.abort();

    let words = [
        "isthmus_dataplane_requests",
        "status=\"504\"",
        "said_by=\"policy\"",
        "reason=\"stream_idle\"",
    ];
    scene.web.counted(&words).await;
    // The application got no whole request, and its side says who left.
    let words = [
        "isthmus_dataplane_requests",
        "said_by=\"client\"",
        "reason=\"client_gone\"",
    ];
    let refused = [
        "isthmus_dataplane_requests",
        "said_by=\"client\"",
        "reason=\"bad_request\"",
    ];
    eventually("store's side has seen both end", async || {
        let metrics = scene.store.metrics().await;
        let of = |words: &[&str]| {
            let lines = metrics.lines();
            let mut found = lines.filter(|line| words.iter().all(|word| line.contains(word)));
            found.next().is_some()
        };
        of(&words) || of(&refused)
    })
    .await;
    assert!(seen.take().iter().all(|asked| asked.target() == "/x"));
}

#[tokio::test]
async fn an_answer_that_stops_is_ended_by_the_idle_time_out_of_streams() {
    let (scene, _) = timed(limited(300, 0)).await;
    let mut wire = Wire::new(scene.connect().await);
    wire.send("GET /stops HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await
        .unwrap();
    let mut head = soon("a head", wire.head()).await.unwrap().unwrap();
    assert_eq!(head.status(), 200);
    // Nobody takes what has come for the whole.
    let body = soon(
        "the end",
        wire.body(&mut head, super::wire_client::Framing::None),
    )
    .await;
    assert!(body.is_err(), "{head:?}");
    scene
        .web
        .counted(&[
            "isthmus_dataplane_requests",
            "status=\"200\"",
            "reason=\"stream_idle\"",
        ])
        .await;
}

#[tokio::test]
async fn a_slow_body_is_no_idle_one_and_the_time_of_an_upload_is_not_that_of_its_answer() {
    let (scene, seen) = timed(limited(5000, 1000)).await;
    let mut wire = Wire::new(scene.connect().await);
    wire.send("POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\n")
        .await
        .unwrap();
    for n in 0..10 {
        // Longer than an answer may take, all in all.
        sleep(Duration::from_millis(150)).await;
        wire.send(n.to_string()).await.unwrap();
    }
    let answer = soon("an answer", wire.answer("POST")).await.unwrap();
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert!(answer.text().starts_with("10 "), "{answer:?}");
    assert_eq!(seen.take().len(), 1);
    // From the end of the request on, it counts.
    wire.send("POST /hang HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\n")
        .await
        .unwrap();
    sleep(Duration::from_millis(1500)).await;
    wire.send("ab").await.unwrap();
    let answer = soon("an answer", wire.answer("POST")).await.unwrap();
    assert_eq!(answer.status(), 504);
    assert_eq!(answer.field("x-isthmus-reason"), Some("request_timeout"));
}

#[tokio::test]
async fn a_caller_that_leaves_takes_the_connection_to_the_application_with_it() {
    // A caller of HTTP/1 that says its end may still read: it is known to have left when nothing passes for long.
    let (scene, seen) = timed(limited(1000, 0)).await;
    // In the midst of a request, over either version, before and after the head of the answer.
    for path in ["/hang", "/stops"] {
        let mut wire = Wire::new(scene.connect().await);
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n"))
            .await
            .unwrap();
        let (mut sender, connection) = h2::client::handshake(scene.connect().await).await.unwrap();
        let driving = tokio::spawn(connection);
        let request = http::Request::get(format!("http://shop{path}"));
        let asked = sender.send_request(request.body(()).unwrap(), true);
        eventually("both have come", async || seen.open() == 2).await;
        drop((wire, asked, sender));
        driving.abort();
        eventually("the application's connections end", async || {
            seen.open() == 0
        })
        .await;
    }
    // Between requests: it may serve others for as long as it may be idle.
    let mut wire = Wire::new(scene.connect().await);
    wire.send("GET /x HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await
        .unwrap();
    soon("an answer", wire.answer("GET")).await.unwrap();
    drop(wire);
    eventually("the idle connection ends", async || seen.open() == 0).await;
}
