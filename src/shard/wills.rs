//! When a will is sent: at once, after its delay, or never (MQTT 5.0 §3.1.2.5, §3.1.3.2.2).
//!
//! A will is nobody's session any more when it is sent: it waits for its turn at its hub's link under a name of its own,
//! as long as that takes. Where sessions are written down, it is written down when CONNECT is accepted, and crossed out
//! when a witness has it: what a killed gateway owed, the next start sends.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{
    Shard,
    connection::stamp_of,
    device_hash, kept,
    publish::{self, Offered, Publisher},
    sessions::SessionCell,
};
use crate::{
    delivery::{SessionRef, Settled, Woken, spool::queue_of},
    denial::{CloseReason, Denial},
    gate::Standing,
    id::DeviceId,
    journal::Who,
    packet::{QoS, Will},
    policy::Grant,
    session::{
        image::{Entry, KeptWill, MessageRef},
        server::{Receipt, SessionPresent},
    },
    time::Tick,
};

/// The will of a connection that lives.
pub(super) struct OfConnection {
    will: Box<Will>,
    /// Seconds, as CONNECT has it.
    waits: u32,
    /// Under which it is written down, where it is.
    number: Option<Receipt>,
}

/// Wills whose connections have ended.
#[derive(Default)]
pub(super) struct Wills {
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By name.
    wills: BTreeMap<u32, Left>,
    /// Those of devices that may come back in time: one a device at most.
    delayed: HashMap<DeviceId, u32>,
    due: BTreeSet<(Tick, u32)>,
    /// Those whose turn has come.
    woken: Vec<u32>,
    last_name: u32,
    bytes: usize,
    /// Of the last one that was written down.
    last_number: u64,
}

/// One will.
struct Left {
    will: Box<Will>,
    number: Option<Receipt>,
    /// By which it is sent: asked again each time that it is tried.
    grant: Arc<Grant>,
    peer: SocketAddr,
    hash: u64,
    stage: Stage,
    /// When it is due, of the wall clock; none: the next start says, since this one ends.
    due_at_ms: Option<u64>,
    /// Seconds that it waits, where the next start says.
    waits: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Its device may still come back.
    Delayed(Tick),
    /// It is to be sent, and waits for its turn, or until the gate can decide.
    Owed,
    /// Delivery has it, and a witness is awaited.
    Sent,
}

impl Wills {
    /// Of a shard whose log holds numbers up to this.
    pub(super) fn after(last_number: u64) -> Self {
        Self { inner: RefCell::new(Inner { last_number, ..Inner::default() }) }
    }
}

/// CONNECT is accepted, with this will. Where it is written down, the device is told when that is on the disk.
pub(super) fn accepted(shard: &Shard, cell: &SessionCell, will: Box<Will>) {
    let number = shard.kept.are_written().then(|| {
        let inner = &mut *shard.wills.inner.borrow_mut();
        inner.last_number = inner.last_number.saturating_add(1);
        Receipt::new(inner.last_number).expect("invariant: counted from 1")
    });
    let waits = will.delay.min(cell.state.borrow().session.session_expiry());
    *cell.will.borrow_mut() = Some(Box::new(OfConnection { will, waits, number }));
    if write_held(shard, cell) {
        kept::wait_for_disk(shard, cell);
    }
}

/// The token of a connection is another one, or allows less: its will goes by that.
pub(super) fn regranted(shard: &Shard, cell: &SessionCell) {
    write_held(shard, cell);
}

/// Writes the will of a connection. One that hangs on a client certificate is not written: the next start could not ask
/// for it again.
fn write_held(shard: &Shard, cell: &SessionCell) -> bool {
    let mut held = cell.will.borrow_mut();
    let Some(OfConnection { will, waits, number }) = held.as_deref_mut() else { return false };
    let Some(as_written) = *number else { return false };
    let mut proof = proof_of(cell.live.peer);
    let message = MessageRef::of_will(will).filter(|_| cell.grant().write(&mut proof));
    let device = (cell.live.device(), cell.hash);
    let Some(message) = message else {
        *number = None;
        kept::write(shard, device, &Entry::WillGone(as_written));
        return false;
    };
    let entry = Entry::Will { number: as_written, due_at_ms: None, waits: *waits, message, proof: &proof };
    kept::write(shard, device, &entry);
    true
}

/// A connection has ended, with a will or without.
pub(super) fn left(shard: &Shard, cell: &SessionCell, reason: CloseReason) {
    let Some(held) = cell.will.borrow_mut().take() else { return };
    let OfConnection { will, number, .. } = *held;
    let session_expiry = cell.state.borrow().session.session_expiry();
    let now = kept::now(shard);
    let waits = will.delay.min(session_expiry);
    let (grant, peer, hash) = (cell.grant().clone(), cell.live.peer, cell.hash);
    let delay = match fate(reason, will.delay, session_expiry) {
        // MQTT 5.0 §3.1.2.5: a server that ends may leave it to its next start, where the session is as well.
        Fate::Never if reason == CloseReason::Draining && cell.outlives.get() && number.is_some() => {
            let (stage, due_at_ms) = (Stage::Delayed(Tick(u64::MAX)), None);
            // Where there is no room it stands in the log, as long as that is not written anew.
            return drop(keep(shard, None, Left { will, number, grant, peer, hash, stage, due_at_ms, waits }));
        }
        Fate::Never => return cross_out(shard, cell.live.device(), cell.hash, number),
        Fate::Now => None,
        Fate::After(delay) => match successor(shard, cell) {
            // MQTT 5.0 [MQTT-3.1.3-9]: it has come back, to this session.
            Some(SessionPresent::Yes) => return cross_out(shard, cell.live.device(), cell.hash, number),
            // To another: this one is over.
            Some(SessionPresent::No) => None,
            None => Some(delay),
        },
    };
    let due = now.tick.plus(delay.unwrap_or_default());
    let due_at_ms = now.wall_ms_at(due);
    let stage = Stage::Delayed(due);
    let left = Left { will, number, grant, peer, hash, stage, due_at_ms: Some(due_at_ms), waits };
    if delay.is_none() {
        return send(shard, None, left);
    }
    let earlier = shard.wills.inner.borrow().delayed.get(cell.live.device()).copied();
    if let Some(earlier) = earlier.and_then(|name| take(shard, name).map(|left| (name, left))) {
        send(shard, Some(earlier.0), earlier.1);
    }
    if let Some(number) = left.number {
        kept::write(shard, (cell.live.device(), cell.hash), &Entry::WillDue(number, due_at_ms));
    }
    if let Err(left) = keep(shard, None, left) {
        // Better too early than not at all.
        send(shard, None, *left);
    }
}

/// A device has connected again.
pub(super) fn came_back(shard: &Shard, device: &DeviceId, session: SessionPresent) {
    let name = shard.wills.inner.borrow().delayed.get(device).copied();
    let Some((name, left)) = name.and_then(|name| Some((name, take(shard, name)?))) else { return };
    match session {
        // MQTT 5.0 [MQTT-3.1.3-9]
        SessionPresent::Yes => cross_out(shard, device, left.hash, left.number),
        SessionPresent::No => send(shard, Some(name), left),
    }
}

/// The session of a device that is away is ended by an operator, and its will with it.
pub(super) fn forget(shard: &Shard, device: &DeviceId) {
    let name = shard.wills.inner.borrow().delayed.get(device).copied();
    if let Some(left) = name.and_then(|name| take(shard, name)) {
        cross_out(shard, device, left.hash, left.number);
    }
}

/// Wills of an earlier start. Who was connected when it ended has a moment to come back.
pub(super) fn restore(shard: &Shard, wills: Vec<(DeviceId, KeptWill)>) {
    let now = kept::now(shard);
    for (device, KeptWill { number, due_at_ms, waits, will, proof }) in wills {
        let hash = device_hash(&device);
        let Some((peer, grant)) = read_proof(&device, &proof) else {
            tracing::error!(device = device.as_str(), "a will that was written down cannot be read: it is not sent");
            cross_out(shard, &device, hash, Some(number));
            continue;
        };
        let was_due = due_at_ms.is_some_and(|at| at <= now.wall_ms);
        let due = match due_at_ms {
            Some(at) => now.tick_at(at),
            None => now.tick.plus(Duration::from_secs(waits.into()).max(BACK_WITHIN)),
        };
        let stage = if was_due { Stage::Owed } else { Stage::Delayed(due) };
        let (will, grant) = (Box::new(will), Arc::new(grant));
        let left = Left { will, number: Some(number), grant, peer, hash, stage, due_at_ms, waits };
        if let Some(name) = keep_or_drop(shard, None, left)
            && was_due
        {
            shard.wills.inner.borrow_mut().due.insert((now.tick, name));
        }
    }
}

/// Sends those whose delay has passed.
pub(super) fn tick(shard: &Shard, now: Tick) {
    loop {
        let name = {
            let inner = &mut *shard.wills.inner.borrow_mut();
            match inner.due.first() {
                Some((at, _)) if *at <= now => inner.due.pop_first().map(|(_, name)| name),
                _ => None,
            }
        };
        let Some(name) = name else { break };
        if let Some(left) = take(shard, name) {
            send(shard, Some(name), left);
        }
    }
    send_woken(shard);
}

/// Whether it is a will that waits.
#[inline]
pub(super) fn is_one(who: SessionRef) -> bool {
    who.slot == WILL
}

/// A link has a place for a will.
pub(super) fn wake(shard: &Shard, who: SessionRef) -> Woken {
    let inner = &mut *shard.wills.inner.borrow_mut();
    if inner.wills.get(&who.generation).is_none_or(|left| left.stage != Stage::Owed) {
        return Woken::Gone;
    }
    inner.woken.push(who.generation);
    Woken::Here
}

/// Those whose turn has come are sent. No link may be borrowed.
#[inline]
pub(super) fn send_woken(shard: &Shard) {
    if shard.wills.inner.borrow().woken.is_empty() {
        return;
    }
    let woken = std::mem::take(&mut shard.wills.inner.borrow_mut().woken);
    for name in woken {
        if let Some(left) = take(shard, name) {
            send(shard, Some(name), left);
        }
    }
}

/// A witness has it, or its hub will not have it.
pub(super) fn settled(shard: &Shard, settled: &Settled) {
    let Some(left) = take(shard, settled.session.generation) else { return };
    if settled.outcome.is_err() {
        refused(shard, &left, Denial::HubRefused);
    }
    cross_out(shard, &left.grant.device, left.hash, left.number);
}

/// All that is written of a queue, as it stands.
pub(super) fn write_queue(shard: &Shard, queue: u16) {
    let of_queue = |cell: &&std::rc::Rc<SessionCell>| cell.will.borrow().is_some() && queue_of(cell.hash) == queue;
    let cells: Vec<_> = shard.sessions.borrow().iter().filter(of_queue).cloned().collect();
    cells.iter().for_each(|cell| _ = write_held(shard, cell));
    for left in shard.wills.inner.borrow().wills.values().filter(|left| queue_of(left.hash) == queue) {
        let Left { will, number: Some(number), grant, peer, hash, due_at_ms, waits, .. } = left else { continue };
        let mut proof = proof_of(*peer);
        if let Some(message) = MessageRef::of_will(will).filter(|_| grant.write(&mut proof)) {
            let (number, due_at_ms, waits) = (*number, *due_at_ms, *waits);
            let entry = Entry::Will { number, due_at_ms, waits, message, proof: &proof };
            kept::write(shard, (&grant.device, *hash), &entry);
        }
    }
}

/// Sends it now, or has it wait for its turn.
fn send(shard: &Shard, name: Option<u32>, left: Left) {
    let name = name.unwrap_or_else(|| shard.wills.inner.borrow_mut().name());
    let (who, hash) = (SessionRef { slot: WILL, generation: name }, left.hash);
    if offer(shard, who, left) == Became::Waiting {
        return;
    }
    // What was promised to it, and not used, is others'.
    for (upstream, _) in shard.members.iter().enumerate() {
        shard.member(upstream, hash).give_back(who);
    }
}

/// What became of a will that was offered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Became {
    /// It stands in the queue of its link.
    Waiting,
    /// It needs no place any more, or not yet.
    Settled,
}

/// Offers it to its hub, unless it may not be sent any more: what was taken from the device while it was away counts.
fn offer(shard: &Shard, who: SessionRef, mut left: Left) -> Became {
    let name = Some(who.generation);
    match shard.site.gate.standing(&left.grant, shard.site.clock.now()) {
        Standing::Given => {}
        Standing::Narrowed(grant) => left.grant = grant,
        // Nobody can tell: it is asked again.
        Standing::Ended(CloseReason::InternalError) => {
            is_owed(shard, &mut left);
            let again = shard.site.now().plus(AGAIN_AFTER);
            if let Some(name) = keep_or_drop(shard, name, left) {
                shard.wills.inner.borrow_mut().due.insert((again, name));
            }
            return Became::Settled;
        }
        Standing::Ended(reason) if fires(reason) => {}
        Standing::Ended(_) => {
            cross_out(shard, &left.grant.device, left.hash, left.number);
            return Became::Settled;
        }
    }
    let offered = {
        let (stamp, hash) = (stamp_of(shard, &left.grant), left.hash);
        publish::will(shard, &Publisher { who, hash, grant: &left.grant, stamp: &stamp, echoes: None }, &left.will)
    };
    match offered {
        Offered::Wait(_) => {
            is_owed(shard, &mut left);
            keep_or_drop(shard, name, left);
            return Became::Waiting;
        }
        Offered::Taken if left.will.qos > QoS::AtMostOnce && left.number.is_some() => {
            left.stage = Stage::Sent;
            keep_or_drop(shard, name, left);
        }
        Offered::Taken | Offered::Dropped => cross_out(shard, &left.grant.device, left.hash, left.number),
        Offered::Refused(denial) => {
            refused(shard, &left, denial);
            cross_out(shard, &left.grant.device, left.hash, left.number);
        }
    }
    Became::Settled
}

/// It is to be sent as soon as that is possible, by the next start if need be, whoever comes back.
fn is_owed(shard: &Shard, left: &mut Left) {
    if left.stage == Stage::Owed {
        return;
    }
    let due_at_ms = kept::now(shard).wall_ms;
    (left.stage, left.due_at_ms) = (Stage::Owed, Some(due_at_ms));
    if let Some(number) = left.number {
        kept::write(shard, (&left.grant.device, left.hash), &Entry::WillDue(number, due_at_ms));
    }
}

fn refused(shard: &Shard, left: &Left, denial: Denial) {
    let Left { grant, peer, .. } = left;
    let who = Who { device: grant.device.as_str(), peer: *peer, token_id: Some(grant.token_id) };
    shard.site.journal.action_refused(&who, denial, "the will was not sent");
}

/// Keeps it; where there is no room, it is given up and counted.
fn keep_or_drop(shard: &Shard, name: Option<u32>, left: Left) -> Option<u32> {
    let left = match keep(shard, name, left) {
        Ok(name) => return Some(name),
        Err(left) => left,
    };
    // Delivery goes on with what it has.
    if left.stage != Stage::Sent {
        shard.meter.dropped("will_without_room", 1);
    }
    cross_out(shard, &left.grant.device, left.hash, left.number);
    None
}

fn keep(shard: &Shard, name: Option<u32>, left: Left) -> Result<u32, Box<Left>> {
    let inner = &mut *shard.wills.inner.borrow_mut();
    let (count_max, bytes) = (shard.site.limits.connections_max.max(WILLS_MIN), left.bytes());
    if inner.wills.len() >= count_max || inner.bytes + bytes > WILLS_BYTES_MAX {
        return Err(Box::new(left));
    }
    let name = name.unwrap_or_else(|| inner.name());
    if let Stage::Delayed(due) = left.stage {
        inner.delayed.insert(left.grant.device.clone(), name);
        inner.due.insert((due, name));
    }
    inner.bytes += bytes;
    inner.wills.insert(name, left);
    Ok(name)
}

fn take(shard: &Shard, name: u32) -> Option<Left> {
    let inner = &mut *shard.wills.inner.borrow_mut();
    let left = inner.wills.remove(&name)?;
    inner.bytes -= left.bytes();
    if let Stage::Delayed(due) = left.stage {
        inner.due.remove(&(due, name));
        inner.delayed.remove(&left.grant.device);
    }
    Some(left)
}

fn cross_out(shard: &Shard, device: &DeviceId, hash: u64, number: Option<Receipt>) {
    if let Some(number) = number {
        kept::write(shard, (device, hash), &Entry::WillGone(number));
    }
}

impl Inner {
    /// Nobody else is called so.
    fn name(&mut self) -> u32 {
        loop {
            self.last_name = self.last_name.wrapping_add(1);
            if !self.wills.contains_key(&self.last_name) {
                return self.last_name;
            }
        }
    }
}

impl Left {
    fn bytes(&self) -> usize {
        let Will { topic, payload, properties, .. } = &*self.will;
        size_of::<Self>() + size_of::<Will>() + topic.len() + payload.len() + properties.len()
    }
}

/// By which right it is sent, as it is written down: what was granted follows.
fn proof_of(peer: SocketAddr) -> Vec<u8> {
    let peer = peer.to_string();
    let mut proof = vec![u8::try_from(peer.len()).unwrap_or_default()];
    proof.extend_from_slice(peer.as_bytes().get(..usize::from(proof[0])).unwrap_or_default());
    proof
}

fn read_proof(device: &DeviceId, proof: &[u8]) -> Option<(SocketAddr, Grant)> {
    let (length, rest) = proof.split_first()?;
    let (peer, grant) = rest.split_at_checked(usize::from(*length))?;
    let peer = std::str::from_utf8(peer).ok().and_then(|text| text.parse().ok());
    Some((peer.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)), Grant::read(device, grant)?))
}

/// The session that has taken the place of this one, if one has: whether it goes on with what this one left.
fn successor(shard: &Shard, cell: &SessionCell) -> Option<SessionPresent> {
    let live = shard.site.registry.of_device(cell.live.device().as_str())?;
    let successor = shard.session(SessionRef { slot: live.slot, generation: live.generation })?;
    (successor.who != cell.who).then(|| successor.present.get())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Never,
    Now,
    After(Duration),
}

/// The will of a connection that ended so. It waits for its delay, and no longer than its session lasts.
fn fate(reason: CloseReason, delay: u32, session_expiry: u32) -> Fate {
    match (fires(reason), delay.min(session_expiry)) {
        (false, _) => Fate::Never,
        (true, 0) => Fate::Now,
        (true, seconds) => Fate::After(Duration::from_secs(seconds.into())),
    }
}

/// MQTT 5.0 §3.1.2.5; never after a revocation or a withdrawn grant, and not when an operator or a drain ends it.
fn fires(reason: CloseReason) -> bool {
    !matches!(
        reason,
        CloseReason::ClientDisconnect
            | CloseReason::Revoked
            | CloseReason::GrantWithdrawn
            | CloseReason::Administrative
            | CloseReason::Draining
            | CloseReason::RenewalRefused(Denial::Revoked | Denial::DeviceDisabled | Denial::DeviceUnknown)
    )
}

/// The slot of those who have none, as that of sessions whose devices are away.
const WILL: u32 = u32::MAX - 1;
/// Of one shard, where fewer connections are allowed: a device may leave several before its hub takes the first.
const WILLS_MIN: usize = 1_000;
/// Of one shard. A will is as large as a CONNECT may be; most are some tens of bytes.
const WILLS_BYTES_MAX: usize = 32 << 20;
/// Until the gate is asked again that could not decide.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A device whose gateway was killed, or ended, is not gone: it has so long to come back before its will is sent.
const BACK_WITHIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_will_waits_for_its_delay_and_no_longer_than_its_session_lasts() {
        let after = |seconds| Fate::After(Duration::from_secs(seconds));
        assert_eq!(fate(CloseReason::ConnectionLost, 0, 60), Fate::Now);
        assert_eq!(fate(CloseReason::ConnectionLost, 30, 0), Fate::Now);
        assert_eq!(fate(CloseReason::KeepAlive, 30, 60), after(30));
        assert_eq!(fate(CloseReason::Expired, 90, 60), after(60));
        assert_eq!(fate(CloseReason::TakenOver, u32::MAX, u32::MAX), after(u32::MAX.into()));
    }

    #[test]
    fn a_will_is_not_sent_where_its_device_left_or_was_sent_away() {
        for reason in [CloseReason::ClientDisconnect, CloseReason::Revoked, CloseReason::Administrative] {
            assert_eq!((fate(reason, 0, 0), fate(reason, 30, 60)), (Fate::Never, Fate::Never));
        }
    }
}
