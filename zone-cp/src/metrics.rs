//! What the zone control plane counts.

use std::sync::atomic::AtomicU64;

use mesh_runtime::admin::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

/// One mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfMesh {
    /// Its name.
    pub mesh: String,
}

/// All metrics. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct ZoneMetrics {
    /// Connected dataplanes by mesh.
    pub dataplanes_connected: Family<OfMesh, Gauge>,
    /// Registered dataplanes by mesh, those in their grace period included.
    pub dataplanes_registered: Family<OfMesh, Gauge>,
    /// Connected ingresses.
    pub ingresses_connected: Gauge,
    /// Documents sent.
    pub documents_pushed: Family<OfMesh, Counter>,
    /// Documents acknowledged.
    pub acks: Family<OfMesh, Counter>,
    /// Documents refused.
    pub nacks: Family<OfMesh, Counter>,
    /// Certificates issued.
    pub certificates_issued: Family<OfMesh, Counter>,
    /// Certificates not issued.
    pub certificates_refused: Family<OfMesh, Counter>,
    /// Earliest end of a connected dataplane's certificate, in Unix seconds.
    pub earliest_certificate_end: Family<OfMesh, Gauge>,
    /// End of the CA that issues in a mesh, in Unix seconds.
    pub mesh_ca_end: Family<OfMesh, Gauge>,
    /// Newcomers not registered by the loop (tokens are refused before).
    pub arrivals_refused: Counter,
    /// 1 while there is a stream to global.
    pub sync_connected: Gauge,
    /// Revision applied in every scope.
    pub sync_revision: Gauge,
    /// Revisions that global has and this zone has not.
    pub sync_lag: Gauge,
    /// Streams to global that were begun.
    pub sync_streams: Counter,
    /// End of the zone's own certificate, in Unix seconds.
    pub zone_certificate_end: Gauge<i64, std::sync::atomic::AtomicI64>,
    /// Revision of the newest thing heard from global.
    pub global_revision: Gauge<u64, AtomicU64>,
}

impl ZoneMetrics {
    /// Registers everything under the prefix `zone_cp`.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        let all = Self::default();
        let mut registry = metrics
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let to = registry.sub_registry_with_prefix("zone_cp");
        to.register(
            "dataplanes_connected",
            "Connected dataplanes",
            all.dataplanes_connected.clone(),
        );
        to.register(
            "dataplanes_registered",
            "Registered dataplanes",
            all.dataplanes_registered.clone(),
        );
        to.register(
            "ingresses_connected",
            "Connected ingresses",
            all.ingresses_connected.clone(),
        );
        to.register(
            "documents_pushed",
            "Documents sent to dataplanes",
            all.documents_pushed.clone(),
        );
        to.register(
            "acks",
            "Documents that dataplanes acknowledged",
            all.acks.clone(),
        );
        to.register(
            "nacks",
            "Documents that dataplanes refused",
            all.nacks.clone(),
        );
        to.register(
            "certificates_issued",
            "Workload certificates issued",
            all.certificates_issued.clone(),
        );
        to.register(
            "certificates_refused",
            "Workload certificates not issued",
            all.certificates_refused.clone(),
        );
        to.register(
            "earliest_certificate_end_seconds",
            "Earliest end of a connected dataplane's certificate, Unix seconds",
            all.earliest_certificate_end.clone(),
        );
        to.register(
            "mesh_ca_end_seconds",
            "End of the CA that issues in a mesh, Unix seconds",
            all.mesh_ca_end.clone(),
        );
        to.register(
            "arrivals_refused",
            "Newcomers that were not registered",
            all.arrivals_refused.clone(),
        );
        to.register(
            "sync_connected",
            "1 while there is a stream to global",
            all.sync_connected.clone(),
        );
        to.register(
            "sync_revision",
            "Revision applied in every scope",
            all.sync_revision.clone(),
        );
        to.register(
            "sync_lag",
            "Revisions that global has and this zone has not",
            all.sync_lag.clone(),
        );
        to.register(
            "sync_streams",
            "Streams to global that were begun",
            all.sync_streams.clone(),
        );
        to.register(
            "certificate_end_seconds",
            "End of the zone's own certificate, Unix seconds",
            all.zone_certificate_end.clone(),
        );
        to.register(
            "global_revision",
            "Newest revision heard of from global",
            all.global_revision.clone(),
        );
        drop(registry);
        all
    }
}
