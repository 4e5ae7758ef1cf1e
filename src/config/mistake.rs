//! One mistake in a file: where it is, what it is, what to do about it.

use std::{fmt, path::PathBuf};

/// A mistake in a configuration file, for the person who edits it. All mistakes of a file are collected and shown at once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// The file, as it was named.
    pub file: PathBuf,
    /// The line, from 1; `None` where it is about the file as a whole.
    pub line: Option<usize>,
    /// One sentence that says what is wrong. Never a secret.
    pub what: String,
    /// One sentence that says what to do.
    pub remedy: String,
}

impl Mistake {
    /// A mistake in a line of a file.
    pub fn at_line(file: impl Into<PathBuf>, line: usize, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { file: file.into(), line: Some(line), what: what.into(), remedy: remedy.into() }
    }

    /// A mistake about a file as a whole.
    pub fn of_file(file: impl Into<PathBuf>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { file: file.into(), line: None, what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}\n    {}", self.what, self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_shows_where_it_is_and_what_to_do() {
        let mistake = Mistake::at_line("config/gateway.toml", 3, "unknown key `nmae`.", "Did you mean `name`?");
        assert_eq!(mistake.to_string(), "config/gateway.toml:3: unknown key `nmae`.\n    Did you mean `name`?");
        let mistake = Mistake::of_file("certs/x", "no such file.", "Make it.");
        assert_eq!(mistake.to_string(), "certs/x: no such file.\n    Make it.");
    }
}
