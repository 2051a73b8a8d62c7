//! Reading what comes in URLs and headers: selectors, pages, preconditions. Pure.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, header};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_model::api::Key;
use mesh_proto::zone::ResourceKey;
use schemars::JsonSchema;
use serde::Deserialize;

use super::problem::Problem;

/// Most resources on one page.
pub const PAGE_MAX: usize = 1000;
/// Resources on a page where nobody says otherwise.
pub const PAGE_DEFAULT: usize = 100;

/// Parameters of a list.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// Most items on the page.
    #[schemars(range(min = 1, max = 1000))]
    pub limit: Option<usize>,
    /// Where the page begins, as the one before said.
    #[serde(rename = "continue")]
    pub continue_at: Option<String>,
    /// Label selector.
    pub selector: Option<String>,
    /// Only what this zone owns.
    pub zone: Option<String>,
    /// How new what is read must be.
    #[schemars(with = "Option<Consistency>")]
    pub consistency: Option<String>,
}

/// How new what is read must be. Looked at where the caller is established; here it is described.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[allow(dead_code)] // a description
pub enum Consistency {
    /// Everything that was written before the request.
    Linearizable,
    /// What the answering node has applied, be it old: answered without a quorum too.
    Stale,
}

/// Writes are never made on old knowledge: the only word there is for them.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[allow(dead_code)] // a description
pub enum ConsistencyOfWrites {
    /// After everything that was written before the request.
    Linearizable,
}

/// One requirement on labels.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    Equals(String, String),
    Differs(String, String),
    Exists(String),
    Missing(String),
}

/// A label selector: `team=checkout,tier!=test,owner,!legacy`. Every requirement must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

impl Selector {
    /// Reads a selector; the empty text selects everything.
    ///
    /// # Errors
    /// Where a part is not `key`, `!key`, `key=value` or `key!=value`.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let mut requirements = Vec::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let key = |key: &str| {
                let key = key.trim();
                if key.is_empty() || key.contains(['!', '=', ' ']) {
                    return Err(Problem::bad_request(format!(
                        "selector: {part:?} is not understood"
                    ))
                    .detail("write key=value, key!=value, key or !key, separated by commas"));
                }
                Ok(normalised(key))
            };
            requirements.push(if let Some((k, value)) = part.split_once("!=") {
                Requirement::Differs(key(k)?, value.trim().to_owned())
            } else if let Some((k, value)) = part.split_once('=') {
                let value = value.strip_prefix('=').unwrap_or(value);
                Requirement::Equals(key(k)?, value.trim().to_owned())
            } else if let Some(k) = part.strip_prefix('!') {
                Requirement::Missing(key(k)?)
            } else {
                Requirement::Exists(key(part)?)
            });
        }
        Ok(Self(requirements))
    }

    /// Whether `labels` meet every requirement.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Equals(key, value) => labels.get(key) == Some(value),
            Requirement::Differs(key, value) => labels.get(key) != Some(value),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Missing(key) => !labels.contains_key(key),
        })
    }
}

/// The prefixes other meshes use are aliases here, in selectors as everywhere.
fn normalised(key: &str) -> String {
    if let Some(rest) = key.strip_prefix("kuma.io/") {
        format!("isthmus.io/{rest}")
    } else if let Some(rest) = key.strip_prefix("k8s.kuma.io/") {
        format!("k8s.isthmus.io/{rest}")
    } else {
        key.to_owned()
    }
}

/// How many items a page has.
///
/// # Errors
/// Where more than [`PAGE_MAX`] or none are asked for.
pub fn page_size(limit: Option<usize>) -> Result<usize, Problem> {
    match limit {
        None => Ok(PAGE_DEFAULT),
        Some(limit @ 1..=PAGE_MAX) => Ok(limit),
        Some(_) => Err(Problem::bad_request(format!(
            "limit: must be between 1 and {PAGE_MAX}"
        ))),
    }
}

/// The text that continues a list after `key`.
#[must_use]
pub fn continue_after(key: &ResourceKey) -> String {
    let key = serde_json::to_vec(&Key::from(key.clone())).unwrap_or_default();
    URL_SAFE_NO_PAD.encode(key)
}

/// Reads what [`continue_after`] wrote, for a list of `kind` (in `mesh`, where it is of one mesh).
///
/// # Errors
/// Where it is something else, or of another list.
pub fn read_continue(text: &str, kind: &str, mesh: Option<&str>) -> Result<ResourceKey, Problem> {
    let refused = || {
        Problem::bad_request("continue: not what the page before gave as `next`")
            .detail("give the same query with `continue` set to the `next` of the page before")
    };
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| refused())?;
    let key: Key = serde_json::from_slice(&bytes).map_err(|_| refused())?;
    if key.kind != kind || mesh.is_some_and(|mesh| key.mesh != mesh) {
        return Err(refused());
    }
    Ok(key.into())
}

/// The revision a resource must have for a write: `If-Match: "7"`, or 0 (it must not exist) for `If-None-Match: *`.
///
/// # Errors
/// Where a header holds something else.
pub fn precondition(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let text = |name: header::HeaderName| match headers.get(&name) {
        None => Ok(None),
        Some(value) => value
            .to_str()
            .map(|v| Some(v.trim().to_owned()))
            .map_err(|_| Problem::bad_request(format!("{name}: not text"))),
    };
    match (text(header::IF_MATCH)?, text(header::IF_NONE_MATCH)?) {
        (None, None) => Ok(None),
        (None, Some(any)) if any == "*" => Ok(Some(0)),
        (None, Some(_)) => Err(Problem::bad_request("If-None-Match: only * is understood")),
        (Some(tag), None) => {
            let tag = tag.strip_prefix("W/").unwrap_or(&tag);
            let revision = tag.trim_matches('"').parse::<u64>().ok().filter(|r| *r > 0);
            revision.map(Some).ok_or_else(|| {
                Problem::bad_request("If-Match: must be a revision in quotes, such as \"7\"")
            })
        }
        (Some(_), Some(_)) => Err(Problem::bad_request(
            "If-Match and If-None-Match contradict each other: give one",
        )),
    }
}

/// Refuses preconditions in headers where they could not say of which resource they are.
///
/// # Errors
/// Where there is one.
pub fn no_precondition(headers: &HeaderMap) -> Result<(), Problem> {
    let given = [header::IF_MATCH, header::IF_NONE_MATCH]
        .into_iter()
        .find(|name| headers.contains_key(name));
    given.map_or(Ok(()), |name| {
        Err(Problem::bad_request(format!(
            "{name}: a change of several resources has no single revision"
        ))
        .detail("a JSON batch takes `preconditions`, one for each resource"))
    })
}

/// The client's id of a write, by which a repeated one is recognised; "" where it gave none.
///
/// # Errors
/// Where it is too long or not plain text.
pub fn request_id(headers: &HeaderMap) -> Result<String, Problem> {
    let Some(value) = headers.get("x-request-id") else {
        return Ok(String::new());
    };
    match value.to_str() {
        Ok(text) if text.len() <= 128 && !text.trim().is_empty() => Ok(text.trim().to_owned()),
        _ => Err(Problem::bad_request(
            "X-Request-Id: must be 1 to 128 plain characters",
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn selectors_select() {
        let labels: BTreeMap<String, String> =
            [("team", "checkout"), ("isthmus.io/service", "web")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into();
        for (text, expected) in [
            ("", true),
            ("team=checkout", true),
            ("team==checkout", true),
            ("team!=checkout", false),
            ("tier!=test", true),
            ("team,!tier", true),
            ("kuma.io/service=web", true),
            ("team=checkout,tier", false),
        ] {
            let selector = Selector::parse(text).unwrap();
            assert_eq!(selector.matches(&labels), expected, "{text}");
        }
        for bad in ["=x", "!", "!=x", "a b=c"] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_page_continues_only_its_own_list() {
        let key = ResourceKey::in_zone("MeshService", "pay", "east", "web");
        let text = continue_after(&key);
        assert_eq!(
            read_continue(&text, "MeshService", Some("pay")).unwrap(),
            key
        );
        assert_eq!(read_continue(&text, "MeshService", None).unwrap(), key);
        assert!(read_continue(&text, "MeshService", Some("ana")).is_err());
        assert!(read_continue(&text, "Secret", Some("pay")).is_err());
    }

    #[test]
    fn preconditions_are_read_from_headers() {
        let headers = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            headers
        };
        assert_eq!(precondition(&headers(&[])).unwrap(), None);
        assert_eq!(
            precondition(&headers(&[("if-match", "\"7\"")])).unwrap(),
            Some(7)
        );
        assert_eq!(
            precondition(&headers(&[("if-none-match", "*")])).unwrap(),
            Some(0)
        );
        for bad in [
            ("if-match", "x"),
            ("if-match", "\"0\""),
            ("if-none-match", "\"7\""),
        ] {
            assert!(precondition(&headers(&[bad])).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = Selector::parse(&text);
            let _ = read_continue(&text, "Mesh", None);
        }
    }
}
