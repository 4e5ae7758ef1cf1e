//! The spool's side of a link: what goes to the disk, what waits there for a place in the window, and who is owed an
//! answer for it. As pure as the link: batches, reads and acknowledgements are asked for and answered through values.
//!
//! A message is *recorded* in the group that is being filled; the group is handed over when the one before it was
//! answered. While the link is *direct*, messages go to the window, and only what must be on the disk is recorded
//! beside it. While it is *spooling*, everything is recorded and waits in its queue for a place in the window: what is
//! on the disk is read back first, and when that is sent, what is still in memory follows, so that the queue can become
//! empty while devices go on publishing.

mod feed;
mod reading;

pub(super) use feed::Fed;
use reading::{READ_BYTES_MAX, Reading};

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    LinkOutput, Refusal, SessionRef, Woken,
    aging::Expired,
    queue::{Aside, Entry, Group, QUANTUM, Queue, take_bytes},
    slots::{DiskRef, Owed, Slot},
    spool::{Batch, QUEUES, Record, Run, StreamId, parse_record, queue_of},
};
use crate::{route::Ack, time::Tick};

/// What a link is told about the spool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BacklogConfig {
    /// Which hub the spool knows it as.
    pub upstream: u16,
    /// Its queues, as the start found them: number, first that is not acknowledged, next.
    pub queues: Vec<(u16, u64, u64)>,
    /// Bytes that wait, by hash of the device.
    pub devices: Vec<(u64, u64)>,
    /// How late the hub may be before messages go to the disk. `None`: four times its round trip.
    pub spill_after: Option<Duration>,
    /// How long a message may wait. Zero: until it is delivered.
    pub age_max: Duration,
}

impl BacklogConfig {
    /// The part of it that concerns these queues.
    pub fn of_queues(&self, queues: &[u16]) -> Self {
        let state = |number: &u16| self.queues.iter().find(|known| known.0 == *number).copied();
        Self {
            queues: queues.iter().map(|number| state(number).unwrap_or((*number, 0, 0))).collect(),
            devices: self.devices.iter().filter(|(device, _)| queues.contains(&queue_of(*device))).copied().collect(),
            ..self.clone()
        }
    }
}

/// See the module.
pub(super) struct Backlog {
    upstream: u16,
    mode: Mode,
    queues: Vec<Queue>,
    /// Place of a queue by its number; `u16::MAX`: another link's.
    places: Vec<u16>,
    pending: Group,
    syncing: Option<Group>,
    /// `syncing` is to be handed over (again) at this time.
    hand_over: Option<Tick>,
    /// The disk took nothing when it was last asked.
    refused: Option<&'static str>,
    /// Records that are in no window.
    waiting: u64,
    /// Of these, records on the disk that are not yet read.
    unread: u64,
    /// Bytes that were read and are in no window.
    read_bytes: usize,
    /// What is being read, and what was read last.
    reading: Option<Reading>,
    read_last: Reading,
    /// Whose turn it is, and whether it was given its share of this round.
    turn: usize,
    has_share: bool,
    /// Queues that have just begun to wait: they do not wait for their turn.
    fresh: VecDeque<u16>,
    /// Which queue is looked at next for messages that are too old.
    age_turn: usize,
    owed_by_hub: HashMap<(u16, u64), Owed>,
    /// Bytes of each device that wait.
    devices: HashMap<u64, u64>,
    /// Bytes that the spool still takes.
    free: u64,
    /// Who waits for room.
    held: VecDeque<Held>,
    /// Who waits because its device has more than its share.
    over: Vec<Held>,
    /// Those whose turn it is.
    woken: HashSet<SessionRef>,
    acknowledged: Vec<u16>,
    /// Why messages were set aside since it was last asked.
    set_aside: Vec<Refusal>,
    /// Messages that were set aside and wait on the disk again: how they are named.
    again_stored: Vec<u64>,
    age_max_ms: u64,
    /// Messages whose Message Expiry Interval passed while they waited.
    expired: Expired,
}

/// Where a message goes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Direct,
    Spooling,
}

/// Whether the hub is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hub {
    Up,
    Away,
}

/// A session that waits for room.
#[derive(Clone, Copy)]
struct Held {
    who: SessionRef,
    device: u64,
    len: usize,
}

/// A message that is recorded.
pub(super) struct Recorded<'a> {
    pub(super) record: Record<'a>,
    pub(super) ack: Ack,
    pub(super) owed: Option<Owed>,
    pub(super) offered: Tick,
}

impl Backlog {
    pub(super) fn new(config: &BacklogConfig) -> Self {
        let mut places = vec![u16::MAX; usize::from(QUEUES)];
        let queues: Vec<Queue> =
            config.queues.iter().map(|(number, head, next)| Queue::new(*number, *head, *next)).collect();
        for (place, queue) in queues.iter().enumerate() {
            places[usize::from(queue.number)] = u16::try_from(place).expect("invariant: 256 queues");
        }
        let waiting = queues.iter().map(|queue| queue.next - queue.read).sum();
        Self {
            upstream: config.upstream,
            mode: if waiting > 0 { Mode::Spooling } else { Mode::Direct },
            queues,
            places,
            pending: Group { number: 1, ..Group::default() },
            syncing: None,
            hand_over: None,
            refused: None,
            waiting,
            unread: waiting,
            read_bytes: 0,
            reading: None,
            read_last: Reading::TooOld,
            turn: 0,
            has_share: false,
            fresh: VecDeque::new(),
            age_turn: 0,
            owed_by_hub: HashMap::new(),
            devices: config.devices.iter().copied().collect(),
            free: u64::MAX,
            held: VecDeque::new(),
            over: Vec::new(),
            woken: HashSet::new(),
            acknowledged: Vec::new(),
            set_aside: Vec::new(),
            again_stored: Vec::new(),
            age_max_ms: u64::try_from(config.age_max.as_millis()).unwrap_or(u64::MAX),
            expired: Expired::default(),
        }
    }

    #[inline]
    pub(super) fn is_direct(&self) -> bool {
        self.mode == Mode::Direct
    }

    /// Which hub the spool knows it as.
    pub(super) fn upstream(&self) -> u16 {
        self.upstream
    }

    /// Whether it is of any use to send messages to the disk.
    pub(super) fn may_spill(&self) -> bool {
        self.is_direct() && self.refused.is_none()
    }

    pub(super) fn begin_spooling(&mut self) {
        self.mode = Mode::Spooling;
    }

    /// Direct again, when everything is in the window.
    pub(super) fn end_spooling(&mut self) -> bool {
        let ends = self.mode == Mode::Spooling && self.waiting == 0;
        if ends {
            self.mode = Mode::Direct;
        }
        ends
    }

    /// Records that are in no window.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Messages that a device waits for.
    pub(super) fn owed(&self) -> usize {
        self.groups().flat_map(|group| &group.entries).filter(|entry| entry.owed.is_some()).count()
            + self.owed_by_hub.len()
    }

    /// What the disk refuses, while it does.
    pub(super) fn refused(&self) -> Option<&'static str> {
        self.refused
    }

    /// Whether a message of `len` bytes may be recorded now; otherwise the session waits until it is woken.
    pub(super) fn admits(&mut self, who: SessionRef, device: u64, len: usize) -> bool {
        let bytes = self.pending.batch.bytes.len();
        let over = self.over_quota(device, len);
        let room = bytes == 0 || bytes + len <= GROUP_BYTES_MAX;
        let admitted = room && !over && (self.held.is_empty() || self.woken.contains(&who));
        if !admitted {
            self.woken.remove(&who);
            let held = Held { who, device, len };
            if over { self.over.push(held) } else { self.held.push_back(held) }
        }
        admitted
    }

    /// Whether a device waits because it has its share of the room.
    pub(super) fn holds_back(&self) -> bool {
        !self.over.is_empty()
    }

    /// Whether a message of QoS 0 may be recorded now.
    pub(super) fn admits_most_once(&self, device: u64, len: usize) -> bool {
        let bytes = self.pending.batch.bytes.len();
        self.refused.is_none() && bytes + len <= GROUP_BYTES_MAX / 2 && !self.over_quota(device, len)
    }

    /// A device may take four times what is free: one alone gets four fifths of the spool, and however many there are,
    /// there is room for who comes.
    fn over_quota(&self, device: u64, len: usize) -> bool {
        let taken = self.devices.get(&device).copied().unwrap_or(0);
        // What is on its way to the disk will be there.
        let underway: usize = self.groups().map(|group| group.batch.bytes.len()).sum();
        let free = self.free.saturating_sub(underway as u64);
        taken > 0 && taken.saturating_add(len as u64) > free.saturating_mul(FREE_SHARES)
    }

    /// Wakes those who may go on, first come, first served, no more than there is room for.
    pub(super) fn wake_held(&mut self, wake: &mut impl FnMut(SessionRef) -> Woken) {
        if !self.over.is_empty() {
            let over = std::mem::take(&mut self.over);
            let (still, free): (Vec<_>, Vec<_>) =
                over.into_iter().partition(|held| self.over_quota(held.device, held.len));
            self.over = still;
            self.held.extend(free);
        }
        let mut bytes = self.pending.batch.bytes.len();
        while let Some(held) = self.held.pop_front_if(|held| bytes == 0 || bytes + held.len <= GROUP_BYTES_MAX) {
            if wake(held.who) == Woken::Here {
                bytes += held.len;
                self.woken.insert(held.who);
            }
        }
    }

    /// Who waits, for the window to take over.
    pub(super) fn held(&mut self) -> impl Iterator<Item = SessionRef> {
        self.woken.clear();
        self.held.drain(..).chain(self.over.drain(..)).map(|held| held.who)
    }

    /// The session has nothing more to offer for now.
    #[inline]
    pub(super) fn give_back(&mut self, who: SessionRef) {
        if !self.woken.is_empty() {
            self.woken.remove(&who);
        }
    }

    pub(super) fn forget(&mut self, who: SessionRef) {
        self.give_back(who);
        if !(self.held.is_empty() && self.over.is_empty()) {
            self.held.retain(|held| held.who != who);
            self.over.retain(|held| held.who != who);
        }
    }

    /// Records a message that waits for a place in the window.
    pub(super) fn record(&mut self, recorded: &Recorded<'_>) {
        self.write(recorded);
        self.waiting += 1;
    }

    /// Records a message that was set aside under `id`, to wait for its hub again; `false`: there is no room now.
    pub(super) fn record_again(&mut self, recorded: &Recorded<'_>, id: u64) -> bool {
        if self.refused.is_some() || self.pending.batch.bytes.len() > GROUP_BYTES_MAX {
            return false;
        }
        self.write(recorded);
        self.waiting += 1;
        if let Some(entry) = self.pending.entries.last_mut() {
            entry.again = Some(id);
        }
        true
    }

    /// Messages that are set aside no longer, since they wait on the disk again.
    pub(super) fn take_again(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.again_stored)
    }

    /// Records a message that has its place in the window; nothing may wait before it.
    pub(super) fn record_in_window(&mut self, recorded: &Recorded<'_>) -> DiskRef {
        let disk = self.write(recorded);
        let queue = &mut self.queues[usize::from(disk.queue)];
        debug_assert_eq!(queue.read + 1, queue.next, "nothing waits before it");
        queue.read = queue.next;
        disk
    }

    fn write(&mut self, recorded: &Recorded<'_>) -> DiskRef {
        let place = self.places[usize::from(queue_of(recorded.record.device))];
        let queue = &mut self.queues[usize::from(place)];
        let (number, queue_number) = (queue.next, queue.number);
        queue.next += 1;
        let entry = self.pending.entries.len() as u32;
        let len = self.pending.write(queue_number, number, &recorded.record);
        let Recorded { owed, ack, offered, .. } = *recorded;
        self.pending.entries.push(Entry { owed, ack, offered, ..Entry::default() });
        *self.devices.entry(recorded.record.device).or_default() += u64::from(len);
        DiskRef { queue: place, number, group: self.pending.number, entry, len }
    }

    /// What is to be appended next, when it is time.
    pub(super) fn batch(&mut self, now: Tick) -> Option<Arc<Batch>> {
        if self.syncing.is_none() && !self.pending.entries.is_empty() {
            let number = self.pending.number + 1;
            let mut group = std::mem::replace(&mut self.pending, Group { number, ..Group::default() });
            if let Some(batch) = Arc::get_mut(&mut group.batch) {
                batch.upstream = self.upstream;
                batch.moves = group.entries.iter().all(|entry| entry.aside.is_some() || entry.again.is_some());
            }
            self.syncing = Some(group);
            self.hand_over = Some(now);
        }
        self.hand_over.take_if(|at| *at <= now)?;
        self.syncing.as_ref().map(|group| group.batch.clone())
    }

    /// The group that was handed over is on the disk, or it is not and will be tried again.
    pub(super) fn stored(&mut self, result: Result<(), &'static str>, hub: Hub, out: &mut LinkOutput, now: Tick) {
        if let Err(why) = result {
            self.refused = Some(why);
            self.hand_over = Some(now.plus(RETRY_AFTER));
            self.forget_refused();
            return;
        }
        self.refused = None;
        let Some(group) = self.syncing.take() else { return };
        self.free = self.free.saturating_sub(group.batch.bytes.len() as u64);
        for (record, mut entry) in group.batch.records.iter().zip(group.entries) {
            if let Some(aside) = entry.aside {
                self.is_aside(aside);
                out.settled.extend(entry.owed.map(|owed| owed.settled(Ok(()), entry.offered, now)));
                continue;
            }
            let place = self.places[usize::from(record.queue)];
            let queue = &mut self.queues[usize::from(place)];
            queue.stored = record.number + 1;
            self.again_stored.extend(entry.again);
            queue.note(place, &mut self.acknowledged);
            if record.number >= queue.read {
                let bytes = &group.batch.bytes[record.start as usize..][..record.len as usize];
                let kept = hub == Hub::Up && self.read_bytes < READ_BYTES_MAX;
                match kept && queue.keep(record.number, bytes, QUANTUM) {
                    true => {
                        self.read_bytes += bytes.len();
                        if queue.run.count == 1 && !std::mem::replace(&mut queue.is_fresh, true) {
                            self.fresh.push_back(place);
                        }
                    }
                    false => self.unread += 1,
                }
            }
            let Some(owed) = entry.owed.take() else { continue };
            if entry.ack == Ack::Hub {
                self.owed_by_hub.insert((place, record.number), owed);
            } else {
                out.settled.push(owed.settled(Ok(()), entry.offered, now));
            }
        }
    }

    /// On a disk that takes nothing, what the hub has taken meanwhile need not be written any more: the numbers are
    /// given anew.
    fn forget_refused(&mut self) {
        if self.waiting > 0 || self.groups().any(|group| !self.is_settled(group)) {
            return;
        }
        for queue in &mut self.queues {
            if queue.next > queue.stored {
                (queue.head, queue.read, queue.next) = (queue.stored, queue.stored, queue.stored);
                queue.run = Run { first: queue.stored, ..Run::default() };
                queue.at = 0;
            }
        }
        let number = self.pending.number + 1;
        let pending = std::mem::replace(&mut self.pending, Group { number, ..Group::default() });
        let groups = self.syncing.take().into_iter().chain([pending]);
        // The hub has these as well.
        self.again_stored.extend(groups.flat_map(|group| group.entries).filter_map(|entry| entry.again));
        (self.hand_over, self.refused) = (None, None);
    }

    /// Nobody waits for the group, and the hub has all that is in it.
    fn is_settled(&self, group: &Group) -> bool {
        let done = |queue: &Queue| queue.head == queue.next;
        group.entries.iter().all(|entry| entry.owed.is_none() && entry.aside.is_none())
            && group.batch.records.iter().all(|r| done(&self.queues[usize::from(self.places[usize::from(r.queue)])]))
    }

    fn groups(&self) -> impl Iterator<Item = &Group> {
        [Some(&self.pending), self.syncing.as_ref()].into_iter().flatten()
    }

    /// The hub has the message. Whom to tell, if that is for the hub to say.
    pub(super) fn taken_by_hub(&mut self, disk: DiskRef, device: u64) -> Option<Owed> {
        let owed = match self.entry(disk) {
            Some(entry) if entry.ack == Ack::Disk => None,
            Some(entry) => entry.owed.take(),
            None => self.owed_by_hub.remove(&(disk.queue, disk.number)),
        };
        self.done(disk, device);
        owed
    }

    /// The hub will not have the message: whom to tell, where the hub alone is its witness; otherwise it is set aside.
    pub(super) fn not_taken(&mut self, slot: &Slot, record: &Record<'_>, why: Refusal) -> Option<Owed> {
        let Some(disk) = slot.disk else {
            self.pending.set_aside(record, Aside { why, was: None }, slot.owed, slot.offered);
            return None;
        };
        let (ack, owed) = match self.entry(disk) {
            Some(entry) => (entry.ack, entry.owed.take()),
            None => (Ack::Hub, self.owed_by_hub.remove(&(disk.queue, disk.number))),
        };
        if ack == Ack::Hub && owed.is_some() {
            self.done(disk, record.device);
            return owed;
        }
        self.pending.set_aside(record, Aside { why, was: Some((disk, record.device)) }, owed, slot.offered);
        None
    }

    /// A message that was set aside is on the disk.
    fn is_aside(&mut self, aside: Aside) {
        self.set_aside.push(aside.why);
        if let Some((disk, device)) = aside.was {
            self.done(disk, device);
        }
    }

    fn entry(&mut self, disk: DiskRef) -> Option<&mut Entry> {
        let group = [Some(&mut self.pending), self.syncing.as_mut()];
        let group = group.into_iter().flatten().find(|group| group.number == disk.group)?;
        group.entries.get_mut(disk.entry as usize)
    }

    fn done(&mut self, disk: DiskRef, device: u64) {
        let queue = &mut self.queues[usize::from(disk.queue)];
        queue.done(disk.number);
        queue.note(disk.queue, &mut self.acknowledged);
        take_bytes(&mut self.devices, device, disk.len.into());
    }

    /// What the spool need not keep any more.
    pub(super) fn acknowledgements(&mut self) -> impl Iterator<Item = (StreamId, u64)> {
        let (upstream, queues) = (self.upstream, &mut self.queues);
        self.acknowledged.drain(..).map(move |place| {
            let queue = &mut queues[usize::from(place)];
            queue.dirty = false;
            queue.told = queue.head.min(queue.stored);
            (StreamId { upstream, queue: queue.number }, queue.told)
        })
    }

    pub(super) fn has_acknowledgements(&self) -> bool {
        !self.acknowledged.is_empty()
    }

    /// Why messages were set aside since it was last asked.
    pub(super) fn take_set_aside(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.set_aside)
    }

    /// Messages that expired while they waited.
    pub(super) fn take_expired(&mut self) -> Expired {
        std::mem::take(&mut self.expired)
    }

    /// How much the spool still takes.
    pub(super) fn set_free(&mut self, bytes: u64) {
        self.free = bytes;
    }

    /// Whether messages are set aside for their age.
    pub(super) fn ages(&self) -> bool {
        self.age_max_ms > 0
    }

    /// Whether a message that was received then is to be set aside for its age.
    pub(super) fn is_old(&self, received_ms: u64, wall_ms: u64) -> bool {
        self.ages() && received_ms >= CLOCK_SET_MS && received_ms.saturating_add(self.age_max_ms) < wall_ms
    }

    /// Whether nothing can be set aside for now: the disk takes nothing, or has enough to do.
    pub(super) fn is_crowded(&self) -> bool {
        self.refused.is_some() || self.pending.batch.bytes.len() > GROUP_BYTES_MAX
    }
}

/// Together with the one that is being synced, what a link holds in memory for the disk.
const GROUP_BYTES_MAX: usize = 1 << 20;
/// See [`Backlog::over_quota`].
const FREE_SHARES: u64 = 4;
/// Between two attempts to write to a disk that refused.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// September 2001: a message that was received before it was received while the clock was not set, and nobody knows how
/// old it is.
const CLOCK_SET_MS: u64 = 1_000_000_000_000;
