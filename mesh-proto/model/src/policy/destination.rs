//! What traffic goes to: real services and their ports, and which references mean them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::target::{BackendRef, ToKind, ToTarget};
use crate::{
    kinds::dataplane::Protocol,
    labels::{self, Labels},
    path,
    resource::{Meta, Resource},
};

/// A service, of whichever kind, with everything that references can name. The same `MeshService` in several zones is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `MeshService`, `MeshExternalService` or `MeshMultiZoneService`.
    pub kind: ToKind,
    /// Its name.
    pub name: String,
    /// Labels of each resource it consists of: one for each zone.
    pub resources: Vec<Labels>,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// Its number.
    pub number: u16,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// What is spoken there, where it is declared.
    pub protocol: Option<Protocol>,
}

impl Port {
    /// A port of which nothing else is known.
    #[must_use]
    pub fn new(number: u16) -> Self {
        Self {
            number,
            name: None,
            protocol: None,
        }
    }

    /// True where it is declared to carry something else than requests of HTTP.
    #[must_use]
    pub fn is_not_http(&self) -> bool {
        self.protocol.is_some_and(|protocol| !protocol.is_http())
    }

    /// True where `section` is its name or number.
    #[must_use]
    pub fn is(&self, section: &str) -> bool {
        self.name.as_deref() == Some(section) || self.number.to_string() == section
    }
}

/// Labels as references see them: with the name, and the zone that owns the resource.
fn seen_labels(meta: &Meta) -> Labels {
    let mut seen = meta.labels.clone();
    let mut default = |key: &str, value: &str| {
        seen.entry(key.to_owned())
            .or_insert_with(|| value.to_owned());
    };
    default(labels::DISPLAY_NAME, &meta.name);
    if !meta.zone.is_empty() {
        default(labels::ZONE, &meta.zone);
    }
    seen
}

impl Service {
    /// The service that `resource` is.
    #[must_use]
    pub fn of(resource: &Resource) -> Option<Self> {
        let kind = ToKind::SERVICES
            .iter()
            .find(|kind| kind.name() == resource.kind().name)?;
        let spec = resource.spec.to_value().unwrap_or_default();
        let listed = spec["ports"].as_array().into_iter().flatten();
        let listed = listed.filter_map(|value| port(value, None));
        // What is outside the mesh is matched at one port, and is TCP where nothing is said.
        let outside = spec.get("match").into_iter();
        let outside = outside.filter_map(|value| port(value, Some(Protocol::Tcp)));
        let ports = listed.chain(outside).collect();
        Some(Self {
            kind: *kind,
            name: resource.meta.name.clone(),
            resources: vec![seen_labels(&resource.meta)],
            ports,
        })
    }

    /// One that is known by its name alone.
    #[must_use]
    pub fn named(kind: ToKind, name: &str) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            resources: Vec::new(),
            ports: Vec::new(),
        }
        .with_resource(&Meta::new("", name))
    }

    /// The same with one more resource that it consists of.
    #[must_use]
    pub fn with_resource(mut self, meta: &Meta) -> Self {
        self.resources.push(seen_labels(meta));
        self
    }

    /// The port that `section` names.
    #[must_use]
    pub fn port(&self, section: &str) -> Option<&Port> {
        self.ports.iter().find(|port| port.is(section))
    }
}

/// The services of a mesh, found by what references say of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Services {
    /// Sorted by kind and name, each once.
    all: Vec<Service>,
    /// Indexes of `all` by kind and display name.
    by_name: BTreeMap<ToKind, BTreeMap<String, Vec<usize>>>,
}

impl Services {
    /// The services among `resources`.
    #[must_use]
    pub fn of<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> Self {
        Self::new(resources.into_iter().filter_map(Service::of))
    }

    /// These services; those of one kind and name together are one, with the ports of all.
    #[must_use]
    pub fn new(services: impl IntoIterator<Item = Service>) -> Self {
        let mut found: Vec<Service> = services.into_iter().collect();
        found.sort_by(|a, b| (a.kind, &a.name, &a.resources).cmp(&(b.kind, &b.name, &b.resources)));
        let mut all: Vec<Service> = Vec::new();
        for service in found {
            match all.last_mut() {
                Some(last) if (last.kind, &last.name) == (service.kind, &service.name) => {
                    last.resources.extend(service.resources);
                    last.ports.extend(service.ports);
                }
                _ => all.push(service),
            }
        }
        let mut by_name: BTreeMap<ToKind, BTreeMap<String, Vec<usize>>> = BTreeMap::new();
        for (index, service) in all.iter_mut().enumerate() {
            service.ports.sort();
            service.ports.dedup();
            let shown = service.resources.iter();
            let mut shown: Vec<_> = shown.filter_map(|l| l.get(labels::DISPLAY_NAME)).collect();
            shown.sort();
            shown.dedup();
            for name in shown {
                let of_kind = by_name.entry(service.kind).or_default();
                of_kind.entry(name.clone()).or_default().push(index);
            }
        }
        Self { all, by_name }
    }

    /// All of them, sorted by kind and name.
    pub fn iter(&self) -> impl Iterator<Item = &Service> {
        self.all.iter()
    }

    /// The service of this kind and name.
    #[must_use]
    pub fn get(&self, kind: ToKind, name: &str) -> Option<&Service> {
        let key = |service: &Service| (service.kind, service.name.as_str()).cmp(&(kind, name));
        let index = self.all.binary_search_by(key).ok()?;
        self.all.get(index)
    }

    /// Those that a reference means, sorted: one resource of each fits it.
    fn meant(
        &self,
        kind: ToKind,
        name: Option<&str>,
        wanted: &Labels,
    ) -> impl Iterator<Item = &Service> {
        let shown = name.or_else(|| wanted.get(labels::DISPLAY_NAME).map(String::as_str));
        let candidates = match shown {
            Some(shown) => {
                let named = self.by_name.get(&kind).and_then(|names| names.get(shown));
                named.cloned().unwrap_or_default()
            }
            None => (0..self.all.len()).collect(),
        };
        let candidates = candidates.into_iter().map(|index| &self.all[index]);
        candidates.filter(move |service| {
            let mut resources = service.resources.iter();
            service.kind == kind && resources.any(|labels| has(labels, name, wanted))
        })
    }
}

fn port(value: &Value, undeclared: Option<Protocol>) -> Option<Port> {
    let number = value.get("port")?.as_u64()?;
    Some(Port {
        number: u16::try_from(number).ok()?,
        name: value.get("name").and_then(Value::as_str).map(str::to_owned),
        protocol: match value.get("appProtocol").or(value.get("protocol")) {
            Some(protocol) => Protocol::deserialize(protocol).ok(),
            None => undeclared,
        },
    })
}

/// Where outgoing traffic goes, as `to` entries are looked up for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    kind: ToKind,
    resources: Vec<Labels>,
    port: Option<Port>,
    route: Option<Labels>,
}

impl Destination {
    /// A service, without regard to a port.
    #[must_use]
    pub fn new(service: &Service) -> Self {
        Self {
            kind: service.kind,
            resources: service.resources.clone(),
            port: None,
            route: None,
        }
    }

    /// The same at one port.
    #[must_use]
    pub fn at(mut self, port: &Port) -> Self {
        self.port = Some(port.clone());
        self
    }

    /// The same in one zone only.
    #[must_use]
    pub fn in_zone(mut self, zone: &str) -> Self {
        let is_there = |labels: &Labels| labels.get(labels::ZONE).is_some_and(|z| z == zone);
        self.resources.retain(is_there);
        self
    }

    /// The same for the traffic that a `MeshHTTPRoute` matches.
    #[must_use]
    pub fn by_route(mut self, route: &Meta) -> Self {
        self.route = Some(seen_labels(route));
        self
    }

    /// True where `target` means it, its service, or the whole mesh. What consists of several resources is meant where
    /// each of them is.
    #[must_use]
    pub fn is_meant_by(&self, target: &ToTarget) -> bool {
        match target.kind {
            ToKind::Mesh => true,
            ToKind::MeshHttpRoute => {
                let route = self.route.as_ref();
                route.is_some_and(|labels| has(labels, target.name.as_deref(), &target.labels))
            }
            kind => {
                kind == self.kind
                    && !self.resources.is_empty()
                    && self
                        .resources
                        .iter()
                        .all(|labels| has(labels, target.name.as_deref(), &target.labels))
                    && target.section_name.as_deref().is_none_or(|section| {
                        self.port.as_ref().is_some_and(|port| port.is(section))
                    })
            }
        }
    }

    /// The names by which targets may mean it: kind and display name.
    pub(crate) fn names(&self) -> impl Iterator<Item = (ToKind, &str)> {
        let service = self.resources.first().map(|labels| (self.kind, labels));
        let route = self
            .route
            .as_ref()
            .map(|labels| (ToKind::MeshHttpRoute, labels));
        let named = service.into_iter().chain(route);
        named.filter_map(|(kind, labels)| Some((kind, labels.get(labels::DISPLAY_NAME)?.as_str())))
    }
}

fn has(labels: &Labels, name: Option<&str>, wanted: &Labels) -> bool {
    let is_named = |name| labels.get(labels::DISPLAY_NAME).is_some_and(|n| n == name);
    name.is_none_or(is_named) && labels::matches(wanted, labels)
}

/// Why a reference means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// No service is meant.
    #[error("no such service")]
    NoSuchService,
    /// The service has no such port.
    #[error("the service has no such port")]
    NoSuchPort,
    /// None of the service's ports is named, and it has more than one.
    #[error("the service has several ports, and none is named")]
    SeveralPorts,
}

impl Unresolved {
    /// The reason of a condition.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoSuchService => "NoSuchService",
            Self::NoSuchPort => "NoSuchPort",
            Self::SeveralPorts => "SeveralPorts",
        }
    }
}

/// What a backend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend<'a> {
    /// The service.
    pub service: &'a Service,
    /// Its port. Absent only for a service whose ports are not known.
    pub port: Option<&'a Port>,
    /// Only in this zone.
    pub zone: Option<&'a str>,
}

impl BackendRef {
    /// The service and port that it means. Where it means several services, it is the alphabetically first.
    ///
    /// # Errors
    /// Nothing is meant. Traffic for it fails, and goes nowhere else.
    pub fn resolve<'a>(&'a self, services: &'a Services) -> Result<Backend<'a>, Unresolved> {
        let service = services
            .meant(self.kind.into(), self.name.as_deref(), &self.labels)
            .next()
            .ok_or(Unresolved::NoSuchService)?;
        let port = match self.section() {
            Some(section) => Some(service.port(&section).ok_or(Unresolved::NoSuchPort)?),
            None => match service.ports.as_slice() {
                [] => None,
                [only] => Some(only),
                _ => return Err(Unresolved::SeveralPorts),
            },
        };
        Ok(Backend {
            service,
            port,
            zone: self.labels.get(labels::ZONE).map(String::as_str),
        })
    }
}

/// Every `backendRef` and every item of `backendRefs` in `spec`, which stands at `prefix`, that refers to a service; each
/// with its field.
pub(crate) fn backend_refs(spec: &Value, prefix: &str) -> Vec<(String, BackendRef)> {
    let mut found = Vec::new();
    collect_backend_refs(spec, prefix, &mut found);
    found
}

fn collect_backend_refs(value: &Value, at: &str, found: &mut Vec<(String, BackendRef)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let at = path::field(at, name);
                match (name.as_str(), value) {
                    ("backendRef", value) => found.extend(backend_ref(value, at)),
                    ("backendRefs", Value::Array(items)) => {
                        let items = items.iter().enumerate();
                        found.extend(
                            items.filter_map(|(index, item)| {
                                backend_ref(item, path::item(&at, index))
                            }),
                        );
                    }
                    _ => collect_backend_refs(value, &at, found),
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                collect_backend_refs(item, &path::item(at, index), found);
            }
        }
        _ => {}
    }
}

/// What is no service (a collector of telemetry, say) does not read as a reference to one.
fn backend_ref(value: &Value, at: String) -> Option<(String, BackendRef)> {
    Some((at, BackendRef::deserialize(value).ok()?))
}

/// Whether `target` means one of `services`.
pub(crate) fn resolve_target(target: &ToTarget, services: &Services) -> Result<(), Unresolved> {
    let mut meant = services
        .meant(target.kind, target.name.as_deref(), &target.labels)
        .peekable();
    if meant.peek().is_none() {
        return Err(Unresolved::NoSuchService);
    }
    match &target.section_name {
        Some(section) if !meant.any(|service| service.port(section).is_some()) => {
            Err(Unresolved::NoSuchPort)
        }
        _ => Ok(()),
    }
}

/// What is spoken at the ports that `target` means, where it is known that no port takes requests of HTTP.
pub(crate) fn without_http(target: &ToTarget, services: &Services) -> Option<Vec<Protocol>> {
    let meant = services.meant(target.kind, target.name.as_deref(), &target.labels);
    let mut spoken = Vec::new();
    for port in meant.flat_map(|service| &service.ports) {
        let section = target.section_name.as_deref();
        if section.is_some_and(|section| !port.is(section)) {
            continue;
        }
        spoken.extend(port.protocol);
        if !port.is_not_http() {
            return None;
        }
    }
    spoken.sort();
    spoken.dedup();
    (!spoken.is_empty()).then_some(spoken)
}

/// True where the route `meta` is meant by `target`.
pub(crate) fn means_route(target: &ToTarget, meta: &Meta) -> bool {
    has(&seen_labels(meta), target.name.as_deref(), &target.labels)
}
