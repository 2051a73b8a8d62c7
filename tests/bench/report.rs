//! Medians, ratios, a table and JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::peers::BASE;

/// Everything that was measured, and what was not.
#[derive(Debug)]
pub(crate) struct Results {
    /// Pairs of proxies, as ratios to [`BASE`].
    pub dataplane: Report,
    /// Our pair with policies switched on, as ratios to none of them.
    pub policies: Report,
    /// The way of a change.
    pub changes: Report,
    /// Turns that failed.
    pub failures: Vec<String>,
    /// What is not on this machine, and was left out.
    pub missing: Vec<String>,
}

/// Our pair without policies, in [`Results::policies`].
pub(crate) const BARE: &str = "bare";

impl Default for Results {
    fn default() -> Self {
        Self {
            dataplane: Report::new("two proxies, mutual TLS between", Some(BASE)),
            policies: Report::new("policies of two sidecars", Some(BARE)),
            changes: Report::new("from apply to its effect", None),
            failures: Vec::new(),
            missing: Vec::new(),
        }
    }
}

impl Results {
    /// Notes a failure, and says so at once.
    pub(crate) fn failed(&mut self, who: &str, what: &str, error: &anyhow::Error) {
        let text = format!("{who}, {what}: {error:#}");
        eprintln!("\n!!! FAILED: {text}\n");
        self.failures.push(text);
    }

    /// Notes that something is not there, and says so at once.
    pub(crate) fn missing(&mut self, text: String) {
        eprintln!("\n!!! {text}\n");
        self.missing.push(text);
    }

    fn reports(&self) -> impl Iterator<Item = &Report> {
        [&self.dataplane, &self.policies, &self.changes]
            .into_iter()
            .filter(|report| !report.quantities.is_empty())
    }

    /// For people.
    pub(crate) fn tables(&self) -> String {
        let mut text: String = self.reports().map(Report::table).collect();
        for note in &self.missing {
            text.push_str(&format!("\n!!! {note}"));
        }
        for failure in &self.failures {
            text.push_str(&format!("\n!!! FAILED: {failure}"));
        }
        text
    }

    /// Everything, samples included.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        let measured: Vec<Value> = self.reports().flat_map(Report::json).collect();
        serde_json::to_string_pretty(&json!({
            "measured": measured,
            "failures": self.failures,
            "missing": self.missing,
        }))
    }
}

/// What was measured: by name of the quantity (in order of appearance), then by peer.
#[derive(Debug)]
pub(crate) struct Report {
    title: &'static str,
    /// The peer that all others are compared with.
    base: Option<&'static str>,
    quantities: Vec<String>,
    peers: Vec<String>,
    samples: BTreeMap<(String, String), Vec<f64>>,
}

impl Report {
    fn new(title: &'static str, base: Option<&'static str>) -> Self {
        Self {
            title,
            base,
            quantities: Vec::new(),
            peers: Vec::new(),
            samples: BTreeMap::new(),
        }
    }

    /// Puts `peer` behind those that have a column already.
    pub(crate) fn column(&mut self, peer: &str) {
        if !self.peers.iter().any(|known| known == peer) {
            self.peers.push(peer.to_owned());
        }
    }

    /// One more sample of `quantity` for `peer`.
    pub(crate) fn add(&mut self, peer: &str, quantity: &str, value: f64) {
        self.column(peer);
        if !self.quantities.iter().any(|known| known == quantity) {
            self.quantities.push(quantity.to_owned());
        }
        let key = (quantity.to_owned(), peer.to_owned());
        self.samples.entry(key).or_default().push(value);
    }

    fn median(&self, quantity: &str, peer: &str) -> Option<f64> {
        let samples = self.samples.get(&(quantity.to_owned(), peer.to_owned()))?;
        Some(median(samples))
    }

    /// Median of the base, where there is one that is not nothing.
    fn base(&self, quantity: &str) -> Option<f64> {
        self.median(quantity, self.base?)
            .filter(|base| *base != 0.0)
    }

    /// Medians for people, each with its ratio to the base's.
    fn table(&self) -> String {
        let widths = self.quantities.iter().map(|name| name.chars().count());
        let width = widths.chain([self.title.len()]).max().unwrap_or_default();
        let mut text = format!("\n{:<width$}", self.title);
        for peer in &self.peers {
            text.push_str(&format!("{peer:>18}"));
        }
        for quantity in &self.quantities {
            text.push_str(&format!("\n{quantity:<width$}"));
            for peer in &self.peers {
                let cell = match (self.median(quantity, peer), self.base(quantity)) {
                    (None, _) => "–".to_owned(),
                    (Some(value), Some(base)) if Some(peer.as_str()) != self.base => {
                        format!("{} ({:.2}×)", short(value), value / base)
                    }
                    (Some(value), _) => short(value),
                };
                text.push_str(&format!("{cell:>18}"));
            }
        }
        text.push('\n');
        text
    }

    fn json(&self) -> Vec<Value> {
        let base = self.base.unwrap_or_default();
        self.samples
            .iter()
            .map(|((quantity, peer), samples)| {
                json!({
                    "table": self.title,
                    "quantity": quantity,
                    "peer": peer,
                    "median": median(samples),
                    "base": base,
                    "ratio": self.base(quantity).map(|base| median(samples) / base),
                    "samples": samples,
                })
            })
            .collect()
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

fn short(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_that_of_the_medians() {
        let mut results = Results::default();
        for value in [9.0, 1.0, 2.0] {
            results.dataplane.add("isthmus", "µs", value);
        }
        results.dataplane.add(BASE, "µs", 4.0);
        let tables = results.tables();
        assert!(tables.contains("2.00 (0.50×)"), "{tables}");
    }

    #[test]
    fn what_failed_is_told_beside_what_did_not() {
        let mut results = Results::default();
        results.failed("envoy", "bulk", &anyhow::anyhow!("no answer"));
        assert!(results.tables().contains("envoy, bulk: no answer"));
        assert!(results.json().unwrap().contains("envoy, bulk"));
    }
}
