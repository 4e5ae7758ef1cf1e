//! A session that outlives its connection, while it has one.

use std::{rc::Rc, sync::Arc};

use super::{
    Inner,
    absent::{self, Written},
    answer,
    journal::Waiter,
    now,
    receipts::{Held, Hub, Outlives},
    room,
};
use crate::{
    delivery::{Incoming, SessionRef, Taken, spool::queue_of},
    denial::CloseReason,
    id::DeviceId,
    packet::{ProtocolVersion, QoS},
    registry::Live,
    session::{
        image::{Entry, Kept as Image, Now, Standing},
        server::{Change, Delivered, Message, Receipt, Room, Session, SessionState, Stage},
    },
    shard::{
        Shard, iot_hub,
        sessions::{SessionCell, State},
        subscribe,
    },
    time::{Tick, UnixSeconds},
};

/// A session that goes on.
pub(in crate::shard) struct Resumed {
    /// What outlived its connection.
    pub(in crate::shard) state: SessionState,
    from: SessionRef,
    receipts: Vec<Receipt>,
    /// Packet identifiers of QoS 2 messages that are with delivery.
    awaited: Vec<u16>,
}

/// What a device left, if it left anything: of the connection that it has, or had. A device that wants to begin anew gets
/// nothing, and what it left is over.
pub(in crate::shard) fn resume(
    shard: &Shard,
    (device, hash): (&DeviceId, u64),
    old: Option<&Arc<Live>>,
    clean_start: CleanStart,
) -> Option<Resumed> {
    let cell = old.and_then(|old| shard.session(SessionRef { slot: old.slot, generation: old.generation }));
    let is_over = match &cell {
        // A session that is not to outlive its connection does not outlive a take-over.
        Some(cell) => !cell.outlives.get() || cell.live.cut().is_some_and(|cut| ends_session(cut.reason)),
        None => false,
    };
    let of_connection = cell.as_ref().and_then(|cell| leave(shard, cell));
    let left = of_connection.or_else(|| absent::take(shard, device))?;
    if clean_start == CleanStart::Yes || is_over {
        let is_clean = cell.is_some_and(|cell| !cell.outlives.get());
        absent::forget(shard, (device, hash), &left, if is_clean { Written::No } else { Written::Yes });
        return None;
    }
    let Left { state, from, receipts } = left;
    let awaited = state.awaited.clone();
    Some(Resumed { state, from, receipts, awaited })
}

/// What a connection left, or a session whose device was away.
pub(super) struct Left {
    pub(super) state: SessionState,
    /// By which hubs and delivery know it.
    pub(super) from: SessionRef,
    /// Of its messages that are not at their end.
    pub(super) receipts: Vec<Receipt>,
}

/// Whether the device wants to begin anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::shard) enum CleanStart {
    /// What it left is over.
    Yes,
    /// It goes on where it ended.
    No,
}

/// The session has its connection. Called when it stands in the shard.
pub(in crate::shard) fn begin(shard: &Shard, cell: &SessionCell, state: &mut State, resumed: Option<&Resumed>) {
    if let Some(resumed) = resumed {
        hand_over(shard, cell.hash, resumed.from, cell.who);
        shard.kept.inner.borrow_mut().heirs.inherit(resumed.from, cell.who, &resumed.awaited);
    }
    let expires_after = state.session.session_expiry();
    cell.outlives.set(expires_after > 0 && shard.kept.spool.is_some());
    let mut inner = shard.kept.inner.borrow_mut();
    if let Some(resumed) = resumed {
        for receipt in &resumed.receipts {
            if let Some(held) = inner.receipts.get_mut(*receipt) {
                held.session = cell.who;
            }
        }
    }
    let (who, now) = ((cell.live.device(), cell.hash), now(shard));
    match (cell.outlives.get(), resumed) {
        (true, None) => {
            inner.write(who, &Entry::Begun, now);
            inner.write(who, &stands_as(cell, &state.session), now);
        }
        (true, Some(_)) => inner.write(who, &stands_as(cell, &state.session), now),
        // What it was ends with this connection, and so does all that was written of it.
        (false, Some(_)) => inner.write(who, &Entry::Ended, now),
        (false, None) => {}
    }
    drop(inner);
    if cell.outlives.get() && resumed.is_some() {
        // What it finds here it is told of as something that lasts: some of it may have been written a moment ago.
        wait_for_disk(shard, cell);
    }
}

/// A message of a hub for a session that has a connection: `deliver` gives it to the session under a receipt. What the
/// session has to keep is counted with what waits for devices that are away.
pub(in crate::shard) fn offer(
    shard: &Shard,
    cell: &SessionCell,
    upstream: usize,
    incoming: &Incoming<'_>,
    deliver: impl FnOnce(Option<Receipt>, Room) -> Delivered,
) -> Taken {
    let Some(ticket) = incoming.ticket else {
        let _ = deliver(None, Room::Some);
        return Taken::Whole;
    };
    let receipt = shard.kept.inner.borrow_mut().receipts.next();
    let publish = incoming.publish;
    let bytes = publish.topic.len() + publish.properties.len() + publish.payload.len() + size_of::<Message>();
    let is_kept = match deliver(Some(receipt), room(shard, bytes)) {
        Delivered::Written | Delivered::Dropped(_) => return Taken::Whole,
        Delivered::Sent => cell.outlives.get(),
        Delivered::Queued => true,
    };
    let counted = is_kept.then_some(bytes as u64).inspect(|bytes| shard.site.roster.keep(*bytes));
    let outlives = if cell.outlives.get() { Outlives::Connection } else { Outlives::Nothing };
    // Who did not answer in time is not waited for, until it does.
    let is_waited_for = outlives == Outlives::Connection || !cell.is_slow.get();
    let held = Held {
        session: cell.who,
        hub: is_waited_for.then_some(Hub { upstream, hash: cell.hash, ticket }),
        counted,
        written: false,
    };
    let now = shard.site.now();
    shard.kept.inner.borrow_mut().receipts.hold(receipt, held, outlives, now);
    if is_waited_for { Taken::Held } else { Taken::Whole }
}

/// Looks at what happened to the session: what must be remembered is written, hubs are answered for what the device has.
pub(in crate::shard) fn note(shard: &Shard, cell: &SessionCell, state: &mut State) {
    if !state.session.has_changes() {
        return;
    }
    let (mut done, mut owed) = (Vec::new(), Owed::Nothing);
    {
        let inner = &mut *shard.kept.inner.borrow_mut();
        let now = now(shard);
        for change in state.session.take_changes() {
            if let Change::Dropped { reason, .. } = change {
                shard.meter.dropped(reason.tag(), 1);
            }
            if cell.outlives.get() {
                owed = owed.max(write(inner, shard, cell, &state.session, change, now));
            }
            let receipt = match change {
                // The device has it, or does not get it.
                Change::Done { receipt, .. } | Change::Released { receipt, .. } | Change::Dropped { receipt, .. } => {
                    receipt
                }
                _ => None,
            };
            if let Some(held) = receipt.and_then(|receipt| inner.receipts.take(receipt)) {
                cell.is_slow.set(false);
                held.counted.inspect(|bytes| shard.site.roster.let_go(*bytes));
                done.extend(held.hub);
            }
        }
    }
    for hub in done {
        answer(shard, hub);
    }
    if owed == Owed::AfterTheDisk {
        wait_for_disk(shard, cell);
    }
}

/// Whether an answer to the device must not leave before what it promises is on the disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Owed {
    Nothing,
    AfterTheDisk,
}

/// Subscriptions have changed: written before the device is told.
pub(in crate::shard) fn stands(shard: &Shard, cell: &SessionCell, state: &State) {
    if !cell.outlives.get() {
        return;
    }
    let entry = stands_as(cell, &state.session);
    shard.kept.inner.borrow_mut().write((cell.live.device(), cell.hash), &entry, now(shard));
    wait_for_disk(shard, cell);
}

/// The connection has ended: the session waits for its device, or is over.
pub(in crate::shard) fn park(shard: &Shard, cell: &SessionCell, reason: CloseReason) {
    let Some(left) = leave(shard, cell) else { return };
    let standing = standing(cell, &cell.state.borrow().session, Some(shard.site.clock.now()));
    let device = cell.live.device();
    let may_come_back = shard.site.gate.awaits(device, shard.site.clock.now());
    if !cell.outlives.get() {
        return absent::forget(shard, (device, cell.hash), &left, Written::No);
    }
    if standing.expires_after == 0 || ends_session(reason) || !may_come_back {
        return absent::forget(shard, (device, cell.hash), &left, Written::Yes);
    }
    write_all(shard, cell, &left.state);
    absent::add(shard, (device, cell.hash), left, standing);
}

/// An operator ends a session as a whole; whatever else ends a connection leaves it to its device. Whether the device may
/// come back at all the gate is asked.
fn ends_session(reason: CloseReason) -> bool {
    matches!(reason, CloseReason::Administrative)
}

/// Messages that a device has not answered for in time: they are written down, and hubs wait no longer.
pub(super) fn write_overdue(shard: &Shard, tick: Tick) {
    loop {
        let next = shard.kept.inner.borrow_mut().receipts.next_due(tick);
        let Some((receipt, held)) = next else { return };
        let Some(cell) = shard.session(held.session) else {
            // Its session is gone without a word: nobody will.
            shard.kept.inner.borrow_mut().receipts.take(receipt);
            held.counted.inspect(|bytes| shard.site.roster.let_go(*bytes));
            held.hub.into_iter().for_each(|hub| answer(shard, hub));
            continue;
        };
        if cell.outlives.get() {
            let inner = &mut *shard.kept.inner.borrow_mut();
            write_message(inner, shard, &cell, &cell.state.borrow().session, receipt, now(shard));
            continue;
        }
        cell.is_slow.set(true);
        let hub = shard.kept.inner.borrow_mut().receipts.get_mut(receipt).and_then(|held| held.hub.take());
        hub.into_iter().for_each(|hub| answer(shard, hub));
    }
}

/// All sessions of a queue that have a connection, as they are.
pub(super) fn write_queue(shard: &Shard, queue: u16) {
    let of_queue = |cell: &&Rc<SessionCell>| cell.outlives.get() && queue_of(cell.hash) == queue;
    let cells: Vec<_> = shard.sessions.borrow().iter().filter(of_queue).cloned().collect();
    for cell in cells {
        let state = cell.state.borrow();
        let mut copy = state.session.copy_state();
        let inner = &mut *shard.kept.inner.borrow_mut();
        // What is not written yet is written when it must be.
        copy.each_message(|message| {
            let held = message.receipt.and_then(|receipt| inner.receipts.get_mut(receipt));
            if held.is_none_or(|held| !held.written) {
                message.receipt = None;
            }
        });
        let standing = standing(&cell, &state.session, None);
        let (who, now) = ((cell.live.device(), cell.hash), now(shard));
        Image::write(standing, &copy, now, &mut |entry| inner.write(who, entry, now));
    }
}

/// Moves the state out of a session that ends, with all that happened to it noted. `None`: it was moved before.
fn leave(shard: &Shard, cell: &SessionCell) -> Option<Left> {
    if cell.has_left.replace(true) {
        return None;
    }
    let state = &mut *cell.state.borrow_mut();
    note(shard, cell, state);
    subscribe::give_up(shard, cell, state);
    let receipts = state.session.receipts();
    Some(Left { state: state.session.take_state(), from: cell.who, receipts })
}

/// What one session held on the hubs, and what hubs and delivery wait for of it, is another's.
pub(super) fn hand_over(shard: &Shard, hash: u64, from: SessionRef, to: SessionRef) {
    for (upstream, _) in shard.members.iter().enumerate() {
        shard.member(upstream, hash).hand_over(from, to);
    }
}

/// Writes what a change makes necessary.
fn write(inner: &mut Inner, shard: &Shard, cell: &SessionCell, session: &Session, change: Change, now: Now) -> Owed {
    let who = (cell.live.device(), cell.hash);
    match change {
        // A PUBREC may leave when the packet id is remembered: sent again, the message is not forwarded again.
        Change::Received(packet_id) => inner.write(who, &Entry::Received(packet_id), now),
        // A PUBCOMP may leave when it is forgotten: another message may have it.
        Change::Finished(packet_id) => inner.write(who, &Entry::Finished(packet_id), now),
        Change::Sent { receipt, packet_id } => {
            let Some(number) = receipt else { return Owed::Nothing };
            let is_exact = session.message(number).is_some_and(|(_, message)| message.qos == QoS::ExactlyOnce);
            let is_written = inner.receipts.get_mut(number).is_some_and(|held| held.written);
            if is_written {
                inner.write(who, &Entry::Sent { number, packet_id }, now);
            } else if is_exact {
                write_message(inner, shard, cell, session, number, now);
            }
            // Sent again under another packet id, it would be another message to the device.
            return if is_exact { Owed::AfterTheDisk } else { Owed::Nothing };
        }
        // A PUBREL may leave when it is known that the message must not be sent again.
        Change::Released { packet_id, .. } => inner.write(who, &Entry::Released(packet_id), now),
        Change::Done { receipt, packet_id } => {
            let is_written = |number| inner.receipts.get_mut(number).is_some_and(|held| held.written);
            if receipt.is_none_or(is_written) {
                inner.write(who, &Entry::Done(packet_id), now);
            }
            return Owed::Nothing;
        }
        Change::Dropped { receipt, .. } => {
            if let Some(number) = receipt {
                inner.write(who, &Entry::Dropped(number), now);
            }
            return Owed::Nothing;
        }
    }
    Owed::AfterTheDisk
}

/// Writes a message that the session holds, and has its hub answered when that is on the disk.
fn write_message(inner: &mut Inner, shard: &Shard, cell: &SessionCell, session: &Session, number: Receipt, now: Now) {
    let Some((packet_id, message)) = session.message(number) else { return };
    let who = (cell.live.device(), cell.hash);
    inner.write(who, &Entry::queued(number, message, now), now);
    if let Some(packet_id) = packet_id {
        inner.write(who, &Entry::Sent { number, packet_id }, now);
    }
    lasts(inner, shard, number);
}

/// The message is written: its hub waits for the disk alone.
fn lasts(inner: &mut Inner, shard: &Shard, number: Receipt) {
    let Some(held) = inner.receipts.get_mut(number) else { return };
    held.written = true;
    if let Some(hub) = held.hub.take() {
        // Nothing can be on the disk that was written a moment ago.
        let _ = inner.journal.wait(Waiter::Hub(hub));
        shard.spooling.work();
    }
}

/// All of a session that is about to be without a connection and that is not written yet.
fn write_all(shard: &Shard, cell: &SessionCell, state: &SessionState) {
    let inner = &mut *shard.kept.inner.borrow_mut();
    let (who, now) = ((cell.live.device(), cell.hash), now(shard));
    for packet_id in &state.received {
        inner.write(who, &Entry::Received(*packet_id), now);
    }
    let in_flight = state.in_flight.iter().filter_map(|sent| match &sent.stage {
        Stage::Published(message) => Some((Some(sent.packet_id), message)),
        Stage::Released => None,
    });
    for (packet_id, message) in in_flight.chain(state.queued.iter().map(|message| (None, message))) {
        let Some(number) = message.receipt else { continue };
        if inner.receipts.get_mut(number).is_none_or(|held| held.written) {
            continue;
        }
        inner.write(who, &Entry::queued(number, message, now), now);
        if let Some(packet_id) = packet_id {
            inner.write(who, &Entry::Sent { number, packet_id }, now);
        }
        lasts(inner, shard, number);
    }
}

/// What is to be written to the device waits until all that was written is on the disk.
pub(in crate::shard) fn wait_for_disk(shard: &Shard, cell: &SessionCell) {
    let mut inner = shard.kept.inner.borrow_mut();
    cell.after_batch.set(inner.journal.mark());
    // Where nothing is to be waited for, the device is written to at once.
    let _ = inner.journal.wait(Waiter::Session(cell.who));
    shard.spooling.work();
}

/// How it stands.
fn standing(cell: &SessionCell, session: &Session, away_since: Option<UnixSeconds>) -> Standing {
    let reads_bags = iot_hub::applies(&cell.grant()) && session.version() == ProtocolVersion::V3_1_1;
    Standing { expires_after: session.session_expiry(), away_since, reads_bags }
}

fn stands_as(cell: &SessionCell, session: &Session) -> Entry<'static> {
    Entry::Standing(standing(cell, session, None), session.subscriptions().to_vec())
}
