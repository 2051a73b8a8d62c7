//! What a zone is told, and in which pieces. Pure.
//!
//! A zone keeps one cursor for each *scope*: every mesh placed in it, and "" for what is outside any mesh. This module
//! says which scope of a zone a resource belongs to, and makes the messages of a step. A step is either a delta,
//! coalesced to the newest state of each key, or a snapshot. A cursor moves with the last message of its step only.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::zone::{Changes, ResourceKey, ResourceRecord};
use prost::Message as _;

/// Bytes of records in one message, about.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Records in one message.
const CHUNK_RECORDS_MAX: usize = 500;

/// A zone as this module sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Its name.
    pub zone: String,
    /// Meshes placed in it.
    pub meshes: BTreeSet<String>,
}

/// Name of the token issuer of a zone's ingresses; the issuer of a mesh's tokens bears the mesh's name.
#[must_use]
pub fn ingress_issuer(zone: &str) -> String {
    format!("zone.{zone}")
}

impl Placement {
    /// The scope in which the zone is told of `key`: "" or a mesh. `None`: the zone is not told of it.
    ///
    /// Depends on the key alone, so that a deletion finds its way wherever the resource went before.
    #[must_use]
    pub fn scope_of<'k>(&self, key: &'k ResourceKey) -> Option<&'k str> {
        if key.zone == self.zone {
            // The zone knows best what it owns itself.
            return None;
        }
        if key.mesh.is_empty() {
            let told = match key.kind.as_str() {
                "Zone" | "ZoneIngress" | "ZoneEgress" | "HostnameGenerator" => true,
                "Mesh" => self.meshes.contains(&key.name),
                "TokenIssuer" => {
                    self.meshes.contains(&key.name) || key.name == ingress_issuer(&self.zone)
                }
                // Users, roles, tokens and global secrets are global's own business.
                _ => false,
            };
            return told.then_some("");
        }
        // Secrets stay here until something in a zone needs one.
        (self.meshes.contains(&key.mesh) && !mesh_model::is_secret(&key.kind))
            .then_some(key.mesh.as_str())
    }

    /// Every scope of the zone.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        std::iter::once("").chain(self.meshes.iter().map(String::as_str))
    }
}

/// A step of one scope, before it is cut into messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// The scope.
    pub scope: String,
    /// Everything after this revision …
    pub from: u64,
    /// … up to this one.
    pub to: u64,
    /// What the step does not name is gone.
    pub snapshot: bool,
    /// New or changed.
    pub put: Vec<ResourceRecord>,
    /// Deleted.
    pub delete: Vec<ResourceKey>,
}

impl Step {
    /// Nothing but a moved cursor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.snapshot && self.put.is_empty() && self.delete.is_empty()
    }
}

/// Deltas of all `cursors` (scope → revision the zone has), from `changes` in order of their revisions. All cursors
/// move to `to`, whether anything in their scope changed or not: a zone is up to date if it has heard everything.
#[must_use]
pub fn deltas(
    placement: &Placement,
    cursors: &BTreeMap<String, u64>,
    to: u64,
    changes: impl IntoIterator<Item = (u64, ResourceKey, Option<ResourceRecord>)>,
) -> Vec<Step> {
    let mut newest: BTreeMap<(&str, SortableKey), (u64, ResourceKey, Option<ResourceRecord>)> =
        BTreeMap::new();
    for (revision, key, record) in changes {
        let Some(scope) = placement.scope_of(&key) else {
            continue;
        };
        let Some((scope, cursor)) = cursors.get_key_value(scope) else {
            continue;
        };
        if revision > *cursor && revision <= to {
            newest.insert((scope, sortable(&key)), (revision, key, record));
        }
    }
    let mut steps: BTreeMap<&str, Step> = cursors
        .iter()
        .filter(|(_, cursor)| **cursor < to)
        .map(|(scope, cursor)| {
            let step = Step {
                scope: scope.clone(),
                from: *cursor,
                to,
                ..Step::default()
            };
            (scope.as_str(), step)
        })
        .collect();
    for ((scope, _), (_, key, record)) in newest {
        let Some(step) = steps.get_mut(scope) else {
            continue;
        };
        match record {
            Some(record) => step.put.push(record),
            None => step.delete.push(key),
        }
    }
    steps.into_values().collect()
}

/// The snapshot of one scope.
#[must_use]
pub fn snapshot(
    placement: &Placement,
    scope: &str,
    to: u64,
    records: impl IntoIterator<Item = ResourceRecord>,
) -> Step {
    let told = |record: &ResourceRecord| {
        record
            .key
            .as_ref()
            .is_some_and(|key| placement.scope_of(key) == Some(scope))
    };
    Step {
        scope: scope.to_owned(),
        from: 0,
        to,
        snapshot: true,
        put: records.into_iter().filter(told).collect(),
        delete: Vec::new(),
    }
}

/// Cuts a step into messages. There is always at least one; only the last says `last`.
#[must_use]
pub fn messages(step: Step, history_id: &str) -> Vec<Changes> {
    let Step {
        scope,
        from,
        to,
        snapshot,
        put,
        delete,
    } = step;
    let empty = || Changes {
        mesh: scope.clone(),
        from,
        to,
        history_id: history_id.to_owned(),
        snapshot,
        ..Changes::default()
    };
    let mut messages = vec![];
    let mut current = empty();
    let mut bytes = 0;
    let mut full = |current: &mut Changes, bytes: &mut usize, next: usize| {
        let records = current.put.len() + current.delete.len();
        if records > 0 && (records == CHUNK_RECORDS_MAX || *bytes + next > CHUNK_BYTES_MAX) {
            messages.push(std::mem::replace(current, empty()));
            *bytes = 0;
        }
        *bytes += next;
    };
    for record in put {
        full(&mut current, &mut bytes, record.encoded_len());
        current.put.push(record);
    }
    for key in delete {
        full(&mut current, &mut bytes, key.encoded_len());
        current.delete.push(key);
    }
    current.last = true;
    messages.push(current);
    messages
}

/// Tells the zone to forget a mesh.
#[must_use]
pub fn mesh_gone(mesh: &str, to: u64, history_id: &str) -> Changes {
    Changes {
        mesh: mesh.to_owned(),
        to,
        history_id: history_id.to_owned(),
        mesh_gone: true,
        last: true,
        ..Changes::default()
    }
}

type SortableKey = (String, String, String, String);

fn sortable(key: &ResourceKey) -> SortableKey {
    (
        key.kind.clone(),
        key.mesh.clone(),
        key.zone.clone(),
        key.name.clone(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement() -> Placement {
        Placement {
            zone: "east".into(),
            meshes: ["pay".to_owned()].into(),
        }
    }

    fn record(key: &ResourceKey, revision: u64, bytes: usize) -> ResourceRecord {
        ResourceRecord {
            key: Some(key.clone()),
            json: vec![b'x'; bytes],
            revision,
            modified_ms: 0,
            created_revision: 0,
        }
    }

    /// Key as `kind mesh zone name` with `-` for none, and the scope it is told in (`no`: not told).
    #[test]
    fn a_zone_is_told_what_concerns_it_and_nothing_else() {
        let table = "
            Zone                  -   -    west      global
            ZoneIngress           -   west in        global
            ZoneIngress           -   east in        no
            Mesh                  -   -    pay       global
            Mesh                  -   -    ana       no
            TokenIssuer           -   -    pay       global
            TokenIssuer           -   -    ana       no
            TokenIssuer           -   -    zone.east global
            TokenIssuer           -   -    zone.west no
            Token                 -   -    abc       no
            MeshTrafficPermission pay -    p         pay
            MeshTrafficPermission ana -    p         no
            MeshService           pay west web       pay
            MeshService           pay east web       no
            MeshService           ana west web       no
            MeshTrust             pay west t         pay
            Secret                pay -    s         no
            MeshRetry             pay -    r         pay
            MeshMultiZoneService  pay -    web       pay
            MeshMultiZoneService  ana -    web       no
            HostnameGenerator     -   -    names     global
            ZoneEgress            -   west out       global
            GlobalSecret          -   -    key       no
            User                  -   -    jane      no
            Role                  -   -    operator  no
            RoleBinding           -   -    b         no
        ";
        for line in table.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let words: Vec<&str> = line
                .split_whitespace()
                .map(|w| if w == "-" { "" } else { w })
                .collect();
            let key = ResourceKey::in_zone(words[0], words[1], words[2], words[3]);
            let expected = match words[4] {
                "no" => None,
                "global" => Some(""),
                mesh => Some(mesh),
            };
            assert_eq!(placement().scope_of(&key), expected, "{line}");
        }
    }

    #[test]
    fn deltas_are_coalesced_and_every_cursor_moves() {
        let a = ResourceKey::global("MeshTrafficPermission", "pay", "a");
        let b = ResourceKey::global("MeshTrafficPermission", "pay", "b");
        let foreign = ResourceKey::global("MeshTrafficPermission", "ana", "a");
        let cursors = [(String::new(), 3), ("pay".to_owned(), 5)].into();
        let changes = vec![
            (4, b.clone(), Some(record(&b, 4, 1))), // the zone has it
            (6, a.clone(), Some(record(&a, 6, 1))),
            (7, foreign.clone(), Some(record(&foreign, 7, 1))),
            (8, a.clone(), Some(record(&a, 8, 1))),
            (9, b.clone(), None),
            (11, a.clone(), None), // after `to`
        ];
        let steps = deltas(&placement(), &cursors, 10, changes);
        assert_eq!(
            steps,
            [
                Step {
                    scope: String::new(),
                    from: 3,
                    to: 10,
                    ..Step::default()
                },
                Step {
                    scope: "pay".into(),
                    from: 5,
                    to: 10,
                    snapshot: false,
                    put: vec![record(&a, 8, 1)],
                    delete: vec![b],
                },
            ]
        );
        assert!(steps[0].is_empty());
    }

    #[test]
    fn a_put_after_a_deletion_is_a_put() {
        let a = ResourceKey::global("MeshTrafficPermission", "pay", "a");
        let cursors = [("pay".to_owned(), 0)].into();
        let changes = vec![(1, a.clone(), None), (2, a.clone(), Some(record(&a, 2, 1)))];
        let steps = deltas(&placement(), &cursors, 2, changes);
        assert_eq!(steps[0].put, [record(&a, 2, 1)]);
        assert!(steps[0].delete.is_empty());
    }

    #[test]
    fn messages_are_bounded_and_only_the_last_moves_the_cursor() {
        let key = ResourceKey::global("MeshTrafficPermission", "pay", "a");
        for (count, bytes, expected) in [(0, 0, 1), (1200, 10, 3), (10, 300 << 10, 4)] {
            let step = Step {
                scope: "pay".into(),
                to: 9,
                snapshot: true,
                put: vec![record(&key, 1, bytes); count],
                ..Step::default()
            };
            let messages = messages(step, "h");
            assert_eq!(messages.len(), expected, "{count} of {bytes}");
            assert_eq!(messages.iter().map(|m| m.put.len()).sum::<usize>(), count);
            let last: Vec<bool> = messages.iter().map(|m| m.last).collect();
            assert_eq!(last.iter().filter(|l| **l).count(), 1);
            assert!(last[expected - 1]);
            assert!(
                messages
                    .iter()
                    .all(|m| m.snapshot && m.to == 9 && m.mesh == "pay")
            );
        }
    }
}
