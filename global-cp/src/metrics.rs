//! What this process counts. Labels are bounded: routes as they are registered, never as they were asked for.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicI64, AtomicU64},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Route as registered, such as `/v1/{type}/{name}`.
    pub route: String,
    /// Method.
    pub method: String,
    /// Status code.
    pub status: u16,
}

/// Labels of a write.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteLabels {
    /// `done` or `refused`.
    pub outcome: &'static str,
}

/// Labels of what was refused because it was too much.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LimitLabels {
    /// Which limit.
    pub limit: &'static str,
}

/// The process's own counters. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    requests: Family<RequestLabels, Counter>,
    writes: Family<WriteLabels, Counter>,
    limited: Family<LimitLabels, Counter>,
    revision: Gauge<u64, AtomicU64>,
    term: Gauge<u64, AtomicU64>,
    leader: Gauge,
    members: Gauge,
    zone_streams: Gauge<i64, AtomicI64>,
    watches: Gauge<i64, AtomicI64>,
    reports_refused: Counter,
    earliest_certificate_end: Gauge,
}

impl Metrics {
    /// Registers everything under `global_cp_`.
    #[must_use]
    pub fn new(registry: &Arc<Mutex<Registry>>) -> Self {
        let metrics = Self::default();
        let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
        let registry = registry.sub_registry_with_prefix("global_cp");
        let inner = &metrics.0;
        registry.register("http_requests", "Requests answered", inner.requests.clone());
        registry.register("writes", "Entries written or refused", inner.writes.clone());
        registry.register(
            "http_limited",
            "Requests and watches refused because they were too many or too big",
            inner.limited.clone(),
        );
        registry.register(
            "revision",
            "Newest applied revision",
            inner.revision.clone(),
        );
        registry.register("raft_term", "Raft term", inner.term.clone());
        registry.register("raft_leader", "1 on the leader", inner.leader.clone());
        registry.register(
            "raft_members",
            "Members of the cluster",
            inner.members.clone(),
        );
        registry.register(
            "zone_streams",
            "Streams of zones that end here",
            inner.zone_streams.clone(),
        );
        registry.register("watches", "Watches served now", inner.watches.clone());
        registry.register(
            "zone_report_refusals",
            "Resources in zones' reports that were refused",
            inner.reports_refused.clone(),
        );
        registry.register(
            "earliest_certificate_end_seconds",
            "Unix time at which the first certificate ends of those known here: installation CA, this node, zones \
             connected to it, anchors of meshes",
            inner.earliest_certificate_end.clone(),
        );
        metrics
    }

    /// The first certificate of those known here ends at this Unix time.
    pub fn earliest_certificate_end(&self, seconds: i64) {
        self.0.earliest_certificate_end.set(seconds);
    }

    /// A request was answered.
    pub fn request(&self, labels: RequestLabels) {
        self.0.requests.get_or_create(&labels).inc();
    }

    /// An entry was written, or refused by a precondition.
    pub fn write(&self, done: bool) {
        let outcome = if done { "done" } else { "refused" };
        self.0.writes.get_or_create(&WriteLabels { outcome }).inc();
    }

    /// A request was refused because it was too much.
    pub fn limited(&self, limit: &'static str) {
        self.0.limited.get_or_create(&LimitLabels { limit }).inc();
    }

    /// State of the cluster.
    pub fn cluster(&self, revision: u64, term: u64, leads: bool, members: usize) {
        self.0.revision.set(revision);
        self.0.term.set(term);
        self.0.leader.set(i64::from(leads));
        self.0
            .members
            .set(i64::try_from(members).unwrap_or(i64::MAX));
    }

    /// A zone's stream began (1) or ended (-1).
    pub fn zone_streams(&self, change: i64) {
        self.0.zone_streams.inc_by(change);
    }

    /// A watch began (1) or ended (-1).
    pub fn watches(&self, change: i64) {
        self.0.watches.inc_by(change);
    }

    /// Resources of a report were refused.
    pub fn reports_refused(&self, count: usize) {
        self.0.reports_refused.inc_by(count as u64);
    }
}
