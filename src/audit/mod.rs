//! The audit log: who changed what, in `audit.jsonl` of the state directory (0600), one JSON object a line.
//!
//! Each line holds the SHA-256 of the line before it, so that a line which was changed, taken out or put in is found by
//! [`Audit::verify`]. `audit.head` beside it holds number and hash of the last line, so that lines which are missing at the
//! end are found too. Every entry is on the disk when [`Audit::record`] returns. Gateway and commands write the same log, one
//! at a time.
//!
//! What it cannot show: whoever may write in the state directory can write a whole new chain. Against them helps only a
//! witness elsewhere; the gateway logs the hash of each of its entries, for whoever collects its log lines.

mod chain;
mod files;
mod verify;

use std::{
    fmt,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use crate::time::UnixSeconds;
use chain::Entry;

pub use verify::{Fault, Verified};

/// The audit log of one state directory. Cheap to clone; nothing is held open.
#[derive(Clone, Debug)]
pub struct Audit {
    directory: PathBuf,
}

/// What was done. The words are stable: they stand in the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Files were read again because somebody asked for it.
    Reloaded,
    /// A session was closed by the operator.
    SessionClosed,
    /// A key was given to somebody who had none.
    KeyAdded,
    /// secondary := primary, primary := new.
    KeyRotated,
    /// Both keys were replaced.
    KeysReplaced,
    /// A rotation was due and could not be done.
    RotationFailed,
    /// An entry was added to the revocation list.
    RevocationAdded,
    /// An entry was taken out of the revocation list.
    RevocationRemoved,
    /// Entries of another file were added to the revocation list.
    RevocationsImported,
    /// Entries whose time was over were taken out of the revocation list.
    RevocationsPruned,
    /// The revocation list was signed.
    RevocationsSigned,
    /// The guarded clock was set by the operator.
    ClockReset,
    /// Messages that were set aside were to be sent again.
    AsideRetried,
    /// Messages that were set aside were thrown away.
    AsideDiscarded,
    /// The token service issued a token.
    TokenIssued,
    /// A refresh token was used a second time: its line was revoked.
    RefreshReused,
    /// The end of the log was cut off in the middle of a line, and was mended.
    TailMended,
}

impl Action {
    /// As it stands in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reloaded => "reloaded",
            Self::SessionClosed => "session_closed",
            Self::KeyAdded => "key_added",
            Self::KeyRotated => "key_rotated",
            Self::KeysReplaced => "keys_replaced",
            Self::RotationFailed => "rotation_failed",
            Self::RevocationAdded => "revocation_added",
            Self::RevocationRemoved => "revocation_removed",
            Self::RevocationsImported => "revocations_imported",
            Self::RevocationsPruned => "revocations_pruned",
            Self::RevocationsSigned => "revocations_signed",
            Self::ClockReset => "clock_reset",
            Self::AsideRetried => "aside_retried",
            Self::AsideDiscarded => "aside_discarded",
            Self::TokenIssued => "token_issued",
            Self::RefreshReused => "refresh_reused",
            Self::TailMended => "tail_mended",
        }
    }
}

/// What was recorded: safe to print, and worth keeping elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Number of the entry, from 1.
    pub sequence: u64,
    /// SHA-256 of its line, in hexadecimal digits.
    pub sha256: String,
}

impl Audit {
    /// The log in this state directory; its files are made by the first entry.
    pub fn open(state_dir: &Path) -> Self {
        Self { directory: state_dir.to_owned() }
    }

    /// Adds an entry, and is done when it is on the disk: some milliseconds, so not on a thread that serves. `by` says who
    /// (`root`, `admin API`, `schedule`), `object` to what (`device:pump-17`), `detail` what an operator wants to know
    /// besides. None of them may hold a secret, a token or a payload.
    ///
    /// # Errors
    /// [`AuditError`]: the log could not be locked, read or written. What was to be recorded should be done all the same
    /// where leaving it undone is worse, as with a revocation.
    pub fn record(
        &self,
        action: Action,
        by: &str,
        object: &str,
        detail: &str,
        now: UnixSeconds,
    ) -> Result<Recorded, AuditError> {
        let _lock = files::lock(&self.directory).map_err(|error| self.failed("lock", error))?;
        let (mut log, mended) = files::Log::open(&self.directory).map_err(|error| self.failed("read", error))?;
        let mut append = |action: Action, [by, object, detail]: [&str; 3]| {
            let entry = Entry::new(log.link(), action.as_str(), [by, object, detail], now);
            log.append(&entry).map_err(|error| self.failed("write", error))
        };
        if let Some(bytes) = mended {
            let detail = format!("{bytes} bytes of an entry that was never finished were cut off");
            append(Action::TailMended, ["audit log", files::LOG, &detail])?;
        }
        append(action, [by, object, detail])
    }

    /// As [`record`](Self::record), for a gateway that goes on in any case: the entry is logged with its hash, and so is
    /// the failure, as an ERROR.
    pub fn note(&self, action: Action, by: &str, object: &str, detail: &str, now: UnixSeconds) {
        let done = action.as_str();
        match self.record(action, by, object, detail, now) {
            Ok(Recorded { sequence, sha256 }) => {
                tracing::info!(action = done, by, object, detail, sequence, sha256, "audited");
            }
            Err(error) => tracing::error!(%error, action = done, by, object, detail, "not audited"),
        }
    }

    /// Reads every file of the log and checks the chain. Waits for writers where it may write itself.
    ///
    /// # Errors
    /// [`AuditError`]: a file could not be read. A chain that is broken is no error but a [`Fault`].
    pub fn verify(&self) -> Result<Verified, AuditError> {
        // Who may only read checks what is there.
        let _lock = files::lock(&self.directory).ok();
        verify::verify(&self.directory).map_err(|error| self.failed("read", error))
    }

    /// Whose keys, of these owners (`device:pump-17`), were replaced last, and when (RFC 3339): as the newest file of the
    /// log tells, whose chain is not checked here. `None` where it tells nothing or cannot be read.
    pub fn last_rotation(&self, owners: &[String]) -> Option<(String, String)> {
        let file = BufReader::new(std::fs::File::open(self.file()).ok()?);
        let rotations = [Action::KeyRotated.as_str(), Action::KeysReplaced.as_str()];
        let entries = file.lines().map_while(Result::ok).filter_map(|line| serde_json::from_str::<Entry>(&line).ok());
        let ours = entries.filter(|entry| rotations.contains(&&*entry.action) && owners.contains(&entry.object));
        ours.last().map(|entry| (entry.object, entry.at))
    }

    /// Where its entries go.
    pub fn file(&self) -> PathBuf {
        self.directory.join(files::LOG)
    }

    fn failed(&self, what: &'static str, source: io::Error) -> AuditError {
        AuditError { file: self.file(), what, source }
    }
}

/// The log could not be locked, read or written.
#[derive(Debug)]
pub struct AuditError {
    file: PathBuf,
    what: &'static str,
    source: io::Error,
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} the audit log {}: {}", self.what, self.file.display(), self.source)
    }
}

impl std::error::Error for AuditError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests;
