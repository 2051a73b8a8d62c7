//! Which rule of [`HttpRoutes`] takes a request: one truth for the dataplane, which routes by it, and the zone, which explains.
//!
//! What a request looks like here:
//! - The **path** is that of the request target, without query. What means the same is the same ([`path::normal`], which is also what
//!   is forwarded, and [`path::compared`]): `/b` is `/a/../b`, `//b` and `/%62` as well.
//! - The **query** is what stands between `?` and `#`. Names and values are compared as they were sent, not decoded; of a name
//!   that occurs more than once the first counts, and a name without `=` has an empty value. So it is in Envoy, and Gateway API
//!   recommends the first.
//! - A **header** that occurs more than once has one value: all of its values, joined with `,` (RFC 9110 §5.3; so it is in Envoy).
//!   Those of `cookie` are joined with `; `, since HTTP/2 may cut it into pieces (RFC 9113 §8.2.3).
//! - The **method** is compared as it is: `GET` does not match `HEAD`.

pub mod path;

use regex::{Regex, RegexBuilder, bytes};

use crate::proxy::{
    HeaderMatch, HttpMatch, HttpRoutes, QueryMatch, header_match, http_match, query_match,
};

/// The headers of a request.
pub trait RequestHeaders {
    /// All values of the header `name` (in lower case), in their order in the request.
    fn values<'h>(&'h self, name: &str) -> impl Iterator<Item = &'h [u8]>;
}

/// Rules, ready to be asked. Clones share what is immutable, but not the scratch memory of regular expressions: a worker that
/// has its own clone waits for no other.
#[derive(Debug, Clone)]
pub struct Compiled {
    rules: Vec<Rule>,
}

/// Rules that can not be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rules[{rule}].match.{field}: {reason}")]
pub struct InvalidHttpRoutes {
    /// Index of the rule.
    pub rule: usize,
    /// Field of its match.
    pub field: String,
    /// What is wrong with it.
    pub reason: InvalidMatch,
}

/// What is wrong with a part of a match.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMatch {
    /// A path that does not begin with `/`, or holds what no path holds.
    #[error("must be a path that begins with '/', without query, fragment and spaces")]
    Path,
    /// A prefix that ends with `/`.
    #[error("a prefix ends without '/', unless it is \"/\"")]
    PrefixEnd,
    /// Not a method.
    #[error("is not a method of HTTP")]
    Method,
    /// Not the name of a header in lower case.
    #[error("is not the name of a header in lower case")]
    HeaderName,
    /// A parameter of the query without a name.
    #[error("a parameter of the query has a name")]
    QueryName,
    /// It does not say how to compare.
    #[error("does not say what to compare with")]
    NoValue,
    /// Not a regular expression, or one that is too big.
    #[error("is not a regular expression that can be used: {0}")]
    Regex(String),
}

/// The most memory that one compiled regular expression may take, in bytes.
const MAX_REGEX_BYTES: usize = 1024 * 1024;

impl Compiled {
    /// Compiles the rules' matches.
    ///
    /// # Errors
    /// Names the first part of a match that can not be obeyed.
    pub fn new(routes: &HttpRoutes) -> Result<Self, InvalidHttpRoutes> {
        let rules = routes.rules.iter().enumerate();
        let rules = rules.map(|(index, rule)| match &rule.r#match {
            None => Ok(Rule::default()),
            Some(said) => Rule::new(said).map_err(|(field, reason)| InvalidHttpRoutes {
                rule: index,
                field,
                reason,
            }),
        });
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    /// Index of the first rule that matches the request, whose path is [`path::normal`]. Allocates nothing unless a regular expression has to be compared with a
    /// header that occurs more than once, or the path has escapes.
    #[must_use]
    pub fn find(
        &self,
        method: &str,
        path: &str,
        query: Option<&str>,
        headers: &(impl RequestHeaders + ?Sized),
    ) -> Option<usize> {
        let path = path::compared(path);
        self.rules.iter().position(|rule| {
            rule.path.matches(&path)
                && rule.method.as_deref().is_none_or(|wanted| wanted == method)
                && rule.headers.iter().all(|header| header.matches(headers))
                && rule.query.iter().all(|parameter| parameter.matches(query))
        })
    }
}

/// A regular expression that has to match the whole of a text.
///
/// # Errors
/// Where `pattern` is not a regular expression, or is too big.
pub fn whole(pattern: &str) -> Result<Regex, InvalidMatch> {
    let whole = whole_pattern(pattern)?;
    let mut builder = RegexBuilder::new(&whole);
    builder
        .size_limit(MAX_REGEX_BYTES)
        .build()
        .map_err(regex_error)
}

fn whole_bytes(pattern: &str) -> Result<bytes::Regex, InvalidMatch> {
    let whole = whole_pattern(pattern)?;
    let mut builder = bytes::RegexBuilder::new(&whole);
    builder
        .size_limit(MAX_REGEX_BYTES)
        .build()
        .map_err(regex_error)
}

/// `pattern` must be good on its own, so that it can not close the group that is put around it.
fn whole_pattern(pattern: &str) -> Result<String, InvalidMatch> {
    let mut alone = RegexBuilder::new(pattern);
    alone
        .size_limit(MAX_REGEX_BYTES)
        .build()
        .map_err(regex_error)?;
    Ok(format!(r"\A(?:{pattern})\z"))
}

fn regex_error(error: regex::Error) -> InvalidMatch {
    // The last line says what is wrong, the others show where.
    let text = error.to_string();
    let reason = text.lines().last().unwrap_or_default();
    InvalidMatch::Regex(reason.trim().trim_start_matches("error: ").to_owned())
}

/// One rule's match.
#[derive(Debug, Clone, Default)]
struct Rule {
    path: Path,
    method: Option<Box<str>>,
    headers: Vec<Header>,
    query: Vec<Parameter>,
}

#[derive(Debug, Clone, Default)]
enum Path {
    #[default]
    Any,
    Exact(Box<str>),
    /// Not "/", which is any.
    Prefix(Box<str>),
    Regex(Regex),
}

#[derive(Debug, Clone)]
struct Header {
    name: Box<str>,
    value: HeaderValue,
}

#[derive(Debug, Clone)]
enum HeaderValue {
    Present,
    Absent,
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Regex(bytes::Regex),
}

#[derive(Debug, Clone)]
struct Parameter {
    name: Box<str>,
    value: ParameterValue,
}

#[derive(Debug, Clone)]
enum ParameterValue {
    Exact(Box<str>),
    Regex(Regex),
}

type Invalid = (String, InvalidMatch);

impl Rule {
    fn new(said: &HttpMatch) -> Result<Self, Invalid> {
        let path = match &said.path {
            None => Path::Any,
            Some(path) => Path::new(path)?,
        };
        let method = match said.method.as_str() {
            "" => None,
            method if is_token(method) => Some(method.into()),
            _ => return Err(("method".to_owned(), InvalidMatch::Method)),
        };
        let headers = said.headers.iter().enumerate();
        let headers = headers.map(|(index, header)| {
            Header::new(header).map_err(|(field, why)| (format!("headers[{index}].{field}"), why))
        });
        let query = said.query.iter().enumerate();
        let query = query.map(|(index, parameter)| {
            Parameter::new(parameter)
                .map_err(|(field, why)| (format!("query[{index}].{field}"), why))
        });
        Ok(Self {
            path,
            method,
            headers: headers.collect::<Result<_, _>>()?,
            query: query.collect::<Result<_, _>>()?,
        })
    }
}

impl Path {
    fn new(said: &http_match::Path) -> Result<Self, Invalid> {
        let field = |field: &'static str| move |reason| (field.to_owned(), reason);
        match said {
            http_match::Path::Exact(path) => {
                check_path(path).map_err(field("exact"))?;
                Ok(Self::Exact(as_compared(path).into()))
            }
            http_match::Path::Prefix(prefix) => {
                check_path(prefix).map_err(field("prefix"))?;
                match prefix.as_str() {
                    // Every path begins with it, and the target of `OPTIONS *` has none.
                    "/" => Ok(Self::Any),
                    prefix if prefix.ends_with('/') => {
                        Err(("prefix".to_owned(), InvalidMatch::PrefixEnd))
                    }
                    prefix => match as_compared(prefix).trim_end_matches('/') {
                        "" => Ok(Self::Any),
                        prefix => Ok(Self::Prefix(prefix.into())),
                    },
                }
            }
            http_match::Path::Regex(pattern) => {
                Ok(Self::Regex(whole(pattern).map_err(field("regex"))?))
            }
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(wanted) => **wanted == *path,
            Self::Prefix(prefix) => match path.as_bytes().strip_prefix(prefix.as_bytes()) {
                Some([]) => true,
                Some([next, ..]) => *next == b'/',
                None => false,
            },
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

fn as_compared(path: &str) -> String {
    path::compared(&path::normal(path)).into_owned()
}

fn check_path(path: &str) -> Result<(), InvalidMatch> {
    let visible = |b: u8| b.is_ascii_graphic() && b != b'?' && b != b'#';
    if path.starts_with('/') && path.bytes().all(visible) {
        Ok(())
    } else {
        Err(InvalidMatch::Path)
    }
}

/// Whether `text` may be a method, or the name of a header (RFC 9110 §5.6.2).
#[must_use]
pub fn is_token(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(allowed)
}

/// Whether `name` names a header, in lower case.
#[must_use]
pub fn is_header_name(name: &str) -> bool {
    is_token(name) && !name.bytes().any(|b| b.is_ascii_uppercase())
}

impl Header {
    fn new(said: &HeaderMatch) -> Result<Self, (&'static str, InvalidMatch)> {
        if !is_header_name(&said.name) {
            return Err(("name", InvalidMatch::HeaderName));
        }
        let value = match &said.value {
            None => return Err(("value", InvalidMatch::NoValue)),
            Some(header_match::Value::Present(true)) => HeaderValue::Present,
            Some(header_match::Value::Present(false)) => HeaderValue::Absent,
            Some(header_match::Value::Exact(value)) => HeaderValue::Exact(value.as_bytes().into()),
            Some(header_match::Value::Prefix(value)) => {
                HeaderValue::Prefix(value.as_bytes().into())
            }
            Some(header_match::Value::Regex(pattern)) => {
                HeaderValue::Regex(whole_bytes(pattern).map_err(|reason| ("regex", reason))?)
            }
        };
        Ok(Self {
            name: said.name.as_str().into(),
            value,
        })
    }

    fn matches(&self, headers: &(impl RequestHeaders + ?Sized)) -> bool {
        let mut values = headers.values(&self.name);
        let Some(first) = values.next() else {
            return matches!(self.value, HeaderValue::Absent);
        };
        let joint: &[u8] = if &*self.name == "cookie" { b"; " } else { b"," };
        match &self.value {
            HeaderValue::Present => true,
            HeaderValue::Absent => false,
            HeaderValue::Exact(wanted) => {
                rest_after(wanted, first, values, joint).is_some_and(|rest| rest == Rest::Equal)
            }
            HeaderValue::Prefix(wanted) => rest_after(wanted, first, values, joint).is_some(),
            HeaderValue::Regex(regex) => match values.next() {
                None => regex.is_match(first),
                Some(second) => {
                    let mut joined = [first, joint, second].concat();
                    for value in values {
                        joined.extend_from_slice(joint);
                        joined.extend_from_slice(value);
                    }
                    regex.is_match(&joined)
                }
            },
        }
    }
}

/// How values that begin with what was wanted go on.
#[derive(PartialEq)]
enum Rest {
    Equal,
    Longer,
}

/// Compares `wanted` with the beginning of the values' join, without making it.
fn rest_after<'h>(
    wanted: &[u8],
    first: &[u8],
    values: impl Iterator<Item = &'h [u8]>,
    joint: &[u8],
) -> Option<Rest> {
    let mut wanted = match strip(wanted, first)? {
        Stripped::Left(wanted) => wanted,
        Stripped::Longer => return Some(Rest::Longer),
    };
    for value in values {
        for part in [joint, value] {
            wanted = match strip(wanted, part)? {
                Stripped::Left(wanted) => wanted,
                Stripped::Longer => return Some(Rest::Longer),
            };
        }
    }
    wanted.is_empty().then_some(Rest::Equal)
}

/// What is left of what is wanted.
enum Stripped<'w> {
    Left(&'w [u8]),
    /// Nothing, and the part goes on.
    Longer,
}

fn strip<'w>(wanted: &'w [u8], part: &[u8]) -> Option<Stripped<'w>> {
    match wanted.strip_prefix(part) {
        Some(left) => Some(Stripped::Left(left)),
        None => part.starts_with(wanted).then_some(Stripped::Longer),
    }
}

impl Parameter {
    fn new(said: &QueryMatch) -> Result<Self, (&'static str, InvalidMatch)> {
        if said.name.is_empty() {
            return Err(("name", InvalidMatch::QueryName));
        }
        let value = match &said.value {
            None => return Err(("value", InvalidMatch::NoValue)),
            Some(query_match::Value::Exact(value)) => ParameterValue::Exact(value.as_str().into()),
            Some(query_match::Value::Regex(pattern)) => {
                ParameterValue::Regex(whole(pattern).map_err(|reason| ("regex", reason))?)
            }
        };
        Ok(Self {
            name: said.name.as_str().into(),
            value,
        })
    }

    fn matches(&self, query: Option<&str>) -> bool {
        let pairs = query.into_iter().flat_map(|query| query.split('&'));
        let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let Some((_, value)) = pairs.find(|(name, _)| *name == &*self.name) else {
            return false;
        };
        match &self.value {
            ParameterValue::Exact(wanted) => **wanted == *value,
            ParameterValue::Regex(regex) => regex.is_match(value),
        }
    }
}

impl RequestHeaders for http::HeaderMap {
    fn values<'h>(&'h self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        self.get_all(name).iter().map(http::HeaderValue::as_bytes)
    }
}

/// Names in lower case, and values.
impl RequestHeaders for [(String, String)] {
    fn values<'h>(&'h self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        let named = self.iter().filter(move |(other, _)| other == name);
        named.map(|(_, value)| value.as_bytes())
    }
}

#[cfg(test)]
mod tests;
