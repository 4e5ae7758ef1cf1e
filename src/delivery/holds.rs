//! Messages of the hub on their way to devices: the hub is told that one arrived when every session that it is for is
//! done with it, in the order in which they came [MQTT-4.6.0-2]. What it is not told it sends again.

use std::collections::{HashMap, VecDeque};

use super::{
    LinkError, LinkOutput,
    link::{Deliver, Link},
    subscriptions::HubCopy,
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
    /// The session's filters allow it this at most.
    pub qos: QoS,
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
    last: u64,
}

#[derive(Debug)]
struct Hold {
    packet_id: u16,
    /// How many are not done with it.
    sessions: u32,
}

impl Holds {
    /// A message came. `None`: sessions have it from an earlier connection, and get no second copy.
    fn arrive(&mut self, packet_id: u16, sent: Sent) -> Option<Ticket> {
        if let Some(ticket) = self.earlier.remove(&packet_id) {
            if sent == Sent::Again {
                self.order.push_back(ticket);
                return None;
            }
            self.held.remove(&ticket);
        }
        self.last += 1;
        self.order.push_back(self.last);
        self.held.insert(self.last, Hold { packet_id, sessions: 0 });
        Some(Ticket(self.last))
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

    /// The next packet id that the hub is to be answered for.
    fn next_done(&mut self) -> Option<u16> {
        let oldest = self.order.front()?;
        if self.held.get(oldest).is_some_and(|hold| hold.sessions > 0) {
            return None;
        }
        let hold = self.held.remove(oldest);
        self.order.pop_front();
        hold.map(|hold| hold.packet_id)
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
        let topic = TopicName::new(publish.topic).map_err(|_| ClientError::Protocol("an invalid topic name"))?;
        let ticket = match publish.qos {
            QoS::AtMostOnce => None,
            _ => match self.holds.arrive(publish.packet_id, if publish.dup { Sent::Again } else { Sent::First }) {
                None => return self.answer(),
                some => some,
            },
        };
        self.subscription_ids.clear();
        publish.subscription_ids(|id| self.subscription_ids.push(id));
        let copy = HubCopy { topic, retained: publish.retain, subscription_ids: &self.subscription_ids };
        let mut found = std::mem::take(&mut self.found);
        let claimed = self.subscriptions.matches(&copy, &mut found, now);
        out.unclaimed += u64::from(!claimed);
        let mut sessions = 0;
        for (session, qos) in &found {
            let incoming = Incoming { qos: publish.qos.min(*qos), ticket, publish };
            sessions += u32::from(deliver(*session, &incoming) == Taken::Held);
        }
        self.found = found;
        if let Some(ticket) = ticket {
            self.holds.hold(ticket, sessions);
        }
        self.answer()
    }

    /// Tells the hub what sessions are done with.
    fn answer(&mut self) -> Result<(), LinkError> {
        while self.is_up()
            && let Some(packet_id) = self.holds.next_done()
        {
            self.client.acknowledge(packet_id)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u16; 0] = [];

    fn done(holds: &mut Holds) -> Vec<u16> {
        std::iter::from_fn(|| holds.next_done()).collect()
    }

    fn arrive(holds: &mut Holds, packet_id: u16, sessions: u32) -> Ticket {
        let ticket = holds.arrive(packet_id, Sent::First).expect("a new message");
        holds.hold(ticket, sessions);
        ticket
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
        assert_eq!(holds.arrive(2, Sent::Again), None);
        assert_eq!(done(&mut holds), [2], "it was done with meanwhile");
        assert_eq!(holds.arrive(1, Sent::Again), None);
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
        assert!(holds.arrive(1, Sent::Again).is_some(), "another life's packet id");
        holds.release(old);
        assert_eq!(done(&mut holds), [1]);
    }
}
