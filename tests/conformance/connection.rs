//! What holds for every packet, PINGREQ, DISCONNECT and AUTH (MQTT 5.0 §2, §3.12 to §3.15, §4.13; MQTT 3.1.1 §2, §3.12,
//! §3.14, §4.8).

use crate::{
    BOTH, EVENTS, both,
    support::{Version::V4, Version::V5},
    wire::{Connect, PATIENCE, Peer, packet, publish, text},
};

#[test]
fn reserved_types_flags_and_lengths_close() {
    let (gateway, hub) = both();
    let cases: &[(&str, &[u8])] = &[
        ("type 0", &[0x00, 0]),
        ("PUBACK, flags", &[0x42, 2, 0, 1]),
        ("PUBREC, flags", &[0x51, 2, 0, 1]),
        ("PUBREL, flags 0", &[0x60, 2, 0, 1]),
        ("PUBREL, flags 3", &[0x63, 2, 0, 1]),
        ("PUBCOMP, flags", &[0x78, 2, 0, 1]),
        ("PINGREQ, flags", &[0xC1, 0]),
        ("PINGREQ with a body", &[0xC0, 1, 0]),
        ("DISCONNECT, flags", &[0xE1, 0]),
        ("PUBACK without an identifier", &[0x40, 1, 0]),
        ("PUBACK, identifier 0", &[0x40, 2, 0, 0]),
        ("a length of five bytes", &[0xC0, 0x80, 0x80, 0x80, 0x80, 1]),
        ("a length that is longer than it need be", &[0xC0, 0x80, 0]),
    ];
    for version in BOTH {
        for (what, bytes) in cases {
            let mut peer = Peer::admitted(&gateway, version, "d0");
            // What follows on a connection that is to be closed is not looked at [MQTT-4.8.0-1], [MQTT-4.13.1-1].
            let behind = publish(version, 0x30, EVENTS, 0, &[], b"behind");
            peer.send(&[bytes, &behind[..]].concat());
            assert_eq!(peer.closed(), (version == V5).then_some(0x81), "{version:?} {what}");
        }
    }
    hub.has_only_what_follows(&gateway);
}

#[test]
fn a_packet_that_only_a_server_sends_closes() {
    let (gateway, _hub) = both();
    for version in BOTH {
        let none: &[u8] = if version == V5 { &[0] } else { &[] };
        for (what, bytes) in [
            ("CONNACK", packet(0x20, &[&[0, 0], none].concat())),
            ("SUBACK", packet(0x90, &[&[0, 1], none, &[0]].concat())),
            ("UNSUBACK", packet(0xB0, &[&[0, 1], none].concat())),
            ("PINGRESP", packet(0xD0, &[])),
        ] {
            let mut peer = Peer::admitted(&gateway, version, "d0");
            peer.send(&bytes);
            assert_eq!(peer.closed(), (version == V5).then_some(0x82), "{what}");
        }
    }
}

#[test]
fn acknowledgements_of_5_0_are_held_to_their_reasons_and_properties() {
    let (gateway, _hub) = both();
    let reason = [&[0x1F][..], &text("fine")].concat();
    let good = packet(0x40, &[&[0, 9, 0x10][..], &crate::wire::sized(&reason)].concat());
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    // Of no message: nothing happens.
    peer.send(&good);
    peer.send(&[0x40, 3, 0, 9, 0x87]);
    peer.quiet();
    for (what, bytes) in [
        ("a reason that is none of PUBACK", &[0x40, 3, 0, 9, 0x92][..]),
        ("a property that is none of PUBACK", &[0x40, 6, 0, 9, 0, 2, 0x01, 1]),
        ("bytes behind the end", &[0x40, 5, 0, 9, 0, 0, 0]),
        ("properties cut short", &[0x40, 4, 0, 9, 0, 4]),
    ] {
        let mut peer = Peer::admitted(&gateway, V5, "d0");
        peer.send(bytes);
        assert_eq!(peer.closed(), Some(0x81), "{what}");
    }
    // 3.1.1 has no reason.
    let mut peer = Peer::admitted(&gateway, V4, "d0");
    peer.send(&[0x40, 3, 0, 9, 0]);
    assert_eq!(peer.closed(), None);
}

#[test]
fn a_pingreq_is_answered() {
    let (gateway, _hub) = both();
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        peer.send(&[0xC0, 0, 0xC0, 0, 0xC0, 0]);
        for _ in 0..3 {
            peer.expect(&[0xD0, 0]);
        }
        peer.quiet();
    }
}

#[test]
fn nothing_is_read_behind_a_disconnect_and_the_connection_is_closed() {
    let (gateway, hub) = both();
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        let behind = [publish(version, 0x30, EVENTS, 0, &[], b"behind"), vec![0xC0, 0]].concat();
        peer.send(&[&[0xE0, 0][..], &behind].concat());
        assert_eq!(peer.take(PATIENCE), None, "closed without a word");
    }
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    peer.publish(0x32, EVENTS, 1, &[], b"after");
    peer.expect(&[0x40, 2, 0, 1]);
    assert_eq!(hub.count(), 1);
}

#[test]
fn a_disconnect_is_held_to_its_form() {
    let (gateway, _hub) = both();
    let cases: &[(&str, &[u8], u8)] = &[
        ("a reason that is none", &[0xE0, 1, 0x01], 0x81),
        ("bytes behind the end", &[0xE0, 3, 0, 0, 0], 0x81),
        ("a property of another packet", &[0xE0, 5, 0, 3, 0x21, 0, 1], 0x81),
        ("a session expiry where CONNECT had none", &[0xE0, 7, 0, 5, 0x11, 0, 0, 0, 9], 0x82),
    ];
    for (what, bytes, code) in cases {
        let mut peer = Peer::admitted(&gateway, V5, "d0");
        peer.send(bytes);
        assert_eq!(peer.closed(), Some(*code), "{what}");
    }
    let mut peer = Peer::admitted(&gateway, V4, "d0");
    peer.send(&[0xE0, 1, 0]);
    assert_eq!(peer.closed(), None, "3.1.1 has no reason");
}

#[test]
fn a_disconnect_of_the_gateway_says_why_and_is_its_last_word() {
    let (gateway, _hub) = both();
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    peer.send(&[0xC0, 1, 0]);
    let last = peer.next();
    assert_eq!((last.first, last.body.first()), (0xE0, Some(&0x81)));
    // Reason String alone: no Session Expiry Interval [MQTT-3.14.2-2].
    assert_eq!(last.body.get(2), Some(&0x1F), "{last:x?}");
    assert_eq!(peer.take(PATIENCE), None);
}

#[test]
fn auth_is_for_whoever_connected_by_a_method() {
    let (gateway, _hub) = both();
    let auth = packet(0xF0, &[&[0x19][..], &crate::wire::sized(&[&[0x15][..], &text("SAS")].concat())].concat());
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        peer.send(&auth);
        assert_eq!(peer.closed(), (version == V5).then_some(0x82));
    }
    let token = crate::support::sas("d0");
    let method = [&[0x15][..], &text("SAS")].concat();
    let data = [&[0x16][..], &text(&token)].concat();
    let mut connect = Connect::new(V5, "d0").with(&[method.clone(), data.clone()].concat());
    connect.password = None;
    let admitted = || {
        let mut peer = Peer::open(&gateway, V5);
        peer.send(&connect.packet());
        let connack = peer.next();
        assert_eq!(connack.body.get(1), Some(&0));
        // The same method in CONNACK [MQTT-4.12.0-5].
        assert!(connack.body.windows(method.len()).any(|window| window == method), "{connack:x?}");
        peer
    };
    for (what, bytes, code) in [
        ("reserved flags", [&[0xF1][..], auth.get(1..).unwrap_or_default()].concat(), 0x81),
        ("a reason that is none", packet(0xF0, &[&[0x01][..], &crate::wire::sized(&method)].concat()), 0x82),
        ("no method", vec![0xF0, 2, 0x19, 0], 0x82),
        (
            "another method",
            packet(0xF0, &[&[0x19][..], &crate::wire::sized(&[&[0x15][..], &text("JWT")].concat())].concat()),
            0x8C,
        ),
    ] {
        let mut peer = admitted();
        peer.send(&bytes);
        assert_eq!(peer.closed(), Some(code), "{what}");
    }
    // Re-authentication: asked for, continued, done; each AUTH names the method.
    let mut peer = admitted();
    peer.send(&auth);
    let asked = peer.next();
    assert_eq!((asked.first, asked.body.first()), (0xF0, Some(&0x18)));
    assert_eq!(asked.body.get(2..), Some(&method[..]));
    peer.send(&packet(0xF0, &[&[0x18][..], &crate::wire::sized(&[method.clone(), data].concat())].concat()));
    let done = peer.next();
    assert_eq!((done.first, done.body.first()), (0xF0, Some(&0)));
    assert_eq!(done.body.get(2..), Some(&method[..]));
    peer.quiet();
}
