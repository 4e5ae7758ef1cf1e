//! From the queues to the window: what waits takes its places, queue by queue, in equal shares of bytes. Who begins to
//! wait has its share of the round at once: behind a long backlog of others a live message goes on.

use super::{Ack, Aside, Backlog, DiskRef, LinkOutput, QUANTUM, Record, Refusal, Tick, parse_record, take_bytes};

/// What became of a record that was offered to the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::delivery) enum Fed {
    /// It has a place; QoS 0: it is as good as sent.
    Window,
    /// It is done with: QoS 0.
    Gone,
    /// Its time was over: it is done with.
    Expired,
    /// There is no place.
    Full,
    /// The hub does not take it.
    NeverFits,
    /// Its device is held, others are not.
    Held,
}

/// Gives a record a place in the window, or says why not.
type Take<'t> = dyn FnMut(&Record<'_>, DiskRef) -> Fed + 't;

/// What became of a queue's turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Served {
    /// There was nothing that could be sent.
    Nothing,
    /// Something was sent, or its share of this round is used up.
    Some,
    /// There is no place for more: it is still its turn.
    Full,
}

impl Backlog {
    /// Offers what waits to the window, queue by queue, in equal shares of bytes.
    pub(in crate::delivery) fn feed(&mut self, wall_ms: u64, take: &mut Take<'_>, out: &mut LinkOutput, now: Tick) {
        if self.waiting == 0 {
            return;
        }
        while let Some(place) = self.fresh.front().copied() {
            if self.serve(place.into(), wall_ms, take, out, now) == Served::Full {
                return;
            }
            self.fresh.pop_front();
            self.queues[usize::from(place)].is_fresh = false;
        }
        let (mut idle, count) = (0, self.queues.len());
        while idle < count && self.read_bytes > 0 {
            let place = self.turn % count;
            // Its share is given when its turn comes, and not again for as long as it waits for places.
            if !std::mem::replace(&mut self.has_share, true) {
                let queue = &mut self.queues[place];
                queue.credit = (queue.credit + QUANTUM as i64).min(QUANTUM as i64);
            }
            match self.serve(place, wall_ms, take, out, now) {
                Served::Nothing => idle += 1,
                Served::Some => idle = 0,
                Served::Full => return,
            }
            self.turn = self.turn.wrapping_add(1);
            self.has_share = false;
        }
        if self.unread == 0 && self.read_bytes == 0 {
            self.feed_from_memory(take);
        }
    }

    /// Offers what a queue may send in this round.
    fn serve(&mut self, place: usize, wall_ms: u64, take: &mut Take<'_>, out: &mut LinkOutput, now: Tick) -> Served {
        let mut served = Served::Nothing;
        loop {
            let is_crowded = self.is_crowded();
            let Some((record, len)) = self.first_of(place) else { return served };
            if self.queues[place].credit <= 0 {
                return Served::Some;
            }
            let (device, received_ms) = (record.device, record.received_ms);
            let disk = self.disk_of_first(place, len);
            let is_old = self.is_old(received_ms, wall_ms);
            match if is_old { Fed::NeverFits } else { take(&record, disk) } {
                Fed::Full => return Served::Full,
                // What cannot be set aside now holds up nobody else.
                Fed::Held => return served,
                Fed::NeverFits if is_crowded => return served,
                Fed::NeverFits => {
                    let why = if is_old { Refusal::TooOld } else { Refusal::TooLarge };
                    self.set_first_aside(place, why, out, now);
                }
                Fed::Window => self.take_first(place, len),
                Fed::Gone => {
                    self.take_first(place, len);
                    self.done(disk, device);
                }
                Fed::Expired => {
                    self.take_first(place, len);
                    let owed = self.taken_by_hub(disk, device);
                    self.expired.owed.extend(owed);
                    self.expired.count += 1;
                }
            }
            let queue = &mut self.queues[place];
            queue.young_ms = queue.young_ms.max(received_ms);
            queue.credit = (queue.credit - len as i64).max(-DEBT_MAX);
            served = Served::Some;
        }
    }

    /// The first record of a queue, where it was read, and its length.
    pub(super) fn first_of(&self, place: usize) -> Option<(Record<'_>, usize)> {
        let queue = &self.queues[place];
        parse_record(&queue.run.bytes[queue.at..]).filter(|_| queue.run.count > 0)
    }

    fn disk_of_first(&self, place: usize, len: usize) -> DiskRef {
        DiskRef { queue: place as u16, number: self.queues[place].read, group: 0, entry: 0, len: len as u32 }
    }

    /// The first record of a queue waits no more.
    fn take_first(&mut self, place: usize, len: usize) {
        self.queues[place].take_first(len);
        self.read_bytes -= len;
        self.waiting -= 1;
    }

    /// The first record of a queue is not for its hub. Where the hub alone is its witness the device is told so.
    pub(super) fn set_first_aside(&mut self, place: usize, why: Refusal, out: &mut LinkOutput, now: Tick) {
        let queue = &self.queues[place];
        let Some((record, len)) = parse_record(&queue.run.bytes[queue.at..]) else { return };
        let (disk, device) = (self.disk_of_first(place, len), record.device);
        match self.owed_by_hub.remove(&(disk.queue, disk.number)) {
            Some(owed) => {
                out.settled.push(owed.settled(Err(why), now, now));
                self.take_first(place, len);
                self.done(disk, device);
            }
            None => {
                let aside = Aside { why, was: Some((disk, device)) };
                self.pending.set_aside(&record, aside, None, Tick::default());
                self.take_first(place, len);
            }
        }
    }

    /// All that is on the disk has its place: what is on its way there follows.
    fn feed_from_memory(&mut self, take: &mut Take<'_>) {
        for syncing in [true, false] {
            let Some(group) = (if syncing { self.syncing.as_mut() } else { Some(&mut self.pending) }) else { continue };
            let batch = group.batch.clone();
            while let Some(at) = batch.records.get(group.loaded) {
                let place = self.places.get(usize::from(at.queue)).copied().unwrap_or(u16::MAX);
                let Some(queue) = self.queues.get_mut(usize::from(place)).filter(|queue| queue.read == at.number)
                else {
                    group.loaded += 1;
                    continue;
                };
                let bytes = &batch.bytes[at.start as usize..];
                let (record, len) = parse_record(bytes).expect("invariant: written by us");
                let (number, entry) = (group.number, group.loaded as u32);
                let disk = DiskRef { queue: place, number: at.number, group: number, entry, len: len as u32 };
                let became = take(&record, disk);
                // What the hub never takes is set aside when it comes back from the disk.
                if matches!(became, Fed::Full | Fed::NeverFits | Fed::Held) {
                    return;
                }
                group.loaded += 1;
                queue.read += 1;
                queue.run.first = queue.read;
                self.waiting -= 1;
                if became == Fed::Expired {
                    let entry = group.entries.get_mut(group.loaded - 1);
                    // Whoever waits for the disk is told when that has it.
                    self.expired
                        .owed
                        .extend(entry.filter(|entry| entry.ack == Ack::Hub).and_then(|entry| entry.owed.take()));
                    self.expired.count += 1;
                }
                if matches!(became, Fed::Gone | Fed::Expired) {
                    let queue = &mut self.queues[usize::from(place)];
                    queue.done(at.number);
                    queue.note(place, &mut self.acknowledged);
                    take_bytes(&mut self.devices, record.device, len as u64);
                }
            }
        }
    }
}

/// A larger message is paid for no longer than so many rounds, lest they be many.
const DEBT_MAX: i64 = 64 * QUANTUM as i64;
