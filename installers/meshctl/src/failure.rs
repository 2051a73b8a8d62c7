//! Why a command does not do what was asked. Each kind has its exit code, so that a script can tell them apart.

use std::{fmt, process::ExitCode};

/// Why a command does not do what was asked, in words for the person who typed it.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit code 1: something in the world refused or is not there.
    Failed(String),
    /// Exit code 2: what was typed or written in a file is wrong. Nothing was changed.
    Invalid(String),
    /// Exit code 3: written, but refused somewhere or not in effect everywhere in time.
    Incomplete(String),
    /// Exit code 4: done, and the answer is not the good one.
    Finding(String),
}

impl Failure {
    /// Something in the world refused or is not there.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// What was typed or written is wrong.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Invalid(_) => 2,
            Self::Incomplete(_) => 3,
            Self::Finding(_) => 4,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(message) | Self::Invalid(message) | Self::Incomplete(message) => {
                write!(f, "error: {message}")
            }
            // Nothing went wrong with the command itself.
            Self::Finding(message) => f.write_str(message),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}
