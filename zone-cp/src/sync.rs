//! The client of global: one stream, made again whenever it ends, however it ends.
//!
//! This task connects, keeps the stream alive and hands messages to the zone's loop, which alone knows resources. A
//! stream is dropped when two heartbeats stay away, and a clean end is as good a reason to call again as an error
//! (FIELD a1). Each attempt goes to the next address and resolves it anew (FIELD a11).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_proto::zone::{
    GlobalHello, Heartbeat, ToGlobal, ToZone, ZoneHello, to_global, to_zone,
    zone_sync_client::ZoneSyncClient,
};
use mesh_runtime::{
    backoff::{self, Backoff},
    transport,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::{event::Event, identity::ZoneIdentity};

/// The longest wait between attempts, so that a zone is back within ten seconds of its parent.
const WAIT_MAX: Duration = Duration::from_secs(3);
/// How long global may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Heartbeats where global does not say how often.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(3);
/// Messages to global that may wait. When global reads that slowly, the stream is dropped and made again.
const QUEUE: usize = 1024;
/// The longest message from global.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// What the task tells the loop.
pub enum SyncEvent {
    /// A stream is about to begin: the loop says what the zone has.
    Connecting(oneshot::Sender<ZoneHello>),
    /// Global has greeted. Answers go to the link.
    Connected(GlobalHello, Link),
    /// Global says something.
    Message(Box<to_zone::Message>),
    /// The stream has ended, or was not reached.
    Ended {
        /// The address that was called.
        address: String,
        /// Why.
        reason: String,
    },
}

/// Sends to global on one stream.
#[derive(Debug, Clone)]
pub struct Link {
    queue: mpsc::Sender<ToGlobal>,
    drop: CancellationToken,
}

impl Link {
    /// Queues a message. Where global does not read, the stream is dropped, and false is returned.
    pub fn send(&self, message: to_global::Message) -> bool {
        let message = ToGlobal {
            message: Some(message),
        };
        if self.queue.try_send(message).is_ok() {
            return true;
        }
        self.drop.cancel();
        false
    }

    /// Drops the stream, so that the next one asks anew.
    pub fn reconnect(&self) {
        self.drop.cancel();
    }
}

/// Addresses of global nodes; clones share them. Global says which there are, each time it greets.
#[derive(Debug, Clone, Default)]
pub struct Addresses(Arc<Mutex<Vec<String>>>);

impl Addresses {
    /// Begins with these.
    #[must_use]
    pub fn new(addresses: Vec<String>) -> Self {
        Self(Arc::new(Mutex::new(addresses)))
    }

    /// All that are known.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What global said. Those it no longer names come last rather than going: it may be mistaken about how it is
    /// reached from here.
    pub fn learn(&self, said: &[String]) {
        if said.is_empty() {
            return;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next: Vec<String> = said.to_vec();
        next.extend(known.iter().filter(|a| !said.contains(a)).cloned());
        next.truncate(16);
        *known = next;
    }
}

/// What the task needs.
pub struct Sync {
    /// The zone's identity.
    pub identity: ZoneIdentity,
    /// Global's addresses.
    pub addresses: Addresses,
    /// The zone's loop.
    pub events: mpsc::Sender<Event>,
    /// The newest revision the zone has applied.
    pub revision: watch::Receiver<u64>,
}

/// How one stream went.
struct Ending {
    reason: String,
    /// Global had greeted.
    served: bool,
    /// Addresses that global sent the zone to.
    go_to: Vec<String>,
}

impl Ending {
    fn unreached(reason: impl ToString) -> Self {
        Self {
            reason: reason.to_string(),
            served: false,
            go_to: Vec::new(),
        }
    }
}

impl Sync {
    /// Keeps a stream to global until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), WAIT_MAX);
        let mut attempt = 0;
        let mut preferred: Vec<String> = Vec::new();
        loop {
            let known = self.addresses.all();
            let address = match preferred.pop() {
                Some(address) => address,
                None if known.is_empty() => String::new(),
                None => known[attempt % known.len()].clone(),
            };
            attempt += 1;
            let ending = tokio::select! {
                ending = self.serve(&address) => ending,
                () = stop.cancelled() => return,
            };
            if ending.served {
                backoff.reset();
            }
            preferred = ending.go_to;
            preferred.reverse();
            let ended = SyncEvent::Ended {
                address,
                reason: ending.reason,
            };
            if self.events.send(Event::Sync(ended)).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_wait(backoff::random())) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One stream, from connecting to its end.
    async fn serve(&self, address: &str) -> Ending {
        if address.is_empty() {
            return Ending::unreached(
                "no address of global is known: join the zone again, or give --global",
            );
        }
        let tls = match self.identity.client_config() {
            Ok(tls) => tls,
            Err(error) => return Ending::unreached(error),
        };
        let channel = match transport::channel(address, tls).await {
            Ok(channel) => channel,
            Err(error) => return Ending::unreached(error),
        };
        let (ask, answer) = oneshot::channel();
        if self
            .events
            .send(Event::Sync(SyncEvent::Connecting(ask)))
            .await
            .is_err()
        {
            return Ending::unreached("stopping");
        }
        let Ok(hello) = answer.await else {
            return Ending::unreached("stopping");
        };
        let (queue, receiver) = mpsc::channel(QUEUE);
        let link = Link {
            queue,
            drop: CancellationToken::new(),
        };
        link.send(to_global::Message::Hello(hello));
        let mut client = ZoneSyncClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let greeted = tokio::time::timeout(GREETING_TIMEOUT, async {
            let mut inbound = client
                .sync(ReceiverStream::new(receiver))
                .await?
                .into_inner();
            let first = inbound.message().await?;
            Ok::<_, tonic::Status>((inbound, first))
        })
        .await;
        let (inbound, hello) = match greeted {
            Err(_) => return Ending::unreached("global did not greet within 10 s"),
            Ok(Err(status)) => return Ending::unreached(refusal(&status)),
            Ok(Ok((
                inbound,
                Some(ToZone {
                    message: Some(to_zone::Message::Hello(hello)),
                }),
            ))) => (inbound, hello),
            Ok(Ok((
                _,
                Some(ToZone {
                    message: Some(to_zone::Message::GoAway(away)),
                }),
            ))) => {
                return Ending {
                    go_to: away.addresses,
                    ..Ending::unreached(format!("global sends the zone away: {}", away.reason))
                };
            }
            Ok(Ok(_)) => return Ending::unreached("global's first message is not hello"),
        };
        self.addresses.learn(&hello.global_addresses);
        let heartbeat = match hello.heartbeat_interval_ms {
            0 => DEFAULT_HEARTBEAT,
            ms => Duration::from_millis(ms.into()),
        };
        let connected = SyncEvent::Connected(hello, link.clone());
        if self.events.send(Event::Sync(connected)).await.is_err() {
            return Ending::unreached("stopping");
        }
        self.listen(inbound, link, heartbeat).await
    }

    async fn listen(
        &self,
        mut inbound: Streaming<ToZone>,
        link: Link,
        heartbeat: Duration,
    ) -> Ending {
        let served = |reason: String| Ending {
            served: true,
            ..Ending::unreached(reason)
        };
        let mut heard = Instant::now();
        let mut number = 0;
        let mut beat = tokio::time::interval(heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let message = match message {
                        Ok(Some(message)) => message.message,
                        Ok(None) => return served("global ended the stream".to_owned()),
                        Err(status) => return served(refusal(&status)),
                    };
                    match message {
                        // A message of a newer global that this version does not know is no reason to stop.
                        None => {}
                        Some(to_zone::Message::GoAway(away)) => {
                            return Ending {
                                go_to: away.addresses,
                                ..served(format!("global sends the zone away: {}", away.reason))
                            };
                        }
                        Some(message) => {
                            let event = Event::Sync(SyncEvent::Message(Box::new(message)));
                            if self.events.send(event).await.is_err() {
                                return served("stopping".to_owned());
                            }
                        }
                    }
                    heard = Instant::now();
                }
                _ = beat.tick() => {
                    number += 1;
                    let revision = *self.revision.borrow();
                    link.send(to_global::Message::Heartbeat(Heartbeat { number, revision }));
                }
                () = tokio::time::sleep_until(heard + heartbeat * 2) => {
                    return served("nothing was heard of global for two heartbeats".to_owned());
                }
                () = link.drop.cancelled() => {
                    return served("this zone dropped the stream to begin anew".to_owned());
                }
            }
        }
    }
}

fn refusal(status: &tonic::Status) -> String {
    format!("{}: {}", status.code(), status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_global_names_come_first_and_old_ones_are_kept() {
        let addresses = Addresses::new(vec!["a:1".into(), "b:1".into()]);
        addresses.learn(&["c:1".into(), "b:1".into()]);
        assert_eq!(addresses.all(), ["c:1", "b:1", "a:1"]);
        addresses.learn(&[]);
        assert_eq!(addresses.all().len(), 3);
    }
}
