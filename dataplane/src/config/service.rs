//! How to reach one port of one service.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use mesh_proto::{
    names::{InvalidName, MeshName, ZoneName},
    proxy as wire,
    spiffe::SpiffeId,
};
use rustls_pki_types::ServerName;

use super::{
    HttpRoutes, InvalidAddress, InvalidHttpRoute, InvalidProtocol, InvalidRoute, Protocol,
    TcpRoute, Timeouts, port, text,
};
use crate::tls::server_name;

/// How to reach one port of one service, wherever it runs. Endpoints come separately.
#[derive(Debug, Clone)]
pub struct Service {
    /// The mesh it belongs to.
    pub mesh: MeshName,
    /// Its name.
    pub name: Arc<str>,
    /// The port of the service.
    pub port: u16,
    /// What it speaks.
    pub protocol: Protocol,
    /// The zones it runs in.
    pub zones: HashMap<ZoneName, ServiceZone>,
    /// For connections to it.
    pub timeouts: Timeouts,
    /// Where they really go. `None`: to `zones`.
    pub route: Option<TcpRoute>,
    /// Where requests go. `None`: as connections.
    pub http_routes: Option<HttpRoutes>,
    /// How they are spread over endpoints.
    pub balancing: Balancing,
}

/// How requests and connections are spread over the endpoints of one tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancing {
    /// By what.
    pub spread: Spread,
    /// How long a new endpoint's share grows. Zero: it is whole at once.
    pub slow_start: Duration,
}

/// By what an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// The one with the fewest requests under way, of so many picked at random.
    LeastRequest(u32),
    /// One after the other.
    RoundRobin,
}

impl Default for Balancing {
    fn default() -> Self {
        Self {
            spread: Spread::LeastRequest(CHOICES),
            slow_start: Duration::ZERO,
        }
    }
}

/// Of how many random endpoints the best is taken, where nothing is said.
const CHOICES: u32 = 2;

impl Balancing {
    fn read(wire: Option<&wire::LoadBalancing>) -> Self {
        use wire::load_balancing::Policy;
        let Some(wire) = wire else {
            return Self::default();
        };
        Self {
            spread: match &wire.policy {
                Some(Policy::RoundRobin(_)) => Spread::RoundRobin,
                Some(Policy::LeastRequest(least)) if least.choices > 0 => {
                    Spread::LeastRequest(least.choices)
                }
                Some(Policy::LeastRequest(_)) | None => Spread::LeastRequest(CHOICES),
            },
            slow_start: Duration::from_millis(wire.slow_start_ms.into()),
        }
    }
}

/// The service in one zone.
#[derive(Debug, Clone)]
pub struct ServiceZone {
    /// SNI of connections to it.
    pub server_name: ServerName<'static>,
    /// A server with any other identity is refused.
    pub identities: Arc<HashSet<SpiffeId>>,
}

/// Why a service document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidService {
    #[error("mesh: {0}")]
    Mesh(InvalidName),
    #[error("name is missing")]
    Name,
    #[error("{0}")]
    Port(#[from] InvalidAddress),
    #[error("{0}")]
    Protocol(#[from] InvalidProtocol),
    #[error("tcp_route: {0}")]
    Route(#[from] InvalidRoute),
    #[error("http_routes: {0}")]
    HttpRoutes(#[from] InvalidHttpRoute),
    #[error("zone: {0}")]
    Zone(InvalidName),
    #[error("zone {0} is there twice")]
    ZoneTwice(ZoneName),
    #[error("zone {0}: server_name {1:?} is not a host name")]
    ServerName(ZoneName, String),
    #[error("zone {zone}: identity {text:?}: {source}")]
    Identity {
        zone: ZoneName,
        text: String,
        source: mesh_proto::spiffe::InvalidSpiffeId,
    },
}

impl TryFrom<&wire::Service> for Service {
    type Error = InvalidService;

    fn try_from(wire: &wire::Service) -> Result<Self, InvalidService> {
        let mut zones = HashMap::with_capacity(wire.zones.len());
        for entry in &wire.zones {
            let zone: ZoneName = entry.zone.parse().map_err(InvalidService::Zone)?;
            let converted = service_zone(&zone, entry)?;
            if zones.insert(zone.clone(), converted).is_some() {
                return Err(InvalidService::ZoneTwice(zone));
            }
        }
        Ok(Self {
            mesh: wire.mesh.parse().map_err(InvalidService::Mesh)?,
            name: text(&wire.name).ok_or(InvalidService::Name)?,
            port: port(wire.port)?,
            protocol: Protocol::read(wire.protocol)?,
            zones,
            timeouts: Timeouts::read(wire.timeouts.as_ref()),
            route: wire.tcp_route.as_ref().map(TryInto::try_into).transpose()?,
            http_routes: wire
                .http_routes
                .as_ref()
                .map(TryInto::try_into)
                .transpose()?,
            balancing: Balancing::read(wire.load_balancing.as_ref()),
        })
    }
}

fn service_zone(zone: &ZoneName, wire: &wire::ServiceZone) -> Result<ServiceZone, InvalidService> {
    let server_name = server_name::on_wire(&wire.server_name)
        .ok_or_else(|| InvalidService::ServerName(zone.clone(), wire.server_name.clone()))?;
    let identities = wire
        .identities
        .iter()
        .map(|text| {
            text.parse().map_err(|source| InvalidService::Identity {
                zone: zone.clone(),
                text: text.clone(),
                source,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(ServiceZone {
        server_name,
        identities: Arc::new(identities),
    })
}
