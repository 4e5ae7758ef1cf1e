//! Hubs that are far, and hubs side by side: a window is used to the full over a long round trip, and one hub that is away
//! takes nothing from another.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    collections::HashSet,
    fs,
    time::{Duration, Instant},
};

use support::{Answer, Gateway, Hub, Plan, Recorder, Version, events, publish_packet, until};

#[test]
fn a_hub_that_is_300_ms_away_gets_a_window_a_round_trip_and_nothing_is_lost() {
    // A machine that was busy with something else says nothing about the gateway: one good run of three is enough.
    let tried = (0..3).map(|_| far_hub()).find(|rate| *rate >= 0.8);
    assert!(tried.is_some(), "less than 0.8 of window ÷ latency, three times");
}

/// Messages a second that the hub got, over window ÷ latency.
fn far_hub() -> f64 {
    let mut recorder = Recorder::start();
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).shards(1).window(WINDOW);
    let gateway = plan.environment("RUST_LOG", "info").limit("receive_maximum = 1000").start();
    recorder.tell(&format!("ack after {}", LATENCY.as_millis()));
    let mut devices: Vec<_> = (0..4).map(|n| gateway.connect(Version::V5, &format!("d{n}"))).collect();
    let each = MESSAGES / devices.len();
    let cpu_before = gateway.process.cpu_ms();
    let started = Instant::now();
    for (number, device) in devices.iter_mut().enumerate() {
        let packets = (0..each).flat_map(|n| {
            let id = u16::try_from(n + 1).unwrap();
            publish_packet(Version::V5, &events(number), n.to_string().as_bytes(), 1, id)
        });
        device.send(&packets.collect::<Vec<u8>>());
    }
    until("all to arrive", Duration::from_secs(60), || recorder.count() >= MESSAGES);
    let took = started.elapsed();
    let used = u128::from(gateway.process.cpu_ms() - cpu_before);
    assert!(used < took.as_millis() / 2, "{used} ms of processor time in {took:?}: it waits, it does not spin");
    for device in &mut devices {
        for n in 0..each {
            assert_eq!(device.next(PATIENCE), Answer::Puback(u16::try_from(n + 1).unwrap(), 0));
        }
    }
    until("the spool to be empty", PATIENCE, || gateway.metric("tollgate_spool_messages", &[]) == 0.0);
    for number in 0..devices.len() {
        assert_in_order(&recorder, number, each);
    }
    let possible = WINDOW as f64 / LATENCY.as_secs_f64();
    let rate = MESSAGES as f64 / took.as_secs_f64();
    println!("{rate:.0} messages a second of {possible:.0}; {used} ms of processor time in {took:?}");
    rate / possible
}

#[test]
fn a_hub_that_goes_away_takes_nothing_from_another_whose_messages_stay_off_the_disk() {
    let (near, mut other) = (Recorder::start(), Recorder::start());
    let gateway = two_hubs(&near, &other);
    let connected = |name: &str| gateway.metric("tollgate_upstream_connected", &[&format!("upstream=\"{name}\"")]);
    until("both hubs", PATIENCE, || connected("hub") == 2.0 && connected("other") == 2.0);
    let topic = |n: usize| format!("{}other/", events(n));
    let mut devices: Vec<_> = (0..4).map(|n| gateway.connect(Version::V5, &format!("d{n}"))).collect();
    for (n, device) in devices.iter_mut().enumerate() {
        device.publish_acknowledged(&events(n), b"0");
        device.publish_acknowledged(&topic(n), b"0");
    }
    assert_eq!((near.count(), other.count()), (4, 4), "each has its own");
    other.kill();
    until("the gateway to see it", PATIENCE, || connected("other") == 0.0);
    // What waits for the hub that is away is on the disk first, so that all that comes then is for the other.
    for (n, device) in devices.iter_mut().enumerate() {
        device.publish_acknowledged(&topic(n), b"1");
    }
    let written = || gateway.metric("tollgate_spool_written_bytes_total", &[]);
    until("it to be counted", PATIENCE, || gateway.metric("tollgate_spool_messages", &[]) == 4.0);
    let (before, syncs) = (written(), gateway.metric("tollgate_spool_syncs_total", &[]));
    let on_disk = spool_bytes(&gateway);
    for number in 1..200 {
        for (n, device) in devices.iter_mut().enumerate() {
            device.publish_acknowledged(&events(n), number.to_string().as_bytes());
        }
    }
    assert_eq!(near.count(), 800, "acknowledged by the hub itself");
    assert_eq!(spool_bytes(&gateway), on_disk);
    assert_eq!((written(), gateway.metric("tollgate_spool_syncs_total", &[])), (before, syncs), "no disk write");
    assert_eq!(gateway.metric("tollgate_upstream_backlog", &["upstream=\"hub\""]), 0.0);
    // In one packet each, one for the one hub and one for the other: neither waits for the other.
    for number in 2..100 {
        for (n, device) in devices.iter_mut().enumerate() {
            device.publish_acknowledged(&topic(n), number.to_string().as_bytes());
            device.publish_acknowledged(&events(n), (198 + number).to_string().as_bytes());
        }
    }
    assert!(near.count() >= 4 * 298, "still at once: {}", near.count());
    other.restart();
    until("the spool to be drained", PATIENCE, || gateway.metric("tollgate_spool_messages", &[]) == 0.0);
    for n in 0..devices.len() {
        assert_in_order(&near, n, 298);
        let arrived = first_occurrences(other.payloads(&topic(n)));
        assert!(arrived.iter().enumerate().all(|(at, text)| at.to_string() == *text), "device {n}: {arrived:?}");
        assert_eq!(arrived.len(), 100, "device {n}");
    }
}

/// A gateway whose devices' `…/other/#` goes to the second hub.
fn two_hubs(hub: &Recorder, other: &Recorder) -> Gateway {
    let plan = Plan::new(Hub::At(hub.port(), Version::V5));
    plan.start_with(|folder| {
        let file = folder.join("gateway.toml");
        let text = fs::read_to_string(&file).unwrap();
        let upstream = format!(
            "[[upstream]]\nname = \"other\"\nkind = \"mqtt\"\nurl = \"mqtt://127.0.0.1:{}\"\nversion = 5\nconnections = 2\n\
             [[route]]\nfrom = \"devices/{{device}}/messages/events/other/#\"\nupstream = \"other\"\n[[route]]",
            other.port()
        );
        fs::write(&file, text.replacen("[[route]]", &upstream, 1)).unwrap();
    })
}

fn spool_bytes(gateway: &Gateway) -> u64 {
    let files = fs::read_dir(gateway.folder.join("var/spool")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

fn assert_in_order(recorder: &Recorder, number: usize, count: usize) {
    let arrived = first_occurrences(recorder.payloads(&events(number)));
    assert!(arrived.iter().enumerate().all(|(at, text)| at.to_string() == *text), "device {number}: {arrived:?}");
    assert_eq!(arrived.len(), count, "device {number}");
}

fn first_occurrences(payloads: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    payloads.into_iter().filter(|payload| seen.insert(payload.clone())).collect()
}

const WINDOW: usize = 100;
const LATENCY: Duration = Duration::from_millis(300);
/// Twenty round trips.
const MESSAGES: usize = 2_000;
const PATIENCE: Duration = Duration::from_secs(20);
