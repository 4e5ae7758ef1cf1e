//! What is in flight: a slab whose index is the packet id towards the hub.

use std::collections::VecDeque;

use super::{SessionRef, log::Position};
use crate::time::Tick;

/// A message that the hub has not acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub(super) session: SessionRef,
    /// The device's packet id.
    pub(super) packet_id: u16,
    /// Where its frame lies in the log.
    pub(super) at: Position,
    pub(super) len: usize,
    pub(super) offered: Tick,
    /// An earlier connection had a byte of it.
    pub(super) resent: bool,
}

/// See the module. Packet ids are 1 to the window; the one that was free longest is taken first, so that an
/// acknowledgement that comes twice finds no other message under its id.
pub(super) struct Slots {
    slots: Vec<Option<Slot>>,
    free: VecDeque<u16>,
    window: u16,
}

impl Slots {
    pub(super) fn new(window: u16) -> Self {
        Self { slots: vec![], free: VecDeque::new(), window }
    }

    /// How many are in flight.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many more may be.
    pub(super) fn places(&self) -> usize {
        usize::from(self.window) - self.len()
    }

    /// A packet id for one more; none when the window is full.
    pub(super) fn take_id(&mut self) -> Option<u16> {
        if self.slots.len() < usize::from(self.window) {
            self.slots.push(None);
            return u16::try_from(self.slots.len()).ok();
        }
        self.free.pop_front()
    }

    /// Fills the slot whose id was taken.
    pub(super) fn fill(&mut self, id: u16, slot: Slot) {
        if let Some(place) = self.place_mut(id) {
            *place = Some(slot);
        }
    }

    pub(super) fn get(&self, id: u16) -> Option<&Slot> {
        self.slots.get(usize::from(id).checked_sub(1)?)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: u16) -> Option<&mut Slot> {
        self.place_mut(id)?.as_mut()
    }

    /// Empties the slot and frees its id.
    pub(super) fn free(&mut self, id: u16) -> Option<Slot> {
        let slot = self.place_mut(id)?.take();
        if slot.is_some() {
            self.free.push_back(id);
        }
        slot
    }

    fn place_mut(&mut self, id: u16) -> Option<&mut Option<Slot>> {
        self.slots.get_mut(usize::from(id).checked_sub(1)?)
    }
}
