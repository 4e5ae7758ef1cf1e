//! The disk behind delivery: a hub that is away, slow or silent, a gateway that is killed, a disk that is full.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use support::{Answer, Device, Gateway, Hub, HubClient, Plan, Recorder, Version, publish_packet, until};

#[test]
fn a_healthy_hub_causes_no_disk_write_per_message() {
    healthy(HubClient::Native);
}

#[test]
fn by_rumqttc_a_healthy_hub_causes_no_disk_write_per_message() {
    healthy(HubClient::Rumqttc);
}

fn healthy(client: HubClient) {
    let recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).client(client).start();
    until("the hub", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) > 1.0);
    let mut device = gateway.connect(Version::V5, "d0");
    device.publish_acknowledged(&events(0), b"first");
    let (syncs, written) = (gateway.metric("tollgate_spool_syncs_total", &[]), spool_bytes(&gateway));
    for n in 0..500 {
        device.publish_acknowledged(&events(0), n.to_string().as_bytes());
    }
    assert_eq!(gateway.metric("tollgate_spool_syncs_total", &[]), syncs);
    assert_eq!(spool_bytes(&gateway), written);
    assert_eq!(recorder.count(), 501);
    let wear = |what: &str| gateway.metric(&format!("tollgate_spool_{what}_bytes_total"), &[]);
    assert_eq!((wear("appended"), wear("written")), (0.0, 0.0));
}

#[test]
fn what_spooling_costs_the_disk_is_counted() {
    let mut recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).start();
    recorder.kill();
    until("the gateway to see it", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);
    let before = spool_bytes(&gateway);
    let mut device = gateway.connect(Version::V5, "d0");
    for _ in 0..50 {
        device.publish_acknowledged(&events(0), &[b'x'; 100]);
    }
    let wear = |what: &str| gateway.metric(&format!("tollgate_spool_{what}_bytes_total"), &[]);
    until("the payloads to be counted", PATIENCE, || wear("appended") == 5_000.0);
    // Nothing was acknowledged or given back yet: the files grew by what was written.
    until("the files to be counted", PATIENCE, || wear("written") == (spool_bytes(&gateway) - before) as f64);
    assert!(wear("written") > 2.0 * wear("appended"), "{} for {}", wear("written"), wear("appended"));
    // Acknowledgements are written, too, and no payload with them.
    let written = wear("written");
    recorder.restart();
    until("the spool to be drained", PATIENCE, || gateway.metric("tollgate_spool_messages", &[]) == 0.0);
    until("acknowledgements to be written", PATIENCE, || wear("written") > written);
    assert_eq!(wear("appended"), 5_000.0);
}

#[test]
fn with_a_key_nothing_on_the_disk_can_be_read_and_without_it_nothing_starts() {
    let mut recorder = Recorder::start();
    let key_file = "[spool]\nkey_file = \"spool.key\"\n[limits]";
    let mut gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).launch(|folder| {
        let secret = "3q2+7wABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhs=\n";
        write_secret(&folder.join("spool.key"), secret);
        change(&folder.join("gateway.toml"), "[limits]", key_file);
    });
    gateway.until_ready();
    recorder.kill();
    let mut device = gateway.connect(Version::V5, "d0");
    for n in 0..20 {
        device.publish_acknowledged(&events(0), format!("reading number {n}").as_bytes());
    }
    gateway.process.kill();
    for text in ["reading number", "messages/events", "tollgate-device"] {
        assert!(!spool_holds(&gateway, text.as_bytes()), "{text}");
    }
    // Without its key, then with another.
    let gateway_toml = gateway.folder.join("gateway.toml");
    change(&gateway_toml, key_file, "[limits]");
    refuses_for_want_of_a_key(&mut gateway);
    change(&gateway_toml, "[limits]", key_file);
    let key = fs::read_to_string(gateway.folder.join("spool.key")).unwrap();
    write_secret(&gateway.folder.join("spool.key"), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n");
    refuses_for_want_of_a_key(&mut gateway);
    // Another before it.
    write_secret(&gateway.folder.join("spool.key"), &format!("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n{key}"));
    recorder.restart();
    gateway.restart();
    until("everything to arrive", PATIENCE, || first_occurrences(recorder.payloads(&events(0))).len() == 20);
    let arrived = first_occurrences(recorder.payloads(&events(0)));
    assert!(arrived.iter().enumerate().all(|(n, text)| *text == format!("reading number {n}")), "{arrived:?}");
}

#[track_caller]
fn refuses_for_want_of_a_key(gateway: &mut Gateway) {
    let before = gateway.process.log().len();
    gateway.run_again();
    assert_eq!(gateway.ended(PATIENCE), Some(1));
    let log = gateway.process.log();
    // It is folded to the width of a screen.
    let said = log.get(before..).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("is encrypted with the key ") && said.contains("`key_file` of [spool]"), "{said}");
}

fn spool_holds(gateway: &Gateway, text: &[u8]) -> bool {
    let files = fs::read_dir(gateway.folder.join("var/spool")).unwrap();
    let mut contents = files.map(|file| fs::read(file.unwrap().path()).unwrap());
    contents.any(|bytes| bytes.windows(text.len()).any(|window| window == text))
}

fn write_secret(file: &Path, text: &str) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

#[track_caller]
fn change(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn while_the_hub_is_away_messages_are_acknowledged_from_the_disk_and_reach_it_in_order_after_a_kill_of_the_gateway() {
    away_and_killed(HubClient::Native);
}

#[test]
fn by_rumqttc_while_the_hub_is_away_messages_are_acknowledged_from_the_disk_and_reach_it_in_order_after_a_kill_of_the_gateway()
 {
    away_and_killed(HubClient::Rumqttc);
}

fn away_and_killed(client: HubClient) {
    for hub in [Version::V4, Version::V5] {
        let mut recorder = Recorder::start();
        let mut gateway = Plan::new(Hub::At(recorder.port(), hub)).client(client).start();
        let mut devices: Vec<Device> = (0..3).map(|n| gateway.connect(version_of(n), &format!("d{n}"))).collect();
        for (n, device) in devices.iter_mut().enumerate() {
            device.publish_acknowledged(&events(n), b"0");
        }
        recorder.kill();
        for i in 1..200 {
            for (n, device) in devices.iter_mut().enumerate() {
                device.publish_acknowledged(&events(n), i.to_string().as_bytes());
            }
        }
        until("it to be shown", PATIENCE, || gateway.metric("tollgate_spool_messages", &[]) >= 597.0);
        assert!(gateway.metric("tollgate_spool_bytes", &[]) > 10_000.0);
        gateway.process.kill();
        drop(devices);
        gateway.run_again();
        gateway.until_ready();
        // What a device publishes now comes behind what waits.
        let mut late = gateway.connect(Version::V5, "d0");
        late.publish_acknowledged(&events(0), b"200");
        recorder.restart();
        until("the spool to be drained", PATIENCE, || gateway.metric("tollgate_spool_messages", &[]) == 0.0);
        for n in 0..3 {
            let expected = if n == 0 { 201 } else { 200 };
            let arrived = first_occurrences(recorder.payloads(&events(n)));
            assert!(arrived.iter().enumerate().all(|(at, text)| at.to_string() == *text), "device {n}: {arrived:?}");
            assert_eq!(arrived.len(), expected, "device {n}");
        }
        if hub == Version::V5 {
            each_message_has_one_id(&recorder);
        }
        // And direct again.
        let syncs = gateway.metric("tollgate_spool_syncs_total", &[]);
        for n in 0..50 {
            late.publish_acknowledged(&events(0), (201 + n).to_string().as_bytes());
        }
        until("nothing to wait", PATIENCE, || gateway.metric("tollgate_spool_messages", &[]) == 0.0);
        assert!(gateway.metric("tollgate_spool_syncs_total", &[]) < syncs + 50.0);
    }
}

#[test]
fn a_hub_that_never_acknowledges_holds_up_no_device() {
    never_acknowledges(HubClient::Native);
}

#[test]
fn by_rumqttc_a_hub_that_never_acknowledges_holds_up_no_device() {
    never_acknowledges(HubClient::Rumqttc);
}

fn never_acknowledges(client: HubClient) {
    let mut recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).client(client).window(20).start();
    recorder.tell("ack hold");
    let mut device = gateway.connect(Version::V5, "d0");
    let started = Instant::now();
    for n in 0..200 {
        device.publish_acknowledged(&events(0), n.to_string().as_bytes());
    }
    assert!(started.elapsed() < Duration::from_secs(15), "took {:?}", started.elapsed());
    recorder.tell("ack now");
    until("all to arrive", Duration::from_secs(60), || first_occurrences(recorder.payloads(&events(0))).len() == 200);
    let arrived = first_occurrences(recorder.payloads(&events(0)));
    assert!(arrived.iter().enumerate().all(|(at, text)| at.to_string() == *text), "{arrived:?}");
}

#[test]
fn with_ack_disk_a_healthy_hub_is_not_waited_for() {
    let mut recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V4)).ack("disk").start();
    recorder.tell("ack after 1000");
    let mut device = gateway.connect(Version::V4, "d0");
    let started = Instant::now();
    device.publish_acknowledged(&events(0), b"on the disk");
    assert!(started.elapsed() < Duration::from_millis(900), "acknowledged after {:?}", started.elapsed());
    assert!(gateway.metric("tollgate_spool_syncs_total", &[]) >= 0.0);
    until("it to arrive", PATIENCE, || recorder.payloads(&events(0)) == ["on the disk"]);
}

#[test]
fn a_full_spool_pushes_back_drops_nothing_and_goes_on_when_the_hub_is_there() {
    full(HubClient::Native);
}

#[test]
fn by_rumqttc_a_full_spool_pushes_back_drops_nothing_and_goes_on_when_the_hub_is_there() {
    full(HubClient::Rumqttc);
}

fn full(client: HubClient) {
    let mut recorder = Recorder::start();
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).client(client).shards(1);
    let plan = plan.limit("receive_maximum = 2000\n[spool]\nsize_max = \"2 MiB\"");
    let gateway = plan.start();
    recorder.kill();
    until("the gateway to see it", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);
    let mut devices: Vec<Device> = (0..3).map(|n| gateway.connect(version_of(n), &format!("d{n}"))).collect();
    let flood: Vec<Vec<u8>> = (0..3).map(|n| flood_of(n, FLOOD)).collect();
    let taken: Vec<usize> = devices
        .iter_mut()
        .zip(&flood)
        .map(|(device, bytes)| device.write_until_blocked(bytes, Duration::from_millis(1_500)))
        .collect();
    assert!(taken.iter().sum::<usize>() < flood.iter().map(Vec::len).sum(), "the gateway stops reading: {taken:?}");
    until("the alarm", PATIENCE, || gateway.metric("tollgate_alarm", &["kind=\"spool\""]) == 1.0);
    let on_disk = spool_bytes(&gateway);
    assert!(on_disk <= 2 << 20, "{on_disk} bytes on the disk");
    // Another device still finds room: nobody takes all.
    let mut late = gateway.connect(Version::V5, "d9");
    late.publish(&events(9), b"late", 1);
    recorder.restart();
    for ((device, bytes), taken) in devices.iter_mut().zip(&flood).zip(taken) {
        device.send(bytes.get(taken..).unwrap_or_default());
    }
    for device in &mut devices {
        for n in 0..FLOOD {
            assert_eq!(device.next(Duration::from_secs(60)), Answer::Puback(flood_id(n), 0));
        }
    }
    assert_eq!(late.next(PATIENCE), Answer::Puback(1, 0));
    until("the spool to be drained", PATIENCE, || gateway.metric("tollgate_spool_messages", &[]) == 0.0);
    until("the alarm to end", PATIENCE, || gateway.metric("tollgate_alarm", &["kind=\"spool\""]) == 0.0);
    for n in 0..devices.len() {
        let heads = recorder.payload_heads(&events(n), 8);
        let arrived = first_occurrences(heads.iter().map(|text| text.split(':').next().unwrap().to_owned()).collect());
        assert!(arrived.iter().enumerate().all(|(at, text)| at.to_string() == *text), "device {n}");
        assert_eq!(arrived.len(), FLOOD, "device {n}");
    }
}

#[test]
fn a_second_gateway_on_the_same_spool_is_refused() {
    let recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).start();
    let shared = gateway.folder.join("var");
    let mut second = Plan::new(Hub::At(recorder.port(), Version::V5)).launch(|folder| {
        let path = folder.join("gateway.toml");
        let text = fs::read_to_string(&path).unwrap();
        let own = format!("{}/var", folder.display());
        fs::write(&path, text.replace(&own, &shared.display().to_string())).unwrap();
    });
    until("it to end", PATIENCE, || second.process.ended().is_some());
    assert!(second.process.log().contains("another gateway uses the spool"), "{}", second.process.log());
}

#[test]
fn damage_is_refused_with_its_place_and_salvaged_by_the_operator() {
    let mut recorder = Recorder::start();
    let mut gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).start();
    recorder.kill();
    until("the gateway to see it", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);
    let mut device = gateway.connect(Version::V5, "d0");
    for n in 0..20 {
        device.publish_acknowledged(&events(0), format!("message {n}").as_bytes());
    }
    gateway.process.kill();
    let segment = gateway.folder.join("var/spool/0000000000000001.seg");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(9).position(|window| window == b"message 5").unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    gateway.run_again();
    until("it to end", PATIENCE, || gateway.process.ended().is_some());
    let log = gateway.process.log();
    assert!(log.contains("0000000000000001.seg is damaged at byte") && log.contains("tollgate spool salvage"), "{log}");

    let spool = |what: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(["spool", what, "--config", "gateway.toml"]).current_dir(&gateway.folder);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr))
    };
    let (code, text) = spool("check");
    assert!(code == Some(1) && text.contains("damaged at byte"), "{text}");
    let (code, text) = spool("salvage");
    assert!(code == Some(0) && text.contains("messages are kept") && text.contains(".seg.damaged-0"), "{text}");
    assert_eq!(spool("check").0, Some(0));
    recorder.restart();
    gateway.run_again();
    gateway.until_ready();
    until("the rest to arrive", PATIENCE, || recorder.payloads(&events(0)).last().is_some_and(|p| p == "message 19"));
    assert!(recorder.payloads(&events(0)).len() >= 15);
}

fn each_message_has_one_id(recorder: &Recorder) {
    let mut of_payload = std::collections::HashMap::new();
    for message in recorder.recorded() {
        let at = message.properties.windows(11).position(|window| window == b"tollgate-id").expect("an id");
        let id = message.properties[at + 13..].to_vec();
        let key = (message.topic, message.payload);
        assert_eq!(of_payload.entry(key).or_insert_with(|| id.clone()), &id, "a resend has the same id");
    }
}

fn spool_bytes(gateway: &Gateway) -> u64 {
    let files = fs::read_dir(gateway.folder.join("var/spool")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

fn first_occurrences(payloads: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    payloads.into_iter().filter(|payload| seen.insert(payload.clone())).collect()
}

fn flood_of(number: usize, count: usize) -> Vec<u8> {
    let mut flood = Vec::new();
    for n in 0..count {
        let payload = format!("{n}:{}", "x".repeat(8 * 1024));
        let (version, topic) = (version_of(number), events(number));
        flood.extend_from_slice(&publish_packet(version, &topic, payload.as_bytes(), 1, flood_id(n)));
    }
    flood
}

fn flood_id(n: usize) -> u16 {
    u16::try_from(n + 1).unwrap()
}

fn version_of(number: usize) -> Version {
    if number.is_multiple_of(2) { Version::V4 } else { Version::V5 }
}

fn events(number: usize) -> String {
    format!("devices/d{number}/messages/events/")
}

/// Of 8 KiB each: more than the spool, the window and the sockets hold.
const FLOOD: usize = 1_500;
const PATIENCE: Duration = Duration::from_secs(20);
