//! A member's next connection, with newer credentials, before the old ones end: one member of a pool at a time, and dialled
//! while the old connection goes on. When the new one stands the old one sends nothing more, and ends as soon as the hub
//! has acknowledged what it was sent.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use super::pump::{self, Member};
use crate::{time::Tick, upstream::HubStream};

/// Whose turn it is to renew, among all members of a pool on all shards.
#[derive(Debug, Default)]
pub struct Turn {
    taken: AtomicBool,
}

/// What one member knows of its renewal.
pub(super) struct Renewing {
    turn: Arc<Turn>,
    /// It has the turn, until its new connection stands or has failed.
    holds: Cell<bool>,
    /// When its credentials are to be renewed.
    due: Cell<Option<Tick>>,
    dialling: RefCell<Option<Dialling>>,
    /// The new connection, and since when it waits for the old one.
    next: RefCell<Option<(HubStream, Tick)>>,
}

type Dialling = Pin<Box<dyn Future<Output = io::Result<HubStream>>>>;

impl Renewing {
    pub(super) fn new(turn: Arc<Turn>) -> Self {
        Self {
            turn,
            holds: Cell::new(false),
            due: Cell::new(None),
            dialling: RefCell::default(),
            next: RefCell::default(),
        }
    }

    /// A connection begins whose credentials are to be renewed after so long, less a tenth by chance.
    pub(super) fn begins(&self, after: Option<Duration>, random: u64, now: Tick) {
        self.due.set(after.map(|after| now.plus(after - after / 10 * (random % 100) as u32 / 100)));
        (*self.dialling.borrow_mut(), *self.next.borrow_mut()) = (None, None);
    }

    /// The connection stands, or has failed: it is another member's turn.
    pub(super) fn ends(&self) {
        if self.holds.take() {
            self.turn.taken.store(false, Relaxed);
        }
    }

    /// Whether there is something to be done for it.
    pub(super) fn is_due(&self, now: Tick) -> bool {
        self.due.get().is_some_and(|due| due <= now)
    }

    /// The connection that is to take the place of this one, as soon as it may.
    pub(super) fn poll(&self, member: &Rc<Member>, now: Tick, cx: &mut Context<'_>) -> Poll<HubStream> {
        if !self.is_due(now) || !member.link.borrow().is_up() {
            return Poll::Pending;
        }
        if !self.holds.get() {
            if self.turn.taken.swap(true, Relaxed) {
                return Poll::Pending;
            }
            self.holds.set(true);
            let dialled = member.clone();
            *self.dialling.borrow_mut() = Some(Box::pin(async move { pump::dial_hub(&dialled).await }));
        }
        let polled = self.dialling.borrow_mut().as_mut().map(|dialling| dialling.as_mut().poll(cx));
        match polled {
            Some(Poll::Pending) => return Poll::Pending,
            Some(Poll::Ready(Ok(stream))) => {
                *self.dialling.borrow_mut() = None;
                *self.next.borrow_mut() = Some((stream, now));
            }
            Some(Poll::Ready(Err(error))) => {
                *self.dialling.borrow_mut() = None;
                member.renewal_failed(&error);
                self.ends();
                self.due.set(Some(now.plus(AGAIN_AFTER)));
                return Poll::Pending;
            }
            None => {}
        }
        let rested = member.link.borrow_mut().rest();
        let waited = self.next.borrow().as_ref().is_some_and(|(_, since)| now.since(*since) > REST_WITHIN);
        match self.next.borrow_mut().take_if(|_| rested || waited) {
            Some((stream, _)) => Poll::Ready(stream),
            None => Poll::Pending,
        }
    }
}

impl Drop for Renewing {
    fn drop(&mut self) {
        self.ends();
    }
}

/// After a hub could not be dialled: the old credentials are still good.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// A hub that is slow to acknowledge is sent the rest again.
const REST_WITHIN: Duration = Duration::from_secs(5);
