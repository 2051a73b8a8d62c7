//! What a zone ingress forwards.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use mesh_proto::{
    names::{InvalidName, MeshName, ZoneName},
    proxy as wire,
};

use crate::tls::server_name;
use super::{InvalidAddress, socket_address, text};

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
    /// One attempt to reach an endpoint.
    pub connect_timeout: Duration,
    /// Without a byte in either direction. `None`: for ever.
    pub idle_timeout: Option<Duration>,
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

/// How long an ingress waits for an endpoint of its own zone where the document does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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
        // Of the time-outs, only the idle one is the document's to say.
        let idle_ms = wire.timeouts.as_ref().map_or(0, |t| t.idle_ms);
        let connect_ms = wire.timeouts.as_ref().map_or(0, |t| t.connect_ms);
        Ok(Self {
            zone: wire.zone.parse().map_err(InvalidIngress::Zone)?,
            name: text(&wire.name).ok_or(InvalidIngress::Name)?,
            listen: socket_address(wire.listen.as_ref())?,
            routes,
            connect_timeout: match connect_ms {
                0 => CONNECT_TIMEOUT,
                ms => Duration::from_millis(ms.into()),
            },
            idle_timeout: (idle_ms > 0).then(|| Duration::from_millis(idle_ms.into())),
        })
    }
}
