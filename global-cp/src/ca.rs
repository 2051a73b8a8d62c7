//! The installation CA: signs what the control planes use among themselves and towards dataplanes.
//!
//! [`Signer`] is the seam behind which an HSM or a Vault fits: nothing outside this module sees the CA's key.

use std::net::IpAddr;

use mesh_proto::spiffe::{SpiffeId, TrustDomain};
use mesh_runtime::pki::{self, Ca, PkiError, Subject};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use crate::{
    facts::{self, FactError, StoredCa},
    sealing::{SealingError, SealingKey},
    state::image::Image,
};

/// Life of the installation CA.
pub const CA_LIFETIME: Duration = Duration::days(3650);
/// Life of a global node's certificate. It is renewed after a third.
pub const NODE_LIFETIME: Duration = Duration::days(30);
/// Life of a zone's certificate: a zone may be away for two thirds of it and still come back by itself.
pub const ZONE_LIFETIME: Duration = Duration::days(90);

/// Turns certificate requests into certificates.
pub trait Signer: Send + Sync {
    /// Signs the public key in `csr` (PKCS#10, DER) for `subject`, from two hours before `now` and never beyond the
    /// CA's own life.
    ///
    /// # Errors
    /// Where the request is malformed, its proof of possession wrong, or the CA has ended.
    fn sign(
        &self,
        csr: &[u8],
        subject: &Subject,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, PkiError>;

    /// Every CA certificate that is trusted, the issuing one first.
    fn bundle(&self) -> &[CertificateDer<'static>];
}

/// The CA whose key is sealed in the state machine.
#[derive(Debug)]
pub struct InstallationCa {
    ca: Ca,
    bundle: Vec<CertificateDer<'static>>,
}

/// Why the installation CA could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// What is stored of it is not usable.
    #[error(transparent)]
    Fact(#[from] FactError),
    /// A key or certificate is not usable.
    #[error("the installation CA: {0}")]
    Pki(#[from] PkiError),
    /// The key could not be sealed.
    #[error(transparent)]
    Sealing(#[from] SealingError),
}

impl InstallationCa {
    /// A new CA.
    ///
    /// # Errors
    /// Where the system gives no randomness.
    pub fn generate(now: OffsetDateTime) -> Result<Self, CaError> {
        let id = SpiffeId::new(TrustDomain::installation(), "")
            .map_err(|error| PkiError::Malformed(error.to_string()))?;
        let ca = Ca::self_signed("Isthmus installation CA", Some(&id), now, CA_LIFETIME)?;
        let bundle = vec![ca.certificate().clone()];
        Ok(Self { ca, bundle })
    }

    /// The CA as it is stored, its key sealed.
    ///
    /// # Errors
    /// Where the system gives no randomness.
    pub fn seal(&self, sealing: &SealingKey) -> Result<StoredCa, CaError> {
        Ok(StoredCa {
            bundle: self.bundle.iter().map(pki::to_pem).collect(),
            issuer: self.ca.certificate_pem(),
            sealed_key: facts::seal_secret(sealing, facts::INSTALLATION_CA, self.ca.key_pem())?,
        })
    }

    /// Opens the CA that is stored.
    ///
    /// # Errors
    /// Where there is none, or it does not open.
    pub fn open(image: &Image, sealing: &SealingKey) -> Result<Self, CaError> {
        let stored = facts::stored_ca(image)?;
        let key = facts::open_secret(sealing, facts::INSTALLATION_CA, &stored.sealed_key)?;
        let ca = Ca::from_pem(&stored.issuer, &key)?;
        let mut bundle = pki::certificates_from_pem(&stored.bundle)?;
        bundle.sort_by_key(|certificate| certificate != ca.certificate());
        Ok(Self { ca, bundle })
    }

    /// The pin that tokens carry.
    ///
    /// # Errors
    /// Never for a CA that was opened.
    pub fn pin(&self) -> Result<String, CaError> {
        Ok(pki::pin(self.ca.certificate())?)
    }
}

impl Signer for InstallationCa {
    fn sign(
        &self,
        csr: &[u8],
        subject: &Subject,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, PkiError> {
        self.ca.sign(csr, subject, now, lifetime)
    }

    fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }
}

/// Pins of every CA that is trusted.
///
/// # Errors
/// Where there is no CA yet, or what is stored of it is damaged.
pub fn pins(image: &Image) -> Result<Vec<String>, CaError> {
    let stored = facts::stored_ca(image)?;
    let bundle = pki::certificates_from_pem(&stored.bundle)?;
    Ok(bundle.iter().map(pki::pin).collect::<Result<_, _>>()?)
}

/// A global node: its SPIFFE ID for peers and zones, its names and addresses for browsers and curl.
#[must_use]
pub fn node_subject(node_id: u64, advertise_host: &str) -> Subject {
    host_subject(SpiffeId::global_node(node_id), advertise_host)
}

/// A zone control plane.
#[must_use]
pub fn zone_subject(zone: &mesh_proto::names::ZoneName) -> Subject {
    host_subject(SpiffeId::zone(zone), "localhost")
}

fn host_subject(id: SpiffeId, advertise_host: &str) -> Subject {
    let mut subject = Subject {
        spiffe_id: Some(id),
        dns_names: vec!["localhost".to_owned()],
        addresses: vec![[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()],
    };
    match advertise_host.parse::<IpAddr>() {
        Ok(address) if !subject.addresses.contains(&address) => subject.addresses.push(address),
        Ok(_) => {}
        // An underscore is fine in a host's name but not in a certificate's (RFC 5280 §4.2.1.6).
        Err(_) if advertise_host != "localhost" && !advertise_host.contains('_') => {
            subject.dns_names.push(advertise_host.to_ascii_lowercase());
        }
        Err(_) => {}
    }
    subject
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::image::Image;

    #[test]
    fn the_ca_is_opened_with_its_key_only_and_its_key_is_never_in_clear() {
        let now = OffsetDateTime::now_utc();
        let sealing = SealingKey::generate().unwrap();
        let ca = InstallationCa::generate(now).unwrap();
        let record = facts::encode(&ca.seal(&sealing).unwrap());
        let text = String::from_utf8(record.clone()).unwrap();
        assert!(!text.contains("PRIVATE KEY"));
        let mut image = Image::default();
        let name = crate::state::keys::system(facts::INSTALLATION_CA);
        image.write((name, Some(record.into()))).unwrap();
        let opened = InstallationCa::open(&image, &sealing).unwrap();
        assert_eq!(opened.pin().unwrap(), ca.pin().unwrap());
        assert_eq!(pins(&image).unwrap(), [ca.pin().unwrap()]);
        assert!(InstallationCa::open(&image, &SealingKey::generate().unwrap()).is_err());

        let key = pki::new_key().unwrap();
        let csr = pki::request(&key).unwrap();
        let subject = node_subject(1, "cp1.example.com");
        let leaf = opened.sign(&csr, &subject, now, NODE_LIFETIME).unwrap();
        let id = mesh_runtime::tls::spiffe_id(&leaf).unwrap();
        assert_eq!(id, SpiffeId::global_node(1));
    }

    #[test]
    fn a_nodes_certificate_names_its_host_once() {
        assert_eq!(node_subject(1, "localhost").dns_names, ["localhost"]);
        assert_eq!(node_subject(1, "127.0.0.1").addresses.len(), 2);
        assert_eq!(node_subject(1, "10.0.0.1").addresses.len(), 3);
        assert_eq!(node_subject(1, "a_b").dns_names, ["localhost"]);
    }
}
