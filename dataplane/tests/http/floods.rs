//! Callers that make work for nothing are ended, and others are served meanwhile.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{application::application, wire_client::Wire, *};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
/// GET / of shop: static table entries and one literal.
const GET: &[u8] = b"\x82\x86\x84\x41\x04shop";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A connection of HTTP/2 whose caller knows nothing of manners.
async fn rude(port: u16) -> TcpStream {
    let mut stream = connect(port).await;
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// Others get their answers, whichever worker they come to.
async fn others_are_served(scene: &Scene) {
    for _ in 0..16 {
        let mut wire = Wire::new(scene.connect().await);
        wire.send("GET /other HTTP/1.1\r\nHost: shop\r\n\r\n")
            .await
            .unwrap();
        let answer = soon("an answer for others", wire.answer("GET"))
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
    }
}

/// Sends what `next` makes until the connection is ended, reading all the while. The error of GOAWAY, where there was one.
async fn until_ended(stream: TcpStream, mut next: impl FnMut(u32) -> Vec<u8>) -> Option<u32> {
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        for n in 0.. {
            if write.write_all(&next(n)).await.is_err() {
                break;
            }
        }
    };
    let reading = async {
        let mut error = None;
        loop {
            let mut head = [0; 9];
            if read.read_exact(&mut head).await.is_err() {
                return error;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            if read.read_exact(&mut payload).await.is_err() {
                return error;
            }
            if head[3] == GOAWAY {
                error = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
    };
    // Whoever is not read any more may have been told why.
    soon("the end", async { tokio::join!(sending, reading).1 }).await
}

const ENHANCE_YOUR_CALM: u32 = 11;

#[tokio::test]
async fn rapid_resets_end_their_connection_and_nobody_elses() {
    let (application, _) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let flood = until_ended(rude(scene.outbound).await, |n| {
        let stream = 2 * n + 1;
        // No error, CANCEL.
        let mut both = frame(HEADERS, 5, stream, GET);
        both.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        both
    });
    let (error, ()) = tokio::join!(flood, others_are_served(&scene));
    assert!(matches!(error, None | Some(ENHANCE_YOUR_CALM)), "{error:?}");
    scene
        .web
        .counted(&["isthmus_dataplane_requests", "reason=\"bad_request\""])
        .await;
    others_are_served(&scene).await;
}

#[tokio::test]
async fn headers_without_an_end_end_their_connection_and_nobody_elses() {
    let (application, seen) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let mut stream = rude(scene.outbound).await;
    // The end of headers does not come with it.
    stream.write_all(&frame(HEADERS, 1, 1, GET)).await.unwrap();
    // A literal without indexing, and a large one.
    let mut field = b"\x00\x01x\x7f\x81\x7e".to_vec();
    field.resize(field.len() + 16_384 - 6, b'y');
    let flood = until_ended(stream, |_| frame(CONTINUATION, 0, 1, &field));
    let (_, ()) = tokio::join!(flood, others_are_served(&scene));
    assert!(seen.take().iter().all(|asked| asked.target() == "/other"));
}

#[tokio::test]
async fn floods_of_pings_and_settings_keep_nobody_else_from_being_served() {
    let (application, _) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let pings = frame(PING, 0, 0, &[7; 8]).repeat(1000);
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(1000);
    let floods = [pings, settings].map(|frames| {
        let port = scene.outbound;
        tokio::spawn(async move {
            let mut stream = rude(port).await;
            // It reads nothing, so that what it is answered would have to be kept somewhere.
            while stream.write_all(&frames).await.is_ok() {}
        })
    });
    for _ in 0..8 {
        others_are_served(&scene).await;
    }
    for flood in floods {
        flood.abort();
    }
}

#[tokio::test]
async fn a_caller_may_have_many_requests_under_way_and_more_of_them_wait() {
    let (application, seen) = application().await;
    let scene = scene(Protocol::Http, application).await;
    // As it knows no settings yet, it begins with few.
    let (sender, connection) = h2::client::Builder::new()
        .initial_max_send_streams(10)
        .handshake::<_, bytes::Bytes>(scene.connect().await)
        .await
        .unwrap();
    let driving = tokio::spawn(connection);
    let calls = (0..1000).map(|n| {
        let mut sender = sender.clone();
        async move {
            sender = sender.ready().await.unwrap();
            let request = http::Request::get(format!("http://shop/{n}"))
                .body(())
                .unwrap();
            let answer = sender.send_request(request, true).unwrap().0;
            answer.await.unwrap().status().as_u16()
        }
    });
    let statuses = soon("all answers", futures::future::join_all(calls)).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(seen.len(), 1000);
    driving.abort();
}

#[tokio::test]
async fn interim_answers_without_end_are_no_answer() {
    let (application, _) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let mut wire = Wire::new(scene.connect().await);
    wire.send("GET /endless-hints HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await
        .unwrap();
    let answer = soon("an answer", wire.answer("GET")).await.unwrap();
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.field("x-isthmus-reason"), Some("bad_answer"));
    assert!(answer.interim.len() < 100, "{}", answer.interim.len());
    others_are_served(&scene).await;
}

#[tokio::test]
async fn a_head_that_does_not_come_is_answered_with_408() {
    let (application, seen) = application().await;
    let scene = scene_with(Protocol::Http, application, |settings| {
        settings.limits.http.headers_timeout = Duration::from_millis(200);
    })
    .await;
    let mut wire = Wire::new(scene.connect().await);
    wire.send("GET / HTTP/1.1\r\nHost: sh").await.unwrap();
    let answer = soon("an answer", wire.answer("GET")).await.unwrap();
    assert_eq!(answer.status(), 408);
    assert_eq!(answer.field("x-isthmus-reason"), Some("headers_timeout"));
    assert!(answer.closes());
    soon("the end", wire.ended()).await.unwrap();
    scene
        .web
        .counted(&[
            "isthmus_dataplane_requests",
            "status=\"408\"",
            "reason=\"headers_timeout\"",
        ])
        .await;
    // An idle connection is no slow head.
    let mut wire = Wire::new(scene.connect().await);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        wire.send("GET /x HTTP/1.1\r\nHost: shop\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(
            soon("an answer", wire.answer("GET"))
                .await
                .unwrap()
                .status(),
            200
        );
    }
    assert_eq!(seen.len(), 2);
}
