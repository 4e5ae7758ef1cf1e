//! QoS 2 (MQTT 5.0 §3.5 to §3.7, §4.3.3, §4.9; MQTT 3.1.1 §3.5 to §3.7, §4.3.3).

use std::time::{Duration, Instant};

use crate::{
    BOTH, COMMANDS, EVENTS, both,
    support::{
        Version::{V4, V5},
        until,
    },
    wire::{Connect, PATIENCE, Peer, publish},
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
        // What came later has arrived, and with it whatever there is of the first.
        assert_eq!(hub.published(&format!("{EVENTS}second"), round).len(), round);
        let arrived = hub.published(EVENTS, round);
        assert_eq!(arrived.len(), round);
        assert!(arrived.iter().all(|packet| packet.qos() == 1 && packet.first & 8 == 0), "{arrived:x?}");
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

/// The same, with so many seconds to live.
fn lasting(id: u16, payload: &[u8], seconds: u8) -> Vec<u8> {
    let first = command(id, payload)[0];
    publish(V5, first, "devices/d0/messages/devicebound/", id, &[2, 0, 0, 0, seconds], payload)
}

#[test]
fn pubrels_leave_in_the_order_of_the_pubrecs() {
    let (gateway, hub) = both();
    for version in BOTH {
        let mut peer = Peer::admitted(&gateway, version, "d0");
        assert_eq!(peer.subscribe(COMMANDS, 2), 2);
        let mut ids = Vec::new();
        for n in 1..=8 {
            hub.send(COMMANDS, &command(n, &n.to_be_bytes()));
            let packet = peer.next();
            assert_eq!(packet.qos(), 2);
            ids.push(packet.publish(version).1.to_be_bytes());
        }
        // Not the order in which they came: that of what is answered counts; together, and one by one.
        let (together, alone) = ([5, 0, 7, 2], [6, 1, 4, 3]);
        let pubrecs: Vec<u8> = together.iter().flat_map(|n| [&[0x50, 2][..], &ids[*n]].concat()).collect();
        peer.send(&pubrecs);
        for n in together {
            peer.expect(&[&[0x62, 2][..], &ids[n]].concat());
        }
        for n in alone {
            peer.send(&[&[0x50, 2][..], &ids[n]].concat());
            peer.expect(&[&[0x62, 2][..], &ids[n]].concat());
        }
        for id in ids {
            peer.send(&[&[0x70, 2][..], &id].concat());
        }
        peer.quiet();
        peer.send(&[0xE0, 0]);
        peer.closed();
        hub.until_ended(COMMANDS);
    }
}

#[test]
fn an_exchange_that_began_goes_on_also_when_its_message_has_expired() {
    let (gateway, hub) = both();
    let keeping = [0x11, 0, 0, 0, 60];
    let connect = Connect { flags: 0, ..Connect::new(V5, "d0").with(&keeping) };
    let mut peer = Peer::admitted_as(&gateway, &connect);
    assert_eq!(peer.subscribe(COMMANDS, 2), 2);
    // One that was sent, one that was received, and one of the device's own.
    hub.send(COMMANDS, &lasting(1, b"sent", 1));
    let (_, sent, _, _) = peer.next().publish(V5);
    hub.send(COMMANDS, &lasting(2, b"received", 1));
    let received = peer.next().publish(V5).1.to_be_bytes();
    peer.send(&[0x50, 2, received[0], received[1]]);
    peer.expect(&[0x62, 2, received[0], received[1]]);
    peer.publish(0x34, EVENTS, 9, &[2, 0, 0, 0, 1], b"mine");
    peer.expect(&[0x50, 2, 0, 9]);
    let (since, waited) = (Instant::now(), Duration::from_millis(2_500));
    until("all three to expire", PATIENCE, || since.elapsed() >= waited);
    // The device's goes on: it is the same message still, and complete [MQTT-4.3.3-13].
    peer.publish(0x3C, EVENTS, 9, &[2, 0, 0, 0, 1], b"mine");
    peer.expect(&[0x50, 2, 0, 9]);
    peer.send(&[0x62, 2, 0, 9]);
    peer.expect(&[0x70, 2, 0, 9]);
    // What was sent once does not expire, also not for the next connection [MQTT-4.3.3-7].
    peer.abandon();
    let mut peer = Peer::admitted_as(&gateway, &connect);
    let again = peer.next();
    assert_eq!((again.first, again.publish(V5).1, &again.publish(V5).3[..]), (0x3C, sent, &b"sent"[..]));
    peer.expect(&[0x62, 2, received[0], received[1]]);
    let [high, low] = sent.to_be_bytes();
    peer.send(&[0x50, 2, high, low]);
    peer.expect(&[0x62, 2, high, low]);
    for [high, low] in [received, [high, low]] {
        peer.send(&[0x70, 2, high, low]);
    }
    peer.quiet();
    assert_eq!(hub.published(EVENTS, 1).len(), 1);
}

#[test]
fn a_reason_string_that_would_make_a_pubrec_too_large_is_left_out() {
    let (gateway, _hub) = both();
    let refused = |maximum: u8| {
        let mut peer = Peer::admitted_as(&gateway, &Connect::new(V5, "d0").with(&[0x27, 0, 0, 0, maximum]));
        peer.publish(0x34, "devices/d1/messages/events/", 7, &[], b"");
        let pubrec = peer.next();
        assert_eq!((pubrec.first, pubrec.body.get(..3)), (0x50, Some(&[0, 7, 0x87][..])));
        peer.quiet();
        pubrec.bytes()
    };
    let whole = refused(200);
    assert!(whole.contains(&0x1F), "with a reason string: {whole:x?}");
    let length = u8::try_from(whole.len()).expect("short");
    assert_eq!(refused(length), whole, "it fits");
    assert_eq!(refused(length - 1), [0x50, 3, 0, 7, 0x87]);
}

#[test]
fn what_is_unacknowledged_comes_again_with_a_new_connection_and_at_no_other_time() {
    let (gateway, hub) = both();
    let (one, two) = ("devices/d0/messages/devicebound/one", "devices/d0/messages/devicebound/two");
    let of = |filter: &str, first: u8, id: u16, payload: &[u8]| publish(V5, first, filter, id, &[], payload);
    for version in BOTH {
        let properties: &[u8] = if version == V5 { &[0x11, 0, 0, 0, 60] } else { &[] };
        let connect = Connect { flags: 0, ..Connect::new(version, "d0").with(properties) };
        let mut peer = Peer::admitted_as(&gateway, &connect);
        assert_eq!((peer.subscribe(one, 1), peer.subscribe(two, 2)), (1, 2));
        let qos_2 = command(1, b"")[0];
        hub.send(one, &of(one, 0x32, 1, b"unanswered"));
        let first = peer.next();
        assert_eq!(first.first, 0x32);
        hub.send(two, &of(two, qos_2, 2, b"received"));
        let second = peer.next();
        assert_eq!(second.first, 0x34);
        let id = second.publish(version).1.to_be_bytes();
        peer.send(&[0x50, 2, id[0], id[1]]);
        peer.expect(&[0x62, 2, id[0], id[1]]);
        // Neither time, nor another message, nor a subscription, nor the same from the hub has it sent again.
        peer.quiet_for(Duration::from_secs(2));
        hub.send(one, &of(one, 0x30, 0, b"another"));
        assert_eq!(peer.next().publish(version).3, b"another");
        peer.publish(0x32, EVENTS, 5, &[], b"up");
        peer.expect(&[0x40, 2, 0, 5]);
        peer.subscribe(two, 2);
        peer.quiet();
        peer.abandon();
        let mut peer = Peer::admitted_as(&gateway, &connect);
        let again = peer.next();
        assert_eq!((again.first, &again.body), (0x3A, &first.body), "DUP, and else as it was");
        peer.expect(&[0x62, 2, id[0], id[1]]);
        peer.quiet_for(Duration::from_secs(1));
        // Whoever begins anew gets nothing of it.
        let mut anew = Peer::admitted(&gateway, version, "d0");
        anew.quiet();
        peer.closed();
        hub.until_ended(one);
        hub.until_ended(two);
        anew.send(&[0xE0, 0]);
        anew.closed();
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
