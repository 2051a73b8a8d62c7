//! What a zone ingress forwards.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use mesh_proto::{
    names::{InvalidName, MeshName, ZoneName},
    proxy as wire,
};

use super::{InvalidAddress, Timeouts, socket_address, text};
use crate::tls::server_name;

/// What an ingress forwards, by server name, without decrypting.
#[derive(Debug, Clone)]
pub struct Ingress {
    /// The zone it belongs to.
    pub zone: ZoneName,
    /// Name of the `ZoneIngress` resource.
    pub name: Arc<str>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// By server name, in lower case.
    pub routes: HashMap<String, IngressRoute>,
    /// For forwarded connections.
    pub timeouts: Timeouts,
}

/// Where connections for one server name go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressRoute {
    /// Key of the endpoint set.
    pub endpoints: String,
    /// For records and metrics.
    pub mesh: MeshName,
    /// For records and metrics.
    pub service: Arc<str>,
}

/// Why an ingress document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidIngress {
    #[error("zone: {0}")]
    Zone(InvalidName),
    #[error("name is missing")]
    Name,
    #[error("listen {0}")]
    Listen(#[from] InvalidAddress),
    #[error("route for {0:?}: the server name must have 1 to 253 bytes and be there once")]
    ServerName(String),
    #[error("route for {0}: endpoints is missing")]
    Endpoints(String),
    #[error("route for {0}: mesh: {1}")]
    Mesh(String, InvalidName),
    #[error("route for {0}: service is missing")]
    Service(String),
}

impl TryFrom<&wire::Ingress> for Ingress {
    type Error = InvalidIngress;

    fn try_from(wire: &wire::Ingress) -> Result<Self, InvalidIngress> {
        let mut routes = HashMap::with_capacity(wire.routes.len());
        for route in &wire.routes {
            let name = server_name::in_documents(&route.server_name).into_owned();
            let bad_name = || InvalidIngress::ServerName(route.server_name.clone());
            if name.is_empty() || name.len() > mesh_proto::sni::MAX_BYTES {
                return Err(bad_name());
            }
            let converted = IngressRoute {
                endpoints: if route.endpoints.is_empty() {
                    return Err(InvalidIngress::Endpoints(name));
                } else {
                    route.endpoints.clone()
                },
                mesh: route
                    .mesh
                    .parse()
                    .map_err(|error| InvalidIngress::Mesh(name.clone(), error))?,
                service: text(&route.service)
                    .ok_or_else(|| InvalidIngress::Service(name.clone()))?,
            };
            if routes.insert(name, converted).is_some() {
                return Err(bad_name());
            }
        }
        Ok(Self {
            zone: wire.zone.parse().map_err(InvalidIngress::Zone)?,
            name: text(&wire.name).ok_or(InvalidIngress::Name)?,
            listen: socket_address(wire.listen.as_ref())?,
            routes,
            timeouts: Timeouts::read(wire.timeouts.as_ref()),
        })
    }
}
