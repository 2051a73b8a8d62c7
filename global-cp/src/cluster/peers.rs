//! The other nodes: where they are, connections to them, and when each was last heard.
//!
//! Addresses come from the membership; what a node says of itself in a call is newer and wins, so that a node that came
//! back elsewhere is found before the membership says so. Who answers is checked by certificate, never by address.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mesh_proto::{raft::raft_client::RaftClient, spiffe::SpiffeId};
use mesh_runtime::{
    tls::{self, Accept, LocalIdentity, SpiffeVerifier, TrustDomains},
    transport,
};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::store::types::{LogId, Vote};

/// Biggest message between nodes: the biggest entry as base64, with room to spare.
pub const BIGGEST_MESSAGE: usize = 64 << 20;
/// A node that has been silent for longer is shown as unreachable.
const SILENT: Duration = Duration::from_secs(3);

/// Calls to one node.
pub type Client = RaftClient<Channel>;

/// The other nodes. Clones are the same.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    identity: LocalIdentity,
    trust: Arc<TrustDomains>,
    known: Mutex<HashMap<u64, Known>>,
}

#[derive(Default)]
struct Known {
    /// As the membership has it.
    member_address: String,
    /// As the node itself said, where that is newer.
    own_address: Option<String>,
    connection: Option<Connection>,
    heard: Option<Instant>,
    /// The newest entry it has acknowledged to this leader, and in which term of office.
    matched: Option<(Vote, LogId)>,
}

#[derive(Clone)]
struct Connection {
    address: String,
    // Empty while the connection is being made.
    result: watch::Receiver<Option<Result<Channel, String>>>,
}

impl Known {
    fn address(&self) -> &str {
        self.own_address.as_deref().unwrap_or(&self.member_address)
    }
}

impl Peers {
    /// Knows nobody yet.
    #[must_use]
    pub fn new(identity: LocalIdentity, trust: Arc<TrustDomains>) -> Self {
        Self(Arc::new(Inner {
            identity,
            trust,
            known: Mutex::new(HashMap::new()),
        }))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u64, Known>> {
        // Nothing in a critical section can leave it half changed.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes where the membership says that a node is.
    pub fn set_address(&self, id: u64, address: &str) {
        let mut known = self.known();
        let known = known.entry(id).or_default();
        if known.member_address != address {
            address.clone_into(&mut known.member_address);
            // The membership was changed after the node spoke.
            known.own_address = None;
        }
    }

    /// Notes that a node was heard, and where it says that it is.
    pub fn heard(&self, id: u64, address: Option<&str>) {
        let mut known = self.known();
        let known = known.entry(id).or_default();
        known.heard = Some(Instant::now());
        if let Some(address) = address.filter(|address| !address.is_empty()) {
            known.own_address = (known.member_address != address).then(|| address.to_owned());
        }
    }

    /// How long a node has been silent; `None`: it was never heard.
    #[must_use]
    pub fn silent_for(&self, id: u64) -> Option<Duration> {
        Some(self.known().get(&id)?.heard?.elapsed())
    }

    /// Whether a node was heard lately.
    #[must_use]
    pub fn is_reachable(&self, id: u64) -> bool {
        self.silent_for(id).is_some_and(|silent| silent < SILENT)
    }

    /// Calls to a node. Waits while the connection is being made; giving up waiting does not give up connecting.
    ///
    /// # Errors
    /// Where the node is not known or not reached, in words.
    pub async fn client(&self, id: u64) -> Result<Client, String> {
        let mut connection = self.connection(id)?;
        let result = connection
            .result
            .wait_for(Option::is_some)
            .await
            .map_err(|_| "connecting was given up".to_owned())?
            .clone();
        match result {
            Some(Ok(channel)) => Ok(client(channel)),
            Some(Err(reason)) => {
                self.disconnect(id, &connection);
                Err(reason)
            }
            None => Err("not connected".to_owned()),
        }
    }

    fn connection(&self, id: u64) -> Result<Connection, String> {
        let mut known = self.known();
        let known = known.entry(id).or_default();
        let address = known.address().to_owned();
        if address.is_empty() {
            return Err(format!("the address of node {id} is not known"));
        }
        if let Some(connection) = &known.connection
            && connection.address == address
        {
            return Ok(connection.clone());
        }
        let (sender, result) = watch::channel(None);
        let connection = Connection {
            address: address.clone(),
            result,
        };
        known.connection = Some(connection.clone());
        let config = self.tls(Arc::new(move |peer: &SpiffeId| {
            if peer.as_global_node() == Some(id) {
                Ok(())
            } else {
                Err(format!("node {id} was expected there"))
            }
        }));
        tokio::spawn(async move {
            let connected = transport::channel(&address, config).await;
            sender.send_replace(Some(connected.map_err(|error| error.to_string())));
        });
        Ok(connection)
    }

    /// Forgets a connection that was not made, so that the next call makes another.
    fn disconnect(&self, id: u64, failed: &Connection) {
        if let Some(known) = self.known().get_mut(&id)
            && known
                .connection
                .as_ref()
                .is_some_and(|connection| connection.result.same_channel(&failed.result))
        {
            known.connection = None;
        }
    }

    /// Calls to whichever node of the cluster is at `address`.
    ///
    /// # Errors
    /// Where none is reached, in words.
    pub async fn client_at(&self, address: &str) -> Result<Client, String> {
        let config = self.tls(Arc::new(|peer: &SpiffeId| match peer.as_global_node() {
            Some(_) => Ok(()),
            None => Err("a global node was expected there".to_owned()),
        }));
        transport::channel(address, config)
            .await
            .map(client)
            .map_err(|error| error.to_string())
    }

    fn tls(&self, accept: Accept) -> Arc<rustls::ClientConfig> {
        let verifier = SpiffeVerifier::new(self.0.trust.clone(), accept);
        Arc::new(tls::client_config(
            Some(self.0.identity.clone()),
            Arc::new(verifier),
            transport::GRPC_ALPN,
        ))
    }

    /// Notes that a node has acknowledged the log up to `matched` to this leader.
    pub fn acknowledged(&self, id: u64, vote: Vote, matched: LogId) {
        let mut known = self.known();
        let known = known.entry(id).or_default();
        match &mut known.matched {
            Some((in_office, newest)) if *in_office == vote => *newest = matched.max(*newest),
            other => *other = Some((vote, matched)),
        }
    }

    /// Whether a node that says it lacks `missing` has acknowledged it before, to this leader: then it has lost its log.
    #[must_use]
    pub fn has_lost(&self, id: u64, vote: Vote, missing: LogId) -> bool {
        self.known()
            .get(&id)
            .and_then(|known| known.matched)
            .is_some_and(|(in_office, newest)| in_office == vote && missing <= newest)
    }
}

fn client(channel: Channel) -> Client {
    RaftClient::new(channel)
        .max_decoding_message_size(BIGGEST_MESSAGE)
        .max_encoding_message_size(BIGGEST_MESSAGE)
}
