//! A link and its spool against a plain model of what PUBACK means: with the hub lost, the disk refusing and the gateway
//! crashing at any step, what was acknowledged arrives or is still on the disk, in order per device.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::{
    spool::{ASIDE, Batch, Fetched, Run, Wanted, parse_record, queue_of},
    tests::config,
    *,
};
use crate::{
    packet::{Connack, PacketType, ProtocolVersion, next_frame, parse_publish, write_connack, write_puback},
    time::Tick,
};

#[derive(Clone, Debug)]
enum Step {
    /// A device publishes, or tries again what had to wait.
    Offer {
        device: usize,
        bytes: usize,
    },
    Write {
        bytes: usize,
    },
    Ack {
        index: prop::sample::Index,
        reason: u8,
    },
    Lose {
        lost: Lost,
    },
    Connect {
        session_present: bool,
        receive_maximum: u16,
    },
    Pass {
        ms: u64,
    },
    /// The spool's thread answers what it was asked.
    Disk {
        takes: bool,
    },
    Grants,
    /// kill -9 and a new start.
    Crash,
}

fn any_step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![8 => 12..100_usize, 2 => 1_000..9_000_usize, 1 => 60_000..70_000_usize];
    prop_oneof![
        14 => (0..DEVICES, bytes).prop_map(|(device, bytes)| Step::Offer { device, bytes }),
        6 => prop_oneof![1..300_usize, Just(usize::MAX)].prop_map(|bytes| Step::Write { bytes }),
        8 => (any::<prop::sample::Index>(), prop_oneof![8 => Just(0), 1 => Just(0x87)])
            .prop_map(|(index, reason)| Step::Ack { index, reason }),
        2 => prop_oneof![Just(Lost::ByHub), Just(Lost::Otherwise)].prop_map(|lost| Step::Lose { lost }),
        3 => (any::<bool>(), 1..6_u16)
            .prop_map(|(session_present, receive_maximum)| Step::Connect { session_present, receive_maximum }),
        4 => (1..900_u64).prop_map(|ms| Step::Pass { ms }),
        8 => prop_oneof![5 => Just(true), 1 => Just(false)].prop_map(|takes| Step::Disk { takes }),
        3 => Just(Step::Grants),
        1 => Just(Step::Crash),
    ]
}

/// One message: whose, and the how-manieth of it.
type Message = (usize, u32);

#[derive(Default)]
struct Device {
    /// Handed over in this life of the gateway, and before: the next number.
    next: u32,
    /// The first that it has no PUBACK for.
    unacknowledged: u32,
    answered: HashSet<u32>,
    /// What had to wait: it is offered again before anything else.
    held: bool,
    waits: bool,
}

/// What a spool keeps, and what it was asked.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) streams: BTreeMap<u16, (u64, Vec<Vec<u8>>)>,
    pub(super) aside: Vec<Vec<u8>>,
    pub(super) asked: VecDeque<Asked>,
    taken: u64,
}

pub(super) enum Asked {
    Append(Arc<Batch>),
    Read(Vec<Wanted>),
}

impl Disk {
    pub(super) fn append(&mut self, batch: &Batch) {
        for at in &batch.records {
            let bytes = batch.bytes[at.start as usize..][..at.len as usize].to_vec();
            if at.queue == ASIDE {
                self.aside.push(bytes);
                continue;
            }
            let (_, stream) = self.streams.entry(at.queue).or_default();
            assert_eq!(stream.len() as u64, at.number, "records are numbered without a gap");
            stream.push(bytes);
            self.taken += 1;
        }
    }

    pub(super) fn read(&self, wanted: &Wanted) -> Fetched {
        let queue = wanted.stream.queue;
        let all = &self.streams[&queue].1;
        let mut run = Run { first: wanted.from, ..Run::default() };
        for bytes in &all[wanted.from as usize..] {
            run.bytes.extend_from_slice(bytes);
            run.count += 1;
            if run.bytes.len() > wanted.bytes {
                break;
            }
        }
        assert!(run.count > 0, "nothing is read that is not there");
        Fetched { queue, run: Ok(run) }
    }

    /// Whether it holds the message and would give it out after a crash.
    fn keeps(&self, message: Message) -> bool {
        let is_it =
            |bytes: &Vec<u8>| parse_record(bytes).is_some_and(|(record, _)| message_of(record.payload) == message);
        let waits = self.streams.values().any(|(head, all)| all[*head as usize..].iter().any(is_it));
        waits || self.aside.iter().any(is_it)
    }

    pub(super) fn backlog(&self) -> BacklogConfig {
        BacklogConfig {
            upstream: 0,
            queues: (0..256)
                .map(|queue| {
                    let state = self.streams.get(&queue).map_or((0, 0), |(head, all)| (*head, all.len() as u64));
                    (queue, state.0, state.1)
                })
                .collect(),
            devices: vec![],
            spill_after: Some(Duration::from_millis(250)),
            age_max: Duration::ZERO,
        }
    }
}

#[derive(Default)]
struct Hub {
    up: bool,
    session_present: bool,
    held: Vec<u8>,
    unacknowledged: Vec<(u16, Message)>,
    /// By device, the highest number that ever came.
    highest: HashMap<usize, u32>,
    has: HashSet<Message>,
    refused: HashSet<Message>,
    /// The connection was lost while it had them.
    closed_on: HashSet<Message>,
}

struct World {
    /// Of each device's messages, in turn.
    acks: Vec<Ack>,
    age_max: Duration,
    /// When a message was offered first.
    offered: HashMap<Message, Tick>,
    version: ProtocolVersion,
    link: Link,
    out: LinkOutput,
    hub: Hub,
    disk: Disk,
    devices: Vec<Device>,
    life: u32,
    /// Those that the hub closed on, and whose devices were told so.
    given_up: HashSet<Message>,
    now: Tick,
}

impl World {
    fn new(version: ProtocolVersion, acks: &[Ack], age_max: Duration) -> Self {
        let disk = Disk::default();
        Self {
            acks: acks.to_vec(),
            age_max,
            offered: HashMap::new(),
            version,
            link: link(version, age_max, &disk),
            out: LinkOutput::default(),
            hub: Hub::default(),
            disk,
            devices: (0..DEVICES).map(|_| Device::default()).collect(),
            life: 0,
            given_up: HashSet::new(),
            now: Tick(0),
        }
    }

    fn ack_of(&self, (device, number): Message) -> Ack {
        self.acks[(device + number as usize) % self.acks.len()]
    }

    fn is_old(&self, message: Message) -> bool {
        !self.age_max.is_zero() && self.now.since(self.offered[&message]) > self.age_max
    }

    fn who(&self, device: usize) -> SessionRef {
        SessionRef { slot: device as u32, generation: self.life }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Offer { device, bytes } => self.offer(device, bytes),
            Step::Write { bytes } => self.write(bytes),
            Step::Ack { index, reason } => {
                if !self.hub.unacknowledged.is_empty() {
                    let reason = if self.version == ProtocolVersion::V5_0 { reason } else { 0 };
                    self.acknowledge(index.index(self.hub.unacknowledged.len()), reason);
                }
            }
            Step::Lose { lost } => self.lose(lost),
            Step::Connect { session_present, receive_maximum } => self.connect(session_present, receive_maximum),
            Step::Pass { ms } => {
                self.now.0 += ms;
                if self.link.tick(self.now).is_err() {
                    self.lose(Lost::Otherwise);
                }
                self.link.spool_tick(1_795_251_600_000 + self.now.0, 1 << 30, &mut self.out, self.now);
                self.settle();
            }
            Step::Disk { takes } => self.answer(takes),
            Step::Grants => self.grants(),
            Step::Crash => self.crash(),
        }
        self.ask();
    }

    fn offer(&mut self, device: usize, bytes: usize) {
        if self.devices[device].waits {
            return;
        }
        let number = self.devices[device].next;
        // A device has a window of its own.
        if number - self.devices[device].unacknowledged >= 20 {
            return;
        }
        let payload = payload(device, number, bytes);
        let message = Outbound {
            topic: "devices/d/x",
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: &[],
            stamp: &[],
            payload: &payload,
            received_ms: 0,
            device: hash(device),
            ack: self.ack_of((device, number)),
        };
        match self.link.offer(self.who(device), number as u16 + 1, &message, self.now) {
            Offer::Taken => {
                self.offered.entry((device, number)).or_insert(self.now);
                self.devices[device].next += 1;
                self.devices[device].held = false;
                let who = self.who(device);
                self.link.give_back(who);
            }
            Offer::Wait => (self.devices[device].held, self.devices[device].waits) = (true, true),
            other => panic!("{other:?}"),
        }
    }

    fn grants(&mut self) {
        let mut woken = vec![];
        self.link.grants(&mut |who| {
            woken.push(who);
            Woken::Here
        });
        for who in woken {
            assert_eq!(who.generation, self.life);
            self.devices[who.slot as usize].waits = false;
            // A session that is woken offers at once what it holds.
            self.offer(who.slot as usize, 50);
            if !self.devices[who.slot as usize].waits {
                self.link.give_back(who);
            }
        }
    }

    fn connect(&mut self, session_present: bool, receive_maximum: u16) {
        self.lose(Lost::Otherwise);
        let connack = Connack { session_present, receive_maximum, ..Connack::new(0) };
        self.link.start(self.now);
        self.link.wrote(self.link.unsent().len());
        self.hub.up = true;
        self.hub.session_present = session_present;
        let mut bytes = vec![];
        write_connack(&mut bytes, self.version, &connack);
        self.hub_sends(&bytes);
    }

    fn lose(&mut self, lost: Lost) {
        if lost == Lost::ByHub {
            self.write(usize::MAX);
        }
        self.hub.closed_on.extend(self.hub.unacknowledged.drain(..).map(|(_, message)| message));
        self.hub.up = false;
        self.hub.held.clear();
        self.link.down(lost, &mut self.out, self.now);
        self.settle();
    }

    fn write(&mut self, mut bytes: usize) {
        while bytes > 0 && !self.link.unsent().is_empty() {
            let n = bytes.min(self.link.unsent().len());
            self.hub.held.extend_from_slice(&self.link.unsent()[..n]);
            self.link.wrote(n);
            bytes -= n;
        }
        let held = std::mem::take(&mut self.hub.held);
        let mut rest = &held[..];
        while let Some(frame) = next_frame(rest, usize::MAX).expect("well-formed") {
            rest = &rest[frame.bytes().len()..];
            if frame.packet_type() == PacketType::Publish {
                let publish = parse_publish(frame, self.version).expect("a PUBLISH");
                self.arrived(publish.packet_id, message_of(publish.payload));
            }
        }
        self.hub.held = rest.to_vec();
    }

    /// What comes for the first time is the next of its device: nothing is passed over.
    fn arrived(&mut self, packet_id: u16, message: Message) {
        let (device, number) = message;
        let next = self.hub.highest.get(&device).map_or(0, |highest| highest + 1);
        let missing = (next..number).filter(|n| !self.is_old((device, *n)));
        assert_eq!(missing.count(), 0, "device {device}: {number} came, {next} is missing");
        self.hub.highest.insert(device, number.max(next.saturating_sub(1)));
        self.hub.unacknowledged.push((packet_id, message));
    }

    fn acknowledge(&mut self, index: usize, reason: u8) {
        let (id, message) = self.hub.unacknowledged.remove(index);
        if reason < 0x80 {
            self.hub.has.insert(message)
        } else {
            self.hub.refused.insert(message)
        };
        let mut bytes = vec![];
        write_puback(&mut bytes, self.version, id, reason);
        self.hub_sends(&bytes);
    }

    fn hub_sends(&mut self, bytes: &[u8]) {
        let used = self.link.on_bytes(bytes, &mut self.out, &mut |_, _: &Incoming<'_>| Taken::Whole, self.now);
        assert_eq!(used, Ok(bytes.len()));
        self.settle();
    }

    /// The heart of it: nobody is told that a message is safe when it is not.
    fn settle(&mut self) {
        for settled in std::mem::take(&mut self.out.settled) {
            assert_eq!(settled.session.generation, self.life, "a session of this life");
            let device = settled.session.slot as usize;
            let message = (device, u32::from(settled.packet_id) - 1);
            let hub = self.hub.has.contains(&message);
            match settled.outcome {
                Ok(()) => {
                    let disk = self.disk.keeps(message) || hub && self.disk.taken > 0;
                    match self.ack_of(message) {
                        Ack::Durable => assert!(hub || disk, "{message:?} has no witness"),
                        Ack::Hub => assert!(hub, "{message:?}: the hub has not got it"),
                        Ack::Disk => assert!(disk, "{message:?}: the disk has not got it"),
                    }
                }
                Err(Refusal::Code(_)) => assert!(self.hub.refused.contains(&message), "{message:?} was not refused"),
                Err(Refusal::TooOld) => {
                    assert_eq!(self.ack_of(message), Ack::Hub);
                    assert!(self.is_old(message), "{message:?} is young");
                    self.given_up.insert(message);
                }
                Err(why) => {
                    assert_eq!((why, self.ack_of(message)), (Refusal::Closed, Ack::Hub));
                    assert!(self.hub.closed_on.contains(&message), "{message:?}: the hub did not close on it");
                    self.given_up.insert(message);
                }
            }
            let of_device = &mut self.devices[device];
            assert!(of_device.answered.insert(message.1), "{message:?} is answered for once");
            while of_device.answered.contains(&of_device.unacknowledged) {
                of_device.unacknowledged += 1;
            }
        }
    }

    /// What the shard does after each step.
    fn ask(&mut self) {
        for (stream, upto) in self.link.spool_acknowledgements() {
            let (head, all) = self.disk.streams.get_mut(&stream.queue).expect("a stream that was written");
            assert!(*head <= upto && upto <= all.len() as u64, "only what is there is acknowledged");
            *head = upto;
        }
        if let Some(batch) = self.link.spool_batch(self.now) {
            self.disk.asked.push_back(Asked::Append(batch));
        }
        if let Some(wanted) = self.link.spool_wanted(self.now) {
            self.disk.asked.push_back(Asked::Read(wanted));
        }
    }

    fn answer(&mut self, takes: bool) {
        match self.disk.asked.pop_front() {
            Some(Asked::Append(batch)) if takes => {
                self.disk.append(&batch);
                drop(batch);
                self.link.spool_stored(Ok(()), &mut self.out, self.now);
            }
            Some(Asked::Append(_)) => self.link.spool_stored(Err("disk_full"), &mut self.out, self.now),
            Some(Asked::Read(wanted)) if takes => {
                let fetched = wanted.iter().map(|wanted| self.disk.read(wanted)).collect();
                self.link.spool_read(fetched, &mut self.out, self.now);
            }
            Some(Asked::Read(wanted)) => {
                // One of them at least, and others may be readable.
                let unreadable = |(at, wanted): (usize, &Wanted)| match at % 2 {
                    0 => Fetched { queue: wanted.stream.queue, run: Err("disk") },
                    _ => self.disk.read(wanted),
                };
                let fetched = wanted.iter().enumerate().map(unreadable).collect();
                self.link.spool_read(fetched, &mut self.out, self.now);
            }
            None => {}
        }
        self.settle();
    }

    /// The disk keeps what was synced; devices come back and send again what has no PUBACK.
    fn crash(&mut self) {
        self.lose(Lost::Otherwise);
        self.life += 1;
        self.disk.asked.clear();
        self.link = link(self.version, self.age_max, &self.disk);
        self.out = LinkOutput::default();
        for device in &mut self.devices {
            (device.held, device.waits) = (false, false);
            device.next = device.unacknowledged;
            device.answered.clear();
        }
    }

    /// With a hub that answers and a disk that takes, everything arrives and nothing waits.
    fn finish(mut self) {
        self.connect(true, 3);
        for _ in 0..3_000 {
            self.step(&Step::Pass { ms: 50 });
            self.answer(true);
            self.write(usize::MAX);
            while !self.hub.unacknowledged.is_empty() {
                self.acknowledge(0, 0);
                self.write(usize::MAX);
            }
            self.ask();
            self.grants();
            for device in 0..DEVICES {
                if self.devices[device].held {
                    self.offer(device, 50);
                }
            }
            self.ask();
            let idle = self.disk.asked.is_empty() && self.link.inflight() == 0 && !self.link.is_spooling();
            let drained = self.disk.streams.values().all(|(head, all)| *head == all.len() as u64);
            if idle && drained && self.link.owed() == 0 && self.devices.iter().all(|device| !device.held) {
                break;
            }
        }
        self.ask();
        assert!(!self.link.is_spooling(), "direct again: {} wait", self.link.spooled());
        assert_eq!((self.link.inflight(), self.link.owed(), self.link.spooled()), (0, 0, 0));
        let aside: HashMap<Message, Option<Refusal>> = self
            .disk
            .aside
            .iter()
            .filter_map(|bytes| parse_record(bytes))
            .map(|(record, _)| (message_of(record.payload), record.why))
            .collect();
        for (device, of_model) in self.devices.iter().enumerate() {
            assert_eq!(of_model.unacknowledged, of_model.next, "device {device} is answered for everything");
            for number in 0..of_model.next {
                let message = (device, number);
                let refused = self.hub.refused.contains(&message) || self.given_up.contains(&message);
                let kept = aside.contains_key(&message);
                assert!(self.hub.has.contains(&message) || refused || kept, "{message:?} was acknowledged and is lost");
            }
        }
        let waiting: Vec<_> = self.disk.streams.iter().filter(|(_, (head, all))| *head < all.len() as u64).collect();
        assert_eq!(waiting.len(), 0, "the disk is drained");
        for (message, why) in &aside {
            match why {
                Some(Refusal::Code(_)) => assert!(self.hub.refused.contains(message), "{message:?}"),
                Some(Refusal::TooOld) => assert!(self.is_old(*message), "{message:?} is young"),
                Some(Refusal::Closed) => assert!(self.hub.closed_on.contains(message), "{message:?}"),
                why => panic!("{message:?} is set aside: {why:?}"),
            }
        }
    }
}

fn link(version: ProtocolVersion, age_max: Duration, disk: &Disk) -> Link {
    let spool = Some(BacklogConfig { age_max, ..disk.backlog() });
    Link::new(LinkConfig { spool, ..config(version, WINDOW, 256 << 10) })
}

fn hash(device: usize) -> u64 {
    // Two of the devices share a queue.
    ((device as u64) / 2) << 40 | device as u64
}

fn payload(device: usize, number: u32, bytes: usize) -> Vec<u8> {
    let mut payload = vec![0; bytes.max(8)];
    payload[..4].copy_from_slice(&(device as u32).to_be_bytes());
    payload[4..8].copy_from_slice(&number.to_be_bytes());
    payload
}

fn message_of(payload: &[u8]) -> Message {
    let part = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
    (part(0) as usize, part(4))
}

const DEVICES: usize = 4;
const WINDOW: usize = 5;

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, ..ProptestConfig::default() })]

    #[test]
    fn what_is_acknowledged_arrives_in_order_whatever_fails(
        steps in prop::collection::vec(any_step(), 1..250),
        of_5_0 in any::<bool>(),
        // A device may use routes of every kind on one hub.
        acks in prop::collection::vec(
            prop_oneof![3 => Just(Ack::Durable), 1 => Just(Ack::Hub), 2 => Just(Ack::Disk)],
            1..4,
        ),
        age_max in prop_oneof![3 => Just(Duration::ZERO), 1 => Just(Duration::from_secs(3))],
    ) {
        assert_eq!(queue_of(hash(0)), queue_of(hash(1)));
        let version = if of_5_0 { ProtocolVersion::V5_0 } else { ProtocolVersion::V3_1_1 };
        let mut world = World::new(version, &acks, age_max);
        for step in &steps {
            world.step(step);
        }
        world.finish();
    }
}
