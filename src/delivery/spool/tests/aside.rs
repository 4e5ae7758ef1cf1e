//! What was set aside, and what is done about it.

use super::*;
use crate::delivery::{Refusal, spool::aside::id_of};

fn with_aside(payloads: &[&str]) -> (SimDisk, SegmentLog) {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    for payload in payloads {
        let mut bytes = Vec::new();
        write_record(&mut bytes, &Record { why: Some(Refusal::Code(0x90)), ..record(payload.as_bytes()) });
        let at = BatchRecord { queue: ASIDE, number: 0, start: 0, len: bytes.len() as u32 };
        log.append(&[Arc::new(Batch { bytes, records: vec![at], ..Batch::default() })]).expect("appended");
    }
    (disk, log)
}

fn listed(log: &mut SegmentLog) -> Vec<(u64, String)> {
    let (messages, total) = list_aside(log, 0, &Chosen::All, usize::MAX).expect("read");
    assert_eq!(messages.len() as u64, total);
    let text = |message: &AsideMessage| {
        let record = message.record().expect("a record");
        assert_eq!((record.why, id_of(&message.bytes)), (Some(Refusal::Code(0x90)), message.id));
        (message.id, String::from_utf8(record.payload.to_vec()).expect("text"))
    };
    messages.iter().map(text).collect()
}

fn texts(log: &mut SegmentLog) -> Vec<String> {
    let mut texts: Vec<String> = listed(log).into_iter().map(|(_, text)| text).collect();
    texts.sort();
    texts
}

#[test]
fn one_that_is_discarded_from_the_middle_leaves_the_others_under_their_names() {
    let (disk, mut log) = with_aside(&["a", "b", "c", "d"]);
    let before = listed(&mut log);
    let gone = Chosen::Ids([before[2].0].into());
    assert_eq!(discard_aside(&mut log, 0, &gone).expect("discarded"), 1);
    assert_eq!(discard_aside(&mut log, 0, &gone).expect("nothing to do"), 0);
    drop(log);
    let (mut log, _) = opened(&disk, SMALL);
    assert_eq!(texts(&mut log), ["a", "b", "d"]);
    assert!(listed(&mut log).iter().all(|one| before.contains(one)), "named as before");
    assert_eq!(log.fill().hubs[0].aside, 3);
    assert_eq!(discard_aside(&mut log, 0, &Chosen::All).expect("discarded"), 3);
    assert_eq!(log.fill().hubs[0].aside, 0);
}

#[test]
fn one_that_was_set_aside_again_before_its_first_record_is_gone_stays() {
    let (disk, mut log) = with_aside(&["a", "b", "b", "c"]);
    let names: Vec<u64> = listed(&mut log).into_iter().map(|(id, _)| id).collect();
    assert_eq!(names[1], names[2]);
    let again = Chosen::Each(vec![names[1], names[3]]);
    assert_eq!(discard_aside(&mut log, 0, &again).expect("discarded"), 2);
    drop(log);
    let (mut log, _) = opened(&disk, SMALL);
    assert_eq!(texts(&mut log), ["a", "b"]);
    let twice = Chosen::Each(vec![names[1], names[1]]);
    assert_eq!(discard_aside(&mut log, 0, &twice).expect("discarded"), 1);
    assert_eq!(texts(&mut log), ["a"]);
}

#[test]
fn a_full_spool_is_freed_by_what_is_discarded_and_by_what_is_tried_again() {
    for retried in [false, true] {
        let disk = SimDisk::default();
        let limits = Limits { bytes_max: 1 << 20, segment_bytes: 64 << 10 };
        let (mut log, _) = opened(&disk, limits);
        let (mut count, mut waiting) = (0_u64, 0_u64);
        loop {
            // Every third message waits, so that no segment is all of one kind.
            let mut bytes = Vec::new();
            let text = format!("{count}:{}", "x".repeat(2_000));
            write_record(&mut bytes, &Record { why: Some(Refusal::Code(0x90)), ..record(text.as_bytes()) });
            let at = BatchRecord { queue: ASIDE, number: 0, start: 0, len: bytes.len() as u32 };
            let aside = Arc::new(Batch { bytes, records: vec![at], ..Batch::default() });
            match log.append(&if count.is_multiple_of(3) { vec![aside, one(9, waiting, 500)] } else { vec![aside] }) {
                Ok(()) => waiting += u64::from(count.is_multiple_of(3)),
                Err(SpoolError::SizeMax) => break,
                Err(error) => panic!("{error}"),
            }
            count += 1;
        }
        let (all, total) = list_aside(&mut log, 0, &Chosen::All, usize::MAX).expect("read");
        assert!(total > 300 && total == count, "{total}");
        // All but the first few: these have to be moved.
        let meant: Vec<u64> = all.iter().skip(40).map(|message| message.id).collect();
        let chosen = Chosen::Ids(meant.iter().copied().collect());
        let done = match retried {
            true => retry_aside(&mut log, 0, &chosen, WALL_MS),
            false => discard_aside(&mut log, 0, &chosen),
        };
        assert_eq!(done.expect("there is room for it"), meant.len());
        assert!(log.fill().bytes <= limits.bytes_max, "{:?}", log.fill());
        assert_eq!(log.fill().hubs[0].aside, total - meant.len() as u64);
        if !retried {
            log.append(&[one(9, waiting, 500)]).expect("there is room again");
        }
        let (mut log, recovered) = opened(&disk.after_kill(), limits);
        assert_eq!(log.fill().hubs[0].aside, total - meant.len() as u64);
        let queue = queue_of(record(b"").device);
        assert_eq!(state(&recovered, queue).1, if retried { meant.len() as u64 } else { 0 });
        assert_eq!(payloads(&mut log, 9, 0).expect("whole").len() as u64, waiting + u64::from(!retried));
    }
}

#[test]
fn what_is_tried_again_waits_in_its_devices_queue_behind_what_waits_there() {
    let (disk, mut log) = with_aside(&["a", "b"]);
    let queue = queue_of(record(b"").device);
    log.append(&[batch(&[(queue, 0, b"waits")])]).expect("appended");
    let first = Chosen::Ids([listed(&mut log)[0].0].into());
    assert_eq!(retry_aside(&mut log, 0, &first, WALL_MS).expect("retried"), 1);
    drop(log);
    let (mut log, _) = opened(&disk, SMALL);
    assert_eq!(texts(&mut log), ["b"]);
    let run = log.read(StreamId { upstream: 0, queue }, 0, 1 << 20).expect("read");
    let payloads: Vec<&[u8]> = run.records().map(|record| record.payload).collect();
    assert_eq!(payloads, [&b"waits"[..], b"a"]);
    let came: Vec<_> = run.records().map(|record| (record.received_ms, record.why)).collect();
    assert_eq!(came, [(record(b"").received_ms, None), (WALL_MS, None)], "its age counts anew");
}

const WALL_MS: u64 = 1_800_000_000_000;
