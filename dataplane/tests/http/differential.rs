//! What a caller gets, and what the application sees, is what it would be without proxies (FIELD c18).

use std::fmt::Write as _;

use futures::future::join_all;
use tokio::io::AsyncWriteExt as _;

use super::{
    application::{SUM, Seen, application, pattern, sum},
    wire_client::{Message, Wire},
    *,
};

enum Step {
    Send(String),
    /// Waits for an interim answer.
    Interim,
    /// Waits for the answer to a request with this method.
    Answer(&'static str),
    /// The caller says that nothing more comes.
    End,
}
use Step::*;

fn send(text: &str) -> Step {
    Send(text.to_owned())
}

/// Fields of one hop, and those that the mesh adds.
const NOT_COMPARED: [&str; 6] = [
    "connection",
    "keep-alive",
    "transfer-encoding",
    "x-request-id",
    "date",
    "trailer",
];

fn describe(message: &Message) -> String {
    let mut fields = message.fields.clone();
    fields.retain(|(name, value)| {
        let is_empty_host = name == "host" && value.is_empty();
        !is_empty_host && !NOT_COMPARED.contains(&name.as_str())
    });
    // Fields of one name have an order, those of different names have none.
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    let start = match message.start.split_once(' ') {
        Some((version, rest)) if version.starts_with("HTTP/") => {
            rest.split(' ').next().unwrap_or_default().to_owned()
        }
        _ => {
            let target = message.target();
            let target = target.strip_prefix("http://shop").unwrap_or(target);
            format!("{} {target}", message.method())
        }
    };
    let mut text = format!("{start} {fields:?} {:?}", message.text());
    let mut trailers = message.trailers.clone();
    trailers.sort();
    write!(text, " {trailers:?}").unwrap();
    for interim in &message.interim {
        write!(text, " after {}", describe(interim)).unwrap();
    }
    text
}

const BROKEN: &str = "no whole answer";

/// What a caller at `port` gets and what the application sees.
async fn run(port: u16, seen: &Seen, steps: &[Step]) -> (Vec<String>, Vec<String>) {
    let mut wire = Wire::new(connect(port).await);
    let mut got = Vec::new();
    for step in steps {
        match step {
            Send(text) => {
                // Who has been answered early may be told by a reset.
                let _ = wire.send(text).await;
            }
            Interim => match soon("an interim answer", wire.head()).await {
                Ok(Some(head)) => got.push(describe(&head)),
                other => got.push(format!("{other:?}")),
            },
            Answer(method) => match soon("an answer", wire.answer(method)).await {
                Ok(answer) => got.push(describe(&answer)),
                Err(_) => got.push(BROKEN.to_owned()),
            },
            End => wire.stream.shutdown().await.unwrap(),
        }
    }
    drop(wire);
    let wanted = steps.iter().filter(|step| matches!(step, Answer(_)));
    let wanted = wanted.count();
    let what = format!("the application has seen the requests of which {got:#?} came");
    eventually(&what, async || seen.len() >= wanted).await;
    (got, seen.take().iter().map(describe).collect())
}

const GET: &str = "GET /x HTTP/1.1\r\nhost: shop\r\n\r\n";

fn cases() -> Vec<(&'static str, Vec<Step>)> {
    let get = |path: &str| {
        send(&format!(
            "GET {path} HTTP/1.1\r\nHost: shop\r\nX-A: b\r\n\r\n"
        ))
    };
    let head = |path: &str| send(&format!("HEAD {path} HTTP/1.1\r\nHost: shop\r\n\r\n"));
    let again = || send(GET);
    vec![
        (
            "one request after the other",
            vec![get("/a?b=c"), Answer("GET"), get("/d"), Answer("GET")],
        ),
        (
            "targets and fields as they were written",
            vec![
                send(
                    "GET //a%20b//c;d=e?x=%ff&y=a|b&&z=' HTTP/1.1\r\nHost: shop:81\r\nX-Two: 1\r\nCookie: a=b\r\nx-two: 2\r\nX-Empty:\r\nX-Space:  a  b \r\nAccept-Encoding: gzip\r\n\r\n",
                ),
                Answer("GET"),
            ],
        ),
        (
            "HTTP/1.0 without Host",
            vec![send("GET /x HTTP/1.0\r\n\r\n"), Answer("GET")],
        ),
        (
            "HTTP/1.0 with Host and a body",
            vec![
                send("POST /x HTTP/1.0\r\nHost: shop\r\nContent-Length: 3\r\n\r\nabc"),
                Answer("POST"),
            ],
        ),
        (
            "HTTP/1.0 that keeps the connection",
            vec![
                send("GET /x HTTP/1.0\r\nHost: shop\r\nConnection: keep-alive\r\n\r\n"),
                Answer("GET"),
                send("GET /y HTTP/1.0\r\nHost: shop\r\n\r\n"),
                Answer("GET"),
            ],
        ),
        (
            "requests that come at once",
            vec![
                send(
                    "GET /1 HTTP/1.1\r\nHost: shop\r\n\r\nPOST /2 HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhelloPOST /3 HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\nGET /4 HTTP/1.1\r\nHost: shop\r\n\r\n",
                ),
                Answer("GET"),
                Answer("POST"),
                Answer("POST"),
                Answer("GET"),
            ],
        ),
        (
            "a caller that ends what it sends after its request",
            vec![get("/x"), End, Answer("GET")],
        ),
        (
            "a caller waits for a 100, and gets it",
            vec![
                send(
                    "POST /continue HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
                ),
                Interim,
                send("body"),
                Answer("POST"),
                again(),
                Answer("GET"),
            ],
        ),
        (
            "a caller waits for a 100, and is refused",
            vec![
                send(
                    "POST /expectation-failed HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
                ),
                Answer("POST"),
            ],
        ),
        (
            "a caller would wait for a 100, but the server says none",
            vec![
                send(
                    "POST /x HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
                ),
                send("body"),
                Answer("POST"),
            ],
        ),
        (
            "chunks and trailers from the caller",
            vec![
                send(
                    "POST /x HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\nabc\r\nA\r\n",
                ),
                send("0123456789\r\n"),
                send("0\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n"),
                Answer("POST"),
                again(),
                Answer("GET"),
            ],
        ),
        (
            "chunks and trailers both ways",
            vec![
                send(
                    "POST /chunked HTTP/1.1\r\nHost: shop\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\nx-y: z\r\n\r\n",
                ),
                Answer("POST"),
                again(),
                Answer("GET"),
            ],
        ),
        (
            "a request byte by byte",
            "POST /x HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n"
                .chars()
                .map(|byte| Send(byte.to_string()))
                .chain([Answer("POST")])
                .collect(),
        ),
        (
            "HEAD",
            vec![head("/head"), Answer("HEAD"), again(), Answer("GET")],
        ),
        (
            "HEAD of what would come in chunks",
            vec![head("/head-chunked"), Answer("HEAD"), again(), Answer("GET")],
        ),
        (
            "204",
            vec![get("/no-content"), Answer("GET"), again(), Answer("GET")],
        ),
        (
            "304 with the length of what it does not send",
            vec![get("/not-modified"), Answer("GET"), again(), Answer("GET")],
        ),
        (
            "absolute form, whose host counts",
            vec![
                send("GET http://shop/a?b HTTP/1.1\r\nHost: shop\r\n\r\n"),
                Answer("GET"),
            ],
        ),
        (
            "OPTIONS of the server",
            vec![
                send("OPTIONS * HTTP/1.1\r\nHost: shop\r\n\r\n"),
                Answer("OPTIONS"),
                again(),
                Answer("GET"),
            ],
        ),
        ("early hints", vec![get("/hints"), Answer("GET"), again(), Answer("GET")]),
        (
            "an early answer, while the body still comes",
            vec![
                send("POST /early HTTP/1.1\r\nHost: shop\r\nContent-Length: 6\r\n\r\nabc"),
                Answer("POST"),
            ],
        ),
        (
            "a refusal, while the body still comes",
            vec![
                send("POST /refuse HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000000\r\n\r\nabc"),
                Answer("POST"),
            ],
        ),
        ("an answer up to the connection's end", vec![get("/until-close"), Answer("GET")]),
        ("an answer of HTTP/1.0", vec![get("/http10"), Answer("GET")]),
        ("an answer that breaks off", vec![get("/broken"), Answer("GET")]),
        (
            "a field that is there twice in an answer",
            vec![get("/cookies"), Answer("GET")],
        ),
        (
            "methods that nobody knows",
            vec![
                send("BREW /pot HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\nab"),
                Answer("BREW"),
                send("PROPFIND /pot HTTP/1.1\r\nHost: shop\r\n\r\n"),
                Answer("PROPFIND"),
            ],
        ),
    ]
}

async fn compare(scene: &Scene, seen: &Seen, how: &str) {
    // What was asked before is not what is compared.
    seen.take();
    for (name, steps) in cases() {
        let direct = run(scene.application, seen, &steps).await;
        let meshed = run(scene.outbound, seen, &steps).await;
        let mut got = meshed.0;
        for (direct, meshed) in direct.0.iter().zip(&mut got) {
            // A stream that is reset may lose what came before, so that nothing of a broken answer has gone back yet.
            if direct == BROKEN && meshed.starts_with("502 ") {
                BROKEN.clone_into(meshed);
            }
        }
        assert_eq!(direct.0, got, "what the caller gets: {name} ({how})");
        assert_eq!(
            direct.1, meshed.1,
            "what the application sees: {name} ({how})"
        );
    }
}

#[tokio::test]
async fn http_passes_as_if_there_were_no_proxies() {
    let (application, seen) = application().await;
    let scene = scene(Protocol::Http, application).await;
    compare(&scene, &seen, "HTTP/1.1 between the sidecars").await;
}

#[tokio::test]
async fn http_passes_as_if_there_were_no_proxies_over_http2_between_them() {
    let (application, seen) = application().await;
    let scene = scene(Protocol::Http, application).await;
    // So many are under way to one endpoint that it is cheaper to share a connection.
    let held = (0..16).map(|_| async {
        let mut wire = Wire::new(scene.connect().await);
        wire.send("GET /hang HTTP/1.1\r\nHost: shop\r\n\r\n")
            .await
            .unwrap();
        wire
    });
    let held = join_all(held).await;
    eventually("all of them have come", async || {
        seen.hanging() == held.len()
    })
    .await;
    compare(&scene, &seen, "HTTP/2 between the sidecars").await;
}

#[tokio::test]
async fn http_passes_as_if_there_were_no_proxies_where_nothing_is_declared() {
    let (application, seen) = application().await;
    let scene = scene(Protocol::Detect, application).await;
    compare(&scene, &seen, "detected").await;
}

#[tokio::test]
async fn what_is_of_one_hop_stays_there() {
    let (application, seen) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let mut wire = Wire::new(scene.connect().await);
    wire.send("GET /hop-fields HTTP/1.1\r\nHost: shop\r\nConnection: x-hop, keep-alive, close-not\r\nX-Hop: 1\r\nX-End: 2\r\nKeep-Alive: timeout=3\r\nProxy-Connection: keep-alive\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\n\r\n")
        .await
        .unwrap();
    let answer = soon("an answer", wire.answer("GET")).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.field("x-end"), Some("2"));
    assert_eq!(answer.field("x-hop"), None);
    assert_eq!(answer.field("keep-alive"), None);
    let cookies = answer
        .fields
        .iter()
        .filter(|(name, _)| name == "set-cookie");
    let cookies: Vec<_> = cookies.map(|(_, value)| value.as_str()).collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    let asked = seen.take().pop().unwrap();
    assert_eq!(asked.field("x-end"), Some("2"));
    assert_eq!(asked.field("te"), Some("trailers"));
    for name in ["x-hop", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(asked.field(name), None, "{asked:?}");
    }
}

#[tokio::test]
async fn connect_is_refused_and_counted() {
    let (application, seen) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let mut wire = Wire::new(scene.connect().await);
    wire.send(
        "CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\n\r\nGET / HTTP/1.1\r\nHost: shop\r\n\r\n",
    )
    .await
    .unwrap();
    let answer = soon("an answer", wire.answer("CONNECT")).await.unwrap();
    assert_eq!(answer.status(), 405);
    assert!(answer.closes());
    soon("the end", wire.ended()).await.unwrap();
    scene
        .web
        .counted(&[
            "isthmus_dataplane_requests",
            "status=\"405\"",
            "reason=\"bad_request\"",
        ])
        .await;
    assert!(seen.take().is_empty());
}

#[tokio::test]
async fn an_application_may_answer_early_and_the_caller_reads_it() {
    let (application, _) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let mut wire = Wire::new(scene.connect().await);
    wire.send("POST /refuse HTTP/1.1\r\nHost: shop\r\nContent-Length: 40000000\r\n\r\n")
        .await
        .unwrap();
    let (read, mut write) = wire.stream.into_split();
    // More than any buffer on the way holds: only somebody who reads it, or ends, lets this end.
    let sending = async {
        let part = vec![b'x'; 1 << 20];
        for _ in 0..40 {
            if write.write_all(&part).await.is_err() {
                return;
            }
        }
    };
    let mut wire = Wire::new(tokio::io::join(read, tokio::io::sink()));
    let (answer, ()) = soon("the answer", async {
        tokio::join!(wire.answer("POST"), sending)
    })
    .await;
    let answer = answer.unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (413, "big"));
}

#[tokio::test]
async fn megabytes_pass_unharmed_both_ways() {
    const LENGTH: usize = 50 << 20;
    let (application, _) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let up = async {
        let mut wire = Wire::new(scene.connect().await);
        wire.send(format!(
            "PUT /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: {LENGTH}\r\n\r\n"
        ))
        .await
        .unwrap();
        let mut so_far = SUM;
        for at in (0..LENGTH).step_by(1 << 20) {
            let part = pattern(at, 1 << 20);
            so_far = sum(&part, so_far);
            wire.send(part).await.unwrap();
        }
        let answer = wire.answer("PUT").await.unwrap();
        assert_eq!(answer.text(), format!("{LENGTH} {so_far:x}"));
    };
    let down = async {
        let mut wire = Wire::new(scene.connect().await);
        wire.send(format!(
            "GET /download?length={LENGTH} HTTP/1.1\r\nHost: shop\r\n\r\n"
        ))
        .await
        .unwrap();
        let answer = wire.answer("GET").await.unwrap();
        assert_eq!(answer.body.len(), LENGTH);
        for (at, part) in answer.body.chunks(1 << 20).enumerate() {
            assert!(part == pattern(at << 20, part.len()), "part {at}");
        }
    };
    soon("both", async { tokio::join!(up, down) }).await;
}
