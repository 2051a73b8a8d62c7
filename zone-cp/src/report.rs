//! What the zone reports of what it owns: everything on each new stream, then differences.
//!
//! Reports carry an epoch, which grows with each start of this control plane, and a sequence; global ignores older ones.

use std::collections::BTreeMap;

use mesh_model::api::Key;
use mesh_proto::zone::{ReportAck, ResourceRecord, ZoneReport};

/// Resources by key, as canonical JSON.
pub type Owned = BTreeMap<Key, Vec<u8>>;

/// What is wanted, sent and acknowledged.
#[derive(Debug, Default)]
pub struct Reporter {
    epoch: u64,
    sequence: u64,
    acknowledged: u64,
    /// Nothing was sent on this stream yet, or there is no stream.
    fresh: bool,
    wanted: Owned,
    sent: Owned,
    refused: BTreeMap<Key, String>,
}

impl Reporter {
    /// Reports of one start.
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            fresh: true,
            ..Self::default()
        }
    }

    /// Replaces what the zone owns.
    pub fn want(&mut self, owned: Owned) {
        self.wanted = owned;
    }

    /// A new stream begins: the next report is whole.
    pub fn begin_stream(&mut self) {
        self.fresh = true;
    }

    /// What to send now, taken as sent. `None`: nothing is different.
    pub fn unsent(&mut self) -> Option<ZoneReport> {
        if !self.fresh && self.wanted == self.sent {
            return None;
        }
        let known = if self.fresh {
            Owned::new()
        } else {
            std::mem::take(&mut self.sent)
        };
        let put = self
            .wanted
            .iter()
            .filter(|(key, json)| known.get(*key) != Some(*json))
            .map(|(key, json)| ResourceRecord {
                key: Some(key.clone().into()),
                json: json.clone(),
                revision: 0,
                modified_ms: 0,
                created_revision: 0,
            })
            .collect();
        let gone = known.keys().filter(|key| !self.wanted.contains_key(*key));
        let delete = gone.map(|key| key.clone().into()).collect();
        self.sequence += 1;
        self.sent = self.wanted.clone();
        Some(ZoneReport {
            epoch: self.epoch,
            sequence: self.sequence,
            full: std::mem::take(&mut self.fresh),
            put,
            delete,
        })
    }

    /// Global has taken a report. Refusals that are new are returned, for the log.
    pub fn ack(&mut self, ack: ReportAck) -> Vec<(Key, String)> {
        if ack.epoch != self.epoch {
            return Vec::new();
        }
        self.acknowledged = self.acknowledged.max(ack.sequence);
        let mut new = Vec::new();
        self.refused.retain(|key, _| self.sent.contains_key(key));
        for refusal in ack.refused {
            let Some(key) = refusal.key.map(Key::from) else {
                continue;
            };
            if self
                .refused
                .insert(key.clone(), refusal.reason.clone())
                .as_ref()
                != Some(&refusal.reason)
            {
                new.push((key, refusal.reason));
            }
        }
        new
    }

    /// Whether global has acknowledged everything the zone owns.
    #[must_use]
    pub fn is_acknowledged(&self) -> bool {
        !self.fresh && self.wanted == self.sent && self.acknowledged == self.sequence
    }

    /// What global refused, with its reasons.
    #[must_use]
    pub fn refused(&self) -> &BTreeMap<Key, String> {
        &self.refused
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::zone::{ReportRefusal, ResourceKey};

    use super::*;

    fn key(name: &str) -> Key {
        ResourceKey::in_zone("MeshService", "pay", "east", name).into()
    }

    fn owned(of: &[(&str, &str)]) -> Owned {
        of.iter()
            .map(|(name, json)| (key(name), json.as_bytes().to_vec()))
            .collect()
    }

    #[test]
    fn each_stream_begins_with_everything_and_goes_on_with_differences() {
        let mut reporter = Reporter::new(7);
        reporter.want(owned(&[("a", "1"), ("b", "1")]));
        let full = reporter.unsent().unwrap();
        assert!(full.full && full.put.len() == 2 && full.epoch == 7 && full.sequence == 1);
        assert_eq!(reporter.unsent(), None);
        assert!(!reporter.is_acknowledged());

        reporter.want(owned(&[("a", "2"), ("c", "1")]));
        let delta = reporter.unsent().unwrap();
        assert!(!delta.full && delta.sequence == 2);
        assert_eq!(delta.put.len(), 2);
        assert_eq!(delta.delete, [key("b").into()]);

        let ack = |sequence| ReportAck {
            epoch: 7,
            sequence,
            refused: vec![],
        };
        reporter.ack(ack(1));
        assert!(!reporter.is_acknowledged());
        reporter.ack(ack(2));
        assert!(reporter.is_acknowledged());

        reporter.begin_stream();
        assert!(!reporter.is_acknowledged());
        assert!(reporter.unsent().unwrap().full);
    }

    #[test]
    fn a_refusal_is_said_once() {
        let mut reporter = Reporter::new(1);
        reporter.want(owned(&[("a", "1")]));
        reporter.unsent();
        let ack = ReportAck {
            epoch: 1,
            sequence: 1,
            refused: vec![ReportRefusal {
                key: Some(key("a").into()),
                reason: "no".into(),
            }],
        };
        assert_eq!(reporter.ack(ack.clone()).len(), 1);
        assert_eq!(reporter.ack(ack).len(), 0);
        assert_eq!(reporter.refused().len(), 1);
    }
}
