//! One row a clause.

use super::*;
use crate::topic::TopicFilter;

#[test]
fn a_frame_ends_where_its_header_says() {
    assert_eq!(next_frame(b"", 100), Ok(None));
    assert_eq!(next_frame(b"\xC0", 100), Ok(None));
    let two = next_frame(b"\xC0\x00\xC0\x00", 100).unwrap().unwrap();
    assert_eq!((two.bytes(), two.packet_type(), two.header_len()), (&b"\xC0\x00"[..], PacketType::Pingreq, 2));
    let long = framed(0x30, &[0; 200]);
    assert_eq!(next_frame(&long[..202], 1000), Ok(None));
    let whole = next_frame(&long, 1000).unwrap().unwrap();
    assert_eq!((whole.header_len(), whole.body().len(), whole.first()), (3, 200, 0x30));
}

#[test]
fn a_packet_over_the_limit_is_refused_by_its_header() {
    let header_and_limit = |limit| next_frame(b"\x30\xFF\x01", limit);
    // 255 bytes of body behind three of header
    assert_eq!(header_and_limit(258), Ok(None));
    assert!(matches!(header_and_limit(257), Err(PacketError::TooLarge(_))));
    assert!(matches!(next_frame(b"\x30\xFF\xFF\xFF\x7F", 1 << 20), Err(PacketError::TooLarge(_))));
}

#[test]
fn a_remaining_length_has_four_bytes_at_most_and_no_more_than_it_needs() {
    for (value, len) in
        [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (2_097_151, 3), (2_097_152, 4), (VARINT_MAX, 4)]
    {
        let mut bytes = vec![];
        write_varint(&mut bytes, value);
        assert_eq!((bytes.len(), varint_len(value)), (len, len), "{value}");
        assert_eq!(read_varint(&bytes), Ok(Some((value, len))));
        assert_eq!(read_varint(&bytes[..len - 1]), Ok(None));
    }
    for bad in [&b"\x80\x80\x80\x80\x01"[..], b"\xFF\xFF\xFF\xFF", b"\x80\x00", b"\xFF\x80\x00"] {
        assert!(matches!(read_varint(bad), Err(PacketError::Malformed(_))), "{bad:x?}");
        assert!(next_frame(&[b"\xC0", bad].concat(), 100).is_err());
    }
}

#[test]
fn reserved_types_and_flags_are_refused_at_the_first_byte() {
    // MQTT 5.0 [MQTT-2.1.3-1]
    let good = [0x10, 0x20, 0x40, 0x50, 0x62, 0x70, 0x82, 0x90, 0xA2, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0];
    for first in 0..=255u8 {
        let allowed = good.contains(&first) || first >> 4 == 3;
        assert_eq!(next_frame(&[first], 100).is_ok(), allowed, "{first:#x}");
    }
}

#[test]
fn publish_is_refused_by_the_clause_it_breaks() {
    let check = |first, body: &[u8], version, good: bool| {
        let bytes = framed(first, body);
        assert_eq!(parse_publish(frame(&bytes), version).is_ok(), good, "{first:#x} {body:x?}");
    };
    check(0x30, b"\x00\x01a", V3, true);
    check(0x30, b"\x00\x01", V3, false);
    check(0x30, b"\x00", V3, false);
    // [MQTT-3.3.1-4] QoS 3; [MQTT-3.3.1-2] DUP with QoS 0
    check(0x36, b"\x00\x01a\x00\x01", V3, false);
    check(0x38, b"\x00\x01a", V3, false);
    check(0x3A, b"\x00\x01a\x00\x01", V3, true);
    // [MQTT-2.2.1-3]
    check(0x32, b"\x00\x01a\x00\x00", V3, false);
    check(0x32, b"\x00\x01a\x00", V3, false);
    // 5.0: a property length there must be
    check(0x30, b"\x00\x01a", V5, false);
    check(0x30, b"\x00\x01a\x00", V5, true);
    check(0x30, b"\x00\x01a\x02\x01\x01", V5, true);
    check(0x30, b"\x00\x01a\x02\x01\x02", V5, false);
    check(0x30, b"\x00\x01a\x04\x01\x01\x01\x01", V5, false);
    check(0x30, b"\x00\x01a\x05\x01\x01", V5, false);
    // Server Keep Alive is none of PUBLISH; 0x2B does not exist
    check(0x30, b"\x00\x01a\x03\x13\x00\x01", V5, false);
    check(0x30, b"\x00\x01a\x02\x2B\x00", V5, false);
    // [MQTT-3.3.2-14]
    check(0x30, b"\x00\x01a\x04\x08\x00\x01b", V5, true);
    check(0x30, b"\x00\x01a\x04\x08\x00\x01+", V5, false);
    check(0x30, b"\x00\x01a\x03\x08\x00\x00", V5, false);
    // U+0000 and invalid UTF-8 in a user property
    check(0x30, b"\x00\x01a\x06\x26\x00\x01b\x00\x00", V5, true);
    check(0x30, b"\x00\x01a\x06\x26\x00\x01\x00\x00\x00", V5, false);
    check(0x30, b"\x00\x01a\x06\x26\x00\x01\xFF\x00\x00", V5, false);
}

#[test]
fn control_characters_in_what_is_forwarded_are_seen() {
    // MQTT 5.0 §1.5.4: U+0001 to U+001F, U+007F to U+009F, and what is no character.
    let user = |value: &str| [&[0x26, 0, 1, b'k', 0, value.len() as u8], value.as_bytes()].concat();
    let seen = |property: &[u8]| {
        let bytes = framed(0x30, &[&b"\x00\x01a"[..], &[property.len() as u8], property].concat());
        parse_publish(frame(&bytes), V5).expect("a good PUBLISH").has_control_characters
    };
    for (value, expected) in
        [("é ~\u{A0}\u{FEFF}", false), ("\t", true), ("\u{7F}", true), ("\u{9F}", true), ("\u{FFFF}", true)]
    {
        assert_eq!(seen(&user(value)), expected, "{value:?}");
    }
    assert!(seen(b"\x03\x00\x01\x1F") && seen(b"\x08\x00\x01\x01") && !seen(b"\x03\x00\x01a"));
    assert!(!seen(b"\x09\x00\x01\x01"), "correlation data are bytes");
    // A will is refused at once: it has no other moment.
    let will = |property: &[u8]| {
        let parts = [
            &b"\x00\x04MQTT\x05\x06\x00\x3C\x00\x00\x01d"[..],
            &[property.len() as u8],
            property,
            b"\x00\x01w\x00\x00",
        ];
        let bytes = framed(0x10, &parts.concat());
        parse_connect(frame(&bytes)).map(|_| ())
    };
    assert_eq!(will(&user("ok")), Ok(()));
    assert!(matches!(will(&user("\u{1}")), Err(PacketError::Malformed(_))));
    assert!(matches!(will(b"\x08\x00\x00"), Err(PacketError::Protocol(_))), "an empty response topic");
}

#[test]
fn what_belongs_to_one_connection_or_is_ours_is_not_forwarded() {
    let user = |name: &str| [&[0x26, 0, name.len() as u8], name.as_bytes(), b"\x00\x01v"].concat();
    let expiry = b"\x02\x00\x00\x00\x3C".to_vec();
    let forwarded = |properties: &[Vec<u8>]| {
        let properties = properties.concat();
        let mut bytes = vec![];
        let publish = Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false,
            topic: "a",
            packet_id: 0,
            properties: &[&properties],
            payload: b"",
        };
        write_publish(&mut bytes, V5, &publish);
        let publish = parse_publish(frame(&bytes), V5).expect("a good PUBLISH");
        let mut out = b"before".to_vec();
        publish.forwardable_properties(&mut out);
        assert_eq!(publish.is_forwardable_as_is(), out == [b"before", publish.properties].concat());
        out.split_off(6)
    };
    assert_eq!(forwarded(&[]), b"");
    assert_eq!(forwarded(&[expiry.clone(), user("colour")]), [expiry.clone(), user("colour")].concat());
    assert_eq!(
        forwarded(&[user("tollgate-device"), expiry.clone(), user("tollgate")]),
        [expiry.clone(), user("tollgate")].concat()
    );
    assert_eq!(forwarded(&[b"\x23\x00\x05".to_vec(), user("colour")]), user("colour"));
    assert_eq!(forwarded(&[b"\x0B\x05".to_vec(), expiry.clone()]), expiry);
    assert_eq!(forwarded(&[user("tollgate-id"), user("tollgate-id")]), b"");
}

#[test]
fn the_packet_identifier_can_be_rewritten_in_place() {
    let publish = Publish {
        dup: true,
        qos: QoS::AtLeastOnce,
        retain: true,
        topic: "a/b",
        packet_id: 0,
        properties: &[b"\x01\x01", b"\x02\x00\x00\x00\x01"],
        payload: b"payload",
    };
    let mut out = b"before".to_vec();
    let at = write_publish(&mut out, V5, &publish);
    out[at..at + 2].copy_from_slice(&[0x12, 0x34]);
    let read = parse_publish(frame(&out[6..]), V5).unwrap();
    assert_eq!((read.packet_id, read.dup, read.retain, read.payload), (0x1234, true, true, &b"payload"[..]));
    assert_eq!(read.properties, b"\x01\x01\x02\x00\x00\x00\x01");
    assert_eq!(out.len() - 6, publish.encoded_len(V5));
}

#[test]
fn acknowledgements_are_four_bytes_unless_they_refuse() {
    let mut out = vec![];
    write_puback(&mut out, V3, 0x0102, 0);
    write_puback(&mut out, V5, 0x0102, 0);
    write_puback(&mut out, V5, 0x0102, 0x87);
    write_pubrec(&mut out, V5, 1, 0);
    write_pubrel(&mut out, V5, 1, 0x92);
    write_pubcomp(&mut out, V3, 1, 0);
    assert_eq!(
        out,
        b"\x40\x02\x01\x02\x40\x02\x01\x02\x40\x03\x01\x02\x87\x50\x02\x00\x01\x62\x03\x00\x01\x92\x70\x02\x00\x01"
    );
    let read = |bytes: &[u8], version| parse_puback(frame(bytes), version).map(|a| (a.packet_id, a.reason));
    assert_eq!(read(b"\x40\x02\x01\x02", V5), Ok((0x0102, 0)));
    assert_eq!(read(b"\x40\x03\x01\x02\x97", V5), Ok((0x0102, 0x97)));
    assert_eq!(read(b"\x40\x04\x01\x02\x10\x00", V5), Ok((0x0102, 0x10)));
    for bad in [&b"\x40\x02\x00\x00"[..], b"\x40\x01\x00", b"\x40\x03\x00\x01\x01", b"\x40\x05\x00\x01\x00\x00\x00"] {
        assert!(read(bad, V5).is_err(), "{bad:x?}");
    }
    assert!(read(b"\x40\x03\x01\x02\x00", V3).is_err(), "3.1.1 has no reason");
    let mut refused = vec![];
    write_puback_with_reason(&mut refused, 7, 0x87, "401003 topic_out_of_scope");
    assert_eq!(read(&refused, V5), Ok((7, 0x87)));
}

#[test]
fn connect_is_refused_by_the_clause_it_breaks() {
    let connect = |name: &[u8], level: u8, flags: u8, rest: &[u8]| {
        let head = [&[0, name.len() as u8], name, &[level, flags, 0, 60]].concat();
        let bytes = framed(0x10, &[&head, rest].concat());
        (parse_connect(frame(&bytes)).map(|_| ()), connect_answer_version(frame(&bytes)))
    };
    let check = |level, flags, rest: &[u8], good: bool| {
        assert_eq!(connect(b"MQTT", level, flags, rest).0.is_ok(), good, "{level} {flags:#x} {rest:x?}");
    };
    check(4, 0x02, b"\x00\x01d", true);
    check(4, 0x02, b"\x00\x01", false);
    check(4, 0x02, b"\x00\x01d!", false); // bytes behind the end
    check(4, 0x03, b"\x00\x01d", false); // [MQTT-3.1.2-3]
    check(4, 0x02, b"\x00\x01\x00", false); // [MQTT-1.5.4-2]
    check(4, 0xC2, b"\x00\x01d\x00\x01u\x00\x01p", true);
    check(4, 0x82, b"\x00\x01d\x00\x01u", true);
    check(4, 0x42, b"\x00\x01d\x00\x01p", false); // 3.1.1 [MQTT-3.1.2-22]
    check(5, 0x42, b"\x00\x00\x01d\x00\x01p", true);
    check(5, 0x02, b"\x00\x01d", false); // the property length is missing
    check(4, 0x06, b"\x00\x01d\x00\x01w\x00\x01m", true);
    check(4, 0x2E, b"\x00\x01d\x00\x01w\x00\x01m", true);
    check(4, 0x1E, b"\x00\x01d\x00\x01w\x00\x01m", false); // [MQTT-3.1.2-12]
    check(4, 0x22, b"\x00\x01d", false); // [MQTT-3.1.2-13]
    check(4, 0x0A, b"\x00\x01d", false); // [MQTT-3.1.2-11]
    check(5, 0x02, b"\x03\x21\x00\x01\x00\x01d", true);
    check(5, 0x02, b"\x03\x21\x00\x00\x00\x01d", false); // Receive Maximum 0
    check(5, 0x02, b"\x05\x27\x00\x00\x00\x00\x00\x01d", false); // Maximum Packet Size 0
    check(5, 0x02, b"\x04\x16\x00\x01x\x00\x01d", false); // data without a method
    check(5, 0x02, b"\x02\x17\x02\x00\x01d", false);
    check(5, 0x02, b"\x03\x23\x00\x01\x00\x01d", false); // a property of PUBLISH
    assert_eq!(connect(b"MQTT", 4, 0x06, b"\x00\x01d\x00\x01#\x00\x01m").0, Err(PacketError::TopicInvalid));
}

#[test]
fn another_version_is_told_from_no_mqtt_at_all() {
    let check = |name: &[u8], level: u8, error: bool, answer| {
        let bytes = framed(0x10, &[&[0, name.len() as u8], name, &[level, 0x02, 0, 60, 0, 1, b'd']].concat());
        assert_eq!(parse_connect(frame(&bytes)).err() == Some(PacketError::UnsupportedVersion), error, "{level}");
        assert_eq!(connect_answer_version(frame(&bytes)), answer, "{level}");
    };
    // MQTT 5.0 [MQTT-3.1.2-1], [MQTT-3.1.2-2]
    check(b"MQIsdp", 3, true, Some(V3));
    check(b"MQTT", 3, true, Some(V3));
    check(b"MQTT", 4, false, Some(V3));
    check(b"MQTT", 6, true, Some(V5));
    check(b"MQTT", 0x84, true, Some(V3));
    check(b"HTTP", 4, false, None);
    check(b"mqtt", 5, false, None);
}

#[test]
fn a_flood_of_user_properties_is_refused() {
    let with = |n: usize| {
        let properties = b"\x26\x00\x01k\x00\x01v".repeat(n);
        let mut body = b"\x00\x04MQTT\x05\x02\x00\x3C".to_vec();
        write_varint(&mut body, properties.len() as u32);
        let bytes = framed(0x10, &[&body, &properties[..], b"\x00\x01d"].concat());
        parse_connect(frame(&bytes)).map(|_| ())
    };
    assert_eq!(with(100), Ok(()));
    assert!(matches!(with(101), Err(PacketError::TooLarge(_))));
}

#[test]
fn a_token_is_never_printed() {
    let mut connect = Connect::new(V5, "pump-17");
    connect.password = Some(Password::new(b"SharedAccessSignature"));
    connect.authentication_data = Some(Password::new(b"eyJ"));
    let text = format!("{connect:?}");
    assert!(text.contains("pump-17") && !text.contains("SharedAccess") && !text.contains("eyJ"), "{text}");
    let mut bytes = vec![];
    write_connect(&mut bytes, &connect);
    assert_eq!(format!("{:?}", frame(&bytes)), format!("Frame(Connect, {} bytes)", bytes.len()));
}

#[test]
fn subscribe_is_refused_by_the_clause_it_breaks() {
    let check = |body: &[u8], version, good: bool| {
        let bytes = framed(0x82, body);
        assert_eq!(parse_subscribe(frame(&bytes), version).is_ok(), good, "{body:x?}");
    };
    check(b"\x00\x01\x00\x01a\x01", V3, true);
    check(b"\x00\x00\x00\x01a\x01", V3, false);
    check(b"\x00\x01", V3, false); // [MQTT-3.8.3-2]
    check(b"\x00\x01\x00\x01a", V3, false);
    check(b"\x00\x01\x00\x01a\x03", V3, false);
    check(b"\x00\x01\x00\x01a\x04", V3, false); // 3.1.1 [MQTT-3-8.3-4]
    check(b"\x00\x01\x00\x00\x01a\x2D", V5, true);
    check(b"\x00\x01\x00\x00\x01a\x41", V5, false); // [MQTT-3.8.3-5]
    check(b"\x00\x01\x00\x00\x01a\x31", V5, false); // Retain Handling 3
    check(b"\x00\x01\x02\x0B\x05\x00\x01a\x01", V5, true);
    check(b"\x00\x01\x02\x0B\x00\x00\x01a\x01", V5, false);
    check(b"\x00\x01\x04\x0B\x05\x0B\x06\x00\x01a\x01", V5, false);
    check(b"\x00\x01\x00\x00\x0a$share/g/a\x05", V5, false); // [MQTT-3.8.3-4]
    check(b"\x00\x01\x00\x01\x00\x01", V3, false); // U+0000
    check(&[&b"\x00\x01"[..], &b"\x00\x01a\x00".repeat(1_000)].concat(), V3, true);
    check(&[&b"\x00\x01"[..], &b"\x00\x01a\x00".repeat(1_001)].concat(), V3, false);
}

#[test]
fn a_filter_that_can_never_be_granted_says_why() {
    use Denial::{FilterInvalid, SharedSubscriptionNotOffered};
    let check = |filter: &str, expected: Result<&str, Denial>| {
        let body = [&[0, 1, 0, filter.len() as u8], filter.as_bytes(), &[1]].concat();
        let bytes = framed(0x82, &body);
        let subscribe = parse_subscribe(frame(&bytes), V3).unwrap();
        assert_eq!(subscribe.requests[0].filter, expected.map(|f| TopicFilter::try_from(f).unwrap()), "{filter}");
        let bytes = framed(0xA2, &body[..body.len() - 1]);
        assert_eq!(parse_unsubscribe(frame(&bytes), V3).unwrap().filters[0], subscribe.requests[0].filter);
    };
    check("a/+/#", Ok("a/+/#"));
    check("$shared/g", Ok("$shared/g"));
    check("a/#/b", Err(FilterInvalid));
    check("a+", Err(FilterInvalid));
    check("", Err(FilterInvalid));
    check("$share/g/a", Err(SharedSubscriptionNotOffered));
    check("$share/g", Err(SharedSubscriptionNotOffered));
}

#[test]
fn the_answers_of_a_server_are_checked() {
    let connack =
        |body: &[u8], version| parse_connack(frame(&framed(0x20, body)), version).map(|c| (c.session_present, c.code));
    assert_eq!(connack(b"\x01\x00", V3), Ok((true, 0)));
    assert_eq!(connack(b"\x00\x05", V3), Ok((false, 5)));
    assert!(connack(b"\x01\x05", V3).is_err(), "[MQTT-3.2.2-6]");
    assert!(connack(b"\x02\x00", V3).is_err(), "[MQTT-3.2.2-1]");
    assert!(connack(b"\x00\x00\x00", V3).is_err());
    assert_eq!(connack(b"\x00\x87\x00", V5), Ok((false, 0x87)));
    let suback = |body: &[u8], version| parse_suback(frame(&framed(0x90, body)), version).map(|s| s.codes);
    assert_eq!(suback(b"\x00\x01\x00\x80", V3), Ok(vec![0, 0x80]));
    assert!(suback(b"\x00\x01\x03", V3).is_err(), "[MQTT-3.9.3-2]");
    assert!(suback(b"\x00\x01", V3).is_err());
    assert_eq!(suback(b"\x00\x01\x00\x87", V5), Ok(vec![0x87]));
    let unsuback = |body: &[u8], version| parse_unsuback(frame(&framed(0xB0, body)), version).is_ok();
    assert!(unsuback(b"\x00\x01", V3) && unsuback(b"\x00\x01\x00\x11", V5));
    assert!(!unsuback(b"\x00\x01\x00", V3) && !unsuback(b"\x00\x01\x00", V5));
    assert!(parse_empty(frame(b"\xC0\x00")).is_ok() && parse_empty(frame(b"\xC0\x01\x00")).is_err());
}

#[test]
fn disconnect_and_auth_may_leave_out_their_ends() {
    let disconnect = |body: &[u8], version| parse_disconnect(frame(&framed(0xE0, body)), version).map(|d| d.reason);
    assert_eq!(disconnect(b"", V3), Ok(0));
    assert!(disconnect(b"\x00", V3).is_err());
    assert_eq!(disconnect(b"", V5), Ok(0));
    assert_eq!(disconnect(b"\x04", V5), Ok(4));
    assert_eq!(disconnect(b"\x04\x00", V5), Ok(4));
    assert!(disconnect(b"\x04\x00\x00", V5).is_err());
    // [MQTT-3.14.2-1]
    assert_eq!(disconnect(b"\x81", V5), Ok(0x81));
    assert!(disconnect(b"\x01", V5).is_err() && disconnect(b"\x86", V5).is_err() && disconnect(b"\xFF", V5).is_err());
    let auth = |body: &[u8]| parse_auth(frame(&framed(0xF0, body))).map(|a| (a.reason, a.method));
    assert_eq!(auth(b""), Ok((0, None)));
    assert_eq!(auth(b"\x19\x06\x15\x00\x03JWT"), Ok((0x19, Some("JWT".to_owned()))));
    assert!(auth(b"\x19\x04\x16\x00\x01x").is_err());
    assert!(auth(b"\x19").is_err());
}
