//! Tortures the store of the global control plane, from outside: a driver process (`global-cp/examples/store-driver.rs`)
//! does what it is told, and whatever it has acknowledged must be there after it was killed, after the power was gone,
//! and after its files were damaged, or it must say which file is damaged.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`model`] | what must be there, kept from what was told and what was acknowledged |
//! | [`driver`] | the process |
//! | [`session`] | random orders to the process, as Raft could give them |
//! | [`trace`] | what a run did to its files, as strace saw it |
//! | [`power`] | the files as they may be after the power was gone |
//! | [`random`] | repeatable randomness |
//!
//! Each test has a short form, and a long one by environment variable:
//!
//! | variable | what |
//! | --- | --- |
//! | `ISTHMUS_TEST_TORTURE_CYCLES` | kills, for example 1000 |
//! | `ISTHMUS_TEST_POWER_CUTS` | moments at which the power goes, for example 1000 |
//! | `ISTHMUS_TEST_OVERWRITES` | overwrites of 1,000 keys, for example 10000000 |
//! | `ISTHMUS_TEST_FLIPS` | bytes flipped in each file, for example 100 |
//! | `ISTHMUS_TEST_BURST_MB` | megabytes of log in a burst, for example 5000 |
//! | `ISTHMUS_TEST_SEED` | another sequence of random choices |

pub mod driver;
pub mod model;
pub mod power;
pub mod random;
pub mod session;
pub mod trace;

/// What an environment variable says, or the short form.
#[must_use]
pub fn asked(variable: &str, short: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(short)
}
