//! The first start of a node, and every later one: who the node is, and what it needs before it can be part of a cluster.
//!
//! | file in the data directory | what |
//! | --- | --- |
//! | `lock` | held while the process runs |
//! | `node.json`, the store | the cluster's own, see [`crate::store`] |
//! | `sealing.key` | the key that seals secrets; on every node, never in the log |
//! | `identity/` | this node's key and certificate, and the CAs it trusts |
//! | `first-start` | only during a first start: what it has decided so far, so that a crash at any point is survived |
//! | `recovering`, `recovered/` | only while `global-cp recover` is at work, see [`crate::recover`] |
//! | `damaged-…/` | what was there before a recovery |
//! | `audit.log` | refused attempts and reads of secrets |
//! | `control.sock` | for `global-cp reset-admin-token` |
//! | `addresses.json` | where the process really listens |

use std::path::{Path, PathBuf};

use mesh_proto::zone::NodeAddresses;
use mesh_runtime::{
    files::{self, ReadError},
    identity_dir::{IdentityError, StoredIdentity},
    pki::{self, PkiError},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    api::problem::Problem,
    app::App,
    authorize::Actor,
    ca::{self, CaError, InstallationCa, Signer as _},
    cluster::{Node, Start},
    facts::{self, StoredCa, StoredTokenKey},
    issue,
    join::{self, JoinError},
    sealing::{KeyFileError, SealingError, SealingKey},
    settings::Config,
    store::directory::{self, DirectoryError},
    tokens::{MakeError, TokenKey},
    writes,
};

/// What a node has before it starts its part of the cluster.
pub struct Prepared {
    /// Who it is.
    pub node: Node,
    /// How it starts.
    pub start: Start,
    /// The key that seals secrets.
    pub sealing: SealingKey,
    /// Its key and certificate.
    pub identity: StoredIdentity,
    /// What is left to do after the start, the first time.
    pub first: Option<FirstStart>,
}

/// What a first start has decided.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum FirstStart {
    /// Founds an installation.
    #[serde(rename_all = "camelCase")]
    Found {
        /// Who the node is.
        node: Node,
        /// The CA it has made, its key sealed.
        ca: StoredCa,
        /// The key for join tokens it has made, sealed.
        join_key: StoredTokenKey,
    },
    /// Has joined one.
    #[serde(rename_all = "camelCase")]
    Join {
        /// Who the node is.
        node: Node,
        /// Raft addresses of nodes to ask to be added.
        raft_addresses: Vec<String>,
    },
}

/// Why a node can not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each says it itself
pub enum PrepareError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Sealing(#[from] SealingError),
    #[error(transparent)]
    Token(#[from] MakeError),
    #[error(transparent)]
    FirstStart(#[from] ReadError),
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{0} is missing, although this node has run before: copy it from another node of the installation, or from a backup of this one"
    )]
    NoSealingKey(PathBuf),
    #[error(
        "{0} is missing, although this node has run before: put it back from a backup. {remedy}", remedy = crate::store::REMEDY
    )]
    NoIdentity(PathBuf),
    #[error(
        "{0} says that a recovery of this node was interrupted: run `meshctl global recover` (or `global-cp recover`) again"
    )]
    Recovering(PathBuf),
    #[error("{0} is of another version of this program: finish the first start with that one")]
    FirstStartFormat(PathBuf),
}

/// Finds out who this node is; at its first start, makes it somebody. `addresses` are where others reach it.
///
/// # Errors
/// Where what is on the disk does not fit together, or the installation to join refuses.
pub async fn prepare(config: &Config, addresses: &NodeAddresses) -> Result<Prepared, PrepareError> {
    let interrupted = crate::recover::marker(&config.data_dir);
    if interrupted.exists() {
        return Err(PrepareError::Recovering(interrupted));
    }
    let known = directory::load(&config.data_dir)?;
    let first = load_first_start(&config.data_dir)?;
    let (node, start, first) = match (known, first) {
        (Some(file), first) => {
            if let Some(join) = &config.join {
                tracing::info!(address = %join.address, "this node has joined already; --join is ignored");
            }
            let node = Node {
                node_uuid: file.node.node_uuid,
                node_id: file.node.node_id,
                cluster_id: file.node.cluster_id,
            };
            (node, Start::Again, first)
        }
        (None, Some(first)) => {
            let (node, start) = start_of(&first);
            (node, start, Some(first))
        }
        (None, None) => {
            let first = match &config.join {
                None => found(config)?,
                Some(join) => join_cluster(config, join, addresses).await?,
            };
            save_first_start(&config.data_dir, &first)?;
            let (node, start) = start_of(&first);
            (node, start, Some(first))
        }
    };
    let sealing = SealingKey::load(&sealing_file(&config.data_dir))?
        .ok_or_else(|| PrepareError::NoSealingKey(sealing_file(&config.data_dir)))?;
    let identity = StoredIdentity::load(&identity_dir(&config.data_dir))?
        .ok_or_else(|| PrepareError::NoIdentity(identity_dir(&config.data_dir)))?;
    Ok(Prepared {
        node,
        start,
        sealing,
        identity,
        first,
    })
}

fn start_of(first: &FirstStart) -> (Node, Start) {
    match first {
        FirstStart::Found { node, .. } => (node.clone(), Start::Bootstrap),
        FirstStart::Join {
            node,
            raft_addresses,
        } => (node.clone(), Start::Join(raft_addresses.clone())),
    }
}

/// Makes what an installation begins with. Nothing of it counts before `first-start` is written.
fn found(config: &Config) -> Result<FirstStart, PrepareError> {
    let now = OffsetDateTime::now_utc();
    let node = Node {
        node_uuid: uuid::Uuid::new_v4().to_string(),
        node_id: 1,
        cluster_id: uuid::Uuid::new_v4().to_string(),
    };
    let sealing = SealingKey::generate()?;
    sealing.save(&sealing_file(&config.data_dir))?;
    let ca = InstallationCa::generate(now)?;
    let key = pki::new_key()?;
    let subject = ca::node_subject(node.node_id, &config.advertise_host);
    let leaf = ca.sign(&pki::request(&key)?, &subject, now, ca::NODE_LIFETIME)?;
    StoredIdentity {
        key,
        chain: vec![leaf],
        anchors: ca.bundle().to_vec(),
    }
    .save(&identity_dir(&config.data_dir))?;
    let join_key = TokenKey::generate()?;
    Ok(FirstStart::Found {
        node,
        ca: ca.seal(&sealing)?,
        join_key: facts::seal_token_key(&sealing, facts::JOIN_KEY, &join_key)?,
    })
}

async fn join_cluster(
    config: &Config,
    target: &crate::settings::Join,
    addresses: &NodeAddresses,
) -> Result<FirstStart, PrepareError> {
    let newcomer = Newcomer::ask(target, addresses).await?;
    newcomer.keep(&config.data_dir)
}

/// A node that a cluster has taken, before anything of it is on the disk.
pub struct Newcomer {
    /// Who it is.
    pub node: Node,
    sealing: SealingKey,
    identity: StoredIdentity,
    raft_addresses: Vec<String>,
}

impl Newcomer {
    /// Uses up the token at `target`.
    ///
    /// # Errors
    /// Where the installation refuses.
    pub async fn ask(
        target: &crate::settings::Join,
        addresses: &NodeAddresses,
    ) -> Result<Self, PrepareError> {
        let key = pki::new_key()?;
        let node_uuid = uuid::Uuid::new_v4().to_string();
        let joined = join::join(target, &key, &node_uuid, addresses.clone()).await?;
        Ok(Self {
            node: Node {
                node_uuid,
                node_id: joined.response.node_id,
                cluster_id: joined.response.cluster_id,
            },
            sealing: joined.sealing,
            identity: StoredIdentity {
                key,
                chain: pki::certificates_from_pem(&joined.response.certificate)?,
                anchors: pki::certificates_from_pem(&joined.response.anchors)?,
            },
            raft_addresses: joined.response.raft_addresses,
        })
    }

    /// Writes its key and certificate into a data directory. It counts from when the answer is saved as `first-start`.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn keep(self, data_dir: &Path) -> Result<FirstStart, PrepareError> {
        self.sealing.save(&sealing_file(data_dir))?;
        self.identity.save(&identity_dir(data_dir))?;
        Ok(FirstStart::Join {
            node: self.node,
            raft_addresses: self.raft_addresses,
        })
    }
}

#[cfg(test)]
impl Newcomer {
    /// One that nobody has taken.
    pub(crate) fn made_up(node: Node) -> Self {
        let now = OffsetDateTime::now_utc();
        let ca = InstallationCa::generate(now).unwrap();
        let key = pki::new_key().unwrap();
        let subject = ca::node_subject(node.node_id, "cp.example.com");
        let request = pki::request(&key).unwrap();
        Self {
            identity: StoredIdentity {
                chain: vec![ca.sign(&request, &subject, now, ca::NODE_LIFETIME).unwrap()],
                anchors: ca.bundle().to_vec(),
                key,
            },
            sealing: SealingKey::generate().unwrap(),
            node,
            raft_addresses: vec!["127.0.0.1:1".to_owned()],
        }
    }
}

/// What a founding node prints, once.
pub struct Founded {
    /// The first admin's token.
    pub admin_token: String,
    /// Pin of the installation CA.
    pub pin: String,
}

/// Finishes a first start. Returns what is to be printed, where this node has founded the installation just now.
///
/// Stored first, printed after: whoever reads the token can use it. If the process dies between the two, nobody has
/// read it, and `global-cp reset-admin-token` makes another.
///
/// # Errors
/// Where it can not be written.
pub async fn finish(
    app: &App,
    data_dir: &Path,
    first: &FirstStart,
) -> Result<Option<Founded>, Problem> {
    let founded = match first {
        FirstStart::Join { .. } => None,
        FirstStart::Found { ca, join_key, .. } => {
            app.cluster.linearize().await?;
            if app.image().system(facts::INSTALLATION_CA).is_none() {
                let new = |name: &str, value: Vec<u8>| facts::set(name, value, Some(Vec::new()));
                let operations = vec![
                    new(facts::INSTALLATION_CA, facts::encode(ca)),
                    new(facts::JOIN_KEY, facts::encode(join_key)),
                    new(join::LAST_NODE_ID, b"1".to_vec()),
                ];
                let words = "found the installation".to_owned();
                writes::write_operations(app, &Actor::system(), operations, words).await?;
            }
            if app.image().list("Token", Some(""), None, 1).is_empty() {
                let created = issue::reset_admin(app).await?;
                let pin = InstallationCa::open(&app.image(), &app.sealing)
                    .and_then(|ca| ca.pin())
                    .map_err(|error| Problem::internal(&error))?;
                Some(Founded {
                    admin_token: created.token,
                    pin,
                })
            } else {
                tracing::warn!(
                    "the first start was interrupted; if nobody has seen the admin token, run `global-cp reset-admin-token`"
                );
                None
            }
        }
    };
    match std::fs::remove_file(first_start_file(data_dir)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Problem::internal(&error))
        }
        _ => Ok(founded),
    }
}

/// Where the sealing key is.
#[must_use]
pub fn sealing_file(data_dir: &Path) -> PathBuf {
    data_dir.join("sealing.key")
}

/// Where key and certificate are.
#[must_use]
pub fn identity_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("identity")
}

fn first_start_file(data_dir: &Path) -> PathBuf {
    data_dir.join("first-start")
}

fn load_first_start(data_dir: &Path) -> Result<Option<FirstStart>, PrepareError> {
    let path = first_start_file(data_dir);
    match files::read_checksummed(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|_| PrepareError::FirstStartFormat(path)),
        Err(ReadError::Missing(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn save_first_start(data_dir: &Path, first: &FirstStart) -> Result<(), PrepareError> {
    let path = first_start_file(data_dir);
    files::write_checksummed(&path, &facts::encode(first))
        .map_err(|source| PrepareError::Io { path, source })
}
