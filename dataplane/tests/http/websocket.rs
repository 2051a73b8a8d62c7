//! WebSocket (FIELD c15): whichever version of HTTP each hop speaks, and whoever ends it.

use bytes::Bytes;
use h2::ext::Protocol as Extended;
use http::{Method, Request, Response};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{wire_client::Wire, *};

/// A masked text frame (RFC 6455 §5.2), as callers send it.
fn frame_of_caller(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x80 | opcode, 0x80 | u8::try_from(payload.len()).unwrap()];
    frame.extend(mask);
    frame.extend(
        payload
            .iter()
            .enumerate()
            .map(|(n, byte)| byte ^ mask[n % 4]),
    );
    frame
}

fn frame_of_server(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode, u8::try_from(payload.len()).unwrap()];
    frame.extend(payload);
    frame
}

const TEXT: u8 = 1;
const CLOSE: u8 = 8;

/// Takes one frame of a caller out of the buffer: opcode and payload.
fn take_frame(buffer: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let length = usize::from(*buffer.get(1)? & 0x7f);
    if buffer.len() < 6 + length {
        return None;
    }
    let frame: Vec<u8> = buffer.drain(..6 + length).collect();
    let mask = &frame[2..6];
    let payload = frame[6..].iter().enumerate();
    let payload = payload.map(|(n, byte)| byte ^ mask[n % 4]).collect();
    Some((frame[0] & 0x0f, payload))
}

/// What the server makes of what has come: what it says, and whether that was its last word. `bye` makes it close first.
fn respond(buffer: &mut Vec<u8>) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    while let Some((opcode, payload)) = take_frame(buffer) {
        match (opcode, &payload[..]) {
            (CLOSE, _) => {
                out.extend(frame_of_server(CLOSE, &payload));
                return (out, true);
            }
            (_, b"bye") => {
                out.extend(frame_of_server(CLOSE, b"\x03\xe9"));
                return (out, true);
            }
            (opcode, payload) => out.extend(frame_of_server(opcode, payload)),
        }
    }
    (out, false)
}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// An application that speaks WebSocket over HTTP/1.1.
async fn server_of_http1() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut wire = Wire::new(stream);
                while let Some(head) = wire.head().await? {
                    let is_wanted = head.method() == "GET"
                        && head
                            .field("upgrade")
                            .is_some_and(|u| u.eq_ignore_ascii_case("websocket"))
                        && head
                            .field("connection")
                            .is_some_and(|c| c.eq_ignore_ascii_case("upgrade"))
                        && head.field("sec-websocket-version") == Some("13")
                        && head
                            .field("sec-websocket-key")
                            .is_some_and(|key| key.len() == 24);
                    if !is_wanted || head.target() != "/chat?room=1" {
                        wire.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                            .await?;
                        continue;
                    }
                    // Whichever key the hop before sent: the caller's own answer is looked at there.
                    wire.send(format!("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {ACCEPT}\r\nsec-websocket-protocol: chat\r\n\r\n"))
                        .await?;
                    let mut stream = wire.stream;
                    let mut buffer = wire.buffer;
                    loop {
                        let (out, is_last) = respond(&mut buffer);
                        stream.write_all(&out).await?;
                        if is_last {
                            return stream.shutdown().await;
                        }
                        if stream.read_buf(&mut buffer).await? == 0 {
                            return Ok(());
                        }
                    }
                }
                Ok::<_, std::io::Error>(())
            });
        }
    });
    port
}

/// An application that speaks WebSocket over HTTP/2.
async fn server_of_http2() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                let mut h2 = builder
                    .enable_connect_protocol()
                    .handshake::<_, Bytes>(stream)
                    .await?;
                while let Some(request) = h2.accept().await {
                    let (request, mut answer) = request?;
                    let protocol = request.extensions().get::<Extended>();
                    assert_eq!(protocol.map(Extended::as_str), Some("websocket"));
                    assert_eq!(request.method(), Method::CONNECT);
                    let mut body = request.into_body();
                    let head = Response::builder().header("sec-websocket-protocol", "chat");
                    let mut out = answer.send_response(head.body(()).unwrap(), false)?;
                    tokio::spawn(async move {
                        let mut buffer = Vec::new();
                        while let Some(data) = body.data().await {
                            let data = data?;
                            let _ = body.flow_control().release_capacity(data.len());
                            buffer.extend_from_slice(&data);
                            let (said, is_last) = respond(&mut buffer);
                            out.send_data(said.into(), is_last)?;
                            if is_last {
                                break;
                            }
                        }
                        Ok::<_, h2::Error>(())
                    });
                }
                Ok::<_, h2::Error>(())
            });
        }
    });
    port
}

/// Whose word is the last.
#[derive(Debug, Clone, Copy)]
enum Ends {
    Caller,
    Server,
}

fn last_words(ends: Ends) -> (Vec<u8>, Vec<u8>) {
    match ends {
        Ends::Caller => (
            frame_of_caller(CLOSE, b"\x03\xe8"),
            frame_of_server(CLOSE, b"\x03\xe8"),
        ),
        Ends::Server => (
            frame_of_caller(TEXT, b"bye"),
            frame_of_server(CLOSE, b"\x03\xe9"),
        ),
    }
}

async fn caller_of_http1(port: u16, ends: Ends) {
    let mut wire = Wire::new(connect(port).await);
    wire.send(format!("GET /chat?room=1 HTTP/1.1\r\nHost: shop\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"))
        .await
        .unwrap();
    let answer = soon("an answer", wire.answer("GET")).await.unwrap();
    assert_eq!(answer.status(), 101, "{answer:?}");
    assert_eq!(answer.field("upgrade"), Some("websocket"));
    assert!(
        answer
            .field("connection")
            .unwrap()
            .eq_ignore_ascii_case("upgrade")
    );
    assert_eq!(answer.field("sec-websocket-accept"), Some(ACCEPT));
    assert_eq!(answer.field("sec-websocket-protocol"), Some("chat"));
    assert_eq!(answer.field("content-length"), None);
    let mut stream = wire.stream;
    assert!(wire.buffer.is_empty());
    for n in 0..100 {
        let word = format!("word {n}");
        stream
            .write_all(&frame_of_caller(TEXT, word.as_bytes()))
            .await
            .unwrap();
        let wanted = frame_of_server(TEXT, word.as_bytes());
        let mut echoed = vec![0; wanted.len()];
        soon("an echo", stream.read_exact(&mut echoed))
            .await
            .unwrap();
        assert_eq!(echoed, wanted);
    }
    let (say, hear) = last_words(ends);
    stream.write_all(&say).await.unwrap();
    let mut heard = Vec::new();
    soon("the end", stream.read_to_end(&mut heard))
        .await
        .unwrap();
    assert_eq!(heard, hear);
}

async fn caller_of_http2(port: u16, ends: Ends) {
    let (mut sender, connection) = h2::client::handshake(connect(port).await).await.unwrap();
    let connection = tokio::spawn(connection);
    // Whether WebSocket may be asked for, the server's settings say.
    soon("extended CONNECT is allowed", async {
        while !sender.is_extended_connect_protocol_enabled() {
            sender = sender.clone().ready().await.unwrap();
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = "http://shop/chat?room=1".parse().unwrap();
    request
        .extensions_mut()
        .insert(Extended::from_static("websocket"));
    let headers = request.headers_mut();
    headers.insert("sec-websocket-version", "13".parse().unwrap());
    headers.insert("sec-websocket-protocol", "chat".parse().unwrap());
    let (answer, mut out) = sender.send_request(request, false).unwrap();
    let answer = soon("an answer", answer).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
    for name in ["sec-websocket-accept", "upgrade", "connection"] {
        assert!(!answer.headers().contains_key(name), "{answer:?}");
    }
    let mut body = answer.into_body();
    let mut heard = Vec::new();
    for n in 0..100 {
        let word = format!("word {n}");
        out.send_data(frame_of_caller(TEXT, word.as_bytes()).into(), false)
            .unwrap();
        let wanted = frame_of_server(TEXT, word.as_bytes());
        while heard.len() < wanted.len() {
            let data = soon("an echo", body.data()).await.unwrap().unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            heard.extend_from_slice(&data);
        }
        assert_eq!(heard, wanted);
        heard.clear();
    }
    let (say, hear) = last_words(ends);
    out.send_data(say.into(), false).unwrap();
    while let Some(data) = soon("the end", body.data()).await {
        heard.extend_from_slice(&data.unwrap());
    }
    assert_eq!(heard, hear);
    connection.abort();
}

#[tokio::test]
async fn websocket_passes_over_http1_all_the_way() {
    let scene = scene(Protocol::Http, server_of_http1().await).await;
    caller_of_http1(scene.outbound, Ends::Caller).await;
    caller_of_http1(scene.outbound, Ends::Server).await;
    scene
        .web
        .counted(&[
            "isthmus_dataplane_requests",
            "status=\"101\"",
            "reason=\"\"",
        ])
        .await;
}

#[tokio::test]
async fn websocket_passes_from_http2_to_an_application_of_http1() {
    let scene = scene(Protocol::Http, server_of_http1().await).await;
    caller_of_http2(scene.outbound, Ends::Caller).await;
    caller_of_http2(scene.outbound, Ends::Server).await;
}

#[tokio::test]
async fn websocket_passes_over_http2_to_an_application_of_http2() {
    let scene = scene(Protocol::Http2, server_of_http2().await).await;
    caller_of_http2(scene.outbound, Ends::Caller).await;
    caller_of_http2(scene.outbound, Ends::Server).await;
    caller_of_http1(scene.outbound, Ends::Caller).await;
    caller_of_http1(scene.outbound, Ends::Server).await;
}
