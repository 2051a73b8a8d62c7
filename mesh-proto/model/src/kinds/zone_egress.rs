//! `ZoneEgress`: where traffic to services outside the mesh leaves a zone.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    resource::Meta,
};

/// Where traffic to services outside the mesh leaves a zone. Owned by its zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ZoneEgress {
    /// Address and port.
    pub networking: EgressNetworking,
}

/// Address and port of an egress. Only proxies of its own zone connect to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressNetworking {
    /// Where it listens, IPv4 or IPv6.
    pub address: IpAddr,
    /// Where it listens.
    #[schemars(range(min = 1))]
    pub port: u16,
}

impl Kind for ZoneEgress {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "ZoneEgress",
        plural: "zoneegresses",
        short: "ze",
        scope: Scope::Global,
        writers: Writers::Zone,
        spec_field: false,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, _: &Meta, out: &mut Checker) {
        out.reachable_address("networking.address", self.networking.address);
    }
}
