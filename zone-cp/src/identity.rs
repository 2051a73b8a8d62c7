//! The zone's own identity, issued by the installation CA: on disk, presented, and renewed before it ends.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::Duration,
};

use mesh_proto::{
    names::ZoneName,
    spiffe::SpiffeId,
    zone::{RenewCertificateRequest, zone_sync_client::ZoneSyncClient},
};
use mesh_runtime::{
    identity_dir::{IdentityError, StoredIdentity},
    pki,
    tls::{self, LocalIdentity, SpiffeVerifier, TrustDomains},
    transport,
};
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::metrics::ZoneMetrics;

/// How often the certificate's age, and the files it came from, are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Why the zone has no identity.
#[derive(Debug, thiserror::Error)]
pub enum ZoneIdentityError {
    /// It never joined.
    #[error(
        "{0} holds no identity: join the zone first, with `meshctl zone join --global https://… --token …`"
    )]
    NotJoined(PathBuf),
    /// The files do not hold what they should.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// zone.json is missing or wrong.
    #[error("{path}: {reason}; join the zone again")]
    Facts {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The certificate is another's.
    #[error("the certificate in {path} is not that of zone {zone}: {found}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The zone.
        zone: ZoneName,
        /// Whose it is.
        found: String,
    },
    /// The anchors or keys cannot be used.
    #[error("{path}: {source}")]
    Tls {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// What `meshctl zone join` wrote beside the identity.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZoneFacts {
    /// The zone.
    pub zone: String,
    /// The installation it joined.
    pub cluster_id: String,
    /// host:port of the global nodes.
    #[serde(default)]
    pub global_addresses: Vec<String>,
}

/// The zone's identity. Clones share it.
#[derive(Clone)]
pub struct ZoneIdentity {
    /// The zone.
    pub zone: ZoneName,
    /// What is known of the installation.
    pub facts: ZoneFacts,
    directory: PathBuf,
    presented: LocalIdentity,
    current: Arc<RwLock<Current>>,
}

struct Current {
    chain: Vec<CertificateDer<'static>>,
    anchors: Vec<CertificateDer<'static>>,
}

impl ZoneIdentity {
    /// Reads what joining left in `directory`.
    ///
    /// # Errors
    /// Where the zone has not joined, or the files do not hold what they should.
    pub fn load(directory: &Path) -> Result<Self, ZoneIdentityError> {
        let stored = StoredIdentity::load(directory)?
            .ok_or_else(|| ZoneIdentityError::NotJoined(directory.to_owned()))?;
        let facts = read_facts(&directory.join("zone.json"))?;
        let zone: ZoneName = facts
            .zone
            .parse()
            .map_err(|error| ZoneIdentityError::Facts {
                path: directory.join("zone.json"),
                reason: format!("zone: {error}"),
            })?;
        let identity = Self {
            zone,
            facts,
            directory: directory.to_owned(),
            presented: LocalIdentity::none(),
            current: Arc::new(RwLock::new(Current {
                chain: Vec::new(),
                anchors: Vec::new(),
            })),
        };
        identity.take_up(stored)?;
        Ok(identity)
    }

    /// What servers and clients of this process present; it changes with each renewal.
    #[must_use]
    pub fn presented(&self) -> LocalIdentity {
        self.presented.clone()
    }

    /// The installation CA's certificates as PEM, one each.
    #[must_use]
    pub fn anchors_pem(&self) -> Vec<String> {
        self.read()
            .anchors
            .iter()
            .map(|der| pki::to_pem(der))
            .collect()
    }

    /// Begin and end of the certificate.
    #[must_use]
    pub fn validity(&self) -> Option<(OffsetDateTime, OffsetDateTime)> {
        pki::validity(self.read().chain.first()?).ok()
    }

    /// A client that accepts global nodes of this installation only.
    ///
    /// # Errors
    /// Where the anchors cannot be used.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        let trust = TrustDomains::installation(&self.read().anchors)?;
        let accept = |id: &SpiffeId| match id.as_global_node() {
            Some(_) => Ok(()),
            None => Err("this is not a global control plane node".to_owned()),
        };
        let verifier = SpiffeVerifier::new(Arc::new(trust), Arc::new(accept));
        Ok(Arc::new(tls::client_config(
            Some(self.presented()),
            Arc::new(verifier),
            transport::GRPC_ALPN,
        )))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Current> {
        self.current
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn take_up(&self, stored: StoredIdentity) -> Result<(), ZoneIdentityError> {
        let leaf = stored.chain.first().map(tls::spiffe_id);
        let found = match leaf {
            Some(Ok(id)) if id == SpiffeId::zone(&self.zone) => None,
            Some(Ok(id)) => Some(id.to_string()),
            Some(Err(error)) => Some(error.to_string()),
            None => Some("there is no certificate".to_owned()),
        };
        if let Some(found) = found {
            return Err(ZoneIdentityError::Foreign {
                path: self.directory.clone(),
                zone: self.zone.clone(),
                found,
            });
        }
        TrustDomains::installation(&stored.anchors).map_err(|source| ZoneIdentityError::Tls {
            path: self.directory.clone(),
            source,
        })?;
        stored.present(&self.presented, &self.directory)?;
        let mut current = self
            .current
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        current.chain = stored.chain;
        current.anchors = stored.anchors;
        Ok(())
    }

    /// Takes up what somebody else wrote into the directory since (a zone that joined again). True where it is new.
    fn reload(&self) -> Result<bool, ZoneIdentityError> {
        let Some(stored) = StoredIdentity::load(&self.directory)? else {
            return Ok(false);
        };
        if stored.chain == self.read().chain && stored.anchors == self.read().anchors {
            return Ok(false);
        }
        self.take_up(stored)?;
        Ok(true)
    }

    fn renewal_is_due(&self, now: OffsetDateTime) -> bool {
        self.validity()
            .is_some_and(|(begin, end)| end - now < (end - begin) / 3)
    }

    /// Asks global for a new certificate for the same key.
    async fn renew(&self, address: &str) -> anyhow::Result<()> {
        let key = StoredIdentity::load(&self.directory)?
            .ok_or_else(|| ZoneIdentityError::NotJoined(self.directory.clone()))?
            .key;
        let channel = transport::channel(address, self.client_config()?).await?;
        let request = RenewCertificateRequest {
            csr: pki::request(&key)?,
        };
        let answer = tokio::time::timeout(
            Duration::from_secs(15),
            ZoneSyncClient::new(channel).renew_certificate(request),
        )
        .await??
        .into_inner();
        let renewed = StoredIdentity {
            key,
            chain: pki::certificates_from_pem(&answer.certificate)?,
            anchors: pki::certificates_from_pem(&answer.anchors)?,
        };
        renewed.save(&self.directory)?;
        self.take_up(renewed)?;
        Ok(())
    }
}

/// Keeps the identity fresh until `stop`: below a third of its life it asks anew, at each look, one address after the
/// other. `addresses` gives the global nodes as they are known now.
pub async fn keep_fresh(
    identity: ZoneIdentity,
    addresses: impl Fn() -> Vec<String>,
    metrics: ZoneMetrics,
    stop: CancellationToken,
) {
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    loop {
        if let Some((_, end)) = identity.validity() {
            metrics.zone_certificate_end.set(end.unix_timestamp());
        }
        tokio::select! {
            _ = look.tick() => {}
            () = stop.cancelled() => return,
        }
        match identity.reload() {
            Ok(true) => tracing::info!("the zone's identity was replaced on disk and is taken up"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "the zone's identity on disk cannot be taken up; the one in use stays")
            }
        }
        if !identity.renewal_is_due(OffsetDateTime::now_utc()) {
            continue;
        }
        for address in addresses() {
            match identity.renew(&address).await {
                Ok(()) => {
                    tracing::info!(%address, "the zone's certificate is renewed");
                    break;
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), %address, "the zone's certificate cannot be renewed yet");
                }
            }
        }
    }
}

fn read_facts(path: &Path) -> Result<ZoneFacts, ZoneIdentityError> {
    let wrong = |reason: String| ZoneIdentityError::Facts {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
}
