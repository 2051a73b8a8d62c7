//! The server of the API: TLS connections, HTTP/1 and HTTP/2, and their end.

use std::{io, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use futures::StreamExt as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::server::TlsStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::caller::PeerAddress;

/// Protocols offered in TLS.
pub const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];
/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// Time for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: u32 = 64 << 10;

/// Serves `router` until `stop`, then lets requests under way end, for `drain` at most.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    stop: CancellationToken,
    drain: Duration,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let mut incoming = std::pin::pin!(mesh_runtime::transport::incoming(listener, tls));
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = stop.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = incoming.next() => accepted,
            () = stop.cancelled() => break,
        };
        let (Ok(place), Some(accepted)) = (place, accepted) else {
            break;
        };
        let Ok(stream) = accepted else { continue };
        let router = router.clone();
        let stop = stop.clone();
        connections.spawn(async move {
            if let Err(error) = connection(stream, router, stop).await {
                tracing::debug!(%error, "a connection to the API ended badly");
            }
            drop(place);
        });
    }
    connections.close();
    if tokio::time::timeout(drain, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "requests were cut off that did not end in time"
        );
    }
}

async fn connection(
    stream: TlsStream<TcpStream>,
    router: Router,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let peer = stream.get_ref().0.peer_addr().map_err(io::Error::other)?;
    // Where one socket listens for both families, an IPv4 caller looks like ::ffff:192.0.2.1.
    let peer = (peer.ip().to_canonical(), peer.port()).into();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(PeerAddress(peer));
        router.clone().oneshot(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX as usize)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
