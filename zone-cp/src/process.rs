//! The whole life of the process, top to bottom.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use mesh_proto::discovery::discovery_server::DiscoveryServer as DiscoveryService;
use mesh_runtime::{
    admin::{self, Health, Metrics},
    files, tls, transport,
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api,
    discovery::DiscoveryServer,
    event,
    identity::{self, ZoneIdentity},
    metrics::ZoneMetrics,
    settings::Settings,
    store::Store,
    sync::{Addresses, Sync},
    token::Issuers,
    zone::{Zone, ZoneParts},
};

/// How often zone and dataplane say something to each other.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long streams may take to end when the process stops.
const GOODBYE: Duration = Duration::from_secs(3);
/// The longest message from a dataplane.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Where a running zone control plane listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// Dataplanes call here.
    pub discovery: SocketAddr,
    /// The zone's own API.
    pub api: SocketAddr,
    /// Health and metrics.
    pub admin: SocketAddr,
}

/// Runs a zone control plane until `stop`. `listening` hears where, once everything serves.
///
/// # Errors
/// Where it cannot start: the zone has not joined, a directory or address is taken, a file cannot be used.
pub async fn run(
    settings: Settings,
    stop: CancellationToken,
    listening: impl FnOnce(Listening),
) -> anyhow::Result<()> {
    files::ensure_private_dir(&settings.data_dir)
        .with_context(|| format!("data-dir: {}", settings.data_dir.display()))?;
    let _lock = files::lock_dir(&settings.data_dir)?;
    let identity = ZoneIdentity::load(&settings.data_dir.join("identity"))?;
    tracing::info!(zone = %identity.zone, "this zone control plane starts");

    // Health and metrics first, so that somebody who looks sees what is missing.
    let health = Health::new();
    health.set("store", Err("loading".to_owned()));
    let registry: Metrics = Arc::new(Mutex::new(prometheus_client::registry::Registry::default()));
    let metrics = ZoneMetrics::register(&registry);
    let admin_listener = bind(settings.admin_address, "admin-address").await?;
    let api_listener = bind(settings.api_address, "api-address").await?;
    let discovery_listener = bind(settings.discovery_address, "discovery-address").await?;
    let bound = Listening {
        discovery: discovery_listener.local_addr()?,
        api: api_listener.local_addr()?,
        admin: admin_listener.local_addr()?,
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn({
        let (health, stop) = (health.clone(), stop.clone());
        async move {
            admin::serve(admin_listener, health, registry, stop).await;
            anyhow::Ok(())
        }
    });

    // What is known is compiled before anybody is heard.
    let (store, loaded) = Store::open(&settings.data_dir, health.clone())?;
    let (revision, revisions) = watch::channel(0);
    let issuers = Arc::new(ArcSwap::from_pointee(Issuers::default()));
    let zone = Zone::new(ZoneParts {
        zone: identity.zone.clone(),
        cluster_id: identity.facts.cluster_id.clone(),
        instance: settings.advertise_host.clone(),
        grace: settings.grace,
        store,
        loaded,
        issuers: issuers.clone(),
        revision,
        health: health.clone(),
        metrics: metrics.clone(),
    })?;
    health.set("store", Ok(()));
    let (events, inbox) = mpsc::channel(event::QUEUE);
    // The loop ends last: it keeps what is not kept yet.
    let zone_stop = CancellationToken::new();
    let zone_loop = tokio::spawn(zone.run(inbox, zone_stop.clone()));

    // Towards global.
    let addresses = Addresses::new(if settings.global.is_empty() {
        identity.facts.global_addresses.clone()
    } else {
        settings.global.clone()
    });
    let sync = Sync {
        identity: identity.clone(),
        addresses: addresses.clone(),
        events: events.clone(),
        revision: revisions.clone(),
    };
    tasks.spawn({
        let stop = stop.clone();
        async move {
            sync.run(stop).await;
            Ok(())
        }
    });
    tasks.spawn({
        let (identity, stop) = (identity.clone(), stop.clone());
        async move {
            identity::keep_fresh(identity, move || addresses.all(), metrics, stop).await;
            Ok(())
        }
    });

    // Towards dataplanes and people.
    let server = DiscoveryServer::new(
        identity.clone(),
        issuers,
        events.clone(),
        revisions,
        HEARTBEAT,
    );
    let discovery_tls = Arc::new(tls::server_config(
        identity.presented(),
        None,
        transport::GRPC_ALPN,
    ));
    tasks.spawn({
        let stop = stop.clone();
        async move {
            tonic::transport::Server::builder()
                .tcp_nodelay(true)
                .http2_keepalive_interval(Some(Duration::from_secs(10)))
                .http2_keepalive_timeout(Some(Duration::from_secs(10)))
                .add_service(
                    DiscoveryService::new(server).max_decoding_message_size(MESSAGE_BYTES_MAX),
                )
                .serve_with_incoming_shutdown(
                    transport::incoming(discovery_listener, discovery_tls),
                    stop.cancelled_owned(),
                )
                .await
                .context("discovery address")
        }
    });
    tasks.spawn({
        let stop = stop.clone();
        async move {
            axum::serve(api_listener, api::router(events))
                .with_graceful_shutdown(stop.cancelled_owned())
                .await
                .context("api address")
        }
    });

    write_addresses(&settings, bound)?;
    mesh_runtime::notify_ready();
    tracing::info!(discovery = %bound.discovery, api = %bound.api, admin = %bound.admin, "serving");
    listening(bound);

    // Until asked to stop, or a part fails.
    let failed = tokio::select! {
        () = stop.cancelled() => None,
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) if stop.is_cancelled() => None,
            Ok(Ok(())) => Some(anyhow::anyhow!("a part of the process ended by itself")),
            Ok(Err(error)) => Some(error),
            Err(error) => Some(anyhow::anyhow!("a part of the process failed: {error}")),
        },
    };
    stop.cancel();
    zone_stop.cancel();
    zone_loop.await.context("the zone's loop failed")?;
    let _ = tokio::time::timeout(GOODBYE, async {
        while tasks.join_next().await.is_some() {}
    })
    .await;
    match failed {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{setting}: cannot listen at {address}"))
}

/// For whoever started the process with ports of the system's choice.
fn write_addresses(settings: &Settings, bound: Listening) -> anyhow::Result<()> {
    let reached = |address: SocketAddr| {
        // What listens on loopback is not reached by the advertised name.
        if address.ip().is_loopback() {
            return address.to_string();
        }
        let host = &settings.advertise_host;
        match host.contains(':') {
            true => format!("[{}]:{}", host.trim_matches(['[', ']']), address.port()),
            false => format!("{host}:{}", address.port()),
        }
    };
    let text = json!({
        "discovery": reached(bound.discovery),
        "api": reached(bound.api),
        "admin": reached(bound.admin),
    });
    let path = settings.data_dir.join("addresses.json");
    files::write_atomic(&path, format!("{text:#}\n").as_bytes(), 0o644)
        .with_context(|| path.display().to_string())
}
