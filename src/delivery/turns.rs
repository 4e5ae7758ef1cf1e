//! Who waits for a place in the window: first come, first served, each woken with places that are promised to it. Waking
//! everybody for every place cost seven times as much with five thousand publishers.

use std::collections::{BTreeMap, HashMap};

use super::{SessionRef, log::Share};
use crate::time::Tick;

/// The queue, and the promises that are not yet redeemed. Each session stands in it once, so it is as long as there are
/// sessions at most.
#[derive(Default)]
pub(super) struct Turns {
    /// By order of arrival.
    queue: BTreeMap<u64, SessionRef>,
    turns: HashMap<SessionRef, Turn>,
    arrivals: u64,
    promised: usize,
}

/// One session's turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Turn {
    arrival: u64,
    /// Messages that it holds.
    pub(super) wanted: usize,
    /// Bytes that the first of them takes in the log.
    pub(super) bytes: usize,
    pub(super) share: Share,
    /// Since when it waits.
    pub(super) since: Tick,
    /// Promised places; 0 while it is queued.
    promised: usize,
}

impl Turns {
    /// Places that are promised to sessions.
    pub(super) fn promised(&self) -> usize {
        self.promised
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Places that are promised to `who`.
    pub(super) fn promised_to(&self, who: SessionRef) -> usize {
        if self.promised == 0 { 0 } else { self.turns.get(&who).map_or(0, |turn| turn.promised) }
    }

    /// Whether `who` waits.
    pub(super) fn is_queued(&self, who: SessionRef) -> bool {
        !self.queue.is_empty() && self.turns.get(&who).is_some_and(|turn| turn.promised == 0)
    }

    /// `who` waits for a place for a message of `bytes`. Who had a promise and could not use it goes back to where it
    /// stood.
    pub(super) fn enqueue(&mut self, who: SessionRef, bytes: usize, share: Share, now: Tick) {
        let arrival = self.arrivals;
        let turn = self.turns.entry(who).or_insert(Turn { arrival, wanted: 1, bytes, share, since: now, promised: 0 });
        if turn.arrival == arrival {
            self.arrivals += 1;
        }
        self.promised -= turn.promised;
        (turn.promised, turn.bytes, turn.share) = (0, bytes, share);
        self.queue.insert(turn.arrival, who);
    }

    /// `who`, which waits, holds `wanted` messages.
    pub(super) fn want(&mut self, who: SessionRef, wanted: usize) {
        if let Some(turn) = self.turns.get_mut(&who) {
            turn.wanted = turn.wanted.max(wanted);
        }
    }

    /// Whose turn is next.
    pub(super) fn first(&self) -> Option<Turn> {
        self.turns.get(self.queue.first_key_value()?.1).copied()
    }

    /// Promises `places` to the first, which leaves the queue.
    pub(super) fn promise(&mut self, places: usize) -> Option<SessionRef> {
        let (_, who) = self.queue.pop_first()?;
        match self.turns.get_mut(&who) {
            Some(turn) if places > 0 => {
                turn.promised = places;
                self.promised += places;
            }
            _ => {
                self.turns.remove(&who);
            }
        }
        Some(who)
    }

    /// `who` takes one of the places that are promised to it.
    pub(super) fn redeem(&mut self, who: SessionRef) {
        let Some(turn) = self.turns.get_mut(&who).filter(|turn| turn.promised > 0) else { return };
        turn.promised -= 1;
        self.promised -= 1;
        if turn.promised == 0 {
            self.turns.remove(&who);
        }
    }

    /// `who` needs no more of the places that are promised to it.
    pub(super) fn give_back(&mut self, who: SessionRef) {
        if self.promised_to(who) > 0 {
            self.forget(who);
        }
    }

    /// `who` is gone.
    pub(super) fn forget(&mut self, who: SessionRef) {
        if let Some(turn) = self.turns.remove(&who) {
            self.promised -= turn.promised;
            self.queue.remove(&turn.arrival);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(slot: u32) -> SessionRef {
        SessionRef { slot, generation: 1 }
    }

    #[test]
    fn the_first_to_come_is_the_first_to_be_served() {
        let mut turns = Turns::default();
        for slot in [3, 1, 2] {
            turns.enqueue(session(slot), 10, Share::Whole, Tick(0));
        }
        turns.enqueue(session(1), 10, Share::Whole, Tick(0));
        turns.want(session(1), 5);
        assert_eq!(turns.promise(1), Some(session(3)));
        assert_eq!(turns.first().map(|turn| turn.wanted), Some(5));
        assert_eq!(turns.promise(5), Some(session(1)));
        assert_eq!((turns.promised(), turns.promised_to(session(1))), (6, 5));
        assert!(turns.is_queued(session(2)) && !turns.is_queued(session(1)));
    }

    #[test]
    fn who_cannot_use_a_promise_keeps_its_place_in_the_queue() {
        let mut turns = Turns::default();
        for slot in [1, 2, 3] {
            turns.enqueue(session(slot), 10, Share::Whole, Tick(0));
        }
        assert_eq!((turns.promise(1), turns.promise(1)), (Some(session(1)), Some(session(2))));
        turns.enqueue(session(2), 99, Share::Whole, Tick(0));
        turns.enqueue(session(1), 98, Share::Whole, Tick(0));
        assert_eq!(turns.promised(), 0);
        assert_eq!(turns.first().map(|turn| turn.bytes), Some(98));
        let order: Vec<_> = (0..4).filter_map(|_| turns.promise(1)).collect();
        assert_eq!(order, [1, 2, 3].map(session));
    }

    #[test]
    fn promises_are_redeemed_given_back_or_forgotten() {
        let mut turns = Turns::default();
        for slot in [1, 2, 3] {
            turns.enqueue(session(slot), 10, Share::Whole, Tick(0));
        }
        for _ in 0..2 {
            turns.promise(3);
        }
        turns.redeem(session(1));
        assert_eq!(turns.promised(), 5);
        turns.give_back(session(1));
        assert_eq!((turns.promised(), turns.promised_to(session(1))), (3, 0));
        turns.give_back(session(3));
        assert!(turns.is_queued(session(3)), "it had nothing to give back and waits on");
        turns.forget(session(2));
        turns.forget(session(3));
        assert_eq!(turns.promised(), 0);
        assert!(turns.is_empty() && turns.turns.is_empty());
    }
}
