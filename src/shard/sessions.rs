//! The sessions of one shard, by place and generation: an acknowledgement that comes too late finds nobody.

use std::{
    cell::{Cell, Ref, RefCell},
    rc::Rc,
    sync::Arc,
    task::{Context, Waker},
};

use super::{ahead::Waits, echoes::Echoes, wills};
use crate::{
    delivery::SessionRef,
    journal::Who,
    packet::Subscribe,
    policy::Grant,
    registry::Live,
    session::server::{Session, SessionPresent, SubscribeOutcome},
    time::Tick,
};

/// Places for sessions.
#[derive(Default)]
pub(super) struct Sessions {
    places: Vec<Option<Rc<SessionCell>>>,
    free: Vec<u32>,
    generation: u32,
}

impl Sessions {
    /// A place for a session that is about to be made.
    pub(super) fn reserve(&mut self) -> SessionRef {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            u32::try_from(self.places.len() - 1).expect("invariant: connections_max is far below u32::MAX")
        });
        self.generation = self.generation.wrapping_add(1);
        SessionRef { slot, generation: self.generation }
    }

    pub(super) fn insert(&mut self, cell: Rc<SessionCell>) {
        let slot = cell.who.slot as usize;
        self.places[slot] = Some(cell);
    }

    pub(super) fn get(&self, who: SessionRef) -> Option<&Rc<SessionCell>> {
        self.places.get(who.slot as usize)?.as_ref().filter(|cell| cell.who == who)
    }

    /// Gives a reserved place back, whether a session came to stand in it or not. Once for each [`reserve`](Self::reserve).
    pub(super) fn remove(&mut self, who: SessionRef) {
        self.places[who.slot as usize] = None;
        self.free.push(who.slot);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Rc<SessionCell>> {
        self.places.iter().flatten()
    }
}

/// One session: what its own task, the pool and the clock touch, each within one poll.
pub(super) struct SessionCell {
    pub(super) who: SessionRef,
    pub(super) live: Arc<Live>,
    /// What it is granted, as this shard has heard: [`Live::grant`] without the cost of sharing.
    grant: RefCell<Arc<Grant>>,
    /// Whether something was taken from its scope while it lived: messages of a hub may be on their way for it.
    pub(super) narrowed: Cell<bool>,
    /// When it may renew its token again.
    pub(super) renews_from: Cell<Tick>,
    /// Chooses the member of each pool.
    pub(super) hash: u64,
    /// When `exp` + skew is reached on the shard's clock.
    pub(super) closes_at: Cell<Tick>,
    /// Since when a packet of the device is under way, while it is read from.
    pub(super) begun: Cell<Option<Tick>>,
    /// Since when the device has taken nothing of what it is owed.
    pub(super) blocked: Cell<Option<Tick>>,
    /// When it is looked at next.
    pub(super) due: Cell<Tick>,
    /// Properties that are stamped on each message, encoded once.
    pub(super) stamp: RefCell<Box<[u8]>>,
    pub(super) state: RefCell<State>,
    /// Whether the session goes on without this connection.
    pub(super) outlives: Cell<bool>,
    /// Whether its state has moved on: what is left is of no use.
    pub(super) has_left: Cell<bool>,
    /// Whether its device has left a hub waiting for an answer.
    pub(super) is_slow: Cell<bool>,
    /// What is owed to the device is written when this batch is on the disk.
    pub(super) after_batch: Cell<u64>,
    waker: RefCell<Option<Waker>>,
    pause: Cell<Pause>,
    pub(super) waits: Cell<Waits>,
    pub(super) rate: Cell<Rate>,
    /// Whether it goes on with what an earlier connection left.
    pub(super) present: Cell<SessionPresent>,
    /// Of a device that wants none of its own messages.
    pub(super) echoes: RefCell<Option<Box<Echoes>>>,
    /// What is to be published when the connection is lost.
    pub(super) will: RefCell<Option<Box<wills::OfConnection>>>,
    /// How many refusals were journalled: the first ones, then ever fewer.
    pub(super) refusals: Cell<u32>,
}

/// The protocol state, and what is to be written.
pub(super) struct State {
    pub(super) session: Session,
    pub(super) out: Vec<u8>,
    pub(super) subscribing: Vec<Subscribing>,
}

/// A SUBSCRIBE whose filters are being placed on hubs.
pub(super) struct Subscribing {
    pub(super) request: Subscribe,
    /// One for each filter; `None`: the hub has not answered.
    pub(super) outcomes: Vec<Option<SubscribeOutcome>>,
}

/// Of whom the journal speaks, where there is no session of it yet.
pub(super) fn who_of(live: &Live) -> Who<'_> {
    Who { device: live.device().as_str(), peer: live.peer, token_id: Some(live.grant().token_id) }
}

/// Why a session does not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pause {
    /// It reads.
    None,
    /// The window of this hub is full, and its turn has not come.
    Hub(usize),
    /// It has used up its rate.
    Rate,
    /// A hub is to answer for filters first.
    Subscribing,
    /// The gateway ends: it closes when what it has sent is answered for.
    Leaving,
}

/// A token bucket of one second, in thousandths of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    left: u64,
    at: Tick,
}

impl Rate {
    pub(super) fn full(a_second: u32, now: Tick) -> Self {
        Self { left: u64::from(a_second) * 1000, at: now }
    }

    /// Takes one message; `false`: not yet.
    pub(super) fn take(&mut self, a_second: u32, now: Tick) -> bool {
        if a_second == 0 {
            return true;
        }
        let earned = now.0.saturating_sub(self.at.0).saturating_mul(u64::from(a_second));
        self.left = self.left.saturating_add(earned).min(u64::from(a_second) * 1000);
        self.at = now;
        match self.left.checked_sub(1000) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

impl SessionCell {
    pub(super) fn new(
        (who, hash): (SessionRef, u64),
        live: Arc<Live>,
        session: Session,
        stamp: Box<[u8]>,
        rate: Rate,
        closes_at: Tick,
    ) -> Self {
        Self {
            who,
            grant: RefCell::new(live.grant()),
            narrowed: Cell::new(false),
            renews_from: Cell::new(Tick(0)),
            live,
            hash,
            closes_at: Cell::new(closes_at),
            begun: Cell::default(),
            blocked: Cell::default(),
            due: Cell::new(Tick(0)),
            stamp: RefCell::new(stamp),
            state: RefCell::new(State { session, out: Vec::new(), subscribing: Vec::new() }),
            outlives: Cell::new(false),
            has_left: Cell::new(false),
            is_slow: Cell::new(false),
            after_batch: Cell::new(0),
            waker: RefCell::default(),
            pause: Cell::new(Pause::None),
            waits: Cell::default(),
            rate: Cell::new(rate),
            present: Cell::new(SessionPresent::No),
            echoes: RefCell::default(),
            will: RefCell::default(),
            refusals: Cell::new(0),
        }
    }

    /// Of whom the journal speaks.
    pub(super) fn identified(&self) -> Who<'_> {
        who_of(&self.live)
    }

    /// What it is granted.
    #[inline]
    pub(super) fn grant(&self) -> Ref<'_, Arc<Grant>> {
        self.grant.borrow()
    }

    /// It is granted this from here on.
    pub(super) fn set_grant(&self, grant: Arc<Grant>) {
        *self.grant.borrow_mut() = grant;
    }

    /// Has its task polled.
    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Keeps the waker of the task that polls.
    pub(super) fn polled_by(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|held| held.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    pub(super) fn pause(&self) -> Pause {
        self.pause.get()
    }

    pub(super) fn set_pause(&self, pause: Pause) {
        self.pause.set(pause);
    }

    /// Places in the window of a hub were promised to it.
    pub(super) fn granted(&self, upstream: usize, now: Tick) {
        if self.pause.get() == Pause::Hub(upstream) {
            self.resume(now);
        }
    }

    /// Its rate allows more.
    pub(super) fn rested(&self, now: Tick) {
        if self.pause.get() == Pause::Rate {
            self.resume(now);
        }
    }

    /// Hubs have answered for all filters.
    pub(super) fn subscribed(&self, now: Tick) {
        if self.pause.get() == Pause::Subscribing {
            self.resume(now);
        }
    }

    fn resume(&self, now: Tick) {
        self.pause.set(Pause::None);
        // What the device sent meanwhile waits in its socket: its silence was ours.
        self.state.borrow_mut().session.heard(now);
        self.begun.set(self.begun.get().map(|_| now));
        self.wake();
    }

    /// Whether a refusal is still worth an entry: the first eight, then each time their number doubles.
    pub(super) fn journals_refusal(&self) -> bool {
        let n = self.refusals.get().saturating_add(1);
        self.refusals.set(n);
        n <= 8 || n.is_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_allows_a_second_at_once_and_then_so_many_a_second() {
        let mut rate = Rate::full(10, Tick(0));
        let taken = (0..20).filter(|_| rate.take(10, Tick(0))).count();
        assert_eq!(taken, 10);
        assert!(!rate.take(10, Tick(99)) && rate.take(10, Tick(100)) && !rate.take(10, Tick(100)));
        assert_eq!((0..20).filter(|_| rate.take(10, Tick(60_000))).count(), 10);
    }

    #[test]
    fn no_rate_is_no_limit() {
        let mut rate = Rate::full(0, Tick(0));
        assert!((0..100_000).all(|_| rate.take(0, Tick(0))));
    }
}
