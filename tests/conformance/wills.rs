//! Wills (MQTT 5.0 §3.1.2.5, §3.1.3.2, §3.14.4; MQTT 3.1.1 §3.1.2.5).

use crate::{
    BOTH, EVENTS, both,
    hub::Hub,
    support::{Gateway, Version, Version::V5},
    wire::{Connect, PATIENCE, Peer, text, user},
};

/// A connection of `d0` with a will on a topic of its own.
fn with_will(gateway: &Gateway, version: Version, name: &str) -> (Peer, String) {
    let topic = format!("{EVENTS}{version:?}/{name}");
    let connect = Connect::new(version, "d0").keep_alive(1).will(&topic, name.as_bytes(), 1, false, &[]);
    (Peer::admitted_as(gateway, &connect), topic)
}

/// Whatever `d0` publishes from here on follows what its last session left behind: same home, same link.
fn marked(gateway: &Gateway, hub: &Hub, name: &str) {
    let topic = format!("{EVENTS}mark/{name}");
    let mut peer = Peer::admitted(gateway, V5, "d0");
    peer.publish(0x32, &topic, 1, &[], b"");
    peer.expect(&[0x40, 2, 0, 1]);
    hub.published(&topic, 1);
}

#[test]
fn a_will_is_sent_when_the_connection_ends_without_a_normal_disconnect() {
    let (gateway, hub) = both();
    for version in BOTH {
        let (peer, topic) = with_will(&gateway, version, "lost");
        peer.abandon();
        assert_eq!(hub.published(&topic, 1)[0].publish(V5).3, b"lost");
        let (mut peer, topic) = with_will(&gateway, version, "silent");
        peer.closed();
        hub.published(&topic, 1);
        let (mut peer, topic) = with_will(&gateway, version, "broken");
        peer.send(&[0xC0, 1, 0]);
        peer.closed();
        hub.published(&topic, 1);
        let (mut peer, topic) = with_will(&gateway, version, "taken-over");
        let new = Peer::admitted(&gateway, version, "d0");
        peer.closed();
        hub.published(&topic, 1);
        drop(new);
        // Sent once, and not again by a later session.
        marked(&gateway, &hub, &format!("{version:?}"));
        for name in ["lost", "silent", "broken", "taken-over"] {
            assert_eq!(hub.published(&format!("{EVENTS}{version:?}/{name}"), 1).len(), 1, "{name}");
        }
    }
    // Reason 0x04 asks for it; another reason is no normal disconnection either.
    for (name, reason) in [("asked", 0x04), ("unhappy", 0x80), ("malformed", 0x81)] {
        let (mut peer, topic) = with_will(&gateway, V5, name);
        peer.send(&[0xE0, 1, reason]);
        hub.published(&topic, 1);
        assert_eq!(peer.take(PATIENCE), None);
    }
}

#[test]
fn a_will_is_dropped_at_a_normal_disconnect_and_there_is_none_where_none_was_set() {
    let (gateway, hub) = both();
    for version in BOTH {
        let (mut peer, _) = with_will(&gateway, version, "normal");
        peer.send(&[0xE0, 0]);
        assert_eq!(peer.take(PATIENCE), None);
        if version == V5 {
            let (mut peer, _) = with_will(&gateway, version, "normal");
            peer.send(&[0xE0, 2, 0, 0]);
            assert_eq!(peer.take(PATIENCE), None);
        }
        // A client id without a will leaves nothing, nor the will of a session before it.
        Peer::admitted(&gateway, version, "d0").abandon();
        marked(&gateway, &hub, &format!("{version:?}"));
    }
    assert_eq!(hub.count(), 2, "the marks alone");
}

#[test]
fn a_will_is_what_connect_said_of_it() {
    let (gateway, hub) = both();
    let properties = [vec![0x01, 1, 0x03], text("text/plain"), user("b", "2"), user("a", "1"), user("b", "3")].concat();
    for version in BOTH {
        for (name, qos, retain) in [("0", 0, false), ("1", 1, false), ("kept", 1, true)] {
            let topic = format!("{EVENTS}{version:?}/{name}");
            let connect = Connect::new(version, "d0").will(&topic, b"gone", qos, retain, &properties);
            Peer::admitted_as(&gateway, &connect).abandon();
            let sent = &hub.published(&topic, 1)[0];
            assert_eq!((sent.qos(), sent.first & 1 == 1), (qos, retain), "{name}");
            let (_, _, said, payload) = sent.publish(V5);
            assert_eq!(payload, b"gone");
            let expected: &[u8] = if version == V5 { &properties } else { &[] };
            assert!(said.starts_with(expected), "{said:x?}");
        }
    }
}

#[test]
fn a_will_outside_the_scope_or_with_what_is_not_its_own_is_refused_at_connect() {
    let (gateway, _hub) = both();
    let delay_twice = [0x18, 0, 0, 0, 1, 0x18, 0, 0, 0, 1];
    for (topic, properties, code) in [
        ("devices/d1/messages/events/", &[][..], 0x87),
        (EVENTS, &[0x11, 0, 0, 0, 1], 0x81),
        (EVENTS, &delay_twice, 0x82),
        (EVENTS, &[0x08, 0, 1, b'#'], 0x82),
        (EVENTS, &[0x08, 0, 0], 0x82),
        (EVENTS, &[0x03, 0, 1, 1], 0x81),
    ] {
        let mut peer = Peer::open(&gateway, V5);
        peer.send(&Connect::new(V5, "d0").will(topic, b"", 0, false, properties).packet());
        assert_eq!(peer.next().body.get(..2), Some(&[0, code][..]), "{topic} {properties:x?}");
        assert_eq!(peer.take(PATIENCE), None);
    }
}
