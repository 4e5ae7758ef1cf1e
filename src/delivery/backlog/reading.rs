//! From the disk to the queues: what is read ahead of the window, and what is looked at for its age. A read for the age
//! stays no longer in memory than it takes to set aside what is too old.

use std::time::Duration;

use super::{Backlog, Hub, LinkOutput, QUANTUM, Refusal, StreamId, Tick};
use crate::delivery::spool::{Fetched, Run, Wanted};

/// What a read is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading {
    /// For the window.
    Window,
    /// To set aside what is too old.
    TooOld,
}

impl Backlog {
    /// Which parts of queues are to be read, when it is time.
    pub(in crate::delivery) fn wanted(&mut self, hub: Hub, wall_ms: u64, now: Tick) -> Option<Vec<Wanted>> {
        if self.reading.is_some() || self.unread == 0 {
            return None;
        }
        // In turn: neither waits for the other.
        let next = match self.read_last {
            Reading::Window => [Reading::TooOld, Reading::Window],
            Reading::TooOld => [Reading::Window, Reading::TooOld],
        };
        for what in next {
            let wanted = match what {
                Reading::Window if hub == Hub::Up && self.read_bytes <= READ_BYTES_MAX / 2 => {
                    self.wanted_by_window(now)
                }
                Reading::TooOld if self.ages() && !self.is_crowded() => self.wanted_for_age(wall_ms, now),
                _ => vec![],
            };
            if !wanted.is_empty() {
                (self.reading, self.read_last) = (Some(what), what);
                return Some(wanted);
            }
        }
        None
    }

    fn wanted_by_window(&self, now: Tick) -> Vec<Wanted> {
        let count = self.queues.len();
        let in_turn = (0..count).map(|at| &self.queues[(self.turn + at) % count]);
        let wanted = in_turn.filter_map(|queue| {
            let from = queue.read + queue.run.count;
            let stream = StreamId { upstream: self.upstream, queue: queue.number };
            let short = from < queue.stored && queue.run.bytes.len() - queue.at < QUANTUM;
            (short && now >= queue.read_again).then_some(Wanted { stream, from, bytes: QUANTUM })
        });
        wanted.take(READS_AT_ONCE).collect()
    }

    /// The heads of queues that may be too old and that nobody has read.
    fn wanted_for_age(&mut self, wall_ms: u64, now: Tick) -> Vec<Wanted> {
        let (mut wanted, count) = (Vec::new(), self.queues.len());
        for _ in 0..count {
            let queue = &self.queues[self.age_turn % count];
            self.age_turn = self.age_turn.wrapping_add(1);
            let is_unread = queue.run.count == 0 && queue.read < queue.stored && now >= queue.read_again;
            if is_unread && queue.young_ms.saturating_add(self.age_max_ms) < wall_ms {
                let stream = StreamId { upstream: self.upstream, queue: queue.number };
                wanted.push(Wanted { stream, from: queue.read, bytes: QUANTUM });
                if wanted.len() == READS_AT_ONCE {
                    break;
                }
            }
        }
        wanted
    }

    /// What was read.
    pub(in crate::delivery) fn fetched(
        &mut self,
        fetched: Vec<Fetched>,
        wall_ms: u64,
        out: &mut LinkOutput,
        now: Tick,
    ) {
        let what = self.reading.take();
        for Fetched { queue, run } in fetched {
            let place = usize::from(self.places[usize::from(queue)]);
            let Some(queue) = self.queues.get_mut(place) else { continue };
            let Ok(run) = run else {
                // It was said in the log. The others go on.
                queue.unread = (queue.unread + 1).min(UNREAD_MAX);
                queue.read_again = now.plus(READ_AGAIN_AFTER * (1 << queue.unread));
                continue;
            };
            queue.unread = 0;
            if run.first != queue.read + queue.run.count {
                continue;
            }
            queue.forget_fed();
            if queue.run.count == 0 {
                queue.run.first = run.first;
            }
            self.read_bytes += run.bytes.len();
            queue.run.count += run.count;
            queue.run.bytes.extend_from_slice(&run.bytes);
            self.unread = self.unread.saturating_sub(run.count);
            if what == Some(Reading::TooOld) {
                self.set_old_aside(place, wall_ms, out, now);
                self.forget_read(place);
            }
        }
    }

    /// Sets aside what is too old among what was read.
    pub(in crate::delivery) fn set_aside_old(&mut self, wall_ms: u64, out: &mut LinkOutput, now: Tick) {
        if self.read_bytes > 0 {
            (0..self.queues.len()).for_each(|place| self.set_old_aside(place, wall_ms, out, now));
        }
    }

    fn set_old_aside(&mut self, place: usize, wall_ms: u64, out: &mut LinkOutput, now: Tick) {
        while !self.is_crowded()
            && let Some((record, _)) = self.first_of(place)
        {
            let received_ms = record.received_ms;
            if !self.is_old(received_ms, wall_ms) {
                // One of an unknown age is looked at as seldom as one that came now.
                let is_known = received_ms.saturating_add(self.age_max_ms) >= wall_ms;
                self.queues[place].young_ms = if is_known { received_ms } else { wall_ms };
                return;
            }
            self.queues[place].young_ms = received_ms;
            self.set_first_aside(place, Refusal::TooOld, out, now);
        }
    }

    /// What was read of a queue is read again when it is wanted.
    fn forget_read(&mut self, place: usize) {
        let queue = &mut self.queues[place];
        self.read_bytes -= queue.run.bytes.len() - queue.at;
        self.unread += queue.run.count;
        queue.run = Run { first: queue.read, ..Run::default() };
        queue.at = 0;
    }
}

/// What is read before more is asked for.
pub(super) const READ_BYTES_MAX: usize = 2 << 20;
/// Queues read at once: each brings a frame or more, of up to 64 KiB.
const READS_AT_ONCE: usize = 16;
/// Doubled with each attempt to read a queue that cannot be read, up to so many times.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(500);
const UNREAD_MAX: u32 = 7;
