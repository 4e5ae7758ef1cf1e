//! Which second it is, believed with care. The machine's wall clock may jump: a battery is flat, an NTP server lies,
//! somebody types a wrong year. Tokens and revocations must neither die nor come to life again by that.
//!
//! Guarded time is never before the highest time that was seen, goes on with a clock that cannot be set, and follows the
//! wall clock like this:
//!
//! | the wall clock | guarded time |
//! |---|---|
//! | is ahead by [`FOLLOWED_AT_ONCE`] or less | follows at once; small steps that add up to more, within the rate below |
//! | is ahead by more | alarm; gains one second in [`SLEW_DIVISOR`] |
//! | is behind | loses one second in [`SLEW_DIVISOR`], so that it never goes back; behind by more than [`FOLLOWED_AT_ONCE`]: alarm |
//! | was behind the highest time seen when the gateway started (no battery, no network yet) | alarm; the first time it is right again, it is followed at once |
//! | was ahead of the highest time seen by more than [`START_AHEAD_MAX`] when the gateway started | alarm; as ahead |
//!
//! [`GuardedClock::reset`] believes the wall clock as it is, forwards or back: an operator's word.

use std::time::Duration;

use super::UnixSeconds;

/// A wall clock that is not believed, and how far it is from guarded time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClockFault {
    /// It is ahead by so much.
    Ahead(Duration),
    /// It is behind by so much.
    Behind(Duration),
}

/// The state machine. All readings are milliseconds: `wall_ms` since 1970, `boot_ms` of a clock that cannot be set and
/// that counts the time in which the machine was suspended.
#[derive(Clone, Debug)]
pub struct GuardedClock {
    guarded_ms: u64,
    boot_ms: u64,
    /// What may still be followed at once.
    at_once_ms: u64,
    /// The wall clock has been wrong since the start: the latest time that is believed when it is set.
    unset_until_ms: Option<u64>,
    fault: Option<ClockFault>,
}

impl GuardedClock {
    /// The clock at the start of the gateway. `highest`: the highest time seen by an earlier one; `None`: there was none.
    pub fn start(highest: Option<UnixSeconds>, wall_ms: u64, boot_ms: u64) -> Self {
        let highest_ms = highest.unwrap_or(WRITTEN).0.saturating_mul(1000);
        let latest_ms = match highest {
            Some(_) => highest_ms.saturating_add(ms(START_AHEAD_MAX)),
            None => u64::MAX,
        };
        let mut clock = Self {
            guarded_ms: highest_ms,
            boot_ms,
            at_once_ms: ms(FOLLOWED_AT_ONCE),
            unset_until_ms: None,
            fault: None,
        };
        if (highest_ms..=latest_ms).contains(&wall_ms) {
            clock.guarded_ms = wall_ms;
        } else if wall_ms.saturating_add(ms(FOLLOWED_AT_ONCE)) < highest_ms {
            clock.unset_until_ms = Some(latest_ms);
        }
        clock.judge(wall_ms);
        clock
    }

    /// Takes a reading of both clocks, several times a second. Returns guarded time in milliseconds since 1970.
    pub fn observe(&mut self, wall_ms: u64, boot_ms: u64) -> u64 {
        let elapsed_ms = boot_ms.saturating_sub(self.boot_ms);
        // Below that, the slew of it would be cut to nothing.
        if elapsed_ms < SLEW_DIVISOR {
            return self.guarded_ms.saturating_add(elapsed_ms);
        }
        self.boot_ms = boot_ms;
        self.guarded_ms = self.guarded_ms.saturating_add(elapsed_ms);
        let slew_ms = elapsed_ms / SLEW_DIVISOR;
        self.at_once_ms = self.at_once_ms.saturating_add(slew_ms).min(ms(FOLLOWED_AT_ONCE));
        if let Some(ahead_ms) = wall_ms.checked_sub(self.guarded_ms) {
            self.advance(ahead_ms, wall_ms, slew_ms);
        } else {
            self.guarded_ms -= slew_ms.min(self.guarded_ms - wall_ms);
        }
        self.judge(wall_ms);
        self.guarded_ms
    }

    /// Believes the wall clock as it is.
    pub fn reset(&mut self, wall_ms: u64, boot_ms: u64) -> u64 {
        *self =
            Self { guarded_ms: wall_ms, boot_ms, at_once_ms: ms(FOLLOWED_AT_ONCE), unset_until_ms: None, fault: None };
        self.guarded_ms
    }

    /// Why the wall clock is not believed; `None`: it is.
    pub fn fault(&self) -> Option<ClockFault> {
        self.fault
    }

    fn advance(&mut self, ahead_ms: u64, wall_ms: u64, slew_ms: u64) {
        // A machine without a battery has heard what time it is.
        if self.unset_until_ms.is_some_and(|latest_ms| wall_ms <= latest_ms) {
            self.unset_until_ms = None;
            self.guarded_ms = wall_ms;
            return;
        }
        let followed_ms = if ahead_ms <= ms(FOLLOWED_AT_ONCE) {
            let at_once_ms = ahead_ms.min(self.at_once_ms);
            self.at_once_ms -= at_once_ms;
            at_once_ms
        } else {
            ahead_ms.min(slew_ms)
        };
        self.guarded_ms = self.guarded_ms.saturating_add(followed_ms);
    }

    fn judge(&mut self, wall_ms: u64) {
        let apart = Duration::from_millis(self.guarded_ms.abs_diff(wall_ms));
        self.fault = match (apart > FOLLOWED_AT_ONCE, wall_ms > self.guarded_ms) {
            (false, _) => None,
            (true, true) => Some(ClockFault::Ahead(apart)),
            (true, false) => Some(ClockFault::Behind(apart)),
        };
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A step of the wall clock that is followed at once, forwards, and the distance from which on it is an alarm. NTP steps
/// by less; it is the clock skew that profile strict allows to tokens.
pub const FOLLOWED_AT_ONCE: Duration = Duration::from_secs(30);
/// A wall clock that is further away is followed by one second in so many: three minutes an hour.
pub const SLEW_DIVISOR: u64 = 20;
/// How long a gateway may have been switched off: a wall clock that is further ahead at its start is not believed.
pub const START_AHEAD_MAX: Duration = Duration::from_secs(366 * 86_400);
/// 2026-01-01: no clock that shows an earlier time has been set since this was written.
const WRITTEN: UnixSeconds = UnixSeconds(1_767_225_600);

#[cfg(test)]
mod tests;
