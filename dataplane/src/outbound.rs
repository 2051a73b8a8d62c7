//! Connections of the application to a service: balance, mesh TLS to an endpoint, then bytes.
//!
//! When resilience comes, it stands between [`route`](crate::route) and [`upstream`](crate::upstream) as a module with
//! one type, as the crate's map says.

use std::rc::Rc;

use mesh_proto::names::ZoneName;
use tokio::net::TcpStream;

use crate::{
    record::{Connection, End},
    relay::relay,
    route::Destination,
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

/// Who reads why a connection failed sees which route sent it there.
fn by_route(to: &Destination, mut end: End) -> End {
    if let Some(route) = to.route() {
        end.detail = format!("{}, where {route} sends it", end.detail);
    }
    end
}
