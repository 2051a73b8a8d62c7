//! Who is at the other end of a TLS connection: verifiers by SPIFFE ID and by pin, and identities that can be replaced
//! while they are in use.
//!
//! A certificate counts only where its chain ends in an anchor of *its own* trust domain, so that one domain's CA can
//! never vouch for another's identities. Host names are not looked at: addresses change, identities do not.

use std::{collections::BTreeMap, fmt, sync::Arc};

use mesh_proto::spiffe::{SpiffeId, TrustDomain};
use rustls::{
    ClientConfig, DistinguishedName, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs},
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::pki;

/// Trust anchors by trust domain.
#[derive(Debug, Clone, Default)]
pub struct TrustDomains(BTreeMap<TrustDomain, Vec<TrustAnchor<'static>>>);

impl TrustDomains {
    /// Anchors of the domain that the control planes use among themselves.
    ///
    /// # Errors
    /// Where a certificate can not be an anchor.
    pub fn installation(anchors: &[CertificateDer<'_>]) -> Result<Self, rustls::Error> {
        let mut domains = Self::default();
        domains.add(TrustDomain::installation(), anchors)?;
        Ok(domains)
    }

    /// Adds anchors to a domain.
    ///
    /// # Errors
    /// Where a certificate can not be an anchor; nothing is added then.
    pub fn add(
        &mut self,
        domain: TrustDomain,
        anchors: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        let anchors = anchors
            .iter()
            .map(|der| {
                webpki::anchor_from_trusted_cert(der)
                    .map(|anchor| anchor.to_owned())
                    .map_err(|error| {
                        refused(&format!("an anchor of {domain} is malformed: {error}"))
                    })
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.0.entry(domain).or_default().extend(anchors);
        Ok(())
    }

    /// Verifies a chain, leaf first: exactly one URI name, a SPIFFE ID whose own trust domain's anchors vouch for it,
    /// at `now`. The extended key usage must allow what the peer is.
    ///
    /// # Errors
    /// Why not, in words for the person on call. A chain outside its time is refused with both times.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        peer: Peer,
    ) -> Result<SpiffeId, rustls::Error> {
        let (leaf, intermediates) = chain
            .split_first()
            .ok_or_else(|| refused("the peer sent no certificate"))?;
        let id = spiffe_id(leaf)?;
        let anchors = self.0.get(id.trust_domain()).ok_or_else(|| {
            refused(&format!(
                "{id}: no anchor of its trust domain is known here"
            ))
        })?;
        verify_chain(leaf, intermediates, anchors, now, peer)
            .map_err(|reason| refused(&format!("{id}: {reason}")))?;
        Ok(id)
    }
}

/// What the verified peer is in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Peer {
    Client,
    Server,
}

/// The SPIFFE ID of a certificate that has not been verified.
///
/// # Errors
/// Where it has no URI name, several, or one that is no SPIFFE ID.
pub fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, rustls::Error> {
    let parsed = EndEntityCert::try_from(leaf)
        .map_err(|error| refused(&format!("malformed certificate: {error}")))?;
    let mut names = parsed.valid_uri_names();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(refused(
            "the certificate must have exactly one URI name, a SPIFFE ID",
        ));
    };
    name.parse()
        .map_err(|error| refused(&format!("certificate for {name:?}: {error}")))
}

fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'static>],
    now: UnixTime,
    peer: Peer,
) -> Result<(), String> {
    let usage = match peer {
        Peer::Client => KeyUsage::client_auth(),
        Peer::Server => KeyUsage::server_auth(),
    };
    let parsed = EndEntityCert::try_from(leaf).map_err(|error| error.to_string())?;
    parsed
        .verify_for_usage(
            algorithms().all,
            anchors,
            intermediates,
            now,
            usage,
            None,
            None,
        )
        .map(|_| ())
        .map_err(|error| explain(&error))
}

/// Clocks that differ are the most frequent cause of refusals in time: say both times.
fn explain(error: &webpki::Error) -> String {
    let at = |time: UnixTime| {
        i64::try_from(time.as_secs())
            .ok()
            .and_then(|secs| time::OffsetDateTime::from_unix_timestamp(secs).ok())
            .map_or_else(|| time.as_secs().to_string(), |t| t.to_string())
    };
    match error {
        webpki::Error::CertExpired { time, not_after } => format!(
            "the certificate ended at {}, the clock here says {}",
            at(*not_after),
            at(*time)
        ),
        webpki::Error::CertNotValidYet { time, not_before } => format!(
            "the certificate begins at {}, the clock here says {}: compare the two clocks",
            at(*not_before),
            at(*time)
        ),
        webpki::Error::UnknownIssuer => {
            "no anchor of its trust domain has signed the certificate".to_owned()
        }
        other => other.to_string(),
    }
}

/// What the provider verifies signatures by.
#[must_use]
pub fn algorithms() -> WebPkiSupportedAlgorithms {
    aws_lc_rs::default_provider().signature_verification_algorithms
}

fn refused(reason: &str) -> rustls::Error {
    rustls::Error::General(reason.to_owned())
}

/// Says whether a verified identity is the wanted one, or why not.
pub type Accept = Arc<dyn Fn(&SpiffeId) -> Result<(), String> + Send + Sync>;

/// The signature methods of a rustls verifier, client's or server's: TLS 1.3 as the provider has it, nothing older.
#[macro_export]
macro_rules! tls13_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &::rustls::pki_types::CertificateDer<'_>,
            _dss: &::rustls::DigitallySignedStruct,
        ) -> Result<::rustls::client::danger::HandshakeSignatureValid, ::rustls::Error> {
            Err(::rustls::Error::General("TLS 1.3 is required".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &::rustls::pki_types::CertificateDer<'_>,
            dss: &::rustls::DigitallySignedStruct,
        ) -> Result<::rustls::client::danger::HandshakeSignatureValid, ::rustls::Error> {
            ::rustls::crypto::verify_tls13_signature(message, cert, dss, &$crate::tls::algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<::rustls::SignatureScheme> {
            $crate::tls::algorithms().supported_schemes()
        }
    };
}

/// Accepts peers by SPIFFE ID. Serves both ends of a handshake.
#[derive(Clone)]
pub struct SpiffeVerifier {
    trust: Arc<TrustDomains>,
    accept: Accept,
    anonymous_clients: bool,
}

impl SpiffeVerifier {
    /// Accepts identities that `trust` vouches for and `accept` wants.
    #[must_use]
    pub fn new(trust: Arc<TrustDomains>, accept: Accept) -> Self {
        Self {
            trust,
            accept,
            anonymous_clients: false,
        }
    }

    /// Lets clients in that present no certificate; the server must look at who they are.
    #[must_use]
    pub fn or_anonymous(mut self) -> Self {
        self.anonymous_clients = true;
        self
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        peer: Peer,
    ) -> Result<(), rustls::Error> {
        let mut chain = vec![leaf.clone()];
        chain.extend_from_slice(intermediates);
        let id = self.trust.verify(&chain, now, peer)?;
        (self.accept)(&id).map_err(|reason| refused(&format!("{id}: {reason}")))
    }
}

impl fmt::Debug for SpiffeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpiffeVerifier").finish_non_exhaustive()
    }
}

/// Accepts a global node or zone control plane whose chain holds the CA with a known pin: for callers that have a token
/// and no anchors yet.
#[derive(Clone)]
pub struct PinVerifier {
    pin: String,
    accept: Accept,
}

impl PinVerifier {
    /// Accepts identities under the CA with `pin` (see [`pki::pin`]) that `accept` wants.
    #[must_use]
    pub fn new(pin: String, accept: Accept) -> Self {
        Self { pin, accept }
    }
}

impl fmt::Debug for PinVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinVerifier")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

/// What a [`PinVerifier`] says where no certificate of the chain has the pin.
pub const WRONG_PIN: &str = "the server's CA is not the one this token pins: the token is of another installation, or \
                             something between here and the server answers in its place";

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned: Vec<_> = intermediates
            .iter()
            .filter(|der| pki::pin(der).is_ok_and(|pin| pin == self.pin))
            .cloned()
            .collect();
        if pinned.is_empty() {
            return Err(refused(WRONG_PIN));
        }
        let trust = Arc::new(TrustDomains::installation(&pinned)?);
        SpiffeVerifier::new(trust, self.accept.clone()).check(
            leaf,
            intermediates,
            now,
            Peer::Server,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures!();
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(leaf, intermediates, now, Peer::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures!();
}

impl ClientCertVerifier for SpiffeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.anonymous_clients
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(leaf, intermediates, now, Peer::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    tls13_signatures!();
}

/// The identity a process presents, replaced while connections are being made. Clones share it.
#[derive(Clone)]
pub struct LocalIdentity(Arc<arc_swap::ArcSwapOption<CertifiedKey>>);

impl LocalIdentity {
    /// No identity yet: handshakes fail until [`Self::set`].
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new(arc_swap::ArcSwapOption::empty()))
    }

    /// Presents `chain` (leaf first) with `key` from the next handshake on.
    ///
    /// # Errors
    /// Where the key is of an unknown kind or is not the leaf's.
    pub fn set(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'static>,
    ) -> Result<(), rustls::Error> {
        let key = aws_lc_rs::sign::any_supported_type(key)?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match()?;
        self.0.store(Some(Arc::new(certified)));
        Ok(())
    }

    /// What is presented now.
    #[must_use]
    pub fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl fmt::Debug for LocalIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalIdentity").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for LocalIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

impl ResolvesClientCert for LocalIdentity {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        self.0.load().is_some()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A client that presents `identity` (if any) and checks the server by `verifier`. TLS 1.3 only.
///
/// # Panics
/// Never: the provider supports TLS 1.3.
#[must_use]
pub fn client_config(
    identity: Option<LocalIdentity>,
    verifier: Arc<dyn ServerCertVerifier>,
    alpn: &[&[u8]],
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("aws-lc-rs supports TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(identity)),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

/// A server that presents `identity` and checks clients by `verifier`; without one it asks for no certificate. TLS 1.3
/// only.
///
/// # Panics
/// Never: the provider supports TLS 1.3.
#[must_use]
pub fn server_config(
    identity: LocalIdentity,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    alpn: &[&[u8]],
) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("aws-lc-rs supports TLS 1.3");
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(identity));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::pki::{Ca, Subject};

    fn leaf(ca: &Ca, id: &str) -> CertificateDer<'static> {
        let csr = pki::request(&pki::new_key().unwrap()).unwrap();
        let subject = Subject {
            spiffe_id: Some(id.parse().unwrap()),
            ..Subject::default()
        };
        let now = OffsetDateTime::now_utc();
        ca.sign(&csr, &subject, now, Duration::hours(1)).unwrap()
    }

    fn ca(name: &str) -> Ca {
        Ca::self_signed(name, None, OffsetDateTime::now_utc(), Duration::days(1)).unwrap()
    }

    fn trust(domains: &[(&str, &Ca)]) -> TrustDomains {
        let mut trust = TrustDomains::default();
        for (domain, ca) in domains {
            let domain = domain.parse().unwrap();
            trust.add(domain, &[ca.certificate().clone()]).unwrap();
        }
        trust
    }

    #[test]
    fn a_ca_vouches_for_its_own_trust_domain_only() {
        let (east, west) = (ca("east"), ca("west"));
        let trust = trust(&[("m.east", &east), ("m.west", &west)]);
        let check = |leaf| trust.verify(&[leaf], UnixTime::now(), Peer::Client);
        assert!(check(leaf(&east, "spiffe://m.east/workload/a")).is_ok());
        // East's CA signs an identity of west: refused.
        assert!(check(leaf(&east, "spiffe://m.west/workload/a")).is_err());
        assert!(check(leaf(&east, "spiffe://other/workload/a")).is_err());
    }

    #[test]
    fn a_refusal_in_time_names_both_times() {
        let east = ca("east");
        let trust = trust(&[("m.east", &east)]);
        let leaf = leaf(&east, "spiffe://m.east/workload/a");
        let later = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            UnixTime::now().as_secs() + 7200,
        ));
        let error = trust
            .verify(&[leaf], later, Peer::Client)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("ended at") && error.contains("clock here says"),
            "{error}"
        );
    }

    #[test]
    fn a_pin_accepts_only_its_ca() {
        crate::init();
        let (ours, theirs) = (ca("ours"), ca("theirs"));
        let verifier = PinVerifier::new(
            pki::pin(ours.certificate()).unwrap(),
            Arc::new(|id| id.as_global_node().map(|_| ()).ok_or("no node".to_owned())),
        );
        let check = |leaf: &CertificateDer<'_>, ca: &Ca| {
            verifier.verify_server_cert(
                leaf,
                &[ca.certificate().clone()],
                &ServerName::try_from("x").unwrap(),
                &[],
                UnixTime::now(),
            )
        };
        assert!(check(&leaf(&ours, "spiffe://isthmus.local/global/1"), &ours).is_ok());
        assert!(check(&leaf(&ours, "spiffe://isthmus.local/zone/a"), &ours).is_err());
        assert!(check(&leaf(&theirs, "spiffe://isthmus.local/global/1"), &theirs).is_err());
        // The pinned CA is shown but has not signed the leaf.
        assert!(check(&leaf(&theirs, "spiffe://isthmus.local/global/1"), &ours).is_err());
    }
}
