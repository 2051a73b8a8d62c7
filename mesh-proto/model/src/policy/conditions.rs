//! What became of resources, where that is worth saying: references to what does not exist, policies that select nothing or
//! say nothing, and conflicts that one side lost.
//!
//! | type | status | reason | about |
//! | --- | --- | --- | --- |
//! | `ResolvedRefs` | false | `NoSuchService`, `NoSuchPort`, `SeveralPorts`, `NoSuchRoute` | a field that refers to nothing, or to one of several |
//! | `ResolvedRefs` | false | `NotHTTP` | a backend of HTTP requests that takes none |
//! | `Effective` | false | `SelectsNothing`, `SaysNothing` | a policy without effect |
//! | `Effective` | false | `NotHTTP` | what is said of HTTP requests to ports that are declared to take none |
//! | `Conflicted` | true | `Shadowed` | a field that never takes effect, because a stronger policy says it wherever this one does |
//! | `Conflicted` | true | `WinsByName` | the other side, where only the names decide |

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{
    ListMerge, PolicyShape, SpiffeIdMatch, ToKind, ToTarget,
    destination::{
        Port, Services, Unresolved, backend_refs, means_route, resolve_target, without_http,
    },
};
use crate::{
    api::{Condition, Key},
    kinds::{Dataplane, MeshHTTPRoute, dataplane::Protocol},
    labels, path,
    resource::Resource,
    selection::{self, Reach, Strength, TargetRef, Tie},
};

/// What is known beside the resources themselves. What is not known is not judged by.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    /// All services of the mesh that can be called.
    pub services: Option<&'a Services>,
    /// All dataplanes of the mesh: their resources.
    pub dataplanes: Option<&'a [&'a Resource]>,
}

/// Conditions of `resources`, which are of one mesh; sorted. The order of `resources` does not matter.
#[must_use]
pub fn conditions(resources: &[&Resource], known: Known<'_>) -> Vec<Condition> {
    let mut found = Vec::new();
    for resource in resources {
        let mut of = OfResource {
            resource,
            found: &mut found,
        };
        of.references(resources, known.services);
        of.requests(known.services);
        if resource.policy().is_some() {
            of.effect(known.dataplanes);
        }
    }
    conflicts(resources, &mut found);
    found.sort();
    found.dedup();
    found
}

/// Gathers the conditions of one resource.
struct OfResource<'a> {
    resource: &'a Resource,
    found: &'a mut Vec<Condition>,
}

impl OfResource<'_> {
    fn add(&mut self, kind: &str, reason: &str, field: &str, message: String) {
        self.found
            .push(condition(self.resource, kind, reason, field, message));
    }

    /// Reports references to nothing.
    fn references(&mut self, resources: &[&Resource], services: Option<&Services>) {
        let to = self.resource.policy().map(|policy| policy.to());
        for (index, entry) in to.unwrap_or_default().iter().enumerate() {
            let field = format!("spec.to[{index}].targetRef");
            let target = entry.target;
            match (target.kind, services) {
                (ToKind::Mesh, _) => {}
                (ToKind::MeshHttpRoute, _) => {
                    let is_meant = |route: &&Resource| {
                        route.kind().name == ToKind::MeshHttpRoute.name()
                            && means_route(target, &route.meta)
                    };
                    if !resources.iter().any(is_meant) {
                        let message =
                            format!("there is no {}: this entry has no effect", shown(target));
                        self.add("ResolvedRefs", "NoSuchRoute", &field, message);
                    }
                }
                (_, None) => {}
                (_, Some(services)) => {
                    if let Err(unresolved) = resolve_target(target, services) {
                        let message = format!(
                            "there is no {}: this entry has no effect",
                            what(unresolved, &shown(target), target.section_name.as_deref())
                        );
                        self.add("ResolvedRefs", unresolved.reason(), &field, message);
                    }
                }
            }
        }
        let Some(services) = services else { return };
        let may_refer =
            self.resource.policy().is_some() || self.resource.get::<Dataplane>().is_some();
        if !may_refer {
            return;
        }
        let spec = self.resource.spec.to_value().unwrap_or_default();
        let prefix = if self.resource.kind().spec_field {
            "spec"
        } else {
            ""
        };
        let of_requests = self.resource.get::<MeshHTTPRoute>().is_some();
        for (field, reference) in backend_refs(&spec, prefix) {
            let section = reference.section();
            let target = ToTarget {
                kind: reference.kind.into(),
                name: reference.name.clone(),
                labels: reference.labels.clone(),
                section_name: section.clone(),
            };
            match reference.resolve(services) {
                Err(unresolved) => {
                    let shown = shown(&target);
                    let message = match unresolved {
                        Unresolved::SeveralPorts => format!(
                            "{shown} has several ports, and none is named: traffic for it fails"
                        ),
                        _ => format!(
                            "there is no {}: traffic for it fails",
                            what(unresolved, &shown, section.as_deref())
                        ),
                    };
                    self.add("ResolvedRefs", unresolved.reason(), &field, message);
                }
                Ok(found) if of_requests && found.port.is_some_and(Port::is_not_http) => {
                    let message = format!(
                        "{}: requests for it fail",
                        takes_none(
                            &target,
                            &found
                                .port
                                .and_then(|p| p.protocol)
                                .into_iter()
                                .collect::<Vec<_>>()
                        )
                    );
                    self.add("ResolvedRefs", NOT_HTTP, &field, message);
                }
                Ok(_) => {}
            }
        }
    }

    /// Reports what is said of HTTP requests to services that are declared to take none.
    fn requests(&mut self, services: Option<&Services>) {
        let (Some(policy), Some(services)) = (self.resource.policy(), services) else {
            return;
        };
        let is_route = self.resource.get::<MeshHTTPRoute>().is_some();
        for (index, entry) in policy.to().iter().enumerate() {
            let field = match is_route {
                true => format!("spec.to[{index}].targetRef"),
                false if entry.default.get("http").is_some() => {
                    format!("spec.to[{index}].default.http")
                }
                false => continue,
            };
            if let Some(spoken) = without_http(entry.target, services) {
                let message = format!("{}: this has no effect", takes_none(entry.target, &spoken));
                self.add("Effective", NOT_HTTP, &field, message);
            }
        }
    }

    /// Reports a policy that has no effect on any proxy.
    fn effect(&mut self, dataplanes: Option<&[&Resource]>) {
        let Some(policy) = self.resource.policy() else {
            return;
        };
        let is_empty = |value: &Value| value.as_object().is_none_or(Map::is_empty);
        let says = policy.to().iter().any(|entry| !is_empty(&entry.default))
            || policy.rules().iter().any(|rule| !is_empty(&rule.default))
            || policy.proxy().is_some_and(|default| !is_empty(&default));
        if !says {
            let message = "this policy says nothing: it has no entries, or they are empty";
            self.add("Effective", "SaysNothing", "", message.to_owned());
        }
        let Some(dataplanes) = dataplanes else { return };
        let target = policy.target_ref();
        let reached = || {
            dataplanes
                .iter()
                .filter(|dataplane| selection::in_reach(self.resource, &dataplane.meta))
        };
        let selected = reached()
            .filter(|dataplane| selection::selects_dataplane(target, &dataplane.meta))
            .collect::<Vec<_>>();
        let message = if reached().next().is_none() {
            "there is no dataplane that this policy can concern".to_owned()
        } else if selected.is_empty() {
            let labels = target
                .map(|target| label_list(&target.labels))
                .unwrap_or_default();
            format!("no dataplane has the labels {labels}")
        } else {
            let section = target.and_then(|target| target.section_name.as_deref());
            let Some(section) = section else { return };
            let has_it = |dataplane: &&&Resource| {
                let inbounds = dataplane.get::<Dataplane>().map(|d| &d.networking.inbound);
                let mut inbounds = inbounds.into_iter().flatten();
                inbounds.any(|inbound| selection::is_section(inbound, section))
            };
            if selected.iter().any(has_it) {
                return;
            }
            format!("no dataplane it selects has an inbound {section}")
        };
        self.add("Effective", "SelectsNothing", "spec.targetRef", message);
    }
}

fn condition(
    resource: &Resource,
    kind: &str,
    reason: &str,
    field: &str,
    message: String,
) -> Condition {
    Condition {
        key: Key::from(resource.key()),
        kind: kind.to_owned(),
        status: kind == "Conflicted",
        reason: reason.to_owned(),
        message,
        field: field.to_owned(),
        zone: String::new(),
    }
}

const NOT_HTTP: &str = "NotHTTP";

/// `port 80 of MeshService store is tcp and takes no HTTP requests`
fn takes_none(target: &ToTarget, spoken: &[Protocol]) -> String {
    let words: Vec<String> = spoken
        .iter()
        .map(|p| format!("{p:?}").to_lowercase())
        .collect();
    let section = target.section_name.as_deref();
    let named = what(Unresolved::NoSuchPort, &shown(target), section);
    let spoken = words.join(" and ");
    format!("{named} is declared as {spoken} and takes no HTTP requests")
}

/// `MeshService store`, `port 80 of MeshService store`
fn what(unresolved: Unresolved, service: &str, section: Option<&str>) -> String {
    match (unresolved, section) {
        (Unresolved::NoSuchPort, Some(section)) => format!("port {section} of {service}"),
        _ => service.to_owned(),
    }
}

/// `MeshService store`, `MeshService with team=a`
fn shown(target: &ToTarget) -> String {
    let kind = target.kind.name();
    let mut labels = target.labels.clone();
    let name = labels.remove(labels::DISPLAY_NAME).or(target.name.clone());
    match (name, labels.is_empty()) {
        (Some(name), true) => format!("{kind} {name}"),
        (Some(name), false) => format!("{kind} {name} with {}", label_list(&labels)),
        (None, _) => format!("{kind} with {}", label_list(&labels)),
    }
}

fn label_list(labels: &labels::Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(", ")
}

/// One entry of a policy, as far as conflicts are about it.
struct Said<'a> {
    resource: &'a Resource,
    top: Option<&'a TargetRef>,
    reach: Reach,
    about: About,
    strength: (Strength, Inner),
    tie: (Tie, usize),
    /// `spec.to[0].default`
    field: String,
    /// Leaves by an identity that is the same in every policy: the path inside `default` as it is written, and the value.
    leaves: BTreeMap<String, (String, Value)>,
}

/// What decides between a policy's strength and the tie-break.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Inner {
    kind: Option<ToKind>,
    section: bool,
}

/// Which traffic an entry is about.
enum About {
    /// The name, where it is given as one, is among the labels.
    To(ToTarget),
    /// Callers; none: everyone.
    Rules(Vec<SpiffeIdMatch>),
    Proxy,
}

impl About {
    /// The name of the destinations, where it gives one.
    fn name(&self) -> Option<&str> {
        match self {
            Self::To(target) => target.labels.get(labels::DISPLAY_NAME).map(String::as_str),
            Self::Rules(_) | Self::Proxy => None,
        }
    }

    /// True where everything that `other` is about, this is.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::To(outer), Self::To(inner)) => {
                outer.kind == ToKind::Mesh
                    || outer.kind == inner.kind
                        && labels::matches(&outer.labels, &inner.labels)
                        && (outer.section_name.is_none()
                            || outer.section_name == inner.section_name)
            }
            // A more specific match is stronger, so only the same one can cover and be stronger.
            (Self::Rules(outer), Self::Rules(inner)) if inner.is_empty() => outer.is_empty(),
            (Self::Rules(outer), Self::Rules(inner)) => {
                inner.iter().all(|callers| outer.contains(callers))
            }
            (Self::Proxy, Self::Proxy) => true,
            _ => false,
        }
    }
}

/// The target with its name among its labels.
fn by_labels(target: &ToTarget) -> ToTarget {
    let mut target = target.clone();
    if let Some(name) = target.name.take() {
        target.labels.insert(labels::DISPLAY_NAME.to_owned(), name);
    }
    target
}

/// Reports fields that never take effect, because a stronger entry says something else wherever they would.
fn conflicts(resources: &[&Resource], found: &mut Vec<Condition>) {
    let mut kinds: BTreeMap<&str, Vec<Said<'_>>> = BTreeMap::new();
    for resource in resources {
        let Some(shape) = resource.kind().policy() else {
            continue;
        };
        let said = kinds.entry(resource.kind().name).or_default();
        said.extend(all_said(resource, shape));
    }
    for said in kinds.into_values() {
        // Who says a field about the destinations of a name, so that only entries that can meet are compared.
        let mut sayers: BTreeMap<&str, Sayers<'_>> = BTreeMap::new();
        for entry in &said {
            for leaf in entry.leaves.keys() {
                let sayers = sayers.entry(leaf).or_default();
                sayers.entry(entry.about.name()).or_default().push(entry);
            }
        }
        for (leaf, sayers) in sayers {
            for weak in sayers.values().flatten() {
                // What covers a named destination is about it by its name, or without a name.
                let names: BTreeSet<Option<&str>> = [None, weak.about.name()].into();
                let others = names.iter().filter_map(|name| sayers.get(name)).flatten();
                conflict_about(leaf, weak, others.copied(), found);
            }
        }
    }
}

/// Entries by the name of the destinations that they are about.
type Sayers<'a> = BTreeMap<Option<&'a str>, Vec<&'a Said<'a>>>;

/// Reports that `weak` loses the field `leaf` to one of `others`, where it does.
fn conflict_about<'a>(
    leaf: &str,
    weak: &Said<'_>,
    others: impl Iterator<Item = &'a Said<'a>>,
    found: &mut Vec<Condition>,
) {
    let (path, value) = &weak.leaves[leaf];
    let shadowing = others.filter(|strong| {
        (&strong.strength, &strong.tie) > (&weak.strength, &weak.tie)
            && selection::covers(strong.top, weak.top)
            && strong.reach.covers(&weak.reach)
            && strong.about.covers(&weak.about)
    });
    let strongest = shadowing.max_by_key(|strong| (&strong.strength, &strong.tie));
    let Some(strong) = strongest else { return };
    let (strong_path, strong_value) = &strong.leaves[leaf];
    // Who says the same has lost nothing.
    if strong_value == value {
        return;
    }
    let by_name = strong.strength == weak.strength;
    let why = match (strong.resource.key() == weak.resource.key(), by_name) {
        (true, _) => "a later entry of the same policy replaces an earlier one",
        (false, true) => "it wins because its name is alphabetically first",
        (false, false) => "it is stronger",
    };
    let message = format!(
        "has no effect: {} says {} wherever this policy applies, and {why}",
        named(strong, strong_path),
        text(strong_value),
    );
    let field = join(&weak.field, path);
    found.push(condition(
        weak.resource,
        "Conflicted",
        "Shadowed",
        &field,
        message,
    ));
    if by_name && strong.resource.key() != weak.resource.key() {
        let message = format!(
            "{} says {} for the same traffic; this policy wins because its name is alphabetically first",
            named(weak, path),
            text(value),
        );
        let field = join(&strong.field, strong_path);
        found.push(condition(
            strong.resource,
            "Conflicted",
            "WinsByName",
            &field,
            message,
        ));
    }
}

fn join(field: &str, path: &str) -> String {
    if path.is_empty() || path.starts_with('[') {
        format!("{field}{path}")
    } else {
        format!("{field}.{path}")
    }
}

/// `spec.to[0].default.idleTimeout of MeshTimeout fast`
fn named(said: &Said<'_>, path: &str) -> String {
    let meta = &said.resource.meta;
    let of_zone = match meta.zone.as_str() {
        "" => String::new(),
        zone => format!(" of zone {zone}"),
    };
    format!(
        "{} of {} {}{of_zone}",
        join(&said.field, path),
        said.resource.kind().name,
        meta.name
    )
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn all_said<'a>(resource: &'a Resource, shape: &PolicyShape) -> Vec<Said<'a>> {
    let Some(policy) = resource.policy() else {
        return Vec::new();
    };
    let strength = Strength::of(resource);
    let tie = Tie::of(&resource.meta);
    let reach = Reach::of(resource);
    let said = |about: About, index: usize, field: String, default: &Value| {
        let inner = match &about {
            About::To(target) => Inner {
                kind: Some(target.kind),
                section: target.section_name.is_some(),
            },
            About::Rules(_) | About::Proxy => Inner {
                kind: None,
                section: false,
            },
        };
        let mut leaves = BTreeMap::new();
        collect(default, "", "", "", shape, &mut leaves);
        Said {
            resource,
            top: policy.target_ref(),
            reach: reach.clone(),
            about,
            strength: (strength, inner),
            tie: (tie.clone(), index),
            field,
            leaves,
        }
    };
    let mut all = Vec::new();
    for (index, entry) in policy.to().into_iter().enumerate() {
        let field = join(&format!("spec.to[{index}]"), entry.at);
        all.push(said(
            About::To(by_labels(entry.target)),
            index,
            field,
            &entry.default,
        ));
    }
    for (index, rule) in policy.rules().into_iter().enumerate() {
        let field = format!("spec.rules[{index}].default");
        let callers = rule.matches.iter().map(|entry| entry.spiffe_id.clone());
        all.push(said(
            About::Rules(callers.collect()),
            index,
            field,
            &rule.default,
        ));
    }
    if let Some(default) = policy.proxy() {
        all.push(said(About::Proxy, 0, "spec.default".to_owned(), &default));
    }
    all
}

/// Collects leaves that can be in conflict. Items of appending lists never are; an item of a keyed list is known by its key.
fn collect(
    value: &Value,
    path: &str,
    declared: &str,
    identity: &str,
    shape: &PolicyShape,
    leaves: &mut BTreeMap<String, (String, Value)>,
) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let path = path::field(path, name);
                let declared = path::field(declared, name);
                let identity = format!("{identity}.{name}");
                collect(inner, &path, &declared, &identity, shape, leaves);
            }
        }
        Value::Array(items) => match shape.lists.iter().find(|(list, _)| *list == declared) {
            Some((_, ListMerge::Append)) => {}
            Some((_, ListMerge::Keyed(key))) => {
                for (index, item) in items.iter().enumerate() {
                    let path = path::item(path, index);
                    let known_by = item.get(key).unwrap_or(&Value::Null);
                    let identity = format!("{identity}[{known_by}]");
                    let mut rest = item.clone();
                    if let Value::Object(fields) = &mut rest {
                        fields.remove(*key);
                    }
                    collect(&rest, &path, declared, &identity, shape, leaves);
                }
            }
            None => {
                leaves.insert(identity.to_owned(), (path.to_owned(), value.clone()));
            }
        },
        scalar => {
            leaves.insert(identity.to_owned(), (path.to_owned(), scalar.clone()));
        }
    }
}
