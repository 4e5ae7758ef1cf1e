//! The command line, as its user runs it: the built binary in a folder of its own.

mod support;

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use support::{Hub, Plan, device_key, folder, sas, sas_until, unix_now, until, until_some};

/// What a command printed, and its exit code.
#[derive(Debug)]
struct Ran {
    out: String,
    err: String,
    code: i32,
}

impl Ran {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs `tollgate` in `folder`, with `input` on standard input.
fn tollgate_with(folder: &Path, input: &str, arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).current_dir(folder).env("USER", "ada").env_remove("TOLLGATE_TOKEN").env_remove("RUST_LOG");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    // A command that does not read its input closes it.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("ended");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Ran { out: text(output.stdout), err: text(output.stderr), code: output.status.code().expect("a code") }
}

fn tollgate(folder: &Path, arguments: &[&str]) -> Ran {
    tollgate_with(folder, "", arguments)
}

/// A folder with files of a gateway that does not run.
fn room() -> PathBuf {
    let folder = folder("cli");
    fs::create_dir(folder.join("config")).expect("written");
    fs::write(folder.join("config/gateway.toml"), GATEWAY).expect("written");
    fs::write(folder.join("config/revocations.jsonl"), "# by hand\n\n{\"device\": \"old\"}").expect("written");
    let keys = [("KEY", "pump-17"), ("POLICY", "policy"), ("WRITER", "writer")];
    let identities =
        keys.iter().fold(IDENTITIES.to_owned(), |text, (place, whose)| text.replace(place, &device_key(whose)));
    secret(&folder.join("config/identities.toml"), &identities);
    secret(&folder.join("issuer.secret"), &device_key("issuer"));
    folder
}

fn secret(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).expect("written");
    file.write_all(text.as_bytes()).expect("written");
}

#[test]
fn a_token_that_was_made_is_read_and_admitted() {
    let room = room();
    for (kind, more) in [("sas", &[] as &[&str]), ("sas", &["--policy", "site"]), ("jwt", &["--jti", "j-1"])] {
        let arguments = [&["token", "mint", "--device", "pump-17", "--kind", kind, "--ttl", "15m"], more].concat();
        let minted = tollgate(&room, &arguments);
        assert_eq!((minted.code, &*minted.err, minted.out.lines().count()), (0, "", 1), "{minted:?}");
        let inspected = tollgate_with(&room, &minted.out, &["token", "inspect", "--json"]).json();
        assert_eq!(inspected["kind"], kind);
        assert!(inspected["token"].as_str().is_some_and(|id| id.starts_with("sha256:")), "{inspected}");
        let explained = tollgate_with(&room, &minted.out, &["token", "explain", "-", "--device", "pump-17"]);
        assert_eq!(explained.code, 0, "{explained:?}");
        assert!(explained.out.ends_with("\nadmitted as pump-17\n") && !explained.out.contains('✗'), "{explained:?}");
    }
}

#[test]
fn a_token_is_made_with_no_more_rights_than_asked_for() {
    let room = room();
    let jwt = &["--kind", "jwt"] as &[&str];
    for (kind, rights, field, held) in [
        (&[] as &[&str], "publish", "skn", "writer"),
        (&["--policy", "writer"], "publish", "skn", "writer"),
        (&["--policy", "site"], "subscribe,publish", "skn", "site"),
        (&[], "publish,subscribe", "skn", ""),
        (jwt, "publish", "acl", "{\"sub\": []}"),
        (jwt, "subscribe", "acl", "{\"pub\": []}"),
        (jwt, "publish,subscribe", "acl", ""),
    ] {
        let arguments = [&["token", "mint", "--device", "pump-17", "--rights", rights], kind].concat();
        let minted = tollgate(&room, &arguments);
        assert_eq!((minted.code, &*minted.err), (0, ""), "{arguments:?}: {minted:?}");
        let inspected = tollgate_with(&room, &minted.out, &["token", "inspect", "--json"]).json();
        assert_eq!(inspected[field].as_str().unwrap_or_default(), held, "{arguments:?}: {inspected}");
    }
}

#[test]
fn a_minted_sas_token_is_the_one_that_the_rules_say() {
    let room = room();
    let minted = tollgate(&room, &["token", "mint", "--device", "pump-17"]);
    let expiry = minted.out.trim().rsplit_once("&se=").expect("an expiry").1.parse().expect("a number");
    assert!((unix_now() + 3590..=unix_now() + 3600).contains(&expiry), "an hour: {expiry}");
    let ours = sas_until("pump-17", expiry);
    let fields = |token: &str| token.split('&').map(str::to_owned).collect::<Vec<_>>();
    // Which characters are escaped beyond need is free; what is signed is what is sent.
    assert_eq!(fields(minted.out.trim()).len(), fields(&ours).len());
    let explained = tollgate_with(&room, &ours, &["token", "explain"]);
    assert_eq!(explained.code, 0, "made by hand: {explained:?}");
}

#[test]
fn a_token_that_is_refused_is_explained_with_the_mistake() {
    let room = room();
    let good = sas("pump-17");
    let milliseconds = sas_until("pump-17", unix_now() * 1000);
    let other = format!("{} ", good.trim_end());
    for (token, device, denial, hint) in [
        (sas_until("pump-17", unix_now() - 4000), "pump-17", "expired", ""),
        (good.clone(), "fan-2", "device_mismatch", "pump-17"),
        (sas("fan-2").replace("fan%2D2", "pump%2D17"), "pump-17", "signature_invalid", ""),
        (milliseconds, "pump-17", "credential_malformed", "milliseconds"),
        (format!("Bearer {good}"), "pump-17", "credential_malformed", "Bearer"),
        (other, "pump-17", "credential_malformed", ""),
    ] {
        let explained = tollgate_with(&room, &token, &["token", "explain", "-", "--device", device]);
        assert_eq!(explained.code, 1, "{explained:?}");
        assert!(explained.out.contains(denial) && explained.out.contains('✗'), "{denial}: {explained:?}");
        assert!(explained.out.contains(hint), "{hint}: {explained:?}");
        assert!(explained.out.lines().all(|line| line.chars().count() <= 100), "{explained:?}");
        let json = tollgate_with(&room, &token, &["token", "explain", "--json", "--device", device]).json();
        assert_eq!((&json["admitted"], &json["denial"]), (&Value::Bool(false), &Value::from(denial)), "{json}");
    }
}

#[test]
fn mint_says_what_it_cannot_make_and_what_will_be_refused() {
    let room = room();
    for (arguments, code, hint) in [
        (&["--device", "ghost"] as &[&str], 1, "no device ghost"),
        (&["--device", "pump-17", "--policy", "nobody"], 1, "no [[policy]]"),
        (&["--device", "pump-17", "--kind", "jwt", "--issuer", "nobody"], 1, "no [[issuer]]"),
        (&["--device", "pump-17", "--kind", "jwt", "--policy", "site"], 2, "--policy is for --kind sas"),
        (&["--device", "pump-17", "--jti", "x"], 2, "--jti"),
        (&["--device", "pump-17", "--rights", "subscribe"], 1, "just these `rights`"),
        (&["--device", "pump-17", "--rights", "publish", "--policy", "site"], 1, "other `rights`"),
        (&["--device", "pump-17", "--rights", "read"], 2, "--rights"),
        (&["--device", "pump-17", "--ttl", "soon"], 2, "no duration"),
        (&["--device", "pump-17", "--ttl", "0"], 2, "over when it is made"),
        (&["--device", "pump-17", "--ttl", "999ms", "--kind", "jwt"], 2, "over when it is made"),
        (&["--device", "pump-17", "--ttl", "1s"], 0, ""),
        (&["--device", "+"], 2, "may not hold"),
        (&[], 2, "--device"),
        (&["--device", "pump-17", "--ttl", "8d"], 0, "lifetime_too_long"),
    ] {
        let ran = tollgate(&room, &[&["token", "mint"], arguments].concat());
        assert_eq!(ran.code, code, "{arguments:?}: {ran:?}");
        assert!(ran.err.contains(hint), "{hint}: {ran:?}");
        assert_eq!(ran.out.is_empty(), code != 0, "only a token on standard output: {ran:?}");
    }
}

#[test]
fn revoke_appends_one_line_and_keeps_the_rest() {
    let room = room();
    let list = room.join("config/revocations.jsonl");
    fs::set_permissions(&list, fs::Permissions::from_mode(0o604)).unwrap();
    let device = tollgate(&room, &["revoke", "device", "pump-17", "--reason", "scrapped"]);
    let jti = tollgate(&room, &["revoke", "jti", "j-1", "--issuer", "factory", "--until", "2030-01-01T00:00:00Z"]);
    // One that has expired can be revoked, too: it may be valid again when a clock is wrong.
    let token = tollgate_with(&room, &sas_until("pump-17", 1_000_000_000), &["revoke", "token", "-"]);
    for ran in [&device, &jti, &token] {
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.out.contains("could be asked") && ran.out.contains("is written to"), "{ran:?}");
    }
    let text = fs::read_to_string(&list).unwrap();
    assert!(text.starts_with("# by hand\n\n{\"device\": \"old\"}\n{"), "{text}");
    let entries: Vec<Value> = text.lines().skip(3).map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(entries.len(), 3, "{text}");
    assert_eq!((&entries[0]["device"], &entries[0]["by"]), (&Value::from("pump-17"), &Value::from("ada")));
    assert_eq!((&entries[1]["jti"], &entries[1]["issuer"]), (&Value::from("j-1"), &Value::from("factory")));
    let id = entries[2]["token"].as_str().expect("a token").strip_prefix("sha256:").expect("a hash");
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    assert_eq!(fs::metadata(&list).unwrap().mode() & 0o777, 0o604);

    let listed = tollgate(&room, &["revocations", "list", "--json"]).json();
    assert_eq!((&listed["total"], listed["revocations"].as_array().map(Vec::len)), (&Value::from(4), Some(4)));
    let id = listed["revocations"][1]["id"].as_str().expect("an id").to_owned();
    assert!(device.out.contains(&id), "{id}: {device:?}");
    let explained = tollgate_with(&room, &sas("pump-17"), &["token", "explain"]);
    assert!(
        explained.code == 1 && explained.out.contains("310 revoked") && explained.out.contains(&id),
        "{explained:?}"
    );
}

#[test]
fn an_entry_that_can_concern_nobody_is_said_so_and_one_that_never_can_is_not_written() {
    let room = room();
    for (arguments, named) in [
        (&["jti", "j-1", "--issuer", "nosuch"] as &[&str], "no issuer nosuch"),
        (&["issued-before", "2026-11-20T12:00:00Z", "--issuer", "nosuch"], "no issuer nosuch"),
        (&["key", "policy:nosuch/primary"], "no policy nosuch"),
        (&["device", "nosuch"], "no device nosuch"),
        (&["jti", "j-1", "--issuer", "factory"], ""),
    ] {
        let ran = tollgate(&room, &[&["revoke"], arguments].concat());
        assert_eq!((ran.code, ran.err.contains("note: ")), (0, !named.is_empty()), "{arguments:?}: {ran:?}");
        assert!(ran.err.contains(named), "{named}: {ran:?}");
    }
    let list = fs::read_to_string(room.join("config/revocations.jsonl")).unwrap();
    let long = tollgate(&room, &["revoke", "jti", &"j".repeat(129)]);
    assert!(long.code == 2 && long.err.contains("has 129 bytes") && long.err.contains("token inspect"), "{long:?}");
    assert_eq!(fs::read_to_string(room.join("config/revocations.jsonl")).unwrap(), list);
    assert_eq!(tollgate(&room, &["revoke", "jti", &"j".repeat(128)]).code, 0);
    let checked = tollgate(&room, &["check"]);
    let place = "warning: config/revocations.jsonl:3: the entry revokes nothing: the identities have no device old.";
    assert!(checked.code == 0 && checked.out.contains(place), "{checked:?}");
}

#[test]
fn a_revocation_is_not_held_up_by_mistakes_elsewhere() {
    let room = room();
    let broken = format!("{GATEWAY}\n[limits]\nconnections_max = \"many\"\n");
    fs::write(room.join("config/gateway.toml"), broken).unwrap();
    let ran = tollgate(&room, &["revoke", "device", "pump-17"]);
    assert!(ran.code == 0 && ran.err.contains("tollgate check"), "{ran:?}");
    assert!(fs::read_to_string(room.join("config/revocations.jsonl")).unwrap().contains("pump-17"));
}

#[test]
fn help_fits_100_columns() {
    let room = room();
    for command in ["", "token mint", "token explain", "pub", "sub", "revoke device", "revocations list", "refusals"] {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let ran = tollgate(&room, &arguments);
        assert_eq!((ran.code, &*ran.err), (0, ""), "{command}: {ran:?}");
        let wide: Vec<_> = ran.out.lines().filter(|line| line.chars().count() > 100).collect();
        assert!(wide.is_empty(), "{command}: {wide:#?}");
    }
}

#[test]
fn wrong_usage_is_told_within_100_columns() {
    let room = room();
    let long = "x".repeat(60);
    for arguments in [
        &["revoke", "device", "pump-17", "--untli", "2026-12-21T00:00:00Z", &long] as &[&str],
        &["token", "mint", "--device", "a b", "--kind", "saml"],
        &["token", "mint", "--device", "pump-17", "--ttl", &long],
        &["pub", "--device", "pump-17", "--qos", "3", "--count", "0"],
        &["key", "rotate", "nobody"],
        &["key", "add", "issuer:a/b/c d"],
        &["revoke", "issued-before", "2026-11-20T12:00:00Z", "--device", "a", "--policy", "b"],
        &["revocations", "sign"],
    ] {
        let ran = tollgate(&room, arguments);
        assert_eq!((ran.code, &*ran.out), (2, ""), "{arguments:?}: {ran:?}");
        let wide: Vec<_> = ran.err.lines().filter(|line| line.chars().count() > 100).collect();
        assert!(wide.is_empty() && ran.err.starts_with("error: "), "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn what_is_quoted_of_a_file_commands_no_terminal() {
    let room = room();
    let list = room.join("config/revocations.jsonl");
    fs::write(&list, "{\"\u{1b}[2J\": 1}\n{\"device\": \"old\"}\n{\"jti\": \"x\", \"issuer\": \"\\u001b[2J\"}\n")
        .unwrap();
    let toml = room.join("config/gateway.toml");
    fs::write(&toml, format!("{GATEWAY}[limits]\n\"\\u001b]0;mine\\u0007\" = 1\n")).unwrap();
    for (input, arguments) in [
        (&*sas("pump-17"), &["token", "explain"] as &[&str]),
        ("", &["check"]),
        ("", &["revoke", "jti", "\u{9b}2J", "--issuer", "\u{202e}x"]),
        ("", &["revoke", "jti", "x", "--until", "\u{1b}[2J"]),
        ("", &["token", "mint", "--device", "pump-17", "--policy", "\u{1b}[2J"]),
        ("", &["token", "mint", "--device", "\u{1b}[2J"]),
    ] {
        let ran = tollgate_with(&room, input, arguments);
        assert!(ran.code == 0 || !ran.err.is_empty() || !ran.out.is_empty(), "{ran:?}");
        let said = format!("{}{}", ran.out, ran.err);
        assert!(said.chars().all(|c| matches!(c, '\n' | ' ') || !(c.is_control() || c == '\u{202e}')), "{ran:?}");
    }
}

#[test]
fn keys_are_added_and_rotated_before_a_gateway_was_ever_started() {
    let first = room();
    let rotated = tollgate(&first, &["key", "rotate", "device:pump-17", "--json"]);
    assert!(rotated.code == 0 && rotated.json()["primary"].is_string(), "{rotated:?}");
    assert_eq!(fs::metadata(first.join("var")).unwrap().mode() & 0o777, 0o700);
    let revoking = room();
    let revoked = tollgate(&revoking, &["revoke", "device", "pump-17"]);
    assert_eq!((revoked.code, &*revoked.err), (0, ""), "{revoked:?}");
    assert_eq!(tollgate(&revoking, &["audit", "verify"]).code, 0);
    let second = room();
    assert_eq!(tollgate(&second, &["key", "add", "device:pump-18"]).code, 0);
    assert!(fs::read_to_string(second.join("config/identities.toml")).unwrap().contains("pump-18"));
    let third = room();
    fs::write(third.join("var"), "no folder").unwrap();
    let ran = tollgate(&third, &["key", "rotate", "device:pump-17"]);
    assert!(ran.code == 1 && ran.err.contains("cannot make var: ") && !ran.err.contains("lock"), "{ran:?}");
}

#[test]
fn key_list_and_key_plan_know_what_a_device_has() {
    let room = room();
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a pair");
    fs::write(room.join("cam.pem"), pair.public_key_pem()).unwrap();
    let identities = room.join("config/identities.toml");
    let both = format!(
        "[[device]]\nid = \"cam\"\n[[device.public_key]]\nkid = \"k1\"\nfile = \"cam.pem\"\nnot_after = \"2040-01-01T00:00:00Z\"\n\
         [[device]]\nid = \"fan\"\nprimary_key = \"{}\"\n",
        device_key("fan")
    );
    fs::remove_file(&identities).unwrap();
    secret(&identities, &both);
    let listed = tollgate(&room, &["key", "list", "device:cam", "--json"]).json();
    let key = &listed["keys"][0];
    assert_eq!((&listed["total"], &key["kid"], &key["kind"]), (&1.into(), &"k1".into(), &"jwt, public".into()));
    assert_eq!(key["not_after"], "2040-01-01T00:00:00Z", "{listed}");
    let text = tollgate(&room, &["key", "list"]).out;
    assert!(text.contains("device:cam/k1  public ") && text.contains("device:cam/k1: good until 2040-01-01"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("device:fan ") && line.contains("primary")), "{text}");

    let plan = tollgate(&room, &["key", "plan"]);
    assert!(plan.code == 0 && plan.out.starts_with("1 device has keys of its own"), "{plan:?}");
    assert!(
        plan.out.replace("\n", " ").contains("tollgate key plan device:ID") && !plan.out.contains("no keys"),
        "{plan:?}"
    );
    let plan = tollgate(&room, &["key", "plan", "device:fan"]);
    assert!(plan.code == 0 && plan.out.contains("✓ device:fan"), "{plan:?}");
    let plan = tollgate(&room, &["key", "plan", "device:cam"]);
    assert!(plan.code == 0 && plan.out.contains("device:cam has public keys alone"), "{plan:?}");
    fs::remove_file(&identities).unwrap();
    secret(&identities, "");
    assert_eq!(tollgate(&room, &["key", "plan"]).out, "there are no keys yet\n");
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let room = room();
    let line = "{\"device\": \"pump-17\", \"reason\": \"scrapped\"}\n";
    fs::write(room.join("config/revocations.jsonl"), line.repeat(20_000)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["revocations", "list", "--last", "20000"])
        .current_dir(&room)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ended");
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]), "{output:?}");
}

#[test]
fn wrong_usage_is_2_and_nothing_is_written() {
    let room = room();
    for arguments in [
        &["bogus"] as &[&str],
        &["revoke"],
        &["revoke", "device", "+"],
        &["revoke", "jti", "x", "--until", "soon"],
        &["revoke", "jti", ""],
        &["token", "inspect"],
        &["token", "inspect", "eyJhbGciOiJub25lIn0"],
        &["pub", "--device", "pump-17", "--mqtt", "3"],
        &["pub", "--device", "pump-17", "--tls"],
        &["sessions", "close"],
    ] {
        let ran = tollgate(&room, arguments);
        assert_eq!((ran.code, &*ran.out), (2, ""), "{arguments:?}: {ran:?}");
        assert!(!ran.err.is_empty());
    }
    let list = fs::read_to_string(room.join("config/revocations.jsonl")).unwrap();
    assert_eq!(list, "# by hand\n\n{\"device\": \"old\"}");
}

#[test]
fn what_needs_a_running_gateway_says_how_to_get_one() {
    let room = room();
    let ran = tollgate(&room, &["refusals"]);
    assert!(ran.code == 1 && ran.err.contains("admin.token") && ran.err.contains("--token-file"), "{ran:?}");
    fs::write(room.join("token"), "secret").unwrap();
    for arguments in [&["refusals"] as &[&str], &["sessions", "list"], &["sessions", "close", "a"], &["upstreams"]] {
        let here = ["--token-file", "token", "--admin", "http://127.0.0.1:1"];
        let ran = tollgate(&room, &[arguments, &here].concat());
        assert!(ran.code == 1 && ran.err.contains("no gateway answers at http://127.0.0.1:1"), "{ran:?}");
    }
}

#[test]
fn check_names_mistakes_and_ends_with_1() {
    let room = room();
    let good = tollgate(&room, &["check"]);
    assert_eq!(good.code, 0, "{good:?}");
    fs::write(room.join("config/gateway.toml"), "[gateway]\nnmae = \"x\"\nshards = -1\n").unwrap();
    let bad = tollgate(&room, &["check"]);
    assert_eq!(bad.code, 1, "{bad:?}");
    assert!(bad.out.contains("config/gateway.toml:2") && bad.out.contains("config/gateway.toml:3"), "{bad:?}");
    assert_eq!(tollgate(&room, &["check", "--config", "nowhere.toml"]).code, 1);
}

#[test]
fn a_device_is_watched_refused_shown_and_revoked() {
    let gateway = Plan::new(Hub::Embedded).start();
    let run = |arguments: &[&str]| tollgate(&gateway.folder, &[arguments, &["--config", "gateway.toml"]].concat());
    let log = gateway.folder.join("sub.log");
    let mut watching = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["sub", "--device", "service", "--topic", "devices/+/messages/events/#", "--mqtt", "5"])
        .args(["--config", "gateway.toml"])
        .current_dir(&gateway.folder)
        .env_remove("TOLLGATE_TOKEN")
        .stdin(Stdio::null())
        .stdout(fs::File::create(&log).unwrap())
        .stderr(fs::File::create(gateway.folder.join("sub.err")).unwrap())
        .spawn()
        .expect("started");
    let answers = || fs::read_to_string(gateway.folder.join("sub.err")).unwrap();
    until("the subscription", Duration::from_secs(20), || answers().contains("SUBACK granted QoS 1"));

    for version in ["4", "5"] {
        let sent = run(&["pub", "--device", "d1", "--mqtt", version, "--message", "good", "--count", "3"]);
        assert_eq!(sent.code, 0, "{sent:?}");
        assert!(sent.out.contains("CONNACK 0") && sent.out.contains("3 of 3 acknowledged"), "{sent:?}");
        let sent = run(&["pub", "--device", "d1", "--mqtt", version, "--qos", "0"]);
        assert_eq!(sent.code, 0, "{sent:?}");
        let outside = run(&["pub", "--device", "d1", "--mqtt", version, "--topic", "devices/d2/messages/events/"]);
        assert_eq!(outside.code, 1, "{outside:?}");
        let outside =
            run(&["pub", "--device", "d1", "--mqtt", version, "--qos", "0", "--topic", "devices/d2/messages/events/"]);
        assert_eq!(outside.code, 1, "{outside:?}");
        let outside = run(&["sub", "--device", "d1", "--mqtt", version, "--topic", "#"]);
        assert!(outside.code == 1 && outside.err.contains("SUBACK 0x8"), "{outside:?}");
    }
    until("the messages", Duration::from_secs(20), || fs::read_to_string(&log).unwrap().lines().count() >= 8);
    assert!(fs::read_to_string(&log).unwrap().lines().any(|line| line == "devices/d1/messages/events/  good"));

    let refusals = run(&["refusals", "--device", "d1", "--json"]).json();
    let tags: Vec<_> = refusals.as_array().expect("a list").iter().map(|e| e["tag"].clone()).collect();
    assert!(tags.contains(&"topic_out_of_scope".into()) && tags.contains(&"filter_out_of_scope".into()), "{tags:?}");
    assert_eq!(run(&["sessions", "list", "--json"]).json()[0]["device"], "service");
    assert_eq!(run(&["upstreams", "--json"]).json()[0]["state"], "up");

    let revoked = run(&["revoke", "device", "service", "--reason", "just looking"]);
    assert!(revoked.code == 0 && revoked.out.contains("live sessions that it cuts: 1\nservice"), "{revoked:?}");
    let status = until_some("the cut", Duration::from_secs(20), || watching.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
    assert!(answers().contains("DISCONNECT 0x98 administrative action: revoked"), "{}", answers());
    let why = run(&["refusals", "--device", "service"]);
    assert!(why.out.contains("revoked"), "{why:?}");
    let again = run(&["pub", "--device", "service", "--mqtt", "4"]);
    assert!(again.code == 1 && again.out.contains("CONNACK 5 refused: not authorized"), "{again:?}");
}

const GATEWAY: &str = "\
[gateway]
hostname = \"localhost\"
[[listener]]
bind = \"127.0.0.1:1883\"
transport = \"tcp\"
[[upstream]]
name = \"hub\"
kind = \"embedded\"
[[route]]
from = \"devices/{device}/#\"
upstream = \"hub\"
";

const IDENTITIES: &str = "\
[defaults.scope]
publish = [\"devices/{device}/messages/events/#\"]
subscribe = [\"devices/{device}/messages/devicebound/#\"]
[[device]]
id = \"pump-17\"
primary_key = \"KEY\"
[[policy]]
name = \"site\"
resource = \"localhost\"
primary_key = \"POLICY\"
[[policy]]
name = \"writer\"
resource = \"localhost\"
primary_key = \"WRITER\"
rights = [\"publish\"]
[[issuer]]
name = \"factory\"
iss = \"https://id.example\"
audience = [\"localhost\"]
algorithms = [\"HS256\"]
scope_claim = \"acl\"
[[issuer.key]]
kid = \"k1\"
secret_file = \"issuer.secret\"
";
