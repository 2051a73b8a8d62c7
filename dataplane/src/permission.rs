//! Who may call an inbound: by SPIFFE ID, denied unless allowed.

use std::sync::Arc;

use mesh_proto::{
    proxy as wire,
    proxy::identity_match::SpiffeId as WireMatch,
    spiffe::{InvalidSpiffeId, SpiffeId},
};

/// Who may call. `deny` is looked at first, then `allow_with_shadow_deny`, then `allow`; nothing matches: denied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Permissions {
    pub deny: Vec<Rule>,
    pub allow_with_shadow_deny: Vec<Rule>,
    pub allow: Vec<Rule>,
}

/// One line of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Whom it is about.
    pub pattern: Pattern,
    /// Where it comes from: `<policy name>#<rule index>`.
    pub origin: Arc<str>,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// One identity.
    Exact(SpiffeId),
    /// Every identity whose text begins so.
    Prefix(String),
    /// Every verified identity.
    Any,
}

/// What the permissions say about a caller, and the rule that says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// It may call.
    Allowed {
        /// The rule's origin.
        by: &'a str,
    },
    /// It may call, and would not once the shadow deny becomes a deny.
    ShadowDenied {
        /// The rule's origin.
        by: &'a str,
    },
    /// It may not call: a rule denies it, or none allows it.
    Denied {
        /// The rule's origin; `None`: no rule matches.
        by: Option<&'a str>,
    },
}

impl Decision<'_> {
    /// True where the caller may call.
    #[must_use]
    pub fn allows(self) -> bool {
        !matches!(self, Self::Denied { .. })
    }
}

impl Permissions {
    /// Decides about a verified caller.
    #[must_use]
    pub fn decide(&self, caller: &SpiffeId) -> Decision<'_> {
        let text = caller.to_string();
        let first = |rules: &'_ [Rule]| {
            rules
                .iter()
                .position(|rule| rule.pattern.matches(caller, &text))
        };
        if let Some(at) = first(&self.deny) {
            let by = Some(&*self.deny[at].origin);
            return Decision::Denied { by };
        }
        if let Some(at) = first(&self.allow_with_shadow_deny) {
            let by = &self.allow_with_shadow_deny[at].origin;
            return Decision::ShadowDenied { by };
        }
        match first(&self.allow) {
            Some(at) => Decision::Allowed {
                by: &self.allow[at].origin,
            },
            None => Decision::Denied { by: None },
        }
    }
}

/// Whom a list of matches is about.
///
/// # Errors
/// Where one is of no kind that this version knows.
pub fn patterns(
    list: &'static str,
    wire: &[wire::IdentityMatch],
) -> Result<Vec<Pattern>, InvalidPermission> {
    Ok(rules(list, wire)?
        .into_iter()
        .map(|rule| rule.pattern)
        .collect())
}

impl Pattern {
    /// True where it is about `caller`.
    #[must_use]
    pub fn is_about(&self, caller: &SpiffeId) -> bool {
        self.matches(caller, &caller.to_string())
    }

    fn matches(&self, caller: &SpiffeId, text: &str) -> bool {
        match self {
            Self::Exact(id) => id == caller,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Any => true,
        }
    }
}

/// Why permissions are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidPermission {
    #[error("{list}[{index}] of {origin:?} matches nobody and everybody: it names no SPIFFE ID")]
    Empty {
        list: &'static str,
        index: usize,
        origin: String,
    },
    #[error("{list}[{index}] of {origin:?}: {text:?}: {source}")]
    Exact {
        list: &'static str,
        index: usize,
        origin: String,
        text: String,
        source: InvalidSpiffeId,
    },
    #[error("{list}[{index}] of {origin:?}: prefix {text:?} does not begin with \"spiffe://\"")]
    Prefix {
        list: &'static str,
        index: usize,
        origin: String,
        text: String,
    },
}

impl TryFrom<&wire::Permissions> for Permissions {
    type Error = InvalidPermission;

    fn try_from(wire: &wire::Permissions) -> Result<Self, InvalidPermission> {
        Ok(Self {
            deny: rules("deny", &wire.deny)?,
            allow_with_shadow_deny: rules("allow_with_shadow_deny", &wire.allow_with_shadow_deny)?,
            allow: rules("allow", &wire.allow)?,
        })
    }
}

fn rules(list: &'static str, wire: &[wire::IdentityMatch]) -> Result<Vec<Rule>, InvalidPermission> {
    wire.iter()
        .enumerate()
        .map(|(index, wire)| {
            let origin = wire.origin.clone();
            let pattern = match wire.spiffe_id.as_ref() {
                Some(WireMatch::Exact(text)) => {
                    let id = text.parse().map_err(|source| InvalidPermission::Exact {
                        list,
                        index,
                        origin: origin.clone(),
                        text: text.clone(),
                        source,
                    })?;
                    Pattern::Exact(id)
                }
                Some(WireMatch::Prefix(text)) if text.starts_with("spiffe://") => {
                    Pattern::Prefix(text.clone())
                }
                Some(WireMatch::Prefix(text)) => {
                    return Err(InvalidPermission::Prefix {
                        list,
                        index,
                        origin,
                        text: text.clone(),
                    });
                }
                Some(WireMatch::Any(true)) => Pattern::Any,
                // A match kind of a newer version arrives as none at all.
                Some(WireMatch::Any(false)) | None => {
                    return Err(InvalidPermission::Empty {
                        list,
                        index,
                        origin,
                    });
                }
            };
            Ok(Rule {
                pattern,
                origin: origin.into(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `deny | shadow | allow`, patterns separated by spaces; `*` is any, a trailing `*` a prefix.
    fn permissions(text: &str) -> Permissions {
        let list = |text: &str| {
            text.split_whitespace()
                .map(|word| Rule {
                    pattern: match word.strip_suffix('*') {
                        Some("") => Pattern::Any,
                        Some(prefix) => Pattern::Prefix(format!("spiffe://{prefix}")),
                        None => Pattern::Exact(format!("spiffe://{word}").parse().unwrap()),
                    },
                    origin: word.into(),
                })
                .collect()
        };
        let lists: Vec<_> = text.split('|').map(list).collect();
        let [deny, allow_with_shadow_deny, allow] = lists.try_into().unwrap();
        Permissions {
            deny,
            allow_with_shadow_deny,
            allow,
        }
    }

    #[test]
    fn deny_comes_first_then_shadow_deny_then_allow_and_nothing_is_denied() {
        use Decision::{Allowed, Denied, ShadowDenied};
        for (table, caller, wanted) in [
            ("||", "m/w/a", Denied { by: None }),
            ("||*", "m/w/a", Allowed { by: "*" }),
            ("||m/w/a", "m/w/a", Allowed { by: "m/w/a" }),
            ("||m/w/a", "m/w/ab", Denied { by: None }),
            ("||m/w/a*", "m/w/ab", Allowed { by: "m/w/a*" }),
            // The same path in another trust domain is somebody else.
            ("||m.a/w/web", "m.b/w/web", Denied { by: None }),
            ("||m.a/*", "m.b/w/web", Denied { by: None }),
            ("m/w/a||*", "m/w/a", Denied { by: Some("m/w/a") }),
            ("m/w/a||*", "m/w/b", Allowed { by: "*" }),
            ("*||m/w/a", "m/w/a", Denied { by: Some("*") }),
            ("|m/w/a|*", "m/w/a", ShadowDenied { by: "m/w/a" }),
            ("|m/w/a|", "m/w/a", ShadowDenied { by: "m/w/a" }),
            ("m/*|m/w/a|m/w/a", "m/w/a", Denied { by: Some("m/*") }),
        ] {
            let caller = format!("spiffe://{caller}").parse().unwrap();
            assert_eq!(
                permissions(table).decide(&caller),
                wanted,
                "{table} {caller}"
            );
        }
    }

    #[test]
    fn a_match_that_is_not_understood_is_refused() {
        let matcher = |spiffe_id| wire::IdentityMatch {
            spiffe_id,
            origin: "p#0".into(),
        };
        for (bad, word) in [
            (matcher(None), "names no SPIFFE ID"),
            (matcher(Some(WireMatch::Any(false))), "names no SPIFFE ID"),
            (matcher(Some(WireMatch::Prefix(String::new()))), "prefix"),
            (matcher(Some(WireMatch::Exact("web".into()))), "spiffe://"),
        ] {
            let wire = wire::Permissions {
                allow: vec![bad],
                ..wire::Permissions::default()
            };
            let error = Permissions::try_from(&wire).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("p#0"), "{error}");
        }
    }
}
