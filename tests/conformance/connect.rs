//! CONNECT and CONNACK (MQTT 5.0 §3.1, §3.2; MQTT 3.1.1 §3.1, §3.2).

use std::time::{Duration, Instant};

use crate::{
    BOTH, COMMANDS, EVENTS, both,
    support::{Gateway, Version, Version::V4, Version::V5, sas},
    wire::{Connect, PATIENCE, Peer, binary, packet, publish, subscribe, text},
    with,
};

#[test]
fn the_first_packet_is_a_connect() {
    let (gateway, hub) = both();
    for version in BOTH {
        let mut before: Vec<Vec<u8>> = (0..=15).filter(|kind| *kind != 1).map(|kind| vec![kind << 4, 0]).collect();
        before.push(publish(version, 0x30, EVENTS, 0, &[], b"before"));
        before.push(publish(version, 0x32, EVENTS, 1, &[], b"before"));
        before.push(subscribe(version, 1, &[], &[(COMMANDS, 1)]));
        for bytes in before {
            let mut peer = Peer::open(&gateway, version);
            peer.send(&bytes);
            peer.send(&Connect::new(version, "d0").packet());
            // MQTT 5.0 [MQTT-3.14.0-1]: no DISCONNECT where no CONNACK was sent.
            assert_eq!(peer.take(PATIENCE), None, "{bytes:x?}");
        }
    }
    hub.has_only_what_follows(&gateway);
}

#[test]
fn a_second_connect_ends_the_connection() {
    let (gateway, _hub) = both();
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        peer.send(&Connect::new(version, "d0").packet());
        assert_eq!(peer.closed(), (version == V5).then_some(0x82));
    }
}

#[test]
fn another_protocol_or_version_is_refused_by_its_code_and_closed() {
    let (gateway, _hub) = both();
    let answer = |version, name: &[u8], level| {
        let mut peer = Peer::open(&gateway, version);
        peer.send(&Connect::new(version, "d0").packet_of(name, level, 0));
        let answer = peer.take(PATIENCE);
        assert!(answer.is_none() || peer.take(PATIENCE).is_none(), "it stays open");
        answer.map(|packet| packet.body)
    };
    // A name that is not MQTT's: closed without a word.
    for name in ["MQtt", "mqtt", "MQT", "MQTTT", "HTTP", ""] {
        assert_eq!(answer(V4, &text(name), 4), None, "{name}");
        assert_eq!(answer(V5, &text(name), 5), None, "{name}");
    }
    // MQTT 3.1.1 [MQTT-3.1.2-2]; MQTT 3.1 is not served.
    for (name, level) in [("MQIsdp", 3), ("MQTT", 3), ("MQTT", 0)] {
        assert_eq!(answer(V4, &text(name), level), Some(vec![0, 1]), "{name} {level}");
    }
    // MQTT 5.0 [MQTT-3.1.2-2]
    for level in [6, 0x7F] {
        let body = answer(V5, &text("MQTT"), level).expect("a CONNACK");
        assert_eq!(body.get(..2), Some(&[0, 0x84][..]), "{level}");
    }
}

/// Malformed: 3.1.1 is closed without a CONNACK, 5.0 is told 0x81 (or 0x82).
#[track_caller]
fn refuses(gateway: &Gateway, version: Version, bytes: &[u8], code: u8) {
    let mut peer = Peer::open(gateway, version);
    peer.send(bytes);
    let answer = peer.take(PATIENCE);
    if version == V4 {
        assert_eq!(answer, None, "{bytes:x?}");
        return;
    }
    let connack = answer.expect("a CONNACK");
    assert_eq!((connack.first, connack.body.get(..2)), (0x20, Some(&[0, code][..])), "{bytes:x?}");
    assert_eq!(peer.take(PATIENCE), None, "{bytes:x?}");
}

#[test]
fn flags_that_contradict_each_other_are_malformed() {
    let (gateway, _hub) = both();
    for version in BOTH {
        let connect = Connect::new(version, "d0");
        let level = if version == V5 { 5 } else { 4 };
        // The reserved flag; QoS or RETAIN of a will that is not there.
        for turned in [0x01, 0x08, 0x10, 0x18, 0x20] {
            refuses(&gateway, version, &connect.packet_of(&text("MQTT"), level, turned), 0x81);
        }
        // A will of QoS 3.
        let will = connect.clone().will(EVENTS, b"gone", 3, false, &[]);
        refuses(&gateway, version, &will.packet(), 0x81);
        // Fields that were announced and are not there, and fields that were not announced.
        for turned in [0x04, 0x40, 0x80] {
            refuses(&gateway, version, &connect.packet_of(&text("MQTT"), level, turned), 0x81);
        }
        let good = connect.will(EVENTS, b"gone", 1, false, &[]);
        for turned in [0x04, 0x40, 0x80] {
            let bytes = good.packet_of(&text("MQTT"), level, turned);
            let mut peer = Peer::open(&gateway, version);
            peer.send(&bytes);
            let answer = peer.take(PATIENCE);
            assert!(answer.is_none_or(|connack| connack.body.get(1) != Some(&0)), "{version:?} {turned:x}");
        }
    }
    // MQTT 3.1.1 [MQTT-3.1.2-22]: a password without a user name. 5.0 allows it.
    let mut nameless = Connect::new(V4, "d0");
    nameless.user_name = None;
    refuses(&gateway, V4, &nameless.packet(), 0);
    nameless.version = V5;
    Peer::admitted_as(&gateway, &nameless);
}

#[test]
fn a_connect_that_is_too_short_or_too_long_is_malformed() {
    let (gateway, _hub) = both();
    for version in BOTH {
        let whole = Connect::new(version, "d0").will(EVENTS, b"gone", 0, false, &[]).packet();
        let body = crate::wire::cut(&whole).expect("a packet").0.body;
        // From where the version can be read on; before it nobody can be answered.
        for end in (7..body.len()).step_by(5) {
            refuses(&gateway, version, &packet(0x10, &body[..end]), 0x81);
        }
        refuses(&gateway, version, &packet(0x10, &[&body[..], b"!"].concat()), 0x81);
    }
}

#[test]
fn strings_of_connect_are_utf_8_without_u_0000() {
    let (gateway, _hub) = both();
    let bad: [&[u8]; 4] = [b"d\x00", b"d\xC3\x28", b"\xED\xA0\x80", b"\xC0\x80"];
    for version in BOTH {
        for bytes in bad {
            let mut connect = Connect::new(version, "d0");
            connect.client_id = bytes.to_vec();
            refuses(&gateway, version, &connect.packet(), 0x81);
            let mut connect = Connect::new(version, "d0");
            connect.user_name = Some(bytes.to_vec());
            refuses(&gateway, version, &connect.packet(), 0x81);
        }
        // The will's topic: written by hand, for no `String` holds it.
        let body = |topic: &[u8]| {
            let properties: &[u8] = if version == V5 { &[0] } else { &[] };
            let head = [&text("MQTT")[..], &[if version == V5 { 5 } else { 4 }, 0x06, 0, 60], properties].concat();
            [head, text("d0"), properties.to_vec(), binary(topic), text("gone")].concat()
        };
        for bytes in bad {
            refuses(&gateway, version, &packet(0x10, &body(bytes)), 0x81);
        }
        for wildcard in ["a/#", "+"] {
            refuses(&gateway, version, &packet(0x10, &body(wildcard.as_bytes())), 0x90);
        }
    }
}

#[test]
fn properties_of_connect_are_refused_by_the_code_that_fits() {
    let (gateway, _hub) = both();
    let cases: &[(&[u8], u8)] = &[
        // Not of this packet, unknown, cut short, longer than said.
        (&[0x01, 1], 0x81),
        (&[0x23, 0, 1], 0x81),
        (&[0x2B, 0], 0x81),
        (&[0x11, 0, 0], 0x81),
        // Twice; a value that may not be; data without a method.
        (&[0x11, 0, 0, 0, 1, 0x11, 0, 0, 0, 1], 0x82),
        (&[0x21, 0, 0], 0x82),
        (&[0x27, 0, 0, 0, 0], 0x82),
        (&[0x17, 2], 0x82),
        (&[0x19, 2], 0x82),
        (&[0x16, 0, 1, b'x'], 0x82),
    ];
    for (properties, code) in cases {
        refuses(&gateway, V5, &Connect::new(V5, "d0").with(properties).packet(), *code);
    }
    // A length of the properties that is longer written than it need be [MQTT-1.5.5-1].
    let whole = crate::wire::cut(&Connect::new(V5, "d0").packet()).expect("a packet").0.body;
    let long = [&whole[..10], &[0x80, 0x00], &whole[11..]].concat();
    refuses(&gateway, V5, &packet(0x10, &long), 0x81);
}

#[test]
fn a_refused_connect_says_its_code_and_nothing_behind_it_is_read() {
    let (gateway, hub) = both();
    for version in BOTH {
        let mut connect = Connect::new(version, "d0");
        connect.password = Some(sas("d1").into());
        let mut peer = Peer::open(&gateway, version);
        let behind = publish(version, 0x30, EVENTS, 0, &[], b"behind");
        peer.send(&[connect.packet(), behind, vec![0xC0, 0]].concat());
        let connack = peer.next();
        // Session Present is 0; then the end, and nothing was said to what came behind.
        let code = if version == V5 { 0x85 } else { 2 };
        assert_eq!((connack.first, connack.body.get(..2)), (0x20, Some(&[0, code][..])));
        assert_eq!(peer.take(PATIENCE), None);
    }
    Peer::admitted(&gateway, V5, "d0").publish(0x30, EVENTS, 0, &[], b"after");
    assert_eq!(hub.published(EVENTS, 1).len(), 1, "only what came after a good CONNECT");
}

#[test]
fn an_accepted_connect_is_answered_once_and_first() {
    let (gateway, hub) = both();
    for version in BOTH {
        let mut peer = Peer::open(&gateway, version);
        // A client need not wait for its CONNACK.
        let behind = [
            publish(version, 0x32, EVENTS, 7, &[], b"behind"),
            subscribe(version, 8, &[], &[(COMMANDS, 0)]),
            vec![0xC0, 0],
        ];
        peer.send(&[Connect::new(version, "d0").packet(), behind.concat()].concat());
        let connack = peer.next();
        // Accepted; reserved flags and Session Present are 0.
        assert_eq!((connack.first, connack.body.get(..2)), (0x20, Some(&[0, 0][..])));
        let mut kinds: Vec<u8> = (0..3).map(|_| peer.next().first).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, [0x40, 0x90, 0xD0]);
        peer.quiet();
    }
    assert_eq!(hub.published(EVENTS, 2).len(), 2);
}

#[test]
fn the_newest_connection_of_a_client_id_ends_the_one_before() {
    let (gateway, _hub) = both();
    for version in BOTH {
        let mut old = Peer::admitted(&gateway, version, "d0");
        let mut other = Peer::admitted(&gateway, version, "d1");
        let mut new = Peer::admitted(&gateway, version, "d0");
        assert_eq!(old.closed(), (version == V5).then_some(0x8E));
        new.quiet();
        other.quiet();
    }
}

#[test]
fn every_client_id_that_the_standard_names_is_served() {
    // No two that differ in case alone.
    let of = |first: &str, range: std::ops::RangeInclusive<char>| first.chars().chain(range).collect::<String>();
    let ids = [
        of("", 'a'..='w'),
        of("", 'd'..='z'),
        of("0", 'A'..='V'),
        of("9", 'E'..='Z'),
        of("", '0'..='9'),
        of("", 'Z'..='Z'),
    ];
    let identities: String = (ids.iter())
        .map(|id| format!("[[device]]\nid = \"{id}\"\nprimary_key = \"{}\"\n", crate::support::device_key(id)))
        .collect();
    let (gateway, _hub) = with(|plan| plan.identities_and(&identities));
    for id in &ids {
        assert!(id.len() <= 23);
        for version in BOTH {
            Peer::admitted(&gateway, version, id);
        }
    }
}

#[test]
fn a_client_id_that_is_not_accepted_is_refused_by_its_code() {
    let (gateway, _hub) = both();
    for (version, code) in [(V4, 2), (V5, 0x85)] {
        for id in ["d0/#", "d+", "$share", &"x".repeat(200)] {
            let mut connect = Connect::new(version, "d0");
            connect.client_id = id.into();
            let mut peer = Peer::open(&gateway, version);
            peer.send(&connect.packet());
            assert_eq!(peer.next().body.get(..2), Some(&[0, code][..]), "{id}");
            assert_eq!(peer.take(PATIENCE), None);
        }
    }
    // MQTT 3.1.1 [MQTT-3.1.3-8]: no client id, and a session that is to be kept.
    let mut connect = Connect::new(V4, "d0");
    (connect.client_id, connect.flags) = (Vec::new(), 0);
    let mut peer = Peer::open(&gateway, V4);
    peer.send(&connect.packet());
    peer.expect(&[0x20, 2, 0, 2]);
    assert_eq!(peer.take(PATIENCE), None);
}

#[test]
fn a_silent_client_is_closed_after_one_and_a_half_keep_alives() {
    let (gateway, _hub) = both();
    for version in BOTH {
        let mut peer = Peer::admitted_as(&gateway, &Connect::new(version, "d0").keep_alive(1));
        let since = Instant::now();
        assert_eq!(peer.closed(), (version == V5).then_some(0x8D));
        let silent = since.elapsed();
        assert!(silent > Duration::from_millis(1_400) && silent < Duration::from_secs(8), "after {silent:?}");
    }
}

#[test]
fn connack_announces_what_is_offered_and_no_more() {
    let (gateway, _hub) = both();
    let mut peer = Peer::open(&gateway, V5);
    peer.send(&Connect::new(V5, "d0").with(&[0x19, 1]).packet());
    let connack = peer.next();
    let properties = connack.body.get(3..).unwrap_or_default();
    let has = |property: &[u8]| properties.windows(property.len()).any(|window| window == property);
    // Receive Maximum 100, Maximum Packet Size 260 KiB, no shared subscriptions.
    assert!(has(&[0x21, 0, 100]) && has(&[0x27, 0, 4, 0x10, 0]) && has(&[0x2A, 0]), "{properties:x?}");
    // Response Information would be asked for in vain, and nobody asked for a method.
    assert!(!properties.contains(&0x1A) && !properties.contains(&0x15), "{properties:x?}");
}

#[test]
fn connack_never_exceeds_what_the_client_takes() {
    let (gateway, _hub) = both();
    let answer = |connect: &Connect| {
        let mut peer = Peer::open(&gateway, V5);
        peer.send(&connect.packet());
        peer.take(PATIENCE).map(|connack| (connack.bytes().len(), connack.body))
    };
    let size = |bytes: u8| [0x27, 0, 0, 0, bytes];
    // A refusal leaves out its reason string, or all of it.
    let refused = |bytes| {
        let mut connect = Connect::new(V5, "d0").with(&size(bytes));
        connect.password = Some(sas("d1").into());
        answer(&connect)
    };
    let (whole, body) = refused(200).expect("a CONNACK");
    assert!(body.contains(&0x1F), "with a reason string");
    let (short, body) = refused(u8::try_from(whole).expect("short") - 1).expect("a CONNACK");
    assert_eq!((short, body), (5, vec![0, 0x85, 0]));
    assert_eq!(refused(4), None);
    // Who takes no whole CONNACK cannot be served.
    let (whole, body) = answer(&Connect::new(V5, "d0").with(&size(200))).expect("a CONNACK");
    assert_eq!(body.get(1), Some(&0));
    let (_, body) = answer(&Connect::new(V5, "d0").with(&size(u8::try_from(whole).expect("short") - 1))).expect("one");
    assert_eq!(body, [0, 0x95, 0]);
    assert_eq!(answer(&Connect::new(V5, "d0").with(&size(2))), None);
}

#[test]
fn a_client_that_declines_problem_information_gets_no_reason_string() {
    let (gateway, _hub) = both();
    let elsewhere = "devices/d1/messages/events/";
    for (properties, has_text) in [(&[0x17, 1][..], true), (&[0x17, 0], false)] {
        let mut peer = Peer::admitted_as(&gateway, &Connect::new(V5, "d0").with(properties));
        peer.publish(0x32, elsewhere, 5, &[], b"");
        let puback = peer.next();
        assert_eq!((puback.first, puback.body.get(..3)), (0x40, Some(&[0, 5, 0x87][..])));
        assert_eq!(puback.body.len() > 3, has_text, "{puback:x?}");
        assert_eq!(peer.subscribe("elsewhere/#", 0), 0x87);
    }
}

#[test]
fn an_authentication_method_that_is_not_served_is_refused_by_its_code() {
    let (gateway, _hub) = both();
    let method = [&[0x15][..], &text("SCRAM-SHA-1")].concat();
    refuses(&gateway, V5, &Connect::new(V5, "d0").with(&method).packet(), 0x8C);
}
