//! Listeners and inbound policy of one sidecar.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use mesh_proto::{
    names::{InvalidName, MeshName, ZoneName},
    proxy as wire,
    spiffe::{InvalidSpiffeId, SpiffeId},
};

use super::{InvalidAddress, InvalidProtocol, Protocol, Timeouts, socket_address, text};
use crate::{
    permission::{InvalidPermission, Pattern, Permissions, patterns},
    tls::server_name,
};

/// Listeners and inbound policy of one sidecar: one atom.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// The mesh it belongs to.
    pub mesh: MeshName,
    /// The zone it runs in.
    pub zone: ZoneName,
    /// Name of the `Dataplane` resource.
    pub name: Arc<str>,
    /// For records and metrics.
    pub workload: Arc<str>,
    /// The identity it asks a certificate for.
    pub spiffe_id: SpiffeId,
    /// What outgoing connections are attributed to in records and metrics.
    pub source_service: Arc<str>,
    /// Where it takes connections for the application.
    pub inbounds: Vec<Arc<Inbound>>,
    /// Where it takes connections from the application.
    pub outbounds: Vec<Outbound>,
}

/// One port of the application, and who may call it.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// The Dataplane's inbound name, or its port.
    pub name: Arc<str>,
    /// Where the proxy listens.
    pub listen: SocketAddr,
    /// Where the application listens.
    pub application: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
    /// How it is protected.
    pub tls: TlsMode,
    /// A handshake for any other name is refused.
    pub server_names: Arc<BTreeSet<String>>,
    /// Shown as destination in records and metrics.
    pub service: Arc<str>,
    /// Who may call.
    pub permissions: Arc<Permissions>,
    /// For connections to the application.
    pub timeouts: Timeouts,
    /// How to find out whether the application is ready. `None`: it always is.
    pub probe: Option<Probe>,
    /// Time-outs for certain callers, the first that is about a caller counts.
    pub caller_timeouts: Vec<CallerTimeouts>,
}

/// Time-outs for certain callers.
#[derive(Debug, Clone)]
pub struct CallerTimeouts {
    /// Whom they are about.
    pub callers: Vec<Pattern>,
    /// They.
    pub timeouts: Timeouts,
}

impl Inbound {
    /// The time-outs for a caller; `None`: it is nobody that mesh TLS knows.
    #[must_use]
    pub fn timeouts_for(&self, caller: Option<&SpiffeId>) -> &Timeouts {
        let Some(caller) = caller else {
            return &self.timeouts;
        };
        let special = self.caller_timeouts.iter();
        let special = special.filter(|special| special.callers.iter().any(|c| c.is_about(caller)));
        special
            .map(|special| &special.timeouts)
            .next()
            .unwrap_or(&self.timeouts)
    }
}

/// How an inbound is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Only mesh TLS with a verified client identity.
    Strict,
    /// That, and everything else as it comes.
    Permissive,
}

/// Where the application reaches a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// Where the proxy listens.
    pub listen: SocketAddr,
    /// Name of the document that says how to reach the destination.
    pub service_document: String,
}

/// A TCP probe of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Between two attempts.
    pub interval: Duration,
    /// For one attempt.
    pub timeout: Duration,
    /// Failures in a row that make a ready application unready.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make an unready application ready.
    pub healthy_threshold: u32,
}

/// Why a proxy document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidProxy {
    #[error("mesh: {0}")]
    Mesh(InvalidName),
    #[error("zone: {0}")]
    Zone(InvalidName),
    #[error("name is missing")]
    Name,
    #[error("workload is missing")]
    Workload,
    #[error("spiffe_id {0:?}: {1}")]
    SpiffeId(String, InvalidSpiffeId),
    #[error("inbound {0}: {1}")]
    Inbound(String, InvalidInbound),
    #[error("outbound {0}: listen {1}")]
    OutboundListen(usize, InvalidAddress),
    #[error("outbound {0}: service_document {1:?} does not name a service document")]
    OutboundService(SocketAddr, String),
    #[error("two listeners at {0}")]
    ListenTwice(SocketAddr),
    #[error("two inbounds are named {0}")]
    InboundTwice(String),
}

/// Why an inbound is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidInbound {
    #[error("name is missing")]
    Name,
    #[error("listen {0}")]
    Listen(InvalidAddress),
    #[error("application {0}")]
    Application(InvalidAddress),
    #[error("{0}")]
    Protocol(#[from] InvalidProtocol),
    #[error("tls mode {0} is not known, and how an inbound is protected is never guessed")]
    Tls(i32),
    #[error("server name {0:?} must have 1 to 253 bytes")]
    ServerName(String),
    #[error("permissions are missing")]
    NoPermissions,
    #[error("permissions: {0}")]
    Permissions(#[from] InvalidPermission),
    #[error("probe.{0} is 0")]
    Probe(&'static str),
}

impl TryFrom<&wire::Proxy> for Proxy {
    type Error = InvalidProxy;

    fn try_from(wire: &wire::Proxy) -> Result<Self, InvalidProxy> {
        let inbounds = wire
            .inbounds
            .iter()
            .map(|inbound| {
                inbound
                    .try_into()
                    .map(Arc::new)
                    .map_err(|error| InvalidProxy::Inbound(inbound.name.clone(), error))
            })
            .collect::<Result<Vec<Arc<Inbound>>, _>>()?;
        let outbounds = wire
            .outbounds
            .iter()
            .enumerate()
            .map(|(index, outbound)| read_outbound(index, outbound))
            .collect::<Result<Vec<_>, _>>()?;
        refuse_twice(&inbounds, &outbounds)?;
        let spiffe_id = wire
            .spiffe_id
            .parse()
            .map_err(|error| InvalidProxy::SpiffeId(wire.spiffe_id.clone(), error))?;
        let workload = text(&wire.workload).ok_or(InvalidProxy::Workload)?;
        Ok(Self {
            mesh: wire.mesh.parse().map_err(InvalidProxy::Mesh)?,
            zone: wire.zone.parse().map_err(InvalidProxy::Zone)?,
            name: text(&wire.name).ok_or(InvalidProxy::Name)?,
            // A proxy that belongs to no service is known by its workload.
            source_service: text(&wire.source_service).unwrap_or_else(|| workload.clone()),
            workload,
            spiffe_id,
            inbounds,
            outbounds,
        })
    }
}

fn read_outbound(index: usize, wire: &wire::Outbound) -> Result<Outbound, InvalidProxy> {
    let listen = socket_address(wire.listen.as_ref())
        .map_err(|error| InvalidProxy::OutboundListen(index, error))?;
    let service_document = wire.service_document.clone();
    if !service_document.starts_with("service/") {
        return Err(InvalidProxy::OutboundService(listen, service_document));
    }
    Ok(Outbound {
        listen,
        service_document,
    })
}

fn refuse_twice(inbounds: &[Arc<Inbound>], outbounds: &[Outbound]) -> Result<(), InvalidProxy> {
    let (mut addresses, mut names) = (HashSet::new(), HashSet::new());
    for inbound in inbounds {
        if !names.insert(&inbound.name) {
            return Err(InvalidProxy::InboundTwice(inbound.name.to_string()));
        }
    }
    let listens = inbounds.iter().map(|i| i.listen);
    for listen in listens.chain(outbounds.iter().map(|o| o.listen)) {
        if !addresses.insert(listen) {
            return Err(InvalidProxy::ListenTwice(listen));
        }
    }
    Ok(())
}

impl TryFrom<&wire::Inbound> for Inbound {
    type Error = InvalidInbound;

    fn try_from(wire: &wire::Inbound) -> Result<Self, InvalidInbound> {
        let tls = match wire::TlsMode::try_from(wire.tls) {
            Ok(wire::TlsMode::Strict) => TlsMode::Strict,
            Ok(wire::TlsMode::Permissive) => TlsMode::Permissive,
            Ok(wire::TlsMode::Unspecified) | Err(_) => {
                return Err(InvalidInbound::Tls(wire.tls));
            }
        };
        let server_names = wire
            .server_names
            .iter()
            .map(|name| {
                if name.is_empty() || name.len() > mesh_proto::sni::MAX_BYTES {
                    return Err(InvalidInbound::ServerName(name.clone()));
                }
                Ok(server_name::in_documents(name).into_owned())
            })
            .collect::<Result<_, _>>()?;
        let permissions = wire
            .permissions
            .as_ref()
            .ok_or(InvalidInbound::NoPermissions)?;
        let name = text(&wire.name).ok_or(InvalidInbound::Name)?;
        Ok(Self {
            listen: socket_address(wire.listen.as_ref()).map_err(InvalidInbound::Listen)?,
            application: socket_address(wire.application.as_ref())
                .map_err(InvalidInbound::Application)?,
            protocol: Protocol::read(wire.protocol)?,
            tls,
            server_names: Arc::new(server_names),
            // An inbound of no service is known by its own name.
            service: text(&wire.service).unwrap_or_else(|| name.clone()),
            permissions: Arc::new(permissions.try_into()?),
            timeouts: Timeouts::read(wire.timeouts.as_ref()),
            probe: wire.probe.as_ref().map(read_probe).transpose()?,
            caller_timeouts: wire
                .caller_timeouts
                .iter()
                .map(|special| {
                    Ok(CallerTimeouts {
                        callers: patterns("caller_timeouts", &special.matches)?,
                        timeouts: Timeouts::read(special.timeouts.as_ref()),
                    })
                })
                .collect::<Result<_, InvalidPermission>>()?,
            name,
        })
    }
}

fn read_probe(wire: &wire::Probe) -> Result<Probe, InvalidInbound> {
    let positive = |field, value| match value {
        0 => Err(InvalidInbound::Probe(field)),
        value => Ok(value),
    };
    let ms = |field, value| positive(field, value).map(|ms| Duration::from_millis(ms.into()));
    Ok(Probe {
        interval: ms("interval_ms", wire.interval_ms)?,
        timeout: ms("timeout_ms", wire.timeout_ms)?,
        unhealthy_threshold: positive("unhealthy_threshold", wire.unhealthy_threshold)?,
        healthy_threshold: positive("healthy_threshold", wire.healthy_threshold)?,
    })
}
