//! The other nodes: where they are, connections to them, and when each was last heard.
//!
//! Addresses come from the membership, from what a node says of itself when it calls, and from what others say of it. Each
//! is only a place to look: who answers there is checked by certificate. So a node that came back elsewhere is found
//! before the membership says so, and a place where it is not found is tried again after the others.

use std::{
    collections::{HashMap, VecDeque},
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

use crate::{
    certificates,
    store::types::{LogId, Vote},
};

/// Biggest message between nodes: the biggest entry as base64, with room to spare.
pub const BIGGEST_MESSAGE: usize = 64 << 20;
/// A node that has been silent for longer is shown as unreachable.
const SILENT: Duration = Duration::from_secs(3);
/// Places to look for one node, at most; the one that seemed worst is forgotten.
const PLACES: usize = 4;

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

struct Known {
    /// Where to look for it, the likeliest place first.
    places: VecDeque<String>,
    connection: Option<Connection>,
    /// When this node began to know of it.
    since: Instant,
    heard: Option<Instant>,
    said_to_be_silent: bool,
    /// The newest entry it has acknowledged to this leader, and in which term of office.
    matched: Option<(Vote, LogId)>,
}

#[derive(Clone)]
struct Connection {
    address: String,
    // Empty while the connection is being made.
    result: watch::Receiver<Option<Result<Channel, String>>>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            places: VecDeque::new(),
            connection: None,
            since: Instant::now(),
            heard: None,
            said_to_be_silent: false,
            matched: None,
        }
    }
}

impl Known {
    fn likeliest(&mut self, address: &str) {
        if self.places.front().is_some_and(|first| first == address) {
            return;
        }
        self.places.retain(|place| place != address);
        self.places.push_front(address.to_owned());
        self.places.truncate(PLACES);
    }

    fn possible(&mut self, address: &str) {
        if !address.is_empty() && !self.places.iter().any(|place| place == address) {
            self.places.truncate(PLACES - 1);
            self.places.push_back(address.to_owned());
        }
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

    /// When this node's own certificate ends, in Unix seconds; 0: not known.
    #[must_use]
    pub fn own_certificate_end(&self) -> u64 {
        let own = self.0.identity.current();
        let leaf = own.as_ref().and_then(|key| key.cert.first());
        leaf.map(certificates::end_of).unwrap_or_default()
    }

    /// Notes a place where a node may be, as the membership or another node says.
    pub fn may_be_at(&self, id: u64, address: &str) {
        self.known().entry(id).or_default().possible(address);
    }

    /// Where a node was found last, or is looked for next.
    #[must_use]
    pub fn place(&self, id: u64) -> Option<String> {
        self.known().get(&id)?.places.front().cloned()
    }

    /// Notes that a node was heard, and where it says that it is.
    pub fn heard(&self, id: u64, address: Option<&str>) {
        let mut known = self.known();
        let known = known.entry(id).or_default();
        known.heard = Some(Instant::now());
        if std::mem::take(&mut known.said_to_be_silent) {
            tracing::info!(node = id, "a node is heard again");
        }
        if let Some(address) = address.filter(|address| !address.is_empty()) {
            known.likeliest(address);
        }
    }

    /// Says in the log, once, that a node is silent.
    pub fn report_silence(&self, id: u64) {
        let mut known = self.known();
        let known = known.entry(id).or_default();
        let silent = known.heard.unwrap_or(known.since).elapsed() > SILENT;
        if silent && !std::mem::replace(&mut known.said_to_be_silent, true) {
            let places = &known.places;
            tracing::warn!(node = id, looked_for_at = ?places, "a node is silent");
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
                self.look_elsewhere(id, &connection.address);
                Err(reason)
            }
            None => Err("not connected".to_owned()),
        }
    }

    fn connection(&self, id: u64) -> Result<Connection, String> {
        let mut known = self.known();
        let known = known.entry(id).or_default();
        let Some(address) = known.places.front().cloned() else {
            return Err(format!("the address of node {id} is not known"));
        };
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

    /// Notes that the connection to a node is broken: the next call makes another, to the next place where the node may
    /// be.
    pub fn lost(&self, id: u64) {
        let address = self.known().get(&id).and_then(|known| {
            let connection = known.connection.as_ref()?;
            // One that is being made is not the one that broke.
            connection.result.borrow().as_ref()?;
            Some(connection.address.clone())
        });
        if let Some(address) = address {
            self.look_elsewhere(id, &address);
        }
    }

    fn look_elsewhere(&self, id: u64, failed: &str) {
        if let Some(known) = self.known().get_mut(&id)
            && known
                .connection
                .as_ref()
                .is_some_and(|connection| connection.address == failed)
        {
            known.connection = None;
            if known.places.front().is_some_and(|first| first == failed) {
                known.places.rotate_left(1);
            }
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
