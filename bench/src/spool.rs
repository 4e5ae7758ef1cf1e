//! F5: spooling, with the hub away, beside the engine alone with groups of the same size on the same disk; and draining beside
//! forwarding directly (README.md).

use std::{
    env, fs, io,
    path::Path,
    process::{self, Command},
    sync::atomic::Ordering::Relaxed,
    time::Instant,
};

use crate::{
    gateway::Gateway,
    hour::{direct_rate, until_empty, wear},
    numbered::{self, CheckingHub, Numbered},
};

/// Alternating rounds; medians in the end.
pub fn run(program: &Path, engine: &Path, messages: usize, rounds: usize) -> io::Result<()> {
    let (mut of_engine, mut of_window, mut of_direct) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let hub = CheckingHub::start(DEVICES)?;
        let gateway = Gateway::start_with(program, hub.address, DEVICES, SPOOL)?;
        let connect = |number| Numbered::connect(gateway.address, number, WINDOW, PAYLOAD_BYTES);
        let mut devices = (0..DEVICES).map(connect).collect::<io::Result<Vec<_>>>()?;
        let direct = direct_rate(&hub, &mut devices, messages)?;
        let already = hub.seen.first[0].load(Relaxed);
        hub.leave()?;
        // What is on its way to the disk when the hub goes is not part of it.
        let (first, _) = numbered::publish(&mut devices, messages / 10)?;
        let (bytes, syncs) = (gateway.spool_bytes()?, gateway.settled_syncs()?);
        let (count, took) = numbered::publish(&mut devices, messages)?;
        let record_bytes = (gateway.spool_bytes()? - bytes) as usize / count;
        let group = count / (gateway.settled_syncs()? - syncs).max(1.0) as usize;
        let spooled = count as f64 / took.as_secs_f64();
        hub.come_back()?;
        hub.until(already + 1)?;
        let (began, before) = (Instant::now(), hub.seen.first[0].load(Relaxed));
        let all = already + (first + count) as u64;
        hub.until(all)?;
        let drained = (all - before) as f64 / began.elapsed().as_secs_f64();
        until_empty(&gateway)?;
        hub.check()?;
        wear(&gateway)?;
        drop(gateway);
        let alone = |group| engine_alone(engine, messages, group, record_bytes);
        let (same, whole) = (alone(group)?, alone(DEVICES * WINDOW)?);
        println!(
            "spool {round}: {spooled:.0} messages a second in groups of {group}, {record_bytes} bytes each; the engine alone \
             {same:.0}, in groups of {} {whole:.0}; direct {direct:.0}, drained {drained:.0}",
            DEVICES * WINDOW
        );
        of_engine.push(spooled / same);
        of_window.push(spooled / whole);
        of_direct.push(drained / direct);
    }
    println!("spool: {} × the engine alone with the same groups", summed_up(of_engine));
    println!("spool: {} × the engine alone with all that is unacknowledged as one group", summed_up(of_window));
    println!("spool: drained {} × direct", summed_up(of_direct));
    Ok(())
}

/// Messages a second.
fn engine_alone(engine: &Path, messages: usize, group: usize, record_bytes: usize) -> io::Result<f64> {
    let folder = env::temp_dir().join(format!("tollgate-bench-engine-{}", process::id()));
    let mut command = Command::new(engine);
    command.arg(&folder).args([messages, group, record_bytes].map(|n| n.to_string()));
    let output = command.output()?;
    // It may not have come so far as to make it.
    let _ = fs::remove_dir_all(&folder);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.trim().parse().map_err(|_| io::Error::other(format!("the engine said {text:?}")))
}

fn summed_up(mut ratios: Vec<f64>) -> String {
    ratios.sort_by(f64::total_cmp);
    let at = |part: usize| ratios.get(part * (ratios.len() - 1) / 2).copied().unwrap_or(f64::NAN);
    format!("{:.2} (lowest {:.2}, highest {:.2})", at(1), at(0), at(2))
}

const DEVICES: usize = 50;
const WINDOW: usize = 100;
const PAYLOAD_BYTES: usize = 256;
const SPOOL: &str = "[spool]\nsize_max = \"4 GiB\"\n";
