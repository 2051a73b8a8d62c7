//! Which policies concern which proxy, and which of its inbounds.

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
