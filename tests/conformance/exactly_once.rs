//! QoS 2 (MQTT 5.0 §3.5 to §3.7, §4.3.3, §4.9; MQTT 3.1.1 §3.5 to §3.7, §4.3.3).

use crate::{
    BOTH, COMMANDS, EVENTS, both,
    support::Version::{V4, V5},
    wire::{Connect, Peer, publish},
};

/// A command, as the hub sends it.
fn command(id: u16, payload: &[u8]) -> Vec<u8> {
    publish(V5, 0x34, "devices/d0/messages/devicebound/", id, &[], payload)
}

#[test]
fn what_a_device_publishes_with_qos_2_passes_once() {
    let (gateway, hub) = both();
    for (version, round) in BOTH.into_iter().zip(1..) {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        peer.publish(0x34, EVENTS, 0x0107, &[], b"once");
        peer.expect(&[0x50, 2, 1, 7]);
        for first in [0x3C, 0x34] {
            peer.publish(first, EVENTS, 0x0107, &[], b"once");
            peer.expect(&[0x50, 2, 1, 7]);
        }
        peer.send(&[0x62, 2, 1, 7]);
        peer.expect(&[0x70, 2, 1, 7]);
        // The identifier is free, and nothing is known under it.
        peer.send(&[0x62, 2, 1, 7]);
        peer.expect(if version == V5 { &[0x70, 3, 1, 7, 0x92] } else { &[0x70, 2, 1, 7] });
        peer.publish(0x34, &format!("{EVENTS}second"), 0x0107, &[], b"another");
        peer.expect(&[0x50, 2, 1, 7]);
        let arrived = hub.published(EVENTS, round);
        assert_eq!(arrived.len(), round);
        assert!(arrived.iter().all(|packet| packet.qos() == 1 && packet.first & 8 == 0), "{arrived:x?}");
        assert_eq!(hub.published(&format!("{EVENTS}second"), round).len(), round);
    }
}

#[test]
fn answers_of_qos_1_and_2_leave_in_the_order_of_their_messages() {
    let (gateway, _hub) = both();
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        let together: Vec<u8> = (1..=6)
            .flat_map(|id| publish(version, if id % 2 == 0 { 0x34 } else { 0x32 }, EVENTS, id, &[], b"x"))
            .collect();
        peer.send(&together);
        for id in 1..=6 {
            peer.expect(&[if id % 2 == 0 { 0x50 } else { 0x40 }, 2, 0, id]);
        }
    }
}

#[test]
fn what_may_not_be_published_is_refused_by_pubrec_and_its_identifier_is_free() {
    let (gateway, hub) = both();
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    peer.publish(0x34, "devices/d1/messages/events/", 7, &[], b"never");
    let pubrec = peer.next();
    assert_eq!((pubrec.first, pubrec.id(), pubrec.body.get(2)), (0x50, 7, Some(&0x87)));
    peer.publish(0x34, EVENTS, 7, &[], b"good");
    peer.expect(&[0x50, 2, 0, 7]);
    let mut peer = Peer::admitted(&gateway, V4, "d0");
    peer.publish(0x34, "devices/d1/messages/events/", 7, &[], b"never");
    assert_eq!(peer.closed(), None);
    assert_eq!((hub.published(EVENTS, 1).len(), hub.count()), (1, 1));
    // Without reason strings where the device wants none.
    let mut peer = Peer::admitted_as(&gateway, &Connect::new(V5, "d0").with(&[0x17, 0]));
    peer.publish(0x34, "devices/d1/messages/events/", 7, &[], b"never");
    peer.expect(&[0x50, 3, 0, 7, 0x87]);
}

#[test]
fn messages_half_way_count_for_receive_maximum() {
    let (gateway, _hub) = both();
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    // 100 are announced.
    for id in 1..=100u8 {
        peer.publish(0x34, EVENTS, id.into(), &[], b"x");
        peer.expect(&[0x50, 2, 0, id]);
    }
    peer.send(&[0x62, 2, 0, 1]);
    peer.expect(&[0x70, 2, 0, 1]);
    peer.publish(0x34, EVENTS, 101, &[], b"x");
    peer.expect(&[0x50, 2, 0, 101]);
    peer.publish(0x32, EVENTS, 102, &[], b"x");
    assert_eq!(peer.closed(), Some(0x93));
    // 3.1.1 has no such thing.
    let mut peer = Peer::admitted(&gateway, V4, "d0");
    for id in 1..=300u16 {
        peer.publish(0x34, EVENTS, id, &[], b"x");
        assert_eq!(peer.next().id(), id);
    }
}

#[test]
fn a_command_with_qos_2_is_sent_released_and_complete() {
    let (gateway, hub) = both();
    for (version, hubs) in BOTH.into_iter().zip(1..) {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        assert_eq!(peer.subscribe(COMMANDS, 2), 2);
        hub.send(COMMANDS, &command(hubs, b"on"));
        let sent = peer.next();
        let (_, id, _, payload) = sent.publish(version);
        assert_eq!((sent.first, &payload[..]), (0x34, &b"on"[..]), "QoS 2, and not sent before");
        let [high, low] = id.to_be_bytes();
        for _ in 0..2 {
            peer.send(&[0x50, 2, high, low]);
            peer.expect(&[0x62, 2, high, low]);
        }
        peer.send(&[0x70, 2, high, low]);
        peer.quiet();
        // Of nothing that was sent.
        peer.send(&[0x50, 2, 0x77, 0x77]);
        peer.expect(if version == V5 { &[0x62, 3, 0x77, 0x77, 0x92] } else { &[0x62, 2, 0x77, 0x77] });
        peer.send(&[0x70, 2, 0x77, 0x77]);
        peer.quiet();
    }
}

#[test]
fn what_a_hub_sends_with_qos_2_is_received_released_and_complete() {
    let (gateway, hub) = both();
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        assert_eq!(peer.subscribe(COMMANDS, 2), 2);
        let before = hub.acknowledged(0).len();
        hub.send(COMMANDS, &command(9, b"once"));
        let (_, id, _, payload) = peer.next().publish(version);
        assert_eq!(payload, b"once");
        let [high, low] = id.to_be_bytes();
        peer.send(&[0x50, 2, high, low]);
        peer.expect(&[0x62, 2, high, low]);
        peer.send(&[0x70, 2, high, low]);
        let answers = hub.acknowledged(before + 2).split_off(before);
        assert_eq!(
            answers.iter().map(|answer| (answer.first, answer.id())).collect::<Vec<_>>(),
            [(0x50, 9), (0x70, 9)]
        );
        // The packet identifier is another message's.
        hub.send(COMMANDS, &command(9, b"another"));
        assert_eq!(peer.next().publish(version).3, b"another");
        peer.send(&[0xE0, 0]);
        peer.closed();
        hub.acknowledged(before + 4);
    }
}

#[test]
fn never_more_is_under_way_to_the_device_than_it_takes() {
    let (gateway, hub) = both();
    let mut peer = Peer::admitted_as(&gateway, &Connect::new(V5, "d0").with(&[0x21, 0, 2]));
    assert_eq!(peer.subscribe(COMMANDS, 2), 2);
    for id in 1..=4 {
        hub.send(COMMANDS, &command(id, &[id as u8]));
    }
    let mut take = |n: u8| {
        let (_, id, _, payload) = peer.next().publish(V5);
        assert_eq!(payload, [n]);
        id.to_be_bytes()
    };
    let (one, two) = (take(1), take(2));
    peer.quiet();
    // PUBREC alone frees no place; PUBCOMP does, and so does a refusal.
    peer.send(&[0x50, 2, one[0], one[1]]);
    peer.expect(&[0x62, 2, one[0], one[1]]);
    peer.quiet();
    peer.send(&[0x70, 2, one[0], one[1]]);
    assert_eq!(peer.next().publish(V5).3, [3]);
    peer.send(&[0x50, 3, two[0], two[1], 0x80]);
    assert_eq!(peer.next().publish(V5).3, [4]);
}

#[test]
fn acknowledgements_that_cannot_be_close() {
    let (gateway, hub) = both();
    for (what, bytes) in [
        ("PUBREC, packet identifier 0", &[0x50, 2, 0, 0][..]),
        ("PUBREL, reserved flags", &[0x60, 2, 0, 1]),
        ("PUBREL, packet identifier 0", &[0x62, 2, 0, 0]),
        ("PUBREL, cut short", &[0x62, 1, 0]),
        ("PUBREL, a reason of PUBREC", &[0x62, 3, 0, 1, 0x10]),
        ("PUBCOMP, reserved flags", &[0x72, 2, 0, 1]),
        ("PUBCOMP, a reason of PUBREC", &[0x70, 3, 0, 1, 0x80]),
        ("PUBREC, a reason of DISCONNECT", &[0x50, 3, 0, 1, 0x8E]),
        ("PUBREC, a property of another packet", &[0x50, 6, 0, 1, 0, 3, 0x21, 0, 1]),
    ] {
        let mut peer = Peer::admitted(&gateway, V5, "d0");
        peer.send(bytes);
        assert_eq!(peer.closed(), Some(0x81), "{what}");
    }
    // An answer to a message of the other QoS.
    for (id, (qos, answer)) in (1..).zip([(2, 0x40), (2, 0x70), (1, 0x50), (1, 0x70)]) {
        let mut peer = Peer::admitted(&gateway, V5, "d0");
        peer.subscribe(COMMANDS, qos);
        hub.send(COMMANDS, &command(id, b"x"));
        let [high, low] = peer.next().publish(V5).1.to_be_bytes();
        peer.send(&[answer, 2, high, low]);
        assert_eq!(peer.closed(), Some(0x82), "{answer:#x} to QoS {qos}");
    }
}
