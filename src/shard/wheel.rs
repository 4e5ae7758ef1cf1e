//! One timer wheel for all sessions of a shard: a deadline costs eight bytes, and moving one costs nothing, since a
//! session that is not due yet is simply put in again.

use crate::{delivery::SessionRef, time::Tick};

/// Sessions by the time at which they are to be looked at.
#[derive(Debug)]
pub(super) struct Wheel {
    slots: Vec<Vec<SessionRef>>,
    /// The next turn to be taken.
    turn: u64,
}

impl Wheel {
    pub(super) fn new(now: Tick) -> Self {
        Self { slots: vec![Vec::new(); SLOTS], turn: now.0 / TURN_MS }
    }

    /// Has `who` looked at when `deadline` has passed, or earlier where it lies beyond the wheel: at the tick that is
    /// returned, or soon after.
    pub(super) fn schedule(&mut self, who: SessionRef, deadline: Tick) -> Tick {
        let last = self.turn + SLOTS as u64 - 1;
        // The turn after the one that holds the deadline: when it is taken, the deadline has passed.
        let turn = (deadline.0 / TURN_MS + 1).clamp(self.turn, last);
        self.slots[turn as usize % SLOTS].push(who);
        Tick(turn * TURN_MS)
    }

    /// Moves everybody whose turn has come to `due`.
    pub(super) fn advance(&mut self, due: &mut Vec<SessionRef>, now: Tick) {
        let behind = (now.0 / TURN_MS + 1).saturating_sub(self.turn);
        for _ in 0..behind.min(SLOTS as u64) {
            let slot = &mut self.slots[self.turn as usize % SLOTS];
            due.append(slot);
            slot.shrink_to(SLOT_KEPT);
            self.turn += 1;
        }
        self.turn = self.turn.max(now.0 / TURN_MS + 1);
    }
}

/// Milliseconds a turn: an expired session is closed this much late at most, plus the shard's tick.
pub(super) const TURN_MS: u64 = 100;
/// About a minute: whoever is due later is looked at once a minute.
const SLOTS: usize = 600;
/// Places that a slot keeps between turns.
const SLOT_KEPT: usize = 16;

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        time::Duration,
    };

    use super::*;
    use crate::{
        clock::{Clock, Reading},
        time::UnixSeconds,
    };

    fn due(wheel: &mut Wheel, now: u64) -> Vec<u32> {
        let mut due = vec![];
        wheel.advance(&mut due, Tick(now));
        due.iter().map(|who| who.slot).collect()
    }

    fn who(slot: u32) -> SessionRef {
        SessionRef { slot, generation: 0 }
    }

    #[test]
    fn nobody_is_due_before_the_deadline_and_everybody_soon_after() {
        let mut wheel = Wheel::new(Tick(0));
        wheel.schedule(who(1), Tick(250));
        wheel.schedule(who(2), Tick(0));
        assert_eq!(due(&mut wheel, 99), [0; 0]);
        assert_eq!(due(&mut wheel, 100), [2]);
        assert_eq!(due(&mut wheel, 299), [0; 0]);
        assert_eq!(due(&mut wheel, 300), [1]);
    }

    /// Guarded time as a test turns it.
    fn clock_at(wall: u64) -> (Arc<[AtomicU64; 2]>, Clock) {
        let turned = Arc::new([AtomicU64::new(wall * 1000), AtomicU64::new(7_000)]);
        let read = turned.clone();
        let reading = move || Reading { wall_ms: read[0].load(Relaxed), boot_ms: read[1].load(Relaxed) };
        (turned, Clock::of_readings(reading, None))
    }

    #[test]
    fn a_session_is_due_in_the_second_in_which_its_token_ends_and_when_the_clock_moved_so_does_its_end() {
        const T: u64 = 1_795_251_600;
        for renews in [None, Some(30)] {
            let (turned, clock) = clock_at(T);
            let run = |milliseconds: u64| {
                for _ in 0..milliseconds / 100 {
                    turned.iter().for_each(|reading| _ = reading.fetch_add(100, Relaxed));
                    clock.observe();
                }
            };
            let mut wheel = Wheel::new(clock.tick());
            let is_due = |wheel: &mut Wheel| due(wheel, clock.tick().0) == [1];
            let first = UnixSeconds(T + 20);
            wheel.schedule(who(1), clock.tick_of(first));
            run(19_000);
            assert!(!is_due(&mut wheel), "a second before");
            let ends = match renews {
                None => first,
                Some(seconds) => {
                    // Found on its turn, and put in again: it ends later.
                    let later = clock.now().plus(Duration::from_secs(seconds));
                    run(1_100);
                    assert!(is_due(&mut wheel) && clock.tick_of(later) > clock.tick(), "looked at, and not over");
                    wheel.schedule(who(1), clock.tick_of(later));
                    run((seconds - 2) * 1000 - 100);
                    assert!(!is_due(&mut wheel), "a second before the later end");
                    later
                }
            };
            run(900);
            assert!(!is_due(&mut wheel) && clock.now() < ends);
            run(200);
            assert!(is_due(&mut wheel) && clock.now() == ends, "in the second, and one turn late at most");
            wheel.schedule(who(1), clock.tick_of(ends));
            run(1_000);
            assert!(is_due(&mut wheel), "and a second after");

            // The clock is set forward: the same end is that much nearer.
            let ends = clock.now().plus(Duration::from_secs(25));
            let was = clock.tick_of(ends);
            turned[0].fetch_add(20_000, Relaxed);
            run(1_000);
            assert_eq!(was.since(clock.tick_of(ends)), Duration::from_secs(20));
            wheel.schedule(who(1), clock.tick_of(ends));
            run(2_900);
            assert!(!is_due(&mut wheel), "a second before");
            run(1_200);
            assert!(is_due(&mut wheel) && clock.now() == ends);
        }
    }

    #[test]
    fn a_deadline_in_the_past_or_beyond_the_wheel_is_looked_at_on_the_next_or_the_last_turn() {
        let mut wheel = Wheel::new(Tick(10_000));
        wheel.schedule(who(1), Tick(5));
        wheel.schedule(who(2), Tick(u64::MAX / 2));
        assert_eq!(due(&mut wheel, 10_000), [1]);
        assert_eq!(due(&mut wheel, 10_000 + (SLOTS as u64 - 2) * TURN_MS), [0; 0]);
        assert_eq!(due(&mut wheel, 10_000 + SLOTS as u64 * TURN_MS), [2]);
    }

    #[test]
    fn a_long_sleep_forgets_nobody() {
        let mut wheel = Wheel::new(Tick(0));
        for i in 0..100 {
            wheel.schedule(who(i), Tick(u64::from(i) * 500));
        }
        let mut all = due(&mut wheel, 3_600_000);
        all.sort_unstable();
        assert_eq!(all.len(), 100);
        wheel.schedule(who(7), Tick(3_600_050));
        assert_eq!(due(&mut wheel, 3_600_200), [7]);
    }
}
