//! How much is done at once. Whoever comes above a limit is told when to come back.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;

/// Most bytes of a request's body.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Requests answered at once.
const REQUESTS_MAX: usize = 512;
/// Requests of one token answered at once, so that one client can not take the place of all others.
const REQUESTS_OF_ONE_MAX: usize = 64;
/// Watches served at once.
const WATCHES_MAX: usize = 512;
/// Watches of one token served at once.
const WATCHES_OF_ONE_MAX: usize = 64;

/// The limits in force.
#[derive(Debug, Clone)]
pub struct Limits {
    requests: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    by_actor: Counts,
    watches_by_actor: Counts,
}

type Counts = Arc<Mutex<HashMap<String, usize>>>;

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            watches: Arc::new(Semaphore::new(WATCHES_MAX)),
            by_actor: Arc::default(),
            watches_by_actor: Arc::default(),
        }
    }
}

impl Limits {
    /// A place for a request.
    ///
    /// # Errors
    /// Where there is none.
    pub fn request(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.requests.clone().try_acquire_owned().map_err(|_| {
            Problem::unavailable("this node answers as many requests as it can; try again")
        })
    }

    /// A place for a watch of `actor`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn watch(&self, actor: &str) -> Result<WatchPermit, Problem> {
        let place = self.watches.clone().try_acquire_owned().map_err(|_| {
            Problem::unavailable("this node serves as many watches as it can; ask another one")
                .retry_after(10)
        })?;
        let own = take(&self.watches_by_actor, actor, WATCHES_OF_ONE_MAX, "watches")?;
        Ok(WatchPermit {
            _place: place,
            _own: own,
        })
    }

    /// A place for a request of `actor`.
    ///
    /// # Errors
    /// Where it has as many as one may.
    pub fn actor(&self, actor: &str) -> Result<ActorPermit, Problem> {
        take(&self.by_actor, actor, REQUESTS_OF_ONE_MAX, "requests")
    }
}

fn take(counts: &Counts, actor: &str, limit: usize, what: &str) -> Result<ActorPermit, Problem> {
    let mut locked = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let count = locked.entry(actor.to_owned()).or_default();
    if *count >= limit {
        return Err(Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many-requests",
            format!("{actor} has {limit} {what} under way; wait for some to end"),
        )
        .retry_after(1));
    }
    *count += 1;
    Ok(ActorPermit {
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

    #[test]
    fn one_client_can_not_take_the_place_of_all_others() {
        let limits = Limits::default();
        let mut permits: Vec<_> = (0..REQUESTS_OF_ONE_MAX)
            .map(|_| limits.actor("token/a").unwrap())
            .collect();
        let refused = limits.actor("token/a").unwrap_err();
        assert_eq!(refused.body.status, 429);
        assert!(refused.retry_after_seconds.is_some());
        limits.actor("token/b").unwrap();
        permits.pop();
        limits.actor("token/a").unwrap();
    }

    #[test]
    fn a_full_node_says_when_to_come_back() {
        let limits = Limits::default();
        let _permits: Vec<_> = (0..REQUESTS_MAX)
            .map(|_| limits.request().unwrap())
            .collect();
        let refused = limits.request().unwrap_err();
        assert_eq!(refused.body.status, 503);
        assert!(refused.retry_after_seconds.is_some());
    }
}
