//! A resource of any kind: its envelope and its content, and the canonical form that is stored and synchronised.

use std::collections::BTreeMap;

use mesh_proto::zone::ResourceKey;
use serde_json::{Map, Value};

use crate::{
    kind::{Descriptor, Kind},
    kinds::Spec,
    parse,
    policy::Policy,
    view,
    violation::Violations,
};

/// The envelope: what every resource has, whatever its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Meta {
    /// The mesh; "" for kinds outside any mesh.
    pub mesh: String,
    /// The zone that owns the resource; "" for what administrators wrote.
    pub zone: String,
    /// The name, unique for a kind, mesh and zone.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The revision at which it was created, where that is known. 0: not known. It is no part of what people write.
    pub created_revision: u64,
}

impl Meta {
    /// The envelope of what an administrator wrote, without labels.
    #[must_use]
    pub fn new(mesh: &str, name: &str) -> Self {
        Self {
            mesh: mesh.to_owned(),
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// The same with an owning zone.
    #[must_use]
    pub fn in_zone(mut self, zone: &str) -> Self {
        zone.clone_into(&mut self.zone);
        self
    }

    /// The same with one more label.
    #[must_use]
    pub fn with_label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }
}

/// A resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// The envelope.
    pub meta: Meta,
    /// The content.
    pub spec: Spec,
}

impl Resource {
    /// Joins an envelope and a content.
    #[must_use]
    pub fn new<K: Kind>(meta: Meta, spec: K) -> Self {
        Self {
            meta,
            spec: spec.into(),
        }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> &'static Descriptor {
        self.spec.kind()
    }

    /// What names it everywhere.
    #[must_use]
    pub fn key(&self) -> ResourceKey {
        let Meta {
            mesh, zone, name, ..
        } = &self.meta;
        ResourceKey::in_zone(self.kind().name, mesh, zone, name)
    }

    /// Its content, where it is of kind `K`.
    #[must_use]
    pub fn get<K: Kind>(&self) -> Option<&K> {
        K::of(self)
    }

    /// The policy, where it is one.
    #[must_use]
    pub fn policy(&self) -> Option<&dyn Policy> {
        self.spec.policy()
    }

    /// The value of a secret, of a mesh or global: in base64 as its author wrote it, or sealed where it is stored.
    #[must_use]
    pub fn secret_data(&self) -> Option<&str> {
        match &self.spec {
            Spec::Secret(secret) => Some(&secret.data),
            Spec::GlobalSecret(secret) => Some(&secret.data),
            _ => None,
        }
    }

    /// The same secret with another value. What is no secret stays as it is.
    #[must_use]
    pub fn with_secret_data(mut self, data: String) -> Self {
        match &mut self.spec {
            Spec::Secret(secret) => secret.data = data,
            Spec::GlobalSecret(secret) => secret.data = data,
            _ => {}
        }
        self
    }

    /// The canonical form: compact JSON with sorted keys, without revision and times. Equal resources give equal bytes.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut object = self.envelope();
        if !self.meta.zone.is_empty() {
            object.insert("zone".to_owned(), self.meta.zone.as_str().into());
        }
        self.insert_content(&mut object);
        view::sorted(Value::Object(object)).to_string().into_bytes()
    }

    /// Reads what [`Resource::to_json`] wrote, and validates it.
    ///
    /// # Errors
    /// Everything that is wrong; a field this version does not know is an error too.
    pub fn from_json(json: &[u8]) -> Result<Self, Violations> {
        parse::stored(json)
    }

    pub(crate) fn envelope(&self) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("type".to_owned(), self.kind().name.into());
        if !self.meta.mesh.is_empty() {
            object.insert("mesh".to_owned(), self.meta.mesh.as_str().into());
        }
        object.insert("name".to_owned(), self.meta.name.as_str().into());
        if !self.meta.labels.is_empty() {
            let labels = self.meta.labels.iter();
            let labels = labels
                .map(|(k, v)| (k.clone(), v.as_str().into()))
                .collect();
            object.insert("labels".to_owned(), Value::Object(labels));
        }
        object
    }

    pub(crate) fn insert_content(&self, object: &mut Map<String, Value>) {
        // Contents are structs of texts, numbers, lists and maps with text keys, which always have a JSON form; and
        // every one of them is an object.
        let content = self.spec.to_value().unwrap_or_default();
        if self.kind().spec_field {
            object.insert("spec".to_owned(), content);
        } else if let Value::Object(fields) = content {
            object.extend(fields);
        }
    }
}
