//! Messages of hubs that sessions have been given and are not done with: which hub waits for an answer, and whether the
//! message is written down. No clock and no hub of its own.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::{
    delivery::{SessionRef, Ticket},
    session::server::Receipt,
    time::Tick,
};

/// See the module.
#[derive(Default)]
pub(super) struct Receipts {
    last: u64,
    held: HashMap<Receipt, Held>,
    /// When to look whether the device has it, the earliest first: what can be written down, and what cannot.
    due: [VecDeque<(Tick, Receipt)>; 2],
}

/// What can be done about a message whose device does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outlives {
    /// It is written down.
    Connection,
    /// It ends with the connection: the hub is answered, and the message waits in memory.
    Nothing,
}

/// What is known of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    /// Whose it is.
    pub(super) session: SessionRef,
    /// The hub that is not answered for it.
    pub(super) hub: Option<Hub>,
    /// The bytes that are counted for it, where it is kept.
    pub(super) counted: Option<u64>,
    /// Whether it is written down.
    pub(super) written: bool,
}

/// A hub that waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hub {
    pub(super) upstream: usize,
    /// Of the device: it chooses the member of the pool.
    pub(super) hash: u64,
    /// How the member names the message.
    pub(super) ticket: Ticket,
}

impl Receipts {
    /// Numbers begin behind `last`, which a message has that was written by an earlier start.
    pub(super) fn after(last: u64) -> Self {
        Self { last, ..Self::default() }
    }

    /// The receipt of the next message. It is nothing before [`hold`](Self::hold).
    pub(super) fn next(&mut self) -> Receipt {
        self.last += 1;
        Receipt::new(self.last).expect("invariant: counted from 1")
    }

    /// A session has the message; it is looked at in a while.
    pub(super) fn hold(&mut self, receipt: Receipt, held: Held, outlives: Outlives, now: Tick) {
        self.held.insert(receipt, held);
        let after = if outlives == Outlives::Connection { WRITTEN_AFTER } else { WAITED_FOR };
        self.due[usize::from(outlives == Outlives::Nothing)].push_back((now.plus(after), receipt));
    }

    /// A message that was written down by an earlier start.
    pub(super) fn restore(&mut self, receipt: Receipt, held: Held) {
        self.held.insert(receipt, held);
    }

    pub(super) fn get_mut(&mut self, receipt: Receipt) -> Option<&mut Held> {
        self.held.get_mut(&receipt)
    }

    /// Its session is done with it.
    pub(super) fn take(&mut self, receipt: Receipt) -> Option<Held> {
        self.held.remove(&receipt)
    }

    /// The next message that has been with its session for so long that it is to be looked at, where a hub waits for it.
    pub(super) fn next_due(&mut self, now: Tick) -> Option<(Receipt, Held)> {
        for due in &mut self.due {
            while let Some((at, receipt)) = due.front().copied()
                && at <= now
            {
                due.pop_front();
                if let Some(held) = self.held.get(&receipt).filter(|held| held.hub.is_some() && !held.written) {
                    return Some((receipt, *held));
                }
            }
        }
        None
    }
}

/// So long a device may take for its answer before what it was sent is written down. Most answer sooner, and cost no
/// write; a hub with a small window waits no longer for one that does not.
const WRITTEN_AFTER: Duration = Duration::from_millis(250);
/// So long a hub waits for the answer of a device whose session ends with its connection. One that does not answer
/// within it is not waited for any more, until it does.
const WAITED_FOR: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn held(hub: Option<Hub>) -> Held {
        Held { session: SessionRef { slot: 1, generation: 1 }, hub, counted: None, written: false }
    }

    #[test]
    fn what_a_session_is_done_with_in_time_is_never_looked_at() {
        let mut receipts = Receipts::after(7);
        let [a, b, c, d] = [(); 4].map(|()| receipts.next());
        assert_eq!(a.get(), 8);
        let hub = Some(Hub { upstream: 0, hash: 7, ticket: Ticket(1) });
        for (receipt, hub, outlives) in [
            (a, hub, Outlives::Connection),
            (b, hub, Outlives::Connection),
            (c, None, Outlives::Connection),
            (d, hub, Outlives::Nothing),
        ] {
            receipts.hold(receipt, held(hub), outlives, Tick(0));
        }
        assert_eq!(receipts.take(a), Some(held(hub)));
        assert_eq!(receipts.next_due(Tick(249)), None);
        assert_eq!(receipts.next_due(Tick(250)), Some((b, held(hub))));
        assert_eq!(receipts.next_due(Tick(1_999)), None, "no hub waits for the third");
        assert_eq!(receipts.next_due(Tick(2_000)), Some((d, held(hub))));
        assert_eq!((receipts.take(a), receipts.due.iter().all(VecDeque::is_empty)), (None, true));
    }
}
