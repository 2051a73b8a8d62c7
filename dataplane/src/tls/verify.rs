//! Who is at the other end.
//!
//! A certificate counts only where its chain ends in an anchor of *its own* trust domain, so that one zone's or mesh's
//! CA can never vouch for another's identities. Host names are not looked at.

use std::{collections::HashSet, sync::Arc, time::Duration};

use mesh_proto::spiffe::SpiffeId;
use rustls::{
    DistinguishedName,
    client::danger::{ServerCertVerified, ServerCertVerifier},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage};

use super::PROVIDER;
use crate::{
    config::{AnchorKey, Trust},
    permission::{Decision, Permissions},
};

/// A peer whose certificate has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    /// Who it is.
    pub id: SpiffeId,
    /// Which CA vouches for it: where that anchor is withdrawn, the connection ends.
    pub anchor: AnchorKey,
}

/// Why a handshake is refused by a rule of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The client asks for a name that this inbound does not have.
    #[error("server name {0:?} is none of this inbound's")]
    ServerName(String),
    /// The client asks for a name in a form that rustls does not take.
    #[error("server name {0:?} is no host name to rustls; one that ends with a number is called with '_' before it: {wire:?}", wire = crate::tls::server_name::on_wire(.0).map(|name| name.to_str().into_owned()).unwrap_or_default())]
    ServerNameForm(String),
    /// TLS, but not of a mesh.
    #[error("the client does not offer the application protocol of mesh TLS")]
    NotMesh,
    /// No certificate, or not one of a workload.
    #[error("certificate: {0}")]
    Certificate(String),
    /// Nobody here vouches for the trust domain.
    #[error("{0}: no anchor of its trust domain is known here")]
    UnknownTrustDomain(SpiffeId),
    /// Signed by somebody who does not vouch for its trust domain.
    #[error("{id}: {reason}")]
    Chain {
        /// Who the certificate says the peer is.
        id: SpiffeId,
        /// What is wrong.
        reason: String,
    },
    /// Outside its time. Clocks that differ are the most frequent cause, so both times are said.
    #[error("{id}: its certificate {bound} at {at}, the clock here says {now}: compare the clocks")]
    Time {
        /// Who the certificate says the peer is.
        id: SpiffeId,
        /// "ended" or "begins".
        bound: &'static str,
        /// When.
        at: OffsetDateTime,
        /// The clock here.
        now: OffsetDateTime,
    },
    /// A workload that is not behind the service.
    #[error("{0} is not one of the service's identities")]
    OtherIdentity(SpiffeId),
    /// A workload that may not call.
    #[error("{}", denied(&.peer.id, .by.as_deref()))]
    Permission {
        /// Who it is.
        peer: VerifiedPeer,
        /// The rule that denies it. `None`: no rule allows it.
        by: Option<Arc<str>>,
    },
}

/// Why permissions do not let `caller` in, in words.
#[must_use]
pub fn denied(caller: &SpiffeId, by: Option<&str>) -> String {
    match by {
        Some(by) => format!("{caller} is denied by {by}"),
        None => format!("no MeshTrafficPermission allows {caller}"),
    }
}

/// Verifies a peer's chain at `now`.
///
/// # Errors
/// Why not.
pub fn verify(
    trust: &Trust,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    usage: KeyUsage,
) -> Result<VerifiedPeer, Refusal> {
    let malformed = |error: webpki::Error| Refusal::Certificate(error.to_string());
    let parsed = EndEntityCert::try_from(leaf).map_err(malformed)?;
    let mut names = parsed.valid_uri_names();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(Refusal::Certificate(
            "it must have exactly one URI name, a SPIFFE ID".to_owned(),
        ));
    };
    let id: SpiffeId = name
        .parse()
        .map_err(|error| Refusal::Certificate(format!("{name:?}: {error}")))?;
    let anchors: Vec<_> = trust
        .anchors(id.trust_domain())
        .iter()
        .map(|anchor| anchor.anchor.clone())
        .collect();
    if anchors.is_empty() {
        return Err(Refusal::UnknownTrustDomain(id));
    }
    let algorithms = PROVIDER.signature_verification_algorithms.all;
    let anchor = parsed
        .verify_for_usage(algorithms, &anchors, intermediates, now, usage, None, None)
        .map(|path| AnchorKey::of(path.anchor()))
        .map_err(|error| explain(&id, &error))?;
    Ok(VerifiedPeer { id, anchor })
}

fn explain(id: &SpiffeId, error: &webpki::Error) -> Refusal {
    let (bound, at, now) = match error {
        webpki::Error::CertExpired { time, not_after } => ("ended", *not_after, *time),
        webpki::Error::CertNotValidYet { time, not_before } => ("begins", *not_before, *time),
        webpki::Error::UnknownIssuer => {
            return Refusal::Chain {
                id: id.clone(),
                reason: "no anchor of its trust domain has signed its certificate".to_owned(),
            };
        }
        other => {
            return Refusal::Chain {
                id: id.clone(),
                reason: other.to_string(),
            };
        }
    };
    Refusal::Time {
        id: id.clone(),
        bound,
        at: date(at),
        now: date(now),
    }
}

fn date(time: UnixTime) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH
        .checked_add(
            time::Duration::try_from(Duration::from_secs(time.as_secs())).unwrap_or_default(),
        )
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// What the verifiers found out during one step of a handshake.
///
/// rustls gives a verifier no way to hand anything to the connection it works for, but calls it within
/// `process_tls_records`, on the thread that drives the connection. So the driver takes the note right after each
/// step, on the same thread.
pub mod notes {
    use std::cell::RefCell;

    use super::{Refusal, VerifiedPeer};

    thread_local! {
        static NOTE: RefCell<Option<Result<VerifiedPeer, Refusal>>> = const { RefCell::new(None) };
    }

    /// The step refuses the peer.
    pub fn refused(refusal: Refusal) {
        NOTE.set(Some(Err(refusal)));
    }

    /// The step has verified the peer.
    pub fn verified(peer: VerifiedPeer) {
        NOTE.set(Some(Ok(peer)));
    }

    /// What the last step has found out.
    #[must_use]
    pub fn take() -> Option<Result<VerifiedPeer, Refusal>> {
        NOTE.take()
    }
}

/// Leaves the result as a note, and tells rustls.
fn conclude(result: Result<VerifiedPeer, Refusal>) -> Result<(), rustls::Error> {
    match result {
        Ok(peer) => {
            notes::verified(peer);
            Ok(())
        }
        Err(refusal) => {
            notes::refused(refusal);
            // The alert for this is access_denied.
            Err(rustls::CertificateError::ApplicationVerificationFailure.into())
        }
    }
}

/// Verifies clients of an inbound.
#[derive(Debug)]
pub struct ClientVerifier {
    trust: Arc<Trust>,
    permissions: Arc<Permissions>,
}

impl ClientVerifier {
    /// Accepts every identity that `trust` vouches for and `permissions` let in. Permissions are judged here already, and
    /// not only once the handshake is done, because here TLS can tell the caller that it is a policy that refuses it.
    #[must_use]
    pub fn new(trust: Arc<Trust>, permissions: Arc<Permissions>) -> Self {
        Self { trust, permissions }
    }

    fn let_in(&self, peer: VerifiedPeer) -> Result<VerifiedPeer, Refusal> {
        match self.permissions.decide(&peer.id) {
            Decision::Denied { by } => Err(Refusal::Permission {
                by: by.map(Into::into),
                peer,
            }),
            Decision::Allowed { .. } | Decision::ShadowDenied { .. } => Ok(peer),
        }
    }
}

/// Verifies servers of a service in one zone.
#[derive(Debug)]
pub struct ServerVerifier {
    trust: Arc<Trust>,
    identities: Arc<HashSet<SpiffeId>>,
}

impl ServerVerifier {
    /// Accepts `identities` that `trust` vouches for.
    #[must_use]
    pub fn new(trust: Arc<Trust>, identities: Arc<HashSet<SpiffeId>>) -> Self {
        Self { trust, identities }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let usage = KeyUsage::client_auth();
        let verified = verify(&self.trust, leaf, intermediates, now, usage);
        conclude(verified.and_then(|peer| self.let_in(peer)))?;
        Ok(ClientCertVerified::assertion())
    }

    mesh_runtime::tls13_signatures!();
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usage = KeyUsage::server_auth();
        let verified = verify(&self.trust, leaf, intermediates, now, usage).and_then(|peer| {
            if self.identities.contains(&peer.id) {
                Ok(peer)
            } else {
                Err(Refusal::OtherIdentity(peer.id))
            }
        });
        conclude(verified)?;
        Ok(ServerCertVerified::assertion())
    }

    mesh_runtime::tls13_signatures!();
}
