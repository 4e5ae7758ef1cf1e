//! Refused tokens that wait for somebody to find out which of the usual mistakes they have. That costs what the connection
//! path must not pay, so it is done beside it, and within bounds: few wait, one a second of an address, and what finds no
//! place is not explained. A token stays here until it is taken, and nowhere else.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use zeroize::Zeroizing;

use crate::{
    gate::{Wake, site_of},
    policy::Profile,
    time::Tick,
};

/// A refused CONNECT with a token.
pub struct Unexplained {
    /// Which entry of the journal speaks of it.
    pub(super) entry: u64,
    /// What the client called itself.
    pub client_id: String,
    /// Of the listener.
    pub profile: Profile,
    /// The token.
    pub token: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Unexplained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unexplained").field("entry", &self.entry).finish_non_exhaustive()
    }
}

/// Those that wait.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    taker: OnceLock<Arc<dyn Wake>>,
}

#[derive(Default)]
struct Waiting {
    tokens: VecDeque<Unexplained>,
    /// When one of this address was taken in last.
    seen: HashMap<IpAddr, Tick>,
}

impl Queue {
    /// From here on there is somebody who takes them out. Nothing is kept before.
    pub(super) fn taken_by(&self, taker: Arc<dyn Wake>) {
        let _ = self.taker.set(taker);
    }

    /// `token` is copied only where it finds a place.
    pub(super) fn offer(&self, address: IpAddr, now: Tick, token: impl FnOnce() -> Unexplained) {
        let (Some(taker), address) = (self.taker.get(), site_of(address)) else { return };
        {
            let mut waiting = self.lock();
            let is_recent = |seen: &Tick| now.since(*seen) < ONE_EVERY;
            if waiting.tokens.len() >= WAITING_MAX || waiting.seen.get(&address).is_some_and(is_recent) {
                return;
            }
            if waiting.seen.len() >= ADDRESSES_MAX {
                waiting.seen.retain(|_, seen| is_recent(seen));
                if waiting.seen.len() >= ADDRESSES_MAX {
                    return;
                }
            }
            waiting.seen.insert(address, now);
            waiting.tokens.push_back(token());
        }
        taker.wake();
    }

    pub(super) fn take(&self) -> Option<Unexplained> {
        self.lock().tokens.pop_front()
    }

    /// What it holds is whole whatever happened to who held it.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.lock().tokens.len()).finish_non_exhaustive()
    }
}

/// A token has at most 16 KiB: half a mebibyte.
const WAITING_MAX: usize = 32;
/// Whoever guesses is not helped to keep a processor busy.
const ONE_EVERY: Duration = Duration::from_secs(1);
const ADDRESSES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Wake for Nobody {
        fn wake(&self) {}
    }

    fn token(entry: u64) -> Unexplained {
        let (client_id, profile) = ("d".into(), Profile::Strict);
        Unexplained { entry, client_id, profile, token: Zeroizing::new(b"a token".to_vec()) }
    }

    #[test]
    fn one_a_second_of_an_address_waits_and_no_more_than_there_is_room_for() {
        let queue = Queue::default();
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        queue.offer(address(1), Tick(0), || panic!("nobody takes it"));
        queue.taken_by(Arc::new(Nobody));
        queue.offer(address(1), Tick(0), || token(1));
        queue.offer(address(1), Tick(999), || panic!("a second has not passed"));
        queue.offer(address(1), Tick(1000), || token(2));
        for n in 2..100 {
            queue.offer(address(n), Tick(1000), || token(u64::from(n) + 1));
        }
        let mut taken = Vec::new();
        while let Some(token) = queue.take() {
            taken.push(token.entry);
        }
        assert_eq!(taken, (1..=WAITING_MAX as u64).collect::<Vec<_>>(), "the oldest first");
    }
}
