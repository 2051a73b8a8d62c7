//! Selectors by tags to selectors by labels, and callers to SPIFFE IDs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{document::Document, facts::Facts, fields::Fields, fields::texts, report::Notes};

/// The label of a dataplane's service; a tag in Kuma 2.
pub(super) const SERVICE: &str = "isthmus.io/service";
const ZONE: &str = "isthmus.io/zone";
const PROTOCOL: &str = "isthmus.io/protocol";

/// Which proxies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// Labels they have; none: all of the mesh.
    pub(super) labels: BTreeMap<String, String>,
    /// One inbound.
    pub(super) section: Option<String>,
    /// How specific Kuma 2 took it for.
    pub(super) rank: u8,
}

impl Target {
    /// As `targetRef`; `None` for the whole mesh.
    pub(super) fn value(&self) -> Option<Value> {
        if self.labels.is_empty() && self.section.is_none() && self.rank == 0 {
            return None;
        }
        let mut value = json!({"kind": "Dataplane"});
        if !self.labels.is_empty() {
            value["labels"] = json!(self.labels);
        }
        if let Some(section) = &self.section {
            value["sectionName"] = section.clone().into();
        }
        Some(value)
    }

    /// True where a proxy may be selected by both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let apart = self
            .labels
            .iter()
            .any(|(key, value)| other.labels.get(key).is_some_and(|theirs| theirs != value));
        let sections = match (&self.section, &other.section) {
            // A name and a number may be the same inbound.
            (Some(a), Some(b)) => a == b || a.parse::<u16>().is_ok() != b.parse::<u16>().is_ok(),
            _ => true,
        };
        !apart && sections
    }
}

/// A top-level `targetRef`. `None`: it can not be said here, which is noted.
pub(super) fn top(value: Option<Value>, path: &str, notes: &mut Notes<'_>) -> Option<Target> {
    let Some(value) = value else {
        return Some(Target::default());
    };
    let mut fields = Fields::of(value, path);
    let kind = fields
        .take_text("kind")
        .unwrap_or_else(|| "Mesh".to_owned());
    if let Some(proxies) = fields.take("proxyTypes") {
        let proxies = proxies.as_array().cloned().unwrap_or_default();
        if !proxies.is_empty() && !proxies.contains(&"Sidecar".into()) {
            notes.lost(
                &fields.at("proxyTypes"),
                "selects gateways only, and there are none in this version",
            );
            return None;
        }
        notes.changed(
            &fields.at("proxyTypes"),
            "is left out: there are sidecars only",
        );
    }
    let name = fields.take_text("name");
    let namespace = fields.take_text("namespace");
    let tags_path = fields.at("tags");
    let tags = texts(fields.take("tags"));
    let labels = texts(fields.take("labels"));
    let section = fields.take_text("sectionName");
    let own_path = fields.path().to_owned();
    let rank = match kind.as_str() {
        "Mesh" => 0,
        "MeshSubset" => 1,
        "MeshService" => 2,
        "MeshServiceSubset" => 3,
        "Dataplane" if section.is_some() => 5,
        "Dataplane" => 4,
        "MeshGateway" => {
            notes.lost(&own_path, "there are no gateways in this version");
            return None;
        }
        other => {
            notes.lost(&own_path, format!("{other} can not select proxies here"));
            return None;
        }
    };
    if kind == "Dataplane" && (name.is_some() || namespace.is_some()) {
        notes.lost(
            &own_path,
            "a dataplane is selected by labels here, not by its name: give it a label of its own",
        );
        return None;
    }
    let mut target = Target {
        labels,
        section,
        rank,
    };
    if let Some(name) = name.filter(|_| kind != "Mesh") {
        target.labels.insert(SERVICE.to_owned(), name);
    }
    if let Some(namespace) = namespace {
        target
            .labels
            .insert("k8s.isthmus.io/namespace".to_owned(), namespace);
    }
    for (key, value) in tags {
        if !tag(key, value, &mut target.labels, &tags_path, notes) {
            return None;
        }
    }
    if kind != "Mesh" && kind != "Dataplane" {
        notes.changed(
            &own_path,
            format!("{kind} is kind Dataplane with labels here"),
        );
    }
    let unknown: Vec<_> = fields.rest().into_iter().collect();
    if let Some((field, _)) = unknown.first() {
        notes.lost(
            &format!("{own_path}.{field}"),
            "is no field that is known here",
        );
        return None;
    }
    Some(target)
}

/// A tag as a label; false where it can not be one, which is noted.
fn tag(
    key: String,
    value: String,
    labels: &mut BTreeMap<String, String>,
    path: &str,
    notes: &mut Notes<'_>,
) -> bool {
    if value == "*" {
        if key != SERVICE {
            notes.lost(path, format!("{key}: \"*\" selects what has the tag at all; here a label is selected by its value"));
            return false;
        }
        return true;
    }
    if key == PROTOCOL {
        notes.lost(path, "the protocol of an inbound selects nothing here");
        return false;
    }
    labels.insert(key, value);
    true
}

/// A `match` of an old policy's `sources` or `destinations` as a selection of proxies.
pub(super) fn by_match(fields: &mut Fields, notes: &mut Notes<'_>) -> Option<Target> {
    let path = fields.at("match");
    by_tags(texts(fields.take("match")), &path, notes)
}

/// As [`by_match`], by the tags themselves.
pub(super) fn by_tags(
    tags: BTreeMap<String, String>,
    path: &str,
    notes: &mut Notes<'_>,
) -> Option<Target> {
    // More tags are more specific; a wildcard counts least.
    let exact = tags.values().filter(|value| *value != "*").count();
    let mut target = Target {
        rank: u8::try_from(exact).unwrap_or(u8::MAX),
        ..Target::default()
    };
    for (key, value) in tags {
        if !tag(key, value, &mut target.labels, path, notes) {
            return None;
        }
    }
    Some(target)
}

/// Callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Callers {
    /// Everyone in the mesh.
    Everyone,
    /// Those of a service, of a zone, or both.
    Some {
        /// The service.
        service: Option<String>,
        /// The zone.
        zone: Option<String>,
    },
    /// They can not be told by their identity here, and why.
    Unsayable(String),
}

impl Callers {
    /// By tags.
    pub(super) fn by_tags(tags: BTreeMap<String, String>) -> Self {
        let (mut service, mut zone) = (None, None);
        for (key, value) in tags {
            match key.as_str() {
                SERVICE if value == "*" => {}
                SERVICE => service = Some(value),
                ZONE if value == "*" => {}
                ZONE => zone = Some(value),
                _ => {
                    return Self::Unsayable(format!(
                        "callers are known by their identity here, which holds mesh, zone and service, and no tag {key}"
                    ));
                }
            }
        }
        match (&service, &zone) {
            (None, None) => Self::Everyone,
            _ => Self::Some { service, zone },
        }
    }

    /// By the `targetRef` of a `from` entry.
    pub(super) fn by_target(value: Option<Value>) -> Self {
        let mut fields = Fields::of(value.unwrap_or_else(|| json!({"kind": "Mesh"})), "");
        let kind = fields
            .take_text("kind")
            .unwrap_or_else(|| "Mesh".to_owned());
        let name = fields.take_text("name");
        let mut tags = texts(fields.take("tags"));
        let proxies = fields.take("proxyTypes");
        if let Some((field, _)) = fields.rest().into_iter().next() {
            return Self::Unsayable(format!("{field} can not select callers here"));
        }
        if proxies.is_some_and(|proxies| {
            proxies
                .as_array()
                .is_some_and(|all| !all.is_empty() && !all.contains(&"Sidecar".into()))
        }) {
            return Self::Unsayable("there are no gateways in this version".to_owned());
        }
        match kind.as_str() {
            "Mesh" => Self::Everyone,
            "MeshSubset" => Self::by_tags(tags),
            "MeshService" | "MeshServiceSubset" => {
                tags.extend(name.map(|name| (SERVICE.to_owned(), name)));
                Self::by_tags(tags)
            }
            other => Self::Unsayable(format!("{other} can not select callers here")),
        }
    }

    /// True where a caller may belong to both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (
            Self::Some {
                service: a,
                zone: x,
            },
            Self::Some {
                service: b,
                zone: y,
            },
        ) = (self, other)
        else {
            return true;
        };
        let apart = |one: &Option<String>, two: &Option<String>| matches!((one, two), (Some(one), Some(two)) if one != two);
        !apart(a, b) && !apart(x, y)
    }

    /// True where everyone in `other` is in these.
    pub(super) fn cover(&self, other: &Self) -> bool {
        let covers = |one: &Option<String>, two: &Option<String>| one.is_none() || one == two;
        match (self, other) {
            (Self::Everyone, _) => true,
            (
                Self::Some {
                    service: a,
                    zone: x,
                },
                Self::Some {
                    service: b,
                    zone: y,
                },
            ) => covers(a, b) && covers(x, y),
            _ => false,
        }
    }

    /// As matches by SPIFFE ID; an error says why there are none.
    pub(super) fn matches(
        &self,
        document: &Document,
        facts: &Facts,
        path: &str,
    ) -> Result<Vec<Value>, String> {
        let mesh = &document.mesh;
        let known = facts.mesh(mesh);
        let ours = || {
            let place = document.place(path);
            format!("{}:{}: {}", document.source, place.0, document.in_words())
        };
        let prefix = |value: String| json!({"spiffeID": {"type": "Prefix", "value": value}});
        match self {
            Self::Unsayable(why) => Err(why.clone()),
            // Whoever is trusted is of this mesh, unless somebody says otherwise.
            Self::Everyone if !known.is_some_and(|known| known.trusts_others) => {
                Ok(vec![prefix("spiffe://".to_owned())])
            }
            _ if known.is_some_and(|known| known.own_identities) => Err(
                "a MeshIdentity of this mesh makes identities of its own form; write what they are called".to_owned(),
            ),
            Self::Everyone => {
                let zones = facts.zones(ours);
                Ok(zones.map(|zone| prefix(format!("spiffe://{mesh}.{zone}.mesh.local/"))).collect())
            }
            Self::Some { service: None, zone } => {
                let zone = zone.as_deref().unwrap_or_default();
                Ok(vec![prefix(format!("spiffe://{mesh}.{zone}.mesh.local/"))])
            }
            Self::Some { service: Some(service), zone } => {
                let zones: Vec<_> = match zone {
                    Some(zone) => vec![zone.as_str()],
                    None => facts.zones(ours).collect(),
                };
                let workloads = facts.workloads(mesh, service);
                let id = |zone: &str, workload: &str| {
                    let value = format!("spiffe://{mesh}.{zone}.mesh.local/workload/{workload}");
                    json!({"spiffeID": {"type": "Exact", "value": value}})
                };
                let ids = zones.iter().flat_map(|zone| workloads.iter().map(|workload| id(zone, workload)));
                Ok(ids.collect())
            }
        }
    }
}
