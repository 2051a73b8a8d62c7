//! Reaches an endpoint of a service: one after another until one answers.
//!
//! An attempt that fails (refused, no answer in time, a handshake that fails, a server that is somebody else) moves on to
//! an endpoint that has not been tried, and makes the failed one come last for a while. Where all have failed, the
//! control thread is asked for fresh endpoints.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_proto::names::ZoneName;
use tokio::{net::TcpStream, sync::mpsc::error::TrySendError, time::timeout};

use crate::{
    balance,
    config::{Balancing, Endpoint, Host, IngressRoute, Outstanding, Timeouts},
    net,
    record::{ClosedBy, Connection, End, Limit, Reason},
    snapshot::{IngressTable, ServiceRoute},
    tls::{
        handshake::{self, Established, HandshakeError},
        verify::Refusal,
    },
    workers::Worker,
};

/// How long an endpoint that could not be reached comes last.
const PENALTY: Duration = Duration::from_secs(10);
/// All attempts for one connection together may take so many times the time-out of one.
const ATTEMPTS_BUDGET: u32 = 3;

/// An endpoint that answered with the right identity.
pub struct Reached {
    /// The socket.
    pub stream: TcpStream,
    /// The session on it.
    pub established: Established,
    /// Counts the connection while it lives.
    pub outstanding: Outstanding,
}

impl From<Failed> for End {
    fn from(failed: Failed) -> Self {
        Self::failed(failed.reason, ClosedBy::Destination, failed.detail)
    }
}

/// Why one attempt failed.
#[derive(Debug)]
pub struct Failed {
    /// For metrics.
    pub reason: Reason,
    /// For the person on call.
    pub detail: String,
}

/// Reaches an endpoint of `route` by mesh TLS.
///
/// # Errors
/// With the last attempt's failure, where none is reached.
pub async fn reach_service(
    worker: &Rc<Worker>,
    route: &Arc<ServiceRoute>,
    own_zone: &ZoneName,
    connection: &Connection,
) -> Result<Reached, End> {
    let trying = |endpoint: &Endpoint| {
        connection
            .destination_address
            .replace(Some(endpoint.text.clone()));
    };
    let attempt = async |endpoint: &Endpoint| call(route, endpoint).await;
    let picked = pick(worker, route, own_zone);
    let reached = reach(worker, route, own_zone, picked, trying, attempt).await;
    let ((stream, established), outstanding) = reached?;
    Ok(Reached {
        stream,
        established,
        outstanding,
    })
}

/// The endpoint of a service that is tried first.
pub struct Picked {
    endpoints: Arc<Vec<Endpoint>>,
    /// Which must not be tried.
    left_out: Vec<usize>,
    /// `None`: there is nobody to try.
    index: Option<usize>,
}

impl Picked {
    /// The endpoint. `None`: there is nobody to try.
    #[must_use]
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoints.get(self.index?)
    }
}

/// Picks the endpoint of `route` to try first.
#[must_use]
pub fn pick(worker: &Worker, route: &ServiceRoute, own_zone: &ZoneName) -> Picked {
    let endpoints = route.endpoints.load_full();
    // Fail closed: an endpoint in a zone the document does not know has no identities to check against.
    let left_out = indices(&endpoints, |e| !route.zones.contains_key(&e.zone));
    let index = attempts_of(route, own_zone, &endpoints).pick(worker, &left_out, Instant::now());
    Picked {
        endpoints,
        left_out,
        index,
    }
}

/// Tries endpoints of `route`, beginning with the one that was picked, until `attempt` succeeds with one. `trying` is told of each.
///
/// # Errors
/// With the last attempt's failure, where none is reached.
pub async fn reach<T>(
    worker: &Rc<Worker>,
    route: &Arc<ServiceRoute>,
    own_zone: &ZoneName,
    picked: Picked,
    trying: impl Fn(&Endpoint),
    attempt: impl AsyncFn(&Endpoint) -> Result<T, Failed>,
) -> Result<(T, Outstanding), End> {
    let endpoints = picked.endpoints;
    let attempts = attempts_of(route, own_zone, &endpoints);
    let reaching = attempt_each(
        worker,
        &attempts,
        picked.index,
        picked.left_out,
        trying,
        attempt,
    );
    reaching
        .await
        .map_err(|failed| none_reached(worker, &route.document, endpoints.is_empty(), failed))
}

fn attempts_of<'a>(
    route: &'a ServiceRoute,
    own_zone: &'a ZoneName,
    endpoints: &'a [Endpoint],
) -> Attempts<'a> {
    Attempts {
        document: &route.document,
        endpoints,
        balancing: &route.service.balancing,
        own_zone,
        timeouts: &route.service.timeouts,
    }
}

/// Calls an endpoint of a service by mesh TLS.
///
/// # Errors
/// Where it does not answer, or is somebody else.
pub async fn call(
    route: &ServiceRoute,
    endpoint: &Endpoint,
) -> Result<(TcpStream, Established), Failed> {
    let Some(zone) = route.zones.get(&endpoint.zone) else {
        return Err(Failed {
            reason: Reason::NoEndpoints,
            detail: format!("{endpoint} is in a zone that the document does not know"),
        });
    };
    let tls = zone.tls.clone().ok_or_else(|| Failed {
        reason: Reason::NoCertificate,
        detail: "no trust anchors have come from the zone control plane yet".to_owned(),
    })?;
    let mut stream = connect(endpoint).await?;
    let established = handshake::connect(&mut stream, tls, zone.server_name.clone())
        .await
        .map_err(|error| failed_handshake(endpoint, &error))?;
    Ok((stream, established))
}

/// Reaches an endpoint of an ingress route, for bytes as they are.
///
/// # Errors
/// As for [`reach_service`].
pub async fn reach_endpoint(
    worker: &Rc<Worker>,
    table: &IngressTable,
    route: &IngressRoute,
    connection: &Connection,
) -> Result<(TcpStream, Outstanding), End> {
    let endpoints = table
        .endpoints
        .get(&route.endpoints)
        .map(|set| set.load_full())
        .unwrap_or_default();
    // An ingress forwards into its own zone only: two that point at each other would make a loop.
    let foreign = indices(&endpoints, |e| e.through_ingress);
    let ingress = &table.ingress;
    let document = Arc::from(route.endpoints.as_str());
    let attempts = Attempts {
        document: &document,
        endpoints: &endpoints,
        balancing: &Balancing::default(),
        own_zone: &ingress.zone,
        timeouts: &ingress.timeouts,
    };
    let trying = |endpoint: &Endpoint| {
        connection
            .destination_address
            .replace(Some(endpoint.text.clone()));
    };
    let attempt = async |endpoint: &Endpoint| connect(endpoint).await;
    let first = attempts.pick(worker, &foreign, Instant::now());
    attempt_each(worker, &attempts, first, foreign, trying, attempt)
        .await
        .map_err(|failed| none_reached(worker, &route.endpoints, endpoints.is_empty(), failed))
}

/// Who may be tried, and how.
struct Attempts<'a> {
    document: &'a Arc<str>,
    endpoints: &'a [Endpoint],
    balancing: &'a Balancing,
    own_zone: &'a ZoneName,
    timeouts: &'a Timeouts,
}

impl Attempts<'_> {
    fn pick(&self, worker: &Worker, tried: &[usize], now: Instant) -> Option<usize> {
        balance::pick(
            self.endpoints,
            self.balancing,
            self.own_zone,
            tried,
            now,
            || worker.random(),
            || worker.turn(self.document),
        )
    }
}

fn indices(endpoints: &[Endpoint], wanted: impl Fn(&Endpoint) -> bool) -> Vec<usize> {
    let found = endpoints.iter().enumerate().filter(|(_, e)| wanted(e));
    found.map(|(index, _)| index).collect()
}

/// Tries endpoints other than `tried`, beginning with `picked`, until one answers. The error is the last attempt's; `None`: there was nobody to
/// try.
async fn attempt_each<T>(
    worker: &Rc<Worker>,
    attempts: &Attempts<'_>,
    mut picked: Option<usize>,
    mut tried: Vec<usize>,
    trying: impl Fn(&Endpoint),
    attempt: impl AsyncFn(&Endpoint) -> Result<T, Failed>,
) -> Result<(T, Outstanding), Option<Failed>> {
    let begun = Instant::now();
    let timeouts = attempts.timeouts;
    let mut now = begun;
    let mut last = None;
    loop {
        let left = (timeouts.connect * ATTEMPTS_BUDGET).saturating_sub(now - begun);
        let Some(index) = picked.filter(|_| !left.is_zero()) else {
            return Err(last);
        };
        let endpoint = &attempts.endpoints[index];
        let outstanding = endpoint.health.occupy();
        trying(endpoint);
        let limit = timeouts.connect.min(left);
        let failed = match timeout(limit, attempt(endpoint)).await {
            Ok(Ok(reached)) => {
                endpoint.health.succeeded();
                return Ok((reached, outstanding));
            }
            Ok(Err(failed)) => failed,
            Err(_) => Failed {
                reason: Reason::ConnectTimeout,
                detail: format!(
                    "{endpoint} did not answer within the connection timeout {}",
                    Limit(limit, &timeouts.connect_origin)
                ),
            },
        };
        now = Instant::now();
        tried.push(index);
        endpoint.health.failed(now, PENALTY);
        picked = attempts.pick(worker, &tried, now);
        tracing::debug!(%endpoint, reason = failed.reason.as_str(), detail = failed.detail, "an endpoint was not reached");
        last = Some(failed);
    }
}

async fn connect(endpoint: &Endpoint) -> Result<TcpStream, Failed> {
    let failed = |error: io::Error| Failed {
        reason: match error.kind() {
            io::ErrorKind::ConnectionRefused => Reason::ConnectRefused,
            io::ErrorKind::TimedOut => Reason::ConnectTimeout,
            _ => Reason::ConnectFailed,
        },
        detail: format!("{endpoint}: {error}"),
    };
    let mut last = None;
    for address in resolve(endpoint).await.map_err(failed)? {
        match net::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(failed(last.unwrap_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "the name has no address")
    })))
}

/// A name is resolved for each connection, so that a changed answer is used at once.
async fn resolve(endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
    match (&endpoint.host, endpoint.address()) {
        (_, Some(address)) => Ok(vec![address]),
        (Host::Name(name), None) => Ok(tokio::net::lookup_host((&**name, endpoint.port))
            .await?
            .collect()),
        (Host::Ip(_), None) => Ok(Vec::new()),
    }
}

fn failed_handshake(endpoint: &Endpoint, error: &HandshakeError) -> Failed {
    Failed {
        reason: match error {
            HandshakeError::Refused(Refusal::Time { .. }) => Reason::PeerClock,
            HandshakeError::Refused(_) => Reason::ServerIdentity,
            _ => Reason::Handshake,
        },
        detail: format!("{endpoint}: {error}"),
    }
}

fn none_reached(worker: &Worker, key: &str, empty: bool, failed: Option<Failed>) -> End {
    match failed {
        Some(failed) => {
            ask_anew(worker, key);
            End::failed(failed.reason, ClosedBy::Destination, failed.detail)
        }
        None if empty => End::failed(
            Reason::NoEndpoints,
            ClosedBy::Proxy,
            format!("{key} has no endpoint that is ready"),
        ),
        None => End::failed(
            Reason::NoEndpoints,
            ClosedBy::Proxy,
            format!("{key} has endpoints, but none that its document lets this proxy use"),
        ),
    }
}

/// Connect errors to all known endpoints mean that what is known may be old (FIELD c7).
fn ask_anew(worker: &Worker, key: &str) {
    match worker.shared.lookups.try_send(key.to_owned()) {
        Ok(()) | Err(TrySendError::Closed(_)) => {}
        // Another look-up is under way, and it brings all endpoints.
        Err(TrySendError::Full(_)) => tracing::debug!(key, "a fresh look-up is under way already"),
    }
}
