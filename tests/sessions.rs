//! Sessions that outlive their connections, and the gateway: what is subscribed to, what is half-way and what waits is
//! there when the device is back, and a hub is answered for a message when the device, or the disk, has it. Its lines are
//! many, since each way to lose something has its own story, told from connect to kill.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;
use support::{Answer, Commander, Device, Gateway, Hub, HubClient, Login, Plan, Version, jwt_with, sas, until};

const BOTH: [Version; 2] = [Version::V4, Version::V5];

#[test]
fn what_comes_while_a_device_is_away_waits_for_it_in_order() {
    waits_in_order(HubClient::Native);
}

#[test]
fn by_rumqttc_what_comes_while_a_device_is_away_waits_for_it_in_order() {
    waits_in_order(HubClient::Rumqttc);
}

fn waits_in_order(client: HubClient) {
    for version in BOTH {
        let hub = Commander::start(version);
        let gateway = gateway_by(client, &hub, version);
        let (device, present) = back(&gateway, version, "d0");
        assert!(!present);
        subscribed(&hub, device, "d0", 1).disconnect();
        for n in 1..=100 {
            hub.send("devices/d0/messages/devicebound/c", n.to_string().as_bytes(), n);
        }
        // Each is on the disk when the hub is answered for it.
        hub.answered_for(&(1..=100).collect::<Vec<_>>());
        let (mut device, present) = back(&gateway, version, "d0");
        assert!(present, "{version:?}");
        for n in 1..=100 {
            let (payload, packet_id) = message(&mut device, 1);
            assert_eq!(payload, n.to_string());
            device.acknowledge(packet_id);
        }
        device.ping();
        assert_eq!(device.next(PATIENCE), Answer::Pingresp, "nothing else");
        assert_eq!(hub.asked(), 1, "the filter stayed where it was");
        // The same session goes on: the next message comes at once.
        hub.send("devices/d0/messages/devicebound/c", b"live", 101);
        assert_eq!(message(&mut device, 1).0, "live");
    }
}

#[test]
fn a_killed_gateway_comes_back_with_subscriptions_and_what_was_not_acknowledged() {
    for version in BOTH {
        let hub = Commander::start(version);
        let mut gateway = gateway(&hub, version);
        let (device, _) = back(&gateway, version, "d0");
        let mut device = subscribed(&hub, device, "d0", 2);
        hub.send_exactly("devices/d0/messages/devicebound/c", b"seen", 1, 0);
        let (payload, first) = message(&mut device, 2);
        assert_eq!((payload.as_str(), device.is_copy), ("seen", false));
        hub.send_exactly("devices/d0/messages/devicebound/c", b"released", 2, 0);
        let (_, second) = message(&mut device, 2);
        device.received(second);
        assert_eq!(device.next(PATIENCE), Answer::Pubrel(second));
        hub.answered_for(&[1, 2]);
        let (other, _) = back(&gateway, version, "d1");
        subscribed(&hub, other, "d1", 1).disconnect();
        hub.send("devices/d1/messages/devicebound/c", b"while away", 3);
        hub.answered_for(&[1, 2, 3]);
        let connections = hub.connections();
        gateway.kill_and_restart();
        until("the gateway to come back", PATIENCE, || hub.connections() > connections);
        // What came before the device is back waits behind what it has not acknowledged.
        hub.send_exactly("devices/d0/messages/devicebound/c", b"later", 4, 0);
        hub.answered_for(&[1, 2, 3, 4]);
        let (mut device, present) = back(&gateway, version, "d0");
        assert!(present, "{version:?}");
        assert_eq!(message(&mut device, 2), ("seen".into(), first));
        assert!(device.is_copy, "the device may have it");
        assert_eq!(device.next(PATIENCE), Answer::Pubrel(second), "and it has this one");
        let (payload, third) = message(&mut device, 2);
        assert_eq!((payload.as_str(), device.is_copy), ("later", false));
        assert!(third != first && third != second);
        device.complete(second);
        device.received(first);
        assert_eq!(device.next(PATIENCE), Answer::Pubrel(first));
        let (mut other, present) = back(&gateway, version, "d1");
        assert!(present);
        assert_eq!(message(&mut other, 1).0, "while away");
        // What is at its end does not come again, whoever is killed.
        device.complete(first);
        device.received(third);
        assert_eq!(device.next(PATIENCE), Answer::Pubrel(third));
        device.complete(third);
        device.disconnect();
        // It ended in order: the gateway writes what it knows before it goes.
        gateway.terminate();
        until("the gateway to end", PATIENCE, || gateway.process.ended().is_some());
        gateway.restart();
        until("one message to wait", PATIENCE, || gateway.metric("tollgate_session_messages", &[]) == 1.0);
        gateway.kill_and_restart();
        let (mut device, present) = back(&gateway, version, "d0");
        assert!(present);
        device.ping();
        assert_eq!(device.next(PATIENCE), Answer::Pingresp);
    }
}

#[test]
fn by_rumqttc_a_killed_gateway_comes_back_with_subscriptions_and_what_was_not_acknowledged() {
    let commands = |device: &str| format!("devices/{device}/messages/devicebound/c");
    for version in BOTH {
        let hub = Commander::start(version);
        let mut gateway = gateway_by(HubClient::Rumqttc, &hub, version);
        let (device, _) = back(&gateway, version, "d0");
        let mut device = subscribed(&hub, device, "d0", 1);
        hub.send(&commands("d0"), b"seen", 1);
        let (payload, first) = message(&mut device, 1);
        assert_eq!((payload.as_str(), device.is_copy), ("seen", false));
        hub.send(&commands("d0"), b"acknowledged", 2);
        let (_, second) = message(&mut device, 1);
        device.acknowledge(second);
        hub.answered_for(&[1, 2]);
        let (other, _) = back(&gateway, version, "d1");
        subscribed(&hub, other, "d1", 1).disconnect();
        hub.send(&commands("d1"), b"while away", 3);
        hub.answered_for(&[1, 2, 3]);
        let connections = hub.connections();
        gateway.kill_and_restart();
        until("the gateway to come back", PATIENCE, || hub.connections() > connections);
        // What came before the device is back waits behind what it has not acknowledged.
        hub.send(&commands("d0"), b"later", 4);
        hub.answered_for(&[1, 2, 3, 4]);
        let (mut device, present) = back(&gateway, version, "d0");
        assert!(present, "{version:?}");
        assert_eq!(message(&mut device, 1), ("seen".into(), first));
        assert!(device.is_copy, "the device may have it");
        let (mut payload, mut third) = message(&mut device, 1);
        if payload == "acknowledged" {
            // Its PUBACK may have come too late to be written.
            assert!(device.is_copy);
            device.acknowledge(third);
            (payload, third) = message(&mut device, 1);
        }
        assert_eq!((payload.as_str(), device.is_copy), ("later", false));
        device.acknowledge(first);
        device.acknowledge(third);
        let (mut other, present) = back(&gateway, version, "d1");
        assert!(present);
        assert_eq!(message(&mut other, 1).0, "while away");
    }
}

#[test]
fn a_message_of_a_device_is_forwarded_once_also_when_it_comes_again_after_a_kill() {
    for version in BOTH {
        let hub = Commander::start(version);
        let mut gateway = gateway(&hub, version);
        let (mut device, _) = back(&gateway, version, "d0");
        let publish = |bits: u8| {
            let mut packet = support::publish_packet(version, "devices/d0/messages/events/", b"once", 2, 7);
            packet[0] |= bits;
            packet
        };
        device.send(&publish(0));
        assert_eq!(device.next(PATIENCE), Answer::Pubrec(7, 0));
        accepted(&gateway, 1);
        drop(device);
        gateway.kill_and_restart();
        let (mut device, present) = back(&gateway, version, "d0");
        assert!(present);
        device.send(&publish(8));
        assert!(matches!(device.next(PATIENCE), Answer::Pubrec(7, _)));
        device.release(7);
        assert_eq!(device.next(PATIENCE), Answer::Pubcomp(7, 0));
        // Behind it, one that counts.
        device.publish_acknowledged("devices/d0/messages/events/", b"another");
        accepted(&gateway, 1);
        drop(device);
        gateway.kill_and_restart();
        let (mut device, _) = back(&gateway, version, "d0");
        device.send(&publish(0));
        assert_eq!(device.next(PATIENCE), Answer::Pubrec(7, 0), "another message under the same packet id");
        accepted(&gateway, 1);
    }
}

#[test]
fn who_has_a_pubrec_has_it_forwarded_once_however_soon_the_gateway_is_killed() {
    for version in BOTH {
        let hub = Commander::start(version);
        let mut gateway = gateway(&hub, version);
        let (mut device, _) = back(&gateway, version, "d0");
        for round in 0..10 {
            let mut packet = support::publish_packet(version, "devices/d0/messages/events/", b"once", 2, 7);
            device.send(&packet);
            assert_eq!(device.next(PATIENCE), Answer::Pubrec(7, 0));
            gateway.kill_and_restart();
            let (again, present) = back(&gateway, version, "d0");
            assert!(present, "{version:?}, {round}");
            device = again;
            packet[0] |= 8;
            device.send(&packet);
            assert!(matches!(device.next(PATIENCE), Answer::Pubrec(7, _)));
            device.release(7);
            assert_eq!(device.next(PATIENCE), Answer::Pubcomp(7, 0));
            // Behind it, one that counts.
            device.publish_acknowledged("devices/d0/messages/events/", b"another");
            accepted(&gateway, 1);
        }
    }
}

#[test]
fn a_newcomer_takes_over_what_is_half_way_and_one_that_begins_anew_gets_nothing() {
    for version in BOTH {
        let hub = Commander::start(version);
        let gateway = gateway(&hub, version);
        let (device, _) = back(&gateway, version, "d0");
        let mut device = subscribed(&hub, device, "d0", 1);
        hub.send("devices/d0/messages/devicebound/c", b"half-way", 1);
        let (_, packet_id) = message(&mut device, 1);
        let (mut newcomer, present) = back(&gateway, version, "d0");
        assert!(present);
        assert_eq!((message(&mut newcomer, 1), newcomer.is_copy), (("half-way".into(), packet_id), true));
        newcomer.acknowledge(packet_id);
        assert_eq!(device.closed(PATIENCE), (version == Version::V5).then_some(0x8E));
        hub.answered_for(&[1]);
        newcomer.disconnect();
        hub.send("devices/d0/messages/devicebound/c", b"given up", 2);
        hub.answered_for(&[1, 2]);
        let clean = gateway.connect(version, "d0");
        assert!(!clean.session_present);
        until("the filter to be given back", PATIENCE, || hub.filters().is_empty());
        drop(clean);
        let (mut device, present) = back(&gateway, version, "d0");
        assert!(!present, "it ended with the connection that began anew");
        device.ping();
        assert_eq!(device.next(PATIENCE), Answer::Pingresp);
    }
}

#[test]
fn a_session_ends_when_its_time_is_up_and_no_later_than_the_site_allows() {
    let hub = Commander::start(Version::V5);
    let gateway = Plan::new(Hub::At(hub.port(), Version::V5)).shards(1).limit("[session]\nexpiry_max = \"1h\"").start();
    let mut device = gateway.open(Version::V5);
    let login = Login { session: Some(1), ..Login::new(Version::V5, "d0", &sas("d0")) };
    assert_eq!(device.log_in(&login), Answer::Connack(0));
    subscribed(&hub, device, "d0", 1).disconnect();
    until("the session to end", PATIENCE, || hub.filters().is_empty());
    assert!(!back(&gateway, Version::V5, "d0").1);
    // CONNACK says what was made of a longer wish (MQTT 5.0 §3.2.2.3.2).
    let mut device = gateway.open(Version::V5);
    device.send(&Login { session: Some(u32::MAX), ..login.clone() }.packet());
    let connack = device.next_bytes(PATIENCE);
    let expected = [0x11, 0, 0, 0x0E, 0x10];
    assert!(connack.windows(5).any(|bytes| bytes == expected), "{connack:02x?}");
    // DISCONNECT may change it (§3.14.2.2.2): 0 ends the session with the connection.
    let mut device = subscribed(&hub, device, "d0", 1);
    device.send(&[0xE0, 7, 0, 5, 0x11, 0, 0, 0, 0]);
    until("the session to end", PATIENCE, || hub.filters().is_empty());
    assert!(!back(&gateway, Version::V5, "d0").1);
}

#[test]
fn a_device_that_is_revoked_or_closed_loses_its_session_also_while_it_is_away() {
    let hub = Commander::start(Version::V5);
    let gateway = gateway(&hub, Version::V5);
    for device in ["d0", "d1", "d2"] {
        let (connected, _) = back(&gateway, Version::V5, device);
        subscribed(&hub, connected, device, 1).disconnect();
    }
    until("three to be away", PATIENCE, || gateway.metric("tollgate_sessions_away", &[]) == 3.0);
    let (status, list) = gateway.get("/v1/sessions?device=d1").unwrap();
    assert!(status == 200 && list.contains("\"state\":\"away\"") && list.contains("\"queued\":0"), "{list}");
    gateway.revoke("{\"device\": \"d0\"}");
    until("the filter of d0 to be given back", PATIENCE, || {
        hub.filters().iter().all(|held| held != "devices/d0/messages/devicebound/c")
    });
    assert_eq!(gateway.delete("/v1/sessions/d1").unwrap().0, 200);
    until("the filter of d1 to be given back", PATIENCE, || hub.filters() == ["devices/d2/messages/devicebound/c"]);
    assert!(!back(&gateway, Version::V5, "d1").1 && back(&gateway, Version::V5, "d2").1);
    assert_eq!(gateway.delete("/v1/sessions/d9").unwrap().0, 404);
}

#[test]
fn a_session_that_waits_gives_a_narrower_token_only_what_it_covers() {
    let hub = Commander::start(Version::V5);
    let gateway = Plan::new(Hub::At(hub.port(), Version::V5)).shards(1).identities_and(NARROWING).start();
    let (device, _) = back(&gateway, Version::V5, "d0");
    let mut device = subscribed(&hub, device, "d0", 1);
    assert_eq!(device.subscribe("devices/d0/messages/devicebound/other", 1), 1);
    device.disconnect();
    for (packet_id, last) in [(1, "c"), (2, "other")] {
        hub.send(&format!("devices/d0/messages/devicebound/{last}"), last.as_bytes(), packet_id);
    }
    hub.answered_for(&[1, 2]);
    let claims = json!({"iss": "https://acl.example", "acl": {"sub": ["devices/d0/messages/devicebound/other"]}});
    let narrow = Login { session: Some(60), ..Login::new(Version::V5, "d0", &jwt_with("d0", claims)) };
    let mut device = gateway.open(Version::V5).admitted(&narrow);
    assert!(device.session_present);
    assert_eq!(message(&mut device, 1).0, "other");
    until("the other filter to be given back", PATIENCE, || hub.filters() == ["devices/d0/messages/devicebound/other"]);
    device.ping();
    assert_eq!(device.next(PATIENCE), Answer::Pingresp, "nothing else");
    // Nobody else gets it, whatever it says.
    let mut stranger = gateway.open(Version::V5);
    let login = Login { session: Some(60), ..Login::new(Version::V5, "d0", &sas("d1")) };
    assert!(matches!(stranger.log_in(&login), Answer::Connack(code) if code >= 0x80));
}

#[test]
fn a_hub_is_answered_for_a_message_when_the_device_has_it() {
    answered_in_order(HubClient::Native);
}

#[test]
fn by_rumqttc_a_hub_is_answered_for_a_message_when_the_device_has_it() {
    answered_in_order(HubClient::Rumqttc);
}

fn answered_in_order(client: HubClient) {
    for version in BOTH {
        let hub = Commander::start(version);
        let gateway = gateway_by(client, &hub, version);
        let device = gateway.connect(version, "d0");
        let mut device = subscribed(&hub, device, "d0", 1);
        hub.send("devices/d0/messages/devicebound/c", b"a", 1);
        hub.send("devices/d0/messages/devicebound/c", b"b", 2);
        let (first, second) = (message(&mut device, 1).1, message(&mut device, 1).1);
        // What a hub asks after has no answer yet: it comes behind the answers to messages.
        device.acknowledge(second);
        device.ping();
        assert_eq!(device.next(PATIENCE), Answer::Pingresp);
        assert_eq!(hub.answered(), [0; 0], "in their order");
        device.acknowledge(first);
        hub.answered_for(&[1, 2]);
        // A connection that is lost takes its session with it: nobody will have this one.
        hub.send("devices/d0/messages/devicebound/c", b"c", 3);
        message(&mut device, 1);
        drop(device);
        hub.answered_for(&[1, 2, 3]);
        // Half of a connection of the hub's: what it was not answered for it sends again, and the device has it once.
        let device = gateway.connect(version, "d0");
        let mut device = subscribed(&hub, device, "d0", 1);
        hub.send("devices/d0/messages/devicebound/c", b"d", 4);
        let (_, packet_id) = message(&mut device, 1);
        let connections = hub.connections();
        hub.cut();
        until("the gateway to come back", PATIENCE, || hub.connections() > connections);
        hub.send_as("devices/d0/messages/devicebound/c", b"d", 4, 8);
        device.acknowledge(packet_id);
        hub.answered_for(&[1, 2, 3, 4]);
        device.ping();
        assert_eq!(device.next(PATIENCE), Answer::Pingresp, "no second copy");
    }
}

#[test]
fn a_message_of_a_hub_with_qos_2_reaches_the_device_once_however_often_the_hub_sends_it() {
    let topic = "devices/d0/messages/devicebound/c";
    for (version, lasts) in BOTH.into_iter().flat_map(|version| [(version, true), (version, false)]) {
        let hub = Commander::start(version);
        let gateway = gateway(&hub, version);
        let device = if lasts { back(&gateway, version, "d0").0 } else { gateway.connect(version, "d0") };
        let mut device = subscribed(&hub, device, "d0", 2);
        let cut = |hub: &Commander| {
            let connections = hub.connections();
            hub.cut();
            until("the gateway to come back", PATIENCE, || hub.connections() > connections);
        };
        assert_eq!(hub.granted(topic), Some(2));
        hub.hold_back();
        hub.send_exactly(topic, b"once", 7, 0);
        let (_, packet_id) = message(&mut device, 2);
        // Lost before its PUBREC, or after it.
        cut(&hub);
        hub.send_exactly(topic, b"once", 7, 8);
        device.received(packet_id);
        assert_eq!(device.next(PATIENCE), Answer::Pubrel(packet_id));
        device.complete(packet_id);
        until("PUBREC", PATIENCE, || hub.answered().contains(&7));
        // PUBREC is lost, and again; the second time the hub has forgotten DUP.
        for bits in [8, 0] {
            cut(&hub);
            let answered = hub.answered().len();
            hub.send_exactly(topic, b"once", 7, bits);
            until("PUBREC again", PATIENCE, || hub.answered().len() > answered);
        }
        cut(&hub);
        hub.say(&[0x62, 2, 0, 7]);
        until("PUBCOMP", PATIENCE, || hub.completed() == [7]);
        hub.send_exactly(topic, b"another", 7, 0);
        assert_eq!(message(&mut device, 2).0, "another", "and no second copy before it");
    }
}

#[test]
fn by_rumqttc_a_hub_is_asked_for_no_more_than_qos_1() {
    let topic = "devices/d0/messages/devicebound/c";
    for version in BOTH {
        let hub = Commander::start(version);
        let gateway = gateway_by(HubClient::Rumqttc, &hub, version);
        let mut device = gateway.connect(version, "d0");
        assert_eq!(device.subscribe(topic, 2), 1);
        hub.holds(topic);
        assert_eq!(hub.granted(topic), Some(1), "of QoS 2 rumqttc would answer before the device has it");
        hub.send(topic, b"a", 1);
        let (_, packet_id) = message(&mut device, 1);
        device.acknowledge(packet_id);
        hub.answered_for(&[1]);
        assert_eq!(hub.connections(), 1);
    }
}

#[test]
fn a_device_that_reads_and_never_answers_is_kept_no_more_than_all_sessions_may() {
    let hub = Commander::start(Version::V5);
    let limit = "[session]\nsize_max = \"1 MiB\"";
    let gateway = Plan::new(Hub::At(hub.port(), Version::V5)).shards(1).limit(limit).start();
    let (silent, _) = back(&gateway, Version::V5, "d0");
    let mut silent = subscribed(&hub, silent, "d0", 1);
    let (other, _) = back(&gateway, Version::V5, "d1");
    let mut other = subscribed(&hub, other, "d1", 1);
    let (large, sent) = (vec![b'x'; 64 << 10], 40);
    for n in 1..=sent {
        hub.send("devices/d0/messages/devicebound/c", &large, n);
    }
    let dropped = || gateway.metric("tollgate_dropped_total", &["reason=\"sessions_full\""]);
    hub.answered_for(&(1..=sent).collect::<Vec<_>>());
    // As many as fit beside their topics.
    until("the rest to be counted", PATIENCE, || dropped() == f64::from(sent) - 15.0);
    let packet_ids: Vec<u16> = (0..15).map(|_| message(&mut silent, 1).1).collect();
    silent.ping();
    assert_eq!(silent.next(PATIENCE), Answer::Pingresp, "nothing else");
    let bytes = || gateway.metric("tollgate_session_bytes", &[]);
    until("them to be shown", PATIENCE, || bytes() > 900.0 * 1024.0);
    assert!(bytes() <= 1024.0 * 1024.0);
    // What one device does not answer for is taken from all.
    hub.send("devices/d1/messages/devicebound/c", &large, 100);
    until("another to be counted", PATIENCE, || dropped() == f64::from(sent) - 14.0);
    packet_ids.into_iter().for_each(|packet_id| silent.acknowledge(packet_id));
    until("nothing to be kept", PATIENCE, || bytes() == 0.0);
    hub.send("devices/d1/messages/devicebound/c", b"small", 101);
    assert_eq!(message(&mut other, 1).0, "small");
}

#[test]
fn a_device_that_never_answers_holds_a_hub_up_once_and_no_other_device() {
    held_up_once(HubClient::Native);
}

#[test]
fn by_rumqttc_a_device_that_never_answers_holds_a_hub_up_once_and_no_other_device() {
    held_up_once(HubClient::Rumqttc);
}

fn held_up_once(client: HubClient) {
    let hub = Commander::start(Version::V4);
    let gateway = gateway_by(client, &hub, Version::V4);
    let silent = gateway.connect(Version::V4, "d0");
    let mut silent = subscribed(&hub, silent, "d0", 1);
    let (patient, _) = back(&gateway, Version::V4, "d1");
    let mut patient = subscribed(&hub, patient, "d1", 1);
    hub.send("devices/d0/messages/devicebound/c", b"a", 1);
    message(&mut silent, 1);
    let began = Instant::now();
    hub.send("devices/d1/messages/devicebound/c", b"b", 2);
    message(&mut patient, 1);
    hub.answered_for(&[1, 2]);
    let held = began.elapsed();
    assert!(held > Duration::from_secs(1) && held < Duration::from_secs(6), "{held:?}");
    // From here on nobody waits for the first, and what the second does not answer is on the disk.
    for n in 3..20 {
        hub.send("devices/d0/messages/devicebound/c", b"more", n);
    }
    hub.answered_for(&(1..20).collect::<Vec<_>>());
    assert!(began.elapsed() - held < Duration::from_secs(1));
}

#[test]
fn what_is_damaged_on_the_disk_is_set_aside_and_the_rest_is_served() {
    let hub = Commander::start(Version::V5);
    let mut gateway = gateway(&hub, Version::V5);
    for device in ["d0", "d1"] {
        let (connected, _) = back(&gateway, Version::V5, device);
        subscribed(&hub, connected, device, 1).disconnect();
        hub.send(&format!("devices/{device}/messages/devicebound/c"), b"waits", u16::from(device.as_bytes()[1]));
    }
    until("both to be written", PATIENCE, || hub.answered().len() == 2);
    gateway.process.kill();
    // The middle of the newest segment: more that is whole follows it.
    let (file, mut bytes) = newest_segment(&gateway);
    let at = bytes.windows(4).position(|window| window == b"TGRP").unwrap() + 200;
    bytes[at] ^= 0x40;
    fs::write(&file, &bytes).unwrap();
    gateway.restart();
    until("the alarm", PATIENCE, || gateway.metric("tollgate_alarm", &["kind=\"sessions\""]) == 1.0);
    let (mut device, _) = back(&gateway, Version::V5, "d5");
    device.ping();
    assert_eq!(device.next(PATIENCE), Answer::Pingresp);
    let kept = fs::read_dir(file.parent().unwrap()).unwrap();
    assert!(kept.filter_map(Result::ok).any(|entry| entry.file_name().to_string_lossy().contains(".damaged-")));
}

#[test]
fn sessions_find_their_homes_with_another_number_of_shards() {
    let hub = Commander::start(Version::V5);
    let mut gateway = Plan::new(Hub::At(hub.port(), Version::V5)).shards(1).start();
    let devices: Vec<String> = (0..10).map(|n| format!("d{n}")).collect();
    for device in &devices {
        let (connected, _) = back(&gateway, Version::V5, device);
        subscribed(&hub, connected, device, 1).disconnect();
    }
    for (n, device) in (1..).zip(&devices) {
        hub.send(&format!("devices/{device}/messages/devicebound/c"), device.as_bytes(), n);
    }
    until("all to be written", PATIENCE, || hub.answered().len() == devices.len());
    gateway.process.kill();
    let file = gateway.folder.join("gateway.toml");
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("shards = 1", "shards = 3")).unwrap();
    gateway.restart();
    for device in &devices {
        let (mut connected, present) = back(&gateway, Version::V5, device);
        assert!(present, "{device}");
        assert_eq!(message(&mut connected, 1).0, *device);
    }
}

#[test]
fn a_queue_has_an_end_and_what_was_promised_first_is_kept() {
    let hub = Commander::start(Version::V5);
    let gateway = Plan::new(Hub::At(hub.port(), Version::V5)).shards(1).limit("[session]\nqueue_max = 3").start();
    let (device, _) = back(&gateway, Version::V5, "d0");
    subscribed(&hub, device, "d0", 1).disconnect();
    for n in 1..=5 {
        hub.send("devices/d0/messages/devicebound/c", n.to_string().as_bytes(), n);
    }
    hub.answered_for(&[1, 2, 3, 4, 5]);
    until("two to be counted", PATIENCE, || {
        gateway.metric("tollgate_dropped_total", &["reason=\"queue_full\""]) == 2.0
    });
    let (mut device, _) = back(&gateway, Version::V5, "d0");
    let payloads: Vec<String> = (0..3).map(|_| message(&mut device, 1).0).collect();
    assert_eq!(payloads, ["1", "2", "3"]);
}

/// A gateway with one connection to this hub.
fn gateway(hub: &Commander, version: Version) -> Gateway {
    gateway_by(HubClient::Native, hub, version)
}

fn gateway_by(client: HubClient, hub: &Commander, version: Version) -> Gateway {
    Plan::new(Hub::At(hub.port(), version)).client(client).shards(1).start()
}

/// A device that wants its session to go on, and whether it did.
#[track_caller]
fn back(gateway: &Gateway, version: Version, device: &str) -> (Device, bool) {
    let login = Login { session: Some(3_600), ..Login::new(version, device, &sas(device)) };
    let connected = gateway.open(version).admitted(&login);
    let present = connected.session_present;
    (connected, present)
}

/// It subscribes to its commands, and the hub knows.
#[track_caller]
fn subscribed(hub: &Commander, mut device: Device, name: &str, qos: u8) -> Device {
    let filter = format!("devices/{name}/messages/devicebound/c");
    assert_eq!(device.subscribe(&filter, qos), qos);
    hub.holds(&filter);
    device
}

/// The next message: payload and packet id.
#[track_caller]
fn message(device: &mut Device, expected_qos: u8) -> (String, u16) {
    match device.next(PATIENCE) {
        Answer::Publish { payload, qos, packet_id, .. } if qos == expected_qos => {
            (String::from_utf8(payload).unwrap(), packet_id)
        }
        other => panic!("{other:?} instead of a message of QoS {expected_qos}"),
    }
}

/// So many messages were taken from devices, and no more.
#[track_caller]
fn accepted(gateway: &Gateway, messages: u32) {
    let count = || gateway.metric("tollgate_publishes_total", &["result=\"accepted\""]);
    until("messages to be counted", PATIENCE, || count() >= f64::from(messages));
    assert_eq!(count(), f64::from(messages));
}

fn newest_segment(gateway: &Gateway) -> (std::path::PathBuf, Vec<u8>) {
    let folder = gateway.folder.join("var/sessions");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let newest = files.filter(|path| path.extension().is_some_and(|end| end == "seg")).max().unwrap();
    let bytes = fs::read(&newest).unwrap();
    (newest, bytes)
}

/// An issuer whose tokens say what they are good for.
const NARROWING: &str = r#"
[[issuer]]
name = "acl"
iss = "https://acl.example"
audience = ["localhost"]
algorithms = ["HS256"]
scope_claim = "acl"
[[issuer.key]]
kid = "k1"
secret_file = "issuer.secret"
key_encoding = "utf8"
"#;
const PATIENCE: Duration = Duration::from_secs(10);
