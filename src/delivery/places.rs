//! Room for one more message: a place in the window and bytes in the log, in turn.

use super::{
    Offer, SessionRef,
    log::{Log, Share},
    slots::Slots,
    turns::Turns,
};
use crate::{session::client::Client, time::Tick};

/// A packet id for a message of QoS 1, if there is a place for it: promised to the session, or free while nobody waits.
#[inline]
pub(super) fn place_in_window(
    log: &Log,
    turns: &mut Turns,
    slots: &mut Slots,
    (from, len): (SessionRef, usize),
    now: Tick,
) -> Option<u16> {
    let promised = turns.promised_to(from) > 0 && slots.places() > 0;
    let free = turns.is_empty() && slots.places() > turns.promised();
    if !(promised || free) || !log.fits(len, Share::Whole) {
        turns.enqueue(from, len, Share::Whole, now);
        return None;
    }
    if promised {
        turns.redeem(from);
    }
    slots.take_id()
}

/// QoS 0 needs no place in the window, but room in the log, and never passes an earlier message of its session.
pub(super) fn room_for_most_once(
    log: &Log,
    turns: &mut Turns,
    client: &Client,
    (from, len): (SessionRef, usize),
    now: Tick,
) -> Result<(), Offer> {
    let fits = log.fits(len, Share::Half);
    if fits && !turns.is_queued(from) {
        return Ok(());
    }
    if !fits && !client.is_up() {
        return Err(Offer::Dropped("hub_away"));
    }
    turns.enqueue(from, len, Share::Half, now);
    Err(Offer::Wait)
}
