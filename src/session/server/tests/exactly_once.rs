//! QoS 2, both ways.

use super::*;

fn publish_2(version: ProtocolVersion, packet_id: u16, dup: bool) -> Vec<u8> {
    let mut bytes = publish(version, "a/b", packet_id, b"");
    bytes[0] = 0x34 | u8::from(dup) << 3;
    bytes
}

/// The device publishes with QoS 2, and delivery takes it.
fn accepted(pair: &mut Pair, packet_id: u16) {
    let came = pair.send(&publish_2(pair.session.version(), packet_id, false));
    assert_eq!(came, Came::Publish("a/b".to_owned(), packet_id));
    pair.session.publish_accepted(packet_id, QoS::ExactlyOnce);
}

fn kept() -> SessionLimits {
    SessionLimits { session_expiry_max: 60, ..LIMITS }
}

fn lasting(version: ProtocolVersion) -> Connect {
    let mut connect = Connect::new(version, "d");
    (connect.clean_start, connect.session_expiry) = (false, 60);
    connect
}

#[test]
fn a_message_is_received_released_and_complete() {
    for version in [V3, V5] {
        let mut pair = Pair::new(version);
        accepted(&mut pair, 7);
        assert_eq!(pair.out, b"", "no witness has it");
        pair.stored(7);
        assert_eq!(std::mem::take(&mut pair.out), b"\x50\x02\x00\x07");
        assert_eq!(pair.session.in_flight(), 0);
        assert_eq!(pair.send(b"\x62\x02\x00\x07"), Came::Done);
        assert_eq!(std::mem::take(&mut pair.out), b"\x70\x02\x00\x07");
        accepted(&mut pair, 7);
    }
}

#[test]
fn until_it_is_released_the_same_identifier_is_the_same_message() {
    // MQTT 5.0 [MQTT-4.3.3-10], MQTT 3.1.1 [MQTT-4.3.3-2]
    for version in [V3, V5] {
        for dup in [true, false] {
            let mut pair = Pair::new(version);
            accepted(&mut pair, 7);
            assert_eq!(pair.send(&publish_2(version, 7, dup)), Came::Done);
            assert_eq!(pair.out, b"", "it is with delivery");
            pair.stored(7);
            assert_eq!(pair.send(&publish_2(version, 7, dup)), Came::Done);
            assert_eq!(std::mem::take(&mut pair.out), b"\x50\x02\x00\x07\x50\x02\x00\x07");
            assert_eq!(pair.publish(7), Came::Close(CloseReason::ProtocolError), "QoS 1 under an identifier in use");
        }
    }
}

#[test]
fn pubrel_of_nothing_that_is_known_is_answered() {
    // MQTT 5.0 §3.7.2.1; 3.1.1 has no reason codes.
    for (version, answer) in [(V3, &b"\x70\x02\x00\x07"[..]), (V5, b"\x70\x03\x00\x07\x92")] {
        let mut pair = Pair::new(version);
        assert_eq!(pair.send(b"\x62\x02\x00\x07"), Came::Done);
        assert_eq!(std::mem::take(&mut pair.out), answer);
        accepted(&mut pair, 8);
        pair.stored(8);
        pair.out.clear();
        assert_eq!((pair.send(b"\x62\x02\x00\x07"), &pair.out[..]), (Came::Done, answer));
    }
}

#[test]
fn pubrecs_and_pubacks_leave_in_the_order_of_the_publishes() {
    // MQTT 5.0 [MQTT-4.6.0-2], [MQTT-4.6.0-3]
    let mut pair = Pair::new(V5);
    accepted(&mut pair, 1);
    pair.accepted(2);
    accepted(&mut pair, 3);
    pair.stored(3);
    pair.stored(2);
    assert_eq!(pair.out, b"");
    pair.stored(1);
    assert_eq!(pair.out, b"\x50\x02\x00\x01\x40\x02\x00\x02\x50\x02\x00\x03");
}

#[test]
fn a_refusal_is_a_pubrec_and_frees_the_identifier() {
    let mut pair = Pair::new(V5);
    accepted(&mut pair, 1);
    assert_eq!(pair.refused(1, Denial::TopicOutOfScope), Ok(()));
    assert_eq!(std::mem::take(&mut pair.out), b"\x50\x20\x00\x01\x87\x1C\x1F\x00\x19401003 topic_out_of_scope");
    // MQTT 5.0 [MQTT-4.3.3-9]
    accepted(&mut pair, 1);
    let mut declines = Connect::new(V5, "d");
    declines.problem_information = ProblemInformation::Declined;
    let mut pair = Pair::with(&declines, &LIMITS);
    accepted(&mut pair, 1);
    assert_eq!(pair.refused(1, Denial::HubRefused), Ok(()));
    assert_eq!(pair.out, b"\x50\x03\x00\x01\x83");
    let mut pair = Pair::new(V3);
    accepted(&mut pair, 1);
    assert_eq!(pair.refused(1, Denial::HubRefused), Err(CloseReason::Denied(Denial::HubRefused)));
}

#[test]
fn what_is_not_released_counts_for_receive_maximum_in_5_0() {
    // MQTT 5.0 [MQTT-3.3.4-9]
    let mut pair = Pair::new(V5);
    accepted(&mut pair, 1);
    pair.stored(1);
    accepted(&mut pair, 2);
    pair.accepted(3);
    assert_eq!(pair.send(&publish_2(V5, 4, false)), Came::Close(CloseReason::ReceiveMaximumExceeded));
    pair.send(b"\x62\x02\x00\x01");
    accepted(&mut pair, 4);
}

#[test]
fn a_3_1_1_device_may_have_thousands_half_way() {
    let mut pair = Pair::new(V3);
    for id in (1..=u16::MAX).step_by(3) {
        accepted(&mut pair, id);
        pair.stored(id);
        assert!(pair.session.wants_input());
    }
    pair.out.clear();
    for id in (1..=u16::MAX).step_by(3).rev() {
        let [high, low] = id.to_be_bytes();
        assert_eq!(pair.send(&publish_2(V3, id, true)), Came::Done);
        assert_eq!(pair.send(&[0x62, 2, high, low]), Came::Done);
    }
    pair.out.clear();
    accepted(&mut pair, 1);
}

#[test]
fn to_the_device_it_is_sent_released_and_complete() {
    for version in [V3, V5] {
        let mut pair = Pair::new(version);
        pair.subscribe("c", QoS::ExactlyOnce);
        assert_eq!(pair.deliver("c", QoS::ExactlyOnce, b"on"), Delivered::Sent);
        assert_eq!(pair.published(), [1]);
        assert_eq!(pair.send(b"\x50\x02\x00\x01"), Came::Done);
        assert_eq!(std::mem::take(&mut pair.out), b"\x62\x02\x00\x01");
        assert_eq!(pair.send(b"\x50\x02\x00\x01"), Came::Done, "PUBREC again, PUBREL again");
        assert_eq!(std::mem::take(&mut pair.out), b"\x62\x02\x00\x01");
        assert_eq!(pair.session.unacknowledged(), 1);
        assert_eq!(pair.send(b"\x70\x02\x00\x01"), Came::Done);
        assert_eq!((pair.session.unacknowledged(), &pair.out[..]), (0, &b""[..]));
        assert_eq!(pair.send(b"\x70\x02\x00\x01"), Came::Done, "of nothing");
    }
}

#[test]
fn a_device_that_refuses_a_message_owes_nothing_more() {
    let mut pair = Pair::new(V5);
    pair.subscribe("c", QoS::ExactlyOnce);
    pair.deliver("c", QoS::ExactlyOnce, b"on");
    pair.out.clear();
    assert_eq!(pair.send(b"\x50\x03\x00\x01\x97"), Came::Done);
    assert_eq!((pair.session.unacknowledged(), &pair.out[..]), (0, &b""[..]));
    // MQTT 5.0 §3.6.2.1: nothing is known of it.
    assert_eq!(pair.send(b"\x50\x02\x00\x09"), Came::Done);
    assert_eq!(pair.out, b"\x62\x03\x00\x09\x92");
}

#[test]
fn an_answer_of_another_kind_closes() {
    let sent = |qos| {
        let mut pair = Pair::new(V5);
        pair.subscribe("c", qos);
        pair.deliver("c", QoS::ExactlyOnce, b"on");
        pair
    };
    let protocol = Came::Close(CloseReason::ProtocolError);
    assert_eq!(sent(QoS::ExactlyOnce).send(b"\x40\x02\x00\x01"), protocol);
    assert_eq!(sent(QoS::ExactlyOnce).send(b"\x70\x02\x00\x01"), protocol);
    assert_eq!(sent(QoS::AtLeastOnce).send(b"\x50\x02\x00\x01"), protocol);
    assert_eq!(sent(QoS::AtLeastOnce).send(b"\x70\x02\x00\x01"), protocol);
}

#[test]
fn a_place_in_flight_is_free_at_pubcomp_and_not_at_pubrec() {
    // MQTT 5.0 §4.9
    let mut connect = Connect::new(V5, "d");
    connect.receive_maximum = 1;
    let mut pair = Pair::with(&connect, &LIMITS);
    pair.subscribe("c", QoS::ExactlyOnce);
    pair.deliver("c", QoS::ExactlyOnce, b"1");
    assert_eq!(pair.deliver("c", QoS::ExactlyOnce, b"2"), Delivered::Queued);
    pair.out.clear();
    pair.send(b"\x50\x02\x00\x01");
    assert_eq!(std::mem::take(&mut pair.out), b"\x62\x02\x00\x01");
    pair.send(b"\x70\x02\x00\x01");
    assert_eq!(pair.published(), [2]);
}

#[test]
fn who_stores_a_session_is_told_what_happens_and_who_asks_for_a_message_too() {
    let receipt = Receipt::new(5);
    let deliver = |pair: &mut Pair| {
        let message = OutgoingMessage { receipt, qos: QoS::ExactlyOnce, ..message("c") };
        pair.session.deliver(&message, &mut pair.out, pair.now);
    };
    let mut pair = Pair::with(&lasting(V5), &kept());
    pair.subscribe("c", QoS::ExactlyOnce);
    deliver(&mut pair);
    pair.send(b"\x50\x02\x00\x01");
    pair.send(b"\x70\x02\x00\x01");
    accepted(&mut pair, 9);
    pair.stored(9);
    pair.send(b"\x62\x02\x00\x09");
    let sent = [
        Change::Sent { receipt, packet_id: 1 },
        Change::Released { receipt, packet_id: 1 },
        Change::Done { receipt: None, packet_id: 1 },
    ];
    assert!(pair.session.has_changes());
    assert_eq!(pair.session.take_changes(), [&sent[..], &[Change::Received(9), Change::Finished(9)]].concat());
    // One that ends with its connection says what is asked for.
    let mut pair = Pair::new(V5);
    pair.subscribe("c", QoS::AtLeastOnce);
    deliver(&mut pair);
    pair.deliver("c", QoS::AtLeastOnce, b"");
    pair.send(b"\x40\x02\x00\x02");
    assert!(!pair.session.has_changes());
    pair.send(b"\x40\x02\x00\x01");
    assert_eq!(pair.session.take_changes(), [Change::Done { receipt, packet_id: 1 }]);
}
