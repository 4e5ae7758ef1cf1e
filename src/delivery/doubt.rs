//! Which message a hub closes its connection on: of all that were on the wire when it did, fewer and fewer are sent
//! together, until the one that it closes on stands alone.
//!
//! After a close one message goes out, then as many more as were acknowledged: a hub that was only restarted is back at
//! its window after a few round trips. A message that stood alone when the hub closed is a *suspect*: its device is held
//! for a while, everybody else goes on, and then it is tried again, alone. After a bounded number of tries over several
//! seconds it is given up. A close on messages that nobody suspects says that the hub has reasons of its own, as one that
//! throttles has: then the try does not count.

use std::time::Duration;

use crate::time::Tick;

/// See the module. Without a close it costs one comparison a message.
#[derive(Default)]
pub(super) struct Doubt {
    /// Messages of QoS 1 that may be on the wire; none: as many as the hub takes.
    cap: Option<usize>,
    /// Of those that were on the wire at the close, how many are not answered.
    open: usize,
    suspects: Vec<Suspect>,
    /// The message that was sent last.
    last: Option<u16>,
    /// A message of QoS 0 was sent since the hub's last answer: it may be the one.
    beside: bool,
    /// The hub has taken a message since one was given up.
    takes: bool,
    /// Devices that messages were given up of, and how many: the last few.
    offenders: Vec<(u64, u32)>,
}

/// A message that stood alone when the hub closed, by its packet id.
#[derive(Clone, Copy)]
struct Suspect {
    id: u16,
    device: u64,
    tries: u32,
    /// Tries that did not count.
    excuses: u32,
    /// The hub has closed on others since the last try.
    excused: bool,
    not_before: Tick,
}

/// The connection as it was when the hub closed it.
#[derive(Clone, Copy)]
pub(super) struct Closed {
    /// Messages of QoS 1 that were sent, or begun, and not acknowledged.
    pub(super) on_wire: usize,
    /// Whose the last of them was.
    pub(super) device: u64,
    /// A byte of it was sent, and no request that is not answered.
    pub(super) begun: bool,
}

/// Whether the next message may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    Send,
    /// When the hub has answered.
    Wait,
    /// Others first.
    Held,
}

impl Doubt {
    /// Whether less is sent than the hub takes.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.cap.is_some()
    }

    /// Whether requests may be sent, which are not to stand beside what is looked at.
    pub(super) fn allows_requests(&self, on_wire: usize) -> bool {
        self.cap.is_none() || self.open == 0 && (on_wire == 0 || !self.suspects_last())
    }

    /// Whether the next message may follow `on_wire` others; `of`: its packet id and device, none at QoS 0.
    pub(super) fn next(&self, of: Option<(u16, u64)>, on_wire: usize, now: Tick) -> Next {
        let Some(cap) = self.cap else { return Next::Send };
        if on_wire > 0 && self.suspects_last() || on_wire >= cap {
            return Next::Wait;
        }
        match of.and_then(|(id, device)| Some((id, self.of_device(device)?))) {
            Some((id, suspect)) if suspect.id != id || now < suspect.not_before => Next::Held,
            Some(_) if on_wire > 0 => Next::Wait,
            _ => Next::Send,
        }
    }

    /// The next message is sent.
    pub(super) fn sends(&mut self, id: Option<u16>) {
        match id {
            Some(_) => self.last = id,
            None => self.beside = true,
        }
    }

    /// The packet id of the message that was sent last, while less is sent.
    pub(super) fn last(&self) -> Option<u16> {
        self.last
    }

    /// In which of [`PASSES`] a device's messages are sent: those of suspects' devices after others, and among them first
    /// those that may be tried. The last pass is for QoS 0.
    pub(super) fn pass(&self, device: u64, now: Tick) -> u8 {
        self.of_device(device).map_or(0, |suspect| if now < suspect.not_before { 2 } else { 1 })
    }

    /// How many suspects may be tried.
    pub(super) fn due(&self, now: Tick) -> usize {
        self.suspects.iter().filter(|suspect| suspect.not_before <= now).count()
    }

    /// Whether a message of the device is a suspect.
    pub(super) fn holds(&self, device: u64) -> bool {
        self.of_device(device).is_some()
    }

    /// The hub took the message, or refused it with a reason.
    #[inline]
    pub(super) fn answered(&mut self, id: u16) {
        self.takes = true;
        let Some(cap) = &mut self.cap else { return };
        *cap += 1;
        self.beside = false;
        self.open = self.open.saturating_sub(1);
        self.suspects.retain(|suspect| suspect.id != id);
        if self.open == 0 && self.suspects.is_empty() {
            self.ends();
        }
    }

    /// The message will not be sent any more.
    pub(super) fn forgets(&mut self, id: u16) {
        self.last.take_if(|last| *last == id);
        self.suspects.retain(|suspect| suspect.id != id);
        self.open = self.open.saturating_sub(1);
    }

    /// Nothing is left that could be sent.
    pub(super) fn ends(&mut self) {
        let offenders = std::mem::take(&mut self.offenders);
        *self = Self { takes: self.takes, offenders, ..Self::default() };
    }

    /// The hub closed the connection. The packet id of a message that is given up.
    pub(super) fn closed(&mut self, closed: Closed, now: Tick) -> Option<u16> {
        let was_narrow = self.cap.is_some();
        let beside = std::mem::take(&mut self.beside);
        if closed.on_wire == 0 {
            return None;
        }
        let alone = was_narrow && closed.on_wire == 1 && closed.begun && !beside;
        let id = self.last.filter(|_| alone);
        if !self.suspects_last() {
            self.suspects.iter_mut().for_each(|suspect| suspect.excused = true);
        }
        self.last = None;
        self.cap = Some(1);
        self.open = closed.on_wire;
        let tries_max = if self.takes { TRIES } else { TRIES_OF_A_HUB_THAT_TAKES_NOTHING };
        self.suspected(id?, closed.device, tries_max, now)
    }

    /// The hub said of a message that it is too much for now. Whether it is to be sent again, after a pause.
    pub(super) fn too_much(&mut self, id: u16, device: u64, on_wire: usize, now: Tick) -> bool {
        (self.cap, self.open, self.last) = (Some(1), on_wire, None);
        let tries_max = if self.takes { TRIES_OF_TOO_MUCH } else { u32::MAX };
        self.suspected(id, device, tries_max, now).is_none()
    }

    fn suspected(&mut self, id: u16, device: u64, tries_max: u32, now: Tick) -> Option<u16> {
        let offences = self.offenders.iter().find(|(offender, _)| *offender == device).map_or(0, |(_, count)| *count);
        let at = self.suspects.iter().position(|suspect| suspect.id == id).unwrap_or_else(|| {
            self.suspects.push(Suspect { id, device, tries: 0, excuses: 0, excused: false, not_before: now });
            self.suspects.len() - 1
        });
        let suspect = &mut self.suspects[at];
        if std::mem::take(&mut suspect.excused) && suspect.excuses < EXCUSES_MAX {
            suspect.excuses += 1;
        } else {
            suspect.tries += 1;
        }
        let doubled = PAUSE.saturating_mul(1 << (suspect.tries.saturating_sub(1) + offences).min(16));
        suspect.not_before = now.plus(doubled.min(PAUSE_MAX));
        let tries_max = if offences > 0 && self.takes { tries_max.min(TRIES_OF_AN_OFFENDER) } else { tries_max };
        if suspect.tries < tries_max {
            return None;
        }
        self.suspects.remove(at);
        self.takes = false;
        self.open = self.open.saturating_sub(1);
        self.offended(device);
        Some(id)
    }

    fn offended(&mut self, device: u64) {
        let known = self.offenders.iter().position(|(offender, _)| *offender == device);
        let before = known.map_or(0, |at| self.offenders.remove(at).1);
        if self.offenders.len() == OFFENDERS_MAX {
            self.offenders.remove(0);
        }
        self.offenders.push((device, before + 1));
    }

    fn of_device(&self, device: u64) -> Option<&Suspect> {
        self.suspects.iter().find(|suspect| suspect.device == device)
    }

    fn suspects_last(&self) -> bool {
        self.last.is_some_and(|last| self.suspects.iter().any(|suspect| suspect.id == last))
    }
}

/// See [`Doubt::pass`].
pub(super) const PASSES: u8 = 4;

/// With the pauses between them seven seconds: a hub that restarts, or throttles, is back by then.
const TRIES: u32 = 4;
/// With the pauses between them two minutes.
const TRIES_OF_A_HUB_THAT_TAKES_NOTHING: u32 = 8;
/// Refused for its device's quota while others are taken.
const TRIES_OF_TOO_MUCH: u32 = 8;
/// After a first message of its device was given up. Its pauses double with each: the others are not disturbed for long.
const TRIES_OF_AN_OFFENDER: u32 = 2;
/// A hub that closes on this and on that would otherwise keep a message for ever.
const EXCUSES_MAX: u32 = 8;
/// Before the second try; doubled before each that follows.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Devices that are remembered.
const OFFENDERS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn alone() -> Closed {
        Closed { on_wire: 1, device: 7, begun: true }
    }

    /// A doubt after the hub closed on a window of ten.
    fn after_a_close() -> Doubt {
        let mut doubt = Doubt::default();
        doubt.answered(1);
        assert_eq!(doubt.closed(Closed { on_wire: 10, ..alone() }, Tick(0)), None);
        doubt
    }

    fn tried(doubt: &mut Doubt, id: u16, device: u64, now: u64) -> Option<u16> {
        doubt.sends(Some(id));
        doubt.closed(Closed { device, ..alone() }, Tick(now))
    }

    #[test]
    fn after_a_close_one_goes_out_and_then_twice_as_many_each_round_trip() {
        let mut doubt = after_a_close();
        let (mut sent, mut rounds) = (0_u16, vec![]);
        while doubt.is_on() {
            let mut on_wire = 0;
            while doubt.next(Some((sent, 7)), on_wire, Tick(0)) == Next::Send && sent < 15 {
                doubt.sends(Some(sent));
                (sent, on_wire) = (sent + 1, on_wire + 1);
            }
            rounds.push(on_wire);
            (0..on_wire).for_each(|id| doubt.answered(id as u16));
        }
        assert_eq!(rounds, [1, 2, 4, 8]);
        assert_eq!(doubt.next(Some((1, 7)), 1_000, Tick(0)), Next::Send);
    }

    #[test]
    fn a_suspect_is_tried_alone_after_a_pause_that_doubles_and_then_given_up() {
        let mut doubt = after_a_close();
        let (mut now, mut pauses) = (0, vec![]);
        while tried(&mut doubt, 5, 7, now).is_none() {
            let from = now;
            while doubt.next(Some((5, 7)), 0, Tick(now)) == Next::Held {
                now += 100;
            }
            pauses.push(now - from);
        }
        assert_eq!(pauses, [1_000, 2_000, 4_000]);
        assert!(!doubt.holds(7));
        // Its device's next is given up sooner, after a longer pause.
        doubt.answered(9);
        doubt.closed(Closed { on_wire: 3, ..alone() }, Tick(now));
        assert_eq!((tried(&mut doubt, 6, 7, now), doubt.pass(7, Tick(now + 1_999))), (None, 2));
        assert_eq!(tried(&mut doubt, 6, 7, now + 2_000), Some(6));
    }

    #[test]
    fn a_hub_that_takes_nothing_else_is_given_more_time() {
        let mut doubt = after_a_close();
        (doubt.takes, doubt.offenders) = (false, vec![]);
        let tries = (0..).take_while(|n| tried(&mut doubt, 5, 7, n * 100_000).is_none()).count();
        assert_eq!(tries as u32 + 1, TRIES_OF_A_HUB_THAT_TAKES_NOTHING);
    }

    #[test]
    fn others_do_not_wait_for_suspects_and_these_wait_for_an_empty_wire() {
        let mut doubt = after_a_close();
        tried(&mut doubt, 5, 7, 0);
        tried(&mut doubt, 6, 8, 0);
        assert_eq!([7, 8, 9].map(|device| doubt.pass(device, Tick(10))), [2, 2, 0]);
        assert_eq!(doubt.next(Some((1, 9)), 0, Tick(10)), Next::Send);
        doubt.sends(Some(1));
        doubt.answered(1);
        doubt.sends(Some(2));
        assert_eq!(doubt.next(Some((3, 9)), 1, Tick(1_000)), Next::Send);
        assert_eq!(doubt.next(Some((5, 7)), 1, Tick(1_000)), Next::Wait);
        doubt.answered(2);
        assert_eq!(doubt.next(Some((9, 7)), 0, Tick(1_000)), Next::Held, "behind its device's suspect");
        assert_eq!(doubt.next(Some((5, 7)), 0, Tick(1_000)), Next::Send);
        doubt.sends(Some(5));
        assert_eq!(doubt.next(Some((3, 9)), 1, Tick(1_000)), Next::Wait, "nothing stands beside it");
        doubt.answered(5);
        assert!(!doubt.holds(7) && doubt.holds(8), "the hub took it");
    }

    #[test]
    fn while_the_hub_closes_on_others_as_well_a_try_does_not_count() {
        let mut doubt = after_a_close();
        let mut tries = 0;
        for round in 0..20 {
            // Each time somebody else as well.
            assert_eq!(tried(&mut doubt, 100 + round, 100 + u64::from(round), 100_000 * u64::from(round)), None);
            tries += 1;
            if tried(&mut doubt, 5, 7, 100_000 * u64::from(round)).is_some() {
                break;
            }
            // That one the hub takes.
            doubt.answered(100 + round);
        }
        assert_eq!(tries, EXCUSES_MAX + TRIES);
    }

    #[test]
    fn what_may_have_been_another_message_is_held_against_none() {
        for closed in
            [Closed { on_wire: 2, ..alone() }, Closed { begun: false, ..alone() }, Closed { on_wire: 0, ..alone() }]
        {
            let mut doubt = after_a_close();
            for _ in 0..20 {
                doubt.sends(Some(5));
                assert_eq!(doubt.closed(closed, Tick(0)), None);
                assert!(!doubt.holds(7));
            }
        }
        let mut doubt = after_a_close();
        for _ in 0..20 {
            doubt.sends(None);
            assert_eq!(tried(&mut doubt, 5, 7, 0), None, "the one of QoS 0 before it");
        }
        assert!(!doubt.holds(7));
    }

    #[test]
    fn too_much_is_tried_again_for_as_long_as_nothing_is_taken_and_bounded_where_others_are() {
        let mut doubt = Doubt::default();
        assert!((0..100).all(|_| doubt.too_much(5, 7, 3, Tick(0))));
        let mut doubt = after_a_close();
        let again = (0..20).take_while(|_| doubt.too_much(5, 7, 3, Tick(0))).count();
        assert_eq!(again as u32, TRIES_OF_TOO_MUCH - 1);
    }
}
