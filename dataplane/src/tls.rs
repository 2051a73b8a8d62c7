//! TLS between dataplanes: 1.3 only, hybrid key exchange first, mutual, both ends known by SPIFFE ID.
//!
//! Sessions are rustls' unbuffered connections, so that no buffer exists while a connection is idle; the bytes are the
//! relay's to move. Session resumption is off: a resumed session would have to be bound to the trust generation and
//! checked like a new one, and connections between sidecars live long enough that a full handshake is cheap.

pub mod handshake;
pub mod identity;
pub mod server_name;
pub mod session;
pub mod verify;

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, LazyLock},
};

use mesh_proto::{MESH_ALPN, spiffe::SpiffeId};
use rustls::{
    ClientConfig, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};

use crate::{config::Trust, permission::Permissions};
use identity::Identity;
use verify::{ClientVerifier, Refusal, ServerVerifier, notes};

/// One provider for the process: building it anew for each configuration would cost memory.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// The server side of an inbound that answers to `server_names`, for callers that `permissions` let in.
#[must_use]
pub fn server_config(
    identity: &Identity,
    trust: Arc<Trust>,
    server_names: Arc<BTreeSet<String>>,
    permissions: Arc<Permissions>,
) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("aws-lc-rs supports TLS 1.3")
        .with_client_cert_verifier(Arc::new(ClientVerifier::new(trust, permissions)))
        .with_cert_resolver(Arc::new(ServerNames {
            key: identity.key.clone(),
            server_names,
        }));
    config.alpn_protocols = vec![MESH_ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Arc::new(config)
}

/// The client side of connections to a service in one zone.
#[must_use]
pub fn client_config(
    identity: &Identity,
    trust: Arc<Trust>,
    identities: Arc<HashSet<SpiffeId>>,
) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("aws-lc-rs supports TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(trust, identities)))
        .with_client_cert_resolver(Arc::new(OwnCertificate(identity.key.clone())));
    config.alpn_protocols = vec![MESH_ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Presents the certificate only to clients that ask for one of the inbound's names.
#[derive(Debug)]
struct ServerNames {
    key: Arc<CertifiedKey>,
    server_names: Arc<BTreeSet<String>>,
}

impl ResolvesServerCert for ServerNames {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wanted = hello.server_name().unwrap_or_default();
        if !self
            .server_names
            .contains(&*server_name::in_documents(wanted))
        {
            notes::refused(Refusal::ServerName(wanted.to_owned()));
            return None;
        }
        // rustls itself refuses a client that offers other protocols, but not one that offers none.
        if hello.alpn().is_none() {
            notes::refused(Refusal::NotMesh);
            return None;
        }
        Some(self.key.clone())
    }
}

#[derive(Debug)]
struct OwnCertificate(Arc<CertifiedKey>);

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
pub(crate) mod tests;
