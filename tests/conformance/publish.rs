//! PUBLISH and its acknowledgements (MQTT 5.0 §3.3, §3.4, §4.3; MQTT 3.1.1 §3.3, §3.4, §4.3).

use crate::{
    BOTH, COMMANDS, EVENTS, both,
    support::{Version, Version::V4, Version::V5},
    wire::{Connect, Packet, Peer, binary, packet, publish, publish_to, text, user},
};

#[test]
fn a_publish_that_cannot_be_closes_and_never_reaches_the_hub() {
    let (gateway, hub) = both();
    let bodies = |version| {
        let good = |first| publish(version, first, EVENTS, 1, &[], b"never");
        let to = |topic: &[u8]| publish_to(version, 0x30, topic, 0, &[], b"never");
        vec![
            ("QoS 3", good(0x36), 0x81),
            ("DUP with QoS 0", good(0x38), 0x81),
            ("packet identifier 0", publish(version, 0x32, EVENTS, 0, &[], b"never"), 0x81),
            ("no topic at all", packet(0x30, &[]), 0x81),
            ("a topic cut short", packet(0x30, &[0, 9, b'd']), 0x81),
            ("no packet identifier", packet(0x32, &text(EVENTS)), 0x81),
            ("#", to(b"devices/d0/messages/events/#"), 0x90),
            ("+", to(b"devices/+/messages/events/"), 0x90),
            ("U+0000", to(b"devices/d0/messages/events/\x00"), 0x90),
            ("half a surrogate pair", to(b"devices/d0/messages/events/\xED\xA0\x80"), 0x90),
            ("more bytes than need be", to(b"devices/d0/messages/events\xC0\xAF"), 0x90),
            ("a control character", to(b"devices/d0/messages/events/\x07"), 0x90),
            ("no character", to("devices/d0/messages/events/\u{FFFF}".as_bytes()), 0x90),
            ("201 levels", to([&b"devices/d0/messages/events"[..], &b"/".repeat(198)].concat().as_slice()), 0x90),
        ]
    };
    for version in BOTH {
        for (what, bytes, code) in bodies(version) {
            let mut peer = Peer::admitted(&gateway, version, "d0");
            peer.send(&bytes);
            assert_eq!(peer.closed(), (version == V5).then_some(code), "{what}");
        }
    }
    hub.has_only_what_follows(&gateway);
}

#[test]
fn properties_of_publish_are_refused_by_the_code_that_fits() {
    let (gateway, hub) = both();
    let control = user("k", "\u{1}");
    let cases: &[(&str, &[u8], u8)] = &[
        ("not of this packet", &[0x11, 0, 0, 0, 1], 0x81),
        ("unknown", &[0x7F, 0], 0x81),
        ("cut short", &[0x02, 0, 0], 0x81),
        ("a string that is not UTF-8", &[0x03, 0, 1, 0xFF], 0x81),
        ("U+0000 in a name", &[0x26, 0, 1, 0, 0, 1, b'v'], 0x81),
        ("half a pair", &[0x26, 0, 1, b'k'], 0x81),
        ("a control character", &control, 0x81),
        ("twice", &[0x02, 0, 0, 0, 9, 0x02, 0, 0, 0, 9], 0x82),
        ("neither 0 nor 1", &[0x01, 2], 0x82),
        ("a response topic with a wildcard", &[0x08, 0, 3, b'a', b'/', b'#'], 0x82),
        ("a response topic that is empty", &[0x08, 0, 0], 0x82),
        ("a subscription identifier, which only a server sends", &[0x0B, 1], 0x82),
        ("alias 0", &[0x23, 0, 0], 0x94),
        ("an alias above the maximum", &[0x23, 0xFF, 0xFF], 0x94),
    ];
    for (what, properties, code) in cases {
        let mut peer = Peer::admitted(&gateway, V5, "d0");
        peer.publish(0x32, EVENTS, 1, properties, b"never");
        assert_eq!(peer.closed(), Some(*code), "{what}");
    }
    // Neither a topic nor an alias for one.
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    peer.publish(0x30, "", 0, &[], b"never");
    assert_eq!(peer.closed(), Some(0x82));
    hub.has_only_what_follows(&gateway);
}

#[test]
fn a_publish_is_answered_as_its_qos_says() {
    let (gateway, hub) = both();
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        peer.publish(0x30, EVENTS, 0, &[], b"0");
        peer.publish(0x32, EVENTS, 0xBEEF, &[], b"1");
        // Nothing for QoS 0; PUBACK with the same identifier for QoS 1.
        peer.expect(&[0x40, 2, 0xBE, 0xEF]);
        // An identifier that was acknowledged is free: what comes under it is a new message, DUP or not.
        peer.publish(0x32, EVENTS, 0xBEEF, &[], b"2");
        peer.expect(&[0x40, 2, 0xBE, 0xEF]);
        peer.publish(0x3A, EVENTS, 0xBEEF, &[], b"3");
        peer.expect(&[0x40, 2, 0xBE, 0xEF]);
        peer.quiet();
    }
    let (packets, payloads) = seen(&hub.published(EVENTS, 8));
    assert_eq!(payloads, ["0", "1", "2", "3", "0", "1", "2", "3"]);
    // DUP is about the link on which a packet is sent, not about the one on which it came.
    assert!(packets.iter().all(|first| first & 8 == 0), "{packets:x?}");
}

/// First bytes and payloads.
fn seen(packets: &[Packet]) -> (Vec<u8>, Vec<String>) {
    let payload = |packet: &Packet| String::from_utf8(packet.publish(V5).3).unwrap();
    (packets.iter().map(|packet| packet.first).collect(), packets.iter().map(payload).collect())
}

#[test]
fn retain_is_the_hubs_to_keep_and_is_passed_on() {
    let (gateway, hub) = both();
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        peer.publish(0x33, EVENTS, 1, &[], b"kept");
        peer.publish(0x33, EVENTS, 2, &[], b"");
        peer.publish(0x32, EVENTS, 3, &[], b"not kept");
        for id in 1..=3 {
            peer.expect(&[0x40, 2, 0, id]);
        }
    }
    let (packets, payloads) = seen(&hub.published(EVENTS, 6));
    let retained: Vec<bool> = packets.iter().map(|first| first & 1 == 1).collect();
    assert_eq!(retained, [true, true, false, true, true, false]);
    assert_eq!(payloads, ["kept", "", "not kept", "kept", "", "not kept"]);
}

#[test]
fn texts_are_passed_on_as_they_are() {
    let (gateway, hub) = both();
    // U+FEFF is a character like others; neither case nor form nor levels are touched.
    for tail in ["\u{FEFF}bom", "Ä/A\u{308}", "CASE/case", "//", "a b", "\u{2A6D4}"] {
        let topic = format!("{EVENTS}{tail}");
        for version in BOTH {
            let mut peer = Peer::admitted(&gateway, version, "d0");
            peer.publish(0x32, &topic, 1, &[], b"");
            peer.expect(&[0x40, 2, 0, 1]);
        }
        assert_eq!(hub.published(&topic, 2).len(), 2);
    }
}

/// Everything that a message may say besides its payload.
fn everything() -> Vec<u8> {
    let reply = [&[0x08][..], &text("devices/d0/messages/devicebound/reply")].concat();
    let correlation = [&[0x09][..], &binary(&[0, 1, 0xFF])].concat();
    let content = [&[0x03][..], &text("application/json; é")].concat();
    let users = [user("b", "2"), user("a", "1"), user("b", ""), user("\u{FEFF}", "ü")].concat();
    [vec![0x01, 1], content, reply, correlation, users].concat()
}

#[test]
fn what_a_message_says_of_itself_reaches_the_hub_unaltered_and_in_order() {
    let (gateway, hub) = both();
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    peer.publish(0x32, EVENTS, 1, &everything(), "{}".as_bytes());
    peer.expect(&[0x40, 2, 0, 1]);
    let (_, _, properties, payload) = hub.published(EVENTS, 1)[0].publish(V5);
    let stamped = properties.strip_prefix(&everything()[..]).expect("first what the device said, as it said it");
    assert!(stamped.starts_with(&user("tollgate-device", "d0")), "{stamped:x?}");
    assert_eq!(payload, b"{}");
    // Names that are the gateway's to give are not taken from a device.
    let mine = [user("tollgate-device", "d1"), user("colour", "red")].concat();
    peer.publish(0x32, EVENTS, 2, &mine, b"");
    peer.expect(&[0x40, 2, 0, 2]);
    let (_, _, properties, _) = hub.published(EVENTS, 2)[1].publish(V5);
    assert!(properties.starts_with(&[user("colour", "red"), user("tollgate-device", "d0")].concat()));
}

#[test]
fn what_a_message_says_of_itself_reaches_the_device_unaltered_and_in_order() {
    let (gateway, hub) = both();
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        assert_eq!(peer.subscribe(COMMANDS, 1), 1);
        hub.send(COMMANDS, &publish(V5, 0x32, "devices/d0/messages/devicebound/x", 9, &everything(), b"go"));
        let (topic, id, properties, payload) = peer.next().publish(version);
        assert_eq!((topic.as_str(), payload.as_slice()), ("devices/d0/messages/devicebound/x", &b"go"[..]));
        assert_eq!(properties, if version == V5 { everything() } else { Vec::new() });
        peer.send(&[0x40, 2, (id >> 8) as u8, id as u8]);
        peer.quiet();
    }
}

#[test]
fn an_alias_stands_for_its_topic_within_its_connection_alone() {
    let (gateway, hub) = both();
    let mut peer = Peer::open(&gateway, V5);
    peer.send(&Connect::new(V5, "d0").packet());
    let connack = peer.next();
    let at = connack.body.windows(3).position(|w| w[0] == 0x22 && w[1] == 0).expect("Topic Alias Maximum");
    let maximum = connack.body[at + 2];
    // Every alias up to the maximum is taken, and may be given to another topic.
    for alias in 1..=maximum {
        let topic = format!("{EVENTS}{alias}");
        peer.publish(0x32, &topic, 1, &[0x23, 0, alias], b"set");
        peer.expect(&[0x40, 2, 0, 1]);
        peer.publish(0x32, "", 1, &[0x23, 0, alias], b"used");
        peer.expect(&[0x40, 2, 0, 1]);
        let (_, payloads) = seen(&hub.published(&topic, 2));
        assert_eq!(payloads, ["set", "used"]);
    }
    peer.publish(0x30, &format!("{EVENTS}other"), 0, &[0x23, 0, 1], b"");
    peer.publish(0x30, "", 0, &[0x23, 0, 1], b"");
    let forwarded = hub.published(&format!("{EVENTS}other"), 2);
    assert!(forwarded.iter().all(|packet| packet.publish(V5).2.first() != Some(&0x23)), "an alias of the device");
    peer.publish(0x30, EVENTS, 0, &[0x23, 0, maximum + 1], b"");
    assert_eq!(peer.closed(), Some(0x94));
    let mut again = Peer::admitted(&gateway, V5, "d0");
    again.publish(0x30, "", 0, &[0x23, 0, 1], b"");
    assert_eq!(again.closed(), Some(0x82), "nothing is carried over");
}

#[test]
fn the_gateway_sends_an_alias_only_as_the_client_allows() {
    let (gateway, hub) = both();
    let topics = ["devices/d0/messages/devicebound/a", "devices/d0/messages/devicebound/b"];
    for maximum in [None, Some(0), Some(1)] {
        let properties = maximum.map_or(Vec::new(), |maximum| vec![0x22, 0, maximum]);
        let mut peer = Peer::admitted_as(&gateway, &Connect::new(V5, "d0").with(&properties));
        assert_eq!(peer.subscribe(COMMANDS, 0), 0);
        let mut known = String::new();
        for round in 0..3 {
            for topic in topics {
                hub.send(COMMANDS, &publish(V5, 0x30, topic, 0, &[], b"go"));
                let (sent, _, properties, _) = peer.next().publish(V5);
                let alias = properties.first_chunk::<3>().filter(|[id, ..]| *id == 0x23).map(|[_, a, b]| (*a, *b));
                assert!(alias.is_none() || alias == Some((0, 1)) && maximum == Some(1), "{alias:?} of {maximum:?}");
                if alias.is_some() && !sent.is_empty() {
                    known.clone_from(&sent);
                }
                assert_eq!(if sent.is_empty() { &known } else { &sent }, topic, "round {round}");
            }
        }
        peer.send(&[0xE0, 0]);
        peer.closed();
        hub.until_ended(COMMANDS);
    }
}

#[test]
fn receive_maximum_of_the_client_bounds_what_is_in_flight_and_delays_nothing_else() {
    let (gateway, hub) = both();
    let mut peer = Peer::admitted_as(&gateway, &Connect::new(V5, "d0").with(&[0x21, 0, 2]));
    assert_eq!(peer.subscribe(COMMANDS, 1), 1);
    for id in 1..=5 {
        let payload = id.to_string();
        hub.send(COMMANDS, &publish(V5, 0x32, "devices/d0/messages/devicebound/", id, &[], payload.as_bytes()));
    }
    let next = |peer: &mut Peer| {
        let (_, id, _, payload) = peer.next().publish(V5);
        (id, String::from_utf8(payload).unwrap())
    };
    let (first, second) = (next(&mut peer), next(&mut peer));
    assert!(first.0 != 0 && second.0 != 0 && first.0 != second.0, "{first:?} {second:?}");
    assert_eq!((first.1.as_str(), second.1.as_str()), ("1", "2"));
    // With the quota at 0 other packets are answered, and nothing more is sent.
    assert_eq!(peer.subscribe("elsewhere/#", 0), 0x87);
    peer.publish(0x32, EVENTS, 7, &[], b"up");
    peer.expect(&[0x40, 2, 0, 7]);
    peer.quiet();
    let mut owed = vec![first.0, second.0];
    for expected in ["3", "4", "5"] {
        let id = owed.remove(0);
        peer.send(&[0x40, 2, (id >> 8) as u8, id as u8]);
        let (id, payload) = next(&mut peer);
        assert_eq!(payload, expected);
        assert!(!owed.contains(&id), "an identifier in use");
        owed.push(id);
    }
    // A refusal frees the place, too, and the message is not sent again.
    let id = owed.remove(0);
    peer.send(&[0x40, 3, (id >> 8) as u8, id as u8, 0x80]);
    peer.quiet();
}

#[test]
fn more_than_receive_maximum_ends_the_connection_of_5_0() {
    // Nothing is acknowledged while the only witness is away.
    let gateway = crate::support::Plan::new(crate::support::Hub::At(crate::support::free_port(), V5))
        .ack("hub")
        .limit("receive_maximum = 3")
        .start();
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    for id in 1..=4 {
        peer.publish(0x32, EVENTS, id, &[], b"");
    }
    assert_eq!(peer.closed(), Some(0x93));
}

#[test]
fn an_unauthorized_publish_is_refused_by_the_version() {
    let (gateway, hub) = both();
    let elsewhere = "devices/d1/messages/events/";
    // 3.1.1 has no word for it [MQTT-3.3.5-2].
    for first in [0x30, 0x32] {
        let mut peer = Peer::admitted(&gateway, V4, "d0");
        peer.publish(first, elsewhere, 1, &[], b"");
        assert_eq!(peer.closed(), None);
    }
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    peer.publish(0x32, elsewhere, 1, &[], b"");
    assert_eq!(peer.next().body.get(..3), Some(&[0, 1, 0x87][..]));
    // The identifier is free again, and the session goes on.
    peer.publish(0x32, EVENTS, 1, &[], b"");
    peer.expect(&[0x40, 2, 0, 1]);
    peer.publish(0x30, elsewhere, 0, &[], b"");
    assert_eq!(peer.closed(), Some(0x87));
    assert_eq!(hub.count(), 1);
}

#[test]
fn messages_arrive_in_their_order_and_only_once() {
    let (gateway, hub) = both();
    let topic = "devices/d0/messages/devicebound/";
    let payloads: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    for (version, options) in [(V4, 1), (V5, 1), (V4, 0), (V5, 0)] {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        assert_eq!(peer.subscribe(COMMANDS, options), options);
        let first = 0x30 | options << 1;
        let bytes: Vec<u8> =
            (1..).zip(&payloads).flat_map(|(id, text)| publish(V5, first, topic, id, &[], text.as_bytes())).collect();
        hub.send(COMMANDS, &bytes);
        let mut came = Vec::new();
        for _ in &payloads {
            let packet = peer.next();
            assert_eq!(packet.first, first, "neither DUP nor RETAIN");
            let (_, id, _, payload) = packet.publish(version);
            if options == 1 {
                peer.send(&[0x40, 2, (id >> 8) as u8, id as u8]);
            }
            came.push(String::from_utf8(payload).unwrap());
        }
        assert_eq!(came, payloads);
        peer.quiet();
        peer.send(&[0xE0, 0]);
        peer.closed();
        hub.until_ended(COMMANDS);
    }
    up_in_order(&gateway, &hub, V4);
    up_in_order(&gateway, &hub, V5);
}

fn up_in_order(gateway: &crate::support::Gateway, hub: &crate::hub::Hub, version: Version) {
    let topic = format!("{EVENTS}{version:?}");
    let mut peer = Peer::admitted(gateway, version, "d0");
    for id in 1..=100 {
        peer.publish(0x32, &topic, id, &[], id.to_string().as_bytes());
    }
    // PUBACKs in the order of the PUBLISHes [MQTT-4.6.0-2].
    for id in 1..=100 {
        peer.expect(&[0x40, 2, 0, id]);
    }
    let (_, payloads) = seen(&hub.published(&topic, 100));
    assert_eq!(payloads, (1..=100).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_packet_larger_than_the_client_takes_is_left_out_and_the_rest_arrives() {
    let (gateway, hub) = both();
    let topic = "devices/d0/messages/devicebound/";
    let mut peer = Peer::admitted_as(&gateway, &Connect::new(V5, "d0").with(&[0x27, 0, 0, 0, 100]));
    assert_eq!(peer.subscribe(COMMANDS, 1), 1);
    for (id, payload) in [(1, vec![b'x'; 200]), (2, b"small".to_vec())] {
        hub.send(COMMANDS, &publish(V5, 0x32, topic, id, &[], &payload));
    }
    let packet = peer.next();
    assert_eq!(packet.publish(V5).3, b"small");
    peer.quiet();
    // As if it had been sent: the hub is told so. The other follows when the device has it.
    let (_, id, _, _) = packet.publish(V5);
    peer.send(&[0x40, 2, (id >> 8) as u8, id as u8]);
    let ids: Vec<u16> = hub.acknowledged(2).iter().map(Packet::id).collect();
    assert!(ids.contains(&1) && ids.contains(&2), "{ids:?}");
    // A reason string that would be too long is left out.
    let mut small = Peer::admitted_as(&gateway, &Connect::new(V5, "d1").with(&[0x27, 0, 0, 0, 30]));
    small.publish(0x32, EVENTS, 1, &[], b"");
    assert_eq!(small.next().bytes(), [0x40, 3, 0, 1, 0x87]);
    small.publish(0x30, "devices/d0/messages/events/+", 0, &[], b"");
    let disconnect = small.next();
    assert_eq!((disconnect.first, disconnect.body.first()), (0xE0, Some(&0x90)));
    assert!(disconnect.bytes().len() <= 30, "{disconnect:x?}");
}
