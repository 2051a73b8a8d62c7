//! Connections of the application to a service: balance, mesh TLS to an endpoint, then bytes.
//!
//! Where the service speaks HTTP, [`http`](crate::http) takes over, request by request. Where nobody has declared what it speaks,
//! [`detect`](crate::detect) finds it out while the service is being reached.

use std::{cell::OnceCell, rc::Rc, sync::Arc};

use mesh_proto::names::ZoneName;
use tokio::net::TcpStream;

use crate::{
    config::Endpoint,
    detect::{Detection, Spoken, Upstream},
    http::{
        self,
        pool::{HopKey, Made},
        serve::Caller,
        side::{OutboundSide, Side},
    },
    listener,
    record::{Connection, End, Reason},
    relay::relay,
    route::{self, Destination},
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
    routed(connection, to);
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
    let source = Socket::plain(stream, Vec::new());
    serve_requests(worker, source, called, connection).await
}

async fn serve_requests(
    worker: &Rc<Worker>,
    source: Socket,
    called: &Arc<ServiceRoute>,
    connection: &Rc<Connection>,
) -> End {
    connection.is_http.set(true);
    let document = called.document.clone();
    let caller = Caller {
        worker: worker.clone(),
        side: Rc::new(Side::Outbound(OutboundSide { document })),
        connection: connection.clone(),
        is_peer: false,
    };
    http::serve::serve(&caller, source).await
}

/// Finds out whether one connection to the service in `called` speaks HTTP while it reaches the service, serves it, and says how it
/// ended.
pub async fn serve_detected(
    worker: &Rc<Worker>,
    stream: TcpStream,
    called: &Arc<ServiceRoute>,
    connection: &Rc<Connection>,
) -> End {
    connection.limit_idle(&called.service.timeouts);
    let document = &called.document;
    let to = Rc::new(OnceCell::new());
    let reaching = reach(
        worker.clone(),
        connection.clone(),
        document.clone(),
        to.clone(),
    );
    let mut detection = Detection::new(
        Socket::plain(stream, Vec::new()),
        called.service.port.to_string().into(),
        worker.expects_http(document),
        reaching,
    );
    let spoken = match Box::pin(detection.run(worker, connection)).await {
        Ok(spoken) => spoken,
        Err(end) => return end,
    };
    let is_http = spoken != Spoken::Tcp;
    worker.remember_spoken(document, is_http);
    if is_http {
        connection.destination_address.replace(None);
        let source = detection.into_requests(worker, spoken);
        return Box::pin(serve_requests(worker, source, called, connection)).await;
    }
    let upstream = match Box::pin(detection.next_hop.reached()).await {
        Ok(upstream) => upstream,
        Err(end) => return end,
    };
    if let Some(to) = to.get() {
        routed(connection, to);
    }
    connection.peer.replace(upstream.peer);
    let _outstanding = upstream.outstanding;
    relay(detection.source, upstream.socket, connection, worker).await
}

/// Reaches the service in `document`, as a connection of TCP does; `chosen` is where that goes.
async fn reach(
    worker: Rc<Worker>,
    connection: Rc<Connection>,
    document: Arc<str>,
    chosen: Rc<OnceCell<Destination>>,
) -> Result<Upstream, End> {
    let snapshot = worker.shared.snapshot.load_full();
    listener::own_certificate(&snapshot)?;
    let own_zone = snapshot.proxy.as_ref().map(|proxy| proxy.zone.clone());
    let own_zone = own_zone.ok_or_else(not_configured)?;
    let to = route::choose(&snapshot, &document)?;
    let to = chosen.get_or_init(|| to);
    let route = &to.reached;
    let trying = |endpoint: &Endpoint| {
        let address = Some(endpoint.text.clone());
        connection.destination_address.replace(address);
    };
    let attempt = async |endpoint: &Endpoint| {
        let (stream, established) = upstream::call(route, endpoint).await?;
        Ok((stream, established, HopKey::endpoint(route, endpoint)))
    };
    let picked = upstream::pick(&worker, route, &own_zone);
    let reached = upstream::reach(&worker, route, &own_zone, picked, trying, attempt).await;
    let ((stream, established, key), outstanding) = reached.map_err(|end| by_route(to, end))?;
    let peer = established.peer.clone();
    Ok(Upstream {
        socket: Socket::tls(stream, established),
        outstanding: Some(outstanding),
        key,
        made: Made::new(&snapshot, Some(&peer), &route.service.timeouts),
        peer: Some(peer),
    })
}

/// What this proxy is has not been said.
#[must_use]
pub fn not_configured() -> End {
    End::refused(
        Reason::NotConfigured,
        "what this proxy is has not come from the zone control plane",
    )
}

/// The record names where a route sends the connection.
fn routed(connection: &Connection, to: &Destination) {
    if let Some(route) = to.route() {
        let reached = &to.reached.service.name;
        connection.destination.replace(reached.clone());
        connection.policy.replace(Some(route.clone()));
    }
}

/// Who reads why a connection failed sees which route sent it there.
fn by_route(to: &Destination, mut end: End) -> End {
    if let Some(route) = to.route() {
        end.detail = format!("{}, where {route} sends it", end.detail);
    }
    end
}
