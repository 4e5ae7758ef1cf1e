//! Wills from their connection's end to the hub: delays, what cancels them and what takes them away, hubs without room,
//! and gateways that end or are killed. What CONNECT may say of a will is held in `tests/conformance/wills.rs`.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

#[path = "conformance/hub.rs"]
#[allow(dead_code, reason = "this test uses its part")]
mod hub;
mod support;
#[path = "conformance/wire.rs"]
#[allow(dead_code, reason = "this test uses its part")]
mod wire;

use std::{
    fs,
    time::{Duration, Instant},
};

use support::{Gateway, Plan, Recorder, Version, sas_until, unix_now, until};
use wire::{Connect, PATIENCE, Peer};

const BOTH: [Version; 2] = [Version::V4, Version::V5];
const V5: Version = Version::V5;

#[test]
fn wills_that_find_no_room_wait_for_it_and_take_nobody_elses() {
    let mut hub = Recorder::start();
    let plan = Plan::new(support::Hub::At(hub.port(), V5)).shards(1).window(4).ack("hub").devices(30);
    let gateway = plan.start();
    hub.tell("ack hold");
    let mut busy = Peer::admitted(&gateway, V5, "d29");
    let events = "devices/d29/messages/events/";
    for id in 1..=5 {
        busy.publish(0x32, events, id, &[], b"busy");
    }
    until("the window to be full", PATIENCE, || hub.count() == 4);
    // At once, and after their delay; the last passes by what waits, since QoS 0 takes no place.
    let leave = |n: usize, delay: u32, qos: u8| {
        let topic = format!("devices/d{n}/messages/events/will");
        let connect = kept(V5, &format!("d{n}"), 60).will(&topic, b"gone", qos, false, &delay_of(delay));
        Peer::admitted_as(&gateway, &connect).abandon();
        topic
    };
    let mut topics: Vec<String> = (0..25).map(|n| leave(n, u32::from(n % 2 == 1), 1)).collect();
    let last = leave(25, 2, 0);
    until("all delays to be over", PATIENCE, || hub.payloads(&last).len() == 1);
    assert_eq!(hub.count(), 5, "nothing else has a place");
    hub.tell("ack now");
    hub.kill();
    hub.restart();
    topics.push(last);
    for topic in &topics {
        until("a will that waited", PATIENCE, || hub.payloads(topic) == ["gone"]);
    }
    // The window is as wide as before.
    for id in 1..=5 {
        busy.expect(&[0x40, 2, 0, id]);
    }
    for id in 6..=45 {
        busy.publish(0x32, events, id, &[], b"busy");
    }
    for id in 6..=45 {
        assert_eq!(busy.next().id(), id);
    }
    assert_eq!(gateway.metric("tollgate_dropped_total", &["reason=\"will_without_room\""]), 0.0);
}

#[test]
fn a_will_waits_for_its_delay_unless_its_device_comes_back_or_begins_anew() {
    let (gateway, hub) = both();
    let begun = Instant::now();
    for (n, (delay, expiry)) in [(2, 60), (60, 2)].into_iter().enumerate() {
        left(&gateway, &format!("d{n}"), delay, expiry);
    }
    // Within its delay: to its session, and to another.
    left(&gateway, "d2", 8, 60);
    left(&gateway, "d3", 60, 60);
    let back = Peer::admitted_as(&gateway, &kept(V5, "d2", 60));
    let anew = Peer::admitted(&gateway, V5, "d3");
    hub.published(&topic("d3"), 1);
    for device in ["d0", "d1"] {
        hub.published(&topic(device), 1);
        assert!(begun.elapsed() >= Duration::from_secs(2), "{device}: before its time");
    }
    // By now that of d2 would have been due as well.
    left(&gateway, "d4", 8, 60);
    hub.published(&topic("d4"), 1);
    drop((back, anew));
    assert_eq!(hub.count(), 4);
}

#[test]
fn who_takes_over_goes_on_with_the_session_and_no_will_is_sent_or_begins_anew_and_it_is() {
    let (gateway, hub) = both();
    let connect = |device: &str| kept(V5, device, 60).will(&topic(device), b"gone", 1, false, &delay_of(30));
    let (mut old, mut other) =
        (Peer::admitted_as(&gateway, &connect("d0")), Peer::admitted_as(&gateway, &connect("d1")));
    let goes_on = Peer::admitted_as(&gateway, &kept(V5, "d0", 60));
    assert_eq!(old.closed(), Some(0x8E));
    let anew = Peer::admitted(&gateway, V5, "d1");
    assert_eq!(other.closed(), Some(0x8E));
    hub.published(&topic("d1"), 1);
    drop((goes_on, anew));
    // 3.1.1 knows no delay: a will belongs to the connection.
    let connect = kept(Version::V4, "d2", 60).will(&topic("d2"), b"gone", 1, false, &[]);
    let mut old = Peer::admitted_as(&gateway, &connect);
    let _goes_on = Peer::admitted_as(&gateway, &kept(Version::V4, "d2", 60));
    assert_eq!(old.closed(), None);
    hub.published(&topic("d2"), 1);
    assert_eq!(hub.count(), 2);
}

#[test]
fn what_is_taken_from_a_device_while_its_will_waits_counts_when_it_is_due() {
    let (gateway, hub) = both();
    for n in 0..6 {
        left(&gateway, &format!("d{n}"), 12, 60);
    }
    gateway.revoke(r#"{"device": "d0"}"#);
    let path = gateway.folder.join("identities.toml");
    let identities = fs::read_to_string(&path).unwrap();
    let mut devices: Vec<String> = identities.split("[[device]]").map(str::to_owned).collect();
    let of =
        |id: &str, devices: &[String]| devices.iter().position(|text| text.contains(&format!("\"{id}\""))).unwrap();
    let (gone, off, other_key, narrowed) =
        (of("d1", &devices), of("d2", &devices), of("d3", &devices), of("d4", &devices));
    devices[off].push_str("enabled = false\n");
    devices[other_key] = format!("\nid = \"d3\"\nprimary_key = \"{}\"\n", support::device_key("another"));
    devices[narrowed].push_str("scope.publish = [\"devices/{device}/messages/events/other/#\"]\n");
    let last = of("d9", &devices);
    devices.remove(last);
    devices.remove(gone);
    fs::write(&path, devices.join("[[device]]")).unwrap();
    until("the change to be in force", PATIENCE, || {
        let mut peer = Peer::open(&gateway, V5);
        peer.send(&Connect::new(V5, "d9").packet());
        peer.take(PATIENCE).is_none_or(|connack| connack.body.get(1) != Some(&0))
    });
    until("the revocation to be in force", PATIENCE, || gateway.metric("tollgate_revocations", &[]) == 1.0);
    // The one from whom nothing was taken left last.
    hub.published(&topic("d5"), 1);
    left(&gateway, "d6", 1, 60);
    hub.published(&topic("d6"), 1);
    assert_eq!(hub.count(), 2);
}

#[test]
fn a_session_that_an_operator_ends_leaves_no_will_and_one_whose_token_ends_does() {
    let (gateway, hub) = both();
    left(&gateway, "d0", 10, 60);
    until("d0 to be away", PATIENCE, || gateway.metric("tollgate_sessions_away", &[]) == 1.0);
    assert_eq!(gateway.delete("/v1/sessions/d0").unwrap().0, 200);
    let mut connect = kept(V5, "d1", 60).will(&topic("d1"), b"gone", 1, false, &delay_of(0));
    connect.password = Some(sas_until("d1", unix_now() - 24).into());
    let mut peer = Peer::admitted_as(&gateway, &connect);
    assert_eq!(peer.closed(), Some(0xA0), "six seconds of the skew were left");
    hub.published(&topic("d1"), 1);
    left(&gateway, "d2", 10, 60);
    hub.published(&topic("d2"), 1);
    assert_eq!(hub.count(), 2);
}

#[test]
fn the_will_of_a_killed_gateways_device_is_sent_unless_the_device_comes_back() {
    for version in BOTH {
        let (mut gateway, hub) = both();
        let connect = |device: &str| kept(version, device, 60).will(&topic(device), b"gone", 1, false, &[]);
        let mut held: Vec<Peer> =
            ["d0", "d1", "d2", "d3"].map(|device| Peer::admitted_as(&gateway, &connect(device))).into();
        // A session that ends with its connection, one that left in order, and one whose delay runs.
        held.push(Peer::admitted_as(&gateway, &Connect::new(version, "d4").will(&topic("d4"), b"gone", 1, false, &[])));
        let mut in_order = Peer::admitted_as(&gateway, &connect("d5"));
        in_order.send(&[0xE0, 0]);
        assert_eq!(in_order.take(PATIENCE), None);
        if version == V5 {
            left(&gateway, "d6", 1, 60);
        }
        lasting(&gateway, version);
        gateway.process.kill();
        drop(held);
        let revocations = gateway.folder.join("revocations.jsonl");
        fs::write(revocations, "{\"device\": \"d1\"}\n").unwrap();
        gateway.restart();
        let back = Peer::admitted_as(&gateway, &kept(version, "d2", 60));
        for device in ["d0", "d3", "d4"] {
            assert_eq!(hub.published(&topic(device), 1)[0].publish(V5).3, b"gone");
        }
        if version == V5 {
            hub.published(&topic("d6"), 1);
        }
        drop(back);
        // What was sent is not sent again by a later start, and what it leaves is.
        lasting(&gateway, version);
        gateway.kill_and_restart();
        let connect = Connect::new(version, "d8").will(&topic("d8"), b"gone", 1, false, &[]);
        drop(Peer::admitted_as(&gateway, &connect));
        hub.published(&topic("d8"), 1);
        let connect = Connect::new(version, "d7").will(&topic("d7"), b"gone", 1, false, &[]);
        let peer = Peer::admitted_as(&gateway, &connect);
        gateway.kill_and_restart();
        drop(peer);
        hub.published(&topic("d7"), 1);
        for (device, count) in [("d0", 1), ("d1", 0), ("d2", 0), ("d3", 1), ("d4", 1), ("d5", 0)] {
            assert_eq!(hub.published(&topic(device), 0).len(), count, "{device}");
        }
    }
}

#[test]
fn the_will_of_a_session_that_a_drained_gateway_keeps_is_sent_by_the_next_start() {
    for version in BOTH {
        let (mut gateway, hub) = both();
        let connect = |device: &str| kept(version, device, 60).will(&topic(device), b"gone", 1, false, &[]);
        let held = ["d0", "d1"].map(|device| Peer::admitted_as(&gateway, &connect(device)));
        gateway.terminate();
        assert_eq!(gateway.ended(PATIENCE), Some(0));
        drop(held);
        assert_eq!(hub.count(), 0);
        gateway.restart();
        let back = Peer::admitted_as(&gateway, &kept(version, "d1", 60));
        hub.published(&topic("d0"), 1);
        drop(back);
        assert_eq!(hub.published(&topic("d1"), 0).len(), 0, "it was back in time");
    }
}

fn both() -> (Gateway, hub::Hub) {
    let hub = hub::Hub::start(V5);
    let gateway = Plan::new(support::Hub::At(hub.port(), V5)).shards(1).start();
    (gateway, hub)
}

/// A session that outlives its connection; 3.1.1 has no number for how long.
fn kept(version: Version, device: &str, expiry: u32) -> Connect {
    let mut connect = Connect::new(version, device);
    connect.flags = 0;
    if version == V5 {
        connect.properties = [&[0x11][..], &expiry.to_be_bytes()].concat();
    }
    connect
}

fn delay_of(seconds: u32) -> Vec<u8> {
    [&[0x18][..], &seconds.to_be_bytes()].concat()
}

fn topic(device: &str) -> String {
    format!("devices/{device}/messages/events/will")
}

/// A 5.0 device was here, and has left without a word.
fn left(gateway: &Gateway, device: &str, delay: u32, expiry: u32) {
    let connect = kept(V5, device, expiry).will(&topic(device), b"gone", 1, false, &delay_of(delay));
    Peer::admitted_as(gateway, &connect).abandon();
}

/// What the gateway was about to write down of its sessions is on the disk: it answers this when it is.
#[track_caller]
fn lasting(gateway: &Gateway, version: Version) {
    let mut peer = Peer::admitted_as(gateway, &kept(version, "d9", 60));
    peer.publish(0x34, "devices/d9/messages/events/mark", 7, &[], b"");
    peer.expect(&[0x50, 2, 0, 7]);
    peer.send(&[0x62, 2, 0, 7]);
    peer.expect(&[0x70, 2, 0, 7]);
}
