//! Times. Wall-clock times are [`UnixSeconds`]; the core is given a monotonic [`Instant`](std::time::Instant) or
//! [`Tick`] as an argument and never reads a clock. Which second it is, the [`GuardedClock`] says: the wall clock may
//! jump, and tokens must not live or die by it.

mod guarded;

pub use guarded::{ClockFault, FOLLOWED_AT_ONCE, GuardedClock, SLEW_DIVISOR, START_AHEAD_MAX};

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Seconds since 1970-01-01T00:00:00Z: NumericDate of RFC 7519 §2, `se` of a SAS token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixSeconds(pub u64);

impl UnixSeconds {
    /// The wall clock's second. 0 for a clock before 1970.
    pub fn from_system(now: SystemTime) -> Self {
        Self(now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
    }

    /// `self` + `by`, saturating; a fraction of a second is cut.
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by.as_secs()))
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }

    /// From RFC 3339 in UTC (`2026-11-21T09:00:00Z`). A fraction of a second is cut.
    ///
    /// # Errors
    /// A sentence that says what a time looks like.
    pub fn parse_rfc3339(text: &str) -> Result<Self, String> {
        match humantime::parse_rfc3339(text) {
            Ok(time) => Ok(Self::from_system(time)),
            Err(_) => Err(format!("{text:?} is no time: write it in UTC as 2026-11-21T09:00:00Z")),
        }
    }
}

impl fmt::Display for UnixSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // humantime writes years up to 9999.
        let time = UNIX_EPOCH + Duration::from_secs(self.0.min(253_402_300_799));
        write!(f, "{}", humantime::format_rfc3339_seconds(time))
    }
}

impl fmt::Debug for UnixSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Milliseconds since the gateway began, on a clock that never steps and that goes on while the machine is suspended. All
/// timers of sessions and links count in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Tick(pub u64);

impl Tick {
    /// `self` + `by`, saturating.
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Reads `30s`, `24h`, `7d`, `1h 30m`; `0` is zero.
///
/// # Errors
/// A sentence that says what a duration looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|_| format!("{text:?} is no duration: write it as 30s, 10m, 24h or 7d"))
}

/// Writes a duration as [`parse_duration`] reads it.
pub fn format_duration(duration: Duration) -> String {
    if duration.is_zero() {
        return "0".into();
    }
    let spaced = |part: &str| {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = part.split_at(digits);
        // `90s`, and `1 day`.
        if ["day", "month", "year"].iter().any(|word| unit.starts_with(word)) {
            format!("{number} {unit}")
        } else {
            part.to_owned()
        }
    };
    humantime::format_duration(duration).to_string().split(' ').map(spaced).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_in_utc() {
        let time = UnixSeconds::parse_rfc3339("2026-11-21T09:00:00Z").expect("a time");
        assert_eq!(time, UnixSeconds(1_795_251_600));
        assert_eq!(time.to_string(), "2026-11-21T09:00:00Z");
        assert_eq!(UnixSeconds::parse_rfc3339("2026-11-21T09:00:00.999Z"), Ok(time));
        assert!(UnixSeconds::parse_rfc3339("yesterday").is_err());
        assert_eq!(UnixSeconds(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86400)));
        assert!(parse_duration("soon").is_err());
        for (seconds, text) in [(90, "1m 30s"), (86_400, "1 day"), (2 * 86_400 + 3600, "2 days 1h")] {
            assert_eq!(format_duration(Duration::from_secs(seconds)), text);
        }
    }
}
