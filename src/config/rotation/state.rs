//! `keys.json` of the state directory: when each key was rotated last, and a rotation that is under way.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Replace, RotateError};
use crate::{
    file::{self, LOCK_PATIENCE, Readers},
    time::UnixSeconds,
};

/// What is remembered of rotations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct State {
    /// By owner.
    pub(super) keys: BTreeMap<String, Turn>,
    /// Begun and not known to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) begun: Option<Begun>,
}

/// What is remembered of one owner, in seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Turn {
    /// When the primary key came; where it was never rotated, when the schedule saw it first.
    pub(super) since: u64,
    /// When it was rotated last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rotated_at: Option<u64>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<String>,
}

/// A rotation that was begun: whether it was done is told by the primary key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Begun {
    pub(super) owner: String,
    /// Fingerprint of the primary key before.
    pub(super) primary: String,
    pub(super) both: bool,
    pub(super) at: u64,
    pub(super) by: String,
}

impl State {
    /// Nothing, where there is no file.
    pub(super) fn read(state_dir: &Path) -> Result<Self, RotateError> {
        let path = file(state_dir);
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|error| RotateError::BadState { path, what: error.to_string() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(RotateError::io("read", &path, error)),
        }
    }

    pub(super) fn write(&self, state_dir: &Path) -> Result<(), RotateError> {
        let path = file(state_dir);
        let text = serde_json::to_string_pretty(self).expect("invariant: texts and numbers are always JSON");
        file::replace(&path, &[text.as_bytes(), b"\n"], Readers::Owner)
            .map_err(|error| RotateError::io("write", &path, error))
    }

    /// Notes that a rotation is done.
    pub(super) fn turned(&mut self, owner: &str, by: &str, now: UnixSeconds) {
        self.begun = None;
        let turn = Turn { since: now.0, rotated_at: Some(now.0), by: Some(by.to_owned()) };
        self.keys.insert(owner.to_owned(), turn);
    }
}

impl Begun {
    pub(super) fn what(&self) -> Replace {
        if self.both { Replace::Both } else { Replace::Primary }
    }
}

/// Held from the first look at the files to the last write: two rotations at once would be one too many.
pub(super) fn lock(state_dir: &Path) -> Result<File, RotateError> {
    // Before the first start of a gateway there is none.
    file::make_private_directory(state_dir).map_err(|error| RotateError::io("make", state_dir, error))?;
    let path = state_dir.join(LOCK);
    file::lock(&path, LOCK_PATIENCE).map_err(|error| RotateError::io("lock", &path, error))
}

/// Waits until a rotation that is under way has ended, for a moment at most. Between its two writes both slots hold the
/// same key, which nobody needs to hear of.
pub fn await_rotation(state_dir: &Path) {
    let path = state_dir.join(LOCK);
    if path.exists() {
        // What cannot be locked for longer is read as it is.
        drop(file::lock(&path, AWAITED));
    }
}

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("keys.json")
}

/// In the state directory.
const LOCK: &str = "keys.lock";
/// A rotation takes some milliseconds.
const AWAITED: Duration = Duration::from_millis(250);
