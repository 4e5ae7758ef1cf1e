//! What a session must do in time: have its token renewed, be heard of, bring a packet to its end, take what it is sent. It
//! is looked at when its turn on the wheel comes.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    Shard,
    sessions::{Pause, SessionCell},
};
use crate::{
    delivery::SessionRef,
    denial::CloseReason,
    time::{Tick, UnixSeconds},
};

/// The clock moved, or the machine was stopped for `stood_still`: timers are set anew, and before anything is read
/// whoever has expired is deaf. A device that nobody could hear was not silent.
pub(super) fn look_at_all(shard: &Rc<Shard>, stood_still: Duration, now: Tick) {
    let all: Vec<Rc<SessionCell>> = shard.sessions.borrow().iter().cloned().collect();
    for cell in all {
        cell.closes_at.set(shard.site.clock.tick_of(cell.grant().closes_at));
        if stood_still > super::STOOD_STILL {
            cell.state.borrow_mut().session.heard(now);
            [&cell.begun, &cell.blocked].iter().for_each(|since| since.set(since.get().map(|_| now)));
        }
        look(shard, &cell, now);
    }
}

/// A session that is due on the wheel, unless it was looked at since and is due later.
pub(super) fn look_at(shard: &Rc<Shard>, who: SessionRef, now: Tick) {
    let Some(cell) = shard.session(who) else { return };
    if cell.due.get() <= now {
        look(shard, &cell, now);
    }
}

/// Its token ends at another time from here on.
pub(super) fn reschedule(shard: &Shard, cell: &SessionCell, closes_at: UnixSeconds) {
    let closes_at = shard.site.clock.tick_of(closes_at);
    cell.closes_at.set(closes_at);
    // A later end is found when its turn on the wheel comes.
    if closes_at < cell.due.get() {
        cell.due.set(shard.wheel.borrow_mut().schedule(cell.who, closes_at));
    }
}

/// It has ended, its time is up, or it is put on the wheel.
pub(super) fn look(shard: &Rc<Shard>, cell: &SessionCell, now: Tick) {
    // While the gateway does not read, the device's silence says nothing.
    if cell.pause() != Pause::None || !cell.state.borrow().session.wants_input() {
        cell.state.borrow_mut().session.heard(now);
        cell.begun.set(cell.begun.get().map(|_| now));
    }
    let quiet_until = cell.state.borrow().session.deadline();
    let within = shard.site.limits.packet_timeout;
    let [whole_by, taken_by] = [&cell.begun, &cell.blocked].map(|since| since.get().map(|since| since.plus(within)));
    let is_over = |at: Option<Tick>| at.is_some_and(|at| at <= now);
    let ended = if cell.closes_at.get() <= now {
        Some(CloseReason::Expired)
    } else if is_over(whole_by) {
        Some(CloseReason::PacketTimeout)
    } else if is_over(taken_by) {
        Some(CloseReason::NotReading)
    } else {
        // MQTT 5.0 [MQTT-3.1.2-22]
        is_over(quiet_until).then_some(CloseReason::KeepAlive)
    };
    match ended {
        Some(reason) => {
            cell.live.deafen(reason, Instant::now());
            cell.wake();
        }
        None => {
            if now.since(cell.state.borrow().session.idle_since()) > IDLE {
                cell.state.borrow_mut().session.shrink();
            }
            let ends = [quiet_until, whole_by, taken_by].into_iter().flatten();
            let next = ends.fold(cell.closes_at.get(), Tick::min);
            cell.due.set(shard.wheel.borrow_mut().schedule(cell.who, next));
        }
    }
}

/// Something has begun that must come to its end in time, if it had not before.
pub(super) fn must_end(shard: &Shard, cell: &SessionCell, since: &Cell<Option<Tick>>) {
    if since.get().is_some() {
        return;
    }
    let now = shard.site.now();
    since.set(Some(now));
    let at = now.plus(shard.site.limits.packet_timeout);
    if at < cell.due.get() {
        cell.due.set(shard.wheel.borrow_mut().schedule(cell.who, at));
    }
}

/// A session that was silent so long gives its rings and queues back.
const IDLE: Duration = Duration::from_secs(5);
