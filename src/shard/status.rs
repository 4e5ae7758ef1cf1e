//! What others may see of a member of a pool: set by its shard, read by whoever shows it.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use super::Shard;
use crate::{meter, upstream::Tally};

/// What others may see of a member.
#[derive(Debug, Default)]
pub struct MemberStatus {
    pub(super) connected: AtomicBool,
    pub(super) inflight: AtomicUsize,
    pub(super) owed: AtomicUsize,
    pub(super) spooling: AtomicBool,
    pub(super) spooled: AtomicUsize,
    pub(super) holds_back: AtomicBool,
    pub(super) backlog_bytes: AtomicUsize,
    /// Messages of QoS 1 that the hub acknowledged in the last second or so.
    pub(super) rate: AtomicUsize,
    pub(super) last_error: Mutex<Option<String>>,
}

impl MemberStatus {
    /// Whether the hub accepted the connection and it stands.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Relaxed)
    }

    /// Messages of QoS 1 taken and not acknowledged by the hub.
    pub fn inflight(&self) -> usize {
        self.inflight.load(Relaxed)
    }

    /// Messages that a device waits for.
    pub fn owed(&self) -> usize {
        self.owed.load(Relaxed)
    }

    /// Whether messages go to the disk.
    pub fn is_spooling(&self) -> bool {
        self.spooling.load(Relaxed)
    }

    /// Messages that wait on the disk, or on their way to it, for a place in the window.
    pub fn spooled(&self) -> usize {
        self.spooled.load(Relaxed)
    }

    /// Whether a device waits because it has its share of the room that the spool has left.
    pub fn holds_back(&self) -> bool {
        self.holds_back.load(Relaxed)
    }

    /// Bytes taken and not written to the hub.
    pub fn backlog_bytes(&self) -> usize {
        self.backlog_bytes.load(Relaxed)
    }

    /// Messages of QoS 1 that the hub acknowledged in the last second or so.
    pub fn messages_per_second(&self) -> u64 {
        self.rate.load(Relaxed) as u64
    }

    /// The last error, behind its time.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Adds what an interpreter counted to what the process counts.
pub(super) fn count(shard: &Shard, upstream: &str, tally: &Tally) {
    let duplicates = tally.take_duplicates();
    if duplicates > 0 {
        metrics::counter!(meter::UPSTREAM_DUPLICATES, "upstream" => upstream.to_owned()).increment(duplicates);
    }
    for (why, messages) in tally.take_dropped() {
        shard.meter.dropped(why.tag(), messages);
    }
}
