//! Handshakes on a socket. The future and its buffers are gone once the handshake is.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, ServerConfig, client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    session::{RECORD_BYTES_MAX, Session, SessionError, Standing},
    verify::{Refusal, VerifiedPeer, notes},
};
use mesh_proto::{
    MESH_ALPN,
    sni::{ClientHello, parse_client_hello},
};

/// What a peer may send in one handshake before it is refused, in bytes: chains are short.
const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// A session whose handshake is done.
pub struct Established {
    /// The session.
    pub session: Session,
    /// Who the peer is.
    pub peer: VerifiedPeer,
    /// Bytes of the peer that came with the end of the handshake and are not yet decrypted.
    pub incoming: Vec<u8>,
    /// Application data that came with the end of the handshake.
    pub plain: Vec<u8>,
    /// The peer has already said that it sends no more.
    pub peer_closed: bool,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// A rule of ours refuses the peer.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The first bytes are not TLS.
    #[error("the peer does not speak TLS")]
    Plaintext,
    /// The peer broke the protocol, or refuses us.
    #[error("TLS: {0}")]
    Tls(#[from] SessionError),
    /// The peer has gone.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The peer sends and sends.
    #[error("the peer sent more than {HANDSHAKE_BYTES_MAX} bytes before the handshake was done")]
    TooLong,
    /// The network.
    #[error("during the handshake: {0}")]
    Io(#[from] io::Error),
}

/// Answers a client.
///
/// # Errors
/// Why there is no session. Where TLS has an alert for it, the client has been told.
pub async fn accept(
    stream: &mut TcpStream,
    config: Arc<ServerConfig>,
) -> Result<Established, HandshakeError> {
    accept_after(stream, config, Vec::new()).await
}

/// Answers a client of which `incoming` has been read already.
///
/// # Errors
/// As for [`accept`].
pub async fn accept_after(
    stream: &mut TcpStream,
    config: Arc<ServerConfig>,
    incoming: Vec<u8>,
) -> Result<Established, HandshakeError> {
    let session = UnbufferedServerConnection::new(config).map_err(SessionError::from)?;
    run(stream, Session::Server(Box::new(session)), incoming).await
}

/// Calls a server by `name` (SNI).
///
/// # Errors
/// As for [`accept`].
pub async fn connect(
    stream: &mut TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<Established, HandshakeError> {
    let session = UnbufferedClientConnection::new(config, name).map_err(SessionError::from)?;
    run(stream, Session::Client(Box::new(session)), Vec::new()).await
}

async fn run(
    stream: &mut TcpStream,
    mut session: Session,
    mut incoming: Vec<u8>,
) -> Result<Established, HandshakeError> {
    let (mut outgoing, mut plain) = (Vec::new(), Vec::new());
    let mut peer = None;
    let mut total = incoming.len();
    loop {
        let received = session.receive(&mut incoming, &mut plain, &mut outgoing);
        let note = notes::take();
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                let plaintext = total <= incoming.len() && !looks_like_tls(&incoming);
                // The alert is a courtesy: the refusal stands whether or not it arrives.
                let _ = stream.try_write(&outgoing);
                return Err(match note {
                    Some(Err(refusal)) => refusal.into(),
                    _ if plaintext => HandshakeError::Plaintext,
                    _ => match unusable_name(&session, &incoming) {
                        Some(name) => Refusal::ServerNameForm(name).into(),
                        None => error.into(),
                    },
                });
            }
        };
        if let Some(note) = note {
            peer = Some(note?);
        }
        incoming.drain(..received.consumed);
        if !outgoing.is_empty() {
            stream.write_all(&outgoing).await?;
            outgoing.clear();
        }
        if received.standing != Standing::Handshaking {
            let peer_closed = received.standing == Standing::PeerClosed;
            return established(session, peer, incoming, plain, peer_closed);
        }
        incoming.reserve(RECORD_BYTES_MAX.min(4096));
        let count = stream.read_buf(&mut incoming).await?;
        total += count;
        if count == 0 {
            return Err(HandshakeError::Closed);
        }
        if total > HANDSHAKE_BYTES_MAX {
            return Err(HandshakeError::TooLong);
        }
    }
}

fn established(
    session: Session,
    peer: Option<VerifiedPeer>,
    incoming: Vec<u8>,
    plain: Vec<u8>,
    peer_closed: bool,
) -> Result<Established, HandshakeError> {
    if session.common().alpn_protocol() != Some(MESH_ALPN) {
        return Err(Refusal::NotMesh.into());
    }
    // Both verifiers are mandatory, so a session without a verified peer would be a fault of ours: closed.
    let peer = peer.ok_or_else(|| Refusal::Certificate("it was not verified".to_owned()))?;
    Ok(Established {
        session,
        peer,
        incoming,
        plain,
        peer_closed,
    })
}

/// The name a client asked for, where it is why rustls refuses the ClientHello.
fn unusable_name(session: &Session, hello: &[u8]) -> Option<String> {
    let ClientHello::Complete { server_name, .. } = parse_client_hello(hello) else {
        return None;
    };
    let called = matches!(session, Session::Server(_));
    server_name.filter(|name| called && ServerName::try_from(name.as_str()).is_err())
}

/// A TLS record of a handshake or an alert (RFC 8446 §5.1).
fn looks_like_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [] | [21 | 22] | [21 | 22, 3, ..])
}
