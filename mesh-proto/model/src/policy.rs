//! Policies: what every kind of them has in common, and from many of them one effective configuration.
//!
//! A policy says which proxies carry it (`targetRef`, see [`crate::selection`]) and then what: for their outgoing traffic
//! (`to`), for their incoming traffic (`rules`), or for the proxy as a whole (`default`). The types here are the shapes that
//! all kinds share; [`Policy`] gives the entries of any policy without knowing its kind, so that everything else is written
//! once:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`target`] | what `to` entries and backends refer to |
//! | [`destination`] | the real services that references are resolved to |
//! | [`set`] | the policies of a mesh, indexed; which concern a proxy, in which order |
//! | [`merge`] | entries in their order to one configuration that remembers where each field is from |
//! | [`routes`] | in which order the rules of HTTP routes are tried |
//! | [`conditions`] | references to nothing, policies without effect, conflicts that one side lost |
//!
//! A kind of policy is a kind (see [`crate::kind`]) with two more items, [`Kind::POLICY`](crate::Kind::POLICY) and
//! [`Kind::policy`](crate::Kind::policy), and an implementation of [`Policy`].
//!
//! In a configuration each field is an `Option`, lists too: what is absent is left as weaker policies have it, and an empty
//! list replaces theirs.

pub mod conditions;
pub mod destination;
pub mod merge;
pub mod routes;
pub mod set;
pub mod target;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::conditions::{Known, conditions};
pub use self::destination::{Backend, Destination, Port, Service, Services, Unresolved};
pub use self::merge::{Entry, Merged, Origin};
pub use self::set::{Incoming, IncomingRule, PolicySet, Proxy, Selection};
pub use self::target::{BackendKind, BackendRef, ToKind, ToTarget};
use crate::{check::Checker, kind::Kind, selection::TargetRef};

/// An entry of `to`: outgoing traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(bound(deserialize = "C: Default + Deserialize<'de>"))]
#[schemars(bound = "C: Default + Serialize + JsonSchema")]
pub struct To<C> {
    /// Traffic to what.
    pub target_ref: ToTarget,
    /// Its configuration.
    #[serde(default)]
    pub default: C,
}

/// An entry of `rules`: incoming traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[serde(bound(deserialize = "C: Default + Deserialize<'de>"))]
#[schemars(bound = "C: Default + Serialize + JsonSchema")]
pub struct Rule<C> {
    /// Traffic from whom: any of these. Absent or empty: from everyone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Match>,
    /// Its configuration.
    #[serde(default)]
    pub default: C,
}

/// Callers.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    /// By SPIFFE ID. Everyone is `{type: Prefix, value: "spiffe://"}`.
    #[serde(rename = "spiffeID")]
    pub spiffe_id: SpiffeIdMatch,
}

/// SPIFFE IDs.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpiffeIdMatch {
    /// How `value` is compared.
    #[serde(rename = "type")]
    pub form: MatchForm,
    /// The ID, or what it begins with.
    pub value: String,
}

/// How a SPIFFE ID is compared.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum MatchForm {
    /// Equal.
    Exact,
    /// Begins with.
    Prefix,
}

/// What every SPIFFE ID begins with.
pub(crate) const EVERYONE: &str = "spiffe://";

impl SpiffeIdMatch {
    /// True where it matches every identity.
    #[must_use]
    pub fn is_everyone(&self) -> bool {
        self.form == MatchForm::Prefix && EVERYONE.starts_with(&self.value)
    }

    /// True where it matches `id`.
    #[must_use]
    pub fn matches(&self, id: &str) -> bool {
        match self.form {
            MatchForm::Exact => id == self.value,
            MatchForm::Prefix => id.starts_with(&self.value),
        }
    }

    /// Why it could never match anybody.
    pub(crate) fn error(&self) -> Option<String> {
        use mesh_proto::spiffe::SpiffeId;
        match self.form {
            MatchForm::Exact => self.value.parse::<SpiffeId>().err().map(|e| e.to_string()),
            // A prefix is good where an ID can begin with it.
            MatchForm::Prefix => format!("{}x", self.value)
                .parse::<SpiffeId>()
                .err()
                .map(|e| format!("no SPIFFE ID begins so: {e}")),
        }
    }
}

/// What a kind of policy may say, and how its configurations are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyShape {
    /// What its `to` entries may refer to; none: it has no `to`.
    pub to: &'static [ToKind],
    /// It has `rules`.
    pub rules: bool,
    /// It has a `default` for the proxy as a whole.
    pub proxy: bool,
    /// Lists of its configuration that do not simply replace a weaker policy's, by their paths inside `default`, such as
    /// `sidecar.profiles.exclude`.
    pub lists: &'static [(&'static str, ListMerge)],
}

/// How a list is merged with a weaker policy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListMerge {
    /// Items with an equal value of this field are one item, whose other fields are merged. New items follow.
    Keyed(&'static str),
    /// Behind the weaker policy's items.
    Append,
}

/// What holds where no policy says anything, as JSON objects of the form of `default`; "" says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltIn {
    /// For outgoing traffic.
    pub to: &'static str,
    /// For incoming traffic.
    pub rules: &'static str,
    /// For the proxy as a whole.
    pub proxy: &'static str,
}

impl BuiltIn {
    /// Nothing is built in.
    pub const NOTHING: Self = Self {
        to: "",
        rules: "",
        proxy: "",
    };
}

/// A policy of a kind known only at run time.
pub trait Policy {
    /// Which proxies carry it. Absent: all of the mesh.
    fn target_ref(&self) -> Option<&TargetRef>;

    /// What it says of outgoing traffic.
    fn to(&self) -> Vec<ToPart<'_>> {
        Vec::new()
    }

    /// What it says of incoming traffic.
    fn rules(&self) -> Vec<RulePart<'_>> {
        Vec::new()
    }

    /// What it says of the proxy as a whole.
    fn proxy(&self) -> Option<Value> {
        None
    }
}

/// What one entry of `to` says.
#[derive(Debug, Clone, PartialEq)]
pub struct ToPart<'a> {
    /// Traffic to what.
    pub target: &'a ToTarget,
    /// Where its configuration stands in the entry: `default`, or what routes have instead.
    pub at: &'static str,
    /// Its configuration: an object without null.
    pub default: Value,
}

/// What one entry of `rules` says.
#[derive(Debug, Clone, PartialEq)]
pub struct RulePart<'a> {
    /// Traffic from whom: any of these; none: from everyone.
    pub matches: &'a [Match],
    /// Its configuration: an object without null.
    pub default: Value,
}

/// A configuration as a value, for [`Policy`].
#[must_use]
pub fn value<C: Serialize>(configuration: &C) -> Value {
    // Configurations are structs of texts, numbers, lists and maps with text keys, which always have a JSON form.
    serde_json::to_value(configuration).unwrap_or_default()
}

/// The entries of `to`, for [`Policy`].
#[must_use]
pub fn to_parts<C: Serialize>(to: &[To<C>]) -> Vec<ToPart<'_>> {
    to.iter()
        .map(|entry| ToPart {
            target: &entry.target_ref,
            at: "default",
            default: value(&entry.default),
        })
        .collect()
}

/// The entries of `rules`, for [`Policy`].
#[must_use]
pub fn rule_parts<C: Serialize>(rules: &[Rule<C>]) -> Vec<RulePart<'_>> {
    rules
        .iter()
        .map(|rule| RulePart {
            matches: &rule.matches,
            default: value(&rule.default),
        })
        .collect()
}

/// Reports what is wrong with the parts that all policies share: `targetRef`, the targets of `to`, the matches of `rules`.
/// What stands in `default` is left to the kind.
pub fn check<K: Kind + Policy>(policy: &K, out: &mut Checker) {
    let allowed = K::POLICY.map_or(ToKind::ALL, |shape| shape.to);
    if let Some(target) = policy.target_ref() {
        target.check("targetRef", out);
        let has_rules = K::POLICY.is_some_and(|shape| shape.rules);
        if target.section_name.is_some() && !has_rules {
            let message = "selects an inbound, and this policy says nothing of incoming traffic; leave it out";
            out.add("targetRef.sectionName", message);
        }
    }
    for (index, entry) in policy.to().iter().enumerate() {
        entry
            .target
            .check(&format!("to[{index}].targetRef"), allowed, out);
    }
    for (index, rule) in policy.rules().iter().enumerate() {
        for (at, entry) in rule.matches.iter().enumerate() {
            if let Some(message) = entry.spiffe_id.error() {
                out.add(
                    format!("rules[{index}].matches[{at}].spiffeID.value"),
                    message,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use crate::{
        kinds::kinds,
        shape::{ContentSchema, Shape},
    };

    #[test]
    fn every_kind_that_has_a_target_is_registered_as_a_policy() {
        for kind in kinds() {
            let has = |field: &str| kind.content_schema().fields().any(|f| f == field);
            assert_eq!(kind.policy().is_some(), has("targetRef"), "{}", kind.name);
            let Some(shape) = kind.policy() else { continue };
            assert_eq!(has("to"), !shape.to.is_empty(), "{}", kind.name);
            assert_eq!(has("rules"), shape.rules, "{}", kind.name);
            assert_eq!(has("default"), shape.proxy, "{}", kind.name);
        }
    }

    #[test]
    fn what_is_built_in_is_an_object() {
        for kind in kinds() {
            let built_in = kind.built_in();
            for text in [built_in.to, built_in.rules, built_in.proxy] {
                let value = serde_json::from_str::<Value>(text);
                assert!(
                    text.is_empty() || value.is_ok_and(|v| v.is_object()),
                    "{}: {text}",
                    kind.name
                );
            }
        }
    }

    /// The shape of the field at `path`, through the items of lists.
    fn inside<'s>(
        schema: &'s ContentSchema,
        mut shape: &'s Shape,
        path: &str,
    ) -> Option<&'s Shape> {
        for name in path.split('.') {
            shape = schema.resolve(shape);
            while let Shape::List(items, ..) = shape {
                shape = schema.resolve(items);
            }
            let Shape::Object(fields) = shape else {
                return None;
            };
            shape = &fields.get(name)?.shape;
        }
        Some(schema.resolve(shape))
    }

    #[test]
    fn every_list_that_is_declared_is_a_list_of_the_kind() {
        for kind in kinds() {
            let Some(policy) = kind.policy() else {
                continue;
            };
            let schema = kind.content_schema();
            for (path, _) in policy.lists {
                // A route's configuration is the entry, without `default`.
                let places = ["to.default", "rules.default", "default", "to"];
                let found = places.iter().any(|place| {
                    matches!(
                        inside(schema, schema.root(), &format!("{place}.{path}")),
                        Some(Shape::List(..))
                    )
                });
                assert!(found, "{}: {path} is no list", kind.name);
            }
        }
    }
}
