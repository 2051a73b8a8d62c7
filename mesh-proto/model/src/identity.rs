//! SPIFFE IDs of dataplanes, from the `MeshIdentity`s of their mesh.

use mesh_proto::{
    names::ZoneName,
    spiffe::{InvalidSpiffeId, SpiffeId, TrustDomain},
};

use crate::{
    kinds::{Dataplane, MeshIdentity},
    labels,
    resource::Resource,
    template::{self, Piece},
};

/// Trust domain where a `MeshIdentity` does not say: each zone has its own in each mesh.
pub const DEFAULT_TRUST_DOMAIN: &str = "{{ .Mesh }}.{{ .Zone }}.mesh.local";
/// Path where a `MeshIdentity` does not say.
pub const DEFAULT_PATH: &str = "/workload/{{ .Workload }}";

/// What a template may hold besides labels.
const FIELDS: &[&str] = &["Mesh", "Zone", "Workload"];

/// Why a dataplane has no identity. It then gets no certificate, and nobody can call it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoIdentity {
    /// No `MeshIdentity` of the mesh selects it.
    #[error(
        "no MeshIdentity of mesh {mesh} selects dataplane {dataplane}; create one, for all dataplanes with `selector: {{dataplane: {{matchLabels: {{}}}}}}`"
    )]
    NotSelected {
        /// The mesh.
        mesh: String,
        /// The dataplane's name.
        dataplane: String,
    },
    /// A template does not give a part of a SPIFFE ID.
    #[error("MeshIdentity {identity}: {reason}")]
    Template {
        /// The identity's name.
        identity: String,
        /// Why.
        reason: String,
    },
}

/// What the templates of an identity are filled with.
#[derive(Debug, Clone, Copy)]
struct Subject<'a> {
    mesh: &'a str,
    zone: &'a str,
    // Absent where only a trust domain is made, which does not depend on the dataplane.
    dataplane: Option<&'a Resource>,
}

/// The workload a dataplane is an instance of: its label `isthmus.io/workload`, else `isthmus.io/service`, else its name.
#[must_use]
pub fn workload(dataplane: &Resource) -> &str {
    let labels = &dataplane.meta.labels;
    [labels::WORKLOAD, labels::SERVICE]
        .iter()
        .find_map(|key| labels.get(*key))
        .unwrap_or(&dataplane.meta.name)
}

/// The `MeshIdentity` for `dataplane`, of those among `resources` that are of its mesh: the one whose selector has most
/// labels, then the alphabetically first.
#[must_use]
pub fn select<'a>(resources: &[&'a Resource], dataplane: &Resource) -> Option<&'a Resource> {
    resources
        .iter()
        .copied()
        .filter(|identity| identity.meta.mesh == dataplane.meta.mesh)
        .filter_map(|identity| {
            let selector = identity.get::<MeshIdentity>()?.selector.as_ref()?;
            let wanted = &selector.dataplane.as_ref()?.match_labels;
            labels::matches(wanted, &dataplane.meta.labels).then_some((wanted.len(), identity))
        })
        .min_by_key(|(size, identity)| {
            (
                std::cmp::Reverse(*size),
                &identity.meta.name,
                &identity.meta.zone,
            )
        })
        .map(|(_, identity)| identity)
}

/// The SPIFFE ID of `dataplane` in `zone`.
///
/// # Errors
/// Where no `MeshIdentity` selects it, or a template gives nothing usable.
pub fn spiffe_id(
    resources: &[&Resource],
    dataplane: &Resource,
    zone: &ZoneName,
) -> Result<SpiffeId, NoIdentity> {
    debug_assert!(dataplane.get::<Dataplane>().is_some());
    let identity = select(resources, dataplane).ok_or_else(|| NoIdentity::NotSelected {
        mesh: dataplane.meta.mesh.clone(),
        dataplane: dataplane.meta.name.clone(),
    })?;
    let subject = Subject {
        mesh: &dataplane.meta.mesh,
        zone: zone.as_str(),
        dataplane: Some(dataplane),
    };
    let id = || {
        let trust_domain = render_trust_domain(identity, subject)?;
        let path = render(templates(identity).1, subject)?;
        SpiffeId::new(trust_domain, &path)
            .map_err(|error: InvalidSpiffeId| format!("spec.spiffeID.path gives {path:?}: {error}"))
    };
    id().map_err(|reason| NoIdentity::Template {
        identity: identity.meta.name.clone(),
        reason,
    })
}

/// The trust domain that `identity` gives dataplanes of its mesh in `zone`.
///
/// # Errors
/// Where the template gives nothing usable.
pub fn trust_domain(identity: &Resource, zone: &ZoneName) -> Result<TrustDomain, NoIdentity> {
    let subject = Subject {
        mesh: &identity.meta.mesh,
        zone: zone.as_str(),
        dataplane: None,
    };
    render_trust_domain(identity, subject).map_err(|reason| NoIdentity::Template {
        identity: identity.meta.name.clone(),
        reason,
    })
}

fn render_trust_domain(identity: &Resource, subject: Subject<'_>) -> Result<TrustDomain, String> {
    let text = render(templates(identity).0, subject)?;
    text.parse().map_err(|error: InvalidSpiffeId| {
        format!("spec.spiffeID.trustDomain gives {text:?}: {error}")
    })
}

/// Whether `template` gives each zone its own trust domain in mesh `mesh`.
///
/// It must begin with both, as whole parts: neither can hold a dot, so that no two meshes or zones can come to the same one.
pub(crate) fn check_trust_domain(template: &str, mesh: &str) -> Result<(), String> {
    let text = render(
        template,
        Subject {
            mesh,
            zone: "a-zone",
            dataplane: None,
        },
    )?;
    text.parse::<TrustDomain>()
        .map_err(|error| format!("gives {text:?}: {error}"))?;
    match text.strip_prefix(&format!("{mesh}.a-zone.")) {
        Some(rest) if !rest.is_empty() => Ok(()),
        _ => Err(
            "must begin with \"{{ .Mesh }}.{{ .Zone }}.\": each zone has its own trust domain in each mesh".into(),
        ),
    }
}

/// Whether `template` gives the path of a SPIFFE ID.
pub(crate) fn check_path(template: &str) -> Result<(), String> {
    let mut sample = String::new();
    for piece in template::pieces(template, FIELDS)? {
        match piece {
            Piece::Text(text) => sample.push_str(text),
            Piece::Field(_) | Piece::Label(_) => sample.push('x'),
        }
    }
    if !sample.starts_with('/') {
        return Err("must begin with \"/\"".into());
    }
    format!("spiffe://x{sample}")
        .parse::<SpiffeId>()
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Templates of trust domain and path.
fn templates(identity: &Resource) -> (&str, &str) {
    let spiffe_id = identity
        .get::<MeshIdentity>()
        .and_then(|identity| identity.spiffe_id.as_ref());
    let trust_domain = spiffe_id.and_then(|template| template.trust_domain.as_deref());
    let path = spiffe_id.and_then(|template| template.path.as_deref());
    (
        trust_domain.unwrap_or(DEFAULT_TRUST_DOMAIN),
        path.unwrap_or(DEFAULT_PATH),
    )
}

fn render(template: &str, subject: Subject<'_>) -> Result<String, String> {
    let mut text = String::new();
    for piece in template::pieces(template, FIELDS)? {
        match piece {
            Piece::Text(literal) => text.push_str(literal),
            Piece::Field("Mesh") => text.push_str(subject.mesh),
            Piece::Field("Zone") => text.push_str(subject.zone),
            Piece::Field(_) => {
                let dataplane = subject
                    .dataplane
                    .ok_or("the trust domain can not depend on the dataplane")?;
                text.push_str(workload(dataplane));
            }
            Piece::Label(key) => {
                let dataplane = subject
                    .dataplane
                    .ok_or("the trust domain can not depend on the dataplane")?;
                let value = dataplane.meta.labels.get(&key).ok_or_else(|| {
                    format!("dataplane {} has no label {key}", dataplane.meta.name)
                })?;
                text.push_str(value);
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resources(text: &str) -> Vec<Resource> {
        crate::parse(text, "test").unwrap_or_else(|error| panic!("{error}"))
    }

    fn dataplane(mesh: &str, labels: &str) -> Resource {
        let text = format!(
            "{{type: Dataplane, mesh: {mesh}, name: web-1, labels: {{{labels}}}, networking: {{address: 10.0.0.1}}}}"
        );
        resources(&text).remove(0)
    }

    const IDENTITIES: &str = r#"
type: MeshIdentity
mesh: payments
name: all
spec: {selector: {dataplane: {matchLabels: {}}}, provider: {type: Bundled}}
---
type: MeshIdentity
mesh: payments
name: teams-b
spec:
  selector: {dataplane: {matchLabels: {team: a}}}
  spiffeID: {path: "/b"}
  provider: {type: Bundled}
---
type: MeshIdentity
mesh: payments
name: teams-a
spec:
  selector: {dataplane: {matchLabels: {team: a}}}
  spiffeID:
    trustDomain: "{{ .Mesh }}.{{.Zone}}.example"
    path: '/{{ label "kuma.io/zone" }}/{{ label "team" }}/{{ .Workload }}'
  provider: {type: Bundled}
---
type: MeshIdentity
mesh: payments
name: nobodys
spec: {provider: {type: Bundled}}
---
type: MeshIdentity
mesh: analytics
name: foreign
spec: {selector: {dataplane: {matchLabels: {team: a, app: web}}}, provider: {type: Bundled}}
"#;

    fn id(identities: &[Resource], dataplane: &Resource) -> String {
        let identities: Vec<&Resource> = identities.iter().collect();
        match spiffe_id(&identities, dataplane, &"east".parse().unwrap()) {
            Ok(id) => id.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn identities_by_dataplane() {
        let identities = resources(IDENTITIES);
        for (mesh, labels, expected) in [
            (
                "payments",
                "",
                "spiffe://payments.east.mesh.local/workload/web-1",
            ),
            (
                "payments",
                "isthmus.io/service: web",
                "spiffe://payments.east.mesh.local/workload/web",
            ),
            (
                "payments",
                "isthmus.io/service: web, kuma.io/workload: front",
                "spiffe://payments.east.mesh.local/workload/front",
            ),
            // The most specific selector, and of two equal ones the alphabetically first.
            (
                "payments",
                "team: a, app: web, isthmus.io/zone: z",
                "spiffe://payments.east.example/z/a/web-1",
            ),
            (
                "payments",
                "team: a",
                "MeshIdentity teams-a: dataplane web-1 has no label isthmus.io/zone",
            ),
            (
                "other",
                "",
                "no MeshIdentity of mesh other selects dataplane web-1; create one, for all dataplanes with `selector: {dataplane: {matchLabels: {}}}`",
            ),
        ] {
            assert_eq!(id(&identities, &dataplane(mesh, labels)), expected);
        }
    }

    #[test]
    fn the_initial_identity_is_everybodys() {
        let initial = Resource::new(
            crate::Meta::new("payments", "identity"),
            MeshIdentity::initial(),
        );
        assert_eq!(Resource::from_json(&initial.to_json()), Ok(initial.clone()));
        let zone = "west".parse().unwrap();
        assert_eq!(
            trust_domain(&initial, &zone).unwrap().as_str(),
            "payments.west.mesh.local"
        );
        assert_eq!(
            id(&[initial], &dataplane("payments", "team: a")),
            "spiffe://payments.east.mesh.local/workload/web-1"
        );
    }

    proptest! {
        #[test]
        fn the_order_identities_come_in_does_not_matter(identities in Just(resources(IDENTITIES)).prop_shuffle()) {
            let labels = "team: a, isthmus.io/zone: z";
            prop_assert_eq!(
                id(&identities, &dataplane("payments", labels)),
                "spiffe://payments.east.example/z/a/web-1"
            );
        }

        #[test]
        fn no_template_panics(template in r#"(\{\{|\}\}|label|"|[ ./a-zé]){0,12}"#) {
            let _ = template::pieces(&template, FIELDS);
            let _ = check_trust_domain(&template, "payments");
            let _ = check_path(&template);
        }

        #[test]
        fn no_accepted_trust_domain_is_that_of_two_meshes_or_zones(
            template in r#"(\{\{ \.Mesh \}\}|\{\{ \.Zone \}\}|\.|a|b){2,7}"#,
        ) {
            let domain = |mesh: &str, zone: &str| {
                render(&template, Subject { mesh, zone, dataplane: None })
            };
            if check_trust_domain(&template, "a").is_ok() {
                prop_assert_ne!(domain("a", "b"), domain("a", "a"));
                // Another mesh's accepted template never gives a name that begins with this mesh.
                prop_assert!(domain("a", "b").unwrap().starts_with("a.b."));
            }
        }
    }
}
