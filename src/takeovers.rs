//! Who takes sessions over from whom, again and again: two that connect as one device, with a token that somebody copied or
//! an id that was given twice (threat T7). The newest wins each time, and neither would notice.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{id::DeviceId, time::Tick};

/// Take-overs of the last minutes, by device. Told once a take-over, never for a message.
#[derive(Debug, Default)]
pub struct TakeOvers(Mutex<HashMap<DeviceId, Turns>>);

#[derive(Debug)]
struct Turns {
    count: usize,
    /// When the minute began in which they are counted.
    since: Tick,
    /// When there were too many last.
    too_many_at: Option<Tick>,
}

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// A device that connects again before its old connection is known to be gone.
    Seldom,
    /// This was the one too many: it is said once, until it was quiet for a while.
    TooOften,
    /// It was said already.
    StillTooOften,
}

impl TakeOvers {
    /// The session of this device was taken over by another connection.
    pub fn seen(&self, device: &DeviceId, now: Tick) -> Turned {
        let mut all = self.lock();
        if !all.contains_key(device) && all.len() >= DEVICES_MAX {
            all.retain(|_, turns| !turns.is_over(now));
            if all.len() >= DEVICES_MAX {
                return Turned::Seldom;
            }
        }
        let turns = all.entry(device.clone()).or_insert(Turns { count: 0, since: now, too_many_at: None });
        if now.since(turns.since) >= COUNTED_WITHIN {
            (turns.count, turns.since) = (0, now);
        }
        turns.count += 1;
        let was_alarming = turns.is_alarming(now);
        if turns.count >= COUNT_MAX {
            turns.too_many_at = Some(now);
        }
        match (was_alarming, turns.is_alarming(now)) {
            (_, false) => Turned::Seldom,
            (false, true) => Turned::TooOften,
            (true, true) => Turned::StillTooOften,
        }
    }

    /// Whether there is a device of which that can be said at this moment. What is over is forgotten.
    pub fn are_alarming(&self, now: Tick) -> bool {
        let mut all = self.lock();
        all.retain(|_, turns| !turns.is_over(now));
        all.values().any(|turns| turns.is_alarming(now))
    }

    /// What it holds is whole whatever happened to who held it.
    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Turns>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns {
    fn is_alarming(&self, now: Tick) -> bool {
        self.too_many_at.is_some_and(|at| now.since(at) < QUIET_FOR)
    }

    fn is_over(&self, now: Tick) -> bool {
        now.since(self.since) >= COUNTED_WITHIN && !self.is_alarming(now)
    }
}

/// Take-overs a minute: a device on a bad network has one or two.
pub const COUNT_MAX: usize = 6;
const COUNTED_WITHIN: Duration = Duration::from_mins(1);
/// An alarm lasts so long after the last take-over too many.
const QUIET_FOR: Duration = Duration::from_mins(2);
const DEVICES_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> DeviceId {
        DeviceId::try_from(text).expect(text)
    }

    #[test]
    fn too_many_in_a_minute_are_said_once_and_last_until_it_is_quiet() {
        let all = TakeOvers::default();
        let second = |n: u64| Tick(n * 1000);
        for n in 0..5 {
            assert_eq!(all.seen(&id("a"), second(n)), Turned::Seldom);
        }
        assert!(!all.are_alarming(second(5)));
        assert_eq!(all.seen(&id("a"), second(5)), Turned::TooOften);
        assert_eq!(all.seen(&id("a"), second(6)), Turned::StillTooOften);
        assert_eq!(all.seen(&id("b"), second(6)), Turned::Seldom);
        assert!(all.are_alarming(second(6 + 119)));
        assert!(!all.are_alarming(second(6 + 120)));
        assert!(all.lock().is_empty(), "what is over is forgotten");
        // One every ten seconds and a half never is too often.
        for n in 0..50 {
            assert_eq!(all.seen(&id("c"), Tick(200_000 + n * 12_001)), Turned::Seldom, "{n}");
        }
    }

    #[test]
    fn the_table_has_a_bound() {
        let all = TakeOvers::default();
        for n in 0..DEVICES_MAX + 10 {
            all.seen(&id(&format!("d{n}")), Tick(0));
        }
        assert_eq!(all.lock().len(), DEVICES_MAX);
        all.seen(&id("late"), Tick(60_000));
        assert_eq!(all.lock().len(), 1);
    }
}
