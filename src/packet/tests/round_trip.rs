//! What is written is read back, and no bytes make a parser panic.

use proptest::prelude::*;

use super::*;
use crate::topic::TopicFilter;

fn text(max: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::char::range('\u{1}', '\u{2FF}'), 0..max).prop_map(|chars| chars.into_iter().collect())
}

fn topic() -> impl Strategy<Value = String> {
    "[a-z/$]{1,30}"
}

fn version() -> impl Strategy<Value = ProtocolVersion> {
    prop::sample::select(vec![V3, V5])
}

fn qos() -> impl Strategy<Value = QoS> {
    prop::sample::select(vec![QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..max)
}

fn will() -> impl Strategy<Value = Will> {
    (topic(), qos(), any::<bool>(), bytes(200), any::<u32>(), any::<bool>()).prop_map(
        |(topic, qos, retain, payload, delay, expiry)| {
            let properties = if expiry { b"\x02\x00\x00\x00\x3C".to_vec() } else { vec![] };
            Will { topic, qos, retain, payload, delay, properties }
        },
    )
}

prop_compose! {
    pub(super) fn connect()(
        version in version(),
        client_id in text(40),
        (clean_start, keep_alive) in any::<(bool, u16)>(),
        user_name in prop::option::of(text(300)),
        password in prop::option::of(bytes(300)),
        will in prop::option::of(will()),
        (session_expiry, receive_maximum, topic_alias_maximum) in (any::<u32>(), 1u16.., any::<u16>()),
        maximum_packet_size in prop::option::of(1u32..),
        declined in any::<bool>(),
        method in prop::option::of((text(10), bytes(20))),
    ) -> Connect {
        let mut connect = Connect::new(version, &client_id);
        connect.clean_start = clean_start;
        connect.keep_alive = keep_alive;
        connect.password = password.filter(|_| version == V5 || user_name.is_some()).map(|p| Password::new(&p));
        connect.user_name = user_name;
        connect.will = will;
        if version == V5 {
            connect.session_expiry = session_expiry;
            connect.receive_maximum = receive_maximum;
            connect.topic_alias_maximum = topic_alias_maximum;
            connect.maximum_packet_size = maximum_packet_size;
            if declined {
                connect.problem_information = ProblemInformation::Declined;
            }
            if let Some((method, data)) = method {
                connect.authentication_method = Some(method);
                connect.authentication_data = Some(Password::new(&data));
            }
        } else if let Some(will) = &mut connect.will {
            will.delay = 0;
            will.properties.clear();
        }
        connect
    }
}

prop_compose! {
    pub(super) fn connack()(
        (session_present, retain_available, wildcard_available, subscription_id_available, shared_available) in any::<(bool, bool, bool, bool, bool)>(),
        (session_expiry, maximum_packet_size) in (any::<Option<u32>>(), prop::option::of(1u32..)),
        (receive_maximum, qos_max, topic_alias_maximum) in (1u16.., 0u8..=2, any::<u16>()),
        (authentication_method, assigned_client_id, reason_string) in
            (prop::option::of(text(10)), prop::option::of(text(30)), prop::option::of(text(200))),
        server_keep_alive in any::<Option<u16>>(),
    ) -> Connack {
        Connack {
            session_present, code: 0, session_expiry, receive_maximum, qos_max, retain_available, maximum_packet_size,
            authentication_method, assigned_client_id, topic_alias_maximum, reason_string, wildcard_available, subscription_id_available,
            shared_available, server_keep_alive,
        }
    }
}

/// Everything of a CONNECT, the secrets too, in a form that can be compared.
fn plain(connect: &Connect) -> String {
    let bytes = |p: &Option<Password>| p.as_ref().map(|p| p.as_bytes().to_vec());
    let will = connect.will.as_ref().map(|w| (w.payload.clone(), w.properties.clone(), w.delay));
    format!("{connect:?} {:?} {:?} {will:?}", bytes(&connect.password), bytes(&connect.authentication_data))
}

proptest! {
    #[test]
    fn a_connect_is_read_as_it_was_written(connect in connect()) {
        let mut bytes = b"before".to_vec();
        write_connect(&mut bytes, &connect);
        let read = parse_connect(frame(&bytes[6..])).expect("what we write is a CONNECT");
        prop_assert_eq!(plain(&read), plain(&connect));
        prop_assert_eq!(connect_answer_version(frame(&bytes[6..])), Some(connect.version));
    }

    #[test]
    fn a_connack_is_read_as_it_was_written(connack in connack()) {
        let mut bytes = vec![];
        write_connack(&mut bytes, V5, &connack);
        prop_assert_eq!(parse_connack(frame(&bytes), V5), Ok(connack.clone()));
        bytes.clear();
        write_connack(&mut bytes, V3, &connack);
        let expected = Connack { session_present: connack.session_present, ..Connack::new(0) };
        prop_assert_eq!(parse_connack(frame(&bytes), V3), Ok(expected));
    }

    #[test]
    fn a_publish_is_read_as_it_was_written(
        version in version(), qos in qos(), (dup, retain) in any::<(bool, bool)>(), topic in topic(), packet_id in 1u16..,
        payload in bytes(300),
    ) {
        let dup = dup && qos != QoS::AtMostOnce;
        let publish = Publish { dup, qos, retain, topic: &topic, packet_id, properties: &[b"\x01\x01"], payload: &payload };
        let mut bytes = vec![];
        write_publish(&mut bytes, version, &publish);
        prop_assert_eq!(bytes.len(), publish.encoded_len(version));
        let read = parse_publish(frame(&bytes), version).expect("what we write is a PUBLISH");
        prop_assert_eq!((read.dup, read.qos, read.retain), (dup, qos, retain));
        prop_assert_eq!((read.topic, read.payload), (topic.as_bytes(), &payload[..]));
        prop_assert_eq!(read.packet_id, if qos == QoS::AtMostOnce { 0 } else { packet_id });
        prop_assert_eq!(read.properties, if version == V5 { &b"\x01\x01"[..] } else { b"" });
    }

    #[test]
    fn a_subscribe_and_its_answers_are_read_as_they_were_written(
        version in version(), packet_id in 1u16..,
        requests in prop::collection::vec(("[a-z]{1,5}(/[a-z+]){0,3}(/#)?", qos(), any::<(bool, bool)>(), 0u8..=2), 1..20),
        subscription_id in prop::option::of(1..=VARINT_MAX),
    ) {
        let requests: Vec<_> = requests.into_iter().map(|(filter, qos, (no_local, retain_as_published), retain_handling)| {
            let filter = TopicFilter::try_from(&*filter).expect("a filter");
            match version {
                V3 => SubscriptionRequest::new(filter, qos),
                V5 => SubscriptionRequest { filter: Ok(filter), qos, no_local, retain_as_published, retain_handling },
            }
        }).collect();
        let subscribe = Subscribe { packet_id, subscription_id: subscription_id.filter(|_| version == V5), requests };
        let mut bytes = vec![];
        write_subscribe(&mut bytes, version, &subscribe);
        prop_assert_eq!(parse_subscribe(frame(&bytes), version), Ok(subscribe.clone()));
        let filters: Vec<_> = subscribe.requests.into_iter().flat_map(|request| request.filter).collect();
        bytes.clear();
        write_unsubscribe(&mut bytes, version, packet_id, &filters);
        let expected = Unsubscribe { packet_id, filters: filters.iter().cloned().map(Ok).collect() };
        prop_assert_eq!(parse_unsubscribe(frame(&bytes), version), Ok(expected));
        let codes = vec![1; filters.len()];
        bytes.clear();
        write_suback(&mut bytes, version, packet_id, &codes);
        prop_assert_eq!(parse_suback(frame(&bytes), version), Ok(Suback { packet_id, codes: codes.clone() }));
        bytes.clear();
        write_unsuback(&mut bytes, version, packet_id, &codes);
        let codes = if version == V5 { codes } else { vec![] };
        prop_assert_eq!(parse_unsuback(frame(&bytes), version), Ok(Suback { packet_id, codes }));
    }

    #[test]
    fn a_disconnect_is_read_as_it_was_written(
        reason in prop::sample::select(vec![0x00u8, 0x04, 0x81, 0x8B, 0x8E, 0x98, 0x9C, 0xA0, 0xA2]),
        reason_string in prop::option::of(text(200)),
        server_reference in prop::option::of(text(200)),
    ) {
        let mut bytes = vec![];
        write_disconnect(&mut bytes, V5, reason, reason_string.as_deref(), server_reference.as_deref());
        let expected = Disconnect { reason, session_expiry: None, reason_string, server_reference };
        prop_assert_eq!(parse_disconnect(frame(&bytes), V5), Ok(expected));
    }

    #[test]
    fn no_bytes_make_a_parser_panic(first in any::<u8>(), body in bytes(60)) {
        parse_all(&body);
        parse_all(&framed(first, &body));
    }

    #[test]
    fn no_damaged_connect_makes_a_parser_panic(connect in connect(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = vec![];
        write_connect(&mut bytes, &connect);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        parse_all(&bytes);
        bytes.truncate(at);
        parse_all(&bytes);
    }

    #[test]
    fn a_frame_is_found_however_the_bytes_arrive(payload in bytes(300), rest in bytes(10)) {
        let whole = framed(0x30, &payload);
        let stream = [&whole[..], &rest].concat();
        for n in 0..whole.len() {
            prop_assert_eq!(next_frame(&stream[..n], 1 << 20), Ok(None));
        }
        prop_assert_eq!(next_frame(&stream, 1 << 20).unwrap().unwrap().bytes(), &whole[..]);
    }
}
