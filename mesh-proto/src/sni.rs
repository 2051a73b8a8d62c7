//! Server names between dataplanes, as Kuma 3 has them:
//! `sni.<msvc|mzsvc|extsvc>.<mesh>[.<zone>[.<namespace>]].<name>.<port>`.
//!
//! A zone ingress routes by them without decrypting. At most 253 bytes, checked when resources are accepted.

use crate::{
    MESH_ALPN,
    names::{MeshName, ZoneName},
};

/// The longest server name, in bytes (RFC 1035 §2.3.4 in its textual form).
pub const MAX_BYTES: usize = 253;

/// The server name of `port` (its name, or its number in decimal) of a MeshService that lives in `zone`.
#[must_use]
pub fn mesh_service(mesh: &MeshName, zone: &ZoneName, service: &str, port: &str) -> String {
    format!("sni.msvc.{mesh}.{zone}.{service}.{port}")
}

/// The server name in a TLS ClientHello, read from the first bytes of a connection without keeping state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientHello {
    /// More bytes are needed.
    Incomplete,
    /// Not a TLS 1.2/1.3 ClientHello; the reason is for the log.
    Invalid(&'static str),
    /// A whole ClientHello.
    Complete {
        /// The name of the `server_name` extension, where there is one.
        server_name: Option<String>,
        /// It offers the application protocol of mesh TLS.
        is_mesh: bool,
    },
}

/// The longest ClientHello that is accepted, in bytes, record headers included.
pub const MAX_CLIENT_HELLO_BYTES: usize = 16 * 1024;

/// Reads the server name from `bytes`, the beginning of a connection (RFC 8446 §4.1.2, RFC 6066 §3). The handshake
/// message may span records.
#[must_use]
pub fn parse_client_hello(bytes: &[u8]) -> ClientHello {
    match handshake_message(bytes) {
        Ok(Some(message)) => match extensions(&message) {
            Some((server_name, is_mesh)) => ClientHello::Complete {
                server_name,
                is_mesh,
            },
            None => ClientHello::Invalid("malformed ClientHello"),
        },
        Ok(None) if bytes.len() >= MAX_CLIENT_HELLO_BYTES => {
            ClientHello::Invalid("ClientHello is too long")
        }
        Ok(None) => ClientHello::Incomplete,
        Err(reason) => ClientHello::Invalid(reason),
    }
}

/// Joins the fragments of the first handshake message. `None`: more bytes are needed.
fn handshake_message(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    const HANDSHAKE: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    let mut message = Vec::new();
    loop {
        match bytes.first() {
            None => return Ok(None),
            Some(&HANDSHAKE) => {}
            Some(_) => return Err("not a TLS handshake"),
        }
        if bytes.get(1).is_some_and(|major| *major != 3) {
            return Err("not a TLS handshake");
        }
        let Some(header) = bytes.get(..5) else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > 16_384 {
            return Err("TLS record of an impossible length");
        }
        let fragment = &bytes[5..bytes.len().min(5 + length)];
        message.extend_from_slice(fragment);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err("the first TLS message is not a ClientHello");
        }
        if let Some(head) = message.get(..4) {
            let wanted = 4
                + usize::from(head[1]) * 65_536
                + usize::from(head[2]) * 256
                + usize::from(head[3]);
            if wanted > MAX_CLIENT_HELLO_BYTES {
                return Err("ClientHello is too long");
            }
            if message.len() >= wanted {
                message.truncate(wanted);
                message.drain(..4);
                return Ok(Some(message));
            }
        }
        if fragment.len() < length {
            return Ok(None);
        }
        bytes = &bytes[5 + length..];
    }
}

/// The server name in the body of a ClientHello, and whether it offers mesh TLS. Outer `None`: malformed.
fn extensions(body: &[u8]) -> Option<(Option<String>, bool)> {
    const SERVER_NAME: u16 = 0;
    const ALPN: u16 = 16;
    let mut hello = Reader(body);
    hello.take(2 + 32)?; // legacy_version, random
    hello.vector8()?; // legacy_session_id
    hello.vector16()?; // cipher_suites
    hello.vector8()?; // legacy_compression_methods
    if hello.0.is_empty() {
        return Some((None, false));
    }
    let (mut server_name, mut is_mesh) = (None, false);
    let mut extensions = Reader(hello.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut extension = Reader(extensions.vector16()?);
        match kind {
            SERVER_NAME if server_name.is_none() => {
                server_name = host_name(Reader(extension.vector16()?))?;
            }
            ALPN => {
                let mut protocols = Reader(extension.vector16()?);
                while !protocols.0.is_empty() {
                    is_mesh |= protocols.vector8()? == MESH_ALPN;
                }
            }
            _ => {}
        }
    }
    Some((server_name, is_mesh))
}

/// The host name in a list of server names. Outer `None`: malformed.
fn host_name(mut names: Reader<'_>) -> Option<Option<String>> {
    while !names.0.is_empty() {
        let name_type = names.take(1)?[0];
        let name = names.vector16()?;
        if name_type == 0 {
            let name = std::str::from_utf8(name).ok()?;
            return (!name.is_empty()).then(|| Some(name.to_ascii_lowercase()));
        }
    }
    Some(None)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.take(1)?[0]);
        self.take(length)
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.u16()?);
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello(name: &str) -> Vec<u8> {
        let mut list = vec![0];
        list.extend((name.len() as u16).to_be_bytes());
        list.extend(name.as_bytes());
        let mut extension = (list.len() as u16).to_be_bytes().to_vec();
        extension.extend(list);
        let mut extensions = vec![0, 10, 0, 2, 0, 0, 0, 0];
        extensions.extend((extension.len() as u16).to_be_bytes());
        extensions.extend(extension);
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        message
    }

    fn record(fragment: &[u8]) -> Vec<u8> {
        let mut record = vec![22, 3, 1];
        record.extend((fragment.len() as u16).to_be_bytes());
        record.extend(fragment);
        record
    }

    #[test]
    fn the_name_is_found_at_every_cut() {
        let name = "sni.msvc.payments.west.store.8080";
        let whole = record(&hello(name));
        for cut in 0..whole.len() {
            assert_eq!(
                parse_client_hello(&whole[..cut]),
                ClientHello::Incomplete,
                "{cut}"
            );
        }
        assert_eq!(
            parse_client_hello(&whole),
            ClientHello::Complete {
                server_name: Some(name.into()),
                is_mesh: false,
            }
        );
    }

    #[test]
    fn a_hello_may_span_records() {
        let message = hello("a.b");
        let mut bytes = record(&message[..9]);
        bytes.extend(record(&message[9..]));
        assert_eq!(
            parse_client_hello(&bytes),
            ClientHello::Complete {
                server_name: Some("a.b".into()),
                is_mesh: false,
            }
        );
    }

    #[test]
    fn plaintext_is_told_at_the_first_byte() {
        assert!(matches!(parse_client_hello(b"G"), ClientHello::Invalid(_)));
        assert!(matches!(
            parse_client_hello(b"\x16\x01"),
            ClientHello::Invalid(_)
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse_client_hello(&bytes);
        }

        #[test]
        fn no_mangled_hello_panics_the_parser(at in 0usize..120, value: u8) {
            let mut bytes = record(&hello("sni.msvc.a.b.c.1"));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let _ = parse_client_hello(&bytes);
        }
    }
}
