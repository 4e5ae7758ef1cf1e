//! The spool's engine alone, one group after the other, each synced: `spool_engine FOLDER MESSAGES GROUP RECORD_BYTES` prints
//! messages a second. Part of the bench (bench/README.md); it stands here because it calls the library, which bench/ does
//! not build.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends")]

use std::{env, path::Path, process, sync::Arc, time::Instant};

use tollgate::delivery::spool::{Batch, BatchRecord, Directory, Limits, QUEUES, SegmentLog, Spool as _, SpoolKeys};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder, messages, group, record_bytes] = arguments.as_slice() else {
        eprintln!("usage: spool_engine FOLDER MESSAGES GROUP RECORD_BYTES");
        process::exit(2);
    };
    let number = |text: &String| text.parse::<usize>().expect("a number");
    let (messages, group, record_bytes) = (number(messages), number(group).max(1), number(record_bytes));
    let disk = Box::new(Directory::open(Path::new(folder)).unwrap());
    let limits = Limits::of_size(4 << 30);
    let (mut log, _) = SegmentLog::open(disk, limits, &["hub".to_owned()], &SpoolKeys::default()).unwrap();
    let record = record(record_bytes);
    // As many queues as the bench has devices; each has its own numbers.
    let mut next = [0_u64; DEVICES];
    let groups = messages.div_ceil(group);
    let started = Instant::now();
    for _ in 0..groups {
        let mut batch =
            Batch { upstream: 0, bytes: record.repeat(group), records: Vec::with_capacity(group), ..Batch::default() };
        for at in 0..group {
            let device = at % DEVICES;
            let (start, len) = (u32::try_from(at * record.len()).unwrap(), u32::try_from(record.len()).unwrap());
            let queue = u16::try_from(device).unwrap() * (QUEUES / DEVICES as u16);
            batch.records.push(BatchRecord { queue, number: next[device], start, len });
            next[device] += 1;
        }
        log.append(&[Arc::new(batch)]).unwrap();
    }
    println!("{:.0}", (groups * group) as f64 / started.elapsed().as_secs_f64());
}

/// A record with nothing but a payload and a topic, of so many bytes (docs/spool-format.md).
fn record(bytes: usize) -> Vec<u8> {
    let payload = bytes.saturating_sub(HEADER_BYTES + TOPIC.len());
    let mut record = Vec::with_capacity(bytes);
    let len = u32::try_from(HEADER_BYTES - 4 + TOPIC.len() + payload).unwrap();
    record.extend(len.to_le_bytes());
    record.extend([1, 0]);
    record.extend(u16::try_from(TOPIC.len()).unwrap().to_le_bytes());
    record.extend([0; 4]);
    record.extend(1_u64.to_le_bytes());
    record.extend(7_u64.to_le_bytes());
    record.extend(TOPIC.as_bytes());
    record.extend(vec![b'x'; payload]);
    record
}

const TOPIC: &str = "devices/b17/messages/events/";
const HEADER_BYTES: usize = 28;
const DEVICES: usize = 50;
