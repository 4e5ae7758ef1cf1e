//! What tollgate costs, beside the least that could do the same work: `idle`, `forward`, `growth`, `revocation`, `hour` and
//! `spool` (README.md).

mod devices;
mod floor;
mod gateway;
mod growth;
mod hour;
mod hub;
mod mqtt;
mod numbered;
#[path = "../../tests/support/process.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "shared with the tests, which use more of it")]
mod process;
mod revocation;
mod spool;
#[path = "../../tests/support/token.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "shared with the tests, which use more of it")]
mod token;

use std::{env, io, path::PathBuf, process::exit};

use devices::Load;
use gateway::Gateway;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["idle", program, count] => idle(PathBuf::from(program), number(count)),
        ["forward", program, messages, rounds] => forward(PathBuf::from(program), number(messages), number(rounds)),
        ["growth", program, messages, rounds] => growth::run(&PathBuf::from(program), number(messages), number(rounds)),
        ["revocation", program, sessions, entries] => {
            revocation::run(&PathBuf::from(program), number(sessions), number(entries))
        }
        ["hour", program, messages] => hour::run(&PathBuf::from(program), number(messages)),
        ["spool", program, engine, messages, rounds] => {
            spool::run(&PathBuf::from(program), &PathBuf::from(engine), number(messages), number(rounds))
        }
        ["floor", bind, hub] => floor::run(bind, hub),
        _ => {
            eprintln!(
                "usage: tollgate-bench idle TOLLGATE CONNECTIONS | forward TOLLGATE MESSAGES ROUNDS | growth TOLLGATE \
                 MESSAGES ROUNDS | revocation TOLLGATE SESSIONS ENTRIES | hour TOLLGATE MESSAGES | spool TOLLGATE ENGINE \
                 MESSAGES ROUNDS"
            );
            exit(2);
        }
    }
}

/// Resident memory of the gateway for each connection that says nothing.
fn idle(program: PathBuf, count: usize) -> io::Result<()> {
    let hub = hub::start()?;
    let gateway = Gateway::start(&program, hub, count)?;
    let before = gateway.process.resident_kib();
    let connections = devices::connect(gateway.address, count, devices::Says::Token)?;
    let after = gateway.process.resident_kib();
    let each = (after.saturating_sub(before)) as f64 / connections.len() as f64;
    println!("idle: {} connections, {before} KiB before, {after} KiB with them, {each:.2} KiB each", connections.len());
    Ok(())
}

/// Processor time of the gateway for a QoS 1 message of 256 bytes, beside that of the floor, in alternation.
fn forward(program: PathBuf, messages: usize, rounds: usize) -> io::Result<()> {
    let load = Load { devices: 50, window: 100, payload_bytes: 256, messages };
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let floor = floor::Floor::start(hub::start()?)?;
        let floor_us = load.cost(&floor.process, floor.address, devices::Says::Nothing)?;
        let gateway = Gateway::start(&program, hub::start()?, load.devices)?;
        let gateway_us = load.cost(&gateway.process, gateway.address, devices::Says::Token)?;
        ratios.push(gateway_us / floor_us);
        println!("forward {round}: floor {floor_us:.2} µs, tollgate {gateway_us:.2} µs a message");
    }
    ratios.sort_by(f64::total_cmp);
    let at = |part: usize| ratios.get(part * (ratios.len() - 1) / 2).copied().unwrap_or(f64::NAN);
    println!("forward: {:.2} × the floor (lowest {:.2}, highest {:.2})", at(1), at(0), at(2));
    Ok(())
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| {
        eprintln!("not a number: {text}");
        exit(2)
    })
}
