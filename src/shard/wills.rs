//! When a will is sent: at once, after its delay, or never (MQTT 5.0 §3.1.2.5, §3.1.3.2.2).

use std::{cell::RefCell, collections::HashMap, rc::Rc, time::Duration};

use super::{Shard, publish, sessions::SessionCell};
use crate::{
    delivery::SessionRef,
    denial::{CloseReason, Denial},
    gate::Standing,
    id::DeviceId,
    packet::Will,
    session::server::SessionPresent,
    time::Tick,
};

/// Wills of devices that are away and may come back in time. One a device at most.
#[derive(Default)]
pub(super) struct Wills {
    delayed: RefCell<HashMap<DeviceId, Delayed>>,
}

struct Delayed {
    /// The session as it was when its connection ended.
    cell: Rc<SessionCell>,
    will: Box<Will>,
    due: Tick,
}

/// A connection with a will has ended.
pub(super) fn left(shard: &Shard, cell: &Rc<SessionCell>, will: Box<Will>, reason: CloseReason) {
    let session_expiry = cell.state.borrow().session.session_expiry();
    let now = shard.site.now();
    match fate(reason, will.delay, session_expiry) {
        Fate::Never => {}
        Fate::Now => publish::will(shard, cell, &will),
        Fate::After(delay) => match successor(shard, cell) {
            // MQTT 5.0 [MQTT-3.1.3-9]: it has come back, to this session.
            Some(SessionPresent::Yes) => {}
            // To another: this one is over.
            Some(SessionPresent::No) => publish::will(shard, cell, &will),
            None => {
                let delayed = Delayed { cell: cell.clone(), will, due: now.plus(delay) };
                let full = shard.wills.delayed.borrow().len() >= DELAYED_MAX;
                let sent_now = if full { Some(delayed) } else { shard.wills.put(delayed) };
                if let Some(Delayed { cell, will, .. }) = sent_now {
                    publish::will(shard, &cell, &will);
                }
            }
        },
    }
}

/// A device has connected again.
pub(super) fn came_back(shard: &Shard, device: &DeviceId, session: SessionPresent) {
    let delayed = shard.wills.delayed.borrow_mut().remove(device);
    if let Some(delayed) = delayed.filter(|_| session == SessionPresent::No) {
        send(shard, &delayed);
    }
}

/// Sends those whose delay has passed.
pub(super) fn tick(shard: &Shard, now: Tick) {
    if shard.wills.delayed.borrow().is_empty() {
        return;
    }
    let due: Vec<Delayed> =
        shard.wills.delayed.borrow_mut().extract_if(|_, delayed| delayed.due <= now).map(|(_, due)| due).collect();
    due.iter().for_each(|delayed| send(shard, delayed));
}

impl Wills {
    /// Gives back the one in whose place it is.
    fn put(&self, delayed: Delayed) -> Option<Delayed> {
        let device = delayed.cell.live.device().clone();
        self.delayed.borrow_mut().insert(device, delayed)
    }
}

/// Asked again: what was taken from the device while it was away counts.
fn send(shard: &Shard, Delayed { cell, will, .. }: &Delayed) {
    match shard.site.gate.standing(&cell.live.grant(), shard.site.clock.now()) {
        Standing::Given => {}
        Standing::Narrowed(grant) => cell.set_grant(grant),
        Standing::Ended(reason) if fires(reason) => {}
        Standing::Ended(_) => return,
    }
    publish::will(shard, cell, will);
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

/// Of one shard: beyond it wills do not wait. Each is as large as a CONNECT may be.
const DELAYED_MAX: usize = 1_000;

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
