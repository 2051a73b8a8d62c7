//! How much is done at once, and how often. Whoever comes above a limit is told when to come back.
//!
//! One client can not take the place of all others: whatever is bounded in all is bounded for one token too. What is
//! said in the settings holds for one node; a client of several nodes has as much at each.

use std::{
    collections::HashMap,
    num::{NonZeroU32, NonZeroUsize},
    sync::{Arc, Mutex, PoisonError},
};

use axum::http::StatusCode;
use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;
use crate::metrics::Metrics;

/// Tokens whose rates are remembered before those that were quiet are forgotten.
const RATES_KEPT: usize = 1024;

/// The bounds, as the settings say them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most bytes of a request's body.
    pub body_bytes: NonZeroUsize,
    /// Requests answered at once.
    pub requests: NonZeroUsize,
    /// Requests of one token answered at once.
    pub requests_of_one: NonZeroUsize,
    /// Requests of one token in a second; twice as many may come at once after a pause.
    pub rate_of_one: NonZeroU32,
    /// Watches served at once.
    pub watches: NonZeroUsize,
    /// Watches of one token served at once.
    pub watches_of_one: NonZeroUsize,
}

impl Default for Bounds {
    fn default() -> Self {
        const fn size(number: usize) -> NonZeroUsize {
            NonZeroUsize::new(number).unwrap()
        }
        Self {
            body_bytes: size(8 << 20),
            requests: size(512),
            requests_of_one: size(64),
            rate_of_one: const { NonZeroU32::new(2000).unwrap() },
            watches: size(512),
            watches_of_one: size(64),
        }
    }
}

/// The limits in force.
#[derive(Debug, Clone)]
pub struct Limits {
    bounds: Bounds,
    metrics: Metrics,
    requests: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    by_actor: Counts,
    watches_by_actor: Counts,
    rates: Arc<DefaultKeyedRateLimiter<String>>,
    /// One at a time of each actor.
    heavy: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

type Counts = Arc<Mutex<HashMap<String, usize>>>;

impl Limits {
    /// Limits that keep to `bounds` and count refusals in `metrics`.
    #[must_use]
    pub fn new(bounds: Bounds, metrics: Metrics) -> Self {
        let burst = bounds
            .rate_of_one
            .saturating_mul(const { NonZeroU32::new(2).unwrap() });
        let quota = Quota::per_second(bounds.rate_of_one).allow_burst(burst);
        Self {
            bounds,
            metrics,
            requests: Arc::new(Semaphore::new(bounds.requests.get())),
            watches: Arc::new(Semaphore::new(bounds.watches.get())),
            by_actor: Arc::default(),
            watches_by_actor: Arc::default(),
            rates: Arc::new(RateLimiter::keyed(quota)),
            heavy: Arc::default(),
        }
    }

    /// The bounds it keeps to.
    #[must_use]
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// A place for a request.
    ///
    /// # Errors
    /// Where there is none.
    pub fn request(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.requests.clone().try_acquire_owned().map_err(|_| {
            self.metrics.limited("requests");
            Problem::unavailable("this node answers as many requests as it can; try again")
        })
    }

    /// A place for a watch of `actor`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn watch(&self, actor: &str) -> Result<WatchPermit, Problem> {
        let most = self.bounds.watches_of_one.get();
        let own = take(&self.watches_by_actor, actor, most).ok_or_else(|| {
            self.metrics.limited("watches-of-token");
            too_many(format!(
                "{actor} has {most} watches under way; end some first"
            ))
        })?;
        let place = self.watches.clone().try_acquire_owned().map_err(|_| {
            self.metrics.limited("watches");
            Problem::unavailable("this node serves as many watches as it can; ask another one")
                .retry_after(10)
        })?;
        Ok(WatchPermit {
            _place: place,
            _own: own,
        })
    }

    /// A place for a request of `actor`, who has not come too often.
    ///
    /// # Errors
    /// Where it has, or has as many requests under way as one may.
    pub fn actor(&self, actor: &str) -> Result<ActorPermit, Problem> {
        if self.rates.len() > RATES_KEPT {
            self.rates.retain_recent();
        }
        self.rates.check_key(&actor.to_owned()).map_err(|until| {
            self.metrics.limited("rate-of-token");
            let wait = until.wait_time_from(DefaultClock::default().now());
            let seconds = wait.as_millis().div_ceil(1000).clamp(1, 60);
            too_many(format!(
                "{actor} sends more than {} requests a second",
                self.bounds.rate_of_one
            ))
            .retry_after(u32::try_from(seconds).unwrap_or(1))
        })?;
        let most = self.bounds.requests_of_one.get();
        take(&self.by_actor, actor, most).ok_or_else(|| {
            self.metrics.limited("requests-of-token");
            too_many(format!(
                "{actor} has {most} requests under way; wait for some to end"
            ))
        })
    }

    /// Does `work` for `actor`. What is big is done beside the threads that serve everybody, and of one client one at a
    /// time: reading a big batch keeps a processor busy, and no client may keep them all.
    ///
    /// # Errors
    /// Where the work could not be done to its end.
    pub async fn work<T: Send + 'static>(
        &self,
        actor: &str,
        is_big: bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        if !is_big {
            return Ok(work());
        }
        let _turn = self.heavy(actor).await;
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| Problem::internal(&error))
    }

    async fn heavy(&self, actor: &str) -> HeavyPermit {
        let own = {
            let mut heavy = self.heavy.lock().unwrap_or_else(PoisonError::into_inner);
            // Forgets those that nobody holds.
            heavy.retain(|_, own| Arc::strong_count(own) > 1);
            heavy.entry(actor.to_owned()).or_default().clone()
        };
        HeavyPermit(own.lock_owned().await)
    }

    /// A body was bigger than bodies may be.
    #[must_use]
    pub fn too_large(&self) -> Problem {
        self.metrics.limited("body-bytes");
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            format!("the body has more than {} bytes", self.bounds.body_bytes),
        )
        .detail("split it into several batches")
    }
}

fn too_many(title: String) -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", title).retry_after(1)
}

fn take(counts: &Counts, actor: &str, limit: usize) -> Option<ActorPermit> {
    let mut locked = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let count = locked.entry(actor.to_owned()).or_default();
    if *count >= limit {
        return None;
    }
    *count += 1;
    Some(ActorPermit {
        actor: actor.to_owned(),
        counts: counts.clone(),
    })
}

/// A place for a watch, until it is dropped.
#[derive(Debug)]
pub struct WatchPermit {
    _place: OwnedSemaphorePermit,
    _own: ActorPermit,
}

/// The turn of one actor for what takes long, until it is dropped.
#[derive(Debug)]
struct HeavyPermit(#[allow(dead_code)] OwnedMutexGuard<()>);

/// A place for a request of one actor, until it is dropped.
#[derive(Debug)]
pub struct ActorPermit {
    actor: String,
    counts: Counts,
}

impl Drop for ActorPermit {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.actor) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.actor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(change: impl FnOnce(&mut Bounds)) -> Limits {
        let mut bounds = Bounds::default();
        change(&mut bounds);
        Limits::new(bounds, Metrics::default())
    }

    fn size(number: usize) -> NonZeroUsize {
        NonZeroUsize::new(number).unwrap()
    }

    #[test]
    fn one_client_can_not_take_the_place_of_all_others() {
        let limits = limits(|bounds| bounds.requests_of_one = size(2));
        let first = limits.actor("token/a").unwrap();
        let _second = limits.actor("token/a").unwrap();
        let refused = limits.actor("token/a").unwrap_err();
        assert_eq!(refused.body.status, 429);
        assert!(refused.retry_after_seconds.is_some());
        limits.actor("token/b").unwrap();
        drop(first);
        limits.actor("token/a").unwrap();
    }

    #[test]
    fn who_comes_too_often_is_told_when_to_come_back() {
        let limits = limits(|bounds| bounds.rate_of_one = NonZeroU32::new(1).unwrap());
        // A second's worth, and another after a pause.
        limits.actor("token/a").unwrap();
        limits.actor("token/a").unwrap();
        let refused = limits.actor("token/a").unwrap_err();
        assert_eq!(refused.body.status, 429);
        assert_eq!(refused.retry_after_seconds, Some(1));
        limits.actor("token/b").unwrap();
    }

    #[test]
    fn a_full_node_says_when_to_come_back() {
        let limits = limits(|bounds| bounds.requests = size(1));
        let _permit = limits.request().unwrap();
        let refused = limits.request().unwrap_err();
        assert_eq!(refused.body.status, 503);
        assert!(refused.retry_after_seconds.is_some());
    }

    #[test]
    fn watches_are_bounded_for_one_token_and_for_all() {
        let limits = limits(|bounds| {
            bounds.watches = size(3);
            bounds.watches_of_one = size(2);
        });
        let _held = [
            limits.watch("token/a").unwrap(),
            limits.watch("token/a").unwrap(),
        ];
        assert_eq!(limits.watch("token/a").unwrap_err().body.status, 429);
        let last = limits.watch("token/b").unwrap();
        let refused = limits.watch("token/c").unwrap_err();
        assert_eq!(
            (refused.body.status, refused.retry_after_seconds),
            (503, Some(10))
        );
        drop(last);
        limits.watch("token/c").unwrap();
    }

    #[tokio::test]
    async fn what_takes_long_is_done_one_at_a_time_for_each_client() {
        let limits = limits(|_| {});
        let held = limits.heavy("token/a").await;
        let _other = limits.heavy("token/b").await;
        let mut waiting = std::pin::pin!(limits.heavy("token/a"));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(held);
        waiting.await;
    }
}
