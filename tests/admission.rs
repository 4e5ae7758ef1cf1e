//! Every denial, reached over a real socket: what the device is answered, in both versions, that it is counted, and that the
//! operator is shown its tag. More than 600 lines, since the cases are one table.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    process::Command,
    time::Duration,
};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use support::{
    Answer, ClientIdentity, Device, Gateway, Hub, Login, Plan, Recorder, Version, claims_with, device_key, dial,
    forget, found_in, found_in_text, free_port, jwt_of, jwt_with, publish_packet, remember, remember_key,
    remember_tokens, sas, sas_for, sas_until, unix_now, until, until_some,
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
    for (denial, version, bytes, expected) in no_connects() {
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
    let unknown = Some(Denial::AuthenticationMethodUnknown);
    let mismatch = Some(Denial::AuthenticationMethodMismatch);
    for (method, token, denial) in [
        ("SAS", sas("d0"), None),
        ("JWT", jwt.clone(), None),
        ("SCRAM-SHA-1", jwt.clone(), unknown),
        ("SAS", jwt, mismatch),
        ("JWT", sas("d0"), mismatch),
        ("JWT", "no token".into(), Some(Denial::CredentialMalformed)),
    ] {
        let mut peer = gateway.open(Version::V5);
        peer.send(&connect_by_method("d0", method, &token));
        let answer = denial.map_or(Answer::Connack(0), |denial| refusal(denial, Version::V5));
        assert_eq!(peer.next(PATIENCE), answer, "{method}");
        if let Some(denial) = denial {
            assert_shown(&gateway, "d0", denial);
        }
    }
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
    let gateway = guessed_at();
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

/// Each row of the table, driven over a socket; its number and tag are read from `/v1/refusals` of the gateway that refused.
/// One is no refusal of the gateway's and stands in no journal: that the hub did not take a message, the device is told by
/// the code of its PUBACK.
#[test]
fn every_denial_is_reached_over_a_socket_and_the_operator_reads_its_tag() {
    let mut reached = Reached::default();
    reached.by_connect(&gateway());
    reached.in_session(&gateway());
    reached.by_renewal(&gateway());
    reached.by_certificate_and_key();
    reached.at_other_doors();
    reached.by_limits();
    reached.when_it_cannot_decide();
    reached.while_it_drains();
    reached.by_the_hub();
    let missing: Vec<Denial> =
        Denial::all().iter().map(|row| row.denial).filter(|row| !reached.0.contains(row)).collect();
    assert_eq!(missing, [], "no case reaches them");
}

/// What gateways have shown to the operator.
#[derive(Default)]
struct Reached(Vec<Denial>);

impl Reached {
    /// The first entry that is new after `attempt` is of this denial.
    #[track_caller]
    fn told<T>(&mut self, gateway: &Gateway, denial: Denial, what: &str, attempt: impl FnOnce() -> T) -> T {
        let before = journal(gateway).len();
        let held = attempt();
        // The end of a session before it, which the next one of its device takes over, may be noted late.
        let of_it = |entry: &Value| entry["tag"] != "taken_over";
        let new = until_some(what, PATIENCE, || journal(gateway).into_iter().skip(before).find(of_it));
        assert_eq!((&new["tag"], &new["number"]), (&denial.tag().into(), &denial.number().into()), "{what}: {new}");
        self.0.push(denial);
        held
    }

    fn by_connect(&mut self, gateway: &Gateway) {
        gateway.revoke(r#"{"jti": "stolen"}"#);
        until("the list to be applied", PATIENCE, || gateway.metric("tollgate_revocations", &[]) == 1.0);
        for (denial, what, change) in connects() {
            let mut login = Login::new(Version::V5, "d0", &sas("d0"));
            change(&mut login);
            let answer = self.told(gateway, denial, what, || gateway.open(Version::V5).log_in(&login));
            assert_eq!(answer, refusal(denial, Version::V5), "{what}");
        }
        for (denial, version, bytes, expected) in no_connects() {
            let answer = self.told(gateway, denial, denial.tag(), || {
                let mut peer = gateway.open(version);
                let _ = peer.try_send(&bytes);
                peer.next(PATIENCE)
            });
            assert_eq!(answer, expected, "{denial}");
        }
        self.told(gateway, Denial::AuthenticationMethodUnknown, "a method of others", || {
            let mut peer = gateway.open(Version::V5);
            peer.send(&connect_by_method("d0", "SCRAM-SHA-1", &good_jwt()));
            assert_eq!(peer.next(PATIENCE), refusal(Denial::AuthenticationMethodUnknown, Version::V5));
        });
        self.told(gateway, Denial::AuthenticationMethodMismatch, "a token of another kind", || {
            let mut peer = gateway.open(Version::V5);
            peer.send(&connect_by_method("d0", "SAS", &good_jwt()));
            assert_eq!(peer.next(PATIENCE), refusal(Denial::AuthenticationMethodMismatch, Version::V5));
        });
    }

    fn in_session(&mut self, gateway: &Gateway) {
        let retained = |topic: &str| {
            let mut packet = publish_packet(Version::V5, topic, b"x", 1, 1);
            packet.iter_mut().take(1).for_each(|first| *first |= 1);
            packet
        };
        let events = "devices/plain/messages/events/";
        for (denial, device, packet) in [
            (Denial::TopicOutOfScope, "d0", publish_packet(Version::V5, "devices/d1/messages/events/", b"x", 1, 1)),
            (Denial::NotRouted, "roamer", publish_packet(Version::V5, "elsewhere/roamer", b"x", 1, 1)),
            (Denial::QosNotOffered, "plain", publish_packet(Version::V5, events, b"x", 2, 1)),
            (Denial::TopicInvalid, "d0", publish_packet(Version::V5, "devices/+/messages/events/", b"x", 1, 1)),
            (Denial::RetainNotOffered, "plain", retained(events)),
        ] {
            let mut session = gateway.connect(Version::V5, device);
            self.told(gateway, denial, denial.tag(), || session.send(&packet));
        }
        for (denial, filter) in [
            (Denial::FilterOutOfScope, "devices/d1/messages/devicebound/#"),
            (Denial::FilterInvalid, "devices/d0/messages/devicebound/#/x"),
            (Denial::SharedSubscriptionNotOffered, "$share/g/devices/d0/messages/devicebound/#"),
        ] {
            let mut session = gateway.connect(Version::V5, "d2");
            let code = self.told(gateway, denial, filter, || session.subscribe(filter, 1));
            assert_eq!(code, denial.row().reason_v5, "{filter}");
        }
        let mut session = gateway.connect(Version::V5, "d3");
        (0..SUBSCRIPTIONS_MAX).for_each(|n| _ = session.subscribe(&format!("devices/d3/messages/devicebound/{n}"), 1));
        self.told(gateway, Denial::SubscriptionQuota, "one more", || {
            session.subscribe("devices/d3/messages/devicebound/more", 1)
        });
    }

    fn by_renewal(&mut self, gateway: &Gateway) {
        let expiry = format!("{}&skn=narrow", unix_now() + 600);
        let narrow = sas_for("localhost/devices/d1", &device_key("policy"), &expiry);
        let mut session = gateway.open(Version::V5).admitted(&Login::new(Version::V5, "d1", &narrow));
        self.told(gateway, Denial::RenewalWidens, "a token with more rights", || {
            session.publish("$tollgate/auth/renew", sas("d1").as_bytes(), 1)
        });
        let mut session = gateway.open(Version::V5);
        session.send(&connect_by_method("d0", "SAS", &sas("d0")));
        assert_eq!(session.next(PATIENCE), Answer::Connack(0));
        self.told(gateway, Denial::RenewalMethod, "AUTH of another method", || {
            // MQTT 5.0 §3.15: re-authenticate, Authentication Method JWT.
            session.send(b"\xF0\x08\x19\x06\x15\x00\x03JWT");
        });
        assert_eq!(session.closed(PATIENCE), Some(Denial::RenewalMethod.row().reason_v5));
    }

    fn by_certificate_and_key(&mut self) {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let public = pair.public_key_pem();
        let key = device_key("both");
        let identities = format!(
            "[[device]]\nid = \"both\"\nprimary_key = \"{key}\"\naccept = [\"certificate+sas\"]\n\
             [[device]]\nid = \"signs\"\n[[device.public_key]]\nfile = \"signs.pem\"\n\
             not_after = \"2020-01-01T00:00:00Z\"\n"
        );
        let gateway = Plan::new(Hub::Embedded).identities_and(&identities).start_with(|folder| {
            fs::write(folder.join("signs.pem"), &public).unwrap();
            // Of an authority that nobody here has a certificate of.
            fs::copy(folder.join("server.pem"), folder.join("devices.pem")).unwrap();
            let file = folder.join("gateway.toml");
            let text = fs::read_to_string(&file).unwrap();
            let asks = "transport = \"tls\"\nclient_auth = \"optional\"\nclient_ca = \"devices.pem\"\n";
            fs::write(&file, text.replacen("transport = \"tls\"\n", asks, 1)).unwrap();
        });
        let mut log_in = |denial, device: &mut Device, login: Login| {
            let answer = self.told(&gateway, denial, denial.tag(), || device.log_in(&login));
            assert_eq!(answer, refusal(denial, Version::V5));
        };
        let login = |device: &str, token: &str| Login::new(Version::V5, device, token);
        let tcp = || gateway.open(Version::V5);
        log_in(Denial::CertificateRequired, &mut tcp(), login("both", &sas("both")));
        let bound = jwt_with("d0", json!({"cnf": {"x5t#S256": BASE64_URL_SAFE_NO_PAD.encode([7; 32])}}));
        log_in(Denial::CertificateMismatch, &mut tcp(), login("d0", &bound));
        let stranger = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "d0");
        let certificate = params.self_signed(&stranger).unwrap();
        let shown = ClientIdentity { chain: vec![certificate.der().to_vec()], key: stranger.serialize_der() };
        let mut tls = gateway.open_tls_with(Version::V5, &gateway.tls_client(&shown));
        let without = Login { user_name: None, password: None, ..login("d0", "") };
        log_in(Denial::CertificateUntrusted, &mut tls, without);
        let part = |json: Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
        let now = unix_now();
        let claims = json!({"aud": "localhost", "sub": "signs", "iat": now, "exp": now + 600, "jti": "own"});
        let message = format!("{}.{}", part(json!({"alg": "ES256", "typ": "JWT"})), part(claims));
        let signer = jsonwebtoken::EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &signer, jsonwebtoken::Algorithm::ES256).unwrap();
        log_in(Denial::KeyOutOfValidity, &mut tcp(), login("signs", &format!("{message}.{signature}")));
    }

    /// A WebSocket that is asked for at another path, and a listener with the profile azure.
    fn at_other_doors(&mut self) {
        let [ws, azure] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let gateway = Plan::new(Hub::Embedded)
            .limit(&format!(
                "[[listener]]\nbind = \"{ws}\"\ntransport = \"ws\"\n\
                 [[listener]]\nbind = \"{azure}\"\ntransport = \"tcp\"\nprofile = \"azure\""
            ))
            .start();
        self.told(&gateway, Denial::UpgradeDeclined, "another path", || {
            let request = "GET /elsewhere HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                           Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
            let mut socket = dial(ws.parse().unwrap());
            socket.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            let _ = socket.read_to_string(&mut answer);
            assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        });
        let login = Login::new(Version::V5, "d0", &sas("d0"));
        let mut session = Device::open(azure.parse().unwrap(), Version::V5).admitted(&login);
        self.told(&gateway, Denial::PropertyBagInvalid, "a bad escape", || {
            let id = session.publish("devices/d0/messages/events/a=%zz", b"a message with a bad bag", 1);
            assert_eq!(session.next(PATIENCE), Answer::Puback(id, Denial::PropertyBagInvalid.row().reason_v5));
        });
    }

    fn by_limits(&mut self) {
        let gateway = Plan::new(Hub::Embedded).limit("connections_max = 1").start();
        let held = gateway.connect(Version::V5, "d0");
        let login = Login::new(Version::V5, "d9", &sas("d9"));
        self.told(&gateway, Denial::ConnectionQuota, "a second", || gateway.open(Version::V5).log_in(&login));
        drop(held);
        let gateway = Plan::new(Hub::Embedded).limit("connects_per_second_per_ip = 1").start();
        self.told(&gateway, Denial::ConnectRate, "more than the burst", || {
            until("a refusal", PATIENCE, || {
                gateway.open(Version::V5).log_in(&login) == refusal(Denial::ConnectRate, Version::V5)
            });
        });
        let gateway = guessed_at();
        let unsigned = jwt_of(&json!({"alg": "ES256", "typ": "JWT", "kid": "k1"}), &claims_with("d0", json!({})));
        for (denial, token) in [
            (Denial::Banned, sas_for("localhost/devices/d0", &device_key("d1"), "4000000000")),
            (Denial::CheckRate, unsigned),
        ] {
            let login = Login::new(Version::V5, "d0", &token);
            until(denial.tag(), PATIENCE, || {
                let mut peers: Vec<_> = (0..BURST).map(|_| gateway.open(Version::V5)).collect();
                peers.iter_mut().for_each(|peer| peer.send(&login.packet()));
                peers.iter_mut().any(|peer| peer.next(PATIENCE) == refusal(denial, Version::V5))
            });
            assert_shown(&gateway, "d0", denial);
            self.0.push(denial);
        }
    }

    fn when_it_cannot_decide(&mut self) {
        let gateway = Plan::new(Hub::Embedded).launch(|folder| {
            fs::remove_file(folder.join("revocations.jsonl")).unwrap();
            fs::create_dir(folder.join("revocations.jsonl")).unwrap();
        });
        until("the gateway to say so", PATIENCE, || gateway.get("/readyz").is_some_and(|(status, _)| status == 503));
        let login = Login::new(Version::V5, "d0", &sas("d0"));
        self.told(&gateway, Denial::Unavailable, "no list", || gateway.open(Version::V5).log_in(&login));
    }

    /// Whoever finds a place in the queue of the socket while the gateway stands still is met by the drain.
    fn while_it_drains(&mut self) {
        let mut recorder = Recorder::start();
        recorder.tell("ack hold");
        let denial = Denial::Draining;
        let turned_away = (0..ROUNDS_OF_DRAIN).any(|_| {
            let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).shards(1).ack("hub").start();
            let mut device = gateway.connect(Version::V5, "d0");
            // The hub does not acknowledge it: the drain takes a while.
            device.publish("devices/d0/messages/events/", b"unacknowledged", 1);
            gateway.signal(rustix::process::Signal::STOP);
            let login = Login::new(Version::V5, "d1", &sas("d1"));
            let mut waiting: Vec<Device> = (0..100).map(|_| gateway.open(Version::V5)).collect();
            waiting.iter_mut().for_each(|peer| peer.send(&login.packet()));
            gateway.terminate();
            gateway.signal(rustix::process::Signal::CONT);
            let told = refusal(denial, Version::V5);
            let was_told = waiting.iter_mut().fold(false, |was, peer| (peer.next(PATIENCE) == told) | was);
            let shown = || gateway.get("/v1/refusals?device=d1").is_some_and(|(_, body)| body.contains(denial.tag()));
            was_told && (shown() || gateway.process.log().contains("denial=\"draining\""))
        });
        assert!(turned_away, "somebody came while it drained");
        self.0.push(denial);
    }

    fn by_the_hub(&mut self) {
        let mut recorder = Recorder::start();
        let gateway = Plan::new(Hub::At(recorder.port(), Version::V5)).shards(1).ack("hub").start();
        recorder.tell("refuse 135 on poison");
        let mut session = gateway.connect(Version::V5, "d0");
        let id = session.publish("devices/d0/messages/events/poison", b"bad", 1);
        assert_eq!(session.next(PATIENCE), Answer::Puback(id, Denial::HubRefused.row().reason_v5));
        self.0.push(Denial::HubRefused);
    }
}

/// All that the operator is shown, oldest first.
fn journal(gateway: &Gateway) -> Vec<Value> {
    let (status, body) = gateway.get("/v1/refusals?last=1000").expect("the admin port answers");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["refusals"].as_array().unwrap().clone()
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

/// Nor does what a command writes, at TRACE too. `token mint` alone writes a token: that is what it is for.
#[test]
fn what_commands_write_holds_no_secret() {
    let policy = "[[policy]]\nname = \"site\"\nresource = \"localhost\"\nprimary_key_file = \"policy.primary\"\n\
                  secondary_key_file = \"policy.secondary\"\n";
    let gateway = Plan::new(Hub::Embedded).identities_and(policy).start_with(|folder| {
        for slot in ["primary", "secondary"] {
            let path = folder.join(format!("policy.{slot}"));
            let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).unwrap();
            file.write_all(device_key(&format!("policy {slot}")).as_bytes()).unwrap();
        }
    });
    let (mut session, token) = (gateway.connect(Version::V5, "d0"), sas("d0"));
    session.publish_acknowledged("devices/d0/messages/events/", b"a session to be listed");
    remember_tokens(token.as_bytes());
    let wrong = sas_for("localhost/devices/d0", &device_key("d1"), &(unix_now() + 600).to_string());
    remember_tokens(wrong.as_bytes());
    let keep_keys = || {
        for slot in ["primary", "secondary"] {
            remember_key(fs::read_to_string(gateway.folder.join(format!("policy.{slot}"))).unwrap().trim());
        }
    };
    for (arguments, input) in [
        (&["check"] as &[&str], ""),
        (&["token", "inspect", "-"], &*token),
        (&["token", "explain", "-", "--device", "d0"], &*token),
        (&["token", "explain", "-", "--device", "d0"], &*wrong),
        (&["key", "list"], ""),
        (&["key", "list", "--json"], ""),
        (&["key", "plan", "policy:site"], ""),
        (&["key", "rotate", "policy:site"], ""),
        (&["key", "rotate", "policy:site", "--both"], ""),
        (&["key", "rotate", "device:d5"], ""),
        (&["pub", "--device", "d1", "--message", "21.5"], ""),
        (&["sessions", "list"], ""),
        (&["revoke", "token", "-", "--reason", "seen in a log"], &*token),
        (&["revoke", "device", "d4"], ""),
        (&["revocations", "list", "--json"], ""),
        (&["refusals", "--last", "50", "--json"], ""),
        (&["upstreams", "--json"], ""),
        (&["audit", "verify"], ""),
    ] {
        keep_keys();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command
            .args(arguments)
            .args(["--config", "gateway.toml"])
            .current_dir(&gateway.folder)
            .env("RUST_LOG", "trace");
        let (input_file, text) = (gateway.folder.join("input"), input);
        fs::write(&input_file, text).unwrap();
        let output = command.stdin(fs::File::open(&input_file).unwrap()).output().unwrap();
        let written = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&written);
        assert!(!written.is_empty() && output.status.code() != Some(2), "{arguments:?}: {text}");
        assert_eq!(found_in_text(&written, &gateway.folder), Vec::<String>::new(), "{arguments:?}: {text}");
    }
}

/// Bans soon. Not at TRACE: on a busy machine a log of everything takes the second in which so many checks are earned.
fn guessed_at() -> Gateway {
    Plan::new(Hub::Embedded).limit("failed_connects_per_minute_per_ip = 1").environment("RUST_LOG", "info").start()
}

/// What is no CONNECT of ours, in which version it is answered, and how.
fn no_connects() -> [(Denial, Version, Vec<u8>, Answer); 6] {
    let mut too_long = Login::new(Version::V5, "d0", &"x".repeat(60_000)).packet();
    too_long.splice(1..4, [0xFF, 0xFF, 0x7F]);
    let old = b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01a".to_vec();
    let newer = b"\x10\x0e\x00\x04MQTT\x06\x02\x00\x3c\x00\x00\x01a".to_vec();
    let twice = b"\x10\x14\x00\x04MQTT\x05\x02\x00\x3c\x06\x21\x00\x01\x21\x00\x01\x00\x01a".to_vec();
    [
        (Denial::ProtocolVersion, Version::V4, old, Answer::Connack(1)),
        (Denial::ProtocolVersion, Version::V5, newer, Answer::Connack(0x84)),
        (Denial::Malformed, Version::V4, vec![0x10, 0], Answer::Closed),
        (Denial::ProtocolViolation, Version::V5, twice, Answer::Connack(0x82)),
        (Denial::PacketTooLarge, Version::V4, too_long, Answer::Closed),
        (Denial::ConnectTimeout, Version::V4, vec![0x10], Answer::Closed),
    ]
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

const SUBSCRIPTIONS_MAX: usize = 5;
/// Checks of public keys that a banned address has at once, and more.
const BURST: usize = 300;
/// Each meets a drain that has begun, or one that has not.
const ROUNDS_OF_DRAIN: usize = 5;
const PATIENCE: Duration = Duration::from_secs(20);
