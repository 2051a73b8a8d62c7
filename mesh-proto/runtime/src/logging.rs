//! Logs: text for a terminal, JSON otherwise, at a level that changes at run time.

use std::io::{self, IsTerminal};

use tracing_subscriber::{
    Registry,
    filter::{LevelFilter, ParseError, Targets},
    layer::SubscriberExt as _,
    reload,
    util::SubscriberInitExt as _,
};

/// Changes the level of a running process.
#[derive(Clone)]
pub struct LevelHandle(reload::Handle<Targets, Registry>);

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

/// Levels by target, without conditions on the fields of spans: those would bring an engine for regular expressions into
/// every sidecar's memory.
fn filter(level: &str) -> Result<Targets, InvalidLevel> {
    let refused = |reason: String| InvalidLevel {
        level: level.to_owned(),
        reason,
    };
    let words: Vec<_> = level.split(',').map(str::trim).collect();
    // A bare word that is no level would count as a target, of which everything is logged.
    let no_level = |word: &&&str| {
        word.is_empty() || !word.contains('=') && word.parse::<LevelFilter>().is_err()
    };
    if let Some(word) = words.iter().find(no_level) {
        return Err(refused(format!("{word:?} is no level")));
    }
    words
        .join(",")
        .parse()
        .map_err(|error: ParseError| refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_level_holds_for_all_and_a_directive_for_its_target() {
        let targets = filter("openraft=off, info,dataplane=debug").unwrap();
        assert!(targets.would_enable("zone_cp::sync", &Level::INFO));
        assert!(!targets.would_enable("zone_cp::sync", &Level::DEBUG));
        assert!(targets.would_enable("dataplane::relay", &Level::DEBUG));
        assert!(!targets.would_enable("openraft::core", &Level::ERROR));
    }

    #[test]
    fn what_is_no_level_is_refused_with_what_to_write() {
        for level in ["verbose", "", "info,verbose", "dataplane=verbose"] {
            let error = filter(level).unwrap_err().to_string();
            assert!(error.contains("use error, warn, info"), "{error}");
        }
    }
}
