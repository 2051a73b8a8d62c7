//! Heads of HTTP/1.x messages: read strictly, since what one proxy reads as one message and the next as two is how requests are
//! smuggled.
//!
//! httparse reads lines and fields; what it would forgive (bare line feeds) and what it does not know (which fields a message
//! may have, and how its body is framed) is decided here. Refused, not mended: a length that is there twice, signed, spaced or
//! beside `Transfer-Encoding`; any transfer coding but `chunked`, alone and last; folded lines; control characters; a request
//! of HTTP/1.1 without `Host`, or with two.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header,
    uri::{Authority, PathAndQuery},
};

use crate::http::{
    limits::HttpLimits,
    message::{ConnectionOptions, RequestHead, ResponseHead, Version, may_be_named},
};

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// In chunks, with trailers.
    Chunked,
    /// All that comes until the connection ends.
    UntilClose,
}

/// A request's head, and what it says about its connection.
#[derive(Debug)]
pub struct ParsedRequest {
    /// The head.
    pub head: RequestHead,
    /// How its body comes.
    pub framing: Framing,
    /// Further requests may come on this connection.
    pub keep_alive: bool,
}

/// An answer's head, and what it says about its connection.
#[derive(Debug)]
pub struct ParsedResponse {
    /// The head.
    pub head: ResponseHead,
    /// How its body comes.
    pub framing: Framing,
    /// Further requests may go on this connection.
    pub keep_alive: bool,
    /// How many seconds the server keeps an idle connection, where it says so (`Keep-Alive: timeout`).
    pub idle_seconds: Option<u64>,
}

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BadHead {
    #[error("what is sent is not HTTP/1")]
    NotHttp,
    #[error("HTTP version is not 1.0 or 1.1")]
    Version,
    #[error("a line ends without a carriage return")]
    BareLineFeed,
    #[error("a header line is folded, or begins with a space")]
    FoldedLine,
    #[error("a header field is malformed")]
    Field,
    #[error("more than the allowed number of header fields")]
    TooManyFields,
    #[error("the head is longer than allowed")]
    TooLong,
    #[error("the request target is longer than allowed")]
    TargetTooLong,
    #[error("the request target is malformed")]
    Target,
    #[error("CONNECT is not allowed here")]
    Connect,
    #[error("Host is missing, there twice, or malformed")]
    Host,
    #[error("Content-Length is malformed, or there twice")]
    ContentLength,
    #[error("Transfer-Encoding is not just \"chunked\"")]
    TransferEncoding,
    #[error("both Content-Length and Transfer-Encoding")]
    LengthAndEncoding,
    #[error("Transfer-Encoding in HTTP/1.0")]
    EncodingInHttp10,
    #[error("a body announced where none may be")]
    UnexpectedBody,
}

impl BadHead {
    /// What a caller is answered.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::TooManyFields | Self::TooLong => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::TransferEncoding => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// The most header fields that any limit allows: they are read into an array on the stack.
pub const FIELDS_MAX: usize = 256;

/// Takes the head of the next request out of `buffer`. `None`: it is not all there.
///
/// # Errors
/// Where no request can be read from here on.
pub fn take_request(
    buffer: &mut BytesMut,
    limits: &HttpLimits,
) -> Result<Option<ParsedRequest>, BadHead> {
    let Some(bytes) = take_head(buffer, limits)? else {
        return Ok(None);
    };
    // Not filled with anything before: that would cost more than reading most heads.
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    read(parsed.parse_with_uninit_headers(&bytes, &mut fields))?;
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(BadHead::NotHttp);
    };
    if target.len() > limits.target_bytes {
        return Err(BadHead::TargetTooLong);
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| BadHead::NotHttp)?;
    let version = if minor == 0 {
        Version::Http10
    } else {
        Version::Http11
    };
    let fields = read_fields(&bytes, parsed.headers, limits)?;
    let (path, named) = read_target(&method, bytes.slice_ref(target.as_bytes()))?;
    if fields.hosts > 1 || fields.hosts == 0 && version == Version::Http11 {
        return Err(BadHead::Host);
    }
    let framing = match fields.framing(version)? {
        // Without a length, a request has no body (RFC 9112 §6.3).
        Framing::UntilClose => Framing::None,
        framing => framing,
    };
    let may_upgrade = fields.options.upgrade
        && version == Version::Http11
        && method == Method::GET
        && framing == Framing::None;
    Ok(Some(ParsedRequest {
        keep_alive: keeps_alive(version, fields.options),
        framing,
        head: RequestHead {
            method,
            path,
            authority: named.or(fields.host),
            headers: fields.kept,
            version,
            upgrade: fields.upgrade.filter(|_| may_upgrade),
        },
    }))
}

/// Takes the head of the answer to a request with `method` out of `buffer`. `None`: it is not all there.
///
/// # Errors
/// Where no answer can be read from here on.
pub fn take_response(
    buffer: &mut BytesMut,
    limits: &HttpLimits,
    method: &Method,
) -> Result<Option<ParsedResponse>, BadHead> {
    let Some(bytes) = take_head(buffer, limits)? else {
        return Ok(None);
    };
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    read(config.parse_response_with_uninit_headers(&mut parsed, &bytes, &mut fields))?;
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(BadHead::NotHttp);
    };
    let status = StatusCode::from_u16(code).map_err(|_| BadHead::NotHttp)?;
    let version = if minor == 0 {
        Version::Http10
    } else {
        Version::Http11
    };
    let fields = read_fields(&bytes, parsed.headers, limits)?;
    let without_body = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = match fields.framing(version)? {
        _ if status == StatusCode::SWITCHING_PROTOCOLS => Framing::UntilClose,
        _ if without_body => Framing::None,
        framing => framing,
    };
    let keeps_alive = keeps_alive(version, fields.options);
    Ok(Some(ParsedResponse {
        keep_alive: keeps_alive && framing != Framing::UntilClose,
        framing,
        idle_seconds: fields.idle_seconds,
        head: ResponseHead {
            status,
            headers: fields.kept,
            upgrade: fields
                .upgrade
                .filter(|_| status == StatusCode::SWITCHING_PROTOCOLS),
        },
    }))
}

/// Takes the trailers of a chunked body out of `buffer`, which stands after the last chunk. `None`: they are not all there.
///
/// # Errors
/// As for heads.
pub fn take_trailers(
    buffer: &mut BytesMut,
    limits: &HttpLimits,
) -> Result<Option<HeaderMap>, BadHead> {
    if buffer.starts_with(b"\r\n") {
        let _ = buffer.split_to(2);
        return Ok(Some(HeaderMap::new()));
    }
    let Some(bytes) = take_head(buffer, limits)? else {
        return Ok(None);
    };
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    match httparse::parse_headers(&bytes, &mut fields) {
        Ok(httparse::Status::Complete((_, fields))) => {
            if fields.len() > limits.header_fields {
                return Err(BadHead::TooManyFields);
            }
            let mut trailers = HeaderMap::with_capacity(fields.len());
            for field in fields {
                append(&mut trailers, &bytes, field)?;
            }
            Ok(Some(trailers))
        }
        Ok(httparse::Status::Partial) => Err(BadHead::Field),
        Err(error) => Err(bad(error)),
    }
}

/// Splits off everything up to the empty line, after a look at what httparse would forgive.
fn take_head(buffer: &mut BytesMut, limits: &HttpLimits) -> Result<Option<Bytes>, BadHead> {
    // An empty line before a request is ignored (RFC 9112 §2.2), once.
    if buffer.starts_with(b"\r\n") {
        let _ = buffer.split_to(2);
    }
    let end = memchr::memmem::find(buffer, b"\r\n\r\n").map(|at| at + 4);
    let head = &buffer[..end.unwrap_or(buffer.len())];
    if head.len() > limits.header_bytes {
        return Err(BadHead::TooLong);
    }
    for at in memchr::memchr_iter(b'\n', head) {
        if at == 0 || head[at - 1] != b'\r' {
            return Err(BadHead::BareLineFeed);
        }
        if matches!(head.get(at + 1), Some(b' ' | b'\t')) {
            return Err(BadHead::FoldedLine);
        }
    }
    if end.is_none() && !could_be_http(head) {
        return Err(BadHead::NotHttp);
    }
    Ok(end.map(|end| buffer.split_to(end).freeze()))
}

/// Whoever sends something else is told so before a whole head's worth of it has come.
fn could_be_http(start: &[u8]) -> bool {
    let line = start.iter().take_while(|byte| **byte != b'\r').take(16);
    line.into_iter()
        .all(|byte| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..))
}

fn read<T>(parsed: Result<httparse::Status<T>, httparse::Error>) -> Result<(), BadHead> {
    match parsed {
        Ok(httparse::Status::Complete(_)) => Ok(()),
        // The empty line is there, so this is a head with an empty line in its midst.
        Ok(httparse::Status::Partial) => Err(BadHead::NotHttp),
        Err(error) => Err(bad(error)),
    }
}

fn bad(error: httparse::Error) -> BadHead {
    match error {
        httparse::Error::HeaderName | httparse::Error::HeaderValue => BadHead::Field,
        httparse::Error::TooManyHeaders => BadHead::TooManyFields,
        httparse::Error::Version => BadHead::Version,
        httparse::Error::NewLine => BadHead::BareLineFeed,
        httparse::Error::Status | httparse::Error::Token => BadHead::NotHttp,
    }
}

/// Fields of a head, in one pass: those that say how the message is framed and what becomes of the connection are read, the others
/// kept.
#[derive(Default)]
struct Fields {
    kept: HeaderMap,
    options: ConnectionOptions,
    /// What `Connection` names besides.
    named: Vec<HeaderName>,
    host: Option<Authority>,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    upgrade: Option<HeaderValue>,
    idle_seconds: Option<u64>,
}

fn read_fields(
    bytes: &Bytes,
    fields: &[httparse::Header<'_>],
    limits: &HttpLimits,
) -> Result<Fields, BadHead> {
    if fields.len() > limits.header_fields {
        return Err(BadHead::TooManyFields);
    }
    let mut read = Fields {
        kept: HeaderMap::with_capacity(fields.len()),
        ..Fields::default()
    };
    for field in fields {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        // By length first: most fields are none of these.
        match field.name.len() {
            4 if is("host") => {
                read.hosts += 1;
                read.host = read_host(bytes.slice_ref(field.value))?;
                continue;
            }
            10 if is("connection") => {
                read_connection(field.value, &mut read);
                continue;
            }
            10 if is("keep-alive") => {
                read.idle_seconds = announced_idle(field.value);
                continue;
            }
            16 if is("proxy-connection") => continue,
            17 if is("transfer-encoding") => {
                if read.chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(BadHead::TransferEncoding);
                }
                read.chunked = true;
                continue;
            }
            14 if is("content-length") => {
                let length = content_length(field.value).ok_or(BadHead::ContentLength)?;
                if read.length.replace(length).is_some() {
                    return Err(BadHead::ContentLength);
                }
            }
            7 if is("upgrade") => {
                let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
                read.upgrade = Some(value.map_err(|_| BadHead::Field)?);
                continue;
            }
            2 if is("te") => {
                let mut codings = field.value.split(|byte| *byte == b',');
                if codings.any(|te| te.trim_ascii().eq_ignore_ascii_case(b"trailers")) {
                    let trailers = HeaderValue::from_static("trailers");
                    read.kept.insert(header::TE, trailers);
                }
                continue;
            }
            _ => {}
        }
        append(&mut read.kept, bytes, field)?;
    }
    if read.chunked && read.length.is_some() {
        return Err(BadHead::LengthAndEncoding);
    }
    for name in std::mem::take(&mut read.named) {
        read.kept.remove(&name);
    }
    Ok(read)
}

fn append(
    headers: &mut HeaderMap,
    bytes: &Bytes,
    field: &httparse::Header<'_>,
) -> Result<(), BadHead> {
    let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BadHead::Field)?;
    let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
    let value = value.map_err(|_| BadHead::Field)?;
    let appended = headers.try_append(name, value);
    appended.map(|_| ()).map_err(|_| BadHead::TooManyFields)
}

fn read_connection(value: &[u8], read: &mut Fields) {
    for option in value.split(|byte| *byte == b',') {
        let option = option.trim_ascii();
        if option.eq_ignore_ascii_case(b"close") {
            read.options.close = true;
        } else if option.eq_ignore_ascii_case(b"keep-alive") {
            read.options.keep_alive = true;
        } else if option.eq_ignore_ascii_case(b"upgrade") {
            read.options.upgrade = true;
        } else if let Ok(name) = HeaderName::from_bytes(option)
            && may_be_named(&name)
        {
            read.named.push(name);
        }
    }
}

fn read_host(value: Bytes) -> Result<Option<Authority>, BadHead> {
    // Allowed to be empty where the target has no authority.
    if value.is_empty() {
        return Ok(None);
    }
    read_authority(value).map(Some).ok_or(BadHead::Host)
}

/// Host and port. One that names a user as well is an error (RFC 9110 §4.2.4): it is made to look like another host.
fn read_authority(value: Bytes) -> Option<Authority> {
    if memchr::memchr(b'@', &value).is_some() {
        return None;
    }
    Authority::from_maybe_shared(value).ok()
}

/// The path, and the authority where the target has one (absolute form).
fn read_target(
    method: &Method,
    target: Bytes,
) -> Result<(PathAndQuery, Option<Authority>), BadHead> {
    if *method == Method::CONNECT {
        return Err(BadHead::Connect);
    }
    let path = |bytes: Bytes| {
        // A fragment is never sent; the crate would drop it in silence.
        if memchr::memchr(b'#', &bytes).is_some() {
            return Err(BadHead::Target);
        }
        let bytes = escape_quotes(bytes);
        PathAndQuery::from_maybe_shared(bytes).map_err(|_| BadHead::Target)
    };
    if target.first() == Some(&b'/') {
        return Ok((path(target)?, None));
    }
    if &target[..] == b"*" {
        if *method != Method::OPTIONS {
            return Err(BadHead::Target);
        }
        return Ok((PathAndQuery::from_static("*"), None));
    }
    let scheme_end = memchr::memmem::find(&target, b"://").ok_or(BadHead::Target)?;
    let scheme = &target[..scheme_end];
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return Err(BadHead::Target);
    }
    let rest = target.slice(scheme_end + 3..);
    let end = memchr::memchr2(b'/', b'?', &rest).unwrap_or(rest.len());
    let authority = read_authority(rest.slice(..end)).ok_or(BadHead::Target)?;
    let path = match rest.get(end) {
        None => PathAndQuery::from_static("/"),
        Some(b'/') => path(rest.slice(end..))?,
        Some(_) => path(Bytes::from([b"/", &rest[end..]].concat()))?,
    };
    Ok((path, Some(authority)))
}

/// Clients send `"`, `<` and `>` as they are, and servers take them; HTTP/2 as we speak it knows them as escapes only, as browsers
/// write them.
fn escape_quotes(target: Bytes) -> Bytes {
    let wants = |byte: &u8| matches!(byte, b'"' | b'<' | b'>');
    if !target.iter().any(wants) {
        return target;
    }
    let mut escaped = BytesMut::with_capacity(target.len() + 16);
    for byte in &target {
        if wants(byte) {
            escaped.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            escaped.extend_from_slice(&[*byte]);
        }
    }
    escaped.freeze()
}

impl Fields {
    /// How the body comes, by the fields alone.
    fn framing(&self, version: Version) -> Result<Framing, BadHead> {
        match (self.length, self.chunked) {
            (None, true) if version == Version::Http10 => Err(BadHead::EncodingInHttp10),
            (_, true) => Ok(Framing::Chunked),
            (Some(0), false) => Ok(Framing::None),
            (Some(length), false) => Ok(Framing::Length(length)),
            (None, false) => Ok(Framing::UntilClose),
        }
    }
}

/// Digits and nothing else, at most 2^63 - 1.
#[must_use]
pub fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let length = std::str::from_utf8(value).ok()?.parse().ok()?;
    (length <= i64::MAX as u64).then_some(length)
}

fn keeps_alive(version: Version, options: ConnectionOptions) -> bool {
    !options.close && (version == Version::Http11 || options.keep_alive)
}

fn announced_idle(value: &[u8]) -> Option<u64> {
    value.split(|byte| *byte == b',').find_map(|part| {
        let (name, value) = std::str::from_utf8(part).ok()?.trim().split_once('=')?;
        name.eq_ignore_ascii_case("timeout")
            .then(|| value.trim_matches('"').parse().ok())?
    })
}

/// Room for a usual head with a small body, so that it is written into one allocation.
const HEAD_BYTES: usize = 1536;

/// Writes the head of a request.
pub fn write_request(out: &mut Vec<u8>, head: &RequestHead, framing: Framing) {
    out.reserve(HEAD_BYTES);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.path.as_str().as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    if let Some(authority) = &head.authority {
        out.extend_from_slice(authority.as_str().as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    let says_length = write_fields(out, &head.headers);
    match framing {
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) if !says_length => write_length(out, length),
        _ => {}
    }
    if let Some(protocol) = &head.upgrade {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
        out.extend_from_slice(protocol.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the head of an answer for a caller that speaks `version`.
pub fn write_response(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    framing: Framing,
    version: Version,
    keep_alive: bool,
) {
    out.reserve(HEAD_BYTES);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(
        head.status
            .canonical_reason()
            .unwrap_or_default()
            .as_bytes(),
    );
    out.extend_from_slice(b"\r\n");
    let says_length = write_fields(out, &head.headers);
    if let Some(protocol) = &head.upgrade {
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
        out.extend_from_slice(protocol.as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
        return;
    }
    match framing {
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) if !says_length => write_length(out, length),
        _ => {}
    }
    if !head.status.is_informational() {
        match (keep_alive, version) {
            (false, _) => out.extend_from_slice(b"connection: close\r\n"),
            (true, Version::Http10) => out.extend_from_slice(b"connection: keep-alive\r\n"),
            (true, _) => {}
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn write_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(length.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes header or trailer fields, a line each. True where `Content-Length` is one of them.
pub fn write_fields(out: &mut Vec<u8>, headers: &HeaderMap) -> bool {
    let mut says_length = false;
    for (name, value) in headers {
        says_length |= *name == header::CONTENT_LENGTH;
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    says_length
}

#[cfg(test)]
mod tests;
