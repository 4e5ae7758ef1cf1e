//! Load that knows what it was promised: devices that publish numbers, and what a hub must have of them in the end.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use super::{Answer, Device, Gateway, Login, Recorder, Version, publish_packet, sas, until_some};

/// What devices know to be safe.
#[derive(Default)]
pub struct Ledger {
    /// By all devices together.
    pub acknowledged: AtomicU32,
    sent: Mutex<Vec<(usize, u32)>>,
    /// Nobody publishes.
    pub paused: AtomicBool,
    /// Devices end when all that they sent is acknowledged.
    pub over: AtomicBool,
}

/// Says that it is over, also when a check failed: the devices end.
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Publishes 0, 1, 2 … with up to ten unacknowledged, connects again when the connection is lost, and sends again, in
/// order, what has no PUBACK.
pub fn publish_numbers(number: usize, tcp: SocketAddr, ledger: &Ledger) {
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
                let packet = publish_packet(version, &events(number), next.to_string().as_bytes(), 1, id);
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

/// However long the disk takes: what may not happen is that the spool stops to shrink.
pub fn until_drained(gateway: &Gateway) {
    let waiting = || gateway.metric("tollgate_spool_messages", &[]);
    let mut before = f64::INFINITY;
    while before > 0.0 {
        before =
            until_some(&format!("{before} messages in the spool to become fewer"), Duration::from_secs(60), || {
                Some(waiting()).filter(|left| *left < before)
            });
    }
}

impl Ledger {
    /// Everything that was acknowledged is with the hub, in order for each device; says how much that is.
    #[track_caller]
    pub fn check(self, recorder: &Recorder) -> String {
        let sent = self.sent.into_inner().unwrap();
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
        format!("{} acknowledged, 0 lost, {duplicates} duplicates", self.acknowledged.into_inner())
    }
}

/// A number that looks like chance and is the same for the same seed.
pub fn random(seed: &mut u64) -> u32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as u32
}

fn events(number: usize) -> String {
    format!("devices/d{number}/messages/events/")
}
