//! How long to wait before calling again.

use std::time::Duration;

/// Doubling waits with jitter, so that many callers who lost the same server do not come back at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits from about `first` to about `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// The next wait: `first` doubled for each failure since [`Self::reset`], up to `longest`, times 0.5 to 1.
    ///
    /// `random` is any evenly distributed number; see [`random`].
    pub fn next_wait(&mut self, random: u64) -> Duration {
        let full = self
            .first
            .saturating_mul(2u32.saturating_pow(self.failures.min(20)))
            .min(self.longest);
        self.failures += 1;
        #[allow(clippy::cast_precision_loss)]
        let share = 0.5 + (random as f64 / u64::MAX as f64) / 2.0;
        full.mul_f64(share)
    }

    /// The call succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// An evenly distributed number from the system.
#[must_use]
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness the wait has no jitter, which is harmless.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..6)
            .map(|_| backoff.next_wait(u64::MAX).as_millis())
            .collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next_wait(0), Duration::from_millis(50));
    }
}
