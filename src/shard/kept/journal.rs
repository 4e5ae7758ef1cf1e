//! What is written of a shard's sessions, on its way to the disk: entries gather in a batch, one batch at a time is with
//! the thread that writes, and whoever waits for the disk is told when its batch is there. No clock and no disk of its own.
//!
//! A device belongs to one of the spool's queues by its hash, and a queue to one shard: after a start with another number
//! of shards, each finds its own. A queue that has grown to several times what it amounts to is written anew, and what
//! stood before goes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::receipts::Hub;
use crate::{
    delivery::{
        SessionRef,
        spool::{self, Batch, BatchRecord, QUEUES, Record, StreamId, queue_of},
    },
    id::DeviceId,
    session::image::{Entry, Now},
};

/// See the module.
#[derive(Default)]
pub(super) struct Journal {
    filling: Batch,
    /// Of the batch that is being filled, from 1.
    number: u64,
    /// With the thread that writes, or to be given to it again.
    handed: Option<Arc<Batch>>,
    /// Batches up to this are on the disk.
    lasting: u64,
    /// The disk takes nothing.
    failing: bool,
    /// More was to be written than may wait: all is written anew when the disk takes something.
    lost: bool,
    waiting: VecDeque<(u64, Waiter)>,
    queues: BTreeMap<u16, Queue>,
    /// To be written anew.
    grown: BTreeSet<u16>,
    entry: Vec<u8>,
}

/// Who waits for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiter {
    /// A hub, for the answer to a message.
    Hub(Hub),
    /// A session that owes its device an answer.
    Session(SessionRef),
    /// What stands in this queue before this number is not wanted any more.
    Older(u16, u64),
}

/// One queue.
#[derive(Clone, Copy, Default)]
struct Queue {
    /// Number of its next record.
    next: u64,
    /// Bytes written since it was written anew.
    bytes: u64,
    /// Bytes that it took when it was written anew.
    anew: u64,
}

/// What the disk's answer means.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// They need not wait any more.
    pub(super) waiters: Vec<Waiter>,
    /// The disk began to refuse.
    pub(super) began_to_fail: bool,
}

impl Journal {
    /// Goes on behind what a start found: number of the next record and bytes, by queue.
    pub(super) fn new(found: impl Iterator<Item = (u16, u64, u64)>) -> Self {
        let queues = found.map(|(queue, next, bytes)| (queue, Queue { next, bytes, anew: bytes })).collect();
        Self { number: 1, queues, ..Self::default() }
    }

    /// Writes an entry of a session.
    pub(super) fn write(&mut self, device: &DeviceId, hash: u64, entry: &Entry<'_>, now: Now) {
        if self.filling.bytes.len() > WAITING_BYTES_MAX {
            self.lost = true;
        }
        if self.lost {
            return;
        }
        self.entry.clear();
        entry.write(&mut self.entry);
        let (queue, start) = (queue_of(hash), self.filling.bytes.len());
        let record = Record {
            at_least_once: true,
            retain: false,
            received_ms: now.wall_ms,
            why: None,
            device: hash,
            topic: device.as_str(),
            properties: &[],
            payload: &self.entry,
        };
        spool::write_record(&mut self.filling.bytes, &record);
        let len = self.filling.bytes.len() - start;
        let of = self.queues.entry(queue).or_default();
        let in_batch = "invariant: a batch is far below 4 GiB";
        self.filling.records.push(BatchRecord {
            queue,
            number: of.next,
            start: u32::try_from(start).expect(in_batch),
            len: u32::try_from(len).expect(in_batch),
        });
        of.next += 1;
        of.bytes += len as u64;
        if of.bytes > GROWS_TO * of.anew + QUEUE_BYTES_MIN {
            self.grown.insert(queue);
        }
    }

    /// What was written so far is on the disk when this batch is.
    pub(super) fn mark(&self) -> u64 {
        if self.filling.records.is_empty() && !self.lost { self.number - 1 } else { self.number }
    }

    /// Whether a batch is on the disk. While the disk refuses nobody waits for it: devices are served.
    pub(super) fn is_lasting(&self, batch: u64) -> bool {
        batch <= self.lasting || self.failing
    }

    /// Has somebody told when all that was written so far is on the disk; at once, where it is.
    pub(super) fn wait(&mut self, waiter: Waiter) -> Option<Waiter> {
        let mark = self.mark();
        if mark <= self.lasting {
            return Some(waiter);
        }
        self.waiting.push_back((mark, waiter));
        None
    }

    /// What the thread that writes is to be given: the next batch, or the last one once more.
    pub(super) fn batch(&mut self) -> Option<Arc<Batch>> {
        if self.handed.is_some() || self.filling.records.is_empty() {
            return None;
        }
        let batch = Arc::new(std::mem::take(&mut self.filling));
        self.number += 1;
        self.handed = Some(batch.clone());
        Some(batch)
    }

    /// The batch that the disk refused, to be tried again.
    pub(super) fn again(&self) -> Option<Arc<Batch>> {
        self.handed.clone().filter(|_| self.failing)
    }

    /// The disk has the batch, or does not take it.
    pub(super) fn answered(&mut self, taken: Result<(), &'static str>) -> Answered {
        let mut answered = Answered::default();
        if taken.is_err() {
            answered.began_to_fail = !std::mem::replace(&mut self.failing, true);
            // Sessions are served, and lose at a crash what the disk did not take. A hub sends again what it is not
            // answered for.
            let is_session = |waiter: &Waiter| matches!(waiter, Waiter::Session(_));
            answered.waiters = self.waiting.iter().map(|(_, waiter)| *waiter).filter(is_session).collect();
            self.waiting.retain(|(_, waiter)| !is_session(waiter));
            return answered;
        }
        self.failing = false;
        self.handed = None;
        self.lasting = self.number - 1;
        if std::mem::take(&mut self.lost) {
            self.forget_filling();
            // Whoever waits for what was not written waits for all of it, written anew.
            self.grown = (0..QUEUES).filter(|queue| self.queues.contains_key(queue)).collect();
        }
        while let Some((batch, _)) = self.waiting.front()
            && *batch <= self.lasting
        {
            answered.waiters.extend(self.waiting.pop_front().map(|(_, waiter)| waiter));
        }
        answered
    }

    /// The next queue that is to be written anew: its sessions' entries follow, and then [`Self::anew`].
    pub(super) fn next_grown(&mut self) -> Option<(u16, u64)> {
        // One at a time: each may be large.
        if self.failing || self.filling.bytes.len() > WAITING_BYTES_MAX / 4 {
            return None;
        }
        let queue = self.grown.pop_first()?;
        let of = self.queues.entry(queue).or_default();
        of.bytes = 0;
        Some((queue, of.next))
    }

    /// All sessions of the queue stand behind record `from`: once that is on the disk, what is before it goes.
    pub(super) fn anew(&mut self, queue: u16, from: u64) -> Option<Waiter> {
        let of = self.queues.entry(queue).or_default();
        of.anew = of.bytes;
        self.grown.remove(&queue);
        self.wait(Waiter::Older(queue, from))
    }

    /// Whether something is on its way to the disk.
    pub(super) fn is_busy(&self) -> bool {
        !self.filling.records.is_empty() || self.handed.is_some()
    }

    fn forget_filling(&mut self) {
        // Their numbers are used again: nothing of them was ever handed over.
        for record in self.filling.records.iter().rev() {
            if let Some(of) = self.queues.get_mut(&record.queue) {
                of.next = record.number;
            }
        }
        self.filling = Batch::default();
        self.grown.clear();
    }
}

/// The one stream of a queue: the log of sessions knows one hub, itself.
pub(super) fn stream_of(queue: u16) -> StreamId {
    StreamId { upstream: 0, queue }
}

/// What may wait for the disk: more, and it is given up and written anew.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// A queue is written anew when it is so many times what it was after the last time.
const GROWS_TO: u64 = 3;
/// And not before it holds so much.
const QUEUE_BYTES_MIN: u64 = 32 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{delivery::Ticket, time::Tick};

    const NOW: Now = Now { tick: Tick(0), wall_ms: 1_000 };

    fn device(n: u64) -> (DeviceId, u64) {
        // The queue is the hash's bits from 40 on.
        (DeviceId::try_from(&*format!("d-{n}")).expect("an id"), n << 40)
    }

    fn write(journal: &mut Journal, n: u64) {
        let (device, hash) = device(n);
        journal.write(&device, hash, &Entry::Received(1), NOW);
    }

    fn numbers(batch: &Batch) -> Vec<(u16, u64)> {
        batch.records.iter().map(|record| (record.queue, record.number)).collect()
    }

    fn session(slot: u32) -> SessionRef {
        SessionRef { slot, generation: 1 }
    }

    #[test]
    fn whoever_waits_is_told_when_its_batch_is_on_the_disk() {
        let mut journal = Journal::new([(3, 10, 0)].into_iter());
        assert_eq!(journal.wait(Waiter::Session(session(1))), Some(Waiter::Session(session(1))), "nothing to wait for");
        write(&mut journal, 3);
        assert_eq!(journal.wait(Waiter::Session(session(1))), None);
        let first = journal.batch().expect("a batch");
        assert_eq!(numbers(&first), [(3, 10)]);
        write(&mut journal, 3);
        write(&mut journal, 4);
        let hub = Waiter::Hub(Hub { upstream: 0, hash: 7, ticket: Ticket(9) });
        assert_eq!((journal.wait(hub), journal.batch()), (None, None), "one at a time");
        let mark = journal.mark();
        assert_eq!(journal.answered(Ok(())).waiters, [Waiter::Session(session(1))]);
        assert!(!journal.is_lasting(mark));
        assert_eq!(numbers(&journal.batch().expect("a batch")), [(3, 11), (4, 0)]);
        assert_eq!(journal.answered(Ok(())).waiters, [hub]);
        assert!(journal.is_lasting(mark) && !journal.is_busy() && journal.batch().is_none());
    }

    #[test]
    fn a_disk_that_refuses_holds_hubs_up_and_no_device() {
        let mut journal = Journal::new([].into_iter());
        write(&mut journal, 1);
        let hub = Waiter::Hub(Hub { upstream: 0, hash: 7, ticket: Ticket(9) });
        assert_eq!((journal.wait(hub), journal.wait(Waiter::Session(session(1)))), (None, None));
        let mark = journal.mark();
        let batch = journal.batch().expect("a batch");
        assert_eq!(journal.again(), None, "it has not been refused yet");
        let refused = journal.answered(Err("disk_full"));
        assert_eq!(refused, Answered { waiters: vec![Waiter::Session(session(1))], began_to_fail: true });
        assert!(journal.is_lasting(mark));
        assert_eq!(journal.again().as_deref(), Some(&*batch), "the same once more");
        assert_eq!(journal.answered(Err("disk_full")), Answered::default());
        assert_eq!(journal.answered(Ok(())), Answered { waiters: vec![hub], began_to_fail: false });
        assert_eq!(journal.again(), None);
    }

    #[test]
    fn what_is_given_up_for_a_disk_that_takes_nothing_is_written_anew() {
        let mut journal = Journal::new([].into_iter());
        write(&mut journal, 1);
        journal.batch().expect("a batch");
        journal.answered(Err("disk"));
        let (device, hash) = device(2);
        let large = vec![0; 1 << 20];
        let topic = crate::topic::TopicName::new(b"t").expect("a topic");
        let message = crate::session::server::Message::new(topic, &[], &large, crate::packet::QoS::AtLeastOnce);
        for n in 1..20 {
            let number = std::num::NonZeroU64::new(n).expect("not 0");
            journal.write(&device, hash, &Entry::queued(number, &message, NOW), NOW);
        }
        assert!(journal.filling.bytes.len() < WAITING_BYTES_MAX + (2 << 20), "memory has an end");
        let hub = Waiter::Hub(Hub { upstream: 0, hash: 7, ticket: Ticket(9) });
        assert_eq!((journal.wait(hub), journal.next_grown()), (None, None));
        assert_eq!(journal.answered(Ok(())).waiters, []);
        let mut written = vec![];
        while let Some((queue, from)) = journal.next_grown() {
            assert_eq!(from, u64::from(queue == 1), "numbers of what was given up are used again");
            write(&mut journal, queue.into());
            assert_eq!(journal.anew(queue, from), None);
            written.push(queue);
        }
        assert_eq!(written, [1, 2]);
        journal.batch().expect("all of it");
        assert_eq!(journal.answered(Ok(())).waiters, [hub, Waiter::Older(1, 1), Waiter::Older(2, 0)]);
    }

    #[test]
    fn a_queue_is_written_anew_when_it_has_grown_and_not_each_time() {
        let mut journal = Journal::new([].into_iter());
        let mut anew = 0;
        for _ in 0..10_000 {
            write(&mut journal, 1);
            while let Some((queue, from)) = journal.next_grown() {
                (0..100).for_each(|_| write(&mut journal, 1));
                assert_eq!(journal.anew(queue, from), None);
                anew += 1;
            }
            if journal.batch().is_some() {
                journal.answered(Ok(()));
            }
        }
        assert!((5..30).contains(&anew), "{anew} times");
    }
}
