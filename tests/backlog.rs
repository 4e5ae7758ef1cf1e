//! The hub away for a long time of load: memory is flat, the disk bounded, and all of them arrive, in order, while live
//! traffic is acknowledged. `bench/run hour` does it with an hour's worth and measures.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::Duration,
};

use support::{Answer, Gateway, Hub, Plan, Recorder, Version, events, publish_packet, until, until_drained};

#[test]
fn a_long_outage_costs_no_memory_and_bounded_disk_and_all_arrives_while_live_traffic_goes_on() {
    let mut recorder = Recorder::start();
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).environment("RUST_LOG", "info");
    let mut gateway = plan.limit("[spool]\nsize_max = \"64 MiB\"").start();
    recorder.kill();
    until("the gateway to see it", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);
    let acknowledged = AtomicU32::new(0);
    let (mut early_kib, mut most_kib, mut most_bytes) = (0, 0, 0);
    thread::scope(|scope| {
        let (gateway, acknowledged) = (&gateway, &acknowledged);
        let runs: Vec<_> = (0..DEVICES).map(|n| scope.spawn(move || publish(gateway, n, acknowledged))).collect();
        while !runs.iter().all(thread::ScopedJoinHandle::is_finished) {
            let (kib, bytes) = (gateway.process.resident_kib(), spool_bytes(gateway));
            // What a fifth of it takes, all of it takes.
            let is_early = acknowledged.load(Relaxed) < MESSAGES / 5;
            early_kib = early_kib.max(if is_early { kib } else { 0 });
            (most_kib, most_bytes) = (most_kib.max(kib), most_bytes.max(bytes));
            thread::park_timeout(Duration::from_millis(20));
        }
    });
    assert_eq!(acknowledged.load(Relaxed), MESSAGES);
    println!(
        "{early_kib} KiB after a fifth, {most_kib} KiB at most; {} bytes a message",
        most_bytes / u64::from(MESSAGES)
    );
    assert!(most_kib < early_kib + FLAT_KIB, "{early_kib} KiB after a fifth of the messages, {most_kib} KiB at most");
    assert!(most_bytes <= 64 << 20, "{most_bytes} bytes on the disk");

    let mut live: Vec<_> = (DEVICES..DEVICES + 2).map(|n| gateway.connect(Version::V5, &format!("d{n}"))).collect();
    recorder.restart();
    let mut number = 0;
    while gateway.metric("tollgate_spool_messages", &[]) > 0.0 {
        for (n, device) in live.iter_mut().enumerate() {
            device.publish_acknowledged(&events(DEVICES + n), payload_of(number).as_bytes());
        }
        number += 1;
    }
    assert!(number > 0, "live traffic was acknowledged while it drained");
    until_drained(&gateway);
    assert!(gateway.process.resident_kib() < early_kib + FLAT_KIB, "{} KiB", gateway.process.resident_kib());
    until("the disk to be given back", PATIENCE, || spool_bytes(&gateway) < 2 << 20);
    assert!(gateway.process.ended().is_none());
    let (mut seen, mut next) = (BTreeSet::new(), BTreeMap::<String, u32>::new());
    for message in recorder.recorded() {
        let number: u32 = String::from_utf8(message.payload[..10].to_vec()).unwrap().parse().unwrap();
        let next = next.entry(message.topic.clone()).or_default();
        assert!(number <= *next, "{}: {number} came before {next}", message.topic);
        *next = (*next).max(number + 1);
        seen.insert((message.topic, number));
    }
    let of_device = |n| if n < DEVICES { MESSAGES / DEVICES as u32 } else { number };
    let expected: BTreeMap<String, u32> = (0..DEVICES + 2).map(|n| (events(n), of_device(n))).collect();
    assert_eq!(next, expected, "all of each device arrived");
    assert_eq!(seen.len(), expected.values().sum::<u32>() as usize);
}

/// Its part of all messages, through a window of a hundred.
fn publish(gateway: &Gateway, number: usize, acknowledged: &AtomicU32) {
    let version = if number.is_multiple_of(2) { Version::V4 } else { Version::V5 };
    let mut device = gateway.connect(version, &format!("d{number}"));
    let mut next = 0;
    while next < MESSAGES / DEVICES as u32 {
        let packet = |id: u16| {
            let payload = payload_of(next + u32::from(id) - 1);
            publish_packet(version, &events(number), payload.as_bytes(), 1, id)
        };
        device.send(&(1..=WINDOW).flat_map(packet).collect::<Vec<u8>>());
        for id in 1..=WINDOW {
            assert_eq!(device.next(Duration::from_secs(60)), Answer::Puback(id, 0), "device {number} after {next}");
        }
        next += u32::from(WINDOW);
        acknowledged.fetch_add(WINDOW.into(), Relaxed);
    }
}

/// A hundred bytes.
fn payload_of(number: u32) -> String {
    format!("{number:010}{}", "x".repeat(90))
}

fn spool_bytes(gateway: &Gateway) -> u64 {
    let files = fs::read_dir(gateway.folder.join("var/spool")).unwrap();
    // One that is given back between two looks takes nothing.
    files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum()
}

const DEVICES: usize = 8;
const MESSAGES: u32 = 96_000;
const WINDOW: u16 = 100;
/// What an allocator may keep of bursts; a backlog that was in memory would take twice as much.
const FLAT_KIB: u64 = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(60);
