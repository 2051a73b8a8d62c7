//! In which order the rules of HTTP routes are tried: as Gateway API says.
//!
//! Rules of several `MeshHTTPRoute`s that serve the same destination are merged into one list first (rules with equal
//! matches are one). Each match of a rule then stands for itself.

use std::cmp::Reverse;

use mesh_proto::zone::ResourceKey;
use serde_json::Value;

use super::{Merged, Origin};

/// A rule for the requests of one match.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteRule {
    /// Which requests: one match as a `MeshHTTPRoute` has it. Null: all.
    pub matches: Value,
    /// The matches of the rule that it is one of.
    pub of: Value,
    /// What happens to them.
    pub default: Value,
    /// The strongest policy that says something of the rule.
    pub origin: Origin,
}

/// The rules in `merged`, the one that is tried first first. `age` says which of two policies is older: the smaller;
/// without an age they are equal, and the alphabetically first name goes first.
#[must_use]
pub fn in_order(merged: &Merged, age: impl Fn(&ResourceKey) -> u64) -> Vec<RouteRule> {
    let rules = merged.value()["rules"].as_array();
    let mut ordered: Vec<(Precedence, RouteRule)> = Vec::new();
    for (index, rule) in rules.into_iter().flatten().enumerate() {
        let path = format!("rules[{index}].matches");
        let origin = merged.origin(&path).unwrap_or(&Origin::BuiltIn);
        let of = &rule["matches"];
        let matches = of.as_array().cloned().unwrap_or_default();
        let matches = if matches.is_empty() {
            vec![Value::Null]
        } else {
            matches
        };
        for matches in matches {
            let precedence = Precedence::new(&matches).of(origin, &age);
            let default = rule.get("default").cloned().unwrap_or_default();
            let rule = RouteRule {
                matches,
                of: of.clone(),
                default,
                origin: origin.clone(),
            };
            ordered.push((precedence, rule));
        }
    }
    // What is equal in everything stays in the order of the rules.
    ordered.sort_by(|a, b| a.0.cmp(&b.0));
    ordered.into_iter().map(|(_, rule)| rule).collect()
}

/// When a match is tried: the smaller is the earlier.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Precedence {
    path: PathRank,
    any_method: bool,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    age: u64,
    name: String,
}

/// Exact, then the longer prefix, then a regular expression, then any path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    Prefix(Reverse<usize>),
    Regex(Reverse<usize>),
    Any,
}

impl Precedence {
    /// The precedence of one match of a `MeshHTTPRoute`, without regard to whose it is.
    #[must_use]
    pub fn new(matches: &Value) -> Self {
        let path = &matches["path"];
        let length = path["value"]
            .as_str()
            .map_or(0, |value| value.chars().count());
        let count = |field: &str| Reverse(matches[field].as_array().map_or(0, Vec::len));
        Self {
            path: match path["type"].as_str() {
                Some("Exact") => PathRank::Exact,
                Some("PathPrefix") => PathRank::Prefix(Reverse(length)),
                Some(_) => PathRank::Regex(Reverse(length)),
                None => PathRank::Any,
            },
            any_method: matches["method"].is_null(),
            headers: count("headers"),
            query: count("queryParams"),
            age: 0,
            name: String::new(),
        }
    }

    fn of(mut self, origin: &Origin, age: impl Fn(&ResourceKey) -> u64) -> Self {
        if let Origin::Policy { key, .. } = origin {
            self.age = age(key);
            self.name.clone_from(&key.name);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn matches_are_tried_in_the_order_of_gateway_api() {
        let first_to_last = [
            json!({"path": {"type": "Exact", "value": "/a"}, "method": "GET"}),
            json!({"path": {"type": "Exact", "value": "/a/b"}, "headers": [{}, {}]}),
            json!({"path": {"type": "Exact", "value": "/a/b"}, "headers": [{}], "queryParams": [{}, {}]}),
            json!({"path": {"type": "Exact", "value": "/a/b"}, "headers": [{}], "queryParams": [{}]}),
            json!({"path": {"type": "Exact", "value": "/a/b"}}),
            json!({"path": {"type": "PathPrefix", "value": "/a/b"}}),
            json!({"path": {"type": "PathPrefix", "value": "/a"}, "method": "GET"}),
            json!({"path": {"type": "PathPrefix", "value": "/a"}, "headers": [{}, {}, {}]}),
            json!({"path": {"type": "PathPrefix", "value": "/"}, "method": "GET", "headers": [{}]}),
            json!({"path": {"type": "RegularExpression", "value": "/a.*"}}),
            json!({"method": "GET"}),
            json!({"headers": [{}]}),
            json!({"queryParams": [{}]}),
            json!({}),
        ];
        let ranks: Vec<Precedence> = first_to_last.iter().map(Precedence::new).collect();
        for (earlier, pair) in ranks.windows(2).enumerate() {
            assert!(pair[0] < pair[1], "{}", first_to_last[earlier]);
        }
    }

    #[test]
    fn between_equal_matches_the_older_policy_goes_first_then_the_alphabetically_first() {
        let of = |name: &str, age: u64| {
            let origin = Origin::Policy {
                key: ResourceKey::in_zone("MeshHTTPRoute", "m", "", name),
                entry: crate::policy::Entry::To(0),
            };
            Precedence::new(&json!({})).of(&origin, |_| age)
        };
        assert!(of("b", 1) < of("a", 2));
        assert!(of("a", 1) < of("b", 1));
        assert!(Precedence::new(&json!({"method": "GET"})) < of("a", 0));
    }
}
