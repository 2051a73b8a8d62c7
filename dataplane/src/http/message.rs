//! Requests and answers as the proxy handles them, whichever version of HTTP carries them.
//!
//! What belongs to one hop only (`Connection` and what it names, `Transfer-Encoding`, `Upgrade`, …) is taken out where a head is
//! read, and put in where one is written.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header,
    uri::{Authority, PathAndQuery},
};

/// The version of HTTP that a caller speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Version {
    Http10,
    Http11,
    Http2,
}

/// The head of a request.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// Its method. With [`Self::upgrade`] it is GET, also where HTTP/2 says CONNECT.
    pub method: Method,
    /// What is asked for. `*` of OPTIONS is the path `*`.
    pub path: PathAndQuery,
    /// Whom it is asked: `Host`, or `:authority`. HTTP/1.0 may leave it out.
    pub authority: Option<Authority>,
    /// Header fields that are not of one hop only, without `Host`.
    pub headers: HeaderMap,
    /// What the caller speaks.
    pub version: Version,
    /// The protocol the caller would like to go on with on this connection (or stream): `websocket`.
    pub upgrade: Option<HeaderValue>,
}

/// The head of an answer.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// Its status. An upgrade that is agreed on is 101, also where HTTP/2 says 200.
    pub status: StatusCode,
    /// Header fields that are not of one hop only.
    pub headers: HeaderMap,
    /// The protocol that the connection (or stream) goes on with.
    pub upgrade: Option<HeaderValue>,
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// So many bytes, no trailers.
    Known(u64),
    /// It ends when it ends.
    Unknown,
}

impl RequestHead {
    /// About what it takes, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let fields = self.headers.iter();
        let fields = fields.map(|(name, value)| name.as_str().len() + value.len());
        self.path.as_str().len() + fields.sum::<usize>()
    }

    /// True where asking twice means the same as asking once (RFC 9110 §9.2.2).
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        self.upgrade.is_none() && self.method.is_idempotent()
    }

    /// True for gRPC, whose failures are told in trailers.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        let content_type = self.headers.get(header::CONTENT_TYPE);
        content_type.is_some_and(|value| {
            value
                .as_bytes()
                .strip_prefix(b"application/grpc")
                .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
        })
    }
}

/// Header fields of one hop (RFC 9110 §7.6.1), whatever `Connection` says.
const OF_ONE_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What `Connection` says.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ConnectionOptions {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
}

/// Takes out what is of one hop only, and says what `Connection` says. `te: trailers` stays, since it is of every hop here.
pub fn strip(headers: &mut HeaderMap) -> ConnectionOptions {
    let mut options = ConnectionOptions::default();
    if headers.contains_key(header::CONNECTION) {
        let mut named: Vec<HeaderName> = Vec::new();
        for value in headers.get_all(header::CONNECTION) {
            for option in value.as_bytes().split(|byte| *byte == b',') {
                let option = option.trim_ascii();
                if option.eq_ignore_ascii_case(b"close") {
                    options.close = true;
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    options.keep_alive = true;
                } else if option.eq_ignore_ascii_case(b"upgrade") {
                    options.upgrade = true;
                } else if let Ok(name) = HeaderName::from_bytes(option) {
                    named.push(name);
                }
            }
        }
        for name in named {
            if may_be_named(&name) {
                headers.remove(&name);
            }
        }
    }
    for name in &OF_ONE_HOP {
        headers.remove(name);
    }
    if let Some(te) = headers.remove(header::TE) {
        let trailers = te.as_bytes().split(|byte| *byte == b',');
        if trailers
            .into_iter()
            .any(|te| te.trim_ascii().eq_ignore_ascii_case(b"trailers"))
        {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    options
}

/// Nobody may have what frames and identifies a request taken out on the way by naming it in `Connection`.
#[must_use]
pub fn may_be_named(name: &HeaderName) -> bool {
    !matches!(*name, header::HOST | header::CONTENT_LENGTH | header::TE)
}

/// Trailer fields that would change how a message is read, or who is asked (RFC 9110 §6.5.1): taken out.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    for name in &OF_ONE_HOP {
        trailers.remove(name);
    }
    for name in [
        header::CONTENT_LENGTH,
        header::HOST,
        header::TRAILER,
        header::TE,
        header::AUTHORIZATION,
        header::SET_COOKIE,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CONTENT_RANGE,
    ] {
        trailers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields = fields.iter();
        fields
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn what_connection_names_is_of_one_hop() {
        let mut headers = map(&[
            ("connection", "X-Secret, Upgrade"),
            ("connection", "close,content-length , te"),
            ("x-secret", "1"),
            ("upgrade", "websocket"),
            ("keep-alive", "timeout=5"),
            ("content-length", "3"),
            ("te", "gzip;q=1, trailers"),
            ("x-other", "2"),
        ]);
        let options = strip(&mut headers);
        assert!(options.close && options.upgrade && !options.keep_alive);
        assert_eq!(
            headers,
            map(&[
                ("content-length", "3"),
                ("te", "trailers"),
                ("x-other", "2")
            ])
        );
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for (content_type, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x=y", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let head = RequestHead {
                method: Method::POST,
                path: PathAndQuery::from_static("/"),
                authority: None,
                headers: map(&[("content-type", content_type)]),
                version: Version::Http2,
                upgrade: None,
            };
            assert_eq!(head.is_grpc(), grpc, "{content_type}");
        }
    }
}
