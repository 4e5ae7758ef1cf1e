//! What a hub retains: who waits for it, and how it is told from what was published just now. See the parent.

use std::{collections::HashSet, hash::BuildHasher as _, time::Duration};

use super::{Entry, Found, Holder, HubCopy, Subscriptions, one_a_session, subscription_id};
use crate::{delivery::SessionRef, session::client::SubscriptionOptions, time::Tick, topic::TopicFilter};

/// A session that waits for what the hub retains for a filter.
#[derive(Default)]
pub(super) struct Awaits {
    /// So long, once the hub has answered; put off by each message that comes.
    pub(super) until: Option<Tick>,
    /// Topics that it has got, hashed: the hub sends them again when another session asks.
    pub(super) seen: HashSet<u64>,
}

impl Subscriptions {
    /// The hub has the filter, with these options: what it retains is on its way, or is to be asked for.
    pub(super) fn placed(&mut self, filter: &TopicFilter, options: SubscriptionOptions, now: Tick) {
        let Some(entry) = self.entries.get(filter) else { return };
        if !options.as_published {
            self.cleared.insert(subscription_id(filter));
        }
        let until = now.plus(RETAINED_WITHIN);
        for key in entry.holders.iter().map(|holder| (holder.session, holder.id)) {
            let Some(awaits) = self.awaiting.get_mut(&key).filter(|awaits| awaits.until.is_none()) else { continue };
            if options.retained {
                awaits.until = Some(until);
                self.awaited.push_back((until, key));
            } else {
                self.wanted.insert(filter.clone());
            }
        }
    }

    /// A copy with RETAIN, for those who wait for such: each gets a topic once. Says whether anybody does.
    pub(super) fn awaited_by(
        &mut self,
        copy: &HubCopy<'_>,
        named: bool,
        matching: &[Holder],
        found: &mut Vec<Found>,
        now: Tick,
    ) -> bool {
        self.forget_awaited(now);
        let topic = self.topics.hash_one(copy.topic.as_str());
        let mut waited = false;
        let mut waiting: Vec<Holder> = Vec::new();
        for holder in matching.iter().filter(|holder| !named || copy.subscription_ids.contains(&holder.id)) {
            let Some(awaits) = self.awaiting.get_mut(&(holder.session, holder.id)) else { continue };
            waited = true;
            if awaits.seen.contains(&topic) {
                continue;
            }
            if awaits.seen.len() < TOPICS_SEEN_MAX {
                awaits.seen.insert(topic);
            }
            awaits.until = awaits.until.map(|_| now.plus(RETAINED_WITHIN));
            waiting.push(*holder);
        }
        one_a_session(&mut waiting);
        found.extend(waiting.iter().map(|holder| Found { session: holder.session, qos: holder.qos, retain: true }));
        waited
    }

    pub(super) fn forget_awaited(&mut self, now: Tick) {
        while let Some((at, key)) = self.awaited.front().copied()
            && at <= now
        {
            self.awaited.pop_front();
            let Some(until) = self.awaiting.get(&key).and_then(|awaits| awaits.until) else { continue };
            if until > now {
                self.awaited.push_back((until, key));
                continue;
            }
            self.awaiting.remove(&key);
            self.leave_as_published(key);
        }
    }

    /// One waits no more for what a filter brings: RETAIN may be left as published again, where somebody wants that.
    fn leave_as_published(&mut self, (session, id): (SessionRef, u32)) {
        let filters = self.by_session.get(&session);
        let Some(filter) = filters.and_then(|all| all.iter().find(|filter| subscription_id(filter) == id)) else {
            return;
        };
        let Some(entry) = self.entries.get(filter) else { return };
        if self.cleared.contains(&id)
            && entry.holders.iter().any(|holder| holder.as_published)
            && entry.holders.iter().all(|holder| !self.awaiting.contains_key(&(holder.session, holder.id)))
        {
            self.wanted.insert(filter.clone());
        }
    }

    /// With which options a hub is asked for a filter that it gives a name. See the module.
    pub(super) fn options(&self, id: u32, entry: &Entry) -> SubscriptionOptions {
        let awaits = |holder: &Holder| self.awaiting.get(&(holder.session, holder.id));
        let is_new = |holder: &Holder| awaits(holder).is_some_and(|awaits| awaits.until.is_none());
        let retained = entry.holders.iter().any(is_new);
        let as_published = entry.holders.iter().any(|holder| holder.as_published);
        match (as_published, retained) {
            (false, retained) => SubscriptionOptions { as_published: false, retained },
            (true, true) if entry.holders.iter().all(is_new) => {
                SubscriptionOptions { as_published: true, retained: true }
            }
            (true, true) => SubscriptionOptions { as_published: false, retained: self.cleared.contains(&id) },
            (true, false) => {
                let nobody_waits = entry.holders.iter().all(|holder| awaits(holder).is_none());
                SubscriptionOptions { as_published: nobody_waits, retained: false }
            }
        }
    }
}

/// What a hub retains follows its SUBACK, and one message the other, within this; a broker sends it at once.
const RETAINED_WITHIN: Duration = Duration::from_secs(10);

/// Topics of which it is known that a session has got what is retained. Of more it may get some again when another session
/// asks meanwhile.
const TOPICS_SEEN_MAX: usize = 4_096;
