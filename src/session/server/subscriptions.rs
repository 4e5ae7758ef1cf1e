//! What the device has subscribed to.

use std::num::NonZeroU32;

use super::Asked;
use crate::{
    denial::Denial,
    packet::{DeliveryProperties, QoS, SubscriptionRequest},
    topic::{TopicFilter, TopicName},
};

/// A subscription that was granted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subscription {
    /// In the device's terms.
    pub filter: TopicFilter,
    /// The highest QoS of messages for it.
    pub qos: QoS,
    /// 5.0: no message of its own.
    pub no_local: bool,
    /// 5.0: RETAIN stays as the publisher set it.
    pub retain_as_published: bool,
    /// 5.0: 0: retained messages at once; 1: only if the subscription is new; 2: none.
    pub retain_handling: u8,
    /// 5.0: named in every message for it.
    pub id: Option<NonZeroU32>,
}

impl Subscription {
    pub(super) fn granted(filter: TopicFilter, qos: QoS, id: Option<u32>, request: &SubscriptionRequest) -> Self {
        Self {
            filter,
            qos,
            no_local: request.no_local,
            retain_as_published: request.retain_as_published,
            retain_handling: request.retain_handling,
            id: id.and_then(NonZeroU32::new),
        }
    }
}

/// The driver's answer to one request of a SUBSCRIBE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubscribeOutcome {
    /// Granted with this QoS at most; never more than was asked and is offered.
    Granted(QoS),
    /// Refused.
    Refused(Denial),
}

/// What a message is for.
#[derive(Debug)]
pub(super) struct Match {
    pub(super) qos: QoS,
    /// The identifiers of all subscriptions that match, encoded.
    pub(super) ids: DeliveryProperties,
}

impl Default for Match {
    fn default() -> Self {
        Self { qos: QoS::AtMostOnce, ids: DeliveryProperties::default() }
    }
}

/// A short list: a scan of it beats a table, and an idle session should be small.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    list: Vec<Subscription>,
}

impl Subscriptions {
    pub(super) fn of(list: Vec<Subscription>) -> Self {
        Self { list }
    }

    pub(super) fn all(&self) -> &[Subscription] {
        &self.list
    }

    /// Adds it, or takes the place of the one with the same filter [MQTT-3.8.4-3].
    pub(super) fn insert(&mut self, subscription: Subscription) {
        match self.list.iter_mut().find(|held| held.filter == subscription.filter) {
            Some(held) => *held = subscription,
            None => self.list.push(subscription),
        }
    }

    pub(super) fn remove(&mut self, filter: &TopicFilter) -> Option<Subscription> {
        let at = self.list.iter().position(|held| held.filter == *filter)?;
        Some(self.list.remove(at))
    }

    /// Keeps those that are wanted; returns the others.
    pub(super) fn withdraw(&mut self, keep: impl Fn(&TopicFilter) -> bool) -> Vec<Subscription> {
        self.list.extract_if(.., |held| !keep(&held.filter)).collect()
    }

    /// What the message is for, together with filters that are being asked for; `None`: nothing.
    pub(super) fn matching(&self, topic: TopicName<'_>, asked: &[Asked<'_>]) -> Option<Match> {
        let held = self.list.iter().filter(|held| held.filter.matches(topic));
        // MQTT 5.0 [MQTT-3.8.4-3]: one that is asked for again is replaced.
        let held = held.filter(|held| asked.iter().all(|asked| *asked.filter != held.filter));
        let held = held.map(|held| Asked { filter: &held.filter, qos: held.qos, id: held.id });
        let mut found: Option<Match> = None;
        for Asked { qos, id, .. } in held.chain(asked.iter().copied()) {
            let found = found.get_or_insert_default();
            // MQTT 5.0 [MQTT-3.3.4-2]: the highest of those that match.
            found.qos = found.qos.max(qos);
            // MQTT 5.0 [MQTT-3.3.4-3], [MQTT-3.3.4-4]
            if let Some(id) = id {
                found.ids.subscription_id(id.get());
            }
        }
        found
    }

    /// Whether the topic is for subscriptions that want no message of the device's own, and for none that does.
    pub(super) fn are_all_no_local(&self, topic: TopicName<'_>) -> bool {
        let mut matching = self.list.iter().filter(|held| held.filter.matches(topic)).peekable();
        matching.peek().is_some() && matching.all(|held| held.no_local)
    }

    pub(super) fn has_no_local(&self) -> bool {
        self.list.iter().any(|held| held.no_local)
    }

    pub(super) fn take(&mut self) -> Vec<Subscription> {
        std::mem::take(&mut self.list)
    }

    pub(super) fn resume(&mut self, list: Vec<Subscription>) {
        self.list = list;
    }

    /// Refuses the requests that would make it more than `max` filters, or more text than [`FILTER_BYTES_MAX`].
    pub(super) fn refuse_beyond(&self, max: usize, requests: &mut [SubscriptionRequest]) {
        let mut new: Vec<TopicFilter> = vec![];
        let mut bytes: usize = self.list.iter().map(|held| held.filter.as_str().len()).sum();
        for request in requests {
            let Ok(filter) = &request.filter else { continue };
            if self.list.iter().any(|held| held.filter == *filter) || new.contains(filter) {
                continue;
            }
            let more = filter.as_str().len();
            if self.list.len() + new.len() < max && bytes + more <= FILTER_BYTES_MAX {
                bytes += more;
                new.push(filter.clone());
            } else {
                request.filter = Err(Denial::SubscriptionQuota);
            }
        }
    }
}

/// Text of all filters of one session: it is kept here, written down and asked of a hub. The longest one that MQTT can
/// say fits, or fifty of 1,300 bytes.
const FILTER_BYTES_MAX: usize = 64 << 10;
