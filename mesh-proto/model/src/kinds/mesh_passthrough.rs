//! `MeshPassthrough`: what may be called outside the mesh.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use mesh_proto::names;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    policy::{self, ListMerge, Policy, PolicyShape},
    resource::Meta,
    selection::TargetRef,
};

/// What may be called outside the mesh, where traffic is intercepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshPassthrough {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For the proxy as a whole.
    #[serde(default)]
    pub default: Passthrough,
}

/// What may be called.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Passthrough {
    /// How much; absent: `Matched`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passthrough_mode: Option<PassthroughMode>,
    /// Of `Matched`: destinations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append_match: Option<Vec<Destination>>,
}

/// How much may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PassthroughMode {
    /// Everything.
    All,
    /// What is listed.
    Matched,
    /// Nothing.
    None,
}

/// A destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Destination {
    /// What `value` is.
    #[serde(rename = "type")]
    pub form: DestinationForm,
    /// A domain (`*.` at its beginning: all below it), an address, or a range of addresses.
    pub value: String,
    /// At which port; absent: at any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// What is spoken; absent: `tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<PassthroughProtocol>,
}

/// What the value of a [`Destination`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DestinationForm {
    /// A domain.
    Domain,
    /// An address.
    #[serde(rename = "IP")]
    Ip,
    /// A range of addresses.
    #[serde(rename = "CIDR")]
    Cidr,
}

/// What is spoken with a destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum PassthroughProtocol {
    #[default]
    Tcp,
    Tls,
    Grpc,
    Http,
    Http2,
    Mysql,
}

impl Kind for MeshPassthrough {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshPassthrough",
        plural: "meshpassthroughs",
        short: "mp",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: &[],
        rules: false,
        proxy: true,
        lists: &[("appendMatch", ListMerge::Append)],
    });

    fn policy(&self) -> Option<&dyn Policy> {
        Some(self)
    }

    fn validate(&self, _: &Meta, out: &mut Checker) {
        policy::check(self, out);
        self.default.check(out);
    }
}

impl Policy for MeshPassthrough {
    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn proxy(&self) -> Option<Value> {
        Some(policy::value(&self.default))
    }
}

impl Passthrough {
    fn check(&self, out: &mut Checker) {
        let list = self.append_match.as_deref().unwrap_or_default();
        let mut protocols = BTreeMap::new();
        for (index, destination) in list.iter().enumerate() {
            let at = format!("default.appendMatch[{index}]");
            destination.check(&at, out);
            let Some(port) = destination.port else { continue };
            let protocol = destination.protocol();
            let (first, before) = *protocols.entry(port).or_insert((index, protocol));
            if before != protocol && protocol.is_http() {
                let message = format!(
                    "spec.default.appendMatch[{first}] speaks another protocol at this port; http, http2 and grpc share it with no other"
                );
                out.add(format!("{at}.port"), message);
            }
        }
        out.unique("default.appendMatch", ".value", list, |destination| {
            let port = destination.port?;
            let protocol = format!("{:?}", destination.protocol()).to_lowercase();
            Some(format!("{} at port {port} with {protocol}", destination.value))
        });
    }
}

impl Destination {
    fn protocol(&self) -> PassthroughProtocol {
        self.protocol.unwrap_or_default()
    }

    fn check(&self, at: &str, out: &mut Checker) {
        let (value, protocol) = (self.value.as_str(), self.protocol());
        if protocol == PassthroughProtocol::Mysql && self.port.is_none() {
            out.add(format!("{at}.port"), "is required with mysql");
        }
        let error = match self.form {
            DestinationForm::Ip => value.parse::<IpAddr>().err().map(|_| "is not an IPv4 or IPv6 address"),
            DestinationForm::Cidr => value.parse::<IpNet>().err().map(|_| "is not a range of addresses, such as 10.0.0.0/8"),
            DestinationForm::Domain => {
                if matches!(protocol, PassthroughProtocol::Tcp | PassthroughProtocol::Mysql) {
                    let message = "a domain is recognised in TLS and HTTP only: write tls, http, http2 or grpc";
                    out.add(format!("{at}.protocol"), message);
                }
                let wild = value.starts_with('*');
                if wild && self.port.is_none() && protocol.is_http() {
                    let message = "is required with a wildcard and http, http2 or grpc";
                    out.add(format!("{at}.port"), message);
                }
                let below = value.strip_prefix("*.").unwrap_or(value);
                let good = value == "*" || names::is_subdomain(&below.to_ascii_lowercase());
                (!good).then_some("is not a domain, such as example.com or *.example.com")
            }
        };
        if let Some(message) = error {
            out.add(format!("{at}.value"), format!("{value:?} {message}"));
        }
    }
}

impl PassthroughProtocol {
    fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }
}
