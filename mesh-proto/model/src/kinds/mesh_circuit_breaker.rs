//! `MeshCircuitBreaker`: limits, and which endpoints are left out for a while.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    duration::Duration,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    parts::number::{Decimal, Percentage},
    policy::{self, Policy, PolicyShape, Rule, RulePart, To, ToKind, ToPart},
    resource::Meta,
    selection::TargetRef,
};

/// How much at once, and which endpoints are left out for a while because they fail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshCircuitBreaker {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For outgoing traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To<CircuitBreaker>>,
    /// For incoming traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule<CircuitBreaker>>,
}

/// Limits and detection. At least one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreaker {
    /// How much at once; beyond, it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_limits: Option<ConnectionLimits>,
    /// Which endpoints are left out for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
}

/// How much at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionLimits {
    /// Connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_connections: Option<u32>,
    /// Pools of connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_connection_pools: Option<u32>,
    /// Requests that wait for a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_pending_requests: Option<u32>,
    /// Attempts after the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_retries: Option<u32>,
    /// Requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_requests: Option<u32>,
}

/// Which endpoints are left out for a while.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierDetection {
    /// True: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// From one look to the next; absent: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// How long an endpoint is left out the first time; every further time as much longer; absent: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<Duration>,
    /// How many percent of the endpoints may be left out, and in any case one; absent: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub max_ejection_percent: Option<u32>,
    /// True: failures on this side of the connection count for `localOriginFailures` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_external_and_local_errors: Option<bool>,
    /// How a failing endpoint is recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detectors: Option<Detectors>,
    /// Where fewer than this percentage of the endpoints are left, all are used; absent: 50. 0: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_panic_threshold: Option<Percentage>,
}

/// How a failing endpoint is recognised. At least one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Detectors {
    /// Errors in a row of any kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_failures: Option<ConsecutiveFailures>,
    /// Answers 502, 503 and 504 in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_failures: Option<ConsecutiveFailures>,
    /// Failures on this side of the connection in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_origin_failures: Option<ConsecutiveFailures>,
    /// A lower rate of success than the others'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    /// More failures than a threshold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_percentage: Option<FailurePercentage>,
}

/// Failures in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsecutiveFailures {
    /// How many; absent: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub consecutive: Option<u32>,
}

/// A lower rate of success than the others'.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuccessRate {
    /// With fewer endpoints nothing is compared; absent: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub minimum_hosts: Option<u32>,
    /// Endpoints with fewer requests in an interval do not count; absent: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub request_volume: Option<u32>,
    /// By how many standard deviations below the mean; absent: 1.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_deviation_factor: Option<Decimal>,
}

/// More failures than a threshold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailurePercentage {
    /// With fewer endpoints nothing is looked at; absent: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub minimum_hosts: Option<u32>,
    /// Endpoints with fewer requests in an interval do not count; absent: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub request_volume: Option<u32>,
    /// The percentage; absent: 85.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub threshold: Option<u32>,
}

impl Kind for MeshCircuitBreaker {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshCircuitBreaker",
        plural: "meshcircuitbreakers",
        short: "mcb",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: ToKind::WITHOUT_ROUTES,
        rules: true,
        proxy: false,
        lists: &[],
    });

    fn policy(&self) -> Option<&dyn Policy> {
        Some(self)
    }

    fn validate(&self, _: &Meta, out: &mut Checker) {
        policy::check(self, out);
        out.at_least_one(
            "",
            &[("to", !self.to.is_empty()), ("rules", !self.rules.is_empty())],
        );
        for (index, entry) in self.to.iter().enumerate() {
            entry.default.check(&format!("to[{index}].default"), out);
        }
        for (index, rule) in self.rules.iter().enumerate() {
            rule.default.check(&format!("rules[{index}].default"), out);
        }
    }
}

impl Policy for MeshCircuitBreaker {
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

impl CircuitBreaker {
    fn check(&self, at: &str, out: &mut Checker) {
        let parts = [
            ("connectionLimits", self.connection_limits.is_some()),
            ("outlierDetection", self.outlier_detection.is_some()),
        ];
        out.at_least_one(at, &parts);
        if let Some(detection) = &self.outlier_detection {
            detection.check(&format!("{at}.outlierDetection"), out);
        }
    }
}

impl OutlierDetection {
    fn check(&self, at: &str, out: &mut Checker) {
        out.positive(format!("{at}.interval"), self.interval);
        out.positive(format!("{at}.baseEjectionTime"), self.base_ejection_time);
        let at = format!("{at}.detectors");
        let Some(detectors) = &self.detectors else {
            if self.disabled != Some(true) {
                out.add(at, "is required");
            }
            return;
        };
        let each = [
            ("totalFailures", detectors.total_failures.is_some()),
            ("gatewayFailures", detectors.gateway_failures.is_some()),
            ("localOriginFailures", detectors.local_origin_failures.is_some()),
            ("successRate", detectors.success_rate.is_some()),
            ("failurePercentage", detectors.failure_percentage.is_some()),
        ];
        out.at_least_one(&at, &each);
        let rate = detectors.success_rate.as_ref();
        let factor = rate.and_then(|rate| rate.standard_deviation_factor.as_ref());
        if factor.is_some_and(|factor| factor.value() <= 0.0) {
            out.add(format!("{at}.successRate.standardDeviationFactor"), "must be > 0");
        }
    }
}
