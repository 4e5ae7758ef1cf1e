//! Sessions that outlive their connections. While a device is away its session lives in its home shard: its filters stay
//! on the hubs and its messages wait, written down. When it comes back, the session goes on where it ended; when the
//! gateway comes back, so do the sessions.
//!
//! [`live`] is what happens to them while their devices are connected, [`absent`] while they are away; [`receipts`] says
//! which hub waits for which message, [`journal`] what is on its way to the disk.

mod absent;
mod heirs;
mod journal;
mod live;
mod receipts;

pub(super) use absent::{away, deliver, end, settled};
pub(super) use live::{CleanStart, Resumed, begin, note, offer, park, resume, stands, wait_for_disk};

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use super::{Shard, home_of, moved, wills};
use crate::{
    delivery::{
        SessionRef,
        spool::{Answer, LinkAddress, SpoolHandle},
    },
    id::DeviceId,
    roster::Writes,
    session::{
        image::{Entry, Kept as Image, KeptWill, Now},
        server::Room,
    },
    time::{Tick, UnixSeconds},
};
use absent::Absent;
use heirs::Heirs;
use journal::{Journal, Waiter};
use receipts::{Hub, Receipts};

/// The log that sessions are written to.
#[derive(Debug)]
pub struct SessionLog {
    /// Who writes.
    pub spool: SpoolHandle,
    /// What a start found.
    pub found: Found,
}

/// What a start found of sessions.
#[derive(Debug, Default)]
pub struct Found {
    /// Each with its device.
    pub sessions: Vec<(DeviceId, Image)>,
    /// Queues: number of the next record, and bytes.
    pub queues: Vec<(u16, u64, u64)>,
    /// Highest number of a message.
    pub last: u64,
    /// Wills, each with its device.
    pub wills: Vec<(DeviceId, KeptWill)>,
    /// Highest number of a will.
    pub last_will: u64,
}

/// What a start found for one shard.
#[derive(Debug, Default)]
pub(super) struct Home {
    pub(super) spool: Option<SpoolHandle>,
    pub(super) sessions: Vec<(DeviceId, Image)>,
    pub(super) queues: Vec<(u16, u64, u64)>,
    pub(super) last: u64,
    pub(super) wills: Vec<(DeviceId, KeptWill)>,
    pub(super) last_will: u64,
}

/// Each session, and each queue, to the shard where its devices are at home: there may be more or fewer than at the last
/// start.
pub(super) fn at_home(log: Option<SessionLog>, shards: usize) -> Vec<Home> {
    let Some(SessionLog { spool, found }) = log else { return (0..shards).map(|_| Home::default()).collect() };
    let (last, last_will) = (found.last, found.last_will);
    let empty = |_| Home { spool: Some(spool.clone()), last, last_will, ..Home::default() };
    let mut homes: Vec<Home> = (0..shards).map(empty).collect();
    for (device, image) in found.sessions {
        homes[home_of(&device, shards)].sessions.push((device, image));
    }
    for (device, will) in found.wills {
        homes[home_of(&device, shards)].wills.push((device, will));
    }
    for queue in found.queues {
        homes[usize::from(queue.0) % shards].queues.push(queue);
    }
    homes
}

/// What a shard knows of them.
#[derive(Default)]
pub(super) struct Kept {
    inner: RefCell<Inner>,
    spool: Option<SpoolHandle>,
}

#[derive(Default)]
struct Inner {
    receipts: Receipts,
    journal: Journal,
    absent: HashMap<SessionRef, Absent>,
    by_device: HashMap<DeviceId, SessionRef>,
    expires: BTreeSet<(UnixSeconds, SessionRef)>,
    heirs: Heirs,
    generation: u32,
    /// The gate's epoch when it was last asked about those who are away.
    epoch: u64,
    retry_at: Tick,
    is_writing: bool,
}

impl Kept {
    /// Of a shard with this log; without one no session outlives its connection.
    pub(super) fn new(spool: Option<SpoolHandle>, queues: Vec<(u16, u64, u64)>, last: u64) -> Self {
        let (journal, receipts) = (Journal::new(queues.into_iter()), Receipts::after(last));
        Self { inner: RefCell::new(Inner { journal, receipts, ..Inner::default() }), spool }
    }

    /// Whether anything is written down.
    pub(super) fn are_written(&self) -> bool {
        self.spool.is_some()
    }

    /// Whether what a session has promised is on the disk, up to this batch.
    pub(super) fn is_lasting(&self, batch: u64) -> bool {
        self.inner.borrow().journal.is_lasting(batch)
    }
}

impl Inner {
    /// The name of a session whose device is away: no place of the shard is its.
    fn name(&mut self) -> SessionRef {
        self.generation = self.generation.wrapping_add(1);
        SessionRef { slot: AWAY, generation: self.generation }
    }

    fn write(&mut self, (device, hash): (&DeviceId, u64), entry: &Entry<'_>, now: Now) {
        self.journal.write(device, hash, entry, now);
    }
}

/// Writes an entry that nobody waits for.
pub(super) fn write(shard: &Shard, device: (&DeviceId, u64), entry: &Entry<'_>) {
    if shard.kept.are_written() {
        shard.kept.inner.borrow_mut().write(device, entry, now(shard));
        shard.spooling.work();
    }
}

/// What time it is, for what is written.
pub(super) fn now(shard: &Shard) -> Now {
    Now { tick: shard.site.now(), wall_ms: shard.site.clock.now_ms() }
}

/// Sessions of an earlier start take their places, before anybody is served.
pub(super) fn restore(shard: &Shard, sessions: Vec<(DeviceId, Image)>) {
    absent::restore(shard, sessions);
}

/// What the clock has to do: sessions end, messages are written that nobody answers for, and the disk is asked again.
pub(super) fn tick(shard: &Shard, tick: Tick) {
    if shard.kept.spool.is_some() {
        absent::sweep(shard);
    }
    live::write_overdue(shard, tick);
    write_anew(shard);
    let again = {
        let mut inner = shard.kept.inner.borrow_mut();
        let is_due = inner.retry_at <= tick;
        inner.journal.again().filter(|_| is_due).inspect(|_| inner.retry_at = tick.plus(RETRY_AFTER))
    };
    if let (Some(batch), Some(spool)) = (again, &shard.kept.spool) {
        spool.append(address(shard), batch);
    }
    hand_over(shard);
}

/// Gives the disk what there is for it, when it has answered for the last.
pub(super) fn hand_over(shard: &Shard) {
    let Some(spool) = &shard.kept.spool else { return };
    let batch = shard.kept.inner.borrow_mut().journal.batch();
    if let Some(batch) = batch {
        spool.append(address(shard), batch);
    }
    let mut inner = shard.kept.inner.borrow_mut();
    let writes = inner.journal.is_busy();
    if writes != std::mem::replace(&mut inner.is_writing, writes) {
        shard.site.roster.writes(if writes { Writes::Begins } else { Writes::Ends });
    }
}

/// The disk answers.
pub(super) fn answered(shard: &Rc<Shard>, answer: Answer) {
    let Answer::Appended(taken) = answer else { return };
    let answered = {
        let mut inner = shard.kept.inner.borrow_mut();
        inner.retry_at = shard.site.now().plus(RETRY_AFTER);
        inner.journal.answered(taken)
    };
    if let (true, Err(error)) = (answered.began_to_fail, taken) {
        tracing::error!(
            error,
            "sessions cannot be written down: hubs wait for the answers to messages of devices that are away"
        );
    }
    answered.waiters.into_iter().for_each(|waiter| tell(shard, waiter));
    hand_over(shard);
}

/// Whoever waited for the disk need not wait any more.
fn tell(shard: &Shard, waiter: Waiter) {
    match waiter {
        Waiter::Hub(hub) => answer(shard, hub),
        Waiter::Session(who) => {
            if let Some(cell) = shard.session(who) {
                cell.wake();
            }
        }
        Waiter::Older(queue, from) => {
            if let Some(spool) = &shard.kept.spool {
                spool.acknowledge(std::iter::once((journal::stream_of(queue), from)));
            }
        }
    }
}

/// A hub is answered for a message.
fn answer(shard: &Shard, Hub { upstream, hash, ticket }: Hub) {
    if moved::is_passed(ticket) {
        return moved::release(shard, ticket);
    }
    shard.member(upstream, hash).release(ticket);
}

/// Queues that have grown to several times what they amount to.
fn write_anew(shard: &Shard) {
    loop {
        let next = shard.kept.inner.borrow_mut().journal.next_grown();
        let Some((queue, from)) = next else { return };
        absent::write_queue(shard, queue);
        live::write_queue(shard, queue);
        wills::write_queue(shard, queue);
        let waiter = shard.kept.inner.borrow_mut().journal.anew(queue, from);
        waiter.into_iter().for_each(|waiter| tell(shard, waiter));
    }
}

/// Whether a message of so many bytes may wait for its device.
fn room(shard: &Shard, bytes: usize) -> Room {
    if shard.site.roster.has_room(bytes as u64) { Room::Some } else { Room::None }
}

/// A shard asks its log as one link.
fn address(shard: &Shard) -> LinkAddress {
    LinkAddress { shard: shard.index, upstream: 0, member: 0 }
}

/// The slot of those who have none.
const AWAY: u32 = u32::MAX;
/// How long after a refusal the disk is asked again.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);
