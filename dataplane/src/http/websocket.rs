//! The keys of WebSocket, which HTTP/1 has and HTTP/2 has not (RFC 6455 §4.2.2, RFC 8441 §5).

use aws_lc_rs::digest;
use base64::Engine as _;
use http::{HeaderValue, header};

use super::message::ResponseHead;

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Answers the caller's key, where the application did not.
pub fn accept(key: Option<&HeaderValue>, head: &mut ResponseHead) {
    let Some(key) = key else { return };
    if let Ok(accept) = HeaderValue::from_str(&accept_of(key.as_bytes())) {
        head.headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
}

fn accept_of(key: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
    base64::engine::general_purpose::STANDARD.encode(hash)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_of_the_rfc() {
        let accept = super::accept_of(b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
