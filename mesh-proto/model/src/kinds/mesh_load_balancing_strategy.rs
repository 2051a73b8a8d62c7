//! `MeshLoadBalancingStrategy`: which endpoint is next.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    duration::Duration,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    labels,
    parts::{
        label_key::LabelKey,
        number::{Decimal, Percentage},
    },
    policy::{self, Policy, PolicyShape, To, ToKind, ToPart},
    resource::Meta,
    selection::TargetRef,
};

/// Which endpoint is next, and which zones' endpoints come first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshLoadBalancingStrategy {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For outgoing traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To<LoadBalancing>>,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancing {
    /// Which endpoints come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality_awareness: Option<LocalityAwareness>,
    /// Which of them is next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// What of a request its hash is made of, for `RingHash` and `Maglev`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_policies: Option<Vec<HashPolicy>>,
}

/// Which endpoints come first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalityAwareness {
    /// True: none, all zones are alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Within the zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_zone: Option<LocalZone>,
    /// Among zones, where the own one has too few.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_zone: Option<CrossZone>,
}

/// Which endpoints of the own zone come first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalZone {
    /// Labels that the endpoint should share with the caller, the most important first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_tags: Option<Vec<AffinityTag>>,
}

/// A label that an endpoint should share with the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AffinityTag {
    /// The label's key.
    pub key: LabelKey,
    /// The share of its endpoints in the traffic, in proportion to the others' weights; for all or none. Absent: 90 %
    /// goes to the first, 9 % to the second, and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub weight: Option<u32>,
}

/// Which zones follow the own one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CrossZone {
    /// Rules, tried in this order; absent: no other zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<Vec<Failover>>,
    /// When the next zones are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover_threshold: Option<FailoverThreshold>,
}

/// Which zones follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failover {
    /// In which zones this rule counts; absent: in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<FromZones>,
    /// Which zones follow.
    pub to: ToZones,
}

/// Zones in which a rule counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FromZones {
    /// Their names.
    #[schemars(length(min = 1))]
    pub zones: Vec<String>,
}

/// Zones that follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToZones {
    /// Which.
    #[serde(rename = "type")]
    pub form: ToZonesForm,
    /// Of `Only` and `AnyExcept`: their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zones: Option<Vec<String>>,
}

/// Which zones follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ToZonesForm {
    /// None.
    None,
    /// Those that are named.
    Only,
    /// All.
    Any,
    /// All but those that are named.
    AnyExcept,
}

/// When the next zones are used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailoverThreshold {
    /// Where less than this percentage of the endpoints is in order.
    pub percentage: Percentage,
}

/// Which endpoint is next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// How.
    #[serde(rename = "type")]
    pub form: LoadBalancerForm,
    /// Settings of `RoundRobin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_robin: Option<NoSettings>,
    /// Settings of `LeastRequest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_request: Option<LeastRequest>,
    /// Settings of `RingHash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_hash: Option<RingHash>,
    /// Settings of `Random`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<NoSettings>,
    /// Settings of `Maglev`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maglev: Option<Maglev>,
    /// Settings of `PeakEwma`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_ewma: Option<PeakEwma>,
}

/// How the next endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LoadBalancerForm {
    /// One after the other.
    RoundRobin,
    /// Of some random ones, the one with the fewest requests.
    LeastRequest,
    /// By a hash of the request, on a ring.
    RingHash,
    /// Any.
    Random,
    /// By a hash of the request, in a table.
    Maglev,
    /// Of two random ones, the one with the lower product of requests and recent latency. Not in Kuma.
    #[serde(rename = "PeakEwma")]
    PeakEwma,
}

/// Has no settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// Settings of `LeastRequest`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeastRequest {
    /// How many random ones are compared; absent: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2))]
    pub choice_count: Option<u32>,
    /// How much an endpoint's requests lower its weight; absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_request_bias: Option<Decimal>,
}

/// Settings of `RingHash`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RingHash {
    /// What hashes endpoints onto the ring; absent: `XXHash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_function: Option<HashFunction>,
    /// The smallest ring; absent: 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 8_000_000))]
    pub min_ring_size: Option<u32>,
    /// The largest ring; absent: 8000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 8_000_000))]
    pub max_ring_size: Option<u32>,
}

/// What hashes endpoints onto a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HashFunction {
    /// xxHash.
    #[serde(rename = "XXHash")]
    XxHash,
    /// MurmurHash 2.
    MurmurHash2,
}

/// Settings of `Maglev`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Maglev {
    /// Size of the table, or the next prime above; absent: 65537.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5_000_011))]
    pub table_size: Option<u32>,
}

/// Settings of `PeakEwma`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeakEwma {
    /// How long a latency counts; absent: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay: Option<Duration>,
    /// The latency of an endpoint that has not answered yet; absent: 30ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_rtt: Option<Duration>,
}

/// What a hash is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashPolicy {
    /// Of what.
    #[serde(rename = "type")]
    pub form: HashPolicyForm,
    /// True: where there is a hash now, the rest of the list does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<bool>,
    /// Of `Header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HashHeader>,
    /// Of `Cookie`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<HashCookie>,
    /// Of `Connection`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<HashConnection>,
    /// Of `QueryParameter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_parameter: Option<HashQueryParameter>,
    /// Of `FilterState`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter_state: Option<HashFilterState>,
}

/// What a hash is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HashPolicyForm {
    /// A header.
    Header,
    /// A cookie.
    Cookie,
    /// The connection.
    Connection,
    /// A parameter of the query.
    QueryParameter,
    /// An object of Envoy's; none is there.
    FilterState,
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashHeader {
    /// Its name.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// A cookie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashCookie {
    /// Its name.
    #[schemars(length(min = 1))]
    pub name: String,
    /// How long it lives where it must be made; absent: it is not made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// Its path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// The connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashConnection {
    /// The caller's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "sourceIP")]
    pub source_ip: Option<bool>,
}

/// A parameter of the query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashQueryParameter {
    /// Its name; letter case matters.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// An object of Envoy's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashFilterState {
    /// Its key.
    #[schemars(length(min = 1))]
    pub key: String,
}

impl Kind for MeshLoadBalancingStrategy {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshLoadBalancingStrategy",
        plural: "meshloadbalancingstrategies",
        short: "mlbs",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: ToKind::ALL,
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
            entry.check(&format!("to[{index}].default"), out);
        }
    }
}

impl Policy for MeshLoadBalancingStrategy {
    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn to(&self) -> Vec<ToPart<'_>> {
        policy::to_parts(&self.to)
    }
}

impl To<LoadBalancing> {
    fn check(&self, at: &str, out: &mut Checker) {
        let conf = &self.default;
        if self.target_ref.kind == ToKind::MeshHttpRoute {
            for (field, is_given) in [
                ("loadBalancer", conf.load_balancer.is_some()),
                ("localityAwareness", conf.locality_awareness.is_some()),
            ] {
                if is_given {
                    let message = "can not be said of a MeshHTTPRoute, only hashPolicies; say it of the service";
                    out.add(format!("{at}.{field}"), message);
                }
            }
        }
        if let Some(locality) = &conf.locality_awareness {
            locality.check(&format!("{at}.localityAwareness"), out);
        }
        if let Some(balancer) = &conf.load_balancer {
            balancer.check(&format!("{at}.loadBalancer"), out);
        }
        for (index, policy) in conf.hash_policies.iter().flatten().enumerate() {
            policy.check(&format!("{at}.hashPolicies[{index}]"), out);
        }
    }
}

impl LocalityAwareness {
    fn check(&self, at: &str, out: &mut Checker) {
        let tags = self.local_zone.as_ref().and_then(|zone| zone.affinity_tags.as_ref());
        let tags = tags.map(Vec::as_slice).unwrap_or_default();
        let path = format!("{at}.localZone.affinityTags");
        for (index, tag) in tags.iter().enumerate() {
            if let Some(message) = labels::key_error(tag.key.as_str()) {
                out.add(format!("{path}[{index}].key"), message);
            }
        }
        out.unique(&path, ".key", tags, |tag| Some(tag.key.as_str().to_owned()));
        let weights = tags.iter().filter(|tag| tag.weight.is_some()).count();
        if weights != 0 && weights != tags.len() {
            out.add(path, "all of them or none must have a weight");
        }
        if let Some(cross_zone) = &self.cross_zone {
            cross_zone.check(&format!("{at}.crossZone"), out);
        }
    }
}

impl CrossZone {
    fn check(&self, at: &str, out: &mut Checker) {
        for (index, rule) in self.failover.iter().flatten().enumerate() {
            let at = format!("{at}.failover[{index}]");
            let from = rule.from.iter().flat_map(|from| &from.zones).enumerate();
            for (index, zone) in from {
                out.label(format!("{at}.from.zones[{index}]"), zone);
            }
            let zones = rule.to.zones.as_deref().unwrap_or_default();
            for (index, zone) in zones.iter().enumerate() {
                out.label(format!("{at}.to.zones[{index}]"), zone);
            }
            let form = rule.to.form;
            let names_zones = matches!(form, ToZonesForm::Only | ToZonesForm::AnyExcept);
            let message = match (names_zones, zones.is_empty()) {
                (true, true) => format!("{form:?} needs the names of zones"),
                (false, false) => format!("{form:?} names no zones; leave it out"),
                _ => continue,
            };
            out.add(format!("{at}.to.zones"), message);
        }
        let threshold = self.failover_threshold.as_ref();
        if threshold.is_some_and(|threshold| threshold.percentage.value() <= 0.0) {
            out.add(format!("{at}.failoverThreshold.percentage"), "must be > 0");
        }
    }
}

impl LoadBalancer {
    fn check(&self, at: &str, out: &mut Checker) {
        let fields = [
            ("roundRobin", self.round_robin.is_some(), LoadBalancerForm::RoundRobin),
            ("leastRequest", self.least_request.is_some(), LoadBalancerForm::LeastRequest),
            ("ringHash", self.ring_hash.is_some(), LoadBalancerForm::RingHash),
            ("random", self.random.is_some(), LoadBalancerForm::Random),
            ("maglev", self.maglev.is_some(), LoadBalancerForm::Maglev),
            ("peakEwma", self.peak_ewma.is_some(), LoadBalancerForm::PeakEwma),
        ];
        for (field, is_given, form) in fields {
            if is_given && form != self.form {
                let message = format!("belongs to the type {form:?}; leave it out");
                out.add(format!("{at}.{field}"), message);
            }
        }
        if let Some(RingHash {
            min_ring_size: Some(min),
            max_ring_size: Some(max),
            ..
        }) = self.ring_hash
            && min > max
        {
            let message = "must not be larger than maxRingSize";
            out.add(format!("{at}.ringHash.minRingSize"), message);
        }
        if let Some(ewma) = self.peak_ewma {
            out.positive(format!("{at}.peakEwma.decay"), ewma.decay);
            out.positive(format!("{at}.peakEwma.defaultRtt"), ewma.default_rtt);
        }
    }
}

impl HashPolicy {
    fn check(&self, at: &str, out: &mut Checker) {
        let wanted = match self.form {
            HashPolicyForm::Header => "header",
            HashPolicyForm::Cookie => "cookie",
            HashPolicyForm::Connection => "connection",
            HashPolicyForm::QueryParameter => "queryParameter",
            HashPolicyForm::FilterState => "filterState",
        };
        out.only_of_type(
            at,
            wanted,
            &[
                ("header", self.header.is_some()),
                ("cookie", self.cookie.is_some()),
                ("connection", self.connection.is_some()),
                ("queryParameter", self.query_parameter.is_some()),
                ("filterState", self.filter_state.is_some()),
            ],
        );
        if let Some(path) = self.cookie.as_ref().and_then(|cookie| cookie.path.as_deref()) {
            out.absolute_path(format!("{at}.cookie.path"), path);
        }
    }
}
