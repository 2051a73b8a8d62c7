//! What is said on a connection, by protocol. Every answer is looked at: an error is not a fast answer.

use std::net::SocketAddr;

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{Method, Request, Version};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::application::PAGE;

/// What calls of gRPC begin with.
pub(crate) const GRPC_SERVICE: &str = "/isthmus.bench.Echo/";

/// More than any answer but bulk has: nobody waits for leave to send.
const WINDOW: u32 = 1 << 20;

/// What an exchange is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Talk {
    /// The page, over a connection that is kept.
    Http1,
    /// The page, over a connection of its own.
    Http1Anew,
    /// The page.
    Http2,
    /// A call with a message of a page's size each way.
    GrpcUnary,
    /// A message each way, in a call that goes on.
    GrpcStream,
}

/// One exchange after the other.
#[derive(Debug)]
pub(super) enum Conversation {
    Http1 {
        stream: TcpStream,
        answer: BytesMut,
    },
    Http1Anew {
        entry: SocketAddr,
        answer: BytesMut,
    },
    Http2 {
        connection: SendRequest<Bytes>,
    },
    GrpcUnary {
        connection: SendRequest<Bytes>,
    },
    GrpcStream {
        say: SendStream<Bytes>,
        heard: Heard,
    },
}

/// The other side of a stream, whose headers may come with the first message only.
#[derive(Debug)]
pub(super) enum Heard {
    Nothing(ResponseFuture),
    Headers(RecvStream),
}

impl Conversation {
    /// One connection with `streams` conversations, where the protocol has several on one.
    pub(super) async fn open(
        talk: Talk,
        entry: SocketAddr,
        streams: usize,
    ) -> anyhow::Result<Vec<Self>> {
        let answer = BytesMut::with_capacity(4 * PAGE);
        match talk {
            Talk::Http1 => Ok(vec![Self::Http1 {
                stream: connect(entry).await?,
                answer,
            }]),
            Talk::Http1Anew => Ok(vec![Self::Http1Anew { entry, answer }]),
            Talk::Http2 | Talk::GrpcUnary | Talk::GrpcStream => {
                let connection = connect_http2(entry).await?;
                let mut all = Vec::with_capacity(streams);
                for _ in 0..streams {
                    let connection = connection.clone();
                    all.push(match talk {
                        Talk::GrpcUnary => Self::GrpcUnary { connection },
                        Talk::GrpcStream => {
                            let mut connection = connection.ready().await?;
                            let request = grpc_request("Stream")?;
                            let (answer, say) = connection.send_request(request, false)?;
                            Self::GrpcStream {
                                say,
                                heard: Heard::Nothing(answer),
                            }
                        }
                        _ => Self::Http2 { connection },
                    });
                }
                Ok(all)
            }
        }
    }

    /// Asks, and waits for the whole answer, which must be the right one.
    pub(super) async fn exchange(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Http1 { stream, answer } => page_http1(stream, answer).await,
            Self::Http1Anew { entry, answer } => page_anew(*entry, answer).await,
            Self::Http2 { connection } => page_http2(connection).await,
            Self::GrpcUnary { connection } => call(connection).await,
            Self::GrpcStream { say, heard } => message(say, heard).await,
        }
    }
}

async fn connect(entry: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(entry).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn connect_http2(entry: SocketAddr) -> anyhow::Result<SendRequest<Bytes>> {
    let stream = connect(entry).await?;
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .enable_push(false)
        .handshake(stream)
        .await?;
    // What it fails with, its requests fail with as well.
    tokio::spawn(connection);
    Ok(requests)
}

async fn page_http1(stream: &mut TcpStream, answer: &mut BytesMut) -> anyhow::Result<()> {
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: page\r\n\r\n")
        .await?;
    answer.clear();
    loop {
        anyhow::ensure!(
            stream.read_buf(answer).await? > 0,
            "the connection was closed"
        );
        if let Some(length) = length_of(answer)?
            && answer.len() >= length
        {
            anyhow::ensure!(answer.len() == length, "more than was asked for");
            return Ok(());
        }
    }
}

async fn page_anew(entry: SocketAddr, answer: &mut BytesMut) -> anyhow::Result<()> {
    let mut stream = connect(entry).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: page\r\nConnection: close\r\n\r\n")
        .await?;
    answer.clear();
    while stream.read_buf(answer).await? > 0 {}
    let length = length_of(answer)?;
    anyhow::ensure!(
        length == Some(answer.len()),
        "the connection was closed after {} bytes",
        answer.len()
    );
    Ok(())
}

/// Length of the whole answer, once its headers are there.
fn length_of(answer: &[u8]) -> anyhow::Result<Option<usize>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut parsed = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = parsed.parse(answer)? else {
        return Ok(None);
    };
    let status = parsed.code.unwrap_or_default();
    let said = || String::from_utf8_lossy(answer).into_owned();
    anyhow::ensure!(status == 200, "status {status}: {}", said());
    let length = parsed
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| {
            std::str::from_utf8(header.value)
                .ok()?
                .parse::<usize>()
                .ok()
        });
    anyhow::ensure!(length == Some(PAGE), "not the page: {}", said());
    Ok(Some(head + PAGE))
}

async fn page_http2(connection: &mut SendRequest<Bytes>) -> anyhow::Result<()> {
    let request = Request::builder()
        .version(Version::HTTP_2)
        .uri("http://page/")
        .body(())?;
    std::future::poll_fn(|context| connection.poll_ready(context)).await?;
    let (answer, _) = connection.send_request(request, true)?;
    let answer = answer.await?;
    anyhow::ensure!(answer.status() == 200, "{answer:?}");
    let mut body = answer.into_body();
    let length = drain(&mut body).await?;
    anyhow::ensure!(length == PAGE, "a page of {length} bytes");
    Ok(())
}

async fn call(connection: &mut SendRequest<Bytes>) -> anyhow::Result<()> {
    std::future::poll_fn(|context| connection.poll_ready(context)).await?;
    let (answer, mut say) = connection.send_request(grpc_request("Unary")?, false)?;
    let said = grpc_message();
    let length = said.len();
    say.send_data(said, true)?;
    let answer = answer.await?;
    anyhow::ensure!(answer.status() == 200, "{answer:?}");
    let mut body = answer.into_body();
    let heard = drain(&mut body).await?;
    let trailers = body.trailers().await?.context("no trailers")?;
    anyhow::ensure!(
        heard == length
            && trailers
                .get("grpc-status")
                .is_some_and(|status| status == "0"),
        "{heard} bytes back, {trailers:?}"
    );
    Ok(())
}

async fn message(say: &mut SendStream<Bytes>, heard: &mut Heard) -> anyhow::Result<()> {
    let said = grpc_message();
    let mut missing = said.len();
    say.send_data(said, false)?;
    let body = match heard {
        Heard::Headers(body) => body,
        Heard::Nothing(answer) => {
            let answer = answer.await?;
            anyhow::ensure!(answer.status() == 200, "{answer:?}");
            *heard = Heard::Headers(answer.into_body());
            let Heard::Headers(body) = heard else {
                unreachable!("it was just put there")
            };
            body
        }
    };
    while missing > 0 {
        let data = body.data().await.context("the call has ended")??;
        body.flow_control().release_capacity(data.len())?;
        missing = missing
            .checked_sub(data.len())
            .context("more than was said")?;
    }
    Ok(())
}

/// Bytes of a body, to its end.
async fn drain(body: &mut RecvStream) -> anyhow::Result<usize> {
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        length += data.len();
    }
    Ok(length)
}

fn grpc_request(method: &str) -> anyhow::Result<Request<()>> {
    Ok(Request::builder()
        .version(Version::HTTP_2)
        .method(Method::POST)
        .uri(format!("http://page{GRPC_SERVICE}{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?)
}

/// Not compressed, its length, and the message.
fn grpc_message() -> Bytes {
    let mut message = BytesMut::with_capacity(5 + PAGE);
    message.put_u8(0);
    message.put_u32(PAGE as u32);
    message.put_bytes(b'x', PAGE);
    message.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_is_an_answer() {
        let page = |status: u16, length: usize| {
            format!("HTTP/1.1 {status} X\r\ncontent-LENGTH: {length}\r\n\r\n")
        };
        let head = page(200, PAGE);
        assert_eq!(length_of(head.as_bytes()).unwrap(), Some(head.len() + PAGE));
        assert_eq!(length_of(&head.as_bytes()[..20]).unwrap(), None);
        assert!(length_of(page(503, PAGE).as_bytes()).is_err());
        assert!(length_of(page(200, 7).as_bytes()).is_err());
    }
}
