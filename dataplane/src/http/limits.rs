//! What is bounded of HTTP, on every hop alike.

use std::time::Duration;

/// Bounds of HTTP.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// Bytes of a head, request line and field lines together, and of trailers. 431 above.
    pub header_bytes: usize,
    /// Fields of a head, at most [`crate::http::h1::head::FIELDS_MAX`]. 431 above.
    pub header_fields: usize,
    /// Bytes of a request's target. 414 above.
    pub target_bytes: usize,
    /// From a request's first byte to the end of its head, where no policy says otherwise.
    pub headers_timeout: Duration,
    /// Requests under way at once on one HTTP/2 connection of an application.
    pub streams: u32,
    /// Requests under way at once in one worker. 503 above.
    pub requests: usize,
    /// Connections kept to one endpoint by one worker while nothing goes over them.
    pub idle_connections: usize,
    /// How long they are kept.
    pub idle_timeout: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            header_bytes: 128 * 1024,
            header_fields: super::h1::head::FIELDS_MAX,
            target_bytes: 64 * 1024,
            headers_timeout: Duration::from_secs(60),
            streams: 256,
            requests: 16_384,
            idle_connections: 64,
            idle_timeout: Duration::from_secs(60),
        }
    }
}
