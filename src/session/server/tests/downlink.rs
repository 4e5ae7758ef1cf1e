//! Messages for the device.

use super::*;

use Delivered::{Dropped, Queued, Sent, Written};

fn subscribed(connect: &Connect) -> Pair {
    let mut pair = Pair::with(connect, &LIMITS);
    pair.subscribe("c/#", QoS::AtLeastOnce);
    pair
}

fn receive_maximum(n: u16) -> Connect {
    let mut connect = Connect::new(V5, "d");
    connect.receive_maximum = n;
    connect
}

#[test]
fn a_message_has_the_lower_qos_of_its_own_and_its_subscription() {
    let check = |granted, sent, expected: u8| {
        let mut pair = Pair::new(V3);
        pair.subscribe("c", granted);
        assert_eq!(pair.deliver("c", sent, b"on"), if expected == 0 { Written } else { Sent });
        assert_eq!(pair.out[0], 0x30 | expected << 1);
    };
    check(QoS::AtMostOnce, QoS::AtLeastOnce, 0);
    check(QoS::AtLeastOnce, QoS::AtMostOnce, 0);
    check(QoS::AtLeastOnce, QoS::AtLeastOnce, 1);
    check(QoS::ExactlyOnce, QoS::ExactlyOnce, 2);
    check(QoS::ExactlyOnce, QoS::AtLeastOnce, 1);
    check(QoS::AtLeastOnce, QoS::ExactlyOnce, 1);
    check(QoS::AtMostOnce, QoS::ExactlyOnce, 0);
    check(QoS::ExactlyOnce, QoS::AtMostOnce, 0);
    // MQTT 5.0 [MQTT-3.3.4-2]: of overlapping subscriptions the highest counts.
    let mut pair = Pair::new(V3);
    pair.subscribe("c/#", QoS::AtMostOnce);
    pair.subscribe("c/+", QoS::AtLeastOnce);
    pair.deliver("c/d", QoS::AtLeastOnce, b"");
    assert_eq!(pair.out[0], 0x32);
}

#[test]
fn a_message_arrives_as_it_was_and_3_1_1_gets_no_properties() {
    let mut pair = subscribed(&Connect::new(V5, "d"));
    pair.deliver("c/d", QoS::AtLeastOnce, b"on");
    assert_eq!(pair.out, b"\x32\x0C\x00\x03c/d\x00\x01\x02\x01\x01on");
    let mut pair = subscribed(&Connect::new(V3, "d"));
    pair.deliver("c/d", QoS::AtMostOnce, b"on");
    assert_eq!(pair.out, b"\x30\x07\x00\x03c/don");
}

#[test]
fn what_has_to_be_sent_again_is_bounded_in_bytes_and_what_is_at_its_end_makes_room() {
    let large = vec![0; 300 << 10];
    for (qos, answers) in [(QoS::AtLeastOnce, &[0x40][..]), (QoS::ExactlyOnce, &[0x50, 0x70])] {
        let mut connect = Connect::new(V5, "d");
        (connect.clean_start, connect.session_expiry) = (false, 60);
        let mut pair = Pair::with(&connect, &SessionLimits { session_expiry_max: 3_600, ..LIMITS });
        pair.subscribe("c", QoS::ExactlyOnce);
        let deliver = |pair: &mut Pair| {
            let delivered = pair.deliver("c", qos, &large);
            pair.out.clear();
            delivered
        };
        // 1 MiB is reached with the fourth, and as much waits.
        let all: Vec<_> = (0..8).map(|_| deliver(&mut pair)).collect();
        let full = Dropped(DropReason::QueueFull);
        assert_eq!(all, [Sent, Sent, Sent, Sent, Queued, Queued, Queued, full]);
        for answer in answers {
            pair.send(&[*answer, 2, 0, 1]);
        }
        assert_eq!((pair.session.unacknowledged(), pair.session.queued()), (4, 2));
        // Where all sessions are full nothing is kept, and what need not be kept is sent.
        let full = OutgoingMessage { room: Room::None, ..message("c") };
        let kept = pair.session.deliver(&full, &mut pair.out, pair.now);
        assert_eq!(kept, Dropped(DropReason::SessionsFull));
    }
    let mut pair = subscribed(&receive_maximum(1));
    let full = OutgoingMessage { room: Room::None, ..message("c") };
    let mut deliver = || pair.session.deliver(&full, &mut pair.out, pair.now);
    assert_eq!((deliver(), deliver()), (Sent, Dropped(DropReason::SessionsFull)), "the second would have to wait");
}

#[test]
fn never_more_is_in_flight_than_the_device_takes() {
    // MQTT 5.0 [MQTT-3.3.4-7]
    let mut pair = subscribed(&receive_maximum(2));
    let mut deliver = |payload: &[u8]| pair.deliver("c", QoS::AtLeastOnce, payload);
    assert_eq!([deliver(b"1"), deliver(b"2"), deliver(b"3"), deliver(b"4")], [Sent, Sent, Queued, Queued]);
    assert_eq!(deliver(b"5"), Queued);
    assert_eq!(deliver(b"6"), Dropped(DropReason::QueueFull));
    assert_eq!(pair.deliver("c", QoS::AtMostOnce, b"0"), Written, "QoS 0 does not count");
    assert_eq!(pair.published(), [1, 2, 0]);
    assert_eq!(pair.send(b"\x40\x02\x00\x02"), Came::Done);
    assert_eq!(pair.published(), [3]);
    assert_eq!(pair.send(b"\x40\x02\x00\x02"), Came::Done, "acknowledged twice, it frees one place");
    assert!(pair.published().is_empty());
    assert_eq!(pair.send(b"\x40\x02\x00\x01"), Came::Done);
    assert_eq!(pair.send(b"\x40\x03\x00\x03\x87"), Came::Done, "a refusal frees the place, too");
    assert_eq!(pair.published(), [4, 5]);
    assert_eq!(pair.session.queued(), 0);
}

#[test]
fn queued_messages_leave_in_order_and_new_ones_behind_them() {
    let mut pair = subscribed(&receive_maximum(1));
    for payload in [b"1", b"2", b"3"] {
        pair.deliver("c", QoS::AtLeastOnce, payload);
    }
    let mut payloads = vec![];
    for id in 1..=3u8 {
        let payload = |frame: Frame<'_>| packet::parse_publish(frame, V5).unwrap().payload.to_vec();
        payloads.extend(pair.answers(payload));
        pair.send(&[0x40, 2, 0, id]);
    }
    assert_eq!(payloads, [b"1", b"2", b"3"]);
}

#[test]
fn a_packet_identifier_in_use_is_passed_over() {
    // MQTT 5.0 [MQTT-2.2.1-4]
    let mut pair = subscribed(&receive_maximum(2));
    pair.deliver("c", QoS::AtLeastOnce, b"the device sits on this one");
    assert_eq!(pair.published(), [1]);
    for expected in (2..=65_535).chain([2, 3]) {
        pair.deliver("c", QoS::AtLeastOnce, b"");
        assert_eq!(pair.published(), [expected]);
        let [high, low] = expected.to_be_bytes();
        pair.send(&[0x40, 2, high, low]);
    }
}

#[test]
fn a_packet_larger_than_the_device_takes_is_dropped() {
    // MQTT 5.0 [MQTT-3.1.2-24], [MQTT-3.1.2-25]
    let mut connect = Connect::new(V5, "d");
    connect.maximum_packet_size = Some(20);
    let mut pair = subscribed(&connect);
    // two bytes of header, three of topic, three of properties
    assert_eq!(pair.deliver("c", QoS::AtMostOnce, &[0; 13]), Dropped(DropReason::TooLarge));
    assert_eq!(pair.deliver("c", QoS::AtMostOnce, &[0; 12]), Written);
    assert_eq!(pair.out.len(), 20);
    assert_eq!(pair.deliver("c", QoS::AtLeastOnce, &[0; 11]), Dropped(DropReason::TooLarge));
    assert_eq!(pair.deliver("c", QoS::AtLeastOnce, &[0; 10]), Sent);
}

#[test]
fn a_device_that_does_not_read_gets_qos_1_later_and_qos_0_never() {
    let mut pair = subscribed(&Connect::new(V3, "d"));
    pair.out = vec![0; 64 * 1024];
    assert_eq!(pair.deliver("c", QoS::AtMostOnce, b""), Written, "at the limit");
    assert_eq!(pair.deliver("c", QoS::AtMostOnce, b""), Dropped(DropReason::NotReading));
    assert_eq!(pair.deliver("c", QoS::AtLeastOnce, b""), Queued);
    pair.session.pump(&mut pair.out, pair.now);
    assert_eq!(pair.session.queued(), 1, "nothing has drained");
    pair.out.clear();
    pair.session.pump(&mut pair.out, pair.now);
    assert_eq!((pair.session.queued(), pair.published()), (0, vec![1]));
}

#[test]
fn a_queue_is_bounded_in_bytes_too() {
    let limits = SessionLimits { queue_max: 1000, ..LIMITS };
    let mut pair = Pair::with(&receive_maximum(1), &limits);
    pair.subscribe("c", QoS::AtLeastOnce);
    pair.deliver("c", QoS::AtLeastOnce, b"in flight");
    let mut deliver = || pair.deliver("c", QoS::AtLeastOnce, &[0; 300 * 1024]);
    assert_eq!([deliver(), deliver(), deliver()], [Queued; 3]);
    assert_eq!(deliver(), Dropped(DropReason::QueueFull));
    // What has left makes room.
    pair.send(b"\x40\x02\x00\x01");
    assert_eq!(pair.deliver("c", QoS::AtLeastOnce, &[0; 300 * 1024]), Queued);
}

#[test]
fn what_is_taken_back_is_neither_subscribed_to_nor_waits_any_more() {
    let mut pair = Pair::with(&receive_maximum(1), &LIMITS);
    pair.subscribe("c/#", QoS::AtLeastOnce);
    pair.subscribe("d/é", QoS::AtLeastOnce);
    for (topic, delivered) in [("c/1", Sent), ("d/é", Queued), ("c/2", Queued), ("d/é", Queued)] {
        assert_eq!(pair.deliver(topic, QoS::AtLeastOnce, &[7; 200]), delivered);
    }
    let gone = pair.session.withdraw(|filter| filter.as_str() != "d/é", |topic| topic.as_str() != "d/é");
    assert_eq!(gone.iter().map(|held| held.filter.as_str()).collect::<Vec<_>>(), ["d/é"]);
    assert_eq!((pair.session.subscriptions().len(), pair.session.queued()), (1, 1));
    assert_eq!(pair.published(), [1]);
    assert_eq!(pair.send(b"\x40\x02\x00\x01"), Came::Done);
    let topics = pair.answers(|frame| packet::parse_publish(frame, V5).expect("a PUBLISH").topic.to_vec());
    assert_eq!(topics, [b"c/2"]);
}
