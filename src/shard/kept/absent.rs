//! A session whose device is away.

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::{
    Inner, answer,
    journal::Waiter,
    live::{Left, hand_over},
    now,
    receipts::{Held, Hub},
    room,
};
use crate::{
    delivery::{Incoming, Retained, SessionRef, Settled, Taken, Ticket, Wish, spool::queue_of},
    id::DeviceId,
    packet::ProtocolVersion,
    roster::Away,
    session::{
        image::{Entry, Kept as Image, Standing},
        server::{Delivered, DropReason, Message, OutgoingMessage, Room, SessionState, Settlement},
    },
    shard::{Shard, device_hash, iot_hub, renewal, sessions::SessionCell},
    time::UnixSeconds,
    topic::TopicName,
};

/// See the module.
pub(super) struct Absent {
    device: DeviceId,
    hash: u64,
    state: Box<SessionState>,
    standing: Standing,
    seen: Arc<Away>,
}

/// A session begins to wait for its device. What it holds on the hubs stays.
pub(super) fn add(
    shard: &Shard,
    (device, hash): (&DeviceId, u64),
    Left { state, from, receipts }: Left,
    standing: Standing,
) {
    let now = now(shard);
    let to = shard.kept.inner.borrow_mut().name();
    hand_over(shard, hash, from, to);
    let inner = &mut *shard.kept.inner.borrow_mut();
    inner.heirs.inherit(from, to, &state.awaited);
    for receipt in receipts {
        if let Some(held) = inner.receipts.get_mut(receipt) {
            held.session = to;
        }
    }
    inner.write((device, hash), &Entry::Standing(standing, state.subscriptions.clone()), now);
    put(shard, inner, (device, hash), Box::new(state), (to, standing));
}

/// Sessions of an earlier start take their places.
pub(super) fn restore(shard: &Shard, sessions: Vec<(DeviceId, Image)>) {
    let (now, today) = (now(shard), shard.site.clock.now());
    for (device, Image { standing, state }) in sessions {
        let hash = device_hash(&device);
        let (who, filters) = {
            let inner = &mut *shard.kept.inner.borrow_mut();
            let who = inner.name();
            for receipt in state.receipts() {
                // The bytes of each are counted: they were let in by an earlier start.
                let bytes = state.message(receipt).map_or(0, |message| message.memory_bytes() as u64);
                inner.receipts.restore(receipt, Held { session: who, hub: None, counted: Some(bytes), written: true });
                shard.site.roster.keep(bytes);
            }
            // Who was connected when the gateway stopped is away from here on.
            let was_away = standing.away_since.is_some();
            let standing = Standing { away_since: Some(standing.away_since.unwrap_or(today)), ..standing };
            if !was_away {
                inner.write((&device, hash), &Entry::Standing(standing, state.subscriptions.clone()), now);
            }
            let filters = state.subscriptions.clone();
            put(shard, inner, (&device, hash), Box::new(state), (who, standing));
            (who, filters)
        };
        for held in filters.into_iter().filter(|held| !renewal::is_own(held.filter.as_str())) {
            if let Ok((upstream, there)) = shard.site.routes.resolve_filter(&held.filter, &device) {
                let retained = if held.retain_handling == 0 { Retained::Missed } else { Retained::Unwanted };
                let wish = Wish { qos: held.qos, retained, as_published: held.retain_as_published, token: 0 };
                // It was granted; a hub that refuses it says so in the log.
                let _ = shard.member(upstream, hash).subscribe(who, &there, wish, now.tick);
            }
        }
    }
}

fn put(
    shard: &Shard,
    inner: &mut Inner,
    (device, hash): (&DeviceId, u64),
    state: Box<SessionState>,
    (who, standing): (SessionRef, Standing),
) {
    let since = standing.away_since.unwrap_or(shard.site.clock.now());
    let expires_at = UnixSeconds(since.0.saturating_add(standing.expires_after.into()));
    let messages = AtomicUsize::new(state.in_flight.len() + state.queued.len());
    let subscriptions = state.subscriptions.len();
    let seen = Arc::new(Away { since, expires_at, shard: shard.index, messages, subscriptions });
    shard.site.roster.add(device.clone(), seen.clone());
    inner.expires.insert((expires_at, who));
    inner.by_device.insert(device.clone(), who);
    inner.absent.insert(who, Absent { device: device.clone(), hash, state, standing, seen });
}

/// The session of a device that is away.
pub(in crate::shard) fn away(shard: &Shard, device: &DeviceId) -> Option<SessionRef> {
    shard.kept.inner.borrow().by_device.get(device).copied()
}

/// The device is back: its session is its connection's.
pub(super) fn take(shard: &Shard, device: &DeviceId) -> Option<Left> {
    let inner = &mut *shard.kept.inner.borrow_mut();
    let who = inner.by_device.remove(device)?;
    let absent = inner.absent.remove(&who)?;
    inner.expires.remove(&(absent.seen.expires_at, who));
    shard.site.roster.remove(device);
    let receipts = absent.state.receipts().collect();
    Some(Left { state: *absent.state, from: who, receipts })
}

/// A session is over: whoever waits for anything of it waits no more.
pub(super) fn forget(shard: &Shard, (device, hash): (&DeviceId, u64), left: &Left, written: Written) {
    let mut hubs = Vec::new();
    {
        let inner = &mut *shard.kept.inner.borrow_mut();
        for held in left.receipts.iter().filter_map(|receipt| inner.receipts.take(*receipt)) {
            held.counted.inspect(|bytes| shard.site.roster.let_go(*bytes));
            hubs.extend(held.hub);
        }
        inner.heirs.forget(left.from);
        if written == Written::Yes {
            inner.write((device, hash), &Entry::Ended, now(shard));
        }
    }
    hubs.into_iter().for_each(|hub| answer(shard, hub));
    let now = shard.site.now();
    for (upstream, _) in shard.members.iter().enumerate() {
        shard.member(upstream, hash).session_gone(left.from, now);
    }
}

/// Whether anything was written of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Written {
    Yes,
    No,
}

/// The session of a device ends where it is away; says whether it was.
pub(in crate::shard) fn end(shard: &Shard, device: &DeviceId, why: &'static str) -> bool {
    let Some(left) = take(shard, device) else { return false };
    let messages = left.receipts.len();
    shard.meter.dropped("session_ended", messages as u64);
    tracing::info!(device = device.as_str(), messages, why, "a session ended while its device was away");
    forget(shard, (device, device_hash(device)), &left, Written::Yes);
    true
}

/// A message of a hub for a device that is away, or for nobody.
pub(in crate::shard) fn deliver(shard: &Shard, upstream: usize, who: SessionRef, incoming: &Incoming<'_>) -> Taken {
    let inner = &mut *shard.kept.inner.borrow_mut();
    let Some(absent) = inner.absent.get(&who) else { return Taken::Whole };
    let Incoming { qos, retain, publish, ticket } = *incoming;
    let Ok(there) = TopicName::new(publish.topic) else { return Taken::Whole };
    let mut buffer = shard.topic.borrow_mut();
    let wanted = |name: TopicName<'_>| absent.state.subscriptions.iter().any(|held| held.filter.matches(name));
    let Some(topic) = shard.site.routes.to_device(upstream, there, &absent.device, wanted, &mut buffer) else {
        shard.meter.dropped("not_routed_back", 1);
        return Taken::Whole;
    };
    let mut properties = shard.properties.borrow_mut();
    properties.clear();
    publish.deliverable_properties(&mut properties);
    let mut bagged = String::new();
    let topic = match absent.standing.reads_bags {
        true => iot_hub::downwards(topic, &properties, ProtocolVersion::V3_1_1, &mut bagged),
        false => topic,
    };
    let message = OutgoingMessage {
        topic,
        payload: publish.payload,
        qos,
        retain,
        properties: &properties,
        expiry: publish.message_expiry,
        receipt: Some(inner.receipts.next()),
        asked: &[],
        room: Room::Some,
    };
    keep(shard, inner, who, ticket.map(|ticket| (upstream, ticket)), &message)
}

/// The message waits for its device, and the hub for the disk.
fn keep(
    shard: &Shard,
    inner: &mut Inner,
    who: SessionRef,
    hub: Option<(usize, Ticket)>,
    message: &OutgoingMessage<'_>,
) -> Taken {
    let (now, queue_max) = (now(shard), shard.site.limits.queue_max);
    let Inner { receipts, journal, absent, .. } = inner;
    let Some(Absent { device, hash, state, seen, .. }) = absent.get_mut(&who) else { return Taken::Whole };
    if state.queued.len() >= queue_max {
        for number in state.expire(now.tick).into_iter().flatten() {
            journal.write(device, *hash, &Entry::Dropped(number), now);
            receipts.take(number).and_then(|held| held.counted).inspect(|bytes| shard.site.roster.let_go(*bytes));
            seen.messages.fetch_sub(1, Relaxed);
            shard.meter.dropped(DropReason::Expired.tag(), 1);
        }
    }
    let bytes = message.topic.as_str().len() + message.properties.len() + message.payload.len() + size_of::<Message>();
    let message = &OutgoingMessage { room: room(shard, bytes), ..*message };
    if let Delivered::Dropped(reason) = state.wait_for_device(message, queue_max, now.tick) {
        shard.meter.dropped(reason.tag(), 1);
        return Taken::Whole;
    }
    let Some((number, message)) = state.queued.last().and_then(|message| Some((message.receipt?, message))) else {
        return Taken::Whole;
    };
    let bytes = message.memory_bytes() as u64;
    journal.write(device, *hash, &Entry::queued(number, message, now), now);
    receipts.restore(number, Held { session: who, hub: None, counted: Some(bytes), written: true });
    shard.site.roster.keep(bytes);
    seen.messages.fetch_add(1, Relaxed);
    shard.spooling.work();
    let Some((upstream, ticket)) = hub else { return Taken::Whole };
    let hub = Hub { upstream, hash: *hash, ticket };
    // Nothing can be on the disk that was written a moment ago: the hub waits.
    let _ = journal.wait(Waiter::Hub(hub));
    Taken::Held
}

/// Delivery speaks of a message that an ended connection brought, to the session that goes on.
pub(in crate::shard) fn settled(shard: &Shard, settled: &Settled) -> Option<Rc<SessionCell>> {
    let inner = &mut *shard.kept.inner.borrow_mut();
    let heir = inner.heirs.take(settled.session, settled.packet_id)?;
    let Some(Absent { device, hash, state, .. }) = inner.absent.get_mut(&heir) else { return shard.session(heir) };
    let stored = settled.outcome.is_ok();
    state.settle(settled.packet_id, if stored { Settlement::Stored } else { Settlement::Refused });
    if state.received.contains(&settled.packet_id) {
        inner.journal.write(device, *hash, &Entry::Received(settled.packet_id), now(shard));
    }
    None
}

/// Sessions end whose time is up, or whose devices may not come back.
pub(super) fn sweep(shard: &Shard) {
    let today = shard.site.clock.now();
    let mut ended: Vec<(DeviceId, &'static str)> = Vec::new();
    {
        let inner = &mut *shard.kept.inner.borrow_mut();
        let due = inner.expires.iter().take_while(|(at, _)| *at <= today);
        let device_of = |who| inner.absent.get(who).map(|absent| absent.device.clone());
        ended.extend(due.filter_map(|(_, who)| Some((device_of(who)?, "its time is up"))));
        let epoch = shard.site.gate.epoch();
        if epoch != inner.epoch {
            inner.epoch = epoch;
            let may_not = inner.by_device.keys().filter(|device| !shard.site.gate.awaits(device, today));
            ended.extend(may_not.map(|device| (device.clone(), "its device is revoked, switched off or unknown")));
        }
    }
    for (device, why) in ended {
        end(shard, &device, why);
    }
}

/// All sessions of a queue whose devices are away, as they are.
pub(super) fn write_queue(shard: &Shard, queue: u16) {
    let (Inner { absent, journal, .. }, now) = (&mut *shard.kept.inner.borrow_mut(), now(shard));
    for Absent { device, hash, state, standing, .. } in absent.values().filter(|one| queue_of(one.hash) == queue) {
        Image::write(*standing, state, now, &mut |entry| journal.write(device, *hash, entry, now));
    }
}
