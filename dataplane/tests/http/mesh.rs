//! A caller that speaks mesh TLS itself, as somebody's sidecar would.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;

/// Whom the test calls it knows.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        mesh_runtime::tls::algorithms().supported_schemes()
    }
}

impl Scene {
    /// Connections to `store`'s inbound in the name of `web`.
    #[expect(
        clippy::disallowed_methods,
        reason = "a peer that is not ours, and takes whoever answers"
    )]
    pub(crate) fn peer(&self) -> Peer {
        let world = self.zone.world.lock().unwrap();
        let (leaf, key) = leaf(
            &world.cas[DOMAIN],
            &identity("web"),
            time::Duration::hours(1),
        );
        let mut config = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_client_auth_cert(vec![leaf], mesh_runtime::pki::private_key(&key))
            .unwrap();
        config.alpn_protocols = vec![mesh_proto::MESH_ALPN.to_vec()];
        Peer {
            connector: TlsConnector::from(Arc::new(config)),
            port: self.inbound,
        }
    }
}

pub(crate) struct Peer {
    connector: TlsConnector,
    port: u16,
}

impl Peer {
    pub(crate) async fn connect(&self) -> TlsStream<TcpStream> {
        let name = dataplane::tls::server_name::on_wire(&server_name("store")).unwrap();
        let stream = connect(self.port).await;
        self.connector.connect(name, stream).await.unwrap()
    }
}
