//! What a message says of itself on its way to a device, and how a device asks for messages (MQTT 5.0 §3.3.2.3, §3.8.2,
//! §3.8.3.1).

use std::time::{Duration, Instant};

use crate::{
    BOTH, COMMANDS, EVENTS, both,
    support::{
        Version::{V4, V5},
        device_key, until,
    },
    wire::{Connect, PATIENCE, Packet, Peer, binary, publish, subscribe, text, user},
    with,
};

const TOPIC: &str = "devices/d0/messages/devicebound/";

/// Properties of a message, as they arrive.
fn properties(packet: &Packet) -> Vec<u8> {
    packet.publish(V5).2
}

#[test]
fn properties_of_a_command_arrive_as_they_are_but_those_of_one_connection() {
    let (gateway, hub) = both();
    let theirs = [
        vec![0x01, 1],
        [&[0x03][..], &text("text/plain")].concat(),
        [&[0x08][..], &text("answers/here")].concat(),
        [&[0x09][..], &binary(&[0, 1, 0xFF])].concat(),
        user("k", "v"),
        user("k", "v"),
        user("a", ""),
    ]
    .concat();
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    peer.subscribe(COMMANDS, 1);
    let with_an_identifier = [&[0x0B, 9][..], &theirs].concat();
    hub.send(COMMANDS, &publish(V5, 0x32, TOPIC, 1, &with_an_identifier, b"on"));
    assert_eq!(properties(&peer.next()), theirs);
    // A 3.1.1 device gets the message without them.
    let mut peer = Peer::admitted(&gateway, V4, "d0");
    peer.subscribe(COMMANDS, 1);
    hub.send(COMMANDS, &publish(V5, 0x32, TOPIC, 2, &theirs, b"on"));
    assert_eq!(peer.next().publish(V4).3, b"on");
}

#[test]
fn properties_of_a_publish_reach_the_hub_as_they_are() {
    let (gateway, hub) = both();
    let theirs = [
        vec![0x01, 1, 0x02, 0, 0, 0, 90],
        [&[0x03][..], &text("text/plain")].concat(),
        [&[0x08][..], &text(COMMANDS.trim_end_matches('#'))].concat(),
        [&[0x09][..], &binary(&[0, 1, 0xFF])].concat(),
        user("k", "v"),
        user("k", "v"),
    ]
    .concat();
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    for (first, id) in [(0x30, 0), (0x32, 1), (0x34, 2)] {
        peer.publish(first, EVENTS, id, &theirs, b"on");
    }
    for packet in hub.published(EVENTS, 3) {
        assert!(properties(&packet).starts_with(&theirs), "{packet:x?}");
    }
}

#[test]
fn a_message_expires_while_it_waits_and_says_what_is_left() {
    let (gateway, hub) = both();
    let mut peer = Peer::admitted_as(&gateway, &Connect::new(V5, "d0").with(&[0x21, 0, 1]));
    peer.subscribe(COMMANDS, 1);
    let lasts = |id, seconds: u32| {
        let expiry = [&[0x02][..], &seconds.to_be_bytes()].concat();
        hub.send(COMMANDS, &publish(V5, 0x32, TOPIC, id, &expiry, &id.to_be_bytes()));
    };
    lasts(1, 100);
    let first = peer.next();
    assert_eq!(properties(&first), [2, 0, 0, 0, 100]);
    (2..=4).for_each(|id| lasts(id, if id == 3 { 1 } else { 100 }));
    // The device acknowledges the first when the third has expired.
    let (came, waited) = (Instant::now(), Duration::from_millis(1_500));
    until("the third to expire", PATIENCE, || came.elapsed() >= waited);
    let answered = |packet: &Packet| {
        let [high, low] = packet.publish(V5).1.to_be_bytes();
        [0x40, 2, high, low]
    };
    peer.send(&answered(&first));
    let second = peer.next();
    assert_eq!(second.publish(V5).3, 2u16.to_be_bytes());
    let left = properties(&second);
    assert!(matches!(left[..], [2, 0, 0, 0, 95..=99]), "{left:?}");
    peer.send(&answered(&second));
    assert_eq!(peer.next().publish(V5).3, 4u16.to_be_bytes());
}

#[test]
fn a_message_names_the_subscriptions_that_it_is_for() {
    let (gateway, hub) = both();
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    for (id, identifier, filter) in [(1, &[0x0B, 5][..], COMMANDS), (2, &[0x0B, 0xC8, 1], TOPIC), (3, &[], "#")] {
        peer.send(&subscribe(V5, id, identifier, &[(filter, 1)]));
        peer.next();
    }
    hub.send(COMMANDS, &publish(V5, 0x32, TOPIC, 1, &[], b"both"));
    assert_eq!(properties(&peer.next()), [0x0B, 5, 0x0B, 0xC8, 1]);
    hub.send(COMMANDS, &publish(V5, 0x30, &format!("{TOPIC}x"), 0, &[], b"one"));
    assert_eq!(properties(&peer.next()), [0x0B, 5]);
}

#[test]
fn retained_messages_come_as_the_subscription_asks_for_them() {
    let (gateway, hub) = both();
    let retained = |payload: &[u8]| publish(V5, 0x31, TOPIC, 0, &[], payload);
    let live = |payload: &[u8]| publish(V5, 0x30, TOPIC, 0, &[], payload);
    let payload = |peer: &mut Peer| {
        let packet = peer.next();
        (packet.first & 1, packet.publish(peer.version).3)
    };
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    // 2: none. 1: none, since the subscription is there. 0: again.
    for (options, expected) in [(0x21, false), (0x11, false), (0x01, true)] {
        peer.subscribe(COMMANDS, options);
        hub.send(COMMANDS, &retained(b"kept"));
        hub.send(COMMANDS, &live(b"live"));
        if expected {
            assert_eq!(payload(&mut peer), (1, b"kept".to_vec()), "RETAIN says that it was kept");
        }
        assert_eq!(payload(&mut peer), (0, b"live".to_vec()));
    }
    // 1, and the subscription is new.
    let mut peer = Peer::admitted(&gateway, V5, "d0");
    peer.subscribe(COMMANDS, 0x11);
    hub.send(COMMANDS, &retained(b"kept"));
    assert_eq!(payload(&mut peer), (1, b"kept".to_vec()));
    // 3.1.1: at every SUBSCRIBE.
    let mut peer = Peer::admitted(&gateway, V4, "d0");
    for _ in 0..2 {
        peer.subscribe(COMMANDS, 1);
        hub.send(COMMANDS, &retained(b"kept"));
        assert_eq!(payload(&mut peer), (1, b"kept".to_vec()));
    }
}

#[test]
fn what_another_asked_a_hub_to_keep_comes_to_nobody_who_wants_none() {
    let own = |device: &str| {
        let key = device_key(device);
        format!("[[device]]\nid = \"{device}\"\nprimary_key = \"{key}\"\nscope.subscribe = [\"site/#\"]\n")
    };
    let (gateway, hub) = with(|plan| {
        let plan = plan.shards(1).hub_line("[[route]]\nfrom = \"site/#\"\nupstream = \"hub\"");
        plan.identities_and(&(own("never") + &own("again")))
    });
    let (mut never, mut again) = (Peer::admitted(&gateway, V5, "never"), Peer::admitted(&gateway, V5, "again"));
    assert_eq!(never.subscribe("site/#", 0x20), 0);
    for _ in 0..2 {
        // The other asks for what was kept, and the hub sends it where both have their subscription.
        assert_eq!(again.subscribe("site/#", 0x00), 0);
        hub.send("site/#", &publish(V5, 0x31, "site/news", 0, &[], b"kept"));
        hub.send("site/#", &publish(V5, 0x30, "site/news", 0, &[], b"live"));
        for (first, payload) in [(0x31, &b"kept"[..]), (0x30, b"live")] {
            let packet = again.next();
            assert_eq!((packet.first, &packet.publish(V5).3[..]), (first, payload));
        }
        let packet = never.next();
        assert_eq!((packet.first, &packet.publish(V5).3[..]), (0x30, &b"live"[..]));
    }
}

#[test]
fn retain_is_as_it_was_published_for_who_wants_that_and_cleared_for_others() {
    let watcher = |id: &str| {
        format!(
            "[[device]]\nid = \"{id}\"\nprimary_key = \"{}\"\nscope.subscribe = [\"devices/+/messages/events/#\"]\n",
            device_key(id)
        )
    };
    let (gateway, hub) = with(|plan| plan.shards(1).identities_and(&["w1", "w2"].map(watcher).concat()));
    let filter = "devices/+/messages/events/#";
    let say =
        |first, payload: &[u8]| hub.send(filter, &publish(V5, first, EVENTS, 0, &hub.identifier(filter), payload));
    let came = |peer: &mut Peer| {
        let packet = peer.next();
        (packet.first & 1, packet.publish(V5).3)
    };
    let mut one = Peer::admitted(&gateway, V5, "w1");
    assert_eq!(one.subscribe(filter, 0x29), 1);
    assert_eq!(hub.options(filter), 0x29, "as published, and nothing that is kept");
    say(0x31, b"live");
    assert_eq!(came(&mut one), (1, b"live".to_vec()));
    let mut two = Peer::admitted(&gateway, V5, "w2");
    assert_eq!(two.subscribe(filter, 0x21), 1);
    say(0x31, b"both");
    assert_eq!((came(&mut one), came(&mut two)), ((1, b"both".to_vec()), (0, b"both".to_vec())));
    // What is kept is for who has just subscribed, with RETAIN, and for nobody else.
    assert_eq!(two.subscribe(filter, 0x01), 1);
    until("the hub to be asked for what it keeps", PATIENCE, || hub.options(filter) == 0x01);
    say(0x31, b"kept");
    say(0x30, b"later");
    assert_eq!(came(&mut two), (1, b"kept".to_vec()));
    assert_eq!((came(&mut one), came(&mut two)), ((0, b"later".to_vec()), (0, b"later".to_vec())));
    // And when it has come, RETAIN is as published again.
    until("the hub to leave RETAIN as published", PATIENCE, || hub.options(filter) == 0x29);
    say(0x31, b"again");
    assert_eq!((came(&mut one), came(&mut two)), ((1, b"again".to_vec()), (0, b"again".to_vec())));
}

#[test]
fn a_device_is_spared_its_own_messages_where_it_says_so() {
    let (gateway, hub) = with(|plan| {
        plan.identities_and(&format!(
            "[[device]]\nid = \"loop\"\nprimary_key = \"{}\"\n\
             scope.publish = [\"devices/loop/#\"]\nscope.subscribe = [\"devices/loop/#\"]\n",
            device_key("loop")
        ))
    });
    let echoed =
        |id, device: &str| publish(V5, 0x32, "devices/loop/x", id, &user("tollgate-device", device), device.as_bytes());
    let mut peer = Peer::admitted(&gateway, V5, "loop");
    assert_eq!(peer.subscribe("devices/loop/#", 0x05), 1);
    hub.send("devices/loop/#", &echoed(1, "loop"));
    hub.send("devices/loop/#", &echoed(2, "other"));
    assert_eq!(peer.next().publish(V5).3, b"other");
    assert_eq!(peer.subscribe("devices/loop/#", 0x01), 1);
    hub.send("devices/loop/#", &echoed(3, "loop"));
    assert_eq!(peer.next().publish(V5).3, b"loop");
}

#[test]
fn topics_are_named_by_numbers_where_the_device_takes_them() {
    let (gateway, hub) = both();
    let mut peer = Peer::admitted_as(&gateway, &Connect::new(V5, "d0").with(&[0x22, 0, 1]));
    peer.subscribe(COMMANDS, 1);
    for (id, topic) in [(1, TOPIC), (2, TOPIC), (3, "devices/d0/messages/devicebound/else"), (4, TOPIC)] {
        hub.send(COMMANDS, &publish(V5, 0x32, topic, id, &[], b"x"));
    }
    let mut named = || {
        let (topic, _, properties, _) = peer.next().publish(V5);
        (topic, properties)
    };
    let alias = vec![0x23, 0, 1];
    assert_eq!(named(), (TOPIC.to_owned(), alias.clone()));
    assert_eq!(named(), (String::new(), alias.clone()));
    assert_eq!(named(), (format!("{TOPIC}else"), vec![]));
    assert_eq!(named(), (String::new(), alias));
}

#[test]
fn what_is_larger_than_the_device_takes_is_dropped_and_the_next_arrives() {
    let (gateway, hub) = both();
    for (qos, first) in [(0, 0x30), (1, 0x32), (2, 0x34)] {
        let mut peer = Peer::admitted_as(&gateway, &Connect::new(V5, "d0").with(&[0x27, 0, 0, 0, 100]));
        peer.subscribe(COMMANDS, qos);
        hub.send(COMMANDS, &publish(V5, first, TOPIC, 1, &[], &[b'x'; 100]));
        hub.send(COMMANDS, &publish(V5, first, TOPIC, 2, &[], b"small"));
        assert_eq!(peer.next().publish(V5).3, b"small");
    }
    let dropped = || gateway.metric("tollgate_dropped_total", &["reason=\"too_large\""]);
    until("three to be counted", PATIENCE, || dropped() == 3.0);
}

#[test]
fn a_device_without_a_client_id_gets_the_one_that_its_user_name_says() {
    let (gateway, hub) = both();
    for version in BOTH {
        let connect = Connect { client_id: Vec::new(), ..Connect::new(version, "d0") };
        let mut peer = Peer::open(&gateway, version);
        peer.send(&connect.packet());
        let connack = peer.next();
        assert_eq!((connack.first, connack.body[1]), (0x20, 0));
        let assigned = [&[0x12][..], &text("d0")].concat();
        let said = connack.body.windows(assigned.len()).any(|window| window == assigned);
        assert_eq!(said, version == V5);
        peer.publish(0x32, EVENTS, 1, &[], b"x");
        peer.expect(&[0x40, 2, 0, 1]);
        // Azure's user names say it, too.
        let name = b"localhost/d0/?api-version=2021-04-12".to_vec();
        let mut peer = Peer::open(&gateway, version);
        peer.send(&Connect { user_name: Some(name), ..connect }.packet());
        assert_eq!(peer.next().body[1], 0);
        peer.publish(0x32, EVENTS, 1, &[], b"x");
        peer.expect(&[0x40, 2, 0, 1]);
    }
    hub.published(EVENTS, 4);
    // Whoever has none gets its own, and no other session has the same: one that had is ended.
    let nameless = |device: &str| Connect { client_id: Vec::new(), ..Connect::new(V5, device) };
    let mut named = Peer::admitted(&gateway, V5, "d0");
    let mut peers: Vec<Peer> = ["d0", "d1"]
        .map(|device| {
            let mut peer = Peer::open(&gateway, V5);
            peer.send(&nameless(device).packet());
            let connack = peer.next();
            let assigned = [&[0x12][..], &text(device)].concat();
            assert!(connack.body.windows(assigned.len()).any(|window| window == assigned), "{device}: {connack:x?}");
            peer
        })
        .into();
    assert_eq!(named.closed(), Some(0x8E));
    peers.iter_mut().for_each(Peer::quiet);
    // It is proved like any other.
    let wrong = Connect { client_id: Vec::new(), user_name: Some(b"d1".to_vec()), ..Connect::new(V5, "d0") };
    let mut peer = Peer::open(&gateway, V5);
    peer.send(&wrong.packet());
    assert_eq!(peer.next().body[1], 0x85);
}
