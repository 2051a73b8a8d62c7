//! `meshctl top`: how many requests services get, how many fail, and how long they take.
//!
//! Dataplanes count from their start; what is shown is the difference of two answers of the same dataplane.

use std::{
    collections::{BTreeMap, HashMap},
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCompleter;
use mesh_model::api::{DataplaneRequests, PairRequests, RequestCounts, SilentDataplane};
use serde::Serialize;

use crate::{
    cli::{Connection, checked_name},
    client::Client,
    completion,
    failure::Failure,
    output,
};

const EXAMPLES: &str = "\
Examples:
  meshctl top -m payments                     who calls whom, every two seconds
  meshctl top -m payments --service store     only what store asks or is asked
  meshctl top -m payments --by destination    one line for each service that is called
  meshctl top -m payments --once -o json      one interval, for scripts";

/// Show requests of HTTP as they are counted now: how many, how many fail, and how long they take.
///
/// A request that is counted beside the caller is not counted again beside the called application. Where a service is called from
/// outside the mesh only, it is counted there.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Top {
    /// Only what this service asks or is asked.
    #[arg(long, value_name = "SERVICE", add = ArgValueCompleter::new(completion::services))]
    service: Option<String>,
    /// What has a line of its own.
    #[arg(long, value_name = "WHAT", default_value = "pair")]
    by: By,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// End after one interval.
    #[arg(long)]
    once: bool,
    /// How it is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Shown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// A caller and a service that it calls.
    Pair,
    /// A service that is called.
    Destination,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shown {
    /// Columns for people, drawn anew on a terminal.
    Table,
    /// One line of JSON for each interval.
    Json,
}

impl Top {
    /// Asks again and again, and shows what happened between.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        if let Some(service) = &self.service {
            checked_name(service)?;
        }
        let mesh = connection.mesh()?;
        let client = Client::new(connection)?;
        let path = ["meshes", &mesh, "requests"];
        let service = self.service.clone();
        let query: Vec<_> = service.map(|s| ("service", s)).into_iter().collect();
        let redraw = !self.once && self.output == Shown::Table && std::io::stdout().is_terminal();
        let begun = Instant::now();
        let mut heard = Heard::default();
        let mut at = begun.elapsed();
        heard.take(client.get(&path, &query).await?, at);
        loop {
            tokio::time::sleep(Duration::from_secs(self.interval)).await;
            let after: RequestCounts = client.get(&path, &query).await?;
            let before = std::mem::replace(&mut at, begun.elapsed());
            let interval = Interval::between(&heard, &after, at, at - before, self.by);
            let text = match self.output {
                Shown::Json => serde_json::to_string(&interval).map_err(|error| {
                    Failure::failed(format!("the result does not become JSON: {error}"))
                })?,
                Shown::Table => interval.table(self.by),
            };
            // Home, and clear to the end of the screen.
            let clear = if redraw { "\x1b[H\x1b[J" } else { "" };
            if !output::print_unless_left(&format!("{clear}{text}"))? || self.once {
                return crate::inspect::complete(&after.unanswered);
            }
            heard.take(after, at);
        }
    }
}

/// The last answer of each dataplane, by zone and name, and when it came. One that is not heard for a while counts on meanwhile.
#[derive(Default)]
struct Heard(HashMap<(String, String), (Duration, DataplaneRequests)>);

impl Heard {
    fn take(&mut self, counts: RequestCounts, at: Duration) {
        for zone in counts.zones {
            for dataplane in zone.dataplanes {
                let key = (zone.zone.clone(), dataplane.name.clone());
                self.0.insert(key, (at, dataplane));
            }
        }
    }
}

/// What happened between two answers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Interval {
    seconds: f64,
    items: Vec<Line>,
    /// What is missing above, and why.
    missing: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    destination: String,
    requests: u64,
    failed: u64,
    requests_per_second: f64,
    failed_percent: f64,
    /// JSON knows nothing infinite: null is longer than what is told apart.
    p50_seconds: Option<f64>,
    p99_seconds: Option<f64>,
}

/// Sums of one line.
#[derive(Debug, Default)]
struct Sum {
    requests: u64,
    failed: u64,
    per_second: f64,
    durations: Durations,
}

impl Interval {
    fn between(
        before: &Heard,
        after: &RequestCounts,
        at: Duration,
        interval: Duration,
        by: By,
    ) -> Self {
        let mut missing = Vec::new();
        let mut counted: Vec<(&PairRequests, Sum)> = Vec::new();
        for zone in &after.zones {
            for dataplane in &zone.dataplanes {
                let key = (zone.zone.clone(), dataplane.name.clone());
                // What it had counted before it was heard of is of no known time.
                let Some((heard_at, old)) = before.0.get(&key) else {
                    continue;
                };
                counted.extend(since(old, dataplane, at.saturating_sub(*heard_at)));
                if dataplane.omitted > 0 {
                    let (name, omitted) = (&dataplane.name, dataplane.omitted);
                    missing.push(format!("{omitted} pairs with few requests of {name}"));
                }
            }
            let silent = zone.silent.iter();
            missing.extend(silent.map(|silent| {
                let SilentDataplane { name, reason } = silent;
                format!("dataplane {name} of zone {}: {reason}", zone.zone)
            }));
        }
        let silent = after.unanswered.iter();
        missing.extend(silent.map(|zone| format!("zone {}: {}", zone.zone, zone.reason)));
        Self {
            seconds: interval.as_secs_f64(),
            items: lines(counted, by),
            missing,
        }
    }

    fn table(&self, by: By) -> String {
        let rows = self.items.iter().map(|line| {
            let mut row = Vec::new();
            row.extend(line.source.clone());
            row.extend([
                line.destination.clone(),
                format!("{:.1}", line.requests_per_second),
                format!("{:.1}", line.failed_percent),
                duration(line.p50_seconds),
                duration(line.p99_seconds),
            ]);
            row
        });
        let header = [
            "SOURCE",
            "DESTINATION",
            "REQUESTS/S",
            "FAILED %",
            "P50",
            "P99",
        ];
        let header = match by {
            By::Pair => &header[..],
            By::Destination => &header[1..],
        };
        let mut text = output::table(header, rows.collect());
        if self.items.is_empty() {
            text = format!("no request of HTTP ended in the last {:.0} s", self.seconds);
        }
        for missing in &self.missing {
            text.push_str(&format!("\nmissing: {missing}"));
        }
        text
    }
}

/// What `new` has counted since `old`, which came so much earlier.
fn since<'a>(
    old: &DataplaneRequests,
    new: &'a DataplaneRequests,
    time: Duration,
) -> impl Iterator<Item = (&'a PairRequests, Sum)> {
    // After a restart everything is new.
    let same_run = old.session == new.session && old.bounds == new.bounds;
    let known: HashMap<_, _> = old
        .pairs
        .iter()
        .filter(|_| same_run)
        .map(|pair| (key(pair), pair))
        .collect();
    // Of a pair that was left out before, it is not known what is new.
    let told_all = !same_run || old.omitted == 0;
    new.pairs.iter().filter_map(move |pair| {
        let old = known.get(&key(pair));
        if old.is_none() && !told_all {
            return None;
        }
        let less = |new: u64, old: Option<u64>| new.saturating_sub(old.unwrap_or(0));
        let requests = less(pair.requests, old.map(|old| old.requests));
        let buckets = pair.durations.iter().enumerate();
        let buckets =
            buckets.map(|(at, n)| less(*n, old.and_then(|o| o.durations.get(at).copied())));
        let sum = Sum {
            requests,
            failed: less(pair.failed, old.map(|old| old.failed)),
            per_second: requests as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE),
            durations: Durations::of(&new.bounds, buckets),
        };
        (requests > 0).then_some((pair, sum))
    })
}

fn key(pair: &PairRequests) -> (&str, &str, &str) {
    (&pair.source, &pair.destination, &pair.direction)
}

fn lines(counted: Vec<(&PairRequests, Sum)>, by: By) -> Vec<Line> {
    let at_caller = |pair: &PairRequests| pair.direction == "outbound";
    let seen_by_callers: Vec<&str> = counted
        .iter()
        .filter(|(pair, _)| at_caller(pair))
        .map(|(pair, _)| pair.destination.as_str())
        .collect();
    let mut sums: BTreeMap<(Option<&str>, &str), Sum> = BTreeMap::new();
    for (pair, new) in &counted {
        // Each request once: both ends count it.
        if !at_caller(pair) && seen_by_callers.contains(&pair.destination.as_str()) {
            continue;
        }
        let source = (by == By::Pair).then_some(pair.source.as_str());
        let sum = sums.entry((source, &pair.destination)).or_default();
        sum.requests += new.requests;
        sum.failed += new.failed;
        sum.per_second += new.per_second;
        sum.durations.add(&new.durations);
    }
    let mut lines: Vec<_> = sums
        .into_iter()
        .map(|((source, destination), sum)| Line {
            source: source.map(str::to_owned),
            destination: destination.to_owned(),
            requests: sum.requests,
            failed: sum.failed,
            requests_per_second: sum.per_second,
            failed_percent: 100.0 * sum.failed as f64 / sum.requests.max(1) as f64,
            p50_seconds: sum.durations.quantile(0.5),
            p99_seconds: sum.durations.quantile(0.99),
        })
        .collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.requests));
    lines
}

/// A histogram, also of dataplanes that tell other durations apart.
#[derive(Debug, Default)]
struct Durations(Vec<Bucket>);

#[derive(Debug, Clone, Copy)]
struct Bucket {
    above: f64,
    /// Infinite for what took longer than all bounds.
    up_to: f64,
    requests: u64,
}

impl Durations {
    fn of(bounds: &[f64], requests: impl Iterator<Item = u64>) -> Self {
        let ends = bounds.iter().copied().chain([f64::INFINITY]);
        let mut above = 0.0;
        let buckets = ends.zip(requests).map(|(up_to, requests)| {
            let above = std::mem::replace(&mut above, up_to);
            Bucket {
                above,
                up_to,
                requests,
            }
        });
        Self(buckets.filter(|bucket| bucket.requests > 0).collect())
    }

    fn add(&mut self, other: &Self) {
        for new in &other.0 {
            let same = |old: &&mut Bucket| old.above == new.above && old.up_to == new.up_to;
            match self.0.iter_mut().find(same) {
                Some(old) => old.requests += new.requests,
                None => self.0.push(*new),
            }
        }
        self.0.sort_by(|a, b| a.up_to.total_cmp(&b.up_to));
    }

    /// Seconds that so many of all took at most, taken as evenly spread within a bucket; infinite beyond all bounds.
    fn quantile(&self, part: f64) -> Option<f64> {
        let all: u64 = self.0.iter().map(|bucket| bucket.requests).sum();
        let rank = part * all as f64;
        let mut below = 0.0;
        for bucket in &self.0 {
            let here = bucket.requests as f64;
            if below + here >= rank {
                if bucket.up_to.is_infinite() {
                    return Some(bucket.up_to);
                }
                let within = (rank - below) / here;
                return Some(bucket.above + (bucket.up_to - bucket.above) * within);
            }
            below += here;
        }
        None
    }
}

fn duration(seconds: Option<f64>) -> String {
    match seconds {
        None => String::new(),
        Some(seconds) if seconds.is_infinite() => "longer".to_owned(),
        Some(seconds) if seconds < 1.0 => format!("{:.1}ms", seconds * 1_000.0),
        Some(seconds) => format!("{seconds:.1}s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BOUNDS: [f64; 3] = [0.001, 0.01, 0.1];

    fn counts(dataplanes: serde_json::Value) -> RequestCounts {
        let zones = json!([{"zone": "east", "dataplanes": dataplanes}]);
        serde_json::from_value(json!({"mesh": "pay", "zones": zones})).unwrap()
    }

    /// Between the last of some answers and another one, two seconds apart each.
    fn interval(before: &[RequestCounts], after: &RequestCounts) -> Interval {
        let mut heard = Heard::default();
        let mut at = Duration::ZERO;
        for counts in before {
            heard.take(counts.clone(), at);
            at += Duration::from_secs(2);
        }
        Interval::between(&heard, after, at, Duration::from_secs(2), By::Pair)
    }

    fn web(session: &str, direction: &str, requests: u64, failed: u64) -> serde_json::Value {
        json!({"name": format!("{direction}-1"), "session": session, "bounds": BOUNDS, "omitted": 0, "pairs": [
            {"source": "web", "destination": "store", "direction": direction, "requests": requests,
             "failed": failed, "durations": [0, requests, 0, 0]}]})
    }

    fn shown(before: serde_json::Value, after: serde_json::Value) -> Vec<(u64, u64)> {
        let interval = interval(&[counts(before)], &counts(after));
        let items = interval.items.iter();
        items.map(|line| (line.requests, line.failed)).collect()
    }

    #[test]
    fn only_what_was_counted_between_two_answers_is_shown() {
        let old = json!([web("a", "outbound", 100, 50)]);
        assert_eq!(
            shown(old.clone(), json!([web("a", "outbound", 110, 51)])),
            [(10, 1)]
        );
        assert_eq!(shown(old.clone(), old.clone()), []);
        // After a restart everything is new.
        assert_eq!(
            shown(old.clone(), json!([web("b", "outbound", 7, 0)])),
            [(7, 0)]
        );
        // What was not heard before has counted for an unknown time.
        assert_eq!(shown(json!([]), old), []);
    }

    #[test]
    fn a_request_that_both_ends_count_is_shown_once_and_as_the_caller_saw_it() {
        let old = json!([web("a", "outbound", 0, 0), web("a", "inbound", 0, 0)]);
        let new = json!([web("a", "outbound", 10, 4), web("a", "inbound", 8, 0)]);
        assert_eq!(shown(old.clone(), new), [(10, 4)]);
        let from_outside = json!([web("a", "inbound", 8, 0)]);
        assert_eq!(shown(old, from_outside), [(8, 0)]);
    }

    #[test]
    fn what_a_dataplane_counted_while_it_was_not_heard_is_shown_when_it_is_and_over_that_time() {
        let silent = counts(json!([]));
        let old = counts(json!([web("a", "outbound", 100, 0)]));
        let new = counts(json!([web("a", "outbound", 140, 0)]));
        let interval = interval(&[old, silent], &new);
        let [line] = &*interval.items else {
            panic!("{interval:?}")
        };
        assert_eq!((line.requests, line.requests_per_second), (40, 10.0));
    }

    #[test]
    fn percentiles_lie_within_their_buckets() {
        let of = |requests: [u64; 4]| Durations::of(&BOUNDS, requests.into_iter());
        assert_eq!(of([0; 4]).quantile(0.5), None);
        let even = of([0, 100, 0, 0]);
        assert!((even.quantile(0.5).unwrap() - 0.0055).abs() < 1e-9);
        let mut slow = of([99, 0, 0, 0]);
        slow.add(&of([0, 0, 0, 1]));
        assert!(slow.quantile(0.5).unwrap() < 0.001);
        assert!(slow.quantile(0.99).unwrap() <= 0.001);
        assert_eq!(slow.quantile(0.995), Some(f64::INFINITY));
    }

    #[test]
    fn what_is_missing_is_said_under_the_table() {
        let before = counts(json!([web("a", "outbound", 0, 0)]));
        let mut after = counts(json!([web("a", "outbound", 10, 5)]));
        after.zones[0].silent = vec![SilentDataplane {
            name: "old-1".to_owned(),
            reason: "it is too old to be asked".to_owned(),
        }];
        let text = interval(&[before], &after).table(By::Pair);
        let mut lines = text.lines();
        let words = |line: Option<&str>| -> Vec<String> {
            line.unwrap()
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(
            words(lines.next()),
            [
                "SOURCE",
                "DESTINATION",
                "REQUESTS/S",
                "FAILED",
                "%",
                "P50",
                "P99"
            ]
        );
        assert_eq!(
            words(lines.next()),
            ["web", "store", "5.0", "50.0", "5.5ms", "9.9ms"]
        );
        assert_eq!(
            lines.next(),
            Some("missing: dataplane old-1 of zone east: it is too old to be asked")
        );
    }
}
