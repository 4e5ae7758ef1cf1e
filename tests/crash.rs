//! kill -9 of the gateway, of the hub, or of both, at random moments under load: what was acknowledged to a device is in
//! the log of a hub that syncs before it acknowledges, in order for each device. `TOLLGATE_CRASH_ROUNDS` sets how many
//! rounds; `make test` asks for 200.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    env,
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant},
};

use support::{Ends, Hub, Ledger, Plan, Recorder, Version, publish_numbers, random, until, until_drained};

#[test]
fn whoever_is_killed_nothing_acknowledged_is_lost_and_order_holds() {
    let rounds = env::var("TOLLGATE_CRASH_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let mut seed = env::var("TOLLGATE_CRASH_SEED").map_or(42, |text| text.parse().unwrap());
    let mut recorder = Recorder::start();
    let mut gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).window(500).start();
    let ledger = Ledger::default();
    thread::scope(|scope| {
        for number in 0..DEVICES {
            let (ledger, tcp) = (&ledger, gateway.tcp);
            scope.spawn(move || publish_numbers(number, tcp, ledger));
        }
        let ends = Ends(&ledger.over);
        for round in 0..rounds {
            let acknowledged = ledger.acknowledged.load(Relaxed);
            let wanted = acknowledged + 1 + random(&mut seed) % 300;
            until("the load to go on", Duration::from_secs(60), || ledger.acknowledged.load(Relaxed) >= wanted);
            let wanted = recorder.size() + 1 + u64::from(random(&mut seed) % 30_000);
            until("the hub to be given more", Duration::from_secs(60), || recorder.size() >= wanted);
            let victim = random(&mut seed) % 3;
            if victim != 1 {
                gateway.process.kill();
            }
            if victim != 0 {
                recorder.kill();
            }
            // The other one lives on without it for a while, sometimes until it spools.
            let alone = Duration::from_millis(u64::from(random(&mut seed)) % 900);
            until_over(alone);
            if victim != 1 {
                gateway.run_again();
            }
            if victim != 0 {
                recorder.restart();
            }
            if victim != 1 {
                gateway.until_ready();
            }
            if round % ROUNDS_TO_DRAIN == ROUNDS_TO_DRAIN - 1 {
                // The next rounds find it forwarding directly.
                ledger.paused.store(true, Relaxed);
                until_drained(&gateway);
                ledger.paused.store(false, Relaxed);
            }
        }
        drop(ends);
    });
    until_drained(&gateway);
    println!("{rounds} rounds: {}", ledger.check(&recorder));
}

/// A pause that is part of the fault: for so long one of them is without the other.
fn until_over(pause: Duration) {
    let started = Instant::now();
    until("the pause", Duration::from_secs(10), || started.elapsed() >= pause);
}

const DEVICES: usize = 6;
/// In `cargo test`.
const ROUNDS: u32 = 8;
const ROUNDS_TO_DRAIN: u32 = 4;
