//! A hub that closes its connection on a message.

use super::{
    spool::{ASIDE, Batch, parse_record},
    tests::{config, session},
    *,
};
use crate::{
    packet::{Connack, PacketType, ProtocolVersion, next_frame, parse_publish, write_connack, write_puback},
    time::Tick,
};

const BOTH: [ProtocolVersion; 2] = [ProtocolVersion::V3_1_1, ProtocolVersion::V5_0];

/// A link, a disk that takes everything, and a hub that closes on a payload.
struct World {
    version: ProtocolVersion,
    link: Link,
    out: LinkOutput,
    poison: &'static [&'static str],
    connections: u32,
    arrived: Vec<String>,
    settled: Vec<(u32, Result<(), Refusal>)>,
    aside: Vec<(String, Option<Refusal>)>,
    /// Whether acknowledgements of a connection that closes reach the link.
    last_words: bool,
    ack: Ack,
    now: Tick,
}

impl World {
    fn new(version: ProtocolVersion, ack: Ack, poison: &'static [&'static str]) -> Self {
        let spool = BacklogConfig {
            upstream: 0,
            queues: (0..256).map(|queue| (queue, 0, 0)).collect(),
            devices: vec![],
            spill_after: None,
            age_max: std::time::Duration::ZERO,
        };
        let link = Link::new(LinkConfig { spool: Some(spool), ..config(version, 1_000, 8 << 20) });
        let (out, settled, aside) = Default::default();
        let now = Tick(0);
        let (connections, arrived, last_words) = (0, vec![], true);
        Self { version, link, out, poison, connections, arrived, settled, aside, last_words, ack, now }
    }

    fn offer(&mut self, device: u32, payload: &str) {
        let message = Outbound {
            device: u64::from(device) << 40,
            ack: self.ack,
            ..tests::message(payload.as_bytes(), QoS::AtLeastOnce)
        };
        assert_eq!(self.link.offer(session(device), 1, &message, self.now), Offer::Taken);
    }

    /// One connection, until the hub closes it or nothing is left. Whether it closed.
    fn connection(&mut self) -> bool {
        self.begin();
        loop {
            if self.exchange() {
                return true;
            }
            if self.link.inflight() == 0 {
                return false;
            }
            self.now.0 += 100;
            self.link.tick(self.now).expect("it answers");
        }
    }

    fn begin(&mut self) {
        self.connections += 1;
        self.now.0 += 500;
        self.link.start(self.now);
        self.link.wrote(self.link.unsent().len());
        let mut bytes = vec![];
        write_connack(&mut bytes, self.version, &Connack::new(0));
        self.hub_sends(&bytes);
    }

    /// What the link has to say, and the hub's answers, until there is no more. Whether it closed.
    fn exchange(&mut self) -> bool {
        loop {
            let mut bytes = vec![];
            while !self.link.unsent().is_empty() {
                bytes.extend_from_slice(self.link.unsent());
                self.link.wrote(self.link.unsent().len());
            }
            if bytes.is_empty() {
                return false;
            }
            let (answers, closes) = self.hub_reads(&bytes);
            if !closes || self.last_words {
                self.hub_sends(&answers);
            }
            if closes {
                self.link.down(Lost::ByHub, &mut self.out, self.now);
                self.settle();
                return true;
            }
        }
    }

    fn hub_reads(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let (mut rest, mut answers) = (bytes, vec![]);
        while let Some(frame) = next_frame(rest, usize::MAX).expect("well-formed") {
            rest = &rest[frame.bytes().len()..];
            assert_eq!(frame.packet_type(), PacketType::Publish);
            let publish = parse_publish(frame, self.version).expect("a PUBLISH");
            let payload = String::from_utf8(publish.payload.to_vec()).expect("text");
            if self.poison.contains(&&*payload) {
                return (answers, true);
            }
            self.arrived.push(payload);
            write_puback(&mut answers, self.version, publish.packet_id, 0);
        }
        (answers, false)
    }

    fn hub_sends(&mut self, bytes: &[u8]) {
        let used = self.link.on_bytes(bytes, &mut self.out, &mut |_, _: &Incoming<'_>| Taken::Whole, self.now);
        assert_eq!(used, Ok(bytes.len()));
        self.settle();
    }

    fn settle(&mut self) {
        self.settled.extend(self.out.settled.drain(..).map(|s| (s.session.slot, s.outcome)));
        while let Some(batch) = self.link.spool_batch(self.now) {
            let before = self.settled.len();
            self.keep(&batch);
            drop(batch);
            assert_eq!(self.settled.len(), before, "nobody is told before it is on the disk");
            self.link.spool_stored(Ok(()), &mut self.out, self.now);
            self.settled.extend(self.out.settled.drain(..).map(|s| (s.session.slot, s.outcome)));
        }
    }

    fn keep(&mut self, batch: &Batch) {
        for at in batch.records.iter().filter(|at| at.queue == ASIDE) {
            let (record, _) = parse_record(&batch.bytes[at.start as usize..]).expect("a record");
            self.aside.push((String::from_utf8(record.payload.to_vec()).expect("text"), record.why));
        }
    }

    /// Until everything is answered for.
    fn finish(&mut self) {
        while self.link.owed() > 0 || self.link.inflight() > 0 {
            assert!(self.connections < 200, "it goes round in circles");
            self.connection();
        }
    }
}

#[test]
fn a_message_that_the_hub_closes_on_is_set_aside_and_everything_else_arrives_in_order() {
    for (version, last_words) in BOTH.into_iter().flat_map(|version| [(version, true), (version, false)]) {
        let mut world = World::new(version, Ack::Durable, &["d7 50"]);
        world.last_words = last_words;
        for n in 0..100 {
            (0..10).for_each(|device| world.offer(device, &format!("d{device} {n}")));
        }
        world.finish();
        assert!(world.connections < 20, "{} connections", world.connections);
        assert_eq!(world.aside, [("d7 50".to_owned(), Some(Refusal::Closed))]);
        assert_eq!(world.settled.len(), 1_000);
        assert!(world.settled.iter().all(|(_, outcome)| outcome.is_ok()));
        for device in 0..10 {
            let mut seen = std::collections::HashSet::new();
            let of_device = |text: &&String| text.starts_with(&format!("d{device} "));
            let first: Vec<&String> =
                world.arrived.iter().filter(of_device).filter(|text| seen.insert(*text)).collect();
            let sent: Vec<String> = (0..100).map(|n| format!("d{device} {n}")).filter(|text| text != "d7 50").collect();
            assert!(first.into_iter().eq(&sent), "device {device}");
        }
    }
}

#[test]
fn others_do_not_wait_while_the_suspect_is_tried() {
    let mut world = World::new(ProtocolVersion::V3_1_1, Ack::Durable, &["bad"]);
    world.offer(1, "bad");
    world.offer(1, "after");
    world.offer(2, "other");
    assert!(world.connection() && world.arrived.is_empty());
    assert!(world.connection() && world.arrived.is_empty(), "the first in the log, alone");
    assert!(world.connection());
    assert_eq!(world.arrived, ["other"], "before the suspect, which is tried alone after it");
    world.offer(3, "late");
    world.finish();
    assert_eq!(world.arrived, ["other", "late", "after"]);
    assert_eq!(world.aside, [("bad".to_owned(), Some(Refusal::Closed))]);
}

#[test]
fn who_comes_while_a_suspect_is_held_passes_it_on_the_same_connection() {
    let mut world = World::new(ProtocolVersion::V5_0, Ack::Durable, &["bad"]);
    world.offer(1, "bad");
    world.offer(1, "after");
    assert!(world.connection() && world.connection(), "it is suspected");
    world.begin();
    for n in 0..10 {
        world.offer(2, &format!("other {n}"));
        assert!(!world.exchange(), "nothing closes");
        assert_eq!(world.arrived.len(), n + 1, "{:?}", world.arrived);
    }
    world.finish();
    assert_eq!(world.arrived.last().map(|text| &**text), Some("after"));
}

#[test]
fn where_the_hub_alone_is_the_witness_the_device_is_told_that_it_will_not_have_it() {
    let mut world = World::new(ProtocolVersion::V5_0, Ack::Hub, &["bad"]);
    world.offer(1, "bad");
    world.offer(2, "good");
    world.finish();
    assert_eq!(world.settled, [(2, Ok(())), (1, Err(Refusal::Closed))]);
    assert_eq!(world.aside, []);
}

#[test]
fn a_device_that_sends_nothing_else_stops_nobody_and_itself_not_for_ever() {
    let mut world = World::new(ProtocolVersion::V3_1_1, Ack::Durable, &["bad 1", "bad 2", "bad 3"]);
    for payload in ["bad 1", "bad 2", "bad 3", "good"] {
        world.offer(1, payload);
    }
    world.finish();
    assert_eq!(world.arrived, ["good"]);
    assert_eq!(world.aside.iter().map(|(text, _)| &**text).collect::<Vec<_>>(), ["bad 1", "bad 2", "bad 3"]);
}

#[test]
fn a_hub_that_is_only_restarted_gets_everything_and_nothing_is_set_aside() {
    for version in BOTH {
        let mut world = World::new(version, Ack::Durable, &[]);
        for round in 0..50 {
            (0..20).for_each(|device| world.offer(device, &format!("{round} {device}")));
            world.now.0 += 100;
            world.link.start(world.now);
            world.link.wrote(world.link.unsent().len());
            let mut connack = vec![];
            write_connack(&mut connack, version, &Connack::new(0));
            world.hub_sends(&connack);
            let first = world.link.unsent().to_vec();
            world.link.wrote(first.len());
            world.link.down(Lost::ByHub, &mut world.out, world.now);
            world.connection();
        }
        world.finish();
        assert_eq!((world.arrived.len(), &world.aside), (1_000, &vec![]));
    }
}
