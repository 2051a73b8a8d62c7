//! Connections for the application: handshake, identity, permission, then bytes.
//!
//! Where the inbound speaks HTTP, [`http`](crate::http) takes over after the handshake, and judges request by request. Where nobody has
//! declared what it speaks, [`detect`](crate::detect) finds it out, for callers that are let in.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use mesh_proto::sni::{ClientHello, parse_client_hello};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    time::{Duration, Instant, timeout, timeout_at},
};

use crate::{
    config::{Inbound, Protocol, Timeouts, TlsMode},
    detect::{Detection, Spoken, Upstream},
    http::{
        self,
        pool::{HopKey, Made},
        serve::Caller,
        side::{InboundSide, Side},
    },
    net,
    permission::Decision,
    record::{ClosedBy, Connection, End, Limit, Reason},
    relay::relay,
    snapshot::{InboundRoute, Snapshot, Target},
    socket::Socket,
    tls::{
        handshake::{self, Established, HandshakeError},
        verify::{Refusal, VerifiedPeer, denied},
    },
    upstream::Failed,
    workers::Worker,
};

/// How long a permissive inbound waits for the first byte, before it takes the connection for plaintext of a protocol whose server
/// speaks first.
const SERVER_FIRST: Duration = Duration::from_millis(300);

/// Serves one connection, and says how it ended.
pub async fn serve(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    listen: SocketAddr,
    route: &InboundRoute,
    connection: &Rc<Connection>,
) -> End {
    let inbound = &route.inbound;
    connection.limit_idle(&inbound.timeouts);
    if inbound.tls == TlsMode::Strict {
        return serve_mesh(worker, stream, Vec::new(), listen, route, connection).await;
    }
    match Box::pin(first_bytes(worker, &mut stream, inbound)).await {
        Err(end) => end,
        Ok((First::MeshTls, hello)) => {
            Box::pin(serve_mesh(worker, stream, hello, listen, route, connection)).await
        }
        Ok((First::Plaintext, bytes)) if inbound.protocol.is_http() => {
            let socket = Socket::plain(stream, bytes);
            Box::pin(serve_http(worker, socket, listen, connection)).await
        }
        Ok((First::Plaintext, bytes)) if inbound.protocol == Protocol::Detect => {
            let socket = Socket::plain(stream, bytes);
            Box::pin(serve_detected(
                worker, socket, listen, inbound, None, connection,
            ))
            .await
        }
        // Nobody is known to have called, so nobody is asked about.
        Ok((First::Plaintext | First::OtherTls, bytes)) => {
            pass_on(worker, inbound, Socket::plain(stream, bytes), connection).await
        }
    }
}

/// Serves a connection by mesh TLS, of which `hello` has been read already.
async fn serve_mesh(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    hello: Vec<u8>,
    listen: SocketAddr,
    route: &InboundRoute,
    connection: &Rc<Connection>,
) -> End {
    let inbound = &route.inbound;
    let shaking = shake_hands(worker, &mut stream, hello, route, connection);
    let established = match Box::pin(shaking).await {
        Ok(established) => established,
        Err(end) => return end,
    };
    is_from(connection, &established.peer);
    if inbound.protocol.is_http() {
        let socket = Socket::tls(stream, established);
        // In a box, as all that a connection of bytes would carry along for as long as it is open.
        return Box::pin(serve_http(worker, socket, listen, connection)).await;
    }
    if inbound.protocol == Protocol::Detect {
        let peer = established.peer.clone();
        let socket = Socket::tls(stream, established);
        let serving = serve_detected(worker, socket, listen, inbound, Some(&peer), connection);
        return Box::pin(serving).await;
    }
    if let Err(end) = authorize(worker, inbound, &established.peer, connection) {
        return end;
    }
    pass_on(
        worker,
        inbound,
        Socket::tls(stream, established),
        connection,
    )
    .await
}

/// Bytes, to the application and back.
async fn pass_on(
    worker: &Rc<Worker>,
    inbound: &Inbound,
    source: Socket,
    connection: &Rc<Connection>,
) -> End {
    connection
        .destination_address
        .replace(Some(inbound.application.to_string().into()));
    let reaching = reach_application(inbound.application, &inbound.timeouts);
    let application = match Box::pin(reaching).await {
        Ok(application) => application,
        Err(failed) => return failed.into(),
    };
    let destination = Socket::plain(application, Vec::new());
    relay(source, destination, connection, worker).await
}

/// Finds out whether HTTP is spoken. Until it is known, and where it is not, a caller is judged as one of TCP: the application hears
/// nothing of one that may not call.
async fn serve_detected(
    worker: &Rc<Worker>,
    source: Socket,
    listen: SocketAddr,
    inbound: &Arc<Inbound>,
    peer: Option<&VerifiedPeer>,
    connection: &Rc<Connection>,
) -> End {
    if let Some(peer) = peer
        && let Err(end) = judge_connection(worker, inbound, peer, connection)
    {
        return end;
    }
    if worker.draining.get() {
        connection.drain();
    }
    let address = inbound.application;
    let timeouts = inbound.timeouts.clone();
    let of_worker = worker.clone();
    let reaching = async move {
        let stream = reach_application(address, &timeouts).await?;
        let snapshot = of_worker.shared.snapshot.load();
        Ok(Upstream {
            socket: Socket::plain(stream, Vec::new()),
            peer: None,
            outstanding: None,
            key: HopKey::Application(address),
            made: Made::new(&snapshot, None, &timeouts),
        })
    };
    let port = Rc::from(&*inbound.name);
    let mut detection = Detection::new(source, port, false, reaching);
    let spoken = match Box::pin(detection.run(worker, connection)).await {
        Ok(spoken) => spoken,
        Err(end) => return end,
    };
    if spoken != Spoken::Tcp {
        let source = detection.into_requests(worker, spoken);
        return Box::pin(serve_http(worker, source, listen, connection)).await;
    }
    // Time has passed, and what is looked at again at a change is what has been judged.
    if let Some(peer) = peer
        && let Err(end) = authorize(worker, inbound, peer, connection)
    {
        return end;
    }
    connection
        .destination_address
        .replace(Some(address.to_string().into()));
    match Box::pin(detection.next_hop.reached()).await {
        Ok(upstream) => relay(detection.source, upstream.socket, connection, worker).await,
        Err(end) => end,
    }
}

/// What a connection to a permissive inbound begins with.
enum First {
    MeshTls,
    OtherTls,
    Plaintext,
}

/// Reads until it is clear what a connection is, and gives back what has been read. Mesh TLS and HTTP speak first at once; whoever
/// is silent for a moment waits for a server that does.
async fn first_bytes(
    worker: &Worker,
    stream: &mut TcpStream,
    inbound: &Inbound,
) -> Result<(First, Vec<u8>), End> {
    let mut bytes = Vec::new();
    let handshake = worker.shared.limits.handshake_timeout;
    let limit = match inbound.protocol.is_http() {
        true => handshake,
        false => SERVER_FIRST.min(handshake),
    };
    let deadline = Instant::now() + limit;
    loop {
        match timeout_at(deadline, stream.read_buf(&mut bytes)).await {
            Err(_) if bytes.is_empty() => return Ok((First::Plaintext, bytes)),
            Err(_) => {
                return Err(End::failed(
                    Reason::HandshakeTimeout,
                    ClosedBy::Proxy,
                    "what came is the beginning of TLS, and no more came",
                ));
            }
            Ok(Err(error)) => return Err(End::failed(Reason::Reset, ClosedBy::Source, error)),
            // Whoever ends what it sends without a word may still want to read.
            Ok(Ok(0)) => return Ok((First::Plaintext, bytes)),
            Ok(Ok(_)) => {}
        }
        match parse_client_hello(&bytes) {
            ClientHello::Incomplete => {}
            ClientHello::Complete { is_mesh: true, .. } => return Ok((First::MeshTls, bytes)),
            ClientHello::Complete { is_mesh: false, .. } => return Ok((First::OtherTls, bytes)),
            ClientHello::Invalid(_) => return Ok((First::Plaintext, bytes)),
        }
    }
}

/// Requests, one by one.
async fn serve_http(
    worker: &Rc<Worker>,
    socket: Socket,
    listen: SocketAddr,
    connection: &Rc<Connection>,
) -> End {
    connection.is_http.set(true);
    if worker.draining.get() {
        connection.drain();
    }
    let peer = connection.peer.borrow().clone();
    let caller = Caller {
        worker: worker.clone(),
        is_peer: peer.is_some(),
        side: Rc::new(Side::Inbound(InboundSide::new(listen, peer))),
        connection: connection.clone(),
    };
    http::serve::serve(&caller, socket).await
}

fn is_from(connection: &Connection, peer: &VerifiedPeer) {
    connection.source.replace(workload(peer));
    connection.peer.replace(Some(peer.clone()));
}

/// What the caller is called in metrics: the last part of its identity, which the zone names after the workload.
fn workload(peer: &VerifiedPeer) -> Arc<str> {
    peer.id.path().rsplit('/').next().unwrap_or_default().into()
}

async fn shake_hands(
    worker: &Worker,
    stream: &mut TcpStream,
    hello: Vec<u8>,
    route: &InboundRoute,
    connection: &Connection,
) -> Result<Established, End> {
    let Some(tls) = route.tls.clone() else {
        return Err(End::refused(
            Reason::NoCertificate,
            "no trust anchors have come from the zone control plane yet",
        ));
    };
    let limit = worker.shared.limits.handshake_timeout;
    let shaking = async {
        let turn = worker.handshakes.acquire().await;
        let established = handshake::accept_after(stream, tls, hello).await;
        drop(turn);
        established
    };
    match timeout(limit, shaking).await {
        Ok(Ok(established)) => Ok(established),
        Ok(Err(error)) => {
            if let HandshakeError::Refused(Refusal::Permission { peer, by }) = &error {
                is_from(connection, peer);
                connection.policy.replace(by.clone());
            }
            Err(refusal(&error))
        }
        Err(_) => Err(End::failed(
            Reason::HandshakeTimeout,
            ClosedBy::Proxy,
            format!("no handshake within {} s", limit.as_secs()),
        )),
    }
}

/// What a failed handshake means for the record.
fn refusal(error: &HandshakeError) -> End {
    let reason = match error {
        HandshakeError::Refused(refusal) => match refusal {
            Refusal::ServerName(_) | Refusal::ServerNameForm(_) => Reason::ServerName,
            Refusal::NotMesh => Reason::NotMeshTls,
            Refusal::UnknownTrustDomain(_) | Refusal::Chain { .. } => Reason::PeerTrustDomain,
            Refusal::Time { .. } => Reason::PeerClock,
            Refusal::Certificate(_) | Refusal::OtherIdentity(_) => Reason::PeerCertificate,
            Refusal::Permission { .. } => Reason::PermissionDenied,
        },
        HandshakeError::Plaintext => Reason::Plaintext,
        HandshakeError::Tls(error) => match error {
            crate::tls::session::SessionError::Tls(rustls::Error::NoCertificatesPresented) => {
                Reason::PeerCertificate
            }
            crate::tls::session::SessionError::Tls(rustls::Error::NoApplicationProtocol) => {
                Reason::NotMeshTls
            }
            _ => return End::failed(Reason::Handshake, ClosedBy::Source, error),
        },
        HandshakeError::Closed | HandshakeError::TooLong | HandshakeError::Io(_) => {
            return End::failed(Reason::Handshake, ClosedBy::Source, error);
        }
    };
    End::refused(reason, error)
}

/// Decides by the snapshot in force now, which may be newer than the one the handshake began with and judged the caller
/// by: what is decided here is looked at again whenever the snapshot changes.
fn authorize(
    worker: &Worker,
    inbound: &Inbound,
    peer: &VerifiedPeer,
    connection: &Connection,
) -> Result<(), End> {
    if judge_connection(worker, inbound, peer, connection)? == Admission::ShadowDenied {
        worker.count_shadow_denied(connection);
        let policy = connection.policy.borrow();
        tracing::info!(policy = policy.as_deref(), src.identity = %peer.id, dst.service = &*inbound.service, "shadow deny: allowed for now");
    }
    Ok(())
}

/// How a caller is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    Allowed,
    /// Only because its deny is a shadow deny.
    ShadowDenied,
}

fn judge_connection(
    worker: &Worker,
    inbound: &Inbound,
    peer: &VerifiedPeer,
    connection: &Connection,
) -> Result<Admission, End> {
    let snapshot = worker.shared.snapshot.load();
    match still_allowed(&snapshot, &inbound.name, peer) {
        Ok(Decision::Allowed { by }) => {
            connection.policy.replace(Some(by.into()));
            Ok(Admission::Allowed)
        }
        Ok(Decision::ShadowDenied { by }) => {
            connection.policy.replace(Some(by.into()));
            Ok(Admission::ShadowDenied)
        }
        Ok(Decision::Denied { by }) => {
            connection.policy.replace(by.map(Into::into));
            Err(End::refused(Reason::PermissionDenied, denied(&peer.id, by)))
        }
        Err(reason) => Err(End::refused(reason, "withdrawn during the handshake")),
    }
}

/// What `snapshot` says about a verified caller of the inbound `name`.
///
/// # Errors
/// Where nobody vouches for the caller any more, or the inbound has gone.
pub fn still_allowed<'s>(
    snapshot: &'s Snapshot,
    name: &str,
    peer: &VerifiedPeer,
) -> Result<Decision<'s>, Reason> {
    let inbound = snapshot.targets.values().find_map(|target| match target {
        Target::Inbound(route) if *route.inbound.name == *name => Some(&route.inbound),
        _ => None,
    });
    match inbound {
        Some(inbound) => judge(snapshot, inbound, peer),
        None if still_trusted(snapshot, peer) => Err(Reason::PermissionWithdrawn),
        None => Err(Reason::TrustWithdrawn),
    }
}

/// What `inbound` says about a verified caller.
///
/// # Errors
/// Where nobody vouches for the caller any more.
pub fn judge<'i>(
    snapshot: &Snapshot,
    inbound: &'i Inbound,
    peer: &VerifiedPeer,
) -> Result<Decision<'i>, Reason> {
    match still_trusted(snapshot, peer) {
        true => Ok(inbound.permissions.decide(&peer.id)),
        false => Err(Reason::TrustWithdrawn),
    }
}

/// True where the anchor that vouched for the peer still does.
#[must_use]
pub fn still_trusted(snapshot: &Snapshot, peer: &VerifiedPeer) -> bool {
    let trust = snapshot.trust.as_ref();
    trust.is_some_and(|trust| trust.holds(peer.id.trust_domain(), peer.anchor))
}

/// Connects to the application at `address`.
///
/// # Errors
/// Where it is not there.
pub async fn reach_application(
    address: SocketAddr,
    timeouts: &Timeouts,
) -> Result<TcpStream, Failed> {
    let failed = |reason, detail: String| Failed {
        reason,
        detail: format!("the application at {address} {detail}"),
    };
    let limit = timeouts.connect;
    match timeout(limit, net::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Err(failed(
            Reason::ConnectRefused,
            "refuses connections: is it running?".to_owned(),
        )),
        Ok(Err(error)) => Err(failed(
            Reason::ConnectFailed,
            format!("is not reached: {error}"),
        )),
        Err(_) => Err(failed(
            Reason::ConnectTimeout,
            format!(
                "did not answer within the connection timeout {}",
                Limit(limit, &timeouts.connect_origin)
            ),
        )),
    }
}
