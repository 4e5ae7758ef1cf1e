//! What one decision costs as the tables behind it grow: a look into the revocation list, and the whole of `Gate::admit`, with
//! 1 to a million entries and 1 to ten thousand devices: `cargo run --release --example lookups [LOOKS [ROUNDS]]`. Part of the
//! bench (bench/README.md), S1; it stands here because it calls the library, which bench/ does not build.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends")]

use std::{env, fmt::Write as _, hint::black_box, sync::Arc, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use tollgate::{
    credential::{Device, Keyring, RevocationList, SecretKey, Slots, mint_sas},
    gate::{Admission, Gate, GateConfig, Identities, Profile},
    id::DeviceId,
    policy::{Grant, ScopeTemplate},
    time::UnixSeconds,
};

fn main() {
    let mut arguments = env::args().skip(1);
    let mut number = |else_it: usize| arguments.next().map_or(else_it, |text| text.parse().expect("a number"));
    let (looks, rounds) = (number(20_000), number(5));
    println!("entries   list read  a look, not on it   Gate::admit (medians of {rounds} rounds of {looks}; 1 device)");
    for entries in [1, 1_000, 100_000, 1_000_000] {
        let text = lines(entries);
        let started = processor_time();
        let (list, bad) = RevocationList::parse(&text);
        let read = processor_time() - started;
        assert!(bad.is_empty() && list.len() == entries, "{bad:?}");
        let site = Site::new(1, list.clone());
        let grants: Vec<Grant> = (0..site.tokens.len()).map(|n| site.admit(n).unwrap()).collect();
        let look = median(rounds, looks, |n| {
            let grant = &grants[n % grants.len()];
            assert!(!grant.all_facts().any(|facts| list.revokes(&facts, NOW)));
        });
        let admit = median(rounds, looks, |n| assert!(black_box(site.admit(n % site.tokens.len())).is_some()));
        println!("{entries:>9}  {:>7.1} ms  {look:>12.3} µs  {admit:>12.3} µs", read.as_secs_f64() * 1e3);
    }
    println!("devices   Gate::admit (1 entry)");
    for devices in [1, 100, 1_000, 10_000] {
        let site = Site::new(devices, RevocationList::parse(&lines(1)).0);
        let admit = median(rounds, looks, |n| assert!(black_box(site.admit(n % site.tokens.len())).is_some()));
        println!("{devices:>9}  {admit:>12.3} µs");
    }
}

/// A gate, and tokens that it admits: as many as are looked at in turn, whatever the number of devices is.
struct Site {
    gate: Gate,
    tokens: Vec<(String, String)>,
}

impl Site {
    fn new(devices: usize, list: RevocationList) -> Self {
        let mut ring = Keyring::builder();
        let key = |n: usize| SecretKey::from_bytes(format!("32 bytes or more of a key: {n:08}").as_bytes()).unwrap();
        for n in 0..devices {
            let keys = Slots { primary: Some(key(n)), secondary: None };
            ring.add_device(id(n), Device { keys, ..Device::default() }).unwrap();
        }
        let gate = Gate::new(GateConfig::default());
        gate.load_identities(Arc::new(Identities::new(ring.build(), vec![ScopeTemplate::default()])));
        gate.load_revocations(Arc::new(list));
        // Spread over all devices, so that more of them are more of the table.
        let tokens = (0..TOKENS).map(|turn| {
            let n = turn * devices / TOKENS;
            let until = NOW.plus(Duration::from_secs(600 + turn as u64));
            let token = mint_sas(&format!("localhost/devices/{}", id(n)), key(n).bytes(), until, None);
            (id(n).to_string(), token)
        });
        Self { gate, tokens: tokens.collect() }
    }

    fn admit(&self, n: usize) -> Option<Grant> {
        let (device, token) = self.tokens.get(n)?;
        let request = Admission {
            client_id: device,
            user_name: Some(device),
            password: Some(token.as_bytes()),
            certificate: None,
            profile: Profile::Strict,
            will: None,
        };
        self.gate.admit(&request, NOW).ok()
    }
}

/// Entries of which none is met: half name tokens, half JWTs by their id.
fn lines(count: usize) -> String {
    let mut text = String::new();
    for n in 0..count {
        // Writing to a String cannot fail.
        let _ = match n % 2 {
            0 => writeln!(text, "{{\"token\":\"sha256:{:032x}\"}}", (n as u128).wrapping_mul(SPREAD)),
            _ => writeln!(text, "{{\"jti\":\"2f1c9e1c-{n:012}\"}}"),
        };
    }
    text
}

fn id(n: usize) -> DeviceId {
    DeviceId::try_from(&*format!("pump-{n}")).unwrap()
}

/// Microseconds of processor time.
fn median(rounds: usize, count: usize, run: impl Fn(usize)) -> f64 {
    let mut all: Vec<f64> = (0..rounds)
        .map(|_| {
            let started = processor_time();
            (0..count).for_each(&run);
            (processor_time() - started).as_secs_f64() * 1e6 / count as f64
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Of this thread: what else the machine does is not counted.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

const TOKENS: usize = 2_000;
/// Odd: no two numbers fall on one another.
const SPREAD: u128 = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835;
const NOW: UnixSeconds = UnixSeconds(1_795_251_600);
