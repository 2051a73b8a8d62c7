//! What a zone reports, and what of it is taken over. Pure.
//!
//! A zone may write only its own: `MeshService`s, `MeshTrust`s and `ZoneIngress`es under its own name, in meshes that
//! are placed in it, and anchors only for trust domains that are its own. What breaks a rule is refused by itself and
//! never holds up the rest.

use std::collections::BTreeMap;

use mesh_model::{MeshTrust, Resource, identity};
use mesh_proto::{
    names::{MeshName, ZoneName},
    raft::Operation,
    spiffe::TrustDomain,
    zone::{ReportRefusal, ResourceKey, ZoneReport},
};

use super::scope::Placement;
use crate::{
    changes::{delete_operation, owned_by_zone, put_operation},
    facts,
    state::image::Image,
};

/// Resources a zone may own. More are refused: summaries are small by design.
pub const OWNED_MAX: usize = 20_000;

/// Order of reports: a later epoch, or the same and a later sequence, is newer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Grows with each start of the zone's instance.
    pub epoch: u64,
    /// Grows with each report.
    pub sequence: u64,
}

impl Position {
    /// Position of a report.
    #[must_use]
    pub fn of(report: &ZoneReport) -> Self {
        Self {
            epoch: report.epoch,
            sequence: report.sequence,
        }
    }

    /// As it is stored.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        [self.epoch.to_be_bytes(), self.sequence.to_be_bytes()].concat()
    }

    /// Reads what [`Position::encode`] wrote; anything else stands before every report.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let number = |part: Option<&[u8]>| {
            part.and_then(|part| part.try_into().ok())
                .map_or(0, u64::from_be_bytes)
        };
        Self {
            epoch: number(bytes.get(..8)),
            sequence: number(bytes.get(8..16)),
        }
    }
}

/// Reports that wait to be taken over, merged into one. What it holds is bounded by what a zone may own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pending {
    /// Position of the newest report.
    pub position: Position,
    /// The zone owns exactly what is put.
    full: bool,
    /// Newest state of each key: the resource, or `None` where it was taken away.
    changes: BTreeMap<SortKey, (ResourceKey, Option<Vec<u8>>)>,
    /// More than a zone may own.
    overflow: bool,
}

impl Pending {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.position == Position::default()
    }

    /// Adds a report. Returns false where it is older than one that was added before: it is ignored.
    pub fn add(&mut self, report: ZoneReport) -> bool {
        let position = Position::of(&report);
        if position <= self.position {
            return false;
        }
        self.position = position;
        if report.full {
            self.full = true;
            self.overflow = false;
            self.changes.clear();
        }
        let puts = report
            .put
            .into_iter()
            .filter_map(|record| Some((record.key?, Some(record.json))));
        let deletes = report.delete.into_iter().map(|key| (key, None));
        for (key, json) in puts.chain(deletes) {
            let sort_key = sort_key(&key);
            if self.changes.len() >= OWNED_MAX && !self.changes.contains_key(&sort_key) {
                self.overflow = true;
                continue;
            }
            self.changes.insert(sort_key, (key, json));
        }
        true
    }

    /// Puts back what could not be written, under what has come meanwhile.
    pub fn put_back(&mut self, older: Self) {
        if self.is_empty() {
            *self = older;
            return;
        }
        if self.full {
            return;
        }
        self.full = older.full;
        self.overflow |= older.overflow;
        for (sort_key, change) in older.changes {
            self.changes.entry(sort_key).or_insert(change);
        }
    }
}

/// What becomes of a report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// What to write; empty where nothing changes.
    pub operations: Vec<Operation>,
    /// What is not taken over, each with its reason.
    pub refused: Vec<ReportRefusal>,
    /// A newer report was taken over already: nothing of this one is.
    pub stale: bool,
}

/// Says what to write for `pending`, on top of `image`.
#[must_use]
pub fn plan(image: &Image, placement: &Placement, pending: &Pending) -> Outcome {
    let record = facts::zone_report_name(&placement.zone);
    let stored = image.system(&record).unwrap_or_default();
    if pending.position < Position::decode(&stored) {
        return Outcome {
            stale: true,
            ..Outcome::default()
        };
    }
    let mut outcome = Outcome::default();
    let mut meshes = std::collections::BTreeSet::new();
    for (key, json) in pending.changes.values() {
        let operation = match json {
            // Its own it may take away anywhere, also from a mesh that is not placed there any more.
            None => check_owner(placement, key).map(|()| delete(image, key)),
            Some(json) => put(image, placement, key, json),
        };
        match operation {
            Ok(Some(operation)) => {
                meshes.insert(key.mesh.clone());
                outcome.operations.push(operation);
            }
            Ok(None) => {}
            Err(reason) => outcome.refused.push(ReportRefusal {
                key: Some(key.clone()),
                reason,
            }),
        }
    }
    if pending.overflow {
        outcome.refused.push(ReportRefusal {
            key: None,
            reason: format!("a zone may own at most {OWNED_MAX} resources; the rest is ignored"),
        });
    } else if pending.full {
        // What a full report does not name is gone, also where what it does name was refused: a refused change keeps
        // what was there before.
        let gone = owned_by_zone(image, &placement.zone)
            .into_iter()
            .filter(|stored| !pending.changes.contains_key(&sort_key(&stored.key)))
            .map(|stored| delete_operation(stored.key, None));
        outcome.operations.extend(gone);
    }
    if !outcome.operations.is_empty() {
        let guards = meshes.iter().filter(|mesh| !mesh.is_empty());
        outcome
            .operations
            .extend(guards.map(|mesh| facts::guard(image, "Mesh", mesh)));
        outcome
            .operations
            .push(facts::guard(image, "Zone", &placement.zone));
        outcome
            .operations
            .push(facts::set(&record, pending.position.encode(), Some(stored)));
    }
    outcome
}

fn delete(image: &Image, key: &ResourceKey) -> Option<Operation> {
    image.get(key)?;
    Some(delete_operation(key.clone(), None))
}

fn put(
    image: &Image,
    placement: &Placement,
    key: &ResourceKey,
    json: &[u8],
) -> Result<Option<Operation>, String> {
    check_key(placement, key)?;
    let resource = Resource::from_json(json).map_err(|violations| violations.to_string())?;
    if resource.key() != *key {
        return Err(format!("the resource says it is {}", resource.key()));
    }
    if let Some(trust) = resource.get::<MeshTrust>() {
        check_trust_domain(image, placement, &key.mesh, &trust.trust_domain)?;
    }
    // What this version writes, whatever order the zone's fields were in.
    let json = resource.to_json();
    if image.get(key).is_some_and(|stored| stored.json == json) {
        return Ok(None);
    }
    Ok(Some(put_operation(key.clone(), json, None)))
}

/// Whether the resource is of the zone.
fn check_owner(placement: &Placement, key: &ResourceKey) -> Result<(), String> {
    if key.zone != placement.zone {
        return Err(format!(
            "zone {} may only report what is its own, not what belongs to {:?}",
            placement.zone, key.zone
        ));
    }
    Ok(())
}

/// Whether a zone may own a resource of this name at all.
fn check_key(placement: &Placement, key: &ResourceKey) -> Result<(), String> {
    check_owner(placement, key)?;
    match key.kind.as_str() {
        "ZoneIngress" | "ZoneEgress" if key.mesh.is_empty() => Ok(()),
        "MeshService" | "MeshTrust" if placement.meshes.contains(&key.mesh) => Ok(()),
        "MeshService" | "MeshTrust" => Err(format!(
            "mesh {:?} is not placed in zone {}",
            key.mesh, placement.zone
        )),
        kind => Err(format!("zones do not write {kind} resources")),
    }
}

/// A zone writes anchors only for the trust domains that its own CA issues for: the default one, and those that the
/// mesh's identities give it and no other zone.
fn check_trust_domain(
    image: &Image,
    placement: &Placement,
    mesh: &str,
    domain: &str,
) -> Result<(), String> {
    let refused = |reason: &str| {
        format!(
            "zone {} may not write anchors for trust domain {domain}: {reason}",
            placement.zone
        )
    };
    let mesh_name: MeshName = mesh.parse().map_err(|_| refused("no such mesh"))?;
    let zone: ZoneName = placement
        .zone
        .parse()
        .map_err(|_| refused("no such zone"))?;
    if domain == TrustDomain::of_mesh_in_zone(&mesh_name, &zone).as_str() {
        return Ok(());
    }
    if domain.ends_with(".mesh.local") || domain == TrustDomain::installation().as_str() {
        return Err(refused("it is another mesh's or zone's"));
    }
    let identities: Vec<Resource> = image
        .list("MeshIdentity", Some(mesh), None, usize::MAX)
        .iter()
        .filter_map(|stored| Resource::from_json(&stored.json).ok())
        .collect();
    let gives = |zone: &ZoneName| {
        identities
            .iter()
            .filter_map(|resource| identity::trust_domain(resource, zone).ok())
            .any(|given| given.as_str() == domain)
    };
    if !gives(&zone) {
        return Err(refused("no MeshIdentity of the mesh gives it to this zone"));
    }
    let others = image.list("Zone", Some(""), None, usize::MAX);
    let shared = others
        .iter()
        .filter(|stored| stored.key.name != placement.zone)
        .filter_map(|stored| stored.key.name.parse().ok())
        .find(|other| gives(other));
    match shared {
        None => Ok(()),
        Some(other) => Err(refused(&format!(
            "a MeshIdentity gives it to zone {other} too; its template must name {{{{ .Zone }}}}"
        ))),
    }
}

type SortKey = (String, String, String, String);

fn sort_key(key: &ResourceKey) -> SortKey {
    (
        key.kind.clone(),
        key.mesh.clone(),
        key.zone.clone(),
        key.name.clone(),
    )
}

#[cfg(test)]
mod tests {
    use mesh_proto::{raft::Entry, zone::ResourceRecord};

    use super::*;
    use crate::state::apply::{ENTRY_VERSION, LIMITS, apply};

    fn image(resources: &str) -> Image {
        let operations = mesh_model::parse(resources, "test")
            .unwrap()
            .into_iter()
            .map(|resource| put_operation(resource.key(), resource.to_json(), None))
            .collect();
        let entry = Entry {
            version: ENTRY_VERSION,
            operations,
            ..Entry::default()
        };
        let mut image = Image::default();
        for write in apply(&image, &entry, &LIMITS).unwrap().writes {
            image.write(write).unwrap();
        }
        image
    }

    fn placement() -> Placement {
        Placement {
            zone: "east".into(),
            meshes: ["pay".to_owned()].into(),
        }
    }

    fn report(sequence: u64, full: bool, put: &[&str], delete: &[&str]) -> ZoneReport {
        let key = |name: &&str| ResourceKey::in_zone("MeshService", "pay", "east", name);
        ZoneReport {
            epoch: 1,
            sequence,
            full,
            put: put
                .iter()
                .map(|name| ResourceRecord {
                    key: Some(key(name)),
                    json: vec![],
                    revision: 0,
                    modified_ms: 0,
                    created_revision: 0,
                })
                .collect(),
            delete: delete.iter().map(key).collect(),
        }
    }

    #[test]
    fn a_trust_domain_is_the_zones_own_or_what_an_identity_gives_it_alone() {
        let image = image(
            "type: Mesh\nname: pay\n---\ntype: Zone\nname: east\n---\ntype: Zone\nname: west\n---\n\
             type: MeshIdentity\nmesh: pay\nname: corp\nspec:\n  selector: {dataplane: {matchLabels: {}}}\n  \
             spiffeID: {trustDomain: '{{ .Mesh }}.{{ .Zone }}.corp.example'}\n  provider: {type: Bundled}\n",
        );
        for (domain, allowed) in [
            ("pay.east.mesh.local", true),
            ("pay.east.corp.example", true),
            ("pay.west.corp.example", false),
            ("pay.west.mesh.local", false),
            ("ana.east.mesh.local", false),
            ("isthmus.local", false),
            ("corp.example", false),
        ] {
            let checked = check_trust_domain(&image, &placement(), "pay", domain);
            assert_eq!(checked.is_ok(), allowed, "{domain}: {checked:?}");
        }
    }

    #[test]
    fn waiting_reports_merge_to_the_newest_of_each_key() {
        let mut pending = Pending::default();
        assert!(pending.add(report(2, true, &["a", "b"], &[])));
        assert!(!pending.add(report(1, true, &[], &[])));
        assert!(pending.add(report(3, false, &["c"], &["a"])));
        let merged: Vec<(String, bool)> = pending
            .changes
            .values()
            .map(|(key, json)| (key.name.clone(), json.is_some()))
            .collect();
        let expected = [("a", false), ("b", true), ("c", true)];
        assert_eq!(merged, expected.map(|(name, put)| (name.to_owned(), put)));
        assert!(pending.full);
        // What could not be written goes under what came meanwhile.
        let mut newer = Pending::default();
        newer.add(report(4, false, &["a"], &[]));
        newer.put_back(pending);
        assert_eq!(newer.changes.len(), 3);
        assert!(newer.full);
        assert_eq!(newer.position.sequence, 4);
        assert!(newer.changes.values().all(|(_, json)| json.is_some()));
    }

    #[test]
    fn a_zone_takes_away_its_own_from_a_mesh_it_has_left() {
        let image = image("type: Zone\nname: east\n");
        let mut pending = Pending::default();
        pending.add(report(1, false, &[], &["a"]));
        let left = Placement {
            meshes: std::collections::BTreeSet::new(),
            ..placement()
        };
        assert_eq!(plan(&image, &left, &pending), Outcome::default());
    }
}
