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
    use super::*;

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
