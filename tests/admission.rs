//! Every denial, reached over a real socket: what the device is answered, in both versions, and that it is counted.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{fs, path::Path, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use support::{
    Answer, Gateway, Hub, Login, Plan, Version, claims_with, device_key, forget, found_in, jwt_of, jwt_with,
    publish_packet, remember, sas, sas_for, sas_until, unix_now, until,
};
use tollgate::denial::Denial;

#[test]
fn a_connect_is_refused_with_its_code_and_counted_under_its_tag() {
    let gateway = gateway();
    gateway.revoke(r#"{"jti": "stolen"}"#);
    until("the list to be applied", PATIENCE, || gateway.metric("tollgate_revocations", &[]) == 1.0);
    for (denial, what, change) in connects() {
        for version in [Version::V4, Version::V5] {
            let counted = counted(&gateway, denial);
            let mut login = Login::new(version, "d0", &sas("d0"));
            change(&mut login);
            let answer = gateway.open(version).log_in(&login);
            assert_eq!(answer, refusal(denial, version), "{what}, {version:?}");
            until(what, PATIENCE, || self::counted(&gateway, denial) == counted + 1.0);
        }
    }
    for version in [Version::V4, Version::V5] {
        gateway.connect(version, "d0");
        gateway.connect_tls(version, "d0");
    }
}

#[test]
fn what_is_no_connect_of_ours_is_refused_before_any_credential_is_looked_at() {
    let gateway = gateway();
    let mut too_long = Login::new(Version::V5, "d0", &"x".repeat(60_000)).packet();
    too_long.splice(1..4, [0xFF, 0xFF, 0x7F]);
    let old = b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01a".to_vec();
    let newer = b"\x10\x0e\x00\x04MQTT\x06\x02\x00\x3c\x00\x00\x01a".to_vec();
    let twice = b"\x10\x14\x00\x04MQTT\x05\x02\x00\x3c\x06\x21\x00\x01\x21\x00\x01\x00\x01a".to_vec();
    let cases: [(Denial, Version, Vec<u8>, Answer); 6] = [
        (Denial::ProtocolVersion, Version::V4, old, Answer::Connack(1)),
        (Denial::ProtocolVersion, Version::V5, newer, Answer::Connack(0x84)),
        (Denial::Malformed, Version::V4, vec![0x10, 0], Answer::Closed),
        (Denial::ProtocolViolation, Version::V5, twice, Answer::Connack(0x82)),
        (Denial::PacketTooLarge, Version::V4, too_long, Answer::Closed),
        (Denial::ConnectTimeout, Version::V4, vec![0x10], Answer::Closed),
    ];
    for (denial, version, bytes, expected) in cases {
        let counted = counted(&gateway, denial);
        let mut peer = gateway.open(version);
        // It may be closed before all is sent: that is what is wanted.
        let _ = peer.try_send(&bytes);
        assert_eq!(peer.next(PATIENCE), expected, "{denial}");
        until(denial.tag(), PATIENCE, || self::counted(&gateway, denial) == counted + 1.0);
    }
}

#[test]
fn a_token_may_come_as_authentication_data_by_a_method_that_is_served() {
    let gateway = gateway();
    let jwt = good_jwt();
    for (method, token, code) in [("SAS", sas("d0"), 0), ("JWT", jwt.clone(), 0), ("SCRAM-SHA-1", jwt, 0x8C)] {
        let mut peer = gateway.open(Version::V5);
        peer.send(&connect_by_method("d0", method, &token));
        assert_eq!(peer.next(PATIENCE), Answer::Connack(code), "{method}");
    }
    assert_shown(&gateway, "d0", Denial::AuthenticationMethodUnknown);
}

/// CONNECT of MQTT 5.0 with Authentication Method and Authentication Data (§3.1.2.11.9), and no password.
fn connect_by_method(device: &str, method: &str, token: &str) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
    // MQTT 5.0 [MQTT-1.5.5-1]: in as few bytes as it takes.
    let varint = |n: usize| if n < 128 { vec![n as u8] } else { vec![(n % 128) as u8 | 0x80, (n / 128) as u8] };
    let properties = [&[0x15], &*sized(method.as_bytes()), &[0x16], &*sized(token.as_bytes())].concat();
    let head = [&*sized(b"MQTT"), &[5, 0x02, 0, 60]].concat();
    let body = [&*head, &*varint(properties.len()), &*properties, &*sized(device.as_bytes())].concat();
    [&[0x10], &*varint(body.len()), &*body].concat()
}

#[test]
fn a_publish_is_refused_with_its_code_and_shown_to_the_operator() {
    let gateway = gateway();
    for (denial, what, topic, device) in [
        (Denial::TopicOutOfScope, "another device's topic", "devices/d1/messages/events/", "d0"),
        (Denial::TopicOutOfScope, "a topic that only begins alike", "devices/d0/messages/eventsx/", "d0"),
        (Denial::TopicOutOfScope, "the hub's own", "$SYS/x", "d0"),
        (Denial::NotRouted, "in scope, and no route", "elsewhere/roamer", "roamer"),
    ] {
        let reason = denial.row().reason_v5;
        let mut v5 = gateway.connect(Version::V5, device);
        let id = v5.publish(topic, b"x", 1);
        assert_eq!(v5.next(PATIENCE), Answer::Puback(id, reason), "{what}");
        assert_shown(&gateway, device, denial);
        v5.publish(topic, b"x", 0);
        assert_eq!(v5.closed(PATIENCE), Some(reason), "{what}, QoS 0");
        for qos in [0, 1] {
            let mut v4 = gateway.connect(Version::V4, device);
            v4.publish(topic, b"x", qos);
            assert_eq!(v4.closed(PATIENCE), None, "{what}, 3.1.1, QoS {qos}");
        }
    }
}

#[test]
fn a_publish_that_is_not_offered_or_no_topic_closes_the_connection() {
    let gateway = gateway();
    let events = "devices/plain/messages/events/";
    let mut retained = publish_packet(Version::V5, events, b"x", 1, 1);
    retained.iter_mut().take(1).for_each(|first| *first |= 1);
    for (denial, device, packet) in [
        (Denial::QosNotOffered, "plain", publish_packet(Version::V5, events, b"x", 2, 1)),
        (Denial::TopicInvalid, "d0", publish_packet(Version::V5, "devices/+/messages/events/", b"x", 1, 1)),
        (Denial::RetainNotOffered, "plain", retained),
    ] {
        let mut session = gateway.connect(Version::V5, device);
        session.send(&packet);
        let reason = denial.row().reason_v5;
        let answer = session.next(PATIENCE);
        let expected = [Answer::Disconnect(reason), Answer::Puback(1, reason)];
        assert!(expected.contains(&answer), "{denial}: {answer:x?}");
        assert_shown(&gateway, device, denial);
    }
}

#[test]
fn a_subscription_is_refused_with_its_code_and_the_session_stays() {
    let gateway = gateway();
    for (denial, filter) in [
        (Denial::FilterOutOfScope, "devices/d1/messages/devicebound/#"),
        (Denial::FilterOutOfScope, "devices/+/messages/devicebound/#"),
        (Denial::FilterOutOfScope, "devices/d0/messages/#"),
        (Denial::FilterOutOfScope, "#"),
        (Denial::FilterInvalid, "devices/d0/messages/devicebound/#/x"),
        (Denial::SharedSubscriptionNotOffered, "$share/g/devices/d0/messages/devicebound/#"),
    ] {
        for version in [Version::V4, Version::V5] {
            let mut session = gateway.connect(version, "d0");
            let code = if version == Version::V5 { denial.row().reason_v5 } else { 0x80 };
            assert_eq!(session.subscribe(filter, 1), code, "{filter}, {version:?}");
            assert_eq!(session.subscribe("devices/d0/messages/devicebound/#", 1), 1);
        }
        assert_shown(&gateway, "d0", denial);
    }
}

#[test]
fn more_subscriptions_than_allowed_are_refused() {
    let gateway = gateway();
    let mut session = gateway.connect(Version::V5, "d0");
    for n in 0..SUBSCRIPTIONS_MAX {
        assert_eq!(session.subscribe(&format!("devices/d0/messages/devicebound/{n}"), 1), 1);
    }
    let code = Denial::SubscriptionQuota.row().reason_v5;
    assert_eq!(session.subscribe("devices/d0/messages/devicebound/more", 1), code);
    assert_shown(&gateway, "d0", Denial::SubscriptionQuota);
}

#[test]
fn more_connections_than_allowed_are_refused_and_a_place_is_free_when_one_leaves() {
    let gateway = Plan::new(Hub::Embedded).limit("connections_max = 3").start();
    let held: Vec<_> = (0..3).map(|n| gateway.connect(Version::V5, &format!("d{n}"))).collect();
    let login = |version| Login::new(version, "d9", &sas("d9"));
    for version in [Version::V4, Version::V5] {
        assert_eq!(gateway.open(version).log_in(&login(version)), refusal(Denial::ConnectionQuota, version));
    }
    // A device takes the place of its own session.
    for version in [Version::V4, Version::V5] {
        let own = Login::new(version, "d0", &sas("d0"));
        until("its own place", PATIENCE, || gateway.open(version).log_in(&own) == Answer::Connack(0));
    }
    drop(held);
    until("a free place", PATIENCE, || gateway.open(Version::V5).log_in(&login(Version::V5)) == Answer::Connack(0));
}

#[test]
fn more_connects_a_second_than_allowed_are_refused() {
    let gateway = Plan::new(Hub::Embedded).limit("connects_per_second_per_ip = 1").start();
    let login = Login::new(Version::V5, "d0", &sas("d0"));
    let answers: Vec<Answer> = (0..30).map(|_| gateway.open(Version::V5).log_in(&login)).collect();
    let refused = answers.iter().filter(|answer| **answer == refusal(Denial::ConnectRate, Version::V5)).count();
    let admitted = answers.iter().filter(|answer| **answer == Answer::Connack(0)).count();
    assert_eq!(refused + admitted, 30, "{answers:?}");
    // The burst is ten times the rate; a slow machine earns a few more.
    assert!((10..=15).contains(&admitted), "{admitted} admitted");
}

#[test]
fn whoever_goes_on_guessing_is_banned_and_a_good_token_is_admitted_all_the_same() {
    let gateway = Plan::new(Hub::Embedded).limit("failed_connects_per_minute_per_ip = 1").start();
    let unsigned = jwt_of(&json!({"alg": "ES256", "typ": "JWT", "kid": "k1"}), &claims_with("d0", json!({})));
    for (denial, what, token) in [
        (Denial::Banned, "a wrong key", sas_for("localhost/devices/d0", &device_key("d1"), "4000000000")),
        (Denial::CheckRate, "checks of public keys", unsigned),
    ] {
        for version in [Version::V4, Version::V5] {
            let login = Login::new(version, "d0", &token);
            // More at once than are earned meanwhile.
            until(what, PATIENCE, || {
                let mut peers: Vec<_> = (0..BURST).map(|_| gateway.open(version)).collect();
                peers.iter_mut().for_each(|peer| peer.send(&login.packet()));
                peers.iter_mut().any(|peer| peer.next(PATIENCE) == refusal(denial, version))
            });
            gateway.connect(version, "d0");
        }
        assert_shown(&gateway, "d0", denial);
    }
    assert_eq!(gateway.metric("tollgate_bans_total", &[]), 1.0);
}

#[test]
fn a_list_that_cannot_be_read_refuses_everybody_with_server_unavailable_until_it_can() {
    let list = "revocations.jsonl";
    let mut gateway = Plan::new(Hub::Embedded).launch(|folder| {
        fs::remove_file(folder.join(list)).unwrap();
        fs::create_dir(folder.join(list)).unwrap();
    });
    until("the gateway to say so", PATIENCE, || gateway.get("/readyz").is_some_and(|(status, _)| status == 503));
    for version in [Version::V4, Version::V5] {
        let answer = gateway.open(version).log_in(&Login::new(version, "d0", &sas("d0")));
        assert_eq!(answer, refusal(Denial::Unavailable, version));
    }
    fs::remove_dir(gateway.folder.join(list)).unwrap();
    fs::write(gateway.folder.join(list), "").unwrap();
    gateway.until_ready();
    gateway.connect(Version::V4, "d0");
}

#[test]
fn every_denial_is_reached_over_a_socket_by_a_test_that_names_it() {
    // Rust tests that start a gateway or drive one, and those of other clients, which know a denial by its tag.
    let sources: Vec<String> = ["tests", "tests/interop"]
        .into_iter()
        .flat_map(|folder| fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap())
        .filter_map(|file| fs::read_to_string(file.unwrap().path()).ok())
        .filter(|text| {
            text.contains("mod support;") || text.contains("import wire") || text.contains("from table_place")
        })
        .collect();
    let is_named = |denial: &Denial| {
        let (name, tag) = (format!("Denial::{denial:?}"), format!("\"{}\"", denial.tag()));
        let is_it = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric());
        sources.iter().any(|text| text.contains(&tag) || text.split(&name).skip(1).any(is_it))
    };
    let is_held = |denial: &Denial| ELSEWHERE.iter().any(|(held, _)| held == denial) || is_named(denial);
    let missing: Vec<Denial> = Denial::all().iter().map(|row| row.denial).filter(|denial| !is_held(denial)).collect();
    assert!(missing.is_empty(), "no test over a socket names {missing:?}: add a case, best to `connects`");
}

#[test]
fn a_secret_in_the_log_of_a_gateway_is_found() {
    let gateway = gateway();
    let (planted, token) = ("planted-0123456789-abcdef", sas("d0"));
    let answer = gateway.open(Version::V5).log_in(&Login::new(Version::V5, planted, &token));
    assert_eq!(answer, refusal(Denial::DeviceMismatch, Version::V5));
    until("the line", PATIENCE, || gateway.process.log().contains(planted));
    assert!(gateway.process.log().contains("TRACE"), "all is logged");
    assert_eq!(gateway.secrets_in_log(), Vec::<String>::new());
    // What the search finds in a log is what it is told to look for: of keys and tokens every form.
    let signature = token.split("sig=").nth(1).and_then(|rest| rest.split('&').next()).unwrap();
    let hex: String = BASE64_STANDARD.decode(device_key("d0")).unwrap().iter().map(|b| format!("{b:02x}")).collect();
    for secret in [planted, &token, signature, &device_key("d0"), &hex] {
        let log = gateway.folder.join("planted.log");
        fs::write(&log, format!("TRACE a line with {secret} in it\n")).unwrap();
        let found = found_in(&log, &gateway.folder);
        assert_eq!(found.is_empty(), secret == planted, "{secret}: {found:?}");
    }
    remember(planted.as_bytes());
    assert_eq!(gateway.secrets_in_log(), [planted]);
    forget(planted.as_bytes());
}

type Change = Box<dyn Fn(&mut Login)>;

/// What is changed of a good CONNECT of `d0`, and why it must be refused then.
fn connects() -> Vec<(Denial, &'static str, Change)> {
    let mut cases: Vec<(Denial, &'static str, Change)> = vec![
        (Denial::CredentialMissing, "no password", Box::new(|login| login.password = None)),
        (Denial::ClientIdInvalid, "a client id with a wildcard", Box::new(|login| login.client_id = "d0/#".into())),
        (Denial::UserNameMismatch, "another user name", Box::new(|login| login.user_name = Some("d1".into()))),
        (
            Denial::DeviceMismatch,
            "another client id",
            Box::new(|login| {
                login.client_id = "d1".into();
                login.user_name = Some("d1".into());
            }),
        ),
        (
            Denial::WillOutOfScope,
            "a will for another device",
            Box::new(|login| {
                login.will_topic = Some("devices/d1/messages/events/".into());
            }),
        ),
    ];
    cases.extend(["only-jwt", "disabled", "nobody"].map(|device| {
        let denial = match device {
            "only-jwt" => Denial::CredentialKindNotAccepted,
            "disabled" => Denial::DeviceDisabled,
            _ => Denial::DeviceUnknown,
        };
        let change: Change = Box::new(move |login| *login = Login::new(login.version, device, &sas(device)));
        (denial, device, change)
    }));
    cases.extend(bad_tokens().into_iter().map(|(denial, what, token)| {
        let change: Change = Box::new(move |login| login.password = Some(token.clone()));
        (denial, what, change)
    }));
    cases
}

/// Tokens that do not prove that somebody is `d0`.
fn bad_tokens() -> Vec<(Denial, &'static str, String)> {
    let (now, key) = (unix_now(), device_key("d0"));
    let soon = (now + 600).to_string();
    let good = sas("d0");
    let header = |changes: &[(&str, Value)]| {
        let mut header = json!({"alg": "HS256", "typ": "JWT", "kid": "k1"});
        changes.iter().for_each(|(name, value)| header[*name] = value.clone());
        jwt_of(&header, &claims_with("d0", json!({})))
    };
    vec![
        (Denial::CredentialMalformed, "no token at all", "secret".into()),
        (Denial::CredentialMalformed, "a Bearer before it", format!("Bearer {good}")),
        (Denial::CredentialMalformed, "a field twice", format!("{good}&se={soon}")),
        (Denial::CredentialMalformed, "a space at the end", format!("{good} ")),
        (
            Denial::CredentialMalformed,
            "an empty JWT signature",
            good_jwt().rsplit_once('.').unwrap().0.to_owned() + ".",
        ),
        (Denial::SignatureInvalid, "SAS of another key", sas_for("localhost/devices/d0", &device_key("d1"), &soon)),
        (Denial::SignatureInvalid, "SAS with a later expiry", good.replace("&se=", "&se=1")),
        (Denial::SignatureInvalid, "JWT with other claims", tampered()),
        (
            Denial::KeyUnknown,
            "SAS of an unknown policy",
            sas_for("localhost/devices/d0", &key, &format!("{soon}&skn=nobody")),
        ),
        (Denial::KeyUnknown, "JWT of an unknown key", header(&[("kid", json!("k9"))])),
        (
            Denial::IssuerUnknown,
            "JWT of an unknown issuer",
            jwt_with("d0", json!({"iss": "https://elsewhere.example"})),
        ),
        (Denial::AlgorithmMismatch, "JWT of another algorithm", header(&[("alg", json!("HS512"))])),
        (Denial::AlgorithmMismatch, "JWT without an algorithm", header(&[("alg", json!("none"))])),
        (Denial::AudienceMismatch, "JWT for somebody else", jwt_with("d0", json!({"aud": "elsewhere"}))),
        (Denial::HostMismatch, "SAS for another host", sas_for("elsewhere/devices/d0", &key, &soon)),
        (Denial::HubWideToken, "SAS for the whole hub", sas_for("localhost", &key, &soon)),
        (Denial::ResourceOutOfPolicy, "SAS of a policy for other devices", {
            sas_for("localhost/devices/d0", &device_key("policy"), &format!("{soon}&skn=narrow"))
        }),
        (Denial::DeviceMismatch, "SAS of another device", sas("d1")),
        (Denial::DeviceMismatch, "JWT of another device", jwt_with("d1", json!({}))),
        (Denial::ClaimInvalid, "an expiry that is a text", jwt_with("d0", json!({"exp": "never"}))),
        (Denial::ClaimInvalid, "no expiry", jwt_with("d0", json!({"exp": null}))),
        (Denial::ClaimInvalid, "no jti, where it is required", jwt_with("d0", json!({"jti": null}))),
        (Denial::Expired, "SAS expired", sas_until("d0", now - 60)),
        (Denial::Expired, "JWT expired", jwt_with("d0", json!({"exp": now - 60, "iat": now - 120}))),
        (Denial::NotYetValid, "JWT of tomorrow", jwt_with("d0", json!({"nbf": now + 3600}))),
        (Denial::IssuedInFuture, "JWT issued tomorrow", jwt_with("d0", json!({"iat": now + 3600, "exp": now + 7200}))),
        (Denial::LifetimeTooLong, "SAS of a week", sas_until("d0", now + 7 * 86_400)),
        (Denial::CredentialMalformed, "SAS in milliseconds", sas_until("d0", now * 1000)),
        (Denial::LifetimeTooLong, "JWT of a week", jwt_with("d0", json!({"exp": now + 7 * 86_400}))),
        (Denial::Revoked, "JWT on the list", jwt_with("d0", json!({"jti": "stolen"}))),
    ]
}

fn good_jwt() -> String {
    jwt_with("d0", json!({}))
}

/// The claims of one token with the signature of another.
fn tampered() -> String {
    let (good, other) = (good_jwt(), jwt_with("d0", json!({"exp": unix_now() + 1200})));
    let signature = good.rsplit_once('.').unwrap().1;
    format!("{}.{signature}", other.rsplit_once('.').unwrap().0)
}

fn gateway() -> Gateway {
    Plan::new(Hub::Embedded)
        .limit("connect_timeout = \"2s\"")
        .limit(&format!("[session]\nsubscriptions_max = {SUBSCRIPTIONS_MAX}"))
        .identities_and(&format!(
            r#"
[[device]]
id = "only-jwt"
primary_key = "{}"
accept = ["jwt"]
[[device]]
id = "disabled"
primary_key = "{}"
enabled = false
[[device]]
id = "plain"
primary_key = "{}"
scope.retain = false
scope.qos_max = 1
[[device]]
id = "roamer"
primary_key = "{}"
scope.publish = ["elsewhere/{{device}}"]
[[policy]]
name = "narrow"
resource = "localhost/devices/d1"
primary_key = "{}"
rights = ["publish"]
"#,
            device_key("only-jwt"),
            device_key("disabled"),
            device_key("plain"),
            device_key("roamer"),
            device_key("policy")
        ))
        .start()
}

/// CONNACK of this version; 3.1.1 has no code for some: then the connection is closed.
fn refusal(denial: Denial, version: Version) -> Answer {
    let row = denial.row();
    match version {
        Version::V5 => Answer::Connack(row.reason_v5),
        Version::V4 => row.connack_v4.map_or(Answer::Closed, Answer::Connack),
    }
}

fn counted(gateway: &Gateway, denial: Denial) -> f64 {
    gateway.metric("tollgate_connects_total", &[&format!("denial=\"{}\"", denial.tag())])
}

/// `tollgate refusals --device` shows it.
#[track_caller]
fn assert_shown(gateway: &Gateway, device: &str, denial: Denial) {
    until(denial.tag(), PATIENCE, || {
        let (status, body) = gateway.get(&format!("/v1/refusals?device={device}")).expect("the admin port answers");
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        let entries = answer["refusals"].as_array().unwrap();
        entries.iter().any(|entry| entry["number"] == denial.number() && entry["tag"] == denial.tag())
    });
}

/// Known to tests over a socket by what the device is answered, not by name; and by which.
const ELSEWHERE: [(Denial, &str); 2] = [
    (Denial::UpgradeDeclined, "answered in HTTP: tests/websocket.rs"),
    (Denial::RenewalMethod, "ends a session by its code: the tests of renewal"),
];

const SUBSCRIPTIONS_MAX: usize = 5;
/// Checks of public keys that a banned address has at once, and more.
const BURST: usize = 300;
const PATIENCE: Duration = Duration::from_secs(10);
