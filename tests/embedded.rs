//! The hub inside: one process carries telemetry to the programs of the site, and their commands to devices.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use support::{Answer, Device, Hub, Login, Plan, Version, sas, until_some};

#[test]
fn telemetry_reaches_a_program_of_the_site_and_its_command_the_device() {
    let gateway = Plan::new(Hub::Embedded).start();
    for (version, of_program, device) in
        [(Version::V4, Version::V5, "d0"), (Version::V5, Version::V4, "d1"), (Version::V5, Version::V5, "d2")]
    {
        let mut program = gateway.connect(of_program, "service");
        let mut device_side = gateway.connect_tls(version, device);
        assert_eq!(program.subscribe("devices/+/messages/events/#", 1), 1);
        assert_eq!(device_side.subscribe(&format!("devices/{device}/messages/devicebound/#"), 1), 1);
        for qos in [0, 1] {
            let up = format!("devices/{device}/messages/events/{qos}");
            send(&mut device_side, &up, b"\x00up\xFF", qos);
            assert_eq!(received(&mut program), (up, b"\x00up\xFF".to_vec()));
            let down = format!("devices/{device}/messages/devicebound/{qos}");
            send(&mut program, &down, b"\xFFdown\x00", qos);
            assert_eq!(received(&mut device_side), (down, b"\xFFdown\x00".to_vec()));
        }
    }
}

#[test]
fn a_program_of_the_site_sees_every_device_in_its_own_order() {
    const MESSAGES: usize = 200;
    let gateway = Plan::new(Hub::Embedded).shards(2).start();
    let mut program = gateway.connect(Version::V4, "service");
    assert_eq!(program.subscribe("devices/+/messages/events/#", 1), 1);
    let mut devices: Vec<(String, Device)> =
        (0..5).map(|n| format!("d{n}")).map(|name| (name.clone(), gateway.connect(Version::V5, &name))).collect();
    for n in 0..MESSAGES {
        for (name, device) in &mut devices {
            device.publish_acknowledged(&format!("devices/{name}/messages/events/"), n.to_string().as_bytes());
        }
    }
    let mut next = std::collections::BTreeMap::new();
    for _ in 0..MESSAGES * devices.len() {
        let (topic, payload) = received(&mut program);
        let expected = next.entry(topic.clone()).or_insert(0);
        assert_eq!(String::from_utf8(payload).unwrap(), expected.to_string(), "{topic}");
        *expected += 1;
    }
}

/// What each shard has for the hub waits until sessions of the others are subscribed there again.
#[test]
fn after_a_kill_a_program_of_the_site_gets_the_first_words_of_devices_on_every_shard() {
    let mut gateway = Plan::new(Hub::Embedded).shards(4).limit("[session]\nsubscriptions_max = 1000").start();
    let mut program = first_connection(gateway.tcp, "service");
    // Those that matter are asked for last, and not at once.
    for filler in 0..600 {
        assert_eq!(program.subscribe(&format!("devices/{filler}/messages/events/#"), 1), 1);
    }
    for number in 0..DEVICES {
        assert_eq!(program.subscribe(&format!("devices/d{number}/messages/events/#"), 1), 1);
    }
    for round in 0..6 {
        let said = round.to_string();
        gateway.process.kill();
        gateway.run_again();
        thread::scope(|scope| {
            for number in 0..DEVICES {
                let (said, tcp) = (said.as_bytes(), gateway.tcp);
                scope.spawn(move || {
                    let mut device = first_connection(tcp, &format!("d{number}"));
                    device.publish_acknowledged(&format!("devices/d{number}/messages/events/"), said);
                });
            }
        });
        let mut program = first_connection(gateway.tcp, "service");
        assert!(program.session_present);
        let mut heard = BTreeSet::new();
        while heard.len() < DEVICES {
            // What was acknowledged just before the kill may come again.
            match program.next(PATIENCE) {
                Answer::Publish { topic, payload, packet_id, .. } => {
                    program.acknowledge(packet_id);
                    heard.extend((payload == said.as_bytes()).then_some(topic));
                }
                other => panic!("round {round}: {other:?} instead of a message; of {DEVICES} only {heard:?} came"),
            }
        }
        gateway.until_ready();
    }
}

/// As soon as the gateway admits anybody.
fn first_connection(tcp: SocketAddr, name: &str) -> Device {
    until_some("a connection", Duration::from_secs(60), || {
        let mut device = Device::try_open(tcp, Version::V5)?;
        let login = Login { session: Some(3600), ..Login::new(Version::V5, name, &sas(name)) };
        device.try_send(&login.packet()).ok()?;
        (device.next(PATIENCE) == Answer::Connack(0)).then_some(device)
    })
}

fn send(from: &mut Device, topic: &str, payload: &[u8], qos: u8) {
    if qos == 0 {
        from.publish(topic, payload, 0);
    } else {
        from.publish_acknowledged(topic, payload);
    }
}

/// Topic and payload of the next message, which is acknowledged. Its QoS is not compared: rumqttd delivers at the QoS of
/// the subscription, whatever the message was published with.
#[track_caller]
fn received(at: &mut Device) -> (String, Vec<u8>) {
    match at.next(PATIENCE) {
        Answer::Publish { topic, payload, qos, packet_id } => {
            if qos > 0 {
                at.acknowledge(packet_id);
            }
            (topic, payload)
        }
        other => panic!("{other:?} instead of a message"),
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
/// Of a [`Plan`].
const DEVICES: usize = 10;
