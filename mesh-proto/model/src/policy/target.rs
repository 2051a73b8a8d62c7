//! What `to` entries and backends of routes refer to: services, and routes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{check::Checker, labels::Labels, path};

/// Destinations of outgoing traffic.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToTarget {
    /// What is referred to.
    pub kind: ToKind,
    /// The one of this name; the same as the label `isthmus.io/display-name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// All that have these labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Only the service's port of this name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// What a [`ToTarget`] refers to, the least specific first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum ToKind {
    /// Every destination in the mesh.
    Mesh,
    /// Services.
    MeshService,
    /// Services outside the mesh.
    MeshExternalService,
    /// Services of several zones.
    MeshMultiZoneService,
    /// Routes: the traffic they match.
    #[serde(rename = "MeshHTTPRoute")]
    MeshHttpRoute,
}

impl ToKind {
    /// Every kind.
    pub const ALL: &'static [Self] = &[
        Self::Mesh,
        Self::MeshService,
        Self::MeshExternalService,
        Self::MeshMultiZoneService,
        Self::MeshHttpRoute,
    ];
    /// All that have traffic of their own: no routes.
    pub const WITHOUT_ROUTES: &'static [Self] = &[
        Self::Mesh,
        Self::MeshService,
        Self::MeshExternalService,
        Self::MeshMultiZoneService,
    ];
    /// Only services.
    pub const SERVICES: &'static [Self] = &[
        Self::MeshService,
        Self::MeshExternalService,
        Self::MeshMultiZoneService,
    ];

    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mesh => "Mesh",
            Self::MeshService => "MeshService",
            Self::MeshExternalService => "MeshExternalService",
            Self::MeshMultiZoneService => "MeshMultiZoneService",
            Self::MeshHttpRoute => "MeshHTTPRoute",
        }
    }
}

impl ToTarget {
    /// Every destination in the mesh.
    #[must_use]
    pub fn mesh() -> Self {
        Self {
            kind: ToKind::Mesh,
            name: None,
            labels: Labels::new(),
            section_name: None,
        }
    }

    /// Reports what is wrong; `allowed` is what the kind of policy may refer to.
    pub(crate) fn check(&self, at: &str, allowed: &[ToKind], out: &mut Checker) {
        let kind = self.kind.name();
        if !allowed.contains(&self.kind) {
            let allowed: Vec<&str> = allowed.iter().map(|kind| kind.name()).collect();
            let choice = match allowed.as_slice() {
                [only] => format!("must be {only} here"),
                several => format!("must be one of {} here", several.join(", ")),
            };
            let message = format!("{choice}, not {kind}");
            out.add(format!("{at}.kind"), message);
            return;
        }
        match self.kind {
            ToKind::Mesh => {
                for (field, is_given) in [
                    ("name", self.name.is_some()),
                    ("labels", !self.labels.is_empty()),
                    ("sectionName", self.section_name.is_some()),
                ] {
                    if is_given {
                        let message =
                            "kind Mesh is every destination; write `kind: MeshService` to choose";
                        out.add(format!("{at}.{field}"), message);
                    }
                }
            }
            _ => check_reference(at, kind, self.name.as_deref(), &self.labels, out),
        }
        if let Some(section) = &self.section_name {
            match self.kind {
                ToKind::Mesh => {}
                ToKind::MeshHttpRoute => out.add(
                    format!("{at}.sectionName"),
                    "a route has no ports; leave it out",
                ),
                _ => out.port_name(format!("{at}.sectionName"), section),
            }
        }
    }
}

/// A destination that a route sends traffic to.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// What is referred to.
    pub kind: BackendKind,
    /// The one of this name; the same as the label `isthmus.io/display-name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The one that has these labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Its port. May be left out where the service has a single one; of a MeshMultiZoneService it must be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Its port, by name or number, instead of `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Its share of the traffic, in proportion to the other backends' weights. 0: none.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
}

/// What a [`BackendRef`] refers to.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[allow(missing_docs)] // as their kinds
pub enum BackendKind {
    MeshService,
    MeshExternalService,
    MeshMultiZoneService,
}

impl From<BackendKind> for ToKind {
    fn from(kind: BackendKind) -> Self {
        match kind {
            BackendKind::MeshService => Self::MeshService,
            BackendKind::MeshExternalService => Self::MeshExternalService,
            BackendKind::MeshMultiZoneService => Self::MeshMultiZoneService,
        }
    }
}

fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde wants it so
fn is_one(weight: &u32) -> bool {
    *weight == 1
}

impl BackendRef {
    /// The port, as a number or a name, where one is given.
    #[must_use]
    pub fn section(&self) -> Option<String> {
        self.port
            .map(|port| port.to_string())
            .or_else(|| self.section_name.clone())
    }

    /// Reports what is wrong with it.
    pub fn check(&self, at: &str, out: &mut Checker) {
        let kind = ToKind::from(self.kind).name();
        check_reference(at, kind, self.name.as_deref(), &self.labels, out);
        if let Some(section) = &self.section_name {
            out.port_name(format!("{at}.sectionName"), section);
        }
        match (self.port, &self.section_name) {
            (Some(_), Some(_)) => {
                let message = "give either port or sectionName, not both";
                out.add(format!("{at}.sectionName"), message);
            }
            (None, None) if self.kind == BackendKind::MeshMultiZoneService => {
                out.add(
                    format!("{at}.port"),
                    "is required with a MeshMultiZoneService",
                );
            }
            _ => {}
        }
    }
}

/// A reference names what it means, or says which labels it has.
fn check_reference(at: &str, kind: &str, name: Option<&str>, labels: &Labels, out: &mut Checker) {
    if let Some(name) = name {
        if !mesh_proto::names::is_subdomain(name) {
            let message = format!("{name:?} is not the name of a {kind}");
            out.add(format!("{at}.name"), message);
        }
        if labels.contains_key(crate::labels::DISPLAY_NAME) {
            let at = path::field(&format!("{at}.labels"), crate::labels::DISPLAY_NAME);
            out.add(at, "is what `name` says, too; leave one of them out");
        }
    } else if labels.is_empty() {
        let message = format!(
            "say which {kind}: give its labels, such as `labels: {{isthmus.io/display-name: …}}`, or its name"
        );
        out.add(at, message);
    }
    out.selector(&format!("{at}.labels"), labels);
}
