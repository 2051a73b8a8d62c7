//! How a caller is answered, whichever version of HTTP it speaks.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason as H2Reason, server::SendResponse};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};

use super::{
    body::{BodyError, H2Sink, Sink, stream_error},
    h1::{SharedH1, head::Framing},
    message::{Length, ResponseHead, Version},
    websocket,
};
use crate::record::Reason;

/// Says why the mesh answered instead of the application: a [`Reason`]. What an application sends by this name is taken out.
pub const REASON_HEADER: HeaderName = HeaderName::from_static("x-isthmus-reason");

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The way back to one caller, for one request.
pub enum Reply {
    /// Over HTTP/1.
    H1(H1Reply),
    /// Over HTTP/2.
    H2 {
        /// The stream.
        respond: SendResponse<Bytes>,
        /// The answer to HEAD has no body.
        is_head: bool,
    },
    /// Nobody waits for an answer: the request is a mirrored one.
    Nobody,
}

/// The way back over HTTP/1.
pub struct H1Reply {
    /// The caller's connection.
    pub connection: SharedH1,
    /// What it speaks.
    pub version: Version,
    /// The answer to HEAD has no body.
    pub is_head: bool,
    /// Further requests may come on the connection after this one.
    pub keep_alive: bool,
    /// The key of a WebSocket that is asked for.
    pub key: Option<HeaderValue>,
}

/// An answer of the mesh itself.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Why.
    pub reason: Reason,
    /// For whoever reads the answer: what happened, without what only the operator should know.
    pub text: String,
    /// Where to go instead.
    pub location: Option<HeaderValue>,
}

impl Answer {
    /// An answer of the mesh itself.
    #[must_use]
    pub fn new(status: StatusCode, reason: Reason, text: impl Into<String>) -> Self {
        Self {
            status,
            reason,
            text: text.into(),
            location: None,
        }
    }

    /// The head of the answer, and its body; for a gRPC caller a status in trailers (and nothing but trailers).
    #[must_use]
    pub fn into_message(self, is_grpc: bool) -> (ResponseHead, Bytes) {
        let mut head = ResponseHead {
            status: self.status,
            headers: http::HeaderMap::with_capacity(4),
            upgrade: None,
        };
        let headers = &mut head.headers;
        let reason = self.reason.as_str();
        if !reason.is_empty() {
            headers.insert(REASON_HEADER, HeaderValue::from_static(reason));
        }
        if let Some(location) = self.location {
            headers.insert(header::LOCATION, location);
        }
        if is_grpc {
            head.status = StatusCode::OK;
            let grpc = HeaderValue::from_static("application/grpc");
            headers.insert(header::CONTENT_TYPE, grpc);
            headers.insert(
                GRPC_STATUS,
                HeaderValue::from_static(grpc_status(self.status)),
            );
            if let Ok(message) = HeaderValue::from_str(&percent_encode(&self.text)) {
                headers.insert(GRPC_MESSAGE, message);
            }
            return (head, Bytes::new());
        }
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, text);
        (head, Bytes::from(format!("{}\n", self.text)))
    }
}

/// What a status of HTTP is in gRPC (its `http-grpc-status-mapping.md`, but that a refused permission is 7 and a time-out 4).
fn grpc_status(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "13",
        StatusCode::UNAUTHORIZED => "16",
        StatusCode::FORBIDDEN => "7",
        StatusCode::NOT_FOUND => "12",
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => "4",
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE => "14",
        _ => "2",
    }
}

/// As gRPC wants messages: everything but printable ASCII, and `%`, by its bytes.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (0x20..0x7f).contains(&byte) && byte != b'%' {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

impl Reply {
    /// Passes on an interim answer (1xx), where the caller's version has them.
    pub fn inform(&mut self, head: &ResponseHead) {
        match self {
            Self::H1(reply) if reply.version == Version::Http11 => {
                reply.connection.borrow_mut().put_interim(head);
            }
            Self::H2 { respond, .. } => {
                let mut response = Response::new(());
                *response.status_mut() = head.status;
                response.headers_mut().clone_from(&head.headers);
                // A caller that has gone learns nothing, and its stream says so soon.
                let _ = respond.send_informational(response);
            }
            Self::H1(_) | Self::Nobody => {}
        }
    }

    /// Sends what has been said so far.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) {
        if let Self::H1(reply) = self {
            // An error comes again where the answer is written.
            let _ = reply.connection.borrow_mut().poll_flush(cx);
        }
    }

    /// Ready once the caller does not wait for the answer any more.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        match self {
            // While the body is being read, whoever reads it learns.
            Self::H1(reply) => {
                ready!(reply.connection.borrow_mut().poll_caller_gone(cx));
                Poll::Ready(BodyError::Closed("the connection broke".to_owned()))
            }
            Self::H2 { respond, .. } => match ready!(respond.poll_reset(cx)) {
                Ok(reason) => Poll::Ready(BodyError::Reset(reason)),
                Err(error) => Poll::Ready(stream_error(&error)),
            },
            Self::Nobody => Poll::Pending,
        }
    }

    /// Begins the answer, whose body has `length` and may be none at all (`has_body`). The sink takes it.
    ///
    /// # Errors
    /// Where the caller has gone.
    pub fn begin(
        self,
        head: ResponseHead,
        length: Length,
        has_body: bool,
    ) -> Result<Sink, BodyError> {
        match self {
            Self::Nobody => Ok(Sink::None),
            Self::H1(reply) => Ok(reply.begin(&head, length, has_body)),
            Self::H2 { mut respond, .. } => {
                let mut response = Response::new(());
                // An upgrade that is agreed on is a success in HTTP/2 (RFC 8441 §5).
                *response.status_mut() = match head.upgrade {
                    Some(_) => StatusCode::OK,
                    None => head.status,
                };
                *response.headers_mut() = head.headers;
                let sent = respond.send_response(response, !has_body);
                let stream = sent.map_err(|error| stream_error(&error))?;
                Ok(if has_body {
                    Sink::H2(H2Sink::new(stream))
                } else {
                    Sink::None
                })
            }
        }
    }

    /// The caller learns that no answer comes.
    pub fn abort(self, reason: H2Reason) {
        match self {
            Self::H1(reply) => reply.connection.borrow_mut().break_off(),
            Self::H2 { mut respond, .. } => respond.send_reset(reason),
            Self::Nobody => {}
        }
    }

    /// Further requests can not come on the caller's connection after this one.
    pub fn close_after(&mut self) {
        if let Self::H1(reply) = self {
            reply.keep_alive = false;
        }
    }

    /// The same, where the request's body has not come whole: nobody is going to read it.
    pub fn close_after_unread(&mut self) {
        if let Self::H1(reply) = self
            && !reply.connection.borrow().has_read_all()
        {
            reply.keep_alive = false;
        }
    }

    /// The answer to HEAD has no body.
    #[must_use]
    pub fn is_head(&self) -> bool {
        match self {
            Self::H1(reply) => reply.is_head,
            Self::H2 { is_head, .. } => *is_head,
            Self::Nobody => false,
        }
    }

    /// The caller's connection (or stream) goes on with another protocol, as `head` says.
    pub fn upgrade(&mut self, head: &mut ResponseHead) {
        match self {
            Self::H1(reply) => {
                websocket::accept(reply.key.as_ref(), head);
                reply.connection.borrow_mut().upgrade();
            }
            // HTTP/2 has no keys (RFC 8441 §5).
            Self::H2 { .. } => {
                head.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
            }
            Self::Nobody => {}
        }
    }
}

impl H1Reply {
    fn begin(self, head: &ResponseHead, length: Length, has_body: bool) -> Sink {
        let framing = match length {
            _ if head.upgrade.is_some() => Framing::UntilClose,
            // Without a length, the caller would wait for the connection's end.
            _ if !has_body && !self.is_head && !is_bodiless(&Method::GET, head.status) => {
                Framing::Length(0)
            }
            _ if !has_body => Framing::None,
            Length::Known(length) => Framing::Length(length),
            Length::Unknown if self.version == Version::Http10 => Framing::UntilClose,
            Length::Unknown => Framing::Chunked,
        };
        let mut connection = self.connection.borrow_mut();
        let keep_alive = self.keep_alive && framing != Framing::UntilClose;
        connection.put_response(head, framing, self.version, keep_alive);
        drop(connection);
        Sink::H1(self.connection)
    }
}

/// True where an answer with `status` to a request with `method` has no body, whatever its fields say.
#[must_use]
pub fn is_bodiless(method: &Method, status: StatusCode) -> bool {
    *method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || status.is_informational()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_caller_is_answered_in_its_own_terms() {
        let answer = Answer::new(
            StatusCode::FORBIDDEN,
            Reason::PermissionDenied,
            "50% of üs may not",
        );
        let (head, body) = answer.clone().into_message(true);
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(head.headers["grpc-status"], "7");
        assert_eq!(head.headers["grpc-message"], "50%25 of %C3%BCs may not");
        assert_eq!(head.headers["x-isthmus-reason"], "permission_denied");
        assert!(body.is_empty());
        let (head, body) = answer.into_message(false);
        assert_eq!(head.status, StatusCode::FORBIDDEN);
        assert_eq!(&body[..], "50% of üs may not\n".as_bytes());
    }
}
