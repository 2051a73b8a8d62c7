//! One place where a service can be reached.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_proto::{discovery, names::ZoneName, proxy as wire};

use super::{InvalidAddress, port};

/// An address, or a name that is resolved whenever a connection is made, so that a changed answer is used at once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Host {
    Ip(IpAddr),
    Name(Arc<str>),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip @ IpAddr::V4(_)) => write!(f, "{ip}"),
            Self::Ip(ip @ IpAddr::V6(_)) => write!(f, "[{ip}]"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// One place where a service can be reached.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where.
    pub host: Host,
    /// At which port.
    pub port: u16,
    /// The zone the workload runs in.
    pub zone: ZoneName,
    /// The address is the other zone's ingress.
    pub through_ingress: bool,
    /// As text, for records.
    pub text: Arc<str>,
    /// What this process has seen of it; kept while the endpoint is.
    pub health: Arc<EndpointHealth>,
}

impl Endpoint {
    /// Two endpoints at the same place are one.
    #[must_use]
    pub fn same_place(&self, host: &Host, port: u16) -> bool {
        self.port == port && self.host == *host
    }

    /// As the zone sent it, to be kept on disk.
    #[must_use]
    pub fn to_wire(&self) -> discovery::Endpoint {
        let host = match &self.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name.to_string(),
        };
        discovery::Endpoint {
            address: Some(wire::SocketAddress {
                host,
                port: self.port.into(),
            }),
            zone: self.zone.to_string(),
            through_ingress: self.through_ingress,
        }
    }

    /// The address, where no name has to be resolved.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What this process has to do with an endpoint, and whether connects to it have failed lately. Shared by all workers.
#[derive(Debug)]
pub struct EndpointHealth {
    since: Instant,
    under_way: AtomicUsize,
    // Milliseconds after `since` until which the endpoint comes last. 0: never failed.
    failed_until_ms: AtomicU64,
}

impl Default for EndpointHealth {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            under_way: AtomicUsize::new(0),
            failed_until_ms: AtomicU64::new(0),
        }
    }
}

/// A connection or request to an endpoint, counted while this lives.
#[derive(Debug)]
pub struct Outstanding(Arc<EndpointHealth>);

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl EndpointHealth {
    /// Counts a connection or request until what is returned is dropped.
    #[must_use]
    pub fn occupy(self: &Arc<Self>) -> Outstanding {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Outstanding(self.clone())
    }

    /// Connections and requests of this process under way to it.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// How long it has been known.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    fn ms(&self, at: Instant) -> u64 {
        let ms = at.saturating_duration_since(self.since).as_millis();
        u64::try_from(ms).unwrap_or(u64::MAX)
    }

    /// A connect failed: the endpoint comes last for `penalty`.
    pub fn failed(&self, now: Instant, penalty: Duration) {
        self.failed_until_ms
            .store(self.ms(now + penalty), Ordering::Relaxed);
    }

    /// A connect succeeded.
    pub fn succeeded(&self) {
        if self.failed_until_ms.load(Ordering::Relaxed) != 0 {
            self.failed_until_ms.store(0, Ordering::Relaxed);
        }
    }

    /// True where the endpoint should be tried only after others.
    #[must_use]
    pub fn comes_last(&self, now: Instant) -> bool {
        self.failed_until_ms.load(Ordering::Relaxed) > self.ms(now)
    }
}

/// Why an endpoint is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidEndpoint {
    #[error("endpoint address: {0}")]
    Address(#[from] InvalidAddress),
    #[error("endpoint host {0:?} is neither an IP address nor a DNS name")]
    Host(String),
    #[error("endpoint zone: {0}")]
    Zone(#[from] mesh_proto::names::InvalidName),
}

/// Reads where an endpoint is.
pub(crate) fn place(wire: Option<&wire::SocketAddress>) -> Result<(Host, u16), InvalidEndpoint> {
    let wire = wire.ok_or(InvalidAddress::Missing)?;
    let host = match wire.host.parse() {
        Ok(ip) => Host::Ip(ip),
        Err(_) if mesh_proto::names::is_subdomain(&wire.host.to_ascii_lowercase()) => {
            Host::Name(wire.host.as_str().into())
        }
        Err(_) => return Err(InvalidEndpoint::Host(wire.host.clone())),
    };
    Ok((host, port(wire.port)?))
}

impl TryFrom<&discovery::Endpoint> for Endpoint {
    type Error = InvalidEndpoint;

    fn try_from(wire: &discovery::Endpoint) -> Result<Self, InvalidEndpoint> {
        let (host, port) = place(wire.address.as_ref())?;
        Ok(Self {
            text: format!("{host}:{port}").into(),
            host,
            port,
            zone: wire.zone.parse()?,
            through_ingress: wire.through_ingress,
            health: Arc::default(),
        })
    }
}
