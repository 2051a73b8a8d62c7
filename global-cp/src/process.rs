//! `global-cp run`: the whole life of the process, top to bottom.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use mesh_proto::zone::{NodeAddresses, join_server::JoinServer, zone_sync_server::ZoneSyncServer};
use mesh_runtime::{
    admin::{self, Health},
    files,
    identity_dir::StoredIdentity,
    pki, shutdown,
    tls::{self, LocalIdentity, SpiffeVerifier, TrustDomains},
    transport,
};
use prometheus_client::registry::Registry;
use prost::Message as _;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    api,
    app::{App, Shared},
    audit::AttemptLog,
    authorize::Actor,
    ca::{self, InstallationCa, Signer as _},
    certificates,
    cluster::{self, Cluster, ZoneStreams as _},
    control, facts,
    join::Join,
    metrics::Metrics,
    settings::{Config, host_port},
    start,
    state::{image::HISTORY_LIMITS, records::HistoryLimits},
    writes,
    zone_sync::{service::ZoneSync, streams::Streams},
};

/// Time between two heartbeats of a zone's stream.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long requests under way may take after the process was asked to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Time between two looks at when certificates end.
const CERTIFICATES_CHECK: Duration = Duration::from_secs(60);
/// Time between two looks at the age of the node's certificate.
const RENEWAL_CHECK: Duration = Duration::from_secs(600);
/// Largest message from a zone: a full report of many services.
const ZONE_MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Runs a node of the global control plane until it is asked to stop.
///
/// # Errors
/// Where it can not start, or can not go on.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    mesh_runtime::init();

    // The data directory is ours alone.
    let data_dir = config.data_dir.clone();
    files::ensure_private_dir(&data_dir)
        .with_context(|| format!("data-dir: cannot use {}", data_dir.display()))?;
    let _lock = files::lock_dir(&data_dir)?;

    // Sockets first: with port 0 the addresses to tell others are known only now.
    let api_listener = bind("api-address", config.api_address).await?;
    let zone_listener = bind("zone-address", config.zone_address).await?;
    let raft_listener = bind("raft-address", config.raft_address).await?;
    let admin_listener = bind("admin-address", config.admin_address).await?;
    let told = |listener: &TcpListener| -> io::Result<String> {
        Ok(host_port(
            &config.advertise_host,
            listener.local_addr()?.port(),
        ))
    };
    let addresses = NodeAddresses {
        api: told(&api_listener)?,
        zone: told(&zone_listener)?,
        raft: told(&raft_listener)?,
    };
    let admin_address = admin_listener.local_addr()?;

    // Health from the beginning: a node that waits for its peers is alive and not ready.
    let health = Health::new();
    health.set("cluster", Err("starting".to_owned()));
    let registry = Arc::new(Mutex::new(Registry::default()));
    let metrics = Metrics::new(&registry);
    let admin = tokio::spawn(admin::serve(
        admin_listener,
        health.clone(),
        registry,
        stop.clone(),
    ));

    // Who we are.
    let prepared = tokio::select! {
        prepared = start::prepare(&config, &addresses) => prepared?,
        () = stop.cancelled() => return Ok(()),
    };
    let identity = LocalIdentity::none();
    let identity_dir = start::identity_dir(&data_dir);
    prepared.identity.present(&identity, &identity_dir)?;
    let trust = Arc::new(TrustDomains::installation(&prepared.identity.anchors)?);

    // The replicated state.
    let streams = Streams::default();
    let attempts = AttemptLog::open(&data_dir).context("audit.log")?;
    let cluster = cluster::Settings {
        data_dir: data_dir.clone(),
        node: prepared.node.clone(),
        addresses: addresses.clone(),
        listener: raft_listener,
        identity: identity.clone(),
        trust: trust.clone(),
        start: prepared.start,
        zones: Arc::new(streams.clone()),
        attempts: attempts.clone(),
    };
    let cluster = tokio::select! {
        cluster = Cluster::start(cluster) => cluster?,
        () = stop.cancelled() => return Ok(()),
    };
    let app = App::new(Shared {
        cluster: cluster.clone(),
        sealing: prepared.sealing,
        attempts,
        streams,
        lookout: api::observed::Lookout::default(),
        conditions: api::conditions::Conditions::default(),
        limits: api::limits::Limits::new(config.bounds, metrics.clone()),
        metrics,
        advertise_host: config.advertise_host.clone(),
        heartbeat: HEARTBEAT,
        stop: stop.clone(),
    });

    // What an installation begins with.
    if let Some(first) = &prepared.first {
        let founded = start::finish(&app, &data_dir, first)
            .await
            .map_err(|problem| anyhow::anyhow!("the first start: {}", problem.body.title))?;
        if let Some(founded) = founded {
            println!("admin token: {}", founded.admin_token);
            println!("ca pin: {}", founded.pin);
        }
    }

    // Everybody may call now.
    let api_tls = Arc::new(tls::server_config(identity.clone(), None, api::serve::ALPN));
    let api_router = api::router(app.clone());
    let api = tokio::spawn(api::serve::serve(
        api_listener,
        api_tls,
        api_router,
        stop.clone(),
        DRAIN,
    ));
    let zones = tokio::spawn(serve_zones(
        app.clone(),
        zone_listener,
        identity.clone(),
        trust,
    ));
    let local = tokio::spawn({
        let (app, data_dir, stop) = (app.clone(), data_dir.clone(), stop.clone());
        async move {
            if let Err(error) = control::serve(app, &data_dir, stop).await {
                tracing::warn!(%error, "the control socket is not served: `global-cp reset-admin-token` will not work");
            }
        }
    });
    let renewal = tokio::spawn(renew(
        app.clone(),
        prepared.identity,
        identity,
        identity_dir,
    ));
    let keeping = tokio::spawn(say_history_limits(app.clone(), config.history.clone()));
    let watching = tokio::spawn(watch_cluster(app.clone(), health.clone()));

    write_addresses(&data_dir, &addresses, admin_address)?;
    mesh_runtime::notify_ready();
    tracing::info!(
        node_id = cluster.node_id(),
        api = %addresses.api,
        zone = %addresses.zone,
        raft = %addresses.raft,
        admin = %admin_address,
        "the global control plane serves"
    );

    // Until somebody wants it to stop, or it can not go on.
    let failure = tokio::select! {
        () = stop.cancelled() => None,
        reason = cluster.failed() => Some(reason),
    };
    health.set("cluster", Err("stopping".to_owned()));
    stop.cancel();
    renewal.abort();
    watching.abort();
    keeping.abort();
    let (_, _, _) = tokio::join!(api, zones, local);
    cluster.shutdown().await;
    let _ = admin.await;
    match failure {
        None => {
            tracing::info!("stopped");
            Ok(())
        }
        Some(reason) => Err(anyhow::anyhow!("this node can not go on: {reason}")),
    }
}

/// Binds `address`; where the host has no IPv6 and every address is meant, every IPv4 address.
async fn bind(field: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && !in_use(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.with_context(|| format!("{field}: cannot listen on {address}"))
}

fn in_use(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied
    )
}

/// Where the process really listens, for whoever started it.
fn write_addresses(
    data_dir: &Path,
    addresses: &NodeAddresses,
    admin: SocketAddr,
) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Addresses<'a> {
        api: &'a str,
        zone: &'a str,
        raft: &'a str,
        admin: String,
    }
    let text = serde_json::to_vec_pretty(&Addresses {
        api: &addresses.api,
        zone: &addresses.zone,
        raft: &addresses.raft,
        admin: admin.to_string(),
    })?;
    let path = data_dir.join("addresses.json");
    files::write_atomic(&path, &text, 0o644).with_context(|| path.display().to_string())
}

/// The port for zones and joining nodes. Whoever joins has no certificate yet; what needs one checks it.
pub(crate) async fn serve_zones(
    app: App,
    listener: TcpListener,
    identity: LocalIdentity,
    trust: Arc<TrustDomains>,
) {
    let accept = Arc::new(|id: &mesh_proto::spiffe::SpiffeId| {
        if id.as_zone().is_some() || id.as_global_node().is_some() {
            Ok(())
        } else {
            Err("neither a zone nor a node".to_owned())
        }
    });
    let verifier = SpiffeVerifier::new(trust, accept).or_anonymous();
    let tls = tls::server_config(identity, Some(Arc::new(verifier)), transport::GRPC_ALPN);
    let stop = app.stop.clone();
    let zone_sync = ZoneSyncServer::new(ZoneSync::new(app.clone()))
        .max_decoding_message_size(ZONE_MESSAGE_BYTES_MAX);
    let serving = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(64)
        .add_service(JoinServer::new(Join::new(app)))
        .add_service(zone_sync)
        .serve_with_incoming_shutdown(
            transport::incoming(listener, Arc::new(tls)),
            stop.clone().cancelled_owned(),
        );
    let cut = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serving => {
            if let Err(error) = served {
                tracing::error!(%error, "the zone port is not served any more");
            }
        }
        () = cut => tracing::warn!("zones were cut off that did not end in time"),
    }
}

/// Renews the node's own certificate after a third of its life, with the same key, without a restart.
async fn renew(
    app: App,
    mut stored: StoredIdentity,
    identity: LocalIdentity,
    directory: std::path::PathBuf,
) {
    let mut check = tokio::time::interval(RENEWAL_CHECK);
    loop {
        check.tick().await;
        let now = OffsetDateTime::now_utc();
        if !stored.chain.first().is_none_or(|leaf| is_due(leaf, now)) {
            continue;
        }
        match renewed(&app, &stored, now) {
            Ok((leaf, anchors)) => {
                stored.chain = vec![leaf];
                stored.anchors = anchors;
                let kept = stored
                    .save(&directory)
                    .and_then(|()| stored.present(&identity, &directory));
                match kept {
                    Ok(()) => tracing::info!("this node's certificate was renewed"),
                    Err(error) => tracing::error!(%error, "the renewed certificate is not kept"),
                }
            }
            Err(error) => {
                tracing::error!(%error, "this node's certificate could not be renewed; trying again");
            }
        }
    }
}

/// Whether a third of a certificate's life has gone, counted from when it was made.
fn is_due(leaf: &rustls_pki_types::CertificateDer<'_>, now: OffsetDateTime) -> bool {
    match pki::validity(leaf) {
        Ok((begin, end)) => {
            let made = begin + pki::NOT_BEFORE_SKEW;
            now >= made + (end - made) / 3
        }
        Err(_) => true,
    }
}

type Certificate = rustls_pki_types::CertificateDer<'static>;

fn renewed(
    app: &App,
    stored: &StoredIdentity,
    now: OffsetDateTime,
) -> anyhow::Result<(Certificate, Vec<Certificate>)> {
    let ca = InstallationCa::open(&app.image(), &app.sealing)?;
    let subject = ca::node_subject(app.cluster.node_id(), &app.advertise_host);
    let csr = pki::request(&stored.key)?;
    let leaf = ca.sign(&csr, &subject, now, ca::NODE_LIFETIME)?;
    Ok((leaf, ca.bundle().to_vec()))
}

/// When the first certificate ends of those known here, in Unix seconds.
fn earliest_certificate_end(app: &App) -> i64 {
    let own = [(app.cluster.node_id(), app.cluster.own_certificate_end())];
    let zones = app.streams.statuses();
    let stored = certificates::stored(&app.image());
    certificates::of_control_planes(&own, &zones)
        .chain(stored)
        .map(|life| life.ends)
        .min()
        .unwrap_or_default()
}

/// Says to the whole cluster how much of the past is kept, where this node's settings say so: every node must keep the
/// same.
async fn say_history_limits(app: App, wanted: HistoryLimits) {
    if wanted == HistoryLimits::default() {
        return;
    }
    let mut again = tokio::time::interval(Duration::from_secs(5));
    loop {
        again.tick().await;
        if app.cluster.linearize().await.is_err() {
            continue;
        }
        let image = app.image();
        let known = image.history_limits();
        let or = |wanted: u64, known: u64| if wanted == 0 { known } else { wanted };
        let limits = HistoryLimits {
            changes: or(wanted.changes, known.changes),
            bytes: or(wanted.bytes, known.bytes),
        };
        if limits == known {
            return;
        }
        let before = image.system(HISTORY_LIMITS).unwrap_or_default();
        let fact = facts::set(HISTORY_LIMITS, limits.encode_to_vec(), Some(before));
        let words = format!(
            "keep {} changes and {} bytes of history (0: as by default)",
            limits.changes, limits.bytes
        );
        match writes::write_operations(&app, &Actor::system(), vec![fact], words).await {
            Ok(_) => return,
            Err(problem) => {
                tracing::warn!(reason = %problem.body.title, "how much history is kept could not be said; trying again");
            }
        }
    }
}

/// Keeps health and metrics up to date.
async fn watch_cluster(app: App, health: Health) {
    let mut look = tokio::time::interval(Duration::from_secs(1));
    let mut look_at_certificates = tokio::time::interval(CERTIFICATES_CHECK);
    let stop: CancellationToken = app.stop.clone();
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = look_at_certificates.tick() => {
                let ends = earliest_certificate_end(&app);
                app.metrics.earliest_certificate_end(ends);
            }
            () = stop.cancelled() => return,
        }
        let status = app.cluster.status();
        health.set(
            "cluster",
            match status.leader {
                Some(_) => Ok(()),
                None => Err("no leader is known: is a majority of the nodes running?".to_owned()),
            },
        );
        app.metrics.cluster(
            app.state().revision(),
            status.term,
            app.cluster.is_leader(),
            status.members.len(),
        );
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::ca::node_subject;

    #[test]
    fn a_certificate_is_due_after_a_third_of_its_life() {
        let now = OffsetDateTime::now_utc();
        let ca = InstallationCa::generate(now).unwrap();
        let csr = pki::request(&pki::new_key().unwrap()).unwrap();
        let leaf = ca
            .sign(&csr, &node_subject(1, "localhost"), now, Duration::days(30))
            .unwrap();
        assert!(!is_due(&leaf, now + Duration::days(9)));
        assert!(is_due(&leaf, now + Duration::days(11)));
    }
}
