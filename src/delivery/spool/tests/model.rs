//! The spool against a plain model, with a fault or a crash at any call of the disk.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{sealed, sim::Fault, *};

#[derive(Clone, Debug)]
enum Step {
    /// So many records of so many bytes to each of these queues.
    Append {
        queues: Vec<u16>,
        records: u8,
        len: usize,
    },
    /// A part of what a queue holds is not wanted any more.
    Acknowledge {
        queue: u16,
        part: u8,
    },
    Read {
        queue: u16,
        part: u8,
    },
    Flush,
    /// A call of the disk, so many from here, fails.
    Fault {
        after: u64,
        fault: Fault,
    },
    Kill,
    PowerCut {
        seed: u64,
    },
    /// Killed, started again, and then the power goes.
    KillAndPowerCut {
        seed: u64,
    },
    Full,
    RoomAgain,
}

fn any_step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![Just(Fault::Error), Just(Fault::Short), Just(Fault::Crash)];
    prop_oneof![
        10 => (prop::collection::btree_set(0..4_u16, 1..4), 1..6_u8, 1..900_usize)
            .prop_map(|(queues, records, len)| Step::Append { queues: queues.into_iter().collect(), records, len }),
        6 => (0..4_u16, any::<u8>()).prop_map(|(queue, part)| Step::Acknowledge { queue, part }),
        3 => (0..4_u16, any::<u8>()).prop_map(|(queue, part)| Step::Read { queue, part }),
        2 => Just(Step::Flush),
        3 => (1..12_u64, fault).prop_map(|(after, fault)| Step::Fault { after, fault }),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(|seed| Step::PowerCut { seed }),
        1 => any::<u64>().prop_map(|seed| Step::KillAndPowerCut { seed }),
        1 => Just(Step::Full),
        2 => Just(Step::RoomAgain),
    ]
}

/// What a queue must hold.
#[derive(Clone, Default)]
struct Queue {
    /// Answered for, by number.
    stored: Vec<Vec<u8>>,
    /// Handed over and not answered for: tried again, with the same numbers.
    head: u64,
}

struct World {
    disk: SimDisk,
    log: SegmentLog,
    queues: BTreeMap<u16, Queue>,
    /// A batch that was refused: it is tried again before anything else, as a link does.
    refused: Option<Arc<Batch>>,
    /// What each start is given, in turn.
    keys: &'static [&'static str],
    starts: usize,
}

impl World {
    fn new(keys: &'static [&'static str]) -> Self {
        let disk = SimDisk::default();
        let (log, _) = opened(&disk, SMALL);
        let queues = (0..4).map(|queue| (queue, Queue::default())).collect();
        Self { disk, log, queues, refused: None, keys, starts: 0 }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Append { queues, records, len } => {
                let batch = self.refused.take().unwrap_or_else(|| self.batch(queues, *records, *len));
                match self.log.append(std::slice::from_ref(&batch)) {
                    Ok(()) => self.stored(&batch),
                    Err(_) => self.refused = Some(batch),
                }
            }
            Step::Acknowledge { queue, part } => {
                let of_model = self.queues.get_mut(queue).expect("one of four");
                let waits = of_model.stored.len() as u64 - of_model.head;
                of_model.head += waits * u64::from(*part) / 255;
                self.log.acknowledge(stream(*queue), of_model.head);
            }
            Step::Read { queue, part } => {
                let of_model = &self.queues[queue];
                let waits = of_model.stored.len() as u64 - of_model.head;
                let from = of_model.head + waits * u64::from(*part) / 256;
                let read = payloads(&mut self.log, *queue, from).expect("an undamaged disk reads");
                prop_assert_eq!(&read[..], &of_model.stored[from as usize..]);
            }
            // It may fail: it is tried again.
            Step::Flush => drop(self.log.flush()),
            Step::Fault { after, fault } => {
                let mut world = self.disk.world();
                world.fails_at = Some((world.calls + after, *fault));
            }
            Step::Kill => self.restart(self.disk.after_kill())?,
            Step::PowerCut { seed } => self.power_cut(*seed)?,
            Step::KillAndPowerCut { seed } => {
                self.restart(self.disk.after_kill())?;
                self.power_cut(*seed)?;
            }
            Step::Full => {
                let used: u64 = self.disk.names().iter().map(|name| self.disk.bytes_of(name).len() as u64).sum();
                self.disk.world().bytes_max = Some(used + 700);
            }
            Step::RoomAgain => self.disk.world().bytes_max = None,
        }
        Ok(())
    }

    fn power_cut(&mut self, seed: u64) -> Result<(), TestCaseError> {
        let mut bits = seed | 1;
        let after = self.disk.after_power_cut(&mut || {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bits >> 63 == 0
        });
        self.restart(after)
    }

    fn batch(&self, queues: &[u16], records: u8, len: usize) -> Arc<Batch> {
        let mut all = Vec::new();
        for queue in queues {
            let next = self.queues[queue].stored.len() as u64;
            all.extend((next..next + u64::from(records)).map(|n| (*queue, n, payload(*queue, n, len))));
        }
        batch(&all.iter().map(|(queue, n, payload)| (*queue, *n, &payload[..])).collect::<Vec<_>>())
    }

    fn stored(&mut self, batch: &Batch) {
        for record in &batch.records {
            let (parsed, _) = parse_record(&batch.bytes[record.start as usize..]).expect("a record");
            let queue = self.queues.get_mut(&record.queue).expect("one of four");
            assert_eq!(queue.stored.len() as u64, record.number);
            queue.stored.push(parsed.payload.to_vec());
        }
    }

    /// All that was answered for is there; what was not may be.
    fn restart(&mut self, disk: SimDisk) -> Result<(), TestCaseError> {
        let keys = self.keys[self.starts % self.keys.len()];
        self.starts += 1;
        let (log, recovered) = match open_with(&disk, SMALL, keys) {
            Ok(opened) => opened,
            Err(error) => return Err(TestCaseError::fail(format!("a crash is no damage: {error}"))),
        };
        (self.disk, self.log) = (disk, log);
        for (number, queue) in &mut self.queues {
            let (head, next) = state(&recovered, *number);
            prop_assert!(head <= queue.head, "nothing is acknowledged by itself: {} after {}", head, queue.head);
            prop_assert!(next >= queue.stored.len() as u64, "queue {}: {} of {}", number, next, queue.stored.len());
            let all = payloads(&mut self.log, *number, head).expect("whole");
            let answered = &queue.stored[head as usize..];
            prop_assert_eq!(&all[..answered.len()], answered);
            queue.stored.extend(all.into_iter().skip(answered.len()));
        }
        // The links begin anew, behind what they find.
        self.refused = None;
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_was_answered_for_is_there_after_any_fault_and_any_crash(
        steps in prop::collection::vec(any_step(), 1..80),
        // Begun in the clear; then with a key, with another before it, and back.
        keys in prop::sample::select(vec![&[""][..], &sealed::ROTATED])
    ) {
        let mut world = World::new(keys);
        for step in &steps {
            world.step(step)?;
        }
        let after = world.disk.after_power_cut(&mut || false);
        world.restart(after)?;
        // And the log goes on.
        world.disk.world().bytes_max = None;
        let last = world.batch(&[0, 1, 2, 3], 1, 10);
        world.log.append(std::slice::from_ref(&last)).expect("a healthy disk takes");
        world.stored(&last);
        for queue in 0..4 {
            let head = world.queues[&queue].head;
            let read = payloads(&mut world.log, queue, head).expect("whole");
            prop_assert_eq!(&read[..], &world.queues[&queue].stored[head as usize..]);
        }
    }
}

#[test]
fn a_crash_at_every_call_of_roll_unlink_and_copy_forward_loses_nothing() {
    let work = |log: &mut SegmentLog, stored: &mut u64, acknowledged: &mut u64| -> Result<(), SpoolError> {
        if *stored == 0 {
            log.append(&[one(9, 0, 100)])?;
        }
        for n in 0..120 {
            log.append(&[one(1, n, 300)])?;
            *stored = n + 1;
            if n % 3 == 2 {
                log.acknowledge(stream(1), n - 1);
                *acknowledged = n - 1;
                log.flush()?;
            }
        }
        Ok(())
    };
    let disk = SimDisk::default();
    let (mut log, _) = opened(&disk, SMALL);
    let begun = disk.world().calls;
    work(&mut log, &mut 0, &mut 0).expect("a healthy disk takes");
    assert!(log.segments.front().is_some_and(|oldest| oldest.number > 3), "the stuck record was copied forward");
    let calls = disk.world().calls;
    for crash_at in begun + 1..=calls {
        let disk = SimDisk::default();
        let (mut log, _) = opened(&disk, SMALL);
        disk.world().fails_at = Some((crash_at, Fault::Crash));
        let (mut stored, mut acknowledged) = (0, 0);
        work(&mut log, &mut stored, &mut acknowledged).expect_err("it crashed");
        let mut odd = crash_at;
        let mut some = || {
            odd = odd.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            odd >> 63 == 0
        };
        for after in [disk.after_kill(), disk.after_power_cut(&mut || false), disk.after_power_cut(&mut some)] {
            let (mut log, recovered) = open(&after, SMALL).unwrap_or_else(|error| panic!("at {crash_at}: {error}"));
            let (head, next) = state(&recovered, 1);
            assert!(head <= acknowledged && next >= stored, "at {crash_at}: {head} to {next}, {stored} stored");
            let all = payloads(&mut log, 1, head).expect("whole");
            assert_eq!(all, (head..next).map(|n| payload(1, n, 300)).collect::<Vec<_>>(), "at {crash_at}");
            if stored > 0 {
                assert_eq!(payloads(&mut log, 9, 0).expect("whole"), [payload(9, 0, 100)], "at {crash_at}");
            }
            // What was found counts as stored from here on: it outlives a power cut, at once and after a roll.
            let then = after.after_power_cut(&mut || false);
            let (_, found) = open(&then, SMALL).unwrap_or_else(|error| panic!("at {crash_at}, then cut: {error}"));
            assert!(state(&found, 1).1 >= next, "at {crash_at}, then cut");
            for n in next..next + 20 {
                log.append(&[one(1, n, 300)]).expect("a healthy disk takes");
            }
            let then = after.after_power_cut(&mut || false);
            let (_, found) = open(&then, SMALL).unwrap_or_else(|error| panic!("at {crash_at}, then cut: {error}"));
            assert_eq!(state(&found, 1).1, next + 20, "at {crash_at}, rolled, then cut");
        }
    }
}
