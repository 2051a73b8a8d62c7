//! What the three processes say to each other.

use serde::{Deserialize, Serialize};

/// Which process answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// `web`, `api` or `store`.
    pub role: String,
    pub zone: String,
    pub mesh: String,
    /// Tells a restarted process from the one before.
    pub pid: u32,
}

impl Place {
    pub(crate) fn new(role: &str, zone: &str, mesh: &str) -> Self {
        Self {
            role: role.to_owned(),
            zone: zone.to_owned(),
            mesh: mesh.to_owned(),
            pid: std::process::id(),
        }
    }
}

/// One process on the way of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hop {
    #[serde(flatten)]
    pub place: Place,
    /// How long its call to the next process took; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_ms: Option<f64>,
}

/// One thing on the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Item {
    pub id: u64,
    pub text: String,
}

/// What somebody wants on the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewItem {
    pub text: String,
}

/// The list, or why there is none, and the hops it came through: the nearest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub hops: Vec<Hop>,
    #[serde(default)]
    pub items: Vec<Item>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Answer {
    /// This answer, seen from one process nearer to the caller.
    pub(crate) fn through(mut self, place: &Place, next_ms: f64) -> Self {
        self.hops.insert(
            0,
            Hop {
                place: place.clone(),
                next_ms: Some(next_ms),
            },
        );
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_are_listed_from_the_caller_on() {
        let place = |role| Place::new(role, "east", "payments");
        let answer = Answer {
            hops: vec![Hop {
                place: place("store"),
                next_ms: None,
            }],
            items: vec![],
            error: None,
        };
        let answer = answer
            .through(&place("api"), 1.0)
            .through(&place("web"), 2.0);
        let roles: Vec<_> = answer
            .hops
            .iter()
            .map(|hop| hop.place.role.as_str())
            .collect();
        assert_eq!(roles, ["web", "api", "store"]);
    }
}
