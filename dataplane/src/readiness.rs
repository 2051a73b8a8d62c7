//! Whether the application is ready, by TCP probes of its inbounds, once a process.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use mesh_proto::discovery::{InboundReadiness, Readiness};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::config::{Inbound, Probe};

/// Probes of all inbounds that have one.
pub struct Probes {
    running: BTreeMap<Arc<str>, Running>,
    // `None`: not known yet, and not reported, so that a restart of the proxy does not make a ready application unready.
    ready: BTreeMap<Arc<str>, Option<bool>>,
    /// To the control thread. Where it is full, probes wait.
    results: mpsc::Sender<Result>,
}

/// A probe's verdict has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Result {
    /// Name of the inbound.
    pub inbound: Arc<str>,
    /// The verdict.
    pub ready: bool,
}

struct Running {
    application: SocketAddr,
    probe: Probe,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probes {
    /// None yet. Verdicts go to `results`.
    #[must_use]
    pub fn new(results: mpsc::Sender<Result>) -> Self {
        Self {
            running: BTreeMap::new(),
            ready: BTreeMap::new(),
            results,
        }
    }

    /// Probes exactly `inbounds`; probes that have not changed go on.
    pub fn set(&mut self, inbounds: &[Arc<Inbound>]) {
        let named = |name: &Arc<str>| inbounds.iter().find(|inbound| inbound.name == *name);
        self.running.retain(|name, running| {
            named(name).is_some_and(|inbound| {
                inbound.probe == Some(running.probe) && inbound.application == running.application
            })
        });
        self.ready.retain(|name, _| named(name).is_some());
        for inbound in inbounds {
            let Some(probe) = inbound.probe else {
                self.ready.insert(inbound.name.clone(), Some(true));
                continue;
            };
            if self.running.contains_key(&inbound.name) {
                continue;
            }
            self.ready.entry(inbound.name.clone()).or_insert(None);
            let (name, application) = (inbound.name.clone(), inbound.application);
            let task = tokio::spawn(run(name, application, probe, self.results.clone()));
            let running = Running {
                application,
                probe,
                task,
            };
            self.running.insert(inbound.name.clone(), running);
        }
    }

    /// Takes a verdict. `true`: the zone should hear of it.
    pub fn take(&mut self, result: &Result) -> bool {
        match self.ready.get_mut(&result.inbound) {
            Some(ready) if *ready != Some(result.ready) => {
                *ready = Some(result.ready);
                true
            }
            _ => false,
        }
    }

    /// What the zone is told.
    #[must_use]
    pub fn report(&self) -> Readiness {
        let known = self.ready.iter();
        Readiness {
            inbounds: known
                .filter_map(|(name, ready)| {
                    Some(InboundReadiness {
                        name: name.to_string(),
                        ready: (*ready)?,
                    })
                })
                .collect(),
        }
    }
}

/// Verdicts from single attempts: so many in a row that differ change it. The first attempt decides by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    ready: Option<bool>,
    against: u32,
}

impl Verdict {
    fn attempt(&mut self, probe: &Probe, succeeded: bool) -> Option<bool> {
        let threshold = match self.ready {
            None => 1,
            Some(ready) if ready == succeeded => {
                self.against = 0;
                return None;
            }
            Some(true) => probe.unhealthy_threshold,
            Some(false) => probe.healthy_threshold,
        };
        self.against += 1;
        if self.against < threshold {
            return None;
        }
        self.against = 0;
        self.ready = Some(succeeded);
        self.ready
    }
}

async fn run(
    inbound: Arc<str>,
    application: SocketAddr,
    probe: Probe,
    results: mpsc::Sender<Result>,
) {
    let mut verdict = Verdict {
        ready: None,
        against: 0,
    };
    loop {
        let attempt = timeout(probe.timeout, TcpStream::connect(application)).await;
        let succeeded = matches!(attempt, Ok(Ok(_)));
        if let Some(ready) = verdict.attempt(&probe, succeeded) {
            tracing::info!(inbound = &*inbound, %application, ready, "readiness of the application");
            let result = Result {
                inbound: inbound.clone(),
                ready,
            };
            if results.send(result).await.is_err() {
                return;
            }
        }
        // An application that is starting is found soon.
        let soon = Duration::from_millis(250);
        let starting = verdict.ready == Some(false);
        sleep(if starting {
            probe.interval.min(soon)
        } else {
            probe.interval
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_changes_after_so_many_attempts_in_a_row() {
        let probe = Probe {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        };
        let mut verdict = Verdict {
            ready: None,
            against: 0,
        };
        let attempts = [true, false, false, true, false, false, false, true, true];
        let verdicts = attempts.map(|succeeded| verdict.attempt(&probe, succeeded));
        assert_eq!(
            verdicts,
            [
                Some(true),
                None,
                None,
                None,
                None,
                None,
                Some(false),
                None,
                Some(true)
            ]
        );
    }
}
