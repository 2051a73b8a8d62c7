//! `MeshTCPRoute`: which services connections to a service go to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    policy::{self, BackendRef, Policy, PolicyShape, ToKind, ToPart, ToTarget},
    resource::Meta,
    selection::TargetRef,
};

/// Which services connections to a service go to, by weight.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshTCPRoute {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For outgoing traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<TcpRoutes>,
}

/// Where connections to a service go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRoutes {
    /// Connections to what.
    pub target_ref: ToTarget,
    /// One rule.
    #[schemars(length(min = 1))]
    pub rules: Vec<TcpRule>,
}

/// A rule for all connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRule {
    /// What it says.
    pub default: TcpBackends,
}

/// Where connections go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpBackends {
    /// The destinations that share the connections. One that does not exist fails its share; nothing takes its place.
    #[schemars(length(min = 1))]
    pub backend_refs: Vec<BackendRef>,
}

impl Kind for MeshTCPRoute {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshTCPRoute",
        plural: "meshtcproutes",
        short: "mtcpr",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: ToKind::SERVICES,
        rules: false,
        proxy: false,
        lists: &[],
    });

    fn policy(&self) -> Option<&dyn Policy> {
        Some(self)
    }

    fn validate(&self, _: &Meta, out: &mut Checker) {
        policy::check(self, out);
        for (index, entry) in self.to.iter().enumerate() {
            for (rule_index, rule) in entry.rules.iter().enumerate() {
                let at = format!("to[{index}].rules[{rule_index}]");
                if rule_index > 0 {
                    let message = "there is one rule: it is for all connections; leave this one out";
                    out.add(&at, message);
                }
                for (backend_index, backend) in rule.default.backend_refs.iter().enumerate() {
                    backend.check(&format!("{at}.default.backendRefs[{backend_index}]"), out);
                }
            }
        }
    }
}

impl Policy for MeshTCPRoute {
    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn to(&self) -> Vec<ToPart<'_>> {
        let entries = self.to.iter();
        entries
            .map(|entry| ToPart {
                target: &entry.target_ref,
                at: "rules[0].default",
                default: entry.rules.first().map_or_else(
                    || serde_json::Map::new().into(),
                    |rule| policy::value(&rule.default),
                ),
            })
            .collect()
    }
}
