//! Connections from other zones: routed by the server name of their ClientHello, never decrypted.

use std::{rc::Rc, sync::Arc};

use mesh_proto::sni::{ClientHello, MAX_CLIENT_HELLO_BYTES, parse_client_hello};
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

use crate::{
    record::{ClosedBy, Connection, End, Reason},
    relay::relay,
    snapshot::IngressTable,
    socket::Socket,
    tls::server_name,
    upstream,
    workers::Worker,
};

/// Serves one connection, and says how it ended.
pub async fn serve(
    worker: &Rc<Worker>,
    mut stream: TcpStream,
    table: &Arc<IngressTable>,
    connection: &Rc<Connection>,
) -> End {
    let ingress = &table.ingress;
    connection.limit_idle(&ingress.timeouts);
    let limit = worker.shared.limits.handshake_timeout;
    let (server_name, hello) = match timeout(limit, Box::pin(read_hello(&mut stream))).await {
        Ok(Ok(read)) => read,
        Ok(Err(end)) => return end,
        Err(_) => {
            return End::failed(
                Reason::HandshakeTimeout,
                ClosedBy::Proxy,
                format!("no ClientHello within {} s", limit.as_secs()),
            );
        }
    };
    let Some(route) = ingress
        .routes
        .get(&*server_name::in_documents(&server_name))
    else {
        return End::refused(
            Reason::ServerName,
            format!(
                "no service of zone {} has the server name {server_name:?}",
                ingress.zone
            ),
        );
    };
    connection.mesh.replace(route.mesh.as_str().into());
    connection.destination.replace(route.service.clone());
    let reached = Box::pin(upstream::reach_endpoint(worker, table, route, connection)).await;
    let (upstream, _outstanding) = match reached {
        Ok(reached) => reached,
        Err(end) => return end,
    };
    let (source, destination) = (
        Socket::plain(stream, hello),
        Socket::plain(upstream, Vec::new()),
    );
    relay(source, destination, connection, worker).await
}

/// The server name, and the bytes it was read from.
async fn read_hello(stream: &mut TcpStream) -> Result<(String, Vec<u8>), End> {
    let mut bytes = Vec::with_capacity(2048);
    loop {
        let room = MAX_CLIENT_HELLO_BYTES.saturating_sub(bytes.len()) as u64;
        let read = (&mut *stream).take(room).read_buf(&mut bytes).await;
        match read {
            Ok(0) => {
                return Err(End::failed(
                    Reason::Handshake,
                    ClosedBy::Source,
                    "the peer closed the connection before its ClientHello was whole",
                ));
            }
            Ok(_) => {}
            Err(error) => return Err(End::failed(Reason::Reset, ClosedBy::Source, error)),
        }
        match parse_client_hello(&bytes) {
            ClientHello::Incomplete => {}
            ClientHello::Invalid(reason) => return Err(End::refused(Reason::Plaintext, reason)),
            ClientHello::Complete {
                server_name: None, ..
            } => {
                return Err(End::refused(
                    Reason::ServerName,
                    "the ClientHello names no server",
                ));
            }
            ClientHello::Complete {
                server_name: Some(name),
                ..
            } => return Ok((name, bytes)),
        }
    }
}
