//! Filters that the hub may still hold under this client id, of sessions that are elsewhere now: the pool has another
//! number of connections than it had. What the hub kept for them, and sends until it has taken the filters back, is for
//! those sessions all the same.

use super::{Claim, Found, Holder, HubCopy, Subscriptions, one_a_session, subscription_id};
use crate::{
    delivery::{Link, SessionRef},
    packet::QoS,
    time::Tick,
    topic::{FilterTree, TopicFilter, TopicName},
};

impl Subscriptions {
    /// A session that is elsewhere held the filter here, and is called so.
    pub(super) fn moved_away(&mut self, who: SessionRef, filter: &TopicFilter, qos: QoS) {
        let (id, as_published, missed) = (subscription_id(filter), false, false);
        self.moved.insert(filter, Holder { session: who, qos, id, as_published, missed });
        self.has_moved = true;
    }

    /// The hub is asked to take back what no session here holds.
    pub(super) fn give_back(&mut self, filter: &TopicFilter) {
        if !self.entries.contains_key(filter) {
            self.unwanted.insert(filter.clone());
        }
    }

    /// Whether a copy says that it is for a filter of theirs.
    pub(super) fn names_moved(&self, copy: &HubCopy<'_>) -> bool {
        let mut named = false;
        self.moved.for_each_match(copy.topic, |holder| named |= copy.subscription_ids.contains(&holder.id));
        named
    }

    /// Those who are elsewhere and get a copy, too: each one, and of what the hub retains none. `named`: it says for which of
    /// the filters here and there it is.
    pub(super) fn matches_moved(
        &mut self,
        copy: &HubCopy<'_>,
        named: bool,
        found: &mut Vec<Found>,
        claim: Claim,
    ) -> Claim {
        // With RETAIN it is for those here who have just subscribed, if there are any.
        if claim != Claim::Unclaimed && (copy.retained || self.moved_get_the_rest) {
            return claim;
        }
        let mut matching = std::mem::take(&mut self.matching);
        matching.clear();
        self.moved.for_each_match(copy.topic, |holder| matching.push(*holder));
        one_a_session(&mut matching);
        let got = matching.iter().filter(|holder| !named || copy.subscription_ids.contains(&holder.id));
        found.extend(got.map(|holder| Found { session: holder.session, qos: holder.qos, retain: false }));
        let any = !matching.is_empty();
        self.matching = matching;
        if any { Claim::Claimed } else { claim }
    }
}

impl Link {
    /// The hub may hold the filter for a session that is elsewhere now; messages for it are delivered to `who`.
    pub fn moved_away(&mut self, who: SessionRef, filter: &TopicFilter, qos: QoS) {
        self.subscriptions.moved_away(who, filter, qos);
    }

    /// They have what they hold elsewhere: the hub is asked to take back here what nobody else holds. What it has for
    /// them still is delivered.
    pub fn give_back_moved<'f>(&mut self, filters: impl Iterator<Item = &'f TopicFilter>, now: Tick) {
        filters.for_each(|filter| self.subscriptions.give_back(filter));
        self.ask(now);
    }

    /// From here on they get what is for nobody here: the rest is new, and reaches them elsewhere.
    pub fn moved_get_the_rest(&mut self) {
        self.subscriptions.moved_get_the_rest = true;
    }

    /// Nothing more is expected for them.
    pub fn forget_moved(&mut self) {
        (self.subscriptions.moved, self.subscriptions.has_moved) = (FilterTree::default(), false);
    }

    /// How many messages the hub has sent, since the start.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Whether the hub has answered for every filter that it was asked for.
    pub fn has_placed_all(&self) -> bool {
        self.is_up() && self.subscriptions.missing() == 0 && self.subscriptions.is_answered()
    }

    /// The QoS at which a session gets messages of this topic; none: it holds no filter for it here.
    pub fn holds_for(&self, who: SessionRef, topic: TopicName<'_>) -> Option<QoS> {
        let mut qos = None;
        let mut look = |holder: &Holder| qos = qos.max((holder.session == who).then_some(holder.qos));
        self.subscriptions.holders.for_each_match(topic, &mut look);
        qos
    }

    /// From the next connection on the hub is to forget all that it keeps under this client id.
    pub fn begin_anew(&mut self) {
        self.client.begin_anew();
    }
}
