//! Logs: text for a terminal, JSON otherwise, at a level that changes at run time.

use std::io::{self, IsTerminal};

use tracing_subscriber::{
    EnvFilter, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// Changes the level of a running process.
#[derive(Clone)]
pub struct LevelHandle(reload::Handle<EnvFilter, Registry>);

/// Why a level is refused.
#[derive(Debug, thiserror::Error)]
#[error(
    "{level:?} is not a log level: use error, warn, info, debug, trace, or directives such as \"info,dataplane=debug\" ({reason})"
)]
pub struct InvalidLevel {
    level: String,
    reason: String,
}

impl LevelHandle {
    /// Logs from now on at `level`.
    ///
    /// # Errors
    /// Where `level` is none.
    pub fn set(&self, level: &str) -> Result<(), InvalidLevel> {
        let filter = filter(level)?;
        self.0.reload(filter).map_err(|error| InvalidLevel {
            level: level.to_owned(),
            reason: error.to_string(),
        })
    }
}

/// Begins to log on standard error at `level`.
///
/// # Errors
/// Where `level` is none, or the process logs already.
pub fn init(level: &str) -> Result<LevelHandle, InvalidLevel> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let started = if io::stderr().is_terminal() {
        registry
            .with(tracing_subscriber::fmt::layer().with_writer(io::stderr))
            .try_init()
    } else {
        registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(io::stderr),
            )
            .try_init()
    };
    started.map_err(|error| InvalidLevel {
        level: level.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(LevelHandle(handle))
}

fn filter(level: &str) -> Result<EnvFilter, InvalidLevel> {
    EnvFilter::builder()
        .parse(level)
        .map_err(|error| InvalidLevel {
            level: level.to_owned(),
            reason: error.to_string(),
        })
}
