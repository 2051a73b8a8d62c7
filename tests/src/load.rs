//! Clients that ask and ask, of which none asks anything twice, and an application that speaks gRPC.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::{
    wait::{SOON, until},
    world::{World, runtime},
};

/// What a client says, and where.
#[derive(Debug, Clone, Copy)]
pub enum Client {
    /// Requests of HTTP/1.1, one after the other on connections that stay open.
    Http1(SocketAddr),
    /// The same over HTTP/2.
    Http2(SocketAddr),
    /// Calls of gRPC.
    Grpc(SocketAddr),
    /// One stream of gRPC that lasts as long as the load: a message there, a message back.
    Stream(SocketAddr),
}

/// Clients that ask until they are told to stop.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<(Client, Arc<AtomicUsize>, JoinHandle<()>)>,
    failures: Arc<Mutex<Vec<String>>>,
}

/// How long anything may take. Nobody waits for ever.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two messages of a stream.
const PAUSE: Duration = Duration::from_millis(20);
/// Failures that are told.
const TOLD: usize = 10;

impl Load {
    /// Starts one of each.
    #[must_use]
    pub fn start(clients: &[Client]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let failures = Arc::<Mutex<Vec<String>>>::default();
        let clients = clients.iter().map(|client| {
            let done = Arc::<AtomicUsize>::default();
            let (client, stop, failures, count) =
                (*client, stop.clone(), failures.clone(), done.clone());
            let asking = runtime().spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let asked = match client {
                        Client::Http1(address) => http1(address, &stop, &count).await,
                        Client::Http2(address) => http2(address, false, &stop, &count).await,
                        Client::Grpc(address) => http2(address, true, &stop, &count).await,
                        Client::Stream(address) => stream(address, &stop, &count).await,
                    };
                    if let Err(error) = asked {
                        let after = count.load(Ordering::Relaxed);
                        let text = format!("{client:?}, after {after}: {error:#}");
                        failures.lock().expect("no panic").push(text);
                    }
                }
            });
            (client, done, asking)
        });
        Self {
            clients: clients.collect(),
            stop,
            failures,
        }
    }

    /// Waits until each client has had so many more answers.
    ///
    /// # Errors
    /// Where one does not, or any has failed.
    pub fn goes_on(&self, more: usize) -> anyhow::Result<()> {
        let counts = || -> Vec<usize> {
            let clients = self.clients.iter();
            clients
                .map(|(_, done, _)| done.load(Ordering::Relaxed))
                .collect()
        };
        let before = counts();
        until(SOON, "each client has more answers", || {
            let all = counts();
            let mut both = all.iter().zip(&before);
            both.all(|(now, before)| *now >= before + more) || self.has_not_failed().is_err()
        })
        .with_context(|| format!("{before:?}, then {:?}", counts()))?;
        self.has_not_failed()
    }

    /// # Errors
    /// Where anything has failed so far.
    pub fn has_not_failed(&self) -> anyhow::Result<()> {
        let failures = self.failures.lock().expect("no panic");
        let told = &failures[..failures.len().min(TOLD)];
        anyhow::ensure!(failures.is_empty(), "{} failed: {told:#?}", failures.len());
        Ok(())
    }

    /// Stops the clients, and says how many answers they had.
    ///
    /// # Errors
    /// Where any request failed.
    pub fn end(self) -> anyhow::Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = 0;
        let mut clients = Vec::new();
        for (_, done, asking) in self.clients {
            runtime().block_on(asking).context("a client panicked")?;
            clients.push(done);
        }
        for done in clients {
            all += done.load(Ordering::Relaxed);
        }
        let failures = self.failures.lock().expect("no panic");
        let told = &failures[..failures.len().min(TOLD)];
        anyhow::ensure!(
            failures.is_empty(),
            "{} of {all} failed: {told:#?}",
            failures.len()
        );
        Ok(all)
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> anyhow::Result<T> {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.with_context(|| format!("no {what} within {PATIENCE:?}"))
}

async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = soon("connection", TcpStream::connect(address)).await?;
    let stream = stream.context("connecting")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks on one connection until the other side says that it ends.
async fn http1(address: SocketAddr, stop: &AtomicBool, done: &AtomicUsize) -> anyhow::Result<()> {
    let mut stream = connect(address).await?;
    let mut buffer = BytesMut::new();
    while !stop.load(Ordering::Relaxed) {
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: store\r\n\r\n")
            .await?;
        let head = loop {
            let found = buffer.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = found {
                break String::from_utf8_lossy(&buffer.split_to(end + 4)).to_lowercase();
            }
            let count = soon("head", stream.read_buf(&mut buffer)).await??;
            anyhow::ensure!(count > 0, "ended before an answer");
        };
        let field = |name: &str| {
            let mut lines = head.lines();
            lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
        };
        let length = field("content-length").context("no content-length")?;
        let length: usize = length.parse()?;
        while buffer.len() < length {
            let count = soon("body", stream.read_buf(&mut buffer)).await??;
            anyhow::ensure!(count > 0, "ended in the midst of an answer");
        }
        let body = buffer.split_to(length);
        anyhow::ensure!(head.starts_with("http/1.1 200"), "{head}{body:?}");
        done.fetch_add(1, Ordering::Relaxed);
        if field("connection").as_deref() == Some("close") {
            break;
        }
    }
    Ok(())
}

/// A message of gRPC.
fn message(payload: &[u8]) -> Bytes {
    let mut message = vec![0];
    message.extend(u32::try_from(payload.len()).unwrap_or(0).to_be_bytes());
    message.extend(payload);
    message.into()
}

fn request(is_grpc: bool, path: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = format!("http://store{path}").parse().expect("a target");
    if is_grpc {
        *request.method_mut() = http::Method::POST;
        let grpc = HeaderValue::from_static("application/grpc");
        request.headers_mut().insert(header::CONTENT_TYPE, grpc);
        let trailers = HeaderValue::from_static("trailers");
        request.headers_mut().insert(header::TE, trailers);
    }
    request
}

async fn http2(
    address: SocketAddr,
    is_grpc: bool,
    stop: &AtomicBool,
    done: &AtomicUsize,
) -> anyhow::Result<()> {
    let (mut sender, connection) =
        soon("HTTP/2", h2::client::handshake(connect(address).await?)).await??;
    let driving = tokio::spawn(connection);
    while !stop.load(Ordering::Relaxed) {
        sender = soon("place", sender.ready())
            .await?
            .context("the connection")?;
        let path = if is_grpc { "/shop.Store/Get" } else { "/" };
        let (answer, mut up) = sender.send_request(request(is_grpc, path), !is_grpc)?;
        if is_grpc {
            up.send_data(message(b"once"), true)?;
        }
        let answer = soon("answer", answer).await?.context("the answer")?;
        anyhow::ensure!(answer.status() == 200, "{answer:?}");
        let headers = answer.headers().clone();
        let mut body = answer.into_body();
        while let Some(data) = soon("body", body.data()).await? {
            let data = data.context("the body")?;
            let _ = body.flow_control().release_capacity(data.len());
        }
        let trailers = soon("trailers", body.trailers())
            .await?
            .context("trailers")?;
        if is_grpc {
            let trailers = trailers.unwrap_or(headers);
            let status = trailers.get("grpc-status");
            anyhow::ensure!(status.is_some_and(|status| status == "0"), "{trailers:?}");
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    driving.abort();
    Ok(())
}

async fn stream(address: SocketAddr, stop: &AtomicBool, done: &AtomicUsize) -> anyhow::Result<()> {
    let (sender, connection) =
        soon("HTTP/2", h2::client::handshake(connect(address).await?)).await??;
    let driving = tokio::spawn(connection);
    let mut sender = soon("place", sender.ready()).await??;
    let (answer, mut up) = sender.send_request(request(true, "/shop.Store/Chat"), false)?;
    let answer = soon("answer", answer).await?.context("the answer")?;
    anyhow::ensure!(answer.status() == 200, "{answer:?}");
    let mut body = answer.into_body();
    while !stop.load(Ordering::Relaxed) {
        let said = message(b"more");
        let mut left = said.len();
        up.send_data(said, false).context("a message")?;
        while left > 0 {
            let data = soon("message back", body.data()).await?;
            let data = data
                .context("the stream was ended")?
                .context("the stream")?;
            let _ = body.flow_control().release_capacity(data.len());
            left = left.checked_sub(data.len()).context("more than was said")?;
        }
        done.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
    up.send_data(Bytes::new(), true)?;
    let trailers = soon("trailers", body.trailers()).await??;
    anyhow::ensure!(trailers.is_some(), "no trailers");
    driving.abort();
    Ok(())
}

/// A workload inside the test that speaks gRPC: whatever it is called, it sends each message back, and ends well when its caller does.
#[derive(Debug)]
pub struct Chat {
    /// Where it listens.
    pub address: SocketAddr,
}

impl Chat {
    /// Starts one on a machine (see [`World::machine`]). It ends with the test's process.
    ///
    /// # Errors
    /// Where it can not listen.
    pub fn start_at(world: &World, machine: impl Into<std::net::IpAddr>) -> anyhow::Result<Self> {
        let address = (machine.into(), world.port()?);
        let listener = runtime().block_on(TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        runtime().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await?;
                    while let Some(asked) = connection.accept().await {
                        let (request, respond) = asked?;
                        tokio::spawn(echo(request.into_body(), respond));
                    }
                    Ok::<_, h2::Error>(())
                });
            }
        });
        Ok(Self { address })
    }
}

async fn echo(
    mut body: h2::RecvStream,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let mut answer = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    answer.headers_mut().insert(header::CONTENT_TYPE, grpc);
    let mut down = respond.send_response(answer, false)?;
    while let Some(data) = body.data().await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        if !data.is_empty() {
            down.send_data(data, false)?;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    down.send_trailers(trailers)
}
