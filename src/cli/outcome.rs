//! How a command ends when it does not end well.

use std::fmt::Display;

use super::local::note;
use crate::config::Mistake;

/// Why a command is not done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Refused or not valid, and the reader has been told already.
    Refused,
    /// It could not be done.
    Failed(String),
    /// It was asked for in a way that makes no sense.
    Usage(String),
}

impl Outcome {
    /// It could not be done.
    pub(super) fn failed(why: impl Display) -> Self {
        Self::Failed(why.to_string())
    }

    /// Files have mistakes.
    pub(super) fn mistakes(mistakes: &[Mistake]) -> Self {
        let all: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        Self::Failed(all.join("\n"))
    }

    /// To standard error.
    pub(super) fn print(&self) {
        match self {
            Self::Refused => {}
            Self::Failed(why) | Self::Usage(why) => note(why),
        }
    }
}
