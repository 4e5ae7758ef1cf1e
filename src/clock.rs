//! The clock of the whole gateway: every decision about a token, a key or a revocation asks it. It reads the machine's
//! clocks, believes them as [`GuardedClock`] says, and keeps the highest time in `var/clock`.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};

use crate::{
    file::{Readers, replace},
    time::{ClockFault, GuardedClock, Tick, UnixSeconds},
};

/// One reading of the machine's clocks, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Since 1970, as it is set.
    pub wall_ms: u64,
    /// Since the machine was started, suspended time included. It cannot be set.
    pub boot_ms: u64,
}

/// Where readings come from.
enum Source {
    Machine,
    Given(Box<dyn Fn() -> Reading + Send + Sync>),
}

/// What time it is. Shared by all; a look costs no lock.
pub struct Clock {
    source: Source,
    began_ms: u64,
    /// Guarded time − the machine's uptime, in milliseconds.
    offset_ms: AtomicI64,
    /// Nothing earlier is ever answered.
    latest_ms: AtomicU64,
    guarded: Mutex<GuardedClock>,
    file: Option<PathBuf>,
}

/// What an operator sees of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockStatus {
    /// What decisions are made by.
    pub now: UnixSeconds,
    /// What the machine says.
    pub wall: UnixSeconds,
    /// Why that is not believed.
    pub fault: Option<ClockFault>,
}

impl Clock {
    /// The machine's clock, with the highest time that an earlier gateway kept in `state_dir`. A file that cannot be
    /// understood counts for none, and is replaced.
    pub fn open(state_dir: &Path) -> Self {
        let file = state_dir.join(FILE);
        let highest = read_highest(&file).unwrap_or_else(|error| {
            tracing::error!(file = %file.display(), %error, "the highest time seen is lost: the wall clock is believed");
            None
        });
        let clock = Self::new(Source::Machine, highest, Some(file));
        let ClockStatus { now, wall, fault } = clock.status();
        if let Some(fault) = fault {
            tracing::error!(%now, %wall, ?fault, "{}", remedy(fault));
        }
        clock.keep();
        clock
    }

    /// For a command beside the gateway: the machine's clock, believed as a gateway that starts in this moment would, and
    /// nothing kept or said.
    pub fn glance(state_dir: &Path) -> Self {
        Self::new(Source::Machine, read_highest(&state_dir.join(FILE)).unwrap_or_default(), None)
    }

    /// The machine's clock, and nothing kept.
    pub fn of_machine() -> Self {
        Self::new(Source::Machine, None, None)
    }

    /// A clock that is turned by `readings`, for tests; `highest` is the highest time that was seen.
    pub fn of_readings(readings: impl Fn() -> Reading + Send + Sync + 'static, highest: Option<UnixSeconds>) -> Self {
        Self::new(Source::Given(Box::new(readings)), highest, None)
    }

    fn new(source: Source, highest: Option<UnixSeconds>, file: Option<PathBuf>) -> Self {
        let Reading { wall_ms, boot_ms } = source.read();
        let mut guarded = GuardedClock::start(highest, wall_ms, boot_ms);
        let now_ms = guarded.observe(wall_ms, boot_ms);
        Self {
            source,
            began_ms: boot_ms,
            offset_ms: AtomicI64::new(offset(now_ms, boot_ms)),
            latest_ms: AtomicU64::new(now_ms),
            guarded: Mutex::new(guarded),
            file,
        }
    }

    /// The second by which everything is decided.
    pub fn now(&self) -> UnixSeconds {
        let now_ms = self.now_ms();
        UnixSeconds(self.latest_ms.fetch_max(now_ms, Relaxed).max(now_ms) / 1000)
    }

    /// Milliseconds since 1970, for stamps. It may differ by a hair from what another thread was told before.
    #[inline]
    pub fn now_ms(&self) -> u64 {
        self.source.boot_ms().saturating_add_signed(self.offset_ms.load(Relaxed))
    }

    /// What timers count in.
    #[inline]
    pub fn tick(&self) -> Tick {
        Tick(self.source.boot_ms().saturating_sub(self.began_ms))
    }

    /// When timers will have reached a time, as guarded time goes by today.
    pub fn tick_of(&self, time: UnixSeconds) -> Tick {
        let boot_ms = i128::from(time.0) * 1000 - i128::from(self.offset_ms.load(Relaxed));
        let tick = (boot_ms - i128::from(self.began_ms)).max(0);
        Tick(u64::try_from(tick).unwrap_or(u64::MAX))
    }

    /// How far guarded time and timers are apart: timers that were set for a time are to be set anew when it moves.
    pub fn offset_ms(&self) -> i64 {
        self.offset_ms.load(Relaxed)
    }

    /// Looks at the machine's clocks. Several times a second, by whoever comes first.
    pub fn observe(&self) {
        let Ok(mut guarded) = self.guarded.try_lock() else { return };
        let Reading { wall_ms, boot_ms } = self.source.read();
        let before = guarded.fault();
        let now_ms = guarded.observe(wall_ms, boot_ms);
        self.offset_ms.store(offset(now_ms, boot_ms), Relaxed);
        match (before, guarded.fault()) {
            (None, Some(fault)) => {
                let (now, wall) = (UnixSeconds(now_ms / 1000), UnixSeconds(wall_ms / 1000));
                tracing::error!(%now, %wall, "{}", remedy(fault));
            }
            (Some(_), None) => tracing::info!("the wall clock is believed again"),
            _ => {}
        }
    }

    /// Why the wall clock is not believed; `None`: it is.
    pub fn fault(&self) -> Option<ClockFault> {
        self.lock().fault()
    }

    /// What an operator sees.
    pub fn status(&self) -> ClockStatus {
        let wall = UnixSeconds(self.source.read().wall_ms / 1000);
        ClockStatus { now: self.now(), wall, fault: self.fault() }
    }

    /// Believes the wall clock as it is, forwards or back, and keeps that. Returns guarded time before and after.
    ///
    /// # Errors
    /// The file cannot be written: the new time is in force all the same, until the next start.
    pub fn reset(&self) -> io::Result<(UnixSeconds, UnixSeconds)> {
        let (before, now_ms) = {
            let mut guarded = self.lock();
            let before = self.now();
            let Reading { wall_ms, boot_ms } = self.source.read();
            let now_ms = guarded.reset(wall_ms, boot_ms);
            self.offset_ms.store(offset(now_ms, boot_ms), Relaxed);
            self.latest_ms.store(now_ms, Relaxed);
            (before, now_ms)
        };
        let after = UnixSeconds(now_ms / 1000);
        tracing::warn!(%before, %after, "the clock was reset by the operator");
        self.write(after).map(|()| (before, after))
    }

    /// Writes the highest time to disk. About once a minute, and at the end.
    pub fn keep(&self) {
        if let (Err(error), Some(file)) = (self.write(self.now()), &self.file) {
            tracing::error!(file = %file.display(), %error, "the highest time seen cannot be kept");
        }
    }

    fn write(&self, highest: UnixSeconds) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| write_highest(file, highest))
    }

    fn lock(&self) -> MutexGuard<'_, GuardedClock> {
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("now_ms", &self.now_ms()).finish_non_exhaustive()
    }
}

impl Source {
    #[inline]
    fn boot_ms(&self) -> u64 {
        match self {
            // Suspended time counts, which the monotonic clock leaves out.
            Self::Machine => {
                let time = clock_gettime(ClockId::Boottime);
                time.tv_sec.unsigned_abs() * 1000 + time.tv_nsec.unsigned_abs() / 1_000_000
            }
            Self::Given(readings) => readings().boot_ms,
        }
    }

    fn read(&self) -> Reading {
        match self {
            Self::Machine => {
                let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Reading { wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX), boot_ms: self.boot_ms() }
            }
            Self::Given(readings) => readings(),
        }
    }
}

fn offset(guarded_ms: u64, boot_ms: u64) -> i64 {
    i64::try_from(i128::from(guarded_ms) - i128::from(boot_ms)).unwrap_or(i64::MAX)
}

fn remedy(fault: ClockFault) -> &'static str {
    match fault {
        ClockFault::Ahead(_) => {
            "the wall clock is ahead of what can be believed and is followed slowly: set it right, or, if it is right, \
             `tollgate clock reset`"
        }
        ClockFault::Behind(_) => {
            "the wall clock is behind the highest time seen, which goes on: set it right, or, if it is right, \
             `tollgate clock reset`"
        }
    }
}

/// The time twice, as people and as programs write it: a damaged file does not say the same twice.
fn write_highest(file: &Path, highest: UnixSeconds) -> io::Result<()> {
    replace(file, &[format!("{highest} {}\n", highest.0).as_bytes()], Readers::Owner)
}

fn read_highest(file: &Path) -> io::Result<Option<UnixSeconds>> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the file is damaged");
    let text = str::from_utf8(&bytes).map_err(|_| damaged())?;
    let (people, programs) = text.trim_end().split_once(' ').ok_or_else(damaged)?;
    let seconds = UnixSeconds(programs.parse().map_err(|_| damaged())?);
    if seconds.to_string() == people { Ok(Some(seconds)) } else { Err(damaged()) }
}

/// Below `state_dir`.
const FILE: &str = "clock";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Clocks that a test turns.
    #[derive(Default)]
    struct Turned {
        wall_ms: AtomicU64,
        boot_ms: AtomicU64,
    }

    fn turned(wall: u64) -> (Arc<Turned>, Clock) {
        let turned = Arc::new(Turned { wall_ms: AtomicU64::new(wall * 1000), boot_ms: AtomicU64::new(7_200_000) });
        let read = turned.clone();
        let reading = move || Reading { wall_ms: read.wall_ms.load(Relaxed), boot_ms: read.boot_ms.load(Relaxed) };
        (turned, Clock::of_readings(reading, None))
    }

    impl Turned {
        fn run(&self, clock: &Clock, seconds: u64) {
            for _ in 0..seconds * 10 {
                self.wall_ms.fetch_add(100, Relaxed);
                self.boot_ms.fetch_add(100, Relaxed);
                clock.observe();
            }
        }
    }

    #[test]
    fn timers_and_times_agree_until_the_wall_clock_steps_and_can_be_set_anew_then() {
        let (turned, clock) = turned(T);
        let ends = UnixSeconds(T + 100);
        assert_eq!((clock.now(), clock.tick(), clock.tick_of(ends)), (UnixSeconds(T), Tick(0), Tick(100_000)));
        turned.run(&clock, 10);
        assert_eq!(
            (clock.now(), clock.tick(), clock.tick_of(ends)),
            (UnixSeconds(T + 10), Tick(10_000), Tick(100_000))
        );
        let before = clock.offset_ms();
        turned.wall_ms.fetch_add(20_000, Relaxed);
        turned.run(&clock, 1);
        assert_eq!((clock.now(), clock.offset_ms() - before), (UnixSeconds(T + 31), 20_000));
        assert_eq!(clock.tick_of(ends), Tick(80_000), "twenty seconds earlier");
        assert_eq!((clock.tick_of(UnixSeconds(u64::MAX)), clock.tick_of(UnixSeconds(0))), (Tick(u64::MAX), Tick(0)));
        // After the machine's start, and before the gateway's: long over.
        turned.wall_ms.fetch_add(3_600_000, Relaxed);
        clock.reset().expect("nothing is kept");
        assert_eq!(clock.tick_of(ends), Tick(0));
    }

    #[test]
    fn no_one_is_told_an_earlier_time_than_another_was() {
        let (turned, clock) = turned(T);
        turned.boot_ms.fetch_add(59_000, Relaxed);
        // Nobody has looked yet: the wall clock stands still, and guarded time will lose three seconds.
        assert_eq!(clock.now(), UnixSeconds(T + 59));
        clock.observe();
        assert_eq!(clock.now(), UnixSeconds(T + 59));
        turned.boot_ms.fetch_add(4_000, Relaxed);
        assert!(clock.now() >= UnixSeconds(T + 60));
    }

    #[test]
    fn the_highest_time_survives_a_start_and_damage_to_its_file_is_seen() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join(FILE);
        assert_eq!(read_highest(&file).expect("no file is no error"), None);
        write_highest(&file, UnixSeconds(T)).expect("written");
        assert_eq!(fs::read_to_string(&file).expect("read"), format!("2027-01-15T08:00:00Z {T}\n"));
        assert_eq!(read_highest(&file).expect("read"), Some(UnixSeconds(T)));
        for damaged in [
            "",
            "2027-01-15T08:00:00Z",
            "2027-01-15T08:00:00Z 1800000001\n",
            "2127-01-15T08:00:00Z 1800000000\n",
            "\u{0}",
        ] {
            fs::write(&file, damaged).expect("written");
            assert!(read_highest(&file).is_err(), "{damaged:?}");
        }
        fs::write(&file, [0xff, 0xfe]).expect("written");
        let clock = Clock::open(folder.path());
        assert!(read_highest(&file).expect("replaced").is_some_and(|kept| kept <= clock.now()));
        assert_eq!(clock.fault(), None);
    }

    #[test]
    fn a_start_before_the_highest_time_begins_there_and_a_reset_takes_it_back() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join(FILE);
        let far = UnixSeconds(4_000_000_000);
        write_highest(&file, far).expect("written");
        let clock = Clock::open(folder.path());
        assert!(clock.now() >= far && matches!(clock.fault(), Some(ClockFault::Behind(_))));
        let (before, after) = clock.reset().expect("written");
        assert!(before >= far && after < far && clock.now() < far && clock.fault().is_none());
        assert_eq!(read_highest(&file).expect("kept"), Some(after));
    }

    const T: u64 = 1_800_000_000;
}
