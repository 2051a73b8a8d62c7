//! Recognises a zone control plane: by the anchors that an earlier one gave, or by the CA pin in the proxy's token.
//!
//! The pin is read from the token without verifying it: the token is the proxy's own, and only the zone can judge it.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_runtime::{
    pki,
    tls::{Accept, PinVerifier, SpiffeVerifier, TrustDomains},
};
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Accepts a zone control plane that one of its parts vouches for.
#[derive(Debug)]
pub(super) struct Recognise {
    by_anchors: Option<SpiffeVerifier>,
    by_pin: Option<PinVerifier>,
}

impl Recognise {
    /// By the pin in `token` and by `anchors` (PEM).
    ///
    /// # Errors
    /// Where there is neither.
    pub(super) fn new(token: &str, anchors: &[String]) -> Result<Self, String> {
        let accept: Accept = Arc::new(|id| match id.as_zone() {
            Some(_) => Ok(()),
            None => Err("this is no zone control plane".to_owned()),
        });
        let by_pin = pin(token).map(|pin| PinVerifier::new(pin, accept.clone()));
        let anchors: Vec<_> = anchors
            .iter()
            .filter_map(|pem| pki::certificates_from_pem(pem).ok())
            .flatten()
            .collect();
        let by_anchors = match TrustDomains::installation(&anchors) {
            Ok(trust) if !anchors.is_empty() => Some(SpiffeVerifier::new(Arc::new(trust), accept)),
            _ => None,
        };
        if by_pin.is_none() && by_anchors.is_none() {
            return Err(
                "the token holds no CA pin: use a dataplane token of this installation (meshctl token create)"
                    .to_owned(),
            );
        }
        Ok(Self { by_anchors, by_pin })
    }
}

/// The `pin` claim of a JWT.
fn pin(token: &str) -> Option<String> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    Some(claims.get("pin")?.as_str()?.to_owned())
}

impl ServerCertVerifier for Recognise {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verifiers = [
            self.by_anchors
                .as_ref()
                .map(|v| v as &dyn ServerCertVerifier),
            self.by_pin.as_ref().map(|v| v as &dyn ServerCertVerifier),
        ];
        let mut refused = Err(rustls::Error::General("nobody vouches for it".to_owned()));
        for verifier in verifiers.into_iter().flatten() {
            refused = verifier.verify_server_cert(leaf, intermediates, name, ocsp, now);
            if refused.is_ok() {
                break;
            }
        }
        refused
    }

    mesh_runtime::tls13_signatures!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_is_read_from_the_token_and_no_token_panics() {
        let payload = URL_SAFE_NO_PAD.encode(br#"{"mesh":"pay","pin":"abc"}"#);
        assert_eq!(pin(&format!("h.{payload}.s")).as_deref(), Some("abc"));
        for bad in ["", "a", "a.b", "a.b.c", "..", "a.e30.c"] {
            assert_eq!(pin(bad), None, "{bad}");
            assert!(Recognise::new(bad, &[]).is_err());
        }
    }
}
