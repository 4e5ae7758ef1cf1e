//! What an operator is told by a gateway that runs: near misses of refused tokens, whom a rotation would cut, two that take
//! one device's session from each other, a clock that went back, what an entry does to honest tokens.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use support::{
    Answer, Gateway, Hub, Login, Plan, Version, device_key, jwt_with, sas, sas_for, sas_until, unix_now, until,
    until_some,
};

#[test]
fn a_refusal_shows_the_near_miss_a_moment_later_and_no_token() {
    let gateway = Plan::new(Hub::Embedded).start();
    // The printed key itself, not what it decodes to.
    let printed = base64_of(device_key("d1").as_bytes());
    let token = sas_for("localhost/devices/d1", &printed, &(unix_now() + 600).to_string());
    assert_eq!(log_in(&gateway, "d1", &token), Answer::Connack(0x87));
    let named = "the key was taken as UTF-8 instead of base64";
    let entry = until_some("the near miss", PATIENCE, || {
        refusals(&gateway, "d1").into_iter().find(|entry| entry["near_misses"].to_string().contains(named))
    });
    assert_eq!(entry["tag"], "signature_invalid");
    let shown = told(&gateway.folder, &["refusals", "--device", "d1"]);
    assert!(shown.contains("near miss: ") && !shown.contains("SharedAccessSignature"), "{shown}");

    // One that comes in the same second is a row of its own; it may go without.
    let expired = jwt_with("d2", json!({"iat": unix_now() - 7200, "exp": unix_now() - 3600}));
    until("a near miss of another token", PATIENCE, || {
        assert_eq!(log_in(&gateway, "d2", &expired), Answer::Connack(0x87));
        refusals(&gateway, "d2").iter().any(|entry| entry["near_misses"].to_string().contains("its clock is"))
    });
    gateway.connect(Version::V5, "d3");
}

#[test]
fn key_plan_names_who_is_connected_by_the_secondary_and_a_dry_run_cuts_nobody() {
    let (primary, secondary) = (device_key("policy, primary"), device_key("policy, secondary"));
    let policy = format!(
        "\n[[policy]]\nname = \"site\"\nresource = \"localhost\"\nprimary_key = \"{primary}\"\n\
         secondary_key = \"{secondary}\"\ntoken_lifetime_max = \"1h\"\n"
    );
    let gateway = Plan::new(Hub::Embedded).devices(30).identities_and(&policy).start();
    let by = |device: usize, key: &str| {
        let more = format!("{}&skn=site", unix_now() + 1800);
        let name = format!("d{device}");
        let token = sas_for(&format!("localhost/devices/{name}"), key, &more);
        gateway.open(Version::V5).admitted(&Login::new(Version::V5, &name, &token))
    };
    let mut by_secondary: Vec<_> = (0..22).map(|device| by(device, &secondary)).collect();
    let _by_primary = by(29, &primary);

    let plan: Value = json_of(&run(&gateway.folder, &["key", "plan", "policy:site", "--json"]));
    assert_eq!((&plan[0]["cuts_now"], &plan[0]["primary_sessions"]), (&json!(22), &json!(1)), "{plan}");
    let named: Vec<&str> = plan[0]["cuts_devices"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let mut all: Vec<String> = (0..22).map(|device| format!("d{device}")).collect();
    all.sort();
    assert_eq!(named, all[..20], "the first by name, and no more than a screen");
    let text = told(&gateway.folder, &["key", "plan", "policy:site"]);
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(one_line.contains("d0, d1, d10, ") && one_line.contains(" and 2 more"), "{text}");

    let would: Value = json_of(&run(&gateway.folder, &["key", "rotate", "policy:site", "--dry-run", "--json"]));
    assert_eq!((would["cuts"].as_array().unwrap().len(), &would["rotated"]), (22, &json!(false)), "{would}");
    let text = told(&gateway.folder, &["key", "rotate", "policy:site", "--dry-run"]);
    assert!(text.contains("would cut: 22") && text.contains("nothing was rotated") && text.contains("d21"), "{text}");
    for device in &mut by_secondary {
        device.ping();
        assert_eq!(device.next(PATIENCE), Answer::Pingresp);
    }
}

#[test]
fn the_last_use_of_a_key_is_known_after_a_restart() {
    let mut gateway = Plan::new(Hub::Embedded).start();
    gateway.connect(Version::V5, "d4").disconnect();
    let used = |gateway: &Gateway| {
        let list: Value = json_of(&run(&gateway.folder, &["key", "list", "device:d4", "--json"]));
        list["keys"][0]["primary"]["last_used"].as_str().map(str::to_owned)
    };
    let before = used(&gateway).expect("it was used");
    gateway.terminate();
    assert_eq!(gateway.ended(Duration::from_secs(60)), Some(0));
    gateway.restart();
    assert_eq!(used(&gateway), Some(before));
    let file = fs::read_to_string(gateway.folder.join("var/key-uses")).unwrap();
    assert!(!file.contains("d4"), "fingerprints and times: {file}");
}

#[test]
fn the_public_key_of_a_device_is_listed_with_its_use_also_after_the_identities_were_read_again() {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let device = "\n[[device]]\nid = \"cam\"\n[[device.public_key]]\nkid = \"k1\"\nfile = \"cam.pem\"\n";
    let gateway = Plan::new(Hub::Embedded).identities_and(device).start_with(|folder| {
        fs::write(folder.join("cam.pem"), pair.public_key_pem()).unwrap();
    });
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
    header.kid = Some("k1".into());
    let claims = json!({"aud": "localhost", "iat": unix_now(), "exp": unix_now() + 600});
    let key = jsonwebtoken::EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    let _session = gateway.open(Version::V5).admitted(&Login::new(Version::V5, "cam", &token));
    let slot = || {
        let list = json_of(&run(&gateway.folder, &["key", "list", "device:cam", "--json"]));
        assert_eq!((&list["keys"][0]["name"], &list["keys"][0]["kid"]), (&json!("device:cam"), &json!("k1")), "{list}");
        list["keys"][0]["primary"].clone()
    };
    assert_eq!((&slot()["sessions"], slot()["last_used"].is_string()), (&json!(1), true), "{}", slot());
    let (status, body) = gateway.post("/v1/reload", "{}").unwrap();
    assert_eq!(status, 200, "{body}");
    assert!(slot()["last_used"].is_string(), "{}", slot());
}

#[test]
fn the_tokens_of_a_key_end_when_the_gate_admits_them_no_more() {
    let gateway = Plan::new(Hub::Embedded).skew_seconds(40).start();
    let end = unix_now() + 900;
    gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d4", &sas_until("d4", end)));
    let list = json_of(&run(&gateway.folder, &["key", "list", "device:d4", "--json"]));
    assert_eq!(list["keys"][0]["primary"]["tokens_end"], rfc3339(end + 40), "{list}");
    let plan = json_of(&run(&gateway.folder, &["key", "plan", "device:d4", "--json"]));
    let told = plan[0]["primary_tokens_end"].as_str().unwrap();
    let lives = plan[0]["token_lifetime_max_seconds"].as_u64().unwrap() + 40;
    assert!((unix_now() - 60..=unix_now()).any(|now| told == rfc3339(now + lives)), "{plan}");
}

#[test]
fn a_rotation_of_nobody_is_refused_once() {
    let gateway = Plan::new(Hub::Embedded).start();
    let ran = run(&gateway.folder, &["key", "rotate", "device:nosuch"]);
    let said = String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap();
    assert_eq!((ran.status.code(), said.matches("device:nosuch").count()), (Some(1), 1), "{said}");
}

#[test]
fn a_change_of_files_that_the_running_gateway_does_not_read_is_no_success() {
    let gateway = Plan::new(Hub::Embedded).start();
    let toml = fs::read_to_string(gateway.folder.join("gateway.toml")).unwrap();
    let named = ["identities.toml", "revocations.jsonl"];
    let other = named.iter().fold(toml, |toml, name| toml.replace(name, &format!("other-{name}")));
    fs::write(gateway.folder.join("other.toml"), &other).unwrap();
    for name in named {
        // With the mode of the first.
        fs::copy(gateway.folder.join(name), gateway.folder.join(format!("other-{name}"))).unwrap();
    }
    let start = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(arguments).args(["--config", "other.toml"]).current_dir(&gateway.folder).env_remove("RUST_LOG");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [start(&["key", "rotate", "device:d0"]), start(&["revoke", "device", "d1"])];
    for ran in both.map(|child| child.wait_with_output().unwrap()) {
        let said = String::from_utf8([&*ran.stdout, &ran.stderr].concat()).unwrap();
        assert!(ran.status.code() == Some(1) && said.contains("NOT in force: the running gateway has not"), "{said}");
    }
    gateway.connect(Version::V5, "d0");
    gateway.connect(Version::V5, "d1");
}

#[test]
fn two_that_connect_as_one_device_raise_an_alarm_and_stand_in_the_journal_once() {
    let gateway = Plan::new(Hub::Embedded).start();
    let alarm = || gateway.metric("tollgate_alarm", &["kind=\"takeover\""]);
    let mut last = gateway.connect(Version::V5, "d5");
    for _ in 0..3 {
        let next = gateway.connect(Version::V5, "d5");
        assert_eq!(last.closed(PATIENCE), Some(0x8E));
        last = next;
    }
    let rows = || {
        let rows = refusals(&gateway, "d5").into_iter().filter(|entry| entry["event"] == "alarm");
        rows.collect::<Vec<_>>()
    };
    assert_eq!(rows(), Vec::<Value>::new(), "three are a bad network");
    for _ in 0..6 {
        let next = gateway.connect(Version::V5, "d5");
        assert_eq!(last.closed(PATIENCE), Some(0x8E));
        last = next;
    }
    until("the alarm", PATIENCE, || alarm() == 1.0);
    assert_eq!(rows().len(), 1, "said once: {:?}", rows());
    assert!(rows()[0]["detail"].as_str().is_some_and(|detail| detail.contains("127.0.0.1:")), "{:?}", rows());
    last.ping();
    assert_eq!(last.next(PATIENCE), Answer::Pingresp, "nobody is locked out");
}

#[test]
fn a_clock_that_went_back_raises_an_alarm_until_the_operator_resets_it() {
    // As after a flat battery: an earlier gateway saw a time that is a day ahead.
    let seen = unix_now() + 86_400;
    let gateway = Plan::new(Hub::Embedded).start_with(|folder| {
        fs::create_dir_all(folder.join("var")).unwrap();
        fs::write(folder.join("var/clock"), format!("{} {seen}\n", rfc3339(seen))).unwrap();
    });
    let alarm = || gateway.metric("tollgate_alarm", &["kind=\"clock\""]);
    until("the alarm", PATIENCE, || alarm() == 1.0);
    let show = || told(&gateway.folder, &["clock", "show"]);
    assert!(show().contains("tollgate clock reset"), "{}", show());
    assert_eq!(log_in(&gateway, "d6", &sas("d6")), Answer::Connack(0x87), "its token expired in that time");
    let reset = told(&gateway.folder, &["clock", "reset"]);
    assert!(reset.contains("decides by"), "{reset}");
    until("the alarm to be over", PATIENCE, || alarm() == 0.0);
    assert!(!show().contains("tollgate clock reset"), "{}", show());
    gateway.connect(Version::V5, "d6");
}

#[test]
fn the_api_refuses_an_entry_that_would_refuse_honest_tokens_without_an_end_and_says_for_how_long_others_do() {
    let entry = format!(r#"{{"issued_before": "{}"}}"#, rfc3339(unix_now()));
    for (line, status) in [("token_lifetime_max = \"2h\"", 200), ("token_lifetime_max = \"366d\"", 409)] {
        let gateway = Plan::new(Hub::Embedded).credentials(line).start();
        for path in ["/v1/revocations?dry_run=true", "/v1/revocations"] {
            let (answered, body) = gateway.post(path, &entry).unwrap();
            assert_eq!(answered, status, "{line}, {path}: {body}");
            let said = if status == 200 { "may live for 2h" } else { "expires-before" };
            assert!(body.contains(said), "{line}, {path}: {body}");
        }
        let list = fs::read_to_string(gateway.folder.join("revocations.jsonl")).unwrap();
        assert_eq!(list.lines().count(), usize::from(status == 200), "{list}");
    }
}

#[test]
fn the_memory_of_a_gateway_goes_to_no_core_file() {
    for (value, expected) in [("0", Some(0)), ("1", None)] {
        let gateway = Plan::new(Hub::Embedded).environment("TOLLGATE_CORE_DUMPS", value).start();
        let limits = fs::read_to_string(format!("/proc/{}/limits", gateway.process.id())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let own = fs::read_to_string("/proc/self/limits").unwrap();
        let own = own.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        match expected {
            Some(_) => assert_eq!(line.split_whitespace().nth(5), Some("0"), "{line}"),
            None => assert_eq!(line, own, "as whoever started it has it"),
        }
    }
}

fn log_in(gateway: &Gateway, device: &str, token: &str) -> Answer {
    gateway.open(Version::V5).log_in(&Login::new(Version::V5, device, token))
}

fn refusals(gateway: &Gateway, device: &str) -> Vec<Value> {
    let (status, body) = gateway.get(&format!("/v1/refusals?device={device}&last=100")).unwrap();
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["refusals"].as_array().unwrap().clone()
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).args(["--config", "gateway.toml"]).current_dir(folder).env_remove("RUST_LOG");
    command.output().unwrap()
}

#[track_caller]
fn told(folder: &Path, arguments: &[&str]) -> String {
    let ran = run(folder, arguments);
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

fn json_of(ran: &Output) -> Value {
    serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

fn rfc3339(time: u64) -> String {
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(time)).to_string()
}

const PATIENCE: Duration = Duration::from_secs(30);
