//! The devices' subscriptions on one hub connection: counted by reference, placed on the hub once for all who hold the
//! same filter, and placed again after the hub has forgotten them.
//!
//! Where filters overlap, a hub may send a copy for each of them (MQTT 5.0 §3.3.4); mosquitto does so on 5.0. Every copy
//! then says by its subscription identifiers for which filters it is, and each session gets the one that is for the best
//! of its own. On 3.1.1 copies cannot be told apart, and each is delivered.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
};

use super::{LinkOutput, Placed, Placement, SessionRef, Withdrawn};
use crate::{
    packet::{QoS, VARINT_MAX},
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
        qos: QoS,
        token: u64,
        link: LinkState,
    ) -> Placement {
        let qos = qos.min(QoS::AtLeastOnce);
        // Who asks twice is answered twice.
        self.replace_holder(who, filter);
        self.unwanted.remove(filter);
        let holder = Holder { session: who, qos, id: subscription_id(filter) };
        self.holders.insert(filter, holder);
        self.by_session.entry(who).or_default().insert(filter.clone());
        let entry = self.entries.entry(filter.clone()).or_default();
        entry.holders.push(holder);
        if let Some((asked, granted)) = entry.held
            && asked >= qos
        {
            return Placement::Granted(granted.min(qos));
        }
        if entry.asked.is_none_or(|(_, asked)| asked < qos) {
            self.wanted.insert(filter.clone());
        }
        if link == LinkState::Down {
            return Placement::Granted(qos);
        }
        entry.waiting.push((who, token));
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
    pub(super) fn subscribed(&mut self, id: u16, codes: &[u8], out: &mut LinkOutput) -> bool {
        let Some(filters) = self.asked.remove(&id) else { return false };
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

    /// Who gets this copy: of all copies of a message, each session gets one, at the highest QoS of its filters.
    pub(super) fn matches(&mut self, copy: &HubCopy<'_>, found: &mut Vec<(SessionRef, QoS)>) {
        let matching = &mut self.matching;
        matching.clear();
        self.holders.for_each_match(copy.topic, |holder| matching.push(*holder));
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

/// Packet ids of requests; those of messages are below.
pub(super) const REQUEST_ID_FIRST: u16 = 60_001;

/// Requests in flight: enough that a site's morning is subscribed in a few round trips.
const REQUESTS_MAX: usize = 64;

/// Filters in one request: what brokers with modest limits take.
const FILTERS_PER_REQUEST: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn session(slot: u32) -> SessionRef {
        SessionRef { slot, generation: 0 }
    }

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::try_from(text).expect(text)
    }

    fn matched(subscriptions: &mut Subscriptions, topic: &str) -> Vec<(u32, u8)> {
        matched_copy(subscriptions, topic, false, &[])
    }

    fn matched_copy(subscriptions: &mut Subscriptions, topic: &str, retained: bool, of: &[&str]) -> Vec<(u32, u8)> {
        let mut found = vec![];
        let subscription_ids: Vec<_> = of.iter().map(|f| subscription_id(&filter(f))).collect();
        let topic = TopicName::new(topic.as_bytes()).expect(topic);
        subscriptions.matches(&HubCopy { topic, retained, subscription_ids: &subscription_ids }, &mut found);
        found.iter().map(|(session, qos)| (session.slot, *qos as u8)).collect()
    }

    /// Asks the hub for all that is wanted and lets it answer with `code`.
    fn settle(subscriptions: &mut Subscriptions, code: u8) -> (Vec<Request>, LinkOutput) {
        let (mut requests, mut out) = (vec![], LinkOutput::default());
        while let Some((id, request)) = subscriptions.next_request(Identifiers::None) {
            match &request {
                Request::Subscribe(_, f) => assert!(subscriptions.subscribed(id, &vec![code; f.len()], &mut out)),
                Request::Unsubscribe(_) => subscriptions.unsubscribed(id),
            }
            requests.push(request);
        }
        (requests, out)
    }

    const Q0: QoS = QoS::AtMostOnce;
    const Q1: QoS = QoS::AtLeastOnce;

    #[test]
    fn a_filter_is_placed_once_for_all_who_hold_it_and_leaves_with_the_last() {
        let mut s = Subscriptions::default();
        assert_eq!(s.subscribe(session(1), &filter("a/#"), Q1, 7, LinkState::Up), Placement::Pending);
        let (requests, out) = settle(&mut s, 1);
        assert_eq!(requests, [Request::Subscribe(None, vec![(filter("a/#"), Q1)])]);
        assert_eq!(out.placed, [Placed { session: session(1), token: 7, granted: Ok(Q1) }]);
        assert_eq!(s.subscribe(session(2), &filter("a/#"), Q0, 8, LinkState::Up), Placement::Granted(Q0));
        assert_eq!(settle(&mut s, 1).0, []);
        assert_eq!(matched(&mut s, "a/x"), [(1, 1), (2, 0)]);
        s.unsubscribe(session(1), &filter("a/#"));
        assert_eq!((settle(&mut s, 1).0, matched(&mut s, "a/x")), (vec![], vec![(2, 0)]));
        s.session_gone(session(2));
        assert_eq!(settle(&mut s, 1).0, [Request::Unsubscribe(vec![filter("a/#")])]);
        assert!(s.entries.is_empty() && s.by_session.is_empty() && matched(&mut s, "a/x").is_empty());
    }

    #[test]
    fn who_asks_twice_before_the_hub_answers_is_answered_twice() {
        let mut s = Subscriptions::default();
        assert_eq!(s.subscribe(session(1), &filter("a"), Q0, 7, LinkState::Up), Placement::Pending);
        assert_eq!(s.subscribe(session(1), &filter("a"), Q1, 8, LinkState::Up), Placement::Pending);
        let placed = |token| Placed { session: session(1), token, granted: Ok(Q1) };
        assert_eq!(settle(&mut s, 1).1.placed, [placed(7), placed(8)]);
        assert_eq!(matched(&mut s, "a"), [(1, 1)]);
    }

    #[test]
    fn a_higher_qos_is_asked_for_again() {
        let mut s = Subscriptions::default();
        let _ = s.subscribe(session(1), &filter("a"), Q0, 0, LinkState::Up);
        settle(&mut s, 0);
        assert_eq!(s.subscribe(session(2), &filter("a"), QoS::ExactlyOnce, 1, LinkState::Up), Placement::Pending);
        let (requests, out) = settle(&mut s, 1);
        assert_eq!(requests, [Request::Subscribe(None, vec![(filter("a"), Q1)])]);
        assert_eq!(out.placed, [Placed { session: session(2), token: 1, granted: Ok(Q1) }]);
    }

    #[test]
    fn a_session_with_several_filters_gets_one_copy_at_the_highest_qos() {
        let mut s = Subscriptions::default();
        for (f, qos) in [("a/b", Q0), ("a/+", Q1), ("#", Q0)] {
            let _ = s.subscribe(session(1), &filter(f), qos, 0, LinkState::Up);
        }
        assert_eq!(matched(&mut s, "a/b"), [(1, 1)]);
        assert_eq!(matched(&mut s, "c"), [(1, 0)]);
    }

    #[test]
    fn of_the_copies_that_a_hub_sends_for_overlapping_filters_each_session_gets_one() {
        let mut s = Subscriptions::default();
        for (who, f, qos) in [(1, "a/#", Q1), (2, "a/b", Q0), (3, "a/#", Q0), (3, "a/b", Q1)] {
            let _ = s.subscribe(session(who), &filter(f), qos, 0, LinkState::Up);
        }
        let (id, request) = s.next_request(Identifiers::Named).expect("a request");
        assert_eq!(request, Request::Subscribe(Some(subscription_id(&filter("a/#"))), vec![(filter("a/#"), Q1)]));
        assert!(s.subscribed(id, &[1], &mut LinkOutput::default()));
        assert_eq!(matched_copy(&mut s, "a/b", false, &["a/#"]), [(1, 1)]);
        assert_eq!(matched_copy(&mut s, "a/b", false, &["a/b"]), [(2, 0), (3, 1)]);
        assert_eq!(matched_copy(&mut s, "a/b", false, &["a/b", "a/#"]), [(1, 1), (2, 0), (3, 1)], "one copy for both");
        assert_eq!(matched_copy(&mut s, "a/b", true, &["a/#"]), [(1, 1), (3, 0)], "retained, for who asked for a/#");
        assert_eq!(matched_copy(&mut s, "a/b", false, &["left/long/ago"]), [(1, 1), (2, 0), (3, 1)]);
        assert_ne!(subscription_id(&filter("a/#")), subscription_id(&filter("a/b")));
    }

    #[test]
    fn a_refusal_reaches_who_waits_and_takes_from_who_had() {
        let mut s = Subscriptions::default();
        let _ = s.subscribe(session(1), &filter("a"), Q1, 5, LinkState::Down);
        let _ = s.subscribe(session(2), &filter("a"), Q1, 6, LinkState::Up);
        let (_, out) = settle(&mut s, 0x87);
        assert_eq!(out.placed, [Placed { session: session(2), token: 6, granted: Err(0x87) }]);
        assert_eq!(out.withdrawn, [Withdrawn { session: session(1), filter: filter("a"), reason: 0x87 }]);
        assert!(matched(&mut s, "a").is_empty() && s.by_session.is_empty());
    }

    #[test]
    fn what_changed_while_the_link_was_down_is_asked_when_it_is_up() {
        let mut s = Subscriptions::default();
        for f in ["kept", "left"] {
            let _ = s.subscribe(session(1), &filter(f), Q1, 0, LinkState::Up);
        }
        settle(&mut s, 1);
        let _ = s.subscribe(session(1), &filter("asked"), Q1, 9, LinkState::Up);
        s.next_request(Identifiers::None).expect("a request");
        let mut out = LinkOutput::default();
        s.down(&mut out);
        assert_eq!(out.placed, [Placed { session: session(1), token: 9, granted: Ok(Q1) }]);
        s.unsubscribe(session(1), &filter("left"));
        assert_eq!(s.subscribe(session(1), &filter("new"), Q1, 0, LinkState::Down), Placement::Granted(Q1));
        let (requests, out) = settle(&mut s, 1);
        let asked = vec![(filter("asked"), Q1), (filter("new"), Q1)];
        assert_eq!(requests, [Request::Unsubscribe(vec![filter("left")]), Request::Subscribe(None, asked)]);
        assert_eq!(out.placed, []);
        s.down(&mut LinkOutput::default());
        s.hub_forgot();
        let all = ["asked", "kept", "new"].map(|f| (filter(f), Q1)).to_vec();
        assert_eq!(settle(&mut s, 1).0, [Request::Subscribe(None, all)]);
    }

    #[test]
    fn a_hub_that_answers_no_unsubscribe_holds_nothing_up_and_is_asked_again() {
        let mut s = Subscriptions::default();
        for i in 0..2 * REQUESTS_MAX {
            let f = filter(&format!("f/{i}"));
            let _ = s.subscribe(session(1), &f, Q1, 0, LinkState::Up);
            let (id, _) = s.next_request(Identifiers::None).expect("a SUBSCRIBE");
            assert!(s.subscribed(id, &[1], &mut LinkOutput::default()));
            s.unsubscribe(session(1), &f);
            assert!(s.next_request(Identifiers::None).is_some(), "an UNSUBSCRIBE");
        }
        assert_eq!((s.unanswered(), s.given_back.len()), (0, REQUESTS_MAX));
        s.down(&mut LinkOutput::default());
        assert_eq!(s.unwanted.len(), REQUESTS_MAX);
    }

    #[test]
    fn many_filters_go_in_few_requests_and_an_answer_to_nothing_is_noticed() {
        let mut s = Subscriptions::default();
        for i in 0..REQUESTS_MAX * FILTERS_PER_REQUEST + 1 {
            let _ = s.subscribe(session(1), &filter(&format!("f/{i}")), Q1, 0, LinkState::Down);
        }
        let requests: Vec<_> = std::iter::from_fn(|| s.next_request(Identifiers::None)).collect();
        assert_eq!((requests.len(), s.unanswered(), s.wanted.len()), (REQUESTS_MAX, REQUESTS_MAX, 1));
        let mut out = LinkOutput::default();
        assert!(!s.subscribed(1, &[0], &mut out), "never asked");
        assert!(!s.subscribed(requests[0].0, &[0], &mut out), "one code for 32 filters");
        s.unsubscribed(requests[1].0);
        assert_eq!(s.unanswered(), REQUESTS_MAX - 1, "that was a SUBSCRIBE");
    }
}
