//! Connections of the application to a service: balance, mesh TLS to an endpoint, then bytes.
//!
//! When routes and resilience come, they stand between the listener and [`upstream`](crate::upstream), each as a module
//! with one type, as the crate's map says.

use std::{rc::Rc, sync::Arc};

use mesh_proto::names::ZoneName;
use tokio::net::TcpStream;

use crate::{
    record::{Connection, End},
    relay::{Socket, relay},
    snapshot::ServiceRoute,
    upstream,
    workers::Worker,
};

/// Serves one connection, and says how it ended.
pub async fn serve(
    worker: &Rc<Worker>,
    stream: TcpStream,
    route: &Arc<ServiceRoute>,
    own_zone: &ZoneName,
    connection: &Rc<Connection>,
) -> End {
    connection.idle.set(route.service.timeouts.idle);
    let reached = Box::pin(upstream::reach_service(worker, route, own_zone, connection)).await;
    let reached = match reached {
        Ok(reached) => reached,
        Err(end) => return end,
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
