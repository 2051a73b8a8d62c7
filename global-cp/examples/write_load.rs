//! Writes to a cluster of one or three nodes in this process, over real TLS and onto a real disk:
//!
//! ```text
//! cargo run --release -p global-cp --example write_load -- DIRECTORY NODES WRITERS WRITES
//! ```
//!
//! Each acknowledged write is told on standard output, in one system call of its own, so that a trace shows what came
//! before (`tests/durability.rs`). The time it took is told on standard error.

use std::{
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, anyhow};
use futures::future::BoxFuture;
use global_cp::{
    audit::AttemptLog,
    cluster::{Cluster, Node, Settings, Start, ZoneStreams, node_of},
};
use mesh_proto::{
    raft::{ConnectedZone, Entry, Operation, Put, operation},
    spiffe::SpiffeId,
    zone::{NodeAddresses, Query, QueryAnswer, ResourceKey},
};
use mesh_runtime::{
    pki::{self, Ca, Subject},
    tls::{LocalIdentity, TrustDomains},
};
use time::{Duration, OffsetDateTime};
use tokio::{net::TcpListener, task::JoinSet};

struct NoZones;

impl ZoneStreams for NoZones {
    fn query(&self, _zone: String, _query: Query) -> BoxFuture<'static, Option<QueryAnswer>> {
        Box::pin(std::future::ready(None))
    }

    fn statuses(&self) -> Vec<ConnectedZone> {
        Vec::new()
    }
}

async fn start(ca: &Ca, directory: &Path, id: u64, start: Start) -> anyhow::Result<Cluster> {
    let directory = directory.join(id.to_string());
    mesh_runtime::files::ensure_private_dir(&directory)?;
    let node = node_of(&directory)?.unwrap_or(Node {
        node_uuid: format!("disk-{id}"),
        node_id: id,
        cluster_id: "load".to_owned(),
    });
    let start = if global_cp::store::directory::node_file(&directory).exists() {
        Start::Again
    } else {
        start
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let raft = listener.local_addr()?.to_string();
    let key = pki::new_key()?;
    let subject = Subject {
        spiffe_id: Some(SpiffeId::global_node(id)),
        ..Subject::default()
    };
    let now = OffsetDateTime::now_utc();
    let leaf = ca.sign(&pki::request(&key)?, &subject, now, Duration::hours(1))?;
    let identity = LocalIdentity::none();
    identity.set(vec![leaf], &pki::private_key(&key))?;
    let attempts = AttemptLog::open(&directory)?;
    Ok(Cluster::start(Settings {
        data_dir: directory,
        node,
        addresses: NodeAddresses {
            api: raft.clone(),
            zone: raft.clone(),
            raft,
        },
        listener,
        identity,
        trust: Arc::new(TrustDomains::installation(&[ca.certificate().clone()])?),
        start,
        zones: Arc::new(NoZones),
        attempts,
    })
    .await?)
}

fn entry(name: &str) -> Entry {
    let json = format!(
        "{{\"type\":\"Mesh\",\"name\":\"{name}\",\"text\":\"{}\"}}",
        "x".repeat(200)
    );
    Entry {
        operations: vec![Operation {
            operation: Some(operation::Operation::Put(Put {
                key: Some(ResourceKey::global("Mesh", "", name)),
                json: json.into_bytes(),
                precondition: None,
            })),
        }],
        ..Entry::default()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [directory, nodes, writers, writes] = arguments.as_slice() else {
        return Err(anyhow!("usage: write_load DIRECTORY NODES WRITERS WRITES"));
    };
    let load = Load {
        nodes: nodes.parse()?,
        writers: writers.parse()?,
        first: 0,
        writes: writes.parse()?,
        list: false,
    };
    run(Path::new(directory), load).await
}

/// What to do.
pub struct Load {
    /// Nodes of the cluster.
    pub nodes: u64,
    /// Writers at the same time.
    pub writers: u64,
    /// Number of the first write.
    pub first: u64,
    /// How many writes.
    pub writes: u64,
    /// Tell first what is there already.
    pub list: bool,
}

/// Starts the nodes, writes, and stops them.
///
/// # Errors
/// Where a node does not start or a write is not acknowledged.
pub async fn run(directory: &Path, load: Load) -> anyhow::Result<()> {
    let Load {
        nodes,
        writers,
        first,
        writes,
        list,
    } = load;
    mesh_runtime::init();
    let ca = Ca::self_signed("load", None, OffsetDateTime::now_utc(), Duration::days(1))?;
    let mut clusters = vec![start(&ca, directory, 1, Start::Bootstrap).await?];
    for id in 2..=nodes {
        let via = clusters[0]
            .raft_address()
            .context("no address")?
            .to_string();
        clusters.push(start(&ca, directory, id, Start::Join(vec![via])).await?);
    }
    clusters[0].linearize().await?;
    if list {
        for stored in clusters[0].state().list("Mesh", None, None, usize::MAX) {
            println!("holds {}", stored.key.name);
        }
    }
    let next = Arc::new(AtomicU64::new(first));
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..writers {
        let (cluster, next) = (clusters[0].clone(), next.clone());
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number - first >= writes {
                    return anyhow::Ok(());
                }
                let name = format!("written-{number:09}");
                cluster.write(entry(&name)).await?;
                std::io::stdout().write_all(format!("acknowledged {name}\n").as_bytes())?;
            }
        });
    }
    while let Some(finished) = tasks.join_next().await {
        finished??;
    }
    let seconds = begin.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let rate = writes as f64 / seconds;
    eprintln!("{writes} writes by {writers} writers on {nodes} nodes: {rate:.0} a second");
    for cluster in clusters {
        cluster.shutdown().await;
    }
    Ok(())
}
