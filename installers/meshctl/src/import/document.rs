//! The envelope of a document: kind, mesh, name and labels, whether it is universal or of Kubernetes.

use mesh_model::Violation;
use serde_json::{Map, Value, json};

/// A document that was read.
#[derive(Debug)]
pub(super) struct Document {
    /// The file.
    pub(super) source: String,
    raw: std::rc::Rc<mesh_model::parse::Document>,
    /// Where it begins inside `raw`: "" unless it is an item of a list.
    root: String,
    /// As in `type`, or `kind` on Kubernetes.
    pub(super) kind: String,
    /// The mesh; "" for what is outside any.
    pub(super) mesh: String,
    /// The name.
    pub(super) name: String,
    /// Its labels, in our spelling.
    pub(super) labels: Map<String, Value>,
    /// Its content.
    pub(super) content: Value,
    /// Where its content stands: `spec` or "".
    base: &'static str,
    /// Fields of the envelope that are neither known nor observed.
    pub(super) odd: Vec<String>,
    /// What the envelope lost on the way.
    pub(super) envelope_notes: Vec<(String, String)>,
}

/// Shown by the control plane, never written.
const READ_ONLY: [&str; 6] = [
    "creationTime",
    "modificationTime",
    "kri",
    "status",
    "revision",
    "snis",
];

/// Kinds outside any mesh.
const GLOBAL: [&str; 9] = [
    "Mesh",
    "Zone",
    "ZoneIngress",
    "ZoneEgress",
    "GlobalSecret",
    "HostnameGenerator",
    "ZoneInsight",
    "ZoneIngressInsight",
    "ZoneEgressInsight",
];

impl Document {
    /// The documents in `raw`: one, or the items of a list.
    pub(super) fn of(
        raw: mesh_model::parse::Document,
        source: &str,
        mesh: &str,
    ) -> Result<Vec<Self>, Box<Violation>> {
        let raw = std::rc::Rc::new(raw);
        let is_list = raw.value["kind"] == "List"
            || raw.value["type"].is_null() && raw.value["kind"].is_null();
        if let (true, Value::Array(items)) = (is_list, &raw.value["items"]) {
            let items = items.iter().enumerate();
            return items
                .map(|(index, item)| Self::at(&raw, format!("items[{index}]"), item, source, mesh))
                .collect();
        }
        Ok(vec![Self::at(
            &raw,
            String::new(),
            &raw.value,
            source,
            mesh,
        )?])
    }

    fn at(
        raw: &std::rc::Rc<mesh_model::parse::Document>,
        root: String,
        value: &Value,
        source: &str,
        mesh: &str,
    ) -> Result<Self, Box<Violation>> {
        let refused = |path: &str, message: &str| {
            let (line, column) = raw.place(&join(&root, path));
            Box::new(Violation {
                source: source.to_owned(),
                line,
                column,
                path: join(&root, path),
                message: message.to_owned(),
            })
        };
        let Some(object) = value.as_object() else {
            return Err(refused(
                "",
                "a resource is an object with `type` and `name`",
            ));
        };
        let mut object = object.clone();
        let mut notes = Vec::new();
        let mut labels;
        let name;
        let kind;
        let mut of_mesh = object.remove("mesh");
        let kubernetes = object.contains_key("apiVersion");
        if kubernetes {
            let version = object.remove("apiVersion").unwrap_or_default();
            kind = object.remove("kind");
            let Some(Value::Object(mut metadata)) = object.remove("metadata") else {
                return Err(refused("metadata", "is required"));
            };
            if !version
                .as_str()
                .is_some_and(|version| version.starts_with("kuma.io/"))
            {
                notes.push((
                    "apiVersion".to_owned(),
                    format!("{version} is none of Kuma's"),
                ));
            }
            name = metadata.remove("name");
            labels = taken_object(metadata.remove("labels"));
            if let Some(label) = labels.remove("isthmus.io/mesh") {
                of_mesh = of_mesh.or(Some(label));
            }
            if let Some(namespace) = metadata
                .remove("namespace")
                .as_ref()
                .and_then(Value::as_str)
                && !["kuma-system", "kong-mesh-system"].contains(&namespace)
            {
                labels.insert("k8s.isthmus.io/namespace".to_owned(), namespace.into());
            }
            let annotations = taken_object(metadata.remove("annotations"));
            for key in annotations
                .keys()
                .filter(|key| key.starts_with("isthmus.io/"))
            {
                notes.push((
                    format!("metadata.annotations[{key:?}]"),
                    "annotations are not taken over".to_owned(),
                ));
            }
        } else {
            kind = object.remove("type");
            name = object.remove("name");
            labels = taken_object(object.remove("labels"));
        }
        // Says who wrote it there; here it is said anew.
        for key in [
            "isthmus.io/origin",
            "isthmus.io/env",
            "isthmus.io/display-name",
            "isthmus.io/policy-role",
            "isthmus.io/mesh",
        ] {
            labels.remove(key);
        }
        let word = if kubernetes { "kind" } else { "type" };
        let text = |value: Option<Value>, path: &str| match value {
            Some(Value::String(text)) if !text.is_empty() => Ok(text),
            Some(_) => Err(refused(path, "must be text")),
            None => Err(refused(path, "is required")),
        };
        let kind = text(kind, word)?;
        let name = text(name, "name")?;
        let mesh = match of_mesh {
            _ if GLOBAL.contains(&kind.as_str()) => String::new(),
            Some(Value::String(of)) => of,
            _ => mesh.to_owned(),
        };
        for field in READ_ONLY {
            object.remove(field);
        }
        let spec = object.remove("spec");
        let (content, base) = match spec {
            Some(spec) => (spec, "spec"),
            None => (Value::Object(std::mem::take(&mut object)), ""),
        };
        Ok(Self {
            source: source.to_owned(),
            raw: raw.clone(),
            root,
            kind,
            mesh,
            name,
            labels,
            content,
            base,
            odd: object.keys().cloned().collect(),
            envelope_notes: notes,
        })
    }

    /// `TrafficLog all in mesh pay`.
    pub(super) fn in_words(&self) -> String {
        match self.mesh.as_str() {
            "" => format!("{} {}", self.kind, self.name),
            mesh => format!("{} {} in mesh {mesh}", self.kind, self.name),
        }
    }

    /// Where the field at `path` of the content stands.
    pub(super) fn place(&self, path: &str) -> (u32, u32) {
        self.raw.place(&join(&self.root, &self.path(path)))
    }

    /// A path inside the content as a path inside the document.
    pub(super) fn path(&self, path: &str) -> String {
        join(self.base, path)
    }

    /// This resource with other content.
    pub(super) fn with_content(&self, content: Value) -> Value {
        self.made(&self.kind, &self.name, content)
    }

    /// A resource of another kind or name, with the mesh and labels of this one.
    pub(super) fn made(&self, kind: &str, name: &str, content: Value) -> Value {
        let mut value = json!({"type": kind, "name": name});
        let descriptor = mesh_model::find_kind(kind);
        if descriptor.is_none_or(|kind| kind.scope == mesh_model::Scope::Mesh)
            && !self.mesh.is_empty()
        {
            value["mesh"] = self.mesh.clone().into();
        }
        if !self.labels.is_empty() {
            value["labels"] = Value::Object(self.labels.clone());
        }
        if descriptor.is_none_or(|kind| kind.spec_field) {
            value["spec"] = content;
        } else if let (Value::Object(value), Value::Object(content)) = (&mut value, content) {
            value.extend(content);
        }
        value
    }
}

fn taken_object(value: Option<Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// `spec` and `a[0]` to `spec.a[0]`.
pub(super) fn join(outer: &str, inner: &str) -> String {
    match (outer.is_empty(), inner.is_empty()) {
        (true, _) => inner.to_owned(),
        (_, true) => outer.to_owned(),
        _ if inner.starts_with('[') => format!("{outer}{inner}"),
        _ => format!("{outer}.{inner}"),
    }
}
