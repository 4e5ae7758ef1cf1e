//! kill -9 of the gateway, of the hub, or of both, at random moments under load: what was acknowledged to a device is in
//! the log of a hub that syncs before it acknowledges, in order for each device. `TOLLGATE_CRASH_ROUNDS` sets how many
//! rounds; `make test` asks for 200.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    collections::{HashMap, VecDeque},
    env,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use support::{Answer, Device, Gateway, Hub, Login, Plan, Recorder, Version, sas, until, until_some};

#[test]
fn whoever_is_killed_nothing_acknowledged_is_lost_and_order_holds() {
    let rounds = env::var("TOLLGATE_CRASH_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let mut seed = env::var("TOLLGATE_CRASH_SEED").map_or(42, |text| text.parse().unwrap());
    let mut recorder = Recorder::start();
    let mut gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).window(500).start();
    let ledger = Ledger::default();
    thread::scope(|scope| {
        for number in 0..DEVICES {
            let (ledger, tcp) = (&ledger, gateway.tcp);
            scope.spawn(move || publish(number, tcp, ledger));
        }
        let ends = Ends(&ledger.over);
        for round in 0..rounds {
            let acknowledged = ledger.acknowledged.load(Relaxed);
            let wanted = acknowledged + 1 + random(&mut seed) % 300;
            until("the load to go on", Duration::from_secs(60), || ledger.acknowledged.load(Relaxed) >= wanted);
            let wanted = recorder.size() + 1 + u64::from(random(&mut seed) % 30_000);
            until("the hub to be given more", Duration::from_secs(60), || recorder.size() >= wanted);
            let victim = random(&mut seed) % 3;
            if victim != 1 {
                gateway.process.kill();
            }
            if victim != 0 {
                recorder.kill();
            }
            // The other one lives on without it for a while, sometimes until it spools.
            let alone = Duration::from_millis(u64::from(random(&mut seed)) % 900);
            until_over(alone);
            if victim != 1 {
                gateway.run_again();
            }
            if victim != 0 {
                recorder.restart();
            }
            if victim != 1 {
                gateway.until_ready();
            }
            if round % ROUNDS_TO_DRAIN == ROUNDS_TO_DRAIN - 1 {
                // The next rounds find it forwarding directly.
                ledger.paused.store(true, Relaxed);
                until_drained(&gateway);
                ledger.paused.store(false, Relaxed);
            }
        }
        drop(ends);
    });
    until_drained(&gateway);
    let sent = ledger.sent.into_inner().unwrap();
    let (mut seen, mut duplicates) = (HashMap::<String, u32>::new(), 0);
    for message in recorder.recorded() {
        let number: u32 = String::from_utf8(message.payload).unwrap().parse().unwrap();
        let next = seen.entry(message.topic.clone()).or_default();
        assert!(number <= *next, "{}: {number} came before {next}", message.topic);
        duplicates += u32::from(number < *next);
        *next = (*next).max(number + 1);
    }
    for (device, acknowledged) in sent {
        let arrived = seen.get(&events(device)).copied().unwrap_or(0);
        assert!(arrived >= acknowledged, "device {device}: {acknowledged} acknowledged, {arrived} arrived");
        assert!(acknowledged > 0, "device {device} was served");
    }
    println!("{rounds} rounds: {} acknowledged, 0 lost, {duplicates} duplicates", ledger.acknowledged.into_inner());
}

/// However long the disk takes: what may not happen is that the spool stops to shrink.
fn until_drained(gateway: &Gateway) {
    let waiting = || gateway.metric("tollgate_spool_messages", &[]);
    let mut before = f64::INFINITY;
    while before > 0.0 {
        before =
            until_some(&format!("{before} messages in the spool to become fewer"), Duration::from_secs(60), || {
                Some(waiting()).filter(|left| *left < before)
            });
    }
}

/// What devices know to be safe.
#[derive(Default)]
struct Ledger {
    acknowledged: AtomicU32,
    sent: Mutex<Vec<(usize, u32)>>,
    /// Nobody publishes.
    paused: AtomicBool,
    over: AtomicBool,
}

/// Says that it is over, also when a check failed: the devices end.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Publishes 0, 1, 2 … with up to ten unacknowledged, connects again when the connection is lost, and sends again, in
/// order, what has no PUBACK.
fn publish(number: usize, tcp: SocketAddr, ledger: &Ledger) {
    let version = if number.is_multiple_of(2) { Version::V4 } else { Version::V5 };
    let mut acknowledged = 0;
    while !ledger.over.load(Relaxed) {
        let Some(mut device) = connect(number, tcp, version) else {
            thread::park_timeout(Duration::from_millis(20));
            continue;
        };
        let mut next = acknowledged;
        let mut in_flight = VecDeque::new();
        while !(ledger.over.load(Relaxed) && in_flight.is_empty()) {
            let (over, paused) = (ledger.over.load(Relaxed), ledger.paused.load(Relaxed));
            if paused && in_flight.is_empty() {
                thread::park_timeout(Duration::from_millis(5));
                continue;
            }
            if in_flight.len() < 10 && !over && !paused {
                let id = u16::try_from(next % 60_000 + 1).unwrap();
                let packet = support::publish_packet(version, &events(number), next.to_string().as_bytes(), 1, id);
                if device.try_send(&packet).is_err() {
                    break;
                }
                in_flight.push_back(id);
                next += 1;
                continue;
            }
            match device.next(Duration::from_secs(10)) {
                Answer::Puback(id, 0) => {
                    assert_eq!(in_flight.pop_front(), Some(id), "PUBACKs come in order");
                    acknowledged += 1;
                    ledger.acknowledged.fetch_add(1, Relaxed);
                }
                Answer::Closed | Answer::Disconnect(_) => break,
                other => panic!("device {number}: {other:?} after {acknowledged}"),
            }
        }
    }
    ledger.sent.lock().unwrap().push((number, acknowledged));
}

fn connect(number: usize, tcp: SocketAddr, version: Version) -> Option<Device> {
    let name = format!("d{number}");
    let mut device = Device::try_open(tcp, version)?;
    device.try_send(&Login::new(version, &name, &sas(&name)).packet()).ok()?;
    (device.next(Duration::from_secs(10)) == Answer::Connack(0)).then_some(device)
}

/// A pause that is part of the fault: for so long one of them is without the other.
fn until_over(pause: Duration) {
    let started = Instant::now();
    until("the pause", Duration::from_secs(10), || started.elapsed() >= pause);
}

fn random(seed: &mut u64) -> u32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as u32
}

fn events(number: usize) -> String {
    format!("devices/d{number}/messages/events/")
}

const DEVICES: usize = 6;
/// In `cargo test`.
const ROUNDS: u32 = 8;
const ROUNDS_TO_DRAIN: u32 = 4;
