//! What outlives a connection; and, by a model, that QoS 2 is exactly once however often connections are lost.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

fn limits() -> SessionLimits {
    SessionLimits { session_expiry_max: 60, receive_maximum: 6, queue_max: 100, ..LIMITS }
}

fn connect(version: ProtocolVersion, receive_maximum: u16) -> Connect {
    let mut connect = Connect::new(version, "d");
    (connect.clean_start, connect.session_expiry, connect.receive_maximum) = (false, 60, receive_maximum);
    connect
}

fn new(connect: &Connect) -> Pair {
    Pair::with(connect, &limits())
}

/// The device comes back.
fn again(mut old: Pair, connect: &Connect) -> Pair {
    old.session.take_changes();
    let state = old.session.take_state();
    let session = Session::resume(connect, &limits(), state, old.now);
    Pair { session, out: vec![], now: old.now }
}

fn pumped(mut pair: Pair) -> Vec<Vec<u8>> {
    pair.session.pump(&mut pair.out, pair.now);
    pair.answers(|frame| frame.bytes().to_vec())
}

#[test]
fn what_is_unacknowledged_is_sent_again_under_the_same_identifiers_in_order() {
    // MQTT 5.0 [MQTT-4.4.0-1], [MQTT-4.6.0-1]
    let mut pair = new(&connect(V5, 4));
    pair.subscribe("1", QoS::AtLeastOnce);
    pair.subscribe("2", QoS::ExactlyOnce);
    for topic in ["1", "2", "2", "1", "2"] {
        let message = OutgoingMessage { qos: QoS::ExactlyOnce, ..message(topic) };
        pair.session.deliver(&message, &mut pair.out, pair.now);
    }
    pair.send(b"\x50\x02\x00\x02");
    pair.out.clear();
    let pair = again(pair, &connect(V5, 4));
    assert_eq!(pair.session.subscriptions().len(), 2);
    let expected: [&[u8]; 4] = [
        b"\x3A\x08\x00\x011\x00\x01\x00on",
        b"\x62\x02\x00\x02",
        b"\x3C\x08\x00\x012\x00\x03\x00on",
        b"\x3A\x08\x00\x011\x00\x04\x00on",
    ];
    assert_eq!(pumped(pair), expected, "and what was queued waits");
}

#[test]
fn a_smaller_receive_maximum_is_kept_to_and_so_is_the_order() {
    let mut pair = new(&connect(V5, 3));
    pair.subscribe("1", QoS::AtLeastOnce);
    for _ in 0..4 {
        pair.session.deliver(&message("1"), &mut pair.out, pair.now);
    }
    let mut pair = again(pair, &connect(V5, 1));
    pair.session.pump(&mut pair.out, pair.now);
    for id in 1..=4u8 {
        assert_eq!(pair.published(), [u16::from(id)]);
        pair.send(&[0x40, 2, 0, id]);
    }
    assert_eq!((pair.session.unacknowledged(), pair.session.queued(), pair.out.len()), (0, 0, 0));
}

#[test]
fn what_is_too_large_for_the_new_connection_is_given_up() {
    let mut pair = new(&connect(V5, 5));
    pair.subscribe("1", QoS::AtLeastOnce);
    pair.session.deliver(&OutgoingMessage { payload: &[0; 100], ..message("1") }, &mut pair.out, pair.now);
    pair.session.deliver(&message("1"), &mut pair.out, pair.now);
    let mut small = connect(V5, 5);
    small.maximum_packet_size = Some(50);
    let mut pair = again(pair, &small);
    pair.session.pump(&mut pair.out, pair.now);
    assert_eq!(pair.published(), [2]);
    let changes = pair.session.take_changes();
    assert_eq!(changes.first(), Some(&Change::Dropped { receipt: None, reason: DropReason::TooLarge }));
}

#[test]
fn a_device_may_come_back_in_the_other_version() {
    let mut pair = new(&connect(V5, 5));
    pair.subscribe("1", QoS::AtLeastOnce);
    pair.deliver("1", QoS::AtLeastOnce, b"on");
    assert_eq!(pumped(again(pair, &connect(V3, u16::MAX))), [b"\x3A\x07\x00\x011\x00\x01on"]);
}

#[test]
fn what_a_device_published_with_qos_2_is_forwarded_once_over_a_lost_connection() {
    let publish = |pair: &mut Pair, id: u16| {
        let mut bytes = publish(V5, "a/b", id, b"");
        bytes[0] = 0x34;
        let came = pair.send(&bytes);
        if let Came::Publish(..) = came {
            pair.session.publish_accepted(id, QoS::ExactlyOnce);
        }
        came
    };
    let new_one = |id| Came::Publish("a/b".to_owned(), id);
    let mut pair = new(&connect(V5, 5));
    for id in 1..=4 {
        assert_eq!(publish(&mut pair, id), new_one(id));
    }
    pair.stored(1); // PUBREC was sent
    pair.stored(3); // and here it waits for its turn
    let mut state = pair.session.take_state();
    assert_eq!((&state.received[..], &state.awaited[..]), (&[1, 3][..], &[2, 4][..]));
    state.settle(4, Settlement::Refused);
    let session = Session::resume(&connect(V5, 5), &limits(), state, pair.now);
    let mut pair = Pair { session, out: vec![], now: pair.now };
    assert_eq!(publish(&mut pair, 1), Came::Done);
    assert_eq!(publish(&mut pair, 2), Came::Done);
    assert_eq!(publish(&mut pair, 3), Came::Done);
    assert_eq!(std::mem::take(&mut pair.out), b"\x50\x02\x00\x01", "the second has no witness yet");
    pair.stored(2);
    assert_eq!(std::mem::take(&mut pair.out), b"\x50\x02\x00\x02\x50\x02\x00\x03");
    assert_eq!(publish(&mut pair, 4), new_one(4), "it was refused, and is another message");
}

#[test]
fn what_is_said_of_an_earlier_connections_message_answers_no_other_under_its_identifier() {
    // PUBACK has a witness of its own message [MQTT-4.3.2-4].
    for (version, outcome) in [V3, V5].into_iter().flat_map(|v| [(v, Ok(())), (v, Err(Denial::HubRefused))]) {
        let mut pair = new(&connect(version, 5));
        let mut bytes = publish(version, "a/b", 7, b"");
        bytes[0] = 0x34;
        assert_eq!(pair.send(&bytes), Came::Publish("a/b".to_owned(), 7));
        pair.session.publish_accepted(7, QoS::ExactlyOnce);
        let mut pair = again(pair, &connect(version, 5));
        pair.accepted(7);
        pair.session.settle_earlier(7, outcome, &mut pair.out).expect("nothing to close over");
        assert_eq!(pair.out, [0_u8; 0], "the QoS 1 message has no witness yet, and was not refused");
        pair.stored(7);
        assert_eq!(pair.out, b"\x40\x02\x00\x07");
    }
}

#[test]
fn a_session_that_ends_with_its_connection_leaves_no_message() {
    let mut pair = Pair::new(V3);
    pair.subscribe("1", QoS::AtLeastOnce);
    pair.deliver("1", QoS::AtLeastOnce, b"on");
    assert_eq!(pair.session.session_expiry(), 0);
    assert!(pair.session.take_state().in_flight.is_empty());
    let mut connect = Connect::new(V3, "d");
    connect.clean_start = false;
    assert_eq!(new(&connect).session.session_expiry(), 60, "3.1.1 has no number of its own");
}

#[test]
fn disconnect_may_change_how_long_a_session_stays() {
    let mut pair = new(&connect(V5, 5));
    assert_eq!(pair.send(b"\xE0\x07\x00\x05\x11\x00\x00\x00\x05"), Came::Disconnect(0));
    assert_eq!(pair.session.session_expiry(), 5);
    assert_eq!(pair.send(b"\xE0\x07\x00\x05\x11\x00\x00\x01\x00"), Came::Disconnect(0));
    assert_eq!(pair.session.session_expiry(), 60, "not for longer than is offered");
}

/// A device that keeps its state as MQTT has it, and counts what it gets.
#[derive(Default)]
struct Device {
    version: Option<ProtocolVersion>,
    /// Its own messages by packet id: payload, and whether PUBREC came.
    sending: BTreeMap<u16, (u8, bool)>,
    /// In the order in which they were first sent.
    order: VecDeque<u16>,
    next_id: u16,
    /// QoS 2 messages of the gateway that are not released.
    received: Vec<u16>,
    got: Vec<u8>,
    finished: Vec<u8>,
}

impl Device {
    fn publish(&self, id: u16, payload: u8, dup: bool) -> Vec<u8> {
        let mut bytes = vec![];
        let publish = packet::Publish {
            dup,
            qos: QoS::ExactlyOnce,
            retain: false,
            topic: "a",
            packet_id: id,
            properties: &[],
            payload: &[payload],
        };
        packet::write_publish(&mut bytes, self.version.unwrap_or(V5), &publish);
        bytes
    }

    /// Takes what the gateway sent, and says what it answers.
    fn handle(&mut self, frame: Frame<'_>) -> Vec<u8> {
        let version = self.version.unwrap_or(V5);
        let mut out = vec![];
        match frame.packet_type() {
            PacketType::Publish => {
                let publish = packet::parse_publish(frame, version).expect("a PUBLISH");
                if !self.received.contains(&publish.packet_id) {
                    self.received.push(publish.packet_id);
                    self.got.extend(publish.payload);
                }
                packet::write_pubrec(&mut out, version, publish.packet_id, 0);
            }
            PacketType::Pubrel => {
                let id = packet::parse_pubrel(frame, version).expect("a PUBREL").packet_id;
                self.received.retain(|held| *held != id);
                packet::write_pubcomp(&mut out, version, id, 0);
            }
            PacketType::Pubrec => {
                let id = packet::parse_pubrec(frame, version).expect("a PUBREC").packet_id;
                self.sending.get_mut(&id).expect("it was sent").1 = true;
                packet::write_pubrel(&mut out, version, id, 0);
            }
            PacketType::Pubcomp => {
                let id = packet::parse_pubcomp(frame, version).expect("a PUBCOMP").packet_id;
                if let Some((payload, _)) = self.sending.remove(&id) {
                    self.order.retain(|held| *held != id);
                    self.finished.push(payload);
                }
            }
            other => panic!("{other:?}"),
        }
        out
    }

    /// All that it has to send again on a new connection.
    fn again(&self) -> Vec<Vec<u8>> {
        let version = self.version.unwrap_or(V5);
        let again = |id: &u16| {
            let (payload, released) = self.sending[id];
            let mut bytes = vec![];
            if released {
                packet::write_pubrel(&mut bytes, version, *id, 0);
                return bytes;
            }
            self.publish(*id, payload, true)
        };
        self.order.iter().map(again).collect()
    }
}

#[derive(Clone, Debug)]
enum Act {
    /// The device publishes the next message.
    Publish,
    /// A witness has the nth that is with delivery.
    Store(usize),
    /// The hub has a message for the device.
    Deliver,
    /// So many packets of the gateway reach the device, and its answers the gateway.
    ToDevice(usize),
    /// So many packets of the device reach the gateway.
    ToGateway(usize),
    /// The connection is lost with all that is under way.
    Lose,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => Just(Act::Publish),
        4 => (0usize..4).prop_map(Act::Store),
        4 => Just(Act::Deliver),
        6 => (1usize..4).prop_map(Act::ToDevice),
        6 => (1usize..4).prop_map(Act::ToGateway),
        2 => Just(Act::Lose),
    ]
}

/// Both ends, and what is under way between them.
struct World {
    pair: Pair,
    device: Device,
    connect: Connect,
    to_gateway: VecDeque<Vec<u8>>,
    to_device: VecDeque<Vec<u8>>,
    /// With delivery: packet id.
    with_delivery: Vec<u16>,
    forwarded: Vec<u8>,
    published: u8,
    delivered: u8,
}

impl World {
    fn new(version: ProtocolVersion) -> Self {
        let connect = connect(version, 3);
        let mut pair = new(&connect);
        pair.subscribe("c", QoS::ExactlyOnce);
        let device = Device { version: Some(version), ..Device::default() };
        let (to_gateway, to_device, with_delivery) = Default::default();
        Self {
            pair,
            device,
            connect,
            to_gateway,
            to_device,
            with_delivery,
            forwarded: vec![],
            published: 0,
            delivered: 0,
        }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Publish if self.device.sending.len() < 6 && self.published < 200 => {
                self.device.next_id = self.device.next_id % 9 + 1;
                while self.device.sending.contains_key(&self.device.next_id) {
                    self.device.next_id = self.device.next_id % 9 + 1;
                }
                let id = self.device.next_id;
                self.device.sending.insert(id, (self.published, false));
                self.device.order.push_back(id);
                self.to_gateway.push_back(self.device.publish(id, self.published, false));
                self.published += 1;
            }
            Act::Publish => {}
            Act::Store(n) if n < self.with_delivery.len() => {
                let id = self.with_delivery.remove(n);
                self.pair.stored(id);
            }
            Act::Store(_) => {}
            Act::Deliver if self.pair.session.queued() < 90 && self.delivered < 200 => {
                let payload = [self.delivered];
                let message = OutgoingMessage { payload: &payload, qos: QoS::ExactlyOnce, ..message("c") };
                let delivered = self.pair.session.deliver(&message, &mut self.pair.out, self.pair.now);
                assert!(matches!(delivered, Delivered::Sent | Delivered::Queued));
                self.delivered += 1;
            }
            Act::Deliver => {}
            Act::ToDevice(n) => {
                self.flush();
                for _ in 0..n {
                    let Some(bytes) = self.to_device.pop_front() else { break };
                    let frame = next_frame(&bytes, usize::MAX).expect("a frame").expect("whole");
                    let answer = self.device.handle(frame);
                    if !answer.is_empty() {
                        self.to_gateway.push_back(answer);
                    }
                }
            }
            Act::ToGateway(n) => {
                for _ in 0..n {
                    let Some(bytes) = self.to_gateway.pop_front() else { break };
                    self.gateway_reads(&bytes);
                }
            }
            Act::Lose => {
                self.to_gateway.clear();
                self.to_device.clear();
                let old = std::mem::replace(&mut self.pair, new(&self.connect));
                self.pair = again(old, &self.connect);
                self.pair.session.pump(&mut self.pair.out, self.pair.now);
                self.to_gateway.extend(self.device.again());
            }
        }
    }

    fn gateway_reads(&mut self, bytes: &[u8]) {
        match self.pair.send(bytes) {
            Came::Done => {}
            Came::Publish(_, id) => {
                let payload = *bytes.last().expect("a payload");
                self.forwarded.push(payload);
                self.with_delivery.push(id);
                self.pair.session.publish_accepted(id, QoS::ExactlyOnce);
            }
            came => panic!("{came:?}"),
        }
    }

    fn flush(&mut self) {
        let packets = self.pair.answers(|frame| frame.bytes().to_vec());
        self.to_device.extend(packets);
    }
}

proptest! {
    #[test]
    fn qos_2_is_exactly_once_and_in_order_however_often_connections_are_lost(
        version in prop::sample::select(vec![V3, V5]),
        acts in prop::collection::vec(act(), 1..300),
    ) {
        let mut world = World::new(version);
        for act in &acts {
            world.act(act);
        }
        // And to the end.
        for _ in 0..400 {
            world.act(&Act::Store(0));
            world.act(&Act::ToGateway(3));
            world.act(&Act::ToDevice(3));
        }
        let all = |n: u8| (0..n).collect::<Vec<_>>();
        prop_assert_eq!(&world.device.got, &all(world.delivered));
        prop_assert_eq!(&world.forwarded, &all(world.published));
        world.device.finished.sort_unstable();
        prop_assert_eq!(&world.device.finished, &all(world.published));
        prop_assert_eq!(world.pair.session.unacknowledged(), 0);
        prop_assert!(world.pair.session.take_state().received.is_empty());
    }
}
