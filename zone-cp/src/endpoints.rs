//! Endpoint sets: where the workloads of a service are, apart from all documents.
//!
//! Sets are values, recomputed for the services that a change touches and published as the difference to what was
//! published before ([`delta`]), to exactly the dataplanes that use them (invariant 9). An empty set comes only from
//! what was seen: readiness that was withdrawn, a dataplane that left or stayed away through its grace period, a
//! resource that was deleted (FIELD e6).

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{
    discovery::{Endpoint, EndpointsDelta},
    names::{MeshName, ZoneName},
    proxy::SocketAddress,
};

/// Where to connect, and where that is.
pub type Set = BTreeMap<Address, Place>;

/// Host and port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// An IPv4 or IPv6 address, or, for an ingress, a DNS name.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// What is known of an endpoint beside its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Zone the workload runs in.
    pub zone: String,
    /// The address is that zone's ingress.
    pub through_ingress: bool,
}

/// The workloads of one service port in this zone.
pub type Members = BTreeSet<Member>;

/// One workload of a service port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its dataplane.
    pub dataplane: String,
    /// The inbound's name (or its port in decimal).
    pub inbound: String,
    /// Where other proxies reach that inbound.
    pub address: Address,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// The service.
    pub service: String,
    /// The port.
    pub port: u16,
}

/// Key of the set that an ingress route refers to.
#[must_use]
pub fn ingress_key(mesh: &MeshName, of: &ServicePort) -> String {
    format!("ingress/{mesh}/{}:{}", of.service, of.port)
}

/// The endpoints in this zone: members that are ready.
#[must_use]
pub fn own(zone: &ZoneName, members: &Members, ready: impl Fn(&Member) -> bool) -> Set {
    let here = |member: &Member| {
        let place = Place {
            zone: zone.to_string(),
            through_ingress: false,
        };
        (member.address.clone(), place)
    };
    members.iter().filter(|m| ready(m)).map(here).collect()
}

/// The endpoints in another zone: its ingresses.
#[must_use]
pub fn remote(zone: &str, ingresses: &BTreeSet<Address>) -> Set {
    let there = |address: &Address| {
        let place = Place {
            zone: zone.to_owned(),
            through_ingress: true,
        };
        (address.clone(), place)
    };
    ingresses.iter().map(there).collect()
}

/// Only the endpoints in `zone`.
#[must_use]
pub fn in_zone(set: &Set, zone: &str) -> Set {
    set.iter()
        .filter(|(_, place)| place.zone == zone)
        .map(|(address, place)| (address.clone(), place.clone()))
        .collect()
}

/// What turns `old` into `new`. `None`: nothing.
#[must_use]
pub fn delta(key: &str, old: &Set, new: &Set) -> Option<EndpointsDelta> {
    let put: Vec<_> = new
        .iter()
        .filter(|(address, place)| old.get(address) != Some(place))
        .map(to_wire)
        .collect();
    let remove: Vec<_> = old
        .keys()
        .filter(|address| !new.contains_key(address))
        .map(address_to_wire)
        .collect();
    if put.is_empty() && remove.is_empty() {
        return None;
    }
    Some(EndpointsDelta {
        key: key.to_owned(),
        full: false,
        put,
        remove,
    })
}

/// The whole set, for a dataplane that is new to it. `additive`: what the dataplane has beside it stays, because this
/// process may not know everything yet.
#[must_use]
pub fn whole(key: &str, set: &Set, additive: bool) -> EndpointsDelta {
    EndpointsDelta {
        key: key.to_owned(),
        full: !additive,
        put: set.iter().map(to_wire).collect(),
        remove: Vec::new(),
    }
}

fn to_wire((address, place): (&Address, &Place)) -> Endpoint {
    Endpoint {
        address: Some(address_to_wire(address)),
        zone: place.zone.clone(),
        through_ingress: place.through_ingress,
    }
}

fn address_to_wire(address: &Address) -> SocketAddress {
    SocketAddress {
        host: address.host.clone(),
        port: address.port.into(),
    }
}

/// `10.0.0.1:80`, `[::1]:80`.
impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(hosts: &[&str]) -> Set {
        hosts
            .iter()
            .map(|host| {
                let address = Address {
                    host: (*host).into(),
                    port: 80,
                };
                let place = Place {
                    zone: "east".into(),
                    through_ingress: false,
                };
                (address, place)
            })
            .collect()
    }

    fn applied(mut set: Set, delta: &EndpointsDelta) -> Set {
        if delta.full {
            set.clear();
        }
        for address in &delta.remove {
            set.retain(|a, _| a.host != address.host);
        }
        for endpoint in &delta.put {
            let address = endpoint.address.clone().unwrap();
            set.insert(
                Address {
                    host: address.host,
                    port: 80,
                },
                Place {
                    zone: endpoint.zone.clone(),
                    through_ingress: endpoint.through_ingress,
                },
            );
        }
        set
    }

    #[test]
    fn only_ready_members_are_endpoints() {
        let member = |name: &str| Member {
            dataplane: name.into(),
            inbound: "80".into(),
            address: Address {
                host: name.into(),
                port: 80,
            },
        };
        let members = [member("a"), member("b")].into();
        let found = own(&"east".parse().unwrap(), &members, |m| m.dataplane == "b");
        assert_eq!(found, set(&["b"]));
    }

    proptest! {
        #[test]
        fn a_delta_turns_the_old_set_into_the_new(
            old in prop::collection::vec("[a-e]", 0..5),
            new in prop::collection::vec("[a-e]", 0..5),
        ) {
            let old = set(&old.iter().map(String::as_str).collect::<Vec<_>>());
            let new = set(&new.iter().map(String::as_str).collect::<Vec<_>>());
            match delta("k", &old, &new) {
                None => prop_assert_eq!(old, new),
                Some(delta) => prop_assert_eq!(applied(old, &delta), new),
            }
        }
    }
}
