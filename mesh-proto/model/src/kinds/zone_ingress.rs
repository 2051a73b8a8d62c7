//! `ZoneIngress`: where other zones enter a zone.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    resource::Meta,
};

/// Where other zones enter a zone. Owned by its zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ZoneIngress {
    /// Addresses and ports.
    pub networking: IngressNetworking,
}

/// Addresses and ports of an ingress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressNetworking {
    /// Where it listens, IPv4 or IPv6.
    pub address: IpAddr,
    /// Where it listens.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Where other zones reach it, if that is not `address`: an address or a DNS name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertised_address: Option<String>,
    /// Where other zones reach it, if that is not `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub advertised_port: Option<u16>,
}

impl IngressNetworking {
    /// Where other zones reach it: host and port.
    #[must_use]
    pub fn reachable(&self) -> (String, u16) {
        let host = match &self.advertised_address {
            Some(address) => address.clone(),
            None => self.address.to_string(),
        };
        (host, self.advertised_port.unwrap_or(self.port))
    }
}

impl Kind for ZoneIngress {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "ZoneIngress",
        plural: "zoneingresses",
        short: "zi",
        scope: Scope::Global,
        writers: Writers::Zone,
        spec_field: false,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, _: &Meta, out: &mut Checker) {
        match &self.networking.advertised_address {
            Some(address) => out.reachable_host("networking.advertisedAddress", address),
            None => out.reachable_address("networking.address", self.networking.address),
        }
    }
}
