//! A real file system of 64 MiB that is full, and one that turns read-only: devices are held back, nothing acknowledged is
//! lost, and the gateway goes on by itself when there is space. Wants root and a loop device: `make test-root`.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod disk;
#[path = "../support/mod.rs"]
mod support;

use std::{collections::HashSet, time::Duration};

use disk::Disk;
use support::{
    Answer, Device, Gateway, Hub, Login, Plan, Recorder, Version, events, publish_packet, sas, until, until_drained,
};

#[test]
fn a_disk_that_is_full_holds_devices_back_and_takes_again_when_there_is_space() {
    let mut recorder = Recorder::start();
    let (mut gateway, disk) = gateway_on_a_disk(&recorder);
    // A hub that has gone leaves all to the disk, part of which is somebody else's.
    disk.occupy(24 << 20);
    let mut flood = Flood::begin(&mut recorder, &gateway);
    flood.until_held_back();
    let first = flood.answered();
    assert!(first > 0, "the disk took something first");
    until_said(&gateway, "the disk of the spool is full");
    flood.has_no_more_answers();

    // Whoever had the space gives it back: the same process goes on, while the hub is away.
    disk.give_back();
    until("messages to be acknowledged again", PATIENCE, || flood.answered() > first);
    flood.until_held_back();
    let second = flood.answered();
    assert!(second > first + 1_000, "{first}, then {second} acknowledged");
    until_said(&gateway, "the disk of the spool is full");

    // And when the hub is back, its acknowledgements make room.
    recorder.restart();
    flood.rest();
    until_drained(&gateway);
    until("the alarm to end", PATIENCE, || gateway.metric("tollgate_alarm", &["kind=\"spool\""]) == 0.0);
    assert!(gateway.process.ended().is_none(), "the same process");
    flood.all_arrived(&recorder);
    gateway.process.kill();
    drop((gateway, disk));
}

#[test]
fn a_disk_that_is_full_when_the_gateway_is_killed_keeps_what_was_acknowledged() {
    let mut recorder = Recorder::start();
    let (mut gateway, disk) = gateway_on_a_disk(&recorder);
    let mut flood = Flood::begin(&mut recorder, &gateway);
    flood.until_held_back();
    until_said(&gateway, "the disk of the spool is full");
    let acknowledged = flood.answered_each();
    gateway.process.kill();
    // Not a byte of space for the start either.
    gateway.restart();
    recorder.restart();
    until_drained(&gateway);
    flood.arrived(&recorder, &acknowledged);
    let mut device = gateway.connect(Version::V5, "d9");
    device.publish_acknowledged(&events(9), b"it goes on");
    gateway.process.kill();
    drop((gateway, disk));
}

#[test]
fn a_disk_that_turns_read_only_holds_devices_back_and_what_was_acknowledged_is_on_it() {
    let mut recorder = Recorder::start();
    let (mut gateway, disk) = gateway_on_a_disk(&recorder);
    recorder.kill();
    until("the gateway to see it", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);
    let mut device = gateway.connect(Version::V5, "d0");
    for n in 0..100 {
        device.publish_acknowledged(&events(0), n.to_string().as_bytes());
    }
    disk.turn_read_only();
    for n in 100..110 {
        device.publish(&events(0), n.to_string().as_bytes(), 1);
    }
    until_said(&gateway, "the disk of the spool is read-only");
    assert_eq!(device.next(Duration::from_secs(1)), Answer::Silence, "no witness, no PUBACK");
    // What the hub acknowledges itself needs no disk: with it the same process goes on.
    recorder.restart();
    for n in 101..=110 {
        assert_eq!(device.next(PATIENCE), Answer::Puback(n, 0));
    }
    device.publish_acknowledged(&events(0), b"110");
    recorder.kill();
    until("the gateway to see it", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);
    device.publish(&events(0), b"111", 1);
    assert_eq!(device.next(Duration::from_secs(1)), Answer::Silence, "still read-only");

    // Repaired, as by a start of the machine.
    gateway.process.kill();
    disk.mount_again();
    gateway.restart();
    let mut device = gateway.connect(Version::V5, "d0");
    device.publish_acknowledged(&events(0), b"111");
    recorder.restart();
    until_drained(&gateway);
    let arrived = first_occurrences(recorder.payloads(&events(0)));
    assert!(arrived.iter().enumerate().all(|(at, text)| at.to_string() == *text), "{arrived:?}");
    assert_eq!(arrived.len(), 112);
    gateway.process.kill();
    drop((gateway, disk));
}

/// Its whole state is on a disk of 64 MiB.
fn gateway_on_a_disk(recorder: &Recorder) -> (Gateway, Disk) {
    let mut disk = None;
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).environment("RUST_LOG", "info");
    let plan = plan.limit("receive_maximum = 5000\n[spool]\nsize_max = \"1 GiB\"");
    let mut gateway = plan.launch(|folder| disk = Some(Disk::mount(&folder.join("var"), DISK_BYTES)));
    gateway.until_ready();
    (gateway, disk.expect("mounted"))
}

/// Alarm, and why, on the desk.
fn until_said(gateway: &Gateway, what: &str) {
    until("the alarm", PATIENCE, || gateway.metric("tollgate_alarm", &["kind=\"spool\""]) == 1.0);
    until(what, PATIENCE, || gateway.get("/v1/upstreams").is_some_and(|(_, body)| body.contains(what)));
}

/// Three devices that send more than the disk holds.
struct Flood {
    devices: Vec<Device>,
    unsent: Vec<Vec<u8>>,
    answered: Vec<usize>,
}

impl Flood {
    fn begin(recorder: &mut Recorder, gateway: &Gateway) -> Self {
        recorder.kill();
        until("the gateway to see it", PATIENCE, || gateway.metric("tollgate_upstream_connected", &[]) == 0.0);
        // Held back they cannot ping.
        let login = |name: &str| Login { keep_alive: 1_800, ..Login::new(Version::V5, name, &sas(name)) };
        let devices = (0..3).map(|n| gateway.open(Version::V5).admitted(&login(&format!("d{n}")))).collect();
        let of_device = |number| (0..EACH).flat_map(move |n| message(number, n)).collect();
        Self { devices, unsent: (0..3).map(of_device).collect(), answered: vec![0; 3] }
    }

    /// Sends until nobody is read from any more.
    #[track_caller]
    fn until_held_back(&mut self) {
        until("all of them to be held back", Duration::from_secs(120), || {
            let mut taken = 0;
            for (device, unsent) in self.devices.iter_mut().zip(&mut self.unsent) {
                let count = device.write_until_blocked(unsent, Duration::from_secs(1));
                unsent.drain(..count);
                taken += count;
            }
            self.answered();
            taken == 0
        });
        assert!(self.unsent.iter().any(|unsent| !unsent.is_empty()), "the disk took everything: nobody was held back");
    }

    /// How many were acknowledged by now, in order.
    fn answered(&mut self) -> usize {
        for (device, answered) in self.devices.iter_mut().zip(&mut self.answered) {
            loop {
                match device.next(Duration::from_millis(50)) {
                    Answer::Puback(id, 0) if id == packet_id(*answered) => *answered += 1,
                    Answer::Silence => break,
                    other => panic!("{other:?} after {answered}"),
                }
            }
        }
        self.answered.iter().sum()
    }

    fn answered_each(&mut self) -> Vec<usize> {
        self.answered();
        self.answered.clone()
    }

    /// Full is full: nothing trickles through.
    #[track_caller]
    fn has_no_more_answers(&mut self) {
        let before = self.answered();
        assert_eq!(self.devices[0].next(Duration::from_secs(2)), Answer::Silence);
        assert_eq!(self.answered(), before);
    }

    /// What is left, when there is somewhere to put it.
    #[track_caller]
    fn rest(&mut self) {
        until("all to be acknowledged", Duration::from_secs(180), || {
            for (device, unsent) in self.devices.iter_mut().zip(&mut self.unsent) {
                let count = device.write_until_blocked(unsent, Duration::from_millis(200));
                unsent.drain(..count);
            }
            self.answered() == 3 * EACH
        });
    }

    #[track_caller]
    fn all_arrived(&self, recorder: &Recorder) {
        self.arrived(recorder, &[EACH; 3]);
    }

    #[track_caller]
    fn arrived(&self, recorder: &Recorder, acknowledged: &[usize]) {
        for (number, acknowledged) in acknowledged.iter().enumerate() {
            let heads = recorder.payload_heads(&events(number), 8);
            let arrived =
                first_occurrences(heads.iter().map(|text| text.split(':').next().unwrap().to_owned()).collect());
            assert!(arrived.iter().enumerate().all(|(at, text)| at.to_string() == *text), "device {number}");
            assert!(arrived.len() >= *acknowledged, "device {number}: {} of {acknowledged}", arrived.len());
        }
    }
}

fn message(number: usize, n: usize) -> Vec<u8> {
    let payload = format!("{n}:{}", "x".repeat(8 * 1024));
    publish_packet(Version::V5, &events(number), payload.as_bytes(), 1, packet_id(n))
}

fn packet_id(n: usize) -> u16 {
    u16::try_from(n + 1).unwrap()
}

fn first_occurrences(payloads: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    payloads.into_iter().filter(|payload| seen.insert(payload.clone())).collect()
}

/// Of 8 KiB each: with the three of them more than the disk, the windows and the sockets hold.
const EACH: usize = 4_500;
const DISK_BYTES: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
