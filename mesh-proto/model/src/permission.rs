//! From `MeshTrafficPermission`s to the one effective permission of an inbound.

use std::{cmp::Reverse, fmt};

use mesh_proto::proxy::{IdentityMatch, Permissions, identity_match::SpiffeId};

use crate::{
    kinds::{MeshTrafficPermission, dataplane::Inbound},
    policy::{Match, MatchForm},
    resource::{Meta, Resource},
    selection::{self, Strength, Tie},
};

/// Who may call `inbound` of `dataplane`.
///
/// The rules of all `policies` that select the inbound count together. Other kinds and other meshes are ignored. The
/// result is the same in whichever order the policies come: the strongest is first (see [`Strength`]), and a
/// policy's rules keep their order. Order decides nothing: a deny anywhere wins, and any allow allows.
///
/// [`Selection::permissions`](crate::policy::Selection::permissions) gives the same for a whole mesh at less cost.
///
/// Nobody is allowed where there is no policy, no rule, or nothing in the lists: what is allowed is always written.
#[must_use]
pub fn effective(policies: &[&Resource], dataplane: &Resource, inbound: &Inbound) -> Permissions {
    let mut selected: Vec<(&Resource, &MeshTrafficPermission)> = policies
        .iter()
        .filter(|policy| selection::in_reach(policy, &dataplane.meta))
        .filter_map(|policy| Some((*policy, policy.get::<MeshTrafficPermission>()?)))
        .filter(|(_, permission)| {
            selection::selects_inbound(permission.target_ref.as_ref(), &dataplane.meta, inbound)
        })
        .collect();
    selected
        .sort_by_cached_key(|(policy, _)| Reverse((Strength::of(policy), Tie::of(&policy.meta))));

    together(
        selected
            .iter()
            .map(|(policy, permission)| of_policy(&policy.meta, permission)),
    )
}

/// What one permission says, whomever it selects.
pub(crate) fn of_policy(meta: &Meta, permission: &MeshTrafficPermission) -> Permissions {
    let mut permissions = Permissions::default();
    for (index, rule) in permission.rules.iter().enumerate() {
        let origin = format!("{}#{index}", meta.name);
        let lists = &rule.default;
        extend(&mut permissions.deny, &lists.deny, &origin);
        extend(
            &mut permissions.allow_with_shadow_deny,
            &lists.allow_with_shadow_deny,
            &origin,
        );
        extend(&mut permissions.allow, &lists.allow, &origin);
    }
    permissions
}

/// What several permissions say together.
pub(crate) fn together(all: impl IntoIterator<Item = Permissions>) -> Permissions {
    let mut together = Permissions::default();
    for permissions in all {
        together.deny.extend(permissions.deny);
        together
            .allow_with_shadow_deny
            .extend(permissions.allow_with_shadow_deny);
        together.allow.extend(permissions.allow);
    }
    together
}

/// What permissions say of one caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// It is let in.
    pub allowed: bool,
    /// It is let in, and recorded as denied.
    pub shadow_denied: bool,
    /// What decides; absent where nothing matches, which denies.
    pub why: Option<Matching>,
    /// Everything that matches, in the order it is looked at: what decides is first.
    pub matching: Vec<Matching>,
}

/// An entry of a permission that matches a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matching {
    /// The list it stands in: `deny`, `allowWithShadowDeny` or `allow`.
    pub list: &'static str,
    /// Whom it is about, as [`shown`].
    pub callers: String,
    /// The policy and its rule: `<policy>#<rule>`.
    pub origin: String,
}

/// What `permissions` say of the caller with `spiffe_id`: a deny anywhere wins, then an allow that is recorded as a deny,
/// then an allow; else it is denied. A proxy decides the same.
#[must_use]
pub fn decide(permissions: &Permissions, spiffe_id: &str) -> Decision {
    let lists = [
        ("deny", &permissions.deny),
        ("allowWithShadowDeny", &permissions.allow_with_shadow_deny),
        ("allow", &permissions.allow),
    ];
    let matching: Vec<Matching> = lists
        .into_iter()
        .flat_map(|(list, entries)| entries.iter().map(move |entry| (list, entry)))
        .filter(|(_, entry)| matches(entry, spiffe_id))
        .map(|(list, entry)| Matching {
            list,
            callers: shown(entry),
            origin: entry.origin.clone(),
        })
        .collect();
    let why = matching.first().cloned();
    let list = why.as_ref().map(|why| why.list);
    Decision {
        allowed: matches!(list, Some("allow" | "allowWithShadowDeny")),
        shadow_denied: list == Some("allowWithShadowDeny"),
        why,
        matching,
    }
}

/// `denied by b#0: deny spiffe://a/2*`
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.allowed, self.shadow_denied) {
            (true, true) => "allowed and recorded as denied",
            (true, false) => "allowed",
            (false, _) => "denied",
        };
        match &self.why {
            Some(Matching {
                list,
                callers,
                origin,
            }) => write!(f, "{verdict} by {origin}: {list} {callers}"),
            None => write!(f, "{verdict}: no permission allows it"),
        }
    }
}

/// A match for people: `spiffe://a/1`, `spiffe://a/*`, `everyone`.
#[must_use]
pub fn shown(entry: &IdentityMatch) -> String {
    match &entry.spiffe_id {
        Some(SpiffeId::Exact(id)) => id.clone(),
        Some(SpiffeId::Prefix(prefix)) => format!("{prefix}*"),
        Some(SpiffeId::Any(true)) => "everyone".to_owned(),
        Some(SpiffeId::Any(false)) | None => "nobody".to_owned(),
    }
}

/// True where a match includes the caller with this SPIFFE ID.
#[must_use]
pub fn matches(entry: &IdentityMatch, caller: &str) -> bool {
    match &entry.spiffe_id {
        Some(SpiffeId::Exact(id)) => id == caller,
        Some(SpiffeId::Prefix(prefix)) => caller.starts_with(prefix),
        Some(SpiffeId::Any(any)) => *any,
        None => false,
    }
}

fn extend(list: &mut Vec<IdentityMatch>, matches: &[Match], origin: &str) {
    list.extend(matches.iter().map(|entry| {
        let spiffe_id = &entry.spiffe_id;
        let value = spiffe_id.value.clone();
        IdentityMatch {
            spiffe_id: Some(match spiffe_id.form {
                _ if spiffe_id.is_everyone() => SpiffeId::Any(true),
                MatchForm::Exact => SpiffeId::Exact(value),
                MatchForm::Prefix => SpiffeId::Prefix(value),
            }),
            origin: origin.to_owned(),
        }
    }));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::Dataplane;

    fn resources(text: &str) -> Vec<Resource> {
        crate::parse(text, "test").unwrap_or_else(|error| panic!("{error}"))
    }

    fn dataplane() -> Resource {
        let text = "
type: Dataplane
mesh: payments
name: web-1
labels: {app: web, isthmus.io/service: web}
networking:
  address: 10.0.0.1
  inbound: [{name: main, port: 80, servicePort: 8080}, {port: 81, servicePort: 8081}]
";
        resources(text).remove(0)
    }

    /// One `policy#rule list match` a line, for the first inbound.
    fn shown(policies: &[Resource], inbound: usize) -> Vec<String> {
        let dataplane = dataplane();
        let inbound = &dataplane.get::<Dataplane>().unwrap().networking.inbound[inbound];
        let policies: Vec<&Resource> = policies.iter().collect();
        let permissions = effective(&policies, &dataplane, inbound);
        let lists = [
            ("deny", permissions.deny),
            ("shadow", permissions.allow_with_shadow_deny),
            ("allow", permissions.allow),
        ];
        let mut lines = Vec::new();
        for (list, matches) in lines_of(lists) {
            lines.push(format!("{list} {matches}"));
        }
        lines
    }

    fn lines_of(lists: [(&'static str, Vec<IdentityMatch>); 3]) -> Vec<(&'static str, String)> {
        let entries = lists
            .into_iter()
            .flat_map(|(list, matches)| matches.into_iter().map(move |m| (list, m)));
        entries
            .map(|(list, entry)| {
                let text = match entry.spiffe_id.unwrap() {
                    SpiffeId::Exact(id) => id,
                    SpiffeId::Prefix(prefix) => format!("{prefix}*"),
                    SpiffeId::Any(_) => "any".to_owned(),
                };
                (list, format!("{text} {}", entry.origin))
            })
            .collect()
    }

    const POLICIES: &str = r#"
type: MeshTrafficPermission
mesh: payments
name: b
spec:
  rules:
    - default:
        allow: [{spiffeID: {type: Exact, value: "spiffe://a/1"}}]
        deny: [{spiffeID: {type: Prefix, value: "spiffe://a/2"}}]
    - default:
        allow: [{spiffeID: {type: Prefix, value: "spiffe://"}}]
---
type: MeshTrafficPermission
mesh: payments
name: a
spec:
  targetRef: {kind: Dataplane, labels: {app: web}, sectionName: main}
  rules:
    - default:
        allowWithShadowDeny: [{spiffeID: {type: Exact, value: "spiffe://a/3"}}]
        deny: [{spiffeID: {type: Exact, value: "spiffe://a/4"}}]
---
type: MeshTrafficPermission
mesh: payments
name: c
spec:
  targetRef: {kind: Dataplane, labels: {app: other}}
  rules: [{default: {allow: [{spiffeID: {type: Exact, value: "spiffe://a/5"}}]}}]
---
type: MeshTrafficPermission
mesh: analytics
name: d
spec:
  rules: [{default: {allow: [{spiffeID: {type: Prefix, value: "spiffe://"}}]}}]
"#;

    #[test]
    fn the_rules_of_all_selected_policies_count_with_their_origins() {
        assert_eq!(
            shown(&resources(POLICIES), 0),
            [
                "deny spiffe://a/4 a#0",
                "deny spiffe://a/2* b#0",
                "shadow spiffe://a/3 a#0",
                "allow spiffe://a/1 b#0",
                "allow any b#1",
            ]
        );
    }

    #[test]
    fn a_section_concerns_its_inbound_only() {
        assert_eq!(
            shown(&resources(POLICIES), 1),
            [
                "deny spiffe://a/2* b#0",
                "allow spiffe://a/1 b#0",
                "allow any b#1"
            ]
        );
    }

    #[test]
    fn absence_an_empty_list_and_an_empty_rule_allow_nobody() {
        assert_eq!(shown(&[], 0), Vec::<String>::new());
        for rules in [
            "",
            "rules: []",
            "rules: [{default: {}}]",
            "rules: [{default: {allow: []}}]",
        ] {
            let text = format!(
                "{{type: MeshTrafficPermission, mesh: payments, name: x, spec: {{{rules}}}}}"
            );
            assert_eq!(shown(&resources(&text), 0), Vec::<String>::new(), "{rules}");
        }
    }

    #[test]
    fn another_meshs_policy_never_counts() {
        let foreign: Vec<Resource> = resources(POLICIES)
            .into_iter()
            .filter(|policy| policy.meta.mesh != "payments")
            .collect();
        assert_eq!(foreign.len(), 1);
        assert_eq!(shown(&foreign, 0), Vec::<String>::new());
    }

    /// A policy over few names, so that rules meet.
    fn any_policy() -> impl Strategy<Value = String> {
        let value = prop::sample::select(vec![
            "Exact, value: 'spiffe://a/w/x'",
            "Exact, value: 'spiffe://a/w/y'",
            "Prefix, value: 'spiffe://a/w'",
            "Prefix, value: 'spiffe://a/w/x'",
            "Prefix, value: 'spiffe://b/'",
            "Prefix, value: 'spiffe://'",
        ]);
        let list = prop::collection::vec(value, 0..3).prop_map(|values| {
            let matches = values
                .iter()
                .map(|v| format!("{{spiffeID: {{type: {v}}}}}"));
            format!("[{}]", matches.collect::<Vec<_>>().join(", "))
        });
        let rule = (list.clone(), list.clone(), list).prop_map(|(allow, deny, shadow)| {
            format!("{{default: {{allow: {allow}, deny: {deny}, allowWithShadowDeny: {shadow}}}}}")
        });
        let target = prop::sample::select(vec![
            "{kind: Mesh}",
            "{kind: Dataplane, labels: {app: web}}",
            "{kind: Dataplane, labels: {app: other}}",
            "{kind: Dataplane, sectionName: main}",
            "{kind: Dataplane, sectionName: '81'}",
        ]);
        let mesh = prop::sample::select(vec!["payments", "payments", "analytics"]);
        (target, mesh, prop::collection::vec(rule, 0..3)).prop_map(|(target, mesh, rules)| {
            let rules = rules.join(", ");
            format!(
                "{{type: MeshTrafficPermission, mesh: {mesh}, name: NAME, spec: {{targetRef: {target}, rules: [{rules}]}}}}"
            )
        })
    }

    /// What the permissions say of `caller`.
    fn decision(permissions: &Permissions, caller: &str) -> &'static str {
        match decide(permissions, caller) {
            Decision {
                shadow_denied: true,
                ..
            } => "shadow",
            Decision { allowed: true, .. } => "allow",
            Decision { allowed: false, .. } => "deny",
        }
    }

    /// The same, written down from the rules themselves.
    fn expected(policies: &[Resource], inbound: &str, caller: &str) -> &'static str {
        let mut lists = [false; 3];
        for policy in policies
            .iter()
            .filter(|policy| policy.meta.mesh == "payments")
        {
            let permission = policy.get::<MeshTrafficPermission>().unwrap();
            let target = permission.target_ref.as_ref().unwrap();
            let section = target.section_name.as_deref();
            if target.labels.get("app").is_some_and(|app| app != "web")
                || section.is_some_and(|section| section != inbound)
            {
                continue;
            }
            for rule in &permission.rules {
                for (found, (_, list)) in lists.iter_mut().zip(rule.default.lists()) {
                    *found |= list.iter().any(|entry| entry.spiffe_id.matches(caller));
                }
            }
        }
        match lists {
            [true, ..] => "deny",
            [_, true, _] => "shadow",
            [_, _, true] => "allow",
            _ => "deny",
        }
    }

    proptest! {
        #[test]
        fn the_decision_is_that_of_the_rules(policies in prop::collection::vec(any_policy(), 0..5)) {
            let named = policies.iter().enumerate();
            let named: Vec<String> = named
                .map(|(index, text)| text.replace("NAME", &format!("p{index}")))
                .collect();
            let policies = resources(&named.join("\n---\n"));
            let dataplane = dataplane();
            let references: Vec<&Resource> = policies.iter().collect();
            for inbound in &dataplane.get::<Dataplane>().unwrap().networking.inbound {
                let permissions = effective(&references, &dataplane, inbound);
                for caller in ["spiffe://a/w/x", "spiffe://a/w/xy", "spiffe://b/w/x", "spiffe://c/w/x"] {
                    prop_assert_eq!(
                        decision(&permissions, caller),
                        expected(&policies, &inbound.name_or_port(), caller)
                    );
                }
            }
        }

        #[test]
        fn the_order_policies_come_in_does_not_matter(policies in Just(resources(POLICIES)).prop_shuffle()) {
            prop_assert_eq!(shown(&policies, 0), shown(&resources(POLICIES), 0));
        }
    }
}
