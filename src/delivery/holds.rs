//! Messages of the hub on their way to devices: the hub is told that one arrived when every session that it is for is
//! done with it, in the order in which they came [MQTT-4.6.0-2]. What it is not told it sends again. What it was told of a
//! message of QoS 2 is remembered until it has released the packet id, over lost connections too.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{
    LinkError, LinkOutput,
    link::{Deliver, Link},
    subscriptions::{Claim, Found, HubCopy},
};
use crate::{
    packet::{PublishRef, QoS},
    session::client::ClientError,
    time::Tick,
    topic::TopicName,
};

/// Names a message of a hub until the sessions that it is for are done with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ticket(pub u64);

/// Whether a session is done with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Taken {
    /// It is: it has it, or does not get it.
    Whole,
    /// Not yet: [`Link::release`] will say.
    Held,
}

/// A message of the hub for one session.
#[derive(Clone, Copy)]
pub struct Incoming<'a> {
    /// Its own, and what the session's filters allow at most.
    pub qos: QoS,
    /// RETAIN as the session is to get it.
    pub retain: bool,
    /// Where the hub waits for an answer, how it is named.
    pub ticket: Option<Ticket>,
    /// The message.
    pub publish: &'a PublishRef<'a>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Holds {
    held: HashMap<u64, Hold>,
    /// Those of this connection, oldest first.
    order: VecDeque<u64>,
    /// Those of an earlier connection that the hub has not sent again, by packet id.
    earlier: HashMap<u16, u64>,
    /// Packet ids of QoS 2 that the hub was answered for and has not released.
    received: HashSet<u16>,
    last: u64,
}

#[derive(Debug)]
struct Hold {
    packet_id: u16,
    qos: QoS,
    /// How many are not done with it.
    sessions: u32,
}

/// What a message of the hub is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Arrived {
    /// A new one.
    New(Ticket),
    /// Sessions have it, from an earlier connection or from earlier on this one, and get no second copy.
    Held,
    /// Sessions have it, the hub was answered, and may have missed that.
    Answered,
}

impl Holds {
    /// A message came.
    fn arrive(&mut self, packet_id: u16, qos: QoS, sent: Sent) -> Arrived {
        // MQTT 5.0 [MQTT-4.3.3-10]: until PUBREL the packet id is the same message's, with DUP or without.
        let is_exact = qos == QoS::ExactlyOnce;
        if is_exact && self.received.contains(&packet_id) {
            return Arrived::Answered;
        }
        if let Some(ticket) = self.earlier.remove(&packet_id) {
            let was_exact = self.held.get(&ticket).is_some_and(|hold| hold.qos == QoS::ExactlyOnce);
            if was_exact == is_exact && (is_exact || sent == Sent::Again) {
                self.order.push_back(ticket);
                return Arrived::Held;
            }
            self.held.remove(&ticket);
        }
        self.last += 1;
        self.order.push_back(self.last);
        self.held.insert(self.last, Hold { packet_id, qos, sessions: 0 });
        Arrived::New(Ticket(self.last))
    }

    /// PUBREL. Says whether anything is known of the packet id.
    fn released(&mut self, packet_id: u16) -> bool {
        self.received.remove(&packet_id)
    }

    /// So many sessions hold it.
    fn hold(&mut self, ticket: Ticket, sessions: u32) {
        if let Some(hold) = self.held.get_mut(&ticket.0) {
            hold.sessions = sessions;
        }
    }

    /// One is done with it. Of no effect where the hub has forgotten it.
    fn release(&mut self, ticket: Ticket) {
        if let Some(hold) = self.held.get_mut(&ticket.0) {
            hold.sessions = hold.sessions.saturating_sub(1);
        }
    }

    /// The next packet id that the hub is to be answered for, and the QoS of its message.
    fn next_done(&mut self) -> Option<(u16, QoS)> {
        let oldest = self.order.front()?;
        if self.held.get(oldest).is_some_and(|hold| hold.sessions > 0) {
            return None;
        }
        let hold = self.held.remove(oldest);
        self.order.pop_front();
        let Hold { packet_id, qos, .. } = hold?;
        if qos == QoS::ExactlyOnce {
            self.received.insert(packet_id);
        }
        Some((packet_id, qos))
    }

    /// The connection is lost: what was not answered comes again.
    pub(super) fn down(&mut self) {
        for ticket in self.order.drain(..) {
            if let Some(hold) = self.held.get(&ticket) {
                self.earlier.insert(hold.packet_id, ticket);
            }
        }
    }

    /// The hub begins a session of its own: what it sends is new.
    pub(super) fn hub_forgot(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }

    /// Messages that the hub was not answered for.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }
}

/// Whether the hub says that it sent a message before [MQTT-3.3.1-1].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sent {
    First,
    Again,
}

impl Link {
    /// A session is done with a message of the hub: the device has it, it is on the disk, or it is given up.
    ///
    /// # Errors
    /// The hub sends messages and does not take the answers: the transport must be closed.
    pub fn release(&mut self, ticket: Ticket) -> Result<(), LinkError> {
        self.holds.release(ticket);
        self.answer()
    }

    /// Messages of the hub that it was not answered for.
    pub fn held(&self) -> usize {
        self.holds.len()
    }

    /// Each session with a matching filter gets one copy.
    pub(super) fn message(
        &mut self,
        publish: &PublishRef<'_>,
        out: &mut LinkOutput,
        deliver: &mut Deliver<'_>,
        now: Tick,
    ) -> Result<(), LinkError> {
        self.messages += 1;
        let topic = TopicName::new(publish.topic).map_err(|_| ClientError::Protocol("an invalid topic name"))?;
        let sent = if publish.dup { Sent::Again } else { Sent::First };
        let ticket = match publish.qos {
            QoS::AtMostOnce => None,
            qos => match self.holds.arrive(publish.packet_id, qos, sent) {
                Arrived::New(ticket) => Some(ticket),
                Arrived::Held => return self.answer(),
                Arrived::Answered => return Ok(self.client.acknowledge(publish.packet_id, qos)?),
            },
        };
        self.subscription_ids.clear();
        publish.subscription_ids(|id| self.subscription_ids.push(id));
        let copy = HubCopy { topic, retained: publish.retain, subscription_ids: &self.subscription_ids };
        let mut found = std::mem::take(&mut self.found);
        match self.subscriptions.matches(&copy, &mut found, now) {
            Claim::Claimed => {}
            Claim::Unclaimed => out.unclaimed += 1,
            Claim::Unasked => out.unasked += 1,
        }
        let mut sessions = 0;
        for Found { session, qos, retain } in &found {
            // MQTT 5.0 [MQTT-3.8.4-8], MQTT 3.1.1 [MQTT-3.8.4-6]
            let incoming = Incoming { qos: publish.qos.min(*qos), retain: *retain, ticket, publish };
            sessions += u32::from(deliver(*session, &incoming) == Taken::Held);
        }
        self.found = found;
        if let Some(ticket) = ticket {
            self.holds.hold(ticket, sessions);
        }
        self.answer()
    }

    /// The hub has the answer to a message of QoS 2.
    pub(super) fn released(&mut self, packet_id: u16) -> Result<(), LinkError> {
        // MQTT 5.0 §3.7.2.1: of a message that an earlier start of the gateway was answered for nothing is known.
        let reason = if self.holds.released(packet_id) { 0 } else { PACKET_ID_NOT_FOUND };
        Ok(self.client.complete(packet_id, reason)?)
    }

    /// Tells the hub what sessions are done with.
    fn answer(&mut self) -> Result<(), LinkError> {
        while self.is_up()
            && let Some((packet_id, qos)) = self.holds.next_done()
        {
            self.client.acknowledge(packet_id, qos)?;
        }
        Ok(())
    }
}

/// Reason code of MQTT 5.0 §2.4.
const PACKET_ID_NOT_FOUND: u8 = 0x92;

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u16; 0] = [];
    const Q1: QoS = QoS::AtLeastOnce;
    const Q2: QoS = QoS::ExactlyOnce;

    fn done(holds: &mut Holds) -> Vec<u16> {
        std::iter::from_fn(|| holds.next_done()).map(|(packet_id, _)| packet_id).collect()
    }

    fn arrive(holds: &mut Holds, packet_id: u16, sessions: u32) -> Ticket {
        arrive_with(holds, packet_id, Q1, sessions)
    }

    #[track_caller]
    fn arrive_with(holds: &mut Holds, packet_id: u16, qos: QoS, sessions: u32) -> Ticket {
        let Arrived::New(ticket) = holds.arrive(packet_id, qos, Sent::First) else { panic!("a new message") };
        holds.hold(ticket, sessions);
        ticket
    }

    #[test]
    fn with_qos_2_a_packet_id_is_the_same_messages_until_it_is_released() {
        let mut holds = Holds::default();
        let a = arrive_with(&mut holds, 5, Q2, 1);
        holds.down();
        assert_eq!(holds.arrive(5, Q2, Sent::First), Arrived::Held, "a hub that forgot DUP");
        holds.release(a);
        assert_eq!(holds.next_done(), Some((5, Q2)));
        for sent in [Sent::First, Sent::Again] {
            holds.down();
            assert_eq!(holds.arrive(5, Q2, sent), Arrived::Answered, "it missed the PUBREC");
        }
        let other = arrive_with(&mut holds, 5, Q1, 0);
        assert!((other != a) && holds.next_done() == Some((5, Q1)), "ids of QoS 1 are not those of QoS 2");
        assert!(holds.released(5) && !holds.released(5));
        arrive_with(&mut holds, 5, Q2, 0);
        assert_eq!(holds.next_done(), Some((5, Q2)));
        holds.hub_forgot();
        arrive_with(&mut holds, 5, Q2, 0);
    }

    #[test]
    fn the_hub_is_answered_in_order_when_all_are_done() {
        let mut holds = Holds::default();
        let (a, b, _) = (arrive(&mut holds, 7, 2), arrive(&mut holds, 8, 1), arrive(&mut holds, 9, 0));
        assert_eq!(done(&mut holds), NONE);
        holds.release(b);
        holds.release(a);
        assert_eq!(done(&mut holds), NONE, "another session still has the oldest");
        holds.release(a);
        assert_eq!(done(&mut holds), [7, 8, 9]);
        holds.release(a);
        assert_eq!((holds.len(), done(&mut holds)), (0, vec![]));
    }

    #[test]
    fn what_a_resumed_hub_sends_again_is_not_delivered_twice() {
        let mut holds = Holds::default();
        let (a, b) = (arrive(&mut holds, 1, 1), arrive(&mut holds, 2, 1));
        holds.down();
        holds.release(b);
        assert_eq!(done(&mut holds), NONE, "nothing of this connection");
        assert_eq!(holds.arrive(2, Q1, Sent::Again), Arrived::Held);
        assert_eq!(done(&mut holds), [2], "it was done with meanwhile");
        assert_eq!(holds.arrive(1, Q1, Sent::Again), Arrived::Held);
        assert_eq!(done(&mut holds), NONE);
        holds.release(a);
        assert_eq!(done(&mut holds), [1]);
    }

    #[test]
    fn a_packet_id_without_dup_is_another_message() {
        let mut holds = Holds::default();
        let old = arrive(&mut holds, 1, 1);
        holds.down();
        let new = arrive(&mut holds, 1, 1);
        holds.release(old);
        assert_eq!(done(&mut holds), NONE, "the old one's session speaks of the old one");
        holds.release(new);
        assert_eq!((done(&mut holds), holds.len()), (vec![1], 0));
    }

    #[test]
    fn a_hub_that_forgot_is_answered_for_nothing_of_before() {
        let mut holds = Holds::default();
        let old = arrive(&mut holds, 1, 1);
        holds.down();
        holds.hub_forgot();
        assert!(matches!(holds.arrive(1, Q1, Sent::Again), Arrived::New(_)), "another life's packet id");
        holds.release(old);
        assert_eq!(done(&mut holds), [1]);
    }
}
