//! Waiting for a condition, with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Long enough for anything that must happen soon, on a loaded machine.
pub const SOON: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks until `attempt` succeeds, and returns what it gave.
///
/// # Errors
/// After `deadline`, with `what` was waited for and why the last attempt failed.
pub fn eventually<T>(
    deadline: Duration,
    what: &str,
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error.context(format!(
                    "waited {} s in vain: {what}",
                    deadline.as_secs_f32()
                )));
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

/// Looks until `condition` holds.
///
/// # Errors
/// After `deadline`, with `what` was waited for.
pub fn until(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    eventually(deadline, what, || {
        anyhow::ensure!(condition(), "it does not hold");
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_holds_is_named_with_the_last_reason() {
        let error = eventually(
            Duration::from_millis(50),
            "pigs fly",
            || -> anyhow::Result<()> { anyhow::bail!("no wings") },
        )
        .unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("pigs fly") && text.contains("no wings"),
            "{text}"
        );
    }
}
