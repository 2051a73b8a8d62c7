//! What is to be said about a mesh's resources as they meet this zone's dataplanes and services.
//!
//! What can be known from the resources is `mesh-model`'s to say ([`of_mesh`]); what a dataplane refuses is added here
//! ([`refusals`]), on the resources that changed when it was sent what it refuses (FIELD d14).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_model::{
    MeshService, Resource,
    api::{Condition, Key},
    policy::{self, Known},
};
use mesh_proto::zone;

use crate::{
    scope::Scope,
    tracker::{Documents, Tracker},
    view::MeshView,
};

/// Conditions that a status lists at most.
pub const MAX: usize = 200;
/// Resources that one step may change for each of them to be held responsible for a refusal: of many, who knows.
const CAUSES_MAX: usize = 20;

/// Conditions of a mesh's policies, sorted.
#[must_use]
pub fn of_mesh(
    scope: &Scope,
    view: &MeshView,
    dataplanes: &BTreeMap<String, Arc<Resource>>,
) -> Vec<Condition> {
    let policies: Vec<&Resource> = scope
        .resources()
        .filter(|r| r.meta.mesh == view.mesh.as_str() && r.policy().is_some())
        .map(Arc::as_ref)
        .collect();
    let dataplanes: Vec<&Resource> = dataplanes.values().map(Arc::as_ref).collect();
    // Services that can not be called yet exist all the same: that is another thing to say, when they are applied.
    let others = scope
        .resources()
        .filter(|r| r.meta.mesh == view.mesh.as_str() && r.get::<MeshService>().is_none())
        .filter_map(|r| policy::Service::of(r));
    let services = policy::Services::new(view.services.targets.iter().cloned().chain(others));
    let known = Known {
        services: Some(&services),
        dataplanes: Some(&dataplanes),
    };
    policy::conditions(&policies, known)
}

/// Which resources changed when a dataplane's documents did.
#[derive(Debug, Clone, Default)]
pub struct Causes {
    /// By document: its version, and what changed since the version that the dataplane runs.
    of: BTreeMap<String, (String, BTreeSet<Key>)>,
}

impl Causes {
    /// The documents that are wanted of a dataplane are others than before, since `changed` did.
    pub fn note(&mut self, tracker: &Tracker, wanted: &Documents, changed: &BTreeSet<Key>) {
        for (name, document) in wanted {
            let before = tracker.wanted().get(name).map(|d| &d.version);
            if before == Some(&document.version) || tracker.running(name) == Some(&document.version)
            {
                continue;
            }
            let known = self.of.remove(name);
            // What is not taken yet is in the new version as well.
            let pending = known.filter(|(version, _)| Some(version) == before);
            let mut keys = pending.map(|(_, keys)| keys).unwrap_or_default();
            keys.extend(changed.iter().take(CAUSES_MAX + 1).cloned());
            if keys.len() <= CAUSES_MAX {
                self.of
                    .insert(name.clone(), (document.version.clone(), keys));
            }
        }
        self.of.retain(|name, _| wanted.contains_key(name));
    }

    /// The dataplane has answered: what it runs needs no cause any more.
    pub fn tidy(&mut self, tracker: &Tracker) {
        self.of
            .retain(|name, (version, _)| tracker.running(name) != Some(version));
    }

    /// What changed to bring about this version of a document.
    fn of(&self, document: &str, version: &str) -> impl Iterator<Item = &Key> {
        let found = self.of.get(document).filter(|(known, _)| known == version);
        found.into_iter().flat_map(|(_, keys)| keys)
    }
}

/// Conditions of the resources whose change is refused by dataplanes for what the documents say, sorted.
pub fn refusals<'a>(
    of: impl IntoIterator<Item = (&'a str, &'a Tracker, &'a Causes)>,
) -> Vec<Condition> {
    // One for each resource, document and reason, whoever refuses.
    let mut found: BTreeMap<(&Key, &str, &str), Vec<&str>> = BTreeMap::new();
    for (dataplane, tracker, causes) in of {
        for (document, refusal) in tracker.refused().iter().filter(|(_, r)| !r.local) {
            for key in causes.of(document, &refusal.version) {
                found
                    .entry((key, document, &refusal.reason))
                    .or_default()
                    .push(dataplane);
            }
        }
    }
    let condition = |((key, document, reason), by): ((&Key, &str, &str), Vec<&str>)| {
        let others = match by.len() - 1 {
            0 => String::new(),
            1 => " and another".to_owned(),
            others => format!(" and {others} others"),
        };
        Condition {
            key: key.clone(),
            kind: "Accepted".to_owned(),
            status: false,
            reason: "RefusedByDataplane".to_owned(),
            message: format!(
                "dataplane {}{others} can not take this change ({document}): {reason}",
                by[0]
            ),
            field: String::new(),
            zone: String::new(),
        }
    };
    found.into_iter().map(condition).collect()
}

/// As the zone reports it.
#[must_use]
pub fn to_wire(condition: &Condition) -> zone::Condition {
    zone::Condition {
        key: Some(condition.key.clone().into()),
        r#type: condition.kind.clone(),
        status: condition.status,
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        field: condition.field.clone(),
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        discovery::{DocumentNack, DocumentVersion, NackKind},
        document,
        proxy::{Document, Service, document::Body},
        zone::ResourceKey,
    };

    use super::*;

    fn documents(port: u32) -> Documents {
        let body = Body::Service(Service {
            port,
            ..Service::default()
        });
        let document = Arc::new(document::seal("service/a:1".into(), vec![], body));
        [(document.name.clone(), document)].into()
    }

    fn key(name: &str) -> Key {
        ResourceKey::in_zone("MeshTimeout", "pay", "", name).into()
    }

    struct One {
        tracker: Tracker,
        causes: Causes,
    }

    impl One {
        fn change(&mut self, port: u32, names: &[&str]) {
            let keys = names.iter().map(|name| key(name)).collect();
            self.causes.note(&self.tracker, &documents(port), &keys);
            self.tracker.want(documents(port));
            self.tracker.unsent();
        }

        fn wanted(&self) -> Arc<Document> {
            self.tracker.wanted()["service/a:1"].clone()
        }

        fn refuse(&mut self, kind: NackKind) {
            let nack = DocumentNack {
                name: "service/a:1".into(),
                version: self.wanted().version.clone(),
                reason: "no".into(),
                kind: kind.into(),
            };
            self.tracker.nack(&[nack]);
        }

        fn take(&mut self) {
            let taken = DocumentVersion {
                name: "service/a:1".into(),
                version: self.wanted().version.clone(),
            };
            self.tracker.ack(&[taken]);
            self.causes.tidy(&self.tracker);
        }

        fn blamed(&self) -> Vec<String> {
            let found = refusals([("web-1", &self.tracker, &self.causes)]);
            found.into_iter().map(|c| c.key.name).collect()
        }
    }

    fn one() -> One {
        let mut one = One {
            tracker: Tracker::default(),
            causes: Causes::default(),
        };
        one.tracker.attach(&[]);
        one.change(1, &["first"]);
        one
    }

    #[test]
    fn what_changed_since_the_dataplane_took_something_is_to_blame() {
        let mut one = one();
        one.take();
        one.change(2, &["second"]);
        assert!(one.blamed().is_empty());
        one.refuse(NackKind::Content);
        assert_eq!(one.blamed(), ["second"]);
        one.change(3, &["third"]);
        assert!(one.blamed().is_empty());
        one.refuse(NackKind::Content);
        assert_eq!(one.blamed(), ["second", "third"]);
        // It runs what it ran again.
        one.change(1, &["second"]);
        assert!(one.blamed().is_empty());
    }

    #[test]
    fn trouble_of_the_host_and_a_step_of_many_changes_are_nobodys_fault() {
        let mut one = one();
        one.refuse(NackKind::Local);
        assert!(one.blamed().is_empty());
        let many: Vec<String> = (0..=CAUSES_MAX).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        one.change(2, &many);
        one.refuse(NackKind::Content);
        assert!(one.blamed().is_empty());
    }

    #[test]
    fn several_who_refuse_the_same_are_one_condition() {
        let mut one = one();
        one.refuse(NackKind::Content);
        let both = ["web-1", "web-2"].map(|name| (name, &one.tracker, &one.causes));
        let found = refusals(both);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].message,
            "dataplane web-1 and another can not take this change (service/a:1): no"
        );
    }
}
