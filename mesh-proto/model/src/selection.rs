//! Which policies concern which proxy, and which of its inbounds.

use std::cmp::Reverse;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kinds::dataplane::Inbound,
    labels::{self, Labels},
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
        && section.is_none_or(|section| {
            inbound.name.as_deref() == Some(section) || inbound.port.to_string() == section
        })
}

/// How strong a policy is among those that select the same inbound: the smaller is the weaker, as later fields replace
/// earlier ones. Equal for no two policies of a kind and mesh.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Strength<'a> {
    target: Specificity,
    /// What a zone owns is stronger than what administrators wrote for all.
    zone: &'a str,
    /// The alphabetically first name wins a tie.
    name: Reverse<&'a str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Specificity {
    Mesh,
    Dataplane,
    Section,
}

/// The strength of the policy `meta` with `target`.
#[must_use]
pub fn strength<'a>(target: Option<&TargetRef>, meta: &'a Meta) -> Strength<'a> {
    let specificity = match target {
        Some(target) if target.kind == TargetKind::Dataplane => match target.section_name {
            Some(_) => Specificity::Section,
            None => Specificity::Dataplane,
        },
        _ => Specificity::Mesh,
    };
    Strength {
        target: specificity,
        zone: &meta.zone,
        name: Reverse(&meta.name),
    }
}

/// True where both are in the same mesh, the first step of every selection.
#[must_use]
pub fn same_mesh(a: &Resource, b: &Resource) -> bool {
    a.meta.mesh == b.meta.mesh
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(yaml: &str) -> TargetRef {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn the_more_specific_policy_is_stronger_then_the_zones_then_the_alphabetically_first() {
        let meta = |name: &str, zone: &str| Meta::new("payments", name).in_zone(zone);
        let mesh = target("{kind: Mesh}");
        let dataplane = target("{kind: Dataplane, labels: {app: web}}");
        let section = target("{kind: Dataplane, sectionName: main}");
        let (a, b, zone_b) = (meta("a", ""), meta("b", ""), meta("b", "east"));
        let weakest_first = [
            strength(None, &b),
            strength(Some(&mesh), &a),
            strength(None, &zone_b),
            strength(Some(&dataplane), &b),
            strength(Some(&dataplane), &a),
            strength(Some(&dataplane), &zone_b),
            strength(Some(&section), &b),
        ];
        assert!(weakest_first.is_sorted());
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
