//! `HostnameGenerator`: host names of services.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    hostname,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    labels::Labels,
    resource::Meta,
};

/// A template for the host names of services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostnameGenerator {
    /// Which services: exactly one kind of them.
    #[serde(default)]
    pub selector: HostnameSelector,
    /// The name, with `{{ .DisplayName }}`, `{{ .Name }}`, `{{ .Namespace }}`, `{{ .Mesh }}`, `{{ .Zone }}` and `{{
    /// label "key" }}`.
    pub template: String,
}

/// Which services get a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostnameSelector {
    /// `MeshService`s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_service: Option<NamedServices>,
    /// `MeshExternalService`s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_external_service: Option<NamedServices>,
    /// `MeshMultiZoneService`s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_multi_zone_service: Option<NamedServices>,
}

/// Services by their labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamedServices {
    /// Pairs they must have; absent or empty: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<Labels>,
}

impl Kind for HostnameGenerator {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "HostnameGenerator",
        plural: "hostnamegenerators",
        short: "hg",
        scope: Scope::Global,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    fn validate(&self, _: &Meta, out: &mut Checker) {
        let selectors = [
            ("meshService", &self.selector.mesh_service),
            ("meshExternalService", &self.selector.mesh_external_service),
            ("meshMultiZoneService", &self.selector.mesh_multi_zone_service),
        ];
        let given = selectors.map(|(field, selector)| (field, selector.is_some()));
        out.exactly_one("selector", &given);
        for (field, selector) in selectors {
            if let Some(labels) = selector.as_ref().and_then(|selector| selector.match_labels.as_ref()) {
                out.selector(&format!("selector.{field}.matchLabels"), labels);
            }
        }
        if let Err(message) = hostname::check(&self.template) {
            out.add("template", message);
        }
    }
}
