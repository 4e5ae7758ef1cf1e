//! When a link goes to the disk and when it comes back: [`Link`] where it concerns the spool.
//!
//! *Direct* while the hub acknowledges in time: nothing is written. When it is away, or acknowledges later than
//! `spill_after`, or somebody has waited that long for a place in the window, everything that is pending is recorded in
//! its order, and everything new behind it. What is in the window stays in flight; what waits is fed to it, from the disk
//! and at the end from memory; when nothing waits, the link is direct again.

use std::{borrow::Cow, collections::VecDeque, sync::Arc, time::Duration};

use super::{
    Link, LinkOutput, Refusal, SessionRef,
    aging::{Aged, aged, as_received, ends_at},
    backlog::{Backlog, Fed, Hub, Recorded},
    log::{Log, Position, PublishFrame, Share},
    slots::{DiskRef, Slot, Slots},
    spool::{Batch, Fetched, Record, StreamId, Wanted},
};
use crate::{
    packet::{ProtocolVersion, Publish, PublishRef, QoS, parse_publish, write_publish},
    route::Ack,
    session::client::Client,
    time::Tick,
};

/// When to go to the disk.
pub(super) struct Spilling {
    /// Fixed by the configuration.
    after: Option<Duration>,
    /// Eighths of a millisecond: smoothed time from an offer to the hub's acknowledgement.
    round_trip: Option<u64>,
    /// The hub is away since then; none: it is there.
    away: Option<Tick>,
    /// The wall clock's milliseconds at tick 0.
    epoch_ms: u64,
    /// No pending message is older than this.
    oldest: Tick,
}

impl Spilling {
    pub(super) fn new(after: Option<Duration>) -> Self {
        Self { after, round_trip: None, away: Some(Tick::default()), epoch_ms: 0, oldest: Tick::default() }
    }

    /// The wall clock at `now`, as it was last told.
    pub(super) fn wall_ms(&self, now: Tick) -> u64 {
        self.epoch_ms + now.0
    }

    /// The hub acknowledged a message so long after it was offered.
    #[inline]
    pub(super) fn measure(&mut self, took: Duration) {
        let sample = u64::try_from(took.as_millis()).unwrap_or(u64::MAX / 8);
        self.round_trip = Some(self.round_trip.map_or(sample * 8, |smoothed| smoothed - smoothed / 8 + sample));
    }

    /// The connection is lost; since when, the next tick knows.
    pub(super) fn down(&mut self) {
        self.away.get_or_insert(Tick(u64::MAX));
    }

    pub(super) fn up(&mut self) {
        self.away = None;
    }

    /// How late the hub may be.
    fn after(&self) -> Duration {
        self.after.unwrap_or_else(|| {
            let round_trip = Duration::from_millis(self.round_trip.unwrap_or(0) / 8);
            (round_trip * ROUND_TRIPS).clamp(SPILL_AFTER_MIN, SPILL_AFTER_MAX)
        })
    }
}

impl Link {
    /// What the clock has to do with the spool. `wall_ms` is the wall clock, `free` what the spool still takes.
    pub fn spool_tick(&mut self, wall_ms: u64, free: u64, out: &mut LinkOutput, now: Tick) {
        self.spilling.epoch_ms = wall_ms.saturating_sub(now.0);
        if let Some(away) = &mut self.spilling.away {
            *away = (*away).min(now);
        }
        let Some(backlog) = &mut self.backlog else { return };
        backlog.set_free(free);
        if backlog.may_spill() && self.is_late(now) {
            self.spill();
        }
        self.set_aside_old(out, now);
        self.feed(out, now);
    }

    /// The session offers nothing more: it waits for no place, in the window or on the disk. What it has offered is
    /// settled as before.
    pub fn gives_up(&mut self, who: SessionRef) {
        self.turns.forget(who);
        if let Some(backlog) = &mut self.backlog {
            backlog.forget(who);
        }
    }

    /// What is to be appended to the spool next.
    pub fn spool_batch(&mut self, now: Tick) -> Option<Arc<Batch>> {
        self.backlog.as_mut()?.batch(now)
    }

    /// The batch that was handed over is on the disk, or it is not.
    pub fn spool_stored(&mut self, result: Result<(), &'static str>, out: &mut LinkOutput, now: Tick) {
        let hub = self.hub();
        if let Some(backlog) = &mut self.backlog {
            backlog.stored(result, hub, out, now);
        }
        self.feed(out, now);
    }

    /// Which parts of the spool are to be read next.
    pub fn spool_wanted(&mut self, now: Tick) -> Option<Vec<Wanted>> {
        let (hub, wall_ms) = (self.hub(), self.spilling.wall_ms(now));
        self.backlog.as_mut()?.wanted(hub, wall_ms, now)
    }

    /// What was asked for was read, or could not be, each queue for itself.
    pub fn spool_read(&mut self, fetched: Vec<Fetched>, out: &mut LinkOutput, now: Tick) {
        let wall_ms = self.spilling.wall_ms(now);
        if let Some(backlog) = &mut self.backlog {
            backlog.fetched(fetched, wall_ms, out, now);
        }
        self.feed(out, now);
    }

    /// A message that was set aside under `id` is to wait for the hub again, behind what waits already. One that is too
    /// old waits as if it had just come: `age_max` counts from here. `false`: there is no room for it now.
    pub fn try_again(&mut self, record: &Record<'_>, id: u64, now: Tick) -> bool {
        if self.backlog.as_ref().is_some_and(|backlog| backlog.may_spill()) {
            self.spill();
        }
        let Some(backlog) = self.backlog.as_mut().filter(|backlog| !backlog.is_direct()) else { return false };
        let wall_ms = self.spilling.wall_ms(now);
        let (record, properties) = match backlog.is_old(record.received_ms, wall_ms) {
            true => come_anew(record, wall_ms),
            false => (Record { why: None, ..*record }, record.properties.into()),
        };
        let record = Record { properties: &properties, ..record };
        backlog.record_again(&Recorded { record, ack: Ack::Durable, owed: None, offered: now }, id)
    }

    /// Messages that are set aside no longer, and of which hub.
    pub fn spool_again(&mut self) -> Option<(u16, Vec<u64>)> {
        let backlog = self.backlog.as_mut()?;
        let ids = backlog.take_again();
        (!ids.is_empty()).then(|| (backlog.upstream(), ids))
    }

    /// What the spool need not keep any more.
    pub fn spool_acknowledgements(&mut self) -> impl Iterator<Item = (StreamId, u64)> {
        self.backlog.iter_mut().filter(|backlog| backlog.has_acknowledgements()).flat_map(|b| b.acknowledgements())
    }

    /// Whether there is anything to tell the spool, or to ask of it.
    pub fn has_spool_work(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| !backlog.is_direct() || backlog.has_acknowledgements())
    }

    /// Whether messages go to the disk.
    pub fn is_spooling(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| !backlog.is_direct())
    }

    /// Why messages were set aside since it was last asked.
    pub fn take_set_aside(&mut self) -> Vec<Refusal> {
        self.backlog.as_mut().map_or_else(Vec::new, |backlog| backlog.take_set_aside())
    }

    /// Messages that wait on the disk, or on their way to it, for a place in the window.
    pub fn spooled(&self) -> u64 {
        self.backlog.as_ref().map_or(0, |backlog| backlog.waiting())
    }

    /// Messages that a device waits for.
    pub fn owed(&self) -> usize {
        let of_window = self.slots.iter().filter(|slot| slot.owed.is_some()).count();
        of_window + self.backlog.as_ref().map_or(0, |backlog| backlog.owed())
    }

    /// Whether a device waits because it has its share of the room that the spool has left.
    pub fn spool_holds_back(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.holds_back())
    }

    /// What the disk refused, while it does.
    pub fn spool_refused(&self) -> Option<&'static str> {
        self.backlog.as_ref().and_then(|backlog| backlog.refused())
    }

    /// The hub is away, or a message or a session has waited for too long.
    fn is_late(&mut self, now: Tick) -> bool {
        let after = self.spilling.after();
        let late = |since: Tick| now.since(since) >= after;
        if self.spilling.away.is_some_and(late) || self.turns.first().is_some_and(|turn| late(turn.since)) {
            return true;
        }
        if !late(self.spilling.oldest) {
            return false;
        }
        // Those that were offered since are younger: it is not asked again before they can be late.
        let pending = self.slots.iter().filter(|slot| slot.owed.is_some() && slot.ack != Ack::Hub);
        let oldest = pending.map(|slot| slot.offered).min().unwrap_or(now);
        self.spilling.oldest = oldest;
        late(oldest)
    }

    /// Everything that is pending is recorded, in its order.
    fn spill(&mut self) {
        let Self { log, slots, backlog, client, .. } = self;
        let Some(backlog) = backlog else { return };
        record_slots(slots.ids_where(|slot| slot.disk.is_none()), log, slots, backlog, client.version());
        backlog.begin_spooling();
    }

    /// What has waited for longer than `age_max` is set aside, also while the hub is away: on the disk, and then in the
    /// window.
    fn set_aside_old(&mut self, out: &mut LinkOutput, now: Tick) {
        let (hub, wall_ms) = (self.hub(), self.spilling.wall_ms(now));
        let Some(backlog) = self.backlog.as_mut().filter(|backlog| backlog.ages()) else { return };
        backlog.set_aside_old(wall_ms, out, now);
        // The hub may be about to answer for what it was sent.
        if hub == Hub::Up || backlog.is_direct() || backlog.is_crowded() {
            return;
        }
        let mut old = self.slots.ids_where(|slot| backlog.is_old(slot.received_ms, wall_ms));
        old.sort_unstable_by_key(|(_, at)| *at);
        for (id, at) in old {
            if self.backlog.as_ref().is_some_and(|backlog| backlog.is_crowded()) {
                return;
            }
            if let Some(slot) = self.slots.free(id) {
                self.doubt.forgets(id);
                self.give_up(&slot, Refusal::TooOld, out, now);
                self.log.release(at);
            }
        }
    }

    fn hub(&self) -> Hub {
        if self.client.is_up() { Hub::Up } else { Hub::Away }
    }

    /// What waits takes the places that are free.
    pub(super) fn feed(&mut self, out: &mut LinkOutput, now: Tick) {
        let packet_bytes_max = self.packet_bytes_max();
        let Self { log, slots, turns, backlog, client, spilling, doubt, ends, .. } = self;
        let Some(backlog) = backlog.as_mut().filter(|backlog| !backlog.is_direct() && client.is_up()) else { return };
        let wall_ms = spilling.wall_ms(now);
        let mut take = |record: &Record<'_>, disk| match doubt.holds(record.device) {
            true => Fed::Held,
            false => take(record, disk, (log, slots, client, ends), packet_bytes_max, (wall_ms, now)),
        };
        backlog.feed(wall_ms, &mut take, out, now);
        // While the hub is as late as it was, the next message would only wait until it is spilled as well.
        let after = spilling.after();
        let is_prompt = || slots.iter().all(|slot| now.since(slot.offered) < after);
        if backlog.waiting() == 0 && is_prompt() && backlog.end_spooling() {
            // Those who wait for the spool find the window again.
            for who in backlog.held() {
                turns.enqueue(who, 0, Share::Whole, now);
            }
            spilling.oldest = now;
        }
        self.permit(now);
    }
}

/// Records messages that have their place in the window, in their order.
pub(super) fn record_slots(
    mut unrecorded: Vec<(u16, Position)>,
    log: &Log,
    slots: &mut Slots,
    backlog: &mut Backlog,
    version: ProtocolVersion,
) {
    unrecorded.sort_unstable_by_key(|(_, at)| *at);
    for (id, at) in unrecorded {
        let Some(slot) = slots.get_mut(id) else { continue };
        let publish = read_back(log.frame_at(at), version);
        let properties = as_received(publish.properties, slot.expires_at, slot.offered);
        let record = Record { properties: &properties, ..record_again(&publish, slot.device, slot.received_ms) };
        let (ack, owed, offered) = (slot.ack, slot.owed.take(), slot.offered);
        slots.record(id, backlog.record_in_window(&Recorded { record, ack, owed, offered }));
    }
}

/// Gives a record a place in the window.
fn take(
    record: &Record<'_>,
    disk: DiskRef,
    (log, slots, client, ends): (&mut Log, &mut Slots, &Client, &mut VecDeque<(Position, Tick)>),
    packet_bytes_max: usize,
    (wall_ms, now): (u64, Tick),
) -> Fed {
    let version = client.version();
    let Aged::Still(properties) = aged(record.properties, wall_ms.saturating_sub(record.received_ms)) else {
        return Fed::Expired;
    };
    let properties = [&*properties];
    let mut publish = Publish {
        dup: false,
        qos: if record.at_least_once { QoS::AtLeastOnce } else { QoS::AtMostOnce },
        retain: record.retain && client.agreed().retain_available,
        topic: record.topic,
        packet_id: 0,
        properties: &properties,
        payload: record.payload,
    };
    let len = publish.encoded_len(version);
    if len > packet_bytes_max {
        return Fed::NeverFits;
    }
    if !log.fits(len, Share::Whole) || slots.places() == 0 {
        return Fed::Full;
    }
    let expires_at = ends_at(version, properties[0], now);
    if publish.qos == QoS::AtMostOnce {
        let at = log.append(len, |frames| _ = write_publish(frames, version, &publish));
        ends.extend(expires_at.map(|ends| (at, ends)));
        return Fed::Gone;
    }
    let Some(id) = slots.take_id() else { return Fed::Full };
    publish.packet_id = id;
    let at = log.append(len, |frames| _ = write_publish(frames, version, &publish));
    log.retain(at);
    let (device, disk, received_ms) = (record.device, Some(disk), record.received_ms);
    ends.extend(expires_at.map(|ends| (at, ends)));
    let (owed, ack, offered, resent) = (None, Ack::Durable, now, false);
    slots.fill(id, Slot { owed, ack, device, disk, at, len, offered, received_ms, expires_at, resent });
    Fed::Window
}

/// A message as a record. The properties are joined already.
pub(super) fn record_of<'a>(publish: &Publish<'a>, properties: &'a [u8], device: u64, received_ms: u64) -> Record<'a> {
    Record {
        at_least_once: publish.qos != QoS::AtMostOnce,
        retain: publish.retain,
        received_ms,
        device,
        topic: publish.topic,
        properties,
        payload: publish.payload,
        why: None,
    }
}

/// A message that was read back from the log, as a record.
pub(super) fn record_again<'a>(publish: &PublishRef<'a>, device: u64, received_ms: u64) -> Record<'a> {
    Record {
        at_least_once: publish.qos != QoS::AtMostOnce,
        retain: publish.retain,
        received_ms,
        device,
        topic: std::str::from_utf8(publish.topic).expect("invariant: the log holds topics that were checked"),
        properties: publish.properties,
        payload: publish.payload,
        why: None,
    }
}

/// A message that was set aside, as one that is received at `wall_ms`, and its properties with what is left of its time.
/// One whose time is over stays as it was, and is dropped in its turn.
pub(super) fn come_anew<'a>(record: &Record<'a>, wall_ms: u64) -> (Record<'a>, Cow<'a, [u8]>) {
    match aged(record.properties, wall_ms.saturating_sub(record.received_ms)) {
        Aged::Still(properties) => (Record { why: None, received_ms: wall_ms, ..*record }, properties),
        Aged::Expired => (Record { why: None, ..*record }, record.properties.into()),
    }
}

pub(super) fn read_back(frame: PublishFrame<'_>, version: ProtocolVersion) -> PublishRef<'_> {
    parse_publish(frame.frame(), version).expect("invariant: the log holds whole frames of our own")
}

/// All properties in one piece; none where the hub has no word for them.
pub(super) fn joined(version: ProtocolVersion, properties: &[&[u8]]) -> Vec<u8> {
    if version == ProtocolVersion::V5_0 { properties.concat() } else { Vec::new() }
}

/// Bytes of [`joined`].
pub(super) fn properties_len(version: ProtocolVersion, properties: &[&[u8]]) -> usize {
    if version == ProtocolVersion::V5_0 { properties.iter().map(|piece| piece.len()).sum() } else { 0 }
}

/// `spill_after = "auto"`: so many round trips, within bounds.
const ROUND_TRIPS: u32 = 4;
/// Below it, a hub on the same machine that is busy for a moment would cause disk writes.
const SPILL_AFTER_MIN: Duration = Duration::from_millis(250);
/// Above it, devices with a short patience would send again.
const SPILL_AFTER_MAX: Duration = Duration::from_secs(2);
