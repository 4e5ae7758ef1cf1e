//! What PUBACK means while the hub is killed, slow, silent or away: nothing acknowledged is lost, order holds, memory and
//! processor time are bounded, sessions stay.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    collections::VecDeque,
    thread,
    time::{Duration, Instant},
};

use support::{Answer, Device, Gateway, Hub, HubClient, Plan, Recorder, Version, publish_packet, until};

#[test]
fn nothing_acknowledged_is_lost_when_a_hub_of_3_1_1_is_killed_under_load() {
    hub_killed_under_load(Version::V4, HubClient::Native);
}

#[test]
fn nothing_acknowledged_is_lost_when_a_hub_of_5_0_is_killed_under_load() {
    hub_killed_under_load(Version::V5, HubClient::Native);
}

#[test]
fn by_rumqttc_nothing_acknowledged_is_lost_when_a_hub_of_3_1_1_is_killed_under_load() {
    hub_killed_under_load(Version::V4, HubClient::Rumqttc);
}

#[test]
fn by_rumqttc_nothing_acknowledged_is_lost_when_a_hub_of_5_0_is_killed_under_load() {
    hub_killed_under_load(Version::V5, HubClient::Rumqttc);
}

#[test]
fn a_hub_that_closes_on_every_tenth_message_loses_and_reorders_nothing() {
    hub_closes_on_every_tenth(HubClient::Native);
}

#[test]
fn by_rumqttc_a_hub_that_closes_on_every_tenth_message_loses_and_reorders_nothing() {
    hub_closes_on_every_tenth(HubClient::Rumqttc);
}

fn hub_closes_on_every_tenth(client: HubClient) {
    let mut recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).client(client).start();
    recorder.tell("close every 10");
    thread::scope(|scope| {
        let devices = [(0, Version::V4), (1, Version::V5), (2, Version::V5)];
        for (number, version) in devices {
            let gateway = &gateway;
            scope.spawn(move || publish_all(gateway, version, number, 25));
        }
    });
    for number in 0..3 {
        assert_in_order(&recorder, number, 25);
    }
}

#[test]
fn where_only_the_hub_is_a_witness_one_that_never_acknowledges_makes_no_puback_and_no_spin() {
    hub_never_acknowledges(HubClient::Native);
}

#[test]
fn by_rumqttc_where_only_the_hub_is_a_witness_one_that_never_acknowledges_makes_no_puback_and_no_spin() {
    hub_never_acknowledges(HubClient::Rumqttc);
}

fn hub_never_acknowledges(client: HubClient) {
    let mut recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).client(client).ack("hub").start();
    recorder.tell("ack hold");
    let mut device = gateway.connect(Version::V5, "d0");
    let ids: Vec<u16> = (0..10).map(|n| device.publish(&events(0), n.to_string().as_bytes(), 1)).collect();
    until("the hub to have them", PATIENCE, || recorder.payloads(&events(0)).len() == ids.len());
    let before = gateway.process.cpu_ms();
    assert_eq!(device.next(WATCHED), Answer::Silence, "no witness, no PUBACK");
    assert_quiet(&gateway, before);
    recorder.tell("ack now");
    for id in ids {
        assert_eq!(device.next(PATIENCE), Answer::Puback(id, 0));
    }
}

#[test]
fn where_only_the_hub_is_a_witness_a_slow_one_is_waited_for() {
    hub_is_slow(HubClient::Native);
}

#[test]
fn by_rumqttc_where_only_the_hub_is_a_witness_a_slow_one_is_waited_for() {
    hub_is_slow(HubClient::Rumqttc);
}

fn hub_is_slow(client: HubClient) {
    let mut recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V4)).client(client).ack("hub").start();
    recorder.tell("ack after 400");
    let mut device = gateway.connect(Version::V4, "d0");
    let started = Instant::now();
    device.publish_acknowledged(&events(0), b"slow");
    assert!(started.elapsed() >= Duration::from_millis(400), "acknowledged after {:?}", started.elapsed());
    assert_eq!(recorder.payloads(&events(0)), ["slow"]);
}

#[test]
fn a_hub_that_is_away_pushes_back_on_devices_within_bounded_memory_and_comes_back_in_order() {
    hub_is_away(HubClient::Native);
}

#[test]
fn by_rumqttc_a_hub_that_is_away_pushes_back_on_devices_within_bounded_memory_and_comes_back_in_order() {
    hub_is_away(HubClient::Rumqttc);
}

fn hub_is_away(client: HubClient) {
    let mut recorder = Recorder::start();
    // So many that the link's log is full before the window of one device is.
    let plan =
        Plan::new(Hub::At(recorder.port(), Version::V5)).client(client).ack("hub").limit("receive_maximum = 5000");
    let gateway = plan.shards(1).start();
    let mut devices: Vec<Device> = (0..3).map(|n| gateway.connect(version_of(n), &format!("d{n}"))).collect();
    for (n, device) in devices.iter_mut().enumerate() {
        device.publish_acknowledged(&events(n), b"before");
    }
    recorder.kill();
    until("the gateway to see it", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);

    let flood: Vec<Vec<u8>> = (0..devices.len()).map(flood_of).collect();
    let resident_before = gateway.process.resident_kib();
    let taken: Vec<usize> = devices
        .iter_mut()
        .zip(&flood)
        .map(|(device, bytes)| device.write_until_blocked(bytes, Duration::from_millis(500)))
        .collect();
    let whole: usize = flood.iter().map(Vec::len).sum();
    assert!(taken.iter().sum::<usize>() < whole * 3 / 4, "the gateway stops reading: took {taken:?} of {whole}");
    let cpu_before = gateway.process.cpu_ms();
    for device in &mut devices {
        assert_eq!(device.next(WATCHED / 4), Answer::Silence, "no PUBACK while the hub is away");
    }
    assert_quiet(&gateway, cpu_before);
    let grown = gateway.process.resident_kib().saturating_sub(resident_before);
    assert!(grown < 48 * 1024, "grew by {grown} KiB");

    // A device may still come, and is admitted: the hub's absence is not its fault.
    let mut late = gateway.connect(Version::V5, "d9");
    late.publish(&events(9), b"late", 1);
    assert_eq!(late.next(Duration::from_millis(300)), Answer::Silence);

    recorder.restart();
    for ((device, bytes), taken) in devices.iter_mut().zip(&flood).zip(taken) {
        device.send(bytes.get(taken..).unwrap_or_default());
    }
    for device in &mut devices {
        for n in 0..FLOOD {
            assert_eq!(device.next(PATIENCE), Answer::Puback(flood_id(n), 0));
        }
    }
    assert_eq!(late.next(PATIENCE), Answer::Puback(1, 0));
    for n in 0..devices.len() {
        let arrived = first_occurrences(recorder.payload_heads(&events(n), 8).iter().map(|text| head_of(text)));
        let sent = std::iter::once("before".to_owned()).chain((0..FLOOD).map(|n| n.to_string()));
        assert!(arrived.iter().cloned().eq(sent), "device {n}, in order: {} arrived", arrived.len());
    }
}

/// Devices of both versions publish through windows of twenty; the hub is killed three times meanwhile.
fn hub_killed_under_load(hub: Version, client: HubClient) {
    const DEVICES: usize = 6;
    const MESSAGES: usize = 1_500;
    let mut recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), hub)).client(client).start();
    thread::scope(|scope| {
        for number in 0..DEVICES {
            let gateway = &gateway;
            scope.spawn(move || publish_all(gateway, version_of(number), number, MESSAGES));
        }
        for quarter in 1..4 {
            let enough = DEVICES * MESSAGES * quarter / 4;
            until("the load to go on", Duration::from_secs(60), || recorder.count() >= enough);
            recorder.kill();
            until("the gateway to see it", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);
            recorder.restart();
        }
    });
    for number in 0..DEVICES {
        assert_in_order(&recorder, number, MESSAGES);
    }
}

/// Publishes `0`, `1`, `2` … with QoS 1, at most twenty unacknowledged, until every one is acknowledged in order.
fn publish_all(gateway: &Gateway, version: Version, number: usize, count: usize) {
    let mut device = gateway.connect(version, &format!("d{number}"));
    let mut unacknowledged = VecDeque::new();
    let mut next = 0;
    while next < count || !unacknowledged.is_empty() {
        if next < count && unacknowledged.len() < 20 {
            unacknowledged.push_back(device.publish(&events(number), next.to_string().as_bytes(), 1));
            next += 1;
        } else {
            let oldest = unacknowledged.pop_front().expect("something is unacknowledged");
            assert_eq!(device.next(Duration::from_secs(40)), Answer::Puback(oldest, 0), "d{number} after {next}");
        }
    }
}

/// What the device was acknowledged is in the log, each at least once, the first of each in order.
fn assert_in_order(recorder: &Recorder, number: usize, count: usize) {
    // What was acknowledged from the disk is on its way.
    let arrived = || first_occurrences(recorder.payloads(&events(number)).into_iter());
    until("everything to arrive", PATIENCE, || arrived().len() == count);
    let arrived = arrived();
    let wrong = arrived.iter().enumerate().find(|(at, text)| at.to_string() != **text);
    assert_eq!(wrong, None, "device d{number}: out of order");
    assert_eq!(arrived.len(), count, "device d{number}: lost");
}

fn first_occurrences(payloads: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    payloads.filter(|payload| seen.insert(payload.clone())).collect()
}

/// The gateway used next to no processor time over [`WATCHED`].
fn assert_quiet(gateway: &Gateway, cpu_before_ms: u64) {
    let used = gateway.process.cpu_ms() - cpu_before_ms;
    assert!(used < 300, "used {used} ms of processor time in {WATCHED:?} of waiting");
}

fn flood_of(number: usize) -> Vec<u8> {
    let mut flood = Vec::new();
    for n in 0..FLOOD {
        let payload = format!("{n}:{}", "x".repeat(8 * 1024));
        let (version, topic) = (version_of(number), events(number));
        flood.extend_from_slice(&publish_packet(version, &topic, payload.as_bytes(), 1, flood_id(n)));
    }
    flood
}

/// Packet ids after the one of the first message.
fn flood_id(n: usize) -> u16 {
    u16::try_from(n + 2).expect("fewer messages than packet ids")
}

fn head_of(payload: &str) -> String {
    payload.split(':').next().unwrap_or_default().to_owned()
}

fn version_of(number: usize) -> Version {
    if number.is_multiple_of(2) { Version::V4 } else { Version::V5 }
}

fn events(number: usize) -> String {
    format!("devices/d{number}/messages/events/")
}

/// Of 8 KiB each: more than the gateway and the sockets may hold.
const FLOOD: usize = 1_500;
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a gateway is watched that has nothing to do.
const WATCHED: Duration = Duration::from_secs(2);
