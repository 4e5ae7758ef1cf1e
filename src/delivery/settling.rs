//! What becomes of a message when its hub has answered for it, or never will.

use super::{
    LinkOutput, Refusal,
    backlog::Backlog,
    log::PublishFrame,
    slots::Slot,
    spooling::{read_back, record_again},
};
use crate::{packet::ProtocolVersion, route::Ack, time::Tick};

/// A message as the log holds it, to be read when it must be kept.
#[derive(Clone, Copy)]
pub(super) struct Kept<'a> {
    pub(super) frame: PublishFrame<'a>,
    pub(super) version: ProtocolVersion,
    pub(super) received_ms: u64,
}

/// The hub has the message: whoever waits is told, and its record is done with.
#[inline]
pub(super) fn taken(slot: &Slot, backlog: &mut Option<Box<Backlog>>, out: &mut LinkOutput, now: Tick) {
    out.forwarded += 1;
    let owed = match (slot.disk, backlog) {
        (Some(disk), Some(backlog)) => backlog.taken_by_hub(disk, slot.device),
        _ => slot.owed,
    };
    if let Some(owed) = owed {
        out.settled.push(owed.settled(Ok(()), slot.offered, now));
    }
}

/// The hub will not have it. Where the hub alone is its witness the device is told so; otherwise the message is set
/// aside, and the device is told that it is safe when that is on the disk.
pub(super) fn not_taken(
    slot: &Slot,
    why: Refusal,
    kept: Kept<'_>,
    backlog: &mut Option<Box<Backlog>>,
    out: &mut LinkOutput,
    now: Tick,
) {
    let owed = match backlog {
        Some(backlog) if slot.disk.is_some() || slot.ack != Ack::Hub => {
            let publish = read_back(kept.frame, kept.version);
            let record = record_again(&publish, slot.device, kept.received_ms);
            backlog.not_taken(slot, &record, why)
        }
        _ => slot.owed,
    };
    if let Some(owed) = owed {
        out.settled.push(owed.settled(Err(why), slot.offered, now));
    }
}
