//! [`Link`] where it looks for the message that its hub closes on: see [`Doubt`](super::doubt::Doubt).

use super::{
    Link, LinkOutput, Refusal,
    doubt::{Closed, Next, PASSES},
    settling::{Kept, not_taken},
    slots::Slot,
};
use crate::time::Tick;

impl Link {
    /// Whether the next message of the log may be sent; it is sent then.
    pub(super) fn is_next_sent(&mut self, now: Tick) -> bool {
        loop {
            let Some(frame) = self.log.next_to_permit() else {
                if self.on_wire == 0 {
                    self.doubt.ends();
                }
                return false;
            };
            let id = frame.packet_id();
            let of = id.and_then(|id| Some((id, self.slots.get(id)?.device)));
            match self.doubt.next(of, self.on_wire, now) {
                Next::Send => {
                    self.doubt.sends(id);
                    return true;
                }
                Next::Held if self.arrange(now) => {}
                Next::Held | Next::Wait => return false,
            }
        }
    }

    /// Those whose turn it is come to the front of the log, while nothing is on its way. Whether anything has changed
    /// since it was last done.
    fn arrange(&mut self, now: Tick) -> bool {
        if self.on_wire > 0 || !self.log.unsent().is_empty() || self.arranged == (self.log.end(), self.doubt.due(now)) {
            return false;
        }
        let Self { slots, log, doubt, .. } = self;
        log.rebuild(PASSES, |pass, old| {
            let Some(id) = old.frame.packet_id() else {
                return (pass == PASSES - 1 && !old.finished).then_some(old.frame.first_byte());
            };
            let slot = slots.get_mut(id).filter(|slot| slot.at == old.was && doubt.pass(slot.device, now) == pass)?;
            slot.at = old.becomes;
            Some(old.frame.first_byte())
        });
        self.arranged = (self.log.end(), self.doubt.due(now));
        true
    }

    /// The hub closed the connection: what stood alone on it may be given up.
    pub(super) fn closed(&mut self, out: &mut LinkOutput, now: Tick) {
        let last = self.doubt.last().and_then(|id| self.slots.get(id));
        let (device, begun) = last.map_or((0, false), |slot| (slot.device, self.log.was_sent(slot.at, 1)));
        let begun = begun && self.subscriptions.unanswered() == 0;
        let Some(id) = self.doubt.closed(Closed { on_wire: self.on_wire, device, begun }, now) else { return };
        if let Some(slot) = self.slots.free(id) {
            self.give_up(&slot, Refusal::Closed, out, now);
            self.log.release(slot.at);
        }
    }

    pub(super) fn give_up(&mut self, slot: &Slot, why: Refusal, out: &mut LinkOutput, now: Tick) {
        let (frame, version) = (self.log.frame_at(slot.at), self.client.version());
        let kept = Kept { frame, version, received_ms: slot.received_ms };
        not_taken(slot, why, kept, &mut self.backlog, out, now);
    }
}
