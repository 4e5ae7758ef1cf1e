//! The revocation list from outside: every kind of entry on live sessions, the command line and the admin API that edit it,
//! lists that must be signed, and tokens that come back in another dress.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use support::{
    Answer, Gateway, Hub, Login, Plan, Version, claims_with, device_key, jwt, sas, sas_for, unix_now, until,
};

#[test]
fn a_stolen_sas_token_stays_revoked_however_it_is_written() {
    let gateway = Plan::new(Hub::Embedded).start();
    let stolen = sas("d0");
    let (resource, signature, expiry) = (field(&stolen, "sr="), field(&stolen, "sig="), field(&stolen, "se="));
    let plain = percent_decode_str(signature).decode_utf8().unwrap().into_owned();
    let dressed = [
        stolen.clone(),
        format!("SharedAccessSignature se={expiry}&sig={signature}&sr={resource}"),
        format!("SharedAccessSignature sig={plain}&se={expiry}&sr={resource}"),
        format!("SharedAccessSignature sig={}&sr={resource}&skn=&se={expiry}", signature.to_lowercase_escapes()),
        format!("SharedAccessSignature sr={resource}&se={expiry}&sig={}", every_byte_escaped(&plain)),
    ];
    for token in &dressed {
        assert_eq!(log_in(&gateway, "d0", token), Answer::Connack(0), "{token}");
    }
    let mut live = gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d0", &dressed[1]));
    let ran = run(&gateway.folder, &stolen, &["revoke", "token", "-", "--reason", "seen in a log"]);
    assert!(ran.status.success() && text(&ran.stdout).contains("live sessions that it cuts: 1\nd0"), "{ran:?}");
    assert_eq!(live.closed(PATIENCE), Some(0x98));
    for token in &dressed {
        assert_eq!(log_in(&gateway, "d0", token), Answer::Connack(0x87), "{token}");
    }
    let other = sas_for("localhost/devices/d0", &device_key("d0"), &(unix_now() + 1800).to_string());
    assert_eq!(log_in(&gateway, "d0", &other), Answer::Connack(0), "another token of the device");
}

#[test]
fn a_stolen_jwt_stays_revoked_with_the_twin_of_its_signature() {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let public = pair.public_key_pem();
    let mut gateway = Plan::new(Hub::Embedded).identities_and(EC_ISSUER).launch(|folder| {
        fs::write(folder.join("ec.pem"), &public).unwrap();
    });
    gateway.until_ready();
    let header = json!({"alg": "ES256", "typ": "JWT", "kid": "ec"});
    let mut claims = claims_with("d0", json!({"jti": null}));
    claims["iss"] = "https://ec.example".into();
    let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let message = format!("{}.{}", encode(&header), encode(&claims));
    let key = jsonwebtoken::EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::ES256).unwrap();
    let twin = twin_of(&BASE64_URL_SAFE_NO_PAD.decode(&signature).unwrap());
    let (stolen, twin) =
        (format!("{message}.{signature}"), format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(twin)));
    assert_ne!(stolen, twin);
    assert_eq!(log_in(&gateway, "d0", &stolen), Answer::Connack(0));
    let mut live = gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d0", &twin));
    let ran = run(&gateway.folder, &stolen, &["revoke", "token"]);
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(live.closed(PATIENCE), Some(0x98), "the twin is the same token");
    for token in [&stolen, &twin] {
        assert_eq!(log_in(&gateway, "d0", token), Answer::Connack(0x87));
    }
}

#[test]
fn every_kind_of_entry_cuts_what_it_names_and_lets_it_in_again_when_it_is_removed() {
    let gateway = Plan::new(Hub::Embedded).identities_and(POLICY).start();
    let by_policy =
        |device: &str| sas_for(&format!("localhost/devices/{device}"), &device_key("site"), &in_an_hour("&skn=site"));
    let soon = rfc3339(unix_now() + 3000);
    let now = rfc3339(unix_now() + 1);
    for (device, token, arguments) in [
        ("d0", sas("d0"), &["device", "d0"] as &[&str]),
        ("d1", jwt("d1", unix_now() + 600, "j-1"), &["jti", "j-1", "--issuer", "factory"]),
        ("d2", by_policy("d2"), &["key", "policy:site/primary"]),
        ("d3", jwt("d3", unix_now() + 600, "j-3"), &["key", "issuer:factory/k1"]),
        ("d4", jwt("d4", unix_now() + 600, "j-4"), &["issued-before", &now, "--issuer", "factory"]),
        ("d5", sas("d5"), &["issued-before", &now, "--device", "d5"]),
        ("d6", by_policy("d6"), &["issued-before", &now, "--policy", "site"]),
        ("d7", jwt("d7", unix_now() + 600, "j-7"), &["expires-before", &soon]),
        ("d8", by_policy("d8"), &["expires-before", &rfc3339(unix_now() + 7200), "--policy", "site"]),
    ] {
        let mut live = gateway.open(Version::V5).admitted(&Login::new(Version::V5, device, &token));
        let mut other = gateway.connect(Version::V5, "d9");
        let why = ["--reason", "a test", "--by", "tester"];
        let ran = run(&gateway.folder, "", &[&["revoke"], arguments, &why as &[&str]].concat());
        assert!(ran.status.success(), "{arguments:?}: {ran:?}");
        assert!(text(&ran.stdout).contains("live sessions that it cuts: 1\n"), "{arguments:?}: {ran:?}");
        assert_eq!(live.closed(PATIENCE), Some(0x98), "{arguments:?}");
        assert_eq!(log_in(&gateway, device, &token), Answer::Connack(0x87), "{arguments:?}");
        other.ping();
        assert_eq!(other.next(PATIENCE), Answer::Pingresp, "{arguments:?}: nobody else is cut");

        let listed = json_of(&run(&gateway.folder, "", &["revocations", "list", "--json"]));
        let entry = listed["revocations"].as_array().unwrap().last().unwrap().clone();
        assert_eq!((&entry["by"], &entry["reason"]), (&json!("tester"), &json!("a test")), "{entry}");
        let id = entry["id"].as_str().unwrap();
        let removed = run(&gateway.folder, "", &["revocations", "remove", id]);
        assert!(removed.status.success(), "{removed:?}");
        until("it to be let in again", PATIENCE, || log_in(&gateway, device, &token) == Answer::Connack(0));
    }
    let audit = fs::read_to_string(gateway.folder.join("var/audit.jsonl")).unwrap();
    let actions = |action: &str| audit.lines().filter(|line| line.contains(action)).count();
    assert_eq!((actions("revocation_added"), actions("\"revocation_removed\"") >= 9), (9, true), "{audit}");
    assert!(run(&gateway.folder, "", &["audit", "verify"]).status.success());
}

#[test]
fn a_removal_by_hand_is_honoured_logged_and_audited() {
    let gateway = Plan::new(Hub::Embedded).start();
    let list = gateway.folder.join("revocations.jsonl");
    fs::write(&list, "# by hand\n{\"device\": \"d0\"}\n{\"device\": \"d1\"}\n").unwrap();
    until("d0 to be refused", PATIENCE, || log_in(&gateway, "d0", &sas("d0")) == Answer::Connack(0x87));
    fs::write(&list, "# by hand\n{\"device\": \"d1\"}\n").unwrap();
    until("d0 to be let in", PATIENCE, || log_in(&gateway, "d0", &sas("d0")) == Answer::Connack(0));
    // printf 'device\nd0' | sha256sum
    let id = "64cf32ee";
    let noted = || fs::read_to_string(gateway.folder.join("var/audit.jsonl")).unwrap_or_default();
    until("the audit log to say so", PATIENCE, || {
        noted().lines().any(|line| line.contains("revocation_removed") && line.contains(id))
    });
    assert!(gateway.process.log().contains(id), "{}", gateway.process.log());
}

#[test]
fn an_empty_list_after_a_full_one_is_in_force_and_an_alarm() {
    let gateway = Plan::new(Hub::Embedded).start();
    let list = gateway.folder.join("revocations.jsonl");
    let alarm = || gateway.metric("tollgate_alarm", &["kind=\"list\""]);
    gateway.revoke(r#"{"device": "d0"}"#);
    until("d0 to be refused", PATIENCE, || log_in(&gateway, "d0", &sas("d0")) == Answer::Connack(0x87));
    assert_eq!(alarm(), 0.0);
    fs::write(&list, "").unwrap();
    until("the alarm", PATIENCE, || alarm() == 1.0);
    assert_eq!(log_in(&gateway, "d0", &sas("d0")), Answer::Connack(0));
    gateway.revoke(r#"{"device": "d1"}"#);
    until("the alarm to be over", PATIENCE, || alarm() == 0.0);
}

#[test]
fn an_entry_ends_by_its_until_and_prune_takes_out_no_other() {
    let gateway = Plan::new(Hub::Embedded).start();
    let list = gateway.folder.join("revocations.jsonl");
    let end = unix_now() + 3;
    let kept = format!("# kept\n\n  {{\"device\": \"d1\", \"until\": \"{}\"}}\n", rfc3339(end + 3600));
    fs::write(&list, format!("{kept}{{\"device\": \"d0\", \"until\": \"{}\"}}\n", rfc3339(end))).unwrap();
    until("d0 to be refused", PATIENCE, || log_in(&gateway, "d0", &sas("d0")) == Answer::Connack(0x87));
    until("d0 to be let in", PATIENCE, || log_in(&gateway, "d0", &sas("d0")) == Answer::Connack(0));
    assert!(unix_now() >= end, "not before its end");
    assert_eq!(log_in(&gateway, "d1", &sas("d1")), Answer::Connack(0x87));
    let pruned = run(&gateway.folder, "", &["revocations", "prune"]);
    assert!(pruned.status.success() && text(&pruned.stdout).contains(": 1 entry"), "{pruned:?}");
    assert_eq!(fs::read_to_string(&list).unwrap(), kept);
    let again = run(&gateway.folder, "", &["revocations", "prune"]);
    assert!(again.status.success() && text(&again.stdout).starts_with("no entry"), "{again:?}");
}

#[test]
fn a_list_is_exported_and_imported_once() {
    let gateway = Plan::new(Hub::Embedded).start();
    let list = gateway.folder.join("revocations.jsonl");
    fs::write(&list, "# by hand\n{\"device\": \"d0\"}\n").unwrap();
    let other = gateway.folder.join("other.jsonl");
    fs::write(&other, "{\"device\": \"d0\", \"reason\": \"again\"}\n# note\n{\"jti\": \"x\"}\n{\"jti\": \"x\"}\n")
        .unwrap();
    let file = other.to_str().unwrap();
    let imported = run(&gateway.folder, "", &["revocations", "import", file]);
    assert!(imported.status.success() && text(&imported.stdout).contains(": 1 entry"), "{imported:?}");
    assert_eq!(fs::read_to_string(&list).unwrap(), "# by hand\n{\"device\": \"d0\"}\n{\"jti\": \"x\"}\n");
    let exported = run(&gateway.folder, "", &["revocations", "export", "-"]);
    assert_eq!(text(&exported.stdout), fs::read_to_string(&list).unwrap());
    fs::write(&other, "{\"device\": \"d5\"}\n{\"devise\": \"d6\"}\n").unwrap();
    let bad = run(&gateway.folder, "", &["revocations", "import", file]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stderr).contains("other.jsonl:2: ") && !fs::read_to_string(&list).unwrap().contains("d5"));
    let unknown = run(&gateway.folder, "", &["revocations", "remove", "00000000"]);
    assert!(unknown.status.code() == Some(1) && text(&unknown.stderr).contains("has no entry"), "{unknown:?}");
}

#[test]
fn until_when_honest_sas_tokens_are_refused_is_said_and_without_a_limit_nothing_is_written() {
    let gateway = Plan::new(Hub::Embedded).identities_and(POLICY).start();
    let list = gateway.folder.join("revocations.jsonl");
    let time = unix_now() / 3600 * 3600;
    let said = |arguments: &[&str]| {
        let ran = run(&gateway.folder, "", &[&["revoke", "issued-before", &rfc3339(time)], arguments].concat());
        assert!(ran.status.success(), "{ran:?}");
        text(&ran.stdout).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    // The policy's own limit is two hours, the gateway's a day.
    let policy = said(&["--policy", "site"]);
    assert!(policy.contains(&format!("until {}", rfc3339(time + 3600))), "{policy}");
    assert!(policy.contains(&format!("none from {} on", rfc3339(time + 7200))), "{policy}");
    assert!(said(&["--device", "d0"]).contains(&format!("none from {} on", rfc3339(time + 86_400))));
    assert!(!said(&["--issuer", "factory"]).contains("SAS"));
    let before = fs::read_to_string(&list).unwrap();
    assert_eq!(before.lines().count(), 3);

    let toml = gateway.folder.join("gateway.toml");
    let azure = fs::read_to_string(&toml).unwrap().replace("hostname =", "profile = \"azure\"\nhostname =");
    fs::write(&toml, azure).unwrap();
    let refused = run(&gateway.folder, "", &["revoke", "issued-before", &rfc3339(time), "--device", "d0"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(
        text(&refused.stderr).contains("expires-before") && text(&refused.stderr).contains("rotate"),
        "{refused:?}"
    );
    assert_eq!(fs::read_to_string(&list).unwrap(), before);
}

#[test]
fn a_gateway_that_asks_for_a_signature_takes_no_other_list() {
    let mut gateway = Plan::new(Hub::Embedded).launch(|folder| ask_for_signatures(folder, ""));
    gateway.until_ready();
    let list = gateway.folder.join("revocations.jsonl");
    let (alarm, refused) = (
        || gateway.metric("tollgate_alarm", &["kind=\"list\""]),
        |device: &str| log_in(&gateway, device, &sas(device)),
    );
    assert_eq!((refused("d0"), refused("d1"), alarm()), (Answer::Connack(0x87), Answer::Connack(0), 0.0));
    assert!(gateway.metric("tollgate_revocation_list_age_seconds", &[]) < 60.0);
    let first = fs::read_to_string(&list).unwrap();

    // A change by hand breaks the signature; the command says so and writes nothing, and so does the API.
    let ran = run(&gateway.folder, "", &["revoke", "device", "d1"]);
    assert!(ran.status.code() == Some(1) && text(&ran.stderr).contains("--key-file"), "{ran:?}");
    assert_eq!(fs::read_to_string(&list).unwrap(), first);
    gateway.revoke(r#"{"device": "d1"}"#);
    until("the alarm", PATIENCE, || alarm() == 1.0);
    assert_eq!(
        (refused("d0"), refused("d1")),
        (Answer::Connack(0x87), Answer::Connack(0)),
        "the last good one is in force"
    );
    assert!(gateway.process.log().contains("changed or cut off"), "{}", gateway.process.log());

    // Signed again, with what was added.
    let mut live = gateway.connect(Version::V5, "d1");
    let ran = run(&gateway.folder, "", &["revocations", "sign", "revocations.jsonl", "--key-file", "list.key"]);
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(live.closed(PATIENCE), Some(0x98));
    until("the alarm to be over", PATIENCE, || alarm() == 0.0);
    let ran = run(&gateway.folder, "", &["revoke", "device", "d2", "--key-file", "list.key"]);
    assert!(ran.status.success(), "{ran:?}");
    until("d2 to be refused", PATIENCE, || refused("d2") == Answer::Connack(0x87));
    let newest = fs::read_to_string(&list).unwrap();

    // The first one was good, and is older: a rollback. So is an unsigned one no list, and a stranger's.
    for (content, why) in [(first.clone(), "it is older"), ("{\"device\": \"d0\"}\n".into(), "it is not signed")] {
        fs::write(&list, content).unwrap();
        until("the alarm", PATIENCE, || alarm() == 1.0);
        until("the log to say why", PATIENCE, || gateway.process.log().contains(why));
        assert_eq!(refused("d2"), Answer::Connack(0x87));
        fs::write(&list, &newest).unwrap();
        until("the alarm to be over", PATIENCE, || alarm() == 0.0);
    }
}

#[test]
fn a_command_that_changes_the_list_says_whether_the_running_gateway_took_it_and_fails_where_it_did_not() {
    let mut gateway = Plan::new(Hub::Embedded).launch(|folder| {
        let bare = fs::read_to_string(folder.join("gateway.toml")).unwrap();
        ask_for_signatures(folder, "");
        // As where the configuration was changed, and the gateway not started again.
        fs::write(folder.join("bare.toml"), bare).unwrap();
    });
    gateway.until_ready();
    let list = gateway.folder.join("revocations.jsonl");
    let admitted = |device: &str| log_in(&gateway, device, &sas(device)) == Answer::Connack(0);
    fs::write(gateway.folder.join("more.jsonl"), "{\"device\": \"d4\"}\n").unwrap();
    let key = ["--key-file", "list.key"];
    for arguments in [
        &["revoke", "device", "d2"] as &[&str],
        &["revocations", "import", "more.jsonl"],
        &["revocations", "sign", "revocations.jsonl"],
    ] {
        let ran = run(&gateway.folder, "", &[arguments, &key].concat());
        assert!(ran.status.success(), "{arguments:?}: {ran:?}");
        assert!(text(&ran.stdout).ends_with("\nin force on the running gateway\n"), "{arguments:?}: {ran:?}");
    }
    assert!(!admitted("d2") && !admitted("d4"), "it is in force when the command ends");
    let good = fs::read_to_string(&list).unwrap();

    assert!(run(&gateway.folder, "", &["revocations", "keygen", "other.key"]).status.success());
    let other = ["--key-file", "other.key", "--config", "bare.toml"];
    fs::write(gateway.folder.join("more.jsonl"), "{\"device\": \"d5\"}\n").unwrap();
    for arguments in [
        &["revoke", "device", "d3"] as &[&str],
        &["revocations", "import", "more.jsonl"],
        &["revocations", "sign", "revocations.jsonl"],
    ] {
        let ran = ran_by(&gateway.folder, "", &[arguments, &other].concat());
        let said = text(&ran.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(ran.status.code(), Some(1), "{arguments:?}: {ran:?}");
        assert!(said.contains("NOT in force") && said.contains("the revocation list is refused: "), "{said}");
        assert!(said.contains("other") || said.contains("key"), "the gateway's own reason: {said}");
        assert!(!text(&ran.stdout).contains("in force on"), "{ran:?}");
    }
    assert!(admitted("d3") && !admitted("d2"), "what it had is in force");
    fs::write(&list, &good).unwrap();
    let ran = run(&gateway.folder, "", &["revoke", "device", "d3", "--key-file", "list.key"]);
    assert!(ran.status.success() && !admitted("d3"), "{ran:?}");

    gateway.terminate();
    assert_eq!(gateway.ended(Duration::from_secs(60)), Some(0));
    let ran = run(&gateway.folder, "", &["revoke", "device", "d6", "--key-file", "list.key"]);
    assert!(ran.status.success() && text(&ran.stdout).contains("no gateway answers"), "{ran:?}");
}

#[test]
fn an_entry_that_is_taken_out_of_a_list_with_a_bad_line_is_not_said_to_be_lifted() {
    let gateway = Plan::new(Hub::Embedded).start();
    gateway.revoke(r#"{"devise": "d1"}"#);
    let ran = run(&gateway.folder, "", &["revoke", "device", "d0"]);
    let said = text(&ran.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        ran.status.success() && said.contains("in force on the running gateway; the list has a bad line"),
        "{ran:?}"
    );
    assert_eq!(log_in(&gateway, "d0", &sas("d0")), Answer::Connack(0x87));
    let listed = json_of(&run(&gateway.folder, "", &["revocations", "list", "--json"]));
    let id = listed["revocations"][0]["id"].as_str().unwrap();
    let ran = run(&gateway.folder, "", &["revocations", "remove", id]);
    assert!(ran.status.code() == Some(1) && text(&ran.stderr).contains("NOT lifted"), "{ran:?}");
    assert_eq!(log_in(&gateway, "d0", &sas("d0")), Answer::Connack(0x87));
    fs::write(gateway.folder.join("revocations.jsonl"), "{\"device\": \"d0\"}\n").unwrap();
    let ran = run(&gateway.folder, "", &["revocations", "remove", id]);
    assert!(ran.status.success() && text(&ran.stdout).ends_with("in force on the running gateway\n"), "{ran:?}");
    assert_eq!(log_in(&gateway, "d0", &sas("d0")), Answer::Connack(0));
}

#[test]
fn an_older_list_is_not_made_the_newest_by_a_command_that_signs_it_again() {
    let mut gateway = Plan::new(Hub::Embedded).launch(|folder| ask_for_signatures(folder, ""));
    gateway.until_ready();
    let list = gateway.folder.join("revocations.jsonl");
    let highest = || fs::read_to_string(gateway.folder.join("var/revocations.highest")).unwrap();
    let refused = |device: &str| log_in(&gateway, device, &sas(device)) == Answer::Connack(0x87);
    let key = ["--key-file", "list.key"];
    let sign = ["revocations", "sign", "revocations.jsonl"];
    let first = fs::read_to_string(&list).unwrap();
    assert!(run(&gateway.folder, "", &[&["revoke", "device", "d1"], &key as &[&str]].concat()).status.success());
    until("d1 to be refused", PATIENCE, || refused("d1"));
    let second = fs::read_to_string(&list).unwrap();
    let imported = gateway.folder.join("more.jsonl");
    fs::write(&imported, "{\"device\": \"d5\"}\n").unwrap();
    let keeps = |content: &str, commands: &[&[&str]], why: &str| {
        fs::write(&list, content).unwrap();
        for command in commands {
            let ran = run(&gateway.folder, "", &[*command, &key].concat());
            assert_eq!(ran.status.code(), Some(1), "{command:?}: {ran:?}");
            let said = text(&ran.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(said.contains(why) && said.contains("--epoch"), "{command:?}: {said}");
            assert_eq!(fs::read_to_string(&list).unwrap(), content, "{command:?}");
        }
    };
    let changes: &[&[&str]] =
        &[&["revoke", "device", "d3"], &["revocations", "import", "more.jsonl"], &["revocations", "prune"]];
    keeps(&first, changes, "it is older");
    keeps(&first, &[&sign], "it is older");
    keeps("{\"device\": \"d0\"}\n", changes, "it is not signed");
    keeps(&second.replace("\"d1\"", "\"d9\""), changes, "changed or cut off");
    assert!(refused("d1"), "nothing was lifted");

    // The same by the epoch; and with a count that is named it is somebody's will.
    fs::write(&list, &second).unwrap();
    assert!(run(&gateway.folder, "", &[&sign, &key as &[&str], &["--epoch", "2"]].concat()).status.success());
    until("the second epoch to be in force", PATIENCE, || highest().starts_with("epoch=2 "));
    keeps(&second, changes, "it is older");
    keeps(&second, &[&sign], "it is older");
    fs::write(&list, &first).unwrap();
    assert!(run(&gateway.folder, "", &[&sign, &key as &[&str], &["--epoch", "3"]].concat()).status.success());
    until("d1 to be admitted", PATIENCE, || log_in(&gateway, "d1", &sas("d1")) == Answer::Connack(0));
}

#[test]
fn without_a_good_signed_list_nobody_is_admitted_and_an_old_one_refuses_from_its_age_on() {
    let mut gateway = Plan::new(Hub::Embedded).launch(|folder| {
        ask_for_signatures(folder, "revocation_age_max = \"3s\"\n");
        fs::write(folder.join("revocations.jsonl"), "{\"device\": \"d0\"}\n").unwrap();
    });
    until("the admin port to answer", PATIENCE, || gateway.get("/healthz").is_some());
    let answer = |device: &str| log_in(&gateway, device, &sas(device));
    assert_eq!(answer("d1"), Answer::Connack(0x88));
    assert!(gateway.get("/readyz").is_some_and(|(status, body)| status == 503 && body.contains("signed")));
    let sign = || run(&gateway.folder, "", &["revocations", "sign", "revocations.jsonl", "--key-file", "list.key"]);
    assert!(sign().status.success());
    let mut live = None;
    until("d1 to be admitted", PATIENCE, || {
        let mut device = gateway.open(Version::V5);
        let admitted = device.log_in(&Login::new(Version::V5, "d1", &sas("d1"))) == Answer::Connack(0);
        live = admitted.then_some(device);
        admitted
    });
    until("the list to be too old", PATIENCE, || answer("d2") == Answer::Connack(0x88));
    let mut live = live.expect("it is connected");
    live.ping();
    assert_eq!(live.next(PATIENCE), Answer::Pingresp, "live sessions go on");
    until("the alarm", PATIENCE, || gateway.metric("tollgate_alarm", &["kind=\"list\""]) == 1.0);
    assert!(sign().status.success());
    until("d2 to be admitted", PATIENCE, || answer("d2") == Answer::Connack(0));
    assert!(gateway.process.ended().is_none());
}

#[test]
fn what_others_wrote_into_a_list_commands_no_terminal() {
    let gateway = Plan::new(Hub::Embedded).start();
    let entry = r#"{"device": "d0", "reason": "lost\u001b]0;mine\u0007", "by": "\u001b[2Jops"}"#;
    fs::write(gateway.folder.join("revocations.jsonl"), format!("{entry}\n{{\"by\": \"\x1b[2J\"}}\n")).unwrap();
    let ran = run(&gateway.folder, "", &["revocations", "list"]);
    assert!(text(&ran.stdout).contains("lost") && text(&ran.stdout).contains("ops"), "{ran:?}");
    for said in [&ran.stdout, &ran.stderr] {
        assert!(text(said).chars().all(|c| c == '\n' || !c.is_control()), "{ran:?}");
    }
}

#[test]
fn a_line_that_is_appended_to_a_large_list_is_all_that_is_read() {
    let gateway = Plan::new(Hub::Embedded).start();
    let mut lines = String::new();
    for n in 0..50_000 {
        lines.push_str(&format!("{{\"jti\": \"unused-{n}\", \"reason\": \"one of many\"}}\n"));
    }
    fs::write(gateway.folder.join("revocations.jsonl"), lines).unwrap();
    let entries = || gateway.metric("tollgate_revocations", &[]);
    until("the list to be in force", Duration::from_secs(60), || entries() == 50_000.0);
    let mut live = gateway.connect(Version::V5, "d0");
    // It may have been seen while it was written.
    let whole = || gateway.process.log().matches("reading=Whole").count();
    let before = whole();
    gateway.revoke(r#"{"device": "d0"}"#);
    assert_eq!(live.closed(PATIENCE), Some(0x98));
    until("it to be counted", PATIENCE, || entries() == 50_001.0);
    assert!(gateway.process.log().contains("entries=50001"));
    assert_eq!(whole(), before, "only what was appended is read");
}

/// Answers CONNACK to a CONNECT of MQTT 5.
fn log_in(gateway: &Gateway, device: &str, token: &str) -> Answer {
    gateway.open(Version::V5).log_in(&Login::new(Version::V5, device, token))
}

/// The command line, as an operator runs it on the gateway's machine.
fn run(folder: &Path, input: &str, arguments: &[&str]) -> Output {
    ran_by(folder, input, &[arguments, &["--config", "gateway.toml"]].concat())
}

/// The same, with whichever configuration is named.
fn ran_by(folder: &Path, input: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).current_dir(folder).env_remove("RUST_LOG");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("started");
    // A command that does not read its input closes it.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("ended")
}

fn json_of(ran: &Output) -> Value {
    serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// A key that signs lists, a configuration that asks for it, and a list that it signed, in which d0 is revoked.
fn ask_for_signatures(folder: &Path, more: &str) {
    let made = run(folder, "", &["revocations", "keygen", "list.key"]);
    assert!(made.status.success(), "{made:?}");
    let toml = fs::read_to_string(folder.join("gateway.toml")).unwrap();
    let asked = format!("[credentials]\nrevocation_keys = [\"list.key.pub\"]\n{more}");
    fs::write(folder.join("gateway.toml"), toml.replace("[credentials]\n", &asked)).unwrap();
    fs::write(folder.join("revocations.jsonl"), "# signed\n{\"device\": \"d0\"}\n").unwrap();
    let signed = run(folder, "", &["revocations", "sign", "revocations.jsonl", "--key-file", "list.key"]);
    assert!(signed.status.success(), "{signed:?}");
}

fn field<'t>(token: &'t str, name: &str) -> &'t str {
    token.split([' ', '&']).find_map(|field| field.strip_prefix(name)).expect("the field")
}

/// `%2F` as `%2f`.
trait Escapes {
    fn to_lowercase_escapes(&self) -> String;
}

impl Escapes for str {
    fn to_lowercase_escapes(&self) -> String {
        let mut parts = self.split('%');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| {
            let (digits, rest) = part.split_at(2);
            text + "%" + &digits.to_lowercase() + rest
        })
    }
}

fn every_byte_escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// (r, n − s) verifies where (r, s) does.
fn twin_of(signature: &[u8]) -> Vec<u8> {
    let (r, s) = signature.split_at(32);
    let order = u8s("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
    let (mut other, mut borrow) = (vec![0_u8; 32], 0_i16);
    for at in (0..32).rev() {
        let difference = i16::from(order[at]) - i16::from(s[at]) - borrow;
        borrow = i16::from(difference < 0);
        other[at] = u8::try_from(difference.rem_euclid(256)).unwrap();
    }
    [r, &other].concat()
}

fn u8s(hex: &str) -> Vec<u8> {
    hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn in_an_hour(more: &str) -> String {
    format!("{}{more}", unix_now() + 3600)
}

fn rfc3339(time: u64) -> String {
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(time)).to_string()
}

const PATIENCE: Duration = Duration::from_secs(10);

const EC_ISSUER: &str = r#"
[[issuer]]
name = "ec"
iss = "https://ec.example"
audience = ["localhost"]
algorithms = ["ES256"]
require = ["exp", "iat"]
[[issuer.key]]
kid = "ec"
file = "ec.pem"
"#;

const POLICY: &str = r#"
[[policy]]
name = "site"
resource = "localhost"
primary_key = "YeyRtx/g0kUBd0SQrtwAxmEJeg4o7/8ROfo78cjFYgc="
token_lifetime_max = "2h"
"#;
