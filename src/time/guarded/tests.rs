use proptest::prelude::*;

use super::*;

/// A machine whose two clocks a test turns.
struct Machine {
    clock: GuardedClock,
    wall_ms: u64,
    boot_ms: u64,
}

impl Machine {
    fn started(highest: Option<u64>, wall: u64) -> Self {
        let (wall_ms, boot_ms) = (wall * 1000, 5_000);
        Self { clock: GuardedClock::start(highest.map(UnixSeconds), wall_ms, boot_ms), wall_ms, boot_ms }
    }

    /// Both clocks go on; it is looked ten times a second. Guarded time, in whole seconds.
    fn runs(&mut self, seconds: u64) -> u64 {
        let mut guarded = 0;
        for _ in 0..seconds * 10 {
            self.wall_ms += 100;
            self.boot_ms += 100;
            guarded = self.clock.observe(self.wall_ms, self.boot_ms);
        }
        guarded / 1000
    }

    fn steps(&mut self, seconds: i64) {
        self.wall_ms = self.wall_ms.saturating_add_signed(seconds * 1000);
    }

    fn now(&mut self) -> u64 {
        self.clock.observe(self.wall_ms, self.boot_ms) / 1000
    }
}

const T: u64 = 1_800_000_000;
const HOUR: i64 = 3600;
const TO_2099: i64 = 73 * 366 * 86_400;

#[test]
fn it_goes_on_with_a_wall_clock_that_goes_on() {
    let mut machine = Machine::started(Some(T - 86_400), T);
    assert_eq!(machine.now(), T);
    assert_eq!(machine.runs(3600), T + 3600);
    assert_eq!(machine.clock.fault(), None);
}

#[test]
fn a_step_of_the_bound_is_followed_at_once_and_one_second_more_is_an_alarm() {
    for (step, followed, alarm) in [(29, true, false), (30, true, false), (31, false, true)] {
        let mut machine = Machine::started(None, T);
        machine.runs(60);
        machine.steps(step);
        let now = machine.runs(1);
        assert_eq!(now == T + 61 + step as u64, followed, "a step of {step} s: {}", now - T);
        assert_eq!(machine.clock.fault().is_some(), alarm, "a step of {step} s");
    }
}

#[test]
fn small_steps_do_not_add_up_to_a_large_one() {
    let mut machine = Machine::started(None, T);
    for _ in 0..120 {
        machine.steps(29);
        machine.runs(1);
    }
    let gained = machine.now() - T - 120;
    assert!((30..=30 + 120 / SLEW_DIVISOR + 1).contains(&gained), "gained {gained} s in two minutes");
    assert!(matches!(machine.clock.fault(), Some(ClockFault::Ahead(_))));
}

#[test]
fn a_jump_of_an_hour_neither_ends_nor_prolongs_what_lives_for_minutes() {
    let mut machine = Machine::started(None, T);
    machine.runs(10);
    machine.steps(HOUR);
    // A token that ends in ten minutes lives for nine and a half at least…
    assert_eq!(machine.runs(60), T + 10 + 60 + 3);
    assert!(matches!(machine.clock.fault(), Some(ClockFault::Ahead(apart)) if apart.as_secs() == 3597));
    machine.steps(-2 * HOUR);
    // … and with the clock turned back for ten and a half at most.
    assert_eq!(machine.runs(60), T + 10 + 60 + 3 + 60 - 3);
    assert!(matches!(machine.clock.fault(), Some(ClockFault::Behind(_))));
}

#[test]
fn a_jump_to_2099_and_back_leaves_no_trace_but_some_seconds() {
    let mut machine = Machine::started(None, T);
    machine.runs(10);
    machine.steps(TO_2099);
    machine.runs(600);
    machine.steps(-TO_2099);
    let at_the_return = machine.runs(1);
    assert!((T + 611..=T + 611 + 30).contains(&at_the_return), "{}", at_the_return - T);
    assert_eq!(machine.clock.fault(), None, "half a minute away is believed");
    assert_eq!(machine.runs(3600), T + 611 + 3600, "and in step again");
}

#[test]
fn a_suspended_machine_wakes_at_the_right_time() {
    let mut machine = Machine::started(None, T);
    machine.runs(10);
    machine.wall_ms += 8 * 3_600_000;
    machine.boot_ms += 8 * 3_600_000;
    assert_eq!(machine.now(), T + 10 + 8 * 3600);
    assert_eq!(machine.clock.fault(), None);
}

#[test]
fn a_machine_without_a_battery_starts_at_the_highest_time_and_believes_the_network_once() {
    let mut machine = Machine::started(Some(T), 86_400);
    assert_eq!(machine.now(), T);
    assert!(matches!(machine.clock.fault(), Some(ClockFault::Behind(_))));
    assert_eq!(machine.runs(600), T + 570, "it waits for the wall clock, and never stands still");
    let month = 30 * 86_400;
    machine.wall_ms = (T + month) * 1000;
    assert_eq!(machine.runs(1), T + month + 1, "the first right time is followed at once");
    assert_eq!(machine.clock.fault(), None);
    machine.steps(HOUR);
    assert!(machine.runs(1) < T + month + 4, "a second jump is not");
    assert!(matches!(machine.clock.fault(), Some(ClockFault::Ahead(_))));
}

#[test]
fn a_first_start_without_a_battery_believes_whatever_the_network_says_later() {
    let mut machine = Machine::started(None, 0);
    assert_eq!(machine.now(), WRITTEN.0);
    machine.wall_ms = T * 1000;
    assert_eq!(machine.runs(1), T + 1);
    assert_eq!(machine.clock.fault(), None);
}

#[test]
fn a_gateway_that_was_switched_off_believes_a_year_and_no_more() {
    let year = START_AHEAD_MAX.as_secs();
    for (off, believed) in [(0, true), (1, true), (year - 1, true), (year, true), (year + 1, false)] {
        let mut machine = Machine::started(Some(T), T + off);
        assert_eq!(machine.now(), if believed { T + off } else { T }, "switched off for {off} s");
        assert_eq!(machine.clock.fault().is_none(), believed, "switched off for {off} s");
    }
}

#[test]
fn a_start_shortly_before_the_highest_time_begins_there_without_an_alarm() {
    for (early, alarm) in [(0, false), (30, false), (31, true)] {
        let mut machine = Machine::started(Some(T), T - early);
        assert_eq!(machine.now(), T);
        assert_eq!(machine.clock.fault().is_some(), alarm, "{early} s early");
    }
}

#[test]
fn a_wrong_year_of_the_network_is_not_believed_by_a_clock_that_was_unset() {
    let mut machine = Machine::started(Some(T), 0);
    machine.wall_ms = T * 1000 + TO_2099 as u64 * 1000;
    assert!(machine.runs(60) <= T + 64);
    machine.wall_ms = (T + 3600) * 1000;
    assert_eq!(machine.runs(1), T + 3601, "and the right one still is");
}

#[test]
fn a_reset_believes_the_wall_clock_forwards_and_back() {
    for step in [TO_2099, -HOUR] {
        let mut machine = Machine::started(Some(T), T);
        machine.runs(10);
        machine.steps(step);
        machine.runs(1);
        let (wall_ms, boot_ms) = (machine.wall_ms, machine.boot_ms);
        assert_eq!(machine.clock.reset(wall_ms, boot_ms), wall_ms);
        assert_eq!(machine.clock.fault(), None);
        assert_eq!(machine.runs(5), wall_ms / 1000 + 5);
    }
}

#[test]
fn numbers_at_the_ends_of_their_range_do_no_harm() {
    let mut clock = GuardedClock::start(Some(UnixSeconds(u64::MAX)), u64::MAX, u64::MAX);
    assert_eq!(clock.observe(0, 0), u64::MAX);
    let mut clock = GuardedClock::start(None, 0, 0);
    assert!(clock.observe(u64::MAX, u64::MAX) >= WRITTEN.0 * 1000);
}

proptest! {
    /// Whatever the wall clock does, guarded time never goes back, and runs by a twentieth faster or slower at most,
    /// but for what is followed at once.
    #[test]
    fn guarded_time_never_goes_back_and_never_runs_away(
        highest in prop::option::of(T - 1_000..T + 1_000),
        readings in prop::collection::vec((prop_oneof![Just(0i64), -100_000i64..100_000, Just(TO_2099), Just(-TO_2099)], 20u64..5_000), 1..200),
    ) {
        let mut machine = Machine::started(highest, T);
        let unset = machine.clock.unset_until_ms.is_some();
        let mut last = machine.clock.guarded_ms;
        let (begin, mut ran) = (last, 0);
        for (step, elapsed) in readings {
            machine.steps(step);
            machine.wall_ms += elapsed;
            machine.boot_ms += elapsed;
            ran += elapsed;
            let now = machine.clock.observe(machine.wall_ms, machine.boot_ms);
            prop_assert!(now >= last + elapsed - elapsed / SLEW_DIVISOR - 1, "it ran too slowly");
            last = now;
        }
        if !unset {
            // What is followed at once is earned back at the rate of the slew, which runs beside it.
            let at_most = ran + 2 * (ran / SLEW_DIVISOR) + 30_000;
            prop_assert!(last - begin <= at_most, "it gained {} ms in {ran}", last - begin - ran);
        }
    }
}
