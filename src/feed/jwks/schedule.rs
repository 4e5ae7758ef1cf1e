//! When a key set is fetched. Pure: `now` is an argument.

use std::time::{Duration, Instant};

/// One issuer's.
#[derive(Debug)]
pub(super) struct Schedule {
    refresh: Duration,
    began: Option<Instant>,
    due: Instant,
    missed: bool,
    failures: u32,
}

impl Schedule {
    /// Due at once, unless another fetch of the issuer began a moment ago.
    pub(super) fn new(refresh: Duration, began: Option<Instant>, now: Instant) -> Self {
        Self { refresh: refresh.max(APART), began, due: now, missed: false, failures: 0 }
    }

    /// A token named a key that the set does not hold.
    pub(super) fn missed(&mut self) {
        self.missed = true;
    }

    /// How long to wait; `None`: it is time.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let asked = if self.missed { now } else { self.due };
        let earliest = self.began.map_or(now, |began| began + APART);
        asked.max(earliest).checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// A fetch begins; what is missed from here on is asked for anew.
    pub(super) fn begin(&mut self, now: Instant) {
        self.began = Some(now);
        self.missed = false;
        self.due = now + self.refresh;
    }

    /// It has ended. After a failure the next follows sooner than the refresh, each time later.
    pub(super) fn ended(&mut self, well: bool) {
        if well {
            self.failures = 0;
            return;
        }
        let again = APART * 2_u32.saturating_pow(self.failures.min(FAILURES_MAX));
        self.failures = self.failures.saturating_add(1);
        if let Some(began) = self.began {
            self.due = began + again.min(self.refresh);
        }
    }
}

/// The least time between two fetches of one issuer's set: a flood of unknown keys is one question (threat T4).
pub(super) const APART: Duration = Duration::from_secs(30);
/// 30 s doubled so often is 16 minutes.
const FAILURES_MAX: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    /// Lets time pass second by second, with a miss in each where there is a flood, and answers when fetches began.
    fn fetches(
        schedule: &mut Schedule,
        from: Instant,
        seconds: u64,
        flood: bool,
        well: impl Fn(u64) -> bool,
    ) -> Vec<u64> {
        let mut begun = Vec::new();
        for second in 0..seconds {
            let now = from + Duration::from_secs(second);
            if flood {
                schedule.missed();
            }
            if schedule.wait(now).is_none() {
                schedule.begin(now);
                schedule.ended(well(second));
                begun.push(second);
            }
        }
        begun
    }

    #[test]
    fn a_flood_of_unknown_keys_is_one_question_in_thirty_seconds() {
        let now = Instant::now();
        let mut schedule = Schedule::new(HOUR, None, now);
        assert_eq!(fetches(&mut schedule, now, 121, true, |_| true), [0, 30, 60, 90, 120]);
        let mut failing = Schedule::new(HOUR, None, now);
        assert_eq!(fetches(&mut failing, now, 121, true, |_| false), [0, 30, 60, 90, 120]);
    }

    #[test]
    fn an_unknown_key_is_asked_for_at_once_when_nobody_asked_before() {
        let now = Instant::now();
        let mut schedule = Schedule::new(HOUR, None, now);
        assert_eq!(fetches(&mut schedule, now, 1, false, |_| true), [0]);
        let later = now + Duration::from_secs(600);
        assert_eq!(schedule.wait(later), Some(HOUR - Duration::from_secs(600)));
        schedule.missed();
        assert_eq!(schedule.wait(later), None);
        schedule.begin(later);
        schedule.missed();
        let (before, at) = (later + Duration::from_secs(29), later + Duration::from_secs(30));
        assert_eq!((schedule.wait(before), schedule.wait(at)), (Some(Duration::from_secs(1)), None));
    }

    #[test]
    fn without_misses_the_set_is_fetched_by_the_timer() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::from_secs(300), None, now);
        assert_eq!(fetches(&mut schedule, now, 901, false, |_| true), [0, 300, 600, 900]);
    }

    #[test]
    fn failures_are_repeated_less_and_less_often_and_never_later_than_the_timer() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::from_secs(300), None, now);
        assert_eq!(fetches(&mut schedule, now, 1200, false, |second| second > 600), [0, 30, 90, 210, 450, 750, 1050]);
    }

    #[test]
    fn a_thread_that_takes_over_keeps_the_distance() {
        let now = Instant::now();
        let schedule = Schedule::new(HOUR, Some(now), now + Duration::from_secs(10));
        assert_eq!(schedule.wait(now + Duration::from_secs(10)), Some(Duration::from_secs(20)));
    }
}
