//! Keys, requests, certificates and pins. Keys are ECDSA P-256; a private key leaves this module only as the PEM text
//! that its owner writes to its own disk.

use std::net::IpAddr;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_proto::spiffe::SpiffeId;
pub use rcgen::KeyPair;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
    pem::PemObject as _,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How far before its issue a certificate begins, so that clocks may differ.
pub const NOT_BEFORE_SKEW: Duration = Duration::hours(2);

/// Why a key, request or certificate is not made or not read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// rcgen refuses.
    #[error("certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Not the certificate, key or request it should be.
    #[error("{0}")]
    Malformed(String),
    /// The issuer has ended, or ends too soon to sign anything.
    #[error(
        "the issuing CA ends at {not_after}, it is {now} now: it signs nothing any more; renew it"
    )]
    IssuerExpired {
        /// End of the CA certificate.
        not_after: OffsetDateTime,
        /// The clock.
        now: OffsetDateTime,
    },
}

/// A new private key.
///
/// # Errors
/// Where the system has no randomness.
pub fn new_key() -> Result<KeyPair, PkiError> {
    Ok(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?)
}

/// A certificate request (PKCS#10, DER) that proves possession of `key`. Who it is for is the signer's to say, so it
/// names nobody.
///
/// # Errors
/// Where rcgen refuses.
pub fn request(key: &KeyPair) -> Result<Vec<u8>, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// Whom a certificate is for.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// The one URI name.
    pub spiffe_id: Option<SpiffeId>,
    /// Names for clients that check host names (browsers, curl).
    pub dns_names: Vec<String>,
    /// Addresses for such clients.
    pub addresses: Vec<IpAddr>,
}

/// A certificate authority: its certificate and key.
pub struct Ca {
    certificate: CertificateDer<'static>,
    key_pem: String,
}

impl Ca {
    /// Makes a self-signed CA. `trust_domain`, where given, becomes its URI name, as SPIFFE wants of signing
    /// certificates.
    ///
    /// # Errors
    /// Where rcgen refuses.
    pub fn self_signed(
        common_name: &str,
        trust_domain: Option<&SpiffeId>,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<Self, PkiError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now - NOT_BEFORE_SKEW;
        params.not_after = now + lifetime;
        params.serial_number = Some(random_serial()?);
        if let Some(id) = trust_domain {
            params.subject_alt_names = vec![uri(id)?];
        }
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self {
            certificate,
            key_pem: key.serialize_pem(),
        })
    }

    /// Takes up a CA that was stored.
    ///
    /// # Errors
    /// Where either text is not what it should be.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, PkiError> {
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|e| PkiError::Malformed(format!("CA certificate: {e}")))?;
        KeyPair::from_pem(key)?;
        Ok(Self {
            certificate,
            key_pem: key.to_owned(),
        })
    }

    /// The certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate as PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        to_pem(&self.certificate)
    }

    /// The private key as PEM, for its owner's disk or sealed store only.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Signs the public key in `csr` (PKCS#10, DER) for `subject`; what the request itself asks for is ignored. The
    /// certificate begins [`NOT_BEFORE_SKEW`] before `now` and never outlives the CA.
    ///
    /// # Errors
    /// Where the request is malformed or its signature wrong, or the CA has ended.
    pub fn sign(
        &self,
        csr: &[u8],
        subject: &Subject,
        now: OffsetDateTime,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, PkiError> {
        let (_, ca_end) = validity(&self.certificate)?;
        if ca_end <= now {
            return Err(PkiError::IssuerExpired {
                not_after: ca_end,
                now,
            });
        }
        let csr = CertificateSigningRequestDer::from(csr.to_vec());
        // Verifies the request's own signature, which proves possession of the key.
        let request = CertificateSigningRequestParams::from_der(&csr)
            .map_err(|e| PkiError::Malformed(format!("certificate request: {e}")))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(id) = &subject.spiffe_id {
            params.subject_alt_names.push(uri(id)?);
        }
        for name in &subject.dns_names {
            let name = name.as_str().try_into()?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        for address in &subject.addresses {
            params.subject_alt_names.push(SanType::IpAddress(*address));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.not_before = now - NOT_BEFORE_SKEW;
        params.not_after = (now + lifetime).min(ca_end);
        params.serial_number = Some(random_serial()?);
        let key = KeyPair::from_pem(&self.key_pem)?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, key)?;
        let certificate = params.signed_by(&request.public_key, &issuer)?;
        Ok(certificate.der().clone())
    }
}

/// Never shows the key.
impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

fn uri(id: &SpiffeId) -> Result<SanType, PkiError> {
    Ok(SanType::URI(id.to_string().as_str().try_into()?))
}

fn random_serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| PkiError::Malformed("the system gives no randomness".to_owned()))?;
    bytes[0] &= 0x7f; // RFC 5280 §4.1.2.2: positive.
    Ok(SerialNumber::from_slice(&bytes))
}

/// When a certificate begins and ends.
///
/// # Errors
/// Where `certificate` is none.
pub fn validity(
    certificate: &CertificateDer<'_>,
) -> Result<(OffsetDateTime, OffsetDateTime), PkiError> {
    let parsed = parse(certificate)?;
    let validity = parsed.validity();
    Ok((
        validity.not_before.to_datetime(),
        validity.not_after.to_datetime(),
    ))
}

/// The pin of a CA: base64url SHA-256 of its SubjectPublicKeyInfo (DER), as RFC 7469 §2.4 pins keys.
///
/// # Errors
/// Where `certificate` is none.
pub fn pin(certificate: &CertificateDer<'_>) -> Result<String, PkiError> {
    let parsed = parse(certificate)?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, parsed.public_key().raw);
    Ok(URL_SAFE_NO_PAD.encode(digest))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PkiError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| PkiError::Malformed(format!("certificate: {e}")))?;
    Ok(parsed)
}

/// Every certificate in a PEM text, in order.
///
/// # Errors
/// Where the text holds none, or a malformed one.
pub fn certificates_from_pem(text: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| PkiError::Malformed(format!("PEM: {e}")))?;
    if certificates.is_empty() {
        return Err(PkiError::Malformed(
            "the PEM text holds no certificate".to_owned(),
        ));
    }
    Ok(certificates)
}

/// A certificate as PEM.
#[must_use]
pub fn to_pem(certificate: &CertificateDer<'_>) -> String {
    use base64::engine::general_purpose::STANDARD;
    let body = STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// A key in the form that rustls takes.
#[must_use]
pub fn private_key(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn ca(lifetime: Duration) -> Ca {
        Ca::self_signed("test", None, now(), lifetime).unwrap()
    }

    #[test]
    fn a_certificate_never_outlives_its_ca_and_begins_earlier() {
        let ca = ca(Duration::hours(3));
        let key = new_key().unwrap();
        let subject = Subject {
            spiffe_id: Some("spiffe://a.b/c".parse().unwrap()),
            ..Subject::default()
        };
        let csr = request(&key).unwrap();
        let leaf = ca.sign(&csr, &subject, now(), Duration::hours(24)).unwrap();
        let (begin, end) = validity(&leaf).unwrap();
        assert!(begin <= now() - Duration::minutes(119));
        assert_eq!(end, validity(ca.certificate()).unwrap().1);
    }

    #[test]
    fn an_ended_ca_signs_nothing() {
        let ca = ca(Duration::hours(1));
        let csr = request(&new_key().unwrap()).unwrap();
        let later = now() + Duration::hours(2);
        let refused = ca.sign(&csr, &Subject::default(), later, Duration::hours(1));
        assert!(matches!(refused, Err(PkiError::IssuerExpired { .. })));
    }

    #[test]
    fn a_mangled_request_is_refused() {
        let ca = ca(Duration::hours(1));
        let csr = request(&new_key().unwrap()).unwrap();
        for at in 0..csr.len() {
            let mut mangled = csr.clone();
            mangled[at] ^= 0x40;
            // Some bytes (of the empty subject, say) may change without harm; none may panic.
            let _ = ca.sign(&mangled, &Subject::default(), now(), Duration::hours(1));
        }
        assert!(
            ca.sign(b"", &Subject::default(), now(), Duration::hours(1))
                .is_err()
        );
    }

    #[test]
    fn pem_is_read_back() {
        let ca = ca(Duration::hours(1));
        let read = certificates_from_pem(&ca.certificate_pem()).unwrap();
        assert_eq!(read, [ca.certificate().clone()]);
        let again = Ca::from_pem(&ca.certificate_pem(), ca.key_pem()).unwrap();
        assert_eq!(
            pin(again.certificate()).unwrap(),
            pin(ca.certificate()).unwrap()
        );
    }
}
