//! Which policies concern which proxy, and which of its inbounds.

use std::cmp::Reverse;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kinds::dataplane::Inbound,
    labels::{self, Labels},
    path,
    policy::{Policy, ToKind, ToTarget},
    resource::{Meta, Resource},
};

/// The top of a policy: which proxies carry it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// What is selected.
    pub kind: TargetKind,
    /// Pairs a dataplane must have. None: every dataplane of the mesh.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Only the inbound of this name or port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// What a [`TargetRef`] selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// Every proxy of the mesh.
    Mesh,
    /// Proxies by their labels.
    Dataplane,
}

impl TargetRef {
    pub(crate) fn check(&self, at: &str, out: &mut Checker) {
        match self.kind {
            TargetKind::Mesh => {
                if !self.labels.is_empty() {
                    let message = "kind Mesh selects every proxy; write `kind: Dataplane` to select by labels";
                    out.add(format!("{at}.labels"), message);
                }
                if self.section_name.is_some() {
                    let message =
                        "kind Mesh selects every inbound; write `kind: Dataplane` to select one";
                    out.add(format!("{at}.sectionName"), message);
                }
            }
            TargetKind::Dataplane => {
                out.selector(&format!("{at}.labels"), &self.labels);
                if let Some(section) = &self.section_name {
                    out.port_name(format!("{at}.sectionName"), section);
                }
            }
        }
    }
}

/// True where everything that `inner` selects is selected by `outer`, whichever proxies there are.
pub(crate) fn covers(outer: Option<&TargetRef>, inner: Option<&TargetRef>) -> bool {
    let of_dataplanes = |target: &&TargetRef| target.kind == TargetKind::Dataplane;
    let Some(outer) = outer.filter(of_dataplanes) else {
        return true;
    };
    match inner.filter(of_dataplanes) {
        Some(inner) => {
            labels::matches(&outer.labels, &inner.labels)
                && (outer.section_name.is_none() || outer.section_name == inner.section_name)
        }
        None => outer.labels.is_empty() && outer.section_name.is_none(),
    }
}

/// True where `target` (absent: the whole mesh) selects `dataplane` of the same mesh, at least one inbound of it.
#[must_use]
pub fn selects_dataplane(target: Option<&TargetRef>, dataplane: &Meta) -> bool {
    match target {
        None => true,
        Some(target) => match target.kind {
            TargetKind::Mesh => true,
            TargetKind::Dataplane => labels::matches(&target.labels, &dataplane.labels),
        },
    }
}

/// True where `target` selects this inbound of `dataplane`.
#[must_use]
pub fn selects_inbound(target: Option<&TargetRef>, dataplane: &Meta, inbound: &Inbound) -> bool {
    let section = target.and_then(|target| target.section_name.as_deref());
    selects_dataplane(target, dataplane)
        && section.is_none_or(|section| is_section(inbound, section))
}

/// True where `section` is the name or the port of `inbound`.
pub(crate) fn is_section(inbound: &Inbound, section: &str) -> bool {
    inbound.name.as_deref() == Some(section) || inbound.port.to_string() == section
}

/// True where `policy` may concern `proxy` by what both are, whatever its `targetRef` says: it is of the same mesh; a zone's
/// policy concerns that zone's proxies, and a consumer's or workload owner's those of its own namespace. What a producer
/// says of its own services concerns all who call them.
#[must_use]
pub fn in_reach(policy: &Resource, proxy: &Meta) -> bool {
    Reach::of(policy).contains(proxy) && policy.meta.mesh == proxy.mesh
}

/// Which proxies of a mesh a policy may concern, by where it lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    zone: Option<String>,
    namespace: Option<String>,
}

impl Reach {
    pub(crate) fn of(policy: &Resource) -> Self {
        let meta = &policy.meta;
        let role = role(policy);
        let namespace = match role {
            Role::System | Role::Producer => None,
            Role::Consumer | Role::WorkloadOwner => meta.labels.get(labels::NAMESPACE).cloned(),
        };
        let is_zones = !meta.zone.is_empty() && role != Role::Producer;
        Self {
            zone: is_zones.then(|| meta.zone.clone()),
            namespace,
        }
    }

    pub(crate) fn contains(&self, proxy: &Meta) -> bool {
        let zone = || match proxy.zone.as_str() {
            "" => proxy.labels.get(labels::ZONE),
            _ => Some(&proxy.zone),
        };
        let namespace = || proxy.labels.get(labels::NAMESPACE);
        (self.zone.is_none() || self.zone.as_ref() == zone())
            && (self.namespace.is_none() || self.namespace.as_ref() == namespace())
    }

    /// True where every proxy in the reach of `other` is in this one.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        (self.zone.is_none() || self.zone == other.zone)
            && (self.namespace.is_none() || self.namespace == other.namespace)
    }
}

/// Whose a policy is, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The operators'. Every policy outside a namespace is.
    System,
    /// A service owner's, about calls to its own services.
    Producer,
    /// A caller's, about calls to others' services.
    Consumer,
    /// A workload owner's, about its own proxies.
    WorkloadOwner,
}

impl Role {
    /// The role that the label `isthmus.io/policy-role` means.
    fn of_label(value: &str) -> Option<Self> {
        match value {
            "system" => Some(Self::System),
            "producer" => Some(Self::Producer),
            "consumer" => Some(Self::Consumer),
            "workload-owner" => Some(Self::WorkloadOwner),
            _ => None,
        }
    }
}

/// Reports a role that is none.
pub(crate) fn check_role(meta: &Meta, out: &mut Checker) {
    let given = meta.labels.get(labels::POLICY_ROLE);
    if let Some(role) = given.filter(|role| Role::of_label(role).is_none()) {
        let message =
            format!("must be one of system, producer, consumer, workload-owner, not {role:?}");
        out.add_envelope(path::field("labels", labels::POLICY_ROLE), message);
    }
}

/// Whose `policy` is: as its label `isthmus.io/policy-role` says, else from the namespace it lives in.
///
/// A policy in a namespace is a producer's where each entry of `to` names one service (or route) of that namespace, and of
/// its zone where it has one; otherwise a consumer's. Without `to` it is a workload owner's.
#[must_use]
pub fn role(policy: &Resource) -> Role {
    let meta = &policy.meta;
    let given = meta.labels.get(labels::POLICY_ROLE);
    if let Some(role) = given.and_then(|role| Role::of_label(role)) {
        return role;
    }
    let Some(namespace) = meta.labels.get(labels::NAMESPACE) else {
        return Role::System;
    };
    if SYSTEM_NAMESPACES.contains(&namespace.as_str()) {
        return Role::System;
    }
    let to = policy.policy().map(Policy::to).unwrap_or_default();
    if to.is_empty() {
        return Role::WorkloadOwner;
    }
    let is_own = |target: &ToTarget| {
        let label = |key: &str| target.labels.get(key);
        let is_named = target.name.is_some() || label(labels::DISPLAY_NAME).is_some();
        let of_zone = meta.zone.is_empty() || label(labels::ZONE) == Some(&meta.zone);
        target.kind != ToKind::Mesh
            && is_named
            && label(labels::NAMESPACE) == Some(namespace)
            && of_zone
    };
    if to.iter().all(|entry| is_own(entry.target)) {
        Role::Producer
    } else {
        Role::Consumer
    }
}

/// Namespaces of control planes: policies there are the operators'.
const SYSTEM_NAMESPACES: &[&str] = &["isthmus-system", "kuma-system"];

/// How strong a policy is among those that select the same proxy, but for ties: the smaller is the weaker, as later
/// fields replace earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Strength {
    target: Specificity,
    /// What a zone owns is stronger than what administrators wrote for all.
    is_zones: bool,
    role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Specificity {
    Mesh,
    Dataplane,
    Section,
}

impl Strength {
    /// The strength of `policy`.
    #[must_use]
    pub fn of(policy: &Resource) -> Self {
        let target = policy.policy().and_then(|policy| policy.target_ref());
        let target = match target {
            Some(target) if target.kind == TargetKind::Dataplane => match target.section_name {
                Some(_) => Specificity::Section,
                None => Specificity::Dataplane,
            },
            _ => Specificity::Mesh,
        };
        Self {
            target,
            is_zones: !policy.meta.zone.is_empty(),
            role: role(policy),
        }
    }
}

/// What decides between policies of equal strength: the alphabetically first name is the strongest. Equal for no two
/// policies of a kind and mesh.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tie(Reverse<[String; 3]>);

impl Tie {
    /// The tie-break of the policy `meta`.
    #[must_use]
    pub fn of(meta: &Meta) -> Self {
        let shown = meta.labels.get(labels::DISPLAY_NAME).unwrap_or(&meta.name);
        Self(Reverse([
            shown.clone(),
            meta.name.clone(),
            meta.zone.clone(),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(yaml: &str) -> TargetRef {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn what_a_target_selects() {
        let dataplane = Meta::new("payments", "web-1").with_label("app", "web");
        let inbound = |yaml: &str| -> Inbound { serde_saphyr::from_str(yaml).unwrap() };
        let main = inbound("{name: main, port: 80}");
        let other = inbound("{port: 81}");

        // target, first inbound, second inbound
        for (yaml, first, second) in [
            ("{kind: Mesh}", true, true),
            ("{kind: Dataplane}", true, true),
            ("{kind: Dataplane, labels: {app: web}}", true, true),
            (
                "{kind: Dataplane, labels: {app: web, team: a}}",
                false,
                false,
            ),
            ("{kind: Dataplane, labels: {app: api}}", false, false),
            ("{kind: Dataplane, sectionName: main}", true, false),
            ("{kind: Dataplane, sectionName: '80'}", true, false),
            ("{kind: Dataplane, sectionName: '81'}", false, true),
            ("{kind: Dataplane, sectionName: none}", false, false),
            (
                "{kind: Dataplane, labels: {app: api}, sectionName: main}",
                false,
                false,
            ),
        ] {
            let target = target(yaml);
            assert_eq!(
                selects_inbound(Some(&target), &dataplane, &main),
                first,
                "{yaml}"
            );
            assert_eq!(
                selects_inbound(Some(&target), &dataplane, &other),
                second,
                "{yaml}"
            );
        }
        assert!(selects_inbound(None, &dataplane, &main));
    }
}
