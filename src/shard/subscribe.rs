//! SUBSCRIBE and UNSUBSCRIBE: authorized by `covers`, placed on the hub, answered when the hub has answered. And what
//! comes back: a message of the hub, to the sessions that asked for it.

use std::num::NonZeroU32;

use super::{
    Shard, iot_hub, kept,
    pump::Member,
    renewal,
    sessions::{SessionCell, State, Subscribing},
};
use crate::{
    delivery::{Incoming, Placed, Placement, Retained, STAMPED_DEVICE, SessionRef, Taken, Wish},
    denial::Denial,
    packet::{PublishRef, Subscribe, SubscriptionRequest, Unsubscribe},
    policy::Scope,
    registry::Attention,
    session::server::{self, Delivered, OutgoingMessage, SubscribeOutcome, Subscription},
    time::Tick,
    topic::{TopicFilter, TopicName},
};

/// Whether a packet was taken.
pub(super) enum Asked {
    /// It was.
    Now,
    /// It has to be offered again when nothing is being placed.
    Later,
}

/// Places what may be subscribed to. The SUBACK follows when every hub concerned has answered.
pub(super) fn subscribe(shard: &Shard, cell: &SessionCell, state: &mut State, request: Subscribe, now: Tick) -> Asked {
    // The quota counts what is granted: here it might be exceeded by what is not yet.
    let placing: usize = state.subscribing.iter().map(|asked| asked.request.requests.len()).sum();
    let filters = state.session.subscriptions().len() + placing + request.requests.len();
    if placing > 0 && filters > shard.site.limits.subscriptions_max || state.subscribing.len() >= SUBSCRIBING_MAX {
        return Asked::Later;
    }
    if request.requests.iter().any(|asked| asked.no_local) {
        cell.echoes.borrow_mut().get_or_insert_default();
    }
    let ticket = request.packet_id;
    let outcomes = (request.requests.iter().enumerate())
        .map(|(index, asked)| match &asked.filter {
            Err(denial) => Some(refuse(shard, cell, *denial, None)),
            Ok(filter) => {
                let retained = retained(asked, state.session.subscriptions());
                let as_published = asked.retain_as_published;
                let qos = asked.qos.min(state.session.qos_max());
                let wish = Wish { qos, retained, as_published, token: token(ticket, index) };
                match place(shard, cell, filter, wish, now) {
                    Ok(Placement::Pending) => None,
                    Ok(Placement::Granted(qos)) => Some(SubscribeOutcome::Granted(qos)),
                    Err(denial) => Some(refuse(shard, cell, denial, Some(filter))),
                }
            }
        })
        .collect();
    state.subscribing.push(Subscribing { request, outcomes });
    answer(shard, cell, state);
    Asked::Now
}

/// Takes back what was subscribed to.
pub(super) fn unsubscribe(
    shard: &Shard,
    cell: &SessionCell,
    state: &mut State,
    request: &Unsubscribe,
    now: Tick,
) -> Asked {
    // A filter that is being placed is not held yet, and would be after this.
    if !state.subscribing.is_empty() {
        return Asked::Later;
    }
    for ended in state.session.unsuback(request, &mut state.out) {
        take_back(shard, cell, &ended.filter, now);
    }
    kept::stands(shard, cell, state);
    Asked::Now
}

/// The connection ends: what was being placed and was not answered for is not held by the session that goes on.
pub(super) fn give_up(shard: &Shard, cell: &SessionCell, state: &mut State) {
    let now = shard.site.now();
    for Subscribing { request, .. } in std::mem::take(&mut state.subscribing) {
        for filter in request.requests.iter().filter_map(|asked| asked.filter.as_ref().ok()) {
            if state.session.subscriptions().iter().all(|held| held.filter != *filter) {
                take_back(shard, cell, filter, now);
            }
        }
    }
}

/// The scope became narrower: what is subscribed to, or being placed, and is not in it any more, is taken back.
pub(super) fn withdraw(shard: &Shard, cell: &SessionCell, state: &mut State, scope: &Scope, now: Tick) {
    let held = state.session.subscriptions().len();
    let keep = |filter: &TopicFilter| renewal::is_own(filter.as_str()) || scope.authorize_subscribe(filter).is_ok();
    for withdrawn in state.session.withdraw(keep, |topic| may_receive(scope, topic)) {
        take_back(shard, cell, &withdrawn.filter, now);
        let detail = format!("the subscription to {:?} was taken back", withdrawn.filter.as_str());
        shard.site.journal.action_refused(&cell.identified(), Denial::FilterOutOfScope, &detail);
    }
    if state.session.subscriptions().len() < held {
        kept::stands(shard, cell, state);
    }
    for Subscribing { request, outcomes } in &mut state.subscribing {
        for (asked, outcome) in request.requests.iter().zip(outcomes) {
            if let (Ok(filter), Some(SubscribeOutcome::Granted(_))) = (&asked.filter, &outcome)
                && !keep(filter)
            {
                take_back(shard, cell, filter, now);
                *outcome = Some(refuse(shard, cell, Denial::FilterOutOfScope, Some(filter)));
            }
        }
    }
}

/// At the hub, where others may hold the same filter.
fn take_back(shard: &Shard, cell: &SessionCell, filter: &TopicFilter, now: Tick) {
    if renewal::is_own(filter.as_str()) {
        return;
    }
    if let Ok((upstream, there)) = shard.site.routes.resolve_filter(filter, cell.live.device()) {
        shard.member(upstream, cell.hash).unsubscribe(cell.who, &there, now);
    }
}

fn may_receive(scope: &Scope, topic: TopicName<'_>) -> bool {
    renewal::is_own(topic.as_str()) || scope.subscribe().iter().any(|filter| filter.matches(topic))
}

/// A hub has answered for one filter.
pub(super) fn placed(shard: &Shard, placed: &Placed) {
    let Some(cell) = shard.session(placed.session) else { return };
    if placed.granted.is_err() {
        let state = cell.state.borrow();
        refuse(shard, &cell, Denial::HubRefused, asked_for(&state, placed));
    }
    if take_outcome(shard, &cell, &mut cell.state.borrow_mut(), placed) {
        cell.subscribed(shard.site.now());
    }
    cell.wake();
}

fn asked_for<'s>(state: &'s State, placed: &Placed) -> Option<&'s TopicFilter> {
    let (packet_id, index) = parts(placed.token);
    let asked = state.subscribing.iter().find(|s| s.request.packet_id == packet_id)?;
    asked.request.requests.get(index)?.filter.as_ref().ok()
}

/// Says whether nothing is being placed any more.
fn take_outcome(shard: &Shard, cell: &SessionCell, state: &mut State, placed: &Placed) -> bool {
    let (packet_id, index) = parts(placed.token);
    let asked = state.subscribing.iter_mut().find(|s| s.request.packet_id == packet_id);
    if let Some(Subscribing { request, outcomes }) = asked
        && let Some(outcome) = outcomes.get_mut(index)
    {
        let filter = request.requests.get(index).and_then(|asked| asked.filter.as_ref().ok());
        *outcome = Some(match (placed.granted, filter) {
            // The scope became narrower while the hub thought about it.
            (Ok(_), Some(filter)) if cell.grant().scope.authorize_subscribe(filter).is_err() => {
                take_back(shard, cell, filter, shard.site.now());
                refuse(shard, cell, Denial::FilterOutOfScope, Some(filter))
            }
            (Ok(qos), _) => SubscribeOutcome::Granted(qos),
            (Err(_), _) => SubscribeOutcome::Refused(Denial::HubRefused),
        });
    }
    answer(shard, cell, state);
    state.subscribing.is_empty()
}

/// A message of a hub for one session.
pub(super) fn deliver(shard: &Shard, upstream: usize, who: SessionRef, incoming: &Incoming<'_>) -> Taken {
    let Some(cell) = shard.session(who) else { return kept::deliver(shard, upstream, who, incoming) };
    match cell.live.attention() {
        None => {}
        // What outlives the connection waits for the next one.
        Some(Attention::Cut(_)) if cell.outlives.get() => {}
        Some(Attention::Cut(_)) => return Taken::Whole,
        // The session looks at it itself: what it gives back it cannot give back here, where the link is busy.
        Some(Attention::Regranted) => {
            cell.live.look_again();
            cell.wake();
            cell.narrowed.set(true);
        }
    }
    let Incoming { qos, retain, publish, .. } = *incoming;
    let Ok(there) = TopicName::new(publish.topic) else { return Taken::Whole };
    let mut buffer = shard.topic.borrow_mut();
    let wanted = |name: TopicName<'_>| is_subscribed(&cell, name);
    let Some(topic) = shard.site.routes.to_device(upstream, there, cell.live.device(), wanted, &mut buffer) else {
        shard.meter.dropped("not_routed_back", 1);
        return Taken::Whole;
    };
    if cell.narrowed.get() && !may_receive(&cell.live.grant().scope, topic) {
        shard.meter.dropped("scope_narrowed", 1);
        return Taken::Whole;
    }
    if is_own_unwanted(cell.as_ref(), topic, publish) {
        return Taken::Whole;
    }
    let mut properties = shard.properties.borrow_mut();
    properties.clear();
    publish.deliverable_properties(&mut properties);
    let mut bagged = String::new();
    let topic = match iot_hub::applies(&cell.grant()) {
        true => iot_hub::downwards(topic, &properties, cell.state.borrow().session.version(), &mut bagged),
        false => topic,
    };
    let State { session, out, subscribing } = &mut *cell.state.borrow_mut();
    let asked = asked(subscribing, topic);
    kept::offer(shard, &cell, upstream, incoming, |receipt, room| {
        let message = OutgoingMessage {
            topic,
            payload: publish.payload,
            qos,
            retain,
            properties: &properties,
            expiry: publish.message_expiry,
            receipt,
            asked: &asked,
            room,
        };
        let delivered = session.deliver(&message, out, shard.site.now());
        match delivered {
            Delivered::Written | Delivered::Sent => cell.wake(),
            Delivered::Queued => {}
            Delivered::Dropped(reason) => shard.meter.dropped(reason.tag(), 1),
        }
        delivered
    })
}

fn is_subscribed(cell: &SessionCell, topic: TopicName<'_>) -> bool {
    cell.state.borrow().session.subscriptions().iter().any(|held| held.filter.matches(topic))
}

/// Whether a message is the device's own, and it wants none of those.
fn is_own_unwanted(cell: &SessionCell, topic: TopicName<'_>, publish: &PublishRef<'_>) -> bool {
    let Some(echoes) = &mut *cell.echoes.borrow_mut() else { return false };
    let there = str::from_utf8(publish.topic).unwrap_or_default();
    let is_own =
        publish.has_user_property(STAMPED_DEVICE, cell.live.device().as_str()) || echoes.take(there, publish.payload);
    is_own && cell.state.borrow().session.is_local_unwanted(topic)
}

/// What sessions hold on the hub of a member.
impl Member {
    pub(super) fn subscribe(&self, who: SessionRef, filter: &TopicFilter, wish: Wish, now: Tick) -> Placement {
        self.wake();
        self.link.borrow_mut().subscribe(who, filter, wish, now)
    }

    pub(super) fn unsubscribe(&self, who: SessionRef, filter: &TopicFilter, now: Tick) {
        self.wake();
        self.link.borrow_mut().unsubscribe(who, filter, now);
    }

    /// What one session holds on the hub is another's.
    pub(super) fn hand_over(&self, from: SessionRef, to: SessionRef) {
        self.link.borrow_mut().hand_over(from, to);
    }
}

/// Filters that are being placed and match: a hub may send what it retains before it answers.
fn asked<'s>(subscribing: &'s [Subscribing], topic: TopicName<'_>) -> Vec<server::Asked<'s>> {
    let mut asked: Vec<server::Asked<'_>> = Vec::new();
    for Subscribing { request, outcomes } in subscribing {
        let id = request.subscription_id.and_then(NonZeroU32::new);
        for (asks, outcome) in request.requests.iter().zip(outcomes) {
            let is_refused = matches!(outcome, Some(SubscribeOutcome::Refused(_)));
            if let Ok(filter) = &asks.filter
                && !is_refused
                && filter.matches(topic)
            {
                // MQTT 5.0 [MQTT-3.8.4-3]: the last one takes the place of those before it.
                asked.retain(|earlier| earlier.filter != filter);
                asked.push(server::Asked { filter, qos: asks.qos, id });
            }
        }
    }
    asked
}

/// Whether the device is to get what a hub retains (MQTT 5.0 §3.8.3.1).
fn retained(asked: &SubscriptionRequest, held: &[Subscription]) -> Retained {
    let is_new = || held.iter().all(|held| Ok(&held.filter) != asked.filter.as_ref());
    match asked.retain_handling {
        0 => Retained::Wanted,
        1 if is_new() => Retained::Once,
        _ => Retained::Unwanted,
    }
}

/// SUBACKs leave as soon as they are complete, in the order in which they became so.
fn answer(shard: &Shard, cell: &SessionCell, state: &mut State) {
    let State { session, out, subscribing } = state;
    let placing = subscribing.len();
    subscribing.retain(|asked| {
        let complete: Option<Vec<SubscribeOutcome>> = asked.outcomes.iter().copied().collect();
        if let Some(outcomes) = &complete {
            session.suback(&asked.request, outcomes, out);
        }
        complete.is_none()
    });
    if subscribing.len() < placing {
        kept::stands(shard, cell, state);
    }
}

fn place(shard: &Shard, cell: &SessionCell, filter: &TopicFilter, wish: Wish, now: Tick) -> Result<Placement, Denial> {
    if renewal::is_own(filter.as_str()) {
        // The gateway answers it itself: no hub has to know.
        return if renewal::is_answered(filter) {
            Ok(Placement::Granted(wish.qos))
        } else {
            Err(Denial::FilterOutOfScope)
        };
    }
    cell.grant().scope.authorize_subscribe(filter)?;
    let (upstream, there) = shard.site.routes.resolve_filter(filter, cell.live.device())?;
    let member = shard.member(upstream, cell.hash);
    if !member.takes(there.as_str()) {
        return Err(Denial::HubRefused);
    }
    Ok(member.subscribe(cell.who, &there, wish, now))
}

fn refuse(shard: &Shard, cell: &SessionCell, denial: Denial, filter: Option<&TopicFilter>) -> SubscribeOutcome {
    if cell.journals_refusal() {
        let who = cell.identified();
        let detail = filter.map_or_else(String::new, |f| format!("SUBSCRIBE to {:?}", f.as_str()));
        shard.site.journal.action_refused(&who, denial, &detail);
    }
    SubscribeOutcome::Refused(denial)
}

/// Names one filter of one SUBSCRIBE to the link.
fn token(packet_id: u16, index: usize) -> u64 {
    u64::from(packet_id) << 16 | index as u64
}

/// What a [`token`] names: packet id and index.
fn parts(token: u64) -> (u16, usize) {
    ((token >> 16) as u16, (token & 0xffff) as usize)
}

/// SUBSCRIBE packets of one device that wait for a hub.
const SUBSCRIBING_MAX: usize = 16;
