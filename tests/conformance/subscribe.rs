//! SUBSCRIBE and UNSUBSCRIBE (MQTT 5.0 §3.8 to §3.11, §4.7; MQTT 3.1.1 §3.8 to §3.11, §4.7).

use crate::{
    BOTH, COMMANDS, both,
    support::{Version::V4, Version::V5},
    wire::{Peer, binary, packet, publish, subscribe, text, unsubscribe},
};

#[test]
fn a_subscribe_that_cannot_be_closes() {
    let (gateway, _hub) = both();
    let good = text(COMMANDS);
    for version in BOTH {
        let none: &[u8] = if version == V5 { &[0] } else { &[] };
        let body = |parts: &[&[u8]]| [&[0, 1][..], none, &parts.concat()].concat();
        let mut cases = vec![
            ("reserved flags 0", packet(0x80, &body(&[&good, &[1]])), 0x81),
            ("reserved flags 3", packet(0x83, &body(&[&good, &[1]])), 0x81),
            ("UNSUBSCRIBE, reserved flags", packet(0xA0, &body(&[&good])), 0x81),
            ("no filter", packet(0x82, &body(&[])), 0x82),
            ("UNSUBSCRIBE without a filter", packet(0xA2, &body(&[])), 0x82),
            ("no options", packet(0x82, &body(&[&good])), 0x81),
            ("a filter cut short", packet(0x82, &body(&[&[0, 9, b'd']])), 0x81),
            ("QoS 3", packet(0x82, &body(&[&good, &[3]])), 0x82),
            ("reserved bits of the options", packet(0x82, &body(&[&good, &[0x41]])), 0x81),
            ("a filter that is not UTF-8", packet(0x82, &body(&[&binary(b"d\xFF"), &[0]])), 0x81),
            ("a filter with U+0000", packet(0x82, &body(&[&binary(b"d\0"), &[0]])), 0x81),
            ("UNSUBSCRIBE, not UTF-8", packet(0xA2, &body(&[&binary(b"\xED\xA0\x80")])), 0x81),
            ("packet identifier 0", [&packet(0x82, &body(&[&good, &[1]]))[..]].concat(), 0x81),
        ];
        // The identifier stands behind the fixed header.
        if let Some((_, bytes, _)) = cases.last_mut() {
            bytes[3] = 0;
        }
        if version == V5 {
            let with = |properties: &[u8]| subscribe(V5, 1, properties, &[(COMMANDS, 1)]);
            cases.extend([
                ("Retain Handling 3", packet(0x82, &body(&[&good, &[0x31]])), 0x82),
                ("No Local on a shared subscription", packet(0x82, &body(&[&text("$share/g/a"), &[5]])), 0x82),
                ("subscription identifier 0", with(&[0x0B, 0]), 0x82),
                ("two subscription identifiers", with(&[0x0B, 1, 0x0B, 2]), 0x82),
                ("a property of another packet", with(&[0x21, 0, 1]), 0x81),
            ]);
        } else {
            cases.push(("a bit that 5.0 gave a meaning", packet(0x82, &body(&[&good, &[4]])), 0));
        }
        for (what, bytes, code) in cases {
            let mut peer = Peer::admitted(&gateway, version, "d0");
            peer.send(&bytes);
            assert_eq!(peer.closed(), (version == V5).then_some(code), "{version:?} {what}");
        }
    }
}

#[test]
fn suback_has_a_code_for_each_filter_in_its_order() {
    let (gateway, hub) = both();
    let own = "devices/d0/messages/devicebound/a";
    for version in BOTH {
        let five = version == V5;
        let mut peer = Peer::admitted(&gateway, version, "d0");
        let filters =
            [("devices/d1/#", 1), (COMMANDS, 1), ("devices/d0/#/a", 0), (own, 0), ("$share/g/a", 1), ("a+", 1)];
        peer.send(&subscribe(version, 0x1234, &[], &filters));
        let suback = peer.next();
        assert_eq!((suback.first, suback.id()), (0x90, 0x1234));
        let codes = &suback.body[if five { 3 } else { 2 }..];
        assert_eq!(codes, if five { [0x87, 1, 0x8F, 0, 0x9E, 0x8F] } else { [0x80, 1, 0x80, 0, 0x80, 0x80] });
        // As if each had come in a packet of its own: those that were granted are there, the others are not.
        hub.options(COMMANDS);
        hub.options(own);
        peer.send(&unsubscribe(version, 0x4321, &[own, "devices/d1/#", COMMANDS, COMMANDS]));
        let unsuback = peer.next();
        assert_eq!((unsuback.first, unsuback.id()), (0xB0, 0x4321));
        let codes = &unsuback.body[if five { 3 } else { 2 }..];
        assert_eq!(codes, if five { &[0, 0x11, 0, 0x11][..] } else { &[] });
        hub.until_ended(own);
        hub.until_ended(COMMANDS);
        peer.quiet();
    }
}

#[test]
fn a_message_comes_with_the_lower_qos_of_its_own_and_the_granted() {
    let (gateway, hub) = both();
    let topic = "devices/d0/messages/devicebound/a";
    let mut completed = 0;
    for version in BOTH {
        for granted in [0, 1, 2] {
            let mut peer = Peer::admitted(&gateway, version, "d0");
            assert_eq!(peer.subscribe(COMMANDS, granted), granted);
            assert_eq!(hub.options(COMMANDS) & 3, granted, "the hub is asked for as much");
            for (id, first) in [(1, 0x30), (2, 0x32), (3, 0x34)] {
                hub.send(COMMANDS, &publish(V5, first, topic, id, &[], b""));
                let packet = peer.next();
                assert_eq!(packet.qos(), granted.min((first >> 1) & 3), "{granted} {first:x}");
                let [high, low] = packet.publish(version).1.to_be_bytes();
                match packet.qos() {
                    1 => peer.send(&[0x40, 2, high, low]),
                    2 => {
                        peer.send(&[0x50, 2, high, low]);
                        peer.expect(&[0x62, 2, high, low]);
                        peer.send(&[0x70, 2, high, low]);
                    }
                    _ => {}
                }
            }
            // The hub's packet identifiers are free again.
            hub.until_acknowledged(0x70, &mut completed);
            peer.send(&[0xE0, 0]);
            peer.closed();
            hub.until_ended(COMMANDS);
        }
    }
}

#[test]
fn more_subscribes_than_are_placed_at_a_time_wait_and_are_all_answered() {
    let (gateway, _hub) = both();
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        let filter = |id: u16| format!("devices/d0/messages/devicebound/{id}");
        peer.send(&(1..=40).flat_map(|id| subscribe(version, id, &[], &[(&filter(id), 1)])).collect::<Vec<u8>>());
        let mut answered: Vec<(u8, u16, Option<u8>)> = (1..=40)
            .map(|_| {
                let suback = peer.next();
                (suback.first, suback.id(), suback.body.last().copied())
            })
            .collect();
        answered.sort_unstable();
        assert_eq!(answered, (1..=40).map(|id| (0x90, id, Some(1))).collect::<Vec<_>>());
        peer.quiet();
    }
}

#[test]
fn the_same_filter_again_takes_the_place_of_the_first() {
    let (gateway, hub) = both();
    let topic = "devices/d0/messages/devicebound/a";
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        assert_eq!((peer.subscribe(COMMANDS, 1), peer.subscribe(COMMANDS, 0)), (1, 0));
        hub.send(COMMANDS, &publish(V5, 0x32, topic, 1, &[], b"once"));
        let packet = peer.next();
        assert_eq!((packet.qos(), packet.publish(version).3.as_slice()), (0, &b"once"[..]));
        peer.quiet();
        // Nothing is lost while the one takes the place of the other.
        let payloads: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        for (n, payload) in payloads.iter().enumerate() {
            if n % 5 == 0 {
                peer.send(&subscribe(version, 7, &[], &[(COMMANDS, 0)]));
            }
            hub.send(COMMANDS, &publish(V5, 0x30, topic, 0, &[], payload.as_bytes()));
        }
        let mut subacks = 0;
        let mut came = Vec::new();
        while came.len() < payloads.len() || subacks < 4 {
            let packet = peer.next();
            match packet.first {
                0x90 => subacks += 1,
                _ => came.push(String::from_utf8(packet.publish(version).3).unwrap()),
            }
        }
        assert_eq!(came, payloads);
        // One UNSUBSCRIBE ends it: there was one.
        peer.send(&unsubscribe(version, 1, &[COMMANDS]));
        assert_eq!(peer.next().first, 0xB0);
        hub.until_ended(COMMANDS);
        peer.send(&[0xE0, 0]);
        peer.closed();
    }
}

#[test]
fn of_subscriptions_that_overlap_the_highest_qos_counts() {
    let (gateway, hub) = both();
    let own = "devices/d0/messages/devicebound/a";
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        assert_eq!((peer.subscribe(own, 0), peer.subscribe(COMMANDS, 1)), (0, 1));
        // A hub sends one copy, with the highest.
        hub.send(COMMANDS, &publish(V5, 0x32, own, 3, &[], b""));
        let packet = peer.next();
        assert_eq!((packet.qos(), packet.publish(version).0.as_str()), (1, own));
        let (_, id, _, _) = packet.publish(version);
        peer.send(&[0x40, 2, (id >> 8) as u8, id as u8, 0xE0, 0]);
        peer.closed();
        hub.until_ended(COMMANDS);
        hub.until_ended(own);
    }
}

#[test]
fn an_unsubscribe_compares_character_by_character_and_ends_what_was_not_begun() {
    let (gateway, hub) = both();
    let (topic, other) = ("devices/d0/messages/devicebound/a", "devices/d0/messages/devicebound/+");
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        assert_eq!(peer.subscribe(COMMANDS, 1), 1);
        // Filters that match the same, or what it matches, are others.
        for (id, filter) in [(1, other), (2, topic), (3, "devices/d0/messages/Devicebound/#")] {
            peer.send(&unsubscribe(version, id, &[filter]));
            let unsuback = peer.next();
            assert_eq!((unsuback.first, unsuback.id()), (0xB0, id), "answered also where nothing ended");
        }
        hub.send(COMMANDS, &publish(V5, 0x32, topic, 1, &[], b"begun"));
        let (_, id, _, payload) = peer.next().publish(version);
        assert_eq!(payload, b"begun");
        peer.send(&unsubscribe(version, 9, &[COMMANDS]));
        assert_eq!(peer.next().first, 0xB0);
        hub.until_ended(COMMANDS);
        // What had begun is brought to its end, and nothing new begins: also not where the hub sends it, for another filter.
        peer.send(&[0x40, 2, (id >> 8) as u8, id as u8]);
        assert_eq!(peer.subscribe(other, 0), 0);
        hub.send(other, &publish(V5, 0x30, "devices/d0/messages/devicebound/a/b", 0, &[], b"of what was ended"));
        hub.send(other, &publish(V5, 0x30, topic, 0, &[], b"of what is there"));
        assert_eq!(peer.next().publish(version).3, b"of what is there");
        peer.quiet();
        peer.send(&[0xE0, 0]);
        peer.closed();
    }
}

#[test]
fn a_shared_subscription_is_refused_as_connack_announced() {
    let (gateway, _hub) = both();
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    assert_eq!(peer.subscribe(&format!("$share/group/{COMMANDS}"), 1), 0x9E);
    assert_eq!(peer.subscribe("$share/group", 1), 0x9E);
    assert_eq!(Peer::admitted(&gateway, V4, "d0").subscribe("$share/group/a", 1), 0x80);
}
