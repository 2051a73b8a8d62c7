//! Counters by (mesh, source, destination, direction, outcome, reason), own to each worker, merged at each scrape.
//!
//! A worker looks a series up in its own map and adds to atomics that only it writes; the lock is taken by a worker only
//! for a label set it has not seen before, and by the scrape.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use mesh_proto::discovery::{self, Heartbeat, RequestCounts};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use crate::{
    http::{
        self,
        metrics::{RequestCounters, SharedSeries},
    },
    record::{Direction, Outcome, Reason},
};

/// Label sets one worker keeps; further ones are counted under [`OVERFLOW`], so that nobody can fill memory by calling
/// with ever new identities.
pub const SERIES_MAX: usize = 1024;
/// Source and destination of what has no series of its own.
pub const OVERFLOW: &str = "other";

/// What a series is about. Values are cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Labels {
    pub mesh: Arc<str>,
    pub source: Arc<str>,
    pub destination: Arc<str>,
    pub direction: Direction,
    pub outcome: Outcome,
    pub reason: Reason,
}

/// What a count of detections that timed out is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct DetectionLabels {
    pub mesh: Arc<str>,
    pub destination: Arc<str>,
    pub direction: Direction,
    /// Of the service that is called, or the name of the inbound.
    pub port: Arc<str>,
}

/// Detections that timed out, of one port.
#[derive(Debug, Default, Clone, Copy)]
struct DetectionTimeouts {
    count: u64,
    /// Unix seconds.
    last_at: u64,
    /// The worker's clock when it was said last.
    said_at_ms: u64,
}

/// Ports that the zone is told of with each beat.
const TOLD_MAX: usize = 32;

/// Between two logs about one port.
const SAID_AGAIN_MS: u64 = 60_000;

/// By port. There are as many as documents name.
type DetectionSeries = Arc<Mutex<BTreeMap<DetectionLabels, DetectionTimeouts>>>;

/// What is counted.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Series {
    pub connections: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub received_bytes: AtomicU64,
    pub shadow_denied: AtomicU64,
}

/// All series of one worker's connections, as the scrape sees them.
type ConnectionSeries = Arc<Mutex<Vec<(Labels, Arc<Series>)>>>;

/// All series of one worker, as the scrape sees them.
#[derive(Clone, Default)]
pub struct WorkerSeries {
    connections: ConnectionSeries,
    detections: DetectionSeries,
    /// Of requests.
    pub requests: SharedSeries,
}

impl fmt::Debug for WorkerSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerSeries").finish_non_exhaustive()
    }
}

/// A worker's way to its series.
#[derive(Debug, Default)]
pub struct Counters {
    known: HashMap<Labels, Arc<Series>>,
    shared: WorkerSeries,
}

impl Counters {
    /// What the scrape reads.
    #[must_use]
    pub fn shared(&self) -> WorkerSeries {
        self.shared.clone()
    }

    /// Counts a detection that timed out, which is rare. True where it is time to say so.
    #[must_use]
    pub fn count_detection_timeout(
        &self,
        labels: DetectionLabels,
        now_ms: u64,
        unix_seconds: u64,
    ) -> bool {
        let detections = &self.shared.detections;
        let mut detections = detections.lock().unwrap_or_else(PoisonError::into_inner);
        let of_port = detections.entry(labels).or_default();
        of_port.count += 1;
        of_port.last_at = unix_seconds;
        let is_due =
            of_port.count == 1 || now_ms.saturating_sub(of_port.said_at_ms) >= SAID_AGAIN_MS;
        if is_due {
            of_port.said_at_ms = now_ms;
        }
        is_due
    }

    /// A worker's way to the series of its requests.
    #[must_use]
    pub fn requests(&self) -> RequestCounters {
        RequestCounters::new(self.shared.requests.clone())
    }

    /// The series of `labels`.
    pub fn series(&mut self, mut labels: Labels) -> &Series {
        if self.known.len() >= SERIES_MAX && !self.known.contains_key(&labels) {
            labels.source = OVERFLOW.into();
            labels.destination = OVERFLOW.into();
            labels.mesh = OVERFLOW.into();
        }
        let shared = &self.shared.connections;
        self.known.entry(labels).or_insert_with_key(|labels| {
            let series = Arc::<Series>::default();
            shared
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((labels.clone(), series.clone()));
            series
        })
    }
}

/// What the control thread counts.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct ControlMetrics {
    /// Unix seconds; 0: none.
    pub certificate_not_after: AtomicI64,
    pub certificates_issued: AtomicU64,
    pub discovery_connected: AtomicBool,
    pub discovery_streams: AtomicU64,
    pub revision: AtomicU64,
    pub documents_refused: AtomicU64,
    pub lookups_dropped: AtomicU64,
}

/// Everything a scrape shows.
pub struct Metrics {
    /// Set once the first document says it.
    pub zone: arc_swap::ArcSwap<String>,
    /// Of each worker.
    pub workers: Vec<WorkerSeries>,
    /// Of the control thread.
    pub control: Arc<ControlMetrics>,
    /// Connections open now.
    pub open: Arc<std::sync::atomic::AtomicUsize>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[derive(Default, Clone, Copy)]
struct Sum {
    connections: u64,
    sent: u64,
    received: u64,
    shadow_denied: u64,
}

/// Sums over all workers.
struct Merged {
    connections: Vec<(Labels, Sum)>,
    bytes: Vec<(ByteKey, Sum)>,
}

/// What bytes are summed by.
type ByteKey = (Arc<str>, Arc<str>, Arc<str>, Direction);

impl Metrics {
    /// What all workers have counted of requests of `service`, as caller or called; of all where it is empty.
    #[must_use]
    pub fn request_counts(&self, service: &str) -> RequestCounts {
        http::metrics::counts(&self.requests(), service)
    }

    fn requests(&self) -> Vec<SharedSeries> {
        let workers = self.workers.iter();
        workers.map(|worker| worker.requests.clone()).collect()
    }

    /// What the zone is told again and again.
    #[must_use]
    pub fn heartbeat(&self) -> Heartbeat {
        let not_after = self.control.certificate_not_after.load(Ordering::Relaxed);
        let mut timeouts: Vec<_> = self.detection_timeouts().into_iter().collect();
        timeouts.sort_by_key(|(_, of_port)| Reverse(of_port.last_at));
        timeouts.truncate(TOLD_MAX);
        let told = timeouts
            .into_iter()
            .map(|(labels, of_port)| discovery::DetectionTimeouts {
                service: labels.destination.to_string(),
                port: labels.port.to_string(),
                inbound: labels.direction == Direction::Inbound,
                connections: of_port.count,
                last_at: of_port.last_at,
            });
        Heartbeat {
            revision: 0,
            certificate_not_after: u64::try_from(not_after).unwrap_or(0),
            detection_timeouts: told.collect(),
        }
    }

    /// Detections that timed out so far, by port.
    fn detection_timeouts(&self) -> BTreeMap<DetectionLabels, DetectionTimeouts> {
        let mut sums = BTreeMap::<_, DetectionTimeouts>::new();
        for worker in &self.workers {
            let detections = worker.detections.lock();
            let detections = detections.unwrap_or_else(PoisonError::into_inner);
            for (labels, of_port) in &*detections {
                let sum = sums.entry(labels.clone()).or_default();
                sum.count += of_port.count;
                sum.last_at = sum.last_at.max(of_port.last_at);
            }
        }
        sums
    }

    fn merged(&self) -> Merged {
        let mut connections: HashMap<Labels, Sum> = HashMap::new();
        let mut bytes: HashMap<ByteKey, Sum> = HashMap::new();
        for worker in &self.workers {
            let worker = worker
                .connections
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for (labels, series) in worker.iter() {
                let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                connections.entry(labels.clone()).or_default().connections +=
                    read(&series.connections);
                let key = (
                    labels.mesh.clone(),
                    labels.source.clone(),
                    labels.destination.clone(),
                    labels.direction,
                );
                let sum = bytes.entry(key).or_default();
                sum.sent += read(&series.sent_bytes);
                sum.received += read(&series.received_bytes);
                sum.shadow_denied += read(&series.shadow_denied);
            }
        }
        let connections = connections
            .into_iter()
            .filter(|(_, sum)| sum.connections > 0);
        Merged {
            connections: connections.collect(),
            bytes: bytes.into_iter().collect(),
        }
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let zone = self.zone.load();
        let Merged { connections, bytes } = self.merged();

        let mut family = encoder.encode_descriptor(
            "isthmus_dataplane_connections",
            "Connections that have ended, or were refused",
            None,
            MetricType::Counter,
        )?;
        for (labels, sum) in &connections {
            let labels = [
                ("mesh", &*labels.mesh),
                ("zone", &zone),
                ("source", &labels.source),
                ("destination", &labels.destination),
                ("direction", labels.direction.as_str()),
                ("outcome", labels.outcome.as_str()),
                ("reason", labels.reason.as_str()),
            ];
            family
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, u64>(&sum.connections, None)?;
        }

        let mut family = encoder.encode_descriptor(
            "isthmus_dataplane_bytes",
            "Payload relayed; sent is from source to destination",
            None,
            MetricType::Counter,
        )?;
        for (key, sum) in &bytes {
            for (flow, count) in [("sent", sum.sent), ("received", sum.received)] {
                family
                    .encode_family(&byte_labels(key, &zone, flow))?
                    .encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            }
        }

        let mut family = encoder.encode_descriptor(
            "isthmus_dataplane_shadow_denied",
            "Connections allowed only because their deny is a shadow deny",
            None,
            MetricType::Counter,
        )?;
        for (key, sum) in bytes.iter().filter(|(_, sum)| sum.shadow_denied > 0) {
            family
                .encode_family(&byte_labels(key, &zone, "sent"))?
                .encode_counter::<NoLabelSet, u64, u64>(&sum.shadow_denied, None)?;
        }
        let mut family = encoder.encode_descriptor(
            "isthmus_dataplane_detection_timeouts",
            "Connections relayed as TCP because it could not be told in time whether they speak HTTP",
            None,
            MetricType::Counter,
        )?;
        for (labels, of_port) in self.detection_timeouts() {
            let labels = [
                ("mesh", &*labels.mesh),
                ("zone", &**zone),
                ("destination", &*labels.destination),
                ("direction", labels.direction.as_str()),
                ("port", &*labels.port),
            ];
            family
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, u64>(&of_port.count, None)?;
        }
        http::metrics::encode(&self.requests(), &zone, &mut encoder)?;
        self.encode_process(&mut encoder)
    }
}

fn byte_labels<'a>(key: &'a ByteKey, zone: &'a str, flow: &'a str) -> [(&'a str, &'a str); 6] {
    [
        ("mesh", &key.0),
        ("zone", zone),
        ("source", &key.1),
        ("destination", &key.2),
        ("direction", key.3.as_str()),
        ("flow", flow),
    ]
}

impl Metrics {
    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let control = &self.control;
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let gauges = [
            (
                "isthmus_dataplane_open_connections",
                "Connections open now",
                number(self.open.load(Ordering::Relaxed) as u64),
            ),
            (
                "isthmus_dataplane_certificate_not_after_seconds",
                "Unix time at which the workload certificate ends; 0 where there is none",
                control.certificate_not_after.load(Ordering::Relaxed),
            ),
            (
                "isthmus_dataplane_discovery_connected",
                "1 while the zone control plane is connected",
                control.discovery_connected.load(Ordering::Relaxed).into(),
            ),
            (
                "isthmus_dataplane_revision",
                "Newest revision whose documents were taken",
                number(control.revision.load(Ordering::Relaxed)),
            ),
        ];
        for (name, help, value) in gauges {
            encoder
                .encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&value)?;
        }
        let counters = [
            (
                "isthmus_dataplane_certificates_issued",
                "Certificates taken from the zone",
                &control.certificates_issued,
            ),
            (
                "isthmus_dataplane_discovery_streams",
                "Streams to a zone control plane that were begun",
                &control.discovery_streams,
            ),
            (
                "isthmus_dataplane_documents_refused",
                "Documents refused with a reason",
                &control.documents_refused,
            ),
            (
                "isthmus_dataplane_lookups_dropped",
                "Requests for fresh endpoints dropped because too many were waiting",
                &control.lookups_dropped,
            ),
        ];
        for (name, help, counter) in counters {
            let value = counter.load(Ordering::Relaxed);
            encoder
                .encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
        Ok(())
    }
}
