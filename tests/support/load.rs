//! Load that knows what it was promised: devices that publish numbers, with QoS 1 or 2, and what a hub must have of them in
//! the end.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
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
    /// By all devices together: PUBACK of QoS 1, PUBREC of QoS 2.
    pub acknowledged: AtomicU32,
    /// PUBCOMP, by all devices of QoS 2 together.
    pub completed: AtomicU32,
    /// Of each device, by its number.
    pub of_device: [Progress; 10],
    ended: Mutex<Vec<Ended>>,
    /// Nobody publishes.
    pub paused: AtomicBool,
    /// Devices end when all that they sent is acknowledged.
    pub over: AtomicBool,
}

/// How far a device is.
#[derive(Default)]
pub struct Progress {
    /// So many, from 0 on, are acknowledged.
    pub acknowledged: AtomicU32,
    /// Connections that were admitted.
    pub admitted: AtomicU32,
    /// What [`acknowledged`](Self::acknowledged) was when the last of them was.
    pub at_admission: AtomicU32,
}

/// What a device says in the end.
struct Ended {
    number: usize,
    qos: u8,
    acknowledged: u32,
    /// What it sent more than once.
    sent_again: BTreeSet<u32>,
}

/// Says that it is over, also when a check failed: the devices end.
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Publishes 0, 1, 2 … with QoS 1 and up to ten unacknowledged, connects again when the connection is lost, and sends again,
/// in order, what has no PUBACK.
pub fn publish_numbers(number: usize, tcp: SocketAddr, ledger: &Ledger) {
    let version = version_of(number);
    let (mut acknowledged, mut sent, mut sent_again) = (0, 0, BTreeSet::new());
    while !ledger.over.load(Relaxed) {
        let Some(mut device) = connect(number, tcp, None) else {
            thread::park_timeout(BETWEEN_TRIES);
            continue;
        };
        ledger.admitted(number);
        sent_again.extend(acknowledged..sent);
        let mut next = acknowledged;
        let mut in_flight = VecDeque::new();
        while !(ledger.over.load(Relaxed) && in_flight.is_empty()) {
            if ledger.waits(in_flight.is_empty()) {
                continue;
            }
            if in_flight.len() < IN_FLIGHT_MAX && !ledger.publishes_nothing_more() {
                let id = u16::try_from(next % 60_000 + 1).unwrap();
                let packet = publish_packet(version, &events(number), next.to_string().as_bytes(), 1, id);
                if device.try_send(&packet).is_err() {
                    break;
                }
                in_flight.push_back(id);
                next += 1;
                sent = sent.max(next);
                continue;
            }
            match device.next(Duration::from_secs(10)) {
                Answer::Puback(id, 0) => {
                    assert_eq!(in_flight.pop_front(), Some(id), "PUBACKs come in order");
                    acknowledged += 1;
                    ledger.acknowledged(number);
                }
                Answer::Closed | Answer::Disconnect(_) => break,
                other => panic!("device {number}: {other:?} after {acknowledged}"),
            }
        }
    }
    ledger.ended.lock().unwrap().push(Ended { number, qos: 1, acknowledged, sent_again });
}

/// One message of QoS 2 between its PUBLISH and its PUBCOMP.
struct Exchange {
    number: u32,
    id: u16,
    /// Its PUBREC came, and so many PUBRELs were sent.
    released: u32,
}

/// The same with QoS 2 in a session that outlives its connections: what is half-way goes on where it was
/// [MQTT-4.4.0-1]. Packet ids are few, so that each is soon another message's.
pub fn publish_numbers_once(number: usize, tcp: SocketAddr, ledger: &Ledger) {
    let mut half_way = VecDeque::<Exchange>::new();
    let (mut next, mut acknowledged, mut sent_again) = (0, 0, BTreeSet::new());
    let mut has_session = false;
    while !ledger.over.load(Relaxed) {
        let Some(mut device) = connect(number, tcp, Some(SESSION_SECONDS)) else {
            thread::park_timeout(BETWEEN_TRIES);
            continue;
        };
        // The first one may have been accepted by a gateway that was killed before it could say so.
        assert!(device.session_present || !has_session, "device {number}: its session is gone after {acknowledged}");
        has_session = true;
        ledger.admitted(number);
        sent_again.extend(half_way.iter().filter(|one| one.released == 0).map(|one| one.number));
        if !half_way.iter_mut().all(|one| one.send(&mut device, number, 8)) {
            continue;
        }
        while !(ledger.over.load(Relaxed) && half_way.is_empty()) {
            if ledger.waits(half_way.is_empty()) {
                continue;
            }
            if half_way.len() < IN_FLIGHT_MAX && !ledger.publishes_nothing_more() {
                let id = u16::try_from(next % 16 + 1).unwrap();
                half_way.push_back(Exchange { number: next, id, released: 0 });
                next += 1;
                let newest = half_way.back_mut().expect("one was added");
                if !newest.send(&mut device, number, 0) {
                    break;
                }
                continue;
            }
            match device.next(Duration::from_secs(10)) {
                Answer::Pubrec(id, code) if code < 0x80 => {
                    let first = half_way.iter_mut().find(|one| one.released == 0);
                    let first = first.filter(|one| one.id == id).expect("PUBRECs come in order");
                    acknowledged += 1;
                    ledger.acknowledged(number);
                    first.released = 1;
                    if device.try_send(&pubrel(id)).is_err() {
                        break;
                    }
                }
                Answer::Pubcomp(id, code) => {
                    let oldest = half_way.pop_front().filter(|one| one.id == id && one.released > 0);
                    let oldest = oldest.expect("PUBCOMPs come in the order of the PUBRELs");
                    // 5.0, Packet Identifier not found: the first PUBREL was heard, its PUBCOMP was lost.
                    assert!(code == 0 || code == 0x92 && oldest.released > 1, "device {number}: PUBCOMP {code:#04x}");
                    ledger.completed.fetch_add(1, Relaxed);
                }
                Answer::Closed | Answer::Disconnect(_) => break,
                other => panic!("device {number}: {other:?} after {acknowledged}"),
            }
        }
    }
    ledger.ended.lock().unwrap().push(Ended { number, qos: 2, acknowledged, sent_again });
}

impl Exchange {
    /// PUBLISH with these bits, or PUBREL; whether it went out.
    fn send(&mut self, device: &mut Device, of: usize, bits: u8) -> bool {
        if self.released > 0 {
            self.released += 1;
            return device.try_send(&pubrel(self.id)).is_ok();
        }
        let payload = self.number.to_string();
        let mut packet = publish_packet(version_of(of), &events(of), payload.as_bytes(), 2, self.id);
        packet[0] |= bits;
        device.try_send(&packet).is_ok()
    }
}

fn pubrel(id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [0x62, 2, high, low]
}

fn connect(number: usize, tcp: SocketAddr, session: Option<u32>) -> Option<Device> {
    let name = format!("d{number}");
    let mut device = Device::try_open(tcp, version_of(number))?;
    let login = Login { session, ..Login::new(version_of(number), &name, &sas(&name)) };
    device.try_send(&login.packet()).ok()?;
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
    fn admitted(&self, number: usize) {
        let device = &self.of_device[number];
        device.at_admission.store(device.acknowledged.load(Relaxed), Relaxed);
        device.admitted.fetch_add(1, Relaxed);
    }

    fn acknowledged(&self, number: usize) {
        self.of_device[number].acknowledged.fetch_add(1, Relaxed);
        self.acknowledged.fetch_add(1, Relaxed);
    }

    fn publishes_nothing_more(&self) -> bool {
        self.over.load(Relaxed) || self.paused.load(Relaxed)
    }

    /// Whether a device has nothing to do; then some time has passed.
    fn waits(&self, nothing_is_in_flight: bool) -> bool {
        let waits = self.paused.load(Relaxed) && nothing_is_in_flight && !self.over.load(Relaxed);
        if waits {
            thread::park_timeout(Duration::from_millis(5));
        }
        waits
    }

    /// Everything that was acknowledged is with the hub, in order for each device, and what was sent once was taken once;
    /// says how much that is.
    #[track_caller]
    pub fn check(self, recorder: &Recorder) -> String {
        let ended = self.ended.into_inner().unwrap();
        let (mut seen, mut copies) = (HashMap::<String, u32>::new(), HashMap::<String, u32>::new());
        let mut ids = HashMap::<(String, u32), BTreeSet<Vec<u8>>>::new();
        for message in recorder.recorded() {
            let number: u32 = String::from_utf8(message.payload).unwrap().parse().unwrap();
            let next = seen.entry(message.topic.clone()).or_default();
            assert!(number <= *next, "{}: {number} came before {next}", message.topic);
            *copies.entry(message.topic.clone()).or_default() += u32::from(number < *next);
            *next = (*next).max(number + 1);
            ids.entry((message.topic, number)).or_default().extend(id_of(&message.properties));
        }
        let (mut duplicates, mut taken_twice) = ([0; 3], [0; 3]);
        for Ended { number, qos, acknowledged, sent_again } in ended {
            let (topic, qos) = (events(number), usize::from(qos));
            let arrived = seen.get(&topic).copied().unwrap_or(0);
            assert!(arrived >= acknowledged, "device {number}: {acknowledged} acknowledged, {arrived} arrived");
            assert!(acknowledged > 0, "device {number} was served");
            duplicates[qos] += copies.get(&topic).copied().unwrap_or(0);
            for message in 0..arrived {
                let ids = ids.get(&(topic.clone(), message)).map_or(0, BTreeSet::len);
                assert!(
                    ids < 2 || sent_again.contains(&message),
                    "device {number}: {message}, sent once, has {ids} ids"
                );
                taken_twice[qos] += u32::from(ids > 1);
            }
        }
        let (all, completed) = (self.acknowledged.into_inner(), self.completed.into_inner());
        let [_, one, two] = duplicates;
        let mut said =
            format!("{all} acknowledged, 0 lost, {one} duplicates of QoS 1 ({} under another id)", taken_twice[1]);
        if completed > 0 {
            said +=
                &format!(", {completed} of QoS 2 completed, {two} duplicates ({} under another id)", taken_twice[2]);
        }
        said
    }
}

/// The property `tollgate-id`, which a resend of the gateway keeps.
fn id_of(properties: &[u8]) -> Option<Vec<u8>> {
    let name = b"tollgate-id";
    let at = properties.windows(name.len()).position(|window| window == name)? + name.len();
    let length = properties.get(at..at + 2)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    properties.get(at + 2..at + 2 + length).map(<[u8]>::to_vec)
}

/// A number that looks like chance and is the same for the same seed.
pub fn random(seed: &mut u64) -> u32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as u32
}

fn version_of(number: usize) -> Version {
    if number.is_multiple_of(2) { Version::V4 } else { Version::V5 }
}

/// Where the device with this number publishes.
pub fn events(number: usize) -> String {
    format!("devices/d{number}/messages/events/")
}

const IN_FLIGHT_MAX: usize = 10;
const SESSION_SECONDS: u32 = 3600;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);
