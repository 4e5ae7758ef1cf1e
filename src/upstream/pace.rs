//! `messages_per_second` of a hub: one token bucket for all members of its pool, on all shards.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::time::Tick;

/// See the module. A quarter of a second's messages may go at once.
#[derive(Debug)]
pub struct Pace {
    /// Nanoseconds for one message.
    each: u64,
    burst: u64,
    /// When everything that was allowed is due at the rate: nanoseconds of the shards' clock.
    due: AtomicU64,
}

impl Pace {
    /// So many messages a second, at least one.
    pub fn new(messages_per_second: u32) -> Self {
        let a_second = u64::from(messages_per_second.max(1));
        Self { each: 1_000_000_000 / a_second, burst: (a_second / 4).max(1), due: AtomicU64::new(0) }
    }

    /// Takes up to `wanted` messages; says how many may be sent.
    pub fn take(&self, wanted: usize, now: Tick) -> usize {
        let now = now.0.saturating_mul(1_000_000);
        let mut allowed = 0;
        let change = |due: u64| {
            let begin = due.max(now.saturating_sub(self.burst * self.each));
            allowed = (now.saturating_sub(begin) / self.each).min(wanted as u64);
            (allowed > 0).then(|| begin + allowed * self.each)
        };
        match self.due.fetch_update(Relaxed, Relaxed, change) {
            Ok(_) => allowed as usize,
            Err(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it allows over `ms`, asked every `every` ms for as much as there is.
    fn over(pace: &Pace, from: u64, ms: u64, every: usize) -> usize {
        (from..from + ms).step_by(every).map(|at| pace.take(usize::MAX, Tick(at))).sum()
    }

    #[test]
    fn over_time_it_allows_the_rate_whoever_asks_and_how_often() {
        for (rate, every) in [(1, 100), (10, 1), (100, 100), (100, 7), (6_000, 100), (6_000, 1)] {
            let pace = Pace::new(rate);
            over(&pace, 10_000, 1_000, every);
            let allowed = over(&pace, 11_000, 60_000, every) as f64;
            let expected = f64::from(rate) * 60.0;
            assert!((allowed - expected).abs() <= expected * 0.01 + 1.0, "{rate} every {every} ms: {allowed}");
        }
    }

    #[test]
    fn after_a_rest_a_quarter_of_a_second_may_go_at_once() {
        let pace = Pace::new(400);
        assert_eq!(pace.take(1_000, Tick(100_000)), 100);
        assert_eq!(pace.take(1_000, Tick(100_000)), 0);
        assert_eq!(pace.take(1_000, Tick(100_010)), 4);
        assert_eq!(pace.take(3, Tick(200_000)), 3);
        assert_eq!(pace.take(1_000, Tick(200_000)), 97);
    }
}
