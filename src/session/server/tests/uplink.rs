//! PUBLISH, SUBSCRIBE and UNSUBSCRIBE of the device.

use super::*;

#[test]
fn a_publish_is_acknowledged_when_it_is_stored_and_not_before() {
    for version in [V3, V5] {
        let mut pair = Pair::new(version);
        pair.accepted(1);
        assert_eq!(pair.pubacks(), []);
        pair.stored(1);
        assert_eq!(pair.out, b"\x40\x02\x00\x01");
        assert_eq!(pair.session.in_flight(), 0);
    }
}

#[test]
fn qos_0_takes_no_place_and_has_no_answer() {
    let mut pair = Pair::new(V5);
    assert_eq!(pair.publish(0), Came::Publish("a/b".to_owned(), 0));
    pair.session.publish_accepted(0, QoS::AtMostOnce);
    pair.stored(0);
    assert_eq!((pair.session.in_flight(), &pair.out[..]), (0, &b""[..]));
}

#[test]
fn pubacks_leave_in_the_order_of_the_publishes() {
    // MQTT 5.0 [MQTT-4.6.0-2]
    let mut pair = Pair::new(V5);
    for id in [10, 11, 12] {
        pair.accepted(id);
    }
    pair.stored(12);
    pair.stored(11);
    assert_eq!(pair.pubacks(), []);
    pair.stored(10);
    assert_eq!(pair.pubacks(), [(10, 0), (11, 0), (12, 0)]);
}

#[test]
fn a_refusal_waits_for_its_turn() {
    let mut pair = Pair::new(V5);
    pair.accepted(1);
    assert_eq!(pair.publish(2), Came::Publish("a/b".to_owned(), 2));
    assert_eq!(pair.refused_at_once(2, Denial::TopicOutOfScope), Ok(()));
    pair.accepted(3);
    pair.stored(3);
    assert_eq!(pair.pubacks(), []);
    assert_eq!(pair.refused(1, Denial::HubRefused), Ok(()), "refused after it had been accepted");
    assert_eq!(pair.pubacks(), [(1, 0x83), (2, 0x87), (3, 0)]);
}

#[test]
fn a_refusal_has_a_reason_string_where_the_device_wants_one_and_takes_it() {
    let refused = |change: fn(&mut Connect)| {
        let mut connect = Connect::new(V5, "d");
        change(&mut connect);
        let mut pair = Pair::with(&connect, &LIMITS);
        assert_eq!(pair.refused_at_once(1, Denial::TopicOutOfScope), Ok(()));
        pair.out
    };
    let expected = b"\x40\x20\x00\x01\x87\x1C\x1F\x00\x19401003 topic_out_of_scope";
    assert_eq!(refused(|_| {}), expected);
    // MQTT 5.0 [MQTT-3.1.2-29]
    assert_eq!(refused(|c| c.problem_information = ProblemInformation::Declined), b"\x40\x03\x00\x01\x87");
    // MQTT 5.0 [MQTT-3.4.2-2]
    assert_eq!(refused(|c| c.maximum_packet_size = Some(33)), b"\x40\x03\x00\x01\x87");
    assert_eq!(refused(|c| c.maximum_packet_size = Some(34)), expected);
}

#[test]
fn what_no_puback_can_refuse_closes() {
    use Denial::{HubRefused, QosNotOffered, RetainNotOffered, TopicOutOfScope, Unavailable};
    let check = |version, id, denial, closes| {
        let mut pair = Pair::new(version);
        let expected = if closes { Err(CloseReason::Denied(denial)) } else { Ok(()) };
        assert_eq!(pair.refused_at_once(id, denial), expected, "{denial}");
        assert_eq!(pair.out.is_empty(), closes);
    };
    check(V3, 1, TopicOutOfScope, true);
    check(V5, 0, TopicOutOfScope, true);
    check(V5, 1, TopicOutOfScope, false);
    check(V5, 1, RetainNotOffered, true);
    check(V5, 1, QosNotOffered, true);
    check(V5, 1, HubRefused, false);
    check(V5, 1, Unavailable, false);
}

#[test]
fn every_denial_has_a_code_that_its_packet_may_have() {
    for row in Denial::all() {
        // MQTT 5.0 §3.4.2.1, §3.9.3
        let puback = [0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
        assert!(answer::puback_reason(row.denial).is_none_or(|code| puback.contains(&code)), "{}", row.tag);
        let suback = [0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2];
        assert!(suback.contains(&answer::suback_code(V5, row.denial)), "{}", row.tag);
        assert_eq!(answer::suback_code(V3, row.denial), 0x80);
    }
}

#[test]
fn the_same_frame_may_be_offered_again() {
    let mut pair = Pair::new(V5);
    for _ in 0..3 {
        assert_eq!(pair.publish(1), Came::Publish("a/b".to_owned(), 1));
    }
    assert_eq!(pair.session.in_flight(), 0);
    pair.accepted(1);
}

#[test]
fn a_publish_that_is_in_flight_is_taken_once() {
    for version in [V3, V5] {
        let mut pair = Pair::new(version);
        pair.accepted(1);
        assert_eq!(pair.publish_again(1), Came::Done);
        // Another message under the same identifier is not dropped without a word.
        assert_eq!(pair.publish(1), Came::Close(CloseReason::ProtocolError));
        pair.stored(1);
        assert_eq!(pair.pubacks(), [(1, 0)]);
        // After its PUBACK the identifier is free: this is another message.
        assert_eq!(pair.publish(1), Came::Publish("a/b".to_owned(), 1));
    }
}

#[test]
fn beyond_receive_maximum_5_0_is_closed_and_3_1_1_is_not_read() {
    // MQTT 5.0 [MQTT-3.3.4-9]
    let mut pair = Pair::new(V5);
    (1..=3).for_each(|id| pair.accepted(id));
    assert!(pair.session.wants_input());
    assert_eq!(pair.publish(0), Came::Publish("a/b".to_owned(), 0), "QoS 0 does not count");
    assert_eq!(pair.publish_again(3), Came::Done, "sent again, it does not count twice");
    assert_eq!(pair.publish(4), Came::Close(CloseReason::ReceiveMaximumExceeded));
    pair.stored(1);
    assert_eq!(pair.publish(4), Came::Publish("a/b".to_owned(), 4));

    let mut pair = Pair::new(V3);
    (1..=2).for_each(|id| pair.accepted(id));
    assert!(pair.session.wants_input());
    pair.accepted(3);
    assert!(!pair.session.wants_input());
    pair.stored(2);
    assert!(!pair.session.wants_input(), "its PUBACK has not left");
    pair.stored(1);
    assert!(pair.session.wants_input());
}

#[test]
fn what_is_not_offered_is_refused() {
    let check = |first: u8, limits: &SessionLimits, expected: Came| {
        for (version, body) in [(V3, &b"\x00\x01a\x00\x01"[..]), (V5, b"\x00\x01a\x00\x01\x00")] {
            let mut pair = Pair::with(&Connect::new(version, "d"), limits);
            let came = pair.send(&[&[first, body.len() as u8], body].concat());
            assert_eq!(came, expected, "{first:#x}");
        }
    };
    let without_retain = SessionLimits { retain: false, ..LIMITS };
    let (qos_0, qos_1) = (SessionLimits { qos_max: 0, ..LIMITS }, SessionLimits { qos_max: 1, ..LIMITS });
    // MQTT 5.0 [MQTT-3.2.2-11], [MQTT-3.2.2-14]
    check(0x34, &qos_1, Came::Close(CloseReason::Denied(Denial::QosNotOffered)));
    check(0x34, &LIMITS, Came::Publish("a".to_owned(), 1));
    check(0x32, &qos_0, Came::Close(CloseReason::Denied(Denial::QosNotOffered)));
    check(0x33, &without_retain, Came::Close(CloseReason::Denied(Denial::RetainNotOffered)));
    check(0x33, &LIMITS, Came::Publish("a".to_owned(), 1));
}

#[test]
fn a_topic_name_is_checked() {
    let check = |version, topic: &str, expected: CloseReason| {
        assert_eq!(Pair::new(version).send(&publish(version, topic, 1, b"")), Came::Close(expected), "{topic:?}");
    };
    for version in [V3, V5] {
        for bad in ["a/+", "#", "a\0"] {
            check(version, bad, CloseReason::Denied(Denial::TopicInvalid));
        }
    }
    check(V3, "", CloseReason::Denied(Denial::TopicInvalid));
    check(V5, "", CloseReason::ProtocolError);
}

#[test]
fn a_topic_is_what_the_packet_says_whatever_came_before() {
    let mut pair = Pair::new(V5);
    let (long, longer) = ("x".repeat(256), "x".repeat(257));
    for topic in ["a/b", "a/b", "a/c", "a", "a/b", &long, &longer, &long, "a/b"] {
        assert_eq!(pair.send(&publish(V5, topic, 0, b"")), Came::Publish(topic.to_owned(), 0));
    }
    assert_eq!(pair.send(&publish(V5, "a/+", 0, b"")), Came::Close(CloseReason::Denied(Denial::TopicInvalid)));
    pair.session.shrink();
    assert_eq!(pair.publish(0), Came::Publish("a/b".to_owned(), 0));
}

#[test]
fn a_topic_alias_stands_for_the_topic_it_was_set_with() {
    let mut pair = Pair::new(V5);
    let mut send = |topic: &str, alias: u8| pair.send(&publish(V5, topic, 0, &[0x23, 0, alias]));
    let came = |topic: &str| Came::Publish(topic.to_owned(), 0);
    assert_eq!(send("a/b", 1), came("a/b"));
    assert_eq!(send("", 1), came("a/b"));
    assert_eq!(send("c", 2), came("c"));
    assert_eq!(send("", 1), came("a/b"));
    assert_eq!(send("d", 1), came("d"));
    assert_eq!(send("", 1), came("d"));
    assert_eq!(send("", 2), came("c"));
    // MQTT 5.0 [MQTT-3.3.2-8], [MQTT-3.3.2-9]
    assert_eq!(send("a", 0), Came::Close(CloseReason::TopicAliasInvalid));
    assert_eq!(send("a", 3), Came::Close(CloseReason::TopicAliasInvalid));
    assert_eq!(send("+", 1), Came::Close(CloseReason::Denied(Denial::TopicInvalid)));
    assert_eq!(Pair::new(V5).send(&publish(V5, "", 0, b"\x23\x00\x02")), Came::Close(CloseReason::ProtocolError));
}

#[test]
fn topics_of_aliases_are_bounded_together() {
    let limits = SessionLimits { topic_alias_maximum: 10, maximum_packet_size: 100_000, ..LIMITS };
    let mut pair = Pair::with(&Connect::new(V5, "d"), &limits);
    let long = "x".repeat(8_000);
    assert_eq!(pair.send(&publish(V5, &long, 0, b"\x23\x00\x01")), Came::Publish(long.clone(), 0));
    assert_eq!(pair.send(&publish(V5, &long, 0, b"\x23\x00\x02")), Came::Publish(long.clone(), 0));
    assert_eq!(pair.send(&publish(V5, &long, 0, b"\x23\x00\x03")), Came::Close(CloseReason::TopicAliasInvalid));
}

#[test]
fn properties_that_a_device_may_not_send_close() {
    // MQTT 5.0 [MQTT-3.3.4-6]
    assert_eq!(Pair::new(V5).send(&publish(V5, "a", 0, b"\x0B\x01")), Came::Close(CloseReason::ProtocolError));
    let flood = |n| publish(V5, "a", 0, &b"\x26\x00\x01k\x00\x01v".repeat(n));
    assert_eq!(Pair::new(V5).send(&flood(100)), Came::Publish("a".to_owned(), 0));
    assert_eq!(Pair::new(V5).send(&flood(101)), Came::Close(CloseReason::PacketTooLarge));
}

#[test]
fn a_subscription_is_granted_within_what_is_asked_and_offered() {
    for version in [V3, V5] {
        let mut pair = Pair::new(version);
        assert_eq!(pair.subscribe("a/#", QoS::ExactlyOnce), [2]);
        assert_eq!(pair.subscribe("b", QoS::AtMostOnce), [0]);
        let held: Vec<_> = pair.session.subscriptions().iter().map(|s| (s.filter.as_str(), s.qos)).collect();
        assert_eq!(held, [("a/#", QoS::ExactlyOnce), ("b", QoS::AtMostOnce)]);
        // MQTT 5.0 [MQTT-3.8.4-3]: the same filter takes the old one's place.
        assert_eq!(pair.subscribe("b", QoS::AtLeastOnce), [1]);
        assert_eq!(pair.session.subscriptions().len(), 2);
        // MQTT 5.0 [MQTT-3.8.4-7]: granted less than was asked.
        let mut pair = Pair::with(&Connect::new(version, "d"), &SessionLimits { qos_max: 1, ..LIMITS });
        assert_eq!(pair.subscribe("a/#", QoS::ExactlyOnce), [1]);
    }
}

#[test]
fn a_subscription_that_is_refused_is_not_held() {
    let request = || vec![SubscriptionRequest::new(TopicFilter::try_from("a").unwrap(), QoS::AtLeastOnce)];
    let refused = SubscribeOutcome::Refused(Denial::FilterOutOfScope);
    for (version, code) in [(V3, 0x80), (V5, 0x87)] {
        let mut pair = Pair::new(version);
        assert_eq!(pair.subscribe_to(request(), refused), [code]);
        assert_eq!(pair.session.subscriptions(), []);
    }
}

#[test]
fn a_filter_that_can_never_be_granted_is_refused_whatever_the_driver_says() {
    let subscribe = |version, filter: &str| {
        let mut pair = Pair::new(version);
        let properties: &[u8] = if version == V5 { b"\x00" } else { b"" };
        let body = [b"\x00\x09", properties, &[0, filter.len() as u8], filter.as_bytes(), b"\x01"].concat();
        let Came::Subscribe(subscribe) = pair.send(&[&[0x82, body.len() as u8], &body[..]].concat()) else {
            panic!("a SUBSCRIBE")
        };
        pair.session.suback(&subscribe, &[SubscribeOutcome::Granted(QoS::AtLeastOnce)], &mut pair.out);
        assert_eq!(pair.session.subscriptions(), []);
        packet::parse_suback(pair.answer(), version).unwrap().codes
    };
    assert_eq!(subscribe(V3, "a/#/b"), [0x80]);
    assert_eq!(subscribe(V5, "a/#/b"), [0x8F]);
    assert_eq!(subscribe(V3, "$share/g/a"), [0x80]);
    assert_eq!(subscribe(V5, "$share/g/a"), [0x9E]);
}

#[test]
fn more_filters_than_allowed_are_refused_one_by_one() {
    let requests = |filters: &[&str]| {
        let request = |f: &&str| SubscriptionRequest::new(TopicFilter::try_from(*f).unwrap(), QoS::AtLeastOnce);
        filters.iter().map(request).collect::<Vec<_>>()
    };
    let granted = SubscribeOutcome::Granted(QoS::AtLeastOnce);
    let mut pair = Pair::new(V5);
    assert_eq!(pair.subscribe_to(requests(&["a", "a", "b", "c"]), granted), [1, 1, 1, 0x97]);
    assert_eq!(pair.subscribe_to(requests(&["b"]), granted), [1], "held already");
    assert_eq!(pair.subscribe_to(requests(&["d"]), granted), [0x97]);
}

#[test]
fn unsubscribe_ends_what_is_held_and_says_what_was_not() {
    for version in [V3, V5] {
        let mut pair = Pair::new(version);
        pair.subscribe("a", QoS::AtLeastOnce);
        let mut bytes = vec![];
        let filters = ["a", "b"].map(|f| TopicFilter::try_from(f).unwrap());
        packet::write_unsubscribe(&mut bytes, version, 7, &filters);
        let Came::Unsubscribe(unsubscribe) = pair.send(&bytes) else { panic!("an UNSUBSCRIBE") };
        let ended = pair.session.unsuback(&unsubscribe, &mut pair.out);
        assert_eq!(ended.iter().map(|s| s.filter.as_str()).collect::<Vec<_>>(), ["a"]);
        let expected: &[u8] = if version == V5 { b"\xB0\x05\x00\x07\x00\x00\x11" } else { b"\xB0\x02\x00\x07" };
        assert_eq!(pair.out, expected);
        assert_eq!(pair.session.subscriptions(), []);
    }
}
