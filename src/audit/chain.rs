//! One line of the log, and how the next hangs on it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::time::UnixSeconds;

/// A line as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) sequence: u64,
    pub(super) at: String,
    pub(super) action: String,
    pub(super) by: String,
    pub(super) object: String,
    pub(super) detail: String,
    /// SHA-256 of the line before, in hexadecimal digits; zeros in the very first.
    pub(super) previous: String,
}

impl Entry {
    /// The entry that follows `last`. `texts` are who, to what, and what besides; they are cut to a sensible length.
    pub(super) fn new(last: &Link, action: &str, texts: [&str; 3], now: UnixSeconds) -> Self {
        let [by, object, detail] = texts;
        Self {
            sequence: last.sequence + 1,
            at: now.to_string(),
            action: action.into(),
            by: cut(by, NAME_BYTES_MAX),
            object: cut(object, NAME_BYTES_MAX),
            detail: cut(detail, DETAIL_BYTES_MAX),
            previous: last.sha256.clone(),
        }
    }

    /// The line, without its end.
    pub(super) fn line(&self) -> String {
        serde_json::to_string(self).expect("invariant: numbers and texts are always JSON")
    }

    /// What stands in a line; `None`: it is no entry.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// The end of the chain: what the next entry hangs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) sequence: u64,
    pub(super) sha256: String,
}

impl Link {
    /// Before the first entry.
    pub(super) fn genesis() -> Self {
        Self { sequence: 0, sha256: "0".repeat(2 * SHA256_BYTES) }
    }
}

/// SHA-256 of a line without its end, in hexadecimal digits.
pub(super) fn hash_of(line: &[u8]) -> String {
    Sha256::digest(line).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn cut(text: &str, bytes_max: usize) -> String {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= bytes_max).last();
    match text.split_at_checked(end.unwrap_or(0)) {
        Some((head, rest)) if !rest.is_empty() => format!("{head}…"),
        _ => text.to_owned(),
    }
}

const SHA256_BYTES: usize = 32;
/// Longer than any name that we accept.
const NAME_BYTES_MAX: usize = 256;
/// Some sentences.
const DETAIL_BYTES_MAX: usize = 2048;
