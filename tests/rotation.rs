//! Rotation while devices are connected and renew: who is refused is what the arithmetic says, and nobody else.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use support::{
    Answer, Device, Gateway, Hub, Login, Plan, Version, device_key, publish_packet, remember_key, sas_for, until,
};

/// Three rotations, four seconds apart. Tokens are made four times a second, each with a life of a second less than the
/// period, of the period, and of a second more, and each is held by a device of its own that publishes until it is cut. A
/// token dies with its own end, except those that live longer than their key: made in the second of a rotation, before it,
/// with a life of more than the period. These are cut by the rotation after that, and refused from then on.
#[test]
fn three_rotations_under_load_refuse_whom_the_arithmetic_names_and_nobody_else() {
    let gateway = site("").devices(DEVICES).launch(write_keys);
    let gateway = ready(gateway);
    let (mut rotations, mut held) = (Vec::new(), Vec::new());
    let begin = now().ceil() + 1.0;
    // 0.3 s into the second, so that tokens are made in it before and after.
    let turns = [1.3, 1.3 + PERIOD, 1.3 + 2.0 * PERIOD];
    for quarter in 0..(turns[2] * 4.0) as u64 {
        let at = begin + quarter as f64 / 4.0;
        if let Some(turn) = turns.get(rotations.len()).filter(|turn| begin + **turn < at) {
            wait_for(begin + turn);
            rotations.push(rotate(&gateway));
        }
        wait_for(at);
        let (key, made) = (primary(&gateway), now() as u64);
        for life in [PERIOD as u64 - 1, PERIOD as u64, PERIOD as u64 + 1] {
            let token =
                Token { key: rotations.len(), made, expires: made + life, text: signed(&key, held.len(), made + life) };
            held.push((token.clone(), hold(gateway.tcp, held.len(), token)));
        }
    }
    wait_for(begin + turns[2]);
    rotations.push(rotate(&gateway));
    let mut named = 0;
    for (token, holder) in held {
        let Ended { at, reason, acknowledged, again } = holder.join().unwrap();
        // The key that was the primary after `token.key` rotations leaves with the second rotation from then.
        let leaves = rotations.get(token.key + 1);
        let outlives_its_key = leaves.is_some_and(|rotation| token.expires > rotation.second);
        let what = format!("{token:?} ended at {at} for {reason:?}, its key left at {leaves:?}");
        assert!(acknowledged > 0, "{what}: it published");
        let made_in_a_turn = rotations.get(token.key).is_some_and(|rotation| rotation.second == token.made);
        assert!(made_in_a_turn || !outlives_its_key, "{what}: who was made earlier dies earlier");
        if outlives_its_key && leaves.is_some_and(|rotation| rotation.in_force < token.expires as f64) {
            named += 1;
            assert!(
                reason == Some(0x87) && at < token.expires as f64 && again == Answer::Connack(0x87),
                "{what}: {again:?}"
            );
        } else {
            let may_coincide = leaves.is_some_and(|rotation| token.expires <= rotation.second + 1);
            assert!(reason == Some(0xA0) || reason == Some(0x87) && may_coincide, "{what}");
            assert!(at >= token.expires as f64 - 0.002 && at < token.expires as f64 + 2.0, "{what}");
        }
    }
    assert!(named >= 2, "each of the last two rotations cut somebody: {named}");
    let refused = gateway.metric("tollgate_connects_total", &["result=\"refused\""]);
    assert_eq!(refused, f64::from(named), "those who came back with a token that was cut");
    let numbers = refusals(&gateway, "");
    assert!(
        numbers.iter().filter(|entry| entry["event"] == "refused").all(|entry| entry["azure"] == 40_103),
        "{numbers:?}"
    );
}

/// The gateway turns the keys by itself; whoever renews in time never notices, where tokens live as long as the period.
#[test]
fn a_schedule_rotates_and_devices_that_renew_never_notice() {
    let gateway = ready(site("rotate_every = \"3s\"\ntoken_lifetime_max = \"3s\"\n").devices(6).launch(write_keys));
    let (stop, renewals) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for number in 0..6 {
            let (gateway, stop, renewals) = (&gateway, &stop, &renewals);
            scope.spawn(move || renew_until(gateway, number, stop, renewals));
        }
        until("three rotations", Duration::from_secs(60), || rotated_at(&gateway.folder).len() >= 3);
        stop.store(true, Relaxed);
    });
    let turns = rotated_at(&gateway.folder);
    assert!(turns.windows(2).all(|pair| pair[1] - pair[0] >= 3), "no sooner than asked for: {turns:?}");
    assert!(turns.windows(2).all(|pair| pair[1] - pair[0] <= 5), "and not late: {turns:?}");
    assert!(renewals.load(Relaxed) >= 12, "everybody renewed again and again");
    assert_eq!(refusals(&gateway, ""), [Value::Null; 0], "nobody was refused or cut");
    assert_eq!(gateway.metric("tollgate_alarm", &["kind=\"keys\""]), 0.0);
    assert!(audit_holds(&gateway.folder));
}

#[test]
fn periods_that_passed_while_the_gateway_was_off_are_made_up_for_by_one_rotation() {
    let mut gateway = ready(site("rotate_every = \"3s\"\ntoken_lifetime_max = \"3s\"\n").launch(write_keys));
    until("a rotation", Duration::from_secs(30), || !rotated_at(&gateway.folder).is_empty());
    gateway.process.kill();
    let before = rotated_at(&gateway.folder);
    let old = primary(&gateway);
    wait_for(*before.last().unwrap() as f64 + 10.0);
    gateway.restart();
    until("a rotation at the start", Duration::from_secs(10), || rotated_at(&gateway.folder).len() > before.len());
    // The key that was the primary when it went off is the secondary: had it turned twice, it would be gone.
    let secondary = fs::read_to_string(gateway.folder.join("policy.secondary")).unwrap();
    let turns = rotated_at(&gateway.folder);
    assert!(turns.len() > before.len() + 1 || secondary.trim() == old, "{turns:?}");
    assert!(turns.windows(2).all(|pair| pair[1] - pair[0] >= 3), "{turns:?}");
}

#[test]
fn what_cannot_be_rotated_by_schedule_raises_the_alarm_and_cuts_nobody() {
    let gateway = site("rotate_every = \"1s\"\n").launch(|folder| {
        write_keys(folder);
        fs::write(folder.join("revocations.jsonl"), "{\"key\": \"policy:site/secondary\"}\n").unwrap();
    });
    let gateway = ready(gateway);
    let key = primary(&gateway);
    let mut session =
        gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d0", &signed(&key, 0, now() as u64 + 600)));
    until("the alarm", Duration::from_secs(20), || gateway.metric("tollgate_alarm", &["kind=\"keys\""]) == 1.0);
    session.publish_acknowledged(&topic(0), b"still here");
    assert_eq!(primary(&gateway), key);
    let audit = fs::read_to_string(gateway.folder.join("var/audit.jsonl")).unwrap();
    assert_eq!(audit.matches("rotation_failed").count(), 1, "{audit}");
    let why = gateway.process.log();
    assert!(why.contains("of the revocation list names policy:site/secondary"), "{why}");
}

#[test]
fn rotating_twice_at_once_ends_every_token_of_the_old_keys_and_nothing_else() {
    let gateway = ready(site("").skew_seconds(0).launch(write_keys));
    let [first, second] = [primary(&gateway), fs::read_to_string(gateway.folder.join("policy.secondary")).unwrap()];
    let later = now() as u64 + 600;
    let mut cut = Vec::new();
    for (number, key) in [(0, &first), (1, &second)] {
        let token = signed(key.trim(), number, later);
        let login = Login::new(Version::V5, &format!("d{number}"), &token);
        cut.push((gateway.open(Version::V5).admitted(&login), login));
    }
    let mut other = gateway.connect(Version::V5, "d2");
    let listed = tollgate(&gateway.folder, &["key", "list", "policy:site", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["keys"][0]["secondary"]["sessions"], 1, "{listed}");
    assert!(listed["keys"][0]["primary"]["last_used"].is_string(), "{listed}");

    let told = tollgate(&gateway.folder, &["key", "rotate", "policy:site"]);
    assert!(
        told.contains("live sessions that it cuts: 1\nd1 ") && told.contains("in force on the running gateway"),
        "{told}"
    );
    assert_eq!(cut[1].0.closed(PATIENCE), Some(0x87));
    cut[0].0.publish_acknowledged(&topic(0), b"by the secondary now");
    let told = tollgate(&gateway.folder, &["key", "rotate", "policy:site"]);
    assert!(told.contains("live sessions that it cuts: 1\nd0 "), "{told}");
    assert_eq!(cut[0].0.closed(PATIENCE), Some(0x87));
    for (_, login) in &cut {
        assert_eq!(gateway.open(Version::V5).log_in(login), Answer::Connack(0x87));
    }
    // A token of the new key that has expired is another thing.
    let expired = Login::new(Version::V5, "d3", &signed(&primary(&gateway), 3, now() as u64 - 1));
    assert_eq!(gateway.open(Version::V5).log_in(&expired), Answer::Connack(0x87));
    for (device, azure) in [("d0", 40_103), ("d1", 40_103), ("d3", 40_105)] {
        let last = refusals(&gateway, &format!("&device={device}")).pop().unwrap();
        assert_eq!((&last["event"], &last["azure"]), (&"refused".into(), &azure.into()), "{last}");
    }
    other.publish_acknowledged(&topic(2), b"untouched");
    gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d4", &signed(&primary(&gateway), 4, later)));

    // After a compromise: both, and the schedule of nobody else.
    let told = tollgate(&gateway.folder, &["key", "rotate", "policy:site", "--both"]);
    assert!(told.contains("new, too") && !told.contains(primary(&gateway).as_str()), "no key is printed: {told}");
    let login = Login::new(Version::V5, "d5", &signed(first.trim(), 5, later));
    assert_eq!(gateway.open(Version::V5).log_in(&login), Answer::Connack(0x87));
    assert!(audit_holds(&gateway.folder));
    assert!(!gateway.process.log().contains("is under way"), "what lasts for a moment is no warning");
}

/// One token, and how often the keys had been rotated when it was made.
#[derive(Clone, Debug)]
struct Token {
    key: usize,
    made: u64,
    expires: u64,
    text: String,
}

/// A rotation: the second from which its next period counts, and when it was in force at the latest.
#[derive(Clone, Copy, Debug)]
struct Rotation {
    second: u64,
    in_force: f64,
}

/// How a session ended.
#[derive(Debug)]
struct Ended {
    at: f64,
    reason: Option<u8>,
    acknowledged: u64,
    /// What the same token is told afterwards, where it had not expired.
    again: Answer,
}

/// A policy with its keys in files, where a signer reads the primary.
fn site(more: &str) -> Plan {
    let policy = format!(
        "\n[[policy]]\nname = \"site\"\nresource = \"localhost\"\nprimary_key_file = \"policy.primary\"\n\
         secondary_key_file = \"policy.secondary\"\n{more}"
    );
    Plan::new(Hub::Embedded).skew_seconds(0).identities_and(&policy)
}

fn write_keys(folder: &Path) {
    for slot in ["primary", "secondary"] {
        let path = folder.join(format!("policy.{slot}"));
        let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).unwrap();
        std::io::Write::write_all(&mut file, device_key(&format!("policy {slot}")).as_bytes()).unwrap();
    }
}

fn ready(mut gateway: Gateway) -> Gateway {
    gateway.until_ready();
    gateway
}

/// What a signer signs with.
fn primary(gateway: &Gateway) -> String {
    let key = fs::read_to_string(gateway.folder.join("policy.primary")).unwrap().trim().to_owned();
    // The next rotation but one takes it out of the files that are searched for secrets.
    remember_key(&key);
    key
}

fn signed(key: &str, device: usize, expires: u64) -> String {
    sas_for(&format!("localhost/devices/d{device}"), key, &format!("{expires}&skn=site"))
}

fn topic(device: usize) -> String {
    format!("devices/d{device}/messages/events/")
}

fn rotate(gateway: &Gateway) -> Rotation {
    let (status, body) = gateway.post("/v1/keys/policy%3Asite/rotate", "{}").unwrap();
    assert_eq!(status, 200, "{body}");
    Rotation { second: *rotated_at(&gateway.folder).last().unwrap(), in_force: now() }
}

/// Connects, publishes until the session is ended, and asks once more where the token should still be good.
fn hold(gateway: SocketAddr, number: usize, token: Token) -> JoinHandle<Ended> {
    thread::spawn(move || {
        let login = Login::new(Version::V5, &format!("d{number}"), &token.text);
        let mut device = Device::open(gateway, Version::V5).admitted(&login);
        let (mut sent, mut acknowledged, mut reason) = (0_u16, 0, None);
        loop {
            match device.next(BETWEEN_MESSAGES) {
                Answer::Silence => {
                    sent += 1;
                    // It may be ended at this moment; the next reading says how.
                    let _ = device.try_send(&publish_packet(Version::V5, &topic(number), b"21.5", 1, sent));
                }
                Answer::Puback(_, 0) => acknowledged += 1,
                Answer::Disconnect(code) => reason = Some(code),
                Answer::Closed => break,
                other => panic!("{other:?}"),
            }
        }
        let at = now();
        let is_over = at >= token.expires as f64;
        let again = if is_over { Answer::Silence } else { Device::open(gateway, Version::V5).log_in(&login) };
        Ended { at, reason, acknowledged, again }
    })
}

/// A device that reconnects with a new token a second before the old one ends, and publishes meanwhile.
fn renew_until(gateway: &Gateway, number: usize, stop: &AtomicBool, renewals: &AtomicU64) {
    while !stop.load(Relaxed) {
        let key = key_in_force(gateway);
        let made = now() as u64;
        let login = Login::new(Version::V5, &format!("d{number}"), &signed(&key, number, made + 3));
        let mut device = gateway.open(Version::V5).admitted(&login);
        while now() < (made + 2) as f64 && !stop.load(Relaxed) {
            device.publish_acknowledged(&topic(number), b"21.5");
        }
        // DISCONNECT: as an SDK renews.
        device.send(&[0xE0, 0]);
        renewals.fetch_add(1, Relaxed);
    }
}

/// The primary, once the gateway has it: a signer on another machine is not faster than that.
fn key_in_force(gateway: &Gateway) -> String {
    let mut key = String::new();
    until("the primary to be in force", PATIENCE, || {
        key = primary(gateway);
        let digest = Sha256::digest(BASE64_STANDARD.decode(&key).unwrap());
        let fingerprint: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let (_, body) = gateway.get("/v1/keys?name=policy%3Asite").unwrap();
        serde_json::from_str::<Value>(&body).unwrap()["keys"][0]["primary"]["fingerprint"] == *fingerprint
    });
    key
}

/// Seconds in which the policy was rotated, from the audit log.
fn rotated_at(folder: &Path) -> Vec<u64> {
    let text = fs::read_to_string(folder.join("var/audit.jsonl")).unwrap_or_default();
    let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let turns = entries.filter(|entry| entry["action"] == "key_rotated" && entry["object"] == "policy:site");
    let second = |entry: Value| humantime::parse_rfc3339(entry["at"].as_str().unwrap()).unwrap();
    turns.map(|entry| second(entry).duration_since(UNIX_EPOCH).unwrap().as_secs()).collect()
}

fn refusals(gateway: &Gateway, query: &str) -> Vec<Value> {
    let (_, body) = gateway.get(&format!("/v1/refusals?last=500{query}")).unwrap();
    let list: Value = serde_json::from_str(&body).unwrap();
    // Sessions that ended in time are not what is looked for.
    let entries = list["refusals"].as_array().unwrap().iter();
    entries.filter(|entry| entry["tag"] != "expired" || entry["event"] == "refused").cloned().collect()
}

fn audit_holds(folder: &Path) -> bool {
    tollgate(folder, &["audit", "verify"]).starts_with('✓')
}

fn tollgate(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    let output = command.args(arguments).args(["--config", "gateway.toml"]).current_dir(folder).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{arguments:?}: {out}{err}");
    out
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn wait_for(moment: f64) {
    until("the moment", Duration::from_secs(60), || now() >= moment);
}

/// Between two rotations, in seconds.
const PERIOD: f64 = 4.0;
/// One for each token.
const DEVICES: usize = 120;
const BETWEEN_MESSAGES: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(10);
