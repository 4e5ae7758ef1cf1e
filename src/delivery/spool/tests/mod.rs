//! The spool under everything that a disk does. `tests/crash.rs` kills the whole gateway.

mod aside;
mod faults;
mod golden;
mod model;
mod sealed;
mod sim;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sim::SimDisk;

use super::*;

const HUB: &str = "hub";
const SMALL: Limits = Limits { bytes_max: 1 << 20, segment_bytes: 4 << 10 };

fn stream(queue: u16) -> StreamId {
    StreamId { upstream: 0, queue }
}

fn open(disk: &SimDisk, limits: Limits) -> Result<(SegmentLog, Recovered), SpoolError> {
    open_with(disk, limits, "")
}

/// With keys, one a line.
fn open_with(disk: &SimDisk, limits: Limits, keys: &str) -> Result<(SegmentLog, Recovered), SpoolError> {
    let keys = if keys.is_empty() { SpoolKeys::default() } else { SpoolKeys::parse(keys).expect("keys") };
    SegmentLog::open(disk.boxed(), limits, &[HUB.to_owned()], &keys)
}

fn opened(disk: &SimDisk, limits: Limits) -> (SegmentLog, Recovered) {
    open(disk, limits).unwrap_or_else(|error| panic!("{error}"))
}

fn record(payload: &[u8]) -> Record<'_> {
    Record {
        at_least_once: true,
        retain: false,
        received_ms: 1_795_251_600_000,
        device: 7,
        topic: "devices/d/x",
        properties: b"\x26\x00\x01a\x00\x01b",
        payload,
        why: None,
    }
}

/// Records of queues, each with its number.
fn batch(records: &[(u16, u64, &[u8])]) -> Arc<Batch> {
    let mut batch = Batch::default();
    for (queue, number, payload) in records {
        let start = batch.bytes.len() as u32;
        write_record(&mut batch.bytes, &record(payload));
        let len = batch.bytes.len() as u32 - start;
        batch.records.push(BatchRecord { queue: *queue, number: *number, start, len });
    }
    Arc::new(batch)
}

/// One record of one queue, as long as asked for.
fn one(queue: u16, number: u64, len: usize) -> Arc<Batch> {
    batch(&[(queue, number, &payload(queue, number, len))])
}

fn payload(queue: u16, number: u64, len: usize) -> Vec<u8> {
    let mut payload = format!("{queue}/{number}/").into_bytes();
    payload.resize(len.max(payload.len()), b'x');
    payload
}

/// The payloads of a queue from `from` on.
fn payloads(log: &mut SegmentLog, queue: u16, from: u64) -> Result<Vec<Vec<u8>>, SpoolError> {
    let (mut at, mut all) = (from, Vec::new());
    loop {
        let run = log.read(stream(queue), at, 1000)?;
        if run.count == 0 {
            return Ok(all);
        }
        let mut rest = &run.bytes[..];
        while let Some((record, len)) = parse_record(rest) {
            all.push(record.payload.to_vec());
            rest = &rest[len..];
        }
        at += run.count;
    }
}

fn state(recovered: &Recovered, queue: u16) -> (u64, u64) {
    let found = recovered.streams.iter().find(|state| state.stream == stream(queue));
    found.map_or((0, 0), |state| (state.head, state.next))
}

#[test]
fn what_is_appended_is_read_in_order_until_it_is_acknowledged() {
    let disk = SimDisk::default();
    let (mut log, recovered) = opened(&disk, SMALL);
    assert_eq!(recovered, Recovered { sealed: vec![(None, 1)], ..Recovered::default() });
    for n in 0..40 {
        log.append(&[one(1, n, 300), one(2, n, 10)]).expect("room");
    }
    assert_eq!(payloads(&mut log, 1, 0).expect("whole"), (0..40).map(|n| payload(1, n, 300)).collect::<Vec<_>>());
    assert_eq!(payloads(&mut log, 2, 37).expect("whole").len(), 3);
    log.acknowledge(stream(1), 40);
    log.acknowledge(stream(2), 30);
    assert_eq!(log.fill().hubs[0].messages, 10);
    log.flush().expect("room");
    drop(log);
    let (mut log, recovered) = opened(&disk.after_kill(), SMALL);
    assert_eq!((state(&recovered, 1), state(&recovered, 2)), ((40, 40), (30, 40)));
    assert_eq!(payloads(&mut log, 2, 30).expect("whole").len(), 10);
    assert_eq!(recovered.devices.len(), 1, "bytes of each device are counted anew");
}

#[test]
fn what_is_counted_after_a_start_is_what_was_counted_before() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    let mut waits: std::collections::BTreeMap<u64, Vec<u64>> = Default::default();
    for n in 0..200_u64 {
        let mut batch = Batch::default();
        for device in [n % 5, 7] {
            let queue = if device == 7 { 7 } else { 1 };
            let payload = payload(queue, n, 50 + 37 * device as usize);
            let start = batch.bytes.len() as u32;
            write_record(&mut batch.bytes, &Record { device, received_ms: 1_000 + n, ..record(&payload) });
            let len = batch.bytes.len() as u32 - start;
            batch.records.push(BatchRecord { queue, number: n, start, len });
            waits.entry(device).or_default().push(len.into());
        }
        log.append(&[Arc::new(batch)]).expect("room");
        if n % 50 == 49 {
            log.acknowledge(stream(1), n - 20);
            log.acknowledge(stream(7), n / 2);
            log.flush().expect("room");
        }
    }
    // Of the shared queue 179 are done with, each device's in its turn, and 99 of the other.
    let expected: Vec<(u16, u64, u64)> = waits
        .iter()
        .map(|(device, lens)| {
            let gone = if *device == 7 { 99 } else { (0..179).filter(|n| n % 5 == *device).count() };
            (0, *device, lens[gone..].iter().sum())
        })
        .collect();
    let before = log.fill();
    for after in [disk.after_kill(), disk.after_power_cut(&mut || false)] {
        let (log, recovered) = opened(&after, SMALL);
        let found = log.fill();
        assert_eq!((found.bytes, found.free), (before.bytes, before.free));
        let counted = |fill: &Fill| fill.hubs.iter().map(|hub| (hub.messages, hub.aside)).collect::<Vec<_>>();
        assert_eq!((counted(&found), counted(&found)), (counted(&before), vec![(21 + 101, 0)]));
        assert!(found.hubs[0].oldest_ms <= Some(1_099) && found.hubs[0].oldest_ms.is_some(), "early rather than late");
        assert_eq!(recovered.devices, expected);
    }
}

#[test]
fn a_group_is_one_write_and_one_sync() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, Limits::of_size(1 << 30));
    let before = disk.world().syncs;
    let batches: Vec<_> = (0..50).map(|queue| one(queue, 0, 256)).collect();
    log.append(&batches).expect("room");
    assert_eq!(disk.world().syncs - before, 1);
}

#[test]
fn queues_that_are_drained_at_different_ages_do_not_have_segments_read_again_and_again() {
    let limits = Limits { bytes_max: 1 << 30, segment_bytes: 64 << 10 };
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, limits);
    for n in 0..40 {
        let group: Vec<_> = (0..16).map(|queue| one(queue, n, 2000)).collect();
        log.append(&group).expect("room");
    }
    assert!(log.segments.len() > 15, "{} segments", log.segments.len());
    drop(log);
    // After a start it is not known where anything lies.
    let (mut log, _) = opened(&disk.after_kill(), limits);
    let round = |log: &mut SegmentLog| {
        for queue in 0..16 {
            assert_eq!(log.read(stream(queue), u64::from(queue) * 2, 1).expect("whole").count, 1);
        }
    };
    round(&mut log);
    let before = disk.world().read;
    for _ in 0..10 {
        round(&mut log);
    }
    let read = disk.world().read - before;
    assert!(read < 160 * 2200, "{read} bytes read for 160 records of 2000");
}

#[test]
fn acknowledgements_are_lasting_after_a_flush_and_with_the_next_group() {
    for flushed in [true, false] {
        let disk = SimDisk::default();
        let (mut log, _) = opened(&disk, SMALL);
        log.append(&[one(1, 0, 10), one(1, 1, 10)]).expect("room");
        log.acknowledge(stream(1), 1);
        if flushed {
            log.flush().expect("room")
        } else {
            log.append(&[one(2, 0, 1)]).expect("room")
        }
        let (_, recovered) = opened(&disk.after_power_cut(&mut || false), SMALL);
        assert_eq!(state(&recovered, 1), (1, 2));
    }
}

#[test]
fn a_drained_spool_gives_its_disk_back_and_its_numbers_go_on() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    for n in 0..500 {
        log.append(&[one(1, n, 200)]).expect("room");
        log.acknowledge(stream(1), n + 1);
    }
    log.flush().expect("room");
    assert!(log.fill().bytes <= 64 << 10, "{}", log.fill().bytes);
    assert_eq!(disk.names().len(), 1 + log.segments.len());
    let (_, recovered) = opened(&disk.after_kill(), SMALL);
    assert_eq!(state(&recovered, 1), (500, 500));
}

#[test]
fn what_a_killed_first_start_left_of_its_segment_takes_nothing_with_it() {
    for left in [&b""[..], b"TGSPOOL\x1A", &[0; 4096]] {
        let disk = SimDisk::default();
        disk.boxed().create("0000000000000001.seg").unwrap().write_at(left, 0).unwrap();
        let (mut log, _) = opened(&disk, SMALL);
        log.append(&[one(3, 0, 10)]).unwrap();
        log.flush().unwrap();
        log.append(&[one(3, 1, 10)]).unwrap();
        drop(log);
        let (mut log, _) = opened(&disk.after_kill(), SMALL);
        assert_eq!(payloads(&mut log, 3, 0).unwrap(), [payload(3, 0, 10), payload(3, 1, 10)]);
    }
}

#[test]
fn one_message_that_is_stuck_does_not_hold_the_disk() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    log.append(&[one(9, 0, 100)]).expect("room");
    for n in 0..3000 {
        log.append(&[one(1, n, 200)]).expect("room");
        log.acknowledge(stream(1), n + 1);
        if n % 10 == 0 {
            log.flush().expect("room");
        }
        assert!(log.fill().bytes <= 8 * SMALL.segment_bytes, "{} after {n}", log.fill().bytes);
    }
    assert_eq!(payloads(&mut log, 9, 0).expect("whole"), [payload(9, 0, 100)]);
    let (mut log, recovered) = opened(&disk.after_kill(), SMALL);
    assert_eq!(state(&recovered, 9), (0, 1));
    assert_eq!(payloads(&mut log, 9, 0).expect("whole"), [payload(9, 0, 100)]);
}

#[test]
fn beyond_size_max_nothing_is_taken_until_messages_are_acknowledged() {
    let disk = SimDisk::default();
    let limits = Limits { bytes_max: 64 << 10, segment_bytes: 4 << 10 };
    let (mut log, _) = opened(&disk, limits);
    let taken = (0..1000).take_while(|n| log.append(&[one(1, *n, 500)]).is_ok()).count() as u64;
    assert!((80..110).contains(&taken), "{taken}");
    assert!(matches!(log.append(&[one(1, taken, 500)]), Err(SpoolError::SizeMax)));
    assert!(disk.names().iter().map(|name| disk.bytes_of(name).len() as u64).sum::<u64>() <= limits.bytes_max);
    log.acknowledge(stream(1), taken / 2);
    for n in taken..taken + taken / 4 {
        log.append(&[one(1, n, 500)]).expect("room again");
    }
    assert_eq!(payloads(&mut log, 1, taken / 2).expect("whole").len() as u64, taken / 2 + taken % 2 + taken / 4);
}

#[test]
fn what_is_set_aside_is_numbered_by_the_spool_and_kept() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    for _ in 0..3 {
        log.append(&[batch(&[(ASIDE, 0, b"a"), (ASIDE, 0, b"b")]), batch(&[(ASIDE, 0, b"c")])]).expect("room");
    }
    assert_eq!((log.fill().hubs[0].aside, log.fill().hubs[0].messages), (9, 0));
    let (mut log, recovered) = opened(&disk.after_kill(), SMALL);
    assert_eq!(recovered.devices, []);
    assert_eq!(payloads(&mut log, ASIDE, 0).expect("whole").concat(), b"abcabcabc");
}

#[test]
fn a_hub_that_is_not_configured_any_more_is_named_and_keeps_its_messages() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    log.append(&[one(1, 0, 10)]).expect("room");
    let (log, recovered) = SegmentLog::open(disk.after_kill().boxed(), SMALL, &["other".into()], &SpoolKeys::default())
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(recovered.strangers, [(HUB.to_owned(), 1)]);
    assert_eq!(recovered.streams, []);
    assert_eq!(log.fill().hubs.iter().map(|hub| hub.messages).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_directory_has_one_gateway() {
    let folder = tempfile::tempdir().expect("a directory");
    let held = Directory::open(&folder.path().join("spool")).expect("free");
    let second = Directory::open(&folder.path().join("spool"));
    assert_eq!(second.map(|_| ()).map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
    drop(held);
    Directory::open(&folder.path().join("spool")).expect("free again");
}

#[test]
fn memory_does_not_grow_with_what_waits() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, Limits { bytes_max: 1 << 30, segment_bytes: 64 << 10 });
    for n in 0..20_000 {
        log.append(&[one((n % 3) as u16, n / 3, 64)]).expect("room");
    }
    let extents: usize = log.streams.values().map(|stream| stream.extents.len()).sum();
    assert!(extents <= 3 * log.segments.len(), "one entry a stream and segment");
    assert!(log.segments.iter().filter(|segment| segment.map.is_some()).count() <= 5, "few maps are kept");
    for queue in 0..3 {
        payloads(&mut log, queue, 0).expect("whole");
    }
    assert!(log.segments.iter().filter(|segment| segment.map.is_some()).count() <= 5, "also after reading all");
}

#[test]
fn the_alarm_lasts_as_long_as_messages_are_refused_whatever_else_would_fit() {
    let disk = SimDisk::default();
    let (log, _) = opened(&disk, SMALL);
    let mut keeper = Keeper::new(Box::new(log));
    let handle = keeper.handle();
    let link = LinkAddress { shard: 0, upstream: 0, member: 0 };
    let (answers, answered) = std::sync::mpsc::channel();
    keeper.start(move |_, answer| drop(answers.send(answer))).expect("a thread");
    let too_large = one(0, 0, 2 << 20);
    let refused = || {
        handle.append(link, too_large.clone());
        let answer = answered.recv_timeout(Duration::from_secs(20));
        assert_eq!(answer, Ok(Answer::Appended(Err("size_max"))));
    };
    let began = Instant::now();
    while handle.trouble().is_none() {
        assert!(began.elapsed() < Duration::from_secs(20), "an alarm");
        refused();
    }
    // Over two of the times at which the disk would be asked.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) {
        refused();
        assert!(handle.trouble().is_some(), "after {:?}", began.elapsed());
    }
    // Nobody has anything to append any more.
    let began = Instant::now();
    while handle.trouble().is_some() {
        assert!(began.elapsed() < Duration::from_secs(20), "the alarm ends");
        std::thread::yield_now();
    }
}

#[test]
fn the_keeper_answers_groups_what_waits_and_flushes_at_its_end() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("spool");
    let directory = Directory::open(&path).expect("free");
    let (log, _) = SegmentLog::open(Box::new(directory), SMALL, &[HUB.into()], &SpoolKeys::default())
        .unwrap_or_else(|e| panic!("{e}"));
    let mut keeper = Keeper::new(Box::new(log));
    let handle = keeper.handle();
    let link = |shard| LinkAddress { shard, upstream: 0, member: 0 };
    // Asked before the thread runs, they are one group.
    for shard in 0..10 {
        handle.append(link(shard), one(shard as u16, 0, 100));
    }
    let (answers, answered) = std::sync::mpsc::channel();
    keeper.start(move |link, answer| drop(answers.send((link, answer)))).expect("a thread");
    let all: Vec<_> = answered.iter().take(10).collect();
    assert!(all.iter().enumerate().all(|(n, got)| *got == (link(n), Answer::Appended(Ok(())))), "{all:?}");
    assert_eq!(handle.syncs(), 1);
    handle.read(link(4), vec![Wanted { stream: stream(4), from: 0, bytes: 1 }]);
    let read = answered.recv().expect("an answer");
    let Answer::Read(fetched) = read.1 else { panic!("{read:?}") };
    assert_eq!((fetched.len(), fetched[0].run.as_ref().map(|run| run.count)), (1, Ok(1)));
    handle.acknowledge([(stream(4), 1)].into_iter());
    drop(keeper);
    let directory = Directory::open(&path).expect("free again");
    let (_, recovered) = SegmentLog::open(Box::new(directory), SMALL, &[HUB.into()], &SpoolKeys::default())
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(state(&recovered, 4), (1, 1));
    assert_eq!(state(&recovered, 5), (0, 1));
}
