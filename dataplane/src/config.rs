//! What the zone wants of this proxy, as domain types.
//!
//! Wire documents are converted here, once, and nowhere else. Whatever this version does not understand is an error
//! with the name of the field: the document is refused (NACK) and the last good one stays. Nothing here does I/O.

mod endpoint;
mod http;
mod ingress;
mod route;
mod service;
mod sidecar;
mod trust;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_proto::{
    discovery::Role, document, features, proxy as wire, proxy::document::Body as WireBody,
};

pub(crate) use endpoint::place;
pub use endpoint::{Endpoint, EndpointHealth, Host, InvalidEndpoint, Outstanding};
pub use http::{
    HeaderModifier, HttpFilter, HttpMirror, HttpRedirect, HttpRoutes, HttpRule, HttpTimeouts,
    InvalidHttpRoute, PathRewrite, Timeout, UrlRewrite,
};
pub use ingress::{Ingress, IngressRoute, InvalidIngress};
pub use route::{InvalidRoute, TcpRoute};
pub use service::{Balancing, InvalidService, Service, ServiceZone, Spread};
pub use sidecar::{
    CallerTimeouts, Inbound, InvalidInbound, InvalidProxy, Outbound, Probe, Proxy, TlsMode,
};
pub use trust::{Anchor, AnchorKey, InvalidTrust, Trust};

/// The longest free text (names of proxies, workloads, services) that a document may carry, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// A document that this version can run.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Body {
    Proxy(Proxy),
    Trust(Trust),
    Service(Service),
    Ingress(Ingress),
}

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDocument {
    /// It needs what this version does not have.
    #[error(
        "requires {0}, which this dataplane ({version}) does not have: upgrade the dataplane",
        version = mesh_proto::VERSION
    )]
    Features(String),
    /// Its bytes have changed since it was sealed.
    #[error("its content does not match its version {0}")]
    Version(String),
    /// Empty, or of a kind that is not known.
    #[error("has no body, or one that this dataplane ({version}) does not know: upgrade the dataplane", version = mesh_proto::VERSION)]
    Body,
    /// Name and content do not belong together.
    #[error("holds a {0} document, which is not what its name says")]
    Name(&'static str),
    /// For the other kind of proxy.
    #[error("a {0} document is not for a proxy that runs as {1}")]
    Role(&'static str, &'static str),
    /// A field of a proxy document.
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
    /// A field of a trust document.
    #[error(transparent)]
    Trust(#[from] InvalidTrust),
    /// A field of a service document.
    #[error(transparent)]
    Service(#[from] InvalidService),
    /// A field of an ingress document.
    #[error(transparent)]
    Ingress(#[from] InvalidIngress),
}

/// Converts a document for a proxy that runs as `role`.
///
/// # Errors
/// With the first thing that is wrong.
pub fn read(document: &wire::Document, role: Role) -> Result<Body, InvalidDocument> {
    let missing = features::missing(&document.required_features, features::DATAPLANE);
    if !missing.is_empty() {
        return Err(InvalidDocument::Features(missing.join(", ")));
    }
    if document.version != document::version_of(document) {
        return Err(InvalidDocument::Version(document.version.clone()));
    }
    let body = document.body.as_ref().ok_or(InvalidDocument::Body)?;
    let (kind, named_right, roles): (_, _, &[Role]) = match body {
        WireBody::Proxy(_) => ("proxy", document.name == document::PROXY, &[Role::Sidecar]),
        WireBody::Trust(_) => (
            "trust",
            document.name == document::TRUST,
            &[Role::Sidecar, Role::Ingress],
        ),
        WireBody::Service(_) => (
            "service",
            document.name.starts_with("service/"),
            &[Role::Sidecar],
        ),
        WireBody::Ingress(_) => (
            "ingress",
            document.name == document::INGRESS,
            &[Role::Ingress],
        ),
    };
    if !named_right {
        return Err(InvalidDocument::Name(kind));
    }
    if !roles.contains(&role) {
        let role = if role == Role::Ingress {
            "ingress"
        } else {
            "sidecar"
        };
        return Err(InvalidDocument::Role(kind, role));
    }
    Ok(match body {
        WireBody::Proxy(proxy) => Body::Proxy(proxy.try_into()?),
        WireBody::Trust(trust) => Body::Trust(trust.try_into()?),
        WireBody::Service(service) => Body::Service(service.try_into()?),
        WireBody::Ingress(ingress) => Body::Ingress(ingress.try_into()?),
    })
}

/// What a connection speaks inside mesh TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Tls,
    Http,
    Http2,
    Grpc,
    /// Nothing is declared: [`detect`](crate::detect) finds it out.
    Detect,
}

impl Protocol {
    /// True for what the proxy understands, request by request, on every connection.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }

    fn read(value: i32) -> Result<Self, InvalidProtocol> {
        match wire::Protocol::try_from(value) {
            Ok(wire::Protocol::Tcp) => Ok(Self::Tcp),
            Ok(wire::Protocol::Tls) => Ok(Self::Tls),
            Ok(wire::Protocol::Http) => Ok(Self::Http),
            Ok(wire::Protocol::Http2) => Ok(Self::Http2),
            Ok(wire::Protocol::Grpc) => Ok(Self::Grpc),
            Ok(wire::Protocol::Detect) => Ok(Self::Detect),
            Ok(wire::Protocol::Unspecified) | Err(_) => Err(InvalidProtocol(value)),
        }
    }
}

/// A protocol that is unspecified or unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("protocol {0} is not known")]
pub struct InvalidProtocol(i32);

/// How long things may take. Nobody's identity or permission depends on it, so what a document leaves out has a
/// default and is no reason to refuse it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// One attempt to reach an endpoint, handshake included.
    pub connect: Duration,
    /// Without a byte in either direction. `None`: for ever.
    pub idle: Option<Duration>,
    /// The policy entry that `connect` comes from, for records. Empty: none.
    pub connect_origin: Arc<str>,
    /// The policy entry that `idle` comes from, for records. Empty: none.
    pub idle_origin: Arc<str>,
    /// Of requests.
    pub http: Arc<HttpTimeouts>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            idle: Some(Duration::from_secs(3600)),
            connect_origin: Arc::default(),
            idle_origin: Arc::default(),
            http: Arc::new(HttpTimeouts::built_in()),
        }
    }
}

impl Timeouts {
    fn read(wire: Option<&wire::Timeouts>) -> Self {
        let defaults = Self::default();
        let Some(wire) = wire else {
            return defaults;
        };
        Self {
            connect: match wire.connect_ms {
                0 => defaults.connect,
                ms => Duration::from_millis(ms.into()),
            },
            idle: (wire.idle_ms > 0).then(|| Duration::from_millis(wire.idle_ms.into())),
            connect_origin: text(&wire.connect_origin).unwrap_or_default(),
            idle_origin: text(&wire.idle_origin).unwrap_or_default(),
            http: Arc::new(HttpTimeouts::read(wire.http.as_ref())),
        }
    }
}

/// Why a socket address is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidAddress {
    #[error("is missing")]
    Missing,
    #[error("host {0:?} is not an IP address")]
    NotIp(String),
    #[error("port {0} is not between 1 and 65535")]
    Port(u32),
}

fn port(value: u32) -> Result<u16, InvalidAddress> {
    match u16::try_from(value) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(InvalidAddress::Port(value)),
    }
}

fn socket_address(wire: Option<&wire::SocketAddress>) -> Result<SocketAddr, InvalidAddress> {
    let wire = wire.ok_or(InvalidAddress::Missing)?;
    let ip = wire
        .host
        .parse()
        .map_err(|_| InvalidAddress::NotIp(wire.host.clone()))?;
    Ok(SocketAddr::new(ip, port(wire.port)?))
}

/// Free text that ends up in records and labels: there, and not endless.
fn text(value: &str) -> Option<Arc<str>> {
    let printable = value.chars().all(|c| !c.is_control());
    (!value.is_empty() && value.len() <= TEXT_BYTES_MAX && printable).then(|| value.into())
}

#[cfg(test)]
pub(crate) mod tests;
