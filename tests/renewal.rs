//! What a live session is granted changes: it renews its token, or its scope becomes narrower. Both protocol versions.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{fs, time::Duration};

use serde_json::{Value, json};
use support::{
    Answer, Device, Gateway, Hub, Login, Plan, Recorder, Version, jwt, jwt_with, sas, sas_until, unix_now, until,
};

#[test]
fn a_session_outlives_its_first_token_when_it_has_published_a_fresh_one() {
    let gateway = Plan::new(Hub::Embedded).skew_seconds(0).start();
    for (version, device, qos) in
        [(Version::V4, "d0", 0), (Version::V4, "d1", 1), (Version::V5, "d2", 0), (Version::V5, "d3", 1)]
    {
        let ends = unix_now() + 3;
        let log_in = |device| gateway.open(version).admitted(&Login::new(version, device, &sas_until(device, ends)));
        let (mut renewing, mut other) = (log_in(device), log_in("d9"));
        let fresh = unix_now() + 1800;
        let id = renewing.publish(RENEW, sas_until(device, fresh).as_bytes(), qos);
        assert_eq!(told(&mut renewing, 0), json!({"result": "renewed", "expires_at": rfc3339(fresh)}));
        if qos == 1 {
            assert_eq!(renewing.next(PATIENCE), Answer::Puback(id, 0));
        }
        assert_eq!(other.closed(PATIENCE), if version == Version::V5 { Some(0xA0) } else { None });
        assert!(unix_now() >= ends);
        renewing.publish_acknowledged(&format!("devices/{device}/messages/events/"), b"still here");
        assert_eq!(session(&gateway, device)["expires_at"], rfc3339(fresh));
    }
}

#[test]
fn the_answer_to_a_renewal_comes_at_the_qos_of_its_subscription() {
    let gateway = Plan::new(Hub::Embedded).start();
    for (version, device, filter) in
        [(Version::V4, "d0", "$tollgate/auth/result"), (Version::V5, "d1", "$tollgate/auth/#")]
    {
        let mut session = gateway.connect(version, device);
        assert_eq!(session.subscribe(filter, 1), 1);
        let id = session.publish(RENEW, jwt(device, unix_now() + 600, device).as_bytes(), 1);
        assert_eq!(told(&mut session, 1)["result"], "renewed");
        assert_eq!(session.next(PATIENCE), Answer::Puback(id, 0));
        let refused = if version == Version::V5 { 0x87 } else { 0x80 };
        for filter in ["$tollgate/auth/renew", "$tollgate/#/x", "$tollgate/+"] {
            assert!([refused, 0x8F].contains(&session.subscribe(filter, 1)), "{filter}");
        }
    }
}

#[test]
fn a_token_that_is_not_as_good_as_the_first_ends_the_session() {
    let gateway = Plan::new(Hub::Embedded).start();
    let now = unix_now();
    let cases: Vec<(&str, String)> = vec![
        ("device_mismatch", sas("d1")),
        ("expired", sas_until("d0", now - 60)),
        ("signature_invalid", sas("d0").replace("sig=", "sig=AAAA")),
        ("credential_malformed", "no token".into()),
        ("credential_missing", String::new()),
        ("expired", jwt("d0", now - 60, "old")),
    ];
    for (version, qos) in [(Version::V5, 1), (Version::V5, 0), (Version::V4, 1), (Version::V4, 0)] {
        for (tag, token) in &cases {
            let mut session = gateway.connect(version, "d0");
            let id = session.publish(RENEW, token.as_bytes(), qos);
            let told = told(&mut session, 0);
            assert_eq!(told["result"], "refused", "{tag}");
            // A signature that cannot be decoded is malformed.
            assert!([*tag, "credential_malformed"].contains(&told["reason"].as_str().unwrap()), "{tag}: {told}");
            if version == Version::V5 && qos == 1 {
                let answer = session.next(PATIENCE);
                assert!(
                    matches!(answer, Answer::Puback(answered, code) if answered == id && code >= 0x80),
                    "{answer:?}"
                );
            }
            assert_eq!(session.closed(PATIENCE), (version == Version::V5).then_some(0x8C), "{tag}");
        }
    }
    let (_, refusals) = gateway.get("/v1/refusals?device=d0&last=1").unwrap();
    assert!(refusals.contains("renewal: ") && refusals.contains("expired"), "{refusals}");
    gateway.connect(Version::V5, "d0");
}

#[test]
fn a_token_of_a_wider_scope_ends_the_session_and_a_narrower_one_narrows_it() {
    let gateway = Plan::new(Hub::Embedded).identities_and(ACL_ISSUER).start();
    let events = "devices/d0/messages/events/";
    let token = |publish: Value| {
        jwt_with("d0", json!({"iss": "https://acl.example", "acl": {"pub": publish}, "jti": format!("{publish}")}))
    };
    for version in [Version::V4, Version::V5] {
        let narrow = token(json!(["devices/d0/messages/events/a/#"]));
        let mut session = gateway.open(version).admitted(&Login::new(version, "d0", &narrow));
        let narrower = token(json!(["devices/d0/messages/events/a/b"]));
        session.publish(RENEW, narrower.as_bytes(), 0);
        assert_eq!(told(&mut session, 0)["result"], "renewed");
        session.publish_acknowledged(&format!("{events}a/b"), b"within");
        session.publish(RENEW, narrow.as_bytes(), 0);
        assert_eq!(told(&mut session, 0), json!({"result": "refused", "reason": "renewal_widens"}));
        assert_eq!(session.closed(PATIENCE), (version == Version::V5).then_some(0x8C));
    }
    let mut session =
        gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d0", &token(json!([format!("{events}#")]))));
    session.publish(RENEW, token(json!([format!("{events}a")])).as_bytes(), 0);
    assert_eq!(told(&mut session, 0)["result"], "renewed");
    let id = session.publish(&format!("{events}c"), b"without", 1);
    assert_eq!(session.next(PATIENCE), Answer::Puback(id, 0x87));
}

#[test]
fn auth_renews_the_token_of_a_client_that_connected_by_that_method() {
    let gateway = Plan::new(Hub::Embedded).skew_seconds(0).start();
    for (device, method) in [("d0", "SAS"), ("d1", "JWT")] {
        let token =
            |expiry, id: &str| if method == "SAS" { sas_until(device, expiry) } else { jwt(device, expiry, id) };
        let ends = unix_now() + 3;
        let mut session = by_method(&gateway, device, method, &token(ends, "first"));
        let mut other = gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d9", &sas_until("d9", ends)));
        session.send(&auth(0x19, Some(method), Some(&token(unix_now() + 600, "second"))));
        assert_eq!(session.next(PATIENCE), Answer::Auth(0x00));
        assert_eq!(other.closed(PATIENCE), Some(0xA0));
        session.publish_acknowledged(&format!("devices/{device}/messages/events/"), b"still here");
        // Without a token it is asked for one.
        session.send(&auth(0x19, Some(method), None));
        assert_eq!(session.next(PATIENCE), Answer::Auth(0x18));
        session.send(&auth(0x18, Some(method), Some(&token(unix_now() + 900, "third"))));
        assert_eq!(session.next(PATIENCE), Answer::Auth(0x00));
    }
}

#[test]
fn auth_that_may_not_come_or_holds_a_bad_token_ends_the_session_with_its_code() {
    let gateway = Plan::new(Hub::Embedded).start();
    let fresh = sas("d0");
    for (what, packet, code) in [
        ("another method", auth(0x19, Some("JWT"), Some(&jwt("d0", unix_now() + 60, "x"))), 0x8C),
        ("another device", auth(0x19, Some("SAS"), Some(&sas("d1"))), 0x8C),
        ("a token of another kind", auth(0x19, Some("SAS"), Some(&jwt("d0", unix_now() + 600, "y"))), 0x8C),
        ("an expired token", auth(0x19, Some("SAS"), Some(&sas_until("d0", unix_now() - 60))), 0x8C),
        ("an empty token", auth(0x19, Some("SAS"), Some("")), 0x8C),
        ("no method", auth(0x19, None, None), 0x82),
        ("an answer to nothing", auth(0x18, Some("SAS"), Some(&fresh)), 0x82),
        ("success, which is ours to say", auth(0x00, Some("SAS"), None), 0x82),
    ] {
        let mut session = by_method(&gateway, "d0", "SAS", &fresh);
        session.send(&packet);
        assert_eq!(session.closed(PATIENCE), Some(code), "{what}");
    }
    let (_, refusals) = gateway.get("/v1/refusals?device=d0").unwrap();
    assert!(refusals.contains("\"renewal_method\""), "{refusals}");
    assert!(refusals.contains("\"authentication_method_mismatch\""), "{refusals}");
    // MQTT 5.0 [MQTT-4.12.0-7]: by password, and no method.
    let mut session = gateway.connect(Version::V5, "d0");
    session.send(&auth(0x19, Some("SAS"), Some(&fresh)));
    assert_eq!(session.closed(PATIENCE), Some(0x82));
    let mut session = gateway.connect(Version::V4, "d0");
    session.send(&auth(0x19, Some("SAS"), Some(&fresh)));
    assert_eq!(session.closed(PATIENCE), None);
}

#[test]
fn a_session_that_renewed_ends_with_its_new_token_and_not_with_the_old_one() {
    let gateway = Plan::new(Hub::Embedded).start();
    let mut session =
        gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d0", &jwt("d0", unix_now() + 600, "one")));
    session.publish(RENEW, jwt("d0", unix_now() + 600, "two").as_bytes(), 0);
    assert_eq!(told(&mut session, 0)["result"], "renewed");
    gateway.revoke(r#"{"jti": "one"}"#);
    until("the list to be applied", PATIENCE, || gateway.metric("tollgate_revocations", &[]) == 1.0);
    session.publish_acknowledged("devices/d0/messages/events/", b"by the second");
    gateway.revoke(r#"{"jti": "two"}"#);
    assert_eq!(session.closed(PATIENCE), Some(0x98));
    // A revoked token renews nothing either.
    let mut session = gateway.connect(Version::V5, "d0");
    session.publish(RENEW, jwt("d0", unix_now() + 600, "two").as_bytes(), 0);
    assert_eq!(told(&mut session, 0), json!({"result": "refused", "reason": "revoked"}));
    assert_eq!(session.closed(PATIENCE), Some(0x8C));
}

#[test]
fn nothing_of_the_gateways_own_reaches_the_hub_or_the_log() {
    let recorder = Recorder::start();
    let own = "[[device]]\nid = \"own\"\nscope.publish = [\"$tollgate/#\", \"devices/own/#\"]\nscope.subscribe = [\"$tollgate/#\"]\n";
    let own = format!("{own}primary_key = \"{}\"\n", support::device_key("own"));
    let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).identities_and(&own).start();
    let fresh = jwt("own", unix_now() + 600, "fresh");
    for version in [Version::V5, Version::V4] {
        let mut session = gateway.connect(version, "own");
        session.publish(RENEW, fresh.as_bytes(), 0);
        assert_eq!(told(&mut session, 0)["result"], "renewed");
        if version == Version::V5 {
            let id = session.publish("$tollgate/auth/result", b"forged", 1);
            assert_eq!(session.next(PATIENCE), Answer::Puback(id, 0x87));
        } else {
            session.publish("$tollgate/auth/other", b"x", 1);
            assert_eq!(session.closed(PATIENCE), None);
        }
    }
    let mut last = gateway.connect(Version::V5, "own");
    last.publish_acknowledged("devices/own/last", b"end");
    until("the last one to arrive", PATIENCE, || recorder.count() == 1);
    assert_eq!(recorder.payloads("devices/own/last"), ["end"]);
    let (_, signature) = fresh.rsplit_once('.').unwrap();
    assert!(!gateway.process.log().contains(signature));
}

#[test]
fn a_narrower_scope_takes_back_what_falls_out_and_the_session_goes_on() {
    let recorder = Recorder::start();
    let wide =
        scope("\"devices/roomy/a/#\", \"devices/roomy/both/#\"", "\"devices/roomy/b/#\", \"devices/roomy/down/#\"");
    let narrow = scope("\"devices/roomy/a/#\"", "\"devices/roomy/b/#\"");
    for version in [Version::V4, Version::V5] {
        let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).identities_and(&wide).start();
        let mut session = gateway.connect(version, "roomy");
        session.publish_acknowledged("devices/roomy/both/x", b"in scope");
        assert_eq!((session.subscribe("devices/roomy/down/x", 1), session.subscribe("devices/roomy/b/x", 1)), (1, 1));
        change_identities(&gateway, &wide, &narrow);
        until("the subscription to be taken back", PATIENCE, || {
            gateway.get("/v1/refusals?device=roomy&last=1").is_some_and(|(_, body)| body.contains("was taken back"))
        });
        session.publish_acknowledged("devices/roomy/a/x", b"still in scope");
        let refused = if version == Version::V5 { 0x87 } else { 0x80 };
        assert_eq!(session.subscribe("devices/roomy/down/x", 1), refused);
        let id = session.publish("devices/roomy/both/x", b"not in scope", 1);
        match version {
            Version::V5 => assert_eq!(session.next(PATIENCE), Answer::Puback(id, 0x87)),
            Version::V4 => assert_eq!(session.closed(PATIENCE), None),
        }
        assert_eq!(gateway.metric("tollgate_revocation_deaf_seconds_count", &[]), 1.0);
    }
    assert_eq!(recorder.payloads("devices/roomy/both/x"), ["in scope", "in scope"]);
}

#[test]
fn a_session_ends_when_nothing_is_left_of_its_scope() {
    let (all, none) = (scope("\"devices/roomy/a/#\"", "\"devices/roomy/b/#\""), scope("", ""));
    let gateway = Plan::new(Hub::Embedded).identities_and(&all).start();
    let (mut v4, mut bystander) = (gateway.connect(Version::V4, "roomy"), gateway.connect(Version::V5, "d0"));
    let mut v5 = gateway.connect(Version::V5, "roomy");
    assert_eq!(v4.closed(PATIENCE), None, "taken over");
    change_identities(&gateway, &all, &none);
    assert_eq!(v5.closed(PATIENCE), Some(0x87));
    bystander.ping();
    assert_eq!(bystander.next(PATIENCE), Answer::Pingresp);
}

/// The device `roomy` with this scope.
fn scope(publish: &str, subscribe: &str) -> String {
    let key = support::device_key("roomy");
    format!(
        "[[device]]\nid = \"roomy\"\nprimary_key = \"{key}\"\nscope.publish = [{publish}]\nscope.subscribe = [{subscribe}]\n"
    )
}

/// As an operator with an editor does it.
fn change_identities(gateway: &Gateway, old: &str, new: &str) {
    let file = gateway.folder.join("identities.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(old));
    fs::write(&file, text.replace(old, new)).unwrap();
}

/// What the device is told on the topic of results, which comes first.
#[track_caller]
fn told(session: &mut Device, expected_qos: u8) -> Value {
    match session.next(PATIENCE) {
        Answer::Publish { topic, payload, qos, packet_id } if topic == "$tollgate/auth/result" => {
            assert_eq!(qos, expected_qos);
            if qos > 0 {
                session.acknowledge(packet_id);
            }
            serde_json::from_slice(&payload).unwrap()
        }
        other => panic!("a result is expected, {other:?} came"),
    }
}

/// How the admin API shows the session of a device.
fn session(gateway: &Gateway, device: &str) -> Value {
    let (status, body) = gateway.get(&format!("/v1/sessions?device={device}")).unwrap();
    assert_eq!(status, 200);
    let list: Value = serde_json::from_str(&body).unwrap();
    list["sessions"].as_array().unwrap().first().unwrap().clone()
}

fn rfc3339(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// A 5.0 device whose CONNECT names a method (§3.1.2.11.9).
#[track_caller]
fn by_method(gateway: &Gateway, device: &str, method: &str, token: &str) -> Device {
    let properties = [property(0x15, method), property(0x16, token)].concat();
    let head = [&sized("MQTT")[..], &[5, 0x02, 0, 60]].concat();
    let body = [head, varint(properties.len()), properties, sized(device)].concat();
    let mut session = gateway.open(Version::V5);
    session.send(&[vec![0x10], varint(body.len()), body].concat());
    assert_eq!(session.next(PATIENCE), Answer::Connack(0));
    session
}

/// AUTH (MQTT 5.0 §3.15).
fn auth(reason: u8, method: Option<&str>, token: Option<&str>) -> Vec<u8> {
    let properties: Vec<u8> =
        method.map(|m| property(0x15, m)).into_iter().chain(token.map(|t| property(0x16, t))).flatten().collect();
    let body = [vec![reason], varint(properties.len()), properties].concat();
    [vec![0xF0], varint(body.len()), body].concat()
}

fn property(id: u8, value: &str) -> Vec<u8> {
    [vec![id], sized(value)].concat()
}

fn sized(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

/// MQTT 5.0 [MQTT-1.5.5-1]: in as few bytes as it takes.
fn varint(n: usize) -> Vec<u8> {
    if n < 128 { vec![n as u8] } else { vec![(n % 128) as u8 | 0x80, (n / 128) as u8] }
}

const RENEW: &str = "$tollgate/auth/renew";
const PATIENCE: Duration = Duration::from_secs(10);
/// A second issuer, whose tokens narrow their device's scope.
const ACL_ISSUER: &str = r#"
[[issuer]]
name = "acl"
iss = "https://acl.example"
audience = ["localhost"]
algorithms = ["HS256"]
scope_claim = "acl"
[[issuer.key]]
kid = "k1"
secret_file = "issuer.secret"
key_encoding = "utf8"
"#;
