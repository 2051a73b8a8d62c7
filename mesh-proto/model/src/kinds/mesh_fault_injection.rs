//! `MeshFaultInjection`: faults on purpose.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    duration::Duration,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    parts::number::Percentage,
    policy::{self, Policy, PolicyShape, Rule, RulePart, To, ToKind, ToPart},
    resource::Meta,
    selection::TargetRef,
};

/// Faults on purpose, to try out what happens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshFaultInjection {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For traffic that enters through gateways, which this version does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To<Faults>>,
    /// For incoming traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule<Faults>>,
}

/// Faults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Faults {
    /// Of HTTP requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Vec<HttpFault>>,
}

/// Faults of HTTP requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpFault {
    /// Answer with an error instead of the application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Wait before the request goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Slow the answer down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_bandwidth: Option<ResponseBandwidth>,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Abort {
    /// The status.
    #[schemars(range(min = 100, max = 599))]
    pub http_status: u16,
    /// Of how many percent of the requests.
    pub percentage: Percentage,
}

/// A delay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    /// How long.
    pub value: Duration,
    /// Of how many percent of the requests.
    pub percentage: Percentage,
}

/// A slow answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResponseBandwidth {
    /// How slow, in `kbps`, `Mbps` or `Gbps`: `50kbps`.
    pub limit: String,
    /// Of how many percent of the requests.
    pub percentage: Percentage,
}

impl Kind for MeshFaultInjection {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshFaultInjection",
        plural: "meshfaultinjections",
        short: "mfi",
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
        for (index, entry) in self.to.iter().enumerate() {
            entry.default.check(&format!("to[{index}].default"), out);
        }
        for (index, rule) in self.rules.iter().enumerate() {
            rule.default.check(&format!("rules[{index}].default"), out);
        }
    }
}

impl Policy for MeshFaultInjection {
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

impl Faults {
    fn check(&self, at: &str, out: &mut Checker) {
        for (index, fault) in self.http.iter().flatten().enumerate() {
            let at = format!("{at}.http[{index}]");
            let faults = [
                ("abort", fault.abort.is_some()),
                ("delay", fault.delay.is_some()),
                ("responseBandwidth", fault.response_bandwidth.is_some()),
            ];
            out.at_least_one(&at, &faults);
            if let Some(bandwidth) = &fault.response_bandwidth
                && bandwidth.bits_per_second().is_none()
            {
                out.add(
                    format!("{at}.responseBandwidth.limit"),
                    "is a whole number with its unit kbps, Mbps or Gbps: 50kbps",
                );
            }
        }
    }
}

impl ResponseBandwidth {
    /// The limit as a number; `None`: it can not be read.
    #[must_use]
    pub fn bits_per_second(&self) -> Option<u64> {
        let digits = self.limit.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = self.limit.split_at(digits);
        let unit = match unit.trim_start() {
            "kbps" => 1_000,
            "Mbps" => 1_000_000,
            "Gbps" => 1_000_000_000,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_with_their_units() {
        for (limit, expected) in [
            ("50kbps", Some(50_000)),
            ("50 kbps", Some(50_000)),
            ("1Mbps", Some(1_000_000)),
            ("2Gbps", Some(2_000_000_000)),
            ("kbps", None),
            ("1.5Mbps", None),
            ("1", None),
            ("1kBps", None),
            ("99999999999999999999Gbps", None),
            ("18446744073709551615Gbps", None),
        ] {
            let bandwidth = ResponseBandwidth {
                limit: limit.to_owned(),
                percentage: serde_json::from_str("1").unwrap(),
            };
            assert_eq!(bandwidth.bits_per_second(), expected, "{limit}");
        }
    }
}
