//! What a message costs as sessions become more, beside the floor's own curve (README.md, S1).

use std::{io, path::Path};

use crate::{
    devices::{Load, Says},
    floor::Floor,
    gateway::Gateway,
    hub,
};

/// For each number of sessions, floor and gateway in alternation; the ratio at one session is what the others are held to.
pub fn run(program: &Path, messages: usize, rounds: usize) -> io::Result<()> {
    let mut first = None;
    for devices in SESSIONS {
        // As many in flight by all together, as far as one device may have them.
        let window = (IN_FLIGHT / devices).clamp(1, 100);
        let load = Load { devices, window, payload_bytes: 256, messages };
        let (mut floors, mut gateways, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let floor = Floor::start(hub::start()?)?;
            let floor_us = load.cost(&floor.process, floor.address, Says::Nothing)?;
            let gateway = Gateway::start(program, hub::start()?, devices)?;
            let gateway_us = load.cost(&gateway.process, gateway.address, Says::Token)?;
            floors.push(floor_us);
            gateways.push(gateway_us);
            ratios.push(gateway_us / floor_us);
        }
        let [floor, gateway, ratio] = [floors, gateways, ratios].map(median);
        let first = *first.get_or_insert(ratio);
        println!(
            "growth: {devices:>6} sessions, window {window:>3}: floor {floor:.2} µs, tollgate {gateway:.2} µs a message, {ratio:.2} × \
             ({:+.0} % against the floor's own curve)",
            (ratio / first - 1.0) * 100.0
        );
    }
    Ok(())
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

const SESSIONS: [usize; 5] = [1, 10, 100, 1_000, 10_000];
const IN_FLIGHT: usize = 5_000;
