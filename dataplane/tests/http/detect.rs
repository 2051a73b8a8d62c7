//! Ports of which nothing is declared: HTTP is told from everything else by what is said first, and nobody waits for a server that
//! speaks first.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use mesh_proto::proxy::identity_match::SpiffeId as Match;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
};

use super::{
    application::{Seen, application},
    wire_client::Wire,
    *,
};

/// So long that nothing in these tests happens because it is over.
const LONG: Duration = Duration::from_secs(3600);
/// So short that whoever waits for its end does not wait.
const SHORT: Duration = Duration::from_millis(1);

async fn detecting(application: u16, wait: Duration) -> Scene {
    scene_with(Protocol::Detect, application, |settings| {
        settings.limits.detection_wait = wait;
    })
    .await
}

/// An application that tells the test of each connection, and does with it what the test wants.
async fn connections() -> (u16, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (accepted, all) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = accepted.send(stream).await;
        }
    });
    (port, all)
}

/// Says something, and hears it at the other end.
async fn passes(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).await.unwrap();
    hears(to, bytes).await;
}

async fn hears(stream: &mut TcpStream, bytes: &[u8]) {
    let mut heard = vec![0; bytes.len()];
    soon("it is heard", stream.read_exact(&mut heard))
        .await
        .unwrap();
    assert_eq!(heard, bytes);
}

async fn get(port: u16, path: &str) -> (u16, Option<String>) {
    let mut wire = Wire::new(connect(port).await);
    ask(&mut wire, path).await
}

async fn ask(wire: &mut Wire<TcpStream>, path: &str) -> (u16, Option<String>) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n");
    wire.send(request).await.unwrap();
    let answer = soon("an answer", wire.answer("GET")).await.unwrap();
    let reason = answer.field("x-isthmus-reason").map(str::to_owned);
    (answer.status(), reason)
}

const REQUESTS: &str = "isthmus_dataplane_requests_total";
const CONNECTIONS: &str = "isthmus_dataplane_connections_total";
const TIMEOUTS: &str = "isthmus_dataplane_detection_timeouts_total";

/// True where a line of the metrics has all of `words`.
async fn has(proxy: &Proxy, words: &[&str]) -> bool {
    let metrics = proxy.metrics().await;
    metrics
        .lines()
        .any(|line| words.iter().all(|word| line.contains(word)))
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_before_its_client_says_a_word() {
    let (port, mut accepted) = connections().await;
    let scene = detecting(port, LONG).await;
    let mut client = scene.connect().await;
    let mut server = soon("a connection", accepted.recv()).await.unwrap();
    passes(&mut server, &mut client, b"220 mail ready\r\n").await;
    // What it then says may look as it likes.
    passes(
        &mut client,
        &mut server,
        b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n",
    )
    .await;
    passes(&mut server, &mut client, b"500 what?\r\n").await;
    drop((client, server));
    scene
        .store
        .counted(&[CONNECTIONS, "outcome=\"completed\""])
        .await;
    for proxy in [&scene.web, &scene.store] {
        assert!(!has(proxy, &[REQUESTS, "status="]).await);
        assert!(!has(proxy, &[TIMEOUTS, "destination="]).await);
    }
}

#[tokio::test]
async fn a_server_that_speaks_while_half_a_request_is_held_back_ends_the_wait() {
    let (port, mut accepted) = connections().await;
    let scene = detecting(port, LONG).await;
    let mut client = scene.connect().await;
    client.write_all(b"PING").await.unwrap();
    let mut server = soon("a connection", accepted.recv()).await.unwrap();
    passes(&mut server, &mut client, b"hello").await;
    hears(&mut server, b"PING").await;
}

#[tokio::test]
async fn what_is_no_request_passes_at_once_and_unchanged() {
    let (port, mut accepted) = connections().await;
    let scene = detecting(port, LONG).await;
    for bytes in [
        &b"*1\r\n$4\r\nPING\r\n"[..],
        b"PING\r\n",
        b"SET a b\r\n",
        &[0, 0, 0, 8, 4, 210, 22, 47],
        b"GET /\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"OPTIONS rtsp://a/b RTSP/1.0\r\n\r\n",
        // A ClientHello of the application's own.
        &[22, 3, 1, 0, 1, 1],
    ] {
        let mut client = scene.connect().await;
        // In one piece, or byte by byte.
        client.write_all(bytes).await.unwrap();
        let mut server = soon("a connection", accepted.recv()).await.unwrap();
        hears(&mut server, bytes).await;
        passes(&mut server, &mut client, b"well").await;

        let mut client = scene.connect().await;
        for byte in bytes {
            client.write_all(&[*byte]).await.unwrap();
        }
        let mut server = soon("a connection", accepted.recv()).await.unwrap();
        hears(&mut server, bytes).await;
    }
    assert!(!has(&scene.web, &[TIMEOUTS, "destination="]).await);
}

#[tokio::test]
async fn half_a_request_is_held_back_for_a_while_only_and_that_is_counted() {
    let (port, mut accepted) = connections().await;
    let scene = detecting(port, SHORT).await;
    let mut client = scene.connect().await;
    client.write_all(b"PING").await.unwrap();
    let mut server = soon("a connection", accepted.recv()).await.unwrap();
    hears(&mut server, b"PING").await;
    passes(&mut server, &mut client, b"PONG").await;
    let words = [
        TIMEOUTS,
        "mesh=\"pay\"",
        "zone=\"east\"",
        "destination=\"store\"",
        " 1",
    ];
    let outbound = [&words[..], &["direction=\"outbound\"", "port=\"80\""]].concat();
    let inbound = [&words[..], &["direction=\"inbound\"", "port=\"main\""]].concat();
    scene.web.counted(&outbound).await;
    scene.store.counted(&inbound).await;
}

#[tokio::test]
async fn a_client_that_ends_without_a_word_still_reads() {
    let (port, mut accepted) = connections().await;
    let scene = detecting(port, LONG).await;
    for word in [&b""[..], b"GET /"] {
        let mut client = scene.connect().await;
        client.write_all(word).await.unwrap();
        client.shutdown().await.unwrap();
        let mut server = soon("a connection", accepted.recv()).await.unwrap();
        let mut heard = Vec::new();
        soon("its end", server.read_to_end(&mut heard))
            .await
            .unwrap();
        assert_eq!(heard, word);
        server.write_all(b"bye").await.unwrap();
        drop(server);
        let mut heard = Vec::new();
        soon("the end", client.read_to_end(&mut heard))
            .await
            .unwrap();
        assert_eq!(heard, b"bye");
    }
}

#[tokio::test]
async fn requests_are_known_for_what_they_are_at_both_sidecars() {
    let (port, seen) = application().await;
    let scene = detecting(port, LONG).await;
    // In one piece, byte by byte, of HTTP/1.0, and late.
    assert_eq!(get(scene.outbound, "/a").await, (200, None));
    let mut wire = Wire::new(scene.connect().await);
    for byte in b"GET /b HTTP/1.0\r\n\r\n" {
        wire.send([*byte]).await.unwrap();
    }
    let answer = soon("an answer", wire.answer("GET")).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(seen.len(), 2);
    for (proxy, direction) in [(&scene.web, "outbound"), (&scene.store, "inbound")] {
        let direction = format!("direction=\"{direction}\"");
        let words = [
            REQUESTS,
            "status=\"200\"",
            "source=\"web\"",
            "destination=\"store\"",
            &direction,
            " 2",
        ];
        proxy.counted(&words).await;
    }
}

#[tokio::test]
async fn a_client_that_says_nothing_for_long_is_still_known_when_it_asks() {
    let (port, seen) = application().await;
    // Whatever waits at all is over at once.
    let scene = detecting(port, SHORT).await;
    let mut wire = Wire::new(scene.connect().await);
    // The connection to the application is made meanwhile, through both sidecars.
    eventually("both sidecars have one", async || {
        let (_, open) = scene.store.ask("GET", "/connections").await.unwrap();
        open.contains("inbound")
    })
    .await;
    assert_eq!(ask(&mut wire, "/late").await, (200, None));
    assert_eq!(seen.len(), 1);
    scene.web.counted(&[REQUESTS, "status=\"200\""]).await;
    scene.store.counted(&[REQUESTS, "status=\"200\""]).await;
}

/// Asks over HTTP/2.
async fn get_over_http2(port: u16) -> u16 {
    get_over_http2_on(connect(port).await).await
}

async fn get_over_http2_on(stream: TcpStream) -> u16 {
    let (mut sender, connection) = h2::client::Builder::new()
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    let driving = tokio::spawn(connection);
    let request = Request::get("http://shop/a").body(()).unwrap();
    let (answer, _) = sender.send_request(request, true).unwrap();
    let answer = soon("an answer", answer).await.unwrap();
    driving.abort();
    answer.status().as_u16()
}

/// An application that speaks HTTP/2 only.
async fn application_of_http2() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await?;
                while let Some(request) = connection.accept().await {
                    let (_, mut reply) = request?;
                    reply.send_response(http::Response::new(()), true)?;
                }
                Ok::<_, h2::Error>(())
            });
        }
    });
    port
}

#[tokio::test]
async fn http2_is_spoken_to_the_application_where_the_caller_speaks_it() {
    let scene = detecting(application_of_http2().await, LONG).await;
    for _ in 0..2 {
        assert_eq!(get_over_http2(scene.outbound).await, 200);
    }
    // Whoever hangs up at once may be noted as gone.
    scene.store.counted(&[REQUESTS, "status=\"200\""]).await;
}

#[tokio::test]
async fn an_application_of_http2_that_speaks_first_is_one_of_http2() {
    let (port, mut accepted) = connections().await;
    let scene = detecting(port, LONG).await;
    let client = scene.connect().await;
    let server = soon("a connection", accepted.recv()).await.unwrap();
    let mut shaking = Box::pin(h2::server::handshake(server));
    // It sends its settings, and waits for the client's preface.
    assert!(futures::poll!(&mut shaking).is_pending());
    let serving = tokio::spawn(async move {
        let mut connection = shaking.await?;
        while let Some(request) = connection.accept().await {
            let (_, mut reply) = request?;
            reply.send_response(http::Response::new(()), true)?;
        }
        Ok::<_, h2::Error>(())
    });
    assert_eq!(get_over_http2_on(client).await, 200);
    scene.store.counted(&[REQUESTS, "status=\"200\""]).await;
    serving.abort();
}

#[tokio::test]
async fn http1_is_spoken_to_the_application_where_callers_speak_it_however_many() {
    let (port, seen) = application().await;
    let scene = detecting(port, LONG).await;
    // As many as would share a connection of HTTP/2 between the sidecars, were the port declared.
    let held = (0..16).map(|_| async {
        let mut wire = Wire::new(scene.connect().await);
        let request = "GET /hang HTTP/1.1\r\nHost: shop\r\n\r\n";
        wire.send(request).await.unwrap();
        wire
    });
    let held = futures::future::join_all(held).await;
    eventually("all of them have come", async || {
        seen.hanging() == held.len()
    })
    .await;
    assert_eq!(get(scene.outbound, "/a").await, (200, None));
}

/// Puts the store's inbound anew.
async fn put_store(scene: &Scene, protocol: Protocol, permissions: wire::Permissions) {
    let document = store_document(protocol, scene.inbound, scene.application, permissions);
    scene.put(&scene.store, "store-1", 1, vec![document]).await;
}

#[tokio::test]
async fn who_may_not_call_gets_nowhere_whatever_it_looks_like() {
    let (port, mut accepted) = connections().await;
    let scene = detecting(port, LONG).await;
    let somebody = allow(Match::Exact(identity("somebody-else")));
    put_store(&scene, Protocol::Detect, somebody).await;
    // One that speaks HTTP is told so.
    let refused = (403, Some("refused_by_peer".to_owned()));
    assert_eq!(get(scene.outbound, "/a").await, refused);
    // Any other sees its connection end: one that says nothing, one that says something else, and one that says half a request.
    for word in [&b""[..], b"PING\r\n", b"GET /"] {
        let mut client = scene.connect().await;
        client.write_all(word).await.unwrap();
        if word == b"GET /" {
            client.shutdown().await.unwrap();
        }
        let mut heard = Vec::new();
        let _ = soon("the end", client.read_to_end(&mut heard)).await;
        assert_eq!(heard, b"");
    }
    let denied = [
        CONNECTIONS,
        "reason=\"permission_denied\"",
        "source=\"web\"",
    ];
    scene.store.counted(&denied).await;
    let refused = [
        CONNECTIONS,
        "reason=\"refused_by_peer\"",
        "outcome=\"refused\"",
    ];
    scene.web.counted(&refused).await;
    // The application has not even been connected to.
    assert!(accepted.try_recv().is_err());
}

#[tokio::test]
async fn a_withdrawn_permission_ends_what_is_undecided_and_refuses_the_next_request_of_what_is_http()
 {
    let (port, seen) = application().await;
    let scene = detecting(port, LONG).await;
    let mut open = Wire::new(scene.connect().await);
    assert_eq!(ask(&mut open, "/a").await, (200, None));
    let peer = scene.peer();
    let mut undecided = peer.connect().await;
    undecided.write_all(b"GET /b").await.unwrap();
    let mut decided = peer.connect().await;
    decided.write_all(b"what").await.unwrap();
    put_store(&scene, Protocol::Detect, wire::Permissions::default()).await;
    let denied = (403, Some("permission_denied".to_owned()));
    assert_eq!(ask(&mut open, "/c").await, denied);
    for stream in [&mut undecided, &mut decided] {
        let mut heard = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut heard)).await;
        assert_eq!(heard, b"");
    }
    assert_eq!(seen.len(), 1);
}

#[tokio::test]
async fn a_service_that_is_not_there_is_answered_for_where_http_is_spoken_and_only_there() {
    let (port, _) = application().await;
    let scene = detecting(port, LONG).await;
    let nobody = endpoints("store", &[]);
    scene.zone.change(|world| {
        world.endpoints.insert(nobody.key.clone(), nobody);
    });
    eventually("nobody is there", async || {
        let config = scene.web.config().await;
        config["endpoints"]["service/store:80"]
            .as_array()
            .is_none_or(Vec::is_empty)
    })
    .await;
    let answered = (503, Some("no_endpoints".to_owned()));
    assert_eq!(get(scene.outbound, "/a").await, answered);
    for word in [&b""[..], b"hello"] {
        let mut client = scene.connect().await;
        client.write_all(word).await.unwrap();
        let mut heard = Vec::new();
        let _ = soon("the end", client.read_to_end(&mut heard)).await;
        assert_eq!(heard, b"");
    }
    scene
        .web
        .counted(&[CONNECTIONS, "reason=\"no_endpoints\"", " 2"])
        .await;
}

#[tokio::test]
async fn no_proxy_ever_answers_at_a_port_that_is_declared_tcp() {
    let (port, mut accepted) = connections().await;
    let scene = scene(Protocol::Tcp, port).await;
    let request = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";
    let bad = b"GET /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n";
    for bytes in [&request[..], bad] {
        let mut client = scene.connect().await;
        client.write_all(bytes).await.unwrap();
        let mut server = soon("a connection", accepted.recv()).await.unwrap();
        hears(&mut server, bytes).await;
        passes(&mut server, &mut client, b"anything").await;
    }
    // Nor where the caller may not call, nor where nobody is there.
    let silence = async || {
        let mut client = scene.connect().await;
        client.write_all(request).await.unwrap();
        let mut heard = Vec::new();
        let _ = soon("the end", client.read_to_end(&mut heard)).await;
        assert_eq!(heard, b"");
    };
    put_store(&scene, Protocol::Tcp, wire::Permissions::default()).await;
    silence().await;
    put_store(&scene, Protocol::Tcp, allow_any()).await;
    let document = proxy("store", vec![], vec![]);
    scene.put(&scene.store, "store-1", 1, vec![document]).await;
    silence().await;
    for proxy in [&scene.web, &scene.store] {
        assert!(!has(proxy, &[REQUESTS, "status="]).await);
    }
}

#[tokio::test]
async fn an_older_sidecar_on_either_side_takes_what_comes_for_tcp() {
    let (port, seen): (u16, Seen) = application().await;
    let scene = detecting(port, LONG).await;
    put_store(&scene, Protocol::Tcp, allow_any()).await;
    assert_eq!(get(scene.outbound, "/a").await, (200, None));
    scene.web.counted(&[REQUESTS, "status=\"200\""]).await;
    assert!(!has(&scene.store, &[REQUESTS, "status="]).await);
    // The other way round.
    put_store(&scene, Protocol::Detect, allow_any()).await;
    let service = seal_service(http_service("store", Protocol::Tcp));
    scene.put(&scene.web, "web-1", 1, vec![service]).await;
    assert_eq!(get(scene.outbound, "/b").await, (200, None));
    scene.store.counted(&[REQUESTS, "status=\"200\""]).await;
    scene.web.counted(&[REQUESTS, "status=\"200\"", " 1"]).await;
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn plaintext_at_a_permissive_inbound_is_told_apart_as_well() {
    let (port, mut accepted) = connections().await;
    let scene = detecting(port, LONG).await;
    let mut inbound = inbound("store", scene.inbound, port, allow_any());
    inbound.protocol = Protocol::Detect.into();
    inbound.tls = wire::TlsMode::Permissive.into();
    let document = proxy("store", vec![inbound], vec![]);
    scene.put(&scene.store, "store-1", 1, vec![document]).await;
    let mut client = connect(scene.inbound).await;
    let mut server = soon("a connection", accepted.recv()).await.unwrap();
    passes(&mut server, &mut client, b"220 mail ready\r\n").await;
    let mut client = connect(scene.inbound).await;
    client.write_all(b"PING\r\n").await.unwrap();
    let mut server = soon("a connection", accepted.recv()).await.unwrap();
    hears(&mut server, b"PING\r\n").await;
    assert!(!has(&scene.store, &[REQUESTS, "direction="]).await);
    let mut wire = Wire::new(connect(scene.inbound).await);
    wire.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await
        .unwrap();
    // The request may come on another connection than the one that was made beforehand.
    let server = soon("a request", async {
        loop {
            let mut server = Wire::new(accepted.recv().await.unwrap());
            if let Ok(Some(head)) = server.head().await {
                assert_eq!(head.target(), "/a");
                return server;
            }
        }
    });
    let mut server = server.await;
    server
        .send("HTTP/1.1 204 No Content\r\n\r\n")
        .await
        .unwrap();
    let answer = soon("an answer", wire.answer("GET")).await.unwrap();
    assert_eq!(answer.status(), 204);
    scene
        .store
        .counted(&[REQUESTS, "status=\"204\"", "direction=\"inbound\""])
        .await;
}

#[tokio::test]
async fn connections_on_which_nothing_was_said_keep_no_proxy_from_ending() {
    let (port, mut accepted) = connections().await;
    let scene = scene_with(Protocol::Detect, port, |settings| {
        settings.limits.detection_wait = LONG;
        settings.drain_timeout = LONG;
    })
    .await;
    let _client = scene.connect().await;
    let _server = soon("a connection", accepted.recv()).await.unwrap();
    let Scene { web, store, .. } = scene;
    soon("the store's end", store.stop()).await;
    drop(web);
}
