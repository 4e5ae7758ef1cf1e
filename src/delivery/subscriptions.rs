//! The devices' subscriptions on one hub connection: counted by reference, placed on the hub once for all who hold the
//! same filter, and placed again after the hub has forgotten them.
//!
//! Where filters overlap, a hub may send a copy for each of them (MQTT 5.0 §3.3.4); mosquitto does so on 5.0. Every copy
//! then says by its subscription identifiers for which filters it is, and each session gets the one that is for the best
//! of its own. On 3.1.1 copies cannot be told apart, and each is delivered.
//!
//! A hub sends what it retains for a filter whenever it is asked for the filter. It is asked again for each session that
//! wants that, and only those get it who have just subscribed: a copy with RETAIN is such a message, since the hub is
//! never asked to leave RETAIN as published.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::Duration,
};

use super::{LinkOutput, Placed, Placement, Retained, SessionRef, Wish, Withdrawn};
use crate::{
    packet::{QoS, VARINT_MAX},
    time::Tick,
    topic::{FilterTree, TopicFilter, TopicName},
};

/// See the module.
#[derive(Default)]
pub(super) struct Subscriptions {
    entries: HashMap<TopicFilter, Entry>,
    holders: FilterTree<Holder>,
    by_session: HashMap<SessionRef, HashSet<TopicFilter>>,
    /// To be asked of the hub.
    wanted: BTreeSet<TopicFilter>,
    /// Held by the hub and by no session.
    unwanted: BTreeSet<TopicFilter>,
    /// SUBSCRIBEs that the hub has not answered, by packet id.
    asked: HashMap<u16, Vec<(TopicFilter, QoS)>>,
    /// UNSUBSCRIBEs that the hub has not answered, the oldest first. Nothing waits for them: rumqttd answers one filter
    /// at a time, and does not answer at all for a filter of a session that it resumed.
    given_back: VecDeque<(u16, Vec<TopicFilter>)>,
    last_id: u16,
    matching: Vec<Holder>,
    /// Who gets what the hub retains, by session and identifier of the filter: until then, once the hub has answered.
    awaiting: HashMap<(SessionRef, u32), Option<Tick>>,
    /// When they got it, the earliest first.
    awaited: VecDeque<(Tick, (SessionRef, u32))>,
}

/// A request for the hub.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Request {
    /// With a subscription identifier, if the hub has such.
    Subscribe(Option<u32>, Vec<(TopicFilter, QoS)>),
    Unsubscribe(Vec<TopicFilter>),
}

/// How a hub is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Identifiers {
    /// Each filter in a request of its own, under an identifier.
    Named,
    /// Many filters in one request.
    None,
}

/// One copy of a message, as the hub sent it.
#[derive(Clone, Copy)]
pub(super) struct HubCopy<'a> {
    pub(super) topic: TopicName<'a>,
    /// A retained message, sent for a subscription that is new.
    pub(super) retained: bool,
    pub(super) subscription_ids: &'a [u32],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Holder {
    session: SessionRef,
    qos: QoS,
    /// Of the filter.
    id: u32,
}

#[derive(Default)]
struct Entry {
    holders: Vec<Holder>,
    /// Who waits for the hub's answer, each with its token.
    waiting: Vec<(SessionRef, u64)>,
    /// The request that asks for it now, and at which QoS.
    asked: Option<(u16, QoS)>,
    /// At which QoS the hub was asked, and what it granted.
    held: Option<(QoS, QoS)>,
}

impl Entry {
    fn qos(&self) -> QoS {
        self.holders.iter().map(|h| h.qos).max().unwrap_or(QoS::AtMostOnce)
    }

    fn qos_of(&self, session: SessionRef) -> Option<QoS> {
        self.holders.iter().find(|h| h.session == session).map(|h| h.qos)
    }
}

/// Whether requests can be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LinkState {
    Up,
    Down,
}

impl Subscriptions {
    /// Adds a holder, or changes its QoS. `Granted`: nothing need be asked, or it is placed when the link is up again.
    pub(super) fn subscribe(
        &mut self,
        who: SessionRef,
        filter: &TopicFilter,
        wish: Wish,
        link: LinkState,
    ) -> Placement {
        let qos = wish.qos.min(QoS::AtLeastOnce);
        // Who asks twice is answered twice.
        self.replace_holder(who, filter);
        self.unwanted.remove(filter);
        let holder = Holder { session: who, qos, id: subscription_id(filter) };
        match wish.retained {
            Retained::Wanted => _ = self.awaiting.insert((who, holder.id), None),
            Retained::Unwanted => _ = self.awaiting.remove(&(who, holder.id)),
        }
        self.holders.insert(filter, holder);
        self.by_session.entry(who).or_default().insert(filter.clone());
        let entry = self.entries.entry(filter.clone()).or_default();
        entry.holders.push(holder);
        if let Some((asked, granted)) = entry.held
            && asked >= qos
        {
            if wish.retained == Retained::Wanted {
                self.wanted.insert(filter.clone());
            }
            return Placement::Granted(granted.min(qos));
        }
        // A request that is on its way brings what is retained to whoever waits for it by then.
        if entry.asked.is_none_or(|(_, asked)| asked < qos) {
            self.wanted.insert(filter.clone());
        }
        if link == LinkState::Down {
            return Placement::Granted(qos);
        }
        entry.waiting.push((who, wish.token));
        Placement::Pending
    }

    /// Removes a holder; the last one takes the filter off the hub.
    pub(super) fn unsubscribe(&mut self, who: SessionRef, filter: &TopicFilter) {
        if let Some(filters) = self.by_session.get_mut(&who) {
            filters.remove(filter);
            if filters.is_empty() {
                self.by_session.remove(&who);
            }
        }
        self.drop_holder(who, filter);
        self.drop_entry_without_holder(filter);
    }

    /// Removes all that a session holds.
    pub(super) fn session_gone(&mut self, who: SessionRef) {
        for filter in self.by_session.remove(&who).unwrap_or_default() {
            self.drop_holder(who, &filter);
            self.drop_entry_without_holder(&filter);
        }
    }

    /// What one session holds is another's from here on. Nobody waits for an answer any more.
    pub(super) fn hand_over(&mut self, from: SessionRef, to: SessionRef) {
        let Some(filters) = self.by_session.remove(&from) else { return };
        for filter in &filters {
            let Some(entry) = self.entries.get_mut(filter) else { continue };
            entry.waiting.retain(|(session, _)| *session != from);
            for holder in entry.holders.iter_mut().filter(|holder| holder.session == from) {
                self.holders.remove(filter, holder);
                holder.session = to;
                self.holders.insert(filter, *holder);
                if let Some(until) = self.awaiting.remove(&(from, holder.id)) {
                    self.awaiting.insert((to, holder.id), until);
                    self.awaited.extend(until.map(|until| (until, (to, holder.id))));
                }
            }
        }
        self.by_session.insert(to, filters);
    }

    /// The next request for the hub and its packet id.
    pub(super) fn next_request(&mut self, identifiers: Identifiers) -> Option<(u16, Request)> {
        let id = self.free_id();
        if !self.unwanted.is_empty() {
            let filters: Vec<_> = std::iter::from_fn(|| self.unwanted.pop_first()).take(FILTERS_PER_REQUEST).collect();
            if self.given_back.len() >= REQUESTS_MAX {
                self.given_back.pop_front();
            }
            self.last_id = id;
            self.given_back.push_back((id, filters.clone()));
            return Some((id, Request::Unsubscribe(filters)));
        }
        if self.asked.len() >= REQUESTS_MAX {
            return None;
        }
        let filters_max = if identifiers == Identifiers::Named { 1 } else { FILTERS_PER_REQUEST };
        let filters = self.next_subscribe(id, filters_max)?;
        let name =
            filters.first().filter(|_| identifiers == Identifiers::Named).map(|(filter, _)| subscription_id(filter));
        self.last_id = id;
        self.asked.insert(id, filters.clone());
        Some((id, Request::Subscribe(name, filters)))
    }

    /// SUBSCRIBEs without an answer.
    pub(super) fn unanswered(&self) -> usize {
        self.asked.len()
    }

    /// The hub's answer to a SUBSCRIBE: a code for each filter. Says whether it was asked for.
    #[must_use]
    pub(super) fn subscribed(&mut self, id: u16, codes: &[u8], out: &mut LinkOutput, now: Tick) -> bool {
        let Some(filters) = self.asked.remove(&id) else { return false };
        self.forget_awaited(now);
        // MQTT 5.0 [MQTT-3.8.4-6]: one code for each filter.
        if codes.len() != filters.len() {
            return false;
        }
        for ((filter, asked), &code) in filters.iter().zip(codes) {
            let Some(entry) = self.entries.get_mut(filter).filter(|e| e.asked.is_some_and(|(by, _)| by == id)) else {
                continue;
            };
            entry.asked = None;
            match code {
                0..=2 => {
                    let granted = if code == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
                    entry.held = Some((*asked, granted));
                    let until = now.plus(RETAINED_WITHIN);
                    for key in entry.holders.iter().map(|holder| (holder.session, holder.id)) {
                        if let Some(waits @ None) = self.awaiting.get_mut(&key) {
                            *waits = Some(until);
                            self.awaited.push_back((until, key));
                        }
                    }
                    for (session, token) in std::mem::take(&mut entry.waiting) {
                        let qos = entry.qos_of(session).unwrap_or(QoS::AtMostOnce);
                        out.placed.push(Placed { session, token, granted: Ok(granted.min(qos)) });
                    }
                }
                reason => self.refused(filter, reason, out),
            }
        }
        true
    }

    /// The hub's answer to an UNSUBSCRIBE.
    pub(super) fn unsubscribed(&mut self, id: u16) {
        self.given_back.retain(|(given_back, _)| *given_back != id);
    }

    /// A session on the hub begins anew: it holds none of the filters.
    pub(super) fn hub_forgot(&mut self) {
        self.unwanted.clear();
        for (filter, entry) in &mut self.entries {
            entry.held = None;
            self.wanted.insert(filter.clone());
            // What changed meanwhile was missed.
            self.awaiting.extend(entry.holders.iter().map(|holder| ((holder.session, holder.id), None)));
        }
    }

    /// The connection is lost. Who waits for an answer is told that the filter will be placed, as one is who asks while
    /// the link is down.
    pub(super) fn down(&mut self, out: &mut LinkOutput) {
        for filter in self.given_back.drain(..).flat_map(|(_, filters)| filters) {
            if !self.entries.contains_key(&filter) {
                self.unwanted.insert(filter);
            }
        }
        for (filter, _) in std::mem::take(&mut self.asked).into_values().flatten() {
            match self.entries.get_mut(&filter) {
                Some(entry) => {
                    entry.asked = None;
                    self.wanted.insert(filter);
                }
                None => _ = self.unwanted.insert(filter),
            }
        }
        for entry in self.entries.values_mut() {
            for (session, token) in std::mem::take(&mut entry.waiting) {
                let qos = entry.qos_of(session).unwrap_or(QoS::AtMostOnce);
                out.placed.push(Placed { session, token, granted: Ok(qos) });
            }
        }
    }

    /// Who gets this copy: of all copies of a message, each session gets one, at the highest QoS of its filters. Says
    /// whether anybody has a filter for it.
    pub(super) fn matches(&mut self, copy: &HubCopy<'_>, found: &mut Vec<(SessionRef, QoS)>, now: Tick) -> bool {
        if copy.retained {
            self.forget_awaited(now);
        }
        let matching = &mut self.matching;
        matching.clear();
        self.holders.for_each_match(copy.topic, |holder| matching.push(*holder));
        let claimed = !matching.is_empty();
        if copy.retained {
            matching.retain(|holder| self.awaiting.contains_key(&(holder.session, holder.id)));
        }
        let is_named = |holder: &Holder| copy.subscription_ids.contains(&holder.id);
        // Identifiers that name none of these filters are of another time: the topic decides.
        let named = matching.iter().any(is_named);
        if named && copy.retained {
            matching.retain(is_named);
        }
        if matching.len() > 1 {
            matching.sort_unstable_by_key(|holder| (holder.session, Reverse(holder.qos), holder.id));
            matching.dedup_by_key(|holder| holder.session);
        }
        if named {
            matching.retain(is_named);
        }
        found.clear();
        found.extend(matching.iter().map(|holder| (holder.session, holder.qos)));
        claimed
    }

    fn forget_awaited(&mut self, now: Tick) {
        while let Some((until, key)) = self.awaited.front().copied()
            && until <= now
        {
            self.awaited.pop_front();
            if self.awaiting.get(&key) == Some(&Some(until)) {
                self.awaiting.remove(&key);
            }
        }
    }

    fn next_subscribe(&mut self, id: u16, filters_max: usize) -> Option<Vec<(TopicFilter, QoS)>> {
        let mut filters = vec![];
        while filters.len() < filters_max {
            let Some(filter) = self.wanted.pop_first() else { break };
            let Some(entry) = self.entries.get_mut(&filter) else { continue };
            let qos = entry.qos();
            entry.asked = Some((id, qos));
            filters.push((filter, qos));
        }
        (!filters.is_empty()).then_some(filters)
    }

    /// Those who waited are told; those who had been told otherwise lose what they had.
    fn refused(&mut self, filter: &TopicFilter, reason: u8, out: &mut LinkOutput) {
        let Some(entry) = self.entries.remove(filter) else { return };
        if entry.held.is_some() {
            self.unwanted.insert(filter.clone());
        }
        for (session, token) in &entry.waiting {
            out.placed.push(Placed { session: *session, token: *token, granted: Err(reason) });
        }
        for holder in entry.holders {
            self.holders.remove(filter, &holder);
            self.awaiting.remove(&(holder.session, holder.id));
            if let Some(filters) = self.by_session.get_mut(&holder.session) {
                filters.remove(filter);
                if filters.is_empty() {
                    self.by_session.remove(&holder.session);
                }
            }
            if !entry.waiting.iter().any(|(session, _)| *session == holder.session) {
                out.withdrawn.push(Withdrawn { session: holder.session, filter: filter.clone(), reason });
            }
        }
    }

    fn drop_holder(&mut self, who: SessionRef, filter: &TopicFilter) {
        self.replace_holder(who, filter);
        if let Some(entry) = self.entries.get_mut(filter) {
            entry.waiting.retain(|(session, _)| *session != who);
        }
    }

    /// Removes a holder that is about to come back with another QoS.
    fn replace_holder(&mut self, who: SessionRef, filter: &TopicFilter) {
        let Some(entry) = self.entries.get_mut(filter) else { return };
        if let Some(at) = entry.holders.iter().position(|h| h.session == who) {
            let holder = entry.holders.swap_remove(at);
            self.holders.remove(filter, &holder);
            self.awaiting.remove(&(who, holder.id));
        }
    }

    fn drop_entry_without_holder(&mut self, filter: &TopicFilter) {
        if let Some(entry) = self.entries.get(filter)
            && entry.holders.is_empty()
        {
            if entry.held.is_some() || entry.asked.is_some() {
                self.unwanted.insert(filter.clone());
            }
            self.entries.remove(filter);
            self.wanted.remove(filter);
        }
    }

    fn free_id(&self) -> u16 {
        let mut id = self.last_id;
        loop {
            id = if id < REQUEST_ID_FIRST || id == u16::MAX { REQUEST_ID_FIRST } else { id + 1 };
            if !self.asked.contains_key(&id) && self.given_back.iter().all(|(given_back, _)| *given_back != id) {
                return id;
            }
        }
    }
}

/// The same for the same filter after every restart, since the hub may keep it: FNV-1a, folded into the 28 bits of an
/// identifier, which is never 0. Two filters that share one are taken for each other where they overlap, no more.
fn subscription_id(filter: &TopicFilter) -> u32 {
    let hash =
        filter.as_str().bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    ((hash >> 28) ^ (hash & VARINT_MAX)).max(1)
}

/// What a hub retains follows its SUBACK within this; a broker sends it at once.
const RETAINED_WITHIN: Duration = Duration::from_secs(10);

/// Packet ids of requests; those of messages are below.
pub(super) const REQUEST_ID_FIRST: u16 = 60_001;

/// Requests in flight: enough that a site's morning is subscribed in a few round trips.
const REQUESTS_MAX: usize = 64;

/// Filters in one request: what brokers with modest limits take.
const FILTERS_PER_REQUEST: usize = 32;

#[cfg(test)]
mod tests;
