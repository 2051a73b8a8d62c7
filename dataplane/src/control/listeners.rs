//! Listeners of all workers: bound here, so that one that can not be bound is a reason to refuse a document.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use crate::{
    handover::Handed,
    net,
    workers::{Command, WorkerHandle},
};

/// Listeners of all workers, by the address in the document.
pub(super) struct Listeners {
    workers: Arc<Vec<WorkerHandle>>,
    open: BTreeMap<SocketAddr, SocketAddr>,
    /// The same sockets as the workers', to be handed over.
    held: BTreeMap<SocketAddr, Vec<TcpListener>>,
    /// From a predecessor, and not used yet.
    inherited: BTreeMap<SocketAddr, Vec<TcpListener>>,
    /// Bound, and not yet with the workers: their document may still be refused.
    waiting: BTreeMap<SocketAddr, (SocketAddr, Vec<TcpListener>)>,
}

/// A listener that can not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{hint}", hint = hint(.source))]
pub(super) struct BindError {
    address: SocketAddr,
    source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => " (another process listens there)",
        io::ErrorKind::AddrNotAvailable => " (no interface of this machine has that address)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 need CAP_NET_BIND_SERVICE)",
        _ => "",
    }
}

impl Listeners {
    pub(super) fn new(workers: Arc<Vec<WorkerHandle>>, handed: Vec<Handed>) -> Self {
        let mut inherited: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (address, listener) in handed {
            inherited.entry(address).or_default().push(listener);
        }
        Self {
            held: BTreeMap::new(),
            inherited,
            workers,
            open: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Binds those of `wanted` that are not open: all of them or none.
    pub(super) fn bind(&mut self, wanted: &[SocketAddr]) -> Result<(), BindError> {
        let mut bound = BTreeMap::new();
        for &address in wanted {
            if self.open.contains_key(&address) || self.waiting.contains_key(&address) {
                continue;
            }
            if let Some(listeners) = self.inherited.remove(&address) {
                bound.insert(address, (address, listeners));
                continue;
            }
            // A port of our own may move between addresses, old and new being open for a moment.
            let own = |open: &SocketAddr| open.port() == address.port();
            let exclusive = !self.open.keys().any(own);
            let listeners = net::listen(address, self.workers.len(), exclusive)
                .map_err(|source| BindError { address, source })?;
            bound.insert(address, listeners);
        }
        self.waiting.extend(bound);
        Ok(())
    }

    /// Opens what has been bound and closes what is not in `wanted`, in this order. Others are not touched.
    pub(super) fn settle(&mut self, wanted: &HashSet<SocketAddr>) {
        let mut new: Vec<Vec<_>> = self.workers.iter().map(|_| Vec::new()).collect();
        for (key, (bound, listeners)) in std::mem::take(&mut self.waiting) {
            if !wanted.contains(&key) {
                continue;
            }
            // As many as workers; of a predecessor with more workers each of its sockets, since each has its own queue.
            let count = new.len();
            let held = listeners
                .iter()
                .filter_map(|listener| listener.try_clone().ok());
            self.held.insert(key, held.collect());
            for (index, listener) in listeners.into_iter().enumerate() {
                new[index % count].push((key, listener));
            }
            self.open.insert(key, bound);
        }
        let unwanted = |key: &&SocketAddr| !wanted.contains(key);
        let old: Vec<_> = self.open.keys().filter(unwanted).copied().collect();
        self.open.retain(|key, _| wanted.contains(key));
        self.held.retain(|key, _| wanted.contains(key));
        for (worker, new) in self.workers.iter().zip(new) {
            if !new.is_empty() {
                worker.tell(Command::Listen(new));
            }
            if !old.is_empty() {
                worker.tell(Command::Unlisten(old.clone()));
            }
        }
    }

    /// The sockets of all listeners, to be handed over.
    pub(super) fn held(&mut self) -> Vec<Handed> {
        let held = std::mem::take(&mut self.held).into_iter();
        let each = held.flat_map(|(key, all)| all.into_iter().map(move |one| (key, one)));
        each.collect()
    }

    /// Closes what a predecessor had and this process has no use for.
    pub(super) fn disinherit(&mut self) {
        for address in std::mem::take(&mut self.inherited).into_keys() {
            tracing::info!(%address, "a listener of the predecessor is not needed any more");
        }
    }

    pub(super) fn describe(&self) -> Vec<String> {
        self.open.values().map(ToString::to_string).collect()
    }
}
