//! What a message for the device says of itself: identifiers, expiry, aliases.

use super::*;

fn subscribe(pair: &mut Pair, filter: &str, id: Option<u32>) {
    let request = SubscriptionRequest::new(TopicFilter::try_from(filter).expect(filter), QoS::AtLeastOnce);
    let mut bytes = vec![];
    packet::write_subscribe(&mut bytes, V5, &Subscribe { packet_id: 9, subscription_id: id, requests: vec![request] });
    let Came::Subscribe(subscribe) = pair.send(&bytes) else { panic!("a SUBSCRIBE") };
    pair.session.suback(&subscribe, &[SubscribeOutcome::Granted(QoS::ExactlyOnce)], &mut pair.out);
    pair.out.clear();
}

/// Topic and encoded properties of what was sent.
fn sent(pair: &mut Pair) -> Vec<(String, Vec<u8>)> {
    let version = pair.session.version();
    pair.answers(|frame| {
        let publish = packet::parse_publish(frame, version).expect("a PUBLISH");
        (String::from_utf8(publish.topic.to_vec()).expect("text"), publish.properties.to_vec())
    })
}

fn deliver(pair: &mut Pair, message: &OutgoingMessage<'_>) -> Delivered {
    pair.session.deliver(message, &mut pair.out, pair.now)
}

#[test]
fn a_message_names_every_subscription_that_it_is_for() {
    // MQTT 5.0 [MQTT-3.3.4-3], [MQTT-3.3.4-4]
    let mut pair = Pair::new(V5);
    subscribe(&mut pair, "c/#", Some(5));
    subscribe(&mut pair, "c/+", Some(200));
    deliver(&mut pair, &OutgoingMessage { properties: b"\x01\x01", ..message("c/d") });
    deliver(&mut pair, &OutgoingMessage { qos: QoS::AtMostOnce, ..message("c/d/e") });
    let expected = [(b"\x01\x01\x0B\x05\x0B\xC8\x01".to_vec()), b"\x0B\x05".to_vec()];
    assert_eq!(sent(&mut pair).into_iter().map(|(_, properties)| properties).collect::<Vec<_>>(), expected);
    // The same filter again, without: [MQTT-3.8.4-3].
    subscribe(&mut pair, "c/#", None);
    deliver(&mut pair, &message("c/d/e"));
    assert_eq!(sent(&mut pair), [("c/d/e".to_owned(), vec![])]);
}

#[test]
fn a_message_that_comes_before_its_suback_names_what_was_asked_for() {
    let mut pair = Pair::new(V5);
    let filter = TopicFilter::try_from("c").expect("a filter");
    let asked = [Asked { filter: &filter, qos: QoS::AtLeastOnce, id: std::num::NonZeroU32::new(5) }];
    let early = OutgoingMessage { asked: &asked, ..message("c") };
    assert_eq!(deliver(&mut pair, &early), Delivered::Sent);
    assert_eq!(sent(&mut pair), [("c".to_owned(), b"\x0B\x05".to_vec())]);
    // And for a filter that is asked for again, the new one alone [MQTT-3.8.4-3].
    subscribe(&mut pair, "c", Some(4));
    subscribe(&mut pair, "#", Some(6));
    deliver(&mut pair, &early);
    assert_eq!(sent(&mut pair), [("c".to_owned(), b"\x0B\x06\x0B\x05".to_vec())]);
}

#[test]
fn a_message_that_waits_keeps_what_it_was_for_and_its_time() {
    let mut connect = Connect::new(V5, "d");
    connect.receive_maximum = 1;
    let mut pair = Pair::with(&connect, &LIMITS);
    subscribe(&mut pair, "c", Some(5));
    let lasts = |seconds| OutgoingMessage { expiry: Some(seconds), ..message("c") };
    assert_eq!(deliver(&mut pair, &lasts(60)), Delivered::Sent);
    assert_eq!(sent(&mut pair), [("c".to_owned(), b"\x0B\x05\x02\x00\x00\x00\x3C".to_vec())]);
    for seconds in [60, 2, 61] {
        assert_eq!(deliver(&mut pair, &lasts(seconds)), Delivered::Queued);
    }
    pair.now = pair.now.plus(Duration::from_millis(2_500));
    pair.send(b"\x40\x02\x00\x01");
    // MQTT 5.0 [MQTT-3.3.2-6]: less the time that it waited.
    assert_eq!(sent(&mut pair), [("c".to_owned(), b"\x0B\x05\x02\x00\x00\x00\x3A".to_vec())]);
    assert_eq!(pair.session.take_changes(), []);
    // MQTT 5.0 [MQTT-3.3.2-5]
    pair.send(b"\x40\x02\x00\x02");
    assert_eq!(sent(&mut pair), [("c".to_owned(), b"\x0B\x05\x02\x00\x00\x00\x3B".to_vec())]);
    assert_eq!(pair.session.take_changes(), [Change::Dropped { receipt: None, reason: DropReason::Expired }]);
}

#[test]
fn a_topic_is_named_by_a_number_where_the_device_takes_them() {
    let mut connect = Connect::new(V5, "d");
    connect.topic_alias_maximum = 1;
    let mut pair = Pair::with(&connect, &LIMITS);
    subscribe(&mut pair, "#", None);
    for topic in ["c/one", "c/one", "c/two", "c/one"] {
        deliver(&mut pair, &OutgoingMessage { qos: QoS::AtMostOnce, ..message(topic) });
    }
    let alias = b"\x23\x00\x01".to_vec();
    let expected =
        [("c/one", alias.clone()), ("", alias.clone()), ("c/two", vec![]), ("", alias)].map(|(t, p)| (t.to_owned(), p));
    assert_eq!(sent(&mut pair), expected);
    // MQTT 5.0 [MQTT-3.1.2-27]
    let mut pair = Pair::new(V5);
    deliver(&mut pair, &message("c/one"));
    assert_eq!(sent(&mut pair), [("c/one".to_owned(), vec![])]);
}

#[test]
fn no_number_makes_a_packet_larger_than_the_device_takes() {
    for room in 0..12 {
        let mut connect = Connect::new(V5, "d");
        connect.topic_alias_maximum = 1;
        // Header, topic, property length, payload: 12 bytes.
        connect.maximum_packet_size = Some(12 + room);
        let mut pair = Pair::with(&connect, &LIMITS);
        subscribe(&mut pair, "#", None);
        for _ in 0..2 {
            let message = OutgoingMessage { qos: QoS::AtMostOnce, ..message("c/one") };
            assert_eq!(deliver(&mut pair, &message), Delivered::Written);
        }
        let sizes = pair.answers(|frame| frame.bytes().len());
        assert!(sizes.iter().all(|bytes| *bytes <= 12 + room as usize), "{room}: {sizes:?}");
    }
}

#[test]
fn a_device_is_kept_from_its_own_messages_where_all_its_subscriptions_say_so() {
    // MQTT 5.0 [MQTT-3.8.3-3]
    let mut pair = Pair::new(V5);
    let request = |filter: &str, no_local| SubscriptionRequest {
        no_local,
        ..SubscriptionRequest::new(TopicFilter::try_from(filter).expect(filter), QoS::AtLeastOnce)
    };
    assert!(!pair.session.has_no_local());
    pair.subscribe_to(vec![request("a/#", true), request("a/+/c", false)], SubscribeOutcome::Granted(QoS::AtLeastOnce));
    let unwanted = |topic: &str| pair.session.is_local_unwanted(TopicName::new(topic.as_bytes()).expect(topic));
    assert!(pair.session.has_no_local() && unwanted("a/b") && !unwanted("a/b/c") && !unwanted("b"));
}
