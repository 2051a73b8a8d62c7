//! Which changes the dataplanes of a zone refuse. Pure.
//!
//! A zone says which documents are refused, not which change made them. But it compiles in the order of revisions, so
//! what is refused anew was changed after the last revision at which every dataplane had answered. That is kept for as
//! long as the refusal lasts, so that it can be shown on the very resources that were changed then.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::{
    raft::RefusedChanges,
    zone::{MeshStatus, ZoneStatus},
};

/// Ranges remembered of one mesh. More only join the last one.
const RANGES_MAX: usize = 16;

/// What is known of refusals on one stream.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<String, OfMesh>);

#[derive(Debug, Default)]
struct OfMesh {
    /// Newest revision of which every dataplane that is there had taken, or refused, what it was sent.
    answered: Option<u64>,
    /// What was refused then: dataplane, document and reason.
    refused: BTreeSet<(String, String, String)>,
    /// After the first, up to the second revision.
    ranges: Vec<(u64, u64)>,
}

impl Refusals {
    /// Takes in what the zone says now.
    pub fn follow(&mut self, status: &ZoneStatus) {
        self.0
            .retain(|mesh, _| status.meshes.iter().any(|status| status.mesh == *mesh));
        for mesh in &status.meshes {
            self.0.entry(mesh.mesh.clone()).or_default().follow(mesh);
        }
    }

    /// What is refused now.
    #[must_use]
    pub fn changes(&self) -> Vec<RefusedChanges> {
        let of_mesh = |(mesh, known): (&String, &OfMesh)| {
            let mesh = mesh.clone();
            let ranges = known.ranges.clone().into_iter();
            ranges.map(move |(after, upto)| RefusedChanges {
                mesh: mesh.clone(),
                after,
                upto,
            })
        };
        self.0.iter().flat_map(of_mesh).collect()
    }
}

impl OfMesh {
    fn follow(&mut self, status: &MeshStatus) {
        let refused: BTreeSet<(String, String, String)> = status
            .refused
            .iter()
            .map(|r| (r.dataplane.clone(), r.document.clone(), r.reason.clone()))
            .collect();
        if status.refused_count == 0 && refused.is_empty() {
            self.ranges.clear();
        } else if refused
            .iter()
            .any(|refusal| !self.refused.contains(refusal))
        {
            let seen = self.ranges.last().map(|(_, upto)| *upto);
            match self.answered.max(seen) {
                Some(after) if after < status.revision && self.ranges.len() == RANGES_MAX => {
                    if let Some(last) = self.ranges.last_mut() {
                        last.1 = status.revision;
                    }
                }
                Some(after) if after < status.revision => {
                    self.ranges.push((after, status.revision));
                }
                // It refused before this stream began, or refuses now what it has long been sent.
                _ => {}
            }
        }
        self.refused = refused;
        if status.pending_count == 0 {
            self.answered = Some(status.revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::zone::DataplaneRefusal;

    use super::*;

    fn say(
        refusals: &mut Refusals,
        revision: u64,
        pending: u32,
        refused: &[&str],
    ) -> Vec<(u64, u64)> {
        let mesh = MeshStatus {
            mesh: "pay".into(),
            revision,
            pending_count: pending,
            refused_count: u32::try_from(refused.len()).unwrap(),
            refused: refused
                .iter()
                .map(|document| DataplaneRefusal {
                    dataplane: "web-1".into(),
                    document: (*document).into(),
                    reason: "no".into(),
                })
                .collect(),
            ..MeshStatus::default()
        };
        refusals.follow(&ZoneStatus {
            revision,
            meshes: vec![mesh],
            refused: vec![],
        });
        let ranges = refusals.changes().into_iter();
        ranges.map(|range| (range.after, range.upto)).collect()
    }

    #[test]
    fn what_was_changed_since_everybody_had_answered_is_suspected_until_nothing_is_refused() {
        let mut refusals = Refusals::default();
        assert_eq!(say(&mut refusals, 8, 0, &[]), []);
        assert_eq!(say(&mut refusals, 10, 1, &[]), []);
        assert_eq!(say(&mut refusals, 10, 1, &["proxy"]), [(8, 10)]);
        // A later change that is not refused is not suspected, though others still wait.
        assert_eq!(say(&mut refusals, 11, 1, &["proxy"]), [(8, 10)]);
        // A second bad one is suspected beside the first.
        assert_eq!(
            say(&mut refusals, 12, 1, &["proxy", "service"]),
            [(8, 10), (10, 12)]
        );
        assert_eq!(say(&mut refusals, 13, 0, &[]), []);
    }

    #[test]
    fn nothing_is_suspected_of_what_was_refused_before_it_could_be_seen() {
        let mut refusals = Refusals::default();
        assert_eq!(say(&mut refusals, 10, 1, &["proxy"]), []);
        // Nor where a dataplane that has just come refuses what others have taken long ago.
        let mut refusals = Refusals::default();
        say(&mut refusals, 10, 0, &[]);
        assert_eq!(say(&mut refusals, 10, 0, &["proxy"]), []);
    }
}
