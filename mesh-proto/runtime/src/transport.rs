//! gRPC over mutual TLS.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _, TryFutureExt as _, stream};
use hyper::{Request, Response, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_proto::spiffe::SpiffeId;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, server::TlsStream};
use tonic::{
    body::Body,
    transport::{
        Channel, Endpoint, Uri,
        server::{TcpConnectInfo, TlsConnectInfo},
    },
};
use tower::Service;

use crate::tls;

/// How long a TCP connect with its TLS handshake may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which the server is asked whether it is still there, and how long it has for the answer.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way at once on one listener; more clients wait in the kernel's queue.
const HANDSHAKES_AT_ONCE: usize = 256;

/// Protocol that gRPC speaks over TLS.
pub const GRPC_ALPN: &[&[u8]] = &[b"h2"];

/// Why a server is not reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not an address.
    #[error("{0:?} is not an address: write host:port")]
    Address(String),
    /// Not reached, or not the one that was wanted. The message is the innermost cause.
    #[error("cannot reach {address}: {reason}")]
    Connect {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
}

/// Connects to `address` (`host:port`, an IPv6 host in brackets) and checks the server by `tls`. The host is resolved
/// anew at each call, and again whenever the channel reconnects.
///
/// # Errors
/// Where the address is none, or the server is not reached or refused within [`CONNECT_TIMEOUT`].
pub async fn channel(address: &str, tls: Arc<ClientConfig>) -> Result<Channel, ConnectError> {
    let uri = origin(address)?;
    let target = address.to_owned();
    let connector =
        tower::service_fn(move |_: Uri| connect(target.clone(), tls.clone()).map_ok(TokioIo::new));
    Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| ConnectError::Connect {
            address: address.to_owned(),
            reason: innermost(&error),
        })
}

/// One connection to `address`, for a client that itself decides when to connect anew. Otherwise as [`channel`], of
/// which it has neither the queue nor the code, most of which every sidecar would have in memory.
///
/// # Errors
/// As [`channel`].
pub async fn connection(address: &str, tls: Arc<ClientConfig>) -> Result<Connection, ConnectError> {
    let origin = origin(address)?;
    let failed = |error: &(dyn std::error::Error + 'static)| ConnectError::Connect {
        address: address.to_owned(),
        reason: innermost(error),
    };
    let stream = connect(address.to_owned(), tls)
        .await
        .map_err(|error| failed(&error))?;
    let (requests, driver) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    // It ends when the last request has; who waits for an answer hears of errors.
    tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "a connection to a control plane broke");
        }
    });
    Ok(Connection { requests, origin })
}

/// What [`connection`] gives: a service for tonic's clients.
#[derive(Debug, Clone)]
pub struct Connection {
    requests: http2::SendRequest<Body>,
    origin: Uri,
}

impl Connection {
    /// For the `with_origin` of tonic's clients.
    #[must_use]
    pub fn origin(&self) -> Uri {
        self.origin.clone()
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.requests.send_request(request))
    }
}

fn origin(address: &str) -> Result<Uri, ConnectError> {
    format!("http://{address}")
        .parse()
        .ok()
        .filter(|uri: &Uri| uri.port().is_some())
        .ok_or_else(|| ConnectError::Address(address.to_owned()))
}

async fn connect(
    address: String,
    tls: Arc<ClientConfig>,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let connecting = async {
        let stream = TcpStream::connect(&address).await?;
        stream.set_nodelay(true)?;
        // The verifiers look at identities, never at this name.
        let name = ServerName::try_from("isthmus.local").map_err(io::Error::other)?;
        TlsConnector::from(tls).connect(name, stream).await
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            )
        })?
}

/// The innermost cause of an error, which is what a person can act on.
#[must_use]
pub fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Connections of a listener after their TLS handshake, for tonic's `serve_with_incoming`. Handshakes run side by side
/// and are given up after ten seconds; one that fails is logged and does not end the stream.
pub fn incoming(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
    let acceptor = TlsAcceptor::from(tls);
    stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await;
        if accepted.is_err() {
            // Out of descriptors, most likely: do not spin while it lasts.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some((accepted, listener))
    })
    .map(move |accepted| {
        let acceptor = acceptor.clone();
        async move {
            let (stream, peer) = accepted
                .inspect_err(|error| tracing::warn!(%error, "a connection could not be accepted"))
                .ok()?;
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => Some(Ok(stream)),
                Ok(Err(error)) => {
                    tracing::info!(%error, %peer, "a TLS handshake failed");
                    None
                }
                Err(_) => {
                    tracing::info!(%peer, "a TLS handshake took too long");
                    None
                }
            }
        }
    })
    .buffer_unordered(HANDSHAKES_AT_ONCE)
    .filter_map(std::future::ready)
}

/// The verified identity of the caller of a gRPC method; `None` where it presented no certificate.
#[must_use]
pub fn peer_spiffe<T>(request: &tonic::Request<T>) -> Option<SpiffeId> {
    let info = request
        .extensions()
        .get::<TlsConnectInfo<TcpConnectInfo>>()?;
    let chain = info.peer_certs()?;
    tls::spiffe_id(chain.first()?).ok()
}

/// The address of the caller of a gRPC method.
#[must_use]
pub fn peer_address<T>(request: &tonic::Request<T>) -> Option<std::net::SocketAddr> {
    let address = request
        .extensions()
        .get::<TlsConnectInfo<TcpConnectInfo>>()?
        .get_ref()
        .remote_addr()?;
    // Where one socket listens for both families, an IPv4 caller looks like ::ffff:192.0.2.1.
    Some((address.ip().to_canonical(), address.port()).into())
}
