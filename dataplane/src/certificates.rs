//! When to ask for a certificate, and what to do with the one that comes.
//!
//! The proxy judges the age of its certificate itself, whatever the zone thinks (FIELD b1): it asks when half of the
//! life is over, again and more often once less than a third is left. A key is made for each request and never leaves
//! this process and its state directory; it takes the old one's place together with its certificate.

use std::time::Duration;

use mesh_proto::{
    discovery::{Certificate, CertificateRequest},
    spiffe::SpiffeId,
};
use mesh_runtime::pki::{self, KeyPair, PkiError};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::{
    state::SavedIdentity,
    tls::identity::{Identity, InvalidIdentity},
};

/// How long a request may stay unanswered before it is sent again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest chain that is taken (FIELD b11).
const CHAIN_MAX: usize = 4;

/// The certificate in use and the one that has been asked for. Values in, values out: the clock is an argument.
#[derive(Default)]
pub struct Certificates {
    current: Option<Current>,
    asked: Option<Asked>,
    /// Since when requests are refused, and why.
    refused: Option<String>,
}

struct Current {
    identity: Identity,
    taken_at: OffsetDateTime,
}

struct Asked {
    spiffe_id: SpiffeId,
    key: KeyPair,
    at: OffsetDateTime,
}

/// What the clock says about the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// There is none for this identity.
    None,
    /// Less than half of its life is over.
    Young,
    /// Half of its life is over: it is asked for anew.
    Half,
    /// Less than a third is left.
    Old,
    /// It has ended.
    Ended,
}

/// Why the zone's answer is not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// The zone says why there is none.
    #[error("the zone control plane gives none: {0}")]
    Refused(String),
    /// Nothing was asked for, or something else.
    #[error("nothing was asked for, or for another identity than {0:?}")]
    NotAsked(String),
    /// Too long.
    #[error("its chain has {0} certificates, at most {CHAIN_MAX} are taken")]
    TooLong(usize),
    /// Not usable.
    #[error(transparent)]
    Invalid(#[from] InvalidIdentity),
    /// Outside its time.
    #[error(
        "it counts from {not_before} to {not_after}, the clock here says {now}: compare the clocks"
    )]
    Time {
        /// Begin.
        not_before: OffsetDateTime,
        /// End.
        not_after: OffsetDateTime,
        /// The clock here.
        now: OffsetDateTime,
    },
}

impl Certificates {
    /// Takes up what was kept on disk.
    ///
    /// # Errors
    /// Where it can not be used.
    pub fn restore(&mut self, saved: &SavedIdentity) -> Result<Identity, String> {
        let spiffe_id = saved.spiffe_id.parse().map_err(|e| format!("{e}"))?;
        let key = KeyPair::from_pem(&saved.key_pem).map_err(|e| e.to_string())?;
        let chain = saved
            .chain
            .iter()
            .cloned()
            .map(CertificateDer::from)
            .collect();
        let identity = Identity::new(&spiffe_id, chain, &key).map_err(|e| e.to_string())?;
        let taken_at =
            OffsetDateTime::from_unix_timestamp(saved.taken_at).unwrap_or(identity.not_before);
        self.current = Some(Current {
            identity: identity.clone(),
            taken_at,
        });
        Ok(identity)
    }

    /// The certificate in use.
    #[must_use]
    pub fn current(&self) -> Option<&Identity> {
        self.current.as_ref().map(|current| &current.identity)
    }

    /// Why the zone's last answer was not taken.
    #[must_use]
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// What the clock says about the certificate for `wanted`.
    #[must_use]
    pub fn age(&self, wanted: &SpiffeId, now: OffsetDateTime) -> Age {
        let Some(current) = &self.current else {
            return Age::None;
        };
        if current.identity.spiffe_id != *wanted {
            return Age::None;
        }
        let end = current.identity.not_after;
        let (life, left) = (end - current.taken_at, end - now);
        if left <= time::Duration::ZERO {
            Age::Ended
        } else if left * 3 < life {
            Age::Old
        } else if left * 2 < life {
            Age::Half
        } else {
            Age::Young
        }
    }

    /// A request for `wanted`, where it is time for one. At most one is under way.
    ///
    /// # Errors
    /// Where no key or request can be made.
    pub fn request(
        &mut self,
        wanted: &SpiffeId,
        now: OffsetDateTime,
    ) -> Result<Option<CertificateRequest>, PkiError> {
        if self.age(wanted, now) == Age::Young {
            return Ok(None);
        }
        if let Some(asked) = &self.asked
            && asked.spiffe_id == *wanted
            && now - asked.at < self.patience(wanted, now)
        {
            return Ok(None);
        }
        let key = pki::new_key()?;
        let csr = pki::request(&key)?;
        self.asked = Some(Asked {
            spiffe_id: wanted.clone(),
            key,
            at: now,
        });
        Ok(Some(CertificateRequest {
            csr,
            spiffe_id: wanted.to_string(),
        }))
    }

    /// How long to wait for an answer, or after a refusal, before asking again: at half life there is time.
    fn patience(&self, wanted: &SpiffeId, now: OffsetDateTime) -> Duration {
        match self.age(wanted, now) {
            Age::Half if self.refused.is_some() => ANSWER_TIMEOUT * 6,
            _ => ANSWER_TIMEOUT,
        }
    }

    /// The stream is gone, and with it any answer: the next one may be asked at once.
    pub fn disconnected(&mut self) {
        self.asked = None;
    }

    /// Takes the zone's answer. The new certificate is in use from then on.
    ///
    /// # Errors
    /// Why not; the old one stays.
    pub fn take(
        &mut self,
        answer: &Certificate,
        now: OffsetDateTime,
    ) -> Result<(Identity, SavedIdentity), NotTaken> {
        let taken = self.check(answer, now);
        self.refused = taken.as_ref().err().map(ToString::to_string);
        let (identity, saved) = taken?;
        self.asked = None;
        self.current = Some(Current {
            identity: identity.clone(),
            taken_at: now,
        });
        Ok((identity, saved))
    }

    fn check(
        &self,
        answer: &Certificate,
        now: OffsetDateTime,
    ) -> Result<(Identity, SavedIdentity), NotTaken> {
        if !answer.error.is_empty() {
            return Err(NotTaken::Refused(answer.error.clone()));
        }
        let asked = self
            .asked
            .as_ref()
            .filter(|asked| asked.spiffe_id.to_string() == answer.spiffe_id)
            .ok_or_else(|| NotTaken::NotAsked(answer.spiffe_id.clone()))?;
        if answer.chain.len() > CHAIN_MAX {
            return Err(NotTaken::TooLong(answer.chain.len()));
        }
        let chain = answer
            .chain
            .iter()
            .cloned()
            .map(CertificateDer::from)
            .collect();
        let identity = Identity::new(&asked.spiffe_id, chain, &asked.key)?;
        let (not_before, not_after) = (identity.not_before, identity.not_after);
        if now < not_before || now >= not_after {
            return Err(NotTaken::Time {
                not_before,
                not_after,
                now,
            });
        }
        let saved = SavedIdentity {
            spiffe_id: answer.spiffe_id.clone(),
            key_pem: asked.key.serialize_pem(),
            chain: answer.chain.clone(),
            taken_at: now.unix_timestamp(),
        };
        Ok((identity, saved))
    }
}

#[cfg(test)]
mod tests {
    use mesh_runtime::pki::{Ca, Subject};
    use time::Duration;

    use super::*;

    fn wanted() -> SpiffeId {
        "spiffe://pay.east.mesh.local/workload/web".parse().unwrap()
    }

    fn answer(request: &CertificateRequest, now: OffsetDateTime, life: Duration) -> Certificate {
        let ca = Ca::self_signed("ca", None, now, Duration::days(1)).unwrap();
        let subject = Subject {
            spiffe_id: Some(request.spiffe_id.parse().unwrap()),
            ..Subject::default()
        };
        let leaf = ca.sign(&request.csr, &subject, now, life).unwrap();
        Certificate {
            spiffe_id: request.spiffe_id.clone(),
            chain: vec![leaf.to_vec()],
            error: String::new(),
        }
    }

    #[test]
    fn it_is_asked_for_at_half_life_and_once_a_half_life() {
        let begin = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
        let life = Duration::hours(1);
        let mut certificates = Certificates::default();
        let mut issued = 0;
        // Ten lives, a second at a time: certificates begin two hours back, and that must not make them look old.
        let mut now = begin;
        while now < begin + life * 10 {
            if let Some(request) = certificates.request(&wanted(), now).unwrap() {
                issued += 1;
                let answer = answer(&request, now, life);
                certificates.take(&answer, now).unwrap();
            }
            assert_ne!(certificates.age(&wanted(), now), Age::Ended);
            now += Duration::seconds(5);
        }
        assert!((19..=21).contains(&issued), "{issued}");
    }

    #[test]
    fn without_an_answer_it_is_asked_again_and_the_age_is_known() {
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
        let mut certificates = Certificates::default();
        let request = certificates.request(&wanted(), now).unwrap().unwrap();
        assert!(certificates.request(&wanted(), now).unwrap().is_none());
        certificates
            .take(&answer(&request, now, Duration::minutes(6)), now)
            .unwrap();
        let age = |minutes: i64| certificates.age(&wanted(), now + Duration::minutes(minutes));
        assert_eq!(
            [age(1), age(4), age(5), age(6)],
            [Age::Young, Age::Half, Age::Old, Age::Ended]
        );
        let later = now + Duration::minutes(5);
        assert!(certificates.request(&wanted(), later).unwrap().is_some());
        assert!(
            certificates
                .request(&wanted(), later + Duration::seconds(9))
                .unwrap()
                .is_none()
        );
        assert!(
            certificates
                .request(&wanted(), later + Duration::seconds(10))
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn what_does_not_belong_to_the_request_is_not_taken() {
        let now = OffsetDateTime::now_utc();
        let mut certificates = Certificates::default();
        let first = certificates.request(&wanted(), now).unwrap().unwrap();
        certificates.disconnected();
        let second = certificates.request(&wanted(), now).unwrap().unwrap();
        // Signed for the first request's key.
        let life = Duration::hours(1);
        assert!(matches!(
            certificates.take(&answer(&first, now, life), now),
            Err(NotTaken::Invalid(InvalidIdentity::Key(_)))
        ));
        // For somebody else.
        let mut other = answer(&second, now, life);
        other.spiffe_id = "spiffe://pay.east.mesh.local/workload/api".into();
        assert!(matches!(
            certificates.take(&other, now),
            Err(NotTaken::NotAsked(_))
        ));
        // From the future.
        let future = answer(&second, now + Duration::hours(4), life);
        let error = certificates.take(&future, now).unwrap_err().to_string();
        assert!(error.contains("the clock here says"), "{error}");
        certificates.take(&answer(&second, now, life), now).unwrap();
        assert!(certificates.refused().is_none());
    }
}
