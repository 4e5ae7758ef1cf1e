//! Live sessions that are ended: revocation by hand, expiry, take-over, keep alive. Both protocol versions.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};
use support::{Answer, Hub, Login, Plan, Recorder, Version, jwt, sas, sas_until, unix_now, until};

#[test]
fn a_jti_appended_by_hand_closes_the_live_session_and_the_time_is_in_the_metric() {
    let gateway = Plan::new(Hub::Embedded).start();
    for (version, device, reason) in [(Version::V4, "d0", None), (Version::V5, "d1", Some(0x98))] {
        let stolen = jwt(device, unix_now() + 600, &format!("stolen-{device}"));
        let mut session = gateway.open(version).admitted(&Login::new(version, device, &stolen));
        let mut other = gateway.connect(version, "d2");
        gateway.revoke(&format!(r#"{{"jti": "stolen-{device}", "reason": "laptop stolen"}}"#));
        let appended = Instant::now();
        assert_eq!(session.closed(Duration::from_secs(5)), reason);
        assert!(appended.elapsed() < Duration::from_secs(1), "closed after {:?}", appended.elapsed());
        assert_refused(gateway.open(version).log_in(&Login::new(version, device, &stolen)), version, 0x87);

        // The device itself is welcome with another token, and nobody else was touched.
        let fresh = jwt(device, unix_now() + 600, &format!("fresh-{device}"));
        gateway.open(version).admitted(&Login::new(version, device, &fresh));
        other.ping();
        assert_eq!(other.next(PATIENCE), Answer::Pingresp);
    }
    until("both to be counted", PATIENCE, || {
        gateway.metric("tollgate_sessions_closed_total", &["reason=\"revoked\""]) == 2.0
            && gateway.metric("tollgate_revocation_cut_seconds_count", &[]) >= 2.0
    });
    assert!(gateway.metric("tollgate_revocation_cut_seconds_sum", &[]) < 2.0);
}

#[test]
fn a_revoked_device_is_closed_with_every_token_and_refused_from_then_on() {
    let gateway = Plan::new(Hub::Embedded).start();
    let mut session = gateway.connect(Version::V5, "d0");
    gateway.revoke(r#"{"device": "d0", "reason": "scrapped"}"#);
    assert_eq!(session.closed(PATIENCE), Some(0x98));
    for version in [Version::V4, Version::V5] {
        assert_refused(gateway.open(version).log_in(&Login::new(version, "d0", &sas("d0"))), version, 0x87);
        let token = jwt("d0", unix_now() + 600, "another");
        assert_refused(gateway.open(version).log_in(&Login::new(version, "d0", &token)), version, 0x87);
    }
    gateway.connect(Version::V4, "d1");
}

#[test]
fn a_token_named_by_its_hash_is_closed_and_its_device_is_not() {
    let gateway = Plan::new(Hub::Embedded).start();
    let by_sas = sas("d0");
    let by_jwt = jwt("d1", unix_now() + 600, "one");
    let mut first = gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d0", &by_sas));
    let mut second = gateway.open(Version::V4).admitted(&Login::new(Version::V4, "d1", &by_jwt));
    gateway.revoke(&format!(r#"{{"token": "sha256:{}"}}"#, sas_hash(&by_sas)));
    assert_eq!(first.closed(PATIENCE), Some(0x98));
    let (signed, _) = by_jwt.rsplit_once('.').expect("three parts");
    gateway.revoke(&format!(r#"{{"token": "sha256:{}"}}"#, hex(&Sha256::digest(signed))));
    assert_eq!(second.closed(PATIENCE), None);
    gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d0", &sas_until("d0", unix_now() + 1800)));
}

#[test]
fn nothing_is_accepted_from_a_session_after_its_cut() {
    let recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).start();
    let topic = "devices/d0/messages/events/";
    let mut session = gateway.connect(Version::V4, "d0");
    session.publish_acknowledged(topic, b"before");
    gateway.revoke(r#"{"device": "d0"}"#);
    until("the list to be applied", PATIENCE, || gateway.metric("tollgate_revocations", &[]) == 1.0);
    until("the session to be gone", PATIENCE, || gateway.metric("tollgate_sessions", &[]) == 0.0);
    // What is sent on a closed connection may fail at once or not at all; arrive it must not.
    let _ = session.try_send(&support::publish_packet(Version::V4, topic, b"after", 1, 7));
    session.closed(PATIENCE);
    let mut witness = gateway.connect(Version::V4, "d1");
    witness.publish_acknowledged("devices/d1/messages/events/", b"witness");
    assert_eq!(recorder.payloads(topic), ["before"]);
}

#[test]
fn a_session_cut_under_load_loses_nothing_that_was_acknowledged() {
    let recorder = Recorder::start();
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).start();
    let topic = "devices/d0/messages/events/";
    let mut session = gateway.connect(Version::V5, "d0");
    let (mut sent, mut acknowledged, mut reason) = (0_u64, 0, None);
    loop {
        // What is sent on a connection that is being cut may fail: the reading below says how it ended.
        let number = u16::try_from(sent % 60_000 + 1).unwrap();
        let packet = support::publish_packet(Version::V5, topic, sent.to_string().as_bytes(), 1, number);
        let _ = session.try_send(&packet);
        sent += 1;
        if sent == 500 {
            gateway.revoke(r#"{"device": "d0"}"#);
        }
        let wait = if sent - acknowledged < 50 { Duration::from_micros(1) } else { PATIENCE };
        match session.next(wait) {
            Answer::Puback(_, 0) => acknowledged += 1,
            Answer::Disconnect(code) => reason = Some(code),
            Answer::Closed => break,
            Answer::Silence => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(reason, Some(0x98));
    let recorded = recorder.payloads(topic);
    assert!(u64::try_from(recorded.len()).unwrap() >= acknowledged, "{acknowledged} acknowledged");
    let in_order = recorded.iter().enumerate().all(|(at, payload)| at.to_string() == *payload);
    assert!(in_order && acknowledged > 0, "each once, in order: {} recorded", recorded.len());

    gateway.connect(Version::V4, "d1").publish_acknowledged("devices/d1/messages/events/", b"witness");
    let later = recorder.payloads(topic).len();
    assert!(later - recorded.len() <= 50, "what was on its way to the hub: {}", later - recorded.len());
}

#[test]
fn a_list_with_a_bad_line_applies_its_good_lines_lifts_nothing_and_raises_the_alarm() {
    let gateway = Plan::new(Hub::Embedded).start();
    let list = gateway.folder.join("revocations.jsonl");
    let alarm = || gateway.metric("tollgate_alarm", &["kind=\"list\""]);
    gateway.revoke(r#"{"device": "d0"}"#);
    let refused = |device| gateway.open(Version::V5).log_in(&Login::new(Version::V5, device, &sas(device)));
    until("d0 to be refused", PATIENCE, || refused("d0") == Answer::Connack(0x87));
    assert_eq!(alarm(), 0.0);

    fs::write(&list, "{\"device\": \"d1\"}\n{\"devise\": \"d2\"}\n").unwrap();
    until("d1 to be refused", PATIENCE, || refused("d1") == Answer::Connack(0x87));
    until("the alarm to be up", PATIENCE, || alarm() == 1.0);
    assert_eq!(refused("d0"), Answer::Connack(0x87), "nothing in force is lifted while a line is bad");
    assert_eq!(refused("d2"), Answer::Connack(0));

    fs::write(&list, "{\"device\": \"d1\"}\n").unwrap();
    until("d0 to be admitted again", PATIENCE, || refused("d0") == Answer::Connack(0));
    until("the alarm to be down", PATIENCE, || alarm() == 0.0);
}

#[test]
fn an_expired_session_is_closed_within_a_second_of_expiry_and_skew() {
    let gateway = Plan::new(Hub::Embedded).skew_seconds(1).start();
    let expiry = unix_now() + 3;
    let cases = [
        (Version::V4, "d0", sas_until("d0", expiry), None),
        (Version::V5, "d1", sas_until("d1", expiry), Some(0xA0)),
        (Version::V5, "d2", jwt("d2", expiry, "short"), Some(0xA0)),
    ];
    let mut sessions = Vec::new();
    for (version, device, token, reason) in cases {
        sessions.push((gateway.open(version).admitted(&Login::new(version, device, &token)), reason));
    }
    for (session, reason) in &mut sessions {
        assert_eq!(session.closed(PATIENCE), *reason);
        let closed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let late = closed - (expiry + 1) as f64;
        assert!((0.0..1.0).contains(&late), "closed {late} s after expiry and skew");
    }
}

#[test]
fn the_newest_connection_of_a_device_wins_once_it_is_authenticated() {
    let gateway = Plan::new(Hub::Embedded).start();
    for (version, device, reason) in [(Version::V4, "d0", None), (Version::V5, "d1", Some(0x8E))] {
        let mut old = gateway.connect(version, device);
        let forged = sas(device).replace("&se=", "&se=1");
        let refused = gateway.open(version).log_in(&Login::new(version, device, &forged));
        assert_refused(refused, version, 0x87);
        old.ping();
        assert_eq!(old.next(PATIENCE), Answer::Pingresp, "a forged token evicts nobody");
        let mut new = gateway.connect_tls(version, device);
        assert_eq!(old.closed(PATIENCE), reason);
        new.publish_acknowledged(&format!("devices/{device}/messages/events/"), b"still here");
    }
}

#[test]
fn a_silent_device_is_closed_after_one_and_a_half_keep_alives() {
    let gateway = Plan::new(Hub::Embedded).start();
    for (version, device, reason) in [(Version::V4, "d0", None), (Version::V5, "d1", Some(0x8D))] {
        let mut login = Login::new(version, device, &sas(device));
        login.keep_alive = 2;
        let mut session = gateway.open(version).admitted(&login);
        let started = Instant::now();
        assert_eq!(session.closed(PATIENCE), reason);
        let after = started.elapsed();
        assert!(after > Duration::from_millis(2_800) && after < Duration::from_secs(5), "closed after {after:?}");
    }
}

#[test]
fn keep_alive_is_enforced_while_a_write_to_the_device_is_blocked() {
    let gateway = Plan::new(Hub::Embedded).start();
    let mut login = Login::new(Version::V4, "d0", &sas("d0"));
    login.keep_alive = 3;
    let mut deaf = gateway.open(Version::V4).admitted(&login);
    assert_eq!(deaf.subscribe("devices/d0/messages/devicebound/#", 0), 0);
    let mut service = gateway.connect(Version::V4, "service");
    let payload = vec![b'x'; 200 * 1024];
    // It does not read: the sockets between hold less than this, so that the gateway's write is blocked.
    for n in 0..100 {
        service.publish_acknowledged(&format!("devices/d0/messages/devicebound/{n}"), &payload);
    }
    until("the session to be closed", Duration::from_secs(10), || gateway.metric("tollgate_sessions", &[]) == 1.0);
    service.ping();
    assert_eq!(service.next(PATIENCE), Answer::Pingresp);
}

/// CONNACK: 5 (3.1.1) or this reason (5.0).
#[track_caller]
fn assert_refused(answer: Answer, version: Version, reason: u8) {
    assert_eq!(answer, Answer::Connack(if version == Version::V5 { reason } else { 5 }));
}

/// SHA-256 of `sr` as sent, `se` and the decoded signature, a line each.
fn sas_hash(token: &str) -> String {
    let field = |name: &str| token.split([' ', '&']).find_map(|field| field.strip_prefix(name)).expect("the field");
    let signature = percent_decode_str(field("sig=")).decode_utf8().unwrap();
    let mut meaning = format!("{}\n{}\n", field("sr="), field("se=")).into_bytes();
    meaning.extend(BASE64_STANDARD.decode(signature.as_bytes()).unwrap());
    hex(&Sha256::digest(meaning))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const PATIENCE: Duration = Duration::from_secs(10);
