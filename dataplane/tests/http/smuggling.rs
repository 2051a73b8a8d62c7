//! What proxies and servers have been known to read differently is refused and counted, and nothing of it goes on.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::TcpListener,
};

use super::{wire_client::Wire, *};

/// A server that says nothing and keeps each byte.
async fn recorder() -> (u16, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let all = Arc::<Mutex<Vec<u8>>>::default();
    let seen = all.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let all = all.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    all.lock().unwrap().extend_from_slice(&buffer[..count]);
                }
            });
        }
    });
    (port, seen)
}

/// Whole requests whose heads are refused, with the status.
fn heads() -> Vec<(String, u16)> {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n";
    let fields = [
        ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", 400),
        ("Content-Length: 3\r\nContent-Length: 3\r\n", 400),
        ("Content-Length: 3\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 3, 3\r\n", 400),
        ("Content-Length: 3,5\r\n", 400),
        ("Content-Length: +3\r\n", 400),
        ("Content-Length: -3\r\n", 400),
        ("Content-Length: 0x3\r\n", 400),
        ("Content-Length: 3 3\r\n", 400),
        ("Content-Length: 3;\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: 99999999999999999999999999\r\n", 400),
        ("Content-Length : 3\r\n", 400),
        (" Content-Length: 3\r\n", 400),
        ("X: y\r\n Content-Length: 3\r\n", 400),
        ("X: y\r\n\tz\r\n", 400),
        ("Transfer-Encoding: chunked, chunked\r\n", 501),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: chunked, identity\r\n", 501),
        ("Transfer-Encoding: identity\r\n", 501),
        ("Transfer-Encoding: xchunked\r\n", 501),
        ("Transfer-Encoding: \"chunked\"\r\n", 501),
        ("Transfer-Encoding:\x0bchunked\r\n", 400),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            501,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-encoding: cow\r\n",
            501,
        ),
        ("Transfer-Encoding : chunked\r\n", 400),
        ("Transfer-Encoding\r\n : chunked\r\n", 400),
        ("X: a\0b\r\n", 400),
        ("X\0: a\r\n", 400),
        ("X: a\rb\r\n", 400),
        ("X: a\nContent-Length: 3\r\n", 400),
        ("X: a\n", 400),
        (": a\r\n", 400),
        ("X y: a\r\n", 400),
        ("no field\r\n", 400),
        ("Host: other\r\n", 400),
    ];
    let mut cases: Vec<_> = fields
        .iter()
        .map(|(fields, status)| {
            let text = format!("POST / HTTP/1.1\r\nHost: shop\r\n{fields}\r\nabc{smuggled}");
            (text, *status)
        })
        .collect();
    let whole = |text: String, status| (format!("{text}{smuggled}"), status);
    let many: String = (0..300).map(|n| format!("X{n}: y\r\n")).collect();
    let long = "y".repeat(200_000);
    cases.extend([
        whole("GET / HTTP/1.1\r\n\r\n".into(), 400),
        whole("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), 400),
        whole("GET / HTTP/1.1\r\nHost: user@shop\r\n\r\n".into(), 400),
        whole("GET / HTTP/1.1\nHost: shop\n\n".into(), 400),
        whole("GET / HTTP/1.1\r\nHost: shop\r\n\n".into(), 400),
        whole("GET /a b HTTP/1.1\r\nHost: shop\r\n\r\n".into(), 505),
        whole("GET /a\0 HTTP/1.1\r\nHost: shop\r\n\r\n".into(), 400),
        whole("GET /a#b HTTP/1.1\r\nHost: shop\r\n\r\n".into(), 400),
        whole("GET a HTTP/1.1\r\nHost: shop\r\n\r\n".into(), 400),
        whole("G@T / HTTP/1.1\r\nHost: shop\r\n\r\n".into(), 400),
        whole("GET / HTTP/1.2\r\nHost: shop\r\n\r\n".into(), 505),
        whole("GET / HTTP/2.0\r\nHost: shop\r\n\r\n".into(), 505),
        whole("GET / HTTP/1.1x\r\nHost: shop\r\n\r\n".into(), 400),
        whole("GET /\r\nHost: shop\r\n\r\n".into(), 400),
        whole(
            "POST / HTTP/1.0\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            400,
        ),
        whole(
            "CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\n\r\n".into(),
            405,
        ),
        whole(
            format!("GET /{} HTTP/1.1\r\nHost: shop\r\n\r\n", "a".repeat(70_000)),
            414,
        ),
        whole(
            format!("GET / HTTP/1.1\r\nHost: shop\r\nX: {long}\r\n\r\n"),
            431,
        ),
        whole(format!("GET / HTTP/1.1\r\nHost: shop\r\n{many}\r\n"), 431),
    ]);
    cases
}

/// Bodies in chunks that are refused.
fn bodies() -> Vec<String> {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n";
    let long = format!("3\r\nabc\r\n0\r\nX: {}\r\n\r\n", "y".repeat(200_000));
    let chunks = [
        "3;x=y\r\nabc\r\n0\r\n\r\n",
        "3;\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\rabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "\r\n3\r\nabc\r\n0\r\n\r\n",
        "g\r\nabc\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nX : y\r\n\r\n",
        "3\r\nabc\r\n0\r\n x: y\r\n\r\n",
        "3\r\nabc\r\n0\r\nx: y\n\r\n",
        "3\r\nabc\r\n0\r\nx: a\0b\r\n\r\n",
        &long,
    ];
    let head = "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n";
    chunks
        .iter()
        .map(|chunks| format!("{head}{chunks}{smuggled}"))
        .collect()
}

/// What is answered, and that nothing more is.
async fn refused(mut wire: Wire<impl AsyncRead + AsyncWrite + Unpin>, request: &str) -> u16 {
    let shown = &request[..request.len().min(200)];
    // It may be refused before all of it has been sent.
    let _ = wire.send(request).await;
    let answer = soon("an answer", wire.answer("POST")).await;
    let answer = answer.unwrap_or_else(|error| panic!("{shown:?}: {error}"));
    assert_eq!(
        answer.field("x-isthmus-reason"),
        Some("bad_request"),
        "{shown:?}"
    );
    assert!(answer.closes(), "{shown:?}");
    let ended = soon("the end", wire.ended()).await;
    // Where the caller still had something to say, the end may be a reset, but no second answer.
    assert!(
        ended.as_ref().is_ok()
            || ended
                .as_ref()
                .is_err_and(|e| e.kind() != std::io::ErrorKind::InvalidData),
        "{shown:?}: {ended:?}"
    );
    answer.status()
}

/// How many requests were refused as no requests.
async fn bad_requests(proxy: &Proxy) -> u64 {
    let metrics = proxy.metrics().await;
    let lines = metrics.lines().filter(|line| {
        line.starts_with("isthmus_dataplane_requests") && line.contains("reason=\"bad_request\"")
    });
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

#[tokio::test]
async fn what_could_smuggle_a_request_is_refused_and_counted_on_its_way_out() {
    let (application, seen) = recorder().await;
    let scene = scene(Protocol::Http, application).await;
    for (request, status) in heads() {
        let found = refused(Wire::new(scene.connect().await), &request).await;
        assert_eq!(found, status, "{:?}", &request[..request.len().min(200)]);
    }
    assert_eq!(bad_requests(&scene.web).await, heads().len() as u64);
    for request in bodies() {
        let found = refused(Wire::new(scene.connect().await), &request).await;
        assert_eq!(found, 400, "{:?}", &request[..request.len().min(200)]);
    }
    let all = heads().len() + bodies().len();
    eventually("all are counted", async || {
        bad_requests(&scene.web).await == all as u64
    })
    .await;
    assert_nothing_passed(&seen);
}

#[tokio::test]
async fn what_could_smuggle_a_request_is_refused_and_counted_on_its_way_in() {
    let (application, seen) = recorder().await;
    let scene = scene(Protocol::Http, application).await;
    let peer = scene.peer();
    for (request, status) in heads() {
        let found = refused(Wire::new(peer.connect().await), &request).await;
        assert_eq!(found, status, "{:?}", &request[..request.len().min(200)]);
    }
    for request in bodies() {
        let found = refused(Wire::new(peer.connect().await), &request).await;
        assert_eq!(found, 400, "{:?}", &request[..request.len().min(200)]);
    }
    let all = heads().len() + bodies().len();
    eventually("all are counted", async || {
        bad_requests(&scene.store).await == all as u64
    })
    .await;
    assert_nothing_passed(&seen);
}

/// A body that turns out to be malformed may have had a head and a beginning, but neither an end nor a successor.
fn assert_nothing_passed(seen: &Mutex<Vec<u8>>) {
    let seen = String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
    assert!(
        !seen.contains("smuggled") && !seen.contains("0\r\n\r\n"),
        "{seen:?}"
    );
    assert!(!seen.contains("GET"), "{seen:?}");
}
