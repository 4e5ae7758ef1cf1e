//! Who of a pool has its filters on a hub that forgets them with every connection. A message is published there when all
//! have: a hub passes it on to those filters alone that it holds, and sessions whose filters are yet to be placed were
//! told long ago that they are subscribed.

use std::{
    num::NonZeroU64,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// See the module. Shared by the members of one pool, on all shards.
#[derive(Debug)]
pub struct Muster {
    /// By member: at which start of the hub it has its filters there.
    there: Mutex<Vec<Option<NonZeroU64>>>,
    /// The start at which all have; 0: none.
    complete: AtomicU64,
}

impl Muster {
    /// So many members, none of them there.
    pub fn of(members: usize) -> Self {
        Self { there: Mutex::new(vec![None; members]), complete: AtomicU64::new(0) }
    }

    /// A member has its filters on the hub of this start.
    pub fn comes(&self, member: usize, start: NonZeroU64) {
        self.change(member, Some(start));
    }

    /// Its connection is lost, and its filters with it.
    pub fn leaves(&self, member: usize) {
        self.change(member, None);
    }

    /// Whether every member has its filters on the hub of this start.
    #[inline]
    pub fn is_complete(&self, start: NonZeroU64) -> bool {
        self.complete.load(Ordering::Acquire) == start.get()
    }

    fn change(&self, member: usize, start: Option<NonZeroU64>) {
        let mut there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = there.get_mut(member) {
            *place = start;
        }
        let complete =
            there.first().copied().flatten().filter(|first| there.iter().all(|place| *place == Some(*first)));
        self.complete.store(complete.map_or(0, NonZeroU64::get), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(number: u64) -> NonZeroU64 {
        NonZeroU64::new(number).expect("not 0")
    }

    #[test]
    fn it_is_complete_while_every_member_is_at_the_same_start_of_the_hub() {
        let muster = Muster::of(3);
        let complete = |number| muster.is_complete(start(number));
        for member in [2, 0] {
            muster.comes(member, start(1));
            assert!(!complete(1));
        }
        muster.comes(1, start(1));
        assert!(complete(1) && !complete(2));
        muster.leaves(0);
        assert!(!complete(1));
        muster.comes(0, start(1));
        assert!(complete(1));
        // The hub is started anew, and they notice one after another.
        muster.comes(0, start(2));
        assert!(!complete(1) && !complete(2));
        muster.comes(1, start(2));
        assert!(!complete(1) && !complete(2));
        muster.comes(2, start(2));
        assert!(complete(2) && !complete(1));
    }

    #[test]
    fn one_member_is_complete_when_it_is_there() {
        let muster = Muster::of(1);
        assert!(!muster.is_complete(start(1)));
        muster.comes(0, start(1));
        assert!(muster.is_complete(start(1)));
        muster.leaves(0);
        assert!(!muster.is_complete(start(1)));
    }
}
