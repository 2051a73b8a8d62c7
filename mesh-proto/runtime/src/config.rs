//! Settings from a file, the environment and flags.
//!
//! A process's settings are one struct that clap fills from flags and environment and serde from a TOML file, every
//! field an `Option`. What was typed wins over the file.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can not be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what is wanted; the message names line, column and field.
    #[error("{path}:{line}:{column}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// From 1; 0 where it is not known.
        line: usize,
        /// From 1; 0 where it is not known.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// The settings do not go through JSON. A fault of ours.
    #[error("settings cannot be merged: {0}")]
    Merge(#[from] serde_json::Error),
}

/// Lays `typed` (flags and environment) over the settings in `file`.
///
/// # Errors
/// Where the file can not be read, or holds an unknown field or a value of the wrong type.
pub fn load<T>(typed: T, file: Option<&Path>) -> Result<T, ConfigError>
where
    T: Serialize + DeserializeOwned,
{
    let Some(path) = file else { return Ok(typed) };
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let from_file: T = toml::from_str(&text).map_err(|error| parse_error(path, &text, &error))?;
    let mut merged = serde_json::to_value(from_file)?;
    overlay(&mut merged, serde_json::to_value(typed)?);
    Ok(serde_json::from_value(merged)?)
}

/// Replaces in `base` what `over` says. Absent and null say nothing, and so do empty lists and `false`: a flag that
/// was not given.
fn overlay(base: &mut Value, over: Value) {
    let (Value::Object(base), Value::Object(over)) = (base, over) else {
        return;
    };
    for (name, value) in over {
        let said = match &value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(items) => !items.is_empty(),
            _ => true,
        };
        if said {
            base.insert(name, value);
        }
    }
}

fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let (line, column) = error.span().map_or((0, 0), |span| {
        let before = &text[..span.start.min(text.len())];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    });
    ConfigError::Parse {
        path: path.to_owned(),
        line,
        column,
        message: error.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize, Default)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
    struct Settings {
        log_level: Option<String>,
        workers: Option<u16>,
        outbound: Vec<String>,
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn what_was_typed_wins_over_the_file() {
        let file = file("log-level = \"debug\"\nworkers = 4\noutbound = [\"a\"]\n");
        let typed = Settings {
            workers: Some(2),
            ..Settings::default()
        };
        let merged = load(typed, Some(file.path())).unwrap();
        assert_eq!(merged.workers, Some(2));
        assert_eq!(merged.log_level.as_deref(), Some("debug"));
        assert_eq!(merged.outbound, ["a"]);
    }

    #[test]
    fn a_wrong_file_is_refused_with_line_and_field() {
        for (text, line, word) in [
            ("log-level = \"x\"\nworkrs = 4\n", 2, "workrs"),
            ("workers = \"many\"\n", 1, "u16"),
            ("workers = \n", 1, ""),
        ] {
            let file = file(text);
            let error = load(Settings::default(), Some(file.path())).unwrap_err();
            let ConfigError::Parse {
                line: found,
                message,
                ..
            } = &error
            else {
                panic!("{error}")
            };
            assert_eq!(*found, line, "{error}");
            assert!(message.contains(word), "{error}");
        }
    }
}
