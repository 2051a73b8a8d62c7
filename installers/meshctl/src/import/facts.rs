//! What one document must know of the others: zones, ports of services, backends of a mesh, where identities come from.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use serde_json::Value;

use super::{document::Document, target::SERVICE};

/// What is known of all documents together.
#[derive(Debug, Default)]
pub(super) struct Facts {
    zones: BTreeSet<String>,
    missed: RefCell<Option<String>>,
    meshes: BTreeMap<String, MeshFacts>,
    ports: BTreeMap<(String, String), BTreeSet<u64>>,
    workloads: BTreeMap<(String, String), BTreeSet<String>>,
    traces: BTreeSet<String>,
    external: BTreeSet<(String, String)>,
}

/// What is known of one mesh.
#[derive(Debug, Default)]
pub(super) struct MeshFacts {
    /// Log backends by name.
    pub(super) logging: BTreeMap<String, Value>,
    /// The one that is meant where nobody names any.
    pub(super) default_logging: Option<String>,
    /// Trace backends by name.
    pub(super) tracing: BTreeMap<String, Value>,
    /// The one that is meant where nobody names any.
    pub(super) default_tracing: Option<String>,
    /// A MeshIdentity gives identities of another form than the built-in one.
    pub(super) own_identities: bool,
    /// A MeshTrust lets in identities of elsewhere.
    pub(super) trusts_others: bool,
}

impl Facts {
    /// Looks through all documents.
    pub(super) fn of(documents: &[Document], zones: &[String]) -> Self {
        let mut facts = Self {
            zones: zones.iter().cloned().collect(),
            ..Self::default()
        };
        for document in documents {
            facts.look_at(document);
        }
        facts
    }

    fn look_at(&mut self, document: &Document) {
        let content = &document.content;
        match document.kind.as_str() {
            "Zone" => {
                self.zones.insert(document.name.clone());
            }
            "ZoneIngress" | "ZoneEgress" => self
                .zones
                .extend(content["zone"].as_str().map(str::to_owned)),
            "Mesh" => {
                let facts = self.meshes.entry(document.name.clone()).or_default();
                facts.logging = by_name(&content["logging"]["backends"]);
                facts.default_logging = text(&content["logging"]["defaultBackend"]);
                facts.tracing = by_name(&content["tracing"]["backends"]);
                facts.default_tracing = text(&content["tracing"]["defaultBackend"]);
            }
            "MeshIdentity" => {
                let facts = self.meshes.entry(document.mesh.clone()).or_default();
                facts.own_identities |= !content["spiffeID"].is_null();
            }
            "MeshTrust" => {
                let facts = self.meshes.entry(document.mesh.clone()).or_default();
                facts.trusts_others = true;
            }
            "TrafficTrace" => {
                self.traces.insert(document.mesh.clone());
            }
            "ExternalService" => {
                let service = content["tags"][SERVICE].as_str().unwrap_or(&document.name);
                self.external
                    .insert((document.mesh.clone(), service.to_owned()));
            }
            "Dataplane" => self.look_at_dataplane(document),
            _ => {}
        }
    }

    fn look_at_dataplane(&mut self, document: &Document) {
        let inbounds = document.content["networking"]["inbound"].as_array();
        for inbound in inbounds.into_iter().flatten() {
            let zone = inbound["tags"]["isthmus.io/zone"].as_str();
            self.zones.extend(zone.map(str::to_owned));
            let service = inbound["tags"][SERVICE]
                .as_str()
                .or_else(|| document.labels.get(SERVICE)?.as_str());
            let Some(service) = service else {
                continue;
            };
            let key = (document.mesh.clone(), service.to_owned());
            self.ports
                .entry(key.clone())
                .or_default()
                .extend(inbound["port"].as_u64());
            let workload = document
                .labels
                .get("isthmus.io/workload")
                .and_then(Value::as_str);
            self.workloads
                .entry(key)
                .or_default()
                .extend(workload.map(str::to_owned));
        }
    }

    /// Every zone; none known is remembered as a question, with the place that asked.
    pub(super) fn zones(&self, asked_by: impl FnOnce() -> String) -> impl Iterator<Item = &str> {
        if self.zones.is_empty() && self.missed.borrow().is_none() {
            *self.missed.borrow_mut() = Some(asked_by());
        }
        self.zones.iter().map(String::as_str)
    }

    /// The first place that had to know the zones, where none is known.
    pub(super) fn zones_were_missed(&self) -> Option<String> {
        self.missed.borrow().clone()
    }

    /// What is known of a mesh.
    pub(super) fn mesh(&self, name: &str) -> Option<&MeshFacts> {
        self.meshes.get(name)
    }

    /// The one port of a service, where the dataplanes that were read leave no doubt.
    pub(super) fn port(&self, mesh: &str, service: &str) -> Option<u64> {
        let ports = self.ports.get(&(mesh.to_owned(), service.to_owned()))?;
        match ports.len() {
            1 => ports.first().copied(),
            _ => None,
        }
    }

    /// Workloads under which dataplanes of a service have their identities: the service's own name, and those that are
    /// named otherwise.
    pub(super) fn workloads(&self, mesh: &str, service: &str) -> BTreeSet<String> {
        let mut workloads = BTreeSet::from([service.to_owned()]);
        let key = (mesh.to_owned(), service.to_owned());
        workloads.extend(self.workloads.get(&key).into_iter().flatten().cloned());
        workloads
    }

    /// True where a service is outside the mesh.
    pub(super) fn is_external(&self, mesh: &str, service: &str) -> bool {
        self.external
            .contains(&(mesh.to_owned(), service.to_owned()))
    }

    /// True where a TrafficTrace uses the tracing of a mesh.
    pub(super) fn is_traced(&self, mesh: &str) -> bool {
        self.traces.contains(mesh)
    }
}

fn by_name(backends: &Value) -> BTreeMap<String, Value> {
    let backends = backends.as_array().into_iter().flatten();
    backends
        .filter_map(|backend| Some((text(&backend["name"])?, backend.clone())))
        .collect()
}

fn text(value: &Value) -> Option<String> {
    value
        .as_str()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}
