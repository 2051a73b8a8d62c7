//! Accepts connections and hands each to what its listener is for: inbound, outbound or ingress.

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use crate::{
    config::{Outbound, Protocol, TlsMode},
    inbound, ingress, net, outbound,
    record::{Connection, Direction, End, Reason, Record},
    route,
    snapshot::{Snapshot, Target},
    workers::Worker,
};

/// How long to wait after the system refused to accept (out of descriptors, most likely).
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until it is dropped; what the kernel has accepted by then is still taken.
pub struct Accepting {
    stop: Rc<Notify>,
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

/// Begins to accept for the target at `key` of the snapshot.
///
/// # Errors
/// Where the runtime does not take the listener.
pub fn accept_on(
    worker: &Rc<Worker>,
    key: SocketAddr,
    listener: std::net::TcpListener,
) -> io::Result<Accepting> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let stop = Rc::new(Notify::new());
    let stopped = stop.clone();
    let worker = worker.clone();
    tokio::task::spawn_local(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stopped.notified() => break,
            };
            match accepted {
                Ok((stream, from)) => handle(&worker, key, stream, from),
                Err(error) => {
                    tracing::warn!(%error, listen = %key, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        for (stream, from) in net::accept_waiting(&listener) {
            handle(&worker, key, stream, from);
        }
    });
    Ok(Accepting { stop })
}

/// Decides by the snapshot what the connection is, and starts its task.
fn handle(worker: &Rc<Worker>, key: SocketAddr, stream: TcpStream, from: SocketAddr) {
    let admitted = worker.admit();
    let snapshot = worker.shared.snapshot.load();
    let target = snapshot.targets.get(&key);
    let record = Record::begin(worker, connection(&snapshot, target, from));
    let Some(target) = target else {
        return record.end(End::refused(
            Reason::NotConfigured,
            "the listener has just been removed",
        ));
    };
    if !admitted {
        return record.end(End::refused(
            Reason::ConnectionLimit,
            "the process has as many connections as it may have",
        ));
    }
    let worker = worker.clone();
    match target.clone() {
        Target::Inbound(route) => {
            let expired = match route.inbound.tls {
                TlsMode::Strict => own_certificate(&snapshot),
                // What is not mesh TLS needs none.
                TlsMode::Permissive => Ok(()),
            };
            tokio::task::spawn_local(async move {
                let end = match expired {
                    Ok(()) => {
                        inbound::serve(&worker, stream, key, &route, &record.connection).await
                    }
                    Err(end) => end,
                };
                record.end(end);
            });
        }
        Target::Outbound(outbound) if speaks(&snapshot, &outbound, Protocol::is_http) => {
            let called = snapshot.services[&outbound.service_document].clone();
            tokio::task::spawn_local(async move {
                let end = outbound::serve_http(&worker, stream, &called, &record.connection).await;
                record.end(end);
            });
        }
        Target::Outbound(outbound) if speaks(&snapshot, &outbound, |p| p == Protocol::Detect) => {
            let called = snapshot.services[&outbound.service_document].clone();
            tokio::task::spawn_local(async move {
                let end =
                    outbound::serve_detected(&worker, stream, &called, &record.connection).await;
                record.end(end);
            });
        }
        Target::Outbound(outbound) => {
            let expired = own_certificate(&snapshot);
            let destination = route::choose(&snapshot, &outbound.service_document);
            let zone = snapshot.proxy.as_ref().map(|proxy| proxy.zone.clone());
            tokio::task::spawn_local(async move {
                let end = match (expired, destination, zone) {
                    (Err(end), ..) | (Ok(()), Err(end), _) => end,
                    (Ok(()), Ok(to), Some(zone)) => {
                        outbound::serve(&worker, stream, &to, &zone, &record.connection).await
                    }
                    (Ok(()), Ok(_), None) => outbound::not_configured(),
                };
                record.end(end);
            });
        }
        Target::Ingress(table) => {
            tokio::task::spawn_local(async move {
                let end = ingress::serve(&worker, stream, &table, &record.connection).await;
                record.end(end);
            });
        }
    }
}

fn speaks(snapshot: &Snapshot, outbound: &Outbound, what: impl Fn(Protocol) -> bool) -> bool {
    let called = snapshot.services.get(&outbound.service_document);
    called.is_some_and(|called| what(called.service.protocol))
}

/// A handshake never uses a certificate that has ended (FIELD b1).
///
/// # Errors
/// Why there is none to use.
pub fn own_certificate(snapshot: &Snapshot) -> Result<(), End> {
    let Some(identity) = &snapshot.identity else {
        return Err(End::refused(
            Reason::NoCertificate,
            "this proxy has no certificate yet: is its zone control plane reachable?",
        ));
    };
    let now = time::OffsetDateTime::now_utc();
    if identity.expired(now) {
        return Err(End::refused(
            Reason::CertificateExpired,
            format!(
                "this proxy's own certificate ended at {}, the clock here says {now}: is its zone control plane reachable?",
                identity.not_after
            ),
        ));
    }
    Ok(())
}

fn connection(snapshot: &Snapshot, target: Option<&Target>, from: SocketAddr) -> Connection {
    let unknown = || Arc::<str>::from("");
    let proxy = snapshot.proxy.as_ref();
    let mesh = proxy.map_or_else(unknown, |proxy| proxy.mesh.as_str().into());
    let (direction, inbound, source, destination) = match target {
        Some(Target::Inbound(route)) => (
            Direction::Inbound,
            Some(route.inbound.name.clone()),
            unknown(),
            route.inbound.service.clone(),
        ),
        Some(Target::Outbound(outbound)) => (
            Direction::Outbound,
            None,
            proxy.map_or_else(unknown, |proxy| proxy.source_service.clone()),
            snapshot
                .services
                .get(&outbound.service_document)
                .map_or_else(
                    || outbound.service_document.as_str().into(),
                    |route| route.service.name.clone(),
                ),
        ),
        Some(Target::Ingress(_)) => (Direction::Ingress, None, unknown(), unknown()),
        None => (Direction::Inbound, None, unknown(), unknown()),
    };
    Connection {
        inbound,
        source: RefCell::new(source),
        destination: RefCell::new(destination),
        mesh: RefCell::new(mesh),
        ..Connection::new(direction, from)
    }
}
