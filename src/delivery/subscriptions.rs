//! The devices' subscriptions on one hub connection: counted by reference, placed on the hub once for all who hold the
//! same filter, and placed again after the hub has forgotten them.
//!
//! Where filters overlap, a hub may send a copy for each of them (MQTT 5.0 §3.3.4); mosquitto does so on 5.0. Every copy
//! then says by its subscription identifiers for which filters it is, and each session gets the one that is for the best
//! of its own. On 3.1.1 copies cannot be told apart, and each is delivered.
//!
//! A hub sends what it retains for a filter whenever it is asked for the filter. It is asked again for each session that
//! wants that, and only those get it who have just subscribed, each topic once.
//!
//! A copy with RETAIN is such a message, unless the hub was asked to leave RETAIN as published: then it may be a message
//! that was published just now. A hub that names filters (5.0) is therefore asked for one or for the other. While only
//! those hold the filter who wait for what is retained, both look the same to them. Where others hold it too, the hub is
//! first asked to clear RETAIN, then for what it retains, and when that is there, to leave RETAIN as published again.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    hash::RandomState,
};

use super::{LinkOutput, Placed, Placement, Retained, SessionRef, Wish, Withdrawn};
use crate::{
    packet::{QoS, VARINT_MAX},
    session::client::SubscriptionOptions,
    time::Tick,
    topic::{FilterTree, TopicFilter, TopicName},
};
use retained::Awaits;

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
    /// How many filters the hub forgot and has not answered for since.
    missing: usize,
    /// SUBSCRIBEs that the hub has not answered, by packet id.
    asked: HashMap<u16, Vec<(TopicFilter, QoS)>>,
    /// UNSUBSCRIBEs that the hub has not answered, the oldest first. Nothing waits for them: rumqttd answers one filter
    /// at a time, and does not answer at all for a filter of a session that it resumed.
    given_back: VecDeque<(u16, Vec<TopicFilter>)>,
    last_id: u16,
    matching: Vec<Holder>,
    /// Who gets what the hub retains, by session and identifier of the filter.
    awaiting: HashMap<(SessionRef, u32), Awaits>,
    /// When they got it, the earliest first.
    awaited: VecDeque<(Tick, (SessionRef, u32))>,
    /// Filters, by identifier, for which the hub has said that it clears RETAIN of what is published.
    cleared: HashSet<u32>,
    topics: RandomState,
    /// Sessions that are elsewhere now.
    moved: FilterTree<Holder>,
    has_moved: bool,
    /// They get what is for nobody here.
    moved_get_the_rest: bool,
}

/// A request for the hub.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Request {
    /// With an identifier and options, if the hub has such: of one filter.
    Subscribe(Option<Named>, Vec<(TopicFilter, QoS)>),
    Unsubscribe(Vec<TopicFilter>),
}

/// One filter, as a hub is asked for it that gives filters names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Named {
    pub(super) id: u32,
    pub(super) options: SubscriptionOptions,
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
    /// RETAIN.
    pub(super) retained: bool,
    pub(super) subscription_ids: &'a [u32],
}

/// Who gets a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) session: SessionRef,
    /// Of its filter.
    pub(super) qos: QoS,
    /// RETAIN as it is to be sent.
    pub(super) retain: bool,
}

/// Whether a copy is for anybody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Claim {
    /// Somebody gets it, or has got it.
    Claimed,
    /// Nobody has a filter for it.
    Unclaimed,
    /// The hub retained it, and nobody waits for that.
    Unasked,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Holder {
    session: SessionRef,
    qos: QoS,
    /// Of the filter.
    id: u32,
    /// It wants RETAIN as published.
    as_published: bool,
    /// It wants what the hub retains also when the hub begins anew.
    missed: bool,
}

#[derive(Default)]
struct Entry {
    holders: Vec<Holder>,
    /// Who waits for the hub's answer, each with its token.
    waiting: Vec<(SessionRef, u64)>,
    /// The request that asks for it now.
    asked: Option<Asked>,
    /// What the hub granted.
    held: Option<Held>,
    /// The hub forgot it and has not answered for it since.
    missing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Asked {
    by: u16,
    qos: QoS,
    options: SubscriptionOptions,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    asked: QoS,
    granted: QoS,
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

/// What is asked for, each with its QoS.
type Filters = Vec<(TopicFilter, QoS)>;

impl Subscriptions {
    /// Adds a holder, or changes its QoS. `Granted`: nothing need be asked, or it is placed when the link is up again.
    pub(super) fn subscribe(
        &mut self,
        who: SessionRef,
        filter: &TopicFilter,
        wish: Wish,
        link: LinkState,
    ) -> Placement {
        let qos = wish.qos;
        // Who asks twice is answered twice.
        self.replace_holder(who, filter);
        self.unwanted.remove(filter);
        let missed = matches!(wish.retained, Retained::Wanted | Retained::Missed);
        let wants_now = matches!(wish.retained, Retained::Wanted | Retained::Once);
        let (id, as_published) = (subscription_id(filter), wish.as_published);
        let holder = Holder { session: who, qos, id, as_published, missed };
        if wants_now {
            self.awaiting.insert((who, id), Awaits::default());
        }
        self.holders.insert(filter, holder);
        self.by_session.entry(who).or_default().insert(filter.clone());
        let entry = self.entries.entry(filter.clone()).or_default();
        entry.holders.push(holder);
        if let Some(Held { asked, granted }) = entry.held
            && asked >= qos
        {
            if wants_now || as_published && self.cleared.contains(&id) {
                self.wanted.insert(filter.clone());
            }
            return Placement::Granted(granted.min(qos));
        }
        // A request that is on its way brings what is retained to whoever waits for it by then.
        if entry.asked.is_none_or(|asked| asked.qos < qos) {
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
                if let Some(awaits) = self.awaiting.remove(&(from, holder.id)) {
                    self.awaited.extend(awaits.until.map(|until| (until, (to, holder.id))));
                    self.awaiting.insert((to, holder.id), awaits);
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
        let (named, filters) = self.next_subscribe(id, identifiers)?;
        self.last_id = id;
        self.asked.insert(id, filters.clone());
        Some((id, Request::Subscribe(named, filters)))
    }

    /// Filters that the hub forgot and has not answered for since.
    pub(super) fn missing(&self) -> usize {
        self.missing
    }

    /// Whether nothing is to be asked for, and every SUBSCRIBE was answered.
    pub(super) fn is_answered(&self) -> bool {
        self.wanted.is_empty() && self.asked.is_empty()
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
        for ((filter, _), &code) in filters.iter().zip(codes) {
            let Some(entry) = self.entries.get_mut(filter) else { continue };
            let Some(asked) = entry.asked.take_if(|asked| asked.by == id) else { continue };
            match QoS::from_bits(code) {
                Some(granted) => {
                    self.missing -= usize::from(std::mem::take(&mut entry.missing));
                    entry.held = Some(Held { asked: asked.qos, granted });
                    for (session, token) in std::mem::take(&mut entry.waiting) {
                        let qos = entry.qos_of(session).unwrap_or(QoS::AtMostOnce);
                        out.placed.push(Placed { session, token, granted: Ok(granted.min(qos)) });
                    }
                    self.placed(filter, asked.options, now);
                }
                None => self.refused(filter, code, out),
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
        self.cleared.clear();
        self.missing = self.entries.len();
        for (filter, entry) in &mut self.entries {
            (entry.held, entry.missing) = (None, true);
            self.wanted.insert(filter.clone());
            // What changed meanwhile was missed. MQTT 5.0 [MQTT-3.3.1-10], [MQTT-3.3.1-11]: those who want retained
            // messages once, or never, have not asked again.
            let missed = entry.holders.iter().filter(|holder| holder.missed);
            self.awaiting.extend(missed.map(|holder| ((holder.session, holder.id), Awaits::default())));
        }
    }

    /// Says whether there is something to ask the hub.
    #[must_use]
    pub(super) fn tick(&mut self, now: Tick) -> bool {
        self.forget_awaited(now);
        !self.wanted.is_empty()
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

    /// Who gets this copy: of all copies of a message, each session gets one, at the highest QoS of its filters.
    pub(super) fn matches(&mut self, copy: &HubCopy<'_>, found: &mut Vec<Found>, now: Tick) -> Claim {
        found.clear();
        let mut matching = std::mem::take(&mut self.matching);
        matching.clear();
        self.holders.for_each_match(copy.topic, |holder| matching.push(*holder));
        let is_named = |holder: &Holder| copy.subscription_ids.contains(&holder.id);
        // Identifiers that name none of these filters are of another time: the topic decides.
        let named = matching.iter().any(is_named) || self.has_moved && self.names_moved(copy);
        let mut claim = if matching.is_empty() { Claim::Unclaimed } else { Claim::Claimed };
        let mut is_live = !copy.retained;
        if copy.retained && !matching.is_empty() {
            let waited = self.awaited_by(copy, named, &matching, found, now);
            // What a hub of 3.1.1 passes on at once has no RETAIN [MQTT-3.3.1-9].
            is_live = named && matching.iter().any(|holder| is_named(holder) && !self.cleared.contains(&holder.id));
            if !waited && !is_live {
                claim = Claim::Unasked;
            }
            matching.retain(|holder| found.iter().all(|found| found.session != holder.session));
        }
        if is_live {
            one_a_session(&mut matching);
            let got = matching.iter().filter(|holder| !named || is_named(holder));
            // MQTT 5.0 [MQTT-3.3.1-12], [MQTT-3.3.1-13]
            let of = |holder: &Holder| (holder.session, holder.qos, copy.retained && holder.as_published);
            found.extend(got.map(of).map(|(session, qos, retain)| Found { session, qos, retain }));
        }
        self.matching = matching;
        if self.has_moved { self.matches_moved(copy, named, found, claim) } else { claim }
    }

    fn next_subscribe(&mut self, id: u16, identifiers: Identifiers) -> Option<(Option<Named>, Filters)> {
        let filters_max = if identifiers == Identifiers::Named { 1 } else { FILTERS_PER_REQUEST };
        let (mut named, mut filters) = (None, vec![]);
        while filters.len() < filters_max {
            let Some(filter) = self.wanted.pop_first() else { break };
            let Some(entry) = self.entries.get(&filter) else { continue };
            let qos = entry.qos();
            let mut options = SubscriptionOptions { as_published: false, retained: true };
            if identifiers == Identifiers::Named {
                let id = subscription_id(&filter);
                options = self.options(id, entry);
                if options.as_published {
                    self.cleared.remove(&id);
                }
                named = Some(Named { id, options });
            }
            let Some(entry) = self.entries.get_mut(&filter) else { continue };
            entry.asked = Some(Asked { by: id, qos, options });
            filters.push((filter, qos));
        }
        (!filters.is_empty()).then_some((named, filters))
    }

    /// Those who waited are told; those who had been told otherwise lose what they had.
    fn refused(&mut self, filter: &TopicFilter, reason: u8, out: &mut LinkOutput) {
        let Some(entry) = self.entries.remove(filter) else { return };
        self.missing -= usize::from(entry.missing);
        self.cleared.remove(&subscription_id(filter));
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
            self.missing -= usize::from(entry.missing);
            if entry.held.is_some() || entry.asked.is_some() {
                self.unwanted.insert(filter.clone());
            }
            self.entries.remove(filter);
            self.wanted.remove(filter);
            self.cleared.remove(&subscription_id(filter));
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

/// The best of each session's.
fn one_a_session(holders: &mut Vec<Holder>) {
    if holders.len() > 1 {
        holders.sort_unstable_by_key(|holder| (holder.session, Reverse(holder.qos), holder.id));
        holders.dedup_by_key(|holder| holder.session);
    }
}

/// The same for the same filter after every restart, since the hub may keep it: FNV-1a, folded into the 28 bits of an
/// identifier, which is never 0. Two filters that share one are taken for each other where they overlap, no more.
fn subscription_id(filter: &TopicFilter) -> u32 {
    let hash =
        filter.as_str().bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    ((hash >> 28) ^ (hash & VARINT_MAX)).max(1)
}

/// Packet ids of requests; those of messages are below.
pub(super) const REQUEST_ID_FIRST: u16 = 60_001;

/// Requests in flight: enough that a site's morning is subscribed in a few round trips.
const REQUESTS_MAX: usize = 64;

/// Filters in one request: what brokers with modest limits take.
const FILTERS_PER_REQUEST: usize = 32;

mod moved;
mod retained;
#[cfg(test)]
mod tests;
