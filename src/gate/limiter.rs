//! How often one address may connect: a token bucket each, in a table that does not grow without end.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use dashmap::{DashMap, mapref::entry::Entry};

use crate::time::Tick;

/// Buckets by address (of IPv6, by the 64 bits that one site has). Called from every listener; `now` of different
/// callers may differ by little, and a clock that is behind only refills later.
#[derive(Debug)]
pub struct ConnectLimiter {
    /// Connects a second; 0: off.
    rate: u32,
    buckets: DashMap<IpAddr, Bucket>,
    /// Counted here: asking the map would lock all of it.
    count: AtomicUsize,
    addresses_max: usize,
    /// Millisecond of the last sweep: a table that stays full is not walked for each newcomer.
    swept_at: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Thousandths of a connect.
    tokens: u64,
    filled_at: Tick,
}

impl ConnectLimiter {
    /// `rate` connects a second, ten times that at once; 0: no limit.
    pub fn new(rate: u32) -> Self {
        Self::with_addresses_max(rate, ADDRESSES_MAX)
    }

    /// Whether one more connect from this address is allowed. A `true` takes one token.
    pub fn allow(&self, address: IpAddr, now: Tick) -> bool {
        if self.rate == 0 {
            return true;
        }
        let site = site_of(address);
        if self.count.load(Ordering::Relaxed) >= self.addresses_max && !self.buckets.contains_key(&site) {
            self.sweep(now);
            // Every address in the table connected within the last ten seconds: who is not in it waits.
            if self.count.load(Ordering::Relaxed) >= self.addresses_max {
                return false;
            }
        }
        let full = self.burst();
        match self.buckets.entry(site) {
            Entry::Occupied(mut entry) => self.take(entry.get_mut(), now),
            Entry::Vacant(entry) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                entry.insert(Bucket { tokens: full - ONE, filled_at: now });
                true
            }
        }
    }

    fn with_addresses_max(rate: u32, addresses_max: usize) -> Self {
        Self { rate, buckets: DashMap::new(), count: AtomicUsize::new(0), addresses_max, swept_at: AtomicU64::new(0) }
    }

    fn take(&self, bucket: &mut Bucket, now: Tick) -> bool {
        bucket.tokens = self.refilled(bucket, now);
        bucket.filled_at = bucket.filled_at.max(now);
        let allowed = bucket.tokens >= ONE;
        if allowed {
            bucket.tokens -= ONE;
        }
        allowed
    }

    /// Forgets every address whose bucket is full again: it is as if it had never connected.
    fn sweep(&self, now: Tick) {
        let before = self.swept_at.load(Ordering::Relaxed);
        let is_due = now.since(Tick(before)) >= SWEEP_EVERY;
        if !is_due || self.swept_at.compare_exchange(before, now.0, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let full = self.burst();
        self.buckets.retain(|_, bucket| self.refilled(bucket, now) < full);
        self.count.store(self.buckets.len(), Ordering::Relaxed);
    }

    fn refilled(&self, bucket: &Bucket, now: Tick) -> u64 {
        let milliseconds = u64::try_from(now.since(bucket.filled_at).as_millis()).unwrap_or(u64::MAX);
        // A rate in connects a second is the same in thousandths a millisecond.
        bucket.tokens.saturating_add(milliseconds.saturating_mul(u64::from(self.rate))).min(self.burst())
    }

    fn burst(&self) -> u64 {
        u64::from(self.rate) * BURST_SECONDS * ONE
    }
}

/// What counts as one address: of IPv6, the 64 bits that one site has.
pub fn site_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        },
    }
}

const ONE: u64 = 1000;
/// `connects_per_second_per_ip` of contract: the burst is ten times the rate.
const BURST_SECONDS: u64 = 10;
/// About 6 MiB; more sites than connect within ten seconds anywhere but in an attack.
const ADDRESSES_MAX: usize = 65_536;
/// A walk over all of them takes some milliseconds; within it one newcomer's wait is not longer than any retry.
const SWEEP_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn a_burst_is_ten_seconds_worth_and_the_rate_holds_after_it() {
        let limiter = ConnectLimiter::new(2);
        assert_eq!((0..100).filter(|_| limiter.allow(v4(1), Tick(0))).count(), 20);
        assert!(!limiter.allow(v4(1), Tick(499)));
        assert!(limiter.allow(v4(1), Tick(500)));
        assert!(!limiter.allow(v4(1), Tick(501)));
        assert!(limiter.allow(v4(2), Tick(501)), "another address has its own");
        assert_eq!((0..100).filter(|_| limiter.allow(v4(1), Tick(1_000_000))).count(), 20, "it fills up to the burst");
    }

    #[test]
    fn a_clock_that_is_behind_gives_nothing_twice() {
        let limiter = ConnectLimiter::new(1);
        assert_eq!((0..100).filter(|_| limiter.allow(v4(1), Tick(5_000))).count(), 10);
        assert!(!limiter.allow(v4(1), Tick(0)));
        assert!(!limiter.allow(v4(1), Tick(5_999)));
        assert!(limiter.allow(v4(1), Tick(6_000)));
    }

    #[test]
    fn zero_is_off() {
        let limiter = ConnectLimiter::new(0);
        assert!((0..10_000).all(|_| limiter.allow(v4(1), Tick(0))));
    }

    #[test]
    fn one_site_of_ipv6_has_one_bucket() {
        let limiter = ConnectLimiter::new(1);
        let allowed = (0..100_u16).filter(|n| limiter.allow(IpAddr::from([0x2001, 0xdb8, 0, 1, *n, 0, 0, 1]), Tick(0)));
        assert_eq!(allowed.count(), 10);
        assert!(limiter.allow(IpAddr::from([0x2001, 0xdb8, 0, 2, 0, 0, 0, 1]), Tick(0)));
        assert!((0..10).all(|_| limiter.allow(v4(9), Tick(0))));
        assert!(
            !limiter.allow(IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0209]), Tick(0)),
            "the same as 192.0.2.9"
        );
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_was_away() {
        let limiter = ConnectLimiter::with_addresses_max(1, 4);
        assert!((0..4).all(|n| limiter.allow(v4(n), Tick(0))));
        assert!(!limiter.allow(v4(4), Tick(999)), "all four are still remembered");
        assert!(limiter.allow(v4(0), Tick(999)), "who is known goes on");
        assert!(!limiter.allow(v4(4), Tick(1098)), "the table was swept less than a tenth of a second ago");
        assert!(limiter.allow(v4(4), Tick(1099)), "three are full again and forgotten");
        assert_eq!(limiter.buckets.len(), 2);
    }
}
