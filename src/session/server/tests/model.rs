//! The ring against a model of a few lines: a list of the PUBLISHes that were taken, and what was decided of each.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Act {
    /// The next identifier after the last, or this one.
    Publish(Option<u16>),
    /// The nth in flight.
    Stored(usize),
    Refused(usize),
    /// Refused at once, before it has a place.
    RefusedAtOnce(u16),
    /// The nth in flight is sent again.
    Again(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => Just(Act::Publish(None)),
        2 => (1u16..6).prop_map(|id| Act::Publish(Some(id))),
        1 => (65_530u16..).prop_map(|id| Act::Publish(Some(id))),
        6 => (0usize..8).prop_map(Act::Stored),
        2 => (0usize..8).prop_map(Act::Refused),
        1 => (1u16..).prop_map(Act::RefusedAtOnce),
        2 => (0usize..8).prop_map(Act::Again),
    ]
}

#[derive(Default)]
struct Model {
    in_flight: Vec<(u16, Option<u8>)>,
    last: u16,
}

impl Model {
    fn holds(&self, id: u16) -> bool {
        self.in_flight.iter().any(|(held, _)| *held == id)
    }

    fn decide(&mut self, id: u16, reason: u8) {
        let slot = self.in_flight.iter_mut().find(|(held, _)| *held == id).expect("in flight");
        slot.1.get_or_insert(reason);
    }

    /// The PUBACKs that are due.
    fn due(&mut self) -> Vec<(u16, u8)> {
        let ready = self.in_flight.iter().take_while(|(_, reason)| reason.is_some()).count();
        self.in_flight.drain(..ready).map(|(id, reason)| (id, reason.expect("decided"))).collect()
    }
}

const REFUSED: u8 = 0x87;

proptest! {
    #[test]
    fn every_publish_is_answered_once_and_in_order(acts in prop::collection::vec(act(), 1..200)) {
        let limits = SessionLimits { receive_maximum: 6, ..LIMITS };
        let mut pair = Pair::with(&Connect::new(V5, "d"), &limits);
        let mut model = Model::default();
        for act in acts {
            let nth = |n: usize, model: &Model| model.in_flight.get(n).map(|(id, _)| *id);
            match act {
                Act::Publish(id) => {
                    let id = id.unwrap_or_else(|| model.last.checked_add(1).unwrap_or(1));
                    let expected = if model.holds(id) {
                        Came::Close(CloseReason::ProtocolError)
                    } else if model.in_flight.len() == 6 {
                        Came::Close(CloseReason::ReceiveMaximumExceeded)
                    } else {
                        Came::Publish("a/b".to_owned(), id)
                    };
                    let came = pair.publish(id);
                    if let Came::Publish(_, id) = came {
                        pair.session.publish_accepted(id, QoS::AtLeastOnce);
                        model.in_flight.push((id, None));
                        model.last = id;
                    }
                    prop_assert_eq!(came, expected);
                }
                Act::Stored(n) => if let Some(id) = nth(n, &model) {
                    pair.stored(id);
                    model.decide(id, 0);
                },
                Act::Refused(n) => if let Some(id) = nth(n, &model) {
                    prop_assert_eq!(pair.refused(id, Denial::TopicOutOfScope), Ok(()));
                    model.decide(id, REFUSED);
                },
                Act::RefusedAtOnce(id) => if let Came::Publish(..) = pair.publish(id) {
                    prop_assert_eq!(pair.refused_at_once(id, Denial::TopicOutOfScope), Ok(()));
                    model.in_flight.push((id, Some(REFUSED)));
                    model.last = id;
                },
                Act::Again(n) => if let Some(id) = nth(n, &model) {
                    prop_assert_eq!(pair.publish_again(id), Came::Done);
                },
            }
            prop_assert_eq!(pair.pubacks(), model.due());
            prop_assert_eq!(pair.session.in_flight(), model.in_flight.len());
        }
    }

    #[test]
    fn no_packet_makes_a_session_panic(
        version in prop::sample::select(vec![V3, V5]),
        packets in prop::collection::vec((any::<u8>(), prop::collection::vec(prop::sample::select(vec![0u8, 0, 1, 1, 2, 3, 0x23, 0x26, 0x61, 0xFF]), 0..24)), 1..8),
    ) {
        let mut pair = Pair::new(version);
        for (first, body) in packets {
            let bytes = [&[first, body.len() as u8], &body[..]].concat();
            if let Ok(Some(frame)) = next_frame(&bytes, 1000) {
                match pair.session.handle(frame, &mut pair.out, pair.now) {
                    Ok(Step::Subscribe(s)) => {
                        let outcomes = vec![SubscribeOutcome::Granted(QoS::AtLeastOnce); s.requests.len()];
                        pair.session.suback(&s, &outcomes, &mut pair.out);
                    }
                    Ok(Step::Unsubscribe(u)) => drop(pair.session.unsuback(&u, &mut pair.out)),
                    Ok(Step::Publish(p)) => {
                        let Inbound { packet_id: id, qos, .. } = p;
                        pair.session.publish_accepted(id, qos);
                        pair.session.publish_stored(id, &mut pair.out);
                    }
                    Ok(Step::Renew(_)) => pair.session.renewed(&mut pair.out),
                    Ok(Step::Done | Step::Disconnect(_)) => {}
                    Err(reason) => {
                        pair.session.disconnect(reason, None, &mut pair.out);
                        break;
                    }
                }
            }
        }
        pair.answers(|frame| frame.packet_type());
    }
}
