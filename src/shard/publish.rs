//! One PUBLISH: scope, route, and the log of a hub's link. Nothing else leads into a log.

use std::cell::RefCell;

use super::{
    Shard,
    echoes::Echoes,
    iot_hub, renewal,
    sessions::{Pause, SessionCell},
};
use crate::{
    delivery::{Offer, Outbound, SessionRef},
    denial::Denial,
    packet::{ProtocolVersion, PublishRef, QoS, Will},
    policy::Grant,
    session::server::Inbound,
    time::Tick,
    topic::TopicName,
};

/// What became of a PUBLISH.
pub(super) enum Offered {
    /// It is in the log; QoS 1 is settled later.
    Taken,
    /// Not now: the session does not read until the cause is gone.
    Wait(Pause),
    /// QoS 0 that found no room, counted.
    Dropped,
    /// It may not be published.
    Refused(Denial),
}

/// Offers one PUBLISH of a device to the hub that it is routed to.
#[inline]
pub(super) fn offer(shard: &Shard, cell: &SessionCell, inbound: &Inbound<'_>, now: Tick) -> Offered {
    let mut rate = cell.rate.get();
    let rested = rate.take(shard.site.limits.publishes_per_second_per_device, now);
    if !rested {
        shard.resting.borrow_mut().push(cell.who);
        return Offered::Wait(Pause::Rate);
    }
    let message = Message {
        topic: inbound.topic,
        qos: inbound.qos,
        retain: inbound.retain,
        packet_id: inbound.packet_id,
        publish: Some(&inbound.publish),
        properties: &[],
        payload: inbound.publish.payload,
    };
    let offered = {
        let (grant, stamp) = (cell.grant(), cell.stamp.borrow());
        let echoes = Some(&cell.echoes);
        forward(
            shard,
            &Publisher { who: cell.who, hash: cell.hash, grant: &grant, stamp: &stamp, echoes },
            &message,
            now,
        )
    };
    match &offered {
        Offered::Taken => shard.meter.publish_accepted(),
        Offered::Refused(denial) => refused(shard, cell, *denial, inbound),
        Offered::Wait(_) | Offered::Dropped => {}
    }
    if !matches!(offered, Offered::Wait(_)) {
        cell.rate.set(rate);
    }
    offered
}

/// Gives back what was promised and not used.
pub(super) fn done(shard: &Shard, cell: &SessionCell) {
    for (upstream, _) in shard.members.iter().enumerate() {
        if cell.pause() != Pause::Hub(upstream) {
            shard.member(upstream, cell.hash).give_back(cell.who);
        }
    }
}

/// Offers a will, held to the scope once more.
pub(super) fn will(shard: &Shard, publisher: &Publisher<'_>, will: &Will) -> Offered {
    let Ok(topic) = TopicName::new(will.topic.as_bytes()) else { return Offered::Refused(Denial::TopicOutOfScope) };
    let message = Message {
        topic,
        qos: will.qos,
        retain: will.retain,
        packet_id: 0,
        publish: None,
        properties: &will.properties,
        payload: &will.payload,
    };
    let offered = forward(shard, publisher, &message, shard.site.now());
    if let Offered::Taken = offered {
        shard.meter.publish_accepted();
    }
    offered
}

/// Whose message it is: a session's, or that of a connection that has ended.
pub(super) struct Publisher<'a> {
    /// Who waits for a place.
    pub(super) who: SessionRef,
    /// Of the device.
    pub(super) hash: u64,
    pub(super) grant: &'a Grant,
    pub(super) stamp: &'a [u8],
    /// Where the device wants none of its own messages.
    pub(super) echoes: Option<&'a RefCell<Option<Box<Echoes>>>>,
}

/// A message of a device, from a PUBLISH or from a will.
struct Message<'a> {
    topic: TopicName<'a>,
    qos: QoS,
    retain: bool,
    packet_id: u16,
    publish: Option<&'a PublishRef<'a>>,
    properties: &'a [u8],
    payload: &'a [u8],
}

#[inline]
fn forward(shard: &Shard, publisher: &Publisher<'_>, message: &Message<'_>, now: Tick) -> Offered {
    // Nothing of the gateway's own is forwarded, whatever a scope says.
    if renewal::is_own(message.topic.as_str()) {
        return Offered::Refused(Denial::TopicOutOfScope);
    }
    let Publisher { who, hash, grant, stamp, echoes } = *publisher;
    let is_iot_hub = iot_hub::applies(grant);
    let (mut rewritten, mut cleaned, mut retained) = (shard.properties.borrow_mut(), String::new(), String::new());
    let (name, properties) = match forwardable(message, is_iot_hub, &mut rewritten, &mut cleaned) {
        Ok(forwardable) => forwardable,
        Err(denial) => return Offered::Refused(denial),
    };
    let permit = match grant.scope.authorize_publish(name, message.qos as u8, message.retain) {
        Ok(permit) => permit,
        Err(denial) => return Offered::Refused(denial),
    };
    let mut topic = shard.topic.borrow_mut();
    let envelope = match shard.site.routes.resolve(permit, &grant.device, &mut topic) {
        Ok(envelope) => envelope,
        Err(denial) => return Offered::Refused(denial),
    };
    let member = shard.member(envelope.upstream, hash);
    if !member.takes(envelope.topic) {
        return Offered::Refused(Denial::HubRefused);
    }
    let (topic, retain) = if is_iot_hub && message.retain {
        let hub = shard.site.upstreams[envelope.upstream].link.client.version;
        (iot_hub::retained(envelope.topic, hub, &mut retained), false)
    } else {
        (envelope.topic, message.retain)
    };
    let outbound = Outbound {
        topic,
        qos: message.qos,
        retain,
        properties,
        stamp,
        payload: message.payload,
        received_ms: if shard.stamps { shard.site.clock.now_ms() } else { 0 },
        device: hash,
        ack: envelope.ack,
    };
    match member.offer(&shard.spooling, who, message.packet_id, &outbound, now) {
        Offer::Taken => {
            if let Some(echoes) = echoes
                && let Some(echoes) = &mut *echoes.borrow_mut()
                && shard.site.upstreams[envelope.upstream].link.client.version == ProtocolVersion::V3_1_1
            {
                echoes.sent(topic, message.payload);
            }
            Offered::Taken
        }
        Offer::Wait => Offered::Wait(Pause::Hub(envelope.upstream)),
        Offer::Dropped(reason) => {
            shard.meter.dropped(reason, 1);
            Offered::Dropped
        }
        Offer::TooLarge => Offered::Refused(Denial::PacketTooLarge),
    }
}

/// Topic and properties as a hub may see them.
#[inline]
fn forwardable<'m>(
    message: &'m Message<'_>,
    is_iot_hub: bool,
    rewritten: &'m mut Vec<u8>,
    cleaned: &'m mut String,
) -> Result<(TopicName<'m>, &'m [u8]), Denial> {
    let as_is = match message.publish {
        Some(publish) if !publish.properties.is_empty() && !publish.is_forwardable_as_is() => None,
        Some(publish) => Some(publish.properties),
        None => Some(message.properties),
    };
    if let Some(properties) = as_is.filter(|_| !is_iot_hub) {
        return Ok((message.topic, properties));
    }
    rewritten.clear();
    match (as_is, message.publish) {
        (None, Some(publish)) => publish.forwardable_properties(rewritten),
        (properties, _) => rewritten.extend_from_slice(properties.unwrap_or_default()),
    }
    let topic =
        if is_iot_hub { iot_hub::upwards(message.topic, message.retain, rewritten, cleaned)? } else { message.topic };
    Ok((topic, rewritten))
}

#[cold]
fn refused(shard: &Shard, cell: &SessionCell, denial: Denial, inbound: &Inbound<'_>) {
    shard.meter.publish_refused();
    if cell.journals_refusal() {
        let who = cell.identified();
        let detail = format!("PUBLISH to {:?}, QoS {}", inbound.topic.as_str(), inbound.qos as u8);
        shard.site.journal.action_refused(&who, denial, &detail);
    }
}
