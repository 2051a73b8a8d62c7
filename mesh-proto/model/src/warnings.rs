//! What is accepted but may not do what its author expects, in words.

use crate::{
    enforced,
    kinds::{Dataplane, MeshHTTPRoute, MeshIdentity, MeshService, MeshTrafficPermission},
    policy::{EVERYONE, MatchForm, SpiffeIdMatch},
    resource::Resource,
};

/// Warnings about `resource`, each naming it and the field.
#[must_use]
pub fn warnings(resource: &Resource) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(permission) = resource.get::<MeshTrafficPermission>() {
        of_permission(permission, &mut warnings);
    }
    if let Some(service) = resource.get::<MeshService>() {
        of_service(service, &mut warnings);
    }
    if let Some(identity) = resource.get::<MeshIdentity>() {
        of_identity(identity, &mut warnings);
    }
    if let Some(dataplane) = resource.get::<Dataplane>()
        && dataplane.networking.admin.is_some()
    {
        warnings.push("networking.admin: is ignored; the admin port is a Unix socket".into());
    }
    if let Some(route) = resource.get::<MeshHTTPRoute>() {
        of_route(route, &mut warnings);
    }
    warnings.extend(enforced::warnings(resource));
    let key = resource.key();
    warnings
        .iter()
        .map(|text| format!("{key}: {text}"))
        .collect()
}

fn of_permission(permission: &MeshTrafficPermission, warnings: &mut Vec<String>) {
    if permission.rules.is_empty() {
        warnings.push("spec.rules: this permission has no effect: there are no rules".into());
    }
    for (index, rule) in permission.rules.iter().enumerate() {
        let path = format!("spec.rules[{index}].default");
        let lists = rule.default.lists();
        if lists.iter().all(|(_, list)| list.is_empty()) {
            warnings.push(format!(
                "{path}: this rule has no effect: all lists are empty"
            ));
        }
        for (field, list) in lists {
            for (at, entry) in list.iter().enumerate() {
                let path = format!("{path}.{field}[{at}].spiffeID");
                if let Some(warning) = of_match(field, &entry.spiffe_id) {
                    warnings.push(format!("{path}: {warning}"));
                }
            }
        }
    }
}

fn of_match(field: &str, spiffe_id: &SpiffeIdMatch) -> Option<String> {
    if spiffe_id.is_everyone() {
        let effect = match field {
            "deny" => "this denies everyone, whatever else is allowed",
            "allow" => "this allows everyone",
            _ => "this allows everyone, and records everyone as denied",
        };
        return Some(effect.to_owned());
    }
    let domain = spiffe_id.value.strip_prefix(EVERYONE)?;
    let open = spiffe_id.form == MatchForm::Prefix && !domain.contains('/');
    open.then(|| {
        format!(
            "this matches every trust domain that begins with {domain:?}; end it with '/' to mean one"
        )
    })
}

fn of_route(route: &MeshHTTPRoute, warnings: &mut Vec<String>) {
    for (index, entry) in route.to.iter().enumerate() {
        for (rule_index, rule) in entry.rules.iter().enumerate() {
            for path in rule.beside_redirect() {
                warnings.push(format!(
                    "spec.to[{index}].rules[{rule_index}].{path}: has no effect: the requests are redirected"
                ));
            }
        }
    }
}

fn of_service(service: &MeshService, warnings: &mut Vec<String>) {
    let selector = service.selector.as_ref();
    match selector.map(|s| (&s.dataplane_labels, &s.dataplane_ref)) {
        None | Some((None, None)) => {
            warnings.push("spec.selector: this service selects no dataplane".into());
        }
        Some((Some(by_labels), None)) if by_labels.match_labels.is_empty() => {
            warnings.push("spec.selector: this service selects every dataplane of the mesh".into());
        }
        Some(_) => {}
    }
    if service.ports.is_empty() {
        warnings.push("spec.ports: nobody can call this service: it has no ports".into());
    }
}

fn of_identity(identity: &MeshIdentity, warnings: &mut Vec<String>) {
    let selector = identity.selector.as_ref();
    if selector.is_none_or(|selector| selector.dataplane.is_none()) {
        warnings.push(
            "spec.selector: this identity is nobody's; all dataplanes are `dataplane: {matchLabels: {}}`".into(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let resources = crate::parse(text, "test").unwrap_or_else(|error| panic!("{error}"));
        let found: Vec<String> = resources.iter().flat_map(warnings).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_permission_for_everyone_is_said_in_words() {
        check(
            r#"
type: MeshTrafficPermission
mesh: payments
name: p
spec:
  rules:
    - default:
        allow: [{spiffeID: {type: Prefix, value: "spiffe://"}}]
        deny: [{spiffeID: {type: Prefix, value: "spiffe://"}}]
        allowWithShadowDeny: [{spiffeID: {type: Prefix, value: "spiffe://"}}]
"#,
            &[
                "MeshTrafficPermission p in mesh payments: spec.rules[0].default.deny[0].spiffeID: this denies everyone, whatever else is allowed",
                "MeshTrafficPermission p in mesh payments: spec.rules[0].default.allowWithShadowDeny[0].spiffeID: this allows everyone, and records everyone as denied",
                "MeshTrafficPermission p in mesh payments: spec.rules[0].default.allow[0].spiffeID: this allows everyone",
            ],
        );
    }

    #[test]
    fn a_permission_without_effect_is_said_in_words() {
        check(
            r#"
type: MeshTrafficPermission
mesh: payments
name: absent
spec: {}
---
type: MeshTrafficPermission
mesh: payments
name: none
spec: {rules: []}
---
type: MeshTrafficPermission
mesh: payments
name: empty
spec: {rules: [{default: {}}, {default: {allow: [], deny: []}}]}
"#,
            &[
                "MeshTrafficPermission absent in mesh payments: spec.rules: this permission has no effect: there are no rules",
                "MeshTrafficPermission none in mesh payments: spec.rules: this permission has no effect: there are no rules",
                "MeshTrafficPermission empty in mesh payments: spec.rules[0].default: this rule has no effect: all lists are empty",
                "MeshTrafficPermission empty in mesh payments: spec.rules[1].default: this rule has no effect: all lists are empty",
            ],
        );
    }

    #[test]
    fn a_prefix_that_leaves_the_trust_domain_open_is_said_in_words() {
        check(
            r#"
type: MeshTrafficPermission
mesh: payments
name: p
spec: {rules: [{default: {allow: [
  {spiffeID: {type: Prefix, value: "spiffe://payments.east"}},
  {spiffeID: {type: Prefix, value: "spiffe://payments.east.mesh.local/"}},
  {spiffeID: {type: Exact, value: "spiffe://payments.east.mesh.local"}}]}}]}
"#,
            &[
                "MeshTrafficPermission p in mesh payments: spec.rules[0].default.allow[0].spiffeID: this matches every trust domain that begins with \"payments.east\"; end it with '/' to mean one",
            ],
        );
    }

    #[test]
    fn services_and_identities_that_concern_nobody_or_everybody_are_said_in_words() {
        check(
            "
type: MeshService
mesh: payments
name: a
spec: {}
---
type: MeshService
mesh: payments
name: b
spec: {selector: {dataplaneLabels: {}}, ports: [{port: 80}]}
---
type: MeshIdentity
mesh: payments
name: c
spec: {provider: {type: Bundled}}
",
            &[
                "MeshService a in mesh payments: spec.selector: this service selects no dataplane",
                "MeshService a in mesh payments: spec.ports: nobody can call this service: it has no ports",
                "MeshService b in mesh payments: spec.selector: this service selects every dataplane of the mesh",
                "MeshIdentity c in mesh payments: spec.selector: this identity is nobody's; all dataplanes are `dataplane: {matchLabels: {}}`",
            ],
        );
    }
}
