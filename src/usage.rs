//! Which keys are used: when a token of theirs was admitted last, and until when such tokens live. Told once a connect
//! and once a renewal, never for a message. It is kept in the state directory, written now and then: after a crash the
//! last minute is missing.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use dashmap::DashMap;

use crate::{
    file::{self, Readers},
    time::UnixSeconds,
};

/// The use of every key, by its fingerprint: a key that moves from one slot to the other keeps it.
#[derive(Debug)]
pub struct KeyUses {
    since: UnixSeconds,
    by_key: DashMap<u64, Cells>,
    /// Where it is kept; none: nowhere.
    file: Option<PathBuf>,
    /// Something was seen that is not on the disk.
    is_news: AtomicBool,
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
        Self { since: now, by_key: DashMap::new(), file: None, is_news: AtomicBool::new(true) }
    }

    /// As they were kept in the state directory; what cannot be read there is begun anew.
    pub fn open(state_dir: &Path, now: UnixSeconds) -> Self {
        let path = state_dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, file = %path.display(), "the last uses of keys cannot be read: they are told anew");
                None
            }
        };
        let mut kept = Self { file: Some(path), ..Self::new(now) };
        let mut lines = text.as_deref().unwrap_or_default().lines();
        let since = lines.next().and_then(|line| line.strip_prefix("since ")?.parse().ok()).map(UnixSeconds);
        let Some(since) = since.filter(|since| *since <= now) else { return kept };
        kept.since = since;
        for (key, use_of) in lines.take(KEYS_MAX).filter_map(read_line) {
            kept.by_key.insert(key, use_of);
        }
        kept.is_news = AtomicBool::new(false);
        kept
    }

    /// Writes down what is not on the disk. It waits for the disk; there is one that writes at a time.
    pub fn save(&self) {
        let Some(path) = &self.file else { return };
        if !self.is_news.swap(false, Relaxed) {
            return;
        }
        let mut text = format!("since {}\n", self.since.0);
        for cells in &self.by_key {
            let [tokens, last, ends] = [&cells.tokens, &cells.last, &cells.ends].map(|cell| cell.load(Relaxed));
            text.push_str(&format!("{:016x} {tokens} {last} {ends}\n", cells.key()));
        }
        if let Err(error) = file::replace(path, &[text.as_bytes()], Readers::Owner) {
            self.is_news.store(true, Relaxed);
            tracing::warn!(%error, file = %path.display(), "the last uses of keys cannot be kept");
        }
    }

    /// Since when uses are told.
    pub fn since(&self) -> UnixSeconds {
        self.since
    }

    /// A token of this key was admitted.
    pub fn seen(&self, fingerprint: u64, expires_at: UnixSeconds, now: UnixSeconds) {
        self.is_news.store(true, Relaxed);
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
        let before = self.by_key.len();
        self.by_key.retain(|fingerprint, _| is_held(*fingerprint));
        if self.by_key.len() != before {
            self.is_news.store(true, Relaxed);
        }
    }
}

impl Cells {
    fn seen(&self, expires_at: UnixSeconds, now: UnixSeconds) {
        self.tokens.fetch_add(1, Relaxed);
        self.last.fetch_max(now.0, Relaxed);
        self.ends.fetch_max(expires_at.0, Relaxed);
    }
}

fn read_line(line: &str) -> Option<(u64, Cells)> {
    let mut fields = line.split(' ');
    let key = u64::from_str_radix(fields.next()?, 16).ok()?;
    let mut number = || fields.next()?.parse().ok().map(AtomicU64::new);
    Some((key, Cells { tokens: number()?, last: number()?, ends: number()? }))
}

/// Its name in the state directory: fingerprints, which are safe to show.
const FILE: &str = "key-uses";
/// Far more than a site has; what is replaced is forgotten at each load of the identities.
const KEYS_MAX: usize = 200_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_there_after_a_start_and_garbage_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let uses = KeyUses::open(directory.path(), UnixSeconds(10));
        uses.seen(7, UnixSeconds(500), UnixSeconds(20));
        uses.save();
        let path = directory.path().join(FILE);
        let text = fs::read_to_string(&path).expect("written");
        let again = KeyUses::open(directory.path(), UnixSeconds(30));
        assert_eq!((again.of(7), again.since()), (uses.of(7), UnixSeconds(10)));
        fs::remove_file(&path).expect("removed");
        again.save();
        assert!(!path.exists(), "nothing is written that is not new");
        again.keep(|_| false);
        again.save();
        assert_eq!(fs::read_to_string(&path).expect("written"), "since 10\n");
        fs::write(&path, format!("{text}zz 1 2 3\n8 1\n\u{0}\n")).expect("written");
        assert_eq!(KeyUses::open(directory.path(), UnixSeconds(30)).by_key.len(), 1);
        fs::write(&path, "since never\n7 1 2 3\n").expect("written");
        let anew = KeyUses::open(directory.path(), UnixSeconds(30));
        assert_eq!((anew.of(7), anew.since()), (None, UnixSeconds(30)));
        // A clock that was far ahead is not believed for ever.
        assert_eq!(KeyUses::open(directory.path(), UnixSeconds(5)).since(), UnixSeconds(5));
    }

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
