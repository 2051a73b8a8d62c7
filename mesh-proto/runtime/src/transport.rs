//! gRPC over mutual TLS.

use std::{io, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, TryFutureExt as _, stream};
use hyper_util::rt::TokioIo;
use mesh_proto::spiffe::SpiffeId;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, server::TlsStream};
use tonic::transport::{
    Channel, Endpoint, Uri,
    server::{TcpConnectInfo, TlsConnectInfo},
};

use crate::tls;

/// How long a TCP connect with its TLS handshake may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
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
    let uri: Uri = format!("http://{address}")
        .parse()
        .map_err(|_| ConnectError::Address(address.to_owned()))?;
    if uri.port().is_none() {
        return Err(ConnectError::Address(address.to_owned()));
    }
    let target = address.to_owned();
    let connector =
        tower::service_fn(move |_: Uri| connect(target.clone(), tls.clone()).map_ok(TokioIo::new));
    Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| ConnectError::Connect {
            address: address.to_owned(),
            reason: innermost(&error),
        })
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
    request
        .extensions()
        .get::<TlsConnectInfo<TcpConnectInfo>>()?
        .get_ref()
        .remote_addr()
}
