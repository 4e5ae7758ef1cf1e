//! From the queues to the window: what waits takes its places, queue by queue, in equal shares of bytes.

use super::{Ack, Aside, Backlog, DiskRef, GROUP_BYTES_MAX, Record, Refusal, Tick, parse_record, take_bytes};

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

impl Backlog {
    /// Offers what waits to the window, queue by queue, in equal shares of bytes.
    pub(in crate::delivery) fn feed(&mut self, wall_ms: u64, take: &mut dyn FnMut(&Record<'_>, DiskRef) -> Fed) {
        if self.waiting == 0 {
            return;
        }
        let (mut idle, count) = (0, self.queues.len());
        while idle < count && self.read_bytes > 0 {
            let place = self.turn % count;
            match self.feed_queue(place, wall_ms, take) {
                Some(0) => idle += 1,
                Some(_) => idle = 0,
                None => return,
            }
            self.turn = self.turn.wrapping_add(1);
        }
        if self.unread == 0 && self.read_bytes == 0 {
            self.feed_from_memory(take);
        }
    }

    /// Says how many records it offered; `None`: there is no place for more.
    fn feed_queue(
        &mut self,
        place: usize,
        wall_ms: u64,
        take: &mut dyn FnMut(&Record<'_>, DiskRef) -> Fed,
    ) -> Option<usize> {
        let queue = &mut self.queues[place];
        if queue.run.count == 0 {
            return Some(0);
        }
        queue.deficit = (queue.deficit + QUANTUM).min(2 * QUANTUM);
        let mut fed = 0;
        loop {
            let queue = &mut self.queues[place];
            let Some((record, len)) = parse_record(&queue.run.bytes[queue.at..]).filter(|_| queue.run.count > 0) else {
                break;
            };
            if queue.deficit < len && fed > 0 {
                break;
            }
            let disk = DiskRef { queue: place as u16, number: queue.read, group: 0, entry: 0, len: len as u32 };
            let device = record.device;
            let old = self.age_max_ms > 0 && record.received_ms.saturating_add(self.age_max_ms) < wall_ms;
            let became = if old { Fed::NeverFits } else { take(&record, disk) };
            let crowded = self.refused.is_some() || self.pending.batch.bytes.len() > GROUP_BYTES_MAX;
            match became {
                Fed::Full => return None,
                Fed::Held => break,
                Fed::NeverFits if crowded => return None,
                Fed::NeverFits => {
                    let why = if old { Refusal::TooOld } else { Refusal::TooLarge };
                    let aside = Aside { why, was: Some((disk, device)) };
                    self.pending.set_aside(&record, aside, None, Tick::default());
                }
                Fed::Window | Fed::Gone | Fed::Expired => {}
            }
            queue.deficit = queue.deficit.saturating_sub(len);
            queue.at += len;
            queue.read += 1;
            queue.run.first += 1;
            queue.run.count -= 1;
            if queue.run.count == 0 {
                queue.run.bytes = Vec::new();
                (queue.at, queue.deficit) = (0, 0);
            }
            self.read_bytes -= len;
            self.waiting -= 1;
            fed += 1;
            match became {
                Fed::Gone => self.done(disk, device),
                Fed::Expired => {
                    let owed = self.taken_by_hub(disk, device);
                    self.expired.owed.extend(owed);
                    self.expired.count += 1;
                }
                _ => {}
            }
        }
        Some(fed)
    }

    /// All that is on the disk has its place: what is on its way there follows.
    fn feed_from_memory(&mut self, take: &mut dyn FnMut(&Record<'_>, DiskRef) -> Fed) {
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

/// What a queue sends before the next one has its turn.
pub(super) const QUANTUM: usize = 16 << 10;
