//! The CAs of one mesh in this zone: on disk, and what they sign.
//!
//! Every mesh has CAs of its own (invariant 8), whose keys never leave this process and its directory (invariant 7).
//! [`crate::rotation`] decides when they change; a change is on disk before it counts.

use std::path::{Path, PathBuf};

use mesh_proto::spiffe::{SpiffeId, TrustDomain};
use mesh_runtime::{
    files,
    pki::{self, Ca, PkiError, Subject},
};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroize;

use crate::{
    rotation::{self, Anchor, CA_LIFETIME_SECONDS, Cas, LEAF_LIFETIME_SECONDS, Step},
    store::{self, StoreError},
};

/// Why a CA cannot be made, kept or used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The disk refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate cannot be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// There is no CA yet.
    #[error("the mesh has no CA in this zone yet")]
    NoIssuer,
}

/// The CAs of one mesh.
#[derive(Debug)]
pub struct Authorities {
    file: PathBuf,
    stored: Stored,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    authorities: Vec<StoredCa>,
    /// Counts the versions of the mesh's trust document.
    trust_generation: u64,
    trust_version: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredCa {
    id: String,
    role: Role,
    made: i64,
    not_after: i64,
    certificate: String,
    key: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Role {
    Issuing,
    Next,
    /// Signed until this Unix second.
    Retiring(i64),
}

/// Never shows the key.
impl std::fmt::Debug for StoredCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredCa")
            .field("id", &self.id)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl Drop for StoredCa {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Authorities {
    /// Reads the CAs in `directory`; there may be none yet. A damaged file is set aside, and new CAs will be made.
    ///
    /// # Errors
    /// Where the directory cannot be used.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        files::ensure_private_dir(directory).map_err(|source| StoreError {
            path: directory.to_owned(),
            source,
        })?;
        let file = directory.join("authorities");
        let stored =
            store::read_or_set_aside(&file, |content| serde_json::from_slice(content).ok())?;
        Ok(Self {
            file,
            stored: stored.unwrap_or_default(),
        })
    }

    /// What [`rotation`] decides on.
    #[must_use]
    pub fn cas(&self) -> Cas {
        let mut cas = Cas::default();
        for ca in &self.stored.authorities {
            let anchor = Anchor {
                id: ca.id.clone(),
                made: ca.made,
                not_after: ca.not_after,
            };
            match ca.role {
                Role::Issuing => cas.issuing = Some(anchor),
                Role::Next => cas.next = Some(anchor),
                Role::Retiring(until) => cas.retiring.push((anchor, until)),
            }
        }
        cas
    }

    /// Carries a step out, on disk first.
    ///
    /// # Errors
    /// Where a CA cannot be made or kept; nothing has changed then.
    pub fn perform(
        &mut self,
        step: &Step,
        domain: &TrustDomain,
        now: OffsetDateTime,
    ) -> Result<(), TrustError> {
        let unix = now.unix_timestamp();
        let mut authorities = self.stored.authorities.clone();
        match step {
            Step::MakeFirst => authorities.push(make(Role::Issuing, domain, now)?),
            Step::MakeNext => authorities.push(make(Role::Next, domain, now)?),
            Step::Switch => {
                for ca in &mut authorities {
                    ca.role = match ca.role {
                        Role::Issuing => Role::Retiring(unix),
                        Role::Next => Role::Issuing,
                        retiring @ Role::Retiring(_) => retiring,
                    };
                }
            }
            Step::Retire(id) => authorities.retain(|ca| ca.id != *id),
        }
        let old = std::mem::replace(&mut self.stored.authorities, authorities);
        if let Err(error) = self.save() {
            self.stored.authorities = old;
            return Err(error.into());
        }
        Ok(())
    }

    /// The anchors that others must trust, oldest first.
    #[must_use]
    pub fn anchors(&self) -> Vec<CertificateDer<'static>> {
        let mut by_age: Vec<_> = self.stored.authorities.iter().collect();
        by_age.sort_by_key(|ca| (ca.made, ca.id.clone()));
        by_age
            .iter()
            .filter_map(|ca| pki::certificates_from_pem(&ca.certificate).ok())
            .flatten()
            .collect()
    }

    /// The number of the trust document with `version`: one more than before where it is another.
    ///
    /// # Errors
    /// Where the number cannot be kept; it is used all the same.
    pub fn generation_of(&mut self, version: &str) -> (u64, Result<(), StoreError>) {
        if self.stored.trust_version == version {
            return (self.stored.trust_generation, Ok(()));
        }
        version.clone_into(&mut self.stored.trust_version);
        self.stored.trust_generation += 1;
        (self.stored.trust_generation, self.save())
    }

    /// Signs the key in `csr` for `id`, whatever the request asks for. The certificate lives for `lifetime`, at most a
    /// day, and never beyond the CA's own life.
    ///
    /// # Errors
    /// Where there is no CA, it has ended, or the request is malformed.
    pub fn issue(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        lifetime: Duration,
        now: OffsetDateTime,
    ) -> Result<CertificateDer<'static>, TrustError> {
        let issuing = self
            .stored
            .authorities
            .iter()
            .find(|ca| ca.role == Role::Issuing)
            .ok_or(TrustError::NoIssuer)?;
        let subject = Subject {
            spiffe_id: Some(id.clone()),
            ..Subject::default()
        };
        let ca = Ca::from_pem(&issuing.certificate, &issuing.key)?;
        // A retired CA is forgotten a day after it last signed: nothing may live longer.
        let lifetime = lifetime.min(Duration::seconds(LEAF_LIFETIME_SECONDS));
        Ok(ca.sign(csr, &subject, now, lifetime)?)
    }

    fn save(&self) -> Result<(), StoreError> {
        // Serialising plain strings and numbers does not fail.
        let mut content = serde_json::to_vec_pretty(&self.stored).unwrap_or_default();
        let written = files::write_checksummed(&self.file, &content);
        content.zeroize();
        written.map_err(|source| StoreError {
            path: self.file.clone(),
            source,
        })
    }
}

fn make(role: Role, domain: &TrustDomain, now: OffsetDateTime) -> Result<StoredCa, TrustError> {
    let uri = SpiffeId::new(domain.clone(), "").ok();
    let lifetime = Duration::seconds(CA_LIFETIME_SECONDS);
    let ca = Ca::self_signed(domain.as_str(), uri.as_ref(), now, lifetime)?;
    Ok(StoredCa {
        id: pki::pin(ca.certificate())?,
        role,
        made: now.unix_timestamp(),
        not_after: (now + lifetime).unix_timestamp(),
        certificate: ca.certificate_pem(),
        key: ca.key_pem().to_owned(),
    })
}

/// Carries out every step that is due and returns them.
///
/// # Errors
/// As for [`Authorities::perform`].
pub fn rotate(
    authorities: &mut Authorities,
    domain: &TrustDomain,
    acknowledged: rotation::Acknowledged,
    now: OffsetDateTime,
) -> Result<Vec<Step>, TrustError> {
    let mut steps = Vec::new();
    while let Some(step) = rotation::due(&authorities.cas(), acknowledged, now.unix_timestamp()) {
        authorities.perform(&step, domain, now)?;
        // An anchor that was just made has been acknowledged by nobody.
        let announced = step == Step::MakeNext;
        steps.push(step);
        if announced {
            break;
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use mesh_runtime::{
        pki::validity,
        tls::{Peer, TrustDomains},
    };
    use rustls_pki_types::UnixTime;

    use super::*;

    const ALL: rotation::Acknowledged = rotation::Acknowledged {
        dataplanes: true,
        global: true,
    };

    fn domain() -> TrustDomain {
        "pay.east.mesh.local".parse().unwrap()
    }

    fn verifies(
        anchors: &[CertificateDer<'_>],
        leaf: &CertificateDer<'_>,
        now: OffsetDateTime,
    ) -> bool {
        let mut domains = TrustDomains::default();
        domains.add(domain(), anchors).unwrap();
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            now.unix_timestamp().try_into().unwrap(),
        ));
        domains
            .verify(std::slice::from_ref(leaf), at, Peer::Server)
            .is_ok()
    }

    #[test]
    fn certificates_verify_through_every_step_of_a_rotation_and_a_restart() {
        mesh_runtime::init();
        let dir = tempfile::tempdir().unwrap();
        let mut now = OffsetDateTime::now_utc();
        let mut authorities = Authorities::open(dir.path()).unwrap();
        assert_eq!(
            rotate(&mut authorities, &domain(), ALL, now).unwrap(),
            [Step::MakeFirst]
        );
        let id: SpiffeId = "spiffe://pay.east.mesh.local/workload/web".parse().unwrap();
        let csr = pki::request(&pki::new_key().unwrap()).unwrap();

        let file = dir.path().join("authorities");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );

        let mut authorities = Authorities::open(dir.path()).unwrap();
        now += Duration::days(60);
        assert_eq!(
            rotate(&mut authorities, &domain(), ALL, now).unwrap(),
            [Step::MakeNext]
        );
        assert_eq!(authorities.anchors().len(), 2);
        let old = authorities.issue(&csr, &id, Duration::DAY, now).unwrap();
        now += Duration::seconds(rotation::PROPAGATION_SECONDS);
        assert_eq!(
            rotate(&mut authorities, &domain(), ALL, now).unwrap(),
            [Step::Switch]
        );
        let new = authorities.issue(&csr, &id, Duration::DAY, now).unwrap();
        for leaf in [&old, &new] {
            assert!(verifies(&authorities.anchors(), leaf, now));
        }
        now += Duration::hours(26);
        assert!(matches!(
            rotate(&mut authorities, &domain(), ALL, now).unwrap()[..],
            [Step::Retire(_)]
        ));
        assert_eq!(authorities.anchors().len(), 1);
    }

    #[test]
    fn a_certificate_is_for_the_entitled_identity_lives_a_day_and_never_outlives_its_issuer() {
        mesh_runtime::init();
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let mut authorities = Authorities::open(dir.path()).unwrap();
        let csr = pki::request(&pki::new_key().unwrap()).unwrap();
        let id: SpiffeId = "spiffe://pay.east.mesh.local/workload/web".parse().unwrap();
        assert!(matches!(
            authorities.issue(&csr, &id, Duration::DAY, now),
            Err(TrustError::NoIssuer)
        ));
        rotate(&mut authorities, &domain(), ALL, now).unwrap();
        let leaf = authorities.issue(&csr, &id, Duration::DAY, now).unwrap();
        assert_eq!(mesh_runtime::tls::spiffe_id(&leaf).unwrap(), id);
        let (begin, end) = validity(&leaf).unwrap();
        assert_eq!((end - begin).whole_hours(), 26);

        let late = now + Duration::seconds(CA_LIFETIME_SECONDS) - Duration::hours(1);
        let leaf = authorities.issue(&csr, &id, Duration::DAY, late).unwrap();
        let ca_end = validity(&authorities.anchors()[0]).unwrap().1;
        assert_eq!(validity(&leaf).unwrap().1, ca_end);
        let too_late = now + Duration::seconds(CA_LIFETIME_SECONDS) + Duration::hours(1);
        assert!(matches!(
            authorities.issue(&csr, &id, Duration::DAY, too_late),
            Err(TrustError::Pki(PkiError::IssuerExpired { .. }))
        ));
    }

    #[test]
    fn the_trust_generation_grows_only_with_another_document_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut authorities = Authorities::open(dir.path()).unwrap();
        assert_eq!(authorities.generation_of("a").0, 1);
        assert_eq!(authorities.generation_of("a").0, 1);
        let mut authorities = Authorities::open(dir.path()).unwrap();
        assert_eq!(authorities.generation_of("a").0, 1);
        assert_eq!(authorities.generation_of("b").0, 2);
    }
}
