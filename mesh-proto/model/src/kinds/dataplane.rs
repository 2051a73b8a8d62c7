//! `Dataplane`: the proxy of one workload.

use std::net::{IpAddr, SocketAddr};

use mesh_proto::names::{self, InvalidName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    duration::Duration,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    labels::{self, Labels},
    path,
    resource::Meta,
};

/// The proxy of one workload: where it is reached, and what it reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dataplane {
    /// Addresses and ports.
    pub networking: Networking,
}

/// Addresses and ports of a dataplane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Networking {
    /// Where the proxy listens for others, IPv4 or IPv6.
    pub address: IpAddr,
    /// Where others reach it, if that is not `address` (address translation): an address or a DNS name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertised_address: Option<String>,
    /// What the workload offers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inbound: Vec<Inbound>,
    /// What the workload calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outbound: Vec<Outbound>,
    /// Kept for files written for Kuma; our proxy's admin port is a Unix socket and ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
}

/// One port the workload offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Inbound {
    /// Another way to refer to the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where the proxy listens.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Where the proxy listens; absent: `networking.address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Where the application listens; absent: the same number as `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub service_port: Option<u16>,
    /// Where the application listens; absent: the inbound's own address, or loopback where that would be the proxy itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_address: Option<IpAddr>,
    /// What the application speaks. Absent: what the services say whose port it serves; where they say nothing either, whoever
    /// speaks first on a connection shows whether it is HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// What the inbound's author says of its readiness; the proxy's own probe comes on top.
    #[serde(default, skip_serializing_if = "InboundState::is_default")]
    pub state: InboundState,
    /// How the proxy finds out whether the application is ready. Absent: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_probe: Option<ServiceProbe>,
    /// Older form of `state`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<InboundHealth>,
}

/// What an application speaks.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Tls,
    Http,
    Http2,
    Grpc,
}

/// Readiness as the author of an inbound states it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum InboundState {
    /// May get traffic.
    #[default]
    Ready,
    /// Gets no traffic from the mesh for now.
    NotReady,
    /// Is no part of any service.
    Ignored,
}

/// How a proxy finds out whether its application is ready: by connecting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceProbe {
    /// From one attempt to the next; absent: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// How long an attempt may take; absent: 500ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Failures in a row until not ready; absent: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row until ready; absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub healthy_threshold: Option<u32>,
    /// Connect over TCP. The only way so far, and needed.
    pub tcp: TcpProbe,
}

/// Has no settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpProbe {}

/// Older form of [`Inbound::state`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InboundHealth {
    /// False: as `state: NotReady`.
    pub ready: bool,
}

/// One service the workload calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Outbound {
    /// Where the proxy listens for the workload.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Where the proxy listens for the workload; absent: 127.0.0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// What is called.
    pub backend_ref: BackendRef,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// What it refers to.
    pub kind: BackendKind,
    /// The service's name.
    pub name: String,
    /// The service's port.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// `isthmus.io/zone: <zone>` restricts it to the service in that zone.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// What a [`BackendRef`] may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackendKind {
    /// A `MeshService`, over all its zones.
    MeshService,
}

/// Settings of Kuma's admin port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl Networking {
    /// Where others reach the proxy: `advertisedAddress`, else `address`.
    #[must_use]
    pub fn reachable_address(&self) -> String {
        match &self.advertised_address {
            Some(address) => address.clone(),
            None => self.address.to_string(),
        }
    }
}

impl Inbound {
    /// The name, or the port in decimal.
    #[must_use]
    pub fn name_or_port(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.port.to_string())
    }

    /// Where the proxy listens.
    #[must_use]
    pub fn listen_address(&self, networking: &Networking) -> IpAddr {
        self.address.unwrap_or(networking.address)
    }

    /// Where the application listens: `serviceAddress`, else the inbound's own address, as in Kuma. Where that would be
    /// the proxy itself (no `servicePort`, and traffic is not intercepted) it is the loopback address.
    #[must_use]
    pub fn application_address(&self, networking: &Networking) -> IpAddr {
        let listen = self.listen_address(networking);
        self.service_address.unwrap_or(match listen {
            _ if self.application_port() != self.port => listen,
            IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        })
    }

    /// The port the application listens on.
    #[must_use]
    pub fn application_port(&self) -> u16 {
        self.service_port.unwrap_or(self.port)
    }

    /// [`Inbound::state`], and its older form.
    #[must_use]
    pub fn stated(&self) -> InboundState {
        match (self.state, self.health) {
            (InboundState::Ready, Some(InboundHealth { ready: false })) => InboundState::NotReady,
            (state, _) => state,
        }
    }
}

impl ServiceProbe {
    /// From one attempt to the next, in milliseconds.
    #[must_use]
    pub fn interval_ms(&self) -> u32 {
        self.interval.map_or(1_000, Duration::as_millis_u32)
    }

    /// How long an attempt may take, in milliseconds.
    #[must_use]
    pub fn timeout_ms(&self) -> u32 {
        self.timeout.map_or(500, Duration::as_millis_u32)
    }
}

impl Outbound {
    /// Where the proxy listens for the workload.
    #[must_use]
    pub fn listen_address(&self) -> IpAddr {
        self.address
            .unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
    }
}

impl BackendRef {
    /// The only zone it means, where it names one.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        self.labels.get(labels::ZONE).map(String::as_str)
    }
}

impl Protocol {
    /// True where requests of HTTP are spoken, of whichever version.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }
}

impl InboundState {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl From<Protocol> for mesh_proto::proxy::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Tls => Self::Tls,
            Protocol::Http => Self::Http,
            Protocol::Http2 => Self::Http2,
            Protocol::Grpc => Self::Grpc,
        }
    }
}

impl Kind for Dataplane {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "Dataplane",
        plural: "dataplanes",
        short: "dp",
        scope: Scope::Mesh,
        writers: Writers::Zone,
        spec_field: false,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, meta: &Meta, out: &mut Checker) {
        if let Some(service) = meta.labels.get(labels::SERVICE)
            && !names::is_label(service)
        {
            let message = format!("a service is named by one label: {}", InvalidName(service.clone()));
            out.add_envelope(path::field("labels", labels::SERVICE), message);
        }
        if meta.labels.get(labels::WORKLOAD).is_some_and(String::is_empty) {
            let message = "must not be empty: the workload's identity is made from it";
            out.add_envelope(path::field("labels", labels::WORKLOAD), message);
        }
        let networking = &self.networking;
        out.reachable_address("networking.address", networking.address);
        if let Some(address) = &networking.advertised_address {
            out.reachable_host("networking.advertisedAddress", address);
        }
        networking.check_inbounds(out);
        networking.check_outbounds(out);
    }
}

impl Networking {
    fn check_inbounds(&self, out: &mut Checker) {
        let path = "networking.inbound";
        for (index, inbound) in self.inbound.iter().enumerate() {
            let at = format!("{path}[{index}]");
            if let Some(name) = &inbound.name {
                out.port_name(format!("{at}.name"), name);
            }
            let listen = (inbound.listen_address(self), inbound.port);
            if listen == (inbound.application_address(self), inbound.application_port()) {
                out.add(
                    format!("{at}.servicePort"),
                    "the application would be the proxy itself; give the port the application listens on",
                );
            }
        }
        out.unique(path, ".name", &self.inbound, |inbound| inbound.name.clone());
        let listen = |inbound: &Inbound| SocketAddr::new(inbound.listen_address(self), inbound.port);
        out.unique(path, ".port", &self.inbound, |inbound| Some(listen(inbound)));
        // Policies and services refer to an inbound by either.
        for (index, inbound) in self.inbound.iter().enumerate() {
            let other = self.inbound.iter().position(|other| {
                other.port != inbound.port && inbound.name == Some(other.port.to_string())
            });
            if let Some(other) = other {
                let message = format!("is the port of {path}[{other}]; choose another name");
                out.add(format!("{path}[{index}].name"), message);
            }
        }
    }

    fn check_outbounds(&self, out: &mut Checker) {
        let path = "networking.outbound";
        let listen = |outbound: &Outbound| SocketAddr::new(outbound.listen_address(), outbound.port);
        for (index, outbound) in self.outbound.iter().enumerate() {
            let at = format!("{path}[{index}]");
            outbound.backend_ref.check(&format!("{at}.backendRef"), out);
            let taken = self.inbound.iter().position(|inbound| {
                listen(outbound) == SocketAddr::new(inbound.listen_address(self), inbound.port)
            });
            if let Some(inbound) = taken {
                let message = format!(
                    "{} is already taken by networking.inbound[{inbound}]",
                    listen(outbound)
                );
                out.add(format!("{at}.port"), message);
            }
        }
        out.unique(path, ".port", &self.outbound, |outbound| Some(listen(outbound)));
    }
}

impl BackendRef {
    fn check(&self, at: &str, out: &mut Checker) {
        out.label(format!("{at}.name"), &self.name);
        for (key, value) in &self.labels {
            let path = path::field(&format!("{at}.labels"), key);
            if key == labels::ZONE {
                out.label(path, value);
            } else {
                out.add(path, "only isthmus.io/zone is understood here; a service is referred to by its name");
            }
        }
    }
}
