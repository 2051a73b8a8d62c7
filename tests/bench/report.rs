//! Medians, ratios, a table and JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The peer that all others are compared with.
const BASE: &str = "haproxy";

/// What was measured: by name of the quantity (in order of appearance), then by peer.
#[derive(Debug, Default)]
pub(crate) struct Report {
    quantities: Vec<String>,
    peers: Vec<String>,
    samples: BTreeMap<(String, String), Vec<f64>>,
}

impl Report {
    /// One more sample of `quantity` for `peer`.
    pub(crate) fn add(&mut self, peer: &str, quantity: &str, value: f64) {
        for (list, name) in [(&mut self.quantities, quantity), (&mut self.peers, peer)] {
            if !list.iter().any(|known| known == name) {
                list.push(name.to_owned());
            }
        }
        let key = (quantity.to_owned(), peer.to_owned());
        self.samples.entry(key).or_default().push(value);
    }

    fn median(&self, quantity: &str, peer: &str) -> Option<f64> {
        let samples = self.samples.get(&(quantity.to_owned(), peer.to_owned()))?;
        Some(median(samples))
    }

    /// Medians for people, each with its ratio to haproxy's.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("\n{:<44}", "");
        for peer in &self.peers {
            text.push_str(&format!("{peer:>22}"));
        }
        for quantity in &self.quantities {
            text.push_str(&format!("\n{quantity:<44}"));
            let base = self.median(quantity, BASE);
            for peer in &self.peers {
                let cell = match (self.median(quantity, peer), base) {
                    (None, _) => "–".to_owned(),
                    (Some(value), Some(base)) if peer != BASE && base != 0.0 => {
                        format!("{} ({:.2}×)", short(value), value / base)
                    }
                    (Some(value), _) => short(value),
                };
                text.push_str(&format!("{cell:>22}"));
            }
        }
        text.push('\n');
        text
    }

    /// Everything, samples included.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        let quantities: Vec<Value> = self
            .samples
            .iter()
            .map(|((quantity, peer), samples)| {
                let base = self.median(quantity, BASE);
                json!({
                    "quantity": quantity,
                    "peer": peer,
                    "median": median(samples),
                    "ratioToHaproxy": base.map(|base| median(samples) / base),
                    "samples": samples,
                })
            })
            .collect();
        serde_json::to_string_pretty(&json!({ "measured": quantities }))
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
        let mut report = Report::default();
        for value in [9.0, 1.0, 2.0] {
            report.add("isthmus", "µs", value);
        }
        report.add(BASE, "µs", 4.0);
        assert!(
            report.table().contains("2.00 (0.50×)"),
            "{}",
            report.table()
        );
    }
}
