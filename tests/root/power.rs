//! Power cuts: the file system of `state_dir` is shut down under load, at random moments. What was not synced is gone, the
//! journal is replayed, and the gateway starts on what is left: what was acknowledged reaches the hub, in order for each
//! device. Wants root and a loop device: `make test-root`. `TOLLGATE_POWER_ROUNDS` sets how many rounds.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod disk;
#[path = "../support/mod.rs"]
mod support;

use std::{env, fs, sync::atomic::Ordering::Relaxed, thread, time::Duration};

use disk::Disk;
use rustix::process::Signal;
use support::{Ends, Gateway, Hub, Ledger, Plan, Recorder, Version, publish_numbers, random, until, until_drained};

#[test]
fn what_was_acknowledged_survives_power_cuts_where_the_disk_is_a_witness_when_the_hub_is_not() {
    power_cuts("durable");
}

#[test]
fn what_was_acknowledged_survives_power_cuts_where_the_disk_is_the_only_witness() {
    power_cuts("disk");
}

#[track_caller]
fn power_cuts(ack: &'static str) {
    let rounds = env::var("TOLLGATE_POWER_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let mut seed = env::var("TOLLGATE_POWER_SEED").map_or(7, |text| text.parse().unwrap());
    let mut recorder = Recorder::start();
    let mut disk = None;
    let plan = Plan::new(Hub::At(recorder.port(), Version::V5)).window(500).ack(ack);
    let mut gateway = plan.launch(|folder| disk = Some(Disk::mount(&folder.join("var"), IMAGE_BYTES)));
    let disk = disk.expect("mounted");
    gateway.until_ready();
    let ledger = Ledger::default();
    let mut torn = 0.0;
    thread::scope(|scope| {
        for number in 0..DEVICES {
            let (ledger, tcp) = (&ledger, gateway.tcp);
            scope.spawn(move || publish_numbers(number, tcp, ledger));
        }
        let ends = Ends(&ledger.over);
        for round in 0..rounds {
            let is_hub_away = !random(&mut seed).is_multiple_of(3);
            if is_hub_away {
                recorder.kill();
            }
            let wanted = ledger.acknowledged.load(Relaxed) + 1 + random(&mut seed) % 400;
            until("the load to go on", PATIENCE, || ledger.acknowledged.load(Relaxed) >= wanted);
            // Nothing is acknowledged behind this; what was, had been synced.
            gateway.signal(Signal::STOP);
            until("the gateway to stand still", PATIENCE, || is_stopped(&gateway));
            disk.cut();
            gateway.process.kill();
            disk.mount_again();
            gateway.restart();
            torn += gateway.metric("tollgate_spool_torn_bytes_total", &[]);
            if is_hub_away {
                recorder.restart();
            }
            if round % ROUNDS_TO_DRAIN == ROUNDS_TO_DRAIN - 1 {
                ledger.paused.store(true, Relaxed);
                until_drained(&gateway);
                ledger.paused.store(false, Relaxed);
            }
        }
        drop(ends);
    });
    until_drained(&gateway);
    println!("{rounds} power cuts, ack = {ack:?}: {}, {torn} bytes torn", ledger.check(&recorder));
    gateway.process.kill();
    drop(gateway);
}

fn is_stopped(gateway: &Gateway) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.process.id())).unwrap();
    let mut states = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default());
    // proc(5): the state follows the name. A thread that waits for the disk stops when it has what it waits for.
    states.all(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['T', 'D'])))
}

const DEVICES: usize = 6;
const ROUNDS: u32 = 12;
const ROUNDS_TO_DRAIN: u32 = 4;
const IMAGE_BYTES: u64 = 256 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
