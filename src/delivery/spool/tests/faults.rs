//! Torn ends, flips, lost files, full and read-only disks, failed syncs, and what a salvage makes of damage.

use super::*;

/// A log of several segments, and how much of each queue it holds.
fn filled() -> SimDisk {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    for n in 0..60 {
        log.append(&[one(1, n, 300), one(2, n, 30)]).expect("room");
    }
    assert!(log.segments.len() > 4);
    disk
}

fn segments(disk: &SimDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| name.ends_with(".seg")).collect()
}

#[test]
fn a_torn_last_group_is_cut_and_counted_wherever_it_is_torn() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    log.append(&[one(1, 0, 50)]).expect("room");
    let name = "0000000000000001.seg";
    let whole = disk.bytes_of(name).len();
    log.append(&[one(1, 1, 700)]).expect("room");
    let longer = disk.bytes_of(name);
    for end in whole + 1..longer.len() {
        let torn = disk.after_kill();
        torn.damage(name, |bytes| bytes.truncate(end));
        let (mut log, recovered) = opened(&torn, SMALL);
        assert_eq!((recovered.torn_bytes, state(&recovered, 1)), ((end - whole) as u64, (0, 1)), "cut at {end}");
        log.append(&[one(1, 1, 5)]).expect("it goes on");
        assert_eq!(payloads(&mut log, 1, 0).expect("whole"), [payload(1, 0, 50), payload(1, 1, 5)]);
    }
    // Sectors that were not written hold zeros, or what was there before.
    for fill in [0, 0xA5] {
        for from in (whole..longer.len()).step_by(13) {
            let torn = disk.after_kill();
            torn.damage(name, |bytes| bytes[from..(from + 64).min(longer.len())].fill(fill));
            let (_, recovered) = opened(&torn, SMALL);
            assert_eq!((recovered.torn_bytes, state(&recovered, 1)), ((longer.len() - whole) as u64, (0, 1)));
        }
    }
}

#[test]
fn a_flip_anywhere_but_in_the_last_group_is_refused_with_its_place() {
    let disk = filled();
    let all = segments(&disk);
    for (at, name) in all.iter().enumerate() {
        let length = disk.bytes_of(name).len();
        let end = if at + 1 == all.len() { length - 800 } else { length };
        for byte in (0..end).step_by(211) {
            let flipped = disk.after_kill();
            flipped.damage(name, |bytes| bytes[byte] ^= 0x10);
            match open(&flipped, SMALL) {
                Err(SpoolError::Damaged { file, offset, .. }) => {
                    assert_eq!(&file, name);
                    assert!(offset <= byte as u64, "said at {offset}, is at {byte}");
                }
                Err(other) => panic!("{name} at {byte}: {other}"),
                Ok(_) => panic!("{name} at {byte}: taken"),
            }
        }
    }
}

#[test]
fn a_missing_segment_is_seen_be_it_the_oldest_the_newest_or_between() {
    let disk = filled();
    for name in segments(&disk) {
        let without = disk.after_kill();
        without.lose(&name);
        let error = open(&without, SMALL).err().unwrap_or_else(|| panic!("{name} is missed"));
        assert!(matches!(&error, SpoolError::Damaged { file, .. } if *file == name), "{error}");
    }
    let without = disk.after_kill();
    without.lose("CURRENT");
    assert!(matches!(open(&without, SMALL), Err(SpoolError::Damaged { file, .. }) if file == "CURRENT"));
}

#[test]
fn one_slot_of_current_may_be_torn() {
    let disk = filled();
    for slot in [0, 4096] {
        let torn = disk.after_kill();
        torn.damage("CURRENT", |bytes| bytes[slot + 9] ^= 1);
        let result = open(&torn, SMALL);
        let newest = disk.bytes_of("CURRENT");
        let newest_slot = if newest[8] > newest[4096 + 8] { 0 } else { 4096 };
        if slot == newest_slot {
            // The other one is as old as one roll, or one release: that much may be missing.
            assert!(result.is_ok(), "{}", result.err().expect("an error"));
        } else {
            assert!(result.is_ok());
        }
    }
}

#[test]
fn a_full_disk_refuses_and_takes_again_in_the_same_process() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    disk.world().bytes_max = Some(40_000);
    let taken = (0..1000).take_while(|n| log.append(&[one(1, *n, 500)]).is_ok()).count() as u64;
    assert!(taken > 40, "{taken}");
    for _ in 0..3 {
        assert!(matches!(log.append(&[one(1, taken, 500)]), Err(SpoolError::DiskFull(_))));
    }
    assert_eq!(payloads(&mut log, 1, 0).expect("readable").len() as u64, taken);
    let (_, recovered) = opened(&disk.after_power_cut(&mut || true), SMALL);
    assert_eq!(state(&recovered, 1), (0, taken));
    // What was acknowledged frees segments, although nothing can be written.
    log.acknowledge(stream(1), taken);
    log.append(&[one(1, taken, 500)]).expect("room again");
    assert_eq!(payloads(&mut log, 1, taken).expect("whole").len(), 1);
    let (_, recovered) = opened(&disk.after_kill(), SMALL);
    assert_eq!(state(&recovered, 1), (taken, taken + 1));
}

#[test]
fn a_read_only_disk_refuses_and_takes_again_in_the_same_process() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    log.append(&[one(1, 0, 10)]).expect("room");
    disk.world().read_only = true;
    assert!(matches!(log.append(&[one(1, 1, 10)]), Err(SpoolError::ReadOnly(_))));
    assert_eq!(payloads(&mut log, 1, 0).expect("readable").len(), 1);
    disk.world().read_only = false;
    log.append(&[one(1, 1, 10)]).expect("writable again");
    let (_, recovered) = opened(&disk.after_power_cut(&mut || false), SMALL);
    assert_eq!(state(&recovered, 1), (0, 2));
}

#[test]
fn after_a_failed_sync_the_segment_is_never_written_again_and_nothing_of_it_is_believed() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    log.append(&[one(1, 0, 10)]).expect("room");
    let before = disk.bytes_of("0000000000000001.seg").len();
    // The write, then the sync that fails.
    let calls = disk.world().calls;
    disk.world().fails_at = Some((calls + 2, sim::Fault::Error));
    assert!(matches!(log.append(&[one(1, 1, 100)]), Err(SpoolError::Disk(..))));
    let poisoned = disk.bytes_of("0000000000000001.seg").len();
    assert!(poisoned > before);
    log.append(&[one(1, 1, 7)]).expect("in a segment of its own");
    log.append(&[one(1, 2, 7)]).expect("in a segment of its own");
    assert_eq!(disk.bytes_of("0000000000000001.seg").len(), poisoned, "never written again");
    assert!(disk.names().contains(&"0000000000000002.seg".to_owned()));
    let expected = [payload(1, 0, 10), payload(1, 1, 7), payload(1, 2, 7)];
    assert_eq!(payloads(&mut log, 1, 0).expect("whole"), expected);
    for after in [disk.after_kill(), disk.after_power_cut(&mut || false)] {
        let (mut log, recovered) = opened(&after, SMALL);
        assert_eq!((state(&recovered, 1), recovered.torn_bytes), ((0, 3), 0));
        assert_eq!(payloads(&mut log, 1, 0).expect("whole"), expected);
    }
}

#[test]
fn what_a_killed_process_did_not_sync_is_made_lasting_before_anything_builds_on_it() {
    // Killed before the sync, after a sync that failed, and in a roll: before the file and before its name was synced.
    let (crash, error) = (sim::Fault::Crash, sim::Fault::Error);
    for (rolls, fault_at, fault) in
        [(false, 2, crash), (false, 2, error), (true, 3, crash), (true, 3, error), (true, 4, crash), (true, 4, error)]
    {
        let disk = SimDisk::default();
        let (mut log, _) = opened(&disk, SMALL);
        let mut records = 0;
        while records == 0 || rolls && log.segments.back().is_some_and(|newest| newest.end < SMALL.segment_bytes) {
            log.append(&[one(1, records, 300)]).expect("room");
            records += 1;
        }
        let calls = disk.world().calls;
        disk.world().fails_at = Some((calls + fault_at, fault));
        log.append(&[one(1, records, 300)]).expect_err("it was not synced");
        let killed = disk.after_kill();
        let (mut log, recovered) = opened(&killed, SMALL);
        let (_, next) = state(&recovered, 1);
        // It goes on into the next segment, and the power goes.
        (next..next + 20).for_each(|n| log.append(&[one(1, n, 300)]).expect("room"));
        let (mut log, recovered) = opened(&killed.after_power_cut(&mut || false), SMALL);
        assert_eq!(state(&recovered, 1), (0, next + 20));
        assert_eq!(payloads(&mut log, 1, 0).expect("whole").len() as u64, next + 20);
    }
}

#[test]
fn a_disk_that_lies_is_found_out_or_loses_what_no_program_can_keep() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    for n in 0..10 {
        log.append(&[one(1, n, 100)]).expect("room");
    }
    disk.world().lies = true;
    for n in 10..40 {
        log.append(&[one(1, n, 100)]).expect("it says so");
    }
    for pattern in 0..64_u64 {
        let mut bits = pattern.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let after = disk.after_power_cut(&mut || {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bits >> 63 == 0
        });
        match open(&after, SMALL) {
            Ok((mut log, recovered)) => {
                let (head, next) = state(&recovered, 1);
                assert!(head == 0 && next >= 10, "what was synced is there: {head} to {next}");
                let all = payloads(&mut log, 1, 0).expect("what is taken is whole");
                assert_eq!(all, (0..next).map(|n| payload(1, n, 100)).collect::<Vec<_>>());
            }
            Err(error) => assert!(matches!(error, SpoolError::Damaged { .. }), "{error}"),
        }
    }
}

#[test]
fn a_queue_that_cannot_be_read_holds_up_no_other_and_is_named_with_its_remedy() {
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    for n in 0..3 {
        log.append(&[one(1, n, 100), one(2, n, 100)]).expect("room");
    }
    let name = "0000000000000001.seg";
    let needle = b"1/1/xxx";
    let mut at = 0;
    disk.damage(name, |bytes| {
        at = bytes.windows(needle.len()).position(|window| window == needle).expect("there");
        bytes[at] ^= 1;
    });
    let mut keeper = Keeper::new(Box::new(log));
    let handle = keeper.handle();
    let (answers, answered) = std::sync::mpsc::channel();
    keeper.start(move |_, answer| drop(answers.send(answer))).expect("a thread");
    let read = |from: u64| {
        let link = LinkAddress { shard: 0, upstream: 0, member: 0 };
        let wanted = |queue| Wanted { stream: stream(queue), from, bytes: 1 << 20 };
        handle.read(link, vec![wanted(1), wanted(2)]);
        let Answer::Read(fetched) = answered.recv().expect("an answer") else { panic!("it was a read") };
        fetched.into_iter().map(|fetched| fetched.run.map(|run| run.count)).collect::<Vec<_>>()
    };
    // What lies before the damage is given, what lies in it is not, and the other queue does not care.
    assert_eq!(read(0), [Ok(1), Ok(3)]);
    assert_eq!(handle.trouble(), None);
    assert_eq!(read(1), [Err("damaged"), Ok(2)]);
    let trouble = handle.trouble().expect("an alarm");
    assert!(trouble.contains(name) && trouble.contains("tollgate spool salvage"), "{trouble}");
    disk.damage(name, |bytes| bytes[at] ^= 1);
    assert_eq!(read(1), [Ok(2), Ok(2)]);
    assert_eq!(handle.trouble(), None);
}

#[test]
fn a_salvage_keeps_what_is_whole_and_the_damaged_files_beside_it() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("spool");
    let open = || {
        let directory = Directory::open(&path).expect("free");
        SegmentLog::open(Box::new(directory), SMALL, &[HUB.to_owned()], &SpoolKeys::default())
    };
    let (mut log, _) = open().unwrap_or_else(|error| panic!("{error}"));
    for n in 0..60 {
        log.append(&[one(1, n, 300)]).expect("room");
    }
    log.acknowledge(stream(1), 10);
    log.flush().expect("room");
    drop(log);
    let damaged = path.join("0000000000000003.seg");
    let mut bytes = std::fs::read(&damaged).expect("there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).expect("writable");
    let error = open().err().expect("refused");
    assert!(error.to_string().contains("0000000000000003.seg is damaged at byte"), "{error}");

    let salvaged = salvage(&path, SMALL, &SpoolKeys::default()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((salvaged.messages + salvaged.lost, salvaged.lost), (50, 1), "{salvaged:?}");
    assert!(salvaged.kept_as.contains(&"0000000000000003.seg.damaged-0".to_owned()));
    let (mut log, recovered) = open().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(state(&recovered, 1), (0, 49));
    let all = payloads(&mut log, 1, 0).expect("whole");
    assert_eq!((&all[0], all.len()), (&payload(1, 10, 300), 49));
    assert!(all.is_sorted_by_key(|p| String::from_utf8_lossy(p).split('/').nth(1).and_then(|n| n.parse::<u64>().ok())));
}

#[test]
fn a_salvage_that_is_interrupted_anywhere_is_finished_by_the_next_and_never_taken_for_the_whole() {
    let folder = tempfile::tempdir().expect("a directory");
    let damaged = folder.path().join("damaged");
    let open = |path: &std::path::Path| {
        let directory = Directory::open(path).expect("free");
        SegmentLog::open(Box::new(directory), SMALL, &[HUB.to_owned(), "other".to_owned()], &SpoolKeys::default())
    };
    let (mut log, _) = open(&damaged).unwrap_or_else(|error| panic!("{error}"));
    // One record stays in the oldest segment until it is copied forward, behind those that follow it.
    log.append(&[one(9, 0, 100)]).expect("room");
    for n in 0..80 {
        log.append(&[one(1, n, 300)]).expect("room");
        log.acknowledge(stream(1), n.saturating_sub(12));
        log.flush().expect("room");
    }
    for n in 1..30 {
        log.append(&[one(9, n, 300)]).expect("room");
    }
    drop(log);
    let segments: Vec<_> = names_in(&damaged).into_iter().filter(|name| name.ends_with(".seg")).collect();
    assert!(segments.len() > 3, "{segments:?}");
    let last_but_one = damaged.join(&segments[segments.len() - 2]);
    let mut bytes = std::fs::read(&last_but_one).expect("there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&last_but_one, bytes).expect("writable");

    let contents = |log: &mut SegmentLog| [1, 9].map(|queue| payloads(log, queue, 0).expect("whole"));
    let mut whole = None;
    for stops_at in 0..1_000 {
        let path = folder.path().join(format!("stopped-{stops_at}"));
        std::fs::create_dir(&path).expect("free");
        for name in names_in(&damaged) {
            std::fs::copy(damaged.join(&name), path.join(&name)).expect("copied");
        }
        let mut steps = 0..stops_at;
        let mut step = || steps.next().map(drop).ok_or_else(|| io::Error::other("killed"));
        let stopped = salvage::salvage_by_steps(&path, SMALL, &SpoolKeys::default(), &mut step);
        if stopped.is_ok() {
            assert!(stops_at > 20, "every step was stopped at: {stops_at}");
            let (mut log, _) = open(&path).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(Some(contents(&mut log)), whole);
            let kept = names_in(&path).iter().filter(|name| name.contains(".damaged-")).count();
            assert_eq!(kept, segments.len() + 1, "and CURRENT");
            return;
        }
        assert!(open(&path).is_err(), "stopped at {stops_at}: a part is taken for the whole");
        let salvaged = salvage(&path, SMALL, &SpoolKeys::default()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(salvaged.kept_as.len(), segments.len() + 1);
        let (mut log, _) = open(&path).unwrap_or_else(|error| panic!("stopped at {stops_at}: {error}"));
        let all = contents(&mut log);
        assert_eq!(all.iter().map(Vec::len).sum::<usize>() as u64, salvaged.messages);
        let numbers = |payloads: &[Vec<u8>]| -> Vec<u64> {
            let number = |p: &Vec<u8>| String::from_utf8_lossy(p).split('/').nth(1).and_then(|n| n.parse().ok());
            payloads.iter().filter_map(number).collect()
        };
        assert!(all.iter().all(|of_queue| numbers(of_queue).is_sorted()), "in order");
        assert!(numbers(&all[1]).contains(&0) && all[0].len() > 5, "{:?}", all.each_ref().map(|a| numbers(a)));
        assert_eq!(*whole.get_or_insert(all.clone()), all, "stopped at {stops_at}");
    }
    panic!("it never comes to an end");
}

fn names_in(path: &std::path::Path) -> Vec<String> {
    let names = std::fs::read_dir(path).expect("there").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    names.sort_unstable();
    names
}
