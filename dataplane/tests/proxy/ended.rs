//! Whoever ended a stream, both proxies say who it was and why (FIELD c23).

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Notify;

use super::{
    load::head,
    program::{Plan, Process},
    *,
};

/// Begins each answer. Of `/break` the end of the connection comes when it is told so, of others nothing more at all.
async fn application(to_break: Arc<Notify>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let to_break = to_break.clone();
            tokio::spawn(async move {
                let head = head(&mut stream).await.unwrap_or_default();
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nnot all")
                    .await?;
                if head.contains(" /break ") {
                    to_break.notified().await;
                } else {
                    let _ = stream.read(&mut [0]).await;
                }
                std::io::Result::Ok(())
            });
        }
    });
    port
}

/// A record of `path`: who said so, why, and in which words.
async fn record(process: &Process, path: &str) -> (String, String, String) {
    let found = || {
        let requests = process.requests();
        requests.into_iter().find(|said| said["path"] == path)
    };
    eventually(&format!("a record of {path}"), async || found().is_some()).await;
    let said = found().unwrap();
    let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
    (text("said_by"), text("reason"), text("detail"))
}

/// Begins a stream, and waits for the first part of its answer.
async fn begin(sender: &SendRequest<Bytes>, path: &str) -> h2::RecvStream {
    let mut sender = sender.clone().ready().await.unwrap();
    let request = http::Request::get(format!("http://store{path}"));
    let (answer, _) = sender
        .send_request(request.body(()).unwrap(), true)
        .unwrap();
    let mut body = answer.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "not all");
    body
}

#[tokio::test]
async fn who_ended_a_stream_and_why_is_in_the_records_of_both_sides() {
    let zone = Zone::start(&[DOMAIN]).await;
    let dir = tempfile::tempdir().unwrap();
    let (port, inbound_port) = (free_port(), free_port());
    let to_break = Arc::<Notify>::default();
    let application = application(to_break.clone()).await;
    let trust = zone.trust();
    zone.change(|world| {
        let web = proxy("web", vec![], vec![outbound("store", port)]);
        let mut into = inbound("store", inbound_port, application, allow_any());
        into.protocol = wire::Protocol::Http.into();
        let mut called = service_body("store");
        called.protocol = wire::Protocol::Http.into();
        called.timeouts = Some(wire::Timeouts {
            http: Some(wire::HttpTimeouts {
                stream_idle_ms: 2000,
                stream_idle_origin: "MeshTimeout/short to[0]".into(),
                ..wire::HttpTimeouts::default()
            }),
            ..timeouts()
        });
        let documents = vec![trust.clone(), seal_service(called), web];
        world.documents.insert("web-1".into(), documents);
        let store = proxy("store", vec![into], vec![]);
        world.documents.insert("store-1".into(), vec![trust, store]);
        let there = endpoints("store", &[inbound_port]);
        world.endpoints.insert(there.key.clone(), there);
    });
    let [web, mut store] = [("web", "web-1"), ("store", "store-1")].map(|(service, name)| {
        Process::sidecar(&Plan {
            zone: &zone,
            dir: dir.path(),
            service,
            name,
            within: &[],
            flags: &["--log-level", "info", "--drain-timeout-seconds", "1"],
        })
    });
    eventually("web reaches store", async || {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else {
            return false;
        };
        let request = b"GET /first HTTP/1.1\r\nhost: store\r\n\r\n";
        let _ = stream.write_all(request).await;
        let head = head(&mut stream).await;
        head.is_some_and(|head| head.starts_with("HTTP/1.1 200"))
    })
    .await;
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driving = tokio::spawn(connection);

    // The client.
    drop(begin(&sender, "/left").await);
    for side in [&web, &store] {
        let (said_by, reason, _) = record(side, "/left").await;
        assert_eq!((&*said_by, &*reason), ("client", "client_gone"));
    }

    // The application.
    let mut body = begin(&sender, "/break").await;
    to_break.notify_one();
    assert!(body.data().await.unwrap().is_err());
    let (said_by, reason, detail) = record(&store, "/break").await;
    assert_eq!((&*said_by, &*reason), ("upstream", "truncated"), "{detail}");
    let (said_by, reason, detail) = record(&web, "/break").await;
    assert_eq!(said_by, "upstream", "{reason} {detail}");

    // A policy, which is named.
    let mut body = begin(&sender, "/idle").await;
    assert!(body.data().await.unwrap().is_err());
    let (said_by, reason, detail) = record(&web, "/idle").await;
    assert_eq!((&*said_by, &*reason), ("policy", "stream_idle"));
    assert!(detail.contains("MeshTimeout/short to[0]"), "{detail}");
    let (said_by, reason, _) = record(&store, "/idle").await;
    assert_eq!((&*said_by, &*reason), ("client", "client_gone"));

    // The end of a proxy, which waits for streams as long as it is told to.
    let mut body = begin(&sender, "/drained").await;
    store.terminate();
    assert!(body.data().await.unwrap().is_err());
    let (said_by, reason, detail) = record(&store, "/drained").await;
    assert_eq!(said_by, "proxy", "{reason} {detail}");
    assert!(
        matches!(&*reason, "drained" | "stopped"),
        "{reason} {detail}"
    );
    let (said_by, reason, detail) = record(&web, "/drained").await;
    assert_eq!(said_by, "upstream", "{reason} {detail}");
    let ended = tokio::task::spawn_blocking(move || store.wait());
    assert!(ended.await.unwrap());
    driving.abort();
}
