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

use super::{Answer, Device, Gateway, Login, Recorded, Recorder, Version, publish_packet, sas, until_some};

/// What devices know to be safe.
#[derive(Default)]
pub struct Ledger {
    /// By all devices together: PUBACK of QoS 1, PUBREC of QoS 2.
    pub acknowledged: AtomicU32,
    /// PUBCOMP, by all devices of QoS 2 together.
    pub completed: AtomicU32,
    /// Of each device, by its number.
    pub of_device: [Progress; 10],
    taken_in: Mutex<TakenIn>,
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
    /// What it sent more than once.
    sent_again: Mutex<BTreeSet<u32>>,
    is_of_qos_2: AtomicBool,
    /// It is paused, and everything of it is answered.
    waits: AtomicBool,
}

/// By topic and number.
type Ids = HashMap<(String, u32), BTreeSet<Vec<u8>>>;

/// What was read of the hub's log.
#[derive(Default)]
struct TakenIn {
    /// The number after the highest that came, by topic.
    next: HashMap<String, u32>,
    /// Under which ids a message came: of the log that was read last, and of the one before it.
    ids: [Ids; 2],
    /// By QoS 1 and 2: that came again, and that came again under another id.
    duplicates: [u32; 2],
    taken_twice: [u32; 2],
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
    let (mut acknowledged, mut sent) = (0, 0);
    while !ledger.over.load(Relaxed) {
        let Some(mut device) = connect(number, tcp, None) else {
            thread::park_timeout(BETWEEN_TRIES);
            continue;
        };
        ledger.admit(number);
        ledger.sent_again(number, acknowledged..sent);
        let mut next = acknowledged;
        let mut in_flight = VecDeque::new();
        while !(ledger.over.load(Relaxed) && in_flight.is_empty()) {
            if ledger.waits(number, in_flight.is_empty()) {
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
    let (mut next, mut acknowledged) = (0, 0);
    ledger.of_device[number].is_of_qos_2.store(true, Relaxed);
    let mut has_session = false;
    while !ledger.over.load(Relaxed) {
        let Some(mut device) = connect(number, tcp, Some(SESSION_SECONDS)) else {
            thread::park_timeout(BETWEEN_TRIES);
            continue;
        };
        // The first one may have been accepted by a gateway that was killed before it could say so.
        assert!(device.session_present || !has_session, "device {number}: its session is gone after {acknowledged}");
        has_session = true;
        ledger.admit(number);
        ledger.sent_again(number, half_way.iter().filter(|one| one.released == 0).map(|one| one.number));
        if !half_way.iter_mut().all(|one| one.send(&mut device, number, 8)) {
            continue;
        }
        while !(ledger.over.load(Relaxed) && half_way.is_empty()) {
            if ledger.waits(number, half_way.is_empty()) {
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

/// However long the disk takes: what may not happen is that the spool stops to shrink. The desk is asked: metrics of the
/// spool are set every two seconds, and after a start not at once.
pub fn until_drained(gateway: &Gateway) {
    let mut before = u64::MAX;
    while before > 0 {
        before =
            until_some(&format!("{before} messages in the spool to become fewer"), Duration::from_secs(60), || {
                unforwarded(gateway).filter(|left| *left < before)
            });
    }
}

/// Messages that no hub has acknowledged.
fn unforwarded(gateway: &Gateway) -> Option<u64> {
    let (status, body) = gateway.get("/v1/upstreams")?;
    assert_eq!(status, 200, "{body}");
    let listed: serde_json::Value = serde_json::from_str(&body).unwrap();
    let hubs = listed["upstreams"].as_array().expect("a list");
    Some(hubs.iter().map(|hub| hub["spooled"].as_u64().unwrap() + hub["inflight"].as_u64().unwrap()).sum())
}

impl Ledger {
    fn admit(&self, number: usize) {
        let device = &self.of_device[number];
        device.at_admission.store(device.acknowledged.load(Relaxed), Relaxed);
        device.admitted.fetch_add(1, Relaxed);
    }

    fn acknowledged(&self, number: usize) {
        self.of_device[number].acknowledged.fetch_add(1, Relaxed);
        self.acknowledged.fetch_add(1, Relaxed);
    }

    fn sent_again(&self, number: usize, messages: impl IntoIterator<Item = u32>) {
        self.of_device[number].sent_again.lock().unwrap().extend(messages);
    }

    /// While they are paused: nothing is acknowledged any more because nothing is unanswered.
    pub fn is_quiet(&self) -> bool {
        self.of_device.iter().filter(|device| device.admitted() > 0).all(|device| device.waits.load(Relaxed))
    }

    fn publishes_nothing_more(&self) -> bool {
        self.over.load(Relaxed) || self.paused.load(Relaxed)
    }

    /// Whether a device has nothing to do; then some time has passed.
    fn waits(&self, number: usize, nothing_is_in_flight: bool) -> bool {
        let waits = self.paused.load(Relaxed) && nothing_is_in_flight && !self.over.load(Relaxed);
        self.of_device[number].waits.store(waits, Relaxed);
        if waits {
            thread::park_timeout(Duration::from_millis(5));
        }
        waits
    }

    /// Everything that was acknowledged is with the hub, in order for each device, and what was sent once was taken once;
    /// says how much that is. For the end of a test, or when nobody publishes and nothing waits: the log begins anew.
    #[track_caller]
    pub fn check(&self, recorder: &Recorder) -> String {
        let mut taken_in = self.taken_in.lock().unwrap();
        for message in recorder.recorded() {
            let number = message.topic.split('/').nth(1).and_then(|name| name.strip_prefix('d')).unwrap();
            let device = &self.of_device[number.parse::<usize>().unwrap()];
            taken_in.take(message, device);
        }
        taken_in.ids.swap(0, 1);
        taken_in.ids[0].clear();
        recorder.forget();
        for (number, device) in self.of_device.iter().enumerate().filter(|(_, device)| device.admitted() > 0) {
            let acknowledged = device.acknowledged.load(Relaxed);
            let arrived = taken_in.next.get(&events(number)).copied().unwrap_or(0);
            assert!(arrived >= acknowledged, "device {number}: {acknowledged} acknowledged, {arrived} arrived");
            assert!(acknowledged > 0, "device {number} was served");
        }
        let (all, completed) = (self.acknowledged.load(Relaxed), self.completed.load(Relaxed));
        let ([one, two], [one_twice, two_twice]) = (taken_in.duplicates, taken_in.taken_twice);
        let mut said = format!("{all} acknowledged, 0 lost, {one} duplicates of QoS 1 ({one_twice} under another id)");
        if completed > 0 {
            said += &format!(", {completed} of QoS 2 completed, {two} duplicates ({two_twice} under another id)");
        }
        said
    }
}

impl Progress {
    fn admitted(&self) -> u32 {
        self.admitted.load(Relaxed)
    }
}

impl TakenIn {
    #[track_caller]
    fn take(&mut self, message: Recorded, device: &Progress) {
        let Recorded { topic, payload, properties, .. } = message;
        let number: u32 = String::from_utf8(payload).unwrap().parse().unwrap();
        let qos = usize::from(device.is_of_qos_2.load(Relaxed));
        let next = self.next.entry(topic.clone()).or_default();
        assert!(number <= *next, "{topic}: {number} came before {next}");
        self.duplicates[qos] += u32::from(number < *next);
        *next = (*next).max(number + 1);
        let Some(id) = id_of(&properties) else { return };
        let key = (topic, number);
        let before = self.ids.iter().filter_map(|ids| ids.get(&key)).flatten().cloned().collect::<BTreeSet<_>>();
        if before.is_empty() || before.contains(&id) {
            self.ids[0].entry(key).or_default().insert(id);
            return;
        }
        let sent_again = device.sent_again.lock().unwrap().contains(&number);
        assert!(sent_again, "{}: {number} was sent once and has another id than before", key.0);
        self.taken_twice[qos] += 1;
        self.ids[0].entry(key).or_default().insert(id);
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

pub const IN_FLIGHT_MAX: usize = 10;
const SESSION_SECONDS: u32 = 3600;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);
