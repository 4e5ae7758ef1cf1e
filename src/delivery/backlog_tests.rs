//! What waits on the disk: who gets which share of the hub, and what becomes of what nobody will take.

use std::time::Duration;

use super::{
    spool::{Fetched, Wanted, parse_record},
    spool_model::{Asked, Disk},
    tests::{config, message, session},
    *,
};
use crate::{
    packet::{Connack, ProtocolVersion, next_frame, parse_publish, write_connack, write_puback},
    time::Tick,
};

/// A link, a disk that takes everything and a hub that takes what it is told to.
struct Bench {
    link: Link,
    out: LinkOutput,
    disk: Disk,
    /// Sent and not acknowledged: packet id and device.
    on_wire: Vec<(u16, u32)>,
    /// By device, in order.
    arrived: Vec<u32>,
    settled: Vec<(u32, u16, Result<(), Refusal>)>,
    /// Bytes that were last asked for and not yet given.
    read_max: usize,
    /// A queue that cannot be read, and how often that was tried.
    unreadable: Option<u16>,
    failed: usize,
    now: Tick,
}

impl Bench {
    fn new(window: usize, age_max: Duration) -> Self {
        let disk = Disk::default();
        let spool = Some(BacklogConfig { age_max, ..disk.backlog() });
        let link = Link::new(LinkConfig { spool, ..config(V5, window, 8 << 20) });
        let (out, on_wire, arrived, settled) = Default::default();
        let mut bench = Self {
            link,
            out,
            disk,
            on_wire,
            arrived,
            settled,
            read_max: 0,
            unreadable: None,
            failed: 0,
            now: Tick(1_000),
        };
        // The hub is away for long enough.
        bench.pass(1_000);
        assert!(bench.link.is_spooling());
        bench
    }

    fn pass(&mut self, ms: u64) {
        self.now.0 += ms;
        self.link.spool_tick(EPOCH_MS + self.now.0, 1 << 40, &mut self.out, self.now);
        self.work();
    }

    /// A device publishes; each has a queue of its own.
    fn offer(&mut self, device: u32, packet_id: u16, bytes: usize, ack: Ack) {
        let payload = vec![device as u8; bytes];
        let message = Outbound { device: u64::from(device) << 40, ack, ..message(&payload, QoS::AtLeastOnce) };
        assert_eq!(self.link.offer(session(device), packet_id, &message, self.now), Offer::Taken);
    }

    /// The disk does what it is asked, until there is nothing more.
    fn work(&mut self) {
        loop {
            self.settled.extend(self.out.settled.drain(..).map(|s| (s.session.slot, s.packet_id, s.outcome)));
            for (stream, upto) in self.link.spool_acknowledgements() {
                self.disk.streams.get_mut(&stream.queue).expect("a stream that was written").0 = upto;
            }
            if let Some(batch) = self.link.spool_batch(self.now) {
                self.disk.asked.push_back(Asked::Append(batch));
            }
            if let Some(wanted) = self.link.spool_wanted(self.now) {
                self.disk.asked.push_back(Asked::Read(wanted));
            }
            match self.disk.asked.pop_front() {
                Some(Asked::Append(batch)) => {
                    self.disk.append(&batch);
                    drop(batch);
                    self.link.spool_stored(Ok(()), &mut self.out, self.now);
                }
                Some(Asked::Read(wanted)) => {
                    let failed = wanted.iter().filter(|wanted| self.unreadable == Some(wanted.stream.queue)).count();
                    self.failed += failed;
                    let read = |wanted: &Wanted| match wanted.stream.queue {
                        queue if self.unreadable == Some(queue) => Fetched { queue, run: Err("damaged") },
                        _ => self.disk.read(wanted),
                    };
                    let fetched: Vec<_> = wanted.iter().map(read).collect();
                    self.read_max = self
                        .read_max
                        .max(fetched.iter().map(|fetched| fetched.run.as_ref().map_or(0, |run| run.bytes.len())).sum());
                    self.link.spool_read(fetched, &mut self.out, self.now);
                }
                None => return,
            }
        }
    }

    fn connect(&mut self, connack: &Connack) {
        self.link.start(self.now);
        self.link.wrote(self.link.unsent().len());
        let mut bytes = vec![];
        write_connack(&mut bytes, V5, connack);
        self.hub_says(&bytes);
        self.exchange();
    }

    fn hub_says(&mut self, bytes: &[u8]) {
        let used = self.link.on_bytes(bytes, &mut self.out, &mut |_, _: &Incoming<'_>| Taken::Whole, self.now);
        assert_eq!(used, Ok(bytes.len()));
    }

    /// Disk and hub get what is for them.
    fn exchange(&mut self) {
        self.work();
        let mut bytes = vec![];
        while !self.link.unsent().is_empty() {
            bytes.extend_from_slice(self.link.unsent());
            self.link.wrote(self.link.unsent().len());
        }
        let mut rest = &bytes[..];
        while let Some(frame) = next_frame(rest, usize::MAX).expect("well-formed") {
            rest = &rest[frame.bytes().len()..];
            let publish = parse_publish(frame, V5).expect("a PUBLISH");
            let device = u32::from(publish.payload[0]);
            self.arrived.push(device);
            self.on_wire.push((publish.packet_id, device));
        }
    }

    /// The hub acknowledges the next so many.
    fn acknowledge(&mut self, count: usize) {
        let mut bytes = vec![];
        for (id, _) in self.on_wire.drain(..count.min(self.on_wire.len())) {
            write_puback(&mut bytes, V5, id, 0);
        }
        self.hub_says(&bytes);
        self.exchange();
    }

    fn aside(&self) -> Vec<(u32, Option<Refusal>)> {
        let parsed = self.disk.aside.iter().filter_map(|bytes| parse_record(bytes));
        parsed.map(|(record, _)| (u32::from(record.payload[0]), record.why)).collect()
    }
}

#[test]
fn two_backlogs_share_the_hub_however_few_places_become_free_at_a_time() {
    for (batch, bytes) in [(1, 200), (5, 200), (10, 200), (1, 5_000), (10, 40_000)] {
        let mut bench = Bench::new(20, Duration::ZERO);
        let count = 2_000_000 / bytes;
        for _ in 0..count / 10 {
            for device in [1, 2] {
                (0..10).for_each(|n| bench.offer(device, n + 1, bytes, Ack::Durable));
                bench.work();
            }
        }
        bench.connect(&Connack::new(0));
        while bench.arrived.len() < count && !bench.on_wire.is_empty() {
            bench.acknowledge(batch);
        }
        // At any moment each has had its half, but for a round.
        let mut ahead = 0_i64;
        for (n, device) in bench.arrived.iter().enumerate() {
            ahead += if *device == 1 { bytes as i64 } else { -(bytes as i64) };
            let round = 2 * (16 << 10) + 2 * bytes as i64;
            assert!(ahead.abs() <= round, "{bytes} bytes, {batch} at a time: after {n} one is {ahead} ahead");
        }
        assert!(bench.arrived.len() >= count, "{} of {count}", bench.arrived.len());
    }
}

#[test]
fn a_live_message_goes_on_while_long_backlogs_of_others_are_drained() {
    const WINDOW: usize = 10;
    let mut bench = Bench::new(WINDOW, Duration::ZERO);
    let others = 1..40;
    for n in 0..120 {
        others.clone().for_each(|device| bench.offer(device, n + 1, 300, Ack::Durable));
        bench.work();
    }
    bench.connect(&Connack::new(0));
    (0..50).for_each(|_| bench.acknowledge(1));
    for (n, ack) in [Ack::Durable, Ack::Disk, Ack::Hub].into_iter().cycle().take(12).enumerate() {
        bench.settled.clear();
        let before = bench.arrived.len();
        bench.offer(200, n as u16 + 1, 300, ack);
        bench.work();
        let told = bench.settled.contains(&(200, n as u16 + 1, Ok(())));
        assert_eq!(told, ack != Ack::Hub, "the disk has it");
        // It is the next that finds a place.
        (0..2).for_each(|_| bench.acknowledge(1));
        assert!(bench.arrived[before..].contains(&200), "message {n} waits behind a backlog");
        (0..WINDOW).for_each(|_| bench.acknowledge(1));
        assert!(bench.settled.contains(&(200, n as u16 + 1, Ok(()))), "the hub has it");
    }
    // And the backlogs are no worse off for it than by their equals.
    let (from, live) = (bench.arrived.len(), 200);
    for n in 0..400 {
        bench.offer(live, n + 1, 300, Ack::Durable);
        bench.acknowledge(1);
    }
    let of_live = bench.arrived[from..].iter().filter(|device| **device == live).count();
    assert!((10..120).contains(&of_live), "a device that floods has its share of the round: {of_live} of 400");
}

#[test]
fn what_a_device_published_before_a_message_for_the_disk_is_recorded_before_it() {
    let mut bench = Bench::new(10, Duration::ZERO);
    bench.connect(&Connack::new(0));
    bench.pass(100);
    assert!(!bench.link.is_spooling());
    for (n, ack) in [Ack::Durable, Ack::Hub, Ack::Disk, Ack::Durable, Ack::Disk].into_iter().enumerate() {
        bench.offer(1, n as u16, 100 + n, ack);
        bench.offer(2, n as u16, 100 + n, Ack::Durable);
        bench.work();
    }
    let lens = |queue: u16| -> Vec<usize> {
        let records = bench.disk.streams.get(&queue).map(|(_, records)| &records[..]).unwrap_or_default();
        records.iter().filter_map(|bytes| parse_record(bytes)).map(|(record, _)| record.payload.len()).collect()
    };
    // In the order of its PUBLISHes, or a crash would bring them in another one. Nobody else is written for it.
    assert_eq!((lens(1), lens(2)), (vec![100, 101, 102, 103, 104], vec![]));
}

#[test]
fn a_device_that_only_the_hub_answers_is_told_of_what_the_hub_never_takes() {
    // Too large for the hub that came, and too old for any.
    for (size_max, waits_ms, why) in [(Some(1_000), 0, Refusal::TooLarge), (None, 5_001, Refusal::TooOld)] {
        let mut bench = Bench::new(10, Duration::from_secs(5));
        bench.offer(1, 1, 2_000, Ack::Hub);
        bench.offer(1, 2, 2_000, Ack::Durable);
        bench.work();
        assert_eq!(bench.settled, [(1, 2, Ok(()))]);
        assert_eq!(bench.link.owed(), 1);
        bench.pass(waits_ms);
        bench.connect(&Connack { maximum_packet_size: size_max, ..Connack::new(0) });
        bench.pass(100);
        assert_eq!(bench.settled[1..], [(1, 1, Err(why))]);
        assert_eq!(bench.link.owed(), 0, "nobody waits for ever");
        assert_eq!(bench.aside(), [(1, Some(why))], "what the disk answered for is kept");
        assert_eq!((bench.arrived.len(), bench.link.is_spooling()), (0, false));
    }
}

#[test]
fn a_queue_that_cannot_be_read_holds_up_no_other_and_is_tried_again_less_and_less_often() {
    let mut bench = Bench::new(10, Duration::ZERO);
    for device in [1, 2] {
        (0..5).for_each(|n| bench.offer(device, n + 1, 100, Ack::Durable));
    }
    bench.work();
    bench.unreadable = Some(1);
    bench.connect(&Connack::new(0));
    bench.acknowledge(10);
    assert_eq!(bench.arrived, [2; 5]);
    // It is tried again, and not all the time.
    let before = bench.failed;
    (0..60 * 60).for_each(|_| bench.pass(1_000));
    assert!((30..200).contains(&(bench.failed - before)), "{} times in an hour", bench.failed - before);
    bench.unreadable = None;
    bench.pass(120_000);
    bench.exchange();
    bench.acknowledge(10);
    assert_eq!(bench.arrived, [2, 2, 2, 2, 2, 1, 1, 1, 1, 1]);
}

#[test]
fn what_is_too_old_in_any_queue_is_set_aside_while_the_hub_is_away_in_little_memory() {
    let mut bench = Bench::new(10, Duration::from_secs(5));
    // A long backlog that is young at its head stands before those that grow old.
    let (young, old) = (60..100, 101..200);
    for device in old.clone() {
        bench.offer(device, 1, 300, Ack::Durable);
    }
    bench.pass(3_000);
    for n in 0..100 {
        young.clone().for_each(|device| bench.offer(device, n + 1, 1_000, Ack::Durable));
        bench.work();
    }
    for device in old.clone() {
        bench.offer(device, 2, 300, Ack::Durable);
    }
    bench.pass(1_900);
    assert_eq!(bench.aside(), []);
    bench.pass(102);
    let mut aside = bench.aside();
    aside.sort_unstable_by_key(|(device, _)| *device);
    assert_eq!(aside, old.clone().map(|device| (device, Some(Refusal::TooOld))).collect::<Vec<_>>());
    // 16 heads at a time, and nothing stays in memory.
    assert!(bench.read_max <= 16 * (20 << 10), "{} bytes at once", bench.read_max);
    bench.pass(2_990);
    assert_eq!(bench.aside().len(), 99);
    bench.pass(100);
    assert_eq!(bench.aside().len(), 99 + 40 * 100 + 99);
    bench.connect(&Connack::new(0));
    assert_eq!((bench.arrived.len(), bench.link.spooled()), (0, 0));
}

#[test]
fn what_was_in_the_window_when_the_hub_went_grows_old_as_well() {
    let mut bench = Bench::new(10, Duration::from_secs(5));
    bench.connect(&Connack::new(0));
    bench.pass(100);
    assert!(!bench.link.is_spooling());
    for (n, ack) in [(1, Ack::Durable), (2, Ack::Hub), (3, Ack::Disk)] {
        bench.offer(n, 1, 100, ack);
    }
    bench.exchange();
    bench.on_wire.clear();
    bench.link.down(Lost::ByHub, &mut bench.out, bench.now);
    bench.pass(4_900);
    assert_eq!(bench.aside(), []);
    bench.pass(200);
    bench.pass(100);
    let mut aside = bench.aside();
    aside.sort_unstable_by_key(|(device, _)| *device);
    assert_eq!(aside, [1, 3].map(|device| (device, Some(Refusal::TooOld))));
    assert!(bench.settled.contains(&(2, 1, Err(Refusal::TooOld))), "{:?}", bench.settled);
    assert_eq!((bench.link.inflight(), bench.link.owed()), (0, 0));
    // What comes later is as welcome as ever.
    bench.connect(&Connack::new(0));
    bench.offer(1, 2, 100, Ack::Durable);
    bench.exchange();
    bench.acknowledge(1);
    assert!(bench.settled.contains(&(1, 2, Ok(()))));
}

const V5: ProtocolVersion = ProtocolVersion::V5_0;
const EPOCH_MS: u64 = 1_795_251_600_000;
