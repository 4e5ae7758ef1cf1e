//! The queues of a link, and the groups that go to the disk: what [`Backlog`](super::backlog::Backlog) counts in.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    Refusal, Settled,
    slots::{DiskRef, Owed},
    spool::{ASIDE, Batch, BatchRecord, Record, Run, write_record},
};
use crate::{route::Ack, time::Tick};

/// One queue of the hub: numbers before `read` are in a window or done, before `stored` on the disk, before `next` given.
pub(super) struct Queue {
    pub(super) number: u16,
    pub(super) head: u64,
    pub(super) read: u64,
    pub(super) stored: u64,
    pub(super) next: u64,
    /// From `head` on: which are done.
    pub(super) done: VecDeque<bool>,
    /// From `read` on: records that were read back.
    pub(super) run: Run,
    /// Where the first of `run` begins.
    pub(super) at: usize,
    /// Bytes it may send in this round; below zero: that much it has had of the next ones.
    pub(super) credit: i64,
    /// It has begun to wait and is served before its turn.
    pub(super) is_fresh: bool,
    /// Nothing in it is older than this; milliseconds of the wall clock.
    pub(super) young_ms: u64,
    /// It cannot be read: how often that was tried, and when it is again.
    pub(super) unread: u32,
    pub(super) read_again: Tick,
    /// Up to here the spool was told.
    pub(super) told: u64,
    pub(super) dirty: bool,
}

/// Messages that go to the disk together.
#[derive(Default)]
pub(super) struct Group {
    pub(super) number: u64,
    pub(super) batch: Arc<Batch>,
    pub(super) entries: Vec<Entry>,
    /// Records before it are in a window.
    pub(super) loaded: usize,
}

#[derive(Default)]
pub(super) struct Entry {
    pub(super) owed: Option<Owed>,
    pub(super) ack: Ack,
    pub(super) offered: Tick,
    /// A message that is set aside.
    pub(super) aside: Option<Aside>,
    /// A message that was set aside and waits again: how it is named.
    pub(super) again: Option<u64>,
}

/// What is done when a message that is set aside is on the disk.
#[derive(Clone, Copy)]
pub(super) struct Aside {
    pub(super) why: Refusal,
    /// Its record among those that wait, and the hash of its device.
    pub(super) was: Option<(DiskRef, u64)>,
}

impl Queue {
    /// A queue as a start found it.
    pub(super) fn new(number: u16, head: u64, next: u64) -> Self {
        Self {
            number,
            head,
            read: head,
            stored: next,
            next,
            done: VecDeque::new(),
            run: Run { first: head, ..Run::default() },
            at: 0,
            credit: QUANTUM as i64,
            is_fresh: false,
            young_ms: 0,
            unread: 0,
            read_again: Tick::default(),
            told: head,
            dirty: false,
        }
    }

    /// Keeps a record that follows what was read, so that it need not be read from the disk; `false`: it does not, or
    /// so many bytes are kept.
    pub(super) fn keep(&mut self, number: u64, bytes: &[u8], bytes_max: usize) -> bool {
        let keeps = number == self.read + self.run.count && self.run.bytes.len() - self.at < bytes_max;
        if keeps {
            self.forget_fed();
            if self.run.count == 0 {
                self.run.first = number;
            }
            self.run.bytes.extend_from_slice(bytes);
            self.run.count += 1;
        }
        keeps
    }

    /// Gives back the memory of what was fed from `run`.
    pub(super) fn forget_fed(&mut self) {
        self.run.bytes.drain(..self.at);
        self.at = 0;
    }

    /// The first record of `run`, of so many bytes, waits no more.
    pub(super) fn take_first(&mut self, len: usize) {
        self.at += len;
        self.read += 1;
        self.run.first += 1;
        self.run.count -= 1;
        if self.run.count == 0 {
            self.run.bytes = Vec::new();
            self.at = 0;
        }
    }

    pub(super) fn done(&mut self, number: u64) {
        let Some(at) = number.checked_sub(self.head).and_then(|at| usize::try_from(at).ok()) else { return };
        if self.done.len() <= at {
            self.done.resize(at + 1, false);
        }
        self.done[at] = true;
        while self.done.front() == Some(&true) {
            self.done.pop_front();
            self.head += 1;
        }
    }

    /// The spool is to be told, once.
    pub(super) fn note(&mut self, place: u16, acknowledged: &mut Vec<u16>) {
        if !self.dirty && self.head.min(self.stored) > self.told {
            self.dirty = true;
            acknowledged.push(place);
        }
    }
}

impl Group {
    pub(super) fn write(&mut self, queue: u16, number: u64, record: &Record<'_>) -> u32 {
        let batch = Arc::get_mut(&mut self.batch).expect("invariant: a group that is filled is shared with nobody");
        let start = batch.bytes.len() as u32;
        write_record(&mut batch.bytes, record);
        let len = batch.bytes.len() as u32 - start;
        batch.records.push(BatchRecord { queue, number, start, len });
        len
    }

    pub(super) fn set_aside(&mut self, record: &Record<'_>, aside: Aside, owed: Option<Owed>, offered: Tick) {
        self.write(ASIDE, 0, &Record { why: Some(aside.why), ..*record });
        self.entries.push(Entry { owed, offered, aside: Some(aside), ..Entry::default() });
    }
}

impl Owed {
    pub(super) fn settled(self, outcome: Result<(), Refusal>, offered: Tick, now: Tick) -> Settled {
        let took_ms = now.0.saturating_sub(offered.0);
        Settled { session: self.session, packet_id: self.packet_id, outcome, took_ms }
    }
}

/// So many bytes of a device do not wait any more.
pub(super) fn take_bytes(devices: &mut HashMap<u64, u64>, device: u64, bytes: u64) {
    if let Some(left) = devices.get_mut(&device) {
        *left = left.saturating_sub(bytes);
        if *left == 0 {
            devices.remove(&device);
        }
    }
}

/// What a queue sends in a round.
pub(super) const QUANTUM: usize = 16 << 10;
