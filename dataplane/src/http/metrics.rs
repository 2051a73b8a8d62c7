//! Requests by who called what, and how that ended; durations as histograms with exemplars. Own to each worker, merged at each
//! scrape (durations carry a `worker` label instead, since their exemplars can not be merged).

use std::{
    cmp::Reverse,
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_proto::discovery::{PairCounts, RequestCounts};
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet},
    metrics::{MetricType, exemplar::HistogramWithExemplars},
};

use super::record::SaidBy;
use crate::{
    metrics::{OVERFLOW, SERIES_MAX},
    record::{Direction, Reason},
};

/// Upper bounds of the durations that are told apart, in seconds.
pub const BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// What a count of requests is about. Values are cheap to clone, and of each there are few: methods and statuses that somebody made
/// up are one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct RequestLabels {
    pub mesh: Arc<str>,
    pub source: Arc<str>,
    pub destination: Arc<str>,
    pub direction: Direction,
    pub method: &'static str,
    /// 0: there was no answer.
    pub status: u16,
    pub grpc_status: Option<u16>,
    pub said_by: SaidBy,
    pub reason: Reason,
    pub route: Arc<str>,
}

/// Who called whom: what durations are told apart by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Pair {
    pub mesh: Arc<str>,
    pub source: Arc<str>,
    pub destination: Arc<str>,
    pub direction: Direction,
}

/// What is known of the durations of one pair.
pub struct Durations {
    histogram: HistogramWithExemplars<[(&'static str, String); 1]>,
    /// Requests, failed ones, and how many took no longer than each of [`BUCKETS`] (and longer), for whoever asks for a summary.
    pub requests: AtomicU64,
    /// Those that [`failed`].
    pub failed: AtomicU64,
    /// Not cumulative.
    pub buckets: [AtomicU64; BUCKETS.len() + 1],
}

impl Default for Durations {
    fn default() -> Self {
        Self {
            histogram: HistogramWithExemplars::new(BUCKETS.into_iter()),
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            buckets: Default::default(),
        }
    }
}

/// Whether a request has failed: it was not answered (0), or with 5xx, or by the mesh, or with what is the server's fault in gRPC (as
/// OpenTelemetry counts: unknown, deadline exceeded, unimplemented, internal, unavailable, data loss).
#[must_use]
pub fn failed(reason: Reason, status: u16, grpc_status: Option<u16>) -> bool {
    reason != Reason::None
        || status == 0
        || status >= 500
        || matches!(grpc_status, Some(2 | 4 | 12 | 13 | 14 | 15))
}

/// All of one worker, as the scrape sees it.
#[derive(Default)]
pub struct RequestSeries {
    counts: Vec<(RequestLabels, Arc<AtomicU64>)>,
    /// By pair.
    pub durations: Vec<(Pair, Arc<Durations>)>,
}

/// As the scrape sees it.
pub type SharedSeries = Arc<Mutex<RequestSeries>>;

/// A worker's way to its series: the lock is taken for a label set that it has not seen before only.
#[derive(Default)]
pub struct RequestCounters {
    known: HashMap<RequestLabels, (Arc<AtomicU64>, Arc<Durations>)>,
    /// The series of the last request: most often the next one's, too.
    last: Option<(RequestLabels, Arc<AtomicU64>, Arc<Durations>)>,
    pairs: HashMap<Pair, Arc<Durations>>,
    shared: SharedSeries,
}

impl RequestCounters {
    /// Those that `shared` sees.
    #[must_use]
    pub fn new(shared: SharedSeries) -> Self {
        Self {
            shared,
            ..Self::default()
        }
    }

    /// Counts one request.
    pub fn count(&mut self, labels: RequestLabels, duration: Duration, trace: Option<&str>) {
        let failed = failed(labels.reason, labels.status, labels.grpc_status);
        if self.last.as_ref().is_none_or(|(last, ..)| *last != labels) {
            let (count, durations) = self.series(labels.clone()).clone();
            self.last = Some((labels, count, durations));
        }
        let Some((_, count, durations)) = &self.last else {
            return; // It was set above.
        };
        count.fetch_add(1, Ordering::Relaxed);
        durations.requests.fetch_add(1, Ordering::Relaxed);
        if failed {
            durations.failed.fetch_add(1, Ordering::Relaxed);
        }
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound);
        durations.buckets[bucket.unwrap_or(BUCKETS.len())].fetch_add(1, Ordering::Relaxed);
        let exemplar = trace.map(|trace| [("trace_id", trace.to_owned())]);
        durations.histogram.observe(seconds, exemplar, None);
    }

    fn series(&mut self, mut labels: RequestLabels) -> &(Arc<AtomicU64>, Arc<Durations>) {
        if self.known.len() >= SERIES_MAX && !self.known.contains_key(&labels) {
            labels.source = OVERFLOW.into();
            labels.destination = OVERFLOW.into();
            labels.mesh = OVERFLOW.into();
            labels.route = Arc::default();
        }
        let (pairs, shared) = (&mut self.pairs, &self.shared);
        self.known.entry(labels).or_insert_with_key(|labels| {
            let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
            let pair = Pair {
                mesh: labels.mesh.clone(),
                source: labels.source.clone(),
                destination: labels.destination.clone(),
                direction: labels.direction,
            };
            let durations = pairs.entry(pair).or_insert_with_key(|pair| {
                let durations = Arc::<Durations>::default();
                lock().durations.push((pair.clone(), durations.clone()));
                durations
            });
            let count = Arc::<AtomicU64>::default();
            lock().counts.push((labels.clone(), count.clone()));
            (count, durations.clone())
        })
    }
}

/// Pairs that are told at most.
const PAIRS_MAX: usize = 200;

/// What all workers have counted of `service`, as caller or called; of all where it is empty.
pub(crate) fn counts(workers: &[SharedSeries], service: &str) -> RequestCounts {
    let mut pairs: HashMap<Pair, PairCounts> = HashMap::new();
    for worker in workers {
        let worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
        for (pair, durations) in &worker.durations {
            if !service.is_empty() && *pair.source != *service && *pair.destination != *service {
                continue;
            }
            let counts = pairs.entry(pair.clone()).or_insert_with(|| PairCounts {
                source: pair.source.to_string(),
                destination: pair.destination.to_string(),
                inbound: pair.direction == Direction::Inbound,
                durations: vec![0; durations.buckets.len()],
                ..PairCounts::default()
            });
            counts.requests += durations.requests.load(Ordering::Relaxed);
            counts.failed += durations.failed.load(Ordering::Relaxed);
            for (sum, bucket) in counts.durations.iter_mut().zip(&durations.buckets) {
                *sum += bucket.load(Ordering::Relaxed);
            }
        }
    }
    let mut pairs: Vec<_> = pairs.into_values().collect();
    pairs.sort_by_key(|pair| Reverse(pair.requests));
    let omitted = pairs.len().saturating_sub(PAIRS_MAX);
    pairs.truncate(PAIRS_MAX);
    RequestCounts {
        bounds: BUCKETS.to_vec(),
        pairs,
        omitted: u32::try_from(omitted).unwrap_or(u32::MAX),
    }
}

/// Writes what all workers have counted.
pub(crate) fn encode(
    workers: &[SharedSeries],
    zone: &str,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let mut counts: HashMap<RequestLabels, u64> = HashMap::new();
    for worker in workers {
        let worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
        for (labels, count) in &worker.counts {
            *counts.entry(labels.clone()).or_default() += count.load(Ordering::Relaxed);
        }
    }
    let mut family = encoder.encode_descriptor(
        "isthmus_dataplane_requests",
        "HTTP requests that have ended",
        None,
        MetricType::Counter,
    )?;
    for (labels, count) in &counts {
        let status = labels.status.to_string();
        let grpc_status = labels.grpc_status.map(|status| status.to_string());
        let labels = [
            ("mesh", &*labels.mesh),
            ("zone", zone),
            ("source", &labels.source),
            ("destination", &labels.destination),
            ("direction", labels.direction.as_str()),
            ("method", labels.method),
            ("status", &status),
            ("grpc_status", grpc_status.as_deref().unwrap_or_default()),
            ("said_by", labels.said_by.as_str()),
            ("reason", labels.reason.as_str()),
            ("route", &labels.route),
        ];
        family
            .encode_family(&labels)?
            .encode_counter::<NoLabelSet, u64, u64>(count, None)?;
    }
    let mut family = encoder.encode_descriptor(
        "isthmus_dataplane_request_duration_seconds",
        "From the end of a request's head to the end of its answer",
        None,
        MetricType::Histogram,
    )?;
    for (index, worker) in workers.iter().enumerate() {
        let index = index.to_string();
        let worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
        for (pair, durations) in &worker.durations {
            let labels = [
                ("mesh", &*pair.mesh),
                ("zone", zone),
                ("source", &pair.source),
                ("destination", &pair.destination),
                ("direction", pair.direction.as_str()),
                ("worker", &index),
            ];
            durations.histogram.encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_failed_where_the_server_or_the_mesh_says_so() {
        let ok = |status, grpc| !failed(Reason::None, status, grpc);
        assert!(ok(200, None) && ok(404, None) && ok(200, Some(0)) && ok(200, Some(5)));
        assert!(!ok(0, None) && !ok(500, None) && !ok(200, Some(14)));
        assert!(failed(Reason::PermissionDenied, 403, None));
    }

    fn labels(source: &str, destination: &str, status: u16) -> RequestLabels {
        RequestLabels {
            mesh: "pay".into(),
            source: source.into(),
            destination: destination.into(),
            direction: Direction::Outbound,
            method: "GET",
            status,
            grpc_status: None,
            said_by: SaidBy::Upstream,
            reason: Reason::None,
            route: Arc::default(),
        }
    }

    #[test]
    fn counts_of_all_workers_are_one_and_only_of_the_service_that_is_asked_about() {
        let workers = [SharedSeries::default(), SharedSeries::default()];
        for worker in &workers {
            let mut counters = RequestCounters::new(worker.clone());
            let quick = Duration::from_millis(2);
            counters.count(labels("web", "store", 200), quick, None);
            counters.count(labels("web", "store", 503), Duration::from_secs(90), None);
            counters.count(labels("web", "bank", 200), quick, None);
        }
        let of_store = counts(&workers, "store");
        let [pair] = &*of_store.pairs else {
            panic!("{of_store:?}")
        };
        assert_eq!((&*pair.source, &*pair.destination), ("web", "store"));
        assert_eq!((pair.requests, pair.failed, pair.inbound), (4, 2, false));
        let mut durations = [0; BUCKETS.len() + 1];
        (durations[2], durations[BUCKETS.len()]) = (2, 2);
        assert_eq!(pair.durations, durations);
        assert_eq!(counts(&workers, "web").pairs.len(), 2);
        assert_eq!(counts(&workers, "").pairs.len(), 2);
    }

    #[test]
    fn of_too_many_pairs_those_with_the_fewest_requests_are_left_out_and_counted() {
        let worker = SharedSeries::default();
        let mut counters = RequestCounters::new(worker.clone());
        for n in 0..PAIRS_MAX + 3 {
            let name = format!("s{n}");
            counters.count(labels("web", &name, 200), Duration::ZERO, None);
        }
        counters.count(labels("web", "s202", 200), Duration::ZERO, None);
        let counts = counts(&[worker], "");
        assert_eq!((counts.pairs.len(), counts.omitted), (PAIRS_MAX, 3));
        assert_eq!(counts.pairs[0].destination, "s202");
    }
}
