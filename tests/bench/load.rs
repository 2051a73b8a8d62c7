//! Load from one thread: as much as the other side takes, or at a rate that does not care how the other side fares.
//!
//! What is said on a connection is [`talk`]'s. Every exchange is timed, so percentiles are of all of them. At a rate, the time
//! of an exchange begins when it was due and not when it could be sent: a stall is felt by everything that was due
//! meanwhile ("coordinated omission" does not hide it).

mod talk;
mod ticker;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{runtime::Runtime, sync::Semaphore, task::JoinSet};

pub(crate) use self::talk::{GRPC_SERVICE, Talk};
use self::{talk::Conversation, ticker::Ticker};

/// How long an exchange may take beyond the end of a measurement.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many connections, and how many exchanges at once on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub connections: usize,
    pub streams: usize,
}

impl Shape {
    pub(crate) const ONE: Self = Self::of(1);

    /// One exchange at a time on each connection.
    pub(crate) const fn of(connections: usize) -> Self {
        Self {
            connections,
            streams: 1,
        }
    }
}

/// Open connections on which each kind of exchange has been had once.
#[derive(Debug)]
pub(crate) struct Load {
    runtime: Runtime,
    conversations: Vec<Conversation>,
}

/// What a measurement saw.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// From the first exchange to the end of the last.
    pub time: Duration,
    /// Of each exchange, sorted.
    latencies: Vec<Duration>,
}

impl Outcome {
    fn new(time: Duration, mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        Self { time, latencies }
    }

    /// Exchanges that were had.
    pub(crate) fn count(&self) -> f64 {
        self.latencies.len() as f64
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.count() / self.time.as_secs_f64()
    }

    /// The time that no more than `1 - quantile` of all exchanges exceeded.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (quantile * self.latencies.len() as f64).ceil() as usize;
        let latency = self.latencies.get(at.saturating_sub(1).min(last));
        latency.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1000.0)
    }
}

impl Load {
    /// Connects, and has one exchange on each connection.
    pub(crate) fn open(talk: Talk, entry: SocketAddr, shape: Shape) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let conversations = runtime.block_on(async {
            let mut conversations = Vec::new();
            for _ in 0..shape.connections {
                conversations.extend(Conversation::open(talk, entry, shape.streams).await?);
            }
            for conversation in &mut conversations {
                tokio::time::timeout(PATIENCE, conversation.exchange())
                    .await
                    .context("no answer")??;
            }
            anyhow::Ok(conversations)
        })?;
        Ok(Self {
            runtime,
            conversations,
        })
    }

    /// One exchange after the other in each conversation.
    pub(crate) fn saturate(&mut self, time: Duration) -> anyhow::Result<Outcome> {
        let conversations = std::mem::take(&mut self.conversations);
        let (conversations, outcome) = self.runtime.block_on(async {
            let begun = Instant::now();
            let mut all = JoinSet::new();
            for mut conversation in conversations {
                all.spawn(async move {
                    let mut latencies = Vec::new();
                    let mut sent = Instant::now();
                    loop {
                        conversation.exchange().await?;
                        let now = Instant::now();
                        latencies.push(now - sent);
                        if now - begun >= time {
                            return Ok((conversation, latencies));
                        }
                        sent = now;
                    }
                });
            }
            collect(all, begun, time).await
        })?;
        self.conversations = conversations;
        Ok(outcome)
    }

    /// `rate` exchanges a second, each in a conversation that is free, or as soon as one is.
    pub(crate) fn at_rate(&mut self, rate: f64, time: Duration) -> anyhow::Result<Outcome> {
        let conversations = std::mem::take(&mut self.conversations);
        let (conversations, outcome) = self.runtime.block_on(async {
            let queue = Arc::new(Queue::new());
            let mut all = JoinSet::new();
            for mut conversation in conversations {
                let queue = queue.clone();
                all.spawn(async move {
                    let mut latencies = Vec::new();
                    while let Some(due) = queue.next().await {
                        conversation.exchange().await?;
                        latencies.push(due.elapsed());
                    }
                    anyhow::Ok((conversation, latencies))
                });
            }
            let interval = Duration::from_secs_f64(1.0 / rate);
            let mut ticker = Ticker::every(interval)?;
            let begun = Instant::now();
            let mut due = begun;
            while due < begun + time {
                ticker.tick().await?;
                while due <= Instant::now().min(begun + time) {
                    queue.push(due);
                    due += interval;
                }
            }
            // What is late by now was never sent; it has waited this long at least.
            let late = queue.close();
            let (conversations, outcome) = collect(all, begun, time).await?;
            let end = Instant::now();
            let mut latencies = outcome.latencies;
            latencies.extend(late.into_iter().map(|due| end - due));
            anyhow::Ok((conversations, Outcome::new(outcome.time, latencies)))
        })?;
        self.conversations = conversations;
        Ok(outcome)
    }
}

/// Waits for the ends of all conversations.
async fn collect(
    mut all: JoinSet<anyhow::Result<(Conversation, Vec<Duration>)>>,
    begun: Instant,
    time: Duration,
) -> anyhow::Result<(Vec<Conversation>, Outcome)> {
    let (mut conversations, mut latencies) = (Vec::new(), Vec::new());
    let gather = async {
        while let Some(ended) = all.join_next().await {
            let (conversation, seen) = ended??;
            conversations.push(conversation);
            latencies.extend(seen);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(time + PATIENCE, gather)
        .await
        .context("an exchange does not end")??;
    Ok((conversations, Outcome::new(begun.elapsed(), latencies)))
}

/// Exchanges that are due. As long as the other side is too slow it grows, by the rate and for the time of one measurement.
#[derive(Debug)]
struct Queue {
    due: Mutex<VecDeque<Instant>>,
    waiting: Semaphore,
}

impl Queue {
    fn new() -> Self {
        Self {
            due: Mutex::default(),
            waiting: Semaphore::new(0),
        }
    }

    fn due(&self) -> std::sync::MutexGuard<'_, VecDeque<Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, due: Instant) {
        self.due().push_back(due);
        self.waiting.add_permits(1);
    }

    /// Until something is due, or nothing will be any more.
    async fn next(&self) -> Option<Instant> {
        self.waiting.acquire().await.ok()?.forget();
        self.due().pop_front()
    }

    /// Nothing is due any more; what is left.
    fn close(&self) -> VecDeque<Instant> {
        self.waiting.close();
        std::mem::take(&mut self.due())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        thread,
    };

    use super::*;
    use crate::application::PAGE;

    #[test]
    fn a_stall_is_felt_by_everything_that_was_due_meanwhile() {
        const STALL: Duration = Duration::from_millis(300);
        const TIME: Duration = Duration::from_millis(200);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let entry = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let page = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {PAGE}\r\n\r\n{}",
                "x".repeat(PAGE)
            );
            // The second answer is late, the first and all others are not.
            for number in 0.. {
                if stream.read(&mut [0; 1024]).unwrap_or(0) == 0 {
                    return;
                }
                if number == 1 {
                    thread::sleep(STALL);
                }
                let _ = stream.write_all(page.as_bytes());
            }
        });
        let mut load = Load::open(Talk::Http1, entry, Shape::ONE).unwrap();
        let outcome = load.at_rate(1000.0, TIME).unwrap();
        // A client that waits for each answer would have seen one late exchange, and nothing of the other 200.
        assert!((199.0..=201.0).contains(&outcome.count()), "{outcome:?}");
        let least = outcome.quantile_ms(0.0);
        assert!(
            least >= (STALL - TIME).as_secs_f64() * 1000.0,
            "{outcome:?}"
        );
    }

    #[test]
    fn a_quantile_is_an_exchange_that_was_had() {
        let all = (1..=1000).rev().map(Duration::from_millis).collect();
        let outcome = Outcome::new(Duration::from_secs(1), all);
        assert_eq!(outcome.quantile_ms(0.5), 500.0);
        assert_eq!(outcome.quantile_ms(0.999), 999.0);
        assert_eq!(outcome.quantile_ms(1.0), 1000.0);
        assert_eq!(outcome.per_second(), 1000.0);
    }
}
