//! `MeshTimeout`: how long things may take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    duration::Duration,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    policy::{self, BuiltIn, Policy, PolicyShape, Rule, RulePart, To, ToKind, ToPart},
    resource::Meta,
    selection::TargetRef,
};

/// How long connections and requests may take, and how long they may be idle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshTimeout {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For outgoing traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To<Timeouts>>,
    /// For incoming traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule<Timeouts>>,
}

/// Timeouts. One that is absent is left as weaker policies have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// Until a connection is established. Built in: 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_timeout: Option<Duration>,
    /// How long no byte may pass on a connection before it is closed. 0s: for ever. Built in: 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// For HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpTimeouts>,
}

/// Timeouts of HTTP. 0s: for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpTimeouts {
    /// From the end of a request to the end of its answer; an upload may take longer. Built in: 15s for outgoing traffic, for ever for incoming.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<Duration>,
    /// How long nothing may pass on a stream. Built in: 30m for outgoing traffic, 1h for incoming.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_idle_timeout: Option<Duration>,
    /// How long a stream may last. Built in: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_stream_duration: Option<Duration>,
    /// How long a connection may last; then it is drained. Built in: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<Duration>,
    /// From the first byte of a request to the end of its headers. Built in: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_headers_timeout: Option<Duration>,
}

impl Kind for MeshTimeout {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshTimeout",
        plural: "meshtimeouts",
        short: "mt",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: ToKind::ALL,
        rules: true,
        proxy: false,
        lists: &[],
    });

    const BUILT_IN: BuiltIn = BuiltIn {
        to: r#"{"connectionTimeout": "5s", "idleTimeout": "1h", "http": {"requestTimeout": "15s", "streamIdleTimeout": "30m"}}"#,
        // The caller's proxy watches over requests.
        rules: r#"{"connectionTimeout": "5s", "idleTimeout": "1h", "http": {"streamIdleTimeout": "1h"}}"#,
        proxy: "",
    };

    fn policy(&self) -> Option<&dyn Policy> {
        Some(self)
    }

    fn validate(&self, _: &Meta, out: &mut Checker) {
        policy::check(self, out);
        for (index, entry) in self.to.iter().enumerate() {
            let at = format!("to[{index}].default");
            entry.default.check(&at, out);
            if entry.target_ref.kind == ToKind::MeshHttpRoute {
                entry.default.check_for_route(&at, out);
            }
        }
        for (index, rule) in self.rules.iter().enumerate() {
            rule.default.check(&format!("rules[{index}].default"), out);
        }
    }
}

impl Policy for MeshTimeout {
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

impl Timeouts {
    fn check(&self, at: &str, out: &mut Checker) {
        if self.connection_timeout.is_some_and(|timeout| timeout.0.is_zero()) {
            out.add(format!("{at}.connectionTimeout"), "must be longer than 0s");
        }
    }

    /// A route's traffic shares its connections with other traffic.
    fn check_for_route(&self, at: &str, out: &mut Checker) {
        let http = self.http.clone().unwrap_or_default();
        for (field, is_given) in [
            ("connectionTimeout", self.connection_timeout.is_some()),
            ("idleTimeout", self.idle_timeout.is_some()),
            ("http.maxStreamDuration", http.max_stream_duration.is_some()),
            (
                "http.maxConnectionDuration",
                http.max_connection_duration.is_some(),
            ),
        ] {
            if is_given {
                let message = "can not be said of a MeshHTTPRoute; say it of the service";
                out.add(format!("{at}.{field}"), message);
            }
        }
    }
}
