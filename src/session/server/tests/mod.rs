//! Two ends and a virtual clock: what a device sends, what it is answered.

mod downlink;
mod exactly_once;
mod model;
mod properties;
mod resume;
mod uplink;

use super::*;
use crate::{
    packet::{SubscriptionRequest, Will, next_frame},
    topic::TopicFilter,
};

const V3: ProtocolVersion = ProtocolVersion::V3_1_1;
const V5: ProtocolVersion = ProtocolVersion::V5_0;

const LIMITS: SessionLimits = SessionLimits {
    receive_maximum: 3,
    maximum_packet_size: 1000,
    topic_alias_maximum: 2,
    subscriptions_max: 2,
    queue_max: 3,
    qos_max: 2,
    retain: true,
    keep_alive_max: 0,
    session_expiry_max: 0,
};

/// A session and the device at its other end.
struct Pair {
    session: Session,
    out: Vec<u8>,
    now: Tick,
}

/// What came of a packet, in words.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    Done,
    Publish(String, u16),
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    Renew(Vec<u8>),
    Disconnect(u8),
    Close(CloseReason),
}

impl Pair {
    fn new(version: ProtocolVersion) -> Self {
        Self::with(&Connect::new(version, "pump-17"), &LIMITS)
    }

    fn with(connect: &Connect, limits: &SessionLimits) -> Self {
        let now = Tick(1_000);
        Self { session: Session::accept(connect, limits, now), out: vec![], now }
    }

    /// The device sends one packet.
    fn send(&mut self, bytes: &[u8]) -> Came {
        let frame = next_frame(bytes, usize::MAX).expect("a frame").expect("a whole frame");
        match self.session.handle(frame, &mut self.out, self.now) {
            Ok(Step::Done) => Came::Done,
            Ok(Step::Publish(inbound)) => Came::Publish(inbound.topic.to_string(), inbound.packet_id),
            Ok(Step::Subscribe(subscribe)) => Came::Subscribe(subscribe),
            Ok(Step::Unsubscribe(unsubscribe)) => Came::Unsubscribe(unsubscribe),
            Ok(Step::Renew(token)) => Came::Renew(token.as_bytes().to_vec()),
            Ok(Step::Disconnect(disconnect)) => Came::Disconnect(disconnect.reason),
            Err(reason) => Came::Close(reason),
        }
    }

    /// The device publishes to `a/b`; packet identifier 0: with QoS 0.
    fn publish(&mut self, packet_id: u16) -> Came {
        let version = self.session.version();
        self.send(&publish(version, "a/b", packet_id, b""))
    }

    /// Publishes with QoS 1 and DUP.
    fn publish_again(&mut self, packet_id: u16) -> Came {
        let mut bytes = publish(self.session.version(), "a/b", packet_id, b"");
        bytes[0] |= 0x08;
        self.send(&bytes)
    }

    /// Publishes with QoS 1, and delivery takes it.
    fn accepted(&mut self, packet_id: u16) {
        assert_eq!(self.publish(packet_id), Came::Publish("a/b".to_owned(), packet_id));
        self.session.publish_accepted(packet_id, QoS::AtLeastOnce);
    }

    fn stored(&mut self, packet_id: u16) {
        self.session.publish_stored(packet_id, &mut self.out);
    }

    fn refused(&mut self, packet_id: u16, denial: Denial) -> Result<(), CloseReason> {
        self.session.publish_refused(packet_id, denial, &mut self.out)
    }

    /// A PUBLISH of QoS 1 that was offered is refused at once.
    fn refused_at_once(&mut self, packet_id: u16, denial: Denial) -> Result<(), CloseReason> {
        self.session.publish_accepted(packet_id, QoS::AtLeastOnce);
        self.refused(packet_id, denial)
    }

    /// The device subscribes, all is granted as asked, and the SUBACK is read.
    fn subscribe(&mut self, filter: &str, qos: QoS) -> Vec<u8> {
        let request = SubscriptionRequest::new(TopicFilter::try_from(filter).expect(filter), qos);
        self.subscribe_to(vec![request], SubscribeOutcome::Granted(QoS::ExactlyOnce))
    }

    fn subscribe_to(&mut self, requests: Vec<SubscriptionRequest>, outcome: SubscribeOutcome) -> Vec<u8> {
        let version = self.session.version();
        let mut bytes = vec![];
        packet::write_subscribe(&mut bytes, version, &Subscribe { packet_id: 9, subscription_id: None, requests });
        let Came::Subscribe(subscribe) = self.send(&bytes) else { panic!("a SUBSCRIBE") };
        let outcomes = vec![outcome; subscribe.requests.len()];
        self.session.suback(&subscribe, &outcomes, &mut self.out);
        let suback = packet::parse_suback(self.answer(), version).expect("a SUBACK");
        assert_eq!(suback.packet_id, 9);
        let codes = suback.codes;
        self.out.clear();
        codes
    }

    /// A message for the device.
    fn deliver(&mut self, topic: &str, qos: QoS, payload: &[u8]) -> Delivered {
        let message = OutgoingMessage { qos, payload, properties: b"\x01\x01", ..message(topic) };
        self.session.deliver(&message, &mut self.out, self.now)
    }

    /// The packet identifiers of the PUBLISHes that were sent, 0 for QoS 0; they have been read.
    fn published(&mut self) -> Vec<u16> {
        let version = self.session.version();
        self.answers(|frame| packet::parse_publish(frame, version).expect("a PUBLISH").packet_id)
    }

    /// The PUBACKs that were sent; they have been read.
    fn pubacks(&mut self) -> Vec<(u16, u8)> {
        let version = self.session.version();
        self.answers(|frame| {
            assert_eq!(frame.packet_type(), PacketType::Puback);
            let puback = packet::parse_puback(frame, version).expect("a PUBACK");
            (puback.packet_id, puback.reason)
        })
    }

    fn answers<T>(&mut self, mut read: impl FnMut(Frame<'_>) -> T) -> Vec<T> {
        let out = std::mem::take(&mut self.out);
        let (mut rest, mut all) = (&out[..], vec![]);
        while let Some(frame) = next_frame(rest, usize::MAX).expect("frames") {
            all.push(read(frame));
            rest = rest.split_at(frame.bytes().len()).1;
        }
        assert!(rest.is_empty(), "whole packets only");
        all
    }

    /// The one packet that was answered.
    fn answer(&self) -> Frame<'_> {
        let frame = next_frame(&self.out, usize::MAX).expect("a frame").expect("an answer");
        assert_eq!(frame.bytes().len(), self.out.len(), "one answer");
        frame
    }
}

/// A message of QoS 1 for the device.
fn message(topic: &str) -> OutgoingMessage<'_> {
    OutgoingMessage {
        topic: TopicName::new(topic.as_bytes()).expect("a topic"),
        payload: b"on",
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: b"",
        expiry: None,
        receipt: None,
        asked: &[],
        room: Room::Some,
    }
}

/// A PUBLISH of a device; packet identifier 0: with QoS 0.
fn publish(version: ProtocolVersion, topic: &str, packet_id: u16, properties: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    let qos = if packet_id == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    let publish =
        packet::Publish { dup: false, qos, retain: false, topic, packet_id, properties: &[properties], payload: b"42" };
    packet::write_publish(&mut bytes, version, &publish);
    bytes
}

fn connack_of(connect: &Connect, limits: &SessionLimits) -> Connack {
    let mut pair = Pair::with(connect, limits);
    pair.session.connack(SessionPresent::No, None, &mut pair.out);
    packet::parse_connack(pair.answer(), connect.version).expect("a CONNACK")
}

#[test]
fn connack_announces_what_is_offered() {
    let connack = connack_of(&Connect::new(V5, "d"), &LIMITS);
    let expected = Connack {
        receive_maximum: 3,
        maximum_packet_size: Some(1000),
        topic_alias_maximum: 2,
        shared_available: false,
        ..Connack::new(0)
    };
    assert_eq!(connack, expected);
    let without_retain = SessionLimits { retain: false, ..LIMITS };
    assert!(!connack_of(&Connect::new(V5, "d"), &without_retain).retain_available);
    let qos_1 = SessionLimits { qos_max: 1, ..LIMITS };
    assert_eq!(connack_of(&Connect::new(V5, "d"), &qos_1).qos_max, 1);
    // MQTT 5.0 §3.2.2.3.2: said only where it differs from what was asked.
    let mut asks = Connect::new(V5, "d");
    asks.session_expiry = 60;
    assert_eq!(connack_of(&asks, &LIMITS).session_expiry, Some(0));
    let kept = |expiry| connack_of(&asks, &SessionLimits { session_expiry_max: expiry, ..LIMITS }).session_expiry;
    assert_eq!((kept(59), kept(60), kept(u32::MAX)), (Some(59), None, None));
    let mut pair = Pair::new(V5);
    pair.session.connack(SessionPresent::No, Some("pump-17"), &mut pair.out);
    let connack = packet::parse_connack(pair.answer(), V5).expect("a CONNACK");
    assert_eq!(connack.assigned_client_id.as_deref(), Some("pump-17"));
}

#[test]
fn connack_of_3_1_1_is_four_bytes() {
    let mut pair = Pair::new(V3);
    pair.session.connack(SessionPresent::No, None, &mut pair.out);
    pair.session.connack(SessionPresent::Yes, None, &mut pair.out);
    assert_eq!(pair.out, b"\x20\x02\x00\x00\x20\x02\x01\x00");
}

#[test]
fn a_refusal_says_its_code_and_to_5_0_its_tag() {
    let check = |version, denial, problem, expected: &[u8]| {
        let mut out = vec![];
        write_refusal(version, denial, problem, &mut out);
        assert_eq!(out, expected, "{denial}");
    };
    use ProblemInformation::{Declined, Requested};
    check(V3, Denial::SignatureInvalid, Requested, b"\x20\x02\x00\x05");
    check(V3, Denial::DeviceMismatch, Requested, b"\x20\x02\x00\x02");
    check(V3, Denial::Unavailable, Requested, b"\x20\x02\x00\x03");
    check(V3, Denial::ProtocolVersion, Requested, b"\x20\x02\x00\x01");
    check(V3, Denial::Malformed, Requested, b"");
    check(V5, Denial::Expired, Requested, b"\x20\x13\x00\x87\x10\x1f\x00\x0d40105 expired");
    check(V5, Denial::Draining, Requested, b"\x20\x0e\x00\x89\x0b\x1f\x00\x08draining");
    check(V5, Denial::ProtocolVersion, Declined, b"\x20\x03\x00\x84\x00");
}

#[test]
fn a_will_keeps_to_what_is_offered() {
    let check = |qos, retain, limits: SessionLimits, expected| {
        let mut connect = Connect::new(V5, "d");
        let (topic, payload, properties) = ("a".to_owned(), vec![], vec![]);
        connect.will = Some(Will { topic, qos, retain, payload, delay: 0, properties });
        assert_eq!(limits.check_will(&connect), expected);
    };
    check(QoS::AtLeastOnce, true, LIMITS, Ok(()));
    check(QoS::ExactlyOnce, false, LIMITS, Ok(()));
    check(QoS::ExactlyOnce, false, SessionLimits { qos_max: 1, ..LIMITS }, Err(Denial::QosNotOffered));
    check(QoS::AtMostOnce, true, SessionLimits { retain: false, ..LIMITS }, Err(Denial::RetainNotOffered));
    assert_eq!(LIMITS.check_will(&Connect::new(V5, "d")), Ok(()));
}

#[test]
fn keep_alive_ends_after_one_and_a_half_times_its_seconds() {
    // MQTT 5.0 [MQTT-3.1.2-22], MQTT 3.1.1 [MQTT-3.1.2-24]
    let mut connect = Connect::new(V3, "d");
    connect.keep_alive = 10;
    let mut pair = Pair::with(&connect, &LIMITS);
    assert_eq!(pair.session.deadline(), Some(Tick(16_000)));
    pair.session.heard(Tick(2_000));
    assert_eq!((pair.session.deadline(), pair.session.idle_since()), (Some(Tick(17_000)), Tick(2_000)));
    pair.now = Tick(3_000);
    assert_eq!(pair.send(b"\xC0\x00"), Came::Done);
    assert_eq!((&pair.out[..], pair.session.deadline()), (&b"\xD0\x00"[..], Some(Tick(18_000))));
    // What we send does not count.
    pair.out.clear();
    pair.subscribe("a/b", QoS::AtMostOnce);
    let before = pair.session.deadline();
    pair.deliver("a/b", QoS::AtMostOnce, b"");
    assert_eq!(pair.session.deadline(), before);
    assert_eq!(Pair::new(V3).session.deadline(), None, "keep alive 0");
}

#[test]
fn a_keep_alive_is_lowered_and_5_0_is_told() {
    let check = |asked, max, told, deadline| {
        let mut connect = Connect::new(V5, "d");
        connect.keep_alive = asked;
        let limits = SessionLimits { keep_alive_max: max, ..LIMITS };
        assert_eq!(connack_of(&connect, &limits).server_keep_alive, told, "{asked} {max}");
        assert_eq!(Pair::with(&connect, &limits).session.deadline(), deadline, "{asked} {max}");
    };
    check(100, 0, None, Some(Tick(151_000)));
    check(100, 100, None, Some(Tick(151_000)));
    check(101, 100, Some(100), Some(Tick(151_000))); // [MQTT-3.2.2-22]
    check(0, 100, Some(100), Some(Tick(151_000)));
    check(0, 0, None, None);
    check(99, 100, None, Some(Tick(149_500)));
}

#[test]
fn packets_that_may_not_come_close_the_session() {
    let connect = |version| {
        let mut bytes = vec![];
        packet::write_connect(&mut bytes, &Connect::new(version, "d"));
        bytes
    };
    for version in [V3, V5] {
        // A second CONNECT [MQTT-3.1.0-2]; what a server sends; AUTH [MQTT-4.12.0-7].
        let mut not_here: Vec<Vec<u8>> = vec![connect(version)];
        for bytes in [&b"\x20\x02\x00\x00"[..], b"\x90\x03\x00\x01\x00", b"\xB0\x02\x00\x01", b"\xD0\x00", b"\xF0\x00"]
        {
            not_here.push(bytes.to_vec());
        }
        for bytes in not_here {
            assert_eq!(Pair::new(version).send(&bytes), Came::Close(CloseReason::ProtocolError), "{bytes:x?}");
        }
        assert_eq!(Pair::new(version).send(b"\xC0\x01\x00"), Came::Close(CloseReason::Malformed));
    }
}

/// AUTH with a method, and data where there are some.
fn auth(reason: u8, method: &str, data: Option<&[u8]>) -> Vec<u8> {
    let sized = |id: u8, bytes: &[u8]| [&[id], &(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let properties = [sized(0x15, method.as_bytes()), data.map(|data| sized(0x16, data)).unwrap_or_default()].concat();
    [&[0xF0, properties.len() as u8 + 2, reason, properties.len() as u8], &properties[..]].concat()
}

fn by_method(method: &str) -> Pair {
    let mut connect = Connect::new(V5, "d");
    connect.authentication_method = Some(method.to_owned());
    Pair::with(&connect, &LIMITS)
}

#[test]
fn a_token_is_renewed_by_the_method_of_connect_at_once_or_when_it_is_asked_for() {
    let mut pair = by_method("JWT");
    assert_eq!(pair.send(&auth(0x19, "JWT", Some(b"a.b.c"))), Came::Renew(b"a.b.c".to_vec()));
    pair.session.renewed(&mut pair.out);
    assert_eq!(pair.out, auth(0x00, "JWT", None));
    pair.out.clear();
    assert_eq!(pair.send(&auth(0x19, "JWT", None)), Came::Done);
    assert_eq!(pair.out, auth(0x18, "JWT", None));
    assert_eq!(pair.send(&auth(0x18, "JWT", Some(b"a.b.d"))), Came::Renew(b"a.b.d".to_vec()));
    // A driver that has no time yet offers the same packet again.
    assert_eq!(pair.send(&auth(0x18, "JWT", Some(b"a.b.d"))), Came::Renew(b"a.b.d".to_vec()));
    pair.session.renewed(&mut pair.out);
    assert_eq!(pair.send(&auth(0x18, "JWT", Some(b"a.b.e"))), Came::Close(CloseReason::ProtocolError), "nobody asked");
}

#[test]
fn auth_by_another_method_or_out_of_turn_closes_the_session() {
    let protocol = CloseReason::ProtocolError;
    for (bytes, reason) in [
        (auth(0x19, "SAS", Some(b"x")), CloseReason::RenewalRefused(Denial::RenewalMethod)), // [MQTT-4.12.1-1]
        (auth(0x18, "JWT", Some(b"x")), protocol),
        (auth(0x00, "JWT", Some(b"x")), protocol),
        (b"\xF0\x02\x19\x00".to_vec(), protocol), // MQTT 5.0 §3.15.2.2.2
        (b"\xF0\x00".to_vec(), protocol),
        (b"\xF1\x00".to_vec(), CloseReason::Malformed),
        (b"\xF0\x05\x19\x03\x16\x00\x00".to_vec(), protocol),
    ] {
        if let Ok(Some(_)) = next_frame(&bytes, usize::MAX) {
            assert_eq!(by_method("JWT").send(&bytes), Came::Close(reason), "{bytes:x?}");
        }
    }
    let mut asked = by_method("JWT");
    asked.send(&auth(0x19, "JWT", None));
    assert_eq!(asked.send(&auth(0x19, "JWT", Some(b"x"))), Came::Close(protocol), "another answer was asked for");
    // MQTT 5.0 [MQTT-4.12.0-7]; 3.1.1 has no AUTH.
    for version in [V3, V5] {
        assert_eq!(Pair::new(version).send(&auth(0x19, "JWT", Some(b"x"))), Came::Close(protocol));
    }
}

#[test]
fn disconnect_keeps_its_reason() {
    assert_eq!(Pair::new(V3).send(b"\xE0\x00"), Came::Disconnect(0));
    assert_eq!(Pair::new(V5).send(b"\xE0\x01\x04"), Came::Disconnect(4));
    // MQTT 5.0 §3.14.2.2.2
    let raises = b"\xE0\x07\x00\x05\x11\x00\x00\x00\x3C";
    assert_eq!(Pair::new(V5).send(raises), Came::Close(CloseReason::ProtocolError));
    let mut connect = Connect::new(V5, "d");
    connect.session_expiry = 1;
    assert_eq!(Pair::with(&connect, &LIMITS).send(raises), Came::Disconnect(0));
}

#[test]
fn a_close_is_explained_to_5_0_only() {
    let said = |connect: &Connect, reason| {
        let pair = Pair::with(connect, &LIMITS);
        let mut out = vec![];
        pair.session.disconnect(reason, Some("b:1"), &mut out);
        out
    };
    let connect = Connect::new(V5, "d");
    assert_eq!(said(&Connect::new(V3, "d"), CloseReason::Revoked), b"");
    assert_eq!(said(&connect, CloseReason::Revoked), b"\xE0\x0C\x98\x0A\x1F\x00\x07revoked");
    assert_eq!(said(&connect, CloseReason::Denied(Denial::TopicInvalid)).get(2), Some(&0x90));
    assert_eq!(said(&connect, CloseReason::ClientDisconnect), b"");
    // MQTT 5.0 §3.14.2.2.5
    let elsewhere = b"\xE0\x13\x9C\x11\x1F\x00\x08draining\x1C\x00\x03b:1";
    assert_eq!(said(&connect, CloseReason::Draining), elsewhere);
    assert_eq!(said(&Connect::new(V3, "d"), CloseReason::Draining), b"");
    let mut declines = connect.clone();
    declines.problem_information = ProblemInformation::Declined;
    assert_eq!(said(&declines, CloseReason::Expired), b"\xE0\x01\xA0");
    // MQTT 5.0 [MQTT-3.14.2-3]
    let mut small = connect;
    small.maximum_packet_size = Some(13);
    assert_eq!(said(&small, CloseReason::Revoked), b"\xE0\x01\x98");
    for (bytes_max, told) in [
        (21, &elsewhere[..]),
        (20, b"\xE0\x08\x9C\x06\x1C\x00\x03b:1"),
        (10, b"\xE0\x08\x9C\x06\x1C\x00\x03b:1"),
        (9, b"\xE0\x01\x8B"),
    ] {
        small.maximum_packet_size = Some(bytes_max);
        assert_eq!(said(&small, CloseReason::Draining), told, "at most {bytes_max} bytes");
    }
}

#[test]
fn an_idle_session_is_small() {
    let bytes = size_of::<Session>();
    assert!(bytes <= 360, "{bytes} bytes of a session before anything happened");
}
