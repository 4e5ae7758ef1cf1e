//! What is in flight: a slab whose index is the packet id towards the hub.

use std::collections::VecDeque;

use super::{SessionRef, log::Position};
use crate::{route::Ack, time::Tick};

/// A message that the hub has not acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    /// Whom to tell; nobody where it is told already, or elsewhere (see [`DiskRef`]).
    pub(super) owed: Option<Owed>,
    pub(super) ack: Ack,
    /// Hash of the device's id.
    pub(super) device: u64,
    /// Its record, where there is one.
    pub(super) disk: Option<DiskRef>,
    /// Where its frame lies in the log.
    pub(super) at: Position,
    pub(super) len: usize,
    pub(super) offered: Tick,
    /// Milliseconds of the wall clock; of a message that waited on the disk earlier than `offered`.
    pub(super) received_ms: u64,
    /// When its Message Expiry Interval has passed.
    pub(super) expires_at: Option<Tick>,
    /// An earlier connection had a byte of it.
    pub(super) resent: bool,
}

/// A device that waits for its PUBACK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Owed {
    pub(super) session: SessionRef,
    /// The device's packet id.
    pub(super) packet_id: u16,
}

/// A message's record in the spool. What is owed for it is kept with the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DiskRef {
    /// Place of its queue.
    pub(super) queue: u16,
    /// Its number there.
    pub(super) number: u64,
    /// The group that it was recorded in; 0 where it was read back.
    pub(super) group: u64,
    /// Its place in the group.
    pub(super) entry: u32,
    /// Bytes of the record.
    pub(super) len: u32,
}

/// See the module. Packet ids are 1 to the window; the one that was free longest is taken first, so that an
/// acknowledgement that comes twice finds no other message under its id.
pub(super) struct Slots {
    slots: Vec<Option<Slot>>,
    free: VecDeque<u16>,
    window: u16,
    /// How many have no record.
    unrecorded: usize,
}

impl Slots {
    pub(super) fn new(window: u16) -> Self {
        Self { slots: vec![], free: VecDeque::new(), window, unrecorded: 0 }
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
        let is_unrecorded = slot.disk.is_none();
        if let Some(place) = self.place_mut(id) {
            *place = Some(slot);
            self.unrecorded += usize::from(is_unrecorded);
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
        if let Some(slot) = &slot {
            self.unrecorded -= usize::from(slot.disk.is_none());
            self.free.push_back(id);
        }
        slot
    }

    /// All that are in flight.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().flatten()
    }

    /// Whether any is without a record.
    pub(super) fn any_unrecorded(&self) -> bool {
        self.unrecorded > 0
    }

    /// The slot has a record from here on.
    pub(super) fn record(&mut self, id: u16, disk: DiskRef) {
        if let Some(slot) = self.get_mut(id)
            && slot.disk.replace(disk).is_none()
        {
            self.unrecorded -= 1;
        }
    }

    /// Those that are meant: packet id, and where the frame lies.
    pub(super) fn ids_where(&self, is_meant: impl Fn(&Slot) -> bool) -> Vec<(u16, Position)> {
        let meant =
            (1..).zip(&self.slots).filter_map(|(id, slot)| Some((id, slot.as_ref().filter(|s| is_meant(s))?.at)));
        meant.collect()
    }

    fn place_mut(&mut self, id: u16) -> Option<&mut Option<Slot>> {
        self.slots.get_mut(usize::from(id).checked_sub(1)?)
    }
}
