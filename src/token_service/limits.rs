//! How often one address, caller or device may ask: a token bucket each, in a table that does not grow without end.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Buckets by key.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    table: Mutex<HashMap<K, Bucket>>,
    keys_max: usize,
}

/// So many requests in a time, and as many at once as `burst` says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    requests: u32,
    every: Duration,
    burst: u32,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Nanoseconds' worth of requests that are left.
    left: Duration,
    filled_at: Instant,
}

impl Rate {
    /// `requests` a second, ten times that at once; 0: no limit.
    pub(super) fn per_second(requests: u32) -> Self {
        Self { requests, every: Duration::from_secs(1), burst: requests.saturating_mul(BURST_SECONDS) }
    }

    /// `requests` a minute, as many at once; 0: no limit.
    pub(super) fn per_minute(requests: u32) -> Self {
        Self { requests, every: Duration::from_mins(1), burst: requests }
    }

    /// What one request costs.
    fn cost(self) -> Duration {
        self.every / self.requests.max(1)
    }

    fn full(self) -> Duration {
        self.cost().saturating_mul(self.burst)
    }
}

impl<K: Eq + Hash> Buckets<K> {
    /// For at most so many keys at once.
    pub(super) fn new(keys_max: usize) -> Self {
        Self { table: Mutex::default(), keys_max }
    }

    /// Takes one request.
    ///
    /// # Errors
    /// How long to wait for the next one.
    pub(super) fn take(&self, key: K, rate: Rate, now: Instant) -> Result<(), Duration> {
        if rate.requests == 0 {
            return Ok(());
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= self.keys_max && !table.contains_key(&key) {
            // A full bucket is as good as none.
            table.retain(|_, bucket| refilled(*bucket, rate, now) < rate.full());
            if table.len() >= self.keys_max {
                return Err(rate.cost());
            }
        }
        let bucket = table.entry(key).or_insert(Bucket { left: rate.full(), filled_at: now });
        bucket.left = refilled(*bucket, rate, now);
        bucket.filled_at = bucket.filled_at.max(now);
        match bucket.left.checked_sub(rate.cost()) {
            Some(left) => {
                bucket.left = left;
                Ok(())
            }
            None => Err(rate.cost().saturating_sub(bucket.left)),
        }
    }
}

fn refilled(bucket: Bucket, rate: Rate, now: Instant) -> Duration {
    bucket.left.saturating_add(now.saturating_duration_since(bucket.filled_at)).min(rate.full())
}

/// As `connects_per_second_per_ip` has it.
const BURST_SECONDS: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_followed_by_the_rate_and_each_key_has_its_own() {
        let (buckets, rate, start) = (Buckets::new(10), Rate::per_second(2), Instant::now());
        let taken = |key, at| buckets.take(key, rate, start + Duration::from_millis(at));
        assert_eq!((0..100).filter(|_| taken("a", 0).is_ok()).count(), 20);
        assert_eq!(taken("a", 499), Err(Duration::from_millis(1)));
        assert_eq!((taken("a", 500), taken("a", 501).is_err(), taken("b", 501)), (Ok(()), true, Ok(())));
        let minute = Rate::per_minute(6);
        assert_eq!((0..100).filter(|_| buckets.take("c", minute, start).is_ok()).count(), 6);
        assert_eq!(buckets.take("c", minute, start), Err(Duration::from_secs(10)));
        assert!((0..1000).all(|_| buckets.take("d", Rate::per_minute(0), start).is_ok()), "0 is off");
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_was_away() {
        let (buckets, rate, start) = (Buckets::new(2), Rate::per_second(1), Instant::now());
        assert!(buckets.take(1, rate, start).is_ok() && buckets.take(2, rate, start).is_ok());
        assert!(buckets.take(3, rate, start).is_err(), "both are still remembered");
        assert!(buckets.take(1, rate, start).is_ok(), "who is known goes on");
        let later = start + Duration::from_secs(1);
        assert!(buckets.take(3, rate, later).is_ok(), "one is full again and forgotten");
        assert_eq!(buckets.table.lock().expect("not poisoned").len(), 2);
    }
}
