//! A link against a plain model of what it promises, with a hub that acknowledges in any order, takes any number of bytes
//! at a time, and is lost at any step.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::{tests::config, *};
use crate::{
    packet::{
        Connack, PacketType, ProtocolVersion, PublishRef, next_frame, parse_publish, write_connack, write_puback,
    },
    route::Ack,
    time::Tick,
};

#[derive(Clone, Debug)]
enum Step {
    /// A session publishes, or tries again what had to wait.
    Offer {
        slot: u32,
        qos: QoS,
        bytes: usize,
    },
    Want {
        slot: u32,
        wanted: u32,
    },
    Write {
        bytes: usize,
    },
    Ack {
        index: prop::sample::Index,
        reason: u8,
    },
    StaleAck {
        id: u16,
    },
    Lose,
    Connect {
        session_present: bool,
        receive_maximum: u16,
    },
    Gone {
        slot: u32,
    },
    Grants,
    GiveBack {
        slot: u32,
    },
    Pass {
        ms: u64,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    let slot = 0..SLOTS;
    let bytes = prop_oneof![6 => 20..200_usize, 2 => 1_000..40_000_usize, 1 => 60_000..100_000_usize];
    prop_oneof![
        12 => (slot.clone(), any::<bool>(), bytes).prop_map(|(slot, once, bytes)| {
            Step::Offer { slot, qos: if once { QoS::AtLeastOnce } else { QoS::AtMostOnce }, bytes }
        }),
        1 => (slot.clone(), 1..4_u32).prop_map(|(slot, wanted)| Step::Want { slot, wanted }),
        8 => prop_oneof![1..300_usize, 1..200_000_usize].prop_map(|bytes| Step::Write { bytes }),
        8 => (any::<prop::sample::Index>(), prop_oneof![4 => Just(0), 1 => Just(0x87)])
            .prop_map(|(index, reason)| Step::Ack { index, reason }),
        1 => (0..9_u16).prop_map(|id| Step::StaleAck { id }),
        1 => Just(Step::Lose),
        2 => (any::<bool>(), 1..6_u16)
            .prop_map(|(session_present, receive_maximum)| Step::Connect { session_present, receive_maximum }),
        1 => slot.clone().prop_map(|slot| Step::Gone { slot }),
        4 => Just(Step::Grants),
        2 => slot.prop_map(|slot| Step::GiveBack { slot }),
        1 => (1..40_000_u64).prop_map(|ms| Step::Pass { ms }),
    ]
}

/// One message: whose, and the how-manieth of it.
type Message = (SessionRef, u32);

/// What the hub has seen.
#[derive(Default)]
struct Hub {
    up: bool,
    session_present: bool,
    receive_maximum: usize,
    /// Bytes that are no whole packet yet.
    held: Vec<u8>,
    /// Of this connection, by packet id.
    unacknowledged: Vec<(u16, Message)>,
    /// Of this connection, by session.
    last: HashMap<SessionRef, u32>,
    /// Of all connections, by session: the highest number. What is first seen is the next.
    highest: HashMap<SessionRef, u32>,
    begun_before: HashSet<Message>,
    answered: HashMap<Message, u8>,
    once: HashSet<Message>,
}

/// What a session holds.
#[derive(Default)]
struct Session {
    generation: u32,
    taken: u32,
    /// The message that had to wait.
    held: Option<(QoS, usize)>,
    /// Its place in the queue; kept until what is promised to it is used up.
    arrival: Option<u64>,
    wanted: usize,
    promised: usize,
}

impl Session {
    fn is_queued(&self) -> bool {
        self.arrival.is_some() && self.promised == 0
    }
}

struct World {
    link: Link,
    version: ProtocolVersion,
    window: usize,
    out: LinkOutput,
    hub: Hub,
    sessions: Vec<Session>,
    arrivals: u64,
    expected: HashMap<(SessionRef, u16), Message>,
    now: Tick,
}

impl World {
    fn new(version: ProtocolVersion, window: usize) -> Self {
        Self {
            link: Link::new(config(version, window, LOG_BYTES_MAX)),
            version,
            window,
            out: LinkOutput::default(),
            hub: Hub::default(),
            sessions: (0..SLOTS).map(|_| Session::default()).collect(),
            arrivals: 0,
            expected: HashMap::new(),
            now: Tick(0),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Offer { slot, qos, bytes } => self.offer(slot, qos, bytes),
            Step::Want { slot, wanted } => {
                self.link.wait_turn(self.who(slot), wanted);
                let session = &mut self.sessions[slot as usize];
                if session.arrival.is_some() {
                    session.wanted = session.wanted.max(wanted as usize);
                }
            }
            Step::Write { bytes } => self.write(bytes),
            Step::Ack { index, reason } => {
                if !self.hub.unacknowledged.is_empty() {
                    let reason = if self.version == ProtocolVersion::V5_0 { reason } else { 0 };
                    self.acknowledge(index.index(self.hub.unacknowledged.len()), reason);
                }
            }
            Step::StaleAck { id } => self.stale(id),
            Step::Lose => self.lose(),
            Step::Connect { session_present, receive_maximum } => self.connect(session_present, receive_maximum),
            Step::Gone { slot } => {
                self.link.session_gone(self.who(slot), self.now);
                let generation = self.sessions[slot as usize].generation + 1;
                self.sessions[slot as usize] = Session { generation, ..Session::default() };
            }
            Step::Grants => self.grants(),
            Step::GiveBack { slot } => {
                self.link.give_back(self.who(slot));
                let session = &mut self.sessions[slot as usize];
                if session.promised > 0 {
                    (session.promised, session.arrival, session.wanted) = (0, None, 0);
                }
            }
            Step::Pass { ms } => {
                self.now.0 += ms;
                if self.link.tick(self.now).is_err() {
                    self.lose();
                }
            }
        }
        self.check();
    }

    fn who(&self, slot: u32) -> SessionRef {
        SessionRef { slot, generation: self.sessions[slot as usize].generation }
    }

    /// What had to wait is offered again before anything new: a session that waits does not read on.
    fn offer(&mut self, slot: u32, qos: QoS, bytes: usize) {
        let who = self.who(slot);
        let (qos, bytes) = self.sessions[slot as usize].held.unwrap_or((qos, bytes));
        let number = self.sessions[slot as usize].taken;
        let packet_id = number as u16 + 1;
        let mut payload = vec![0; bytes];
        for (at, part) in [who.slot, who.generation, number].into_iter().enumerate() {
            payload[4 * at..][..4].copy_from_slice(&part.to_be_bytes());
        }
        let others_wait = self.sessions.iter().any(Session::is_queued);
        let free = self.free_places();
        let message = Outbound {
            topic: "devices/d/x",
            qos,
            retain: false,
            properties: &[],
            stamp: &[],
            payload: &payload,
            received_ms: 0,
            device: 0,
            ack: Ack::Durable,
        };
        let offer = self.link.offer(who, packet_id, &message, self.now);
        let session = &mut self.sessions[slot as usize];
        match offer {
            Offer::Taken => {
                if qos == QoS::AtLeastOnce {
                    assert!(session.promised > 0 || free > 0 && !others_wait, "nobody is passed over");
                    self.expected.insert((who, packet_id), (who, number));
                    session.promised = session.promised.saturating_sub(1);
                }
                if session.promised == 0 {
                    (session.arrival, session.wanted) = (None, 0);
                }
                session.held = None;
                session.taken += 1;
            }
            Offer::Wait => {
                let arrival = session.arrival.unwrap_or(self.arrivals);
                self.arrivals = self.arrivals.max(arrival + 1);
                session.held = Some((qos, bytes));
                session.arrival = Some(arrival);
                session.wanted = session.wanted.max(1);
                session.promised = 0;
            }
            Offer::Dropped(_) => {
                assert!(qos == QoS::AtMostOnce && !self.hub.up, "only QoS 0 is dropped, and only without a hub");
                session.held = None;
            }
            Offer::TooLarge => panic!("no message of the model is too large"),
        }
    }

    fn free_places(&self) -> usize {
        self.window - self.expected.len() - self.sessions.iter().map(|s| s.promised).sum::<usize>()
    }

    /// Who is woken was first in the queue, and is promised no more than there is.
    fn grants(&mut self) {
        let mut woken = vec![];
        self.link.grants(&mut |who| {
            woken.push(who);
            Woken::Here
        });
        let mut queue: BTreeMap<u64, u32> = BTreeMap::new();
        for slot in 0..SLOTS {
            let session = &self.sessions[slot as usize];
            if let Some(arrival) = session.arrival.filter(|_| session.is_queued()) {
                queue.insert(arrival, slot);
            }
        }
        for who in woken {
            let (_, slot) = queue.pop_first().expect("who is woken waited");
            assert_eq!(who, self.who(slot), "first come, first served");
            let free = self.free_places();
            let session = &mut self.sessions[slot as usize];
            if session.held.is_some_and(|(qos, _)| qos == QoS::AtLeastOnce) {
                assert!(free > 0, "only what is free is promised");
                session.promised = session.wanted.min(free);
            } else {
                (session.arrival, session.wanted) = (None, 0);
            }
        }
    }

    fn connect(&mut self, session_present: bool, receive_maximum: u16) {
        self.lose();
        // Of 3.1.1 the hub cannot say how much it takes.
        let receive_maximum = if self.version == ProtocolVersion::V5_0 { receive_maximum } else { u16::MAX };
        let connack = Connack { session_present, receive_maximum, ..Connack::new(0) };
        self.link.start(self.now);
        self.link.wrote(self.link.unsent().len());
        assert!(self.link.unsent().is_empty(), "nothing but CONNECT before CONNACK");
        self.hub.up = true;
        self.hub.session_present = session_present;
        self.hub.receive_maximum = receive_maximum.into();
        let mut bytes = vec![];
        write_connack(&mut bytes, self.version, &connack);
        self.hub_sends(&bytes).expect("accepted");
    }

    fn lose(&mut self) {
        self.link.down(Lost::Otherwise, &mut self.out, self.now);
        self.hub.up = false;
        self.hub.held.clear();
        self.hub.last.clear();
        for (_, message) in self.hub.unacknowledged.drain(..) {
            self.hub.begun_before.insert(message);
        }
    }

    fn write(&mut self, mut bytes: usize) {
        while bytes > 0 && !self.link.unsent().is_empty() {
            assert!(self.hub.up, "nothing is written to a hub that is away");
            let n = bytes.min(self.link.unsent().len());
            self.hub.held.extend_from_slice(&self.link.unsent()[..n]);
            self.link.wrote(n);
            self.hub.read(self.version);
            bytes -= n;
        }
    }

    fn acknowledge(&mut self, index: usize, reason: u8) {
        let (id, message) = self.hub.unacknowledged.remove(index);
        self.hub.answered.insert(message, reason);
        let mut bytes = vec![];
        write_puback(&mut bytes, self.version, id, reason);
        self.hub_sends(&bytes).expect("it was sent");
    }

    /// An answer that was on its way when the last connection was lost.
    fn stale(&mut self, id: u16) {
        if self.hub.up && self.hub.session_present && self.hub.unacknowledged.iter().all(|(known, _)| *known != id) {
            let bytes = [0x40, 2, 0, id as u8];
            self.hub_sends(&bytes).expect("tolerated");
        }
    }

    fn hub_sends(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let used = self.link.on_bytes(bytes, &mut self.out, &mut |_, _: &Incoming<'_>| Taken::Whole, self.now)?;
        assert_eq!(used, bytes.len());
        for settled in self.out.settled.drain(..) {
            let message = self.expected.remove(&(settled.session, settled.packet_id)).expect("settled once");
            let reason = self.hub.answered.get(&message).expect("the hub answered this message");
            assert_eq!(settled.outcome, if *reason < 0x80 { Ok(()) } else { Err(Refusal::Code(*reason)) });
        }
        Ok(())
    }

    fn check(&self) {
        assert_eq!(self.link.inflight(), self.expected.len(), "every message is settled or in flight");
        assert_eq!(self.link.promised(), self.sessions.iter().map(|s| s.promised).sum::<usize>());
        assert!(self.link.inflight() + self.link.promised() <= self.window);
        // A rebuilt log may be packed less well than it was, by one segment.
        assert!(self.link.log_bytes() <= LOG_BYTES_MAX + log::SEGMENT_BYTES, "{}", self.link.log_bytes());
    }

    /// With a hub that is there and answers, nothing waits for ever.
    fn finish(mut self) {
        self.connect(true, 3);
        for _ in 0..1_000 {
            self.write(usize::MAX);
            while !self.hub.unacknowledged.is_empty() {
                self.acknowledge(0, 0);
            }
            self.grants();
            self.check();
            for slot in 0..SLOTS {
                let session = &self.sessions[slot as usize];
                match session.held {
                    Some((qos, bytes)) if !session.is_queued() => self.offer(slot, qos, bytes),
                    None if session.promised > 0 => self.step(&Step::GiveBack { slot }),
                    _ => {}
                }
            }
        }
        assert_eq!((self.link.inflight(), self.link.promised(), self.link.unsent_bytes()), (0, 0, 0));
        assert!(self.sessions.iter().all(|s| s.held.is_none()), "everybody was served");
        for slot in 0..SLOTS {
            let taken = self.sessions[slot as usize].taken;
            let seen = self.hub.highest.get(&self.who(slot)).map_or(0, |highest| highest + 1);
            assert_eq!(seen, taken, "all that was taken arrived");
        }
        assert!(self.link.log_bytes() <= log::SEGMENT_BYTES, "memory is given back");
    }
}

impl Hub {
    fn read(&mut self, version: ProtocolVersion) {
        let held = std::mem::take(&mut self.held);
        let mut rest = &held[..];
        while let Some(frame) = next_frame(rest, usize::MAX).expect("well-formed") {
            rest = &rest[frame.bytes().len()..];
            match frame.packet_type() {
                PacketType::Publish => self.publish(&parse_publish(frame, version).expect("a PUBLISH")),
                other => assert_eq!(other, PacketType::Pingreq),
            }
        }
        self.held = rest.to_vec();
    }

    fn publish(&mut self, publish: &PublishRef<'_>) {
        let part = |at: usize| u32::from_be_bytes(publish.payload[4 * at..][..4].try_into().expect("four bytes"));
        let (session, number) = (SessionRef { slot: part(0), generation: part(1) }, part(2));
        let message = (session, number);
        if let Some(last) = self.last.insert(session, number) {
            assert!(last < number, "in order on a connection");
        }
        let highest = self.highest.get(&session).copied();
        let next = highest.map_or(0, |highest| highest + 1);
        assert!(number <= next, "no gap: {number} before {next}");
        self.highest.insert(session, highest.map_or(number, |highest| highest.max(number)));
        if publish.qos == QoS::AtMostOnce {
            assert!(self.once.insert(message), "QoS 0 comes once");
            return;
        }
        assert!(!self.answered.contains_key(&message), "what was answered is not sent again");
        assert_eq!(publish.dup, self.session_present && publish.dup, "no DUP in a new session");
        assert!(!self.begun_before.contains(&message) || publish.dup || !self.session_present, "DUP where it was sent");
        assert!(self.unacknowledged.iter().all(|(id, _)| *id != publish.packet_id), "one message to a packet id");
        self.unacknowledged.push((publish.packet_id, message));
        assert!(self.unacknowledged.len() <= self.receive_maximum, "Receive Maximum");
    }
}

const SLOTS: u32 = 4;
const LOG_BYTES_MAX: usize = 320 << 10;

proptest! {
    #[test]
    fn nothing_is_lost_reordered_or_settled_twice(
        five in any::<bool>(),
        window in 1..7_usize,
        steps in prop::collection::vec(any_step(), 1..200),
    ) {
        let version = if five { ProtocolVersion::V5_0 } else { ProtocolVersion::V3_1_1 };
        let mut world = World::new(version, window);
        for step in &steps {
            world.step(step);
        }
        world.finish();
    }
}
