//! `MeshRateLimit`: how much in which time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    duration::Duration,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    parts::header::HeaderAdditions,
    policy::{self, Policy, PolicyShape, Rule, RulePart, To, ToKind, ToPart},
    resource::Meta,
    selection::TargetRef,
};

/// How many requests and connections are let in in which time. Either `rules` or `to`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshRateLimit {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For traffic that enters through gateways, which this version does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To<RateLimits>>,
    /// For incoming traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule<RateLimits>>,
}

/// Limits. At least one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimits {
    /// For each instance of a service by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Limits>,
    /// For all instances of a service together. Not in Kuma.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global: Option<Limits>,
}

/// Limits by protocol. At least one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Of HTTP requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpLimit>,
    /// Of connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpLimit>,
}

/// A limit of HTTP requests. At least one field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpLimit {
    /// True: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// How many requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_rate: Option<Rate>,
    /// What those get that are too many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_rate_limit: Option<OnRateLimit>,
}

/// What requests get that are too many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OnRateLimit {
    /// The status; absent: 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 599))]
    pub status: Option<u16>,
    /// Headers of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeaderAdditions>,
}

/// A limit of connections. At least one field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpLimit {
    /// True: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// How many connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_rate: Option<Rate>,
}

/// So many in so much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rate {
    /// How many.
    #[schemars(range(min = 1))]
    pub num: u32,
    /// In which time; more than 50ms.
    pub interval: Duration,
}

impl Kind for MeshRateLimit {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshRateLimit",
        plural: "meshratelimits",
        short: "mrl",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: &[ToKind::Mesh],
        rules: true,
        proxy: false,
        lists: &[],
    });

    fn policy(&self) -> Option<&dyn Policy> {
        Some(self)
    }

    fn validate(&self, _: &Meta, out: &mut Checker) {
        policy::check(self, out);
        let parts = [("to", !self.to.is_empty()), ("rules", !self.rules.is_empty())];
        out.at_least_one("", &parts);
        if parts.iter().all(|(_, is_given)| *is_given) {
            out.add("to", "give either rules or to, not both");
        }
        for (index, entry) in self.to.iter().enumerate() {
            entry.default.check(&format!("to[{index}].default"), out);
        }
        for (index, rule) in self.rules.iter().enumerate() {
            let at = format!("rules[{index}].default");
            rule.default.check(&at, out);
            for (field, limits) in rule.default.parts() {
                if !rule.matches.is_empty() && limits.is_some_and(|limits| limits.tcp.is_some()) {
                    out.add(
                        format!("{at}.{field}.tcp"),
                        "counts connections before it is known whose they are; leave `matches` out",
                    );
                }
            }
        }
    }
}

impl Policy for MeshRateLimit {
    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn to(&self) -> Vec<ToPart<'_>> {
        policy::to_parts(&self.to)
    }

    fn rules(&self) -> Vec<RulePart<'_>> {
        policy::rule_parts(&self.rules)
    }
}

impl RateLimits {
    fn parts(&self) -> [(&'static str, Option<&Limits>); 2] {
        [("local", self.local.as_ref()), ("global", self.global.as_ref())]
    }

    fn check(&self, at: &str, out: &mut Checker) {
        let parts = self.parts().map(|(field, limits)| (field, limits.is_some()));
        out.at_least_one(at, &parts);
        for (field, limits) in self.parts() {
            if let Some(limits) = limits {
                limits.check(&format!("{at}.{field}"), out);
            }
        }
    }
}

impl Limits {
    fn check(&self, at: &str, out: &mut Checker) {
        let parts = [("http", self.http.is_some()), ("tcp", self.tcp.is_some())];
        out.at_least_one(at, &parts);
        if let Some(http) = &self.http {
            let at = format!("{at}.http");
            let parts = [
                ("disabled", http.disabled.is_some()),
                ("requestRate", http.request_rate.is_some()),
                ("onRateLimit", http.on_rate_limit.is_some()),
            ];
            out.at_least_one(&at, &parts);
            check_rate(http.request_rate, &format!("{at}.requestRate"), out);
        }
        if let Some(tcp) = self.tcp {
            let at = format!("{at}.tcp");
            let parts = [
                ("disabled", tcp.disabled.is_some()),
                ("connectionRate", tcp.connection_rate.is_some()),
            ];
            out.at_least_one(&at, &parts);
            check_rate(tcp.connection_rate, &format!("{at}.connectionRate"), out);
        }
    }
}

/// Shorter intervals can not be told apart from none.
const INTERVAL_ABOVE: std::time::Duration = std::time::Duration::from_millis(50);

fn check_rate(rate: Option<Rate>, at: &str, out: &mut Checker) {
    if rate.is_some_and(|rate| rate.interval.0 <= INTERVAL_ABOVE) {
        out.add(format!("{at}.interval"), "must be longer than 50ms");
    }
}
