//! Which keys are used: when a token of theirs was admitted last, and until when such tokens live. Told once a connect
//! and once a renewal, never for a message; forgotten when the gateway ends.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use dashmap::DashMap;

use crate::time::UnixSeconds;

/// The use of every key, by its fingerprint: a key that moves from one slot to the other keeps it.
#[derive(Debug)]
pub struct KeyUses {
    since: UnixSeconds,
    by_key: DashMap<u64, Cells>,
}

#[derive(Debug, Default)]
struct Cells {
    tokens: AtomicU64,
    last: AtomicU64,
    ends: AtomicU64,
}

/// The use of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// How often a token of it was admitted.
    pub tokens: u64,
    /// When one was admitted last.
    pub last: UnixSeconds,
    /// When the last of them to expire does so.
    pub ends: UnixSeconds,
}

impl KeyUses {
    /// Nobody was seen yet.
    pub fn new(now: UnixSeconds) -> Self {
        Self { since: now, by_key: DashMap::new() }
    }

    /// Since when uses are told.
    pub fn since(&self) -> UnixSeconds {
        self.since
    }

    /// A token of this key was admitted.
    pub fn seen(&self, fingerprint: u64, expires_at: UnixSeconds, now: UnixSeconds) {
        if let Some(cells) = self.by_key.get(&fingerprint) {
            return cells.seen(expires_at, now);
        }
        if self.by_key.len() < KEYS_MAX {
            self.by_key.entry(fingerprint).or_default().seen(expires_at, now);
        }
    }

    /// What is known of a key; `None`: nobody was admitted with it.
    pub fn of(&self, fingerprint: u64) -> Option<KeyUse> {
        let cells = self.by_key.get(&fingerprint)?;
        let [last, ends] = [&cells.last, &cells.ends].map(|cell| UnixSeconds(cell.load(Relaxed)));
        Some(KeyUse { tokens: cells.tokens.load(Relaxed), last, ends })
    }

    /// Forgets keys that nobody holds.
    pub fn keep(&self, is_held: impl Fn(u64) -> bool) {
        self.by_key.retain(|fingerprint, _| is_held(*fingerprint));
    }
}

impl Cells {
    fn seen(&self, expires_at: UnixSeconds, now: UnixSeconds) {
        self.tokens.fetch_add(1, Relaxed);
        self.last.fetch_max(now.0, Relaxed);
        self.ends.fetch_max(expires_at.0, Relaxed);
    }
}

/// Far more than a site has; what is replaced is forgotten at each load of the identities.
const KEYS_MAX: usize = 200_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_use_and_the_latest_end_of_each_key_are_known() {
        let uses = KeyUses::new(UnixSeconds(10));
        for (key, expires_at, now) in [(1, 500, 20), (1, 400, 30), (2, 100, 25), (1, 450, 29)] {
            uses.seen(key, UnixSeconds(expires_at), UnixSeconds(now));
        }
        assert_eq!(uses.of(1), Some(KeyUse { tokens: 3, last: UnixSeconds(30), ends: UnixSeconds(500) }));
        assert_eq!((uses.of(3), uses.since()), (None, UnixSeconds(10)));
        uses.keep(|key| key == 1);
        assert!(uses.of(1).is_some() && uses.of(2).is_none());
    }
}
