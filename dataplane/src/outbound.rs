//! Connections of the application to a service: balance, mesh TLS to an endpoint, then bytes.
//!
//! Where the service speaks HTTP, [`http`](crate::http) takes over, request by request.

use std::{rc::Rc, sync::Arc};

use mesh_proto::names::ZoneName;
use tokio::net::TcpStream;

use crate::{
    http::{
        self,
        serve::Caller,
        side::{OutboundSide, Side},
    },
    record::{Connection, End},
    relay::relay,
    route::Destination,
    snapshot::ServiceRoute,
    socket::Socket,
    upstream,
    workers::Worker,
};

/// Serves one connection, and says how it ended.
pub async fn serve(
    worker: &Rc<Worker>,
    stream: TcpStream,
    to: &Destination,
    own_zone: &ZoneName,
    connection: &Rc<Connection>,
) -> End {
    connection.limit_idle(&to.called.service.timeouts);
    if let Some(route) = to.route() {
        let reached = &to.reached.service.name;
        connection.destination.replace(reached.clone());
        connection.policy.replace(Some(route.clone()));
    }
    let reaching = upstream::reach_service(worker, &to.reached, own_zone, connection);
    let reached = match Box::pin(reaching).await {
        Ok(reached) => reached,
        Err(end) => return by_route(to, end),
    };
    connection
        .peer
        .replace(Some(reached.established.peer.clone()));
    let _outstanding = reached.outstanding;
    let destination = Socket::tls(reached.stream, reached.established);
    relay(
        Socket::plain(stream, Vec::new()),
        destination,
        connection,
        worker,
    )
    .await
}

/// Serves the requests of one connection to the service in `document`, and says how it ended.
pub async fn serve_http(
    worker: &Rc<Worker>,
    stream: TcpStream,
    called: &Arc<ServiceRoute>,
    connection: &Rc<Connection>,
) -> End {
    connection.limit_idle(&called.service.timeouts);
    connection.is_http.set(true);
    let document = called.document.clone();
    let caller = Caller {
        worker: worker.clone(),
        side: Rc::new(Side::Outbound(OutboundSide { document })),
        connection: connection.clone(),
        is_peer: false,
    };
    http::serve::serve(&caller, Socket::plain(stream, Vec::new())).await
}

/// Who reads why a connection failed sees which route sent it there.
fn by_route(to: &Destination, mut end: End) -> End {
    if let Some(route) = to.route() {
        end.detail = format!("{}, where {route} sends it", end.detail);
    }
    end
}
