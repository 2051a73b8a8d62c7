//! Server names as TLS can carry them.
//!
//! Names between dataplanes may end with a port number (`sni.msvc.<mesh>.<zone>.<service>.8080`). rustls refuses a host
//! name whose last label is a number, on both sides of a handshake, since it could be taken for an IPv4 address. So such
//! a label has a `_` before it on the wire: `….store._8080`. No port is named so, and the names in documents are not
//! touched; an ingress, which does not use rustls, takes both forms.

use std::borrow::Cow;

use rustls_pki_types::ServerName;

/// The name to call a server by. `None`: it is no host name in any form.
#[must_use]
pub fn on_wire(name: &str) -> Option<ServerName<'static>> {
    let dns = |name: String| match ServerName::try_from(name) {
        Ok(name @ ServerName::DnsName(_)) => Some(name),
        _ => None,
    };
    dns(name.to_owned()).or_else(|| {
        let (rest, last) = name.rsplit_once('.')?;
        dns(format!("{rest}._{last}"))
    })
}

/// The name as documents have it, in lower case.
#[must_use]
pub fn in_documents(name: &str) -> Cow<'_, str> {
    let name = if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    };
    match name.rsplit_once("._") {
        Some((rest, last)) if !last.is_empty() && !last.contains('.') => {
            Cow::Owned(format!("{rest}.{last}"))
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_ends_with_a_number_can_be_sent_and_is_recognised() {
        for (document, wire) in [
            ("sni.msvc.pay.east.web.http", "sni.msvc.pay.east.web.http"),
            ("sni.msvc.pay.east.web.80", "sni.msvc.pay.east.web._80"),
            ("sni.msvc.pay.east.web.0", "sni.msvc.pay.east.web._0"),
        ] {
            let sent = on_wire(document).unwrap();
            assert_eq!(sent.to_str(), wire);
            assert_eq!(in_documents(wire), document);
            assert_eq!(in_documents(document), document);
            assert_eq!(in_documents(&wire.to_uppercase()), document);
        }
        assert!(on_wire("").is_none());
        assert!(on_wire("a b").is_none());
    }
}
