//! The whole life of the process: settings → state → workers → control → ready → wait → drain.

use std::{
    sync::{Arc, Mutex, atomic::AtomicUsize},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use mesh_runtime::{admin::Health, logging::LevelHandle};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Admin},
    control::{self, Control, Event, Given, Own},
    discovery::Client,
    handover,
    metrics::{ControlMetrics, Metrics},
    settings::Settings,
    snapshot::Snapshot,
    state::State,
    workers::{self, Shared},
};

/// How long the zone gets to take this proxy out of all endpoint sets, and the others to hear of it.
const LEAVING: Duration = Duration::from_secs(1);
/// Events that may wait for the control thread. Where it is full, the stream to the zone is not read further, and a
/// question of the admin socket waits.
const EVENTS: usize = 64;
/// Look-ups that may wait. Each brings all endpoints, so further ones are dropped.
const LOOKUPS: usize = 4;

/// Runs the proxy until `stop`, on the thread and runtime it is called on, which become the control thread.
///
/// # Errors
/// Where it can not start.
pub async fn run(
    settings: Settings,
    level: Option<LevelHandle>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let handed = match settings.take_over {
        true => handover::take_over(&settings.admin_socket)
            .context("the running process does not hand over")?,
        false => None,
    };
    let has_taken_over = handed.is_some();
    if let Some(handed) = &handed {
        tracing::info!(
            listeners = handed.len(),
            "taking over from the running process"
        );
    }
    let state = State::open(&settings.state_dir)?;
    let limits = workers::Limits {
        connections: connections_max(settings.limits.connections),
        ..settings.limits
    };

    // Workers.
    let (lookups, mut lookups_wanted) = mpsc::channel(LOOKUPS);
    let open = Arc::new(AtomicUsize::new(0));
    let shared = Arc::new(Shared {
        snapshot: ArcSwap::from_pointee(Snapshot::default()),
        open: open.clone(),
        limits,
        lookups,
        taps: Arc::default(),
    });
    let workers = (0..settings.workers)
        .map(|index| workers::spawn(index, shared.clone()))
        .collect::<Result<Vec<_>, _>>()
        .context("a worker thread could not be started")?;
    let workers = Arc::new(workers);

    // Metrics and health.
    let metrics = Arc::new(Metrics {
        zone: ArcSwap::default(),
        workers: workers.iter().map(|worker| worker.series.clone()).collect(),
        control: Arc::new(ControlMetrics::default()),
        open,
    });
    let mut registry = Registry::default();
    registry.register_collector(Box::new(metrics.clone()));
    let registry = Arc::new(Mutex::new(registry));
    let health = Health::new();

    // Admin.
    let (events, mut events_wanted) = mpsc::channel(EVENTS);
    let socket = admin::listen(&settings.admin_socket)
        .with_context(|| format!("admin socket {}", settings.admin_socket.display()))?;
    let operator = Admin {
        events: events.clone(),
        workers: workers.clone(),
        level,
        stop: stop.clone(),
    };
    let ended = CancellationToken::new();
    let serving = admin::serve(
        socket,
        operator,
        health.clone(),
        registry.clone(),
        ended.clone(),
    );
    let mut serving = vec![tokio::spawn(serving)];
    let handover_path = handover::socket_path(&settings.admin_socket);
    let successors = admin::listen(&handover_path)
        .with_context(|| format!("handover socket {}", handover_path.display()))?;
    if let Some(address) = settings.metrics_address {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("metrics address {address}"))?;
        tracing::info!(address = %listener.local_addr()?, "metrics");
        let metrics = mesh_runtime::admin::serve(listener, health.clone(), registry, ended.clone());
        serving.push(tokio::spawn(metrics));
    }

    // Control, from what is on disk; then the zone.
    let look_up = Arc::new(Notify::new());
    let (probe_results, mut probes_wanted) = mpsc::channel(EVENTS);
    let anchors = state.anchors();
    let own = Own {
        role: settings.role,
        resource: settings.resource.clone(),
        session: uuid::Uuid::new_v4().to_string(),
        session_number: state.next_session(unix_now()),
    };
    let mut control = Control::start(Given {
        own,
        shared,
        workers: workers.clone(),
        state,
        metrics: metrics.clone(),
        health: health.clone(),
        look_up: look_up.clone(),
        probe_results,
        handed: handed.unwrap_or_default(),
    });
    let (zone_events, mut zone_wanted) = mpsc::channel(EVENTS);
    let client = Client {
        addresses: settings.zone_cp.clone(),
        token: settings.token.clone(),
        anchors,
        metrics: metrics.clone(),
        look_up,
        events: zone_events,
    };
    let client = tokio::spawn(client.run());

    let mut ticks = interval(control::TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = async || {
        tokio::select! {
            Some(event) = zone_wanted.recv() => Event::Zone(event),
            Some(event) = events_wanted.recv() => event,
            Some(result) = probes_wanted.recv() => Event::Readiness(result),
            Some(key) = lookups_wanted.recv() => Event::LookUp(key),
            _ = ticks.tick() => Event::Tick,
        }
    };

    let mut told_ready = false;
    let successor = loop {
        if !told_ready && health.not_ready().is_empty() {
            told_ready = true;
            tracing::info!("ready");
            control.disinherit();
            if has_taken_over {
                mesh_runtime::notify_taken_over();
            } else {
                mesh_runtime::notify_ready();
            }
        }
        let event = tokio::select! {
            event = next() => event,
            Ok((successor, _)) = successors.accept() => break Some(successor),
            () = stop.cancelled() => break None,
        };
        control.handle(event);
    };
    if let Some(successor) = successor {
        // The zone hears nothing: the workload stays.
        client.abort();
        ended.cancel();
        for serving in serving {
            let _ = serving.await;
        }
        for path in [&settings.admin_socket, &handover_path] {
            let _ = std::fs::remove_file(path);
        }
        drop(successors);
        tracing::info!("a successor takes over");
        let handed = successor
            .into_std()
            .and_then(|successor| control.hand_over(successor));
        if let Err(error) = handed {
            tracing::error!(%error, "the successor has gone before it had everything");
        }
        let limit = Instant::now() + settings.drain_timeout;
        while control.open() > 0 && Instant::now() < limit {
            sleep(Duration::from_millis(20)).await;
        }
        control.stop_all();
        tracing::info!("stopped");
        return Ok(());
    }

    // Drain: leave, let others hear of it, take nothing new from outside, let open connections end. The application's
    // own connections go on being taken while it ends.
    let limit = Instant::now() + settings.drain_timeout;
    tracing::info!(
        seconds = settings.drain_timeout.as_secs(),
        open = control.open(),
        "draining"
    );
    if control.announce_leaving() {
        let heard = sleep(LEAVING.min(settings.drain_timeout));
        tokio::pin!(heard);
        loop {
            tokio::select! {
                event = next() => control.handle(event),
                () = &mut heard => break,
            }
        }
    }
    control.stop_inbound();
    while control.open() > 0 {
        tokio::select! {
            event = next() => control.handle(event),
            () = sleep(Duration::from_millis(20)) => {}
            () = sleep_until(limit) => {
                tracing::warn!(open = control.open(), "the drain time is over; open connections are ended");
                break;
            }
        }
    }
    control.stop_all();
    control.keep();
    let grace = Instant::now() + Duration::from_secs(1);
    while control.open() > 0 && Instant::now() < grace {
        sleep(Duration::from_millis(5)).await;
    }
    ended.cancel();
    for path in [&settings.admin_socket, &handover_path] {
        let _ = std::fs::remove_file(path);
    }
    tracing::info!("stopped");
    Ok(())
}

/// Each connection takes two descriptors, and some are needed for the rest. The soft limit is raised as far as it may.
fn connections_max(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const OTHERS: u64 = 128;
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let Some(current) = current else {
        return wanted;
    };
    let room = usize::try_from(current.saturating_sub(OTHERS) / 2)
        .unwrap_or(usize::MAX)
        .max(1);
    if room < wanted && wanted == workers::Limits::default().connections {
        tracing::debug!(
            descriptors = current,
            connections = room,
            "fewer connections than by default"
        );
    } else if room < wanted {
        tracing::warn!(
            descriptors = current,
            connections = room,
            "fewer connections than set: raise LimitNOFILE"
        );
    }
    wanted.min(room)
}

pub(crate) fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
